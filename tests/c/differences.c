/* Outcomes in which the backends once differed: the smallest programs that the differential tester made of them. */
#include "check.h"
#include <sys/eventfd.h>

TEST(a_write_of_no_bytes_to_an_eventfd_is_0) {
    upcall_loop *loop = new_loop();
    int fd = eventfd(0, EFD_CLOEXEC);
    CHECK_EQ(complete(loop, upcall_op_write(fd, NULL, 0)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_writev(fd, NULL, 0)).result, 0);
    close(fd);
    free_loop(loop);
}

/* The ring leaves the position where it was when the disk answers later. */
TEST(direct_reads_and_writes_move_the_position) {
    upcall_loop *loop = new_loop();
    int plain = temp_file(16384);
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", plain);
    int fd = open(name, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        SKIP("no O_DIRECT here");
    void *memory = NULL;
    CHECK(posix_memalign(&memory, 4096, 4096) == 0);
    memset(memory, 0, 4096);
    CHECK_EQ(complete(loop, upcall_op_read(fd, memory, 4096)).result, 4096);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 4096);
    CHECK_EQ(complete(loop, upcall_op_write(fd, memory, 4096)).result, 4096);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 8192);
    const struct iovec part = {memory, 4096};
    CHECK_EQ(complete(loop, upcall_op_readv(fd, &part, 1)).result, 4096);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 12288);
    free(memory);
    close(fd);
    close(plain);
    free_loop(loop);
}

TEST(after_a_refused_connect_the_socket_may_listen) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in nobody;
    close(tcp_listener(&nobody, 0, 1));
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
        CHECK_EQ(complete(loop, upcall_op_connect(fd, (struct sockaddr *)&nobody, sizeof nobody)).result, -ECONNREFUSED);
        CHECK_EQ(complete(loop, upcall_op_listen(fd, 1)).result, 0);
        close(fd);
    }
    free_loop(loop);
}

TEST(an_empty_path_and_an_unknown_flag_are_einval) {
    upcall_loop *loop = new_loop();
    struct statx answer;
    CHECK_EQ(complete(loop, upcall_op_statx(AT_FDCWD, "", 0x8000000, STATX_BASIC_STATS, &answer)).result, -EINVAL);
    CHECK_EQ(complete(loop, upcall_op_statx(AT_FDCWD, "", 0, STATX_BASIC_STATS, &answer)).result, -ENOENT);
    free_loop(loop);
}

/* A multishot poll has told its level: on a file, where nothing else will ever happen, it does not take the processor. */
TEST(a_multishot_poll_of_a_file_does_not_spin) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fd = temp_file(1);
    upcall_op op = upcall_op_poll(fd, POLLIN);
    op.flags = UPCALL_MULTISHOT;
    uint64_t begun = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    for (int i = 0; i < 1000; i++)
        CHECK(upcall_poll(loop, 0) >= 0);
    /* The first, and no more than one after each pause of a millisecond, however slow this machine is. */
    CHECK(events_of(&rec, id) >= 1 && events_of(&rec, id) <= 2 + (now_ns() - begun) / (uint64_t)MS(1));
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    forget(&rec);
    close(fd);
    free_loop(loop);
}

/* The second is cancelled before its turn. What follows it has to wait for the first all the same, and goes its way. */
TEST(what_follows_one_cancelled_early_does_not_overtake) {
    for (int succeeds = 0; succeeds <= 1; succeeds++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        char byte;
        pipe_pair(fds);
        upcall_id ids[3];
        upcall_op ops[3] = {upcall_op_read(fds[0], &byte, 1), upcall_op_nop(), upcall_op_nop()};
        ops[0].flags = UPCALL_LINK;
        ops[1].flags = UPCALL_LINK_ALWAYS;
        submit_many(loop, ops, 3, &rec, ids);
        start_all(loop);
        CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
        quiet(loop, &rec);
        if (succeeds)
            write_all(fds[1], "a", 1);
        else
            close(fds[1]);
        run_finals(loop, &rec, 3);
        CHECK_EQ(final_of(&rec, ids[0]).result, succeeds);
        CHECK_EQ(final_of(&rec, ids[2]).result, succeeds ? 0 : -ECANCELED);
        CHECK(order_of(&rec, ids[0]) < order_of(&rec, ids[2]));
        forget(&rec);
        close(fds[0]);
        if (succeeds)
            close(fds[1]);
        free_loop(loop);
    }
}

