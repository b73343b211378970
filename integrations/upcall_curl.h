/**
 * @file upcall_curl.h
 * @brief libcurl's transfers in an Upcall loop, by curl's multi-socket interface.
 *
 *     upcall_curl_new(loop, on_done, NULL, &curl);
 *     curl_multi_add_handle(upcall_curl_multi(curl), easy);
 *     upcall_run(loop);                                      // calls on_done(), returns when all transfers have ended
 *     upcall_curl_free(curl);
 *
 * To be copied or included, with upcall_watch.h. curl's own settings, also of the multi handle, are the program's, but for
 * CURLMOPT_SOCKETFUNCTION and CURLMOPT_TIMERFUNCTION with their data. Everything here, and all of curl for these handles, is
 * the loop's owner thread's. Each socket takes two descriptors (see upcall_watch.h).
 */
#ifndef UPCALL_CURL_H
#define UPCALL_CURL_H

#include <stddef.h>
#include <stdlib.h>

#include <curl/curl.h>

#include "upcall_watch.h"

/**
 * @brief A multi handle in a loop: upcall_curl_new(), upcall_curl_multi(), upcall_curl_free().
 */
typedef struct upcall_curl upcall_curl;

/**
 * @brief Called once for each transfer that has ended, in a turn of the loop and outside of curl.
 *
 * `easy` is no longer in the multi handle, and the program's: to be cleaned up, or added again. `result` is curl's. All of curl
 * and of this header may be used.
 */
typedef void (*upcall_curl_fn)(void *user, CURL *easy, CURLcode result);

/* One socket of curl's. */
typedef struct upcall_curl_socket {
    upcall_watch watch; /* the first member */
    upcall_curl *curl;
    struct upcall_curl_socket *previous, *next;
    curl_socket_t fd;
    unsigned wanted;
    unsigned watched, unwatched; /* the watch has begun; it cannot, or has failed */
    unsigned visited;
    unsigned users; /* curl, the watch */
} upcall_curl_socket;

struct upcall_curl {
    CURLM *multi; /* NULL: freed by the program */
    upcall_curl_fn done;
    void *user;
    upcall_curl_socket *sockets; /* those that curl has */
    upcall_timer timer;          /* curl's */
    upcall_timer retry;          /* for sockets that cannot be watched */
    size_t users;                /* the program, the timers, each socket, each call */
};

#define UPCALL_CURL_RETRY_NS (10 * UPCALL_MILLISECOND)

static inline void upcall_curl_release(upcall_curl *curl)
{
    if (--curl->users == 0)
        free(curl);
}

/* Lets curl do what it can, then tells which transfers have ended. */
static inline void upcall_curl_act(upcall_curl *curl, curl_socket_t fd, int events)
{
    CURLMsg *message;
    int n;

    if (curl->multi == NULL)
        return;
    curl->users++;
    curl_multi_socket_action(curl->multi, fd, events, &n);
    while (curl->multi != NULL && (message = curl_multi_info_read(curl->multi, &n)) != NULL) {
        CURL *easy = message->easy_handle;
        CURLcode result = message->data.result;

        if (message->msg != CURLMSG_DONE)
            continue;
        curl_multi_remove_handle(curl->multi, easy); /* which ends `message` */
        curl->done(curl->user, easy, result);
    }
    upcall_curl_release(curl);
}

static inline void upcall_curl_socket_release(upcall_curl_socket *s)
{
    upcall_curl *curl = s->curl;

    if (--s->users == 0) {
        free(s);
        upcall_curl_release(curl);
    }
}

/* Where it cannot be watched, curl is made to look now and then, and the transfer is only slower. */
static inline void upcall_curl_unwatched(upcall_curl_socket *s)
{
    s->unwatched = 1;
    upcall_timer_set(&s->curl->retry, UPCALL_CURL_RETRY_NS);
}

