/*
 * The oracle: it keeps an entry for each accepted operation and knows what may not happen.
 *
 *   - Each operation has exactly one final event, and none after it. Every event has the operation's id, kind and user
 *     pointer, and no flag that the operation did not ask for.
 *   - An operation is cancelled only where the program says that somebody asks (`nobody_cancels`).
 *   - Nothing outside lent memory is written, nothing beyond what the event tells, and nothing after the final event.
 *   - What comes out of a stream is what went in: at every position of a stream there is another byte, so that loss,
 *     duplication and reordering show.
 *   - Descriptors, threads and memory come back to where they were.
 *
 * oracle_submit() and oracle_reap() stand for upcall_submit() and upcall_reap(); callbacks and user pointers are the
 * program's own and called as ever. Any thread may submit. One oracle may serve several loops. What is broken ends the
 * process, as a CHECK() does.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "../c/check.h"

#include <malloc.h>
#include <stdatomic.h>

struct oracle;

struct oracle_entry {
    struct oracle *oracle;
    _Atomic upcall_id id; /* 0: submit has not returned and no event has come */
    upcall_callback callback;
    void *user;
    uint64_t timeout_ns;
    upcall_buffers *buffers;
    uint32_t kind, flags;
    _Atomic bool live;   /* accepted, or about to be, and not ended */
    atomic_int holders;  /* the submit that has not returned, the final event that has not come */
    bool sent;           /* without copying: its result was told … */
    int64_t result;      /* … and was this */
    uint64_t transferred;
    struct oracle_entry *next;
};

enum { ORACLE_CHUNK = 1024, ORACLE_CHUNKS = 4096, ORACLE_FENCE = 64, ORACLE_HELD = 256 };

struct oracle_block {
    struct oracle_block *next;
    size_t size;
    unsigned char *data; /* between two fences */
    bool lent;
};

struct oracle {
    pthread_mutex_t lock;
    struct oracle_entry *chunks[ORACLE_CHUNKS];
    _Atomic size_t chunk_count;
    struct oracle_entry *free_first, *free_last; /* the oldest is used first */
    struct oracle_block *held_first, *held_last; /* given back and not to be written any more, the oldest first */
    struct oracle_block *blocks;                 /* to be lent again */
    size_t held, lent;
    bool nobody_cancels;
    atomic_uint_fast64_t accepted, ended, events, completed, cancelled, expired;
};

HELPER struct oracle *oracle_new(void) {
    struct oracle *o = calloc(1, sizeof *o);
    CHECK(o != NULL);
    CHECK_EQ(pthread_mutex_init(&o->lock, NULL), 0);
    return o;
}

/* ---- Entries. ---- */

HELPER void oracle_put_entry(struct oracle *o, struct oracle_entry *entry) { /* under the lock */
    entry->next = NULL;
    if (o->free_last)
        o->free_last->next = entry;
    else
        o->free_first = entry;
    o->free_last = entry;
}

HELPER struct oracle_entry *oracle_take_entry(struct oracle *o) { /* under the lock */
    if (o->free_first == NULL) {
        size_t count = o->chunk_count;
        CHECK(count < ORACLE_CHUNKS);
        struct oracle_entry *chunk = calloc(ORACLE_CHUNK, sizeof *chunk);
        CHECK(chunk != NULL);
        for (size_t i = 0; i < ORACLE_CHUNK; i++) {
            chunk[i].oracle = o;
            oracle_put_entry(o, &chunk[i]);
        }
        o->chunks[count] = chunk;
        o->chunk_count = count + 1;
    }
    struct oracle_entry *entry = o->free_first;
    o->free_first = entry->next;
    if (o->free_first == NULL)
        o->free_last = NULL;
    return entry;
}

HELPER void oracle_let_go(struct oracle_entry *entry) {
    struct oracle *o = entry->oracle;
    if (atomic_fetch_sub(&entry->holders, 1) == 1) {
        pthread_mutex_lock(&o->lock);
        oracle_put_entry(o, entry);
        pthread_mutex_unlock(&o->lock);
    }
}

/* The user pointer of an event must be an entry: looked for, not trusted. */
HELPER struct oracle_entry *oracle_find(struct oracle *o, const void *user) {
    size_t count = o->chunk_count;
    for (size_t i = count; i-- > 0;) {
        uintptr_t offset = (uintptr_t)user - (uintptr_t)o->chunks[i];
        if ((uintptr_t)user >= (uintptr_t)o->chunks[i] && offset < ORACLE_CHUNK * sizeof(struct oracle_entry) &&
            offset % sizeof(struct oracle_entry) == 0)
            return o->chunks[i] + offset / sizeof(struct oracle_entry);
    }
    fail(HERE, "an event with the user pointer %p, which no operation has", user);
}

