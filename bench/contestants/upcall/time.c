/* Timers and posts. Each timer is a submit of its own, as a program arms them one by one. */
#include "loop.h"

static upcall_id *ids;
static uint64_t ended;

static void turn(void) {
    must(upcall_poll(loop, -1), "upcall_poll");
}

static void on_timer(upcall_loop *l, const upcall_event *event) {
    (void)l;
    (void)event;
    ended++;
}

static void timers_open(size_t n) {
    ids = bench_memory(n * sizeof *ids);
    loop_open();
    must(upcall_poll(loop, 0), "upcall_poll"); /* this thread owns it */
}

static void arm(size_t n, const uint32_t *delays) {
    for (size_t i = 0; i < n; i++) {
        upcall_op op = upcall_op_sleep(delays[i] * UPCALL_MILLISECOND);
        op.callback = on_timer;
        must(upcall_submit(loop, &op, 1, &ids[i]), "upcall_submit");
    }
    must(upcall_poll(loop, 0), "upcall_poll");
}

static void fire(size_t n) {
    uint64_t goal = ended + n;
    while (ended < goal)
        turn();
}

static void cancel(size_t n) {
    uint64_t goal = ended + n;
    for (size_t i = 0; i < n; i++)
        must(upcall_cancel(loop, ids[i]), "upcall_cancel");
    while (ended < goal)
        turn();
}

const struct bench_timers upcall_timers = {timers_open, arm, cancel, fire, loop_close};

/* ---- Posts ---- */

static void on_post(upcall_loop *l, void *argument) {
    (void)l;
    (void)argument;
    bench_posted++;
}

static void posts_open(void) {
    loop_open();
    must(upcall_poll(loop, 0), "upcall_poll");
}

static void post(unsigned thread) {
    (void)thread;
    must(upcall_post(loop, on_post, NULL), "upcall_post");
}

static void drain(uint64_t count) {
    uint64_t goal = bench_posted + count;
    while (bench_posted < goal)
        turn();
}

const struct bench_posts upcall_posts = {posts_open, NULL, post, drain, loop_close};
