/*
 * nop and poll.
 */
#include "op_support.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#define BOTH(nonblocking) for (int nonblocking = 0; nonblocking < 2; nonblocking++)

/* ---- nop. ---- */

static void set_nothing(struct scene *scene) {
    (void)scene;
}

static upcall_op make_nop(struct scene *scene) {
    (void)scene;
    return upcall_op_nop();
}

static void ended_with_0(struct scene *scene, struct record final) {
    (void)scene;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
}

static const struct subject do_nothing = {.kind = UPCALL_OP_NOP, .set_up = set_nothing, .make = make_nop,
    .done = ended_with_0, .intact = set_nothing};
PROMISES_IN_MODE(do_nothing, any, false)

TEST(thousands_of_nops_each_end_once) {
    enum { COUNT = 5000 };
    static upcall_op ops[COUNT];
    static upcall_id ids[COUNT];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT; i++)
        ops[i] = upcall_op_nop();
    submit_many(loop, ops, COUNT, &rec, ids);
    run_finals(loop, &rec, COUNT);
    check_finals(&rec, ids, COUNT);
    for (size_t i = 0; i < COUNT; i++)
        CHECK_EQ(rec.events[i].result, 0);
    free_loop(loop);
    forget(&rec);
}

/* ---- poll: subjects. ---- */

static void set_unreadable(struct scene *scene) {
    int fds[2] = {-1, -1};
    if (scene->subject->object == EVENTFD)
        fds[0] = eventfd(0, EFD_CLOEXEC);
    else
        make_stream(scene->subject->object, fds);
    scene->fd = fds[0];
    scene->peer = fds[1];
}

static void make_readable(struct scene *scene) {
    if (scene->subject->object == EVENTFD)
        CHECK(eventfd_write(scene->fd, 5) == 0);
    else
        write_all(scene->peer, "ten bytes.", 10);
    CHECK(is_readable(scene->fd, 1000));
}

static upcall_op make_poll_in(struct scene *scene) {
    return upcall_op_poll(scene->fd, POLLIN);
}

/* It took nothing. */
static void is_still_readable(struct scene *scene) {
    char bytes[16];
    CHECK(is_readable(scene->fd, 0));
    CHECK_EQ(read(scene->fd, bytes, sizeof bytes), scene->subject->object == EVENTFD ? 8 : 10);
}

static void saw_input(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, POLLIN);
    CHECK_EQ(final.transferred, 0);
    is_still_readable(scene);
}

static void set_unwritable(struct scene *scene) {
    int fds[2] = {-1, -1};
    if (scene->subject->object == EVENTFD) {
        fds[1] = eventfd(0, EFD_CLOEXEC);
        CHECK(eventfd_write(fds[1], UINT64_MAX - 1) == 0);
    } else {
        make_stream(scene->subject->object, fds);
        scene->filled = fill_for_good(scene->subject->object, fds[1]);
    }
    scene->fd = fds[1];
    scene->peer = fds[0];
}

static void make_writable(struct scene *scene) {
    eventfd_t value;
    if (scene->subject->object == EVENTFD)
        CHECK(eventfd_read(scene->fd, &value) == 0);
    else
        take(scene->peer, scene->filled);
}

static upcall_op make_poll_out(struct scene *scene) {
    return upcall_op_poll(scene->fd, POLLOUT);
}

static void is_still_writable(struct scene *scene) {
    struct pollfd p = {scene->fd, POLLOUT, 0};
    CHECK_EQ(poll(&p, 1, 1000), 1);
    CHECK_EQ(p.revents, POLLOUT);
}

static void saw_room(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, POLLOUT);
    CHECK_EQ(final.transferred, 0);
    is_still_writable(scene);
}

#define POLLS_IN(name, object_)                                                                                        \
    static const struct subject name = {.kind = UPCALL_OP_POLL, .object = object_, .set_up = set_unreadable,           \
        .make = make_poll_in, .allow = make_readable, .done = saw_input, .intact = is_still_readable};
#define POLLS_OUT(name, object_)                                                                                       \
    static const struct subject name = {.kind = UPCALL_OP_POLL, .object = object_, .set_up = set_unwritable,           \
        .make = make_poll_out, .allow = make_writable, .done = saw_room, .intact = is_still_writable};
