/*
 * readdir, with a buffer of the program's own and with lent ones, and the walk over what it read.
 */
#include "op_support.h"

/* ---- Subjects. ---- */

static void set_directory(struct scene *scene) {
    enter_scratch();
    scene->in_scratch = true;
    make_file("a-file", 1);
    CHECK(mkdir("directory", 0700) == 0);
    CHECK(symlink("x", "link") == 0);
    scene->fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(scene->fd >= 0);
}

static upcall_op make_readdir(struct scene *scene) {
    return upcall_op_readdir(scene->fd, scene->data, sizeof scene->data);
}

static void entries_are_read(struct scene *scene, struct record final) {
    int found = 0;
    CHECK(final.result > 0 && final.result <= (int64_t)sizeof scene->data);
    CHECK_EQ(final.transferred, final.result);
    for (const upcall_dirent *entry = NULL; (entry = upcall_dirent_next(scene->data, final.result, entry));) {
        struct stat status;
        const char *name = upcall_dirent_name(entry);
        CHECK(lstat(name, &status) == 0);
        CHECK(entry->type == DT_UNKNOWN || entry->type == IFTODT(status.st_mode));
        if (strcmp(name, "..") != 0)
            CHECK_EQ(entry->ino, status.st_ino);
        found |= strcmp(name, ".") == 0 ? 1 : strcmp(name, "..") == 0 ? 2 : strcmp(name, "a-file") == 0 ? 4 :
                 strcmp(name, "directory") == 0 ? 8 : strcmp(name, "link") == 0 ? 16 : 32;
    }
    CHECK_EQ(found, 31);
    CHECK_EQ(scene->data[final.result], 0xee);
}

static void directory_is_at_its_start(struct scene *scene) {
    CHECK_EQ(lseek(scene->fd, 0, SEEK_CUR), 0);
}

static const struct subject readdir_a_directory = {.kind = UPCALL_OP_READDIR, .set_up = set_directory,
    .make = make_readdir, .done = entries_are_read, .intact = directory_is_at_its_start};
PROMISES(readdir_a_directory)

/* ---- Names, arguments. ---- */

TEST(readdir_is_known) {
    is_known(UPCALL_OP_READDIR, "readdir");
}

TEST(readdir_refuses_strange_fields) {
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    refuses_strange_fields(upcall_op_readdir(fd, NULL, 0), UPCALL_MULTISHOT | LENDS);
}

TEST(readdir_refuses_bad_arguments) {
    uint64_t words[64];
    upcall_buffers *pool = NULL;
    upcall_loop *loop = new_loop();
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_EQ(upcall_buffers_new(loop, 2, 512, &pool), 0);
    refused(loop, upcall_op_readdir(fd, NULL, 512), EINVAL, "buf is NULL but len is 512");
    refused(loop, upcall_op_readdir(fd, words, SIZE_MAX), EINVAL, "len is 18446744073709551615, more than SSIZE_MAX");
    upcall_op op = upcall_op_readdir(fd, words, sizeof words);
    op.flags = UPCALL_MULTISHOT;
    refused(loop, op, EINVAL, "UPCALL_MULTISHOT needs buffers");
    op.flags = UPCALL_FULL;
    refused(loop, op, EINVAL, "UPCALL_FULL");
    op.flags = 0;
    op.buffers = pool;
    refused(loop, op, EINVAL, "buf must be NULL when buffers is set");
    op = upcall_op_readdir(fd, words, sizeof words);
    op.lend_max = 1;
    refused(loop, op, EINVAL, "lend_max is set but buffers is NULL");
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

TEST(strange_descriptors_answer_as_getdents64_does) {
    uint64_t words[64];
    upcall_loop *loop = new_loop();
    int tube[2], bad[4] = {-1, INT32_MIN, INT32_MAX, AT_FDCWD};
    pipe_pair(tube);
    int fds[] = {closed_fd(), temp_file(10), tube[0], tube[1], open("/", O_PATH | O_CLOEXEC), eventfd(0, EFD_CLOEXEC),
                 open("/dev/null", O_RDONLY | O_CLOEXEC)};
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        ends_with(loop, upcall_op_readdir(bad[i], words, sizeof words), -EBADF);
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        long rc = syscall(SYS_getdents64, fds[i], words, sizeof words);
        CHECK(rc < 0);
        ends_with(loop, upcall_op_readdir(fds[i], words, sizeof words), -errno);
    }
    free_loop(loop);
}

