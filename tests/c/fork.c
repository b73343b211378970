/* fork(2): the child may not touch an inherited loop, and the parent does not notice that there was one. */
#include "check.h"
#include <stdatomic.h>

static upcall_loop *loop;
static upcall_buffers *pool;
static struct recorder rec;
static upcall_id pending;
static int fds[2];
static char data[64];

static void count_post(upcall_loop *of, void *arg) {
    (void)of;
    ++*(int *)arg;
}

/* The parent's state at the fork: a receive and a sleep in flight, one operation queued but not handed over. */
static void prepare(void) {
    unix_pair(fds);
    loop = new_loop();
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    pending = submit_one(loop, upcall_op_recv(fds[0], data, 8, 0), &rec);
    start_all(loop);
    submit_one(loop, upcall_op_sleep(20 * UPCALL_MILLISECOND), &rec);
    CHECK_EQ(rec.count, 0);
}

/* … and afterwards everything goes on. */
static void go_on(void) {
    write_all(fds[1], "abcdefgh", 8);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, pending).result, 8);
    CHECK(memcmp(data, "abcdefgh", 8) == 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    int file = temp_file(100);
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

static void try_every_call(void *arg) {
    (void)arg;
    upcall_op op = upcall_op_nop();
    upcall_event event;
    upcall_stats stats;
    upcall_buffers *made = NULL;
    int ran = 0;
    op.callback = never;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -ECHILD);
    CHECK_STR_CONTAINS(upcall_last_error(), "process");
    CHECK_EQ(upcall_poll(loop, 0), -ECHILD);
    CHECK_EQ(upcall_poll(loop, -1), -ECHILD);
    CHECK_EQ(upcall_run(loop), -ECHILD);
    CHECK_EQ(upcall_cancel(loop, pending), -ECHILD);
    CHECK_EQ(upcall_cancel_fd(loop, fds[0]), -ECHILD);
    CHECK_EQ(upcall_cancel_all(loop), -ECHILD);
    CHECK_EQ(upcall_reap(loop, &event, 1), -ECHILD);
    CHECK_EQ(upcall_loop_close(loop, -1), -ECHILD);
    CHECK_EQ(upcall_loop_detach(loop), -ECHILD);
    CHECK_EQ(upcall_stop(loop), -ECHILD);
    CHECK_EQ(upcall_hold(loop), -ECHILD);
    CHECK_EQ(upcall_unhold(loop), -ECHILD);
    CHECK_EQ(upcall_post(loop, count_post, &ran), -ECHILD);
    CHECK_EQ(upcall_fd(loop), -ECHILD);
    CHECK_EQ(upcall_stats_get(loop, &stats), -ECHILD);
    CHECK_EQ(upcall_supports(loop, UPCALL_OP_NOP), -ECHILD);
    CHECK_EQ(upcall_buffers_new(loop, 1, 1, &made), -ECHILD);
    CHECK_EQ(ran, 0);
}

static void free_it(void *arg) {
    try_every_call(arg);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(rec.count, 0); /* it runs nothing */
}

TEST(every_call_in_a_forked_child_is_echild) { /* hazards row 2 */
    prepare();
    CHECK_EQ(in_child(try_every_call, NULL), 0);
    go_on();
}

TEST(freeing_the_loop_in_a_forked_child_leaves_the_parents_alone) { /* hazards row 2 */
    prepare();
    CHECK_EQ(in_child(free_it, NULL), 0);
    go_on();
}

TEST(many_children_that_free_the_loop_leave_the_parents_alone) { /* hazards row 2 */
    prepare();
    for (int i = 0; i < 10; i++)
        CHECK_EQ(in_child(i % 2 ? free_it : try_every_call, NULL), 0);
    go_on();
}

static void return_from(void *arg) {
    (void)arg;
}

