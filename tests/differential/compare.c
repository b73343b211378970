/* The same program on every configuration; what differs is made smaller and printed. */
#include "differential.h"

#include <poll.h>

transcript transcripts[CONFIGURATIONS];
uint64_t operations_run;

/* ---- Configurations. ---- */

/* Some of what an older kernel would not have; the last group is refused by the kernel instead of hidden. */
static void choose_mask(char *mask, size_t room, uint64_t *state) {
    static const char *const features[] = {"multishot", "buffer_rings", "defer_taskrun", "coop_taskrun", "no_sqarray",
                                           "absolute_timeout", "no_iowait"};
    mask[0] = '\0';
    size_t used = 0;
    for (unsigned i = 0; i < COUNT_OF(features); i++)
        if (random_next(state) % 3 == 0)
            used += (size_t)snprintf(mask + used, room - used, "%s%s", used ? "," : "", features[i]);
    const char *before = "";
    for (unsigned i = 0; i < operation_row_count && used + 24 < room; i++) {
        const char *name = operation_rows[i].name;
        if (strcmp(name, before) != 0 && random_next(state) % 4 == 0)
            used += (size_t)snprintf(mask + used, room - used, "%s%s%s", used ? "," : "",
                                     random_next(state) % 3 == 0 ? "!" : "", name);
        before = name;
    }
}

void choose_setting(setting *s, uint64_t block, unsigned enabled) {
    uint64_t state = block ^ UINT64_C(0x5851f42d4c957f2d);
    *s = (setting){.configuration = {{"uring", "io_uring", "", NULL},
                                     {"plain", "io_uring", "defer_taskrun,coop_taskrun,no_sqarray", NULL},
                                     {"masked", "io_uring", "", NULL},
                                     {"epoll", "epoll", "", NULL}}};
    choose_mask(s->configuration[2].mask, sizeof s->configuration[2].mask, &state);
    static const uint32_t entries[] = {256, 256, 8, 1}, events[] = {1024, 1024, 3, LEAST_MAX_EVENTS};
    s->entries = entries[random_next(&state) % 4];
    s->max_events = events[random_next(&state) % 4];
    s->workers = 2 + (uint32_t)(random_next(&state) % 3);
    s->enabled = enabled;
}

bool make_loops(setting *s) {
    for (int i = 0; i < CONFIGURATIONS; i++) {
        configuration *c = &s->configuration[i];
        if (!(s->enabled >> i & 1) || c->loop != NULL)
            continue;
        setenv("UPCALL_BACKEND", c->backend, 1);
        setenv("UPCALL_MASK", c->mask, 1);
        upcall_config config;
        upcall_config_init(&config);
        config.entries = s->entries;
        config.max_events = s->max_events;
        config.workers = s->workers;
        config.max_operations = 4096;
        int rc = upcall_loop_new(&config, &c->loop);
        if (rc != 0) {
            fprintf(stderr, "%s: %s\n", c->name, upcall_last_error());
            return false;
        }
        /* The loop becomes this thread's, and has every descriptor that it makes later. */
        upcall_poll(c->loop, 0);
        upcall_fd(c->loop);
    }
    return true;
}

void free_loops(setting *s) {
    for (int i = 0; i < CONFIGURATIONS; i++) {
        upcall_loop_free(s->configuration[i].loop);
        s->configuration[i].loop = NULL;
    }
}

static unsigned first_different(const transcript *a, const transcript *b) {
    unsigned at = 0;
    while (at < a->count && at < b->count && memcmp(&a->record[at], &b->record[at], sizeof(record)) == 0)
        at++;
    return at == a->count && at == b->count ? UINT32_MAX : at;
}

bool agrees(const program *p, setting *s, unsigned *which, char *what, size_t room) {
    int reference = -1;
    for (int i = 0; i < CONFIGURATIONS; i++) {
        if (!(s->enabled >> i & 1))
            continue;
        configuration *c = &s->configuration[i];
        if (!make_loops(s))
            exit(2);
        run_program(p, &c->loop, &transcripts[i]);
        *which = (unsigned)i;
        if (transcripts[i].broken[0] != '\0') {
            snprintf(what, room, "%s: %s", c->name, transcripts[i].broken);
            return false;
        }
        if (reference < 0)
            reference = i;
        const unsigned at = first_different(&transcripts[reference], &transcripts[i]);
        if (at != UINT32_MAX) {
            snprintf(what, room, "%s and %s differ in record %u", s->configuration[reference].name, c->name, at);
            return false;
        }
    }
    return true;
}

/* ---- Printing. ---- */

static const char *const step_names[STEP_KINDS] = {"submit", "put", "take", "half_close", "hang_up", "reset", "cancel",
                                                   "cancel_fd", "cancel_all", "return_buffers"};

