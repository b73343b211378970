/* Time: deadlines of operations, sleeps, idle limits. Never early; upper bounds are very generous. */
#include "check.h"
#include <stdatomic.h>
#include <sys/ioctl.h>

/* Events with the time they came at. */
struct timed {
    struct recorder rec;
    uint64_t at[64];
};
static void record_time(upcall_loop *loop, const upcall_event *event) {
    struct timed *timed = event->user;
    CHECK(timed->rec.count < COUNT_OF(timed->at));
    timed->at[timed->rec.count] = now_ns();
    (void)loop;
    add_record(&timed->rec, event);
}
static upcall_id submit_timed(upcall_loop *loop, upcall_op op, struct timed *timed) {
    op.callback = record_time;
    op.user = timed;
    return submit_one(loop, op, NULL);
}

static void check_expired(struct place at, struct record final, uint64_t transferred) {
    check_eq(at, "result", final.result, -ETIMEDOUT);
    check_eq(at, "flags", final.flags, UPCALL_EXPIRED);
    check_eq(at, "transferred", (long long)final.transferred, (long long)transferred);
}
#define CHECK_EXPIRED(final, transferred) check_expired(HERE, (final), (transferred))

static char data[1 << 20];

TEST(a_deadline_is_never_early) { /* hazards row 42 */
    upcall_loop *loop = new_loop();
    static const uint64_t limits[] = {1, 1000, 99999, 1000000, 1500000, 10000000, 50000001};
    int fds[2];
    unix_pair(fds);
    for (size_t i = 0; i < COUNT_OF(limits); i++)
        for (int kind = 0; kind < 4; kind++) {
            struct timed timed = {0};
            upcall_op op = kind == 0   ? upcall_op_recv(fds[0], data, 1, 0)
                           : kind == 1 ? upcall_op_poll(fds[0], POLLIN)
                           : kind == 2 ? upcall_op_read(fds[0], data, 1)
                                       : upcall_op_sleep(3600 * UPCALL_SECOND);
            op.timeout_ns = limits[i];
            uint64_t before = now_ns();
            upcall_id id = submit_timed(loop, op, &timed);
            run_finals(loop, &timed.rec, 1);
            CHECK(timed.at[0] - before >= limits[i]);
            CHECK(timed.at[0] - before < limits[i] + 8 * UPCALL_SECOND);
            CHECK_EXPIRED(final_of(&timed.rec, id), 0);
            CHECK_EQ(timed.rec.count, 1);
        }
    free_loop(loop);
}

TEST(an_expired_read_takes_nothing) {
    upcall_loop *loop = new_loop();
    for (int which = 0; which < PAIRS; which++) {
        int fds[2];
        char in[4] = "---";
        make_pair(which, fds);
        upcall_op op = upcall_op_read(fds[0], in, 4);
        op.timeout_ns = UPCALL_MILLISECOND;
        CHECK_EXPIRED(complete(loop, op), 0);
        write_all(fds[1], "abc", 4);
        CHECK(upcall_poll(loop, MS(5)) >= 0);
        CHECK(memcmp(in, "---", 4) == 0);
        read_all(fds[0], in, 4);
        CHECK(memcmp(in, "abc", 4) == 0);
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(a_sleep_is_never_early) { /* hazards row 42 */
    upcall_loop *loop = new_loop();
    uint64_t state = 3;
    for (int i = 0; i < 60; i++) {
        struct timed timed = {0};
        uint64_t ns = i < 5 ? (uint64_t)i : chance(&state) % (4 * UPCALL_MILLISECOND), before = now_ns();
        upcall_id id = submit_timed(loop, i % 2 ? upcall_op_sleep(ns) : upcall_op_sleep_until(before + ns), &timed);
        run_finals(loop, &timed.rec, 1);
        CHECK_EQ(final_of(&timed.rec, id).result, 0);
        CHECK_EQ(final_of(&timed.rec, id).flags, 0);
        CHECK(timed.at[0] - before >= ns);
        CHECK(timed.at[0] - before < ns + 8 * UPCALL_SECOND);
    }
    free_loop(loop);
}

TEST(sleeping_until_the_past_ends_at_once) {
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_sleep(0)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_sleep_until(0)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_sleep_until(1)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_sleep_until(now_ns())).result, 0);
    free_loop(loop);
}

