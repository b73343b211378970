/* Operations on the raw ring: nops, files, connections. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ring.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Runs `body` for each completion there is, with `cqe` and its `user`. The queue is given back as a whole. */
#define FOR_COMPLETIONS(type, user, ...)                                                                               \
    do {                                                                                                               \
        struct io_uring_cqe *cqe;                                                                                      \
        unsigned head, seen = 0;                                                                                       \
        io_uring_for_each_cqe(&ring, head, cqe) {                                                                      \
            type *user = io_uring_cqe_get_data(cqe);                                                                   \
            (void)user;                                                                                                \
            seen++;                                                                                                    \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
        io_uring_cq_advance(&ring, seen);                                                                              \
    } while (0)

/* ---- nop: with form=again each is submitted again when it completes, otherwise batch after batch ---- */

static unsigned batch, deadline;
static bool again;
static uint64_t completed;
static struct __kernel_timespec second = {.tv_sec = 1};

static void nop_open(void) {
    batch = (unsigned)bench_number("batch", 64);
    deadline = (unsigned)bench_number("deadline", 0);
    again = strcmp(bench_text("form", "array"), "again") == 0;
    ring_open(batch * (deadline ? 2 : 1) < 256 ? 256 : batch * (deadline ? 2 : 1));
}

static inline void put_nop(uint64_t number) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data64(sqe, number + 1);
    if (deadline) { /* the ring's own deadline: a second entry, whose completion says that it was not needed */
        io_uring_sqe_set_flags(sqe, IOSQE_IO_LINK);
        sqe = ring_sqe();
        io_uring_prep_link_timeout(sqe, &second, 0);
        io_uring_sqe_set_data64(sqe, 0);
    }
}

static void nop_run(void) {
    unsigned left = 0;
    uint64_t begun = completed, goal;
    if (again)
        for (unsigned i = 0; i < batch && bench_more(1); i++, left++)
            put_nop(i);
    while (again ? left > 0 : bench_more(batch)) {
        if (!again)
            for (unsigned i = 0; i < batch; i++, left++)
                put_nop(i);
        do {
            ring_wait();
            FOR_COMPLETIONS(void, number, {
                if (deadline && cqe->user_data == 0)
                    continue;
                completed += cqe->res == 0;
                left--;
                if (again && bench_more(1)) {
                    put_nop(cqe->user_data - 1);
                    left++;
                }
            });
        } while (!again && left > 0);
    }
    goal = begun + bench_budget.taken;
    BENCH_CHECK(completed == goal);
}

/* ---- read: `depth` reads in flight, each started again when it completes ---- */

struct slot {
    void *data;
    uint64_t block;
};
static struct slot *slots;
static unsigned depth;
static struct bench_file file;

static void read_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    deadline = (unsigned)bench_number("deadline", 0);
    file = bench_open_blocks();
    ring_open(depth * 2 < 64 ? 64 : depth * 2);
    slots = calloc(depth, sizeof *slots);
    char *data = bench_memory((size_t)depth * BENCH_BLOCK);
    for (unsigned i = 0; i < depth; i++)
        slots[i].data = data + (size_t)i * BENCH_BLOCK;
}

static void put_read(struct slot *slot) {
    slot->block = bench_next_block(file.blocks);
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_read(sqe, file.fd, slot->data, BENCH_BLOCK, slot->block * BENCH_BLOCK);
    io_uring_sqe_set_data(sqe, slot);
    if (deadline) {
        io_uring_sqe_set_flags(sqe, IOSQE_IO_LINK);
        sqe = ring_sqe();
        io_uring_prep_link_timeout(sqe, &second, 0);
        io_uring_sqe_set_data(sqe, NULL);
    }
}

static void read_run(void) {
    unsigned left = 0;
    while (left < depth && bench_more(1))
        put_read(&slots[left++]);
    while (left > 0) {
        ring_wait();
        FOR_COMPLETIONS(struct slot, slot, {
            if (!slot)
                continue;
            bench_check_block(slot->data, cqe->res, slot->block);
            if (bench_more(1))
                put_read(slot);
            else
                left--;
        });
    }
}

