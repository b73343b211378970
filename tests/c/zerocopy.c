/* UPCALL_ZEROCOPY: two events, the result and the release, whether the kernel copies or not. */
#include "op_support.h"

enum { BIG = 300000 };
static const int sockets[] = {UNIX, TCP, DATAGRAM};

static uint8_t bytes[BIG], got[BIG];

static upcall_op zerocopy(upcall_op op) {
    op.flags |= UPCALL_ZEROCOPY;
    return op;
}

static upcall_op sendmsg_of(int fd, struct msghdr *msg, struct iovec iov[2], size_t length) {
    iov[0] = (struct iovec){bytes, length / 3};
    iov[1] = (struct iovec){bytes + length / 3, length - length / 3};
    *msg = (struct msghdr){.msg_iov = iov, .msg_iovlen = 2};
    return upcall_op_sendmsg(fd, msg, 0);
}

static void check_two(const struct recorder *rec, upcall_id id, int64_t result, uint64_t transferred, uint32_t flags) {
    const struct record *told = NULL, *final = NULL;
    CHECK_EQ(events_of(rec, id), 2);
    for (size_t i = 0; i < rec->count; i++)
        if (rec->events[i].id == id)
            *(told == NULL ? &told : &final) = &rec->events[i];
    CHECK_EQ(told->result, result);
    CHECK_EQ(told->transferred, transferred);
    CHECK_EQ(told->flags, UPCALL_MORE | flags);
    CHECK_EQ(final->result, result);
    CHECK_EQ(final->transferred, transferred);
    CHECK_EQ(final->flags, UPCALL_RELEASED | flags);
}

TEST(the_result_comes_first_and_then_the_release) {
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (int message = 0; message < 2; message++) {
            int fds[2];
            make_stream(sockets[i], fds);
            fill_pattern(bytes, 1000, 5);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            struct msghdr msg;
            struct iovec iov[2];
            upcall_op op = message ? sendmsg_of(fds[1], &msg, iov, 1000) : upcall_op_send(fds[1], bytes, 1000, 0);
            upcall_id id = submit_one(loop, zerocopy(op), &rec);
            memset(&msg, 0xee, sizeof msg); /* copied at submit */
            memset(iov, 0xee, sizeof iov);
            run_until(loop, &rec, 1);
            read_all(fds[0], got, 1000);
            CHECK(has_pattern(got, 1000, 5));
            run_finals(loop, &rec, 1);
            check_two(&rec, id, 1000, 1000, 0);
            CHECK_EQ(in_flight(loop), 0);
            quiet(loop, &rec);
            free_loop(loop);
            close_pair(fds);
            forget(&rec);
        }
    }
}

TEST(all_of_it_in_full) {
    static const int streams[] = {UNIX, TCP};
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        for (int message = 0; message < 2; message++) {
            int fds[2];
            make_stream(streams[i], fds);
            set_nonblocking(fds[0]);
            fill_pattern(bytes, BIG, 9);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            struct msghdr msg;
            struct iovec iov[2];
            upcall_op op = message ? sendmsg_of(fds[1], &msg, iov, BIG) : upcall_op_send(fds[1], bytes, BIG, 0);
            op.flags = UPCALL_FULL;
            upcall_id id = submit_one(loop, zerocopy(op), &rec);
            size_t taken = 0;
            for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; taken < BIG;) {
                CHECK(upcall_poll(loop, MS(1)) >= 0);
                ssize_t n = read(fds[0], got + taken, BIG - taken);
                taken += n > 0 ? (size_t)n : 0;
                CHECK(now_ns() < limit);
            }
            CHECK(has_pattern(got, BIG, 9));
            run_finals(loop, &rec, 1);
            check_two(&rec, id, BIG, BIG, 0);
            free_loop(loop);
            close_pair(fds);
            forget(&rec);
        }
    }
}

TEST(an_error_is_told_and_then_released) {
    int fds[2], file = temp_file(10);
    unix_pair(fds);
    close(fds[0]);
    count_signals_of(SIGPIPE);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id broken = submit_one(loop, zerocopy(upcall_op_send(fds[1], bytes, 10, 0)), &rec);
    upcall_id wrong = submit_one(loop, zerocopy(upcall_op_send(file, bytes, 10, 0)), &rec);
    upcall_id closed = submit_one(loop, zerocopy(upcall_op_send(closed_fd(), bytes, 10, 0)), &rec);
    upcall_id none = submit_one(loop, zerocopy(upcall_op_send(-1, bytes, 10, 0)), &rec);
    run_finals(loop, &rec, 4);
    check_two(&rec, broken, -EPIPE, 0, 0);
    check_two(&rec, wrong, -ENOTSOCK, 0, 0);
    check_two(&rec, closed, -EBADF, 0, 0);
    CHECK_EQ(events_of(&rec, none), 1); /* -1 is no descriptor: it never started */
    CHECK_EQ(final_of(&rec, none).result, -EBADF);
    CHECK_EQ(signals_seen, 0);
    free_loop(loop);
    close(fds[1]);
    close(file);
    forget(&rec);
}

