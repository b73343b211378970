/*
 * Every operation of the catalogue on every backend and under every mask: upcall_supports() says how it is done, and it is
 * done, with the right result. And the words of UPCALL_MASK.
 */
#include "op_support.h"

#include <linux/openat2.h>
#include <netdb.h>
#include <sys/xattr.h>

/* The opcodes of the kernel's ABI, also those that this machine's headers do not know yet. */
enum { NOP = 0, READV = 1, WRITEV = 2, FSYNC = 3, POLL_ADD = 6, SYNC_FILE_RANGE = 8, SENDMSG = 9, RECVMSG = 10, ACCEPT = 13,
       CONNECT = 16, FALLOCATE = 17, OPENAT = 18, CLOSE = 19, STATX_ = 21, READ = 22, WRITE = 23, FADVISE = 24,
       MADVISE = 25, SEND = 26, RECV = 27, OPENAT2 = 28, SHUTDOWN = 34, RENAMEAT = 35, UNLINKAT = 36, MKDIRAT = 37,
       SYMLINKAT = 38, LINKAT = 39, FSETXATTR = 41, SETXATTR = 42, FGETXATTR = 43, GETXATTR = 44, SOCKET = 45,
       WAITID = 50, FUTEX_WAIT_ = 51, FUTEX_WAKE_ = 52, FTRUNCATE = 55, BIND = 56, LISTEN = 57, PIPE_ = 62, NONE = -1 };

/* ---- What this machine, and the mask, leave. ---- */

static bool kernel_has(int opcode) {
    static struct {
        uint8_t last_op, ops_len;
        uint16_t resv;
        uint32_t resv2[3];
        struct {
            uint8_t op, resv;
            uint16_t flags;
            uint32_t resv2;
        } ops[256];
    } probe;
    static bool asked;
    if (!asked) {
        char params[120] = {0};
        long ring = syscall(SYS_io_uring_setup, 4, params);
        CHECK(ring >= 0);
        CHECK(syscall(SYS_io_uring_register, ring, 8 /* IORING_REGISTER_PROBE */, &probe, 256) == 0);
        close((int)ring);
        asked = true;
    }
    return opcode != NONE && opcode < probe.ops_len && (probe.ops[opcode].flags & 1);
}

enum { AS_IT_IS, HIDDEN, REFUSED };

/* Of two words about an operation the later counts. */
static int masked(const char *name) {
    const char *mask = getenv("UPCALL_MASK");
    char text[2048];
    int found = AS_IT_IS;
    snprintf(text, sizeof text, "%s", mask ? mask : "");
    for (char *rest = text, *word; (word = strsep(&rest, ",")) != NULL;) {
        bool refused = *word == '!';
        if (strcmp(word + refused, name) == 0 || strcmp(word + refused, "*") == 0)
            found = refused ? REFUSED : HIDDEN;
    }
    return found;
}

/* ---- One real operation of each kind, in a directory of its own. False: this machine says no, whoever asks. ---- */

#define ENDS(op, wanted) CHECK_EQ(complete(loop, (op)).result, (wanted))

static bool do_nop(upcall_loop *loop) {
    ENDS(upcall_op_nop(), 0);
    return true;
}

static bool do_stream(upcall_loop *loop, uint32_t kind) {
    int fds[2];
    char data[8] = {0};
    struct iovec in[2] = {{data, 2}, {data + 2, 6}}, out[2] = {{"wh", 2}, {"at", 2}};
    bool reads = kind == UPCALL_OP_READ || kind == UPCALL_OP_READV;
    pipe_pair(fds);
    if (reads)
        write_all(fds[1], "what", 4);
    ENDS(kind == UPCALL_OP_READ    ? upcall_op_read(fds[0], data, sizeof data)
         : kind == UPCALL_OP_WRITE ? upcall_op_write(fds[1], "what", 4)
         : reads                   ? upcall_op_readv(fds[0], in, 2)
                                   : upcall_op_writev(fds[1], out, 2), 4);
    if (!reads)
        read_all(fds[0], data, 4);
    CHECK_STR_EQ(data, "what");
    close_pair(fds);
    return true;
}
static bool do_read(upcall_loop *loop) { return do_stream(loop, UPCALL_OP_READ); }
static bool do_write(upcall_loop *loop) { return do_stream(loop, UPCALL_OP_WRITE); }
static bool do_readv(upcall_loop *loop) { return do_stream(loop, UPCALL_OP_READV); }
static bool do_writev(upcall_loop *loop) { return do_stream(loop, UPCALL_OP_WRITEV); }

