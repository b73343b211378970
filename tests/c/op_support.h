/*
 * What the tests of the single operations share. A `subject` is one operation in one situation ("read from an empty
 * pipe"). What every operation promises is written here once, and PROMISES() makes a test of each promise for a
 * subject, on a blocking and on an O_NONBLOCK descriptor.
 */
#ifndef OP_SUPPORT_H
#define OP_SUPPORT_H

#include "check.h"

#include <limits.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <termios.h>

/* ---- More descriptors: the pairs of check.h, then these. fds[0] reads what fds[1] writes. ---- */

enum { TTY = PAIRS, FIFO, STREAMS, EVENTFD, DATAGRAM, REGULAR };

/* A pseudo-terminal that passes bytes on as they are: the slave, then the master. */
HELPER void tty_pair(int fds[2]) {
    struct termios mode;
    fds[1] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(fds[1] >= 0);
    CHECK(grantpt(fds[1]) == 0 && unlockpt(fds[1]) == 0);
    fds[0] = open(ptsname(fds[1]), O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(fds[0] >= 0);
    CHECK(tcgetattr(fds[0], &mode) == 0);
    cfmakeraw(&mode);
    CHECK(tcsetattr(fds[0], TCSANOW, &mode) == 0);
}

/* A named pipe, whose name is gone again. */
HELPER void fifo_pair(int fds[2]) {
    char path[512];
    snprintf(path, sizeof path, "%s/upcall-fifo-%ld", temp_directory(), (long)getpid());
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    fds[0] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    fds[1] = open(path, O_WRONLY | O_CLOEXEC);
    CHECK(fds[0] >= 0 && fds[1] >= 0);
    CHECK(unlink(path) == 0);
    CHECK(fcntl(fds[0], F_SETFL, O_RDONLY) == 0);
}

/* A connected pair whose buffers are small and of fixed size, so that they can be filled. */
HELPER void small_tcp_pair(int fds[2]) {
    tcp_pair_with(16384, fds);
}

HELPER void make_stream(int which, int fds[2]) {
    switch (which) {
    case PIPE: pipe_pair(fds); return;
    case UNIX: unix_pair(fds); return;
    case TCP: small_tcp_pair(fds); return;
    case TTY: tty_pair(fds); return;
    case FIFO: fifo_pair(fds); return;
    case DATAGRAM: dgram_pair(fds); return;
    default: fail(HERE, "no such stream: %d", which);
    }
}

/* fill_up() until it stays full: a terminal passes bytes on a little later. */
HELPER size_t fill_for_good(int which, int fd) {
    size_t total = fill_up(fd);
    for (int idle = 0; idle < 3 && which == TTY;) {
        pause_ms(10);
        size_t more = fill_up(fd);
        total += more;
        idle = more ? 0 : idle + 1;
    }
    CHECK(total > 0);
    return total;
}

/* Takes exactly so many bytes. */
HELPER void take(int fd, size_t count) {
    char block[4096];
    while (count > 0) {
        size_t n = count < sizeof block ? count : sizeof block;
        read_all(fd, block, n);
        count -= n;
    }
}

/* A mapping of addresses that costs no memory until it is touched; skips the test where that is forbidden. */
HELPER void *vast_memory(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        SKIP("this machine reserves memory for every mapping");
    return memory;
}

/* A descriptor number that is not open. */
HELPER int closed_fd(void) {
    int fd = 700;
    while (is_open(fd))
        fd++;
    return fd;
}

HELPER bool is_cloexec(int fd) {
    int flags = fcntl(fd, F_GETFD);
    CHECK(flags >= 0);
    return flags & FD_CLOEXEC;
}

HELPER bool has_nonblock(int fd) {
    int flags = fcntl(fd, F_GETFL);
    CHECK(flags >= 0);
    return flags & O_NONBLOCK;
}

/* ---- A directory of the test's own, which becomes the current one. ---- */

HELPER char scratch[512];

HELPER void enter_scratch(void) {
    snprintf(scratch, sizeof scratch, "%s/upcall-XXXXXX", temp_directory());
    CHECK(mkdtemp(scratch) != NULL);
    if (denied("rights")) /* also for whom this becomes */
        CHECK(chmod(scratch, 0777) == 0);
    CHECK(chdir(scratch) == 0);
}

HELPER void leave_scratch(void) {
    DIR *dir = opendir(".");
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (unlink(entry->d_name) != 0)
            rmdir(entry->d_name);
    closedir(dir);
    CHECK(chdir("/") == 0);
    CHECK(rmdir(scratch) == 0);
    scratch[0] = '\0';
}

/* A file in the current directory, with a pattern in it. */
HELPER void make_file(const char *name, size_t size) {
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    uint8_t block[4096];
    CHECK(fd >= 0 && size <= sizeof block);
    fill_pattern(block, size, 0);
    write_all(fd, block, size);
    close(fd);
}

/* ---- Signals that no operation raises. ---- */

HELPER volatile sig_atomic_t signals_seen;

HELPER void count_signal(int signo) {
    (void)signo;
    __atomic_fetch_add(&signals_seen, 1, __ATOMIC_RELAXED); /* on several threads */
}

HELPER void count_signals_of(int signo) {
    struct sigaction action = {.sa_handler = count_signal};
    CHECK(sigaction(signo, &action, NULL) == 0);
}

/* SIGALRM at 2 kHz, with a handler that interrupts system calls; and its end. */
HELPER void start_alarms(void) {
    struct itimerval often = {{0, 500}, {0, 500}};
    count_signals_of(SIGALRM);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
}

HELPER void stop_alarms(void) {
    struct itimerval never_again = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &never_again, NULL) == 0);
}

