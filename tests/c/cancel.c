/* Cancelling: asked for in every state of an operation, answered by its own one final event. */
#include "check.h"
#include <stdatomic.h>

struct gate {
    atomic_int entered, open;
};
static int64_t pass_gate(void *arg) {
    struct gate *gate = arg;
    atomic_fetch_add(&gate->entered, 1);
    while (!atomic_load(&gate->open))
        pause_ms(1);
    return 42;
}

/* ---- Operations that wait, one of each kind. ---- */

static char data[65536];
static struct iovec parts[2] = {{data, 10}, {data + 10, 10}};

static size_t make_waiting(upcall_op ops[32]) {
    size_t n = 0;
    static struct msghdr in, out;
    int quiet_pipe[2], full_pipe[2], pair[2], full_pair[2];
    struct sockaddr_in address;
    pipe_pair(quiet_pipe);
    pipe_pair(full_pipe);
    tcp_pair(pair);
    unix_pair(full_pair);
    fill_up(full_pipe[1]);
    fill_up(full_pair[1]);
    in = (struct msghdr){.msg_iov = parts, .msg_iovlen = 2};
    out = (struct msghdr){.msg_iov = parts, .msg_iovlen = 2};
    ops[n++] = upcall_op_read(quiet_pipe[0], data, 10);
    ops[n++] = upcall_op_readv(quiet_pipe[0], parts, 2);
    ops[n++] = upcall_op_read(pair[0], data, 10);
    ops[n++] = upcall_op_recv(pair[0], data, 10, 0);
    ops[n++] = upcall_op_recvmsg(pair[0], &in, 0);
    ops[n++] = upcall_op_write(full_pipe[1], data, sizeof data);
    ops[n++] = upcall_op_writev(full_pipe[1], parts, 2);
    ops[n++] = upcall_op_write(full_pair[1], data, sizeof data);
    ops[n++] = upcall_op_send(full_pair[1], data, sizeof data, 0);
    ops[n++] = upcall_op_sendmsg(full_pair[1], &out, 0);
    ops[n++] = upcall_op_accept(tcp_listener(&address, 0, 4), NULL, NULL, 0);
    ops[n++] = upcall_op_accept(set_nonblocking(tcp_listener(&address, 0, 4)), NULL, NULL, 0);
    ops[n++] = upcall_op_poll(quiet_pipe[0], POLLIN);
    ops[n++] = upcall_op_poll(full_pipe[1], POLLOUT);
    ops[n++] = upcall_op_poll(pair[0], POLLIN);
    ops[n++] = upcall_op_sleep(3600 * UPCALL_SECOND);
    ops[n++] = upcall_op_sleep_until(now_ns() + 3600 * UPCALL_SECOND);
    for (size_t i = 0; i < 5; i++) { /* and in full */
        ops[n] = ops[i == 2 ? 5 : i];
        ops[n++].flags = UPCALL_FULL;
    }
    return n;
}

static void cancel_each(bool started, int times) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op ops[32];
    upcall_id ids[32];
    size_t n = make_waiting(ops);
    for (size_t i = 0; i < n; i++) { /* one after another … */
        rec.count = rec.finals = 0;
        ids[i] = submit_one(loop, ops[i], &rec);
        if (started) {
            start_all(loop);
            pause_ms(2);
            start_all(loop);
        }
        CHECK_EQ(rec.count, 0);
        for (int k = 0; k < times; k++) {
            int rc = upcall_cancel(loop, ids[i]);
            CHECK(rc == 0 || (k > 0 && rc == -ENOENT));
        }
        CHECK_EQ(rec.count, 0); /* never inside cancel */
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, ids[i]).transferred, 0);
        CHECK_EQ(final_of(&rec, ids[i]).flags, 0);
        CHECK_EQ(final_of(&rec, ids[i]).kind, ops[i].kind);
        CHECK_EQ(upcall_cancel(loop, ids[i]), -ENOENT);
    }
    quiet(loop, &rec);
    rec.count = rec.finals = 0; /* … and all together, last first */
    submit_many(loop, ops, n, &rec, ids);
    if (started)
        start_all(loop);
    for (size_t i = n; i-- > 0;)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    CHECK_EQ(rec.count, 0);
    run_finals(loop, &rec, n);
    check_finals(&rec, ids, n);
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    quiet(loop, &rec);
    free_loop(loop);
}

TEST(an_operation_cancelled_while_it_waits_has_exactly_one_final_event) { /* hazards row 5 */
    cancel_each(true, 1);
}

