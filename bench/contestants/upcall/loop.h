/* Upcall as its README shows it, on the backend that UPCALL_BACKEND names, with the default configuration; spin= sets spin_ns. */
#ifndef LOOP_H
#define LOOP_H

#include "bench.h"

#include <upcall.h>

extern upcall_loop *loop;
void loop_open(void);
void loop_close(void);

static inline long must(long rc, const char *what) {
    if (__builtin_expect(rc < 0, 0))
        bench_die(what, *upcall_last_error() ? upcall_last_error() : upcall_strerror((int)rc));
    return rc;
}

static inline void submit(const upcall_op *op) {
    must(upcall_submit(loop, op, 1, NULL), "upcall_submit");
}

extern const struct bench_run upcall_runs[];
extern const struct bench_server upcall_stream, upcall_datagram;
extern const struct bench_timers upcall_timers;
extern const struct bench_posts upcall_posts;

#endif
