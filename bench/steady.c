/* The figures of the engine itself, printed, never asserted: the cost of an operation beside a raw liburing loop in the same
 * run, heap allocations and system calls per operation in the steady state, and what an idle loop costs.
 *
 * The contestants take turns; the medians of their turns are compared. Built without liburing the raw column is left out. */
#include <upcall.h>

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

enum { ROUNDS = 15, MOST = 1024 };

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UPCALL_SECOND + (uint64_t)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, ascending);
    return values[count / 2];
}

static void must(int rc, const char *what) {
    if (rc < 0) {
        fprintf(stderr, "%s: %s (%s)\n", what, upcall_strerror(rc), upcall_last_error());
        exit(1);
    }
}

/* Heap allocations of the whole process, counted by standing in front of the C library. */
static atomic_ulong allocations;
#define INTERPOSE(type, name, params, args)                                                                            \
    type name params {                                                                                                 \
        static type(*next) params;                                                                                     \
        if (!next)                                                                                                     \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                                                                 \
        atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);                                              \
        return next args;                                                                                              \
    }
INTERPOSE(void *, malloc, (size_t size), (size))
INTERPOSE(void *, realloc, (void *old, size_t size), (old, size))
INTERPOSE(int, posix_memalign, (void **out, size_t align, size_t size), (out, align, size))

/* ---- Upcall ---- */

static uint64_t seen;
static void count_event(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    seen += (uint64_t)(event->result == 0);
}

static upcall_op ops[MOST];

static double upcall_nops(upcall_loop *loop, unsigned batch, unsigned total) {
    uint64_t begun = now_ns(), goal = seen + total;
    for (unsigned done = 0; done < total; done += batch) {
        must(upcall_submit(loop, ops, batch, NULL), "upcall_submit");
        for (unsigned left = batch; left > 0;) {
            int count = upcall_poll(loop, -1);
            must(count, "upcall_poll");
            left -= (unsigned)count;
        }
    }
    double ns = (double)(now_ns() - begun) / total;
    if (seen != goal)
        abort();
    return ns;
}

static double upcall_fresh_nops(upcall_loop *loop, unsigned batch, unsigned total) {
    uint64_t begun = now_ns();
    for (unsigned done = 0; done < total; done += batch) {
        for (unsigned i = 0; i < batch; i++) {
            upcall_op op = upcall_op_nop();
            op.callback = count_event;
            must(upcall_submit(loop, &op, 1, NULL), "upcall_submit");
        }
        for (unsigned left = batch; left > 0;)
            left -= (unsigned)upcall_poll(loop, -1);
    }
    return (double)(now_ns() - begun) / total;
}

/* ---- The raw ring ---- */

#ifdef HAVE_LIBURING
static struct io_uring ring;

static bool raw_open(void) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
                                     .cq_entries = 2048};
    if (io_uring_queue_init_params(1024, &ring, &params) != 0)
        return false;
    io_uring_register_ring_fd(&ring);
    return true;
}

static double raw_nops(unsigned batch, unsigned total) {
    uint64_t begun = now_ns();
    for (unsigned done = 0; done < total; done += batch) {
        for (unsigned i = 0; i < batch; i++) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            io_uring_prep_nop(sqe);
            io_uring_sqe_set_data64(sqe, i);
        }
        for (unsigned left = batch; left > 0;) {
            io_uring_submit_and_wait(&ring, 1);
            struct io_uring_cqe *cqe;
            unsigned head, count = 0;
            io_uring_for_each_cqe(&ring, head, cqe) {
                seen += (uint64_t)(cqe->res == 0);
                count++;
            }
            io_uring_cq_advance(&ring, count);
            left -= count;
        }
    }
    return (double)(now_ns() - begun) / total;
}
#endif

static void compare_nops(upcall_loop *loop) {
    static const unsigned batches[] = {1, 4, 16, 64, 256};
    bool raw = false;
#ifdef HAVE_LIBURING
    raw = upcall_loop_backend(loop) == UPCALL_BACKEND_IO_URING && raw_open();
#endif
    printf("\nNOP through a callback, nanoseconds per operation (medians of %d turns)\n", ROUNDS);
    printf("  %5s  %8s  %8s  %8s  %s\n", "batch", "raw ring", "array", "one by one", "raw/array  raw/one by one");
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        unsigned batch = batches[b], total = batch == 1 ? 100000 : 400000 / batch * batch;
        double array[ROUNDS], fresh[ROUNDS], bare[ROUNDS];
        for (int round = 0; round < ROUNDS; round++) {
#ifdef HAVE_LIBURING
            bare[round] = raw ? raw_nops(batch, total) : 0;
#else
            bare[round] = 0;
#endif
            array[round] = upcall_nops(loop, batch, total);
            fresh[round] = upcall_fresh_nops(loop, batch, total);
        }
        double of_raw = median(bare, ROUNDS), of_array = median(array, ROUNDS), of_fresh = median(fresh, ROUNDS);
        if (raw)
            printf("  %5u  %8.1f  %8.1f  %10.1f  %9.2f  %15.2f\n", batch, of_raw, of_array, of_fresh, of_raw / of_array,
                   of_raw / of_fresh);
        else
            printf("  %5u  %8s  %8.1f  %10.1f\n", batch, "-", of_array, of_fresh);
    }
