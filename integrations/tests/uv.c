/* upcall_uv.h with the real libuv: a loop in a libuv loop, each with timers and sockets of its own. */
#include "check.h"

#define _NETINET_TCP_H 1 /* which libuv includes, and which does not go with <linux/tcp.h> */
#include "upcall_uv.h"

enum { ROUNDS = 200, TICKS = 20 };

static uv_loop_t *new_uv(void) {
    static uv_loop_t uv;
    CHECK_EQ(uv_loop_init(&uv), 0);
    return &uv;
}

static upcall_uv *embed(uv_loop_t *uv, upcall_loop *loop) {
    upcall_uv *embedded;
    CHECK_EQ(upcall_uv_new(uv, loop, &embedded), 0);
    return embedded;
}

/* libuv's first loop opens descriptors that stay. */
static int descriptors(void) {
    uv_loop_t first;
    CHECK_EQ(uv_loop_init(&first), 0);
    CHECK_EQ(uv_loop_close(&first), 0);
    return open_fd_count();
}

/* Until no handle is left. */
static void run(uv_loop_t *uv) {
    CHECK_EQ(uv_run(uv, UV_RUN_DEFAULT), 0);
}

static void close_uv(uv_loop_t *uv) {
    run(uv);
    CHECK_EQ(uv_loop_close(uv), 0);
}

static void ignore(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
}

static void submit_sleep(upcall_loop *loop, uint64_t ms, upcall_callback callback, void *user) {
    upcall_op op = upcall_op_sleep(ms * UPCALL_MILLISECOND);
    op.callback = callback;
    op.user = user;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
}

/* ---- Both loops at work. ---- */

struct work {
    upcall_loop *loop;
    upcall_uv *embedded;
    int fds[2];
    char out[1000], in[1000];
    uv_timer_t timer;
    unsigned rounds, outer_ticks, posts;
    uint64_t inner_ticks;
};

static void check_end(struct work *work) {
    if (work->rounds == ROUNDS && work->inner_ticks >= TICKS && work->outer_ticks == TICKS && work->posts == 2) {
        upcall_uv_free(work->embedded);
        work->rounds++;
    }
}

static void begin_round(struct work *work);

static void on_received(upcall_loop *loop, const upcall_event *event) {
    struct work *work = event->user;
    (void)loop;
    CHECK_EQ(event->result, sizeof work->in);
    CHECK(has_pattern(work->in, sizeof work->in, work->rounds));
    if (++work->rounds < ROUNDS)
        begin_round(work);
    check_end(work);
}

static void begin_round(struct work *work) {
    upcall_op ops[2] = {upcall_op_recv(work->fds[0], work->in, sizeof work->in, 0),
                        upcall_op_send(work->fds[1], work->out, sizeof work->out, 0)};
    fill_pattern(work->out, sizeof work->out, work->rounds);
    ops[0].flags = UPCALL_FULL;
    ops[0].callback = on_received;
    ops[0].user = work;
    ops[1].callback = ignore;
    CHECK_EQ(upcall_submit(work->loop, ops, 2, NULL), 0);
}

static void on_inner_tick(upcall_loop *loop, const upcall_event *event) {
    struct work *work = event->user;
    if ((event->flags & UPCALL_MORE) == 0 || work->inner_ticks >= TICKS)
        return;
    work->inner_ticks += (uint64_t)event->result;
    if (work->inner_ticks >= TICKS) {
        upcall_cancel(loop, event->id);
        check_end(work);
    }
}

static void on_outer_tick(uv_timer_t *timer) {
    struct work *work = timer->data;
    if (++work->outer_ticks == TICKS)
        uv_close((uv_handle_t *)timer, NULL);
    check_end(work);
}

static void on_post(upcall_loop *loop, void *data) {
    (void)loop;
    ((struct work *)data)->posts++;
    check_end(data);
}

static void *post(void *data) {
    struct work *work = data;
    pause_ms(30);
    CHECK_EQ(upcall_post(work->loop, on_post, work), 0);
    pause_ms(30);
    CHECK_EQ(upcall_post(work->loop, on_post, work), 0);
    return NULL;
}

