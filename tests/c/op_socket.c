/*
 * socket, bind, listen, accept, connect, recv, send, recvmsg, sendmsg and shutdown, on blocking and O_NONBLOCK sockets.
 */
#include "op_support.h"

#define BOTH(nonblocking) for (int nonblocking = 0; nonblocking < 2; nonblocking++)
#define ADDRESS(address) ((struct sockaddr *)(void *)(address))

/* ---- Sockets to try things on. ---- */

static struct sockaddr_in loopback(void) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static struct sockaddr_un unix_name(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CHECK(strlen(path) < sizeof address.sun_path);
    strcpy(address.sun_path, path);
    return address;
}

static int in_mode(int fd, int nonblocking) {
    return nonblocking ? set_nonblocking(fd) : fd;
}

static int unix_listener(const char *path, int backlog) {
    struct sockaddr_un address = unix_name(path);
    int fd = new_socket(AF_UNIX, SOCK_STREAM);
    CHECK(bind(fd, ADDRESS(&address), sizeof address) == 0 && listen(fd, backlog) == 0);
    return fd;
}

static int unix_connected_to(const char *path) {
    struct sockaddr_un address = unix_name(path);
    int fd = new_socket(AF_UNIX, SOCK_STREAM);
    CHECK(connect(fd, ADDRESS(&address), sizeof address) == 0);
    return fd;
}

static int option(int fd, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0);
    return value;
}

static bool is_connected(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    return getpeername(fd, ADDRESS(&address), &length) == 0;
}

static void reset_on_close(int fd) {
    struct linger now = {1, 0};
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
}

/* Polls for 300 ms, in which nothing is to happen, without burning the processor. */
static void waits_without_spinning(upcall_loop *loop, const struct recorder *rec) {
    size_t count = rec->count;
    uint64_t burnt = processor_ns(), start = now_ns();
    while (now_ns() - start < (uint64_t)MS(300))
        CHECK(upcall_poll(loop, MS(50)) >= 0);
    CHECK_EQ(rec->count, count);
    CHECK(processor_ns() - burnt < (uint64_t)MS(150));
}

/* ---- Subjects: socket, bind, listen, shutdown. ---- */

static void set_nothing(struct scene *scene) {
    (void)scene;
}

static void nothing_to_see(struct scene *scene) {
    (void)scene; /* what was made and not delivered shows as a leaked descriptor */
}

static upcall_op make_socket(struct scene *scene) {
    (void)scene;
    return upcall_op_socket(AF_UNIX, SOCK_STREAM, 0);
}

static void is_socket(struct scene *scene, struct record final) {
    (void)scene;
    CHECK(final.result >= 0);
    CHECK_EQ(final.transferred, 0);
    int fd = (int)final.result;
    CHECK(is_cloexec(fd));
    CHECK(!has_nonblock(fd));
    CHECK_EQ(option(fd, SO_TYPE), SOCK_STREAM);
    CHECK_EQ(option(fd, SO_DOMAIN), AF_UNIX);
    close(fd);
}

static const struct subject make_a_socket = {.kind = UPCALL_OP_SOCKET, .set_up = set_nothing, .make = make_socket,
    .done = is_socket, .intact = nothing_to_see};
PROMISES_IN_MODE(make_a_socket, any, false)

static void set_unbound(struct scene *scene) {
    scene->fd = new_socket(scene->subject->object, SOCK_STREAM);
    if (scene->subject->object == AF_UNIX) {
        enter_scratch();
        scene->in_scratch = true;
        struct sockaddr_un address = unix_name("socket");
        memcpy(&scene->address, &address, sizeof address);
        scene->length = sizeof address;
    } else {
        struct sockaddr_in address = loopback();
        memcpy(&scene->address, &address, sizeof address);
        scene->length = sizeof address;
    }
}

static upcall_op make_bind(struct scene *scene) {
    return upcall_op_bind(scene->fd, ADDRESS(&scene->address), scene->length);
}

static bool is_bound(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    CHECK(getsockname(fd, ADDRESS(&address), &length) == 0);
    return address.ss_family == AF_UNIX ? length > sizeof(sa_family_t)
                                        : ((struct sockaddr_in *)(void *)&address)->sin_port != 0;
}

static void has_bound(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(is_bound(scene->fd));
}

static void has_not_bound(struct scene *scene) {
    CHECK(!is_bound(scene->fd));
    if (scene->subject->object == AF_UNIX)
        CHECK(access("socket", F_OK) != 0);
}

static const struct subject bind_to_a_port = {.kind = UPCALL_OP_BIND, .object = AF_INET, .set_up = set_unbound,
    .make = make_bind, .done = has_bound, .intact = has_not_bound};
static const struct subject bind_to_a_path = {.kind = UPCALL_OP_BIND, .object = AF_UNIX, .set_up = set_unbound,
    .make = make_bind, .done = has_bound, .intact = has_not_bound};
PROMISES(bind_to_a_port)
PROMISES(bind_to_a_path)

static void set_bound(struct scene *scene) {
    struct sockaddr_in address = loopback();
    scene->fd = new_socket(AF_INET, SOCK_STREAM);
    CHECK(bind(scene->fd, ADDRESS(&address), sizeof address) == 0);
}

static upcall_op make_listen(struct scene *scene) {
    return upcall_op_listen(scene->fd, 5);
}

static void listens(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK_EQ(option(scene->fd, SO_ACCEPTCONN), 1);
}

static void does_not_listen(struct scene *scene) {
    CHECK_EQ(option(scene->fd, SO_ACCEPTCONN), 0);
}

static const struct subject listen_on_tcp = {.kind = UPCALL_OP_LISTEN, .set_up = set_bound, .make = make_listen,
    .done = listens, .intact = does_not_listen};
PROMISES(listen_on_tcp)

static void set_pair(struct scene *scene) {
    int fds[2];
    make_stream(scene->subject->object, fds);
    scene->fd = fds[0];
    scene->peer = fds[1];
}

static upcall_op make_shutdown(struct scene *scene) {
    return upcall_op_shutdown(scene->fd, SHUT_WR);
}

static void is_shut_down(struct scene *scene, struct record final) {
    char byte;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(is_readable(scene->peer, 1000));
    CHECK_EQ(recv(scene->peer, &byte, 1, MSG_DONTWAIT), 0);
}

