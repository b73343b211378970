/* upcall_watch.h by itself: what a library that closes its descriptors when it likes may do to it. */
#include "upcall_watch.h"

#include "check.h"

struct subject {
    upcall_watch watch; /* the first member */
    unsigned reads, writes, ends;
    int error;
    void (*act)(struct subject *);
    upcall_watch *other;
};

static void on_ready(upcall_watch *watch, int events) {
    struct subject *s = (struct subject *)watch;
    CHECK_EQ(s->ends, 0);
    if (events == POLLIN)
        s->reads++;
    else if (events == POLLOUT)
        s->writes++;
    else
        s->error = events;
    if (s->act != NULL)
        s->act(s);
}

static void on_ended(upcall_watch *watch) {
    ((struct subject *)watch)->ends++;
}

static void begin(upcall_loop *loop, struct subject *s, int fd, void (*act)(struct subject *)) {
    *s = (struct subject){.act = act};
    CHECK_EQ(upcall_watch_start(&s->watch, loop, fd, on_ready, on_ended), 0);
}

static void set(struct subject *s, unsigned wanted) {
    CHECK_EQ(upcall_watch_set(&s->watch, wanted), 0);
}

static void run(upcall_loop *loop) {
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(in_flight(loop), 0);
}

static void turns(upcall_loop *loop, int n) {
    while (n-- > 0)
        CHECK(upcall_poll(loop, 0) >= 0);
}

static void want_nothing(struct subject *s) {
    set(s, 0);
}

static void end_it(struct subject *s) {
    upcall_watch_end(&s->watch);
    CHECK_EQ(s->ends, 0); /* not while it is being told */
}

TEST(by_level_until_it_is_no_longer_wanted) {
    struct subject s;
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &s, fds[0], NULL);
    set(&s, POLLIN);
    turns(loop, 20);
    CHECK_EQ(s.reads + s.writes, 0);
    write_all(fds[1], "x", 1);
    while (s.reads < 5) /* nobody reads it */
        turns(loop, 1);
    s.act = want_nothing;
    run(loop);
    CHECK_EQ(s.reads, 6);
    upcall_watch_end(&s.watch);
    CHECK_EQ(s.ends, 1);
    free_loop(loop);
    close_pair(fds);
}

static void only_reads(struct subject *s) {
    set(s, s->writes > 0 ? 0 : POLLIN | POLLOUT);
}

TEST(both_directions) {
    struct subject s;
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &s, fds[0], only_reads);
    set(&s, POLLIN | POLLOUT);
    run(loop); /* also the operation that waits for data has ended */
    CHECK_EQ(s.writes, 1);
    CHECK_EQ(s.reads, 0);
    write_all(fds[1], "x", 1);
    s.act = want_nothing;
    set(&s, POLLIN);
    run(loop);
    CHECK_EQ(s.reads, 1);
    upcall_watch_end(&s.watch);
    free_loop(loop);
    close_pair(fds);
}

/* Ready and no longer wanted, or no longer there, before the turn that would tell. */
TEST(what_is_unwanted_meanwhile_is_not_told) {
    struct subject s, t;
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    write_all(fds[1], "x", 1);
    begin(loop, &s, fds[0], NULL);
    begin(loop, &t, fds[0], NULL);
    set(&s, POLLIN);
    set(&t, POLLIN);
    set(&s, 0);
    upcall_watch_end(&t.watch);
    run(loop);
    CHECK_EQ(s.reads + t.reads, 0);
    CHECK_EQ(t.ends, 1);
    set(&s, POLLIN);
    set(&s, 0);
    set(&s, POLLIN);
    s.act = want_nothing;
    run(loop);
    CHECK_EQ(s.reads, 1);
    upcall_watch_end(&s.watch);
    free_loop(loop);
    close_pair(fds);
}

static void unwant_both(struct subject *s) {
    CHECK_EQ(upcall_watch_set(s->other, 0), 0);
    set(s, 0);
}

static void end_other(struct subject *s) {
    upcall_watch_end(s->other);
    upcall_watch_end(&s->watch);
}

/* Both are ready in the same turn, and the first that is told changes the second. */
static void two_in_a_turn(void (*act)(struct subject *), unsigned ends) {
    struct subject s, t;
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &s, fds[0], act);
    begin(loop, &t, fds[0], act);
    s.other = &t.watch;
    t.other = &s.watch;
    set(&s, POLLIN);
    set(&t, POLLIN);
    turns(loop, 3);
    write_all(fds[1], "x", 1);
    run(loop);
    CHECK_EQ(s.reads + t.reads, 1);
    CHECK_EQ(s.ends, ends);
    CHECK_EQ(t.ends, ends);
    upcall_watch_end(&s.watch);
    upcall_watch_end(&t.watch);
    free_loop(loop);
    close_pair(fds);
}

TEST(ended_by_another_one_in_the_same_turn) {
    two_in_a_turn(end_other, 1);
}

