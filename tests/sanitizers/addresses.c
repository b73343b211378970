/*
 * A program built with AddressSanitizer, on the ordinary library: what touches memory that an operation reads into, or a
 * buffer that is not lent, is reported at its own line; what does nothing wrong is not reported.
 *
 * Each MISTAKE must be reported as what it says, at the line that says AT; each PROGRAM must run to its end.
 */
#include "../c/check.h"
#include <sanitizer/asan_interface.h>

/* What the parent of a mistake looks for. */
static struct {
    int line;
} *expected;

#define AT (expected->line = __LINE__)

__attribute__((noinline)) static void touch(volatile char *byte) {
    *byte = 1;
}

/* The report's own words and its stack go to a pipe: the child's standard error. */
static void check_report(void (*mistake)(void), const char *kind) {
    int fds[2];
    expected = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(expected != MAP_FAILED);
    pipe_pair(fds);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(dup2(fds[1], STDERR_FILENO) >= 0);
        mistake();
        _exit(0);
    }
    close(fds[1]);
    static char report[1 << 16];
    size_t length = 0;
    for (ssize_t n; length < sizeof report - 1 && (n = read(fds[0], report + length, sizeof report - 1 - length)) > 0;)
        length += (size_t)n;
    close(fds[0]);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status == 0)
        fail(HERE, "nothing was reported");
    if (strstr(report, kind) == NULL)
        fail(HERE, "not reported as %s:\n%s", kind, report);
    char place[64];
    snprintf(place, sizeof place, "addresses.c:%d", expected->line);
    /* Without a symbolizer clang's report has no lines at all. */
    if (strstr(report, place) == NULL && strstr(report, "addresses.c:") != NULL)
        fail(HERE, "not reported at %s:\n%s", place, report);
}

#define MISTAKE(name, kind)                                                                                            \
    static void mistake_##name(void);                                                                                  \
    TEST(name##_is_reported) { check_report(mistake_##name, kind); }                                                   \
    static void mistake_##name(void)
#define PROGRAM(name) TEST(name##_is_not_reported)

static int pair[2];

static upcall_loop *loop_and_pair(void (*make)(int[2])) {
    make(pair);
    return new_loop();
}

static struct recorder rec;

/* ---- Mistakes. ---- */

MISTAKE(a_write_to_memory_that_is_received_into, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(unix_pair);
    char *buffer = malloc(100);
    submit_one(loop, upcall_op_recv(pair[0], buffer, 100, 0), &rec);
    AT; touch(&buffer[99]);
}

MISTAKE(a_read_of_memory_that_is_read_into, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    char buffer[64];
    submit_one(loop, upcall_op_read(pair[0], buffer, sizeof buffer), &rec);
    start_all(loop);
    AT; touch(&buffer[0]);
}

MISTAKE(memory_of_a_vector_that_is_touched, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    char first[16], second[16];
    struct iovec iov[] = {{first, sizeof first}, {second, sizeof second}};
    submit_one(loop, upcall_op_readv(pair[0], iov, 2), &rec);
    iov[0].iov_base = NULL; /* copied */
    AT; touch(&second[8]);
}

MISTAKE(memory_of_a_message_that_is_touched, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(dgram_pair);
    char data[16];
    struct iovec iov = {data, sizeof data};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    submit_one(loop, upcall_op_recvmsg(pair[0], &msg, 0), &rec);
    start_all(loop);
    AT; touch(data);
}

MISTAKE(memory_of_a_full_read_that_goes_on, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    static char buffer[100];
    upcall_op op = upcall_op_read(pair[0], buffer, sizeof buffer);
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    write_all(pair[1], "abc", 3);
    start_all(loop);
    AT; touch(buffer); /* that part has come, but the memory is not the program's before the final event */
}

MISTAKE(memory_of_a_cancelled_operation_before_its_event, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    char buffer[32];
    upcall_id id = submit_one(loop, upcall_op_read(pair[0], buffer, sizeof buffer), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    AT; touch(buffer);
}

MISTAKE(memory_of_a_parked_operation, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    char buffer[32];
    upcall_op ops[] = {upcall_op_sleep(UPCALL_SECOND), upcall_op_read(pair[0], buffer, sizeof buffer)};
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, NULL);
    start_all(loop);
    AT; touch(buffer);
}

MISTAKE(memory_of_a_read_of_a_file, "use-after-poison") {
    upcall_loop *loop = new_loop();
    char *buffer = malloc(1 << 16);
    submit_one(loop, upcall_op_pread(temp_file(1 << 16), buffer, 1 << 16, 0), &rec);
    AT; touch(buffer + 30000);
}

static upcall_loop *elsewhere;
static char elsewhere_buffer[64];

static void *submit_elsewhere(void *arg) {
    (void)arg;
    submit_one(elsewhere, upcall_op_read(pair[0], elsewhere_buffer, sizeof elsewhere_buffer), &rec);
    return NULL;
}

MISTAKE(memory_of_a_submit_from_another_thread, "use-after-poison") {
    elsewhere = loop_and_pair(pipe_pair);
    CHECK_EQ(upcall_poll(elsewhere, 0), 0);
    join(start(submit_elsewhere, NULL));
    AT; touch(elsewhere_buffer);
}

static char *kept;

static void keep_and_return(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    kept = event->buffer;
    touch(kept); /* lent: allowed */
    CHECK_EQ(upcall_buffers_return(event->user, kept), 0);
}

MISTAKE(a_buffer_that_was_returned, "use-after-poison") {
    upcall_loop *loop = loop_and_pair(unix_pair);
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 4, 100, &pool), 0);
    upcall_op op = upcall_op_recv(pair[0], NULL, 0, 0);
    op.buffers = pool;
    op.callback = keep_and_return;
    op.user = pool;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    write_all(pair[1], "abc", 3);
    while (kept == NULL)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    AT; touch(kept);
}

