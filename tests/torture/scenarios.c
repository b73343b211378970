/*
 * The scenarios and their oracle: between them they run every kind of operation and every call of the library. Whatever fails,
 *
 *   - a call that was refused promised nothing, and works when it is made again;
 *   - an operation that was accepted has exactly one final event, and none after it;
 *   - its result is what it always is, or an error that is not -EAGAIN, -EINTR or -EINPROGRESS; where an allocation failed, it
 *     is what it always is;
 *   - bytes that went in are bytes that come out, in their order, whatever result the operations had that moved them;
 *   - nothing is written beside a buffer, or into it after its operation's final event;
 *   - upcall_loop_free() succeeds, and the runner finds no descriptor, thread, memory or mapping left.
 */
#include "torture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "upcall.h"

#define MS(n) ((int64_t)(n) * 1000000)
#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
/* One call fails, so that it may be refused once, and so may one that a thread of the library makes meanwhile. */
enum { TRIES = 4, PATIENCE_SECONDS = 10, MOST_ENTRIES = 2048 };

/* ---- The oracle. ---- */

struct entry {
    upcall_op op;
    upcall_id id;
    bool accepted, asked; /* asked: to end, by cancel, close or a severed chain */
    unsigned events, finals;
    int64_t result;
    uint64_t transferred; /* by all its events */
    uint32_t flags;
    uint8_t *data; /* what it writes to */
    size_t len;
    uint64_t sum; /* of data, at the final event */
    void (*then)(upcall_loop *loop, const upcall_event *event, struct entry *entry);
};
static struct entry entries[MOST_ENTRIES];
static size_t used;
static pthread_mutex_t entries_lock = PTHREAD_MUTEX_INITIALIZER;

struct guarded {
    uint8_t *at;
    size_t len;
    struct guarded *next;
};
static struct guarded *guarded;
enum { GUARD = 64 };

/* Memory with a known pattern before and behind it. */
static void *memory(size_t len) {
    struct guarded *made = malloc(sizeof *made);
    MUST(made != NULL);
    *made = (struct guarded){malloc(len + 2 * GUARD), len, guarded};
    MUST(made->at != NULL);
    memset(made->at, 0x5a, len + 2 * GUARD);
    guarded = made;
    return made->at + GUARD;
}

static uint64_t sum_of(const uint8_t *data, size_t len) {
    uint64_t sum = len;
    for (size_t i = 0; i < len; i++)
        sum = sum * 1099511628211u ^ data[i];
    return sum;
}

static uint8_t pattern(uint64_t i) {
    return (uint8_t)((i * 2654435761u) >> 13 ^ i);
}

static void fill(uint8_t *data, size_t len, uint64_t from) {
    for (size_t i = 0; i < len; i++)
        data[i] = pattern(from + i);
}

static void must_follow(const uint8_t *data, size_t len, uint64_t from) {
    for (size_t i = 0; i < len; i++)
        if (data[i] != pattern(from + i))
            broken(__FILE__, __LINE__, "byte %llu of the stream is not what went in", (unsigned long long)(from + i));
}

static bool an_allocation_failed(void) {
    return control->injected && control->error > 0 && (control->error & ~LASTING) == ENOMEM &&
           (strcmp(control->call, "malloc") == 0 || strcmp(control->call, "calloc") == 0 ||
            strcmp(control->call, "realloc") == 0 || strcmp(control->call, "posix_memalign") == 0);
}

static bool lasts(void) {
    return control->error > 0 && control->error & LASTING;
}

/* What a call that was refused may answer. */
static bool is_refusal(int64_t rc) {
    return control->injected && rc < 0 && rc > -4096 && rc != -EINPROGRESS && rc != -EDEADLK;
}

static void on_event(upcall_loop *loop, const upcall_event *event) {
    struct entry *entry = event->user;
    MUST(entry >= entries && entry < entries + used);
    MUST(entry->finals == 0);
    MUST(event->kind == entry->op.kind);
    MUST(event->reserved[0] == 0 && event->reserved[1] == 0);
    entry->events++;
    entry->transferred += event->transferred;
    if (!(event->flags & UPCALL_MORE)) {
        entry->finals++;
        entry->result = event->result;
        entry->flags = event->flags;
        entry->id = event->id;
        if (event->kind != UPCALL_OP_WORK)
            MUST(event->result != -EAGAIN && event->result != -EINTR && event->result != -EINPROGRESS);
        MUST(event->result != -ECANCELED || entry->asked);
        entry->sum = sum_of(entry->data, entry->len);
    }
    if (entry->then)
        entry->then(loop, event, entry);
}

static struct entry *prepare(upcall_op op) {
    pthread_mutex_lock(&entries_lock);
    MUST(used < MOST_ENTRIES);
    struct entry *entry = &entries[used++];
    pthread_mutex_unlock(&entries_lock);
    entry->op = op;
    if (entry->op.callback == NULL)
        entry->op.callback = on_event;
    entry->op.user = entry;
    return entry;
}

static struct entry *into(struct entry *entry, void *data, size_t len) {
    entry->data = data, entry->len = len;
    return entry;
}

/* Submits entries that follow each other in the table. */
static int submit(upcall_loop *loop, struct entry *first, size_t count) {
    upcall_op *ops = malloc(count * sizeof *ops);
    upcall_id *ids = malloc(count * sizeof *ids);
    MUST(ops != NULL && ids != NULL);
    for (size_t i = 0; i < count; i++)
        ops[i] = first[i].op;
    int rc = -1;
    for (int tries = 0; tries < TRIES && rc != 0; tries++) {
        rc = upcall_submit(loop, ops, count, ids);
        if (rc != 0 && !is_refusal(rc))
            broken(__FILE__, __LINE__, "upcall_submit: %d: %s", rc, upcall_last_error());
    }
    MUST(rc == 0 || lasts());
    for (size_t i = 0; i < count; i++) {
        first[i].accepted = rc == 0;
        if (rc == 0 && first[i].finals == 0)
            first[i].id = ids[i];
    }
    free(ops);
    free(ids);
    return rc;
}

static struct entry *put(upcall_loop *loop, upcall_op op) {
    struct entry *entry = prepare(op);
    submit(loop, entry, 1);
    return entry;
}

static upcall_loop *new_loop_with(uint32_t ring_entries) {
    upcall_config config;
    upcall_config_init(&config);
    config.entries = ring_entries;
    config.max_operations = 4096;
    config.workers = 2;
    upcall_loop *loop = NULL;
    int rc = -1;
    for (int tries = 0; tries < TRIES && rc != 0; tries++) {
        rc = upcall_loop_new(&config, &loop);
        if (rc != 0 && !is_refusal(rc))
            broken(__FILE__, __LINE__, "upcall_loop_new: %d: %s", rc, upcall_last_error());
        MUST((rc == 0) == (loop != NULL));
    }
    MUST(loop != NULL || lasts());
    if (loop == NULL)
        _exit(0);
    return loop;
}

static upcall_loop *new_loop(void) {
    return new_loop_with(64);
}

static int refusals;

