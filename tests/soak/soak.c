/*
 * The soak: everything at once, for hours, with the oracle on.
 *
 *     soak [--seconds S] [--backend io_uring|epoll|auto] [--round S] [--seed N]
 *
 * Streams of bytes (unix, TCP, pipes; read and written in every way there is, in full, by multishot, without copying), files,
 * with and without the cache, connections, chains on paths, timers, work, lookups, futexes, children and signals go on
 * together on one loop; two more threads submit, cancel, post, stop and give buffers back. Anything may be cancelled or expire
 * at any moment. Every few seconds the loop is closed in the middle of all that, freed, and another one is made, of other sizes.
 *
 * What must hold is what the oracle says (oracle/oracle.h), and: what an interrupted operation did not move is still there; a
 * file has the bytes that were told as written, and its old ones behind them; after each round descriptors, threads and
 * memory are what they were before the first. hazards rows 1, 3, 5, 6, 7, 16, 20, 30, 31, 33, 40, 44.
 *
 * Each minute a line tells operations, how they ended, memory and descriptors. Exit status: 0; 1, a promise was broken;
 * 77, no io_uring here.
 */
#define CHECK_OWN_MAIN
#include "../oracle/oracle.h"

#include <netdb.h>
#include <semaphore.h>
#include <sys/eventfd.h>

enum {
    STREAMS = 24,
    BLOCKS = 16,
    BLOCK = 16384,
    CONNECTIONS = 8,
    TASKS = 32,
    OTHERS = 2,
    RECENT = 256,
    BUFFERS = 32,
    BUFFER = 2048,
    MOST = 16384, /* bytes of one read or write */
    LINGER = 300, /* steps of a stream until it is made anew */
};

static struct oracle *oracle;
static upcall_loop *loop;
static upcall_buffers *pool;
static uint64_t random_state = 1;
static bool closing;
static upcall_id *recent; /* RECENT ids that somebody may cancel, atomically */
static char directory[256];
static int eventfds[2], cached_file = -1, direct_file = -1;

static uint64_t dice(uint64_t sides) {
    return chance(&random_state) % sides;
}

/* Submits with an interruption at some time, if the dice say so. False: the loop closes. */
static bool go(upcall_op op, upcall_callback callback, void *user) {
    upcall_id id;
    op.callback = callback;
    op.user = user;
    if (dice(6) == 0)
        op.timeout_ns = 1 + dice(UINT64_C(1) << dice(20));
    if (closing)
        return false;
    int rc = oracle_submit(oracle, loop, &op, 1, &id);
    if (rc == -ESHUTDOWN)
        return false;
    if (rc != 0)
        fail(HERE, "%s: upcall_submit: %s", upcall_op_name(op.kind), upcall_last_error());
    if (dice(3) == 0)
        __atomic_store_n(&recent[dice(RECENT)], id, __ATOMIC_RELAXED);
    if (dice(12) == 0)
        CHECK_EQ(upcall_cancel(loop, id), 0);
    return true;
}

static bool was_interrupted(const upcall_event *event) {
    return event->result == -ECANCELED || (event->flags & UPCALL_EXPIRED);
}

/* ---- Streams. One operation reads at a time, one writes. ---- */

struct stream {
    int which; /* PIPE, UNIX, TCP */
    int fds[2];
    struct oracle_stream bytes; /* `put` counts what may have been written */
    uint64_t written;
    unsigned steps;
    bool reading, writing, ending, ended;
    bool full; /* a short count is the end */
    unsigned closes;
    void *in, *out;
    size_t in_room;
    struct iovec in_parts[2], out_parts[2];
    struct msghdr header;
};
static struct stream streams[STREAMS];

static void read_more(struct stream *s);
static void write_more(struct stream *s);

static void make_stream(struct stream *s) {
    int which = (int)((s - streams) % PAIRS), fds[2];
    make_pair(which, fds);
    *s = (struct stream){.which = which, .fds = {fds[0], fds[1]}};
    for (int i = 0; i < 2; i++)
        if (dice(2))
            set_nonblocking(fds[i]);
}

