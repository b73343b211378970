/* The loop inside another one: upcall_fd is readable exactly when upcall_poll(loop, 0) would do something. */
#include "check.h"
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static char data[64];

static bool readable(upcall_loop *loop) {
    return is_readable(upcall_fd(loop), 0);
}

/* Turns until the loop is idle: then its descriptor must not be readable. */
static void settle(struct place at, upcall_loop *loop) {
    int turns = 0;
    while (readable(loop)) {
        int rc = upcall_poll(loop, 0);
        if (rc < 0)
            fail(at, "upcall_poll: %s", upcall_last_error());
        if (++turns > 1000)
            fail(at, "the descriptor stays readable though turns find nothing");
    }
}
#define SETTLE(loop) settle(HERE, (loop))

/* As a host would: waits for the descriptor, takes a turn; never waits inside the loop. */
static void host_until_at(struct place at, upcall_loop *loop, const size_t *count, size_t n) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (*count < n) {
        if (!is_readable(upcall_fd(loop), 10000))
            fail(at, "the descriptor does not become readable: %zu of %zu", *count, n);
        if (upcall_poll(loop, 0) < 0)
            fail(at, "upcall_poll: %s", upcall_last_error());
        if (now_ns() > limit)
            fail(at, "waited for %zu, got only %zu", n, *count);
    }
}
#define HOST_UNTIL(loop, rec, n) host_until_at(HERE, (loop), &(rec)->count, (n))

static upcall_loop *idle_loop(void) {
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    CHECK_EQ(upcall_poll(loop, MS(1)), 0); /* it has slept by itself */
    CHECK(upcall_fd(loop) >= 0);
    SETTLE(loop);
    return loop;
}

TEST(the_descriptor_stays_the_same_and_closes_on_exec) {
    upcall_loop *loop = new_loop();
    int fd = upcall_fd(loop);
    CHECK(fd >= 0);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(upcall_fd(loop), fd);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    CHECK_EQ(upcall_fd(loop), fd);
    free_loop(loop);
    CHECK(!is_open(fd));
}

TEST(an_idle_loop_is_not_readable) {
    upcall_loop *loop = idle_loop();
    for (int i = 0; i < 10; i++) {
        CHECK(!is_readable(upcall_fd(loop), 2));
        CHECK_EQ(upcall_poll(loop, 0), 0);
    }
    free_loop(loop);
}

TEST(queued_submissions_make_it_readable) {
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    for (int i = 0; i < 20; i++) {
        submit_one(loop, i % 2 ? upcall_op_nop() : upcall_op_recv(fds[0], data, 1, 0), &rec);
        CHECK(readable(loop));
        CHECK(readable(loop)); /* level-triggered */
        SETTLE(loop);
    }
    CHECK_EQ(rec.count, 10);
    free_loop(loop);
}

TEST(submissions_before_the_first_turn_make_it_readable) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_nop(), &rec);
    CHECK(readable(loop));
    HOST_UNTIL(loop, &rec, 1);
    SETTLE(loop);
    free_loop(loop);
    loop = new_loop();
    forget(&rec);
    CHECK(upcall_fd(loop) >= 0); /* asked first, submitted then */
    submit_one(loop, upcall_op_nop(), &rec);
    CHECK(readable(loop));
    HOST_UNTIL(loop, &rec, 1);
    free_loop(loop);
}

TEST(queued_cancels_make_it_readable) {
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    for (int i = 0; i < 20; i++) {
        upcall_id id = submit_one(loop, i % 2 ? upcall_op_sleep(3600 * UPCALL_SECOND)
                                              : upcall_op_recv(fds[0], data, 1, 0), &rec);
        SETTLE(loop);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        CHECK(readable(loop));
        HOST_UNTIL(loop, &rec, (size_t)i + 1);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        SETTLE(loop);
    }
    free_loop(loop);
}

TEST(completions_make_it_readable) { /* hazards rows 13, 40 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = idle_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        for (int i = 0; i < 50; i++) {
            submit_one(loop, i % 2 ? upcall_op_read(fds[0], data, 1) : upcall_op_poll(fds[0], POLLIN), &rec);
            SETTLE(loop);
            CHECK_EQ(rec.count, i);
            write_all(fds[1], "x", 1);
            CHECK(is_readable(upcall_fd(loop), 5000));
            HOST_UNTIL(loop, &rec, (size_t)i + 1);
            CHECK_EQ(rec.events[i].result, i % 2 ? 1 : POLLIN);
            drain_fd(fds[0]);
            SETTLE(loop);
        }
        close_pair(fds);
        free_loop(loop);
    }
}

static int64_t a_little_work(void *arg) {
    (void)arg;
    pause_ms(5);
    return 9;
}

TEST(pool_completions_make_it_readable) { /* hazards row 40 */
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    int file = temp_file(100);
    for (size_t i = 0; i < 20; i += 2) {
        submit_one(loop, upcall_op_work(a_little_work, NULL), &rec);
        submit_one(loop, upcall_op_fsync(file), &rec);
        HOST_UNTIL(loop, &rec, i + 2);
        SETTLE(loop);
    }
    free_loop(loop);
}