#ifdef HAVE_LIBURING
    if (raw)
        io_uring_queue_exit(&ring);
#endif
}

/* ---- The steady state ---- */

static void per_operation(upcall_loop *loop, const char *what, const upcall_op *op, unsigned batch) {
    upcall_op many[64];
    for (unsigned i = 0; i < batch; i++)
        many[i] = *op;
    upcall_stats before, after;
    unsigned long heap = 0, polls = 0;
    enum { WARM = 200, TURNS = 2000 };
    for (int turn = -WARM; turn < TURNS; turn++) {
        if (turn == 0) {
            heap = atomic_load(&allocations);
            polls = 0;
            upcall_stats_get(loop, &before);
        }
        must(upcall_submit(loop, many, batch, NULL), "upcall_submit");
        for (unsigned left = batch; left > 0;) {
            int count = upcall_poll(loop, -1);
            must(count, "upcall_poll");
            left -= (unsigned)count;
            polls++;
        }
    }
    heap = atomic_load(&allocations) - heap;
    upcall_stats_get(loop, &after);
    double turns = (double)polls, operations = TURNS * (double)batch;
    printf("  %-34s %10.4f %14.3f\n", what, (double)heap / operations, (double)(after.system_calls - before.system_calls) / turns);
}

static void steady_state(upcall_loop *loop) {
    char buffer[4096];
    FILE *file = tmpfile();
    if (!file)
        return;
    int fd = fileno(file);
    if (ftruncate(fd, 1 << 20) != 0)
        return;
    for (int i = 0; i < 256; i++)
        if (pread(fd, buffer, sizeof buffer, i * 4096) < 0)
            return;
    printf("\nsteady state                          heap allocations   system calls\n");
    printf("                                       per operation       per turn\n");
    upcall_op op = upcall_op_nop();
    op.callback = count_event;
    per_operation(loop, "nop, 64 a turn", &op, 64);
    op.timeout_ns = UPCALL_SECOND;
    per_operation(loop, "nop with a deadline, 64 a turn", &op, 64);
    op = upcall_op_pread(fd, buffer, sizeof buffer, 4096);
    op.callback = count_event;
    per_operation(loop, "pread of cached data, 64 a turn", &op, 64);
    op = upcall_op_statx(-100, "/", 0, 1, NULL);
    static char room[512];
    op.addr2 = (uint64_t)(uintptr_t)room;
    op.callback = count_event;
    per_operation(loop, "statx, 16 a turn", &op, 16);
    op = upcall_op_nop();
    fclose(file);
}

/* ---- Idle ---- */

static long resident_kib(void) {
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "Rss: %ld kB", &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib;
}

static void idle(void) {
    enum { LOOPS = 16 };
    upcall_loop *loops[LOOPS];
    struct rusage before, after;
    must(upcall_loop_new(NULL, &loops[0]), "upcall_loop_new");
    must(upcall_poll(loops[0], 0), "upcall_poll");
    long resident = resident_kib();
    for (int i = 1; i < LOOPS; i++) {
        must(upcall_loop_new(NULL, &loops[i]), "upcall_loop_new");
        must(upcall_poll(loops[i], 0), "upcall_poll");
    }
    resident = resident_kib() - resident;
    getrusage(RUSAGE_SELF, &before);
    must(upcall_poll(loops[0], (int64_t)(2 * UPCALL_SECOND)), "upcall_poll");
    getrusage(RUSAGE_SELF, &after);
    long us = (after.ru_utime.tv_usec - before.ru_utime.tv_usec) + (after.ru_stime.tv_usec - before.ru_stime.tv_usec) +
              1000000 * ((after.ru_utime.tv_sec - before.ru_utime.tv_sec) + (after.ru_stime.tv_sec - before.ru_stime.tv_sec));
    printf("\nidle: %ld KiB resident per loop, %ld microseconds of processor time in 2 seconds\n", resident / (LOOPS - 1), us);
    for (int i = 0; i < LOOPS; i++)
        must(upcall_loop_free(loops[i]), "upcall_loop_free");
}

int main(void) {
    upcall_loop *loop;
    must(upcall_loop_new(NULL, &loop), "upcall_loop_new");
    printf("Upcall %s on %s (%s)\n", upcall_version(), upcall_backend_name(upcall_loop_backend(loop)), upcall_backend_reason(loop));
    for (unsigned i = 0; i < MOST; i++) {
        ops[i] = upcall_op_nop();
        ops[i].callback = count_event;
    }
    compare_nops(loop);
    steady_state(loop);
    must(upcall_loop_free(loop), "upcall_loop_free");
    idle();
    return 0;
}
