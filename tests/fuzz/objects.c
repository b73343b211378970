/* Descriptors, names and addresses for the boundary fuzzer. Nothing here reaches outside a private directory, the loopback
   interface and this process: names are relative and from a table, addresses are from a table, and descriptors have fixed
   high numbers, so that a number that is closed is never the library's next one. */

#include "fuzz.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define BASE 200
#define ADOPTED 24
#define CLOSED (BASE + OBJECTS + ADOPTED + 7)

enum { UNMADE, OPEN, GONE };
static uint8_t state[OBJECTS + ADOPTED];
static pid_t child;
static struct sockaddr_in to_listener, to_udp, to_nobody;
static struct sockaddr_in6 to_nobody6;
static struct sockaddr_un to_unix, unix_name;

/* Moves a descriptor to its number. */
static void put(int which, int fd) {
    MUST(fd >= 0, "object %d cannot be made: %s", which, strerror(errno));
    MUST(dup3(fd, BASE + which, O_CLOEXEC) >= 0, "dup3: %s", strerror(errno));
    if (fd != BASE + which)
        close(fd);
    state[which] = OPEN;
}

static void put_two(int first, int fds[2]) {
    put(first, fds[0]);
    put(first + 1, fds[1]);
}

static const char text[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static void pair(int first, int domain, int type) {
    int fds[2];
    MUST(socketpair(domain, type | SOCK_CLOEXEC, 0, fds) == 0, "socketpair: %s", strerror(errno));
    if (type & SOCK_NONBLOCK)
        for (int i = 0; i < 6; i++)
            MUST(write(fds[i & 1], text, 64 - i) > 0, "write");
    put_two(first, fds);
}

static void listen_at(int which, int type) {
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    MUST(bind(fd, (struct sockaddr *)&here, sizeof here) == 0, "bind: %s", strerror(errno));
    MUST(getsockname(fd, (struct sockaddr *)&here, &length) == 0, "getsockname");
    if (type & SOCK_STREAM && !(type & SOCK_DGRAM)) {
        MUST(listen(fd, 4) == 0, "listen: %s", strerror(errno));
        to_listener = here;
        int waiting = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)!connect(waiting, (struct sockaddr *)&here, sizeof here);
        close(waiting);
    } else {
        to_udp = here;
    }
    put(which, fd);
}

static void make_file(void) {
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0600);
    struct stat now;
    /* An operation may have given the name to something else. */
    if (fd >= 0 && (fstat(fd, &now) != 0 || !S_ISREG(now.st_mode))) {
        close(fd);
        fd = -1;
    }
    if (fd < 0)
        fd = open(".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    MUST(fd >= 0, "file: %s", strerror(errno));
    for (int i = 0; i < 150; i++)
        MUST(write(fd, text, 64) == 64, "write: %s", strerror(errno));
    MUST(lseek(fd, 0, SEEK_SET) == 0, "lseek");
    put(FILE_RW, fd);
}

static void need(int which);

