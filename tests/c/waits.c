/* An operation waits, whatever the descriptor's own modes; and reports what a careful caller would. */
#include "check.h"
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static char data[1 << 16];

/* Submits; nothing comes until `then` is done; checks that O_NONBLOCK stays as it was, during and after. */
static void waits(struct place at, upcall_loop *loop, upcall_op op, int other, const void *bytes, size_t length,
                  int64_t result) {
    struct recorder rec = {0};
    int flags = fcntl(op.fd, F_GETFL);
    upcall_id id = submit_one_at(at, loop, op, &rec);
    for (int i = 0; i < 5; i++) {
        CHECK(upcall_poll(loop, i % 2 ? MS(3) : 0) >= 0);
        check_eq(at, "O_NONBLOCK", fcntl(op.fd, F_GETFL), flags);
    }
    check_eq(at, "events while it must wait", (long long)rec.count, 0);
    if (bytes)
        write_all(other, bytes, length);
    else
        drain_fd(other);
    wait_count_at(at, loop, &rec.finals, 1);
    check_eq(at, "result", final_at(at, &rec, id).result, result);
    check_eq(at, "O_NONBLOCK", fcntl(op.fd, F_GETFL), flags);
    forget(&rec);
}
#define WAITS(op, other, bytes, length, result) waits(HERE, loop, (op), (other), (bytes), (length), (result))

TEST(an_operation_waits_whether_or_not_its_descriptor_is_nonblocking) { /* hazards rows 18, 19 */
    upcall_loop *loop = new_loop();
    struct iovec part = {data, 10};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    for (int which = 0; which < PAIRS; which++)
        for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
            int fds[2];
            make_pair(which, fds);
            if (nonblocking) {
                set_nonblocking(fds[0]);
                set_nonblocking(fds[1]);
            }
            WAITS(upcall_op_read(fds[0], data, 10), fds[1], "abc", 3, 3);
            WAITS(upcall_op_readv(fds[0], &part, 1), fds[1], "abc", 3, 3);
            WAITS(upcall_op_poll(fds[0], POLLIN), fds[1], "abc", 3, POLLIN);
            drain_fd(fds[0]);
            if (which != PIPE) {
                WAITS(upcall_op_recv(fds[0], data, 10, 0), fds[1], "abc", 3, 3);
                WAITS(upcall_op_recvmsg(fds[0], &message, 0), fds[1], "abc", 3, 3);
                WAITS(upcall_op_recv(fds[0], data, 10, MSG_PEEK), fds[1], "abc", 3, 3);
                drain_fd(fds[0]);
            }
            close_pair(fds);
        }
    free_loop(loop);
}

TEST(a_writer_waits_whether_or_not_its_descriptor_is_nonblocking) { /* hazards rows 18, 19 */
    upcall_loop *loop = new_loop();
    struct iovec part = {data, 4096};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    for (int which = 0; which < TCP; which++)
        for (int nonblocking = 0; nonblocking < 2; nonblocking++)
            for (int way = 0; way < (which == PIPE ? 2 : 4); way++) {
                int fds[2];
                make_pair(which, fds);
                if (nonblocking)
                    set_nonblocking(fds[1]);
                fill_up(fds[1]);
                WAITS(way == 0   ? upcall_op_write(fds[1], data, 4096)
                      : way == 1 ? upcall_op_writev(fds[1], &part, 1)
                      : way == 2 ? upcall_op_send(fds[1], data, 4096, 0)
                                 : upcall_op_sendmsg(fds[1], &message, 0), fds[0], NULL, 0, 4096);
                close_pair(fds);
            }
    free_loop(loop);
}

TEST(eventfd_and_timerfd_are_waited_for_too) { /* hazards row 19 */
    upcall_loop *loop = new_loop();
    uint64_t one = 1;
    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        int event = eventfd(0, EFD_CLOEXEC | (flags ? EFD_NONBLOCK : 0));
        WAITS(upcall_op_read(event, data, 8), event, &one, 8, 8);
        int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | (flags ? TFD_NONBLOCK : 0));
        struct itimerspec soon = {.it_value = {0, 30000000}};
        CHECK(timerfd_settime(timer, 0, &soon, NULL) == 0);
        struct record got = complete(loop, upcall_op_read(timer, data, 8));
        CHECK_EQ(got.result, 8);
        CHECK_EQ(fcntl(timer, F_GETFL) & O_NONBLOCK, flags);
        close(event);
        close(timer);
    }
    free_loop(loop);
}

