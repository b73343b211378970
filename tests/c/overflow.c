/* More than fits: submission queue, completion queue, threads, buffers. Nothing is lost. */
#include "check.h"

#include <sys/ioctl.h>
#include <stdatomic.h>

static upcall_loop *loop_with_entries(uint32_t entries) {
    upcall_config config = default_config();
    config.entries = entries;
    return loop_with(&config);
}

static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

/* ---- Ready together. ---- */

/* What was written has reached the other side. (It may have been received there already: a ring without DEFER_TASKRUN
 * completes while this thread makes any system call.) */
static void wait_arrived(int fd) {
    int unsent = 1, type = 0;
    socklen_t len = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &type, &len) != 0 || type == AF_UNIX)
        return; /* at once */
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; unsent != 0;) {
        CHECK(ioctl(fd, TIOCOUTQ, &unsent) == 0);
        CHECK(now_ns() < limit);
    }
}

static void ready_together(uint32_t entries, int n, bool at_once) {
    raise_descriptor_limit((unsigned)(2 * n + 40));
    upcall_loop *loop = loop_with_entries(entries);
    struct recorder rec = {0};
    int (*fds)[2] = calloc((size_t)n, sizeof *fds);
    upcall_id *ids = calloc((size_t)n, sizeof *ids);
    char *bytes = calloc((size_t)n, 1);
    for (int round = 0; round < 3; round++) {
        rec.count = rec.finals = 0;
        for (int i = 0; i < n; i++) {
            if (round == 0)
                make_pair(i % 8 == 7 ? TCP : UNIX, fds[i]);
            ids[i] = submit_one(loop, upcall_op_recv(fds[i][0], &bytes[i], 1, 0), &rec);
        }
        start_all(loop);
        CHECK_EQ(upcall_poll(loop, MS(3)), 0); /* a turn that waited: all are armed */
        for (int i = 0; i < n; i++)
            write_all(fds[i][1], "x", 1);
        for (int i = 0; i < n; i++)
            wait_arrived(fds[i][1]);
        if (at_once) {
            CHECK_EQ(upcall_poll(loop, 0), n);
            CHECK_EQ(rec.finals, n);
        }
        run_finals(loop, &rec, (size_t)n);
        check_finals(&rec, ids, (size_t)n);
        for (int i = 0; i < n; i++)
            CHECK_EQ(rec.events[i].result, 1);
    }
    quiet(loop, &rec);
    free_loop(loop);
}

TEST(one_turn_without_waiting_delivers_200_ready_sockets) { /* hazards row 13 */
    ready_together(256, 200, true);
}
TEST(one_turn_without_waiting_delivers_200_ready_sockets_through_a_small_queue) { /* hazards rows 13, 15 */
    ready_together(4, 200, true);
}
TEST(turns_that_never_wait_are_enough) { /* hazards rows 13, 14 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int which = 0; which < PAIRS; which++) {
        int fds[2];
        char bytes[4];
        make_pair(which, fds);
        submit_one(loop, upcall_op_read(fds[0], bytes, 4), &rec);
        start_all(loop);
        write_all(fds[1], "abcd", 4);
        uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
        while (rec.finals < (size_t)which + 1) {
            CHECK(upcall_poll(loop, 0) >= 0);
            CHECK(now_ns() < limit);
        }
        CHECK_EQ(rec.events[which].result, 4);
        close_pair(fds);
    }
    free_loop(loop);
}

TEST_FOR(a_thousand_ready_sockets_lose_nothing_in_the_smallest_queue, 60) { /* hazards row 15 */
    ready_together(1, 1000, false);
}

/* ---- More operations than entries. ---- */

