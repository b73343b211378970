/* The operations, one row each: what it occupies, what it may wait for, how it is made, what else it leaves behind. */
#include "differential.h"

#include <arpa/inet.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#define KIND(k) (UINT64_C(1) << (k))
#define STREAM_KINDS                                                                                                   \
    (KIND(PIPE_IN) | KIND(PIPE_OUT) | KIND(FIFO_IN) | KIND(UNIX_STREAM) | KIND(TCP) | KIND(PTY) | KIND(EVENTFD))
#define MESSAGE_KINDS (KIND(UNIX_DGRAM) | KIND(UNIX_SEQPACKET) | KIND(UDP))
#define FILE_KINDS (KIND(REGULAR) | KIND(DIRECT))
#define SOCKET_PAIRS (KIND(UNIX_STREAM) | KIND(TCP) | MESSAGE_KINDS)
#define LISTENERS (KIND(UNIX_LISTENER) | KIND(TCP_LISTENER))
#define FRESH (KIND(UNIX_FRESH) | KIND(TCP_FRESH) | KIND(UDP_FRESH))
#define EVERYTHING (~UINT64_C(0))

enum { GUARD = 32, POISON = 0xa5 };

/* The operation's memory, between two guards. */
static unsigned char *give(run *r, live *l, size_t size, bool to_be_sent) {
    const bool counts = r->thing[l->thing].row->traits & COUNTS; /* small numbers: large ones would wait for room */
    size_t alignment = 16;
    if (r->thing[l->thing].plan.kind == DIRECT && l->op->variant % 8 != 0)
        alignment = 4096;
    unsigned char *memory = get_memory(r, size + 2 * GUARD + alignment, 16) + GUARD;
    memory += -(uintptr_t)memory & (alignment - 1);
    memset(memory - GUARD, POISON, size + 2 * GUARD);
    if (to_be_sent)
        for (size_t i = 0; i < size; i++)
            memory[i] = counts ? i % 8 == 0 : (unsigned char)(l->number * 41 + (i * 3) + (i >> 8));
    l->buffer = memory;
    l->size = size;
    return memory;
}

static void *data(run *r, live *l, bool to_be_sent) {
    if (l->op->lends)
        return NULL;
    unsigned char *memory = give(r, l, l->op->length, to_be_sent);
    if (l->op->spoil == BAD_NULL)
        return NULL;
    if (l->op->spoil != BAD_ADDRESS)
        return memory;
    r->thing[l->thing].inexact = true; /* a terminal's bytes are lost, for one */
    return no_access;
}

static size_t length_of(const live *l) {
    return l->op->spoil == BAD_LENGTH ? SIZE_MAX - l->op->variant % 3 : l->op->length;
}

/* The operation's memory in up to four parts, some empty. The array is overwritten after the submit. */
static unsigned split(run *r, live *l, struct iovec *parts, bool to_be_sent) {
    unsigned char *memory = data(r, l, to_be_sent);
    unsigned count = l->op->variant / 16 % 5;
    size_t left = l->op->length;
    for (unsigned i = 0; i < count; i++) {
        size_t size = i + 1 == count ? left : left * ((l->op->variant >> (8 + i)) % 4) / 4;
        parts[i] = (struct iovec){.iov_base = memory, .iov_len = size};
        if (memory != NULL && memory != no_access)
            memory += size;
        left -= size;
    }
    if (count == 0)
        l->buffer = NULL;
    if (count > 0 && l->op->spoil == BAD_LENGTH)
        parts[0].iov_len = SIZE_MAX - l->op->variant % 3;
    return count;
}

static struct iovec *parts_to_scribble(run *r) {
    return (struct iovec *)get_memory(r, 4 * sizeof(struct iovec), 16);
}

static size_t count_of(const live *l, unsigned count) {
    return l->op->spoil == BAD_OFFSET ? 1025 + l->op->variant % 3 * 100000 : count;
}

static int64_t place_of(const live *l) {
    return l->op->spoil == BAD_OFFSET ? -1 - (int64_t)(l->op->variant % 3) : l->op->offset;
}

static int receive_flags(const live *l, const thing *t) {
    static const int some[] = {MSG_TRUNC, MSG_PEEK, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, MSG_DONTWAIT, MSG_WAITALL,
                               MSG_ERRQUEUE, MSG_OOB, 0x8000000, MSG_EOR, MSG_MORE};
    uint32_t v = l->op->variant >> 5;
    if (v % 5 != 0)
        return 0;
    int flag = some[v / 5 % COUNT_OF(some)];
    /* It would find the same again and again. */
    if (flag == MSG_PEEK && l->op->flags & (UPCALL_MULTISHOT | UPCALL_FULL))
        return 0;
    /* A socket without such a queue ignores it, but the ring waits for an error. */
    return flag == MSG_ERRQUEUE && !(t->row->traits & INET) ? 0 : flag;
}

static int send_flags(const live *l, const thing *t) {
    static const int some[] = {MSG_NOSIGNAL, MSG_EOR, MSG_DONTROUTE, MSG_CONFIRM, MSG_DONTWAIT, MSG_WAITALL, MSG_MORE,
                               0x8000000};
    uint32_t v = l->op->variant >> 5;
    if (v % 8 != 0)
        return 0;
    int flag = some[v / 8 % COUNT_OF(some)];
    /* On these it means to hold the data back for a while. */
    return flag == MSG_MORE && t->row->traits & INET ? 0 : flag;
}

/* ---- Streams and files. ---- */

static upcall_op make_nop(run *r, live *l, thing *t) {
    (void)r;
    (void)l;
    (void)t;
    return upcall_op_nop();
}

static upcall_op make_read(run *r, live *l, thing *t) {
    return upcall_op_read(t->fd, data(r, l, false), length_of(l));
}

static upcall_op make_write(run *r, live *l, thing *t) {
    return upcall_op_write(t->fd, data(r, l, true), length_of(l));
}

