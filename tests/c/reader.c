/* The read-ahead reader: every byte once and in order, and a descriptor that says exactly when. */
#include "check.h"
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/time.h>

enum { BLOCK = 65536, PAGE = 4096 };

static upcall_reader_config config_of(uint32_t block_size, uint32_t depth) {
    upcall_reader_config config;
    memset(&config, 0xa5, sizeof config);
    upcall_reader_config_init(&config);
    config.block_size = block_size;
    config.depth = depth;
    return config;
}

static upcall_reader *reader_with_at(struct place at, int fd, const upcall_reader_config *config) {
    upcall_reader *reader = NULL;
    int rc = upcall_reader_new(fd, config, &reader);
    if (rc != 0 || reader == NULL)
        fail(at, "upcall_reader_new: %d (%s)", rc, upcall_last_error());
    return reader;
}
#define reader_with(fd, config) reader_with_at(HERE, (fd), (config))

static upcall_reader *small_reader_at(struct place at, int fd, uint32_t depth) {
    upcall_reader_config config = config_of(BLOCK, depth);
    return reader_with_at(at, fd, &config);
}
#define small_reader(fd, depth) small_reader_at(HERE, (fd), (depth))

/* Asks for a block as a poll loop does: what the descriptor says must be what the reader answers. */
static int64_t next_exact_at(struct place at, upcall_reader *reader, const void **block) {
    int fd = upcall_reader_fd(reader);
    bool said = is_readable(fd, 0);
    int64_t got = upcall_reader_next(reader, block);
    if (said && got == -EAGAIN)
        fail(at, "the descriptor was readable, but nothing was ready");
    if (got == -EAGAIN && is_readable(fd, 0)) { /* in between it became ready */
        got = upcall_reader_next(reader, block);
        if (got == -EAGAIN)
            fail(at, "the descriptor is readable, but nothing is ready");
    }
    if ((got > 0) != (*block != NULL) || (uintptr_t)*block % PAGE != 0)
        fail(at, "result %lld with block %p", (long long)got, *block);
    return got;
}

static int64_t take_at(struct place at, upcall_reader *reader, const void **block) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    for (;;) {
        int64_t got = next_exact_at(at, reader, block);
        if (got != -EAGAIN)
            return got;
        is_readable(upcall_reader_fd(reader), 1000);
        if (now_ns() > limit)
            fail(at, "no block came");
    }
}
#define take(reader, block) take_at(HERE, (reader), (block))

static void release_at(struct place at, upcall_reader *reader, const void *block) {
    int rc = upcall_reader_release(reader, block);
    if (rc != 0)
        fail(at, "upcall_reader_release: %d (%s)", rc, upcall_last_error());
}
#define release(reader, block) release_at(HERE, (reader), (block))

/* Reads to the end: pattern from `from` on, whole blocks but for the last. Returns the bytes; *end is the last answer. */
static uint64_t read_out_at(struct place at, upcall_reader *reader, uint32_t block_size, uint64_t from, int64_t *end) {
    const void *block;
    uint64_t total = 0;
    for (;;) {
        int64_t got = take_at(at, reader, &block);
        if (got <= 0) {
            *end = got;
            break;
        }
        if (total % block_size != 0)
            fail(at, "a block after a short one, at %" PRIu64, total);
        if (got > block_size || !has_pattern(block, (size_t)got, from + total))
            fail(at, "%lld wrong bytes at %" PRIu64, (long long)got, total);
        total += (uint64_t)got;
        release_at(at, reader, block);
    }
    for (int again = 0; again < 3; again++) { /* the end stays */
        check_eq(at, "readable at the end", is_readable(upcall_reader_fd(reader), 0), 1);
        check_eq(at, "the end again", upcall_reader_next(reader, &block), *end);
        check_eq(at, "no block at the end", block == NULL, 1);
    }
    return total;
}

static void reads_at(struct place at, int fd, const upcall_reader_config *config, uint64_t expected) {
    int64_t end;
    upcall_reader *reader = reader_with_at(at, fd, config);
    check_eq(at, "bytes", (long long)read_out_at(at, reader, config->block_size, config->offset, &end), (long long)expected);
    check_eq(at, "end", end, 0);
    check_eq(at, "upcall_reader_free", upcall_reader_free(reader), 0);
}
#define reads(fd, config, expected) reads_at(HERE, (fd), (config), (expected))

static bool make_direct(int fd) {
    void *probe;
    CHECK(posix_memalign(&probe, PAGE, PAGE) == 0);
    bool works = fsync(fd) == 0 && fcntl(fd, F_SETFL, O_DIRECT) == 0 && pread(fd, probe, PAGE, 0) == PAGE;
    free(probe);
    return works;
}

/* A joined thread may be in the list for a moment still. */
static void check_threads_at(struct place at, int expected) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (thread_count() != expected) {
        if (now_ns() > limit)
            check_eq(at, "threads", thread_count(), expected);
        pause_ms(1);
    }
}
#define check_threads(expected) check_threads_at(HERE, (expected))

