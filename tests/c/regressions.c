/* Promises that were once broken: each test is the shortest program that saw it. */
#include "check.h"
#include <netdb.h>
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
    if (has_address_sanitizer())
        SKIP("AddressSanitizer keeps what was freed");
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

union room_for_a_descriptor {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static void send_with_descriptor(int to, int passed) {
    union room_for_a_descriptor out = {{0}};
    struct iovec sent = {(char[]){"abcd"}, 4};
    struct msghdr message = {.msg_iov = &sent, .msg_iovlen = 1, .msg_control = out.bytes,
                             .msg_controllen = sizeof out.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &passed, sizeof(int));
    CHECK_EQ(sendmsg(to, &message, 0), 4);
}

TEST(recvmsg_in_full_keeps_the_control_data) {
    for (int full = 0; full < 2; full++) {
        upcall_loop *loop = new_loop();
        int fds[2], passed;
        unix_pair(fds);
        union room_for_a_descriptor in = {{0}};
        struct iovec taken = {(char[4]){0}, 4};
        send_with_descriptor(fds[1], fds[0]);
        struct msghdr message = {.msg_iov = &taken, .msg_iovlen = 1, .msg_control = in.bytes,
                                  .msg_controllen = sizeof in.bytes};
        upcall_op op = upcall_op_recvmsg(fds[0], &message, 0);
        op.flags = full ? UPCALL_FULL : 0;
        CHECK_EQ(complete(loop, op).result, 4);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        CHECK(header != NULL && header->cmsg_type == SCM_RIGHTS);
        memcpy(&passed, CMSG_DATA(header), sizeof passed);
        CHECK_EQ(fcntl(passed, F_GETFD), FD_CLOEXEC);
        close(passed);
        close_pair(fds);
        free_loop(loop);
    }
}

static struct {
    upcall_loop *loop;
    upcall_buffers *pool;
    int fds[2], passed[2]; /* a pipe whose writing end is sent */
    enum { PLAIN, LENT, MULTISHOT } how;
    struct recorder rec, nops;
} heir;

static void *receive_a_descriptor_and_exit(void *arg) {
    static union room_for_a_descriptor in;
    static char bytes[4];
    static struct iovec taken = {bytes, sizeof bytes};
    static struct msghdr message;
    message = (struct msghdr){.msg_control = in.bytes, .msg_controllen = sizeof in.bytes};
    if (heir.how == PLAIN)
        message.msg_iov = &taken, message.msg_iovlen = 1;
    upcall_op op = upcall_op_recvmsg(heir.fds[0], &message, 0);
    op.buffers = heir.how == PLAIN ? NULL : heir.pool;
    op.flags = heir.how == MULTISHOT ? UPCALL_MULTISHOT : 0;
    submit_one(heir.loop, op, &heir.rec);
    start_all(heir.loop);
    for (int i = 0; i < 3; i++)
        submit_one(heir.loop, upcall_op_nop(), &heir.nops);
    CHECK(upcall_poll(heir.loop, 0) >= 0);
    send_with_descriptor(heir.fds[1], heir.passed[1]);
    submit_one(heir.loop, upcall_op_nop(), &heir.nops);
    CHECK(upcall_poll(heir.loop, 0) >= 0); /* what completed behind the others stays untold */
    return arg;
}

TEST(descriptors_that_came_for_a_dead_owner_are_closed) {
    upcall_config config = default_config();
    config.max_events = 1;
    for (heir.how = PLAIN; heir.how <= MULTISHOT; heir.how++) {
        unix_pair(heir.fds);
        pipe_pair(heir.passed);
        heir.loop = loop_with(&config);
        CHECK_EQ(upcall_buffers_new(heir.loop, 4, 256, &heir.pool), 0);
        join(start(receive_a_descriptor_and_exit, NULL));
        CHECK_EQ(upcall_loop_free(heir.loop), 0);
        if (heir.rec.events[0].result == 4)
            SKIP("on this ring what completed later is told first");
        CHECK_EQ(heir.rec.events[0].result, -EOWNERDEAD);
        CHECK_EQ(upcall_buffers_free(heir.pool), 0);
        close_pair(heir.fds);
        close(heir.passed[1]);
        struct pollfd end = {.fd = heir.passed[0], .events = POLLIN};
        CHECK_EQ(poll(&end, 1, 10000), 1);
        CHECK_EQ(end.revents & POLLHUP, POLLHUP); /* nobody has the writing end */
        close(heir.passed[0]);
        forget(&heir.rec);
        forget(&heir.nops);
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

/* ---- Zero-copy sends of several parts. ---- */

enum { PARTS = 32 << 20 };
static char in_parts[PARTS];

/* One byte of room after the other at the peer, until another part was begun: the queue has it, the kernel not yet. */
static void begin_another_part(upcall_loop *loop, int peer) {
    static char sink[1 << 16];
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    uint64_t rearms = stats.rearms, limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (stats.rearms == rearms) {
        CHECK(recv(peer, sink, sizeof sink, MSG_DONTWAIT) > 0 || errno == EAGAIN);
        CHECK(upcall_poll(loop, 0) >= 0);
        CHECK_EQ(upcall_stats_get(loop, &stats), 0);
        CHECK(now_ns() < limit);
    }
}

static upcall_op send_in_parts(int fd) {
    upcall_op op = upcall_op_send(fd, in_parts, PARTS, 0);
    op.flags = UPCALL_FULL | UPCALL_ZEROCOPY;
    return op;
}

static void check_told_then_released(const struct recorder *rec, upcall_id id, int64_t result) {
    CHECK_EQ(rec->count, 2);
    for (size_t i = 0; i < 2; i++) {
        CHECK_EQ(rec->events[i].id, id);
        CHECK_EQ(rec->events[i].result, result);
        CHECK(rec->events[i].transferred > 0 && rec->events[i].transferred < PARTS);
        CHECK_EQ(rec->events[i].flags, i == 0 ? UPCALL_MORE : UPCALL_RELEASED);
    }
}

TEST(a_zero_copy_send_cancelled_between_two_parts_is_released) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    tcp_pair(fds);
    upcall_id id = submit_one(loop, send_in_parts(fds[0]), &rec);
    for (int i = 0; i < 3; i++)
        CHECK(upcall_poll(loop, MS(20)) >= 0);
    begin_another_part(loop, fds[1]);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_until(loop, &rec, 1);
    close_pair(fds); /* the kernel lets go of the first part */
    run_finals(loop, &rec, 1);
    check_told_then_released(&rec, id, -ECANCELED);
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
}

static struct {
    upcall_loop *loop;
    struct recorder rec;
    upcall_id id;
    int fds[2];
    atomic_bool exiting;
} orphan;

static void *read_when_the_owner_exits(void *arg) {
    static char sink[1 << 16];
    while (!atomic_load(&orphan.exiting))
        pause_ms(1);
    while (recv(orphan.fds[1], sink, sizeof sink, 0) > 0) {}
    return arg;
}

static void *send_in_parts_and_exit(void *arg) {
    orphan.id = submit_one(orphan.loop, send_in_parts(orphan.fds[0]), &orphan.rec);
    for (int i = 0; i < 3; i++)
        CHECK(upcall_poll(orphan.loop, MS(20)) >= 0);
    begin_another_part(orphan.loop, orphan.fds[1]);
    begin_another_part(orphan.loop, orphan.fds[1]);
    CHECK(upcall_poll(orphan.loop, 0) >= 0);
    atomic_store(&orphan.exiting, true);
    return arg;
}

TEST(a_zero_copy_send_whose_owner_exits_between_two_parts_is_released) {
    orphan.loop = new_loop();
    tcp_pair(orphan.fds);
    pthread_t reader = start(read_when_the_owner_exits, NULL);
    join(start(send_in_parts_and_exit, NULL));
    CHECK_EQ(upcall_loop_free(orphan.loop), 0);
    check_told_then_released(&orphan.rec, orphan.id, -EOWNERDEAD);
    CHECK(shutdown(orphan.fds[0], SHUT_RDWR) == 0);
    join(reader);
    close_pair(orphan.fds);
}

TEST(a_zero_copy_send_that_found_no_room_is_released_however_soon_it_is_cancelled) {
    for (int which = UNIX; which <= TCP; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        while (fill_up(fds[0]) > 0)
            pause_ms(20); /* the kernel moves what is on its way */
        CHECK(upcall_poll(loop, 0) >= 0);
        upcall_op op = upcall_op_send(fds[0], in_parts, 1000, 0);
        op.flags = UPCALL_ZEROCOPY;
        upcall_id id = submit_one(loop, op, &rec);
        CHECK(upcall_poll(loop, 0) >= 0);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.count, 2);
        for (size_t i = 0; i < 2; i++) {
            CHECK_EQ(rec.events[i].result, -ECANCELED);
            CHECK_EQ(rec.events[i].transferred, 0);
            CHECK_EQ(rec.events[i].flags, i == 0 ? UPCALL_MORE : UPCALL_RELEASED);
        }
        free_loop(loop);
        close_pair(fds);
        forget(&rec);
    }
}

/* ---- Closes beside operations that wait behind others. ---- */

TEST(a_close_does_not_wait_for_what_was_submitted_after_it) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    char first[4], later[4];
    unix_pair(fds);
    upcall_id received = submit_one(loop, upcall_op_recv(fds[0], first, sizeof first, 0), &rec);
    start_all(loop);
    upcall_id closed = submit_one(loop, upcall_op_close(fds[0]), &rec);
    upcall_op chain[2] = {upcall_op_sleep(1000 * UPCALL_SECOND), upcall_op_recv(fds[0], later, sizeof later, 0)};
    upcall_id ids[2];
    chain[0].flags = UPCALL_LINK_ALWAYS;
    submit_many(loop, chain, 2, &rec, ids);
    CHECK(finals_within(loop, &rec, 2, 5000)); /* before the sleep */
    CHECK_EQ(final_of(&rec, received).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, closed).result, 0);
    CHECK(!is_open(fds[0]));
    CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
    run_finals(loop, &rec, 4);
    CHECK_EQ(final_of(&rec, ids[1]).result, -EBADF);
    free_loop(loop);
    close(fds[1]);
}