MISTAKE(a_read_into_freed_memory, "heap-use-after-free") {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    char *volatile buffer = malloc(100);
    free(buffer);
    upcall_op op = upcall_op_read(pair[0], buffer, 100);
    op.callback = never;
    AT; upcall_submit(loop, &op, 1, NULL);
}

MISTAKE(a_read_into_too_little_memory, "heap-buffer-overflow") {
    upcall_loop *loop = loop_and_pair(unix_pair);
    char *buffer = malloc(100);
    upcall_op op = upcall_op_recv(pair[0], buffer, 101, 0);
    op.callback = never;
    AT; upcall_submit(loop, &op, 1, NULL);
}

MISTAKE(a_write_from_freed_memory, "heap-use-after-free") {
    upcall_loop *loop = loop_and_pair(unix_pair);
    char *volatile buffer = malloc(100);
    free(buffer);
    upcall_op op = upcall_op_send(pair[0], buffer, 100, 0);
    op.callback = never;
    AT; upcall_submit(loop, &op, 1, NULL);
}

/* ---- Programs that do nothing wrong. ---- */

static bool all_mine(const void *memory, size_t length) {
    return __asan_region_is_poisoned((void *)(uintptr_t)memory, length) == NULL;
}

PROGRAM(a_partly_filled_buffer) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    for (size_t size = 1; size < 40; size++) { /* also those that end within a word */
        char *buffer = malloc(size);
        submit_one(loop, upcall_op_read(pair[0], buffer, size), &rec);
        write_all(pair[1], "a", 1);
        run_finals(loop, &rec, 1);
        for (size_t i = 0; i < size; i++)
            touch(&buffer[i]);
        CHECK(__asan_region_is_poisoned(buffer, size + 1) == buffer + size); /* what was no memory of it is none */
        free(buffer);
        forget(&rec);
    }
    free_loop(loop);
}

PROGRAM(what_lies_around_a_buffer) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    static char memory[64];
    for (size_t from = 8; from < 24; from++)
        for (size_t length = 1; length < 20; length++) {
            submit_one(loop, upcall_op_read(pair[0], memory + from, length), &rec);
            for (size_t i = 0; i < sizeof memory; i++)
                if (i < from || i >= from + length)
                    touch(&memory[i]);
            write_all(pair[1], "a", 1);
            run_finals(loop, &rec, 1);
            CHECK(all_mine(memory, sizeof memory));
            forget(&rec);
        }
    free_loop(loop);
}

PROGRAM(a_full_read) {
    upcall_loop *loop = loop_and_pair(unix_pair);
    char buffer[9];
    upcall_op op = upcall_op_recv(pair[0], buffer, sizeof buffer, 0);
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    for (int i = 0; i < 9; i++) {
        write_all(pair[1], &"abcdefghi"[i], 1);
        start_all(loop);
    }
    run_finals(loop, &rec, 1);
    CHECK(memcmp(buffer, "abcdefghi", 9) == 0);
    free_loop(loop);
}

