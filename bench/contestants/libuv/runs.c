/* Files through uv_fs_t, and connections. uv_fs_req_cleanup() after each, as the manual asks. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "uv_loop.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

static unsigned depth, left;

static void run_until_done(void) {
    while (left > 0)
        uv_run(&loop, UV_RUN_ONCE);
}

/* ---- read ---- */

struct slot {
    uv_fs_t request;
    uv_buf_t part;
    uint64_t block;
};
static struct slot *slots;
static struct bench_file file;

static void on_read(uv_fs_t *request);

static void start_read(struct slot *slot) {
    slot->block = bench_next_block(file.blocks);
    bench_must(uv_fs_read(&loop, &slot->request, file.fd, &slot->part, 1, (int64_t)(slot->block * BENCH_BLOCK), on_read), "uv_fs_read");
}

static void on_read(uv_fs_t *request) {
    struct slot *slot = request->data;
    bench_check_block(slot->part.base, request->result, slot->block);
    uv_fs_req_cleanup(request);
    if (bench_more(1))
        start_read(slot);
    else
        left--;
}

static void read_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    file = bench_open_blocks();
    slots = calloc(depth, sizeof *slots);
    char *data = bench_memory((size_t)depth * BENCH_BLOCK);
    for (unsigned i = 0; i < depth; i++) {
        slots[i].request.data = &slots[i];
        slots[i].part = uv_buf_init(data + (size_t)i * BENCH_BLOCK, BENCH_BLOCK);
    }
    loop_open();
}

static void read_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_read(&slots[left]);
    run_until_done();
}

/* ---- stat ---- */

struct looked {
    uv_fs_t request;
    unsigned index;
};
static struct looked *looks;
static unsigned files, next;

static void on_stat(uv_fs_t *request);

static void start_stat(struct looked *look) {
    look->index = next++ % files;
    bench_must(uv_fs_stat(&loop, &look->request, bench_path(look->index), on_stat), "uv_fs_stat");
}

static void on_stat(uv_fs_t *request) {
    struct looked *look = request->data;
    BENCH_CHECK(request->result == 0 && request->statbuf.st_size == look->index);
    uv_fs_req_cleanup(request);
    if (bench_more(1))
        start_stat(look);
    else
        left--;
}

static void stat_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    files = bench_tree("empty");
    looks = bench_memory(depth * sizeof *looks);
    for (unsigned i = 0; i < depth; i++)
        looks[i].request.data = &looks[i];
    loop_open();
}

static void stat_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_stat(&looks[left]);
    run_until_done();
}

/* ---- open, read, close ---- */

struct small {
    uv_fs_t request;
    uint64_t data[BENCH_SMALL * 2 / 8];
    unsigned index;
    int fd;
};
static struct small *smalls;

static void on_opened(uv_fs_t *request);

static void start_small(struct small *small) {
    small->index = next++ % files;
    bench_must(uv_fs_open(&loop, &small->request, bench_path(small->index), O_RDONLY | O_CLOEXEC, 0, on_opened), "uv_fs_open");
}

static void on_closed(uv_fs_t *request) {
    BENCH_CHECK(request->result == 0);
    uv_fs_req_cleanup(request);
    if (bench_more(1))
        start_small(request->data);
    else
        left--;
}

static void on_small_read(uv_fs_t *request) {
    struct small *small = request->data;
    BENCH_CHECK(request->result == BENCH_SMALL && small->data[0] == small->index);
    uv_fs_req_cleanup(request);
    bench_must(uv_fs_close(&loop, request, small->fd, on_closed), "uv_fs_close");
}

static void on_opened(uv_fs_t *request) {
    struct small *small = request->data;
    small->fd = (int)bench_must(request->result, "open");
    uv_buf_t part = uv_buf_init((char *)small->data, sizeof small->data);
    uv_fs_req_cleanup(request);
    bench_must(uv_fs_read(&loop, request, small->fd, &part, 1, 0, on_small_read), "uv_fs_read");
}

static void small_open(void) {
    depth = (unsigned)bench_number("depth", 64);
    files = bench_tree("small");
    smalls = bench_memory(depth * sizeof *smalls);
    for (unsigned i = 0; i < depth; i++)
        smalls[i].request.data = &smalls[i];
    loop_open();
}

static void small_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_small(&smalls[left]);
    run_until_done();
}

/* ---- append ---- */

struct log {
    uv_fs_t request;
    uv_buf_t part;
    uint64_t size;
    int fd;
};
static struct log *logs;

