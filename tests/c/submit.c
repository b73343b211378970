/* What submit accepts, refuses and copies. */
#include "check.h"

static char byte;
static int fds[2]; /* a connected pair, made by new_pair() */

static void new_pair(void) {
    unix_pair(fds);
}

static int64_t seven(void *arg) {
    (void)arg;
    return 7;
}

/* Refused alone and in the middle of others, with nothing queued, and with the op, its name and the field in the text. */
static void refuse(struct place at, upcall_loop *loop, upcall_op op, int error, const char *field) {
    upcall_op ops[4] = {upcall_op_nop(), upcall_op_nop(), op, upcall_op_nop()};
    for (int i = 0; i < 4; i++)
        ops[i].callback = never;
    char text[64];
    check_eq(at, field, upcall_submit(loop, ops, 4, NULL), error);
    check_contains(at, upcall_last_error(), "op 3 of 4");
    check_contains(at, upcall_last_error(), field);
    if (op.kind && strcmp(upcall_op_name(op.kind), "unknown") != 0) {
        snprintf(text, sizeof text, "%s: ", upcall_op_name(op.kind));
        check_contains(at, upcall_last_error(), text);
    }
    check_eq(at, field, upcall_submit(loop, &ops[2], 1, NULL), error);
    check_contains(at, upcall_last_error(), "op 1 of 1");
    check_eq(at, "in flight", (long long)in_flight(loop), 0);
    check_eq(at, "poll", upcall_poll(loop, 0), 0);
}
#define REFUSE(op, field) refuse(HERE, loop, (op), -EINVAL, (field))
#define REFUSE_WITH(constructed, member, value)                                                                        \
    do {                                                                                                               \
        upcall_op bad = (constructed);                                                                                 \
        bad.member = (value);                                                                                          \
        REFUSE(bad, #member);                                                                                          \
    } while (0)

TEST(the_error_names_the_op_and_the_field) {
    upcall_loop *loop = new_loop();
    new_pair();
    upcall_op ops[4] = {upcall_op_nop(), upcall_op_nop(), upcall_op_recv(fds[0], NULL, 4096, 0), upcall_op_nop()};
    CHECK_EQ(upcall_submit(loop, ops, 4, NULL), -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "op 3 of 4: recv: buf is NULL but len is 4096");
    free_loop(loop);
}

TEST(a_zeroed_op_is_refused) {
    upcall_loop *loop = new_loop();
    upcall_op zero;
    memset(&zero, 0, sizeof zero);
    REFUSE(zero, "kind");
    free_loop(loop);
}

TEST(unknown_kinds_are_refused) {
    upcall_loop *loop = new_loop();
    static const uint32_t kinds[] = {7, 255, 256, 9999, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (strcmp(upcall_op_name(kinds[i]), "unknown") == 0)
            REFUSE_WITH(upcall_op_nop(), kind, kinds[i]);
    free_loop(loop);
}

TEST(unknown_flag_bits_are_refused) {
    upcall_loop *loop = new_loop();
    new_pair();
    for (int bit = 10; bit < 32; bit++) {
        REFUSE_WITH(upcall_op_nop(), flags, 1u << bit);
        REFUSE_WITH(upcall_op_recv(fds[0], &byte, 1, 0), flags, 1u << bit);
    }
    free_loop(loop);
}

TEST(reserved_fields_must_be_zero) {
    upcall_loop *loop = new_loop();
    new_pair();
    for (int i = 0; i < 4; i++) {
        upcall_op op = upcall_op_recv(fds[0], &byte, 1, 0);
        op.reserved[i] = 1;
        REFUSE(op, "reserved");
        op.reserved[i] = UINT64_C(1) << 63;
        REFUSE(op, "reserved");
    }
    free_loop(loop);
}

TEST(flags_that_an_operation_does_not_have_are_refused) {
    upcall_loop *loop = new_loop();
    new_pair();
    upcall_op without_full[] = {
        upcall_op_nop(),          upcall_op_accept(fds[0], NULL, NULL, 0), upcall_op_poll(fds[0], POLLIN),
        upcall_op_sleep(1),       upcall_op_fsync(fds[0]),                 upcall_op_shutdown(fds[0], SHUT_WR),
        upcall_op_close(fds[0]),  upcall_op_work(seven, NULL),
    };
    for (size_t i = 0; i < COUNT_OF(without_full); i++)
        REFUSE_WITH(without_full[i], flags, UPCALL_FULL);
    upcall_op without_multishot[] = {
        upcall_op_nop(),           upcall_op_read(fds[0], &byte, 1),    upcall_op_write(fds[0], &byte, 1),
        upcall_op_sleep_until(1),  upcall_op_send(fds[0], &byte, 1, 0), upcall_op_fsync(fds[0]),
        upcall_op_close(fds[0]),   upcall_op_work(seven, NULL),
    };
    for (size_t i = 0; i < COUNT_OF(without_multishot); i++)
        REFUSE_WITH(without_multishot[i], flags, UPCALL_MULTISHOT);
    upcall_op op = upcall_op_recv(fds[0], &byte, 1, 0);
    op.flags = UPCALL_MULTISHOT;
    REFUSE(op, "buffers"); /* it needs some */
    free_loop(loop);
}

TEST(a_multishot_cannot_have_one_place_for_many_results) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int listener = tcp_listener(&address, 0, 4);
    upcall_op op = upcall_op_accept(listener, (struct sockaddr *)&address, &length, 0);
    op.flags = UPCALL_MULTISHOT;
    REFUSE(op, "addr");
    op = upcall_op_sleep(0);
    op.flags = UPCALL_MULTISHOT;
    REFUSE(op, "ns");
    free_loop(loop);
}

TEST(full_goes_with_neither_buffers_nor_multishot) {
    upcall_loop *loop = new_loop();
    new_pair();
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
    op.buffers = pool;
    op.flags = UPCALL_FULL;
    REFUSE(op, "FULL");
    op.flags = UPCALL_FULL | UPCALL_MULTISHOT;
    REFUSE(op, "FULL");
    CHECK_EQ(upcall_buffers_free(pool), 0); /* the refused ones do not use it */
    free_loop(loop);
}

TEST(buffers_go_with_what_receives_only) {
    upcall_loop *loop = new_loop();
    new_pair();
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &pool), 0);
    REFUSE_WITH(upcall_op_nop(), buffers, pool);
    REFUSE_WITH(upcall_op_write(fds[0], &byte, 1), buffers, pool);
    REFUSE_WITH(upcall_op_send(fds[0], &byte, 1, 0), buffers, pool);
    REFUSE_WITH(upcall_op_sleep(1), buffers, pool);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
}

