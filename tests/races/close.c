/*
 * upcall_op_close() against what is in flight on the descriptor: receives, one-shot and multishot, while bytes arrive;
 * accepts, one-shot and multishot, while clients connect.
 *
 * The invariant: what was in flight has had its final event before the close has its own: its result, or -ECANCELED. The
 * number is closed then. Bytes that were received are the first ones that were sent, in order. A connection is delivered once,
 * or its client sees the end of it: no accepted descriptor is left behind. hazards rows 11, 12, 30.
 */
#include "race.h"

enum { PAIRS_AT_ONCE = 16, PER_PAIR = 3 };

struct pair {
    int fd, peer;
    struct sockaddr_un address;
    socklen_t length;
    struct oracle_stream stream;
    void *memory[PER_PAIR];
    unsigned in_flight, got; /* operations; events with a result */
    bool closed, multishot;
    int clients[2];
    int accepted;
};

static upcall_loop *loop;
static struct oracle *oracle;
static upcall_buffers *pool;
static struct pair pairs[PAIRS_AT_ONCE];
static struct meeting place;
static struct steering edge;
static bool accepts;
static uint64_t delays[2][PAIRS_AT_ONCE];

struct piece {
    struct pair *pair;
    unsigned number;
};
static struct piece pieces[PAIRS_AT_ONCE][PER_PAIR];

static void on_operation(upcall_loop *where, const upcall_event *event) {
    struct piece *piece = event->user;
    struct pair *p = piece->pair;
    (void)where;
    CHECK(!p->closed); /* the close comes last */
    CHECK(event->result >= 0 || event->result == -ECANCELED);
    if (accepts && event->result >= 0) {
        p->accepted++;
        CHECK_EQ(close((int)event->result), 0);
    } else if (event->result > 0) {
        /* Operations that end together may be told in any order: only one of them is there at a time, or one multishot. */
        oracle_take(&p->stream, event->buffer ? event->buffer : p->memory[piece->number], (size_t)event->result);
        if (event->buffer)
            CHECK_EQ(upcall_buffers_return(pool, event->buffer), 0);
    }
    p->got += event->result >= 0;
    if (event->flags & UPCALL_MORE)
        return;
    if (p->memory[piece->number]) {
        oracle_check_untouched(p->memory[piece->number], event->result > 0 ? (size_t)event->result : 0);
        oracle_give_back(oracle, p->memory[piece->number]);
        p->memory[piece->number] = NULL;
    }
    p->in_flight--;
}

static void on_close(upcall_loop *where, const upcall_event *event) {
    struct pair *p = event->user;
    (void)where;
    CHECK_EQ(event->result, 0);
    CHECK_EQ(p->in_flight, 0);
    if (!accepts) /* clients are made meanwhile, and may get the number */
        CHECK(!is_open(p->fd));
    p->closed = true;
}

static void make(struct pair *p, unsigned number) {
    upcall_op op;
    if (accepts) {
        op = upcall_op_accept(p->fd, NULL, NULL, 0);
    } else if (p->multishot) {
        op = upcall_op_recv(p->fd, NULL, 0, 0);
        op.buffers = pool;
    } else {
        p->memory[number] = oracle_lend(oracle, 32);
        op = upcall_op_recv(p->fd, p->memory[number], 32, 0);
    }
    op.flags = p->multishot ? UPCALL_MULTISHOT : 0;
    op.callback = on_operation;
    pieces[p - pairs][number] = (struct piece){p, number};
    op.user = &pieces[p - pairs][number];
    CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
    p->in_flight++;
}

