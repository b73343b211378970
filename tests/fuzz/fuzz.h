/* The parts of the boundary fuzzer: what they share. See boundary.c. */
#ifndef FUZZ_H
#define FUZZ_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <upcall.h>

/* Every public function, counted when called. The list is made from tests/symbols.txt. */
enum function {
#define FUNCTION(name) F_##name,
#include "functions.inc"
#undef FUNCTION
    FUNCTIONS
};
extern unsigned long calls[FUNCTIONS];
#define CALL(name, ...) (calls[F_##name]++, TRACE("%s(%s)", #name, #__VA_ARGS__), name(__VA_ARGS__))

/* --trace tells what an input does. */
extern bool tracing;
void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define TRACE(...) (tracing ? tell(__VA_ARGS__) : (void)0)

/* A promise is broken: the text, and the process ends as a finding. */
_Noreturn void broken(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));
#define MUST(condition, ...) ((condition) ? (void)0 : broken(__FILE__, __LINE__, __VA_ARGS__))

/* SIGPIPE or SIGXFSZ was raised. */
extern volatile sig_atomic_t raised;

/* ---- The input: bytes, then zeros. */
struct input {
    const uint8_t *at, *end;
};
extern struct input input;
bool is_over(void);
uint64_t take(size_t bytes);
static inline uint8_t take8(void) { return (uint8_t)take(1); }
static inline bool one_in(unsigned n) { return take8() % n == n - 1; }

/* ---- Memory that operations are lent or that they copy. */
#define PAGES 64
#define PAGE_ROOM 4032 /* bytes at a page's address; behind them nothing is mapped, so that any length is safe */
int page_take(void);   /* -1: all are in use */
void page_return(int page);
uint8_t *page_at(int page);
void pages_check(void); /* what nobody borrows was not written to */

/* One accepted or refused operation. */
struct entry {
    upcall_id id;
    int loop;
    upcall_op op;
    bool used, accepted, final, ordered, must_be_refused;
    unsigned events;
    int pages[2];
    void *lent[6]; /* the program's own structures, freed at the final event */
    void *copied[8]; /* metadata, overwritten and freed when submit returns */
    unsigned lents, copies;
    int32_t *fds;              /* pipe: where the two go */
    struct addrinfo **addresses; /* getaddrinfo */
    int64_t expected; /* work */
};

/* ---- operations.c: an operation from the input. */
void make_operation(struct entry *entry, upcall_loop *loop, upcall_buffers *pool);
#define KINDS 128
extern unsigned long kinds_accepted[KINDS], kinds_done[KINDS];

/* ---- objects.c: descriptors and names that cannot harm the machine. */
void objects_begin(void); /* once per process */
void objects_end_run(void);
enum object {
    PIPE_OUT = 1, PIPE_IN, QUIET_PIPE_OUT, QUIET_PIPE_IN, STREAM_A, STREAM_B, QUIET_STREAM_A, QUIET_STREAM_B, DATAGRAM_A,
    DATAGRAM_B, PACKET_A, PACKET_B, FILE_RW, FILE_IN, FILE_APPEND, FILE_DIRECT, FILE_PATH, DIRECTORY, EVENT, TIMER, SET,
    LISTENER, QUIET_LISTENER, UNIX_LISTENER, TCP_A, TCP_B, UDP_A, UDP_B, SOCKET, QUIET_SOCKET, UNIX_SOCKET, PIDFD, NULL_FILE,
    FIFO, TERMINAL, MASTER,
    OBJECTS
};
int object(void);         /* a descriptor from the input: open, closed, of the wrong kind, or none */
int object_like(const char *kinds); /* mostly one of these, each a char */
int object_file(void);
void object_peer(void);   /* the other side does something */
int adopt(int fd);        /* a descriptor that the library made; closed at the end of the run */
void forget_closed(int fd); /* an operation closed it */
const char *object_path(void);
const void *object_address(socklen_t *length); /* static storage */
int object_child(void);
int object_pidfd(void);
void *object_memory(size_t *room); /* pages of their own, for madvise */

#endif