TEST(unwanted_by_another_one_in_the_same_turn) {
    two_in_a_turn(unwant_both, 0);
}

TEST(ended_while_it_is_told) {
    struct subject s;
    int fds[2], open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &s, fds[0], end_it);
    set(&s, POLLIN | POLLOUT);
    run(loop);
    CHECK_EQ(s.writes, 1);
    CHECK_EQ(s.ends, 1);
    free_loop(loop);
    close_pair(fds);
    CHECK_EQ(open_fd_count(), open_before);
}

/* The library closes its descriptor, and opens another one that gets its number. */
TEST(the_descriptor_is_closed_and_its_number_reused) {
    struct subject s, t;
    int fds[2], others[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &s, fds[0], NULL);
    set(&s, POLLIN);
    turns(loop, 3);
    upcall_watch_end(&s.watch);
    CHECK_EQ(s.ends, 0); /* its operation has not ended */
    CHECK_EQ(close(fds[0]), 0);
    CHECK(recv(fds[1], &(char){0}, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN); /* its own is still open */
    unix_pair(others);
    CHECK_EQ(others[0], fds[0]);
    begin(loop, &t, others[0], want_nothing);
    set(&t, POLLIN);
    write_all(others[1], "x", 1);
    run(loop);
    CHECK_EQ(s.ends, 1);
    CHECK_EQ(s.reads, 0);
    CHECK_EQ(t.reads, 1);
    CHECK_EQ(recv(fds[1], &(char){0}, 1, MSG_DONTWAIT), 0); /* the peer sees the end */
    upcall_watch_end(&t.watch);
    free_loop(loop);
    close_pair(others);
    close(fds[1]);
}

TEST(a_closed_peer_is_readable_and_writable) {
    struct subject s;
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    close(fds[1]);
    begin(loop, &s, fds[0], want_nothing);
    set(&s, POLLIN);
    run(loop);
    set(&s, POLLOUT);
    run(loop);
    CHECK_EQ(s.reads, 1);
    CHECK_EQ(s.writes, 1);
    upcall_watch_end(&s.watch);
    free_loop(loop);
    close(fds[0]);
}

TEST(the_loop_closes) {
    struct subject idle, waiting;
    int fds[2], open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &idle, fds[0], NULL);
    begin(loop, &waiting, fds[0], NULL);
    set(&waiting, POLLIN);
    turns(loop, 2);
    free_loop(loop);
    CHECK_EQ(waiting.error, -ESHUTDOWN);
    CHECK_EQ(idle.error, 0);
    CHECK_EQ(upcall_watch_set(&waiting.watch, POLLIN), -ESHUTDOWN);
    upcall_watch_end(&idle.watch);
    upcall_watch_end(&waiting.watch);
    CHECK_EQ(idle.ends, 1);
    CHECK_EQ(waiting.ends, 1);
    close_pair(fds);
    CHECK_EQ(open_fd_count(), open_before);
}

/* Whoever cancels everything does not end what the library still wants. */
TEST(cancelled_by_somebody_else) {
    struct subject s;
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    begin(loop, &s, fds[0], want_nothing);
    set(&s, POLLIN);
    turns(loop, 2);
    CHECK_EQ(upcall_cancel_all(loop), 1);
    turns(loop, 3);
    write_all(fds[1], "x", 1);
    run(loop);
    CHECK_EQ(s.reads, 1);
    upcall_watch_end(&s.watch);
    free_loop(loop);
    close_pair(fds);
}

TEST(an_error_of_submit) {
    struct subject s, t;
    int fds[2];
    upcall_config config = default_config();
    config.max_operations = 1;
    upcall_loop *loop = loop_with(&config);
    unix_pair(fds);
    begin(loop, &s, fds[0], NULL);
    begin(loop, &t, fds[0], NULL);
    set(&s, POLLIN);
    CHECK_EQ(upcall_watch_set(&t.watch, POLLIN), -EAGAIN); /* nothing would tell it */
    CHECK_EQ(t.error, 0);
    set(&s, POLLIN | POLLOUT); /* the other direction will */
    run(loop);
    CHECK_EQ(s.error, -EAGAIN);
    CHECK_EQ(upcall_watch_set(&s.watch, POLLIN), -EAGAIN);
    upcall_watch_end(&s.watch);
    upcall_watch_end(&t.watch);
    CHECK_EQ(s.ends + t.ends, 2);
    CHECK_EQ(upcall_watch_start(&s.watch, loop, -1, on_ready, on_ended), -EBADF);
    free_loop(loop);
    close_pair(fds);
}

/* ---- The timer. ---- */

struct clock {
    upcall_timer timer; /* the first member */
    unsigned fires, closes, ends;
    uint64_t fired_ns, again_ns;
    bool end;
};

static void on_fire(upcall_timer *timer) {
    struct clock *c = (struct clock *)timer;
    CHECK_EQ(c->ends, 0);
    if (timer->loop == NULL) {
        c->closes++;
        return;
    }
    c->fires++;
    c->fired_ns = now_ns();
    if (c->again_ns != 0 && c->fires < 5)
        upcall_timer_set(timer, c->again_ns);
    if (c->end)
        upcall_timer_end(timer);
}

