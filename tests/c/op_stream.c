/*
 * read, write, readv and writev: on pipes, sockets, terminals, named pipes, eventfds and regular files, all of them
 * blocking and O_NONBLOCK.
 */
#include "op_support.h"

#include <sys/inotify.h>

#define BOTH(nonblocking) for (int nonblocking = 0; nonblocking < 2; nonblocking++)

/* ---- Subjects: what waits for data, and what waits for room. ---- */

static void set_reader(struct scene *scene) {
    int fds[2] = {-1, -1};
    switch (scene->subject->object) {
    case EVENTFD:
        fds[0] = eventfd(0, EFD_CLOEXEC);
        CHECK(fds[0] >= 0);
        break;
    case REGULAR:
        fds[0] = temp_file(100);
        CHECK(lseek(fds[0], 3, SEEK_SET) == 3);
        break;
    default:
        make_stream(scene->subject->object, fds);
    }
    scene->fd = fds[0];
    scene->peer = fds[1];
}

static void write_ten(struct scene *scene) {
    uint8_t ten[10];
    if (scene->subject->object == EVENTFD) {
        CHECK(eventfd_write(scene->fd, 5) == 0);
        return;
    }
    fill_pattern(ten, sizeof ten, 0);
    write_all(scene->peer, ten, sizeof ten);
}

static upcall_op make_read(struct scene *scene) {
    return upcall_op_read(scene->fd, scene->data, scene->subject->object == EVENTFD ? 8 : 64);
}

static upcall_op make_readv(struct scene *scene) {
    if (scene->subject->object == EVENTFD) {
        scene->iov[0] = (struct iovec){scene->data, 8};
        return upcall_op_readv(scene->fd, scene->iov, 1);
    }
    scene->iov[0] = (struct iovec){scene->data, 3};
    scene->iov[1] = (struct iovec){NULL, 0};
    scene->iov[2] = (struct iovec){scene->data + 3, 61};
    return upcall_op_readv(scene->fd, scene->iov, 3);
}

static void has_read(struct scene *scene, struct record final) {
    uint64_t value;
    switch (scene->subject->object) {
    case EVENTFD:
        CHECK_EQ(final.result, 8);
        memcpy(&value, scene->data, sizeof value);
        CHECK_EQ(value, 5);
        return;
    case REGULAR:
        CHECK_EQ(final.result, 64);
        CHECK(has_pattern(scene->data, 64, 3));
        CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 67);
        return;
    default:
        CHECK_EQ(final.result, 10);
        CHECK(has_pattern(scene->data, 10, 0));
        CHECK_EQ(scene->data[10], 0xee);
    }
}

static void has_not_read(struct scene *scene) {
    uint8_t ten[10];
    eventfd_t value = 0;
    switch (scene->subject->object) {
    case EVENTFD:
        CHECK(is_readable(scene->fd, 0));
        CHECK(eventfd_read(scene->fd, &value) == 0);
        CHECK_EQ(value, 5);
        return;
    case REGULAR:
        CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 3);
        return;
    default:
        CHECK(is_readable(scene->fd, 1000));
        read_all(scene->fd, ten, sizeof ten);
        CHECK(has_pattern(ten, sizeof ten, 0));
    }
}

static void set_writer(struct scene *scene) {
    static const uint64_t one = 1;
    int fds[2] = {-1, -1};
    fill_pattern(scene->data, 64, 1000);
    switch (scene->subject->object) {
    case EVENTFD:
        fds[1] = eventfd(0, EFD_CLOEXEC);
        CHECK(fds[1] >= 0);
        CHECK(eventfd_write(fds[1], UINT64_MAX - 1) == 0);
        memcpy(scene->data, &one, sizeof one);
        break;
    case REGULAR:
        fds[1] = temp_file(100);
        CHECK(lseek(fds[1], 5, SEEK_SET) == 5);
        break;
    default:
        make_stream(scene->subject->object, fds);
        scene->filled = fill_for_good(scene->subject->object, fds[1]);
    }
    scene->fd = fds[1];
    scene->peer = fds[0];
}

static void make_room(struct scene *scene) {
    eventfd_t value;
    if (scene->subject->object == EVENTFD) {
        CHECK(eventfd_read(scene->fd, &value) == 0);
        return;
    }
    take(scene->peer, scene->filled);
}

static upcall_op make_write(struct scene *scene) {
    return upcall_op_write(scene->fd, scene->data, scene->subject->object == EVENTFD ? 8 : 64);
}

static upcall_op make_writev(struct scene *scene) {
    if (scene->subject->object == EVENTFD) {
        scene->iov[0] = (struct iovec){scene->data, 8};
        return upcall_op_writev(scene->fd, scene->iov, 1);
    }
    scene->iov[0] = (struct iovec){scene->data, 10};
    scene->iov[1] = (struct iovec){NULL, 0};
    scene->iov[2] = (struct iovec){scene->data + 10, 54};
    return upcall_op_writev(scene->fd, scene->iov, 3);
}

static void has_written(struct scene *scene, struct record final) {
    uint8_t got[100];
    eventfd_t value = 0;
    switch (scene->subject->object) {
    case EVENTFD:
        CHECK_EQ(final.result, 8);
        CHECK(eventfd_read(scene->fd, &value) == 0);
        CHECK_EQ(value, 1);
        return;
    case REGULAR:
        CHECK_EQ(final.result, 64);
        CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 69);
        CHECK_EQ(pread(scene->fd, got, sizeof got, 0), 100);
        CHECK(has_pattern(got, 5, 0) && has_pattern(got + 5, 64, 1000) && has_pattern(got + 69, 31, 69));
        return;
    default:
        CHECK_EQ(final.result, 64);
        read_all(scene->peer, got, 64);
        CHECK(has_pattern(got, 64, 1000));
        CHECK(!is_readable(scene->peer, 0));
    }
}

static void has_not_written(struct scene *scene) {
    uint8_t got[101];
    switch (scene->subject->object) {
    case EVENTFD:
        CHECK(!is_readable(scene->fd, 0));
        return;
    case REGULAR:
        CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 5);
        CHECK_EQ(pread(scene->fd, got, sizeof got, 0), 100);
        CHECK(has_pattern(got, 100, 0));
        return;
    default:
        CHECK(!is_readable(scene->peer, 10));
    }
}

#define READS(name, kind_, make_, object_, allow_)                                                                     \
    static const struct subject name = {.kind = kind_, .object = object_, .set_up = set_reader, .make = make_,         \
        .allow = allow_, .done = has_read, .intact = has_not_read};
#define WRITES(name, kind_, make_, object_, allow_)                                                                    \
    static const struct subject name = {.kind = kind_, .object = object_, .set_up = set_writer, .make = make_,         \
        .allow = allow_, .done = has_written, .intact = has_not_written};