/* The room that the first entry needs. It is any: ext4 orders them by a hash, "." and ".." too. */
static size_t first_length(int fd) {
    uint64_t entries[64];
    long length = syscall(SYS_getdents64, fd, entries, sizeof entries);
    const upcall_dirent *first = upcall_dirent_next(entries, length, NULL);
    CHECK(first != NULL);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    return first->reclen;
}

TEST(no_room_for_an_entry_is_EINVAL_and_loses_none) {
    uint64_t words[64];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_directory(&scene);
    size_t first = first_length(scene.fd);
    for (size_t length = 0; length < first; length++)
        ends_with(loop, upcall_op_readdir(scene.fd, words, length), -EINVAL);
    ends_with(loop, upcall_op_readdir(scene.fd, NULL, 0), -EINVAL);
    CHECK_EQ(complete(loop, upcall_op_readdir(scene.fd, words, first)).result, first);
    int64_t rest = complete(loop, upcall_op_readdir(scene.fd, words, sizeof words)).result;
    int entries = 0;
    for (const upcall_dirent *entry = NULL; (entry = upcall_dirent_next(words, rest, entry));)
        entries++;
    CHECK_EQ(entries, 4);
    ends_with(loop, upcall_op_readdir(scene.fd, words, sizeof words), 0);
    ends_with(loop, upcall_op_readdir(scene.fd, words, 0), 0); /* the end comes before the room */
    close(scene.fd);
    leave_scratch();
    free_loop(loop);
}

