/**
 * @file upcall_ares.h
 * @brief c-ares' DNS queries in an Upcall loop.
 *
 *     upcall_ares_new(loop, NULL, 0, &ares);
 *     ares_getaddrinfo(upcall_ares_channel(ares), "example.org", "https", &hints, on_answer, NULL);
 *     upcall_run(loop);                                      // calls on_answer(), returns when all queries have ended
 *     upcall_ares_free(ares);
 *
 * To be copied or included, with upcall_watch.h. Everything here, and all of c-ares for such a channel, is the loop's owner
 * thread's. Each socket takes two descriptors (see upcall_watch.h).
 */
#ifndef UPCALL_ARES_H
#define UPCALL_ARES_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include <ares.h>

#include "upcall_watch.h"

/**
 * @brief A channel in a loop: upcall_ares_new(), upcall_ares_channel(), upcall_ares_update(), upcall_ares_free().
 */
typedef struct upcall_ares upcall_ares;

/* One socket of c-ares'. */
typedef struct upcall_ares_socket {
    upcall_watch watch; /* the first member */
    upcall_ares *ares;
    ares_socket_t fd;
    struct upcall_ares_socket *next;
} upcall_ares_socket;

struct upcall_ares {
    ares_channel channel;
    upcall_ares_socket *sockets; /* those that c-ares has open; there are few */
    upcall_timer timer;
    unsigned busy; /* in ares_process_fd() */
    size_t users;  /* the program, the timer, each socket */
};

static inline void upcall_ares_release(upcall_ares *ares)
{
    if (--ares->users == 0)
        free(ares);
}

/**
 * @brief Looks again when the first query times out.
 *
 * c-ares does not tell of a query that uses a socket which is open already. Its time limit is then kept exactly only when this
 * is called after the function that began it; with ARES_FLAG_STAYOPEN and nothing else in flight, only then at all.
 */
static inline void upcall_ares_update(upcall_ares *ares)
{
    struct timeval room, *next;

    next = ares_timeout(ares->channel, NULL, &room);
    upcall_timer_set(&ares->timer, next == NULL ? UPCALL_TIMER_NONE
                                                : (uint64_t)next->tv_sec * UPCALL_SECOND +
                                                      (uint64_t)next->tv_usec * UPCALL_MICROSECOND);
}

static inline void upcall_ares_act(upcall_ares *ares, ares_socket_t readable, ares_socket_t writable)
{
    ares->busy = 1;
    ares_process_fd(ares->channel, readable, writable);
    ares->busy = 0;
    upcall_ares_update(ares);
}

static inline void upcall_ares_on_ready(upcall_watch *watch, int events)
{
    upcall_ares_socket *s = (upcall_ares_socket *)watch;

    /* A socket that cannot be watched is one that does not answer: its queries time out. */
    if (events > 0)
        upcall_ares_act(s->ares, events == POLLIN ? s->fd : ARES_SOCKET_BAD, events == POLLOUT ? s->fd : ARES_SOCKET_BAD);
}

static inline void upcall_ares_on_socket_ended(upcall_watch *watch)
{
    upcall_ares_release(((upcall_ares_socket *)watch)->ares);
    free(watch);
}

static inline void upcall_ares_on_fire(upcall_timer *timer)
{
    upcall_ares *ares = (upcall_ares *)((char *)timer - offsetof(upcall_ares, timer));

    if (timer->loop != NULL)
        upcall_ares_act(ares, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
    else
        ares_cancel(ares->channel);
}

static inline void upcall_ares_on_timer_ended(upcall_timer *timer)
{
    upcall_ares_release((upcall_ares *)((char *)timer - offsetof(upcall_ares, timer)));
}

/* c-ares', inside any of its functions: tells what it wants of a socket; neither, when it is about to close it. */
static inline void upcall_ares_on_socket(void *data, ares_socket_t fd, int readable, int writable)
{
    upcall_ares *ares = (upcall_ares *)data;
    upcall_ares_socket **at = &ares->sockets, *s;

    while (*at != NULL && (*at)->fd != fd)
        at = &(*at)->next;
    s = *at;
    if (!ares->busy) /* A query has begun, and c-ares does not yet know its time limit; or all have ended. */
        upcall_timer_set(&ares->timer, 0);
    if (!readable && !writable) {
        if (s != NULL) {
            *at = s->next;
            upcall_watch_end(&s->watch);
        }
        return;
    }
    if (ares->timer.loop == NULL)
        return;
    if (s == NULL) {
        s = (upcall_ares_socket *)malloc(sizeof *s);
        if (s == NULL || upcall_watch_start(&s->watch, ares->timer.loop, fd, upcall_ares_on_ready,
                                            upcall_ares_on_socket_ended) < 0) {
            free(s);
            s = NULL;
        } else {
            s->ares = ares;
            s->fd = fd;
            s->next = ares->sockets;
            ares->sockets = s;
            ares->users++;
        }
    }
    if (s != NULL)
        upcall_watch_set(&s->watch, (readable ? POLLIN : 0u) | (writable ? POLLOUT : 0u));
}

/**
 * @brief Makes a channel whose queries run in `loop`.
 *
 * `options` and `optmask` as for ares_init_options(), which copies them; ARES_OPT_SOCK_STATE_CB is this header's. NULL and 0:
 * the system's settings. `*ares` receives the result, to be ended by upcall_ares_free(), or NULL. ares_library_init() is the
 * program's.
 *
 * c-ares calls the queries' callbacks, in turns of the loop or inside the function that begins a query. When the loop closes
 * first, the queries in flight end in ARES_ECANCELLED, and no more may be begun. One operation with UPCALL_BACKGROUND is in
 * flight all the time.
 *
 * @return 0; -ENOMEM, or upcall_submit()'s error; a positive ARES_ status, for ares_strerror().
 */
static inline int upcall_ares_new(upcall_loop *loop, const struct ares_options *options, int optmask, upcall_ares **ares)
{
    upcall_ares *made = (upcall_ares *)calloc(1, sizeof *made);
    struct ares_options all;
    int rc;

    *ares = NULL;
    if (made == NULL)
        return -ENOMEM;
    memset(&all, 0, sizeof all);
    if (options != NULL)
        all = *options;
    all.sock_state_cb = upcall_ares_on_socket;
    all.sock_state_cb_data = made;
    rc = ares_init_options(&made->channel, &all, optmask | ARES_OPT_SOCK_STATE_CB);
    if (rc != ARES_SUCCESS) {
        free(made);
        return rc;
    }
    rc = upcall_timer_start(&made->timer, loop, upcall_ares_on_fire, upcall_ares_on_timer_ended);
    if (rc < 0) {
        ares_destroy(made->channel);
        free(made);
        return rc;
    }
    made->users = 2;
    *ares = made;
    return 0;
}

/**
 * @brief The channel, for c-ares' functions that begin queries or set something. It belongs to `ares`: no ares_destroy(), and
 * no ares_process() or ares_fds() either.
 */
static inline ares_channel upcall_ares_channel(upcall_ares *ares)
{
    return ares->channel;
}

/**
 * @brief Destroys the channel; queries in flight end in ARES_EDESTRUCTION, inside this call. NULL is fine.
 *
 * Before or after the loop is freed, but not in a callback of c-ares'. What is in flight ends in the next turns, or in
 * upcall_loop_close().
 */
static inline void upcall_ares_free(upcall_ares *ares)
{
    if (ares == NULL)
        return;
    ares_destroy(ares->channel); /* gives all sockets up */
    upcall_timer_end(&ares->timer);
    upcall_ares_release(ares);
}

#endif
