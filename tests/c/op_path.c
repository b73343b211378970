/*
 * open, close and statx.
 */
#include "op_support.h"

/* ---- open: subjects. ---- */

static void set_named_file(struct scene *scene) {
    enter_scratch();
    scene->in_scratch = true;
    make_file("file", 100);
}

static upcall_op make_open(struct scene *scene) {
    (void)scene;
    return upcall_op_open(AT_FDCWD, "made", O_CREAT | O_EXCL | O_RDWR, 0640);
}

static void is_opened(struct scene *scene, struct record final) {
    struct stat found;
    (void)scene;
    CHECK(final.result >= 0);
    CHECK_EQ(final.transferred, 0);
    int fd = (int)final.result;
    CHECK(is_cloexec(fd));
    CHECK(!has_nonblock(fd));
    CHECK(fstat(fd, &found) == 0);
    CHECK(S_ISREG(found.st_mode) && found.st_size == 0);
    CHECK(write(fd, "a", 1) == 1);
    close(fd);
    CHECK(unlink("made") == 0);
}

static void is_not_opened(struct scene *scene) {
    (void)scene;
    CHECK(access("made", F_OK) != 0 && errno == ENOENT);
}

static const struct subject open_a_new_file = {.kind = UPCALL_OP_OPEN, .set_up = set_named_file, .make = make_open,
    .done = is_opened, .intact = is_not_opened};
PROMISES_IN_MODE(open_a_new_file, any, false)

static void set_fifo(struct scene *scene) {
    enter_scratch();
    scene->in_scratch = true;
    CHECK(mkfifo("fifo", 0600) == 0);
}

static upcall_op make_open_reader(struct scene *scene) {
    (void)scene;
    return upcall_op_open(AT_FDCWD, "fifo", O_RDONLY, 0);
}

static upcall_op make_open_writer(struct scene *scene) {
    (void)scene;
    return upcall_op_open(AT_FDCWD, "fifo", O_WRONLY, 0);
}

/* O_RDWR is both sides at once, and never waits. */
static void open_both_sides(struct scene *scene) {
    scene->peer = open("fifo", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    CHECK(scene->peer >= 0);
}

static void reader_is_opened(struct scene *scene, struct record final) {
    char byte = 0;
    CHECK(final.result >= 0);
    int fd = (int)final.result;
    CHECK(is_cloexec(fd));
    CHECK(!has_nonblock(fd));
    CHECK_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    write_all(scene->peer, "x", 1);
    read_all(fd, &byte, 1);
    CHECK_EQ(byte, 'x');
    close(fd);
}

static void writer_is_opened(struct scene *scene, struct record final) {
    char byte = 0;
    CHECK(final.result >= 0);
    int fd = (int)final.result;
    CHECK(is_cloexec(fd));
    CHECK_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_WRONLY);
    write_all(fd, "x", 1);
    read_all(scene->peer, &byte, 1);
    CHECK_EQ(byte, 'x');
    close(fd);
}