static void is_not_shut_down(struct scene *scene) {
    char byte = 'x';
    CHECK(recv(scene->peer, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(send(scene->fd, &byte, 1, MSG_NOSIGNAL) == 1);
}

static const struct subject shut_down_unix = {.kind = UPCALL_OP_SHUTDOWN, .object = UNIX, .set_up = set_pair,
    .make = make_shutdown, .done = is_shut_down, .intact = is_not_shut_down};
static const struct subject shut_down_tcp = {.kind = UPCALL_OP_SHUTDOWN, .object = TCP, .set_up = set_pair,
    .make = make_shutdown, .done = is_shut_down, .intact = is_not_shut_down};
PROMISES(shut_down_unix)
PROMISES(shut_down_tcp)

/* ---- Subjects: accept. ---- */

enum { ACCEPT_TCP, ACCEPT_WITH_ADDRESS, ACCEPT_NONBLOCK, ACCEPT_UNIX };

static void set_listener(struct scene *scene) {
    struct sockaddr_in address;
    if (scene->subject->object == ACCEPT_UNIX) {
        enter_scratch();
        scene->in_scratch = true;
        scene->fd = unix_listener("socket", 4);
        return;
    }
    scene->fd = tcp_listener(&address, 0, 4);
    scene->length = sizeof scene->address;
}

static void connect_a_client(struct scene *scene) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    if (scene->subject->object == ACCEPT_UNIX) {
        scene->peer = unix_connected_to("socket");
        return;
    }
    CHECK(getsockname(scene->fd, ADDRESS(&address), &length) == 0);
    scene->peer = tcp_connected_to(&address);
}

static upcall_op make_accept(struct scene *scene) {
    switch (scene->subject->object) {
    case ACCEPT_WITH_ADDRESS: return upcall_op_accept(scene->fd, ADDRESS(&scene->address), &scene->length, 0);
    case ACCEPT_NONBLOCK: return upcall_op_accept(scene->fd, NULL, NULL, SOCK_NONBLOCK);
    default: return upcall_op_accept(scene->fd, NULL, NULL, 0);
    }
}

static void has_accepted(struct scene *scene, struct record final) {
    char byte = 0;
    CHECK(final.result >= 0);
    CHECK_EQ(final.transferred, 0);
    int fd = (int)final.result;
    CHECK(is_cloexec(fd));
    CHECK_EQ(has_nonblock(fd), scene->subject->object == ACCEPT_NONBLOCK); /* not inherited from the listener */
    CHECK(send(scene->peer, "x", 1, 0) == 1);
    CHECK(is_readable(fd, 1000));
    CHECK(recv(fd, &byte, 1, 0) == 1 && byte == 'x');
    if (scene->subject->object == ACCEPT_WITH_ADDRESS) {
        struct sockaddr_in theirs, ours;
        socklen_t length = sizeof ours;
        CHECK_EQ(scene->length, sizeof theirs);
        memcpy(&theirs, &scene->address, sizeof theirs);
        CHECK(getsockname(scene->peer, ADDRESS(&ours), &length) == 0);
        CHECK(theirs.sin_family == AF_INET && theirs.sin_port == ours.sin_port);
        CHECK_EQ(theirs.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    }
    close(fd);
}

/* The connection is still in the queue. */
static void has_not_accepted(struct scene *scene) {
    CHECK(is_readable(scene->fd, 1000));
    int fd = accept4(scene->fd, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fd >= 0);
    close(fd);
    CHECK(!is_readable(scene->fd, 0));
}

#define ACCEPTS(name, object_)                                                                                         \
    static const struct subject name = {.kind = UPCALL_OP_ACCEPT, .object = object_, .set_up = set_listener,           \
        .make = make_accept, .allow = connect_a_client, .done = has_accepted, .intact = has_not_accepted};
ACCEPTS(accept_from_tcp, ACCEPT_TCP)
ACCEPTS(accept_with_address, ACCEPT_WITH_ADDRESS)
ACCEPTS(accept_as_nonblocking, ACCEPT_NONBLOCK)
ACCEPTS(accept_from_unix, ACCEPT_UNIX)
PROMISES_OF_WAITING(accept_from_tcp)
PROMISES_OF_WAITING(accept_with_address)
PROMISES_OF_WAITING(accept_as_nonblocking)
PROMISES_OF_WAITING(accept_from_unix)

/* ---- Subjects: connect. ---- */

static void set_for_tcp_connect(struct scene *scene) {
    struct sockaddr_in address;
    scene->extra = tcp_listener(&address, 0, 4);
    memcpy(&scene->address, &address, sizeof address);
    scene->length = sizeof address;
    scene->fd = new_socket(AF_INET, SOCK_STREAM);
}

static void set_for_udp_connect(struct scene *scene) {
    struct sockaddr_in address;
    scene->extra = udp_socket(&address);
    memcpy(&scene->address, &address, sizeof address);
    scene->length = sizeof address;
    scene->fd = new_socket(AF_INET, SOCK_DGRAM);
}

/* A unix listener with its one place taken: the next client waits (hazard 28). */
static void set_for_unix_connect(struct scene *scene) {
    struct sockaddr_un address = unix_name("socket");
    enter_scratch();
    scene->in_scratch = true;
    scene->extra = unix_listener("socket", 0);
    scene->peer = unix_connected_to("socket");
    memcpy(&scene->address, &address, sizeof address);
    scene->length = sizeof address;
    scene->fd = new_socket(AF_UNIX, SOCK_STREAM);
}

static void accept_the_first(struct scene *scene) {
    int fd = accept4(scene->extra, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fd >= 0);
    close(fd);
}

static upcall_op make_connect(struct scene *scene) {
    return upcall_op_connect(scene->fd, ADDRESS(&scene->address), scene->length);
}

static void has_connected(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(is_connected(scene->fd));
    if (scene->subject->set_up == set_for_udp_connect)
        return;
    char byte = 0;
    CHECK(is_readable(scene->extra, 1000));
    int fd = accept4(scene->extra, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fd >= 0 && send(fd, "x", 1, 0) == 1);
    CHECK(is_readable(scene->fd, 1000) && recv(scene->fd, &byte, 1, 0) == 1 && byte == 'x');
    close(fd);
}

static void has_not_connected(struct scene *scene) {
    CHECK(!is_connected(scene->fd));
}

static const struct subject connect_to_tcp = {.kind = UPCALL_OP_CONNECT, .set_up = set_for_tcp_connect,
    .make = make_connect, .done = has_connected, .intact = has_not_connected};
static const struct subject connect_to_udp = {.kind = UPCALL_OP_CONNECT, .set_up = set_for_udp_connect,
    .make = make_connect, .done = has_connected, .intact = has_not_connected};
static const struct subject connect_to_full_unix = {.kind = UPCALL_OP_CONNECT, .set_up = set_for_unix_connect,
    .make = make_connect, .allow = accept_the_first, .done = has_connected, .intact = has_not_connected,
    .interrupted_is_undefined = true};
PROMISES(connect_to_tcp)
PROMISES(connect_to_udp)
PROMISES_OF_WAITING(connect_to_full_unix)

/* ---- Subjects: recv and recvmsg. ---- */

static void send_ten(struct scene *scene) {
    uint8_t ten[10];
    fill_pattern(ten, sizeof ten, 0);
    CHECK(send(scene->peer, ten, sizeof ten, 0) == sizeof ten);
}

static upcall_op make_recv(struct scene *scene) {
    return upcall_op_recv(scene->fd, scene->data, 64, 0);
}

static upcall_op make_recvmsg(struct scene *scene) {
    scene->iov[0] = (struct iovec){scene->data, 3};
    scene->iov[1] = (struct iovec){NULL, 0};
    scene->iov[2] = (struct iovec){scene->data + 3, 61};
    scene->msg.msg_name = &scene->address;
    scene->msg.msg_namelen = sizeof scene->address;
    scene->msg.msg_iov = scene->iov;
    scene->msg.msg_iovlen = 3;
    scene->msg.msg_control = scene->control;
    scene->msg.msg_controllen = sizeof scene->control;
    scene->msg.msg_flags = -1;
    return upcall_op_recvmsg(scene->fd, &scene->msg, 0);
}

static void has_received(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 10);
    CHECK_EQ(final.transferred, 10);
    CHECK(has_pattern(scene->data, 10, 0));
    CHECK_EQ(scene->data[10], 0xee);
    if (scene->subject->kind == UPCALL_OP_RECVMSG) { /* the header's results; the sender has no name */
        CHECK_EQ(scene->msg.msg_namelen, 0);
        CHECK_EQ(scene->msg.msg_controllen, 0);
        CHECK_EQ(scene->msg.msg_flags & ~MSG_CMSG_CLOEXEC, 0);
        CHECK(scene->msg.msg_iov == scene->iov && scene->msg.msg_iovlen == 3);
        CHECK(scene->msg.msg_name == &scene->address && scene->msg.msg_control == scene->control);
        CHECK_EQ(scene->iov[2].iov_len, 61);
    }
}

static void has_not_received(struct scene *scene) {
    uint8_t bytes[64];
    CHECK(is_readable(scene->fd, 1000));
    CHECK_EQ(recv(scene->fd, bytes, sizeof bytes, MSG_DONTWAIT), 10);
    CHECK(has_pattern(bytes, 10, 0));
}

#define RECEIVES(name, kind_, make_, object_)                                                                          \
    static const struct subject name = {.kind = kind_, .object = object_, .set_up = set_pair, .make = make_,           \
        .allow = send_ten, .done = has_received, .intact = has_not_received};
RECEIVES(recv_from_unix, UPCALL_OP_RECV, make_recv, UNIX)
RECEIVES(recv_from_tcp, UPCALL_OP_RECV, make_recv, TCP)
RECEIVES(recv_a_datagram, UPCALL_OP_RECV, make_recv, DATAGRAM)
RECEIVES(recvmsg_from_unix, UPCALL_OP_RECVMSG, make_recvmsg, UNIX)
RECEIVES(recvmsg_from_tcp, UPCALL_OP_RECVMSG, make_recvmsg, TCP)
RECEIVES(recvmsg_a_datagram, UPCALL_OP_RECVMSG, make_recvmsg, DATAGRAM)
PROMISES_OF_WAITING(recv_from_unix)
PROMISES_OF_WAITING(recv_from_tcp)
PROMISES_OF_WAITING(recv_a_datagram)
PROMISES_OF_WAITING(recvmsg_from_unix)
PROMISES_OF_WAITING(recvmsg_from_tcp)
PROMISES_OF_WAITING(recvmsg_a_datagram)

/* ---- Subjects: send and sendmsg into a full socket. ---- */

static void set_full(struct scene *scene) {
    set_pair(scene);
    fill_pattern(scene->data, 64, 1000);
    if (scene->subject->object != DATAGRAM) {
        scene->filled = fill_for_good(scene->subject->object, scene->fd);
        return;
    }
    while (send(scene->fd, "", 1, MSG_DONTWAIT) == 1)
        scene->filled++;
    CHECK(errno == EAGAIN && scene->filled > 0);
}

static void make_room(struct scene *scene) {
    char byte;
    if (scene->subject->object != DATAGRAM) {
        take(scene->peer, scene->filled);
        return;
    }
    for (size_t i = 0; i < scene->filled; i++)
        CHECK(recv(scene->peer, &byte, 1, MSG_DONTWAIT) == 1);
}

static upcall_op make_send(struct scene *scene) {
    return upcall_op_send(scene->fd, scene->data, 64, 0);
}

static upcall_op make_sendmsg(struct scene *scene) {
    scene->iov[0] = (struct iovec){scene->data, 10};
    scene->iov[1] = (struct iovec){NULL, 0};
    scene->iov[2] = (struct iovec){scene->data + 10, 54};
    scene->msg.msg_iov = scene->iov;
    scene->msg.msg_iovlen = 3;
    return upcall_op_sendmsg(scene->fd, &scene->msg, 0);
}

static void has_sent(struct scene *scene, struct record final) {
    uint8_t bytes[100];
    CHECK_EQ(final.result, 64);
    CHECK(is_readable(scene->peer, 1000));
    CHECK_EQ(recv(scene->peer, bytes, sizeof bytes, MSG_DONTWAIT), 64);
    CHECK(has_pattern(bytes, 64, 1000));
    CHECK(!is_readable(scene->peer, 0));
}

static void has_not_sent(struct scene *scene) {
    CHECK(!is_readable(scene->peer, 10));
}

#define SENDS(name, kind_, make_, object_)                                                                             \
    static const struct subject name = {.kind = kind_, .object = object_, .set_up = set_full, .make = make_,           \
        .allow = make_room, .done = has_sent, .intact = has_not_sent};
SENDS(send_to_unix, UPCALL_OP_SEND, make_send, UNIX)
SENDS(send_to_tcp, UPCALL_OP_SEND, make_send, TCP)
SENDS(send_a_datagram, UPCALL_OP_SEND, make_send, DATAGRAM)
SENDS(sendmsg_to_unix, UPCALL_OP_SENDMSG, make_sendmsg, UNIX)
SENDS(sendmsg_to_tcp, UPCALL_OP_SENDMSG, make_sendmsg, TCP)
SENDS(sendmsg_a_datagram, UPCALL_OP_SENDMSG, make_sendmsg, DATAGRAM)
PROMISES_OF_WAITING(send_to_unix)
PROMISES_OF_WAITING(send_to_tcp)
PROMISES_OF_WAITING(send_a_datagram)
PROMISES_OF_WAITING(sendmsg_to_unix)
PROMISES_OF_WAITING(sendmsg_to_tcp)
PROMISES_OF_WAITING(sendmsg_a_datagram)

/* ---- Names, arguments. ---- */

TEST(socket_operations_are_known) {
    is_known(UPCALL_OP_SOCKET, "socket");
    is_known(UPCALL_OP_BIND, "bind");
    is_known(UPCALL_OP_LISTEN, "listen");
    is_known(UPCALL_OP_ACCEPT, "accept");
    is_known(UPCALL_OP_CONNECT, "connect");
    is_known(UPCALL_OP_RECV, "recv");
    is_known(UPCALL_OP_SEND, "send");
    is_known(UPCALL_OP_RECVMSG, "recvmsg");
    is_known(UPCALL_OP_SENDMSG, "sendmsg");
    is_known(UPCALL_OP_SHUTDOWN, "shutdown");
}

TEST(socket_operations_refuse_strange_fields) {
    char byte = 0;
    struct sockaddr_in address = loopback();
    struct iovec part = {&byte, 1};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    int fds[2];
    unix_pair(fds);
    refuses_strange_fields(upcall_op_socket(AF_UNIX, SOCK_STREAM, 0), 0);
    refuses_strange_fields(upcall_op_bind(fds[0], ADDRESS(&address), sizeof address), 0);
    refuses_strange_fields(upcall_op_listen(fds[0], 1), 0);
    refuses_strange_fields(upcall_op_accept(fds[0], NULL, NULL, 0), UPCALL_MULTISHOT);
    refuses_strange_fields(upcall_op_connect(fds[0], ADDRESS(&address), sizeof address), 0);
    refuses_strange_fields(upcall_op_recv(fds[0], &byte, 1, 0), UPCALL_FULL | UPCALL_MULTISHOT | LENDS);
    refuses_strange_fields(upcall_op_send(fds[0], &byte, 1, 0), UPCALL_FULL);
    refuses_strange_fields(upcall_op_recvmsg(fds[0], &msg, 0), UPCALL_FULL | UPCALL_MULTISHOT | LENDS);
    refuses_strange_fields(upcall_op_sendmsg(fds[0], &msg, 0), UPCALL_FULL);
    refuses_strange_fields(upcall_op_shutdown(fds[0], SHUT_WR), 0);
}

TEST(addresses_are_checked) {
    struct sockaddr_storage big[2] = {{.ss_family = AF_INET}};
    upcall_loop *loop = new_loop();
    int fd = new_socket(AF_INET, SOCK_STREAM);
    refused(loop, upcall_op_bind(fd, NULL, 16), EINVAL, "addr is NULL");
    refused(loop, upcall_op_bind(fd, NULL, 0), EINVAL, "addr is NULL");
    refused(loop, upcall_op_connect(fd, NULL, 16), EINVAL, "addr is NULL");
    refused(loop, upcall_op_bind(fd, ADDRESS(big), sizeof big[0] + 1), EINVAL,
            "len is 129, more than sizeof(struct sockaddr_storage)");
    refused(loop, upcall_op_connect(fd, ADDRESS(big), UINT32_MAX), EINVAL,
            "len is 4294967295, more than sizeof(struct sockaddr_storage)");
    for (socklen_t length = 0; length < 4; length++) { /* too short for its family: the kernel says so */
        ends_with(loop, upcall_op_bind(fd, ADDRESS(big), length), -EINVAL);
        ends_with(loop, upcall_op_connect(fd, ADDRESS(big), length), -EINVAL);
    }
    free_loop(loop);
}

TEST(accept_checks_its_arguments) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    upcall_loop *loop = new_loop();
    int listener = tcp_listener(&address, 0, 4);
    refused(loop, upcall_op_accept(listener, NULL, NULL, 1), EINVAL, "flags is 0x1");
    refused(loop, upcall_op_accept(listener, NULL, NULL, SOCK_NONBLOCK | 1 << 30), EINVAL,
            "only SOCK_NONBLOCK and SOCK_CLOEXEC are known");
    refused(loop, upcall_op_accept(listener, ADDRESS(&address), NULL, 0), EINVAL, "addrlen is NULL but addr is not");
    upcall_op op = upcall_op_accept(listener, ADDRESS(&address), &length, 0);
    op.flags = UPCALL_MULTISHOT;
    refused(loop, op, EINVAL, "addr and addrlen must be NULL with UPCALL_MULTISHOT");
    op = upcall_op_accept(listener, NULL, &length, 0);
    op.flags = UPCALL_MULTISHOT;
    refused(loop, op, EINVAL, "addr and addrlen must be NULL with UPCALL_MULTISHOT");
    free_loop(loop);
}

TEST(transfers_check_their_arguments) {
    char byte = 0;
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    refused(loop, upcall_op_recv(fds[0], NULL, 4096, 0), EINVAL, "buf is NULL but len is 4096");
    refused(loop, upcall_op_send(fds[0], NULL, 1, 0), EINVAL, "buf is NULL but len is 1");
    refused(loop, upcall_op_recv(fds[0], &byte, SIZE_MAX, 0), EINVAL,
            "len is 18446744073709551615, more than SSIZE_MAX");
    refused(loop, upcall_op_send(fds[0], &byte, (size_t)SSIZE_MAX + 1, 0), EINVAL,
            "len is 9223372036854775808, more than SSIZE_MAX");
    refused(loop, upcall_op_recv(fds[0], &byte, 1, MSG_DONTWAIT), EINVAL, "flags has MSG_DONTWAIT");
    refused(loop, upcall_op_send(fds[0], &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL), EINVAL, "flags has MSG_DONTWAIT");
    refused(loop, upcall_op_recv(fds[0], &byte, 1, MSG_WAITALL), EINVAL, "flags has MSG_WAITALL: use UPCALL_FULL");
    refused(loop, upcall_op_recv(fds[0], &byte, 1, MSG_PEEK | MSG_WAITALL), EINVAL, "flags has MSG_WAITALL");
    free_loop(loop);
}

TEST(messages_check_their_arguments) {
    static struct iovec many[1025];
    static struct sockaddr_storage name[2];
    char byte = 0;
    struct iovec bad[2] = {{&byte, 1}, {NULL, 9}}, huge[2] = {{&byte, SIZE_MAX / 2}, {&byte, SIZE_MAX / 2}};
    struct iovec good = {&byte, 1};
    struct { struct msghdr msg; const char *text; } rows[] = {
        {{.msg_iov = NULL, .msg_iovlen = 1}, "iov is NULL but n is 1"},
        {{.msg_iov = many, .msg_iovlen = 1025}, "n is 1025, more than IOV_MAX (1024)"},
        {{.msg_iov = many, .msg_iovlen = SIZE_MAX}, "n is 18446744073709551615, more than IOV_MAX (1024)"},
        {{.msg_iov = bad, .msg_iovlen = 2}, "iov[1].iov_base is NULL but iov_len is 9"},
        {{.msg_iov = huge, .msg_iovlen = 2}, "the lengths of iov add up to more than SSIZE_MAX"},
        {{.msg_iov = &good, .msg_iovlen = 1, .msg_name = NULL, .msg_namelen = 16},
         "msg_name is NULL but msg_namelen is 16"},
        {{.msg_iov = &good, .msg_iovlen = 1, .msg_name = name, .msg_namelen = 129},
         "msg_namelen is 129, more than sizeof(struct sockaddr_storage)"},
        {{.msg_iov = &good, .msg_iovlen = 1, .msg_control = NULL, .msg_controllen = 8},
         "msg_control is NULL but msg_controllen is 8"},
        {{.msg_iov = &good, .msg_iovlen = 1, .msg_control = name, .msg_controllen = (1 << 20) + 1},
         "msg_controllen is 1048577, more than 1 MiB"},
    };
    struct msghdr fine = {.msg_iov = &good, .msg_iovlen = 1};
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        refused(loop, upcall_op_recvmsg(fds[0], &rows[i].msg, 0), EINVAL, rows[i].text);
        refused(loop, upcall_op_sendmsg(fds[0], &rows[i].msg, 0), EINVAL, rows[i].text);
    }
    refused(loop, upcall_op_recvmsg(fds[0], NULL, 0), EINVAL, "msg is NULL");
    refused(loop, upcall_op_sendmsg(fds[0], NULL, 0), EINVAL, "msg is NULL");
    refused(loop, upcall_op_recvmsg(fds[0], &fine, MSG_DONTWAIT), EINVAL, "flags has MSG_DONTWAIT");
    refused(loop, upcall_op_recvmsg(fds[0], &fine, MSG_WAITALL), EINVAL, "flags has MSG_WAITALL");
    refused(loop, upcall_op_sendmsg(fds[0], &fine, MSG_DONTWAIT), EINVAL, "flags has MSG_DONTWAIT");
    free_loop(loop);
}

