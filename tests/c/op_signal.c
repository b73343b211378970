/* upcall_op_signal(): signals as events, and the program's own actions as they were. */
#include "op_support.h"

#include <stdatomic.h>

static upcall_op many(int signo) {
    upcall_op op = upcall_op_signal(signo);
    op.flags = UPCALL_MULTISHOT;
    return op;
}

/* What the kernel keeps of an action. The C library marks each one it sets with SA_RESTORER, which it does not name. */
static void check_same_action(int signo, const struct sigaction *before) {
    struct sigaction now;
    CHECK(sigaction(signo, NULL, &now) == 0);
    CHECK(now.sa_handler == before->sa_handler);
    CHECK_EQ(now.sa_flags & ~0x04000000, before->sa_flags & ~0x04000000);
    CHECK(memcmp(&now.sa_mask, &before->sa_mask, 8) == 0);
}

static void (*handler_of(int signo))(int) {
    struct sigaction now;
    CHECK(sigaction(signo, NULL, &now) == 0);
    return now.sa_handler;
}

/* ---- Names and arguments. ---- */

TEST(signal_is_known) { is_known(UPCALL_OP_SIGNAL, "signal"); }
TEST(signal_refuses_strange_fields) { refuses_strange_fields(upcall_op_signal(SIGUSR1), UPCALL_MULTISHOT); }

TEST(signals_that_cannot_be_caught_are_refused) {
    static const int bad[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS,  SIGFPE,  SIGILL, SIGTRAP,
                              SIGSYS,  0,       -1,      INT_MIN, INT_MAX, 65,     32};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        refused(loop, upcall_op_signal(bad[i]), EINVAL, "signo");
    free_loop(loop);
}

TEST(every_other_signal_is_told) {
    SKIP_UNDER_THREAD_SANITIZER();
    upcall_loop *loop = new_loop();
    for (int signo = 1; signo <= SIGRTMAX; signo++) {
        if (signo == SIGKILL || signo == SIGSTOP || signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE ||
            signo == SIGILL || signo == SIGTRAP || signo == SIGSYS || (signo > 31 && signo < SIGRTMIN))
            continue;
        struct recorder rec = {0};
        struct sigaction before;
        CHECK(sigaction(signo, NULL, &before) == 0);
        upcall_id id = submit_one(loop, upcall_op_signal(signo), &rec);
        CHECK(raise(signo) == 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, signo);
        check_same_action(signo, &before);
        forget(&rec);
    }
    free_loop(loop);
}

/* ---- What every operation promises; the subjects of op_support.h have a state to wait for, a signal has none. ---- */

TEST(a_signal_ends_a_one_shot_with_its_number) {
    warm_up();
    struct recorder rec = {0};
    int fds = open_fd_count();
    upcall_loop *loop = new_loop();
    count_signals_of(SIGUSR1);
    upcall_id id = submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    CHECK(raise(SIGUSR1) == 0);
    CHECK_EQ(rec.count, 0); /* never inside the handler */
    run_finals(loop, &rec, 1);
    struct record final = final_of(&rec, id);
    CHECK_EQ(final.kind, UPCALL_OP_SIGNAL);
    CHECK_EQ(final.result, SIGUSR1);
    CHECK_EQ(final.flags, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(final.buffer == NULL);
    CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
    CHECK_EQ(signals_seen, 0);
    CHECK(raise(SIGUSR1) == 0); /* the program's again */
    CHECK_EQ(signals_seen, 1);
    no_more(loop, &rec);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), fds);
}

TEST(callback_and_reap_are_told_the_same) {
    upcall_event event;
    int marker;
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_signal(SIGUSR1);
    op.user = &marker;
    upcall_id id, called = submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    CHECK(raise(SIGUSR1) == 0);
    run_finals(loop, &rec, 1);
    while (upcall_reap(loop, &event, 1) == 0)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK_EQ(event.id, id);
    CHECK(event.user == &marker);
    CHECK_EQ(event.result, final_of(&rec, called).result);
    CHECK_EQ(event.flags, 0);
    CHECK_EQ(event.kind, UPCALL_OP_SIGNAL);
    free_loop(loop);
}

