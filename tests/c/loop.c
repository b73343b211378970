/* The loop itself: making, configuring, running, stopping, closing and freeing it. */
#include "check.h"
#include <stddef.h>
#include <stdatomic.h>
#include <sys/time.h>

static const struct {
    uint32_t kind;
    const char *name;
} kinds[] = {
    {UPCALL_OP_NOP, "nop"}, {UPCALL_OP_READ, "read"}, {UPCALL_OP_WRITE, "write"}, {UPCALL_OP_READV, "readv"},
    {UPCALL_OP_WRITEV, "writev"}, {UPCALL_OP_PREAD, "pread"}, {UPCALL_OP_PWRITE, "pwrite"}, {UPCALL_OP_FSYNC, "fsync"},
    {UPCALL_OP_FDATASYNC, "fdatasync"}, {UPCALL_OP_OPEN, "open"}, {UPCALL_OP_CLOSE, "close"},
    {UPCALL_OP_STATX, "statx"}, {UPCALL_OP_SOCKET, "socket"}, {UPCALL_OP_BIND, "bind"}, {UPCALL_OP_LISTEN, "listen"},
    {UPCALL_OP_ACCEPT, "accept"}, {UPCALL_OP_CONNECT, "connect"}, {UPCALL_OP_RECV, "recv"}, {UPCALL_OP_SEND, "send"},
    {UPCALL_OP_RECVMSG, "recvmsg"}, {UPCALL_OP_SENDMSG, "sendmsg"}, {UPCALL_OP_SHUTDOWN, "shutdown"},
    {UPCALL_OP_POLL, "poll"}, {UPCALL_OP_SLEEP, "sleep"}, {UPCALL_OP_SLEEP_UNTIL, "sleep_until"},
    {UPCALL_OP_WORK, "work"},
};

static void count_post(upcall_loop *loop, void *arg) {
    (void)loop;
    ++*(int *)arg;
}

/* ---- Configuration. ---- */

TEST(a_loop_can_be_made_with_the_defaults_and_freed) {
    int fds = open_fd_count();
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), fds);
}

TEST(a_filled_config_makes_a_loop) {
    upcall_config config = default_config();
    CHECK_EQ(config.size, sizeof config);
    CHECK_EQ(config.backend, UPCALL_BACKEND_AUTO);
    CHECK_EQ(config.entries, 256);
    CHECK_EQ(config.max_events, 1024);
    CHECK(config.workers >= 4 && config.workers <= 16);
    CHECK_EQ(config.max_operations, 1048576);
    CHECK_EQ(config.slow_callback_ns, 0);
    CHECK_EQ(config.spin_ns, 0);
    CHECK_EQ(config.flags, 0);
    for (size_t i = 0; i < COUNT_OF(config.reserved); i++)
        CHECK_EQ(config.reserved[i], 0);
    upcall_loop *loop = loop_with(&config);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    free_loop(loop);
}

TEST(a_shorter_config_means_defaults_for_the_rest) {
    upcall_config config;
    for (size_t size = offsetof(upcall_config, backend); size < sizeof config; size += 4) {
        memset(&config, 0xff, sizeof config); /* what lies behind must not be read, nor written */
        upcall_config_init_sized(&config, size);
        CHECK_EQ(config.size, size);
        for (size_t i = size; i < sizeof config; i++)
            CHECK_EQ(((unsigned char *)&config)[i], 0xff);
        upcall_loop *loop = loop_with(&config);
        free_loop(loop);
    }
}

TEST(a_config_too_short_to_have_a_size_is_refused) {
    upcall_config config = default_config();
    upcall_loop *loop;
    for (config.size = 0; config.size < 4; config.size++) {
        loop = (upcall_loop *)&config;
        CHECK_EQ(upcall_loop_new(&config, &loop), -EINVAL);
        CHECK(loop == NULL);
        CHECK_STR_CONTAINS(upcall_last_error(), "size");
    }
    char bytes[8];
    memset(bytes, 0x5a, sizeof bytes);
    upcall_config_init_sized((upcall_config *)(void *)bytes, 0); /* nothing to fill */
    for (size_t i = 0; i < sizeof bytes; i++)
        CHECK_EQ(bytes[i], 0x5a);
    upcall_config_init_sized(NULL, sizeof config);
}

TEST(a_longer_config_must_have_a_tail_of_zeros) {
    struct {
        upcall_config known;
        unsigned char tail[40];
    } config;
    memset(&config, 0xff, sizeof config);
    upcall_config_init_sized(&config.known, sizeof config);
    for (size_t i = 0; i < sizeof config.tail; i++)
        CHECK_EQ(config.tail[i], 0);
    CHECK_EQ(config.known.size, sizeof config);
    upcall_loop *loop = loop_with(&config.known);
    free_loop(loop);
    for (size_t i = 0; i < sizeof config.tail; i++) {
        memset(config.tail, 0, sizeof config.tail);
        config.tail[i] = 1;
        loop = (upcall_loop *)&config;
        CHECK_EQ(upcall_loop_new(&config.known, &loop), -E2BIG);
        CHECK(loop == NULL);
        CHECK(*upcall_last_error());
    }
}