/* Every operation on what is no socket, and on what is no descriptor at all. */
TEST(a_bad_descriptor_is_EBADF_and_a_pipe_is_ENOTSOCK) {
    char byte = 0;
    struct sockaddr_in address = loopback();
    struct iovec part = {&byte, 1};
    struct msghdr in = {.msg_iov = &part, .msg_iovlen = 1}, out = in;
    upcall_loop *loop = new_loop();
    int ends[2], file = temp_file(1);
    pipe_pair(ends);
    const struct { int fd, error; } rows[] = {
        {-1, EBADF}, {INT32_MIN, EBADF}, {INT32_MAX, EBADF}, {closed_fd(), EBADF}, {ends[0], ENOTSOCK},
        {ends[1], ENOTSOCK}, {file, ENOTSOCK}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int fd = rows[i].fd;
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&address), sizeof address), -rows[i].error);
        ends_with(loop, upcall_op_listen(fd, 1), -rows[i].error);
        ends_with(loop, upcall_op_accept(fd, NULL, NULL, 0), -rows[i].error);
        ends_with(loop, upcall_op_connect(fd, ADDRESS(&address), sizeof address), -rows[i].error);
        ends_with(loop, upcall_op_recv(fd, &byte, 1, 0), -rows[i].error);
        ends_with(loop, upcall_op_send(fd, &byte, 1, 0), -rows[i].error);
        ends_with(loop, upcall_op_recvmsg(fd, &in, 0), -rows[i].error);
        ends_with(loop, upcall_op_sendmsg(fd, &out, 0), -rows[i].error);
        ends_with(loop, upcall_op_shutdown(fd, SHUT_WR), -rows[i].error);
    }
    CHECK(!is_readable(ends[0], 0));
    free_loop(loop);
}

/* ---- socket, bind, listen. ---- */

TEST(sockets_are_made_as_asked) {
    static const struct { int domain, type, protocol; int64_t error; } rows[] = {
        {AF_INET, SOCK_STREAM, 0, 0},
        {AF_INET, SOCK_DGRAM, 0, 0},
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, 0},
        {AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0, 0},
        {AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0, 0},
        {AF_UNIX, SOCK_STREAM, 0, 0},
        {AF_UNIX, SOCK_DGRAM, 0, 0},
        {AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0},
        {99, SOCK_STREAM, 0, -EAFNOSUPPORT},
        {-1, SOCK_STREAM, 0, -EAFNOSUPPORT},
        {AF_INET, 0, 0, -ESOCKTNOSUPPORT},
        {AF_INET, 12, 0, -EINVAL},
        {AF_INET, SOCK_STREAM, IPPROTO_UDP, -EPROTONOSUPPORT},
        {AF_INET, SOCK_STREAM, 99, -EPROTONOSUPPORT},
    };
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int64_t fd = complete(loop, upcall_op_socket(rows[i].domain, rows[i].type, rows[i].protocol)).result;
        CHECK_EQ(fd < 0 ? fd : 0, rows[i].error);
        if (fd < 0)
            continue;
        CHECK(is_cloexec((int)fd));
        CHECK_EQ(has_nonblock((int)fd), (rows[i].type & SOCK_NONBLOCK) != 0);
        CHECK_EQ(option((int)fd, SO_DOMAIN), rows[i].domain);
        CHECK_EQ(option((int)fd, SO_TYPE), rows[i].type & 0xf);
        close((int)fd);
    }
    free_loop(loop);
}

TEST(without_a_free_descriptor_a_socket_is_EMFILE) {
    struct rlimit before, limit;
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_socket(99, SOCK_STREAM, 0)).result, -EAFNOSUPPORT);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    int lowest = dup(STDOUT_FILENO);
    close(lowest);
    limit = before;
    limit.rlim_cur = (rlim_t)lowest;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    ends_with(loop, upcall_op_socket(AF_UNIX, SOCK_STREAM, 0), -EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(complete(loop, upcall_op_socket(AF_UNIX, SOCK_STREAM, 0)).result >= 0);
    free_loop(loop);
}

TEST(bind_and_listen_answer_as_the_system_calls_do) {
    struct sockaddr_in taken, any = loopback(), elsewhere = loopback();
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    struct sockaddr_un path = unix_name("socket"), missing = unix_name("missing/socket");
    int fds[2];
    upcall_loop *loop = new_loop();
    enter_scratch();
    int listener = tcp_listener(&taken, 0, 4);
    unix_pair(fds);
    elsewhere.sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1, which is nobody's (RFC 5737) */
    BOTH(nonblocking) {
        int fd = in_mode(new_socket(AF_INET, SOCK_STREAM), nonblocking);
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&taken), sizeof taken), -EADDRINUSE);
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&elsewhere), sizeof elsewhere), -EADDRNOTAVAIL);
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&six), sizeof six), -EAFNOSUPPORT);
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&any), sizeof any), 0);
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&any), sizeof any), -EINVAL); /* a second time */
        ends_with(loop, upcall_op_listen(fd, 0), 0);
        ends_with(loop, upcall_op_listen(fd, -1), 0); /* a negative backlog is the largest there is */
        ends_with(loop, upcall_op_listen(fd, INT32_MAX), 0);
        CHECK_EQ(has_nonblock(fd), nonblocking);
        close(fd);
        fd = in_mode(new_socket(AF_UNIX, SOCK_STREAM), nonblocking);
        ends_with(loop, upcall_op_listen(fd, 1), -EINVAL); /* has no name */
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&missing), sizeof missing), -ENOENT);
        ends_with(loop, upcall_op_bind(fd, ADDRESS(&path), sizeof path), nonblocking ? -EADDRINUSE : 0);
        close(fd);
        fd = in_mode(new_socket(AF_INET, SOCK_DGRAM), nonblocking);
        ends_with(loop, upcall_op_listen(fd, 1), -EOPNOTSUPP);
        close(fd);
    }
    ends_with(loop, upcall_op_listen(fds[0], 1), -EINVAL);
    CHECK_EQ(option(listener, SO_ACCEPTCONN), 1);
    leave_scratch();
    free_loop(loop);
}

/* Hazard 37: the address is the program's again when submit returns. */
TEST(addresses_are_copied) {
    for (int owned = 0; owned < 2; owned++) {
        BOTH(nonblocking) {
            struct sockaddr_in address, other = loopback();
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            if (owned)
                CHECK_EQ(upcall_poll(loop, 0), 0);
            int listener = tcp_listener(&address, 0, 4);
            int client = in_mode(new_socket(AF_INET, SOCK_STREAM), nonblocking);
            int server = in_mode(new_socket(AF_INET, SOCK_STREAM), nonblocking);
            upcall_id connecting = submit_one(loop, upcall_op_connect(client, ADDRESS(&address), sizeof address), &rec);
            upcall_id binding = submit_one(loop, upcall_op_bind(server, ADDRESS(&other), sizeof other), &rec);
            memset(&address, 0xff, sizeof address);
            memset(&other, 0xff, sizeof other);
            run_finals(loop, &rec, 2);
            CHECK_EQ(final_of(&rec, connecting).result, 0);
            CHECK_EQ(final_of(&rec, binding).result, 0);
            CHECK(is_connected(client) && is_bound(server));
            close(listener);
            close(client);
            close(server);
            free_loop(loop);
            forget(&rec);
        }
    }
}

/* A whole server and client made of operations, linked where order matters. */
TEST(a_connection_is_made_of_operations_alone) {
    struct sockaddr_in address = loopback();
    socklen_t length = sizeof address;
    struct recorder rec = {0};
    char bytes[4] = {0}, at_server[4] = {0};
    upcall_loop *loop = new_loop();
    int listener = (int)complete(loop, upcall_op_socket(AF_INET, SOCK_STREAM, 0)).result;
    upcall_op setup[2] = {upcall_op_bind(listener, ADDRESS(&address), sizeof address), upcall_op_listen(listener, 5)};
    setup[0].flags = UPCALL_LINK;
    submit_many(loop, setup, 2, &rec, NULL);
    run_finals(loop, &rec, 2);
    CHECK(rec.events[0].result == 0 && rec.events[1].result == 0);
    CHECK(getsockname(listener, ADDRESS(&address), &length) == 0);
    upcall_id accepting = submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
    int client = (int)complete(loop, upcall_op_socket(AF_INET, SOCK_STREAM, 0)).result;
    upcall_op talk[4] = {upcall_op_connect(client, ADDRESS(&address), sizeof address),
                         upcall_op_send(client, "ping", 4, 0), upcall_op_shutdown(client, SHUT_WR),
                         upcall_op_recv(client, bytes, sizeof bytes, 0)};
    for (size_t i = 0; i < 3; i++)
        talk[i].flags = UPCALL_LINK;
    upcall_id ids[4];
    submit_many(loop, talk, 4, &rec, ids);
    run_finals(loop, &rec, 6);
    int server = (int)final_of(&rec, accepting).result;
    CHECK(server >= 0);
    CHECK_EQ(final_of(&rec, ids[2]).result, 0);
    ends_with(loop, upcall_op_recv(server, at_server, 4, 0), 4);
    CHECK(memcmp(at_server, "ping", 4) == 0);
    ends_with(loop, upcall_op_recv(server, at_server, 4, 0), 0);
    ends_with(loop, upcall_op_send(server, "pong", 4, 0), 4);
    ends_with(loop, upcall_op_close(server), 0);
    run_finals(loop, &rec, 7);
    CHECK_EQ(final_of(&rec, ids[3]).result, 4);
    CHECK(memcmp(bytes, "pong", 4) == 0);
    ends_with(loop, upcall_op_recv(client, bytes, 4, 0), 0);
    ends_with(loop, upcall_op_close(client), 0);
    ends_with(loop, upcall_op_close(listener), 0);
    free_loop(loop);
    forget(&rec);
}

/* ---- accept. ---- */

TEST(accept_on_what_does_not_listen_is_an_error_at_once) {
    int fds[2];
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    BOTH(nonblocking) {
        static const struct { int domain, type, error; } rows[] = {
            {AF_INET, SOCK_STREAM, EINVAL}, {AF_UNIX, SOCK_STREAM, EINVAL}, {AF_INET, SOCK_DGRAM, EOPNOTSUPP}};
        for (size_t i = 0; i < COUNT_OF(rows); i++) {
            int fd = in_mode(new_socket(rows[i].domain, rows[i].type), nonblocking);
            ends_with(loop, upcall_op_accept(fd, NULL, NULL, 0), -rows[i].error);
            close(fd);
        }
        ends_with(loop, upcall_op_accept(in_mode(fds[nonblocking], nonblocking), NULL, NULL, 0), -EINVAL);
        upcall_op op = upcall_op_accept(fds[nonblocking], NULL, NULL, 0);
        op.flags = UPCALL_MULTISHOT;
        ends_with(loop, op, -EINVAL);
    }
    free_loop(loop);
}

/* Room for less than the address: it is cut, and the length tells how long it is. */
TEST(accept_cuts_an_address_that_has_no_room) {
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct sockaddr_in address;
        uint8_t room[sizeof(struct sockaddr_in)];
        socklen_t length;
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 4);
        for (socklen_t given = 0; given <= 8; given += 4) {
            int client = tcp_connected_to(&address);
            memset(room, 0xee, sizeof room);
            length = given;
            int64_t fd = complete(loop, upcall_op_accept(listener, ADDRESS(room), &length, 0)).result;
            CHECK(fd >= 0);
            CHECK_EQ(length, sizeof(struct sockaddr_in));
            for (size_t i = given; i < sizeof room; i++)
                CHECK_EQ(room[i], 0xee);
            close((int)fd);
            close(client);
        }
        int client = tcp_connected_to(&address);
        length = sizeof room;
        int64_t fd = complete(loop, upcall_op_accept(listener, NULL, &length, 0)).result; /* as accept(2): not used */
        CHECK(fd >= 0);
        close((int)fd);
        close(client);
        close(listener);
    }
    free_loop(loop);
}

/* Hazard 34: a listener that is shut down ends what waits on it. */
TEST(a_listener_that_is_shut_down_ends_its_accepts) {
    upcall_loop *loop = new_loop();
    for (int multishot = 0; multishot < 2; multishot++) {
        BOTH(nonblocking) {
            struct sockaddr_in address;
            struct recorder rec = {0};
            int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 4);
            upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
            op.flags = multishot ? UPCALL_MULTISHOT : 0;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            ends_with(loop, upcall_op_shutdown(listener, SHUT_RD), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, -EINVAL);
            CHECK_EQ(rec.count, 1);
            close(listener);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(one_multishot_accept_takes_every_connection) {
    enum { CLIENTS = 20 };
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct recorder rec = {0};
        int clients[CLIENTS];
        upcall_loop *loop = new_loop();
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, CLIENTS);
        upcall_op op = upcall_op_accept(listener, NULL, NULL, SOCK_NONBLOCK);
        op.flags = UPCALL_MULTISHOT;
        upcall_id id = submit_one(loop, op, &rec);
        for (size_t i = 0; i < CLIENTS; i++) {
            clients[i] = tcp_connected_to(&address);
            if (i % 5 == 0)
                run_until(loop, &rec, i + 1);
        }
        run_until(loop, &rec, CLIENTS);
        no_more(loop, &rec);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        CHECK_EQ(rec.count, CLIENTS + 1);
        for (size_t i = 0; i < CLIENTS; i++) {
            CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
            CHECK_EQ(rec.events[i].id, id);
            CHECK(rec.events[i].result >= 0);
            CHECK(is_cloexec((int)rec.events[i].result) && has_nonblock((int)rec.events[i].result));
            close((int)rec.events[i].result);
            close(clients[i]);
        }
        CHECK_EQ(has_nonblock(listener), nonblocking);
        int late = tcp_connected_to(&address); /* nobody takes it any more */
        no_more(loop, &rec);
        CHECK(is_readable(listener, 0));
        close(late);
        close(listener);
        free_loop(loop);
        forget(&rec);
    }
}