TEST(sleeps_end_in_the_order_of_their_times) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    enum { N = 50 };
    upcall_id ids[N];
    uint64_t base = now_ns() + 20 * UPCALL_MILLISECOND;
    for (uint64_t i = 0; i < N; i++)
        ids[i * 7 % N] = submit_one(loop, upcall_op_sleep_until(base + i * 7 % N * UPCALL_MILLISECOND), &rec);
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    for (size_t i = 0; i < N; i++)
        CHECK_EQ(order_of(&rec, ids[i]), i);
    free_loop(loop);
}

TEST(the_longest_times_are_practically_never) { /* hazards row 42 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    static const uint64_t never_ns[] = {UINT64_MAX, UINT64_MAX - 1, INT64_MAX, (uint64_t)INT64_MAX + 1};
    int fds[2];
    unix_pair(fds);
    for (size_t i = 0; i < COUNT_OF(never_ns); i++) {
        submit_one(loop, upcall_op_sleep(never_ns[i]), &rec);
        submit_one(loop, upcall_op_sleep_until(never_ns[i]), &rec);
        upcall_op op = upcall_op_sleep(never_ns[i]);
        op.flags = UPCALL_MULTISHOT;
        submit_one(loop, op, &rec);
        op = upcall_op_recv(fds[0], data, 1, 0);
        op.timeout_ns = never_ns[i];
        submit_one(loop, op, &rec);
    }
    quiet(loop, &rec);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_poll(loop, MS(20)), 0);
    write_all(fds[1], "1234", 4);
    run_finals(loop, &rec, COUNT_OF(never_ns));
    for (size_t i = 0; i < COUNT_OF(never_ns); i++) {
        CHECK_EQ(rec.events[i].kind, UPCALL_OP_RECV);
        CHECK_EQ(rec.events[i].result, 1);
        CHECK_EQ(rec.events[i].flags, 0);
    }
    free_loop(loop);
    CHECK_EQ(rec.finals, 4 * COUNT_OF(never_ns));
}

TEST(an_operation_that_completes_in_time_reports_its_completion) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    upcall_op op = upcall_op_recv(fds[0], data, 10, 0);
    op.timeout_ns = 600 * UPCALL_SECOND;
    upcall_id id = submit_one(loop, op, &rec);
    start_all(loop);
    write_all(fds[1], "abc", 3);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, 3);
    CHECK_EQ(final_of(&rec, id).flags, 0);
    op = upcall_op_nop();
    op.timeout_ns = 600 * UPCALL_SECOND;
    CHECK_EQ(complete(loop, op).result, 0);
    op = upcall_op_sleep(UPCALL_MILLISECOND);
    op.timeout_ns = 600 * UPCALL_SECOND;
    CHECK_EQ(complete(loop, op).result, 0);
    quiet(loop, &rec);
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
}

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

TEST(running_work_outlives_its_deadline_and_reports_its_completion) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct gate gate = {0};
    upcall_op op = upcall_op_work(pass_gate, &gate);
    op.timeout_ns = 300 * UPCALL_MILLISECOND;
    uint64_t before = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    while (!atomic_load(&gate.entered) && rec.finals == 0)
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    if (rec.finals)
        SKIP("the work did not start within its deadline");
    while (now_ns() - before < 350 * UPCALL_MILLISECOND)
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    CHECK_EQ(rec.count, 0);
    atomic_store(&gate.open, 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, 42);
    CHECK_EQ(final_of(&rec, id).flags, 0);
    free_loop(loop);
}

TEST(queueing_counts_against_the_deadline) {
    upcall_config config = default_config();
    config.workers = 2; /* one of them never takes work */
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    struct gate first = {0}, second = {.open = 1};
    submit_one(loop, upcall_op_work(pass_gate, &first), &rec);
    while (!atomic_load(&first.entered))
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    upcall_op op = upcall_op_work(pass_gate, &second);
    op.timeout_ns = 20 * UPCALL_MILLISECOND;
    uint64_t before = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - before >= op.timeout_ns);
    CHECK_EXPIRED(final_of(&rec, id), 0);
    atomic_store(&first.open, 1);
    run_finals(loop, &rec, 2);
    quiet(loop, &rec);
    CHECK_EQ(atomic_load(&second.entered), 0);
    free_loop(loop);
}

