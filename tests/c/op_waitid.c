/* upcall_op_waitid(): children. */
#include "op_support.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ptrace.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#define CALL(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1)

static int pidfd_of(pid_t pid) {
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 && errno == ENOSYS)
        SKIP("this kernel has no pidfd");
    if (fd < 0 && denied("pidfd"))
        SKIP("pidfd_open is denied");
    CHECK(fd >= 0);
    return fd;
}

/* ---- Children: each waits at a pipe, and does what it reads there. ---- */

struct child {
    pid_t pid;
    int orders;
};

static struct child new_child(void) {
    int fds[2];
    char order;
    pipe_pair(fds);
    struct child child = {fork(), fds[1]};
    CHECK(child.pid >= 0);
    if (child.pid > 0) {
        close(fds[0]);
        return child;
    }
    close(fds[1]);
    while (read(fds[0], &order, 1) == 1)
        if (order == 'e')
            _exit(7);
    _exit(8);
}

static void order(struct child *child, char what) {
    if (what == 's')
        CHECK(kill(child->pid, SIGSTOP) == 0);
    else if (what == 'c')
        CHECK(kill(child->pid, SIGCONT) == 0);
    else if (what == 'k')
        CHECK(kill(child->pid, SIGKILL) == 0);
    else
        write_all(child->orders, &what, 1);
}

/* Until waitid(2) would tell it, which it does not take away. */
static siginfo_t state_of(pid_t pid, int options) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    CHECK(waitid(P_PID, (id_t)pid, &info, options | WNOWAIT) == 0);
    CHECK_EQ(info.si_pid, pid);
    return info;
}

/* What /proc says of it: '\0' for one that is gone. It takes nothing away, and an operation under way may: where the kernel
   completes it before the loop is polled, nothing is left for a waitid(2) of ours. */
static char process_state(pid_t pid) {
    char path[64], line[256], state = '\0';
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return '\0';
    if (fgets(line, sizeof line, file) != NULL) {
        const char *after = strrchr(line, ')'); /* the name may hold anything */
        CHECK(after != NULL && sscanf(after, ") %c", &state) == 1);
    }
    fclose(file);
    return state;
}

/* Until its state is one of `states`, or is none of them. */
static void await_state(pid_t pid, const char *states, bool one_of) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    for (char state; (state = process_state(pid)), (state == '\0' || strchr(states, state) != NULL) != one_of;) {
        CHECK(now_ns() < limit);
        pause_ms(1);
    }
}

static void reap_child(struct child *child) {
    CHECK(kill(child->pid, SIGKILL) == 0);
    CHECK(waitpid(child->pid, NULL, 0) == child->pid);
    close(child->orders);
}

static void check_info(const siginfo_t *info, pid_t pid, int code, int status) {
    CHECK_EQ(info->si_signo, SIGCHLD);
    CHECK_EQ(info->si_errno, 0);
    CHECK_EQ(info->si_pid, pid);
    CHECK_EQ(info->si_uid, getuid());
    CHECK_EQ(info->si_code, code);
    CHECK_EQ(info->si_status, status);
}

/* ---- Names and arguments. ---- */

TEST(waitid_is_known) { is_known(UPCALL_OP_WAITID, "waitid"); }
TEST(waitid_refuses_strange_fields) { refuses_strange_fields(upcall_op_waitid(P_ALL, 0, NULL, WEXITED), 0); }

TEST(what_cannot_be_waited_for_is_refused) {
    upcall_loop *loop = new_loop();
    siginfo_t info;
    refused(loop, upcall_op_waitid(4, 1, &info, WEXITED), EINVAL, "idtype");
    refused(loop, upcall_op_waitid(UINT32_MAX, 1, &info, WEXITED), EINVAL, "idtype");
    refused(loop, upcall_op_waitid(P_PID, 0, &info, WEXITED), EINVAL, "id ");
    refused(loop, upcall_op_waitid(P_PID, UINT32_MAX, &info, WEXITED), EINVAL, "id ");
    refused(loop, upcall_op_waitid(P_PGID, UINT32_C(1) << 31, &info, WEXITED), EINVAL, "id ");
    refused(loop, upcall_op_waitid(P_PIDFD, UINT32_MAX, &info, WEXITED), EINVAL, "id ");
    refused(loop, upcall_op_waitid(P_ALL, 0, &info, 0), EINVAL, "options");
    refused(loop, upcall_op_waitid(P_ALL, 0, &info, WNOWAIT), EINVAL, "options");
    refused(loop, upcall_op_waitid(P_ALL, 0, &info, WEXITED | WNOHANG), EINVAL, "WNOHANG");
    refused(loop, upcall_op_waitid(P_ALL, 0, &info, WEXITED | 0x100), EINVAL, "options");
    refused(loop, upcall_op_waitid(P_ALL, 0, &info, -1 & ~WNOHANG), EINVAL, "options");
    free_loop(loop);
}