READS(read_from_pipe, UPCALL_OP_READ, make_read, PIPE, write_ten)
READS(read_from_unix_socket, UPCALL_OP_READ, make_read, UNIX, write_ten)
READS(read_from_tcp_socket, UPCALL_OP_READ, make_read, TCP, write_ten)
READS(read_from_tty, UPCALL_OP_READ, make_read, TTY, write_ten)
READS(read_from_fifo, UPCALL_OP_READ, make_read, FIFO, write_ten)
READS(read_from_eventfd, UPCALL_OP_READ, make_read, EVENTFD, write_ten)
READS(read_from_file, UPCALL_OP_READ, make_read, REGULAR, NULL)
READS(readv_from_pipe, UPCALL_OP_READV, make_readv, PIPE, write_ten)
READS(readv_from_unix_socket, UPCALL_OP_READV, make_readv, UNIX, write_ten)
READS(readv_from_tty, UPCALL_OP_READV, make_readv, TTY, write_ten)
READS(readv_from_fifo, UPCALL_OP_READV, make_readv, FIFO, write_ten)
READS(readv_from_eventfd, UPCALL_OP_READV, make_readv, EVENTFD, write_ten)
READS(readv_from_file, UPCALL_OP_READV, make_readv, REGULAR, NULL)
WRITES(write_to_pipe, UPCALL_OP_WRITE, make_write, PIPE, make_room)
WRITES(write_to_unix_socket, UPCALL_OP_WRITE, make_write, UNIX, make_room)
WRITES(write_to_tcp_socket, UPCALL_OP_WRITE, make_write, TCP, make_room)
WRITES(write_to_tty, UPCALL_OP_WRITE, make_write, TTY, make_room)
WRITES(write_to_fifo, UPCALL_OP_WRITE, make_write, FIFO, make_room)
WRITES(write_to_eventfd, UPCALL_OP_WRITE, make_write, EVENTFD, make_room)
WRITES(write_to_file, UPCALL_OP_WRITE, make_write, REGULAR, NULL)
WRITES(writev_to_pipe, UPCALL_OP_WRITEV, make_writev, PIPE, make_room)
WRITES(writev_to_unix_socket, UPCALL_OP_WRITEV, make_writev, UNIX, make_room)
WRITES(writev_to_tty, UPCALL_OP_WRITEV, make_writev, TTY, make_room)
WRITES(writev_to_fifo, UPCALL_OP_WRITEV, make_writev, FIFO, make_room)
WRITES(writev_to_eventfd, UPCALL_OP_WRITEV, make_writev, EVENTFD, make_room)
WRITES(writev_to_file, UPCALL_OP_WRITEV, make_writev, REGULAR, NULL)

/* Hazard 19: the same on a blocking and on an O_NONBLOCK descriptor, and the flag is as before. */
PROMISES_OF_WAITING(read_from_pipe)
PROMISES_OF_WAITING(read_from_unix_socket)
PROMISES_OF_WAITING(read_from_tcp_socket)
PROMISES_OF_WAITING(read_from_tty)
PROMISES_OF_WAITING(read_from_fifo)
PROMISES_OF_WAITING(read_from_eventfd)
PROMISES(read_from_file)
PROMISES_OF_WAITING(readv_from_pipe)
PROMISES_OF_WAITING(readv_from_unix_socket)
PROMISES_OF_WAITING(readv_from_tty)
PROMISES_OF_WAITING(readv_from_fifo)
PROMISES_OF_WAITING(readv_from_eventfd)
PROMISES(readv_from_file)
PROMISES_OF_WAITING(write_to_pipe)
PROMISES_OF_WAITING(write_to_unix_socket)
PROMISES_OF_WAITING(write_to_tcp_socket)
PROMISES_OF_WAITING(write_to_tty)
PROMISES_OF_WAITING(write_to_fifo)
PROMISES_OF_WAITING(write_to_eventfd)
PROMISES(write_to_file)
PROMISES_OF_WAITING(writev_to_pipe)
PROMISES_OF_WAITING(writev_to_unix_socket)
PROMISES_OF_WAITING(writev_to_tty)
PROMISES_OF_WAITING(writev_to_fifo)
PROMISES_OF_WAITING(writev_to_eventfd)
PROMISES(writev_to_file)

/* ---- Names, arguments. ---- */

TEST(stream_operations_are_known) {
    is_known(UPCALL_OP_READ, "read");
    is_known(UPCALL_OP_WRITE, "write");
    is_known(UPCALL_OP_READV, "readv");
    is_known(UPCALL_OP_WRITEV, "writev");
}

TEST(stream_operations_refuse_strange_fields) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    int fd = eventfd(0, EFD_CLOEXEC);
    refuses_strange_fields(upcall_op_read(fd, &byte, 1), UPCALL_FULL | LENDS);
    refuses_strange_fields(upcall_op_write(fd, &byte, 1), UPCALL_FULL);
    refuses_strange_fields(upcall_op_readv(fd, &part, 1), UPCALL_FULL);
    refuses_strange_fields(upcall_op_writev(fd, &part, 1), UPCALL_FULL);
}

TEST(stream_operations_refuse_bad_arguments) {
    char byte = 0;
    struct iovec null_part[] = {{&byte, 1}, {NULL, 7}}, huge[] = {{&byte, SIZE_MAX / 2}, {&byte, SIZE_MAX / 2}};
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    refused(loop, upcall_op_read(fds[0], NULL, 4096), EINVAL, "buf is NULL but len is 4096");
    refused(loop, upcall_op_write(fds[1], NULL, 1), EINVAL, "buf is NULL but len is 1");
    refused(loop, upcall_op_read(fds[0], &byte, (size_t)SSIZE_MAX + 1), EINVAL,
            "len is 9223372036854775808, more than SSIZE_MAX");
    refused(loop, upcall_op_write(fds[1], &byte, SIZE_MAX), EINVAL, "len is 18446744073709551615, more than SSIZE_MAX");
    refused(loop, upcall_op_readv(fds[0], NULL, 2), EINVAL, "iov is NULL but n is 2");
    refused(loop, upcall_op_writev(fds[1], NULL, 1), EINVAL, "iov is NULL but n is 1");
    refused(loop, upcall_op_readv(fds[0], null_part, 1025), EINVAL, "n is 1025, more than IOV_MAX (1024)");
    refused(loop, upcall_op_writev(fds[1], null_part, SIZE_MAX), EINVAL,
            "n is 18446744073709551615, more than IOV_MAX (1024)");
    refused(loop, upcall_op_readv(fds[0], null_part, 2), EINVAL, "iov[1].iov_base is NULL but iov_len is 7");
    refused(loop, upcall_op_writev(fds[1], null_part, 2), EINVAL, "iov[1].iov_base is NULL but iov_len is 7");
    refused(loop, upcall_op_readv(fds[0], huge, 2), EINVAL, "the lengths of iov add up to more than SSIZE_MAX");
    refused(loop, upcall_op_writev(fds[1], huge, 2), EINVAL, "the lengths of iov add up to more than SSIZE_MAX");
    CHECK(!is_readable(fds[0], 0));
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    upcall_loop *loop = new_loop();
    int fds[2], bad[5] = {-1, INT32_MIN, INT32_MAX, closed_fd(), open("/", O_PATH | O_CLOEXEC)};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_read(bad[i], &byte, 1), -EBADF);
        ends_with(loop, upcall_op_write(bad[i], &byte, 1), -EBADF);
        ends_with(loop, upcall_op_readv(bad[i], &part, 1), -EBADF);
        ends_with(loop, upcall_op_writev(bad[i], &part, 1), -EBADF);
    }
    pipe_pair(fds);
    BOTH(nonblocking) {
        ends_with(loop, upcall_op_read(fds[1], &byte, 1), -EBADF);
        ends_with(loop, upcall_op_readv(fds[1], &part, 1), -EBADF);
        ends_with(loop, upcall_op_write(fds[0], &byte, 1), -EBADF);
        ends_with(loop, upcall_op_writev(fds[0], &part, 1), -EBADF);
        set_nonblocking(fds[0]);
        set_nonblocking(fds[1]);
    }
    free_loop(loop);
}

