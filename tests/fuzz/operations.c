/* Makes one operation from the input: by its constructor, with arguments that are mostly possible and often extreme, and then
   perhaps with raw bytes of the input in any field that is not a pointer. Pointers are valid or NULL. What the library must
   copy stands in blocks of exactly the size it may read, which are overwritten and freed when submit has returned; what it
   borrows lives until the final event. */

#include "fuzz.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

unsigned long kinds_accepted[KINDS], kinds_done[KINDS];

/* Raw bytes will go over the fields: what lengths name must be as long as the library may read. */
static bool raw;

static void *lend(struct entry *entry, size_t size) {
    MUST(entry->lents < sizeof entry->lent / sizeof *entry->lent, "too much lent");
    return entry->lent[entry->lents++] = calloc(1, size ? size : 1);
}

static void *copied(struct entry *entry, const void *from, size_t size) {
    MUST(entry->copies < sizeof entry->copied / sizeof *entry->copied, "too much copied");
    void *block = malloc(size ? size : 1);
    if (from)
        memcpy(block, from, size);
    else
        memset(block, take8(), size);
    return entry->copied[entry->copies++] = block;
}

static bool null(void) { return one_in(16); }

/* Transfer data: a page, at any offset in it; behind it nothing is mapped, so that the length may be anything. */
static void *data(struct entry *entry) {
    int which = entry->pages[0] < 0 ? 0 : 1;
    if (null() || entry->pages[which] >= 0)
        return entry->pages[which] >= 0 && !one_in(16) ? page_at(entry->pages[which]) : NULL;
    entry->pages[which] = page_take();
    if (entry->pages[which] < 0)
        return NULL;
    return page_at(entry->pages[which]) + (one_in(4) ? take8() : 0);
}

static size_t length(void) {
    static const size_t often[] = {0, 1, 7, 64, 512, 4032, 4096, 65536, 1 << 20, INT_MAX, 0x7ffff000, UINT_MAX, (size_t)UINT_MAX + 1,
                                   SSIZE_MAX, (size_t)SSIZE_MAX + 1, SIZE_MAX};
    uint8_t choice = take8();
    return choice < 64 ? often[choice % 16] : choice < 224 ? 1 + choice % 32u * 16 : choice < 248 ? take(2) : take(8);
}

static int64_t offset(void) {
    static const int64_t often[] = {0, 0, 1, 512, 4096, 9600, -1, -1, -2, INT64_MAX, INT64_MIN, INT64_MAX - 4096};
    uint8_t choice = take8();
    return choice < 192 ? often[choice % 12] : choice < 240 ? (int64_t)take(2) : (int64_t)take(8);
}

static int64_t position(void) { return one_in(4) ? offset() : -1; }

static uint32_t word(uint32_t usual) { return one_in(4) ? (uint32_t)take(4) : usual; }

static const char *path(struct entry *entry) {
    if (null())
        return NULL;
    const char *name = object_path();
    return copied(entry, name, strlen(name) + 1);
}

static const char *name(struct entry *entry) {
    static const char *const names[] = {"user.a", "user.b", "", "trusted.x", "nothing"};
    if (null())
        return NULL;
    const char *chosen = one_in(6) ? object_path() : names[take8() % 5];
    return copied(entry, chosen, strlen(chosen) + 1);
}

/* An array of parts that is copied (or borrowed, for recvmsg). */
static struct iovec *vector(struct entry *entry, size_t *n, bool borrowed) {
    static const size_t often[] = {0, 1, 2, 3, 8, 1023, 1024, 1025, SIZE_MAX};
    uint8_t choice = take8();
    *n = choice < 128 ? choice % 4u : often[choice % 9];
    if (null())
        return NULL;
    size_t room = raw ? 1024 : *n < 1024 ? *n : 1024;
    size_t bytes = room * sizeof(struct iovec);
    struct iovec *parts = borrowed ? lend(entry, bytes) : copied(entry, NULL, bytes);
    uint8_t *base = data(entry);
    for (size_t part = 0; part < room; part++) {
        parts[part].iov_base = base && part < 63 ? base + part * 8 : base;
        parts[part].iov_len = !base && !one_in(8) ? 0 : part < 4 ? length() : part % 9;
    }
    return parts;
}

