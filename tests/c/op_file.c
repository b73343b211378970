/*
 * pread, pwrite, fsync and fdatasync: positions, ends of files, limits, and what is no file.
 */
#include "op_support.h"

#include <sys/timerfd.h>

/* ---- Subjects. A file is never waited for, so that cancel comes before the start or too late. ---- */

static void set_file(struct scene *scene) {
    scene->fd = temp_file(200);
    CHECK(lseek(scene->fd, 11, SEEK_SET) == 11);
    if (scene->subject->kind == UPCALL_OP_PWRITE)
        fill_pattern(scene->data, 64, 5000);
}

static upcall_op make_file_op(struct scene *scene) {
    switch (scene->subject->kind) {
    case UPCALL_OP_PREAD: return upcall_op_pread(scene->fd, scene->data, 64, 100);
    case UPCALL_OP_PWRITE: return upcall_op_pwrite(scene->fd, scene->data, 64, 170);
    case UPCALL_OP_FSYNC: return upcall_op_fsync(scene->fd);
    default: return upcall_op_fdatasync(scene->fd);
    }
}

static void file_is_as_made(struct scene *scene) {
    uint8_t all[300];
    CHECK_EQ(pread(scene->fd, all, sizeof all, 0), 200);
    CHECK(has_pattern(all, 200, 0));
    CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 11); /* no shared position */
}

static void file_op_is_done(struct scene *scene, struct record final) {
    uint8_t all[300];
    switch (scene->subject->kind) {
    case UPCALL_OP_PREAD:
        CHECK_EQ(final.result, 64);
        CHECK(has_pattern(scene->data, 64, 100));
        CHECK_EQ(scene->data[64], 0xee);
        file_is_as_made(scene);
        return;
    case UPCALL_OP_PWRITE:
        CHECK_EQ(final.result, 64);
        CHECK_EQ(pread(scene->fd, all, sizeof all, 0), 234);
        CHECK(has_pattern(all, 170, 0) && has_pattern(all + 170, 64, 5000));
        CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 11);
        return;
    default:
        CHECK_EQ(final.result, 0);
        CHECK_EQ(final.transferred, 0);
        file_is_as_made(scene);
    }
}

#define ON_FILE(name, kind_)                                                                                           \
    static const struct subject name = {.kind = kind_, .set_up = set_file, .make = make_file_op,                       \
        .done = file_op_is_done, .intact = file_is_as_made};
ON_FILE(pread_a_file, UPCALL_OP_PREAD)
ON_FILE(pwrite_a_file, UPCALL_OP_PWRITE)
ON_FILE(fsync_a_file, UPCALL_OP_FSYNC)
ON_FILE(fdatasync_a_file, UPCALL_OP_FDATASYNC)
PROMISES(pread_a_file)
PROMISES(pwrite_a_file)
PROMISES(fsync_a_file)
PROMISES(fdatasync_a_file)

/* ---- Names, arguments. ---- */

TEST(file_operations_are_known) {
    is_known(UPCALL_OP_PREAD, "pread");
    is_known(UPCALL_OP_PWRITE, "pwrite");
    is_known(UPCALL_OP_FSYNC, "fsync");
    is_known(UPCALL_OP_FDATASYNC, "fdatasync");
}

TEST(file_operations_refuse_strange_fields) {
    char byte = 0;
    int fd = temp_file(1);
    refuses_strange_fields(upcall_op_pread(fd, &byte, 1, 0), UPCALL_FULL);
    refuses_strange_fields(upcall_op_pwrite(fd, &byte, 1, 0), UPCALL_FULL);
    refuses_strange_fields(upcall_op_fsync(fd), 0);
    refuses_strange_fields(upcall_op_fdatasync(fd), 0);
}