/* Hazard 29: a one-shot accept ends with the shortage, the connection stays queued, and where nothing is pending it
   waits. */
TEST(accept_without_a_free_descriptor_is_EMFILE_and_loses_no_connection) {
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct recorder rec = {0};
        struct rlimit before, limit;
        upcall_loop *loop = new_loop();
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 4);
        int client = tcp_connected_to(&address);
        int64_t first = complete(loop, upcall_op_accept(listener, NULL, NULL, 0)).result;
        CHECK(first >= 0);
        CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
        limit = before;
        int second = tcp_connected_to(&address);
        int lowest = dup(STDOUT_FILENO);
        close(lowest);
        limit.rlim_cur = (rlim_t)lowest;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        ends_with(loop, upcall_op_accept(listener, NULL, NULL, 0), -EMFILE);
        CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
        int64_t third = complete(loop, upcall_op_accept(listener, NULL, NULL, 0)).result;
        CHECK(third >= 0);
        CHECK(send(second, "x", 1, 0) == 1);
        CHECK(is_readable((int)third, 1000));

        lowest = dup(STDOUT_FILENO);
        close(lowest);
        limit.rlim_cur = (rlim_t)lowest;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        upcall_id waiting = submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
        waits_without_spinning(loop, &rec);
        CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
        int last = tcp_connected_to(&address);
        run_finals(loop, &rec, 1);
        CHECK(final_of(&rec, waiting).result >= 0);
        close((int)final_of(&rec, waiting).result);
        close((int)first);
        close((int)third);
        close(client);
        close(second);
        close(last);
        close(listener);
        free_loop(loop);
        forget(&rec);
    }
}

/* Hazard 29: a multishot accept tells once, keeps the processor free, and goes on. */
TEST(a_multishot_accept_outlives_a_shortage_of_descriptors) {
    enum { CLIENTS = 3 };
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct recorder rec = {0};
        struct rlimit before, limit;
        int clients[CLIENTS];
        upcall_loop *loop = new_loop();
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 8);
        int warm = tcp_connected_to(&address);
        int64_t first = complete(loop, upcall_op_accept(listener, NULL, NULL, 0)).result;
        CHECK(first >= 0);
        for (size_t i = 0; i < CLIENTS; i++)
            clients[i] = tcp_connected_to(&address);
        CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
        limit = before;
        int lowest = dup(STDOUT_FILENO);
        close(lowest);
        limit.rlim_cur = (rlim_t)lowest;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
        op.flags = UPCALL_MULTISHOT;
        upcall_id id = submit_one(loop, op, &rec);
        run_until(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, -EMFILE);
        CHECK_EQ(rec.events[0].flags, UPCALL_MORE);
        waits_without_spinning(loop, &rec);
        CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
        run_until(loop, &rec, 1 + CLIENTS);
        for (size_t i = 1; i <= CLIENTS; i++) {
            CHECK(rec.events[i].result >= 0);
            CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
            close((int)rec.events[i].result);
            close(clients[i - 1]);
        }
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        close((int)first);
        close(warm);
        close(listener);
        free_loop(loop);
        forget(&rec);
    }
}

/* Hazard 30: an accepted descriptor is delivered or closed, never leaked. */
TEST(an_accept_that_races_with_cancel_leaks_nothing) {
    warm_up();
    BOTH(nonblocking) {
        struct sockaddr_in address;
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 64);
        int before = open_fd_count();
        upcall_loop *loop = new_loop();
        size_t delivered = 0, cancelled = 0;
        for (int round = 0; round < 200; round++) {
            struct recorder rec = {0};
            upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
            op.flags = round % 2 ? UPCALL_MULTISHOT : 0;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            int client = tcp_connected_to(&address);
            for (int i = 0; i < round % 3; i++)
                CHECK(upcall_poll(loop, 0) >= 0);
            int rc = upcall_cancel(loop, id);
            CHECK(rc == 0 || rc == -ENOENT);
            run_finals(loop, &rec, 1);
            final_of(&rec, id);
            size_t before_this = delivered;
            for (size_t i = 0; i < rec.count; i++) {
                CHECK(rec.events[i].result >= 0 || rec.events[i].result == -ECANCELED);
                if (rec.events[i].result >= 0) {
                    close((int)rec.events[i].result);
                    delivered++;
                }
            }
            /* What was not delivered is still in the queue, or comes there when TCP has noted its client's last word. */
            if (is_readable(listener, delivered == before_this ? (int)(PATIENCE_NS / MS(1)) : 0)) {
                int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
                CHECK(fd >= 0);
                close(fd);
                cancelled++;
            }
            CHECK_EQ(delivered + cancelled, round + 1);
            reset_on_close(client);
            close(client);
            forget(&rec);
        }
        free_loop(loop);
        CHECK_EQ(open_fd_count(), before);
        close(listener);
    }
}

/* ---- connect: hazards rows 26, 27, 28. ---- */

TEST(connect_answers_as_a_careful_program_does) { /* hazards row 27 */
    upcall_loop *loop = new_loop();
    enter_scratch();
    struct sockaddr_in dead, live;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_un missing = unix_name("missing"), stale = unix_name("stale"), datagram = unix_name("datagram");
    struct sockaddr_un path = unix_name("socket");
    close(tcp_listener(&dead, 0, 1));
    int listener = tcp_listener(&live, 0, 16);
    close(unix_listener("stale", 1));
    int unix_server = unix_listener("socket", 16);
    int receiver = new_socket(AF_UNIX, SOCK_DGRAM);
    CHECK(bind(receiver, ADDRESS(&datagram), sizeof datagram) == 0);
    const struct { int domain, type; const void *address; socklen_t length; int error; } rows[] = {
        {AF_INET, SOCK_STREAM, &live, sizeof live, 0},
        {AF_INET, SOCK_DGRAM, &live, sizeof live, 0},
        {AF_INET, SOCK_DGRAM, &dead, sizeof dead, 0},
        {AF_UNIX, SOCK_STREAM, &path, sizeof path, 0},
        {AF_UNIX, SOCK_DGRAM, &datagram, sizeof datagram, 0},
        {AF_INET, SOCK_STREAM, &dead, sizeof dead, ECONNREFUSED},
        {AF_INET, SOCK_STREAM, &six, sizeof six, EAFNOSUPPORT},
        {AF_UNIX, SOCK_STREAM, &live, sizeof live, EINVAL},
        {AF_UNIX, SOCK_STREAM, &missing, sizeof missing, ENOENT},
        {AF_UNIX, SOCK_STREAM, &stale, sizeof stale, ECONNREFUSED},
        {AF_UNIX, SOCK_STREAM, &datagram, sizeof datagram, EPROTOTYPE},
        {AF_UNIX, SOCK_DGRAM, &path, sizeof path, EPROTOTYPE},
        {AF_UNIX, SOCK_DGRAM, &missing, sizeof missing, ENOENT},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        BOTH(nonblocking) {
            int fd = in_mode(new_socket(rows[i].domain, rows[i].type), nonblocking);
            upcall_op op = upcall_op_connect(fd, rows[i].address, rows[i].length);
            ends_with(loop, op, -rows[i].error);
            CHECK_EQ(is_connected(fd), rows[i].error == 0);
            CHECK_EQ(option(fd, SO_ERROR), 0); /* it was read */
            if (rows[i].error == 0 && rows[i].type == SOCK_STREAM)
                ends_with(loop, op, -EISCONN); /* a second connect */
            if (rows[i].error == 0 && rows[i].type == SOCK_DGRAM)
                ends_with(loop, op, 0);
            CHECK_EQ(has_nonblock(fd), nonblocking);
            close(fd);
        }
    }
    ends_with(loop, upcall_op_connect(listener, ADDRESS(&live), sizeof live), -EISCONN); /* it listens */
    CHECK_EQ(option(unix_server, SO_ACCEPTCONN), 1);
    leave_scratch();
    free_loop(loop);
}

TEST(a_connected_udp_socket_is_dissolved_by_AF_UNSPEC) {
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct sockaddr none = {.sa_family = AF_UNSPEC};
        int server = udp_socket(&address);
        int fd = in_mode(new_socket(AF_INET, SOCK_DGRAM), nonblocking);
        ends_with(loop, upcall_op_connect(fd, ADDRESS(&address), sizeof address), 0);
        CHECK(is_connected(fd));
        ends_with(loop, upcall_op_connect(fd, &none, sizeof none), 0);
        CHECK(!is_connected(fd));
        close(fd);
        close(server);
    }
    free_loop(loop);
}

/* A refusal leaves the socket as it was, so that the program may try another address. */
TEST(a_refused_socket_may_be_connected_again) { /* hazards row 27 */
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct sockaddr_in dead, live;
        close(tcp_listener(&dead, 0, 1));
        int listener = tcp_listener(&live, 0, 4);
        int fd = in_mode(new_socket(AF_INET, SOCK_STREAM), nonblocking);
        ends_with(loop, upcall_op_connect(fd, ADDRESS(&dead), sizeof dead), -ECONNREFUSED);
        ends_with(loop, upcall_op_connect(fd, ADDRESS(&live), sizeof live), 0);
        CHECK(is_connected(fd));
        close(fd);
        close(listener);
    }
    free_loop(loop);
}

/* A TCP listener whose queue is full, so that a further connect gets no answer. `*queued`: the connection in it. */
static int full_tcp_listener(struct sockaddr_in *address, int *queued) {
    int listener = tcp_listener(address, 0, 0);
    *queued = tcp_connected_to(address);
    for (int i = 0; i < 16; i++) {
        int probe = new_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
        CHECK(connect(probe, ADDRESS(address), sizeof *address) == -1 && errno == EINPROGRESS);
        struct pollfd p = {probe, POLLOUT, 0};
        bool answered = poll(&p, 1, 50) == 1;
        if (!answered) {
            close(probe);
            return listener;
        }
    }
    SKIP("this kernel's queue of connections has no end");
}

TEST(a_connect_without_answer_is_cancelled_or_expires) {
    warm_up();
    for (int expires = 0; expires < 2; expires++) {
        BOTH(nonblocking) {
            struct sockaddr_in address;
            struct recorder rec = {0};
            int queued, listener = full_tcp_listener(&address, &queued);
            int before = open_fd_count();
            upcall_loop *loop = new_loop();
            int fd = in_mode(new_socket(AF_INET, SOCK_STREAM), nonblocking);
            upcall_op op = upcall_op_connect(fd, ADDRESS(&address), sizeof address);
            op.timeout_ns = expires ? (uint64_t)MS(60) : 0;
            uint64_t start_ns = now_ns();
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            if (!expires) {
                CHECK_EQ(upcall_poll(loop, MS(50)), 0);
                CHECK_EQ(upcall_cancel(loop, id), 0);
            }
            run_finals(loop, &rec, 1);
            CHECK(!expires || now_ns() - start_ns >= (uint64_t)MS(60));
            CHECK_EQ(rec.count, 1);
            CHECK_EQ(final_of(&rec, id).result, expires ? -ETIMEDOUT : -ECANCELED);
            CHECK_EQ(final_of(&rec, id).flags, expires ? UPCALL_EXPIRED : 0);
            CHECK(!is_connected(fd));
            CHECK_EQ(has_nonblock(fd), nonblocking);
            ends_with(loop, upcall_op_close(fd), 0); /* its state is undefined: it can only be closed (hazards row 26) */
            no_more(loop, &rec);
            free_loop(loop);
            CHECK_EQ(open_fd_count(), before);
            close(queued);
            close(listener);
            forget(&rec);
        }
    }
}

/* The kernel asks again after a second. */
TEST(a_connect_without_answer_succeeds_when_there_is_room) {
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        int queued, listener = full_tcp_listener(&address, &queued);
        int fd = in_mode(new_socket(AF_INET, SOCK_STREAM), nonblocking);
        upcall_id id = submit_one(loop, upcall_op_connect(fd, ADDRESS(&address), sizeof address), &rec);
        waits_without_spinning(loop, &rec);
        int first = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        CHECK(first >= 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, 0);
        CHECK(is_connected(fd));
        close(first);
        close(fd);
        close(queued);
        close(listener);
        free_loop(loop);
        forget(&rec);
    }
}

/* Hazard 28: epoll says "writable" of such a socket all the time, which must not keep the processor busy. */
TEST(waiting_for_a_full_unix_listener_does_not_spin) {
    enum { CLIENTS = 5 };
    enter_scratch();
    BOTH(nonblocking) {
        struct sockaddr_un address = unix_name("socket");
        struct recorder rec = {0};
        int clients[CLIENTS];
        upcall_id ids[CLIENTS];
        upcall_loop *loop = new_loop();
        int listener = unix_listener("socket", 0), first = unix_connected_to("socket");
        for (size_t i = 0; i < CLIENTS; i++) {
            clients[i] = in_mode(new_socket(AF_UNIX, SOCK_STREAM), nonblocking);
            ids[i] = submit_one(loop, upcall_op_connect(clients[i], ADDRESS(&address), sizeof address), &rec);
        }
        waits_without_spinning(loop, &rec);
        for (size_t i = 0; i < CLIENTS; i++) {
            int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            CHECK(fd >= 0);
            run_finals(loop, &rec, i + 1);
            CHECK_EQ(rec.events[i].result, 0);
            close(fd);
        }
        check_finals(&rec, ids, CLIENTS);
        for (size_t i = 0; i < CLIENTS; i++) {
            CHECK(is_connected(clients[i]));
            close(clients[i]);
        }
        close(first);
        close(listener);
        CHECK(unlink("socket") == 0);
        free_loop(loop);
        forget(&rec);
    }
    leave_scratch();
}

