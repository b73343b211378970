/* libevent on epoll, with plain persistent events (bufferevents copy every byte once more): one buffer for the loop, written back
 * at once; what the socket does not take is kept and waited for. EVENT_BASE_FLAG_NOLOCK but for the messages between threads. */
#include "bench.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <event2/thread.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

static struct event_base *base;
static struct event listener;
static char *buffer;
static size_t size;

struct connection {
    struct event event;
    char *rest;
    size_t at, left;
};

static struct event_base *open_one(bool threads) {
    struct event_config *config = event_config_new();
    if (!threads)
        event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    struct event_base *one = event_base_new_with_config(config);
    event_config_free(config);
    BENCH_CHECK(one != NULL && strcmp(event_base_get_method(one), "epoll") == 0);
    return one;
}

static void close_loop(void) {
    event_base_free(base);
}

static void on_ready(evutil_socket_t fd, short what, void *argument);

static void end_connection(struct connection *c) {
    event_del(&c->event);
    close(c->event.ev_fd);
    free(c->rest);
    free(c);
    if (--bench_connections == 0)
        event_base_loopbreak(base);
}

static void watch(struct connection *c, short what) {
    evutil_socket_t fd = c->event.ev_fd;
    event_del(&c->event);
    event_assign(&c->event, base, fd, what | EV_PERSIST, on_ready, c);
    event_add(&c->event, NULL);
}

static void on_writable(struct connection *c) {
    ssize_t sent = send(c->event.ev_fd, c->rest + c->at, c->left, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            end_connection(c);
        return;
    }
    bench_echoed += (size_t)sent;
    c->at += (size_t)sent;
    c->left -= (size_t)sent;
    if (c->left == 0) {
        free(c->rest);
        c->rest = NULL;
        watch(c, EV_READ);
    }
}

static void on_ready(evutil_socket_t fd, short what, void *argument) {
    struct connection *c = argument;
    if (what & EV_WRITE) {
        on_writable(c);
        return;
    }
    ssize_t got = recv(fd, buffer, size, 0);
    if (got > 0) {
        ssize_t sent = send(fd, buffer, (size_t)got, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            sent = 0;
        if (sent >= 0) {
            bench_echoed += (size_t)sent;
            if (sent < got) {
                c->at = 0;
                c->left = (size_t)(got - sent);
                c->rest = malloc(c->left);
                memcpy(c->rest, buffer + sent, c->left);
                watch(c, EV_WRITE);
            }
            return;
        }
    } else if (got < 0 && errno == EAGAIN)
        return;
    end_connection(c);
}

static void on_accept(evutil_socket_t fd, short what, void *argument) {
    int got;
    (void)what;
    (void)argument;
    while ((got = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        event_assign(&c->event, base, got, EV_READ | EV_PERSIST, on_ready, c);
        event_add(&c->event, NULL);
        bench_connections++;
    }
    BENCH_CHECK(errno == EAGAIN);
}

static void listen_with(int fd, size_t message, event_callback_fn callback) {
    base = open_one(false);
    size = bench_buffer_size(message);
    buffer = bench_memory(size);
    event_assign(&listener, base, fd, EV_READ | EV_PERSIST, callback, NULL);
    event_add(&listener, NULL);
}

static void start(int fd, size_t message) {
    listen_with(fd, message, on_accept);
}

static void turn(void) {
    event_base_loop(base, EVLOOP_ONCE);
}

static void run(void) {
    event_base_dispatch(base);
}

static const struct bench_server stream = {start, turn, run, close_loop};

static void on_datagrams(evutil_socket_t fd, short what, void *argument) {
    (void)what;
    (void)argument;
    for (;;) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(fd, buffer, size, 0, (struct sockaddr *)&from, &length);
        if (got < 0)
            return;
        bench_echoed += (size_t)bench_call(sendto(fd, buffer, (size_t)got, 0, (struct sockaddr *)&from, length), "sendto");
    }
}

static void datagram_start(int fd, size_t message) {
    listen_with(fd, message, on_datagrams);
}

static const struct bench_server datagram = {datagram_start, turn, NULL, close_loop};

/* ---- connect, accept, close ---- */

static struct sockaddr_in to;

static void start_connects(void);

static void on_connected(evutil_socket_t fd, short what, void *argument) {
    int error = 0;
    socklen_t length = sizeof error;
    (void)what;
    bench_call(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), "SO_ERROR");
    BENCH_CHECK(error == 0);
    close(fd);
    free(argument);
    bench_connects.connecting--;
    start_connects();
}

static void start_connects(void) {
    while (bench_connect_more()) {
        struct event *event = malloc(sizeof *event);
        int fd = bench_socket();
        if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
            BENCH_CHECK(errno == EINPROGRESS); /* as it always is */
        event_assign(event, base, fd, EV_WRITE, on_connected, event);
        event_add(event, NULL);
    }
}

static void on_short_accept(evutil_socket_t fd, short what, void *argument) {
    int got;
    (void)what;
    (void)argument;
    while ((got = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        bench_connects.accepted++;
        close(got);
    }
    start_connects();
}

static void connect_open(void) {
    listen_with(bench_listener(&to), 64, on_short_accept);
}

static void connect_run(void) {
    start_connects();
    while (bench_connects_left())
        turn();
}

static const struct bench_run runs[] = {{"connect", connect_open, connect_run, close_loop, 64}, {0}};

/* ---- Timers ---- */

static struct event *timers;
static uint64_t ended;

static void on_timer(evutil_socket_t fd, short what, void *argument) {
    (void)fd;
    (void)what;
    (void)argument;
    ended++;
}

static void timers_open(size_t n) {
    timers = bench_memory(n * sizeof *timers);
    base = open_one(false);
}

static void arm(size_t n, const uint32_t *delays) {
    for (size_t i = 0; i < n; i++) {
        struct timeval delay = {delays[i] / 1000, delays[i] % 1000 * 1000};
        evtimer_assign(&timers[i], base, on_timer, NULL);
        evtimer_add(&timers[i], &delay);
    }
}

static void cancel(size_t n) {
    for (size_t i = 0; i < n; i++)
        evtimer_del(&timers[i]);
}

static void fire(size_t n) {
    uint64_t goal = ended + n;
    while (ended < goal)
        turn();
}

static const struct bench_timers timer_table = {timers_open, arm, cancel, fire, close_loop};

/* ---- Posts: an event that is made active, and a queue ---- */

static struct event wake;

static void on_wake(evutil_socket_t fd, short what, void *argument) {
    (void)fd;
    (void)what;
    (void)argument;
    bench_posted += bench_queue_take();
}

static void posts_open(void) {
    bench_call(evthread_use_pthreads(), "evthread_use_pthreads");
    base = open_one(true);
    event_assign(&wake, base, -1, EV_PERSIST | EV_READ, on_wake, NULL);
    event_add(&wake, NULL);
}

static void post(unsigned thread) {
    (void)thread;
    if (!bench_queue_push())
        event_active(&wake, EV_READ, 0);
}

static void drain(uint64_t count) {
    while (bench_posted < count)
        turn();
}

static const struct bench_posts posts = {posts_open, NULL, post, drain, close_loop};

static void *new_loop(void) {
    struct event_base *one = open_one(false);
    event_base_loop(one, EVLOOP_NONBLOCK);
    return one;
}

const struct bench_contestant bench_contestant = {.name = "libevent", .version = LIBEVENT_VERSION, .runs = runs, .stream = &stream,
    .datagram = &datagram, .timers = &timer_table, .posts = &posts, .new_loop = new_loop};