TEST(the_pool_of_another_loop_is_refused) {
    upcall_loop *loop = new_loop(), *other = new_loop();
    new_pair();
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(other, 4, 64, &pool), 0);
    REFUSE_WITH(upcall_op_recv(fds[0], NULL, 0, 0), buffers, pool);
    CHECK_EQ(upcall_buffers_free(pool), 0);
    free_loop(loop);
    free_loop(other);
}

TEST(a_link_needs_something_behind_it) {
    upcall_loop *loop = new_loop();
    static const uint32_t links[] = {UPCALL_LINK, UPCALL_LINK_ALWAYS};
    for (size_t i = 0; i < COUNT_OF(links); i++) {
        upcall_op ops[2] = {upcall_op_nop(), upcall_op_nop()};
        ops[1].flags = links[i];
        CHECK_EQ(upcall_submit(loop, ops, 2, NULL), -EINVAL);
        CHECK_STR_CONTAINS(upcall_last_error(), "op 2 of 2");
        CHECK_EQ(upcall_submit(loop, ops + 1, 1, NULL), -EINVAL);
        ops[0] = upcall_op_sleep(1000);
        ops[0].flags = UPCALL_MULTISHOT | links[i];
        ops[1].flags = 0;
        CHECK_EQ(upcall_submit(loop, ops, 2, NULL), -EINVAL);
        CHECK_STR_CONTAINS(upcall_last_error(), "op 1 of 2");
    }
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
}

