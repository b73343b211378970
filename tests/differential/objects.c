/* The kinds of descriptors, and what the other side of each can do. */
#include "differential.h"

#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>

static int must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

static void set_nonblocking(int fd, bool on) {
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

static void close_hard(int fd) {
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

/* Bytes of a stream depend on their position, so that a lost, doubled or moved byte is seen. */
static unsigned char byte_at(const thing *t, const run *r, uint64_t position) {
    return (unsigned char)((position * 7 + (position >> 8) * 13 + (unsigned)(t - r->thing) * 31 + 1) & 0xff);
}

/* ---- Making them. ---- */

static int make_pipe_in(run *r, thing *t) {
    (void)r;
    int ends[2];
    must(pipe2(ends, O_CLOEXEC), "pipe2");
    set_nonblocking(ends[1], true);
    t->peer = ends[1];
    return ends[0];
}

static int make_pipe_out(run *r, thing *t) {
    (void)r;
    int ends[2];
    must(pipe2(ends, O_CLOEXEC), "pipe2");
    fcntl(ends[1], F_SETPIPE_SZ, 4096); /* soon full */
    set_nonblocking(ends[0], true);
    t->peer = ends[0];
    return ends[1];
}

static int make_fifo_in(run *r, thing *t) {
    char name[32];
    snprintf(name, sizeof name, "fifo%d", (int)(t - r->thing));
    /* The last one may still be open somewhere in the kernel, with what was in it. */
    unlinkat(scratch_fd, name, 0);
    must(mkfifoat(scratch_fd, name, 0600), "mkfifoat");
    int fd = must(openat(scratch_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC), "fifo");
    t->peer = must(openat(scratch_fd, name, O_WRONLY | O_NONBLOCK | O_CLOEXEC), "fifo");
    set_nonblocking(fd, false);
    return fd;
}

static int make_unix(thing *t, int type) {
    int ends[2];
    must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), "socketpair");
    const int small = 4608;
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    t->peer = ends[1];
    return ends[0];
}

static int make_unix_stream(run *r, thing *t) {
    (void)r;
    return make_unix(t, SOCK_STREAM);
}

static int make_unix_dgram(run *r, thing *t) {
    (void)r;
    return make_unix(t, SOCK_DGRAM);
}

static int make_unix_seqpacket(run *r, thing *t) {
    (void)r;
    return make_unix(t, SOCK_SEQPACKET);
}

static struct sockaddr_in loopback(void) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static void remember_address(thing *t, int fd) {
    t->address_length = sizeof t->address;
    must(getsockname(fd, (struct sockaddr *)&t->address, &t->address_length), "getsockname");
}

static int tcp_listener(thing *t) {
    const struct sockaddr_in any = loopback();
    int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    must(bind(fd, (const struct sockaddr *)&any, sizeof any), "bind");
    must(listen(fd, 64), "listen");
    remember_address(t, fd);
    return fd;
}

static int unix_listener(thing *t) {
    const sa_family_t automatic = AF_UNIX;
    int fd = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    must(bind(fd, (const struct sockaddr *)&automatic, sizeof automatic), "bind");
    must(listen(fd, 64), "listen");
    remember_address(t, fd);
    return fd;
}

/* Pairs of TCP sockets are made with it. */
static thing tcp_matchmaker;

void prepare_objects(void) {
    tcp_matchmaker.fd = tcp_listener(&tcp_matchmaker);
}