TEST(two_closes_beside_a_splice_that_waits_behind_one_of_them_both_end) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int in[2], out[2];
    char byte;
    pipe_pair(in);
    pipe_pair(out);
    submit_one(loop, upcall_op_read(in[0], &byte, 1), &rec);
    start_all(loop);
    upcall_id closed = submit_one(loop, upcall_op_close(in[0]), &rec);
    upcall_op chain[3] = {upcall_op_sleep(UPCALL_MILLISECOND), upcall_op_close(out[1]),
                          upcall_op_splice(in[0], -1, out[1], -1, 10, 0)};
    upcall_id ids[3];
    chain[0].flags = chain[1].flags = UPCALL_LINK_ALWAYS;
    submit_many(loop, chain, 3, &rec, ids);
    CHECK(finals_within(loop, &rec, 5, 5000));
    CHECK_EQ(final_of(&rec, closed).result, 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, 0);
    CHECK_EQ(final_of(&rec, ids[2]).result, -EBADF);
    CHECK(!is_open(in[0]) && !is_open(out[1]));
    free_loop(loop);
    close(in[1]);
    close(out[0]);
}

static struct {
    struct recorder rec;
    upcall_loop *loop;
    upcall_id id;
    int in[2], out[2];
    atomic_bool wanted, there;
} intruder;

