/**
 * @file upcall_openssl.h
 * @brief TLS by OpenSSL over a connected socket of an Upcall loop: OpenSSL reads and writes memory, the loop moves the bytes.
 *
 *     SSL *ssl = SSL_new(context);
 *     SSL_set_accept_state(ssl);
 *     upcall_tls_new(loop, fd, ssl, 0, &tls);                // which owns `fd` and `ssl`
 *     upcall_tls_read(tls, buffer, sizeof buffer, on_read, NULL);
 *     …
 *     upcall_tls_free(tls);
 *
 * To be copied or included; needs OpenSSL 1.1.1 or newer. Everything here is the loop's owner thread's. A connection takes 32
 * KB beside OpenSSL's own. Context, certificates, verification and what else is set on `ssl` are the program's, all before the
 * first call here but upcall_tls_new().
 */
#ifndef UPCALL_OPENSSL_H
#define UPCALL_OPENSSL_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <upcall.h>

/**
 * @brief A TLS connection: upcall_tls_new(), upcall_tls_handshake(), upcall_tls_read(), upcall_tls_write(),
 * upcall_tls_shutdown(), upcall_tls_error(), upcall_tls_free().
 */
typedef struct upcall_tls upcall_tls;

/**
 * @brief Called exactly once for each call that returned 0, in a turn of the loop, never inside the call.
 *
 * `result`: bytes read or written, 0 for the others; a negative errno: -EPROTO, TLS failed (upcall_tls_error()); -ECONNRESET,
 * the peer ended the connection without ending TLS; -ETIMEDOUT; -ECANCELED after upcall_tls_free() or when the loop closes; or
 * what recv(2) or send(2) gave. After an error all later calls end in it. All of this header may be used.
 */
typedef void (*upcall_tls_fn)(upcall_tls *tls, void *user, int64_t result);

#define UPCALL_TLS_RECORD 16384 /* the most that one record can carry */

enum { UPCALL_TLS_HANDSHAKE, UPCALL_TLS_READ, UPCALL_TLS_WRITE, UPCALL_TLS_SHUTDOWN };

/* What the program has asked for. */
typedef struct upcall_tls_request {
    int kind;
    upcall_tls_fn fn; /* NULL: nothing */
    void *user;
    char *data;
    size_t len, moved;
    int encrypted; /* OpenSSL has done its part, the bytes are to be sent */
    int done;
    int64_t result;
} upcall_tls_request;

struct upcall_tls {
    upcall_loop *loop;
    SSL *ssl;
    BIO *in_bio, *out_bio; /* the SSL's */
    int fd;
    uint64_t timeout_ns;
    upcall_tls_request in, out; /* handshake and read; write and shutdown */
    upcall_id receive, send;
    int receiving, sending, kicked; /* in flight */
    int ended;                      /* the peer sends no more */
    int64_t error;
    unsigned long reason;
    int busy, freed;
    char received[UPCALL_TLS_RECORD], encrypted[UPCALL_TLS_RECORD];
};

static inline void upcall_tls_on_event(upcall_loop *loop, const upcall_event *event);

static inline int upcall_tls_submit(upcall_tls *tls, upcall_op op, upcall_id *id)
{
    op.callback = upcall_tls_on_event;
    op.user = tls;
    return upcall_submit(tls->loop, &op, 1, id);
}

static inline void upcall_tls_fail(upcall_tls *tls, int64_t error)
{
    if (tls->error == 0)
        tls->error = error;
}

static inline void upcall_tls_done(upcall_tls_request *request, int64_t result)
{
    request->done = 1;
    request->result = result;
}

/* Lets OpenSSL do its part of a request. 1: it needs more from the peer. */
static inline int upcall_tls_step(upcall_tls *tls, upcall_tls_request *request)
{
    size_t n = 0, left = request->len - request->moved;
    int rc = 0;

    ERR_clear_error(); /* or SSL_get_error() looks at somebody else's */
    switch (request->kind) {
    case UPCALL_TLS_HANDSHAKE: rc = SSL_do_handshake(tls->ssl); break;
    case UPCALL_TLS_READ: rc = SSL_read_ex(tls->ssl, request->data, left, &n); break;
    case UPCALL_TLS_WRITE:
        rc = SSL_write_ex(tls->ssl, request->data + request->moved, left < UPCALL_TLS_RECORD ? left : UPCALL_TLS_RECORD, &n);
        break;
    case UPCALL_TLS_SHUTDOWN: rc = SSL_shutdown(tls->ssl) < 0 ? -1 : 1; break; /* 0: the peer has not done so yet */
    }
    if (rc > 0) {
        request->moved += n;
        request->encrypted = request == &tls->out && request->moved == request->len;
        if (request == &tls->in)
            upcall_tls_done(request, (int64_t)n);
        return 0;
    }
    switch (SSL_get_error(tls->ssl, rc)) {
    case SSL_ERROR_WANT_READ: return 1;
    case SSL_ERROR_ZERO_RETURN: upcall_tls_done(request, request == &tls->in ? 0 : -EPIPE); return 0;
    default:
        tls->reason = ERR_peek_error();
        upcall_tls_fail(tls, -EPROTO);
        return 0;
    }
}

