/*
 * The differential tester: the same random program on every backend must have the same outcomes (the header says what is
 * timing, and only that may differ).
 *
 *   generate.c    a seed becomes a program: objects, and steps on them
 *   operations.c  the table of operations: one row each
 *   objects.c     the table of descriptor kinds: one row each, with what the other side can do
 *   run.c         runs a program on one loop and writes down what came of it
 *   compare.c     runs it on all configurations, compares, shrinks what differs, prints it
 *   main.c        the command line, processes, blocks of programs that share loops
 *
 * What makes outcomes comparable: between two steps the loop is polled until it has *settled*, that is until no operation
 * is left that could go on. Whether one could is asked of the kernel with poll(2) and of a model of what was put in
 * and taken out, not of the clock; so an operation that is forgotten is seen, too: the program never settles. What would
 * race is not done: a step that would put two readers on one socket leaves the second out, on every configuration alike.
 */
#ifndef DIFFERENTIAL_H
#define DIFFERENTIAL_H

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "upcall.h"

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))

enum {
    MAX_OBJECTS = 4,
    MAX_STEPS = 14,
    MAX_BATCH = 5,
    MAX_LIVE = MAX_STEPS * MAX_BATCH,
    MAX_CONNECTIONS = 24,
    MAX_LENT = 64,
    MAX_RECORDS = 512,
    LEAST_MAX_EVENTS = 2, /* of a loop */
    FILE_SIZE = 5000,
};

/* ---- A program: plain data, the same for every configuration. ---- */

typedef enum deadline { NO_DEADLINE, FAR, SHORT } deadline;

/* Ways to make a good operation a bad one. */
typedef enum spoil {
    SOUND,
    BAD_FLAG,
    BAD_RESERVED,
    BAD_KIND,
    BAD_LENGTH,
    BAD_NULL,
    BAD_ADDRESS,
    BAD_LEND_MAX,
    BAD_OFFSET,
    SPOILS,
} spoil;

typedef struct operation {
    uint8_t row;
    uint8_t object;
    uint8_t second; /* of what moves bytes between two; MAX_OBJECTS: /dev/null */
    uint8_t deadline;
    uint8_t spoil;
    uint8_t lends;
    uint8_t lend_max;
    uint8_t reaped;
    uint32_t flags;
    uint32_t length;
    uint32_t variant;
    int64_t offset;
} operation;

typedef enum step_kind {
    SUBMIT,
    PUT,     /* the other side writes, or connects */
    TAKE,    /* the other side reads */
    HALF,    /* the other side shuts one direction down */
    HANG_UP, /* the other side closes */
    RESET,   /* the other side closes so that an error is left behind */
    CANCEL,
    CANCEL_FD,
    CANCEL_ALL,
    RETURN, /* lent buffers go back */
    STEP_KINDS,
} step_kind;

typedef struct step {
    uint8_t kind;
    uint8_t object;
    uint8_t count;
    uint8_t foreign; /* submitted by another thread */
    uint8_t hasty;   /* the next step comes before the loop is polled */
    uint32_t amount;
    uint32_t variant;
    operation ops[MAX_BATCH];
} step;

typedef struct plan {
    uint8_t kind;
    uint8_t nonblocking;
} plan;

typedef struct program {
    uint64_t seed;
    unsigned objects;
    unsigned steps;
    uint32_t buffer_size;
    uint8_t buffers;
    uint8_t holds;   /* lent buffers are kept until a RETURN */
    uint8_t moves;     /* mostly between the first two objects */
    uint8_t registers; /* memory: 1 all along, 2 until half-way */
    uint8_t by_free; /* ends with upcall_loop_free() instead of cancelling */
    plan object[MAX_OBJECTS];
    step step[MAX_STEPS];
} program;

void generate(program *p, uint64_t seed);