static int turn(upcall_loop *loop, int64_t ns) {
    int rc = upcall_poll(loop, ns);
    if (rc < 0) {
        if (!is_refusal(rc) || ++refusals > TRIES)
            broken(__FILE__, __LINE__, "upcall_poll: %d: %s", rc, upcall_last_error());
    }
    return rc;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static const struct entry *first_open(const struct entry *first, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (first[i].accepted && first[i].finals == 0)
            return &first[i];
    return NULL;
}

/* Polls until entries that follow each other have ended. */
static void finish(upcall_loop *loop, struct entry *first, size_t count) {
    double limit = seconds() + PATIENCE_SECONDS;
    const struct entry *open;
    while ((open = first_open(first, count)) != NULL) {
        turn(loop, MS(100));
        if (seconds() > limit)
            broken(__FILE__, __LINE__, "%s has no final event", upcall_op_name(open->op.kind));
    }
}

static void finish_all(upcall_loop *loop) {
    finish(loop, entries, used);
}

/* Submits one and waits for its end. */
static struct entry *complete(upcall_loop *loop, upcall_op op) {
    struct entry *entry = put(loop, op);
    finish(loop, entry, 1);
    return entry;
}

/* The result, or an error that may have been. */
static bool ended_with(const struct entry *entry, int64_t result) {
    if (!entry->accepted)
        return false;
    if (entry->result == result)
        return true;
    bool excused = control->injected && !an_allocation_failed() && entry->result < 0;
    if (!excused)
        broken(__FILE__, __LINE__, "%s ended with %lld, not %lld", upcall_op_name(entry->op.kind),
               (long long)entry->result, (long long)result);
    return false;
}

/* As that, but less may have been moved. */
static bool moved_some(const struct entry *entry, int64_t most) {
    if (!entry->accepted)
        return false;
    if (entry->result > 0 && entry->result <= most && (entry->result == most || control->injected))
        return true;
    return ended_with(entry, most);
}

/* Its result is for the race to say. */
static void cancelled_or(const struct entry *entry, int64_t result) {
    if (entry->accepted && entry->result != -ECANCELED && entry->result != -ETIMEDOUT)
        ended_with(entry, result);
}

static void check_entries(void) {
    for (struct entry *entry = entries; entry < entries + used; entry++) {
        if (!entry->accepted)
            MUST(entry->events == 0);
        else if (entry->finals != 1)
            broken(__FILE__, __LINE__, "%s has %u final events", upcall_op_name(entry->op.kind), entry->finals);
        if (entry->sum != 0 && entry->sum != sum_of(entry->data, entry->len))
            broken(__FILE__, __LINE__, "%s wrote after its final event", upcall_op_name(entry->op.kind));
    }
    while (guarded != NULL) {
        struct guarded *gone = guarded;
        for (size_t i = 0; i < GUARD; i++)
            MUST(gone->at[i] == 0x5a && gone->at[GUARD + gone->len + i] == 0x5a);
        guarded = gone->next;
        free(gone->at);
        free(gone);
    }
}

static void free_loop(upcall_loop *loop) {
    int rc = upcall_loop_free(loop);
    if (rc != 0)
        broken(__FILE__, __LINE__, "upcall_loop_free: %d: %s", rc, upcall_last_error());
    check_entries();
}

/* ---- Scenery: made by the program, so it never fails. ---- */

static void pipe_pair(int fds[2]) {
    MUST(pipe2(fds, O_CLOEXEC) == 0);
}

static void unix_pair(int fds[2], int type) {
    MUST(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) == 0);
}

static int tcp_listener(struct sockaddr_in *address) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    MUST(fd >= 0 && bind(fd, (struct sockaddr *)address, sizeof *address) == 0 && listen(fd, 64) == 0);
    MUST(getsockname(fd, (struct sockaddr *)address, &length) == 0);
    return fd;
}

static void tcp_pair(int fds[2]) {
    struct sockaddr_in address;
    int listener = tcp_listener(&address);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fds[0] >= 0 && connect(fds[0], (struct sockaddr *)&address, sizeof address) == 0);
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    MUST(fds[1] >= 0);
    close(listener);
}

static void close_pair(const int fds[2]) {
    close(fds[0]);
    close(fds[1]);
}

static const char *directory(void) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/upcall-torture-%ld-%ld", (long)getppid(), (long)getpid());
    mkdir(path, 0700);
    return path;
}

/* Whatever of the scenario's is left in its directory. */
static void clean_directory(int dir, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (unlinkat(dir, names[i], 0) != 0)
            unlinkat(dir, names[i], AT_REMOVEDIR);
    close(dir);
    MUST(rmdir(directory()) == 0);
}

static int temp_file(size_t size) {
    int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    uint8_t block[4096];
    for (size_t done = 0; done < size; done += sizeof block) {
        fill(block, sizeof block, done);
        MUST(pwrite(fd, block, sizeof block, (off_t)done) == sizeof block);
    }
    return fd;
}

/* ---- Scenarios. ---- */

static void posted(upcall_loop *loop, void *arg) {
    (void)loop;
    ++*(int *)arg;
}

static int post(upcall_loop *loop, void (*fn)(upcall_loop *, void *), void *arg) {
    int rc = -1;
    for (int tries = 0; tries < TRIES && rc != 0; tries++) {
        rc = upcall_post(loop, fn, arg);
        MUST(rc == 0 || is_refusal(rc));
    }
    MUST(rc == 0 || lasts());
    return rc;
}

static void lifecycle(void) {
    upcall_loop *loop = new_loop();
    int count = 0, expected = 0;
    upcall_stats stats;
    upcall_reader_config reader;
    upcall_reader_config_init(&reader);
    MUST(upcall_hold(loop) == 0 && upcall_unhold(loop) == 0);
    for (int i = 0; i < 40; i++)
        expected += post(loop, posted, &count) == 0;
    MUST(upcall_stop(loop) == 0);
    int rc = upcall_run(loop);
    MUST(rc == 1 || is_refusal(rc));
    for (double limit = seconds() + PATIENCE_SECONDS; count < expected && seconds() < limit;)
        turn(loop, MS(100));
    MUST(count == expected);
    upcall_supports(loop, UPCALL_OP_READ);
    upcall_op_name(UPCALL_OP_READ);
    MUST(upcall_backend_reason(loop) != NULL && upcall_stats_get(loop, &stats) == 0);
    rc = -1;
    for (int tries = 0; tries < TRIES && rc != 0; tries++) {
        rc = upcall_loop_detach(loop);
        MUST(rc == 0 || is_refusal(rc));
    }
    MUST(rc == 0 || lasts());
    put(loop, upcall_op_nop());
    finish_all(loop);
    free_loop(loop);
    upcall_loop_free(NULL);
    MUST(upcall_submit(NULL, NULL, 1, NULL) == -EINVAL);
}

static void nops(void) {
    upcall_loop *loop = new_loop_with(8);
    upcall_event events[16];
    struct entry *first = prepare(upcall_op_nop());
    for (int i = 1; i < 50; i++)
        prepare(upcall_op_nop());
    submit(loop, first, 50);
    finish_all(loop);
    for (int i = 0; i < 50; i++)
        ended_with(&first[i], 0);
    upcall_op op = upcall_op_nop();
    int records = 0, expected = 0;
    for (int i = 0; i < 30; i++) {
        int rc = upcall_submit(loop, &op, 1, NULL);
        expected += rc == 0;
        MUST(rc == 0 || is_refusal(rc));
    }
    double limit = seconds() + PATIENCE_SECONDS;
    while (records < expected && seconds() < limit) {
        turn(loop, MS(100));
        int got = upcall_reap(loop, events, COUNT_OF(events));
        MUST(got >= 0);
        records += got;
    }
    MUST(records == expected);
    free_loop(loop);
}

