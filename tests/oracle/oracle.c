/* The oracle sees what it is there to see: each way to break a promise ends a child of this test, and a loop that keeps
   them all does not. */
#include "oracle.h"

static struct oracle *oracle;
static upcall_loop *loop;
static upcall_event last;
static void *told;

static void keep(upcall_loop *where, const upcall_event *event) {
    (void)where;
    last = *event;
    told = event->user;
}

static upcall_op with(upcall_op op) {
    op.callback = keep;
    op.user = &last;
    return op;
}

/* An operation that has ended, as the library's event of it was. */
static upcall_event ended(void) {
    upcall_op op = with(upcall_op_nop());
    upcall_id id;
    CHECK_EQ(oracle_submit(oracle, loop, &op, 1, &id), 0);
    struct oracle_entry *entry = oracle->chunks[0];
    while (!entry->live)
        entry++;
    while (oracle->ended < oracle->accepted)
        CHECK(upcall_poll(loop, -1) >= 0);
    CHECK(told == &last);
    upcall_event event = last;
    event.user = entry;
    return event;
}

/* One that is in flight. */
static upcall_event waiting(uint32_t flags) {
    upcall_op op = with(upcall_op_sleep(3600 * UPCALL_SECOND));
    upcall_event event = {.kind = op.kind};
    op.flags = flags;
    CHECK_EQ(oracle_submit(oracle, loop, &op, 1, &event.id), 0);
    struct oracle_entry *entry = oracle->chunks[0];
    while (!entry->live)
        entry++;
    event.user = entry;
    return event;
}

static void say(upcall_event event) {
    oracle_callback(loop, &event);
}

static void nothing_wrong(void) {
    ended();
    upcall_event event = waiting(UPCALL_MULTISHOT);
    CHECK_EQ(upcall_cancel(loop, event.id), 0);
}
static void second_final(void) { say(ended()); }
static void more_after_the_final(void) {
    upcall_event event = ended();
    event.flags = UPCALL_MORE;
    say(event);
}
static void no_final(void) {
    waiting(0);
    oracle_check_ended(oracle);
}
static void other_id(void) {
    upcall_event event = waiting(0);
    event.id ^= UINT64_C(1) << 40;
    say(event);
}
static void other_kind(void) {
    upcall_event event = waiting(0);
    event.kind = UPCALL_OP_NOP;
    say(event);
}
static void other_user(void) {
    upcall_event event = waiting(0);
    upcall_callback callback;
    event.user = &last;
    oracle_hear(oracle, &event, &callback);
}
static void more_of_a_one_shot(void) {
    upcall_event event = waiting(0);
    event.flags = UPCALL_MORE;
    say(event);
}
static void expired_without_a_deadline(void) {
    upcall_event event = waiting(0);
    event.flags = UPCALL_EXPIRED;
    event.result = -ETIMEDOUT;
    say(event);
}
static void cancelled_by_nobody(void) {
    upcall_event event = waiting(0);
    oracle->nobody_cancels = true;
    event.result = -ECANCELED;
    say(event);
}
static void interrupted(void) {
    upcall_event event = waiting(0);
    event.result = -EINTR;
    say(event);
}
static void written_before(void) {
    char *memory = oracle_lend(oracle, 100);
    memory[-1] = 0;
    oracle_give_back(oracle, memory);
}
static void written_behind(void) {
    char *memory = oracle_lend(oracle, 8192);
    memory[8192] = 0;
    oracle_give_back(oracle, memory);
}
static void written_beyond(void) {
    char *memory = oracle_lend(oracle, 100);
    memset(memory, 1, 11);
    oracle_check_untouched(memory, 10);
}
static void written_late(void) {
    char *memory = oracle_lend(oracle, 100);
    oracle_give_back(oracle, memory);
    memory[50] = 0;
    for (int i = 0; i <= ORACLE_HELD; i++)
        oracle_give_back(oracle, oracle_lend(oracle, 100));
}
static void bytes(uint64_t at, uint64_t from, size_t size) {
    uint8_t memory[64];
    struct oracle_stream stream = {200, at};
    fill_pattern(memory, size, from);
    oracle_take(&stream, memory, size);
}
static void byte_lost(void) { bytes(20, 21, 10); }
static void byte_twice(void) { bytes(20, 19, 10); }
static void bytes_from_nowhere(void) { bytes(195, 195, 10); }
static void bytes_left(void) {
    oracle_check_empty(&(struct oracle_stream){200, 199});
}
static void descriptor_left(void) {
    struct oracle_footing before = oracle_stand();
    CHECK(dup(1) >= 0);
    oracle_check_footing(&before, 0);
}
static void memory_left(void) {
    struct oracle_footing before = oracle_stand();
    void *volatile left = malloc(1 << 20);
    CHECK(left != NULL);
    oracle_check_footing(&before, 1000);
}

static void child(void *run) {
    oracle = oracle_new();
    loop = new_loop();
    ((void (*)(void))run)();
    CHECK_EQ(upcall_loop_free(loop), 0);
    oracle_free(oracle);
}

TEST(it_is_content_with_what_is_right) { CHECK_EQ(in_child(child, (void *)nothing_wrong), 0); }

#define SEES(what) TEST(it_sees_##what) { CHECK_EQ(in_child(child, (void *)what), 1); }
SEES(second_final)
SEES(more_after_the_final)
SEES(no_final)
SEES(other_id)
SEES(other_kind)
SEES(other_user)
SEES(more_of_a_one_shot)
SEES(expired_without_a_deadline)
SEES(cancelled_by_nobody)
SEES(interrupted)
SEES(written_before)
SEES(written_behind)
SEES(written_beyond)
SEES(written_late)
SEES(byte_lost)
SEES(byte_twice)
SEES(bytes_from_nowhere)
SEES(bytes_left)
SEES(descriptor_left)
TEST(it_sees_memory_left) {
    if (!oracle_knows_memory())
        SKIP("the allocator does not tell what is in use");
    CHECK_EQ(in_child(child, (void *)memory_left), 1);
}
