/*
 * openat2, rename, unlink, mkdir, symlink and hardlink.
 */
#include "op_support.h"

#include <linux/openat2.h>

#ifndef RENAME_WHITEOUT
#define RENAME_WHITEOUT (1 << 2)
#endif

/* ---- Subjects. ---- */

static void set_names(struct scene *scene) {
    enter_scratch();
    scene->in_scratch = true;
    make_file("file", 100);
}

static upcall_op make_name_op(struct scene *scene) {
    switch (scene->subject->kind) {
    case UPCALL_OP_RENAME: return upcall_op_rename(AT_FDCWD, "file", AT_FDCWD, "made", 0);
    case UPCALL_OP_UNLINK: return upcall_op_unlink(AT_FDCWD, "file", 0);
    case UPCALL_OP_MKDIR: return upcall_op_mkdir(AT_FDCWD, "made", 0750);
    case UPCALL_OP_SYMLINK: return upcall_op_symlink("no such target", AT_FDCWD, "made");
    default: return upcall_op_hardlink(AT_FDCWD, "file", AT_FDCWD, "made", 0);
    }
}

static void names_are_as_made(struct scene *scene) {
    struct stat found;
    (void)scene;
    CHECK(stat("file", &found) == 0);
    CHECK(found.st_size == 100 && found.st_nlink == 1);
    CHECK(lstat("made", &found) == -1 && errno == ENOENT);
}

static void name_op_is_done(struct scene *scene, struct record final) {
    struct stat file, made;
    char target[32] = {0};
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    int has_file = stat("file", &file) == 0, has_made = lstat("made", &made) == 0;
    switch (scene->subject->kind) {
    case UPCALL_OP_RENAME:
        CHECK(!has_file && has_made && made.st_size == 100);
        return;
    case UPCALL_OP_UNLINK:
        CHECK(!has_file && !has_made);
        return;
    case UPCALL_OP_MKDIR:
        CHECK(has_file && has_made && S_ISDIR(made.st_mode));
        CHECK_EQ(made.st_mode & 07777, 0750);
        return;
    case UPCALL_OP_SYMLINK:
        CHECK(has_file && has_made && S_ISLNK(made.st_mode));
        CHECK_EQ(readlink("made", target, sizeof target), 14);
        CHECK_STR_EQ(target, "no such target");
        return;
    default:
        CHECK(has_file && has_made && made.st_ino == file.st_ino && file.st_nlink == 2);
    }
}

#define ON_NAMES(name, kind_)                                                                                          \
    static const struct subject name = {.kind = kind_, .set_up = set_names, .make = make_name_op,                      \
        .done = name_op_is_done, .intact = names_are_as_made};
ON_NAMES(rename_a_file, UPCALL_OP_RENAME)
ON_NAMES(unlink_a_file, UPCALL_OP_UNLINK)
ON_NAMES(mkdir_a_directory, UPCALL_OP_MKDIR)
ON_NAMES(symlink_a_name, UPCALL_OP_SYMLINK)
ON_NAMES(hardlink_a_file, UPCALL_OP_HARDLINK)
PROMISES_IN_MODE(rename_a_file, any, false)
PROMISES_IN_MODE(unlink_a_file, any, false)
PROMISES_IN_MODE(mkdir_a_directory, any, false)
PROMISES_IN_MODE(symlink_a_name, any, false)
PROMISES_IN_MODE(hardlink_a_file, any, false)

static const struct open_how new_beneath = {.flags = O_CREAT | O_EXCL | O_RDWR, .mode = 0640,
                                            .resolve = RESOLVE_BENEATH};

static upcall_op make_openat2(struct scene *scene) {
    (void)scene;
    return upcall_op_openat2(AT_FDCWD, "made", &new_beneath, sizeof new_beneath);
}

static void is_opened(struct scene *scene, struct record final) {
    struct stat found;
    (void)scene;
    CHECK(final.result >= 0);
    CHECK_EQ(final.transferred, 0);
    int fd = (int)final.result;
    CHECK(is_cloexec(fd) && !has_nonblock(fd));
    CHECK(fstat(fd, &found) == 0);
    CHECK(S_ISREG(found.st_mode) && found.st_size == 0);
    CHECK_EQ(found.st_mode & 07777, 0640);
    CHECK(write(fd, "a", 1) == 1);
    close(fd);
    CHECK(unlink("made") == 0);
}

static const struct subject openat2_a_new_file = {.kind = UPCALL_OP_OPENAT2, .set_up = set_names,
    .make = make_openat2, .done = is_opened, .intact = names_are_as_made};
PROMISES_IN_MODE(openat2_a_new_file, any, false)

/* A named pipe waits for its other side, whatever the way its name is resolved. */
static void set_fifo(struct scene *scene) {
    enter_scratch();
    scene->in_scratch = true;
    CHECK(mkfifo("fifo", 0600) == 0);
    scene->extra = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK(scene->extra >= 0);
}

static const struct open_how to_read = {.flags = O_RDONLY}, to_write = {.flags = O_WRONLY},
                             beneath = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH},
                             in_root = {.flags = O_RDONLY, .resolve = RESOLVE_IN_ROOT};

enum { PLAIN_READER, PLAIN_WRITER, BENEATH, IN_ROOT };

