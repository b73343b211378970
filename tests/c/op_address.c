/*
 * recvfrom and sendto, on blocking and O_NONBLOCK sockets; and what they share with recvmsg and sendmsg.
 */
#include "op_support.h"

#include <stddef.h>

#define ADDRESS(address) ((struct sockaddr *)(void *)(address))

/* ---- Sockets to try things on. ---- */

static struct sockaddr_un unix_name(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CHECK(strlen(path) < sizeof address.sun_path);
    strcpy(address.sun_path, path);
    return address;
}

static int unix_bound(int type, const char *path) {
    struct sockaddr_un address = unix_name(path);
    int fd = new_socket(AF_UNIX, type);
    CHECK(bind(fd, ADDRESS(&address), sizeof address) == 0);
    return fd;
}

#define LONG_NAME "a-sender-with-a-long-name"
#define NAME_LENGTH (offsetof(struct sockaddr_un, sun_path) + sizeof LONG_NAME) /* as the kernel counts it */

/* A pair whose other side has a name, so that what it sends has a sender. */
static void named_stream_pair(int fds[2]) {
    struct sockaddr_un address = unix_name("here");
    int listener = unix_bound(SOCK_STREAM, "here");
    CHECK(listen(listener, 1) == 0);
    fds[1] = unix_bound(SOCK_STREAM, LONG_NAME);
    CHECK(connect(fds[1], ADDRESS(&address), sizeof address) == 0);
    fds[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fds[0] >= 0);
    close(listener);
}

static bool is_address_of(const void *address, int fd) {
    struct sockaddr_in ours, theirs;
    socklen_t length = sizeof ours;
    CHECK(getsockname(fd, ADDRESS(&ours), &length) == 0);
    memcpy(&theirs, address, sizeof theirs);
    return theirs.sin_family == AF_INET && theirs.sin_port == ours.sin_port &&
           theirs.sin_addr.s_addr == ours.sin_addr.s_addr;
}

/* ---- Subjects: recvfrom. ---- */

enum { FROM_UDP, FROM_TCP, FROM_UNIX };

static void set_receiver(struct scene *scene) {
    int fds[2];
    scene->length = sizeof scene->address;
    if (scene->subject->object == FROM_UDP) {
        struct sockaddr_in to, from;
        scene->fd = udp_socket(&to);
        scene->peer = udp_socket(&from);
        CHECK(connect(scene->peer, ADDRESS(&to), sizeof to) == 0);
        return;
    }
    if (scene->subject->object == FROM_TCP) {
        tcp_pair(fds);
    } else {
        enter_scratch();
        scene->in_scratch = true;
        named_stream_pair(fds);
    }
    scene->fd = fds[0];
    scene->peer = fds[1];
}

static void send_ten(struct scene *scene) {
    uint8_t ten[10];
    fill_pattern(ten, sizeof ten, 0);
    CHECK(send(scene->peer, ten, sizeof ten, 0) == sizeof ten);
}

static upcall_op make_recvfrom(struct scene *scene) {
    return upcall_op_recvfrom(scene->fd, scene->data, 64, 0, ADDRESS(&scene->address), &scene->length);
}

static void has_received(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, 10);
    CHECK_EQ(final.transferred, 10);
    CHECK(has_pattern(scene->data, 10, 0));
    CHECK_EQ(scene->data[10], 0xee);
    if (scene->subject->object == FROM_UDP) {
        CHECK_EQ(scene->length, sizeof(struct sockaddr_in));
        CHECK(is_address_of(&scene->address, scene->peer));
    } else if (scene->subject->object == FROM_UNIX) {
        struct sockaddr_un name;
        memcpy(&name, &scene->address, sizeof name);
        CHECK_EQ(name.sun_family, AF_UNIX);
        CHECK_EQ(scene->length, NAME_LENGTH);
        CHECK_STR_EQ(name.sun_path, LONG_NAME);
    } else {
        CHECK_EQ(scene->length, 0); /* a connected TCP socket names nobody */
    }
}

