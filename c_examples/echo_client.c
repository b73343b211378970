/*
 * Loads an echo server and verifies every byte that comes back.
 *
 * N connections each send M messages of S bytes, one after another. For a message the recv is submitted together with
 * the send, both with UPCALL_FULL: one event each, however many packets the message took, and a message that is larger
 * than all socket buffers cannot jam, because the reply is read while the rest is still being sent.
 *
 * The last message ends with a half-close: UPCALL_LINK starts the shutdown(SHUT_WR) when the send before it has
 * succeeded. The reply must still arrive, then the end of the stream: this catches servers and proxies that give up
 * both directions when one ends.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <upcall.h>

enum { EXIT_NO_BACKEND = 77 /* what test runners take for "skipped: this machine cannot" */ };

struct options {
    size_t connections;
    size_t messages;
    size_t size;
    uint64_t deadline_ns; /* for one message, and for connecting */
    const char *host;
    const char *port;
};

struct load;

struct client {
    struct load *load;
    size_t index;
    int fd;
    size_t message;    /* the one under way */
    unsigned in_flight; /* of its operations */
    bool closing;
    uint64_t started_ns;
    unsigned char *out;
    unsigned char *in;
};

struct load {
    const struct options *options;
    upcall_loop *loop;
    const struct addrinfo *to;
    struct client *clients;
    size_t failed;
    uint64_t *latencies_ns; /* of all messages, in the order they ended */
    size_t done;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "echo_client: %s: %s\n", what, why);
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
static void submit(upcall_loop *loop, const upcall_op *ops, size_t count)
{
    if (upcall_submit(loop, ops, count, NULL) < 0)
        die("upcall_submit", upcall_last_error());
}

/* Bytes that differ from message to message and from connection to connection (splitmix64). */
static void fill(unsigned char *bytes, size_t size, size_t connection, size_t message)
{
    uint64_t state = ((uint64_t)connection << 32) ^ (uint64_t)message;

    for (size_t at = 0; at < size; at += sizeof state) {
        uint64_t word = state += UINT64_C(0x9e3779b97f4a7c15);

        word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        word = (word ^ (word >> 27)) * UINT64_C(0x94d049bb133111eb);
        word ^= word >> 31;
        memcpy(bytes + at, &word, size - at < sizeof word ? size - at : sizeof word);
    }
}

/* ---- one connection ---- */

static void on_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        die("close", upcall_strerror((int)event->result));
}

static void close_client(struct client *client)
{
    upcall_op op = upcall_op_close(client->fd);

    client->closing = true;
    op.callback = on_closed;
    submit(client->load->loop, &op, 1);
}

/* What else is in flight on the socket ends in -ECANCELED; `closing` keeps that from being reported as well. */
static void fail(struct client *client, const char *what, const char *why)
{
    fprintf(stderr, "echo_client: connection %zu, message %zu: %s: %s\n", client->index, client->message, what, why);
    client->load->failed++;
    close_client(client);
}

static void start_message(struct client *client);

static void on_end_of_stream(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;

    (void)loop;
    if (client->closing)
        return;
    if (event->result == 0)
        close_client(client);
    else if (event->result > 0)
        fail(client, "recv", "more bytes came back than were sent");
    else
        fail(client, "recv (waiting for the end of the stream)", upcall_strerror((int)event->result));
}

/* Everything came back; now the server, which has seen our end of the stream, has to end its own. */
static void expect_end(struct client *client)
{
    upcall_op op = upcall_op_recv(client->fd, client->in, 1, 0);

    op.callback = on_end_of_stream;
    op.user = client;
    op.timeout_ns = client->load->options->deadline_ns;
    submit(client->load->loop, &op, 1);
}

/* A message is over when all its operations are: only then are its buffers ours again. */
static void finish_part(struct client *client)
{
    if (--client->in_flight > 0 || client->closing)
        return;
    client->message++;
    if (client->message < client->load->options->messages)
        start_message(client);
    else
        expect_end(client);
}

