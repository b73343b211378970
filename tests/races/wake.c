/*
 * Waking against falling asleep. The loop waits without limit; another thread gives it something to do at about the moment it
 * falls asleep: a post, a submission, a cancel, a buffer that a dry pool waits for, an end of a hold, a stop, a signal.
 *
 * The invariant: the loop never sleeps over it. One lost wake-up and the race comes to no end. The sides: the loop had to be
 * woken, or saw it before it slept. hazards rows 13, 40.
 */
#include "race.h"

static upcall_loop *loop;
static struct oracle *oracle;
static struct meeting place;
static struct steering edge = {.most = 1 << 14};
static uint64_t step;
static atomic_uint_fast64_t heard;
static upcall_id waiting;
static upcall_buffers *pool;
static void *lent;
static int stream[2];

static void hear(upcall_loop *where, const upcall_event *event) {
    (void)where;
    if (event->buffer) {
        CHECK(lent == NULL);
        lent = event->buffer;
    }
    atomic_fetch_add(&heard, 1);
}
static void hear_post(upcall_loop *where, void *arg) {
    (void)where;
    (void)arg;
    atomic_fetch_add(&heard, 1);
}

static upcall_id submit(upcall_op op) {
    upcall_id id;
    op.callback = hear;
    CHECK_EQ(oracle_submit(oracle, loop, &op, 1, &id), 0);
    return id;
}

/* What the other thread does, and what the loop's thread does before it sleeps. */
struct way {
    void (*prepare)(void);
    void (*wake)(void);
    bool runs; /* upcall_run() and not upcall_poll() */
};
static const struct way *way;

static void wakers_part(void *arg) {
    (void)arg;
    meet(&place, 1, step);
    spin(jitter(&edge, 1));
    way->wake();
}

static void race_wake(const struct way *chosen) {
    struct partner partner;
    upcall_stats stats;
    warm_up();
    struct oracle_footing before = oracle_stand();
    way = chosen;
    oracle = oracle_new();
    loop = new_loop();
    unix_pair(stream);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, 1, 64, &pool), 0);
    partner_start(&partner, wakers_part, NULL);
    while (race_on()) {
        if (way->prepare)
            way->prepare();
        CHECK_EQ(upcall_stats_get(loop, &stats), 0);
        uint64_t wakeups = stats.wakeups, count = heard + 1;
        step++;
        sem_post(&partner.go);
        meet(&place, 0, step);
        spin(jitter(&edge, 0));
        if (way->runs)
            CHECK_EQ(upcall_run(loop), way->prepare == NULL);
        else
            while (heard < count)
                CHECK(upcall_poll(loop, -1) >= 0);
        wait_for(&partner.done);
        CHECK_EQ(upcall_stats_get(loop, &stats), 0);
        bool slept = stats.wakeups > wakeups;
        race_score(slept, !slept);
        steer(&edge, slept, !slept);
    }
    partner_end(&partner);
    if (lent)
        CHECK_EQ(upcall_buffers_return(pool, lent), 0);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(stream);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("woken", "seen before");
}

static void post(void) { CHECK_EQ(upcall_post(loop, hear_post, NULL), 0); }
RACE(post_and_sleep) {
    race_wake(&(struct way){.wake = post});
}

static void submit_nop(void) { submit(upcall_op_nop()); }
RACE(submission_and_sleep) { race_wake(&(struct way){.wake = submit_nop}); }

static void wait_for_a_cancel(void) { waiting = submit(upcall_op_sleep(3600 * UPCALL_SECOND)); }
static void cancel(void) { CHECK_EQ(upcall_cancel(loop, waiting), 0); }
RACE(cancel_and_sleep) { race_wake(&(struct way){.prepare = wait_for_a_cancel, .wake = cancel}); }

/* The only buffer is lent; a receive waits for it. */
static void dry_up(void) {
    for (int i = lent == NULL ? 0 : 1; i < 2; i++) {
        upcall_op op = upcall_op_recv(stream[0], NULL, 1, 0);
        op.buffers = pool;
        write_all(stream[1], "x", 1);
        submit(op);
        if (i == 0)
            while (lent == NULL)
                CHECK(upcall_poll(loop, -1) >= 0);
    }
    for (uint64_t turns = dice(3); turns > 0; turns--)
        CHECK(upcall_poll(loop, 0) >= 0);
}
static void return_buffer(void) {
    void *buffer = lent;
    lent = NULL;
    CHECK_EQ(upcall_buffers_return(pool, buffer), 0);
}
RACE(buffer_and_sleep) { race_wake(&(struct way){.prepare = dry_up, .wake = return_buffer}); }

static void wait_for_a_signal(void) { submit(upcall_op_signal(SIGUSR1)); }
static void raise_it(void) { CHECK_EQ(pthread_kill(pthread_self(), SIGUSR1), 0); }
RACE(signal_and_sleep) {
    race.one_sided = true; /* the handler writes the loop's descriptor, asleep or not */
    race_wake(&(struct way){.prepare = wait_for_a_signal, .wake = raise_it});
}

static void hold(void) { CHECK_EQ(upcall_hold(loop), 0); }
static void unhold(void) { CHECK_EQ(upcall_unhold(loop), 0); }
RACE(unhold_and_sleep) { race_wake(&(struct way){.prepare = hold, .wake = unhold, .runs = true}); }
