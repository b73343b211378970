/* Closing descriptors: the loop's way, and the program's own way with nothing in flight. */
#include "check.h"
#include <sys/eventfd.h>

static char data[64];

/* ---- upcall_op_close. ---- */

/* Every operation ends in -ECANCELED before the close event, and then the number is free. */
static void close_with(upcall_op *ops, size_t n, int fd, bool started) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_id ids[17];
    CHECK(n < COUNT_OF(ids));
    submit_many(loop, ops, n, &rec, ids);
    if (started) {
        start_all(loop);
        pause_ms(2);
        start_all(loop);
    }
    CHECK_EQ(rec.count, 0);
    ids[n] = submit_one(loop, upcall_op_close(fd), &rec);
    CHECK(is_open(fd)); /* not inside submit */
    run_finals(loop, &rec, n + 1);
    check_finals(&rec, ids, n + 1);
    CHECK_EQ(order_of(&rec, ids[n]), n);
    CHECK_EQ(final_of(&rec, ids[n]).result, 0);
    for (size_t i = 0; i < n; i++) {
        CHECK_EQ(final_of(&rec, ids[i]).result, -ECANCELED);
        CHECK_EQ(final_of(&rec, ids[i]).transferred, 0);
    }
    CHECK(!is_open(fd));
    quiet(loop, &rec);
    free_loop(loop);
}

static upcall_op multishot(upcall_op op) {
    op.flags |= UPCALL_MULTISHOT;
    return op;
}

TEST(close_first_ends_what_is_in_flight_on_the_descriptor) { /* hazards row 11 */
    for (int which = 0; which < PAIRS; which++)
        for (int started = 0; started < 2; started++) {
            int fds[2];
            make_pair(which, fds);
            struct iovec part = {data, 8};
            upcall_op ops[] = {upcall_op_read(fds[0], data, 8), upcall_op_poll(fds[0], POLLIN),
                               upcall_op_readv(fds[0], &part, 1), multishot(upcall_op_poll(fds[0], POLLIN)),
                               upcall_op_read(fds[0], data, 8)};
            ops[4].flags |= UPCALL_FULL;
            ops[1].timeout_ns = 3600 * UPCALL_SECOND;
            close_with(ops, COUNT_OF(ops), fds[0], started);
            if (which == PIPE) {
                signal(SIGPIPE, SIG_IGN);
                CHECK(write(fds[1], "x", 1) == -1 && errno == EPIPE); /* the last reader is gone */
            } else
                CHECK_EQ(read(fds[1], data, 8), 0); /* the peer sees the end at once */
            close(fds[1]);
        }
}

TEST(close_first_ends_writers) { /* hazards row 11 */
    for (int which = 0; which < PAIRS; which++) {
        int fds[2];
        make_pair(which, fds);
        fill_up(fds[1]);
        upcall_op ops[] = {upcall_op_write(fds[1], data, 64), upcall_op_poll(fds[1], POLLPRI)};
        close_with(ops, which == PIPE ? 1 : 2, fds[1], true);
        while (read(fds[0], data, sizeof data) > 0) {} /* to the end of the stream, which comes */
        close(fds[0]);
    }
}

TEST(close_first_ends_accepts_and_nobody_connects_any_more) { /* hazards row 11 */
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK)
        for (int many = 0; many < 2; many++) {
            struct sockaddr_in address;
            int listener = tcp_listener(&address, type, 8), fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
            if (many)
                op.flags = UPCALL_MULTISHOT;
            close_with(&op, 1, listener, true);
            CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == -1);
            CHECK_EQ(errno, ECONNREFUSED);
            close(fd);
        }
}

