/*
 * A small harness for tests of Upcall: a test program is one C file that includes this one and has TEST()s.
 *
 *     TEST(a_nop_ends_with_0) {
 *         upcall_loop *loop = new_loop();
 *         CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
 *         free_loop(loop);
 *     }
 *
 * Each test runs in a forked child with a time limit, so that a crash or a hang is one failed test. Arguments: parts of
 * the names of the tests to run. Exit status: 0, 1 (a test failed), 77 (nothing was run). The backend comes from the
 * environment variable UPCALL_BACKEND; UPCALL_TEST_SECONDS changes the time limit of 20 seconds; UPCALL_TEST_SLOWNESS says
 * how many times slower than an ordinary processor this one is, where it is emulated. UPCALL_TEST_DENIED and
 * UPCALL_TEST_SKIP come from tests/denied. A program with a main() of its own defines CHECK_OWN_MAIN before it includes this
 * file.
 */
#ifndef CHECK_H
#define CHECK_H

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <linux/tcp.h> /* tcpi_snd_wnd, which <netinet/tcp.h> lacks */
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "upcall.h"

#define HELPER __attribute__((unused)) static
#define COUNT_OF(array) (sizeof(array) / sizeof *(array))

/* A helper that waits gives up after this: far more than a loaded machine needs. */
#define PATIENCE_NS ((int64_t)(15 * UPCALL_SECOND * slowness()))
#define MS(n) ((int64_t)(n) * 1000000)

HELPER uint64_t slowness(void) {
    const char *text = getenv("UPCALL_TEST_SLOWNESS");
    uint64_t times = text ? strtoull(text, NULL, 10) : 1;
    return times ? times : 1;
}

/* ---- Checks. They may be used on any thread, and end the test's process when they fail: by abort() where CHECK_ABORTS is
   defined before this file is included. ---- */

/* Whether the environment denies this on purpose: "descriptors", "threads", "proc", "rights", "pidfd",
 * "io_uring". */
HELPER bool denied(const char *what) {
    const char *text = getenv("UPCALL_TEST_DENIED");
    return text != NULL && strcmp(text, what) == 0;
}

#define SKIP(why) (dprintf(STDOUT_FILENO, "  %s\n", (why)), _exit(77))

/* A test that is stopped by just what is denied is skipped. */
HELPER void skip_if_denied(bool lacks_descriptors, int error) {
    if (lacks_descriptors && denied("descriptors"))
        SKIP("more descriptors than are permitted");
    if ((error == ENOENT || error == EACCES) && denied("proc"))
        SKIP("what is denied of /proc");
}

/* The program's own: the library has to live without. */
HELPER pid_t fork_or_skip(void) {
    pid_t child = fork();
    if (child < 0 && errno == EAGAIN && denied("threads"))
        SKIP("more processes than are permitted");
    return child;
}
HELPER int create_or_skip(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *), void *arg) {
    int error = pthread_create(thread, attributes, fn, arg);
    if (error == EAGAIN && denied("threads"))
        SKIP("more threads than are permitted");
    return error;
}
#define fork() fork_or_skip()
#define pthread_create(...) create_or_skip(__VA_ARGS__)

struct place {
    const char *file;
    int line;
};
#define HERE ((struct place){__FILE__, __LINE__})

__attribute__((noreturn, format(printf, 2, 3))) HELPER void fail(struct place at, const char *format, ...) {
    char text[1024];
    int error = errno;
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    skip_if_denied(error == EMFILE || strstr(text, strerror(EMFILE)) != NULL, error);
    dprintf(STDOUT_FILENO, "%s:%d: %s\n", at.file, at.line, text);
#ifdef CHECK_ABORTS
    abort();
#else
    _exit(1);
#endif
}

HELPER const char *error_hint(long long value) {
    return value < 0 && value > -4096 ? strerror((int)-value) : "";
}