static void on_received(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;
    struct load *load = client->load;
    size_t size = load->options->size;

    (void)loop;
    if (!client->closing) {
        if (event->result < 0)
            fail(client, "recv", upcall_strerror((int)event->result));
        else if (event->transferred != size)
            fail(client, "recv", "the stream ended too early");
        else if (memcmp(client->in, client->out, size) != 0)
            fail(client, "recv", "other bytes than were sent");
        else
            load->latencies_ns[load->done++] = now_ns() - client->started_ns;
    }
    finish_part(client);
}

static void on_sent(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;

    (void)loop;
    if (event->result < 0 && !client->closing)
        fail(client, "send", upcall_strerror((int)event->result));
    finish_part(client);
}

static void on_shut_down(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;

    (void)loop;
    if (event->result < 0 && !client->closing)
        fail(client, "shutdown", upcall_strerror((int)event->result));
    finish_part(client);
}

static void start_message(struct client *client)
{
    const struct options *options = client->load->options;
    bool last = client->message + 1 == options->messages;
    upcall_op ops[3];
    unsigned count = last ? 3 : 2;

    fill(client->out, options->size, client->index, client->message);

    ops[0] = upcall_op_recv(client->fd, client->in, options->size, 0);
    ops[0].flags = UPCALL_FULL;
    ops[0].callback = on_received;
    ops[1] = upcall_op_send(client->fd, client->out, options->size, 0);
    ops[1].flags = UPCALL_FULL | (last ? UPCALL_LINK : 0);
    ops[1].callback = on_sent;
    ops[2] = upcall_op_shutdown(client->fd, SHUT_WR);
    ops[2].callback = on_shut_down;
    for (unsigned i = 0; i < count; i++) {
        ops[i].user = client;
        ops[i].timeout_ns = options->deadline_ns;
    }
    client->in_flight = count;
    client->started_ns = now_ns();
    submit(client->load->loop, ops, count);
}

static void on_connected(upcall_loop *loop, const upcall_event *event)
{
    struct client *client = event->user;
    int on = 1;

    (void)loop;
    if (event->result < 0) {
        fail(client, "connect", upcall_strerror((int)event->result));
        return;
    }
    if (setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0) {
        fail(client, "TCP_NODELAY", strerror(errno));
        return;
    }
    start_message(client);
}

