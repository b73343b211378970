/*
 * A TCP server that sends back what it receives.
 *
 *   - One multishot accept and one multishot recv per connection: each is submitted once and gives many events.
 *   - The recvs have no buffers of their own. They borrow from a pool at the moment data is there, so that a hundred
 *     thousand idle connections hold none.
 *   - The lent buffer is sent as it is, without a copy, and goes back to the pool at the send's final event: until
 *     then the kernel may still read it.
 *   - Operations end in any order, so a connection has one send in flight and queues the rest. upcall_op.lend_max
 *     bounds that queue: a client that does not read stops being read from, and cannot take the whole pool.
 *   - SIGINT and SIGTERM call upcall_stop(), which a signal handler may. Then everything is closed with
 *     upcall_op_close(), which ends what is in flight on a descriptor first.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <upcall.h>

#define SEND_DEADLINE_NS (30 * UPCALL_SECOND) /* a client that reads nothing for so long is dropped */

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    QUEUE_LIMIT = 8,      /* buffers one connection may hold */
};

/* Received bytes on their way back, in a buffer lent by the pool. */
struct chunk {
    void *data;
    size_t size;
};

struct server;

struct connection {
    struct server *server;
    struct connection *previous, *next;
    int fd;
    bool receiving; /* the multishot recv has not ended */
    bool sending;   /* queue[head] is being sent */
    bool closing;
    struct chunk queue[QUEUE_LIMIT]; /* a ring */
    size_t head;
    size_t queued;
};

struct server {
    upcall_loop *loop;
    upcall_buffers *buffers;
    int listener;
    bool stopping;
    bool failed;
    struct connection *connections; /* a list, to end them all */
    uint64_t accepted;
    uint64_t bytes;
};

struct options {
    const char *address;
    const char *port;
    uint32_t buffer_count;
    uint32_t buffer_size;
};

/* A signal handler gets no argument, so what it needs has to be global. */
static upcall_loop *volatile loop_to_stop;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "echo_server: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void die_errno(const char *what)
{
    die(what, strerror(errno));
}

/* Only a mistake in the program, or memory running out, makes a submit fail: no reason to go on. */
static void submit(upcall_loop *loop, upcall_op op)
{
    if (upcall_submit(loop, &op, 1, NULL) < 0)
        die("upcall_submit", upcall_last_error());
}

/* ---- one connection ---- */

static void return_buffer(struct server *server, void *buffer)
{
    int rc = upcall_buffers_return(server->buffers, buffer);

    if (rc < 0)
        die("upcall_buffers_return", upcall_strerror(rc));
}

static struct chunk take_chunk(struct connection *connection)
{
    struct chunk chunk = connection->queue[connection->head];

    connection->head = (connection->head + 1) % QUEUE_LIMIT;
    connection->queued--;
    return chunk;
}

/* By now all operations on the descriptor have had their final events: nothing refers to the connection any more. */
static void on_closed(upcall_loop *loop, const upcall_event *event)
{
    struct connection *connection = event->user;
    struct server *server = connection->server;

    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "echo_server: close: %s\n", upcall_strerror((int)event->result));
    while (connection->queued > 0)
        return_buffer(server, take_chunk(connection).data);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        server->connections = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    free(connection);
}

static void close_connection(struct connection *connection)
{
    upcall_op op;

    if (connection->closing)
        return;
    connection->closing = true;
    op = upcall_op_close(connection->fd);
    op.callback = on_closed;
    op.user = connection;
    submit(connection->server->loop, op);
}

static void send_next(struct connection *connection);

static void on_sent(upcall_loop *loop, const upcall_event *event)
{
    struct connection *connection = event->user;
    struct chunk chunk = take_chunk(connection);

    (void)loop;
    connection->sending = false;
    return_buffer(connection->server, chunk.data); /* the final event: the buffer is ours again */
    connection->server->bytes += event->transferred;
    if (connection->closing)
        return;
    if (event->result < 0) /* reset, or too slow: -ETIMEDOUT */
        close_connection(connection);
    else if (connection->queued > 0)
        send_next(connection);
    else if (!connection->receiving)
        close_connection(connection); /* the end of the stream was seen, and everything is sent back */
}