/* ---- What every operation promises. ---- */

static struct child child;
enum { BY_PID, BY_PIDFD, BY_GROUP, BY_ALL };

static void a_child(struct scene *scene) {
    child = new_child();
    CHECK(setpgid(child.pid, child.pid) == 0);
    if (scene->subject->object == BY_PIDFD)
        scene->fd = pidfd_of(child.pid);
    scene->extra = child.orders;
}

static void a_stopped_child(struct scene *scene) {
    a_child(scene);
    order(&child, 's');
    state_of(child.pid, WSTOPPED);
}

static upcall_op wait_for(struct scene *scene, int options) {
    switch (scene->subject->object) {
    case BY_PID: return upcall_op_waitid(P_PID, (uint32_t)child.pid, scene->data, options);
    case BY_PIDFD: return upcall_op_waitid(P_PIDFD, (uint32_t)scene->fd, scene->data, options);
    case BY_GROUP: return upcall_op_waitid(P_PGID, (uint32_t)child.pid, scene->data, options);
    default: return upcall_op_waitid(P_ALL, 0, scene->data, options);
    }
}

static upcall_op wait_exit(struct scene *scene) { return wait_for(scene, WEXITED); }
static upcall_op wait_stop(struct scene *scene) { return wait_for(scene, WSTOPPED); }
static upcall_op wait_continue(struct scene *scene) { return wait_for(scene, WCONTINUED); }

static void exits(struct scene *scene) {
    (void)scene;
    order(&child, 'e');
    await_state(child.pid, "ZX", true);
}

static void stops(struct scene *scene) {
    (void)scene;
    order(&child, 's');
    await_state(child.pid, "T", true);
}

static void continues(struct scene *scene) {
    (void)scene;
    order(&child, 'c');
    await_state(child.pid, "T", false);
}

static void check_told(struct scene *scene, struct record final, int code, int status) {
    siginfo_t *info = (siginfo_t *)scene->data;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    check_info(info, child.pid, code, status);
}

static void exit_told(struct scene *scene, struct record final) {
    siginfo_t info;
    check_told(scene, final, CLD_EXITED, 7);
    CHECK(waitid(P_PID, (id_t)child.pid, &info, WEXITED) == -1 && errno == ECHILD); /* reaped */
}

static void kill_it(void) {
    siginfo_t info;
    CHECK(kill(child.pid, SIGKILL) == 0);
    CHECK(waitid(P_PID, (id_t)child.pid, &info, WEXITED) == 0);
}

static void stop_told(struct scene *scene, struct record final) {
    check_told(scene, final, CLD_STOPPED, SIGSTOP);
    kill_it();
}

static void continue_told(struct scene *scene, struct record final) {
    check_told(scene, final, CLD_CONTINUED, SIGCONT);
    kill_it();
}

static void not_reaped(struct scene *scene) {
    siginfo_t info = state_of(child.pid, WEXITED);
    (void)scene;
    check_info(&info, child.pid, CLD_EXITED, 7);
    kill_it();
}

static void stop_not_taken(struct scene *scene) {
    siginfo_t info = state_of(child.pid, WSTOPPED);
    (void)scene;
    check_info(&info, child.pid, CLD_STOPPED, SIGSTOP);
    kill_it();
}

static void continue_not_taken(struct scene *scene) {
    siginfo_t info = state_of(child.pid, WCONTINUED);
    (void)scene;
    check_info(&info, child.pid, CLD_CONTINUED, SIGCONT);
    kill_it();
}