static char copied[100];

static void look_at_copied(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    record(loop, event);
    CHECK(all_mine(copied, sizeof copied)); /* in its own callback, too */
}

PROGRAM(memory_in_the_final_event) {
    upcall_loop *loop = loop_and_pair(unix_pair);
    upcall_op op = upcall_op_recv(pair[0], copied, sizeof copied, 0);
    op.callback = look_at_copied;
    op.user = &rec;
    for (int how = 0; how < 4; how++) {
        upcall_id id = submit_one(loop, op, &rec);
        if (how == 0)
            write_all(pair[1], "abc", 3);
        if (how >= 2)
            start_all(loop);
        if (how == 1 || how == 2)
            CHECK_EQ(upcall_cancel(loop, id), 0);
        if (how == 3)
            CHECK_EQ(upcall_loop_close(loop, -1), 0);
        run_finals(loop, &rec, (size_t)how + 1);
    }
    free_loop(loop);
}

PROGRAM(memory_after_a_deadline) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    upcall_op op = upcall_op_read(pair[0], copied, sizeof copied);
    op.timeout_ns = UPCALL_MILLISECOND;
    CHECK_EQ(complete(loop, op).result, -ETIMEDOUT);
    CHECK(all_mine(copied, sizeof copied));
    free_loop(loop);
}

PROGRAM(memory_of_a_record_that_is_reaped) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    upcall_op op = upcall_op_read(pair[0], copied, sizeof copied);
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    write_all(pair[1], "abc", 3);
    reap_until(loop, &rec, 1);
    CHECK(all_mine(copied, sizeof copied));
    free_loop(loop);
}

/* The copying loop that was submitted at once: one buffer, used by all. */
PROGRAM(a_chain_through_one_buffer) {
    int in[2], out[2];
    upcall_loop *loop = new_loop();
    pipe_pair(in);
    pipe_pair(out);
    write_all(in[1], "abcdefgh", 8);
    char buffer[4], got[8];
    upcall_op ops[] = {upcall_op_read(in[0], buffer, 4), upcall_op_write(out[1], buffer, 4), upcall_op_read(in[0], buffer, 4),
                       upcall_op_write(out[1], buffer, 4)};
    for (int i = 0; i < 3; i++)
        ops[i].flags = UPCALL_LINK;
    submit_many(loop, ops, 4, &rec, NULL);
    run_finals(loop, &rec, 4);
    read_all(out[0], got, 8);
    CHECK(memcmp(got, "abcdefgh", 8) == 0);
    CHECK(all_mine(buffer, sizeof buffer));
    forget(&rec);
    /* Written from while a read into it is parked. */
    upcall_op more[] = {upcall_op_write(out[1], buffer, 4), upcall_op_read(out[0], buffer, 4)};
    more[0].flags = UPCALL_LINK;
    submit_many(loop, more, 2, &rec, NULL);
    run_finals(loop, &rec, 2);
    CHECK(memcmp(buffer, "efgh", 4) == 0);
    struct iovec part = {buffer, 4};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    int pairs[2];
    unix_pair(pairs);
    upcall_op sends[] = {upcall_op_send(pairs[1], buffer, 4, 0), upcall_op_sendmsg(pairs[1], &msg, 0),
                         upcall_op_pwrite(temp_file(0), buffer, 4, 0), upcall_op_recv(pairs[0], buffer, 4, 0)};
    for (int i = 0; i < 3; i++)
        sends[i].flags = UPCALL_LINK;
    forget(&rec);
    submit_many(loop, sends, 4, &rec, NULL);
    run_finals(loop, &rec, 4);
    for (size_t i = 0; i < rec.count; i++)
        CHECK_EQ(rec.events[i].result, 4);
    free_loop(loop);
}

PROGRAM(one_place_for_what_nobody_wants) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    static char nowhere[64];
    for (size_t step = 0; step < 11; step++)
        for (size_t length = 1; length < 20; length += 3) {
            for (size_t i = 0; i < 4; i++)
                submit_one(loop, upcall_op_read(pair[0], nowhere + step * (i % 2 ? 3 - i : i), length), &rec);
            for (size_t i = 0; i < 4; i++) {
                write_all(pair[1], "a", 1);
                run_finals(loop, &rec, i + 1);
            }
            CHECK(all_mine(nowhere, sizeof nowhere));
            forget(&rec);
        }
    free_loop(loop);
}

