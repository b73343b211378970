/**
 * @file upcall_pq.h
 * @brief libpq's non-blocking connections to PostgreSQL in an Upcall loop.
 *
 *     PGconn *conn = PQconnectStart("host=127.0.0.1 dbname=test");
 *     upcall_pq_new(loop, conn, on_connect, on_input, NULL, &pq);
 *     upcall_run(loop);                                      // until upcall_pq_free()
 *
 * on_connect() sends the first query by PQsendQuery() and upcall_pq_flush(); on_input() takes what has come by
 * `while (!PQisBusy(conn) && (result = PQgetResult(conn)) != NULL)`, PQnotifies(), PQgetCopyData(): libpq's own functions, none
 * of which waits there.
 *
 * To be copied or included, with upcall_watch.h. Everything here, and all of libpq for such a connection, is the loop's owner
 * thread's. A connection takes two descriptors (see upcall_watch.h).
 */
#ifndef UPCALL_PQ_H
#define UPCALL_PQ_H

#include <stdlib.h>

#include <libpq-fe.h>

#include "upcall_watch.h"

/**
 * @brief A connection in a loop: upcall_pq_new(), upcall_pq_flush(), upcall_pq_free().
 */
typedef struct upcall_pq upcall_pq;

/**
 * @brief Called in a turn of the loop. `error`: 0; -ECONNRESET, the connection failed or was lost, as PQstatus() and
 * PQerrorMessage() tell; or why it cannot be watched, -ESHUTDOWN when the loop closes.
 *
 * An error is the last call. All of libpq and of this header may be used, PQfinish() after upcall_pq_free().
 */
typedef void (*upcall_pq_fn)(void *user, PGconn *conn, int error);

/* One of libpq's sockets: while it connects it may take another one, and even with the same number. */
typedef struct upcall_pq_socket {
    upcall_watch watch; /* the first member */
    upcall_pq *pq;
} upcall_pq_socket;

struct upcall_pq {
    upcall_loop *loop;
    PGconn *conn;
    upcall_pq_fn connected; /* NULL: it is */
    upcall_pq_fn input;     /* NULL: no more calls */
    void *user;
    upcall_pq_socket *socket; /* NULL: none */
    unsigned busy, freed;
};

static inline void upcall_pq_tell(upcall_pq *pq, int error)
{
    upcall_pq_fn fn = pq->connected != NULL ? pq->connected : pq->input;

    pq->connected = NULL;
    if (error < 0) {
        pq->input = NULL;
        if (pq->socket != NULL)
            upcall_watch_end(&pq->socket->watch);
        pq->socket = NULL;
    }
    if (fn != NULL)
        fn(pq->user, pq->conn, error);
}

static inline int upcall_pq_take(upcall_pq *pq, unsigned wanted);

/* The server may only go on to read when what it has sent is taken, and the other way round. */
static inline int upcall_pq_send(upcall_pq *pq)
{
    int left = PQflush(pq->conn);

    return left < 0 ? -ECONNRESET : upcall_watch_set(&pq->socket->watch, left ? POLLIN | POLLOUT : POLLIN);
}

/* The next step of connecting. 1: it was the last. */
static inline int upcall_pq_connect(upcall_pq *pq)
{
    PostgresPollingStatusType state = PQconnectPoll(pq->conn);
    int rc;

    if (state == PGRES_POLLING_FAILED || (state == PGRES_POLLING_OK && PQsetnonblocking(pq->conn, 1) < 0))
        return -ECONNRESET;
    rc = upcall_pq_take(pq, state == PGRES_POLLING_WRITING ? POLLOUT : POLLIN);
    return rc == 0 && state == PGRES_POLLING_OK ? 1 : rc;
}

