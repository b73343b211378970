/* UPCALL_FULL: one completion when all bytes are moved; and the truth about how many were, when they are not. */
#include "check.h"
#include <linux/sockios.h>
#include <sys/ioctl.h>

enum { BIG = 8 << 20 };
static uint8_t out[BIG], in[BIG];

static upcall_op full(upcall_op op) {
    op.flags |= UPCALL_FULL;
    return op;
}

static int waiting_bytes(int fd) {
    int n;
    CHECK(ioctl(fd, FIONREAD, &n) == 0);
    return n;
}

/* Turns until the operation in flight has taken what was written: all has arrived at fds[0] and nothing waits there. */
static void let_it_take_all(upcall_loop *loop, const int fds[2]) {
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    for (int unsent = 0; (ioctl(fds[1], SIOCOUTQ, &unsent) == 0 && unsent > 0) || waiting_bytes(fds[0]) > 0;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK(now_ns() < limit);
    }
    CHECK(upcall_poll(loop, 0) >= 0);
}

/* The ways to receive `len` bytes in full: read, readv, recv, recvmsg. */
enum { READ, READV, RECV, RECVMSG, WAYS };
struct vector {
    struct iovec parts[5];
    struct msghdr message; /* recvmsg borrows it */
};
static struct vector *split(const void *buf, size_t len) {
    static struct vector vectors[8]; /* more than are in flight at once */
    static size_t next;
    struct vector *vector = &vectors[next++ % COUNT_OF(vectors)];
    size_t used = 0;
    for (size_t i = 0; i < COUNT_OF(vector->parts); i++) { /* of odd sizes, one of them empty */
        size_t n = i == 2 ? 0 : i == 4 ? len - used : len / (7 - i);
        vector->parts[i] = (struct iovec){(char *)(uintptr_t)buf + used, n};
        used += n;
    }
    vector->message = (struct msghdr){.msg_iov = vector->parts, .msg_iovlen = COUNT_OF(vector->parts)};
    return vector;
}
static upcall_op receiving(int way, int fd, void *buf, size_t len) {
    struct vector *vector = split(buf, len);
    return full(way == READ    ? upcall_op_read(fd, buf, len)
                : way == READV ? upcall_op_readv(fd, vector->parts, COUNT_OF(vector->parts))
                : way == RECV  ? upcall_op_recv(fd, buf, len, 0)
                               : upcall_op_recvmsg(fd, &vector->message, 0));
}
static upcall_op sending(int way, int fd, const void *buf, size_t len) {
    struct vector *vector = split(buf, len);
    return full(way == READ    ? upcall_op_write(fd, buf, len)
                : way == READV ? upcall_op_writev(fd, vector->parts, COUNT_OF(vector->parts))
                : way == RECV  ? upcall_op_send(fd, buf, len, 0)
                               : upcall_op_sendmsg(fd, &vector->message, 0));
}

#define FOR_EACH_PAIR_AND_WAY(which, way)                                                                              \
    for (int which = 0; which < PAIRS; which++)                                                                        \
        for (int way = 0; way < (which == PIPE ? RECV : WAYS); way++)