static bool do_splice(upcall_loop *loop) {
    int fds[2], file = temp_file(100);
    uint8_t data[60];
    pipe_pair(fds);
    ENDS(upcall_op_splice(file, 40, fds[1], -1, 60, 0), 60);
    read_all(fds[0], data, 60);
    CHECK(has_pattern(data, 60, 40));
    close_pair(fds);
    close(file);
    return true;
}

static bool do_tee(upcall_loop *loop) {
    int in[2], out[2];
    char data[5] = {0};
    pipe_pair(in);
    pipe_pair(out);
    write_all(in[1], "what", 4);
    ENDS(upcall_op_tee(in[0], out[1], 10, 0), 4);
    read_all(out[0], data, 4);
    CHECK_STR_EQ(data, "what");
    CHECK(is_readable(in[0], 0));
    close_pair(in);
    close_pair(out);
    return true;
}

static bool do_sendfile(upcall_loop *loop) {
    int fds[2], file = temp_file(100);
    uint8_t data[60];
    unix_pair(fds);
    ENDS(upcall_op_sendfile(fds[1], file, 40, 100), 60);
    read_all(fds[0], data, 60);
    CHECK(has_pattern(data, 60, 40));
    close_pair(fds);
    close(file);
    return true;
}

static bool do_copy_range(upcall_loop *loop) {
    int from = temp_file(100), to = temp_file(0);
    uint8_t data[60];
    ENDS(upcall_op_copy_range(from, 40, to, 0, 100, 0), 60);
    CHECK_EQ(pread(to, data, sizeof data, 0), 60);
    CHECK(has_pattern(data, 60, 40));
    close(from);
    close(to);
    return true;
}

static bool do_file(upcall_loop *loop, uint32_t kind) {
    int file = temp_file(8192);
    struct stat status;
    uint8_t data[64];
    struct iovec parts[2] = {{data, 32}, {data + 32, 32}};
    memset(data, 0, sizeof data);
    switch (kind) {
    case UPCALL_OP_PREAD:
    case UPCALL_OP_PREADV:
        ENDS(kind == UPCALL_OP_PREAD ? upcall_op_pread(file, data, 64, 1000) : upcall_op_preadv(file, parts, 2, 1000, 0), 64);
        CHECK(has_pattern(data, 64, 1000));
        break;
    case UPCALL_OP_PWRITE:
    case UPCALL_OP_PWRITEV:
        fill_pattern(data, 64, 7);
        ENDS(kind == UPCALL_OP_PWRITE ? upcall_op_pwrite(file, data, 64, 9000) : upcall_op_pwritev(file, parts, 2, 9000, 0), 64);
        memset(data, 0, sizeof data);
        CHECK_EQ(pread(file, data, 64, 9000), 64);
        CHECK(has_pattern(data, 64, 7));
        break;
    case UPCALL_OP_FSYNC: ENDS(upcall_op_fsync(file), 0); break;
    case UPCALL_OP_FDATASYNC: ENDS(upcall_op_fdatasync(file), 0); break;
    case UPCALL_OP_SYNC_RANGE: ENDS(upcall_op_sync_range(file, 0, 4096, SYNC_FILE_RANGE_WRITE), 0); break;
    case UPCALL_OP_FADVISE: ENDS(upcall_op_fadvise(file, 0, 0, POSIX_FADV_SEQUENTIAL), 0); break;
    case UPCALL_OP_FTRUNCATE:
        ENDS(upcall_op_ftruncate(file, 5000), 0);
        CHECK(fstat(file, &status) == 0 && status.st_size == 5000);
        break;
    default: { /* fallocate: not every file system can */
        int64_t result = complete(loop, upcall_op_fallocate(file, 0, 0, 20000)).result;
        CHECK(fstat(file, &status) == 0);
        CHECK_EQ(status.st_size, result == 0 ? 20000 : 8192);
        CHECK(result == 0 || result == -EOPNOTSUPP);
        close(file);
        return result == 0;
    }
    }
    close(file);
    return true;
}
#define DO_FILE(name, kind)                                                                                            \
    static bool do_##name(upcall_loop *loop) { return do_file(loop, UPCALL_OP_##kind); }
