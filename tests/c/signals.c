/* Signals: none is raised by an operation, and those that come lose nothing. */
#include "check.h"
#include <stdatomic.h>
#include <sys/time.h>

static atomic_int caught;
static void count_signal(int number) {
    (void)number;
    atomic_fetch_add(&caught, 1);
}

static void catch(int number, int flags) {
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = flags};
    CHECK(sigaction(number, &action, NULL) == 0);
}

static char data[256 * 1024];

/* The ways to send on descriptors whose reader is gone. Each ends in -EPIPE. */
static void break_pipes(upcall_loop *loop) {
    struct iovec parts[2] = {{data, 10}, {data + 10, 10}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    for (int which = 0; which < PAIRS; which++)
        for (int nonblocking = 0; nonblocking < 2; nonblocking++)
            for (int way = 0; way < (which == PIPE ? 2 : 4); way++)
                for (int full = 0; full < 2; full++) {
                    int fds[2];
                    make_pair(which, fds);
                    if (nonblocking)
                        set_nonblocking(fds[1]);
                    close(fds[0]);
                    upcall_op op = way == 0   ? upcall_op_write(fds[1], data, full ? sizeof data : 10)
                                   : way == 1 ? upcall_op_writev(fds[1], parts, 2)
                                   : way == 2 ? upcall_op_send(fds[1], data, full ? sizeof data : 10, 0)
                                              : upcall_op_sendmsg(fds[1], &message, 0);
                    op.flags = full ? UPCALL_FULL : 0;
                    struct record final = {0};
                    for (int i = 0; i < 50; i++) { /* TCP must first hear of it from the peer */
                        final = complete(loop, op);
                        if (which != TCP || final.result < 0)
                            break;
                        CHECK(upcall_poll(loop, MS(1)) >= 0);
                    }
                    CHECK(final.result == -EPIPE || (which == TCP && final.result == -ECONNRESET));
                    CHECK_EQ(complete(loop, op).result, -EPIPE);
                    close(fds[1]);
                }
}

/* Writers that are already waiting when the reader goes away. */
static void break_waiting(upcall_loop *loop) {
    for (int which = 0; which < TCP; which++)
        for (int full = 0; full < 2; full++) {
            struct recorder rec = {0};
            int fds[2];
            make_pair(which, fds);
            fill_up(fds[1]);
            upcall_op op = upcall_op_write(fds[1], data, sizeof data);
            op.flags = full ? UPCALL_FULL : 0;
            submit_one(loop, op, &rec);
            start_all(loop);
            pause_ms(2);
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            close(fds[0]);
            run_finals(loop, &rec, 1);
            CHECK(rec.events[0].result == -EPIPE || (which == UNIX && rec.events[0].result == -ECONNRESET));
            close(fds[1]);
            forget(&rec);
        }
}

TEST(no_operation_raises_sigpipe) { /* hazards row 24 */
    upcall_loop *loop = new_loop();
    catch(SIGPIPE, 0);
    break_pipes(loop);
    break_waiting(loop);
    CHECK_EQ(atomic_load(&caught), 0);
    free_loop(loop);
    CHECK_EQ(atomic_load(&caught), 0);
}

TEST(a_broken_pipe_does_not_kill_a_program_without_a_handler) { /* hazards row 24 */
    upcall_loop *loop = new_loop();
    signal(SIGPIPE, SIG_DFL);
    break_pipes(loop);
    break_waiting(loop);
    free_loop(loop);
}

TEST(nothing_is_left_pending_where_sigpipe_is_blocked) { /* hazards row 24 */
    upcall_loop *loop = new_loop();
    sigset_t pipe_only, pending, after;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    CHECK(pthread_sigmask(SIG_BLOCK, &pipe_only, NULL) == 0);
    break_pipes(loop);
    break_waiting(loop);
    CHECK(sigpending(&pending) == 0);
    CHECK_EQ(sigismember(&pending, SIGPIPE), 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    CHECK_EQ(sigismember(&after, SIGPIPE), 1);
    CHECK(raise(SIGPIPE) == 0); /* the program's own one is the program's */
    break_pipes(loop);
    CHECK(sigpending(&pending) == 0);
    CHECK_EQ(sigismember(&pending, SIGPIPE), 1);
    free_loop(loop);
}

TEST(the_signal_mask_and_the_actions_stay_as_they_were) {
    sigset_t before, after;
    struct sigaction actions_before[32], actions_after[32];
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
    for (int i = 1; i < 32; i++)
        sigaction(i, NULL, &actions_before[i]);
    upcall_loop *loop = new_loop();
    int file = temp_file(10);
    signal(SIGPIPE, SIG_DFL);
    break_pipes(loop);
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    for (int i = 1; i < 32; i++) {
        sigaction(i, NULL, &actions_after[i]);
        CHECK(actions_before[i].sa_handler == actions_after[i].sa_handler);
        CHECK_EQ(sigismember(&before, i), sigismember(&after, i));
    }
    free_loop(loop);
}

TEST(no_operation_raises_sigxfsz) { /* hazards row 25 */
    upcall_loop *loop = new_loop();
    catch(SIGXFSZ, 0);
    int file = temp_file(0);
    struct rlimit limit = {4096, 4096};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    struct iovec part = {data, 100};
    CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, 100, 8192)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, 100, 4096)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, 200, 4000)).result, 96);
    upcall_op op = upcall_op_pwrite(file, data, 200, 4000);
    op.flags = UPCALL_FULL;
    struct record final = complete(loop, op);
    CHECK_EQ(final.result, -EFBIG); /* an error after a part */
    CHECK_EQ(final.transferred, 96);
    CHECK(lseek(file, 4096, SEEK_SET) == 4096);
    CHECK_EQ(complete(loop, upcall_op_write(file, data, 100)).result, -EFBIG);
    CHECK_EQ(complete(loop, upcall_op_writev(file, &part, 1)).result, -EFBIG);
    CHECK_EQ(atomic_load(&caught), 0);
    signal(SIGXFSZ, SIG_DFL);
    CHECK_EQ(complete(loop, upcall_op_pwrite(file, data, 100, 8192)).result, -EFBIG);
    free_loop(loop);
}