/* Nobody else holds the named pipe open, nor waits to. */
static void fifo_is_alone(struct scene *scene) {
    close(scene->peer);
    scene->peer = -1;
    CHECK(open("fifo", O_WRONLY | O_NONBLOCK) == -1 && errno == ENXIO);
    int reader = open("fifo", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    char byte;
    CHECK(reader >= 0);
    CHECK_EQ(read(reader, &byte, 1), 0); /* no writer */
    close(reader);
}

static const struct subject open_a_fifo_to_read = {.kind = UPCALL_OP_OPEN, .set_up = set_fifo,
    .make = make_open_reader, .allow = open_both_sides, .done = reader_is_opened, .intact = fifo_is_alone};
static const struct subject open_a_fifo_to_write = {.kind = UPCALL_OP_OPEN, .set_up = set_fifo,
    .make = make_open_writer, .allow = open_both_sides, .done = writer_is_opened, .intact = fifo_is_alone};
PROMISES_OF_WAITING_IN_MODE(open_a_fifo_to_read, any, false)
PROMISES_OF_WAITING_IN_MODE(open_a_fifo_to_write, any, false)

/* ---- close: subjects. ---- */

static void set_closed(struct scene *scene) {
    int fds[2];
    unix_pair(fds);
    scene->fd = fds[0];
    scene->peer = fds[1];
}

static upcall_op make_close(struct scene *scene) {
    return upcall_op_close(scene->fd);
}

static void is_closed(struct scene *scene, struct record final) {
    char byte;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK_EQ(recv(scene->peer, &byte, 1, MSG_DONTWAIT), 0); /* the other side sees the end */
}

static void is_not_closed(struct scene *scene) {
    char byte;
    CHECK(is_open(scene->fd));
    CHECK(recv(scene->peer, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static const struct subject close_a_socket = {.kind = UPCALL_OP_CLOSE, .closes = true, .set_up = set_closed,
    .make = make_close, .done = is_closed, .intact = is_not_closed};
PROMISES(close_a_socket)

/* ---- statx: subjects. ---- */

static upcall_op make_statx(struct scene *scene) {
    return upcall_op_statx(AT_FDCWD, "file", 0, STATX_BASIC_STATS, &scene->found);
}

static void is_found(struct scene *scene, struct record final) {
    struct statx want;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(statx(AT_FDCWD, "file", 0, STATX_BASIC_STATS, &want) == 0);
    CHECK_EQ(scene->found.stx_size, 100);
    CHECK_EQ(scene->found.stx_ino, want.stx_ino);
    CHECK_EQ(scene->found.stx_mode, want.stx_mode);
    CHECK_EQ(scene->found.stx_nlink, 1);
    CHECK((scene->found.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS);
}

static void is_not_found(struct scene *scene) {
    static const struct statx zero;
    CHECK(memcmp(&scene->found, &zero, sizeof zero) == 0);
}

static const struct subject statx_a_file = {.kind = UPCALL_OP_STATX, .set_up = set_named_file, .make = make_statx,
    .done = is_found, .intact = is_not_found};
PROMISES_IN_MODE(statx_a_file, any, false)

/* ---- Names, arguments. ---- */

TEST(path_operations_are_known) {
    is_known(UPCALL_OP_OPEN, "open");
    is_known(UPCALL_OP_CLOSE, "close");
    is_known(UPCALL_OP_STATX, "statx");
}

TEST(path_operations_refuse_strange_fields) {
    struct statx found;
    int fd = eventfd(0, EFD_CLOEXEC);
    refuses_strange_fields(upcall_op_open(AT_FDCWD, "/", O_RDONLY, 0), 0);
    refuses_strange_fields(upcall_op_statx(AT_FDCWD, "/", 0, STATX_SIZE, &found), 0);
    refuses_strange_fields(upcall_op_close(fd), 0);
    CHECK(is_open(fd));
}

TEST(path_operations_refuse_bad_arguments) {
    static char longest[PATH_MAX + 2];
    struct statx found;
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_open(AT_FDCWD, NULL, O_RDONLY, 0), EINVAL, "path is NULL");
    refused(loop, upcall_op_statx(AT_FDCWD, NULL, 0, STATX_SIZE, &found), EINVAL, "path is NULL");
    refused(loop, upcall_op_statx(AT_FDCWD, NULL, AT_EMPTY_PATH, STATX_SIZE, &found), EINVAL, "path is NULL");
    refused(loop, upcall_op_statx(AT_FDCWD, "/", 0, STATX_SIZE, NULL), EINVAL, "statxbuf is NULL");
    for (size_t length = PATH_MAX; length <= PATH_MAX + 1; length++) {
        memset(longest, '/', length);
        longest[length] = '\0';
        refused(loop, upcall_op_open(AT_FDCWD, longest, O_RDONLY, 0), ENAMETOOLONG,
                "path is longer than PATH_MAX (4096)");
        refused(loop, upcall_op_statx(AT_FDCWD, longest, 0, STATX_SIZE, &found), ENAMETOOLONG,
                "path is longer than PATH_MAX (4096)");
    }
    free_loop(loop);
}

/* The longest path there is: 4095 bytes and the NUL. */
TEST(the_longest_path_is_accepted) {
    static char longest[PATH_MAX];
    struct statx found;
    upcall_loop *loop = new_loop();
    memset(longest, '/', PATH_MAX - 1);
    struct record final = complete(loop, upcall_op_open(-1, longest, O_RDONLY | O_DIRECTORY, 0));
    CHECK(final.result >= 0);
    close((int)final.result);
    ends_with(loop, upcall_op_statx(-1, longest, 0, STATX_SIZE, &found), 0);
    memset(longest, 'a', 256); /* one name that is too long for the file system */
    ends_with(loop, upcall_op_open(AT_FDCWD, longest, O_RDONLY, 0), -ENAMETOOLONG);
    ends_with(loop, upcall_op_statx(AT_FDCWD, longest, 0, STATX_SIZE, &found), -ENAMETOOLONG);
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    struct statx found;
    upcall_loop *loop = new_loop();
    int bad[4] = {-1, INT32_MIN, INT32_MAX, closed_fd()};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_close(bad[i]), -EBADF);
        ends_with(loop, upcall_op_open(bad[i], "name", O_RDONLY, 0), -EBADF);
        ends_with(loop, upcall_op_statx(bad[i], "name", 0, STATX_SIZE, &found), -EBADF);
        ends_with(loop, upcall_op_statx(bad[i], "", AT_EMPTY_PATH, STATX_SIZE, &found), -EBADF);
    }
    ends_with(loop, upcall_op_close(AT_FDCWD), -EBADF);
    free_loop(loop);
}

/* ---- open. ---- */

/* Opens, checks what every opened descriptor is, and returns it; or returns the error. */
static int64_t opened_at(struct place at, upcall_loop *loop, int dirfd, const char *path, int flags, uint32_t mode) {
    struct record final = complete_at(at, loop, upcall_op_open(dirfd, path, flags, mode));
    check_eq(at, "flags", final.flags, 0);
    check_eq(at, "transferred", (long long)final.transferred, 0);
    if (final.result >= 0)
        check_eq(at, "close-on-exec", is_cloexec((int)final.result), true);
    return final.result;
}
#define opened(loop, dirfd, path, flags, mode) opened_at(HERE, (loop), (dirfd), (path), (flags), (mode))

TEST(open_answers_as_open_does) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 10);
    CHECK(mkdir("directory", 0700) == 0);
    CHECK(symlink("file", "link") == 0);
    CHECK(symlink("loop", "loop") == 0);
    CHECK(mkfifo("fifo", 0600) == 0);
    const struct { const char *path; int flags, error; } rows[] = {
        {"file", O_RDONLY, 0},
        {"file", O_RDWR | O_APPEND, 0},
        {"file", O_RDONLY | O_CLOEXEC, 0},
        {"./directory/../file", O_RDONLY, 0},
        {"directory", O_RDONLY, 0},
        {"directory", O_RDONLY | O_DIRECTORY, 0},
        {"directory", O_PATH, 0},
        {"link", O_RDONLY, 0},
        {"link", O_PATH | O_NOFOLLOW, 0},
        {"fifo", O_RDWR, 0},                 /* both sides: nothing to wait for */
        {"fifo", O_RDONLY | O_NONBLOCK, 0},  /* does not wait, as the program asks for */
        {"fifo", O_PATH, 0},
        {"/dev/null", O_RDWR, 0},
        {"fifo", O_WRONLY | O_NONBLOCK, ENXIO},
        {"missing", O_RDONLY, ENOENT},
        {"missing/file", O_CREAT | O_RDWR, ENOENT},
        {"", O_RDONLY, ENOENT},
        {"", O_CREAT | O_RDWR, ENOENT},
        {"file/inside", O_RDONLY, ENOTDIR},
        {"file", O_RDONLY | O_DIRECTORY, ENOTDIR},
        {"file", O_CREAT | O_EXCL | O_RDWR, EEXIST},
        {"directory", O_CREAT | O_EXCL | O_RDWR, EEXIST},
        {"link", O_CREAT | O_EXCL | O_RDWR, EEXIST},
        {"directory", O_WRONLY, EISDIR},
        {"link", O_RDONLY | O_NOFOLLOW, ELOOP},
        {"loop", O_RDONLY, ELOOP},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int before = open_fd_count();
        int64_t fd = opened(loop, AT_FDCWD, rows[i].path, rows[i].flags, 0600);
        CHECK_EQ(fd < 0 ? fd : 0, -rows[i].error);
        if (fd >= 0)
            close((int)fd);
        CHECK_EQ(open_fd_count(), before);
    }
    leave_scratch();
    free_loop(loop);
}

