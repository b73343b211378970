/*
 * An HTTP/1.1 server of files.
 *
 *   - A loop per thread, each with a listener of its own on the same port (SO_REUSEPORT): threads share nothing.
 *   - A connection is a small machine with one operation or chain in flight, so back-pressure needs no code: while an
 *     answer is being sent nothing is received, and requests that were sent ahead (pipelining) wait where they are.
 *   - A connection that waits for a request holds no buffer: the recv borrows one of a pool when bytes are there. The
 *     pool has one for each connection there may be, so that clients who send half a request take nobody else's.
 *   - A small file is read and sent in one chain (UPCALL_LINK). A large one goes by sendfile, piece by piece: a piece has
 *     a deadline, and its event tells what was moved before that: a slow client differs from one that does not read.
 *   - Every wait has a limit: for the next request, for the rest of one that has begun (408), for the client to take an
 *     answer, for its last words. Who is too slow goes.
 *   - An answer is not lost when the connection ends: shutdown, then what still comes is dropped until the client has
 *     closed, then close. A close with unread bytes would reset the connection, and what was sent with it.
 *   - Paths are resolved by the kernel, beneath the root and along no symbolic link (openat2); kernels without that get
 *     one open per segment, with O_NOFOLLOW, to the same effect.
 *   - SIGTERM and SIGINT are operations, too (upcall_op_signal), in every loop: it closes its listener and what is idle,
 *     and upcall_run() returns when the last answer is out. A second signal, or the end of the grace, cuts the rest.
 *
 * What is HTTP and not I/O is in http.h; docs/http.md says what it does, and how fast.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/openat2.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <upcall.h>

#include "http.h"

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    THREADS_MAX = 64,
    HEAD_SIZE = 8192,                 /* of a request, at most; also the size of a pool's buffers */
    BODY_MAX = 64 * 1024,             /* of a request: it is of no use here, and dropped */
    ANSWER_SIZE = 32 * 1024,          /* a file that fits in with its head is small */
    PIECE_SIZE = 16 * 1024 * 1024,    /* of a sendfile */
    PROGRESS_MIN = 64 * 1024,         /* who takes less of a piece within the time for sending is too slow */
    LINGER_MS = 2000,                 /* for the client to close */
};

/* How a file is opened. O_NONBLOCK: opening a FIFO must not wait for a writer. */
static const struct open_how beneath_root = {
    .flags = O_RDONLY | O_NONBLOCK | O_NOCTTY,
    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
};

struct options {
    const char *address;
    const char *port;
    const char *root;
    size_t threads;
    uint32_t connections; /* per thread */
    uint64_t idle_ns, head_ns, send_ns, grace_ns;
    bool walk;
};

struct connection;

struct worker {
    const struct options *options;
    pthread_t thread;
    upcall_loop *loop;
    upcall_buffers *buffers;
    int root;
    int listener;
    bool walks;          /* there is no openat2 */
    upcall_id accepting; /* 0: not, because there are enough connections */
    bool stopping;
    struct connection *connections; /* a list, to end them all */
    size_t connection_count;
    uint64_t boundary; /* between the parts of an answer; random, so that no file has it in it */
    time_t date_time;
    char date[HTTP_DATE_SIZE];
    uint64_t accepted, requests, bytes;
};

/* Text of an answer, and bytes of the file after it. */
struct part {
    size_t text_size;
    struct http_range file;
};

/* A request being answered. */
struct exchange {
    struct connection *connection;
    struct http_request request; /* slices of the connection's buffer */
    int directory;               /* where a walk along the path has come to */
    char *segment;               /* and what comes next there */
    int file;                    /* -1: none */
    bool is_page;                /* "index.html" was added to the path */
    size_t part_count, part;     /* how many there are, and the one being sent */
    size_t sent;                 /* of all texts */
    struct part parts[HTTP_RANGES_MAX + 1];
    char path[PATH_MAX];
    size_t size;
    char answer[ANSWER_SIZE]; /* the texts; after them what has been read of a small file */
};

struct connection {
    struct worker *worker;
    struct connection *previous, *next;
    int fd;
    bool keep;            /* the connection, after the answer under way */
    upcall_id waiting;    /* the recv between two requests; 0 at all other times */
    uint64_t deadline_ns; /* for the whole of what is being received; 0: none yet */
    char *buffer;         /* lent by the pool; NULL: nothing has been received */
    size_t begin, end;    /* what of it has not been used */
    uint64_t body_size;   /* of the request answered last: bytes to drop */
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "http_server: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void die_errno(const char *what)
{
    die(what, strerror(errno));
}

/* Only a mistake in the program, or memory running out, makes a submit fail: no reason to go on. */
static void submit(upcall_loop *loop, const upcall_op *ops, size_t count, upcall_id *ids)
{
    if (upcall_submit(loop, ops, count, ids) < 0)
        die("upcall_submit", upcall_last_error());
}

/* For operations whose failure is somebody else's event, or nobody's business. */
static void on_ignored(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    (void)event;
}

static void on_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "http_server: close: %s\n", upcall_strerror((int)event->result));
}