/* The header in a lent buffer says the same, whether the kernel writes it or the library. */
TEST(without_room_for_a_name_a_lent_message_has_none) {
    for (int multishot = 0; multishot <= 1; multishot++) {
        upcall_loop *loop = new_loop();
        upcall_buffers *pool = NULL;
        CHECK_EQ(upcall_buffers_new(loop, 2, 256, &pool), 0);
        int to = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), from = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        socklen_t length = sizeof at;
        CHECK_EQ(bind(to, (struct sockaddr *)&at, sizeof at), 0);
        CHECK_EQ(getsockname(to, (struct sockaddr *)&at, &length), 0);
        CHECK_EQ(sendto(from, "hello", 5, 0, (struct sockaddr *)&at, sizeof at), 5);
        struct recorder rec = {0};
        struct msghdr room = {0};
        upcall_op op = upcall_op_recvmsg(to, &room, 0);
        op.buffers = pool;
        op.flags = multishot ? UPCALL_MULTISHOT : 0;
        upcall_id id = submit_one(loop, op, &rec);
        wait_count(loop, &rec.count, 1);
        CHECK_EQ(rec.events[0].result, 5);
        const upcall_msg *msg = rec.events[0].buffer;
        CHECK_EQ(msg->namelen, 0);
        CHECK_EQ(msg->payloadlen, 5);
        CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
        if (multishot) {
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
        }
        forget(&rec);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close(to);
        close(from);
        free_loop(loop);
    }
}

/* What woke the ring's poll is not what poll(2) sees. */
TEST(a_poll_of_a_listener_that_is_shut_down_tells_what_poll_tells) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct sockaddr_in at;
    int fd = tcp_listener(&at, SOCK_NONBLOCK, 1);
    submit_one(loop, upcall_op_poll(fd, POLLOUT), &rec);
    start_all(loop);
    CHECK_EQ(shutdown(fd, SHUT_RDWR), 0);
    run_finals(loop, &rec, 1);
    struct pollfd now = {.fd = fd, .events = POLLOUT};
    CHECK_EQ(poll(&now, 1, 0), 1);
    CHECK_EQ(rec.events[0].result, now.revents);
    forget(&rec);
    close(fd);
    free_loop(loop);
}

/* ---- The end of what comes, and of what goes. ---- */

TEST(a_receive_on_a_datagram_socket_that_is_shut_down_is_0) {
    static const int types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        for (int when = 0; when < 2; when++) { /* before, and while it waits */
            int fds[2];
            char bytes[8];
            struct iovec iov = {bytes, sizeof bytes};
            struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
            CHECK(socketpair(AF_UNIX, types[i] | SOCK_CLOEXEC, 0, fds) == 0);
            upcall_loop *loop = new_loop();
            upcall_buffers *pool;
            struct recorder rec = {0};
            CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
            if (when == 0)
                CHECK(shutdown(fds[0], SHUT_RD) == 0);
            upcall_op lent = upcall_op_recv(fds[0], NULL, 0, 0);
            lent.buffers = pool;
            submit_one(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), &rec);
            submit_one(loop, upcall_op_recvmsg(fds[0], &msg, 0), &rec);
            upcall_op lent_read = upcall_op_read(fds[0], NULL, 0);
            lent_read.buffers = pool;
            submit_one(loop, upcall_op_read(fds[0], bytes, sizeof bytes), &rec);
            submit_one(loop, lent, &rec);
            submit_one(loop, lent_read, &rec);
            start_all(loop);
            if (when == 1)
                CHECK(shutdown(fds[0], SHUT_RD) == 0);
            run_finals(loop, &rec, 5);
            submit_one(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), &rec); /* and once more */
            run_finals(loop, &rec, 6);
            for (size_t k = 0; k < rec.count; k++) {
                CHECK_EQ(rec.events[k].result, 0);
                CHECK(rec.events[k].buffer == NULL);
            }
            free_loop(loop);
            CHECK_EQ(upcall_buffers_free(pool), 0);
            close_pair(fds);
            forget(&rec);
        }
    }
}