/* A stream from one end to the other by operations that may fail half-way. */
struct stream {
    uint64_t out, in;
};

/* What the kernel still has of it. */
static void drain(int fd, struct stream *stream) {
    uint8_t rest[4096];
    ssize_t got;
    while ((got = read(fd, rest, sizeof rest)) > 0) {
        must_follow(rest, (size_t)got, stream->in);
        stream->in += (uint64_t)got;
    }
    MUST(got == 0);
    MUST(stream->in == stream->out);
}

typedef upcall_op (*mover)(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]);

static void two_parts(void *data, size_t len, struct iovec parts[2]) {
    parts[0] = (struct iovec){data, len / 2};
    parts[1] = (struct iovec){(uint8_t *)data + len / 2, len - len / 2};
}
static upcall_op by_read(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    (void)msg, (void)parts;
    return upcall_op_read(fd, data, len);
}
static upcall_op by_write(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    (void)msg, (void)parts;
    return upcall_op_write(fd, data, len);
}
static upcall_op by_readv(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    (void)msg;
    two_parts(data, len, parts);
    return upcall_op_readv(fd, parts, 2);
}
static upcall_op by_writev(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    (void)msg;
    two_parts(data, len, parts);
    return upcall_op_writev(fd, parts, 2);
}
static upcall_op by_recv(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    (void)msg, (void)parts;
    return upcall_op_recv(fd, data, len, 0);
}
static upcall_op by_send(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    (void)msg, (void)parts;
    return upcall_op_send(fd, data, len, 0);
}
static upcall_op by_recvmsg(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    two_parts(data, len, parts);
    *msg = (struct msghdr){.msg_iov = parts, .msg_iovlen = 2};
    return upcall_op_recvmsg(fd, msg, 0);
}
static upcall_op by_sendmsg(int fd, void *data, size_t len, struct msghdr *msg, struct iovec parts[2]) {
    two_parts(data, len, parts);
    *msg = (struct msghdr){.msg_iov = parts, .msg_iovlen = 2};
    return upcall_op_sendmsg(fd, msg, 0);
}

/* A zero-copy send tells twice what it moved. */
static uint64_t sent_by(const struct entry *out) {
    return out->events == 2 ? out->transferred / 2 : out->transferred;
}

/* Moves `rounds` times `len` bytes, more than fit between the two; `flags` on the way out. */
static void move(upcall_loop *loop, int fds[2], mover take, mover give, size_t len, int rounds, uint32_t flags) {
    struct stream stream = {0, 0};
    uint8_t *data = memory(len), *copy = memory(len);
    for (int round = 0; round < rounds; round++) {
        struct msghdr msgs[2];
        struct iovec parts[4];
        fill(data, len, stream.out);
        upcall_op giving = give(fds[1], data, len, &msgs[0], parts);
        upcall_op taking = take(fds[0], copy, len, &msgs[1], parts + 2);
        giving.flags |= UPCALL_FULL | flags;
        struct entry *out = prepare(giving);
        submit(loop, out, 1);
        turn(loop, 0);
        struct entry *in = NULL;
        do {
            /* One after the other, and each into the same memory: an entry's sum is its own until the next one begins. */
            if (in != NULL)
                in->sum = 0;
            in = prepare(taking);
            submit(loop, in, 1);
            double limit = seconds() + PATIENCE_SECONDS;
            while (in->accepted && in->finals == 0 && !(out->finals && stream.in == stream.out + sent_by(out))) {
                turn(loop, MS(20));
                if (seconds() > limit)
                    broken(__FILE__, __LINE__, "%s waits although there are bytes", upcall_op_name(in->op.kind));
            }
            if (in->accepted && in->finals == 0) { /* the last byte was taken before it */
                in->asked = true;
                upcall_cancel(loop, in->id);
                finish(loop, in, 1);
            }
            must_follow(copy, in->transferred, stream.in);
            stream.in += in->transferred;
            if (!in->accepted)
                break;
        } while (out->accepted && (out->finals == 0 || stream.in < stream.out + sent_by(out)));
        finish(loop, out, 1);
        in->sum = 0;
        uint64_t sent = sent_by(out);
        if (ended_with(out, (int64_t)len))
            MUST(sent == len);
        stream.out += sent;
        MUST(stream.in <= stream.out);
    }
    shutdown(fds[1], SHUT_WR);
    close(fds[1]);
    drain(fds[0], &stream);
    close(fds[0]);
}

static void pipes(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    move(loop, fds, by_read, by_write, 100000, 2, 0);
    pipe_pair(fds);
    move(loop, fds, by_readv, by_writev, 100000, 2, 0);
    free_loop(loop);
}

static void sockets_of_streams(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds, SOCK_STREAM);
    move(loop, fds, by_recv, by_send, 500000, 1, 0);
    unix_pair(fds, SOCK_STREAM);
    move(loop, fds, by_recvmsg, by_sendmsg, 500000, 1, 0);
    free_loop(loop);
}

static void zerocopy(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    tcp_pair(fds);
    move(loop, fds, by_recv, by_send, 60000, 2, UPCALL_ZEROCOPY);
    tcp_pair(fds);
    move(loop, fds, by_recvmsg, by_sendmsg, 60000, 1, UPCALL_ZEROCOPY);
    free_loop(loop);
}

static void datagrams(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    char data[] = "a datagram", copy[64];
    struct sockaddr_un from;
    socklen_t length = sizeof from;
    unix_pair(fds, SOCK_DGRAM);
    struct entry *in = put(loop, upcall_op_recvfrom(fds[0], copy, sizeof copy, 0, (struct sockaddr *)&from, &length));
    turn(loop, 0);
    struct entry *out = complete(loop, upcall_op_sendto(fds[1], data, sizeof data, 0, NULL, 0));
    if (!ended_with(out, sizeof data))
        MUST(send(fds[1], data, sizeof data, 0) == sizeof data);
    finish_all(loop);
    if (!ended_with(in, sizeof data)) /* it is still there */
        MUST(recv(fds[0], copy, sizeof copy, MSG_DONTWAIT) == sizeof data);
    MUST(memcmp(data, copy, sizeof data) == 0);
    close_pair(fds);
    free_loop(loop);
}