TEST(an_absurdly_long_config_is_refused_without_reading_it) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(mprotect(memory + page, page, PROT_NONE) == 0);
    upcall_config *config = (upcall_config *)(void *)(memory + page - sizeof *config);
    upcall_config_init(config);
    config->size = UINT32_MAX;
    upcall_loop *loop = NULL;
    CHECK_EQ(upcall_loop_new(config, &loop), -E2BIG); /* as openat2(2): longer than a page is never read */
    CHECK(loop == NULL);
}

static void refuse_config(struct place at, upcall_config config, const char *field) {
    upcall_loop *loop = (upcall_loop *)&config;
    check_eq(at, field, upcall_loop_new(&config, &loop), -EINVAL);
    check_eq(at, field, loop == NULL, 1);
    check_contains(at, upcall_last_error(), field);
}
#define REFUSE(field, value)                                                                                           \
    do {                                                                                                               \
        upcall_config bad = default_config();                                                                          \
        bad.field = (value);                                                                                           \
        refuse_config(HERE, bad, #field);                                                                              \
    } while (0)

TEST(values_out_of_range_are_refused_by_name) {
    REFUSE(backend, 3);
    REFUSE(backend, UINT32_MAX);
    REFUSE(entries, 0);
    REFUSE(entries, 32769);
    REFUSE(entries, UINT32_MAX);
    REFUSE(max_events, 0);
    REFUSE(workers, 0);
    REFUSE(workers, 1);
    REFUSE(workers, 1025);
    REFUSE(max_operations, 0);
    REFUSE(max_operations, 16777217);
    REFUSE(max_operations, UINT32_MAX);
    REFUSE(flags, 1);
    REFUSE(flags, UINT64_C(1) << 63);
    for (int i = 0; i < 8; i++) {
        upcall_config config = default_config();
        config.reserved[i] = 1;
        refuse_config(HERE, config, "reserved");
    }
}

TEST(values_at_the_ends_of_their_ranges_are_accepted) {
    static const struct {
        uint32_t entries, max_events, workers, max_operations;
    } ends[] = {{1, 1, 2, 1}, {3, 1 << 30, 1024, 16777216}, {32768, 1024, 2, 2}};
    for (size_t i = 0; i < COUNT_OF(ends); i++) {
        upcall_config config = default_config();
        config.entries = ends[i].entries;
        config.max_events = ends[i].max_events;
        config.workers = ends[i].workers;
        config.max_operations = ends[i].max_operations;
        upcall_loop *loop = loop_with(&config);
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        free_loop(loop);
    }
}

TEST(null_arguments_are_refused) {
    upcall_loop *loop = new_loop(), *made;
    upcall_op op = upcall_op_nop();
    upcall_event event;
    upcall_stats stats;
    upcall_buffers *buffers = NULL;
    int ran = 0;
    CHECK_EQ(upcall_loop_new(NULL, NULL), -EINVAL);
    CHECK_EQ(upcall_submit(NULL, &op, 1, NULL), -EINVAL);
    CHECK_EQ(upcall_submit(loop, NULL, 1, NULL), -EINVAL);
    CHECK_EQ(upcall_poll(NULL, 0), -EINVAL);
    CHECK_EQ(upcall_cancel(NULL, 1), -EINVAL);
    CHECK_EQ(upcall_cancel_fd(NULL, 0), -EINVAL);
    CHECK_EQ(upcall_cancel_all(NULL), -EINVAL);
    CHECK_EQ(upcall_reap(NULL, &event, 1), -EINVAL);
    CHECK_EQ(upcall_reap(loop, NULL, 1), -EINVAL);
    CHECK_EQ(upcall_loop_close(NULL, 0), -EINVAL);
    CHECK_EQ(upcall_loop_detach(NULL), -EINVAL);
    CHECK_EQ(upcall_run(NULL), -EINVAL);
    CHECK_EQ(upcall_stop(NULL), -EINVAL);
    CHECK_EQ(upcall_hold(NULL), -EINVAL);
    CHECK_EQ(upcall_unhold(NULL), -EINVAL);
    CHECK_EQ(upcall_post(NULL, count_post, &ran), -EINVAL);
    CHECK_EQ(upcall_post(loop, NULL, &ran), -EINVAL);
    CHECK_EQ(upcall_fd(NULL), -EINVAL);
    CHECK_EQ(upcall_supports(NULL, UPCALL_OP_NOP), -EINVAL);
    CHECK_EQ(upcall_stats_get(NULL, &stats), -EINVAL);
    CHECK_EQ(upcall_stats_get_sized(loop, NULL, sizeof stats), -EINVAL);
    CHECK_EQ(upcall_buffers_new(NULL, 1, 1, &buffers), -EINVAL);
    CHECK_EQ(upcall_buffers_new(loop, 1, 1, NULL), -EINVAL);
    CHECK_EQ(upcall_buffers_return(NULL, &event), -EINVAL);
    CHECK(*upcall_last_error());
    CHECK_EQ(upcall_now(NULL), 0);
    CHECK_EQ(upcall_loop_backend(NULL), UPCALL_BACKEND_AUTO);
    CHECK(upcall_backend_reason(NULL) == NULL);
    CHECK_EQ(upcall_loop_free(NULL), 0);
    CHECK_EQ(upcall_buffers_free(NULL), 0);
    CHECK_EQ(upcall_loop_new(NULL, &made), 0);
    free_loop(made);
    CHECK_EQ(ran, 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    free_loop(loop);
}

/* ---- What it says about itself. ---- */

TEST(the_backend_has_a_name_and_a_reason) {
    upcall_loop *loop = new_loop();
    upcall_backend backend = upcall_loop_backend(loop);
    const char *wanted = getenv("UPCALL_BACKEND"), *reason = upcall_backend_reason(loop);
    CHECK(backend == UPCALL_BACKEND_IO_URING || backend == UPCALL_BACKEND_EPOLL);
    CHECK(reason != NULL && *reason);
    CHECK(strcmp(upcall_backend_name(backend), backend == UPCALL_BACKEND_EPOLL ? "epoll" : "io_uring") == 0);
    if (wanted && *wanted && strcmp(wanted, "auto") != 0)
        CHECK_STR_EQ(upcall_backend_name(backend), wanted);
    CHECK_STR_EQ(upcall_backend_name(UPCALL_BACKEND_AUTO), "auto");
    CHECK_STR_EQ(upcall_backend_name(77), "unknown");
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(stats.backend, backend);
    free_loop(loop);
}

TEST(the_version_is_the_headers) {
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", UPCALL_VERSION_MAJOR, UPCALL_VERSION_MINOR, UPCALL_VERSION_PATCH);
    CHECK_STR_EQ(upcall_version(), text);
    CHECK_EQ(UPCALL_VERSION_NUMBER,
             UPCALL_VERSION_MAJOR * 1000000 + UPCALL_VERSION_MINOR * 1000 + UPCALL_VERSION_PATCH);
}

TEST(strerror_knows_both_signs) {
    static const int numbers[] = {EAGAIN, ECANCELED, ETIMEDOUT, EOWNERDEAD, ESHUTDOWN, EBADF};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        char positive[256];
        snprintf(positive, sizeof positive, "%s", upcall_strerror(numbers[i]));
        CHECK(*positive);
        CHECK_STR_EQ(upcall_strerror(-numbers[i]), positive);
        CHECK_STR_CONTAINS(positive, strerror(numbers[i]));
    }
    static const int strange[] = {0, 99999, -99999, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < COUNT_OF(strange); i++)
        CHECK(*upcall_strerror(strange[i]));
}

TEST(every_kind_has_its_name_and_its_way) {
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        int way = upcall_supports(loop, kinds[i].kind);
        CHECK_STR_EQ(upcall_op_name(kinds[i].kind), kinds[i].name);
        CHECK(way == UPCALL_EMULATED || way == UPCALL_NATIVE);
        if (on_epoll(loop))
            CHECK_EQ(way, UPCALL_EMULATED);
    }
    static const uint32_t unknown[] = {0, 9999, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(unknown); i++) {
        CHECK_STR_EQ(upcall_op_name(unknown[i]), "unknown");
        CHECK_EQ(upcall_supports(loop, unknown[i]), UPCALL_UNSUPPORTED);
    }
    free_loop(loop);
}

