/*
 * pipe: two descriptors that are delivered or closed, never lost; and that a thread which exits leaves none behind.
 */
#include "op_support.h"

/* ---- Subjects. The two descriptors are put into scene->data. ---- */

enum { PLAIN, NONBLOCK, PACKETS };

static void set_nothing(struct scene *scene) {
    (void)scene;
}

static int flags_of(const struct scene *scene) {
    switch (scene->subject->object) {
    case NONBLOCK: return O_NONBLOCK;
    case PACKETS: return O_DIRECT | O_CLOEXEC;
    default: return 0;
    }
}

static upcall_op make_pipe(struct scene *scene) {
    return upcall_op_pipe((int *)(void *)scene->data, flags_of(scene));
}

static void is_pipe(struct scene *scene, struct record final) {
    int fds[2];
    char bytes[8] = {0};
    memcpy(fds, scene->data, sizeof fds);
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK_EQ(scene->data[sizeof fds], 0xee);
    for (int i = 0; i < 2; i++) {
        CHECK(is_cloexec(fds[i]));
        CHECK_EQ(has_nonblock(fds[i]), scene->subject->object == NONBLOCK);
    }
    CHECK_EQ((fcntl(fds[1], F_GETFL) & O_DIRECT) != 0, scene->subject->object == PACKETS); /* the writer's alone */
    write_all(fds[1], "a", 1);
    write_all(fds[1], "b", 1);
    CHECK_EQ(read(fds[0], bytes, sizeof bytes), scene->subject->object == PACKETS ? 1 : 2);
    CHECK_EQ(bytes[0], 'a');
    close_pair(fds);
}

/* What was made and not delivered shows as leaked descriptors. */
static void nothing_made(struct scene *scene) {
    CHECK_EQ(scene->data[0], 0xee);
}

#define PIPES(name, object_)                                                                                           \
    static const struct subject name = {.kind = UPCALL_OP_PIPE, .object = object_, .set_up = set_nothing,              \
        .make = make_pipe, .done = is_pipe, .intact = nothing_made};                                                   \
    PROMISES_IN_MODE(name, any, false)
PIPES(plain_pipe, PLAIN)
PIPES(nonblocking_pipe, NONBLOCK)
PIPES(packet_pipe, PACKETS)

/* ---- Names, arguments. ---- */

TEST(pipe_is_known) {
    is_known(UPCALL_OP_PIPE, "pipe");
}

TEST(pipe_refuses_strange_fields) {
    int fds[2];
    refuses_strange_fields(upcall_op_pipe(fds, 0), 0);
}

TEST(pipe_refuses_bad_arguments) {
    static const int unknown[] = {O_APPEND, O_CREAT, O_RDWR, O_SYNC, INT_MIN, 1 << 30};
    int fds[2] = {-7, -7};
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_pipe(NULL, 0), EINVAL, "fds is NULL");
    for (size_t i = 0; i < COUNT_OF(unknown); i++)
        refused(loop, upcall_op_pipe(fds, unknown[i]), EINVAL, "flags");
    CHECK(fds[0] == -7 && fds[1] == -7);
    free_loop(loop);
}

/* A kernel without notification pipes says so, the same as pipe2(2). */
TEST(a_notification_pipe_is_as_the_kernel_has_it) {
    int fds[2] = {-7, -7}, same[2], rc = pipe2(same, O_EXCL) == 0 ? 0 : -errno;
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_pipe(fds, O_EXCL), rc);
    if (rc == 0) {
        close_pair(same);
        close_pair(fds);
    } else {
        CHECK(fds[0] == -7 && fds[1] == -7);
    }
    free_loop(loop);
}

/* ---- Descriptors run out: neither or both. ---- */

TEST(without_descriptors_nothing_is_made) {
    struct rlimit limit;
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_nop(), 0);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int left = 0; left < 3; left++) {
        int fds[2] = {-7, -7}, before = open_fd_count(), next = fcntl(0, F_DUPFD_CLOEXEC, 0);
        close(next);
        /* The free numbers below the limit are filled, but for `left` of them. */
        struct rlimit low = {(rlim_t)next + 64, limit.rlim_max};
        CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
        int taken[256], count = 0;
        while ((taken[count] = fcntl(0, F_DUPFD_CLOEXEC, 0)) >= 0)
            count++;
        CHECK_EQ(errno, EMFILE);
        for (int i = 0; i < left; i++)
            close(taken[--count]);
        ends_with(loop, upcall_op_pipe(fds, 0), left < 2 ? -EMFILE : 0);
        while (count > 0)
            close(taken[--count]);
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        if (left < 2)
            CHECK(fds[0] == -7 && fds[1] == -7);
        else
            close_pair(fds);
        CHECK_EQ(open_fd_count(), before);
    }
    free_loop(loop);
}

/* ---- Delivered or closed. ---- */

