/* The boundary fuzzer: turns bytes into calls of the library as a C program could make them, wise or hostile, and checks that
   its promises hold. Short of a wild pointer anything goes: forged, stale and foreign ids, buffers returned twice or to another
   pool, calls from inside callbacks and from other threads, owners that exit, extreme lengths, raw bytes in every field, loops
   closed and freed in any order.

     boundary [libFuzzer's options] [--report] [--trace] [absolute paths of corpus folders or inputs]

   --report prints at the end which functions and kinds were reached, and how often; --trace what an input does. Promises checked in each run: exactly one
   final event per accepted operation and none after it; a refused submit leaves nothing behind and has a text; stale ids are
   -ENOENT; nothing is written outside an operation's memory, nor after its final event; no SIGPIPE, no SIGXFSZ; posts run
   exactly once; free returns 0; descriptors and threads are as before. */

#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

unsigned long calls[FUNCTIONS];
static const char *const function_names[] = {
#define FUNCTION(name) #name,
#include "functions.inc"
#undef FUNCTION
};

bool tracing;

void tell(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

void broken(const char *file, int line, const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "\n%s:%d: broken promise: ", file, line);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n(last error: %s)\n", upcall_last_error());
    abort();
}

/* ---- Input. */

struct input input;

bool is_over(void) { return input.at >= input.end; }

uint64_t take(size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && input.at < input.end; i++)
        value |= (uint64_t)*input.at++ << i * 8;
    return value;
}

/* ---- Pages: what nobody borrows holds a pattern. */

#define QUIET 0x5c
#define BEFORE 64
static uint8_t *pages;
static bool page_used[PAGES];

uint8_t *page_at(int page) { return pages + (size_t)page * 8192 + BEFORE; }

int page_take(void) {
    for (int page = 0; page < PAGES; page++)
        if (!page_used[page]) {
            page_used[page] = true;
            return page;
        }
    return -1;
}

static void page_check(int page, const char *when) {
    static uint8_t quiet[BEFORE + PAGE_ROOM];
    if (!quiet[0])
        memset(quiet, QUIET, sizeof quiet);
    size_t checked = page_used[page] ? BEFORE : sizeof quiet;
    MUST(memcmp(page_at(page) - BEFORE, quiet, checked) == 0, "page %d was written to %s", page, when);
}

void page_return(int page) {
    page_check(page, "before its address");
    page_used[page] = false;
    memset(page_at(page), QUIET, PAGE_ROOM);
}

void pages_check(void) {
    for (int page = 0; page < PAGES; page++)
        page_check(page, "although nobody borrows it");
}

/* ---- State of one run. */

#define LOOPS 3
#define POOLS 4
#define ENTRIES 128
#define LENT 64
#define READERS 2

static struct entry entries[ENTRIES];
static struct {
    upcall_loop *handle;
    unsigned depth; /* callbacks of it that this thread is inside of */
    bool ended_something; /* cancels, closes: -ECANCELED is an answer */
    unsigned held;
    uint32_t max_events;
} loops[LOOPS];
static struct {
    upcall_buffers *handle;
    int loop;
    uint32_t size;
    unsigned lent;
} pools[POOLS];
static struct {
    int pool;
    void *at;
} lent[LENT];
static void *returned_last;
static struct {
    upcall_reader *handle;
    const void *blocks[4];
} readers[READERS];
static bool ending;
static unsigned steps_left;
static atomic_int posts_accepted, posts_run, extra_accepted, extra_ended;
volatile sig_atomic_t raised;
static char extra_user, stopper_user;

static void step(void);

/* ---- The other thread: it does what it is told while the first waits. */

static sem_t go, done;
static void (*other_work)(void);

static void *other_thread(void *unused) {
    (void)unused;
    for (;;) {
        while (sem_wait(&go) != 0)
            ;
        other_work();
        sem_post(&done);
    }
    return NULL;
}

static bool is_other;

static void on_other_thread(void (*work)(void)) {
    if (is_other) {
        work();
        return;
    }
    is_other = true;
    other_work = work;
    sem_post(&go);
    while (sem_wait(&done) != 0)
        ;
    is_other = false;
}

static void *brief_thread(void *work) {
    ((void (*)(void))(uintptr_t)work)();
    return NULL;
}

/* On a thread that ends after it. */
static void on_brief_thread(void (*work)(void)) {
    bool before = is_other;
    pthread_t thread;
    is_other = true; /* the other thread is not to be told anything by this one */
    MUST(pthread_create(&thread, NULL, brief_thread, (void *)(uintptr_t)work) == 0, "no thread");
    pthread_join(thread, NULL);
    is_other = before;
}

/* ---- Events. */

static void free_entry(struct entry *entry) {
    for (int i = 0; i < 2; i++)
        if (entry->pages[i] >= 0)
            page_return(entry->pages[i]);
    for (unsigned i = 0; i < entry->lents; i++)
        free(entry->lent[i]);
    entry->lents = 0;
    entry->pages[0] = entry->pages[1] = -1;
}

static void free_copied(struct entry *entry) {
    for (unsigned i = 0; i < entry->copies; i++)
        free(entry->copied[i]);
    entry->copies = 0;
}

static int pool_number(const upcall_buffers *handle) {
    for (int pool = 0; pool < POOLS; pool++)
        if (pools[pool].handle == handle)
            return pool;
    return -1;
}

static void note_lent(const struct entry *entry, void *at) {
    int pool = pool_number(entry->op.buffers);
    MUST(pool >= 0, "a buffer of no pool is lent");
    for (int i = 0; i < LENT; i++)
        MUST(lent[i].at != at, "a buffer is lent twice");
    for (int i = 0; i < LENT; i++)
        if (!lent[i].at) {
            lent[i].at = at;
            lent[i].pool = pool;
            pools[pool].lent++;
            return;
        }
    MUST(CALL(upcall_buffers_return, pools[pool].handle, at) == 0, "a lent buffer is not taken back");
}

