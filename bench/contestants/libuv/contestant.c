#include "uv_loop.h"

#include <stdlib.h>

#define TEXT(x) #x
#define STRING(x) TEXT(x)

uv_loop_t loop;

void loop_open(void) {
    bench_must(uv_loop_init(&loop), "uv_loop_init");
}

static void close_handle(uv_handle_t *handle, void *unused) {
    (void)unused;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void loop_close(void) {
    uv_walk(&loop, close_handle, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    bench_must(uv_loop_close(&loop), "uv_loop_close");
}

static void *new_loop(void) {
    uv_loop_t *one = malloc(sizeof *one);
    bench_must(uv_loop_init(one), "uv_loop_init");
    uv_run(one, UV_RUN_NOWAIT);
    return one;
}

const struct bench_contestant bench_contestant = {
    .name = "libuv", .version = STRING(UV_VERSION_MAJOR) "." STRING(UV_VERSION_MINOR) "." STRING(UV_VERSION_PATCH),
    .runs = libuv_runs, .stream = &libuv_stream, .datagram = &libuv_datagram, .timers = &libuv_timers, .posts = &libuv_posts,
    .new_loop = new_loop};