/* Sleeps, sockets and another thread's posts reach the inner loop; the outer one's timer goes on beside it; nothing spins. */
TEST(both_loops_at_work) {
    static struct work work;
    uv_loop_t *uv = new_uv();
    upcall_op tick = upcall_op_sleep(5 * UPCALL_MILLISECOND);
    pthread_t thread;
    upcall_stats stats;
    work.loop = new_loop();
    work.embedded = embed(uv, work.loop);
    tcp_pair(work.fds);
    CHECK_EQ(uv_timer_init(uv, &work.timer), 0);
    work.timer.data = &work;
    CHECK_EQ(uv_timer_start(&work.timer, on_outer_tick, 5, 5), 0);
    tick.flags = UPCALL_MULTISHOT;
    tick.callback = on_inner_tick;
    tick.user = &work;
    CHECK_EQ(upcall_submit(work.loop, &tick, 1, NULL), 0);
    begin_round(&work);
    thread = start(post, &work);
    run(uv);
    join(thread);
    CHECK_EQ(upcall_stats_get(work.loop, &stats), 0);
    CHECK(stats.system_calls < 100 * ROUNDS);
    free_loop(work.loop);
    close_uv(uv);
    close_pair(work.fds);
}

/* ---- The end. ---- */

static void free_embedded(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    upcall_uv_free(event->user);
}

TEST(let_go_of_in_a_callback) {
    int open_before = descriptors();
    uv_loop_t *uv = new_uv();
    upcall_loop *loop = new_loop();
    submit_sleep(loop, 5, free_embedded, embed(uv, loop));
    run(uv);
    submit_sleep(loop, 1, ignore, NULL);
    CHECK_EQ(upcall_run(loop), 0); /* the loop remains, with nothing in flight */
    CHECK_EQ(in_flight(loop), 0);
    close_uv(uv);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), open_before);
}

static void stop_uv(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    uv_stop(event->user);
}

static void tear_down(bool loop_first, bool ran) {
    int open_before = descriptors();
    uv_loop_t *uv = new_uv();
    upcall_loop *loop = new_loop();
    upcall_uv *embedded = embed(uv, loop);
    if (ran) {
        submit_sleep(loop, 5, stop_uv, uv);
        CHECK(uv_run(uv, UV_RUN_DEFAULT) != 0);
    }
    submit_sleep(loop, 3600000, ignore, NULL);
    if (loop_first)
        free_loop(loop);
    upcall_uv_free(embedded);
    if (!loop_first)
        free_loop(loop);
    CHECK_EQ(uv_loop_close(uv), UV_EBUSY);
    close_uv(uv);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(teardown_in_any_order) {
    for (int i = 0; i < 4; i++)
        tear_down(i & 1, i & 2);
}

TEST(the_loop_ends_first_and_libuv_goes_on) {
    uv_loop_t *uv = new_uv();
    upcall_loop *loop = new_loop();
    upcall_uv *embedded = embed(uv, loop);
    CHECK(uv_run(uv, UV_RUN_NOWAIT) != 0);
    free_loop(loop);
    run(uv);
    upcall_uv_free(embedded);
    close_uv(uv);
}

TEST(an_unreferenced_loop_does_not_keep_libuv_going) {
    uv_loop_t *uv = new_uv();
    upcall_loop *loop = new_loop();
    upcall_uv *embedded = embed(uv, loop);
    uv_unref(upcall_uv_handle(embedded));
    run(uv);
    uv_ref(upcall_uv_handle(embedded));
    upcall_uv_free(embedded);
    close_uv(uv);
    free_loop(loop);
}

static unsigned idle_turns;

static void on_prepare(uv_prepare_t *handle) {
    (void)handle;
    idle_turns++;
}

static void on_time(uv_timer_t *timer) {
    uv_stop(timer->loop);
}

TEST(idle_loops_sleep) {
    uv_loop_t *uv = new_uv();
    uv_prepare_t prepare;
    uv_timer_t timer;
    upcall_loop *loop = new_loop();
    upcall_uv *embedded = embed(uv, loop);
    uv_prepare_init(uv, &prepare);
    uv_prepare_start(&prepare, on_prepare);
    uv_timer_init(uv, &timer);
    uv_timer_start(&timer, on_time, 200, 0);
    CHECK(uv_run(uv, UV_RUN_DEFAULT) != 0);
    CHECK(idle_turns > 0 && idle_turns < 20);
    uv_close((uv_handle_t *)&prepare, NULL);
    uv_close((uv_handle_t *)&timer, NULL);
    upcall_uv_free(embedded);
    close_uv(uv);
    free_loop(loop);
}

TEST(a_closed_loop_is_refused) {
    uv_loop_t *uv = new_uv();
    upcall_loop *loop = new_loop();
    upcall_uv *embedded;
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(upcall_uv_new(uv, loop, &embedded), -ESHUTDOWN);
    CHECK(embedded == NULL);
    close_uv(uv);
    free_loop(loop);
}
