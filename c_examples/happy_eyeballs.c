/*
 * Happy Eyeballs (RFC 8305): connect to a name that has several addresses, some of which may be dead, without making
 * the user wait for the dead ones.
 *
 *   - getaddrinfo(3) blocks, so it runs on a thread of the loop's pool, with a deadline: upcall_op_getaddrinfo();
 *   - the addresses are interleaved, IPv6 and IPv4 in turn, so that a broken family costs one step and not all of them;
 *   - attempts start 250 ms apart, and the next one at once when one fails;
 *   - the first that connects wins. The others are ended with upcall_op_close(), which cancels what is in flight on a
 *     descriptor, waits for its final event, and closes: no descriptor leaks, whichever way a race goes.
 *
 * `happy_eyeballs HOST PORT` does it to a real host; `--self-test` to listeners of its own, dead ones included, and
 * proves who won, when, and that every socket was closed.
 */

#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <upcall.h>

#define ATTEMPT_DELAY_NS (250 * UPCALL_MILLISECOND) /* RFC 8305, section 5 */
#define LOOKUP_DEADLINE_NS (10 * UPCALL_SECOND)
#define CONNECT_DEADLINE_NS (10 * UPCALL_SECOND)

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    ADDRESSES_MAX = 16,
    ADDRESS_TEXT = 80,
};

struct address {
    struct sockaddr_storage storage;
    socklen_t size;
};

struct address_list {
    struct address items[ADDRESSES_MAX];
    size_t count;
};

struct race;

struct attempt {
    struct race *race;
    const struct address *address;
    int fd;
};

struct race {
    const struct address_list *addresses;
    struct attempt attempts[ADDRESSES_MAX];
    size_t started;     /* attempts begun; also the index of the next address */
    size_t running;     /* attempts whose connect has not ended */
    upcall_id delay;    /* the timer that starts the next attempt; 0: none */
    int winner;         /* index, or -1 */
    int last_error;     /* what to report when nobody wins */
    uint64_t started_ns;
    uint64_t won_ns;    /* after the start */
    bool quiet;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "happy_eyeballs: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void die_errno(const char *what)
{
    die(what, strerror(errno));
}

static uint64_t now_ns(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
        die_errno("clock_gettime");
    return (uint64_t)now.tv_sec * UPCALL_SECOND + (uint64_t)now.tv_nsec;
}

/* Only a mistake in the program, or memory running out, makes a submit fail: no reason to go on. */
static upcall_id submit(upcall_loop *loop, upcall_op op)
{
    upcall_id id;

    if (upcall_submit(loop, &op, 1, &id) < 0)
        die("upcall_submit", upcall_last_error());
    return id;
}

static void run(upcall_loop *loop)
{
    int rc = upcall_run(loop);

    if (rc != 0)
        die("upcall_run", rc < 0 ? upcall_strerror(rc) : "stopped");
}

/* ---- addresses ---- */

static void print_address(const struct address *address, char text[ADDRESS_TEXT])
{
    char host[ADDRESS_TEXT - 16], port[8];
    bool v6 = address->storage.ss_family == AF_INET6;

    if (getnameinfo((const struct sockaddr *)&address->storage, address->size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(text, ADDRESS_TEXT, "(unprintable)");
        return;
    }
    snprintf(text, ADDRESS_TEXT, v6 ? "[%s]:%s" : "%s:%s", host, port);
}

static void add_address(struct address_list *list, const struct sockaddr *address, socklen_t size)
{
    struct address *item;

    if (list->count == ADDRESSES_MAX || size > sizeof item->storage)
        return; /* sixteen addresses are more than anybody wants to wait for */
    item = &list->items[list->count++];
    memset(item, 0, sizeof *item);
    memcpy(&item->storage, address, size);
    item->size = size;
}

/* RFC 8305, section 4: the first address stays first, then the families take turns; the order within each is kept. */
static struct address_list interleave(const struct address_list *list)
{
    struct address_list result = {.count = 0};
    bool taken[ADDRESSES_MAX] = {false};
    sa_family_t wanted = list->count > 0 ? list->items[0].storage.ss_family : AF_UNSPEC;

    while (result.count < list->count) {
        size_t pick = list->count;

        for (size_t i = 0; i < list->count; i++) {
            if (taken[i])
                continue;
            if (pick == list->count || list->items[i].storage.ss_family == wanted)
                pick = i; /* at least the first that is left, better the first of the wanted family */
            if (list->items[pick].storage.ss_family == wanted)
                break;
        }
        taken[pick] = true;
        result.items[result.count++] = list->items[pick];
        wanted = list->items[pick].storage.ss_family == AF_INET6 ? AF_INET : AF_INET6;
    }
    return result;
}

static void on_looked_up(upcall_loop *loop, const upcall_event *event)
{
    int *result = event->user;

    (void)loop;
    *result = (int)event->result;
}

static bool resolve(upcall_loop *loop, const char *host, const char *service, struct address_list *list)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int result = 0;
    upcall_op op = upcall_op_getaddrinfo(host, service, &hints, &found);

    op.callback = on_looked_up;
    op.user = &result;
    op.timeout_ns = LOOKUP_DEADLINE_NS; /* then it ends, whatever the resolver is still waiting for */
    submit(loop, op);
    run(loop); /* a program with more to do would just return to its loop here */
    if (result != 0) {
        fprintf(stderr, "happy_eyeballs: %s port %s: %s\n", host, service, upcall_strerror(result));
        return false;
    }
    for (struct addrinfo *at = found; at != NULL; at = at->ai_next)
        add_address(list, at->ai_addr, at->ai_addrlen);
    freeaddrinfo(found);
    return true;
}

/* ---- the race ---- */

static void start_next(upcall_loop *loop, struct race *race);

static void say(const struct race *race, const struct attempt *attempt, const char *what)
{
    char text[ADDRESS_TEXT];

    if (race->quiet)
        return;
    print_address(attempt->address, text);
    printf("%8.1f ms  %-40s %s\n", (double)(now_ns() - race->started_ns) / UPCALL_MILLISECOND, text, what);
}

static void on_closed(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result < 0)
        die("close", upcall_strerror((int)event->result));
}