TEST(a_send_that_waits_ends_when_its_socket_is_shut_down) {
    static const int hows[] = {SHUT_WR, SHUT_RDWR};
    for (size_t i = 0; i < COUNT_OF(hows); i++) {
        int fds[2];
        unix_pair(fds);
        fill_up(fds[1]);
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        upcall_id sent = submit_one(loop, upcall_op_send(fds[1], "abc", 3, 0), &rec);
        upcall_id written = submit_one(loop, upcall_op_write(fds[1], "abc", 3), &rec);
        start_all(loop);
        quiet(loop, &rec);
        CHECK_EQ(complete(loop, upcall_op_shutdown(fds[1], 77)).result, -EINVAL); /* changes nothing */
        quiet(loop, &rec);
        submit_one(loop, upcall_op_shutdown(fds[1], hows[i]), &rec);
        run_finals(loop, &rec, 3);
        CHECK_EQ(final_of(&rec, sent).result, -EPIPE);
        CHECK_EQ(final_of(&rec, written).result, -EPIPE);
        free_loop(loop);
        close_pair(fds);
        forget(&rec);
    }
}

TEST(a_wrong_descriptor_does_not_wait_for_a_buffer) {
    int fds[2], file = temp_file(10), gone = fcntl(file, F_DUPFD_CLOEXEC, 600);
    unix_pair(fds);
    close(gone);
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 1, 64, &pool), 0);
    upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
    op.buffers = pool;
    write_all(fds[1], "x", 1);
    void *buffer = complete(loop, op).buffer; /* the only one */
    op.fd = gone;
    CHECK_EQ(complete(loop, op).result, -EBADF);
    op.fd = file;
    CHECK_EQ(complete(loop, op).result, -ENOTSOCK);
    op = upcall_op_read(gone, NULL, 0);
    op.buffers = pool;
    CHECK_EQ(complete(loop, op).result, -EBADF);
    CHECK_EQ(upcall_buffers_return(pool, buffer), 0);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(fds);
    close(file);
}

TEST(msg_flags_has_nothing_that_the_program_did_not_ask_for) {
    int fds[2];
    char bytes[8];
    struct iovec iov = {bytes, sizeof bytes};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1}, room = {0};
    dgram_pair(fds);
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    struct recorder rec = {0};
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    write_all(fds[1], "abc", 3);
    CHECK_EQ(complete(loop, upcall_op_recvmsg(fds[0], &msg, 0)).result, 3);
    CHECK_EQ(msg.msg_flags, 0);
    for (int multi = 0; multi < 2; multi++) {
        upcall_op op = upcall_op_recvmsg(fds[0], &room, 0);
        op.buffers = pool;
        op.flags = multi ? UPCALL_MULTISHOT : 0;
        size_t before = rec.count;
        submit_one(loop, op, &rec);
        write_all(fds[1], "abc", 3);
        run_until(loop, &rec, before + 1);
        const upcall_msg *header = rec.events[before].buffer;
        CHECK_EQ(header->flags, 0);
        CHECK_EQ(header->payloadlen, 3);
        CHECK_EQ(upcall_buffers_return(pool, rec.events[before].buffer), 0);
    }
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(fds);
    forget(&rec);
}

TEST(a_pool_lends_no_more_than_it_has_to_operations_of_one_kind) {
    int fds[2];
    dgram_pair(fds);
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    struct recorder rec = {0};
    CHECK_EQ(upcall_buffers_new(loop, 2, 64, &pool), 0);
    for (int i = 0; i < 3; i++) {
        upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
        op.buffers = pool;
        submit_one(loop, op, &rec);
        write_all(fds[1], "abc", 3);
    }
    run_finals(loop, &rec, 2);
    quiet(loop, &rec);
    CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
    run_finals(loop, &rec, 3);
    CHECK_EQ(upcall_buffers_return(pool, rec.events[1].buffer), 0);
    CHECK_EQ(upcall_buffers_return(pool, rec.events[2].buffer), 0);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(fds);
    forget(&rec);
}