TEST(messages_flags_that_break_the_rules_are_refused) {
    upcall_loop *loop = new_loop();
    new_pair();
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    REFUSE(upcall_op_recv(fds[0], &byte, 1, MSG_DONTWAIT), "flags");
    REFUSE(upcall_op_send(fds[0], &byte, 1, MSG_DONTWAIT), "flags");
    REFUSE(upcall_op_recvmsg(fds[0], &message, MSG_DONTWAIT), "flags");
    REFUSE(upcall_op_sendmsg(fds[0], &message, MSG_DONTWAIT), "flags");
    REFUSE(upcall_op_recv(fds[0], &byte, 1, MSG_WAITALL), "flags");
    REFUSE(upcall_op_recvmsg(fds[0], &message, MSG_WAITALL), "flags");
    free_loop(loop);
}

TEST(null_where_memory_is_needed_is_refused) {
    upcall_loop *loop = new_loop();
    new_pair();
    struct iovec parts[2] = {{&byte, 1}, {NULL, 1}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct statx st;
    REFUSE(upcall_op_read(fds[0], NULL, 1), "buf");
    REFUSE(upcall_op_write(fds[0], NULL, 1), "buf");
    REFUSE(upcall_op_recv(fds[0], NULL, 1, 0), "buf");
    REFUSE(upcall_op_send(fds[0], NULL, 1, 0), "buf");
    REFUSE(upcall_op_pread(fds[0], NULL, 1, 0), "buf");
    REFUSE(upcall_op_pwrite(fds[0], NULL, 1, 0), "buf");
    REFUSE(upcall_op_readv(fds[0], NULL, 1), "iov");
    REFUSE(upcall_op_writev(fds[0], NULL, 1), "iov");
    REFUSE(upcall_op_readv(fds[0], parts, 2), "iov");
    REFUSE(upcall_op_writev(fds[0], parts, 2), "iov");
    REFUSE(upcall_op_recvmsg(fds[0], NULL, 0), "msg");
    REFUSE(upcall_op_sendmsg(fds[0], NULL, 0), "msg");
    REFUSE(upcall_op_sendmsg(fds[0], &message, 0), "iov");
    REFUSE(upcall_op_recvmsg(fds[0], &message, 0), "iov");
    message.msg_iov = NULL;
    REFUSE(upcall_op_sendmsg(fds[0], &message, 0), "iov");
    REFUSE(upcall_op_recvmsg(fds[0], &message, 0), "iov");
    REFUSE(upcall_op_open(AT_FDCWD, NULL, O_RDONLY, 0), "path");
    REFUSE(upcall_op_statx(AT_FDCWD, NULL, 0, STATX_SIZE, &st), "path");
    REFUSE(upcall_op_statx(AT_FDCWD, "/", 0, STATX_SIZE, NULL), "statxbuf");
    REFUSE(upcall_op_bind(fds[0], NULL, sizeof address), "addr");
    REFUSE(upcall_op_connect(fds[0], NULL, sizeof address), "addr");
    REFUSE(upcall_op_accept(fds[0], (struct sockaddr *)&address, NULL, 0), "addrlen");
    REFUSE(upcall_op_work(NULL, NULL), "fn");
    free_loop(loop);
}

TEST(sizes_out_of_range_are_refused) {
    upcall_loop *loop = new_loop();
    new_pair();
    static struct iovec parts[1025];
    static char address[4096];
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 1025};
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        parts[i] = (struct iovec){&byte, 1};
    REFUSE(upcall_op_readv(fds[0], parts, 1025), "n");
    REFUSE(upcall_op_writev(fds[0], parts, 1025), "n");
    REFUSE(upcall_op_writev(fds[0], parts, SIZE_MAX), "n");
    REFUSE(upcall_op_sendmsg(fds[0], &message, 0), "iov");
    REFUSE(upcall_op_recvmsg(fds[0], &message, 0), "iov");
    REFUSE(upcall_op_connect(fds[0], (struct sockaddr *)(void *)address, sizeof address), "len");
    REFUSE(upcall_op_bind(fds[0], (struct sockaddr *)(void *)address, (socklen_t)-1), "len");
    free_loop(loop);
}

TEST(submitting_nothing_queues_nothing) {
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_nop();
    upcall_id id = 99;
    op.callback = never;
    int rc = upcall_submit(loop, &op, 0, &id);
    CHECK(rc == 0 || rc == -EINVAL);
    CHECK_EQ(upcall_submit(loop, NULL, 0, NULL), rc);
    CHECK_EQ(id, 99);
    CHECK_EQ(in_flight(loop), 0);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    free_loop(loop);
}