static void send_next(struct connection *connection)
{
    const struct chunk *chunk = &connection->queue[connection->head];
    upcall_op op = upcall_op_send(connection->fd, chunk->data, chunk->size, 0);

    op.flags = UPCALL_FULL; /* one event, when all of it is sent */
    op.callback = on_sent;
    op.user = connection;
    op.timeout_ns = SEND_DEADLINE_NS;
    connection->sending = true;
    submit(connection->server->loop, op);
}

static void queue_chunk(struct connection *connection, void *data, size_t size)
{
    /* lend_max is QUEUE_LIMIT, and a buffer leaves the queue when it is returned, so there is always room. */
    if (connection->queued == QUEUE_LIMIT)
        die("recv", "more buffers lent than lend_max");
    connection->queue[(connection->head + connection->queued) % QUEUE_LIMIT] = (struct chunk){data, size};
    connection->queued++;
    if (!connection->sending)
        send_next(connection);
}

static void on_received(upcall_loop *loop, const upcall_event *event)
{
    struct connection *connection = event->user;

    (void)loop;
    if (event->buffer != NULL) {
        if (connection->closing)
            return_buffer(connection->server, event->buffer);
        else
            queue_chunk(connection, event->buffer, event->transferred);
    }
    if ((event->flags & UPCALL_MORE) != 0)
        return;
    connection->receiving = false;
    /* Result 0: the client has sent everything, but may still read. Below 0: it is gone. */
    if (event->result < 0 || connection->queued == 0)
        close_connection(connection);
}

static void open_connection(struct server *server, int fd)
{
    struct connection *connection = calloc(1, sizeof *connection);
    upcall_op op;
    int on = 1;

    if (connection == NULL)
        die_errno("calloc");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        fprintf(stderr, "echo_server: TCP_NODELAY: %s\n", strerror(errno));
    connection->server = server;
    connection->fd = fd;
    connection->receiving = true;
    connection->next = server->connections;
    if (connection->next != NULL)
        connection->next->previous = connection;
    server->connections = connection;
    server->accepted++;

    op = upcall_op_recv(fd, NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = server->buffers;
    op.lend_max = QUEUE_LIMIT;
    op.callback = on_received;
    op.user = connection;
    submit(server->loop, op);
}

/* ---- the server ---- */

static void on_accepted(upcall_loop *loop, const upcall_event *event)
{
    struct server *server = event->user;

    if (event->result >= 0) {
        if (!server->stopping)
            open_connection(server, (int)event->result);
        else if (close((int)event->result) < 0) /* arrived while the listener was closing */
            fprintf(stderr, "echo_server: close: %s\n", strerror(errno));
    } else if ((event->flags & UPCALL_MORE) != 0) {
        /* Out of descriptors or memory: told once; the client stays queued, and is accepted when there are some. */
        fprintf(stderr, "echo_server: accept: %s; going on\n", upcall_strerror((int)event->result));
    }
    if ((event->flags & UPCALL_MORE) == 0 && !server->stopping) {
        fprintf(stderr, "echo_server: accept: %s\n", upcall_strerror((int)event->result));
        server->failed = true;
        (void)upcall_stop(loop); /* fails for NULL only */
    }
}

static void on_listener_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "echo_server: close: %s\n", upcall_strerror((int)event->result));
}

static void start_accepting(struct server *server)
{
    upcall_op op = upcall_op_accept(server->listener, NULL, NULL, 0);

    op.flags = UPCALL_MULTISHOT;
    op.callback = on_accepted;
    op.user = server;
    submit(server->loop, op);
}

static void close_everything(struct server *server)
{
    upcall_op op = upcall_op_close(server->listener);

    server->stopping = true;
    op.callback = on_listener_closed;
    submit(server->loop, op);
    for (struct connection *at = server->connections; at != NULL; at = at->next)
        close_connection(at); /* asks only: nothing leaves the list before its event */
}

