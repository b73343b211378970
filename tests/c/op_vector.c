/*
 * preadv and pwritev: parts, positions, flags of one call, limits.
 */
#include "op_support.h"

/* ---- Subjects. ---- */

static void set_file(struct scene *scene) {
    scene->fd = temp_file(200);
    CHECK(lseek(scene->fd, 11, SEEK_SET) == 11);
    if (scene->subject->kind == UPCALL_OP_PWRITEV)
        fill_pattern(scene->data, 64, 5000);
}

/* The array is overwritten as soon as the operation is made and submitted: it was copied. */
static upcall_op make_vector_op(struct scene *scene) {
    scene->iov[0] = (struct iovec){scene->data, 1};
    scene->iov[1] = (struct iovec){NULL, 0};
    scene->iov[2] = (struct iovec){scene->data + 1, 63};
    return scene->subject->kind == UPCALL_OP_PREADV ? upcall_op_preadv(scene->fd, scene->iov, 3, 100, 0)
                                                    : upcall_op_pwritev(scene->fd, scene->iov, 3, 170, 0);
}

static void file_is_as_made(struct scene *scene) {
    uint8_t all[300];
    CHECK_EQ(pread(scene->fd, all, sizeof all, 0), 200);
    CHECK(has_pattern(all, 200, 0));
    CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 11);
}

static void vector_op_is_done(struct scene *scene, struct record final) {
    uint8_t all[300];
    CHECK_EQ(final.result, 64);
    CHECK_EQ(final.transferred, 64);
    if (scene->subject->kind == UPCALL_OP_PREADV) {
        CHECK(has_pattern(scene->data, 64, 100));
        CHECK_EQ(scene->data[64], 0xee);
        file_is_as_made(scene);
    } else {
        CHECK_EQ(pread(scene->fd, all, sizeof all, 0), 234);
        CHECK(has_pattern(all, 170, 0) && has_pattern(all + 170, 64, 5000));
        CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 11);
    }
}

static const struct subject preadv_a_file = {.kind = UPCALL_OP_PREADV, .set_up = set_file, .make = make_vector_op,
    .done = vector_op_is_done, .intact = file_is_as_made};
static const struct subject pwritev_a_file = {.kind = UPCALL_OP_PWRITEV, .set_up = set_file, .make = make_vector_op,
    .done = vector_op_is_done, .intact = file_is_as_made};
PROMISES(preadv_a_file)
PROMISES(pwritev_a_file)

/* ---- Names, arguments. ---- */

TEST(vector_operations_are_known) {
    is_known(UPCALL_OP_PREADV, "preadv");
    is_known(UPCALL_OP_PWRITEV, "pwritev");
}

TEST(vector_operations_refuse_strange_fields) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    int fd = temp_file(1);
    refuses_strange_fields(upcall_op_preadv(fd, &part, 1, 0, 0), UPCALL_FULL);
    refuses_strange_fields(upcall_op_pwritev(fd, &part, 1, 0, 0), UPCALL_FULL);
}