TEST(close_ends_a_multishot_recv_and_delivers_what_it_had) { /* hazards row 11 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_buffers *pool;
    int fds[2];
    unix_pair(fds);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
    op.flags = UPCALL_MULTISHOT;
    op.buffers = pool;
    upcall_id ids[2] = {submit_one(loop, op, &rec)};
    start_all(loop);
    write_all(fds[1], "abc", 3);
    ids[1] = submit_one(loop, upcall_op_close(fds[0]), &rec); /* races what has just arrived */
    run_finals(loop, &rec, 2);
    check_finals(&rec, ids, 2);
    CHECK_EQ(rec.events[rec.count - 1].id, ids[1]);
    CHECK_EQ(rec.events[rec.count - 1].result, 0);
    CHECK_EQ(final_of(&rec, ids[0]).result, -ECANCELED);
    for (size_t i = 0; i < rec.count; i++)
        if (rec.events[i].buffer)
            CHECK_EQ(upcall_buffers_return(pool, rec.events[i].buffer), 0);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

TEST(a_result_that_came_first_is_delivered_before_the_close) {
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 50; round++) {
        struct recorder rec = {0};
        int fds[2];
        make_pair(round % PAIRS, fds);
        upcall_id ids[2] = {submit_one(loop, upcall_op_read(fds[0], data, 8), &rec)};
        if (round % 2)
            start_all(loop);
        write_all(fds[1], "abc", 3);
        ids[1] = submit_one(loop, upcall_op_close(fds[0]), &rec);
        run_finals(loop, &rec, 2);
        check_finals(&rec, ids, 2);
        CHECK_EQ(rec.events[0].id, ids[0]);
        CHECK(rec.events[0].result == 3 || rec.events[0].result == -ECANCELED);
        CHECK_EQ(rec.events[1].result, 0);
        close(fds[1]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(close_of_an_idle_descriptor_just_closes) {
    upcall_loop *loop = new_loop();
    int fds[2], file = temp_file(10);
    pipe_pair(fds);
    CHECK_EQ(complete(loop, upcall_op_close(fds[0])).result, 0);
    CHECK_EQ(complete(loop, upcall_op_close(fds[1])).result, 0);
    CHECK_EQ(complete(loop, upcall_op_close(file)).result, 0);
    CHECK(!is_open(fds[0]) && !is_open(fds[1]) && !is_open(file));
    CHECK_EQ(complete(loop, upcall_op_close(file)).result, -EBADF);
    free_loop(loop);
}

TEST(close_leaves_other_descriptors_of_the_same_file_alone) { /* hazards row 10 */
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    int copy = fcntl(fds[0], F_DUPFD_CLOEXEC, 0);
    upcall_id kept = submit_one(loop, upcall_op_recv(copy, data, 8, 0), &rec);
    upcall_id ended = submit_one(loop, upcall_op_recv(fds[0], data + 8, 8, 0), &rec);
    start_all(loop);
    submit_one(loop, upcall_op_close(fds[0]), &rec);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ended).result, -ECANCELED);
    write_all(fds[1], "abc", 3);
    run_finals(loop, &rec, 3);
    CHECK_EQ(final_of(&rec, kept).result, 3);
    CHECK(memcmp(data, "abc", 3) == 0);
    free_loop(loop);
}

TEST(what_is_submitted_on_a_closing_descriptor_is_ebadf) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    upcall_id before = submit_one(loop, upcall_op_recv(fds[0], data, 8, 0), &rec);
    start_all(loop);
    upcall_id closing = submit_one(loop, upcall_op_close(fds[0]), &rec);
    upcall_id late = submit_one(loop, upcall_op_recv(fds[0], data, 8, 0), &rec);
    upcall_id again = submit_one(loop, upcall_op_close(fds[0]), &rec);
    run_finals(loop, &rec, 4);
    CHECK_EQ(final_of(&rec, before).result, -ECANCELED);
    CHECK_EQ(final_of(&rec, closing).result, 0);
    CHECK_EQ(final_of(&rec, late).result, -EBADF);
    CHECK_EQ(final_of(&rec, again).result, -EBADF);
    free_loop(loop);
}

