/* The theory of batching, measured.
 *
 * An operation done by itself costs a system call and a context switch each way: 2 (t_s + t_k). A batch of B operations in a ring
 * costs that once, and t_r for each entry. So an operation of a batch costs 2 (t_s + t_k) / B + t_r, and the batch pays from
 *
 *     B* = 2 (t_s + t_k) / (2 (t_s + t_k) - t_r)
 *
 * operations on. What is measured here: t_s, the cheapest system call there is; t_k, from two threads of one core that wake each
 * other; t_r, from the slope of a large batch; and two real curves beside the predicted ones.
 *
 *   - A ring of requests in shared memory between two threads on one core, with an eventfd each way: the theory's own case. An
 *     operation by itself is the same with one entry at a time.
 *   - NOPs on io_uring, raw and through Upcall. The kernel works in the same thread, so t_k is 0, and one call hands over and takes
 *     back, so it is t_s + t_r B for a batch with the t_s of io_uring_enter; an operation by itself is a plain system call.
 *
 * Prints JSON for run.py. cpu=N is the core; quick=1 measures less. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <upcall.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

enum { MOST = 1024, ROUNDS = 9, SIZES = 11 }; /* batches of 1, 2, 4 … 1024 */

static uint64_t goal_ns = 20000000; /* for one measurement */

static void die(const char *what) {
    fprintf(stderr, "batching: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* What `batch_of(size)` takes, in nanoseconds: the lowest of several means, because here it is the machine that is asked what it
 * can do, and disturbance only adds. */
static double measure(void (*batch_of)(unsigned), unsigned size) {
    double lowest = 0;
    for (int round = -1; round < ROUNDS; round++) { /* the first one warms up */
        uint64_t begun = now_ns(), ended, calls = 0;
        do {
            for (int i = 0; i < 16; i++, calls++)
                batch_of(size);
            ended = now_ns();
        } while (ended - begun < goal_ns);
        double mean = (double)(ended - begun) / (double)calls;
        if (round == 0 || (round > 0 && mean < lowest))
            lowest = mean;
    }
    return lowest;
}

static void cheapest_call(unsigned unused) {
    (void)unused;
    syscall(SYS_getppid);
}

/* ---- Two threads, a ring of requests, an eventfd each way ---- */

static struct request {
    uint64_t argument, answer;
} requests[MOST];
static int to_worker, to_us;
static _Atomic unsigned handed_over;

static void wake(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one)
        die("eventfd");
}

static void wait_for(int fd) {
    uint64_t value;
    if (read(fd, &value, sizeof value) != sizeof value)
        die("eventfd");
}

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        wait_for(to_worker);
        unsigned count = atomic_load_explicit(&handed_over, memory_order_acquire);
        if (count == 0)
            return NULL;
        for (unsigned i = 0; i < count; i++)
            requests[i].answer = requests[i].argument + 1;
        wake(to_us);
    }
}

static uint64_t wrong;
static void hand_over(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        requests[i].argument = i;
    atomic_store_explicit(&handed_over, count, memory_order_release);
    wake(to_worker);
    wait_for(to_us);
    for (unsigned i = 0; i < count; i++)
        wrong += requests[i].answer != i + 1;
}

/* What hand_over() does without a switch: the same four calls on one's own descriptors. */
static void calls_alone(unsigned unused) {
    (void)unused;
    wake(to_worker);
    wait_for(to_worker);
    wake(to_us);
    wait_for(to_us);
}

/* ---- NOPs ---- */

#ifdef HAVE_LIBURING
static struct io_uring ring;

static bool raw_open(void) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
                                     .cq_entries = 2 * MOST};
    if (io_uring_queue_init_params(MOST, &ring, &params) != 0)
        return false;
    io_uring_register_ring_fd(&ring);
    return true;
}

static void raw_nops(unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
        io_uring_prep_nop(sqe);
        io_uring_sqe_set_data64(sqe, i);
    }
    for (unsigned left = count; left > 0;) {
        io_uring_submit_and_wait(&ring, 1);
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(&ring, head, cqe) {
            wrong += cqe->res != 0;
            seen++;
        }
        io_uring_cq_advance(&ring, seen);
        left -= seen;
    }
}

/* The call alone: nothing is handed over, nothing waited for. */
static void empty_enter(unsigned unused) {
    (void)unused;
    io_uring_submit_and_get_events(&ring);
}
#endif

static upcall_loop *loop;
static upcall_op nops[MOST];
static unsigned delivered;

static void on_nop(upcall_loop *l, const upcall_event *event) {
    (void)l;
    wrong += event->result != 0;
    delivered++;
}

static void must(int rc) {
    if (rc < 0) {
        fprintf(stderr, "batching: %s: %s\n", upcall_strerror(rc), upcall_last_error());
        exit(1);
    }
}