TEST(file_operations_refuse_bad_arguments) {
    char byte = 0;
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    refused(loop, upcall_op_pread(fd, NULL, 4096, 0), EINVAL, "buf is NULL but len is 4096");
    refused(loop, upcall_op_pwrite(fd, NULL, 1, 0), EINVAL, "buf is NULL but len is 1");
    refused(loop, upcall_op_pread(fd, &byte, (size_t)SSIZE_MAX + 1, 0), EINVAL,
            "len is 9223372036854775808, more than SSIZE_MAX");
    refused(loop, upcall_op_pwrite(fd, &byte, SIZE_MAX, 0), EINVAL,
            "len is 18446744073709551615, more than SSIZE_MAX");
    refused(loop, upcall_op_pread(fd, &byte, 1, -1), EINVAL, "offset is -1, less than 0");
    refused(loop, upcall_op_pwrite(fd, &byte, 1, -1), EINVAL, "offset is -1, less than 0");
    refused(loop, upcall_op_pread(fd, &byte, 1, INT64_MIN), EINVAL, "offset is -9223372036854775808, less than 0");
    refused(loop, upcall_op_pwrite(fd, &byte, 1, -2), EINVAL, "offset is -2, less than 0");
    CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    char byte = 0;
    upcall_loop *loop = new_loop();
    int bad[5] = {-1, INT32_MIN, INT32_MAX, closed_fd(), open("/", O_PATH | O_CLOEXEC)};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_pread(bad[i], &byte, 1, 0), -EBADF);
        ends_with(loop, upcall_op_pwrite(bad[i], &byte, 1, 0), -EBADF);
        ends_with(loop, upcall_op_fsync(bad[i]), -EBADF);
        ends_with(loop, upcall_op_fdatasync(bad[i]), -EBADF);
    }
    free_loop(loop);
}

TEST(the_wrong_way_round_is_EBADF) {
    char byte = 0;
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 10);
    int writer = open("file", O_WRONLY | O_CLOEXEC), reader = open("file", O_RDONLY | O_CLOEXEC);
    ends_with(loop, upcall_op_pread(writer, &byte, 1, 0), -EBADF);
    ends_with(loop, upcall_op_pwrite(reader, &byte, 1, 0), -EBADF);
    ends_with(loop, upcall_op_pread(reader, &byte, 1, 0), 1);
    ends_with(loop, upcall_op_pwrite(writer, &byte, 1, 0), 1);
    ends_with(loop, upcall_op_fsync(writer), 0);
    ends_with(loop, upcall_op_fsync(reader), 0); /* fsync(2) needs no right to write */
    ends_with(loop, upcall_op_fdatasync(reader), 0);
    leave_scratch();
    free_loop(loop);
}

/* ---- Positions, hazard 23. ---- */

/* Waiting data, an empty stream, and a length of 0 make no difference: it is not the place for a position. */
TEST(a_position_on_a_stream_is_ESPIPE) {
    char bytes[8];
    upcall_loop *loop = new_loop();
    for (int which = PIPE; which < STREAMS; which++) {
        for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
            int fds[2];
            make_stream(which, fds);
            if (nonblocking) {
                set_nonblocking(fds[0]);
                set_nonblocking(fds[1]);
            }
            for (int64_t offset = 0; offset < 2; offset++) {
                ends_with(loop, upcall_op_pread(fds[0], bytes, sizeof bytes, offset), -ESPIPE);
                ends_with(loop, upcall_op_pwrite(fds[1], bytes, sizeof bytes, offset), -ESPIPE);
            }
            ends_with(loop, upcall_op_pread(fds[0], NULL, 0, 0), -ESPIPE);
            upcall_op whole = upcall_op_pread(fds[0], bytes, sizeof bytes, 0);
            whole.flags = UPCALL_FULL;
            ends_with(loop, whole, -ESPIPE);
            CHECK(!is_readable(fds[0], 0));
            write_all(fds[1], "abc", 3);
            CHECK(is_readable(fds[0], 1000));
            ends_with(loop, upcall_op_pread(fds[0], bytes, sizeof bytes, 0), -ESPIPE);
            read_all(fds[0], bytes, 3); /* nothing was taken */
            CHECK_EQ(has_nonblock(fds[0]), nonblocking);
            close_pair(fds);
        }
    }
    free_loop(loop);
}