static void on_closed(struct stream *s, const upcall_event *event, int end) {
    CHECK(event->result == 0 || was_interrupted(event));
    if (event->result != 0) /* it never started, and the descriptor is open */
        CHECK_EQ(close(s->fds[end]), 0);
    s->fds[end] = -1;
    s->closes--;
    if (s->fds[0] < 0 && s->fds[1] < 0) {
        make_stream(s);
        read_more(s);
        write_more(s);
    }
}
static void on_out_closed(upcall_loop *where, const upcall_event *event) {
    (void)where;
    on_closed(event->user, event, 1);
}
static void on_in_closed(upcall_loop *where, const upcall_event *event) {
    (void)where;
    on_closed(event->user, event, 0);
}
static void close_end(struct stream *s, int end) {
    if (go(upcall_op_close(s->fds[end]), end ? on_out_closed : on_in_closed, s))
        s->closes++;
}

static void on_read(upcall_loop *where, const upcall_event *event) {
    struct stream *s = event->user;
    (void)where;
    void *memory = event->buffer ? event->buffer : s->in;
    uint64_t size = event->transferred;
    if (event->buffer)
        CHECK_EQ(size, event->result);
    if (event->result < 0 && !was_interrupted(event))
        fail(HERE, "%s: %s", upcall_op_name(event->kind), strerror((int)-event->result));
    if (s->in && !(event->flags & UPCALL_MORE))
        oracle_check_untouched(s->in, size);
    oracle_take(&s->bytes, memory, size);
    if (event->buffer)
        CHECK_EQ(upcall_buffers_return(pool, event->buffer), 0);
    if (event->flags & UPCALL_MORE)
        return;
    s->reading = false;
    if (s->in)
        oracle_give_back(oracle, s->in);
    s->in = NULL;
    if (event->result == 0 || (event->result > 0 && s->full && size < s->in_room)) {
        CHECK(s->ending); /* the end: the writer was closed */
        oracle_check_empty(&s->bytes);
        s->ended = true;
        close_end(s, 0);
        return;
    }
    read_more(s);
}

static void read_more(struct stream *s) {
    upcall_op op;
    size_t room = 1 + dice(MOST), capacity = room <= 256 ? 256 : MOST;
    bool socket = s->which != PIPE, full = dice(4) == 0;
    if (s->reading || s->ended || s->fds[0] < 0)
        return;
    uint64_t how = dice(6);
    s->in = NULL;
    if (how < 4) {
        s->in = oracle_lend(oracle, capacity);
        room = room < capacity ? room : capacity;
        s->in_parts[0] = (struct iovec){s->in, room / 2};
        s->in_parts[1] = (struct iovec){(char *)s->in + room / 2, room - room / 2};
        s->header = (struct msghdr){.msg_iov = s->in_parts, .msg_iovlen = 2};
        op = how == 0             ? upcall_op_read(s->fds[0], s->in, room)
             : how == 1           ? upcall_op_readv(s->fds[0], s->in_parts, 2)
             : !socket            ? upcall_op_read(s->fds[0], s->in, room)
             : how == 2           ? upcall_op_recv(s->fds[0], s->in, room, 0)
                                  : upcall_op_recvmsg(s->fds[0], &s->header, 0);
        op.flags = full ? UPCALL_FULL : 0;
    } else {
        full = false;
        op = socket ? upcall_op_recv(s->fds[0], NULL, 0, 0) : upcall_op_read(s->fds[0], NULL, 0);
        op.buffers = pool;
        op.lend_max = (uint32_t)dice(3);
        op.flags = socket && how == 5 ? UPCALL_MULTISHOT : 0;
    }
    s->in_room = room;
    s->full = full;
    s->reading = true;
    if (!go(op, on_read, s)) {
        s->reading = false;
        if (s->in)
            oracle_give_back(oracle, s->in);
        s->in = NULL;
    }
}

static void on_written(upcall_loop *where, const upcall_event *event) {
    struct stream *s = event->user;
    (void)where;
    if (event->result < 0 && !was_interrupted(event))
        fail(HERE, "%s: %s", upcall_op_name(event->kind), strerror((int)-event->result));
    if (event->flags & UPCALL_MORE)
        return;
    s->written += event->transferred;
    s->bytes.put = s->written;
    CHECK(s->bytes.got <= s->bytes.put); /* what was read was told as written */
    oracle_give_back(oracle, s->out);
    s->out = NULL;
    s->writing = false;
    write_more(s);
}