static struct sockaddr *address(struct entry *entry, socklen_t *size) {
    const void *where = object_address(size);
    if (null())
        return NULL;
    /* Refused above sizeof(struct sockaddr_storage), so that much is read at most. */
    size_t room = raw || *size > sizeof(struct sockaddr_storage) ? sizeof(struct sockaddr_storage) : *size;
    struct sockaddr_storage whole = {0};
    memcpy(&whole, where, *size < sizeof whole ? *size : sizeof whole);
    void *block = copied(entry, &whole, room);
    if (one_in(16))
        *size = (socklen_t)take(4);
    if (*size > room && *size <= sizeof whole)
        *size = (socklen_t)room;
    return block;
}

static socklen_t *room(struct entry *entry, uint32_t usual) {
    if (null())
        return NULL;
    socklen_t *size = lend(entry, sizeof *size);
    *size = one_in(8) ? (socklen_t)take(4) : take8() % (usual + 1);
    return size;
}

static struct msghdr *message(struct entry *entry, bool inward, bool pooled) {
    if (null())
        return NULL;
    struct msghdr *msg = inward ? lend(entry, sizeof *msg) : copied(entry, NULL, sizeof *msg);
    memset(msg, 0, sizeof *msg);
    msg->msg_flags = (int)take8();
    size_t parts = 0;
    msg->msg_iov = vector(entry, &parts, inward);
    msg->msg_iovlen = parts;
    if (one_in(2)) {
        socklen_t size = 0;
        if (inward) {
            size = one_in(8) ? (socklen_t)take(4) : take8() % 129u;
            msg->msg_name = pooled && one_in(2) ? NULL : lend(entry, 128);
        } else {
            msg->msg_name = address(entry, &size);
        }
        msg->msg_namelen = size;
    }
    if (one_in(2)) {
        size_t size = one_in(8) ? length() : take8() & ~7u;
        size_t held = size <= 1 << 20 ? size : 8;
        msg->msg_control = null() ? NULL : inward ? lend(entry, held) : copied(entry, NULL, held);
        msg->msg_controllen = size;
        if (!inward && msg->msg_control && size >= CMSG_SPACE(sizeof(int)) && size <= 1 << 20 && one_in(2)) {
            /* A descriptor goes with the message. */
            memset(msg->msg_control, 0, size);
            struct cmsghdr *cmsg = msg->msg_control;
            *cmsg = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
            *(int *)(void *)CMSG_DATA(cmsg) = object_file();
            msg->msg_controllen = CMSG_SPACE(sizeof(int));
        }
    }
    return msg;
}

static int message_flags(void) {
    static const int often[] = {0, 0, 0, 0, MSG_PEEK, MSG_TRUNC, MSG_OOB, MSG_ERRQUEUE, MSG_DONTWAIT, MSG_WAITALL, MSG_MORE, MSG_EOR,
                                MSG_NOSIGNAL, MSG_CMSG_CLOEXEC};
    return one_in(8) ? (int)take(4) : often[take8() % 14];
}

static int64_t work_returns(void *arg) { return (int64_t)(intptr_t)arg; }

static int64_t work_frees(void *arg) {
    /* The argument is the program's until the final event. */
    uint8_t *bytes = arg;
    int64_t sum = 0;
    for (int i = 0; i < 16; i++)
        sum += bytes[i];
    memset(bytes, 0x77, 16);
    return sum;
}

/* What a thread that owns nothing may ask of a loop while its owner turns it. */
static int64_t work_calls(void *arg) {
    upcall_loop *loop = arg;
    upcall_stats stats;
    int answer = upcall_poll(loop, 0);
    MUST(answer == -EPERM || answer == -EOWNERDEAD || answer == -EDEADLK, "poll on a pool thread: %d", answer);
    MUST(upcall_cancel(loop, 0x1234567) == -ENOENT, "a forged id was found");
    MUST(upcall_hold(loop) == 0 && upcall_unhold(loop) == 0, "hold and unhold");
    MUST(upcall_stats_get(loop, &stats) == 0, "stats");
    upcall_stop(loop);
    upcall_cancel_fd(loop, 7777);
    return 99;
}