TEST(the_last_error_is_this_threads_own) {
    CHECK_STR_EQ(upcall_last_error(), "");
    CHECK_EQ(upcall_poll(NULL, 0), -EINVAL);
    char first[256];
    snprintf(first, sizeof first, "%s", upcall_last_error());
    CHECK(*first);
    upcall_loop *loop = new_loop(); /* calls that succeed leave it */
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    CHECK_STR_EQ(upcall_last_error(), first);
    free_loop(loop);
}

/* ---- Counters. ---- */

static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

TEST(the_counters_add_up) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    char byte;
    for (int i = 0; i < 10; i++)
        submit_one(loop, upcall_op_nop(), &rec);
    check_stats(loop);
    CHECK_EQ(in_flight(loop), 10);
    run_finals(loop, &rec, 10);
    upcall_op op = upcall_op_recv(fds[0], &byte, 1, 0);
    op.timeout_ns = UPCALL_MILLISECOND;
    submit_one(loop, op, &rec);
    upcall_id id = submit_one(loop, upcall_op_recv(fds[0], &byte, 1, 0), &rec);
    submit_one(loop, upcall_op_work(seven, NULL), &rec);
    submit_one(loop, upcall_op_recv(-1, &byte, 1, 0), &rec);
    check_stats(loop);
    run_finals(loop, &rec, 13);
    CHECK_EQ(in_flight(loop), 1);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 14);
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(stats.size, sizeof stats);
    CHECK_EQ(stats.submitted, 14);
    CHECK_EQ(stats.completed, 12);
    CHECK_EQ(stats.cancelled, 1);
    CHECK_EQ(stats.timed_out, 1);
    CHECK_EQ(stats.in_flight, 0);
    CHECK_EQ(stats.callbacks, 14);
    CHECK(stats.pool_operations >= 1);
    CHECK(stats.system_calls >= 1);
    CHECK_EQ(stats.slow_callbacks, 0);
    CHECK_EQ(stats.longest_callback_ns, 0);
    bool native = upcall_supports(loop, UPCALL_OP_NOP) == UPCALL_NATIVE;
    CHECK(!native || !on_epoll(loop));
    CHECK_EQ(stats.native_operations > 0, native);
    free_loop(loop);
}