/* These let themselves be asked for their position, but pread(2) refuses them. */
TEST(a_position_on_an_eventfd_or_timerfd_is_ESPIPE) {
    uint64_t value = 1;
    upcall_loop *loop = new_loop();
    int counter = eventfd(3, EFD_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    ends_with(loop, upcall_op_pread(counter, &value, sizeof value, 0), -ESPIPE);
    ends_with(loop, upcall_op_pwrite(counter, &value, sizeof value, 0), -ESPIPE);
    ends_with(loop, upcall_op_pread(timer, &value, sizeof value, 0), -ESPIPE);
    eventfd_t count = 0;
    CHECK(eventfd_read(counter, &count) == 0);
    CHECK_EQ(count, 3);
    free_loop(loop);
}

TEST(a_directory_is_EISDIR) {
    char byte;
    upcall_loop *loop = new_loop();
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ends_with(loop, upcall_op_pread(fd, &byte, 1, 0), -EISDIR);
    ends_with(loop, upcall_op_pwrite(fd, &byte, 1, 0), -EBADF);
    free_loop(loop);
}

TEST(a_directory_can_be_made_durable) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ends_with(loop, upcall_op_fsync(fd), 0);
    ends_with(loop, upcall_op_fdatasync(fd), 0);
    leave_scratch();
    free_loop(loop);
}

TEST(what_is_not_on_a_disk_cannot_be_made_durable) {
    upcall_loop *loop = new_loop();
    for (int which = PIPE; which < STREAMS; which++) {
        int fds[2];
        make_stream(which, fds);
        ends_with(loop, upcall_op_fsync(fds[0]), -EINVAL);
        ends_with(loop, upcall_op_fdatasync(fds[1]), -EINVAL);
        close_pair(fds);
    }
    free_loop(loop);
}

/* The answers of pread(2) and pwrite(2) on the same file, at the ends of what a position can be. */
TEST(far_positions_answer_as_the_system_calls_do) {
    static const int64_t offsets[] = {0, 9, 10, 11, 4096, INT64_C(1) << 31, INT64_C(1) << 32, INT64_C(1) << 62,
                                      INT64_MAX - 1, INT64_MAX};
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    for (size_t i = 0; i < COUNT_OF(offsets); i++) {
        char bytes[4], theirs[4];
        ssize_t want = pread(fd, theirs, sizeof theirs, offsets[i]);
        ends_with(loop, upcall_op_pread(fd, bytes, sizeof bytes, offsets[i]), want < 0 ? -errno : want);
        if (want > 0)
            CHECK(memcmp(bytes, theirs, (size_t)want) == 0);
    }
    for (size_t i = 0; i < COUNT_OF(offsets); i++) { /* the file is sparse: no space is used */
        ssize_t want = pwrite(fd, "abcd", 4, offsets[i]);
        int64_t expected = want < 0 ? -errno : want;
        CHECK(ftruncate(fd, 10) == 0);
        ends_with(loop, upcall_op_pwrite(fd, "abcd", 4, offsets[i]), expected);
        if (expected == 4)
            CHECK_EQ(lseek(fd, 0, SEEK_END), offsets[i] + 4 > 10 ? offsets[i] + 4 : 10);
        CHECK(ftruncate(fd, 10) == 0);
    }
    free_loop(loop);
}

/* ---- Ends of files. ---- */

TEST(reading_stops_at_the_end_of_the_file) {
    static const struct { size_t size; int64_t offset, result; } rows[] = {
        {0, 0, 0},       {0, 1, 0},       {10, 0, 10},       {10, 9, 1},         {10, 10, 0},
        {10, 11, 0},     {4096, 0, 4096}, {4097, 4096, 1},   {5000, 4000, 1000}, {100000, 65536, 34464},
        {100000, 99999, 1}};
    static uint8_t bytes[200000];
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int fd = temp_file(rows[i].size);
        for (int full = 0; full < 2; full++) {
            memset(bytes, 0xee, sizeof bytes);
            upcall_op op = upcall_op_pread(fd, bytes, sizeof bytes, rows[i].offset);
            op.flags = full ? UPCALL_FULL : 0;
            ends_with(loop, op, rows[i].result);
            CHECK(has_pattern(bytes, (size_t)rows[i].result, (uint64_t)rows[i].offset));
            CHECK_EQ(bytes[rows[i].result], 0xee);
        }
        close(fd);
    }
    free_loop(loop);
}

