/* splice, tee, sendfile, copy_range: two descriptors, and no bytes through the program's memory. */
#include "op_support.h"

/* ---- Subjects. fd: `in`; extra: `out`; peer: what fills `in`; far: where it comes out. ---- */

enum { TO_PIPE = 1, TO_UNIX = 2, FROM_UNIX = 4, TEE = 8 };

static void set_waiting_input(struct scene *scene) {
    int in[2], out[2];
    scene->subject->object & FROM_UNIX ? unix_pair(in) : pipe_pair(in);
    scene->subject->object & TO_UNIX ? unix_pair(out) : pipe_pair(out);
    scene->fd = in[0];
    scene->peer = in[1];
    scene->extra = out[1];
    scene->far = out[0];
}

static void give_input(struct scene *scene) {
    uint8_t bytes[10];
    fill_pattern(bytes, sizeof bytes, 7);
    write_all(scene->peer, bytes, sizeof bytes);
}

static upcall_op make_splice(struct scene *scene) {
    if (scene->subject->object & TEE)
        return upcall_op_tee(scene->fd, scene->extra, 100, 0);
    return upcall_op_splice(scene->fd, -1, scene->extra, -1, 100, 0);
}

static void has_moved(struct scene *scene, struct record final) {
    uint8_t got[10];
    CHECK_EQ(final.result, 10);
    CHECK_EQ(final.transferred, 10);
    read_all(scene->far, got, 10);
    CHECK(has_pattern(got, 10, 7));
    CHECK_EQ(is_readable(scene->fd, 0), (scene->subject->object & TEE) != 0);
}

static void has_not_moved(struct scene *scene) {
    CHECK(is_readable(scene->fd, 1000));
    CHECK(!is_readable(scene->far, 0));
}

#define SPLICES(name, kind_, object_)                                                                                  \
    static const struct subject name = {.kind = kind_, .object = object_, .set_up = set_waiting_input,                 \
        .make = make_splice, .allow = give_input, .done = has_moved, .intact = has_not_moved};

SPLICES(splice_pipe_to_pipe, UPCALL_OP_SPLICE, TO_PIPE)
SPLICES(splice_pipe_to_unix, UPCALL_OP_SPLICE, TO_UNIX)
SPLICES(splice_unix_to_pipe, UPCALL_OP_SPLICE, FROM_UNIX)
SPLICES(tee_pipe_to_pipe, UPCALL_OP_TEE, TEE)

PROMISES_OF_WAITING(splice_pipe_to_pipe)
PROMISES_OF_WAITING(splice_pipe_to_unix)
PROMISES_OF_WAITING(splice_unix_to_pipe)
PROMISES_OF_WAITING(tee_pipe_to_pipe)

/* ---- Waiting for the second descriptor. ---- */

struct blocked {
    int in[2], out[2];
    size_t filled;
};

static struct blocked output_is_full(int which) {
    struct blocked b;
    pipe_pair(b.in);
    make_stream(which, b.out);
    write_all(b.in[1], "abcd", 4);
    b.filled = fill_for_good(which, b.out[1]);
    return b;
}

static void clear_blocked(struct blocked *b) {
    close_pair(b->in);
    close_pair(b->out);
}

static const int outputs[] = {PIPE, UNIX, TCP};

TEST(splice_waits_for_room_in_the_second_descriptor) {
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
            struct blocked b = output_is_full(outputs[i]);
            if (nonblocking)
                set_nonblocking(b.out[1]);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            char got[4];
            submit_one(loop, upcall_op_splice(b.in[0], -1, b.out[1], -1, 4, 0), &rec);
            start_all(loop);
            no_more(loop, &rec);
            take(b.out[0], b.filled);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, 4);
            read_all(b.out[0], got, 4);
            CHECK(memcmp(got, "abcd", 4) == 0);
            free_loop(loop);
            clear_blocked(&b);
            forget(&rec);
        }
    }
}