TEST_FOR(thousands_of_operations_pass_through_the_smallest_queues, 60) { /* hazards row 16 */
    enum { N = 6000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    int fds[2];
    unix_pair(fds);
    for (uint32_t entries = 1; entries <= 4; entries++)
        for (int batched = 0; batched < 2; batched++) {
            upcall_loop *loop = loop_with_entries(entries);
            struct recorder rec = {0};
            for (int i = 0; i < N; i++)
                ops[i] = i % 4 == 0   ? upcall_op_poll(fds[0], POLLOUT)
                         : i % 4 == 1 ? upcall_op_fsync(-1) /* a bad one stops nothing */
                         : i % 4 == 2 ? upcall_op_sleep((uint64_t)i)
                                      : upcall_op_nop();
            if (batched)
                submit_many(loop, ops, N, &rec, ids);
            for (int i = 0; !batched && i < N; i++)
                submit_many(loop, &ops[i], 1, &rec, &ids[i]);
            run_finals(loop, &rec, N);
            check_finals(&rec, ids, N);
            for (size_t i = 0; i < N; i++) {
                uint32_t kind = rec.events[i].kind;
                CHECK_EQ(rec.events[i].result,
                         kind == UPCALL_OP_POLL ? POLLOUT : kind == UPCALL_OP_FSYNC ? -EBADF : 0);
            }
            quiet(loop, &rec);
            free_loop(loop);
            forget(&rec);
        }
}

static size_t resubmitted;
static void resubmit(upcall_loop *loop, const upcall_event *event) {
    CHECK_EQ(event->result, 0);
    if (++resubmitted < 20000) {
        upcall_op ops[2] = {upcall_op_nop(), upcall_op_nop()};
        ops[0].callback = ops[1].callback = resubmit;
        size_t n = resubmitted % 3 ? 1 : 2;
        CHECK_EQ(upcall_submit(loop, ops, n, NULL), 0);
    }
}

TEST_FOR(callbacks_may_fill_the_queue_again, 60) { /* hazards row 16 */
    for (uint32_t entries = 1; entries <= 4; entries += 3) {
        upcall_loop *loop = loop_with_entries(entries);
        resubmitted = 0;
        for (int i = 0; i < 50; i++) {
            upcall_op op = upcall_op_nop();
            op.callback = resubmit;
            CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
        }
        CHECK_EQ(upcall_run(loop), 0);
        upcall_stats stats;
        CHECK_EQ(upcall_stats_get(loop, &stats), 0);
        CHECK_EQ(stats.completed, resubmitted);
        CHECK_EQ(stats.submitted, resubmitted);
        free_loop(loop);
    }
}

TEST_FOR(cancels_find_room_in_a_full_queue, 60) { /* hazards row 16 */
    enum { N = 2000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    int fds[2];
    char byte;
    unix_pair(fds);
    for (uint32_t entries = 1; entries <= 4; entries++)
        for (int started = 0; started < 2; started++) {
            upcall_loop *loop = loop_with_entries(entries);
            struct recorder rec = {0};
            for (int i = 0; i < N; i++)
                ops[i] = i % 2 ? upcall_op_poll(fds[0], POLLIN) : upcall_op_recv(fds[0], &byte, 1, 0);
            submit_many(loop, ops, N, &rec, ids);
            if (started)
                start_all(loop);
            for (int i = N; i-- > 0;)
                CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
            run_finals(loop, &rec, N);
            check_finals(&rec, ids, N);
            for (int i = 0; i < N; i++)
                CHECK_EQ(rec.events[i].result, -ECANCELED);
            free_loop(loop);
        }
}

/* ---- The completion queue overflows. ---- */

TEST(forty_datagrams_all_arrive_in_order_through_the_smallest_queue) { /* hazards row 15 */
    for (uint32_t entries = 1; entries <= 4; entries += 3) {
        upcall_loop *loop = loop_with_entries(entries);
        struct recorder rec = {0};
        upcall_buffers *pool;
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        socklen_t length = sizeof address;
        int in = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), out = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        CHECK(bind(in, (struct sockaddr *)&address, sizeof address) == 0);
        CHECK(getsockname(in, (struct sockaddr *)&address, &length) == 0);
        CHECK(connect(out, (struct sockaddr *)&address, sizeof address) == 0);
        CHECK_EQ(upcall_buffers_new(loop, 64, 16, &pool), 0);
        upcall_op op = upcall_op_recv(in, NULL, 0, 0);
        op.flags = UPCALL_MULTISHOT;
        op.buffers = pool;
        upcall_id id = submit_one(loop, op, &rec);
        start_all(loop);
        for (uint32_t i = 0; i < 40; i++)
            CHECK(send(out, &i, sizeof i, 0) == sizeof i);
        run_until(loop, &rec, 40);
        quiet(loop, &rec);
        for (uint32_t i = 0; i < 40; i++) {
            CHECK_EQ(rec.events[i].id, id);
            CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
            CHECK_EQ(rec.events[i].result, sizeof i);
            CHECK(memcmp(rec.events[i].buffer, &i, sizeof i) == 0);
            CHECK_EQ(upcall_buffers_return(pool, rec.events[i].buffer), 0);
        }
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        free_loop(loop);
    }
}

TEST_FOR(many_multishots_overflow_together_and_all_go_on, 60) { /* hazards row 15 */
    enum { N = 50, ROUNDS = 40 };
    upcall_loop *loop = loop_with_entries(2);
    struct recorder rec = {0};
    int fds[N][2];
    upcall_id ids[N];
    size_t got[N] = {0};
    for (int i = 0; i < N; i++) {
        upcall_op op = upcall_op_poll(-1, POLLIN);
        unix_pair(fds[i]);
        op.fd = fds[i][0];
        op.flags = UPCALL_MULTISHOT;
        ids[i] = submit_one(loop, op, &rec);
    }
    start_all(loop);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < N; i++)
            write_all(fds[i][1], "x", 1);
        uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
        for (int missing = N; missing > 0;) { /* at least one event per arrival */
            rec.count = 0;
            CHECK(upcall_poll(loop, MS(100)) >= 0);
            CHECK(now_ns() < limit);
            for (size_t k = 0; k < rec.count; k++)
                for (int i = 0; i < N; i++)
                    if (rec.events[k].id == ids[i]) {
                        CHECK(rec.events[k].flags & UPCALL_MORE);
                        got[i] += drain_fd(fds[i][0]);
                    }
            missing = 0;
            for (int i = 0; i < N; i++)
                missing += got[i] < (size_t)round + 1;
        }
    }
    CHECK_EQ(rec.finals, 0);
    CHECK_EQ(upcall_cancel_all(loop), N);
    run_finals(loop, &rec, N);
    free_loop(loop);
}

