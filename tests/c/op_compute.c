/*
 * work: computations on the pool.
 */
#include "op_support.h"

#include <stdatomic.h>

/* ---- Subject. ---- */

static void set_nothing(struct scene *scene) {
    (void)scene;
}

static int64_t mark(void *arg) {
    struct scene *scene = arg;
    scene->data[0] = 1;
    return INT64_C(1) << 40;
}

static upcall_op make_work(struct scene *scene) {
    return upcall_op_work(mark, scene);
}

static void has_run(struct scene *scene, struct record final) {
    CHECK_EQ(final.result, INT64_C(1) << 40);
    CHECK_EQ(final.transferred, 0);
    CHECK_EQ(scene->data[0], 1);
}

static void has_not_run(struct scene *scene) {
    CHECK_EQ(scene->data[0], 0xee);
}

static const struct subject do_a_work = {.kind = UPCALL_OP_WORK, .set_up = set_nothing, .make = make_work,
    .done = has_run, .intact = has_not_run};
PROMISES_IN_MODE(do_a_work, any, false)

/* ---- Names, arguments. ---- */

TEST(compute_operations_are_known) {
    is_known(UPCALL_OP_WORK, "work");
}

TEST(compute_operations_refuse_strange_fields) {
    refuses_strange_fields(upcall_op_work(mark, NULL), 0);
}

TEST(work_needs_a_function) {
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_work(NULL, NULL), EINVAL, "fn is NULL");
    refused(loop, upcall_op_work(NULL, loop), EINVAL, "fn is NULL");
    free_loop(loop);
}

/* ---- Results. ---- */

static int64_t give_back(void *arg) {
    return *(int64_t *)arg;
}

/* Whatever it returns is the result, also what elsewhere would be an errno. */
TEST(the_result_is_what_the_function_returns) {
    int64_t values[] = {0, 1, -1, -5, -EAGAIN, -EINTR, -EINPROGRESS, -ECANCELED, -ETIMEDOUT, -ENOBUFS, INT32_MAX,
                        INT32_MIN, INT64_MAX, INT64_MIN};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(values); i++)
        ends_with(loop, upcall_op_work(give_back, &values[i]), values[i]);
    free_loop(loop);
}

struct thread_facts {
    pthread_t thread;
    sigset_t blocked;
};

static int64_t look_around(void *arg) {
    struct thread_facts *facts = arg;
    facts->thread = pthread_self();
    return pthread_sigmask(SIG_SETMASK, NULL, &facts->blocked);
}

static pthread_t callback_thread;

static void look_around_too(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    callback_thread = pthread_self();
    add_record(event->user, event);
}

/* The program's signal handlers never run on a thread of the pool (hazards 24 and 25). */
TEST(work_runs_on_a_thread_that_takes_no_signals_and_its_callback_on_the_loops) {
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ, SIGUSR1, SIGALRM, SIGCHLD};
    struct thread_facts facts;
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_work(look_around, &facts);
    op.callback = look_around_too;
    op.user = &rec;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    CHECK(!pthread_equal(facts.thread, pthread_self()));
    CHECK(pthread_equal(callback_thread, pthread_self()));
    for (size_t i = 0; i < COUNT_OF(signals); i++)
        CHECK_EQ(sigismember(&facts.blocked, signals[i]), 1);
    sigset_t ours;
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &ours) == 0);
    CHECK_EQ(sigismember(&ours, SIGTERM), 0); /* the program's own mask is as it was */
    free_loop(loop);
    forget(&rec);
}

static atomic_size_t runs;

static int64_t count_run(void *arg) {
    atomic_fetch_add(&runs, 1);
    return (int64_t)(intptr_t)arg * 3;
}

TEST(thousands_of_works_each_run_once) {
    enum { COUNT = 3000 };
    static upcall_op ops[COUNT];
    static upcall_id ids[COUNT];
    static const uint32_t workers[] = {0, 2, 3, 64};
    for (size_t k = 0; k < COUNT_OF(workers); k++) {
        struct recorder rec = {0};
        upcall_config config = default_config();
        if (workers[k])
            config.workers = workers[k];
        upcall_loop *loop = loop_with(&config);
        runs = 0;
        for (size_t i = 0; i < COUNT; i++)
            ops[i] = upcall_op_work(count_run, (void *)(intptr_t)i);
        for (size_t i = 0; i < COUNT; i += 100)
            submit_many(loop, ops + i, 100, &rec, ids + i);
        run_finals(loop, &rec, COUNT);
        check_finals(&rec, ids, COUNT);
        CHECK_EQ(runs, COUNT);
        int64_t sum = 0;
        for (size_t i = 0; i < COUNT; i++) {
            sum += rec.events[i].result;
            if (i % 50 == 0)
                CHECK_EQ(final_of(&rec, ids[i]).result, 3 * (int64_t)i);
        }
        CHECK_EQ(sum, INT64_C(3) * COUNT * (COUNT - 1) / 2);
        free_loop(loop);
        forget(&rec);
    }
}

