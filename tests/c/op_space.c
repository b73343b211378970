/*
 * sync_range, fallocate, ftruncate, fadvise and madvise: the room of files on the disk and in memory.
 */
#include "op_support.h"

#include <sched.h>
#include <sys/mount.h>

enum { PAGE = 4096 };

/* ---- Subjects. ---- */

static void set_file(struct scene *scene) {
    scene->fd = temp_file(200);
    CHECK(lseek(scene->fd, 11, SEEK_SET) == 11);
}

static upcall_op make_space_op(struct scene *scene) {
    switch (scene->subject->kind) {
    case UPCALL_OP_SYNC_RANGE: return upcall_op_sync_range(scene->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    case UPCALL_OP_FALLOCATE: return upcall_op_fallocate(scene->fd, 0, 100, 5000);
    case UPCALL_OP_FTRUNCATE: return upcall_op_ftruncate(scene->fd, 150);
    default: return upcall_op_fadvise(scene->fd, 0, 0, POSIX_FADV_WILLNEED);
    }
}

static void file_is_as_made(struct scene *scene) {
    uint8_t all[300];
    CHECK_EQ(pread(scene->fd, all, sizeof all, 0), 200);
    CHECK(has_pattern(all, 200, 0));
    CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 11);
}

static void space_op_is_done(struct scene *scene, struct record final) {
    uint8_t all[300];
    struct stat found;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(fstat(scene->fd, &found) == 0);
    switch (scene->subject->kind) {
    case UPCALL_OP_FALLOCATE:
        CHECK_EQ(found.st_size, 5100);
        CHECK(found.st_blocks * 512 >= 5100);
        CHECK_EQ(pread(scene->fd, all, 300, 0), 300);
        CHECK(has_pattern(all, 200, 0));
        CHECK(all[200] == 0 && all[299] == 0);
        return;
    case UPCALL_OP_FTRUNCATE:
        CHECK_EQ(pread(scene->fd, all, sizeof all, 0), 150);
        CHECK(has_pattern(all, 150, 0));
        return;
    default:
        file_is_as_made(scene);
    }
}

#define ON_FILE(name, kind_)                                                                                           \
    static const struct subject name = {.kind = kind_, .set_up = set_file, .make = make_space_op,                      \
        .done = space_op_is_done, .intact = file_is_as_made};
ON_FILE(sync_range_of_a_file, UPCALL_OP_SYNC_RANGE)
ON_FILE(fallocate_a_file, UPCALL_OP_FALLOCATE)
ON_FILE(ftruncate_a_file, UPCALL_OP_FTRUNCATE)
ON_FILE(fadvise_a_file, UPCALL_OP_FADVISE)
PROMISES(sync_range_of_a_file)
PROMISES(fallocate_a_file)
PROMISES(ftruncate_a_file)
PROMISES(fadvise_a_file)

/* madvise works on no descriptor; what it does is seen in the memory: its pages are empty again. */
static uint8_t *advised;

