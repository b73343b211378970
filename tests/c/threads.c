/* Threads: what any thread may do, what only the owner may, and what happens when the owner is gone. */
#include "check.h"
#include <semaphore.h>
#include <stdatomic.h>

enum { THREADS = 4 };

#define POLL_UNTIL(loop, condition)                                                                                    \
    do {                                                                                                               \
        uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;                                                             \
        while (!(condition)) {                                                                                         \
            CHECK(upcall_poll((loop), MS(100)) >= 0);                                                                  \
            CHECK(now_ns() < limit);                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- Submissions. ---- */

struct slot {
    upcall_id id;
    int seen;
};
struct submitter {
    upcall_loop *loop;
    struct slot slots[3000];
};

static atomic_size_t seen_total;
static pthread_t owner;
static void see(upcall_loop *loop, const upcall_event *event) {
    struct slot *slot = event->user;
    (void)loop;
    CHECK(pthread_equal(pthread_self(), owner)); /* callbacks run on the owner's thread and nowhere else */
    CHECK_EQ(slot->id, event->id); /* written before the operation could start */
    CHECK_EQ(slot->seen++, 0);
    CHECK_EQ(event->result, 0);
    atomic_fetch_add(&seen_total, 1);
}

static void see_batch(upcall_loop *loop, const upcall_event *event) {
    struct slot *slot = event->user;
    (void)loop;
    CHECK_EQ(slot->seen++, 0);
    CHECK_EQ(event->result, 0);
    atomic_fetch_add(&seen_total, 1);
}

static void *submit_singly(void *arg) {
    struct submitter *me = arg;
    for (size_t i = 0; i < COUNT_OF(me->slots); i++) {
        upcall_op op = i % 5 ? upcall_op_nop() : upcall_op_sleep(i * 100);
        op.callback = see;
        op.user = &me->slots[i];
        CHECK_EQ(upcall_submit(me->loop, &op, 1, &me->slots[i].id), 0);
    }
    return NULL;
}
static void *submit_slowly(void *arg) {
    struct submitter *me = arg;
    for (size_t i = 0; i < COUNT_OF(me->slots); i++) {
        upcall_op op = upcall_op_nop();
        op.callback = see;
        op.user = &me->slots[i];
        CHECK_EQ(upcall_submit(me->loop, &op, 1, &me->slots[i].id), 0);
        if (i % 20 == 0)
            pause_ms(1);
    }
    return NULL;
}
static void *submit_in_batches(void *arg) {
    struct submitter *me = arg;
    for (size_t i = 0; i < COUNT_OF(me->slots); i += 30) {
        upcall_op ops[30];
        upcall_id ids[30];
        for (size_t k = 0; k < 30; k++) {
            ops[k] = upcall_op_nop();
            ops[k].callback = see_batch;
            ops[k].user = &me->slots[i + k];
        }
        CHECK_EQ(upcall_submit(me->loop, ops, 30, ids), 0);
        for (size_t k = 0; k < 30; k++)
            me->slots[i + k].id = ids[k];
    }
    return NULL;
}

static void submit_from_threads(void *(*way)(void *)) {
    static struct submitter submitters[THREADS];
    upcall_loop *loop = new_loop();
    pthread_t threads[THREADS];
    owner = pthread_self();
    for (int i = 0; i < THREADS; i++) {
        submitters[i].loop = loop;
        threads[i] = start(way, &submitters[i]);
    }
    POLL_UNTIL(loop, atomic_load(&seen_total) == THREADS * COUNT_OF(submitters[0].slots));
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
    for (int i = 0; i < THREADS; i++)
        for (size_t k = 0; k < COUNT_OF(submitters[i].slots); k++)
            CHECK_EQ(submitters[i].slots[k].seen, 1);
}

TEST_FOR(any_thread_may_submit_and_every_operation_ends_once, 60) {
    submit_from_threads(submit_singly);
}
TEST_FOR(any_thread_may_submit_while_the_loop_is_asleep, 60) {
    submit_from_threads(submit_slowly);
}
TEST_FOR(any_thread_may_submit_batches, 60) {
    submit_from_threads(submit_in_batches);
}

static void *submit_batch(void *arg) {
    enum { N = 100 };
    struct recorder *rec = ((void **)arg)[1];
    upcall_op ops[N];
    for (int i = 0; i < N; i++) {
        ops[i] = i % 10 == 5 ? upcall_op_fsync(-1) : upcall_op_nop();
        ops[i].flags = i % 10 < 9 ? UPCALL_LINK : i == N - 1 ? 0 : UPCALL_DRAIN;
        ops[i].callback = record;
        ops[i].user = rec;
    }
    CHECK_EQ(upcall_submit(((void **)arg)[0], ops, N, NULL), 0);
    memset(ops, 0xff, sizeof ops); /* copied */
    return NULL;
}

TEST(links_and_drains_of_another_threads_submit_hold) { /* hazards row 8 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    void *arg[2] = {loop, &rec};
    CHECK_EQ(upcall_poll(loop, 0), 0);
    for (int i = 0; i < 10; i++)
        join(start(submit_batch, arg));
    run_finals(loop, &rec, 1000);
    size_t done = 0, bad = 0, severed = 0;
    for (size_t i = 0; i < rec.count; i++) {
        done += rec.events[i].result == 0;
        bad += rec.events[i].result == -EBADF;
        severed += rec.events[i].result == -ECANCELED;
    }
    CHECK_EQ(bad, 100);
    CHECK_EQ(done, 500);
    CHECK_EQ(severed, 400);
    quiet(loop, &rec);
    free_loop(loop);
}

TEST(the_limit_of_operations_holds_for_every_thread) {
    upcall_config config = default_config();
    config.max_operations = 4;
    upcall_loop *loop = loop_with(&config);
    upcall_op ops[5];
    for (int i = 0; i < 5; i++)
        ops[i] = upcall_op_sleep(3600 * UPCALL_SECOND);
    /* Nobody owns the loop yet: this goes through the inbox. */
    CHECK_EQ(upcall_submit(loop, ops, 5, NULL), -EAGAIN);
    CHECK_EQ(upcall_submit(loop, ops, 4, NULL), 0);
    CHECK_EQ(upcall_submit(loop, ops, 1, NULL), -EAGAIN);
    free_loop(loop);
}

static char byte;
static int pair[2];
static struct recorder survivors;
static void *submit_and_exit(void *loop) {
    upcall_op op = upcall_op_recv(pair[0], &byte, 1, 0);
    submit_one(loop, op, &survivors);
    return NULL;
}

TEST(an_operation_survives_the_thread_that_submitted_it) { /* hazards row 3 */
    upcall_loop *loop = new_loop();
    unix_pair(pair);
    for (int owned = 0; owned < 2; owned++) {
        survivors.count = survivors.finals = 0;
        join(start(submit_and_exit, loop));
        if (owned)
            start_all(loop);
        join(start(submit_and_exit, loop));
        start_all(loop);
        pause_ms(10);
        CHECK_EQ(survivors.count, 0);
        write_all(pair[1], "xy", 2);
        run_finals(loop, &survivors, 2);
        CHECK_EQ(survivors.events[0].result, 1);
        CHECK_EQ(survivors.events[1].result, 1);
    }
    free_loop(loop);
}

/* ---- Posts. ---- */

struct poster {
    upcall_loop *loop;
    size_t next; /* what is to come next; the owner's */
};
struct post {
    struct poster *from;
    size_t number;
};
enum { POSTS = 5000 };
static struct post posts[THREADS][POSTS];
static size_t posts_run;
static void run_post(upcall_loop *loop, void *arg) {
    struct post *post = arg;
    (void)loop;
    CHECK(pthread_equal(pthread_self(), owner));
    CHECK_EQ(post->number, post->from->next); /* first in, first out, and each once */
    post->from->next++;
    posts_run++;
}
static void *post_many(void *arg) {
    struct poster *me = ((void **)arg)[0];
    struct post *mine = ((void **)arg)[1];
    for (size_t i = 0; i < POSTS; i++) {
        mine[i] = (struct post){me, i};
        CHECK_EQ(upcall_post(me->loop, run_post, &mine[i]), 0);
    }
    return NULL;
}

TEST_FOR(posts_run_once_each_and_in_the_order_of_their_thread, 60) {
    upcall_loop *loop = new_loop();
    struct poster posters[THREADS];
    void *args[THREADS][2];
    pthread_t threads[THREADS];
    owner = pthread_self();
    for (int i = 0; i < THREADS; i++) {
        posters[i] = (struct poster){loop, 0};
        args[i][0] = &posters[i];
        args[i][1] = posts[i];
        if (i > 0)
            threads[i] = start(post_many, args[i]);
    }
    post_many(args[0]); /* the owner-to-be too */
    POLL_UNTIL(loop, posts_run == THREADS * POSTS);
    for (int i = 1; i < THREADS; i++)
        join(threads[i]);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    free_loop(loop);
    CHECK_EQ(posts_run, THREADS * POSTS);
}

static void count_post(upcall_loop *loop, void *arg) {
    (void)loop;
    ++*(int *)arg;
}

TEST(equal_posts_are_never_coalesced) {
    upcall_loop *loop = new_loop();
    int ran = 0;
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    CHECK_EQ(ran, 0); /* not inside post */
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(ran, 1000);
    for (int i = 0; i < 500; i++)
        CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    free_loop(loop); /* accepted posts run */
    CHECK_EQ(ran, 1500);
}

/* ---- Wake-ups: the sleeping loop misses none. ---- */

static sem_t ball;
static atomic_int hits;
static void hit(upcall_loop *loop, void *arg) {
    (void)loop;
    (void)arg;
    atomic_fetch_add(&hits, 1);
}
/* On an emulated processor fewer: each round is a change of processors there and back. */
static int rounds(void) {
    return (int)(60000 / slowness());
}
/* Posts again as soon as the last post has run, or a little later: at any moment of the loop's falling asleep. */
static void *post_at_any_moment(void *loop) {
    uint64_t seed = 1;
    for (int i = 0; i < rounds(); i++) {
        uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
        CHECK_EQ(upcall_post(loop, hit, NULL), 0);
        for (uint64_t spins = 1; atomic_load(&hits) <= i; spins++)
            if (spins % 4096 == 0 && now_ns() > limit)
                fail(HERE, "post %d did not wake the loop", i);
        for (uint64_t spin = chance(&seed) % 3000; spin > 0; spin--)
            __asm__ volatile("");
    }
    return NULL;
}

TEST_FOR(no_wake_up_is_lost, 60) { /* hazards row 40 */
    upcall_loop *loop = new_loop();
    pthread_t thread = start(post_at_any_moment, loop);
    while (atomic_load(&hits) < rounds())
        CHECK(upcall_poll(loop, -1) >= 0);
    join(thread);
    free_loop(loop);
}

static void *submit_after_a_while(void *arg) {
    for (int i = 0; i < 30; i++) {
        if (i % 3)
            pause_ms(1);
        submit_one(((void **)arg)[0], upcall_op_nop(), ((void **)arg)[1]);
    }
    return NULL;
}

TEST(a_submission_wakes_the_sleeping_loop) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    void *arg[2] = {loop, &rec};
    start_all(loop);
    pthread_t thread = start(submit_after_a_while, arg);
    while (rec.finals < 30)
        CHECK(upcall_poll(loop, -1) >= 0);
    join(thread);
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK(stats.wakeups >= 1);
    free_loop(loop);
}

static atomic_bool stop_now;
static void *stop_often(void *loop) {
    while (!atomic_load(&stop_now)) {
        CHECK_EQ(upcall_stop(loop), 0);
        pause_ms(1);
    }
    return NULL;
}

TEST(stops_from_many_threads_all_end_run) {
    upcall_loop *loop = new_loop();
    pthread_t threads[THREADS];
    CHECK_EQ(upcall_hold(loop), 0);
    for (int i = 0; i < THREADS; i++)
        threads[i] = start(stop_often, loop);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(upcall_run(loop), 1);
    atomic_store(&stop_now, true);
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
    CHECK_EQ(upcall_unhold(loop), 0);
    free_loop(loop);
}

/* ---- The owner's calls. ---- */

static void *try_owners_calls(void *arg) {
    upcall_loop *loop = arg;
    upcall_event event;
    CHECK_EQ(upcall_poll(loop, 0), -EPERM);
    CHECK_STR_CONTAINS(upcall_last_error(), "thread");
    CHECK_EQ(upcall_poll(loop, -1), -EPERM);
    CHECK_EQ(upcall_run(loop), -EPERM);
    CHECK_EQ(upcall_reap(loop, &event, 1), -EPERM);
    CHECK_EQ(upcall_loop_close(loop, -1), -EPERM);
    CHECK_EQ(upcall_loop_detach(loop), -EPERM);
    CHECK_EQ(upcall_fd(loop), -EPERM);
    CHECK_EQ(upcall_loop_free(loop), -EPERM);
    /* … and everyone's */
    upcall_stats stats;
    uint64_t before = now_ns(), now = upcall_now(loop);
    CHECK(now >= before && now <= now_ns());
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK(upcall_supports(loop, UPCALL_OP_NOP) > 0);
    CHECK_EQ(upcall_loop_backend(loop), stats.backend);
    CHECK(*upcall_backend_reason(loop));
    CHECK_EQ(upcall_hold(loop), 0);
    CHECK_EQ(upcall_unhold(loop), 0);
    CHECK_EQ(upcall_cancel(loop, 12345), -ENOENT);
    CHECK_EQ(upcall_cancel_fd(loop, 12345), 0);
    return NULL;
}

TEST(an_owners_call_from_another_thread_is_eperm) { /* hazards row 43 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    join(start(try_owners_calls, loop));
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    free_loop(loop);
}

static void *reap_first(void *loop) {
    upcall_event event;
    CHECK_EQ(upcall_reap(loop, &event, 1), 0);
    pause_ms(1);
    CHECK_EQ(upcall_loop_free(loop), 0);
    return NULL;
}

TEST(a_loop_may_be_made_here_and_run_there) {
    upcall_loop *loop = new_loop();
    join(start(reap_first, loop)); /* reap makes an owner too */
}

static void try_inside(upcall_loop *loop) {
    CHECK_EQ(upcall_poll(loop, 0), -EDEADLK);
    CHECK_EQ(upcall_poll(loop, -1), -EDEADLK);
    CHECK_EQ(upcall_run(loop), -EDEADLK);
    CHECK_EQ(upcall_loop_close(loop, -1), -EDEADLK);
    CHECK_EQ(upcall_loop_free(loop), -EDEADLK);
    CHECK_EQ(upcall_loop_detach(loop), -EDEADLK);
    CHECK_STR_CONTAINS(upcall_last_error(), "callback");
}
static int tried;
static void try_in_callback(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    try_inside(loop);
    tried++;
}
static void try_in_post(upcall_loop *loop, void *arg) {
    (void)arg;
    try_inside(loop);
    tried++;
}

TEST(a_loop_does_not_wait_for_itself_in_a_callback) { /* hazards row 41 */
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_nop();
    op.callback = try_in_callback;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    CHECK_EQ(upcall_post(loop, try_in_post, NULL), 0);
    while (tried < 2) /* in poll … */
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    CHECK_EQ(upcall_post(loop, try_in_post, NULL), 0);
    CHECK_EQ(upcall_run(loop), 0); /* … in run … */
    CHECK_EQ(tried, 4);
    op = upcall_op_sleep(3600 * UPCALL_SECOND);
    op.callback = try_in_callback;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    CHECK_EQ(upcall_loop_close(loop, -1), 0); /* … in close … */
    CHECK_EQ(tried, 5);
    free_loop(loop);
    loop = new_loop();
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    CHECK_EQ(upcall_post(loop, try_in_post, NULL), 0);
    free_loop(loop); /* … and in free */
    CHECK_EQ(tried, 7);
}

static upcall_loop *inner;
static void run_inner(upcall_loop *loop, const upcall_event *event) {
    CHECK(loop != inner);
    CHECK_EQ(complete(inner, upcall_op_nop()).result, 0);
    CHECK_EQ(upcall_run(inner), 0);
    record(loop, event);
}

TEST(a_callback_may_run_another_loop) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    inner = new_loop();
    upcall_op op = upcall_op_nop();
    op.callback = run_inner;
    op.user = &rec;
    for (int i = 0; i < 3; i++)
        submit_one(loop, op, &rec);
    run_finals(loop, &rec, 3);
    free_loop(inner);
    free_loop(loop);
}