/* Ends whatever is in flight on the attempt's socket, then closes it. Every attempt but the winner comes here once. */
static void close_attempt(upcall_loop *loop, struct attempt *attempt)
{
    upcall_op op = upcall_op_close(attempt->fd);

    op.callback = on_closed;
    submit(loop, op);
    attempt->fd = -1;
}

static void on_delay(upcall_loop *loop, const upcall_event *event)
{
    struct race *race = event->user;

    /* A timer that was too late to be cancelled still ends with result 0: only the current one counts. */
    if (event->result < 0 || event->id != race->delay)
        return;
    race->delay = 0;
    start_next(loop, race);
}

static void stop_delay(upcall_loop *loop, struct race *race)
{
    int rc;

    if (race->delay == 0)
        return;
    rc = upcall_cancel(loop, race->delay);
    if (rc < 0 && rc != -ENOENT) /* -ENOENT: it has just ended */
        die("upcall_cancel", upcall_strerror(rc));
    race->delay = 0;
}

static void win(upcall_loop *loop, struct race *race, struct attempt *winner)
{
    race->winner = (int)(winner - race->attempts);
    race->won_ns = now_ns() - race->started_ns;
    say(race, winner, "connected: the winner");
    stop_delay(loop, race);
    for (size_t i = 0; i < race->started; i++)
        if (&race->attempts[i] != winner && race->attempts[i].fd >= 0)
            close_attempt(loop, &race->attempts[i]);
}