HELPER void check_eq(struct place at, const char *text, long long a, long long b) {
    if (a != b)
        fail(at, "CHECK_EQ(%s): %lld is not %lld  [%s | %s]", text, a, b, error_hint(a), error_hint(b));
}

HELPER void check_contains(struct place at, const char *text, const char *part) {
    if (text == NULL || strstr(text, part) == NULL)
        fail(at, "\"%s\" does not contain \"%s\"", text ? text : "(NULL)", part);
}

#define CHECK(condition) ((condition) ? (void)0 : fail(HERE, "CHECK(%s)  errno %d", #condition, errno))
#define CHECK_EQ(a, b) check_eq(HERE, #a ", " #b, (long long)(a), (long long)(b))
#define CHECK_STR_CONTAINS(text, part) check_contains(HERE, (text), (part))
#define CHECK_STR_EQ(a, b) (strcmp((a), (b)) == 0 ? (void)0 : fail(HERE, "\"%s\" is not \"%s\"", (a), (b)))
/* ---- Tests. ---- */

struct test {
    const char *name;
    void (*run)(void);
    unsigned seconds; /* 0: the usual limit */
    struct test *next;
};
HELPER struct test *first_test, **last_test = &first_test;

#define TEST_FOR(name, seconds_)                                                                                       \
    static void test_##name(void);                                                                                     \
    __attribute__((constructor)) static void add_##name(void) {                                                        \
        static struct test test = {#name, test_##name, seconds_, NULL};                                                \
        *last_test = &test;                                                                                            \
        last_test = &test.next;                                                                                        \
    }                                                                                                                  \
    static void test_##name(void)
#define TEST(name) TEST_FOR(name, 0)

HELPER uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UPCALL_SECOND + (uint64_t)t.tv_nsec;
}

/* What this process has used: unlike the clock, it does not grow while other programs are busy, nor, in effect, on an
 * emulated processor. */
HELPER uint64_t processor_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((uint64_t)t.tv_sec * UPCALL_SECOND + (uint64_t)t.tv_nsec) / slowness();
}

/* Never an assertion's means: only to let something else go first. */
HELPER void pause_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&t, &t) != 0) {}
}

HELPER unsigned test_seconds(const struct test *test) {
    const char *text = getenv("UPCALL_TEST_SECONDS");
    unsigned usual = text ? (unsigned)strtoul(text, NULL, 10) : 20;
    return test->seconds > usual ? test->seconds : usual;
}

/* UPCALL_TEST_SKIP: a line "pattern=why" for the tests that need what is denied. */
HELPER void skip_if_named(const char *name) {
    const char *line = getenv("UPCALL_TEST_SKIP");
    for (; line != NULL; line = (line = strchr(line, '\n')) ? line + 1 : NULL) {
        char pattern[256];
        const char *why = line + strcspn(line, "=\n");
        snprintf(pattern, sizeof pattern, "%.*s", (int)(why - line), line);
        if (*why == '=' && fnmatch(pattern, name, 0) == 0) {
            dprintf(STDOUT_FILENO, "  %.*s\n", (int)strcspn(why + 1, "\n"), why + 1);
            _exit(77);
        }
    }
}

/* AddressSanitizer takes memory of its own, and keeps what was freed for a while. */
extern void __asan_init(void) __attribute__((weak));
HELPER bool has_address_sanitizer(void) {
    return __asan_init != NULL;
}

/* ThreadSanitizer has a thread of its own, and gives signals to the program when it suits it. */
extern void __tsan_init(void) __attribute__((weak));
#define SKIP_UNDER_THREAD_SANITIZER() (__tsan_init != NULL ? SKIP("not under ThreadSanitizer") : (void)0)

/* LeakSanitizer, where the program has it, looks for what is left; recorders may be. */
extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak));
extern const char *__lsan_default_suppressions(void), *__lsan_default_options(void);
const char *__lsan_default_suppressions(void) {
    return "leak:add_record\n";
}
const char *__lsan_default_options(void) {
    return "print_suppressions=0";
}