/* ---- Works that take long: each waits for a byte from a pipe. ---- */

struct gate {
    int fds[2];
    atomic_int inside, passed;
};

static void make_gate(struct gate *gate) {
    pipe_pair(gate->fds);
    gate->inside = gate->passed = 0;
}

static int64_t wait_at_gate(void *arg) {
    struct gate *gate = arg;
    char byte;
    atomic_fetch_add(&gate->inside, 1);
    read_all(gate->fds[0], &byte, 1);
    return 100 + atomic_fetch_add(&gate->passed, 1);
}

static void open_gate(struct gate *gate, size_t times) {
    for (size_t i = 0; i < times; i++)
        write_all(gate->fds[1], "x", 1);
}

/* Polls until so many works are running. */
static void wait_inside(upcall_loop *loop, struct gate *gate, int count) {
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; gate->inside < count;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK(now_ns() < limit);
    }
}

/* Works never take the last thread of the pool: what needs one for a file finds it. */
TEST(files_find_a_thread_while_works_take_long) {
    static const uint32_t workers[] = {2, 3, 4, 0};
    enum { WORKS = 40 };
    for (size_t k = 0; k < COUNT_OF(workers); k++) {
        struct gate gate;
        struct recorder rec = {0}, files = {0};
        struct statx found;
        upcall_id ids[WORKS];
        char line[5];
        upcall_config config = default_config();
        if (workers[k])
            config.workers = workers[k];
        upcall_loop *loop = loop_with(&config);
        make_gate(&gate);
        for (size_t i = 0; i < WORKS; i++)
            ids[i] = submit_one(loop, upcall_op_work(wait_at_gate, &gate), &rec);
        wait_inside(loop, &gate, 1);
        start_all(loop);
        int file = temp_file(100), status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
        for (int round = 0; round < 10; round++) {
            submit_one(loop, upcall_op_fsync(file), &files);
            submit_one(loop, upcall_op_pread(status, line, sizeof line, 0), &files);
            submit_one(loop, upcall_op_pwrite(file, "abc", 3, 10), &files);
            submit_one(loop, upcall_op_statx(AT_FDCWD, "/", 0, STATX_TYPE, &found), &files);
            submit_one(loop, upcall_op_open(AT_FDCWD, "/missing", O_RDONLY, 0), &files);
            run_finals(loop, &files, (size_t)5 * (round + 1));
        }
        for (size_t i = 0; i < files.count; i++)
            CHECK_EQ(files.events[i].result < 0, files.events[i].kind == UPCALL_OP_OPEN);
        CHECK_EQ(rec.count, 0);
        CHECK(gate.inside < WORKS); /* the pool is bounded */
        if (workers[k])
            CHECK(gate.inside < (int)workers[k]);
        open_gate(&gate, WORKS);
        run_finals(loop, &rec, WORKS);
        check_finals(&rec, ids, WORKS);
        for (size_t i = 0; i < WORKS; i++)
            CHECK(rec.events[i].result >= 100 && rec.events[i].result < 100 + WORKS);
        close_pair(gate.fds);
        close(file);
        close(status);
        free_loop(loop);
        forget(&rec);
        forget(&files);
    }
}

/* A long calculation does not hold up the loop. */
TEST(the_loop_goes_on_while_works_take_long) {
    struct gate gate;
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    char byte;
    int fds[2];
    make_gate(&gate);
    unix_pair(fds);
    for (int i = 0; i < 20; i++)
        submit_one(loop, upcall_op_work(wait_at_gate, &gate), &rec);
    wait_inside(loop, &gate, 1);
    for (int i = 0; i < 10; i++) {
        ends_with(loop, upcall_op_nop(), 0);
        ends_with(loop, upcall_op_sleep(UPCALL_MILLISECOND), 0);
        ends_with(loop, upcall_op_send(fds[0], "x", 1, 0), 1);
        ends_with(loop, upcall_op_recv(fds[1], &byte, 1, 0), 1);
    }
    CHECK_EQ(rec.count, 0);
    open_gate(&gate, 20);
    run_finals(loop, &rec, 20);
    free_loop(loop);
    forget(&rec);
}