#define WAITID .kind = UPCALL_OP_WAITID
#define EXIT WAITID, .set_up = a_child, .make = wait_exit, .allow = exits, .done = exit_told, .intact = not_reaped
static const struct subject exit_by_pid = {EXIT, .object = BY_PID};
static const struct subject exit_by_pidfd = {EXIT, .object = BY_PIDFD};
static const struct subject exit_by_group = {EXIT, .object = BY_GROUP};
static const struct subject exit_of_any = {EXIT, .object = BY_ALL};
static const struct subject stop = {WAITID, .object = BY_PID, .set_up = a_child, .make = wait_stop, .allow = stops,
                                    .done = stop_told, .intact = stop_not_taken};
static const struct subject stop_by_pidfd = {WAITID, .object = BY_PIDFD, .set_up = a_child, .make = wait_stop,
                                             .allow = stops, .done = stop_told, .intact = stop_not_taken};
static const struct subject going_on = {WAITID, .object = BY_ALL, .set_up = a_stopped_child, .make = wait_continue,
                                        .allow = continues, .done = continue_told, .intact = continue_not_taken};
PROMISES_OF_WAITING_IN_MODE(exit_by_pid, any, false)
PROMISES_OF_WAITING(exit_by_pidfd)
PROMISES_OF_WAITING_IN_MODE(exit_by_group, any, false)
PROMISES_OF_WAITING_IN_MODE(exit_of_any, any, false)
PROMISES_OF_WAITING_IN_MODE(stop, any, false)
PROMISES_OF_WAITING(stop_by_pidfd)
PROMISES_OF_WAITING_IN_MODE(going_on, any, false)

/* ---- What is told. ---- */

TEST(it_tells_what_waitid_tells) {
    static const char ends[] = {'e', 'k', 'x'};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(ends); i++)
        for (int early = 0; early < 2; early++) {
            struct recorder rec = {0};
            struct child one = new_child();
            siginfo_t info;
            memset(&info, 0xa5, sizeof info);
            if (ends[i] == 'x') /* end of file */
                close(one.orders);
            else if (early)
                order(&one, ends[i]);
            if (early)
                state_of(one.pid, WEXITED);
            submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &info, WEXITED), &rec);
            start_all(loop);
            if (!early && ends[i] != 'x')
                order(&one, ends[i]);
            siginfo_t truth = {0};
            int status = ends[i] == 'e' ? 7 : ends[i] == 'x' ? 8 : SIGKILL;
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, 0);
            check_info(&info, one.pid, ends[i] == 'k' ? CLD_KILLED : CLD_EXITED, status);
            CHECK(waitid(P_PID, (id_t)one.pid, &truth, WEXITED) == -1 && errno == ECHILD);
            if (ends[i] != 'x')
                close(one.orders);
            forget(&rec);
        }
    free_loop(loop);
}

TEST(info_may_be_null) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, NULL, WEXITED), &rec);
    start_all(loop);
    order(&one, 'e');
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    CHECK(waitpid(one.pid, NULL, 0) == -1 && errno == ECHILD);
    close(one.orders);
    free_loop(loop);
}

TEST(wnowait_leaves_the_child_to_the_next) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    siginfo_t infos[3];
    for (int i = 0; i < 3; i++)
        submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &infos[i], WEXITED | (i < 2 ? WNOWAIT : 0)), &rec);
    CHECK_EQ(upcall_cancel(loop, submit_one(loop, upcall_op_waitid(P_ALL, 0, NULL, WEXITED), &rec)), 0);
    start_all(loop);
    order(&one, 'e');
    /* The last one takes it: then one of the others may have come too late, as threads in waitid(2) would. */
    run_finals(loop, &rec, 4);
    CHECK_EQ(final_of(&rec, rec.events[0].id).result, -ECANCELED);
    size_t told = 0;
    for (size_t i = 1; i < 4; i++) {
        CHECK(rec.events[i].result == 0 || rec.events[i].result == -ECHILD);
        told += rec.events[i].result == 0;
    }
    CHECK(told >= 1);
    CHECK(waitpid(one.pid, NULL, 0) == -1 && errno == ECHILD);
    close(one.orders);
    free_loop(loop);

    loop = new_loop();
    one = new_child();
    for (int i = 0; i < 3; i++) {
        struct recorder next = {0};
        submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &infos[i], WEXITED | (i < 2 ? WNOWAIT : 0)), &next);
        start_all(loop);
        if (i == 0)
            order(&one, 'e');
        run_finals(loop, &next, 1);
        CHECK_EQ(next.events[0].result, 0);
        check_info(&infos[i], one.pid, CLD_EXITED, 7);
    }
    close(one.orders);
    free_loop(loop);
}

