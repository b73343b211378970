/* Promises that were once broken: each test is the shortest program that saw it. */
#include "check.h"
#include <stdatomic.h>
#include <sys/time.h>

/* ---- Helpers. ---- */

static const char *given_up;
static void on_give_up(int number) {
    (void)number;
    ssize_t n = write(STDOUT_FILENO, given_up, strlen(given_up));
    _exit(n < 0 ? 2 : 1);
}

/* For a call that would hang: the test fails after so many seconds. 0: not any more. */
static void give_up_after(unsigned seconds, const char *text) {
    given_up = text;
    signal(SIGALRM, on_give_up);
    alarm(seconds);
}

static void count_final(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    *(size_t *)event->user += !(event->flags & UPCALL_MORE);
}

static void ignore(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
}

static void nothing(upcall_loop *loop, void *arg) {
    (void)loop;
    (void)arg;
}

/* Polls until `count` final events are in, for at most so long. */
static bool finals_within(upcall_loop *loop, const struct recorder *rec, size_t count, int ms) {
    uint64_t limit = now_ns() + (uint64_t)MS(ms);
    while (rec->finals < count && now_ns() < limit)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    return rec->finals >= count;
}

static upcall_op lent_recv(int fd, upcall_buffers *pool) {
    upcall_op op = upcall_op_recv(fd, NULL, 0, 0);
    op.buffers = pool;
    return op;
}

/* One byte through the pair, into a buffer of the pool: the buffer, which stays lent. */
static void *lend_one(upcall_loop *loop, const int fds[2], upcall_buffers *pool) {
    struct recorder rec = {0};
    submit_one(loop, lent_recv(fds[0], pool), &rec);
    write_all(fds[1], "a", 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 1);
    void *buffer = rec.events[0].buffer;
    CHECK(buffer != NULL);
    forget(&rec);
    return buffer;
}

static long resident_bytes(void) {
    long total, resident;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL);
    CHECK(fscanf(file, "%ld %ld", &total, &resident) == 2);
    fclose(file);
    return resident * sysconf(_SC_PAGESIZE);
}

/* Turns without waiting, for at most so long, until *done. */
static bool turns_until(upcall_loop *loop, const size_t *done, int ms) {
    uint64_t limit = now_ns() + (uint64_t)MS(ms);
    while (!*done && now_ns() < limit)
        CHECK(upcall_poll(loop, 0) >= 0);
    return *done;
}

/* ---- Order. ---- */

TEST(a_write_behind_a_write_starts_while_reads_wait) {
    enum { SIZE = 1 << 20 };
    static char big[SIZE], sink[SIZE];
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    char a, b;
    unix_pair(fds);
    upcall_op ops[4] = {upcall_op_read(fds[0], &a, 1), upcall_op_read(fds[0], &b, 1),
                        upcall_op_write(fds[0], big, SIZE), upcall_op_write(fds[0], "x", 1)};
    ops[2].flags = UPCALL_FULL;
    upcall_id ids[4];
    submit_many(loop, ops, 4, &rec, ids);
    size_t got = 0;
    for (uint64_t limit = now_ns() + (uint64_t)MS(3000); got < SIZE + 1 && now_ns() < limit;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        ssize_t n = recv(fds[1], sink, sizeof sink, MSG_DONTWAIT);
        got += n > 0 ? (size_t)n : 0;
    }
    CHECK_EQ(got, SIZE + 1);
    write_all(fds[1], "yz", 2);
    run_finals(loop, &rec, 4);
    check_finals(&rec, ids, 4);
    CHECK_EQ(final_of(&rec, ids[2]).result, SIZE);
    CHECK_EQ(final_of(&rec, ids[3]).result, 1);
    CHECK(a == 'y' && b == 'z');
    close_pair(fds);
    free_loop(loop);
}

/* ---- Cancelling. ---- */

static atomic_int gate_open;
static int64_t wait_at_gate(void *arg) {
    (void)arg;
    while (!atomic_load(&gate_open)) {
        struct timespec t = {0, 20000};
        nanosleep(&t, NULL);
    }
    return 0;
}

TEST(opening_a_fifo_can_be_cancelled_after_works_were) {
    char path[4096];
    snprintf(path, sizeof path, "%s/upcall-fifo-%d", temp_directory(), (int)getpid());
    CHECK(mkfifo(path, 0600) == 0);
    bool ended = true;
    for (int round = 0; round < 25 && ended; round++) {
        upcall_config config = default_config();
        config.workers = 2;
        upcall_loop *loop = loop_with(&config);
        struct recorder works = {0}, opened = {0};
        upcall_id ids[64];
        atomic_store(&gate_open, 0);
        CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = 0; i < COUNT_OF(ids); i++)
            ids[i] = submit_one(loop, upcall_op_work(wait_at_gate, NULL), &works);
        start_all(loop);
        pause_ms(3);
        for (size_t i = 1; i < COUNT_OF(ids); i++)
            CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
        start_all(loop);
        upcall_id id = submit_one(loop, upcall_op_open(AT_FDCWD, path, O_RDONLY, 0), &opened);
        atomic_store(&gate_open, 1);
        CHECK(upcall_poll(loop, 0) >= 0);
        CHECK(upcall_poll(loop, MS(5)) >= 0);
        CHECK(upcall_poll(loop, MS(5)) >= 0);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        ended = finals_within(loop, &opened, 1, 1500);
        if (!ended)
            break;
        CHECK_EQ(opened.events[0].result, -ECANCELED);
        run_finals(loop, &works, COUNT_OF(ids));
        free_loop(loop);
        forget(&works);
        forget(&opened);
    }
    CHECK(unlink(path) == 0);
    CHECK(ended);
}