POLLS_IN(poll_a_pipe_for_input, PIPE)
POLLS_IN(poll_a_unix_socket_for_input, UNIX)
POLLS_IN(poll_a_tcp_socket_for_input, TCP)
POLLS_IN(poll_a_tty_for_input, TTY)
POLLS_IN(poll_a_fifo_for_input, FIFO)
POLLS_IN(poll_a_datagram_socket_for_input, DATAGRAM)
POLLS_IN(poll_an_eventfd_for_input, EVENTFD)
POLLS_OUT(poll_a_pipe_for_room, PIPE)
POLLS_OUT(poll_a_unix_socket_for_room, UNIX)
POLLS_OUT(poll_a_tcp_socket_for_room, TCP)
POLLS_OUT(poll_a_tty_for_room, TTY)
POLLS_OUT(poll_a_fifo_for_room, FIFO)
POLLS_OUT(poll_an_eventfd_for_room, EVENTFD)
PROMISES_OF_WAITING(poll_a_pipe_for_input)
PROMISES_OF_WAITING(poll_a_unix_socket_for_input)
PROMISES_OF_WAITING(poll_a_tcp_socket_for_input)
PROMISES_OF_WAITING(poll_a_tty_for_input)
PROMISES_OF_WAITING(poll_a_fifo_for_input)
PROMISES_OF_WAITING(poll_a_datagram_socket_for_input)
PROMISES_OF_WAITING(poll_an_eventfd_for_input)
PROMISES_OF_WAITING(poll_a_pipe_for_room)
PROMISES_OF_WAITING(poll_a_unix_socket_for_room)
PROMISES_OF_WAITING(poll_a_tcp_socket_for_room)
PROMISES_OF_WAITING(poll_a_tty_for_room)
PROMISES_OF_WAITING(poll_a_fifo_for_room)
PROMISES_OF_WAITING(poll_an_eventfd_for_room)

/* ---- Names, arguments. ---- */

TEST(readiness_operations_are_known) {
    is_known(UPCALL_OP_NOP, "nop");
    is_known(UPCALL_OP_POLL, "poll");
}

TEST(readiness_operations_refuse_strange_fields) {
    refuses_strange_fields(upcall_op_nop(), 0);
    refuses_strange_fields(upcall_op_poll(eventfd(0, EFD_CLOEXEC), POLLIN), UPCALL_MULTISHOT);
}

/* Bits that poll(2) does not have mean something else to epoll and io_uring (EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT). */
TEST(poll_refuses_what_poll_does_not_know) {
    upcall_loop *loop = new_loop();
    int fd = eventfd(0, EFD_CLOEXEC);
    for (int bit = 14; bit < 32; bit++)
        refused(loop, upcall_op_poll(fd, POLLIN | UINT32_C(1) << bit), EINVAL, "poll(2) events are below 0x4000");
    refused(loop, upcall_op_poll(fd, 0x4000), EINVAL, "events is 0x4000");
    refused(loop, upcall_op_poll(fd, UINT32_MAX), EINVAL, "events is 0xffffffff");
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    static const uint32_t masks[] = {0, POLLIN, POLLOUT, POLLIN | POLLOUT | POLLPRI | POLLRDHUP};
    upcall_loop *loop = new_loop();
    int bad[4] = {-1, INT32_MIN, INT32_MAX, closed_fd()};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        for (size_t k = 0; k < COUNT_OF(masks); k++) {
            ends_with(loop, upcall_op_poll(bad[i], masks[k]), -EBADF);
            upcall_op op = upcall_op_poll(bad[i], masks[k]);
            op.flags = UPCALL_MULTISHOT;
            ends_with(loop, op, -EBADF);
        }
    }
    free_loop(loop);
}

/* ---- What poll(2) sees, poll sees: hazard 35. ---- */

