/*
 * Every call of the library to the C library that can fail, as torture_<name>: link.sh lets the library call these. What
 * cannot fail, or what nobody can go on without, is in untouched.txt and goes straight through.
 */
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static atomic_uint calls;
static atomic_long blocks, mappings;

long live_blocks(void) {
    return atomic_load(&blocks);
}

long live_mappings(void) {
    return atomic_load(&mappings);
}

bool can_fail(unsigned how, int error) {
    if (error == SHORT_COUNT)
        return how & COUNTS;
    if (how & ALLOCATES)
        return (error & ~LASTING) == ENOMEM;
    if (error & LASTING || (error == EAGAIN && how & NOT_EAGAIN))
        return false;
    return how & FAILS;
}

/* Whether this call fails: 0, an errno, or SHORT_COUNT. */
static int decide(const char *call, void *site, unsigned how) {
    unsigned number = atomic_fetch_add(&calls, 1) + 1;
    if (control == NULL)
        return 0;
    control->calls = number;
    if (control->traces && number <= MOST_CALLS)
        control->trace[number - 1] = (struct trace){(uintptr_t)site, call, how};
    int error = control->error;
    bool lasts = error > 0 && error & LASTING && how & ALLOCATES && number > control->k;
    if (error == 0 || !(number == control->k || (lasts && control->injected)) || !can_fail(how, error))
        return 0;
    if (!control->injected) {
        control->site = (uintptr_t)site;
        snprintf(control->call, sizeof control->call, "%s", call);
        control->injected = true;
    }
    return error > 0 ? error & ~LASTING : error;
}

#define SITE __builtin_return_address(0)

/* Calls that answer -1 with errno. */
#define CALL(type, name, how, parameters, arguments)                                                                   \
    type torture_##name parameters;                                                                                    \
    type torture_##name parameters {                                                                                   \
        int error = decide(#name, SITE, how);                                                                          \
        if (error > 0 && !((how)&AFTERWARDS)) {                                                                        \
            errno = error;                                                                                             \
            return (type)-1;                                                                                           \
        }                                                                                                              \
        type result = name arguments;                                                                                  \
        if (error > 0) {                                                                                               \
            errno = error;                                                                                             \
            return (type)-1;                                                                                           \
        }                                                                                                              \
        return result;                                                                                                 \
    }

/* Calls that answer the errno. */
#define ANSWER(name, parameters, arguments)                                                                            \
    int torture_##name parameters;                                                                                     \
    int torture_##name parameters {                                                                                    \
        int error = decide(#name, SITE, FAILS);                                                                        \
        return error > 0 ? error : name arguments;                                                                     \
    }

/* Calls that move bytes between memory and a descriptor: a short count is the call with less to do. */
static size_t part_of(size_t len) {
    return len >= 8192 ? len / 2 & ~(size_t)4095 : len > 1 ? len / 2 : len;
}

static bool is_stream(int fd) {
    int type = SOCK_STREAM;
    socklen_t len = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len);
    return type == SOCK_STREAM;
}

#define MOVES(name, how, parameters, arguments, shorten)                                                               \
    ssize_t torture_##name parameters;                                                                                 \
    ssize_t torture_##name parameters {                                                                                \
        int error = decide(#name, SITE, how);                                                                          \
        if (error > 0) {                                                                                               \
            errno = error;                                                                                             \
            return -1;                                                                                                 \
        }                                                                                                              \
        struct iovec first;                                                                                            \
        (void)first;                                                                                                   \
        if (error == SHORT_COUNT) {                                                                                    \
            shorten;                                                                                                   \
        }                                                                                                              \
        return name arguments;                                                                                         \
    }

#define SHORTEN_LEN (is_stream(fd) ? (void)(len = part_of(len)) : (void)0)
#define SHORTEN_PARTS                                                                                                  \
    if (count > 0 && is_stream(fd)) {                                                                                  \
        first = (struct iovec){parts[0].iov_base, part_of(parts[0].iov_len)};                                          \
        parts = &first;                                                                                                \
        count = 1;                                                                                                     \
    }