static inline void upcall_pq_on_ready(upcall_watch *watch, int events)
{
    upcall_pq *pq = ((upcall_pq_socket *)watch)->pq;
    int rc = events < 0 ? events : 1;

    pq->busy = 1;
    if (rc > 0 && pq->connected != NULL) {
        rc = upcall_pq_connect(pq);
    } else if (rc > 0) {
        if (events == POLLIN && PQconsumeInput(pq->conn) == 0)
            rc = -ECONNRESET;
        else if (watch->wanted & POLLOUT && upcall_pq_send(pq) < 0) /* which may also read */
            rc = -ECONNRESET;
    }
    if (rc != 0)
        upcall_pq_tell(pq, rc < 0 ? rc : 0);
    pq->busy = 0;
    if (pq->freed)
        free(pq);
}

static inline void upcall_pq_on_ended(upcall_watch *watch)
{
    free(watch);
}

/* Watches the socket that libpq has now. */
static inline int upcall_pq_take(upcall_pq *pq, unsigned wanted)
{
    upcall_pq_socket *s = (upcall_pq_socket *)malloc(sizeof *s);
    int rc;

    if (pq->socket != NULL)
        upcall_watch_end(&pq->socket->watch);
    pq->socket = NULL;
    if (s == NULL)
        return -ENOMEM;
    rc = upcall_watch_start(&s->watch, pq->loop, PQsocket(pq->conn), upcall_pq_on_ready, upcall_pq_on_ended);
    if (rc < 0) {
        free(s);
        return rc;
    }
    s->pq = pq;
    pq->socket = s;
    return upcall_watch_set(&s->watch, wanted);
}

/**
 * @brief Runs a connection that PQconnectStart() or PQconnectStartParams() has just made in `loop`.
 *
 * `connected` is called once, with the connection made and set to PQsetnonblocking(), or with an error. Then `input` is called
 * each time something may have arrived. Both get `user`, and must not be NULL. `*pq` receives what ends by upcall_pq_free(), or
 * NULL. libpq has no time limit for such a connection: an upcall_op_sleep() whose callback calls upcall_pq_free() is one.
 *
 * `conn` stays the program's, and is to be finished by PQfinish() after upcall_pq_free(), before the loop is polled again.
 * upcall_run() goes on until then, or until an error.
 *
 * @return 0; -EINVAL for a `conn` that is NULL, or has failed already (PQerrorMessage()); -EMFILE, -ENOMEM, or
 * upcall_submit()'s error.
 */
static inline int upcall_pq_new(upcall_loop *loop, PGconn *conn, upcall_pq_fn connected, upcall_pq_fn input, void *user,
                                upcall_pq **pq)
{
    upcall_pq *made;
    int rc;

    *pq = NULL;
    if (PQstatus(conn) == CONNECTION_BAD)
        return -EINVAL;
    made = (upcall_pq *)calloc(1, sizeof *made);
    if (made == NULL)
        return -ENOMEM;
    made->loop = loop;
    made->conn = conn;
    made->connected = connected;
    made->input = input;
    made->user = user;
    rc = upcall_pq_take(made, POLLOUT); /* what libpq demands before the first PQconnectPoll() */
    if (rc < 0) {
        if (made->socket != NULL)
            upcall_watch_end(&made->socket->watch);
        free(made);
        return rc;
    }
    *pq = made;
    return 0;
}

/**
 * @brief Sends what PQsendQuery() and its relatives, PQputCopyData() or PQpipelineSync() have left in libpq: to be called after
 * them. What the server does not take at once goes in later turns.
 *
 * @return 0; -ECONNRESET as for upcall_pq_fn; -ENOTCONN before `connected` or after an error was told.
 */
static inline int upcall_pq_flush(upcall_pq *pq)
{
    if (pq->connected != NULL || pq->socket == NULL)
        return -ENOTCONN;
    return upcall_pq_send(pq);
}

/**
 * @brief Ends it: no callback is called any more. NULL is fine. Also in the callbacks; before or after the loop is freed.
 */
static inline void upcall_pq_free(upcall_pq *pq)
{
    if (pq == NULL)
        return;
    pq->connected = pq->input = NULL;
    if (pq->socket != NULL)
        upcall_watch_end(&pq->socket->watch);
    pq->socket = NULL;
    if (pq->busy)
        pq->freed = 1;
    else
        free(pq);
}

#endif