static void files(void) {
    upcall_loop *loop = new_loop();
    static const char *const names[] = {"f"};
    int dir = open(directory(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0);
    enum { LEN = 20000 };
    uint8_t *data = memory(LEN), *copy = memory(LEN);
    fill(data, LEN, 0);
    struct open_how how = {.flags = O_RDWR | O_CREAT, .mode = 0600};
    struct entry *opened = complete(loop, upcall_op_openat2(dir, "f", &how, sizeof how));
    int fd = (int)opened->result;
    if (!opened->accepted || fd < 0) {
        MUST(control->injected && (!opened->accepted || !an_allocation_failed()));
        fd = openat(dir, "f", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        MUST(fd >= 0);
    }
    ended_with(complete(loop, upcall_op_fallocate(fd, 0, 0, 2 * LEN)), 0);
    upcall_op write = upcall_op_pwrite(fd, data, LEN, 0);
    write.flags = UPCALL_FULL;
    struct entry *written = complete(loop, write);
    if (!ended_with(written, LEN))
        MUST(pwrite(fd, data, LEN, 0) == LEN);
    struct iovec parts[2] = {{data, 100}, {data + 100, LEN - 100}}, back[2] = {{copy, 100}, {copy + 100, LEN - 100}};
    upcall_op vector = upcall_op_pwritev(fd, parts, 2, LEN, 0);
    vector.flags = UPCALL_FULL;
    if (!ended_with(complete(loop, vector), LEN))
        MUST(pwrite(fd, data, LEN, LEN) == LEN);
    ended_with(complete(loop, upcall_op_fsync(fd)), 0);
    ended_with(complete(loop, upcall_op_fdatasync(fd)), 0);
    ended_with(complete(loop, upcall_op_sync_range(fd, 0, LEN, SYNC_FILE_RANGE_WRITE)), 0);
    ended_with(complete(loop, upcall_op_fadvise(fd, 0, LEN, POSIX_FADV_WILLNEED)), 0);
    upcall_op read = upcall_op_pread(fd, copy, LEN, LEN);
    read.flags = UPCALL_FULL;
    if (ended_with(complete(loop, read), LEN))
        MUST(memcmp(data, copy, LEN) == 0);
    memset(copy, 0, LEN);
    vector = upcall_op_preadv(fd, back, 2, 0, 0);
    vector.flags = UPCALL_FULL;
    if (ended_with(complete(loop, vector), LEN))
        MUST(memcmp(data, copy, LEN) == 0);
    /* Through the file's own position, one after the other. */
    memset(copy, 0, LEN);
    struct entry *first = prepare(upcall_op_read(fd, copy, LEN / 2));
    struct entry *second = prepare(upcall_op_read(fd, copy + LEN / 2, LEN / 2));
    submit(loop, first, 2);
    finish_all(loop);
    if (moved_some(first, LEN / 2))
        MUST(memcmp(data, copy, (size_t)first->result) == 0);
    moved_some(second, LEN / 2);
    ended_with(complete(loop, upcall_op_ftruncate(fd, 10)), 0);
    struct statx stat;
    if (ended_with(complete(loop, upcall_op_statx(dir, "f", 0, STATX_SIZE, &stat)), 0))
        MUST(stat.stx_size == 10 || control->injected);
    void *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(page != MAP_FAILED);
    ended_with(complete(loop, upcall_op_madvise(page, 8192, MADV_DONTNEED)), 0);
    munmap(page, 8192);
    struct entry *closed = complete(loop, upcall_op_close(fd));
    if (!ended_with(closed, 0))
        close(fd); /* not begun, or done and then reported: the number is nobody's else here */
    opened = complete(loop, upcall_op_open(dir, "f", O_RDONLY, 0));
    if (opened->accepted && opened->result >= 0)
        close((int)opened->result);
    else
        MUST(control->injected && (!opened->accepted || !an_allocation_failed()));
    clean_directory(dir, names, COUNT_OF(names));
    free_loop(loop);
}

static void paths(void) {
    upcall_loop *loop = new_loop();
    static const char *const names[] = {"a", "b", "d", "s", "h"};
    int dir = open(directory(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0);
    int fd = openat(dir, "a", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    char path[128], value[64], entries_read[4096];
    snprintf(path, sizeof path, "%s/a", directory());
    upcall_op ops[] = {
        upcall_op_mkdir(dir, "d", 0700), upcall_op_symlink("a", dir, "s"), upcall_op_hardlink(dir, "a", dir, "h", 0),
        upcall_op_setxattr(path, "user.x", "1", 1, 0), upcall_op_getxattr(path, "user.x", value, sizeof value),
        upcall_op_fsetxattr(fd, "user.y", "1", 1, 0), upcall_op_fgetxattr(fd, "user.y", value, sizeof value),
        upcall_op_rename(dir, "a", dir, "b", 0), upcall_op_unlink(dir, "h", 0),
    };
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        struct entry *entry = complete(loop, ops[i]);
        if (entry->result != -EOPNOTSUPP && !control->injected)
            MUST(entry->result >= 0);
        if (an_allocation_failed() && entry->accepted)
            MUST(entry->result >= 0 || entry->result == -EOPNOTSUPP);
    }
    int list = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct entry *entry;
    do
        entry = complete(loop, upcall_op_readdir(list, entries_read, sizeof entries_read));
    while (entry->accepted && entry->result > 0);
    ended_with(entry, 0);
    close(list);
    close(fd);
    clean_directory(dir, names, COUNT_OF(names));
    free_loop(loop);
}

/* A server and a client that do all by operations. */
static void connections(void) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}}, peer;
    socklen_t length = sizeof address, peer_length = sizeof peer;
    struct entry *made = complete(loop, upcall_op_socket(AF_INET, SOCK_STREAM, 0));
    int listener = (int)made->result, client = -1, server = -1, one = 1;
    if (!made->accepted || listener < 0) {
        MUST(control->injected && (!made->accepted || !an_allocation_failed()));
        free_loop(loop);
        return;
    }
    socklen_t size = sizeof one;
    ended_with(complete(loop, upcall_op_setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one)), 0);
    ended_with(complete(loop, upcall_op_getsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, &size)), 0);
    bool listens = ended_with(complete(loop, upcall_op_bind(listener, (struct sockaddr *)&address, sizeof address)), 0);
    listens = ended_with(complete(loop, upcall_op_listen(listener, 8)), 0) && listens;
    if (listens) {
        MUST(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
        struct entry *accepted = put(loop, upcall_op_accept(listener, (struct sockaddr *)&peer, &peer_length, 0));
        turn(loop, 0);
        client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct entry *connected = complete(loop, upcall_op_connect(client, (struct sockaddr *)&address, sizeof address));
        if (!ended_with(connected, 0) && accepted->finals == 0) {
            accepted->asked = true;
            upcall_cancel(loop, accepted->id);
        }
        finish_all(loop);
        server = accepted->accepted ? (int)accepted->result : -1;
        if (server >= 0) {
            ended_with(complete(loop, upcall_op_shutdown(server, SHUT_WR)), 0);
            ended_with(complete(loop, upcall_op_close(server)), 0);
        }
        close(client);
    }
    close(listener);
    int fds[2] = {-1, -1};
    if (ended_with(complete(loop, upcall_op_pipe(fds, 0)), 0))
        close_pair(fds);
    free_loop(loop);
}

static int accepted_count;

static void close_accepted(upcall_loop *loop, const upcall_event *event, struct entry *entry) {
    (void)loop, (void)entry;
    if (event->result >= 0) {
        close((int)event->result);
        accepted_count++;
    }
}

static void multishot_accept(void) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    int listener = tcp_listener(&address), clients[4];
    upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
    op.flags = UPCALL_MULTISHOT;
    struct entry *entry = prepare(op);
    entry->then = close_accepted;
    accepted_count = 0;
    submit(loop, entry, 1);
    for (size_t i = 0; i < COUNT_OF(clients); i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        MUST(clients[i] >= 0 && connect(clients[i], (struct sockaddr *)&address, sizeof address) == 0);
        turn(loop, 0);
    }
    for (double limit = seconds() + PATIENCE_SECONDS; accepted_count < 4 && entry->accepted && entry->finals == 0;) {
        turn(loop, MS(50));
        MUST(seconds() < limit);
    }
    entry->asked = true;
    if (entry->accepted && entry->finals == 0)
        MUST(upcall_cancel(loop, entry->id) == 0);
    finish_all(loop);
    for (size_t i = 0; i < COUNT_OF(clients); i++)
        close(clients[i]);
    close(listener);
    free_loop(loop);
}