#define TRANSFER (FAILS | COUNTS | NOT_EAGAIN)

MOVES(preadv2, TRANSFER, (int fd, const struct iovec *parts, int count, off_t offset, int flags),
      (fd, parts, count, offset, flags), SHORTEN_PARTS)
MOVES(pwritev2, TRANSFER, (int fd, const struct iovec *parts, int count, off_t offset, int flags),
      (fd, parts, count, offset, flags), SHORTEN_PARTS)
MOVES(readv, TRANSFER, (int fd, const struct iovec *parts, int count), (fd, parts, count), SHORTEN_PARTS)
MOVES(writev, TRANSFER, (int fd, const struct iovec *parts, int count), (fd, parts, count), SHORTEN_PARTS)
MOVES(pread, TRANSFER, (int fd, void *data, size_t len, off_t offset), (fd, data, len, offset), SHORTEN_LEN)
MOVES(pwrite, TRANSFER, (int fd, const void *data, size_t len, off_t offset), (fd, data, len, offset), SHORTEN_LEN)
MOVES(recv, TRANSFER, (int fd, void *data, size_t len, int flags), (fd, data, len, flags), SHORTEN_LEN)
MOVES(send, TRANSFER, (int fd, const void *data, size_t len, int flags), (fd, data, len, flags), SHORTEN_LEN)
MOVES(tee, TRANSFER, (int fd, int to, size_t len, unsigned flags), (fd, to, len, flags), SHORTEN_LEN)
MOVES(sendfile, TRANSFER, (int to, int fd, off_t *offset, size_t len), (to, fd, offset, len), SHORTEN_LEN)
MOVES(splice, TRANSFER, (int fd, off_t *at, int to, off_t *at_out, size_t len, unsigned flags),
      (fd, at, to, at_out, len, flags), SHORTEN_LEN)
MOVES(copy_file_range, TRANSFER, (int fd, off_t *at, int to, off_t *at_out, size_t len, unsigned flags),
      (fd, at, to, at_out, len, flags), SHORTEN_LEN)
/* Eventfds and timerfds, eight bytes at a time. EAGAIN is their word for "nothing there". */
MOVES(read, FAILS, (int fd, void *data, size_t len), (fd, data, len), (void)0)
MOVES(write, FAILS, (int fd, const void *data, size_t len), (fd, data, len), (void)0)

ssize_t torture_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t torture_recvmsg(int fd, struct msghdr *msg, int flags) {
    int error = decide("recvmsg", SITE, TRANSFER);
    if (error > 0) {
        errno = error;
        return -1;
    }
    if (error != SHORT_COUNT || msg->msg_iovlen == 0 || !is_stream(fd))
        return recvmsg(fd, msg, flags);
    struct iovec first = {msg->msg_iov[0].iov_base, part_of(msg->msg_iov[0].iov_len)}, *parts = msg->msg_iov;
    size_t count = msg->msg_iovlen;
    msg->msg_iov = &first, msg->msg_iovlen = 1;
    ssize_t result = recvmsg(fd, msg, flags);
    msg->msg_iov = parts, msg->msg_iovlen = count;
    return result;
}

ssize_t torture_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t torture_sendmsg(int fd, const struct msghdr *msg, int flags) {
    int error = decide("sendmsg", SITE, TRANSFER);
    if (error > 0) {
        errno = error;
        return -1;
    }
    if (error != SHORT_COUNT || msg->msg_iovlen == 0 || !is_stream(fd))
        return sendmsg(fd, msg, flags);
    struct iovec first = {msg->msg_iov[0].iov_base, part_of(msg->msg_iov[0].iov_len)};
    struct msghdr less = *msg;
    less.msg_iov = &first, less.msg_iovlen = 1;
    return sendmsg(fd, &less, flags);
}