TEST(a_loop_that_is_polled_rarely_loses_nothing) { /* hazards row 15 */
    enum { N = 5000 };
    upcall_loop *loop = loop_with_entries(4);
    struct recorder rec = {0};
    static upcall_id ids[N];
    int fds[2];
    char byte;
    pipe_pair(fds); /* takes many single bytes */
    start_all(loop);
    for (int i = 0; i < N; i++) { /* no callbacks and no turns for long */
        upcall_op op = i % 3 ? upcall_op_nop() : upcall_op_read(fds[0], &byte, 1);
        CHECK_EQ(upcall_submit(loop, &op, 1, &ids[i]), 0);
        if (i % 3 == 0)
            write_all(fds[1], "x", 1);
    }
    pause_ms(20);
    reap_until(loop, &rec, N);
    check_finals(&rec, ids, N);
    for (int i = 0; i < N; i++)
        CHECK_EQ(rec.events[i].result, rec.events[i].kind == UPCALL_OP_NOP ? 0 : 1);
    free_loop(loop);
}

TEST(unreaped_records_are_kept_without_limit) {
    enum { N = 20000 };
    upcall_config config = default_config();
    config.max_events = 64;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    static upcall_id ids[N];
    for (int i = 0; i < N; i++) {
        upcall_op op = upcall_op_nop();
        CHECK_EQ(upcall_submit(loop, &op, 1, &ids[i]), 0);
        if (i % 500 == 0)
            CHECK(upcall_poll(loop, 0) >= 0);
    }
    CHECK_EQ(upcall_run(loop), 0);
    reap_until(loop, &rec, N);
    check_finals(&rec, ids, N);
    free_loop(loop);
}