static void close_file(struct worker *worker, int fd)
{
    upcall_op op = upcall_op_close(fd);

    op.callback = on_closed;
    submit(worker->loop, &op, 1, NULL);
}

/* ---- the end of a connection ---- */

static void start_accepting(struct worker *worker);

static void release_buffer(struct connection *connection)
{
    int rc = upcall_buffers_return(connection->worker->buffers, connection->buffer);

    if (rc < 0)
        die("upcall_buffers_return", upcall_strerror(rc));
    connection->buffer = NULL;
}

static void on_connection_closed(upcall_loop *loop, const upcall_event *event)
{
    struct connection *connection = event->user;
    struct worker *worker = connection->worker;

    on_closed(loop, event);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        worker->connections = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    free(connection);
    worker->connection_count--;
    if (worker->accepting == 0 && !worker->stopping && worker->connection_count < worker->options->connections)
        start_accepting(worker);
}

/* Nothing of the connection is in flight when this is called. */
static void close_connection(struct connection *connection)
{
    upcall_op op = upcall_op_close(connection->fd);

    if (connection->buffer != NULL)
        release_buffer(connection);
    connection->fd = -1; /* the number may be somebody else's before the event is here */
    op.callback = on_connection_closed;
    op.user = connection;
    submit(connection->worker->loop, &op, 1, NULL);
}

static uint64_t left_until(const struct connection *connection, uint64_t deadline_ns)
{
    uint64_t now_ns = upcall_now(connection->worker->loop);

    return now_ns < deadline_ns ? deadline_ns - now_ns : 1;
}

static void on_last_words(upcall_loop *loop, const upcall_event *event);

/* Drops what comes, until the client closes or the time is up. */
static upcall_op drop_bytes(struct connection *connection)
{
    upcall_op op = upcall_op_recv(connection->fd, NULL, HEAD_SIZE, 0);

    op.buffers = connection->worker->buffers;
    op.timeout_ns = left_until(connection, connection->deadline_ns);
    op.callback = on_last_words;
    op.user = connection;
    return op;
}

static void on_last_words(upcall_loop *loop, const upcall_event *event)
{
    struct connection *connection = event->user;
    upcall_op op;

    if (event->buffer != NULL) {
        connection->buffer = event->buffer;
        release_buffer(connection);
    }
    if (event->result <= 0) {
        close_connection(connection);
        return;
    }
    op = drop_bytes(connection);
    submit(loop, &op, 1, NULL);
}

static void end_connection(struct connection *connection)
{
    struct worker *worker = connection->worker;
    upcall_op ops[2];

    if (connection->buffer != NULL)
        release_buffer(connection);
    connection->deadline_ns = upcall_now(worker->loop) + LINGER_MS * UPCALL_MILLISECOND;
    ops[0] = upcall_op_shutdown(connection->fd, SHUT_WR);
    ops[0].flags = UPCALL_LINK_ALWAYS;
    ops[0].callback = on_ignored; /* it fails when the client is gone, and then so does the recv */
    ops[1] = drop_bytes(connection);
    submit(worker->loop, ops, 2, NULL);
}

/* ---- the end of an exchange ---- */

static void next_request(struct connection *connection);

/* The exchange has nothing in flight. */
static void free_exchange(struct exchange *exchange)
{
    if (exchange->file >= 0)
        close_file(exchange->connection->worker, exchange->file);
    free(exchange);
}

static void end_exchange(struct exchange *exchange)
{
    struct connection *connection = exchange->connection;

    free_exchange(exchange);
    if (connection->keep)
        next_request(connection);
    else
        end_connection(connection);
}

/* The answer cannot be finished: that the connection ends early is how the client learns it. With a reset, so that
 * nothing stays queued for a client that does not read. */
static void abort_exchange(struct exchange *exchange)
{
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    struct connection *connection = exchange->connection;

    (void)setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    free_exchange(exchange);
    close_connection(connection);
}

/* ---- sending an answer: its parts, one after the other ---- */

static void on_sent(upcall_loop *loop, const upcall_event *event);
static void send_more(struct exchange *exchange);

static bool is_done(const struct exchange *exchange)
{
    return exchange->part == exchange->part_count;
}

static void on_text_sent(upcall_loop *loop, const upcall_event *event)
{
    struct exchange *exchange = event->user;
    struct part *part = &exchange->parts[exchange->part];

    (void)loop;
    exchange->connection->worker->bytes += event->transferred;
    if (event->result < 0) /* the sendfile after it tells, too, and later */
        return;
    exchange->sent += part->text_size;
    part->text_size = 0;
}

static void on_sent(upcall_loop *loop, const upcall_event *event)
{
    struct exchange *exchange = event->user;
    struct part *part = &exchange->parts[exchange->part];

    (void)loop;
    exchange->connection->worker->bytes += event->transferred;
    if (event->kind == UPCALL_OP_SEND && event->result > 0) {
        exchange->sent += part->text_size;
        part->text_size = 0;
    } else if (event->result > 0 || ((event->flags & UPCALL_EXPIRED) != 0 && event->transferred >= PROGRESS_MIN)) {
        part->file.offset += (int64_t)event->transferred;
        part->file.size -= (int64_t)event->transferred;
    } else { /* the client is gone or too slow; 0: the file has become shorter since its size was sent */
        abort_exchange(exchange);
        return;
    }
    if (part->file.size == 0)
        exchange->part++;
    if (is_done(exchange))
        end_exchange(exchange);
    else
        send_more(exchange);
}

