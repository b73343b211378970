/* The files that are read, looked at and opened. Made once in dir=, whole or not at all, and kept for the next turn. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

void *bench_memory(size_t size) {
    void *memory;
    if (posix_memalign(&memory, 4096, size) != 0)
        bench_die("memory", strerror(ENOMEM));
    memset(memory, 0, size);
    return memory;
}

static void enter_directory(void) {
    const char *directory = bench_text("dir", NULL);
    if (!directory)
        bench_die("dir=", "a folder for the files is needed");
    if (mkdir(directory, 0755) != 0 && errno != EEXIST)
        bench_die_errno(directory);
    bench_call(chdir(directory), directory);
}

static void write_all(int fd, const void *data, size_t size) {
    for (size_t at = 0; at < size;)
        at += (size_t)bench_call(write(fd, (const char *)data + at, size - at), "write");
}

struct bench_file bench_open_blocks(void) {
    uint64_t blocks = (uint64_t)bench_number("blocks", 65536);
    char name[64], making[80];
    enter_directory();
    snprintf(name, sizeof name, "blocks.%llu", (unsigned long long)blocks);
    if (access(name, R_OK) != 0) {
        snprintf(making, sizeof making, "%s.%d", name, (int)getpid());
        int fd = (int)bench_call(open(making, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), making);
        enum { PART = 256 };
        uint64_t *data = bench_memory(PART * BENCH_BLOCK);
        for (uint64_t i = 0; i < blocks; i++) {
            uint64_t *block = data + (i % PART) * (BENCH_BLOCK / 8);
            for (size_t w = 0; w < BENCH_BLOCK / 8; w++)
                block[w] = (i + w) * UINT64_C(0x9e3779b97f4a7c15); /* nothing that compresses */
            block[0] = i;
            block[BENCH_BLOCK / 8 - 1] = ~i;
            if (i % PART == PART - 1 || i + 1 == blocks)
                write_all(fd, data, (i % PART + 1) * BENCH_BLOCK);
        }
        bench_call(fsync(fd), "fsync");
        close(fd);
        free(data);
        bench_call(rename(making, name), "rename");
    }
    struct bench_file file = {.blocks = blocks};
    if (bench_number("direct", 0)) {
        file.fd = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
        if (file.fd < 0)
            bench_skip("no O_DIRECT on this file system");
        posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED); /* a read of cached data would not go to the device everywhere */
    } else {
        static char room[1 << 20];
        file.fd = (int)bench_call(open(name, O_RDONLY | O_CLOEXEC), name);
        posix_fadvise(file.fd, 0, 0, POSIX_FADV_RANDOM);
        while (read(file.fd, room, sizeof room) > 0) {}
    }
    return file;
}

uint64_t bench_next_block(uint64_t blocks) {
    static uint64_t x = 88172645463325252u;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return (x >> 20) % blocks;
}

enum { PER_FOLDER = 500 };

const char *bench_path(unsigned index) {
    static char path[32];
    snprintf(path, sizeof path, "%u/%u", index / PER_FOLDER, index);
    return path;
}

unsigned bench_tree(const char *kind) {
    unsigned count = (unsigned)bench_number("files", strcmp(kind, "small") == 0 ? 10000 : 100000);
    char name[64], making[80], old[PATH_MAX];
    enter_directory();
    snprintf(name, sizeof name, "%s.%u", kind, count);
    if (access(name, R_OK) != 0) {
        snprintf(making, sizeof making, "%s.%d", name, (int)getpid());
        bench_call(mkdir(making, 0755), making);
        BENCH_CHECK(getcwd(old, sizeof old) != NULL);
        bench_call(chdir(making), making);
        for (unsigned i = 0; i < count; i++) {
            char folder[16];
            snprintf(folder, sizeof folder, "%u", i / PER_FOLDER);
            if (i % PER_FOLDER == 0)
                bench_call(mkdir(folder, 0755), folder);
            int fd = (int)bench_call(open(bench_path(i), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), "open");
            if (strcmp(kind, "small") == 0) {
                uint64_t data[BENCH_SMALL / 8];
                for (size_t w = 0; w < BENCH_SMALL / 8; w++)
                    data[w] = i + w;
                write_all(fd, data, sizeof data);
            } else
                bench_call(ftruncate(fd, i), "ftruncate");
            close(fd);
        }
        bench_call(chdir(old), old);
        bench_call(rename(making, name), "rename");
    }
    bench_call(chdir(name), name);
    /* In the caches of the kernel, for all alike. */
    for (unsigned i = 0; i < count; i++) {
        struct stat stat;
        BENCH_CHECK(lstat(bench_path(i), &stat) == 0);
        if (strcmp(kind, "small") == 0) {
            char room[BENCH_SMALL];
            int fd = (int)bench_call(open(bench_path(i), O_RDONLY | O_CLOEXEC), "open");
            BENCH_CHECK(read(fd, room, sizeof room) == BENCH_SMALL);
            close(fd);
        }
    }
    return count;
}