DO_FILE(pread, PREAD)
DO_FILE(pwrite, PWRITE)
DO_FILE(preadv, PREADV)
DO_FILE(pwritev, PWRITEV)
DO_FILE(fsync, FSYNC)
DO_FILE(fdatasync, FDATASYNC)
DO_FILE(sync_range, SYNC_RANGE)
DO_FILE(fallocate, FALLOCATE)
DO_FILE(ftruncate, FTRUNCATE)
DO_FILE(fadvise, FADVISE)

static bool do_madvise(upcall_loop *loop) {
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    *page = 'x';
    ENDS(upcall_op_madvise(page, 4096, MADV_DONTNEED), 0);
    CHECK_EQ(*page, 0);
    CHECK(munmap(page, 4096) == 0);
    return true;
}

static void is_the_file(int64_t fd) {
    uint8_t data[10];
    CHECK(fd >= 0 && is_cloexec((int)fd));
    CHECK_EQ(pread((int)fd, data, sizeof data, 0), 10);
    CHECK(has_pattern(data, 10, 0));
    close((int)fd);
}

static bool do_open(upcall_loop *loop) {
    make_file("file", 10);
    is_the_file(complete(loop, upcall_op_open(AT_FDCWD, "file", O_RDONLY, 0)).result);
    return true;
}

static bool do_openat2(upcall_loop *loop) {
    struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
    make_file("file", 10);
    is_the_file(complete(loop, upcall_op_openat2(AT_FDCWD, "file", &how, sizeof how)).result);
    return true;
}

static bool do_close(upcall_loop *loop) {
    int file = temp_file(0);
    ENDS(upcall_op_close(file), 0);
    CHECK(!is_open(file));
    return true;
}

static bool do_statx(upcall_loop *loop) {
    struct statx found = {0};
    make_file("file", 10);
    ENDS(upcall_op_statx(AT_FDCWD, "file", 0, STATX_SIZE, &found), 0);
    CHECK_EQ(found.stx_size, 10);
    return true;
}

static bool do_rename(upcall_loop *loop) {
    make_file("file", 10);
    ENDS(upcall_op_rename(AT_FDCWD, "file", AT_FDCWD, "new", 0), 0);
    CHECK(access("new", F_OK) == 0 && access("file", F_OK) != 0);
    return true;
}

static bool do_unlink(upcall_loop *loop) {
    make_file("file", 10);
    ENDS(upcall_op_unlink(AT_FDCWD, "file", 0), 0);
    CHECK(access("file", F_OK) != 0);
    return true;
}

static bool do_mkdir(upcall_loop *loop) {
    struct stat status;
    ENDS(upcall_op_mkdir(AT_FDCWD, "new", 0700), 0);
    CHECK(stat("new", &status) == 0 && S_ISDIR(status.st_mode));
    return true;
}

static bool do_symlink(upcall_loop *loop) {
    char target[16] = {0};
    ENDS(upcall_op_symlink("nowhere", AT_FDCWD, "new"), 0);
    CHECK_EQ(readlink("new", target, sizeof target - 1), 7);
    CHECK_STR_EQ(target, "nowhere");
    return true;
}

static bool do_hardlink(upcall_loop *loop) {
    struct stat status;
    make_file("file", 10);
    ENDS(upcall_op_hardlink(AT_FDCWD, "file", AT_FDCWD, "new", 0), 0);
    CHECK(stat("new", &status) == 0 && status.st_nlink == 2);
    return true;
}