TEST(open_takes_mode_and_flags) {
    struct stat found;
    char bytes[8] = {0};
    upcall_loop *loop = new_loop();
    enter_scratch();
    mode_t mask = umask(027);
    int fd = (int)opened(loop, AT_FDCWD, "made", O_CREAT | O_EXCL | O_RDWR, 0666);
    CHECK(fstat(fd, &found) == 0);
    CHECK_EQ(found.st_mode & 07777, 0640); /* the umask counts */
    write_all(fd, "12345", 5);
    close(fd);
    umask(mask);

    fd = (int)opened(loop, AT_FDCWD, "made", O_WRONLY | O_APPEND, 0);
    write_all(fd, "67", 2);
    close(fd);
    fd = (int)opened(loop, AT_FDCWD, "made", O_RDONLY | O_NONBLOCK, 07777); /* no O_CREAT: mode does not count */
    CHECK(has_nonblock(fd));
    CHECK_EQ(read(fd, bytes, sizeof bytes), 7);
    CHECK(memcmp(bytes, "1234567", 7) == 0);
    close(fd);
    fd = (int)opened(loop, AT_FDCWD, "made", O_RDWR | O_TRUNC, 0);
    CHECK(fstat(fd, &found) == 0);
    CHECK_EQ(found.st_size, 0);
    CHECK_EQ(found.st_mode & 07777, 0640);
    close(fd);
    fd = (int)opened(loop, AT_FDCWD, ".", O_TMPFILE | O_RDWR, 0600);
    if (fd != -EOPNOTSUPP && fd != -EISDIR) { /* a file system without O_TMPFILE */
        CHECK(fstat(fd, &found) == 0);
        CHECK_EQ(found.st_nlink, 0);
        CHECK_EQ(found.st_mode & 07777, 0600);
        close(fd);
    }
    leave_scratch();
    free_loop(loop);
}