static bool makes_descriptor(upcall_kind kind) {
    return kind == UPCALL_OP_OPEN || kind == UPCALL_OP_OPENAT2 || kind == UPCALL_OP_SOCKET || kind == UPCALL_OP_ACCEPT;
}

/* Descriptors that came with a message are the program's. */
static void close_passed(void *control, size_t length) {
    struct msghdr msg = {.msg_control = control, .msg_controllen = length};
    if (!control)
        return;
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg))
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
            for (size_t at = CMSG_LEN(0); at + sizeof(int) <= cmsg->cmsg_len; at += sizeof(int)) {
                int fd;
                memcpy(&fd, (char *)cmsg + at, sizeof fd);
                MUST(fcntl(fd, F_GETFD) == FD_CLOEXEC, "a descriptor that came with a message is not close-on-exec");
                close(fd);
            }
}

static void look_at_message(const struct entry *entry, const upcall_event *event) {
    const struct msghdr *room = (const struct msghdr *)(uintptr_t)entry->op.addr, none = {0};
    const upcall_msg *msg = event->buffer;
    if (!room)
        room = &none;
    char *control = (char *)(uintptr_t)CALL(upcall_msg_control, msg, room);
    MUST(CALL(upcall_msg_name, msg, room) == msg + 1 && control == (const char *)(msg + 1) + room->msg_namelen, "a message's parts");
    MUST(CALL(upcall_msg_payload, msg, room) == control + room->msg_controllen && !CALL(upcall_msg_payload, msg, NULL), "a payload");
    MUST(msg->controllen <= room->msg_controllen, "more control data than there was room for");
    MUST((char *)(uintptr_t)upcall_msg_payload(msg, room) + event->result <= (char *)event->buffer + pools[pool_number(entry->op.buffers)].size,
         "a message larger than its buffer");
    /* Somewhere in the buffer. */
    void *aligned = malloc(msg->controllen + 1u);
    memcpy(aligned, control, msg->controllen);
    close_passed(aligned, msg->controllen);
    free(aligned);
}

static void look_at_entries(const upcall_event *event, const void *buf) {
    const upcall_dirent *at = NULL;
    int64_t seen = 0;
    while ((at = CALL(upcall_dirent_next, buf, event->result, at)))
        MUST(strlen(CALL(upcall_dirent_name, at)) <= 255 && (seen += at->reclen) <= event->result, "directory entries");
    MUST(seen == event->result, "directory entries: %d of %d bytes", (int)seen, (int)event->result);
}

static void on_event(upcall_loop *loop, const upcall_event *event) {
    bool final = !(event->flags & UPCALL_MORE);
    TRACE("  event: id %#llx, %s, result %lld, flags %u, buffer %p", (unsigned long long)event->id, upcall_op_name(event->kind),
          (long long)event->result, event->flags, event->buffer);
    if (event->user == &extra_user || event->user == &stopper_user) {
        MUST(final, "a nop or sleep with MORE");
        atomic_fetch_add(&extra_ended, 1);
        if (event->user == &stopper_user)
            upcall_stop(loop);
        return;
    }
    struct entry *entry = event->user;
    MUST(entry >= entries && entry < entries + ENTRIES, "event with a foreign user pointer");
    MUST(entry->accepted, "event of an operation that was not accepted");
    MUST(!entry->final, "event after the final event, kind %s", upcall_op_name(event->kind));
    const upcall_op *op = &entry->op;
    upcall_kind kind = event->kind;
    MUST(kind == op->kind && loop == loops[entry->loop].handle, "event of another kind or loop");
    MUST(event->id != 0 && (entry->id == 0 || event->id == entry->id), "event with another id");
    MUST(event->reserved[0] == 0 && event->reserved[1] == 0, "reserved is not zero");
    MUST((event->flags & ~(uint32_t)(UPCALL_MORE | UPCALL_RELEASED | UPCALL_EXPIRED)) == 0, "unknown event flags");
    MUST(final || op->flags & (UPCALL_MULTISHOT | UPCALL_ZEROCOPY), "MORE without reason");
    MUST(!(event->flags & UPCALL_RELEASED) || op->flags & UPCALL_ZEROCOPY, "RELEASED without ZEROCOPY");
    MUST(!(event->flags & UPCALL_EXPIRED) || (op->timeout_ns && event->result == -ETIMEDOUT), "EXPIRED without a deadline");
    int64_t result = event->result;
    if (kind != UPCALL_OP_WORK) {
        MUST(result != -EAGAIN && result != -EINTR && result != -EINPROGRESS, "%s ends in %d", upcall_op_name(kind), (int)result);
        MUST(result != -ECANCELED || entry->ordered || loops[entry->loop].ended_something, "%s: -ECANCELED that nobody asked for",
             upcall_op_name(kind));
        MUST(result >= -4095 || kind == UPCALL_OP_GETADDRINFO, "%s: result %lld", upcall_op_name(kind), (long long)result);
    } else {
        MUST(result == entry->expected || (result == -ECANCELED || result == -EOWNERDEAD || event->flags & UPCALL_EXPIRED),
             "work results in %lld instead of %lld", (long long)result, (long long)entry->expected);
    }
    entry->events++;
    if (event->buffer) {
        MUST(op->buffers, "a buffer without a pool");
        if (kind == UPCALL_OP_RECVMSG)
            look_at_message(entry, event);
        if (kind == UPCALL_OP_READDIR)
            look_at_entries(event, event->buffer);
        note_lent(entry, event->buffer);
    } else if (kind == UPCALL_OP_READDIR && result > 0 && op->addr % 8 == 0) {
        look_at_entries(event, (const void *)(uintptr_t)op->addr);
    }
    if (kind == UPCALL_OP_RECVMSG && !op->buffers && final && result >= 0) {
        struct msghdr *msg = (struct msghdr *)(uintptr_t)op->addr;
        close_passed(msg->msg_control, msg->msg_controllen);
    }
    if (result >= 0 && makes_descriptor(kind))
        adopt((int)result);
    if (result >= 0 && kind == UPCALL_OP_PIPE)
        for (int i = 0; i < 2; i++)
            adopt(entry->fds[i]);
    if (result >= 0 && kind == UPCALL_OP_GETADDRINFO)
        freeaddrinfo(*entry->addresses);
    if (kind == UPCALL_OP_CLOSE && result == 0)
        forget_closed(op->fd);
    if (final) {
        entry->final = true;
        kinds_done[kind] += result >= 0;
        MUST(CALL(upcall_cancel, loop, event->id) == -ENOENT, "the id is not stale after the final event");
        free_entry(entry);
    }
}

