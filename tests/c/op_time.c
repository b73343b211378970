/*
 * sleep and sleep_until. Nothing here asks how late an event may be, only that it is never early.
 */
#include "op_support.h"

#define HOUR (3600 * UPCALL_SECOND)

/* ---- Subjects. ---- */

struct stamp {
    uint64_t not_before;
};

static void set_time(struct scene *scene) {
    struct stamp stamp = {now_ns() + 2 * UPCALL_MILLISECOND};
    memcpy(scene->control, &stamp, sizeof stamp);
}

static uint64_t not_before(const struct scene *scene) {
    struct stamp stamp;
    memcpy(&stamp, scene->control, sizeof stamp);
    return stamp.not_before;
}

static upcall_op make_short_sleep(struct scene *scene) {
    if (scene->subject->kind == UPCALL_OP_SLEEP_UNTIL)
        return upcall_op_sleep_until(not_before(scene));
    return upcall_op_sleep(2 * UPCALL_MILLISECOND);
}

static upcall_op make_long_sleep(struct scene *scene) {
    if (scene->subject->kind == UPCALL_OP_SLEEP_UNTIL)
        return upcall_op_sleep_until(now_ns() + HOUR);
    return upcall_op_sleep(HOUR);
}

static void has_slept(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(now_ns() >= not_before(scene));
}

static void nothing_to_see(struct scene *scene) {
    (void)scene;
}

#define SLEEPS(name, kind_, make_)                                                                                     \
    static const struct subject name = {.kind = kind_, .set_up = set_time, .make = make_, .done = has_slept,           \
        .intact = nothing_to_see, .interrupted_is_undefined = true};
SLEEPS(sleep_a_little, UPCALL_OP_SLEEP, make_short_sleep)
SLEEPS(sleep_until_soon, UPCALL_OP_SLEEP_UNTIL, make_short_sleep)
SLEEPS(sleep_an_hour, UPCALL_OP_SLEEP, make_long_sleep)
SLEEPS(sleep_until_an_hour_later, UPCALL_OP_SLEEP_UNTIL, make_long_sleep)
PROMISES_IN_MODE(sleep_a_little, any, false)
PROMISES_IN_MODE(sleep_until_soon, any, false)

TEST(a_sleep_is_cancelled_before_it_starts) {
    cancelled_before_start(&sleep_an_hour, false);
    cancelled_before_start(&sleep_until_an_hour_later, false);
}

TEST(a_sleep_is_cancelled_while_it_waits) {
    cancelled_while_waiting(&sleep_an_hour, false);
    cancelled_while_waiting(&sleep_until_an_hour_later, false);
}

TEST(a_sleep_has_a_deadline_like_any_other_operation) {
    expires_while_waiting(&sleep_an_hour, false);
    expires_while_waiting(&sleep_until_an_hour_later, false);
}

/* ---- Names, arguments. ---- */

TEST(time_operations_are_known) {
    is_known(UPCALL_OP_SLEEP, "sleep");
    is_known(UPCALL_OP_SLEEP_UNTIL, "sleep_until");
}

TEST(time_operations_refuse_strange_fields) {
    refuses_strange_fields(upcall_op_sleep(1), UPCALL_MULTISHOT);
    refuses_strange_fields(upcall_op_sleep_until(1), 0);
}

TEST(a_repeating_sleep_needs_a_period) {
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_sleep(0);
    op.flags = UPCALL_MULTISHOT;
    refused(loop, op, EINVAL, "ns is 0: a repeating sleep needs a period");
    free_loop(loop);
}

/* ---- One sleep. ---- */

TEST(no_time_at_all_ends_at_once) {
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 100; i++) {
        ends_with(loop, upcall_op_sleep(0), 0);
        ends_with(loop, upcall_op_sleep_until(0), 0);
        ends_with(loop, upcall_op_sleep_until(1), 0);
        ends_with(loop, upcall_op_sleep_until(now_ns()), 0);
        ends_with(loop, upcall_op_sleep_until(now_ns() - UPCALL_SECOND), 0);
    }
    free_loop(loop);
}