HELPER bool has_leaks(void) {
    struct rlimit processes, memory;
    CHECK(getrlimit(RLIMIT_NPROC, &processes) == 0 && getrlimit(RLIMIT_AS, &memory) == 0);
    /* It needs both itself. */
    if (__lsan_do_recoverable_leak_check == NULL || processes.rlim_cur < 100 || memory.rlim_cur != RLIM_INFINITY)
        return false;
    return __lsan_do_recoverable_leak_check() != 0;
}

/* The child's exit status; -1: killed by the time limit; a signal's number + 1000. */
HELPER int run_test(const struct test *test) {
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        exit(1);
    }
    if (child == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (denied("threads"))
            setrlimit(RLIMIT_NPROC, &(struct rlimit){1, 1});
        skip_if_named(test->name);
        test->run();
        _exit(has_leaks());
    }
    setpgid(child, child);
    uint64_t limit = now_ns() + test_seconds(test) * UPCALL_SECOND;
    int status, result = -1;
    for (int ms = 1; now_ns() < limit; ms = ms < 20 ? ms + 1 : 20) {
        if (waitpid(child, &status, WNOHANG) == child) {
            result = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
            break;
        }
        pause_ms(ms);
    }
    kill(-child, SIGKILL); /* also what the test started */
    if (result == -1)
        waitpid(child, &status, 0);
    return result;
}

/* Why this machine cannot do what UPCALL_BACKEND demands, or NULL: asked of the kernel, not of the library. */
HELPER const char *backend_denied(void) {
    const char *backend = getenv("UPCALL_BACKEND");
    if (backend == NULL || strcmp(backend, "io_uring") != 0)
        return NULL;
    uint32_t params[30] = {0}; /* struct io_uring_params; the sixth word: features */
    long ring = syscall(SYS_io_uring_setup, 4, params);
    if (ring < 0)
        return "io_uring is denied here";
    close((int)ring);
    return params[5] & 1u << 8 ? NULL : "this kernel's io_uring lacks EXT_ARG, without which it is not used"; /* until 5.11 */
}

#ifndef CHECK_OWN_MAIN
int main(int argc, char **argv) {
    unsigned ran = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (backend_denied() != NULL) {
        printf("skipped: %s\n", backend_denied());
        return 77;
    }
    for (struct test *test = first_test; test; test = test->next) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++)
            wanted = wanted || strstr(test->name, argv[i]) != NULL;
        if (!wanted)
            continue;
        uint64_t start = now_ns();
        int result = run_test(test);
        double seconds = (double)(now_ns() - start) / 1e9;
        ran += result != 77;
        failed += result != 0 && result != 77;
        if (result == 0)
            printf("ok       %s (%.2f s)\n", test->name, seconds);
        else if (result == 77)
            printf("skipped  %s\n", test->name);
        else if (result == -1)
            printf("FAILED   %s: no end after %u s\n", test->name, test_seconds(test));
        else if (result > 1000)
            printf("FAILED   %s: %s\n", test->name, strsignal(result - 1000));
        else
            printf("FAILED   %s\n", test->name);
    }
    printf("%u run, %u failed\n", ran, failed);
    return failed ? 1 : ran ? 0 : 77;
}
#endif

/* ---- Loops. ---- */

HELPER upcall_config default_config(void) {
    upcall_config config;
    memset(&config, 0xa5, sizeof config);
    upcall_config_init(&config);
    return config;
}

HELPER upcall_loop *loop_with_at(struct place at, const upcall_config *config) {
    upcall_loop *loop = NULL;
    int rc = upcall_loop_new(config, &loop);
    if (rc != 0 || loop == NULL)
        fail(at, "upcall_loop_new: %d (%s) %s", rc, upcall_last_error(), error_hint(rc));
    if (denied("rights") && geteuid() == 0)
        CHECK(setresgid(61234, 61234, 61234) == 0 && setresuid(61234, 61234, 61234) == 0);
    return loop;
}
#define loop_with(config) loop_with_at(HERE, (config))
#define new_loop() loop_with_at(HERE, NULL)