TEST(cancelled_before_the_start_and_while_waiting) {
    count_signals_of(SIGUSR1);
    for (int multishot = 0; multishot < 2; multishot++)
        for (int when = 0; when < 3; when++) { /* no owner yet; not handed over; waiting */
            struct recorder rec = {0};
            upcall_loop *loop = new_loop();
            if (when > 0)
                CHECK_EQ(upcall_poll(loop, 0), 0);
            upcall_id id = submit_one(loop, multishot ? many(SIGUSR1) : upcall_op_signal(SIGUSR1), &rec);
            if (when > 1)
                start_all(loop);
            CHECK_EQ(upcall_cancel(loop, id), 0);
            CHECK_EQ(rec.count, 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
            CHECK_EQ(rec.count, 1);
            CHECK(handler_of(SIGUSR1) == count_signal);
            CHECK(raise(SIGUSR1) == 0);
            no_more(loop, &rec);
            free_loop(loop);
            forget(&rec);
        }
    CHECK_EQ(signals_seen, 6);
}

TEST(a_deadline_ends_it_and_a_far_one_changes_nothing) {
    static const uint64_t far[] = {3600 * UPCALL_SECOND, UINT64_MAX};
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_signal(SIGUSR1);
    op.timeout_ns = (uint64_t)MS(30);
    uint64_t start = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - start >= op.timeout_ns);
    CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
    CHECK_EQ(final_of(&rec, id).flags, UPCALL_EXPIRED);
    CHECK(handler_of(SIGUSR1) == SIG_DFL);
    for (size_t i = 0; i < COUNT_OF(far); i++) {
        op.timeout_ns = far[i];
        id = submit_one(loop, op, &rec);
        start_all(loop);
        CHECK(raise(SIGUSR1) == 0);
        run_finals(loop, &rec, 2 + i);
        CHECK_EQ(final_of(&rec, id).result, SIGUSR1);
        CHECK_EQ(final_of(&rec, id).flags, 0);
    }
    free_loop(loop);
}

TEST(a_deadline_does_not_take_what_was_there_in_time) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_signal(SIGUSR1);
    op.timeout_ns = (uint64_t)MS(5);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    upcall_id id = submit_one(loop, op, &rec);
    CHECK(raise(SIGUSR1) == 0); /* no turn before: it may come late, the clock cannot come first */
    pause_ms(20);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, SIGUSR1);
    free_loop(loop);
}

TEST(the_idle_limit_of_a_multishot_begins_anew_with_each_event) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = many(SIGUSR1);
    op.timeout_ns = (uint64_t)MS(60);
    uint64_t last = 0;
    upcall_id id = submit_one(loop, op, &rec);
    for (size_t i = 1; i <= 4; i++) {
        last = now_ns();
        CHECK(raise(SIGUSR1) == 0);
        run_until(loop, &rec, i);
    }
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - last >= op.timeout_ns);
    CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
    CHECK_EQ(final_of(&rec, id).flags, UPCALL_EXPIRED);
    CHECK(handler_of(SIGUSR1) == SIG_DFL);
    free_loop(loop);
}

/* ---- No delivery is lost. ---- */

TEST(it_counts_from_the_return_of_submit) {
    for (int owned = 0; owned < 2; owned++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        if (owned)
            CHECK_EQ(upcall_poll(loop, 0), 0);
        upcall_id id = submit_one(loop, upcall_op_signal(SIGTERM), &rec);
        CHECK(raise(SIGTERM) == 0); /* its default action is to terminate */
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).result, SIGTERM);
        free_loop(loop);
        forget(&rec);
    }
}

struct submitter {
    upcall_loop *loop;
    struct recorder *rec;
};

static void *submits_then_raises(void *arg) {
    struct submitter *s = arg;
    submit_one(s->loop, upcall_op_signal(SIGTERM), s->rec);
    CHECK(raise(SIGTERM) == 0);
    return NULL;
}