static void make(int which) {
    int fds[2];
    switch (which) {
    case PIPE_OUT:
    case PIPE_IN:
        MUST(pipe2(fds, O_CLOEXEC) == 0, "pipe2");
        put_two(PIPE_OUT, fds);
        break;
    case QUIET_PIPE_OUT:
    case QUIET_PIPE_IN:
        MUST(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0 && write(fds[1], text, 64) == 64, "pipe2");
        put_two(QUIET_PIPE_OUT, fds);
        break;
    case STREAM_A:
    case STREAM_B:
        pair(STREAM_A, AF_UNIX, SOCK_STREAM);
        break;
    case QUIET_STREAM_A:
    case QUIET_STREAM_B:
        pair(QUIET_STREAM_A, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
        break;
    case DATAGRAM_A:
    case DATAGRAM_B:
        pair(DATAGRAM_A, AF_UNIX, SOCK_DGRAM);
        break;
    case PACKET_A:
    case PACKET_B:
        pair(PACKET_A, AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK);
        break;
    case FILE_RW:
        make_file();
        break;
    case FILE_IN:
    case FILE_APPEND:
    case FILE_DIRECT:
    case FILE_PATH: {
        need(FILE_RW);
        static const int how[] = {O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_DIRECT, O_PATH};
        int flags = how[which - FILE_IN] | O_CLOEXEC;
        char same[40];
        snprintf(same, sizeof same, "/proc/self/fd/%d", BASE + FILE_RW);
        int fd = state[FILE_RW] == OPEN ? open(same, flags) : open("/dev/null", flags & ~O_DIRECT);
        put(which, fd >= 0 ? fd : open(same, flags & ~O_DIRECT));
        break;
    }
    case DIRECTORY:
        put(which, open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        break;
    case EVENT:
        put(which, eventfd(3, EFD_CLOEXEC));
        break;
    case TIMER:
        put(which, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
        break;
    case SET:
        put(which, epoll_create1(EPOLL_CLOEXEC));
        break;
    case LISTENER:
        listen_at(which, SOCK_STREAM);
        break;
    case QUIET_LISTENER:
        listen_at(which, SOCK_STREAM | SOCK_NONBLOCK);
        break;
    case UNIX_LISTENER: {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        unlink(to_unix.sun_path);
        if (bind(fd, (struct sockaddr *)&to_unix, sizeof to_unix) != 0)
            (void)!bind(fd, (struct sockaddr *)&to_unix, sizeof(sa_family_t));
        MUST(listen(fd, 1) == 0, "unix: %s", strerror(errno));
        put(which, fd);
        break;
    }
    case TCP_A:
    case TCP_B: {
        need(QUIET_LISTENER);
        struct sockaddr_in at;
        socklen_t length = sizeof at;
        MUST(getsockname(BASE + QUIET_LISTENER, (struct sockaddr *)&at, &length) == 0, "getsockname");
        fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        fds[1] = -1;
        if (at.sin_family == AF_INET && at.sin_port != 0) {
            (void)!connect(fds[0], (struct sockaddr *)&at, length);
            fds[1] = accept4(BASE + QUIET_LISTENER, NULL, NULL, SOCK_CLOEXEC);
        }
        /* The listener may be shut down already, or another accept was faster: then it is one that connects to nobody. */
        if (fds[1] < 0)
            fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        (void)!send(fds[0], text, 64, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)!send(fds[1], text, 64, MSG_DONTWAIT | MSG_NOSIGNAL);
        put_two(TCP_A, fds);
        break;
    }
    case UDP_A:
        listen_at(which, SOCK_DGRAM);
        break;
    case UDP_B:
        need(UDP_A);
        fds[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)!sendto(fds[0], text, 64, MSG_DONTWAIT, (struct sockaddr *)&to_udp, sizeof to_udp);
        put(which, fds[0]);
        break;
    case SOCKET:
        put(which, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        break;
    case QUIET_SOCKET:
        put(which, socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        break;
    case UNIX_SOCKET:
        put(which, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        break;
    case PIDFD:
        put(which, (int)syscall(SYS_pidfd_open, child, 0));
        break;
    case NULL_FILE:
        put(which, open("/dev/null", O_RDWR | O_CLOEXEC));
        break;
    case FIFO:
        if (mkfifo("fifo", 0600) != 0)
            MUST(errno == EEXIST, "mkfifo: %s", strerror(errno));
        fds[0] = open("fifo", O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        /* An operation may have given the name to something else. */
        put(which, fds[0] >= 0 ? fds[0] : open("/dev/null", O_RDWR | O_CLOEXEC));
        break;
    case TERMINAL:
    case MASTER:
        fds[1] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        fds[0] = -1;
        if (fds[1] >= 0 && grantpt(fds[1]) == 0 && unlockpt(fds[1]) == 0)
            fds[0] = ioctl(fds[1], TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (fds[1] < 0)
            fds[1] = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (fds[0] < 0)
            fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
        put_two(TERMINAL, fds);
        break;
    }
}

static void need(int which) {
    if (state[which] == UNMADE)
        make(which);
}

int object(void) {
    static const int wrong[] = {-1, INT_MAX, INT_MIN, AT_FDCWD, CLOSED, BASE - 1};
    unsigned choice = take8() % (OBJECTS + ADOPTED + sizeof wrong / sizeof *wrong);
    if (choice < OBJECTS) {
        choice += choice == 0;
        need((int)choice);
        return BASE + (int)choice;
    }
    if (choice < OBJECTS + ADOPTED)
        return BASE + (int)choice;
    return wrong[choice - OBJECTS - ADOPTED];
}

int object_like(const char *kinds) {
    uint8_t choice = take8();
    if (choice >= 192)
        return object();
    int which = kinds[choice % strlen(kinds)];
    need(which);
    return BASE + which;
}

int object_file(void) {
    int which = FILE_RW + take8() % 5;
    need(which);
    return BASE + which;
}

int object_child(void) { return child; }

int object_pidfd(void) {
    need(PIDFD);
    return BASE + PIDFD;
}

int adopt(int fd) {
    MUST(fcntl(fd, F_GETFD) == FD_CLOEXEC, "descriptor %d of an operation is not open and close-on-exec", fd);
    for (int which = OBJECTS; which < OBJECTS + ADOPTED; which++)
        if (state[which] != OPEN) {
            put(which, fd);
            return BASE + which;
        }
    close(fd);
    return -1;
}

void forget_closed(int fd) {
    if (fd >= BASE && fd < BASE + OBJECTS + ADOPTED)
        state[fd - BASE] = GONE;
}

/* Neither waits nor raises: a file that cannot be asked not to wait is left alone. */
void object_peer(void) {
    static char bytes[4096];
    int fd = object();
    size_t length = one_in(4) ? sizeof bytes : 1 + take8() % 100u;
    struct iovec part = {bytes, length};
    if (fd == BASE + TIMER || fd == BASE + SET)
        return;
    int raised_before = raised;
    switch (take8() % 7) {
    case 0:
        if (send(fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == ENOTSOCK && fd != BASE + FILE_RW)
            (void)!pwritev2(fd, &part, 1, -1, RWF_NOWAIT);
        raised = raised_before; /* this write's own */
        break;
    case 1:
        if (recv(fd, bytes, length, MSG_DONTWAIT) < 0 && errno == ENOTSOCK)
            (void)!preadv2(fd, &part, 1, -1, RWF_NOWAIT);
        break;
    case 2: {
        static const int hows[] = {SHUT_RD, SHUT_WR, SHUT_RDWR};
        shutdown(fd, hows[take8() % 3]);
        break;
    }
    case 3: {
        socklen_t length_of;
        const void *address = object_address(&length_of);
        int socket_of = socket(*(const sa_family_t *)address == AF_UNIX ? AF_UNIX : AF_INET,
                               SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (socket_of >= 0) {
            (void)!connect(socket_of, address, length_of);
            adopt(socket_of);
        }
        break;
    }
    case 4:
        kill(getpid(), one_in(2) ? SIGURG : SIGWINCH);
        break;
    case 6:
        kill(child, one_in(2) ? SIGSTOP : SIGCONT);
        break;
    case 5: {
        struct itimerspec soon = {.it_value.tv_nsec = 1 + take8() * 1000};
        need(TIMER);
        timerfd_settime(BASE + TIMER, 0, &soon, NULL);
        break;
    }
    }
}

const char *object_path(void) {
    static char longest[5000];
    static const char *const names[] = {"file", "file", "file", "file", "file", "new", "new", "new", "d", "d", "", ".", "d", "d/x", "new", "new2", "link", "fifo", "sock", "file/x", "nothing"};
    static const int lengths[] = {255, 256, PATH_MAX - 1, PATH_MAX, 4999};
    unsigned choice = take8() % (sizeof names / sizeof *names + sizeof lengths / sizeof *lengths);
    if (choice < sizeof names / sizeof *names)
        return names[choice];
    int length = lengths[choice - sizeof names / sizeof *names];
    memset(longest, 'n', (size_t)length);
    longest[length] = 0;
    return longest;
}

const void *object_address(socklen_t *length) {
    static struct sockaddr_storage odd;
    switch (take8() % 8) {
    case 0:
        need(LISTENER);
        *length = sizeof to_listener;
        return &to_listener;
    case 1:
        need(UDP_A);
        *length = sizeof to_udp;
        return &to_udp;
    case 2:
        *length = sizeof to_nobody;
        return &to_nobody;
    case 3:
        *length = sizeof to_nobody6;
        return &to_nobody6;
    case 4:
        need(UNIX_LISTENER);
        *length = sizeof to_unix;
        return &to_unix;
    case 5: /* an abstract name of this process */
        *length = sizeof unix_name;
        return &unix_name;
    case 6:
        memset(&odd, 0, sizeof odd);
        odd.ss_family = AF_UNSPEC;
        *length = take8();
        return &odd;
    default:
        memset(&odd, take8(), sizeof odd);
        odd.ss_family = 0x7f00;
        *length = take8();
        return &odd;
    }
}

#define OWN_MEMORY (16u << 12)

void *object_memory(size_t *room) {
    static void *memory;
    if (!memory)
        memory = mmap(NULL, OWN_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *room = OWN_MEMORY;
    return memory;
}

static void remove_all(int directory) {
    DIR *stream = fdopendir(directory);
    if (!stream)
        return;
    for (struct dirent *entry; (entry = readdir(stream));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) == 0)
            continue;
        int inner = openat(dirfd(stream), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (inner >= 0)
            remove_all(inner);
        unlinkat(dirfd(stream), entry->d_name, AT_REMOVEDIR);
    }
    closedir(stream);
}

void objects_end_run(void) {
    for (int which = 0; which < OBJECTS + ADOPTED; which++) {
        if (state[which] == OPEN)
            close(BASE + which);
        state[which] = UNMADE;
    }
    remove_all(open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static char home[4096];

static void leave(void) {
    objects_end_run();
    if (chdir("/") == 0)
        rmdir(home);
}

void objects_begin(void) {
    const char *where = getenv("TMPDIR");
    snprintf(home, sizeof home, "%s/upcall-fuzz-XXXXXX", where ? where : "/tmp");
    MUST(mkdtemp(home) && chdir(home) == 0, "%s: %s", home, strerror(errno));
    to_nobody = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(1)};
    to_listener = to_udp = to_nobody;
    to_nobody6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT, .sin6_port = htons(1)};
    to_unix = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "sock"};
    unix_name = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(unix_name.sun_path + 1, sizeof unix_name.sun_path - 1, "upcall-fuzz-%d", (int)getpid());
    child = fork();
    MUST(child >= 0, "fork: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    atexit(leave);
}