static void write_more(struct stream *s) {
    upcall_op op;
    size_t size = 1 + dice(MOST), capacity = size <= 256 ? 256 : MOST;
    bool socket = s->which != PIPE;
    if (s->writing || s->ending || s->fds[1] < 0)
        return;
    if (++s->steps > LINGER) {
        s->ending = true;
        close_end(s, 1);
        return;
    }
    s->out = oracle_lend(oracle, capacity);
    fill_pattern(s->out, size, s->written);
    s->bytes.put = s->written + size;
    s->out_parts[0] = (struct iovec){s->out, size / 3};
    s->out_parts[1] = (struct iovec){(char *)s->out + size / 3, size - size / 3};
    struct msghdr header = {.msg_iov = s->out_parts, .msg_iovlen = 2};
    uint64_t how = dice(4);
    op = how == 0   ? upcall_op_write(s->fds[1], s->out, size)
         : how == 1 ? upcall_op_writev(s->fds[1], s->out_parts, 2)
         : !socket  ? upcall_op_write(s->fds[1], s->out, size)
         : how == 2 ? upcall_op_send(s->fds[1], s->out, size, 0)
                    : upcall_op_sendmsg(s->fds[1], &header, 0);
    op.flags = dice(3) == 0 ? UPCALL_FULL : 0;
    if (socket && how >= 2 && dice(4) == 0)
        op.flags |= UPCALL_ZEROCOPY;
    s->writing = true;
    if (!go(op, on_written, s)) {
        s->writing = false;
        s->bytes.put = s->written;
        oracle_give_back(oracle, s->out);
        s->out = NULL;
    }
}

/* Takes what is there now. A send without copying ends when the other side has taken its data, and the loop with it. */
static void take_some(struct stream *s) {
    uint8_t bytes[4096];
    while (!s->reading && s->fds[0] >= 0 && is_readable(s->fds[0], 0)) {
        ssize_t n = read(s->fds[0], bytes, sizeof bytes);
        CHECK(n >= 0);
        if (n == 0)
            return;
        oracle_take(&s->bytes, bytes, (size_t)n);
    }
}

/* The loop has closed: what was written and not read is still there. */
static void drain_stream(struct stream *s) {
    uint8_t bytes[4096];
    CHECK(!s->reading && !s->writing && s->closes == 0);
    while (s->fds[0] >= 0 && s->bytes.got < s->bytes.put) {
        if (!is_readable(s->fds[0], 10000))
            fail(HERE, "%" PRIu64 " bytes are lost", s->bytes.put - s->bytes.got);
        ssize_t n = read(s->fds[0], bytes, sizeof bytes);
        CHECK(n > 0);
        oracle_take(&s->bytes, bytes, (size_t)n);
    }
    for (int i = 0; i < 2; i++)
        if (s->fds[i] >= 0)
            close(s->fds[i]);
}

/* ---- Files: blocks that are written and read again. ---- */

struct block {
    unsigned number;
    bool direct;
    uint64_t old, new; /* seeds of their bytes */
    size_t split;      /* so many of the new ones, then old ones */
    void *memory;
};
static struct block blocks[BLOCKS];

static void next_of_block(struct block *b);

static void on_block_written(upcall_loop *where, const upcall_event *event) {
    struct block *b = event->user;
    (void)where;
    CHECK(was_interrupted(event) || event->result == BLOCK);
    b->split = event->transferred;
    oracle_give_back(oracle, b->memory);
    next_of_block(b);
}

static void on_block_read(upcall_loop *where, const upcall_event *event) {
    struct block *b = event->user;
    (void)where;
    CHECK(was_interrupted(event) || event->result == BLOCK);
    oracle_check_untouched(b->memory, event->transferred);
    for (size_t i = 0; i < event->transferred; i++)
        if (((uint8_t *)b->memory)[i] != pattern((i < b->split ? b->new : b->old) + i))
            fail(HERE, "byte %zu of a block of a file is another one; %zu were written", i, b->split);
    oracle_give_back(oracle, b->memory);
    next_of_block(b);
}

static void on_synced(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK(was_interrupted(event) || event->result == 0);
    next_of_block(event->user);
}

