/* Which backend a loop gets: configuration, environment, and kernels and sandboxes that refuse. */
#include "check.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/auxv.h>

static bool ring_denied(void) {
    const char *mask = getenv("UPCALL_MASK");
    if (mask != NULL && strstr(mask, "ext_arg") != NULL && !getauxval(AT_SECURE))
        return true; /* by the library itself */
    char params[120] = {0};
    long ring = syscall(SYS_io_uring_setup, 4, params);
    if (ring >= 0)
        close((int)ring);
    return ring < 0;
}

static upcall_loop *loop_on(upcall_backend backend) {
    upcall_config config = default_config();
    config.backend = backend;
    return loop_with(&config);
}

/* Operations that need the ring, the poller and the pool. */
static void exercise(upcall_loop *loop) {
    int fds[2], file = temp_file(4096);
    char data[4096];
    pipe_pair(fds);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    struct recorder rec = {0};
    submit_one(loop, upcall_op_read(fds[0], data, 3), &rec);
    start_all(loop);
    write_all(fds[1], "abc", 3);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 3);
    CHECK_EQ(complete(loop, upcall_op_pread(file, data, sizeof data, 0)).result, sizeof data);
    CHECK(has_pattern(data, sizeof data, 0));
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_sleep(UPCALL_MILLISECOND)).result, 0);
    upcall_op op = upcall_op_read(fds[0], data, 1);
    op.timeout_ns = UPCALL_MILLISECOND;
    CHECK_EQ(complete(loop, op).result, -ETIMEDOUT);
    close_pair(fds);
    close(file);
    forget(&rec);
}

/* Makes one io_uring system call (0: all three) answer `action`. */
static void filter_io_uring(long number, uint32_t action) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)(number ? number : SYS_io_uring_setup), 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, (uint32_t)(number ? number : SYS_io_uring_register), 1, 0),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT_OF(code), code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        SKIP("no seccomp filters here");
}

TEST(the_environment_overrides_auto) {
    unsetenv("UPCALL_BACKEND");
    upcall_loop *loop = new_loop();
    upcall_backend usual = upcall_loop_backend(loop);
    free_loop(loop);
    static const char *const same[] = {"auto", ""};
    for (size_t i = 0; i < COUNT_OF(same); i++) {
        setenv("UPCALL_BACKEND", same[i], 1);
        loop = new_loop();
        CHECK_EQ(upcall_loop_backend(loop), usual);
        free_loop(loop);
    }
    setenv("UPCALL_BACKEND", "epoll", 1);
    loop = new_loop();
    CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_EPOLL);
    CHECK_STR_CONTAINS(upcall_backend_reason(loop), "UPCALL_BACKEND");
    exercise(loop);
    free_loop(loop);
    if (ring_denied())
        return;
    setenv("UPCALL_BACKEND", "io_uring", 1);
    loop = new_loop();
    CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_IO_URING);
    exercise(loop);
    free_loop(loop);
}

TEST(a_backend_named_by_the_config_is_not_overridden) {
    setenv("UPCALL_BACKEND", "io_uring", 1);
    upcall_loop *loop = loop_on(UPCALL_BACKEND_EPOLL);
    CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_EPOLL);
    free_loop(loop);
    if (ring_denied())
        return;
    setenv("UPCALL_BACKEND", "epoll", 1);
    loop = loop_on(UPCALL_BACKEND_IO_URING);
    CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_IO_URING);
    exercise(loop);
    free_loop(loop);
}

TEST(epoll_makes_no_io_uring_system_call) { /* sandboxes kill on it */
    filter_io_uring(0, SECCOMP_RET_KILL_PROCESS);
    setenv("UPCALL_BACKEND", "epoll", 1);
    upcall_loop *loop = new_loop();
    exercise(loop);
    free_loop(loop);
    unsetenv("UPCALL_BACKEND");
    loop = loop_on(UPCALL_BACKEND_EPOLL);
    exercise(loop);
    free_loop(loop);
}