/* A shorter quiet(), for what runs hundreds of times. */
HELPER void no_more_at(struct place at, upcall_loop *loop, const struct recorder *rec) {
    size_t count = rec->count;
    start_all(loop);
    check_eq(at, "upcall_poll", upcall_poll(loop, MS(2)), 0);
    check_eq(at, "events", (long long)rec->count, (long long)count);
}
#define no_more(loop, rec) no_more_at(HERE, (loop), (rec))

/* ---- What upcall_submit() refuses. ---- */

/* `parts`: what the text must contain; '|' separates ways to say it. */
HELPER void says_at(struct place at, const char *text, const char *parts) {
    for (const char *part = parts;;) {
        char one[128];
        size_t length = strcspn(part, "|");
        snprintf(one, sizeof one, "%.*s", (int)length, part);
        if (strstr(text, one) != NULL)
            return;
        if (part[length] == '\0')
            fail(at, "\"%s\" does not contain \"%s\"", text, parts);
        part += length + 1;
    }
}

HELPER void check_refused_at(struct place at, upcall_loop *loop, const upcall_op *ops, size_t count, size_t bad,
                             int error, const char *part) {
    upcall_id ids[8] = {0};
    char prefix[128];
    uint64_t before = in_flight(loop);
    CHECK(count <= COUNT_OF(ids));
    check_eq(at, "upcall_submit", upcall_submit(loop, ops, count, ids), -error);
    snprintf(prefix, sizeof prefix, "op %zu of %zu: %s: ", bad + 1, count, upcall_op_name(ops[bad].kind));
    check_contains(at, upcall_last_error(), prefix);
    says_at(at, upcall_last_error(), part);
    check_eq(at, "operations in flight", (long long)in_flight(loop), (long long)before);
}

/* Refused when it stands alone; `part` is what the text says of the field. */
HELPER void refused_alone_at(struct place at, upcall_loop *loop, upcall_op op, int error, const char *part) {
    op.callback = never;
    check_refused_at(at, loop, &op, 1, 0, error, part);
    check_eq(at, "upcall_poll", upcall_poll(loop, 0), 0);
}
#define refused_alone(loop, op, error, part) refused_alone_at(HERE, (loop), (op), (error), (part))

/* Refused alone and among others, of which then none starts. */
HELPER void refused_at(struct place at, upcall_loop *loop, upcall_op op, int error, const char *part) {
    upcall_op ops[4] = {upcall_op_nop(), upcall_op_nop(), op, upcall_op_nop()};
    refused_alone_at(at, loop, op, error, part);
    for (size_t i = 0; i < COUNT_OF(ops); i++)
        ops[i].callback = never;
    check_refused_at(at, loop, ops, COUNT_OF(ops), 2, error, part);
    check_eq(at, "upcall_poll", upcall_poll(loop, 0), 0);
}
#define refused(loop, op, error, part) refused_at(HERE, (loop), (op), (error), (part))

#define LENDS (UINT32_C(1) << 30) /* for refuses_strange_fields(): op.buffers is allowed */