static inline uint64_t random_next(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* ---- What came of it. ---- */

typedef enum record_kind { R_SUBMIT, R_SKIPPED, R_EVENTS, R_FINAL, R_OUTSIDE, R_REQUEST, R_REST } record_kind;

typedef struct record {
    uint16_t kind;
    uint16_t step;
    int32_t which; /* the operation's or the object's number */
    int64_t result;
    uint64_t transferred;
    uint64_t flags;
    uint64_t count;
    uint64_t hash;
} record;

typedef struct transcript {
    unsigned count;
    char broken[512]; /* a promise that this run alone shows as broken; "" when none */
    char text[MAX_STEPS][160]; /* upcall_last_error() of refused submits */
    record record[MAX_RECORDS];
} transcript;

/* ---- A run. ---- */

/* Which of an object's sides an operation occupies while it is in flight. */
enum { NOTHING = 0, IN = 1, OUT = 2, STATE = 4 };

struct run;

typedef struct thing {
    const struct object_row *row;
    plan plan;
    int fd;      /* the descriptor operations use; NOWHERE once it was closed */
    int peer;    /* the other side; -1 once it was closed */
    int helper;  /* a listener to connect to */
    unsigned connections;
    int connection[MAX_CONNECTIONS];
    struct sockaddr_storage address;
    socklen_t address_length;
    uint64_t put;      /* bytes the other side put in so far */
    uint64_t got;      /* bytes that operations took */
    uint64_t sent;     /* bytes that operations put in */
    uint64_t taken;    /* bytes the other side took */
    uint32_t waiting;  /* messages or connections not yet taken by operations */
    bool ended;        /* nothing will come any more: end of stream or an error */
    bool reset;
    bool closed;       /* by a close of the loop */
    uint32_t *word;    /* a futex */
    int signo;
    pid_t child;
    bool spliced;      /* a pipe that can be asked no more not to wait */
    bool inexact;      /* bytes were dropped on purpose: conservation says nothing */
} thing;

typedef struct live {
    struct run *run;
    const operation *op;
    const struct operation_row *row;
    upcall_id id;
    upcall_op submitted;
    int number; /* step * MAX_BATCH + place in the submit */
    int thing, second; /* -1: none */
    unsigned claims, second_claims;
    bool accepted, ended, asked, changed;
    bool due;       /* what it waits for has happened */
    bool unsure;    /* who of several meets an error first is timing */
    uint64_t order; /* when it ended */
    uint64_t events, lent, bytes, hash;
    upcall_event final;
    unsigned char *buffer;
    size_t size;
    uint64_t final_hash;
    struct msghdr message;
    struct iovec part[4];
    unsigned char control[64];
    struct sockaddr_storage name;
    socklen_t name_length;
    struct statx statx;
    struct addrinfo *found;
    siginfo_t info;
    void *copied; /* what the submit copies besides `addr`: overwritten after it */
    size_t copied_size;
} live;

typedef struct lent {
    void *buffer;
    live *owner;
} lent;

typedef struct run {
    const program *program;
    upcall_loop *loop;
    upcall_buffers *pool;
    transcript *log;
    int step;
    unsigned lents;
    uint64_t events, ticks; /* of them those of repeating sleeps, which say nothing of what else could go on */
    bool unsettled; /* a submit was not followed by a poll */
    bool cut_short; /* the last turn may have met the loop's max_events */
    bool threads;   /* operations run or wait on threads that poll(2) knows nothing of */
    bool attributes; /* extended attributes may have been set */
    bool registered;
    bool torn; /* a file's content is anyone's guess, and with it what is read from now on */
    thing thing[MAX_OBJECTS];
    live live[MAX_LIVE];
    lent lent[MAX_LENT];
} run;

/* Runs a program on a loop. With p->by_free the loop is freed and *loop NULL. */
void run_program(const program *p, upcall_loop **loop, transcript *log);
__attribute__((format(printf, 2, 3))) void broken(run *r, const char *format, ...);
void note(run *r, record_kind kind, int which, int64_t result, uint64_t count, uint64_t hash);
unsigned char *get_memory(run *r, size_t size, size_t alignment);
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count);
extern char scratch_directory[64]; /* of this process, in memory */
extern int scratch_fd;
extern int sink_fd; /* /dev/null */
extern int disk_fd; /* the same on a disk */
void prepare_process(void);
void forget_process(void);
void prepare_objects(void);
unsigned open_descriptors(void);
extern void *no_access;
extern unsigned char *advised; /* pages of no other use */
enum { ADVISED = 8 << 12 };
void on_user_signal(int number); /* the action that the program has for the signals of SIGNAL */
extern const int user_signals[MAX_OBJECTS];
uint64_t now_ns(void);
extern volatile bool acts_outside; /* the tester itself writes: it may raise SIGPIPE */
extern uint64_t patience_ns; /* until a program that does not settle is given up */
#define HASH_START UINT64_C(0xcbf29ce484222325)
#define NOWHERE 1021 /* a descriptor number that is never open */