/* ---- The bytes ---- */

static const size_t sizes[] = {0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 12345, 40 * BLOCK};

TEST(files_of_all_sizes_are_read_whole_and_in_order) {
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        int file = temp_file(sizes[i]);
        for (uint32_t depth = 1; depth <= 9; depth += 4) {
            upcall_reader_config config = config_of(BLOCK, depth);
            reads(file, &config, sizes[i]);
        }
        close(file);
    }
}

TEST(the_defaults_read_a_file) {
    int file = temp_file(3000001);
    upcall_reader *reader = reader_with(file, NULL);
    upcall_reader_config config;
    upcall_reader_config_init(&config);
    int64_t end;
    CHECK_EQ(read_out_at(HERE, reader, config.block_size, 0, &end), 3000001);
    CHECK_EQ(end, 0);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST(a_window_of_the_file_is_read) {
    enum { SIZE = 6 * BLOCK + 777 };
    static const uint64_t offsets[] = {0, 1, PAGE, BLOCK - 1, BLOCK + 1, 3 * BLOCK, SIZE - 1, SIZE, SIZE + BLOCK};
    static const uint64_t lengths[] = {0, 1, PAGE + 1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK + 5, SIZE, UINT64_MAX};
    int file = temp_file(SIZE);
    for (size_t i = 0; i < COUNT_OF(offsets); i++)
        for (size_t j = 0; j < COUNT_OF(lengths); j++) {
            upcall_reader_config config = config_of(BLOCK, 3);
            config.offset = offsets[i];
            config.length = lengths[j];
            uint64_t there = offsets[i] < SIZE ? SIZE - offsets[i] : 0;
            reads(file, &config, lengths[j] != 0 && lengths[j] < there ? lengths[j] : there);
        }
    upcall_reader_config config = config_of(BLOCK, 3);
    config.offset = INT64_MAX;
    reads(file, &config, 0);
}

TEST(o_direct_reads_the_same_bytes) {
    for (size_t i = 1; i < COUNT_OF(sizes); i++) {
        int file = temp_file(sizes[i] < PAGE ? PAGE : sizes[i]);
        if (!make_direct(file))
            SKIP("O_DIRECT does not work here");
        upcall_reader_config config = config_of(BLOCK, 4);
        reads(file, &config, sizes[i] < PAGE ? PAGE : sizes[i]);
        config.offset = PAGE;
        config.length = 1000; /* a window may end anywhere */
        reads(file, &config, sizes[i] < PAGE + 1000 ? 0 : 1000);
        close(file);
    }
}

TEST(what_o_direct_does_not_allow_is_the_readers_error) {
    int file = temp_file(4 * BLOCK);
    if (!make_direct(file))
        SKIP("O_DIRECT does not work here");
    void *probe;
    CHECK(posix_memalign(&probe, PAGE, PAGE) == 0);
    if (pread(file, probe, PAGE, 1) != -1)
        SKIP("this file system takes any offset");
    upcall_reader_config config = config_of(BLOCK, 4);
    config.offset = 1;
    upcall_reader *reader = reader_with(file, &config);
    int64_t end;
    CHECK_EQ(read_out_at(HERE, reader, BLOCK, 1, &end), 0);
    CHECK_EQ(end, -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "upcall_reader_next");
    CHECK_EQ(upcall_reader_free(reader), 0);
    free(probe);
}

TEST(holes_are_zeros) {
    int file = temp_file(0);
    CHECK(ftruncate(file, 20 * BLOCK + 5) == 0);
    uint8_t some[100];
    fill_pattern(some, sizeof some, 0);
    CHECK(pwrite(file, some, sizeof some, 7 * BLOCK + 3) == sizeof some);
    upcall_reader *reader = small_reader(file, 4);
    static const uint8_t zeros[BLOCK];
    const void *block;
    for (int number = 0; number < 21; number++) {
        CHECK_EQ(take(reader, &block), number < 20 ? BLOCK : 5);
        if (number == 7) {
            CHECK(memcmp((const uint8_t *)block + 3, some, sizeof some) == 0);
            CHECK(memcmp(block, zeros, 3) == 0);
            CHECK(memcmp((const uint8_t *)block + 103, zeros, BLOCK - 103) == 0);
        } else
            CHECK(memcmp(block, zeros, number < 20 ? BLOCK : 5) == 0);
        release(reader, block);
    }
    CHECK_EQ(take(reader, &block), 0);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST(a_device_without_end_is_read_as_far_as_was_asked) {
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC), null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    upcall_reader_config config = config_of(BLOCK, 3);
    config.length = 10 * BLOCK + 1;
    upcall_reader *reader = reader_with(zero, &config);
    const void *block;
    uint64_t total = 0;
    for (int64_t got; (got = take(reader, &block)) > 0; total += (uint64_t)got)
        release(reader, block);
    CHECK_EQ(total, config.length);
    CHECK_EQ(upcall_reader_free(reader), 0);
    config.length = 0;
    reads(null, &config, 0);
}

TEST(the_programs_descriptor_and_its_position_stay_its_own) {
    int file = temp_file(10 * BLOCK), other = temp_file(1);
    CHECK(lseek(file, 123, SEEK_SET) == 123);
    int kept = fcntl(file, F_DUPFD_CLOEXEC, 0);
    upcall_reader *reader = small_reader(file, 2);
    CHECK(dup3(other, file, O_CLOEXEC) == file); /* closed, and its number is something else */
    int64_t end;
    CHECK_EQ(read_out_at(HERE, reader, BLOCK, 0, &end), 10 * BLOCK);
    CHECK_EQ(upcall_reader_free(reader), 0);
    CHECK_EQ(lseek(kept, 0, SEEK_CUR), 123);
    CHECK(is_open(file));
}

/* ---- The descriptor ---- */

static void drop_cache(int file) {
    CHECK(fsync(file) == 0);
    CHECK_EQ(posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), 0);
}