TEST(huge_counts_are_refused_without_reading) {
    upcall_loop *loop = new_loop();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + page, page, PROT_NONE) == 0);
    upcall_op *op = (upcall_op *)(void *)(memory + page - sizeof *op);
    *op = upcall_op_nop();
    op->callback = never;
    static const size_t counts[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 128 + 2, (size_t)1 << 57};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        int rc = upcall_submit(loop, op, counts[i], NULL);
        CHECK(rc == -EINVAL || rc == -EAGAIN);
        CHECK(*upcall_last_error());
    }
    CHECK_EQ(in_flight(loop), 0);
    free_loop(loop);
}

TEST(at_the_limit_of_operations_it_is_all_or_none) {
    upcall_config config = default_config();
    config.max_operations = 8;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    upcall_op ops[9];
    upcall_id ids[9];
    for (int round = 0; round < 20; round++) {
        rec.count = rec.finals = 0;
        for (int i = 0; i < 9; i++)
            ops[i] = upcall_op_sleep(3600 * UPCALL_SECOND);
        CHECK_EQ(upcall_submit(loop, ops, 9, NULL), -EAGAIN);
        CHECK(*upcall_last_error());
        CHECK_EQ(in_flight(loop), 0);
        submit_many(loop, ops, 7, &rec, ids);
        CHECK_EQ(upcall_submit(loop, ops, 2, NULL), -EAGAIN);
        CHECK_EQ(in_flight(loop), 7);
        submit_many(loop, ops, 1, &rec, ids + 7);
        CHECK_EQ(upcall_submit(loop, ops, 1, NULL), -EAGAIN);
        CHECK_EQ(upcall_cancel(loop, ids[3]), 0);
        run_finals(loop, &rec, 1);
        submit_many(loop, ops, 1, &rec, ids + 8); /* one ended: there is room for one */
        CHECK_EQ(upcall_submit(loop, ops, 1, NULL), -EAGAIN);
        CHECK_EQ(upcall_cancel_all(loop), 8);
        run_finals(loop, &rec, 9);
        check_finals(&rec, ids, 9);
    }
    free_loop(loop);
}

TEST(more_operations_than_entries_are_accepted) { /* hazards row 16 */
    upcall_config config = default_config();
    config.entries = 4;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    enum { N = 5000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    for (int i = 0; i < N; i++)
        ops[i] = upcall_op_nop();
    submit_many(loop, ops, N, &rec, ids);
    run_finals(loop, &rec, N);
    check_finals(&rec, ids, N);
    quiet(loop, &rec);
    free_loop(loop);
}

static upcall_id told_id;
static void tell_id(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    CHECK(told_id == 0);
    told_id = event->id;
    CHECK(event->user == &told_id);
}

TEST(the_id_and_the_user_pointer_come_back) {
    upcall_loop *loop = new_loop();
    upcall_op op = upcall_op_nop();
    upcall_id id = 0;
    op.callback = tell_id;
    op.user = &told_id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    CHECK(id != 0);
    CHECK_EQ(told_id, 0); /* no callback inside submit */
    while (told_id == 0)
        CHECK(upcall_poll(loop, MS(1000)) >= 0);
    CHECK_EQ(told_id, id);
    free_loop(loop);
}

TEST(no_callback_runs_inside_submit) { /* hazards row 41 */
    upcall_config config = default_config();
    config.entries = 2; /* the queue is full all the time */
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    new_pair();
    start_all(loop);
    write_all(fds[1], "0123456789", 10);
    char data[1];
    for (int i = 0; i < 500; i++) {
        submit_one(loop, upcall_op_nop(), &rec);
        submit_one(loop, upcall_op_poll(fds[0], POLLIN), &rec);
        submit_one(loop, upcall_op_recv(-1, data, 1, 0), &rec);
        CHECK_EQ(rec.count, 0);
    }
    run_finals(loop, &rec, 1500);
    free_loop(loop);
}

/* ---- What const pointers name is copied: hazards row 37. ---- */

/* Makes every operation wait behind a sleep, so that it is read long after submit; then destroys the descriptors. */
static void submit_and_scribble(upcall_loop *loop, upcall_op op, struct recorder *rec, upcall_id *id, bool parked) {
    upcall_op ops[2] = {upcall_op_sleep(5 * UPCALL_MILLISECOND), op};
    upcall_id ids[2];
    ops[0].flags = UPCALL_LINK;
    submit_many(loop, parked ? ops : ops + 1, parked ? 2 : 1, rec, parked ? ids : ids + 1);
    memset(ops, 0xff, sizeof ops);
    *id = ids[1];
}

TEST(operations_are_copied) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int parked = 0; parked < 2; parked++) {
        upcall_id id;
        submit_and_scribble(loop, upcall_op_nop(), &rec, &id, parked);
        run_finals(loop, &rec, (size_t)(1 + 2 * parked));
        CHECK_EQ(final_of(&rec, id).result, 0);
    }
    free_loop(loop);
}