TEST(stats_fill_what_fits) {
    upcall_loop *loop = new_loop();
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    union {
        upcall_stats stats;
        unsigned char bytes[sizeof(upcall_stats) + 64];
    } s;
    for (size_t size = 4; size < sizeof(upcall_stats); size += 4) {
        memset(&s, 0xa5, sizeof s);
        CHECK_EQ(upcall_stats_get_sized(loop, &s.stats, size), 0);
        CHECK(s.stats.size <= size);
        for (size_t i = size; i < sizeof s; i++)
            CHECK_EQ(s.bytes[i], 0xa5);
    }
    memset(&s, 0xa5, sizeof s);
    CHECK_EQ(upcall_stats_get_sized(loop, &s.stats, sizeof s), 0);
    CHECK(s.stats.size >= sizeof(upcall_stats) && s.stats.size <= sizeof s);
    CHECK_EQ(s.stats.submitted, 1);
    for (size_t size = 0; size < 4; size++)
        CHECK_EQ(upcall_stats_get_sized(loop, &s.stats, size), -EINVAL);
    free_loop(loop);
}

static void slow(upcall_loop *loop, const upcall_event *event) {
    pause_ms(20);
    record(loop, event);
}

TEST(slow_callbacks_are_counted_when_asked) {
    upcall_config config = default_config();
    config.slow_callback_ns = 10 * UPCALL_MILLISECOND;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    upcall_op op = upcall_op_nop();
    op.callback = slow;
    op.user = &rec;
    submit_one(loop, op, &rec);
    run_finals(loop, &rec, 1);
    upcall_stats stats;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK_EQ(stats.slow_callbacks, 1);
    CHECK(stats.longest_callback_ns >= 20 * UPCALL_MILLISECOND);
    free_loop(loop);
}

static uint64_t turn_times[3];
static int turn_count;
static void note_now(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    turn_times[turn_count++] = upcall_now(loop);
    pause_ms(2);
}

TEST(now_is_the_monotonic_time_of_the_turn) {
    upcall_loop *loop = new_loop();
    uint64_t before = now_ns();
    upcall_op ops[3] = {upcall_op_nop(), upcall_op_nop(), upcall_op_nop()};
    for (int i = 0; i < 3; i++)
        ops[i].callback = note_now;
    CHECK_EQ(upcall_submit(loop, ops, 3, NULL), 0);
    int delivered = 0;
    while (delivered == 0)
        delivered = upcall_poll(loop, MS(1000));
    CHECK_EQ(delivered, 3); /* they were ready together */
    CHECK(turn_times[0] >= before && turn_times[0] <= now_ns());
    CHECK_EQ(turn_times[1], turn_times[0]);
    CHECK_EQ(turn_times[2], turn_times[0]);
    CHECK(upcall_poll(loop, MS(1)) >= 0);
    CHECK(upcall_now(loop) >= turn_times[0]);
    free_loop(loop);
}

/* ---- poll and reap. ---- */

TEST(poll_returns_how_many_it_delivered) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int ran = 0, total = 0;
    for (int i = 0; i < 30; i++) {
        submit_one(loop, upcall_op_nop(), &rec);
        CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
        upcall_op op = upcall_op_nop(); /* to be reaped */
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    }
    while (rec.count < 30 || ran < 30 || total < 90) {
        int before = (int)rec.count + ran, rc = upcall_poll(loop, MS(1000));
        CHECK(rc >= (int)rec.count + ran - before);
        total += rc;
    }
    CHECK_EQ(total, 90);
    upcall_event events[64];
    CHECK_EQ(upcall_reap(loop, events, 64), 30);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    free_loop(loop);
}

