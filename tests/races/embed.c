/*
 * A host sleeps in poll(2) on upcall_fd() while completions, posts, submissions, cancels, deadlines and returned buffers come.
 *
 * The invariant: whenever upcall_poll(loop, 0) would do anything, the descriptor is readable; a host that sleeps without limit
 * misses nothing. The sides: it was readable at once, or the host had to be woken. hazards rows 13, 40.
 */
#include "race.h"

static upcall_loop *loop;
static struct oracle *oracle;
static struct meeting place;
static struct steering edge = {.most = 1 << 15};
static uint64_t step;
static unsigned heard;
static int pair_fds[2], pipe_fds[2], listener;
static struct sockaddr_un address;
static socklen_t length;
static upcall_id waiting;
static upcall_buffers *pool;
static void *lent;
static char byte;

static void hear(upcall_loop *where, const upcall_event *event) {
    (void)where;
    CHECK(event->result >= 0 || event->result == -ECANCELED || event->result == -ETIMEDOUT);
    if (event->kind == UPCALL_OP_ACCEPT)
        close((int)event->result);
    if (event->buffer)
        lent = event->buffer;
    heard++;
}
static void hear_post(upcall_loop *where, void *arg) {
    (void)where;
    (void)arg;
    heard++;
}
static void submit(upcall_op op) {
    op.callback = hear;
    CHECK_EQ(oracle_submit(oracle, loop, &op, 1, &waiting), 0);
}

struct way {
    void (*prepare)(void); /* on the loop's thread; a turn may follow */
    void (*happen)(void);  /* on the other; NULL: by itself */
};

static void nothing(void) {}
static void receive(void) { submit(upcall_op_recv(pair_fds[0], &byte, 1, 0)); }
static void send_byte(void) { write_all(pair_fds[1], "x", 1); }
static void read_pipe(void) { submit(upcall_op_read(pipe_fds[0], &byte, 1)); }
static void write_pipe(void) { write_all(pipe_fds[1], "x", 1); }
static void accept_one(void) { submit(upcall_op_accept(listener, NULL, NULL, 0)); }
static void connect_one(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, length) == 0);
    close(fd);
}
static void post(void) { CHECK_EQ(upcall_post(loop, hear_post, NULL), 0); }
static void submit_nop(void) { submit(upcall_op_nop()); }
static void sleep_long(void) { submit(upcall_op_sleep(3600 * UPCALL_SECOND)); }
static void cancel(void) { CHECK_EQ(upcall_cancel(loop, waiting), 0); }
static void sleep_shortly(void) { submit(upcall_op_sleep(1 + 8 * jitter(&edge, 1))); }
static int64_t spin_a_little(void *arg) {
    spin((uintptr_t)arg);
    return 0;
}
static void work(void) { submit(upcall_op_work(spin_a_little, (void *)(uintptr_t)jitter(&edge, 1))); }
static void dry_up(void) {
    for (int i = lent == NULL ? 0 : 1; i < 2; i++) {
        upcall_op op = upcall_op_recv(pair_fds[0], NULL, 1, 0);
        op.buffers = pool;
        send_byte();
        submit(op);
        while (i == 0 && lent == NULL)
            CHECK(upcall_poll(loop, -1) >= 0);
    }
    heard = 0;
}
static void return_buffer(void) {
    void *buffer = lent;
    lent = NULL;
    CHECK_EQ(upcall_buffers_return(pool, buffer), 0);
}

static const struct way *way;
static void happen(void *arg) {
    (void)arg;
    meet(&place, 1, step);
    spin(jitter(&edge, 1));
    way->happen();
}

static void race_embed(const struct way *chosen) {
    struct partner partner;
    warm_up();
    struct oracle_footing before = oracle_stand();
    way = chosen;
    oracle = oracle_new();
    loop = new_loop();
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_buffers_new(loop, 1, 64, &pool), 0);
    int fd = upcall_fd(loop);
    CHECK(fd >= 0);
    unix_pair(pair_fds);
    pipe_pair(pipe_fds);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    length = sizeof address;
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &length) == 0 && listen(listener, 8) == 0);
    partner_start(&partner, happen, NULL);
    while (race_on()) {
        heard = 0;
        way->prepare();
        for (uint64_t turns = dice(3); turns > 0; turns--)
            CHECK(upcall_poll(loop, 0) >= 0);
        if (way->happen) {
            step++;
            sem_post(&partner.go);
            meet(&place, 0, step);
        }
        spin(jitter(&edge, 0));
        bool woken = false;
        while (heard == 0) {
            bool at_once = is_readable(fd, 0);
            if (!at_once) {
                woken = true;
                CHECK(is_readable(fd, -1));
            }
            CHECK(upcall_poll(loop, 0) >= 0);
        }
        if (way->happen)
            wait_for(&partner.done);
        CHECK_EQ(heard, 1);
        race_score(!woken, woken);
        steer(&edge, woken, !woken);
    }
    partner_end(&partner);
    if (lent)
        CHECK_EQ(upcall_buffers_return(pool, lent), 0);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    close_pair(pair_fds);
    close_pair(pipe_fds);
    close(listener);
    oracle_free(oracle);
    oracle_check_footing(&before, 1 << 18);
    race_end("readable at once", "woken");
}

RACE(receive_and_host) { race_embed(&(struct way){receive, send_byte}); }
RACE(pipe_and_host) { race_embed(&(struct way){read_pipe, write_pipe}); }
RACE(accept_and_host) { race_embed(&(struct way){accept_one, connect_one}); }
RACE(post_and_host) { race_embed(&(struct way){nothing, post}); }
RACE(submission_and_host) { race_embed(&(struct way){nothing, submit_nop}); }
RACE(cancel_and_host) { race_embed(&(struct way){sleep_long, cancel}); }
RACE(sleep_and_host) { race_embed(&(struct way){sleep_shortly, NULL}); }
RACE(work_and_host) { race_embed(&(struct way){work, NULL}); }
RACE(buffer_and_host) { race_embed(&(struct way){dry_up, return_buffer}); }
