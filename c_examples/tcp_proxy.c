/*
 * A TCP proxy: every client is connected to a target, and bytes go both ways.
 *
 *   - The two directions are independent. When one side ends its stream, the proxy passes that on, shutdown(SHUT_WR) on
 *     the other side, and the opposite direction goes on until it ends as well. (A client that sends a request, ends
 *     its stream and waits for the answer is common, and the classic victim of proxies that close both at once.)
 *   - Back-pressure needs no code: a direction has one buffer, which is being filled or being emptied. Who does not
 *     read is not read for, the sender's window closes, and the sender slows down. Memory is two buffers a pair.
 *   - A connection that was reset is not a stream that ended: the other side is reset too, so that it does not take
 *     half a message for a whole one.
 *   - upcall_op_close() ends what is in flight on a descriptor before it closes: when both of a pair's have answered,
 *     nothing refers to the pair any more.
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

#define CONNECT_DEADLINE_NS (5 * UPCALL_SECOND)

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    BUFFER_SIZE = 64 * 1024,
};

struct pair;

/* One way through the proxy: `from` is received, `to` is sent. */
struct direction {
    struct pair *pair;
    int from;
    int to;
    bool ended;
    unsigned char *buffer;
    uint64_t bytes;
};

/* A client and its connection to the target. */
struct pair {
    struct proxy *proxy;
    struct pair *previous, *next;
    int client;
    int target;                    /* -1: not connected yet */
    const struct addrinfo *trying; /* the address being connected to */
    bool closing;
    unsigned open; /* descriptors not closed yet, once closing */
    struct direction up, down;
};

struct proxy {
    upcall_loop *loop;
    const struct addrinfo *target;
    int listener;
    bool stopping;
    bool failed;
    struct pair *pairs; /* a list, to end them all */
    uint64_t served;
    uint64_t bytes_up, bytes_down;
};

struct options {
    const char *address;
    const char *port;
    const char *target_host;
    const char *target_port;
};

/* A signal handler gets no argument, so what it needs has to be global. */
static upcall_loop *volatile loop_to_stop;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "tcp_proxy: %s: %s\n", what, why);
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

/* ---- the end of a pair ---- */

static void free_pair(struct pair *pair)
{
    struct proxy *proxy = pair->proxy;

    proxy->bytes_up += pair->up.bytes;
    proxy->bytes_down += pair->down.bytes;
    if (pair->previous != NULL)
        pair->previous->next = pair->next;
    else
        proxy->pairs = pair->next;
    if (pair->next != NULL)
        pair->next->previous = pair->previous;
    free(pair->up.buffer);
    free(pair->down.buffer);
    free(pair);
}

static void on_closed(upcall_loop *loop, const upcall_event *event)
{
    struct pair *pair = event->user;

    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "tcp_proxy: close: %s\n", upcall_strerror((int)event->result));
    if (--pair->open == 0)
        free_pair(pair);
}

static void close_one(struct pair *pair, int fd)
{
    upcall_op op = upcall_op_close(fd);

    op.callback = on_closed;
    op.user = pair;
    submit(pair->proxy->loop, op);
}

static void close_pair(struct pair *pair)
{
    if (pair->closing)
        return;
    pair->closing = true;
    pair->open = pair->target >= 0 ? 2 : 1;
    close_one(pair, pair->client);
    if (pair->target >= 0)
        close_one(pair, pair->target);
}