static upcall_op make_readv(run *r, live *l, thing *t) {
    struct iovec *parts = parts_to_scribble(r);
    unsigned count = split(r, l, parts, false);
    return upcall_op_readv(t->fd, parts, count_of(l, count));
}

static upcall_op make_writev(run *r, live *l, thing *t) {
    struct iovec *parts = parts_to_scribble(r);
    unsigned count = split(r, l, parts, true);
    return upcall_op_writev(t->fd, parts, count_of(l, count));
}

static upcall_op make_pread(run *r, live *l, thing *t) {
    return upcall_op_pread(t->fd, data(r, l, false), length_of(l), place_of(l));
}

static upcall_op make_pwrite(run *r, live *l, thing *t) {
    return upcall_op_pwrite(t->fd, data(r, l, true), length_of(l), place_of(l));
}

static upcall_op make_fsync(run *r, live *l, thing *t) {
    (void)r;
    (void)l;
    return upcall_op_fsync(t->fd);
}

static upcall_op make_fdatasync(run *r, live *l, thing *t) {
    (void)r;
    (void)l;
    return upcall_op_fdatasync(t->fd);
}

/* ---- Paths. ---- */

static const char *path_of(const live *l) {
    static const char *const names[] = {"present", "missing", "folder", "present/x", "", "circle", "new", "fifo0",
                                        "folder/inside", "device"};
    return l->op->spoil == BAD_NULL ? NULL : names[l->op->variant % COUNT_OF(names)];
}

static int directory_of(const live *l, const thing *t) {
    return l->op->variant / 16 % 4 == 0 ? t->fd : scratch_fd;
}

/* A link or a rename may have made it one. */
static bool may_be_fifo(const char *path) {
    return path != NULL && (strncmp(path, "fifo", 4) == 0 || strcmp(path, "new") == 0 || strcmp(path, "missing") == 0);
}

/* Neither waits for the other side, nor depends on when the program closes what it opened before. */
static int as_for_fifo(int flags) {
    return (flags & O_ACCMODE) == 3 ? flags : (flags & ~O_ACCMODE) | O_RDWR | O_NONBLOCK;
}

static upcall_op make_open(run *r, live *l, thing *t) {
    static const int some[] = {O_RDONLY, O_RDWR, O_WRONLY, O_RDONLY | O_DIRECTORY, O_PATH, O_RDWR | O_CREAT | O_EXCL,
                               O_RDWR | O_CREAT, O_RDONLY | O_NOFOLLOW, O_RDWR | O_TMPFILE, O_WRONLY | O_APPEND,
                               O_RDONLY | O_DIRECT, O_RDWR | O_TRUNC, 3};
    (void)r;
    int flags = some[l->op->variant / 64 % COUNT_OF(some)];
    if (may_be_fifo(path_of(l)))
        flags = as_for_fifo(flags);
    return upcall_op_open(directory_of(l, t), path_of(l), flags, 0640);
}

static upcall_op make_statx(run *r, live *l, thing *t) {
    static const int some[] = {0, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, AT_STATX_FORCE_SYNC, 0x8000000};
    (void)r;
    memset(&l->statx, POISON, sizeof l->statx);
    return upcall_op_statx(directory_of(l, t), path_of(l), some[l->op->variant / 64 % COUNT_OF(some)],
                           l->op->variant / 512 % 16 == 0 ? STATX__RESERVED : STATX_BASIC_STATS,
                           l->op->spoil == BAD_ADDRESS ? NULL : &l->statx);
}

static upcall_op make_openat2(run *r, live *l, thing *t) {
    static const uint64_t flags[] = {O_RDONLY, O_RDWR, O_WRONLY | O_CREAT, O_PATH, O_RDONLY | O_DIRECTORY, O_RDWR | O_TMPFILE,
                                     O_RDONLY | O_CLOEXEC, UINT64_C(1) << 40, O_RDWR | O_CREAT | O_EXCL, 3};
    static const uint64_t resolve[] = {0, 0, 0, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT, RESOLVE_NO_XDEV,
                                       RESOLVE_NO_MAGICLINKS, RESOLVE_CACHED, 0x1000};
    const uint32_t v = l->op->variant;
    struct open_how *how = (struct open_how *)get_memory(r, 2 * sizeof *how, 16);
    memset(how, 0, 2 * sizeof *how);
    how->flags = flags[v / 64 % COUNT_OF(flags)];
    if (may_be_fifo(path_of(l)))
        how->flags = (how->flags & ~(uint64_t)UINT32_MAX) | (unsigned)as_for_fifo((int)how->flags);
    how->mode = how->flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) || v / 1024 % 8 == 0 ? 0640 : 0;
    how->resolve = resolve[v / 8192 % COUNT_OF(resolve)];
    size_t size = sizeof *how;
    if (v / 131072 % 8 == 0)
        size += 8; /* a later version's, all zero */
    if (l->op->spoil == BAD_RESERVED)
        how[1].flags = size > sizeof *how; /* and not */
    if (l->op->spoil == BAD_LENGTH)
        size = l->op->variant % 24;
    l->copied = how;
    l->copied_size = 2 * sizeof *how;
    return upcall_op_openat2(directory_of(l, t), path_of(l), l->op->spoil == BAD_ADDRESS ? NULL : how, size);
}

static uint64_t leaves_statx(run *r, live *l) {
    (void)r;
    if (l->final.result < 0)
        return hash_bytes(HASH_START, &l->statx, sizeof l->statx);
    uint64_t hash = hash_bytes(HASH_START, &l->statx.stx_mode, sizeof l->statx.stx_mode);
    if (S_ISREG(l->statx.stx_mode))
        hash = hash_bytes(hash, &l->statx.stx_size, sizeof l->statx.stx_size);
    hash = hash_bytes(hash, &l->statx.stx_nlink, sizeof l->statx.stx_nlink);
    return hash_bytes(hash, &l->statx.stx_mask, sizeof l->statx.stx_mask);
}

static upcall_op make_close(run *r, live *l, thing *t) {
    (void)r;
    (void)l;
    return upcall_op_close(t->fd);
}

/* ---- Sockets. ---- */

