/*
 * getxattr, setxattr, fgetxattr and fsetxattr.
 */
#include "op_support.h"

#include <sys/xattr.h>

#define NAME "user.upcall"

/* ---- Subjects. ---- */

static void set_attributes(struct scene *scene) {
    enter_scratch();
    scene->in_scratch = true;
    make_file("file", 10);
    if (setxattr("file", NAME, "value", 5, 0) != 0) {
        leave_scratch();
        SKIP("this file system has no extended attributes");
    }
    scene->fd = open("file", O_RDWR | O_CLOEXEC);
}

static upcall_op make_xattr_op(struct scene *scene) {
    switch (scene->subject->kind) {
    case UPCALL_OP_GETXATTR: return upcall_op_getxattr("file", NAME, scene->data, 100);
    case UPCALL_OP_FGETXATTR: return upcall_op_fgetxattr(scene->fd, NAME, scene->data, 100);
    case UPCALL_OP_SETXATTR: return upcall_op_setxattr("file", NAME, "another", 7, XATTR_REPLACE);
    default: return upcall_op_fsetxattr(scene->fd, NAME, "another", 7, XATTR_REPLACE);
    }
}

static void has_value(const char *file, const char *name, const void *value, size_t size) {
    static char found[70000];
    CHECK_EQ(getxattr(file, name, found, sizeof found), size);
    CHECK(memcmp(found, value, size) == 0);
}

static void attributes_are_as_made(struct scene *scene) {
    (void)scene;
    has_value("file", NAME, "value", 5);
}

static void xattr_op_is_done(struct scene *scene, struct record final) {
    CHECK_EQ(final.transferred, 0);
    if (scene->subject->kind == UPCALL_OP_GETXATTR || scene->subject->kind == UPCALL_OP_FGETXATTR) {
        CHECK_EQ(final.result, 5);
        CHECK(memcmp(scene->data, "value", 5) == 0);
        CHECK_EQ(scene->data[5], 0xee);
        attributes_are_as_made(scene);
    } else {
        CHECK_EQ(final.result, 0);
        has_value("file", NAME, "another", 7);
    }
}

#define ON_ATTRIBUTES(name, kind_)                                                                                     \
    static const struct subject name = {.kind = kind_, .set_up = set_attributes, .make = make_xattr_op,                \
        .done = xattr_op_is_done, .intact = attributes_are_as_made};
ON_ATTRIBUTES(getxattr_of_a_file, UPCALL_OP_GETXATTR)
ON_ATTRIBUTES(setxattr_of_a_file, UPCALL_OP_SETXATTR)
ON_ATTRIBUTES(fgetxattr_of_a_file, UPCALL_OP_FGETXATTR)
ON_ATTRIBUTES(fsetxattr_of_a_file, UPCALL_OP_FSETXATTR)
PROMISES(getxattr_of_a_file)
PROMISES(setxattr_of_a_file)
PROMISES(fgetxattr_of_a_file)
PROMISES(fsetxattr_of_a_file)

/* ---- Names, arguments. ---- */

TEST(xattr_operations_are_known) {
    is_known(UPCALL_OP_GETXATTR, "getxattr");
    is_known(UPCALL_OP_SETXATTR, "setxattr");
    is_known(UPCALL_OP_FGETXATTR, "fgetxattr");
    is_known(UPCALL_OP_FSETXATTR, "fsetxattr");
}

TEST(xattr_operations_refuse_strange_fields) {
    char value[8];
    int fd = temp_file(1);
    refuses_strange_fields(upcall_op_getxattr("/", NAME, value, 8), 0);
    refuses_strange_fields(upcall_op_setxattr("/", NAME, value, 8, 0), 0);
    refuses_strange_fields(upcall_op_fgetxattr(fd, NAME, value, 8), 0);
    refuses_strange_fields(upcall_op_fsetxattr(fd, NAME, value, 8, 0), 0);
}

/* The four operations with the same arguments. */
static upcall_op with(size_t which, int fd, const char *path, const char *name, void *value, size_t size) {
    switch (which) {
    case 0: return upcall_op_getxattr(path, name, value, size);
    case 1: return upcall_op_setxattr(path, name, value, size, 0);
    case 2: return upcall_op_fgetxattr(fd, name, value, size);
    default: return upcall_op_fsetxattr(fd, name, value, size, 0);
    }
}

static int64_t by_hand(size_t which, int fd, const char *path, const char *name, void *value, size_t size) {
    int64_t rc;
    switch (which) {
    case 0: rc = getxattr(path, name, value, size); break;
    case 1: rc = setxattr(path, name, value, size, 0); break;
    case 2: rc = fgetxattr(fd, name, value, size); break;
    default: rc = fsetxattr(fd, name, value, size, 0);
    }
    return rc < 0 ? -errno : rc;
}