/* Between turns, and with no other thread at work. */
HELPER void check_stats_at(struct place at, upcall_loop *loop) {
    upcall_stats s;
    check_eq(at, "upcall_stats_get", upcall_stats_get(loop, &s), 0);
    if (s.submitted != s.completed + s.cancelled + s.timed_out + s.in_flight)
        fail(at, "stats: %" PRIu64 " submitted, %" PRIu64 " completed, %" PRIu64 " cancelled, %" PRIu64
                 " timed out, %" PRIu64 " in flight", s.submitted, s.completed, s.cancelled, s.timed_out, s.in_flight);
}
#define check_stats(loop) check_stats_at(HERE, (loop))

HELPER uint64_t in_flight(upcall_loop *loop) {
    upcall_stats s;
    check_eq(HERE, "upcall_stats_get", upcall_stats_get(loop, &s), 0);
    return s.in_flight;
}

HELPER void free_loop_at(struct place at, upcall_loop *loop) {
    check_stats_at(at, loop);
    check_eq(at, "upcall_loop_free", upcall_loop_free(loop), 0);
}
#define free_loop(loop) free_loop_at(HERE, (loop))

HELPER bool on_epoll(const upcall_loop *loop) {
    return upcall_loop_backend(loop) == UPCALL_BACKEND_EPOLL;
}

/* ---- Recorder: all events, in order. `struct recorder rec = {0}` is an empty one. ---- */

struct record {
    upcall_id id;
    int64_t result;
    uint64_t transferred;
    void *buffer;
    uint32_t flags;
    uint32_t kind;
};

struct recorder {
    struct record *events;
    size_t count; /* events */
    size_t finals; /* those without UPCALL_MORE */
    size_t room;
};

HELPER bool moves_bytes_out_or_whole(uint32_t kind) {
    switch (kind) {
    case UPCALL_OP_READ: case UPCALL_OP_READV: case UPCALL_OP_PREAD: case UPCALL_OP_WRITE: case UPCALL_OP_WRITEV:
    case UPCALL_OP_PWRITE: case UPCALL_OP_SEND: case UPCALL_OP_SENDMSG: case UPCALL_OP_PREADV: case UPCALL_OP_PWRITEV:
        return true;
    default:
        return false;
    }
}

/* What holds for every event of every operation. */
HELPER void check_event(const upcall_event *event) {
    CHECK(event->id != 0);
    CHECK_EQ(event->reserved[0], 0);
    CHECK_EQ(event->reserved[1], 0);
    CHECK_EQ(event->flags & ~(uint32_t)(UPCALL_MORE | UPCALL_RELEASED | UPCALL_EXPIRED), 0);
    if (event->flags & UPCALL_EXPIRED)
        CHECK_EQ(event->result, -ETIMEDOUT);
    skip_if_denied(event->result == -EMFILE, 0);
    if (event->kind != UPCALL_OP_WORK) { /* guarantee 5: these never reach the program */
        CHECK(event->result != -EAGAIN);
        CHECK(event->result != -EINTR);
        CHECK(event->result != -EINPROGRESS);
        CHECK(event->result != -ENOBUFS || event->kind == UPCALL_OP_ACCEPT);
    }
    if (moves_bytes_out_or_whole(event->kind) && event->result >= 0)
        CHECK_EQ(event->transferred, event->result);
}

HELPER void add_record(struct recorder *rec, const upcall_event *event) {
    check_event(event);
    if (rec->count == rec->room) {
        rec->room = rec->room ? 2 * rec->room : 64;
        rec->events = realloc(rec->events, rec->room * sizeof *rec->events);
        CHECK(rec->events != NULL);
    }
    rec->events[rec->count++] = (struct record){event->id,     event->result, event->transferred,
                                                event->buffer, event->flags,  event->kind};
    rec->finals += !(event->flags & UPCALL_MORE);
}

