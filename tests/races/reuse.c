/*
 * A descriptor's number is closed by plain close(2), with nothing in flight, and is another socket at once; its next receive
 * is submitted while data arrives on the new socket, and, where the old one was kept open elsewhere, on the old one too.
 *
 * The invariant: the operation gets the new socket's bytes, all of them, in order, and never waits for ever; the old socket's
 * bytes stay where they are. The sides: the data was there before the operation waited, or came after. hazards rows 11, 12.
 */
#include "race.h"

enum { NUMBERS = 32, SIZE = 8 };

struct number {
    int fd, peer, old, old_peer; /* old: a duplicate of the socket that had the number before; -1: none */
    int64_t result;
    void *memory;
};

static upcall_loop *loop;
static struct oracle *oracle;
static struct number numbers[NUMBERS];
static struct meeting place;
static struct steering edge;
static uint64_t delays[2][NUMBERS];
static atomic_bool written[NUMBERS];

static void on_receive(upcall_loop *where, const upcall_event *event) {
    (void)where;
    ((struct number *)event->user)->result = event->result;
}

static void arrive(void *arg) {
    (void)arg;
    for (int i = 0; i < NUMBERS; i++) {
        uint8_t bytes[SIZE];
        meet(&place, 1, (uint64_t)i + 1);
        spin(delays[0][i]);
        if (numbers[i].old >= 0)
            CHECK_EQ(write(numbers[i].old_peer, "old data", 8), 8);
        fill_pattern(bytes, SIZE, (uint64_t)i);
        CHECK_EQ(write(numbers[i].peer, bytes, SIZE), SIZE);
        written[i] = true;
    }
}

RACE(reuse_and_arrival) {
    struct partner partner;
    warm_up();
    struct oracle_footing before = oracle_stand();
    oracle = oracle_new();
    oracle->nobody_cancels = true;
    loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    for (int i = 0; i < NUMBERS; i++) {
        int fds[2];
        unix_pair(fds);
        numbers[i] = (struct number){.fd = fds[0], .peer = fds[1], .old = -1, .old_peer = -1};
    }
    partner_start(&partner, arrive, NULL);
    while (race_on()) {
        for (int i = 0; i < NUMBERS; i++) {
            struct number *n = &numbers[i];
            int fds[2];
            written[i] = false;
            n->old = dice(2) ? fcntl(n->fd, F_DUPFD_CLOEXEC, 0) : -1;
            n->old_peer = n->old >= 0 ? n->peer : -1;
            if (n->old < 0)
                close(n->peer);
            dice(4) ? unix_pair(fds) : pipe_pair(fds);
            CHECK_EQ(dup3(fds[0], n->fd, O_CLOEXEC), n->fd); /* closes the old one */
            close(fds[0]);
            n->peer = fds[1];
            delays[0][i] = jitter(&edge, 0);
            delays[1][i] = jitter(&edge, 1);
        }
        atomic_store(&place.here[0], 0);
        atomic_store(&place.here[1], 0);
        sem_post(&partner.go);
        uint64_t sides[2] = {0, 0}, often = 1 + dice(8);
        for (int i = 0; i < NUMBERS; i++) {
            struct number *n = &numbers[i];
            n->memory = oracle_lend(oracle, 32);
            upcall_op op = upcall_op_read(n->fd, n->memory, 32);
            op.callback = on_receive;
            op.user = n;
            n->result = 0;
            meet(&place, 0, (uint64_t)i + 1);
            spin(delays[1][i]);
            sides[!written[i]]++;
            CHECK_EQ(oracle_submit(oracle, loop, &op, 1, NULL), 0);
            if ((uint64_t)i % often == 0)
                CHECK(upcall_poll(loop, 0) >= 0);
        }
        for (int i = 0; i < NUMBERS; i++) {
            struct number *n = &numbers[i];
            while (n->result == 0)
                CHECK(upcall_poll(loop, -1) >= 0);
            CHECK_EQ(n->result, SIZE);
            CHECK(has_pattern(n->memory, SIZE, (uint64_t)i));
            oracle_check_untouched(n->memory, SIZE);
            oracle_give_back(oracle, n->memory);
        }
        wait_for(&partner.done);
        for (int i = 0; i < NUMBERS; i++)
            if (numbers[i].old >= 0) {
                CHECK_EQ(drain_fd(numbers[i].old), 8);
                close(numbers[i].old);
                close(numbers[i].old_peer);
            }
        race_score(sides[0], sides[1]);
        steer(&edge, sides[0], sides[1]);
    }
    partner_end(&partner);
    for (int i = 0; i < NUMBERS; i++) {
        close(numbers[i].fd);
        close(numbers[i].peer);
    }
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("data first", "operation first");
}