TEST(a_sleep_is_never_early) {
    static const uint64_t times[] = {1, 10, 999, 1000, 1001, 50000, 999999, 1000000, 1000001, 1500000, 1999999,
                                     5000000, 10000001, 33333333};
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < COUNT_OF(times); i++) {
            struct recorder rec = {0};
            uint64_t before = now_ns();
            submit_one(loop, upcall_op_sleep(times[i]), &rec);
            while (rec.count == 0)
                CHECK(upcall_poll(loop, -1) >= 0);
            CHECK(now_ns() - before >= times[i]);
            forget(&rec);

            uint64_t until = now_ns() + times[i];
            submit_one(loop, upcall_op_sleep_until(until), &rec);
            while (rec.count == 0)
                CHECK(upcall_poll(loop, round % 2 ? -1 : 300000) >= 0); /* also in turns that end before it */
            CHECK(now_ns() >= until);
            forget(&rec);
        }
    }
    free_loop(loop);
}

/* The time counts from submit, not from the turn that hears of it. */
TEST(time_counts_from_submit) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    upcall_id long_before = submit_one(loop, upcall_op_sleep(20 * UPCALL_MILLISECOND), &rec);
    pause_ms(30);
    upcall_id after = submit_one(loop, upcall_op_sleep(HOUR), &rec);
    start_all(loop);
    CHECK_EQ(final_of(&rec, long_before).result, 0); /* it was due when the loop first turned */
    CHECK_EQ(rec.count, 1);
    CHECK_EQ(upcall_cancel(loop, after), 0);
    run_finals(loop, &rec, 2);
    free_loop(loop);
    forget(&rec);
}

TEST(the_longest_times_are_accepted_and_wait) {
    static const uint64_t times[] = {UINT64_MAX, UINT64_MAX - 1, (uint64_t)INT64_MAX + 1, INT64_MAX, UINT64_MAX / 2 - 1,
                                     365 * 24 * HOUR};
    struct recorder rec = {0};
    upcall_id ids[2 * COUNT_OF(times)];
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(times); i++) {
        ids[2 * i] = submit_one(loop, upcall_op_sleep(times[i]), &rec);
        uint64_t until = times[i] > UINT64_MAX - now_ns() ? times[i] : now_ns() + times[i];
        ids[2 * i + 1] = submit_one(loop, upcall_op_sleep_until(until), &rec);
    }
    no_more(loop, &rec);
    CHECK_EQ(upcall_poll(loop, MS(30)), 0);
    ends_with(loop, upcall_op_sleep(UPCALL_MILLISECOND), 0); /* a short one is not held up by them */
    CHECK_EQ(rec.count, 0);
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    run_finals(loop, &rec, COUNT_OF(ids));
    check_finals(&rec, ids, COUNT_OF(ids));
    for (size_t i = 0; i < rec.count; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    free_loop(loop);
    forget(&rec);
}

TEST(a_deadline_of_the_longest_time_never_strikes) {
    upcall_loop *loop = new_loop();
    static const uint64_t times[] = {UINT64_MAX, (uint64_t)INT64_MAX + 1, INT64_MAX};
    for (size_t i = 0; i < COUNT_OF(times); i++) {
        upcall_op op = upcall_op_sleep(5 * UPCALL_MILLISECOND);
        op.timeout_ns = times[i];
        ends_with(loop, op, 0);
    }
    free_loop(loop);
}

/* ---- Many sleeps. ---- */

TEST(sleeps_end_in_the_order_of_their_times) {
    enum { COUNT = 500 };
    for (int until = 0; until < 2; until++) {
        struct recorder rec = {0};
        static upcall_op ops[COUNT];
        static upcall_id ids[COUNT];
        static uint64_t times[COUNT];
        upcall_loop *loop = new_loop();
        CHECK_EQ(upcall_poll(loop, 0), 0);
        uint64_t now = now_ns();
        for (size_t i = 0; i < COUNT; i++) {
            times[i] = (1 + i * 211 % COUNT) * 100 * UPCALL_MICROSECOND; /* each of 1 to COUNT once */
            ops[i] = until ? upcall_op_sleep_until(now + times[i]) : upcall_op_sleep(times[i]);
        }
        submit_many(loop, ops, COUNT, &rec, ids);
        run_finals(loop, &rec, COUNT);
        check_finals(&rec, ids, COUNT);
        uint64_t last = 0;
        for (size_t k = 0; k < COUNT; k++) {
            CHECK_EQ(rec.events[k].result, 0);
            for (size_t i = 0; i < COUNT; i++) {
                if (ids[i] == rec.events[k].id) {
                    CHECK(times[i] > last);
                    last = times[i];
                }
            }
        }
        free_loop(loop);
        forget(&rec);
    }
}

