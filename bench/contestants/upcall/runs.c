/* Operations: nops, files, connections. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "loop.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned depth, left;
static uint64_t deadline_ns;

static void turn(void) {
    must(upcall_poll(loop, -1), "upcall_poll");
}

/* ---- nop: form=array submits one array that was made before, =fresh makes and submits each by itself, =reap takes the results
 * as records, =again submits each again in its callback ---- */

static unsigned batch;
static uint64_t completed;
static upcall_op *nops;
static upcall_event *records;
static enum { ARRAY, FRESH, REAP, AGAIN } form;

static void on_nop(upcall_loop *l, const upcall_event *event) {
    (void)l;
    completed += event->result == 0;
    left--;
}

static void on_nop_again(upcall_loop *l, const upcall_event *event) {
    completed += event->result == 0;
    if (bench_more(1)) {
        upcall_op op = upcall_op_nop();
        op.callback = on_nop_again;
        op.timeout_ns = deadline_ns;
        must(upcall_submit(l, &op, 1, NULL), "upcall_submit");
    } else
        left--;
}

static void nop_open(void) {
    static const char *const forms[] = {"array", "fresh", "reap", "again"};
    const char *wanted = bench_text("form", "array");
    for (form = ARRAY; strcmp(wanted, forms[form]) != 0; form++)
        if (form == AGAIN)
            bench_die("form", "array, fresh, reap or again");
    batch = (unsigned)bench_number("batch", 64);
    deadline_ns = bench_number("deadline", 0) ? UPCALL_SECOND : 0;
    nops = bench_memory(batch * sizeof *nops);
    records = bench_memory(batch * sizeof *records);
    for (unsigned i = 0; i < batch; i++) {
        nops[i] = upcall_op_nop();
        nops[i].callback = form == REAP ? NULL : form == AGAIN ? on_nop_again : on_nop;
        nops[i].timeout_ns = deadline_ns;
    }
    loop_open();
}

static void nop_run(void) {
    uint64_t begun = completed;
    if (form == AGAIN) {
        for (left = 0; left < batch && bench_more(1); left++)
            submit(&nops[left]);
        while (left > 0)
            turn();
    } else
        while (bench_more(batch)) {
            left = batch;
            if (form == FRESH)
                for (unsigned i = 0; i < batch; i++) {
                    upcall_op op = upcall_op_nop();
                    op.callback = on_nop;
                    op.timeout_ns = deadline_ns;
                    submit(&op);
                }
            else
                must(upcall_submit(loop, nops, batch, NULL), "upcall_submit");
            while (left > 0) {
                turn();
                if (form == REAP) {
                    int got = upcall_reap(loop, records, batch);
                    for (int i = 0; i < got; i++)
                        completed += records[i].result == 0;
                    left -= (unsigned)got;
                }
            }
        }
    BENCH_CHECK(completed - begun == bench_budget.taken);
}

/* ---- read ---- */

struct slot {
    void *data;
    uint64_t block;
};
static struct slot *slots;
static struct bench_file file;

static void on_read(upcall_loop *l, const upcall_event *event);

static void start_read(struct slot *slot) {
    slot->block = bench_next_block(file.blocks);
    upcall_op op = upcall_op_pread(file.fd, slot->data, BENCH_BLOCK, (int64_t)(slot->block * BENCH_BLOCK));
    op.callback = on_read;
    op.user = slot;
    op.timeout_ns = deadline_ns;
    submit(&op);
}

static void on_read(upcall_loop *l, const upcall_event *event) {
    struct slot *slot = event->user;
    (void)l;
    bench_check_block(slot->data, event->result, slot->block);
    if (bench_more(1))
        start_read(slot);
    else
        left--;
}

static void read_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    deadline_ns = bench_number("deadline", 0) ? UPCALL_SECOND : 0;
    file = bench_open_blocks();
    slots = calloc(depth, sizeof *slots);
    char *data = bench_memory((size_t)depth * BENCH_BLOCK);
    for (unsigned i = 0; i < depth; i++)
        slots[i].data = data + (size_t)i * BENCH_BLOCK;
    loop_open();
}

static void read_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_read(&slots[left]);
    while (left > 0)
        turn();
}

/* ---- statx ---- */

struct looked {
    struct statx found;
    unsigned index;
};
static struct looked *looks;
static unsigned files, next;

static void on_stat(upcall_loop *l, const upcall_event *event);