static void list_operation(FILE *out, const program *p, const operation *op, int number) {
    static const char *const flags[] = {"FULL", "MULTISHOT", "LINK", "LINK_ALWAYS", "DRAIN", "ZEROCOPY", "BACKGROUND"};
    static const char *const spoils[SPOILS] = {"", "unknown flag", "reserved set", "unknown kind", "huge length", "NULL",
                                               "unreadable address", "lend_max", "bad offset or count"};
    const operation_row *row = &operation_rows[op->row];
    fprintf(out, "        /* %2d */ %s(o%u /* %s */", number, row->name, op->object,
            object_rows[p->object[op->object].kind].name);
    if (row->traits & (GETS | PUTS))
        fprintf(out, ", .len = %u", op->length);
    if (row->traits & (GETS | PUTS) && row->waits == ENDS)
        fprintf(out, ", .offset = %" PRId64, op->offset);
    if (row->traits & TWO && op->second == MAX_OBJECTS)
        fprintf(out, ", /dev/null, .len = %u, .offset = %" PRId64, op->length, op->offset);
    else if (row->traits & TWO)
        fprintf(out, ", o%u /* %s */, .len = %u, .offset = %" PRId64, op->second,
                object_rows[p->object[op->second].kind].name, op->length, op->offset);
    fprintf(out, ", .variant = %#x)", op->variant);
    for (unsigned i = 0; i < COUNT_OF(flags); i++)
        if (op->flags >> i & 1)
            fprintf(out, " | %s", flags[i]);
    if (op->deadline != NO_DEADLINE)
        fprintf(out, ", %s deadline", op->deadline == SHORT ? "short" : "far");
    if (op->lends)
        fprintf(out, ", buffers, lend_max %u", op->lend_max);
    if (op->spoil != SOUND)
        fprintf(out, ", spoilt: %s", spoils[op->spoil]);
    fprintf(out, "%s\n", op->reaped ? ", reaped" : "");
}

void list_program(FILE *out, const program *p) {
    fprintf(out, "{   /* seed %" PRIu64 " */\n", p->seed);
    for (unsigned i = 0; i < p->objects; i++)
        fprintf(out, "    o%u = %s(%s);\n", i, object_rows[p->object[i].kind].name,
                p->object[i].nonblocking ? "O_NONBLOCK" : "");
    if (p->buffers != 0)
        fprintf(out, "    buffers = upcall_buffers_new(%u, %u);%s\n", p->buffers, p->buffer_size,
                p->holds ? " /* returned by steps only */" : " /* returned at once */");
    if (p->registers != 0)
        fprintf(out, "    upcall_register_buffers(memory);%s\n", p->registers == 2 ? " /* until half-way */" : "");
    for (unsigned i = 0; i < p->steps; i++) {
        const step *s = &p->step[i];
        fprintf(out, "    /* step %2u */ ", i);
        switch (s->kind) {
        case SUBMIT:
            fprintf(out, "submit%s {\n", s->foreign ? " on another thread" : "");
            for (unsigned k = 0; k < s->count; k++)
                list_operation(out, p, &s->ops[k], (int)(i * MAX_BATCH + k));
            fprintf(out, "    }%s\n", s->hasty ? " /* the next step comes at once */" : "");
            break;
        case PUT:
        case TAKE: fprintf(out, "%s(o%u, %u);\n", step_names[s->kind], s->object, s->amount); break;
        case CANCEL:
        case RETURN:
        case HALF: fprintf(out, "%s(o%u, .variant = %#x);\n", step_names[s->kind], s->object, s->variant); break;
        default: fprintf(out, "%s(o%u);\n", step_names[s->kind], s->object);
        }
    }
    fprintf(out, "    %s;\n}\n", p->by_free ? "upcall_loop_free" : "upcall_cancel_all");
}

static void print_record(FILE *out, const record *one, const transcript *log) {
    static const char *const names[] = {"submit", "left out", "events", "final", "outside", "request", "rest"};
    fprintf(out, "    step %2u %-8s", one->step, names[one->kind]);
    fprintf(out, " %3d: %" PRId64, one->which, one->result);
    if (one->result < 0 && one->result > -4096)
        fprintf(out, " (%s)", strerror((int)-one->result));
    if (one->kind == R_FINAL)
        fprintf(out, " transferred %" PRIu64 " flags %#" PRIx64, one->transferred, one->flags);
    fprintf(out, " count %" PRIu64 " hash %" PRIx64, one->count, one->hash);
    if (one->kind == R_SUBMIT && one->result < 0)
        fprintf(out, " \"%s\"", log->text[one->step]);
    fprintf(out, "\n");
}