TEST(it_counts_from_the_return_of_submit_on_another_thread) {
    for (int i = 0; i < 50; i++) {
        struct recorder rec = {0};
        struct submitter s = {new_loop(), &rec};
        CHECK_EQ(upcall_poll(s.loop, 0), 0);
        pthread_t thread = start(submits_then_raises, &s);
        if (i % 2)
            join(thread);
        run_finals(s.loop, &rec, 1);
        if (i % 2 == 0)
            join(thread);
        CHECK_EQ(rec.events[0].result, SIGTERM);
        free_loop(s.loop);
        forget(&rec);
    }
}

TEST(it_counts_from_the_return_of_submit_behind_a_link) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0}, other = {0};
    int fds[2];
    char byte;
    pipe_pair(fds);
    upcall_op ops[] = {upcall_op_read(fds[0], &byte, 1), upcall_op_signal(SIGUSR1)};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, NULL);
    submit_one(loop, many(SIGUSR1), &other); /* the loop looks at the signal, and must look again */
    start_all(loop);
    CHECK(raise(SIGUSR1) == 0);
    run_until(loop, &other, 1);
    no_more(loop, &other);
    CHECK_EQ(rec.count, 0);
    write_all(fds[1], "x", 1);
    CHECK_EQ(upcall_poll(loop, -1), 1);
    CHECK_EQ(upcall_poll(loop, -1), 1);
    CHECK_EQ(rec.count, 2);
    CHECK_EQ(rec.events[1].result, SIGUSR1);
    CHECK_EQ(other.count, 1);
    close_pair(fds);
    free_loop(loop);
}

TEST(a_multishot_tells_every_signal_until_it_is_cancelled) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, many(SIGUSR1), &rec);
    for (size_t i = 1; i <= 100; i++) {
        CHECK(raise(SIGUSR1) == 0);
        run_until(loop, &rec, i);
        CHECK_EQ(rec.events[i - 1].result, SIGUSR1);
        CHECK_EQ(rec.events[i - 1].flags, UPCALL_MORE);
    }
    no_more(loop, &rec);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    CHECK_EQ(rec.count, 101);
    free_loop(loop);
}

TEST(deliveries_between_two_turns_are_one_event) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, many(SIGUSR1), &rec);
    start_all(loop);
    for (int i = 0; i < 10; i++)
        CHECK(raise(SIGUSR1) == 0);
    run_until(loop, &rec, 1);
    no_more(loop, &rec);
    CHECK_EQ(rec.count, 1);
    free_loop(loop);
}

TEST(a_cancel_does_not_undo_a_delivery) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id one = submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    upcall_id more = submit_one(loop, many(SIGUSR1), &rec);
    start_all(loop);
    CHECK(raise(SIGUSR1) == 0);
    CHECK_EQ(upcall_cancel(loop, one), 0);
    CHECK_EQ(upcall_cancel(loop, more), 0);
    CHECK_EQ(rec.count, 0);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, one).result, SIGUSR1);
    CHECK_EQ(final_of(&rec, more).result, -ECANCELED);
    CHECK_EQ(events_of(&rec, more), 2);
    CHECK_EQ(rec.count, 3);
    free_loop(loop);
}

TEST(what_comes_between_a_cancel_and_the_final_event_is_told) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    count_signals_of(SIGUSR1);
    upcall_id one = submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    upcall_id more = submit_one(loop, many(SIGUSR1), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, one), 0);
    CHECK_EQ(upcall_cancel(loop, more), 0);
    CHECK(handler_of(SIGUSR1) != count_signal); /* still caught: so somebody must be told */
    CHECK(raise(SIGUSR1) == 0);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, one).result, SIGUSR1);
    CHECK_EQ(final_of(&rec, more).result, -ECANCELED);
    CHECK_EQ(events_of(&rec, more), 2);
    CHECK_EQ(rec.count, 3);
    CHECK_EQ(signals_seen, 0);
    CHECK(handler_of(SIGUSR1) == count_signal);
    free_loop(loop);
}