static int make_tcp(run *r, thing *t) {
    (void)r;
    int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    must(connect(fd, (struct sockaddr *)&tcp_matchmaker.address, tcp_matchmaker.address_length), "connect");
    t->peer = must(accept4(tcp_matchmaker.fd, NULL, NULL, SOCK_CLOEXEC), "accept4");
    const int on = 1; /* what is sent arrives at once */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(t->peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static int make_udp(run *r, thing *t) {
    (void)r;
    struct sockaddr_in at[2];
    int ends[2];
    for (int i = 0; i < 2; i++) {
        const struct sockaddr_in any = loopback();
        socklen_t length = sizeof at[i];
        ends[i] = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
        must(bind(ends[i], (const struct sockaddr *)&any, sizeof any), "bind");
        must(getsockname(ends[i], (struct sockaddr *)&at[i], &length), "getsockname");
    }
    for (int i = 0; i < 2; i++)
        must(connect(ends[i], (struct sockaddr *)&at[1 - i], sizeof at[1 - i]), "connect");
    t->peer = ends[1];
    return ends[0];
}

static int make_unix_listener(run *r, thing *t) {
    (void)r;
    return unix_listener(t);
}

static int make_tcp_listener(run *r, thing *t) {
    (void)r;
    return tcp_listener(t);
}

static int make_file(run *r, thing *t, int flags, int directory, const char *stem) {
    char name[32];
    unsigned char content[FILE_SIZE];
    snprintf(name, sizeof name, "%s%d", stem, (int)(t - r->thing));
    int fd = must(openat(directory, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600), "file");
    for (unsigned i = 0; i < FILE_SIZE; i++)
        content[i] = byte_at(t, r, i);
    if (pwrite(fd, content, FILE_SIZE, 0) != FILE_SIZE || ftruncate(fd, FILE_SIZE) != 0)
        must(-1, "file");
    if (flags == 0)
        return fd;
    close(fd);
    return must(openat(directory, name, O_RDWR | O_CLOEXEC | flags), "file");
}

static int make_regular(run *r, thing *t) {
    return make_file(r, t, 0, scratch_fd, "file");
}

static int make_direct(run *r, thing *t) {
    return make_file(r, t, O_DIRECT, disk_fd, "direct");
}

static int make_eventfd(run *r, thing *t) {
    (void)r;
    int fd = must(eventfd(0, EFD_CLOEXEC), "eventfd");
    t->peer = must(fcntl(fd, F_DUPFD_CLOEXEC, 0), "dup");
    return fd;
}

static int make_pty(run *r, thing *t) {
    (void)r;
    int master = must(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), "posix_openpt");
    must(unlockpt(master), "unlockpt");
    int slave = must(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC), "TIOCGPTPEER");
    struct termios raw;
    must(tcgetattr(slave, &raw), "tcgetattr");
    cfmakeraw(&raw);
    must(tcsetattr(slave, TCSANOW, &raw), "tcsetattr");
    set_nonblocking(master, true);
    t->peer = master;
    return slave;
}