TEST(a_directory_that_was_removed_is_ENOENT) {
    uint64_t words[64];
    upcall_loop *loop = new_loop();
    enter_scratch();
    CHECK(mkdir("gone", 0700) == 0);
    int fd = open("gone", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(rmdir("gone") == 0);
    ends_with(loop, upcall_op_readdir(fd, words, sizeof words), -ENOENT);
    close(fd);
    leave_scratch();
    free_loop(loop);
}

/* ---- The walk does not leave what was read. ---- */

TEST(a_walk_over_nonsense_ends) {
    uint64_t words[64];
    uint64_t seed = 5;
    for (int round = 0; round < 20000; round++) {
        int steps = 0;
        for (size_t i = 0; i < COUNT_OF(words); i++)
            words[i] = chance(&seed) & chance(&seed) & chance(&seed);
        int64_t result = (int64_t)(chance(&seed) % (sizeof words + 1));
        for (const upcall_dirent *entry = NULL; (entry = upcall_dirent_next(words, result, entry)); steps++) {
            const char *at = (const char *)entry, *name = upcall_dirent_name(entry);
            CHECK(at >= (const char *)words && at + entry->reclen <= (const char *)words + result);
            CHECK(memchr(name, 0, (size_t)(at + entry->reclen - name)) != NULL);
            CHECK(steps < 64);
        }
    }
    CHECK(upcall_dirent_next(NULL, 100, NULL) == NULL);
    CHECK(upcall_dirent_next(words, -ENOENT, NULL) == NULL);
    CHECK(upcall_dirent_next(words, INT64_MIN, NULL) == NULL);
    CHECK(upcall_dirent_name(NULL) == NULL);
}

/* ---- Many entries. ---- */

enum { ENTRIES = 10000 };

/* 10,000 links to one file, with names of many lengths. */
static int big_directory(void) {
    char name[256];
    enter_scratch();
    CHECK(mkdir("big", 0700) == 0);
    int fd = open("big", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(fd >= 0);
    for (int i = 0; i < ENTRIES; i++) {
        snprintf(name, sizeof name, "%05d%.*s", i, i % 200, "the quick brown fox jumps over the lazy dog, again and "
                 "again, until somebody notices that two hundred letters are a lot to say about a dog and a fox, "
                 "however quick and however brown, or lazy, he may have been when it all began");
        if (i % 1000 == 0) { /* a file system may limit the links of one file */
            int file = openat(fd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
            CHECK(file >= 0);
            close(file);
        } else {
            CHECK(symlinkat("x", fd, name) == 0);
        }
    }
    return fd;
}

static void remove_big_directory(int fd) {
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    DIR *dir = fdopendir(fd);
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    CHECK(rmdir("big") == 0);
    leave_scratch();
}

static uint8_t seen[ENTRIES];

static void see(const void *buffer, int64_t result) {
    int entries = 0;
    for (const upcall_dirent *entry = NULL; (entry = upcall_dirent_next(buffer, result, entry)); entries++) {
        const char *name = upcall_dirent_name(entry);
        if (name[0] < '0' || name[0] > '9')
            continue; /* "." and "..", or another directory than the big one */
        long number = strtol(name, NULL, 10);
        CHECK(number >= 0 && number < ENTRIES);
        CHECK(strlen(name) == 5 + (size_t)(number % 200));
        CHECK(seen[number] < 2);
        seen[number]++;
    }
    CHECK(entries > 0);
}

static void each_was_seen_once(void) {
    for (int i = 0; i < ENTRIES; i++)
        CHECK_EQ(seen[i], 1);
    memset(seen, 0, sizeof seen);
}

struct reader {
    upcall_buffers *pool;
    void *held[64];
    int holds, most; /* buffers kept back, and the most that may be lent at once */
    size_t batches, finals;
    int64_t last;
};

static void on_entries(upcall_loop *loop, const upcall_event *event) {
    struct reader *reader = event->user;
    (void)loop;
    if (!(event->flags & UPCALL_MORE)) {
        CHECK(event->buffer == NULL);
        reader->last = event->result;
        reader->finals++;
        return;
    }
    CHECK(event->result > 0 && event->transferred == (uint64_t)event->result && event->buffer != NULL);
    see(event->buffer, event->result);
    reader->batches++;
    reader->held[reader->holds++] = event->buffer;
    CHECK(reader->holds <= reader->most);
}

static void give_back(struct reader *reader) {
    while (reader->holds > 0)
        CHECK_EQ(upcall_buffers_return(reader->pool, reader->held[--reader->holds]), 0);
}

/* With 2 buffers of 512 bytes a directory of some megabytes comes in thousands of batches: each name exactly once. The
   reader waits while both are lent, and goes on when they come back. */
TEST_FOR(a_multishot_with_two_small_buffers_sees_each_name_once, 60) {
    int fd = big_directory();
    for (int limited = 0; limited < 2; limited++) {
        struct reader reader = {.most = limited ? 1 : 2};
        upcall_loop *loop = new_loop();
        CHECK_EQ(upcall_buffers_new(loop, 2, 512, &reader.pool), 0);
        CHECK(lseek(fd, 0, SEEK_SET) == 0);
        upcall_op op = upcall_op_readdir(fd, NULL, 0);
        op.flags = UPCALL_MULTISHOT;
        op.buffers = reader.pool;
        op.lend_max = limited;
        op.callback = on_entries;
        op.user = &reader;
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
        uint64_t limit = now_ns() + 4 * (uint64_t)PATIENCE_NS;
        while (reader.finals == 0) {
            CHECK(upcall_poll(loop, MS(100)) >= 0);
            CHECK(now_ns() < limit);
            if (reader.batches < 3 && reader.holds == reader.most) { /* dry: nothing comes until one is back */
                size_t batches = reader.batches;
                for (int i = 0; i < 3; i++)
                    CHECK_EQ(upcall_poll(loop, MS(1)), 0);
                CHECK_EQ(reader.batches, batches);
            }
            give_back(&reader);
        }
        CHECK_EQ(reader.last, 0);
        CHECK(reader.batches > 1000);
        each_was_seen_once();
        CHECK_EQ(upcall_buffers_free(reader.pool), 0);
        free_loop(loop);
    }
    remove_big_directory(fd);
}

TEST_FOR(one_buffer_of_the_programs_own_sees_each_name_once, 60) {
    static uint64_t words[4096];
    static const size_t sizes[] = {280, 4096, sizeof words};
    int fd = big_directory();
    upcall_loop *loop = new_loop();
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        CHECK(lseek(fd, 0, SEEK_SET) == 0);
        for (;;) {
            struct record final = complete(loop, upcall_op_readdir(fd, words, sizes[s]));
            CHECK(final.result >= 0 && final.result <= (int64_t)sizes[s]);
            CHECK_EQ(final.transferred, final.result);
            if (final.result == 0)
                break;
            see(words, final.result);
        }
        each_was_seen_once();
    }
    free_loop(loop);
    remove_big_directory(fd);
}

/* Without a callback the records wait to be reaped, and the reader pauses at max_events of them. */
TEST_FOR(a_multishot_that_is_reaped_sees_each_name_once, 60) {
    upcall_buffers *pool = NULL;
    upcall_config config = default_config();
    config.max_events = 4;
    int fd = big_directory();
    upcall_loop *loop = loop_with(&config);
    CHECK_EQ(upcall_buffers_new(loop, 64, 4096, &pool), 0);
    upcall_op op = upcall_op_readdir(fd, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    uint64_t limit = now_ns() + 4 * (uint64_t)PATIENCE_NS;
    for (bool over = false; !over;) {
        upcall_event events[16];
        CHECK(upcall_poll(loop, MS(100)) >= 0);
        int got = upcall_reap(loop, events, COUNT_OF(events));
        CHECK(got >= 0 && got <= 5); /* max_events, and the end */
        for (int i = 0; i < got; i++) {
            over = !(events[i].flags & UPCALL_MORE);
            if (over) {
                CHECK_EQ(events[i].result, 0);
                continue;
            }
            see(events[i].buffer, events[i].result);
            CHECK_EQ(upcall_buffers_return(pool, events[i].buffer), 0);
        }
        CHECK(now_ns() < limit);
    }
    each_was_seen_once();
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
    remove_big_directory(fd);
}

/* One position, one reader at a time: several operations on a descriptor share the names among them, none twice. */
TEST_FOR(readers_of_one_descriptor_take_turns, 60) {
    enum { READERS = 32, ROOM = 512 };
    static uint64_t words[READERS][ROOM];
    int fd = big_directory();
    upcall_loop *loop = new_loop();
    for (bool over = false; !over;) {
        struct recorder rec = {0};
        upcall_op ops[READERS];
        upcall_id ids[READERS];
        for (size_t i = 0; i < READERS; i++)
            ops[i] = upcall_op_readdir(fd, words[i], sizeof words[i]);
        submit_many(loop, ops, READERS, &rec, ids);
        run_finals(loop, &rec, READERS);
        check_finals(&rec, ids, READERS);
        for (size_t i = 0; i < READERS; i++) {
            CHECK_EQ(rec.events[i].id, ids[i]); /* in the order of the submit */
            CHECK(rec.events[i].result >= 0);
            CHECK(!over || rec.events[i].result == 0);
            over = rec.events[i].result == 0;
            if (!over)
                see(words[i], rec.events[i].result);
        }
        forget(&rec);
    }
    each_was_seen_once();
    free_loop(loop);
    remove_big_directory(fd);
}

/* ---- Lent buffers. ---- */

TEST(a_single_read_lends_a_buffer_only_for_entries) {
    upcall_buffers *pool = NULL;
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_directory(&scene);
    CHECK_EQ(upcall_buffers_new(loop, 1, 1024, &pool), 0);
    upcall_op op = upcall_op_readdir(scene.fd, NULL, 0);
    op.buffers = pool;
    struct record final = complete(loop, op);
    CHECK(final.result > 0 && final.buffer != NULL);
    memcpy(scene.data, final.buffer, (size_t)final.result);
    memset(scene.data + final.result, 0xee, sizeof scene.data - (size_t)final.result);
    entries_are_read(&scene, final);
    CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
    final = complete(loop, op);
    CHECK_EQ(final.result, 0);
    CHECK(final.buffer == NULL);
    CHECK(lseek(scene.fd, 0, SEEK_SET) == 0);
    op.len = first_length(scene.fd); /* no more than len of the buffer */
    final = complete(loop, op);
    CHECK_EQ(final.result, op.len);
    CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
    close(scene.fd);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    leave_scratch();
    free_loop(loop);
}

TEST(errors_end_a_multishot_and_keep_the_buffer) {
    upcall_buffers *pool = NULL;
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_directory(&scene);
    CHECK_EQ(upcall_buffers_new(loop, 1, 16, &pool), 0); /* too small for any entry */
    upcall_op op = upcall_op_readdir(scene.fd, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    for (int round = 0; round < 3; round++) {
        struct record final = complete(loop, op);
        CHECK_EQ(final.result, -EINVAL);
        CHECK(final.buffer == NULL && final.transferred == 0);
    }
    op.fd = temp_file(1);
    CHECK_EQ(complete(loop, op).result, -ENOTDIR);
    op.fd = closed_fd();
    CHECK_EQ(complete(loop, op).result, -EBADF);
    close(scene.fd);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    leave_scratch();
    free_loop(loop);
}

/* Cancelled at any moment: the buffers come back, names are not seen twice, and another reader goes on from there. */
TEST_FOR(a_cancelled_multishot_keeps_no_buffer_and_loses_no_name, 60) {
    int fd = big_directory();
    upcall_loop *loop = new_loop();
    struct reader reader = {.most = 2};
    bool over = false;
    CHECK_EQ(upcall_buffers_new(loop, 2, 512, &reader.pool), 0);
    upcall_op op = upcall_op_readdir(fd, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = reader.pool;
    op.callback = on_entries;
    op.user = &reader;
    for (size_t round = 1; !over; round++) {
        upcall_id id;
        size_t before = reader.batches;
        reader.finals = 0;
        CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
        while (reader.finals == 0 && reader.batches - before < round % 40) {
            CHECK(upcall_poll(loop, MS(100)) >= 0);
            give_back(&reader);
        }
        if (reader.finals == 0)
            CHECK_EQ(upcall_cancel(loop, id), 0);
        uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
        while (reader.finals == 0) {
            CHECK(upcall_poll(loop, MS(100)) >= 0);
            CHECK(now_ns() < limit);
        }
        give_back(&reader);
        CHECK(reader.last == 0 || reader.last == -ECANCELED);
        over = reader.last == 0;
    }
    each_was_seen_once();
    CHECK_EQ(upcall_buffers_free(reader.pool), 0);
    free_loop(loop);
    remove_big_directory(fd);
}

/* The idle limit stands still while the program keeps the buffers, and the end of the loop gives all back. */
TEST(a_paused_multishot_ends_with_its_loop) {
    struct reader reader = {.most = 1};
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_directory(&scene);
    CHECK_EQ(upcall_buffers_new(loop, 1, (uint32_t)first_length(scene.fd), &reader.pool), 0);
    upcall_op op = upcall_op_readdir(scene.fd, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = reader.pool;
    op.timeout_ns = (uint64_t)MS(300); /* far more than the first batch takes */
    op.callback = on_entries;
    op.user = &reader;
    /* The first entry fills the buffer. */
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    wait_count(loop, &reader.batches, 1);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(upcall_poll(loop, MS(80)), 0);
    CHECK_EQ(reader.finals, 0);
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(reader.finals, 1);
    CHECK_EQ(reader.last, -ECANCELED);
    give_back(&reader);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(reader.pool), 0);
    close(scene.fd);
    leave_scratch();
}

/* ---- Order. ---- */

/* Records never fill a buffer exactly: any number of them is a success, and so is the end. */
TEST(a_chain_goes_on_after_a_batch_and_after_the_end) {
    uint64_t words[64];
    struct recorder rec = {0};
    upcall_id ids[4];
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_directory(&scene);
    upcall_op ops[4] = {upcall_op_readdir(scene.fd, words, sizeof words), upcall_op_readdir(scene.fd, words, sizeof words),
                        upcall_op_close(scene.fd), upcall_op_nop()};
    for (size_t i = 0; i < 3; i++)
        ops[i].flags = UPCALL_LINK;
    submit_many(loop, ops, 4, &rec, ids);
    run_finals(loop, &rec, 4);
    for (size_t i = 0; i < 4; i++) {
        CHECK_EQ(rec.events[i].id, ids[i]);
        CHECK(i == 0 ? rec.events[i].result > 0 : rec.events[i].result == 0);
    }
    CHECK(!is_open(scene.fd));
    leave_scratch();
    free_loop(loop);
    forget(&rec);
}

/* Close asks a reader to end first. */
TEST(close_ends_a_multishot_first) {
    struct reader reader = {.most = 1};
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    struct scene scene = {0};
    set_directory(&scene);
    CHECK_EQ(upcall_buffers_new(loop, 1, (uint32_t)first_length(scene.fd), &reader.pool), 0);
    upcall_op op = upcall_op_readdir(scene.fd, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = reader.pool;
    op.callback = on_entries;
    op.user = &reader;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    wait_count(loop, &reader.batches, 1);
    submit_one(loop, upcall_op_close(scene.fd), &rec);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    CHECK_EQ(reader.finals, 1);
    CHECK_EQ(reader.last, -ECANCELED);
    CHECK(!is_open(scene.fd));
    give_back(&reader);
    CHECK_EQ(upcall_buffers_free(reader.pool), 0);
    leave_scratch();
    free_loop(loop);
    forget(&rec);
}