static void callback(upcall_loop *loop, const upcall_event *event) {
    int number = 0;
    while (number < LOOPS && loops[number].handle != loop)
        number++;
    MUST(number < LOOPS, "callback of a loop that is gone");
    on_event(loop, event);
    loops[number].depth++;
    if (!ending && !is_over() && one_in(2)) {
        if (one_in(4)) {
            int answer = one_in(2)   ? CALL(upcall_poll, loop, -1)
                         : one_in(2) ? CALL(upcall_run, loop)
                         : one_in(2) ? CALL(upcall_loop_close, loop, -1)
                         : one_in(2) ? CALL(upcall_loop_free, loop)
                                     : CALL(upcall_loop_detach, loop);
            MUST(answer == -EDEADLK, "in a callback: %d, not -EDEADLK", answer);
        } else {
            step();
        }
    }
    loops[number].depth--;
}

static void posted(upcall_loop *loop, void *arg) {
    atomic_fetch_add(&posts_run, 1);
    MUST(loop && arg == &posts_run, "a post with another argument");
    for (int number = 0; number < LOOPS; number++)
        if (loops[number].handle == loop) {
            loops[number].depth++;
            if (!ending && !is_over() && one_in(2))
                step();
            loops[number].depth--;
        }
}

/* ---- Calls. */

static int a_loop(void) {
    uint8_t choice = take8();
    return choice < 160 ? 0 : choice % LOOPS;
}

static int a_pool(void) { return take8() % POOLS; }

static void new_loop(int number) {
    if (loops[number].handle)
        return;
    upcall_config config;
    uint8_t how = take8();
    CALL(upcall_config_init_sized, &config, sizeof config);
    MUST(config.size == sizeof config, "the size of a config");
    config.backend = number == 0 ? 1 + how % 2 : how % 3;
    config.entries = 1u << take8() % 7;
    config.max_events = one_in(2) ? 64 : 1 + take8() % 4;
    config.workers = 2 + take8() % 3;
    config.max_operations = one_in(2) ? 1 + take8() % 64 : 4096;
    config.slow_callback_ns = one_in(4);
    config.spin_ns = one_in(8) ? 2000 : 0;
    upcall_loop *made = (upcall_loop *)(uintptr_t)16;
    union {
        upcall_config config;
        uint8_t bytes[5000];
    } any = {.config = config};
    if (how & 0x80) {
        /* Any size, any bytes. */
        uint32_t at = (uint32_t)take(1), value = (uint32_t)take(4);
        memcpy(any.bytes + at, &value, sizeof value);
        if (one_in(2))
            any.config.size = (uint32_t)take(2) % sizeof any;
        if (any.config.workers > 8 && any.config.workers <= 1024)
            any.config.workers = 8;
        if (any.config.spin_ns > 100000)
            any.config.spin_ns = 100000;
        if (any.config.entries > 256 && any.config.entries <= 32768)
            any.config.entries = 256;
        /* The struct as its size says, so that a byte more would be seen. */
        size_t size = any.config.size < 4 ? 4 : any.config.size > 4096 ? 4096 : any.config.size;
        void *exact = malloc(size);
        memcpy(exact, any.bytes, size);
        int answer = CALL(upcall_loop_new, exact, &made);
        free(exact);
        MUST(answer == 0 || (made == NULL && *upcall_last_error()), "loop_new fails with %d and leaves something", answer);
        /* A size that stops before a field is the default for it. */
        loops[number].max_events = 0;
    } else {
        int answer = CALL(upcall_loop_new, &config, &made);
        MUST(answer == 0 || answer == -ENOMEM || answer == -EINVAL || made == NULL, "loop_new: %d", answer);
        MUST(answer == 0 || !made, "a loop in spite of %d", answer);
    }
    if ((uintptr_t)made == 16)
        made = NULL;
    loops[number].handle = made;
    loops[number].ended_something = false;
    loops[number].held = 0;
    loops[number].depth = 0;
}

static struct entry *blank_entry(void) {
    for (int i = 0; i < ENTRIES; i++)
        if (!entries[i].used) {
            entries[i] = (struct entry){.used = true, .pages = {-1, -1}};
            return &entries[i];
        }
    return NULL;
}

static uint64_t submitted(upcall_loop *loop) {
    upcall_stats stats;
    MUST(upcall_stats_get(loop, &stats) == 0 && stats.size == sizeof stats, "stats");
    return stats.submitted;
}

