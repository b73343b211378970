/* Runs a program on one loop. */
#include "differential.h"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/xattr.h>

enum { GUARD = 32, POISON = 0xa5, ARENA = 4 << 20, MANY_EVENTS = 80000, SHORT_NS = 1500000 };

uint64_t patience_ns = 5 * UPCALL_SECOND;
char scratch_directory[64];
int scratch_fd = -1, disk_fd = -1, sink_fd = -1;
void *no_access;
unsigned char *advised;
static unsigned char *arena, *arena_next;

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UPCALL_SECOND + (uint64_t)t.tv_nsec;
}

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

void broken(run *r, const char *format, ...) {
    if (r->log->broken[0] != '\0')
        return;
    va_list list;
    va_start(list, format);
    int at = snprintf(r->log->broken, sizeof r->log->broken, "step %d: ", r->step);
    vsnprintf(r->log->broken + at, sizeof r->log->broken - (size_t)at, format, list);
    va_end(list);
}

volatile bool acts_outside;

void note(run *r, record_kind kind, int which, int64_t result, uint64_t count, uint64_t hash) {
    if (r->log->count == MAX_RECORDS)
        return;
    if (r->torn && kind != R_SUBMIT)
        hash = 0;
    r->log->record[r->log->count++] = (record){.kind = (uint16_t)kind, .step = (uint16_t)r->step, .which = which,
                                               .result = result, .count = count, .hash = hash};
}

unsigned char *get_memory(run *r, size_t size, size_t alignment) {
    (void)r;
    arena_next += -(uintptr_t)arena_next & (alignment - 1);
    unsigned char *memory = arena_next;
    arena_next += size;
    if (arena_next > arena + ARENA)
        abort(); /* room_left() was asked before */
    return memory;
}

static bool room_left(size_t size) {
    return (size_t)(arena + ARENA - arena_next) > size + 16384;
}

/* ---- The process. ---- */

static void make_name(int fd, const char *path) {
    int made = openat(fd, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0640);
    if (made >= 0)
        close(made);
}