static void *splice_when_wanted(void *arg) {
    while (!atomic_load(&intruder.wanted))
        pause_ms(1);
    upcall_op op = upcall_op_splice(intruder.in[0], -1, intruder.out[0], -1, 10, 0);
    intruder.id = submit_one(intruder.loop, op, &intruder.rec);
    atomic_store(&intruder.there, true);
    return arg;
}

static void let_in(upcall_loop *loop, void *arg) {
    (void)loop;
    (void)arg;
    atomic_store(&intruder.wanted, true);
    while (!atomic_load(&intruder.there))
        pause_ms(1);
}

/* It is noted when the thread submits it, and refused when the loop looks at it: between the two the recv ends. */
TEST(a_close_ends_although_another_thread_submits_a_splice_to_its_descriptor) {
    upcall_loop *loop = intruder.loop = new_loop();
    struct recorder rec = {0};
    char in[4];
    unix_pair(intruder.out);
    pipe_pair(intruder.in);
    pthread_t thread = start(splice_when_wanted, NULL);
    upcall_id received = submit_one(loop, upcall_op_recv(intruder.out[0], in, sizeof in, 0), &rec);
    CHECK(upcall_poll(loop, MS(10)) >= 0);
    upcall_id closed = submit_one(loop, upcall_op_close(intruder.out[0]), &rec);
    CHECK_EQ(upcall_post(loop, let_in, NULL), 0);
    CHECK(finals_within(loop, &rec, 2, 5000));
    run_finals(loop, &intruder.rec, 1);
    join(thread);
    CHECK_EQ(final_of(&rec, received).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, closed).result, 0);
    CHECK_EQ(final_of(&intruder.rec, intruder.id).result, -EBADF);
    free_loop(loop);
    close(intruder.out[1]);
    close_pair(intruder.in);
}

/* ---- Waits on a condition that lasts. ---- */

