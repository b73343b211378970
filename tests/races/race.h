/*
 * What the race tests share. A race is two things that happen at about the same moment, made to happen again and again with
 * their distance in time swept across the point where the outcome changes. Each program says at its top what must hold
 * whichever comes first; the oracle watches every operation besides.
 *
 *     RACE(name) { while (race_on()) { ...; race_score(first, second); } }
 *
 * counts how often each side came first, and fails when one of them hardly ever did: then nothing was tested.
 *
 *     program [--count N] [--seconds S] [--seed N] [part of a name]...
 *
 * --count: races of each kind; 20000. --seconds: instead, for each kind. The backend comes from UPCALL_BACKEND. Exit
 * status: 0, 1 (a promise was broken, or a race had one side only), 77 (nothing was run).
 */
#ifndef RACE_H
#define RACE_H

#define CHECK_OWN_MAIN
#include "../oracle/oracle.h"

#include <sched.h>
#include <semaphore.h>

HELPER uint64_t race_count = 20000, race_seed = 1;
HELPER double race_seconds;

/* ---- The race that runs. ---- */

HELPER struct {
    const char *name;
    uint64_t goal, done; /* races */
    uint64_t side[2];
    uint64_t until, begun;
    uint64_t tick;
    unsigned share; /* 1: as many races as asked for; n: the n-th part, for what takes n times as long */
    bool one_sided; /* which side comes first cannot be told: only the total counts */
} race = {.share = 1};

HELPER _Thread_local uint64_t race_random = 1;

HELPER uint64_t dice(uint64_t sides) {
    return chance(&race_random) % sides;
}

/* The side that came first less often. */
HELPER uint64_t race_least(void) {
    return race.side[0] < race.side[1] ? race.side[0] : race.side[1];
}

/*
 * Whether to go on. Each batch must come to its end within two minutes. What had one side only goes on for a while: on a busy
 * machine the steering takes longer to find the edge.
 */
HELPER bool race_on(void) {
    if (race.begun == 0) {
        race.begun = now_ns();
        race.until = race_seconds > 0 ? race.begun + (uint64_t)(race_seconds * 1e9) : UINT64_MAX;
        race.goal = race_seconds > 0 ? UINT64_MAX : race_count / race.share > 0 ? race_count / race.share : 1;
    }
    if (race.tick++ % 16 == 0)
        alarm((unsigned)(120 * slowness()));
    if (race.done >= 2000 && race.done >= race.goal && race_least() == 0 && !race.one_sided)
        return now_ns() < race.begun + UINT64_C(30000000000);
    return race.done < race.goal && now_ns() < race.until;
}

HELPER void race_score(uint64_t first, uint64_t second) {
    race.side[0] += first;
    race.side[1] += second;
    race.done += first + second;
}

/* What each side is called. A side needs one in a thousand; a short run needs one, a very short one none. */
HELPER void race_end(const char *first, const char *second) {
    uint64_t least = race_least();
    double us = (double)(now_ns() - race.begun) / 1e3 / (double)(race.done ? race.done : 1);
    alarm(0);
    printf("         %s: %" PRIu64 " races, %" PRIu64 " %s, %" PRIu64 " %s, %.2f us each\n", race.name, race.done,
           race.side[0], first, race.side[1], second, us);
    fflush(stdout);
    if (!race.one_sided && race.done >= 2000 && least < (race.done < 100000 ? 1 : race.done / 1000))
        fail(HERE, "%s was one-sided: it tested nothing", race.name);
}

/* What the library opens once per process is open after this, and a sanitizer has the thread it needs. */
HELPER void *do_nothing(void *arg) {
    return arg;
}
HELPER void warm_up(void) {
    join(start(do_nothing, NULL));
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    free_loop(loop);
}

/* ---- Two threads that meet. ---- */

HELPER void spin(uint64_t turns) {
    while (turns-- > 0)
        __asm__ volatile("" ::: "memory");
}

/* A place where two threads wait for each other, for a few microseconds at most: the other one may not be running. */
struct meeting {
    _Alignas(64) atomic_uint_fast64_t here[2];
};

HELPER void meet(struct meeting *place, int me, uint64_t step) {
    atomic_store_explicit(&place->here[me], step, memory_order_release);
    for (int turns = 0; turns < 3000; turns++)
        if (atomic_load_explicit(&place->here[!me], memory_order_acquire) >= step)
            return;
}

