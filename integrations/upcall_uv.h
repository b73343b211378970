/**
 * @file upcall_uv.h
 * @brief An Upcall loop in a libuv loop.
 *
 *     upcall_uv_new(uv_default_loop(), loop, &embedded);
 *     uv_run(uv_default_loop(), UV_RUN_DEFAULT);             // calls the callbacks of both, until upcall_uv_free()
 *
 * To be copied or included. The loop's owner thread is the one that runs the libuv loop, and everything here is its.
 */
#ifndef UPCALL_UV_H
#define UPCALL_UV_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <uv.h>

#include <upcall.h>

/**
 * @brief An Upcall loop in a libuv loop: upcall_uv_new(), upcall_uv_handle(), upcall_uv_free().
 */
typedef struct upcall_uv {
    uv_poll_t handle;  /* the first member */
    upcall_loop *loop; /* NULL: it has closed */
    upcall_id guard;
    unsigned users; /* the program, the handle */
} upcall_uv;

static inline void upcall_uv_release(upcall_uv *embedded)
{
    if (--embedded->users == 0)
        free(embedded);
}

static inline void upcall_uv_on_closed(uv_handle_t *handle)
{
    upcall_uv_release((upcall_uv *)handle);
}

/* The loop closes, or upcall_uv_free(). libuv must not watch a descriptor that will be closed. */
static inline void upcall_uv_on_guard(upcall_loop *loop, const upcall_event *event)
{
    upcall_uv *embedded = (upcall_uv *)event->user;

    (void)loop;
    embedded->loop = NULL;
    uv_close((uv_handle_t *)&embedded->handle, upcall_uv_on_closed);
}

static inline void upcall_uv_on_ready(uv_poll_t *handle, int status, int events)
{
    (void)status; /* a turn finds out what is wrong */
    (void)events;
    upcall_poll(((upcall_uv *)handle)->loop, 0); /* one turn, at most upcall_config.max_events */
}

/**
 * @brief Makes `uv` run `loop`: each time there is something to do in it, one turn that does not wait.
 *
 * `*embedded` receives what ends by upcall_uv_free(), or NULL. Both loops stay the program's. `loop` may be closed and freed
 * first, and uv_loop_close() answers UV_EBUSY, as for any handle, until `uv` has run once more after either. One operation with
 * UPCALL_BACKGROUND is in flight meanwhile. upcall_run() must not be called.
 *
 * @return 0; -ENOMEM, upcall_fd()'s and upcall_submit()'s errors, or a UV_ one, which is a negative errno, too.
 */
static inline int upcall_uv_new(uv_loop_t *uv, upcall_loop *loop, upcall_uv **embedded)
{
    upcall_op guard = upcall_op_sleep_until(UINT64_MAX);
    upcall_uv *made;
    int fd = upcall_fd(loop);
    int rc;

    *embedded = NULL;
    if (fd < 0)
        return fd;
    made = (upcall_uv *)calloc(1, sizeof *made);
    if (made == NULL)
        return -ENOMEM;
    rc = uv_poll_init(uv, &made->handle, fd);
    if (rc < 0) {
        free(made);
        return rc;
    }
    made->loop = loop;
    guard.flags = UPCALL_BACKGROUND;
    guard.callback = upcall_uv_on_guard;
    guard.user = made;
    rc = uv_poll_start(&made->handle, UV_READABLE, upcall_uv_on_ready);
    if (rc == 0)
        rc = upcall_submit(loop, &guard, 1, &made->guard);
    if (rc < 0) {
        made->users = 1;
        uv_close((uv_handle_t *)&made->handle, upcall_uv_on_closed);
        return rc;
    }
    made->users = 2;
    *embedded = made;
    return 0;
}

/**
 * @brief The handle in libuv's loop, for uv_unref(), which says that the Upcall loop alone is no reason to go on for uv_run(),
 * for uv_ref() and uv_has_ref().
 */
static inline uv_handle_t *upcall_uv_handle(upcall_uv *embedded)
{
    return (uv_handle_t *)&embedded->handle;
}

/**
 * @brief Takes the loop out of libuv's, in the next turn of both; it remains, and may be polled otherwise. NULL is fine. Also
 * in the callbacks of both loops; before or after the loop is freed.
 */
static inline void upcall_uv_free(upcall_uv *embedded)
{
    if (embedded == NULL)
        return;
    if (embedded->loop != NULL)
        upcall_cancel(embedded->loop, embedded->guard);
    upcall_uv_release(embedded);
}

#endif
