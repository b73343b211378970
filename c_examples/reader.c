/*
 * A file in a poll(2) loop.
 *
 * To poll(2) a file is always ready, and then read(2) waits for the disk with the whole program behind it. The read-ahead
 * reader turns that around: it reads on its own, several blocks ahead, and its descriptor is readable when the next block
 * is in memory. So a large file is one more descriptor of an ordinary loop, which needs neither threads nor an upcall_loop.
 *
 * Here the loop makes checksums of files while a timer ticks and standard input is watched: a line "quit" ends it early.
 * Each block is worked on as it comes, then given back; a block that is kept for long holds the reading back, no more. One
 * block per turn: what else there is to do has its turn between any two of them.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <upcall.h>

#define TICK_MS 100

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    FILES_MAX = 16,
};

/* A file on its way. */
struct file {
    const char *name;
    upcall_reader *reader; /* NULL: it has ended */
    uint64_t bytes;
    uint32_t checksum;
    bool failed;
};

struct program {
    struct file files[FILES_MAX];
    size_t count;
    size_t open;
    uint64_t ticks;
    bool quit;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "reader: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

/* ---- the checksum of cksum(1), so that anybody can compare ---- */

static uint32_t table[256];

static void make_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t rest = byte << 24;

        for (int bit = 0; bit < 8; bit++)
            rest = rest << 1 ^ (rest & 0x80000000 ? 0x04c11db7 : 0);
        table[byte] = rest;
    }
}

static uint32_t add_byte(uint32_t sum, uint8_t byte)
{
    return sum << 8 ^ table[sum >> 24 ^ byte];
}

static uint32_t add_bytes(uint32_t sum, const uint8_t *bytes, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum = add_byte(sum, bytes[i]);
    return sum;
}

static uint32_t finish(uint32_t sum, uint64_t length)
{
    for (; length != 0; length >>= 8)
        sum = add_byte(sum, (uint8_t)length);
    return ~sum;
}

/* ---- files ---- */

static void open_file(struct program *program, const char *name)
{
    struct file *file = &program->files[program->count++];
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    int rc;

    file->name = name;
    if (fd < 0) {
        fprintf(stderr, "reader: %s: %s\n", name, strerror(errno));
        file->failed = true;
        return;
    }
    rc = upcall_reader_new(fd, NULL, &file->reader);
    (void)close(fd); /* the reader has its own */
    if (rc < 0) {
        fprintf(stderr, "reader: %s: %s\n", name, upcall_last_error());
        if (rc == -EPERM || rc == -ENOSYS)
            exit(EXIT_NO_BACKEND);
        file->failed = true;
        return;
    }
    program->open++;
}

static void close_file(struct program *program, struct file *file)
{
    if (file->reader == NULL)
        return;
    (void)upcall_reader_free(file->reader);
    file->reader = NULL;
    program->open--;
}

/* The reader's descriptor was readable: the next block is there, or the end, or an error. */
static void on_block(struct program *program, struct file *file)
{
    const void *block;
    int64_t got = upcall_reader_next(file->reader, &block);

    if (got == -EAGAIN)
        return; /* only if somebody else had taken it */
    if (got > 0) {
        int rc;

        file->checksum = add_bytes(file->checksum, block, got);
        file->bytes += (uint64_t)got;
        rc = upcall_reader_release(file->reader, block); /* from here on it is filled again */
        if (rc < 0)
            die("upcall_reader_release", upcall_last_error());
        return;
    }
    if (got < 0) {
        fprintf(stderr, "reader: %s: %s\n", file->name, upcall_strerror((int)got));
        file->failed = true;
    } else
        printf("%u %llu %s\n", (unsigned)finish(file->checksum, file->bytes), (unsigned long long)file->bytes, file->name);
    close_file(program, file);
}

/* ---- the loop and its other descriptors ---- */

static void on_tick(struct program *program, int timer)
{
    uint64_t ticks, bytes = 0;

    if (read(timer, &ticks, sizeof ticks) != (ssize_t)sizeof ticks)
        return;
    program->ticks += ticks;
    for (size_t i = 0; i < program->count; i++)
        bytes += program->files[i].bytes;
    fprintf(stderr, "%5.1f s  %llu MB\n", (double)program->ticks * TICK_MS / 1000, (unsigned long long)(bytes / 1000000));
}

/* False: there will be no more input. */
static bool on_input(struct program *program)
{
    char line[256];
    ssize_t got = read(STDIN_FILENO, line, sizeof line - 1);

    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    line[got] = '\0';
    if (strstr(line, "quit") != NULL)
        program->quit = true;
    return got > 0;
}

static int start_timer(void)
{
    const struct itimerspec every = {{0, TICK_MS * 1000000L}, {0, TICK_MS * 1000000L}};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

    if (timer < 0 || timerfd_settime(timer, 0, &every, NULL) < 0)
        die("timer", strerror(errno));
    return timer;
}

static void run(struct program *program, bool watch_input)
{
    struct pollfd waits[2 + FILES_MAX];
    int timer = start_timer();

    waits[0] = (struct pollfd){.fd = timer, .events = POLLIN};
    waits[1] = (struct pollfd){.fd = watch_input ? STDIN_FILENO : -1, .events = POLLIN};
    while (program->open > 0 && !program->quit) {
        for (size_t i = 0; i < program->count; i++) {
            upcall_reader *reader = program->files[i].reader;

            /* A negative descriptor is one that poll(2) passes over. */
            waits[2 + i] = (struct pollfd){.fd = reader ? upcall_reader_fd(reader) : -1, .events = POLLIN};
        }
        if (poll(waits, 2 + program->count, -1) < 0) {
            if (errno == EINTR)
                continue;
            die("poll", strerror(errno));
        }
        if (waits[0].revents != 0)
            on_tick(program, timer);
        if (waits[1].revents != 0 && !on_input(program))
            waits[1].fd = -1;
        for (size_t i = 0; i < program->count; i++)
            if (waits[2 + i].revents != 0)
                on_block(program, &program->files[i]);
    }
    (void)close(timer);
}

int main(int argc, char **argv)
{
    static struct program program;
    bool watch_input = argc > 1 && strcmp(argv[1], "-i") == 0;
    bool failed = false;
    int first = watch_input ? 2 : 1;

    if (argc - first < 1 || argc - first > FILES_MAX || strcmp(argv[first], "--help") == 0) {
        bool help = argc > first && strcmp(argv[first], "--help") == 0;

        fprintf(help ? stdout : stderr,
                "usage: reader [-i] FILE...\n"
                "Prints checksum, length and name of each of up to %d files, as cksum(1) does, all read at the same time in\n"
                "one poll(2) loop beside a timer that tells how far it is. With -i a line \"quit\" on standard input ends it.\n"
                "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                "Exit status: 0 all were read, 1 not, 2 usage, 77 the chosen backend is denied here.\n", FILES_MAX);
        return help ? EXIT_SUCCESS : 2;
    }
    make_table();
    for (int i = first; i < argc; i++)
        open_file(&program, argv[i]);
    run(&program, watch_input);
    for (size_t i = 0; i < program.count; i++) {
        failed = failed || program.files[i].failed || program.files[i].reader != NULL;
        close_file(&program, &program.files[i]); /* also in the middle: what is in flight is waited for */
    }
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