TEST(poll_with_0_does_not_wait) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    uint64_t before = now_ns();
    for (int i = 0; i < 10; i++)
        CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK(now_ns() - before < 5 * UPCALL_SECOND);
    free_loop(loop);
    CHECK_EQ(rec.events[0].result, -ECANCELED);
}

TEST(poll_waits_without_spinning) {
    upcall_loop *loop = new_loop();
    start_all(loop);
    uint64_t before = now_ns();
    int turns = 0;
    for (; now_ns() - before < 300 * UPCALL_MILLISECOND; turns++)
        CHECK_EQ(upcall_poll(loop, MS(50)), 0);
    CHECK(turns <= 60);
    free_loop(loop);
}

TEST(poll_does_not_wait_while_records_are_unreaped) {
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_nop();
    upcall_id id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    while (upcall_poll(loop, MS(1000)) == 0) {}
    uint64_t before = now_ns();
    for (int i = 0; i < 3; i++)
        CHECK_EQ(upcall_poll(loop, MS(4000)), 0);
    CHECK(now_ns() - before < 4 * UPCALL_SECOND);
    upcall_event event;
    CHECK_EQ(upcall_reap(loop, &event, 1), 1);
    CHECK_EQ(event.id, id);
    free_loop(loop);
}

static void *write_soon(void *arg) {
    pause_ms(20);
    write_all(*(int *)arg, "x", 1);
    return NULL;
}

TEST(a_loop_that_spins_before_it_sleeps_misses_nothing) {
    upcall_config config = default_config();
    config.spin_ns = 200 * UPCALL_MICROSECOND;
    upcall_loop *loop = loop_with(&config);
    int fds[2];
    char byte;
    unix_pair(fds);
    for (int i = 0; i < 200; i++) { /* short sleeps, so that it does spin */
        uint64_t before = now_ns();
        CHECK_EQ(complete(loop, upcall_op_sleep(50 * UPCALL_MICROSECOND)).result, 0);
        CHECK(now_ns() - before >= 50 * UPCALL_MICROSECOND);
    }
    for (int i = 0; i < 5; i++) {
        pthread_t thread = start(write_soon, &fds[1]);
        CHECK_EQ(complete(loop, upcall_op_recv(fds[0], &byte, 1, 0)).result, 1);
        join(thread);
    }
    uint64_t used = processor_ns(), until = now_ns() + 300 * UPCALL_MILLISECOND;
    while (now_ns() < until)
        CHECK_EQ(upcall_poll(loop, MS(100)), 0);
    CHECK(processor_ns() - used < 150 * UPCALL_MILLISECOND); /* not for ever */
    free_loop(loop);
}

TEST(one_turn_delivers_at_most_max_events) {
    upcall_config config = default_config();
    config.max_events = 4;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    int ran = 0, total = 0;
    for (int i = 0; i < 20; i++) {
        submit_one(loop, upcall_op_nop(), &rec);
        CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    }
    while (total < 40) {
        int rc = upcall_poll(loop, MS(1000));
        CHECK(rc >= 0 && rc <= 4);
        total += rc;
        CHECK_EQ(rec.count + (size_t)ran, total);
    }
    free_loop(loop);
}

static int again_count;
static void again(upcall_loop *loop, const upcall_event *event) {
    again_count++;
    upcall_op op = upcall_op_nop();
    op.callback = again;
    int rc = upcall_submit(loop, &op, 1, NULL);
    CHECK(rc == 0 || rc == -ESHUTDOWN);
    (void)event;
}
static void post_again(upcall_loop *loop, void *arg) {
    ++*(int *)arg;
    upcall_post(loop, post_again, arg); /* refused at the end, while the loop closes */
}

TEST(a_callback_that_resubmits_does_not_starve_the_caller) {
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_nop();
    op.callback = again;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    for (int turn = 0; turn < 50; turn++) {
        int before = again_count, rc = upcall_poll(loop, MS(1000));
        CHECK(rc == 0 || rc == 1);
        CHECK_EQ(again_count - before, rc);
    }
    CHECK(again_count > 0);
    int posts = 0;
    CHECK_EQ(upcall_post(loop, post_again, &posts), 0);
    for (int turn = 0; turn < 50; turn++) {
        int before = posts;
        CHECK(upcall_poll(loop, MS(1000)) >= 0);
        CHECK(posts - before <= 1);
    }
    CHECK(posts > 0);
    free_loop(loop);
}

static atomic_int signals;
static upcall_loop *stopped_loop;
static void count_signal(int number) {
    (void)number;
    atomic_fetch_add(&signals, 1);
}
static void stop_in_signal(int number) {
    count_signal(number);
    if (upcall_stop(stopped_loop) != 0)
        abort();
}
static void signal_once(void (*handler)(int), int ms) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval timer = {.it_value = {ms / 1000, ms % 1000 * 1000}};
    if (handler == count_signal)
        timer.it_interval = timer.it_value; /* in case the first comes between two turns */
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