static void next_of_block(struct block *b) {
    int fd = b->direct ? direct_file : cached_file;
    int64_t offset = (int64_t)b->number * BLOCK;
    bool writes = dice(2) && (b->split == 0 || b->split == BLOCK); /* a half-written one stays as it is, to be read */
    if (!writes && dice(4) == 0) {
        go(dice(2) ? upcall_op_fdatasync(fd) : upcall_op_fsync(fd), on_synced, b);
        return;
    }
    if (!writes && b->split != 0 && b->split != BLOCK && dice(4) == 0)
        writes = true;
    b->memory = oracle_lend(oracle, BLOCK);
    upcall_op op = upcall_op_pread(fd, b->memory, BLOCK, offset);
    if (writes) {
        if (b->split != 0 && b->split != BLOCK) { /* known again, by hand */
            fill_pattern(b->memory, BLOCK, b->old);
            CHECK_EQ(pwrite(fd, b->memory, BLOCK, offset), BLOCK);
        } else if (b->split == BLOCK) {
            b->old = b->new;
        }
        b->split = 0;
        b->new = dice(1000000);
        fill_pattern(b->memory, BLOCK, b->new);
        op = upcall_op_pwrite(fd, b->memory, BLOCK, offset);
    }
    op.flags = UPCALL_FULL;
    if (!go(op, writes ? on_block_written : on_block_read, b))
        oracle_give_back(oracle, b->memory);
}

/* ---- Connections: accepted, told a byte, closed. ---- */

static int listener = -1;
static struct sockaddr_un address;
static socklen_t address_length;
static uint64_t connected, tried, accepted;
struct connection {
    int fd;
    void *byte;
};
static struct connection connections[CONNECTIONS];
static bool accepting;

static void connect_again(struct connection *c);
static void accept_more(void);

static void ignore(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK(event->result >= 0 || was_interrupted(event) || event->result == -EPIPE || event->result == -ECONNRESET);
}

/* The close of a link may be cancelled like any other, before it begins. */
static void on_link_closed(upcall_loop *where, const upcall_event *event) {
    (void)where;
    if (event->result < 0)
        close((int)(intptr_t)event->user);
}

static void on_accepted(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK(event->result >= 0 || was_interrupted(event));
    if (event->result >= 0) {
        static const char byte = 'x';
        int fd = (int)event->result;
        accepted++;
        upcall_op chain[2] = {upcall_op_send(fd, &byte, 1, 0), upcall_op_close(fd)};
        chain[0].flags = UPCALL_LINK_ALWAYS;
        chain[0].callback = ignore;
        chain[1].callback = on_link_closed;
        chain[1].user = (void *)(intptr_t)fd;
        if (closing || oracle_submit(oracle, loop, chain, 2, NULL) != 0)
            close(fd);
    }
    if (!(event->flags & UPCALL_MORE)) {
        accepting = false;
        accept_more();
    }
}

static void accept_more(void) {
    upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
    op.flags = dice(2) ? UPCALL_MULTISHOT : 0;
    accepting = go(op, on_accepted, NULL);
}

static void on_byte(upcall_loop *where, const upcall_event *event) {
    struct connection *c = event->user;
    (void)where;
    CHECK(event->result == 1 || event->result == 0 || event->result == -ECONNRESET || was_interrupted(event));
    oracle_check_untouched(c->byte, event->transferred);
    if (event->result == 1)
        CHECK_EQ(*(char *)c->byte, 'x');
    oracle_give_back(oracle, c->byte);
    close(c->fd);
    c->fd = -1;
    connect_again(c);
}

static void on_connected(upcall_loop *where, const upcall_event *event) {
    struct connection *c = event->user;
    (void)where;
    CHECK(event->result == 0 || was_interrupted(event));
    if (event->result == 0) {
        connected++;
        c->byte = oracle_lend(oracle, 16);
        if (go(upcall_op_recv(c->fd, c->byte, 16, 0), on_byte, c))
            return;
        oracle_give_back(oracle, c->byte);
    }
    close(c->fd);
    c->fd = -1;
    connect_again(c);
}

static void connect_again(struct connection *c) {
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (dice(2) ? SOCK_NONBLOCK : 0), 0);
    CHECK(c->fd >= 0);
    if (go(upcall_op_connect(c->fd, (struct sockaddr *)&address, address_length), on_connected, c)) {
        tried++;
    } else {
        close(c->fd);
        c->fd = -1;
    }
}

/* ---- Small tasks, one after another. ---- */