static upcall_loop *loop_of_alarm;
static void stop_loop_of_alarm(int number) {
    (void)number;
    upcall_stop(loop_of_alarm);
}

TEST(run_ends_after_an_operation_was_cancelled_many_times) {
    upcall_loop *loop = loop_of_alarm = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, upcall_op_sleep(100 * UPCALL_SECOND), &rec);
    for (int i = 0; i < 20000; i++)
        CHECK_EQ(upcall_cancel(loop, id), 0);
    signal(SIGALRM, stop_loop_of_alarm);
    alarm(2);
    int rc = upcall_run(loop);
    alarm(0);
    CHECK_EQ(rc, 0);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    free_loop(loop);
}

struct late_submit {
    upcall_loop *loop;
    struct recorder *rec;
    upcall_id id;
    int fd;
    char in[4];
};
static void *submit_behind_posts(void *arg) {
    struct late_submit *late = arg;
    for (int i = 0; i < 5000; i++)
        CHECK_EQ(upcall_post(late->loop, nothing, NULL), 0);
    late->id = submit_one(late->loop, upcall_op_recv(late->fd, late->in, sizeof late->in, 0), late->rec);
    return NULL;
}

static void cancel_what_stands_behind_posts(bool all) {
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    struct late_submit late = {.loop = new_loop(), .rec = &rec, .fd = fds[0]};
    CHECK(upcall_poll(late.loop, 0) >= 0);
    join(start(submit_behind_posts, &late));
    if (all)
        CHECK_EQ(upcall_cancel_all(late.loop), 1);
    else
        CHECK_EQ(upcall_cancel(late.loop, late.id), 0);
    CHECK(finals_within(late.loop, &rec, 1, 1500));
    CHECK_EQ(final_of(&rec, late.id).result, -ECANCELED);
    close_pair(fds);
    free_loop(late.loop);
}

TEST(a_cancel_reaches_an_operation_that_stands_behind_many_posts) {
    cancel_what_stands_behind_posts(false);
}

TEST(cancel_all_reaches_an_operation_that_stands_behind_many_posts) {
    cancel_what_stands_behind_posts(true);
}

static struct {
    upcall_loop *loop;
    _Atomic upcall_id id;
    atomic_long finals, cancels;
    atomic_bool over;
} duel;

static void duel_final(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    CHECK_EQ(event->result, -ECANCELED);
    atomic_fetch_add(&duel.finals, 1);
}

static void *duel_submit(void *arg) {
    (void)arg;
    for (long round = 0; !atomic_load(&duel.over); round++) {
        while (atomic_load(&duel.finals) != round)
            if (atomic_load(&duel.over))
                return NULL;
        upcall_op op = upcall_op_sleep(1000 * UPCALL_SECOND);
        op.callback = duel_final;
        atomic_store(&duel.id, 0);
        CHECK_EQ(upcall_submit(duel.loop, &op, 1, (upcall_id *)&duel.id), 0);
    }
    return NULL;
}

static void *duel_cancel(void *arg) {
    (void)arg;
    for (upcall_id last = 0; !atomic_load(&duel.over);) {
        upcall_id id = atomic_load(&duel.id);
        if (id && id != last && upcall_cancel(duel.loop, id) == 0) {
            last = id;
            atomic_fetch_add(&duel.cancels, 1);
        }
    }
    return NULL;
}

TEST(a_cancel_by_a_third_thread_does_not_overtake_the_submit) {
    duel.loop = new_loop();
    CHECK(upcall_poll(duel.loop, 0) >= 0);
    pthread_t threads[2] = {start(duel_submit, NULL), start(duel_cancel, NULL)};
    uint64_t began = now_ns(), moved = began;
    for (long seen = 0; seen < 10000 && now_ns() < began + (uint64_t)MS(1500);) {
        CHECK(upcall_poll(duel.loop, MS(1)) >= 0);
        long finals = atomic_load(&duel.finals);
        if (finals != seen) {
            seen = finals;
            moved = now_ns();
        } else if (atomic_load(&duel.cancels) > seen) { /* accepted: so the final event comes */
            for (uint64_t limit = moved + (uint64_t)MS(2000); now_ns() < limit && atomic_load(&duel.finals) == seen;)
                CHECK(upcall_poll(duel.loop, MS(1)) >= 0);
            CHECK(atomic_load(&duel.finals) > seen);
        }
    }
    atomic_store(&duel.over, true);
    join(threads[0]);
    join(threads[1]);
    upcall_cancel_all(duel.loop);
    CHECK_EQ(upcall_loop_free(duel.loop), 0);
}