static void has_not_received(struct scene *scene) {
    uint8_t bytes[64];
    CHECK(is_readable(scene->fd, 1000));
    CHECK_EQ(recv(scene->fd, bytes, sizeof bytes, MSG_DONTWAIT), 10);
    CHECK(has_pattern(bytes, 10, 0));
}

#define RECEIVES(name, object_)                                                                                        \
    static const struct subject name = {.kind = UPCALL_OP_RECVFROM, .object = object_, .set_up = set_receiver,         \
        .make = make_recvfrom, .allow = send_ten, .done = has_received, .intact = has_not_received};
RECEIVES(recvfrom_udp, FROM_UDP)
RECEIVES(recvfrom_tcp, FROM_TCP)
RECEIVES(recvfrom_unix, FROM_UNIX)
PROMISES_OF_WAITING(recvfrom_udp)
PROMISES_OF_WAITING(recvfrom_tcp)
PROMISES_OF_WAITING(recvfrom_unix)

/* ---- Subjects: sendto. ---- */

static void set_sender(struct scene *scene) {
    struct sockaddr_in to;
    scene->fd = new_socket(AF_INET, SOCK_DGRAM);
    scene->peer = udp_socket(&to);
    memcpy(&scene->address, &to, sizeof to);
    scene->length = sizeof to;
    fill_pattern(scene->data, 10, 0);
}

static upcall_op make_sendto(struct scene *scene) {
    return upcall_op_sendto(scene->fd, scene->data, 10, 0, ADDRESS(&scene->address), scene->length);
}

static void ten_came(struct scene *scene, struct record final) {
    uint8_t bytes[64];
    CHECK_EQ(final.result, 10);
    CHECK_EQ(final.transferred, 10);
    CHECK(is_readable(scene->peer, 1000));
    CHECK_EQ(recv(scene->peer, bytes, sizeof bytes, 0), 10);
    CHECK(has_pattern(bytes, 10, 0));
}