HELPER void oracle_learn_id(struct oracle_entry *entry, upcall_id id) {
    upcall_id known = 0;
    if (!atomic_compare_exchange_strong(&entry->id, &known, id) && known != id)
        fail(HERE, "%s: an event with the id %#" PRIx64 ", its id is %#" PRIx64, upcall_op_name(entry->kind), id, known);
}

/* Looks at an event; the program's own callback and user pointer come back through `callback` and `event`. */
HELPER void oracle_hear(struct oracle *o, upcall_event *event, upcall_callback *callback) {
    struct oracle_entry *entry = oracle_find(o, event->user);
    const char *name = upcall_op_name(event->kind);
    bool final = !(event->flags & UPCALL_MORE);
    check_event(event);
    if (!entry->live)
        fail(HERE, "%s %#" PRIx64 ": an event after its final one", name, event->id);
    oracle_learn_id(entry, event->id);
    if (event->kind != entry->kind)
        fail(HERE, "%s: an event of the kind %s", upcall_op_name(entry->kind), name);
    if (!final && !(entry->flags & (UPCALL_MULTISHOT | UPCALL_ZEROCOPY)))
        fail(HERE, "%s: UPCALL_MORE, result %lld", name, (long long)event->result);
    if ((event->flags & UPCALL_EXPIRED) && entry->timeout_ns == 0)
        fail(HERE, "%s: UPCALL_EXPIRED without a deadline", name);
    if (event->flags & UPCALL_RELEASED) {
        CHECK(final && entry->sent);
        CHECK_EQ(event->result, entry->result);
        CHECK_EQ(event->transferred, entry->transferred);
    } else if (entry->flags & UPCALL_ZEROCOPY) {
        CHECK(!entry->sent); /* one result, and after it only the release */
        entry->sent = true;
        entry->result = event->result;
        entry->transferred = event->transferred;
    }
    if (event->buffer)
        CHECK(entry->buffers != NULL && event->result >= 0);
    if (o->nobody_cancels)
        CHECK(event->result != -ECANCELED);
    *callback = entry->callback;
    event->user = entry->user;
    atomic_fetch_add_explicit(&o->events, 1, memory_order_relaxed);
    if (final) {
        atomic_fetch_add_explicit(event->result == -ECANCELED           ? &o->cancelled
                                  : event->flags & UPCALL_EXPIRED ? &o->expired
                                                                        : &o->completed,
                                  1, memory_order_relaxed);
        entry->live = false;
        atomic_fetch_add(&o->ended, 1);
        oracle_let_go(entry);
    }
}

HELPER void oracle_callback(upcall_loop *loop, const upcall_event *event) {
    struct oracle_entry *entry = event->user;
    upcall_event told = *event;
    upcall_callback callback = NULL;
    oracle_hear(entry->oracle, &told, &callback);
    CHECK(callback != NULL); /* without one it is to be reaped */
    callback(loop, &told);
}

/* As upcall_submit(). */
HELPER int oracle_submit(struct oracle *o, upcall_loop *loop, const upcall_op *ops, size_t count, upcall_id *ids) {
    upcall_op few[64], *copies = count <= COUNT_OF(few) ? few : malloc(count * sizeof *copies);
    upcall_id some[64], *given = ids ? ids : count <= COUNT_OF(some) ? some : malloc(count * sizeof *given);
    CHECK(copies != NULL && given != NULL);
    pthread_mutex_lock(&o->lock);
    for (size_t i = 0; i < count; i++) {
        struct oracle_entry *entry = oracle_take_entry(o);
        entry->id = 0;
        entry->callback = ops[i].callback;
        entry->user = ops[i].user;
        entry->timeout_ns = ops[i].timeout_ns;
        entry->buffers = ops[i].buffers;
        entry->kind = ops[i].kind;
        entry->flags = ops[i].flags;
        entry->sent = false;
        entry->live = true;
        entry->holders = 2;
        copies[i] = ops[i];
        copies[i].callback = ops[i].callback ? oracle_callback : NULL;
        copies[i].user = entry;
    }
    pthread_mutex_unlock(&o->lock);
    int rc = upcall_submit(loop, copies, count, given);
    for (size_t i = 0; i < count; i++) {
        struct oracle_entry *entry = copies[i].user;
        if (rc == 0) {
            CHECK(given[i] != 0);
            oracle_learn_id(entry, given[i]);
        } else {
            if (!entry->live || entry->id != 0)
                fail(HERE, "%s: an event although it was refused", upcall_op_name(entry->kind));
            entry->live = false;
            oracle_let_go(entry);
        }
    }
    if (rc == 0)
        atomic_fetch_add(&o->accepted, count);
    for (size_t i = 0; i < count; i++)
        oracle_let_go(copies[i].user);
    if (copies != few)
        free(copies);
    if (given != ids && given != some)
        free(given);
    return rc;
}