/* A datagram socket that nothing comes to, and whose last message was refused. `queued`: the details are kept, too. */
static int socket_with_an_error(bool queued) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), nobody = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    CHECK(fd >= 0 && nobody >= 0);
    CHECK(bind(nobody, (struct sockaddr *)&address, length) == 0);
    CHECK(getsockname(nobody, (struct sockaddr *)&address, &length) == 0);
    CHECK(connect(fd, (struct sockaddr *)&address, length) == 0);
    CHECK(setsockopt(fd, IPPROTO_IP, IP_RECVERR, &(int){queued}, sizeof(int)) == 0);
    close(nobody); /* a port that nothing else has had */
    CHECK_EQ(send(fd, "x", 1, 0), 1);
    struct pollfd refused = {fd, 0, 0};
    CHECK_EQ(poll(&refused, 1, 5000), 1);
    return fd;
}

/* A datagram socket that nothing comes to, and whose error queue is not empty: POLLERR as long as nobody reads that. */
static int socket_with_an_error_queue(void) {
    int fd = socket_with_an_error(true);
    char byte;
    struct pollfd refused = {fd, 0, 0};
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == ECONNREFUSED); /* told once; the queue keeps its details */
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    CHECK_EQ(poll(&refused, 1, 0), 1);
    CHECK_EQ(refused.revents, POLLERR);
    return fd;
}

TEST(a_recv_beside_a_full_error_queue_waits_without_system_calls) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_buffers *pool;
    upcall_stats before, after;
    int fd = socket_with_an_error_queue();
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    upcall_id id = submit_one(loop, lent_recv(fd, pool), &rec);
    start_all(loop);
    CHECK_EQ(upcall_stats_get(loop, &before), 0);
    for (int i = 0; i < 4; i++)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK_EQ(upcall_stats_get(loop, &after), 0);
    CHECK(after.system_calls - before.system_calls < 200);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, -ECANCELED);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close(fd);
}

TEST(a_splice_from_a_socket_tells_its_error) {
    upcall_loop *loop = new_loop();
    int ends[2], fd = socket_with_an_error(false);
    pipe_pair(ends);
    CHECK_EQ(complete(loop, upcall_op_splice(fd, -1, ends[1], -1, 100, 0)).result, -ECONNREFUSED);
    free_loop(loop);
    close_pair(ends);
    close(fd);
}

TEST(a_multishot_of_messages_ends_with_its_socket) {
    for (int unix_domain = 0; unix_domain < 2; unix_domain++)
        for (int late = 0; late < 2; late++) {
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            upcall_buffers *pool;
            struct msghdr room = {0};
            struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
            socklen_t length = sizeof address;
            int fds[2] = {-1, -1};
            if (unix_domain) {
                dgram_pair(fds);
            } else {
                fds[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
                CHECK(bind(fds[0], (struct sockaddr *)&address, length) == 0);
                CHECK(getsockname(fds[0], (struct sockaddr *)&address, &length) == 0);
                CHECK(connect(fds[0], (struct sockaddr *)&address, length) == 0);
            }
            CHECK_EQ(upcall_buffers_new(loop, 4, 256, &pool), 0);
            upcall_op op = upcall_op_recvmsg(fds[0], &room, 0);
            op.flags = UPCALL_MULTISHOT;
            op.buffers = pool;
            if (!late)
                CHECK(shutdown(fds[0], SHUT_RD) == 0);
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            if (late)
                CHECK_EQ(complete(loop, upcall_op_shutdown(fds[0], SHUT_RD)).result, 0);
            CHECK(finals_within(loop, &rec, 1, 5000));
            CHECK_EQ(final_of(&rec, id).result, 0);
            CHECK_EQ(rec.count, 1);
            free_loop(loop);
            CHECK_EQ(upcall_buffers_free(pool), 0);
            close(fds[0]);
            if (unix_domain)
                close(fds[1]);
            forget(&rec);
        }
}

/* ---- Pipes that a splice waits with: the kernel locks them, and whoever touches one meanwhile stands still. ---- */

static void use_pipe_while_it_is_spliced(const int ends[2], upcall_op splice) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, splice, &rec);
    for (size_t i = 1; i <= 15; i++) {
        for (int turn = 0; turn < 5; turn++)
            CHECK(upcall_poll(loop, MS(4)) >= 0);
        submit_one(loop, upcall_op_write(ends[1], "x", 1), &rec);
        run_finals(loop, &rec, i); /* there is room: it does not wait for the splice */
        CHECK_EQ(rec.events[rec.count - 1].kind, UPCALL_OP_WRITE);
        CHECK_EQ(rec.events[rec.count - 1].result, 1);
    }
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 16);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    free_loop(loop);
    forget(&rec);
}