static void nothing_came(struct scene *scene) {
    char byte;
    CHECK(recv(scene->peer, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static const struct subject sendto_udp = {.kind = UPCALL_OP_SENDTO, .set_up = set_sender, .make = make_sendto,
    .done = ten_came, .intact = nothing_came};
PROMISES(sendto_udp)

/* A unix receiver whose queue another sender has filled. Ours is not connected and has nothing in that queue, so its own
   socket is writable all the time: readiness does not tell when there is room. */
static void set_sender_to_full(struct scene *scene) {
    struct sockaddr_un to = unix_name("receiver");
    enter_scratch();
    scene->in_scratch = true;
    scene->fd = new_socket(AF_UNIX, SOCK_DGRAM);
    scene->peer = unix_bound(SOCK_DGRAM, "receiver");
    scene->extra = new_socket(AF_UNIX, SOCK_DGRAM);
    while (sendto(scene->extra, "x", 1, MSG_DONTWAIT, ADDRESS(&to), sizeof to) == 1) {}
    CHECK_EQ(errno, EAGAIN);
    memcpy(&scene->address, &to, sizeof to);
    scene->length = sizeof to;
    fill_pattern(scene->data, 10, 0);
}

/* Takes what filled the queue, up to the first that is not one byte. */
static ssize_t take_fillers(struct scene *scene, uint8_t *bytes, size_t size) {
    ssize_t n;
    do
        n = recv(scene->peer, bytes, size, MSG_DONTWAIT);
    while (n == 1);
    return n;
}

static void make_room(struct scene *scene) {
    char byte;
    CHECK_EQ(recv(scene->peer, &byte, 1, MSG_DONTWAIT), 1);
}

static void ten_came_last(struct scene *scene, struct record final) {
    uint8_t bytes[64];
    CHECK_EQ(final.result, 10);
    CHECK_EQ(final.transferred, 10);
    CHECK_EQ(take_fillers(scene, bytes, sizeof bytes), 10);
    CHECK(has_pattern(bytes, 10, 0));
}

static void only_fillers_came(struct scene *scene) {
    uint8_t bytes[64];
    CHECK(take_fillers(scene, bytes, sizeof bytes) == -1 && errno == EAGAIN);
}

static const struct subject sendto_full_unix = {.kind = UPCALL_OP_SENDTO, .set_up = set_sender_to_full,
    .make = make_sendto, .allow = make_room, .done = ten_came_last, .intact = only_fillers_came};
PROMISES_OF_WAITING(sendto_full_unix)

static upcall_op make_sendmsg(struct scene *scene) {
    scene->iov[0] = (struct iovec){scene->data, 10};
    scene->msg.msg_name = &scene->address;
    scene->msg.msg_namelen = scene->length;
    scene->msg.msg_iov = scene->iov;
    scene->msg.msg_iovlen = 1;
    return upcall_op_sendmsg(scene->fd, &scene->msg, 0);
}

static const struct subject sendmsg_full_unix = {.kind = UPCALL_OP_SENDMSG, .set_up = set_sender_to_full,
    .make = make_sendmsg, .allow = make_room, .done = ten_came_last, .intact = only_fillers_came};
PROMISES_OF_WAITING(sendmsg_full_unix)

/* One that is connected to it: the ring would keep such a send waiting itself, and then send nothing. */
static upcall_op make_connected_send(struct scene *scene) {
    if (connect(scene->fd, ADDRESS(&scene->address), scene->length) != 0)
        fail(HERE, "connect: errno %d", errno);
    return upcall_op_send(scene->fd, scene->data, 10, 0);
}

static const struct subject send_to_full_unix = {.kind = UPCALL_OP_SEND, .set_up = set_sender_to_full,
    .make = make_connected_send, .allow = make_room, .done = ten_came_last, .intact = only_fillers_came};
PROMISES_OF_WAITING(send_to_full_unix)

/* Waiting for that room does not take the processor. */
TEST(sendto_a_full_receiver_waits_without_spinning) {
    struct recorder rec = {0};
    struct scene *scene = set_scene(&sendto_full_unix, false);
    upcall_loop *loop = new_loop();
    submit_one(loop, make_sendto(scene), &rec);
    start_all(loop);
    uint64_t burnt = processor_ns(), start = now_ns();
    while (now_ns() - start < (uint64_t)MS(300))
        CHECK(upcall_poll(loop, MS(50)) >= 0);
    CHECK_EQ(rec.count, 0);
    CHECK(processor_ns() - burnt < (uint64_t)MS(150));
    make_room(scene);
    run_finals(loop, &rec, 1);
    ten_came_last(scene, rec.events[0]);
    free_loop(loop);
    clear_scene(scene);
    forget(&rec);
}

/* ---- Names, arguments. ---- */

TEST(address_operations_are_known) {
    is_known(UPCALL_OP_RECVFROM, "recvfrom");
    is_known(UPCALL_OP_SENDTO, "sendto");
}

TEST(address_operations_refuse_strange_fields) {
    char byte = 0;
    refuses_strange_fields(upcall_op_recvfrom(0, &byte, 1, 0, NULL, NULL), UPCALL_FULL);
    refuses_strange_fields(upcall_op_sendto(0, &byte, 1, 0, NULL, 0), UPCALL_FULL);
}

TEST(address_operations_refuse_bad_arguments) {
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address, negative = (socklen_t)-1;
    char byte = 0;
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_recvfrom(0, NULL, 4096, 0, NULL, NULL), EINVAL, "buf is NULL but len is 4096");
    refused(loop, upcall_op_recvfrom(0, &byte, SIZE_MAX, 0, NULL, NULL), EINVAL, "len");
    refused(loop, upcall_op_recvfrom(0, &byte, 1, 0, ADDRESS(&address), NULL), EINVAL, "addrlen is NULL");
    refused(loop, upcall_op_recvfrom(0, &byte, 1, 0, ADDRESS(&address), &negative), EINVAL, "*addrlen");
    refused(loop, upcall_op_recvfrom(0, &byte, 1, MSG_DONTWAIT, ADDRESS(&address), &length), EINVAL, "MSG_DONTWAIT");
    refused(loop, upcall_op_recvfrom(0, &byte, 1, MSG_WAITALL, ADDRESS(&address), &length), EINVAL, "MSG_WAITALL");
    refused(loop, upcall_op_sendto(0, NULL, 1, 0, NULL, 0), EINVAL, "buf is NULL but len is 1");
    refused(loop, upcall_op_sendto(0, &byte, SIZE_MAX, 0, NULL, 0), EINVAL, "len");
    refused(loop, upcall_op_sendto(0, &byte, 1, MSG_DONTWAIT, NULL, 0), EINVAL, "MSG_DONTWAIT");
    refused(loop, upcall_op_sendto(0, &byte, 1, MSG_WAITALL, NULL, 0), EINVAL, "MSG_WAITALL");
    refused(loop, upcall_op_sendto(0, &byte, 1, 0, NULL, 16), EINVAL, "addr is NULL but addrlen is 16");
    refused(loop, upcall_op_sendto(0, &byte, 1, 0, ADDRESS(&address), 0), EINVAL, "addrlen is 0");
    refused(loop, upcall_op_sendto(0, &byte, 1, 0, ADDRESS(&address), sizeof address + 1), EINVAL, "addrlen");
    refused(loop, upcall_op_sendto(0, &byte, 1, 0, ADDRESS(&address), negative), EINVAL, "addrlen");
    free_loop(loop);
}

TEST(what_only_the_kernel_knows_comes_in_the_event) {
    struct sockaddr_in to, v6 = {.sin_family = AF_INET6};
    static char large[70000];
    char byte = 0;
    int fds[2], fd = udp_socket(&to), file = temp_file(10);
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_recvfrom(-1, &byte, 1, 0, NULL, NULL), -EBADF);
    ends_with(loop, upcall_op_recvfrom(closed_fd(), &byte, 1, 0, NULL, NULL), -EBADF);
    ends_with(loop, upcall_op_recvfrom(file, &byte, 1, 0, NULL, NULL), -ENOTSOCK);
    ends_with(loop, upcall_op_recvfrom(file, &byte, 0, 0, NULL, NULL), -ENOTSOCK);
    ends_with(loop, upcall_op_sendto(-1, &byte, 1, 0, NULL, 0), -EBADF);
    ends_with(loop, upcall_op_sendto(closed_fd(), &byte, 1, 0, ADDRESS(&to), sizeof to), -EBADF);
    ends_with(loop, upcall_op_sendto(file, &byte, 1, 0, ADDRESS(&to), sizeof to), -ENOTSOCK);
    ends_with(loop, upcall_op_sendto(fd, &byte, 1, 0, NULL, 0), -EDESTADDRREQ);
    ends_with(loop, upcall_op_sendto(fd, &byte, 1, 0, ADDRESS(&to), 1), -EINVAL);
    ends_with(loop, upcall_op_sendto(fd, &byte, 1, 0, ADDRESS(&to), sizeof to - 1), -EINVAL);
    ends_with(loop, upcall_op_sendto(fd, &byte, 1, 0, ADDRESS(&v6), sizeof v6), -EAFNOSUPPORT);
    ends_with(loop, upcall_op_sendto(fd, large, sizeof large, 0, ADDRESS(&to), sizeof to), -EMSGSIZE);
    unix_pair(fds);
    struct sockaddr_un nobody = unix_name("nobody");
    ends_with(loop, upcall_op_sendto(fds[0], &byte, 1, 0, ADDRESS(&nobody), sizeof nobody), -EISCONN);
    close_pair(fds);
    fds[0] = new_socket(AF_INET, SOCK_STREAM);
    ends_with(loop, upcall_op_recvfrom(fds[0], &byte, 1, 0, NULL, NULL), -ENOTCONN);
    close(fds[0]);
    close(fd);
    close(file);
    free_loop(loop);
}

TEST(sendto_a_reader_that_is_gone_raises_no_signal) {
    count_signals_of(SIGPIPE);
    for (int which = UNIX; which <= TCP; which++) {
        int fds[2];
        upcall_loop *loop = new_loop();
        make_pair(which, fds);
        close(fds[0]);
        if (which == TCP) { /* the first is answered by a reset */
            complete(loop, upcall_op_sendto(fds[1], "x", 1, 0, NULL, 0));
            struct pollfd hung_up = {.fd = fds[1]};
            CHECK_EQ(poll(&hung_up, 1, (int)(PATIENCE_NS / MS(1))), 1);
        }
        ends_with(loop, upcall_op_sendto(fds[1], "x", 1, 0, NULL, 0), -EPIPE);
        CHECK_EQ(signals_seen, 0);
        close(fds[1]);
        free_loop(loop);
    }
}

/* ---- The address. ---- */

/* As recvfrom(2): what there is room for, and the real length. */
TEST(recvfrom_tells_the_real_length_and_keeps_to_the_room) {
    static const socklen_t rooms[] = {0, 1, 4, 15, 16, 17, 128, 200, INT32_MAX};
    struct sockaddr_in to, from;
    int fd = udp_socket(&to), peer = udp_socket(&from);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(rooms); i++) {
        uint8_t address[256];
        socklen_t length = rooms[i], written = rooms[i] < sizeof from ? rooms[i] : sizeof from;
        char byte = 0;
        memset(address, 0xee, sizeof address);
        CHECK(sendto(peer, "a", 1, 0, ADDRESS(&to), sizeof to) == 1);
        ends_with(loop, upcall_op_recvfrom(fd, &byte, 1, 0, ADDRESS(address), &length), 1);
        CHECK_EQ(byte, 'a');
        CHECK_EQ(length, sizeof from);
        CHECK(memcmp(address, &from, written) == 0);
        for (size_t k = written; k < sizeof address; k++)
            CHECK_EQ(address[k], 0xee);
    }
    close(fd);
    close(peer);
    free_loop(loop);
}