static upcall_op make_socket(run *r, live *l, thing *t) {
    static const int domains[] = {AF_INET, AF_UNIX, AF_INET6, AF_UNSPEC, 199, -1};
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM | SOCK_NONBLOCK, SOCK_RAW, 77, 0};
    static const int protocols[] = {0, 0, 0, IPPROTO_TCP, IPPROTO_UDP, 255, -1};
    (void)r;
    (void)t;
    uint32_t v = l->op->variant;
    return upcall_op_socket(domains[v % COUNT_OF(domains)], types[v / 8 % COUNT_OF(types)],
                            protocols[v / 64 % COUNT_OF(protocols)]);
}

/* An address for bind and connect, in memory that is overwritten after the submit. */
static struct sockaddr *address_of(run *r, live *l, thing *t, bool to_connect, socklen_t *length) {
    struct sockaddr_storage *address = (struct sockaddr_storage *)get_memory(r, sizeof *address, 16);
    memset(address, 0, sizeof *address);
    *length = sizeof(struct sockaddr_in);
    switch (l->op->variant % (to_connect ? 10 : 7)) {
    case 0: /* too short */
        address->ss_family = AF_INET;
        *length = 3;
        break;
    case 1: { /* nobody is there */
        struct sockaddr_un *name = (struct sockaddr_un *)address;
        name->sun_family = AF_UNIX;
        snprintf(name->sun_path, sizeof name->sun_path, "%s/%s", scratch_directory,
                 l->op->variant / 16 % 2 ? "missing" : "present");
        *length = sizeof *name;
        break;
    }
    case 2:
        address->ss_family = 199;
        break;
    case 3: /* a port that nobody listens on */
        *(struct sockaddr_in *)address = (struct sockaddr_in){
            .sin_family = AF_INET, .sin_port = htons(to_connect ? 1 : 0), .sin_addr = {htonl(INADDR_LOOPBACK)}};
        break;
    case 4:
        address->ss_family = AF_UNSPEC;
        break;
    case 5: /* the kernel chooses a name */
        address->ss_family = AF_UNIX;
        *length = sizeof(sa_family_t);
        break;
    default:
        if (t->address_length != 0) {
            memcpy(address, &t->address, t->address_length);
            *length = t->address_length;
        }
    }
    if (l->op->spoil == BAD_LENGTH)
        *length = sizeof *address + 1 + l->op->variant % 100;
    return l->op->spoil == BAD_NULL ? NULL : (struct sockaddr *)address;
}

static upcall_op make_bind(run *r, live *l, thing *t) {
    socklen_t length;
    const struct sockaddr *address = address_of(r, l, t, false, &length);
    return upcall_op_bind(t->fd, address, length);
}

static upcall_op make_connect(run *r, live *l, thing *t) {
    socklen_t length;
    t->inexact = true; /* AF_UNSPEC ends a connection */
    t->reset = t->reset || t->plan.kind == TCP;
    const struct sockaddr *address = address_of(r, l, t, true, &length);
    return upcall_op_connect(t->fd, address, length);
}

static upcall_op make_listen(run *r, live *l, thing *t) {
    static const int backlogs[] = {64, 64, 0, -1};
    (void)r;
    /* A short backlog would make a connect of the other side wait. */
    return upcall_op_listen(t->fd, t->row->traits & LISTENS ? 64 : backlogs[l->op->variant % 4]);
}

static upcall_op make_accept(run *r, live *l, thing *t) {
    static const int some[] = {0, 0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC, 0x4000};
    uint32_t v = l->op->variant;
    (void)r;
    memset(&l->name, POISON, sizeof l->name);
    l->name_length = v / 64 % 4 == 0 ? 1 : sizeof l->name;
    bool wants = v / 8 % 3 == 0;
    return upcall_op_accept(t->fd, wants ? (struct sockaddr *)&l->name : NULL,
                            wants && l->op->spoil != BAD_NULL ? &l->name_length : NULL, some[v % COUNT_OF(some)]);
}

static uint64_t leaves_name(run *r, live *l) {
    (void)r;
    uint64_t hash = hash_bytes(HASH_START, &l->name_length, sizeof l->name_length);
    /* The port is chance. */
    return hash_bytes(hash, &l->name, sizeof l->name.ss_family);
}

static upcall_op make_recv(run *r, live *l, thing *t) {
    return upcall_op_recv(t->fd, data(r, l, false), length_of(l), receive_flags(l, t));
}

static upcall_op make_send(run *r, live *l, thing *t) {
    return upcall_op_send(t->fd, data(r, l, true), length_of(l), send_flags(l, t));
}

static upcall_op make_recvmsg(run *r, live *l, thing *t) {
    uint32_t v = l->op->variant;
    memset(&l->message, 0, sizeof l->message);
    memset(&l->name, POISON, sizeof l->name);
    memset(l->control, POISON, sizeof l->control);
    l->message.msg_flags = 0x5a;
    if (v % 3 != 0) {
        l->message.msg_name = &l->name;
        l->message.msg_namelen = v % 3 == 1 ? sizeof l->name : 16;
    }
    if (v / 4 % 3 == 0) {
        l->message.msg_control = l->control;
        l->message.msg_controllen = sizeof l->control;
    }
    if (l->op->lends) {
        l->message.msg_namelen = (socklen_t)(v % 3 * 8);
        l->message.msg_controllen = v / 4 % 3 * 8;
        l->message.msg_name = l->message.msg_control = NULL;
    } else {
        l->message.msg_iov = l->part;
        l->message.msg_iovlen = count_of(l, split(r, l, l->part, false));
    }
    return upcall_op_recvmsg(t->fd, &l->message, receive_flags(l, t));
}