/* The callback: the op's user pointer is the recorder. */
HELPER void record(upcall_loop *loop, const upcall_event *event) {
    CHECK(loop != NULL);
    add_record(event->user, event);
}

HELPER void forget(struct recorder *rec) {
    free(rec->events);
    *rec = (struct recorder){0};
}

/* Gives each op the recorder (unless it has a callback of its own) and submits them. */
HELPER void submit_many_at(struct place at, upcall_loop *loop, upcall_op *ops, size_t count, struct recorder *rec,
                           upcall_id *ids) {
    for (size_t i = 0; i < count; i++)
        if (ops[i].callback == NULL) {
            ops[i].callback = record;
            ops[i].user = rec;
        }
    int rc = upcall_submit(loop, ops, count, ids);
    if (rc != 0)
        fail(at, "upcall_submit: %d (%s)", rc, upcall_last_error());
}
#define submit_many(loop, ops, count, rec, ids) submit_many_at(HERE, (loop), (ops), (count), (rec), (ids))

HELPER upcall_id submit_one_at(struct place at, upcall_loop *loop, upcall_op op, struct recorder *rec) {
    upcall_id id = 0;
    submit_many_at(at, loop, &op, 1, rec, &id);
    if (id == 0)
        fail(at, "upcall_submit wrote the id 0");
    return id;
}
#define submit_one(loop, op, rec) submit_one_at(HERE, (loop), (op), (rec))

/* Polls until *count reaches n. */
HELPER void wait_count_at(struct place at, upcall_loop *loop, const size_t *count, size_t n) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (*count < n) {
        int rc = upcall_poll(loop, MS(100));
        if (rc < 0)
            fail(at, "upcall_poll: %d (%s)", rc, upcall_last_error());
        if (now_ns() > limit)
            fail(at, "waited for %zu, got only %zu", n, *count);
    }
}
#define wait_count(loop, count, n) wait_count_at(HERE, (loop), (count), (n))
#define run_until(loop, rec, n) wait_count_at(HERE, (loop), &(rec)->count, (n)) /* n events */
#define run_finals(loop, rec, n) wait_count_at(HERE, (loop), &(rec)->finals, (n))

/* The operation's one final event; fails when there is none, more than one, or anything after it. */
HELPER struct record final_at(struct place at, const struct recorder *rec, upcall_id id) {
    struct record final = {0};
    for (size_t i = 0; i < rec->count; i++) {
        if (rec->events[i].id != id)
            continue;
        if (final.id)
            fail(at, "operation %#" PRIx64 ": an event after its final one", id);
        if (!(rec->events[i].flags & UPCALL_MORE))
            final = rec->events[i];
    }
    if (!final.id)
        fail(at, "operation %#" PRIx64 ": no final event", id);
    return final;
}
#define final_of(rec, id) final_at(HERE, (rec), (id))

HELPER size_t events_of(const struct recorder *rec, upcall_id id) {
    size_t n = 0;
    for (size_t i = 0; i < rec->count; i++)
        n += rec->events[i].id == id;
    return n;
}

/* The index of the operation's final event in the recorder: to compare orders. */
HELPER size_t order_of(const struct recorder *rec, upcall_id id) {
    for (size_t i = 0; i < rec->count; i++)
        if (rec->events[i].id == id && !(rec->events[i].flags & UPCALL_MORE))
            return i;
    fail(HERE, "operation %#" PRIx64 ": no final event", id);
}

HELPER int compare_ids(const void *a, const void *b) {
    upcall_id x = *(const upcall_id *)a, y = *(const upcall_id *)b;
    return x < y ? -1 : x > y;
}