TEST(paths_are_copied) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int parked = 0; parked < 2; parked++) {
        char path[256];
        struct statx st = {0};
        upcall_id id;
        rec.count = rec.finals = 0;
        memset(path, '/', 200); /* longer than fits beside an operation */
        strcpy(path + 200, "dev/null");
        submit_and_scribble(loop, upcall_op_open(AT_FDCWD, path, O_RDONLY, 0), &rec, &id, parked);
        memset(path, 'x', sizeof path);
        run_finals(loop, &rec, (size_t)(1 + parked));
        struct record opened = final_of(&rec, id);
        CHECK(opened.result >= 0);
        close((int)opened.result);
        rec.count = rec.finals = 0;
        strcpy(path, "/dev/null");
        submit_and_scribble(loop, upcall_op_statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &st), &rec, &id, parked);
        memset(path, 'x', sizeof path);
        run_finals(loop, &rec, (size_t)(1 + parked));
        CHECK_EQ(final_of(&rec, id).result, 0);
        CHECK(S_ISCHR(st.stx_mode));
    }
    free_loop(loop);
}

TEST(iovec_arrays_are_copied) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int parked = 0; parked < 2; parked++)
        for (int n = 1; n <= 1024; n = n == 1 ? 5 : n == 5 ? 1024 : 2000) {
            static struct iovec parts[1024];
            static char out[1024], in[1024];
            upcall_id id;
            new_pair();
            for (int i = 0; i < n; i++)
                out[i] = (char)pattern((uint64_t)i);
            for (int writing = 1; writing >= 0; writing--) {
                for (int i = 0; i < n; i++)
                    parts[i] = (struct iovec){writing ? out + i : in + i, 1};
                rec.count = rec.finals = 0;
                upcall_op op = writing ? upcall_op_writev(fds[1], parts, (size_t)n)
                                       : upcall_op_readv(fds[0], parts, (size_t)n);
                op.flags = UPCALL_FULL;
                submit_and_scribble(loop, op, &rec, &id, parked);
                memset(parts, 0xff, sizeof parts);
                run_finals(loop, &rec, (size_t)(1 + parked));
                CHECK_EQ(final_of(&rec, id).result, n);
            }
            CHECK(memcmp(in, out, (size_t)n) == 0);
            close_pair(fds);
        }
    free_loop(loop);
}

TEST(addresses_are_copied) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int parked = 0; parked < 2; parked++) {
        struct sockaddr_in to, address;
        int listener = tcp_listener(&to, 0, 4), fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        upcall_id id;
        rec.count = rec.finals = 0;
        address = to;
        submit_and_scribble(loop, upcall_op_connect(fd, (struct sockaddr *)&address, sizeof address), &rec, &id,
                            parked);
        memset(&address, 0xff, sizeof address);
        run_finals(loop, &rec, (size_t)(1 + parked));
        CHECK_EQ(final_of(&rec, id).result, 0);
        int unbound = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        rec.count = rec.finals = 0;
        submit_and_scribble(loop, upcall_op_bind(unbound, (struct sockaddr *)&address, sizeof address), &rec, &id,
                            parked);
        memset(&address, 0xff, sizeof address);
        run_finals(loop, &rec, (size_t)(1 + parked));
        CHECK_EQ(final_of(&rec, id).result, 0);
        close(listener);
        close(fd);
        close(unbound);
    }
    free_loop(loop);
}