static void transfers(void) {
    upcall_loop *loop = new_loop();
    int a[2], b[2], from = temp_file(16384), to = temp_file(4096);
    enum { LEN = 4096 };
    uint8_t data[LEN], copy[LEN];
    fill(data, LEN, 0);
    pipe_pair(a);
    pipe_pair(b);
    MUST(write(a[1], data, LEN) == LEN);
    struct entry *entry = complete(loop, upcall_op_tee(a[0], b[1], LEN, 0));
    if (entry->accepted && entry->result > 0) {
        MUST(read(b[0], copy, LEN) == entry->result && memcmp(data, copy, (size_t)entry->result) == 0);
    }
    moved_some(entry, LEN);
    upcall_op op = upcall_op_splice(a[0], -1, b[1], -1, LEN, 0);
    op.flags = UPCALL_FULL;
    entry = complete(loop, op);
    ended_with(entry, LEN);
    size_t moved = entry->accepted ? entry->transferred : 0;
    MUST(moved == 0 || (read(b[0], copy, moved) == (ssize_t)moved && memcmp(data, copy, moved) == 0));
    MUST(moved == LEN || read(a[0], copy, LEN) == (ssize_t)(LEN - moved));
    op = upcall_op_sendfile(b[1], from, 4096, LEN);
    op.flags = UPCALL_FULL;
    entry = complete(loop, op);
    ended_with(entry, LEN);
    moved = entry->accepted ? entry->transferred : 0;
    MUST(moved == 0 || read(b[0], copy, moved) == (ssize_t)moved);
    must_follow(copy, moved, 4096);
    op = upcall_op_copy_range(from, 8192, to, 4096, LEN, 0);
    op.flags = UPCALL_FULL;
    entry = complete(loop, op);
    if (entry->accepted && entry->result != -EXDEV && entry->result != -EOPNOTSUPP && ended_with(entry, LEN)) {
        MUST(pread(to, copy, LEN, 4096) == LEN);
        must_follow(copy, LEN, 8192);
    }
    close_pair(a);
    close_pair(b);
    close(from);
    close(to);
    free_loop(loop);
}

static void readiness(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    char byte;
    pipe_pair(fds);
    struct entry *one = put(loop, upcall_op_poll(fds[0], POLLIN));
    upcall_op op = upcall_op_poll(fds[0], POLLIN);
    op.flags = UPCALL_MULTISHOT;
    struct entry *many = put(loop, op);
    turn(loop, 0);
    double limit = seconds() + PATIENCE_SECONDS;
    for (unsigned round = 0; round < 2; round++) {
        MUST(write(fds[1], "x", 1) == 1);
        unsigned before = many->events;
        while (many->accepted && many->finals == 0 && many->events == before) {
            turn(loop, MS(50));
            MUST(seconds() < limit);
        }
        MUST(read(fds[0], &byte, 1) == 1);
        turn(loop, 0);
    }
    many->asked = true;
    if (many->accepted && many->finals == 0)
        MUST(upcall_cancel(loop, many->id) == 0);
    finish_all(loop);
    ended_with(one, POLLIN);
    close_pair(fds);
    free_loop(loop);
}

static int ticks;

static void count_tick(upcall_loop *loop, const upcall_event *event, struct entry *entry) {
    if (++ticks == 3) {
        entry->asked = true;
        MUST(upcall_cancel(loop, event->id) == 0);
    }
}

static void timers(void) {
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 12; i++)
        put(loop, upcall_op_sleep((uint64_t)MS(1) + (uint64_t)i * 1000));
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    put(loop, upcall_op_sleep_until((uint64_t)t.tv_sec * UPCALL_SECOND + (uint64_t)t.tv_nsec + (uint64_t)MS(2)));
    finish_all(loop);
    for (size_t i = 0; i < used; i++)
        ended_with(&entries[i], 0);
    upcall_op op = upcall_op_sleep((uint64_t)MS(1));
    op.flags = UPCALL_MULTISHOT;
    struct entry *repeating = prepare(op);
    repeating->then = count_tick;
    ticks = 0;
    submit(loop, repeating, 1);
    finish_all(loop);
    free_loop(loop);
}

static void signals(void) {
    upcall_loop *loop = new_loop();
    signal(SIGUSR1, SIG_IGN); /* what is not watched for want of a handler must not kill */
    upcall_op op = upcall_op_signal(SIGUSR1);
    struct entry *one = put(loop, op);
    turn(loop, 0);
    if (one->accepted && one->finals == 0) {
        MUST(raise(SIGUSR1) == 0);
        finish_all(loop);
    }
    ended_with(one, SIGUSR1);
    op.flags = UPCALL_MULTISHOT | UPCALL_BACKGROUND;
    struct entry *many = put(loop, op);
    turn(loop, 0);
    many->asked = true;
    if (many->accepted && many->finals == 0)
        MUST(upcall_cancel(loop, many->id) == 0);
    finish_all(loop);
    free_loop(loop);
    struct sigaction now;
    MUST(sigaction(SIGUSR1, NULL, &now) == 0);
    if (!control->injected)
        MUST(now.sa_handler == SIG_IGN);
}

static void processes(void) {
    upcall_loop *loop = new_loop();
    int gate[2];
    pipe_pair(gate);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(gate[1]);
        while (read(gate[0], &byte, 1) < 0) {}
        _exit(7);
    }
    close(gate[0]);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    struct entry *entry = put(loop, upcall_op_waitid(P_PID, (uint32_t)child, &info, WEXITED));
    turn(loop, 0);
    turn(loop, 0);
    close(gate[1]);
    finish_all(loop);
    int status;
    if (ended_with(entry, 0))
        MUST(info.si_pid == child && info.si_status == 7);
    else
        MUST(waitpid(child, &status, 0) == child);
    free_loop(loop);
}

static void futexes(void) {
    upcall_loop *loop = new_loop();
    static uint32_t word = 5;
    struct entry *other = complete(loop, upcall_op_futex_wait(&word, 4, ~0u, UPCALL_FUTEX_PRIVATE));
    ended_with(other, 1);
    struct entry *waits = put(loop, upcall_op_futex_wait(&word, 5, ~0u, UPCALL_FUTEX_PRIVATE));
    turn(loop, 0);
    for (double limit = seconds() + PATIENCE_SECONDS; waits->accepted && waits->finals == 0;) {
        complete(loop, upcall_op_futex_wake(&word, 1, ~0u, UPCALL_FUTEX_PRIVATE));
        turn(loop, MS(1));
        MUST(seconds() < limit);
        if (used > MOST_ENTRIES / 2)
            used = (size_t)(waits - entries) + 1;
    }
    ended_with(waits, 0);
    /* And one that is cancelled on its thread. */
    waits = put(loop, upcall_op_futex_wait(&word, 5, ~0u, UPCALL_FUTEX_PRIVATE));
    turn(loop, 0);
    turn(loop, MS(5));
    waits->asked = true;
    upcall_cancel(loop, waits->id);
    finish_all(loop);
    cancelled_or(waits, 0);
    free_loop(loop);
}