/* It ends as a receive that the kernel answers: with 0, and a header that says there is nothing. */
TEST(a_message_that_does_not_come_any_more_has_an_empty_header) {
    int fds[2];
    char bytes[8], control[64];
    struct sockaddr_storage name;
    struct iovec iov = {bytes, sizeof bytes};
    for (int when = 0; when < 2; when++) { /* before, and while it waits */
        struct msghdr msg = {.msg_name = &name, .msg_namelen = sizeof name, .msg_iov = &iov, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control, .msg_flags = 0x5a};
        socklen_t length = sizeof name;
        dgram_pair(fds);
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        if (when == 0)
            CHECK(shutdown(fds[0], SHUT_RD) == 0);
        submit_one(loop, upcall_op_recvmsg(fds[0], &msg, 0), &rec);
        submit_one(loop, upcall_op_recvfrom(fds[0], bytes, sizeof bytes, 0, (struct sockaddr *)&name, &length), &rec);
        start_all(loop);
        if (when == 1)
            CHECK(shutdown(fds[0], SHUT_RD) == 0);
        run_finals(loop, &rec, 2);
        CHECK_EQ(rec.events[0].result, 0);
        CHECK_EQ(rec.events[1].result, 0);
        CHECK_EQ(msg.msg_namelen, 0);
        CHECK_EQ(msg.msg_controllen, 0);
        CHECK_EQ(msg.msg_flags, 0);
        CHECK_EQ(length, 0);
        free_loop(loop);
        close_pair(fds);
        forget(&rec);
    }
}

static int udp_to_itself(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof at;
    CHECK(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&at, &length) == 0);
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

TEST(a_multishot_of_messages_ends_when_its_socket_is_shut_down) {
    for (int when = 0; when < 2; when++) { /* before it starts, and while it waits */
        int fd = udp_to_itself();
        struct msghdr room = {0};
        upcall_loop *loop = new_loop();
        upcall_buffers *pool;
        struct recorder rec = {0};
        CHECK_EQ(upcall_buffers_new(loop, 2, 64, &pool), 0);
        upcall_op op = upcall_op_recvmsg(fd, &room, 0);
        op.buffers = pool;
        op.flags = UPCALL_MULTISHOT;
        if (when == 0)
            CHECK(shutdown(fd, SHUT_RD) == 0);
        upcall_id id = submit_one(loop, op, &rec);
        start_all(loop);
        if (when == 1) {
            quiet(loop, &rec);
            submit_one(loop, upcall_op_shutdown(fd, SHUT_RD), &rec);
        }
        run_finals(loop, &rec, when == 1 ? 2 : 1);
        CHECK_EQ(final_of(&rec, id).result, 0);
        CHECK(final_of(&rec, id).buffer == NULL);
        free_loop(loop);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close(fd);
        forget(&rec);
    }
}

/* Errors still come to a socket that is shut down: what waits for one goes on waiting. */
TEST(a_receive_from_the_queue_of_errors_does_not_end_by_a_shutdown) {
    char bytes[8];
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fd = udp_to_itself();
    upcall_id id = submit_one(loop, upcall_op_recv(fd, bytes, sizeof bytes, MSG_ERRQUEUE), &rec);
    start_all(loop);
    CHECK(shutdown(fd, SHUT_RD) == 0);
    quiet(loop, &rec);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, -ECANCELED);
    forget(&rec);
    close(fd);
    free_loop(loop);
}

TEST(the_wrong_end_of_a_pipe_is_not_waited_for) {
    for (int type = 0; type <= O_NONBLOCK; type += O_NONBLOCK) {
        for (int gone = 0; gone <= 1; gone++) {
            int from[2], to[2], sink = open("/dev/null", O_RDWR | O_CLOEXEC);
            CHECK(pipe2(from, O_CLOEXEC | type) == 0 && pipe2(to, O_CLOEXEC | type) == 0);
            upcall_loop *loop = new_loop();
            write_all(from[1], "abc", 3);
            if (gone)
                close(to[0]);
            CHECK_EQ(complete(loop, upcall_op_splice(to[1], -1, sink, -1, 10, 0)).result, -EBADF);
            CHECK_EQ(complete(loop, upcall_op_tee(to[1], from[1], 10, 0)).result, -EBADF);
            CHECK_EQ(complete(loop, upcall_op_splice(from[0], -1, from[0], -1, 10, 0)).result, -EBADF);
            fill_up(from[1]);
            int closed = fcntl(sink, F_DUPFD_CLOEXEC, 700);
            close(closed);
            CHECK_EQ(complete(loop, upcall_op_splice(closed, -1, from[1], -1, 10, 0)).result, -EBADF);
            CHECK_EQ(complete(loop, upcall_op_splice(from[0], -1, sink, -1, 3, 0)).result, 3);
            if (!gone)
                close(to[0]);
            close(to[1]);
            close_pair(from);
            close(sink);
            free_loop(loop);
        }
    }
}