/* The text of a part, if it is not out, and a piece of the file. */
static void send_more(struct exchange *exchange)
{
    struct worker *worker = exchange->connection->worker;
    const struct part *part = &exchange->parts[exchange->part];
    int fd = exchange->connection->fd;
    size_t piece = part->file.size < PIECE_SIZE ? (size_t)part->file.size : PIECE_SIZE, count = 0;
    upcall_op ops[2];

    if (part->text_size > 0) {
        ops[count] = upcall_op_send(fd, exchange->answer + exchange->sent, part->text_size, piece > 0 ? MSG_MORE : 0);
        ops[count].flags = UPCALL_FULL | (piece > 0 ? UPCALL_LINK : 0);
        ops[count++].callback = piece > 0 ? on_text_sent : on_sent;
    }
    if (piece > 0) {
        ops[count] = upcall_op_sendfile(fd, exchange->file, part->file.offset, piece);
        ops[count].flags = UPCALL_FULL;
        ops[count++].callback = on_sent;
    }
    for (size_t i = 0; i < count; i++) {
        ops[i].timeout_ns = worker->options->send_ns;
        ops[i].user = exchange;
    }
    submit(worker->loop, ops, count, NULL);
}

static void on_small_sent(upcall_loop *loop, const upcall_event *event)
{
    struct exchange *exchange = event->user;

    (void)loop;
    exchange->connection->worker->bytes += event->transferred;
    if (event->result < 0) /* also when the pread was short, which breaks the chain */
        abort_exchange(exchange);
    else
        end_exchange(exchange);
}

/* A file that fits in the answer: one chain, one send. */
static void send_small(struct exchange *exchange)
{
    struct worker *worker = exchange->connection->worker;
    const struct http_range *file = &exchange->parts[0].file;
    char *after = exchange->answer + exchange->size;
    upcall_op ops[2];

    ops[0] = upcall_op_pread(exchange->file, after, (size_t)file->size, file->offset);
    ops[0].flags = UPCALL_FULL | UPCALL_LINK;
    ops[0].callback = on_ignored;
    ops[1] = upcall_op_send(exchange->connection->fd, exchange->answer, exchange->size + (size_t)file->size, 0);
    ops[1].flags = UPCALL_FULL;
    ops[1].timeout_ns = worker->options->send_ns;
    ops[1].callback = on_small_sent;
    ops[1].user = exchange;
    submit(worker->loop, ops, 2, NULL);
}

/* ---- composing an answer ---- */

__attribute__((format(printf, 2, 3)))
static void add(struct exchange *exchange, const char *format, ...)
{
    size_t room = sizeof exchange->answer - exchange->size;
    va_list arguments;
    int size;

    va_start(arguments, format);
    size = vsnprintf(exchange->answer + exchange->size, room, format, arguments);
    va_end(arguments);
    if (size < 0 || (size_t)size >= room)
        die("an answer's head", "is too long"); /* the longest is a third of the room */
    exchange->size += (size_t)size;
}

static bool is_head(const struct exchange *exchange)
{
    return http_is(exchange->request.method, "HEAD");
}

static const char *date_now(struct worker *worker)
{
    time_t now = time(NULL);

    if (now != worker->date_time) {
        worker->date_time = now;
        http_date(now, worker->date);
    }
    return worker->date;
}

/* The last answer says so; it is the last when the client or the request's fault demands it, or when we are ending and
 * nothing more of the client's is here. */
static void begin_head(struct exchange *exchange, int status)
{
    struct connection *connection = exchange->connection;
    struct worker *worker = connection->worker;

    if (worker->stopping && connection->begin + connection->body_size >= connection->end)
        connection->keep = false;
    worker->requests++;
    exchange->size = 0;
    add(exchange, "HTTP/1.1 %d %s\r\nServer: upcall\r\nDate: %s\r\n", status, http_reason(status), date_now(worker));
    if (!connection->keep)
        add(exchange, "Connection: close\r\n");
    else if (exchange->request.minor == 0)
        add(exchange, "Connection: keep-alive\r\n");
}

static void send_text(struct exchange *exchange)
{
    exchange->parts[0] = (struct part){.text_size = exchange->size};
    exchange->part_count = 1;
    send_more(exchange);
}

/* An answer that is about the request, not from a file. `more` is header fields. */
static void answer_status(struct exchange *exchange, int status, const char *more)
{
    begin_head(exchange, status);
    add(exchange, "%sContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n\r\n", more,
        sizeof "404 \n" - 1 + strlen(http_reason(status)));
    if (!is_head(exchange))
        add(exchange, "%d %s\n", status, http_reason(status));
    send_text(exchange);
}