/* What an operation is meant for, mostly. */
static const char IN[] = {PIPE_OUT, QUIET_PIPE_OUT, STREAM_A, STREAM_B, QUIET_STREAM_A, QUIET_STREAM_B, TCP_A, TCP_B, FILE_RW, EVENT, TIMER, FIFO, TERMINAL, DIRECTORY, 0};
static const char OUT[] = {PIPE_IN, QUIET_PIPE_IN, STREAM_A, STREAM_B, QUIET_STREAM_A, QUIET_STREAM_B, TCP_A, TCP_B, FILE_RW, FILE_APPEND, EVENT, FIFO, MASTER, NULL_FILE, 0};
static const char PIPES[] = {PIPE_IN, QUIET_PIPE_IN, PIPE_OUT, QUIET_PIPE_OUT, 0};
static const char FILES[] = {FILE_RW, FILE_IN, FILE_APPEND, FILE_DIRECT, 0};
static const char PLACES[] = {DIRECTORY, DIRECTORY, DIRECTORY, FILE_PATH, 0};
static const char SOCKETS[] = {STREAM_A, STREAM_B, QUIET_STREAM_A, QUIET_STREAM_B, DATAGRAM_A, DATAGRAM_B, PACKET_A, PACKET_B, TCP_A, TCP_B, UDP_A, UDP_B, 0};
static const char NEW_SOCKETS[] = {SOCKET, QUIET_SOCKET, UNIX_SOCKET, UDP_B, 0};
static const char LISTENERS[] = {LISTENER, QUIET_LISTENER, UNIX_LISTENER, 0};

static void with_file(upcall_op *op) {
    if (one_in(2))
        op->fd = object_file();
}