static void start_client(struct load *load, struct client *client, size_t index)
{
    upcall_op op;

    *client = (struct client){.load = load, .index = index};
    client->out = malloc(load->options->size);
    client->in = malloc(load->options->size);
    if (client->out == NULL || client->in == NULL)
        die_errno("malloc");
    client->fd = socket(load->to->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        die_errno("socket");
    op = upcall_op_connect(client->fd, load->to->ai_addr, load->to->ai_addrlen);
    op.callback = on_connected;
    op.user = client;
    op.timeout_ns = load->options->deadline_ns;
    submit(load->loop, &op, 1);
}

/* ---- the load ---- */

static int compare_ns(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

/* The latency that `permille` thousandths of the messages did not exceed. */
static double percentile_us(const struct load *load, size_t permille)
{
    size_t at = (load->done * permille + 999) / 1000;

    return (double)load->latencies_ns[at > 0 ? at - 1 : 0] / UPCALL_MICROSECOND;
}

static void report(struct load *load, uint64_t took_ns)
{
    const struct options *options = load->options;
    double seconds = (double)took_ns / UPCALL_SECOND;

    printf("%zu connections x %zu messages of %zu bytes, on %s\n", options->connections, options->messages,
           options->size, upcall_backend_name(upcall_loop_backend(load->loop)));
    if (load->done == 0)
        return;
    qsort(load->latencies_ns, load->done, sizeof load->latencies_ns[0], compare_ns);
    printf("  %zu messages came back in %.3f s: %.0f messages/s, %.1f MB/s each way\n", load->done, seconds,
           (double)load->done / seconds, (double)load->done * (double)options->size / seconds / 1e6);
    printf("  latency in microseconds: 50 %% %.1f, 90 %% %.1f, 99 %% %.1f, 99.9 %% %.1f, longest %.1f\n",
           percentile_us(load, 500), percentile_us(load, 900), percentile_us(load, 990), percentile_us(load, 999),
           percentile_us(load, 1000));
    if (load->failed == 0)
        printf("  every byte verified\n");
}

/* Runs the whole load; true when nothing failed. */
static bool run_load(struct load *load)
{
    const struct options *options = load->options;
    uint64_t started_ns;
    int rc;

    load->clients = calloc(options->connections, sizeof *load->clients);
    load->latencies_ns = calloc(options->connections, options->messages * sizeof load->latencies_ns[0]);
    if (load->clients == NULL || load->latencies_ns == NULL)
        die_errno("calloc");
    started_ns = now_ns();
    for (size_t i = 0; i < options->connections; i++)
        start_client(load, &load->clients[i], i);
    rc = upcall_run(load->loop);
    if (rc != 0)
        die("upcall_run", rc < 0 ? upcall_strerror(rc) : "stopped");
    report(load, now_ns() - started_ns);

    for (size_t i = 0; i < options->connections; i++) {
        free(load->clients[i].out);
        free(load->clients[i].in);
    }
    free(load->clients);
    free(load->latencies_ns);
    if (load->failed > 0)
        fprintf(stderr, "echo_client: %zu of %zu connections failed\n", load->failed, options->connections);
    return load->failed == 0 && load->done == options->connections * options->messages;
}

static void usage(FILE *out)
{
    fprintf(out, "usage: echo_client [--connections N] [--messages M] [--size BYTES] [--deadline SECONDS] HOST PORT\n"
                 "Sends messages to an echo server, verifies what comes back, prints rate and latency.\n"
                 "  --connections N     at the same time (16)\n"
                 "  --messages M        on each connection, one after another (1000)\n"
                 "  --size BYTES        of a message (64)\n"
                 "  --deadline SECONDS  for connecting, and for a message to come back (10)\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 all came back, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
}

static size_t parse_count(const char *text, unsigned long max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > max) {
        fprintf(stderr, "echo_client: '%s' is not a number from 1 to %lu\n", text, max);
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"connections", required_argument, NULL, 'c'}, {"messages", required_argument, NULL, 'm'},
        {"size", required_argument, NULL, 's'},        {"deadline", required_argument, NULL, 'd'},
        {"help", no_argument, NULL, 'h'},              {NULL, 0, NULL, 0},
    };
    struct options options = {
        .connections = 16, .messages = 1000, .size = 64, .deadline_ns = 10 * UPCALL_SECOND};
    int option;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'c': options.connections = parse_count(optarg, 100000); break;
        case 'm': options.messages = parse_count(optarg, 10000000); break;
        case 's': options.size = parse_count(optarg, 1024UL * 1024 * 1024); break;
        case 'd': options.deadline_ns = parse_count(optarg, 86400) * UPCALL_SECOND; break;
        case 'h': usage(stdout); exit(EXIT_SUCCESS);
        default: usage(stderr); exit(2);
        }
    }
    if (argc - optind != 2) {
        usage(stderr);
        exit(2);
    }
    options.host = argv[optind];
    options.port = argv[optind + 1];
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct load load = {.options = &options};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    bool good;
    int rc;

    /* Before there is anything to hold up; happy_eyeballs.c shows how to look a name up without blocking. */
    rc = getaddrinfo(options.host, options.port, &hints, &found);
    if (rc != 0)
        die(options.host, gai_strerror(rc));
    load.to = found;

    rc = upcall_loop_new(NULL, &load.loop);
    if (rc < 0) {
        fprintf(stderr, "echo_client: no loop: %s\n", upcall_last_error());
        freeaddrinfo(found);
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    good = run_load(&load);
    rc = upcall_loop_free(load.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    freeaddrinfo(found);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