TEST(an_operation_cancelled_before_it_starts_has_exactly_one_final_event) { /* hazards row 5 */
    cancel_each(false, 1);
}

TEST(an_operation_cancelled_twice_has_exactly_one_final_event) { /* hazards row 5 */
    cancel_each(true, 2);
    cancel_each(false, 3);
}

TEST_FOR(a_cancel_reaches_its_operation_at_any_moment_of_its_start, 60) { /* hazards row 5 */
    upcall_loop *loop = new_loop();
    upcall_op ops[32];
    uint64_t seed = 12;
    size_t n = make_waiting(ops);
    for (int round = 0; round < 10000; round++) {
        struct recorder rec = {0};
        size_t which = chance(&seed) % (n + 10); /* accept on a blocking listener more often: it needs a thread */
        upcall_id id = submit_one(loop, ops[which < n ? which : 10], &rec);
        CHECK(upcall_poll(loop, 0) >= 0);
        for (uint64_t spin = chance(&seed) % 20000; spin > 0; spin--)
            __asm__ volatile("");
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(a_cancelled_read_takes_nothing) { /* hazards row 6 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        char in[8] = "-------", out[8];
        upcall_id id = submit_one(loop, upcall_op_read(fds[0], in, sizeof in), &rec);
        start_all(loop);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        write_all(fds[1], "abcdefg", 8);
        quiet(loop, &rec);
        CHECK(memcmp(in, "-------", 8) == 0);
        CHECK(is_readable(fds[0], 5000));
        CHECK_EQ(read(fds[0], out, sizeof out), 8);
        CHECK(memcmp(out, "abcdefg", 8) == 0);
        close_pair(fds);
        free_loop(loop);
    }
}

TEST(cancel_after_the_final_event_is_enoent) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, upcall_op_nop(), &rec);
    run_finals(loop, &rec, 1);
    CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
    CHECK_STR_CONTAINS(upcall_last_error(), "flight");
    quiet(loop, &rec);
    free_loop(loop);
}

TEST(a_cancel_that_comes_too_late_leaves_the_result) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(4096), completed = 0;
    upcall_id ids[200];
    for (int i = 0; i < 200; i++) {
        upcall_op op = i % 2 ? upcall_op_nop() : upcall_op_pread(file, data, 4096, 0);
        ids[i] = submit_one(loop, op, &rec);
        if (i % 4 < 2)
            CHECK(upcall_poll(loop, 0) >= 0);
        int rc = upcall_cancel(loop, ids[i]);
        CHECK(rc == 0 || rc == -ENOENT);
        if (rc == -ENOENT)
            CHECK_EQ(events_of(&rec, ids[i]), 1);
    }
    run_finals(loop, &rec, 200);
    check_finals(&rec, ids, 200);
    for (int i = 0; i < 200; i++) {
        struct record final = final_of(&rec, ids[i]);
        CHECK(final.result == -ECANCELED || final.result == (i % 2 ? 0 : 4096));
        completed += final.result >= 0;
        if (final.result == -ECANCELED)
            CHECK_EQ(final.transferred, 0);
    }
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(stats.completed, completed);
    CHECK_EQ(stats.cancelled, 200 - completed);
    free_loop(loop);
}

TEST(forged_ids_are_enoent_and_hit_nothing) { /* hazards row 7 */
    upcall_loop *loop = new_loop(), *other = new_loop();
    struct recorder rec = {0}, foreign = {0};
    upcall_id ids[40];
    uint64_t state = 7;
    static const upcall_id forged[] = {0, 1, 2, UINT64_MAX, UINT64_MAX - 1, UINT64_C(1) << 63, UINT32_MAX};
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < COUNT_OF(forged); i++)
            CHECK_EQ(upcall_cancel(loop, forged[i]), -ENOENT);
        for (int i = 0; i < 10000; i++)
            CHECK_EQ(upcall_cancel(loop, chance(&state)), -ENOENT);
        for (size_t i = 0; round == 0 && i < COUNT_OF(ids); i++)
            ids[i] = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    }
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        for (int bit = 0; bit < 64; bit++) {
            upcall_id near = ids[i] ^ UINT64_C(1) << bit;
            bool real = false;
            for (size_t k = 0; k < COUNT_OF(ids); k++)
                real = real || ids[k] == near;
            if (!real)
                CHECK_EQ(upcall_cancel(loop, near), -ENOENT);
        }
    upcall_id id = submit_one(other, upcall_op_sleep(3600 * UPCALL_SECOND), &foreign);
    CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
    CHECK_EQ(upcall_cancel(other, ids[0]), -ENOENT);
    quiet(loop, &rec);
    CHECK_EQ(in_flight(loop), 40);
    CHECK_EQ(in_flight(other), 1);
    free_loop(loop);
    free_loop(other);
    check_finals(&rec, ids, 40);
}