struct cancel_on {
    upcall_loop *loop;
    int fd;
};

static void *cancel_from_here(void *arg) {
    struct cancel_on *what = arg;
    CHECK_EQ(upcall_cancel_fd(what->loop, what->fd), 1);
    return NULL;
}

TEST(cancelling_either_descriptor_ends_the_operation) {
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        for (int way = 0; way < 4; way++) {
            struct blocked b = output_is_full(outputs[i]);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            submit_one(loop, upcall_op_splice(b.in[0], -1, b.out[1], -1, 4, 0), &rec);
            start_all(loop);
            struct cancel_on what = {loop, way & 1 ? b.out[1] : b.in[0]};
            if (way & 2)
                join(start(cancel_from_here, &what));
            else
                cancel_from_here(&what);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, -ECANCELED);
            CHECK_EQ(drain_fd(b.in[0]), 4);
            free_loop(loop);
            clear_blocked(&b);
            forget(&rec);
        }
    }
}

TEST(closing_either_descriptor_ends_the_operation_first) {
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        for (int second = 0; second < 2; second++) {
            struct blocked b = output_is_full(outputs[i]);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            int *fd = second ? &b.out[1] : &b.in[0];
            upcall_id moved = submit_one(loop, upcall_op_splice(b.in[0], -1, b.out[1], -1, 4, 0), &rec);
            start_all(loop);
            upcall_id closed = submit_one(loop, upcall_op_close(*fd), &rec);
            run_finals(loop, &rec, 2);
            CHECK_EQ(final_of(&rec, moved).result, -ECANCELED);
            CHECK_EQ(final_of(&rec, closed).result, 0);
            CHECK(order_of(&rec, moved) < order_of(&rec, closed));
            CHECK(!is_open(*fd));
            *fd = dup(0); /* for clear_blocked() */
            free_loop(loop);
            clear_blocked(&b);
            forget(&rec);
        }
    }
}

TEST(a_splice_behind_a_close_meets_the_descriptor_as_it_is_then) {
    struct blocked b = output_is_full(PIPE);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op ops[2] = {upcall_op_close(b.out[1]), upcall_op_splice(b.in[0], -1, b.out[1], -1, 4, 0)};
    upcall_id ids[2];
    ops[0].flags = UPCALL_LINK_ALWAYS;
    submit_many(loop, ops, 2, &rec, ids);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, ids[0]).result, 0);
    CHECK_EQ(final_of(&rec, ids[1]).result, -EBADF);
    b.out[1] = dup(0);
    free_loop(loop);
    clear_blocked(&b);
    forget(&rec);
}

TEST(another_operation_on_the_second_descriptor_does_not_hide_the_wait) {
    struct blocked b = output_is_full(UNIX);
    set_nonblocking(b.out[1]);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    char byte = 0;
    submit_one(loop, upcall_op_splice(b.in[0], -1, b.out[1], -1, 4, 0), &rec);
    start_all(loop);
    for (int i = 0; i < 3; i++) { /* comes and goes on the same descriptor */
        upcall_id id = submit_one(loop, upcall_op_recv(b.out[1], &byte, 1, 0), &rec);
        start_all(loop);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, (size_t)i + 1);
    }
    take(b.out[0], b.filled);
    run_finals(loop, &rec, 4);
    CHECK_EQ(rec.events[3].result, 4);
    free_loop(loop);
    clear_blocked(&b);
    forget(&rec);
}

TEST(a_writer_whose_reader_is_gone_is_epipe_without_a_signal) {
    count_signals_of(SIGPIPE);
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        int in[2], out[2], file = temp_file(100);
        upcall_loop *loop = new_loop();
        pipe_pair(in);
        make_stream(outputs[i], out);
        write_all(in[1], "abcd", 4);
        close(out[0]);
        if (outputs[i] == TCP) { /* the first bytes bring the reset */
            int error;
            socklen_t length = sizeof error;
            write_all(out[1], "x", 1);
            pause_ms(20);
            CHECK(getsockopt(out[1], SOL_SOCKET, SO_ERROR, &error, &length) == 0);
        }
        ends_with(loop, upcall_op_splice(in[0], -1, out[1], -1, 4, 0), -EPIPE);
        ends_with(loop, upcall_op_sendfile(out[1], file, 0, 100), -EPIPE);
        free_loop(loop);
        close_pair(in);
        close(out[1]);
        close(file);
    }
    CHECK_EQ(signals_seen, 0);
}