/* The operation of kind number `choice`. */
static upcall_op construct(struct entry *e, unsigned choice, upcall_loop *loop, bool pooled) {
    size_t n;
    socklen_t size;
    switch (choice) {
    case 0: return CALL(upcall_op_nop);
    case 1: return CALL(upcall_op_read, object_like(IN), pooled ? NULL : data(e), length());
    case 2: return CALL(upcall_op_write, object_like(OUT), data(e), length());
    case 3: { struct iovec *v = vector(e, &n, false); return CALL(upcall_op_readv, object_like(IN), v, n); }
    case 4: { struct iovec *v = vector(e, &n, false); return CALL(upcall_op_writev, object_like(OUT), v, n); }
    case 5: return CALL(upcall_op_splice, object_like(IN), position(), object_like(OUT), position(), length(), word(0));
    case 6: return CALL(upcall_op_tee, object_like(PIPES), object_like(PIPES), length(), word(0));
    case 7: { upcall_op op = CALL(upcall_op_pread, object_like(FILES), data(e), length(), offset()); with_file(&op); return op; }
    case 8: { upcall_op op = CALL(upcall_op_pwrite, object_like(FILES), data(e), length(), offset()); with_file(&op); return op; }
    case 9: { struct iovec *v = vector(e, &n, false); upcall_op op = CALL(upcall_op_preadv, object_like(FILES), v, n, offset(), (int)word(0)); with_file(&op); return op; }
    case 10: { struct iovec *v = vector(e, &n, false); upcall_op op = CALL(upcall_op_pwritev, object_like(FILES), v, n, offset(), (int)word(0)); with_file(&op); return op; }
    case 11: return CALL(upcall_op_fsync, object_like(FILES));
    case 12: return CALL(upcall_op_fdatasync, object_like(FILES));
    case 13: return CALL(upcall_op_sync_range, object_like(FILES), offset(), (int64_t)length(), word(2));
    case 14: return CALL(upcall_op_fallocate, object_like(FILES), (int)word(take8() & 3), offset(), (int64_t)length());
    case 15: return CALL(upcall_op_ftruncate, object_like(FILES), offset());
    case 16: return CALL(upcall_op_fadvise, object_like(FILES), offset(), (int64_t)length(), (int)word(take8() % 6));
    case 17: {
        void *memory = object_memory(&n);
        size_t bytes = one_in(4) ? SIZE_MAX - take(2) : take(2) % (n + 1);
        return CALL(upcall_op_madvise, null() ? NULL : (char *)memory + (one_in(8) ? 1 : 0), bytes, (int)word(take8() % 26));
    }
    case 18: { const char *p = path(e); return CALL(upcall_op_open, object_like(PLACES), p, (int)word(take8() & 3 ? O_RDWR | O_CREAT : 0), word(0600)); }
    case 19: {
        const char *p = path(e);
        struct open_how how = {.flags = one_in(4) ? take(8) : O_RDWR, .mode = one_in(8) ? take(2) : 0, .resolve = one_in(4) ? take8() : 0};
        size_t bytes = one_in(4) ? length() : sizeof how;
        uint8_t whole[4096] = {0};
        memcpy(whole, &how, sizeof how);
        if (one_in(8))
            whole[24 + take8()] = 1;
        void *given = null() ? NULL : copied(e, whole, raw || bytes > 4096 ? 4096 : bytes < sizeof how ? sizeof how : bytes);
        return CALL(upcall_op_openat2, object_like(PLACES), p, given, bytes);
    }
    case 20: return CALL(upcall_op_close, object());
    case 21: { const char *p = path(e); return CALL(upcall_op_statx, object_like(PLACES), p, (int)word(0x1000), word(0x7ff), null() ? NULL : lend(e, sizeof(struct statx))); }
    case 22: { const char *a = path(e), *b = path(e); return CALL(upcall_op_rename, object_like(PLACES), a, object_like(PLACES), b, word(take8() % 3)); }
    case 23: { const char *p = path(e); return CALL(upcall_op_unlink, object_like(PLACES), p, (int)word(one_in(2) ? AT_REMOVEDIR : 0)); }
    case 24: { const char *p = path(e); return CALL(upcall_op_mkdir, object_like(PLACES), p, word(0700)); }
    case 25: { const char *a = path(e), *b = path(e); return CALL(upcall_op_symlink, a, object_like(PLACES), b); }
    case 26: { const char *a = path(e), *b = path(e); return CALL(upcall_op_hardlink, object_like(PLACES), a, object_like(PLACES), b, (int)word(0)); }
    case 27: { const char *p = path(e), *a = name(e); return CALL(upcall_op_getxattr, p, a, data(e), length()); }
    case 28: { const char *p = path(e), *a = name(e); n = length(); return CALL(upcall_op_setxattr, p, a, null() ? NULL : copied(e, NULL, raw || n > 65536 ? 65536 : n), n, (int)word(take8() % 3)); }
    case 29: { const char *a = name(e); return CALL(upcall_op_fgetxattr, object_like(FILES), a, data(e), length()); }
    case 30: { const char *a = name(e); n = length(); return CALL(upcall_op_fsetxattr, object_like(FILES), a, null() ? NULL : copied(e, NULL, raw || n > 65536 ? 65536 : n), n, (int)word(take8() % 3)); }
    case 31: return CALL(upcall_op_readdir, object_like((const char[]){DIRECTORY, 0}), pooled ? NULL : data(e), length());
    case 32: {
        static const int domains[] = {AF_UNIX, AF_INET, AF_INET6, -1, 9999}, protocols[] = {0, IPPROTO_TCP, IPPROTO_UDP, 255, -1};
        return CALL(upcall_op_socket, domains[take8() % 5], (int)word(1 + take8() % 5u), protocols[take8() % 5]);
    }
    case 33: { struct sockaddr *a = address(e, &size); return CALL(upcall_op_bind, object_like(NEW_SOCKETS), a, size); }
    case 34: return CALL(upcall_op_listen, object_like(NEW_SOCKETS), (int)word(4));
    case 35: {
        bool none = one_in(2);
        struct sockaddr *to = none ? NULL : lend(e, 256);
        socklen_t *bytes = none && !one_in(8) ? NULL : room(e, 255);
        if (bytes && *bytes > 256 && *bytes <= INT_MAX)
            *bytes = 256;
        return CALL(upcall_op_accept, object_like(LISTENERS), to, bytes, (int)word(one_in(2) ? SOCK_NONBLOCK : 0));
    }
    case 36: { struct sockaddr *a = address(e, &size); return CALL(upcall_op_connect, object_like(NEW_SOCKETS), a, size); }
    case 37: return CALL(upcall_op_recv, object_like(SOCKETS), pooled ? NULL : data(e), length(), message_flags());
    case 38: return CALL(upcall_op_send, object_like(SOCKETS), data(e), length(), message_flags());
    case 39: {
        void *buf = data(e);
        struct sockaddr *from = one_in(4) ? NULL : lend(e, 128);
        return CALL(upcall_op_recvfrom, object_like(SOCKETS), buf, length(), message_flags(), from, room(e, 128));
    }
    case 40: { void *buf = data(e); struct sockaddr *a = one_in(2) ? address(e, &size) : (size = 0, NULL); return CALL(upcall_op_sendto, object_like(SOCKETS), buf, length(), message_flags(), a, size); }
    case 41: { struct msghdr *m = message(e, true, pooled); return CALL(upcall_op_recvmsg, object_like(SOCKETS), m, message_flags()); }
    case 42: { struct msghdr *m = message(e, false, false); return CALL(upcall_op_sendmsg, object_like(SOCKETS), m, message_flags()); }
    case 43: return CALL(upcall_op_shutdown, object_like(SOCKETS), (int)word(take8() % 3));
    case 44: {
        void *value = data(e);
        return CALL(upcall_op_getsockopt, object_like(SOCKETS), (int)word(SOL_SOCKET), (int)word(take8() % 80), value, room(e, 64));
    }
    case 45: { n = one_in(4) ? length() : 4; return CALL(upcall_op_setsockopt, object_like(SOCKETS), (int)word(SOL_SOCKET), (int)word(take8() % 80), null() ? NULL : copied(e, NULL, raw || n > 65536 ? 65536 : n), (socklen_t)n); }
    case 46: e->fds = null() ? NULL : lend(e, 2 * sizeof(int32_t)); return CALL(upcall_op_pipe, e->fds, (int)word(one_in(2) ? O_NONBLOCK : 0));
    case 47: return CALL(upcall_op_poll, object(), one_in(4) ? (uint32_t)take(4) : take(2) & 0x3fff);
    case 48: return CALL(upcall_op_sleep, one_in(4) ? take(8) : take8() * 1000u);
    case 49: return CALL(upcall_op_sleep_until, one_in(4) ? take(8) : CALL(upcall_now, loop) + take8() * 1000u);
    case 50: {
        static const int signals[] = {SIGURG, SIGWINCH, SIGURG, 0, -1, SIGKILL, SIGSTOP, SIGSEGV, 65, 999, 32, 64};
        return CALL(upcall_op_signal, signals[take8() % 12]);
    }
    case 51: {
        static const idtype_t types[] = {P_ALL, P_PID, P_PGID, P_PIDFD, 99};
        uint32_t type = types[take8() % 5];
        uint32_t id = type == P_PIDFD ? (uint32_t)(one_in(4) ? object() : object_pidfd()) : word((uint32_t)object_child());
        return CALL(upcall_op_waitid, type, id, one_in(2) ? NULL : lend(e, sizeof(siginfo_t)), (int)word(one_in(2) ? WEXITED : WSTOPPED | WEXITED));
    }
    case 52: { uint32_t *at = lend(e, 8); *at = take8() & 1; return CALL(upcall_op_futex_wait, null() ? NULL : one_in(16) ? (uint32_t *)(void *)((char *)at + 1) : at, 0, one_in(4) ? take(8) : UINT32_MAX, word(one_in(2) ? UPCALL_FUTEX_PRIVATE : 0)); }
    case 53: return CALL(upcall_op_futex_wake, null() ? NULL : lend(e, 8), word(1), one_in(4) ? take(8) : UINT32_MAX, word(0));
    case 54:
        switch (take8() % 4) {
        case 0: e->expected = (int8_t)take8(); return CALL(upcall_op_work, work_returns, (void *)(intptr_t)e->expected);
        case 1: e->expected = 0; return CALL(upcall_op_work, work_frees, lend(e, 16));
        case 2: e->expected = 99; return CALL(upcall_op_work, work_calls, loop);
        default: return CALL(upcall_op_work, NULL, NULL);
        }
    case 55: return CALL(upcall_op_sendfile, object_like(OUT), object_file(), position(), length());
    case 56: return CALL(upcall_op_copy_range, object_file(), position(), object_like(FILES), position(), length(), word(0));
    default: {
        static const char *const nodes[] = {"127.0.0.1", "::1", "", "999.1", "1.2.3", "fe80::1%lo"};
        e->addresses = null() ? NULL : lend(e, sizeof *e->addresses);
        if (one_in(8))
            return CALL(upcall_op_getaddrinfo, copied(e, nodes[0], 10), copied(e, "80", 3), NULL, e->addresses);
        const char *node = one_in(4) ? NULL : one_in(4) ? object_path() : nodes[take8() % 6];
        const char *service = one_in(2) ? NULL : one_in(4) ? object_path() : one_in(2) ? "80" : "-1";
        struct addrinfo hints = {.ai_flags = (int)(one_in(4) ? take(4) : 0) | AI_NUMERICHOST | AI_NUMERICSERV,
                                 .ai_family = (int)word(AF_UNSPEC), .ai_socktype = (int)word(0), .ai_protocol = (int)word(0)};
        /* Numbers only: no name server is asked. */
        hints.ai_flags &= ~AI_ADDRCONFIG;
        return CALL(upcall_op_getaddrinfo, node ? copied(e, node, strlen(node) + 1) : NULL,
                    service ? copied(e, service, strlen(service) + 1) : NULL, copied(e, &hints, sizeof hints), e->addresses);
    }
    }
}

