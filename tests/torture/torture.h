/*
 * Fault injection. The library is linked so that every call it makes to the C library goes through shim.c, and only its own.
 * A scenario (scenarios.c) is a small program with an oracle. The runner (run.c) runs each in forked children: once to count
 * its calls, then once for every call and every errno that call can fail with.
 */
#ifndef TORTURE_H
#define TORTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a call fails with beside an errno. */
enum { SHORT_COUNT = -1 };
/* An errno, and all allocations from the k-th call on fail. */
#define LASTING 0x10000

/* How a call can fail. */
enum {
    FAILS = 1,       /* with any errno */
    ALLOCATES = 2,   /* with ENOMEM only */
    COUNTS = 4,      /* it may move less than it was asked to */
    NOT_EAGAIN = 8,  /* EAGAIN says "not ready": an untrue one would promise a wake-up that the kernel does not owe */
    AFTERWARDS = 16, /* done, and then reported to have failed: close(2) has closed also where it answers EINTR */
};

enum { MOST_CALLS = 1 << 16 };

/* Shared by the runner and one child. */
struct control {
    /* The plan: the call that fails, counted from 1, and how; 0: none. */
    unsigned k;
    int error;
    bool traces;
    /* What came of it. */
    unsigned calls;
    bool injected;
    uintptr_t site;
    char call[32];
    long blocks, mappings; /* alive at the end, of the library's */
    char text[256];        /* why it failed */
    struct trace {
        uintptr_t site;
        const char *call;
        unsigned how;
    } trace[MOST_CALLS];
};

extern struct control *control;

/* Whether a call of this sort can fail in this way. */
bool can_fail(unsigned how, int error);
/* The library's blocks of memory and mappings that are alive. */
long live_blocks(void), live_mappings(void);

struct scenario {
    const char *name;
    void (*run)(void);
};
extern const struct scenario scenarios[];

/* Ends the child: the oracle is not satisfied. */
__attribute__((noreturn, format(printf, 3, 4))) void broken(const char *file, int line, const char *format, ...);
#define MUST(condition) ((condition) ? (void)0 : broken(__FILE__, __LINE__, "%s", #condition))

#endif