/* What is refused for every operation, whatever its own arguments; `allowed` are the options this one takes. */
HELPER void refuses_strange_fields_at(struct place at, upcall_op op, uint32_t allowed) {
    static const uint32_t unknown[] = {UINT32_C(1) << 31, UINT32_C(1) << 16, UINT32_C(1) << 7};
    upcall_loop *loop = new_loop();
    upcall_buffers *pool = NULL;
    upcall_op strange;
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    for (size_t i = 0; i < COUNT_OF(unknown); i++) {
        strange = op;
        strange.flags |= unknown[i];
        refused_at(at, loop, strange, EINVAL, "flags");
    }
    for (size_t i = 0; i < COUNT_OF(op.reserved); i++) {
        strange = op;
        strange.reserved[i] = 1;
        refused_at(at, loop, strange, EINVAL, "reserved");
    }
    strange = op;
    strange.flags |= UPCALL_LINK;
    refused_alone_at(at, loop, strange, EINVAL, "flags|UPCALL_LINK");
    strange = op;
    strange.flags |= UPCALL_LINK_ALWAYS;
    refused_alone_at(at, loop, strange, EINVAL, "flags|UPCALL_LINK");
    if (!(allowed & UPCALL_FULL)) {
        strange = op;
        strange.flags |= UPCALL_FULL;
        refused_at(at, loop, strange, EINVAL, "flags|UPCALL_FULL");
    }
    if (!(allowed & UPCALL_MULTISHOT)) {
        strange = op;
        strange.flags |= UPCALL_MULTISHOT;
        refused_at(at, loop, strange, EINVAL, "flags|UPCALL_MULTISHOT");
    }
    if (!(allowed & LENDS)) {
        strange = op;
        strange.buffers = pool;
        refused_at(at, loop, strange, EINVAL, "buffers");
    } else {
        upcall_loop *other = new_loop();
        upcall_buffers *foreign = NULL;
        CHECK_EQ(upcall_buffers_new(other, 4, 64, &foreign), 0);
        strange = op;
        strange.buffers = foreign;
        refused_at(at, loop, strange, EINVAL, "buffers");
        CHECK_EQ(upcall_buffers_free(foreign), 0);
        free_loop(other);
    }
    if ((allowed & UPCALL_FULL) && (allowed & LENDS)) {
        strange = op;
        strange.flags |= UPCALL_FULL;
        strange.buffers = pool;
        refused_at(at, loop, strange, EINVAL, "flags|UPCALL_FULL");
    }
    if ((allowed & UPCALL_FULL) && (allowed & UPCALL_MULTISHOT)) {
        strange = op;
        strange.flags |= UPCALL_FULL | UPCALL_MULTISHOT;
        refused_at(at, loop, strange, EINVAL, "flags|UPCALL_FULL");
    }
    if ((allowed & LENDS) && (allowed & UPCALL_MULTISHOT)) { /* it would have to put every piece in the same place */
        strange = op;
        strange.flags |= UPCALL_MULTISHOT;
        refused_at(at, loop, strange, EINVAL, "buffers");
    }
    check_eq(at, "upcall_buffers_free", upcall_buffers_free(pool), 0);
    free_loop_at(at, loop);
}
#define refuses_strange_fields(op, allowed) refuses_strange_fields_at(HERE, (op), (allowed))

/* The kind's name, and that the loop can do it. */
HELPER void is_known_at(struct place at, uint32_t kind, const char *name) {
    upcall_loop *loop = new_loop();
    if (strcmp(upcall_op_name(kind), name) != 0)
        fail(at, "upcall_op_name(%u) is \"%s\", not \"%s\"", kind, upcall_op_name(kind), name);
    int support = upcall_supports(loop, kind);
    if (support != UPCALL_EMULATED && support != UPCALL_NATIVE)
        fail(at, "upcall_supports(%s) is %d", name, support);
    if (on_epoll(loop))
        check_eq(at, "upcall_supports on epoll", support, UPCALL_EMULATED);
    free_loop_at(at, loop);
}
#define is_known(kind, name) is_known_at(HERE, (kind), (name))