TEST(vector_operations_refuse_bad_arguments) {
    static char bytes[8];
    static struct iovec parts[1025];
    struct iovec null = {NULL, 5}, vast[2] = {{bytes, SSIZE_MAX}, {bytes, 1}};
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    for (int out = 0; out < 2; out++) {
        upcall_op (*make)(int, const struct iovec *, size_t, int64_t, int) = out ? upcall_op_pwritev : upcall_op_preadv;
        refused(loop, make(fd, NULL, 3, 0, 0), EINVAL, "iov is NULL but n is 3");
        refused(loop, make(fd, parts, 1025, 0, 0), EINVAL, "iov: n is 1025, more than IOV_MAX (1024)");
        refused(loop, make(fd, parts, SIZE_MAX, 0, 0), EINVAL, "more than IOV_MAX (1024)");
        refused(loop, make(fd, &null, 1, 0, 0), EINVAL, "iov[0].iov_base is NULL but iov_len is 5");
        refused(loop, make(fd, vast, 2, 0, 0), EINVAL, "the lengths of iov add up to more than SSIZE_MAX");
        refused(loop, make(fd, parts, 1, -1, 0), EINVAL, "offset is -1, less than 0");
        refused(loop, make(fd, parts, 1, INT64_MIN, 0), EINVAL, "offset is -9223372036854775808, less than 0");
        refused(loop, make(fd, parts, 1, 0, RWF_NOWAIT), EINVAL, "rwf_flags has RWF_NOWAIT");
        refused(loop, make(fd, parts, 1, 0, -1), EINVAL, "rwf_flags has RWF_NOWAIT");
        ends_with(loop, make(fd, parts, 1024, 0, 0), 0);
        ends_with(loop, make(fd, NULL, 0, 0, 0), 0);
    }
    CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    upcall_loop *loop = new_loop();
    int bad[6] = {-1, INT32_MIN, INT32_MAX, closed_fd(), open("/", O_PATH | O_CLOEXEC), AT_FDCWD};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_preadv(bad[i], &part, 1, 0, 0), -EBADF);
        ends_with(loop, upcall_op_pwritev(bad[i], &part, 1, 0, 0), -EBADF);
    }
    free_loop(loop);
}

TEST(a_position_on_a_stream_is_ESPIPE) {
    char bytes[8];
    struct iovec part = {bytes, sizeof bytes};
    upcall_loop *loop = new_loop();
    for (int which = PIPE; which < STREAMS; which++) {
        for (int full = 0; full < 2; full++) {
            int fds[2];
            make_stream(which, fds);
            upcall_op in = upcall_op_preadv(fds[0], &part, 1, 0, 0), out = upcall_op_pwritev(fds[1], &part, 1, 0, 0);
            in.flags = out.flags = full ? UPCALL_FULL : 0;
            ends_with(loop, in, -ESPIPE);
            ends_with(loop, out, -ESPIPE);
            CHECK(!is_readable(fds[0], 0));
            close_pair(fds);
        }
    }
    free_loop(loop);
}

/* ---- Parts. ---- */

/* Parts of odd lengths, some empty, over a file longer than one page, at an odd position: FULL brings them all. */
TEST(a_full_transfer_fills_many_odd_parts) {
    enum { SIZE = 300000, PARTS = 1000 };
    static uint8_t bytes[SIZE + PARTS];
    static struct iovec parts[PARTS];
    uint64_t seed = 7;
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 6; round++) {
        size_t total = 0, at = 0;
        int fd = temp_file(SIZE);
        memset(bytes, 0xee, sizeof bytes);
        for (size_t i = 0; i < PARTS; i++) { /* a byte between two parts stays as it is */
            size_t length = chance(&seed) % 7 ? chance(&seed) % 293 : 0;
            parts[i] = (struct iovec){length ? bytes + at : NULL, length};
            at += length + 1;
            total += length;
        }
        if (round % 2)
            CHECK(fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
        upcall_op op = upcall_op_preadv(fd, parts, PARTS, 777, 0);
        op.flags = round < 4 ? UPCALL_FULL : 0;
        ends_with(loop, op, (int64_t)total);
        size_t done = 0;
        for (size_t i = 0; i < PARTS; i++) {
            if (parts[i].iov_len == 0)
                continue;
            CHECK(has_pattern(parts[i].iov_base, parts[i].iov_len, 777 + done));
            CHECK_EQ(((uint8_t *)parts[i].iov_base)[parts[i].iov_len], 0xee);
            done += parts[i].iov_len;
        }
        /* And out again, to another place of another file. */
        int copy = temp_file(0);
        static uint8_t back[SIZE + 100];
        op = upcall_op_pwritev(copy, parts, PARTS, 33, 0);
        op.flags = round < 4 ? UPCALL_FULL : 0;
        ends_with(loop, op, (int64_t)total);
        CHECK_EQ(pread(copy, back, sizeof back, 33), total);
        CHECK(has_pattern(back, total, 777));
        close(copy);
        close(fd);
    }
    free_loop(loop);
}