/* With RESOLVE_IN_ROOT "/fifo" is the directory's own, and a plain look would not find it. */
static upcall_op make_open_fifo(struct scene *scene) {
    switch (scene->subject->object) {
    case PLAIN_READER: return upcall_op_openat2(AT_FDCWD, "fifo", &to_read, sizeof to_read);
    case PLAIN_WRITER: return upcall_op_openat2(AT_FDCWD, "fifo", &to_write, sizeof to_write);
    case BENEATH: return upcall_op_openat2(scene->extra, "fifo", &beneath, sizeof beneath);
    default: return upcall_op_openat2(scene->extra, "/fifo", &in_root, sizeof in_root);
    }
}

/* O_RDWR is both sides at once, and never waits. */
static void open_both_sides(struct scene *scene) {
    scene->peer = open("fifo", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    CHECK(scene->peer >= 0);
}

static void one_side_is_opened(struct scene *scene, struct record final) {
    char byte = 0;
    CHECK(final.result >= 0);
    int fd = (int)final.result, writes = scene->subject->object == PLAIN_WRITER;
    CHECK(is_cloexec(fd) && !has_nonblock(fd));
    CHECK_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, writes ? O_WRONLY : O_RDONLY);
    write_all(writes ? fd : scene->peer, "x", 1);
    read_all(writes ? scene->peer : fd, &byte, 1);
    CHECK_EQ(byte, 'x');
    close(fd);
}