TEST_FOR(partial_arrivals_make_one_event, 60) { /* hazards row 20 */
    upcall_loop *loop = new_loop();
    FOR_EACH_PAIR_AND_WAY(which, way) {
        struct recorder rec = {0};
        int fds[2];
        const size_t length = 500;
        uint64_t seed = (uint64_t)(which + way);
        make_pair(which, fds);
        fill_pattern(out, length, 0);
        memset(in, 0, length);
        upcall_id id = submit_one(loop, receiving(way, fds[0], in, length), &rec);
        for (size_t done = 0; done < length;) {
            size_t n = 1 + chance(&seed) % 40;
            n = n < length - done ? n : length - done;
            CHECK_EQ(rec.count, 0);
            write_all(fds[1], out + done, n);
            done += n;
            if (chance(&seed) % 4)
                CHECK(upcall_poll(loop, 0) >= 0);
        }
        run_finals(loop, &rec, 1);
        check_finals(&rec, &id, 1);
        CHECK_EQ(rec.count, 1);
        CHECK_EQ(rec.events[0].result, length);
        CHECK_EQ(rec.events[0].transferred, length);
        CHECK_EQ(rec.events[0].flags, 0);
        CHECK(has_pattern(in, length, 0));
        close_pair(fds);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(without_full_what_is_there_is_enough) {
    upcall_loop *loop = new_loop();
    for (int which = 0; which < PAIRS; which++) {
        int fds[2];
        make_pair(which, fds);
        write_all(fds[1], "abc", 3);
        struct record got = complete(loop, upcall_op_read(fds[0], in, 100));
        CHECK_EQ(got.result, 3);
        CHECK_EQ(got.transferred, 3);
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(end_of_file_gives_the_short_count) {
    upcall_loop *loop = new_loop();
    FOR_EACH_PAIR_AND_WAY(which, way)
        for (size_t sent = 0; sent <= 30; sent += 30) {
            struct recorder rec = {0};
            int fds[2];
            make_pair(which, fds);
            submit_one(loop, receiving(way, fds[0], in, 100), &rec);
            fill_pattern(out, sent, 0);
            write_all(fds[1], out, sent);
            let_it_take_all(loop, fds);
            CHECK_EQ(rec.count, 0);
            close(fds[1]);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, sent);
            CHECK_EQ(rec.events[0].transferred, sent);
            CHECK(has_pattern(in, sent, 0));
            close(fds[0]);
            forget(&rec);
        }
    free_loop(loop);
}

TEST(full_file_transfers_are_whole_up_to_the_end_of_the_file) {
    upcall_loop *loop = new_loop();
    int file = temp_file(10000);
    CHECK_EQ(complete(loop, full(upcall_op_pread(file, in, 6000, 1000))).result, 6000);
    CHECK(has_pattern(in, 6000, 1000));
    struct record end = complete(loop, full(upcall_op_pread(file, in, 6000, 9000)));
    CHECK_EQ(end.result, 1000);
    CHECK_EQ(end.transferred, 1000);
    CHECK_EQ(complete(loop, full(upcall_op_pread(file, in, 6000, 20000))).result, 0);
    CHECK_EQ(complete(loop, full(upcall_op_read(file, in, 9990))).result, 9990);
    CHECK_EQ(complete(loop, full(upcall_op_read(file, in, 100))).result, 10);
    CHECK_EQ(complete(loop, full(upcall_op_read(file, in, 100))).result, 0);
    CHECK_EQ(complete(loop, receiving(READV, file, in, 100)).result, 0);
    fill_pattern(out, BIG, 0);
    CHECK_EQ(complete(loop, full(upcall_op_pwrite(file, out, BIG, 0))).result, BIG);
    memset(in, 0, BIG);
    CHECK_EQ(complete(loop, full(upcall_op_pread(file, in, BIG, 0))).result, BIG);
    CHECK(has_pattern(in, BIG, 0));
    free_loop(loop);
}

TEST_FOR(large_transfers_pass_through_small_buffers_both_ways_at_once, 60) { /* hazards row 20 */
    upcall_loop *loop = new_loop();
    fill_pattern(out, BIG, 0);
    static uint8_t back[BIG];
    for (int which = UNIX; which < PAIRS; which++)
        for (int way = 0; way < WAYS; way++) {
            struct recorder rec = {0};
            int fds[2];
            upcall_id ids[4];
            make_pair(which, fds);
            memset(in, 0, BIG);
            memset(back, 0, BIG);
            ids[0] = submit_one(loop, sending(way, fds[0], out, BIG), &rec);
            ids[1] = submit_one(loop, sending(way, fds[1], out, BIG), &rec);
            ids[2] = submit_one(loop, receiving(way, fds[0], in, BIG), &rec);
            ids[3] = submit_one(loop, receiving(way, fds[1], back, BIG), &rec);
            run_finals(loop, &rec, 4);
            check_finals(&rec, ids, 4);
            for (int i = 0; i < 4; i++) {
                CHECK_EQ(rec.events[i].result, BIG);
                CHECK_EQ(rec.events[i].transferred, BIG);
            }
            CHECK(memcmp(in, out, BIG) == 0);
            CHECK(memcmp(back, out, BIG) == 0);
            close_pair(fds);
            forget(&rec);
        }
    free_loop(loop);
}

TEST_FOR(large_transfers_pass_through_a_pipe, 60) { /* hazards row 20 */
    upcall_loop *loop = new_loop();
    fill_pattern(out, BIG, 0);
    for (int way = 0; way <= READV; way++)
        for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
            struct recorder rec = {0};
            int fds[2];
            pipe_pair(fds);
            if (nonblocking) {
                set_nonblocking(fds[0]);
                set_nonblocking(fds[1]);
            }
            memset(in, 0, BIG);
            submit_one(loop, sending(way, fds[1], out, BIG), &rec);
            submit_one(loop, receiving(way, fds[0], in, BIG), &rec);
            run_finals(loop, &rec, 2);
            CHECK_EQ(rec.events[0].result, BIG);
            CHECK_EQ(rec.events[1].result, BIG);
            CHECK(memcmp(in, out, BIG) == 0);
            CHECK_EQ(fcntl(fds[0], F_GETFL) & O_NONBLOCK, nonblocking ? O_NONBLOCK : 0);
            CHECK_EQ(fcntl(fds[1], F_GETFL) & O_NONBLOCK, nonblocking ? O_NONBLOCK : 0);
            close_pair(fds);
            forget(&rec);
        }
    free_loop(loop);
}

TEST_FOR(a_large_receive_survives_bytes_that_trickle, 60) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    enum { LENGTH = 3000 };
    tcp_pair(fds);
    fill_pattern(out, LENGTH, 0);
    submit_one(loop, receiving(RECVMSG, fds[0], in, LENGTH), &rec);
    for (int i = 0; i < LENGTH; i++) {
        CHECK_EQ(rec.count, 0);
        write_all(fds[1], out + i, 1);
        if (i % 3 == 0)
            CHECK(upcall_poll(loop, 0) >= 0);
    }
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, LENGTH);
    CHECK(has_pattern(in, LENGTH, 0));
    free_loop(loop);
}