TEST(time_before_the_first_turn_counts) { /* from acceptance, not from when it is handed over */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    upcall_op op = upcall_op_recv(fds[0], data, 1, 0);
    op.timeout_ns = 20 * UPCALL_MILLISECOND;
    submit_one(loop, op, &rec);
    submit_one(loop, upcall_op_sleep(20 * UPCALL_MILLISECOND), &rec);
    pause_ms(25);
    for (int i = 0; i < 20; i++) /* no waiting: both are due */
        CHECK(upcall_poll(loop, 0) >= 0);
    CHECK_EQ(rec.finals, 2);
    free_loop(loop);
}

TEST(the_deadline_of_a_linked_operation_counts_from_its_start) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    static const uint32_t ways[] = {UPCALL_LINK, UPCALL_LINK_ALWAYS, 0};
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        struct timed timed = {0};
        upcall_op ops[2] = {upcall_op_sleep(60 * UPCALL_MILLISECOND), upcall_op_recv(fds[0], data, 1, 0)};
        ops[0].flags = ways[i];
        ops[1].flags = ways[i] ? 0 : UPCALL_DRAIN;
        ops[1].timeout_ns = 40 * UPCALL_MILLISECOND;
        ops[0].callback = ops[1].callback = record_time;
        ops[0].user = ops[1].user = &timed;
        upcall_id ids[2];
        uint64_t before = now_ns();
        CHECK_EQ(upcall_submit(loop, ops, 2, ids), 0);
        run_finals(loop, &timed.rec, 2);
        CHECK_EQ(timed.rec.events[0].id, ids[0]);
        CHECK_EQ(timed.rec.events[0].result, 0);
        CHECK_EXPIRED(final_of(&timed.rec, ids[1]), 0);
        CHECK(timed.at[1] - before >= 100 * UPCALL_MILLISECOND);
    }
    free_loop(loop);
}

TEST(a_deadline_severs_a_chain) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    upcall_op ops[3] = {upcall_op_recv(fds[0], data, 1, 0), upcall_op_nop(), upcall_op_nop()};
    upcall_id ids[3];
    ops[0].timeout_ns = UPCALL_MILLISECOND;
    ops[0].flags = ops[1].flags = UPCALL_LINK;
    submit_many(loop, ops, 3, &rec, ids);
    run_finals(loop, &rec, 3);
    CHECK_EXPIRED(final_of(&rec, ids[0]), 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[2]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[1]).flags, 0);
    free_loop(loop);
}