TEST(paths_are_relative_to_the_directory) {
    struct statx found;
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 10);
    CHECK(mkdir("directory", 0700) == 0);
    CHECK(chdir("directory") == 0);
    make_file("inside", 20);
    int directory = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK(chdir("..") == 0);
    int file = open("file", O_RDONLY | O_CLOEXEC);

    int64_t fd = opened(loop, directory, "inside", O_RDONLY, 0);
    CHECK(fd >= 0);
    close((int)fd);
    CHECK_EQ(opened(loop, AT_FDCWD, "inside", O_RDONLY, 0), -ENOENT);
    fd = opened(loop, AT_FDCWD, "file", O_RDONLY, 0);
    CHECK(fd >= 0);
    close((int)fd);
    CHECK_EQ(opened(loop, file, "inside", O_RDONLY, 0), -ENOTDIR);
    fd = opened(loop, -1, "/dev/null", O_RDONLY, 0); /* an absolute path needs no directory */
    CHECK(fd >= 0);
    close((int)fd);

    ends_with(loop, upcall_op_statx(directory, "inside", 0, STATX_SIZE, &found), 0);
    CHECK_EQ(found.stx_size, 20);
    ends_with(loop, upcall_op_statx(AT_FDCWD, "inside", 0, STATX_SIZE, &found), -ENOENT);
    ends_with(loop, upcall_op_statx(file, "inside", 0, STATX_SIZE, &found), -ENOTDIR);
    ends_with(loop, upcall_op_statx(-1, "/dev/null", 0, STATX_TYPE, &found), 0);
    CHECK(S_ISCHR(found.stx_mode));
    CHECK(unlinkat(directory, "inside", 0) == 0);
    leave_scratch();
    free_loop(loop);
}

/* Hazard 37: the path is the program's again when submit returns. */
TEST(paths_are_copied) {
    struct statx found;
    for (int owned = 0; owned < 2; owned++) {
        struct recorder rec = {0};
        char path[64];
        upcall_loop *loop = new_loop();
        if (owned)
            CHECK_EQ(upcall_poll(loop, 0), 0);
        enter_scratch();
        make_file("file", 10);
        strcpy(path, "made");
        upcall_id made = submit_one(loop, upcall_op_open(AT_FDCWD, path, O_CREAT | O_RDWR, 0600), &rec);
        strcpy(path, "file");
        upcall_id asked = submit_one(loop, upcall_op_statx(AT_FDCWD, path, 0, STATX_SIZE, &found), &rec);
        memset(path, 'x', sizeof path);
        run_finals(loop, &rec, 2);
        CHECK(final_of(&rec, made).result >= 0);
        CHECK(access("made", F_OK) == 0);
        CHECK_EQ(final_of(&rec, asked).result, 0);
        CHECK_EQ(found.stx_size, 10);
        leave_scratch();
        free_loop(loop);
        forget(&rec);
    }
}

TEST(open_without_a_free_descriptor_is_EMFILE) {
    struct rlimit before, limit;
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_open(AT_FDCWD, "/missing", O_RDONLY, 0)).result, -ENOENT);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    int lowest = dup(STDOUT_FILENO);
    close(lowest);
    limit = before;
    limit.rlim_cur = (rlim_t)lowest;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    ends_with(loop, upcall_op_open(AT_FDCWD, "/dev/null", O_RDONLY, 0), -EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    int64_t fd = opened(loop, AT_FDCWD, "/dev/null", O_RDONLY, 0);
    CHECK(fd >= 0);
    free_loop(loop);
}

/* What may wait without limit never holds a pool thread, nor a worker of the kernel that files need. */
TEST(waiting_opens_do_not_hold_up_files) {
    enum { WAITING = 40 };
    char name[32];
    struct recorder rec = {0}, files = {0};
    upcall_id ids[WAITING];
    struct statx found;
    upcall_config config = default_config();
    config.workers = 2;
    warm_up();
    enter_scratch();
    int before = open_fd_count();
    upcall_loop *loop = loop_with(&config);
    for (size_t i = 0; i < WAITING; i++) {
        snprintf(name, sizeof name, "fifo%zu", i);
        CHECK(mkfifo(name, 0600) == 0);
        ids[i] = submit_one(loop, upcall_op_open(AT_FDCWD, name, i % 2 ? O_RDONLY : O_WRONLY, 0), &rec);
    }
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    int file = temp_file(10);
    submit_one(loop, upcall_op_fsync(file), &files);
    submit_one(loop, upcall_op_statx(AT_FDCWD, ".", 0, STATX_TYPE, &found), &files);
    submit_one(loop, upcall_op_open(AT_FDCWD, "made", O_CREAT | O_RDWR, 0600), &files);
    run_finals(loop, &files, 3);
    for (size_t i = 0; i < 3; i++) {
        CHECK(files.events[i].result >= 0);
        if (files.events[i].kind == UPCALL_OP_OPEN)
            close((int)files.events[i].result);
    }
    close(file);
    CHECK_EQ(rec.count, 0);
    for (size_t i = 0; i < WAITING / 2; i++)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    run_finals(loop, &rec, WAITING / 2);
    for (size_t i = WAITING / 2; i < WAITING; i++) {
        snprintf(name, sizeof name, "fifo%zu", i);
        int both = open(name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        run_finals(loop, &rec, i + 1);
        CHECK(final_of(&rec, ids[i]).result >= 0);
        close((int)final_of(&rec, ids[i]).result);
        close(both);
    }
    check_finals(&rec, ids, WAITING);
    for (size_t i = 0; i < WAITING / 2; i++)
        CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), before);
    leave_scratch();
    forget(&rec);
    forget(&files);
}

