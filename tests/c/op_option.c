/*
 * getsockopt and setsockopt.
 */
#include "op_support.h"

#include <linux/filter.h>

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &length) == 0);
    return value;
}

/* ---- Subjects. The value lies in scene->data. ---- */

static void set_tcp_socket(struct scene *scene) {
    scene->fd = new_socket(AF_INET, SOCK_STREAM);
    scene->length = sizeof(int);
}

static upcall_op make_getsockopt(struct scene *scene) {
    return upcall_op_getsockopt(scene->fd, SOL_SOCKET, SO_TYPE, scene->data, &scene->length);
}

static void has_got(struct scene *scene, struct record final) {
    int value;
    memcpy(&value, scene->data, sizeof value);
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK_EQ(value, SOCK_STREAM);
    CHECK_EQ(scene->length, sizeof value);
    CHECK_EQ(scene->data[sizeof value], 0xee);
}

static void has_not_got(struct scene *scene) {
    CHECK_EQ(scene->data[0], 0xee);
    CHECK_EQ(scene->length, sizeof(int));
}

static const struct subject get_an_option = {.kind = UPCALL_OP_GETSOCKOPT, .set_up = set_tcp_socket,
    .make = make_getsockopt, .done = has_got, .intact = has_not_got};
PROMISES(get_an_option)

static void set_tcp_socket_and_value(struct scene *scene) {
    int one = 1;
    set_tcp_socket(scene);
    memcpy(scene->data, &one, sizeof one);
}

static upcall_op make_setsockopt(struct scene *scene) {
    return upcall_op_setsockopt(scene->fd, IPPROTO_TCP, TCP_NODELAY, scene->data, sizeof(int));
}

static void has_set(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK_EQ(option(scene->fd, IPPROTO_TCP, TCP_NODELAY), 1);
}

static void has_not_set(struct scene *scene) {
    CHECK_EQ(option(scene->fd, IPPROTO_TCP, TCP_NODELAY), 0);
}

static const struct subject set_an_option = {.kind = UPCALL_OP_SETSOCKOPT, .set_up = set_tcp_socket_and_value,
    .make = make_setsockopt, .done = has_set, .intact = has_not_set};
PROMISES(set_an_option)

/* ---- Names, arguments. ---- */

TEST(option_operations_are_known) {
    is_known(UPCALL_OP_GETSOCKOPT, "getsockopt");
    is_known(UPCALL_OP_SETSOCKOPT, "setsockopt");
}

TEST(option_operations_refuse_strange_fields) {
    int value = 0;
    socklen_t length = sizeof value;
    refuses_strange_fields(upcall_op_getsockopt(0, SOL_SOCKET, SO_TYPE, &value, &length), 0);
    refuses_strange_fields(upcall_op_setsockopt(0, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value), 0);
}

TEST(option_operations_refuse_bad_arguments) {
    static char large[65537];
    int value = 0;
    socklen_t length = sizeof value, negative = (socklen_t)-1;
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_getsockopt(0, SOL_SOCKET, SO_TYPE, &value, NULL), EINVAL, "len is NULL");
    refused(loop, upcall_op_getsockopt(0, SOL_SOCKET, SO_TYPE, NULL, NULL), EINVAL, "len is NULL");
    refused(loop, upcall_op_getsockopt(0, SOL_SOCKET, SO_TYPE, NULL, &length), EINVAL, "val is NULL but *len is 4");
    refused(loop, upcall_op_getsockopt(0, SOL_SOCKET, SO_TYPE, &value, &negative), EINVAL, "*len");
    refused(loop, upcall_op_setsockopt(0, SOL_SOCKET, SO_TYPE, NULL, 4), EINVAL, "val is NULL but len is 4");
    refused(loop, upcall_op_setsockopt(0, SOL_SOCKET, SO_TYPE, large, sizeof large), EINVAL, "len is 65537");
    refused(loop, upcall_op_setsockopt(0, SOL_SOCKET, SO_TYPE, large, negative), EINVAL, "len");
    free_loop(loop);
}