TEST(cancel_fd_leaves_an_operation_that_has_no_descriptor) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, upcall_op_socket(AF_INET, SOCK_STREAM, 0), &rec);
    CHECK_EQ(upcall_cancel_fd(loop, AF_INET), 0);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK(final_of(&rec, id).result >= 0);
    free_loop(loop);
}

static struct {
    int fds[2];
    upcall_id victim;
    uint64_t asked;
} theft;
static void take_and_cancel(upcall_loop *loop, const upcall_event *event) {
    char in[8];
    CHECK_EQ(event->result, 1);
    recv(theft.fds[0], in, sizeof in, MSG_DONTWAIT); /* the victim may be on its way to this datagram */
    theft.asked = now_ns();
    int rc = upcall_cancel(loop, theft.victim);
    CHECK(rc == 0 || rc == -ENOENT);
}

TEST(a_cancelled_recv_ends_at_once_when_its_datagram_was_taken_by_another) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_buffers *pool;
    int fds[2];
    char in[8];
    pipe_pair(fds);
    dgram_pair(theft.fds);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    CHECK(upcall_poll(loop, 0) >= 0);
    theft.victim = submit_one(loop, lent_recv(theft.fds[0], pool), &rec);
    upcall_op trigger = upcall_op_read(fds[0], in, sizeof in);
    trigger.callback = take_and_cancel;
    CHECK_EQ(upcall_submit(loop, &trigger, 1, NULL), 0);
    CHECK(upcall_poll(loop, MS(5)) >= 0);
    CHECK(upcall_poll(loop, MS(5)) >= 0);
    write_all(fds[1], "a", 1);
    write_all(theft.fds[1], "x", 1);
    run_finals(loop, &rec, 1);
    uint64_t took = now_ns() - theft.asked;
    CHECK(rec.events[0].result == -ECANCELED || rec.events[0].result == 1);
    CHECK(took < (uint64_t)MS(250) * slowness());
    if (rec.events[0].buffer)
        CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
    close_pair(fds);
    close_pair(theft.fds);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
}

/* ---- Memory and descriptors. ---- */

static struct {
    upcall_loop *loop;
    int null;
    atomic_int done;
    int wanted;
} foreign;
static void foreign_done(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    CHECK_EQ(event->result, 0);
    atomic_fetch_add(&foreign.done, 1);
}
static void *submit_vectors(void *arg) {
    static struct iovec parts[1024];
    (void)arg;
    upcall_op op = upcall_op_writev(foreign.null, parts, COUNT_OF(parts));
    op.callback = foreign_done;
    for (int i = 0; i < foreign.wanted; i++) {
        while (i - atomic_load(&foreign.done) > 100)
            sched_yield();
        CHECK_EQ(upcall_submit(foreign.loop, &op, 1, NULL), 0);
    }
    return NULL;
}
static void vectors_by_a_thread(int count) {
    atomic_store(&foreign.done, 0);
    foreign.wanted = count;
    pthread_t thread = start(submit_vectors, NULL);
    while (atomic_load(&foreign.done) < count)
        CHECK(upcall_poll(foreign.loop, MS(10)) >= 0);
    join(thread);
}

TEST(the_vectors_another_thread_submits_are_not_kept) {
    foreign.loop = new_loop();
    foreign.null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    CHECK(foreign.null >= 0);
    CHECK(upcall_poll(foreign.loop, 0) >= 0);
    vectors_by_a_thread(500);
    long before = resident_bytes();
    vectors_by_a_thread(5000); /* 16 KiB each */
    CHECK(resident_bytes() - before < 24 << 20);
    close(foreign.null);
    free_loop(foreign.loop);
}

TEST(a_loop_freed_while_a_buffer_is_lent_keeps_nothing_open) {
    int before = open_fd_count();
    long resident = 0;
    for (int round = 0; round < 100; round++) {
        upcall_loop *loop = new_loop();
        upcall_buffers *pool;
        int fds[2];
        unix_pair(fds);
        CHECK_EQ(upcall_buffers_new(loop, 16, 65536, &pool), 0);
        void *buffer = lend_one(loop, fds, pool);
        free_loop(loop);
        memset(buffer, 1, 65536); /* still the program's */
        CHECK_EQ(upcall_buffers_return(pool, buffer), 0);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(fds);
        if (round == 20)
            resident = resident_bytes();
    }
    CHECK_EQ(open_fd_count(), before);
    CHECK(resident_bytes() - resident < 16 << 20);
}

static int64_t work_a_little(void *arg) {
    (void)arg;
    pause_ms(2);
    return 0;
}