TEST(recvfrom_reads_the_room_at_submit) {
    struct sockaddr_in to, from, address = {0};
    socklen_t length = sizeof address;
    struct recorder rec = {0};
    char byte;
    int fd = udp_socket(&to), peer = udp_socket(&from);
    upcall_loop *loop = new_loop();
    submit_one(loop, upcall_op_recvfrom(fd, &byte, 1, 0, ADDRESS(&address), &length), &rec);
    length = 0;
    CHECK(sendto(peer, "a", 1, 0, ADDRESS(&to), sizeof to) == 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(length, sizeof address);
    CHECK(is_address_of(&address, peer));
    close(fd);
    close(peer);
    free_loop(loop);
    forget(&rec);
}

TEST(without_an_address_its_length_is_left_alone) {
    struct sockaddr_in to;
    socklen_t length = 77;
    char byte;
    int fd = udp_socket(&to);
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_sendto(fd, "a", 1, 0, ADDRESS(&to), sizeof to), 1);
    ends_with(loop, upcall_op_recvfrom(fd, &byte, 1, 0, NULL, &length), 1);
    CHECK_EQ(length, 77);
    close(fd);
    free_loop(loop);
}

/* The address is copied: what becomes of it after submit does not matter, from whichever thread it came. */
static void *submit_and_scribble(void *arg) {
    struct scene *scene = arg;
    upcall_op op = make_sendto(scene);
    op.callback = NULL;
    CHECK_EQ(upcall_submit((upcall_loop *)scene->msg.msg_name, &op, 1, NULL), 0);
    memset(&scene->address, 0x55, sizeof scene->address);
    return NULL;
}

