/* Timers, and uv_async_send() with a queue, which it needs because it coalesces. */
#include "uv_loop.h"

static uv_timer_t *timers;
static uint64_t ended;

static void on_timer(uv_timer_t *timer) {
    (void)timer;
    ended++;
}

static void timers_open(size_t n) {
    timers = bench_memory(n * sizeof *timers);
    loop_open();
    for (size_t i = 0; i < n; i++)
        uv_timer_init(&loop, &timers[i]);
}

static void arm(size_t n, const uint32_t *delays) {
    uv_update_time(&loop);
    for (size_t i = 0; i < n; i++)
        uv_timer_start(&timers[i], on_timer, delays[i], 0);
}

static void cancel(size_t n) {
    for (size_t i = 0; i < n; i++)
        uv_timer_stop(&timers[i]);
}

static void fire(size_t n) {
    uint64_t goal = ended + n;
    while (ended < goal)
        uv_run(&loop, UV_RUN_ONCE);
}

const struct bench_timers libuv_timers = {timers_open, arm, cancel, fire, loop_close};

static uv_async_t wake;

static void on_wake(uv_async_t *async) {
    (void)async;
    bench_posted += bench_queue_take();
}

static void posts_open(void) {
    loop_open();
    bench_must(uv_async_init(&loop, &wake, on_wake), "uv_async_init");
}

static void post(unsigned thread) {
    (void)thread;
    if (!bench_queue_push())
        uv_async_send(&wake);
}

static void drain(uint64_t count) {
    while (bench_posted < count)
        uv_run(&loop, UV_RUN_ONCE);
}

const struct bench_posts libuv_posts = {posts_open, NULL, post, drain, loop_close};
