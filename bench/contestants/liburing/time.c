/* Timers and messages on the raw ring: a TIMEOUT entry each, and MSG_RING from the rings of the other threads. */
#include "ring.h"

#include <stdlib.h>

static uint64_t ended;
static struct __kernel_timespec *times;

static void harvest(void) {
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(&ring, head, cqe) {
        seen++;
        ended += cqe->user_data != 0;
    }
    io_uring_cq_advance(&ring, seen);
}

static void timers_open(size_t n) {
    ring_open(4096);
    times = bench_memory(n * sizeof *times);
}

static void arm(size_t n, const uint32_t *delays) {
    for (size_t i = 0; i < n; i++) {
        times[i].tv_sec = delays[i] / 1000;
        times[i].tv_nsec = delays[i] % 1000 * 1000000;
        struct io_uring_sqe *sqe = ring_sqe();
        io_uring_prep_timeout(sqe, &times[i], 0, 0);
        io_uring_sqe_set_data64(sqe, i + 1);
    }
    bench_must(io_uring_submit(&ring), "io_uring_submit");
}

static void cancel(size_t n) {
    uint64_t goal = ended + n;
    for (size_t i = 0; i < n; i++) {
        struct io_uring_sqe *sqe = ring_sqe();
        io_uring_prep_timeout_remove(sqe, i + 1, 0);
        io_uring_sqe_set_data64(sqe, 0);
        if (i % 4096 == 4095)
            harvest();
    }
    while (ended < goal) {
        ring_wait();
        harvest();
    }
}

static void fire(size_t n) {
    uint64_t goal = ended + n;
    while (ended < goal) {
        ring_wait();
        harvest();
    }
}

const struct bench_timers liburing_timers = {timers_open, arm, cancel, fire, ring_close};

/* ---- Posts ---- */

static struct io_uring sender[64];

static void posts_open(void) {
    ring_open(4096);
}

static void attach(unsigned thread) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    bench_must(io_uring_queue_init_params(64, &sender[thread], &params), "io_uring_queue_init_params");
    io_uring_register_ring_fd(&sender[thread]);
}

static void post(unsigned thread) {
    struct io_uring *from = &sender[thread];
    struct io_uring_sqe *sqe = io_uring_get_sqe(from);
    io_uring_prep_msg_ring(sqe, ring.ring_fd, 0, 1, 0);
    io_uring_sqe_set_flags(sqe, IOSQE_CQE_SKIP_SUCCESS);
    bench_must(io_uring_submit(from), "io_uring_submit");
    BENCH_CHECK(io_uring_cq_ready(from) == 0); /* a message that was refused */
}

static void drain(uint64_t count) {
    uint64_t goal = ended + count;
    while (ended < goal) {
        ring_wait();
        harvest();
    }
    bench_posted += count;
}

const struct bench_posts liburing_posts = {posts_open, attach, post, drain, ring_close};
