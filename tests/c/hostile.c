/* Hostile callers: each test is the shortest program that broke a promise, found by the boundary fuzzer or by reading. */
#include "check.h"

static void ignore(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
}

/* ---- What a loop had goes with it. ---- */

static long pinned_kb(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    long pinned = -1;
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) && sscanf(line, "VmPin: %ld", &pinned) != 1) {}
    fclose(status);
    return pinned;
}

/* Its thread keeps no ring: the memory that was pinned for it is unpinned. (The kernel does that a little later.) */
static void nothing_stays_pinned(long before) {
    for (uint64_t limit = now_ns() + PATIENCE_NS; pinned_kb() > before; pause_ms(5))
        if (now_ns() > limit)
            fail(HERE, "%ld KiB are pinned, %ld before", pinned_kb(), before);
}

static char pinned[1 << 20] __attribute__((aligned(4096)));

static upcall_loop *loop_with_pinned(void) {
    upcall_loop *loop = new_loop();
    struct iovec part = {pinned, sizeof pinned};
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_register_buffers(loop, &part, 1), 0);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    return loop;
}

TEST(a_freed_loop_pins_nothing) {
    long before = pinned_kb();
    memset(pinned, 1, sizeof pinned);
    for (int i = 0; i < 20; i++)
        free_loop(loop_with_pinned());
    nothing_stays_pinned(before);
}

static void *poll_and_free(void *arg) {
    CHECK_EQ(upcall_poll(arg, 0), 0);
    free_loop(arg);
    return NULL;
}

TEST(a_thread_keeps_nothing_of_a_loop_that_it_gave_up) {
    long before = pinned_kb();
    memset(pinned, 1, sizeof pinned);
    for (int i = 0; i < 3; i++) {
        pthread_t other;
        upcall_loop *loop = loop_with_pinned();
        CHECK_EQ(upcall_loop_detach(loop), 0);
        CHECK_EQ(pthread_create(&other, NULL, poll_and_free, loop), 0);
        CHECK_EQ(pthread_join(other, NULL), 0);
    }
    nothing_stays_pinned(before);
}

static void *poll_and_exit(void *arg) {
    CHECK_EQ(upcall_poll(arg, 0), 0);
    return NULL;
}

/* The places of rings are each thread's own: freeing a dead thread's loop takes away none of this thread's. */
TEST(the_loop_of_a_dead_thread_takes_nothing_away) {
    upcall_loop *mine = new_loop(), *theirs = new_loop();
    pthread_t other;
    CHECK_EQ(upcall_poll(mine, 0), 0);
    CHECK_EQ(pthread_create(&other, NULL, poll_and_exit, theirs), 0);
    CHECK_EQ(pthread_join(other, NULL), 0);
    CHECK_EQ(upcall_loop_free(theirs), 0);
    CHECK_EQ(complete(mine, upcall_op_nop()).result, 0);
    free_loop(mine);
}

/* ---- Fields that a constructor sets and a program changes. ---- */

/* A descriptor that was not the child's: its list would have lost what it held, and its close would have waited for ever. */
TEST(a_waitid_with_a_descriptor_of_its_own_is_refused) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    char byte;
    CHECK_EQ(pipe(fds), 0);
    upcall_op op = upcall_op_waitid(P_PID, (uint32_t)getppid(), NULL, WEXITED);
    op.callback = ignore;
    op.fd = fds[0];
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "fd");
    op = upcall_op_waitid(P_PIDFD, (uint32_t)fds[1], NULL, WEXITED);
    op.fd = -1;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -EINVAL);
    submit_one(loop, upcall_op_read(fds[0], &byte, 1), &rec);
    submit_one(loop, upcall_op_close(fds[0]), &rec);
    run_finals(loop, &rec, 2);
    close(fds[1]);
    free_loop(loop);
}

TEST(a_message_with_more_control_data_than_memory_is_refused) {
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 2, 64, &pool), 0);
    for (size_t less = 0; less < 128; less += 8) {
        struct msghdr msg = {.msg_namelen = 64, .msg_controllen = SIZE_MAX - less};
        upcall_op op = upcall_op_recvmsg(0, &msg, 0);
        op.buffers = pool;
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -EINVAL);
        CHECK_STR_CONTAINS(upcall_last_error(), "msg_controllen");
    }
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
}

/* ---- Records that are dropped. ---- */

static int open_descriptors(void) {
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* One message with two descriptors. */
static void pass_two(int to) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(2 * sizeof(int))}};
    struct iovec part = {(char *)"x", 1};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    memcpy(CMSG_DATA(&control.header), (int[]){to, to}, 2 * sizeof(int));
    CHECK_EQ(sendmsg(to, &msg, 0), 1);
}

enum way { OWN, LENT, MULTISHOT };