/* A file that is not in memory: a cold read may be short where a cached one is not, but not at its end. */
TEST(a_file_that_is_not_cached_is_read_to_its_end) {
    enum { SIZE = 1 << 20 };
    uint8_t *bytes = malloc(SIZE);
    upcall_loop *loop = new_loop();
    int fd = temp_file(SIZE - 100);
    CHECK(fsync(fd) == 0);
    for (int round = 0; round < 8; round++) {
        CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
        char warm;
        if (round % 2) /* a page in the middle is there, its neighbours are not */
            CHECK(pread(fd, &warm, 1, SIZE / 2) == 1);
        memset(bytes, 0, SIZE);
        upcall_op op = upcall_op_pread(fd, bytes, SIZE, 0);
        op.flags = round & 2 ? UPCALL_FULL : 0;
        ends_with(loop, op, SIZE - 100);
        CHECK(has_pattern(bytes, SIZE - 100, 0));
    }
    free_loop(loop);
}

TEST(holes_are_zeros) {
    enum { SIZE = 65536 };
    static uint8_t bytes[SIZE];
    const int64_t gibibyte = INT64_C(1) << 30;
    upcall_loop *loop = new_loop();
    int fd = temp_file(0);
    CHECK(ftruncate(fd, gibibyte) == 0);
    memset(bytes, 1, sizeof bytes);
    ends_with(loop, upcall_op_pread(fd, bytes, SIZE, gibibyte / 2), SIZE);
    for (size_t i = 0; i < SIZE; i++)
        CHECK(bytes[i] == 0);
    ends_with(loop, upcall_op_pread(fd, bytes, SIZE, gibibyte - 5), 5);
    ends_with(loop, upcall_op_pwrite(fd, "island", 6, gibibyte / 2 + 100), 6);
    ends_with(loop, upcall_op_pwrite(fd, "end", 3, 2 * gibibyte), 3);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 2 * gibibyte + 3);
    ends_with(loop, upcall_op_pread(fd, bytes, 200, gibibyte / 2), 200);
    CHECK(bytes[99] == 0 && memcmp(bytes + 100, "island", 6) == 0 && bytes[106] == 0);
    ends_with(loop, upcall_op_pread(fd, bytes, SIZE, 2 * gibibyte - 1), 4);
    CHECK(memcmp(bytes, "\0end", 4) == 0);
    free_loop(loop);
}

TEST(a_length_of_0_reads_and_writes_nothing) {
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    ends_with(loop, upcall_op_pread(fd, NULL, 0, 0), 0);
    ends_with(loop, upcall_op_pread(fd, NULL, 0, 100), 0);
    ends_with(loop, upcall_op_pwrite(fd, NULL, 0, 0), 0);
    ends_with(loop, upcall_op_pwrite(fd, NULL, 0, 100), 0);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
    free_loop(loop);
}

TEST(a_file_of_proc_is_read_at_a_position) {
    char bytes[64];
    upcall_loop *loop = new_loop();
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ends_with(loop, upcall_op_pread(fd, bytes, 5, 0), 5);
    CHECK(memcmp(bytes, "Name:", 5) == 0);
    ends_with(loop, upcall_op_pread(fd, bytes, 3, 1), 3);
    CHECK(memcmp(bytes, "ame", 3) == 0);
    ends_with(loop, upcall_op_pread(fd, bytes, sizeof bytes, 1000000), 0);
    free_loop(loop);
}