TEST(a_close_that_never_started_leaves_the_descriptor_open) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    upcall_op ops[2] = {upcall_op_sleep(3600 * UPCALL_SECOND), upcall_op_close(fds[0])};
    upcall_id ids[2];
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, ops, 2, &rec, ids);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, ids[1]), 0);
    CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[1]).result, -ECANCELED);
    CHECK(is_open(fds[0]));
    write_all(fds[1], "abc", 3);
    CHECK_EQ(complete(loop, upcall_op_recv(fds[0], data, 8, 0)).result, 3);
    free_loop(loop);
}

TEST(a_started_close_cannot_be_cancelled) {
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 30; round++) {
        struct recorder rec = {0};
        int fds[2];
        unix_pair(fds);
        upcall_id reading = submit_one(loop, upcall_op_recv(fds[0], data, 8, 0), &rec);
        start_all(loop);
        upcall_id closing = submit_one(loop, upcall_op_close(fds[0]), &rec);
        if (round % 2)
            CHECK(upcall_poll(loop, 0) >= 0);
        int rc = upcall_cancel(loop, closing);
        CHECK(rc == 0 || rc == -ENOENT);
        while (events_of(&rec, closing) == 0)
            run_finals(loop, &rec, rec.finals + 1);
        CHECK_EQ(is_open(fds[0]), final_of(&rec, closing).result == -ECANCELED); /* the truth, either way */
        if (is_open(fds[0]))
            upcall_cancel(loop, reading);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, reading).result, -ECANCELED);
        if (is_open(fds[0]))
            close(fds[0]);
        close(fds[1]);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(freeing_the_loop_closes_or_keeps_what_the_event_says) {
    for (int started = 0; started < 2; started++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        unix_pair(fds);
        submit_one(loop, upcall_op_recv(fds[0], data, 8, 0), &rec);
        start_all(loop);
        upcall_id closing = submit_one(loop, upcall_op_close(fds[0]), &rec);
        if (started)
            CHECK(upcall_poll(loop, 0) >= 0);
        free_loop(loop);
        CHECK_EQ(rec.finals, 2);
        CHECK_EQ(is_open(fds[0]), final_of(&rec, closing).result == -ECANCELED);
    }
}

static int closed_in_callback;
static void close_in_callback(upcall_loop *loop, const upcall_event *event) {
    submit_one(loop, upcall_op_close(closed_in_callback), event->user);
    record(loop, event);
}

TEST(a_callback_may_close_its_own_descriptor) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    tcp_pair(fds);
    closed_in_callback = fds[0];
    upcall_op op = upcall_op_recv(fds[0], data, 8, 0);
    op.callback = close_in_callback;
    op.user = &rec;
    submit_one(loop, op, &rec);
    upcall_id other = submit_one(loop, upcall_op_poll(fds[0], POLLPRI), &rec);
    start_all(loop);
    write_all(fds[1], "abc", 3);
    run_finals(loop, &rec, 3);
    CHECK_EQ(rec.events[0].result, 3);
    CHECK_EQ(final_of(&rec, other).result, -ECANCELED);
    CHECK_EQ(rec.events[2].kind, UPCALL_OP_CLOSE);
    CHECK_EQ(rec.events[2].result, 0);
    CHECK_EQ(read(fds[1], data, 8), 0);
    free_loop(loop);
}