static bool do_xattr(upcall_loop *loop, uint32_t kind) {
    char value[8] = {0};
    make_file("file", 10);
    bool gets = kind == UPCALL_OP_GETXATTR || kind == UPCALL_OP_FGETXATTR, can = true;
    int fd = open("file", O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    if (fsetxattr(fd, "user.probe", "x", 1, 0) != 0 || (gets && fsetxattr(fd, "user.upcall", "value", 5, 0) != 0))
        can = false;
    ENDS(kind == UPCALL_OP_GETXATTR    ? upcall_op_getxattr("file", "user.upcall", value, sizeof value)
         : kind == UPCALL_OP_FGETXATTR ? upcall_op_fgetxattr(fd, "user.upcall", value, sizeof value)
         : kind == UPCALL_OP_SETXATTR  ? upcall_op_setxattr("file", "user.upcall", "value", 5, 0)
                                       : upcall_op_fsetxattr(fd, "user.upcall", "value", 5, 0),
         !can ? -EOPNOTSUPP : gets ? 5 : 0);
    if (can && !gets)
        CHECK_EQ(fgetxattr(fd, "user.upcall", value, sizeof value), 5);
    if (can)
        CHECK_STR_EQ(value, "value");
    close(fd);
    return can;
}
static bool do_getxattr(upcall_loop *loop) { return do_xattr(loop, UPCALL_OP_GETXATTR); }
static bool do_setxattr(upcall_loop *loop) { return do_xattr(loop, UPCALL_OP_SETXATTR); }
static bool do_fgetxattr(upcall_loop *loop) { return do_xattr(loop, UPCALL_OP_FGETXATTR); }
static bool do_fsetxattr(upcall_loop *loop) { return do_xattr(loop, UPCALL_OP_FSETXATTR); }

static bool do_readdir(upcall_loop *loop) {
    uint64_t words[128];
    size_t names = 0;
    make_file("file", 10);
    int fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int64_t result = complete(loop, upcall_op_readdir(fd, words, sizeof words)).result;
    CHECK(result > 0);
    for (const struct upcall_dirent *d = NULL; (d = upcall_dirent_next(words, result, d)) != NULL;)
        names++;
    CHECK_EQ(names, 3); /* with "." and ".." */
    close(fd);
    return true;
}

static bool do_socket(upcall_loop *loop) {
    int64_t fd = complete(loop, upcall_op_socket(AF_INET, SOCK_STREAM, 0)).result;
    CHECK(fd >= 0 && is_cloexec((int)fd));
    close((int)fd);
    return true;
}

static bool do_bind(upcall_loop *loop) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ENDS(upcall_op_bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &length) == 0 && address.sin_port != 0);
    close(fd);
    return true;
}

static bool do_listen(upcall_loop *loop) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), listening = 0;
    socklen_t length = sizeof listening;
    ENDS(upcall_op_listen(fd, 4), 0);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 && listening);
    close(fd);
    return true;
}

static bool do_accept(upcall_loop *loop) {
    struct sockaddr_in address;
    int listener = tcp_listener(&address, SOCK_NONBLOCK, 4), peer = tcp_connected_to(&address);
    int64_t fd = complete(loop, upcall_op_accept(listener, NULL, NULL, 0)).result;
    CHECK(fd >= 0 && is_cloexec((int)fd));
    close((int)fd);
    close(peer);
    close(listener);
    return true;
}

static bool do_connect(upcall_loop *loop) {
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 4), fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ENDS(upcall_op_connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    socklen_t length = sizeof address;
    CHECK(getpeername(fd, (struct sockaddr *)&address, &length) == 0);
    close(fd);
    close(listener);
    return true;
}

static bool do_message(upcall_loop *loop, uint32_t kind) {
    int fds[2];
    char data[8] = {0};
    struct iovec in = {data, sizeof data}, out = {"what", 4};
    struct msghdr to = {.msg_iov = &in, .msg_iovlen = 1}, from = {.msg_iov = &out, .msg_iovlen = 1};
    struct sockaddr_storage sender;
    socklen_t length = sizeof sender;
    upcall_op op;
    bool sends = false;
    unix_pair(fds);
    switch (kind) {
    case UPCALL_OP_RECV: op = upcall_op_recv(fds[0], data, sizeof data, 0); break;
    case UPCALL_OP_RECVFROM:
        op = upcall_op_recvfrom(fds[0], data, sizeof data, 0, (struct sockaddr *)&sender, &length);
        break;
    case UPCALL_OP_RECVMSG: op = upcall_op_recvmsg(fds[0], &to, 0); break;
    case UPCALL_OP_SEND: op = upcall_op_send(fds[1], "what", 4, 0), sends = true; break;
    case UPCALL_OP_SENDTO: op = upcall_op_sendto(fds[1], "what", 4, 0, NULL, 0), sends = true; break;
    default: op = upcall_op_sendmsg(fds[1], &from, 0), sends = true; break;
    }
    if (!sends)
        write_all(fds[1], "what", 4);
    ENDS(op, 4);
    if (sends)
        read_all(fds[0], data, 4);
    CHECK_STR_EQ(data, "what");
    close_pair(fds);
    return true;
}
static bool do_recv(upcall_loop *loop) { return do_message(loop, UPCALL_OP_RECV); }
static bool do_send(upcall_loop *loop) { return do_message(loop, UPCALL_OP_SEND); }
static bool do_recvfrom(upcall_loop *loop) { return do_message(loop, UPCALL_OP_RECVFROM); }
static bool do_sendto(upcall_loop *loop) { return do_message(loop, UPCALL_OP_SENDTO); }
static bool do_recvmsg(upcall_loop *loop) { return do_message(loop, UPCALL_OP_RECVMSG); }
static bool do_sendmsg(upcall_loop *loop) { return do_message(loop, UPCALL_OP_SENDMSG); }