TEST(an_accept_waits_whether_or_not_its_listener_is_nonblocking) { /* hazards row 19 */
    upcall_loop *loop = new_loop();
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        struct recorder rec = {0};
        struct sockaddr_in address;
        int listener = tcp_listener(&address, type, 4);
        submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
        for (int i = 0; i < 5; i++)
            CHECK(upcall_poll(loop, MS(2)) >= 0);
        CHECK_EQ(rec.count, 0);
        int client = tcp_connected_to(&address);
        run_finals(loop, &rec, 1);
        CHECK(rec.events[0].result >= 0);
        CHECK_EQ(fcntl(listener, F_GETFL) & O_NONBLOCK, type ? O_NONBLOCK : 0);
        close((int)rec.events[0].result);
        close(client);
        close(listener);
    }
    free_loop(loop);
}

TEST(timeouts_of_the_socket_do_not_apply) {
    upcall_loop *loop = new_loop();
    struct timeval soon = {0, 5000};
    int fds[2];
    unix_pair(fds);
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon) == 0);
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon) == 0);
    struct recorder rec = {0};
    submit_one(loop, upcall_op_recv(fds[0], data, 10, 0), &rec);
    for (int i = 0; i < 10; i++)
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    CHECK_EQ(rec.count, 0);
    write_all(fds[1], "abc", 3);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 3);
    fill_up(fds[1]);
    submit_one(loop, upcall_op_send(fds[1], data, 4096, 0), &rec);
    for (int i = 0; i < 10; i++)
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    CHECK_EQ(rec.count, 1);
    drain_fd(fds[0]);
    run_finals(loop, &rec, 2);
    CHECK(rec.events[1].result > 0);
    struct sockaddr_in address; /* accept obeys SO_RCVTIMEO, connect SO_SNDTIMEO: not here */
    int listener = tcp_listener(&address, 0, 4);
    CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon) == 0);
    submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
    for (int i = 0; i < 10; i++)
        CHECK(upcall_poll(loop, MS(5)) >= 0);
    CHECK_EQ(rec.count, 2);
    int client = tcp_connected_to(&address);
    run_finals(loop, &rec, 3);
    CHECK(rec.events[2].result >= 0);
    close(client);
    struct timeval now = {0};
    socklen_t length = sizeof now;
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &now, &length) == 0);
    CHECK(now.tv_usec > 0); /* and they stay the program's */
    free_loop(loop);
}