static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

static void computing(void) {
    upcall_loop *loop = new_loop();
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found = NULL;
    struct entry *first = put(loop, upcall_op_work(seven, NULL));
    for (int i = 1; i < 6; i++)
        put(loop, upcall_op_work(seven, NULL));
    finish_all(loop);
    for (int i = 0; i < 6; i++)
        ended_with(&first[i], 7);
    struct entry *lookup = complete(loop, upcall_op_getaddrinfo("127.0.0.1", "80", &hints, &found));
    if (ended_with(lookup, 0))
        freeaddrinfo(found);
    found = NULL;
    /* Given up, perhaps while it runs. */
    lookup = put(loop, upcall_op_getaddrinfo("127.0.0.1", "80", &hints, &found));
    turn(loop, 0);
    lookup->asked = true;
    upcall_cancel(loop, lookup->id);
    finish_all(loop);
    cancelled_or(lookup, 0);
    if (lookup->accepted && lookup->result == 0)
        freeaddrinfo(found);
    free_loop(loop);
}

static upcall_buffers *pool;
static uint64_t lent_bytes;
static void *kept[4];
static int kept_count;

static void take_lent(upcall_loop *loop, const upcall_event *event, struct entry *entry) {
    (void)loop, (void)entry;
    if (event->buffer == NULL)
        return;
    MUST(event->transferred > 0);
    must_follow(event->buffer, (size_t)event->transferred, lent_bytes);
    lent_bytes += event->transferred;
    if (kept_count < 4)
        kept[kept_count++] = event->buffer;
    else
        MUST(upcall_buffers_return(pool, event->buffer) == 0);
}

static void *return_buffers(void *unused) {
    (void)unused;
    for (int i = 0; i < 4; i++)
        if (kept[i] != NULL)
            MUST(upcall_buffers_return(pool, kept[i]) == 0);
    return NULL;
}

static void *message_buffer;

static void keep_message(upcall_loop *loop, const upcall_event *event, struct entry *entry) {
    (void)loop, (void)entry;
    message_buffer = event->buffer;
}

static void pools(void) {
    upcall_loop *loop = new_loop();
    int fds[2], rc = -1;
    unix_pair(fds, SOCK_STREAM);
    for (int tries = 0; tries < TRIES && rc != 0; tries++) {
        rc = upcall_buffers_new(loop, 4, 1000, &pool);
        MUST(rc == 0 || is_refusal(rc));
    }
    MUST(rc == 0 || lasts());
    if (rc != 0) {
        close_pair(fds);
        free_loop(loop);
        return;
    }
    lent_bytes = 0, kept_count = 0;
    upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    struct entry *entry = prepare(op);
    entry->then = take_lent;
    submit(loop, entry, 1);
    turn(loop, 0);
    enum { LEN = 7000 };
    uint8_t data[LEN];
    fill(data, LEN, 0);
    MUST(send(fds[1], data, LEN, 0) == LEN);
    double limit = seconds() + PATIENCE_SECONDS;
    /* Four buffers, all kept: it runs dry. */
    while (entry->accepted && entry->finals == 0 && kept_count < 4) {
        turn(loop, MS(20));
        MUST(seconds() < limit);
    }
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, return_buffers, NULL) == 0);
    while (entry->accepted && entry->finals == 0 && lent_bytes < LEN) {
        turn(loop, MS(20));
        if (seconds() > limit)
            broken(__FILE__, __LINE__, "a dry pool does not go on: %llu bytes", (unsigned long long)lent_bytes);
    }
    pthread_join(thread, NULL);
    shutdown(fds[1], SHUT_WR);
    finish_all(loop);
    if (!ended_with(entry, 0)) {
        /* What it did not take is still there. */
        struct stream stream = {LEN, lent_bytes};
        drain(fds[0], &stream);
    } else {
        MUST(lent_bytes == LEN);
    }
    close_pair(fds);
    /* One message, lent. */
    unix_pair(fds, SOCK_DGRAM);
    struct msghdr header = {.msg_namelen = 64, .msg_controllen = 64};
    op = upcall_op_recvmsg(fds[0], &header, 0);
    op.buffers = pool;
    lent_bytes = 0;
    struct entry *message = prepare(op);
    message->then = keep_message;
    message_buffer = NULL;
    submit(loop, message, 1);
    turn(loop, 0);
    MUST(send(fds[1], data, 100, 0) == 100);
    finish(loop, message, 1);
    bool got = ended_with(message, 100);
    MUST(got == (message_buffer != NULL));
    close_pair(fds);
    free_loop(loop);
    /* It is lent beyond the loop's end. */
    if (got) {
        MUST(upcall_buffers_free(pool) == -EBUSY);
        MUST(upcall_buffers_return(pool, message_buffer) == 0);
    }
    MUST(upcall_buffers_free(pool) == 0);
}

/* Everything that waits, asked to end in every way. */
static size_t waiting(upcall_loop *loop, int fds[2], int listener, struct entry **first) {
    static char byte;
    upcall_op accepting = upcall_op_accept(listener, NULL, NULL, 0);
    upcall_op ops[] = {upcall_op_read(fds[0], &byte, 1), upcall_op_poll(fds[0], POLLIN), upcall_op_sleep(UPCALL_SECOND * 60),
                       accepting, upcall_op_recv(fds[0], &byte, 1, 0)};
    *first = &entries[used];
    for (size_t i = 0; i < COUNT_OF(ops); i++)
        put(loop, ops[i])->asked = true;
    return COUNT_OF(ops);
}

static void cancels(void) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    int fds[2], listener = tcp_listener(&address);
    unix_pair(fds, SOCK_STREAM);
    for (int way = 0; way < 4; way++) {
        struct entry *first;
        size_t count = waiting(loop, fds, listener, &first);
        if (way > 0) /* else before any of them is handed over */
            turn(loop, 0);
        if (way == 3) { /* a blocking accept waits on a thread of its own */
            turn(loop, MS(2));
            turn(loop, MS(2));
        }
        if (way == 1) {
            MUST(upcall_cancel_all(loop) >= 0);
        } else if (way == 2) {
            MUST(upcall_cancel_fd(loop, fds[0]) >= 0 && upcall_cancel_fd(loop, listener) >= 0);
            upcall_cancel(loop, first[2].id);
        } else {
            for (size_t i = 0; i < count; i++)
                if (first[i].accepted)
                    upcall_cancel(loop, first[i].id);
        }
        finish(loop, first, count);
        for (size_t i = 0; i < count; i++)
            cancelled_or(&first[i], -ECANCELED);
    }
    close_pair(fds);
    close(listener);
    free_loop(loop);
}

static void deadlines(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    static char bytes[16];
    unix_pair(fds, SOCK_STREAM);
    /* More different ones than there are lists of timers. */
    for (unsigned i = 0; i < 12; i++) {
        upcall_op op = i % 2 ? upcall_op_recv(fds[0], &bytes[i], 1, 0) : upcall_op_poll(fds[0], POLLIN);
        op.timeout_ns = (uint64_t)MS(1) + i * 10000;
        put(loop, op);
    }
    finish_all(loop);
    for (unsigned i = 0; i < 12; i++)
        if (entries[i].accepted)
            MUST(entries[i].result == -ETIMEDOUT || control->injected);
    close_pair(fds);
    free_loop(loop);
}