CALL(int, accept4, FAILS | NOT_EAGAIN, (int fd, struct sockaddr *a, socklen_t *l, int flags), (fd, a, l, flags))
CALL(int, bind, FAILS, (int fd, const struct sockaddr *a, socklen_t l), (fd, a, l))
CALL(int, connect, FAILS | NOT_EAGAIN, (int fd, const struct sockaddr *a, socklen_t l), (fd, a, l))
CALL(int, close, FAILS | AFTERWARDS, (int fd), (fd))
CALL(int, epoll_create1, FAILS, (int flags), (flags))
CALL(int, epoll_ctl, FAILS, (int set, int op, int fd, struct epoll_event *event), (set, op, fd, event))
CALL(int, eventfd, FAILS, (unsigned value, int flags), (value, flags))
CALL(int, fallocate, FAILS, (int fd, int mode, off_t offset, off_t len), (fd, mode, offset, len))
CALL(int, fdatasync, FAILS, (int fd), (fd))
CALL(int, fsync, FAILS, (int fd), (fd))
CALL(int, fstat, FAILS, (int fd, struct stat *out), (fd, out))
CALL(int, fstat64, FAILS, (int fd, struct stat64 *out), (fd, out))
CALL(int, stat64, FAILS, (const char *path, struct stat64 *out), (path, out))
CALL(int, fstatat, FAILS, (int dir, const char *path, struct stat *out, int flags), (dir, path, out, flags))
CALL(int, statx, FAILS, (int dir, const char *path, int flags, unsigned mask, struct statx *out),
     (dir, path, flags, mask, out))
CALL(int, ftruncate, FAILS, (int fd, off_t len), (fd, len))
CALL(ssize_t, fgetxattr, FAILS, (int fd, const char *name, void *value, size_t size), (fd, name, value, size))
CALL(int, fsetxattr, FAILS, (int fd, const char *name, const void *value, size_t size, int flags),
     (fd, name, value, size, flags))
CALL(ssize_t, getxattr, FAILS, (const char *path, const char *name, void *value, size_t size), (path, name, value, size))
CALL(int, setxattr, FAILS, (const char *path, const char *name, const void *value, size_t size, int flags),
     (path, name, value, size, flags))
CALL(ssize_t, getrandom, FAILS, (void *data, size_t len, unsigned flags), (data, len, flags))
CALL(int, getrlimit, FAILS, (int which, struct rlimit *limit), (which, limit))
CALL(int, getsockopt, FAILS, (int fd, int level, int name, void *value, socklen_t *len), (fd, level, name, value, len))
CALL(int, setsockopt, FAILS, (int fd, int level, int name, const void *value, socklen_t len),
     (fd, level, name, value, len))
CALL(int, kill, FAILS, (pid_t pid, int signo), (pid, signo))
CALL(int, mincore, FAILS, (void *at, size_t len, unsigned char *out), (at, len, out))
CALL(int, linkat, FAILS, (int a, const char *old, int b, const char *new, int flags), (a, old, b, new, flags))
CALL(int, symlinkat, FAILS, (const char *target, int dir, const char *path), (target, dir, path))
CALL(int, mkdirat, FAILS, (int dir, const char *path, mode_t mode), (dir, path, mode))
CALL(int, unlinkat, FAILS, (int dir, const char *path, int flags), (dir, path, flags))
CALL(int, listen, FAILS, (int fd, int backlog), (fd, backlog))
CALL(off64_t, lseek64, FAILS, (int fd, off64_t offset, int whence), (fd, offset, whence))
CALL(int, madvise, FAILS, (void *at, size_t len, int advice), (at, len, advice))
CALL(int, mprotect, FAILS, (void *at, size_t len, int protection), (at, len, protection))
CALL(int, pipe2, FAILS, (int fds[2], int flags), (fds, flags))
CALL(int, poll, FAILS, (struct pollfd *fds, nfds_t count, int timeout), (fds, count, timeout))
CALL(int, ppoll, FAILS, (struct pollfd *fds, nfds_t count, const struct timespec *time, const sigset_t *set),
     (fds, count, time, set))