static void add_version(struct exchange *exchange, const struct http_version *version)
{
    char date[HTTP_DATE_SIZE];

    http_date(version->modified, date);
    add(exchange, "ETag: %s%s\r\nLast-Modified: %s\r\nAccept-Ranges: bytes\r\n", version->weak ? "W/" : "",
        version->etag, date);
}

static void set_version(struct http_version *version, const struct statx *status)
{
    const struct statx_timestamp *changed = &status->stx_mtime;

    version->modified = (time_t)changed->tv_sec;
    version->weak = version->modified >= time(NULL) - 1;
    snprintf(version->etag, sizeof version->etag, "\"%llx.%x-%llx\"", (unsigned long long)changed->tv_sec,
             (unsigned)changed->tv_nsec, (unsigned long long)status->stx_size);
}

/* Several ranges: each is a part with a head of its own, and a last one ends them. The texts come first, for the
 * answer's head has to tell their size. */
static void compose_ranges(struct exchange *exchange, const struct http_version *version, const char *type,
                           const struct http_range *ranges, size_t count, int64_t file_size)
{
    struct worker *worker = exchange->connection->worker;
    char texts[HTTP_RANGES_MAX * 256];
    int64_t body_size = 0;
    size_t size = 0, end_size, head_size;

    for (size_t i = 0; i < count; i++) {
        int text_size = snprintf(texts + size, sizeof texts - size,
                                 "\r\n--%016llx\r\nContent-Type: %s\r\nContent-Range: bytes %lld-%lld/%lld\r\n\r\n",
                                 (unsigned long long)worker->boundary, type, (long long)ranges[i].offset,
                                 (long long)(ranges[i].offset + ranges[i].size - 1), (long long)file_size);

        exchange->parts[i] = (struct part){(size_t)text_size, ranges[i]};
        size += (size_t)text_size;
        body_size += ranges[i].size;
    }
    end_size = (size_t)snprintf(texts + size, sizeof texts - size, "\r\n--%016llx--\r\n",
                                (unsigned long long)worker->boundary);
    exchange->parts[count] = (struct part){.text_size = end_size};
    exchange->part_count = count + 1;
    size += end_size;

    begin_head(exchange, 206);
    add_version(exchange, version);
    add(exchange, "Content-Type: multipart/byteranges; boundary=%016llx\r\nContent-Length: %lld\r\n\r\n",
        (unsigned long long)worker->boundary, (long long)(body_size + (int64_t)size));
    head_size = exchange->size;
    add(exchange, "%s", texts);
    exchange->parts[0].text_size += head_size;
}

static void answer_file(struct exchange *exchange, const struct statx *status)
{
    const char *type = http_content_type(exchange->path);
    int64_t file_size = (int64_t)status->stx_size;
    struct http_range ranges[HTTP_RANGES_MAX] = {{0, file_size}};
    struct http_version version;
    size_t count = 0;
    int answer;

    set_version(&version, status);
    answer = http_precondition(&exchange->request, &version);
    if (answer == 200 && !is_head(exchange)) /* a range is asked for with GET */
        answer = http_ranges(&exchange->request, &version, file_size, ranges, &count);
    if (answer == 412) {
        answer_status(exchange, answer, "");
        return;
    }
    if (answer == 416) {
        char range[64];

        snprintf(range, sizeof range, "Content-Range: bytes */%lld\r\n", (long long)file_size);
        answer_status(exchange, answer, range);
        return;
    }
    if (answer == 206 && count > 1) {
        compose_ranges(exchange, &version, type, ranges, count, file_size);
        send_more(exchange);
        return;
    }
    begin_head(exchange, answer);
    add_version(exchange, &version);
    if (answer == 206)
        add(exchange, "Content-Range: bytes %lld-%lld/%lld\r\n", (long long)ranges[0].offset,
            (long long)(ranges[0].offset + ranges[0].size - 1), (long long)file_size);
    if (answer == 200)
        ranges[0] = (struct http_range){0, file_size};
    if (answer != 304)
        add(exchange, "Content-Type: %s\r\nContent-Length: %lld\r\n", type, (long long)ranges[0].size);
    add(exchange, "\r\n");
    if (answer == 304 || is_head(exchange) || ranges[0].size == 0) {
        send_text(exchange);
        return;
    }
    exchange->parts[0] = (struct part){.text_size = exchange->size, .file = ranges[0]};
    exchange->part_count = 1;
    if (exchange->size + (uint64_t)ranges[0].size <= sizeof exchange->answer)
        send_small(exchange);
    else
        send_more(exchange);
}

/* A directory without the '/' at its end: relative links would lead elsewhere, so the client is to ask again. */
static void answer_directory(struct exchange *exchange)
{
    struct http_text query = exchange->request.target;
    char location[sizeof "Location: /" + 3 * PATH_MAX + HEAD_SIZE + sizeof "/\r\n"];
    char *to = stpcpy(location, "Location: /");

    (void)http_take_until(&query, '?');
    http_encode_path(exchange->path, to);
    to += strlen(to);
    sprintf(to, "/%s%.*s\r\n", query.size > 0 ? "?" : "", (int)query.size, query.at);
    answer_status(exchange, 301, location);
}

/* ---- finding the file ---- */