TEST(the_end_of_the_input_is_0) {
    int in[2], out[2], file = temp_file(100);
    pipe_pair(in);
    pipe_pair(out);
    close(in[1]);
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_splice(in[0], -1, out[1], -1, 4, 0), 0);
    ends_with(loop, upcall_op_tee(in[0], out[1], 4, 0), 0);
    ends_with(loop, upcall_op_splice(file, 100, out[1], -1, 4, 0), 0);
    ends_with(loop, upcall_op_sendfile(out[1], file, 100, 4), 0);
    ends_with(loop, upcall_op_copy_range(file, 100, file, 200, 4, 0), 0);
    free_loop(loop);
    close(in[0]);
    close_pair(out);
    close(file);
}

/* ---- Files. ---- */

TEST(splice_moves_between_a_file_and_a_pipe_at_offsets) {
    int ends[2], from = temp_file(100), to = temp_file(0);
    uint8_t got[64];
    pipe_pair(ends);
    upcall_loop *loop = new_loop();
    struct record final = complete(loop, upcall_op_splice(from, 10, ends[1], -1, 64, 0));
    CHECK_EQ(final.result, 64);
    CHECK_EQ(final.transferred, 64);
    CHECK_EQ(lseek(from, 0, SEEK_CUR), 0); /* an offset leaves the position alone */
    final = complete(loop, upcall_op_splice(ends[0], -1, to, 5, 64, 0));
    CHECK_EQ(final.result, 64);
    CHECK_EQ(pread(to, got, 64, 5), 64);
    CHECK(has_pattern(got, 64, 10));
    CHECK(lseek(from, 30, SEEK_SET) == 30);
    final = complete(loop, upcall_op_splice(from, -1, ends[1], -1, 20, 0));
    CHECK_EQ(final.result, 20);
    CHECK_EQ(lseek(from, 0, SEEK_CUR), 50); /* -1 uses and moves it */
    read_all(ends[0], got, 20);
    CHECK(has_pattern(got, 20, 30));
    free_loop(loop);
    close_pair(ends);
    close(from);
    close(to);
}

TEST(splice_in_full_goes_on_until_all_is_moved) {
    enum { SIZE = 300000 };
    int in[2], out[2];
    static uint8_t sent[SIZE], got[SIZE];
    pipe_pair(in);
    pipe_pair(out);
    set_nonblocking(in[1]);
    set_nonblocking(out[0]);
    fill_pattern(sent, SIZE, 3);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_splice(in[0], -1, out[1], -1, SIZE, 0);
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    size_t put = 0, taken = 0;
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; taken < SIZE;) {
        ssize_t n = write(in[1], sent + put, SIZE - put < 7001 ? SIZE - put : 7001);
        put += n > 0 ? (size_t)n : 0;
        CHECK(upcall_poll(loop, 0) >= 0);
        n = read(out[0], got + taken, SIZE - taken);
        taken += n > 0 ? (size_t)n : 0;
        CHECK(now_ns() < limit);
    }
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIZE);
    CHECK_EQ(rec.events[0].transferred, SIZE);
    CHECK(memcmp(sent, got, SIZE) == 0);
    free_loop(loop);
    close_pair(in);
    close_pair(out);
    forget(&rec);
}

