/* Echo on the raw ring: multishot accept, multishot recv from a buffer ring, and a send of the buffer as it is, which goes back
 * to the ring when the send has completed. Entries made while completions are handled are handed over by the next wait. */
#include "ring.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

enum kind { ACCEPT, RECEIVE, SEND };
enum { GROUP = 0, NONE = -1 };

static uint64_t pack(enum kind kind, int fd, unsigned buffer) {
    return (uint64_t)kind << 56 | (uint64_t)buffer << 32 | (uint32_t)fd;
}

static struct io_uring_buf_ring *buffers;
static char *memory;
static size_t size;
static int listener;

static struct {
    unsigned length, sent;
    int next; /* the buffer to send after this one */
} chunk[BENCH_POOL];
static struct connection {
    int first, last; /* buffers on their way back, in order; one send at a time */
    bool ended;      /* no more to come; closed when nothing is on its way back */
} connection[BENCH_MAX_FD];
static int starved[BENCH_MAX_FD], starving; /* connections whose recv found no buffer */

static void give_back(unsigned buffer) {
    io_uring_buf_ring_add(buffers, memory + buffer * size, (unsigned)size, (unsigned short)buffer,
                          io_uring_buf_ring_mask(BENCH_POOL), 0);
    io_uring_buf_ring_advance(buffers, 1);
}

static void open_buffers(size_t one) {
    size = one;
    memory = bench_memory(BENCH_POOL * size);
    buffers = bench_memory(BENCH_POOL * sizeof(struct io_uring_buf));
    struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)buffers, .ring_entries = BENCH_POOL, .bgid = GROUP};
    bench_must(io_uring_register_buf_ring(&ring, &reg, 0), "io_uring_register_buf_ring");
    io_uring_buf_ring_init(buffers);
    for (unsigned i = 0; i < BENCH_POOL; i++)
        give_back(i);
}

static void put_accept(void) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data64(sqe, pack(ACCEPT, listener, 0));
}

static void put_receive(int fd) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    io_uring_sqe_set_flags(sqe, IOSQE_BUFFER_SELECT);
    sqe->buf_group = GROUP;
    io_uring_sqe_set_data64(sqe, pack(RECEIVE, fd, 0));
}

static void put_send(int fd, int buffer) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_send(sqe, fd, memory + (size_t)buffer * size, chunk[buffer].length, MSG_WAITALL | MSG_NOSIGNAL);
    io_uring_sqe_set_data64(sqe, pack(SEND, fd, (unsigned)buffer));
}

static void end_connection(int fd) {
    connection[fd].ended = true;
    if (connection[fd].first == NONE) {
        close(fd);
        bench_connections--;
    }
}

static void on_received(int fd, const struct io_uring_cqe *cqe) {
    struct connection *c = &connection[fd];
    if (cqe->res <= 0) {
        if (cqe->res == -ENOBUFS)
            starved[starving++] = fd;
        else
            end_connection(fd);
        return;
    }
    int buffer = (int)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
    chunk[buffer].length = (unsigned)cqe->res;
    chunk[buffer].next = NONE;
    if (c->first == NONE) {
        c->first = c->last = buffer;
        put_send(fd, buffer);
    } else {
        chunk[c->last].next = buffer;
        c->last = buffer;
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        put_receive(fd);
}

static void on_sent(int fd, int buffer, int result) {
    struct connection *c = &connection[fd];
    if (result > 0)
        bench_echoed += (unsigned)result;
    c->first = chunk[buffer].next;
    give_back((unsigned)buffer);
    if (c->first != NONE)
        put_send(fd, c->first);
    else if (c->ended)
        end_connection(fd);
    if (starving > 0)
        put_receive(starved[--starving]);
}

static void turn(void) {
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    ring_wait();
    io_uring_for_each_cqe(&ring, head, cqe) {
        int fd = (int)(uint32_t)cqe->user_data;
        seen++;
        switch (cqe->user_data >> 56) {
        case ACCEPT:
            fd = (int)bench_must(cqe->res, "accept");
            BENCH_CHECK(fd < BENCH_MAX_FD);
            connection[fd] = (struct connection){.first = NONE, .last = NONE};
            bench_connections++;
            put_receive(fd);
            if (!(cqe->flags & IORING_CQE_F_MORE))
                put_accept();
            break;
        case RECEIVE: on_received(fd, cqe); break;
        case SEND: on_sent(fd, (int)(cqe->user_data >> 32 & 0xffff), cqe->res); break;
        }
    }
    io_uring_cq_advance(&ring, seen);
}

static void start(int fd, size_t message) {
    listener = fd;
    ring_open(1024);
    open_buffers(bench_buffer_size(message));
    put_accept();
}

static void run(void) {
    do
        turn();
    while (bench_connections > 0);
}

const struct bench_server liburing_stream = {start, turn, run, ring_close};

/* ---- Datagrams: multishot recvmsg, and a sendmsg from the same buffer ---- */

static struct msghdr room = {.msg_namelen = sizeof(struct sockaddr_in)};
static struct {
    struct msghdr msg;
    struct iovec part;
} answer[BENCH_POOL];

static void put_recvmsg(void) {
    struct io_uring_sqe *sqe = ring_sqe();
    io_uring_prep_recvmsg_multishot(sqe, listener, &room, 0);
    io_uring_sqe_set_flags(sqe, IOSQE_BUFFER_SELECT);
    sqe->buf_group = GROUP;
    io_uring_sqe_set_data64(sqe, pack(RECEIVE, listener, 0));
}

static void datagram_turn(void) {
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    ring_wait();
    io_uring_for_each_cqe(&ring, head, cqe) {
        seen++;
        if (cqe->user_data >> 56 == SEND) {
            bench_echoed += (uint64_t)bench_must(cqe->res, "sendmsg");
            give_back((unsigned)(cqe->user_data >> 32 & 0xffff));
            if (starving) {
                starving = 0;
                put_recvmsg();
            }
            continue;
        }
        if (cqe->res == -ENOBUFS) {
            starving = 1;
            continue;
        }
        bench_must(cqe->res, "recvmsg");
        unsigned buffer = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        struct io_uring_recvmsg_out *out = io_uring_recvmsg_validate(memory + buffer * size, cqe->res, &room);
        BENCH_CHECK(out != NULL);
        answer[buffer].part = (struct iovec){io_uring_recvmsg_payload(out, &room), io_uring_recvmsg_payload_length(out, cqe->res, &room)};
        answer[buffer].msg = (struct msghdr){.msg_name = io_uring_recvmsg_name(out), .msg_namelen = out->namelen,
                                             .msg_iov = &answer[buffer].part, .msg_iovlen = 1};
        struct io_uring_sqe *sqe = ring_sqe();
        io_uring_prep_sendmsg(sqe, listener, &answer[buffer].msg, 0);
        io_uring_sqe_set_data64(sqe, pack(SEND, listener, buffer));
        if (!(cqe->flags & IORING_CQE_F_MORE))
            put_recvmsg();
    }
    io_uring_cq_advance(&ring, seen);
}

static void datagram_start(int fd, size_t message) {
    listener = fd;
    ring_open(1024);
    open_buffers(bench_buffer_size(message + 64));
    put_recvmsg();
}

const struct bench_server liburing_datagram = {datagram_start, datagram_turn, NULL, ring_close};