static void on_timer_ended(upcall_timer *timer) {
    ((struct clock *)timer)->ends++;
}

static void begin_clock(upcall_loop *loop, struct clock *c) {
    *c = (struct clock){0};
    CHECK_EQ(upcall_timer_start(&c->timer, loop, on_fire, on_timer_ended), 0);
}

static void end_clock(upcall_loop *loop, struct clock *c) {
    upcall_timer_end(&c->timer);
    CHECK_EQ(upcall_run(loop), 0);
    free_loop(loop);
    CHECK_EQ(c->ends, 1);
}

static void run_clock(upcall_loop *loop) {
    CHECK_EQ(upcall_run(loop), 0);
}

TEST(never_early_and_never_inside_the_call) {
    struct clock c;
    upcall_loop *loop = new_loop();
    begin_clock(loop, &c);
    run_clock(loop); /* it is not set, and keeps nothing alive */
    CHECK_EQ(c.fires, 0);
    uint64_t start = now_ns();
    upcall_timer_set(&c.timer, 20 * UPCALL_MILLISECOND);
    run_clock(loop);
    CHECK_EQ(c.fires, 1);
    CHECK(c.fired_ns >= start + 20 * UPCALL_MILLISECOND);
    upcall_timer_set(&c.timer, 0);
    CHECK_EQ(c.fires, 1);
    run_clock(loop);
    CHECK_EQ(c.fires, 2);
    end_clock(loop, &c);
}

TEST(set_to_another_time) {
    struct clock c;
    upcall_loop *loop = new_loop();
    begin_clock(loop, &c);
    upcall_timer_set(&c.timer, 3600 * UPCALL_SECOND);
    turns(loop, 3);
    upcall_timer_set(&c.timer, 5 * UPCALL_MILLISECOND); /* earlier */
    turns(loop, 3);
    uint64_t start = now_ns();
    upcall_timer_set(&c.timer, 50 * UPCALL_MILLISECOND); /* later */
    run_clock(loop);
    CHECK_EQ(c.fires, 1);
    CHECK(c.fired_ns >= start + 50 * UPCALL_MILLISECOND);
    upcall_timer_set(&c.timer, 3600 * UPCALL_SECOND);
    turns(loop, 3);
    upcall_timer_set(&c.timer, UPCALL_TIMER_NONE);
    run_clock(loop);
    CHECK_EQ(c.fires, 1);
    upcall_timer_set(&c.timer, UPCALL_TIMER_NONE - 1); /* too far to count */
    CHECK_EQ(c.timer.due_ns, UPCALL_TIMER_NONE);
    end_clock(loop, &c);
}

TEST(set_again_while_it_fires) {
    struct clock c;
    upcall_loop *loop = new_loop();
    begin_clock(loop, &c);
    c.again_ns = UPCALL_MILLISECOND;
    upcall_timer_set(&c.timer, 0);
    run_clock(loop);
    CHECK_EQ(c.fires, 5);
    end_clock(loop, &c);
}

TEST(a_timer_ended_while_it_fires_or_while_it_is_set) {
    struct clock c;
    upcall_loop *loop = new_loop();
    begin_clock(loop, &c);
    c.end = true;
    upcall_timer_set(&c.timer, 0);
    run_clock(loop);
    CHECK_EQ(c.fires, 1);
    CHECK_EQ(c.ends, 1);
    begin_clock(loop, &c);
    upcall_timer_set(&c.timer, 3600 * UPCALL_SECOND);
    turns(loop, 2);
    end_clock(loop, &c);
    CHECK_EQ(c.fires, 0);
}

TEST(the_loop_of_a_timer_closes) {
    struct clock set_, idle;
    upcall_loop *loop = new_loop();
    begin_clock(loop, &set_);
    begin_clock(loop, &idle);
    upcall_timer_set(&set_.timer, 3600 * UPCALL_SECOND);
    turns(loop, 2);
    free_loop(loop);
    CHECK_EQ(set_.closes, 1);
    CHECK_EQ(idle.closes, 1);
    CHECK_EQ(set_.fires + idle.fires, 0);
    upcall_timer_set(&set_.timer, 0);
    upcall_timer_end(&set_.timer);
    upcall_timer_end(&idle.timer);
    CHECK_EQ(set_.ends + idle.ends, 2);
}

/* It needs no operation but the one it has. */
TEST(a_timer_where_no_operation_is_left) {
    struct clock c;
    upcall_config config = default_config();
    config.max_operations = 1;
    upcall_loop *loop = loop_with(&config);
    begin_clock(loop, &c);
    c.again_ns = UPCALL_MILLISECOND;
    upcall_timer_set(&c.timer, 0);
    run_clock(loop);
    CHECK_EQ(c.fires, 5);
    end_clock(loop, &c);
}