TEST(a_number_closed_by_the_loop_may_be_used_again_at_once) { /* hazards rows 11, 12 */
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 100; round++) {
        struct recorder rec = {0};
        int fds[2];
        make_pair(round % PAIRS, fds);
        memset(data, 0, sizeof data);
        submit_one(loop, upcall_op_read(fds[0], data, 8), &rec);
        if (round % 2)
            start_all(loop);
        submit_one(loop, upcall_op_close(fds[0]), &rec);
        run_finals(loop, &rec, 2);
        int number = fds[0], again[2];
        close(fds[1]);
        make_pair(round / 3 % PAIRS, again);
        CHECK(again[0] == number || again[1] == number || round % PAIRS == TCP || round / 3 % PAIRS == TCP);
        submit_one(loop, upcall_op_read(again[0], data, 8), &rec);
        if (round % 3)
            start_all(loop);
        write_all(again[1], "new", 3);
        run_finals(loop, &rec, 3);
        CHECK_EQ(rec.events[2].result, 3);
        CHECK(memcmp(data, "new", 3) == 0);
        close_pair(again);
        forget(&rec);
    }
    free_loop(loop);
}

/* ---- Plain close(2), with nothing in flight, and the number used again. ---- */

/* Puts a new pair's reading end at `number`. */
static void pair_at(int number, int which, int fds[2]) {
    make_pair(which, fds);
    if (fds[0] == number)
        return;
    if (fds[1] == number) {
        fds[1] = fcntl(number, F_DUPFD_CLOEXEC, 0);
        CHECK(fds[1] >= 0);
        close(number);
    }
    CHECK(dup3(fds[0], number, O_CLOEXEC) == number);
    close(fds[0]);
    fds[0] = number;
}

static void use_reader(upcall_loop *loop, const int fds[2], int way) {
    struct recorder rec = {0};
    memset(data, 0, sizeof data);
    if (way % 4 == 0)
        write_all(fds[1], "abc", 3);
    upcall_id id = submit_one(loop, way % 2 ? upcall_op_poll(fds[0], POLLIN) : upcall_op_read(fds[0], data, 8), &rec);
    if (way % 4) {
        start_all(loop);
        CHECK_EQ(rec.count, 0); /* nothing of the file that was here before */
        if (way % 4 == 3) { /* cancelled: nothing is in flight any more */
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, -ECANCELED);
            forget(&rec);
            return;
        }
        write_all(fds[1], "abc", 3);
    }
    run_finals(loop, &rec, 1);
    if (way % 2)
        CHECK_EQ(rec.events[0].result & POLLIN, POLLIN);
    else {
        CHECK_EQ(rec.events[0].result, 3);
        CHECK(memcmp(data, "abc", 3) == 0);
    }
    forget(&rec);
}

TEST_FOR(a_number_closed_by_the_program_may_be_used_again_at_once, 60) { /* hazards rows 11, 12 */
    upcall_loop *loop = new_loop();
    int number = fcntl(0, F_DUPFD_CLOEXEC, 50);
    uint64_t seed = 9;
    for (int round = 0; round < 400; round++) {
        int fds[2];
        close(number);
        pair_at(number, (int)(chance(&seed) % PAIRS), fds);
        for (uint64_t uses = 1 + chance(&seed) % 3; uses > 0; uses--) {
            int way = (int)(chance(&seed) % 8);
            use_reader(loop, fds, way);
            drain_fd(fds[0]);
        }
        close(fds[1]);
    }
    free_loop(loop);
}