static int make_directory(run *r, thing *t) {
    (void)r;
    (void)t;
    return must(openat(scratch_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "directory");
}

static int make_closed(run *r, thing *t) {
    (void)r;
    t->closed = true;
    return NOWHERE;
}

static int make_unix_fresh(run *r, thing *t) {
    (void)r;
    t->helper = unix_listener(t);
    return must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
}

static int make_tcp_fresh(run *r, thing *t) {
    (void)r;
    t->helper = tcp_listener(t);
    return must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
}

static int make_udp_fresh(run *r, thing *t) {
    (void)r;
    const struct sockaddr_in any = loopback();
    t->helper = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    must(bind(t->helper, (const struct sockaddr *)&any, sizeof any), "bind");
    remember_address(t, t->helper);
    return must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
}

static int make_null(run *r, thing *t) {
    (void)r;
    (void)t;
    return must(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
}

static int make_zero(run *r, thing *t) {
    (void)r;
    (void)t;
    return must(open("/dev/zero", O_RDWR | O_CLOEXEC), "/dev/zero");
}

static int make_futex(run *r, thing *t) {
    t->word = (uint32_t *)get_memory(r, sizeof *t->word, 64);
    *t->word = 0;
    t->closed = true;
    return NOWHERE;
}

const int user_signals[MAX_OBJECTS] = {SIGUSR1, SIGUSR2, SIGURG, SIGWINCH};

static int make_signal(run *r, thing *t) {
    t->signo = user_signals[t - r->thing];
    t->closed = true;
    return NOWHERE;
}

/* A child process that ends with the status it is told. The descriptor is its pidfd; the helper is one more. */
static int make_child(run *r, thing *t) {
    (void)r;
    int orders[2], ready[2];
    must(pipe2(orders, O_CLOEXEC), "pipe2");
    must(pipe2(ready, O_CLOEXEC), "pipe2");
    t->child = must(fork(), "fork");
    if (t->child == 0) {
        unsigned char status = 99;
        /* It must hold no end of anything else; that the pipe ends tells that it does not. */
        dup2(orders[0], STDIN_FILENO);
        syscall(SYS_close_range, 1, ~0u, 0);
        _exit(read(STDIN_FILENO, &status, 1) == 1 ? status : 99);
    }
    close(orders[0]);
    close(ready[1]);
    char none;
    if (read(ready[0], &none, 1) != 0)
        must(-1, "child");
    close(ready[0]);
    t->peer = orders[1];
    t->helper = must((int)syscall(SYS_pidfd_open, t->child, 0), "pidfd_open");
    return must((int)syscall(SYS_pidfd_open, t->child, 0), "pidfd_open");
}

static void end_child(thing *t) {
    siginfo_t info;
    syscall(SYS_pidfd_send_signal, t->helper, SIGKILL, NULL, 0);
    syscall(SYS_waitid, P_PIDFD, t->helper, &info, WEXITED, NULL);
}

/* ---- What the other side puts in. ---- */

static int64_t put_bytes(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)variant;
    static unsigned char bytes[70000];
    if (amount > sizeof bytes)
        amount = sizeof bytes;
    /* How much a terminal takes depends on how fast the kernel passes it on. */
    if (t->row->traits & SLOWLY)
        amount = t->put - t->got > 1000 ? 0 : amount % 500 + 1;
    for (uint32_t i = 0; i < amount; i++)
        bytes[i] = byte_at(t, r, t->put + i);
    ssize_t moved = t->row->traits & SOCKET ? send(t->peer, bytes, amount, MSG_DONTWAIT | MSG_NOSIGNAL)
                                            : write(t->peer, bytes, amount);
    if (moved < 0)
        return -errno;
    t->put += (uint64_t)moved;
    /* It arrives a little later, unless somebody took it already. */
    for (int i = 0, there = 0; t->row->traits & SLOWLY && !t->closed && i < 2000; i++) {
        if (ioctl(t->fd, FIONREAD, &there) != 0 || t->got + (uint64_t)there >= t->put)
            break;
        const struct timespec pause = {.tv_nsec = 50000};
        nanosleep(&pause, NULL);
    }
    if (t->row->traits & MESSAGES)
        t->waiting++;
    return moved;
}

static int64_t put_count(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)r;
    (void)variant;
    const uint64_t value = amount % 5 + 1;
    if (write(t->peer, &value, sizeof value) < 0)
        return -errno;
    t->waiting = 1;
    return (int64_t)value;
}

static int64_t put_connection(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)r;
    (void)amount;
    (void)variant;
    /* The port of a listener that was closed may be anyone's by now. */
    if (t->connections == MAX_CONNECTIONS || (t->closed && t->row->traits & INET))
        return -ENOBUFS;
    int fd = must(socket(t->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    if (connect(fd, (struct sockaddr *)&t->address, t->address_length) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    t->connection[t->connections++] = fd;
    t->waiting++;
    return 0;
}

/* The other side takes one of the connections that operations made. */
static int64_t put_acceptance(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)r;
    (void)amount;
    (void)variant;
    if (t->connections == MAX_CONNECTIONS)
        return -ENOBUFS;
    set_nonblocking(t->helper, true);
    int fd = accept4(t->helper, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return -errno;
    t->connection[t->connections++] = fd;
    return 0;
}

/* It wakes what waits for its number. */
static int64_t put_wake(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)r;
    const int of_process = variant / 4 % 3 == 0 ? FUTEX_PRIVATE_FLAG : 0;
    long woken = syscall(SYS_futex, t->word, FUTEX_WAKE_BITSET | of_process, 1 + amount % 2, NULL, NULL,
                         variant % 4 == 0 ? 2u : ~0u);
    return woken < 0 ? -errno : woken;
}

static int64_t put_signal(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)r;
    (void)amount;
    (void)variant;
    return raise(t->signo);
}