/* What must not be done to this machine, whatever the fields say. */
static void tame(upcall_op *op) {
    switch (op->kind) {
    case UPCALL_OP_FALLOCATE: /* a megabyte, or more than any file may have */
        for (uint64_t *field = &op->offset;; field = &op->len) {
            if (*field > 1 << 20 && *field < UINT64_C(1) << 62)
                *field &= (1 << 20) - 1;
            if (field == &op->len)
                break;
        }
        break;
    case UPCALL_OP_MADVISE: { /* this region, or more than any address space has */
        size_t room_of;
        char *memory = object_memory(&room_of);
        size_t before = op->addr ? (size_t)((char *)(uintptr_t)op->addr - memory) : 0;
        if (op->len < UINT64_C(1) << 63 && op->len > room_of - before)
            op->len = room_of - before;
        if (op->addr == 0)
            op->len = op->len < UINT64_C(1) << 63 ? 0 : op->len;
        break;
    }
    case UPCALL_OP_SETSOCKOPT: /* a close would wait */
        if (op->arg2 == SO_LINGER)
            op->arg2 = SO_KEEPALIVE;
        break;
    case UPCALL_OP_GETSOCKOPT: /* its value is a descriptor */
        if (op->arg2 == 77 /* SO_PEERPIDFD */)
            op->arg2 = SO_TYPE;
        break;
    case UPCALL_OP_SIGNAL: /* libFuzzer's own */
        if (op->arg == SIGALRM || op->arg == SIGINT || op->arg == SIGTERM || op->arg == SIGABRT || op->arg == SIGPROF)
            op->arg = SIGURG;
        break;
    }
}