TEST(what_only_the_kernel_knows_comes_in_the_event) {
    char bytes[64];
    struct iovec part = {bytes, sizeof bytes};
    upcall_loop *loop = new_loop();
    int directory = open("/", O_RDONLY | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int zero = open("/dev/zero", O_RDWR | O_CLOEXEC), full = open("/dev/full", O_RDWR | O_CLOEXEC);
    ends_with(loop, upcall_op_read(directory, bytes, 1), -EISDIR);
    ends_with(loop, upcall_op_readv(directory, &part, 1), -EISDIR);
    ends_with(loop, upcall_op_read(null, bytes, sizeof bytes), 0);
    ends_with(loop, upcall_op_write(null, bytes, sizeof bytes), sizeof bytes);
    memset(bytes, 1, sizeof bytes);
    ends_with(loop, upcall_op_readv(zero, &part, 1), sizeof bytes);
    CHECK_EQ(bytes[0], 0);
    CHECK_EQ(bytes[63], 0);
    ends_with(loop, upcall_op_write(full, bytes, 1), -ENOSPC);
    ends_with(loop, upcall_op_writev(full, &part, 1), -ENOSPC);
    free_loop(loop);
}

/* A length an eventfd does not take is an error at once, not a reason to wait. */
TEST(four_bytes_of_an_eventfd_are_EINVAL_whether_or_not_it_is_readable) {
    uint32_t four = 1;
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        int fd = eventfd(0, EFD_CLOEXEC | (nonblocking ? EFD_NONBLOCK : 0));
        ends_with(loop, upcall_op_read(fd, &four, sizeof four), -EINVAL);
        ends_with(loop, upcall_op_write(fd, &four, sizeof four), -EINVAL);
        CHECK(eventfd_write(fd, 1) == 0);
        ends_with(loop, upcall_op_read(fd, &four, sizeof four), -EINVAL);
        close(fd);
    }
    free_loop(loop);
}

/* Files that answer EOPNOTSUPP when asked not to wait. */
TEST(inotify_and_proc_are_read) {
    char bytes[512] = {0};
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct recorder rec = {0};
        enter_scratch();
        int fd = inotify_init1(IN_CLOEXEC | (nonblocking ? IN_NONBLOCK : 0));
        CHECK(inotify_add_watch(fd, ".", IN_CREATE) >= 0);
        upcall_id id = submit_one(loop, upcall_op_read(fd, bytes, sizeof bytes), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        make_file("new", 1);
        run_finals(loop, &rec, 1);
        CHECK(final_of(&rec, id).result >= (int64_t)sizeof(struct inotify_event));
        CHECK_STR_EQ(((struct inotify_event *)(void *)bytes)->name, "new");
        CHECK_EQ(has_nonblock(fd), nonblocking);
        close(fd);
        leave_scratch();
        forget(&rec);

        int status = open("/proc/self/status", O_RDONLY | O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0));
        ends_with(loop, upcall_op_read(status, bytes, 5), 5);
        CHECK(memcmp(bytes, "Name:", 5) == 0);
        ends_with(loop, upcall_op_write(status, bytes, 5), -EBADF);
        close(status);
    }
    free_loop(loop);
}

/* ---- Length 0, hazard 21. ---- */

TEST(nothing_to_read_or_write_ends_at_once_with_0) {
    static char nowhere[1];
    struct iovec empty[2] = {{NULL, 0}, {nowhere, 0}};
    upcall_loop *loop = new_loop();
    for (int which = PIPE; which < STREAMS; which++) {
        BOTH(nonblocking) {
            uint8_t ten[10];
            int fds[2];
            make_stream(which, fds);
            if (nonblocking) {
                set_nonblocking(fds[0]);
                set_nonblocking(fds[1]);
            }
            for (int full = 0; full < 2; full++) {
                upcall_op ops[] = {upcall_op_read(fds[0], NULL, 0),     upcall_op_read(fds[0], nowhere, 0),
                                   upcall_op_readv(fds[0], NULL, 0),    upcall_op_readv(fds[0], empty, 2),
                                   upcall_op_write(fds[1], NULL, 0),    upcall_op_write(fds[1], nowhere, 0),
                                   upcall_op_writev(fds[1], NULL, 0),   upcall_op_writev(fds[1], empty, 2)};
                for (size_t i = 0; i < COUNT_OF(ops); i++) {
                    ops[i].flags = full ? UPCALL_FULL : 0;
                    ends_with(loop, ops[i], 0);
                }
            }
            CHECK(!is_readable(fds[0], 0));
            fill_pattern(ten, sizeof ten, 0);
            write_all(fds[1], ten, sizeof ten);
            ends_with(loop, upcall_op_read(fds[0], nowhere, 0), 0);
            read_all(fds[0], ten, 10); /* nothing was taken */
            CHECK(has_pattern(ten, 10, 0));
            close_pair(fds);
        }
    }
    free_loop(loop);
}

TEST(nothing_to_read_or_write_leaves_a_file_alone) {
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    CHECK(lseek(fd, 4, SEEK_SET) == 4);
    ends_with(loop, upcall_op_read(fd, NULL, 0), 0);
    ends_with(loop, upcall_op_write(fd, NULL, 0), 0);
    ends_with(loop, upcall_op_readv(fd, NULL, 0), 0);
    ends_with(loop, upcall_op_writev(fd, NULL, 0), 0);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 4);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
    free_loop(loop);
}

/* An empty datagram is a datagram. */
TEST(a_write_of_length_0_sends_an_empty_datagram) {
    char byte;
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        int fds[2];
        dgram_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[1]);
        ends_with(loop, upcall_op_write(fds[1], NULL, 0), 0);
        CHECK(is_readable(fds[0], 0));
        CHECK_EQ(recv(fds[0], &byte, 1, MSG_DONTWAIT), 0);
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(a_read_takes_one_datagram) {
    char bytes[8];
    struct iovec part = {bytes, sizeof bytes};
    upcall_loop *loop = new_loop();
    int fds[2];
    dgram_pair(fds);
    CHECK(send(fds[1], "abc", 3, 0) == 3 && send(fds[1], "", 0, 0) == 0 && send(fds[1], "defghijklm", 10, 0) == 10);
    ends_with(loop, upcall_op_read(fds[0], bytes, sizeof bytes), 3);
    ends_with(loop, upcall_op_readv(fds[0], &part, 1), 0); /* the empty one, not an end */
    ends_with(loop, upcall_op_read(fds[0], bytes, sizeof bytes), 8); /* the rest of it is gone */
    CHECK(memcmp(bytes, "defghijk", 8) == 0);
    CHECK(send(fds[1], "abc", 3, 0) == 3);
    upcall_op whole = upcall_op_read(fds[0], bytes, sizeof bytes);
    whole.flags = UPCALL_FULL;
    ends_with(loop, whole, 3); /* on a message socket FULL is one message */
    free_loop(loop);
}