/* ---- A storm of signals. ---- */

enum { STORM_BYTES = 400000 };
static void *write_slowly(void *arg) {
    uint64_t seed = 3;
    uint8_t block[997];
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* the loop's thread gets them */
    for (size_t done = 0; done < STORM_BYTES;) {
        size_t n = 1 + chance(&seed) % sizeof block;
        n = n < STORM_BYTES - done ? n : STORM_BYTES - done;
        fill_pattern(block, n, done);
        write_all(*(int *)arg, block, n);
        done += n;
        pause_ms(done / 400 % 2 ? 0 : 1);
    }
    return NULL;
}

static int64_t seven(void *arg) {
    (void)arg;
    pause_ms(3);
    return 7;
}

static void storm(int flags) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0}, others = {0};
    static uint8_t in[STORM_BYTES];
    int fds[PAIRS][2], file = temp_file(sizeof data);
    pthread_t threads[PAIRS];
    for (int which = 0; which < PAIRS; which++) {
        make_pair(which, fds[which]);
        threads[which] = start(write_slowly, &fds[which][1]);
    }
    catch(SIGALRM, flags);
    struct itimerval often = {{0, 1000}, {0, 1000}}, off = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    size_t got[PAIRS] = {0}, others_wanted = 0;
    upcall_id ids[PAIRS];
    static uint8_t parts[PAIRS][4096];
    for (int which = 0; which < PAIRS; which++)
        ids[which] = submit_one(loop, upcall_op_read(fds[which][0], parts[which], sizeof parts[which]), &rec);
    size_t seen = 0;
    uint64_t limit = now_ns() + 50 * UPCALL_SECOND;
    while (got[0] + got[1] + got[2] < PAIRS * STORM_BYTES) {
        CHECK(upcall_poll(loop, MS(1000)) >= 0);
        CHECK(now_ns() < limit);
        for (; seen < rec.count; seen++)
            for (int which = 0; which < PAIRS; which++)
                if (rec.events[seen].id == ids[which]) {
                    CHECK(rec.events[seen].result > 0); /* never -EINTR */
                    CHECK(has_pattern(parts[which], (size_t)rec.events[seen].result, got[which]));
                    got[which] += (size_t)rec.events[seen].result;
                    if (got[which] < STORM_BYTES) {
                        upcall_op op = upcall_op_read(fds[which][0], parts[which], sizeof parts[which]);
                        ids[which] = submit_one(loop, op, &rec);
                    }
                    break;
                }
        if (others.finals == others_wanted && others_wanted < 400) {
            submit_one(loop, upcall_op_pread(file, in, 65536, 1000), &others);
            submit_one(loop, upcall_op_fsync(file), &others);
            submit_one(loop, upcall_op_work(seven, NULL), &others);
            submit_one(loop, upcall_op_sleep(2 * UPCALL_MILLISECOND), &others);
            others_wanted += 4;
        }
    }
    run_finals(loop, &others, others_wanted);
    for (size_t i = 0; i < others.count; i++) {
        uint32_t kind = others.events[i].kind;
        CHECK_EQ(others.events[i].result, kind == UPCALL_OP_PREAD ? 65536 : kind == UPCALL_OP_WORK ? 7 : 0);
    }
    for (int i = 0; i < 20; i++) { /* waits are kept against the storm: a sleep is never early */
        uint64_t before = now_ns();
        CHECK_EQ(complete(loop, upcall_op_sleep(7 * UPCALL_MILLISECOND)).result, 0);
        CHECK(now_ns() - before >= 7 * UPCALL_MILLISECOND);
    }
    CHECK_EQ(upcall_run(loop), 0);
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
    CHECK(atomic_load(&caught) > 20);
    for (int which = 0; which < PAIRS; which++) {
        join(threads[which]);
        close_pair(fds[which]);
    }
    quiet(loop, &rec);
    free_loop(loop);
}