CALL(ssize_t, readlink, FAILS, (const char *path, char *out, size_t size), (path, out, size))
CALL(int, sched_getaffinity, FAILS, (pid_t pid, size_t size, cpu_set_t *set), (pid, size, set))
CALL(int, shutdown, FAILS, (int fd, int how), (fd, how))
CALL(int, sigaction, FAILS, (int signo, const struct sigaction *new, struct sigaction *old), (signo, new, old))
CALL(int, socket, FAILS, (int domain, int type, int protocol), (domain, type, protocol))
CALL(int, sync_file_range, FAILS, (int fd, off64_t offset, off64_t len, unsigned flags), (fd, offset, len, flags))
CALL(int, timer_create, FAILS, (clockid_t clock, struct sigevent *event, timer_t *timer), (clock, event, timer))
CALL(int, timer_settime, FAILS, (timer_t timer, int flags, const struct itimerspec *new, struct itimerspec *old),
     (timer, flags, new, old))
CALL(int, timer_delete, FAILS | AFTERWARDS, (timer_t timer), (timer))
CALL(int, timerfd_create, FAILS, (int clock, int flags), (clock, flags))
CALL(int, timerfd_settime, FAILS, (int fd, int flags, const struct itimerspec *new, struct itimerspec *old),
     (fd, flags, new, old))
CALL(int, waitid, FAILS, (idtype_t type, id_t id, siginfo_t *info, int options), (type, id, info, options))
ANSWER(posix_fadvise, (int fd, off_t offset, off_t len, int advice), (fd, offset, len, advice))
ANSWER(pthread_atfork, (void (*prepare)(void), void (*parent)(void), void (*child)(void)), (prepare, parent, child))
ANSWER(pthread_attr_init, (pthread_attr_t * attributes), (attributes))
ANSWER(pthread_attr_setstacksize, (pthread_attr_t * attributes, size_t size), (attributes, size))
ANSWER(pthread_create, (pthread_t * thread, const pthread_attr_t *a, void *(*run)(void *), void *arg),
       (thread, a, run, arg))

int torture_epoll_wait(int set, struct epoll_event *events, int count, int timeout);
int torture_epoll_wait(int set, struct epoll_event *events, int count, int timeout) {
    int error = decide("epoll_wait", SITE, FAILS | COUNTS);
    if (error > 0) {
        errno = error;
        return -1;
    }
    return epoll_wait(set, events, error == SHORT_COUNT ? 1 : count, timeout);
}

int torture_openat(int dir, const char *path, int flags, ...);
int torture_openat(int dir, const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    int error = decide("openat", SITE, FAILS);
    if (error > 0) {
        errno = error;
        return -1;
    }
    return openat(dir, path, flags, mode);
}

int torture_open64(const char *path, int flags, ...);
int torture_open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, mode_t);
    va_end(list);
    int error = decide("open64", SITE, FAILS);
    if (error > 0) {
        errno = error;
        return -1;
    }
    return open64(path, flags, mode);
}

int torture_fcntl(int fd, int command, ...);
int torture_fcntl(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
    int error = decide("fcntl", SITE, FAILS);
    if (error > 0) {
        errno = error;
        return -1;
    }
    return fcntl(fd, command, argument);
}

int torture_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **out);
int torture_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **out) {
    int error = decide("getaddrinfo", SITE, FAILS);
    if (error > 0) {
        errno = error;
        return EAI_SYSTEM;
    }
    return getaddrinfo(node, service, hints, out);
}

/* ---- System calls by number. ---- */