static uint64_t leaves_message(run *r, live *l) {
    if (l->op->lends)
        return 0;
    const thing *t = &r->thing[l->thing];
    uint64_t hash = hash_bytes(HASH_START, &l->message.msg_namelen, sizeof l->message.msg_namelen);
    hash = hash_bytes(hash, &l->message.msg_controllen, sizeof l->message.msg_controllen);
    hash = hash_bytes(hash, &l->message.msg_flags, sizeof l->message.msg_flags);
    if (l->final.result >= 0 && l->message.msg_flags & MSG_CMSG_CLOEXEC)
        broken(r, "operation %d: msg_flags has MSG_CMSG_CLOEXEC", l->number);
    /* Ports and chosen names are chance. */
    return t->row->traits & INET ? hash : hash_bytes(hash, &l->name, sizeof l->name.ss_family);
}

static upcall_op make_sendmsg(run *r, live *l, thing *t) {
    struct msghdr *message = (struct msghdr *)get_memory(r, sizeof *message, 16);
    uint32_t v = l->op->variant;
    memset(message, 0, sizeof *message);
    message->msg_iov = parts_to_scribble(r);
    message->msg_iovlen = count_of(l, split(r, l, message->msg_iov, true));
    if (v % 4 == 0 && t->address_length != 0) {
        struct sockaddr_storage *to = (struct sockaddr_storage *)get_memory(r, sizeof *to, 16);
        memcpy(to, &t->address, sizeof *to);
        message->msg_name = to;
        message->msg_namelen = t->address_length;
    }
    return upcall_op_sendmsg(t->fd, message, send_flags(l, t));
}

static upcall_op make_shutdown(run *r, live *l, thing *t) {
    static const int hows[] = {SHUT_RD, SHUT_WR, SHUT_RDWR, 3, -1};
    (void)r;
    t->inexact = true;
    int how = hows[l->op->variant % COUNT_OF(hows)];
    /* accept(2) on it differs with O_NONBLOCK; a connect after it, whether it waits. */
    if (t->plan.kind == UNIX_LISTENER || t->row->traits & UNCONNECTED)
        how = -1;
    t->reset = t->reset || (t->row->traits & INET && how != SHUT_WR); /* what comes now is answered by a reset */
    return upcall_op_shutdown(t->fd, how);
}

/* ---- Readiness, time, computation. ---- */

static upcall_op make_poll(run *r, live *l, thing *t) {
    static const short some[] = {POLLIN, POLLIN, POLLOUT, POLLIN | POLLOUT, POLLPRI, POLLRDHUP, POLLIN | POLLRDHUP, 0,
                                 POLLRDNORM, POLLWRBAND};
    (void)r;
    return upcall_op_poll(t->fd, (uint32_t)some[l->op->variant % COUNT_OF(some)]);
}

static upcall_op make_sleep(run *r, live *l, thing *t) {
    (void)r;
    (void)t;
    bool far = l->op->variant % 2 || (l->op->flags & UPCALL_MULTISHOT && l->op->deadline == SHORT);
    if (l->op->variant % 11 == 0)
        return upcall_op_sleep(0);
    return upcall_op_sleep(far ? 100 * UPCALL_SECOND : 100 * UPCALL_MICROSECOND);
}

static upcall_op make_sleep_until(run *r, live *l, thing *t) {
    (void)t;
    uint64_t now = upcall_now(r->loop);
    switch (l->op->variant % 4) {
    case 0: return upcall_op_sleep_until(0);
    case 1: return upcall_op_sleep_until(now);
    case 2: return upcall_op_sleep_until(now + 100 * UPCALL_MICROSECOND);
    default: return upcall_op_sleep_until(now + 100 * UPCALL_SECOND);
    }
}

static int64_t compute(void *arg) {
    return (int64_t)(intptr_t)arg - 3;
}

static upcall_op make_work(run *r, live *l, thing *t) {
    (void)r;
    (void)t;
    return upcall_op_work(l->op->spoil == BAD_NULL ? NULL : compute, (void *)(uintptr_t)(l->op->variant % 8));
}

/* ---- The rest, by family. ---- */

static upcall_op make_preadv(run *r, live *l, thing *t) {
    static const int some[] = {0, 0, 0, RWF_HIPRI, 0x8000000, RWF_APPEND};
    struct iovec *parts = parts_to_scribble(r);
    unsigned count = split(r, l, parts, false);
    return upcall_op_preadv(t->fd, parts, count, place_of(l),
                            t->plan.kind == DIRECTORY ? 0 : some[l->op->variant / 1024 % COUNT_OF(some)]);
}

static upcall_op make_pwritev(run *r, live *l, thing *t) {
    static const int some[] = {0, 0, RWF_APPEND, RWF_DSYNC, 0x8000000};
    struct iovec *parts = parts_to_scribble(r);
    unsigned count = split(r, l, parts, true);
    return upcall_op_pwritev(t->fd, parts, count, place_of(l), some[l->op->variant / 1024 % COUNT_OF(some)]);
}

static upcall_op make_sync_range(run *r, live *l, thing *t) {
    static const unsigned some[] = {0, 2, 7, 8};
    (void)r;
    return upcall_op_sync_range(t->fd, place_of(l), l->op->length, some[l->op->variant % COUNT_OF(some)]);
}

static upcall_op make_fallocate(run *r, live *l, thing *t) {
    static const int some[] = {0, 1, 3, 2, 0x100, 0x11};
    (void)r;
    return upcall_op_fallocate(t->fd, some[l->op->variant % COUNT_OF(some)], place_of(l),
                               l->op->variant % 7 == 0 ? -1 : (int64_t)l->op->length);
}

static upcall_op make_ftruncate(run *r, live *l, thing *t) {
    (void)r;
    return upcall_op_ftruncate(t->fd, l->op->variant % 9 == 0 ? INT64_C(1) << 21 : place_of(l));
}

static upcall_op make_fadvise(run *r, live *l, thing *t) {
    static const int some[] = {0, 1, 2, 3, 4, 5, 99};
    (void)r;
    return upcall_op_fadvise(t->fd, place_of(l), l->op->length, some[l->op->variant % COUNT_OF(some)]);
}

static upcall_op make_readdir(run *r, live *l, thing *t) {
    return upcall_op_readdir(t->fd, data(r, l, false), length_of(l));
}