/* The listener has SOCK_NONBLOCK: on epoll a blocking one would cost a thread switch per connection. */
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
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        die_errno("SO_REUSEADDR");
    if (bind(fd, found->ai_addr, found->ai_addrlen) < 0)
        die_errno("bind");
    if (listen(fd, SOMAXCONN) < 0)
        die_errno("listen");
    freeaddrinfo(found);
    return fd;
}

static void announce(const struct server *server)
{
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char host[64], port[8];

    if (getsockname(server->listener, (struct sockaddr *)&bound, &size) < 0)
        die_errno("getsockname");
    if (getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        die("getnameinfo", "cannot print the address");
    printf("listening on %s port %s (%s)\n", host, port, upcall_backend_name(upcall_loop_backend(server->loop)));
    if (fflush(stdout) != 0) /* whoever started us may be waiting for this line */
        die_errno("stdout");
}

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

/* Until a signal, or until accepting fails. */
static void serve(struct server *server)
{
    int rc;

    loop_to_stop = server->loop;
    handle_signals(on_signal);
    announce(server);
    start_accepting(server);
    rc = upcall_run(server->loop);
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));

    close_everything(server);
    do {
        rc = upcall_run(server->loop); /* until the last final event */
    } while (rc == 1);                 /* a second signal hurries nobody */
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));
    handle_signals(SIG_IGN); /* we are ending, and the loop is about to go */
}

static void print_totals(const struct server *server)
{
    upcall_stats stats;
    int rc = upcall_stats_get(server->loop, &stats);

    if (rc < 0)
        die("upcall_stats_get", upcall_strerror(rc));
    printf("%llu connections, %llu bytes sent back; %llu operations, %llu events, %llu system calls\n",
           (unsigned long long)server->accepted, (unsigned long long)server->bytes,
           (unsigned long long)stats.submitted, (unsigned long long)stats.callbacks,
           (unsigned long long)stats.system_calls);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: echo_server [--address A] [--port P] [--buffers N] [--buffer-size BYTES] [--help]\n"
                 "Sends back what TCP clients send. Prints the address it listens on; ends on SIGINT or SIGTERM.\n"
                 "  --address A          numeric address (127.0.0.1)\n"
                 "  --port P             port (0: any free one)\n"
                 "  --buffers N          receive buffers shared by all connections (1024)\n"
                 "  --buffer-size BYTES  size of each (4096)\n"
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
        fprintf(stderr, "echo_server: '%s' is not a number from 1 to %lu\n", text, max);
        exit(2);
    }
    return (uint32_t)value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"address", required_argument, NULL, 'a'},  {"port", required_argument, NULL, 'p'},
        {"buffers", required_argument, NULL, 'n'},  {"buffer-size", required_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},           {NULL, 0, NULL, 0},
    };
    struct options options = {.address = "127.0.0.1", .port = "0", .buffer_count = 1024, .buffer_size = 4096};
    int option;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'a': options.address = optarg; break;
        case 'p': options.port = optarg; break;
        case 'n': options.buffer_count = parse_count(optarg, 32768); break;
        case 's': options.buffer_size = parse_count(optarg, 16 * 1024 * 1024); break;
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
    struct server server = {.listener = -1};
    int rc;

    rc = upcall_loop_new(NULL, &server.loop);
    if (rc < 0) {
        fprintf(stderr, "echo_server: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    rc = upcall_buffers_new(server.loop, options.buffer_count, options.buffer_size, &server.buffers);
    if (rc < 0)
        die("upcall_buffers_new", upcall_last_error());
    server.listener = listen_on(options.address, options.port);

    serve(&server);
    print_totals(&server);

    rc = upcall_buffers_free(server.buffers); /* -EBUSY would mean that a buffer was forgotten */
    if (rc < 0)
        die("upcall_buffers_free", upcall_strerror(rc));
    rc = upcall_loop_free(server.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    return server.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