/* As upcall_reap(). */
HELPER int oracle_reap(struct oracle *o, upcall_loop *loop, upcall_event *events, size_t max) {
    int got = upcall_reap(loop, events, max);
    for (int i = 0; i < got; i++) {
        upcall_callback callback;
        oracle_hear(o, &events[i], &callback);
        CHECK(callback == NULL);
    }
    return got;
}

/* ---- Memory that is lent to operations. ---- */

#define ORACLE_POISON 0xee /* lent, and not yet written */
#define ORACLE_DEAD 0xdd   /* given back */
#define ORACLE_WALL 0xfa

HELPER bool oracle_all(const unsigned char *memory, size_t size, unsigned char value) {
    return size == 0 || (memory[0] == value && memcmp(memory, memory + 1, size - 1) == 0);
}

HELPER struct oracle_block *oracle_block_of(void *memory) {
    struct oracle_block *block;
    memcpy(&block, (unsigned char *)memory - ORACLE_FENCE - sizeof block, sizeof block);
    CHECK(block->data == memory);
    return block;
}

HELPER void oracle_check_fences(const struct oracle_block *block) {
    if (!oracle_all(block->data - ORACLE_FENCE, ORACLE_FENCE, ORACLE_WALL))
        fail(HERE, "memory before the %zu bytes of an operation was written", block->size);
    if (!oracle_all(block->data + block->size, ORACLE_FENCE, ORACLE_WALL))
        fail(HERE, "memory behind the %zu bytes of an operation was written", block->size);
}

HELPER void oracle_check_dead(const struct oracle_block *block) {
    oracle_check_fences(block);
    if (!oracle_all(block->data, block->size, ORACLE_DEAD))
        fail(HERE, "the memory of an operation (%zu bytes) was written after its final event", block->size);
}

/* `size` bytes between fences. 4096 bytes and more are aligned for O_DIRECT. Owner thread of the oracle's loop. */
HELPER void *oracle_lend(struct oracle *o, size_t size) {
    struct oracle_block **place = &o->blocks, *block;
    while (*place && (*place)->size != size)
        place = &(*place)->next;
    block = *place;
    if (block) {
        *place = block->next;
    } else {
        size_t ahead = size >= 4096 ? 4096 : 128;
        unsigned char *memory;
        block = malloc(sizeof *block);
        CHECK(block != NULL);
        CHECK_EQ(posix_memalign((void **)&memory, ahead, ahead + size + ORACLE_FENCE), 0);
        *block = (struct oracle_block){.size = size, .data = memory + ahead};
        memcpy(block->data - ORACLE_FENCE - sizeof block, &block, sizeof block);
        memset(block->data - ORACLE_FENCE, ORACLE_WALL, ORACLE_FENCE);
        memset(block->data + size, ORACLE_WALL, ORACLE_FENCE);
    }
    memset(block->data, ORACLE_POISON, size);
    block->lent = true;
    o->lent++;
    return block->data;
}

/* From `from` on nothing was written. */
HELPER void oracle_check_untouched(void *memory, size_t from) {
    struct oracle_block *block = oracle_block_of(memory);
    CHECK(block->lent);
    oracle_check_fences(block);
    if (from < block->size && !oracle_all(block->data + from, block->size - from, ORACLE_POISON))
        fail(HERE, "more than the %zu bytes that were told of were written", from);
}