TEST(a_signal_handler_that_ran_ends_the_wait) { /* hazards row 17 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    start_all(loop);
    signal_once(count_signal, 100);
    uint64_t before = now_ns();
    int turns = 0;
    while (atomic_load(&signals) == 0) { /* one turn, unless the signal came between turns or a turn ended for nothing */
        CHECK_EQ(upcall_poll(loop, (int64_t)(10 * UPCALL_SECOND)), 0);
        turns++;
    }
    CHECK(now_ns() - before < 9 * UPCALL_SECOND);
    CHECK(turns < 20);
    free_loop(loop);
}

TEST(reap_copies_out_what_has_no_callback_oldest_first) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op ops[9];
    upcall_id ids[9];
    int users[9];
    for (int i = 0; i < 9; i++) { /* a chain, so that the order is known */
        ops[i] = upcall_op_nop();
        ops[i].user = &users[i];
        ops[i].flags = i < 8 ? UPCALL_LINK : 0;
    }
    CHECK_EQ(upcall_submit(loop, ops, 9, ids), 0);
    submit_one(loop, upcall_op_nop(), &rec);
    upcall_event events[16];
    CHECK_EQ(upcall_reap(loop, events, 0), 0);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(rec.count, 1);
    CHECK_EQ(upcall_reap(loop, events, 4), 4);
    CHECK_EQ(upcall_reap(loop, events + 4, 12), 5);
    CHECK_EQ(upcall_reap(loop, events, 0), 0);
    for (int i = 0; i < 9; i++) {
        CHECK_EQ(events[i].id, ids[i]);
        CHECK(events[i].user == &users[i]);
        CHECK_EQ(events[i].result, 0);
        CHECK_EQ(events[i].kind, UPCALL_OP_NOP);
        CHECK_EQ(events[i].flags, 0);
        CHECK_EQ(events[i].reserved[0] | events[i].reserved[1], 0);
    }
    CHECK_EQ(upcall_reap(loop, events, 16), 0);
    free_loop(loop);
}

static int reaped_inside;
static void reap_inside(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    upcall_event events[4];
    int rc = upcall_reap(loop, events, 4);
    CHECK(rc >= 0);
    reaped_inside += rc;
}

TEST(reap_may_be_used_in_a_callback) {
    upcall_loop *loop = new_loop();
    upcall_op ops[4] = {upcall_op_nop(), upcall_op_nop(), upcall_op_nop(), upcall_op_nop()};
    ops[0].flags = ops[1].flags = ops[2].flags = UPCALL_LINK;
    ops[3].callback = reap_inside;
    CHECK_EQ(upcall_submit(loop, ops, 4, NULL), 0);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(reaped_inside, 3);
    free_loop(loop);
}

/* ---- run, stop, hold. ---- */

TEST(run_polls_until_nothing_is_in_flight) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int ran = 0;
    CHECK_EQ(upcall_run(loop), 0);
    for (uint64_t i = 0; i < 5; i++)
        submit_one(loop, upcall_op_sleep(i * 10 * UPCALL_MILLISECOND), &rec);
    CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(rec.finals, 5);
    CHECK_EQ(ran, 1);
    CHECK_EQ(upcall_post(loop, count_post, &ran), 0); /* posts count as in flight */
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(ran, 2);
    free_loop(loop);
}

TEST(run_waits_even_while_records_are_unreaped) {
    upcall_loop *loop = new_loop();
    upcall_op ops[2] = {upcall_op_nop(), upcall_op_sleep(30 * UPCALL_MILLISECOND)};
    uint64_t before = now_ns();
    CHECK_EQ(upcall_submit(loop, ops, 2, NULL), 0);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK(now_ns() - before >= 30 * UPCALL_MILLISECOND);
    upcall_event events[4];
    CHECK_EQ(upcall_reap(loop, events, 4), 2);
    free_loop(loop);
}

TEST(background_operations_do_not_keep_run_alive) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_sleep(3600 * UPCALL_SECOND);
    op.flags = UPCALL_BACKGROUND;
    submit_one(loop, op, &rec);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(in_flight(loop), 1);
    submit_one(loop, upcall_op_sleep(20 * UPCALL_MILLISECOND), &rec);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(rec.finals, 1);
    op = upcall_op_sleep(UPCALL_MILLISECOND); /* served, all the same, while something else keeps it alive */
    op.flags = UPCALL_BACKGROUND | UPCALL_MULTISHOT;
    submit_one(loop, op, &rec);
    submit_one(loop, upcall_op_sleep(30 * UPCALL_MILLISECOND), &rec);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK(rec.count > 2);
    CHECK_EQ(rec.finals, 2);
    CHECK_EQ(in_flight(loop), 2);
    free_loop(loop);
    CHECK_EQ(rec.finals, 4);
}