TEST_FOR(a_storm_of_signals_loses_nothing, 60) { /* hazards row 17 */
    storm(0);
}
TEST_FOR(a_storm_of_restarting_signals_loses_nothing, 60) { /* hazards row 17 */
    storm(SA_RESTART);
}

TEST(run_goes_on_through_signals) { /* hazards row 17 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    catch(SIGALRM, 0);
    struct itimerval often = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (size_t round = 0; round < 5 || atomic_load(&caught) <= 3; round++) { /* on a busy machine many come as one */
        CHECK(round < 1000);
        submit_one(loop, upcall_op_sleep(20 * UPCALL_MILLISECOND), &rec);
        CHECK_EQ(upcall_run(loop), 0);
        CHECK_EQ(rec.finals, round + 1);
        CHECK_EQ(rec.events[round].result, 0);
    }
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
    free_loop(loop);
}

/* Counts the signals that other threads of this process handled. */
static pthread_t main_thread;
static atomic_int elsewhere;
static void note_thread(int number) {
    (void)number;
    if (!pthread_equal(pthread_self(), main_thread))
        atomic_fetch_add(&elsewhere, 1);
    atomic_fetch_add(&caught, 1);
}

TEST(the_pools_threads_leave_signals_to_the_program) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    main_thread = pthread_self();
    struct sigaction action = {.sa_handler = note_thread, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    for (int i = 0; i < 20; i++)
        submit_one(loop, upcall_op_work(seven, NULL), &rec);
    struct itimerval often = {{0, 1000}, {0, 1000}}, off = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    run_finals(loop, &rec, 20);
    pause_ms(20);
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
    CHECK(atomic_load(&caught) > 3);
    CHECK_EQ(atomic_load(&elsewhere), 0);
    free_loop(loop);
}