static inline int upcall_curl_select(unsigned events)
{
    return (events & POLLIN ? CURL_CSELECT_IN : 0) | (events & POLLOUT ? CURL_CSELECT_OUT : 0);
}

static inline void upcall_curl_on_ready(upcall_watch *watch, int events)
{
    upcall_curl_socket *s = (upcall_curl_socket *)watch;

    if (events > 0)
        upcall_curl_act(s->curl, s->fd, upcall_curl_select((unsigned)events));
    else if (events != -ESHUTDOWN)
        upcall_curl_unwatched(s);
}

static inline void upcall_curl_on_socket_ended(upcall_watch *watch)
{
    ((upcall_curl_socket *)watch)->watched = 0;
    upcall_curl_socket_release((upcall_curl_socket *)watch);
}

static inline void upcall_curl_watch(upcall_curl_socket *s)
{
    int rc = 0;

    if (!s->watched) {
        rc = upcall_watch_start(&s->watch, s->curl->timer.loop, s->fd, upcall_curl_on_ready, upcall_curl_on_socket_ended);
        s->watched = rc == 0;
        s->users += s->watched;
    }
    if (rc == 0)
        rc = upcall_watch_set(&s->watch, s->wanted);
    s->unwatched = 0;
    if (rc < 0)
        upcall_curl_unwatched(s);
}

static inline void upcall_curl_on_retry(upcall_timer *timer)
{
    upcall_curl *curl = (upcall_curl *)((char *)timer - offsetof(upcall_curl, retry));
    upcall_curl_socket *s;

    for (s = curl->sockets; s != NULL; s = s->next)
        s->visited = !s->unwatched;
    for (s = timer->loop != NULL ? curl->sockets : NULL; s != NULL;) {
        if (s->visited) {
            s = s->next;
            continue;
        }
        s->visited = 1;
        if (s->watched)
            upcall_watch_end(&s->watch); /* one that has failed cannot be used again */
        if (!s->watched)
            upcall_curl_watch(s);
        else
            upcall_curl_unwatched(s); /* its operations have not ended */
        if (s->unwatched)
            upcall_curl_act(curl, s->fd, upcall_curl_select(s->wanted));
        s = curl->sockets; /* curl may have given up any */
    }
}

/* curl's, inside any of its functions: tells what it wants of a socket. Never -1: curl 7.88 may crash then. */
static inline int upcall_curl_on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *assigned)
{
    upcall_curl *curl = (upcall_curl *)user;
    upcall_curl_socket *s = (upcall_curl_socket *)assigned;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (s != NULL) {
            *(s->previous != NULL ? &s->previous->next : &curl->sockets) = s->next;
            if (s->next != NULL)
                s->next->previous = s->previous;
            if (s->watched)
                upcall_watch_end(&s->watch);
            upcall_curl_socket_release(s);
        }
        return 0;
    }
    if (curl->timer.loop == NULL)
        return 0;
    if (s == NULL) {
        s = (upcall_curl_socket *)calloc(1, sizeof *s);
        if (s == NULL)
            return 0; /* curl's time limits remain */
        s->curl = curl;
        s->fd = fd;
        s->visited = 1;
        s->users = 1;
        s->next = curl->sockets;
        if (s->next != NULL)
            s->next->previous = s;
        curl->sockets = s;
        curl->users++;
        curl_multi_assign(curl->multi, fd, s);
    }
    s->wanted = (what & CURL_POLL_IN ? POLLIN : 0u) | (what & CURL_POLL_OUT ? POLLOUT : 0u);
    if (!s->unwatched) /* otherwise it is tried again soon */
        upcall_curl_watch(s);
    return 0;
}

/* curl's, inside any of its functions: -1 for no time, 0 for as soon as possible, but not inside this call. */
static inline int upcall_curl_on_timeout(CURLM *multi, long timeout_ms, void *user)
{
    (void)multi;
    upcall_timer_set(&((upcall_curl *)user)->timer,
                     timeout_ms < 0 ? UPCALL_TIMER_NONE : (uint64_t)timeout_ms * UPCALL_MILLISECOND);
    return 0;
}