TEST(a_loop_may_be_freed_while_many_works_wait_for_a_thread) {
    uint64_t limit = now_ns() + (uint64_t)MS(1500);
    for (int round = 0; round < 20 && now_ns() < limit; round++) {
        upcall_config config = default_config();
        config.workers = 2;
        upcall_loop *loop = loop_with(&config);
        upcall_op op = upcall_op_work(work_a_little, NULL);
        op.callback = ignore;
        CHECK(upcall_poll(loop, 0) >= 0);
        for (int i = 0; i < 20000; i++)
            CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
        for (int i = 0; i < 22; i++)
            CHECK(upcall_poll(loop, 0) >= 0);
        free_loop(loop);
    }
}

/* ---- Buffers. ---- */

struct late_return {
    upcall_buffers *pool;
    void *buffer;
    atomic_int go;
    uint64_t delay;
};
static void *return_late(void *arg) {
    struct late_return *late = arg;
    while (!atomic_load(&late->go)) {}
    for (uint64_t limit = now_ns() + late->delay; now_ns() < limit;) {}
    CHECK_EQ(upcall_buffers_return(late->pool, late->buffer), 0);
    return NULL;
}

TEST(freeing_a_loop_ends_while_another_thread_returns_a_buffer) {
    enum { NOPS = 20000 };
    static upcall_op nops[NOPS];
    uint64_t limit = now_ns() + (uint64_t)MS(1500);
    for (uint64_t round = 0; round < 150 && now_ns() < limit; round++) {
        upcall_loop *loop = new_loop();
        struct late_return late = {.delay = round * 3711 % 150000};
        size_t done = 0;
        int fds[2];
        unix_pair(fds);
        CHECK_EQ(upcall_buffers_new(loop, 2, 64, &late.pool), 0);
        CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = 0; i < NOPS; i++) {
            nops[i] = upcall_op_nop();
            nops[i].callback = count_final;
            nops[i].user = &done;
        }
        CHECK_EQ(upcall_submit(loop, nops, NOPS, NULL), 0);
        wait_count(loop, &done, NOPS);
        for (int i = 0; i < 40; i++)
            CHECK(upcall_poll(loop, 0) >= 0);
        late.buffer = lend_one(loop, fds, late.pool);
        pthread_t thread = start(return_late, &late);
        pause_ms(1);
        give_up_after(3, "upcall_loop_free does not end\n");
        atomic_store(&late.go, 1);
        CHECK_EQ(upcall_loop_free(loop), 0);
        give_up_after(0, "");
        join(thread);
        CHECK_EQ(upcall_buffers_free(late.pool), 0);
        close_pair(fds);
    }
}

TEST(a_buffer_returned_during_detach_is_lent_once) {
    for (uint64_t round = 0; round < 60; round++) {
        upcall_loop *loop = new_loop();
        struct late_return late = {.delay = round * 7919 % 1000000};
        struct recorder rec = {0};
        int fds[2];
        unix_pair(fds);
        CHECK_EQ(upcall_buffers_new(loop, 2, 64, &late.pool), 0);
        CHECK(upcall_poll(loop, 0) >= 0);
        late.buffer = lend_one(loop, fds, late.pool);
        pthread_t thread = start(return_late, &late);
        pause_ms(1);
        atomic_store(&late.go, 1);
        int rc = upcall_loop_detach(loop);
        CHECK(rc == 0 || rc == -EBUSY);
        join(thread);
        for (int i = 0; i < 3; i++)
            submit_one(loop, lent_recv(fds[0], late.pool), &rec);
        for (size_t i = 0; i < 3; i++) { /* a pool of 2: the third waits */
            write_all(fds[1], "b", 1);
            finals_within(loop, &rec, i + 1, i < 2 ? 2000 : 4);
        }
        CHECK_EQ(rec.finals, 2);
        CHECK(rec.events[0].buffer != rec.events[1].buffer);
        for (size_t i = 0; i < 2; i++) {
            CHECK_EQ(rec.events[i].result, 1);
            CHECK_EQ(upcall_buffers_return(late.pool, rec.events[i].buffer), 0);
        }
        run_finals(loop, &rec, 3); /* and now has one */
        CHECK_EQ(rec.events[2].result, 1);
        CHECK_EQ(upcall_buffers_return(late.pool, rec.events[2].buffer), 0);
        free_loop(loop);
        CHECK_EQ(upcall_buffers_free(late.pool), 0);
        close_pair(fds);
        forget(&rec);
    }
}

static atomic_bool enough;
static void *free_again_and_again(void *arg) {
    while (!atomic_load(&enough))
        CHECK_EQ(upcall_buffers_free(arg), -EBUSY);
    return NULL;
}

