/*
 * upcall_loop_free() against what is in flight: reads that bypass the cache, which nobody can interrupt; reads of cached
 * memory files; receives whose data arrives just now; work on the pool.
 *
 * The invariant: when upcall_loop_free() has returned, every operation has had its one final event, and nothing writes its
 * memory, neither the kernel nor a thread. The memory is unmapped where the library knows it, so that a thread which still
 * writes there dies; and filled through a second mapping, where what the kernel writes late is seen rounds later. hazards
 * rows 1, 36, 44.
 */
#include "race.h"

enum { READS = 16, PIECE = 65536, SIZE = READS * PIECE, ROUNDS_KEPT = 8 };

/* One round's memory: a file mapped twice. */
struct area {
    int fd;
    unsigned char *lent, *ours;
};
static struct area areas[ROUNDS_KEPT];

static void map_area(struct area *area) {
    if (area->ours == NULL) {
        area->fd = memfd_create("race", MFD_CLOEXEC);
        CHECK(area->fd >= 0 && ftruncate(area->fd, SIZE) == 0);
        area->ours = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, area->fd, 0);
        CHECK(area->ours != MAP_FAILED);
    } else if (!oracle_all(area->ours, SIZE, ORACLE_DEAD)) {
        fail(HERE, "memory was written after upcall_loop_free() had returned");
    }
    area->lent = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, area->fd, 0);
    CHECK(area->lent != MAP_FAILED);
}

static void unmap_area(struct area *area) {
    CHECK(munmap(area->lent, SIZE) == 0);
    memset(area->ours, ORACLE_DEAD, SIZE);
}

static void keep_result(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    *(int64_t *)event->user = event->result;
}

static int64_t fill(void *memory) {
    memset(memory, 1, PIECE);
    return PIECE;
}

enum way { DIRECT, CACHED, RECEIVE, WORK };

static int writer_fds[READS];
static struct steering edge = {.most = 1 << 18};
static struct meeting place;
static uint64_t step;
static void write_to_all(void *arg) {
    (void)arg;
    meet(&place, 1, step);
    spin(jitter(&edge, 0));
    for (int i = 0; i < READS; i++)
        CHECK_EQ(send(writer_fds[i], "abcdefgh", 8, MSG_NOSIGNAL), 8);
}

static void race_free(enum way way) {
    struct partner partner;
    int file = -1, fds[READS][2];
    uint64_t round = 0;
    warm_up();
    struct oracle_footing before = oracle_stand();
    memset(areas, 0, sizeof areas);
    if (way == DIRECT || way == CACHED) {
        file = way == CACHED ? memfd_create("data", MFD_CLOEXEC) : temp_file(SIZE);
        CHECK(file >= 0 && ftruncate(file, SIZE) == 0);
        void *probe = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(fsync(file) == 0);
        if (way == DIRECT && (fcntl(file, F_SETFL, O_DIRECT) != 0 || pread(file, probe, 4096, 0) != 4096))
            SKIP("the file system has no O_DIRECT");
        munmap(probe, 4096);
    }
    for (int i = 0; i < READS; i++) {
        unix_pair(fds[i]);
        writer_fds[i] = fds[i][1];
    }
    partner_start(&partner, write_to_all, NULL);
    struct oracle *oracle = oracle_new();
    race.share = 10;
    while (race_on()) {
        struct area *area = &areas[round++ % ROUNDS_KEPT];
        upcall_config config = default_config();
        upcall_op ops[READS];
        int64_t results[READS];
        uint64_t sides[2] = {0, 0};
        config.workers = 2 + (uint32_t)dice(4);
        upcall_loop *loop = loop_with(&config);
        map_area(area);
        for (int i = 0; i < READS; i++) {
            unsigned char *piece = area->lent + (size_t)i * PIECE;
            ops[i] = way == RECEIVE ? upcall_op_recv(fds[i][0], piece, PIECE, 0)
                     : way == WORK  ? upcall_op_work(fill, piece)
                                    : upcall_op_pread(file, piece, PIECE, (int64_t)i * PIECE);
            ops[i].callback = keep_result;
            ops[i].user = &results[i];
        }
        CHECK_EQ(oracle_submit(oracle, loop, ops, READS, NULL), 0);
        for (uint64_t turns = dice(3); turns > 0; turns--)
            CHECK(upcall_poll(loop, 0) >= 0);
        if (way == RECEIVE) {
            step++;
            sem_post(&partner.go);
            meet(&place, 0, step);
        }
        spin(jitter(&edge, 1));
        if (dice(2))
            CHECK(upcall_poll(loop, 0) >= 0);
        CHECK_EQ(upcall_loop_free(loop), 0);
        CHECK_EQ(oracle->ended, oracle->accepted);
        unmap_area(area);
        if (way == RECEIVE)
            wait_for(&partner.done);
        for (int i = 0; i < READS; i++) {
            bool cancelled = results[i] == -ECANCELED;
            CHECK(cancelled || results[i] == (way == RECEIVE ? 8 : PIECE));
            if (way == RECEIVE) /* what was not received is still there */
                CHECK_EQ(drain_fd(fds[i][0]), cancelled ? 8 : 0);
            sides[cancelled]++;
        }
        race_score(sides[0], sides[1]);
        steer(&edge, sides[0], sides[1]);
    }
    partner_end(&partner);
    for (int i = 0; i < ROUNDS_KEPT; i++)
        if (areas[i].ours) {
            CHECK(oracle_all(areas[i].ours, SIZE, ORACLE_DEAD));
            munmap(areas[i].ours, SIZE);
            close(areas[i].fd);
        }
    oracle_free(oracle);
    for (int i = 0; i < READS; i++)
        close_pair(fds[i]);
    close(file);
    oracle_check_footing(&before, 1 << 18);
    race_end("completed", "cancelled");
}

RACE(free_and_direct_reads) {
    race.one_sided = true; /* a ring cannot interrupt them */
    race_free(DIRECT);
}
RACE(free_and_cached_reads) {
    race.one_sided = true;
    race_free(CACHED);
}
RACE(free_and_receives) { race_free(RECEIVE); }
RACE(free_and_work) { race_free(WORK); }