static int status_of_error(int64_t error)
{
    switch (-error) {
    case EACCES:
    case EPERM: return 403;
    case EMFILE:
    case ENFILE:
    case ENOMEM: return 503;
    case EIO: return 500;
    default: return 404; /* ENOENT, ENOTDIR, ENAMETOOLONG; ELOOP and EXDEV: it leads out of the root, or might */
    }
}

/* The file is open, so this asks no disk: AT_STATX_DONT_SYNC. As an operation it would cost more than it does. */
static void look_at_file(struct exchange *exchange)
{
    struct statx status;

    if (statx(exchange->file, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE | STATX_MTIME,
              &status) < 0)
        answer_status(exchange, status_of_error(-errno), "");
    else if (S_ISREG(status.stx_mode))
        answer_file(exchange, &status);
    else if (S_ISDIR(status.stx_mode) && !exchange->is_page)
        answer_directory(exchange);
    else
        answer_status(exchange, 404, "");
}

static void on_opened(upcall_loop *loop, const upcall_event *event)
{
    struct exchange *exchange = event->user;

    (void)loop;
    if (event->result < 0) {
        answer_status(exchange, status_of_error(event->result), "");
        return;
    }
    exchange->file = (int)event->result;
    look_at_file(exchange);
}

static void on_segment_opened(upcall_loop *loop, const upcall_event *event);

static void walk(struct exchange *exchange);

static void leave_directory(struct exchange *exchange)
{
    struct worker *worker = exchange->connection->worker;

    if (exchange->directory != worker->root)
        close_file(worker, exchange->directory);
}

static void on_segment_opened(upcall_loop *loop, const upcall_event *event)
{
    struct exchange *exchange = event->user;

    leave_directory(exchange);
    exchange->directory = (int)event->result;
    exchange->segment = strchr(exchange->segment, '/') + 1;
    if (event->result < 0)
        on_opened(loop, event);
    else
        walk(exchange);
}

static void on_last_opened(upcall_loop *loop, const upcall_event *event)
{
    leave_directory(event->user);
    on_opened(loop, event);
}

/* Opens the next segment of the path, which may be no symbolic link: from there it goes on, or it is the file. */
static void walk(struct exchange *exchange)
{
    char *slash = strchr(exchange->segment, '/');
    upcall_op op;

    if (slash != NULL)
        *slash = '\0'; /* for the submit, which copies the name */
    op = upcall_op_open(exchange->directory, exchange->segment,
                        O_NOFOLLOW | (slash != NULL ? O_PATH | O_DIRECTORY : (int)beneath_root.flags), 0);
    op.callback = slash != NULL ? on_segment_opened : on_last_opened;
    op.user = exchange;
    submit(exchange->connection->worker->loop, &op, 1, NULL);
    if (slash != NULL)
        *slash = '/';
}

static void find_file(struct exchange *exchange)
{
    struct worker *worker = exchange->connection->worker;
    size_t size = strlen(exchange->path);
    upcall_op op;

    exchange->is_page = size == 0 || exchange->path[size - 1] == '/';
    if (exchange->is_page)
        strcpy(exchange->path + size, "index.html"); /* http_parse_target() has left room */
    if (worker->walks) {
        exchange->directory = worker->root;
        exchange->segment = exchange->path;
        walk(exchange);
        return;
    }
    op = upcall_op_openat2(worker->root, exchange->path, &beneath_root, sizeof beneath_root);
    op.callback = on_opened;
    op.user = exchange;
    submit(worker->loop, &op, 1, NULL);
}

/* ---- a request ---- */

static struct exchange *new_exchange(struct connection *connection)
{
    struct exchange *exchange = malloc(sizeof *exchange); /* most of it is never touched, so it is not cleared */

    if (exchange == NULL)
        die_errno("malloc");
    exchange->connection = connection;
    exchange->file = -1;
    exchange->part = 0;
    exchange->sent = 0;
    return exchange;
}

/* The last answer of a connection on which nobody knows where the next request begins. */
static void refuse(struct exchange *exchange, int status)
{
    exchange->connection->keep = false;
    answer_status(exchange, status, "");
}