static void on_connect(upcall_loop *loop, const upcall_event *event)
{
    struct attempt *attempt = event->user;
    struct race *race = attempt->race;

    race->running--;
    if (race->winner >= 0) {
        /* Too late, by cancel or by a hair: win() has this socket's close under way already. */
        say(race, attempt, event->result == 0 ? "connected too late" : "cancelled");
        return;
    }
    if (event->result == 0) {
        win(loop, race, attempt);
        return;
    }
    race->last_error = (int)event->result;
    say(race, attempt, upcall_strerror((int)event->result));
    close_attempt(loop, attempt);
    stop_delay(loop, race); /* no reason to wait for the timer */
    start_next(loop, race);
}

/* Opens a socket and begins to connect; false when not even that works (no IPv6 on this machine, for one). */
static bool start_attempt(upcall_loop *loop, struct race *race, const struct address *address)
{
    struct attempt *attempt = &race->attempts[race->started++];
    upcall_op op;

    *attempt = (struct attempt){.race = race, .address = address};
    attempt->fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (attempt->fd < 0) {
        race->last_error = -errno;
        say(race, attempt, strerror(errno));
        return false;
    }
    say(race, attempt, "connecting");
    op = upcall_op_connect(attempt->fd, (const struct sockaddr *)&address->storage, address->size);
    op.callback = on_connect;
    op.user = attempt;
    op.timeout_ns = CONNECT_DEADLINE_NS;
    submit(loop, op);
    race->running++;
    return true;
}

static void start_next(upcall_loop *loop, struct race *race)
{
    upcall_op op;

    do {
        if (race->started == race->addresses->count)
            return; /* all are on their way, or over */
    } while (!start_attempt(loop, race, &race->addresses->items[race->started]));

    if (race->started < race->addresses->count) {
        op = upcall_op_sleep(ATTEMPT_DELAY_NS);
        op.callback = on_delay;
        op.user = race;
        race->delay = submit(loop, op);
    }
}

/* Races the addresses. Returns the winner's descriptor, which is the caller's now, or a negative errno. */
static int happy_eyeballs(upcall_loop *loop, struct race *race, const struct address_list *addresses, bool quiet)
{
    *race = (struct race){.addresses = addresses, .winner = -1, .last_error = -EADDRNOTAVAIL, .quiet = quiet};
    race->started_ns = now_ns();
    start_next(loop, race);
    run(loop); /* returns when the losers are closed as well */
    return race->winner >= 0 ? race->attempts[race->winner].fd : race->last_error;
}

/* ---- the self-test ---- */

struct listener {
    int fd;
    struct address address;
    int fillers[8];
    size_t filler_count;
};

enum behaviour { ANSWERS, REFUSES, STAYS_SILENT };

/* How many sockets this process has open. */
static size_t count_sockets(void)
{
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    size_t count = 0;

    if (directory == NULL)
        die_errno("/proc/self/fd");
    while ((entry = readdir(directory)) != NULL) {
        char target[64];
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target);

        if (length > 7 && memcmp(target, "socket:", 7) == 0)
            count++;
    }
    if (closedir(directory) < 0)
        die_errno("closedir");
    return count;
}

/* Connects until the kernel drops what comes: from then on the listener looks like a host that is not there. */
static void fill(struct listener *listener)
{
    const struct address *to = &listener->address;

    while (listener->filler_count < sizeof listener->fillers / sizeof listener->fillers[0]) {
        struct pollfd wait = {.events = POLLOUT};
        int ready;

        wait.fd = socket(to->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (wait.fd < 0)
            die_errno("socket");
        listener->fillers[listener->filler_count++] = wait.fd;
        if (connect(wait.fd, (const struct sockaddr *)&to->storage, to->size) < 0 && errno != EINPROGRESS)
            die_errno("connect (to fill a backlog)");
        ready = poll(&wait, 1, 100);
        if (ready < 0)
            die_errno("poll");
        if (ready == 0)
            return;
    }
    die("backlog", "it never got full");
}

/* False when the machine has no such family. */
static bool open_listener(struct listener *listener, sa_family_t family, enum behaviour behaviour)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct address_list one = {.count = 0};
    struct address *address = &listener->address;

    *listener = (struct listener){.fd = -1};
    if (family == AF_INET6)
        add_address(&one, (struct sockaddr *)&v6, sizeof v6);
    else
        add_address(&one, (struct sockaddr *)&v4, sizeof v4);
    *address = one.items[0];

    listener->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener->fd < 0)
        return false;
    if (bind(listener->fd, (struct sockaddr *)&address->storage, address->size) < 0) {
        if (close(listener->fd) < 0)
            die_errno("close");
        return false;
    }
    if (getsockname(listener->fd, (struct sockaddr *)&address->storage, &address->size) < 0)
        die_errno("getsockname");
    /* A port that is bound but not listened on refuses, and nobody else can take it. */
    if (behaviour != REFUSES && listen(listener->fd, behaviour == ANSWERS ? 16 : 0) < 0)
        die_errno("listen");
    if (behaviour == STAYS_SILENT)
        fill(listener);
    return true;
}

