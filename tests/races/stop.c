/*
 * upcall_stop() against upcall_run(), with posts around it; upcall_hold() and upcall_unhold().
 *
 * The invariant: each stop ends the run that is under way, or the next one, and only one of them; a run that is held does not
 * return 0 before the last hold was given up, and does then; every post runs exactly once, those of one thread in order,
 * whatever stops the run. hazards rows 13, 40.
 */
#include "race.h"

static upcall_loop *loop;
static struct meeting place;
static struct steering edge = {.most = 1 << 14};
static uint64_t step, posted;
static uint64_t ran; /* posts; the loop's thread */
static atomic_bool running, given_up, stopped;
static bool stop_seen_running;
static unsigned posts;

static void run_post(upcall_loop *where, void *arg) {
    (void)where;
    CHECK_EQ((uint64_t)(uintptr_t)arg, ran);
    ran++;
}

static void post_some(void) {
    for (unsigned i = 0; i < posts; i++)
        CHECK_EQ(upcall_post(loop, run_post, (void *)(uintptr_t)posted++), 0);
}

static void stoppers_part(void *arg) {
    (void)arg;
    meet(&place, 1, step);
    post_some();
    spin(jitter(&edge, 1));
    stop_seen_running = running;
    stopped = true;
    CHECK_EQ(upcall_stop(loop), 0);
    post_some();
}

RACE(stop_and_run) {
    struct partner partner;
    warm_up();
    struct oracle_footing before = oracle_stand();
    loop = new_loop();
    CHECK_EQ(upcall_hold(loop), 0);
    partner_start(&partner, stoppers_part, NULL);
    while (race_on()) {
        posts = (unsigned)dice(4);
        stopped = false;
        step++;
        sem_post(&partner.go);
        meet(&place, 0, step);
        spin(jitter(&edge, 0));
        running = true;
        CHECK_EQ(upcall_run(loop), 1); /* held: nothing else ends it */
        running = false;
        CHECK(stopped);
        wait_for(&partner.done);
        race_score(stop_seen_running, !stop_seen_running);
        steer(&edge, stop_seen_running, !stop_seen_running);
        if (dice(4) == 0) { /* the stop is used up: without a hold a run ends by itself, after all posts */
            CHECK_EQ(upcall_unhold(loop), 0);
            CHECK_EQ(upcall_run(loop), 0);
            CHECK_EQ(ran, posted);
            CHECK_EQ(upcall_hold(loop), 0);
        }
    }
    partner_end(&partner);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(ran, posted);
    oracle_check_footing(&before, 1 << 18);
    race_end("while it ran", "before");
}

static unsigned holds;
static void holders_part(void *arg) {
    (void)arg;
    meet(&place, 1, step);
    for (unsigned i = 0; i < holds; i++) { /* one more, one less */
        CHECK_EQ(upcall_hold(loop), 0);
        CHECK_EQ(upcall_unhold(loop), 0);
    }
    post_some();
    spin(jitter(&edge, 1));
    stop_seen_running = running;
    given_up = true;
    CHECK_EQ(upcall_unhold(loop), 0);
}

RACE(unhold_and_run) {
    struct partner partner;
    warm_up();
    struct oracle_footing before = oracle_stand();
    loop = new_loop();
    partner_start(&partner, holders_part, NULL);
    while (race_on()) {
        holds = (unsigned)dice(4);
        posts = (unsigned)dice(4);
        given_up = false;
        CHECK_EQ(upcall_hold(loop), 0);
        step++;
        sem_post(&partner.go);
        meet(&place, 0, step);
        spin(jitter(&edge, 0));
        running = true;
        CHECK_EQ(upcall_run(loop), 0);
        running = false;
        CHECK(given_up);
        CHECK_EQ(ran, posted);
        wait_for(&partner.done);
        race_score(stop_seen_running, !stop_seen_running);
        steer(&edge, stop_seen_running, !stop_seen_running);
    }
    partner_end(&partner);
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_check_footing(&before, 1 << 18);
    race_end("while it ran", "before");
}
