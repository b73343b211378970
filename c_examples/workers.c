/*
 * A loop per thread.
 *
 * A loop belongs to one thread, so a program uses more processors with more loops. Here every worker thread has a loop
 * and a listener of its own; the listeners share a port (SO_REUSEPORT) and the kernel spreads the connections. Workers
 * share no data and take no locks: what they have to tell, they post.
 *
 *   - A worker greets each client and closes: a chain of two operations, UPCALL_LINK_ALWAYS, one submit, no state.
 *   - Ten times a second a worker posts what it has done since the last time to the collector, a loop on the main
 *     thread, which adds it up. A post runs on the thread it is posted to, so the totals need no lock either.
 *   - To stop, the collector posts to the workers; each closes its listener, finishes what it has begun, posts its last
 *     numbers, and gives its loop up with upcall_loop_detach(), so that the main thread may free it.
 *
 * With --clients N the program connects to itself N times and checks that the totals come to N.
 */

#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <upcall.h>

#define REPORT_NS (100 * UPCALL_MILLISECOND)
#define CLIENT_DEADLINE_NS (10 * UPCALL_SECOND)

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    THREADS_MAX = 64,
    GREETING_SIZE = 64,
    CLIENTS_AT_ONCE = 16,
};

struct options {
    size_t threads;
    uint16_t port;
    size_t clients; /* 0: none of our own, serve until a signal */
};

struct collector;

struct worker {
    struct collector *collector;
    size_t index;
    pthread_t thread;
    upcall_loop *loop;
    int listener;
    upcall_id ticker;
    bool stopping;
    char greeting[GREETING_SIZE]; /* never changes, so all sends may share it */
    size_t greeting_size;
    uint64_t greeted, failed; /* since the last report */
};

/* What a worker posts; the collector frees it. */
struct report {
    struct collector *collector;
    size_t worker;
    uint64_t greeted, failed;
};

/* A client of our own: a place that one connection after another takes. */
struct client {
    struct collector *collector;
    int fd;
    char bytes[GREETING_SIZE];
};

/* All of this belongs to the main thread. */
struct collector {
    const struct options *options;
    upcall_loop *loop;
    struct sockaddr_in address;
    struct worker workers[THREADS_MAX];
    uint64_t greeted[THREADS_MAX];
    uint64_t failed;
    uint64_t reports;
    struct client clients[CLIENTS_AT_ONCE];
    size_t clients_started, clients_ended, clients_greeted;
};

/* A signal handler gets no argument, so what it needs has to be global. */
static upcall_loop *volatile loop_to_stop;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "workers: %s: %s\n", what, why);
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

static void post(upcall_loop *loop, upcall_post_fn fn, void *arg)
{
    int rc = upcall_post(loop, fn, arg);

    if (rc < 0)
        die("upcall_post", upcall_strerror(rc));
}

/* ---- the collector's side of a report ---- */

static void on_report(upcall_loop *loop, void *arg)
{
    struct report *report = arg;
    struct collector *collector = report->collector;

    (void)loop;
    collector->greeted[report->worker] += report->greeted;
    collector->failed += report->failed;
    collector->reports++;
    free(report);
}

/* ---- a worker: everything here runs on its own thread ---- */

static void send_report(struct worker *worker)
{
    struct report *report;

    if (worker->greeted == 0 && worker->failed == 0)
        return;
    report = malloc(sizeof *report);
    if (report == NULL)
        die_errno("malloc");
    *report = (struct report){worker->collector, worker->index, worker->greeted, worker->failed};
    worker->greeted = 0;
    worker->failed = 0;
    post(worker->collector->loop, on_report, report);
}

static void on_tick(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result >= 0)
        send_report(event->user);
}

static void on_greeting_sent(upcall_loop *loop, const upcall_event *event)
{
    struct worker *worker = event->user;

    (void)loop;
    if (event->result < 0)
        worker->failed++;
    else
        worker->greeted++;
}