TEST(reading_stops_at_the_end_of_the_file) {
    uint8_t bytes[64];
    struct iovec parts[3] = {{bytes, 10}, {bytes + 10, 10}, {bytes + 20, 10}};
    upcall_loop *loop = new_loop();
    int fd = temp_file(15);
    for (int full = 0; full < 2; full++) {
        for (int64_t offset = 0; offset < 20; offset++) {
            memset(bytes, 0xee, sizeof bytes);
            upcall_op op = upcall_op_preadv(fd, parts, 3, offset, 0);
            op.flags = full ? UPCALL_FULL : 0;
            int64_t want = offset < 15 ? 15 - offset : 0;
            ends_with(loop, op, want);
            CHECK(has_pattern(bytes, (size_t)want, (uint64_t)offset));
            CHECK_EQ(bytes[want], 0xee);
        }
    }
    free_loop(loop);
}

/* One call moves at most 0x7ffff000 bytes; FULL goes on after that, in the middle of a part. */
TEST(lengths_above_one_calls_limit_are_taken) {
    enum { PART = 0x30000000 };
    upcall_loop *loop = new_loop();
    uint8_t *memory = vast_memory((size_t)PART);
    struct iovec parts[4] = {{memory, PART}, {memory, PART}, {memory, PART}, {memory, PART}};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), fd = temp_file(100);
    ends_with(loop, upcall_op_pwritev(null, parts, 4, 0, 0), 0x7ffff000);
    upcall_op op = upcall_op_pwritev(null, parts, 4, 0, 0);
    op.flags = UPCALL_FULL;
    ends_with(loop, op, (int64_t)PART * 4);
    op = upcall_op_preadv(fd, parts, 4, 20, 0);
    ends_with(loop, op, 80);
    op.flags = UPCALL_FULL;
    ends_with(loop, op, 80);
    CHECK(has_pattern(memory, 80, 20));
    free_loop(loop);
}

TEST(the_array_is_copied_also_by_another_thread) {
    struct recorder rec = {0};
    uint8_t bytes[30];
    upcall_loop *loop = new_loop(); /* no owner yet: what is submitted waits in the inbox */
    int fd = temp_file(100);
    for (int owned = 0; owned < 2; owned++) {
        struct iovec parts[2] = {{bytes, 10}, {bytes + 10, 20}};
        memset(bytes, 0, sizeof bytes);
        upcall_id id = submit_one(loop, upcall_op_preadv(fd, parts, 2, 50, 0), &rec);
        memset(parts, 0xff, sizeof parts);
        run_finals(loop, &rec, (size_t)owned + 1);
        CHECK_EQ(final_of(&rec, id).result, 30);
        CHECK(has_pattern(bytes, 30, 50));
    }
    free_loop(loop);
    forget(&rec);
}

/* ---- Flags of one call. ---- */

/* The answers of preadv2(2) and pwritev2(2) to every single bit, but the one that would not wait. */
TEST(rwf_flags_answer_as_the_system_calls_do) {
    char bytes[16] = {0};
    struct iovec part = {bytes, 16};
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 100);
    int fd = open("file", O_RDWR | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int files[2] = {fd, null};
    for (size_t file = 0; file < COUNT_OF(files); file++) {
        for (int bit = 0; bit < 32; bit++) {
            int flags = (int)(UINT32_C(1) << bit);
            if (flags == RWF_NOWAIT)
                continue;
            ssize_t want = preadv2(files[file], &part, 1, 0, flags);
            ends_with(loop, upcall_op_preadv(files[file], &part, 1, 0, flags), want < 0 ? -errno : want);
            want = pwritev2(files[file], &part, 1, 0, flags);
            ends_with(loop, upcall_op_pwritev(files[file], &part, 1, 0, flags), want < 0 ? -errno : want);
        }
        ends_with(loop, upcall_op_preadv(files[file], &part, 1, 0, 0), file == 0 ? 16 : 0); /* nothing was broken */
        ends_with(loop, upcall_op_pwritev(files[file], &part, 1, 0, 0), 16);
        if (!on_epoll(loop) && getenv("UPCALL_MASK") == NULL) {
            CHECK_EQ(upcall_supports(loop, UPCALL_OP_PREADV), UPCALL_NATIVE);
            CHECK_EQ(upcall_supports(loop, UPCALL_OP_PWRITEV), UPCALL_NATIVE);
        }
    }
    leave_scratch();
    free_loop(loop);
}