/* Waiting connects and accepts on blocking sockets take no thread from files. */
TEST(waiting_connects_and_accepts_do_not_hold_up_files) {
    enum { WAITING = 24 };
    struct sockaddr_un address = unix_name("socket");
    struct recorder rec = {0}, files = {0};
    struct statx found;
    upcall_config config = default_config();
    config.workers = 2;
    upcall_loop *loop = loop_with(&config);
    enter_scratch();
    int listener = unix_listener("socket", 0), first = unix_connected_to("socket");
    for (size_t i = 0; i < WAITING; i++) {
        struct sockaddr_in unused;
        submit_one(loop, upcall_op_connect(new_socket(AF_UNIX, SOCK_STREAM), ADDRESS(&address), sizeof address), &rec);
        submit_one(loop, upcall_op_accept(tcp_listener(&unused, 0, 1), NULL, NULL, 0), &rec);
    }
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    int file = temp_file(10);
    submit_one(loop, upcall_op_fsync(file), &files);
    submit_one(loop, upcall_op_statx(AT_FDCWD, ".", 0, STATX_TYPE, &found), &files);
    run_finals(loop, &files, 2);
    CHECK(files.events[0].result == 0 && files.events[1].result == 0);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_cancel_all(loop), 2 * WAITING);
    run_finals(loop, &rec, (size_t)2 * WAITING);
    for (size_t i = 0; i < rec.count; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    close(first);
    close(listener);
    leave_scratch();
    free_loop(loop);
    forget(&rec);
    forget(&files);
}

/* Hazard 18: signals that interrupt the kernel's work do not show in any result. */
TEST(signals_do_not_show_in_results) {
    enter_scratch();
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct sockaddr_un path = unix_name("socket");
        struct recorder rec = {0};
        char bytes[2];
        upcall_loop *loop = new_loop();
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 4);
        int full = unix_listener("socket", 0), first = unix_connected_to("socket");
        int client = in_mode(new_socket(AF_UNIX, SOCK_STREAM), nonblocking), fds[2];
        unix_pair(fds);
        in_mode(fds[0], nonblocking);
        upcall_id connecting = submit_one(loop, upcall_op_connect(client, ADDRESS(&path), sizeof path), &rec);
        upcall_id accepting = submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
        upcall_op op = upcall_op_recv(fds[0], bytes, 2, 0);
        op.flags = UPCALL_FULL;
        upcall_id receiving = submit_one(loop, op, &rec);
        start_alarms();
        for (uint64_t limit = now_ns() + (uint64_t)MS(50); now_ns() < limit;)
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK_EQ(rec.count, 0);
        write_all(fds[1], "a", 1);
        for (uint64_t limit = now_ns() + (uint64_t)MS(20); now_ns() < limit;)
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK_EQ(rec.count, 0);
        write_all(fds[1], "b", 1);
        stop_alarms();
        int other = tcp_connected_to(&address), served = accept4(full, NULL, NULL, SOCK_CLOEXEC);
        CHECK(served >= 0);
        start_alarms();
        run_finals(loop, &rec, 3);
        stop_alarms();
        CHECK(signals_seen > 0);
        CHECK_EQ(final_of(&rec, connecting).result, 0);
        CHECK(final_of(&rec, accepting).result >= 0);
        CHECK_EQ(final_of(&rec, receiving).result, 2);
        close((int)final_of(&rec, accepting).result);
        close(other);
        close(served);
        close(first);
        close(client);
        close(full);
        close(listener);
        close_pair(fds);
        CHECK(unlink("socket") == 0);
        free_loop(loop);
        forget(&rec);
    }
    leave_scratch();
}

/* ---- recv and send: flags. ---- */

TEST(peeking_takes_nothing) {
    static const int sockets[] = {UNIX, TCP, DATAGRAM};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            char bytes[8] = {0};
            struct iovec part = {bytes, 3};
            struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
            struct recorder rec = {0};
            int fds[2];
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            upcall_id id = submit_one(loop, upcall_op_recv(fds[0], bytes, 3, MSG_PEEK), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            CHECK(send(fds[1], "abcdef", 6, 0) == 6);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, 3);
            CHECK(memcmp(bytes, "abc", 3) == 0);
            ends_with(loop, upcall_op_recvmsg(fds[0], &msg, MSG_PEEK), 3);
            ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 6);
            CHECK(memcmp(bytes, "abcdef", 6) == 0);
            CHECK(!is_readable(fds[0], 0));
            close_pair(fds);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(MSG_TRUNC_tells_the_whole_length_of_a_datagram) {
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        char bytes[64];
        struct iovec part = {bytes, 10};
        struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
        int fds[2];
        dgram_pair(fds);
        in_mode(fds[0], nonblocking);
        for (int i = 0; i < 4; i++)
            CHECK(send(fds[1], "0123456789abcdefghijklmnopqrstuv", 32, 0) == 32);
        memset(bytes, 'x', sizeof bytes);
        ends_with(loop, upcall_op_recv(fds[0], bytes, 10, MSG_TRUNC), 32);
        CHECK(memcmp(bytes, "0123456789xx", 12) == 0);
        ends_with(loop, upcall_op_recvmsg(fds[0], &msg, MSG_TRUNC), 32);
        CHECK(msg.msg_flags & MSG_TRUNC);
        ends_with(loop, upcall_op_recvmsg(fds[0], &msg, 0), 10);
        CHECK(msg.msg_flags & MSG_TRUNC); /* told in any case */
        ends_with(loop, upcall_op_recv(fds[0], bytes, 10, 0), 10);
        CHECK(!is_readable(fds[0], 0));
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(SO_RCVTIMEO_and_SO_SNDTIMEO_do_not_apply) {
    BOTH(nonblocking) {
        struct timeval short_time = {0, 20000};
        struct recorder rec = {0};
        char byte;
        upcall_loop *loop = new_loop();
        int fds[2];
        unix_pair(fds);
        in_mode(fds[0], nonblocking);
        CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time) == 0);
        CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDTIMEO, &short_time, sizeof short_time) == 0);
        size_t filled = fill_up(fds[0]);
        upcall_id reading = submit_one(loop, upcall_op_recv(fds[0], &byte, 1, 0), &rec);
        upcall_id sending = submit_one(loop, upcall_op_send(fds[0], "s", 1, 0), &rec);
        waits_without_spinning(loop, &rec);
        CHECK(send(fds[1], "r", 1, 0) == 1);
        take(fds[1], filled);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, reading).result, 1);
        CHECK_EQ(final_of(&rec, sending).result, 1);
        close_pair(fds);
        free_loop(loop);
        forget(&rec);
    }
}

/* The same for what has no per-call way not to wait. */
TEST(SO_RCVTIMEO_does_not_end_an_accept) {
    BOTH(nonblocking) {
        struct timeval short_time = {0, 20000};
        struct sockaddr_in address;
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 4);
        CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time) == 0);
        upcall_id id = submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
        waits_without_spinning(loop, &rec);
        int client = tcp_connected_to(&address);
        run_finals(loop, &rec, 1);
        CHECK(final_of(&rec, id).result >= 0);
        close((int)final_of(&rec, id).result);
        close(client);
        close(listener);
        free_loop(loop);
        forget(&rec);
    }
}

/* ---- recv and send: length 0, hazard 21. ---- */

TEST(a_stream_recv_of_length_0_ends_at_once_with_0) {
    static const int sockets[] = {UNIX, TCP};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            char bytes[4];
            int fds[2];
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            for (int full = 0; full < 2; full++) {
                upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
                op.flags = full ? UPCALL_FULL : 0;
                ends_with(loop, op, 0);
                CHECK(send(fds[1], "ab", 2, 0) == 2);
                ends_with(loop, op, 0);
                ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 2); /* nothing was taken */
                op = upcall_op_send(fds[0], NULL, 0, 0);
                op.flags = full ? UPCALL_FULL : 0;
                ends_with(loop, op, 0);
            }
            CHECK(!is_readable(fds[1], 0));
            close_pair(fds);
        }
    }
    free_loop(loop);
}

/* With a flag it is a question to the socket, which waits for an answer. */
TEST(a_stream_recv_of_length_0_with_flags_waits_for_data) {
    static const int sockets[] = {UNIX, TCP};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            char bytes[4];
            struct recorder rec = {0};
            int fds[2];
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            upcall_id id = submit_one(loop, upcall_op_recv(fds[0], NULL, 0, MSG_PEEK), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            CHECK(send(fds[1], "ab", 2, 0) == 2);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, 0);
            ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 2);
            close_pair(fds);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(an_empty_datagram_is_a_datagram) {
    static const int types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        BOTH(nonblocking) {
            char bytes[8];
            struct recorder rec = {0};
            struct msghdr empty = {0};
            int fds[2];
            CHECK(socketpair(AF_UNIX, types[i] | SOCK_CLOEXEC, 0, fds) == 0);
            in_mode(fds[0], nonblocking);
            in_mode(fds[1], nonblocking);
            upcall_id id = submit_one(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            ends_with(loop, upcall_op_send(fds[1], NULL, 0, 0), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, 0);
            ends_with(loop, upcall_op_sendmsg(fds[1], &empty, 0), 0);
            ends_with(loop, upcall_op_send(fds[1], "abc", 3, 0), 3);
            ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 0);
            ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 3);
            close_pair(fds);
            forget(&rec);
        }
    }
    free_loop(loop);
}

/* Receiving into nothing waits for a datagram and takes it. */
TEST(a_datagram_recv_of_length_0_takes_a_datagram) {
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        char bytes[8];
        struct recorder rec = {0};
        struct msghdr nothing = {0};
        int fds[2];
        dgram_pair(fds);
        in_mode(fds[0], nonblocking);
        upcall_id id = submit_one(loop, upcall_op_recv(fds[0], NULL, 0, 0), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        CHECK(send(fds[1], "one", 3, 0) == 3 && send(fds[1], "second", 6, 0) == 6 && send(fds[1], "3", 1, 0) == 1);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, 0);
        ends_with(loop, upcall_op_recvmsg(fds[0], &nothing, 0), 0);
        CHECK(nothing.msg_flags & MSG_TRUNC);
        ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 1);
        CHECK_EQ(bytes[0], '3');
        close_pair(fds);
        forget(&rec);
    }
    free_loop(loop);
}

/* ---- recv and send: lengths, hazard 22. ---- */

TEST(lengths_above_one_calls_limit_are_taken) {
    static const size_t lengths[] = {0x7ffff000, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000};
    static const int sockets[] = {UNIX, TCP, DATAGRAM};
    upcall_loop *loop = new_loop();
    uint8_t *memory = vast_memory((size_t)5 << 30);
    for (size_t k = 0; k < COUNT_OF(lengths); k++) {
        for (size_t i = 0; i < COUNT_OF(sockets); i++) {
            BOTH(nonblocking) {
                struct iovec parts[2] = {{memory, lengths[k] - 1}, {memory + lengths[k] - 1, 1}};
                struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
                int fds[2];
                make_stream(sockets[i], fds);
                in_mode(fds[0], nonblocking);
                CHECK(send(fds[1], "abcde", 5, 0) == 5);
                ends_with(loop, upcall_op_recv(fds[0], memory, lengths[k], 0), 5);
                CHECK(send(fds[1], "abcde", 5, 0) == 5);
                ends_with(loop, upcall_op_recvmsg(fds[0], &msg, 0), 5);
                if (sockets[i] == DATAGRAM) {
                    ends_with(loop, upcall_op_send(fds[0], memory, lengths[k], 0), -EMSGSIZE);
                } else { /* as much as there is room for */
                    struct record final = complete(loop, upcall_op_send(fds[0], memory, lengths[k], 0));
                    CHECK(final.result > 0 && (uint64_t)final.result < lengths[k]);
                    take(fds[1], (size_t)final.result);
                    CHECK(!is_readable(fds[1], 10));
                }
                close_pair(fds);
            }
        }
    }
    free_loop(loop);
}

TEST(a_datagram_that_is_too_long_is_EMSGSIZE) {
    static char big[70000];
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct sockaddr_in address;
        struct iovec part = {big, sizeof big};
        struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
        int server = udp_socket(&address);
        int fd = in_mode(new_socket(AF_INET, SOCK_DGRAM), nonblocking);
        CHECK(connect(fd, ADDRESS(&address), sizeof address) == 0);
        ends_with(loop, upcall_op_send(fd, big, sizeof big, 0), -EMSGSIZE);
        ends_with(loop, upcall_op_sendmsg(fd, &msg, 0), -EMSGSIZE);
        upcall_op whole = upcall_op_send(fd, big, sizeof big, 0);
        whole.flags = UPCALL_FULL;
        ends_with(loop, whole, -EMSGSIZE);
        ends_with(loop, upcall_op_send(fd, big, 1000, 0), 1000);
        close(fd);
        close(server);
    }
    free_loop(loop);
}

/* ---- UPCALL_FULL, hazard 20. ---- */

#define LOTS (3u << 20)

TEST(a_full_recv_ends_once_with_all_of_it) {
    static const int sockets[] = {UNIX, TCP};
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (int message = 0; message < 2; message++) {
            BOTH(nonblocking) {
                uint8_t bytes[100], sent[100];
                struct iovec parts[3] = {{bytes, 30}, {bytes + 30, 1}, {bytes + 31, 69}};
                struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 3};
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(sockets[i], fds);
                in_mode(fds[0], nonblocking);
                fill_pattern(sent, sizeof sent, 0);
                upcall_op op =
                    message ? upcall_op_recvmsg(fds[0], &msg, 0) : upcall_op_recv(fds[0], bytes, sizeof bytes, 0);
                op.flags = UPCALL_FULL;
                upcall_id id = submit_one(loop, op, &rec);
                for (size_t done = 0; done < sizeof sent; done += 10) {
                    start_all(loop);
                    CHECK_EQ(rec.count, 0);
                    CHECK(send(fds[1], sent + done, 10, 0) == 10);
                }
                run_finals(loop, &rec, 1);
                CHECK_EQ(rec.count, 1);
                CHECK_EQ(final_of(&rec, id).result, 100);
                CHECK_EQ(final_of(&rec, id).transferred, 100);
                CHECK(has_pattern(bytes, sizeof bytes, 0));
                CHECK(send(fds[1], sent, 10, 0) == 10);
                close(fds[1]); /* and short where the stream ends */
                ends_with(loop, op, 10);
                ends_with(loop, op, 0);
                close(fds[0]);
                free_loop(loop);
                forget(&rec);
            }
        }
    }
}