TEST(an_old_id_never_hits_a_new_operation) { /* hazards row 7 */
    upcall_config config = default_config();
    config.max_operations = 2; /* the same slots again and again */
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    enum { N = 3000 };
    static upcall_id ids[N];
    for (int i = 0; i < N; i++) {
        rec.count = rec.finals = 0;
        ids[i] = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
        if (i % 3 == 0)
            CHECK_EQ(upcall_poll(loop, 0), 0);
        for (int k = i > 20 ? i - 20 : 0; k < i; k++)
            CHECK_EQ(upcall_cancel(loop, ids[k]), -ENOENT);
        if (i % 100 == 0)
            quiet(loop, &rec);
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
    }
    qsort(ids, N, sizeof *ids, compare_ids);
    for (int i = 1; i < N; i++)
        CHECK(ids[i] != ids[i - 1]);
    free_loop(loop);
}

/* ---- From callbacks and other threads. ---- */

static upcall_id target;
static bool inside_cancel;
static void cancel_target(upcall_loop *loop, const upcall_event *event) {
    inside_cancel = true;
    CHECK_EQ(upcall_cancel(loop, target), 0);
    CHECK_EQ(upcall_cancel(loop, event->id), event->flags & UPCALL_MORE ? 0 : -ENOENT);
    inside_cancel = false;
    record(loop, event);
}
static void record_outside(upcall_loop *loop, const upcall_event *event) {
    CHECK(!inside_cancel);
    record(loop, event);
}

TEST(a_callback_may_cancel_another_operation) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_sleep(3600 * UPCALL_SECOND);
    op.callback = record_outside;
    op.user = &rec;
    target = submit_one(loop, op, &rec);
    op = upcall_op_nop();
    op.callback = cancel_target;
    op.user = &rec;
    upcall_id nop = submit_one(loop, op, &rec);
    run_finals(loop, &rec, 2);
    CHECK_EQ(rec.events[0].id, nop);
    CHECK_EQ(rec.events[1].id, target);
    CHECK_EQ(rec.events[1].result, -ECANCELED);
    quiet(loop, &rec);
    free_loop(loop);
}

static void cancel_self(upcall_loop *loop, const upcall_event *event) {
    struct recorder *rec = event->user;
    CHECK_EQ(upcall_cancel(loop, event->id), event->flags & UPCALL_MORE ? 0 : -ENOENT);
    add_record(rec, event);
}

TEST(a_callback_may_cancel_its_own_operation) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_sleep(UPCALL_MILLISECOND);
    op.flags = UPCALL_MULTISHOT;
    op.callback = cancel_self;
    op.user = &rec;
    upcall_id id = submit_one(loop, op, &rec);
    run_finals(loop, &rec, 1);
    CHECK(rec.count >= 2);
    CHECK(rec.events[0].flags & UPCALL_MORE);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    quiet(loop, &rec);
    free_loop(loop);
}

/* Ready together in one turn: the first one's callback cancels the others, which may or may not be too late. */
static upcall_id crowd[50];
static void cancel_crowd(upcall_loop *loop, const upcall_event *event) {
    for (size_t i = 0; i < COUNT_OF(crowd); i++) {
        int rc = upcall_cancel(loop, crowd[i]);
        CHECK(rc == 0 || rc == -ENOENT);
        if (crowd[i] == event->id)
            CHECK_EQ(rc, -ENOENT);
    }
    record(loop, event);
}

TEST(a_callback_may_cancel_what_is_ready_in_the_same_turn) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    write_all(fds[1], "x", 1);
    for (int round = 0; round < 20; round++) {
        struct recorder rec = {0};
        upcall_op ops[COUNT_OF(crowd)];
        for (size_t i = 0; i < COUNT_OF(crowd); i++) {
            ops[i] = i % 2 ? upcall_op_nop() : upcall_op_poll(fds[0], POLLIN);
            ops[i].callback = cancel_crowd;
            ops[i].user = &rec;
        }
        submit_many(loop, ops, COUNT_OF(crowd), &rec, crowd);
        run_finals(loop, &rec, COUNT_OF(crowd));
        check_finals(&rec, crowd, COUNT_OF(crowd));
        for (size_t i = 0; i < COUNT_OF(crowd); i++) {
            struct record final = final_of(&rec, crowd[i]);
            CHECK(final.result == -ECANCELED || final.result == (i % 2 ? 0 : POLLIN));
        }
        CHECK(rec.events[0].result >= 0);
        quiet(loop, &rec);
        forget(&rec);
    }
    free_loop(loop);
}