static void chains(void) {
    upcall_loop *loop = new_loop();
    int fd = temp_file(0);
    char data[64], copy[64];
    memset(data, 'x', sizeof data);
    struct entry *first = prepare(upcall_op_pwrite(fd, data, sizeof data, 0));
    first[0].op.flags = UPCALL_LINK | UPCALL_FULL;
    prepare(upcall_op_fsync(fd))->op.flags = UPCALL_LINK;
    prepare(upcall_op_pread(fd, copy, sizeof copy, 0))->op.flags = UPCALL_FULL;
    prepare(upcall_op_nop())->op.flags = UPCALL_LINK_ALWAYS;
    prepare(upcall_op_nop());
    prepare(upcall_op_nop())->op.flags = UPCALL_DRAIN;
    prepare(upcall_op_sleep(1000));
    for (int i = 0; i < 7; i++)
        first[i].asked = true; /* severed where one before it fails */
    if (submit(loop, first, 7) == 0) {
        finish_all(loop);
        if (ended_with(&first[0], sizeof data) && ended_with(&first[1], 0) && ended_with(&first[2], sizeof copy))
            MUST(memcmp(data, copy, sizeof data) == 0);
        for (int i = 3; i < 7; i++)
            ended_with(&first[i], 0);
    }
    /* The first one fails whatever happens. */
    first = prepare(upcall_op_fsync(-1));
    first[0].op.flags = UPCALL_LINK;
    prepare(upcall_op_nop())->asked = true;
    submit(loop, first, 2);
    finish_all(loop);
    if (first[1].accepted)
        MUST(first[0].result < 0 && first[1].result == -ECANCELED);
    close(fd);
    free_loop(loop);
}

static atomic_int posts_done;

static void post_done(upcall_loop *loop, void *arg) {
    (void)loop, (void)arg;
    atomic_fetch_add(&posts_done, 1);
}

struct stranger {
    upcall_loop *loop;
    int fd;
    atomic_int posts, ended;
};

static void *be_a_stranger(void *arg) {
    struct stranger *self = arg;
    char path[] = "/";
    struct statx stat;
    for (int i = 0; i < 20; i++) {
        struct entry *entry = put(self->loop, i % 4 == 0 ? upcall_op_statx(AT_FDCWD, path, 0, STATX_MODE, &stat)
                                                         : upcall_op_nop());
        entry->asked = true;
        if (i % 5 == 0)
            upcall_cancel(self->loop, entry->id);
        if (post(self->loop, post_done, NULL) == 0)
            atomic_fetch_add(&self->posts, 1);
    }
    /* Its memory is in use until all have ended. */
    atomic_store(&self->ended, 1);
    while (atomic_load(&self->ended) != 2)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    return NULL;
}

static void strangers(void) {
    upcall_loop *loop = new_loop();
    turn(loop, 0);
    atomic_store(&posts_done, 0);
    MUST(upcall_hold(loop) == 0);
    struct stranger self[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        self[i].loop = loop;
        atomic_init(&self[i].posts, 0);
        atomic_init(&self[i].ended, 0);
        MUST(pthread_create(&threads[i], NULL, be_a_stranger, &self[i]) == 0);
    }
    double limit = seconds() + PATIENCE_SECONDS;
    for (;;) {
        bool over = atomic_load(&self[0].ended) && atomic_load(&self[1].ended);
        int posts = atomic_load(&self[0].posts) + atomic_load(&self[1].posts);
        if (over && atomic_load(&posts_done) == posts && first_open(entries, used) == NULL)
            break;
        /* A wake-up that is lost shows as a wait to its end. */
        turn(loop, MS(500));
        if (seconds() > limit)
            broken(__FILE__, __LINE__, "%d of %d posts ran", atomic_load(&posts_done), posts);
    }
    for (int i = 0; i < 2; i++) {
        atomic_store(&self[i].ended, 2);
        pthread_join(threads[i], NULL);
    }
    MUST(upcall_unhold(loop) == 0);
    free_loop(loop);
}

static void *wake_later(void *arg) {
    nanosleep(&(struct timespec){0, 3000000}, NULL);
    post(arg, post_done, NULL);
    return NULL;
}

/* A loop that sleeps without limit is woken by one post. */
static void wake(void) {
    upcall_loop *loop = new_loop();
    turn(loop, 0);
    atomic_store(&posts_done, 0);
    pthread_t thread;
    MUST(pthread_create(&thread, NULL, wake_later, loop) == 0);
    while (atomic_load(&posts_done) == 0)
        if (turn(loop, lasts() ? MS(100) : -1) < 0 && lasts())
            break;
    pthread_join(thread, NULL);
    free_loop(loop);
}

static void closing(void) {
    upcall_loop *loop = new_loop();
    int fds[2];
    static char byte;
    unix_pair(fds, SOCK_STREAM);
    struct entry *waits = put(loop, upcall_op_recv(fds[0], &byte, 1, 0));
    waits->asked = true;
    turn(loop, 0);
    struct entry *close_op = complete(loop, upcall_op_close(fds[0]));
    if (!ended_with(close_op, 0)) {
        if (!close_op->accepted)
            upcall_cancel(loop, waits->id);
        close(fds[0]); /* the number is nobody else's here */
    }
    finish_all(loop);
    cancelled_or(waits, -ECANCELED);
    /* With limits of time, and then without. */
    waits = put(loop, upcall_op_recv(fds[1], &byte, 1, 0));
    waits->asked = true;
    put(loop, upcall_op_sleep(UPCALL_SECOND * 60))->asked = true;
    close(fds[1]);
    int rc = upcall_loop_close(loop, UPCALL_SECOND * PATIENCE_SECONDS);
    MUST(rc == 0 || is_refusal(rc));
    free_loop(loop);
}

/* Freed with everything in flight. */
static void freed(void) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    int fds[2], listener = tcp_listener(&address), file = temp_file(8192);
    uint8_t *data = memory(8192);
    static struct addrinfo *found;
    unix_pair(fds, SOCK_STREAM);
    struct entry *first;
    waiting(loop, fds, listener, &first);
    into(put(loop, upcall_op_pread(file, data, 8192, 0)), data, 8192)->asked = true;
    put(loop, upcall_op_work(seven, NULL))->asked = true;
    put(loop, upcall_op_getaddrinfo("127.0.0.1", NULL, NULL, &found))->asked = true;
    post(loop, post_done, NULL);
    turn(loop, 0);
    /* Records that nobody reaps, of what makes a descriptor. */
    upcall_op op = upcall_op_socket(AF_UNIX, SOCK_STREAM, 0);
    upcall_submit(loop, &op, 1, NULL);
    turn(loop, 0);
    waiting(loop, fds, listener, &first);
    free_loop(loop);
    if (found != NULL)
        freeaddrinfo(found);
    close_pair(fds);
    close(listener);
    close(file);
}