static void again(upcall_loop *loop, const upcall_event *event) {
    struct recorder *rec = event->user;
    add_record(rec, event);
    if (rec->count < 20) {
        upcall_op op = upcall_op_signal(SIGUSR1);
        op.callback = again;
        op.user = rec;
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
        CHECK(raise(SIGUSR1) == 0);
    }
}

TEST(a_callback_may_ask_again_and_raise) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_signal(SIGUSR1);
    op.callback = again;
    op.user = &rec;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    CHECK(raise(SIGUSR1) == 0);
    run_finals(loop, &rec, 20);
    CHECK_EQ(rec.count, 20);
    free_loop(loop);
}

TEST(records_that_are_not_reaped_pause_it_and_lose_nothing) {
    upcall_config config = default_config();
    upcall_event events[8];
    config.max_events = 2;
    upcall_loop *loop = loop_with(&config);
    upcall_op op = many(SIGUSR1);
    upcall_id id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    for (int i = 0; i < 5; i++) {
        CHECK(raise(SIGUSR1) == 0);
        CHECK(upcall_poll(loop, 0) >= 0);
    }
    CHECK_EQ(upcall_reap(loop, events, 8), 2); /* the limit */
    CHECK_EQ(upcall_poll(loop, -1), 1);
    CHECK_EQ(upcall_reap(loop, events, 8), 1); /* the rest, merged */
    CHECK_EQ(events[0].id, id);
    CHECK_EQ(events[0].result, SIGUSR1);
    CHECK_EQ(events[0].flags, UPCALL_MORE);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK(raise(SIGUSR1) == 0);
    CHECK_EQ(upcall_poll(loop, MS(100)), 1);
    CHECK_EQ(upcall_reap(loop, events, 8), 1);
    free_loop(loop);
}

/* ---- Everyone who asked is told. ---- */

TEST(every_operation_of_a_loop_is_told_and_no_other_signal) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0}, other = {0};
    upcall_id ids[4];
    upcall_op ops[] = {upcall_op_signal(SIGUSR1), upcall_op_signal(SIGUSR1), upcall_op_signal(SIGUSR1), many(SIGUSR1)};
    submit_many(loop, ops, 4, &rec, ids);
    submit_one(loop, upcall_op_signal(SIGUSR2), &other);
    start_all(loop);
    CHECK(raise(SIGUSR1) == 0);
    run_until(loop, &rec, 4);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(events_of(&rec, ids[i]), 1);
    CHECK_EQ(rec.finals, 3);
    no_more(loop, &rec);
    CHECK_EQ(other.count, 0);
    CHECK(raise(SIGUSR1) == 0); /* the multishot still catches it */
    run_until(loop, &rec, 5);
    CHECK(raise(SIGUSR2) == 0);
    run_until(loop, &other, 1);
    CHECK_EQ(other.events[0].result, SIGUSR2);
    free_loop(loop);
}

static pthread_barrier_t all_wait;

static void *a_loop_that_waits(void *arg) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    (void)arg;
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    start_all(loop);
    pthread_barrier_wait(&all_wait);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIGUSR1);
    free_loop(loop);
    forget(&rec);
    return NULL;
}

TEST(every_loop_in_every_thread_is_told) {
    pthread_t threads[6];
    count_signals_of(SIGUSR1);
    CHECK_EQ(pthread_barrier_init(&all_wait, NULL, 7), 0);
    for (int i = 0; i < 6; i++)
        threads[i] = start(a_loop_that_waits, NULL);
    pthread_barrier_wait(&all_wait);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    for (int i = 0; i < 6; i++)
        join(threads[i]);
    CHECK_EQ(signals_seen, 0);
    CHECK(handler_of(SIGUSR1) == count_signal);
}

static void *raises(void *arg) {
    sigset_t all;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &all, NULL) == 0);
    pause_ms(20);
    CHECK(pthread_kill(pthread_self(), *(int *)arg) == 0);
    return NULL;
}