static void many_deadlines(bool equal) {
    enum { N = 3000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    uint64_t state = 5, before;
    unix_pair(fds);
    for (int i = 0; i < N; i++) {
        ops[i] = i % 2 ? upcall_op_poll(fds[0], POLLIN) : upcall_op_sleep(3600 * UPCALL_SECOND);
        ops[i].timeout_ns = 30 * UPCALL_MILLISECOND + (equal ? 0 : chance(&state) % (50 * UPCALL_MILLISECOND));
    }
    before = now_ns();
    submit_many(loop, ops, N, &rec, ids);
    for (int i = 0; i < N; i += 5) { /* some leave the queue of deadlines in between */
        int rc = upcall_cancel(loop, ids[i]);
        CHECK(rc == 0 || rc == -ENOENT);
    }
    size_t seen = 0;
    while (rec.finals < N) {
        CHECK(upcall_poll(loop, MS(1000)) >= 0);
        uint64_t now = now_ns();
        for (; seen < rec.count; seen++)
            for (size_t i = 0; i < N && rec.events[seen].result == -ETIMEDOUT; i++)
                if (ids[i] == rec.events[seen].id) {
                    CHECK(now - before >= ops[i].timeout_ns);
                    break;
                }
        CHECK(now - before < 15 * UPCALL_SECOND);
    }
    check_finals(&rec, ids, N);
    for (size_t i = 0; i < N; i++)
        if (rec.events[i].result == -ETIMEDOUT)
            CHECK_EQ(rec.events[i].flags, UPCALL_EXPIRED);
        else
            CHECK_EQ(rec.events[i].result, -ECANCELED);
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(stats.cancelled + stats.timed_out, N);
    CHECK(stats.timed_out >= N / 2);
    free_loop(loop);
}

TEST_FOR(many_equal_deadlines_all_expire, 60) {
    many_deadlines(true);
}
TEST_FOR(many_distinct_deadlines_all_expire, 60) {
    many_deadlines(false);
}

TEST(cancel_and_deadline_together_make_one_final_event) {
    upcall_loop *loop = new_loop();
    int fds[2];
    uint64_t state = 11;
    unix_pair(fds);
    for (int i = 0; i < 300; i++) {
        struct recorder rec = {0};
        upcall_op op = upcall_op_recv(fds[0], data, 1, 0);
        op.timeout_ns = 1 + chance(&state) % 50000;
        upcall_id id = submit_one(loop, op, &rec);
        for (uint64_t turns = chance(&state) % 4; turns > 0; turns--)
            CHECK(upcall_poll(loop, 0) >= 0);
        CHECK_EQ(upcall_cancel(loop, id), rec.finals ? -ENOENT : 0);
        run_finals(loop, &rec, 1);
        CHECK(rec.events[0].result == -ECANCELED || rec.events[0].result == -ETIMEDOUT);
        CHECK_EQ(rec.events[0].flags, rec.events[0].result == -ETIMEDOUT ? UPCALL_EXPIRED : 0);
        CHECK_EQ(upcall_poll(loop, 0), 0);
        CHECK_EQ(rec.count, 1);
        forget(&rec);
    }
    free_loop(loop);
}

/* ---- Bytes moved before the clock said stop. ---- */

TEST(an_expired_full_receive_tells_what_arrived) { /* hazards row 20 */
    for (int which = 0; which < PAIRS; which++)
        for (int with_recv = which == PIPE ? 0 : 1; with_recv >= 0; with_recv--) {
            upcall_loop *loop = new_loop();
            struct timed timed = {0};
            int fds[2], left;
            char in[100];
            make_pair(which, fds);
            upcall_op op = with_recv ? upcall_op_recv(fds[0], in, 100, 0) : upcall_op_read(fds[0], in, 100);
            op.flags = UPCALL_FULL;
            op.timeout_ns = 300 * UPCALL_MILLISECOND;
            fill_pattern(data, 40, 0);
            uint64_t before = now_ns();
            upcall_id id = submit_timed(loop, op, &timed);
            write_all(fds[1], data, 15);
            CHECK(upcall_poll(loop, MS(10)) >= 0);
            write_all(fds[1], data + 15, 25);
            start_all(loop);
            bool late = now_ns() - before >= op.timeout_ns; /* of a machine that was busy with something else */
            run_finals(loop, &timed.rec, 1);
            CHECK_EQ(timed.rec.count, 1);
            CHECK(timed.at[0] - before >= op.timeout_ns);
            CHECK(ioctl(fds[0], FIONREAD, &left) == 0);
            CHECK_EXPIRED(final_of(&timed.rec, id), 40 - left); /* what was not received is not lost either */
            CHECK(has_pattern(in, 40 - (size_t)left, 0));
            CHECK(left == 0 || late);
            close_pair(fds);
            free_loop(loop);
        }
}

TEST(an_expired_full_send_tells_what_went_out) { /* hazards row 20 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        int fds[2], small = 65536;
        make_pair(which, fds);
        if (which != PIPE)
            CHECK(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
        static uint8_t big[8 << 20], back[8 << 20];
        fill_pattern(big, sizeof big, 0);
        upcall_op op = which == PIPE ? upcall_op_write(fds[1], big, sizeof big)
                                     : upcall_op_send(fds[1], big, sizeof big, 0);
        op.flags = UPCALL_FULL;
        op.timeout_ns = 100 * UPCALL_MILLISECOND;
        struct record final = complete(loop, op);
        CHECK_EQ(final.result, -ETIMEDOUT);
        CHECK_EQ(final.flags, UPCALL_EXPIRED);
        CHECK(final.transferred > 0 && final.transferred < sizeof big);
        close(fds[1]); /* after which the peer finds exactly that */
        size_t total = 0;
        for (ssize_t n; (n = read(fds[0], back + total, sizeof back - total)) > 0;)
            total += (size_t)n;
        CHECK_EQ(total, final.transferred);
        CHECK(has_pattern(back, total, 0));
        close(fds[0]);
        free_loop(loop);
    }
}

/* ---- Idle limits of multishots. ---- */

