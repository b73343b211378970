/* upcall_op_futex_wait(), upcall_op_futex_wake(): among operations, and with threads that wait and wake by futex(2). */
#include "op_support.h"

#include <linux/futex.h>
#include <stdatomic.h>

#define ANY UINT64_C(0xffffffff)

static upcall_op wait_on(uint32_t *word, uint32_t value) {
    return upcall_op_futex_wait(word, value, ANY, 0);
}

static long wake_by_call(uint32_t *word, int count, uint32_t mask, int private) {
    return syscall(SYS_futex, word, FUTEX_WAKE_BITSET | private, count, NULL, NULL, mask);
}

/* As with any futex: the value first, then the wake. */
static void change_and_wake(uint32_t *word) {
    __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
    CHECK(wake_by_call(word, INT_MAX, UINT32_MAX, 0) >= 0);
}

/* Wakes by call until so many were woken: a waiter on a thread of its own arrives a little later. */
static void wake_exactly(upcall_loop *loop, uint32_t *word, int count, uint32_t mask, int private) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (count > 0) {
        long woken = wake_by_call(word, count, mask, private);
        CHECK(woken >= 0 && woken <= count);
        count -= (int)woken;
        if (woken == 0) {
            CHECK(now_ns() < limit);
            CHECK(upcall_poll(loop, 0) >= 0);
            pause_ms(1);
        }
    }
}

/* ---- Names and arguments. ---- */

static uint32_t words[1024];

TEST(futex_wait_is_known) { is_known(UPCALL_OP_FUTEX_WAIT, "futex_wait"); }
TEST(futex_wake_is_known) { is_known(UPCALL_OP_FUTEX_WAKE, "futex_wake"); }
TEST(futex_wait_refuses_strange_fields) { refuses_strange_fields(wait_on(words, 0), 0); }
TEST(futex_wake_refuses_strange_fields) { refuses_strange_fields(upcall_op_futex_wake(words, 1, ANY, 0), 0); }

TEST(bad_arguments_are_refused) {
    static const uint64_t masks[] = {0, UINT64_C(1) << 32, UINT64_MAX};
    static const uint32_t flags[] = {1, 3, 4, 8, 64, 129, 256, UINT32_MAX};
    upcall_loop *loop = new_loop();
    uint32_t *odd[] = {(uint32_t *)((char *)words + 1), (uint32_t *)((char *)words + 2)};
    CHECK_EQ(UPCALL_FUTEX_PRIVATE, FUTEX_PRIVATE_FLAG);
    refused(loop, wait_on(NULL, 0), EINVAL, "addr");
    refused(loop, upcall_op_futex_wake(NULL, 1, ANY, 0), EINVAL, "addr");
    for (size_t i = 0; i < COUNT_OF(odd); i++) {
        refused(loop, wait_on(odd[i], 0), EINVAL, "addr");
        refused(loop, upcall_op_futex_wake(odd[i], 1, ANY, 0), EINVAL, "addr");
    }
    for (size_t i = 0; i < COUNT_OF(masks); i++) {
        refused(loop, upcall_op_futex_wait(words, 0, masks[i], 0), EINVAL, "mask");
        refused(loop, upcall_op_futex_wake(words, 1, masks[i], 0), EINVAL, "mask");
    }
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        refused(loop, upcall_op_futex_wait(words, 0, ANY, flags[i]), EINVAL, "flags");
        refused(loop, upcall_op_futex_wake(words, 1, ANY, flags[i]), EINVAL, "flags");
    }
    refused(loop, upcall_op_futex_wake(words, 0, ANY, 0), EINVAL, "count");
    refused(loop, upcall_op_futex_wake(words, UINT32_C(1) << 31, ANY, 0), EINVAL, "count");
    refused(loop, upcall_op_futex_wake(words, UINT32_MAX, ANY, 0), EINVAL, "count");
    free_loop(loop);
}

TEST(memory_that_is_not_there_is_efault) {
    upcall_loop *loop = new_loop();
    uint32_t *gone = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(gone != MAP_FAILED);
    ends_with(loop, wait_on(gone, 0), -EFAULT);
    ends_with(loop, upcall_op_futex_wait(gone, 0, ANY, UPCALL_FUTEX_PRIVATE), -EFAULT);
    ends_with(loop, upcall_op_futex_wake(gone, 1, ANY, 0), -EFAULT);
    ends_with(loop, upcall_op_futex_wake(gone, 1, ANY, UPCALL_FUTEX_PRIVATE), 0); /* only a name */
    free_loop(loop);
}