TEST(one_that_never_started_has_one_event) {
    int fds[2];
    tcp_pair(fds);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    CHECK_EQ(upcall_poll(loop, 0), 0);
    upcall_id id = submit_one(loop, zerocopy(upcall_op_send(fds[1], bytes, 10, 0)), &rec);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    upcall_op ops[2] = {upcall_op_close(-1), zerocopy(upcall_op_send(fds[1], bytes, 10, 0))};
    upcall_id ids[2];
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 3);
    CHECK_EQ(events_of(&rec, id), 1);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, id).flags, 0);
    CHECK_EQ(events_of(&rec, ids[1]), 1);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    CHECK(!is_readable(fds[0], 10));
    free_loop(loop);
    close_pair(fds);
    forget(&rec);
}

TEST(cancelled_or_expired_while_it_waits_for_room) {
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        for (int expires = 0; expires < 2; expires++) {
            int fds[2];
            make_stream(sockets[i], fds);
            size_t filled = fill_for_good(sockets[i], fds[1]);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            upcall_op op = zerocopy(upcall_op_send(fds[1], bytes, 10, 0));
            op.timeout_ns = expires ? 5 * UPCALL_MILLISECOND : 0;
            upcall_id id = submit_one(loop, op, &rec);
            start_all(loop);
            CHECK(upcall_poll(loop, MS(1)) >= 0);
            if (!expires)
                CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
            check_two(&rec, id, expires ? -ETIMEDOUT : -ECANCELED, 0, expires ? UPCALL_EXPIRED : 0);
            upcall_stats stats;
            CHECK_EQ(upcall_stats_get(loop, &stats), 0);
            CHECK_EQ(stats.timed_out, expires);
            CHECK_EQ(stats.cancelled, !expires);
            if (sockets[i] != DATAGRAM)
                take(fds[0], filled);
            CHECK(!is_readable(fds[0], 0) || sockets[i] == DATAGRAM);
            free_loop(loop);
            close_pair(fds);
            forget(&rec);
        }
    }
}

TEST(a_chain_and_a_close_go_on_at_the_result) {
    static const int streams[] = {UNIX, TCP};
    for (size_t i = 0; i < COUNT_OF(streams); i++) {
        int fds[2];
        make_stream(streams[i], fds);
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        upcall_op ops[3] = {zerocopy(upcall_op_send(fds[1], bytes, 1000, 0)), upcall_op_nop(), upcall_op_close(fds[1])};
        upcall_id ids[3];
        ops[0].flags |= UPCALL_FULL | UPCALL_LINK;
        ops[1].flags = UPCALL_LINK;
        submit_many(loop, ops, 3, &rec, ids);
        /* The peer has read nothing: the data may be in use for as long. */
        for (size_t seen = 1; events_of(&rec, ids[2]) == 0; seen = rec.count + 1)
            run_until(loop, &rec, seen);
        CHECK_EQ(final_of(&rec, ids[1]).result, 0);
        CHECK_EQ(final_of(&rec, ids[2]).result, 0);
        CHECK(!is_open(fds[1]));
        read_all(fds[0], got, 1000);
        CHECK_EQ(read(fds[0], got, 1), 0);
        run_finals(loop, &rec, 3);
        check_two(&rec, ids[0], 1000, 1000, 0);
        free_loop(loop);
        close(fds[0]);
        forget(&rec);
    }
}

TEST(a_cancel_after_the_result_changes_nothing) {
    int fds[2];
    tcp_pair(fds);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, zerocopy(upcall_op_send(fds[1], bytes, 1000, 0)), &rec);
    run_until(loop, &rec, 1);
    if (rec.finals == 0)
        CHECK_EQ(upcall_cancel(loop, id), 0);
    read_all(fds[0], got, 1000);
    run_finals(loop, &rec, 1);
    check_two(&rec, id, 1000, 1000, 0);
    CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
    free_loop(loop);
    close_pair(fds);
    forget(&rec);
}

