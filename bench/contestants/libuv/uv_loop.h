/* One loop of its own. Files go to libuv's thread pool (UV_THREADPOOL_SIZE, 4 unless the environment says otherwise). */
#ifndef UV_LOOP_H
#define UV_LOOP_H

#include "bench.h"

#include <uv.h>

extern uv_loop_t loop;
void loop_open(void);
void loop_close(void); /* closes every handle that is left, and the loop */

extern const struct bench_run libuv_runs[];
extern const struct bench_server libuv_stream, libuv_datagram;
extern const struct bench_timers libuv_timers;
extern const struct bench_posts libuv_posts;

#endif
