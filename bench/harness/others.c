/* Timers, messages between threads, memory; and the list of all workloads that are not simple runs. */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- Timers ---- */

static void timers(void) {
    const struct bench_timers *t = bench_contestant.timers;
    size_t n = (size_t)bench_number("timers", 1000000);
    enum { NEAR_MS = 200 };
    uint32_t *far = bench_memory(n * sizeof *far), *near = bench_memory(n * sizeof *near);
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        far[i] = 60000 + (uint32_t)(x >> 32) % 60000; /* idle limits of a server: none of them strikes */
        near[i] = 1 + (uint32_t)x % NEAR_MS;
    }
    pin("cpu", 0);
    t->open(n);
    long before = resident();
    uint64_t begun = bench_now();
    t->arm(n, far);
    uint64_t armed = bench_now();
    bench_report("bytes", (double)(resident() - before) / (double)n);
    uint64_t between = bench_now();
    t->cancel(n);
    uint64_t cancelled = bench_now();
    bench_report("arm_ns", (double)(armed - begun) / (double)n);
    bench_report("cancel_ns", (double)(cancelled - between) / (double)n);
    t->arm(n, near);
    usleep((NEAR_MS + 20) * 1000);
    begun = bench_now();
    t->fire(n);
    bench_report("fire_ns", (double)(bench_now() - begun) / (double)n);
    t->close();
    bench_report("ops", (double)n);
}

/* ---- Posts ---- */

uint64_t bench_posted;
static uint64_t posts_each;
static pthread_barrier_t together;

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static struct bench_message *queue_head, *nodes;
static _Atomic(struct bench_message *) next_node;

struct bench_message *bench_queue_push(void) {
    struct bench_message *node = atomic_fetch_add_explicit(&next_node, (ptrdiff_t)sizeof *node, memory_order_relaxed);
    pthread_mutex_lock(&queue_lock);
    struct bench_message *before = queue_head;
    node->next = before;
    queue_head = node;
    pthread_mutex_unlock(&queue_lock);
    return before;
}

uint64_t bench_queue_take(void) {
    pthread_mutex_lock(&queue_lock);
    struct bench_message *at = queue_head;
    queue_head = NULL;
    pthread_mutex_unlock(&queue_lock);
    uint64_t count = 0;
    for (; at; at = at->next) /* a program would handle them here */
        count++;
    return count;
}

static void *poster(void *argument) {
    unsigned thread = (unsigned)(uintptr_t)argument;
    const struct bench_posts *p = bench_contestant.posts;
    pin("others", 1);
    if (p->attach)
        p->attach(thread);
    pthread_barrier_wait(&together);
    for (uint64_t i = 0; i < posts_each; i++)
        p->post(thread);
    return NULL;
}

static void posts(void) {
    const struct bench_posts *p = bench_contestant.posts;
    unsigned count = (unsigned)bench_number("threads", 1);
    uint64_t total = (uint64_t)bench_number("posts", 1000000) / count * count;
    pthread_t threads[64];
    BENCH_CHECK(count >= 1 && count <= 64);
    posts_each = total / count;
    nodes = bench_memory((size_t)total * sizeof *nodes);
    atomic_store(&next_node, nodes);
    pthread_barrier_init(&together, NULL, count + 1);
    pin("cpu", 0);
    p->open();
    for (unsigned i = 0; i < count; i++)
        bench_must(-pthread_create(&threads[i], NULL, poster, (void *)(uintptr_t)i), "pthread_create");
    pthread_barrier_wait(&together);
    uint64_t begun = bench_now(), cpu = cpu_now(CLOCK_PROCESS_CPUTIME_ID);
    p->drain(total);
    uint64_t ended = bench_now();
    cpu = cpu_now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    BENCH_CHECK(bench_posted == total);
    p->close();
    bench_report("ops", (double)total);
    bench_report("ns", (double)(ended - begun) / (double)total);
    bench_report("cpu_ns", (double)cpu / (double)total);
}

/* ---- Idle loops ---- */

static void loops(void) {
    long count = bench_number("loops", 32);
    bench_contestant.new_loop(); /* what is there once per process */
    long before = resident();
    for (long i = 0; i < count; i++)
        BENCH_CHECK(bench_contestant.new_loop() != NULL);
    bench_report("bytes", (double)(resident() - before) / (double)count);
    bench_report("ops", (double)count);
}

/* ---- The list ---- */

static bool has_server(void) {
    return bench_contestant.stream || bench_contestant.datagram;
}
static bool has_timers(void) {
    return bench_contestant.timers;
}
static bool has_posts(void) {
    return bench_contestant.posts;
}
static bool has_loops(void) {
    return bench_contestant.new_loop;
}

const struct workload workloads[] = {
    {"lockstep", has_server, echo_lockstep}, {"echo", has_server, echo_throughput}, {"idle", has_server, echo_idle},
    {"timers", has_timers, timers},          {"posts", has_posts, posts},           {"loops", has_loops, loops},
    {NULL, NULL, NULL}};

bool worth(const char *workload, const char *variant) {
    static const struct {
        const char *variant, *workloads;
    } matter[] = {{"form=array", " nop read "}, {"form=", " nop "},         {"family=unix", " lockstep echo "},
                  {"direct=1", " read "},       {"deadline=1", " nop read lockstep echo "},
                  {"message=", " lockstep echo "}, {"connections=100", " lockstep echo "},
                  {"connections=1", " lockstep echo "}, {"spin=", " echo "}, {"syscalls=1", " lockstep "}};
    char padded[64];
    snprintf(padded, sizeof padded, " %s ", workload);
    if (strcmp(variant, "form=array") == 0)
        return true; /* every workload once as it is */
    for (size_t i = 0; i < sizeof matter / sizeof *matter; i++)
        if (strncmp(variant, matter[i].variant, strlen(matter[i].variant)) == 0 && strstr(matter[i].workloads, padded))
            return true;
    return false;
}