static void on_written(uv_fs_t *request);

static void start_append(struct log *log) {
    bench_must(uv_fs_write(&loop, &log->request, log->fd, &log->part, 1, (int64_t)log->size, on_written), "uv_fs_write");
    log->size += BENCH_BLOCK;
}

static void on_synced(uv_fs_t *request) {
    BENCH_CHECK(request->result == 0);
    uv_fs_req_cleanup(request);
    if (bench_more(1))
        start_append(request->data);
    else
        left--;
}

static void on_written(uv_fs_t *request) {
    BENCH_CHECK(request->result == BENCH_BLOCK);
    uv_fs_req_cleanup(request);
    bench_must(uv_fs_fdatasync(&loop, request, ((struct log *)request->data)->fd, on_synced), "uv_fs_fdatasync");
}

static void append_open(void) {
    depth = (unsigned)bench_number("depth", 8);
    logs = bench_memory(depth * sizeof *logs);
    for (unsigned i = 0; i < depth; i++) {
        logs[i].fd = bench_log_open(i);
        logs[i].part = uv_buf_init(bench_memory(BENCH_BLOCK), BENCH_BLOCK);
        logs[i].request.data = &logs[i];
    }
    loop_open();
}

static void append_run(void) {
    for (left = 0; left < depth && bench_more(1); left++)
        start_append(&logs[left]);
    run_until_done();
}

static void append_close(void) {
    for (unsigned i = 0; i < depth; i++)
        bench_log_check(i, logs[i].size);
    loop_close();
}

/* ---- copy ---- */

static void on_copied(uv_fs_t *request) {
    BENCH_CHECK(request->result == 0);
    uv_fs_req_cleanup(request);
    left--;
}

static void copy_run(void) {
    while (bench_more(1)) {
        uv_fs_t request;
        bench_copy_begin(NULL, NULL);
        left = 1;
        bench_must(uv_fs_copyfile(&loop, &request, bench_copy_from(), BENCH_COPY_TO, 0, on_copied), "uv_fs_copyfile");
        run_until_done();
        bench_copy_end();
    }
}

static void copy_close(void) {
    bench_copy_check();
    loop_close();
}

/* ---- connect, accept, close ---- */

struct outgoing {
    uv_tcp_t socket;
    uv_connect_t request;
};
static struct sockaddr_in to;
static uv_tcp_t listener;
static unsigned closing;

static void start_connects(void);

static void on_any_closed(uv_handle_t *handle) {
    free(handle);
    closing--;
}

static void on_connection(uv_stream_t *stream, int status) {
    uv_tcp_t *socket = malloc(sizeof *socket);
    bench_must(status, "listen");
    uv_tcp_init(&loop, socket);
    bench_must(uv_accept(stream, (uv_stream_t *)socket), "uv_accept");
    bench_connects.accepted++;
    closing++;
    uv_close((uv_handle_t *)socket, on_any_closed);
    start_connects();
}

static void on_connected(uv_connect_t *request, int status) {
    bench_must(status, "connect");
    bench_connects.connecting--;
    closing++;
    uv_close((uv_handle_t *)request->handle, on_any_closed); /* the socket is the first in struct outgoing */
    start_connects();
}

static void start_connects(void) {
    while (bench_connect_more()) {
        struct outgoing *one = malloc(sizeof *one);
        uv_tcp_init(&loop, &one->socket);
        uv_tcp_open(&one->socket, bench_socket());
        bench_must(uv_tcp_connect(&one->request, &one->socket, (struct sockaddr *)&to, on_connected), "uv_tcp_connect");
    }
}

static void connect_open(void) {
    loop_open();
    uv_tcp_init(&loop, &listener);
    uv_tcp_open(&listener, bench_listener(&to));
    bench_must(uv_listen((uv_stream_t *)&listener, 4096, on_connection), "uv_listen");
}

static void connect_run(void) {
    start_connects();
    while (bench_connects_left() || closing > 0)
        uv_run(&loop, UV_RUN_ONCE);
}

const struct bench_run libuv_runs[] = {{"read", read_open, read_run, loop_close, 128},
                                       {"stat", stat_open, stat_run, loop_close, 128},
                                       {"small", small_open, small_run, loop_close, 64},
                                       {"append", append_open, append_run, append_close, 1},
                                       {"connect", connect_open, connect_run, loop_close, 64},
                                       {"copy", loop_open, copy_run, copy_close, 1},
                                       {0}};