/* What only the kernel can know comes in the event, with the callback and with a record to reap. */
HELPER void ends_with_at(struct place at, upcall_loop *loop, upcall_op op, int64_t result) {
    struct record final = complete_at(at, loop, op);
    check_eq(at, upcall_op_name(op.kind), final.result, result);
    check_eq(at, "flags", final.flags, 0);
    if (result < 0)
        check_eq(at, "transferred", (long long)final.transferred, 0);
}
#define ends_with(loop, op, result) ends_with_at(HERE, (loop), (op), (result))

/* ---- Subjects. ---- */

struct scene {
    const struct subject *subject;
    int fd, peer, extra, far; /* what the operation works on, its other side, two more; -1: none. Closed at the end. */
    int status;          /* of fd, as fcntl(F_GETFL) said before */
    bool in_scratch;
    size_t filled;
    uint8_t data[1024]; /* 0xee all over, to begin with */
    struct iovec iov[3];
    struct msghdr msg;
    struct sockaddr_storage address;
    socklen_t length;
    uint8_t control[256];
    struct statx found;
};

struct subject {
    uint32_t kind;
    int object;                              /* a set_up that serves several subjects looks here */
    bool closes;                             /* fd is closed by it */
    bool interrupted_is_undefined;           /* once it waited, an interrupted one may leave anything (connect) */
    void (*set_up)(struct scene *scene);     /* makes the descriptors */
    upcall_op (*make)(struct scene *scene);  /* the operation */
    void (*allow)(struct scene *scene);      /* what it waits for; NULL: it never waits */
    void (*done)(struct scene *scene, struct record final); /* checks what it did; closes a descriptor it made */
    void (*intact)(struct scene *scene);     /* checks that it did nothing, after `allow` */
};

HELPER struct scene *set_scene(const struct subject *subject, bool nonblocking) {
    struct scene *scene = calloc(1, sizeof *scene);
    CHECK(scene != NULL);
    scene->subject = subject;
    scene->fd = scene->peer = scene->extra = scene->far = -1;
    memset(scene->data, 0xee, sizeof scene->data);
    memset(scene->control, 0xee, sizeof scene->control);
    subject->set_up(scene);
    if (scene->fd >= 0) {
        if (nonblocking)
            set_nonblocking(scene->fd);
        CHECK_EQ(has_nonblock(scene->fd), nonblocking);
        scene->status = fcntl(scene->fd, F_GETFL);
    }
    return scene;
}

HELPER int scene_fds(const struct scene *scene) {
    return (scene->fd >= 0) + (scene->peer >= 0) + (scene->extra >= 0) + (scene->far >= 0);
}

/* The library never changes O_NONBLOCK (guarantee 5, hazard 19): checked at the end of every scene. */
HELPER void clear_scene(struct scene *scene) {
    if (scene->fd >= 0) {
        CHECK_EQ(fcntl(scene->fd, F_GETFL), scene->status);
        close(scene->fd);
    }
    if (scene->peer >= 0)
        close(scene->peer);
    if (scene->extra >= 0)
        close(scene->extra);
    if (scene->far >= 0)
        close(scene->far);
    if (scene->in_scratch)
        leave_scratch();
    free(scene);
}

/* What the library opens once per process is open after this, so that descriptors can be counted. */
HELPER void warm_up(void) {
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    free_loop(loop);
}

HELPER void check_final(const struct recorder *rec, upcall_id id, const struct subject *subject, int64_t result,
                        uint32_t flags) {
    struct record final = final_of(rec, id);
    CHECK_EQ(rec->count, 1);
    CHECK_EQ(final.kind, subject->kind);
    CHECK_EQ(final.result, result);
    CHECK_EQ(final.flags, flags);
    CHECK_EQ(final.transferred, 0);
    CHECK(final.buffer == NULL);
}

/* An interrupted operation wrote nothing where it was allowed to write. */
HELPER void check_memory(const struct scene *now, const struct scene *then) {
    CHECK(memcmp(now->data, then->data, sizeof now->data) == 0);
    CHECK(memcmp(now->control, then->control, sizeof now->control) == 0);
    CHECK(memcmp(&now->msg, &then->msg, sizeof now->msg) == 0);
    CHECK(memcmp(&now->address, &then->address, sizeof now->address) == 0);
    CHECK(memcmp(&now->found, &then->found, sizeof now->found) == 0);
    CHECK_EQ(now->length, then->length);
}