void print_transcript(FILE *out, const transcript *log, const transcript *reference) {
    const unsigned until = reference != NULL ? first_different(log, reference) : UINT32_MAX;
    for (unsigned i = 0; i < log->count; i++) {
        if (i == until)
            fprintf(out, "  * from here on they differ\n");
        print_record(out, &log->record[i], log);
        if (until != UINT32_MAX && i > until + 6)
            break;
    }
    if (log->broken[0] != '\0')
        fprintf(out, "    %s\n", log->broken);
}

static void print_difference(const setting *s, int which, int reference) {
    if (reference != which) {
        printf("  %s:\n", s->configuration[reference].name);
        print_transcript(stdout, &transcripts[reference], &transcripts[which]);
    }
    printf("  %s:\n", s->configuration[which].name);
    print_transcript(stdout, &transcripts[which], reference != which ? &transcripts[reference] : NULL);
}

/* ---- Shrinking. ---- */

enum { TRIES = 3 };

static bool fails(const program *p, const setting *pattern, unsigned *which, char *what, size_t room) {
    for (int i = 0; i < TRIES; i++) {
        setting s = *pattern;
        for (int k = 0; k < CONFIGURATIONS; k++)
            s.configuration[k].loop = NULL;
        const bool good = agrees(p, &s, which, what, room);
        free_loops(&s);
        if (!good)
            return true;
    }
    return false;
}

static bool smaller(program *p, const program *candidate, const setting *s) {
    unsigned which;
    char what[600];
    if (!fails(candidate, s, &which, what, sizeof what))
        return false;
    *p = *candidate;
    return true;
}

static void drop_step(program *p, unsigned at) {
    memmove(&p->step[at], &p->step[at + 1], (p->steps - at - 1) * sizeof(step));
    p->steps--;
}

static void drop_operation(step *s, unsigned at) {
    memmove(&s->ops[at], &s->ops[at + 1], (s->count - at - 1u) * sizeof(operation));
    s->count--;
    if (s->count > 0)
        s->ops[s->count - 1].flags &= ~(uint32_t)(UPCALL_LINK | UPCALL_LINK_ALWAYS);
}

static bool shrink_once(program *p, const setting *s) {
    program q;
    bool smaller_now = false;
    for (unsigned i = p->steps; i-- > 0;) {
        q = *p;
        drop_step(&q, i);
        smaller_now |= smaller(p, &q, s);
    }
    for (unsigned i = 0; i < p->steps; i++) {
        for (unsigned k = p->step[i].count; k-- > 0 && p->step[i].count > 1;) {
            q = *p;
            drop_operation(&q.step[i], k);
            smaller_now |= smaller(p, &q, s);
        }
        for (unsigned k = 0; k < p->step[i].count; k++) {
            operation *op;
            for (unsigned bit = 0; bit < 7; bit++)
                if (p->step[i].ops[k].flags >> bit & 1) {
                    q = *p;
                    q.step[i].ops[k].flags &= ~(1u << bit);
                    smaller_now |= smaller(p, &q, s);
                }
            q = *p;
            op = &q.step[i].ops[k];
            if (op->deadline | op->lend_max | op->spoil | op->reaped) {
                op->deadline = op->lend_max = op->spoil = op->reaped = 0;
                smaller_now |= smaller(p, &q, s);
            }
        }
        if (p->step[i].foreign | p->step[i].hasty) {
            q = *p;
            q.step[i].foreign = q.step[i].hasty = 0;
            smaller_now |= smaller(p, &q, s);
        }
    }
    return smaller_now;
}

void report(const program *p, uint64_t block, unsigned enabled, const char *what) {
    setting s;
    unsigned which = 0;
    char now[600];
    program small = *p;
    choose_setting(&s, block, enabled);
    patience_ns = UPCALL_SECOND / 3;
    printf("\n==== seed %" PRIu64 ": %s\n", p->seed, what);
    int reference = 0;
    while (!(enabled >> reference & 1))
        reference++;
    for (int i = 0; i < CONFIGURATIONS; i++)
        if (i != reference && enabled >> i & 1 && first_different(&transcripts[reference], &transcripts[i]) != UINT32_MAX) {
            print_difference(&s, i, reference);
            break;
        }
    if (!fails(&small, &s, &which, now, sizeof now)) {
        printf("(not again with loops of its own in %d runs: it needs what came before in its block, or chance)\n", TRIES);
        list_program(stdout, p);
        patience_ns = 5 * UPCALL_SECOND;
        return;
    }
    while (shrink_once(&small, &s)) {
    }
    fails(&small, &s, &which, now, sizeof now);
    printf("smallest: %s\n  entries %u, max_events %u, workers %u; masked: %s\n", now, s.entries, s.max_events, s.workers,
           s.configuration[2].mask);
    list_program(stdout, &small);
    print_difference(&s, (int)which, reference);
    fflush(stdout);
    patience_ns = 5 * UPCALL_SECOND;
}