/* Goes on with everything as far as it can. */
static inline void upcall_tls_advance(upcall_tls *tls)
{
    upcall_tls_request *in = &tls->in, *out = &tls->out;
    int wants = 0, n, rc;

    /* One record at a time: memory stays bounded when the peer does not read. */
    if (out->fn != NULL && !out->done && !tls->sending && BIO_pending(tls->out_bio) == 0) {
        if (out->encrypted)
            upcall_tls_done(out, (int64_t)out->moved);
        else if (tls->error == 0)
            wants |= upcall_tls_step(tls, out);
    }
    if (in->fn != NULL && !in->done && tls->error == 0)
        wants |= upcall_tls_step(tls, in);
    /* Also after an error of TLS: it has an alert for the peer. */
    if (!tls->sending && !tls->freed && (tls->error == 0 || tls->error == -EPROTO) &&
        (n = BIO_read(tls->out_bio, tls->encrypted, sizeof tls->encrypted)) > 0) {
        upcall_op op = upcall_op_send(tls->fd, tls->encrypted, (size_t)n, 0);

        op.flags = UPCALL_FULL;
        op.timeout_ns = tls->timeout_ns;
        rc = upcall_tls_submit(tls, op, &tls->send);
        tls->sending = rc == 0;
        if (rc < 0)
            tls->error = rc;
    }
    if (wants && tls->ended)
        upcall_tls_fail(tls, -ECONNRESET);
    if (wants && !tls->receiving && tls->error == 0) {
        upcall_op op = upcall_op_recv(tls->fd, tls->received, sizeof tls->received, 0);

        op.timeout_ns = tls->timeout_ns;
        rc = upcall_tls_submit(tls, op, &tls->receive);
        tls->receiving = rc == 0;
        if (rc < 0)
            tls->error = rc;
    }
    if (tls->error < 0) {
        if (tls->receiving)
            upcall_cancel(tls->loop, tls->receive);
        if (!tls->sending) {
            if (!in->done)
                upcall_tls_done(in, tls->error);
            if (!out->done)
                upcall_tls_done(out, tls->error);
        }
    }
}

static inline void upcall_tls_finish(upcall_tls *tls)
{
    if (tls->freed && !tls->busy && !tls->receiving && !tls->sending && !tls->kicked) {
        close(tls->fd);
        SSL_free(tls->ssl);
        free(tls);
    }
}

/* Calls back; what is asked for and done meanwhile, too, which is at most what was received. */
static inline void upcall_tls_deliver(upcall_tls *tls)
{
    upcall_tls_request *all[2] = {&tls->in, &tls->out};

    tls->busy = 1;
    for (int i = 0; i < 2; i++) {
        upcall_tls_fn fn = all[i]->fn;

        if (fn != NULL && all[i]->done) {
            all[i]->fn = NULL;
            fn(tls, all[i]->user, all[i]->result);
            i = -1;
        }
    }
    tls->busy = 0;
    upcall_tls_finish(tls);
}

static inline void upcall_tls_on_event(upcall_loop *loop, const upcall_event *event)
{
    upcall_tls *tls = (upcall_tls *)event->user;
    int64_t result = event->result;

    (void)loop;
    switch (event->kind) {
    case UPCALL_OP_RECV:
        tls->receiving = 0;
        tls->ended |= result == 0;
        if (result > 0 && BIO_write(tls->in_bio, tls->received, (int)result) != result)
            result = -ENOMEM;
        break;
    case UPCALL_OP_SEND: tls->sending = 0; break;
    default: tls->kicked = 0; result = 0; break;
    }
    if (result < 0)
        upcall_tls_fail(tls, result);
    upcall_tls_advance(tls);
    upcall_tls_deliver(tls);
}

static inline int upcall_tls_ask(upcall_tls *tls, upcall_tls_request *request, upcall_tls_request asked)
{
    upcall_id id;
    int rc;

    if (asked.fn == NULL || tls->freed)
        return -EINVAL;
    if (request->fn != NULL)
        return -EBUSY;
    *request = asked;
    upcall_tls_advance(tls);
    if (!request->done || tls->busy || tls->kicked)
        return 0;
    rc = upcall_tls_submit(tls, upcall_op_nop(), &id); /* the answer is there, and waits for a turn */
    tls->kicked = rc == 0;
    if (rc < 0)
        request->fn = NULL;
    return rc;
}