/* Freeing the loop ends an open that would wait for ever; its descriptor, if it came after all, is not leaked. */
TEST(a_waiting_open_does_not_hold_up_the_end_of_the_loop) {
    struct recorder rec = {0};
    warm_up();
    enter_scratch();
    CHECK(mkfifo("fifo", 0600) == 0);
    int before = open_fd_count();
    upcall_loop *loop = new_loop();
    upcall_id id = submit_one(loop, upcall_op_open(AT_FDCWD, "fifo", O_RDONLY, 0), &rec);
    start_all(loop);
    free_loop(loop);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    CHECK_EQ(open_fd_count(), before);
    leave_scratch();
    forget(&rec);
}

/* Hazard 30: a descriptor that comes while it is being cancelled is delivered or closed, never dropped. */
TEST(an_open_that_races_with_cancel_leaks_nothing) {
    warm_up();
    enter_scratch();
    CHECK(mkfifo("fifo", 0600) == 0);
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    int before = open_fd_count();
    for (int round = 0; round < 200; round++) {
        struct recorder rec = {0};
        upcall_id id = submit_one(loop, upcall_op_open(AT_FDCWD, "fifo", O_RDONLY, 0), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        int both = open("fifo", O_RDWR | O_NONBLOCK | O_CLOEXEC);
        CHECK(both >= 0);
        int rc = upcall_cancel(loop, id);
        CHECK(rc == 0 || rc == -ENOENT);
        run_finals(loop, &rec, 1);
        struct record final = final_of(&rec, id);
        CHECK(final.result >= 0 || final.result == -ECANCELED);
        if (final.result >= 0)
            close((int)final.result);
        close(both);
        forget(&rec);
    }
    int after = open_fd_count();
    free_loop(loop);
    CHECK(after <= before + 2); /* what the loop itself made meanwhile, not one for each round */
    CHECK(open("fifo", O_WRONLY | O_NONBLOCK) == -1 && errno == ENXIO);
    leave_scratch();
}

/* ---- close. ---- */

/* Everything in flight on the descriptor ends and is delivered first; then it is closed. */
TEST(close_ends_what_is_in_flight_first) {
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        enum { READ, RECV, POLL, WRITE, SEND, CLOSE, OPS };
        static const char big[1];
        char bytes[2];
        struct recorder rec = {0};
        upcall_op ops[OPS];
        upcall_id ids[OPS];
        upcall_loop *loop = new_loop();
        int fds[2], other[2];
        unix_pair(fds);
        unix_pair(other);
        if (nonblocking)
            set_nonblocking(fds[0]);
        size_t filled = fill_up(fds[0]);
        ops[READ] = upcall_op_read(fds[0], &bytes[0], 1);
        ops[RECV] = upcall_op_recv(fds[0], &bytes[1], 1, 0);
        ops[POLL] = upcall_op_poll(fds[0], POLLIN);
        ops[WRITE] = upcall_op_write(fds[0], big, 1);
        ops[SEND] = upcall_op_send(fds[0], big, 1, 0);
        submit_many(loop, ops, CLOSE, &rec, ids);
        char elsewhere;
        upcall_id spared = submit_one(loop, upcall_op_read(other[0], &elsewhere, 1), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        ids[CLOSE] = submit_one(loop, upcall_op_close(fds[0]), &rec);
        CHECK(is_open(fds[0])); /* submitting does nothing yet */
        run_finals(loop, &rec, OPS);
        check_finals(&rec, ids, OPS);
        for (size_t i = 0; i < CLOSE; i++) {
            CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
            CHECK_EQ(final_of(&rec, ids[i]).flags, 0);
        }
        CHECK_EQ(final_of(&rec, ids[CLOSE]).result, 0);
        CHECK_EQ(order_of(&rec, ids[CLOSE]), CLOSE); /* it comes last */
        CHECK(!is_open(fds[0]));
        take(fds[1], filled);
        CHECK_EQ(recv(fds[1], bytes, 1, MSG_DONTWAIT), 0); /* and nothing but the end follows */
        write_all(other[1], "x", 1);
        run_finals(loop, &rec, OPS + 1);
        CHECK_EQ(final_of(&rec, spared).result, 1);
        free_loop(loop);
        close(fds[1]);
        close_pair(other);
        forget(&rec);
    }
}

/* The same in one submit: what came before close in it is in flight, too. */
TEST(close_ends_what_was_submitted_with_it) {
    char byte;
    struct recorder rec = {0};
    upcall_id ids[2];
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    upcall_op ops[2] = {upcall_op_read(fds[0], &byte, 1), upcall_op_close(fds[0])};
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    check_finals(&rec, ids, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    CHECK_EQ(order_of(&rec, ids[1]), 1);
    CHECK(!is_open(fds[0]));
    free_loop(loop);
    forget(&rec);
}

struct late {
    struct recorder *rec;
    int fd;
    char byte;
    upcall_id id;
};

/* Called for the operation that close ends: the descriptor is still open, but closing. */
static void submit_late(upcall_loop *loop, const upcall_event *event) {
    struct late *late = event->user;
    add_record(late->rec, event);
    late->id = submit_one(loop, upcall_op_read(late->fd, &late->byte, 1), late->rec);
}

TEST(what_is_submitted_while_it_closes_ends_in_EBADF) {
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct recorder rec = {0};
        char byte;
        upcall_loop *loop = new_loop();
        int fds[2];
        unix_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[0]);
        struct late late = {&rec, fds[0], 0, 0};
        upcall_op op = upcall_op_read(fds[0], &byte, 1);
        op.callback = submit_late;
        op.user = &late;
        upcall_id first;
        CHECK_EQ(upcall_submit(loop, &op, 1, &first), 0);
        start_all(loop);
        upcall_id closing = submit_one(loop, upcall_op_close(fds[0]), &rec);
        run_finals(loop, &rec, 3);
        CHECK_EQ(final_of(&rec, first).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, closing).result, 0);
        CHECK_EQ(final_of(&rec, late.id).result, -EBADF);
        CHECK(!is_open(fds[0]));
        free_loop(loop);
        close(fds[1]);
        forget(&rec);
    }
}