/* Nobody else holds the named pipe open, nor waits to. */
static void fifo_is_alone(struct scene *scene) {
    char byte;
    close(scene->peer);
    scene->peer = -1;
    CHECK(open("fifo", O_WRONLY | O_NONBLOCK) == -1 && errno == ENXIO);
    int reader = open("fifo", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    CHECK(reader >= 0);
    CHECK_EQ(read(reader, &byte, 1), 0); /* no writer */
    close(reader);
}

#define ON_FIFO(name, object_)                                                                                         \
    static const struct subject name = {.kind = UPCALL_OP_OPENAT2, .object = object_, .set_up = set_fifo,              \
        .make = make_open_fifo, .allow = open_both_sides, .done = one_side_is_opened, .intact = fifo_is_alone};
ON_FIFO(openat2_a_fifo_to_read, PLAIN_READER)
ON_FIFO(openat2_a_fifo_to_write, PLAIN_WRITER)
ON_FIFO(openat2_a_fifo_beneath, BENEATH)
ON_FIFO(openat2_a_fifo_in_root, IN_ROOT)
PROMISES_OF_WAITING_IN_MODE(openat2_a_fifo_to_read, any, false)
PROMISES_OF_WAITING_IN_MODE(openat2_a_fifo_to_write, any, false)
PROMISES_OF_WAITING_IN_MODE(openat2_a_fifo_beneath, any, false)
PROMISES_OF_WAITING_IN_MODE(openat2_a_fifo_in_root, any, false)

/* ---- Names, arguments. ---- */

TEST(name_operations_are_known) {
    is_known(UPCALL_OP_OPENAT2, "openat2");
    is_known(UPCALL_OP_RENAME, "rename");
    is_known(UPCALL_OP_UNLINK, "unlink");
    is_known(UPCALL_OP_MKDIR, "mkdir");
    is_known(UPCALL_OP_SYMLINK, "symlink");
    is_known(UPCALL_OP_HARDLINK, "hardlink");
}

TEST(name_operations_refuse_strange_fields) {
    refuses_strange_fields(upcall_op_openat2(AT_FDCWD, "/", &to_read, sizeof to_read), 0);
    refuses_strange_fields(upcall_op_rename(AT_FDCWD, "a", AT_FDCWD, "b", 0), 0);
    refuses_strange_fields(upcall_op_unlink(AT_FDCWD, "a", 0), 0);
    refuses_strange_fields(upcall_op_mkdir(AT_FDCWD, "a", 0700), 0);
    refuses_strange_fields(upcall_op_symlink("a", AT_FDCWD, "b"), 0);
    refuses_strange_fields(upcall_op_hardlink(AT_FDCWD, "a", AT_FDCWD, "b", 0), 0);
}

/* Every path of every operation. */
static upcall_op with_path(size_t which, const char *path) {
    switch (which) {
    case 0: return upcall_op_openat2(AT_FDCWD, path, &to_read, sizeof to_read);
    case 1: return upcall_op_unlink(AT_FDCWD, path, 0);
    case 2: return upcall_op_mkdir(AT_FDCWD, path, 0700);
    case 3: return upcall_op_symlink("target", AT_FDCWD, path);
    case 4: return upcall_op_symlink(path, AT_FDCWD, "link");
    case 5: return upcall_op_rename(AT_FDCWD, path, AT_FDCWD, "new", 0);
    case 6: return upcall_op_rename(AT_FDCWD, "old", AT_FDCWD, path, 0);
    case 7: return upcall_op_hardlink(AT_FDCWD, path, AT_FDCWD, "new", 0);
    default: return upcall_op_hardlink(AT_FDCWD, "old", AT_FDCWD, path, 0);
    }
}
static const char *const path_fields[] = {"path", "path", "path", "path", "target", "old", "new", "old", "new"};

TEST(name_operations_refuse_bad_paths) {
    static char longest[PATH_MAX + 2];
    char text[64];
    upcall_loop *loop = new_loop();
    for (size_t which = 0; which < COUNT_OF(path_fields); which++) {
        snprintf(text, sizeof text, "%s is NULL", path_fields[which]);
        refused(loop, with_path(which, NULL), EINVAL, text);
        snprintf(text, sizeof text, "%s is longer than PATH_MAX (4096)", path_fields[which]);
        for (size_t length = PATH_MAX; length <= PATH_MAX + 1; length++) {
            memset(longest, '/', length);
            longest[length] = '\0';
            refused(loop, with_path(which, longest), ENAMETOOLONG, text);
        }
    }
    free_loop(loop);
}

/* PATH_MAX - 1 bytes are a path: many slashes before a name, then a name that no file system takes. An empty path is for
   the kernel to judge. */
TEST(the_longest_and_the_shortest_path_are_the_kernels_to_judge) {
    static char longest[PATH_MAX], cwd[PATH_MAX];
    upcall_loop *loop = new_loop();
    enter_scratch();
    CHECK(getcwd(cwd, sizeof cwd) != NULL);
    memset(longest, '/', PATH_MAX - 1);
    memcpy(longest, cwd, strlen(cwd));
    memcpy(longest + PATH_MAX - 1 - 4, "file", 4);
    CHECK_EQ(strlen(longest), PATH_MAX - 1);
    ends_with(loop, with_path(2, longest), 0); /* mkdir */
    struct record final = complete(loop, with_path(0, longest));
    CHECK(final.result >= 0);
    close((int)final.result);
    ends_with(loop, upcall_op_unlink(AT_FDCWD, longest, AT_REMOVEDIR), 0);
    ends_with(loop, with_path(3, longest), 0); /* symlink to "target" */
    ends_with(loop, upcall_op_rename(AT_FDCWD, longest, AT_FDCWD, "moved", 0), 0);
    ends_with(loop, upcall_op_rename(AT_FDCWD, "moved", AT_FDCWD, longest, 0), 0);
    ends_with(loop, upcall_op_hardlink(AT_FDCWD, longest, AT_FDCWD, "second", 0), 0);
    ends_with(loop, with_path(1, longest), 0);
    int rc = symlink(longest, "theirs"); /* a target of so many bytes does not fit everywhere */
    ends_with(loop, with_path(4, longest), rc < 0 ? -errno : 0);
    memset(longest, 'a', 256);
    make_file("old", 1);
    for (size_t which = 0; which < COUNT_OF(path_fields); which++) {
        if (which != 4)
            ends_with(loop, with_path(which, longest), -ENAMETOOLONG);
        ends_with(loop, with_path(which, ""), -ENOENT);
    }
    leave_scratch();
    free_loop(loop);
}

TEST(openat2_refuses_a_bad_how) {
    static uint8_t longer[8192];
    struct open_how how = {.flags = O_RDONLY};
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_openat2(AT_FDCWD, "/", NULL, sizeof how), EINVAL, "how is NULL");
    for (size_t size = 0; size < sizeof how; size += 8)
        refused(loop, upcall_op_openat2(AT_FDCWD, "/", &how, size), EINVAL, "less than 24");
    refused(loop, upcall_op_openat2(AT_FDCWD, "/", &how, sizeof how - 1), EINVAL, "size is 23, less than 24");
    how.resolve = RESOLVE_CACHED;
    refused(loop, upcall_op_openat2(AT_FDCWD, "/", &how, sizeof how), EINVAL, "how.resolve has RESOLVE_CACHED");
    how.resolve = 0;

    /* Longer, of a header newer than this library: what is not known must be zero, as openat2(2) has it. */
    memcpy(longer, &how, sizeof how);
    for (size_t size = sizeof how; size <= 4096; size += 509) {
        struct record final = complete(loop, upcall_op_openat2(AT_FDCWD, "/", (struct open_how *)longer, size));
        CHECK(final.result >= 0);
        close((int)final.result);
        longer[size] = 1; /* not part of it */
        final = complete(loop, upcall_op_openat2(AT_FDCWD, "/", (struct open_how *)longer, size));
        CHECK(final.result >= 0);
        close((int)final.result);
        refused(loop, upcall_op_openat2(AT_FDCWD, "/", (struct open_how *)longer, size + 1), E2BIG,
                "how has fields after its first 24 bytes that are not known");
        longer[size] = 0;
    }
    refused(loop, upcall_op_openat2(AT_FDCWD, "/", (struct open_how *)longer, 4097), E2BIG, "how has fields");
    refused(loop, upcall_op_openat2(AT_FDCWD, "/", (struct open_how *)longer, SIZE_MAX), E2BIG, "how has fields");
    free_loop(loop);
}

TEST(a_bad_descriptor_ends_in_EBADF) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 1);
    int bad[4] = {-1, INT32_MIN, INT32_MAX, closed_fd()};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        ends_with(loop, upcall_op_openat2(bad[i], "file", &to_read, sizeof to_read), -EBADF);
        ends_with(loop, upcall_op_rename(bad[i], "file", AT_FDCWD, "new", 0), -EBADF);
        ends_with(loop, upcall_op_rename(AT_FDCWD, "file", bad[i], "new", 0), -EBADF);
        ends_with(loop, upcall_op_unlink(bad[i], "file", 0), -EBADF);
        ends_with(loop, upcall_op_mkdir(bad[i], "new", 0700), -EBADF);
        ends_with(loop, upcall_op_symlink("file", bad[i], "new"), -EBADF);
        ends_with(loop, upcall_op_hardlink(bad[i], "file", AT_FDCWD, "new", 0), -EBADF);
        ends_with(loop, upcall_op_hardlink(AT_FDCWD, "file", bad[i], "new", 0), -EBADF);
        ends_with(loop, upcall_op_hardlink(bad[i], "", AT_FDCWD, "new", AT_EMPTY_PATH), -EBADF);
    }
    leave_scratch();
    free_loop(loop);
}