static upcall_op make_madvise(run *r, live *l, thing *t) {
    static const int some[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_POPULATE_READ, 99};
    (void)r;
    (void)t;
    const uint32_t v = l->op->variant;
    unsigned char *at = l->op->spoil == BAD_ADDRESS ? no_access : advised + (v / 8 % 4 << 12) + (v / 32 % 8 == 0);
    return upcall_op_madvise(at, v / 256 % 3 * 3000, some[v % COUNT_OF(some)]);
}

static upcall_op make_recvfrom(run *r, live *l, thing *t) {
    memset(&l->name, POISON, sizeof l->name);
    l->name_length = l->op->variant % 5 == 0 ? 1 : sizeof l->name;
    const bool wants = l->op->variant % 3 != 0;
    return upcall_op_recvfrom(t->fd, data(r, l, false), length_of(l), receive_flags(l, t),
                              wants ? (struct sockaddr *)&l->name : NULL, wants ? &l->name_length : NULL);
}

static upcall_op make_sendto(run *r, live *l, thing *t) {
    struct sockaddr_storage *to = (struct sockaddr_storage *)get_memory(r, sizeof *to, 16);
    memcpy(to, &t->address, sizeof *to);
    const bool wants = t->address_length != 0 && l->op->variant % 3 != 0;
    return upcall_op_sendto(t->fd, data(r, l, true), length_of(l), send_flags(l, t),
                            wants ? (struct sockaddr *)to : NULL, wants ? t->address_length : 0);
}

static upcall_op make_getsockopt(run *r, live *l, thing *t) {
    static const int some[][2] = {{SOL_SOCKET, SO_TYPE}, {SOL_SOCKET, SO_ERROR}, {SOL_SOCKET, SO_DOMAIN},
                                  {SOL_SOCKET, SO_RCVBUF}, {SOL_SOCKET, 9999}, {IPPROTO_TCP, 1}, {IPPROTO_IP, 2}};
    const int *chosen = some[l->op->variant % COUNT_OF(some)];
    (void)r;
    memset(l->control, POISON, sizeof l->control);
    l->name_length = l->op->variant / 8 % 4 == 0 ? 2 : sizeof l->control;
    return upcall_op_getsockopt(t->fd, chosen[0], chosen[1], l->control, &l->name_length);
}

static uint64_t leaves_option(run *r, live *l) {
    (void)r;
    return hash_bytes(hash_bytes(HASH_START, l->control, sizeof l->control), &l->name_length, sizeof l->name_length);
}

static upcall_op make_setsockopt(run *r, live *l, thing *t) {
    static const int some[][2] = {{SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, 9999},
                                  {SOL_SOCKET, SO_TYPE}, {IPPROTO_IP, 2}};
    const int *chosen = some[l->op->variant % COUNT_OF(some)];
    int *value = (int *)get_memory(r, sizeof *value, 16);
    *value = 1;
    return upcall_op_setsockopt(t->fd, chosen[0], chosen[1], value, l->op->variant / 8 % 4 == 0 ? 1 : sizeof *value);
}

static upcall_op make_pipe(run *r, live *l, thing *t) {
    static const int some[] = {0, O_NONBLOCK, O_DIRECT, O_CLOEXEC, 0x40};
    (void)r;
    (void)t;
    memset(l->control, 0xff, sizeof l->control);
    return upcall_op_pipe((int *)(void *)l->control, some[l->op->variant % COUNT_OF(some)]);
}

static uint64_t leaves_pipe(run *r, live *l) {
    uint64_t hash = HASH_START;
    int fds[2];
    memcpy(fds, l->control, sizeof fds);
    for (int i = 0; i < 2 && l->final.result == 0; i++) {
        const int of_descriptor = fcntl(fds[i], F_GETFD), of_file = fcntl(fds[i], F_GETFL);
        if (of_descriptor != FD_CLOEXEC)
            broken(r, "operation %d: an end of the pipe is not close-on-exec", l->number);
        hash = hash_bytes(hash, &of_file, sizeof of_file);
        close(fds[i]);
    }
    return l->final.result == 0 ? hash : hash_bytes(hash, l->control, sizeof l->control);
}

/* Names that may come and go. */
static const char *passing_name(uint32_t variant) {
    static const char *const names[] = {"new", "new", "missing", "folder", "present/x", "", "folder/none/x"};
    return names[variant % COUNT_OF(names)];
}

static upcall_op make_rename(run *r, live *l, thing *t) {
    static const unsigned some[] = {0, 0, 1, 2, 3, 0x100};
    (void)r;
    uint32_t v = l->op->variant;
    const char *old = passing_name(v);
    return upcall_op_rename(directory_of(l, t), strcmp(old, "folder") == 0 ? "new" : old, scratch_fd, passing_name(v / 8),
                            some[v / 64 % COUNT_OF(some)] & (strcmp(passing_name(v / 8), "folder") == 0 ? 1u : ~0u));
}

static upcall_op make_unlink(run *r, live *l, thing *t) {
    static const int some[] = {0, 0, AT_REMOVEDIR, 0x8000000};
    (void)r;
    return upcall_op_unlink(directory_of(l, t), passing_name(l->op->variant), some[l->op->variant / 8 % 4]);
}

static upcall_op make_mkdir(run *r, live *l, thing *t) {
    (void)r;
    return upcall_op_mkdir(directory_of(l, t), passing_name(l->op->variant), 0750);
}

static upcall_op make_symlink(run *r, live *l, thing *t) {
    (void)r;
    return upcall_op_symlink(l->op->variant / 8 % 4 == 0 ? "" : "present", directory_of(l, t), passing_name(l->op->variant));
}

static upcall_op make_hardlink(run *r, live *l, thing *t) {
    static const int some[] = {0, 0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH, 0x8000000};
    return upcall_op_hardlink(scratch_fd, l->op->variant / 8 % 3 == 0 ? path_of(l) : "present", directory_of(l, t),
                              passing_name(l->op->variant), some[(r != NULL ? l->op->variant / 64 : 0) % COUNT_OF(some)]);
}