static int make_directory(char *name, size_t room, const char *parent) {
    snprintf(name, room, "%s/upcall-differential-XXXXXX", parent);
    if (mkdtemp(name) == NULL) {
        perror(name);
        exit(2);
    }
    return open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static char disk_directory[512];

void prepare_process(void) {
    const char *here = getenv("TMPDIR");
    scratch_fd = make_directory(scratch_directory, sizeof scratch_directory, access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    disk_fd = make_directory(disk_directory, sizeof disk_directory, here != NULL ? here : "/tmp");
    sink_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    mkdirat(scratch_fd, "folder", 0750);
    make_name(scratch_fd, "folder/inside");
    make_name(scratch_fd, "present");
    if (symlinkat("circle", scratch_fd, "circle") || symlinkat("/dev/null", scratch_fd, "device"))
        perror("symlink");
    for (int i = 0; i < MAX_OBJECTS; i++) {
        char name[32];
        snprintf(name, sizeof name, "fifo%d", i);
        mkfifoat(scratch_fd, name, 0600);
    }
    no_access = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    advised = mmap(NULL, ADVISED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (no_access == MAP_FAILED || advised == MAP_FAILED || arena == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    prepare_objects();
}

void forget_process(void) {
    static const char *const names[] = {"folder/inside", "present", "circle", "device", "new", "missing"};
    for (unsigned i = 0; i < COUNT_OF(names); i++)
        unlinkat(scratch_fd, names[i], 0);
    for (int i = 0; i < MAX_OBJECTS; i++) {
        char name[32];
        snprintf(name, sizeof name, "fifo%d", i);
        unlinkat(scratch_fd, name, 0);
    }
    unlinkat(scratch_fd, "folder", AT_REMOVEDIR);
    rmdir(scratch_directory);
    rmdir(disk_directory);
}

unsigned open_descriptors(void) {
    unsigned count = 0;
    for (int fd = 0; fd < 160; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* ---- The other thread, which only ever submits. ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum { IDLE, ASKED, ANSWERED } state;
    pid_t process;
    upcall_loop *loop;
    const upcall_op *ops;
    size_t count;
    upcall_id *ids;
    int result;
    char text[160];
} other = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void keep_text(char *text, size_t room) {
    snprintf(text, room, "%s", upcall_last_error());
}

static void *submit_for_others(void *unused) {
    pthread_mutex_lock(&other.lock);
    for (;;) {
        while (other.state != ASKED)
            pthread_cond_wait(&other.changed, &other.lock);
        other.result = upcall_submit(other.loop, other.ops, other.count, other.ids);
        keep_text(other.text, sizeof other.text);
        other.state = ANSWERED;
        pthread_cond_broadcast(&other.changed);
    }
    return unused;
}

static int submit_elsewhere(run *r, const upcall_op *ops, size_t count, upcall_id *ids, char *text, size_t room) {
    if (other.process != getpid()) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, submit_for_others, NULL) != 0)
            return upcall_submit(r->loop, ops, count, ids);
        pthread_detach(thread);
        other.process = getpid();
    }
    pthread_mutex_lock(&other.lock);
    other.loop = r->loop;
    other.ops = ops;
    other.count = count;
    other.ids = ids;
    other.state = ASKED;
    pthread_cond_broadcast(&other.changed);
    while (other.state != ANSWERED)
        pthread_cond_wait(&other.changed, &other.lock);
    other.state = IDLE;
    snprintf(text, room, "%s", other.text);
    int result = other.result;
    pthread_mutex_unlock(&other.lock);
    return result;
}

/* ---- Order. ---- */

static const uint32_t LINKS = UPCALL_LINK | UPCALL_LINK_ALWAYS;

/* It is over as far as its order goes: a zero-copy send has its result before its buffer is free. */
static bool is_over(const live *l) {
    return !l->accepted || l->ended || (l->submitted.flags & UPCALL_ZEROCOPY && l->events > 0);
}

/* Operation `last` of a submit, and all before it, have ended. */
static bool all_ended(const run *r, int last) {
    for (int i = last - last % MAX_BATCH; i <= last; i++)
        if (!is_over(&r->live[i]))
            return false;
    return true;
}

/* Nothing before it in its submit holds it back. */
static bool may_start(const run *r, const live *l) {
    bool linked = true;
    for (int i = l->number; i % MAX_BATCH > 0;) {
        const live *after = &r->live[i--], *before = &r->live[i];
        if (after->accepted && after->submitted.flags & UPCALL_DRAIN && !all_ended(r, i))
            return false;
        if (!before->accepted)
            continue;
        linked = linked && before->submitted.flags & LINKS;
        if ((linked || before->submitted.flags & UPCALL_DRAIN) && !is_over(before))
            return false;
    }
    return true;
}

/* ---- Events. ---- */

static void give_back(run *r, unsigned keep) {
    while (r->lents > keep) {
        lent *one = &r->lent[--r->lents];
        one->owner->lent--;
        int rc = upcall_buffers_return(r->pool, one->buffer);
        if (rc != 0)
            broken(r, "upcall_buffers_return: %d for a buffer that is lent", rc);
    }
}

static const unsigned char *content_of(run *r, live *l, const upcall_event *event) {
    if (event->buffer == NULL)
        return l->buffer;
    if (strcmp(l->row->name, "recvmsg") != 0)
        return event->buffer;
    upcall_msg header;
    memcpy(&header, event->buffer, sizeof header);
    l->hash = hash_bytes(l->hash, &header, sizeof header);
    if ((int64_t)header.payloadlen < event->result)
        broken(r, "operation %d: payloadlen %u, result %lld", l->number, header.payloadlen, (long long)event->result);
    return upcall_msg_payload(event->buffer, &l->message);
}

/* Bytes that arrived: their content, and what it means for the object. */
static void on_arrival(run *r, live *l, const upcall_event *event, uint64_t count) {
    thing *t = &r->thing[l->thing];
    const unsigned flags = l->submitted.arg;
    const bool socket_call = strncmp(l->row->name, "recv", 4) == 0;
    const bool peeks = socket_call && flags & MSG_PEEK, cuts = socket_call && flags & MSG_TRUNC;
    size_t room = event->buffer != NULL ? r->program->buffer_size : l->size;
    const unsigned char *bytes = content_of(r, l, event);
    size_t stored = cuts && t->row->traits & STREAM ? 0 : count < room ? count : room;
    if (bytes == NULL || bytes == no_access)
        stored = 0;
    if (event->buffer != NULL && strcmp(l->row->name, "recvmsg") == 0) {
        size_t before = (size_t)(bytes - (const unsigned char *)event->buffer);
        stored = stored < room - before ? stored : room - before;
    }
    if (t->row->traits & MESSAGES)
        l->hash = hash_bytes(l->hash, &count, sizeof count);
    l->hash = hash_bytes(l->hash, bytes, stored);
    l->bytes += count;
    if (t->row->traits & STREAM && !t->inexact && t->plan.kind != PIPE_OUT && !(socket_call && flags & MSG_OOB)) {
        for (size_t i = 0; i < stored; i++)
            if (bytes[i] != (unsigned char)(((t->got + i) * 7 + ((t->got + i) >> 8) * 13 + (unsigned)l->thing * 31 + 1) & 0xff)) {
                broken(r, "operation %d: byte %zu is not byte %" PRIu64 " of the stream", l->number, i, t->got + i);
                break;
            }
    }
    if (!peeks)
        t->got += count;
}

static void check_memory(run *r, live *l, uint64_t used) {
    const unsigned char *at = l->buffer;
    if (at == NULL)
        return;
    for (int i = 1; i <= GUARD; i++)
        if (at[-i] != POISON || at[l->size + (size_t)i - 1] != POISON)
            return broken(r, "operation %d: wrote outside its memory", l->number);
    if (l->row->traits & GETS && r->thing[l->thing].plan.kind != DIRECT)
        for (size_t i = used; i < l->size; i++)
            if (at[i] != POISON)
                return broken(r, "operation %d: byte %zu written, %" PRIu64 " transferred", l->number, i, used);
}

static void on_descriptor(run *r, live *l, int fd) {
    thing *t = &r->thing[l->thing];
    int close_on_exec = fcntl(fd, F_GETFD), status = fcntl(fd, F_GETFL);
    if (close_on_exec < 0 || !(close_on_exec & FD_CLOEXEC))
        broken(r, "operation %d: descriptor %d is not close-on-exec (%d)", l->number, fd, close_on_exec);
    l->hash = hash_bytes(l->hash, &status, sizeof status);
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
    if (t->row->traits & LISTENS && t->waiting > 0 && strcmp(l->row->name, "accept") == 0)
        t->waiting--;
}

/* The operations at an object that has no descriptor are woken: `woken` waiters of a futex; a signal is told to all. */
static void wake(run *r, int object, int64_t woken) {
    for (int i = 0; i < MAX_LIVE; i++) {
        live *l = &r->live[i];
        if (l->accepted && !l->ended && l->thing == object && l->row->waits == FOR_WAKE && may_start(r, l))
            l->due = woken > 0 || r->thing[object].plan.kind == SIGNAL;
    }
}

/* Names and types: the rest of a record is chance. */
static void on_records(live *l, const upcall_event *event) {
    const void *records = event->buffer != NULL ? event->buffer : l->buffer;
    for (const upcall_dirent *d = NULL; (d = upcall_dirent_next(records, event->result, d)) != NULL;) {
        const char *name = upcall_dirent_name(d);
        l->hash = hash_bytes(l->hash, name, strlen(name) + 1);
        l->hash = hash_bytes(l->hash, (const unsigned char *)d + offsetof(upcall_dirent, type), 1);
        l->bytes++;
    }
}

static void on_final(run *r, live *l, const upcall_event *event) {
    thing *t = &r->thing[l->thing];
    l->ended = true;
    l->order = r->events;
    l->final = *event;
    if (l->row->traits & DRAINS)
        t->got += event->transferred;
    if (l->second >= 0)
        r->thing[l->second].sent += event->transferred;
    if (t->plan.kind == FUTEX && strcmp(l->row->name, "futex_wake") == 0 && event->result > 0)
        wake(r, l->thing, event->result);
    if (l->row->traits & PUTS)
        t->sent += event->transferred;
    /* A write past the end of one extent, of a length that O_DIRECT does not take, is refused when the first extent is
       written (6.18): where a file's extents end is up to the file system. */
    r->torn |= event->result == -EINVAL && ((l->row->traits & PUTS && t->plan.kind == DIRECT) ||
                                            (l->second >= 0 && r->thing[l->second].plan.kind == DIRECT));
    if (l->row->traits & CLOSES && event->result == 0) {
        t->closed = true;
        t->fd = NOWHERE;
    }
    if (!(l->row->traits & GETS) || event->buffer == NULL)
        check_memory(r, l, event->transferred);
    if (l->buffer != NULL)
        l->final_hash = hash_bytes(HASH_START, l->buffer, l->size);
}

static void on_event(run *r, const upcall_event *event) {
    live *l = event->user;
    if (l < r->live || l >= r->live + MAX_LIVE || !l->accepted)
        return broken(r, "an event for nobody: user %p, kind %u", event->user, event->kind);
    r->events++;
    r->ticks += l->row->waits == FOR_CLOCK && event->flags & UPCALL_MORE;
    if (l->ended)
        return broken(r, "operation %d: an event after its final one", l->number);
    if (event->id != l->id || event->kind != l->submitted.kind || event->reserved[0] | event->reserved[1])
        return broken(r, "operation %d: event of kind %u, id %" PRIx64 " instead of %" PRIx64, l->number, event->kind,
                      event->id, l->id);
    const bool more = event->flags & UPCALL_MORE, zerocopy = l->submitted.flags & UPCALL_ZEROCOPY;
    if (event->flags & ~(uint32_t)(UPCALL_MORE | UPCALL_EXPIRED | (zerocopy ? UPCALL_RELEASED : 0)) ||
        (more && !(l->submitted.flags & UPCALL_MULTISHOT) && !(zerocopy && l->events == 0)))
        return broken(r, "operation %d: event flags %#x", l->number, event->flags);
    l->changed = true;
    l->due = false;
    l->events += more;
    if (zerocopy && more)
        l->final = *event;
    if (zerocopy && !more && l->events > 0 &&
        (event->result != l->final.result || event->transferred != l->final.transferred))
        broken(r, "operation %d: released with result %lld, not %lld", l->number, (long long)event->result,
               (long long)l->final.result);
    if (event->buffer != NULL && !(l->row->traits & LENDS && l->submitted.buffers != NULL))
        return broken(r, "operation %d: a buffer was lent", l->number);
    if (l->row->traits & GETS && (event->transferred > 0 || event->buffer != NULL))
        on_arrival(r, l, event, event->transferred);
    if (l->row->traits & LISTS && event->result > 0)
        on_records(l, event);
    if (l->row->traits & MAKES_FD && event->result >= 0)
        on_descriptor(r, l, (int)event->result);
    if (event->buffer != NULL) {
        r->lent[r->lents++] = (lent){event->buffer, l};
        l->lent++;
        if (!r->program->holds || r->lents == MAX_LENT)
            give_back(r, 0);
    }
    if (!more)
        on_final(r, l, event);
}

static void on_callback(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    run *r = ((live *)event->user)->run;
    on_event(r, event);
}

static unsigned turn(run *r, int64_t timeout_ns) {
    const uint64_t before = r->events - r->ticks;
    int rc = upcall_poll(r->loop, timeout_ns);
    if (rc < 0)
        broken(r, "upcall_poll: %d", rc);
    r->cut_short = rc >= LEAST_MAX_EVENTS;
    upcall_event records[8];
    int count;
    while ((count = upcall_reap(r->loop, records, COUNT_OF(records))) > 0)
        for (int i = 0; i < count; i++)
            on_event(r, &records[i]);
    return (unsigned)(r->events - r->ticks - before);
}

/* ---- What could go on. ---- */

static bool waits_its_turn(const run *r, const live *l) {
    if (!(l->row->traits & CURSOR))
        return false;
    for (int i = 0; i < l->number; i++) {
        const live *before = &r->live[i];
        if (before->accepted && !before->ended && before->thing == l->thing && before->row->claims == l->row->claims &&
            before->row->traits & CURSOR)
            return true;
    }
    return false;
}

static bool is_ready(const thing *t, short events) {
    struct pollfd one = {.fd = t->fd, .events = events};
    return poll(&one, 1, 0) > 0;
}

static bool ready_to_read(const run *r, const live *l) {
    const thing *t = &r->thing[l->thing];
    const bool message = strncmp(l->row->name, "recv", 4) == 0;
    if (message && l->submitted.arg & MSG_ERRQUEUE && t->row->traits & INET)
        return false;
    if (is_ready(t, POLLIN))
        return true;
    if (t->closed || l->submitted.flags & UPCALL_FULL)
        return false;
    if (l->row->traits & DRAINS)
        return t->row->traits & STREAM && !t->inexact && t->put > t->got;
    /* It is on its way, or a thread has it. */
    if (t->row->traits & LISTENS)
        return t->waiting > 0;
    if (t->row->traits & STREAM && t->row->traits & (INET | SLOWLY | ON_A_THREAD))
        return t->ended || (!t->inexact && t->put > t->got);
    return false;
}

/* The wrong end of a pipe, or what is not open, is told at once. */
static bool both_ready(const run *r, const live *l) {
    const thing *in = &r->thing[l->thing], *out = l->second < 0 ? NULL : &r->thing[l->second];
    if (l->op->length == 0 || in->plan.kind == PIPE_OUT || in->closed ||
        (out != NULL && (out->closed || out->plan.kind == PIPE_IN || out->plan.kind == FIFO_IN)))
        return true;
    return is_ready(in, POLLIN) && (out == NULL || is_ready(out, POLLOUT));
}

static bool child_has_ended(const run *r, const live *l) {
    const thing *t = &r->thing[l->thing];
    struct pollfd one = {.fd = t->helper, .events = POLLIN};
    return !l->due || poll(&one, 1, 0) > 0;
}

static bool could_go_on(const run *r, const live *l) {
    const thing *t = &r->thing[l->thing];
    if (!l->accepted || l->ended)
        return false;
    if (l->asked || (l->submitted.flags & UPCALL_ZEROCOPY && l->events > 0))
        return true;
    if (!may_start(r, l) || waits_its_turn(r, l))
        return false;
    const bool dry = l->submitted.buffers != NULL && r->program->holds &&
                     (r->lents >= r->program->buffers || (l->op->lend_max && l->lent >= l->op->lend_max));
    const bool repeats = l->submitted.flags & UPCALL_MULTISHOT;
    if (l->submitted.timeout_ns != 0 && l->submitted.timeout_ns < UPCALL_SECOND && !(dry && repeats))
        return true;
    switch (l->row->waits) {
    case ENDS: return !dry;
    case FOR_IN: return !dry && ready_to_read(r, l);
    case FOR_OUT:
        /* A terminal takes the little that is written to it, but perhaps on a thread. */
        return (t->row->traits & SLOWLY && t->peer >= 0 && !t->closed) || is_ready(t, POLLOUT);
    case FOR_EVENTS: return (!repeats || l->events == 0) && is_ready(t, (short)l->submitted.arg);
    case FOR_CLOCK:
        if (strcmp(l->row->name, "sleep_until") == 0)
            return l->submitted.len < now_ns() + UPCALL_SECOND;
        return !repeats && l->submitted.len < UPCALL_SECOND;
    case FOR_BOTH: return both_ready(r, l);
    case FOR_WAKE: return l->due || (t->plan.kind == FUTEX && l->submitted.len != 0);
    case FOR_CHILD: return child_has_ended(r, l);
    default: return false;
    }
}

static void read_of_task(const char *task, const char *file, char *text, size_t room) {
    char path[300];
    snprintf(path, sizeof path, "/proc/self/task/%s/%s", task, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? 0 : read(fd, text, room - 1);
    if (fd >= 0)
        close(fd);
    text[count > 0 ? count : 0] = '\0';
}

/* Whether each thread but this one sleeps, and how often they all have run. */
static bool threads_sleep(uint64_t *runs) {
    bool asleep = true;
    DIR *tasks = opendir("/proc/self/task");
    const struct dirent *task;
    *runs = 0;
    while (tasks != NULL && asleep && (task = readdir(tasks)) != NULL) {
        char text[256];
        if (task->d_name[0] == '.' || atoi(task->d_name) == getpid())
            continue;
        read_of_task(task->d_name, "stat", text, sizeof text);
        const char *state = strrchr(text, ')');
        asleep = state == NULL || state[2] == 'S' || state[2] == 'I';
        uint64_t count = 0;
        read_of_task(task->d_name, "schedstat", text, sizeof text);
        sscanf(text, "%*u %*u %" SCNu64, &count);
        *runs += count;
    }
    if (tasks != NULL)
        closedir(tasks);
    return asleep;
}

/* No thread but this one runs, or ran between two looks: what is not done now waits for something. */
static bool threads_rest(void) {
    uint64_t first, second;
    return threads_sleep(&first) && threads_sleep(&second) && first == second;
}

static const live *first_that_could(const run *r) {
    for (int i = 0; i < MAX_LIVE; i++)
        if (could_go_on(r, &r->live[i]))
            return &r->live[i];
    return NULL;
}

static void write_down(run *r) {
    for (int i = 0; i < MAX_LIVE; i++) {
        live *l = &r->live[i];
        if (!l->changed)
            continue;
        l->changed = false;
        const uint64_t events = l->row->traits & COUNTLESS ? l->events > 0
                                : l->row->traits & GETS && !(r->thing[l->thing].row->traits & MESSAGES) ? 0
                                                                                                       : l->events;
        if (!l->ended && l->row->traits & COUNTLESS)
            continue;
        if (!l->ended) {
            note(r, R_EVENTS, l->number, (int64_t)l->bytes, events, l->hash);
            continue;
        }
        int64_t result = l->final.result;
        if (l->row->traits & MAKES_FD && result >= 0)
            result = 0;
        if (l->unsure && (result == 0 || result == -EPIPE || result == -ECONNRESET))
            result = -ECONNRESET;
        if (l->unsure && l->row->waits == FOR_EVENTS)
            result = 1;
        uint64_t hash = l->hash;
        if (l->row->leaves != NULL && !(l->unsure && l->final.result <= 0)) {
            uint64_t left = l->row->leaves(r, l);
            hash = hash_bytes(hash, &left, sizeof left);
        }
        note(r, R_FINAL, i, result, l->row->traits & COUNTLESS && l->submitted.flags & UPCALL_MULTISHOT ? 0 : events,
             hash);
        record *last = &r->log->record[r->log->count - 1];
        last->transferred = l->final.transferred;
        last->flags = l->final.flags | (l->final.buffer != NULL ? 0x100 : 0);
    }
}

static void settle(run *r) {
    uint64_t since = 0;
    unsigned idle = 0;
    bool quiet = false;
    const uint64_t before = r->events;
    while (r->log->broken[0] == '\0') {
        if (r->events - before > MANY_EVENTS)
            broken(r, "events without end");
        if (turn(r, 0) > 0) {
            quiet = false;
            idle = 0;
            since = 0;
            continue;
        }
        /* Ticks may have taken the place of what else is there. */
        if (r->cut_short || ++idle < 2)
            continue;
        const live *l = first_that_could(r);
        if (l == NULL) {
            if (!r->threads || quiet)
                break;
            quiet = threads_rest();
            if (!quiet)
                sched_yield();
            continue;
        }
        quiet = false;
        if (turn(r, 2 * (int64_t)UPCALL_MILLISECOND) > 0) {
            idle = 0;
            since = 0;
            continue;
        }
        const uint64_t now = now_ns();
        if (since == 0)
            since = now;
        else if (now - since > patience_ns)
            broken(r, "operation %d (%s on %s) could go on and does not", l->number, l->row->name,
                   r->thing[l->thing].row->name);
    }
    r->unsettled = false;
    write_down(r);
}

/* ---- Steps. ---- */

static unsigned claims_of(const thing *t, const operation_row *row, const operation *op) {
    unsigned claims = row->claims;
    if (row->waits == FOR_EVENTS) {
        upcall_op made = row->make(NULL, &(live){.op = op}, &(thing){.fd = -1});
        claims = made.arg & (POLLOUT | POLLWRBAND) ? IN | OUT : IN;
    }
    /* What is written to these can be read from them; a peer that is gone leaves one error, or a queue, for whoever
     * comes first. */
    if (claims != NOTHING && (t->row->traits & (STORES | COUNTS) || t->reset))
        claims = IN | OUT;
    /* A pipe that was spliced takes no more where its last page has room, on a backend that polls first. */
    if (row->traits & TWO && t->plan.kind == PIPE_OUT)
        claims = IN | OUT;
    return claims;
}

typedef struct claims {
    int by[MAX_OBJECTS + 1][2]; /* the strand that has the side, 0: nobody; the last object is the names */
    bool closing[MAX_OBJECTS], touched[MAX_OBJECTS];
    unsigned lends;
} claims;

static bool take_claim(claims *c, int object, unsigned wanted, int strand) {
    for (int side = 0; side < 2; side++)
        if ((wanted & (1u << side) || wanted & STATE) && c->by[object][side] != 0 && c->by[object][side] != strand)
            return false;
    for (int side = 0; side < 2; side++)
        if (wanted & (1u << side) || wanted & STATE)
            c->by[object][side] = strand;
    return true;
}

/* The object that the operation moves bytes to; -1: none. */
static int second_of(const operation *op, const operation_row *row) {
    return row->traits & TWO && op->second < MAX_OBJECTS ? op->second : -1;
}

static unsigned second_claims(const thing *t) {
    return t->row->traits & (STORES | COUNTS) || t->reset ? IN | OUT : OUT;
}

/* Whether an operation that wants this of an object can be done next to one in flight without a race. */
static bool shares(const run *r, const live *l, const operation *op, const operation_row *row, int object,
                   unsigned wanted, bool ordered) {
    if (l->thing != object && l->second != object)
        return true;
    const unsigned state = l->thing == object ? l->row->claims & STATE : NOTHING;
    const unsigned taken = (l->thing == object ? l->claims : NOTHING) | (l->second == object ? l->second_claims : NOTHING);
    if (row->traits & CLOSES && l->row->traits & CLOSES)
        return false;
    if (wanted & STATE && (r->unsettled || state))
        return false;
    if (state && r->unsettled)
        return false;
    /* What it ends releases others, and whether these come before what follows the shutdown is timing. */
    if (strcmp(row->name, "shutdown") == 0 && !may_start(r, l))
        return false;
    if (!(wanted & taken))
        return true;
    const bool take_turns = row->traits & CURSOR && l->row->traits & CURSOR && row->claims == l->row->claims;
    return take_turns && !ordered && op->deadline != SHORT && !(l->submitted.flags & (LINKS | UPCALL_DRAIN)) &&
           l->number % MAX_BATCH == 0;
}

/* Whether the operation can be done next to what is in flight without a race. */
static bool gets_along(const run *r, const operation *op, const operation_row *row, unsigned wanted, bool ordered) {
    const int second = second_of(op, row);
    /* It says for ever that there is something to read, and nothing comes. */
    if (second >= 0 && r->thing[op->object].row->traits & MESSAGES && r->thing[op->object].inexact)
        return false;
    for (int i = 0; i < MAX_LIVE; i++) {
        const live *l = &r->live[i];
        if (!l->accepted || l->ended)
            continue;
        if (row->traits & LENDS && op->lends && r->program->holds && l->submitted.buffers != NULL)
            return false;
        if (row->traits & PATHS && l->row->traits & PATHS)
            return false;
        /* Which of several waiters a wake reaches is chance. */
        if (row->waits == FOR_WAKE && l->row->waits == FOR_WAKE && r->thing[op->object].plan.kind == FUTEX &&
            l->thing == op->object)
            return false;
        if (!shares(r, l, op, row, op->object, wanted, ordered))
            return false;
        if (second >= 0 && !shares(r, l, op, row, second, second_claims(&r->thing[second]), ordered))
            return false;
    }
    return true;
}

static bool is_used(const run *r, int object) {
    for (int i = 0; i < MAX_LIVE; i++)
        if (r->live[i].accepted && !r->live[i].ended && (r->live[i].thing == object || r->live[i].second == object))
            return true;
    return false;
}

static bool on_thread_or_pool(const thing *t) {
    return t->row->traits & (STORES | ON_A_THREAD);
}

/* Records are looked at later than callbacks: what reads one stream in order is told all the same way. */
static bool is_reaped(const run *r, const live *l, const thing *t) {
    return t->row->traits & STREAM ? (r->program->buffer_size + (unsigned)l->thing) % 4 == 0 : l->op->reaped;
}

static void set_options(run *r, live *l, const thing *t) {
    const operation *op = l->op;
    upcall_op *made = &l->submitted;
    made->user = l;
    made->callback = is_reaped(r, l, t) ? NULL : on_callback;
    made->flags = op->flags;
    /* Eight bytes at a time: the rest of a full transfer may be less. */
    if (op->flags & UPCALL_FULL && t->row->traits & (SLOWLY | COUNTS))
        made->flags &= ~(uint32_t)UPCALL_FULL;
    deadline limit = (deadline)op->deadline;
    /* Whether a thread or the clock is faster is chance. */
    if (limit == SHORT && (l->row->waits == ENDS || (on_thread_or_pool(t) && l->row->waits != FOR_BOTH)))
        limit = FAR;
    if (limit == SHORT && l->row->waits == FOR_WAKE)
        limit = FAR; /* a wake may reach it while it ends */
    if (limit == SHORT && t->spliced)
        limit = FAR; /* it is written to on a thread */
    /* A receive at a socket of messages that is shut down ends on a thread of the kernel's. */
    if (limit == SHORT && t->row->traits & MESSAGES && t->inexact)
        limit = FAR;
    if (limit == SHORT && ((l->row->waits == FOR_BOTH && (l->number % MAX_BATCH > 0 || both_ready(r, l))) ||
                           (l->row->waits == FOR_CHILD && child_has_ended(r, l)) ||
                           (t->plan.kind == FUTEX && made->len != 0)))
        limit = FAR;
    /* A machine that is busy elsewhere may let a limit pass before what could go on at once has gone on. */
    const short needed = (short)((l->row->claims & IN ? POLLIN : 0) | (l->row->claims & OUT ? POLLOUT : 0));
    if (limit == SHORT && is_ready(t, made->flags & UPCALL_MULTISHOT ? POLLIN : needed))
        limit = FAR;
    made->timeout_ns = limit == FAR ? 100 * UPCALL_SECOND : limit == SHORT ? SHORT_NS : 0;
    if (op->lends && r->pool != NULL) {
        made->buffers = r->pool;
        made->lend_max = op->lend_max;
    }
    switch (op->spoil) {
    case BAD_FLAG: made->flags |= 1u << (8 + op->variant % 24); break;
    case BAD_RESERVED: made->reserved[op->variant % 4] = 1; break;
    case BAD_KIND: made->kind = op->variant % 3 == 0 ? 0 : 127 + op->variant % 1000; break;
    case BAD_LEND_MAX: made->lend_max = 3; break;
    default: break;
    }
}

static void submit(run *r, const step *s) {
    upcall_op ops[MAX_BATCH];
    upcall_id ids[MAX_BATCH] = {0};
    live *batch[MAX_BATCH];
    size_t count = 0;
    claims c = {0};
    int strand = 1;
    bool ordered = false, drained = false;
    unsigned char *scratch_from = arena_next;
    for (unsigned i = 0; i < s->count; i++)
        ordered = ordered || s->ops[i].flags & (LINKS | UPCALL_DRAIN);
    for (unsigned i = 0; i < s->count; i++) {
        const operation *op = &s->ops[i];
        const operation_row *row = &operation_rows[op->row];
        thing *t = &r->thing[op->object];
        const int number = r->step * MAX_BATCH + (int)i;
        unsigned wanted = claims_of(t, row, op);
        const claims before = c;
        if (op->flags & UPCALL_DRAIN || drained)
            memset(c.by, 0, sizeof c.by);
        if (count == 0 || !(ops[count - 1].flags & LINKS))
            strand++;
        const bool takes_buffers = row->traits & LENDS && op->lends;
        const int second = second_of(op, row);
        /* How much a terminal takes is timing. */
        const bool slow = row->traits & TWO && (t->row->traits & SLOWLY || (second >= 0 && r->thing[second].row->traits & SLOWLY));
        /* A pidfd can be neither read nor written: the ring waits for it all the same. */
        const bool senseless = t->plan.kind == CHILD && row->traits & (GETS | PUTS) && strncmp(row->name, "recv", 4) != 0 &&
                               strncmp(row->name, "send", 4) != 0;
        /* The ring uses room there that POLLOUT does not show yet, even when it is cancelled. */
        const bool is_unix = t->plan.kind == UNIX_STREAM || t->plan.kind == UNIX_DGRAM || t->plan.kind == UNIX_SEQPACKET;
        const bool shows_an_end = is_unix && (t->inexact || (t->plan.kind == UNIX_STREAM && t->ended));
        const bool half_closed = (shows_an_end && wanted & OUT && row->waits == FOR_OUT &&
                                  (op->length > 1000 || !is_ready(t, POLLOUT))) ||
                                 (second >= 0 && r->thing[second].plan.kind == UNIX_STREAM && r->thing[second].ended);
        /* One call moves what lies together, and TCP lays it as it comes. */
        const bool in_segments = row->traits & TWO && t->plan.kind == TCP && !(op->flags & UPCALL_FULL);
        if (half_closed || slow || senseless || in_segments || c.closing[op->object] || (second >= 0 && c.closing[second]) ||
            (takes_buffers && r->program->holds && c.lends) || !room_left(op->length) ||
            !gets_along(r, op, row, wanted, ordered || s->count > 1) ||
            (row->traits & CLOSES && c.touched[op->object] && is_used(r, op->object)) ||
            (row->traits & PATHS && !take_claim(&c, MAX_OBJECTS, STATE, strand)) ||
            !take_claim(&c, op->object, wanted, strand) ||
            (second >= 0 && !take_claim(&c, second, second_claims(&r->thing[second]), strand))) {
            note(r, R_SKIPPED, number, 0, 0, 0);
            c = before;
            continue;
        }
        drained = op->flags & UPCALL_DRAIN;
        c.touched[op->object] = true;
        if (second >= 0)
            c.touched[second] = true;
        t->spliced |= row->traits & TWO && t->plan.kind == PIPE_OUT;
        if (second >= 0)
            r->thing[second].spliced |= r->thing[second].plan.kind == PIPE_OUT;
        c.closing[op->object] = row->traits & CLOSES;
        c.lends += takes_buffers;
        live *l = &r->live[number];
        *l = (live){.run = r, .op = op, .row = row, .number = number, .thing = op->object, .second = second,
                    .claims = wanted, .second_claims = second < 0 ? NOTHING : second_claims(&r->thing[second]),
                    .hash = HASH_START};
        r->threads = r->threads || row->waits == FOR_BOTH || row->waits == FOR_WAKE;
        l->submitted = row->make(r, l, t);
        set_options(r, l, t);
        batch[count] = l;
        ops[count++] = l->submitted;
    }
    if (count == 0)
        return;
    /* What was left out leaves no link to nothing. */
    if (count < s->count && !(s->ops[s->count - 1].flags & LINKS)) {
        ops[count - 1].flags &= ~LINKS;
        batch[count - 1]->submitted.flags &= ~LINKS;
    }
    for (size_t i = 0; i < count; i++)
        batch[i]->accepted = true;
    char *text = r->log->text[r->step];
    int rc = s->foreign ? submit_elsewhere(r, ops, count, ids, text, sizeof r->log->text[0])
                        : upcall_submit(r->loop, ops, count, ids);
    if (rc != 0 && !s->foreign)
        keep_text(text, sizeof r->log->text[0]);
    if (rc == 0)
        text[0] = '\0';
    note(r, R_SUBMIT, (int)count, rc, 0, hash_bytes(HASH_START, text, strlen(text)));
    for (size_t i = 0; i < count; i++) {
        batch[i]->accepted = rc == 0;
        batch[i]->id = ids[i];
        batch[i]->unsure = (r->thing[batch[i]->thing].reset && batch[i]->row->claims & (IN | OUT)) ||
                           (batch[i]->second >= 0 && r->thing[batch[i]->second].reset);
        operations_run += rc == 0;
        /* The addresses and vectors were copied: what the program does with its own does not matter. */
        upcall_op *made = &ops[i];
        const unsigned char *at = (const unsigned char *)(uintptr_t)made->addr;
        if (at >= scratch_from && at < arena_next && at != batch[i]->buffer)
            memset((void *)(uintptr_t)made->addr, 0xee, 16);
        if (batch[i]->copied != NULL)
            memset(batch[i]->copied, 0xee, batch[i]->copied_size);
    }
    memset(ops, 0xee, sizeof ops);
}

static bool is_live(const live *l) {
    return l->accepted && !l->ended;
}

static void cancel(run *r, const step *s) {
    unsigned living = 0, known = 0;
    for (int i = 0; i < MAX_LIVE; i++) {
        living += is_live(&r->live[i]);
        known += r->live[i].accepted;
    }
    if (known == 0)
        return;
    const bool any = living == 0 || s->variant % 8 == 0;
    unsigned which = s->variant / 8 % (any ? known : living);
    for (int i = 0; i < MAX_LIVE; i++) {
        live *l = &r->live[i];
        if (!(any ? l->accepted : is_live(l)) || which-- != 0)
            continue;
        l->asked = true;
        note(r, R_REQUEST, i, upcall_cancel(r->loop, l->id), 0, 0);
        return;
    }
}

static void cancel_many(run *r, const step *s) {
    const thing *t = &r->thing[s->object];
    for (int i = 0; i < MAX_LIVE; i++)
        if (is_live(&r->live[i]) &&
            (s->kind == CANCEL_ALL || (!t->closed && (r->live[i].submitted.fd == t->fd || r->live[i].second == s->object) && may_start(r, &r->live[i]))))
            r->live[i].asked = true;
    note(r, R_REQUEST, s->object, s->kind == CANCEL_ALL ? upcall_cancel_all(r->loop) : upcall_cancel_fd(r->loop, t->fd),
         0, 0);
}

/* Whether an operation in flight meets the error first, or the end that comes with it, is timing. */
static void divide_errors(run *r, int object) {
    for (int i = 0; i < MAX_LIVE; i++)
        r->live[i].unsure |= is_live(&r->live[i]) && ((r->live[i].thing == object && r->live[i].row->claims & (IN | OUT)) ||
                                                      r->live[i].second == object);
}

static bool sends_wait(const run *r, int object) {
    for (int i = 0; i < MAX_LIVE; i++)
        if (is_live(&r->live[i]) && ((r->live[i].thing == object && r->live[i].claims & OUT) || r->live[i].second == object))
            return true;
    return false;
}

static void outside(run *r, const step *s) {
    thing *t = &r->thing[s->object];
    const bool open = t->peer >= 0;
    switch (s->kind) {
    case PUT:
        if (t->row->put != NULL && (open || !(t->row->traits & PAIR))) {
            const int64_t result = t->row->put(r, t, s->amount, s->variant);
            note(r, R_OUTSIDE, s->object, result, 0, 0);
            if (t->row->traits & WAKES)
                wake(r, s->object, result);
        }
        break;
    case TAKE:
        if (open)
            take(r, t, s->amount);
        break;
    case HALF:
        /* On a unix socket it wakes a send that waits; readiness does not tell of that. */
        if (open && t->row->traits & SOCKET && !sends_wait(r, s->object))
            half_close(r, t, s->variant);
        break;
    case HANG_UP:
    case RESET:
        if (open && t->row->traits & PAIR) {
            divide_errors(r, s->object);
            hang_up(r, t, s->kind == RESET);
        }
        break;
    default: break;
    }
}

static bool may_be_hasty(const run *r, const step *s, const step *next) {
    if (s->kind != SUBMIT || !s->hasty)
        return false;
    /* What ends by a close or a shutdown races with what comes at once. */
    for (int i = 0; i < MAX_LIVE; i++)
        if (r->live[i].accepted && !r->live[i].ended && (r->live[i].row->traits & CLOSES || r->thing[r->live[i].thing].inexact))
            return false;
    for (unsigned i = 0; i < s->count; i++)
        if (s->ops[i].deadline == SHORT)
            return false;
    if (next->kind == SUBMIT)
        return true;
    const thing *t = &r->thing[next->object];
    if (next->kind != PUT || t->put != t->got || t->waiting > 0 || !(t->row->traits & STREAM))
        return false;
    for (unsigned i = 0; i < s->count; i++)
        if (s->ops[i].object == next->object && (operation_rows[s->ops[i].row].claims & STATE || s->count > 1))
            return false;
    return true;
}

/* ---- The end. ---- */

static void check_conservation(run *r, thing *t) {
    if (!(t->row->traits & STREAM) || t->inexact || r->program->by_free)
        return;
    int left = 0;
    if (!t->closed && t->plan.kind != PIPE_OUT) {
        if (ioctl(t->fd, FIONREAD, &left) == 0 && t->got + (uint64_t)left != t->put && !(t->row->traits & SLOWLY))
            broken(r, "%s: %" PRIu64 " bytes were put in, %" PRIu64 " came out, %d are left", t->row->name, t->put, t->got,
                   left);
    }
    if (t->peer >= 0 && !(t->row->traits & (SLOWLY | INET))) {
        left = 0;
        if (ioctl(t->peer, FIONREAD, &left) == 0 && t->taken + (uint64_t)left != t->sent && t->plan.kind != PIPE_IN &&
            t->plan.kind != FIFO_IN)
            broken(r, "%s: %" PRIu64 " bytes were sent, %" PRIu64 " taken, %d are left", t->row->name, t->sent, t->taken,
                   left);
    }
}

static void note_file(run *r, int number) {
    const thing *t = &r->thing[number];
    unsigned char content[2 * FILE_SIZE];
    if ((t->plan.kind != REGULAR && t->plan.kind != DIRECT) || t->closed)
        return;
    struct stat stat;
    fstat(t->fd, &stat);
    const off_t position = lseek(t->fd, 0, SEEK_CUR);
    uint64_t hash = HASH_START;
    if (t->plan.kind == REGULAR) {
        ssize_t moved = pread(t->fd, content, sizeof content, 0);
        hash = hash_bytes(hash, content, moved > 0 ? (size_t)moved : 0);
    }
    note(r, R_REST, number, stat.st_size, (uint64_t)position, hash);
}

static void check_counters(run *r) {
    upcall_stats stats;
    if (upcall_stats_get(r->loop, &stats) == 0 &&
        (stats.in_flight != 0 || stats.submitted != stats.completed + stats.cancelled + stats.timed_out))
        broken(r, "counters: %" PRIu64 " submitted, %" PRIu64 " completed, %" PRIu64 " cancelled, %" PRIu64
               " timed out, %" PRIu64 " in flight", stats.submitted, stats.completed, stats.cancelled, stats.timed_out,
               stats.in_flight);
}

static void end_all(run *r, upcall_loop **loop) {
    if (r->program->by_free) {
        upcall_loop_free(*loop);
        *loop = NULL;
        for (int i = 0; i < MAX_LIVE; i++)
            if (is_live(&r->live[i]) && r->live[i].submitted.callback == NULL)
                r->live[i].accepted = false; /* nobody is told */
        write_down(r);
    } else {
        for (int i = 0; i < MAX_LIVE; i++)
            r->live[i].asked = r->live[i].accepted;
        note(r, R_REQUEST, -1, upcall_cancel_all(r->loop), 0, 0);
        settle(r);
        if (r->log->broken[0] == '\0')
            check_counters(r);
    }
    for (int i = 0; i < MAX_LIVE; i++)
        if (is_live(&r->live[i]))
            broken(r, "operation %d has no final event", i);
    /* Without its final events nothing of this loop can be trusted, its memory included. */
    if (r->log->broken[0] != '\0' && *loop != NULL) {
        upcall_loop_free(*loop);
        *loop = NULL;
    }
    give_back(r, 0);
}

static void remove_attributes(void) {
    static const char *const names[] = {"user.a", "user.b", "user.none", "trusted.a", "security.none"}, *const files[] = {".", "present", "folder"};
    for (unsigned i = 0; i < COUNT_OF(files); i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", scratch_directory, files[i]);
        for (unsigned k = 0; k < COUNT_OF(names); k++)
            removexattr(path, names[k]);
    }
}

static void unregister(run *r) {
    int rc = r->registered ? upcall_unregister_buffers(r->loop) : 0;
    if (rc != 0)
        broken(r, "upcall_unregister_buffers: %d", rc);
    r->registered = false;
}

void run_program(const program *p, upcall_loop **loop, transcript *log) {
    static run state;
    run *r = &state;
    memset(r, 0, offsetof(run, live));
    for (int i = 0; i < MAX_LIVE; i++)
        r->live[i].accepted = r->live[i].ended = r->live[i].changed = r->live[i].asked = false;
    log->count = 0;
    log->broken[0] = '\0';
    r->program = p;
    r->loop = *loop;
    r->log = log;
    arena_next = arena;
    const unsigned descriptors = open_descriptors();
    for (unsigned i = 0; i < p->objects; i++)
        make_thing(r, &r->thing[i], p->object[i]);
    if (p->buffers != 0 && upcall_buffers_new(r->loop, p->buffers, p->buffer_size, &r->pool) != 0)
        broken(r, "upcall_buffers_new: %s", upcall_last_error());
    if (p->registers != 0) {
        /* Some memory is in neither part, some in both. */
        const struct iovec parts[] = {{arena, 64 << 10}, {arena + (64 << 10), 64 << 10}};
        int rc = upcall_register_buffers(r->loop, parts, COUNT_OF(parts));
        if (rc != 0)
            broken(r, "upcall_register_buffers: %d", rc);
        r->registered = rc == 0;
    }
    for (r->step = 0; r->step < (int)p->steps && log->broken[0] == '\0'; r->step++) {
        const step *s = &p->step[r->step];
        if (p->registers == 2 && r->step == (int)p->steps / 2)
            unregister(r);
        switch (s->kind) {
        case SUBMIT: submit(r, s); break;
        case CANCEL: cancel(r, s); break;
        case CANCEL_FD:
        case CANCEL_ALL: cancel_many(r, s); break;
        case RETURN: give_back(r, s->variant % 2 ? r->lents / 2 : 0); break;
        default:
            acts_outside = true;
            outside(r, s);
            acts_outside = false;
        }
        if (r->step + 1 < (int)p->steps && may_be_hasty(r, s, s + 1))
            r->unsettled = true;
        else
            settle(r);
    }
    end_all(r, loop);
    if (*loop != NULL)
        unregister(r);
    for (unsigned i = 0; i < p->objects; i++) {
        note_file(r, (int)i);
        check_conservation(r, &r->thing[i]);
    }
    for (unsigned i = 0; i < p->objects; i++)
        end_thing(r, &r->thing[i]);
    int rc = upcall_buffers_free(r->pool);
    if (rc != 0)
        broken(r, "upcall_buffers_free: %d with nothing lent", rc);
    for (int i = 0; i < MAX_LIVE; i++) {
        const live *l = &r->live[i];
        if (l->accepted && l->ended && l->buffer != NULL && hash_bytes(HASH_START, l->buffer, l->size) != l->final_hash)
            broken(r, "operation %d: its memory changed after the final event", i);
    }
    if (*loop != NULL && open_descriptors() != descriptors)
        broken(r, "%u descriptors are open, %u before", open_descriptors(), descriptors);
    if (r->attributes)
        remove_attributes();
    unlinkat(scratch_fd, "new", 0);
    unlinkat(scratch_fd, "missing", 0);
    unlinkat(scratch_fd, "new", AT_REMOVEDIR);
    unlinkat(scratch_fd, "missing", AT_REMOVEDIR);
}