/* The final event has come. The memory is looked at again when so many others were given back, and at the end. */
HELPER void oracle_give_back(struct oracle *o, void *memory) {
    struct oracle_block *block = oracle_block_of(memory);
    CHECK(block->lent);
    oracle_check_fences(block);
    block->lent = false;
    o->lent--;
    memset(block->data, ORACLE_DEAD, block->size);
    block->next = NULL;
    if (o->held_last)
        o->held_last->next = block;
    else
        o->held_first = block;
    o->held_last = block;
    if (++o->held > ORACLE_HELD) {
        block = o->held_first;
        o->held_first = block->next;
        o->held--;
        oracle_check_dead(block);
        block->next = o->blocks;
        o->blocks = block;
    }
}

/* ---- Streams. ---- */

struct oracle_stream {
    uint64_t put, got;
};

/* The next bytes to put in. */
HELPER void oracle_make(struct oracle_stream *stream, void *memory, size_t size) {
    fill_pattern(memory, size, stream->put);
    stream->put += size;
}

/* These bytes came out. */
HELPER void oracle_take(struct oracle_stream *stream, const void *memory, size_t size) {
    if (stream->got + size > stream->put)
        fail(HERE, "%" PRIu64 " bytes came out of a stream, only %" PRIu64 " went in", stream->got + size, stream->put);
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)memory)[i] != pattern(stream->got + i))
            fail(HERE, "byte %" PRIu64 " of a stream is another one", stream->got + i);
    stream->got += size;
}

HELPER void oracle_check_empty(const struct oracle_stream *stream) {
    if (stream->got != stream->put)
        fail(HERE, "%" PRIu64 " bytes went into a stream, %" PRIu64 " came out", stream->put, stream->got);
}

/* ---- What the process has. ---- */

struct oracle_footing {
    int descriptors, threads;
    long heap, pages; /* bytes in use; resident */
};

HELPER long resident_pages(void) {
    FILE *statm = fopen("/proc/self/statm", "re");
    long all = 0, resident = 0;
    CHECK(statm != NULL && fscanf(statm, "%ld %ld", &all, &resident) == 2);
    fclose(statm);
    return resident;
}

/* An allocator of another kind (a sanitizer's) says nothing. */
HELPER bool oracle_knows_memory(void) {
    void *volatile something = malloc(1);
    bool knows = mallinfo2().uordblks != 0;
    free(something);
    return knows;
}

HELPER struct oracle_footing oracle_stand(void) {
    struct mallinfo2 heap = mallinfo2();
    return (struct oracle_footing){open_fd_count(), thread_count(), (long)(heap.uordblks + heap.hblkhd), resident_pages()};
}

/* Descriptors and threads are as many as before, and the heap holds at most `slack` bytes more. Threads that were let go
   (of lookups that were given up) may need a moment. */
HELPER void oracle_check_footing(const struct oracle_footing *before, long slack) {
    struct oracle_footing now = oracle_stand();
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS, soon = now_ns() + UPCALL_SECOND;
    while ((now.threads > before->threads && now_ns() < limit) || (now.heap > before->heap + slack && now_ns() < soon)) {
        pause_ms(5);
        now = oracle_stand();
    }
    CHECK_EQ(now.descriptors, before->descriptors);
    CHECK_EQ(now.threads, before->threads);
    if (now.heap > before->heap + slack)
        fail(HERE, "the heap grew by %ld bytes", now.heap - before->heap);
}

/* ---- The end: every operation has ended, all memory is back and was not written. ---- */

HELPER void oracle_check_ended(struct oracle *o) {
    if (o->accepted != o->ended)
        fail(HERE, "%llu operations were accepted, %llu ended", (unsigned long long)o->accepted,
             (unsigned long long)o->ended);
    for (size_t i = 0; i < o->chunk_count; i++)
        for (size_t k = 0; k < ORACLE_CHUNK; k++)
            if (o->chunks[i][k].live)
                fail(HERE, "%s: no final event", upcall_op_name(o->chunks[i][k].kind));
}

HELPER void oracle_free(struct oracle *o) {
    oracle_check_ended(o);
    CHECK_EQ(o->lent, 0);
    for (struct oracle_block *block = o->held_first; block; block = block->next)
        oracle_check_dead(block);
    struct oracle_block *lists[2] = {o->held_first, o->blocks};
    for (int i = 0; i < 2; i++)
        for (struct oracle_block *block = lists[i], *next; block; block = next) {
            next = block->next;
            free(block->data - (block->size >= 4096 ? 4096 : 128));
            free(block);
        }
    for (size_t i = 0; i < o->chunk_count; i++)
        free(o->chunks[i]);
    pthread_mutex_destroy(&o->lock);
    free(o);
}

#endif