/* ---- statx of a tree ---- */

struct looked {
    struct statx found;
    char path[32];
    unsigned index;
};
static struct looked *looks;
static unsigned files, next;

static void stat_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    files = bench_tree("empty");
    looks = bench_memory(depth * sizeof *looks);
    ring_open(depth < 64 ? 64 : depth);
}

static void put_statx(struct looked *look) {
    look->index = next++ % files;
    strcpy(look->path, bench_path(look->index));
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_statx(sqe, AT_FDCWD, look->path, 0, STATX_BASIC_STATS, &look->found);
    io_uring_sqe_set_data(sqe, look);
}

static void stat_run(void) {
    unsigned left = 0;
    while (left < depth && bench_more(1))
        put_statx(&looks[left++]);
    while (left > 0) {
        ring_wait();
        FOR_COMPLETIONS(struct looked, look, {
            BENCH_CHECK(cqe->res == 0 && look->found.stx_size == look->index);
            if (bench_more(1))
                put_statx(look);
            else
                left--;
        });
    }
}

/* ---- open, read, close of small files ---- */

struct small {
    uint64_t data[BENCH_SMALL * 2 / 8];
    char path[32];
    unsigned index;
    int fd, step;
};
static struct small *smalls;

static void small_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    files = bench_tree("small");
    smalls = bench_memory(depth * sizeof *smalls);
    ring_open(depth < 64 ? 64 : depth);
}

static void put_open(struct small *small) {
    small->index = next++ % files;
    small->step = 0;
    strcpy(small->path, bench_path(small->index));
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_openat(sqe, AT_FDCWD, small->path, O_RDONLY | O_CLOEXEC, 0);
    io_uring_sqe_set_data(sqe, small);
}

static void small_run(void) {
    unsigned left = 0;
    while (left < depth && bench_more(1))
        put_open(&smalls[left++]);
    while (left > 0) {
        ring_wait();
        FOR_COMPLETIONS(struct small, small, {
            struct io_uring_sqe *sqe;
            bench_must(cqe->res, "open, read, close");
            switch (small->step++) {
            case 0:
                small->fd = cqe->res;
                sqe = ring_sqe();
                io_uring_prep_read(sqe, small->fd, small->data, sizeof small->data, 0);
                io_uring_sqe_set_data(sqe, small);
                break;
            case 1:
                BENCH_CHECK(cqe->res == BENCH_SMALL && small->data[0] == small->index);
                sqe = ring_sqe();
                io_uring_prep_close(sqe, small->fd);
                io_uring_sqe_set_data(sqe, small);
                break;
            default:
                if (bench_more(1))
                    put_open(small);
                else
                    left--;
            }
        });
    }
}

/* ---- append: a block and fdatasync, in `depth` files at a time ---- */

struct log {
    char *data;
    uint64_t size;
    int fd;
};
static struct log *logs;

static void append_open(void) {
    depth = (unsigned)bench_number("depth", 8);
    logs = bench_memory(depth * sizeof *logs);
    for (unsigned i = 0; i < depth; i++) {
        logs[i].fd = bench_log_open(i);
        logs[i].data = bench_memory(BENCH_BLOCK);
    }
    ring_open(64);
}

static void put_append(struct log *log) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_write(sqe, log->fd, log->data, BENCH_BLOCK, log->size);
    io_uring_sqe_set_flags(sqe, IOSQE_IO_LINK);
    io_uring_sqe_set_data(sqe, NULL);
    sqe = ring_sqe();
    io_uring_prep_fsync(sqe, log->fd, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data(sqe, log);
    log->size += BENCH_BLOCK;
}

static void append_run(void) {
    unsigned left = 0;
    while (left < depth && bench_more(1))
        put_append(&logs[left++]);
    while (left > 0) {
        ring_wait();
        FOR_COMPLETIONS(struct log, log, {
            BENCH_CHECK(cqe->res == (log ? 0 : BENCH_BLOCK));
            if (!log)
                continue;
            if (bench_more(1))
                put_append(log);
            else
                left--;
        });
    }
}