static void send_whole_file(int which, bool nonblocking, bool half_closed) {
    enum { SIZE = 500000 };
    static uint8_t bytes[SIZE], got[SIZE];
    int fds[2], file = temp_file(0);
    fill_pattern(bytes, SIZE, 11);
    CHECK_EQ(pwrite(file, bytes, SIZE, 0), SIZE);
    make_stream(which, fds);
    if (nonblocking)
        set_nonblocking(fds[1]);
    if (half_closed)
        CHECK(shutdown(fds[0], SHUT_WR) == 0);
    set_nonblocking(fds[0]);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op op = upcall_op_sendfile(fds[1], file, 100, SIZE); /* more than there is: the end of the file ends it */
    op.flags = UPCALL_FULL;
    submit_one(loop, op, &rec);
    size_t taken = 0;
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; taken < SIZE - 100;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        ssize_t n = read(fds[0], got + taken, SIZE - taken);
        taken += n > 0 ? (size_t)n : 0;
        CHECK(now_ns() < limit);
    }
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, SIZE - 100);
    CHECK_EQ(rec.events[0].transferred, SIZE - 100);
    CHECK(memcmp(bytes + 100, got, SIZE - 100) == 0);
    CHECK_EQ(lseek(file, 0, SEEK_CUR), 0);
    free_loop(loop);
    close_pair(fds);
    close(file);
    forget(&rec);
}

TEST(sendfile_in_full_sends_a_whole_file) {
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        send_whole_file(outputs[i], false, false);
        send_whole_file(outputs[i], true, false);
    }
}

TEST(sendfile_to_a_peer_that_has_shut_down_its_side) {
    send_whole_file(TCP, true, true);
    send_whole_file(UNIX, true, true);
}

TEST(sendfile_that_waits_can_be_cancelled_and_expires) {
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
            struct blocked b = output_is_full(outputs[i]);
            int file = temp_file(4096);
            if (nonblocking)
                set_nonblocking(b.out[1]);
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            upcall_op op = upcall_op_sendfile(b.out[1], file, 0, 4096);
            upcall_id id = submit_one(loop, op, &rec);
            op.timeout_ns = UPCALL_MILLISECOND;
            submit_one(loop, op, &rec);
            run_finals(loop, &rec, 1);
            CHECK_EQ(rec.events[0].result, -ETIMEDOUT);
            CHECK_EQ(rec.events[0].flags, UPCALL_EXPIRED);
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 2);
            CHECK_EQ(rec.events[1].result, -ECANCELED);
            CHECK_EQ(rec.events[1].transferred, 0);
            free_loop(loop);
            clear_blocked(&b);
            close(file);
            forget(&rec);
        }
    }
}

TEST(copy_range_copies) {
    int from = temp_file(100), to = temp_file(0);
    uint8_t got[101];
    upcall_loop *loop = new_loop();
    struct record final = complete(loop, upcall_op_copy_range(from, 10, to, 3, 50, 0));
    CHECK_EQ(final.result, 50);
    CHECK_EQ(final.transferred, 50);
    CHECK_EQ(pread(to, got, sizeof got, 3), 50);
    CHECK(has_pattern(got, 50, 10));
    upcall_op op = upcall_op_copy_range(from, 0, to, 0, 1000, 0);
    op.flags = UPCALL_FULL;
    final = complete(loop, op);
    CHECK_EQ(final.result, 100);
    CHECK_EQ(pread(to, got, sizeof got, 0), 100);
    CHECK(has_pattern(got, 100, 0));
    ends_with(loop, upcall_op_copy_range(from, 0, to, 0, 10, 7), -EINVAL);
    free_loop(loop);
    close(from);
    close(to);
}

TEST(a_file_copied_in_a_chain) { /* in order, because each step waits for the one before */
    int from = temp_file(100), to = temp_file(0);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    upcall_op ops[3] = {upcall_op_copy_range(from, 0, to, 0, 100, 0), upcall_op_fsync(to), upcall_op_close(to)};
    upcall_id ids[3];
    ops[0].flags = ops[1].flags = UPCALL_LINK;
    submit_many(loop, ops, 3, &rec, ids);
    run_finals(loop, &rec, 3);
    CHECK_EQ(rec.events[0].result, 100);
    CHECK_EQ(rec.events[1].result, 0);
    CHECK_EQ(rec.events[2].result, 0);
    CHECK(!is_open(to));
    free_loop(loop);
    close(from);
    forget(&rec);
}