/* What a callback may do with its own loop: everything else. */
static struct recorder made;
static int posted;
static void do_everything(upcall_loop *loop, const upcall_event *event) {
    upcall_stats stats;
    upcall_buffers *pool;
    upcall_event reaped;
    upcall_id id = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &made);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    CHECK_EQ(made.count, 0);
    CHECK_EQ(upcall_post(loop, count_post, &posted), 0);
    CHECK_EQ(posted, 0);
    CHECK_EQ(upcall_reap(loop, &reaped, 1), 0);
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(upcall_hold(loop), 0);
    CHECK_EQ(upcall_unhold(loop), 0);
    CHECK_EQ(upcall_cancel_fd(loop, 999), 0);
    CHECK_EQ(upcall_cancel(loop, event->id), -ENOENT);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    CHECK(upcall_fd(loop) >= 0);
    CHECK(upcall_supports(loop, UPCALL_OP_RECV) > 0);
    CHECK(upcall_now(loop) > 0);
    CHECK_EQ(upcall_stop(loop), 0);
    record(loop, event);
}

TEST(a_callback_may_submit_cancel_reap_post_and_stop) { /* hazards row 41 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_nop();
    op.callback = do_everything;
    op.user = &rec;
    submit_one(loop, op, &rec);
    CHECK_EQ(upcall_run(loop), 1);
    CHECK_EQ(rec.finals, 1);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(posted, 1);
    CHECK_EQ(made.finals, 1);
    CHECK_EQ(made.events[0].result, -ECANCELED);
    free_loop(loop);
}

/* ---- The owner's end. ---- */

struct legacy {
    upcall_loop *loop;
    struct recorder rec;
    upcall_id ids[6];
    int fds[2];
    char data[64];
};
static void *own_and_exit(void *arg) {
    struct legacy *legacy = arg;
    upcall_loop *loop = legacy->loop;
    legacy->ids[0] = submit_one(loop, upcall_op_recv(legacy->fds[0], legacy->data, 8, 0), &legacy->rec);
    legacy->ids[1] = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &legacy->rec);
    upcall_op linked[2] = {upcall_op_sleep(3600 * UPCALL_SECOND), upcall_op_nop()};
    linked[0].flags = UPCALL_LINK;
    submit_many(loop, linked, 2, &legacy->rec, &legacy->ids[2]);
    start_all(loop);
    upcall_op op = upcall_op_recv(legacy->fds[0], legacy->data + 8, 8, 0);
    op.timeout_ns = 3600 * UPCALL_SECOND;
    legacy->ids[4] = submit_one(loop, op, &legacy->rec);
    legacy->ids[5] = submit_one(loop, upcall_op_poll(legacy->fds[0], POLLIN), &legacy->rec); /* not handed over */
    return NULL;
}