TEST(they_can_be_reaped) {
    for (size_t i = 0; i < COUNT_OF(sockets); i++) {
        int fds[2];
        make_stream(sockets[i], fds);
        upcall_loop *loop = new_loop();
        upcall_op op = zerocopy(upcall_op_send(fds[1], bytes, 100, 0));
        upcall_id id;
        upcall_event events[2];
        CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
        int n = 0;
        for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; n < 2 && now_ns() < limit;) {
            CHECK(upcall_poll(loop, MS(1)) >= 0);
            n += upcall_reap(loop, events + n, 2 - (size_t)n);
            if (n == 1)
                read_all(fds[0], got, 100);
        }
        CHECK_EQ(n, 2);
        CHECK(events[0].id == id && events[1].id == id);
        CHECK_EQ(events[0].result, 100);
        CHECK_EQ(events[0].flags, UPCALL_MORE);
        CHECK_EQ(events[1].result, 100);
        CHECK_EQ(events[1].flags, UPCALL_RELEASED);
        free_loop(loop);
        close_pair(fds);
    }
}

TEST(a_loop_freed_after_the_result_waits_for_the_release) { /* hazards rows 1, 33 */
    int fds[2];
    tcp_pair(fds);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, zerocopy(upcall_op_send(fds[1], bytes, 1000, 0)), &rec);
    run_until(loop, &rec, 1);
    read_all(fds[0], got, 1000);
    free_loop(loop);
    check_two(&rec, id, 1000, 1000, 0);
    close_pair(fds);
    forget(&rec);
}

/* The reader is slow, and what was released is overwritten at once: it arrives as it was. */
enum { PARTS = 8, PART = 60000 };
static uint8_t parts[PARTS][PART];
static upcall_id part_ids[PARTS];
static void overwrite_released(upcall_loop *loop, const upcall_event *event) {
    for (size_t i = 0; i < PARTS && (event->flags & UPCALL_RELEASED); i++)
        if (event->id == part_ids[i])
            memset(parts[i], 0xdd, PART);
    record(loop, event);
}

TEST(data_that_was_released_is_not_needed_any_more) { /* hazards row 33 */
    for (size_t k = 0; k < COUNT_OF(sockets); k++) {
        struct recorder rec = {0};
        upcall_op ops[PARTS];
        int fds[2];
        if (sockets[k] == DATAGRAM)
            continue;
        make_stream(sockets[k], fds);
        upcall_loop *loop = new_loop();
        for (size_t i = 0; i < PARTS; i++) {
            fill_pattern(parts[i], PART, i * PART);
            ops[i] = zerocopy(upcall_op_send(fds[1], parts[i], PART, 0));
            ops[i].flags |= UPCALL_FULL | (i + 1 < PARTS ? UPCALL_LINK : 0);
            ops[i].callback = overwrite_released;
            ops[i].user = &rec;
        }
        CHECK_EQ(upcall_submit(loop, ops, PARTS, part_ids), 0);
        for (size_t done = 0; done < PARTS * PART;) {
            uint8_t some[3000];
            start_all(loop);
            if (!is_readable(fds[0], 0)) {
                CHECK(upcall_poll(loop, MS(1)) >= 0);
                continue;
            }
            ssize_t n = read(fds[0], some, sizeof some);
            CHECK(n > 0);
            CHECK(has_pattern(some, (size_t)n, done));
            done += (size_t)n;
        }
        run_finals(loop, &rec, PARTS);
        check_finals(&rec, part_ids, PARTS);
        for (size_t i = 0; i < PARTS; i++)
            CHECK_EQ(parts[i][0], 0xdd);
        free_loop(loop);
        close_pair(fds);
        forget(&rec);
    }
}

TEST(another_thread_may_submit_it) {
    int fds[2];
    tcp_pair(fds);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id id = submit_one(loop, zerocopy(upcall_op_send(fds[1], bytes, 100, 0)), &rec); /* nobody owns it yet */
    run_until(loop, &rec, 1);
    read_all(fds[0], got, 100);
    run_finals(loop, &rec, 1);
    check_two(&rec, id, 100, 100, 0);
    free_loop(loop);
    close_pair(fds);
    forget(&rec);
}

TEST(only_sends_take_it) {
    upcall_loop *loop = new_loop();
    char byte;
    refused(loop, zerocopy(upcall_op_recv(0, &byte, 1, 0)), EINVAL, "UPCALL_ZEROCOPY");
    refused(loop, zerocopy(upcall_op_write(0, &byte, 1)), EINVAL, "UPCALL_ZEROCOPY");
    refused(loop, zerocopy(upcall_op_nop()), EINVAL, "UPCALL_ZEROCOPY");
    free_loop(loop);
}