TEST(a_child_that_only_exits_leaves_the_parents_loop_alone) { /* hazards row 2 */
    prepare();
    CHECK_EQ(in_child(return_from, NULL), 0);
    go_on();
}

static void become_true(void *arg) {
    (void)arg;
    execl("/bin/true", "true", (char *)NULL);
    _exit(1);
}

TEST(a_child_that_executes_a_program_leaves_the_parents_loop_alone) { /* hazards row 2 */
    prepare();
    CHECK_EQ(in_child(become_true, NULL), 0);
    go_on();
}

TEST(a_loop_that_was_never_polled_is_not_the_childs_either) { /* hazards row 2 */
    unix_pair(fds);
    loop = new_loop();
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    pending = submit_one(loop, upcall_op_recv(fds[0], data, 8, 0), &rec);
    submit_one(loop, upcall_op_sleep(UPCALL_MILLISECOND), &rec);
    CHECK_EQ(in_child(free_it, NULL), 0);
    go_on();
}

/* ---- Both live on. ---- */

static int to_child[2], to_parent[2];

static pid_t fork_and_stay(void) {
    pipe_pair(to_child);
    pipe_pair(to_parent);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char byte;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        write_all(to_parent[1], "", 1);
        read_all(to_child[0], &byte, 1);
        free_it(NULL);
        _exit(0);
    }
    char byte;
    read_all(to_parent[0], &byte, 1);
    return child;
}

static void end_child(pid_t child) {
    int status;
    write_all(to_child[1], "", 1);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

TEST(the_parent_frees_its_loop_while_a_child_still_holds_its_descriptors) { /* hazards rows 1, 2 */
    prepare();
    pid_t child = fork_and_stay();
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(rec.finals, 2);
    CHECK_EQ(final_of(&rec, pending).result, -ECANCELED);
    memset(data, 0xee, sizeof data);
    write_all(fds[1], "abcdefgh", 8); /* the child's copy of the descriptor is still open */
    pause_ms(20);
    for (size_t i = 0; i < sizeof data; i++)
        CHECK_EQ((unsigned char)data[i], 0xee);
    char back[8];
    read_all(fds[0], back, 8);
    CHECK(memcmp(back, "abcdefgh", 8) == 0);
    end_child(child);
    CHECK_EQ(upcall_buffers_free(pool), 0);
}

TEST(the_parent_works_on_while_a_child_is_alive) { /* hazards row 2 */
    prepare();
    pid_t child = fork_and_stay();
    for (int i = 0; i < 200; i++) {
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        int pair[2]; /* numbers that the child has no copy of, closed and used again */
        char byte = 0;
        struct recorder mine = {0};
        unix_pair(pair);
        submit_one(loop, upcall_op_recv(pair[0], &byte, 1, 0), &mine);
        start_all(loop);
        write_all(pair[1], "x", 1);
        run_finals(loop, &mine, 1);
        CHECK_EQ(mine.events[0].result, 1);
        CHECK_EQ(byte, 'x');
        close_pair(pair);
        forget(&mine);
    }
    end_child(child);
    go_on();
}

TEST(descriptors_inherited_by_a_child_are_no_ghosts_when_the_parent_reuses_their_numbers) { /* hazards rows 2, 11 */
    loop = new_loop();
    for (int round = 0; round < 5; round++) {
        int pair[2];
        char byte = 0;
        unix_pair(pair);
        struct recorder mine = {0};
        submit_one(loop, upcall_op_recv(pair[0], &byte, 1, 0), &mine);
        start_all(loop);
        write_all(pair[1], "x", 1);
        run_finals(loop, &mine, 1);
        pipe_pair(to_child);
        pid_t child = fork(); /* which holds both ends, so that the files live on */
        CHECK(child >= 0);
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(to_child[1]);
            while (read(to_child[0], &byte, 1) > 0) {} /* until the parent closes its end */
            _exit(0);
        }
        close(to_child[0]);
        int old_writer = fcntl(pair[1], F_DUPFD_CLOEXEC, 100), number = pair[0];
        close_pair(pair);
        unix_pair(pair);
        CHECK(pair[0] == number || pair[1] == number);
        int reader = number, writer = pair[0] == number ? pair[1] : pair[0];
        submit_one(loop, upcall_op_recv(reader, &byte, 1, 0), &mine);
        start_all(loop);
        write_all(old_writer, "o", 1); /* stirs the old file, which is not ours any more */
        for (int i = 0; i < 5; i++)
            CHECK(upcall_poll(loop, MS(2)) >= 0);
        CHECK_EQ(mine.count, 1);
        write_all(writer, "n", 1);
        run_finals(loop, &mine, 2);
        CHECK_EQ(mine.events[1].result, 1);
        CHECK_EQ(byte, 'n');
        close_pair(pair);
        close(old_writer);
        close(to_child[1]);
        CHECK(waitpid(child, NULL, 0) == child);
        forget(&mine);
    }
    free_loop(loop);
}

