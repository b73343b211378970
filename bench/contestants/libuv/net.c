/* Echo: one buffer for the whole loop, uv_try_write() at once, and uv_write() of a copy for what the socket does not take (which is
 * libuv's fastest form and its leanest: no buffer is bound to a connection). */
#include "uv_loop.h"

#include <netinet/in.h>
#include <stdlib.h>

static char *buffer;
static size_t size;
static union listener {
    uv_tcp_t tcp;
    uv_pipe_t pipe;
    uv_stream_t stream;
} listener;

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *part) {
    (void)handle;
    (void)suggested;
    *part = uv_buf_init(buffer, (unsigned)size);
}

static void on_closed(uv_handle_t *handle) {
    free(handle);
    if (--bench_connections == 0)
        uv_stop(&loop);
}

struct rest {
    uv_write_t request;
    size_t size;
    char data[];
};

static void on_written(uv_write_t *request, int status) {
    struct rest *rest = (struct rest *)request;
    if (status == 0)
        bench_echoed += rest->size;
    free(rest);
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *part) {
    if (got > 0) {
        uv_buf_t answer = uv_buf_init(part->base, (unsigned)got);
        int sent = uv_try_write(stream, &answer, 1);
        if (sent == UV_EAGAIN)
            sent = 0;
        if (sent >= 0) {
            bench_echoed += (size_t)sent;
            if (sent < got) {
                struct rest *rest = malloc(sizeof *rest + (size_t)(got - sent));
                rest->size = (size_t)(got - sent);
                memcpy(rest->data, part->base + sent, rest->size);
                answer = uv_buf_init(rest->data, (unsigned)rest->size);
                bench_must(uv_write(&rest->request, stream, &answer, 1, on_written), "uv_write");
            }
            return;
        }
    } else if (got == 0)
        return;
    uv_close((uv_handle_t *)stream, on_closed);
}

static void on_connection(uv_stream_t *from, int status) {
    union listener *one = malloc(sizeof *one);
    bench_must(status, "listen");
    if (from->type == UV_TCP)
        uv_tcp_init(&loop, &one->tcp);
    else
        uv_pipe_init(&loop, &one->pipe, 0);
    bench_must(uv_accept(from, &one->stream), "uv_accept");
    bench_connections++;
    bench_must(uv_read_start(&one->stream, on_alloc, on_read), "uv_read_start");
}

static void start(int fd, size_t message) {
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    loop_open();
    size = bench_buffer_size(message);
    buffer = bench_memory(size);
    bench_call(getsockname(fd, (struct sockaddr *)&name, &length), "getsockname");
    if (name.ss_family == AF_INET) {
        uv_tcp_init(&loop, &listener.tcp);
        bench_must(uv_tcp_open(&listener.tcp, fd), "uv_tcp_open");
    } else {
        uv_pipe_init(&loop, &listener.pipe, 0);
        bench_must(uv_pipe_open(&listener.pipe, fd), "uv_pipe_open");
    }
    bench_must(uv_listen(&listener.stream, 4096, on_connection), "uv_listen");
}

static void turn(void) {
    uv_run(&loop, UV_RUN_ONCE);
}

static void run(void) {
    uv_run(&loop, UV_RUN_DEFAULT);
}

const struct bench_server libuv_stream = {start, turn, run, loop_close};

/* ---- Datagrams ---- */

static uv_udp_t datagrams;

static void on_datagram(uv_udp_t *handle, ssize_t got, const uv_buf_t *part, const struct sockaddr *from, unsigned flags) {
    (void)flags;
    if (!from)
        return; /* no more for now */
    uv_buf_t answer = uv_buf_init(part->base, (unsigned)bench_must(got, "recv"));
    bench_echoed += (uint64_t)bench_must(uv_udp_try_send(handle, &answer, 1, from), "uv_udp_try_send");
}

static void datagram_start(int fd, size_t message) {
    loop_open();
    size = bench_buffer_size(message);
    buffer = bench_memory(size);
    bench_must(uv_udp_init(&loop, &datagrams), "uv_udp_init");
    bench_must(uv_udp_open(&datagrams, fd), "uv_udp_open");
    bench_must(uv_udp_recv_start(&datagrams, on_alloc, on_datagram), "uv_udp_recv_start");
}

const struct bench_server libuv_datagram = {datagram_start, turn, NULL, loop_close};
