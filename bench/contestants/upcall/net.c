/* Echo: multishot accept, multishot recv from a pool, and a send of the lent buffer as it is. deadline=1 puts a deadline on every
 * operation: a limit for the send, an idle limit for the recv. */
#include "loop.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

struct chunk {
    struct chunk *next;
    void *data;
    size_t size;
};

struct connection {
    int fd;
    bool receiving;
    struct chunk *first, **last; /* on their way back, in order; one send at a time */
};

static upcall_buffers *pool;
static struct chunk chunks[BENCH_POOL * 2], *free_chunks;
static uint64_t deadline_ns;

static void give_back(struct chunk *chunk) {
    must(upcall_buffers_return(pool, chunk->data), "upcall_buffers_return");
    chunk->next = free_chunks;
    free_chunks = chunk;
}

static struct chunk *take(const upcall_event *event) {
    struct chunk *chunk = free_chunks;
    BENCH_CHECK(chunk != NULL);
    free_chunks = chunk->next;
    *chunk = (struct chunk){.data = event->buffer, .size = event->transferred};
    return chunk;
}

static void on_closed(upcall_loop *l, const upcall_event *event) {
    (void)l;
    BENCH_CHECK(event->result == 0);
    free(event->user);
    bench_connections--;
}

static void end_connection(struct connection *c) {
    upcall_op op = upcall_op_close(c->fd);
    op.callback = on_closed;
    op.user = c;
    submit(&op);
}

static void on_sent(upcall_loop *l, const upcall_event *event);

static void send_first(struct connection *c) {
    upcall_op op = upcall_op_send(c->fd, c->first->data, c->first->size, 0);
    op.flags = UPCALL_FULL;
    op.callback = on_sent;
    op.user = c;
    op.timeout_ns = deadline_ns;
    submit(&op);
}

static void on_sent(upcall_loop *l, const upcall_event *event) {
    struct connection *c = event->user;
    struct chunk *chunk = c->first;
    (void)l;
    bench_echoed += event->transferred;
    c->first = chunk->next;
    give_back(chunk);
    if (c->first)
        send_first(c);
    else if (!c->receiving)
        end_connection(c);
}

static void on_received(upcall_loop *l, const upcall_event *event) {
    struct connection *c = event->user;
    (void)l;
    if (event->buffer) {
        struct chunk *chunk = take(event);
        if (c->first)
            *c->last = chunk;
        else {
            c->first = chunk;
            send_first(c);
        }
        c->last = &chunk->next;
    }
    if (!(event->flags & UPCALL_MORE)) { /* the end, or a reset */
        c->receiving = false;
        if (!c->first)
            end_connection(c);
    }
}

static void on_accepted(upcall_loop *l, const upcall_event *event) {
    if (event->result == -125 /* ECANCELED: the loop is closed */)
        return;
    (void)l;
    struct connection *c = calloc(1, sizeof *c);
    c->fd = (int)must(event->result, "accept");
    c->receiving = true;
    bench_connections++;
    upcall_op op = upcall_op_recv(c->fd, NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    op.callback = on_received;
    op.user = c;
    op.timeout_ns = deadline_ns;
    submit(&op);
}

static void open_pool(size_t size) {
    deadline_ns = bench_number("deadline", 0) ? 60 * UPCALL_SECOND : 0;
    loop_open();
    must(upcall_buffers_new(loop, BENCH_POOL, (uint32_t)size, &pool), "upcall_buffers_new");
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        chunks[i].next = free_chunks;
        free_chunks = &chunks[i];
    }
}

static void start(int fd, size_t message) {
    open_pool(bench_buffer_size(message));
    upcall_op op = upcall_op_accept(fd, NULL, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.callback = on_accepted;
    submit(&op);
}

static void turn(void) {
    must(upcall_poll(loop, -1), "upcall_poll");
}

static void run(void) {
    do
        turn();
    while (bench_connections > 0);
}

static void stop(void) {
    loop_close();
    must(upcall_buffers_free(pool), "upcall_buffers_free");
}

const struct bench_server upcall_stream = {start, turn, run, stop};

/* ---- Datagrams ---- */

static int socket_fd;
static struct msghdr room = {.msg_namelen = sizeof(struct sockaddr_in)};

static void on_answered(upcall_loop *l, const upcall_event *event) {
    (void)l;
    bench_echoed += (uint64_t)must(event->result, "sendto");
    must(upcall_buffers_return(pool, event->user), "upcall_buffers_return");
}

static void on_datagram(upcall_loop *l, const upcall_event *event) {
    (void)l;
    if (!event->buffer)
        return; /* the loop is closed */
    const struct upcall_msg *msg = event->buffer;
    upcall_op op = upcall_op_sendto(socket_fd, upcall_msg_payload(msg, &room), (size_t)event->result, 0,
                                    upcall_msg_name(msg, &room), msg->namelen);
    op.callback = on_answered;
    op.user = event->buffer;
    submit(&op);
}

static void datagram_start(int fd, size_t message) {
    socket_fd = fd;
    open_pool(bench_buffer_size(message + 64));
    upcall_op op = upcall_op_recvmsg(fd, &room, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    op.callback = on_datagram;
    submit(&op);
}

const struct bench_server upcall_datagram = {datagram_start, turn, NULL, stop};