static bool do_shutdown(upcall_loop *loop) {
    int fds[2];
    char data;
    unix_pair(fds);
    ENDS(upcall_op_shutdown(fds[1], SHUT_WR), 0);
    CHECK_EQ(read(fds[0], &data, 1), 0);
    close_pair(fds);
    return true;
}

static bool do_getsockopt(upcall_loop *loop) {
    int fds[2], type = 0;
    socklen_t length = sizeof type;
    unix_pair(fds);
    ENDS(upcall_op_getsockopt(fds[0], SOL_SOCKET, SO_TYPE, &type, &length), 0);
    CHECK_EQ(type, SOCK_STREAM);
    close_pair(fds);
    return true;
}

static bool do_setsockopt(upcall_loop *loop) {
    int fds[2], on = 1, found = 0;
    socklen_t length = sizeof found;
    unix_pair(fds);
    ENDS(upcall_op_setsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
    CHECK(getsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &found, &length) == 0 && found == 1);
    close_pair(fds);
    return true;
}

static bool do_pipe(upcall_loop *loop) {
    int fds[2] = {-1, -1};
    ENDS(upcall_op_pipe(fds, 0), 0);
    CHECK(is_cloexec(fds[0]) && is_cloexec(fds[1]));
    write_all(fds[1], "x", 1);
    CHECK(is_readable(fds[0], 0));
    close_pair(fds);
    return true;
}

static bool do_poll(upcall_loop *loop) {
    int fds[2];
    pipe_pair(fds);
    write_all(fds[1], "x", 1);
    ENDS(upcall_op_poll(fds[0], POLLIN), POLLIN);
    close_pair(fds);
    return true;
}

static bool do_sleep(upcall_loop *loop) {
    uint64_t before = now_ns();
    ENDS(upcall_op_sleep(UPCALL_MILLISECOND), 0);
    CHECK(now_ns() - before >= UPCALL_MILLISECOND);
    return true;
}

static bool do_sleep_until(upcall_loop *loop) {
    uint64_t then = now_ns() + UPCALL_MILLISECOND;
    ENDS(upcall_op_sleep_until(then), 0);
    CHECK(now_ns() >= then);
    return true;
}

static bool do_signal(upcall_loop *loop) {
    struct recorder rec = {0};
    submit_one(loop, upcall_op_signal(SIGUSR1), &rec);
    start_all(loop);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIGUSR1);
    forget(&rec);
    return true;
}

static bool do_waitid(upcall_loop *loop) {
    siginfo_t info = {0};
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(7);
    ENDS(upcall_op_waitid(P_PID, (uint32_t)child, &info, WEXITED), 0);
    CHECK_EQ(info.si_pid, child);
    CHECK_EQ(info.si_status, 7);
    return true;
}

static uint32_t word;

/* A value that has changed already: what a woken one does is op_futex.c's affair. */
static bool do_futex_wait(upcall_loop *loop) {
    word = 7;
    ENDS(upcall_op_futex_wait(&word, 8, UINT32_MAX, UPCALL_FUTEX_PRIVATE), 1);
    return true;
}

static bool do_futex_wake(upcall_loop *loop) {
    ENDS(upcall_op_futex_wake(&word, 1, UINT32_MAX, UPCALL_FUTEX_PRIVATE), 0);
    return true;
}

static int64_t seven(void *arg) {
    return arg == &word ? 7 : -1;
}

static bool do_work(upcall_loop *loop) {
    ENDS(upcall_op_work(seven, &word), 7);
    return true;
}