TEST(an_append_goes_to_the_end_wherever_that_is) {
    uint8_t all[300];
    struct iovec parts[2] = {{"abc", 3}, {"defgh", 5}};
    upcall_loop *loop = new_loop();
    int fd = temp_file(100);
    for (int full = 0; full < 2; full++) {
        upcall_op op = upcall_op_pwritev(fd, parts, 2, 5, RWF_APPEND);
        op.flags = full ? UPCALL_FULL : 0;
        ends_with(loop, op, 8);
    }
    ends_with(loop, upcall_op_pwritev(fd, parts, 2, 5, RWF_APPEND | RWF_DSYNC), 8);
    ends_with(loop, upcall_op_pwritev(fd, parts, 2, 100, RWF_SYNC), 8);
    CHECK_EQ(pread(fd, all, sizeof all, 0), 124);
    CHECK(has_pattern(all, 100, 0));
    CHECK(memcmp(all + 100, "abcdefghabcdefghabcdefgh", 24) == 0);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 0);
    free_loop(loop);
}

/* ---- Limits. ---- */

TEST(past_the_file_size_limit_is_EFBIG_and_no_signal) {
    enum { AT = 1 << 30, PAGE = 4096 };
    struct rlimit limit = {AT, RLIM_INFINITY};
    struct iovec parts[2] = {{"0123", 4}, {"456789", 6}};
    CHECK(signal(SIGXFSZ, SIG_DFL) != SIG_ERR); /* its default action would end this process */
    upcall_loop *loop = new_loop();
    enter_scratch();
    int fd = temp_file(0), direct = open("direct", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    ends_with(loop, upcall_op_pwritev(fd, parts, 2, AT, 0), -EFBIG);
    ends_with(loop, upcall_op_pwritev(fd, parts, 2, AT - 7, 0), 7);
    upcall_op whole = upcall_op_pwritev(fd, parts, 2, AT - 7, 0);
    whole.flags = UPCALL_FULL;
    struct record final = complete(loop, whole);
    CHECK_EQ(final.result, -EFBIG);
    CHECK_EQ(final.transferred, 7);
    CHECK_EQ(lseek(fd, 0, SEEK_END), AT);
    ends_with(loop, upcall_op_pwritev(fd, parts, 2, 0, RWF_APPEND), -EFBIG);
    if (direct >= 0) {
        struct iovec page = {aligned_alloc(PAGE, PAGE), PAGE};
        CHECK(page.iov_base != NULL);
        memset(page.iov_base, 0, PAGE);
        ends_with(loop, upcall_op_pwritev(direct, &page, 1, AT, 0), -EFBIG);
        ends_with(loop, upcall_op_pwritev(direct, &page, 1, 0, 0), PAGE);
    }
    leave_scratch();
    free_loop(loop);
}

TEST(a_full_device_is_ENOSPC) {
    struct iovec parts[2] = {{"0123", 4}, {"456789", 6}};
    upcall_loop *loop = new_loop();
    int full = open("/dev/full", O_RDWR | O_CLOEXEC);
    ends_with(loop, upcall_op_pwritev(full, parts, 2, 0, 0), -ENOSPC);
    upcall_op whole = upcall_op_pwritev(full, parts, 2, 0, 0);
    whole.flags = UPCALL_FULL;
    ends_with(loop, whole, -ENOSPC);
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
    struct iovec out[2] = {{memory, PAGE}, {memory + PAGE, (size_t)3 * PAGE}};
    ends_with(loop, upcall_op_pwritev(fd, out, 2, 0, 0), 4 * PAGE);
    memset(memory, 0, (size_t)8 * PAGE);
    struct iovec in[2] = {{memory, PAGE}, {memory + PAGE, (size_t)7 * PAGE}};
    for (int full = 0; full < 2; full++) { /* the end is the short count */
        upcall_op op = upcall_op_preadv(fd, in, 2, PAGE, 0);
        op.flags = full ? UPCALL_FULL : 0;
        ends_with(loop, op, 3 * PAGE);
        CHECK(has_pattern(memory, (size_t)3 * PAGE, PAGE));
    }
    const struct { size_t shift, length; int64_t offset; } rows[] = {{1, PAGE, 0}, {0, 100, 0}, {0, PAGE, 1}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct iovec odd = {memory + rows[i].shift, rows[i].length};
        ssize_t want = preadv(fd, &odd, 1, rows[i].offset);
        ends_with(loop, upcall_op_preadv(fd, &odd, 1, rows[i].offset, 0), want < 0 ? -errno : want);
        want = pwritev(fd, &odd, 1, rows[i].offset);
        ends_with(loop, upcall_op_pwritev(fd, &odd, 1, rows[i].offset, 0), want < 0 ? -errno : want);
    }
    leave_scratch();
    free_loop(loop);
}

/* RWF_NOWAIT does not keep a direct read from waiting for the device: without a ring a thread of the pool does it. */
TEST(a_direct_read_does_not_wait_on_the_loops_thread) {
    enum { PAGE = 4096, READS = 10 };
    upcall_stats before, after;
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", PAGE);
    int fd = open("file", O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) {
        leave_scratch();
        SKIP("this file system has no O_DIRECT");
    }
    struct iovec page = {aligned_alloc(PAGE, PAGE), PAGE};
    CHECK(page.iov_base != NULL);
    CHECK_EQ(upcall_stats_get(loop, &before), 0);
    for (int i = 0; i < READS; i++) {
        ends_with(loop, upcall_op_preadv(fd, &page, 1, 0, 0), PAGE);
        ends_with(loop, upcall_op_pread(fd, page.iov_base, PAGE, 0), PAGE);
    }
    CHECK_EQ(upcall_stats_get(loop, &after), 0);
    CHECK_EQ(after.pool_operations - before.pool_operations + after.native_operations - before.native_operations,
             2 * READS);
    if (on_epoll(loop))
        CHECK_EQ(after.pool_operations - before.pool_operations, 2 * READS);
    leave_scratch();
    free_loop(loop);
}

/* ---- Order. ---- */

/* A link needs all the bytes: a read that meets the end of the file severs it. */
TEST(a_link_goes_on_after_all_the_bytes) {
    uint8_t bytes[20];
    struct iovec parts[2] = {{bytes, 5}, {bytes + 5, 10}};
    upcall_loop *loop = new_loop();
    int fd = temp_file(20);
    for (int64_t offset = 5; offset < 7; offset++) {
        struct recorder rec = {0};
        upcall_op ops[2] = {upcall_op_preadv(fd, parts, 2, offset, 0), upcall_op_nop()};
        upcall_id ids[2];
        ops[0].flags = UPCALL_LINK;
        submit_many(loop, ops, 2, &rec, ids);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, ids[0]).result, 20 - offset);
        CHECK_EQ(final_of(&rec, ids[1]).result, offset == 5 ? 0 : -ECANCELED);
        forget(&rec);
    }
    free_loop(loop);
}