TEST(a_pipe_can_be_used_while_its_splice_waits_for_a_peer_to_read) {
    static const char block[65536];
    for (int which = UNIX; which <= TCP; which++)
        for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
            int ends[2], fds[2], small = 4096;
            make_pair(which, fds);
            CHECK(pipe2(ends, O_CLOEXEC | flags) == 0);
            CHECK(fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) >= 1 << 20); /* more than the socket takes */
            CHECK(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
            CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &small, sizeof small) == 0);
            for (int i = 0; i < 14; i++)
                write_all(ends[1], block, sizeof block);
            upcall_op splice = upcall_op_splice(ends[0], -1, fds[1], -1, 1 << 20, 0);
            splice.flags = UPCALL_FULL;
            use_pipe_while_it_is_spliced(ends, splice);
            close_pair(ends);
            close_pair(fds);
        }
}

TEST(a_pipe_can_be_used_while_its_splice_waits_for_a_socket_that_shows_an_error) {
    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        int ends[2], fd = socket_with_an_error_queue();
        CHECK(pipe2(ends, O_CLOEXEC | flags) == 0);
        use_pipe_while_it_is_spliced(ends, upcall_op_splice(fd, -1, ends[1], -1, 4096, 0));
        close_pair(ends);
        close(fd);
    }
}

/* ---- Lookups given up. This program is the resolver: nobody is answered before the test says so. ---- */

static atomic_int asked, answered;
static atomic_bool answering;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
    (void)node;
    (void)service;
    (void)hints;
    (void)list;
    atomic_fetch_add(&asked, 1);
    while (!atomic_load(&answering))
        pause_ms(1);
    atomic_fetch_add(&answered, 1);
    return EAI_NONAME;
}

static upcall_loop *loop_with_workers(uint32_t workers) {
    upcall_config config = default_config();
    config.workers = workers;
    return loop_with(&config);
}

/* `begins`: only when a thread has it; otherwise perhaps while it waits for one. */
static void give_up_a_lookup(upcall_loop *loop, bool begins) {
    struct recorder rec = {0};
    struct addrinfo *found = NULL;
    int before = atomic_load(&asked);
    upcall_id id = submit_one(loop, upcall_op_getaddrinfo("host.example", NULL, NULL, &found), &rec);
    for (int i = 0; i < 3; i++)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; begins && atomic_load(&asked) == before;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK(now_ns() < limit);
    }
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, -ECANCELED);
    CHECK(found == NULL);
    forget(&rec);
}

TEST(works_run_beside_lookups_that_were_given_up) {
    for (int workers = 2; workers <= 4; workers++) {
        upcall_loop *loop = loop_with_workers((uint32_t)workers);
        atomic_store(&asked, 0);
        atomic_store(&answered, 0);
        atomic_store(&answering, false);
        for (int i = 0; i < 3 * workers; i++) {
            give_up_a_lookup(loop, i < workers); /* as many begin as there are workers */
            CHECK_EQ(complete(loop, upcall_op_work(seven, NULL)).result, 7);
        }
        CHECK(atomic_load(&asked) >= workers);
        CHECK_EQ(atomic_load(&answered), 0);
        atomic_store(&answering, true);
        free_loop(loop);
        for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; atomic_load(&answered) < atomic_load(&asked);) {
            CHECK(now_ns() < limit);
            pause_ms(1);
        }
    }
}

/* Each that is given up makes room for one that waits, and that is given up next. */
TEST(works_run_after_many_waiting_lookups_were_given_up) {
    enum { LOOKUPS = 16 };
    upcall_loop *loop = loop_with_workers(4);
    struct recorder rec = {0};
    struct addrinfo *found[LOOKUPS];
    upcall_op ops[LOOKUPS];
    upcall_id ids[LOOKUPS];
    for (size_t i = 0; i < LOOKUPS; i++)
        ops[i] = upcall_op_getaddrinfo("host.example", NULL, NULL, &found[i]);
    submit_many(loop, ops, LOOKUPS, &rec, ids);
    for (size_t i = 0; i < LOOKUPS; i++) {
        for (int turn = 0; turn < 5; turn++)
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK_EQ(upcall_cancel(loop, ids[i]), 0);
    }
    run_finals(loop, &rec, LOOKUPS);
    CHECK_EQ(complete(loop, upcall_op_work(seven, NULL)).result, 7);
    CHECK(atomic_load(&asked) > 0);
    CHECK_EQ(atomic_load(&answered), 0);
    free_loop(loop);
    forget(&rec);
}

