/* From a seed to a program. */
#include "differential.h"

static uint64_t state;

static uint32_t below(uint32_t n) {
    return (uint32_t)((random_next(&state) >> 32) * n >> 32);
}

static bool one_in(uint32_t n) {
    return below(n) == 0;
}

static uint8_t any_object_kind(void) {
    unsigned total = 0;
    for (unsigned i = 0; i < OBJECT_KINDS; i++)
        total += object_rows[i].weight;
    unsigned at = below(total), kind = 0;
    while (at >= object_rows[kind].weight)
        at -= object_rows[kind++].weight;
    return (uint8_t)kind;
}

static uint32_t some_length(uint8_t kind) {
    /* How much more a terminal takes depends on how fast the kernel passes it on; a long read of /dev/zero stops early
     * when anything else is to be done. */
    if (kind == PTY || kind == DEV_ZERO)
        return below(100);
    if (kind == DIRECT)
        return one_in(3) ? below(3000) : below(4) * 512;
    switch (below(8)) {
    case 0: return below(3);
    case 1: return 3000 + below(3000);
    case 2: return one_in(6) ? 20000 : 8;
    case 3: return 8 + below(8);
    default: return below(200);
    }
}

static int64_t some_offset(uint8_t kind) {
    if (kind == DIRECT && !one_in(4))
        return below(12) * 512;
    switch (below(6)) {
    case 0: return 0;
    case 1: return FILE_SIZE - 10 + below(20);
    case 2: return one_in(8) ? INT64_MAX - below(300) : FILE_SIZE * 2;
    default: return below(FILE_SIZE);
    }
}

static uint8_t some_row(uint8_t kind) {
    for (;;) {
        uint8_t row = (uint8_t)below(operation_row_count);
        const operation_row *chosen = &operation_rows[row];
        const bool meant = chosen->suits >> kind & 1 && chosen->suits != ~UINT64_C(0);
        if (meant || one_in(chosen->suits == ~UINT64_C(0) ? 6 : 40))
            return row;
    }
}

static uint8_t some_move(void) {
    for (;;) {
        uint8_t row = (uint8_t)below(operation_row_count);
        if (operation_rows[row].traits & TWO)
            return row;
    }
}

static void some_operation(const program *p, operation *op, bool last) {
    op->object = (uint8_t)below(p->objects);
    op->second = (uint8_t)below(p->objects + 1);
    const bool moves = p->moves && one_in(2);
    if (moves && !one_in(4)) {
        op->object = 0;
        op->second = 1;
    }
    if (op->second == p->objects)
        op->second = MAX_OBJECTS;
    const uint8_t kind = p->object[op->object].kind;
    op->row = moves ? some_move() : some_row(kind);
    const operation_row *row = &operation_rows[op->row];
    op->variant = (uint32_t)random_next(&state);
    op->length = some_length(kind);
    op->offset = some_offset(kind);
    op->reaped = one_in(4);
    /* A record is looked at after the callbacks of its turn: what reads one stream is told one way. */
    if (row->traits & (GETS | DRAINS))
        op->reaped = (p->seed >> op->object & 3) == 0;
    op->deadline = one_in(10) ? FAR : one_in(16) ? SHORT : NO_DEADLINE;
    if (row->traits & FULLY && one_in(4))
        op->flags |= UPCALL_FULL;
    else if (row->traits & LENDS && p->buffers != 0 && one_in(2))
        op->lends = true;
    if (row->traits & REPEATS && one_in(3) && !(op->flags & UPCALL_FULL)) {
        op->flags |= UPCALL_MULTISHOT;
        op->lends = p->buffers != 0 && row->traits & LENDS && !one_in(20);
    }
    /* What a pool of the ring lends besides what the kernel picks is not counted with it (see the findings). */
    if (p->holds && strcmp(row->name, p->seed % 3 == 0 ? "readdir" : "read") != 0)
        op->lends = false;
    if (op->lends && one_in(2))
        op->length = 0;
    if (op->lends && one_in(4))
        op->lend_max = (uint8_t)(1 + below(3));
    if (!last && one_in(4) && !(op->flags & UPCALL_MULTISHOT))
        op->flags |= one_in(3) ? UPCALL_LINK_ALWAYS : UPCALL_LINK;
    if (row->traits & ZERO_COPIES && one_in(5))
        op->flags |= UPCALL_ZEROCOPY;
    if (one_in(16))
        op->flags |= UPCALL_DRAIN;
    if (one_in(16))
        op->flags |= UPCALL_BACKGROUND;
    if (one_in(120)) /* flags that do not go together */
        op->flags |= 1u << below(7);
    if (one_in(25))
        op->spoil = (uint8_t)(1 + below(SPOILS - 1));
}

static uint32_t some_amount(void) {
    return one_in(10) ? 5000 + below(30000) : one_in(4) ? below(4000) : 1 + below(150);
}

static void some_step(const program *p, step *s) {
    static const uint8_t weights[STEP_KINDS] = {
        [SUBMIT] = 48, [PUT] = 20, [TAKE] = 11, [HALF] = 3, [HANG_UP] = 3, [RESET] = 2, [CANCEL] = 7, [CANCEL_FD] = 3,
        [CANCEL_ALL] = 1, [RETURN] = 4,
    };
    unsigned at = below(102), kind = 0;
    while (at >= weights[kind])
        at -= weights[kind++];
    s->kind = (uint8_t)kind;
    s->object = (uint8_t)below(p->objects);
    s->amount = some_amount();
    s->variant = (uint32_t)random_next(&state);
    if (kind != SUBMIT)
        return;
    s->foreign = one_in(16);
    s->hasty = one_in(8);
    s->count = (uint8_t)(one_in(2) ? 1 : 1 + below(MAX_BATCH));
    for (unsigned i = 0; i < s->count; i++)
        some_operation(p, &s->ops[i], i + 1 == s->count);
}

void generate(program *p, uint64_t seed) {
    memset(p, 0, sizeof *p);
    p->seed = state = seed;
    random_next(&state);
    p->objects = 1 + below(one_in(3) ? MAX_OBJECTS : 2);
    for (unsigned i = 0; i < p->objects; i++)
        p->object[i] = (plan){any_object_kind(), one_in(2)};
    if (one_in(3)) {
        p->buffers = (uint8_t)(1 + below(4));
        p->buffer_size = one_in(3) ? 2000 : 48 + below(32);
        p->holds = one_in(2);
    }
    if (one_in(8)) {
        static const uint8_t from[] = {PIPE_IN, PIPE_IN, FIFO_IN, UNIX_STREAM, TCP, REGULAR, REGULAR};
        static const uint8_t to[] = {PIPE_OUT, PIPE_OUT, UNIX_STREAM, TCP, REGULAR};
        p->moves = true;
        p->objects = p->objects < 2 ? 2 : p->objects;
        p->object[0].kind = from[below(COUNT_OF(from))];
        p->object[1].kind = to[below(COUNT_OF(to))];
    }
    p->registers = one_in(4) ? (uint8_t)(1 + below(2)) : 0;
    p->steps = 3 + below(MAX_STEPS - 3);
    for (unsigned i = 0; i < p->steps; i++)
        some_step(p, &p->step[i]);
    p->step[0].kind == SUBMIT || p->steps < 2 ? (void)0 : some_step(p, &p->step[0]);
}