/* The oracle of guarantee 1: every one of `ids` has exactly one final event and none after it, and there are no others. */
HELPER void check_finals_at(struct place at, const struct recorder *rec, const upcall_id *ids, size_t count) {
    upcall_id *sorted = malloc((count + 1) * sizeof *sorted);
    bool *ended = calloc(count + 1, sizeof *ended);
    CHECK(sorted != NULL && ended != NULL);
    memcpy(sorted, ids, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare_ids);
    for (size_t i = 1; i < count; i++)
        if (sorted[i] == sorted[i - 1])
            fail(at, "id %#" PRIx64 " was given twice", sorted[i]);
    for (size_t i = 0; i < rec->count; i++) {
        const upcall_id *found = bsearch(&rec->events[i].id, sorted, count, sizeof *sorted, compare_ids);
        if (found == NULL)
            fail(at, "an event of an unknown operation %#" PRIx64, rec->events[i].id);
        if (ended[found - sorted])
            fail(at, "operation %#" PRIx64 ": an event after its final one", *found);
        ended[found - sorted] = !(rec->events[i].flags & UPCALL_MORE);
    }
    for (size_t i = 0; i < count; i++)
        if (!ended[i])
            fail(at, "operation %#" PRIx64 ": no final event", sorted[i]);
    free(sorted);
    free(ended);
}
#define check_finals(rec, ids, count) check_finals_at(HERE, (rec), (ids), (count))

/* Nothing more comes in a few turns. */
HELPER void quiet_at(struct place at, upcall_loop *loop, const struct recorder *rec) {
    size_t count = rec->count;
    for (int i = 0; i < 4; i++)
        if (upcall_poll(loop, i ? MS(5) : 0) < 0)
            fail(at, "upcall_poll: %s", upcall_last_error());
    if (rec->count != count)
        fail(at, "%zu more events", rec->count - count);
}
#define quiet(loop, rec) quiet_at(HERE, (loop), (rec))

/* Submits one operation and polls until its final event. */
HELPER struct record complete_at(struct place at, upcall_loop *loop, upcall_op op) {
    struct recorder rec = {0};
    upcall_id id = submit_one_at(at, loop, op, &rec);
    wait_count_at(at, loop, &rec.finals, 1);
    struct record final = final_at(at, &rec, id);
    if (final.kind != op.kind)
        fail(at, "the event's kind is %u, the op's %u", final.kind, op.kind);
    forget(&rec);
    return final;
}
#define complete(loop, op) complete_at(HERE, (loop), (op))

/* Turns until nothing is left to hand over: what was submitted is now really waiting. */
HELPER void start_all(upcall_loop *loop) {
    for (int i = 0; i < 3; i++)
        CHECK(upcall_poll(loop, 0) >= 0);
}

/* Reaps into the recorder until `n` events are in it. */
HELPER void reap_until_at(struct place at, upcall_loop *loop, struct recorder *rec, size_t n) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    upcall_event events[64];
    while (rec->count < n) {
        int rc = upcall_poll(loop, MS(100));
        if (rc < 0)
            fail(at, "upcall_poll: %d (%s)", rc, upcall_last_error());
        int got = upcall_reap(loop, events, COUNT_OF(events));
        if (got < 0)
            fail(at, "upcall_reap: %d (%s)", got, upcall_last_error());
        for (int i = 0; i < got; i++)
            add_record(rec, &events[i]);
        if (now_ns() > limit)
            fail(at, "waited for %zu records, got only %zu", n, rec->count);
    }
}
#define reap_until(loop, rec, n) reap_until_at(HERE, (loop), (rec), (n))

/* ---- Descriptors. ---- */

HELPER bool is_open(int fd) {
    return fcntl(fd, F_GETFD) != -1;
}