TEST(lookups_given_up_one_after_the_other_do_not_add_threads_without_end) {
    enum { WORKERS = 3, MOST = 2 * WORKERS }; /* the pool, and those it has replaced */
    upcall_loop *loop = loop_with_workers(WORKERS);
    struct recorder rec = {0};
    int file = temp_file(10), others = thread_count();
    for (int i = 0; i < 60; i++) {
        give_up_a_lookup(loop, i < WORKERS);
        CHECK(thread_count() - others <= MOST);
    }
    CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0); /* files find a thread all the same */
    CHECK(thread_count() - others <= MOST);
    CHECK_EQ(atomic_load(&answered), 0);
    upcall_id id = submit_one(loop, upcall_op_work(seven, NULL), &rec);
    atomic_store(&answering, true);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, id).result, 7);
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; thread_count() - others > WORKERS;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK(now_ns() < limit);
    }
    free_loop(loop);
    close(file);
    forget(&rec);
}

/* ---- Idle readers. ---- */

/* A buffer is picked when data is there, by whichever way the kernel does it: one is enough for two readers. */
TEST(a_read_that_waits_keeps_no_buffer_from_another) {
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        upcall_buffers *pool;
        upcall_stats before, after;
        int idle[2], busy[2];
        make_pair(which, idle);
        make_pair(which, busy);
        CHECK_EQ(upcall_buffers_new(loop, 1, 64, &pool), 0);
        upcall_op op = upcall_op_read(idle[0], NULL, 0);
        op.buffers = pool;
        upcall_id first = submit_one(loop, op, &rec);
        quiet(loop, &rec);
        op.fd = busy[0];
        upcall_id second = submit_one(loop, op, &rec);
        quiet(loop, &rec);
        CHECK_EQ(upcall_stats_get(loop, &before), 0);
        for (int i = 0; i < 5; i++)
            quiet(loop, &rec);
        CHECK_EQ(upcall_stats_get(loop, &after), 0);
        CHECK(after.rearms - before.rearms < 5); /* it waits, and does not try again each turn */
        write_all(busy[1], "abc", 3);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, second).result, 3);
        CHECK(memcmp(final_of(&rec, second).buffer, "abc", 3) == 0);
        CHECK_EQ(upcall_buffers_return(pool, final_of(&rec, second).buffer), 0);
        write_all(idle[1], "de", 2);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, first).result, 2);
        CHECK(memcmp(final_of(&rec, first).buffer, "de", 2) == 0);
        CHECK_EQ(upcall_buffers_return(pool, final_of(&rec, first).buffer), 0);
        free_loop(loop);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close_pair(idle);
        close_pair(busy);
        forget(&rec);
    }
}

/* ---- Too little memory. ---- */

static long address_space(void) {
    long pages;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL);
    CHECK(fscanf(file, "%ld", &pages) == 1);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

TEST(a_detach_that_fails_for_want_of_memory_leaves_the_buffers_usable) {
#ifdef __SANITIZE_ADDRESS__
    SKIP("a sanitizer needs more address space than the test leaves");
#endif
    upcall_loop *loop = new_loop();
    upcall_buffers *pool;
    int fds[2], rc = -ENOMEM;
    tcp_pair(fds);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    CHECK_EQ(upcall_buffers_return(pool, lend_one(loop, fds, pool)), 0);
    for (long more = 0; rc != 0; more += 4096) { /* a step further each time, until it succeeds */
        struct rlimit limit, usual;
        CHECK(getrlimit(RLIMIT_AS, &usual) == 0);
        limit = usual;
        limit.rlim_cur = (rlim_t)(address_space() + more);
        CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        rc = upcall_loop_detach(loop);
        CHECK(setrlimit(RLIMIT_AS, &usual) == 0);
        CHECK(rc == 0 || rc == -ENOMEM);
        CHECK(more < 64 << 20);
        for (int i = 0; i < 6; i++) { /* more than the pool has */
            struct recorder rec = {0};
            submit_one(loop, lent_recv(fds[0], pool), &rec);
            write_all(fds[1], "a", 1);
            CHECK(finals_within(loop, &rec, 1, 5000));
            CHECK_EQ(rec.events[0].result, 1);
            CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
            forget(&rec);
        }
    }
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(fds);
}