TEST(a_due_deadline_makes_it_readable) { /* hazards row 42 */
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    for (size_t i = 0; i < 12; i++) {
        upcall_op op = upcall_op_recv(fds[0], data, 1, 0);
        op.timeout_ns = 15 * UPCALL_MILLISECOND;
        uint64_t before = now_ns();
        upcall_id id = submit_one(loop, i % 2 ? op : upcall_op_sleep(op.timeout_ns), &rec);
        if (i % 4 < 2)
            SETTLE(loop); /* handed over: the host may sleep until it is due */
        HOST_UNTIL(loop, &rec, i + 1);
        CHECK(now_ns() - before >= op.timeout_ns);
        CHECK_EQ(final_of(&rec, id).result, i % 2 ? -ETIMEDOUT : 0);
        SETTLE(loop);
    }
    free_loop(loop);
}

TEST(the_nearest_of_many_deadlines_counts) {
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    SETTLE(loop);
    upcall_id near = submit_one(loop, upcall_op_sleep(20 * UPCALL_MILLISECOND), &rec);
    SETTLE(loop);
    upcall_id cancelled = submit_one(loop, upcall_op_sleep(5 * UPCALL_MILLISECOND), &rec);
    CHECK_EQ(upcall_cancel(loop, cancelled), 0);
    HOST_UNTIL(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, near).result, 0);
    for (int late = 0; late < 3; late++) { /* the kernel may tell of a completion once more, milliseconds later (6.1.192) */
        SETTLE(loop);
        pause_ms(10);
    }
    SETTLE(loop);
    CHECK(!is_readable(upcall_fd(loop), 10));
    free_loop(loop);
}

TEST(a_multishot_sleep_ticks_in_a_host) {
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_sleep(3 * UPCALL_MILLISECOND);
    op.flags = UPCALL_MULTISHOT;
    submit_one(loop, op, &rec);
    HOST_UNTIL(loop, &rec, 10);
    free_loop(loop);
}

/* A loop that once slept by itself: what woke it then must not wake its host for nothing, now or a little later. */
TEST(a_submission_wakes_the_host_once) {
    for (int i = 0; i < 40; i++) {
        upcall_loop *loop = idle_loop();
        struct recorder rec = {0};
        submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
        CHECK(readable(loop));
        CHECK_EQ(upcall_poll(loop, 0), 0);
        SETTLE(loop);
        CHECK(!is_readable(upcall_fd(loop), 10));
        free_loop(loop);
        forget(&rec);
    }
}

static atomic_int posted;
static void count_post(upcall_loop *loop, void *arg) {
    (void)loop;
    (void)arg;
    atomic_fetch_add(&posted, 1);
}
static void *post_soon(void *loop) {
    for (int i = 0; i < 10; i++) {
        pause_ms(2);
        CHECK_EQ(upcall_post(loop, count_post, NULL), 0);
    }
    return NULL;
}
static void *submit_soon(void *arg) {
    for (int i = 0; i < 10; i++) {
        pause_ms(2);
        submit_one(((void **)arg)[0], upcall_op_nop(), ((void **)arg)[1]);
    }
    return NULL;
}

TEST(posts_and_submissions_of_other_threads_make_it_readable) { /* hazards row 40 */
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    pthread_t thread = start(post_soon, loop);
    while (atomic_load(&posted) < 10) {
        CHECK(is_readable(upcall_fd(loop), 10000));
        CHECK(upcall_poll(loop, 0) >= 0);
    }
    join(thread);
    SETTLE(loop);
    void *arg[2] = {loop, &rec};
    thread = start(submit_soon, arg);
    HOST_UNTIL(loop, &rec, 10);
    join(thread);
    SETTLE(loop);
    CHECK_EQ(upcall_post(loop, count_post, NULL), 0); /* the owner's own, too */
    CHECK(readable(loop));
    CHECK_EQ(upcall_poll(loop, 0), 1);
    SETTLE(loop);
    free_loop(loop);
}

TEST(events_left_over_by_max_events_keep_it_readable) {
    upcall_config config = default_config();
    config.max_events = 2;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    CHECK(upcall_fd(loop) >= 0);
    SETTLE(loop);
    for (int i = 0; i < 11; i++) {
        submit_one(loop, upcall_op_nop(), &rec);
        CHECK_EQ(upcall_post(loop, count_post, NULL), 0);
    }
    for (size_t done = 0; done < 22;) {
        CHECK(readable(loop));
        int rc = upcall_poll(loop, 0);
        CHECK(rc >= 0 && rc <= 2);
        done = rec.count + (size_t)atomic_load(&posted);
    }
    SETTLE(loop);
    free_loop(loop);
}

TEST(it_can_be_asked_for_while_operations_are_in_flight) { /* hazards rows 13, 40 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[PAIRS][2], file = temp_file(100);
    for (int which = 0; which < PAIRS; which++) {
        make_pair(which, fds[which]);
        submit_one(loop, upcall_op_read(fds[which][0], data, 1), &rec);
    }
    submit_one(loop, upcall_op_sleep(30 * UPCALL_MILLISECOND), &rec);
    start_all(loop);
    submit_one(loop, upcall_op_fsync(file), &rec);
    CHECK(upcall_fd(loop) >= 0); /* only now */
    HOST_UNTIL(loop, &rec, 2);
    for (int which = 0; which < PAIRS; which++) {
        write_all(fds[which][1], "x", 1);
        HOST_UNTIL(loop, &rec, 3 + (size_t)which);
    }
    SETTLE(loop);
    free_loop(loop);
}