TEST(devices_are_read_and_written_at_a_position) {
    char bytes[64];
    upcall_loop *loop = new_loop();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
    int full = open("/dev/full", O_RDWR | O_CLOEXEC);
    memset(bytes, 1, sizeof bytes);
    ends_with(loop, upcall_op_pread(null, bytes, sizeof bytes, 0), 0);
    ends_with(loop, upcall_op_pwrite(null, bytes, sizeof bytes, 5), sizeof bytes);
    ends_with(loop, upcall_op_pwrite(full, bytes, sizeof bytes, 0), -ENOSPC);
    ends_with(loop, upcall_op_pread(zero, bytes, sizeof bytes, 7), sizeof bytes);
    CHECK(bytes[0] == 0 && bytes[63] == 0);
    free_loop(loop);
}

TEST(writing_extends_the_file) {
    uint8_t all[200];
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    ends_with(loop, upcall_op_pwrite(fd, "abc", 3, 10), 3);
    ends_with(loop, upcall_op_pwrite(fd, "xyz", 3, 20), 3);
    CHECK_EQ(pread(fd, all, sizeof all, 0), 23);
    CHECK(has_pattern(all, 10, 0));
    CHECK(memcmp(all + 10, "abc\0\0\0\0\0\0\0xyz", 13) == 0);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 0);
    free_loop(loop);
}

/* ---- Limits, hazards 22 and 25. ---- */

/* Past RLIMIT_FSIZE: -EFBIG, after what still fits, and no SIGXFSZ. */
TEST(past_the_file_size_limit_is_EFBIG_and_no_signal) {
    enum { AT = 1 << 30 };
    struct rlimit limit = {AT, RLIM_INFINITY};
    count_signals_of(SIGXFSZ);
    upcall_loop *loop = new_loop();
    int fd = temp_file(0);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    for (int round = 0; round < 3; round++) {
        ends_with(loop, upcall_op_pwrite(fd, "0123456789", 10, AT), -EFBIG);
        ends_with(loop, upcall_op_pwrite(fd, "0123456789", 10, AT + 1), -EFBIG);
        ends_with(loop, upcall_op_pwrite(fd, "0123456789", 10, AT - 6), 6);
        CHECK_EQ(lseek(fd, 0, SEEK_END), AT);
        upcall_op whole = upcall_op_pwrite(fd, "0123456789", 10, AT - 6);
        whole.flags = UPCALL_FULL;
        struct record final = complete(loop, whole);
        CHECK_EQ(final.result, -EFBIG);
        CHECK_EQ(final.transferred, 6);
        CHECK_EQ(lseek(fd, 0, SEEK_END), AT);
    }
    CHECK(lseek(fd, AT, SEEK_SET) == AT); /* the same for the file's own position */
    ends_with(loop, upcall_op_write(fd, "0123456789", 10), -EFBIG);
    struct iovec part = {"0123456789", 10};
    ends_with(loop, upcall_op_writev(fd, &part, 1), -EFBIG);
    free_loop(loop);
    CHECK_EQ(signals_seen, 0);
}

/* The default action of SIGXFSZ would end this process. */
TEST(past_the_file_size_limit_nothing_is_killed) {
    enum { AT = 1 << 30 };
    struct rlimit limit = {AT, RLIM_INFINITY};
    CHECK(signal(SIGXFSZ, SIG_DFL) != SIG_ERR);
    upcall_loop *loop = new_loop();
    int fd = temp_file(0);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    ends_with(loop, upcall_op_pwrite(fd, "a", 1, AT), -EFBIG);
    free_loop(loop);
}

TEST(lengths_above_one_calls_limit_are_taken) {
    SKIP_UNDER_THREAD_SANITIZER();
    static const size_t lengths[] = {0x7ffff000, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000};
    upcall_loop *loop = new_loop();
    uint8_t *memory = vast_memory((size_t)5 << 30);
    int fd = temp_file(100), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        int64_t once = lengths[i] < 0x7ffff000 ? (int64_t)lengths[i] : 0x7ffff000; /* MAX_RW_COUNT, read(2) */
        for (int full = 0; full < 2; full++) {
            upcall_op op = upcall_op_pread(fd, memory, lengths[i], 20);
            op.flags = full ? UPCALL_FULL : 0;
            ends_with(loop, op, 80);
            CHECK(has_pattern(memory, 80, 20));
            op = upcall_op_pwrite(null, memory, lengths[i], 0);
            op.flags = full ? UPCALL_FULL : 0;
            ends_with(loop, op, full ? (int64_t)lengths[i] : once);
        }
    }
    upcall_op most = upcall_op_pread(fd, memory, SSIZE_MAX, 0);
    ends_with(loop, most, 100);
    most.flags = UPCALL_FULL;
    ends_with(loop, most, 100);
    free_loop(loop);
}

