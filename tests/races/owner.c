/*
 * The owner's thread exits while other threads submit, cancel, post and stop; then the loop is freed by another thread. And
 * two threads that become owner at the same moment.
 *
 * The invariant: what was accepted ends exactly once: completed while the owner lived, or -EOWNERDEAD, or -ECANCELED where that
 * was asked for; what comes after the owner's end is refused with -EOWNERDEAD. Every accepted post runs once. Nothing of the
 * program's is touched when the loop has been freed: neither memory, nor a byte of a stream. Of two threads one becomes owner,
 * and callbacks run on it alone. hazards rows 1, 3.
 */
#include "race.h"

enum { OTHERS = 2, EACH = 24 };

static upcall_loop *loop;
static struct oracle *oracle;
static struct meeting place;
static struct steering edge;
static int fds[OTHERS][2];
static sem_t ready, gone;
static atomic_uint_fast64_t accepted_posts, refused, accepted;
static uint64_t ran;
static uint64_t delay;

struct other {
    unsigned number;
    uint64_t random;
    void *memory;
    int64_t received;
};
static struct other others[OTHERS];

static void on_any(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK(event->result >= 0 || event->result == -EOWNERDEAD || event->result == -ECANCELED);
    if (event->kind == UPCALL_OP_RECV)
        ((struct other *)event->user)->received = event->result;
}
static void run_post(upcall_loop *where, void *arg) {
    (void)where;
    (void)arg;
    ran++;
}

static void *own_for_a_while(void *arg) {
    (void)arg;
    CHECK_EQ(upcall_poll(loop, 0), 0);
    sem_post(&ready);
    meet(&place, 0, 1);
    for (uint64_t turns = dice(6); turns > 0; turns--)
        CHECK(upcall_poll(loop, 0) >= 0);
    spin(delay);
    return NULL;
}

static void *use_it(void *arg) {
    struct other *me = arg;
    upcall_id id = 0;
    me->memory = NULL;
    me->received = INT64_MIN;
    if (me->number == 0)
        meet(&place, 1, 1);
    for (int i = 0; i < EACH; i++) {
        uint64_t random = chance(&me->random);
        upcall_op op = random % 3 == 0 ? upcall_op_sleep(random / 3 % 100000)
                       : random % 3 == 1 ? upcall_op_poll(fds[me->number][0], POLLPRI)
                                         : upcall_op_nop();
        if (i == EACH / 2) {
            me->memory = malloc(32);
            memset(me->memory, ORACLE_POISON, 32);
            op = upcall_op_recv(fds[me->number][0], me->memory, 32, 0);
        }
        op.callback = on_any;
        op.user = me;
        int rc = oracle_submit(oracle, loop, &op, 1, &id);
        CHECK(rc == 0 || rc == -EOWNERDEAD);
        atomic_fetch_add(rc == 0 ? &accepted : &refused, 1);
        if (rc != 0 && i == EACH / 2)
            me->received = rc;
        if (random / 64 % 4 == 0 && id) {
            rc = upcall_cancel(loop, id);
            CHECK(rc == 0 || rc == -ENOENT || rc == -EOWNERDEAD);
        }
        if (random / 256 % 8 == 0) {
            rc = upcall_post(loop, run_post, NULL);
            CHECK(rc == 0 || rc == -EOWNERDEAD);
            atomic_fetch_add(&accepted_posts, rc == 0);
        }
        if (random / 2048 % 8 == 0)
            CHECK_EQ(upcall_stop(loop), 0);
        spin(random / 16384 % 1000);
    }
    return NULL;
}