/* ---- The pool of threads is exhausted. ---- */

TEST_FOR(more_blocking_operations_than_threads_all_end, 60) { /* hazards row 36 */
    enum { N = 600 };
    upcall_config config = default_config();
    config.workers = 2;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    static upcall_op ops[N];
    static upcall_id ids[N];
    static char data[N][16];
    int file = temp_file(16 * N);
    for (int i = 0; i < N; i++)
        ops[i] = i % 4 == 0   ? upcall_op_work(seven, NULL)
                 : i % 4 == 1 ? upcall_op_fsync(file)
                 : i % 4 == 2 ? upcall_op_pread(file, data[i], 16, 16 * i)
                              : upcall_op_open(AT_FDCWD, "/nonexistent/file", O_RDONLY, 0);
    submit_many(loop, ops, N, &rec, ids);
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(final_of(&rec, ids[i]).result, i % 4 == 0 ? 7 : i % 4 == 1 ? 0 : i % 4 == 2 ? 16 : -ENOENT);
        if (i % 4 == 2)
            CHECK(has_pattern(data[i], 16, (uint64_t)i * 16));
    }
    free_loop(loop);
}

static atomic_int running, most, leave;
static int64_t wait_to_leave(void *arg) {
    (void)arg;
    int now = atomic_fetch_add(&running, 1) + 1;
    for (int seen = atomic_load(&most); now > seen && !atomic_compare_exchange_weak(&most, &seen, now);) {}
    while (!atomic_load(&leave))
        pause_ms(1);
    atomic_fetch_sub(&running, 1);
    return 1;
}

TEST(work_never_takes_the_last_thread) { /* file operations always find one */
    for (uint32_t workers = 2; workers <= 4; workers += 2) {
        upcall_config config = default_config();
        config.workers = workers;
        upcall_loop *loop = loop_with(&config);
        struct recorder rec = {0};
        int file = temp_file(100);
        struct statx st;
        atomic_store(&leave, 0);
        atomic_store(&most, 0);
        for (int i = 0; i < 20; i++)
            submit_one(loop, upcall_op_work(wait_to_leave, NULL), &rec);
        for (int i = 0; i < 30; i++) {
            CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
            CHECK_EQ(complete(loop, upcall_op_statx(AT_FDCWD, "/", 0, STATX_BASIC_STATS, &st)).result, 0);
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        }
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(atomic_load(&most), workers - 1);
        atomic_store(&leave, 1);
        run_finals(loop, &rec, 20);
        CHECK_EQ(atomic_load(&most), workers - 1);
        free_loop(loop);
    }
}

/* Operations that may wait without limit hold no thread of the pool. */
TEST(endless_waits_do_not_take_the_pool) {
    upcall_config config = default_config();
    config.workers = 2;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    enum { N = 12 };
    upcall_id ids[N];
    struct sockaddr_in addresses[N];
    int file = temp_file(100), clients[N];
    for (int i = 0; i < N; i++) /* accept on blocking listeners */
        ids[i] = submit_one(loop, upcall_op_accept(tcp_listener(&addresses[i], 0, 4), NULL, NULL, 0), &rec);
    start_all(loop);
    pause_ms(5);
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_work(seven, NULL)).result, 7);
    CHECK_EQ(rec.count, 0);
    for (int i = 0; i < N; i += 2)
        clients[i] = tcp_connected_to(&addresses[i]);
    run_finals(loop, &rec, N / 2);
    for (int i = 1; i < N; i += 2)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    run_finals(loop, &rec, N);
    for (int i = 0; i < N; i++) {
        int64_t result = final_of(&rec, ids[i]).result;
        CHECK_EQ(result >= 0 ? 0 : result, i % 2 ? -ECANCELED : 0);
        if (i % 2 == 0) {
            close((int)result);
            close(clients[i]);
        }
    }
    free_loop(loop);
}