TEST(no_such_child_is_echild_and_info_stays) {
    upcall_loop *loop = new_loop();
    siginfo_t info, before;
    memset(&info, 0xa5, sizeof info);
    before = info;
    ends_with(loop, upcall_op_waitid(P_ALL, 0, &info, WEXITED), -ECHILD);
    ends_with(loop, upcall_op_waitid(P_PID, 1, &info, WEXITED), -ECHILD);
    ends_with(loop, upcall_op_waitid(P_PID, (uint32_t)getpid(), NULL, WEXITED | WSTOPPED), -ECHILD);
    ends_with(loop, upcall_op_waitid(P_PID, INT32_MAX, &info, WEXITED), -ECHILD);
    ends_with(loop, upcall_op_waitid(P_PGID, 0, &info, WEXITED), -ECHILD);
    int self = pidfd_of(getpid());
    ends_with(loop, upcall_op_waitid(P_PIDFD, (uint32_t)self, &info, WEXITED), -ECHILD);
    ends_with(loop, upcall_op_waitid(P_PIDFD, (uint32_t)closed_fd(), &info, WEXITED), -EBADF);
    int fds[2];
    pipe_pair(fds);
    CHECK(waitid(P_PIDFD, (id_t)fds[0], &info, WEXITED) == -1);
    ends_with(loop, upcall_op_waitid(P_PIDFD, (uint32_t)fds[0], &info, WEXITED), -errno);
    memset(&info, 0xa5, sizeof info);
    ends_with(loop, upcall_op_waitid(P_PIDFD, (uint32_t)fds[0], &info, WEXITED), -EBADF);
    CHECK(memcmp(&info, &before, sizeof info) == 0);
    free_loop(loop);
}

TEST(stop_continue_and_exit_one_after_another) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    static const char what[] = {'s', 'c', 's', 'c', 'e'};
    for (size_t i = 0; i < COUNT_OF(what); i++) {
        siginfo_t info;
        struct recorder rec = {0};
        submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &info, WEXITED | WSTOPPED | WCONTINUED), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        order(&one, what[i]);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, 0);
        check_info(&info, one.pid, what[i] == 's' ? CLD_STOPPED : what[i] == 'c' ? CLD_CONTINUED : CLD_EXITED,
                   what[i] == 's' ? SIGSTOP : what[i] == 'c' ? SIGCONT : 7);
        forget(&rec);
    }
    close(one.orders);
    free_loop(loop);
}

TEST(many_children_each_tell_their_own) {
    enum { N = 40 };
    warm_up();
    struct child children[N];
    siginfo_t infos[N];
    upcall_id ids[N];
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    for (int i = 0; i < N; i++)
        children[i] = new_child();
    int fds = open_fd_count();
    for (int i = 0; i < N; i++)
        ids[i] = submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)children[i].pid, &infos[i], WEXITED), &rec);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    for (int i = N - 1; i >= 0; i--)
        order(&children[i], i % 3 ? 'e' : 'k');
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(final_of(&rec, ids[i]).result, 0);
        check_info(&infos[i], children[i].pid, i % 3 ? CLD_EXITED : CLD_KILLED, i % 3 ? 7 : SIGKILL);
    }
    CHECK_EQ(open_fd_count(), fds); /* a pidfd of the library's own is closed with its operation */
    free_loop(loop);
}

TEST(several_wait_for_one_child_and_one_gets_it) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    upcall_id ids[4];
    siginfo_t infos[4];
    for (int i = 0; i < 4; i++)
        ids[i] = submit_one(loop, upcall_op_waitid(i % 2 ? P_ALL : P_PID, i % 2 ? 0 : (uint32_t)one.pid, &infos[i], WEXITED),
                            &rec);
    start_all(loop);
    order(&one, 'e');
    run_finals(loop, &rec, 4);
    check_finals(&rec, ids, 4);
    int told = 0;
    for (int i = 0; i < 4; i++) {
        int64_t result = final_of(&rec, ids[i]).result;
        CHECK(result == 0 || result == -ECHILD);
        told += result == 0;
    }
    CHECK_EQ(told, 1);
    close(one.orders);
    free_loop(loop);
}

