/**
 * @file upcall_watch.h
 * @brief What the adapters are built of: the descriptor and the timer of a library that does its own I/O.
 *
 * Such a library says "tell me when this socket is readable", changes its mind in the middle of being told, and closes the
 * socket when it likes. A watch turns that into one-shot poll operations, at most one for each direction. An operation in
 * flight must not lose its descriptor, so the watch polls a duplicate, and closes it after its operations' final events:
 * the library may close its own at once, and its number may be reused.
 *
 * To be copied or included, with upcall_curl.h, upcall_hiredis.h, upcall_pq.h or upcall_ares.h; C99 and C++11. All
 * functions are the loop's owner thread's. All memory is the caller's, and may be freed in the `ended` callback or after
 * it; that comes at the latest in upcall_loop_close() or upcall_loop_free().
 */
#ifndef UPCALL_WATCH_H
#define UPCALL_WATCH_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <upcall.h>

/* ---- A descriptor. ---- */

typedef struct upcall_watch upcall_watch;

/**
 * @brief A watched descriptor; the members are read-only for others.
 */
struct upcall_watch {
    upcall_loop *loop;
    /** `events`: POLLIN or POLLOUT, one at a time, which errors and ends of streams show as well; or a negative errno, the
     * last call: it cannot be watched any more, -ESHUTDOWN when the loop closes. Runs in a turn; may call all of this. */
    void (*ready)(upcall_watch *watch, int events);
    /** After upcall_watch_end(), perhaps inside it: the memory is the caller's again. */
    void (*ended)(upcall_watch *watch);
    upcall_id ids[2];
    int fd;                 /* the duplicate */
    int error;              /* the negative errno that ended it */
    unsigned wanted, armed; /* POLLIN, POLLOUT: as asked for, and in flight */
    unsigned busy, told, ending;
};

static inline void upcall_watch_finish(upcall_watch *watch)
{
    close(watch->fd);
    watch->ended(watch);
}

static inline void upcall_watch_cancel(upcall_watch *watch, unsigned sides)
{
    for (unsigned i = 0; i < 2; i++)
        if (sides & watch->armed & (i ? POLLOUT : POLLIN))
            upcall_cancel(watch->loop, watch->ids[i]); /* its own event answers */
}

static inline void upcall_watch_on_event(upcall_loop *loop, const upcall_event *event);

/* Makes what is in flight what is wanted. What was asked to end and is wanted again begins again when it has ended. */
static inline int upcall_watch_arm(upcall_watch *watch)
{
    upcall_watch_cancel(watch, ~watch->wanted);
    for (unsigned i = 0; i < 2 && watch->error == 0; i++) {
        unsigned side = i ? POLLOUT : POLLIN;

        if (watch->wanted & ~watch->armed & side) {
            upcall_op op = upcall_op_poll(watch->fd, side);

            op.callback = upcall_watch_on_event;
            op.user = watch;
            watch->error = upcall_submit(watch->loop, &op, 1, &watch->ids[i]);
            if (watch->error == 0)
                watch->armed |= side;
        }
    }
    if (watch->error != 0)
        upcall_watch_cancel(watch, POLLIN | POLLOUT);
    return watch->error;
}

static inline void upcall_watch_on_event(upcall_loop *loop, const upcall_event *event)
{
    upcall_watch *watch = (upcall_watch *)event->user;
    unsigned side = event->id == watch->ids[0] ? POLLIN : POLLOUT;

    (void)loop;
    watch->armed &= ~side;
    watch->busy = 1;
    if (event->result < 0 && event->result != -ECANCELED && watch->error == 0)
        watch->error = (int)event->result;
    if (event->result >= 0 && watch->error == 0 && watch->wanted & side && !watch->ending)
        watch->ready(watch, (int)side);
    if (!watch->ending && upcall_watch_arm(watch) != 0 && !watch->told) {
        watch->told = 1;
        watch->ready(watch, watch->error);
    }
    watch->busy = 0;
    if (watch->ending && watch->armed == 0)
        upcall_watch_finish(watch);
}

/**
 * @brief Begins to watch `fd`, which stays the caller's and may be closed at any time; nothing is wanted of it yet.
 *
 * @return 0; -EBADF, -EMFILE: there is no duplicate, and upcall_watch_end() must not be called.
 */
static inline int upcall_watch_start(upcall_watch *watch, upcall_loop *loop, int fd,
                                     void (*ready)(upcall_watch *, int), void (*ended)(upcall_watch *))
{
    memset(watch, 0, sizeof *watch);
    watch->loop = loop;
    watch->ready = ready;
    watch->ended = ended;
    watch->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return watch->fd < 0 ? -errno : 0;
}

/**
 * @brief Sets what is wanted, by level: POLLIN, POLLOUT, both or 0, which does not keep upcall_run() alive.
 *
 * @return 0; or upcall_submit()'s error, when no call of `ready` will tell it.
 */
static inline int upcall_watch_set(upcall_watch *watch, unsigned wanted)
{
    watch->wanted = wanted;
    if (watch->ending || watch->busy || upcall_watch_arm(watch) == 0)
        return 0;
    return watch->armed != 0 && !watch->told ? 0 : watch->error;
}

/**
 * @brief Ends it: `ready` is not called again, `ended` is, exactly once, when nothing is in flight any more.
 */