static short seen_now(int fd, uint32_t events) {
    struct pollfd p = {fd, (short)events, 0};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

/* For every mask: the events poll(2) would return, or a wait where it returns none. */
static void sees_what_poll_sees_at(struct place at, upcall_loop *loop, int fd) {
    static const uint32_t masks[] = {
        0, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, POLLIN | POLLOUT, POLLIN | POLLRDHUP, POLLRDNORM, POLLWRNORM,
        POLLIN | POLLOUT | POLLPRI | POLLRDHUP, POLLIN | POLLERR | POLLHUP, POLLOUT | POLLNVAL};
    for (size_t i = 0; i < COUNT_OF(masks); i++) {
        short want = seen_now(fd, masks[i]);
        if (want != 0) {
            ends_with_at(at, loop, upcall_op_poll(fd, masks[i]), want);
            continue;
        }
        struct recorder rec = {0};
        upcall_id id = submit_one_at(at, loop, upcall_op_poll(fd, masks[i]), &rec);
        start_all(loop);
        check_eq(at, "events while nothing is to be seen", (long long)rec.count, 0);
        check_eq(at, "upcall_cancel", upcall_cancel(loop, id), 0);
        wait_count_at(at, loop, &rec.finals, 1);
        check_eq(at, "result", final_at(at, &rec, id).result, -ECANCELED);
        forget(&rec);
    }
}
#define sees_what_poll_sees(loop, fd) sees_what_poll_sees_at(HERE, (loop), (fd))

TEST(poll_sees_the_state_of_streams) {
    upcall_loop *loop = new_loop();
    for (int which = PIPE; which < STREAMS; which++) {
        BOTH(nonblocking) {
            int fds[2];
            make_stream(which, fds);
            if (nonblocking) {
                set_nonblocking(fds[0]);
                set_nonblocking(fds[1]);
            }
            sees_what_poll_sees(loop, fds[0]); /* empty */
            sees_what_poll_sees(loop, fds[1]);
            write_all(fds[1], "x", 1);
            CHECK(is_readable(fds[0], 1000));
            sees_what_poll_sees(loop, fds[0]); /* readable */
            fill_for_good(which, fds[1]);
            sees_what_poll_sees(loop, fds[1]); /* full */
            close(fds[1]);
            if (which == TCP)
                pause_ms(20);
            sees_what_poll_sees(loop, fds[0]); /* readable, and the other side is gone: POLLHUP */
            drain_fd(fds[0]);
            sees_what_poll_sees(loop, fds[0]);
            CHECK_EQ(has_nonblock(fds[0]), nonblocking);
            close(fds[0]);

            make_stream(which, fds);
            close(fds[0]);
            if (which == TCP)
                pause_ms(20);
            sees_what_poll_sees(loop, fds[1]); /* no reader: POLLERR on a pipe */
            close(fds[1]);
        }
    }
    free_loop(loop);
}

TEST(poll_sees_the_state_of_sockets) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address, dead;
    int listener = tcp_listener(&address, 0, 4);
    sees_what_poll_sees(loop, listener); /* nobody there */
    int client = tcp_connected_to(&address);
    CHECK(is_readable(listener, 1000));
    sees_what_poll_sees(loop, listener);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(server >= 0);
    sees_what_poll_sees(loop, server);
    CHECK(shutdown(client, SHUT_WR) == 0);
    CHECK(is_readable(server, 1000));
    sees_what_poll_sees(loop, server); /* half-closed: POLLRDHUP, where it is asked for */
    sees_what_poll_sees(loop, client);
    CHECK(shutdown(server, SHUT_RDWR) == 0);
    pause_ms(20);
    sees_what_poll_sees(loop, server);
    sees_what_poll_sees(loop, client);
    int fresh = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sees_what_poll_sees(loop, fresh); /* not connected: POLLOUT and POLLHUP */
    int datagram = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sees_what_poll_sees(loop, datagram);
    close(tcp_listener(&dead, 0, 1));
    int refused_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(connect(refused_fd, (struct sockaddr *)&dead, sizeof dead) == -1 && errno == EINPROGRESS);
    struct pollfd p = {refused_fd, POLLOUT, 0};
    CHECK_EQ(poll(&p, 1, 1000), 1);
    sees_what_poll_sees(loop, refused_fd); /* POLLERR */
    free_loop(loop);
}