TEST(a_handler_on_another_thread_wakes_the_sleeping_loop) {
    sigset_t all;
    int signo = SIGUSR1;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    pthread_t thread = start(raises, &signo);
    CHECK_EQ(upcall_poll(loop, -1), 1);
    CHECK_EQ(rec.events[0].result, SIGUSR1);
    join(thread);
    free_loop(loop);
}

static pthread_t sleeper;
static void *interrupts(void *arg) {
    pause_ms(20);
    CHECK(pthread_kill(sleeper, *(int *)arg) == 0);
    return NULL;
}

TEST(a_handler_on_the_loops_own_thread_ends_the_wait_with_the_event) {
    int signo = SIGUSR1;
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    sleeper = pthread_self();
    submit_one(loop, many(SIGUSR1), &rec);
    for (size_t i = 1; i <= 5; i++) {
        pthread_t thread = start(interrupts, &signo);
        CHECK_EQ(upcall_poll(loop, -1), 1);
        CHECK_EQ(rec.count, i);
        join(thread);
    }
    free_loop(loop);
}

TEST(the_embedding_descriptor_is_readable_after_a_signal) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fd = upcall_fd(loop);
    CHECK(fd >= 0);
    upcall_id id = submit_one(loop, many(SIGUSR1), &rec);
    while (is_readable(fd, 0))
        CHECK(upcall_poll(loop, 0) >= 0);
    for (size_t i = 1; i <= 3; i++) {
        CHECK(!is_readable(fd, 0));
        CHECK(raise(SIGUSR1) == 0);
        CHECK(is_readable(fd, 10000));
        CHECK_EQ(upcall_poll(loop, 0), 1);
        CHECK_EQ(rec.count, i);
    }
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    free_loop(loop);
}

/* ---- The program's actions and mask. ---- */

static void with_three_words(int signo, siginfo_t *info, void *context) {
    (void)info, (void)context;
    count_signal(signo);
}

TEST(the_old_action_comes_back_as_it_was) {
    struct sigaction actions[] = {
        {.sa_handler = SIG_DFL},
        {.sa_handler = SIG_IGN},
        {.sa_handler = count_signal, .sa_flags = SA_NODEFER},
        {.sa_handler = count_signal, .sa_flags = (int)SA_RESETHAND},
        {.sa_sigaction = with_three_words, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NOCLDSTOP},
    };
    for (size_t i = 0; i < COUNT_OF(actions); i++)
        for (int end = 0; end < 4; end++) {
            struct sigaction before;
            struct recorder rec = {0};
            sigemptyset(&actions[i].sa_mask);
            sigaddset(&actions[i].sa_mask, SIGHUP);
            CHECK(sigaction(SIGCHLD, &actions[i], NULL) == 0);
            CHECK(sigaction(SIGCHLD, NULL, &before) == 0);
            upcall_loop *loop = new_loop();
            upcall_op op = end ? many(SIGCHLD) : upcall_op_signal(SIGCHLD);
            upcall_id first = submit_one(loop, op, &rec), second = submit_one(loop, op, &rec);
            CHECK(raise(SIGCHLD) == 0);
            run_until(loop, &rec, 2);
            if (end == 1) {
                CHECK_EQ(upcall_cancel(loop, first), 0);
                run_finals(loop, &rec, 1);
                CHECK(handler_of(SIGCHLD) != before.sa_handler); /* one is left */
                CHECK_EQ(upcall_cancel(loop, second), 0);
                run_finals(loop, &rec, 2);
            } else if (end == 2) {
                CHECK_EQ(upcall_loop_close(loop, -1), 0);
            }
            if (end < 3)
                check_same_action(SIGCHLD, &before);
            free_loop(loop);
            check_same_action(SIGCHLD, &before);
            CHECK_EQ(signals_seen, 0);
            forget(&rec);
        }
}