TEST(a_child_reaped_by_another_thread_is_echild) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    upcall_op op = upcall_op_waitid(P_PID, (uint32_t)one.pid, NULL, WEXITED);
    /* WNOWAIT, so that it is this program that reaps, whenever. */
    op.arg |= WNOWAIT;
    submit_one(loop, op, &rec);
    start_all(loop);
    order(&one, 'e');
    CHECK(waitpid(one.pid, NULL, 0) == one.pid);
    run_finals(loop, &rec, 1);
    CHECK(rec.events[0].result == -ECHILD || rec.events[0].result == 0);
    close(one.orders);
    CHECK_EQ(complete(loop, op).result, -ECHILD);
    free_loop(loop);
}

TEST(children_nobody_wants_are_waited_for_and_then_echild) {
    for (int ignore = 0; ignore < 2; ignore++)
        for (int by = 0; by < 3; by++) {
            struct sigaction action = {.sa_handler = ignore ? SIG_IGN : SIG_DFL, .sa_flags = ignore ? 0 : SA_NOCLDWAIT};
            CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
            upcall_loop *loop = new_loop();
            struct child one = new_child();
            struct recorder rec = {0};
            int fd = pidfd_of(one.pid);
            siginfo_t info, before;
            memset(&info, 0xa5, sizeof info);
            before = info;
            upcall_op op = by == 0   ? upcall_op_waitid(P_PID, (uint32_t)one.pid, &info, WEXITED)
                           : by == 1 ? upcall_op_waitid(P_PIDFD, (uint32_t)fd, &info, WEXITED)
                                     : upcall_op_waitid(P_ALL, 0, &info, WEXITED);
            submit_one(loop, op, &rec);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            order(&one, 'e');
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, -ECHILD);
            CHECK(memcmp(&info, &before, sizeof info) == 0);
            close(one.orders);
            close(fd);
            free_loop(loop);
            forget(&rec);
        }
}

/* ---- Descriptors. ---- */

TEST(closing_the_pidfd_ends_it_first) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    int fd = pidfd_of(one.pid);
    upcall_op op = upcall_op_waitid(P_PIDFD, (uint32_t)fd, NULL, WEXITED);
    upcall_id id = submit_one(loop, op, &rec);
    start_all(loop);
    upcall_id closing = submit_one(loop, upcall_op_close(fd), &rec);
    upcall_id late = submit_one(loop, op, &rec); /* behind the close */
    run_finals(loop, &rec, 3);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, closing).result, 0);
    CHECK_EQ(final_of(&rec, late).result, -EBADF);
    CHECK(order_of(&rec, id) < order_of(&rec, closing));
    CHECK(!is_open(fd));
    CHECK(waitpid(one.pid, NULL, WNOHANG) == 0);
    reap_child(&one);
    free_loop(loop);
}

TEST(cancel_fd_finds_it_by_its_pidfd) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    int fd = pidfd_of(one.pid);
    upcall_id id = submit_one(loop, upcall_op_waitid(P_PIDFD, (uint32_t)fd, NULL, WEXITED), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel_fd(loop, fd), 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    reap_child(&one);
    free_loop(loop);
}

TEST(freeing_the_loop_ends_it_and_leaves_the_child) {
    warm_up();
    struct child one = new_child();
    int fds = open_fd_count();
    for (int i = 0; i < 3; i++) {
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, NULL, i == 2 ? WEXITED | WSTOPPED : WEXITED), &rec);
        if (i)
            start_all(loop);
        free_loop(loop);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        CHECK_EQ(open_fd_count(), fds);
        forget(&rec);
    }
    CHECK(waitpid(one.pid, NULL, WNOHANG) == 0);
    reap_child(&one);
}

/* ---- Order and threads. ---- */