/* Keeps a race on the edge: who came first too often is held up next time, by more and more while that does not help. */
struct steering {
    int64_t lead; /* > 0: the first side waits so long, < 0: the second */
    int64_t step, most;
    uint64_t first, second;
};

HELPER void steer(struct steering *s, uint64_t first, uint64_t second) {
    s->first += first;
    s->second += second;
    uint64_t all = s->first + s->second;
    if (all < 64)
        return;
    int64_t direction = s->first * 10 > all * 6 ? 1 : s->second * 10 > all * 6 ? -1 : 0;
    if (direction == 0 || s->step * direction <= 0)
        s->step = 8 * (direction ? direction : 1);
    else if (s->step * direction < 1 << 14)
        s->step *= 2;
    if (direction)
        s->lead += s->step;
    int64_t most = s->most ? s->most : 1 << 17;
    s->lead = s->lead > most ? most : s->lead < -most ? -most : s->lead;
    s->first = s->second = 0;
}

/* How long a side waits: its part of the lead, and by chance a little, more, or much. */
HELPER uint64_t jitter(const struct steering *s, int side) {
    static const uint64_t width[] = {1, 64, 512, 4096};
    int64_t lead = side == 0 ? s->lead : -s->lead;
    return (lead > 0 ? (uint64_t)lead : 0) + dice(width[dice(COUNT_OF(width))]);
}

/* A second thread that runs `turn` when it is told to. */
struct partner {
    pthread_t thread;
    sem_t go, done;
    void (*turn)(void *);
    void *arg;
    bool leave;
};

HELPER void wait_for(sem_t *sem) {
    while (sem_wait(sem) != 0)
        CHECK_EQ(errno, EINTR);
}

HELPER void *partner_run(void *arg) {
    struct partner *p = arg;
    race_random = race_seed + 1;
    for (;;) {
        wait_for(&p->go);
        if (p->leave)
            return NULL;
        p->turn(p->arg);
        sem_post(&p->done);
    }
}

HELPER void partner_start(struct partner *p, void (*turn)(void *), void *arg) {
    *p = (struct partner){.turn = turn, .arg = arg};
    CHECK(sem_init(&p->go, 0, 0) == 0 && sem_init(&p->done, 0, 0) == 0);
    p->thread = start(partner_run, p);
}

HELPER void partner_end(struct partner *p) {
    p->leave = true;
    sem_post(&p->go);
    join(p->thread);
}

/* ---- The programs. ---- */

#define RACE(name_)                                                                                                    \
    static void race_##name_(void);                                                                                    \
    TEST(name_) {                                                                                                      \
        race.name = #name_;                                                                                            \
        race_##name_();                                                                                                \
    }                                                                                                                  \
    static void race_##name_(void)

int main(int argc, char **argv) {
    const char *wanted[32];
    int parts = 0;
    unsigned ran = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--count") == 0 && has_value)
            race_count = strtoull(argv[++i], NULL, 0);
        else if (strcmp(argv[i], "--seconds") == 0 && has_value)
            race_seconds = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--seed") == 0 && has_value)
            race_seed = strtoull(argv[++i], NULL, 0);
        else if (argv[i][0] != '-' && parts < (int)COUNT_OF(wanted))
            wanted[parts++] = argv[i];
        else {
            fprintf(stderr, "usage: %s [--count N] [--seconds S] [--seed N] [part of a name]...\n", argv[0]);
            return 2;
        }
    }
    if (backend_denied() != NULL) {
        printf("skipped: %s\n", backend_denied());
        return 77;
    }
    for (struct test *test = first_test; test; test = test->next) {
        bool runs = parts == 0;
        for (int i = 0; i < parts; i++)
            runs = runs || strstr(test->name, wanted[i]) != NULL;
        if (!runs)
            continue;
        race_random = race_seed;
        test->seconds = 24 * 3600; /* race_on() sees what hangs */
        int result = run_test(test);
        ran += result != 77;
        failed += result != 0 && result != 77;
        if (result > 1000)
            printf("FAILED   %s: %s%s\n", test->name, strsignal(result - 1000),
                   result == 1000 + SIGALRM ? " (a race came to no end)" : "");
        else
            printf("%s %s\n", result == 0 ? "ok      " : result == 77 ? "skipped " : "FAILED  ", test->name);
    }
    printf("%u run, %u failed\n", ran, failed);
    return failed ? 1 : ran ? 0 : 77;
}

#endif