static void set_memory(struct scene *scene) {
    (void)scene;
    advised = mmap(NULL, (size_t)4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(advised != MAP_FAILED);
    memset(advised, 1, (size_t)4 * PAGE);
}

static upcall_op make_madvise(struct scene *scene) {
    (void)scene;
    return upcall_op_madvise(advised + PAGE, (size_t)2 * PAGE, MADV_DONTNEED);
}

static void pages_are_empty(struct scene *scene, struct record final) {
    (void)scene;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    for (size_t page = 0; page < 4; page++)
        CHECK_EQ(advised[page * PAGE], page == 0 || page == 3);
}

static void pages_are_full(struct scene *scene) {
    (void)scene;
    for (size_t page = 0; page < 4; page++)
        CHECK_EQ(advised[page * PAGE], 1);
}

static const struct subject madvise_some_memory = {.kind = UPCALL_OP_MADVISE, .set_up = set_memory,
    .make = make_madvise, .done = pages_are_empty, .intact = pages_are_full};
PROMISES_IN_MODE(madvise_some_memory, any, false)

/* ---- Names, arguments. ---- */

TEST(space_operations_are_known) {
    is_known(UPCALL_OP_SYNC_RANGE, "sync_range");
    is_known(UPCALL_OP_FALLOCATE, "fallocate");
    is_known(UPCALL_OP_FTRUNCATE, "ftruncate");
    is_known(UPCALL_OP_FADVISE, "fadvise");
    is_known(UPCALL_OP_MADVISE, "madvise");
}

TEST(space_operations_refuse_strange_fields) {
    int fd = temp_file(1);
    refuses_strange_fields(upcall_op_sync_range(fd, 0, 1, 0), 0);
    refuses_strange_fields(upcall_op_fallocate(fd, 0, 0, 1), 0);
    refuses_strange_fields(upcall_op_ftruncate(fd, 1), 0);
    refuses_strange_fields(upcall_op_fadvise(fd, 0, 1, 0), 0);
    refuses_strange_fields(upcall_op_madvise(NULL, 0, 0), 0);
}

TEST(space_operations_refuse_bad_arguments) {
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    refused(loop, upcall_op_sync_range(fd, -1, 1, 0), EINVAL, "offset is -1, less than 0");
    refused(loop, upcall_op_sync_range(fd, 0, -1, 0), EINVAL, "len is -1, less than 0");
    refused(loop, upcall_op_fallocate(fd, 0, INT64_MIN, 1), EINVAL, "offset is -9223372036854775808, less than 0");
    refused(loop, upcall_op_fallocate(fd, 0, 0, -5), EINVAL, "len is -5, less than 0");
    refused(loop, upcall_op_fallocate(fd, 0, 0, 0), EINVAL, "len is 0");
    refused(loop, upcall_op_ftruncate(fd, -1), EINVAL, "len is -1, less than 0");
    refused(loop, upcall_op_fadvise(fd, -1, 1, 0), EINVAL, "offset is -1, less than 0");
    refused(loop, upcall_op_fadvise(fd, 0, -1, 0), EINVAL, "len is -1, less than 0");
    CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    upcall_loop *loop = new_loop();
    int bad[6] = {-1, INT32_MIN, INT32_MAX, closed_fd(), open("/", O_PATH | O_CLOEXEC), AT_FDCWD};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_sync_range(bad[i], 0, 1, 0), -EBADF);
        ends_with(loop, upcall_op_fallocate(bad[i], 0, 0, 1), -EBADF);
        ends_with(loop, upcall_op_ftruncate(bad[i], 1), -EBADF);
        ends_with(loop, upcall_op_fadvise(bad[i], 0, 1, 0), -EBADF);
    }
    free_loop(loop);
}

/* What only the kernel can know comes in the event, with the errno of the system call, on every kind of descriptor. */
TEST(strange_descriptors_answer_as_the_system_calls_do) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 10);
    int pair[2], tube[2];
    unix_pair(pair);
    pipe_pair(tube);
    int fds[] = {pair[0], tube[0], tube[1], open("file", O_RDONLY | O_CLOEXEC), open("file", O_WRONLY | O_CLOEXEC),
                 open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), open("/dev/null", O_RDWR | O_CLOEXEC),
                 eventfd(0, EFD_CLOEXEC)};
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        CHECK(fds[i] >= 0);
        int rc = sync_file_range(fds[i], 0, 1, SYNC_FILE_RANGE_WRITE);
        ends_with(loop, upcall_op_sync_range(fds[i], 0, 1, SYNC_FILE_RANGE_WRITE), rc < 0 ? -errno : 0);
        rc = fallocate(fds[i], 0, 0, 5);
        ends_with(loop, upcall_op_fallocate(fds[i], 0, 0, 5), rc < 0 ? -errno : 0);
        rc = ftruncate(fds[i], 10);
        ends_with(loop, upcall_op_ftruncate(fds[i], 10), rc < 0 ? -errno : 0);
        ends_with(loop, upcall_op_fadvise(fds[i], 0, 1, POSIX_FADV_NORMAL),
                  -posix_fadvise(fds[i], 0, 1, POSIX_FADV_NORMAL));
        close(fds[i]);
    }
    leave_scratch();
    free_loop(loop);
}