static void arrive(void *arg) {
    (void)arg;
    for (int i = 0; i < PAIRS_AT_ONCE; i++) {
        struct pair *p = &pairs[i];
        meet(&place, 1, (uint64_t)i + 1);
        spin(delays[0][i]);
        for (int k = 0; k < 2; k++) {
            if (accepts) {
                p->clients[k] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
                CHECK(p->clients[k] >= 0);
                if (connect(p->clients[k], (struct sockaddr *)&p->address, p->length) != 0) {
                    CHECK(errno == ECONNREFUSED || errno == ECONNRESET);
                    close(p->clients[k]);
                    p->clients[k] = -1;
                }
            } else {
                uint8_t bytes[8];
                fill_pattern(bytes, sizeof bytes, (uint64_t)k * 8);
                ssize_t n = send(p->peer, bytes, sizeof bytes, MSG_NOSIGNAL);
                CHECK(n == 8 || errno == EPIPE || errno == ECONNRESET);
            }
        }
    }
}

static void race_close(bool listeners) {
    struct partner partner;
    warm_up();
    accepts = listeners;
    struct oracle_footing before = oracle_stand();
    oracle = oracle_new();
    loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, 64, 32, &pool), 0);
    partner_start(&partner, arrive, NULL);
    while (race_on()) {
        for (int i = 0; i < PAIRS_AT_ONCE; i++) {
            struct pair *p = &pairs[i];
            *p = (struct pair){.peer = -1, .multishot = dice(2), .clients = {-1, -1}};
            if (accepts) {
                p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (dice(8) ? SOCK_NONBLOCK : 0), 0);
                p->address = (struct sockaddr_un){.sun_family = AF_UNIX};
                p->length = sizeof p->address;
                CHECK(p->fd >= 0 && bind(p->fd, (struct sockaddr *)&p->address, sizeof(sa_family_t)) == 0);
                CHECK(getsockname(p->fd, (struct sockaddr *)&p->address, &p->length) == 0 && listen(p->fd, 8) == 0);
            } else {
                int fds[2];
                dice(2) ? unix_pair(fds) : tcp_pair(fds);
                p->fd = fds[0], p->peer = fds[1];
                p->stream.put = 16;
            }
            for (unsigned k = 0; k < (accepts && !p->multishot ? PER_PAIR : 1); k++)
                make(p, k);
            delays[0][i] = jitter(&edge, 0);
            delays[1][i] = jitter(&edge, 1);
        }
        for (uint64_t turns = dice(3); turns > 0; turns--)
            CHECK(upcall_poll(loop, 0) >= 0);
        atomic_store(&place.here[0], 0);
        atomic_store(&place.here[1], 0);
        sem_post(&partner.go);
        uint64_t often = 1 + dice(4);
        for (int i = 0; i < PAIRS_AT_ONCE; i++) {
            upcall_op op = upcall_op_close(pairs[i].fd);
            op.callback = on_close;
            op.user = &pairs[i];
            meet(&place, 0, (uint64_t)i + 1);
            spin(delays[1][i]);
            CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
            if ((uint64_t)i % often == 0)
                CHECK(upcall_poll(loop, 0) >= 0);
        }
        for (int i = 0; i < PAIRS_AT_ONCE; i++)
            while (!pairs[i].closed)
                CHECK(upcall_poll(loop, -1) >= 0);
        wait_for(&partner.done);
        uint64_t sides[2] = {0, 0};
        for (int i = 0; i < PAIRS_AT_ONCE; i++) {
            struct pair *p = &pairs[i];
            int connected = 0;
            sides[p->got == 0]++;
            for (int k = 0; k < 2; k++)
                if (p->clients[k] >= 0) {
                    char byte;
                    connected++;
                    CHECK(is_readable(p->clients[k], 10000)); /* delivered and closed by us, or ended by the close */
                    ssize_t n = recv(p->clients[k], &byte, 1, 0);
                    CHECK(n == 0 || errno == ECONNRESET);
                    close(p->clients[k]);
                }
            CHECK(p->accepted <= connected);
            if (p->peer >= 0) {
                CHECK(is_readable(p->peer, 10000)); /* its end came: nobody else holds the socket */
                close(p->peer);
            }
        }
        race_score(sides[0], sides[1]);
        steer(&edge, sides[0], sides[1]);
    }
    partner_end(&partner);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("arrived", "closed before");
}

RACE(close_and_receive) { race_close(false); }
RACE(close_and_accept) { race_close(true); }