TEST(sendto_copies_its_address) {
    for (int outside = 0; outside < 2; outside++) {
        struct recorder rec = {0};
        struct scene *scene = set_scene(&sendto_udp, false);
        upcall_loop *loop = new_loop();
        CHECK_EQ(upcall_poll(loop, 0), 0);
        scene->msg.msg_name = loop;
        if (outside)
            join(start(submit_and_scribble, scene));
        else
            submit_and_scribble(scene);
        reap_until(loop, &rec, 1);
        ten_came(scene, rec.events[0]);
        free_loop(loop);
        clear_scene(scene);
        forget(&rec);
    }
}

/* ---- Flags, lengths. ---- */

TEST(recvfrom_takes_the_flags_of_recv) {
    struct sockaddr_in to, address;
    socklen_t length = sizeof address;
    char bytes[4] = {0};
    int fd = udp_socket(&to);
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_sendto(fd, "abcdefgh", 8, 0, ADDRESS(&to), sizeof to), 8);
    ends_with(loop, upcall_op_recvfrom(fd, bytes, 4, MSG_PEEK, ADDRESS(&address), &length), 4);
    CHECK(memcmp(bytes, "abcd", 4) == 0);
    ends_with(loop, upcall_op_recvfrom(fd, bytes, 4, MSG_TRUNC, ADDRESS(&address), &length), 8);
    CHECK_EQ(length, sizeof address);
    CHECK(!is_readable(fd, 0));
    close(fd);
    free_loop(loop);
}