static int64_t put_end(run *r, thing *t, uint32_t amount, uint32_t variant) {
    (void)r;
    (void)variant;
    const unsigned char status = (unsigned char)(amount % 100);
    if (write(t->peer, &status, 1) != 1)
        return -errno;
    struct pollfd ended = {.fd = t->helper, .events = POLLIN};
    return poll(&ended, 1, 5000) == 1 ? 0 : -ETIMEDOUT;
}

const object_row object_rows[OBJECT_KINDS] = {
    [PIPE_IN] = {"pipe_in", 10, STREAM | PAIR, make_pipe_in, put_bytes},
    [PIPE_OUT] = {"pipe_out", 8, STREAM | PAIR, make_pipe_out, NULL},
    [FIFO_IN] = {"fifo_in", 4, STREAM | PAIR | ON_A_THREAD, make_fifo_in, put_bytes},
    [UNIX_STREAM] = {"unix_stream", 16, STREAM | SOCKET | PAIR, make_unix_stream, put_bytes},
    [UNIX_DGRAM] = {"unix_dgram", 8, MESSAGES | SOCKET | PAIR, make_unix_dgram, put_bytes},
    [UNIX_SEQPACKET] = {"unix_seqpacket", 6, MESSAGES | SOCKET | PAIR, make_unix_seqpacket, put_bytes},
    [TCP] = {"tcp", 8, STREAM | SOCKET | INET | PAIR, make_tcp, put_bytes},
    [UDP] = {"udp", 5, MESSAGES | SOCKET | INET, make_udp, put_bytes},
    [UNIX_LISTENER] = {"unix_listener", 5, SOCKET | LISTENS | ON_A_THREAD, make_unix_listener, put_connection},
    [TCP_LISTENER] = {"tcp_listener", 3, SOCKET | LISTENS | ON_A_THREAD | INET, make_tcp_listener, put_connection},
    [REGULAR] = {"regular", 10, STORES, make_regular, NULL},
    [DIRECT] = {"direct", 1, STORES, make_direct, NULL},
    [EVENTFD] = {"eventfd", 5, COUNTS | ON_A_THREAD, make_eventfd, put_count},
    [PTY] = {"pty", 2, STREAM | ON_A_THREAD | SLOWLY | PAIR, make_pty, put_bytes},
    [DIRECTORY] = {"directory", 5, STORES, make_directory, NULL},
    [CLOSED] = {"closed", 2, 0, make_closed, NULL},
    [UNIX_FRESH] = {"unix_fresh", 4, SOCKET | UNCONNECTED, make_unix_fresh, put_acceptance},
    [TCP_FRESH] = {"tcp_fresh", 2, SOCKET | INET | UNCONNECTED, make_tcp_fresh, put_acceptance},
    [UDP_FRESH] = {"udp_fresh", 2, SOCKET | INET | UNCONNECTED, make_udp_fresh, NULL},
    [DEV_NULL] = {"dev_null", 1, 0, make_null, NULL},
    [DEV_ZERO] = {"dev_zero", 1, 0, make_zero, NULL},
    [FUTEX] = {"futex", 2, WAKES, make_futex, put_wake},
    [SIGNAL] = {"signal", 2, WAKES, make_signal, put_signal},
    [CHILD] = {"child", 1, 0, make_child, put_end},
};

void make_thing(run *r, thing *t, plan made) {
    memset(t, 0, sizeof *t);
    t->plan = made;
    t->row = &object_rows[made.kind];
    t->peer = t->helper = -1;
    t->fd = t->row->make(r, t);
    if (t->fd != NOWHERE && made.nonblocking)
        set_nonblocking(t->fd, true);
}