struct task {
    unsigned number, left; /* operations of the step that are in flight */
    uint32_t word;
    int64_t woken, waited;
    struct addrinfo *found;
    atomic_int ran;
    pid_t child;
    siginfo_t info;
    struct statx statx;
    char from[64], to[64];
};
static struct task tasks[TASKS];
static atomic_uint_fast64_t signals_caught;

static void next_task(struct task *t);

static void on_simple(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(event->result >= 0 || was_interrupted(event));
    if (event->flags & UPCALL_MORE)
        return;
    next_task(t);
}

static int64_t run_once(void *arg) {
    struct task *t = arg;
    return atomic_fetch_add(&t->ran, 1) + 42;
}
static void on_worked(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(was_interrupted(event) ? t->ran == 0 : event->result == 42 && t->ran == 1);
    next_task(t);
}

static void on_found(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(was_interrupted(event) ? t->found == NULL : event->result == 0 && t->found != NULL);
    if (t->found)
        freeaddrinfo(t->found);
    next_task(t);
}

/* A wait and a wake, at about the same time: who was woken completes, and nobody else does. */
static void futex_done(struct task *t) {
    if (--t->left > 0)
        return;
    CHECK_EQ(t->woken == 1, t->waited == 0);
    next_task(t);
}
static void on_futex_waited(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(event->result == 0 || was_interrupted(event));
    t->waited = event->result;
    futex_done(t);
}
static void on_futex_woke(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(event->result >= 0 || was_interrupted(event));
    t->woken = event->result;
    futex_done(t);
}

static void on_child(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(event->result == 0 || was_interrupted(event));
    if (event->result == 0)
        CHECK(t->info.si_pid == t->child && t->info.si_status == 3);
    else
        CHECK(waitid(P_PID, (id_t)t->child, &t->info, WEXITED) == 0);
    next_task(t);
}

static void on_path(upcall_loop *where, const upcall_event *event) {
    struct task *t = event->user;
    (void)where;
    CHECK(event->result >= 0 || was_interrupted(event));
    if (event->kind == UPCALL_OP_OPEN && event->result >= 0)
        close((int)event->result);
    if (event->kind == UPCALL_OP_STATX && event->result == 0)
        CHECK_EQ(t->statx.stx_size, 0);
    if (--t->left == 0) {
        unlink(t->from);
        unlink(t->to);
        next_task(t);
    }
}

static void count_signal_here(int signo) {
    (void)signo;
    atomic_fetch_add(&signals_caught, 1);
}

static void next_task(struct task *t) {
    static const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    upcall_op op;
    if (closing)
        return;
    switch (dice(40)) {
    case 0:
        t->child = fork();
        CHECK(t->child >= 0);
        if (t->child == 0)
            _exit(3);
        if (!go(upcall_op_waitid(P_PID, (uint32_t)t->child, &t->info, WEXITED), on_child, t))
            CHECK(waitid(P_PID, (id_t)t->child, &t->info, WEXITED) == 0);
        return;
    case 1: case 2: case 3: case 4:
        t->found = NULL;
        go(upcall_op_getaddrinfo("127.0.0.1", "80", &hints, &t->found), on_found, t);
        return;
    case 5: case 6: case 7: case 8:
        t->ran = 0;
        go(upcall_op_work(run_once, t), on_worked, t);
        return;
    case 9: case 10: case 11: case 12: {
        upcall_op chain[4] = {upcall_op_open(AT_FDCWD, t->from, O_CREAT | O_RDWR, 0600),
                              upcall_op_statx(AT_FDCWD, t->from, 0, STATX_SIZE, &t->statx),
                              upcall_op_rename(AT_FDCWD, t->from, AT_FDCWD, t->to, 0),
                              upcall_op_unlink(AT_FDCWD, t->to, 0)};
        for (size_t i = 0; i < COUNT_OF(chain); i++) {
            chain[i].flags = i < 3 ? UPCALL_LINK : 0;
            chain[i].callback = on_path;
            chain[i].user = t;
            chain[i].timeout_ns = dice(8) == 0 ? 1 + dice(100000) : 0;
        }
        t->left = COUNT_OF(chain);
        if (oracle_submit(oracle, loop, chain, COUNT_OF(chain), NULL) != 0)
            t->left = 0;
        return;
    }
    case 13:
        go(upcall_op_signal(SIGUSR1), on_simple, t);
        if (dice(2))
            CHECK(raise(SIGUSR1) == 0);
        return;
    case 14: case 15: case 16:
        op = upcall_op_sleep(1 + dice(100000));
        if (dice(2)) { /* ends by its own deadline, or by somebody's cancel */
            op.flags = UPCALL_MULTISHOT;
            op.timeout_ns = 0;
        }
        op.callback = on_simple;
        op.user = t;
        if (op.flags) {
            upcall_id id;
            if (oracle_submit(oracle, loop, &op, 1, &id) == 0)
                __atomic_store_n(&recent[t->number], id, __ATOMIC_RELAXED); /* a place that is cancelled soon */
            return;
        }
        go(op, on_simple, t);
        return;
    case 17: case 18: case 19: case 20:
        op = upcall_op_poll(eventfds[dice(2)], POLLIN);
        op.timeout_ns = 1 + dice(300000);
        op.callback = on_simple;
        op.user = t;
        if (oracle_submit(oracle, loop, &op, 1, NULL) != 0)
            return;
        return;
    case 21: case 22: case 23:
        op = upcall_op_futex_wait(&t->word, 0, UINT32_MAX, UPCALL_FUTEX_PRIVATE);
        op.timeout_ns = 1 + dice(300000); /* the wake may come too early */
        op.callback = on_futex_waited;
        op.user = t;
        t->left = 2;
        t->woken = 0;
        if (oracle_submit(oracle, loop, &op, 1, NULL) != 0)
            return;
        if (!go(upcall_op_futex_wake(&t->word, 1, UINT32_MAX, UPCALL_FUTEX_PRIVATE), on_futex_woke, t))
            t->left--;
        return;
    default:
        go(dice(2) ? upcall_op_nop() : upcall_op_sleep(dice(50000)), on_simple, t);
    }
}