TEST(stop_is_latched) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int ran = 0;
    CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    CHECK_EQ(upcall_stop(loop), 0);
    CHECK_EQ(upcall_stop(loop), 0);
    CHECK_EQ(upcall_run(loop), 1);
    CHECK_EQ(ran, 1); /* after its turn */
    submit_one(loop, upcall_op_sleep(10 * UPCALL_MILLISECOND), &rec);
    CHECK_EQ(upcall_run(loop), 0); /* it was one stop */
    CHECK_EQ(rec.finals, 1);
    free_loop(loop);
}

static void stop_post(upcall_loop *loop, void *arg) {
    (void)arg;
    CHECK_EQ(upcall_stop(loop), 0);
}

TEST(stop_in_a_callback_ends_run_after_the_turn) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    int ran = 0;
    CHECK_EQ(upcall_post(loop, stop_post, NULL), 0);
    CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    CHECK_EQ(upcall_run(loop), 1);
    CHECK_EQ(ran, 1);
    CHECK_EQ(rec.count, 0);
    free_loop(loop);
}

static void *stop_soon(void *loop) {
    pause_ms(30);
    CHECK_EQ(upcall_stop(loop), 0);
    return NULL;
}

TEST(stop_from_another_thread_ends_run) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    pthread_t thread = start(stop_soon, loop);
    CHECK_EQ(upcall_run(loop), 1);
    join(thread);
    CHECK_EQ(rec.count, 0);
    free_loop(loop);
}

TEST(stop_wakes_a_waiting_poll) {
    upcall_loop *loop = new_loop();
    start_all(loop);
    pthread_t thread = start(stop_soon, loop);
    uint64_t before = now_ns();
    CHECK_EQ(upcall_poll(loop, -1), 0);
    CHECK(now_ns() - before < 10 * UPCALL_SECOND);
    join(thread);
    CHECK_EQ(upcall_hold(loop), 0);
    CHECK_EQ(upcall_run(loop), 1); /* still latched: no run has ended by it */
    CHECK_EQ(upcall_unhold(loop), 0);
    free_loop(loop);
}

TEST(stop_may_be_called_in_a_signal_handler) {
    upcall_loop *loop = stopped_loop = new_loop();
    CHECK_EQ(upcall_hold(loop), 0);
    for (int i = 0; i < 5; i++) {
        signal_once(stop_in_signal, 20);
        CHECK_EQ(upcall_run(loop), 1);
        CHECK_EQ(atomic_load(&signals), i + 1);
    }
    CHECK_EQ(upcall_unhold(loop), 0);
    free_loop(loop);
}

static atomic_int unheld;
static void *unhold_soon(void *loop) {
    for (int i = 0; i < 2; i++) {
        pause_ms(30);
        atomic_fetch_add(&unheld, 1);
        CHECK_EQ(upcall_unhold(loop), 0);
    }
    return NULL;
}

TEST(hold_keeps_run_alive_until_as_many_unholds) {
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_unhold(loop), -EINVAL);
    CHECK_EQ(upcall_hold(loop), 0);
    CHECK_EQ(upcall_hold(loop), 0);
    pthread_t thread = start(unhold_soon, loop);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(atomic_load(&unheld), 2);
    join(thread);
    CHECK_EQ(upcall_unhold(loop), -EINVAL);
    CHECK_EQ(upcall_run(loop), 0);
    free_loop(loop);
}

/* ---- close, free, detach. ---- */

static int refused_inside;
static void submit_while_closing(upcall_loop *loop, const upcall_event *event) {
    upcall_op op = upcall_op_nop();
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -ESHUTDOWN);
    CHECK_EQ(upcall_post(loop, stop_post, NULL), -ESHUTDOWN);
    refused_inside++;
    record(loop, event);
}

TEST(close_runs_posts_cancels_operations_and_refuses_new_work) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[3];
    int fds[2], ran = 0;
    char byte;
    unix_pair(fds);
    ids[0] = submit_one(loop, upcall_op_recv(fds[0], &byte, 1, 0), &rec);
    start_all(loop);
    ids[1] = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec); /* not handed over yet */
    upcall_op op = upcall_op_poll(fds[0], POLLIN);
    op.callback = submit_while_closing;
    op.user = &rec;
    ids[2] = submit_one(loop, op, &rec);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(ran, 3);
    CHECK_EQ(refused_inside, 1);
    check_finals(&rec, ids, 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
    op = upcall_op_nop();
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), -ESHUTDOWN);
    CHECK_EQ(upcall_post(loop, count_post, &ran), -ESHUTDOWN);
    CHECK_STR_CONTAINS(upcall_last_error(), "clos");
    CHECK_EQ(upcall_cancel(loop, ids[0]), -ENOENT);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(upcall_run(loop), 0);
    CHECK_EQ(upcall_loop_close(loop, 0), 0);
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    free_loop(loop);
    CHECK_EQ(ran, 3);
    CHECK_EQ(rec.count, 3);
}