TEST(a_stream_read_of_length_0_does_not_touch_the_descriptor) { /* hazards row 21 */
    upcall_loop *loop = new_loop();
    for (int which = 0; which < PAIRS; which++) {
        int fds[2];
        make_pair(which, fds);
        for (int i = 0; i < 2; i++) { /* on an empty stream, and on one with data */
            CHECK_EQ(complete(loop, upcall_op_read(fds[0], data, 0)).result, 0);
            CHECK_EQ(complete(loop, upcall_op_read(fds[0], NULL, 0)).result, 0);
            if (which != PIPE)
                CHECK_EQ(complete(loop, upcall_op_recv(fds[0], data, 0, 0)).result, 0);
            write_all(fds[1], "abc", 3);
        }
        int left = 0;
        for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; left != 6; pause_ms(1)) { /* TCP passes on a little later */
            CHECK(ioctl(fds[0], FIONREAD, &left) == 0);
            CHECK(now_ns() < limit);
        }
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(an_empty_datagram_is_sent_and_received) { /* hazards row 21 */
    upcall_loop *loop = new_loop();
    int fds[2];
    dgram_pair(fds);
    CHECK_EQ(complete(loop, upcall_op_send(fds[1], "", 0, 0)).result, 0);
    CHECK(is_readable(fds[0], 0));
    CHECK_EQ(complete(loop, upcall_op_recv(fds[0], data, 10, 0)).result, 0);
    CHECK(!is_readable(fds[0], 0));
    CHECK_EQ(complete(loop, upcall_op_send(fds[1], NULL, 0, 0)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_recv(fds[0], data, 0, 0)).result, 0); /* takes it */
    CHECK(!is_readable(fds[0], 0));
    CHECK(send(fds[1], "abc", 3, 0) == 3);
    CHECK_EQ(complete(loop, upcall_op_recv(fds[0], data, 0, 0)).result, 0); /* a message is always performed: it is cut */
    CHECK(!is_readable(fds[0], 0));
    free_loop(loop);
}

TEST(lengths_beyond_the_kernels_limit_are_no_error) { /* hazards row 22 */
    upcall_loop *loop = new_loop();
    size_t huge = (size_t)5 << 30;
    char *memory = mmap(NULL, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        SKIP("no such address space here");
    static const size_t lengths[] = {0x7fffefff, 0x7ffff000, 0x7fffffff, 0x80000000, 0xffffffff, (size_t)5 << 30};
    for (size_t i = 0; i < COUNT_OF(lengths); i++)
        for (int which = 0; which < PAIRS; which++) {
            int fds[2];
            make_pair(which, fds);
            write_all(fds[1], "abc", 3);
            CHECK_EQ(complete(loop, upcall_op_read(fds[0], memory, lengths[i])).result, 3);
            if (which != PIPE) {
                write_all(fds[1], "abc", 3);
                CHECK_EQ(complete(loop, upcall_op_recv(fds[0], memory, lengths[i], 0)).result, 3);
            }
            close_pair(fds);
        }
    int file = temp_file(100);
    CHECK_EQ(complete(loop, upcall_op_pread(file, memory, huge, 0)).result, 100);
    upcall_op op = upcall_op_pread(file, memory, huge, 10);
    op.flags = UPCALL_FULL;
    CHECK_EQ(complete(loop, op).result, 90);
    free_loop(loop);
}

TEST(positional_operations_on_a_stream_are_espipe) { /* hazards row 23 */
    upcall_loop *loop = new_loop();
    for (int which = 0; which < PAIRS; which++) {
        int fds[2];
        make_pair(which, fds);
        write_all(fds[1], "abc", 3);
        CHECK_EQ(complete(loop, upcall_op_pread(fds[0], data, 3, 0)).result, -ESPIPE);
        CHECK_EQ(complete(loop, upcall_op_pread(fds[0], data, 3, 100)).result, -ESPIPE);
        CHECK_EQ(complete(loop, upcall_op_pwrite(fds[1], data, 3, 0)).result, -ESPIPE);
        CHECK_EQ(complete(loop, upcall_op_read(fds[0], data, 10)).result, 3); /* nothing was taken */
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(a_unix_connect_waits_for_room_in_the_backlog) { /* hazards row 28 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "upcall-test-%d", (int)getpid());
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        rec.count = rec.finals = 0;
        int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), filled = 0, fds[64];
        CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
        CHECK(listen(listener, 1) == 0);
        for (; filled < 64; filled++) {
            fds[filled] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            if (connect(fds[filled], (struct sockaddr *)&address, sizeof address) != 0)
                break;
        }
        CHECK(filled > 0 && filled < 64);
        CHECK_EQ(errno, EAGAIN);
        close(fds[filled]);
        int waiting = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
        int cancelled = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
        upcall_id first = submit_one(loop, upcall_op_connect(waiting, (struct sockaddr *)&address, sizeof address), &rec);
        upcall_id second =
            submit_one(loop, upcall_op_connect(cancelled, (struct sockaddr *)&address, sizeof address), &rec);
        uint64_t used = processor_ns();
        for (int i = 0; i < 20; i++)
            CHECK(upcall_poll(loop, MS(10)) >= 0);
        CHECK(processor_ns() - used < 150 * UPCALL_MILLISECOND); /* it does not spin */
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(upcall_cancel(loop, second), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, second).result, -ECANCELED);
        for (int i = 0; i < filled; i++)
            close(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, first).result, 0);
        for (int i = 0; i < filled; i++)
            close(fds[i]);
        close(waiting);
        close(cancelled);
        close(listener);
    }
    free_loop(loop);
}

TEST(nobody_but_the_program_cancels) { /* hazards row 4 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[PAIRS][2];
    for (int which = 0; which < PAIRS; which++) {
        make_pair(which, fds[which]);
        submit_one(loop, upcall_op_read(fds[which][0], data, 10), &rec);
    }
    submit_one(loop, upcall_op_poll(fds[0][0], POLLIN), &rec);
    submit_one(loop, upcall_op_sleep(200 * UPCALL_MILLISECOND), &rec);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.count, 1); /* time alone ends nothing else */
    CHECK_EQ(rec.events[0].kind, UPCALL_OP_SLEEP);
    CHECK_EQ(in_flight(loop), 4);
    for (int which = 0; which < PAIRS; which++)
        shutdown(fds[which][0], SHUT_RD); /* sockets end, a pipe is not a socket */
    run_finals(loop, &rec, 3);
    for (size_t i = 1; i < 3; i++)
        CHECK_EQ(rec.events[i].result, 0);
    close(fds[PIPE][1]);
    run_finals(loop, &rec, 5);
    for (size_t i = 3; i < 5; i++)
        CHECK_EQ(rec.events[i].result, rec.events[i].kind == UPCALL_OP_POLL ? POLLHUP : 0);
    free_loop(loop);
}