TEST(poll_sees_the_state_of_event_descriptors) {
    upcall_loop *loop = new_loop();
    struct itimerspec soon = {.it_value = {0, 1}};
    struct epoll_event event = {.events = EPOLLIN};
    int counter = eventfd(0, EFD_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    int set = epoll_create1(EPOLL_CLOEXEC);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, counter, &event) == 0);
    sees_what_poll_sees(loop, counter);
    sees_what_poll_sees(loop, timer);
    sees_what_poll_sees(loop, set);
    CHECK(eventfd_write(counter, UINT64_MAX - 1) == 0);
    sees_what_poll_sees(loop, counter); /* readable, and full */
    sees_what_poll_sees(loop, set);
    CHECK(timerfd_settime(timer, 0, &soon, NULL) == 0);
    CHECK(is_readable(timer, 1000));
    sees_what_poll_sees(loop, timer);
    free_loop(loop);
}

/* epoll takes none of these (EPERM); poll(2) finds them always ready. */
TEST(what_is_always_ready_is_ready) {
    static const uint32_t masks[] = {POLLIN, POLLOUT, POLLIN | POLLOUT, POLLIN | POLLPRI | POLLRDHUP,
                                     POLLIN | POLLOUT | POLLPRI};
    static const char *const names[] = {"/", "/dev/null", "/dev/zero", "/proc/self/status"};
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        for (size_t i = 0; i <= COUNT_OF(names); i++) {
            int fd = i < COUNT_OF(names) ? open(names[i], O_RDONLY | O_CLOEXEC) : temp_file(10);
            CHECK(fd >= 0);
            if (nonblocking)
                set_nonblocking(fd);
            for (size_t k = 0; k < COUNT_OF(masks); k++) {
                short want = seen_now(fd, masks[k]);
                CHECK(want != 0);
                ends_with(loop, upcall_op_poll(fd, masks[k]), want);
            }
            close(fd);
        }
    }
    free_loop(loop);
}

/* ---- Changes that a waiting poll sees. ---- */