static size_t lent;

static void use_and_return(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    if (event->buffer == NULL)
        return;
    memset(event->buffer, 7, 100); /* all of it is the program's */
    CHECK_EQ(upcall_buffers_return(event->user, event->buffer), 0);
    lent++;
}

PROGRAM(lent_buffers) {
    static void (*const make[])(int[2]) = {unix_pair, dgram_pair, tcp_pair};
    for (size_t k = 0; k < COUNT_OF(make); k++)
        for (int message = 0; message < 2; message++)
            for (int multishot = 0; multishot < 2; multishot++) {
                upcall_loop *loop = loop_and_pair(make[k]);
                upcall_buffers *pool;
                struct msghdr msg = {.msg_namelen = 16};
                CHECK_EQ(upcall_buffers_new(loop, 2, 100, &pool), 0);
                lent = 0;
                for (size_t i = 0; i < 6; i++) {
                    if (i == 0 || !multishot) {
                        upcall_op op =
                            message ? upcall_op_recvmsg(pair[0], &msg, 0) : upcall_op_recv(pair[0], NULL, 0, 0);
                        op.buffers = pool;
                        op.callback = use_and_return;
                        op.user = pool;
                        op.flags = multishot ? UPCALL_MULTISHOT : 0;
                        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
                    }
                    write_all(pair[1], "abc", 3);
                    wait_count(loop, &lent, i + 1);
                }
                CHECK_EQ(upcall_loop_free(loop), 0);
                CHECK_EQ(upcall_buffers_free(pool), 0);
                close_pair(pair);
            }
}

PROGRAM(memory_mapped_where_a_pool_was) {
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 20; i++) {
        upcall_buffers *pool;
        CHECK_EQ(upcall_buffers_new(loop, 1, 1 << 20, &pool), 0);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        CHECK_EQ(upcall_poll(loop, 0), 0);
        char *mapped = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(mapped != MAP_FAILED && all_mine(mapped, 2 << 20));
        munmap(mapped, 2 << 20);
    }
    free_loop(loop);
}

PROGRAM(a_forked_child) { /* nothing reads into its copy */
    upcall_loop *loop = loop_and_pair(pipe_pair);
    submit_one(loop, upcall_op_read(pair[0], copied, sizeof copied), &rec);
    start_all(loop);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        memset(copied, 1, sizeof copied);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(!all_mine(copied, sizeof copied));
    write_all(pair[1], "a", 1);
    run_finals(loop, &rec, 1);
    CHECK(all_mine(copied, sizeof copied));
    free_loop(loop);
}

static void *die_with_a_read(void *arg) {
    (void)arg;
    CHECK_EQ(upcall_poll(elsewhere, 0), 0);
    submit_one(elsewhere, upcall_op_read(pair[0], copied, sizeof copied), &rec);
    start_all(elsewhere);
    return NULL;
}

PROGRAM(memory_of_a_loop_whose_owner_exited) {
    elsewhere = loop_and_pair(pipe_pair);
    join(start(die_with_a_read, NULL));
    CHECK_EQ(upcall_loop_free(elsewhere), 0);
    CHECK_EQ(rec.events[0].result, -EOWNERDEAD);
    CHECK(all_mine(copied, sizeof copied));
}

PROGRAM(a_refused_submit) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    upcall_op ops[] = {upcall_op_read(pair[0], copied, sizeof copied), upcall_op_read(pair[0], NULL, 1)};
    CHECK_EQ(upcall_submit(loop, ops, 2, NULL), -EINVAL);
    CHECK(all_mine(copied, sizeof copied));
    CHECK_EQ(upcall_poll(loop, 0), 0);
    free_loop(loop);
}

PROGRAM(memory_that_the_kernel_refuses) {
    upcall_loop *loop = loop_and_pair(pipe_pair);
    write_all(pair[1], "abc", 3);
    void *nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK_EQ(complete(loop, upcall_op_read(pair[0], nowhere, 3)).result, -EFAULT);
    CHECK_EQ(complete(loop, upcall_op_read(pair[0], (void *)UINTPTR_MAX, 1)).result, -EFAULT);
    free_loop(loop);
}