TEST(a_pool_refused_to_be_freed_lends_as_before) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_buffers *pool;
    int fds[2];
    unix_pair(fds);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    void *held = lend_one(loop, fds, pool);
    pthread_t thread = start(free_again_and_again, pool);
    for (uint64_t limit = now_ns() + (uint64_t)MS(500); now_ns() < limit;)
        CHECK(upcall_poll(loop, 0) >= 0);
    atomic_store(&enough, true);
    join(thread);
    for (size_t i = 0; i < 12; i++) {
        submit_one(loop, lent_recv(fds[0], pool), &rec);
        write_all(fds[1], "b", 1);
        CHECK(finals_within(loop, &rec, i + 1, 1500));
        CHECK_EQ(rec.events[i].result, 1);
        CHECK(rec.events[i].buffer != held);
        CHECK_EQ(upcall_buffers_return(pool, rec.events[i].buffer), 0);
    }
    CHECK_EQ(upcall_buffers_return(pool, held), 0);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(fds);
}

TEST(recvmsg_with_buffers_does_not_look_at_the_vector) {
    static const char message[] = "0123456789abcdefghi";
    for (int which = 0; which < 3; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        upcall_buffers *pool;
        int fds[2];
        dgram_pair(fds);
        CHECK_EQ(upcall_buffers_new(loop, 4, 256, &pool), 0);
        struct iovec nowhere = {(void *)(uintptr_t)1, 10};
        struct msghdr room = {0};
        room.msg_iov = which == 0 ? NULL : which == 1 ? &nowhere : (struct iovec *)(uintptr_t)16;
        room.msg_iovlen = which > 0;
        upcall_op op = upcall_op_recvmsg(fds[0], &room, 0);
        op.flags = UPCALL_MULTISHOT;
        op.buffers = pool;
        upcall_id id = submit_one(loop, op, &rec);
        write_all(fds[1], message, sizeof message);
        run_until(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, sizeof message);
        CHECK_EQ(rec.events[0].flags, UPCALL_MORE);
        CHECK(memcmp(upcall_msg_payload(rec.events[0].buffer, &room), message, sizeof message) == 0);
        CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        free_loop(loop);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(fds);
        forget(&rec);
    }
}

TEST(a_file_read_where_no_thread_can_be_started_is_not_an_end_of_file) {
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 4, 256, &pool), 0);
    CHECK(upcall_poll(loop, 0) >= 0);
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
        SKIP("root's rights cannot be given up");
    struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_NPROC, &none) == 0);
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC); /* may block: the kernel takes no chance with it */
    CHECK(fd >= 0);
    upcall_op op = upcall_op_read(fd, NULL, 0);
    op.buffers = pool;
    struct record final = complete(loop, op);
    CHECK_EQ(final.result, 256);
    CHECK(final.buffer != NULL && memcmp(final.buffer, "Name:", 5) == 0);
    CHECK_EQ(upcall_buffers_return(pool, final.buffer), 0);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
}

static struct {
    upcall_buffers *pool;
    void *buffer;
} inherited;
static void return_inherited(void *arg) {
    (void)arg;
    CHECK_EQ(upcall_buffers_return(inherited.pool, inherited.buffer), -ECHILD);
}

TEST(a_buffer_returned_in_a_forked_child_is_echild) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    CHECK_EQ(upcall_buffers_new(loop, 2, 64, &inherited.pool), 0);
    inherited.buffer = lend_one(loop, fds, inherited.pool);
    CHECK_EQ(in_child(return_inherited, NULL), 0);
    CHECK_EQ(upcall_buffers_return(inherited.pool, inherited.buffer), 0);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(inherited.pool), 0);
    close_pair(fds);
}

/* ---- Readiness. ---- */

TEST(a_poll_for_pollrdnorm_is_answered) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    pipe_pair(fds);
    submit_one(loop, upcall_op_poll(fds[0], POLLRDNORM), &rec);
    CHECK(upcall_poll(loop, MS(10)) >= 0);
    CHECK_EQ(rec.count, 0);
    write_all(fds[1], "a", 1);
    CHECK(finals_within(loop, &rec, 1, 1500));
    CHECK_EQ(rec.events[0].result, POLLRDNORM);
    close_pair(fds);
    free_loop(loop);
}

TEST(a_poll_that_nothing_answers_costs_no_processor_time) {
    int file = temp_file(10), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int hung_up[2];
    tcp_pair(hung_up);
    CHECK(shutdown(hung_up[1], SHUT_WR) == 0);
    struct {
        int fd;
        uint32_t events;
    } cases[] = {{file, POLLPRI}, {file, 0}, {null, POLLPRI}, {hung_up[0], POLLPRI}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        upcall_id id = submit_one(loop, upcall_op_poll(cases[i].fd, cases[i].events), &rec);
        uint64_t used = processor_ns();
        for (uint64_t limit = now_ns() + (uint64_t)MS(400); rec.finals == 0 && now_ns() < limit;)
            CHECK(upcall_poll(loop, MS(400)) >= 0);
        CHECK(processor_ns() - used < (uint64_t)MS(120));
        if (rec.finals == 0)
            CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        free_loop(loop);
        forget(&rec);
    }
    close(file);
    close(null);
    close_pair(hung_up);
}