/* ---- Lengths and positions. ---- */

/* The ring's entry has 32 bits for some of these lengths. */
TEST(lengths_of_more_than_32_bits_are_whole) {
    static const int64_t lengths[] = {0, 1, UINT32_MAX, INT64_C(1) << 32, (INT64_C(1) << 32) + PAGE, INT64_C(1) << 40,
                                      INT64_MAX - 1, INT64_MAX};
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        int rc = sync_file_range(fd, 5, lengths[i], SYNC_FILE_RANGE_WRITE);
        ends_with(loop, upcall_op_sync_range(fd, 5, lengths[i], SYNC_FILE_RANGE_WRITE), rc < 0 ? -errno : 0);
        ends_with(loop, upcall_op_fadvise(fd, 5, lengths[i], POSIX_FADV_DONTNEED),
                  -posix_fadvise(fd, 5, lengths[i], POSIX_FADV_DONTNEED));
        rc = ftruncate(fd, lengths[i]);
        int64_t want = rc < 0 ? -errno : 0;
        CHECK(ftruncate(fd, 10) == 0);
        ends_with(loop, upcall_op_ftruncate(fd, lengths[i]), want);
        CHECK_EQ(lseek(fd, 0, SEEK_END), want == 0 ? lengths[i] : 10);
        CHECK(ftruncate(fd, 10) == 0);
    }
    free_loop(loop);
}

/* With a length cut to 32 bits, 4 GiB + 1 page would be 1 page, and the page after it would stay. */
TEST(madvise_takes_more_than_32_bits_of_memory) {
    const size_t size = ((size_t)4 << 30) + (size_t)4 * PAGE;
    upcall_loop *loop = new_loop();
    uint8_t *memory = vast_memory(size);
    memory[0] = memory[(size_t)2 * PAGE] = memory[size - PAGE] = 1;
    ends_with(loop, upcall_op_madvise(memory, size - (size_t)3 * PAGE, MADV_DONTNEED), 0);
    CHECK_EQ(memory[0], 0);
    CHECK_EQ(memory[(size_t)2 * PAGE], 0);
    CHECK_EQ(memory[size - PAGE], 1);
    ends_with(loop, upcall_op_madvise(memory, size, MADV_DONTNEED), 0);
    CHECK_EQ(memory[size - PAGE], 0);
    free_loop(loop);
}