/* Success, where what it waits for comes after it was submitted and where it was there before. Then its id is stale. */
HELPER void succeeds(const struct subject *subject, bool nonblocking) {
    warm_up();
    for (int early = subject->allow == NULL; early < 2; early++) {
        struct recorder rec = {0};
        struct scene *scene = set_scene(subject, nonblocking);
        int others = open_fd_count() - scene_fds(scene);
        upcall_loop *loop = new_loop();
        if (early && subject->allow)
            subject->allow(scene);
        upcall_id id = submit_one(loop, subject->make(scene), &rec);
        if (!early) {
            start_all(loop);
            CHECK_EQ(rec.count, 0);
            subject->allow(scene);
        }
        run_finals(loop, &rec, 1);
        struct record final = final_of(&rec, id);
        CHECK_EQ(rec.count, 1);
        CHECK_EQ(final.kind, subject->kind);
        CHECK_EQ(final.flags, 0);
        CHECK(final.buffer == NULL);
        if (subject->closes)
            scene->fd = -1;
        subject->done(scene, final);
        CHECK_EQ(upcall_cancel(loop, id), -ENOENT); /* cancel after done */
        no_more(loop, &rec);
        free_loop(loop);
        CHECK_EQ(open_fd_count() - scene_fds(scene), others);
        clear_scene(scene);
        forget(&rec);
    }
}

/* The callback and the record to reap carry the same event. */
HELPER void tells_the_same(const struct subject *subject, bool nonblocking) {
    int marker;
    upcall_event reaped, second;
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();

    struct scene *scene = set_scene(subject, nonblocking);
    if (subject->allow)
        subject->allow(scene);
    upcall_id id = submit_one(loop, subject->make(scene), &rec);
    run_finals(loop, &rec, 1);
    struct record called = final_of(&rec, id);
    if (subject->closes)
        scene->fd = -1;
    subject->done(scene, called);
    clear_scene(scene);

    scene = set_scene(subject, nonblocking);
    if (subject->allow)
        subject->allow(scene);
    upcall_op op = subject->make(scene);
    op.user = &marker;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    memset(&reaped, 0xa5, sizeof reaped);
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    for (int got = 0; got == 0;) {
        CHECK(upcall_poll(loop, MS(100)) >= 0);
        got = upcall_reap(loop, &reaped, 1);
        CHECK(got == 0 || got == 1);
        CHECK(now_ns() < limit);
    }
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_reap(loop, &second, 1), 0);
    CHECK_EQ(reaped.id, id);
    CHECK(reaped.user == &marker);
    CHECK_EQ(reaped.kind, called.kind);
    CHECK_EQ(reaped.flags, called.flags);
    CHECK_EQ(reaped.transferred, called.transferred);
    CHECK(reaped.buffer == called.buffer);
    CHECK(reaped.reserved[0] == 0 && reaped.reserved[1] == 0);
    if (subject->closes)
        scene->fd = -1;
    subject->done(scene, (struct record){reaped.id, reaped.result, reaped.transferred, reaped.buffer, reaped.flags,
                                         reaped.kind});
    clear_scene(scene);
    free_loop(loop);
    forget(&rec);
}

/* Submit, cancel, then poll: one final event, and the operation did nothing, also where it could have been done at
   once. Both on a loop that has an owner and on one that has none yet, whose submissions wait in its inbox. */
HELPER void cancelled_before_start(const struct subject *subject, bool nonblocking) {
    warm_up();
    for (int owned = 0; owned < 2; owned++) {
        for (int early = subject->allow == NULL; early < 2; early++) {
            struct recorder rec = {0};
            struct scene *scene = set_scene(subject, nonblocking);
            int others = open_fd_count() - scene_fds(scene);
            upcall_loop *loop = new_loop();
            if (owned)
                CHECK_EQ(upcall_poll(loop, 0), 0);
            if (early && subject->allow)
                subject->allow(scene);
            upcall_op op = subject->make(scene);
            struct scene before = *scene;
            upcall_id id = submit_one(loop, op, &rec);
            CHECK_EQ(upcall_cancel(loop, id), 0);
            CHECK_EQ(rec.count, 0); /* the event never arrives inside */
            run_finals(loop, &rec, 1);
            check_final(&rec, id, subject, -ECANCELED, 0);
            check_memory(scene, &before);
            CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
            if (!early)
                subject->allow(scene);
            no_more(loop, &rec);
            subject->intact(scene);
            free_loop(loop);
            CHECK_EQ(open_fd_count() - scene_fds(scene), others);
            clear_scene(scene);
            forget(&rec);
        }
    }
}