static void upcall_nops(unsigned count) {
    delivered = 0;
    must(upcall_submit(loop, nops, count, NULL));
    while (delivered < count)
        must(upcall_poll(loop, -1));
}

/* ---- Report ---- */

static void list(const char *name, const double *values) {
    printf("\"%s\": [", name);
    for (int i = 0; i < SIZES; i++)
        printf("%s%.4g", i ? ", " : "", values[i]);
    printf("]");
}

int main(int argc, char **argv) {
    int cpu = 0;
    for (int i = 1; i < argc; i++)
        if (sscanf(argv[i], "cpu=%d", &cpu) != 1 && strcmp(argv[i], "quick=1") == 0)
            goal_ns = 1000000;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) /* the worker inherits it */
        die("sched_setaffinity");

    double t_s = measure(cheapest_call, 0);

    pthread_t worker;
    to_worker = eventfd(0, EFD_CLOEXEC);
    to_us = eventfd(0, EFD_CLOEXEC);
    if (to_worker < 0 || to_us < 0)
        die("eventfd");
    double four_calls = measure(calls_alone, 0); /* before the worker waits on the same descriptor */
    if ((errno = pthread_create(&worker, NULL, work, NULL)) != 0)
        die("pthread_create");
    double handed[SIZES], predicted[SIZES];
    for (int i = 0; i < SIZES; i++)
        handed[i] = measure(hand_over, 1u << i);
    /* Each way is a write and a read: its t_s is two calls. */
    double slope = (handed[SIZES - 1] - handed[SIZES - 3]) / (MOST - MOST / 4), call = four_calls / 2;
    double t_k = (handed[0] - four_calls - slope) / 2;
    double there_and_back = 2 * (call + t_k);
    for (int i = 0; i < SIZES; i++)
        predicted[i] = there_and_back / (1u << i) + slope;
    atomic_store(&handed_over, 0);
    wake(to_worker);
    pthread_join(worker, NULL);

    must(upcall_loop_new(NULL, &loop));
    bool on_ring = upcall_loop_backend(loop) == UPCALL_BACKEND_IO_URING;
    for (unsigned i = 0; i < MOST; i++) {
        nops[i] = upcall_op_nop();
        nops[i].callback = on_nop;
    }
    double ours[SIZES], raw[SIZES] = {0}, enter = 0, entry = 0, expected[SIZES];
    bool has_raw = false;
    for (int i = 0; i < SIZES; i++)
        ours[i] = measure(upcall_nops, 1u << i);
#ifdef HAVE_LIBURING
    has_raw = raw_open();
    if (has_raw) {
        enter = measure(empty_enter, 0);
        for (int i = 0; i < SIZES; i++)
            raw[i] = measure(raw_nops, 1u << i);
        entry = (raw[SIZES - 1] - raw[SIZES - 3]) / (MOST - MOST / 4);
    }
#endif
    must(upcall_loop_free(loop));
    if (wrong) {
        fprintf(stderr, "batching: %llu wrong answers\n", (unsigned long long)wrong);
        return 1;
    }

    printf("{\"t_s\": %.4g, \"t_k\": %.4g, \"t_r\": %.4g, \"t_enter\": %.4g, \"t_entry\": %.4g,\n\"curves\": [", t_s, t_k, slope, enter, entry);
    printf("{\"title\": \"requests to another thread: t_s %.0f, t_k %.0f, t_r %.1f ns\", \"break_even\": %.5g, \"lines\": {", call, t_k,
           slope, there_and_back / (there_and_back - slope));
    list("2 (t_s + t_k) / B + t_r", predicted);
    printf("}, \"points\": [");
    for (int i = 0; i < SIZES; i++)
        printf("%s{\"batch\": %u, \"measured\": %.4g}", i ? ", " : "", 1u << i, handed[i] / (1u << i));
    printf("]}");
    if (has_raw && on_ring) {
        /* A NOP by itself is a system call; in a batch it is an entry. */
        for (int i = 0; i < SIZES; i++)
            expected[i] = enter / (1u << i) + entry;
        printf(",\n{\"title\": \"NOP on io_uring: enter %.0f, entry %.1f ns\", \"break_even\": %.5g, \"lines\": {", enter, entry,
               t_s > entry ? enter / (t_s - entry) : 0.0);
        list("t_s / B + t_r", expected);
        printf("}, \"points\": [");
        for (int i = 0; i < SIZES; i++)
            printf("%s{\"batch\": %u, \"raw ring\": %.4g, \"Upcall\": %.4g}", i ? ", " : "", 1u << i, raw[i] / (1u << i), ours[i] / (1u << i));
        printf("]}");
    }
    printf("]}\n");
    return 0;
}