static void on_client_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "workers: close: %s\n", upcall_strerror((int)event->result));
}

static void on_accepted(upcall_loop *loop, const upcall_event *event)
{
    struct worker *worker = event->user;
    upcall_op ops[2];

    if (event->result < 0) {
        /* Out of descriptors or memory is told with UPCALL_MORE, and accepting goes on. The end is ours to ask for. */
        if (!worker->stopping)
            fprintf(stderr, "workers: accept: %s\n", upcall_strerror((int)event->result));
        if ((event->flags & UPCALL_MORE) == 0 && !worker->stopping)
            exit(EXIT_FAILURE);
        return;
    }
    /* The close starts when the send has ended, well or not, so the descriptor needs no place to be remembered. */
    ops[0] = upcall_op_send((int)event->result, worker->greeting, worker->greeting_size, 0);
    ops[0].flags = UPCALL_FULL | UPCALL_LINK_ALWAYS;
    ops[0].callback = on_greeting_sent;
    ops[0].user = worker;
    ops[1] = upcall_op_close((int)event->result);
    ops[1].callback = on_client_closed;
    submit(loop, ops, 2, NULL);
}

static void on_listener_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "workers: close: %s\n", upcall_strerror((int)event->result));
}

/* Posted by the main thread. When the listener is closed and the ticker cancelled nothing is in flight but the last
 * greetings, and upcall_run() comes to its end by itself. */
static void on_stop_request(upcall_loop *loop, void *arg)
{
    struct worker *worker = arg;
    upcall_op op = upcall_op_close(worker->listener);
    int rc;

    worker->stopping = true;
    op.callback = on_listener_closed;
    submit(loop, &op, 1, NULL);
    rc = upcall_cancel(loop, worker->ticker);
    if (rc < 0)
        die("upcall_cancel", upcall_strerror(rc));
}

static void *work(void *arg)
{
    struct worker *worker = arg;
    upcall_op ops[2];
    upcall_id ids[2];
    int rc;

    ops[0] = upcall_op_accept(worker->listener, NULL, NULL, 0);
    ops[0].flags = UPCALL_MULTISHOT;
    ops[0].callback = on_accepted;
    ops[0].user = worker;
    ops[1] = upcall_op_sleep(REPORT_NS);
    ops[1].flags = UPCALL_MULTISHOT;
    ops[1].callback = on_tick;
    ops[1].user = worker;
    submit(worker->loop, ops, 2, ids);
    worker->ticker = ids[1];

    rc = upcall_run(worker->loop); /* the first poll makes the loop this thread's */
    if (rc != 0)
        die("upcall_run", rc < 0 ? upcall_strerror(rc) : "stopped");
    send_report(worker);
    rc = upcall_loop_detach(worker->loop);
    if (rc < 0)
        die("upcall_loop_detach", upcall_strerror(rc));
    return NULL;
}

/* ---- starting and stopping workers: the main thread ---- */

/* The listener has SOCK_NONBLOCK: on epoll a blocking one would cost a thread switch per connection. */
static int listen_on(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;

    if (fd < 0)
        die_errno("socket");
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) < 0)
        die_errno("SO_REUSEPORT");
    if (bind(fd, (struct sockaddr *)address, sizeof *address) < 0)
        die_errno("bind");
    if (getsockname(fd, (struct sockaddr *)address, &size) < 0) /* port 0: the first listener picks it for all */
        die_errno("getsockname");
    if (listen(fd, SOMAXCONN) < 0)
        die_errno("listen");
    return fd;
}

