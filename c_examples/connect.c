/*
 * Connecting without blocking, twice: by hand, and with upcall_op_connect().
 *
 * By hand it takes four steps, and each is easy to get wrong:
 *
 *   1. connect(2) on a socket opened with SOCK_NONBLOCK; EINPROGRESS means "begun";
 *   2. wait until the socket is writable, which means "over", not "connected";
 *   3. read SO_ERROR to learn which of the two it is;
 *   4. keep a deadline meanwhile: the kernel's own is longer than two minutes.
 *
 * upcall_op_connect() is those four in one operation. The program runs both through four cases (a listener that
 * answers, a port nobody listens on, a listener whose backlog is full, an attempt that is cancelled), all on 127.0.0.1,
 * prints what happened and how long it took, and fails if the two ways disagree.
 */

#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <upcall.h>

#define DEADLINE_NS (300 * UPCALL_MILLISECOND)
#define CANCEL_AFTER_NS (100 * UPCALL_MILLISECOND)

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    FILLERS_MAX = 8,
    FILLER_WAIT_MS = 100,
};

/* One connect on its way. */
struct attempt {
    int fd;
    upcall_id id; /* the operation that cancelling must name */
    bool done;
    bool expired; /* our deadline ended it, not the network */
    int result;   /* 0: connected; else a negative errno */
    uint64_t started_ns;
    uint64_t took_ns;
};

/* A way to connect: begins, and sees to it that settle() is called once. */
typedef void (*start_fn)(upcall_loop *loop, struct attempt *attempt, const struct sockaddr_in *to);

struct scenario {
    const char *name;
    struct sockaddr_in to;
    bool cancel;
    int expected;
    bool expected_expired;
};

/* The listeners and the sockets that fill a backlog. */
struct stage {
    int live;
    int refusing;
    int full;
    int fillers[FILLERS_MAX];
    size_t filler_count;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "connect: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void die_errno(const char *what)
{
    die(what, strerror(errno));
}

static uint64_t now_ns(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
        die_errno("clock_gettime");
    return (uint64_t)now.tv_sec * UPCALL_SECOND + (uint64_t)now.tv_nsec;
}

/* Only a mistake in the program, or memory running out, makes a submit fail: no reason to go on. */
static upcall_id submit(upcall_loop *loop, upcall_op op)
{
    upcall_id id;

    if (upcall_submit(loop, &op, 1, &id) < 0)
        die("upcall_submit", upcall_last_error());
    return id;
}

static void settle(struct attempt *attempt, int64_t result, uint32_t flags)
{
    attempt->took_ns = now_ns() - attempt->started_ns;
    attempt->result = (int)result;
    attempt->expired = (flags & UPCALL_EXPIRED) != 0;
    attempt->done = true;
}

/* ---- by hand ---- */

static void on_writable(upcall_loop *loop, const upcall_event *event)
{
    struct attempt *attempt = event->user;
    int error = 0;
    socklen_t size = sizeof error;

    (void)loop;
    if (event->result < 0) { /* the wait itself ended: deadline or cancel */
        settle(attempt, event->result, event->flags);
        return;
    }
    /* Writable, or POLLERR, or POLLHUP: the attempt is over. SO_ERROR says how, and reading it clears it: once only. */
    if (getsockopt(attempt->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
        error = errno;
    settle(attempt, -error, event->flags);
}

static void start_by_hand(upcall_loop *loop, struct attempt *attempt, const struct sockaddr_in *to)
{
    upcall_op op;

    if (connect(attempt->fd, (const struct sockaddr *)to, sizeof *to) == 0) {
        settle(attempt, 0, 0); /* local sockets may connect at once */
        return;
    }
    if (errno != EINPROGRESS) {
        settle(attempt, -errno, 0);
        return;
    }
    op = upcall_op_poll(attempt->fd, POLLOUT);
    op.callback = on_writable;
    op.user = attempt;
    op.timeout_ns = DEADLINE_NS;
    attempt->id = submit(loop, op);
}

/* ---- with the operation ---- */

static void on_connect(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    settle(event->user, event->result, event->flags);
}

static void start_operation(upcall_loop *loop, struct attempt *attempt, const struct sockaddr_in *to)
{
    upcall_op op = upcall_op_connect(attempt->fd, (const struct sockaddr *)to, sizeof *to);

    op.callback = on_connect;
    op.user = attempt;
    op.timeout_ns = DEADLINE_NS;
    attempt->id = submit(loop, op);
}

/* ---- one attempt ---- */

static void on_time_to_cancel(upcall_loop *loop, const upcall_event *event)
{
    struct attempt *attempt = event->user;
    int rc;

    if (event->result < 0 || attempt->done)
        return;
    /* This only asks. The attempt's own event answers, later, and until then the socket stays in use. */
    rc = upcall_cancel(loop, attempt->id);
    if (rc < 0 && rc != -ENOENT) /* -ENOENT: it ended first */
        die("upcall_cancel", upcall_strerror(rc));
}

static struct attempt run_attempt(upcall_loop *loop, start_fn start, const struct scenario *scenario)
{
    struct attempt attempt = {.fd = -1};
    int rc;

    attempt.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (attempt.fd < 0)
        die_errno("socket");
    attempt.started_ns = now_ns();
    start(loop, &attempt, &scenario->to);
    if (scenario->cancel) {
        upcall_op op = upcall_op_sleep(CANCEL_AFTER_NS);

        op.callback = on_time_to_cancel;
        op.user = &attempt;
        submit(loop, op);
    }
    rc = upcall_run(loop); /* until nothing is in flight */
    if (rc != 0)
        die("upcall_run", rc < 0 ? upcall_strerror(rc) : "stopped");
    if (!attempt.done)
        die(scenario->name, "the loop ended without an answer");
    /* Nothing is in flight on the socket, so a plain close(2) is enough. */
    if (close(attempt.fd) < 0)
        die_errno("close");
    return attempt;
}

static const char *describe(const struct attempt *attempt)
{
    if (attempt->result == 0)
        return "connected";
    if (attempt->result == -ETIMEDOUT)
        return attempt->expired ? "our deadline passed (ETIMEDOUT)" : "the network timed out (ETIMEDOUT)";
    if (attempt->result == -ECONNREFUSED)
        return "refused (ECONNREFUSED)";
    if (attempt->result == -ECANCELED)
        return "cancelled (ECANCELED)";
    return upcall_strerror(attempt->result);
}

/* Runs a scenario one way, prints its line, and says whether it went as it must. */
static bool show(upcall_loop *loop, const struct scenario *scenario, const char *way, start_fn start)
{
    struct attempt attempt = run_attempt(loop, start, scenario);
    bool good = attempt.result == scenario->expected && attempt.expired == scenario->expected_expired;

    if (attempt.expired && attempt.took_ns < DEADLINE_NS)
        good = false; /* a deadline is never early */
    printf("  %-17s %-18s %-34s %9.2f ms%s\n", scenario->name, way, describe(&attempt),
           (double)attempt.took_ns / UPCALL_MILLISECOND, good ? "" : "   <- not what was expected");
    return good;
}

/* ---- the stage ---- */

static int bind_loopback(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die_errno("socket");
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)address, sizeof *address) < 0)
        die_errno("bind");
    if (getsockname(fd, (struct sockaddr *)address, &size) < 0)
        die_errno("getsockname");
    return fd;
}