/* ---- Other threads. ---- */

struct other {
    pthread_t thread;
    uint64_t random, posted, ran;
    sem_t go, paused;
};
static struct other others[OTHERS];
static atomic_bool pause_now, leave_now;

static void run_post(upcall_loop *where, void *arg) {
    struct other *me = &others[(uintptr_t)arg % OTHERS];
    (void)where;
    CHECK_EQ(me->ran, (uintptr_t)arg / OTHERS);
    me->ran++;
}

static void disturb(struct other *me) {
    uint64_t what = chance(&me->random);
    switch (what % 8) {
    case 0: case 1: case 2: {
        upcall_op ops[4];
        size_t count = 1 + what / 8 % COUNT_OF(ops);
        for (size_t i = 0; i < count; i++) {
            ops[i] = what / 64 % 2 ? upcall_op_nop() : upcall_op_sleep(what / 128 % 100000);
            ops[i].callback = what / 256 % 2 ? ignore : NULL; /* without one: to be reaped */
        }
        int rc = oracle_submit(oracle, loop, ops, count, NULL);
        CHECK(rc == 0 || rc == -ESHUTDOWN || rc == -EAGAIN);
        break;
    }
    case 3: case 4: case 5: {
        upcall_id id = __atomic_load_n(&recent[what / 8 % RECENT], __ATOMIC_RELAXED);
        int rc = id ? upcall_cancel(loop, id) : 0;
        CHECK(rc == 0 || rc == -ENOENT);
        if (what / 4096 % 4096 == 0)
            CHECK(upcall_cancel_fd(loop, eventfds[0]) >= 0);
        break;
    }
    case 6: {
        int rc = upcall_post(loop, run_post, (void *)(uintptr_t)(me->posted * OTHERS + (uintptr_t)(me - others)));
        CHECK(rc == 0 || rc == -ESHUTDOWN);
        me->posted += rc == 0;
        break;
    }
    default:
        if (what / 8 % 64 == 0)
            CHECK_EQ(upcall_stop(loop), 0);
    }
    for (uint64_t spin = chance(&me->random) % 30000; spin > 0; spin--)
        __asm__ volatile("");
    if (what / 8 % 16 == 0)
        pause_ms(1);
}

static void wait_for(sem_t *sem) {
    while (sem_wait(sem) != 0)
        CHECK_EQ(errno, EINTR);
}

static void *disturb_all_the_time(void *arg) {
    struct other *me = arg;
    for (;;) {
        wait_for(&me->go);
        if (leave_now)
            return NULL;
        while (!pause_now)
            disturb(me);
        sem_post(&me->paused);
    }
}