/* ---- Extended attributes. ---- */

static const char *attribute_of(const live *l) {
    static const char *const names[] = {"user.a", "user.a", "user.b", "trusted.a", "bad", "", "security.none", "user.none"};
    return l->op->spoil == BAD_NULL ? NULL : names[l->op->variant % COUNT_OF(names)];
}

static char *path_with_attributes(run *r, const live *l) {
    static const char *const names[] = {"present", "present", "folder", "missing", "present/x", "circle"};
    char *path = (char *)get_memory(r, 128, 16);
    snprintf(path, 128, "%s/%s", scratch_directory, names[l->op->variant / 16 % COUNT_OF(names)]);
    r->attributes = true;
    return path;
}

static size_t room_for_value(const live *l) {
    static const size_t sizes[] = {0, 3, 64, 64};
    return sizes[l->op->variant / 256 % COUNT_OF(sizes)];
}

static uint64_t leaves_value(run *r, live *l) {
    (void)r;
    return hash_bytes(HASH_START, l->buffer, 64);
}

static upcall_op make_fgetxattr(run *r, live *l, thing *t) {
    return upcall_op_fgetxattr(t->fd, attribute_of(l), give(r, l, 64, false), room_for_value(l));
}

static upcall_op make_getxattr(run *r, live *l, thing *t) {
    (void)t;
    char *path = path_with_attributes(r, l);
    return upcall_op_getxattr(path, attribute_of(l), give(r, l, 64, false), room_for_value(l));
}

static const void *value_of(run *r, live *l, size_t *size) {
    static const size_t sizes[] = {0, 3, 5, 64, 64, 200, 65537};
    *size = sizes[l->op->variant / 256 % COUNT_OF(sizes)];
    l->copied_size = *size;
    l->copied = get_memory(r, *size + 1, 16);
    memset(l->copied, l->number, *size);
    return *size == 0 ? NULL : l->copied;
}

static int attribute_flags(const live *l) {
    static const int some[] = {0, 0, XATTR_CREATE, XATTR_REPLACE, 0x100};
    return some[l->op->variant / 4096 % COUNT_OF(some)];
}

static upcall_op make_setxattr(run *r, live *l, thing *t) {
    size_t size;
    (void)t;
    char *path = path_with_attributes(r, l);
    const void *value = value_of(r, l, &size);
    return upcall_op_setxattr(path, attribute_of(l), value, size, attribute_flags(l));
}

static upcall_op make_fsetxattr(run *r, live *l, thing *t) {
    size_t size;
    r->attributes = true;
    const void *value = value_of(r, l, &size);
    /* The devices are not the tester's: what is set on them stays. */
    const bool foreign = t->plan.kind == DEV_NULL || t->plan.kind == DEV_ZERO;
    return upcall_op_fsetxattr(foreign ? NOWHERE : t->fd, attribute_of(l), value, size, attribute_flags(l));
}

/* ---- Processes and threads. ---- */

static uint32_t no_futex;

static uint64_t futex_mask(const live *l) {
    static const uint64_t masks[] = {~0u, ~0u, 2, 4, 0, UINT64_C(1) << 32};
    return masks[l->op->variant / 4 % COUNT_OF(masks)];
}

static uint32_t futex_flags(const live *l) {
    static const uint32_t some[] = {0, 0, UPCALL_FUTEX_PRIVATE, 2, 2 | UPCALL_FUTEX_PRIVATE, 0x40};
    return some[l->op->variant / 32 % COUNT_OF(some)];
}

static uint32_t *futex_of(const live *l, const thing *t) {
    uint32_t *word = t->word != NULL ? t->word : &no_futex;
    return l->op->spoil == BAD_NULL ? NULL : l->op->spoil == BAD_ADDRESS ? (uint32_t *)((char *)word + 1) : word;
}

static upcall_op make_futex_wait(run *r, live *l, thing *t) {
    (void)r;
    /* A word that nobody wakes has another value. */
    const bool other = t->word == NULL || l->op->variant % 4 == 0;
    return upcall_op_futex_wait(futex_of(l, t), other, futex_mask(l), futex_flags(l));
}

static upcall_op make_futex_wake(run *r, live *l, thing *t) {
    (void)r;
    return upcall_op_futex_wake(futex_of(l, t), l->op->variant % 4, futex_mask(l), futex_flags(l));
}

static upcall_op make_signal(run *r, live *l, thing *t) {
    static const int bad[] = {0, 65, SIGKILL, SIGSTOP, SIGSEGV, -1};
    (void)r;
    return upcall_op_signal(t->signo == 0 || l->op->spoil == BAD_LENGTH ? bad[l->op->variant % COUNT_OF(bad)] : t->signo);
}

/* `due`: the child is what it waits for. */
static upcall_op make_waitid(run *r, live *l, thing *t) {
    static const int some[] = {WEXITED, WEXITED, WEXITED, WEXITED | WNOWAIT, WEXITED | WSTOPPED, WEXITED | WNOHANG, 0, 0x100};
    (void)r;
    const uint32_t v = l->op->variant;
    const int options = some[v % COUNT_OF(some)];
    void *info = v / 8 % 4 == 0 ? NULL : &l->info;
    memset(&l->info, POISON, sizeof l->info);
    l->due = t->child != 0;
    if (t->child != 0 && v / 32 % 2 == 0 && t->fd != NOWHERE)
        return upcall_op_waitid(P_PIDFD, (uint32_t)t->fd, info, options);
    if (t->child != 0 && v / 64 % 8 != 0)
        return upcall_op_waitid(P_PID, (uint32_t)t->child, info, options);
    l->due = false;
    static const uint32_t types[] = {P_PID, P_PIDFD, 77, P_PID};
    const uint32_t nobody[] = {(uint32_t)getpid(), NOWHERE, 1, 0};
    return upcall_op_waitid(types[v / 512 % 4], nobody[v / 512 % 4], info, options);
}