static void start_worker(struct collector *collector, size_t index)
{
    struct worker *worker = &collector->workers[index];
    int rc;

    *worker = (struct worker){.collector = collector, .index = index};
    worker->greeting_size =
        (size_t)snprintf(worker->greeting, sizeof worker->greeting, "hello from worker %zu\n", index);
    worker->listener = listen_on(&collector->address);
    /* Made here, so that it can be posted to from now on; it belongs to the thread that polls it first. */
    rc = upcall_loop_new(NULL, &worker->loop);
    if (rc < 0)
        die("upcall_loop_new", upcall_last_error());
    rc = pthread_create(&worker->thread, NULL, work, worker);
    if (rc != 0)
        die("pthread_create", strerror(rc));
}

static void stop_workers(struct collector *collector)
{
    size_t threads = collector->options->threads;
    int rc;

    for (size_t i = 0; i < threads; i++)
        post(collector->workers[i].loop, on_stop_request, &collector->workers[i]);
    for (size_t i = 0; i < threads; i++) {
        rc = pthread_join(collector->workers[i].thread, NULL);
        if (rc != 0)
            die("pthread_join", strerror(rc));
        rc = upcall_loop_free(collector->workers[i].loop);
        if (rc < 0)
            die("upcall_loop_free", upcall_strerror(rc));
    }
    do {
        rc = upcall_run(collector->loop); /* the last reports: posts keep a loop running until they have run */
    } while (rc == 1);                    /* stopped once more, by a signal that came late */
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));
}

/* ---- clients of our own: on the collector's loop ---- */

static void start_client(struct client *client);

static void on_client_connected(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "workers: connect: %s\n", upcall_strerror((int)event->result));
}

static void on_client_received(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;
    static const char expected[] = "hello from worker ";

    (void)loop;
    if (event->result > (int64_t)sizeof expected && memcmp(client->bytes, expected, sizeof expected - 1) == 0 &&
        client->bytes[event->result - 1] == '\n')
        client->collector->clients_greeted++;
    else
        fprintf(stderr, "workers: client: %s\n",
                event->result < 0 ? upcall_strerror((int)event->result) : "not the greeting");
}

static void on_client_done(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;
    struct collector *collector = client->collector;

    if (event->result < 0)
        fprintf(stderr, "workers: close: %s\n", upcall_strerror((int)event->result));
    collector->clients_ended++;
    if (collector->clients_started < collector->options->clients)
        start_client(client);
    else if (collector->clients_ended == collector->options->clients)
        (void)upcall_stop(loop); /* fails for NULL only */
}

/* A client's whole life in one submit: connect, receive until the end of the stream, close. LINK_ALWAYS: whatever goes
 * wrong the descriptor is closed (after a failed connect the recv just fails too). */
static void start_client(struct client *client)
{
    struct collector *collector = client->collector;
    upcall_op ops[3];

    collector->clients_started++;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        die_errno("socket");
    ops[0] = upcall_op_connect(client->fd, (struct sockaddr *)&collector->address, sizeof collector->address);
    ops[0].flags = UPCALL_LINK_ALWAYS;
    ops[0].callback = on_client_connected;
    ops[0].timeout_ns = CLIENT_DEADLINE_NS;
    ops[1] = upcall_op_recv(client->fd, client->bytes, sizeof client->bytes, 0);
    ops[1].flags = UPCALL_FULL | UPCALL_LINK_ALWAYS; /* the end of the stream comes first, so it is short */
    ops[1].callback = on_client_received;
    ops[1].timeout_ns = CLIENT_DEADLINE_NS;
    ops[2] = upcall_op_close(client->fd);
    ops[2].callback = on_client_done;
    for (size_t i = 0; i < 3; i++)
        ops[i].user = client;
    submit(collector->loop, ops, 3, NULL);
}

static void start_clients(struct collector *collector)
{
    for (size_t i = 0; i < CLIENTS_AT_ONCE && i < collector->options->clients; i++) {
        collector->clients[i].collector = collector;
        start_client(&collector->clients[i]);
    }
}

/* ---- the program ---- */

static void on_signal(int signo)
{
    int saved = errno;

    (void)signo;
    (void)upcall_stop(loop_to_stop);
    errno = saved;
}