TEST(an_interrupted_full_recv_tells_what_it_received) {
    static const int sockets[] = {UNIX, TCP};
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (int message = 0; message < 2; message++) {
            for (int expires = 0; expires < 2; expires++) {
                BOTH(nonblocking) {
                    char bytes[100];
                    struct iovec part = {bytes, sizeof bytes};
                    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
                    struct recorder rec = {0};
                    upcall_loop *loop = new_loop();
                    int fds[2];
                    make_stream(sockets[i], fds);
                    in_mode(fds[0], nonblocking);
                    upcall_op op =
                        message ? upcall_op_recvmsg(fds[0], &msg, 0) : upcall_op_recv(fds[0], bytes, sizeof bytes, 0);
                    op.flags = UPCALL_FULL;
                    op.timeout_ns = expires ? (uint64_t)MS(50) : 0;
                    CHECK(send(fds[1], "0123456789", 10, 0) == 10);
                    upcall_id id = submit_one(loop, op, &rec);
                    start_all(loop);
                    CHECK(!is_readable(fds[0], 0));
                    CHECK_EQ(rec.count, 0);
                    if (!expires)
                        CHECK_EQ(upcall_cancel(loop, id), 0);
                    run_finals(loop, &rec, 1);
                    CHECK_EQ(rec.count, 1);
                    CHECK_EQ(final_of(&rec, id).result, expires ? -ETIMEDOUT : -ECANCELED);
                    CHECK_EQ(final_of(&rec, id).flags, expires ? UPCALL_EXPIRED : 0);
                    CHECK_EQ(final_of(&rec, id).transferred, 10);
                    CHECK(memcmp(bytes, "0123456789", 10) == 0);
                    CHECK(send(fds[1], "x", 1, 0) == 1);
                    ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 1);
                    close_pair(fds);
                    free_loop(loop);
                    forget(&rec);
                }
            }
        }
    }
}

struct drain {
    int fd;
    uint8_t *into;
    size_t count;
};

static void *drain_slowly(void *arg) {
    struct drain *drain = arg;
    for (size_t done = 0; done < drain->count;) {
        ssize_t n = recv(drain->fd, drain->into + done, drain->count - done < 60000 ? drain->count - done : 60000, 0);
        CHECK(n > 0);
        done += (size_t)n;
    }
    return NULL;
}

TEST(a_full_send_ends_once_with_all_of_it) {
    static const int sockets[] = {UNIX, TCP};
    uint8_t *sent = malloc(LOTS), *got = malloc(LOTS);
    fill_pattern(sent, LOTS, 0);
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (int message = 0; message < 2; message++) {
            BOTH(nonblocking) {
                struct iovec parts[3] = {{sent, 100001}, {sent + 100001, 0}, {sent + 100001, LOTS - 100001}};
                struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 3};
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(sockets[i], fds);
                in_mode(fds[0], nonblocking);
                memset(got, 0, LOTS);
                struct drain drain = {fds[1], got, LOTS};
                upcall_op op = message ? upcall_op_sendmsg(fds[0], &msg, 0) : upcall_op_send(fds[0], sent, LOTS, 0);
                op.flags = UPCALL_FULL;
                upcall_id id = submit_one(loop, op, &rec);
                memset(parts, 0xff, sizeof parts); /* copied (hazard 37) */
                memset(&msg, 0xff, sizeof msg);
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                pthread_t reader = start(drain_slowly, &drain);
                run_finals(loop, &rec, 1);
                CHECK_EQ(rec.count, 1);
                CHECK_EQ(final_of(&rec, id).result, LOTS);
                join(reader);
                CHECK(memcmp(got, sent, LOTS) == 0);
                close_pair(fds);
                free_loop(loop);
                forget(&rec);
            }
        }
    }
}

TEST(an_interrupted_full_send_tells_what_it_sent) {
    static const int sockets[] = {UNIX, TCP};
    uint8_t *sent = malloc(LOTS), *got = malloc(LOTS);
    fill_pattern(sent, LOTS, 0);
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (int expires = 0; expires < 2; expires++) {
            BOTH(nonblocking) {
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(sockets[i], fds);
                in_mode(fds[0], nonblocking);
                upcall_op op = upcall_op_send(fds[0], sent, LOTS, 0);
                op.flags = UPCALL_FULL;
                op.timeout_ns = expires ? (uint64_t)MS(50) : 0;
                upcall_id id = submit_one(loop, op, &rec);
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                if (!expires)
                    CHECK_EQ(upcall_cancel(loop, id), 0);
                run_finals(loop, &rec, 1);
                struct record final = final_of(&rec, id);
                CHECK_EQ(final.result, expires ? -ETIMEDOUT : -ECANCELED);
                CHECK_EQ(final.flags, expires ? UPCALL_EXPIRED : 0);
                CHECK(final.transferred > 0 && final.transferred < LOTS);
                free_loop(loop);
                read_all(fds[1], got, final.transferred);
                CHECK(memcmp(got, sent, final.transferred) == 0);
                CHECK(!is_readable(fds[1], 20));
                close_pair(fds);
                forget(&rec);
            }
        }
    }
}

TEST(on_a_message_socket_full_is_one_message) {
    static const int types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        BOTH(nonblocking) {
            char bytes[100];
            struct iovec part = {bytes, sizeof bytes};
            struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
            int fds[2];
            CHECK(socketpair(AF_UNIX, types[i] | SOCK_CLOEXEC, 0, fds) == 0);
            in_mode(fds[0], nonblocking);
            CHECK(send(fds[1], "one", 3, 0) == 3 && send(fds[1], "three", 5, 0) == 5 && send(fds[1], "", 0, 0) == 0);
            upcall_op op = upcall_op_recv(fds[0], bytes, sizeof bytes, 0);
            op.flags = UPCALL_FULL;
            ends_with(loop, op, 3);
            op = upcall_op_recvmsg(fds[0], &msg, 0);
            op.flags = UPCALL_FULL;
            ends_with(loop, op, 5);
            ends_with(loop, op, 0);
            op = upcall_op_send(fds[0], "reply", 5, 0);
            op.flags = UPCALL_FULL;
            ends_with(loop, op, 5);
            CHECK_EQ(recv(fds[1], bytes, sizeof bytes, MSG_DONTWAIT), 5);
            close_pair(fds);
        }
    }
    free_loop(loop);
}

/* ---- Ends and errors, hazards 24 and 34. ---- */

TEST(a_socket_without_peer_says_so) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr in = {.msg_iov = &part, .msg_iovlen = 1}, out = in;
    static const struct { int domain, type; int64_t recv, send, shutdown; } rows[] = {
        {AF_INET, SOCK_STREAM, -ENOTCONN, -EPIPE, -ENOTCONN},
        {AF_UNIX, SOCK_STREAM, -EINVAL, -ENOTCONN, 0},
        {AF_UNIX, SOCK_SEQPACKET, -ENOTCONN, -ENOTCONN, 0},
    };
    count_signals_of(SIGPIPE);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        BOTH(nonblocking) {
            int fd = in_mode(new_socket(rows[i].domain, rows[i].type), nonblocking);
            ends_with(loop, upcall_op_recv(fd, &byte, 1, 0), rows[i].recv);
            ends_with(loop, upcall_op_recvmsg(fd, &in, 0), rows[i].recv);
            ends_with(loop, upcall_op_send(fd, &byte, 1, 0), rows[i].send);
            ends_with(loop, upcall_op_sendmsg(fd, &out, 0), rows[i].send);
            ends_with(loop, upcall_op_shutdown(fd, SHUT_RDWR), rows[i].shutdown);
            close(fd);
        }
    }
    BOTH(nonblocking) { /* an unconnected datagram socket may receive from anybody, so it waits */
        struct recorder rec = {0};
        int fd = in_mode(new_socket(AF_INET, SOCK_DGRAM), nonblocking);
        ends_with(loop, upcall_op_send(fd, &byte, 1, 0), -EDESTADDRREQ);
        ends_with(loop, upcall_op_sendmsg(fd, &out, 0), -EDESTADDRREQ);
        upcall_id id = submit_one(loop, upcall_op_recv(fd, &byte, 1, 0), &rec);
        no_more(loop, &rec);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        close(fd);
        forget(&rec);
    }
    free_loop(loop);
    CHECK_EQ(signals_seen, 0);
}

/* A refused datagram shows as an error of the next operation, once. */
TEST(a_refused_datagram_is_ECONNREFUSED) {
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct sockaddr_in dead;
        struct recorder rec = {0};
        char byte;
        close(udp_socket(&dead));
        int fd = in_mode(new_socket(AF_INET, SOCK_DGRAM), nonblocking);
        CHECK(connect(fd, ADDRESS(&dead), sizeof dead) == 0);
        upcall_id id = submit_one(loop, upcall_op_recv(fd, &byte, 1, 0), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        ends_with(loop, upcall_op_send(fd, "x", 1, 0), 1);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, -ECONNREFUSED);
        id = submit_one(loop, upcall_op_recv(fd, &byte, 1, 0), &rec);
        no_more(loop, &rec);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 2);
        close(fd);
        forget(&rec);
    }
    free_loop(loop);
}

/* A reset: -ECONNRESET, then the end, then -EPIPE; and it ends what waits. */
TEST(a_reset_is_ECONNRESET_then_the_end_then_EPIPE) {
    count_signals_of(SIGPIPE);
    upcall_loop *loop = new_loop();
    for (int message = 0; message < 2; message++) {
        BOTH(nonblocking) {
            char byte = 0;
            struct iovec part = {&byte, 1};
            struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
            struct recorder rec = {0};
            int fds[2];
            tcp_pair(fds);
            in_mode(fds[0], nonblocking);
            upcall_op in = message ? upcall_op_recvmsg(fds[0], &msg, 0) : upcall_op_recv(fds[0], &byte, 1, 0);
            upcall_op out = message ? upcall_op_sendmsg(fds[0], &msg, 0) : upcall_op_send(fds[0], &byte, 1, 0);
            upcall_id id = submit_one(loop, in, &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            reset_on_close(fds[1]);
            close(fds[1]);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, -ECONNRESET);
            ends_with(loop, in, 0);
            ends_with(loop, out, -EPIPE);
            ends_with(loop, in, 0);
            close(fds[0]);
            forget(&rec);

            tcp_pair(fds); /* unread data of the other side makes a close a reset, too */
            in_mode(fds[0], nonblocking);
            CHECK(send(fds[0], "unread", 6, 0) == 6);
            CHECK(is_readable(fds[1], 1000));
            close(fds[1]);
            ends_with(loop, upcall_op_recv(fds[0], &byte, 1, 0), -ECONNRESET);
            close(fds[0]);
        }
    }
    free_loop(loop);
    CHECK_EQ(signals_seen, 0);
}

TEST(sending_to_a_peer_that_is_gone_is_EPIPE_and_no_signal) {
    CHECK(signal(SIGPIPE, SIG_DFL) != SIG_ERR); /* it would end this process */
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        char byte = 0;
        struct iovec part = {&byte, 1};
        struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
        struct recorder rec = {0};
        int fds[2];
        unix_pair(fds);
        in_mode(fds[0], nonblocking);
        fill_up(fds[0]);
        upcall_id sending = submit_one(loop, upcall_op_send(fds[0], &byte, 1, 0), &rec);
        upcall_id message = submit_one(loop, upcall_op_sendmsg(fds[0], &msg, 0), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        close(fds[1]);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, sending).result, -EPIPE);
        CHECK_EQ(final_of(&rec, message).result, -EPIPE);
        upcall_op ops[] = {upcall_op_send(fds[0], &byte, 1, 0), upcall_op_send(fds[0], &byte, 1, MSG_NOSIGNAL),
                           upcall_op_sendmsg(fds[0], &msg, 0)};
        for (size_t i = 0; i < COUNT_OF(ops); i++) {
            ends_with(loop, ops[i], -EPIPE);
            ops[i].flags = UPCALL_FULL;
            ends_with(loop, ops[i], -EPIPE);
        }
        close(fds[0]);
        dgram_pair(fds);
        in_mode(fds[0], nonblocking);
        close(fds[1]);
        ends_with(loop, upcall_op_send(fds[0], &byte, 1, 0), -ECONNREFUSED);
        close(fds[0]);
        forget(&rec);
    }
    free_loop(loop);
}

/* ---- shutdown, and the half-close matrix of hazard 34. ---- */

TEST(shutdown_does_each_half) {
    static const int sockets[] = {UNIX, TCP};
    static const int ways[] = {SHUT_RD, SHUT_WR, SHUT_RDWR};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (size_t k = 0; k < COUNT_OF(ways); k++) {
            BOTH(nonblocking) {
                char byte = 0;
                struct recorder rec = {0};
                bool reads_on = ways[k] == SHUT_WR, writes_on = ways[k] == SHUT_RD;
                int fds[2];
                make_stream(sockets[i], fds);
                in_mode(fds[0], nonblocking);
                in_mode(fds[1], nonblocking);
                upcall_id reading = submit_one(loop, upcall_op_recv(fds[0], &byte, 1, 0), &rec);
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                ends_with(loop, upcall_op_shutdown(fds[0], ways[k]), 0);
                if (reads_on) { /* the other direction is as it was */
                    no_more(loop, &rec);
                    ends_with(loop, upcall_op_send(fds[1], "x", 1, 0), 1);
                    run_finals(loop, &rec, 1);
                    CHECK_EQ(final_of(&rec, reading).result, 1);
                } else { /* what waits to receive sees the end */
                    run_finals(loop, &rec, 1);
                    CHECK_EQ(final_of(&rec, reading).result, 0);
                    ends_with(loop, upcall_op_recv(fds[0], &byte, 1, 0), 0);
                    if (sockets[i] == UNIX)
                        ends_with(loop, upcall_op_send(fds[1], "x", 1, 0), -EPIPE);
                }
                if (writes_on) {
                    ends_with(loop, upcall_op_send(fds[0], "y", 1, 0), 1);
                    ends_with(loop, upcall_op_recv(fds[1], &byte, 1, 0), 1);
                } else {
                    ends_with(loop, upcall_op_send(fds[0], "y", 1, 0), -EPIPE);
                    ends_with(loop, upcall_op_recv(fds[1], &byte, 1, 0), 0);
                }
                close_pair(fds);
                forget(&rec);
            }
        }
    }
    free_loop(loop);
}