static void *cancel_soon(void *loop) {
    pause_ms(20);
    CHECK_EQ(upcall_cancel(loop, target), 0);
    return NULL;
}

TEST(another_thread_may_cancel) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    pipe_pair(fds);
    target = submit_one(loop, upcall_op_read(fds[0], data, 1), &rec);
    pthread_t thread = start(cancel_soon, loop);
    uint64_t before = now_ns();
    while (rec.finals == 0) /* asleep without limit: the cancel must wake it */
        CHECK(upcall_poll(loop, -1) >= 0);
    CHECK(now_ns() - before < 10 * UPCALL_SECOND);
    CHECK_EQ(final_of(&rec, target).result, -ECANCELED);
    join(thread);
    free_loop(loop);
}

struct racer {
    upcall_loop *loop;
    upcall_id *ids;
    size_t count;
    uint64_t seed;
    atomic_size_t *asked;
};
static void *race_cancels(void *arg) {
    struct racer *racer = arg;
    for (size_t i = 0; i < racer->count; i++) {
        int rc = upcall_cancel(racer->loop, racer->ids[chance(&racer->seed) % racer->count]);
        CHECK(rc == 0 || rc == -ENOENT);
        atomic_fetch_add(racer->asked, rc == 0);
    }
    return NULL;
}

TEST(threads_racing_to_cancel_get_one_final_event) { /* hazards row 6 */
    enum { N = 2000, THREADS = 3 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    atomic_size_t asked = 0;
    int fds[2];
    unix_pair(fds);
    for (int i = 0; i < N; i++)
        ops[i] = i % 4 == 0   ? upcall_op_sleep((uint64_t)i * 1000)
                 : i % 4 == 1 ? upcall_op_poll(fds[0], POLLIN)
                 : i % 4 == 2 ? upcall_op_nop()
                              : upcall_op_recv(fds[0], data, 0, 0); /* ends at once */
    submit_many(loop, ops, N, &rec, ids);
    struct racer racers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        racers[i] = (struct racer){loop, ids, N, (uint64_t)i, &asked};
        threads[i] = start(race_cancels, &racers[i]);
    }
    for (int i = 0; i < 50; i++)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
    upcall_cancel_all(loop);
    run_finals(loop, &rec, N);
    quiet(loop, &rec);
    check_finals(&rec, ids, N);
    size_t cancelled = 0;
    for (size_t i = 0; i < rec.count; i++) {
        CHECK(rec.events[i].result == 0 || rec.events[i].result == -ECANCELED);
        cancelled += rec.events[i].result == -ECANCELED;
    }
    CHECK(cancelled > 0);
    free_loop(loop);
}

/* ---- By descriptor, and all. ---- */

TEST(cancel_fd_asks_all_operations_on_that_descriptor_and_no_other) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0}, others = {0};
    int a[2], b[2];
    struct gate gate = {0};
    unix_pair(a);
    unix_pair(b);
    upcall_id ids[4] = {
        submit_one(loop, upcall_op_recv(a[0], data, 1, 0), &rec),
        submit_one(loop, upcall_op_poll(a[0], POLLIN), &rec),
        submit_one(loop, upcall_op_recv(a[0], data, 1, 0), &rec),
        submit_one(loop, upcall_op_read(a[0], data, 1), &rec),
    };
    submit_one(loop, upcall_op_recv(b[0], data, 1, 0), &others);
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &others);
    submit_one(loop, upcall_op_sleep_until(now_ns() + 3600 * UPCALL_SECOND), &others);
    submit_one(loop, upcall_op_work(pass_gate, &gate), &others);
    CHECK_EQ(upcall_cancel_fd(loop, a[1]), 0);
    start_all(loop);
    CHECK_EQ(upcall_cancel_fd(loop, a[1]), 0);
    static const int nothing[] = {-1, 0, 1, 1000000, AT_FDCWD, INT32_MIN, INT32_MAX}; /* not what has no descriptor */
    for (size_t i = 0; i < COUNT_OF(nothing); i++)
        CHECK_EQ(upcall_cancel_fd(loop, nothing[i]), 0);
    CHECK_EQ(upcall_cancel_fd(loop, a[0]), 4);
    CHECK_EQ(rec.count, 0);
    run_finals(loop, &rec, 4);
    check_finals(&rec, ids, 4);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    CHECK_EQ(upcall_cancel_fd(loop, a[0]), 0);
    quiet(loop, &others);
    CHECK_EQ(others.count, 0);
    atomic_store(&gate.open, 1);
    free_loop(loop);
    CHECK_EQ(others.finals, 4);
}