/* ---- Ends and errors, hazards 24 and 34. ---- */

/* End of file is seen by what already waits, and by what comes later. */
TEST(a_reader_sees_the_end) {
    static const int streams[] = {PIPE, UNIX, TCP, FIFO, TTY};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        for (int vector = 0; vector < 2; vector++) {
            BOTH(nonblocking) {
                char bytes[8];
                struct iovec part = {bytes, sizeof bytes};
                struct recorder rec = {0};
                int fds[2];
                make_stream(streams[i], fds);
                if (nonblocking)
                    set_nonblocking(fds[0]);
                upcall_op op = vector ? upcall_op_readv(fds[0], &part, 1) : upcall_op_read(fds[0], bytes, sizeof bytes);
                upcall_id id = submit_one(loop, op, &rec);
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                close(fds[1]);
                run_finals(loop, &rec, 1);
                CHECK_EQ(final_of(&rec, id).result, 0);
                ends_with(loop, op, 0);
                ends_with(loop, op, 0);
                CHECK_EQ(has_nonblock(fds[0]), nonblocking);
                close(fds[0]);
                forget(&rec);
            }
        }
    }
    free_loop(loop);
}

TEST(data_comes_before_the_end) {
    static const int streams[] = {PIPE, UNIX, TCP, FIFO};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        char bytes[8];
        int fds[2];
        make_stream(streams[i], fds);
        write_all(fds[1], "abc", 3);
        close(fds[1]);
        ends_with(loop, upcall_op_read(fds[0], bytes, 2), 2);
        ends_with(loop, upcall_op_read(fds[0], bytes, 8), 1);
        CHECK_EQ(bytes[0], 'c');
        ends_with(loop, upcall_op_read(fds[0], bytes, 8), 0);
        close(fds[0]);
    }
    free_loop(loop);
}

/* Hazard 24: no operation raises SIGPIPE. */
TEST(a_reader_that_is_gone_is_EPIPE_and_no_signal) {
    static const int streams[] = {PIPE, UNIX, FIFO};
    char byte = 1;
    struct iovec part = {&byte, 1};
    count_signals_of(SIGPIPE);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        BOTH(nonblocking) {
            int fds[2];
            make_stream(streams[i], fds);
            if (nonblocking)
                set_nonblocking(fds[1]);
            close(fds[0]);
            upcall_op ops[] = {upcall_op_write(fds[1], &byte, 1), upcall_op_writev(fds[1], &part, 1)};
            for (size_t k = 0; k < COUNT_OF(ops); k++) {
                ends_with(loop, ops[k], -EPIPE);
                ops[k].flags = UPCALL_FULL;
                ends_with(loop, ops[k], -EPIPE);
            }
            CHECK_EQ(has_nonblock(fds[1]), nonblocking);
            close(fds[1]);
        }
    }
    free_loop(loop);
    CHECK_EQ(signals_seen, 0);
}

/* The same with SIGPIPE as most programs have it: its default action would end this process. */
TEST(a_waiting_writer_learns_that_its_reader_is_gone) {
    static const int streams[] = {PIPE, UNIX, FIFO};
    CHECK(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        for (int vector = 0; vector < 2; vector++) {
            BOTH(nonblocking) {
                char byte = 1;
                struct iovec part = {&byte, 1};
                struct recorder rec = {0};
                int fds[2];
                make_stream(streams[i], fds);
                if (nonblocking)
                    set_nonblocking(fds[1]);
                fill_up(fds[1]);
                upcall_op op = vector ? upcall_op_writev(fds[1], &part, 1) : upcall_op_write(fds[1], &byte, 1);
                upcall_id id = submit_one(loop, op, &rec);
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                close(fds[0]);
                run_finals(loop, &rec, 1);
                CHECK_EQ(final_of(&rec, id).result, -EPIPE);
                CHECK_EQ(final_of(&rec, id).transferred, 0);
                close(fds[1]);
                forget(&rec);
            }
        }
    }
    free_loop(loop);
}

/* A SIGPIPE that the program blocked and raised itself is still pending afterwards: the library takes only its own. */
TEST(a_pending_SIGPIPE_of_the_program_stays_pending) {
    sigset_t set, pending;
    char byte = 1;
    int fds[2];
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    CHECK_EQ(pthread_kill(pthread_self(), SIGPIPE), 0);
    upcall_loop *loop = new_loop();
    pipe_pair(fds);
    close(fds[0]);
    ends_with(loop, upcall_op_write(fds[1], &byte, 1), -EPIPE);
    free_loop(loop);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0 && sigismember(&set, SIGPIPE) == 1);
}

TEST(a_reset_connection_is_ECONNRESET_then_the_end_then_EPIPE) {
    char bytes[8];
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        struct linger reset = {1, 0};
        struct recorder rec = {0};
        int fds[2];
        tcp_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[0]);
        upcall_id id = submit_one(loop, upcall_op_read(fds[0], bytes, sizeof bytes), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        CHECK(setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
        close(fds[1]);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, -ECONNRESET);
        ends_with(loop, upcall_op_read(fds[0], bytes, sizeof bytes), 0);
        ends_with(loop, upcall_op_write(fds[0], bytes, 1), -EPIPE);
        close(fds[0]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(a_terminal_without_master_is_EIO_to_write_to) {
    char byte = 1;
    upcall_loop *loop = new_loop();
    BOTH(nonblocking) {
        int fds[2];
        tty_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[0]);
        close(fds[1]);
        ends_with(loop, upcall_op_read(fds[0], &byte, 1), 0);
        ends_with(loop, upcall_op_write(fds[0], &byte, 1), -EIO);
        close(fds[0]);
    }
    free_loop(loop);
}

/* ---- UPCALL_FULL, hazard 20. ---- */

TEST(a_full_read_ends_once_with_all_of_it) {
    for (int which = PIPE; which < STREAMS; which++) {
        for (int vector = 0; vector < 2; vector++) {
            BOTH(nonblocking) {
                uint8_t bytes[100], sent[100];
                struct iovec parts[3] = {{bytes, 30}, {bytes + 30, 1}, {bytes + 31, 69}};
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(which, fds);
                if (nonblocking)
                    set_nonblocking(fds[0]);
                fill_pattern(sent, sizeof sent, 0);
                upcall_op op = vector ? upcall_op_readv(fds[0], parts, 3) : upcall_op_read(fds[0], bytes, sizeof bytes);
                op.flags = UPCALL_FULL;
                upcall_id id = submit_one(loop, op, &rec);
                memset(parts, 0, sizeof parts); /* the vector was copied */
                for (size_t done = 0, piece = 7; done < sizeof sent; done += piece) {
                    start_all(loop);
                    CHECK_EQ(rec.count, 0);
                    piece = sizeof sent - done < piece ? sizeof sent - done : piece;
                    write_all(fds[1], sent + done, piece);
                }
                run_finals(loop, &rec, 1);
                CHECK_EQ(rec.count, 1);
                CHECK_EQ(final_of(&rec, id).result, 100);
                CHECK_EQ(final_of(&rec, id).transferred, 100);
                CHECK(has_pattern(bytes, sizeof bytes, 0));
                close_pair(fds);
                free_loop(loop);
                forget(&rec);
            }
        }
    }
}

TEST(a_full_read_ends_short_at_the_end_of_the_stream) {
    static const int streams[] = {PIPE, UNIX, TCP, FIFO};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        BOTH(nonblocking) {
            char bytes[100];
            struct recorder rec = {0};
            int fds[2];
            make_stream(streams[i], fds);
            if (nonblocking)
                set_nonblocking(fds[0]);
            upcall_op op = upcall_op_read(fds[0], bytes, sizeof bytes);
            op.flags = UPCALL_FULL;
            upcall_id id = submit_one(loop, op, &rec);
            write_all(fds[1], "abcde", 5);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            close(fds[1]);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, 5);
            CHECK_EQ(final_of(&rec, id).transferred, 5);
            ends_with(loop, op, 0);
            close(fds[0]);
            forget(&rec);
        }
    }
    free_loop(loop);
}