/**
 * @brief Makes a TLS connection of a connected socket.
 *
 * `ssl`: fresh from SSL_new(), with SSL_set_accept_state() or SSL_set_connect_state(). On success `fd` and `ssl` belong to the
 * connection, until upcall_tls_free(); on failure they stay the program's. `timeout_ns`: when the peer sends or takes nothing
 * for so long while something waits for it, -ETIMEDOUT; 0: never. `*tls` receives the connection, or NULL.
 *
 * Nothing is in flight while nothing is asked for. upcall_loop_close() ends what is asked for in -ECANCELED; when the loop
 * is freed, upcall_tls_free() is the only function left.
 *
 * @return 0; -EINVAL for a NULL; -ENOMEM.
 */
static inline int upcall_tls_new(upcall_loop *loop, int fd, SSL *ssl, uint64_t timeout_ns, upcall_tls **tls)
{
    upcall_tls *made;

    *tls = NULL;
    if (loop == NULL || ssl == NULL)
        return -EINVAL;
    made = (upcall_tls *)calloc(1, sizeof *made);
    if (made != NULL) {
        made->in_bio = BIO_new(BIO_s_mem());
        made->out_bio = BIO_new(BIO_s_mem());
    }
    if (made == NULL || made->in_bio == NULL || made->out_bio == NULL) {
        if (made != NULL) {
            BIO_free(made->in_bio);
            BIO_free(made->out_bio);
        }
        free(made);
        return -ENOMEM;
    }
    SSL_set_bio(ssl, made->in_bio, made->out_bio);
    made->loop = loop;
    made->ssl = ssl;
    made->fd = fd;
    made->timeout_ns = timeout_ns;
    *tls = made;
    return 0;
}

/**
 * @brief Does the handshake, which upcall_tls_read() and upcall_tls_write() otherwise begin with. The slot of reads: see there.
 */
static inline int upcall_tls_handshake(upcall_tls *tls, upcall_tls_fn fn, void *user)
{
    upcall_tls_request asked = {UPCALL_TLS_HANDSHAKE, fn, user, NULL, 0, 0, 0, 0, 0};

    return upcall_tls_ask(tls, &tls->in, asked);
}

/**
 * @brief Reads at least one byte and up to `len`. Result: bytes read; 0: the peer has ended TLS (close_notify).
 *
 * `data` is borrowed until `fn` is called, which gets `user`. One handshake or read at a time, beside one write or shutdown.
 *
 * @return 0; -EINVAL for a NULL, a `len` of 0, or after upcall_tls_free(); -EBUSY, one is in progress; or upcall_submit()'s
 * error. Then `fn` is not called.
 */
static inline int upcall_tls_read(upcall_tls *tls, void *data, size_t len, upcall_tls_fn fn, void *user)
{
    upcall_tls_request asked = {UPCALL_TLS_READ, fn, user, (char *)data, len, 0, 0, 0, 0};

    return data == NULL || len == 0 ? -EINVAL : upcall_tls_ask(tls, &tls->in, asked);
}

/**
 * @brief Writes all `len` bytes. Result: `len`, when the kernel has taken the last.
 *
 * `data` is borrowed until `fn` is called, and must not change. One write or shutdown at a time. Otherwise as
 * upcall_tls_read().
 */
static inline int upcall_tls_write(upcall_tls *tls, const void *data, size_t len, upcall_tls_fn fn, void *user)
{
    upcall_tls_request asked = {UPCALL_TLS_WRITE, fn, user, (char *)(uintptr_t)data, len, 0, 0, 0, 0};

    return data == NULL || len == 0 ? -EINVAL : upcall_tls_ask(tls, &tls->out, asked);
}

/**
 * @brief Tells the peer that nothing more will be written (close_notify), after which there are only reads. Result: 0, when the
 * kernel has taken it. Otherwise as upcall_tls_write().
 */
static inline int upcall_tls_shutdown(upcall_tls *tls, upcall_tls_fn fn, void *user)
{
    upcall_tls_request asked = {UPCALL_TLS_SHUTDOWN, fn, user, NULL, 0, 0, 0, 0, 0};

    return upcall_tls_ask(tls, &tls->out, asked);
}

/**
 * @brief OpenSSL's error behind -EPROTO, for ERR_error_string_n(); 0: none. SSL_get_verify_result() tells what was wrong with a
 * certificate.
 */
static inline unsigned long upcall_tls_error(const upcall_tls *tls)
{
    return tls->reason;
}

/**
 * @brief Ends the connection: what is asked for ends in -ECANCELED, in a turn; then the descriptor is closed, and `ssl` and
 * `tls` are freed. NULL is fine. Also in the callbacks; before or after the loop is freed. Nothing is said to the peer:
 * upcall_tls_shutdown() does.
 */
static inline void upcall_tls_free(upcall_tls *tls)
{
    if (tls == NULL || tls->freed)
        return;
    tls->freed = 1;
    tls->error = -ECANCELED;
    if (tls->receiving)
        upcall_cancel(tls->loop, tls->receive);
    if (tls->sending)
        upcall_cancel(tls->loop, tls->send);
    upcall_tls_finish(tls);
}

#endif
