/*
 * Which backend a loop gets in this environment, what it says of it, and that it works. The launcher tells what is right
 * there: UPCALL_TEST_BACKEND (epoll, or any; not set: the ring) and UPCALL_TEST_REASON, the whole text where it is epoll.
 */
#include "../c/check.h"
#include <sys/auxv.h>

static const char *wanted_backend(void) {
    const char *text = getenv("UPCALL_TEST_BACKEND");
    return text ? text : "io_uring";
}

static const char *wanted_reason(void) {
    const char *text = getenv("UPCALL_TEST_REASON");
    CHECK(text != NULL);
    return text;
}

/* Without the library: whether this machine has a ring at all where nothing is denied. */
static void need_a_ring(void) {
    uint32_t params[30] = {0};
    long ring = syscall(SYS_io_uring_setup, 4, params);
    if (ring < 0 && strcmp(wanted_backend(), "io_uring") == 0)
        SKIP("io_uring is denied on this machine anyway");
    if (ring >= 0)
        close((int)ring);
}

static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

/* Operations that need the ring or the poller, the timers and the pool. */
static void exercise(upcall_loop *loop) {
    int fds[2], file = temp_file(4096);
    char data[4096];
    struct recorder rec = {0};
    pipe_pair(fds);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    submit_one(loop, upcall_op_read(fds[0], data, 3), &rec);
    start_all(loop);
    write_all(fds[1], "abc", 3);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 3);
    upcall_id id = submit_one(loop, upcall_op_read(fds[0], data, 3), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 2);
    CHECK_EQ(rec.events[1].result, -ECANCELED);
    CHECK_EQ(complete(loop, upcall_op_pread(file, data, sizeof data, 0)).result, sizeof data);
    CHECK(has_pattern(data, sizeof data, 0));
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_sleep(UPCALL_MILLISECOND)).result, 0);
    struct record work = complete(loop, upcall_op_work(seven, NULL));
    CHECK(work.result == 7 || (denied("threads") && work.result == -EAGAIN));
    close_pair(fds);
    close(file);
    forget(&rec);
}

TEST(the_backend_and_its_reason_are_right) {
    if (!denied("io_uring"))
        need_a_ring();
    upcall_loop *loop = new_loop();
    const char *reason = upcall_backend_reason(loop);
    dprintf(STDOUT_FILENO, "  %s\n", reason);
    if (on_epoll(loop)) {
        CHECK(strcmp(wanted_backend(), "io_uring") != 0);
        CHECK_STR_EQ(reason, wanted_reason());
    } else {
        CHECK(strcmp(wanted_backend(), "epoll") != 0);
        CHECK(strncmp(reason, "io_uring: ", 10) == 0);
    }
    exercise(loop);
    free_loop(loop);
}

/* AUTO, several loops: what one of them takes the next may lack. */
TEST(every_loop_works) {
    upcall_loop *loops[4];
    for (size_t i = 0; i < COUNT_OF(loops); i++) {
        loops[i] = new_loop();
        exercise(loops[i]);
    }
    for (size_t i = 0; i < COUNT_OF(loops); i++)
        free_loop(loops[i]);
}

static void demand_the_ring(const upcall_config *config) {
    int fds = denied("proc") ? 0 : open_fd_count();
    upcall_loop *loop = (upcall_loop *)(uintptr_t)&fds;
    int rc = upcall_loop_new(config, &loop);
    if (rc == 0) {
        CHECK(strcmp(wanted_backend(), "epoll") != 0);
        CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_IO_URING);
        exercise(loop);
        free_loop(loop);
        return;
    }
    CHECK(strcmp(wanted_backend(), "io_uring") != 0);
    CHECK(loop == NULL);
    CHECK_STR_CONTAINS(upcall_last_error(), wanted_reason());
    /* "io_uring_setup: EPERM (…": the errno is the one that is told. */
    CHECK_STR_CONTAINS(wanted_reason(), strerrorname_np(-rc));
    if (!denied("proc"))
        CHECK_EQ(open_fd_count(), fds);
}

TEST(a_demand_for_the_ring_is_met_or_refused_with_the_same_reason) {
    if (denied("io_uring"))
        SKIP("the attempt would be the end");
    need_a_ring();
    upcall_config config = default_config();
    config.backend = UPCALL_BACKEND_IO_URING;
    demand_the_ring(&config);
}

TEST(a_demand_by_the_environment_is_met_or_refused_with_the_same_reason) {
    if (denied("io_uring"))
        SKIP("the attempt would be the end");
    if (getauxval(AT_SECURE))
        SKIP("a set-user-ID program does not look at the environment");
    need_a_ring();
    setenv("UPCALL_BACKEND", "io_uring", 1);
    demand_the_ring(NULL);
}

TEST(epoll_works_where_it_is_asked_for) {
    upcall_config config = default_config();
    config.backend = UPCALL_BACKEND_EPOLL;
    upcall_loop *loop = loop_with(&config);
    CHECK(on_epoll(loop));
    CHECK_STR_EQ(upcall_backend_reason(loop), "epoll: asked for by config.backend");
    exercise(loop);
    free_loop(loop);
}

TEST(the_environment_is_as_it_was_told) {
    const char *secure = getauxval(AT_SECURE) ? "set-user-ID" : "";
    dprintf(STDOUT_FILENO, "  uid %d %d %s\n", getuid(), geteuid(), secure);
    if (denied("threads")) {
        pthread_t thread;
        CHECK_EQ((pthread_create)(&thread, NULL, (void *(*)(void *))(uintptr_t)seven, NULL), EAGAIN);
    }
    if (denied("descriptors")) {
        struct rlimit limit;
        CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max <= 16);
    }
}
