/*
 * The return of lent buffers against receives that take them: a small pool runs dry again and again while two other threads
 * give back what they were handed, and two more write.
 *
 * The invariant: no buffer is lent twice at a time, nothing is written to it while it is lent, every stream's bytes come
 * through in order, a reader that waits for a buffer goes on when one comes back, and at the end none is lent. A second
 * return of the same buffer is refused. The sides: the pool was dry when the buffer came back, or not. hazards rows 31, 32.
 */
#include "race.h"

enum { BUFFERS = 8, ROOM = 64, STREAMS = 4, RETURNERS = 2, QUEUE = 256 };

struct stream {
    int fds[2];
    struct oracle_stream bytes;
    bool ended;
};
struct loan {
    unsigned char *buffer, copy[ROOM];
    size_t size;
};
/* One writer, one reader. */
struct queue {
    struct loan loans[QUEUE];
    atomic_size_t put, got;
    uint64_t random;
};

static upcall_loop *loop;
static struct oracle *oracle;
static upcall_buffers *pool;
static struct stream streams[STREAMS];
static struct queue queues[RETURNERS];
static atomic_bool enough, all_read;
static atomic_int lent;
static atomic_uint_fast64_t dry, wet;
static atomic_uint_fast64_t received[STREAMS]; /* bytes, so that writers do not run far ahead */
static uint64_t put[STREAMS];

static void *give_back(void *arg) {
    struct queue *q = arg;
    while (!all_read || q->got != q->put) {
        if (q->got == q->put) {
            sched_yield();
            continue;
        }
        struct loan *loan = &q->loans[q->got % QUEUE];
        spin(chance(&q->random) % 2000);
        CHECK(memcmp(loan->buffer, loan->copy, loan->size) == 0); /* nobody wrote there meanwhile */
        memset(loan->buffer, ORACLE_DEAD, ROOM);
        void *buffer = loan->buffer;
        atomic_fetch_add(lent == BUFFERS ? &dry : &wet, 1);
        atomic_fetch_sub(&lent, 1);
        atomic_fetch_add(&q->got, 1);
        CHECK_EQ(upcall_buffers_return(pool, buffer), 0);
    }
    return NULL;
}

static void on_piece(upcall_loop *where, const upcall_event *event) {
    struct stream *s = event->user;
    (void)where;
    CHECK(event->result >= 0);
    if (!(event->flags & UPCALL_MORE)) {
        CHECK_EQ(event->result, 0); /* the end of the stream */
        s->ended = true;
        return;
    }
    CHECK(event->buffer != NULL && event->result > 0 && event->result <= ROOM);
    CHECK(atomic_fetch_add(&lent, 1) < BUFFERS);
    oracle_take(&s->bytes, event->buffer, (size_t)event->result);
    struct queue *q = &queues[dice(RETURNERS)];
    struct loan *loan = &q->loans[q->put % QUEUE];
    loan->buffer = event->buffer;
    loan->size = (size_t)event->result;
    memcpy(loan->copy, event->buffer, loan->size);
    atomic_fetch_add(&received[s - streams], loan->size);
    atomic_fetch_add(&q->put, 1);
}

static void *write_all_the_time(void *arg) {
    unsigned first = (unsigned)(uintptr_t)arg;
    uint64_t random = first;
    while (!enough)
        for (unsigned i = first; i < STREAMS; i += 2) {
            uint8_t bytes[4 * ROOM];
            size_t size = 1 + chance(&random) % sizeof bytes;
            if (put[i] - received[i] > 4096) {
                sched_yield();
                continue;
            }
            fill_pattern(bytes, size, put[i]);
            put[i] += size;
            write_all(streams[i].fds[1], bytes, size);
        }
    for (unsigned i = first; i < STREAMS; i += 2)
        CHECK(shutdown(streams[i].fds[1], SHUT_WR) == 0);
    return NULL;
}

RACE(return_and_receive) {
    pthread_t threads[RETURNERS + 2];
    warm_up();
    struct oracle_footing before = oracle_stand();
    oracle = oracle_new();
    oracle->nobody_cancels = true;
    loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, BUFFERS, ROOM, &pool), 0);
    for (unsigned i = 0; i < STREAMS; i++) {
        upcall_op op;
        streams[i] = (struct stream){.bytes = {UINT64_MAX, 0}};
        i % 2 ? tcp_pair(streams[i].fds) : unix_pair(streams[i].fds);
        op = upcall_op_recv(streams[i].fds[0], NULL, 0, 0);
        op.flags = UPCALL_MULTISHOT;
        op.buffers = pool;
        op.lend_max = i < 2 ? 0 : 3;
        op.callback = on_piece;
        op.user = &streams[i];
        CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
    }
    for (unsigned i = 0; i < RETURNERS; i++) {
        queues[i].random = i;
        threads[i] = start(give_back, &queues[i]);
    }
    for (uintptr_t i = 0; i < 2; i++)
        threads[RETURNERS + i] = start(write_all_the_time, (void *)i);
    uint64_t scored[2] = {0, 0};
    while (race_on()) {
        for (int turn = 0; turn < 64; turn++)
            CHECK(upcall_poll(loop, turn % 4 ? 0 : MS(1)) >= 0);
        uint64_t now[2] = {dry, wet};
        race_score(now[0] - scored[0], now[1] - scored[1]);
        scored[0] = now[0], scored[1] = now[1];
    }
    enough = true;
    for (unsigned i = 0; i < STREAMS; i++)
        while (!streams[i].ended)
            CHECK(upcall_poll(loop, MS(100)) >= 0);
    all_read = true;
    for (unsigned i = 0; i < COUNT_OF(threads); i++)
        join(threads[i]);
    for (unsigned i = 0; i < STREAMS; i++) {
        CHECK_EQ(streams[i].bytes.got, put[i]);
        close_pair(streams[i].fds);
    }
    CHECK_EQ(lent, 0);
    CHECK_EQ(upcall_buffers_free(pool), 0); /* none is lent */
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("dry", "not dry");
}

/* Two threads return the same buffer: one of them succeeds. */
static struct meeting place;
static uint64_t step;
static void *contested;
static int answers[2];
static struct steering edge;
static void return_too(void *arg) {
    (void)arg;
    meet(&place, 1, step);
    spin(jitter(&edge, 1));
    answers[1] = upcall_buffers_return(pool, contested);
}
static void take_buffer(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK_EQ(event->result, 1);
    contested = event->buffer;
}

RACE(return_and_return) {
    struct partner partner;
    int fds[2];
    warm_up();
    struct oracle_footing before = oracle_stand();
    oracle = oracle_new();
    loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, 1, 64, &pool), 0);
    unix_pair(fds);
    partner_start(&partner, return_too, NULL);
    while (race_on()) {
        upcall_op op = upcall_op_recv(fds[0], NULL, 1, 0);
        op.buffers = pool;
        op.callback = take_buffer;
        contested = NULL;
        write_all(fds[1], "x", 1);
        CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
        while (contested == NULL)
            CHECK(upcall_poll(loop, -1) >= 0);
        step++;
        sem_post(&partner.go);
        meet(&place, 0, step);
        spin(jitter(&edge, 0));
        answers[0] = upcall_buffers_return(pool, contested);
        wait_for(&partner.done);
        CHECK((answers[0] == 0 && answers[1] == -EINVAL) || (answers[0] == -EINVAL && answers[1] == 0));
        race_score(answers[0] == 0, answers[1] == 0);
        steer(&edge, answers[0] == 0, answers[1] == 0);
    }
    partner_end(&partner);
    close_pair(fds);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("the loop's thread", "the other");
}
