/* libev with its own loop object on epoll: watchers per connection, one buffer for the loop, written back at once; what the
 * socket does not take is kept and waited for. No files: libev has none. */
#include "bench.h"

#include <errno.h>
#include <ev.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define TEXT(x) #x
#define STRING(x) TEXT(x)

static struct ev_loop *loop;
static ev_io listener;
static char *buffer;
static size_t size;

struct connection {
    ev_io watcher;
    char *rest;
    size_t at, left;
};

static void open_loop(void) {
    loop = ev_loop_new(EVBACKEND_EPOLL | EVFLAG_NOENV);
    BENCH_CHECK(loop != NULL);
}

static void close_loop(void) {
    ev_loop_destroy(loop);
}

static void end_connection(struct connection *c) {
    ev_io_stop(loop, &c->watcher);
    close(c->watcher.fd);
    free(c->rest);
    free(c);
    if (--bench_connections == 0)
        ev_break(loop, EVBREAK_ALL);
}

static void watch(struct connection *c, int what) {
    ev_io_stop(loop, &c->watcher);
    ev_io_set(&c->watcher, c->watcher.fd, what);
    ev_io_start(loop, &c->watcher);
}

static void on_writable(struct connection *c) {
    ssize_t sent = send(c->watcher.fd, c->rest + c->at, c->left, MSG_NOSIGNAL);
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

static void on_ready(struct ev_loop *l, ev_io *watcher, int what) {
    struct connection *c = (struct connection *)watcher;
    (void)l;
    if (what & EV_WRITE) {
        on_writable(c);
        return;
    }
    ssize_t got = recv(watcher->fd, buffer, size, 0);
    if (got > 0) {
        ssize_t sent = send(watcher->fd, buffer, (size_t)got, MSG_NOSIGNAL);
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

static void on_accept(struct ev_loop *l, ev_io *watcher, int what) {
    int fd;
    (void)what;
    while ((fd = accept4(watcher->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        ev_io_init(&c->watcher, on_ready, fd, EV_READ);
        ev_io_start(l, &c->watcher);
        bench_connections++;
    }
    BENCH_CHECK(errno == EAGAIN);
}

static void start(int fd, size_t message) {
    open_loop();
    size = bench_buffer_size(message);
    buffer = bench_memory(size);
    ev_io_init(&listener, on_accept, fd, EV_READ);
    ev_io_start(loop, &listener);
}

static void turn(void) {
    ev_run(loop, EVRUN_ONCE);
}

static void run(void) {
    ev_run(loop, 0);
}

static const struct bench_server stream = {start, turn, run, close_loop};

static void on_datagrams(struct ev_loop *l, ev_io *watcher, int what) {
    (void)l;
    (void)what;
    for (;;) {
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(watcher->fd, buffer, size, 0, (struct sockaddr *)&from, &length);
        if (got < 0)
            return;
        bench_echoed += (size_t)bench_call(sendto(watcher->fd, buffer, (size_t)got, 0, (struct sockaddr *)&from, length), "sendto");
    }
}

static void datagram_start(int fd, size_t message) {
    start(fd, message);
    ev_io_stop(loop, &listener);
    ev_io_init(&listener, on_datagrams, fd, EV_READ);
    ev_io_start(loop, &listener);
}

static const struct bench_server datagram = {datagram_start, turn, NULL, close_loop};

/* ---- connect, accept, close ---- */

static struct sockaddr_in to;

static void start_connects(void);

static void on_connected(struct ev_loop *l, ev_io *watcher, int what) {
    int error = 0;
    socklen_t length = sizeof error;
    (void)what;
    bench_call(getsockopt(watcher->fd, SOL_SOCKET, SO_ERROR, &error, &length), "SO_ERROR");
    BENCH_CHECK(error == 0);
    ev_io_stop(l, watcher);
    close(watcher->fd);
    free(watcher);
    bench_connects.connecting--;
    start_connects();
}

static void start_connects(void) {
    while (bench_connect_more()) {
        ev_io *watcher = malloc(sizeof *watcher);
        int fd = bench_socket();
        if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
            BENCH_CHECK(errno == EINPROGRESS); /* as it always is */
        ev_io_init(watcher, on_connected, fd, EV_WRITE);
        ev_io_start(loop, watcher);
    }
}

static void on_short_accept(struct ev_loop *l, ev_io *watcher, int what) {
    int fd;
    (void)l;
    (void)what;
    while ((fd = accept4(watcher->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        bench_connects.accepted++;
        close(fd);
    }
    start_connects();
}

static void connect_open(void) {
    open_loop();
    ev_io_init(&listener, on_short_accept, bench_listener(&to), EV_READ);
    ev_io_start(loop, &listener);
}

static void connect_run(void) {
    start_connects();
    while (bench_connects_left())
        turn();
}

static const struct bench_run runs[] = {{"connect", connect_open, connect_run, close_loop, 64}, {0}};

/* ---- Timers ---- */

static ev_timer *timers;
static uint64_t ended;

static void on_timer(struct ev_loop *l, ev_timer *timer, int what) {
    (void)l;
    (void)timer;
    (void)what;
    ended++;
}

static void timers_open(size_t n) {
    timers = bench_memory(n * sizeof *timers);
    open_loop();
}

static void arm(size_t n, const uint32_t *delays) {
    ev_now_update(loop);
    for (size_t i = 0; i < n; i++) {
        ev_timer_init(&timers[i], on_timer, delays[i] / 1e3, 0);
        ev_timer_start(loop, &timers[i]);
    }
}

static void cancel(size_t n) {
    for (size_t i = 0; i < n; i++)
        ev_timer_stop(loop, &timers[i]);
}

static void fire(size_t n) {
    uint64_t goal = ended + n;
    while (ended < goal)
        turn();
}

static const struct bench_timers timer_table = {timers_open, arm, cancel, fire, close_loop};

/* ---- Posts: ev_async with a queue ---- */

static ev_async wake;

static void on_wake(struct ev_loop *l, ev_async *watcher, int what) {
    (void)l;
    (void)watcher;
    (void)what;
    bench_posted += bench_queue_take();
}

static void posts_open(void) {
    open_loop();
    ev_async_init(&wake, on_wake);
    ev_async_start(loop, &wake);
}

static void post(unsigned thread) {
    (void)thread;
    if (!bench_queue_push())
        ev_async_send(loop, &wake);
}

static void drain(uint64_t count) {
    while (bench_posted < count)
        turn();
}

static const struct bench_posts posts = {posts_open, NULL, post, drain, close_loop};

static void *new_loop(void) {
    struct ev_loop *one = ev_loop_new(EVBACKEND_EPOLL | EVFLAG_NOENV);
    ev_run(one, EVRUN_NOWAIT);
    return one;
}

const struct bench_contestant bench_contestant = {.name = "libev", .version = STRING(EV_VERSION_MAJOR) "." STRING(EV_VERSION_MINOR),
    .runs = runs, .stream = &stream, .datagram = &datagram, .timers = &timer_table, .posts = &posts, .new_loop = new_loop};