/* A record that is never reaped is dropped with the loop, and its pipe closed; one that was reaped is the program's. */
TEST(a_pipe_that_nobody_reaped_is_closed_with_the_loop) {
    warm_up();
    for (size_t reaped = 0; reaped <= 3; reaped++) {
        int fds[3][2], before = open_fd_count();
        upcall_event events[3];
        upcall_loop *loop = new_loop();
        upcall_op ops[5] = {upcall_op_pipe(fds[0], 0), upcall_op_nop(), upcall_op_pipe(fds[1], 0),
                            upcall_op_socket(AF_UNIX, SOCK_STREAM, 0), upcall_op_pipe(fds[2], 0)};
        for (size_t i = 0; i < COUNT_OF(ops); i++)
            ops[i].flags = i + 1 < COUNT_OF(ops) ? UPCALL_LINK : 0; /* so that their order is known */
        CHECK_EQ(upcall_submit(loop, ops, COUNT_OF(ops), NULL), 0);
        for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; in_flight(loop) > 0;) {
            CHECK(upcall_poll(loop, 0) >= 0);
            CHECK(now_ns() < limit);
        }
        CHECK_EQ(upcall_reap(loop, events, reaped), reaped); /* the first is a pipe, the third is one, too */
        for (size_t i = 0; i < reaped; i++) {
            CHECK_EQ(events[i].result, 0);
            CHECK(events[i].reserved[0] == 0 && events[i].reserved[1] == 0);
        }
        free_loop(loop);
        CHECK_EQ(open_fd_count(), before + (reaped >= 1 ? 2 : 0) + (reaped >= 3 ? 2 : 0));
        if (reaped >= 1)
            close_pair(fds[0]);
        if (reaped >= 3)
            close_pair(fds[1]);
        CHECK_EQ(open_fd_count(), before);
    }
}

/* Cancelled at any moment it either was made and is told, or was not made. */
TEST(pipes_that_race_with_cancel_are_made_or_not) {
    enum { COUNT = 50, ROUNDS = 20 };
    warm_up();
    int before = open_fd_count();
    upcall_loop *loop = new_loop();
    int with_loop = open_fd_count();
    for (int round = 0; round < ROUNDS; round++) {
        struct recorder rec = {0};
        static int fds[COUNT][2];
        upcall_op ops[COUNT];
        upcall_id ids[COUNT];
        for (size_t i = 0; i < COUNT; i++) {
            fds[i][0] = fds[i][1] = -1;
            ops[i] = upcall_op_pipe(fds[i], 0);
        }
        submit_many(loop, ops, COUNT, &rec, ids);
        for (size_t i = round % 3; i < COUNT; i += 2)
            CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
        run_finals(loop, &rec, COUNT);
        check_finals(&rec, ids, COUNT);
        for (size_t i = 0; i < COUNT; i++) {
            int64_t result = final_of(&rec, ids[i]).result;
            CHECK(result == 0 || result == -ECANCELED);
            CHECK_EQ(fds[i][0] >= 0 && fds[i][1] >= 0, result == 0);
            if (result == 0)
                close_pair(fds[i]);
        }
        CHECK_EQ(open_fd_count(), with_loop);
        forget(&rec);
    }
    free_loop(loop);
    CHECK_EQ(open_fd_count(), before);
}

/* The owner exits with operations that make descriptors queued: none is made, and none of the program's is closed (a
   queued operation that is withdrawn ends as a NOP, whose 0 is not descriptor 0). */
static void *own_and_exit(void *arg) {
    static int fds[2];
    upcall_loop *loop = arg;
    upcall_op ops[3] = {upcall_op_socket(AF_UNIX, SOCK_STREAM, 0), upcall_op_pipe(fds, 0),
                        upcall_op_open(AT_FDCWD, "/dev/null", O_RDONLY, 0)};
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_submit(loop, ops, COUNT_OF(ops), NULL), 0);
    return NULL;
}

TEST(an_owner_that_exits_leaves_no_descriptor_and_closes_none) {
    warm_up();
    int null = open("/dev/null", O_RDONLY); /* descriptor 0 is open, whatever the test was started with */
    CHECK(null >= 0 && dup2(null, 0) == 0);
    int before = open_fd_count();
    upcall_loop *loop = new_loop();
    join(start(own_and_exit, loop));
    CHECK(is_open(0));
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK(is_open(0));
    CHECK_EQ(open_fd_count(), before);
}

/* ---- Order. ---- */

TEST(a_chain_that_begins_with_a_pipe) {
    struct recorder rec = {0};
    upcall_id ids[2];
    int fds[2];
    upcall_loop *loop = new_loop();
    upcall_op ops[2] = {upcall_op_pipe(fds, 0), upcall_op_nop()};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    CHECK(order_of(&rec, ids[0]) < order_of(&rec, ids[1]));
    close_pair(fds);
    free_loop(loop);
    forget(&rec);
}