static bool is_known(struct http_text method)
{
    static const char *const known[] = {"POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (http_is(method, known[i]))
            return true;
    return false;
}

static void answer(struct exchange *exchange)
{
    const struct http_request *request = &exchange->request;
    struct connection *connection = exchange->connection;
    int rc;

    connection->keep = request->keep_alive;
    connection->body_size = request->body_size;
    if (request->body_size > BODY_MAX) {
        refuse(exchange, 413);
    } else if (!http_is(request->method, "GET") && !is_head(exchange)) {
        if (is_known(request->method))
            answer_status(exchange, 405, "Allow: GET, HEAD\r\n");
        else
            answer_status(exchange, 501, "");
    } else if ((rc = http_parse_target(request->target, exchange->path)) < 0) {
        answer_status(exchange, -rc, "");
    } else {
        find_file(exchange);
    }
}

static void receive_more(struct connection *connection);

/* What is in the buffer: a request, or the beginning of one. */
static void read_request(struct connection *connection)
{
    const char *bytes = connection->buffer + connection->begin;
    size_t size = connection->end - connection->begin;
    struct exchange *exchange = new_exchange(connection);
    int rc = http_parse_head(bytes, size, &exchange->request);

    if (rc > 0) {
        connection->begin += (size_t)rc;
        connection->deadline_ns = 0;
        answer(exchange);
    } else if (rc < 0) {
        refuse(exchange, -rc);
    } else if (size == HEAD_SIZE) {
        refuse(exchange, memchr(bytes, '\n', size) == NULL ? 414 : 431);
    } else {
        free(exchange);
        memmove(connection->buffer, bytes, size);
        connection->begin = 0;
        connection->end = size;
        receive_more(connection);
    }
}

static void on_received(upcall_loop *loop, const upcall_event *event)
{
    struct connection *connection = event->user;

    (void)loop;
    connection->waiting = 0;
    if (event->buffer != NULL) {
        connection->buffer = event->buffer;
        connection->begin = connection->end = 0;
    }
    if (event->result > 0) {
        connection->end += (size_t)event->result;
        next_request(connection);
    } else if (event->result == -ETIMEDOUT && connection->buffer != NULL && connection->body_size == 0) {
        struct exchange *exchange = new_exchange(connection);

        /* For its method, if that has come. */
        (void)http_parse_head(connection->buffer, connection->end, &exchange->request);
        refuse(exchange, 408);
    } else if (event->result == -ETIMEDOUT || event->result == -ECANCELED) { /* idle for long, or we are stopping */
        end_connection(connection);
    } else { /* the client has closed, or is gone */
        close_connection(connection);
    }
}

static void wait_for_request(struct connection *connection)
{
    struct worker *worker = connection->worker;
    upcall_op op = upcall_op_recv(connection->fd, NULL, HEAD_SIZE, 0);

    op.buffers = worker->buffers;
    op.timeout_ns = worker->options->idle_ns;
    op.callback = on_received;
    op.user = connection;
    submit(worker->loop, &op, 1, &connection->waiting);
}

/* Behind what has been received of a request. However many pieces it comes in, the time for all of them is limited. */
static void receive_more(struct connection *connection)
{
    struct worker *worker = connection->worker;
    upcall_op op = upcall_op_recv(connection->fd, connection->buffer + connection->end, HEAD_SIZE - connection->end, 0);

    if (connection->deadline_ns == 0)
        connection->deadline_ns = upcall_now(worker->loop) + worker->options->head_ns;
    op.timeout_ns = left_until(connection, connection->deadline_ns);
    op.callback = on_received;
    op.user = connection;
    submit(worker->loop, &op, 1, NULL);
}

/* After an answer, and whenever bytes have come: drops the body of the request before, then looks what is there. */
static void next_request(struct connection *connection)
{
    size_t size = connection->buffer != NULL ? connection->end - connection->begin : 0;
    size_t body = connection->body_size < size ? (size_t)connection->body_size : size;

    connection->begin += body;
    connection->body_size -= body;
    if (body > 0 && connection->body_size == 0)
        connection->deadline_ns = 0;
    if (size > body) {
        read_request(connection);
        return;
    }
    connection->begin = connection->end = 0;
    if (connection->body_size > 0) {
        receive_more(connection);
        return;
    }
    if (connection->buffer != NULL)
        release_buffer(connection);
    if (connection->worker->stopping)
        end_connection(connection);
    else
        wait_for_request(connection);
}

/* ---- accepting ---- */

static void open_connection(struct worker *worker, int fd)
{
    struct connection *connection = calloc(1, sizeof *connection);

    if (connection == NULL)
        die_errno("calloc");
    connection->worker = worker;
    connection->fd = fd;
    connection->next = worker->connections;
    if (connection->next != NULL)
        connection->next->previous = connection;
    worker->connections = connection;
    worker->connection_count++;
    worker->accepted++;
    next_request(connection);
}

static void on_accepted(upcall_loop *loop, const upcall_event *event)
{
    struct worker *worker = event->user;

    if (event->result >= 0) {
        if (!worker->stopping)
            open_connection(worker, (int)event->result);
        else if (close((int)event->result) < 0) /* arrived while the listener was closing */
            fprintf(stderr, "http_server: close: %s\n", strerror(errno));
        /* Who does not fit in waits in the listener's queue. */
        if (worker->accepting != 0 && worker->connection_count >= worker->options->connections)
            (void)upcall_cancel(loop, worker->accepting); /* -ENOENT: it is ending already */
    } else if ((event->flags & UPCALL_MORE) != 0) {
        /* Out of descriptors or memory: told once; the client stays queued, and is accepted when there are some. */
        fprintf(stderr, "http_server: accept: %s; going on\n", upcall_strerror((int)event->result));
    }
    if ((event->flags & UPCALL_MORE) != 0)
        return;
    worker->accepting = 0;
    if (event->result != -ECANCELED && !worker->stopping)
        die("accept", upcall_strerror((int)event->result));
    if (!worker->stopping && worker->connection_count < worker->options->connections)
        start_accepting(worker);
}

static void start_accepting(struct worker *worker)
{
    upcall_op op = upcall_op_accept(worker->listener, NULL, NULL, SOCK_NONBLOCK);

    op.flags = UPCALL_MULTISHOT;
    op.callback = on_accepted;
    op.user = worker;
    submit(worker->loop, &op, 1, &worker->accepting);
}

/* ---- the end ---- */

/* What is in flight on them fails at once, and then each goes the way of a connection whose client is gone. */
static void cut_connections(struct worker *worker)
{
    for (struct connection *at = worker->connections; at != NULL; at = at->next)
        (void)shutdown(at->fd, SHUT_RDWR); /* ENOTCONN: it is so already */
}

static void on_grace_over(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result >= 0)
        cut_connections(event->user);
}