static void submit(void) {
    int number = a_loop();
    upcall_loop *loop = loops[number].handle;
    struct entry *chosen[6];
    upcall_op ops[6];
    upcall_id ids[6] = {0};
    size_t count = 1 + (one_in(3) ? take8() % 6u : 0), made = 0;
    uint8_t how = take8();
    int pool = how & 1 ? a_pool() : -1; /* for those that can borrow */
    for (; made < count && (chosen[made] = blank_entry()); made++) {
        struct entry *entry = chosen[made];
        make_operation(entry, loop, pool >= 0 && (count == 1 || one_in(2)) ? pools[pool].handle : NULL);
        entry->loop = number;
        entry->op.user = entry;
        entry->op.callback = how & 2 ? NULL : callback;
        ops[made] = entry->op;
    }
    bool ordered = false, refused = false;
    for (size_t i = 0; i < made; i++) {
        ordered |= (ops[i].flags & (UPCALL_LINK | UPCALL_LINK_ALWAYS | UPCALL_DRAIN)) != 0;
        refused |= chosen[i]->must_be_refused;
        chosen[i]->ordered = ordered;
    }
    /* An operation can end while others of this submit are accepted only in a later turn, so this comes first. */
    for (size_t i = 0; i < made; i++) {
        chosen[i]->accepted = true;
        if (ops[i].kind == UPCALL_OP_CLOSE)
            loops[number].ended_something = true;
    }
    uint64_t before = loop ? submitted(loop) : 0;
    upcall_op *exact = malloc(made * sizeof *exact + !made);
    memcpy(exact, ops, made * sizeof *exact);
    int answer = CALL(upcall_submit, loop, exact, made, how & 4 ? NULL : ids);
    memset(exact, 0xa5, made * sizeof *exact);
    free(exact);
    for (size_t i = 0; tracing && i < made; i++)
        tell("  loop %d, op %p: %s, fd %d, flags %#x, callback %d, pool %d, lend_max %u, timeout %llu, addr %#llx, addr2 %#llx, len %llu, "
             "offset %lld, %lld, arg %#x, %#x: id %#llx",
             number, (void *)chosen[i], upcall_op_name(ops[i].kind), ops[i].fd, ops[i].flags, ops[i].callback != NULL,
             ops[i].buffers ? pool : -1, ops[i].lend_max, (unsigned long long)ops[i].timeout_ns, (unsigned long long)ops[i].addr,
             (unsigned long long)ops[i].addr2, (unsigned long long)ops[i].len, (long long)ops[i].offset, (long long)ops[i].offset2,
             ops[i].arg, ops[i].arg2, (unsigned long long)ids[i]);
    TRACE("  submit: %d %s", answer, answer ? upcall_last_error() : "");
    MUST(answer <= 0, "submit returns %d", answer);
    MUST(loop || made == 0 || answer == -EINVAL, "submit to NULL: %d", answer);
    MUST(!refused || answer < 0, "a submit that must be refused was accepted");
    if (loop && answer < 0)
        MUST(submitted(loop) == before, "a refused submit is counted");
    if (answer < 0)
        MUST(*CALL(upcall_last_error), "no text for %d", answer);
    for (size_t i = 0; i < made; i++) {
        free_copied(chosen[i]);
        if (answer < 0) {
            chosen[i]->accepted = false;
            free_entry(chosen[i]);
            chosen[i]->used = false;
            continue;
        }
        kinds_accepted[ops[i].kind]++;
        if (!(how & 4)) {
            MUST(ids[i] != 0, "id 0");
            chosen[i]->id = ids[i];
        }
    }
    if (how & 0x40) {
        int turned = CALL(upcall_poll, loop, how & 0x20 ? 300000 : 0);
        MUST(turned >= 0 || turned == -EDEADLK || turned == -EPERM || turned == -EOWNERDEAD || !loop, "a turn returns %d", turned);
    }
}

static void odd_submit(void) {
    upcall_loop *loop = loops[a_loop()].handle;
    upcall_op op = CALL(upcall_op_nop);
    upcall_id id;
    static const size_t counts[] = {1, (size_t)-1, (size_t)1 << 32, 16777216, (size_t)1 << 63};
    size_t count = counts[take8() % 5];
    int answer = one_in(2) ? CALL(upcall_submit, loop, NULL, count, &id)
                           : CALL(upcall_submit, loop, &op, count > 1 ? count : 0, one_in(2) ? &id : NULL);
    MUST(answer < 0 || (count == 1 && answer == 0), "submit of nothing, or of too much: %d", answer);
}

/* Operations that any thread can submit without an entry. */
static void submit_extra(int number) {
    upcall_op op = one_in(2) ? CALL(upcall_op_nop) : CALL(upcall_op_sleep, take8() * 100u);
    op.callback = callback;
    op.user = &extra_user;
    if (loops[number].handle && CALL(upcall_submit, loops[number].handle, &op, 1, NULL) == 0)
        atomic_fetch_add(&extra_accepted, 1);
}

static void turn(void) {
    int number = a_loop();
    upcall_loop *loop = loops[number].handle;
    int64_t wait = one_in(2) ? 0 : take8() * 4000;
    int answer;
    uint8_t how = take8() % 4;
    if (how == 3) {
        /* No limit, ended by a stop: at once, or after a while. */
        upcall_op op = CALL(upcall_op_sleep, take8() * 1000u);
        op.callback = callback;
        op.user = &stopper_user;
        bool later = one_in(2) && loop && CALL(upcall_submit, loop, &op, 1, NULL) == 0;
        if (later)
            atomic_fetch_add(&extra_accepted, 1);
        else
            CALL(upcall_stop, loop);
        answer = one_in(2) && !later ? CALL(upcall_poll, loop, -1) : CALL(upcall_run, loop);
    } else {
        answer = CALL(upcall_poll, loop, wait);
    }
    MUST(answer >= 0 || answer == -EDEADLK || answer == -EPERM || answer == -EOWNERDEAD || (answer == -EINVAL && !loop),
         "a turn returns %d", answer);
    if (answer == -EDEADLK)
        MUST(loops[number].depth > 0, "-EDEADLK outside callbacks");
}

static void reap(int number) {
    upcall_event events[8];
    size_t max = one_in(8) ? 0 : 1 + take8() % 8u;
    int answer = CALL(upcall_reap, loops[number].handle, one_in(16) ? NULL : events, max);
    MUST(answer <= (int)max, "reap returns %d", answer);
    for (int i = 0; i < answer; i++)
        on_event(loops[number].handle, &events[i]);
}