/* As getsockopt(2) and setsockopt(2) answer, whichever level. */
TEST(what_only_the_kernel_knows_comes_in_the_event) {
    static char large[65536];
    int value = 1, file = temp_file(1), fd = new_socket(AF_INET, SOCK_STREAM);
    socklen_t length = sizeof value, nothing = 0;
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_getsockopt(-1, SOL_SOCKET, SO_TYPE, &value, &length), -EBADF);
    ends_with(loop, upcall_op_getsockopt(closed_fd(), SOL_SOCKET, SO_TYPE, &value, &length), -EBADF);
    ends_with(loop, upcall_op_getsockopt(file, SOL_SOCKET, SO_TYPE, &value, &length), -ENOTSOCK);
    ends_with(loop, upcall_op_getsockopt(fd, SOL_SOCKET, 9999, &value, &length), -ENOPROTOOPT);
    ends_with(loop, upcall_op_getsockopt(fd, IPPROTO_TCP, 9999, &value, &length), -ENOPROTOOPT);
    ends_with(loop, upcall_op_getsockopt(fd, 9999, 1, &value, &length), -EOPNOTSUPP);
    ends_with(loop, upcall_op_getsockopt(fd, SOL_SOCKET, SO_TYPE, NULL, &nothing), 0);
    CHECK_EQ(value, 1);
    CHECK_EQ(length, sizeof value);
    ends_with(loop, upcall_op_setsockopt(-1, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value), -EBADF);
    ends_with(loop, upcall_op_setsockopt(closed_fd(), SOL_SOCKET, SO_REUSEADDR, &value, sizeof value), -EBADF);
    ends_with(loop, upcall_op_setsockopt(file, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value), -ENOTSOCK);
    ends_with(loop, upcall_op_setsockopt(fd, SOL_SOCKET, SO_TYPE, &value, sizeof value), -ENOPROTOOPT);
    ends_with(loop, upcall_op_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &value, 1), -EINVAL);
    ends_with(loop, upcall_op_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, NULL, 0), -EINVAL);
    ends_with(loop, upcall_op_setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &value, sizeof value), -EINVAL);
    memset(large, 1, sizeof large); /* the longest that is copied */
    ends_with(loop, upcall_op_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, large, sizeof large), 0);
    CHECK(option(fd, SOL_SOCKET, SO_REUSEADDR) != 0);
    close(fd);
    close(file);
    free_loop(loop);
}

/* ---- Values. ---- */

TEST(getsockopt_keeps_to_the_room_and_tells_the_length) {
    struct timeval second = {1, 0};
    uint8_t value[64];
    int fd = new_socket(AF_INET, SOCK_STREAM);
    upcall_loop *loop = new_loop();
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second) == 0);
    for (socklen_t room = 0; room <= sizeof value; room++) {
        socklen_t length = room, expected = room;
        uint8_t same[64];
        memset(value, 0xee, sizeof value);
        memset(same, 0xee, sizeof same);
        int rc = getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, same, &expected) == 0 ? 0 : -errno;
        ends_with(loop, upcall_op_getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, value, &length), rc);
        CHECK_EQ(length, expected);
        CHECK(memcmp(value, same, sizeof value) == 0);
    }
    close(fd);
    free_loop(loop);
}

TEST(options_of_many_levels) {
    int size = 65536, ttl = 42, on = 1, value = 0, tcp = new_socket(AF_INET, SOCK_STREAM);
    struct linger linger = {1, 7}, got = {0, 0};
    socklen_t length = sizeof got;
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_setsockopt(tcp, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    ends_with(loop, upcall_op_getsockopt(tcp, SOL_SOCKET, SO_LINGER, &got, &length), 0);
    CHECK_EQ(length, sizeof got);
    CHECK(got.l_onoff == 1 && got.l_linger == 7);
    length = sizeof value;
    ends_with(loop, upcall_op_setsockopt(tcp, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl), 0);
    ends_with(loop, upcall_op_getsockopt(tcp, IPPROTO_IP, IP_TTL, &value, &length), 0);
    CHECK_EQ(value, 42);
    ends_with(loop, upcall_op_setsockopt(tcp, IPPROTO_TCP, TCP_KEEPIDLE, &ttl, sizeof ttl), 0);
    ends_with(loop, upcall_op_getsockopt(tcp, IPPROTO_TCP, TCP_KEEPIDLE, &value, &length), 0);
    CHECK_EQ(value, 42);
    ends_with(loop, upcall_op_setsockopt(tcp, SOL_SOCKET, SO_RCVBUF, &size, sizeof size), 0);
    ends_with(loop, upcall_op_getsockopt(tcp, SOL_SOCKET, SO_RCVBUF, &value, &length), 0);
    CHECK_EQ(value, option(tcp, SOL_SOCKET, SO_RCVBUF));
    ends_with(loop, upcall_op_setsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on), 0);
    CHECK(option(tcp, SOL_SOCKET, SO_KEEPALIVE) != 0);
    close(tcp);
    free_loop(loop);
}