/* Half-way through: the bytes already moved are told, and the rest is still in the stream. */
TEST(an_interrupted_full_read_tells_what_it_read) {
    for (int which = PIPE; which < STREAMS; which++) {
        for (int expires = 0; expires < 2; expires++) {
            BOTH(nonblocking) {
                uint8_t bytes[100], sent[20];
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(which, fds);
                if (nonblocking)
                    set_nonblocking(fds[0]);
                upcall_op op = upcall_op_read(fds[0], bytes, sizeof bytes);
                op.flags = UPCALL_FULL;
                op.timeout_ns = expires ? (uint64_t)MS(50) : 0;
                fill_pattern(sent, sizeof sent, 0);
                write_all(fds[1], sent, 10);
                CHECK(is_readable(fds[0], 1000));
                upcall_id id = submit_one(loop, op, &rec);
                for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; is_readable(fds[0], 0) && now_ns() < limit;)
                    CHECK(upcall_poll(loop, 0) >= 0);
                if (!expires) {
                    start_all(loop);
                    CHECK_EQ(rec.count, 0);
                    CHECK_EQ(upcall_cancel(loop, id), 0);
                }
                run_finals(loop, &rec, 1);
                CHECK_EQ(rec.count, 1);
                CHECK_EQ(final_of(&rec, id).result, expires ? -ETIMEDOUT : -ECANCELED);
                CHECK_EQ(final_of(&rec, id).flags, expires ? UPCALL_EXPIRED : 0);
                CHECK_EQ(final_of(&rec, id).transferred, 10);
                CHECK(has_pattern(bytes, 10, 0));
                write_all(fds[1], sent + 10, 10);
                CHECK(is_readable(fds[0], 1000));
                read_all(fds[0], bytes, 10);
                CHECK(has_pattern(bytes, 10, 10));
                close_pair(fds);
                free_loop(loop);
                forget(&rec);
            }
        }
    }
}

#define LOTS (3u << 20)

struct drain {
    int fd;
    uint8_t *into;
    size_t count;
};

static void *drain_slowly(void *arg) {
    struct drain *drain = arg;
    for (size_t done = 0; done < drain->count;) {
        size_t piece = drain->count - done < 60000 ? drain->count - done : 60000;
        ssize_t n = read(drain->fd, drain->into + done, piece);
        CHECK(n > 0);
        done += (size_t)n;
    }
    return NULL;
}

TEST(a_full_write_ends_once_with_all_of_it) {
    static const int streams[] = {PIPE, UNIX, TCP, FIFO};
    uint8_t *sent = malloc(LOTS), *got = malloc(LOTS);
    fill_pattern(sent, LOTS, 0);
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        for (int vector = 0; vector < 2; vector++) {
            BOTH(nonblocking) {
                struct iovec parts[4] = {
                    {sent, 100001}, {sent + 100001, 0}, {sent + 100001, 1}, {sent + 100002, LOTS - 100002}};
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(streams[i], fds);
                if (nonblocking)
                    set_nonblocking(fds[1]);
                memset(got, 0, LOTS);
                struct drain drain = {fds[0], got, LOTS};
                upcall_op op = vector ? upcall_op_writev(fds[1], parts, 4) : upcall_op_write(fds[1], sent, LOTS);
                op.flags = UPCALL_FULL;
                upcall_id id = submit_one(loop, op, &rec);
                memset(parts, 0xff, sizeof parts); /* the vector was copied (hazard 37) */
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                pthread_t reader = start(drain_slowly, &drain);
                run_finals(loop, &rec, 1);
                CHECK_EQ(rec.count, 1);
                CHECK_EQ(final_of(&rec, id).result, LOTS);
                CHECK_EQ(final_of(&rec, id).transferred, LOTS);
                join(reader);
                CHECK(memcmp(got, sent, LOTS) == 0);
                CHECK_EQ(has_nonblock(fds[1]), nonblocking);
                close_pair(fds);
                free_loop(loop);
                forget(&rec);
            }
        }
    }
}

/* Every byte that an interrupted write says it wrote is there for the reader, and no other. */
TEST(an_interrupted_full_write_tells_what_it_wrote) {
    static const int streams[] = {PIPE, UNIX, TCP, FIFO, TTY};
    uint8_t *sent = malloc(LOTS), *got = malloc(LOTS);
    fill_pattern(sent, LOTS, 0);
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        for (int expires = 0; expires < 2; expires++) {
            BOTH(nonblocking) {
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                int fds[2];
                make_stream(streams[i], fds);
                if (nonblocking)
                    set_nonblocking(fds[1]);
                upcall_op op = upcall_op_write(fds[1], sent, LOTS);
                op.flags = UPCALL_FULL;
                op.timeout_ns = expires ? (uint64_t)MS(50) : 0;
                upcall_id id = submit_one(loop, op, &rec);
                start_all(loop);
                CHECK(is_readable(fds[0], 1000));
                CHECK_EQ(rec.count, 0);
                if (!expires)
                    CHECK_EQ(upcall_cancel(loop, id), 0);
                run_finals(loop, &rec, 1);
                struct record final = final_of(&rec, id);
                CHECK_EQ(rec.count, 1);
                CHECK_EQ(final.result, expires ? -ETIMEDOUT : -ECANCELED);
                CHECK_EQ(final.flags, expires ? UPCALL_EXPIRED : 0);
                CHECK(final.transferred > 0 && final.transferred < LOTS);
                free_loop(loop);
                read_all(fds[0], got, final.transferred);
                CHECK(memcmp(got, sent, final.transferred) == 0);
                CHECK(!is_readable(fds[0], 20));
                close_pair(fds);
                forget(&rec);
            }
        }
    }
}

