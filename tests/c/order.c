/* Order where the program asks for it: links, drains, and the implicit position of a file. */
#include "check.h"

static char data[4096];

static upcall_op flagged(upcall_op op, uint32_t flags) {
    op.flags |= flags;
    return op;
}
#define LINKED(op) flagged((op), UPCALL_LINK)
#define ALWAYS(op) flagged((op), UPCALL_LINK_ALWAYS)
#define DRAINED(op) flagged((op), UPCALL_DRAIN)

/* Submits, polls until all have ended, checks the oracle and each result. WHATEVER: not told by the contract. */
#define WHATEVER INT64_MIN
static void expect(struct place at, upcall_loop *loop, upcall_op *ops, size_t n, struct recorder *rec, upcall_id *ids,
                   const int64_t *results) {
    submit_many_at(at, loop, ops, n, rec, ids);
    wait_count_at(at, loop, &rec->finals, n);
    check_finals_at(at, rec, ids, n);
    for (size_t i = 0; i < n; i++)
        if (results[i] != WHATEVER) {
            char text[64];
            snprintf(text, sizeof text, "result of op %zu", i + 1);
            check_eq(at, text, final_at(at, rec, ids[i]).result, results[i]);
        }
    quiet_at(at, loop, rec);
    check_stats_at(at, loop);
}
#define EXPECT(loop, ops, rec, ids, ...)                                                                               \
    do {                                                                                                               \
        static const int64_t expected[] = {__VA_ARGS__};                                                               \
        CHECK_EQ(COUNT_OF(expected), COUNT_OF(ops));                                                                   \
        expect(HERE, (loop), (ops), COUNT_OF(ops), (rec), (ids), expected);                                            \
    } while (0)

static void check_order(const struct recorder *rec, const upcall_id *ids, size_t n) {
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(rec->events[i].id, ids[i]);
}

/* ---- Links. ---- */

TEST(a_linked_operation_starts_when_the_one_before_succeeded) { /* hazards row 8 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[4];
    upcall_op ops[] = {LINKED(upcall_op_sleep(20 * UPCALL_MILLISECOND)), LINKED(upcall_op_nop()),
                       LINKED(upcall_op_sleep(UPCALL_MILLISECOND)), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, 0, 0, 0);
    check_order(&rec, ids, 4);
    free_loop(loop);
}

TEST(a_chain_carries_data_from_one_operation_to_the_next) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(0), fds[2];
    unix_pair(fds);
    char in[10] = {0}, back[10] = {0};
    memcpy(data, "0123456789", 10);
    upcall_id ids[5];
    upcall_op ops[] = {LINKED(upcall_op_pwrite(file, data, 10, 0)), LINKED(upcall_op_fsync(file)),
                       LINKED(upcall_op_pread(file, in, 10, 0)), LINKED(upcall_op_send(fds[0], in, 10, 0)),
                       upcall_op_recv(fds[1], back, 10, 0)};
    EXPECT(loop, ops, &rec, ids, 10, 0, 10, 10, 10);
    check_order(&rec, ids, 5);
    CHECK(memcmp(back, "0123456789", 10) == 0);
    free_loop(loop);
}

TEST(an_error_severs_the_chain) { /* hazards row 8 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[5];
    upcall_op ops[] = {LINKED(upcall_op_nop()), LINKED(upcall_op_fsync(-1)), LINKED(upcall_op_nop()),
                       LINKED(upcall_op_sleep(3600 * UPCALL_SECOND)), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, -EBADF, -ECANCELED, -ECANCELED, -ECANCELED);
    check_order(&rec, ids, 2);
    free_loop(loop);
}

TEST(a_short_transfer_severs_the_chain) { /* hazards row 8 */
    upcall_loop *loop = new_loop();
    int file = temp_file(10);
    for (int which = 0; which < PAIRS; which++) {
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        write_all(fds[1], "abc", 3);
        upcall_id ids[3];
        upcall_op ops[] = {LINKED(upcall_op_read(fds[0], data, 4)), upcall_op_nop(), upcall_op_nop()};
        EXPECT(loop, ops, &rec, ids, 3, -ECANCELED, 0);
        close_pair(fds);
        forget(&rec);
    }
    struct recorder rec = {0};
    struct iovec parts[2] = {{data, 5}, {data + 5, 6}};
    upcall_id ids[2];
    upcall_op pread_op[] = {LINKED(upcall_op_pread(file, data, 20, 0)), upcall_op_nop()};
    EXPECT(loop, pread_op, &rec, ids, 10, -ECANCELED);
    forget(&rec);
    upcall_op readv_op[] = {LINKED(upcall_op_readv(file, parts, 2)), upcall_op_nop()};
    EXPECT(loop, readv_op, &rec, ids, 10, -ECANCELED);
    forget(&rec);
    upcall_op full_op[] = {flagged(upcall_op_pread(file, data, 20, 0), UPCALL_LINK | UPCALL_FULL), upcall_op_nop()};
    EXPECT(loop, full_op, &rec, ids, 10, -ECANCELED);
    forget(&rec);
    upcall_op end_of_file[] = {LINKED(upcall_op_pread(file, data, 1, 100)), upcall_op_nop()};
    EXPECT(loop, end_of_file, &rec, ids, 0, -ECANCELED);
    free_loop(loop);
}