TEST(a_waiting_poll_sees_the_other_side_go) {
    upcall_loop *loop = new_loop();
    static const uint32_t masks[] = {0, POLLIN, POLLRDHUP, POLLIN | POLLRDHUP};
    for (int which = PIPE; which < STREAMS; which++) {
        for (size_t i = 0; i < COUNT_OF(masks); i++) {
            struct recorder rec = {0};
            int fds[2];
            if (which == TCP && masks[i] == 0)
                continue; /* a half-closed connection shows nothing that was not asked for */
            make_stream(which, fds);
            upcall_id id = submit_one(loop, upcall_op_poll(fds[0], masks[i]), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            close(fds[1]);
            run_finals(loop, &rec, 1);
            int64_t want = seen_now(fds[0], masks[i]);
            CHECK(want != 0);
            CHECK_EQ(final_of(&rec, id).result, want);
            close(fds[0]);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(a_poll_that_waits_for_room_sees_the_reader_go) {
    static const int streams[] = {PIPE, UNIX, FIFO};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        struct recorder rec = {0};
        int fds[2];
        make_stream(streams[i], fds);
        fill_up(fds[1]);
        upcall_id id = submit_one(loop, upcall_op_poll(fds[1], POLLOUT), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        close(fds[0]);
        run_finals(loop, &rec, 1);
        CHECK(final_of(&rec, id).result & (POLLERR | POLLHUP));
        CHECK_EQ(final_of(&rec, id).result, seen_now(fds[1], POLLOUT));
        close(fds[1]);
        forget(&rec);
    }
    free_loop(loop);
}

/* The connect that a careful program does by hand. */
TEST(poll_waits_for_a_connect_by_hand) {
    upcall_loop *loop = new_loop();
    for (int alive = 0; alive < 2; alive++) {
        struct sockaddr_in address;
        int error = -1;
        socklen_t length = sizeof error;
        int listener = tcp_listener(&address, 0, 4);
        if (!alive)
            close(listener);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == -1 && errno == EINPROGRESS);
        struct record final = complete(loop, upcall_op_poll(fd, POLLOUT));
        CHECK(final.result & POLLOUT);
        CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0);
        CHECK_EQ(error, alive ? 0 : ECONNREFUSED);
        close(fd);
        if (alive)
            close(listener);
    }
    free_loop(loop);
}

/* ---- Several on one descriptor. ---- */

TEST(polls_for_different_events_do_not_disturb_each_other) {
    static const int streams[] = {UNIX, TCP, TTY};
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        BOTH(nonblocking) {
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            int fds[2];
            make_stream(streams[i], fds);
            if (nonblocking)
                set_nonblocking(fds[1]);
            size_t filled = fill_for_good(streams[i], fds[1]);
            upcall_id in = submit_one(loop, upcall_op_poll(fds[1], POLLIN), &rec);
            upcall_id out = submit_one(loop, upcall_op_poll(fds[1], POLLOUT), &rec);
            upcall_id either = submit_one(loop, upcall_op_poll(fds[1], POLLIN | POLLOUT), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            write_all(fds[0], "x", 1);
            run_finals(loop, &rec, 2);
            no_more(loop, &rec);
            CHECK_EQ(final_of(&rec, in).result, POLLIN);
            CHECK_EQ(final_of(&rec, either).result, POLLIN);
            take(fds[0], filled);
            run_finals(loop, &rec, 3);
            CHECK_EQ(final_of(&rec, out).result, POLLOUT);
            close_pair(fds);
            free_loop(loop);
            forget(&rec);
        }
    }
}

/* Poll is by level and takes nothing, so that one arrival ends them all. */
TEST(one_arrival_ends_every_poll_for_it) {
    enum { POLLS = 20 };
    for (int which = PIPE; which < STREAMS; which++) {
        struct recorder rec = {0};
        upcall_op ops[POLLS];
        upcall_id ids[POLLS];
        upcall_loop *loop = new_loop();
        int fds[2];
        make_stream(which, fds);
        for (size_t i = 0; i < POLLS; i++)
            ops[i] = upcall_op_poll(fds[0], POLLIN);
        submit_many(loop, ops, POLLS, &rec, ids);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(upcall_cancel(loop, ids[7]), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, ids[7]).result, -ECANCELED);
        write_all(fds[1], "x", 1);
        run_finals(loop, &rec, POLLS);
        check_finals(&rec, ids, POLLS);
        for (size_t i = 1; i < POLLS; i++)
            CHECK_EQ(rec.events[i].result, POLLIN);
        close_pair(fds);
        free_loop(loop);
        forget(&rec);
    }
}

/* Two numbers of one open file each have their own polls (hazard 10). */
TEST(duplicates_are_polled_apart) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    int twin = dup(fds[0]);
    upcall_id first = submit_one(loop, upcall_op_poll(fds[0], POLLIN), &rec);
    upcall_id second = submit_one(loop, upcall_op_poll(twin, POLLIN), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel_fd(loop, fds[0]), 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, first).result, -ECANCELED);
    no_more(loop, &rec);
    write_all(fds[1], "x", 1);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, second).result, POLLIN);
    free_loop(loop);
    forget(&rec);
}

/* ---- Multishot. ---- */

/* The first event by level, then at least one per arrival after the program drained the descriptor. */
TEST(a_multishot_poll_tells_of_every_arrival_after_a_drain) {
    static const int objects[] = {PIPE, UNIX, TCP, TTY, FIFO, DATAGRAM, EVENTFD};
    for (size_t i = 0; i < COUNT_OF(objects); i++) {
        BOTH(nonblocking) {
            for (int early = 0; early < 2; early++) {
                struct subject subject = {.kind = UPCALL_OP_POLL, .object = objects[i], .set_up = set_unreadable};
                struct recorder rec = {0};
                struct scene *scene = set_scene(&subject, nonblocking);
                upcall_loop *loop = new_loop();
                upcall_op op = upcall_op_poll(scene->fd, POLLIN);
                op.flags = UPCALL_MULTISHOT;
                if (early)
                    make_readable(scene);
                upcall_id id = submit_one(loop, op, &rec);
                if (!early) {
                    start_all(loop);
                    CHECK_EQ(rec.count, 0);
                }
                for (int round = 0; round < 10; round++) {
                    size_t before = rec.count;
                    if (!early || round > 0)
                        make_readable(scene);
                    run_until(loop, &rec, before + 1);
                    for (size_t k = before; k < rec.count; k++) {
                        CHECK_EQ(rec.events[k].result, POLLIN);
                        CHECK_EQ(rec.events[k].flags, UPCALL_MORE);
                        CHECK_EQ(rec.events[k].id, id);
                    }
                    drain_fd(scene->fd);
                    start_all(loop); /* a spurious event may come: it is not mistaken for the next arrival's */
                }
                CHECK_EQ(upcall_cancel(loop, id), 0);
                run_finals(loop, &rec, 1);
                CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
                CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
                make_readable(scene);
                no_more(loop, &rec);
                free_loop(loop);
                clear_scene(scene);
                forget(&rec);
            }
        }
    }
}

