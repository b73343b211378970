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
    curl_socket_t fd;
    unsigned users; /* curl, the watch, a post */
} upcall_curl_socket;

struct upcall_curl {
    CURLM *multi; /* NULL: freed by the program */
    upcall_curl_fn done;
    void *user;
    upcall_timer timer;
    size_t users; /* the program, the timer, each socket, each call */
};

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

static inline void upcall_curl_on_ready(upcall_watch *watch, int events)
{
    upcall_curl_socket *s = (upcall_curl_socket *)watch;

    if (events != -ESHUTDOWN)
        upcall_curl_act(s->curl, s->fd,
                        events < 0 ? CURL_CSELECT_ERR : events == POLLIN ? CURL_CSELECT_IN : CURL_CSELECT_OUT);
}

static inline void upcall_curl_on_socket_ended(upcall_watch *watch)
{
    upcall_curl_socket_release((upcall_curl_socket *)watch);
}

/* The socket cannot be watched: its transfers are not to wait for it. */
static inline void upcall_curl_on_unwatched(upcall_loop *loop, void *data)
{
    upcall_curl_socket *s = (upcall_curl_socket *)data;

    (void)loop;
    if (s->users > 1)
        upcall_curl_act(s->curl, s->fd, CURL_CSELECT_ERR);
    upcall_curl_socket_release(s);
}

/* curl's, inside any of its functions: tells what it wants of a socket. Never -1: curl 7.88 may crash then. */
static inline int upcall_curl_on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *assigned)
{
    upcall_curl *curl = (upcall_curl *)user;
    upcall_curl_socket *s = (upcall_curl_socket *)assigned;
    int rc = 0;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (s != NULL) {
            if (s->watch.loop != NULL)
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
        s->users = 1;
        curl->users++;
        curl_multi_assign(curl->multi, fd, s);
    }
    if (s->watch.loop == NULL) {
        rc = upcall_watch_start(&s->watch, curl->timer.loop, fd, upcall_curl_on_ready, upcall_curl_on_socket_ended);
        if (rc == 0)
            s->users++;
        else
            s->watch.loop = NULL;
    }
    if (rc == 0)
        rc = upcall_watch_set(&s->watch, (what & CURL_POLL_IN ? POLLIN : 0u) | (what & CURL_POLL_OUT ? POLLOUT : 0u));
    if (rc < 0 && upcall_post(curl->timer.loop, upcall_curl_on_unwatched, s) == 0)
        s->users++;
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

/**
 * @brief Makes a multi handle whose transfers run in `loop`.
 *
 * `done` (not NULL) gets `user` and each transfer that has ended. `*curl` receives the result, to be ended by
 * upcall_curl_free(), or NULL. curl_global_init() is the program's.
 *
 * Where a socket cannot be watched (descriptors or memory run out, upcall_config.max_operations is met), its transfers end in
 * CURLE_SEND_ERROR, or by curl's own time limits. When the loop closes first, the transfers stay where they are, `done` is not
 * called any more, and the handles are to be removed and cleaned up as curl demands. One operation with UPCALL_BACKGROUND is in
 * flight all the time.
 *
 * @return 0; -ENOMEM, or upcall_submit()'s error.
 */
static inline int upcall_curl_new(upcall_loop *loop, upcall_curl_fn done, void *user, upcall_curl **curl)
{
    upcall_curl *made = (upcall_curl *)calloc(1, sizeof *made);
    int rc = -ENOMEM;

    *curl = NULL;
    if (made != NULL && (made->multi = curl_multi_init()) != NULL)
        rc = upcall_timer_start(&made->timer, loop, upcall_curl_on_fire, upcall_curl_on_timer_ended);
    if (rc < 0) {
        if (made != NULL)
            curl_multi_cleanup(made->multi);
        free(made);
        return rc;
    }
    made->done = done;
    made->user = user;
    made->users = 2;
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
    upcall_curl_release(curl);
}

#endif