/* ---- What every operation promises. ---- */

static uint32_t *word_of(struct scene *scene) {
    return (uint32_t *)scene->data;
}

static void no_descriptor(struct scene *scene) {
    *word_of(scene) = 5;
}

static upcall_op wait_for_change(struct scene *scene) { return wait_on(word_of(scene), 5); }
static upcall_op wait_private(struct scene *scene) {
    return upcall_op_futex_wait(word_of(scene), 5, ANY, UPCALL_FUTEX_PRIVATE);
}
static upcall_op wake_nobody(struct scene *scene) { return upcall_op_futex_wake(word_of(scene), 3, ANY, 0); }

static void change(struct scene *scene) { change_and_wake(word_of(scene)); }
static void change_private(struct scene *scene) {
    __atomic_add_fetch(word_of(scene), 1, __ATOMIC_SEQ_CST);
    CHECK(wake_by_call(word_of(scene), INT_MAX, UINT32_MAX, FUTEX_PRIVATE_FLAG) >= 0);
}

/* Woken, or too late to wait. */
static void changed(struct scene *scene, struct record final) {
    CHECK(final.result == 0 || final.result == 1);
    CHECK_EQ(*word_of(scene), 6);
}

static void woke_nobody(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 0);
    CHECK_EQ(*word_of(scene), 5);
}

static void nobody_waits(struct scene *scene) {
    CHECK_EQ(wake_by_call(word_of(scene), INT_MAX, UINT32_MAX, 0), 0);
    CHECK_EQ(wake_by_call(word_of(scene), INT_MAX, UINT32_MAX, FUTEX_PRIVATE_FLAG), 0);
}

static const struct subject waits = {.kind = UPCALL_OP_FUTEX_WAIT, .set_up = no_descriptor, .make = wait_for_change,
                                     .allow = change, .done = changed, .intact = nobody_waits};
static const struct subject waits_privately = {.kind = UPCALL_OP_FUTEX_WAIT, .set_up = no_descriptor,
                                               .make = wait_private, .allow = change_private, .done = changed,
                                               .intact = nobody_waits};
static const struct subject wakes = {.kind = UPCALL_OP_FUTEX_WAKE, .set_up = no_descriptor, .make = wake_nobody,
                                     .done = woke_nobody, .intact = nobody_waits};
PROMISES_OF_WAITING_IN_MODE(waits, any, false)
PROMISES_OF_WAITING_IN_MODE(waits_privately, any, false)
PROMISES_IN_MODE(wakes, any, false)

/* ---- Results. ---- */

TEST(another_value_is_1_and_not_an_error) {
    static const uint32_t flags[] = {0, UPCALL_FUTEX_PRIVATE, 2 /* FUTEX2_SIZE_U32 */, 2 | UPCALL_FUTEX_PRIVATE};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        words[0] = 7;
        ends_with(loop, upcall_op_futex_wait(words, 8, ANY, flags[i]), 1);
        words[0] = UINT32_MAX;
        ends_with(loop, upcall_op_futex_wait(words, 0, 1, flags[i]), 1);
    }
    free_loop(loop);
}

TEST(the_value_is_read_by_poll_and_not_by_submit) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    words[0] = 1;
    CHECK_EQ(upcall_poll(loop, 0), 0);
    submit_one(loop, wait_on(words, 1), &rec);
    words[0] = 2;
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 1);
    free_loop(loop);
}

TEST(a_woken_one_is_0) {
    for (int private = 0; private < 2; private++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        uint32_t flag = private ? UPCALL_FUTEX_PRIVATE : 0;
        submit_one(loop, upcall_op_futex_wait(words, 0, ANY, flag), &rec);
        submit_one(loop, upcall_op_futex_wait(words, 0, ANY, flag | 2), &rec);
        start_all(loop);
        wake_exactly(loop, words, 2, UINT32_MAX, private ? FUTEX_PRIVATE_FLAG : 0);
        run_finals(loop, &rec, 2);
        CHECK_EQ(rec.events[0].result, 0);
        CHECK_EQ(rec.events[1].result, 0);
        free_loop(loop);
        forget(&rec);
    }
}