struct sleeper {
    struct recorder *rec;
    uint64_t due;
};

static void check_due(upcall_loop *loop, const upcall_event *event) {
    struct sleeper *sleeper = event->user;
    (void)loop;
    if (event->result == 0)
        CHECK(now_ns() >= sleeper->due);
    add_record(sleeper->rec, event);
}

TEST(thousands_of_sleeps_are_never_early_and_all_end) {
    enum { COUNT = 20000 };
    static struct sleeper sleepers[COUNT];
    static upcall_id ids[COUNT];
    struct recorder rec = {0};
    uint64_t seed = 7;
    size_t cancelled = 0, asked = 0;
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT; i++) {
        uint64_t time = chance(&seed) % (50 * UPCALL_MILLISECOND);
        upcall_op op = upcall_op_sleep(time);
        sleepers[i] = (struct sleeper){&rec, now_ns() + time};
        op.callback = check_due;
        op.user = &sleepers[i];
        CHECK_EQ(upcall_submit(loop, &op, 1, &ids[i]), 0);
        if (i % 1000 == 999)
            CHECK(upcall_poll(loop, 0) >= 0);
    }
    for (size_t i = 0; i < COUNT; i += 3)
        asked += upcall_cancel(loop, ids[i]) == 0;
    run_finals(loop, &rec, COUNT);
    check_finals(&rec, ids, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        CHECK(rec.events[i].result == 0 || rec.events[i].result == -ECANCELED);
        cancelled += rec.events[i].result == -ECANCELED;
    }
    CHECK(cancelled <= asked);
    free_loop(loop);
    forget(&rec);
}

/* A shorter time, asked for by another thread, wakes a loop that sleeps for a longer one. */
struct other_thread {
    upcall_loop *loop;
    struct recorder *rec;
    upcall_id id;
};

static void *sleep_from_here(void *arg) {
    struct other_thread *other = arg;
    pause_ms(20); /* the loop waits by now */
    other->id = submit_one(other->loop, upcall_op_sleep(UPCALL_MILLISECOND), other->rec);
    return NULL;
}

TEST(a_sleep_of_another_thread_wakes_the_loop) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    upcall_id hour = submit_one(loop, upcall_op_sleep(HOUR), &rec);
    start_all(loop);
    struct other_thread other = {loop, &rec, 0};
    pthread_t thread = start(sleep_from_here, &other);
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; rec.count == 0 && now_ns() < limit;)
        CHECK(upcall_poll(loop, PATIENCE_NS) >= 0);
    join(thread);
    CHECK_EQ(final_of(&rec, other.id).result, 0);
    CHECK_EQ(upcall_cancel(loop, hour), 0);
    run_finals(loop, &rec, 2);
    free_loop(loop);
    forget(&rec);
}

/* Behind a link the time starts when the operation may start. */
TEST(linked_sleeps_follow_each_other) {
    struct recorder rec = {0};
    upcall_op ops[3];
    upcall_id ids[3];
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < 3; i++) {
        ops[i] = upcall_op_sleep(10 * UPCALL_MILLISECOND);
        ops[i].flags = i < 2 ? UPCALL_LINK : 0;
    }
    uint64_t before = now_ns();
    submit_many(loop, ops, 3, &rec, ids);
    run_finals(loop, &rec, 3);
    CHECK(now_ns() - before >= 30 * UPCALL_MILLISECOND);
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(rec.events[i].id, ids[i]);
    free_loop(loop);
    forget(&rec);
}

/* ---- Ticks. ---- */

struct ticker {
    struct recorder rec;
    uint64_t start, period, elapsed;
    int block_ms; /* in the first callback */
};

/* The k-th tick is at start + k periods, never before; missed ones merge. */
static void tick(upcall_loop *loop, const upcall_event *event) {
    struct ticker *ticker = event->user;
    (void)loop;
    add_record(&ticker->rec, event);
    if (!(event->flags & UPCALL_MORE))
        return;
    CHECK(event->result >= 1);
    ticker->elapsed += (uint64_t)event->result;
    CHECK(now_ns() - ticker->start >= ticker->elapsed * ticker->period);
    if (ticker->block_ms && ticker->rec.count == 1)
        pause_ms(ticker->block_ms);
}