/* What came with a message that nobody reaped is closed with the loop; what came with one that was reaped is the program's. */
static void passed_descriptors(enum way way, int name_room) {
    int before = open_descriptors(), pair[2], fd[2];
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    upcall_event event;
    char bytes[8], name[128];
    union {
        struct cmsghdr header;
        char bytes[64];
    } control;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    CHECK_EQ(upcall_buffers_new(loop, 4, 512, &pool), 0);
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr msg = {.msg_name = name_room ? name : NULL, .msg_namelen = (socklen_t)name_room, .msg_iov = &part, .msg_iovlen = 1,
                         .msg_control = &control, .msg_controllen = sizeof control};
    pass_two(pair[1]);
    pass_two(pair[1]);
    upcall_op op = upcall_op_recvmsg(pair[0], &msg, 0);
    op.buffers = way == OWN ? NULL : pool;
    op.flags = way == MULTISHOT ? UPCALL_MULTISHOT : 0;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    CHECK(upcall_poll(loop, PATIENCE_NS) >= 1);
    CHECK_EQ(upcall_reap(loop, &event, 1), 1);
    CHECK_EQ(event.result, 1);
    if (way != OWN)
        memcpy(&control, upcall_msg_control(event.buffer, &msg), sizeof control);
    memcpy(fd, CMSG_DATA(&control.header), sizeof fd);
    if (way != OWN)
        CHECK_EQ(upcall_buffers_return(pool, event.buffer), 0);
    msg.msg_controllen = sizeof control;
    if (way != MULTISHOT)
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; open_descriptors() < before + 6 && now_ns() < limit;)
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    /* The pair of sockets, two twice; and the loop's own. */
    CHECK(open_descriptors() >= before + 6);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    CHECK(close(fd[0]) == 0 && close(fd[1]) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
    CHECK_EQ(open_descriptors(), before);
}

TEST(descriptors_of_a_dropped_message_are_closed) { passed_descriptors(OWN, 0); }
TEST(descriptors_of_a_dropped_lent_message_are_closed) { passed_descriptors(LENT, 0); }
TEST(descriptors_of_a_dropped_lent_message_behind_a_name_are_closed) { passed_descriptors(LENT, 13); }
TEST(descriptors_of_a_dropped_multishot_message_are_closed) { passed_descriptors(MULTISHOT, 13); }

/* ---- No thread is to be had. ---- */

static volatile sig_atomic_t raised;
static void note_signal(int signo) { raised = signo; }

/* What a thread of the pool would do is then done by the loop's own, which does not block the signals of writes. */
TEST(without_threads_no_write_raises_a_signal) {
    char path[] = "/tmp/upcall-hostile-XXXXXX", bytes[16] = "x";
    upcall_loop *loop;
    int fd = mkstemp(path);
    CHECK(fd >= 0 && unlink(path) == 0);
    struct rlimit none = {0, 0}, small = {4096, 4096};
    signal(SIGXFSZ, note_signal);
    /* Root has no limit of threads. */
    CHECK(geteuid() != 0 || (setgid(54321) == 0 && setuid(54321) == 0));
    CHECK_EQ(setrlimit(RLIMIT_NPROC, &none), 0);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    CHECK_EQ(upcall_loop_new(NULL, &loop), 0);
    CHECK_EQ(complete(loop, upcall_op_pwrite(fd, bytes, sizeof bytes, 8192)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_fallocate(fd, 0, 0, 8192)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_ftruncate(fd, 8192)).result, -EFBIG);
    CHECK_EQ(raised, 0);
    free_loop(loop);
    close(fd);
}

/* ---- Many. ---- */

#define CROWD 250000
static upcall_loop *crowded;
static upcall_id ids[CROWD];

static void *crowd(void *unused) {
    (void)unused;
    upcall_op op = upcall_op_sleep(3600 * UPCALL_SECOND);
    op.callback = ignore;
    for (int i = 0; i < CROWD; i++)
        CHECK_EQ(upcall_submit(crowded, &op, 1, &ids[i]), 0);
    return NULL;
}

static void make_crowd(void) {
    pthread_t other;
    crowded = new_loop();
    CHECK_EQ(upcall_poll(crowded, 0), 0);
    CHECK_EQ(pthread_create(&other, NULL, crowd, NULL), 0);
    CHECK_EQ(pthread_join(other, NULL), 0);
    CHECK_EQ(in_flight(crowded), CROWD);
}

/* Once these took the square of their number: longer than a test may. */
TEST(many_submits_of_another_thread_end_with_the_loop) {
    make_crowd();
    CHECK_EQ(upcall_loop_free(crowded), 0);
}

TEST(many_cancels_come_before_their_submits_are_seen) {
    make_crowd();
    for (size_t i = CROWD; i-- > 0;)
        CHECK_EQ(upcall_cancel(crowded, ids[i]), 0);
    while (in_flight(crowded) > 0)
        CHECK(upcall_poll(crowded, 0) >= 0);
    free_loop(crowded);
}