/* Waited for from outside. */
static void embedded(void) {
    upcall_loop *loop = new_loop();
    int fds[2], fd = -1;
    static char byte;
    pipe_pair(fds);
    for (int tries = 0; tries < TRIES && fd < 0; tries++) {
        fd = upcall_fd(loop);
        MUST(fd >= 0 || is_refusal(fd));
    }
    MUST(fd >= 0 || lasts());
    turn(loop, 0);
    put(loop, upcall_op_read(fds[0], &byte, 1));
    put(loop, upcall_op_sleep((uint64_t)MS(2)));
    MUST(write(fds[1], "x", 1) == 1);
    double limit = seconds() + PATIENCE_SECONDS;
    while (fd >= 0 && first_open(entries, used) != NULL) {
        struct pollfd p = {fd, POLLIN, 0};
        /* A timer that could not be armed is the program's to survive: it looks now and then. */
        poll(&p, 1, 200);
        turn(loop, 0);
        MUST(seconds() < limit);
    }
    finish_all(loop);
    close_pair(fds);
    free_loop(loop);
}

static void reading_ahead(void) {
    int file = temp_file(64 << 10);
    upcall_reader_config config;
    upcall_reader_config_init(&config);
    config.block_size = 4096;
    config.depth = 4;
    upcall_reader *reader = NULL;
    int rc = -1;
    for (int tries = 0; tries < TRIES && rc != 0; tries++) {
        rc = upcall_reader_new(file, &config, &reader);
        MUST((rc == 0 || is_refusal(rc)) && (rc == 0) == (reader != NULL));
    }
    MUST(rc == 0 || lasts());
    uint64_t at = 0;
    double limit = seconds() + PATIENCE_SECONDS;
    while (rc == 0) {
        const void *block;
        int64_t got = upcall_reader_wait(reader, &block, MS(500));
        if (got == -EAGAIN) {
            if (seconds() > limit)
                broken(__FILE__, __LINE__, "the reader stands still at %llu", (unsigned long long)at);
            continue;
        }
        if (got <= 0) {
            MUST(got < 0 ? control->injected && !an_allocation_failed() : at == 64 << 10);
            break;
        }
        must_follow(block, (size_t)got, at);
        at += (uint64_t)got;
        MUST(upcall_reader_release(reader, block) == 0);
    }
    MUST(upcall_reader_free(reader) == 0);
    close(file);
}

static void forked(void) {
    upcall_loop *loop = new_loop();
    int fds[2], status;
    static char byte;
    pipe_pair(fds);
    struct entry *waits = put(loop, upcall_op_read(fds[0], &byte, 1));
    turn(loop, 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        upcall_op op = upcall_op_nop();
        MUST(upcall_submit(loop, &op, 1, NULL) == -ECHILD && upcall_poll(loop, 0) == -ECHILD);
        MUST(upcall_cancel(loop, 1) == -ECHILD && upcall_loop_free(loop) == 0);
        upcall_loop *own = NULL;
        if (upcall_loop_new(NULL, &own) == 0) {
            turn(own, 0);
            MUST(upcall_loop_free(own) == 0);
        }
        _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        broken(__FILE__, __LINE__, "in the child: %s",
               WIFEXITED(status) ? control->text : strsignal(WTERMSIG(status)));
    MUST(write(fds[1], "x", 1) == 1);
    finish_all(loop);
    ended_with(waits, 1);
    close_pair(fds);
    free_loop(loop);
}

static void registered(void) {
    upcall_loop *loop = new_loop();
    int file = temp_file(8192);
    uint8_t *data = memory(8192);
    struct iovec part = {data, 8192};
    int rc = upcall_register_buffers(loop, &part, 1);
    MUST(rc == 0 || is_refusal(rc));
    upcall_op op = upcall_op_pread(file, data, 8192, 0);
    op.flags = UPCALL_FULL;
    if (ended_with(complete(loop, op), 8192))
        must_follow(data, 8192, 0);
    op = upcall_op_pwrite(file, data, 8192, 0);
    op.flags = UPCALL_FULL;
    ended_with(complete(loop, op), 8192);
    if (rc == 0) {
        rc = upcall_unregister_buffers(loop);
        MUST(rc == 0 || is_refusal(rc));
    }
    close(file);
    free_loop(loop);
}

static void *own_and_leave(void *arg) {
    upcall_loop *loop = arg;
    static char byte;
    static int fds[2];
    pipe_pair(fds);
    put(loop, upcall_op_read(fds[0], &byte, 1));
    put(loop, upcall_op_sleep(UPCALL_SECOND * 60));
    put(loop, upcall_op_poll(fds[0], POLLIN));
    turn(loop, 0);
    put(loop, upcall_op_nop());
    return fds;
}

/* The owner exits with everything in flight. */
static void orphaned(void) {
    upcall_loop *loop = new_loop();
    pthread_t thread;
    void *fds;
    MUST(pthread_create(&thread, NULL, own_and_leave, loop) == 0);
    pthread_join(thread, &fds);
    for (size_t i = 0; i < used; i++)
        entries[i].asked = control->injected; /* where it could not become the owner, freeing cancels them */
    free_loop(loop);
    for (size_t i = 0; i < used; i++)
        if (entries[i].accepted)
            MUST(entries[i].result == -EOWNERDEAD || entries[i].result == 0 || control->injected);
    close_pair(fds);
}

/* What may wait without limit and cannot be polled: an open of a FIFO, on a thread of its own. */
static void fifos(void) {
    upcall_loop *loop = new_loop();
    static const char *const names[] = {"p"};
    int dir = open(directory(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0 && mkfifoat(dir, "p", 0600) == 0);
    struct entry *entry = put(loop, upcall_op_open(dir, "p", O_RDONLY, 0));
    turn(loop, 0);
    turn(loop, MS(5));
    entry->asked = true;
    upcall_cancel(loop, entry->id);
    finish_all(loop);
    cancelled_or(entry, -ECANCELED);
    entry = put(loop, upcall_op_open(dir, "p", O_RDONLY, 0));
    entry->op.timeout_ns = 0;
    turn(loop, 0);
    int fd = -1;
    double limit = seconds() + PATIENCE_SECONDS;
    while (entry->accepted && entry->finals == 0) {
        if (fd < 0)
            fd = openat(dir, "p", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
        turn(loop, MS(2));
        MUST(seconds() < limit);
    }
    if (entry->accepted && entry->result >= 0)
        close((int)entry->result);
    else
        MUST(control->injected && (!entry->accepted || !an_allocation_failed()));
    if (fd >= 0)
        close(fd);
    clean_directory(dir, names, COUNT_OF(names));
    free_loop(loop);
}

#define SCENARIO(name) {#name, name}
const struct scenario scenarios[] = {
    SCENARIO(lifecycle), SCENARIO(nops), SCENARIO(pipes), SCENARIO(sockets_of_streams), SCENARIO(zerocopy),
    SCENARIO(datagrams), SCENARIO(files), SCENARIO(paths), SCENARIO(connections), SCENARIO(multishot_accept),
    SCENARIO(transfers), SCENARIO(readiness), SCENARIO(timers), SCENARIO(signals), SCENARIO(processes),
    SCENARIO(futexes), SCENARIO(computing), SCENARIO(pools), SCENARIO(cancels), SCENARIO(deadlines),
    SCENARIO(chains), SCENARIO(strangers), SCENARIO(wake), SCENARIO(closing), SCENARIO(freed),
    SCENARIO(embedded), SCENARIO(reading_ahead), SCENARIO(forked), SCENARIO(registered), SCENARIO(orphaned),
    SCENARIO(fifos), {NULL, NULL},
};