TEST(a_whole_transfer_continues_the_chain) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(10), fds[2];
    unix_pair(fds);
    struct iovec parts[2] = {{data, 4}, {data + 4, 6}};
    upcall_id ids[6];
    upcall_op ops[] = {LINKED(upcall_op_readv(file, parts, 2)), LINKED(upcall_op_pread(file, data, 10, 0)),
                       LINKED(upcall_op_writev(fds[0], parts, 2)),
                       flagged(upcall_op_recv(fds[1], data, 10, 0), UPCALL_LINK | UPCALL_FULL),
                       LINKED(upcall_op_recv(fds[1], data, 0, 0)), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 10, 10, 10, 10, 0, 0);
    check_order(&rec, ids, 6);
    free_loop(loop);
}

TEST(a_cancel_severs_the_chain) { /* hazards row 8 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[3];
    upcall_op ops[] = {LINKED(upcall_op_sleep(3600 * UPCALL_SECOND)), LINKED(upcall_op_nop()), upcall_op_nop()};
    for (int started = 0; started < 2; started++) {
        rec.count = rec.finals = 0;
        submit_many(loop, ops, 3, &rec, ids);
        if (started)
            start_all(loop);
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
        run_finals(loop, &rec, 3);
        check_finals(&rec, ids, 3);
        for (int i = 0; i < 3; i++)
            CHECK_EQ(rec.events[i].result, -ECANCELED);
        quiet(loop, &rec);
    }
    free_loop(loop);
}

TEST(a_parked_operation_can_be_cancelled) { /* hazards row 8 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[4];
    upcall_op ops[] = {LINKED(upcall_op_sleep(200 * UPCALL_MILLISECOND)), LINKED(upcall_op_sleep(1)),
                       LINKED(upcall_op_sleep(2)), upcall_op_nop()};
    for (int started = 0; started < 2; started++) {
        rec.count = rec.finals = 0;
        submit_many(loop, ops, 4, &rec, ids);
        if (started)
            start_all(loop);
        CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
        run_finals(loop, &rec, 4);
        check_finals(&rec, ids, 4);
        CHECK_EQ(final_of(&rec, ids[0]).result, 0); /* not touched */
        for (int i = 1; i < 4; i++)
            CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
        quiet(loop, &rec);
    }
    free_loop(loop);
}

TEST(link_always_goes_on_after_any_result) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(10), fds[2];
    unix_pair(fds);
    upcall_op timed = ALWAYS(upcall_op_recv(fds[0], data, 1, 0));
    timed.timeout_ns = UPCALL_MILLISECOND;
    upcall_id ids[5];
    upcall_op ops[] = {ALWAYS(upcall_op_fsync(-1)), ALWAYS(upcall_op_pread(file, data, 20, 0)), timed,
                       ALWAYS(upcall_op_nop()), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, -EBADF, 10, -ETIMEDOUT, 0, 0);
    check_order(&rec, ids, 5);
    free_loop(loop);
}