TEST(a_full_write_that_fails_half_way_tells_what_it_wrote) {
    static const int streams[] = {PIPE, UNIX, FIFO};
    uint8_t *sent = malloc(LOTS);
    memset(sent, 1, LOTS);
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        BOTH(nonblocking) {
            struct recorder rec = {0};
            int fds[2];
            make_stream(streams[i], fds);
            if (nonblocking)
                set_nonblocking(fds[1]);
            upcall_op op = upcall_op_write(fds[1], sent, LOTS);
            op.flags = UPCALL_FULL;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            CHECK(is_readable(fds[0], 1000));
            CHECK_EQ(rec.count, 0);
            close(fds[0]);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, -EPIPE);
            CHECK_EQ(final_of(&rec, id).flags, 0);
            CHECK(final_of(&rec, id).transferred > 0 && final_of(&rec, id).transferred < LOTS);
            close(fds[1]);
            forget(&rec);
        }
    }
    free_loop(loop);
}

TEST(a_full_read_of_a_file_ends_at_its_end) {
    uint8_t bytes[200];
    upcall_loop *loop = new_loop();
    int fd = temp_file(100);
    upcall_op op = upcall_op_read(fd, bytes, sizeof bytes);
    op.flags = UPCALL_FULL;
    ends_with(loop, op, 100);
    CHECK(has_pattern(bytes, 100, 0));
    ends_with(loop, op, 0);
    free_loop(loop);
}

/* ---- Lengths above what one call takes, hazard 22. ---- */

TEST(lengths_above_one_calls_limit_are_taken) {
    static const size_t lengths[] = {0x7ffff000, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000};
    upcall_loop *loop = new_loop();
    uint8_t *memory = vast_memory((size_t)5 << 30);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        struct iovec parts[2] = {{memory, lengths[i] - 1}, {memory + lengths[i] - 1, 1}};
        int64_t once = lengths[i] < 0x7ffff000 ? (int64_t)lengths[i] : 0x7ffff000; /* MAX_RW_COUNT, read(2) */
        for (int which = PIPE; which < STREAMS; which++) {
            int fds[2];
            make_stream(which, fds);
            write_all(fds[1], "abcde", 5);
            CHECK(is_readable(fds[0], 1000));
            ends_with(loop, upcall_op_read(fds[0], memory, lengths[i]), 5);
            write_all(fds[1], "abcde", 5);
            CHECK(is_readable(fds[0], 1000));
            ends_with(loop, upcall_op_readv(fds[0], parts, 2), 5);
            close_pair(fds);
        }
        ends_with(loop, upcall_op_write(null, memory, lengths[i]), once);
        ends_with(loop, upcall_op_writev(null, parts, 2), once);
        upcall_op whole = upcall_op_write(null, memory, lengths[i]);
        whole.flags = UPCALL_FULL;
        ends_with(loop, whole, (int64_t)lengths[i]);
        whole = upcall_op_writev(null, parts, 2);
        whole.flags = UPCALL_FULL;
        ends_with(loop, whole, (int64_t)lengths[i]);
    }
    free_loop(loop);
}

TEST(a_vector_has_up_to_1024_parts) {
    static uint8_t from[1024], into[1024];
    struct iovec out[1024], in[1024];
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    fill_pattern(from, sizeof from, 0);
    for (size_t i = 0; i < 1024; i++) {
        out[i] = (struct iovec){from + i, 1};
        in[i] = (struct iovec){into + 1023 - i, 1};
    }
    upcall_op write_op = upcall_op_writev(fds[1], out, 1024), read_op = upcall_op_readv(fds[0], in, 1024);
    struct recorder rec = {0};
    upcall_id ids[2];
    upcall_op ops[2] = {write_op, read_op};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    memset(out, 0, sizeof out); /* both were copied (hazard 37) */
    memset(in, 0, sizeof in);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, 1024);
    CHECK_EQ(final_of(&rec, ids[1]).result, 1024);
    for (size_t i = 0; i < 1024; i++)
        CHECK_EQ(into[1023 - i], from[i]);
    free_loop(loop);
}

/* ---- Buffers lent by a pool. ---- */

TEST(a_read_borrows_a_buffer_when_data_is_there) {
    static const int objects[] = {PIPE, UNIX, TCP, TTY, FIFO, REGULAR};
    for (size_t i = 0; i < COUNT_OF(objects); i++) {
        BOTH(nonblocking) {
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            upcall_buffers *pool = NULL;
            int fds[2] = {-1, -1};
            CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
            if (objects[i] == REGULAR)
                fds[0] = temp_file(10);
            else
                make_stream(objects[i], fds);
            if (nonblocking)
                set_nonblocking(fds[0]);
            upcall_op op = upcall_op_read(fds[0], NULL, 0);
            op.buffers = pool;
            upcall_id id = submit_one(loop, op, &rec);
            CHECK_EQ(upcall_buffers_free(pool), -EBUSY); /* an operation uses it */
            if (objects[i] != REGULAR) {
                uint8_t ten[10];
                start_all(loop);
                CHECK_EQ(rec.count, 0);
                fill_pattern(ten, sizeof ten, 0);
                write_all(fds[1], ten, sizeof ten);
            }
            run_finals(loop, &rec, 1);
            struct record final = final_of(&rec, id);
            CHECK_EQ(rec.count, 1);
            CHECK_EQ(final.result, 10);
            CHECK_EQ(final.transferred, 10);
            CHECK(final.buffer != NULL);
            CHECK(has_pattern(final.buffer, 10, 0));
            CHECK_EQ(upcall_buffers_free(pool), -EBUSY); /* a buffer is lent */
            CHECK_EQ(upcall_buffers_return(pool, (char *)final.buffer + 1), -EINVAL);
            CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
            CHECK_EQ(upcall_buffers_return(pool, final.buffer), -EINVAL);

            if (objects[i] != REGULAR)
                close(fds[1]);
            struct record end = complete(loop, op); /* the end lends nothing */
            CHECK_EQ(end.result, 0);
            CHECK(end.buffer == NULL);
            op = upcall_op_read(closed_fd(), NULL, 0);
            op.buffers = pool;
            struct record bad = complete(loop, op);
            CHECK_EQ(bad.result, -EBADF);
            CHECK(bad.buffer == NULL);
            CHECK_EQ(has_nonblock(fds[0]), nonblocking);
            close(fds[0]);
            CHECK_EQ(upcall_buffers_free(pool), 0);
            free_loop(loop);
            forget(&rec);
        }
    }
}

