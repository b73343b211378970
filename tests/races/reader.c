/*
 * A read-ahead reader that several threads use at once: they take blocks, one waiting, one polling the descriptor, and give
 * them back, in any order; and readers that are freed while blocks are in flight.
 *
 * The invariant: every block comes to exactly one thread, with its bytes, and stays as it is until it is given back; all come,
 * and then the end, to every thread. The sides: which thread got the block; the reader was freed before its first block, or
 * after. hazards row 1.
 */
#include "race.h"

enum { BLOCK = 4096, BLOCKS = 256 };

static upcall_reader *reader;
static int file;
static atomic_uchar seen[BLOCKS];
static uint64_t got[2];
static struct meeting place;
static struct steering edge;

static void set_up_file(void) {
    uint32_t block[BLOCK / 4];
    file = temp_file(0);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        for (uint32_t k = 0; k < COUNT_OF(block); k++)
            block[k] = i * 0x10001u + k;
        CHECK_EQ(write(file, block, sizeof block), sizeof block);
    }
}

static void check_block(const uint32_t *block, uint32_t number) {
    for (uint32_t k = 0; k < BLOCK / 4; k++)
        CHECK_EQ(block[k], number * 0x10001u + k);
}

/* Takes blocks until the end; keeps up to two. */
static void consume(unsigned me, uint64_t random) {
    const void *kept = NULL;
    uint32_t kept_number = 0;
    for (;;) {
        const void *block;
        int64_t size = me ? upcall_reader_next(reader, &block) : upcall_reader_wait(reader, &block, MS(1000));
        if (size == -EAGAIN) {
            if (me)
                is_readable(upcall_reader_fd(reader), 1); /* or another takes it first */
            if (kept) { /* all may be lent */
                check_block(kept, kept_number);
                CHECK_EQ(upcall_reader_release(reader, kept), 0);
                kept = NULL;
            }
            continue;
        }
        if (size == 0)
            break;
        CHECK_EQ(size, BLOCK);
        uint32_t number;
        memcpy(&number, block, sizeof number);
        number /= 0x10001u;
        CHECK(number < BLOCKS);
        check_block(block, number);
        CHECK_EQ(atomic_fetch_add(&seen[number], 1), 0);
        got[me]++;
        spin(chance(&random) % 2000);
        if (kept) {
            check_block(kept, kept_number);
            CHECK_EQ(upcall_reader_release(reader, kept), 0);
            kept = NULL;
        }
        if (chance(&random) % 2) {
            kept = block;
            kept_number = number;
        } else {
            CHECK_EQ(upcall_reader_release(reader, block), 0);
        }
    }
    if (kept)
        CHECK_EQ(upcall_reader_release(reader, kept), 0);
}

static uint64_t other_random;
static void consume_too(void *arg) {
    (void)arg;
    meet(&place, 1, 1);
    consume(1, other_random);
}

static upcall_reader *new_reader(void) {
    upcall_reader_config config;
    upcall_reader *made = NULL;
    upcall_reader_config_init(&config);
    config.block_size = BLOCK;
    config.depth = 1 + (uint32_t)dice(8);
    CHECK_EQ(upcall_reader_new(file, &config, &made), 0);
    return made;
}

RACE(take_and_take) {
    struct partner partner;
    warm_up();
    set_up_file();
    struct oracle_footing before = oracle_stand();
    partner_start(&partner, consume_too, NULL);
    while (race_on()) {
        memset(seen, 0, sizeof seen);
        got[0] = got[1] = 0;
        reader = new_reader();
        other_random = dice(UINT64_MAX);
        atomic_store(&place.here[0], 0);
        atomic_store(&place.here[1], 0);
        sem_post(&partner.go);
        meet(&place, 0, 1);
        consume(0, dice(UINT64_MAX));
        wait_for(&partner.done);
        CHECK_EQ(got[0] + got[1], BLOCKS);
        CHECK_EQ(upcall_reader_free(reader), 0);
        race_score(got[0], got[1]);
    }
    partner_end(&partner);
    oracle_check_footing(&before, 1 << 18);
    race_end("by one that waited", "by one that polled");
}

RACE(free_and_read_ahead) {
    warm_up();
    set_up_file();
    struct oracle_footing before = oracle_stand();
    race.share = 10;
    while (race_on()) {
        const void *block;
        reader = new_reader();
        spin(jitter(&edge, 0));
        bool ready = upcall_reader_next(reader, &block) == BLOCK;
        if (ready)
            check_block(block, 0);
        CHECK_EQ(upcall_reader_free(reader), 0);
        race_score(!ready, ready);
        steer(&edge, !ready, ready);
    }
    oracle_check_footing(&before, 1 << 18);
    race_end("before", "after");
}