TEST(link_always_goes_on_after_a_cancel) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[3];
    upcall_op ops[] = {ALWAYS(upcall_op_sleep(3600 * UPCALL_SECOND)), LINKED(upcall_op_nop()), upcall_op_nop()};
    submit_many(loop, ops, 3, &rec, ids);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
    run_finals(loop, &rec, 3);
    check_order(&rec, ids, 3);
    CHECK_EQ(rec.events[0].result, -ECANCELED);
    CHECK_EQ(rec.events[1].result, 0);
    CHECK_EQ(rec.events[2].result, 0);
    free_loop(loop);
}

TEST(what_is_not_linked_is_not_severed) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[7];
    upcall_op ops[] = {upcall_op_nop(), LINKED(upcall_op_fsync(-1)), upcall_op_nop(), /* one chain */
                       LINKED(upcall_op_nop()), upcall_op_nop(),                      /* another */
                       upcall_op_fsync(-1), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, -EBADF, -ECANCELED, 0, 0, -EBADF, 0);
    free_loop(loop);
}

TEST(chains_do_not_wait_for_each_other) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0}, slow = {0};
    upcall_op waiting[] = {LINKED(upcall_op_sleep(3600 * UPCALL_SECOND)), upcall_op_nop()};
    submit_many(loop, waiting, 2, &slow, NULL);
    upcall_id ids[2];
    upcall_op ops[] = {LINKED(upcall_op_nop()), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, 0);
    CHECK_EQ(slow.count, 0);
    free_loop(loop);
    CHECK_EQ(slow.finals, 2);
}

TEST(the_last_words_reach_the_peer_before_the_close) {
    upcall_loop *loop = new_loop();
    for (int which = UNIX; which < PAIRS; which++) {
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        upcall_id ids[2];
        upcall_op ops[] = {flagged(upcall_op_send(fds[1], "goodbye", 7, 0), UPCALL_FULL | UPCALL_LINK_ALWAYS),
                           upcall_op_close(fds[1])};
        EXPECT(loop, ops, &rec, ids, 7, 0);
        check_order(&rec, ids, 2);
        CHECK(!is_open(fds[1]));
        char in[8];
        read_all(fds[0], in, 7);
        CHECK(memcmp(in, "goodbye", 7) == 0);
        CHECK_EQ(read(fds[0], in, 1), 0);
        close(fds[0]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(a_chain_connects_sends_receives_and_closes) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 4), fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    upcall_id ids[5];
    char in[4] = {0};
    upcall_op ops[] = {LINKED(upcall_op_connect(fd, (struct sockaddr *)&address, sizeof address)),
                       LINKED(upcall_op_send(fd, "ping", 4, 0)),
                       flagged(upcall_op_recv(fd, in, 4, 0), UPCALL_FULL | UPCALL_LINK),
                       LINKED(upcall_op_shutdown(fd, SHUT_RDWR)), upcall_op_close(fd)};
    submit_many(loop, ops, 5, &rec, ids);
    run_finals(loop, &rec, 2);
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(peer >= 0);
    read_all(peer, data, 4);
    CHECK(memcmp(data, "ping", 4) == 0);
    write_all(peer, "pong", 4);
    run_finals(loop, &rec, 5);
    check_order(&rec, ids, 5);
    static const int64_t results[] = {0, 4, 4, 0, 0};
    for (int i = 0; i < 5; i++)
        CHECK_EQ(rec.events[i].result, results[i]);
    CHECK(memcmp(in, "pong", 4) == 0);
    CHECK(!is_open(fd));
    free_loop(loop);
}

TEST(a_chain_may_close_a_number_and_use_what_comes_back_under_it) { /* hazards row 12 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    pipe_pair(fds);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    upcall_op waiting = upcall_op_read(fds[0], data, 8);
    upcall_id before = submit_one(loop, waiting, &rec);
    start_all(loop);
    upcall_id ids[4];
    upcall_op ops[] = {LINKED(upcall_op_close(fds[0])),
                       LINKED(upcall_op_open(AT_FDCWD, "/proc/self/comm", O_RDONLY, 0)), /* the lowest free number */
                       LINKED(upcall_op_poll(fds[0], POLLIN)), upcall_op_pread(fds[0], data, 1, 0)};
    submit_many(loop, ops, 4, &rec, ids);
    run_finals(loop, &rec, 5);
    CHECK_EQ(final_of(&rec, before).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[0]).result, 0);
    CHECK(final_of(&rec, ids[1]).result >= 0);
    if (final_of(&rec, ids[1]).result == fds[0]) {
        CHECK_EQ(final_of(&rec, ids[2]).result, POLLIN);
        CHECK_EQ(final_of(&rec, ids[3]).result, 1);
    }
    free_loop(loop);
}

