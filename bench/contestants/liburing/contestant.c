#include "ring.h"

#include <stdlib.h>

#define TEXT(x) #x
#define STRING(x) TEXT(x)

struct io_uring ring;

static int open_one(struct io_uring *one, unsigned entries) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE |
                                              IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL,
                                     .cq_entries = entries * 4};
    int rc = io_uring_queue_init_params(entries, one, &params);
    if (rc == -EPERM || rc == -ENOSYS || rc == -EINVAL)
        bench_skip("io_uring is denied here, or too old for DEFER_TASKRUN");
    bench_must(rc, "io_uring_queue_init_params");
    return io_uring_register_ring_fd(one);
}

void ring_open(unsigned entries) {
    bench_must(open_one(&ring, entries), "io_uring_register_ring_fd");
}

void ring_close(void) {
    io_uring_queue_exit(&ring);
}

static void *new_loop(void) {
    struct io_uring *one = malloc(sizeof *one);
    open_one(one, 256); /* a process can register 16 ring descriptors; the others work without */
    io_uring_submit_and_get_events(one);
    return one;
}

const struct bench_contestant bench_contestant = {
    .name = "liburing", .version = LIBRARY_VERSION, .runs = liburing_runs, .stream = &liburing_stream,
    .datagram = &liburing_datagram, .timers = &liburing_timers, .posts = &liburing_posts, .new_loop = new_loop};