static upcall_id start_ticks(upcall_loop *loop, struct ticker *ticker, uint64_t period) {
    upcall_id id;
    upcall_op op = upcall_op_sleep(period);
    op.flags = UPCALL_MULTISHOT;
    op.callback = tick;
    op.user = ticker;
    ticker->start = now_ns();
    ticker->period = period;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    return id;
}

static void end_ticks(upcall_loop *loop, struct ticker *ticker, upcall_id id) {
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &ticker->rec, 1);
    CHECK_EQ(final_of(&ticker->rec, id).result, -ECANCELED);
    CHECK_EQ(final_of(&ticker->rec, id).flags, 0);
    CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
    no_more(loop, &ticker->rec);
    forget(&ticker->rec);
}

TEST(a_repeating_sleep_ticks_until_it_is_cancelled) {
    upcall_loop *loop = new_loop();
    static const uint64_t periods[] = {100000, 1000000, 3333333};
    for (size_t i = 0; i < COUNT_OF(periods); i++) {
        struct ticker ticker = {0};
        upcall_id id = start_ticks(loop, &ticker, periods[i]);
        run_until(loop, &ticker.rec, 20);
        CHECK(ticker.elapsed >= 20);
        end_ticks(loop, &ticker, id);
    }
    free_loop(loop);
}

TEST(missed_ticks_merge) {
    struct ticker ticker = {.block_ms = 60};
    upcall_loop *loop = new_loop();
    upcall_id id = start_ticks(loop, &ticker, 10 * UPCALL_MILLISECOND);
    run_until(loop, &ticker.rec, 2);
    CHECK(ticker.rec.events[1].result >= 5); /* those of the 60 ms in one event */
    end_ticks(loop, &ticker, id);
    free_loop(loop);
}

/* A period shorter than any turn gives one event per turn, not a loop that never returns. */
TEST(the_shortest_period_does_not_starve_the_caller) {
    struct ticker ticker = {0};
    upcall_loop *loop = new_loop();
    upcall_id id = start_ticks(loop, &ticker, 1);
    for (int i = 0; i < 50; i++)
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    CHECK(ticker.rec.count >= 25 && ticker.rec.count <= 50);
    ends_with(loop, upcall_op_nop(), 0);
    end_ticks(loop, &ticker, id);
    free_loop(loop);
}

TEST(a_repeating_sleep_is_cancelled_before_it_starts) {
    for (int owned = 0; owned < 2; owned++) {
        struct ticker ticker = {0};
        upcall_loop *loop = new_loop();
        if (owned)
            CHECK_EQ(upcall_poll(loop, 0), 0);
        upcall_id id = start_ticks(loop, &ticker, 1);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &ticker.rec, 1);
        CHECK_EQ(ticker.rec.count, 1);
        CHECK_EQ(final_of(&ticker.rec, id).result, -ECANCELED);
        forget(&ticker.rec);
        free_loop(loop);
    }
}

/* Its deadline is an idle limit, and ticks are events; a period longer than the limit lets it strike. */
TEST(the_deadline_of_a_repeating_sleep_is_an_idle_limit) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_sleep(HOUR);
    op.flags = UPCALL_MULTISHOT;
    op.timeout_ns = 20 * UPCALL_MILLISECOND;
    uint64_t before = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - before >= 20 * UPCALL_MILLISECOND);
    CHECK_EQ(rec.count, 1);
    CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
    CHECK_EQ(final_of(&rec, id).flags, UPCALL_EXPIRED);
    free_loop(loop);
    forget(&rec);
}

TEST(ticks_can_be_reaped) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    upcall_id id;
    upcall_op op = upcall_op_sleep(UPCALL_MILLISECOND);
    op.flags = UPCALL_MULTISHOT;
    uint64_t before = now_ns(), elapsed = 0;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    reap_until(loop, &rec, 5);
    for (size_t i = 0; i < rec.count; i++) {
        CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
        CHECK(rec.events[i].result >= 1);
        elapsed += (uint64_t)rec.events[i].result;
    }
    CHECK(now_ns() - before >= elapsed * UPCALL_MILLISECOND);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    while (rec.finals == 0)
        reap_until(loop, &rec, rec.count + 1);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    free_loop(loop);
    forget(&rec);
}