TEST(shutdown_answers_as_the_system_call_does) {
    int fds[2];
    struct sockaddr_in address;
    upcall_loop *loop = new_loop();
    unix_pair(fds);
    ends_with(loop, upcall_op_shutdown(fds[0], 3), -EINVAL);
    ends_with(loop, upcall_op_shutdown(fds[0], -1), -EINVAL);
    ends_with(loop, upcall_op_shutdown(new_socket(AF_INET, SOCK_STREAM), SHUT_RD), -ENOTCONN);
    ends_with(loop, upcall_op_shutdown(new_socket(AF_INET, SOCK_DGRAM), SHUT_WR), -ENOTCONN);
    ends_with(loop, upcall_op_shutdown(fds[0], SHUT_WR), 0);
    ends_with(loop, upcall_op_shutdown(fds[0], SHUT_WR), 0); /* again */
    ends_with(loop, upcall_op_shutdown(tcp_listener(&address, 0, 1), SHUT_RDWR), 0);
    free_loop(loop);
}

TEST(a_waiting_send_ends_when_its_side_is_shut_down) {
    static const int sockets[] = {UNIX, TCP};
    count_signals_of(SIGPIPE);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            struct recorder rec = {0};
            int fds[2];
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            fill_for_good(sockets[i], fds[0]);
            upcall_id id = submit_one(loop, upcall_op_send(fds[0], "x", 1, 0), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            /* A full unix socket of which only the sending side is shut down shows nothing to poll(2). */
            ends_with(loop, upcall_op_shutdown(fds[0], sockets[i] == UNIX ? SHUT_RDWR : SHUT_WR), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, -EPIPE);
            close_pair(fds);
            forget(&rec);
        }
    }
    free_loop(loop);
    CHECK_EQ(signals_seen, 0);
}

/* One side ends, the other goes on, then ends as well. */
TEST(half_closed_connections_go_on_in_the_other_direction) {
    static const int sockets[] = {UNIX, TCP};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            char bytes[8];
            struct recorder rec = {0};
            int fds[2];
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            in_mode(fds[1], nonblocking);
            upcall_op bye[2] = {upcall_op_send(fds[0], "last", 4, 0), upcall_op_shutdown(fds[0], SHUT_WR)};
            bye[0].flags = UPCALL_LINK;
            submit_many(loop, bye, 2, &rec, NULL);
            run_finals(loop, &rec, 2);
            ends_with(loop, upcall_op_recv(fds[1], bytes, sizeof bytes, 0), 4); /* data before the end */
            ends_with(loop, upcall_op_recv(fds[1], bytes, sizeof bytes, 0), 0);
            ends_with(loop, upcall_op_recv(fds[1], bytes, sizeof bytes, 0), 0); /* and the end again */
            for (int k = 0; k < 3; k++) {
                ends_with(loop, upcall_op_send(fds[1], "reply", 5, 0), 5);
                ends_with(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), 5);
            }
            upcall_id end = submit_one(loop, upcall_op_recv(fds[0], bytes, sizeof bytes, 0), &rec);
            start_all(loop);
            ends_with(loop, upcall_op_close(fds[1]), 0);
            run_finals(loop, &rec, 3);
            CHECK_EQ(final_of(&rec, end).result, 0);
            ends_with(loop, upcall_op_send(fds[0], "x", 1, 0), -EPIPE);
            close(fds[0]);
            forget(&rec);
        }
    }
    free_loop(loop);
}

/* ---- recvmsg and sendmsg. ---- */

TEST(messages_carry_addresses) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    BOTH(nonblocking) {
        for (int family = 0; family < 2; family++) {
            char bytes[16] = {0};
            struct sockaddr_storage from;
            struct sockaddr_un receiver_name = unix_name("receiver"), sender_name = unix_name("sender");
            struct sockaddr_in receiver_port, sender_port;
            struct iovec in_parts[2] = {{bytes, 2}, {bytes + 2, 14}}, out_parts[2] = {{"ab", 2}, {"cdef", 4}};
            struct msghdr in = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = in_parts, .msg_iovlen = 2};
            struct msghdr out = {.msg_iov = out_parts, .msg_iovlen = 2};
            struct recorder rec = {0};
            int receiver, sender;
            if (family == 0) {
                receiver = udp_socket(&receiver_port);
                sender = udp_socket(&sender_port);
                out.msg_name = &receiver_port;
                out.msg_namelen = sizeof receiver_port;
            } else {
                receiver = new_socket(AF_UNIX, SOCK_DGRAM);
                sender = new_socket(AF_UNIX, SOCK_DGRAM);
                CHECK(bind(receiver, ADDRESS(&receiver_name), sizeof receiver_name) == 0);
                CHECK(bind(sender, ADDRESS(&sender_name), sizeof sender_name) == 0);
                out.msg_name = &receiver_name;
                out.msg_namelen = sizeof receiver_name;
            }
            in_mode(receiver, nonblocking);
            in_mode(sender, nonblocking);
            memset(&from, 0xee, sizeof from);
            upcall_id receiving = submit_one(loop, upcall_op_recvmsg(receiver, &in, 0), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            upcall_id sending = submit_one(loop, upcall_op_sendmsg(sender, &out, 0), &rec);
            memset(&out, 0xff, sizeof out); /* header, vector and address were copied (hazard 37) */
            memset(out_parts, 0xff, sizeof out_parts);
            memset(&receiver_name, 0xff, sizeof receiver_name);
            memset(&receiver_port, 0xff, sizeof receiver_port);
            run_finals(loop, &rec, 2);
            CHECK_EQ(final_of(&rec, sending).result, 6);
            CHECK_EQ(final_of(&rec, receiving).result, 6);
            CHECK(memcmp(bytes, "abcdef", 6) == 0);
            if (family == 0) {
                CHECK_EQ(in.msg_namelen, sizeof sender_port);
                CHECK_EQ(((struct sockaddr_in *)(void *)&from)->sin_port, sender_port.sin_port);
            } else {
                CHECK_EQ(from.ss_family, AF_UNIX);
                CHECK(in.msg_namelen > sizeof(sa_family_t));
                CHECK_STR_EQ(((struct sockaddr_un *)(void *)&from)->sun_path, "sender");
                CHECK(unlink("receiver") == 0 && unlink("sender") == 0);
            }
            CHECK_EQ(in.msg_controllen, 0);
            CHECK_EQ(in.msg_flags & ~MSG_CMSG_CLOEXEC, 0);
            close(receiver);
            close(sender);
            forget(&rec);
        }
    }
    leave_scratch();
    free_loop(loop);
}

union control {
    struct cmsghdr header;
    char room[CMSG_SPACE(4 * sizeof(int))];
};

/* A message with descriptors in its control data. */
static struct msghdr with_descriptors(struct iovec *part, union control *control, const int *fds, size_t count) {
    struct msghdr msg = {.msg_iov = part, .msg_iovlen = 1, .msg_control = control};
    memset(control, 0, sizeof *control);
    msg.msg_controllen = CMSG_SPACE(count * sizeof *fds);
    struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof *fds);
    memcpy(CMSG_DATA(header), fds, count * sizeof *fds);
    return msg;
}

TEST(messages_carry_descriptors_which_are_close_on_exec) {
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        BOTH(nonblocking) {
            char byte = 0;
            struct iovec in_part = {&byte, 1}, out_part = {"x", 1};
            union control in_control, out_control;
            struct msghdr in = {.msg_iov = &in_part, .msg_iovlen = 1, .msg_control = &in_control,
                                .msg_controllen = sizeof in_control};
            struct recorder rec = {0};
            int fds[2], ends[2], got[2];
            CHECK(socketpair(AF_UNIX, types[i] | SOCK_CLOEXEC, 0, fds) == 0);
            in_mode(fds[0], nonblocking);
            in_mode(fds[1], nonblocking);
            CHECK(pipe(ends) == 0); /* not close-on-exec themselves */
            int before = open_fd_count();
            struct msghdr out = with_descriptors(&out_part, &out_control, ends, 2);
            upcall_id receiving = submit_one(loop, upcall_op_recvmsg(fds[0], &in, 0), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            upcall_id sending = submit_one(loop, upcall_op_sendmsg(fds[1], &out, 0), &rec);
            memset(&out_control, 0xff, sizeof out_control); /* copied (hazard 37) */
            run_finals(loop, &rec, 2);
            CHECK_EQ(final_of(&rec, sending).result, 1);
            CHECK_EQ(final_of(&rec, receiving).result, 1);
            CHECK_EQ(byte, 'x');
            CHECK_EQ(in.msg_flags & (MSG_CTRUNC | MSG_TRUNC), 0);
            CHECK_EQ(in.msg_controllen, CMSG_SPACE(sizeof got));
            struct cmsghdr *header = CMSG_FIRSTHDR(&in);
            CHECK(header != NULL && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof got));
            memcpy(got, CMSG_DATA(header), sizeof got);
            CHECK_EQ(open_fd_count(), before + 2);
            CHECK(is_cloexec(got[0]) && is_cloexec(got[1]));
            write_all(ends[1], "y", 1);
            read_all(got[0], &byte, 1);
            CHECK_EQ(byte, 'y');
            close_pair(got);
            close_pair(ends);
            close_pair(fds);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(control_data_without_room_is_cut_and_leaks_no_descriptor) {
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        char byte = 0;
        struct iovec in_part = {&byte, 1}, out_part = {"x", 1};
        union control in_control, out_control;
        int fds[2], ends[2], got;
        unix_pair(fds);
        in_mode(fds[0], nonblocking);
        pipe_pair(ends);
        int before = open_fd_count();
        struct msghdr out = with_descriptors(&out_part, &out_control, ends, 2);
        struct msghdr in = {.msg_iov = &in_part, .msg_iovlen = 1};
        ends_with(loop, upcall_op_sendmsg(fds[1], &out, 0), 1);
        ends_with(loop, upcall_op_recvmsg(fds[0], &in, 0), 1); /* no room at all */
        CHECK(in.msg_flags & MSG_CTRUNC);
        CHECK_EQ(in.msg_controllen, 0);
        CHECK_EQ(open_fd_count(), before);

        in = (struct msghdr){.msg_iov = &in_part, .msg_iovlen = 1, .msg_control = &in_control,
                             .msg_controllen = CMSG_LEN(sizeof got)};
        ends_with(loop, upcall_op_sendmsg(fds[1], &out, 0), 1);
        ends_with(loop, upcall_op_recvmsg(fds[0], &in, 0), 1); /* room for one of two */
        CHECK(in.msg_flags & MSG_CTRUNC);
        struct cmsghdr *header = CMSG_FIRSTHDR(&in);
        CHECK(header != NULL && header->cmsg_len == CMSG_LEN(sizeof got));
        memcpy(&got, CMSG_DATA(header), sizeof got);
        CHECK(is_cloexec(got));
        CHECK_EQ(open_fd_count(), before + 1);
        close(got);
        close_pair(ends);
        close_pair(fds);
    }
    free_loop(loop);
}

/* Descriptors that arrive while recvmsg is being cancelled are delivered with it or stay in the socket. */
TEST(a_recvmsg_that_races_with_cancel_leaks_no_descriptor) {
    warm_up();
    BOTH(nonblocking) {
        int fds[2], ends[2];
        unix_pair(fds);
        in_mode(fds[0], nonblocking);
        pipe_pair(ends);
        int before = open_fd_count();
        upcall_loop *loop = new_loop();
        for (int round = 0; round < 200; round++) {
            char byte;
            struct iovec in_part = {&byte, 1}, out_part = {"x", 1};
            union control in_control, out_control;
            struct msghdr out = with_descriptors(&out_part, &out_control, ends, 1);
            struct msghdr in = {.msg_iov = &in_part, .msg_iovlen = 1, .msg_control = &in_control,
                                .msg_controllen = sizeof in_control};
            struct recorder rec = {0};
            upcall_id id = submit_one(loop, upcall_op_recvmsg(fds[0], &in, 0), &rec);
            start_all(loop);
            CHECK(sendmsg(fds[1], &out, 0) == 1);
            for (int i = 0; i < round % 3; i++)
                CHECK(upcall_poll(loop, 0) >= 0);
            int rc = upcall_cancel(loop, id);
            CHECK(rc == 0 || rc == -ENOENT);
            run_finals(loop, &rec, 1);
            int64_t result = final_of(&rec, id).result;
            CHECK(result == 1 || result == -ECANCELED);
            if (result == -ECANCELED) {
                in.msg_controllen = sizeof in_control;
                CHECK(recvmsg(fds[0], &in, MSG_DONTWAIT) == 1);
            }
            int got;
            CHECK(CMSG_FIRSTHDR(&in) != NULL);
            memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&in)), sizeof got);
            close(got);
            forget(&rec);
        }
        free_loop(loop);
        CHECK_EQ(open_fd_count(), before);
        close_pair(ends);
        close_pair(fds);
    }
}

