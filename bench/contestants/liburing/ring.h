/* The raw ring as liburing's authors configure it for one thread: SINGLE_ISSUER | DEFER_TASKRUN, a registered ring descriptor,
 * a completion queue larger than the submission queue. (COOP_TASKRUN is implied by DEFER_TASKRUN.) */
#ifndef RING_H
#define RING_H

#include "bench.h"

#include <liburing.h>

extern struct io_uring ring;
void ring_open(unsigned entries);
void ring_close(void);

/* A free entry; hands the queue over when it is full. */
static inline struct io_uring_sqe *ring_sqe(void) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    if (__builtin_expect(!sqe, 0)) {
        bench_must(io_uring_submit(&ring), "io_uring_submit");
        sqe = io_uring_get_sqe(&ring);
    }
    return sqe;
}

/* Hand over and wait for at least one completion. */
static inline void ring_wait(void) {
    int rc = io_uring_submit_and_wait(&ring, 1);
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
        bench_must(rc, "io_uring_submit_and_wait");
}

/* runs.c, net.c, time.c */
extern const struct bench_run liburing_runs[];
extern const struct bench_server liburing_stream, liburing_datagram;
extern const struct bench_timers liburing_timers;
extern const struct bench_posts liburing_posts;

#endif