/* What is not drained is no reason to keep the processor busy. */
TEST(a_multishot_poll_without_drain_does_not_spin) {
    static const int streams[] = {PIPE, UNIX, TCP, TTY};
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        for (int hangs_up = 0; hangs_up < 2; hangs_up++) {
            struct recorder rec = {0};
            struct timespec before, after;
            upcall_loop *loop = new_loop();
            int fds[2];
            make_stream(streams[i], fds);
            upcall_op op = upcall_op_poll(fds[0], POLLIN);
            op.flags = UPCALL_MULTISHOT;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            if (hangs_up)
                close(fds[1]);
            else
                write_all(fds[1], "x", 1);
            run_until(loop, &rec, 1);
            CHECK(rec.events[0].result & (hangs_up ? POLLIN | POLLHUP : POLLIN));
            CHECK(hangs_up || (rec.events[0].flags & UPCALL_MORE));
            CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before) == 0);
            for (uint64_t limit = now_ns() + (uint64_t)MS(200); now_ns() < limit;)
                CHECK(upcall_poll(loop, MS(20)) >= 0);
            CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after) == 0);
            CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < MS(100));
            if (rec.finals == 0) {
                CHECK_EQ(upcall_cancel(loop, id), 0);
                run_finals(loop, &rec, 1);
            }
            final_of(&rec, id);
            free_loop(loop);
            close(fds[0]);
            if (!hangs_up)
                close(fds[1]);
            forget(&rec);
        }
    }
}

/* The deadline of a multishot is an idle limit: each event starts it again. */
TEST(the_deadline_of_a_multishot_poll_is_an_idle_limit) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    uint64_t last = 0;
    char byte;
    int fds[2];
    pipe_pair(fds);
    upcall_op op = upcall_op_poll(fds[0], POLLIN);
    op.flags = UPCALL_MULTISHOT;
    op.timeout_ns = UPCALL_SECOND;
    uint64_t start_ns = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    for (int i = 0; i < 4; i++) {
        pause_ms(350);
        size_t before = rec.count;
        last = now_ns();
        write_all(fds[1], "x", 1);
        run_until(loop, &rec, before + 1);
        CHECK_EQ(rec.finals, 0);
        read_all(fds[0], &byte, 1);
    }
    CHECK(now_ns() - start_ns > UPCALL_SECOND);
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - last >= UPCALL_SECOND);
    CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
    CHECK_EQ(final_of(&rec, id).flags, UPCALL_EXPIRED);
    free_loop(loop);
    forget(&rec);
}

/* Without a callback the events wait to be reaped. */
TEST(a_multishot_poll_can_be_reaped) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    upcall_id id;
    char byte;
    int fds[2];
    pipe_pair(fds);
    upcall_op op = upcall_op_poll(fds[0], POLLIN);
    op.flags = UPCALL_MULTISHOT;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    for (int i = 0; i < 5; i++) {
        size_t before = rec.count;
        write_all(fds[1], "x", 1);
        reap_until(loop, &rec, before + 1);
        read_all(fds[0], &byte, 1);
        start_all(loop);
        upcall_event late[8];
        int got = upcall_reap(loop, late, COUNT_OF(late)); /* a spurious one */
        for (int k = 0; k < got; k++)
            add_record(&rec, &late[k]);
    }
    CHECK_EQ(upcall_cancel(loop, id), 0);
    while (rec.finals == 0)
        reap_until(loop, &rec, rec.count + 1);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    for (size_t i = 0; i + 1 < rec.count; i++)
        CHECK(rec.events[i].flags == UPCALL_MORE && rec.events[i].result == POLLIN);
    free_loop(loop);
    forget(&rec);
}