TEST(a_denied_ring_falls_back_with_a_reason) { /* hazards row 39 */
    filter_io_uring(SYS_io_uring_setup, SECCOMP_RET_ERRNO | EPERM);
    unsetenv("UPCALL_BACKEND");
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_EPOLL);
    CHECK_STR_CONTAINS(upcall_backend_reason(loop), "io_uring_setup");
    CHECK_STR_CONTAINS(upcall_backend_reason(loop), "EPERM");
    exercise(loop);
    free_loop(loop);
}

static void expect_refusal(int error) {
    int fds = open_fd_count();
    upcall_config config = default_config();
    config.backend = UPCALL_BACKEND_IO_URING;
    upcall_loop *loop = (upcall_loop *)&config;
    CHECK_EQ(upcall_loop_new(&config, &loop), -error);
    CHECK(loop == NULL);
    CHECK(*upcall_last_error());
    config.backend = UPCALL_BACKEND_AUTO;
    setenv("UPCALL_BACKEND", "io_uring", 1); /* demands it too */
    loop = (upcall_loop *)&config;
    CHECK_EQ(upcall_loop_new(&config, &loop), -error);
    CHECK(loop == NULL);
    CHECK_EQ(open_fd_count(), fds);
}

TEST(a_forced_ring_that_is_denied_fails_with_the_errno) { /* hazards row 39 */
    filter_io_uring(SYS_io_uring_setup, SECCOMP_RET_ERRNO | EPERM);
    expect_refusal(EPERM);
}

TEST(a_forced_ring_that_is_missing_fails_with_the_errno) { /* hazards row 39 */
    filter_io_uring(SYS_io_uring_setup, SECCOMP_RET_ERRNO | ENOSYS);
    expect_refusal(ENOSYS);
}

struct denial {
    long number;
    int error;
};
static void live_with(void *arg) {
    struct denial *denial = arg;
    filter_io_uring(denial->number, SECCOMP_RET_ERRNO | (uint32_t)denial->error);
    unsetenv("UPCALL_BACKEND");
    int fds = open_fd_count();
    upcall_loop *loop = new_loop();
    if (denial->number != SYS_io_uring_register) /* a ring may do without registering anything */
        CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_EPOLL);
    CHECK(*upcall_backend_reason(loop));
    exercise(loop);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), fds);
}

TEST_FOR(every_way_to_deny_the_ring_leaves_a_working_loop, 60) { /* hazards row 39 */
    static const long numbers[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register};
    static const int errors[] = {EPERM, ENOSYS, EACCES, EINVAL};
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        for (size_t k = 0; k < COUNT_OF(errors); k++) {
            struct denial denial = {numbers[i], errors[k]};
            CHECK_EQ(in_child(live_with, &denial), 0);
        }
}

static void become_nobody(void) {
    if (geteuid() == 0)
        if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0)
            SKIP("root without the capability to become another user");
}

static void live_with_locked_memory(void *arg) {
    struct rlimit limit = {*(rlim_t *)arg, *(rlim_t *)arg};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    become_nobody();
    unsetenv("UPCALL_BACKEND");
    upcall_loop *loops[6];
    for (size_t i = 0; i < COUNT_OF(loops); i++) {
        loops[i] = new_loop();
        exercise(loops[i]);
    }
    for (size_t i = 0; i < COUNT_OF(loops); i++)
        free_loop(loops[i]);
}

TEST_FOR(little_lockable_memory_leaves_working_loops, 60) { /* hazards row 38 */
    static rlim_t sizes[] = {0, 65536, 8 << 20};
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        CHECK_EQ(in_child(live_with_locked_memory, &sizes[i]), 0);
}

TEST_FOR(loops_may_be_made_and_freed_at_a_high_rate, 60) { /* hazards row 38 */
    int fds = open_fd_count();
    for (int i = 0; i < 200; i++) {
        upcall_loop *loop = new_loop();
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        free_loop(loop);
    }
    CHECK_EQ(open_fd_count(), fds);
}