static void append_close(void) {
    for (unsigned i = 0; i < depth; i++)
        bench_log_check(i, logs[i].size);
    ring_close();
}

/* ---- connect, accept, close: `depth` connections at a time ---- */

enum { ACCEPTED = 0, CLOSED = 1 }; /* others are the descriptors of what is being connected */
static struct sockaddr_in to;
static int listener;
static unsigned closing;

static void put_accept(void) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, ACCEPTED);
}

static void connect_open(void) {
    listener = bench_listener(&to);
    ring_open(256);
    put_accept();
}

static void put_connects(void) {
    while (bench_connect_more()) {
        int fd = bench_socket();
        struct io_uring_sqe *sqe = ring_sqe();
        io_uring_prep_connect(sqe, fd, (struct sockaddr *)&to, sizeof to);
        io_uring_sqe_set_data64(sqe, (unsigned)fd);
    }
}

static void put_close(int fd) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_close(sqe, fd);
    io_uring_sqe_set_data64(sqe, CLOSED);
    closing++;
}

static void connect_run(void) {
    put_connects();
    while (bench_connects_left() || closing > 0) {
        ring_wait();
        FOR_COMPLETIONS(void, user, {
            if (cqe->user_data == ACCEPTED) {
                bench_must(cqe->res, "accept");
                bench_connects.accepted++;
                put_close(cqe->res);
                put_connects();
                if (!(cqe->flags & IORING_CQE_F_MORE))
                    put_accept();
            } else if (cqe->user_data == CLOSED) {
                BENCH_CHECK(cqe->res == 0);
                closing--;
            } else {
                BENCH_CHECK(cqe->res == 0);
                bench_connects.connecting--;
                put_close((int)cqe->user_data);
                put_connects();
            }
        });
    }
}

/* ---- copy: reads and writes of 256 KiB, 8 at a time ---- */

enum { PIECE = 1 << 18, PIECES = 8 };
struct piece {
    char *data;
    uint64_t offset, size;
    bool writing;
};
static struct piece pieces[PIECES];
static uint64_t copy_size;
static int copy_from, copy_to;

static void copy_open(void) {
    ring_open(64);
    for (unsigned i = 0; i < PIECES; i++)
        pieces[i].data = bench_memory(PIECE);
}

static bool put_piece(struct piece *piece, uint64_t *at) {
    if (*at == copy_size)
        return false;
    piece->offset = *at;
    piece->size = copy_size - *at < PIECE ? copy_size - *at : PIECE;
    piece->writing = false;
    *at += piece->size;
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_read(sqe, copy_from, piece->data, (unsigned)piece->size, piece->offset);
    io_uring_sqe_set_data(sqe, piece);
    return true;
}

static void copy_once(void) {
    copy_size = bench_copy_begin(&copy_from, &copy_to);
    uint64_t at = 0;
    unsigned left = 0;
    while (left < PIECES && put_piece(&pieces[left], &at))
        left++;
    while (left > 0) {
        ring_wait();
        FOR_COMPLETIONS(struct piece, piece, {
            BENCH_CHECK(cqe->res == (int)piece->size);
            if (!piece->writing) {
                piece->writing = true;
                struct io_uring_sqe *sqe = ring_sqe();
                io_uring_prep_write(sqe, copy_to, piece->data, (unsigned)piece->size, piece->offset);
                io_uring_sqe_set_data(sqe, piece);
            } else if (!put_piece(piece, &at))
                left--;
        });
    }
    bench_copy_end();
}

static void copy_run(void) {
    while (bench_more(1))
        copy_once();
}

static void copy_close(void) {
    bench_copy_check();
    ring_close();
}

const struct bench_run liburing_runs[] = {{"nop", nop_open, nop_run, ring_close, 4096},
                                          {"read", read_open, read_run, ring_close, 128},
                                          {"stat", stat_open, stat_run, ring_close, 128},
                                          {"small", small_open, small_run, ring_close, 64},
                                          {"append", append_open, append_run, append_close, 1},
                                          {"connect", connect_open, connect_run, ring_close, 64},
                                          {"copy", copy_open, copy_run, copy_close, 1},
                                          {0}};