/* ---- A round: a loop from its making to its end. ---- */

static void reap_all(void) {
    upcall_event events[64];
    for (int got; (got = oracle_reap(oracle, loop, events, COUNT_OF(events))) > 0;)
        for (int i = 0; i < got; i++)
            CHECK(events[i].result == 0 || events[i].result == -ECANCELED);
}

static void begin_round(upcall_backend backend) {
    upcall_config config = default_config();
    uint8_t *zero = oracle_lend(oracle, BLOCK);
    config.backend = backend;
    config.entries = 1u << dice(10);
    config.max_events = 1u << (2 + dice(9));
    config.workers = 2 + (uint32_t)dice(6);
    loop = loop_with(&config);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    if (dice(2))
        CHECK(upcall_fd(loop) >= 0);
    CHECK_EQ(upcall_buffers_new(loop, BUFFERS, BUFFER, &pool), 0);
    closing = false;
    memset(recent, 0, RECENT * sizeof *recent);
    for (int i = 0; i < 2; i++)
        CHECK((eventfds[i] = eventfd(0, EFD_CLOEXEC)) >= 0);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (dice(2) ? SOCK_NONBLOCK : 0), 0);
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    address_length = sizeof address;
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &address_length) == 0 && listen(listener, 16) == 0);
    for (unsigned i = 0; i < BLOCKS; i++) {
        blocks[i] = (struct block){.number = i, .direct = direct_file >= 0 && i % 2};
        fill_pattern(zero, BLOCK, 0);
        CHECK_EQ(pwrite(blocks[i].direct ? direct_file : cached_file, zero, BLOCK, (off_t)i * BLOCK), BLOCK);
    }
    oracle_give_back(oracle, zero);
    for (int i = 0; i < STREAMS; i++) {
        make_stream(&streams[i]);
        read_more(&streams[i]);
        write_more(&streams[i]);
    }
    for (unsigned i = 0; i < BLOCKS; i++)
        next_of_block(&blocks[i]);
    accept_more();
    for (int i = 0; i < CONNECTIONS; i++)
        connect_again(&connections[i]);
    for (unsigned i = 0; i < TASKS; i++) {
        tasks[i] = (struct task){.number = i};
        snprintf(tasks[i].from, sizeof tasks[i].from, "from-%u", i);
        snprintf(tasks[i].to, sizeof tasks[i].to, "to-%u", i);
        next_task(&tasks[i]);
    }
    pause_now = false;
    for (int i = 0; i < OTHERS; i++)
        sem_post(&others[i].go);
}

static void close_loop(void) {
    for (int rc = -ETIMEDOUT; rc != 0;) {
        rc = upcall_loop_close(loop, MS(5));
        CHECK(rc == 0 || rc == -ETIMEDOUT);
        for (int i = 0; i < STREAMS; i++)
            take_some(&streams[i]);
    }
}

static void end_round(void) {
    closing = true;
    if (dice(2)) /* while others submit */
        close_loop();
    pause_now = true;
    for (int i = 0; i < OTHERS; i++)
        wait_for(&others[i].paused);
    reap_all();
    close_loop();
    reap_all();
    check_stats(loop);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    oracle_check_ended(oracle);
    for (int i = 0; i < STREAMS; i++)
        drain_stream(&streams[i]);
    for (int i = 0; i < OTHERS; i++)
        CHECK_EQ(others[i].ran, others[i].posted);
    CHECK(accepted <= tried);
    close(listener);
    close(eventfds[0]);
    close(eventfds[1]);
}

static void turns_until(uint64_t end) {
    for (uint64_t turn = 0; now_ns() < end; turn++) {
        if (turn % 64 == 63) {
            upcall_id id = recent[dice(RECENT)];
            int rc = id ? upcall_cancel(loop, id) : 0;
            CHECK(rc == 0 || rc == -ENOENT);
        }
        CHECK(upcall_poll(loop, dice(2) ? 0 : MS(5)) >= 0);
        reap_all();
        alarm((unsigned)(120 * slowness()));
    }
}

/* ---- The hours. ---- */