/* ---- The child's own loop. ---- */

static void work_with_a_new_loop(void *arg) {
    (void)arg;
    CHECK_EQ(upcall_poll(loop, 0), -ECHILD);
    upcall_loop *own = new_loop();
    int pair[2], file = temp_file(100);
    char byte = 0;
    pipe_pair(pair);
    struct recorder mine = {0};
    CHECK_EQ(complete(own, upcall_op_nop()).result, 0);
    submit_one(own, upcall_op_read(pair[0], &byte, 1), &mine);
    start_all(own);
    write_all(pair[1], "x", 1);
    run_finals(own, &mine, 1);
    CHECK_EQ(byte, 'x');
    CHECK_EQ(complete(own, upcall_op_fsync(file)).result, 0); /* and a pool of its own */
    CHECK_EQ(complete(own, upcall_op_sleep(UPCALL_MILLISECOND)).result, 0);
    CHECK_EQ(upcall_poll(loop, 0), -ECHILD); /* still not */
    upcall_loop *inherited = loop;
    loop = own;
    CHECK_EQ(in_child(try_every_call, NULL), 0); /* a grandchild is a child of this one */
    loop = inherited;
    free_loop(own);
    CHECK_EQ(upcall_loop_free(loop), 0);
    own = new_loop();
    CHECK_EQ(complete(own, upcall_op_nop()).result, 0);
    free_loop(own);
}

TEST(a_new_loop_made_in_the_child_works) { /* hazards row 2 */
    prepare();
    for (int i = 0; i < 3; i++)
        CHECK_EQ(in_child(work_with_a_new_loop, NULL), 0);
    go_on();
}

static atomic_int entered, leave;
static int64_t work_on(void *arg) {
    (void)arg;
    atomic_store(&entered, 1);
    while (!atomic_load(&leave))
        pause_ms(1);
    return 5;
}

TEST(work_in_progress_does_not_notice_a_fork) { /* hazards row 2 */
    prepare();
    struct recorder work = {0};
    submit_one(loop, upcall_op_work(work_on, NULL), &work);
    while (!atomic_load(&entered))
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    CHECK_EQ(in_child(try_every_call, NULL), 0);
    CHECK_EQ(in_child(work_with_a_new_loop, NULL), 0);
    atomic_store(&leave, 1);
    run_finals(loop, &work, 1);
    CHECK_EQ(work.events[0].result, 5);
    go_on();
}

static void fork_inside(upcall_loop *of, const upcall_event *event) {
    CHECK_EQ(in_child(try_every_call, NULL), 0);
    record(of, event);
}

TEST(a_callback_may_fork) { /* hazards row 2 */
    prepare();
    struct recorder mine = {0};
    upcall_op op = upcall_op_nop();
    op.callback = fork_inside;
    op.user = &mine;
    submit_one(loop, op, &mine);
    run_finals(loop, &mine, 1);
    go_on();
}