static bool do_getaddrinfo(upcall_loop *loop) {
    struct addrinfo *list = NULL, hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
    ENDS(upcall_op_getaddrinfo("127.0.0.1", "80", &hints, &list), 0);
    CHECK(list != NULL && list->ai_family == AF_INET);
    freeaddrinfo(list);
    return true;
}

/* ---- The table. ---- */

static const struct way {
    uint32_t kind;
    int opcode; /* of the native form */
    bool (*run)(upcall_loop *loop);
} ways[] = {
#define WAY(kind, name, opcode) {UPCALL_OP_##kind, opcode, do_##name}
    WAY(NOP, nop, NOP), WAY(READ, read, READ), WAY(WRITE, write, WRITE), WAY(READV, readv, READV),
    WAY(WRITEV, writev, WRITEV), WAY(SPLICE, splice, NONE), WAY(TEE, tee, NONE), WAY(PREAD, pread, READ),
    WAY(PWRITE, pwrite, WRITE), WAY(PREADV, preadv, READV), WAY(PWRITEV, pwritev, WRITEV), WAY(FSYNC, fsync, FSYNC),
    WAY(FDATASYNC, fdatasync, FSYNC), WAY(SYNC_RANGE, sync_range, SYNC_FILE_RANGE),
    WAY(FALLOCATE, fallocate, FALLOCATE), WAY(FTRUNCATE, ftruncate, FTRUNCATE), WAY(FADVISE, fadvise, FADVISE),
    WAY(MADVISE, madvise, MADVISE), WAY(COPY_RANGE, copy_range, NONE), WAY(OPEN, open, OPENAT),
    WAY(OPENAT2, openat2, OPENAT2), WAY(CLOSE, close, CLOSE), WAY(STATX, statx, STATX_),
    WAY(RENAME, rename, RENAMEAT), WAY(UNLINK, unlink, UNLINKAT), WAY(MKDIR, mkdir, MKDIRAT),
    WAY(SYMLINK, symlink, SYMLINKAT), WAY(HARDLINK, hardlink, LINKAT), WAY(GETXATTR, getxattr, GETXATTR),
    WAY(SETXATTR, setxattr, SETXATTR), WAY(FGETXATTR, fgetxattr, FGETXATTR), WAY(FSETXATTR, fsetxattr, FSETXATTR),
    WAY(READDIR, readdir, NONE), WAY(SENDFILE, sendfile, NONE), WAY(SOCKET, socket, SOCKET), WAY(BIND, bind, BIND),
    WAY(LISTEN, listen, LISTEN), WAY(ACCEPT, accept, ACCEPT), WAY(CONNECT, connect, CONNECT), WAY(RECV, recv, RECV),
    WAY(SEND, send, SEND), WAY(RECVFROM, recvfrom, RECVMSG), WAY(SENDTO, sendto, SENDMSG),
    WAY(RECVMSG, recvmsg, RECVMSG), WAY(SENDMSG, sendmsg, SENDMSG), WAY(SHUTDOWN, shutdown, SHUTDOWN),
    WAY(GETSOCKOPT, getsockopt, NONE), WAY(SETSOCKOPT, setsockopt, NONE), WAY(PIPE, pipe, PIPE_),
    WAY(POLL, poll, POLL_ADD), WAY(SLEEP, sleep, NONE), WAY(SLEEP_UNTIL, sleep_until, NONE),
    WAY(SIGNAL, signal, NONE), WAY(WAITID, waitid, WAITID), WAY(FUTEX_WAIT, futex_wait, FUTEX_WAIT_),
    WAY(FUTEX_WAKE, futex_wake, FUTEX_WAKE_), WAY(WORK, work, NONE), WAY(GETADDRINFO, getaddrinfo, NONE),
#undef WAY
};

static const struct way *way_of(uint32_t kind) {
    for (size_t i = 0; i < COUNT_OF(ways); i++)
        if (ways[i].kind == kind)
            return &ways[i];
    return NULL;
}

static void supported(upcall_loop *loop, const struct way *way, int wanted, const char *when) {
    int found = upcall_supports(loop, way->kind);
    if (found != wanted)
        fail(HERE, "upcall_supports(%s) is %d %s, not %d", upcall_op_name(way->kind), found, when, wanted);
}