TEST(a_number_changes_from_socket_to_pipe_to_file_to_eventfd) { /* hazards rows 12, 35 */
    upcall_loop *loop = new_loop();
    int number = fcntl(0, F_DUPFD_CLOEXEC, 50);
    for (int round = 0; round < 20; round++) {
        int fds[2], other = temp_file(10);
        close(number);
        pair_at(number, round % PAIRS, fds);
        use_reader(loop, fds, 2);
        close(fds[1]);
        close(number);
        CHECK(dup3(other, number, O_CLOEXEC) == number);
        close(other);
        memset(data, 0, sizeof data);
        CHECK_EQ(complete(loop, upcall_op_read(number, data, 20)).result, 10);
        CHECK(has_pattern(data, 10, 0));
        CHECK_EQ(complete(loop, upcall_op_poll(number, POLLIN)).result, POLLIN);
        close(number);
        other = eventfd(0, EFD_CLOEXEC);
        CHECK(dup3(other, number, O_CLOEXEC) == number);
        close(other);
        struct recorder rec = {0};
        uint64_t value = 7;
        submit_one(loop, upcall_op_read(number, data, 8), &rec);
        start_all(loop);
        CHECK_EQ(rec.count, 0);
        write_all(number, &value, sizeof value);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, 8);
        CHECK(memcmp(data, &value, 8) == 0);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(an_old_file_kept_open_elsewhere_does_not_answer_for_the_new_one) { /* hazards rows 11, 12 */
    upcall_loop *loop = new_loop();
    int number = fcntl(0, F_DUPFD_CLOEXEC, 50);
    for (int which = 0; which < PAIRS; which++)
        for (int way = 0; way < 2; way++) {
            struct recorder rec = {0};
            int old[2], fds[2];
            close(number);
            pair_at(number, which, old);
            use_reader(loop, old, 2);
            int kept = fcntl(old[0], F_DUPFD_CLOEXEC, 100); /* the file lives on */
            close(number);
            pair_at(number, which, fds);
            submit_one(loop, way ? upcall_op_poll(number, POLLIN) : upcall_op_read(number, data, 8), &rec);
            start_all(loop);
            write_all(old[1], "old", 3);
            for (int i = 0; i < 5; i++)
                CHECK(upcall_poll(loop, MS(2)) >= 0);
            CHECK_EQ(rec.count, 0);
            write_all(fds[1], "brand new", 8);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, way ? POLLIN : 8);
            if (!way)
                CHECK(memcmp(data, "brand ne", 8) == 0);
            read_all(kept, data, 3);
            CHECK(memcmp(data, "old", 3) == 0);
            close(kept);
            close(old[1]);
            close(fds[1]);
            forget(&rec);
        }
    free_loop(loop);
}

static int replaced[2];
static void replace_in_callback(upcall_loop *loop, const upcall_event *event) {
    int number = replaced[0];
    close(replaced[1]);
    close(number); /* plain: its only operation has just ended */
    pair_at(number, UNIX, replaced);
    submit_one(loop, upcall_op_recv(number, data, 8, 0), event->user);
    record(loop, event);
}

TEST(a_callback_may_close_and_reuse_its_number) { /* hazards rows 11, 12 */
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 30; round++) {
        struct recorder rec = {0};
        unix_pair(replaced);
        upcall_op op = upcall_op_recv(replaced[0], data, 8, 0);
        op.callback = replace_in_callback;
        op.user = &rec;
        submit_one(loop, op, &rec);
        if (round % 2)
            start_all(loop);
        write_all(replaced[1], "old", 3);
        run_finals(loop, &rec, 1);
        quiet(loop, &rec);
        CHECK_EQ(rec.count, 1);
        write_all(replaced[1], "newer", 5);
        run_finals(loop, &rec, 2);
        CHECK_EQ(rec.events[1].result, 5);
        CHECK(memcmp(data, "newer", 5) == 0);
        close_pair(replaced);
        forget(&rec);
    }
    free_loop(loop);
}

TEST(reuse_of_numbers_is_safe_for_many_at_once) { /* hazards row 12 */
    enum { N = 40 };
    upcall_loop *loop = new_loop();
    for (int round = 0; round < 30; round++) {
        struct recorder rec = {0};
        int fds[N][2];
        char bytes[N];
        upcall_id ids[N];
        for (int i = 0; i < N; i++) { /* the numbers of the round before, in another order of kinds */
            make_pair((i + round) % 2 ? UNIX : PIPE, fds[i]);
            ids[i] = submit_one(loop, upcall_op_read(fds[i][0], &bytes[i], 1), &rec);
        }
        if (round % 2)
            start_all(loop);
        for (int i = 0; i < N; i++) {
            char byte = (char)(i + round);
            write_all(fds[i][1], &byte, 1);
        }
        run_finals(loop, &rec, N);
        check_finals(&rec, ids, N);
        for (int i = 0; i < N; i++) {
            CHECK_EQ(final_of(&rec, ids[i]).result, 1);
            CHECK_EQ(bytes[i], (char)(i + round));
            close_pair(fds[i]);
        }
        forget(&rec);
    }
    free_loop(loop);
}

