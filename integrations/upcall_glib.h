/**
 * @file upcall_glib.h
 * @brief An Upcall loop in a GLib main loop, as a GSource.
 *
 *     upcall_glib_source_new(loop, &source);
 *     g_source_attach(source, NULL);
 *     g_source_unref(source);
 *     g_main_loop_run(main_loop);                            // calls the loop's callbacks
 *
 * To be copied or included. The loop's owner thread is the one that runs the source's main context, and everything here is its.
 */
#ifndef UPCALL_GLIB_H
#define UPCALL_GLIB_H

#include <errno.h>
#include <stdint.h>

#include <glib.h>

#include <upcall.h>

/* Between a source and its loop: each may end first. */
typedef struct upcall_glib_link {
    GSource *source;   /* NULL: it has ended */
    upcall_loop *loop; /* NULL: it has closed */
    upcall_id guard;
} upcall_glib_link;

typedef struct upcall_glib_source {
    GSource source; /* the first member */
    upcall_glib_link *link;
} upcall_glib_source;

/* The source is ready when upcall_fd() is: there is nothing to prepare or to check. */
static inline gboolean upcall_glib_dispatch(GSource *source, GSourceFunc callback, gpointer data)
{
    upcall_loop *loop = ((upcall_glib_source *)source)->link->loop;
    int rc = loop != NULL ? upcall_poll(loop, 0) : -ESHUTDOWN; /* one turn, at most upcall_config.max_events */

    if (rc < 0 && rc != -EDEADLK) { /* which is a main loop run inside a callback */
        if (loop != NULL)
            g_critical("upcall_poll: %s", upcall_strerror(rc));
        return G_SOURCE_REMOVE;
    }
    return callback != NULL ? callback(data) : G_SOURCE_CONTINUE;
}

static inline void upcall_glib_finalize(GSource *source)
{
    upcall_glib_link *link = ((upcall_glib_source *)source)->link;

    link->source = NULL;
    if (link->loop != NULL)
        upcall_cancel(link->loop, link->guard);
    else
        g_free(link);
}

/* The loop closes, or upcall_glib_finalize(). */
static inline void upcall_glib_on_guard(upcall_loop *loop, const upcall_event *event)
{
    upcall_glib_link *link = (upcall_glib_link *)event->user;

    (void)loop;
    link->loop = NULL;
    if (link->source != NULL)
        g_source_destroy(link->source);
    else
        g_free(link);
}

/**
 * @brief Makes a source that runs `loop`: each time its main context dispatches it, one turn that does not wait.
 *
 * `*source` receives it, or NULL; it is to be attached by g_source_attach(), and belongs to the caller as any other source.
 * g_source_set_callback() is not needed; a function set by it is called after each turn, and ends the source by
 * G_SOURCE_REMOVE.
 *
 * The loop stays the program's, and may be freed before the source ends: that destroys the source. When the source ends first,
 * the loop remains, and may be polled otherwise. One operation with UPCALL_BACKGROUND is in flight meanwhile. The loop's
 * callbacks may run the main context themselves; the loop does not take part in that. upcall_run() must not be called.
 *
 * @return 0; upcall_fd()'s and upcall_submit()'s errors.
 */
static inline int upcall_glib_source_new(upcall_loop *loop, GSource **source)
{
    static GSourceFuncs functions; /* all of the same contents, whichever thread writes them */
    upcall_op guard = upcall_op_sleep_until(UINT64_MAX);
    upcall_glib_link *link;
    int fd = upcall_fd(loop);
    int rc;

    *source = NULL;
    if (fd < 0)
        return fd;
    link = g_new0(upcall_glib_link, 1);
    guard.flags = UPCALL_BACKGROUND;
    guard.callback = upcall_glib_on_guard;
    guard.user = link;
    rc = upcall_submit(loop, &guard, 1, &link->guard);
    if (rc < 0) {
        g_free(link);
        return rc;
    }
    functions.dispatch = upcall_glib_dispatch;
    functions.finalize = upcall_glib_finalize;
    *source = g_source_new(&functions, sizeof(upcall_glib_source));
    link->source = *source;
    link->loop = loop;
    ((upcall_glib_source *)*source)->link = link;
    g_source_set_name(*source, "Upcall");
    g_source_add_unix_fd(*source, fd, G_IO_IN);
    return 0;
}

#endif