static atomic_int asked_by_thread;
static int asked_fd;
static void *cancel_fd_soon(void *loop) {
    pause_ms(20);
    atomic_store(&asked_by_thread, upcall_cancel_fd(loop, asked_fd));
    return NULL;
}

TEST(another_thread_may_cancel_by_descriptor) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    asked_fd = fds[0];
    for (int i = 0; i < 3; i++)
        submit_one(loop, upcall_op_recv(fds[0], data, 1, 0), &rec);
    start_all(loop);
    pthread_t thread = start(cancel_fd_soon, loop);
    while (rec.finals < 3)
        CHECK(upcall_poll(loop, -1) >= 0);
    join(thread);
    CHECK_EQ(atomic_load(&asked_by_thread), 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    free_loop(loop);
}

TEST(a_duplicated_descriptor_is_another_descriptor) { /* hazards row 10 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        char mine[4], duplicates[4];
        make_pair(which, fds);
        int copy = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
        upcall_id kept = submit_one(loop, upcall_op_read(fds[0], mine, 4), &rec);
        upcall_id hit = submit_one(loop, upcall_op_read(copy, duplicates, 4), &rec);
        start_all(loop);
        CHECK_EQ(upcall_cancel_fd(loop, copy), 1);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, hit).result, -ECANCELED);
        quiet(loop, &rec);
        write_all(fds[1], "abcd", 4);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, kept).result, 4);
        CHECK(memcmp(mine, "abcd", 4) == 0);
        close(copy);
        close_pair(fds);
        free_loop(loop);
    }
}

TEST(cancel_all_asks_everything) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op ops[32];
    upcall_id ids[32];
    CHECK_EQ(upcall_cancel_all(loop), 0);
    size_t n = make_waiting(ops);
    submit_many(loop, ops, n / 2, &rec, ids);
    start_all(loop);
    submit_many(loop, ops + n / 2, n - n / 2, &rec, ids + n / 2);
    CHECK_EQ(upcall_cancel_all(loop), n);
    CHECK_EQ(rec.count, 0);
    run_finals(loop, &rec, n);
    check_finals(&rec, ids, n);
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    CHECK_EQ(upcall_cancel_all(loop), 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0); /* the loop goes on */
    free_loop(loop);
}

