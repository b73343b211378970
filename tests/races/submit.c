/*
 * Sixteen threads submit, cancel and post, while the loop is polled, asleep, or falling asleep.
 *
 * The invariant: every accepted operation ends exactly once, with its own id, kind and user pointer, on the loop's thread;
 * every post runs exactly once, those of one thread in order; a limit of operations in flight refuses all of a submit or none
 * of it, and is free again afterwards. The sides: the loop had to be woken, or not; the submit was refused, or not. hazards rows 3, 5, 6, 7, 16, 40.
 */
#include "race.h"

enum { THREADS = 16, MOST = 8 };

static upcall_loop *loop;
static struct oracle *oracle;
static pthread_t owner;
static atomic_bool enough;
static atomic_uint_fast64_t submits, refusals;
static int idle[2];

struct submitter {
    uint64_t random, posted, ran;
    upcall_id recent[16];
    atomic_uint in_flight;
};
static struct submitter submitters[THREADS];

static void hear(upcall_loop *where, const upcall_event *event) {
    struct submitter *me = event->user;
    CHECK(where == loop);
    CHECK(pthread_equal(pthread_self(), owner));
    CHECK(event->result == 0 || event->result == -ECANCELED || event->result == -ETIMEDOUT);
    atomic_fetch_sub(&me->in_flight, 1);
}

static struct submitter *of_post(void *arg, uint64_t *number) {
    *number = (uintptr_t)arg / THREADS;
    return &submitters[(uintptr_t)arg % THREADS];
}
static void run_post(upcall_loop *where, void *arg) {
    uint64_t number;
    struct submitter *me = of_post(arg, &number);
    (void)where;
    CHECK_EQ(me->ran, number);
    me->ran++;
}

static void *submit_all_the_time(void *arg) {
    struct submitter *me = arg;
    unsigned in_vain = 0;
    while (!enough) {
        upcall_op ops[MOST];
        upcall_id ids[MOST];
        uint64_t random = chance(&me->random), count = 1 + random % MOST;
        for (uint64_t i = 0; i < count; i++) {
            uint64_t what = chance(&me->random);
            ops[i] = what % 4 == 0   ? upcall_op_sleep(what / 4 % 200000)
                     : what % 4 == 1 ? upcall_op_poll(idle[0], POLLIN)
                                     : upcall_op_nop();
            if (what % 4 == 1)
                ops[i].timeout_ns = 1 + what / 4 % 300000;
            if (i + 1 < count && what % 16 == 2)
                ops[i].flags = UPCALL_LINK_ALWAYS;
            ops[i].callback = hear;
            ops[i].user = me;
        }
        atomic_fetch_add(&me->in_flight, (unsigned)count);
        int rc = oracle_submit(oracle, loop, ops, count, ids);
        CHECK(rc == 0 || rc == -EAGAIN);
        atomic_fetch_add(&submits, 1);
        if (rc != 0) {
            atomic_fetch_sub(&me->in_flight, (unsigned)count);
            atomic_fetch_add(&refusals, 1);
            ++in_vain % 4 ? (void)sched_yield() : pause_ms(1); /* let the loop end something */
        }
        for (uint64_t i = 0; i < count && rc == 0; i++)
            me->recent[(random + i) % COUNT_OF(me->recent)] = ids[i];
        if (random / 64 % 4 == 0) {
            rc = upcall_cancel(loop, me->recent[chance(&me->random) % COUNT_OF(me->recent)]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        if (random / 256 % 256 == 0)
            CHECK(upcall_cancel_fd(loop, idle[0]) >= 0);
        if (random / 1024 % 4 == 0) {
            uintptr_t number = (uintptr_t)me->posted++ * THREADS + (uintptr_t)(me - submitters);
            CHECK_EQ(upcall_post(loop, run_post, (void *)number), 0);
        }
        for (int pauses = 0; me->in_flight > 4 * MOST && !enough; pauses++)
            pauses < 16 ? (void)sched_yield() : pause_ms(1);
        spin(chance(&me->random) % 2000);
    }
    return NULL;
}

static void race_submit(uint32_t most) {
    upcall_config config = default_config();
    pthread_t threads[THREADS];
    upcall_stats stats;
    warm_up();
    unix_pair(idle);
    struct oracle_footing before = oracle_stand();
    config.max_operations = most;
    oracle = oracle_new();
    loop = loop_with(&config);
    owner = pthread_self();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    memset(submitters, 0, sizeof submitters);
    for (int i = 0; i < THREADS; i++) {
        submitters[i].random = race_seed + (uint64_t)i * 1000;
        threads[i] = start(submit_all_the_time, &submitters[i]);
    }
    uint64_t scored = 0, counted = 0;
    while (race_on()) {
        for (int turn = 0; turn < 64; turn++)
            CHECK(upcall_poll(loop, turn % 2 ? MS(1) : 0) >= 0);
        CHECK_EQ(upcall_stats_get(loop, &stats), 0);
        uint64_t all = submits - scored, first = (most < 1000 ? refusals : stats.wakeups) - counted;
        scored += all, counted += first;
        race_score(first < all ? first : all, first < all ? all - first : 0);
    }
    enough = true;
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
    while (oracle->ended < oracle->accepted)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    upcall_op ops[64]; /* every slot is free again */
    for (uint32_t i = 0; i < COUNT_OF(ops) && i < most; i++) {
        ops[i] = upcall_op_nop();
        ops[i].callback = hear;
        ops[i].user = &submitters[0];
    }
    submitters[0].in_flight = most < COUNT_OF(ops) ? most : COUNT_OF(ops);
    CHECK_EQ(oracle_submit(oracle, loop, ops, submitters[0].in_flight, NULL), 0);
    CHECK_EQ(upcall_loop_free(loop), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(submitters[i].ran, submitters[i].posted);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 20);
    close_pair(idle);
    most < 1000 ? race_end("refused", "accepted") : race_end("had to wake it", "did not");
}

RACE(sixteen_threads_and_poll) { race_submit(1 << 20); }
RACE(sixteen_threads_and_few_slots) { race_submit(48); }