TEST(a_close_severed_from_its_chain_leaves_the_descriptor_open) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    pipe_pair(fds);
    upcall_id ids[2];
    upcall_op ops[] = {LINKED(upcall_op_fsync(-1)), upcall_op_close(fds[0])};
    EXPECT(loop, ops, &rec, ids, -EBADF, -ECANCELED);
    CHECK(is_open(fds[0]));
    free_loop(loop);
}

TEST_FOR(a_chain_of_1000_runs_in_order, 60) {
    enum { N = 1000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    int file = temp_file(0);
    for (int entries = 4; entries <= 256; entries *= 64) {
        upcall_config config = default_config();
        config.entries = (uint32_t)entries;
        upcall_loop *loop = loop_with(&config);
        struct recorder rec = {0};
        for (uint32_t i = 0; i < N; i++) {
            ops[i] = i % 3 == 0 ? upcall_op_nop()
                                : upcall_op_pwrite(file, data + i % 251, 1 + i % 5, 0);
            ops[i].flags = i < N - 1 ? UPCALL_LINK : 0;
        }
        submit_many(loop, ops, N, &rec, ids);
        run_finals(loop, &rec, N);
        check_order(&rec, ids, N);
        for (int i = 0; i < N; i++)
            CHECK_EQ(rec.events[i].result, i % 3 == 0 ? 0 : 1 + i % 5);
        free_loop(loop);
    }
}

TEST(a_long_chain_severed_in_the_middle_ends_once_and_for_all) { /* hazards row 8 */
    enum { N = 1000, BAD = 400 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int i = 0; i < N; i++) {
        ops[i] = i == BAD ? upcall_op_fsync(-1) : upcall_op_nop();
        ops[i].flags = i < N - 1 ? UPCALL_LINK : 0;
    }
    submit_many(loop, ops, N, &rec, ids);
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    check_order(&rec, ids, BAD + 1);
    for (int i = 0; i < N; i++)
        CHECK_EQ(rec.events[i].result, i < BAD ? 0 : i == BAD ? -EBADF : -ECANCELED);
    quiet(loop, &rec);
    free_loop(loop);
}

TEST(cancel_all_ends_chains_and_drains_too) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[6];
    upcall_op ops[] = {ALWAYS(upcall_op_sleep(3600 * UPCALL_SECOND)), ALWAYS(upcall_op_sleep(3600 * UPCALL_SECOND)),
                       upcall_op_sleep(3600 * UPCALL_SECOND), DRAINED(upcall_op_sleep(3600 * UPCALL_SECOND)),
                       LINKED(upcall_op_sleep(3600 * UPCALL_SECOND)), upcall_op_sleep(3600 * UPCALL_SECOND)};
    submit_many(loop, ops, 6, &rec, ids);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_cancel_all(loop), 6);
    run_finals(loop, &rec, 6);
    check_finals(&rec, ids, 6);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    free_loop(loop);
}

TEST(freeing_the_loop_ends_chains_and_drains_too) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[5];
    upcall_op ops[] = {ALWAYS(upcall_op_sleep(3600 * UPCALL_SECOND)), LINKED(upcall_op_nop()), upcall_op_nop(),
                       DRAINED(upcall_op_nop()), upcall_op_nop()};
    submit_many(loop, ops, 5, &rec, ids);
    start_all(loop);
    free_loop(loop);
    check_finals(&rec, ids, 5);
    CHECK_EQ(final_of(&rec, ids[0]).result, -ECANCELED);
}