static uint64_t leaves_info(run *r, live *l) {
    (void)r;
    if (l->final.result != 0 || l->submitted.addr == 0)
        return hash_bytes(HASH_START, &l->info, sizeof l->info);
    uint64_t hash = hash_bytes(HASH_START, &l->info.si_signo, sizeof l->info.si_signo);
    hash = hash_bytes(hash, &l->info.si_code, sizeof l->info.si_code);
    return hash_bytes(hash, &l->info.si_status, sizeof l->info.si_status);
}

/* Nothing that needs a name server. */
static upcall_op make_getaddrinfo(run *r, live *l, thing *t) {
    static const char *const nodes[] = {"127.0.0.1", "::1", "1.2.3", "no number", "", NULL};
    static const char *const services[] = {"80", "0", NULL, "http", "99999", "-1"};
    static const int families[] = {AF_UNSPEC, AF_INET, AF_INET6, 199}, types[] = {0, SOCK_STREAM, SOCK_DGRAM, 77};
    const uint32_t v = l->op->variant;
    struct addrinfo *hints = (struct addrinfo *)get_memory(r, sizeof *hints, 16);
    (void)t;
    *hints = (struct addrinfo){.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | (v % 8 == 0 ? AI_PASSIVE : 0),
                               .ai_family = families[v / 8 % 4], .ai_socktype = types[v / 32 % 4]};
    if (v / 128 % 16 == 0)
        hints->ai_flags |= 0x8000000;
    l->copied = hints;
    l->copied_size = sizeof *hints;
    l->found = NULL;
    return upcall_op_getaddrinfo(nodes[v / 2048 % COUNT_OF(nodes)], services[v / 32768 % COUNT_OF(services)], hints,
                                 l->op->spoil == BAD_NULL ? NULL : &l->found);
}

static uint64_t leaves_addresses(run *r, live *l) {
    uint64_t hash = HASH_START;
    if (l->final.result != 0 && l->found != NULL)
        broken(r, "operation %d: addresses were written, result %lld", l->number, (long long)l->final.result);
    for (const struct addrinfo *a = l->found; a != NULL; a = a->ai_next) {
        const int words[] = {a->ai_flags, a->ai_family, a->ai_socktype, a->ai_protocol};
        hash = hash_bytes(hash, words, sizeof words);
        hash = hash_bytes(hash, a->ai_addr, a->ai_addrlen);
    }
    if (l->found != NULL)
        freeaddrinfo(l->found);
    l->found = NULL;
    return hash;
}

/* ---- From one object to another. ---- */

static int second_fd(const run *r, const live *l) {
    return l->second < 0 ? sink_fd : r->thing[l->second].fd;
}

/* Mostly what such a descriptor can have. */
static int64_t place_in(const live *l, const thing *t, unsigned shift) {
    const bool file = t != NULL && t->row->traits & STORES;
    const uint32_t v = l->op->variant >> shift;
    if (l->op->spoil == BAD_OFFSET)
        return -2;
    return v % (file ? 2 : 16) != 0 ? -1 : l->op->offset > INT64_MAX / 2 ? l->op->offset : l->op->offset / 2;
}

static const thing *second_thing(const run *r, const live *l) {
    return l->second < 0 ? NULL : &r->thing[l->second];
}

static uint32_t splice_flags(const live *l) {
    static const uint32_t some[] = {0, 0, 0, 1, 4, 2, 0x100, 0};
    return some[l->op->variant / 8 % COUNT_OF(some)];
}

static upcall_op make_splice(run *r, live *l, thing *t) {
    return upcall_op_splice(t->fd, place_in(l, t, 8), second_fd(r, l), place_in(l, second_thing(r, l), 12), length_of(l),
                            splice_flags(l));
}

static upcall_op make_tee(run *r, live *l, thing *t) {
    return upcall_op_tee(t->fd, second_fd(r, l), length_of(l), splice_flags(l));
}

static upcall_op make_sendfile(run *r, live *l, thing *t) {
    return upcall_op_sendfile(second_fd(r, l), t->fd, place_in(l, t, 8), length_of(l));
}

static upcall_op make_copy_range(run *r, live *l, thing *t) {
    return upcall_op_copy_range(t->fd, place_in(l, t, 8), second_fd(r, l), place_in(l, second_thing(r, l), 12), length_of(l),
                                l->op->variant / 8 % 16 == 0);
}