/* Connects to a listener until an attempt gets no answer any more: its queue is full, the kernel drops what comes. */
static void fill_backlog(struct stage *stage, const struct sockaddr_in *to)
{
    while (stage->filler_count < FILLERS_MAX) {
        struct pollfd wait = {.events = POLLOUT};
        int ready;

        wait.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (wait.fd < 0)
            die_errno("socket");
        stage->fillers[stage->filler_count++] = wait.fd;
        if (connect(wait.fd, (const struct sockaddr *)to, sizeof *to) < 0 && errno != EINPROGRESS)
            die_errno("connect (to fill a backlog)");
        ready = poll(&wait, 1, FILLER_WAIT_MS);
        if (ready < 0)
            die_errno("poll");
        if (ready == 0)
            return;
    }
    die("backlog", "it never got full");
}

static void close_stage(const struct stage *stage)
{
    if (close(stage->live) < 0 || close(stage->refusing) < 0 || close(stage->full) < 0)
        die_errno("close");
    for (size_t i = 0; i < stage->filler_count; i++)
        if (close(stage->fillers[i]) < 0)
            die_errno("close");
}

static bool play(upcall_loop *loop)
{
    struct stage stage = {.live = -1};
    struct scenario scenarios[] = {
        {.name = "live listener", .expected = 0},
        {.name = "refused port", .expected = -ECONNREFUSED},
        {.name = "full backlog", .expected = -ETIMEDOUT, .expected_expired = true},
        {.name = "cancelled attempt", .cancel = true, .expected = -ECANCELED},
    };
    bool good = true;

    stage.live = bind_loopback(&scenarios[0].to);
    stage.refusing = bind_loopback(&scenarios[1].to); /* bound but not listening: nobody else can take the port */
    stage.full = bind_loopback(&scenarios[2].to);
    scenarios[3].to = scenarios[2].to;
    if (listen(stage.live, 16) < 0 || listen(stage.full, 0) < 0)
        die_errno("listen");
    fill_backlog(&stage, &scenarios[2].to);

    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++) {
        good &= show(loop, &scenarios[i], "by hand", start_by_hand);
        good &= show(loop, &scenarios[i], "upcall_op_connect", start_operation);
    }
    close_stage(&stage);
    return good;
}

static void usage(FILE *out)
{
    fprintf(out, "usage: connect [--backend | --help]\n"
                 "Connects on 127.0.0.1 by hand and with upcall_op_connect(): to a live listener, a refused port,\n"
                 "a full backlog, and with a cancel; prints the outcomes and times.\n"
                 "  --backend  only tell which backend a loop gets on this machine, and why\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 all as expected, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
}

int main(int argc, char **argv)
{
    bool only_backend = argc == 2 && strcmp(argv[1], "--backend") == 0;
    upcall_loop *loop;
    bool good = true;
    int rc;

    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return EXIT_SUCCESS;
    }
    if (argc != 1 && !only_backend) {
        usage(stderr);
        return 2;
    }

    rc = upcall_loop_new(NULL, &loop);
    if (rc < 0) {
        fprintf(stderr, "connect: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    printf("backend: %s (%s)\n", upcall_backend_name(upcall_loop_backend(loop)), upcall_backend_reason(loop));
    if (!only_backend)
        good = play(loop);

    rc = upcall_loop_free(loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