TEST(an_idle_loop_closes_at_once) {
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_loop_close(loop, 0), 0);
    free_loop(loop);
}

TEST(records_may_still_be_reaped_after_close) {
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_sleep(3600 * UPCALL_SECOND);
    upcall_id id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    start_all(loop);
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    upcall_event event;
    CHECK_EQ(upcall_reap(loop, &event, 1), 1);
    CHECK_EQ(event.id, id);
    CHECK_EQ(event.result, -ECANCELED);
    free_loop(loop);
}

struct gate {
    atomic_int entered, open;
};
static int64_t pass_gate(void *arg) {
    struct gate *gate = arg;
    atomic_store(&gate->entered, 1);
    while (!atomic_load(&gate->open))
        pause_ms(1);
    return 42;
}

static void *open_soon(void *gate) {
    pause_ms(40);
    atomic_store(&((struct gate *)gate)->open, 1);
    return NULL;
}

TEST(a_close_that_takes_too_long_leaves_the_loop_usable) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct gate gate = {0};
    upcall_id work = submit_one(loop, upcall_op_work(pass_gate, &gate), &rec);
    while (!atomic_load(&gate.entered))
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    uint64_t before = now_ns();
    CHECK_EQ(upcall_loop_close(loop, MS(30)), -ETIMEDOUT);
    CHECK(now_ns() - before >= 30 * UPCALL_MILLISECOND);
    CHECK_EQ(upcall_loop_close(loop, 0), -ETIMEDOUT);
    CHECK_EQ(rec.count, 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0); /* usable */
    atomic_store(&gate.open, 1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, work).result, 42);
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    free_loop(loop);
}

TEST(free_ends_everything_first) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct gate gate = {0};
    upcall_id ids[4];
    int fds[2], ran = 0;
    char byte;
    pipe_pair(fds);
    ids[0] = submit_one(loop, upcall_op_read(fds[0], &byte, 1), &rec);
    ids[1] = submit_one(loop, upcall_op_work(pass_gate, &gate), &rec);
    while (!atomic_load(&gate.entered))
        CHECK(upcall_poll(loop, MS(10)) >= 0);
    ids[2] = submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
    upcall_op op = upcall_op_poll(fds[0], POLLIN);
    op.callback = submit_while_closing;
    op.user = &rec;
    ids[3] = submit_one(loop, op, &rec);
    CHECK_EQ(upcall_post(loop, count_post, &ran), 0);
    pthread_t thread = start(open_soon, &gate);
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(atomic_load(&gate.open), 1); /* it waited for the work */
    join(thread);
    check_finals(&rec, ids, 4);
    CHECK_EQ(final_of(&rec, ids[0]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[1]).result, 42);
    CHECK_EQ(final_of(&rec, ids[2]).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, ids[3]).result, -ECANCELED);
    CHECK_EQ(ran, 1);
    CHECK_EQ(refused_inside, 1);
}

TEST(free_drops_unreaped_records_and_closes_their_descriptors) { /* hazards row 30 */
    int fds = open_fd_count();
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    int listener = tcp_listener(&address, SOCK_NONBLOCK, 16);
    int client = tcp_connected_to(&address);
    upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    while (upcall_poll(loop, MS(1000)) == 0) {}
    CHECK_EQ(upcall_loop_free(loop), 0);
    close(client);
    close(listener);
    CHECK_EQ(open_fd_count(), fds);
}

static void *own_it(void *loop) {
    CHECK_EQ(upcall_poll(loop, 0), 0);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    int fds[2];
    char byte = 0;
    pipe_pair(fds);
    write_all(fds[1], "x", 1);
    CHECK_EQ(complete(loop, upcall_op_read(fds[0], &byte, 1)).result, 1);
    CHECK_EQ(byte, 'x');
    close_pair(fds);
    pause_ms(30);
    free_loop(loop);
    return NULL;
}

TEST(a_detached_loop_belongs_to_the_next_thread_that_polls) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    char byte;
    pipe_pair(fds);
    upcall_id id = submit_one(loop, upcall_op_read(fds[0], &byte, 1), &rec);
    start_all(loop);
    CHECK_EQ(upcall_loop_detach(loop), -EBUSY);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(upcall_loop_detach(loop), 0);
    pthread_t thread = start(own_it, loop);
    join(thread);
}

static void *steal(void *loop) {
    CHECK_EQ(upcall_poll(loop, 0), 0);
    pause_ms(1);
    CHECK_EQ(upcall_loop_detach(loop), 0);
    return NULL;
}

TEST(a_loop_may_go_from_thread_to_thread) {
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        CHECK_EQ(upcall_loop_detach(loop), 0);
        join(start(steal, loop));
    }
    free_loop(loop);
}