TEST(an_action_set_meanwhile_stays) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, many(SIGUSR1), &rec);
    start_all(loop);
    count_signals_of(SIGUSR1);
    CHECK(raise(SIGUSR1) == 0);
    CHECK_EQ(signals_seen, 1);
    no_more(loop, &rec); /* hidden */
    CHECK_EQ(rec.count, 0);
    /* Who asks again catches it again; afterwards it is the program's again. */
    struct recorder second = {0};
    submit_one(loop, upcall_op_signal(SIGUSR1), &second);
    CHECK(raise(SIGUSR1) == 0);
    run_finals(loop, &second, 1);
    run_until(loop, &rec, 1);
    CHECK_EQ(signals_seen, 1);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    CHECK(handler_of(SIGUSR1) == count_signal);
    CHECK(raise(SIGUSR1) == 0);
    CHECK_EQ(signals_seen, 2);
    id = submit_one(loop, many(SIGUSR1), &rec);
    signal(SIGUSR1, SIG_IGN);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 2);
    CHECK(handler_of(SIGUSR1) == SIG_IGN);
    free_loop(loop);
}

TEST(the_signal_mask_stays_as_it_was) {
    sigset_t before, after;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    start_all(loop);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    CHECK(memcmp(&before, &after, 8) == 0);
    CHECK(raise(SIGUSR1) == 0);
    run_finals(loop, &rec, 1);
    free_loop(loop);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    CHECK(memcmp(&before, &after, 8) == 0);
}

TEST(a_signal_blocked_everywhere_comes_when_it_is_unblocked) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    quiet(loop, &rec);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIGUSR1);
    free_loop(loop);
}

static int restart_fds[2];
static atomic_int reader_id;
static void *reads_a_byte(void *arg) {
    char byte;
    (void)arg;
    atomic_store(&reader_id, (int)syscall(SYS_gettid));
    CHECK_EQ(read(restart_fds[0], &byte, 1), 1); /* not EINTR */
    return NULL;
}

/* The state of a thread, as /proc tells it: 'S' while it waits. */
static char state_of(int thread) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
    FILE *file = fopen(path, "re");
    CHECK(file != NULL && fgets(line, sizeof line, file) != NULL);
    fclose(file);
    return strrchr(line, ')')[2];
}

TEST(system_calls_of_other_threads_are_restarted) {
    SKIP_UNDER_THREAD_SANITIZER();
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    pipe_pair(restart_fds);
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    pthread_t reader = start(reads_a_byte, NULL);
    while (atomic_load(&reader_id) == 0 || state_of(atomic_load(&reader_id)) != 'S')
        pause_ms(1);
    CHECK(pthread_kill(reader, SIGUSR1) == 0);
    run_finals(loop, &rec, 1);
    write_all(restart_fds[1], "x", 1);
    join(reader);
    free_loop(loop);
}

/* The loop's eventfd is full: the handler's write fails, and neither errno nor the event is lost. */
TEST(the_handler_keeps_errno) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    CHECK_EQ(upcall_poll(loop, 0), 0);
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    start_all(loop);
    int filled = 0;
    for (int fd = 3; fd < 64; fd++) {
        char path[64], name[64] = "";
        uint64_t most = UINT64_MAX - 1;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, name, sizeof name - 1) > 0 && strstr(name, "[eventfd]"))
            filled += write(fd, &most, 8) == 8;
    }
    CHECK(filled > 0);
    errno = 12345;
    raise(SIGUSR1);
    CHECK_EQ(errno, 12345);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIGUSR1);
    free_loop(loop);
}

/* ---- Order. ---- */

TEST(links_go_on_when_it_came_and_break_when_it_was_cancelled) {
    upcall_loop *loop = new_loop();
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        struct recorder rec = {0};
        upcall_op ops[] = {upcall_op_nop(), upcall_op_signal(SIGUSR1), upcall_op_nop()};
        upcall_id ids[3];
        ops[0].flags = ops[1].flags = UPCALL_LINK;
        submit_many(loop, ops, 3, &rec, ids);
        run_finals(loop, &rec, 1);
        no_more(loop, &rec);
        if (cancelled)
            CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
        else
            CHECK(raise(SIGUSR1) == 0);
        run_finals(loop, &rec, 3);
        check_finals(&rec, ids, 3);
        CHECK_EQ(final_of(&rec, ids[1]).result, cancelled ? -ECANCELED : SIGUSR1);
        CHECK_EQ(final_of(&rec, ids[2]).result, cancelled ? -ECANCELED : 0);
        forget(&rec);
    }
    /* A severed one has given the signal back. */
    struct recorder rec = {0};
    upcall_op ops[] = {upcall_op_read(closed_fd(), &rec, 1), upcall_op_signal(SIGUSR1)};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, NULL);
    run_finals(loop, &rec, 2);
    CHECK(handler_of(SIGUSR1) == SIG_DFL);
    free_loop(loop);
}