/* Interrupted while it waits, by cancel or by the clock: one final event, not before its time, and nothing was done. */
HELPER void interrupted(const struct subject *subject, bool nonblocking, uint64_t timeout_ns) {
    struct recorder rec = {0};
    warm_up();
    struct scene *scene = set_scene(subject, nonblocking);
    int others = open_fd_count() - scene_fds(scene);
    upcall_loop *loop = new_loop();
    upcall_op op = subject->make(scene);
    struct scene before = *scene;
    op.timeout_ns = timeout_ns;
    uint64_t start = now_ns();
    upcall_id id = submit_one(loop, op, &rec);
    start_all(loop);
    if (timeout_ns == 0) {
        CHECK_EQ(rec.count, 0);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        CHECK_EQ(rec.count, 0);
    }
    run_finals(loop, &rec, 1);
    CHECK(now_ns() - start >= timeout_ns);
    check_final(&rec, id, subject, timeout_ns ? -ETIMEDOUT : -ECANCELED, timeout_ns ? UPCALL_EXPIRED : 0);
    check_memory(scene, &before);
    CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
    if (!subject->interrupted_is_undefined)
        subject->allow(scene);
    no_more(loop, &rec);
    if (!subject->interrupted_is_undefined)
        subject->intact(scene);
    free_loop(loop);
    CHECK_EQ(open_fd_count() - scene_fds(scene), others);
    clear_scene(scene);
    forget(&rec);
}

HELPER void cancelled_while_waiting(const struct subject *subject, bool nonblocking) {
    interrupted(subject, nonblocking, 0);
}

HELPER void expires_while_waiting(const struct subject *subject, bool nonblocking) {
    interrupted(subject, nonblocking, (uint64_t)MS(30));
}

/* A deadline that does not strike leaves no trace; UINT64_MAX is as good as none. */
HELPER void far_deadline_changes_nothing(const struct subject *subject, bool nonblocking) {
    static const uint64_t far[] = {3600 * UPCALL_SECOND, UINT64_MAX};
    for (size_t i = 0; i < COUNT_OF(far); i++) {
        struct recorder rec = {0};
        struct scene *scene = set_scene(subject, nonblocking);
        upcall_loop *loop = new_loop();
        upcall_op op = subject->make(scene);
        op.timeout_ns = far[i];
        upcall_id id = submit_one(loop, op, &rec);
        start_all(loop);
        if (subject->allow)
            subject->allow(scene);
        run_finals(loop, &rec, 1);
        CHECK_EQ(final_of(&rec, id).flags, 0);
        if (subject->closes)
            scene->fd = -1;
        subject->done(scene, final_of(&rec, id));
        free_loop(loop);
        clear_scene(scene);
        forget(&rec);
    }
}

#define PROMISES_IN_MODE(subject, mode, nonblocking)                                                                   \
    TEST(subject##_##mode##_succeeds) { succeeds(&subject, nonblocking); }                                             \
    TEST(subject##_##mode##_tells_callback_and_reap_the_same) { tells_the_same(&subject, nonblocking); }               \
    TEST(subject##_##mode##_cancelled_before_start) { cancelled_before_start(&subject, nonblocking); }                 \
    TEST(subject##_##mode##_far_deadline_changes_nothing) { far_deadline_changes_nothing(&subject, nonblocking); }

#define PROMISES_OF_WAITING_IN_MODE(subject, mode, nonblocking)                                                        \
    PROMISES_IN_MODE(subject, mode, nonblocking)                                                                       \
    TEST(subject##_##mode##_cancelled_while_waiting) { cancelled_while_waiting(&subject, nonblocking); }               \
    TEST(subject##_##mode##_expires_while_waiting) { expires_while_waiting(&subject, nonblocking); }

/* For an operation that never waits, one that may, and one that works on no descriptor whose mode could matter. */
#define PROMISES(subject)                                                                                              \
    PROMISES_IN_MODE(subject, blocking, false)                                                                         \
    PROMISES_IN_MODE(subject, nonblocking, true)
#define PROMISES_OF_WAITING(subject)                                                                                   \
    PROMISES_OF_WAITING_IN_MODE(subject, blocking, false)                                                              \
    PROMISES_OF_WAITING_IN_MODE(subject, nonblocking, true)

#endif