HELPER int open_fd_count(void) {
    DIR *dir = opendir("/proc/self/fd");
    int count = -1; /* the directory's own */
    if (dir == NULL && denied("proc")) {
        for (int fd = count = 0; fd < 4096; fd++)
            count += is_open(fd);
        return count;
    }
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

HELPER bool is_readable(int fd, int timeout_ms) {
    struct pollfd p = {fd, POLLIN, 0};
    int rc;
    do
        rc = poll(&p, 1, timeout_ms);
    while (rc < 0 && errno == EINTR);
    return rc == 1;
}

HELPER int set_nonblocking(int fd) {
    CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
    return fd;
}

HELPER void pipe_pair(int fds[2]) {
    CHECK(pipe2(fds, O_CLOEXEC) == 0);
}

HELPER void unix_pair(int fds[2]) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
}

HELPER void dgram_pair(int fds[2]) {
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds) == 0);
}

/* A listener on the loopback interface at a free port. `type`: SOCK_NONBLOCK or 0. */
HELPER int tcp_listener(struct sockaddr_in *address, int type, int backlog) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
    CHECK(fd >= 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof *address;
    CHECK(bind(fd, (struct sockaddr *)address, sizeof *address) == 0);
    CHECK(listen(fd, backlog) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &length) == 0);
    return fd;
}

HELPER int tcp_connected_to(const struct sockaddr_in *address) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    CHECK(fd >= 0);
    CHECK(connect(fd, (const struct sockaddr *)address, sizeof *address) == 0);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    return fd;
}

/* `buffers`: the size of all buffers, set before the window is; 0: as the system has it. */
HELPER void tcp_pair_with(int buffers, int fds[2]) {
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 16), one = 1;
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fds[0] >= 0);
    for (int i = 0; i < 2 && buffers > 0; i++) {
        CHECK(setsockopt(i ? listener : fds[0], SOL_SOCKET, SO_SNDBUF, &buffers, sizeof buffers) == 0);
        CHECK(setsockopt(i ? listener : fds[0], SOL_SOCKET, SO_RCVBUF, &buffers, sizeof buffers) == 0);
    }
    CHECK(connect(fds[0], (const struct sockaddr *)&address, sizeof address) == 0);
    CHECK(setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fds[1] >= 0);
    close(listener);
}

HELPER void tcp_pair(int fds[2]) {
    tcp_pair_with(0, fds);
}

/* The pairs by number, for tests that go over all of them: fds[0] reads, fds[1] writes. */
enum { PIPE, UNIX, TCP, PAIRS };
HELPER void make_pair(int which, int fds[2]) {
    which == PIPE ? pipe_pair(fds) : which == UNIX ? unix_pair(fds) : tcp_pair(fds);
}

HELPER void close_pair(const int fds[2]) {
    close(fds[0]);
    close(fds[1]);
}

HELPER uint8_t pattern(uint64_t i) {
    return (uint8_t)((i * 2654435761u) >> 13 ^ i);
}

HELPER void fill_pattern(void *memory, size_t length, uint64_t from) {
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)memory)[i] = pattern(from + i);
}

HELPER bool has_pattern(const void *memory, size_t length, uint64_t from) {
    for (size_t i = 0; i < length; i++)
        if (((const uint8_t *)memory)[i] != pattern(from + i))
            return false;
    return true;
}

HELPER const char *temp_directory(void) {
    const char *directory = getenv("TMPDIR");
    return directory && *directory ? directory : "/tmp";
}

/* An unlinked file of `size` bytes of pattern. */
HELPER int temp_file(size_t size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/upcall-XXXXXX", temp_directory());
    int fd = mkostemp(path, O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(unlink(path) == 0);
    uint8_t block[4096];
    for (size_t done = 0; done < size;) {
        size_t n = size - done < sizeof block ? size - done : sizeof block;
        fill_pattern(block, n, done);
        CHECK(pwrite(fd, block, n, (off_t)done) == (ssize_t)n);
        done += n;
    }
    return fd;
}

/* TCP may still make room by itself: the peer has not acknowledged everything (and was not asked again in vain), or its
 * window is open by less than a segment, which a probe fills later. Room for a few bytes does not show as POLLOUT. */
HELPER bool is_moving(int fd) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
           (info.tcpi_snd_wnd > 0 || (info.tcpi_unacked > 0 && info.tcpi_backoff == 0));
}