/* ---- The answers of the system calls: each row in two equal directories, once by hand and once by the loop. ---- */

static void furnish(const char *name) {
    CHECK(mkdir(name, 0700) == 0 && chdir(name) == 0);
    make_file("file", 10);
    make_file("other", 20);
    CHECK(link("file", "twin") == 0);
    CHECK(mkdir("empty", 0700) == 0 && mkdir("full", 0700) == 0 && mkdir("full/inside", 0700) == 0);
    CHECK(symlink("file", "link") == 0 && symlink("missing", "dangling") == 0);
    CHECK(chdir("..") == 0);
}

/* What is where, as text: names, types, sizes, link counts. */
static void describe(int dirfd, char *text, size_t room) {
    char names[32][64];
    size_t count = 0;
    DIR *dir = fdopendir(openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL; count++) {
        CHECK(count < 32);
        snprintf(names[count], sizeof names[count], "%.63s", entry->d_name);
    }
    closedir(dir);
    qsort(names, count, sizeof names[0], (int (*)(const void *, const void *))strcmp);
    text[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        struct stat found;
        size_t at = strlen(text);
        CHECK(fstatat(dirfd, names[i], &found, AT_SYMLINK_NOFOLLOW) == 0);
        snprintf(text + at, room - at, "%s %o %ld %ld; ", names[i], found.st_mode,
                 S_ISDIR(found.st_mode) ? 0L : (long)found.st_size, (long)found.st_nlink);
    }
}

static void remove_all(int dirfd) {
    DIR *dir = fdopendir(openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(dirfd, entry->d_name, 0) == 0 || unlinkat(dirfd, entry->d_name, AT_REMOVEDIR) == 0)
            continue;
        int inner = openat(dirfd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        CHECK(inner >= 0);
        remove_all(inner);
        close(inner);
        CHECK(unlinkat(dirfd, entry->d_name, AT_REMOVEDIR) == 0);
    }
    closedir(dir);
}

struct row {
    uint32_t kind;
    const char *first, *second;
    int flags;
};

static int by_hand(int dir, const struct row *row) {
    int rc;
    switch (row->kind) {
    case UPCALL_OP_RENAME: rc = renameat2(dir, row->first, dir, row->second, (unsigned)row->flags); break;
    case UPCALL_OP_UNLINK: rc = unlinkat(dir, row->first, row->flags); break;
    case UPCALL_OP_MKDIR: rc = mkdirat(dir, row->first, (mode_t)row->flags); break;
    case UPCALL_OP_SYMLINK: rc = symlinkat(row->first, dir, row->second); break;
    default: rc = linkat(dir, row->first, dir, row->second, row->flags);
    }
    return rc < 0 ? -errno : rc;
}

static upcall_op by_loop(int dir, const struct row *row) {
    switch (row->kind) {
    case UPCALL_OP_RENAME: return upcall_op_rename(dir, row->first, dir, row->second, (uint32_t)row->flags);
    case UPCALL_OP_UNLINK: return upcall_op_unlink(dir, row->first, row->flags);
    case UPCALL_OP_MKDIR: return upcall_op_mkdir(dir, row->first, (uint32_t)row->flags);
    case UPCALL_OP_SYMLINK: return upcall_op_symlink(row->first, dir, row->second);
    default: return upcall_op_hardlink(dir, row->first, dir, row->second, row->flags);
    }
}