/* Fields that are pointers, or that say how much of the program's memory is read without a limit of the library's. */
static bool is_pointer(upcall_kind kind, size_t at) {
    if (at == offsetof(upcall_op, addr))
        return kind != UPCALL_OP_NOP && kind != UPCALL_OP_SPLICE && kind != UPCALL_OP_CLOSE && kind != UPCALL_OP_POLL;
    if (at == offsetof(upcall_op, addr2))
        return kind >= UPCALL_OP_OPEN;
    if (at == offsetof(upcall_op, offset))
        return kind == UPCALL_OP_OPENAT2 || (kind >= UPCALL_OP_GETXATTR && kind <= UPCALL_OP_FSETXATTR) ||
               kind == UPCALL_OP_RECVFROM || kind == UPCALL_OP_GETADDRINFO;
    if (at == offsetof(upcall_op, offset2))
        return kind == UPCALL_OP_GETADDRINFO;
    /* These would name something that is not in a table. */
    if (at == offsetof(upcall_op, len))
        return kind == UPCALL_OP_SOCKET;
    if (at == offsetof(upcall_op, arg2))
        return kind == UPCALL_OP_SOCKET;
    return false;
}

static bool has_two_descriptors(upcall_kind kind) {
    return kind == UPCALL_OP_SPLICE || kind == UPCALL_OP_TEE || kind == UPCALL_OP_SENDFILE || kind == UPCALL_OP_COPY_RANGE ||
           kind == UPCALL_OP_RENAME || kind == UPCALL_OP_HARDLINK;
}