static uint64_t wild_state = 2;
TEST_FOR(wild_mixtures_of_links_drains_errors_and_cancels_end_once, 60) { /* hazards row 8 */
    enum { N = 60 };
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    for (int round = 0; round < 300; round++) {
        struct recorder rec = {0};
        upcall_op ops[N];
        upcall_id ids[N];
        for (int i = 0; i < N; i++) {
            uint64_t dice = chance(&wild_state);
            ops[i] = dice % 5 == 0   ? upcall_op_fsync(-1)
                     : dice % 5 == 1 ? upcall_op_sleep(dice % 200000)
                     : dice % 5 == 2 ? upcall_op_poll(fds[1], POLLOUT)
                     : dice % 5 == 3 ? upcall_op_recv(fds[0], data, 1, 0)
                                     : upcall_op_nop();
            if (dice % 5 == 3)
                ops[i].timeout_ns = 1 + dice % 300000;
            uint64_t link = chance(&wild_state) % 4;
            ops[i].flags |= i == N - 1 ? 0 : link == 0 ? UPCALL_LINK : link == 1 ? UPCALL_LINK_ALWAYS : 0;
            ops[i].flags |= chance(&wild_state) % 8 == 0 ? UPCALL_DRAIN : 0;
        }
        submit_many(loop, ops, N, &rec, ids);
        for (uint64_t cancels = chance(&wild_state) % 10; cancels > 0; cancels--) {
            CHECK(upcall_poll(loop, 0) >= 0);
            int rc = upcall_cancel(loop, ids[chance(&wild_state) % N]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        run_finals(loop, &rec, N);
        check_finals(&rec, ids, N);
        CHECK_EQ(in_flight(loop), 0);
        forget(&rec);
    }
    free_loop(loop);
}

/* ---- Drains. ---- */

TEST(a_drain_waits_for_everything_earlier_and_is_waited_for) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[6];
    upcall_op ops[] = {upcall_op_sleep(30 * UPCALL_MILLISECOND), upcall_op_sleep(10 * UPCALL_MILLISECOND),
                       upcall_op_nop(), DRAINED(upcall_op_sleep(5 * UPCALL_MILLISECOND)), upcall_op_nop(),
                       upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, 0, 0, 0, 0, 0);
    CHECK_EQ(order_of(&rec, ids[3]), 3);
    CHECK_EQ(order_of(&rec, ids[0]), 2);
    CHECK(order_of(&rec, ids[4]) > 3);
    CHECK(order_of(&rec, ids[5]) > 3);
    free_loop(loop);
}

TEST(a_drain_starts_whatever_the_results_before_it) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[4];
    upcall_op ops[] = {upcall_op_fsync(-1), upcall_op_sleep(10 * UPCALL_MILLISECOND), DRAINED(upcall_op_nop()),
                       upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, -EBADF, 0, 0, 0);
    CHECK_EQ(order_of(&rec, ids[2]), 2);
    CHECK_EQ(order_of(&rec, ids[3]), 3);
    free_loop(loop);
}

TEST(n_writes_then_fsync) {
    enum { N = 64 };
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(0);
    upcall_op ops[N + 2];
    upcall_id ids[N + 2];
    static char in[N * 64];
    fill_pattern(data, sizeof data, 0);
    for (int i = 0; i < N; i++)
        ops[i] = upcall_op_pwrite(file, data + i * 64, 64, i * 64);
    ops[N] = DRAINED(upcall_op_fsync(file));
    ops[N + 1] = upcall_op_pread(file, in, sizeof in, 0);
    submit_many(loop, ops, N + 2, &rec, ids);
    run_finals(loop, &rec, N + 2);
    check_finals(&rec, ids, N + 2);
    CHECK_EQ(order_of(&rec, ids[N]), N);
    CHECK_EQ(order_of(&rec, ids[N + 1]), N + 1);
    CHECK_EQ(final_of(&rec, ids[N]).result, 0);
    CHECK_EQ(final_of(&rec, ids[N + 1]).result, sizeof in);
    CHECK(has_pattern(in, sizeof in, 0));
    free_loop(loop);
}