TEST_FOR(names_answer_as_the_system_calls_do, 60) {
    enum { RENAME = UPCALL_OP_RENAME, UNLINK = UPCALL_OP_UNLINK, MKDIR = UPCALL_OP_MKDIR, LINK = UPCALL_OP_HARDLINK,
           SYMLINK = UPCALL_OP_SYMLINK };
    static const struct row rows[] = {
        {RENAME, "file", "new", 0},
        {RENAME, "file", "other", 0},
        {RENAME, "file", "twin", 0}, /* the same file: nothing happens */
        {RENAME, "file", "missing/new", 0},
        {RENAME, "missing", "new", 0},
        {RENAME, "file", "empty", 0},
        {RENAME, "empty", "file", 0},
        {RENAME, "full", "empty", 0},
        {RENAME, "empty", "full", 0},
        {RENAME, "full", "full/inside/deeper", 0},
        {RENAME, "file/x", "new", 0},
        {RENAME, ".", "new", 0},
        {RENAME, "link", "new", 0},
        {RENAME, "file", "new", RENAME_NOREPLACE},
        {RENAME, "file", "other", RENAME_NOREPLACE},
        {RENAME, "file", "empty", RENAME_NOREPLACE},
        {RENAME, "file", "other", RENAME_EXCHANGE},
        {RENAME, "file", "full", RENAME_EXCHANGE},
        {RENAME, "file", "new", RENAME_EXCHANGE},
        {RENAME, "file", "other", RENAME_NOREPLACE | RENAME_EXCHANGE},
        {RENAME, "file", "new", RENAME_WHITEOUT},
        {RENAME, "file", "new", 1 << 20},
        {RENAME, "file", "new", -1},
        {RENAME, "", "new", -1}, /* two mistakes: the same one is told */
        {RENAME, "file", "", -1},
        {RENAME, "", "new", 0},
        {RENAME, "file", "", 0},
        {UNLINK, "file", NULL, 0},
        {UNLINK, "link", NULL, 0},
        {UNLINK, "dangling", NULL, 0},
        {UNLINK, "missing", NULL, 0},
        {UNLINK, "empty", NULL, 0},
        {UNLINK, "file/", NULL, 0},
        {UNLINK, "file/x", NULL, 0},
        {UNLINK, "empty", NULL, AT_REMOVEDIR},
        {UNLINK, "empty/", NULL, AT_REMOVEDIR},
        {UNLINK, "full", NULL, AT_REMOVEDIR},
        {UNLINK, "file", NULL, AT_REMOVEDIR},
        {UNLINK, ".", NULL, AT_REMOVEDIR},
        {UNLINK, "full/..", NULL, AT_REMOVEDIR},
        {UNLINK, "missing", NULL, AT_REMOVEDIR},
        {UNLINK, "file", NULL, AT_SYMLINK_NOFOLLOW},
        {UNLINK, "file", NULL, -1},
        {UNLINK, "", NULL, -1},
        {UNLINK, "", NULL, AT_REMOVEDIR},
        {MKDIR, "new", NULL, 0700},
        {MKDIR, "new/", NULL, 0777},
        {MKDIR, "new", NULL, 01777},
        {MKDIR, "new", NULL, 0},
        {MKDIR, "new", NULL, -1},
        {MKDIR, "file", NULL, 0700},
        {MKDIR, "empty", NULL, 0700},
        {MKDIR, "dangling", NULL, 0700},
        {MKDIR, ".", NULL, 0700},
        {MKDIR, "missing/new", NULL, 0700},
        {MKDIR, "file/new", NULL, 0700},
        {SYMLINK, "file", "new", 0},
        {SYMLINK, "nowhere at all", "new", 0},
        {SYMLINK, "x", "file", 0},
        {SYMLINK, "x", "dangling", 0},
        {SYMLINK, "x", "missing/new", 0},
        {SYMLINK, "x", "new/", 0},
        {SYMLINK, "", "new", 0},
        {SYMLINK, "x", "", 0},
        {LINK, "file", "new", 0},
        {LINK, "file", "other", 0},
        {LINK, "link", "new", 0},
        {LINK, "link", "new", AT_SYMLINK_FOLLOW},
        {LINK, "dangling", "new", 0},
        {LINK, "dangling", "new", AT_SYMLINK_FOLLOW},
        {LINK, "empty", "new", 0},
        {LINK, "missing", "new", 0},
        {LINK, "file", "missing/new", 0},
        {LINK, "", "new", 0},
        {LINK, "", "new", AT_EMPTY_PATH}, /* a directory: never */
        {LINK, "file", "new", AT_EMPTY_PATH},
        {LINK, "file", "new", AT_REMOVEDIR},
        {LINK, "file", "new", -1},
        {LINK, "", "new", -1},
        {LINK, "file", "", -1},
        {LINK, "file", "", 0},
    };
    static char want[4096], got[4096];
    upcall_loop *loop = new_loop();
    umask(022);
    enter_scratch();
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        furnish("theirs");
        furnish("ours");
        int theirs = open("theirs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int ours = open("ours", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int answer = by_hand(theirs, &rows[i]);
        struct record final = complete(loop, by_loop(ours, &rows[i]));
        describe(theirs, want, sizeof want);
        describe(ours, got, sizeof got);
        if (final.result != answer || strcmp(want, got) != 0)
            fail(HERE, "row %zu: %s(%s, %s, %d): %lld, not %d\n%s\n%s", i, upcall_op_name(rows[i].kind), rows[i].first,
                 rows[i].second ? rows[i].second : "", rows[i].flags, (long long)final.result, answer, got, want);
        remove_all(theirs);
        remove_all(ours);
        close(theirs);
        close(ours);
        CHECK(rmdir("theirs") == 0 && rmdir("ours") == 0);
    }
    leave_scratch();
    free_loop(loop);
}