TEST(madvise_answers_as_the_system_call_does) {
    upcall_loop *loop = new_loop();
    uint8_t *memory = mmap(NULL, (size_t)4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(munmap(memory + PAGE, PAGE) == 0);
    const struct { size_t at, length; int advice; } rows[] = {
        {0, PAGE, MADV_NORMAL},     {0, PAGE, MADV_WILLNEED}, {0, PAGE, MADV_RANDOM},   {0, 0, MADV_DONTNEED},
        {1, PAGE, MADV_DONTNEED},   {0, PAGE, -1},            {0, PAGE, 12345},         {PAGE, PAGE, MADV_DONTNEED},
        {0, 3 * PAGE, MADV_NORMAL}, {0, SIZE_MAX, MADV_NORMAL}, {0, SIZE_MAX - PAGE, MADV_NORMAL},
        {2 * PAGE, 100, MADV_DONTNEED}, {2 * PAGE, PAGE, MADV_POPULATE_WRITE}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int rc = madvise(memory + rows[i].at, rows[i].length, rows[i].advice);
        int64_t want = rc < 0 ? -errno : 0;
        ends_with(loop, upcall_op_madvise(memory + rows[i].at, rows[i].length, rows[i].advice), want);
    }
    free_loop(loop);
}

TEST(advice_answers_as_the_system_call_does) {
    upcall_loop *loop = new_loop();
    int fd = temp_file(10000);
    for (int advice = -1; advice < 10; advice++)
        ends_with(loop, upcall_op_fadvise(fd, 1, 5000, advice), -posix_fadvise(fd, 1, 5000, advice));
    for (uint32_t flags = 0; flags < 17; flags++) {
        int rc = sync_file_range(fd, 0, 5000, flags);
        ends_with(loop, upcall_op_sync_range(fd, 0, 5000, flags), rc < 0 ? -errno : 0);
    }
    ends_with(loop, upcall_op_sync_range(fd, 0, 5000, UINT32_MAX), -EINVAL);
    free_loop(loop);
}

/* ---- fallocate. ---- */

TEST(fallocate_does_what_the_mode_says) {
    static uint8_t all[8 * PAGE];
    struct stat found;
    upcall_loop *loop = new_loop();
    int fd = temp_file((size_t)8 * PAGE);
    CHECK(fsync(fd) == 0);
    ends_with(loop, upcall_op_fallocate(fd, FALLOC_FL_KEEP_SIZE, 8 * PAGE, 8 * PAGE), 0);
    CHECK(fstat(fd, &found) == 0);
    CHECK_EQ(found.st_size, 8 * PAGE);
    int rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE);
    int64_t want = rc < 0 ? -errno : 0;
    ends_with(loop, upcall_op_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, PAGE), want);
    CHECK_EQ(pread(fd, all, sizeof all, 0), sizeof all);
    CHECK(has_pattern(all, PAGE, 0) && has_pattern(all + 3 * PAGE, 5 * PAGE, 3 * PAGE));
    if (want == 0)
        for (size_t i = 0; i < PAGE; i++)
            CHECK_EQ(all[2 * PAGE + i], 0);
    const int modes[] = {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE,
                         FALLOC_FL_UNSHARE_RANGE, 1 << 20, -1, INT32_MIN};
    for (size_t i = 0; i < COUNT_OF(modes); i++) { /* each on a file of its own: they move what follows */
        int theirs = temp_file((size_t)8 * PAGE), ours = temp_file((size_t)8 * PAGE);
        rc = fallocate(theirs, modes[i], PAGE, PAGE);
        ends_with(loop, upcall_op_fallocate(ours, modes[i], PAGE, PAGE), rc < 0 ? -errno : 0);
        CHECK_EQ(lseek(ours, 0, SEEK_END), lseek(theirs, 0, SEEK_END));
        close(theirs);
        close(ours);
    }
    free_loop(loop);
}

TEST(far_positions_answer_as_the_system_call_does) {
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    ends_with(loop, upcall_op_fallocate(fd, 0, INT64_MAX, 1), -EFBIG);
    ends_with(loop, upcall_op_fallocate(fd, 0, 1, INT64_MAX), -EFBIG);
    ends_with(loop, upcall_op_fallocate(fd, 0, INT64_C(1) << 40, INT64_C(1) << 62), fallocate(fd, 0, INT64_C(1) << 40,
              INT64_C(1) << 62) < 0 ? -errno : 0);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
    free_loop(loop);
}

/* On a file system of 64 pages, where this process may mount one. */
TEST(no_room_is_ENOSPC) {
    static char block[PAGE];
    struct iovec parts[2] = {{block, 100}, {block, PAGE - 100}};
    enter_scratch();
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("upcall", scratch, "tmpfs", 0, "size=256k") != 0) {
        leave_scratch();
        SKIP("this process may not mount a file system");
    }
    upcall_loop *loop = new_loop();
    char path[600];
    snprintf(path, sizeof path, "%s/file", scratch);
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    ends_with(loop, upcall_op_fallocate(fd, 0, 0, 65 * PAGE), -ENOSPC);
    ends_with(loop, upcall_op_fallocate(fd, 0, 0, 63 * PAGE), 0);
    upcall_op whole = upcall_op_pwritev(fd, parts, 2, 60 * PAGE, 0);
    whole.flags = UPCALL_FULL;
    ends_with(loop, whole, PAGE);
    struct iovec many[8];
    for (size_t i = 0; i < COUNT_OF(many); i++)
        many[i] = (struct iovec){block, PAGE};
    struct record final = complete(loop, upcall_op_pwritev(fd, many, 8, 61 * PAGE, 0)); /* what fits */
    CHECK_EQ(final.result, 3 * PAGE);
    ends_with(loop, upcall_op_pwritev(fd, parts, 2, 64 * PAGE, 0), -ENOSPC);
    whole = upcall_op_pwritev(fd, many, 8, 61 * PAGE, 0);
    whole.flags = UPCALL_FULL;
    final = complete(loop, whole);
    CHECK_EQ(final.result, -ENOSPC);
    CHECK_EQ(final.transferred, 3 * PAGE);
    close(fd);
    free_loop(loop);
    CHECK(umount2(scratch, MNT_DETACH) == 0);
    leave_scratch();
}

