/* What plain blocking system calls do, one after the other on one thread: what a program without a library does with files. And
 * cp, a process of its own. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct bench_file file;
static unsigned depth, files, next;
static char *data;

static void nothing(void) {}

static void read_open(void) {
    file = bench_open_blocks();
    data = bench_memory(BENCH_BLOCK);
}

static void read_run(void) {
    while (bench_more(1)) {
        uint64_t block = bench_next_block(file.blocks);
        bench_check_block(data, pread(file.fd, data, BENCH_BLOCK, (off_t)(block * BENCH_BLOCK)), block);
    }
}

static void stat_open(void) {
    files = bench_tree("empty");
}

static void stat_run(void) {
    while (bench_more(1)) {
        struct statx found;
        unsigned index = next++ % files;
        bench_call(statx(AT_FDCWD, bench_path(index), 0, STATX_BASIC_STATS, &found), "statx");
        BENCH_CHECK(found.stx_size == index);
    }
}

static void small_open(void) {
    files = bench_tree("small");
    data = bench_memory(BENCH_SMALL * 2);
}

static void small_run(void) {
    while (bench_more(1)) {
        unsigned index = next++ % files;
        int fd = (int)bench_call(open(bench_path(index), O_RDONLY | O_CLOEXEC), "open");
        BENCH_CHECK(read(fd, data, BENCH_SMALL * 2) == BENCH_SMALL && *(uint64_t *)data == index);
        close(fd);
    }
}

static int logs[64];
static uint64_t sizes[64];

static void append_open(void) {
    depth = (unsigned)bench_number("depth", 8);
    BENCH_CHECK(depth <= 64);
    data = bench_memory(BENCH_BLOCK);
    for (unsigned i = 0; i < depth; i++)
        logs[i] = bench_log_open(i);
}

static void append_run(void) {
    for (unsigned i = 0; bench_more(1); i = (i + 1) % depth) {
        BENCH_CHECK(pwrite(logs[i], data, BENCH_BLOCK, (off_t)sizes[i]) == BENCH_BLOCK);
        bench_call(fdatasync(logs[i]), "fdatasync");
        sizes[i] += BENCH_BLOCK;
    }
}

static void append_close(void) {
    for (unsigned i = 0; i < depth; i++)
        bench_log_check(i, sizes[i]);
}

extern char **environ;

static void copy_run(void) {
    while (bench_more(1)) {
        int status;
        pid_t child;
        bench_copy_begin(NULL, NULL);
        char *const command[] = {(char *)"cp", (char *)bench_copy_from(), (char *)BENCH_COPY_TO, NULL};
        bench_must(-posix_spawnp(&child, "cp", NULL, NULL, command, environ), "cp");
        bench_call(waitpid(child, &status, 0), "waitpid");
        bench_copy_end();
        BENCH_CHECK(status == 0);
    }
}

static const struct bench_run runs[] = {{"read", read_open, read_run, nothing, 128},
                                        {"stat", stat_open, stat_run, nothing, 128},
                                        {"small", small_open, small_run, nothing, 64},
                                        {"append", append_open, append_run, append_close, 1},
                                        {"copy", nothing, copy_run, bench_copy_check, 1},
                                        {0}};

const struct bench_contestant bench_contestant = {.name = "blocking", .version = "plain system calls", .runs = runs};