TEST(paths_are_relative_to_their_directories) {
    char target[16] = {0};
    upcall_loop *loop = new_loop();
    enter_scratch();
    CHECK(mkdir("a", 0700) == 0 && mkdir("b", 0700) == 0);
    int a = open("a", O_PATH | O_DIRECTORY | O_CLOEXEC), b = open("b", O_PATH | O_DIRECTORY | O_CLOEXEC);
    ends_with(loop, upcall_op_mkdir(a, "one", 0700), 0);
    ends_with(loop, upcall_op_rename(a, "one", b, "two", 0), 0);
    ends_with(loop, upcall_op_rename(b, "two", AT_FDCWD, "three", 0), 0);
    ends_with(loop, upcall_op_unlink(AT_FDCWD, "three", AT_REMOVEDIR), 0);
    ends_with(loop, upcall_op_symlink("target", b, "link"), 0);
    ends_with(loop, upcall_op_hardlink(b, "link", a, "second", 0), 0);
    CHECK_EQ(readlink("a/second", target, sizeof target), 6);
    CHECK_STR_EQ(target, "target");
    int file = open("c", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    ends_with(loop, upcall_op_mkdir(file, "x", 0700), -ENOTDIR);
    ends_with(loop, upcall_op_rename(file, "x", a, "y", 0), -ENOTDIR);
    ends_with(loop, upcall_op_rename(a, "second", file, "y", 0), -ENOTDIR);
    ends_with(loop, upcall_op_unlink(a, "second", 0), 0);
    ends_with(loop, upcall_op_unlink(b, "link", 0), 0);
    ends_with(loop, upcall_op_unlink(-1, "/no such name", 0), -ENOENT); /* an absolute path needs no directory */
    close(a);
    close(b);
    close(file);
    leave_scratch();
    free_loop(loop);
}

/* A file without a name gets one: what O_TMPFILE is for. */
TEST(a_file_without_a_name_is_given_one) {
    char path[64];
    struct stat found;
    upcall_loop *loop = new_loop();
    enter_scratch();
    int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        leave_scratch();
        SKIP("this file system has no O_TMPFILE");
    }
    write_all(fd, "abc", 3);
    int rc = linkat(fd, "", AT_FDCWD, "theirs", AT_EMPTY_PATH);
    ends_with(loop, upcall_op_hardlink(fd, "", AT_FDCWD, "by-descriptor", AT_EMPTY_PATH), rc < 0 ? -errno : 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ends_with(loop, upcall_op_hardlink(AT_FDCWD, path, AT_FDCWD, "by-path", AT_SYMLINK_FOLLOW), 0);
    CHECK(stat("by-path", &found) == 0 && found.st_size == 3);
    close(fd);
    leave_scratch();
    free_loop(loop);
}

/* Hazard 37: names and how are the program's again when submit returns. */
TEST(names_are_copied) {
    for (int owned = 0; owned < 2; owned++) {
        struct recorder rec = {0};
        char old[64] = "file", new[64] = "moved", made[64] = "made", link[64] = "link", hard[64] = "hard", gone[64] = "gone";
        struct open_how how = {.flags = O_CREAT | O_RDWR, .mode = 0600};
        upcall_loop *loop = new_loop();
        if (owned)
            CHECK_EQ(upcall_poll(loop, 0), 0);
        enter_scratch();
        make_file("file", 10);
        make_file("gone", 10);
        make_file("kept", 10);
        upcall_op ops[6] = {upcall_op_rename(AT_FDCWD, old, AT_FDCWD, new, 0), upcall_op_mkdir(AT_FDCWD, made, 0700),
                            upcall_op_symlink(made, AT_FDCWD, link), upcall_op_unlink(AT_FDCWD, gone, 0),
                            upcall_op_hardlink(AT_FDCWD, "kept", AT_FDCWD, hard, 0),
                            upcall_op_openat2(AT_FDCWD, "opened", &how, sizeof how)};
        upcall_id ids[6];
        submit_many(loop, ops, 6, &rec, ids);
        memset(old, 'x', 63);
        memset(new, 'x', 63);
        memset(made, 'x', 63);
        memset(link, 'x', 63);
        memset(hard, 'x', 63);
        memset(gone, 'x', 63);
        memset(&how, 0xff, sizeof how);
        run_finals(loop, &rec, 6);
        for (size_t i = 0; i < 6; i++)
            CHECK(i == 5 ? final_of(&rec, ids[i]).result >= 0 : final_of(&rec, ids[i]).result == 0);
        close((int)final_of(&rec, ids[5]).result);
        char target[16] = {0};
        CHECK(access("moved", F_OK) == 0 && access("made", F_OK) == 0 && access("hard", F_OK) == 0);
        CHECK(access("opened", F_OK) == 0 && access("gone", F_OK) != 0);
        CHECK_EQ(readlink("link", target, sizeof target), 4);
        CHECK_STR_EQ(target, "made");
        leave_scratch();
        free_loop(loop);
        forget(&rec);
    }
}

/* A close waits for what is in flight on a directory, the first or the second of an operation. */
TEST(close_waits_for_both_directories) {
    upcall_loop *loop = new_loop();
    enter_scratch();
    CHECK(mkdir("a", 0700) == 0 && mkdir("b", 0700) == 0);
    for (int round = 0; round < 100; round++) {
        struct recorder rec = {0};
        upcall_id ids[4];
        int a = open("a", O_RDONLY | O_DIRECTORY | O_CLOEXEC), b = open("b", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int file = openat(a, "file", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        close(file);
        upcall_op first[2] = {upcall_op_hardlink(a, "file", b, "linked", 0), upcall_op_rename(a, "file", b, "moved", 0)};
        upcall_op closes[2] = {upcall_op_close(b), upcall_op_close(a)};
        first[0].flags = UPCALL_LINK_ALWAYS;
        submit_many(loop, first, 2, &rec, ids);
        if (round % 2)
            CHECK(upcall_poll(loop, 0) >= 0);
        submit_many(loop, closes, 2, &rec, ids + 2);
        run_finals(loop, &rec, 4);
        check_finals(&rec, ids, 4);
        for (size_t i = 0; i < 4; i++)
            CHECK(final_of(&rec, ids[i]).result == 0 || (i < 2 && final_of(&rec, ids[i]).result == -ECANCELED));
        CHECK(order_of(&rec, ids[2]) > order_of(&rec, ids[1]) && order_of(&rec, ids[3]) > order_of(&rec, ids[1]));
        CHECK(!is_open(a) && !is_open(b));
        CHECK_EQ(access("b/linked", F_OK) == 0, final_of(&rec, ids[0]).result == 0);
        CHECK_EQ(access("b/moved", F_OK) == 0, final_of(&rec, ids[1]).result == 0);
        unlink("a/file");
        unlink("b/linked");
        unlink("b/moved");
        forget(&rec);
    }
    leave_scratch();
    free_loop(loop);
}

/* ---- openat2. ---- */

/* The answers of openat2(2), in a directory with links that lead out of it and round in it. */
TEST(openat2_answers_as_the_system_call_does) {
    static const uint64_t resolves[] = {0, RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS,
                                        RESOLVE_NO_XDEV, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
                                        RESOLVE_BENEATH | RESOLVE_IN_ROOT, UINT64_C(1) << 20, UINT64_C(1) << 40};
    static const char *const paths[] = {"file", "./directory/../file", "../outside", "/etc", "/file", "out", "in", "round",
                                        "missing", "", "/proc/self/fd/0", "directory", "file/x"};
    static const struct { uint64_t flags, mode; } opens[] = {
        {O_RDONLY, 0}, {O_RDWR, 0}, {O_RDONLY | O_DIRECTORY, 0}, {O_PATH, 0}, {O_PATH | O_NOFOLLOW, 0},
        {O_RDONLY | O_NOFOLLOW, 0}, {O_RDONLY | O_NONBLOCK, 0}, {O_RDONLY, 0600}, {O_CREAT | O_EXCL | O_RDWR, 0600},
        {O_CREAT | O_RDWR, 0170000}, {UINT64_C(1) << 32, 0}, {O_RDONLY | UINT64_C(0x80000000), 0},
        {O_PATH | O_RDWR | O_CREAT, 0600}};
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("outside", 10);
    furnish("inside");
    CHECK(chdir("inside") == 0);
    CHECK(mkdir("directory", 0700) == 0 && symlink("../outside", "out") == 0 && symlink("directory/../file", "in") == 0);
    CHECK(symlink("round", "round") == 0);
    int dir = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK(chdir("..") == 0);
    int before = open_fd_count();
    for (size_t r = 0; r < COUNT_OF(resolves); r++)
        for (size_t p = 0; p < COUNT_OF(paths); p++)
            for (size_t o = 0; o < COUNT_OF(opens); o++) {
                struct open_how how = {.flags = opens[o].flags, .mode = opens[o].mode, .resolve = resolves[r]};
                struct stat theirs = {0}, ours = {0};
                bool makes = how.flags & O_CREAT;
                if (makes && strcmp(paths[p], "missing") != 0)
                    continue; /* nothing is made outside */
                int fd = (int)syscall(SYS_openat2, dir, paths[p], &how, sizeof how), want = fd < 0 ? -errno : 0;
                if (fd >= 0) {
                    CHECK(fstat(fd, &theirs) == 0);
                    close(fd);
                }
                if (makes && want == 0)
                    CHECK(unlinkat(dir, paths[p], 0) == 0);
                struct record final = complete(loop, upcall_op_openat2(dir, paths[p], &how, sizeof how));
                if ((final.result < 0 ? final.result : 0) != want)
                    fail(HERE, "openat2(%s, %#llx, %#llo, %#llx): %lld, not %d", paths[p], how.flags, how.mode, how.resolve,
                         (long long)final.result, want);
                if (final.result >= 0) {
                    CHECK(is_cloexec((int)final.result));
                    CHECK(fstat((int)final.result, &ours) == 0);
                    if (!makes)
                        CHECK(theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev);
                    CHECK_EQ(theirs.st_mode, ours.st_mode);
                    close((int)final.result);
                }
                if (makes && want == 0)
                    CHECK(unlinkat(dir, paths[p], 0) == 0);
            }
    CHECK(open_fd_count() <= before + 8); /* what the loop made for itself, not one for each */
    remove_all(dir);
    close(dir);
    leave_scratch();
    free_loop(loop);
}

/* Hazard 30, and the look at the name that comes first: nothing is leaked or mistaken for a descriptor. */
TEST(an_openat2_that_is_cancelled_leaks_nothing) {
    warm_up();
    enter_scratch();
    make_file("file", 10);
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    int before = open_fd_count();
    for (int round = 0; round < 200; round++) {
        struct recorder rec = {0};
        upcall_op ops[16];
        upcall_id ids[16];
        for (size_t i = 0; i < COUNT_OF(ops); i++)
            ops[i] = upcall_op_openat2(AT_FDCWD, "file", i % 2 ? &beneath : &in_root, sizeof beneath);
        submit_many(loop, ops, COUNT_OF(ops), &rec, ids);
        CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = 0; i < COUNT_OF(ids); i++)
            upcall_cancel(loop, ids[i]);
        run_finals(loop, &rec, COUNT_OF(ids));
        check_finals(&rec, ids, COUNT_OF(ids));
        for (size_t i = 0; i < rec.count; i++) {
            CHECK(rec.events[i].result > STDERR_FILENO || rec.events[i].result == -ECANCELED);
            if (rec.events[i].result >= 0)
                close((int)rec.events[i].result);
        }
        forget(&rec);
    }
    CHECK(open_fd_count() <= before + 2);
    leave_scratch();
    free_loop(loop);
}

TEST(waiting_opens_do_not_hold_up_files) {
    enum { WAITING = 20 };
    struct recorder rec = {0}, files = {0};
    upcall_config config = default_config();
    config.workers = 2;
    enter_scratch();
    CHECK(mkfifo("fifo", 0600) == 0);
    upcall_loop *loop = loop_with(&config);
    int dir = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < WAITING; i++)
        submit_one(loop, i % 2 ? upcall_op_openat2(dir, "/fifo", &in_root, sizeof in_root)
                               : upcall_op_openat2(dir, "fifo", &to_read, sizeof to_read), &rec);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    submit_one(loop, upcall_op_mkdir(dir, "made", 0700), &files);
    submit_one(loop, upcall_op_rename(dir, "made", dir, "moved", 0), &files);
    submit_one(loop, upcall_op_unlink(dir, "missing", 0), &files);
    run_finals(loop, &files, 3);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_cancel_all(loop), WAITING);
    run_finals(loop, &rec, WAITING);
    for (size_t i = 0; i < WAITING; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    close(dir);
    free_loop(loop);
    leave_scratch();
    forget(&rec);
    forget(&files);
}

/* ---- Order. ---- */

/* The classic: write a new file, make it durable, give it the name of the old one. A step that fails ends the chain, and
   the old file stays. */
TEST(a_file_is_replaced_as_a_whole_or_not_at_all) {
    static uint8_t bytes[100000], back[sizeof bytes + 1];
    upcall_loop *loop = new_loop();
    enter_scratch();
    fill_pattern(bytes, sizeof bytes, 0);
    for (int fails = 0; fails < 2; fails++) {
        struct recorder rec = {0};
        make_file("config", 10);
        int fd = open("config.new", O_CREAT | O_EXCL | (fails ? O_RDONLY : O_WRONLY) | O_CLOEXEC, 0600);
        int dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        upcall_op ops[5] = {upcall_op_pwrite(fd, bytes, sizeof bytes, 0), upcall_op_fsync(fd),
                            upcall_op_rename(AT_FDCWD, "config.new", AT_FDCWD, "config", 0), upcall_op_fsync(dir),
                            upcall_op_nop()};
        upcall_id ids[5];
        for (size_t i = 0; i < 4; i++)
            ops[i].flags = UPCALL_LINK;
        ops[0].flags |= UPCALL_FULL;
        submit_many(loop, ops, 5, &rec, ids);
        run_finals(loop, &rec, 5);
        for (size_t i = 0; i < 5; i++) {
            CHECK_EQ(rec.events[i].id, ids[i]);
            CHECK_EQ(rec.events[i].result, fails ? i == 0 ? -EBADF : -ECANCELED : i == 0 ? (int64_t)sizeof bytes : 0);
        }
        int now = open("config", O_RDONLY | O_CLOEXEC);
        CHECK_EQ(read(now, back, sizeof back), fails ? 10 : sizeof bytes);
        CHECK(has_pattern(back, fails ? 10 : sizeof bytes, 0));
        CHECK_EQ(access("config.new", F_OK) == 0, fails);
        close(now);
        close(fd);
        close(dir);
        unlink("config");
        unlink("config.new");
        forget(&rec);
    }
    leave_scratch();
    free_loop(loop);
}

/* Each step needs the one before it. */
TEST(a_chain_of_names_runs_in_order) {
    enum { STEPS = 7 };
    struct recorder rec = {0};
    upcall_id ids[STEPS];
    upcall_loop *loop = new_loop();
    enter_scratch();
    make_file("file", 1);
    upcall_op ops[STEPS] = {upcall_op_mkdir(AT_FDCWD, "one", 0700), upcall_op_rename(AT_FDCWD, "one", AT_FDCWD, "two", 0),
                            upcall_op_hardlink(AT_FDCWD, "file", AT_FDCWD, "two/file", 0),
                            upcall_op_symlink("two", AT_FDCWD, "link"), upcall_op_unlink(AT_FDCWD, "link/file", 0),
                            upcall_op_unlink(AT_FDCWD, "two", AT_REMOVEDIR), upcall_op_unlink(AT_FDCWD, "link", 0)};
    for (size_t i = 0; i + 1 < STEPS; i++)
        ops[i].flags = UPCALL_LINK;
    submit_many(loop, ops, STEPS, &rec, ids);
    run_finals(loop, &rec, STEPS);
    for (size_t i = 0; i < STEPS; i++) {
        CHECK_EQ(rec.events[i].id, ids[i]);
        CHECK_EQ(rec.events[i].result, 0);
    }
    leave_scratch();
    free_loop(loop);
    forget(&rec);
}

TEST(a_hundred_names_at_once) {
    enum { NAMES = 100 };
    char names[NAMES][16], moved[NAMES][16];
    upcall_op ops[NAMES];
    upcall_id ids[NAMES];
    upcall_loop *loop = new_loop();
    enter_scratch();
    for (int step = 0; step < 3; step++) {
        struct recorder rec = {0};
        for (size_t i = 0; i < NAMES; i++) {
            snprintf(names[i], sizeof names[i], "name%zu", i);
            snprintf(moved[i], sizeof moved[i], "moved%zu", i);
            ops[i] = step == 0 ? upcall_op_mkdir(AT_FDCWD, names[i], 0700)
                     : step == 1 ? upcall_op_rename(AT_FDCWD, names[i], AT_FDCWD, moved[i], RENAME_NOREPLACE)
                                 : upcall_op_unlink(AT_FDCWD, moved[i], AT_REMOVEDIR);
        }
        submit_many(loop, ops, NAMES, &rec, ids);
        run_finals(loop, &rec, NAMES);
        check_finals(&rec, ids, NAMES);
        for (size_t i = 0; i < NAMES; i++)
            CHECK_EQ(rec.events[i].result, 0);
        forget(&rec);
    }
    leave_scratch();
    free_loop(loop);
}
