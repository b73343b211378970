/*
 * Kinds of waits, and the race of an operation's completion against a request to end it: by cancel or by its deadline.
 *
 * The invariant, for every kind: an operation ends exactly once. Either it completed, and has had its effect once; or it
 * ended in -ECANCELED or -ETIMEDOUT, and has had none: no byte is taken, no connection accepted, no wake used up, no file
 * changed, no memory written. What it did not take is still there.
 *
 * Pairs of an operation and what completes it are raced in batches. Another thread completes while the loop's thread cancels,
 * or the other way round, pair by pair, both starting from a meeting point with delays that are swept; or the loop's thread
 * does both, in either order and with turns of the loop between them. What completes by itself (timers, work on the
 * pool) is only cancelled.
 */
#ifndef ENDING_H
#define ENDING_H

#include "race.h"

#include <netdb.h>
#include <sys/eventfd.h>

enum { BATCH = 64 };

struct kind;

struct pair {
    const struct kind *kind;
    unsigned number;
    int fd, peer, far; /* the operation's descriptor; the other sides */
    upcall_id id;
    bool ended;
    unsigned events;
    int64_t result;
    uint64_t transferred;
    uint32_t flags;
    void *memory;
    struct oracle_stream stream;
    uint32_t word; /* a futex */
    long woken;    /* what FUTEX_WAKE answered */
    char name[32];
    struct sockaddr_un address;
    socklen_t length;
    atomic_int begun, finished; /* of work */
    uint64_t spins;
    off_t size;
    struct addrinfo *found;
    siginfo_t info;
    int64_t told; /* bytes in events with UPCALL_MORE */
};

struct kind {
    const char *name;
    unsigned batch;                       /* at most BATCH */
    unsigned share;                       /* see race.share; 0: 1 */
    void (*set_up)(struct pair *pair);
    upcall_op (*make)(struct pair *pair);
    void (*happen)(struct pair *pair);  /* NULL: by itself */
    void (*check)(struct pair *pair);     /* after the final event; nothing else is going on */
    void (*tear_down)(struct pair *pair);
    bool (*took)(struct pair *pair);      /* it completed; NULL: its result is not -ECANCELED or -ETIMEDOUT */
    void (*prepare)(void);                /* before each batch */
    bool unstoppable;                     /* once a ring has it */
    bool again;                           /* it may have to happen more than once */
};

static struct oracle *oracle;
static upcall_loop *loop;
static upcall_buffers *pool;
static struct pair pairs[BATCH];
static unsigned pair_count;

HELPER bool was_ended(const struct pair *pair) {
    return pair->result == -ECANCELED || (pair->flags & UPCALL_EXPIRED);
}

/* What the interrupted operation told: nothing. */
HELPER void check_untouched(struct pair *pair) {
    CHECK_EQ(pair->transferred, 0);
    if (pair->memory)
        oracle_check_untouched(pair->memory, 0);
}

HELPER void return_memory(struct pair *pair) {
    oracle_give_back(oracle, pair->memory);
    pair->memory = NULL;
}

/* ---- Streams of bytes. ---- */