TEST(too_few_descriptors_are_reported_and_none_leaks) { /* hazards row 39 */
    for (unsigned more = 0; more < 8; more++) {
        int fds = open_fd_count();
        limit_descriptors(more);
        upcall_loop *loop = (upcall_loop *)&fds;
        int rc = upcall_loop_new(NULL, &loop);
        if (rc != 0) {
            CHECK_EQ(rc, -EMFILE);
            CHECK(loop == NULL);
        } else {
            CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
            free_loop(loop);
        }
        unlimit_descriptors();
        CHECK_EQ(open_fd_count(), fds);
        if (more == 0)
            CHECK_EQ(rc, -EMFILE);
    }
}

static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

static void *idle(void *arg) {
    return arg;
}

TEST(nothing_is_cancelled_or_lost_where_no_thread_can_be_made) { /* hazards row 4 */
    int file = temp_file(8192);
    struct rlimit limit = {0, 0};
    CHECK(setrlimit(RLIMIT_NPROC, &limit) == 0);
    become_nobody();
    pthread_t thread;
    if (pthread_create(&thread, NULL, idle, NULL) == 0)
        SKIP("threads cannot be forbidden here");
    upcall_loop *loop;
    int rc = upcall_loop_new(NULL, &loop);
    if (rc == -EAGAIN)
        return; /* told at once */
    CHECK_EQ(rc, 0);
    char data[8192];
    struct statx st;
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(complete(loop, upcall_op_pread(file, data, sizeof data, 0)).result, sizeof data);
        CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, sizeof data, 0)).result, sizeof data);
        CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
        CHECK_EQ(complete(loop, upcall_op_statx(file, "", AT_EMPTY_PATH, STATX_SIZE, &st)).result, 0);
        CHECK_EQ(st.stx_size, sizeof data);
        struct record work = complete(loop, upcall_op_work(seven, NULL));
        CHECK(work.result == 7 || work.result == -EAGAIN);
    }
    free_loop(loop);
}

static void forbid_threads(void) {
    struct rlimit limit = {0, 0};
    CHECK(setrlimit(RLIMIT_NPROC, &limit) == 0);
    become_nobody();
    pthread_t thread;
    if (pthread_create(&thread, NULL, idle, NULL) == 0)
        SKIP("threads cannot be forbidden here");
}

TEST(a_write_past_the_size_limit_raises_nothing_where_no_thread_can_be_made) {
    int file = temp_file(100);
    struct rlimit size = {100, 100};
    char data[10] = {0};
    forbid_threads();
    CHECK(setrlimit(RLIMIT_FSIZE, &size) == 0); /* SIGXFSZ would end the process */
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, sizeof data, 95)).result, 5);
    CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, sizeof data, 100)).result, -EFBIG);
    CHECK(lseek(file, 100, SEEK_SET) == 100);
    CHECK_EQ(complete(loop, upcall_op_write(file, data, sizeof data)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_ftruncate(file, 101)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_fallocate(file, 0, 0, 200)).result, -EFBIG);
    free_loop(loop);
}

static void open_without_threads(void *path) {
    struct recorder rec = {0};
    upcall_id ids[4];
    forbid_threads();
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 4; i++)
        ids[i] = submit_one(loop, upcall_op_open(AT_FDCWD, path, i % 2 ? O_RDONLY : O_WRONLY, 0), &rec);
    for (int i = 0; i < 10; i++) /* each is looked at again and again */
        CHECK(upcall_poll(loop, MS(20)) >= 0);
    CHECK_EQ(rec.count, 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    run_finals(loop, &rec, 4);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(rec.events[i].result, -ECANCELED);
    free_loop(loop);
}