/* ---- O_DIRECT. ---- */

TEST(direct_files_need_alignment) {
    enum { PAGE = 4096 };
    upcall_loop *loop = new_loop();
    enter_scratch();
    int fd = open("direct", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) {
        leave_scratch();
        SKIP("this file system has no O_DIRECT");
    }
    uint8_t *memory = aligned_alloc(PAGE, (size_t)8 * PAGE);
    CHECK(memory != NULL);
    fill_pattern(memory, (size_t)4 * PAGE, 0);
    ends_with(loop, upcall_op_pwrite(fd, memory, (size_t)4 * PAGE, 0), 4 * PAGE);
    ends_with(loop, upcall_op_fsync(fd), 0);
    memset(memory, 0, (size_t)8 * PAGE);
    ends_with(loop, upcall_op_pread(fd, memory, PAGE, PAGE), PAGE);
    CHECK(has_pattern(memory, PAGE, PAGE));
    ends_with(loop, upcall_op_pread(fd, memory, (size_t)8 * PAGE, PAGE), 3 * PAGE); /* short at the end */
    CHECK(has_pattern(memory, (size_t)3 * PAGE, PAGE));
    upcall_op whole = upcall_op_pread(fd, memory, (size_t)8 * PAGE, 0);
    whole.flags = UPCALL_FULL;
    ends_with(loop, whole, 4 * PAGE);
    ends_with(loop, upcall_op_pread(fd, memory, PAGE, 4 * PAGE), 0);

    /* Misaligned: what the system call says, which is -EINVAL wherever alignment matters. */
    const struct { size_t shift, length; int64_t offset; } rows[] = {
        {1, PAGE, 0}, {0, 100, 0}, {0, PAGE, 1}, {3, 5, 7}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        ssize_t want = pread(fd, memory + rows[i].shift, rows[i].length, rows[i].offset);
        ends_with(loop, upcall_op_pread(fd, memory + rows[i].shift, rows[i].length, rows[i].offset),
                  want < 0 ? -errno : want);
        want = pwrite(fd, memory + rows[i].shift, rows[i].length, rows[i].offset);
        ends_with(loop, upcall_op_pwrite(fd, memory + rows[i].shift, rows[i].length, rows[i].offset),
                  want < 0 ? -errno : want);
    }
    close(fd);
    leave_scratch();
    free_loop(loop);
}

TEST(direct_files_do_64_operations_at_once) {
    enum { PAGE = 4096, DEPTH = 64 };
    upcall_op ops[DEPTH];
    upcall_id ids[DEPTH];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    enter_scratch();
    int fd = open("direct", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) {
        leave_scratch();
        SKIP("this file system has no O_DIRECT");
    }
    uint8_t *memory = aligned_alloc(PAGE, (size_t)DEPTH * PAGE);
    fill_pattern(memory, (size_t)DEPTH * PAGE, 0);
    for (size_t i = 0; i < DEPTH; i++)
        ops[i] = upcall_op_pwrite(fd, memory + i * PAGE, PAGE, (int64_t)(i * PAGE));
    submit_many(loop, ops, DEPTH, &rec, ids);
    run_finals(loop, &rec, DEPTH);
    check_finals(&rec, ids, DEPTH);
    for (size_t i = 0; i < DEPTH; i++)
        CHECK_EQ(rec.events[i].result, PAGE);
    forget(&rec);
    memset(memory, 0, (size_t)DEPTH * PAGE);
    for (size_t i = 0; i < DEPTH; i++)
        ops[i] = upcall_op_pread(fd, memory + i * PAGE, PAGE, (int64_t)((DEPTH - 1 - i) * PAGE));
    submit_many(loop, ops, DEPTH, &rec, ids);
    run_finals(loop, &rec, DEPTH);
    check_finals(&rec, ids, DEPTH);
    for (size_t i = 0; i < DEPTH; i++) {
        CHECK_EQ(rec.events[i].result, PAGE);
        CHECK(has_pattern(memory + i * PAGE, PAGE, (DEPTH - 1 - i) * PAGE));
    }
    close(fd);
    leave_scratch();
    free_loop(loop);
    forget(&rec);
}