TEST(what_a_dead_owner_had_in_flight_is_eownerdead) { /* hazards row 3 */
    static struct legacy legacy;
    int before = open_fd_count();
    legacy.loop = new_loop();
    unix_pair(legacy.fds);
    join(start(own_and_exit, &legacy));
    CHECK_EQ(legacy.rec.count, 0);
    CHECK_EQ(upcall_loop_free(legacy.loop), 0);
    check_finals(&legacy.rec, legacy.ids, 6);
    CHECK_EQ(legacy.rec.count, 6);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(legacy.rec.events[i].result, -EOWNERDEAD);
    memset(legacy.data, 0xee, sizeof legacy.data);
    write_all(legacy.fds[1], "0123456789abcdef", 16);
    pause_ms(20);
    for (size_t i = 0; i < sizeof legacy.data; i++) /* nothing touches its memory any more: hazards row 1 */
        CHECK_EQ((unsigned char)legacy.data[i], 0xee);
    close_pair(legacy.fds);
    CHECK_EQ(open_fd_count(), before);
}

static sem_t leave;
static void *own_until_told(void *arg) {
    own_and_exit(arg);
    sem_post(&ball);
    while (sem_wait(&leave) != 0) {}
    return NULL;
}

TEST(a_living_owner_keeps_its_loop) {
    static struct legacy legacy;
    CHECK(sem_init(&ball, 0, 0) == 0 && sem_init(&leave, 0, 0) == 0);
    legacy.loop = new_loop();
    unix_pair(legacy.fds);
    pthread_t thread = start(own_until_told, &legacy);
    while (sem_wait(&ball) != 0) {}
    CHECK_EQ(upcall_loop_free(legacy.loop), -EPERM);
    CHECK_EQ(upcall_poll(legacy.loop, 0), -EPERM);
    CHECK_EQ(legacy.rec.count, 0);
    sem_post(&leave);
    join(thread);
    CHECK_EQ(upcall_loop_free(legacy.loop), 0);
    CHECK_EQ(legacy.rec.finals, 6);
}