static upcall_id an_id(void) {
    struct entry *entry = &entries[take8() % ENTRIES];
    switch (take8() % 4) {
    case 0: return take(8);
    case 1: return entry->id ^ (UINT64_C(1) << take8() % 64);
    default: return entry->id;
    }
}

static void cancel(void) {
    int number = a_loop(), answer;
    upcall_loop *loop = loops[number].handle;
    loops[number].ended_something = true;
    switch (take8() % 4) {
    case 0: answer = CALL(upcall_cancel_all, loop); break;
    case 1: answer = CALL(upcall_cancel_fd, loop, object()); break;
    default:
        answer = CALL(upcall_cancel, loop, an_id());
        MUST(answer == 0 || answer == -ENOENT || (!loop && answer == -EINVAL), "cancel: %d", answer);
        return;
    }
    MUST(answer >= 0 || (!loop && answer == -EINVAL), "cancel of many: %d", answer);
}

static int free_answer, to_free;

static void free_it(void) { free_answer = CALL(upcall_loop_free, loops[to_free].handle); }

/* The loop is gone: what it told nobody of is dropped. */
static void after_free(int number) {
    for (int i = 0; i < ENTRIES; i++)
        if (entries[i].used && entries[i].accepted && entries[i].loop == number) {
            MUST(entries[i].final || !entries[i].op.callback, "%s: no final event although the loop was freed",
                 upcall_op_name(entries[i].op.kind));
            if (!entries[i].final)
                free_entry(&entries[i]);
            entries[i].used = false;
        }
    loops[number].handle = NULL;
}

static void end_loop(int number) {
    upcall_loop *loop = loops[number].handle;
    bool before = loops[number].ended_something;
    loops[number].ended_something = true;
    switch (take8() % 4) {
    case 0: {
        int answer = CALL(upcall_loop_detach, loop);
        MUST(answer == 0 || answer == -EBUSY || answer == -EDEADLK || answer == -EPERM || answer == -EOWNERDEAD ||
                 (!loop && answer == -EINVAL),
             "detach: %d", answer);
        loops[number].ended_something = before;
        break;
    }
    case 1: {
        int answer = CALL(upcall_loop_close, loop, one_in(2) ? 0 : one_in(2) ? -1 : take8() * 1000);
        MUST(answer == 0 || answer == -ETIMEDOUT || answer == -EDEADLK || answer == -EPERM || answer == -EOWNERDEAD ||
                 (!loop && answer == -EINVAL),
             "close: %d", answer);
        break;
    }
    case 2: {
        int answer = CALL(upcall_loop_free, loop);
        MUST(answer == 0 || answer == -EDEADLK || answer == -EPERM, "free: %d", answer);
        MUST(answer != -EDEADLK || loops[number].depth > 0, "-EDEADLK outside callbacks");
        if (answer == 0)
            after_free(number);
        break;
    }
    default:
        new_loop(number);
    }
}

static void buffers(void) {
    int number = a_pool();
    switch (take8() % 4) {
    case 0: {
        if (pools[number].handle)
            return;
        static const uint32_t counts[] = {1, 2, 3, 8, 16, 0, 32768, 32769, UINT32_MAX};
        static const uint32_t sizes[] = {1, 16, 64, 280, 512, 4096, 0, 1 << 30, (1 << 30) + 1, UINT32_MAX};
        uint32_t count = counts[take8() % 9], size = sizes[take8() % 10];
        if (count == 32768 && size > 512 && size <= 1 << 30)
            size = 64;
        int loop = a_loop();
        upcall_buffers *made = (upcall_buffers *)(uintptr_t)16;
        int answer = CALL(upcall_buffers_new, loops[loop].handle, count, size, one_in(16) ? NULL : &made);
        bool possible = loops[loop].handle && count >= 1 && count <= 32768 && size >= 1 && size <= 1 << 30;
        MUST(answer == 0 || (!possible ? answer == -EINVAL : answer == -ENOMEM || answer == -EINVAL), "buffers_new: %d", answer);
        MUST((answer == 0) == (made && (uintptr_t)made != 16), "a pool in spite of %d", answer);
        if (answer == 0) {
            pools[number].handle = made;
            pools[number].loop = loop;
            pools[number].size = size;
            pools[number].lent = 0;
        }
        break;
    }
    case 1: { /* what is lent, mostly to its own pool, or what is not */
        int which = take8() % LENT, found = -1;
        for (int i = 0; i < LENT && found < 0; i++)
            if (lent[(which + i) % LENT].at)
                found = (which + i) % LENT;
        if (found >= 0 && !one_in(4)) {
            int pool = lent[found].pool;
            void *at = lent[found].at;
            lent[found].at = NULL;
            pools[pool].lent--;
            MUST(CALL(upcall_buffers_return, pools[pool].handle, at) == 0, "a lent buffer is not taken back");
            MUST(CALL(upcall_buffers_return, pools[pool].handle, at) == -EINVAL, "a buffer is taken back twice");
            returned_last = at;
            return;
        }
        void *at = one_in(3) ? returned_last : found >= 0 ? (char *)lent[found].at + take8() - 128 : (void *)(uintptr_t)take(8);
        for (int i = 0; i < LENT; i++)
            if (lent[i].at == at)
                return;
        MUST(CALL(upcall_buffers_return, pools[number].handle, at) == -EINVAL, "a foreign buffer is taken back");
        break;
    }
    case 2: {
        upcall_buffers *pool = pools[number].handle;
        int answer = CALL(upcall_buffers_free, pool);
        TRACE("  pool %d: %d, %u lent", number, answer, pools[number].lent);
        MUST(answer == 0 || answer == -EBUSY, "buffers_free: %d", answer);
        MUST(answer != 0 || pools[number].lent == 0, "a pool is freed while %u of its buffers are lent", pools[number].lent);
        if (answer == 0)
            pools[number].handle = NULL;
        break;
    }
    default: {
        int loop = a_loop();
        struct iovec parts[4];
        uint32_t n = one_in(8) ? (uint32_t)take(4) : take8() % 5;
        if (n > 4 && n <= 16384)
            n = 4;
        for (int i = 0; i < 4; i++) {
            parts[i].iov_base = one_in(16) ? NULL : page_at(i * 3) - BEFORE;
            parts[i].iov_len = one_in(16) ? (size_t)take(8) : 4096;
        }
        int answer = one_in(3) ? CALL(upcall_unregister_buffers, loops[loop].handle)
                               : CALL(upcall_register_buffers, loops[loop].handle, one_in(16) ? NULL : parts, n);
        MUST(answer == 0 || answer == -EINVAL || answer == -EBUSY || answer == -EPERM || answer == -EOWNERDEAD, "registering: %d", answer);
    }
    }
}