HELPER void set_up_unix(struct pair *p) {
    int fds[2];
    unix_pair(fds);
    p->fd = fds[0], p->peer = fds[1];
}
HELPER void set_up_pipe(struct pair *p) {
    int fds[2];
    pipe_pair(fds);
    p->fd = fds[0], p->peer = fds[1];
}
HELPER void set_up_tcp(struct pair *p) {
    int fds[2];
    tcp_pair(fds);
    p->fd = fds[0], p->peer = fds[1];
}
HELPER size_t portion(const struct pair *p) {
    return 1 + p->number % 7;
}
HELPER upcall_op make_recv(struct pair *p) {
    p->memory = oracle_lend(oracle, 32);
    return upcall_op_recv(p->fd, p->memory, 32, 0);
}
HELPER upcall_op make_read(struct pair *p) {
    p->memory = oracle_lend(oracle, 32);
    return upcall_op_read(p->fd, p->memory, 32);
}
HELPER void put_bytes(struct pair *p) {
    uint8_t bytes[16];
    oracle_make(&p->stream, bytes, portion(p));
    CHECK_EQ(write(p->peer, bytes, portion(p)), portion(p));
}
/* What is left in the stream comes out of `fd`. */
HELPER void take_rest(struct pair *p, int fd) {
    uint8_t bytes[256];
    while (p->stream.got < p->stream.put) {
        if (!is_readable(fd, 10000))
            fail(HERE, "%s: %" PRIu64 " bytes are lost", p->kind->name, p->stream.put - p->stream.got);
        ssize_t n = read(fd, bytes, sizeof bytes);
        CHECK(n > 0);
        oracle_take(&p->stream, bytes, (size_t)n);
    }
}
HELPER void check_stream(struct pair *p) {
    if (was_ended(p)) {
        check_untouched(p);
    } else {
        CHECK(p->result > 0);
        oracle_check_untouched(p->memory, (size_t)p->result);
        oracle_take(&p->stream, p->memory, (size_t)p->result);
    }
    take_rest(p, p->fd);
    return_memory(p);
}
HELPER void close_both(struct pair *p) {
    close(p->fd);
    close(p->peer);
}

/* In full: what arrived before the end is told, and the rest is still there. */
HELPER upcall_op make_full(struct pair *p) {
    upcall_op op = make_recv(p);
    op.len = 16;
    op.flags = UPCALL_FULL;
    return op;
}
HELPER void put_in_pieces(struct pair *p) {
    uint8_t bytes[16];
    oracle_make(&p->stream, bytes, sizeof bytes);
    for (size_t done = 0, n; done < sizeof bytes; done += n) {
        n = 1 + (p->number + done) % 7;
        n = n < sizeof bytes - done ? n : sizeof bytes - done;
        CHECK_EQ(write(p->peer, bytes + done, n), n);
    }
}
HELPER void check_full(struct pair *p) {
    CHECK(was_ended(p) || p->result == 16);
    CHECK(p->transferred <= 16);
    oracle_check_untouched(p->memory, p->transferred);
    oracle_take(&p->stream, p->memory, p->transferred);
    take_rest(p, p->fd);
    return_memory(p);
}