/* After a splice the ring polls a pipe before it writes to it. */
TEST(a_write_of_no_bytes_to_a_full_pipe_does_not_wait) {
    int fds[2], sink = open("/dev/null", O_RDWR | O_CLOEXEC);
    pipe_pair(fds);
    upcall_loop *loop = new_loop();
    fill_up(fds[1]);
    CHECK_EQ(complete(loop, upcall_op_splice(fds[0], -1, sink, -1, 1, 0)).result, 1);
    CHECK_EQ(complete(loop, upcall_op_splice(fds[1], -1, sink, -1, 1, 0)).result, -EBADF); /* the other end, too */
    const struct iovec nothing = {NULL, 0};
    CHECK_EQ(complete(loop, upcall_op_write(fds[1], NULL, 0)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_writev(fds[1], &nothing, 1)).result, 0);
    free_loop(loop);
    close_pair(fds);
    close(sink);
}

/* The pause at lend_max ends when the buffer comes back, and the idle limit begins anew. */
TEST(the_idle_limit_goes_on_after_a_pause_at_lend_max) {
    for (int reaped = 0; reaped <= 1; reaped++) {
        int fds[2];
        unix_pair(fds);
        upcall_loop *loop = new_loop();
        upcall_buffers *pool;
        struct recorder rec = {0};
        CHECK_EQ(upcall_buffers_new(loop, 2, 64, &pool), 0);
        upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
        op.buffers = pool;
        op.flags = UPCALL_MULTISHOT;
        op.lend_max = 1;
        op.timeout_ns = (uint64_t)MS(200);
        write_all(fds[1], "x", 1);
        upcall_event event = {0};
        if (reaped) {
            CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
            while (upcall_reap(loop, &event, 1) == 0)
                CHECK(upcall_poll(loop, -1) >= 0);
        } else {
            submit_one(loop, op, &rec);
            run_until(loop, &rec, 1);
            event = (upcall_event){.result = rec.events[0].result, .flags = rec.events[0].flags,
                                   .buffer = rec.events[0].buffer};
        }
        CHECK_EQ(event.result, 1);
        CHECK_EQ(event.flags, UPCALL_MORE);
        CHECK_EQ(upcall_buffers_return(pool, event.buffer), 0);
        if (reaped) {
            for (int turns = 0; upcall_reap(loop, &event, 1) == 0; turns++) {
                CHECK(turns < 1000);
                CHECK(upcall_poll(loop, MS(10)) >= 0);
            }
        } else {
            run_finals(loop, &rec, 1);
            event = (upcall_event){.result = rec.events[1].result, .flags = rec.events[1].flags};
        }
        CHECK_EQ(event.result, -ETIMEDOUT);
        CHECK_EQ(event.flags, UPCALL_EXPIRED);
        free_loop(loop);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(fds);
        forget(&rec);
    }
}

/* sendfile(2) of nothing waits for room in a pipe that it does not need; neither the loop nor the operation does. */
TEST(a_sendfile_of_nothing_to_a_full_pipe_is_0_at_once) {
    int from[2], to[2], file = temp_file(10);
    pipe_pair(from);
    pipe_pair(to);
    fill_up(to[1]);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id piped = submit_one(loop, upcall_op_sendfile(to[1], from[0], -1, 0), &rec);
    upcall_id filed = submit_one(loop, upcall_op_sendfile(to[1], file, 0, 0), &rec);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, piped).result, 0);
    CHECK_EQ(final_of(&rec, filed).result, 0);
    free_loop(loop);
    close_pair(from);
    close_pair(to);
    close(file);
    forget(&rec);
}