TEST(links_go_on_when_the_child_ended) {
    upcall_loop *loop = new_loop();
    struct child one = new_child();
    struct recorder rec = {0};
    upcall_op ops[] = {upcall_op_waitid(P_PID, (uint32_t)one.pid, NULL, WEXITED), upcall_op_nop(),
                       upcall_op_waitid(P_PID, (uint32_t)one.pid, NULL, WEXITED), upcall_op_nop()};
    upcall_id ids[4];
    ops[0].flags = ops[1].flags = ops[2].flags = UPCALL_LINK;
    submit_many(loop, ops, 4, &rec, ids);
    no_more(loop, &rec);
    CHECK_EQ(rec.count, 0);
    order(&one, 'e');
    run_finals(loop, &rec, 4);
    CHECK_EQ(final_of(&rec, ids[0]).result, 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    CHECK_EQ(final_of(&rec, ids[2]).result, -ECHILD);
    CHECK_EQ(final_of(&rec, ids[3]).result, -ECANCELED);
    close(one.orders);
    free_loop(loop);
}

struct submitter {
    upcall_loop *loop;
    struct recorder *rec;
    struct child *child;
    siginfo_t *info;
};

static void *submits(void *arg) {
    struct submitter *s = arg;
    *s->child = new_child(); /* a child of this thread, which ends */
    submit_one(s->loop, upcall_op_waitid(P_PID, (uint32_t)s->child->pid, s->info, WEXITED), s->rec);
    return NULL;
}

TEST(a_child_and_a_submit_of_another_thread) {
    struct recorder rec = {0};
    struct child one;
    siginfo_t info;
    struct submitter s = {new_loop(), &rec, &one, &info};
    CHECK_EQ(upcall_poll(s.loop, 0), 0);
    join(start(submits, &s));
    start_all(s.loop);
    CHECK_EQ(rec.count, 0);
    order(&one, 'e');
    run_finals(s.loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    check_info(&info, one.pid, CLD_EXITED, 7);
    close(one.orders);
    free_loop(s.loop);
}

TEST(a_storm_of_signals_loses_nothing) {
    upcall_loop *loop = new_loop();
    start_alarms();
    for (int i = 0; i < 30; i++) {
        struct recorder rec = {0};
        siginfo_t info;
        struct child one = new_child();
        submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &info, WEXITED), &rec);
        start_all(loop);
        order(&one, 'e');
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, 0);
        check_info(&info, one.pid, CLD_EXITED, 7);
        close(one.orders);
        forget(&rec);
    }
    stop_alarms();
    free_loop(loop);
}

/* ---- Where the kernel does not tell. ---- */

static void deny_pidfd_open(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        CALL(pidfd_open),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT_OF(filter), filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0)
        SKIP("no seccomp here");
    CHECK(syscall(SYS_pidfd_open, getpid(), 0) == -1 && errno == EPERM);
}

TEST(where_pidfds_are_denied_it_looks_from_time_to_time) {
    deny_pidfd_open();
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 3; i++) {
        struct child one = new_child();
        struct recorder rec = {0};
        siginfo_t info;
        upcall_id id = submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &info, WEXITED), &rec);
        quiet(loop, &rec);
        if (i == 1) {
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
            CHECK(waitpid(one.pid, NULL, WNOHANG) == 0);
            reap_child(&one);
        } else {
            order(&one, 'e');
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, 0);
            check_info(&info, one.pid, CLD_EXITED, 7);
            close(one.orders);
        }
        forget(&rec);
    }
    free_loop(loop);
}

/* A traced child that has exited is its tracer's first: its pidfd is readable, and there is nothing to have yet. */
TEST(a_child_its_tracer_holds_costs_no_processor) {
    int ready[2], release[2];
    char byte;
    pipe_pair(ready);
    pipe_pair(release);
    struct child one = new_child();
    pid_t tracer = fork();
    CHECK(tracer >= 0);
    if (tracer == 0) {
        byte = ptrace(PTRACE_SEIZE, one.pid, NULL, NULL) == 0 ? 'y' : 'n';
        write_all(ready[1], &byte, 1);
        read_all(release[0], &byte, 1);
        _exit(0); /* lets it go */
    }
    read_all(ready[0], &byte, 1);
    if (byte != 'y') {
        order(&one, 'k');
        SKIP("tracing is denied here");
    }
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    siginfo_t info;
    int fd = pidfd_of(one.pid);
    submit_one(loop, upcall_op_waitid(P_PID, (uint32_t)one.pid, &info, WEXITED), &rec);
    start_all(loop);
    order(&one, 'e');
    CHECK(is_readable(fd, 10000));
    uint64_t before = processor_ns();
    for (uint64_t until = now_ns() + (uint64_t)MS(300); now_ns() < until;)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK(processor_ns() - before < (uint64_t)MS(100));
    CHECK_EQ(rec.count, 0);
    write_all(release[1], "x", 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    check_info(&info, one.pid, CLD_EXITED, 7);
    CHECK(waitpid(tracer, NULL, 0) == tracer);
    close(one.orders);
    free_loop(loop);
}
