/* The loop that one writes by hand, level-triggered, one buffer for the whole loop: read, and write at once what was read; only
 * what the socket does not take is kept and waited for. And what else plain system calls give: an eventfd with a queue. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int set, listener;
static char *buffer;
static size_t size;
static struct epoll_event events[BENCH_EVENTS];
static struct {
    char *rest; /* what the socket did not take */
    size_t at, left;
} connection[BENCH_MAX_FD];

static void watch(int fd, int how, uint32_t what) {
    struct epoll_event event = {.events = what, .data.fd = fd};
    bench_call(epoll_ctl(set, how, fd, &event), "epoll_ctl");
}

static void on_accept(void) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        BENCH_CHECK(fd < BENCH_MAX_FD);
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
        bench_connections++;
    }
    BENCH_CHECK(errno == EAGAIN);
}

static void end_connection(int fd) {
    free(connection[fd].rest);
    connection[fd].rest = NULL;
    close(fd);
    bench_connections--;
}

static void on_readable(int fd) {
    ssize_t got = recv(fd, buffer, size, 0);
    if (got > 0) {
        ssize_t sent = send(fd, buffer, (size_t)got, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            sent = 0;
        if (sent >= 0) {
            bench_echoed += (size_t)sent;
            if (sent < got) { /* read no more before this is gone */
                connection[fd].at = 0;
                connection[fd].left = (size_t)(got - sent);
                connection[fd].rest = malloc(connection[fd].left);
                memcpy(connection[fd].rest, buffer + sent, connection[fd].left);
                watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
            }
            return;
        }
    } else if (got < 0 && errno == EAGAIN)
        return;
    end_connection(fd);
}

static void on_writable(int fd) {
    ssize_t sent = send(fd, connection[fd].rest + connection[fd].at, connection[fd].left, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN)
        return;
    if (sent < 0) {
        end_connection(fd);
        return;
    }
    bench_echoed += (size_t)sent;
    connection[fd].at += (size_t)sent;
    connection[fd].left -= (size_t)sent;
    if (connection[fd].left == 0) {
        free(connection[fd].rest);
        connection[fd].rest = NULL;
        watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void turn(void) {
    int count = epoll_wait(set, events, BENCH_EVENTS, -1);
    for (int i = 0; i < count; i++) {
        int fd = events[i].data.fd;
        if (fd == listener)
            on_accept();
        else if (connection[fd].rest)
            on_writable(fd);
        else
            on_readable(fd);
    }
}

static void run(void) {
    do
        turn();
    while (bench_connections > 0);
}

static void start(int fd, size_t message) {
    listener = fd;
    size = bench_buffer_size(message);
    buffer = bench_memory(size);
    set = (int)bench_call(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    watch(fd, EPOLL_CTL_ADD, EPOLLIN);
}

static void stop(void) {
    close(set);
}

static const struct bench_server stream = {start, turn, run, stop};

static void datagram_turn(void) {
    int count = epoll_wait(set, events, BENCH_EVENTS, -1);
    for (int i = 0; i < count; i++)
        for (;;) {
            struct sockaddr_in from;
            socklen_t length = sizeof from;
            ssize_t got = recvfrom(listener, buffer, size, 0, (struct sockaddr *)&from, &length);
            if (got < 0)
                break;
            bench_echoed += (size_t)bench_call(sendto(listener, buffer, (size_t)got, 0, (struct sockaddr *)&from, length), "sendto");
        }
}

static const struct bench_server datagram = {start, datagram_turn, NULL, stop};

/* ---- connect, accept, close ---- */

static struct sockaddr_in to;

static void connect_open(void) {
    set = (int)bench_call(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    listener = bench_listener(&to);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
}

static void start_connects(void) {
    while (bench_connect_more()) {
        int fd = bench_socket();
        if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
            BENCH_CHECK(errno == EINPROGRESS); /* as it always is */
        watch(fd, EPOLL_CTL_ADD, EPOLLOUT);
    }
}

static void connect_run(void) {
    start_connects();
    while (bench_connects_left()) {
        int count = epoll_wait(set, events, BENCH_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd, error = 0;
            socklen_t length = sizeof error;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    bench_connects.accepted++;
                    close(fd);
                }
                start_connects();
                continue;
            }
            bench_call(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), "SO_ERROR");
            BENCH_CHECK(error == 0);
            close(fd);
            bench_connects.connecting--;
            start_connects();
        }
    }
}

static const struct bench_run runs[] = {{"connect", connect_open, connect_run, stop, 64}, {0}};

/* ---- Posts: a queue, and an eventfd for the first message in it ---- */

static int wake;

static void posts_open(void) {
    set = (int)bench_call(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    wake = (int)bench_call(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd");
    watch(wake, EPOLL_CTL_ADD, EPOLLIN);
}

static void post(unsigned thread) {
    (void)thread;
    uint64_t one = 1;
    if (!bench_queue_push())
        bench_call(write(wake, &one, sizeof one), "eventfd");
}

static void drain(uint64_t count) {
    uint64_t value;
    while (bench_posted < count) {
        epoll_wait(set, events, BENCH_EVENTS, -1);
        if (read(wake, &value, sizeof value) == sizeof value)
            bench_posted += bench_queue_take();
    }
}

static const struct bench_posts posts = {posts_open, NULL, post, drain, stop};

static void *new_loop(void) {
    set = (int)bench_call(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    epoll_wait(set, events, BENCH_EVENTS, 0);
    return &set;
}

const struct bench_contestant bench_contestant = {.name = "epoll", .version = "plain system calls", .runs = runs, .stream = &stream,
    .datagram = &datagram, .posts = &posts, .new_loop = new_loop};
