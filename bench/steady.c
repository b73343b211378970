/* The figures of the engine itself, printed, never asserted: heap allocations and system calls per operation in the steady
 * state, and what an idle loop costs. */
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

static void ignore(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
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
    op.callback = ignore;
    per_operation(loop, "nop, 64 a turn", &op, 64);
    op.timeout_ns = UPCALL_SECOND;
    per_operation(loop, "nop with a deadline, 64 a turn", &op, 64);
    op = upcall_op_pread(fd, buffer, sizeof buffer, 4096);
    op.callback = ignore;
    per_operation(loop, "pread of cached data, 64 a turn", &op, 64);
    op = upcall_op_statx(-100, "/", 0, 1, NULL);
    static char room[512];
    op.addr2 = (uint64_t)(uintptr_t)room;
    op.callback = ignore;
    per_operation(loop, "statx, 16 a turn", &op, 16);
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
    steady_state(loop);
    must(upcall_loop_free(loop), "upcall_loop_free");
    idle();
    return 0;
}