static size_t reap_some(upcall_loop *loop) {
    upcall_event event;
    size_t n = 0;
    for (int rc; (rc = upcall_reap(loop, &event, 1)) != 0; n++)
        CHECK_EQ(rc, 1);
    return n;
}

TEST(a_poll_paused_by_unreaped_records_misses_no_arrival) {
    upcall_config config = default_config();
    config.max_events = 1;
    upcall_loop *loop = loop_with(&config);
    int fds[2];
    pipe_pair(fds);
    set_nonblocking(fds[0]);
    upcall_op op = upcall_op_poll(fds[0], POLLIN);
    op.flags = UPCALL_MULTISHOT;
    upcall_id id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    write_all(fds[1], "a", 1);
    size_t got = 0;
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; got == 0 && now_ns() < limit; got = reap_some(loop))
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    CHECK(got > 0);
    drain_fd(fds[0]);
    for (int i = 0; i < 20; i++) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        reap_some(loop);
    }
    write_all(fds[1], "b", 1);
    for (int i = 0; i < 20; i++) /* its record stays: the poll is paused */
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    drain_fd(fds[0]);
    write_all(fds[1], "c", 1);
    for (int i = 0; i < 5; i++)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    CHECK(reap_some(loop) > 0);
    got = 0;
    for (uint64_t limit = now_ns() + (uint64_t)MS(1500); got == 0 && now_ns() < limit; got = reap_some(loop))
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    CHECK(got > 0);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    while (in_flight(loop) > 0) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        reap_some(loop);
    }
    close_pair(fds);
    free_loop(loop);
}

TEST(a_turn_that_does_not_wait_sees_what_is_ready) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2], turns = 0;
    char in[4];
    unix_pair(fds);
    submit_one(loop, upcall_op_recv(fds[0], in, sizeof in, 0), &rec);
    start_all(loop);
    write_all(fds[1], "a", 1);
    for (; rec.finals == 0 && turns < 1000; turns++)
        CHECK(upcall_poll(loop, 0) >= 0);
    CHECK(turns <= 3);
    close_pair(fds);
    free_loop(loop);
}

TEST(recvmsg_in_full_keeps_the_control_data) {
    for (int full = 0; full < 2; full++) {
        upcall_loop *loop = new_loop();
        int fds[2], passed;
        unix_pair(fds);
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } out = {{0}}, in = {{0}};
        struct iovec sent = {(char[]){"abcd"}, 4}, taken = {(char[4]){0}, 4};
        struct msghdr message = {.msg_iov = &sent, .msg_iovlen = 1, .msg_control = out.bytes,
                                 .msg_controllen = sizeof out.bytes};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fds[0], sizeof(int));
        CHECK_EQ(sendmsg(fds[1], &message, 0), 4);
        message = (struct msghdr){.msg_iov = &taken, .msg_iovlen = 1, .msg_control = in.bytes,
                                  .msg_controllen = sizeof in.bytes};
        upcall_op op = upcall_op_recvmsg(fds[0], &message, 0);
        op.flags = full ? UPCALL_FULL : 0;
        CHECK_EQ(complete(loop, op).result, 4);
        header = CMSG_FIRSTHDR(&message);
        CHECK(header != NULL && header->cmsg_type == SCM_RIGHTS);
        memcpy(&passed, CMSG_DATA(header), sizeof passed);
        CHECK_EQ(fcntl(passed, F_GETFD), FD_CLOEXEC);
        close(passed);
        close_pair(fds);
        free_loop(loop);
    }
}

/* ---- Turns. ---- */

static atomic_int signals_seen;
static void count_signal(int number) {
    (void)number;
    atomic_fetch_add(&signals_seen, 1);
}

TEST(a_signal_handler_ends_the_wait_of_a_turn_that_hands_over) {
    upcall_loop *loop = new_loop();
    int fds[2];
    char in[4];
    unix_pair(fds);
    struct sigaction action = {.sa_handler = count_signal};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(upcall_poll(loop, MS(1)) >= 0);
    upcall_op op = upcall_op_recv(fds[0], in, sizeof in, 0);
    op.callback = ignore;
    bool ended = false;
    for (int i = 0; i < 3 && !ended; i++) { /* again: on a busy machine the signal may come before the wait */
        struct itimerval timer = {{0, 0}, {0, 200000}};
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0); /* the same turn hands it over and waits */
        CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
        uint64_t began = now_ns();
        CHECK_EQ(upcall_poll(loop, MS(1500)), 0);
        ended = now_ns() - began < (uint64_t)MS(1000);
        CHECK_EQ(atomic_load(&signals_seen), i + 1);
    }
    CHECK(ended);
    close(fds[1]);
    free_loop(loop);
    close(fds[0]);
}

static bool renewal_over;
static void renew_nop(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    upcall_op op = upcall_op_nop();
    op.callback = renew_nop;
    if (!renewal_over)
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
}
static void renew_sleep(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    upcall_op op = upcall_op_sleep(0);
    op.callback = renew_sleep;
    if (!renewal_over)
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
}
static void renew_post(upcall_loop *loop, void *arg) {
    if (!renewal_over)
        CHECK_EQ(upcall_post(loop, renew_post, arg), 0);
}
static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