static void run_way(upcall_loop *loop, const struct way *way, int after) {
    char when[64];
    for (int time = 1; time <= 2; time++) {
        enter_scratch();
        bool told = way->run(loop);
        leave_scratch();
        if (!told) {
            dprintf(STDOUT_FILENO, "  %s: not on this file system\n", upcall_op_name(way->kind));
            return;
        }
        snprintf(when, sizeof when, "after it ran %d times", time);
        supported(loop, way, after, when);
    }
}

/* ---- Tests. ---- */

TEST(the_table_has_the_whole_catalogue) {
    size_t kinds = 0;
    for (uint32_t kind = 0; kind < 1024; kind++) {
        bool known = strcmp(upcall_op_name(kind), "unknown") != 0;
        kinds += known;
        if (known != (way_of(kind) != NULL))
            fail(HERE, "kind %u (%s) is in the catalogue: %d, in the table: %d", kind, upcall_op_name(kind), known,
                 way_of(kind) != NULL);
    }
    CHECK_EQ(kinds, COUNT_OF(ways));
}

TEST_FOR(every_operation_is_done_as_it_is_said, 60) {
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        const char *name = upcall_op_name(ways[i].kind);
        bool has = !on_epoll(loop) && kernel_has(ways[i].opcode) && masked(name) != HIDDEN;
        supported(loop, &ways[i], has ? UPCALL_NATIVE : UPCALL_EMULATED, "before it is used");
        /* A refusal is noticed once and for good, unseen by the program. */
        run_way(loop, &ways[i], has && masked(name) != REFUSED ? UPCALL_NATIVE : UPCALL_EMULATED);
    }
    free_loop(loop);
}

TEST(what_is_refused_is_learnt_by_each_loop) {
    setenv("UPCALL_MASK", "!nop,!pread", 1);
    upcall_loop *first = new_loop(), *second = new_loop();
    int before = on_epoll(first) ? UPCALL_EMULATED : UPCALL_NATIVE;
    upcall_stats stats;
    run_way(first, way_of(UPCALL_OP_NOP), UPCALL_EMULATED);
    supported(first, way_of(UPCALL_OP_PREAD), before, "before it is used");
    supported(second, way_of(UPCALL_OP_NOP), before, "on another loop");
    run_way(second, way_of(UPCALL_OP_NOP), UPCALL_EMULATED);
    CHECK_EQ(upcall_stats_get(first, &stats), 0);
    CHECK_EQ(stats.completed, 2);
    CHECK_EQ(stats.native_operations, 0);
    free_loop(first);
    free_loop(second);
}

TEST(what_is_no_kind_is_unsupported) {
    static const uint32_t strange[] = {0, 39, 126, 127, 128, 1000, INT32_MAX, UINT32_MAX};
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(strange); i++) {
        upcall_op op = upcall_op_nop();
        op.kind = strange[i];
        CHECK_STR_EQ(upcall_op_name(strange[i]), "unknown");
        CHECK_EQ(upcall_supports(loop, strange[i]), UPCALL_UNSUPPORTED);
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -EINVAL);
    }
    free_loop(loop);
}

/* ---- UPCALL_MASK. ---- */

static const char *const features[] = {"multishot", "buffer_rings", "bundles", "zerocopy", "registered_buffers",
                                       "ext_arg", "defer_taskrun", "coop_taskrun", "no_sqarray", "absolute_timeout",
                                       "no_iowait"};

/* Also for loops that have no ring: a program that is to run anywhere is told of a mistake everywhere. */
TEST(a_word_that_means_nothing_makes_no_loop) {
    static const char *const bad[][2] = {
        {"stat", "\"stat\""},           {"statx,recvs", "\"recvs\""},    {"multishot,!multishot", "\"!multishot\""},
        {"!ext_arg", "\"!ext_arg\""},   {"!", "\"!\""},                  {"!!recv", "\"!!recv\""},
        {"**", "\"**\""},               {"RECV", "\"RECV\""},            {"recv;send", "\"recv;send\""},
        {"! recv", "\"! recv\""},       {"unknown", "\"unknown\""},      {"\xff", "UPCALL_MASK"},
    };
    static const upcall_backend backends[] = {UPCALL_BACKEND_AUTO, UPCALL_BACKEND_IO_URING, UPCALL_BACKEND_EPOLL};
    int fds = open_fd_count();
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        for (size_t k = 0; k < COUNT_OF(backends); k++) {
            upcall_config config = default_config();
            upcall_loop *loop = (upcall_loop *)&config;
            config.backend = backends[k];
            setenv("UPCALL_MASK", bad[i][0], 1);
            CHECK_EQ(upcall_loop_new(&config, &loop), -EINVAL);
            CHECK(loop == NULL);
            CHECK_STR_CONTAINS(upcall_last_error(), "UPCALL_MASK");
            CHECK_STR_CONTAINS(upcall_last_error(), bad[i][1]);
            for (size_t f = 0; f < COUNT_OF(features); f++)
                CHECK_STR_CONTAINS(upcall_last_error(), features[f]);
        }
    CHECK_EQ(open_fd_count(), fds);
    unsetenv("UPCALL_MASK");
    free_loop(new_loop());
}