static void stop(struct worker *worker)
{
    upcall_op ops[2];

    worker->stopping = true;
    ops[0] = upcall_op_close(worker->listener); /* ends the accept first */
    ops[0].callback = on_closed;
    ops[1] = upcall_op_sleep(worker->options->grace_ns);
    ops[1].flags = UPCALL_BACKGROUND;
    ops[1].callback = on_grace_over;
    ops[1].user = worker;
    submit(worker->loop, ops, 2, NULL);
    for (struct connection *at = worker->connections; at != NULL; at = at->next)
        if (at->waiting != 0)
            (void)upcall_cancel(worker->loop, at->waiting); /* -ENOENT: a request has just come, and will be answered */
}

static void on_signal(upcall_loop *loop, const upcall_event *event)
{
    struct worker *worker = event->user;

    (void)loop;
    if (event->result < 0) /* the loop ends */
        return;
    if (worker->stopping)
        cut_connections(worker);
    else
        stop(worker);
}

/* Every loop is told of every signal. In flight, they do not keep upcall_run() from returning. */
static void watch_signals(struct worker *worker)
{
    static const int signals[] = {SIGINT, SIGTERM};

    for (size_t i = 0; i < 2; i++) {
        upcall_op op = upcall_op_signal(signals[i]);

        op.flags = UPCALL_MULTISHOT | UPCALL_BACKGROUND;
        op.callback = on_signal;
        op.user = worker;
        submit(worker->loop, &op, 1, NULL);
    }
}

/* ---- a worker ---- */

static void on_root_opened(upcall_loop *loop, const upcall_event *event)
{
    struct worker *worker = event->user;

    (void)loop;
    if (event->result >= 0)
        close_file(worker, (int)event->result);
    /* An old kernel, or a sandbox that does not know the call, is found out before the first client comes. */
    worker->walks = event->result < 0 || worker->options->walk;
    if (!worker->stopping)
        start_accepting(worker);
}

/* On the worker's own thread. */
static void *work(void *arg)
{
    struct worker *worker = arg;
    upcall_op op = upcall_op_openat2(worker->root, ".", &beneath_root, sizeof beneath_root);
    int rc;

    op.callback = on_root_opened;
    op.user = worker;
    submit(worker->loop, &op, 1, NULL);
    rc = upcall_run(worker->loop); /* the first poll makes the loop this thread's */
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));
    rc = upcall_loop_free(worker->loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    rc = upcall_buffers_free(worker->buffers); /* -EBUSY would mean that a buffer was forgotten */
    if (rc < 0)
        die("upcall_buffers_free", upcall_strerror(rc));
    return NULL;
}

/* SO_REUSEPORT: the kernel spreads the connections over the listeners. SOCK_NONBLOCK: on epoll a blocking one would cost
 * a thread switch per connection. TCP_NODELAY: inherited by what is accepted. */
static int listen_on(const char *address, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_PASSIVE};
    struct addrinfo *found;
    int fd, on = 1, rc;

    rc = getaddrinfo(address, port, &hints, &found);
    if (rc != 0)
        die(address, gai_strerror(rc));
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die_errno("socket");
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        die_errno("setsockopt");
    if (bind(fd, found->ai_addr, found->ai_addrlen) < 0)
        die_errno("bind");
    if (listen(fd, SOMAXCONN) < 0)
        die_errno("listen");
    freeaddrinfo(found);
    return fd;
}