TEST(masks_choose_who_is_woken) {
    upcall_loop *loop = new_loop();
    struct recorder a = {0}, b = {0};
    submit_one(loop, upcall_op_futex_wait(words, 0, 1, 0), &a);
    submit_one(loop, upcall_op_futex_wait(words, 0, UINT64_C(1) << 31, 0), &b);
    start_all(loop);
    wake_exactly(loop, words, 1, UINT32_C(1) << 31, 0);
    run_finals(loop, &b, 1);
    CHECK_EQ(b.events[0].result, 0);
    ends_with(loop, upcall_op_futex_wake(words, 10, 2, 0), 0);
    CHECK_EQ(a.count, 0);
    wake_exactly(loop, words, 1, 3, 0);
    run_finals(loop, &a, 1);
    CHECK_EQ(a.events[0].result, 0);
    free_loop(loop);
}

/* Submits wakes until so many were woken, at most `each` by one of them. */
static void wake_by_op(upcall_loop *loop, uint32_t *word, uint32_t each, int64_t count) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (count > 0) {
        int64_t woken = complete(loop, upcall_op_futex_wake(word, each, ANY, 0)).result;
        CHECK(woken >= 0 && woken <= (int64_t)each);
        count -= woken;
        CHECK(now_ns() < limit);
        if (woken == 0)
            pause_ms(1);
    }
    CHECK_EQ(count, 0);
}

TEST(a_wake_wakes_at_most_count_and_tells_how_many) {
    enum { N = 5 };
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[N];
    for (int i = 0; i < N; i++)
        ids[i] = submit_one(loop, wait_on(words, 0), &rec);
    start_all(loop);
    wake_by_op(loop, words, 1, 1);
    run_finals(loop, &rec, 1);
    no_more(loop, &rec);
    wake_by_op(loop, words, 1, 1);
    run_finals(loop, &rec, 2);
    no_more(loop, &rec);
    wake_by_op(loop, words, INT32_MAX, 3);
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    for (int i = 0; i < N; i++)
        CHECK_EQ(final_of(&rec, ids[i]).result, 0);
    ends_with(loop, upcall_op_futex_wake(words, 1, ANY, 0), 0);
    free_loop(loop);
}

static void *waits_by_call(void *arg) {
    while (__atomic_load_n((uint32_t *)arg, __ATOMIC_SEQ_CST) == 0)
        syscall(SYS_futex, arg, FUTEX_WAIT_BITSET, 0, NULL, NULL, UINT32_MAX);
    return NULL;
}

TEST(an_operation_wakes_a_thread) {
    upcall_loop *loop = new_loop();
    words[0] = 0;
    pthread_t thread = start(waits_by_call, words);
    wake_by_op(loop, words, 1, 1); /* it waits again: the value is the same */
    __atomic_store_n(words, 1, __ATOMIC_SEQ_CST);
    CHECK(complete(loop, upcall_op_futex_wake(words, 1, ANY, 0)).result >= 0);
    join(thread);
    free_loop(loop);
}

static void *changes_and_wakes(void *arg) {
    pause_ms(20);
    change_and_wake(arg);
    return NULL;
}

TEST(a_thread_wakes_the_sleeping_loop) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    words[0] = 0;
    submit_one(loop, wait_on(words, 0), &rec);
    pthread_t thread = start(changes_and_wakes, words);
    CHECK_EQ(upcall_poll(loop, -1), 1);
    CHECK(rec.events[0].result == 0 || rec.events[0].result == 1);
    join(thread);
    free_loop(loop);
}

TEST(shared_memory_connects_processes) {
    uint32_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        submit_one(loop, wait_on(&shared[0], 0), &rec);
        run_finals(loop, &rec, 1);
        __atomic_store_n(&shared[1], 1, __ATOMIC_SEQ_CST);
        CHECK(complete(loop, upcall_op_futex_wake(&shared[1], 1, ANY, 0)).result >= 0);
        free_loop(loop);
        _exit(0);
    }
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, wait_on(&shared[1], 0), &rec);
    start_all(loop);
    pause_ms(10);
    __atomic_store_n(&shared[0], 1, __ATOMIC_SEQ_CST);
    CHECK(complete(loop, upcall_op_futex_wake(&shared[0], 1, ANY, 0)).result >= 0);
    run_finals(loop, &rec, 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    free_loop(loop);
}

/* ---- No wake is lost. ---- */

struct waker {
    uint32_t *word;
    atomic_long woken;
    atomic_bool stop;
};

static void *wakes_now_and_then(void *arg) {
    struct waker *waker = arg;
    while (!atomic_load(&waker->stop)) {
        atomic_fetch_add(&waker->woken, wake_by_call(waker->word, 1, UINT32_MAX, 0));
        sched_yield();
    }
    return NULL;
}