TEST(xattr_operations_refuse_bad_arguments) {
    static char longest[PATH_MAX + 1], value[65537];
    upcall_loop *loop = new_loop();
    int fd = temp_file(1);
    memset(longest, '/', PATH_MAX);
    for (size_t which = 0; which < 4; which++) {
        if (which < 2) {
            refused(loop, with(which, -1, NULL, NAME, value, 8), EINVAL, "path is NULL");
            refused(loop, with(which, -1, longest, NAME, value, 8), ENAMETOOLONG, "path is longer than PATH_MAX (4096)");
        }
        refused(loop, with(which, fd, "/", NULL, value, 8), EINVAL, "name is NULL");
        refused(loop, with(which, fd, "/", longest + PATH_MAX - 256, value, 8), ERANGE,
                "name is longer than XATTR_NAME_MAX (255)");
        refused(loop, with(which, fd, "/", longest, value, 8), ERANGE, "name is longer than XATTR_NAME_MAX (255)");
        refused(loop, with(which, fd, "/", NAME, NULL, 8), EINVAL, "value is NULL but size is 8");
        if (which % 2) {
            refused(loop, with(which, fd, "/", NAME, value, 65537), E2BIG, "size is 65537, more than XATTR_SIZE_MAX (65536)");
            refused(loop, with(which, fd, "/", NAME, value, SIZE_MAX), E2BIG, "more than XATTR_SIZE_MAX (65536)");
        }
        /* As long as a name may be, and of no known class. */
        ends_with(loop, with(which, fd, "/", longest + PATH_MAX - 255, value, 8),
                  by_hand(which, fd, "/", longest + PATH_MAX - 255, value, 8));
    }
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    char value[8];
    upcall_loop *loop = new_loop();
    int bad[6] = {-1, INT32_MIN, INT32_MAX, closed_fd(), open("/", O_PATH | O_CLOEXEC), AT_FDCWD};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_fgetxattr(bad[i], NAME, value, 8), -EBADF);
        ends_with(loop, upcall_op_fsetxattr(bad[i], NAME, value, 8, 0), -EBADF);
    }
    free_loop(loop);
}

/* ---- Values. ---- */

TEST(a_size_of_0_asks_for_the_length) {
    char value[8];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_attributes(&scene);
    ends_with(loop, upcall_op_getxattr("file", NAME, NULL, 0), 5);
    ends_with(loop, upcall_op_fgetxattr(scene.fd, NAME, NULL, 0), 5);
    memset(value, 0, sizeof value);
    ends_with(loop, upcall_op_getxattr("file", NAME, value, 0), 5);
    CHECK_EQ(value[0], 0);
    ends_with(loop, upcall_op_fgetxattr(scene.fd, NAME, value, 4), -ERANGE);
    ends_with(loop, upcall_op_getxattr("file", NAME, value, 4), -ERANGE);
    ends_with(loop, upcall_op_getxattr("file", NAME, value, 5), 5);
    CHECK(memcmp(value, "value", 5) == 0);
    ends_with(loop, upcall_op_setxattr("file", NAME, NULL, 0, 0), 0); /* an empty value is a value */
    ends_with(loop, upcall_op_getxattr("file", NAME, value, 8), 0);
    ends_with(loop, upcall_op_getxattr("file", "user.missing", value, 8), -ENODATA);
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}

TEST(flags_answer_as_the_system_calls_do) {
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_attributes(&scene);
    const char *const names[] = {NAME, "user.new"};
    const int flags[] = {0, XATTR_CREATE, XATTR_REPLACE, XATTR_CREATE | XATTR_REPLACE, 4, -1, INT32_MIN};
    for (int by_fd = 0; by_fd < 2; by_fd++)
        for (size_t n = 0; n < COUNT_OF(names); n++)
            for (size_t f = 0; f < COUNT_OF(flags); f++) {
                int rc = setxattr("file", names[n], "x", 1, flags[f]), want = rc < 0 ? -errno : 0;
                CHECK(setxattr("file", NAME, "value", 5, 0) == 0);
                removexattr("file", "user.new");
                ends_with(loop, by_fd ? upcall_op_fsetxattr(scene.fd, names[n], "x", 1, flags[f])
                                      : upcall_op_setxattr("file", names[n], "x", 1, flags[f]), want);
                if (want == 0)
                    has_value("file", names[n], "x", 1);
                CHECK(setxattr("file", NAME, "value", 5, 0) == 0);
                removexattr("file", "user.new");
            }
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}