TEST(a_borrowing_read_is_bounded_by_its_length_and_by_the_buffer) {
    upcall_loop *loop = new_loop();
    upcall_buffers *pool = NULL;
    uint8_t sent[100];
    int fds[2];
    CHECK_EQ(upcall_buffers_new(loop, 2, 16, &pool), 0);
    pipe_pair(fds);
    fill_pattern(sent, sizeof sent, 0);
    write_all(fds[1], sent, sizeof sent);
    static const struct { size_t length; int64_t result; } rows[] = {{4, 4}, {0, 16}, {16, 16}, {SSIZE_MAX, 16}};
    uint64_t from = 0;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        upcall_op op = upcall_op_read(fds[0], NULL, rows[i].length);
        op.buffers = pool;
        struct record final = complete(loop, op);
        CHECK_EQ(final.result, rows[i].result);
        CHECK(has_pattern(final.buffer, (size_t)final.result, from));
        from += (uint64_t)final.result;
        CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
    }
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

TEST(an_interrupted_borrowing_read_holds_no_buffer) {
    BOTH(nonblocking) {
        for (int expires = 0; expires < 2; expires++) {
            for (int started = 0; started < 2; started++) {
                struct recorder rec = {0};
                upcall_loop *loop = new_loop();
                upcall_buffers *pool = NULL;
                int fds[2];
                CHECK_EQ(upcall_buffers_new(loop, 1, 16, &pool), 0);
                pipe_pair(fds);
                if (nonblocking)
                    set_nonblocking(fds[0]);
                upcall_op op = upcall_op_read(fds[0], NULL, 0);
                op.buffers = pool;
                op.timeout_ns = expires ? (uint64_t)MS(20) : 0;
                upcall_id id = submit_one(loop, op, &rec);
                if (started)
                    start_all(loop);
                if (!expires)
                    CHECK_EQ(upcall_cancel(loop, id), 0);
                run_finals(loop, &rec, 1);
                CHECK_EQ(final_of(&rec, id).result, expires ? -ETIMEDOUT : -ECANCELED);
                CHECK(final_of(&rec, id).buffer == NULL);
                write_all(fds[1], "abc", 3); /* nothing was lost */
                op.timeout_ns = 0;
                struct record next = complete(loop, op);
                CHECK_EQ(next.result, 3);
                CHECK_EQ(upcall_buffers_return(pool, next.buffer), 0);
                CHECK_EQ(upcall_buffers_free(pool), 0);
                close_pair(fds);
                free_loop(loop);
                forget(&rec);
            }
        }
    }
}

/* Hazard 31: a dry pool is back-pressure, never -ENOBUFS. */
TEST(a_dry_pool_pauses_reads_until_a_buffer_comes_back) {
    BOTH(nonblocking) {
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        upcall_buffers *pool = NULL;
        upcall_op ops[8];
        upcall_id ids[8];
        int fds[2];
        CHECK_EQ(upcall_buffers_new(loop, 2, 4, &pool), 0);
        pipe_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[0]);
        write_all(fds[1], "abcdefghijklmnopqrstuvwxyz012345", 32);
        for (size_t i = 0; i < COUNT_OF(ops); i++) {
            ops[i] = upcall_op_read(fds[0], NULL, 0);
            ops[i].buffers = pool;
        }
        submit_many(loop, ops, COUNT_OF(ops), &rec, ids);
        uint64_t bytes = 0;
        for (size_t returned = 0; returned < COUNT_OF(ops); returned++) {
            run_until(loop, &rec, returned + 1);
            start_all(loop);
            CHECK(rec.count <= returned + 2); /* two buffers, two events at most before one is returned */
            CHECK(rec.events[returned].result == 4);
            bytes += rec.events[returned].transferred;
            CHECK_EQ(upcall_buffers_return(pool, rec.events[returned].buffer), 0);
        }
        CHECK_EQ(bytes, 32);
        check_finals(&rec, ids, COUNT_OF(ids));
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(fds);
        free_loop(loop);
        forget(&rec);
    }
}

/* ---- Several operations on one descriptor. ---- */

/* A regular file has one position: such operations run one at a time, in submission order (hazard 23). */
TEST(reads_of_a_file_move_its_position_in_submission_order) {
    BOTH(nonblocking) {
        uint8_t bytes[64][100];
        struct iovec parts[64][2];
        upcall_op ops[64];
        upcall_id ids[64];
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        int fd = temp_file(64 * 100);
        if (nonblocking)
            set_nonblocking(fd);
        for (size_t i = 0; i < COUNT_OF(ops); i++) {
            parts[i][0] = (struct iovec){bytes[i], 40};
            parts[i][1] = (struct iovec){bytes[i] + 40, 60};
            ops[i] = i % 2 ? upcall_op_readv(fd, parts[i], 2) : upcall_op_read(fd, bytes[i], 100);
        }
        submit_many(loop, ops, 32, &rec, ids);
        submit_many(loop, ops + 32, 32, &rec, ids + 32);
        run_finals(loop, &rec, COUNT_OF(ops));
        check_finals(&rec, ids, COUNT_OF(ids));
        for (size_t i = 0; i < COUNT_OF(ops); i++) {
            CHECK_EQ(final_of(&rec, ids[i]).result, 100);
            CHECK(has_pattern(bytes[i], 100, i * 100));
        }
        CHECK_EQ(lseek(fd, 0, SEEK_CUR), 6400);
        close(fd);
        free_loop(loop);
        forget(&rec);
    }
}

TEST(writes_to_a_file_land_in_submission_order) {
    BOTH(nonblocking) {
        uint8_t bytes[64][100], all[6400];
        struct iovec parts[64][2];
        upcall_op ops[64];
        upcall_id ids[64];
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        int fd = temp_file(0);
        if (nonblocking)
            set_nonblocking(fd);
        for (size_t i = 0; i < COUNT_OF(ops); i++) {
            fill_pattern(bytes[i], 100, i * 100);
            parts[i][0] = (struct iovec){bytes[i], 1};
            parts[i][1] = (struct iovec){bytes[i] + 1, 99};
            ops[i] = i % 2 ? upcall_op_writev(fd, parts[i], 2) : upcall_op_write(fd, bytes[i], 100);
        }
        submit_many(loop, ops, 1, &rec, ids);
        submit_many(loop, ops + 1, 63, &rec, ids + 1);
        run_finals(loop, &rec, COUNT_OF(ops));
        check_finals(&rec, ids, COUNT_OF(ids));
        CHECK_EQ(pread(fd, all, sizeof all, 0), 6400);
        CHECK(has_pattern(all, sizeof all, 0));
        CHECK_EQ(lseek(fd, 0, SEEK_CUR), 6400);
        close(fd);
        free_loop(loop);
        forget(&rec);
    }
}

/* One that never started, in the middle of such a row, does not hold up the others nor move the position. */
TEST(a_cancelled_read_of_a_file_leaves_no_gap) {
    uint8_t bytes[3][100];
    upcall_op ops[3];
    upcall_id ids[3];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    int fd = temp_file(1000);
    for (size_t i = 0; i < COUNT_OF(ops); i++)
        ops[i] = upcall_op_read(fd, bytes[i], 100);
    submit_many(loop, ops, 3, &rec, ids);
    CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
    run_finals(loop, &rec, 3);
    check_finals(&rec, ids, 3);
    CHECK_EQ(final_of(&rec, ids[0]).result, 100);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[2]).result, 100);
    CHECK(has_pattern(bytes[2], 100, 100));
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 200);
    free_loop(loop);
    forget(&rec);
}