/* A wake that hit an operation is told by that operation, cancelled meanwhile or not. */
TEST_FOR(a_wake_and_a_cancel_at_once_lose_nothing, 60) {
    upcall_loop *loop = new_loop();
    struct waker waker = {.word = words};
    pthread_t thread = start(wakes_now_and_then, &waker);
    long told = 0;
    for (int round = 0; round < 200; round++) {
        struct recorder rec = {0};
        upcall_id ids[4];
        for (int i = 0; i < 4; i++)
            ids[i] = submit_one(loop, wait_on(words, 0), &rec);
        CHECK(upcall_poll(loop, 0) >= 0);
        for (int i = 0; i < 4; i++) {
            int rc = upcall_cancel(loop, ids[i]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        run_finals(loop, &rec, 4);
        check_finals(&rec, ids, 4);
        for (int i = 0; i < 4; i++) {
            CHECK(rec.events[i].result == 0 || rec.events[i].result == -ECANCELED);
            told += rec.events[i].result == 0;
        }
        forget(&rec);
    }
    atomic_store(&waker.stop, true);
    join(thread);
    CHECK_EQ(told, atomic_load(&waker.woken));
    free_loop(loop);
}

TEST(a_cancelled_one_leaves_the_wake_to_the_next) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id first = submit_one(loop, wait_on(words, 0), &rec), second = submit_one(loop, wait_on(words, 0), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, first), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, first).result, -ECANCELED);
    wake_exactly(loop, words, 1, UINT32_MAX, 0);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, second).result, 0);
    free_loop(loop);
}

TEST(a_storm_of_signals_interrupts_nothing) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    start_alarms();
    submit_one(loop, wait_on(words, 0), &rec);
    for (uint64_t until = now_ns() + (uint64_t)MS(100); now_ns() < until;)
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    CHECK_EQ(rec.count, 0);
    wake_exactly(loop, words, 1, UINT32_MAX, 0);
    run_finals(loop, &rec, 1);
    stop_alarms();
    CHECK_EQ(rec.events[0].result, 0);
    free_loop(loop);
}

/* ---- Order, many, and the end of a loop. ---- */

TEST(links_and_drains) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    words[0] = 0;
    upcall_op ops[] = {wait_on(words, 0), upcall_op_nop(), upcall_op_futex_wake(words, 1, ANY, 0)};
    upcall_id ids[3];
    ops[0].flags = UPCALL_LINK;
    ops[2].flags = UPCALL_DRAIN;
    submit_many(loop, ops, 3, &rec, ids);
    no_more(loop, &rec);
    CHECK_EQ(rec.count, 0);
    change_and_wake(words);
    run_finals(loop, &rec, 3);
    CHECK(final_of(&rec, ids[0]).result >= 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    CHECK_EQ(final_of(&rec, ids[2]).result, 0);
    CHECK_EQ(order_of(&rec, ids[2]), 2);
    free_loop(loop);
}

TEST(many_wait_and_files_are_still_read) {
    enum { N = 30 };
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[N];
    char data[64];
    int file = temp_file(sizeof data);
    for (int i = 0; i < N; i++)
        ids[i] = submit_one(loop, wait_on(&words[i], 0), &rec);
    start_all(loop);
    CHECK_EQ(complete(loop, upcall_op_pread(file, data, sizeof data, 0)).result, sizeof data);
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
    for (int i = 0; i < N / 2; i++)
        wake_exactly(loop, &words[i], 1, UINT32_MAX, 0);
    run_finals(loop, &rec, N / 2);
    CHECK_EQ(upcall_cancel_all(loop), N - N / 2);
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    for (int i = 0; i < N; i++)
        CHECK_EQ(final_of(&rec, ids[i]).result, i < N / 2 ? 0 : -ECANCELED);
    close(file);
    free_loop(loop);
}

TEST(freeing_the_loop_ends_it_and_nothing_waits_any_more) {
    for (int i = 0; i < 4; i++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        submit_one(loop, wait_on(words, 0), &rec);
        if (i)
            start_all(loop);
        if (i > 1)
            pause_ms(5);
        free_loop(loop);
        CHECK_EQ(rec.count, 1);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        CHECK_EQ(wake_by_call(words, INT_MAX, UINT32_MAX, 0), 0);
        forget(&rec);
    }
}