TEST(works_run_beside_each_other) {
    struct gate gate;
    struct recorder rec = {0};
    upcall_config config = default_config();
    config.workers = 4;
    upcall_loop *loop = loop_with(&config);
    make_gate(&gate);
    for (int i = 0; i < 3; i++)
        submit_one(loop, upcall_op_work(wait_at_gate, &gate), &rec);
    wait_inside(loop, &gate, 2);
    open_gate(&gate, 3);
    run_finals(loop, &rec, 3);
    free_loop(loop);
    forget(&rec);
}

/* ---- Cancel and deadline: hazard 36. ---- */

/* With two threads in the pool works have one of them: the second work waits for it. */
static upcall_loop *loop_with_one_for_works(void) {
    upcall_config config = default_config();
    config.workers = 2;
    return loop_with(&config);
}

TEST(a_running_work_completes_and_a_waiting_one_is_cancelled) {
    struct gate gate;
    struct recorder rec = {0};
    upcall_loop *loop = loop_with_one_for_works();
    make_gate(&gate);
    upcall_id running = submit_one(loop, upcall_op_work(wait_at_gate, &gate), &rec);
    wait_inside(loop, &gate, 1);
    runs = 0;
    upcall_id waiting = submit_one(loop, upcall_op_work(count_run, NULL), &rec);
    start_all(loop);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(upcall_cancel(loop, waiting), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, waiting).result, -ECANCELED);
    CHECK_EQ(upcall_cancel(loop, waiting), -ENOENT);
    CHECK_EQ(upcall_cancel(loop, running), 0); /* the request is made; it comes too late */
    no_more(loop, &rec);
    open_gate(&gate, 1);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, running).result, 100);
    CHECK_EQ(final_of(&rec, running).flags, 0);
    ends_with(loop, upcall_op_work(count_run, (void *)2), 6);
    CHECK_EQ(runs, 1); /* the cancelled one never ran */
    free_loop(loop);
    forget(&rec);
}

TEST(a_deadline_ends_a_waiting_work_and_not_a_running_one) {
    struct gate gate;
    struct recorder rec = {0};
    upcall_loop *loop = loop_with_one_for_works();
    make_gate(&gate);
    upcall_op op = upcall_op_work(wait_at_gate, &gate);
    op.timeout_ns = 500 * UPCALL_MILLISECOND; /* it runs long before */
    upcall_id running = submit_one(loop, op, &rec);
    wait_inside(loop, &gate, 1);
    runs = 0;
    op = upcall_op_work(count_run, NULL);
    op.timeout_ns = 30 * UPCALL_MILLISECOND;
    uint64_t before = now_ns();
    upcall_id waiting = submit_one(loop, op, &rec);
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - before >= 30 * UPCALL_MILLISECOND);
    CHECK_EQ(final_of(&rec, waiting).result, -ETIMEDOUT);
    CHECK_EQ(final_of(&rec, waiting).flags, UPCALL_EXPIRED);
    for (uint64_t limit = before + 700 * UPCALL_MILLISECOND; now_ns() < limit;)
        CHECK(upcall_poll(loop, MS(20)) >= 0);
    CHECK_EQ(rec.count, 1);
    open_gate(&gate, 1);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, running).result, 100); /* it completed anyway, and that is what it reports */
    CHECK_EQ(final_of(&rec, running).flags, 0);
    CHECK_EQ(runs, 0);
    free_loop(loop);
    forget(&rec);
}