static void start_stat(struct looked *look) {
    look->index = next++ % files;
    upcall_op op = upcall_op_statx(AT_FDCWD, bench_path(look->index), 0, STATX_BASIC_STATS, &look->found);
    op.callback = on_stat;
    op.user = look;
    submit(&op);
}

static void on_stat(upcall_loop *l, const upcall_event *event) {
    struct looked *look = event->user;
    (void)l;
    BENCH_CHECK(event->result == 0 && look->found.stx_size == look->index);
    if (bench_more(1))
        start_stat(look);
    else
        left--;
}

static void stat_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    files = bench_tree("empty");
    looks = bench_memory(depth * sizeof *looks);
    loop_open();
}

static void stat_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_stat(&looks[left]);
    while (left > 0)
        turn();
}

/* ---- open, read, close ---- */

struct small {
    uint64_t data[BENCH_SMALL * 2 / 8];
    unsigned index;
    int fd;
};
static struct small *smalls;

static void on_opened(upcall_loop *l, const upcall_event *event);

static void small_step(upcall_op op, upcall_callback callback, struct small *small) {
    op.callback = callback;
    op.user = small;
    submit(&op);
}

static void start_small(struct small *small) {
    small->index = next++ % files;
    small_step(upcall_op_open(AT_FDCWD, bench_path(small->index), O_RDONLY, 0), on_opened, small);
}

static void on_closed(upcall_loop *l, const upcall_event *event) {
    (void)l;
    BENCH_CHECK(event->result == 0);
    if (bench_more(1))
        start_small(event->user);
    else
        left--;
}

static void on_small_read(upcall_loop *l, const upcall_event *event) {
    struct small *small = event->user;
    (void)l;
    BENCH_CHECK(event->result == BENCH_SMALL && small->data[0] == small->index);
    small_step(upcall_op_close(small->fd), on_closed, small);
}

static void on_opened(upcall_loop *l, const upcall_event *event) {
    struct small *small = event->user;
    (void)l;
    small->fd = (int)must(event->result, "open");
    small_step(upcall_op_pread(small->fd, small->data, sizeof small->data, 0), on_small_read, small);
}

static void small_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    files = bench_tree("small");
    smalls = bench_memory(depth * sizeof *smalls);
    loop_open();
}

static void small_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_small(&smalls[left]);
    while (left > 0)
        turn();
}

/* ---- append: a linked pair ---- */

struct log {
    char *data;
    uint64_t size;
    int fd;
};
static struct log *logs;

static void on_synced(upcall_loop *l, const upcall_event *event);

static void on_written(upcall_loop *l, const upcall_event *event) {
    (void)l;
    BENCH_CHECK(event->result == BENCH_BLOCK);
}

static void start_append(struct log *log) {
    upcall_op ops[2] = {upcall_op_pwrite(log->fd, log->data, BENCH_BLOCK, (int64_t)log->size), upcall_op_fdatasync(log->fd)};
    ops[0].flags = UPCALL_LINK;
    ops[0].callback = on_written;
    ops[1].callback = on_synced;
    ops[1].user = log;
    log->size += BENCH_BLOCK;
    must(upcall_submit(loop, ops, 2, NULL), "upcall_submit");
}

static void on_synced(upcall_loop *l, const upcall_event *event) {
    (void)l;
    BENCH_CHECK(event->result == 0);
    if (bench_more(1))
        start_append(event->user);
    else
        left--;
}

static void append_open(void) {
    depth = (unsigned)bench_number("depth", 8);
    logs = bench_memory(depth * sizeof *logs);
    for (unsigned i = 0; i < depth; i++) {
        logs[i].fd = bench_log_open(i);
        logs[i].data = bench_memory(BENCH_BLOCK);
    }
    loop_open();
}

static void append_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_append(&logs[left]);
    while (left > 0)
        turn();
}

static void append_close(void) {
    for (unsigned i = 0; i < depth; i++)
        bench_log_check(i, logs[i].size);
    loop_close();
}

/* ---- connect, accept, close ---- */

static struct sockaddr_in to;
static unsigned closing;

static void on_end(upcall_loop *l, const upcall_event *event) {
    (void)l;
    BENCH_CHECK(event->result == 0);
    closing--;
}

static void start_close(int fd) {
    upcall_op op = upcall_op_close(fd);
    op.callback = on_end;
    closing++;
    submit(&op);
}

static void on_connected(upcall_loop *l, const upcall_event *event);