static void ask(void) {
    upcall_loop *loop = loops[a_loop()].handle;
    switch (take8() % 12) {
    case 0: {
        int fd = CALL(upcall_fd, loop);
        MUST(fd >= 0 || fd == -EPERM || fd == -EOWNERDEAD || (!loop && fd == -EINVAL) || fd == -EDEADLK, "upcall_fd: %d", fd);
        if (fd >= 0)
            poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0);
        break;
    }
    case 1: MUST((CALL(upcall_now, loop) == 0) == !loop, "now"); break;
    case 2: MUST(CALL(upcall_loop_backend, loop) <= 2, "backend"); break;
    case 3: MUST((CALL(upcall_backend_reason, loop) == NULL) == !loop, "reason"); break;
    case 4: {
        int answer = CALL(upcall_supports, loop, (upcall_kind)(one_in(2) ? take8() : take(4)));
        MUST(loop ? answer >= 0 && answer <= 2 : answer == -EINVAL, "supports: %d", answer);
        break;
    }
    case 5: MUST(*CALL(upcall_op_name, (upcall_kind)(one_in(2) ? take8() : take(4))), "op_name"); break;
    case 6: MUST(*CALL(upcall_backend_name, (upcall_backend)take(4)), "backend_name"); break;
    case 7: MUST(*CALL(upcall_strerror, (int)(one_in(2) ? -(int)take(2) : (int)take(4))), "strerror"); break;
    case 8: MUST(CALL(upcall_last_error) != NULL && *CALL(upcall_version), "texts"); break;
    case 9: { /* stats of any size */
        size_t size = take8() % 300u;
        uint8_t *exact = malloc(size + 1);
        memset(exact, QUIET, size + 1);
        int answer = CALL(upcall_stats_get_sized, loop, one_in(8) ? NULL : (upcall_stats *)(void *)exact, size);
        MUST(answer == 0 || answer == -EINVAL, "stats: %d", answer);
        MUST(exact[size] == QUIET, "stats behind their size");
        free(exact);
        break;
    }
    case 10: { /* configs of any size */
        size_t size = take8() * 2u;
        uint8_t *exact = malloc(size + 1);
        exact[size] = QUIET;
        if (one_in(2))
            CALL(upcall_config_init_sized, one_in(8) ? NULL : (upcall_config *)(void *)exact, size);
        else
            CALL(upcall_reader_config_init_sized, one_in(8) ? NULL : (upcall_reader_config *)(void *)exact, size);
        MUST(exact[size] == QUIET, "a config behind its size");
        free(exact);
        break;
    }
    case 11: { /* what only looks like directory entries */
        uint64_t bytes[12];
        for (int i = 0; i < 12; i++)
            bytes[i] = take(4);
        const upcall_dirent *at = NULL, *next;
        while ((next = CALL(upcall_dirent_next, bytes, one_in(8) ? -(int64_t)take8() : (int64_t)sizeof bytes, at))) {
            MUST((const uint64_t *)next >= bytes && (const uint64_t *)next < bytes + 12 && next > at, "an entry outside");
            at = next;
        }
        MUST(CALL(upcall_dirent_next, NULL, (int64_t)take(8), NULL) == NULL && !CALL(upcall_dirent_name, NULL), "no entries");
        break;
    }
    }
}

static void others(void) {
    int number = a_loop();
    upcall_loop *loop = loops[number].handle;
    int answer = 0;
    switch (take8() % 8) {
    case 0:
    case 1:
        /* It may run inside free only; counted before, so that it is not early. */
        atomic_fetch_add(&posts_accepted, 1);
        if (CALL(upcall_post, loop, posted, &posts_run) != 0)
            atomic_fetch_sub(&posts_accepted, 1);
        return;
    case 2: answer = CALL(upcall_post, loop, NULL, NULL); MUST(answer < 0, "a post of nothing"); return;
    case 3: answer = CALL(upcall_stop, loop); break;
    case 4: answer = CALL(upcall_hold, loop); loops[number].held += answer == 0; break;
    case 5:
        answer = CALL(upcall_unhold, loop);
        if (loop) {
            MUST(answer == (loops[number].held ? 0 : -EINVAL), "unhold: %d, %u held", answer, loops[number].held);
            loops[number].held -= loops[number].held > 0;
            return;
        }
        break;
    default: submit_extra(number); return;
    }
    MUST(answer == (loop ? 0 : -EINVAL), "stop, hold or unhold: %d", answer);
}