TEST(messages_have_up_to_1024_parts) {
    static const int sockets[] = {UNIX, TCP, DATAGRAM};
    static uint8_t from[1024], into[1024];
    upcall_loop *loop = new_loop();
    fill_pattern(from, sizeof from, 0);
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            struct iovec out_parts[1024], in_parts[1024];
            struct msghdr out = {.msg_iov = out_parts, .msg_iovlen = 1024};
            struct msghdr in = {.msg_iov = in_parts, .msg_iovlen = 1024};
            struct recorder rec = {0};
            int fds[2];
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            in_mode(fds[1], nonblocking);
            memset(into, 0, sizeof into);
            for (size_t k = 0; k < 1024; k++) {
                out_parts[k] = (struct iovec){from + k, 1};
                in_parts[k] = (struct iovec){into + 1023 - k, 1};
            }
            upcall_id id = submit_one(loop, upcall_op_recvmsg(fds[0], &in, 0), &rec);
            ends_with(loop, upcall_op_sendmsg(fds[1], &out, 0), 1024);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, 1024);
            for (size_t k = 0; k < 1024; k++)
                CHECK_EQ(into[1023 - k], from[k]);
            close_pair(fds);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(sendmsg_answers_as_the_system_call_does) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    BOTH(nonblocking) {
        struct sockaddr_un missing = unix_name("missing");
        struct iovec part = {"x", 1};
        union control control;
        int closed = closed_fd(), fds[2];
        unix_pair(fds);
        in_mode(fds[0], nonblocking);
        int datagram = in_mode(new_socket(AF_UNIX, SOCK_DGRAM), nonblocking);
        struct msghdr nowhere = {
            .msg_name = &missing, .msg_namelen = sizeof missing, .msg_iov = &part, .msg_iovlen = 1};
        ends_with(loop, upcall_op_sendmsg(datagram, &nowhere, 0), -ENOENT);
        ends_with(loop, upcall_op_sendmsg(fds[0], &nowhere, 0), -EISCONN);
        struct msghdr bad = with_descriptors(&part, &control, &closed, 1);
        ends_with(loop, upcall_op_sendmsg(fds[0], &bad, 0), -EBADF);
        control.header.cmsg_len = 1; /* shorter than a header */
        ends_with(loop, upcall_op_sendmsg(fds[0], &bad, 0), -EINVAL);
        CHECK(!is_readable(fds[1], 0));
        close(datagram);
        close_pair(fds);
    }
    leave_scratch();
    free_loop(loop);
}

/* ---- Buffers lent by a pool. ---- */

TEST(a_recv_borrows_a_buffer_when_data_is_there) {
    static const int sockets[] = {UNIX, TCP, DATAGRAM};
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            upcall_buffers *pool = NULL;
            int fds[2];
            CHECK_EQ(upcall_buffers_new(loop, 2, 16, &pool), 0);
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
            op.buffers = pool;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            CHECK(send(fds[1], "abc", 3, 0) == 3);
            run_finals(loop, &rec, 1);
            struct record final = final_of(&rec, id);
            CHECK_EQ(final.result, 3);
            CHECK_EQ(final.transferred, 3);
            CHECK(final.buffer != NULL && memcmp(final.buffer, "abc", 3) == 0);
            CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
            CHECK_EQ(upcall_buffers_return(pool, final.buffer), -EINVAL);
            if (sockets[i] == DATAGRAM) { /* an empty datagram is put in a buffer, the end of a stream is not */
                CHECK(send(fds[1], "", 0, 0) == 0);
                final = complete(loop, op);
                CHECK_EQ(final.result, 0);
                CHECK(final.buffer != NULL);
                CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
            } else {
                close(fds[1]);
                final = complete(loop, op);
                CHECK_EQ(final.result, 0);
                CHECK(final.buffer == NULL);
            }
            close(fds[0]);
            CHECK_EQ(upcall_buffers_free(pool), 0);
            free_loop(loop);
            forget(&rec);
        }
    }
}

TEST(a_multishot_recv_tells_of_every_piece_until_the_end) {
    static const int sockets[] = {UNIX, TCP};
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        BOTH(nonblocking) {
            enum { SIZE = 10000 };
            static uint8_t sent[SIZE], got[SIZE];
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            upcall_buffers *pool = NULL;
            size_t done = 0, seen = 0;
            int fds[2];
            CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0); /* runs dry again and again (hazard 31) */
            make_stream(sockets[i], fds);
            in_mode(fds[0], nonblocking);
            fill_pattern(sent, SIZE, 0);
            upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
            op.buffers = pool;
            op.flags = UPCALL_MULTISHOT;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            CHECK(send(fds[1], sent, SIZE, 0) == SIZE);
            close(fds[1]);
            while (rec.finals == 0) {
                run_until(loop, &rec, seen + 1);
                for (; seen < rec.count; seen++) {
                    if (!(rec.events[seen].flags & UPCALL_MORE))
                        break;
                    CHECK(rec.events[seen].result > 0 && rec.events[seen].result <= 64);
                    memcpy(got + done, rec.events[seen].buffer, (size_t)rec.events[seen].result);
                    done += (size_t)rec.events[seen].result;
                    CHECK_EQ(upcall_buffers_return(pool, rec.events[seen].buffer), 0);
                }
            }
            CHECK_EQ(final_of(&rec, id).result, 0);
            CHECK(final_of(&rec, id).buffer == NULL);
            CHECK_EQ(done, SIZE);
            CHECK(memcmp(got, sent, SIZE) == 0); /* in order (hazard 32) */
            CHECK_EQ(upcall_buffers_free(pool), 0);
            close(fds[0]);
            free_loop(loop);
            forget(&rec);
        }
    }
}

TEST(a_multishot_recv_of_datagrams_takes_empty_ones_too) {
    static const char *const sent[] = {"one", "", "three", "", "", "six"};
    BOTH(nonblocking) {
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        upcall_buffers *pool = NULL;
        int fds[2];
        CHECK_EQ(upcall_buffers_new(loop, 8, 16, &pool), 0);
        dgram_pair(fds);
        in_mode(fds[0], nonblocking);
        upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
        op.buffers = pool;
        op.flags = UPCALL_MULTISHOT;
        upcall_id id = submit_one(loop, op, &rec);
        for (size_t i = 0; i < COUNT_OF(sent); i++)
            CHECK(send(fds[1], sent[i], strlen(sent[i]), 0) == (ssize_t)strlen(sent[i]));
        run_until(loop, &rec, COUNT_OF(sent));
        for (size_t i = 0; i < COUNT_OF(sent); i++) {
            CHECK_EQ(rec.events[i].result, strlen(sent[i]));
            CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
            CHECK(rec.events[i].buffer != NULL);
            CHECK(memcmp(rec.events[i].buffer, sent[i], strlen(sent[i])) == 0);
            CHECK_EQ(upcall_buffers_return(pool, rec.events[i].buffer), 0);
        }
        no_more(loop, &rec);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        CHECK(final_of(&rec, id).buffer == NULL);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(fds);
        free_loop(loop);
        forget(&rec);
    }
}

TEST(lend_max_pauses_one_operation_and_no_other) {
    BOTH(nonblocking) {
        struct recorder slow = {0}, quick = {0};
        upcall_loop *loop = new_loop();
        upcall_buffers *pool = NULL;
        int first[2], second[2];
        CHECK_EQ(upcall_buffers_new(loop, 8, 4, &pool), 0);
        unix_pair(first);
        unix_pair(second);
        in_mode(first[0], nonblocking);
        in_mode(second[0], nonblocking);
        upcall_op op = upcall_op_recv(first[0], NULL, 0, 0);
        op.buffers = pool;
        op.flags = UPCALL_MULTISHOT;
        op.lend_max = 2;
        upcall_id id = submit_one(loop, op, &slow);
        op.fd = second[0];
        op.lend_max = 0;
        upcall_id other = submit_one(loop, op, &quick);
        CHECK(send(first[1], "aaaabbbbccccdddd", 16, 0) == 16);
        CHECK(send(second[1], "eeeeffffgggghhhh", 16, 0) == 16);
        run_until(loop, &slow, 2);
        run_until(loop, &quick, 4);
        no_more(loop, &slow);
        CHECK_EQ(slow.count, 2);
        for (size_t i = 0; i < 4; i++) {
            run_until(loop, &slow, i + 1);
            CHECK(memcmp(slow.events[i].buffer, &"aaaabbbbccccdddd"[4 * i], 4) == 0);
            CHECK_EQ(upcall_buffers_return(pool, slow.events[i].buffer), 0);
            CHECK(memcmp(quick.events[i].buffer, &"eeeeffffgggghhhh"[4 * i], 4) == 0);
            CHECK_EQ(upcall_buffers_return(pool, quick.events[i].buffer), 0);
        }
        CHECK_EQ(upcall_cancel(loop, id), 0);
        CHECK_EQ(upcall_cancel(loop, other), 0);
        run_finals(loop, &slow, 1);
        run_finals(loop, &quick, 1);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(first);
        close_pair(second);
        free_loop(loop);
        forget(&slow);
        forget(&quick);
    }
}

/* The layout of a lent message is the same on every backend, for one shot and for many. */
TEST(a_borrowing_recvmsg_puts_the_message_behind_its_header) {
    for (int multishot = 0; multishot < 2; multishot++) {
        BOTH(nonblocking) {
            struct sockaddr_in to, from;
            struct msghdr room = {.msg_namelen = sizeof from, .msg_controllen = 64};
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            upcall_buffers *pool = NULL;
            int receiver = udp_socket(&to), sender = udp_socket(&from), one = 1;
            size_t seen = 0;
            CHECK_EQ(upcall_buffers_new(loop, 4, 200, &pool), 0);
            CHECK(setsockopt(receiver, IPPROTO_IP, IP_PKTINFO, &one, sizeof one) == 0);
            in_mode(receiver, nonblocking);
            static const char text[160] = "hello";
            static const struct { size_t length, in_buffer; } rows[] = {
                {5, 5}, {0, 0}, {104, 104}, {105, 104}, {160, 104}};
            upcall_op op = upcall_op_recvmsg(receiver, &room, 0);
            op.buffers = pool;
            op.flags = multishot ? UPCALL_MULTISHOT : 0;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            for (size_t i = 0; i < COUNT_OF(rows); i++) {
                if (!multishot && i > 0)
                    id = submit_one(loop, op, &rec);
                CHECK(sendto(sender, text, rows[i].length, 0, ADDRESS(&to), sizeof to) == (ssize_t)rows[i].length);
                run_until(loop, &rec, ++seen);
                struct record event = rec.events[seen - 1];
                struct upcall_msg msg;
                struct sockaddr_in name;
                CHECK_EQ(event.id, id);
                CHECK_EQ(event.flags, multishot ? UPCALL_MORE : 0);
                CHECK_EQ(event.result, rows[i].in_buffer); /* 200 - 16 - 16 - 64 fit */
                CHECK_EQ(event.transferred, rows[i].in_buffer);
                CHECK(event.buffer != NULL);
                memcpy(&msg, event.buffer, sizeof msg);
                CHECK_EQ(msg.namelen, sizeof from);
                CHECK_EQ((msg.flags & MSG_TRUNC) != 0, rows[i].length > rows[i].in_buffer);
                CHECK(msg.payloadlen >= rows[i].in_buffer);
                memcpy(&name, upcall_msg_name(event.buffer, &room), sizeof name);
                CHECK_EQ(name.sin_port, from.sin_port);
                CHECK(memcmp(upcall_msg_payload(event.buffer, &room), text, rows[i].in_buffer) == 0);
                CHECK_EQ(msg.controllen, CMSG_SPACE(sizeof(struct in_pktinfo)));
                struct msghdr parsed = {.msg_control = (void *)(uintptr_t)upcall_msg_control(event.buffer, &room),
                                        .msg_controllen = msg.controllen};
                CHECK_EQ(CMSG_FIRSTHDR(&parsed)->cmsg_type, IP_PKTINFO);
                CHECK_EQ((char *)parsed.msg_control - (char *)event.buffer, 16 + sizeof from);
                CHECK_EQ((const char *)upcall_msg_payload(event.buffer, &room) - (char *)event.buffer,
                         16 + sizeof from + 64);
                CHECK_EQ(upcall_buffers_return(pool, event.buffer), 0);
            }
            CHECK_EQ(room.msg_namelen, sizeof from); /* only read */
            CHECK_EQ(room.msg_controllen, 64);
            if (multishot) {
                CHECK_EQ(upcall_cancel(loop, id), 0);
                run_finals(loop, &rec, 1);
                CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
            }
            CHECK_EQ(upcall_buffers_free(pool), 0);
            close(receiver);
            close(sender);
            free_loop(loop);
            forget(&rec);
        }
    }
}

/* With MSG_TRUNC the header tells how long the datagram was; the result is what is in the buffer. */
TEST(a_borrowing_recvmsg_with_MSG_TRUNC_tells_the_whole_length) {
    for (int multishot = 0; multishot < 2; multishot++) {
        BOTH(nonblocking) {
            static const char text[100];
            struct msghdr room = {0};
            struct upcall_msg msg;
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            upcall_buffers *pool = NULL;
            int fds[2];
            CHECK_EQ(upcall_buffers_new(loop, 2, 48, &pool), 0);
            dgram_pair(fds);
            in_mode(fds[0], nonblocking);
            upcall_op op = upcall_op_recvmsg(fds[0], &room, MSG_TRUNC);
            op.buffers = pool;
            op.flags = multishot ? UPCALL_MULTISHOT : 0;
            submit_one(loop, op, &rec);
            CHECK(send(fds[1], text, sizeof text, 0) == sizeof text);
            run_until(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, 48 - 16);
            memcpy(&msg, rec.events[0].buffer, sizeof msg);
            CHECK_EQ(msg.payloadlen, 100);
            CHECK(msg.flags & MSG_TRUNC);
            CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
            upcall_cancel_all(loop);
            run_finals(loop, &rec, 1);
            CHECK_EQ(upcall_buffers_free(pool), 0);
            close_pair(fds);
            free_loop(loop);
            forget(&rec);
        }
    }
}