/* Guarantee 5: a stream is not touched for nothing; an empty datagram is a datagram. */
TEST(length_0) {
    struct sockaddr_in to, address;
    struct recorder rec = {0};
    socklen_t length = sizeof address;
    int fds[2], fd = udp_socket(&to);
    char byte = 'z';
    upcall_loop *loop = new_loop();
    for (int which = UNIX; which <= TCP; which++) {
        make_pair(which, fds);
        length = sizeof address;
        ends_with(loop, upcall_op_recvfrom(fds[0], NULL, 0, 0, ADDRESS(&address), &length), 0);
        CHECK_EQ(length, 0); /* nobody sent it */
        ends_with(loop, upcall_op_sendto(fds[0], NULL, 0, 0, NULL, 0), 0);
        close_pair(fds);
    }
    length = sizeof address;
    submit_one(loop, upcall_op_recvfrom(fd, &byte, 0, 0, ADDRESS(&address), &length), &rec);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    ends_with(loop, upcall_op_sendto(fd, NULL, 0, 0, ADDRESS(&to), sizeof to), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    CHECK_EQ(length, sizeof address);
    CHECK(is_address_of(&address, fd));
    CHECK_EQ(byte, 'z');
    close(fd);
    free_loop(loop);
    forget(&rec);
}

/* ---- UPCALL_FULL. ---- */

/* One completion for all bytes. The second part must not take the sender's real length for room at the address. */
TEST(a_full_recvfrom_keeps_to_the_room_in_every_part) {
    struct recorder rec = {0};
    uint8_t address[128], data[300];
    socklen_t length = 3;
    int fds[2];
    enter_scratch();
    named_stream_pair(fds);
    memset(address, 0xee, sizeof address);
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_recvfrom(fds[0], data, sizeof data, 0, ADDRESS(address), &length);
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    for (int part = 0; part < 3; part++) {
        uint8_t bytes[100];
        fill_pattern(bytes, sizeof bytes, 100 * (uint64_t)part);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        write_all(fds[1], bytes, sizeof bytes);
    }
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 300);
    CHECK_EQ(rec.events[0].transferred, 300);
    CHECK(has_pattern(data, sizeof data, 0));
    CHECK_EQ(length, NAME_LENGTH);
    for (size_t i = 3; i < sizeof address; i++)
        CHECK_EQ(address[i], 0xee);
    close_pair(fds);
    free_loop(loop);
    leave_scratch();
    forget(&rec);
}