TEST(a_second_close_is_EBADF) {
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    ends_with(loop, upcall_op_close(fds[0]), 0);
    ends_with(loop, upcall_op_close(fds[0]), -EBADF);
    free_loop(loop);
}

/* One of them closes; the others are what it ends first, or come too late. None waits for another for ever. */
TEST(of_many_closes_one_closes) {
    enum { COUNT = 5 };
    static const uint32_t links[] = {0, UPCALL_LINK_ALWAYS, UPCALL_DRAIN};
    for (size_t k = 0; k < COUNT_OF(links); k++) {
        for (int busy = 0; busy < 2; busy++) {
            struct recorder rec = {0};
            upcall_op ops[COUNT];
            upcall_id ids[COUNT];
            size_t closed = 0;
            char byte;
            upcall_loop *loop = new_loop();
            int fds[2];
            unix_pair(fds);
            if (busy) {
                submit_one(loop, upcall_op_recv(fds[0], &byte, 1, 0), &rec);
                start_all(loop);
            }
            for (size_t i = 0; i < COUNT; i++) {
                ops[i] = upcall_op_close(fds[0]);
                ops[i].flags = i + 1 < COUNT || links[k] == UPCALL_DRAIN ? links[k] : 0;
            }
            submit_many(loop, ops, COUNT, &rec, ids);
            run_finals(loop, &rec, (size_t)COUNT + (size_t)busy);
            for (size_t i = 0; i < COUNT; i++) {
                int64_t result = final_of(&rec, ids[i]).result;
                CHECK(result == 0 || result == -EBADF || result == -ECANCELED);
                closed += result == 0;
            }
            CHECK_EQ(closed, 1);
            CHECK(!is_open(fds[0]));
            close(fds[1]);
            free_loop(loop);
            forget(&rec);
        }
    }
}

/* Write, then close: with a link the last bytes are out before the end. */
TEST(close_behind_a_link_waits_for_its_turn) {
    static const uint32_t links[] = {UPCALL_LINK, UPCALL_LINK_ALWAYS, UPCALL_DRAIN};
    for (size_t k = 0; k < COUNT_OF(links); k++) {
        for (int which = PIPE; which < STREAMS; which++) {
            struct recorder rec = {0};
            upcall_id ids[2];
            upcall_loop *loop = new_loop();
            char bytes[4];
            int fds[2];
            make_stream(which, fds);
            size_t filled = fill_for_good(which, fds[1]);
            upcall_op ops[2] = {upcall_op_write(fds[1], "end", 3), upcall_op_close(fds[1])};
            ops[links[k] == UPCALL_DRAIN].flags = links[k];
            submit_many(loop, ops, 2, &rec, ids);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            CHECK(is_open(fds[1]));
            take(fds[0], filled);
            run_finals(loop, &rec, 2);
            CHECK_EQ(final_of(&rec, ids[0]).result, 3);
            CHECK_EQ(final_of(&rec, ids[1]).result, 0);
            CHECK(!is_open(fds[1]));
            if (which != TTY) { /* a terminal drops what its other side has not taken */
                read_all(fds[0], bytes, 3);
                CHECK(memcmp(bytes, "end", 3) == 0);
                CHECK_EQ(read(fds[0], bytes, 1), 0);
            }
            free_loop(loop);
            close(fds[0]);
            forget(&rec);
        }
    }
}

