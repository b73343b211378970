/* What every contestant is built with: one program per contestant, made of the files of harness/ and the contestant's own folder.
 *
 * A contestant says in its table what it can do; the harness does the rest, the same for all: arguments, cores, warm-up,
 * clock, load, verification, report. What a contestant implements is the part that a user of that library would write. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Arguments: name=value on the command line. ---- */

long bench_number(const char *name, long otherwise);
const char *bench_text(const char *name, const char *otherwise);

/* Print why and end. BENCH_MUST takes what answers a negative errno, BENCH_CHECK a condition about results. */
void bench_die(const char *what, const char *why) __attribute__((noreturn));
void bench_die_errno(const char *what) __attribute__((noreturn));
void bench_skip(const char *why) __attribute__((noreturn)); /* this machine cannot: exit status 77 */
long bench_must(long rc, const char *what); /* rc, if it is >= 0; -errno otherwise ends the program */
long bench_call(long rc, const char *what); /* the same for calls that answer -1 and errno */
#define BENCH_CHECK(condition)                                                                                         \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            bench_die(__FILE__, "wrong result: " #condition);                                                          \
    } while (0)

/* ---- Time, and how much to do. ---- */

static inline uint64_t bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

struct bench_budget {
    uint64_t taken, limit; /* operations */
    uint64_t look_at;      /* the clock is looked at when `taken` gets there … */
    uint64_t stride;       /* … and then every so many */
    uint64_t until;        /* nanoseconds */
};
extern struct bench_budget bench_budget;
bool bench_look(void);

/* True when `count` more operations are to be started: the time is not over and neither is the number given. */
static inline bool bench_more(uint64_t count) {
    if (bench_budget.taken >= bench_budget.look_at && !bench_look())
        return false;
    bench_budget.taken += count;
    return true;
}

/* An additional figure for the report. */
void bench_report(const char *name, double value);

/* ---- Workloads. ---- */

/* One that runs by itself: `run` starts operations while bench_more() says so and returns when all have ended. */
struct bench_run {
    const char *name;
    void (*open)(void);
    void (*run)(void);
    void (*close)(void);
    uint64_t stride; /* how often the clock may be looked at: about 0.1 to 10 ms of work; 0: 256 */
};

/* An echo server on `fd`: a listening stream socket (tcp, unix) or a bound datagram socket (udp), O_NONBLOCK. Options are set
 * on the listener by the harness and inherited: TCP_NODELAY for all. It keeps bench_echoed (bytes given back to the kernel)
 * and bench_connections (open now) up to date. A message is `message` bytes; buffers are bench_buffer_size(). */
struct bench_server {
    void (*start)(int fd, size_t message);
    void (*turn)(void); /* one turn of the loop; waits until something is ready */
    void (*run)(void);  /* until the last connection is closed */
    void (*stop)(void); /* frees all; may be NULL */
};
extern uint64_t bench_echoed;
extern unsigned bench_connections;
/* More than a message, so that one read shows that there is no more; the same for all. */
size_t bench_buffer_size(size_t message);
enum { BENCH_POOL = 256, BENCH_MAX_FD = 1 << 16, BENCH_EVENTS = 1024 };

/* Timers: all take turns on n of them; delays in milliseconds. `fire` is called when all of them are overdue. */
struct bench_timers {
    void (*open)(size_t n);
    void (*arm)(size_t n, const uint32_t *delays);
    void (*cancel)(size_t n); /* in the order of arming; until their ends are known */
    void (*fire)(size_t n);   /* until all n have been called back */
    void (*close)(void);
};

/* Messages from other threads, each of them handled by the loop exactly once. */
struct bench_posts {
    void (*open)(void);
    void (*attach)(unsigned thread); /* on each posting thread, first; may be NULL */
    void (*post)(unsigned thread);   /* any thread: the loop adds one to bench_posted */
    void (*drain)(uint64_t count);   /* the loop's thread: until bench_posted is `count` */
    void (*close)(void);
};
extern uint64_t bench_posted;
/* The queue that a program puts beside a wake-up (uv_async_t and the like): nodes from one block, a lock, taken as a whole. */
struct bench_message {
    struct bench_message *next;
};
struct bench_message *bench_queue_push(void); /* appends one; what was there before: NULL means that a wake-up is needed */
uint64_t bench_queue_take(void);              /* all of them; how many */

struct bench_contestant {
    const char *name;
    const char *version;
    const struct bench_run *runs; /* ends with a name of NULL */
    const struct bench_server *stream, *datagram;
    const struct bench_timers *timers;
    const struct bench_posts *posts;
    void *(*new_loop)(void); /* one more loop, turned once */
};
extern const struct bench_contestant bench_contestant;

/* ---- Files: made by the harness in dir=, and checked. ---- */

enum { BENCH_BLOCK = 4096, BENCH_SMALL = 1024 };
struct bench_file {
    int fd;          /* O_DIRECT with direct=1 */
    uint64_t blocks;
};
struct bench_file bench_open_blocks(void);
/* The next block to read: the same sequence for all. */
uint64_t bench_next_block(uint64_t blocks);
/* Each block begins and ends with its number. */
static inline void bench_check_block(const void *data, int64_t got, uint64_t block) {
    const uint64_t *words = (const uint64_t *)data;
    BENCH_CHECK(got == BENCH_BLOCK && words[0] == block && words[BENCH_BLOCK / 8 - 1] == ~block);
}
void *bench_memory(size_t size); /* aligned to a page, touched */

/* Trees of files, their paths relative to the current folder, which these change to. The size of the empty file i is i;
 * the small file i has BENCH_SMALL bytes and begins with i. */
unsigned bench_tree(const char *kind); /* "empty" or "small": how many */
const char *bench_path(unsigned index);

/* Files that grow, on the disk of dir=; checked at the end. */
int bench_log_open(unsigned index);
void bench_log_check(unsigned index, uint64_t size);

/* A file of megabytes= and a new one for its copy. What is between begin and end is the report's copy_ns; both may be NULL for
 * who wants names. Answers the size. */
uint64_t bench_copy_begin(int *from, int *to);
void bench_copy_end(void);
void bench_copy_check(void); /* compares the last copy */
#define BENCH_COPY_TO "copy.to"
const char *bench_copy_from(void);

/* A listener, and sockets that connect to it; both O_NONBLOCK. They linger for no time: their end is a reset, so that no
 * port stays in TIME_WAIT. */
/* connect: at most depth= connections are being connected, and at most as many are not accepted yet, or the backlog would
 * overflow. True when one more is to be started. */
struct bench_connects {
    unsigned depth, connecting, started, accepted;
};
extern struct bench_connects bench_connects;
static inline bool bench_connect_more(void) {
    struct bench_connects *c = &bench_connects;
    if (c->connecting >= c->depth || c->started - c->accepted >= c->depth || !bench_more(1))
        return false;
    c->connecting++;
    c->started++;
    return true;
}
static inline bool bench_connects_left(void) {
    return bench_connects.connecting > 0 || bench_connects.accepted < bench_connects.started;
}

struct sockaddr_in;
int bench_listener(struct sockaddr_in *address);
int bench_socket(void);

#ifdef __cplusplus
}
#endif
#endif