TEST(a_full_recvmsg_keeps_to_the_room_in_every_part) {
    struct recorder rec = {0};
    uint8_t address[128], data[300];
    struct iovec part = {data, sizeof data};
    struct msghdr msg = {.msg_name = address, .msg_namelen = 3, .msg_iov = &part, .msg_iovlen = 1};
    int fds[2];
    enter_scratch();
    named_stream_pair(fds);
    memset(address, 0xee, sizeof address);
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_recvmsg(fds[0], &msg, 0);
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    for (int k = 0; k < 3; k++) {
        uint8_t bytes[100];
        fill_pattern(bytes, sizeof bytes, 100 * (uint64_t)k);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        write_all(fds[1], bytes, sizeof bytes);
    }
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 300);
    CHECK(has_pattern(data, sizeof data, 0));
    CHECK_EQ(msg.msg_namelen, NAME_LENGTH);
    for (size_t i = 3; i < sizeof address; i++)
        CHECK_EQ(address[i], 0xee);
    close_pair(fds);
    free_loop(loop);
    leave_scratch();
    forget(&rec);
}

/* What came is told when the rest does not come: cancelled, out of time, or the stream's end. */
TEST(a_full_recvfrom_that_ends_early_says_what_came) {
    enum { CANCEL, DEADLINE, END };
    for (int how = CANCEL; how <= END; how++) {
        struct recorder rec = {0};
        struct sockaddr_in address;
        socklen_t length = sizeof address;
        uint8_t data[100];
        int fds[2];
        tcp_pair(fds);
        upcall_loop *loop = new_loop();
        upcall_op op = upcall_op_recvfrom(fds[0], data, sizeof data, 0, ADDRESS(&address), &length);
        op.flags = UPCALL_FULL;
        op.timeout_ns = how == DEADLINE ? 100 * UPCALL_MILLISECOND : 0;
        write_all(fds[1], "abc", 3);
        upcall_id id = submit_one(loop, op, &rec);
        start_all(loop);
        if (how == CANCEL)
            CHECK_EQ(upcall_cancel(loop, id), 0);
        if (how == END)
            CHECK(shutdown(fds[1], SHUT_WR) == 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, how == CANCEL ? -ECANCELED : how == DEADLINE ? -ETIMEDOUT : 3);
        CHECK_EQ(rec.events[0].flags, how == DEADLINE ? UPCALL_EXPIRED : 0);
        CHECK_EQ(rec.events[0].transferred, 3);
        CHECK(memcmp(data, "abc", 3) == 0);
        CHECK_EQ(length, 0);
        close_pair(fds);
        free_loop(loop);
        forget(&rec);
    }
}

static void *take_all(void *arg) {
    int fd = *(int *)arg;
    static uint8_t block[8192];
    for (uint64_t got = 0; got < 3000000;) {
        ssize_t n = read(fd, block, sizeof block);
        CHECK(n > 0);
        CHECK(has_pattern(block, (size_t)n, got));
        got += (uint64_t)n;
    }
    return NULL;
}

TEST(a_full_sendto_sends_all) {
    static uint8_t data[3000000];
    struct recorder rec = {0};
    int fds[2];
    small_tcp_pair(fds);
    fill_pattern(data, sizeof data, 0);
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_sendto(fds[1], data, sizeof data, 0, NULL, 0);
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    pthread_t thread = start(take_all, &fds[0]);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, sizeof data);
    CHECK_EQ(rec.events[0].transferred, sizeof data);
    join(thread);
    close_pair(fds);
    free_loop(loop);
    forget(&rec);
}