TEST(the_header_of_sendmsg_and_all_it_names_but_the_data_are_copied) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int parked = 0; parked < 2; parked++) {
        int pair[2], passed = temp_file(1);
        unix_pair(pair);
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec parts[3] = {{"ab", 2}, {"", 0}, {"cde", 3}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        memset(&control, 0, sizeof control);
        control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
                                          .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &passed, sizeof passed);
        upcall_id id;
        rec.count = rec.finals = 0;
        submit_and_scribble(loop, upcall_op_sendmsg(pair[1], &message, 0), &rec, &id, parked);
        memset(parts, 0xff, sizeof parts);
        memset(&message, 0xff, sizeof message);
        memset(&control, 0xff, sizeof control);
        run_finals(loop, &rec, (size_t)(1 + parked));
        CHECK_EQ(final_of(&rec, id).result, 5);
        char data[8];
        parts[0] = (struct iovec){data, sizeof data};
        message = (struct msghdr){.msg_iov = parts, .msg_iovlen = 1, .msg_control = &control,
                                  .msg_controllen = sizeof control};
        CHECK_EQ(recvmsg(pair[0], &message, 0), 5);
        CHECK(memcmp(data, "abcde", 5) == 0);
        CHECK_EQ(control.header.cmsg_type, SCM_RIGHTS);
        close_pair(pair);
    }
    free_loop(loop);
}

TEST(the_address_of_sendmsg_is_copied) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    for (int parked = 0; parked < 2; parked++) {
        int to = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), from = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        socklen_t length = sizeof address;
        CHECK(bind(to, (struct sockaddr *)&address, sizeof address) == 0);
        CHECK(getsockname(to, (struct sockaddr *)&address, &length) == 0);
        struct iovec part = {"hello", 5};
        struct msghdr message = {.msg_name = &address, .msg_namelen = sizeof address, .msg_iov = &part,
                                 .msg_iovlen = 1};
        upcall_id id;
        rec.count = rec.finals = 0;
        submit_and_scribble(loop, upcall_op_sendmsg(from, &message, 0), &rec, &id, parked);
        memset(&address, 0xff, sizeof address);
        run_finals(loop, &rec, (size_t)(1 + parked));
        CHECK_EQ(final_of(&rec, id).result, 5);
        char data[8];
        CHECK(is_readable(to, 5000));
        CHECK_EQ(recv(to, data, sizeof data, 0), 5);
        close(to);
        close(from);
    }
    free_loop(loop);
}

TEST(what_only_the_kernel_can_know_comes_in_the_event) {
    upcall_loop *loop = new_loop();
    int pipes[2];
    pipe_pair(pipes);
    struct sockaddr_in address = {.sin_family = AF_INET};
    upcall_op bad[] = {
        upcall_op_read(-1, &byte, 1),  upcall_op_write(-1, &byte, 1),      upcall_op_recv(-1, &byte, 1, 0),
        upcall_op_send(-1, "", 1, 0),  upcall_op_pread(-1, &byte, 1, 0),   upcall_op_fsync(-1),
        upcall_op_close(-1),           upcall_op_poll(-1, POLLIN),         upcall_op_accept(-1, NULL, NULL, 0),
        upcall_op_shutdown(-1, 0),     upcall_op_listen(-1, 1),            upcall_op_pwrite(-1, &byte, 1, 0),
        upcall_op_connect(-1, (struct sockaddr *)&address, sizeof address),
        upcall_op_bind(-1, (struct sockaddr *)&address, sizeof address),
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        static const int numbers[] = {-1, -7, 1000000, INT32_MAX, INT32_MIN};
        for (size_t k = 0; k < COUNT_OF(numbers); k++) {
            bad[i].fd = numbers[k];
            CHECK_EQ(complete(loop, bad[i]).result, -EBADF);
        }
    }
    upcall_op not_sockets[] = {
        upcall_op_recv(pipes[0], &byte, 1, 0), upcall_op_send(pipes[1], "", 1, 0),
        upcall_op_accept(pipes[0], NULL, NULL, 0), upcall_op_shutdown(pipes[0], 0), upcall_op_listen(pipes[0], 1),
        upcall_op_connect(pipes[0], (struct sockaddr *)&address, sizeof address),
    };
    for (size_t i = 0; i < COUNT_OF(not_sockets); i++)
        CHECK_EQ(complete(loop, not_sockets[i]).result, -ENOTSOCK);
    free_loop(loop);
}