/* The manual form of connect ends with this. Reading SO_ERROR takes it away. */
TEST(getsockopt_reads_the_error_of_a_connect) {
    struct sockaddr_in address;
    int value = -1, listener = tcp_listener(&address, 0, 1);
    socklen_t length = sizeof value;
    close(listener);
    int fd = set_nonblocking(new_socket(AF_INET, SOCK_STREAM));
    upcall_loop *loop = new_loop();
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == -1 && errno == EINPROGRESS);
    CHECK(complete(loop, upcall_op_poll(fd, POLLOUT)).result > 0);
    ends_with(loop, upcall_op_getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length), 0);
    CHECK_EQ(value, ECONNREFUSED);
    ends_with(loop, upcall_op_getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length), 0);
    CHECK_EQ(value, 0);
    close(fd);
    free_loop(loop);
}

/* The value is copied: what becomes of it after submit does not matter, from whichever thread it came. */
struct scribble {
    upcall_loop *loop;
    int fd;
};

static void *submit_and_scribble(void *arg) {
    struct scribble *scribble = arg;
    int ttl = 99;
    upcall_op op = upcall_op_setsockopt(scribble->fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
    CHECK_EQ(upcall_submit(scribble->loop, &op, 1, NULL), 0);
    ttl = 0x55555555;
    __asm__ volatile("" : : "r"(&ttl) : "memory"); /* the scribbling is done */
    return NULL;
}

TEST(setsockopt_copies_its_value) {
    for (int outside = 0; outside < 2; outside++) {
        struct recorder rec = {0};
        struct scribble scribble = {new_loop(), new_socket(AF_INET, SOCK_DGRAM)};
        CHECK_EQ(upcall_poll(scribble.loop, 0), 0);
        if (outside)
            join(start(submit_and_scribble, &scribble));
        else
            submit_and_scribble(&scribble);
        reap_until(scribble.loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, 0);
        CHECK_EQ(option(scribble.fd, IPPROTO_IP, IP_TTL), 99);
        close(scribble.fd);
        free_loop(scribble.loop);
        forget(&rec);
    }
}

/* What the value points to is read when the option is set. */
TEST(setsockopt_attaches_a_filter) {
    struct sock_filter refuse_all[] = {{BPF_RET | BPF_K, 0, 0, 0}};
    struct sock_fprog program = {1, refuse_all};
    int fds[2];
    char byte;
    upcall_loop *loop = new_loop();
    dgram_pair(fds);
    ends_with(loop, upcall_op_setsockopt(fds[0], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
    CHECK(send(fds[1], "x", 1, 0) >= -1);
    CHECK(recv(fds[0], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    close_pair(fds);
    free_loop(loop);
}

/* ---- Order. ---- */

TEST(options_in_a_chain) {
    struct recorder rec = {0};
    upcall_id ids[3];
    int fd = new_socket(AF_INET, SOCK_STREAM), on = 1, value = 0;
    socklen_t length = sizeof value;
    upcall_loop *loop = new_loop();
    upcall_op ops[3] = {upcall_op_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on),
                        upcall_op_getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &length), upcall_op_close(fd)};
    ops[0].flags = ops[1].flags = UPCALL_LINK;
    submit_many(loop, ops, 3, &rec, ids);
    run_finals(loop, &rec, 3);
    check_finals(&rec, ids, 3);
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(final_of(&rec, ids[i]).result, 0);
    CHECK(value != 0);
    CHECK(!is_open(fd));
    free_loop(loop);
    forget(&rec);
}

TEST(an_option_that_fails_severs_its_chain) {
    struct recorder rec = {0};
    upcall_id ids[2];
    int fd = new_socket(AF_INET, SOCK_STREAM), on = 1;
    upcall_loop *loop = new_loop();
    upcall_op ops[2] = {upcall_op_setsockopt(fd, SOL_SOCKET, 9999, &on, sizeof on), upcall_op_nop()};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, -ENOPROTOOPT);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    close(fd);
    free_loop(loop);
    forget(&rec);
}