void end_thing(run *r, thing *t) {
    bool socket = t->row->traits & SOCKET;
    if (t->plan.kind == CHILD)
        end_child(t);
    struct sigaction now;
    if (t->plan.kind == SIGNAL && sigaction(t->signo, NULL, &now) == 0 && now.sa_handler != on_user_signal)
        broken(r, "signal %d: the action from before is not back", t->signo);
    for (unsigned i = 0; i < t->connections; i++)
        close_hard(t->connection[i]);
    if (t->peer >= 0)
        socket ? close_hard(t->peer) : (void)close(t->peer);
    if (!t->closed)
        socket ? close_hard(t->fd) : (void)close(t->fd);
    if (t->helper >= 0)
        close(t->helper);
    if (t->plan.kind == REGULAR || t->plan.kind == DIRECT) {
        char name[32];
        snprintf(name, sizeof name, "%s%d", t->plan.kind == REGULAR ? "file" : "direct", (int)(t - r->thing));
        unlinkat(t->plan.kind == REGULAR ? scratch_fd : disk_fd, name, 0);
    }
}

/* ---- What the other side takes out, and how it ends. ---- */

static bool wait_for(int fd, short events, int ms) {
    struct pollfd one = {.fd = fd, .events = events};
    return poll(&one, 1, ms) > 0;
}

void take(run *r, thing *t, uint32_t amount) {
    static unsigned char bytes[70000];
    int queued = 0;
    /* Not what operations add while this reads. */
    if (t->row->traits & STREAM && !(t->row->traits & (SLOWLY | INET)) && ioctl(t->peer, FIONREAD, &queued) == 0 &&
        queued > 0 && amount > (uint32_t)queued)
        amount = (uint32_t)queued;
    if (amount > sizeof bytes)
        amount = sizeof bytes;
    bool slow = t->row->traits & (SLOWLY | INET);
    uint64_t total = 0, hash = HASH_START;
    int64_t last = 0;
    unsigned messages = 0;
    while (total < amount) {
        /* What was sent must arrive. */
        if (slow && t->row->traits & STREAM && t->sent > t->taken && !t->inexact)
            wait_for(t->peer, POLLIN, 1000);
        if (t->row->traits & COUNTS && !wait_for(t->peer, POLLIN, 0))
            break;
        size_t room = amount - total;
        ssize_t moved = t->row->traits & SOCKET ? recv(t->peer, bytes, room, MSG_DONTWAIT)
                                                : read(t->peer, bytes, room);
        last = moved < 0 ? -errno : moved;
        if (moved <= 0)
            break;
        total += (uint64_t)moved;
        t->taken += (uint64_t)moved;
        hash = hash_bytes(hash, bytes, (size_t)moved);
        messages++;
        if (t->row->traits & (MESSAGES | COUNTS))
            break;
    }
    note(r, R_OUTSIDE, (int)(t - r->thing), last < 0 ? last : (int64_t)total,
         t->row->traits & MESSAGES ? messages : 0, hash);
}

void half_close(run *r, thing *t, uint32_t variant) {
    const int how = variant % 4 == 0 ? SHUT_RD : SHUT_WR;
    int result = shutdown(t->peer, how) == 0 ? 0 : -errno;
    if (result == 0 && how == SHUT_WR)
        t->ended = true;
    if (how == SHUT_RD)
        t->inexact = true;
    note(r, R_OUTSIDE, (int)(t - r->thing), result, 0, 0);
}

void hang_up(run *r, thing *t, bool reset) {
    if (reset && t->row->traits & INET)
        close_hard(t->peer);
    else
        close(t->peer);
    t->peer = -1;
    t->ended = true;
    t->reset = true;
    t->inexact = true;
    note(r, R_OUTSIDE, (int)(t - r->thing), 0, 0, 0);
}
