/**
 * @file upcall_hiredis.h
 * @brief hiredis' asynchronous contexts in an Upcall loop.
 *
 *     redisAsyncContext *redis = redisAsyncConnect("127.0.0.1", 6379);
 *     upcall_hiredis_attach(loop, redis);
 *     redisAsyncCommand(redis, on_reply, NULL, "SET key value");
 *     upcall_run(loop);                                      // until redisAsyncDisconnect() or redisAsyncFree()
 *
 * To be copied or included, with upcall_watch.h. Everything here, and all of hiredis for such a context, is the loop's owner
 * thread's. A connection takes two descriptors (see upcall_watch.h).
 */
#ifndef UPCALL_HIREDIS_H
#define UPCALL_HIREDIS_H

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include <hiredis/async.h>
#include <hiredis/hiredis.h>

#include "upcall_watch.h"

/* One context; it lasts until hiredis has let go of it and nothing is in flight. */
typedef struct upcall_hiredis {
    upcall_watch watch; /* the first member */
    upcall_timer timer; /* for redisAsyncSetTimeout(), since hiredis 1.0 */
    redisAsyncContext *redis;
    unsigned parts; /* of the two above, in use */
} upcall_hiredis;

static inline void upcall_hiredis_release(upcall_hiredis *h)
{
    if (--h->parts == 0)
        free(h);
}

static inline void upcall_hiredis_on_watch_ended(upcall_watch *watch)
{
    upcall_hiredis_release((upcall_hiredis *)watch);
}

/* Each of hiredis' functions may free the context, and so end the watch and the timer. */
static inline void upcall_hiredis_on_ready(upcall_watch *watch, int events)
{
    redisAsyncContext *redis = ((upcall_hiredis *)watch)->redis;

    if (events == POLLIN) {
        redisAsyncHandleRead(redis);
    } else if (events == POLLOUT) {
        redisAsyncHandleWrite(redis);
    } else {
        redis->c.err = redis->err = REDIS_ERR_OTHER;
        snprintf(redis->c.errstr, sizeof redis->c.errstr, "%s", upcall_strerror(events));
        redis->errstr = redis->c.errstr;
        redisAsyncFree(redis);
    }
}

#if HIREDIS_MAJOR >= 1
static inline void upcall_hiredis_on_fire(upcall_timer *timer)
{
    if (timer->loop != NULL) /* otherwise the watch tells */
        redisAsyncHandleTimeout(((upcall_hiredis *)((char *)timer - offsetof(upcall_hiredis, timer)))->redis);
}

static inline void upcall_hiredis_on_timer_ended(upcall_timer *timer)
{
    upcall_hiredis_release((upcall_hiredis *)((char *)timer - offsetof(upcall_hiredis, timer)));
}

static inline void upcall_hiredis_schedule_timer(void *data, struct timeval delay)
{
    upcall_hiredis *h = (upcall_hiredis *)data;

    if (h->parts == 1 && upcall_timer_start(&h->timer, h->watch.loop, upcall_hiredis_on_fire,
                                            upcall_hiredis_on_timer_ended) == 0)
        h->parts = 2;
    if (h->parts == 2)
        upcall_timer_set(&h->timer,
                         (uint64_t)delay.tv_sec * UPCALL_SECOND + (uint64_t)delay.tv_usec * UPCALL_MICROSECOND);
}
#endif

/* What follows is hiredis' to call, inside any of its functions. There is always something in flight, so an error is told
 * to upcall_hiredis_on_ready(). */
static inline void upcall_hiredis_add_read(void *h)
{
    upcall_watch *watch = &((upcall_hiredis *)h)->watch;
    upcall_watch_set(watch, watch->wanted | POLLIN);
}

static inline void upcall_hiredis_del_read(void *h)
{
    upcall_watch *watch = &((upcall_hiredis *)h)->watch;
    upcall_watch_set(watch, watch->wanted & ~(unsigned)POLLIN);
}

static inline void upcall_hiredis_add_write(void *h)
{
    upcall_watch *watch = &((upcall_hiredis *)h)->watch;
    upcall_watch_set(watch, watch->wanted | POLLOUT);
}

static inline void upcall_hiredis_del_write(void *h)
{
    upcall_watch *watch = &((upcall_hiredis *)h)->watch;
    upcall_watch_set(watch, watch->wanted & ~(unsigned)POLLOUT);
}

static inline void upcall_hiredis_cleanup(void *data)
{
    upcall_hiredis *h = (upcall_hiredis *)data;

    memset(&h->redis->ev, 0, sizeof h->redis->ev);
    if (h->parts == 2)
        upcall_timer_end(&h->timer);
    upcall_watch_end(&h->watch);
}

/**
 * @brief Runs a context that redisAsyncConnect() or one of its relatives has just made in `loop`.
 *
 * Right after it was made, before or after its callbacks are set and the first commands given. The context stays the program's,
 * and ends as always, by redisAsyncDisconnect(), redisAsyncFree(), or an error, also inside its callbacks; this needs nothing.
 *
 * When the loop closes first, the context is freed as by redisAsyncFree(): the commands in flight get a NULL reply, and the
 * program must not use it afterwards. So it is when the connection cannot be watched (upcall_config.max_operations, memory).
 * upcall_run() goes on until the context has ended.
 *
 * @return 0; -EBUSY for a context that is attached already; -EMFILE, -ENOMEM, or upcall_submit()'s error: then the context is
 * as it was.
 */
static inline int upcall_hiredis_attach(upcall_loop *loop, redisAsyncContext *redis)
{
    upcall_hiredis *h;
    int rc;

    if (redis->ev.data != NULL)
        return -EBUSY;
    h = (upcall_hiredis *)calloc(1, sizeof *h);
    if (h == NULL)
        return -ENOMEM;
    rc = upcall_watch_start(&h->watch, loop, redis->c.fd, upcall_hiredis_on_ready, upcall_hiredis_on_watch_ended);
    if (rc < 0) {
        free(h);
        return rc;
    }
    h->parts = 1;
    h->redis = redis;
    rc = upcall_watch_set(&h->watch, POLLOUT); /* which tells that it is connected */
    if (rc < 0) {
        upcall_watch_end(&h->watch);
        return rc;
    }
    redis->ev.addRead = upcall_hiredis_add_read;
    redis->ev.delRead = upcall_hiredis_del_read;
    redis->ev.addWrite = upcall_hiredis_add_write;
    redis->ev.delWrite = upcall_hiredis_del_write;
#if HIREDIS_MAJOR >= 1
    redis->ev.scheduleTimer = upcall_hiredis_schedule_timer;
#endif
    redis->ev.cleanup = upcall_hiredis_cleanup;
    redis->ev.data = h;
    return 0;
}

#endif
