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