/* ---- Half-way. ---- */

TEST(an_error_after_a_part_tells_both) { /* hazards row 34 */
    upcall_loop *loop = new_loop();
    struct linger reset = {1, 0};
    for (int way = 0; way < WAYS; way++) {
        struct recorder rec = {0};
        int fds[2];
        tcp_pair(fds);
        submit_one(loop, receiving(way, fds[0], in, 100), &rec);
        start_all(loop);
        fill_pattern(out, 40, 0);
        write_all(fds[1], out, 40);
        let_it_take_all(loop, fds);
        CHECK(setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
        close(fds[1]);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, -ECONNRESET);
        CHECK_EQ(rec.events[0].transferred, 40);
        CHECK(has_pattern(in, 40, 0));
        close(fds[0]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(a_reader_that_goes_away_leaves_the_count_of_what_was_written) { /* hazards rows 20, 24 */
    upcall_loop *loop = new_loop();
    FOR_EACH_PAIR_AND_WAY(which, way) {
        if (which == TCP)
            continue; /* there the error may come late */
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        submit_one(loop, sending(way, fds[1], out, BIG), &rec);
        start_all(loop);
        size_t taken = 0;
        while (taken < 300000) {
            CHECK(upcall_poll(loop, MS(1)) >= 0);
            taken += drain_fd(fds[0]);
        }
        for (int i = 0; i < 5; i++)
            CHECK(upcall_poll(loop, MS(2)) >= 0);
        CHECK_EQ(rec.count, 0);
        size_t inside = (size_t)waiting_bytes(fds[0]);
        close(fds[0]);
        run_finals(loop, &rec, 1);
        CHECK(rec.events[0].result == -EPIPE || (which == UNIX && rec.events[0].result == -ECONNRESET));
        CHECK(rec.events[0].transferred >= taken + inside);
        CHECK(rec.events[0].transferred < BIG);
        close(fds[1]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(a_cancel_at_each_byte_tells_what_arrived) { /* hazards row 20 */
    upcall_loop *loop = new_loop();
    FOR_EACH_PAIR_AND_WAY(which, way) {
        int fds[2];
        make_pair(which, fds);
        for (size_t sent = 0; sent < 12; sent++) {
            struct recorder rec = {0};
            memset(in, 0xee, 16);
            upcall_id id = submit_one(loop, receiving(way, fds[0], in, 12), &rec);
            start_all(loop);
            fill_pattern(out, sent, 0);
            write_all(fds[1], out, sent);
            if (sent)
                let_it_take_all(loop, fds);
            CHECK_EQ(rec.count, 0);
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.count, 1);
            CHECK_EQ(rec.events[0].result, -ECANCELED);
            CHECK_EQ(rec.events[0].transferred, sent);
            CHECK(has_pattern(in, sent, 0));
            for (size_t i = sent; i < 16; i++)
                CHECK_EQ(in[i], 0xee);
            forget(&rec);
        }
        close_pair(fds);
    }
    free_loop(loop);
}

TEST_FOR(a_cancelled_send_tells_what_went_out, 60) { /* hazards row 20 */
    upcall_loop *loop = new_loop();
    static uint8_t back[BIG];
    fill_pattern(out, BIG, 0);
    uint64_t seed = 4;
    FOR_EACH_PAIR_AND_WAY(which, way)
        for (int round = 0; round < 3; round++) {
            struct recorder rec = {0};
            int fds[2];
            size_t total = 0;
            make_pair(which, fds);
            upcall_id id = submit_one(loop, sending(way, fds[1], out, BIG), &rec);
            for (uint64_t turns = chance(&seed) % 6; turns > 0; turns--) {
                CHECK(upcall_poll(loop, 0) >= 0);
                if (chance(&seed) % 2 && is_readable(fds[0], 0)) {
                    ssize_t n = read(fds[0], back + total, 50000);
                    CHECK(n > 0);
                    total += (size_t)n;
                }
            }
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, -ECANCELED);
            close(fds[1]);
            for (ssize_t n; (n = read(fds[0], back + total, sizeof back - total)) > 0;)
                total += (size_t)n;
            CHECK_EQ(rec.events[0].transferred, total);
            CHECK(has_pattern(back, total, 0));
            close(fds[0]);
            forget(&rec);
        }
    free_loop(loop);
}

TEST(closing_half_way_tells_what_arrived) { /* hazards rows 11, 20 */
    upcall_loop *loop = new_loop();
    FOR_EACH_PAIR_AND_WAY(which, way) {
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        upcall_id ids[2];
        ids[0] = submit_one(loop, receiving(way, fds[0], in, 100), &rec);
        start_all(loop);
        fill_pattern(out, 40, 0);
        write_all(fds[1], out, 40);
        let_it_take_all(loop, fds);
        CHECK_EQ(rec.count, 0);
        ids[1] = submit_one(loop, upcall_op_close(fds[0]), &rec);
        run_finals(loop, &rec, 2);
        CHECK_EQ(rec.events[0].id, ids[0]);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        CHECK_EQ(rec.events[0].transferred, 40);
        CHECK(has_pattern(in, 40, 0));
        CHECK_EQ(rec.events[1].id, ids[1]);
        CHECK_EQ(rec.events[1].result, 0);
        CHECK(!is_open(fds[0]));
        close(fds[1]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(freeing_the_loop_half_way_tells_what_arrived) { /* hazards rows 1, 20 */
    FOR_EACH_PAIR_AND_WAY(which, way) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        submit_one(loop, receiving(way, fds[0], in, 100), &rec);
        start_all(loop);
        write_all(fds[1], out, 40);
        let_it_take_all(loop, fds);
        free_loop(loop);
        CHECK_EQ(rec.count, 1);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        CHECK_EQ(rec.events[0].transferred, 40);
        close_pair(fds);
    }
}

/* ---- Races of cancel and arrival: every byte is counted once. ---- */

enum { RACE_BYTES = 100000 };
static void *write_bytes(void *arg) {
    uint64_t seed = 8;
    int fd = *(int *)arg;
    for (size_t done = 0; done < RACE_BYTES;) {
        uint8_t block[100];
        size_t n = 1 + chance(&seed) % sizeof block;
        n = n < RACE_BYTES - done ? n : RACE_BYTES - done;
        fill_pattern(block, n, done);
        write_all(fd, block, n);
        done += n;
        for (uint64_t spin = chance(&seed) % 3000; spin > 0; spin--)
            __asm__ volatile("");
    }
    return NULL;
}

TEST_FOR(cancel_racing_a_full_receive_conserves_the_bytes, 60) { /* hazards rows 5, 6, 20 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        int fds[2], cancelled = 0;
        uint64_t seed = 6;
        make_pair(which, fds);
        pthread_t thread = start(write_bytes, &fds[1]);
        for (size_t got = 0; got < RACE_BYTES;) {
            struct recorder rec = {0};
            size_t want = 1 + chance(&seed) % 2000;
            want = want < RACE_BYTES - got ? want : RACE_BYTES - got;
            upcall_op op = full(which == PIPE ? upcall_op_read(fds[0], in, want)
                                              : upcall_op_recv(fds[0], in, want, 0));
            bool timed = chance(&seed) % 2;
            op.timeout_ns = timed ? 1 + chance(&seed) % 100000 : 0;
            upcall_id id = submit_one(loop, op, &rec);
            for (uint64_t turns = chance(&seed) % 12; turns > 0; turns--)
                CHECK(upcall_poll(loop, 0) >= 0);
            if (!timed)
                CHECK_EQ(upcall_cancel(loop, id), rec.finals ? -ENOENT : 0);
            run_finals(loop, &rec, 1);
            struct record final = final_of(&rec, id);
            if (final.result < 0) {
                CHECK_EQ(final.result, timed ? -ETIMEDOUT : -ECANCELED);
                CHECK(final.transferred < want);
                cancelled++;
            } else
                CHECK_EQ(final.result, want);
            CHECK(has_pattern(in, final.transferred, got));
            got += final.transferred;
            forget(&rec);
        }
        join(thread);
        CHECK_EQ(waiting_bytes(fds[0]), 0);
        CHECK(cancelled > 0);
        close_pair(fds);
        free_loop(loop);
    }
}

TEST(on_a_message_socket_full_is_one_message) {
    upcall_loop *loop = new_loop();
    for (int way = 0; way < WAYS; way++) {
        int fds[2];
        dgram_pair(fds);
        CHECK(send(fds[1], "abc", 3, 0) == 3);
        CHECK(send(fds[1], "defgh", 5, 0) == 5);
        CHECK_EQ(complete(loop, receiving(way, fds[0], in, 100)).result, 3);
        CHECK(memcmp(in, "abc", 3) == 0);
        CHECK_EQ(complete(loop, receiving(way, fds[0], in, 100)).result, 5);
        CHECK_EQ(complete(loop, sending(way, fds[0], "xyz", 3)).result, 3);
        CHECK_EQ(recv(fds[1], in, 100, 0), 3);
        close_pair(fds);
    }
    free_loop(loop);
}

TEST(two_full_receives_on_one_stream_do_not_mix) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    upcall_op ops[2] = {full(upcall_op_recv(fds[0], in, 1000, 0)), full(upcall_op_recv(fds[0], in + 1000, 1000, 0))};
    upcall_id ids[2];
    ops[0].flags |= UPCALL_LINK; /* which is how one asks for that */
    submit_many(loop, ops, 2, &rec, ids);
    fill_pattern(out, 2000, 0);
    for (int i = 0; i < 20; i++) {
        write_all(fds[1], out + i * 100, 100);
        CHECK(upcall_poll(loop, 0) >= 0);
    }
    run_finals(loop, &rec, 2);
    CHECK_EQ(rec.events[0].id, ids[0]);
    CHECK_EQ(rec.events[0].result, 1000);
    CHECK_EQ(rec.events[1].result, 1000);
    CHECK(has_pattern(in, 2000, 0));
    free_loop(loop);
}