static void read_ahead(void) {
    int number = take8() % READERS;
    upcall_reader *reader = readers[number].handle;
    const void *block = NULL;
    switch (take8() % 5) {
    case 0: {
        upcall_reader_config config;
        upcall_reader *made = NULL;
        CALL(upcall_reader_config_init_sized, &config, sizeof config);
        config.backend = take8() % 3;
        config.block_size = 4096u << take8() % 3;
        config.depth = 1 + take8() % 4;
        config.offset = one_in(2) ? 0 : one_in(2) ? take(2) : take(8);
        config.length = one_in(2) ? 0 : one_in(2) ? take(2) : take(8);
        if (one_in(8)) {
            uint32_t at = take8() % (sizeof config - 4), value = (uint32_t)take(4);
            memcpy((uint8_t *)&config + at, &value, sizeof value);
            if (config.depth > 16 && config.depth <= 1024)
                config.depth = 16;
            if (config.block_size > 1 << 20 && config.block_size <= 1 << 30)
                config.block_size = 1 << 20;
            if (config.size > sizeof config && config.size <= 4096)
                config.size = sizeof config;
        }
        if (reader)
            return;
        int answer = CALL(upcall_reader_new, one_in(4) ? object() : object_file(), one_in(16) ? NULL : &config, one_in(16) ? NULL : &made);
        MUST((answer == 0) == (made != NULL), "reader_new: %d", answer);
        readers[number].handle = made;
        break;
    }
    case 1:
    case 2: {
        int64_t answer = one_in(2) ? CALL(upcall_reader_next, reader, one_in(16) ? NULL : &block)
                                   : CALL(upcall_reader_wait, reader, one_in(16) ? NULL : &block, take8() * 4000);
        MUST((answer > 0) == (block != NULL), "a block without bytes: %lld", (long long)answer);
        if (answer > 0) {
            volatile uint8_t sum = 0;
            for (int64_t i = 0; i < answer; i += 512)
                sum = (uint8_t)(sum + ((const uint8_t *)block)[i]);
            int place = take8() % 4;
            if (readers[number].blocks[place])
                MUST(CALL(upcall_reader_release, reader, readers[number].blocks[place]) == 0, "a lent block is not taken back");
            readers[number].blocks[place] = block;
        }
        break;
    }
    case 3: {
        int place = take8() % 4;
        const void *at = readers[number].blocks[place];
        if (at && !one_in(4)) {
            readers[number].blocks[place] = NULL;
            MUST(CALL(upcall_reader_release, reader, at) == 0, "a lent block is not taken back");
            MUST(CALL(upcall_reader_release, reader, at) == -EINVAL, "a block is taken back twice");
        } else {
            const void *wrong = at ? (const char *)at + 1 + take8() : (const void *)(uintptr_t)take(8);
            bool is_lent = false;
            for (int i = 0; i < 4; i++)
                is_lent |= readers[number].blocks[i] == wrong;
            MUST(is_lent || CALL(upcall_reader_release, reader, wrong) == -EINVAL, "a foreign block is taken back");
        }
        int fd = CALL(upcall_reader_fd, reader);
        MUST(reader ? fd >= 0 : fd == -EINVAL, "reader_fd: %d", fd);
        break;
    }
    default:
        MUST(CALL(upcall_reader_free, reader) == 0, "reader_free");
        memset(&readers[number], 0, sizeof readers[number]);
    }
}

static void steps(void) {
    for (unsigned count = 1 + take8() % 6u; count && !is_over(); count--)
        step();
}

static void step(void) {
    if (is_over() || steps_left == 0)
        return;
    steps_left--;
    uint8_t what = take8();
    switch (what % 32) {
    case 0: case 1: case 2: case 3: case 4: case 5: case 6: case 7: case 8: submit(); break;
    case 9: case 10: case 11: case 12: case 13: turn(); break;
    case 14: case 15: cancel(); break;
    case 16: reap(a_loop()); break;
    case 17: end_loop(a_loop()); break;
    case 18: case 19: case 20: buffers(); break;
    case 21: ask(); break;
    case 22: case 23: others(); break;
    case 24: read_ahead(); break;
    case 25: case 26: case 27: object_peer(); break;
    case 28: on_other_thread(steps); break;
    case 29: on_brief_thread(steps); break;
    case 30: odd_submit(); break;
    case 31: new_loop(a_loop()); break;
    }
}

/* ---- The end of a run: everything is given back. */

static void close_first(void) {
    upcall_loop *loop = loops[to_free].handle;
    int answer = CALL(upcall_loop_close, loop, -1);
    if (answer < 0)
        return;
    upcall_event events[16];
    for (int count; (count = CALL(upcall_reap, loop, events, 16)) > 0;)
        for (int i = 0; i < count; i++)
            on_event(loop, &events[i]);
    for (int i = 0; i < ENTRIES; i++)
        MUST(!entries[i].used || !entries[i].accepted || entries[i].loop != to_free || entries[i].final,
             "%s: no final event although the loop was closed and reaped", upcall_op_name(entries[i].op.kind));
    upcall_stats stats;
    MUST(upcall_stats_get(loop, &stats) == 0 && stats.in_flight == 0 &&
             stats.submitted == stats.completed + stats.cancelled + stats.timed_out,
         "the counters of a closed loop: %llu submitted, %llu completed, %llu cancelled, %llu timed out", (unsigned long long)stats.submitted,
         (unsigned long long)stats.completed, (unsigned long long)stats.cancelled, (unsigned long long)stats.timed_out);
}