static void overlay(upcall_op *op) {
    static const struct {
        size_t at, size;
    } fields[] = {
#define FIELD(name) {offsetof(upcall_op, name), sizeof((upcall_op *)0)->name}
        FIELD(kind), FIELD(flags), FIELD(timeout_ns), FIELD(lend_max), FIELD(fd), FIELD(addr), FIELD(addr2),
        FIELD(len), FIELD(offset), FIELD(offset2), FIELD(arg), FIELD(arg2), FIELD(reserved[0]), FIELD(reserved[3]),
    };
    upcall_kind kind = op->kind;
    uint32_t which = (uint32_t)take(2);
    for (size_t field = 0; field < sizeof fields / sizeof *fields; field++) {
        uint8_t *at = (uint8_t *)op + fields[field].at;
        if (!(which >> field & 1) || is_pointer(kind, fields[field].at))
            continue;
        if (fields[field].at == offsetof(upcall_op, fd)) {
            op->fd = object();
        } else if (fields[field].at == offsetof(upcall_op, arg2) && has_two_descriptors(kind)) {
            op->arg2 = (uint32_t)object();
        } else if (fields[field].at == offsetof(upcall_op, kind)) {
            /* Its pointers would mean something else in another kind: none that exists. */
            static const uint32_t holes[] = {0, 35, 39, 55, 63, 74, 127, 128, 255, 256 + UPCALL_OP_READ, UINT32_MAX};
            op->kind = holes[take8() % 11];
        } else {
            uint64_t value = take(fields[field].size);
            memcpy(at, &value, fields[field].size);
        }
    }
}

void make_operation(struct entry *entry, upcall_loop *loop, upcall_buffers *pool) {
    uint8_t how = take8();
    raw = how % 8 == 7;
    entry->pages[0] = entry->pages[1] = -1;
    entry->expected = INT64_MIN;
    upcall_op op = construct(entry, take8() % 58, loop, pool != NULL);
    bool lends = op.kind == UPCALL_OP_READ || op.kind == UPCALL_OP_RECV || op.kind == UPCALL_OP_RECVMSG || op.kind == UPCALL_OP_READDIR;
    op.buffers = lends || one_in(8) ? pool : NULL;
    if (op.buffers && how & 0x80) {
        op.lend_max = take8() % 4;
        if (one_in(2))
            op.len = 0;
    }
    static const uint32_t often[] = {UPCALL_FULL, UPCALL_MULTISHOT, UPCALL_MULTISHOT, UPCALL_LINK, UPCALL_LINK_ALWAYS, UPCALL_DRAIN,
                                     UPCALL_ZEROCOPY, UPCALL_BACKGROUND};
    if (how & 8)
        op.flags = one_in(4) ? take8() & 0x7f : often[take8() % 8];
    if ((how & 0x30) == 0x30)
        op.timeout_ns = one_in(4) ? take(8) : take8() * UINT64_C(4000);
    if (raw)
        overlay(&op);
    tame(&op);
    entry->op = op;
    entry->must_be_refused = (op.flags & ~0x7fu) != 0 || op.reserved[0] || op.reserved[3] || op.kind == 0 || op.kind >= KINDS;
}