static inline void upcall_watch_end(upcall_watch *watch)
{
    if (watch->ending)
        return;
    watch->ending = 1;
    watch->wanted = 0;
    upcall_watch_cancel(watch, POLLIN | POLLOUT);
    if (watch->armed == 0 && !watch->busy)
        upcall_watch_finish(watch);
}

/* ---- A timer. ---- */

#define UPCALL_TIMER_NONE UINT64_MAX

typedef struct upcall_timer upcall_timer;

/**
 * @brief A timer that can be set again and again, and that knows when the loop closes. One operation is in flight all the time,
 * with UPCALL_BACKGROUND; while the timer is set, upcall_hold() keeps upcall_run() alive. The members are read-only for others.
 */
struct upcall_timer {
    upcall_loop *loop; /* NULL: it closes, and is not to be used any more */
    /** It is time, and the timer is no longer set; or the loop closes (upcall_timer.loop is NULL), which is the last call.
     * Runs in a turn; may call all of this. */
    void (*fire)(upcall_timer *timer);
    /** After upcall_timer_end(), perhaps inside it: the memory is the caller's again. */
    void (*ended)(upcall_timer *timer);
    upcall_id id;
    uint64_t due_ns, armed_ns; /* CLOCK_MONOTONIC: as asked for, and of the operation in flight; or UPCALL_TIMER_NONE */
    unsigned in_flight, held, busy, ending;
};

static inline uint64_t upcall_timer_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now); /* not upcall_now(): the library's own clock may be past the turn's */
    return (uint64_t)now.tv_sec * UPCALL_SECOND + (uint64_t)now.tv_nsec;
}

static inline void upcall_timer_hold(upcall_timer *timer)
{
    unsigned wanted = timer->due_ns != UPCALL_TIMER_NONE;

    if (timer->loop != NULL && wanted != timer->held)
        (void)(wanted ? upcall_hold(timer->loop) : upcall_unhold(timer->loop));
    timer->held = wanted;
}

static inline void upcall_timer_on_event(upcall_loop *loop, const upcall_event *event);

static inline int upcall_timer_arm(upcall_timer *timer)
{
    upcall_op op = upcall_op_sleep_until(timer->due_ns);
    int rc;

    op.flags = UPCALL_BACKGROUND;
    op.callback = upcall_timer_on_event;
    op.user = timer;
    timer->armed_ns = timer->due_ns;
    rc = upcall_submit(timer->loop, &op, 1, &timer->id);
    timer->in_flight = rc == 0;
    return rc;
}

/* Its operation has ended: because it is time, because another time is wanted, because of upcall_timer_end(), or because the loop
 * closes. */
static inline void upcall_timer_turn(upcall_loop *loop, void *data)
{
    upcall_timer *timer = (upcall_timer *)data;
    int rc = 0;

    timer->in_flight = 0;
    timer->busy = 1;
    if (timer->due_ns != UPCALL_TIMER_NONE && timer->due_ns <= upcall_timer_now()) {
        timer->due_ns = UPCALL_TIMER_NONE;
        timer->fire(timer);
    }
    if (!timer->ending && (rc = upcall_timer_arm(timer)) < 0 && rc != -ESHUTDOWN) {
        rc = upcall_post(loop, upcall_timer_turn, timer); /* another thread was quicker to take what the operation had left */
        timer->in_flight = rc == 0;
    }
    if (rc < 0)
        timer->due_ns = UPCALL_TIMER_NONE;
    upcall_timer_hold(timer);
    if (rc < 0) {
        timer->loop = NULL;
        timer->fire(timer);
    }
    timer->busy = 0;
    if (timer->ending && !timer->in_flight)
        timer->ended(timer);
}

static inline void upcall_timer_on_event(upcall_loop *loop, const upcall_event *event)
{
    upcall_timer_turn(loop, event->user);
}

/**
 * @brief Makes a timer that is not set.
 *
 * @return 0; or upcall_submit()'s error, and upcall_timer_end() must not be called.
 */
static inline int upcall_timer_start(upcall_timer *timer, upcall_loop *loop, void (*fire)(upcall_timer *),
                                     void (*ended)(upcall_timer *))
{
    memset(timer, 0, sizeof *timer);
    timer->loop = loop;
    timer->fire = fire;
    timer->ended = ended;
    timer->due_ns = UPCALL_TIMER_NONE;
    return upcall_timer_arm(timer);
}

/**
 * @brief Sets it to `delay_ns` from now, 0 for the next turn, in place of what it was set to; UPCALL_TIMER_NONE: not at all.
 */
static inline void upcall_timer_set(upcall_timer *timer, uint64_t delay_ns)
{
    uint64_t now = upcall_timer_now();

    if (timer->loop == NULL || timer->ending)
        return;
    timer->due_ns = delay_ns < UPCALL_TIMER_NONE - now ? now + delay_ns : UPCALL_TIMER_NONE;
    upcall_timer_hold(timer);
    if (timer->in_flight && timer->due_ns < timer->armed_ns)
        upcall_cancel(timer->loop, timer->id); /* one that ends too early goes on with the rest */
}

/**
 * @brief Ends it: `fire` is not called again, `ended` is, exactly once, when nothing is in flight any more.
 */
static inline void upcall_timer_end(upcall_timer *timer)
{
    if (timer->ending)
        return;
    timer->ending = 1;
    timer->due_ns = UPCALL_TIMER_NONE;
    upcall_timer_hold(timer);
    if (timer->in_flight)
        upcall_cancel(timer->loop, timer->id);
    else if (!timer->busy)
        timer->ended(timer);
}

#endif