enum renewal { OF_NOPS, OF_SLEEPS, OF_POSTS };
/* `width` things that each call for the next fill every turn of `width` events: `op` ends all the same. */
static void ends_beside(enum renewal renewal, uint32_t width, upcall_op op) {
    upcall_config config = default_config();
    config.max_events = width;
    upcall_loop *loop = loop_with(&config);
    size_t done = 0;
    CHECK(upcall_poll(loop, 0) >= 0);
    upcall_op renewed = renewal == OF_NOPS ? upcall_op_nop() : upcall_op_sleep(0);
    renewed.callback = renewal == OF_NOPS ? renew_nop : renew_sleep;
    for (uint32_t i = 0; i < width; i++)
        CHECK_EQ(renewal == OF_POSTS ? upcall_post(loop, renew_post, NULL) : upcall_submit(loop, &renewed, 1, NULL), 0);
    op.callback = count_final;
    op.user = &done;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    bool ended = turns_until(loop, &done, 1500);
    CHECK(ended);
    renewal_over = true;
    while (upcall_poll(loop, 0) > 0) {}
    free_loop(loop);
}

TEST(a_work_ends_beside_nops_that_fill_every_turn) {
    ends_beside(OF_NOPS, 1024, upcall_op_work(seven, NULL));
}

static void recv_ends_beside(enum renewal renewal) {
    int fds[2];
    char in[4];
    unix_pair(fds);
    write_all(fds[1], "a", 1);
    ends_beside(renewal, 1, upcall_op_recv(fds[0], in, sizeof in, 0));
    close_pair(fds);
}

TEST(a_recv_ends_beside_a_sleep_that_fills_every_turn) {
    recv_ends_beside(OF_SLEEPS);
}

TEST(a_recv_ends_beside_a_post_that_fills_every_turn) {
    recv_ends_beside(OF_POSTS);
}

static atomic_bool second_post_ran;
static int embedding_fd = -1;
static void second_post(upcall_loop *loop, void *arg) {
    (void)loop;
    (void)arg;
    atomic_store(&second_post_ran, true);
}
static void first_post(upcall_loop *loop, void *arg) {
    embedding_fd = upcall_fd(loop);
    CHECK_EQ(upcall_post(loop, second_post, arg), 0);
}
static void *post_soon(void *loop) {
    pause_ms(50);
    CHECK_EQ(upcall_post(loop, first_post, NULL), 0);
    return NULL;
}

TEST(an_embedding_descriptor_made_in_a_callback_shows_the_post_made_after_it) {
    upcall_loop *loop = new_loop();
    CHECK(upcall_poll(loop, 0) >= 0);
    pthread_t thread = start(post_soon, loop);
    while (embedding_fd < 0)
        CHECK(upcall_poll(loop, MS(1000)) >= 0);
    join(thread);
    CHECK(atomic_load(&second_post_ran) || is_readable(embedding_fd, 1000));
    while (!atomic_load(&second_post_ran))
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    free_loop(loop);
}

TEST(spinning_without_limit_still_sees_a_timer) {
    upcall_config config = default_config();
    config.spin_ns = UINT64_MAX;
    upcall_loop *loop = loop_with(&config);
    give_up_after(3, "a turn does not end\n");
    CHECK_EQ(complete(loop, upcall_op_sleep(UPCALL_MILLISECOND)).result, 0);
    CHECK_EQ(complete(loop, upcall_op_sleep(UPCALL_MILLISECOND)).result, 0);
    CHECK_EQ(upcall_poll(loop, MS(10)), 0);
    free_loop(loop);
}

struct four {
    upcall_loop *loop;
    size_t done;
    int rc;
};
static void *submit_four(void *arg) {
    struct four *four = arg;
    upcall_op ops[4];
    for (size_t i = 0; i < 4; i++) {
        ops[i] = upcall_op_nop();
        ops[i].callback = count_final;
        ops[i].user = &four->done;
    }
    four->rc = upcall_submit(four->loop, ops, 4, NULL);
    return NULL;
}

TEST(another_thread_may_fill_a_small_loop_that_is_empty) {
    upcall_config config = default_config();
    config.max_operations = 64;
    struct four four = {.loop = loop_with(&config)};
    CHECK(upcall_poll(four.loop, 0) >= 0);
    CHECK_EQ(complete(four.loop, upcall_op_nop()).result, 0);
    start_all(four.loop);
    CHECK_EQ(in_flight(four.loop), 0);
    join(start(submit_four, &four));
    CHECK_EQ(four.rc, 0);
    wait_count(four.loop, &four.done, 4);
    free_loop(four.loop);
}