static inline void upcall_curl_on_fire(upcall_timer *timer)
{
    if (timer->loop != NULL)
        upcall_curl_act((upcall_curl *)((char *)timer - offsetof(upcall_curl, timer)), CURL_SOCKET_TIMEOUT, 0);
}

static inline void upcall_curl_on_timer_ended(upcall_timer *timer)
{
    upcall_curl_release((upcall_curl *)((char *)timer - offsetof(upcall_curl, timer)));
}

static inline void upcall_curl_on_retry_ended(upcall_timer *timer)
{
    upcall_curl_release((upcall_curl *)((char *)timer - offsetof(upcall_curl, retry)));
}

/**
 * @brief Makes a multi handle whose transfers run in `loop`.
 *
 * `done` (not NULL) gets `user` and each transfer that has ended. `*curl` receives the result, to be ended by
 * upcall_curl_free(), or NULL. curl_global_init() is the program's.
 *
 * Where a socket cannot be watched (descriptors run out, upcall_config.max_operations is met), curl looks at it every 10 ms
 * instead. When the loop closes first, the transfers stay where they are, `done` is not called any more, and the handles are to
 * be removed and cleaned up as curl demands. Two operations with UPCALL_BACKGROUND are in flight all the time.
 *
 * @return 0; -ENOMEM, or upcall_submit()'s error.
 */
static inline int upcall_curl_new(upcall_loop *loop, upcall_curl_fn done, void *user, upcall_curl **curl)
{
    upcall_curl *made = (upcall_curl *)calloc(1, sizeof *made);
    int rc;

    *curl = NULL;
    if (made == NULL || (made->multi = curl_multi_init()) == NULL) {
        free(made);
        return -ENOMEM;
    }
    made->done = done;
    made->user = user;
    made->users = 1;
    rc = upcall_timer_start(&made->timer, loop, upcall_curl_on_fire, upcall_curl_on_timer_ended);
    if (rc == 0) {
        made->users++;
        rc = upcall_timer_start(&made->retry, loop, upcall_curl_on_retry, upcall_curl_on_retry_ended);
        if (rc == 0)
            made->users++;
        else
            upcall_timer_end(&made->timer);
    }
    if (rc < 0) {
        curl_multi_cleanup(made->multi);
        made->multi = NULL;
        upcall_curl_release(made);
        return rc;
    }
    curl_multi_setopt(made->multi, CURLMOPT_SOCKETFUNCTION, upcall_curl_on_socket);
    curl_multi_setopt(made->multi, CURLMOPT_SOCKETDATA, made);
    curl_multi_setopt(made->multi, CURLMOPT_TIMERFUNCTION, upcall_curl_on_timeout);
    curl_multi_setopt(made->multi, CURLMOPT_TIMERDATA, made);
    *curl = made;
    return 0;
}

/**
 * @brief The multi handle, for curl_multi_add_handle(), curl_multi_remove_handle(), curl_multi_setopt(): curl's functions that
 * do not wait. It belongs to `curl`: no curl_multi_cleanup().
 */
static inline CURLM *upcall_curl_multi(upcall_curl *curl)
{
    return curl->multi;
}

/**
 * @brief Cleans the multi handle up; `done` is not called any more. NULL is fine.
 *
 * Easy handles are to be removed before, as curl demands. Before or after the loop is freed, also in `done`, but not in a
 * callback of curl's. What is in flight ends in the next turns, or in upcall_loop_close().
 */
static inline void upcall_curl_free(upcall_curl *curl)
{
    if (curl == NULL)
        return;
    curl_multi_cleanup(curl->multi); /* gives all sockets up, by the callbacks above */
    curl->multi = NULL;
    upcall_timer_end(&curl->timer);
    upcall_timer_end(&curl->retry);
    upcall_curl_release(curl);
}

#endif