TEST(many_reads_of_one_stream_share_its_bytes) {
    for (int which = PIPE; which < STREAMS; which++) {
        BOTH(nonblocking) {
            uint8_t bytes[50], seen[256] = {0};
            upcall_op ops[50];
            upcall_id ids[50];
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            int fds[2];
            make_stream(which, fds);
            if (nonblocking)
                set_nonblocking(fds[0]);
            for (size_t i = 0; i < COUNT_OF(ops); i++)
                ops[i] = upcall_op_read(fds[0], &bytes[i], 1);
            submit_many(loop, ops, COUNT_OF(ops), &rec, ids);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            for (uint8_t i = 0; i < COUNT_OF(ops); i++) {
                write_all(fds[1], &i, 1);
                if (i % 7 == 0)
                    CHECK(upcall_poll(loop, 0) >= 0);
            }
            run_finals(loop, &rec, COUNT_OF(ops));
            check_finals(&rec, ids, COUNT_OF(ids));
            for (size_t i = 0; i < COUNT_OF(ops); i++) {
                CHECK_EQ(final_of(&rec, ids[i]).result, 1);
                CHECK(bytes[i] < COUNT_OF(ops));
                CHECK_EQ(seen[bytes[i]]++, 0);
            }
            close_pair(fds);
            free_loop(loop);
            forget(&rec);
        }
    }
}

TEST(cancelling_one_of_several_waiting_reads_leaves_the_others) {
    BOTH(nonblocking) {
        char bytes[3];
        upcall_op ops[3];
        upcall_id ids[3];
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        int fds[2];
        pipe_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[0]);
        for (size_t i = 0; i < COUNT_OF(ops); i++)
            ops[i] = upcall_op_read(fds[0], &bytes[i], 1);
        submit_many(loop, ops, 3, &rec, ids);
        start_all(loop);
        CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
        write_all(fds[1], "ab", 2);
        run_finals(loop, &rec, 3);
        check_finals(&rec, ids, 3);
        CHECK_EQ(final_of(&rec, ids[0]).result, 1);
        CHECK_EQ(final_of(&rec, ids[2]).result, 1);
        CHECK(bytes[0] + bytes[2] == 'a' + 'b');
        close_pair(fds);
        free_loop(loop);
        forget(&rec);
    }
}

/* A reader and a writer wait on one descriptor without disturbing each other. */
TEST(a_socket_is_read_and_written_at_once) {
    static const int streams[] = {UNIX, TCP, TTY};
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        BOTH(nonblocking) {
            char in[8];
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            int fds[2];
            make_stream(streams[i], fds);
            if (nonblocking)
                set_nonblocking(fds[1]);
            size_t filled = fill_for_good(streams[i], fds[1]);
            upcall_id reader = submit_one(loop, upcall_op_read(fds[1], in, sizeof in), &rec);
            upcall_id writer = submit_one(loop, upcall_op_write(fds[1], "xyz", 3), &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            write_all(fds[0], "abc", 3);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, reader).result, 3);
            take(fds[0], filled);
            run_finals(loop, &rec, 2);
            CHECK_EQ(final_of(&rec, writer).result, 3);
            read_all(fds[0], in, 3);
            CHECK(memcmp(in, "xyz", 3) == 0);
            close_pair(fds);
            free_loop(loop);
            forget(&rec);
        }
    }
}

/* More waits on blocking terminals and named pipes than the pool has threads: files are still served. */
TEST(waiting_streams_take_no_pool_thread) {
    enum { WAITING = 24 };
    char bytes[2][WAITING], line[8];
    upcall_config config = default_config();
    config.workers = 2;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0}, files = {0};
    int ttys[WAITING][2], fifos[WAITING][2];
    for (size_t i = 0; i < WAITING; i++) {
        tty_pair(ttys[i]);
        fifo_pair(fifos[i]);
        submit_one(loop, upcall_op_read(ttys[i][0], &bytes[0][i], 1), &rec);
        submit_one(loop, upcall_op_read(fifos[i][0], &bytes[1][i], 1), &rec);
    }
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    int status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    int file = temp_file(10);
    submit_one(loop, upcall_op_read(status, line, sizeof line), &files);
    submit_one(loop, upcall_op_fsync(file), &files);
    run_finals(loop, &files, 2);
    CHECK_EQ(files.events[0].result >= 0 && files.events[1].result >= 0, true);
    CHECK_EQ(rec.count, 0);
    for (size_t i = 0; i < WAITING; i++) {
        write_all(ttys[i][1], "t", 1);
        write_all(fifos[i][1], "f", 1);
    }
    run_finals(loop, &rec, (size_t)2 * WAITING);
    for (size_t i = 0; i < WAITING; i++)
        CHECK(bytes[0][i] == 't' && bytes[1][i] == 'f');
    free_loop(loop);
    forget(&rec);
    forget(&files);
}

/* Hazard 18: signals that interrupt the kernel's work do not show in any result. */
TEST(signals_do_not_show_in_results) {
    for (int which = PIPE; which < STREAMS; which++) {
        BOTH(nonblocking) {
            char byte;
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            int in[2], out[2];
            make_stream(which, in);
            make_stream(which, out);
            if (nonblocking) {
                set_nonblocking(in[0]);
                set_nonblocking(out[1]);
            }
            size_t filled = fill_for_good(which, out[1]);
            start_alarms();
            for (size_t i = 0; i < 10; i++) {
                submit_one(loop, upcall_op_read(in[0], &byte, 1), &rec);
                for (uint64_t limit = now_ns() + (uint64_t)MS(3); now_ns() < limit;)
                    CHECK(upcall_poll(loop, MS(1)) >= 0);
                CHECK_EQ(rec.count, i);
                write_all(in[1], "x", 1);
                run_finals(loop, &rec, i + 1);
                CHECK_EQ(rec.events[i].result, 1);
            }
            upcall_id id = submit_one(loop, upcall_op_write(out[1], "abc", 3), &rec);
            for (uint64_t limit = now_ns() + (uint64_t)MS(3); now_ns() < limit;)
                CHECK(upcall_poll(loop, MS(1)) >= 0);
            CHECK_EQ(rec.count, 10);
            take(out[0], filled);
            run_finals(loop, &rec, 11);
            CHECK_EQ(final_of(&rec, id).result, 3);
            stop_alarms();
            CHECK(signals_seen > 0);
            close_pair(in);
            close_pair(out);
            free_loop(loop);
            forget(&rec);
        }
    }
}

/* A number that was closed and used again is a new descriptor (hazard 12). */
TEST(a_reused_number_is_a_new_descriptor) {
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 20; round++) {
        char byte = (char)round;
        struct recorder rec = {0};
        int fds[2];
        make_stream(round % STREAMS, fds);
        upcall_id id = submit_one(loop, upcall_op_read(fds[0], &byte, 1), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        CHECK(write(fds[1], "z", 1) == 1);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, 1);
        CHECK_EQ(byte, 'z');
        close_pair(fds); /* nothing is in flight on it */
        forget(&rec);
    }
    free_loop(loop);
}