static int dead_owner_events;
static void call_what_a_callback_may_not(upcall_loop *loop, const upcall_event *event) {
    dead_owner_events++;
    CHECK_EQ(event->result, -EOWNERDEAD);
    CHECK_EQ(upcall_loop_free(loop), -EDEADLK);
    CHECK_EQ(upcall_poll(loop, 0), -EDEADLK);
}
static void *own_and_exit(void *arg) {
    static char in[4];
    int fds[2];
    unix_pair(fds);
    upcall_op op = upcall_op_recv(fds[0], in, sizeof in, 0);
    op.callback = call_what_a_callback_may_not;
    CHECK(upcall_poll(arg, 0) >= 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(upcall_submit(arg, &op, 1, NULL), 0);
    CHECK(upcall_poll(arg, 0) >= 0);
    return NULL;
}

TEST(freeing_a_dead_owners_loop_inside_its_callbacks_is_edeadlk) {
    upcall_loop *loop = new_loop();
    join(start(own_and_exit, loop));
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(dead_owner_events, 3);
}

TEST(data_that_came_before_the_timeout_is_received_though_the_turn_is_late) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    char in[4];
    unix_pair(fds);
    CHECK(upcall_poll(loop, 0) >= 0);
    upcall_op op = upcall_op_recv(fds[0], in, sizeof in, 0);
    op.timeout_ns = 200 * UPCALL_MILLISECOND;
    submit_one(loop, op, &rec);
    CHECK(upcall_poll(loop, MS(1)) >= 0);
    write_all(fds[1], "a", 1);
    pause_ms(300);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 1);
    CHECK_EQ(rec.events[0].flags, 0);
    close_pair(fds);
    free_loop(loop);
}

static const char *file_to_open(void) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/upcall-XXXXXX", temp_directory());
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    return path;
}

/* The ring looks at the name first; the end of that look was told as descriptor 0. */
TEST(a_cancelled_open_does_not_tell_of_descriptor_0) {
    const char *path = file_to_open();
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 300; round++) {
        struct recorder rec = {0};
        upcall_id ids[16];
        upcall_op ops[COUNT_OF(ids)];
        for (size_t i = 0; i < COUNT_OF(ops); i++)
            ops[i] = upcall_op_open(AT_FDCWD, path, O_RDONLY, 0);
        submit_many(loop, ops, COUNT_OF(ops), &rec, ids);
        CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = 0; i < COUNT_OF(ids); i++)
            upcall_cancel(loop, ids[i]);
        run_finals(loop, &rec, COUNT_OF(ids));
        for (size_t i = 0; i < rec.count; i++) {
            CHECK(rec.events[i].result > STDERR_FILENO || rec.events[i].result == -ECANCELED);
            if (rec.events[i].result >= 0)
                close((int)rec.events[i].result);
        }
        forget(&rec);
    }
    CHECK(unlink(path) == 0);
    free_loop(loop);
}

static void *open_and_exit(void *arg) {
    upcall_op op = upcall_op_open(AT_FDCWD, "/", O_RDONLY, 0);
    op.callback = ignore;
    CHECK(upcall_poll(arg, 0) >= 0);
    CHECK_EQ(upcall_submit(arg, &op, 1, NULL), 0);
    CHECK(upcall_poll(arg, 0) >= 0);
    CHECK_EQ(upcall_submit(arg, &op, 1, NULL), 0); /* never handed over */
    return NULL;
}

/* What was left of such an open was closed as the descriptor it was taken for. */
TEST(an_owner_that_exits_while_it_opens_does_not_close_descriptor_0) {
    CHECK(is_open(STDIN_FILENO) || dup2(STDOUT_FILENO, STDIN_FILENO) == STDIN_FILENO);
    for (int round = 0; round < 200; round++) {
        upcall_loop *loop = new_loop();
        join(start(open_and_exit, loop));
        CHECK_EQ(upcall_loop_free(loop), 0);
        CHECK(is_open(STDIN_FILENO));
    }
}

/* A direct write is issued, and checked against the limit, on the thread that enters the ring. */
TEST(a_direct_write_past_the_file_size_limit_raises_no_signal) {
    enum { PAGE = 4096 };
    struct rlimit limit = {PAGE, RLIM_INFINITY};
    const char *path = file_to_open();
    int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    CHECK(unlink(path) == 0);
    if (fd < 0)
        SKIP("this file system has no O_DIRECT");
    uint8_t *memory = aligned_alloc(PAGE, PAGE);
    CHECK(memory != NULL && signal(SIGXFSZ, SIG_DFL) != SIG_ERR);
    memset(memory, 0, PAGE);
    upcall_loop *loop = new_loop();
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_EQ(complete(loop, upcall_op_pwrite(fd, memory, PAGE, 0)).result, PAGE);
    CHECK_EQ(complete(loop, upcall_op_pwrite(fd, memory, PAGE, PAGE)).result, -EFBIG);
    CHECK(lseek(fd, PAGE, SEEK_SET) == PAGE);
    CHECK_EQ(complete(loop, upcall_op_write(fd, memory, PAGE)).result, -EFBIG);
    free_loop(loop);
}