TEST(a_mask_of_nothing_is_no_mask) {
    static const char *const empty[] = {"", ",", " , ,, "};
    for (size_t i = 0; i < COUNT_OF(empty); i++) {
        setenv("UPCALL_MASK", empty[i], 1);
        upcall_loop *loop = new_loop();
        CHECK_EQ(upcall_supports(loop, UPCALL_OP_NOP), on_epoll(loop) ? UPCALL_EMULATED : UPCALL_NATIVE);
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        free_loop(loop);
    }
}

TEST(the_later_word_counts) {
    setenv("UPCALL_MASK", "*, !nop ,!fsync,fsync", 1);
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_supports(loop, UPCALL_OP_NOP), on_epoll(loop) ? UPCALL_EMULATED : UPCALL_NATIVE);
    CHECK_EQ(upcall_supports(loop, UPCALL_OP_FSYNC), UPCALL_EMULATED);
    CHECK_EQ(upcall_supports(loop, UPCALL_OP_READ), UPCALL_EMULATED);
    run_way(loop, way_of(UPCALL_OP_NOP), UPCALL_EMULATED);
    free_loop(loop);
}

/* The mask is read when a loop is made, and not later. */
TEST(a_loop_keeps_its_mask) {
    unsetenv("UPCALL_MASK");
    upcall_loop *loop = new_loop();
    setenv("UPCALL_MASK", "nop", 1);
    CHECK_EQ(upcall_supports(loop, UPCALL_OP_NOP), on_epoll(loop) ? UPCALL_EMULATED : UPCALL_NATIVE);
    CHECK_EQ(upcall_loop_detach(loop), 0); /* its next owner's ring is a new one */
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    CHECK_EQ(upcall_supports(loop, UPCALL_OP_NOP), on_epoll(loop) ? UPCALL_EMULATED : UPCALL_NATIVE);
    free_loop(loop);
}

TEST(the_reason_shows_the_mask_of_a_ring) {
    setenv("UPCALL_MASK", "multishot,!statx", 1);
    upcall_loop *loop = new_loop();
    if (on_epoll(loop))
        CHECK(strstr(upcall_backend_reason(loop), "statx") == NULL); /* it masks nothing here */
    else
        CHECK_STR_CONTAINS(upcall_backend_reason(loop), "; UPCALL_MASK=multishot,!statx");
    free_loop(loop);
    unsetenv("UPCALL_MASK");
    loop = new_loop();
    CHECK(strstr(upcall_backend_reason(loop), "MASK") == NULL);
    free_loop(loop);
}

TEST(without_ext_arg_there_is_no_ring_and_the_reason_says_so) {
    char params[120] = {0};
    long ring = syscall(SYS_io_uring_setup, 4, params);
    if (ring < 0)
        SKIP("io_uring is denied here");
    close((int)ring);
    setenv("UPCALL_MASK", "ext_arg", 1);
    unsetenv("UPCALL_BACKEND");
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_loop_backend(loop), UPCALL_BACKEND_EPOLL);
    CHECK_STR_CONTAINS(upcall_backend_reason(loop), "lacks EXT_ARG; UPCALL_MASK=ext_arg");
    run_way(loop, way_of(UPCALL_OP_NOP), UPCALL_EMULATED);
    free_loop(loop);
    upcall_config config = default_config();
    config.backend = UPCALL_BACKEND_IO_URING;
    CHECK_EQ(upcall_loop_new(&config, &loop), -EOPNOTSUPP);
    CHECK_STR_CONTAINS(upcall_last_error(), "lacks EXT_ARG; UPCALL_MASK=ext_arg");
}
