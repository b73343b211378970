/* upcall_glib.h with the real GLib: a loop in a main loop, each with timers and sockets of its own. */
#include "upcall_glib.h"

#include "check.h"

static GMainLoop *main_loop;
static unsigned turns;

static gboolean on_turn(gpointer data) {
    (void)data;
    turns++;
    return G_SOURCE_CONTINUE;
}

static gboolean give_up(gpointer data) {
    fail(HERE, "the main loop went on for %d seconds", (int)(PATIENCE_NS / (int64_t)UPCALL_SECOND));
    (void)data;
    return G_SOURCE_REMOVE;
}

static GSource *attach(upcall_loop *loop) {
    GSource *source;
    CHECK_EQ(upcall_glib_source_new(loop, &source), 0);
    g_source_set_callback(source, on_turn, NULL, NULL);
    CHECK(g_source_attach(source, NULL) != 0);
    g_source_unref(source); /* its context has it */
    return source;
}

static void run_main_loop(void) {
    guint watchdog = g_timeout_add((guint)(PATIENCE_NS / 1000000), give_up, NULL);
    main_loop = g_main_loop_new(NULL, FALSE);
    g_main_loop_run(main_loop);
    g_main_loop_unref(main_loop);
    g_source_remove(watchdog);
}

/* ---- Both loops at work. ---- */

enum { ROUNDS = 200, TICKS = 20 };

struct work {
    upcall_loop *loop;
    int fds[2];
    char out[1000], in[1000];
    unsigned rounds, outer_ticks, posts;
    uint64_t inner_ticks;
};

static void check_end(struct work *work) {
    if (work->rounds == ROUNDS && work->inner_ticks >= TICKS && work->outer_ticks == TICKS && work->posts == 2)
        g_main_loop_quit(main_loop);
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

static void ignore(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
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
    if ((event->flags & UPCALL_MORE) == 0)
        return;
    work->inner_ticks += (uint64_t)event->result;
    if (work->inner_ticks >= TICKS) {
        upcall_cancel(loop, event->id);
        check_end(work);
    }
}

static gboolean on_outer_tick(gpointer data) {
    struct work *work = data;
    work->outer_ticks++;
    check_end(work);
    return work->outer_ticks < TICKS;
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
    struct work work = {.loop = new_loop()};
    upcall_op tick = upcall_op_sleep(5 * UPCALL_MILLISECOND);
    pthread_t thread;
    tcp_pair(work.fds);
    attach(work.loop);
    g_timeout_add(5, on_outer_tick, &work);
    tick.flags = UPCALL_MULTISHOT;
    tick.callback = on_inner_tick;
    tick.user = &work;
    CHECK_EQ(upcall_submit(work.loop, &tick, 1, NULL), 0);
    begin_round(&work);
    thread = start(post, &work);
    run_main_loop();
    join(thread);
    CHECK(turns > 0 && turns < 20 * ROUNDS);
    free_loop(work.loop);
    close_pair(work.fds);
}

/* ---- The main loop in a callback of the inner loop. ---- */

static gboolean set_true(gpointer data) {
    *(bool *)data = true;
    return G_SOURCE_REMOVE;
}

static void nest(upcall_loop *loop, const upcall_event *event) {
    bool nested = false;
    (void)loop;
    (void)event;
    g_timeout_add(20, set_true, &nested);
    while (!nested)
        g_main_context_iteration(NULL, TRUE);
    g_main_loop_quit(main_loop);
}

static void submit_sleep(upcall_loop *loop, uint64_t ms, upcall_callback callback, void *user) {
    upcall_op op = upcall_op_sleep(ms * UPCALL_MILLISECOND);
    op.callback = callback;
    op.user = user;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
}

TEST(a_callback_that_runs_the_main_loop) {
    upcall_loop *loop = new_loop();
    attach(loop);
    submit_sleep(loop, 5, nest, NULL);
    submit_sleep(loop, 10, ignore, NULL); /* ready meanwhile */
    run_main_loop();
    free_loop(loop);
}

/* ---- The end. ---- */

static void quit(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
    g_main_loop_quit(main_loop);
}

static gboolean quit_main_loop(gpointer data) {
    (void)data;
    g_main_loop_quit(main_loop);
    return G_SOURCE_REMOVE;
}

TEST(the_source_ends_first) {
    int open_before;
    upcall_loop *loop;
    g_main_context_default(); /* which has a descriptor */
    open_before = open_fd_count();
    loop = new_loop();
    GSource *source = attach(loop);
    submit_sleep(loop, 5, quit, NULL);
    run_main_loop();
    g_source_destroy(source);
    submit_sleep(loop, 1, ignore, NULL);
    CHECK_EQ(upcall_run(loop), 0); /* the loop remains, with nothing in flight */
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(the_loop_ends_first) {
    upcall_loop *loop = new_loop();
    GSource *source = g_source_ref(attach(loop));
    submit_sleep(loop, 5, quit, NULL);
    run_main_loop();
    free_loop(loop);
    CHECK(g_source_is_destroyed(source));
    g_timeout_add(20, quit_main_loop, NULL);
    run_main_loop();
    g_source_unref(source);
}

TEST(a_source_that_was_never_attached) {
    upcall_loop *loop = new_loop();
    GSource *source;
    CHECK_EQ(upcall_glib_source_new(loop, &source), 0);
    g_source_unref(source);
    free_loop(loop);
    loop = new_loop();
    CHECK_EQ(upcall_glib_source_new(loop, &source), 0);
    free_loop(loop);
    g_source_unref(source);
}

static void destroy(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    g_source_destroy(event->user);
    g_main_loop_quit(main_loop);
}

TEST(destroyed_in_a_callback_of_its_own) {
    upcall_loop *loop = new_loop();
    submit_sleep(loop, 5, destroy, attach(loop));
    run_main_loop();
    free_loop(loop);
}

TEST(idle_loops_sleep) {
    upcall_loop *loop = new_loop();
    attach(loop);
    g_timeout_add(200, quit_main_loop, NULL);
    run_main_loop();
    CHECK(turns < 20);
    free_loop(loop);
}

TEST(a_closed_loop_has_no_source) {
    upcall_loop *loop = new_loop();
    GSource *source;
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(upcall_glib_source_new(loop, &source), -ESHUTDOWN);
    CHECK(source == NULL);
    free_loop(loop);
}