static void *poll_once(void *loop) {
    CHECK_EQ(upcall_poll(loop, 0), 0);
    return NULL;
}

TEST(a_loop_whose_idle_owner_is_gone_can_be_freed) { /* and its thread id is reused again and again */
    for (int i = 0; i < 20; i++) {
        upcall_loop *loop = new_loop();
        join(start(poll_once, loop));
        CHECK_EQ(upcall_loop_free(loop), 0); /* nothing was in flight */
    }
}

static void *free_it(void *loop) {
    CHECK_EQ(upcall_loop_free(loop), 0);
    return NULL;
}

TEST(any_thread_may_free_a_loop_that_was_never_polled) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2], ran = 0;
    pipe_pair(fds);
    upcall_id ids[3];
    upcall_op ops[3] = {upcall_op_read(fds[0], &byte, 1), upcall_op_sleep(3600 * UPCALL_SECOND), upcall_op_poll(fds[0], POLLIN)};
    submit_many(loop, ops, 3, &rec, ids);
    CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    join(start(free_it, loop));
    check_finals(&rec, ids, 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    CHECK_EQ(ran, 1);
}

static void *poll_and_detach(void *loop) {
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    CHECK_EQ(upcall_loop_detach(loop), 0);
    return NULL;
}

TEST(any_thread_may_free_a_detached_loop) {
    upcall_loop *loop = new_loop();
    join(start(poll_and_detach, loop));
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    join(start(free_it, loop));
    CHECK_EQ(rec.count, 1);
    CHECK_EQ(rec.events[0].result, -ECANCELED); /* it had no owner: nobody died */
}

