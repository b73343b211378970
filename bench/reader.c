/* The read-ahead reader beside dd, printed, never asserted: one sequential pass over a file of 1 GiB, from the page cache,
 * from the disk through the cache, and with O_DIRECT; and what reading ahead is for: a pass whose bytes are looked at.
 *
 *     reader_bench [FILE [BLOCK_SIZE DEPTH]]     the file is made if it is not there; without a name a temporary one is
 *
 * The contestants take turns, on the same two processors, and the medians of their turns are compared. dd's time is what dd
 * itself measured, without the start of its process; the reader's is from upcall_reader_new() to upcall_reader_free(). A
 * ratio above 1 says that the reader is faster. */
#include <upcall.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 9, MIB = 1 << 20 };
static const int64_t LENGTH = INT64_C(1) << 30;

static upcall_reader_config config;
static char path[4096];

static void die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void must(int64_t rc, const char *what) {
    if (rc < 0)
        die(what, upcall_strerror((int)rc));
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, ROUNDS, sizeof *values, ascending);
    return values[ROUNDS / 2];
}

/* Two processors for everybody, so that the scheduler deals the same cards to all. */
static void pin(void) {
    cpu_set_t all, two;
    CPU_ZERO(&two);
    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return;
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&two) < 2; cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &two);
    sched_setaffinity(0, sizeof two, &two);
}

static int open_file(int flags) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0)
        die(path, strerror(errno));
    return fd;
}

static void make_file(void) {
    struct stat stat;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || fstat(fd, &stat) != 0)
        die(path, strerror(errno));
    static uint64_t words[MIB / 8];
    for (int64_t at = stat.st_size; at < LENGTH; at += MIB) {
        for (size_t i = 0; i < MIB / 8; i++)
            words[i] = ((uint64_t)at + i) * UINT64_C(0x9e3779b97f4a7c15);
        if (pwrite(fd, words, MIB, at) != MIB)
            die("pwrite", strerror(errno));
    }
    if (fsync(fd) != 0)
        die("fsync", strerror(errno));
    close(fd);
}

enum way { CACHED, COLD, DIRECT };

static void prepare(enum way way) {
    int fd = open_file(0);
    if (way == CACHED) {
        static char room[MIB];
        while (read(fd, room, MIB) > 0) {}
    } else
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static double dd_pass(enum way way) {
    int report[2];
    char input[sizeof path + 8], text[1024] = "", *at;
    snprintf(input, sizeof input, "if=%s", path);
    if (pipe(report) != 0)
        die("pipe", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        setenv("LC_ALL", "C", 1);
        dup2(report[1], STDERR_FILENO);
        execlp("dd", "dd", input, "of=/dev/null", "bs=1M", "count=1024", way == DIRECT ? "iflag=direct" : NULL, (char *)NULL);
        _exit(127);
    }
    close(report[1]);
    for (size_t used = 0; used < sizeof text - 1;) {
        ssize_t got = read(report[0], text + used, sizeof text - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    close(report[0]);
    waitpid(child, NULL, 0);
    at = strstr(text, "copied, "); /* "1073741824 bytes (1.1 GB, 1.0 GiB) copied, 0.0987 s, 10.9 GB/s" */
    if (at == NULL)
        die("dd", text);
    return strtod(at + 8, NULL);
}

static uint64_t sum;
static void look_at(const void *bytes, int64_t count) {
    const uint64_t *words = bytes;
    uint64_t a = 0;
    for (int64_t i = 0; i < count / 8; i++)
        a = (a ^ words[i]) * UINT64_C(0x100000001b3);
    sum += a;
}

static double reader_pass(enum way way, bool look) {
    int fd = open_file(way == DIRECT ? O_DIRECT : 0);
    double begun = now_s();
    upcall_reader *reader;
    must(upcall_reader_new(fd, &config, &reader), "upcall_reader_new");
    const void *block;
    int64_t got, total = 0;
    while ((got = upcall_reader_wait(reader, &block, -1)) > 0) {
        if (look)
            look_at(block, got);
        total += got;
        must(upcall_reader_release(reader, block), "upcall_reader_release");
    }
    must(got, "upcall_reader_wait");
    must(upcall_reader_free(reader), "upcall_reader_free");
    double seconds = now_s() - begun;
    close(fd);
    if (total != LENGTH)
        die("the reader", "not the whole file");
    return seconds;
}

static double read_pass(enum way way) {
    int fd = open_file(way == DIRECT ? O_DIRECT : 0);
    void *room;
    if (posix_memalign(&room, 4096, MIB) != 0)
        die("memory", strerror(ENOMEM));
    double begun = now_s();
    for (ssize_t got; (got = read(fd, room, MIB)) > 0;)
        look_at(room, got);
    double seconds = now_s() - begun;
    free(room);
    close(fd);
    return seconds;
}

static void compare(enum way way, bool look) {
    static const char *const names[] = {"cached", "from the disk", "O_DIRECT"};
    double other[ROUNDS], ours[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        prepare(way);
        other[round] = look ? read_pass(way) : dd_pass(way);
        prepare(way);
        ours[round] = reader_pass(way, look);
    }
    double a = median(other), b = median(ours);
    printf("  %-14s  %-18s  %9.0f  %9.0f  %6.2f\n", names[way], look ? "read(2), looked at" : "dd bs=1M",
           (double)LENGTH / MIB / a, (double)LENGTH / MIB / b, a / b);
}

int main(int argc, char **argv) {
    bool temporary = argc < 2;
    const char *directory = getenv("TMPDIR");
    upcall_reader_config_init(&config);
    if (argc > 3) {
        config.block_size = (uint32_t)strtoul(argv[2], NULL, 0);
        config.depth = (uint32_t)strtoul(argv[3], NULL, 0);
    }
    snprintf(path, sizeof path, "%s/upcall-bench.%d", directory ? directory : "/tmp", (int)getpid());
    if (!temporary)
        snprintf(path, sizeof path, "%s", argv[1]);
    upcall_loop *loop;
    must(upcall_loop_new(NULL, &loop), "upcall_loop_new");
    printf("the read-ahead reader on %s: %u blocks of %u KiB; 1 GiB, MiB/s (medians of %d turns)\n",
           upcall_backend_name(upcall_loop_backend(loop)), config.depth, config.block_size / 1024, ROUNDS);
    must(upcall_loop_free(loop), "upcall_loop_free");
    pin();
    make_file();
    printf("  %-14s  %-18s  %9s  %9s  %6s\n", "", "beside", "it", "reader", "ratio");
    compare(CACHED, false);
    compare(COLD, false);
    int direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (direct >= 0)
        compare(DIRECT, false);
    compare(CACHED, true);
    compare(COLD, true);
    if (direct >= 0)
        compare(DIRECT, true);
    if (temporary)
        unlink(path);
    return sum == 1; /* the sum is used, so that nobody leaves it out */
}