/* Hazard 36: what a disk has started is completed, or never started; nothing in between, also under cancel. */
TEST(a_cancelled_direct_read_is_whole_or_was_not_done) {
    enum { PAGE = 4096, DEPTH = 32, LENGTH = 16 * PAGE };
    static const uint8_t zeros[LENGTH];
    upcall_loop *loop = new_loop();
    enter_scratch();
    int fd = open("direct", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) {
        leave_scratch();
        SKIP("this file system has no O_DIRECT");
    }
    uint8_t *memory = aligned_alloc(PAGE, (size_t)DEPTH * LENGTH);
    fill_pattern(memory, (size_t)DEPTH * LENGTH, 0);
    CHECK(pwrite(fd, memory, (size_t)DEPTH * LENGTH, 0) == DEPTH * LENGTH);
    for (int round = 0; round < 20; round++) {
        upcall_op ops[DEPTH];
        upcall_id ids[DEPTH];
        struct recorder rec = {0};
        memset(memory, 0, (size_t)DEPTH * LENGTH);
        for (size_t i = 0; i < DEPTH; i++)
            ops[i] = upcall_op_pread(fd, memory + i * LENGTH, LENGTH, (int64_t)(i * LENGTH));
        submit_many(loop, ops, DEPTH, &rec, ids);
        if (round % 4)
            CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = 0; i < DEPTH; i++) {
            int rc = upcall_cancel(loop, ids[i]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        run_finals(loop, &rec, DEPTH);
        check_finals(&rec, ids, DEPTH);
        for (size_t i = 0; i < DEPTH; i++) {
            struct record final = final_of(&rec, ids[i]);
            if (final.result == -ECANCELED) {
                CHECK_EQ(final.transferred, 0);
                CHECK(memcmp(memory + i * LENGTH, zeros, LENGTH) == 0);
            } else {
                CHECK_EQ(final.result, LENGTH);
                CHECK(has_pattern(memory + i * LENGTH, LENGTH, i * LENGTH));
            }
        }
        forget(&rec);
    }
    close(fd);
    leave_scratch();
    free_loop(loop);
}

/* ---- Many at once. ---- */

TEST(sixty_four_reads_at_once_each_get_their_own_bytes) {
    enum { DEPTH = 64, SIZE = 1 << 18 };
    static uint8_t bytes[DEPTH][5000];
    uint64_t seed = 1;
    upcall_loop *loop = new_loop();
    int fd = temp_file(SIZE);
    for (int round = 0; round < 10; round++) {
        upcall_op ops[DEPTH];
        upcall_id ids[DEPTH];
        uint64_t offsets[DEPTH], lengths[DEPTH];
        struct recorder rec = {0};
        if (round % 2)
            CHECK(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
        for (size_t i = 0; i < DEPTH; i++) {
            offsets[i] = chance(&seed) % SIZE;
            lengths[i] = chance(&seed) % sizeof bytes[i];
            ops[i] = upcall_op_pread(fd, bytes[i], lengths[i], (int64_t)offsets[i]);
        }
        submit_many(loop, ops, DEPTH, &rec, ids);
        run_finals(loop, &rec, DEPTH);
        check_finals(&rec, ids, DEPTH);
        for (size_t i = 0; i < DEPTH; i++) {
            uint64_t left = SIZE - offsets[i], want = lengths[i] < left ? lengths[i] : left;
            CHECK_EQ(final_of(&rec, ids[i]).result, want);
            CHECK(has_pattern(bytes[i], want, offsets[i]));
        }
        forget(&rec);
    }
    free_loop(loop);
}

TEST(sixty_four_writes_at_once_land_where_they_belong) {
    enum { DEPTH = 64, LENGTH = 1000, SIZE = DEPTH * LENGTH };
    static uint8_t from[SIZE], back[SIZE];
    upcall_op ops[DEPTH];
    upcall_id ids[DEPTH];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    int fd = temp_file(0);
    fill_pattern(from, SIZE, 0);
    for (size_t i = 0; i < DEPTH; i++) {
        size_t place = (i * 37) % DEPTH;
        ops[i] = upcall_op_pwrite(fd, from + place * LENGTH, LENGTH, (int64_t)(place * LENGTH));
    }
    submit_many(loop, ops, DEPTH, &rec, ids);
    run_finals(loop, &rec, DEPTH);
    check_finals(&rec, ids, DEPTH);
    for (size_t i = 0; i < DEPTH; i++)
        CHECK_EQ(rec.events[i].result, LENGTH);
    CHECK_EQ(lseek(fd, 0, SEEK_END), SIZE);
    CHECK_EQ(pread(fd, back, SIZE, 0), SIZE);
    CHECK(memcmp(from, back, SIZE) == 0);
    free_loop(loop);
    forget(&rec);
}

/* n writes, then fsync: the order a program asks for with UPCALL_DRAIN. */
TEST(a_drained_fsync_ends_after_the_writes_before_it) {
    enum { WRITES = 16 };
    upcall_op ops[WRITES + 1];
    upcall_id ids[WRITES + 1];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    int fd = temp_file(0);
    for (size_t i = 0; i < WRITES; i++)
        ops[i] = upcall_op_pwrite(fd, "0123456789", 10, (int64_t)(i * 10));
    ops[WRITES] = upcall_op_fsync(fd);
    ops[WRITES].flags = UPCALL_DRAIN;
    submit_many(loop, ops, WRITES + 1, &rec, ids);
    run_finals(loop, &rec, WRITES + 1);
    check_finals(&rec, ids, WRITES + 1);
    CHECK_EQ(order_of(&rec, ids[WRITES]), WRITES);
    CHECK_EQ(final_of(&rec, ids[WRITES]).result, 0);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 160);
    free_loop(loop);
    forget(&rec);
}

TEST(many_files_are_made_durable_at_once) {
    enum { FILES = 32 };
    upcall_op ops[2 * FILES];
    upcall_id ids[2 * FILES];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < FILES; i++) {
        int fd = temp_file(100);
        ops[2 * i] = upcall_op_fsync(fd);
        ops[2 * i + 1] = upcall_op_fdatasync(fd);
    }
    submit_many(loop, ops, COUNT_OF(ops), &rec, ids);
    run_finals(loop, &rec, COUNT_OF(ops));
    check_finals(&rec, ids, COUNT_OF(ids));
    for (size_t i = 0; i < COUNT_OF(ops); i++)
        CHECK_EQ(rec.events[i].result, 0);
    free_loop(loop);
    forget(&rec);
}

/* Positional operations leave the position alone, whatever else goes on (hazard 23). */
TEST(positional_operations_do_not_disturb_the_files_own_position) {
    uint8_t bytes[32][10], own[32][10];
    upcall_op ops[64];
    upcall_id ids[64];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    int fd = temp_file(1000);
    for (size_t i = 0; i < 32; i++) {
        ops[2 * i] = upcall_op_pread(fd, bytes[i], 10, (int64_t)(990 - 10 * i));
        ops[2 * i + 1] = upcall_op_read(fd, own[i], 10);
    }
    submit_many(loop, ops, 64, &rec, ids);
    run_finals(loop, &rec, 64);
    check_finals(&rec, ids, 64);
    for (size_t i = 0; i < 32; i++) {
        CHECK(has_pattern(bytes[i], 10, 990 - 10 * i));
        CHECK(has_pattern(own[i], 10, 10 * i));
    }
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 320);
    free_loop(loop);
    forget(&rec);
}