static void handle_signals(void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};

    if (sigemptyset(&action.sa_mask) < 0 || sigaction(SIGINT, &action, NULL) < 0 ||
        sigaction(SIGTERM, &action, NULL) < 0)
        die_errno("sigaction");
}

static bool report_totals(const struct collector *collector)
{
    const struct options *options = collector->options;
    uint64_t greeted = 0;

    for (size_t i = 0; i < options->threads; i++) {
        printf("  worker %zu: %llu clients greeted\n", i, (unsigned long long)collector->greeted[i]);
        greeted += collector->greeted[i];
    }
    printf("  together: %llu greeted, %llu failed, in %llu reports\n", (unsigned long long)greeted,
           (unsigned long long)collector->failed, (unsigned long long)collector->reports);
    if (options->clients == 0)
        return true;
    printf("  of our own clients %zu of %zu got their greeting\n", collector->clients_greeted, options->clients);
    return collector->clients_greeted == options->clients && greeted >= options->clients;
}

static bool run_program(struct collector *collector)
{
    int rc;

    collector->address = (struct sockaddr_in){.sin_family = AF_INET,
                                              .sin_port = htons(collector->options->port),
                                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (size_t i = 0; i < collector->options->threads; i++)
        start_worker(collector, i);
    printf("listening on 127.0.0.1 port %u: %zu workers, each with a loop (%s)\n",
           (unsigned)ntohs(collector->address.sin_port), collector->options->threads,
           upcall_backend_name(upcall_loop_backend(collector->loop)));
    if (fflush(stdout) != 0) /* whoever started us may be waiting for this line */
        die_errno("stdout");

    start_clients(collector);
    rc = upcall_hold(collector->loop); /* nothing of its own in flight: it lives for posts */
    if (rc < 0)
        die("upcall_hold", upcall_strerror(rc));
    loop_to_stop = collector->loop;
    handle_signals(on_signal);
    rc = upcall_run(collector->loop); /* until a signal, or until the last client is done */
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));
    handle_signals(SIG_IGN); /* we are ending, and the loop is about to go */
    rc = upcall_unhold(collector->loop);
    if (rc < 0)
        die("upcall_unhold", upcall_strerror(rc));

    stop_workers(collector);
    return report_totals(collector);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: workers [--threads N] [--port P] [--clients N] [--help]\n"
                 "Greets TCP clients on 127.0.0.1 from several threads, each with a loop of its own.\n"
                 "Ends on SIGINT or SIGTERM.\n"
                 "  --threads N  worker threads (4)\n"
                 "  --port P     port (0: any free one)\n"
                 "  --clients N  connect N times from inside, check the greetings and the totals, and end\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 stopped, or all clients greeted, 1 not, 2 usage, 77 the chosen backend is denied.\n");
}

static size_t parse_count(const char *text, unsigned long min, unsigned long max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < min || value > max) {
        fprintf(stderr, "workers: '%s' is not a number from %lu to %lu\n", text, min, max);
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"threads", required_argument, NULL, 't'}, {"port", required_argument, NULL, 'p'},
        {"clients", required_argument, NULL, 'c'}, {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.threads = 4};
    int option;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 't': options.threads = parse_count(optarg, 1, THREADS_MAX); break;
        case 'p': options.port = (uint16_t)parse_count(optarg, 0, 65535); break;
        case 'c': options.clients = parse_count(optarg, 1, 1000000); break;
        case 'h': usage(stdout); exit(EXIT_SUCCESS);
        default: usage(stderr); exit(2);
        }
    }
    if (optind != argc) {
        usage(stderr);
        exit(2);
    }
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct collector collector = {.options = &options};
    bool good;
    int rc;

    rc = upcall_loop_new(NULL, &collector.loop);
    if (rc < 0) {
        fprintf(stderr, "workers: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    good = run_program(&collector);
    rc = upcall_loop_free(collector.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