/* Many events: what was told and what is left is everything, in order. */
HELPER upcall_op make_multishot(struct pair *p) {
    upcall_op op = upcall_op_recv(p->fd, NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    return op;
}
HELPER void put_in_two(struct pair *p) {
    put_bytes(p);
    put_bytes(p);
}
HELPER void check_multishot(struct pair *p) {
    CHECK(was_ended(p));
    take_rest(p, p->fd);
}
HELPER bool told_all(struct pair *p) {
    return p->told == 2 * (int64_t)portion(p);
}

/* Without a ring's help it waits on a thread: a terminal is read by none. */
HELPER upcall_op make_splice(struct pair *p) {
    return upcall_op_splice(p->fd, -1, p->far, -1, 32, 0);
}
HELPER void set_up_splice(struct pair *p) {
    int out[2];
    set_up_pipe(p);
    pipe_pair(out);
    p->far = out[1];
    p->length = (socklen_t)out[0];
}
HELPER void check_splice(struct pair *p) {
    uint8_t bytes[32];
    if (was_ended(p)) {
        CHECK_EQ(p->transferred, 0);
    } else {
        CHECK(p->result > 0);
        CHECK_EQ(p->result, p->transferred);
        CHECK_EQ(read((int)p->length, bytes, sizeof bytes), p->result);
        oracle_take(&p->stream, bytes, (size_t)p->result);
    }
    take_rest(p, p->fd);
}
HELPER void close_splice(struct pair *p) {
    close_both(p);
    close(p->far);
    close((int)p->length);
}

/* ---- A writer that waits for room: an eventfd that is full. ---- */

HELPER void set_up_counter(struct pair *p) {
    static const uint64_t most = UINT64_MAX - 1;
    p->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(p->fd >= 0);
    CHECK_EQ(write(p->fd, &most, sizeof most), sizeof most);
}
HELPER upcall_op make_count(struct pair *p) {
    uint64_t one = 3 + p->number;
    p->memory = oracle_lend(oracle, sizeof one);
    memcpy(p->memory, &one, sizeof one);
    return upcall_op_write(p->fd, p->memory, sizeof one);
}
HELPER void empty_counter(struct pair *p) {
    uint64_t value;
    CHECK_EQ(read(p->fd, &value, sizeof value), sizeof value);
    CHECK_EQ(value, UINT64_MAX - 1);
}
HELPER void check_counter(struct pair *p) {
    uint64_t value = 0;
    CHECK(was_ended(p) || p->result == sizeof value);
    ssize_t n = read(p->fd, &value, sizeof value);
    CHECK(n == sizeof value || errno == EAGAIN);
    CHECK_EQ(value, was_ended(p) ? 0 : 3 + p->number);
    value = UINT64_MAX - 1;
    CHECK_EQ(write(p->fd, &value, sizeof value), sizeof value);
    return_memory(p);
}
HELPER void close_one(struct pair *p) {
    close(p->fd);
}

/* ---- Readiness alone. ---- */

HELPER void set_up_event(struct pair *p) {
    p->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(p->fd >= 0);
}
HELPER upcall_op make_poll(struct pair *p) {
    return upcall_op_poll(p->fd, POLLIN);
}
HELPER void set_event(struct pair *p) {
    static const uint64_t one = 1;
    CHECK_EQ(write(p->fd, &one, sizeof one), sizeof one);
}
HELPER void check_poll(struct pair *p) {
    uint64_t value;
    CHECK(was_ended(p) || p->result == POLLIN);
    CHECK_EQ(read(p->fd, &value, sizeof value), sizeof value);
    CHECK_EQ(value, 1);
}

/* ---- Connections. ---- */

HELPER void set_up_listener_of(struct pair *p, int type) {
    p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | type, 0);
    CHECK(p->fd >= 0);
    p->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    CHECK(bind(p->fd, (struct sockaddr *)&p->address, sizeof(sa_family_t)) == 0); /* the kernel finds a name */
    p->length = sizeof p->address;
    CHECK(getsockname(p->fd, (struct sockaddr *)&p->address, &p->length) == 0);
    CHECK(listen(p->fd, 4) == 0);
}
HELPER void set_up_listener(struct pair *p) {
    set_up_listener_of(p, SOCK_NONBLOCK);
}
HELPER void set_up_blocking_listener(struct pair *p) {
    set_up_listener_of(p, 0);
}
HELPER upcall_op make_accept(struct pair *p) {
    return upcall_op_accept(p->fd, NULL, NULL, 0);
}
HELPER void connect_to(struct pair *p) {
    p->peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(p->peer >= 0);
    CHECK(connect(p->peer, (struct sockaddr *)&p->address, p->length) == 0);
}
HELPER void check_accept(struct pair *p) {
    if (was_ended(p)) {
        CHECK(is_readable(p->fd, 10000)); /* the connection is still there */
        int fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC);
        CHECK(fd >= 0);
        close(fd);
    } else {
        CHECK_EQ(close((int)p->result), 0);
    }
    CHECK(!is_readable(p->fd, 0)); /* and there is no other */
    close(p->peer);
}

/* ---- An open that waits: a worker of the kernel, or a thread of its own. ---- */