long torture_syscall(long number, ...);
long torture_syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long);
    long e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    const char *name;
    unsigned how = FAILS;
    switch (number) {
    case SYS_io_uring_setup: name = "io_uring_setup"; break;
    case SYS_io_uring_register: name = "io_uring_register"; break;
    case SYS_io_uring_enter: name = "io_uring_enter", how |= b > 1 ? COUNTS : 0; break;
    case SYS_epoll_pwait2: name = "epoll_pwait2", how |= COUNTS; break;
    case SYS_getdents64: name = "getdents64"; break;
    case SYS_openat2: name = "openat2"; break;
    case SYS_renameat2: name = "renameat2"; break;
    case SYS_pidfd_open: name = "pidfd_open"; break;
    case SYS_tgkill: name = "tgkill"; break;
    case SYS_futex:
        /* Locks wake with it, and no program can go on where that fails. */
        if ((b & FUTEX_CMD_MASK) == FUTEX_WAKE)
            return syscall(number, a, b, c, d, e, f);
        /* EAGAIN: the value was another one. */
        name = "futex", how |= NOT_EAGAIN;
        break;
    default: /* gettid and the like cannot fail */ return syscall(number, a, b, c, d, e, f);
    }
    int error = decide(name, SITE, how);
    if (error > 0) {
        errno = error;
        return -1;
    }
    if (error == SHORT_COUNT && number == SYS_io_uring_enter)
        b /= 2, c = 0; /* the kernel does not wait where it took less than all */
    if (error == SHORT_COUNT && number == SYS_epoll_pwait2)
        c = 1;
    return syscall(number, a, b, c, d, e, f);
}

/* ---- Memory. ---- */

#define ALLOCATE(name, parameters, arguments, kept)                                                                    \
    void *torture_##name parameters;                                                                                   \
    void *torture_##name parameters {                                                                                  \
        if (decide(#name, SITE, ALLOCATES) > 0) {                                                                      \
            errno = ENOMEM;                                                                                            \
            return NULL;                                                                                               \
        }                                                                                                              \
        void *at = name arguments;                                                                                     \
        atomic_fetch_add(&blocks, at != NULL && !(kept));                                                              \
        return at;                                                                                                     \
    }
ALLOCATE(malloc, (size_t size), (size), false)
ALLOCATE(calloc, (size_t count, size_t size), (count, size), false)
ALLOCATE(realloc, (void *old, size_t size), (old, size), old != NULL)

int torture_posix_memalign(void **out, size_t align, size_t size);
int torture_posix_memalign(void **out, size_t align, size_t size) {
    if (decide("posix_memalign", SITE, ALLOCATES) > 0)
        return ENOMEM;
    int error = posix_memalign(out, align, size);
    atomic_fetch_add(&blocks, error == 0);
    return error;
}

void torture_free(void *at);
void torture_free(void *at) {
    atomic_fetch_sub(&blocks, at != NULL);
    free(at);
}

#define MAP(name)                                                                                                      \
    void *torture_##name(void *at, size_t len, int protection, int flags, int fd, off_t offset);                       \
    void *torture_##name(void *at, size_t len, int protection, int flags, int fd, off_t offset) {                      \
        int error = decide("mmap", SITE, FAILS);                                                                       \
        if (error > 0) {                                                                                               \
            errno = error;                                                                                             \
            return MAP_FAILED;                                                                                         \
        }                                                                                                              \
        void *made = mmap(at, len, protection, flags, fd, offset);                                                     \
        atomic_fetch_add(&mappings, made != MAP_FAILED);                                                               \
        return made;                                                                                                   \
    }
MAP(mmap)
MAP(mmap64)

int torture_munmap(void *at, size_t len);
int torture_munmap(void *at, size_t len) {
    int error = decide("munmap", SITE, FAILS | AFTERWARDS);
    int result = munmap(at, len);
    atomic_fetch_sub(&mappings, result == 0);
    if (error > 0) {
        errno = error;
        return -1;
    }
    return result;
}