TEST(an_open_of_a_fifo_waits_for_its_other_side_where_no_thread_can_be_made) {
    char directory[2048], path[4096];
    snprintf(directory, sizeof directory, "%s/upcall-fifo-XXXXXX", temp_directory());
    snprintf(path, sizeof path, "%s/fifo", mkdtemp(directory) ? directory : "");
    CHECK(chmod(directory, 0755) == 0 && mkfifo(path, 0600) == 0 && chmod(path, 0666) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        open_without_threads(path);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    unlink(path);
    rmdir(directory);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        SKIP("threads cannot be forbidden here");
    CHECK_EQ(status, 0);
}

static struct recorder by_work;
static unsigned posts_run;

static void count_post(upcall_loop *loop, void *arg) {
    (void)loop;
    (void)arg;
    posts_run++;
}

static int64_t use_the_loop(void *loop) {
    upcall_op ops[200];
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        ops[i] = i % 2 ? upcall_op_nop() : upcall_op_fsync(STDOUT_FILENO);
        ops[i].callback = record;
        ops[i].user = &by_work;
    }
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(upcall_submit(loop, ops, COUNT_OF(ops), NULL), 0);
        CHECK_EQ(upcall_post(loop, count_post, NULL), 0);
    }
    return 7;
}

TEST(work_may_use_the_loop_where_no_thread_can_be_made) {
    struct recorder rec = {0};
    forbid_threads();
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 3; i++)
        submit_one(loop, upcall_op_work(use_the_loop, loop), &rec);
    run_finals(loop, &rec, 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(rec.events[i].result, 7);
    run_finals(loop, &by_work, 3000);
    CHECK_EQ(posts_run, 15);
    upcall_id id = submit_one(loop, upcall_op_work(use_the_loop, loop), &rec);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    free_loop(loop);
}

static void give_rights_up(void *path) {
    upcall_loop *loop = new_loop();
    struct statx st;
    struct record opened = complete(loop, upcall_op_open(AT_FDCWD, path, O_RDWR, 0));
    CHECK(opened.result >= 0);
    CHECK_EQ(complete(loop, upcall_op_work(seven, NULL)).result, 7); /* the pool has threads now */
    CHECK_EQ(complete(loop, upcall_op_fsync((int)opened.result)).result, 0);
    become_nobody();
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(complete(loop, upcall_op_open(AT_FDCWD, path, O_RDONLY, 0)).result, -EACCES);
        CHECK_EQ(complete(loop, upcall_op_statx(AT_FDCWD, path, 0, STATX_SIZE, &st)).result, 0);
    }
    free_loop(loop);
}

TEST(operations_run_with_the_credentials_of_now) { /* hazards row 45 */
    if (geteuid() != 0)
        SKIP("only root can give rights up");
    char path[4096];
    snprintf(path, sizeof path, "%s/upcall-secret-XXXXXX", temp_directory());
    CHECK(mkostemp(path, O_CLOEXEC) >= 0); /* mode 0600 */
    int status = in_child(give_rights_up, path);
    unlink(path);
    CHECK_EQ(status, 0);
}

TEST(the_environment_is_ignored_in_a_set_user_id_program) {
    if (getauxval(AT_SECURE)) { /* the copy made below */
        if (ring_denied())
            SKIP("io_uring is denied here");
        CHECK_STR_EQ(getenv("UPCALL_BACKEND"), "epoll");
        upcall_loop *loop = new_loop();
        CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_IO_URING);
        free_loop(loop);
        return;
    }
    if (geteuid() != 0)
        SKIP("only root can make such a program");
#ifdef __SANITIZE_ADDRESS__
    SKIP("a leak sanitizer does not run in such a program");
#endif
    char path[4096], buffer[65536];
    snprintf(path, sizeof path, "%s/upcall-setuid-XXXXXX", temp_directory());
    int in = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), out = mkstemp(path);
    CHECK(in >= 0 && out >= 0);
    for (ssize_t n; (n = read(in, buffer, sizeof buffer)) > 0;)
        write_all(out, buffer, (size_t)n);
    CHECK(fchown(out, 65534, 65534) == 0 && fchmod(out, 04755) == 0);
    close(out);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        setenv("UPCALL_BACKEND", "epoll", 1);
        CHECK(setresuid(65533, 65533, 65533) == 0);
        execl(path, path, "the_environment_is_ignored", (char *)NULL);
        _exit(77);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    unlink(path);
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 77 || WEXITSTATUS(status) == 127))
        SKIP("a copy of this program cannot run as set-user-ID here");
    CHECK_EQ(status, 0);
}