TEST(a_severed_chain_leaves_the_descriptor_open) {
    struct recorder rec = {0};
    upcall_id ids[2];
    upcall_loop *loop = new_loop();
    int fds[2];
    char byte;
    pipe_pair(fds);
    upcall_op ops[2] = {upcall_op_read(fds[1], &byte, 1), upcall_op_close(fds[0])}; /* the wrong end: -EBADF */
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, -EBADF);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    CHECK(is_open(fds[0]));
    forget(&rec);
    ops[0].flags = UPCALL_LINK_ALWAYS;
    ops[0].callback = ops[1].callback = NULL;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    CHECK(!is_open(fds[0]));
    free_loop(loop);
    forget(&rec);
}

/* Hazard 10: a duplicate is a descriptor of its own, and what waits on it goes on. */
TEST(close_spares_duplicates) {
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct recorder rec = {0};
        char bytes[2];
        upcall_loop *loop = new_loop();
        int fds[2];
        unix_pair(fds);
        if (nonblocking)
            set_nonblocking(fds[0]);
        int twin = dup(fds[0]);
        upcall_id first = submit_one(loop, upcall_op_recv(fds[0], &bytes[0], 1, 0), &rec);
        upcall_id second = submit_one(loop, upcall_op_recv(twin, &bytes[1], 1, 0), &rec);
        start_all(loop);
        upcall_id closing = submit_one(loop, upcall_op_close(fds[0]), &rec);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, first).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, closing).result, 0);
        no_more(loop, &rec);
        write_all(fds[1], "x", 1);
        run_finals(loop, &rec, 3);
        CHECK_EQ(final_of(&rec, second).result, 1);
        CHECK_EQ(bytes[1], 'x');
        free_loop(loop);
        close(twin);
        close(fds[1]);
        forget(&rec);
    }
}

/* Hazard 11: the listener really stops listening, and a connection that came too late is refused. */
TEST(a_closed_listener_accepts_nothing) {
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        struct recorder rec = {0};
        struct sockaddr_in address;
        upcall_loop *loop = new_loop();
        int listener = tcp_listener(&address, nonblocking ? SOCK_NONBLOCK : 0, 4);
        upcall_id accepting = submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec);
        start_all(loop);
        upcall_id closing = submit_one(loop, upcall_op_close(listener), &rec);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, accepting).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, closing).result, 0);
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == -1 && errno == ECONNREFUSED);
        close(client);
        free_loop(loop);
        forget(&rec);
    }
}

/* Hazard 12: the number may be used again at once, and the next operation on it is not mixed with the old one. */
TEST(the_number_is_free_again_after_close) {
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_nop(), 0);
    int number = -1;
    for (int round = 0; round < 10 * STREAMS; round++) {
        struct recorder rec = {0};
        char bytes[2];
        int fds[2];
        make_stream(round / 10, fds);
        if (round % 2)
            set_nonblocking(fds[0]);
        if (round % 10 > 1) /* the loop may have opened something in the first */
            CHECK_EQ(fds[0], number);
        number = fds[0];
        upcall_id waiting = submit_one(loop, upcall_op_read(fds[0], &bytes[0], 1), &rec);
        upcall_id served = submit_one(loop, upcall_op_read(fds[0], &bytes[1], 1), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(upcall_cancel(loop, waiting), 0);
        run_finals(loop, &rec, 1);
        write_all(fds[1], "x", 1);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, waiting).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, served).result, 1);
        upcall_id again = submit_one(loop, upcall_op_read(fds[0], &bytes[0], 1), &rec);
        upcall_id closing = submit_one(loop, upcall_op_close(fds[0]), &rec);
        run_finals(loop, &rec, 4);
        CHECK_EQ(final_of(&rec, again).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, closing).result, 0);
        CHECK(!is_open(fds[0]));
        close(fds[1]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(many_descriptors_are_closed_at_once) {
    enum { COUNT = 200 };
    upcall_op ops[COUNT];
    upcall_id ids[COUNT];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT; i++) {
        int fd = i % 3 == 0 ? temp_file(10) : i % 3 == 1 ? eventfd(0, EFD_CLOEXEC) : dup(STDOUT_FILENO);
        CHECK(fd >= 0);
        ops[i] = upcall_op_close(fd);
    }
    submit_many(loop, ops, COUNT, &rec, ids);
    run_finals(loop, &rec, COUNT);
    check_finals(&rec, ids, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        CHECK_EQ(rec.events[i].result, 0);
        CHECK(!is_open(ops[i].fd));
    }
    free_loop(loop);
    forget(&rec);
}