/* ---- Bad input. ---- */

TEST(the_kernel_refuses_what_only_it_can_know) {
    int ends[2], sockets[2], file = temp_file(10), gone = closed_fd();
    pipe_pair(ends);
    unix_pair(sockets);
    write_all(ends[1], "ab", 2);
    write_all(sockets[1], "ab", 2);
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_splice(-1, -1, ends[1], -1, 1, 0), -EBADF);
    ends_with(loop, upcall_op_splice(ends[0], -1, -1, -1, 1, 0), -EBADF);
    ends_with(loop, upcall_op_splice(gone, -1, ends[1], -1, 1, 0), -EBADF);
    ends_with(loop, upcall_op_splice(ends[0], -1, gone, -1, 1, 0), -EBADF);
    ends_with(loop, upcall_op_splice(sockets[0], -1, sockets[0], -1, 1, 0), -EINVAL); /* neither is a pipe */
    ends_with(loop, upcall_op_splice(ends[0], 0, ends[1], -1, 1, 0), -ESPIPE);
    ends_with(loop, upcall_op_splice(ends[0], -1, file, -1, 1, 1u << 20), -EINVAL);
    ends_with(loop, upcall_op_tee(file, ends[1], 1, 0), -EINVAL);
    ends_with(loop, upcall_op_sendfile(gone, file, 0, 1), -EBADF);
    ends_with(loop, upcall_op_sendfile(ends[1], gone, 0, 1), -EBADF);
    ends_with(loop, upcall_op_copy_range(gone, 0, file, 0, 1, 0), -EBADF);
    ends_with(loop, upcall_op_copy_range(file, 0, ends[1], -1, 1, 0), -EINVAL);
    free_loop(loop);
    close_pair(ends);
    close_pair(sockets);
    close(file);
}

TEST(an_offset_below_minus_1_and_a_huge_length_are_refused) {
    upcall_loop *loop = new_loop();
    refused(loop, upcall_op_splice(0, -2, 1, -1, 1, 0), EINVAL, "off_in is -2");
    refused(loop, upcall_op_splice(0, -1, 1, -5, 1, 0), EINVAL, "off_out is -5");
    refused(loop, upcall_op_splice(0, -1, 1, -1, SIZE_MAX, 0), EINVAL, "len");
    refused(loop, upcall_op_splice(0, -1, 1, -1, 1, 2), EINVAL, "SPLICE_F_NONBLOCK");
    refused(loop, upcall_op_tee(0, 1, 1, 2), EINVAL, "SPLICE_F_NONBLOCK");
    refused(loop, upcall_op_sendfile(0, 1, -2, 1), EINVAL, "offset is -2");
    refused(loop, upcall_op_copy_range(0, 0, 1, -2, 1, 0), EINVAL, "off_out is -2");
    free_loop(loop);
}

TEST(strange_fields_are_refused) {
    refuses_strange_fields(upcall_op_splice(0, -1, 1, -1, 1, 0), UPCALL_FULL);
    refuses_strange_fields(upcall_op_tee(0, 1, 1, 0), 0);
    refuses_strange_fields(upcall_op_sendfile(0, 1, 0, 1), UPCALL_FULL);
    refuses_strange_fields(upcall_op_copy_range(0, 0, 1, 0, 1, 0), UPCALL_FULL);
}

TEST(they_are_known) {
    is_known(UPCALL_OP_SPLICE, "splice");
    is_known(UPCALL_OP_TEE, "tee");
    is_known(UPCALL_OP_SENDFILE, "sendfile");
    is_known(UPCALL_OP_COPY_RANGE, "copy_range");
}