/* On memory files values may be as long as the kernel takes; elsewhere what fits into a block. */
TEST(the_longest_values_are_taken) {
    static uint8_t value[65536], back[200000];
    static const size_t sizes[] = {1, 255, 2000, 4096, 65535, 65536};
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_attributes(&scene);
    fill_pattern(value, sizeof value, 3);
    int memory = (int)syscall(SYS_memfd_create, "upcall", 0x0001U /* MFD_CLOEXEC */);
    CHECK(memory >= 0);
    int fds[2] = {scene.fd, memory};
    for (size_t f = 0; f < COUNT_OF(fds); f++)
        for (size_t s = 0; s < COUNT_OF(sizes); s++) {
            int64_t want = by_hand(3, fds[f], NULL, "user.long", value, sizes[s]);
            fremovexattr(fds[f], "user.long");
            ends_with(loop, upcall_op_fsetxattr(fds[f], "user.long", value, sizes[s], 0), want);
            if (want != 0)
                continue;
            memset(back, 0, sizeof back);
            ends_with(loop, upcall_op_fgetxattr(fds[f], "user.long", back, sizes[s]), (int64_t)sizes[s]);
            CHECK(has_pattern(back, sizes[s], 3));
            ends_with(loop, upcall_op_fgetxattr(fds[f], "user.long", back, sizes[s] - 1), sizes[s] == 1 ? 1 : -ERANGE);
            ends_with(loop, upcall_op_fgetxattr(fds[f], "user.long", back, sizeof back), (int64_t)sizes[s]);
            /* More room than there is memory for: only what is there is touched. */
            ends_with(loop, upcall_op_fgetxattr(fds[f], "user.long", back, SIZE_MAX), (int64_t)sizes[s]);
            CHECK(has_pattern(back, sizes[s], 3));
        }
    close(memory);
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}

/* Hazard 37: path, name and value are the program's again when submit returns. */
TEST(names_and_values_are_copied) {
    static uint8_t value[3000];
    for (int owned = 0; owned < 2; owned++) {
        struct recorder rec = {0};
        char path[16] = "file", name[32] = "user.copied", second[32] = "user.second", back[8] = {0};
        struct scene scene = {0};
        upcall_loop *loop = new_loop();
        if (owned)
            CHECK_EQ(upcall_poll(loop, 0), 0);
        set_attributes(&scene);
        fill_pattern(value, sizeof value, 9);
        upcall_op ops[3] = {upcall_op_setxattr(path, name, value, sizeof value, 0),
                            upcall_op_fsetxattr(scene.fd, second, "abc", 3, 0),
                            upcall_op_getxattr(path, NAME, back, sizeof back)};
        upcall_id ids[3];
        submit_many(loop, ops, 3, &rec, ids);
        memset(path, 'x', 15);
        memset(name, 'x', 31);
        memset(second, 'x', 31);
        memset(value, 0xff, sizeof value);
        run_finals(loop, &rec, 3);
        CHECK_EQ(final_of(&rec, ids[0]).result, 0);
        CHECK_EQ(final_of(&rec, ids[1]).result, 0);
        CHECK_EQ(final_of(&rec, ids[2]).result, 5);
        CHECK(memcmp(back, "value", 5) == 0);
        fill_pattern(value, sizeof value, 9);
        has_value("file", "user.copied", value, sizeof value);
        has_value("file", "user.second", "abc", 3);
        close(scene.fd);
        leave_scratch();
        free_loop(loop);
        forget(&rec);
    }
}

/* ---- The answers of the system calls, on files and names of every kind. ---- */

TEST(strange_files_answer_as_the_system_calls_do) {
    static char value[16];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    int tube[2], pair[2];
    set_attributes(&scene);
    CHECK(symlink("file", "link") == 0 && symlink("missing", "dangling") == 0 && mkdir("directory", 0700) == 0);
    CHECK(mkfifo("fifo", 0600) == 0);
    pipe_pair(tube);
    unix_pair(pair);
    const char *const paths[] = {"file", "link", "dangling", "directory", "fifo", "missing", "file/x", "", "/proc/self/status",
                                 "/dev/null", "/sys", "/proc", "."};
    const char *const names[] = {NAME, "user.", "user", "", "trusted.upcall", "security.upcall", "system.upcall", "upcall",
                                 "system.posix_acl_access"};
    const int fds[] = {scene.fd, tube[0], tube[1], pair[0], open("directory", O_RDONLY | O_CLOEXEC),
                       open("file", O_RDONLY | O_CLOEXEC), open("/proc/self/status", O_RDONLY | O_CLOEXEC),
                       open("/dev/null", O_RDWR | O_CLOEXEC)};
    for (size_t n = 0; n < COUNT_OF(names); n++) {
        for (size_t p = 0; p < COUNT_OF(paths); p++)
            for (size_t which = 0; which < 2; which++) {
                if (which == 1 && (strncmp(paths[p], "/", 1) == 0) && geteuid() == 0 && strncmp(paths[p], "/proc", 5) != 0)
                    continue; /* nothing of the machine's own is changed */
                int64_t want = by_hand(which, -1, paths[p], names[n], value, sizeof value);
                struct record final = complete(loop, with(which, -1, paths[p], names[n], value, sizeof value));
                if (final.result != want)
                    fail(HERE, "%s(%s, %s): %lld, not %lld", which ? "setxattr" : "getxattr", paths[p], names[n],
                         (long long)final.result, (long long)want);
            }
        for (size_t f = 0; f < COUNT_OF(fds); f++)
            for (size_t which = 2; which < 4; which++) {
                if (which == 3 && f == COUNT_OF(fds) - 1)
                    continue;
                int64_t want = by_hand(which, fds[f], NULL, names[n], value, sizeof value);
                struct record final = complete(loop, with(which, fds[f], NULL, names[n], value, sizeof value));
                if (final.result != want)
                    fail(HERE, "%s(fds[%zu], %s): %lld, not %lld", which == 3 ? "fsetxattr" : "fgetxattr", f, names[n],
                         (long long)final.result, (long long)want);
            }
    }
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}