TEST(it_works_for_a_loop_with_the_smallest_queue) { /* hazards row 15 */
    upcall_config config = default_config();
    config.entries = 1;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    enum { N = 100 };
    int fds[N][2];
    CHECK(upcall_fd(loop) >= 0);
    for (int i = 0; i < N; i++) {
        unix_pair(fds[i]);
        submit_one(loop, upcall_op_recv(fds[i][0], data, 1, 0), &rec);
    }
    SETTLE(loop);
    for (int i = 0; i < N; i++)
        write_all(fds[i][1], "x", 1);
    HOST_UNTIL(loop, &rec, N);
    SETTLE(loop);
    free_loop(loop);
}

/* ---- A whole program whose only wait is the host's. ---- */

struct session {
    int fds[2], left;
    char in[16], out[16];
};
static size_t sessions_done;
static void next_step(upcall_loop *loop, const upcall_event *event) {
    struct session *session = event->user;
    upcall_op op;
    if (event->kind == UPCALL_OP_RECV) {
        CHECK_EQ(event->result, 8);
        CHECK(memcmp(session->in, session->out, 8) == 0);
        if (--session->left == 0) {
            sessions_done++;
            return;
        }
        op = upcall_op_sleep((uint64_t)session->left * 10000);
    } else if (event->kind == UPCALL_OP_SLEEP) {
        CHECK_EQ(event->result, 0);
        memcpy(session->out, &session->left, sizeof session->left);
        op = upcall_op_send(session->fds[0], session->out, 8, 0);
    } else {
        CHECK_EQ(event->result, 8);
        op = upcall_op_recv(session->fds[1], session->in, 8, 0);
        op.timeout_ns = 600 * UPCALL_SECOND;
    }
    op.callback = next_step;
    op.user = session;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
}

static void run_sessions(bool with_epoll) {
    enum { N = 30 };
    static struct session sessions[N];
    upcall_loop *loop = new_loop();
    for (int i = 0; i < N; i++) {
        make_pair(i % 2 ? UNIX : TCP, sessions[i].fds);
        sessions[i].left = 40;
        upcall_op op = upcall_op_sleep((uint64_t)i * 1000);
        op.callback = next_step;
        op.user = &sessions[i];
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    }
    int host = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event interest = {.events = EPOLLIN};
    CHECK(epoll_ctl(host, EPOLL_CTL_ADD, upcall_fd(loop), &interest) == 0);
    while (sessions_done < N) {
        if (with_epoll) {
            int rc = epoll_wait(host, &interest, 1, 10000);
            CHECK(rc == 1 || (rc == -1 && errno == EINTR));
        } else
            CHECK(is_readable(upcall_fd(loop), 10000));
        CHECK(upcall_poll(loop, 0) >= 0);
    }
    CHECK_EQ(in_flight(loop), 0);
    SETTLE(loop);
    close(host);
    free_loop(loop);
}

TEST_FOR(a_program_can_live_in_a_poll_host, 60) { /* hazards row 40 */
    run_sessions(false);
}
TEST_FOR(a_program_can_live_in_an_epoll_host, 60) { /* hazards row 40 */
    run_sessions(true);
}

static upcall_loop *guest;
static void poll_guest(upcall_loop *loop, const upcall_event *event) {
    CHECK(upcall_poll(guest, 0) >= 0);
    record(loop, event);
}

TEST(one_loop_may_host_another) { /* hazards row 40 */
    upcall_loop *host = new_loop();
    struct recorder rec = {0}, guests = {0};
    guest = new_loop();
    for (uint64_t i = 0; i < 20; i++)
        submit_one(guest, upcall_op_sleep(i * UPCALL_MILLISECOND), &guests);
    while (guests.finals < 20) {
        upcall_op op = upcall_op_poll(upcall_fd(guest), POLLIN);
        op.callback = poll_guest;
        op.user = &rec;
        submit_one(host, op, &rec);
        run_finals(host, &rec, rec.finals + 1);
    }
    free_loop(guest);
    free_loop(host);
}

TEST(an_idle_embedded_loop_costs_the_host_next_to_nothing) {
    upcall_loop *loop = idle_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    submit_one(loop, upcall_op_recv(fds[0], data, 1, 0), &rec);
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    SETTLE(loop);
    uint64_t until = now_ns() + 300 * UPCALL_MILLISECOND;
    int turns = 0;
    while (now_ns() < until)
        if (is_readable(upcall_fd(loop), 100)) {
            CHECK_EQ(upcall_poll(loop, 0), 0);
            turns++;
        }
    CHECK(turns <= 5); /* hardly a turn is asked for */
    CHECK(!readable(loop));
    CHECK_EQ(rec.count, 0);
    free_loop(loop);
}