TEST(a_background_watcher_does_not_keep_run_alive) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = many(SIGUSR1);
    op.flags |= UPCALL_BACKGROUND;
    submit_one(loop, op, &rec);
    CHECK_EQ(upcall_run(loop), 0);
    free_loop(loop);
    CHECK_EQ(final_of(&rec, rec.events[0].id).result, -ECANCELED);
}

/* ---- Loops and processes that end. ---- */

static void *polls_and_exits(void *arg) {
    struct submitter *s = arg;
    submit_one(s->loop, many(SIGUSR1), s->rec);
    start_all(s->loop);
    return NULL;
}

TEST(a_dead_owners_operation_gives_the_signal_back) {
    struct recorder rec = {0};
    struct submitter s = {new_loop(), &rec};
    count_signals_of(SIGUSR1);
    join(start(polls_and_exits, &s));
    free_loop(s.loop);
    CHECK_EQ(rec.count, 1);
    CHECK_EQ(rec.events[0].result, -EOWNERDEAD);
    CHECK(handler_of(SIGUSR1) == count_signal);
}

TEST(a_refused_submit_from_outside_catches_nothing) {
    upcall_config config = default_config();
    config.max_operations = 2;
    upcall_loop *loop = loop_with(&config); /* nobody's: submissions come from outside */
    upcall_op ops[] = {upcall_op_signal(SIGUSR1), upcall_op_signal(SIGUSR1), upcall_op_signal(SIGUSR1)};
    CHECK_EQ(upcall_submit(loop, ops, 3, NULL), -EAGAIN);
    CHECK(handler_of(SIGUSR1) == SIG_DFL);
    ops[2] = upcall_op_signal(SIGKILL);
    CHECK_EQ(upcall_submit(loop, ops, 3, NULL), -EINVAL);
    CHECK(handler_of(SIGUSR1) == SIG_DFL);
    free_loop(loop);
}

static void is_terminated(void *arg) {
    (void)arg;
    raise(SIGTERM);
}

static void exits_by_its_own_handler(void *arg) {
    (void)arg;
    raise(SIGUSR1);
    _exit(signals_seen == 1 && handler_of(SIGUSR1) == count_signal ? 5 : 6);
}

static void has_its_own_loop(void *arg) {
    upcall_loop *inherited = arg, *loop = new_loop();
    struct recorder rec = {0};
    CHECK_EQ(upcall_loop_free(inherited), 0);
    for (int i = 0; i < 3; i++) {
        upcall_id id = submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
        CHECK(raise(SIGUSR1) == 0);
        run_finals(loop, &rec, (size_t)i + 1);
        CHECK_EQ(final_of(&rec, id).result, SIGUSR1);
        CHECK(handler_of(SIGUSR1) == count_signal); /* of before the parent's operation */
    }
    free_loop(loop);
    raise(SIGUSR1);
    CHECK_EQ(signals_seen, 1);
    is_terminated(NULL); /* inherited, and not asked for here */
}