static void close_listener(struct listener *listener)
{
    for (size_t i = 0; i < listener->filler_count; i++)
        if (close(listener->fillers[i]) < 0)
            die_errno("close");
    if (close(listener->fd) < 0)
        die_errno("close");
}

struct expectation {
    const char *name;
    enum behaviour behaviours[3];
    size_t count;
    int winner; /* -1: nobody */
    int error;  /* when nobody wins */
    size_t attempts;
    uint64_t at_least_ns;
    uint64_t at_most_ns;
};

/* Races listeners that behave as told; the dead ones are of `family`, those that answer are IPv4. */
static bool check_race(upcall_loop *loop, const struct expectation *expected, sa_family_t family)
{
    struct listener listeners[3];
    struct address_list addresses = {.count = 0};
    struct race race;
    size_t before, after;
    uint64_t took;
    int fd;
    bool good;

    for (size_t i = 0; i < expected->count; i++) {
        sa_family_t of = expected->behaviours[i] == ANSWERS ? AF_INET : family;

        if (!open_listener(&listeners[i], of, expected->behaviours[i]))
            die("listener", strerror(errno));
        add_address(&addresses, (struct sockaddr *)&listeners[i].address.storage, listeners[i].address.size);
    }

    before = count_sockets();
    fd = happy_eyeballs(loop, &race, &addresses, true);
    took = fd >= 0 ? race.won_ns : now_ns() - race.started_ns;
    if (fd >= 0 && close(fd) < 0)
        die_errno("close");
    after = count_sockets();

    good = race.winner == expected->winner && race.started == expected->attempts && race.running == 0;
    good &= expected->winner >= 0 ? fd >= 0 : fd == expected->error;
    good &= took >= expected->at_least_ns && took <= expected->at_most_ns;
    good &= before == after;
    printf("  %-44s winner %2d  attempts %zu  %7.1f ms  sockets left %+zd  %s\n", expected->name, race.winner,
           race.started, (double)took / UPCALL_MILLISECOND, (ssize_t)after - (ssize_t)before, good ? "ok" : "WRONG");
    for (size_t i = 0; i < expected->count; i++)
        close_listener(&listeners[i]);
    return good;
}

static bool check_interleaving(void)
{
    static const char *const given[] = {"::1", "::2", "::3", "10.0.0.1", "10.0.0.2"};
    static const char *const wanted[] = {"[::1]:0", "10.0.0.1:0", "[::2]:0", "10.0.0.2:0", "[::3]:0"};
    struct address_list list = {.count = 0};
    bool good = true;

    for (size_t i = 0; i < 5; i++) {
        struct sockaddr_in v4 = {.sin_family = AF_INET};
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};

        if (inet_pton(AF_INET6, given[i], &v6.sin6_addr) == 1)
            add_address(&list, (struct sockaddr *)&v6, sizeof v6);
        else if (inet_pton(AF_INET, given[i], &v4.sin_addr) == 1)
            add_address(&list, (struct sockaddr *)&v4, sizeof v4);
    }
    list = interleave(&list);
    for (size_t i = 0; i < 5; i++) {
        char text[ADDRESS_TEXT];

        print_address(&list.items[i], text);
        good &= strcmp(text, wanted[i]) == 0;
    }
    printf("  %-44s %s\n", "families take turns", good ? "ok" : "WRONG");
    return good;
}