/* ---- Logs ---- */

static const char *log_name(unsigned index) {
    static char name[32];
    snprintf(name, sizeof name, "log.%u", index);
    return name;
}

int bench_log_open(unsigned index) {
    if (index == 0)
        enter_directory();
    return (int)bench_call(open(log_name(index), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), "log");
}

void bench_log_check(unsigned index, uint64_t size) {
    struct stat stat;
    bench_call(lstat(log_name(index), &stat), "log");
    BENCH_CHECK((uint64_t)stat.st_size == size);
    unlink(log_name(index));
}

/* ---- Copies ---- */

static char source[64];
static int copy_from = -1, copy_to = -1;
static uint64_t copy_begun, copy_time, copies;

const char *bench_copy_from(void) {
    if (!*source) {
        unsigned megabytes = (unsigned)bench_number("megabytes", 256);
        enter_directory();
        snprintf(source, sizeof source, "copy.%u", megabytes);
        if (access(source, R_OK) != 0) {
            char making[96];
            snprintf(making, sizeof making, "%s.%d", source, (int)getpid());
            int fd = (int)bench_call(open(making, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), making);
            uint64_t *data = bench_memory(1 << 20);
            for (uint64_t i = 0; i < megabytes; i++) {
                for (size_t w = 0; w < (1 << 20) / 8; w++)
                    data[w] = (i * 131072 + w) * UINT64_C(0x9e3779b97f4a7c15);
                write_all(fd, data, 1 << 20);
            }
            bench_call(fsync(fd), "fsync");
            close(fd);
            free(data);
            bench_call(rename(making, source), "rename");
        }
    }
    return source;
}

uint64_t bench_copy_begin(int *from, int *to) {
    struct stat stat;
    unlink(BENCH_COPY_TO);
    if (from) {
        copy_from = *from = (int)bench_call(open(bench_copy_from(), O_RDONLY | O_CLOEXEC), "copy");
        copy_to = *to = (int)bench_call(open(BENCH_COPY_TO, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), "copy");
    }
    bench_call(lstat(bench_copy_from(), &stat), "copy");
    copy_begun = bench_now();
    return (uint64_t)stat.st_size;
}

void bench_copy_end(void) {
    copy_time += bench_now() - copy_begun;
    copies++;
    if (copy_from >= 0)
        close(copy_from), close(copy_to);
}

void bench_copy_check(void) {
    static char a[1 << 16], b[1 << 16];
    int from = (int)bench_call(open(bench_copy_from(), O_RDONLY | O_CLOEXEC), "copy");
    int to = (int)bench_call(open(BENCH_COPY_TO, O_RDONLY | O_CLOEXEC), "copy");
    ssize_t got;
    do {
        got = bench_call(read(from, a, sizeof a), "read");
        BENCH_CHECK(read(to, b, sizeof b) == got && memcmp(a, b, (size_t)got) == 0);
    } while (got > 0);
    unlink(BENCH_COPY_TO);
    bench_report("copy_ns", (double)copy_time / (double)copies); /* the warm-up's among them */
}

/* ---- Sockets ---- */

struct bench_connects bench_connects;

int bench_listener(struct sockaddr_in *address) {
    bench_connects.depth = (unsigned)bench_number("depth", 64);
    socklen_t length = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = (int)bench_call(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    bench_call(bind(fd, (struct sockaddr *)address, length), "bind");
    bench_call(listen(fd, 4096), "listen");
    bench_call(getsockname(fd, (struct sockaddr *)address, &length), "getsockname");
    return fd;
}

int bench_socket(void) {
    struct linger none = {.l_onoff = 1};
    int fd = (int)bench_call(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    bench_call(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none), "SO_LINGER");
    return fd;
}