/* ---- The tables. ---- */

typedef enum waits { ENDS, FOR_IN, FOR_OUT, FOR_EVENTS, FOR_CLOCK, FOR_BOTH, FOR_WAKE, FOR_CHILD } waits;

enum {
    CURSOR = 1,      /* several at a time take turns in order of submission */
    FULLY = 2,       /* may have UPCALL_FULL */
    REPEATS = 4,     /* may have UPCALL_MULTISHOT */
    LENDS = 8,       /* may have buffers */
    LENDS_ALWAYS = 16, /* a multishot needs buffers */
    GETS = 32,       /* moves bytes towards memory */
    PUTS = 64,       /* moves bytes out of memory */
    ZERO_COPIES = 2048, /* may have UPCALL_ZEROCOPY */
    MAKES_FD = 128,
    CLOSES = 256,
    PATHS = 512, /* works on names, which all share */
    DRAINS = 4096, /* moves bytes past memory */
    TWO = 8192,  /* from one object to another */
    LISTS = 16384, /* records of a directory */
    COUNTLESS = 1024, /* how many events a multishot has is timing */
};

typedef struct operation_row {
    const char *name;
    unsigned claims;
    waits waits;
    unsigned traits;
    uint64_t suits; /* kinds of objects it is meant for, by bit */
    upcall_op (*make)(run *r, live *l, thing *t);
    uint64_t (*leaves)(run *r, live *l); /* a hash of what else it wrote */
} operation_row;

extern const operation_row operation_rows[];
extern const unsigned operation_row_count;

typedef struct object_row {
    const char *name;
    unsigned weight;
    unsigned traits;
    int (*make)(run *r, thing *t);
    int64_t (*put)(run *r, thing *t, uint32_t amount, uint32_t variant);
} object_row;

enum {
    STREAM = 1,
    MESSAGES = 2,
    SOCKET = 4,
    LISTENS = 8,
    STORES = 16,      /* a file: everything on it excludes everything else */
    ON_A_THREAD = 32, /* when blocking, epoll reads, writes and accepts on a thread of its own */
    SLOWLY = 64,      /* what was put in arrives a little later */
    INET = 128,
    COUNTS = 256,     /* an eventfd */
    PAIR = 512,       /* has another side that can be closed */
    UNCONNECTED = 1024,
    WAKES = 2048,     /* no descriptor: what the other side does wakes operations */
};

typedef enum object_kind {
    PIPE_IN, PIPE_OUT, FIFO_IN, UNIX_STREAM, UNIX_DGRAM, UNIX_SEQPACKET, TCP, UDP, UNIX_LISTENER, TCP_LISTENER,
    REGULAR, DIRECT, EVENTFD, PTY, DIRECTORY, CLOSED, UNIX_FRESH, TCP_FRESH, UDP_FRESH, DEV_NULL, DEV_ZERO, FUTEX,
    SIGNAL, CHILD, OBJECT_KINDS,
} object_kind;

extern const object_row object_rows[OBJECT_KINDS];
void make_thing(run *r, thing *t, plan made);
void end_thing(run *r, thing *t);
void take(run *r, thing *t, uint32_t amount);
void half_close(run *r, thing *t, uint32_t variant);
void hang_up(run *r, thing *t, bool reset);

/* ---- Comparing. ---- */

typedef struct configuration {
    const char *name, *backend;
    char mask[512];
    upcall_loop *loop;
} configuration;

enum { CONFIGURATIONS = 4 };

typedef struct setting {
    configuration configuration[CONFIGURATIONS];
    uint32_t entries, max_events, workers;
    unsigned enabled; /* bit per configuration */
} setting;

void choose_setting(setting *s, uint64_t block, unsigned enabled);
bool make_loops(setting *s);
void free_loops(setting *s);
/* Runs the program everywhere; true when all agree and nothing is broken. */
bool agrees(const program *p, setting *s, unsigned *first_different, char *what, size_t room);
/* How the program is run until it fails, made smaller, printed. */
void report(const program *p, uint64_t block, unsigned enabled, const char *what);
void list_program(FILE *out, const program *p);
void print_transcript(FILE *out, const transcript *log, const transcript *reference);
extern transcript transcripts[CONFIGURATIONS];
extern uint64_t operations_run;

#endif