/* The lookup is made as in real use; a numeric name needs no resolver. */
static bool check_lookup(upcall_loop *loop)
{
    struct address_list list = {.count = 0};
    char text[ADDRESS_TEXT] = "";
    bool good = resolve(loop, "127.0.0.1", "80", &list) && list.count == 1;

    if (good)
        print_address(&list.items[0], text);
    good = good && strcmp(text, "127.0.0.1:80") == 0;
    printf("  %-44s %s\n", "getaddrinfo on a pool thread", good ? "ok" : "WRONG");
    return good;
}

static bool self_test(upcall_loop *loop)
{
    static const uint64_t soon = ATTEMPT_DELAY_NS - 1; /* so the delay was not waited for */
    static const uint64_t late = 5 * UPCALL_SECOND;
    const struct expectation races[] = {
        {"two that answer: the first wins alone", {ANSWERS, ANSWERS}, 2, 0, 0, 1, 0, soon},
        {"refused, then one that answers: at once", {REFUSES, ANSWERS}, 2, 1, 0, 2, 0, soon},
        {"silent, then one that answers: after 250 ms", {STAYS_SILENT, ANSWERS}, 2, 1, 0, 2, ATTEMPT_DELAY_NS, late},
        {"silent, refused, answers: the third", {STAYS_SILENT, REFUSES, ANSWERS}, 3, 2, 0, 3, ATTEMPT_DELAY_NS, late},
        {"all refused: the error is told", {REFUSES, REFUSES}, 2, -1, -ECONNREFUSED, 2, 0, soon},
    };
    struct listener probe;
    bool has_v6 = open_listener(&probe, AF_INET6, REFUSES);
    bool good = true;

    if (has_v6)
        close_listener(&probe);
    printf("self-test: the dead addresses are %s\n", has_v6 ? "IPv6 (::1)" : "IPv4: this machine has no IPv6");
    good &= check_interleaving();
    good &= check_lookup(loop);
    for (size_t i = 0; i < sizeof races / sizeof races[0]; i++)
        good &= check_race(loop, &races[i], has_v6 ? AF_INET6 : AF_INET);
    return good;
}

/* ---- the program ---- */

static bool connect_to(upcall_loop *loop, const char *host, const char *service)
{
    struct address_list addresses = {.count = 0};
    struct race race;
    int fd;

    if (!resolve(loop, host, service, &addresses))
        return false;
    addresses = interleave(&addresses);
    fd = happy_eyeballs(loop, &race, &addresses, false);
    if (fd < 0) {
        fprintf(stderr, "happy_eyeballs: %s port %s: %s\n", host, service, upcall_strerror(fd));
        return false;
    }
    if (close(fd) < 0)
        die_errno("close");
    return true;
}

static void usage(FILE *out)
{
    fprintf(out, "usage: happy_eyeballs HOST PORT | --self-test | --help\n"
                 "Connects to the first of a host's addresses that answers, IPv6 and IPv4 racing (RFC 8305).\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 connected, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
}

int main(int argc, char **argv)
{
    bool test = argc == 2 && strcmp(argv[1], "--self-test") == 0;
    upcall_loop *loop;
    bool good;
    int rc;

    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return EXIT_SUCCESS;
    }
    if (argc != 3 && !test) {
        usage(stderr);
        return 2;
    }

    rc = upcall_loop_new(NULL, &loop);
    if (rc < 0) {
        fprintf(stderr, "happy_eyeballs: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    printf("backend: %s\n", upcall_backend_name(upcall_loop_backend(loop)));
    good = test ? self_test(loop) : connect_to(loop, argv[1], argv[2]);

    rc = upcall_loop_free(loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