const operation_row operation_rows[] = {
    {"nop", NOTHING, ENDS, 0, EVERYTHING, make_nop, NULL},
    {"read", IN, FOR_IN, CURSOR | FULLY | LENDS | GETS, STREAM_KINDS | KIND(REGULAR), make_read, NULL},
    {"write", OUT, FOR_OUT, CURSOR | FULLY | PUTS, STREAM_KINDS | KIND(REGULAR), make_write, NULL},
    {"readv", IN, FOR_IN, CURSOR | FULLY | GETS, STREAM_KINDS | FILE_KINDS, make_readv, NULL},
    {"writev", OUT, FOR_OUT, CURSOR | FULLY | PUTS, STREAM_KINDS | FILE_KINDS, make_writev, NULL},
    {"pread", IN, ENDS, FULLY | GETS, FILE_KINDS, make_pread, NULL},
    {"pwrite", OUT, ENDS, FULLY | PUTS, FILE_KINDS, make_pwrite, NULL},
    {"fsync", OUT, ENDS, 0, FILE_KINDS | KIND(DIRECTORY), make_fsync, NULL},
    {"fdatasync", OUT, ENDS, 0, FILE_KINDS, make_fdatasync, NULL},
    {"open", STATE, ENDS, MAKES_FD | PATHS, KIND(DIRECTORY) | KIND(REGULAR), make_open, NULL},
    {"statx", STATE, ENDS, PATHS, KIND(DIRECTORY) | KIND(REGULAR), make_statx, leaves_statx},
    {"close", STATE, ENDS, CLOSES, EVERYTHING, make_close, NULL},
    {"socket", NOTHING, ENDS, MAKES_FD, FRESH, make_socket, NULL},
    {"bind", STATE, ENDS, 0, FRESH, make_bind, NULL},
    {"listen", STATE, ENDS, 0, FRESH, make_listen, NULL},
    {"connect", STATE, ENDS, 0, FRESH, make_connect, NULL},
    {"accept", IN, FOR_IN, REPEATS | MAKES_FD, LISTENERS, make_accept, leaves_name},
    {"accept", IN, FOR_IN, REPEATS | MAKES_FD, LISTENERS, make_accept, leaves_name},
    {"recv", IN, FOR_IN, FULLY | REPEATS | LENDS | LENDS_ALWAYS | GETS, SOCKET_PAIRS, make_recv, NULL},
    {"recv", IN, FOR_IN, FULLY | REPEATS | LENDS | LENDS_ALWAYS | GETS, SOCKET_PAIRS, make_recv, NULL},
    {"send", OUT, FOR_OUT, FULLY | PUTS | ZERO_COPIES, SOCKET_PAIRS, make_send, NULL},
    {"recvmsg", IN, FOR_IN, FULLY | REPEATS | LENDS | LENDS_ALWAYS | GETS, SOCKET_PAIRS, make_recvmsg, leaves_message},
    {"sendmsg", OUT, FOR_OUT, FULLY | PUTS | ZERO_COPIES, SOCKET_PAIRS, make_sendmsg, NULL},
    {"shutdown", STATE, ENDS, 0, SOCKET_PAIRS | KIND(TCP_LISTENER), make_shutdown, NULL},
    {"poll", IN | OUT, FOR_EVENTS, REPEATS | COUNTLESS, EVERYTHING, make_poll, NULL},
    {"sleep", NOTHING, FOR_CLOCK, REPEATS | COUNTLESS, EVERYTHING, make_sleep, NULL},
    {"sleep_until", NOTHING, FOR_CLOCK, 0, EVERYTHING, make_sleep_until, NULL},
    {"preadv", IN, ENDS, FULLY | GETS, FILE_KINDS, make_preadv, NULL},
    {"pwritev", OUT, ENDS, FULLY | PUTS, FILE_KINDS, make_pwritev, NULL},
    {"sync_range", OUT, ENDS, 0, FILE_KINDS, make_sync_range, NULL},
    {"fallocate", OUT, ENDS, 0, FILE_KINDS, make_fallocate, NULL},
    {"ftruncate", OUT, ENDS, 0, FILE_KINDS, make_ftruncate, NULL},
    {"fadvise", OUT, ENDS, 0, FILE_KINDS, make_fadvise, NULL},
    {"readdir", IN, ENDS, PATHS | CURSOR | REPEATS | LENDS | LENDS_ALWAYS | LISTS, KIND(DIRECTORY), make_readdir, NULL},
    {"recvfrom", IN, FOR_IN, FULLY | GETS, SOCKET_PAIRS, make_recvfrom, leaves_name},
    {"sendto", OUT, FOR_OUT, FULLY | PUTS, SOCKET_PAIRS | FRESH, make_sendto, NULL},
    {"getsockopt", STATE, ENDS, 0, SOCKET_PAIRS | FRESH | LISTENERS, make_getsockopt, leaves_option},
    {"setsockopt", STATE, ENDS, 0, SOCKET_PAIRS | FRESH | LISTENERS, make_setsockopt, NULL},
    {"pipe", NOTHING, ENDS, 0, EVERYTHING, make_pipe, leaves_pipe},
    {"rename", STATE, ENDS, PATHS, KIND(DIRECTORY), make_rename, NULL},
    {"unlink", STATE, ENDS, PATHS, KIND(DIRECTORY), make_unlink, NULL},
    {"mkdir", STATE, ENDS, PATHS, KIND(DIRECTORY), make_mkdir, NULL},
    {"symlink", STATE, ENDS, PATHS, KIND(DIRECTORY), make_symlink, NULL},
    {"hardlink", STATE, ENDS, PATHS, KIND(DIRECTORY), make_hardlink, NULL},
    {"openat2", STATE, ENDS, MAKES_FD | PATHS, KIND(DIRECTORY) | KIND(REGULAR), make_openat2, NULL},
    {"fgetxattr", STATE, ENDS, PATHS, FILE_KINDS | KIND(DIRECTORY), make_fgetxattr, leaves_value},
    {"getxattr", STATE, ENDS, PATHS, KIND(DIRECTORY), make_getxattr, leaves_value},
    {"fsetxattr", STATE, ENDS, PATHS, FILE_KINDS | KIND(DIRECTORY), make_fsetxattr, NULL},
    {"setxattr", STATE, ENDS, PATHS, KIND(DIRECTORY), make_setxattr, NULL},
    {"madvise", NOTHING, ENDS, 0, EVERYTHING, make_madvise, NULL},
    {"futex_wait", IN, FOR_WAKE, 0, KIND(FUTEX), make_futex_wait, NULL},
    {"futex_wake", STATE, ENDS, 0, KIND(FUTEX), make_futex_wake, NULL},
    {"signal", NOTHING, FOR_WAKE, REPEATS, KIND(SIGNAL), make_signal, NULL},
    {"waitid", IN, FOR_CHILD, 0, KIND(CHILD), make_waitid, leaves_info},
    {"getaddrinfo", NOTHING, ENDS, 0, EVERYTHING, make_getaddrinfo, leaves_addresses},
    {"splice", IN, FOR_BOTH, TWO | FULLY | DRAINS, STREAM_KINDS | KIND(REGULAR), make_splice, NULL},
    {"tee", IN, FOR_BOTH, TWO, KIND(PIPE_IN) | KIND(FIFO_IN), make_tee, NULL},
    {"sendfile", IN, FOR_BOTH, TWO | FULLY | DRAINS, FILE_KINDS, make_sendfile, NULL},
    {"copy_range", IN, ENDS, TWO | FULLY, FILE_KINDS, make_copy_range, NULL},
    {"work", NOTHING, ENDS, 0, EVERYTHING, make_work, NULL},
};
const unsigned operation_row_count = COUNT_OF(operation_rows);