static void pending_20000(bool one_by_one) {
    enum { N = 20000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[4][2];
    for (int i = 0; i < 4; i++)
        unix_pair(fds[i]);
    for (int i = 0; i < N; i++)
        ops[i] = i % 4 == 3   ? upcall_op_sleep(3600 * UPCALL_SECOND + (uint64_t)i)
                 : i % 4 == 2 ? upcall_op_recv(fds[i / 4 % 4][0], data, 1, 0)
                              : upcall_op_poll(fds[i / 4 % 4][0], POLLIN);
    submit_many(loop, ops, N, &rec, ids);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    uint64_t before = processor_ns();
    if (one_by_one)
        for (int i = 0; i < N; i++)
            CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    else
        CHECK_EQ(upcall_cancel_all(loop), N);
    run_finals(loop, &rec, N);
    CHECK(processor_ns() - before < 4 * UPCALL_SECOND); /* a tenth of it; with ANY or ALL it was more than 5 s */
    check_finals(&rec, ids, N);
    for (int i = 0; i < N; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    free_loop(loop);
}

TEST_FOR(cancelling_20000_operations_is_quick, 60) { /* hazards row 9 */
    pending_20000(false);
    pending_20000(true);
}

/* ---- What cannot be interrupted. ---- */

TEST(running_work_cannot_be_cancelled_and_completes) { /* hazards row 36 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct gate gate = {0};
    upcall_id id = submit_one(loop, upcall_op_work(pass_gate, &gate), &rec);
    while (!atomic_load(&gate.entered))
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    quiet(loop, &rec);
    CHECK_EQ(rec.count, 0);
    atomic_store(&gate.open, 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, 42);
    CHECK_EQ(final_of(&rec, id).flags, 0);
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(stats.completed, 1);
    CHECK_EQ(stats.cancelled, 0);
    free_loop(loop);
}

TEST(work_that_waits_for_a_thread_can_be_cancelled) { /* hazards row 36 */
    upcall_config config = default_config();
    config.workers = 2; /* one of them never takes work */
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    struct gate first = {0}, second = {.open = 1};
    submit_one(loop, upcall_op_work(pass_gate, &first), &rec);
    while (!atomic_load(&first.entered))
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    upcall_id ids[20];
    for (int i = 0; i < 20; i++)
        ids[i] = submit_one(loop, upcall_op_work(pass_gate, &second), &rec);
    start_all(loop);
    pause_ms(5);
    CHECK_EQ(atomic_load(&second.entered), 0);
    for (int i = 0; i < 20; i++)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    run_finals(loop, &rec, 20); /* while the first still runs */
    for (int i = 0; i < 20; i++)
        CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
    atomic_store(&first.open, 1);
    run_finals(loop, &rec, 21);
    quiet(loop, &rec);
    CHECK_EQ(atomic_load(&second.entered), 0);
    free_loop(loop);
}

/* ---- Cancel against completion: no byte is lost, none comes twice. ---- */

enum { RACE_BYTES = 60000 };

struct writer {
    int fd;
    uint64_t seed;
};
static void *write_at_random(void *arg) {
    struct writer *writer = arg;
    uint8_t block[64];
    for (size_t done = 0; done < RACE_BYTES;) {
        size_t n = 1 + chance(&writer->seed) % sizeof block;
        n = n < RACE_BYTES - done ? n : RACE_BYTES - done;
        fill_pattern(block, n, done);
        write_all(writer->fd, block, n);
        done += n;
        for (uint64_t spin = chance(&writer->seed) % 4000; spin > 0; spin--)
            __asm__ volatile("");
    }
    return NULL;
}

static void race_cancel(int which, bool with_recv, bool by_deadline) {
    upcall_loop *loop = new_loop();
    int fds[2], cancelled = 0;
    uint64_t seed = (uint64_t)which;
    make_pair(which, fds);
    struct writer writer = {fds[1], 99};
    pthread_t thread = start(write_at_random, &writer);
    for (size_t got = 0; got < RACE_BYTES;) {
        struct recorder rec = {0};
        uint8_t in[50];
        upcall_op op = with_recv ? upcall_op_recv(fds[0], in, sizeof in, 0) : upcall_op_read(fds[0], in, sizeof in);
        op.timeout_ns = by_deadline ? 1 + chance(&seed) % 30000 : 0;
        upcall_id id = submit_one(loop, op, &rec);
        for (uint64_t turns = chance(&seed) % 3; turns > 0; turns--)
            CHECK(upcall_poll(loop, 0) >= 0);
        if (!by_deadline) {
            int rc = upcall_cancel(loop, id);
            CHECK_EQ(rc, rec.finals ? -ENOENT : 0);
        }
        run_finals(loop, &rec, 1);
        struct record final = final_of(&rec, id);
        if (final.result == (by_deadline ? -ETIMEDOUT : -ECANCELED)) {
            CHECK_EQ(final.transferred, 0);
            CHECK_EQ(final.flags, by_deadline ? UPCALL_EXPIRED : 0);
            cancelled++;
        } else {
            CHECK(final.result > 0);
            CHECK(has_pattern(in, (size_t)final.result, got));
            got += (size_t)final.result;
        }
        forget(&rec);
    }
    join(thread);
    CHECK_EQ(drain_fd(fds[0]), 0);
    CHECK(cancelled > 0 || by_deadline);
    close_pair(fds);
    free_loop(loop);
}

TEST_FOR(cancel_racing_arrival_conserves_the_bytes_of_a_pipe, 60) { /* hazards rows 5, 6 */
    race_cancel(PIPE, false, false);
}
TEST_FOR(cancel_racing_arrival_conserves_the_bytes_of_a_unix_socket, 60) { /* hazards rows 5, 6 */
    race_cancel(UNIX, true, false);
    race_cancel(UNIX, false, false);
}
TEST_FOR(cancel_racing_arrival_conserves_the_bytes_of_a_tcp_socket, 60) { /* hazards rows 5, 6 */
    race_cancel(TCP, true, false);
    race_cancel(TCP, false, false);
}
TEST_FOR(a_deadline_racing_arrival_conserves_the_bytes, 60) { /* hazards rows 5, 6 */
    race_cancel(PIPE, false, true);
    race_cancel(UNIX, true, true);
    race_cancel(TCP, true, true);
}