RACE(exit_and_submissions) {
    warm_up();
    struct oracle_footing before = oracle_stand();
    CHECK(sem_init(&ready, 0, 0) == 0 && sem_init(&gone, 0, 0) == 0);
    oracle = oracle_new();
    for (unsigned i = 0; i < OTHERS; i++)
        unix_pair(fds[i]);
    while (race_on()) {
        pthread_t owner, threads[OTHERS];
        loop = new_loop();
        accepted_posts = ran = 0;
        accepted = refused = 0;
        atomic_store(&place.here[0], 0);
        atomic_store(&place.here[1], 0);
        delay = jitter(&edge, 1);
        owner = start(own_for_a_while, NULL);
        wait_for(&ready);
        for (unsigned i = 0; i < OTHERS; i++) {
            others[i].number = i;
            others[i].random = dice(UINT64_MAX);
            threads[i] = start(use_it, &others[i]);
        }
        join(owner);
        for (unsigned i = 0; i < OTHERS; i++)
            join(threads[i]);
        CHECK_EQ(upcall_loop_free(loop), 0);
        CHECK_EQ(ran, accepted_posts);
        oracle_check_ended(oracle);
        for (unsigned i = 0; i < OTHERS; i++) {
            char bytes[8];
            CHECK(others[i].received < 0);
            write_all(fds[i][1], "12345678", 8);
            CHECK_EQ(recv(fds[i][0], bytes, 8, 0), 8); /* nobody else takes them */
            CHECK(oracle_all(others[i].memory, 32, ORACLE_POISON));
            free(others[i].memory);
        }
        race_score(accepted, refused);
        steer(&edge, accepted, refused);
    }
    for (unsigned i = 0; i < OTHERS; i++)
        close_pair(fds[i]);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("accepted", "refused");
}

/* ---- Two threads poll a loop that has no owner: one of them becomes it, and then gives the loop up again. ---- */

static pthread_t whose;
static atomic_int results[2], winners;
static unsigned place_of[2];
static atomic_uint told;

static void on_nop(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK(event->result == 0 || !oracle->nobody_cancels);
    CHECK(pthread_equal(whose, pthread_self()));
    told++;
}
static void told_post(upcall_loop *where, void *arg) {
    (void)arg;
    (void)where;
    told++;
}

/* Nothing runs before the first poll, so the winner may write down who it is between the two. */
static void claim(unsigned me) {
    upcall_event none;
    int rc = upcall_reap(loop, &none, 1);
    CHECK(rc == 0 || rc == -EPERM);
    results[me] = rc;
    if (rc != 0) {
        upcall_op op = upcall_op_nop(); /* it waits in the inbox for whoever owns the loop, now or next */
        op.callback = on_nop;
        CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
        return;
    }
    whose = pthread_self();
    place_of[me] = (unsigned)winners++;
    do
        CHECK(upcall_poll(loop, 0) >= 0);
    while ((rc = upcall_loop_detach(loop)) == -EBUSY);
    CHECK_EQ(rc, 0);
}

static void claim_too(void *arg) {
    (void)arg;
    meet(&place, 1, 1);
    spin(delay);
    claim(1);
}

RACE(adopt_and_adopt) {
    struct partner partner;
    warm_up();
    struct oracle_footing before = oracle_stand();
    oracle = oracle_new();
    oracle->nobody_cancels = true;
    loop = new_loop();
    partner_start(&partner, claim_too, NULL);
    race.share = 10;
    uint64_t due = 0;
    while (race_on()) {
        upcall_op op = upcall_op_nop();
        op.callback = on_nop;
        CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
        CHECK_EQ(upcall_post(loop, told_post, NULL), 0);
        due += 2;
        atomic_store(&place.here[0], 0);
        atomic_store(&place.here[1], 0);
        delay = jitter(&edge, 1);
        winners = 0;
        sem_post(&partner.go);
        meet(&place, 0, 1);
        spin(jitter(&edge, 0));
        claim(0);
        wait_for(&partner.done);
        due += 2u - (unsigned)winners;
        CHECK(winners == 1 || winners == 2); /* one after the other */
        bool first = results[0] == 0 && (results[1] != 0 || place_of[0] == 0);
        race_score(first, !first);
        steer(&edge, first, !first);
        CHECK(told <= due);
    }
    partner_end(&partner);
    whose = pthread_self();
    oracle->nobody_cancels = false; /* what still waits in the inbox */
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(oracle->ended, oracle->accepted);
    CHECK_EQ(told, due);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("one thread", "the other");
}