/* On a message socket FULL is one message. */
TEST(a_full_transfer_of_datagrams_is_one_datagram) {
    struct sockaddr_in to;
    uint8_t data[100];
    int fd = udp_socket(&to);
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_sendto(fd, "abc", 3, 0, ADDRESS(&to), sizeof to);
    op.flags = UPCALL_FULL;
    ends_with(loop, op, 3);
    op = upcall_op_recvfrom(fd, data, sizeof data, 0, NULL, NULL);
    op.flags = UPCALL_FULL;
    ends_with(loop, op, 3);
    close(fd);
    free_loop(loop);
}

/* ---- Order. ---- */

TEST(a_chain_of_sendto_and_recvfrom) {
    struct sockaddr_in to, address;
    struct recorder rec = {0};
    socklen_t length = sizeof address;
    upcall_id ids[3];
    char bytes[8] = {0};
    int fd = udp_socket(&to);
    upcall_loop *loop = new_loop();
    upcall_op ops[3] = {upcall_op_sendto(fd, "hello", 5, 0, ADDRESS(&to), sizeof to),
                        upcall_op_recvfrom(fd, bytes, 5, 0, ADDRESS(&address), &length), upcall_op_close(fd)};
    ops[0].flags = ops[1].flags = UPCALL_LINK;
    submit_many(loop, ops, 3, &rec, ids);
    run_finals(loop, &rec, 3);
    check_finals(&rec, ids, 3);
    CHECK_EQ(final_of(&rec, ids[0]).result, 5);
    CHECK_EQ(final_of(&rec, ids[1]).result, 5);
    CHECK_EQ(final_of(&rec, ids[2]).result, 0);
    CHECK_STR_EQ(bytes, "hello");
    CHECK_EQ(address.sin_port, to.sin_port);
    free_loop(loop);
    forget(&rec);
}

/* A receive that is not full severs the chain. */
TEST(a_short_recvfrom_severs_its_chain) {
    struct sockaddr_in to;
    struct recorder rec = {0};
    upcall_id ids[2];
    char bytes[8];
    int fd = udp_socket(&to);
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_sendto(fd, "abc", 3, 0, ADDRESS(&to), sizeof to), 3);
    upcall_op ops[2] = {upcall_op_recvfrom(fd, bytes, 8, 0, NULL, NULL), upcall_op_nop()};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, 3);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    close(fd);
    free_loop(loop);
    forget(&rec);
}

/* Many at once from many senders: each datagram once, each with its sender. */
TEST(a_hundred_senders_are_told_apart) {
    enum { COUNT = 100 };
    static struct sockaddr_in from[COUNT], addresses[COUNT];
    static socklen_t lengths[COUNT];
    static uint32_t numbers[COUNT];
    static int fds[COUNT];
    struct sockaddr_in to;
    struct recorder rec = {0};
    bool seen[COUNT] = {false};
    int fd = udp_socket(&to);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT; i++) {
        lengths[i] = sizeof addresses[i];
        fds[i] = udp_socket(&from[i]);
        submit_one(loop, upcall_op_recvfrom(fd, &numbers[i], sizeof numbers[i], 0, ADDRESS(&addresses[i]), &lengths[i]),
                   &rec);
    }
    start_all(loop);
    for (uint32_t i = 0; i < COUNT; i++)
        CHECK(sendto(fds[i], &i, sizeof i, 0, ADDRESS(&to), sizeof to) == sizeof i);
    run_finals(loop, &rec, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        uint32_t number = numbers[i];
        CHECK(number < COUNT && !seen[number]);
        seen[number] = true;
        CHECK_EQ(addresses[i].sin_port, from[number].sin_port);
        CHECK_EQ(lengths[i], sizeof addresses[i]);
        close(fds[number]);
    }
    close(fd);
    free_loop(loop);
    forget(&rec);
}