static void end_run(bool close_loops) {
    ending = true;
    for (to_free = 0; to_free < LOOPS; to_free++) {
        if (!loops[to_free].handle)
            continue;
        loops[to_free].ended_something = true;
        if (close_loops) {
            close_first();
            on_other_thread(close_first);
        }
        free_it();
        if (free_answer == -EPERM)
            on_other_thread(free_it);
        MUST(free_answer == 0, "free at the end: %d", free_answer);
        after_free(to_free);
    }
    for (int i = 0; i < LENT; i++)
        if (lent[i].at) {
            MUST(CALL(upcall_buffers_return, pools[lent[i].pool].handle, lent[i].at) == 0, "a lent buffer is not taken back");
            lent[i].at = NULL;
        }
    for (int i = 0; i < POOLS; i++) {
        MUST(CALL(upcall_buffers_free, pools[i].handle) == 0, "a pool cannot be freed at the end");
    }
    memset(pools, 0, sizeof pools);
    for (int i = 0; i < READERS; i++)
        MUST(CALL(upcall_reader_free, readers[i].handle) == 0, "reader_free");
    memset(readers, 0, sizeof readers);
    objects_end_run();
    pages_check();
    MUST(atomic_load(&posts_run) == atomic_load(&posts_accepted), "%d of %d posts ran", posts_run, posts_accepted);
    MUST(atomic_load(&extra_ended) == atomic_load(&extra_accepted), "%d of %d small operations ended", extra_ended, extra_accepted);
    MUST(!raised, "signal %d was raised", (int)raised);
    ending = false;
}

/* Open descriptors below the objects' numbers. */
static void descriptors(uint64_t set[4]) {
    memset(set, 0, 4 * sizeof *set);
    for (int fd = 0; fd < 200; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            set[fd / 64] |= UINT64_C(1) << fd % 64;
}

/* The library's threads. */
static int threads(void) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        char path[300], name[8] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        count += fd >= 0 && read(fd, name, 7) == 7 && memcmp(name, "upcall-", 7) == 0;
        if (fd >= 0)
            close(fd);
    }
    closedir(tasks);
    return count;
}

static void on_write_signal(int signal) { raised = signal; }

static void choose_mask(void) {
    static const char *const words[] = {"multishot", "buffer_rings", "bundles", "zerocopy", "registered_buffers", "defer_taskrun",
                                        "coop_taskrun", "no_sqarray", "absolute_timeout", "no_iowait", "*", "!*", "!recv", "!statx,!open",
                                        "accept,connect,poll", "!read,!write,!readv,!writev"};
    char mask[400] = "";
    uint16_t chosen = take8() % 4 == 3 ? (uint16_t)take(2) : 0;
    for (unsigned i = 0; i < 16; i++)
        if (chosen >> i & 1) {
            if (*mask)
                strcat(mask, ",");
            strcat(mask, words[i]);
        }
    setenv("UPCALL_MASK", mask, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static unsigned long runs;
    runs++;
    unsigned long lookups = kinds_accepted[UPCALL_OP_GETADDRINFO];
    uint64_t before[4], after[4];
    descriptors(before);
    input = (struct input){bytes, bytes + size};
    steps_left = 250;
    memset(entries, 0, sizeof entries);
    memset(loops, 0, sizeof loops);
    returned_last = NULL;
    posts_accepted = posts_run = extra_accepted = extra_ended = 0;
    choose_mask();
    bool close_loops = one_in(2);
    new_loop(0);
    while (!is_over() && steps_left)
        step();
    end_run(close_loops);
    /* A lookup that was given up ends a little later, and closes the file of services it may have open. */
    bool looked_up = lookups != kinds_accepted[UPCALL_OP_GETADDRINFO];
    for (int i = 0; (looked_up || runs % 16 == 0) && threads() > 0; i++) {
        MUST(i < 2000, "%d threads are left", threads());
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    descriptors(after);
    for (int fd = 0; fd < 200; fd++) {
        char link[40], what[200] = "closed";
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if ((before[fd / 64] ^ after[fd / 64]) >> fd % 64 & 1) {
            what[0] = readlink(link, what, sizeof what - 1) < 0 ? 'C' : what[0];
            MUST(false, "descriptor %d was not so before: it is %s now", fd, what);
        }
    }
    return 0;
}

static void report(void) {
    int missing = 0;
    fprintf(stderr, "\nfunctions never called:");
    for (int i = 0; i < FUNCTIONS; i++)
        if (!calls[i]) {
            fprintf(stderr, " %s", function_names[i]);
            missing++;
        }
    fprintf(stderr, " (%d of %d)\nkinds: accepted, with a result >= 0\n", missing, (int)FUNCTIONS);
    for (upcall_kind kind = 1; kind < KINDS; kind++)
        if (strcmp(upcall_op_name(kind), "unknown") != 0)
            fprintf(stderr, "  %-12s %8lu %8lu%s\n", upcall_op_name(kind), kinds_accepted[kind], kinds_done[kind],
                    !kinds_accepted[kind] ? "  never accepted" : !kinds_done[kind] ? "  never succeeded" : "");
}

/* What was freed is overwritten, so that a copy that was not made is seen by the kernel's answers, too. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "max_free_fill_size=65536:free_fill_byte=165"; }

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    for (int i = 1; i < *argc; i++) {
        const char *argument = (*argv)[i];
        if (strcmp(argument, "--report") == 0)
            atexit(report);
        else if (strcmp(argument, "--trace") == 0)
            tracing = true;
        else if (*argument != '-' && *argument != '/') {
            fprintf(stderr, "boundary: %s: an absolute path is needed, the program works in a folder of its own\n", argument);
            exit(2);
        }
    }
    /* No privileges, whoever runs it, and none to be had. */
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(SYS_capset, &header, none) == 0, "privileges cannot be dropped");
    MUST(setrlimit(RLIMIT_FSIZE, &(struct rlimit){4 << 20, 4 << 20}) == 0, "setrlimit");
    struct sigaction action = {.sa_handler = on_write_signal, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
    objects_begin();
    pages = mmap(NULL, PAGES * 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(pages != MAP_FAILED, "mmap");
    memset(pages, QUIET, PAGES * 8192);
    for (int page = 0; page < PAGES; page++)
        MUST(mprotect(pages + page * 8192 + 4096, 4096, PROT_NONE) == 0, "mprotect");
    pthread_t other;
    sem_init(&go, 0, 0);
    sem_init(&done, 0, 0);
    MUST(pthread_create(&other, NULL, other_thread, NULL) == 0, "no thread");
    pthread_detach(other);
    return 0;
}