/* ---- statx. ---- */

TEST(statx_answers_as_statx_does) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 10);
    CHECK(mkdir("directory", 0700) == 0);
    CHECK(symlink("file", "link") == 0);
    CHECK(symlink("missing", "broken") == 0);
    CHECK(symlink("loop", "loop") == 0);
    CHECK(mkfifo("fifo", 0600) == 0);
    const struct { const char *path; int flags; uint32_t mask; int error; mode_t type; } rows[] = {
        {"file", 0, STATX_BASIC_STATS, 0, S_IFREG},
        {"file", 0, STATX_ALL, 0, S_IFREG},
        {"file", 0, STATX_TYPE, 0, S_IFREG},
        {"file", AT_STATX_FORCE_SYNC, STATX_TYPE | STATX_SIZE, 0, S_IFREG},
        {"file", AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE, 0, S_IFREG},
        {"directory", 0, STATX_TYPE, 0, S_IFDIR},
        {"link", 0, STATX_TYPE, 0, S_IFREG},
        {"link", AT_SYMLINK_NOFOLLOW, STATX_TYPE, 0, S_IFLNK},
        {"broken", AT_SYMLINK_NOFOLLOW, STATX_TYPE, 0, S_IFLNK},
        {"fifo", 0, STATX_TYPE, 0, S_IFIFO}, /* asking does not open */
        {"/dev/null", 0, STATX_TYPE, 0, S_IFCHR},
        {"", AT_EMPTY_PATH, STATX_TYPE, 0, S_IFDIR}, /* AT_FDCWD itself */
        {"broken", 0, STATX_TYPE, ENOENT, 0},
        {"missing", 0, STATX_TYPE, ENOENT, 0},
        {"", 0, STATX_TYPE, ENOENT, 0},
        {"file/inside", 0, STATX_TYPE, ENOTDIR, 0},
        {"loop", 0, STATX_TYPE, ELOOP, 0},
        {"file", 0, STATX__RESERVED, EINVAL, 0},
        {"file", INT32_MIN, STATX_TYPE, EINVAL, 0},
        {"file", AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC, STATX_TYPE, EINVAL, 0},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct statx found, want;
        memset(&found, 0xee, sizeof found);
        ends_with(loop, upcall_op_statx(AT_FDCWD, rows[i].path, rows[i].flags, rows[i].mask, &found), -rows[i].error);
        int rc = statx(AT_FDCWD, rows[i].path, rows[i].flags, rows[i].mask, &want);
        CHECK_EQ(rc < 0 ? errno : 0, rows[i].error);
        if (rc < 0)
            continue;
        CHECK_EQ(found.stx_mode & S_IFMT, rows[i].type);
        CHECK_EQ(found.stx_ino, want.stx_ino);
        CHECK_EQ(found.stx_mask, want.stx_mask);
        CHECK_EQ(found.stx_size, want.stx_size);
    }
    leave_scratch();
    free_loop(loop);
}

TEST(statx_asks_about_a_descriptor_itself) {
    static const int objects[] = {PIPE, UNIX, TCP, TTY, FIFO};
    static const mode_t types[] = {S_IFIFO, S_IFSOCK, S_IFSOCK, S_IFCHR, S_IFIFO};
    struct statx found;
    upcall_loop *loop = new_loop();
    int file = temp_file(1234);
    ends_with(loop, upcall_op_statx(file, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &found), 0);
    CHECK_EQ(found.stx_size, 1234);
    CHECK_EQ(found.stx_nlink, 0);
    CHECK(ftruncate(file, 7) == 0);
    ends_with(loop, upcall_op_statx(file, "", AT_EMPTY_PATH, STATX_SIZE, &found), 0);
    CHECK_EQ(found.stx_size, 7);
    for (size_t i = 0; i < COUNT_OF(objects); i++) {
        int fds[2];
        make_stream(objects[i], fds);
        ends_with(loop, upcall_op_statx(fds[0], "", AT_EMPTY_PATH, STATX_TYPE, &found), 0);
        CHECK_EQ(found.stx_mode & S_IFMT, types[i]);
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(many_paths_are_asked_about_at_once) {
    enum { COUNT = 64 };
    static struct statx found[COUNT];
    upcall_op ops[COUNT];
    upcall_id ids[COUNT];
    char name[32];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    enter_scratch();
    for (size_t i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "file%zu", i);
        make_file(name, i);
        ops[i] = upcall_op_statx(AT_FDCWD, name, 0, STATX_SIZE, &found[i]);
        submit_many(loop, &ops[i], 1, &rec, &ids[i]); /* the one name is used again and again: it is copied */
    }
    run_finals(loop, &rec, COUNT);
    check_finals(&rec, ids, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        CHECK_EQ(rec.events[i].result, 0);
        CHECK_EQ(found[i].stx_size, i);
    }
    leave_scratch();
    free_loop(loop);
    forget(&rec);
}