/* The numeric address and port of a listener. */
static void name_of(int listener, char host[64], char port[8])
{
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;

    if (getsockname(listener, (struct sockaddr *)&bound, &size) < 0)
        die_errno("getsockname");
    if (getnameinfo((struct sockaddr *)&bound, size, host, 64, port, 8, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        die("getnameinfo", "cannot print the address");
}

static void make_worker(struct worker *worker, const struct options *options, int root, const char *port)
{
    int rc;

    *worker = (struct worker){.options = options, .root = root};
    rc = upcall_loop_new(NULL, &worker->loop);
    if (rc < 0) {
        fprintf(stderr, "http_server: no loop: %s\n", upcall_last_error());
        exit(rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE);
    }
    rc = upcall_buffers_new(worker->loop, options->connections, HEAD_SIZE, &worker->buffers);
    if (rc < 0)
        die("upcall_buffers_new", upcall_last_error());
    if (getrandom(&worker->boundary, sizeof worker->boundary, 0) != sizeof worker->boundary)
        die_errno("getrandom");
    worker->listener = listen_on(options->address, port);
    watch_signals(worker); /* from here on a signal is seen, also before the loop runs */
}

static void serve(struct worker *workers, const struct options *options)
{
    char host[64], port[8];
    int rc, root = open(options->root, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (root < 0)
        die_errno(options->root);
    make_worker(&workers[0], options, root, options->port);
    name_of(workers[0].listener, host, port); /* port 0: the first listener picks it for all */
    for (size_t i = 1; i < options->threads; i++)
        make_worker(&workers[i], options, root, port);
    printf("listening on %s port %s: %zu loops (%s)\n", host, port, options->threads,
           upcall_backend_name(upcall_loop_backend(workers[0].loop)));
    if (fflush(stdout) != 0) /* whoever started us may be waiting for this line */
        die_errno("stdout");
    for (size_t i = 1; i < options->threads; i++) {
        rc = pthread_create(&workers[i].thread, NULL, work, &workers[i]);
        if (rc != 0)
            die("pthread_create", strerror(rc));
    }
    work(&workers[0]);
    for (size_t i = 1; i < options->threads; i++) {
        rc = pthread_join(workers[i].thread, NULL);
        if (rc != 0)
            die("pthread_join", strerror(rc));
    }
    if (close(root) < 0)
        die_errno("close");
}

/* ---- the program ---- */

static void print_totals(const struct worker *workers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("loop %zu: %llu connections, %llu requests, %llu bytes sent\n", i,
               (unsigned long long)workers[i].accepted, (unsigned long long)workers[i].requests,
               (unsigned long long)workers[i].bytes);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: http_server [OPTION]... ROOT\n"
                 "Serves the files of a directory over HTTP/1.1. Symbolic links in it are not followed.\n"
                 "  --address A        numeric address to listen on (127.0.0.1)\n"
                 "  --port P           port (0: any free one)\n"
                 "  --threads N        threads, each with a loop (as many as processors)\n"
                 "  --connections N    connections per thread; more wait (1024)\n"
                 "  --idle-timeout MS  for the next request to begin (15000)\n"
                 "  --head-timeout MS  for the rest of a request (10000)\n"
                 "  --send-timeout MS  for the client to take 64 KiB (30000)\n"
                 "  --grace MS         for answers under way, after the first SIGTERM or SIGINT (10000)\n"
                 "  --walk             open paths as on a kernel without openat2\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 stopped by a signal, 1 failed, 2 usage, 77 the chosen backend is denied here.\n");
}

static uint32_t parse_count(const char *text, unsigned long max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > max) {
        fprintf(stderr, "http_server: '%s' is not a number from 1 to %lu\n", text, max);
        exit(2);
    }
    return (uint32_t)value;
}

static uint64_t parse_ms(const char *text)
{
    return parse_count(text, 86400000) * UPCALL_MILLISECOND;
}

static size_t processors(void)
{
    cpu_set_t set;
    size_t count;

    if (sched_getaffinity(0, sizeof set, &set) < 0)
        return 1;
    count = (size_t)CPU_COUNT(&set);
    return count < THREADS_MAX ? count : THREADS_MAX;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"address", required_argument, NULL, 'a'},      {"port", required_argument, NULL, 'p'},
        {"threads", required_argument, NULL, 't'},      {"connections", required_argument, NULL, 'c'},
        {"idle-timeout", required_argument, NULL, 'I'}, {"head-timeout", required_argument, NULL, 'H'},
        {"send-timeout", required_argument, NULL, 'S'}, {"grace", required_argument, NULL, 'G'},
        {"walk", no_argument, NULL, 'w'},               {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.address = "127.0.0.1", .port = "0", .threads = processors(), .connections = 1024,
                              .idle_ns = 15 * UPCALL_SECOND, .head_ns = 10 * UPCALL_SECOND,
                              .send_ns = 30 * UPCALL_SECOND, .grace_ns = 10 * UPCALL_SECOND};
    int option;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'a': options.address = optarg; break;
        case 'p': options.port = optarg; break;
        case 't': options.threads = parse_count(optarg, THREADS_MAX); break;
        case 'c': options.connections = parse_count(optarg, 32768); break;
        case 'I': options.idle_ns = parse_ms(optarg); break;
        case 'H': options.head_ns = parse_ms(optarg); break;
        case 'S': options.send_ns = parse_ms(optarg); break;
        case 'G': options.grace_ns = parse_ms(optarg); break;
        case 'w': options.walk = true; break;
        case 'h': usage(stdout); exit(EXIT_SUCCESS);
        default: usage(stderr); exit(2);
        }
    }
    if (optind != argc - 1) {
        usage(stderr);
        exit(2);
    }
    options.root = argv[optind];
    return options;
}

int main(int argc, char **argv)
{
    static struct worker workers[THREADS_MAX];
    struct options options = parse(argc, argv);

    /* What the signals do again once the loops are gone: a last one must not kill a process that is ending well. */
    if (signal(SIGINT, SIG_IGN) == SIG_ERR || signal(SIGTERM, SIG_IGN) == SIG_ERR)
        die_errno("signal");
    serve(workers, &options);
    print_totals(workers, options.threads);
    return EXIT_SUCCESS;
}