static void tell(uint64_t begun, unsigned rounds, long first_pages, double first_hours) {
    double seconds = (double)(now_ns() - begun) / 1e9, hours = seconds / 3600;
    double mib = (double)resident_pages() * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
    double first = (double)first_pages * (double)sysconf(_SC_PAGESIZE) / (1 << 20);
    uint64_t operations = oracle->ended, interrupted = oracle->cancelled + oracle->expired;
    printf("%6.0f s: %" PRIu64 " operations (%.0f/s), %" PRIu64 " completed, %" PRIu64 " cancelled, %" PRIu64
           " expired; %u loops; heap %.0f KiB, resident %.1f MiB (%+.2f MiB/h); %d descriptors\n",
           seconds, operations, (double)operations / seconds, operations - interrupted, (uint64_t)oracle->cancelled,
           (uint64_t)oracle->expired, rounds, (double)oracle_stand().heap / 1024, mib,
           first_pages && hours > first_hours ? (mib - first) / (hours - first_hours) : 0, open_fd_count());
    fflush(stdout);
}

int main(int argc, char **argv) {
    double seconds = 60, round = 5;
    const char *name = NULL;
    upcall_backend backend = UPCALL_BACKEND_AUTO;
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--seconds") == 0 && has_value)
            seconds = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--round") == 0 && has_value)
            round = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--seed") == 0 && has_value)
            random_state = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--backend") == 0 && has_value)
            name = argv[++i];
        else {
            fprintf(stderr, "usage: %s [--seconds S] [--backend io_uring|epoll|auto] [--round S] [--seed N]\n", argv[0]);
            return 2;
        }
    }
    if (name)
        setenv("UPCALL_BACKEND", name, 1);
    if (backend_denied() != NULL) {
        printf("skipped: %s\n", backend_denied());
        return 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGUSR1, count_signal_here);
    snprintf(directory, sizeof directory, "%s/upcall-soak-XXXXXX", temp_directory());
    CHECK(mkdtemp(directory) != NULL && chdir(directory) == 0);
    recent = calloc(RECENT, sizeof *recent);
    CHECK(recent != NULL);
    cached_file = temp_file(BLOCKS * BLOCK);
    direct_file = temp_file(BLOCKS * BLOCK);
    void *probe = NULL;
    CHECK_EQ(posix_memalign(&probe, 4096, BLOCK), 0);
    if (fcntl(direct_file, F_SETFL, O_DIRECT) != 0 || pread(direct_file, probe, BLOCK, 0) != BLOCK) {
        close(direct_file);
        direct_file = -1;
    }
    free(probe);
    oracle = oracle_new();
    for (int i = 0; i < OTHERS; i++) {
        others[i].random = random_state + (uint64_t)i;
        CHECK(sem_init(&others[i].go, 0, 0) == 0 && sem_init(&others[i].paused, 0, 0) == 0);
        others[i].thread = start(disturb_all_the_time, &others[i]);
    }
    uint64_t begun = now_ns(), end = begun + (uint64_t)(seconds * 1e9), next = begun + 60 * UPCALL_SECOND;
    struct oracle_footing first = {0};
    unsigned rounds = 0;
    double first_hours = 0;
    while (now_ns() < end) {
        uint64_t limit = now_ns() + (uint64_t)(round * 1e9);
        begin_round(backend);
        turns_until(limit < end ? limit : end);
        end_round();
        rounds++;
        if (rounds == 3) { /* what is needed once is there */
            first = oracle_stand();
            first_hours = (double)(now_ns() - begun) / 3.6e12;
        }
        if (rounds > 3)
            oracle_check_footing(&first, 4 << 20);
        if (now_ns() >= next) {
            tell(begun, rounds, first.pages, first_hours);
            next += 60 * UPCALL_SECOND;
        }
    }
    tell(begun, rounds, first.pages, first_hours);
    alarm(0);
    leave_now = true;
    for (int i = 0; i < OTHERS; i++) {
        sem_post(&others[i].go);
        join(others[i].thread);
    }
    close(cached_file);
    if (direct_file >= 0)
        close(direct_file);
    if (rounds > 3 && oracle_knows_memory() && resident_pages() > first.pages + (64 << 20) / sysconf(_SC_PAGESIZE))
        fail(HERE, "resident memory grew by more than 64 MiB");
    oracle_free(oracle);
    free(recent);
    CHECK(chdir("/") == 0 && rmdir(directory) == 0);
    CHECK(connected > 0 && accepted > 0);
    printf("ok: nothing was lost\n");
    return 0;
}