TEST(a_multishots_deadline_is_an_idle_limit_restarted_by_each_event) {
    upcall_loop *loop = new_loop();
    struct timed timed = {0};
    upcall_buffers *pool;
    int fds[2];
    unix_pair(fds);
    CHECK_EQ(upcall_buffers_new(loop, 16, 64, &pool), 0);
    upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    op.timeout_ns = 400 * UPCALL_MILLISECOND;
    uint64_t before = now_ns();
    upcall_id id = submit_timed(loop, op, &timed);
    for (int i = 0; i < 6 && timed.rec.finals == 0; i++) {
        uint64_t until = now_ns() + 150 * UPCALL_MILLISECOND;
        write_all(fds[1], "tick", 4);
        while (now_ns() < until)
            CHECK(upcall_poll(loop, MS(10)) >= 0);
    }
    run_finals(loop, &timed.rec, 1);
    size_t last = timed.rec.count - 1;
    CHECK_EXPIRED(final_of(&timed.rec, id), 0);
    CHECK(timed.rec.events[last].buffer == NULL);
    CHECK(last >= 1);
    CHECK(timed.at[last] - before >= op.timeout_ns);
    /* The callback notes its time a little after the event came: allow that, or a machine that stood still. */
    CHECK(timed.at[last] - timed.at[last - 1] >= op.timeout_ns - 100 * UPCALL_MILLISECOND);
    for (size_t i = 0; i < last; i++)
        CHECK_EQ(upcall_buffers_return(pool, timed.rec.events[i].buffer), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

TEST(an_idle_limit_stands_still_while_the_pool_is_dry) {
    upcall_loop *loop = new_loop();
    struct timed timed = {0};
    upcall_buffers *pool;
    int fds[2];
    unix_pair(fds);
    CHECK_EQ(upcall_buffers_new(loop, 1, 8, &pool), 0);
    upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    op.timeout_ns = 100 * UPCALL_MILLISECOND;
    write_all(fds[1], "0123456789", 10); /* more than the one buffer */
    upcall_id id = submit_timed(loop, op, &timed);
    run_until(loop, &timed.rec, 1);
    uint64_t until = now_ns() + 400 * UPCALL_MILLISECOND;
    while (now_ns() < until)
        CHECK(upcall_poll(loop, MS(20)) >= 0);
    CHECK_EQ(timed.rec.count, 1);
    CHECK_EQ(timed.rec.events[0].result, 8);
    CHECK_EQ(upcall_buffers_return(pool, timed.rec.events[0].buffer), 0);
    run_until(loop, &timed.rec, 2);
    CHECK_EQ(timed.rec.events[1].result, 2);
    CHECK_EQ(upcall_buffers_return(pool, timed.rec.events[1].buffer), 0);
    run_finals(loop, &timed.rec, 1); /* now it is idle */
    CHECK_EXPIRED(final_of(&timed.rec, id), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

TEST(accept_and_poll_have_idle_limits_too) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 4), fds[2];
    unix_pair(fds);
    for (int kind = 0; kind < 2; kind++) {
        upcall_op op = kind ? upcall_op_poll(fds[0], POLLIN) : upcall_op_accept(listener, NULL, NULL, 0);
        op.flags = UPCALL_MULTISHOT;
        op.timeout_ns = 20 * UPCALL_MILLISECOND;
        uint64_t before = now_ns();
        CHECK_EXPIRED(complete(loop, op), 0);
        CHECK(now_ns() - before >= op.timeout_ns);
    }
    free_loop(loop);
}

TEST_FOR(the_networks_own_timeout_does_not_carry_our_flag, 60) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 0), one = 1, filled = 0;
    for (; filled < 64; filled++) { /* until the backlog is full and connection requests are dropped */
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            continue;
        CHECK_EQ(errno, EINPROGRESS);
        struct pollfd p = {fd, POLLOUT, 0};
        if (poll(&p, 1, 200) == 0)
            break;
    }
    if (filled == 64)
        SKIP("the backlog does not fill");
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &one, sizeof one) == 0);
    struct recorder rec = {0};
    upcall_op op = upcall_op_connect(fd, (struct sockaddr *)&address, sizeof address);
    op.timeout_ns = 3600 * UPCALL_SECOND;
    upcall_id id = submit_one(loop, op, &rec);
    uint64_t limit = now_ns() + 40 * UPCALL_SECOND;
    while (rec.finals == 0 && now_ns() < limit)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
    CHECK_EQ(final_of(&rec, id).flags, 0);
    close(fd);
    close(listener);
    free_loop(loop);
}