TEST(drains_follow_each_other) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[7];
    upcall_op ops[] = {DRAINED(upcall_op_sleep(5 * UPCALL_MILLISECOND)), DRAINED(upcall_op_sleep(2)),
                       upcall_op_sleep(8 * UPCALL_MILLISECOND), upcall_op_sleep(4 * UPCALL_MILLISECOND),
                       DRAINED(upcall_op_nop()), DRAINED(upcall_op_sleep(UPCALL_MILLISECOND)), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, 0, 0, 0, 0, 0, 0);
    static const size_t order[] = {0, 1, 3, 2, 4, 5, 6};
    for (size_t i = 0; i < 7; i++)
        CHECK_EQ(order_of(&rec, ids[i]), order[i]);
    free_loop(loop);
}

TEST(a_drain_knows_its_own_submit_only) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0}, other = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &other);
    upcall_id ids[2];
    upcall_op waiting[] = {upcall_op_sleep(3600 * UPCALL_SECOND), DRAINED(upcall_op_nop())};
    submit_many(loop, waiting, 2, &other, NULL);
    upcall_op ops[] = {upcall_op_nop(), DRAINED(upcall_op_nop())};
    EXPECT(loop, ops, &rec, ids, 0, 0);
    check_order(&rec, ids, 2);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    CHECK_EQ(other.count, 0);
    free_loop(loop);
}

TEST(a_waiting_drain_can_be_cancelled) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[3];
    upcall_op ops[] = {upcall_op_sleep(200 * UPCALL_MILLISECOND), DRAINED(upcall_op_sleep(3600 * UPCALL_SECOND)),
                       upcall_op_nop()};
    submit_many(loop, ops, 3, &rec, ids);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
    run_finals(loop, &rec, 3);
    check_finals(&rec, ids, 3);
    CHECK_EQ(final_of(&rec, ids[0]).result, 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[2]).result, 0);
    free_loop(loop);
}

TEST(a_drain_waits_for_a_multishots_end) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[2];
    upcall_op ops[] = {flagged(upcall_op_sleep(2 * UPCALL_MILLISECOND), UPCALL_MULTISHOT), DRAINED(upcall_op_nop())};
    submit_many(loop, ops, 2, &rec, ids);
    run_until(loop, &rec, 3);
    CHECK_EQ(rec.finals, 0);
    CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
    run_finals(loop, &rec, 2);
    check_finals(&rec, ids, 2);
    CHECK(order_of(&rec, ids[0]) < order_of(&rec, ids[1]));
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    free_loop(loop);
}

TEST(links_and_drains_combine) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(0);
    char in[8] = {0};
    upcall_id ids[7];
    upcall_op ops[] = {LINKED(upcall_op_sleep(10 * UPCALL_MILLISECOND)), upcall_op_pwrite(file, "abcd", 4, 0),
                       upcall_op_pwrite(file, "efgh", 4, 4), DRAINED(LINKED(upcall_op_fsync(file))),
                       LINKED(upcall_op_pread(file, in, 8, 0)), upcall_op_fsync(-1), upcall_op_nop()};
    EXPECT(loop, ops, &rec, ids, 0, 4, 4, 0, 8, -EBADF, 0);
    CHECK_EQ(order_of(&rec, ids[3]), 3);
    CHECK(order_of(&rec, ids[4]) > order_of(&rec, ids[3]));
    CHECK(order_of(&rec, ids[5]) > order_of(&rec, ids[4]));
    CHECK(order_of(&rec, ids[6]) > order_of(&rec, ids[3]));
    CHECK(memcmp(in, "abcdefgh", 8) == 0);
    free_loop(loop);
}

/* ---- The file's own position. ---- */

enum { LINES = 300, LINE = 8 };

static void check_lines(int file, int from, int n) {
    char line[LINE + 1], wanted[16];
    for (int i = 0; i < n; i++) {
        CHECK(pread(file, line, LINE, i * LINE) == LINE);
        snprintf(wanted, sizeof wanted, "%07d\n", from + i);
        CHECK(memcmp(line, wanted, LINE) == 0);
    }
}