TEST(cancel_still_works_after_a_plain_close_that_came_too_soon) { /* hazards row 11 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        upcall_id ids[2] = {submit_one(loop, upcall_op_read(fds[0], data, 8), &rec),
                            submit_one(loop, upcall_op_poll(fds[0], POLLIN), &rec)};
        start_all(loop);
        close(fds[0]); /* a mistake: it has operations in flight */
        for (int i = 0; i < 3; i++)
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        for (int i = 0; i < 2; i++) {
            int rc = upcall_cancel(loop, ids[i]);
            CHECK(rc == 0 || (rc == -ENOENT && events_of(&rec, ids[i]) == 1));
        }
        run_finals(loop, &rec, 2);
        check_finals(&rec, ids, 2);
        for (int i = 0; i < 2; i++)
            CHECK(rec.events[i].result == -ECANCELED || rec.events[i].result == -EBADF);
        close(fds[1]);
        free_loop(loop);
    }
}

TEST(what_comes_behind_a_close_in_its_submit_is_too_late) {
    for (int way = 0; way < 3; way++) {
        upcall_loop *loop = new_loop();
        upcall_buffers *pool;
        struct recorder rec = {0};
        int fds[2];
        unix_pair(fds);
        CHECK_EQ(upcall_buffers_new(loop, 2, 64, &pool), 0);
        upcall_op ops[] = {upcall_op_close(fds[0]), upcall_op_recv(fds[0], data, 8, 0)};
        if (way == 0) /* as from another thread: before the first poll the loop has no owner */
            submit_many(loop, ops, 2, &rec, NULL);
        CHECK(upcall_poll(loop, 0) >= 0);
        if (way == 2) { /* with buffers, all are accepted before any starts */
            ops[1] = upcall_op_recv(fds[0], NULL, 0, 0);
            ops[1].buffers = pool;
        }
        if (way > 0)
            submit_many(loop, ops, 2, &rec, NULL);
        run_finals(loop, &rec, 2);
        for (int i = 0; i < 2; i++)
            CHECK_EQ(rec.events[i].result, rec.events[i].kind == UPCALL_OP_CLOSE ? 0 : -EBADF);
        CHECK(!is_open(fds[0]));
        close(fds[1]);
        forget(&rec);
        free_loop(loop);
        CHECK_EQ(upcall_buffers_free(pool), 0);
    }
}

static void *submit_recv(void *arg) {
    void **with = arg;
    upcall_op op = upcall_op_recv(*(int *)with[1], data, 8, 0);
    submit_one(with[0], op, with[2]);
    return NULL;
}

TEST(a_close_ends_what_another_thread_has_submitted_before) {
    for (int chained = 0; chained < 2; chained++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        unix_pair(fds);
        CHECK(upcall_poll(loop, 0) >= 0);
        join(start(submit_recv, (void *[]){loop, &fds[0], &rec}));
        upcall_op ops[] = {upcall_op_nop(), upcall_op_close(fds[0])};
        ops[0].flags = UPCALL_LINK;
        submit_many(loop, chained ? ops : ops + 1, chained ? 2 : 1, &rec, NULL);
        run_finals(loop, &rec, 2 + (size_t)chained);
        for (size_t i = 0; i < rec.count; i++)
            CHECK_EQ(rec.events[i].result, rec.events[i].kind == UPCALL_OP_RECV ? -ECANCELED : 0);
        CHECK_EQ(rec.events[rec.count - 1].kind, UPCALL_OP_CLOSE);
        close(fds[1]);
        forget(&rec);
        free_loop(loop);
    }
}