HELPER void set_up_fifo(struct pair *p) {
    snprintf(p->name, sizeof p->name, "fifo-%u", p->number); /* in the race's own directory */
    CHECK(mkfifo(p->name, 0600) == 0);
}
HELPER upcall_op make_open(struct pair *p) {
    return upcall_op_open(AT_FDCWD, p->name, O_RDONLY, 0);
}
HELPER void open_writer(struct pair *p) {
    int fd = open(p->name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    CHECK(fd >= 0);
    close(fd);
}
HELPER void check_open(struct pair *p) {
    if (!was_ended(p))
        CHECK_EQ(close((int)p->result), 0);
}
HELPER void remove_fifo(struct pair *p) {
    CHECK(unlink(p->name) == 0);
}

/* ---- Work on the pool, queued or running; what a worker of the kernel does, or the pool. ---- */

HELPER int64_t work(void *arg) {
    struct pair *p = arg;
    atomic_fetch_add(&p->begun, 1);
    spin(p->spins);
    atomic_fetch_add(&p->finished, 1);
    return 7 + (int64_t)p->number;
}
HELPER upcall_op make_work(struct pair *p) {
    p->begun = p->finished = 0;
    p->spins = dice(200);
    return upcall_op_work(work, p);
}
HELPER void check_work(struct pair *p) {
    CHECK(was_ended(p) || p->result == 7 + (int64_t)p->number);
    CHECK_EQ(p->begun, !was_ended(p)); /* it ran, or it never will */
    CHECK_EQ(p->finished, !was_ended(p));
}
HELPER upcall_op make_long_work(struct pair *p) {
    p->begun = p->finished = 0;
    p->spins = 200 + dice(4000);
    return upcall_op_work(work, p);
}

HELPER void set_up_file(struct pair *p) {
    p->fd = memfd_create("race", MFD_CLOEXEC);
    CHECK(p->fd >= 0);
}
HELPER upcall_op make_truncate(struct pair *p) {
    return upcall_op_ftruncate(p->fd, p->size + 1);
}
HELPER void check_truncate(struct pair *p) {
    struct stat status;
    CHECK(was_ended(p) || p->result == 0);
    CHECK(fstat(p->fd, &status) == 0);
    CHECK_EQ(status.st_size, was_ended(p) ? p->size : p->size + 1);
    p->size = status.st_size < 1 << 20 ? status.st_size : 0;
    if (p->size == 0)
        CHECK(ftruncate(p->fd, 0) == 0);
}

enum { DIRECT_SIZE = 4096, DIRECT_BLOCKS = BATCH };
HELPER int direct_file = -1;
HELPER void set_up_direct(struct pair *p) {
    p->fd = direct_file;
    if (direct_file >= 0)
        return;
    p->fd = direct_file = temp_file(DIRECT_SIZE * DIRECT_BLOCKS);
    CHECK(fsync(direct_file) == 0);
    void *probe = oracle_lend(oracle, DIRECT_SIZE);
    if (fcntl(direct_file, F_SETFL, O_DIRECT) != 0 || pread(direct_file, probe, DIRECT_SIZE, 0) != DIRECT_SIZE)
        SKIP("the file system has no O_DIRECT");
    oracle_give_back(oracle, probe);
}
HELPER upcall_op make_direct(struct pair *p) {
    p->memory = oracle_lend(oracle, DIRECT_SIZE);
    return upcall_op_pread(p->fd, p->memory, DIRECT_SIZE, (int64_t)p->number * DIRECT_SIZE);
}
HELPER void check_direct(struct pair *p) {
    CHECK(was_ended(p) || p->result == DIRECT_SIZE);
    if (was_ended(p))
        check_untouched(p);
    else
        CHECK(has_pattern(p->memory, DIRECT_SIZE, p->number * DIRECT_SIZE));
    return_memory(p);
}
HELPER void close_direct(struct pair *p) {
    if (p->number == 0)
        close(p->fd);
}

/* A lookup that runs is given up: nobody waits for it, and its late result is nobody's. */
HELPER upcall_op make_lookup(struct pair *p) {
    static const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    p->found = NULL;
    return upcall_op_getaddrinfo("127.0.0.1", "80", &hints, &p->found);
}
HELPER void check_lookup(struct pair *p) {
    CHECK(was_ended(p) || p->result == 0);
    CHECK_EQ(p->found != NULL, !was_ended(p));
    if (p->found)
        freeaddrinfo(p->found);
}

/* ---- Time. ---- */

HELPER struct steering sleeps = {.most = 1 << 15};
HELPER upcall_op make_sleep(struct pair *p) {
    (void)p;
    return upcall_op_sleep(1 + jitter(&sleeps, 0));
}
HELPER void check_sleep(struct pair *p) {
    CHECK(was_ended(p) || p->result == 0);
}

/* ---- Without copying: the result, and, when the other side has taken the data, the release. ---- */

HELPER void set_up_udp(struct pair *p) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    p->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    p->peer = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK(p->fd >= 0 && p->peer >= 0);
    CHECK(bind(p->peer, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(getsockname(p->peer, (struct sockaddr *)&address, &length) == 0);
    CHECK(connect(p->fd, (struct sockaddr *)&address, sizeof address) == 0);
}
HELPER upcall_op make_zerocopy(struct pair *p) {
    p->memory = oracle_lend(oracle, 16);
    oracle_make(&p->stream, p->memory, 16);
    upcall_op op = upcall_op_send(p->fd, p->memory, 16, 0);
    op.flags = UPCALL_ZEROCOPY;
    return op;
}
HELPER void take_datagram(struct pair *p) {
    uint8_t bytes[32];
    ssize_t n = recv(p->peer, bytes, sizeof bytes, 0);
    CHECK(n == 16 || (n < 0 && errno == EAGAIN));
    if (n == 16)
        oracle_take(&p->stream, bytes, 16);
}
HELPER void check_zerocopy(struct pair *p) {
    CHECK(was_ended(p) || p->result == 16);
    CHECK_EQ(p->transferred, was_ended(p) ? 0 : 16);
    p->stream.put -= 16 - p->transferred;
    take_rest(p, p->peer);
    return_memory(p);
}

/* ---- A futex: who was woken completes, and nobody else does. ---- */

HELPER upcall_op make_futex(struct pair *p) {
    p->word = 5;
    p->woken = 0;
    return upcall_op_futex_wait(&p->word, 5, UINT32_MAX, UPCALL_FUTEX_PRIVATE);
}
HELPER void wake_futex(struct pair *p) {
    p->woken = syscall(SYS_futex, &p->word, 1 | 128 /* FUTEX_WAKE, private */, 1, NULL, NULL, 0);
    CHECK(p->woken >= 0);
}
HELPER void check_futex(struct pair *p) {
    CHECK(was_ended(p) || p->result == 0);
    CHECK_EQ(p->woken, !was_ended(p));
}

/* ---- A child that exits: all pairs wait for the same one. ---- */

HELPER struct {
    pid_t child;
    int gate;
    unsigned lets_go;
} family;
HELPER void make_child(void) {
    int fds[2];
    siginfo_t info;
    if (family.child > 0)
        CHECK(waitid(P_PID, (id_t)family.child, &info, WEXITED) == 0);
    pipe_pair(fds);
    family.child = fork();
    CHECK(family.child >= 0);
    if (family.child == 0) {
        char byte;
        close(fds[1]);
        _exit(read(fds[0], &byte, 1) == 0 ? 7 : 1);
    }
    close(fds[0]);
    family.gate = fds[1];
    family.lets_go = (unsigned)dice(pair_count);
}
HELPER upcall_op make_waitid(struct pair *p) {
    memset(&p->info, 0xee, sizeof p->info);
    return upcall_op_waitid(P_PID, (uint32_t)family.child, &p->info, WEXITED | WNOWAIT);
}
HELPER void release_child(struct pair *p) {
    if (p->number == family.lets_go)
        close(family.gate);
}
HELPER void check_waitid(struct pair *p) {
    if (was_ended(p)) {
        CHECK(oracle_all((unsigned char *)&p->info, sizeof p->info, 0xee));
    } else {
        CHECK_EQ(p->result, 0);
        CHECK_EQ(p->info.si_pid, family.child);
        CHECK_EQ(p->info.si_status, 7);
    }
}
HELPER void end_family(struct pair *p) {
    siginfo_t info;
    if (p->number == 0)
        CHECK(waitid(P_PID, (id_t)family.child, &info, WEXITED) == 0);
}

/* ---- Signals: each is told by the operation or meets the program's own handler, never neither. ---- */

HELPER atomic_uint handled[65];
HELPER void count_handled(int signo) {
    atomic_fetch_add(&handled[signo], 1);
}
HELPER int signal_of(const struct pair *p) {
    return SIGRTMIN + 1 + (int)p->number;
}
HELPER void set_up_signal(struct pair *p) {
    struct sigaction action = {.sa_handler = count_handled};
    CHECK(sigaction(signal_of(p), &action, NULL) == 0);
}
HELPER upcall_op make_signal(struct pair *p) {
    handled[signal_of(p)] = 0;
    return upcall_op_signal(signal_of(p));
}
HELPER void raise_signal(struct pair *p) {
    CHECK_EQ(pthread_kill(pthread_self(), signal_of(p)), 0);
}
HELPER void check_signal(struct pair *p) {
    CHECK(was_ended(p) || p->result == signal_of(p));
    CHECK_EQ(handled[signal_of(p)], was_ended(p));
}

/* ---- The table. ---- */

static const struct kind kinds[] = {
    {.name = "unix_recv", .batch = 64, .set_up = set_up_unix, .make = make_recv, .happen = put_bytes,
     .check = check_stream, .tear_down = close_both},
    {.name = "pipe_read", .batch = 64, .set_up = set_up_pipe, .make = make_read, .happen = put_bytes,
     .check = check_stream, .tear_down = close_both},
    {.name = "tcp_recv", .batch = 64, .set_up = set_up_tcp, .make = make_recv, .happen = put_bytes,
     .check = check_stream, .tear_down = close_both},
    {.name = "full_recv", .batch = 64, .set_up = set_up_unix, .make = make_full, .happen = put_in_pieces,
     .check = check_full, .tear_down = close_both},
    {.name = "multishot_recv", .batch = 32, .set_up = set_up_unix, .make = make_multishot, .happen = put_in_two,
     .check = check_multishot, .tear_down = close_both, .took = told_all},
    {.name = "splice", .batch = 32, .set_up = set_up_splice, .make = make_splice, .happen = put_bytes,
     .check = check_splice, .tear_down = close_splice},
    {.name = "eventfd_write", .batch = 64, .set_up = set_up_counter, .make = make_count, .happen = empty_counter,
     .check = check_counter, .tear_down = close_one},
    {.name = "poll", .batch = 64, .set_up = set_up_event, .make = make_poll, .happen = set_event,
     .check = check_poll, .tear_down = close_one},
    {.name = "accept", .batch = 64, .set_up = set_up_listener, .make = make_accept, .happen = connect_to,
     .check = check_accept, .tear_down = close_one},
    {.name = "accept_on_a_thread", .batch = 8, .share = 10, .set_up = set_up_blocking_listener, .make = make_accept,
     .happen = connect_to, .check = check_accept, .tear_down = close_one},
    {.name = "fifo_open", .batch = 8, .share = 10, .set_up = set_up_fifo, .make = make_open, .happen = open_writer,
     .check = check_open, .tear_down = remove_fifo},
    {.name = "truncate", .batch = 64, .set_up = set_up_file, .make = make_truncate, .check = check_truncate,
     .tear_down = close_one},
    {.name = "direct_read", .batch = 64, .share = 10, .set_up = set_up_direct, .make = make_direct, .unstoppable = true,
     .check = check_direct, .tear_down = close_direct},
    {.name = "work_queued", .batch = 64, .make = make_work, .check = check_work},
    {.name = "work_running", .batch = 3, .make = make_long_work, .check = check_work},
    {.name = "lookup", .batch = 16, .make = make_lookup, .check = check_lookup},
    {.name = "sleep", .batch = 64, .make = make_sleep, .check = check_sleep},
    {.name = "zerocopy", .batch = 64, .set_up = set_up_udp, .make = make_zerocopy, .happen = take_datagram, .again = true,
     .check = check_zerocopy, .tear_down = close_both},
    {.name = "futex", .batch = 16, .share = 10, .make = make_futex, .happen = wake_futex, .check = check_futex},
    {.name = "waitid", .batch = 64, .share = 10, .make = make_waitid, .happen = release_child, .check = check_waitid,
     .tear_down = end_family, .prepare = make_child},
    {.name = "signal", .batch = 16, .share = 2, .set_up = set_up_signal, .make = make_signal, .happen = raise_signal,
     .check = check_signal},
};

/* ---- The engine. ---- */

HELPER void on_pair(upcall_loop *where, const upcall_event *event) {
    struct pair *p = event->user;
    (void)where;
    CHECK(!p->ended);
    p->events++;
    if (event->buffer) {
        CHECK(event->result > 0);
        oracle_take(&p->stream, event->buffer, (size_t)event->result);
        CHECK_EQ(upcall_buffers_return(pool, event->buffer), 0);
        p->told += event->result;
    }
    if (event->flags & UPCALL_MORE)
        return;
    p->ended = true;
    p->result = event->result;
    p->transferred = event->transferred;
    p->flags = event->flags;
}

HELPER bool completed(struct pair *p) {
    return p->kind->took ? p->kind->took(p) : !was_ended(p);
}

/* What the other thread does to the pairs, and the loop's thread the other way round. */
enum part { COMPLETE, CANCEL };
static struct {
    struct meeting place;
    struct steering edge; /* its first side is the completion */
    enum part theirs;
    uint64_t random;
    uint64_t delay[2][BATCH];
} stage;

HELPER void play(enum part part, struct pair *p) {
    spin(stage.delay[part][p->number]);
    if (part == COMPLETE) {
        p->kind->happen(p);
    } else {
        int rc = upcall_cancel(loop, p->id);
        CHECK(rc == 0 || rc == -ENOENT);
    }
}

HELPER void partners_part(void *arg) {
    (void)arg;
    for (unsigned i = 0; i < pair_count; i++) {
        meet(&stage.place, 1, i + 1);
        play(stage.theirs, &pairs[i]);
    }
}

HELPER void turn(void) {
    CHECK(upcall_poll(loop, 0) >= 0);
}

HELPER void wait_for_ends(void) {
    uint64_t limit = 0;
    for (unsigned i = 0; i < pair_count; i++)
        while (!pairs[i].ended) {
            if (pairs[i].kind->again)
                pairs[i].kind->happen(&pairs[i]);
            CHECK(upcall_poll(loop, pairs[i].kind->again ? MS(1) : MS(1000)) >= 0);
            if (limit == 0)
                limit = now_ns() + 4 * (uint64_t)PATIENCE_NS;
            if (now_ns() > limit)
                fail(HERE, "%s: an operation does not end", pairs[i].kind->name);
        }
}

/* One batch: submit, race, wait, check. With `deadlines` the clock does the cancelling. */
HELPER void run_batch(const struct kind *kind, struct partner *partner, bool deadlines) {
    upcall_op ops[BATCH];
    upcall_id ids[BATCH];
    uint64_t sides[2] = {0, 0};
    bool alone = dice(8) == 0;
    uint64_t span = UINT64_C(1) << dice(18); /* of deadlines: from nothing to a thread's start */
    if (kind->prepare)
        kind->prepare();
    for (unsigned i = 0; i < pair_count; i++) {
        struct pair *p = &pairs[i];
        p->ended = false;
        p->events = 0;
        p->told = 0;
        ops[i] = kind->make(p);
        ops[i].callback = on_pair;
        ops[i].user = p;
        stage.delay[COMPLETE][i] = jitter(&stage.edge, 0);
        stage.delay[CANCEL][i] = jitter(&stage.edge, 1);
        if (deadlines)
            ops[i].timeout_ns = 1 + dice(span) + stage.delay[CANCEL][i];
    }
    CHECK_EQ(oracle_submit(oracle, loop, ops, pair_count, ids), 0);
    for (unsigned i = 0; i < pair_count; i++)
        pairs[i].id = ids[i];
    for (uint64_t turns = dice(4); turns > 0 && !deadlines; turns--)
        turn();
    if (deadlines && dice(2)) { /* what waits on a thread has to get there first */
        turn();
        spin(dice(span));
    }
    uint64_t often = 1 + dice(4); /* turns between requests */
    stage.theirs = deadlines || dice(3) ? COMPLETE : CANCEL;
    bool together = kind->happen && !alone;
    if (kind->happen == NULL && !deadlines && !alone) {
        stage.theirs = CANCEL;
        together = dice(4) == 0;
    }
    atomic_store(&stage.place.here[0], 0);
    atomic_store(&stage.place.here[1], 0);
    if (together)
        sem_post(&partner->go);
    if (deadlines) {
        for (unsigned i = 0; i < pair_count; i++) {
            if (together)
                meet(&stage.place, 0, i + 1);
            else if (kind->happen)
                play(COMPLETE, &pairs[i]);
            if (i % often == 0)
                turn();
        }
    } else {
        uint64_t shift = dice(pair_count); /* what completes in order is not always cancelled in order */
        for (unsigned i = 0; i < pair_count; i++) {
            struct pair *p = &pairs[kind->happen ? i : (i + shift) % pair_count];
            if (together) {
                meet(&stage.place, 0, i + 1);
                if (kind->happen)
                    play(!stage.theirs, p);
            } else if (kind->happen) {
                enum part first = dice(2) ? COMPLETE : CANCEL;
                play(first, p);
                if (dice(4) == 0)
                    turn();
                play(!first, p);
            } else {
                play(CANCEL, p);
            }
            if (i % often == 0)
                turn();
        }
    }
    if (together && kind->again) /* two at once would take in any order */
        wait_for(&partner->done);
    wait_for_ends();
    if (together && !kind->again)
        wait_for(&partner->done);
    for (unsigned i = 0; i < pair_count; i++) {
        struct pair *p = &pairs[i];
        CHECK(!(p->flags & UPCALL_EXPIRED) || deadlines);
        if (p->result < 0 && !was_ended(p))
            fail(HERE, "%s: it failed: %s", kind->name, strerror((int)-p->result));
        sides[!completed(p)]++;
        kind->check(p);
    }
    race_score(sides[0], sides[1]);
    if (!alone && !kind->again) {
        steer(&stage.edge, sides[0], sides[1]);
        if (kind->happen == NULL && stage.edge.lead > 0)
            stage.edge.lead = 0; /* nobody who could wait */
        steer(&sleeps, sides[0], sides[1]);
    }
}

HELPER void race_kind(const struct kind *kind, bool deadlines) {
    struct partner partner;
    upcall_config config = default_config();
    char scratch[256];
    snprintf(scratch, sizeof scratch, "%s/upcall-race-XXXXXX", temp_directory());
    CHECK(mkdtemp(scratch) != NULL && chdir(scratch) == 0);
    warm_up();
    struct oracle_footing before = oracle_stand();
    config.workers = 4;
    oracle = oracle_new();
    loop = loop_with(&config);
    oracle->nobody_cancels = deadlines;
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, 64, 32, &pool), 0);
    pair_count = kind->batch;
    for (unsigned i = 0; i < pair_count; i++) {
        pairs[i] = (struct pair){.kind = kind, .number = i, .fd = -1, .peer = -1, .far = -1};
        if (kind->set_up)
            kind->set_up(&pairs[i]);
    }
    stage.edge.most = 1 << 20;
    partner_start(&partner, partners_part, NULL);
    race.share = kind->share ? kind->share : 1;
    race.one_sided = deadlines && kind->unstoppable;
    while (race_on())
        run_batch(kind, &partner, deadlines);
    partner_end(&partner);
    for (unsigned i = 0; i < pair_count; i++)
        if (kind->tear_down)
            kind->tear_down(&pairs[i]);
    check_stats(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_free(oracle);
    CHECK(chdir("/") == 0 && rmdir(scratch) == 0);
    oracle_check_footing(&before, 1 << 18); /* what the allocator keeps for each thread */
    race_end("completed", deadlines ? "expired" : "cancelled");
}

/* A test for each kind. */
HELPER const struct kind *kind_named(const char *name) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    fail(HERE, "no kind %s", name);
}
#define RACE_OF(kind_, deadlines) RACE(kind_) { race_kind(kind_named(#kind_), deadlines); }

#endif