/* ---- All at once. ---- */

struct mixer {
    upcall_loop *loop;
    uint64_t seed;
    atomic_size_t *accepted;
    struct recorder *rec;
    int fd;
};
static void *mix(void *arg) {
    struct mixer *me = arg;
    upcall_id recent[16] = {0};
    for (size_t i = 0; i < 3000; i++) {
        uint64_t dice = chance(&me->seed);
        upcall_op op = dice % 3 == 0   ? upcall_op_nop()
                       : dice % 3 == 1 ? upcall_op_sleep(dice % 5000000)
                                       : upcall_op_poll(me->fd, POLLIN);
        if (dice % 3 == 2)
            op.timeout_ns = 1 + dice % 3000000;
        op.callback = record;
        op.user = me->rec;
        CHECK_EQ(upcall_submit(me->loop, &op, 1, &recent[i % 16]), 0);
        atomic_fetch_add(me->accepted, 1);
        if (dice % 7 == 0) {
            int rc = upcall_cancel(me->loop, recent[chance(&me->seed) % 16]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        if (dice % 501 == 0)
            CHECK(upcall_cancel_fd(me->loop, me->fd) >= 0);
        if (dice % 1009 == 0)
            CHECK(upcall_cancel_all(me->loop) >= 0);
    }
    return NULL;
}

TEST_FOR(everything_from_everywhere_ends_exactly_once, 60) { /* hazards rows 5, 6, 7 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct mixer mixers[THREADS];
    pthread_t threads[THREADS];
    atomic_size_t accepted = 0;
    int fds[2];
    unix_pair(fds);
    for (int i = 0; i < THREADS; i++) {
        mixers[i] = (struct mixer){loop, (uint64_t)i, &accepted, &rec, fds[0]};
        threads[i] = start(mix, &mixers[i]);
    }
    POLL_UNTIL(loop, rec.finals == THREADS * 3000);
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
    CHECK_EQ(atomic_load(&accepted), THREADS * 3000);
    quiet(loop, &rec);
    CHECK_EQ(rec.count, THREADS * 3000);
    for (size_t i = 0; i < rec.count; i++)
        CHECK(rec.events[i].result == 0 || rec.events[i].result == -ECANCELED || rec.events[i].result == -ETIMEDOUT);
    upcall_id *ids = malloc(rec.count * sizeof *ids);
    for (size_t i = 0; i < rec.count; i++)
        ids[i] = rec.events[i].id;
    check_finals(&rec, ids, rec.count); /* all different */
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
}