TEST(in_a_forked_child_the_signal_meets_the_old_action_and_the_parent_is_told_nothing) {
    count_signals_of(SIGUSR1);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fd = upcall_fd(loop);
    submit_one(loop, many(SIGUSR1), &rec);
    submit_one(loop, many(SIGTERM), &rec);
    while (is_readable(fd, 0))
        CHECK(upcall_poll(loop, 0) >= 0);
    CHECK_EQ(in_child(is_terminated, NULL), 1000 + SIGTERM);
    CHECK_EQ(in_child(exits_by_its_own_handler, NULL), 5);
    CHECK_EQ(in_child(has_its_own_loop, loop), 1000 + SIGTERM);
    CHECK(!is_readable(fd, 0));
    CHECK_EQ(rec.count, 0);
    CHECK(raise(SIGUSR1) == 0);
    CHECK(is_readable(fd, 10000));
    run_until(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIGUSR1);
    CHECK_EQ(signals_seen, 0);
    free_loop(loop);
}

static atomic_bool storming;
static void *storms(void *arg) {
    (void)arg;
    while (atomic_load(&storming)) {
        raise(SIGUSR1);
        sched_yield();
    }
    return NULL;
}

/* Handlers run on other threads while loops come and go: none writes a descriptor that is another file by now. */
TEST_FOR(handlers_never_write_a_descriptor_of_a_loop_that_is_gone, 60) {
    pthread_t threads[2];
    count_signals_of(SIGUSR1);
    atomic_store(&storming, true);
    for (int i = 0; i < 2; i++)
        threads[i] = start(storms, NULL);
    for (int round = 0; round < 300; round++) {
        int fds[8];
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        submit_one(loop, many(SIGUSR1), &rec);
        if (round % 3)
            run_until(loop, &rec, 1);
        free_loop(loop);
        for (int i = 0; i < 8; i++) {
            fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
            CHECK(fds[i] >= 0);
        }
        sched_yield();
        for (int i = 0; i < 8; i++) {
            CHECK(!is_readable(fds[i], 0));
            close(fds[i]);
        }
        forget(&rec);
    }
    atomic_store(&storming, false);
    for (int i = 0; i < 2; i++)
        join(threads[i]);
    CHECK(handler_of(SIGUSR1) == count_signal);
}

static void *subscribes_and_ends(void *arg) {
    (void)arg;
    for (int i = 0; i < 60; i++) {
        struct recorder rec = {0};
        upcall_loop *loop = new_loop();
        upcall_id id = submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
        if (i % 2) {
            CHECK(raise(SIGUSR1) == 0);
        } else {
            CHECK_EQ(upcall_cancel(loop, id), 0);
        }
        run_finals(loop, &rec, 1);
        if (i % 2)
            CHECK_EQ(final_of(&rec, id).result, SIGUSR1);
        free_loop(loop);
        forget(&rec);
    }
    return NULL;
}

TEST(threads_that_come_and_go_leave_the_action_as_it_was) {
    pthread_t threads[4];
    count_signals_of(SIGUSR1);
    for (int i = 0; i < 4; i++)
        threads[i] = start(subscribes_and_ends, NULL);
    for (int i = 0; i < 4; i++)
        join(threads[i]);
    CHECK(handler_of(SIGUSR1) == count_signal);
}

/* ---- The signal that interrupts the library's own threads. ---- */

TEST(the_librarys_own_signal_is_refused_and_not_taken_from_the_program) {
    static uint32_t word;
    upcall_loop *loop = new_loop();
    if (upcall_supports(loop, UPCALL_OP_FUTEX_WAIT) == UPCALL_NATIVE)
        SKIP("no thread of its own is needed here");
    struct recorder rec = {0}, waits = {0};
    upcall_id signal = submit_one(loop, upcall_op_signal(SIGRTMAX), &rec);
    upcall_id wait = submit_one(loop, upcall_op_futex_wait(&word, 0, UINT32_MAX, 0), &waits);
    start_all(loop);
    refused(loop, upcall_op_signal(SIGRTMAX - 1), EBUSY, "signo");
    CHECK_EQ(upcall_cancel(loop, wait), 0);
    run_finals(loop, &waits, 1);
    CHECK_EQ(final_of(&waits, wait).result, -ECANCELED);
    CHECK_EQ(rec.count, 0); /* the interruption was none of the program's signals */
    CHECK(raise(SIGRTMAX) == 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, signal).result, SIGRTMAX);
    free_loop(loop);
}