/* What a file system does not have is -EOPNOTSUPP every time, and the operation goes on being done natively elsewhere. */
TEST(a_file_system_without_attributes_changes_nothing_for_others) {
    char value[8];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_attributes(&scene);
    int before = upcall_supports(loop, UPCALL_OP_GETXATTR);
    for (int round = 0; round < 3; round++) {
        ends_with(loop, upcall_op_getxattr("/proc/self/status", NAME, value, 8), -EOPNOTSUPP);
        ends_with(loop, upcall_op_setxattr("/proc/self/comm", NAME, "x", 1, 0), -EOPNOTSUPP);
        ends_with(loop, upcall_op_getxattr("file", NAME, value, 8), 5);
        ends_with(loop, upcall_op_setxattr("file", NAME, "value", 5, 0), 0);
    }
    if (getenv("UPCALL_MASK") == NULL)
        CHECK_EQ(upcall_supports(loop, UPCALL_OP_GETXATTR), before);
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}

/* ---- Order. ---- */

/* A value shorter than its room is a success: the chain goes on. */
TEST(a_chain_sets_then_gets) {
    char value[100];
    struct recorder rec = {0};
    upcall_id ids[4];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_attributes(&scene);
    upcall_op ops[4] = {upcall_op_setxattr("file", NAME, "first", 5, 0), upcall_op_fgetxattr(scene.fd, NAME, value, 100),
                        upcall_op_fsetxattr(scene.fd, NAME, "x", 1, XATTR_CREATE), upcall_op_nop()};
    for (size_t i = 0; i < 3; i++)
        ops[i].flags = UPCALL_LINK;
    submit_many(loop, ops, 4, &rec, ids);
    run_finals(loop, &rec, 4);
    static const int64_t want[4] = {0, 5, -EEXIST, -ECANCELED};
    for (size_t i = 0; i < 4; i++) {
        CHECK_EQ(rec.events[i].id, ids[i]);
        CHECK_EQ(rec.events[i].result, want[i]);
    }
    CHECK(memcmp(value, "first", 5) == 0);
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
    forget(&rec);
}

TEST(a_hundred_attributes_at_once) {
    enum { COUNT = 100 };
    char names[COUNT][32], values[COUNT][8];
    upcall_op ops[COUNT];
    upcall_id ids[COUNT];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_attributes(&scene);
    int memory = (int)syscall(SYS_memfd_create, "upcall", 0x0001U);
    CHECK(memory >= 0);
    if (fsetxattr(memory, NAME, "x", 1, 0) != 0)
        SKIP("memory files have no extended attributes here");
    for (int out = 1; out >= 0; out--) {
        struct recorder rec = {0};
        for (size_t i = 0; i < COUNT; i++) {
            snprintf(names[i], sizeof names[i], "user.n%zu", i);
            snprintf(values[i], sizeof values[i], "%zu", out ? i : 0);
            ops[i] = out ? upcall_op_fsetxattr(memory, names[i], values[i], sizeof values[i], 0)
                         : upcall_op_fgetxattr(memory, names[i], values[i], sizeof values[i]);
        }
        submit_many(loop, ops, COUNT, &rec, ids);
        run_finals(loop, &rec, COUNT);
        check_finals(&rec, ids, COUNT);
        for (size_t i = 0; i < COUNT; i++)
            CHECK_EQ(rec.events[i].result, out ? 0 : 8);
        forget(&rec);
    }
    for (size_t i = 0; i < COUNT; i++)
        CHECK_EQ(strtoul(values[i], NULL, 10), i);
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}