/* A sealed file refuses with -EPERM, which no retry may hide. */
TEST(a_sealed_file_is_EPERM) {
    char byte = 'x';
    struct iovec part = {&byte, 1};
    upcall_loop *loop = new_loop();
    int fd = (int)syscall(SYS_memfd_create, "upcall", 0x0003U /* MFD_CLOEXEC | MFD_ALLOW_SEALING */);
    CHECK(fd >= 0 && ftruncate(fd, 100) == 0);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    ends_with(loop, upcall_op_ftruncate(fd, 50), -EPERM);
    ends_with(loop, upcall_op_ftruncate(fd, 150), -EPERM);
    ends_with(loop, upcall_op_ftruncate(fd, 100), 0);
    ends_with(loop, upcall_op_fallocate(fd, 0, 100, 100), -EPERM);
    ends_with(loop, upcall_op_pwritev(fd, &part, 1, 100, 0), -EPERM);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 100);
    free_loop(loop);
}

/* ---- Limits, hazard 25. ---- */

TEST(past_the_file_size_limit_is_EFBIG_and_no_signal) {
    enum { AT = 1 << 20 };
    struct rlimit limit = {AT, RLIM_INFINITY};
    CHECK(signal(SIGXFSZ, SIG_DFL) != SIG_ERR); /* its default action would end this process */
    upcall_loop *loop = new_loop();
    int fd = temp_file(10);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    for (int round = 0; round < 3; round++) {
        ends_with(loop, upcall_op_ftruncate(fd, AT + 1), -EFBIG);
        ends_with(loop, upcall_op_fallocate(fd, 0, 0, AT + 1), -EFBIG);
        CHECK_EQ(lseek(fd, 0, SEEK_END), 10);
        ends_with(loop, upcall_op_fallocate(fd, 0, 0, AT), 0);
        ends_with(loop, upcall_op_ftruncate(fd, AT), 0);
        ends_with(loop, upcall_op_ftruncate(fd, 10), 0);
    }
    free_loop(loop);
}

/* ---- Order. ---- */

TEST(a_chain_gives_a_file_its_room_then_its_bytes) {
    struct recorder rec = {0};
    uint8_t all[300];
    upcall_loop *loop = new_loop();
    int fd = temp_file(100);
    upcall_op ops[5] = {upcall_op_ftruncate(fd, 0), upcall_op_fallocate(fd, 0, 0, 50),
                        upcall_op_pwrite(fd, "0123456789", 10, 20), upcall_op_sync_range(fd, 0, 0, 7),
                        upcall_op_ftruncate(fd, 25)};
    upcall_id ids[5];
    for (size_t i = 0; i < 4; i++)
        ops[i].flags = UPCALL_LINK;
    submit_many(loop, ops, 5, &rec, ids);
    run_finals(loop, &rec, 5);
    for (size_t i = 0; i < 5; i++) {
        CHECK_EQ(rec.events[i].id, ids[i]);
        CHECK_EQ(rec.events[i].result, i == 2 ? 10 : 0);
    }
    CHECK_EQ(pread(fd, all, sizeof all, 0), 25);
    CHECK(all[0] == 0 && all[19] == 0 && memcmp(all + 20, "01234", 5) == 0);
    free_loop(loop);
    forget(&rec);
}
