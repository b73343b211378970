/* The other side of the echo servers.
 *
 * lockstep: client and server take turns on one thread. The client sends one message on every connection, the server runs
 * until it has given all of them back, the client receives and compares every byte. Only the server's part is timed, so
 * the figure is the server's own cost with a known number of ready connections, and no load generator can be in the way.
 *
 * echo: the server on one core, a load on another that keeps one message in flight on every connection. The load is the same
 * program for all (epoll, one read and one write per message); when its own processor time is above 90 % of the
 * window it is the load that was measured.
 *
 * idle: what a connection costs in memory after it has carried one message. */
#include "harness.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#include <linux/ptrace.h>

uint64_t bench_echoed;
unsigned bench_connections;

size_t bench_buffer_size(size_t message) {
    return (message + 4096) / 4096 * 4096;
}

static size_t message, connections;
static bool datagrams;
static const struct bench_server *server;
static struct sockaddr_storage address;
static socklen_t address_length = sizeof address;

static int open_server(void) {
    const char *family = bench_text("family", "tcp");
    message = (size_t)bench_number("message", 64);
    connections = (size_t)bench_number("connections", 64);
    BENCH_CHECK(message >= 16 && connections >= 1);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    bool local = strcmp(family, "unix") == 0;
    datagrams = strcmp(family, "udp") == 0;
    if (!local && !datagrams && strcmp(family, "tcp") != 0)
        bench_die("family", "tcp, unix or udp");
    server = datagrams ? bench_contestant.datagram : bench_contestant.stream;
    if (!server)
        bench_skip("no such server");
    struct rlimit files;
    bench_call(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    size_t needed = connections * 2 + 64;
    if (files.rlim_cur < needed)
        bench_skip("RLIMIT_NOFILE is too low for so many connections");
    int fd = (int)bench_call(socket(local ? AF_UNIX : AF_INET,
                                    (datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    int on = 1;
    if (!local && !datagrams)
        bench_call(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
    if (local) /* an abstract name that the kernel chooses */
        bench_call(bind(fd, (struct sockaddr *)&un, sizeof un.sun_family), "bind");
    else
        bench_call(bind(fd, (struct sockaddr *)&in, sizeof in), "bind");
    if (!datagrams)
        bench_call(listen(fd, 4096), "listen");
    bench_call(getsockname(fd, (struct sockaddr *)&address, &address_length), "getsockname");
    return fd;
}

static int open_client(void) {
    int on = 1;
    int fd = (int)bench_call(socket(address.ss_family, (datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0), "socket");
    if (address.ss_family == AF_INET && !datagrams)
        bench_call(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
    bench_call(connect(fd, (struct sockaddr *)&address, address_length), "connect");
    return fd;
}

static void send_all(int fd, const char *data, size_t size) {
    for (size_t at = 0; at < size;)
        at += (size_t)bench_call(send(fd, data + at, size - at, MSG_NOSIGNAL), "send");
}

static void receive_all(int fd, char *data, size_t size) {
    for (size_t at = 0; at < size;) {
        long got = bench_call(recv(fd, data + at, size - at, 0), "recv");
        BENCH_CHECK(got > 0);
        at += (size_t)got;
    }
}

/* Every message is another one: numbers at both ends, and noise between them. */
static char *make_message(void) {
    char *text = bench_memory(message);
    uint64_t x = 88172645463325252u;
    for (size_t i = 0; i < message; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        text[i] = (char)x;
    }
    return text;
}

static void mark_message(char *text, uint64_t number) {
    memcpy(text, &number, sizeof number);
    number = ~number;
    memcpy(text + message - sizeof number, &number, sizeof number);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- System calls, counted by a tracer: in lockstep their number does not depend on time. ---- */

enum { COUNT_FROM_HERE = 100001, COUNT_TO_HERE = 100002 }; /* no such system calls: the tracer sees them, nothing else does */

static uint64_t count_system_calls(pid_t child) {
    int status;
    uint64_t count = 0;
    bool counting = false;
    bench_call(waitpid(child, &status, 0), "waitpid");
    bench_call(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL), "ptrace");
    for (pid_t at = child;;) {
        int signal = WIFSTOPPED(status) && WSTOPSIG(status) < 0x80 && WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP
                         ? WSTOPSIG(status) : 0;
        ptrace(PTRACE_SYSCALL, at, 0, signal);
        at = waitpid(-1, &status, __WALL);
        bench_call(at, "waitpid");
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (at != child)
                continue;
            if (status != 0)
                bench_die("the counted process", "failed");
            return count;
        }
        struct __ptrace_syscall_info info;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80) && ptrace(PTRACE_GET_SYSCALL_INFO, at, sizeof info, &info) > 0 &&
            info.op == PTRACE_SYSCALL_INFO_ENTRY) {
            if (info.entry.nr == COUNT_FROM_HERE)
                counting = true;
            else if (info.entry.nr == COUNT_TO_HERE)
                counting = false;
            else if (counting)
                count++;
        }
    }
}

/* ---- lockstep ---- */

static int *clients;

static void connect_all(void) {
    clients = calloc(connections, sizeof *clients);
    BENCH_CHECK(clients != NULL);
    for (size_t i = 0; i < connections; i++) {
        clients[i] = open_client();
        if (!datagrams && (i % 64 == 63 || i + 1 == connections)) /* fewer than the backlog */
            while (bench_connections < i + 1)
                server->turn();
    }
}

/* The time of one round's server part, in nanoseconds. */
static uint64_t lockstep_round(uint64_t round, char *text, char *back, bool traced) {
    for (size_t i = 0; i < connections; i++) {
        mark_message(text, round * connections + i);
        send_all(clients[i], text, message);
    }
    uint64_t target = bench_echoed + connections * message;
    if (traced)
        syscall(COUNT_FROM_HERE);
    uint64_t begun = bench_now();
    while (bench_echoed < target)
        server->turn();
    uint64_t took = bench_now() - begun;
    if (traced)
        syscall(COUNT_TO_HERE);
    BENCH_CHECK(bench_echoed == target);
    for (size_t i = 0; i < connections; i++) {
        mark_message(text, round * connections + i);
        receive_all(clients[i], back, message);
        BENCH_CHECK(memcmp(text, back, message) == 0);
    }
    return took;
}

static void lockstep_end(void) {
    for (size_t i = 0; i < connections; i++)
        close(clients[i]);
    if (!datagrams)
        while (bench_connections > 0)
            server->turn();
    if (server->stop)
        server->stop();
}

void echo_lockstep(void) {
    int fd = open_server();
    enum { WARM = 8, MOST = 1 << 20 };
    char *text = make_message(), *back = bench_memory(message);
    pin("cpu", 0);
    if (bench_number("syscalls", 0)) {
        uint64_t rounds = (uint64_t)bench_number("rounds", 50);
        pid_t child = (pid_t)bench_call(fork(), "fork");
        if (child == 0) {
            bench_call(ptrace(PTRACE_TRACEME, 0, 0, 0), "ptrace");
            raise(SIGSTOP);
            server->start(fd, message);
            connect_all();
            for (uint64_t i = 0; i < WARM; i++)
                lockstep_round(i, text, back, false);
            for (uint64_t i = 0; i < rounds; i++)
                lockstep_round(WARM + i, text, back, true);
            _exit(0);
        }
        /* What reads the clock without a vDSO is not the server's. */
        uint64_t count = count_system_calls(child);
        bench_report("syscalls", (double)count / (double)(rounds * connections));
        return;
    }
    double *took = malloc(MOST * sizeof *took), total = 0;
    BENCH_CHECK(took != NULL);
    size_t rounds = 0, most = (size_t)bench_number("rounds", MOST);
    server->start(fd, message);
    connect_all();
    for (uint64_t i = 0; i < WARM; i++)
        lockstep_round(i, text, back, false);
    uint64_t until = bench_now() + (uint64_t)(atof(bench_text("seconds", "0.3")) * 1e9);
    do {
        took[rounds] = (double)lockstep_round(WARM + rounds, text, back, false) / (double)connections;
        total += took[rounds++];
    } while (rounds < most && rounds < MOST && bench_now() < until);
    lockstep_end();
    double mean = total / (double)rounds;
    qsort(took, rounds, sizeof *took, by_value);
    bench_report("ops", (double)(rounds * connections));
    bench_report("ns", took[rounds / 2]); /* of the rounds: an interrupt spoils a round, not the figure */
    bench_report("mean_ns", mean);
}

/* ---- echo: a load on another core ---- */

enum { PARTS = 32, LEVELS = 40 }; /* latencies in steps of 3 % */
struct load_result {
    uint64_t messages, window_ns, load_cpu_ns, server_cpu_ns;
    uint64_t histogram[LEVELS * PARTS];
    uint64_t worst_ns;
};

static size_t histogram_place(uint64_t ns) {
    if (ns < PARTS)
        return (size_t)ns;
    int level = 63 - __builtin_clzll(ns);
    size_t place = (size_t)(level - 4) * PARTS + ((ns >> (level - 5)) & (PARTS - 1));
    return place < LEVELS * PARTS ? place : LEVELS * PARTS - 1;
}

static double histogram_value(size_t place) {
    if (place < PARTS)
        return (double)place;
    size_t level = place / PARTS + 4;
    return (double)((UINT64_C(1) << level) + ((2 * (uint64_t)(place % PARTS) + 1) << (level - 6)));
}

static double percentile(const struct load_result *result, double part) {
    uint64_t seen = 0, wanted = (uint64_t)(part * (double)result->messages);
    for (size_t i = 0; i < LEVELS * PARTS; i++) {
        seen += result->histogram[i];
        if (seen > wanted)
            return histogram_value(i);
    }
    return (double)result->worst_ns;
}

struct client {
    int fd;
    size_t received;
    uint64_t number, sent_at;
};

static void load(struct load_result *result, pid_t server_process) {
    struct client *all = calloc(connections, sizeof *all);
    char *text = make_message(), *back = bench_memory(message);
    struct epoll_event events[512];
    clockid_t server_clock;
    int set = (int)bench_call(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    BENCH_CHECK(all != NULL);
    bench_must(-clock_getcpuclockid(server_process, &server_clock), "clock_getcpuclockid");
    for (size_t i = 0; i < connections; i++) {
        all[i].fd = open_client();
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        bench_call(epoll_ctl(set, EPOLL_CTL_ADD, all[i].fd, &event), "epoll_ctl");
    }
    double seconds = atof(bench_text("seconds", "0.5"));
    uint64_t from = bench_now() + (uint64_t)(seconds * 0.4e9), until = UINT64_MAX; /* of the window; first it gets warm */
    uint64_t number = 0, messages = 0, opened = 0, load_cpu = 0, server_cpu = 0;
    size_t busy = 0;
    for (size_t i = 0; i < connections; i++, busy++) {
        all[i].number = number++;
        mark_message(text, all[i].number);
        all[i].sent_at = bench_now();
        send_all(all[i].fd, text, message);
    }
    while (busy > 0) {
        int count = (int)bench_call(epoll_wait(set, events, 512, 10000), "epoll_wait");
        BENCH_CHECK(count > 0); /* ten seconds without an answer */
        for (int i = 0; i < count; i++) {
            struct client *client = events[i].data.ptr;
            ssize_t got = recv(client->fd, back + client->received, message - client->received, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN)
                continue;
            bench_call(got, "recv");
            BENCH_CHECK(got > 0);
            /* The ends of a message tell whose it is; the middle is compared in lockstep. */
            uint64_t first = client->number, last = ~first;
            if (client->received == 0 && got >= 8)
                BENCH_CHECK(memcmp(back, &first, sizeof first) == 0);
            client->received += (size_t)got;
            if (client->received < message)
                continue;
            if (got >= 8)
                BENCH_CHECK(memcmp(back + message - 8, &last, sizeof last) == 0);
            client->received = 0;
            uint64_t now = bench_now();
            if (opened && (now < until || messages == 0)) {
                uint64_t took = now - client->sent_at;
                messages++;
                result->histogram[histogram_place(took)]++;
                if (took > result->worst_ns)
                    result->worst_ns = took;
            } else if (!opened && now >= from) {
                opened = now;
                until = now + (uint64_t)(seconds * 1e9);
                load_cpu = cpu_now(CLOCK_PROCESS_CPUTIME_ID);
                server_cpu = cpu_now(server_clock);
            } else if (opened) {
                if (!result->window_ns) {
                    result->window_ns = now - opened;
                    result->load_cpu_ns = cpu_now(CLOCK_PROCESS_CPUTIME_ID) - load_cpu;
                    result->server_cpu_ns = cpu_now(server_clock) - server_cpu;
                }
                busy--;
                continue;
            }
            client->number = number++;
            mark_message(text, client->number);
            client->sent_at = now;
            send_all(client->fd, text, message);
        }
    }
    result->messages = messages;
    for (size_t i = 0; i < connections; i++)
        close(all[i].fd);
}

static pid_t beside(void (*what)(void *), void *with) {
    pid_t parent = getpid(), child = (pid_t)bench_call(fork(), "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        pin("others", 1);
        what(with);
        _exit(0);
    }
    return child;
}

static void load_beside(void *result) {
    load(result, getppid());
}

static void join(pid_t child) {
    int status;
    bench_call(waitpid(child, &status, 0), "waitpid");
    if (status != 0)
        bench_die("the load", "failed");
}

/* A load that died closes its connections, which ends the server, so that nothing hangs. */
void echo_throughput(void) {
    int fd = open_server();
    if (datagrams)
        bench_skip("datagrams are measured in lockstep");
    struct load_result *result = mmap(NULL, sizeof *result, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    BENCH_CHECK(result != MAP_FAILED);
    pin("cpu", 0);
    pid_t child = beside(load_beside, result);
    server->start(fd, message);
    server->run();
    if (server->stop)
        server->stop();
    join(child);
    BENCH_CHECK(result->messages > 0 && result->window_ns > 0);
    double messages = (double)result->messages, window = (double)result->window_ns;
    bench_report("ops", messages);
    bench_report("per_second", messages / window * 1e9);
    bench_report("ns", window / messages);
    bench_report("server_cpu_ns", (double)result->server_cpu_ns / messages);
    bench_report("server_cpu", (double)result->server_cpu_ns / window);
    bench_report("load_cpu", (double)result->load_cpu_ns / window);
    bench_report("p50_ns", percentile(result, 0.5));
    bench_report("p90_ns", percentile(result, 0.9));
    bench_report("p99_ns", percentile(result, 0.99));
    bench_report("p999_ns", percentile(result, 0.999));
    bench_report("worst_ns", (double)result->worst_ns);
}

/* ---- idle ---- */

static void one_each(void *unused) {
    (void)unused;
    char *text = make_message(), *back = bench_memory(message);
    for (size_t i = 0; i < connections; i++) {
        int fd = open_client();
        mark_message(text, i);
        send_all(fd, text, message);
        receive_all(fd, back, message);
        BENCH_CHECK(memcmp(text, back, message) == 0);
    }
    pause(); /* until the server is done with it */
}

void echo_idle(void) {
    int fd = open_server();
    if (datagrams)
        bench_skip("datagrams have no connections");
    pin("cpu", 0);
    server->start(fd, message);
    long before = resident();
    pid_t child = beside(one_each, NULL);
    while (bench_connections < connections || bench_echoed < connections * message)
        server->turn();
    bench_report("bytes", (double)(resident() - before) / (double)connections);
    bench_report("ops", (double)connections);
    kill(child, SIGKILL);
    bench_call(waitpid(child, NULL, 0), "waitpid");
    server->run();
    if (server->stop)
        server->stop();
}