static void start_connects(void) {
    while (bench_connect_more()) {
        int fd = bench_socket();
        upcall_op op = upcall_op_connect(fd, (struct sockaddr *)&to, sizeof to);
        op.callback = on_connected;
        op.user = (void *)(intptr_t)fd;
        submit(&op);
    }
}

static void on_accepted(upcall_loop *l, const upcall_event *event) {
    if (event->result == -125 /* ECANCELED: the loop is closed */)
        return;
    (void)l;
    bench_connects.accepted++;
    start_close((int)must(event->result, "accept"));
    start_connects();
}

static void on_connected(upcall_loop *l, const upcall_event *event) {
    (void)l;
    must(event->result, "connect");
    bench_connects.connecting--;
    start_close((int)(intptr_t)event->user);
    start_connects();
}

static void connect_open(void) {
    loop_open();
    upcall_op op = upcall_op_accept(bench_listener(&to), NULL, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.callback = on_accepted;
    submit(&op);
}

static void connect_run(void) {
    start_connects();
    while (bench_connects_left() || closing > 0)
        turn();
}

/* ---- copy: 8 pieces of 256 KiB, each read, then written ---- */

enum { PIECE = 1 << 18, PIECES = 8 };
struct piece {
    char *data;
    int64_t offset;
    size_t size;
};
static struct piece pieces[PIECES];
static uint64_t copy_size, copy_at;
static int copy_from, copy_to;

static void piece_step(upcall_op op, upcall_callback callback, struct piece *piece) {
    op.flags = UPCALL_FULL;
    op.callback = callback;
    op.user = piece;
    submit(&op);
}

static bool start_piece(struct piece *piece);

static void on_piece_written(upcall_loop *l, const upcall_event *event) {
    struct piece *piece = event->user;
    (void)l;
    BENCH_CHECK(event->result == (int64_t)piece->size);
    if (!start_piece(piece))
        left--;
}

static void on_piece_read(upcall_loop *l, const upcall_event *event) {
    struct piece *piece = event->user;
    (void)l;
    BENCH_CHECK(event->result == (int64_t)piece->size);
    piece_step(upcall_op_pwrite(copy_to, piece->data, piece->size, piece->offset), on_piece_written, piece);
}

static bool start_piece(struct piece *piece) {
    if (copy_at == copy_size)
        return false;
    piece->offset = (int64_t)copy_at;
    piece->size = copy_size - copy_at < PIECE ? copy_size - copy_at : PIECE;
    copy_at += piece->size;
    piece_step(upcall_op_pread(copy_from, piece->data, piece->size, piece->offset), on_piece_read, piece);
    return true;
}

static void copy_open(void) {
    loop_open();
    for (unsigned i = 0; i < PIECES; i++)
        pieces[i].data = bench_memory(PIECE);
}

static void copy_run(void) {
    while (bench_more(1)) {
        copy_size = bench_copy_begin(&copy_from, &copy_to);
        copy_at = 0;
        left = 0;
        while (left < PIECES && start_piece(&pieces[left]))
            left++;
        while (left > 0)
            turn();
        bench_copy_end();
    }
}

static void copy_close(void) {
    bench_copy_check();
    loop_close();
}

/* The same as one operation. */
static void on_range(upcall_loop *l, const upcall_event *event) {
    (void)l;
    BENCH_CHECK(event->result == (int64_t)copy_size);
    left--;
}

static void range_run(void) {
    while (bench_more(1)) {
        copy_size = bench_copy_begin(&copy_from, &copy_to);
        upcall_op op = upcall_op_copy_range(copy_from, 0, copy_to, 0, copy_size, 0);
        op.flags = UPCALL_FULL;
        op.callback = on_range;
        left = 1;
        submit(&op);
        while (left > 0)
            turn();
        bench_copy_end();
    }
}

const struct bench_run upcall_runs[] = {{"nop", nop_open, nop_run, loop_close, 4096},
                                        {"read", read_open, read_run, loop_close, 128},
                                        {"stat", stat_open, stat_run, loop_close, 128},
                                        {"small", small_open, small_run, loop_close, 64},
                                        {"append", append_open, append_run, append_close, 1},
                                        {"connect", connect_open, connect_run, loop_close, 64},
                                        {"copy", copy_open, copy_run, copy_close, 1},
                                        {"copy-range", loop_open, range_run, copy_close, 1},
                                        {0}};