/* Every work either ran and reports its result, or was cancelled and never ran. */
TEST(works_that_race_with_cancel_ran_or_were_cancelled) {
    enum { COUNT = 100, ROUNDS = 20 };
    upcall_loop *loop = new_loop();
    for (int round = 0; round < ROUNDS; round++) {
        struct recorder rec = {0};
        upcall_op ops[COUNT];
        upcall_id ids[COUNT];
        size_t completed = 0;
        runs = 0;
        for (size_t i = 0; i < COUNT; i++)
            ops[i] = upcall_op_work(count_run, (void *)(intptr_t)i);
        submit_many(loop, ops, COUNT, &rec, ids);
        if (round % 2)
            CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = COUNT; i-- > 0;) {
            int rc = upcall_cancel(loop, ids[i]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        run_finals(loop, &rec, COUNT);
        check_finals(&rec, ids, COUNT);
        for (size_t i = 0; i < COUNT; i++) {
            int64_t result = final_of(&rec, ids[i]).result;
            CHECK(result == -ECANCELED || result == 3 * (int64_t)i);
            completed += result != -ECANCELED;
        }
        CHECK_EQ(runs, completed);
        forget(&rec);
    }
    free_loop(loop);
}

/* Freeing the loop waits for what runs and cancels what does not; both are told. */
static void *open_gate_later(void *arg) {
    pause_ms(50);
    open_gate(arg, 1);
    return NULL;
}

TEST(the_end_of_the_loop_waits_for_running_works) {
    struct gate gate;
    struct recorder rec = {0};
    upcall_loop *loop = loop_with_one_for_works();
    make_gate(&gate);
    upcall_id running = submit_one(loop, upcall_op_work(wait_at_gate, &gate), &rec);
    wait_inside(loop, &gate, 1);
    runs = 0;
    upcall_id waiting = submit_one(loop, upcall_op_work(count_run, NULL), &rec);
    start_all(loop);
    pthread_t thread = start(open_gate_later, &gate);
    free_loop(loop);
    CHECK_EQ(gate.passed, 1);
    CHECK_EQ(final_of(&rec, running).result, 100);
    CHECK_EQ(final_of(&rec, waiting).result, -ECANCELED);
    CHECK_EQ(runs, 0);
    join(thread);
    forget(&rec);
}

/* ---- What a work may do with its loop. ---- */

struct inside {
    upcall_loop *loop;
    struct recorder *rec;
    pthread_t owner;
    upcall_id submitted, victim;
    int cancel, post, poll, run, reap, close;
    atomic_size_t posts;
};

static void posted(upcall_loop *loop, void *arg) {
    struct inside *inside = arg;
    CHECK(loop == inside->loop);
    CHECK(pthread_equal(pthread_self(), inside->owner));
    inside->posts++;
}

static int64_t use_the_loop(void *arg) {
    struct inside *inside = arg;
    upcall_event event;
    inside->submitted = submit_one(inside->loop, upcall_op_nop(), inside->rec);
    inside->cancel = upcall_cancel(inside->loop, inside->victim);
    inside->post = upcall_post(inside->loop, posted, inside);
    inside->poll = upcall_poll(inside->loop, 0);
    inside->run = upcall_run(inside->loop);
    inside->reap = upcall_reap(inside->loop, &event, 1);
    inside->close = upcall_loop_close(inside->loop, 0);
    return 7;
}

TEST(a_work_may_submit_cancel_and_post_but_not_poll) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    struct inside inside = {.loop = loop, .rec = &rec, .owner = pthread_self()};
    inside.victim = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    start_all(loop);
    upcall_id work = submit_one(loop, upcall_op_work(use_the_loop, &inside), &rec);
    run_finals(loop, &rec, 3);
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; inside.posts == 0 && now_ns() < limit;)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK_EQ(final_of(&rec, work).result, 7);
    CHECK_EQ(final_of(&rec, inside.submitted).result, 0);
    CHECK_EQ(final_of(&rec, inside.victim).result, -ECANCELED);
    CHECK_EQ(inside.cancel, 0);
    CHECK_EQ(inside.post, 0);
    CHECK_EQ(inside.posts, 1);
    CHECK_EQ(inside.poll, -EPERM);
    CHECK_EQ(inside.run, -EPERM);
    CHECK_EQ(inside.reap, -EPERM);
    CHECK_EQ(inside.close, -EPERM);
    free_loop(loop);
    forget(&rec);
}

/* A work that submits the next one: the chain runs to its end. */
struct relay {
    upcall_loop *loop;
    struct recorder *rec;
    int left;
};

static int64_t pass_on(void *arg) {
    struct relay *relay = arg;
    if (relay->left-- > 0)
        submit_one(relay->loop, upcall_op_work(pass_on, relay), relay->rec);
    return relay->left;
}

TEST(a_work_may_submit_the_next_one) {
    struct recorder rec = {0};
    upcall_loop *loop = loop_with_one_for_works(); /* so that two never run at once */
    struct relay relay = {loop, &rec, 100};
    submit_one(loop, upcall_op_work(pass_on, &relay), &rec);
    run_finals(loop, &rec, 101);
    CHECK_EQ(relay.left, -1);
    free_loop(loop);
    forget(&rec);
}

TEST(a_negative_result_severs_a_chain) {
    static int64_t good = 5, bad = -5;
    struct recorder rec = {0};
    upcall_id ids[4];
    upcall_loop *loop = new_loop();
    upcall_op ops[4] = {upcall_op_work(give_back, &good), upcall_op_work(give_back, &bad), upcall_op_nop(),
                        upcall_op_nop()};
    for (size_t i = 0; i < 3; i++)
        ops[i].flags = UPCALL_LINK;
    submit_many(loop, ops, 4, &rec, ids);
    run_finals(loop, &rec, 4);
    check_finals(&rec, ids, 4);
    CHECK_EQ(final_of(&rec, ids[0]).result, 5);
    CHECK_EQ(final_of(&rec, ids[1]).result, -5);
    CHECK_EQ(final_of(&rec, ids[2]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[3]).result, -ECANCELED);
    free_loop(loop);
    forget(&rec);
}
