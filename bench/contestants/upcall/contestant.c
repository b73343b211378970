#include "loop.h"

upcall_loop *loop;

static upcall_loop *open_one(void) {
    upcall_loop *one;
    upcall_config config;
    upcall_config_init(&config);
    config.spin_ns = (uint64_t)bench_number("spin", 0);
    long rc = upcall_loop_new(&config, &one);
    if (rc == -1 /* EPERM */ || rc == -38 /* ENOSYS */)
        bench_skip(upcall_last_error());
    must(rc, "upcall_loop_new");
    return one;
}

void loop_open(void) {
    loop = open_one();
}

void loop_close(void) {
    must(upcall_loop_free(loop), "upcall_loop_free");
}

static void *new_loop(void) {
    upcall_loop *one = open_one();
    must(upcall_poll(one, 0), "upcall_poll");
    return one;
}

const struct bench_contestant bench_contestant = {
    .name = "upcall", .version = LIBRARY_VERSION, .runs = upcall_runs, .stream = &upcall_stream,
    .datagram = &upcall_datagram, .timers = &upcall_timers, .posts = &upcall_posts, .new_loop = new_loop};