TEST_FOR(writes_at_a_files_own_position_keep_their_order, 60) {
    static char lines[LINES][16];
    for (int i = 0; i < LINES; i++)
        snprintf(lines[i], sizeof lines[i], "%07d\n", i);
    for (int way = 0; way < 4; way++) { /* one submit, or many; a large queue, or a small one */
        upcall_config config = default_config();
        config.entries = way % 2 ? 4 : 256;
        upcall_loop *loop = loop_with(&config);
        struct recorder rec = {0};
        int file = temp_file(0);
        upcall_op ops[LINES];
        upcall_id ids[LINES];
        struct iovec parts[LINES];
        for (int i = 0; i < LINES; i++) {
            parts[i] = (struct iovec){lines[i], LINE};
            ops[i] = i % 3 ? upcall_op_write(file, lines[i], LINE) : upcall_op_writev(file, &parts[i], 1);
        }
        if (way < 2)
            submit_many(loop, ops, LINES, &rec, ids);
        for (int i = 0; way >= 2 && i < LINES; i++)
            submit_many(loop, &ops[i], 1, &rec, &ids[i]);
        run_finals(loop, &rec, LINES);
        check_order(&rec, ids, LINES);
        for (int i = 0; i < LINES; i++)
            CHECK_EQ(rec.events[i].result, LINE);
        check_lines(file, 0, LINES);
        CHECK_EQ(lseek(file, 0, SEEK_CUR), LINES * LINE);
        close(file);
        free_loop(loop);
    }
}

TEST_FOR(reads_at_a_files_own_position_keep_their_order, 60) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(LINES * LINE);
    static char in[LINES + 1][LINE];
    upcall_op ops[LINES + 1];
    upcall_id ids[LINES + 1];
    for (int i = 0; i <= LINES; i++)
        ops[i] = upcall_op_read(file, in[i], LINE);
    submit_many(loop, ops, LINES + 1, &rec, ids);
    run_finals(loop, &rec, LINES + 1);
    check_order(&rec, ids, LINES + 1);
    for (int i = 0; i < LINES; i++) {
        CHECK_EQ(rec.events[i].result, LINE);
        CHECK(has_pattern(in[i], LINE, (uint64_t)(i * LINE)));
    }
    CHECK_EQ(rec.events[LINES].result, 0);
    free_loop(loop);
}

TEST(cancelled_writes_at_a_files_own_position_leave_no_hole) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(0), written = 0;
    static char lines[LINES][16];
    upcall_id ids[LINES];
    for (int i = 0; i < LINES; i++) {
        snprintf(lines[i], sizeof lines[i], "%07d\n", i);
        ids[i] = submit_one(loop, upcall_op_write(file, lines[i], LINE), &rec);
    }
    for (int i = 1; i < LINES; i += 2)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    run_finals(loop, &rec, LINES);
    check_finals(&rec, ids, LINES);
    for (int i = 0; i < LINES; i++) {
        struct record final = final_of(&rec, ids[i]);
        if (final.result == -ECANCELED) {
            CHECK(i % 2 == 1);
            CHECK_EQ(final.transferred, 0);
            continue;
        }
        char line[LINE];
        CHECK_EQ(final.result, LINE);
        CHECK(pread(file, line, LINE, written++ * LINE) == LINE);
        CHECK(memcmp(line, lines[i], LINE) == 0);
    }
    struct stat st;
    CHECK(fstat(file, &st) == 0);
    CHECK_EQ(st.st_size, written * LINE);
    free_loop(loop);
}

TEST(operations_on_other_files_do_not_wait_for_a_position) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int file = temp_file(100);
    char in[10][10];
    for (int i = 0; i < 10; i++) {
        submit_one(loop, upcall_op_read(file, in[i], 10), &rec);
        CHECK_EQ(complete(loop, upcall_op_pread(file, data, 10, 50)).result, 10);
        CHECK(has_pattern(data, 10, 50));
    }
    run_finals(loop, &rec, 10);
    for (uint64_t i = 0; i < 10; i++)
        CHECK(has_pattern(in[i], 10, i * 10));
    free_loop(loop);
}