/* Writes until the other side takes no more, also not later; how many bytes went in. */
HELPER size_t fill_up(int fd) {
    static const char block[65536];
    int flags = fcntl(fd, F_GETFL);
    size_t total = 0;
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    CHECK(fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
    for (bool moving = true; moving;) {
        moving = is_moving(fd);
        for (size_t size = sizeof block; size > 0; size /= 2)
            for (ssize_t n; (n = write(fd, block, size)) > 0;)
                total += (size_t)n, moving = true;
        CHECK(errno == EAGAIN);
        CHECK(now_ns() < limit);
        if (moving)
            pause_ms(1);
    }
    CHECK(fcntl(fd, F_SETFL, flags) == 0);
    return total;
}

/* Takes everything that is there now; how many bytes. */
HELPER size_t drain_fd(int fd) {
    char block[65536];
    int flags = fcntl(fd, F_GETFL);
    size_t total = 0;
    CHECK(fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
    for (ssize_t n; (n = read(fd, block, sizeof block)) > 0;)
        total += (size_t)n;
    CHECK(fcntl(fd, F_SETFL, flags) == 0);
    return total;
}

HELPER void write_all(int fd, const void *data, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = write(fd, (const char *)data + done, length - done);
        CHECK(n > 0 || errno == EINTR);
        done += n > 0 ? (size_t)n : 0;
    }
}

HELPER void read_all(int fd, void *data, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = read(fd, (char *)data + done, length - done);
        CHECK(n > 0 || (n < 0 && errno == EINTR));
        done += n > 0 ? (size_t)n : 0;
    }
}

/* ---- Threads and chance. ---- */

HELPER pthread_t start(void *(*fn)(void *), void *arg) {
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, fn, arg), 0);
    return thread;
}

HELPER void join(pthread_t thread) {
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

HELPER uint64_t chance(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Runs fn(arg) in a forked child: its exit status, 0 when fn returns; a signal's number + 1000. */
HELPER int in_child(void (*fn)(void *), void *arg) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        fn(arg);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        SKIP("its child says so");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* Allows as many open descriptors as the system permits. */
HELPER void raise_descriptor_limit(unsigned wanted) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < wanted) {
        limit.rlim_cur = limit.rlim_max;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        if (limit.rlim_cur < wanted)
            SKIP("too few descriptors are permitted");
    }
}

/* Leaves room for `more` new descriptors; what is open stays open. */
HELPER void limit_descriptors(unsigned more) {
    struct rlimit limit;
    int number = 0;
    for (unsigned unused = 0; is_open(number) || unused++ < more;)
        number++;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = (rlim_t)number;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

HELPER void unlimit_descriptors(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* A new socket, close-on-exec. */
HELPER int new_socket(int domain, int type) {
    int fd = socket(domain, type | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    return fd;
}

/* A bound UDP socket and its address. */
HELPER int udp_socket(struct sockaddr_in *address) {
    int fd = new_socket(AF_INET, SOCK_DGRAM);
    socklen_t length = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    CHECK(bind(fd, (struct sockaddr *)address, sizeof *address) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &length) == 0);
    return fd;
}

/* The threads of this process, without those the kernel makes for io_uring: they belong to the thread that had a ring. */
HELPER int thread_count(void) {
    DIR *dir = opendir("/proc/self/task");
    CHECK(dir != NULL);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[300], name[32] = "";
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = fopen(path, "re");
        if (file == NULL)
            continue; /* just gone */
        if (fgets(name, sizeof name, file) != NULL)
            count += strncmp(name, "iou-", 4) != 0;
        fclose(file);
    }
    closedir(dir);
    return count;
}

/* A callback for what must not be called back. */
HELPER void never(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    fail(HERE, "an event that must not come: %s, result %lld", upcall_op_name(event->kind), (long long)event->result);
}

#endif