/* Ends both sides with a reset: what they got so far is not all there was. */
static void abort_pair(struct pair *pair)
{
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};

    if (pair->closing)
        return;
    /* If this fails the side gets an ordinary end instead, which is the best that is left. */
    (void)setsockopt(pair->client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (pair->target >= 0)
        (void)setsockopt(pair->target, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close_pair(pair);
}

/* ---- one direction: receive, send, receive, … until the end of the stream ---- */

static void receive_more(struct direction *direction);

static void end_direction(struct direction *direction)
{
    struct pair *pair = direction->pair;

    direction->ended = true;
    if (pair->up.ended && pair->down.ended)
        close_pair(pair);
}

static void on_shut_down(upcall_loop *loop, const upcall_event *event)
{
    struct direction *direction = event->user;

    (void)loop;
    /* An error (ENOTCONN) means that the side is gone; the other direction finds that out by itself. */
    if (!direction->pair->closing)
        end_direction(direction);
}

static void pass_end_on(struct direction *direction)
{
    upcall_op op = upcall_op_shutdown(direction->to, SHUT_WR);

    op.callback = on_shut_down;
    op.user = direction;
    submit(direction->pair->proxy->loop, op);
}

static void on_sent(upcall_loop *loop, const upcall_event *event)
{
    struct direction *direction = event->user;

    (void)loop;
    direction->bytes += event->transferred;
    if (direction->pair->closing)
        return;
    if (event->result < 0)
        /* The reader is gone, but what it sent before may still be on its way: the opposite direction goes on, and ends
         * soon, because there is nobody any more to send to it. */
        end_direction(direction);
    else
        receive_more(direction);
}

static void on_received(upcall_loop *loop, const upcall_event *event)
{
    struct direction *direction = event->user;
    upcall_op op;

    if (direction->pair->closing)
        return;
    if (event->result < 0) {
        abort_pair(direction->pair);
        return;
    }
    if (event->result == 0) {
        pass_end_on(direction);
        return;
    }
    op = upcall_op_send(direction->to, direction->buffer, (size_t)event->result, 0);
    op.flags = UPCALL_FULL; /* one event, when all of it is sent: then the buffer is free to be filled again */
    op.callback = on_sent;
    op.user = direction;
    submit(loop, op);
}

static void receive_more(struct direction *direction)
{
    upcall_op op = upcall_op_recv(direction->from, direction->buffer, BUFFER_SIZE, 0);

    op.callback = on_received;
    op.user = direction;
    submit(direction->pair->proxy->loop, op);
}

static void start_direction(struct direction *direction, struct pair *pair, int from, int to)
{
    int on = 1;

    direction->pair = pair;
    direction->from = from;
    direction->to = to;
    direction->buffer = malloc(BUFFER_SIZE); /* costs memory only once something is received into it */
    if (direction->buffer == NULL)
        die_errno("malloc");
    if (setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        fprintf(stderr, "tcp_proxy: TCP_NODELAY: %s\n", strerror(errno));
    receive_more(direction);
}

/* ---- the beginning of a pair ---- */

static void connect_target(struct pair *pair);

/* After a failed connect: the socket is closed, then the target's next address is tried. */
static void on_failed_closed(upcall_loop *loop, const upcall_event *event)
{
    struct pair *pair = event->user;

    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "tcp_proxy: close: %s\n", upcall_strerror((int)event->result));
    if (pair->proxy->stopping || pair->trying == NULL)
        abort_pair(pair);
    else
        connect_target(pair);
}

static void on_connected(upcall_loop *loop, const upcall_event *event)
{
    struct pair *pair = event->user;
    upcall_op op;

    if (pair->closing)
        return;
    if (event->result < 0) {
        fprintf(stderr, "tcp_proxy: connect: %s\n", upcall_strerror((int)event->result));
        op = upcall_op_close(pair->target);
        op.callback = on_failed_closed;
        op.user = pair;
        submit(loop, op);
        pair->target = -1;
        pair->trying = pair->trying->ai_next;
        return;
    }
    start_direction(&pair->up, pair, pair->client, pair->target);
    start_direction(&pair->down, pair, pair->target, pair->client);
}

static void connect_target(struct pair *pair)
{
    upcall_op op;

    pair->target = socket(pair->trying->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (pair->target < 0) {
        fprintf(stderr, "tcp_proxy: socket: %s\n", strerror(errno));
        abort_pair(pair);
        return;
    }
    op = upcall_op_connect(pair->target, pair->trying->ai_addr, pair->trying->ai_addrlen);
    op.callback = on_connected;
    op.user = pair;
    op.timeout_ns = CONNECT_DEADLINE_NS;
    submit(pair->proxy->loop, op);
}

static void open_pair(struct proxy *proxy, int client)
{
    struct pair *pair = calloc(1, sizeof *pair);

    if (pair == NULL)
        die_errno("calloc");
    pair->proxy = proxy;
    pair->client = client;
    pair->target = -1;
    pair->trying = proxy->target;
    pair->next = proxy->pairs;
    if (pair->next != NULL)
        pair->next->previous = pair;
    proxy->pairs = pair;
    proxy->served++;
    connect_target(pair);
}

/* ---- the proxy ---- */

static void on_accepted(upcall_loop *loop, const upcall_event *event)
{
    struct proxy *proxy = event->user;

    if (event->result >= 0) {
        if (!proxy->stopping)
            open_pair(proxy, (int)event->result);
        else if (close((int)event->result) < 0) /* arrived while the listener was closing */
            fprintf(stderr, "tcp_proxy: close: %s\n", strerror(errno));
    } else if ((event->flags & UPCALL_MORE) != 0) {
        /* Out of descriptors or memory: told once; the client stays queued, and is accepted when there are some. */
        fprintf(stderr, "tcp_proxy: accept: %s; going on\n", upcall_strerror((int)event->result));
    }
    if ((event->flags & UPCALL_MORE) == 0 && !proxy->stopping) {
        fprintf(stderr, "tcp_proxy: accept: %s\n", upcall_strerror((int)event->result));
        proxy->failed = true;
        (void)upcall_stop(loop); /* fails for NULL only */
    }
}

static void on_listener_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        fprintf(stderr, "tcp_proxy: close: %s\n", upcall_strerror((int)event->result));
}

static void start_accepting(struct proxy *proxy)
{
    upcall_op op = upcall_op_accept(proxy->listener, NULL, NULL, 0);

    op.flags = UPCALL_MULTISHOT;
    op.callback = on_accepted;
    op.user = proxy;
    submit(proxy->loop, op);
}

static void close_everything(struct proxy *proxy)
{
    upcall_op op = upcall_op_close(proxy->listener);

    proxy->stopping = true;
    op.callback = on_listener_closed;
    submit(proxy->loop, op);
    for (struct pair *at = proxy->pairs; at != NULL; at = at->next)
        /* A pair whose failed connect is being closed goes when that is done: on_failed_closed() still needs it. */
        if (at->target >= 0)
            abort_pair(at); /* asks only: nothing leaves the list before its event */
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

static void announce(const struct proxy *proxy)
{
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char host[64], port[8];

    if (getsockname(proxy->listener, (struct sockaddr *)&bound, &size) < 0)
        die_errno("getsockname");
    if (getnameinfo((struct sockaddr *)&bound, size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        die("getnameinfo", "cannot print the address");
    printf("listening on %s port %s (%s)\n", host, port, upcall_backend_name(upcall_loop_backend(proxy->loop)));
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
static void serve(struct proxy *proxy)
{
    int rc;

    loop_to_stop = proxy->loop;
    handle_signals(on_signal);
    announce(proxy);
    start_accepting(proxy);
    rc = upcall_run(proxy->loop);
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));

    close_everything(proxy);
    do {
        rc = upcall_run(proxy->loop); /* until the last final event */
    } while (rc == 1);                /* a second signal hurries nobody */
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));
    handle_signals(SIG_IGN); /* we are ending, and the loop is about to go */
}

static void usage(FILE *out)
{
    fprintf(out, "usage: tcp_proxy [--address A] [--port P] [--help] TARGET_HOST TARGET_PORT\n"
                 "Connects TCP clients to a target. Prints the address it listens on; ends on SIGINT or SIGTERM.\n"
                 "  --address A  numeric address to listen on (127.0.0.1)\n"
                 "  --port P     port to listen on (0: any free one)\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 stopped by a signal, 1 failed, 2 usage, 77 the chosen backend is denied here.\n");
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"address", required_argument, NULL, 'a'},
        {"port", required_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.address = "127.0.0.1", .port = "0"};
    int option;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        switch (option) {
        case 'a': options.address = optarg; break;
        case 'p': options.port = optarg; break;
        case 'h': usage(stdout); exit(EXIT_SUCCESS);
        default: usage(stderr); exit(2);
        }
    }
    if (argc - optind != 2) {
        usage(stderr);
        exit(2);
    }
    options.target_host = argv[optind];
    options.target_port = argv[optind + 1];
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct proxy proxy = {.listener = -1};
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    int rc;

    /* Before there is anything to hold up; happy_eyeballs.c shows how to look a name up without blocking. */
    rc = getaddrinfo(options.target_host, options.target_port, &hints, &found);
    if (rc != 0)
        die(options.target_host, gai_strerror(rc));
    proxy.target = found;

    rc = upcall_loop_new(NULL, &proxy.loop);
    if (rc < 0) {
        fprintf(stderr, "tcp_proxy: no loop: %s\n", upcall_last_error());
        freeaddrinfo(found);
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    proxy.listener = listen_on(options.address, options.port);
    serve(&proxy);
    printf("%llu clients, %llu bytes to the target, %llu bytes back\n", (unsigned long long)proxy.served,
           (unsigned long long)proxy.bytes_up, (unsigned long long)proxy.bytes_down);

    rc = upcall_loop_free(proxy.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    freeaddrinfo(found);
    return proxy.failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