static void wait_by_select(int fd) {
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timeval limit = {15, 0};
    CHECK_EQ(select(fd + 1, &set, NULL, NULL, &limit), 1);
}

static void wait_by_poll(int fd) {
    struct pollfd one = {fd, POLLIN, 0};
    CHECK_EQ(poll(&one, 1, 15000), 1);
    CHECK_EQ(one.revents, POLLIN);
}

static void wait_by_epoll(int fd) {
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
    int rc;
    do /* a ring that this thread made and closed may still interrupt it, without a signal */
        rc = epoll_wait(set, &event, 1, 15000);
    while (rc < 0 && errno == EINTR);
    CHECK_EQ(rc, 1);
    close(set);
}

/* After each wait at least one block is there; it is never readable for nothing, and never quiet with a block ready. */
static void read_waiting_by(void (*wait)(int), int file, uint64_t size) {
    upcall_reader *reader = small_reader(file, 8);
    int fd = upcall_reader_fd(reader);
    uint64_t total = 0;
    const void *block;
    for (int64_t got = 1; got != 0;) {
        wait(fd);
        got = upcall_reader_next(reader, &block);
        CHECK(got >= 0);
        CHECK(got == 0 || has_pattern(block, (size_t)got, total));
        total += (uint64_t)got;
        if (got > 0)
            release(reader, block);
    }
    CHECK_EQ(total, size);
    wait(fd);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST_FOR(select_poll_and_epoll_wait_for_blocks, 60) {
    enum { SIZE = 50 * BLOCK + 1 };
    int file = temp_file(SIZE);
    for (int direct = 0; direct < 2; direct++) {
        read_waiting_by(wait_by_select, file, SIZE);
        read_waiting_by(wait_by_poll, file, SIZE);
        read_waiting_by(wait_by_epoll, file, SIZE);
        drop_cache(file);
        read_waiting_by(wait_by_poll, file, SIZE);
        if (!make_direct(file))
            break;
    }
}

TEST_FOR(blocks_that_come_in_another_order_are_told_in_the_files_order, 60) {
    enum { SIZE = 64 * BLOCK };
    int file = temp_file(SIZE);
    for (int round = 0; round < 6; round++) {
        static uint8_t room[BLOCK];
        drop_cache(file);
        for (int number = 1; number < 64; number += 2) /* every other block is there at once */
            CHECK(pread(file, room, BLOCK, number * BLOCK) == BLOCK);
        upcall_reader_config config = config_of(BLOCK, 8);
        reads(file, &config, SIZE);
    }
}

TEST(a_wait_ends_by_a_block_by_time_and_by_a_signal) {
    int file = temp_file(2 * BLOCK);
    upcall_reader_config config = config_of(BLOCK, 1);
    upcall_reader *reader = reader_with(file, &config);
    const void *first, *second, *none;
    CHECK_EQ(upcall_reader_wait(reader, &first, -1), BLOCK);
    CHECK_EQ(upcall_reader_wait(reader, &second, PATIENCE_NS), BLOCK);
    uint64_t begun = now_ns(); /* both blocks are lent: nothing can come */
    CHECK_EQ(upcall_reader_wait(reader, &none, 0), -EAGAIN);
    CHECK_EQ(upcall_reader_wait(reader, &none, MS(20)), -EAGAIN);
    CHECK(now_ns() - begun >= (uint64_t)MS(20));
    CHECK(none == NULL);
    release(reader, second);
    CHECK_EQ(upcall_reader_wait(reader, &none, INT64_MAX), 0);
    CHECK_EQ(upcall_reader_wait(reader, &none, INT64_MIN), 0);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

static atomic_int handled;
static atomic_int handled_elsewhere;
static pid_t main_thread;
static void on_signal(int signal) {
    (void)signal;
    atomic_fetch_add(&handled, 1);
    if (syscall(SYS_gettid) != main_thread)
        atomic_fetch_add(&handled_elsewhere, 1);
}

TEST(signals_go_to_the_program_and_end_a_wait) {
    main_thread = (pid_t)syscall(SYS_gettid);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    int file = temp_file(4 * BLOCK);
    upcall_reader *reader = small_reader(file, 1);
    const void *blocks[2], *none;
    CHECK_EQ(upcall_reader_wait(reader, &blocks[0], -1), BLOCK);
    CHECK_EQ(upcall_reader_wait(reader, &blocks[1], -1), BLOCK);
    struct itimerval often = {{0, 2000}, {0, 2000}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int i = 0; i < 20; i++) /* the timer's signals go to any thread that does not block them */
        CHECK_EQ(upcall_reader_wait(reader, &none, -1), -EAGAIN);
    CHECK(atomic_load(&handled) >= 20);
    CHECK_EQ(atomic_load(&handled_elsewhere), 0);
    often = (struct itimerval){0};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST(the_threads_have_a_name_and_block_every_signal) {
    int file = temp_file(BLOCK), found = 0;
    upcall_reader *reader = small_reader(file, 4);
    DIR *dir = opendir("/proc/self/task");
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[300], line[256], name[32] = "";
        unsigned long long blocked = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *file_of = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
        if (file_of == NULL)
            continue;
        while (fgets(line, sizeof line, file_of) != NULL) {
            sscanf(line, "Name: %31s", name);
            sscanf(line, "SigBlk: %llx", &blocked);
        }
        fclose(file_of);
        if (strcmp(name, "upcall-read") != 0)
            continue;
        found++;
        for (int number = 1; number < 32; number++)
            if (number != SIGKILL && number != SIGSTOP && !(blocked >> (number - 1) & 1))
                fail(HERE, "signal %d is not blocked", number);
    }
    closedir(dir);
    CHECK(found >= 1);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

/* ---- Blocks ---- */

TEST(reading_pauses_while_blocks_are_held) {
    enum { DEPTH = 4, BLOCKS = 32 };
    int file = temp_file(BLOCKS * BLOCK);
    upcall_reader *reader = small_reader(file, DEPTH);
    int fd = upcall_reader_fd(reader);
    const void *held[DEPTH + 1], *none;
    for (int i = 0; i <= DEPTH; i++) {
        CHECK_EQ(take(reader, &held[i]), BLOCK);
        for (int j = 0; j < i; j++)
            CHECK(held[i] != held[j]);
    }
    pause_ms(20);
    CHECK(!is_readable(fd, 0));
    CHECK_EQ(upcall_reader_next(reader, &none), -EAGAIN);
    CHECK(none == NULL);
    for (int i = 0; i <= DEPTH; i++)
        CHECK(has_pattern(held[i], BLOCK, (uint64_t)i * BLOCK)); /* nobody has touched them */
    release(reader, held[2]);
    CHECK(is_readable(fd, 15000));
    CHECK_EQ(upcall_reader_next(reader, &none), BLOCK);
    CHECK(none == held[2]);
    CHECK(has_pattern(none, BLOCK, (DEPTH + 1) * BLOCK));
    CHECK(!is_readable(fd, 20));
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST(nothing_beyond_the_depth_is_read_for_a_slow_consumer) {
    enum { DEPTH = 4, BLOCKS = 24 };
    static uint8_t other[BLOCK];
    int file = temp_file(BLOCKS * BLOCK);
    upcall_reader *reader = small_reader(file, DEPTH);
    CHECK(is_readable(upcall_reader_fd(reader), 15000));
    pause_ms(50);
    for (int number = DEPTH; number < BLOCKS; number++) { /* whoever has read these has the old bytes */
        memset(other, number, BLOCK);
        CHECK(pwrite(file, other, BLOCK, number * BLOCK) == BLOCK);
    }
    const void *block;
    for (int number = 0; number < BLOCKS; number++) {
        CHECK_EQ(take(reader, &block), BLOCK);
        memset(other, number, BLOCK);
        CHECK(number < DEPTH ? has_pattern(block, BLOCK, (uint64_t)number * BLOCK) : memcmp(block, other, BLOCK) == 0);
        release(reader, block);
    }
    CHECK_EQ(take(reader, &block), 0);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST_FOR(blocks_come_back_in_any_order, 60) {
    enum { BLOCKS = 600 };
    int file = temp_file((size_t)BLOCKS * PAGE);
    for (uint64_t seed = 0; seed < 6; seed++) {
        uint64_t state = seed;
        uint32_t depth = 1 + (uint32_t)(chance(&state) % 7);
        upcall_reader_config config = config_of(PAGE, depth);
        upcall_reader *reader = reader_with(file, &config);
        const void *held[9], *seen[9], *block;
        size_t holding = 0, distinct = 0, taken = 0;
        for (int64_t got = 1; got != 0;) {
            if (holding == depth + 1 || (holding > 0 && chance(&state) % 2)) {
                size_t which = (size_t)(chance(&state) % holding);
                release(reader, held[which]);
                CHECK_EQ(upcall_reader_release(reader, held[which]), -EINVAL); /* only once */
                held[which] = held[--holding];
                continue;
            }
            got = take(reader, &block);
            if (got == 0)
                break;
            CHECK_EQ(got, PAGE);
            CHECK(has_pattern(block, PAGE, taken++ * PAGE));
            held[holding++] = block;
            size_t i = 0;
            while (i < distinct && seen[i] != block)
                i++;
            if (i == distinct) {
                CHECK(distinct <= depth); /* depth + 1 blocks of memory, never more */
                seen[distinct++] = block;
            }
        }
        CHECK_EQ(taken, BLOCKS);
        CHECK_EQ(upcall_reader_free(reader), 0); /* with blocks lent */
    }
}

TEST(only_a_lent_block_can_be_released) {
    int file = temp_file(8 * BLOCK);
    upcall_reader *reader = small_reader(file, 3), *other = small_reader(file, 3);
    const void *block, *foreign;
    CHECK_EQ(take(reader, &block), BLOCK);
    CHECK_EQ(take(other, &foreign), BLOCK);
    const uint8_t *bytes = block;
    const void *wrong[] = {NULL, bytes + 1, bytes + PAGE, bytes - 1, foreign, &file, (void *)UINTPTR_MAX, bytes + 64 * BLOCK};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        CHECK_EQ(upcall_reader_release(reader, wrong[i]), -EINVAL);
        CHECK_STR_CONTAINS(upcall_last_error(), "lent block");
    }
    for (int number = -4; number <= 4; number++) /* blocks that are not lent, and what lies around them */
        if (number != 0)
            CHECK_EQ(upcall_reader_release(reader, bytes + number * BLOCK), -EINVAL);
    release(reader, block);
    CHECK_EQ(upcall_reader_release(reader, block), -EINVAL);
    CHECK_EQ(upcall_reader_free(reader), 0);
    release(other, foreign);
    CHECK_EQ(upcall_reader_free(other), 0);
}

/* ---- Files that change, and errors ---- */

TEST(a_file_that_grew_before_its_end_was_read_is_read_to_its_new_end) {
    int file = temp_file(3 * BLOCK + BLOCK / 2);
    upcall_reader *reader = small_reader(file, 2);
    CHECK(is_readable(upcall_reader_fd(reader), 15000));
    static uint8_t more[3 * BLOCK];
    fill_pattern(more, sizeof more, 3 * BLOCK + BLOCK / 2);
    CHECK(pwrite(file, more, sizeof more, 3 * BLOCK + BLOCK / 2) == sizeof more);
    int64_t end;
    CHECK_EQ(read_out_at(HERE, reader, BLOCK, 0, &end), 6 * BLOCK + BLOCK / 2);
    CHECK_EQ(end, 0);
    CHECK_EQ(upcall_reader_free(reader), 0);
}

static void *append(void *arg) {
    int file = *(int *)arg;
    static uint8_t more[10007];
    for (uint64_t at = 4 * BLOCK; at < 60 * BLOCK; at += sizeof more) {
        fill_pattern(more, sizeof more, at);
        CHECK(pwrite(file, more, sizeof more, (off_t)at) == sizeof more);
    }
    return NULL;
}

TEST_FOR(a_file_that_grows_meanwhile_gives_a_true_beginning_of_it, 60) {
    for (int round = 0; round < 20; round++) {
        int file = temp_file(4 * BLOCK);
        pthread_t writer = start(append, &file);
        upcall_reader *reader = small_reader(file, 1 + (uint32_t)round % 8);
        int64_t end;
        CHECK(read_out_at(HERE, reader, BLOCK, 0, &end) >= 4 * BLOCK);
        CHECK_EQ(end, 0);
        CHECK_EQ(upcall_reader_free(reader), 0);
        join(writer);
        close(file);
    }
}

TEST_FOR(a_file_that_is_cut_meanwhile_ends_cleanly, 60) {
    for (int round = 0; round < 20; round++) {
        int file = temp_file(20 * BLOCK);
        if (round % 2 && !make_direct(file))
            continue;
        upcall_reader *reader = small_reader(file, 4);
        const void *block;
        int64_t got = take(reader, &block);
        CHECK_EQ(got, BLOCK);
        release(reader, block);
        CHECK(ftruncate(file, 2 * BLOCK + 100) == 0);
        uint64_t total = BLOCK;
        for (; (got = take(reader, &block)) > 0; total += (uint64_t)got) {
            CHECK_EQ(total % BLOCK, 0);
            release(reader, block);
        }
        CHECK_EQ(got, 0);
        /* At most what was ahead when it was cut, and what was started for the block that was taken. */
        CHECK(total <= 6 * BLOCK && total >= 2 * BLOCK);
        CHECK_EQ(upcall_reader_free(reader), 0);
        close(file);
    }
}

/* A file whose reads fail in the middle: this process's own memory, with a page in it that is beyond the end of a file. */
TEST(an_error_comes_in_order_behind_the_bytes_before_it) {
    enum { BLOCKS = 10, GOOD = 6 * BLOCK + 3 * PAGE };
    uint8_t *memory = mmap(NULL, BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    fill_pattern(memory, BLOCKS * BLOCK, (uintptr_t)memory);
    CHECK(mmap(memory + GOOD, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, temp_file(0), 0) == memory + GOOD);
    int file = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    CHECK(file >= 0);
    for (uint32_t depth = 1; depth <= 9; depth += 2) {
        upcall_reader_config config = config_of(BLOCK, depth);
        config.offset = (uintptr_t)memory;
        config.length = BLOCKS * BLOCK;
        upcall_reader *reader = reader_with(file, &config);
        int64_t end;
        CHECK_EQ(read_out_at(HERE, reader, BLOCK, (uintptr_t)memory, &end), GOOD);
        CHECK_EQ(end, -EIO);
        CHECK_EQ(upcall_reader_free(reader), 0);
        config.length = 6 * BLOCK + 10; /* a window that ends before the bad page does not meet it */
        reads(file, &config, 6 * BLOCK + 10);
    }
}

TEST(a_direct_read_does_not_hold_the_loop_up) {
    int file = temp_file(BLOCK);
    if (!make_direct(file))
        SKIP("O_DIRECT does not work here");
    void *room;
    CHECK(posix_memalign(&room, PAGE, BLOCK) == 0);
    upcall_loop *loop = new_loop();
    upcall_stats stats;
    CHECK_EQ(complete(loop, upcall_op_pread(file, room, BLOCK, 0)).result, BLOCK);
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    if (on_epoll(loop))
        CHECK_EQ(stats.pool_operations, 1); /* a thread waits for the disk, not the loop */
    free_loop(loop);
    free(room);
}

/* ---- The beginning and the end ---- */

static void refuses_at(struct place at, int fd, const upcall_reader_config *config, int error, const char *text) {
    upcall_reader *reader = (upcall_reader *)&fd;
    check_eq(at, text, upcall_reader_new(fd, config, &reader), error);
    check_contains(at, upcall_last_error(), text);
    check_contains(at, upcall_last_error(), "upcall_reader_new");
    check_eq(at, "the reader is NULL", reader == NULL, 1);
}
#define refuses(fd, config, error, text) refuses_at(HERE, (fd), (config), (error), (text))

TEST(what_has_no_positions_is_refused_at_once) {
    int pipes[2], sockets[2], before = open_fd_count();
    pipe_pair(pipes);
    unix_pair(sockets);
    int directory = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), event = eventfd(1, EFD_CLOEXEC);
    int write_only = open("/dev/null", O_WRONLY | O_CLOEXEC), path_only = open("/dev/null", O_PATH | O_CLOEXEC);
    refuses(-1, NULL, -EBADF, "fd -1");
    refuses(99999, NULL, -EBADF, "fd 99999");
    refuses(write_only, NULL, -EBADF, "not open for reading");
    refuses(path_only, NULL, -EBADF, "not open for reading");
    refuses(pipes[0], NULL, -ESPIPE, "stream");
    refuses(sockets[0], NULL, -ESPIPE, "stream");
    refuses(event, NULL, -ESPIPE, "stream");
    refuses(directory, NULL, -EISDIR, "directory");
    int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal >= 0) {
        refuses(terminal, NULL, -ESPIPE, "stream");
        close(terminal);
    }
    close_pair(pipes);
    close_pair(sockets);
    close(directory), close(event), close(write_only), close(path_only);
    CHECK_EQ(open_fd_count(), before);
    check_threads(1);
}

TEST(a_config_out_of_range_is_refused_with_the_name_of_the_field) {
    int file = temp_file(BLOCK), files = open_fd_count();
    upcall_reader_config config;
#define WRONG(field, value, text)                                                                                      \
    (config = config_of(BLOCK, 4), config.field = (value), refuses(file, &config, -EINVAL, text))
    WRONG(block_size, 0, "block_size");
    WRONG(block_size, 1, "block_size");
    WRONG(block_size, PAGE - 1, "block_size");
    WRONG(block_size, PAGE + 512, "block_size");
    WRONG(block_size, (1u << 30) + PAGE, "block_size");
    WRONG(block_size, UINT32_MAX, "block_size");
    WRONG(depth, 0, "depth");
    WRONG(depth, 1025, "depth");
    WRONG(depth, UINT32_MAX, "depth");
    WRONG(offset, (uint64_t)INT64_MAX + 1, "offset");
    WRONG(offset, UINT64_MAX, "offset");
    WRONG(backend, 3, "backend");
    for (int i = 0; i < 4; i++)
        WRONG(reserved[i], 1, "reserved");
    WRONG(size, 0, "size");
    WRONG(size, 3, "size");
    config = config_of(BLOCK, 4);
    config.size = 4097;
    refuses(file, &config, -E2BIG, "size");
    CHECK_EQ(upcall_reader_new(file, NULL, NULL), -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "reader is NULL");
    CHECK_EQ(open_fd_count(), files);
}

TEST(a_config_of_another_version_is_understood) {
    int file = temp_file(3 * BLOCK);
    struct {
        upcall_reader_config config;
        uint64_t later[2];
    } newer;
    memset(&newer, 0xff, sizeof newer);
    upcall_reader_config_init_sized(&newer.config, sizeof newer);
    CHECK_EQ(newer.config.size, sizeof newer);
    CHECK_EQ(newer.later[0] | newer.later[1], 0);
    newer.config.block_size = BLOCK;
    reads(file, &newer.config, 3 * BLOCK);
    newer.later[1] = 1;
    refuses(file, &newer.config, -E2BIG, "fields");
    upcall_reader_config older;
    memset(&older, 0xff, sizeof older);
    upcall_reader_config_init_sized(&older, 12);
    CHECK_EQ(older.size, 12);
    CHECK_EQ(older.depth, UINT32_MAX); /* behind what the program has room for nothing is written, nor read */
    older.block_size = BLOCK;
    upcall_reader *reader = reader_with(file, &older);
    int64_t end;
    CHECK_EQ(read_out_at(HERE, reader, BLOCK, 0, &end), 3 * BLOCK);
    CHECK_EQ(upcall_reader_free(reader), 0);
    upcall_reader_config_init_sized(NULL, sizeof older);
}

TEST(null_is_refused_everywhere_and_free_takes_it) {
    const void *block;
    int file = temp_file(BLOCK);
    CHECK_EQ(upcall_reader_fd(NULL), -EINVAL);
    CHECK_EQ(upcall_reader_next(NULL, &block), -EINVAL);
    CHECK_EQ(upcall_reader_wait(NULL, &block, -1), -EINVAL);
    CHECK_EQ(upcall_reader_release(NULL, &block), -EINVAL);
    CHECK_EQ(upcall_reader_free(NULL), 0);
    upcall_reader *reader = small_reader(file, 1);
    CHECK_EQ(upcall_reader_next(reader, NULL), -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "block is NULL");
    CHECK_EQ(upcall_reader_wait(reader, NULL, -1), -EINVAL);
    CHECK_EQ(take(reader, &block), BLOCK); /* and nothing was lost */
    CHECK_EQ(upcall_reader_free(reader), 0);
}

TEST_FOR(free_in_the_middle_leaves_nothing_behind, 120) {
    int file = temp_file(40 * BLOCK), files = open_fd_count();
    for (int round = 0; round < 60; round++) {
        if (round == 20)
            drop_cache(file);
        if (round == 40 && !make_direct(file))
            break;
        upcall_reader *reader = small_reader(file, 2 + (uint32_t)round % 9);
        const void *block;
        for (int taken = 0; taken < round % 5; taken++) {
            CHECK_EQ(take(reader, &block), BLOCK);
            if (taken % 2)
                release(reader, block);
        }
        CHECK_EQ(upcall_reader_free(reader), 0);
        CHECK_EQ(open_fd_count(), files);
        check_threads(1);
    }
}

TEST(two_readers_of_one_file_do_not_disturb_each_other) {
    enum { SIZE = 30 * BLOCK + 9 };
    int file = temp_file(SIZE);
    upcall_reader_config config = config_of(BLOCK, 3);
    upcall_reader *readers[2];
    uint64_t at[2] = {0, 5 * BLOCK};
    for (int i = 0; i < 2; i++) {
        config.offset = at[i];
        readers[i] = reader_with(file, &config);
    }
    struct pollfd waits[2] = {{upcall_reader_fd(readers[0]), POLLIN, 0}, {upcall_reader_fd(readers[1]), POLLIN, 0}};
    for (int ended = 0; ended < 2;) {
        CHECK(poll(waits, 2, 15000) > 0);
        for (int i = 0; i < 2; i++) {
            const void *block;
            if (waits[i].fd < 0 || waits[i].revents == 0)
                continue;
            int64_t got = upcall_reader_next(readers[i], &block);
            CHECK(got >= 0);
            if (got == 0) {
                waits[i].fd = -1;
                ended++;
                continue;
            }
            CHECK(has_pattern(block, (size_t)got, at[i]));
            at[i] += (uint64_t)got;
            release(readers[i], block);
        }
    }
    CHECK_EQ(at[0], SIZE);
    CHECK_EQ(at[1], SIZE);
    CHECK_EQ(upcall_reader_free(readers[0]), 0);
    CHECK_EQ(upcall_reader_free(readers[1]), 0);
}

struct crowd {
    upcall_reader *reader;
    atomic_ullong sum, count;
};

static void *take_some(void *arg) {
    struct crowd *crowd = arg;
    const void *block;
    for (;;) {
        int64_t got = upcall_reader_wait(crowd->reader, &block, MS(5));
        if (got == -EAGAIN)
            continue;
        CHECK(got >= 0);
        if (got == 0)
            return NULL;
        CHECK_EQ(got, PAGE);
        uint64_t number;
        memcpy(&number, block, sizeof number);
        atomic_fetch_add(&crowd->sum, number);
        atomic_fetch_add(&crowd->count, 1);
        release(crowd->reader, block);
    }
}

TEST(each_block_goes_to_one_of_many_threads) {
    enum { BLOCKS = 2000 };
    int file = temp_file(0);
    for (uint64_t number = 0; number < BLOCKS; number++) {
        CHECK(pwrite(file, &number, sizeof number, (off_t)(number * PAGE)) == sizeof number);
    }
    CHECK(ftruncate(file, BLOCKS * PAGE) == 0);
    upcall_reader_config config = config_of(PAGE, 5);
    struct crowd crowd = {.reader = reader_with(file, &config)};
    pthread_t threads[4];
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        threads[i] = start(take_some, &crowd);
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        join(threads[i]);
    CHECK_EQ(atomic_load(&crowd.count), BLOCKS);
    CHECK_EQ(atomic_load(&crowd.sum), (unsigned long long)BLOCKS * (BLOCKS - 1) / 2);
    CHECK_EQ(upcall_reader_free(crowd.reader), 0);
}

TEST(too_few_descriptors_are_an_error_that_leaves_nothing_behind) {
    int file = temp_file(BLOCK), files = open_fd_count();
    upcall_reader *reader = NULL;
    unsigned more = 0;
    for (int rc = -EMFILE; rc != 0; more++) {
        CHECK(more < 32);
        limit_descriptors(more);
        rc = upcall_reader_new(file, NULL, &reader);
        unlimit_descriptors();
        CHECK(rc == 0 || rc == -EMFILE);
        if (rc != 0)
            CHECK_EQ(open_fd_count(), files);
    }
    CHECK(more > 4);
    CHECK_EQ(upcall_reader_free(reader), 0);
    CHECK_EQ(open_fd_count(), files);
    check_threads(1);
}

TEST(no_thread_is_an_error_that_leaves_nothing_behind) {
    int file = temp_file(BLOCK), files = open_fd_count();
    struct rlimit none = {0, 0};
    upcall_reader *reader;
    CHECK(setrlimit(RLIMIT_NPROC, &none) == 0);
    if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) /* the limit is not root's */
        SKIP("this root is not allowed to become somebody else");
    int rc = upcall_reader_new(file, NULL, &reader);
    if (rc == 0)
        SKIP("RLIMIT_NPROC does not apply here");
    CHECK_EQ(rc, -EAGAIN);
    CHECK_STR_CONTAINS(upcall_last_error(), "thread");
    CHECK(reader == NULL);
    CHECK_EQ(open_fd_count(), files);
}

TEST(too_little_memory_is_an_error_that_leaves_nothing_behind) {
    if (has_address_sanitizer())
        SKIP("AddressSanitizer needs more than this leaves");
    int file = temp_file(BLOCK), files = open_fd_count();
    upcall_reader_config config = config_of(1 << 30, 1024);
    struct rlimit limit = {UINT64_C(8) << 30, UINT64_C(8) << 30};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    refuses(file, &config, -ENOMEM, "memory");
    CHECK_EQ(open_fd_count(), files);
}

static upcall_reader *inherited;
static const void *lent;

static void try_every_call(void *arg) {
    const void *block;
    int files = open_fd_count();
    (void)arg;
    CHECK_EQ(upcall_reader_fd(inherited), -ECHILD);
    CHECK_EQ(upcall_reader_next(inherited, &block), -ECHILD);
    CHECK(block == NULL);
    CHECK_EQ(upcall_reader_wait(inherited, &block, -1), -ECHILD);
    CHECK_EQ(upcall_reader_release(inherited, lent), -ECHILD);
    CHECK_STR_CONTAINS(upcall_last_error(), "parent");
    CHECK_EQ(open_fd_count(), files);
    CHECK_EQ(upcall_reader_free(inherited), 0);
    CHECK(open_fd_count() < files);
    int file = temp_file(BLOCK); /* readers of its own are the child's */
    upcall_reader_config config = config_of(BLOCK, 2);
    reads(file, &config, BLOCK);
}

TEST(a_forked_child_leaves_the_parents_reader_alone) { /* hazards row 2 */
    int file = temp_file(20 * BLOCK);
    for (int direct = 0; direct < 2; direct++) {
        int64_t end;
        inherited = small_reader(file, 4);
        CHECK_EQ(take(inherited, &lent), BLOCK);
        CHECK_EQ(in_child(try_every_call, NULL), 0);
        CHECK_EQ(in_child(try_every_call, NULL), 0);
        CHECK(has_pattern(lent, BLOCK, 0));
        release(inherited, lent);
        CHECK_EQ(read_out_at(HERE, inherited, BLOCK, BLOCK, &end), 19 * BLOCK);
        CHECK_EQ(upcall_reader_free(inherited), 0);
        if (!make_direct(file))
            break;
    }
}
