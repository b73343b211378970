/* One submit, many events; and the pools of buffers that they borrow from. */
#include "check.h"
#include <sys/ioctl.h>

/* What a receiver got, byte after byte; gives the buffers back at once, or keeps them. */
struct stream {
    struct recorder rec;
    upcall_buffers *pool;
    uint8_t bytes[1 << 20];
    size_t length;
    bool keep;
};
static struct stream stream; /* every test has a process of its own */

static void take(upcall_loop *loop, const upcall_event *event) {
    struct stream *to = event->user;
    (void)loop;
    add_record(&to->rec, event);
    if (event->buffer == NULL)
        return;
    CHECK(event->result >= 0 && to->length + (size_t)event->result <= sizeof to->bytes);
    memcpy(to->bytes + to->length, event->buffer, (size_t)event->result);
    to->length += (size_t)event->result;
    if (!to->keep)
        CHECK_EQ(upcall_buffers_return(to->pool, event->buffer), 0);
}

static upcall_op receiving(int fd, struct stream *to, uint32_t flags) {
    upcall_op op = upcall_op_recv(fd, NULL, 0, 0);
    op.flags = flags;
    op.buffers = to->pool;
    op.callback = take;
    op.user = to;
    return op;
}

static void new_pool(upcall_loop *loop, uint32_t count, uint32_t size) {
    CHECK_EQ(upcall_buffers_new(loop, count, size, &stream.pool), 0);
    CHECK(stream.pool != NULL);
}

static upcall_op multishot(upcall_op op) {
    op.flags |= UPCALL_MULTISHOT;
    return op;
}

static void end_by_cancel(upcall_loop *loop, struct recorder *rec, upcall_id id) {
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, rec, 1);
    CHECK_EQ(final_of(rec, id).result, -ECANCELED);
    CHECK(final_of(rec, id).buffer == NULL);
    quiet(loop, rec);
}

/* ---- accept. ---- */

/* Whose connection this is: they are accepted in the order of the last packets of their handshakes, seldom another than
   that of the connects (6.1.192 on two processors). */
static int client_of(int fd, const int *clients, int count) {
    struct sockaddr_in peer, own;
    socklen_t length = sizeof peer;
    CHECK(getpeername(fd, (struct sockaddr *)&peer, &length) == 0);
    for (int i = 0; i < count; i++) {
        length = sizeof own;
        if (clients[i] >= 0 && getsockname(clients[i], (struct sockaddr *)&own, &length) == 0 &&
            own.sin_port == peer.sin_port)
            return i;
    }
    fail(HERE, "a connection of nobody");
}

static void accept_many(int type, int flags) {
    int before = open_fd_count();
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct sockaddr_in address;
    enum { N = 60 };
    int listener = tcp_listener(&address, type, 128), clients[N];
    upcall_id id = submit_one(loop, multishot(upcall_op_accept(listener, NULL, NULL, flags)), &rec);
    for (int i = 0; i < N; i++) {
        clients[i] = tcp_connected_to(&address);
        if (i % 7 == 0)
            run_until(loop, &rec, (size_t)i + 1);
    }
    run_until(loop, &rec, N);
    for (int i = 0; i < N; i++) {
        CHECK(rec.events[i].result >= 0);
        CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
        int fd = (int)rec.events[i].result, one = -1, client = client_of(fd, clients, N);
        CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, flags ? O_NONBLOCK : 0);
        write_all(clients[client], &i, sizeof i);
        CHECK(is_readable(fd, 5000));
        CHECK(read(fd, &one, sizeof one) == sizeof one);
        CHECK_EQ(one, i);
        close(fd);
        close(clients[client]);
        clients[client] = -1;
    }
    end_by_cancel(loop, &rec, id);
    CHECK_EQ(fcntl(listener, F_GETFL) & O_NONBLOCK, type ? O_NONBLOCK : 0); /* hazards row 19 */
    close(listener);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), before);
}

TEST(a_multishot_accept_yields_every_connection) {
    accept_many(SOCK_NONBLOCK, 0);
    accept_many(SOCK_NONBLOCK, SOCK_NONBLOCK);
}
TEST(a_multishot_accept_works_on_a_blocking_listener) {
    accept_many(0, 0);
    accept_many(0, SOCK_NONBLOCK);
}

static void accept_without_descriptors(int type) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    struct sockaddr_in address;
    int listener = tcp_listener(&address, type, 16);
    CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
    int clients[2] = {tcp_connected_to(&address), tcp_connected_to(&address)};
    limit_descriptors(0);
    upcall_id id = submit_one(loop, multishot(upcall_op_accept(listener, NULL, NULL, 0)), &rec);
    run_until(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, -EMFILE);
    CHECK_EQ(rec.events[0].flags, UPCALL_MORE);
    uint64_t used = processor_ns(), until = now_ns() + 400 * UPCALL_MILLISECOND;
    upcall_stats stats, later;
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    while (now_ns() < until)
        CHECK(upcall_poll(loop, MS(100)) >= 0);
    CHECK_EQ(upcall_stats_get(loop, &later), 0);
    CHECK(later.system_calls - stats.system_calls < 2000); /* back-off: no spinning */
    CHECK(processor_ns() - used < 300 * UPCALL_MILLISECOND);
    CHECK_EQ(rec.count, 1); /* once, however often it was tried */
    unlimit_descriptors();
    run_until(loop, &rec, 3); /* no connection was lost, and nobody had to submit again */
    for (size_t i = 1; i < 3; i++) {
        CHECK(rec.events[i].result >= 0);
        CHECK_EQ(rec.events[i].flags, UPCALL_MORE);
        close((int)rec.events[i].result);
    }
    int third = tcp_connected_to(&address);
    run_until(loop, &rec, 4);
    CHECK(rec.events[3].result >= 0);
    close((int)rec.events[3].result);
    close(third);
    close(clients[0]);
    close(clients[1]);
    end_by_cancel(loop, &rec, id);
    close(listener);
    free_loop(loop);
}

TEST(an_accept_without_descriptors_reports_it_once_and_goes_on) { /* hazards row 29 */
    accept_without_descriptors(SOCK_NONBLOCK);
}
TEST(an_accept_without_descriptors_on_a_blocking_listener_goes_on_too) { /* hazards row 29 */
    accept_without_descriptors(0);
}

TEST(a_single_accept_without_descriptors_ends_with_the_error) { /* hazards row 29 */
    upcall_loop *loop = new_loop();
    struct sockaddr_in address;
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        int listener = tcp_listener(&address, type, 16), client = tcp_connected_to(&address);
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        limit_descriptors(0);
        CHECK_EQ(complete(loop, upcall_op_accept(listener, NULL, NULL, 0)).result, -EMFILE);
        unlimit_descriptors();
        struct record accepted = complete(loop, upcall_op_accept(listener, NULL, NULL, 0)); /* it was still queued */
        CHECK(accepted.result >= 0);
        close((int)accepted.result);
        close(client);
        close(listener);
    }
    free_loop(loop);
}

struct caller {
    struct sockaddr_in address;
    int count;
};
static void *call_often(void *arg) {
    struct caller *caller = arg;
    for (int i = 0; i < caller->count; i++)
        close(tcp_connected_to(&caller->address));
    return NULL;
}

static void accept_against_cancel(int type, bool many) {
    int before = open_fd_count();
    upcall_loop *loop = new_loop();
    struct caller caller = {.count = 400};
    int listener = tcp_listener(&caller.address, type, 512), total = 0;
    uint64_t seed = 1;
    pthread_t thread = start(call_often, &caller);
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (total < caller.count && now_ns() < limit) {
        struct recorder rec = {0};
        upcall_op op = upcall_op_accept(listener, NULL, NULL, 0);
        upcall_id id = submit_one(loop, many ? multishot(op) : op, &rec);
        for (uint64_t turns = chance(&seed) % 4; turns > 0; turns--)
            CHECK(upcall_poll(loop, 0) >= 0);
        CHECK_EQ(upcall_cancel(loop, id), rec.finals ? -ENOENT : 0);
        run_finals(loop, &rec, 1);
        check_finals(&rec, &id, 1);
        for (size_t i = 0; i < rec.count; i++)
            if (rec.events[i].result >= 0) {
                close((int)rec.events[i].result);
                total++;
            } else
                CHECK_EQ(rec.events[i].result, -ECANCELED);
        forget(&rec);
    }
    join(thread);
    CHECK_EQ(total, caller.count); /* every connection was delivered … */
    close(listener);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), before); /* … and none was left open by the library */
}

TEST_FOR(an_accepted_descriptor_is_delivered_or_closed_never_leaked, 60) { /* hazards row 30 */
    accept_against_cancel(SOCK_NONBLOCK, false);
    accept_against_cancel(SOCK_NONBLOCK, true);
    accept_against_cancel(0, false);
    accept_against_cancel(0, true);
}

TEST_FOR(freeing_the_loop_closes_accepted_descriptors_that_nobody_reaped, 60) { /* hazards row 30 */
    int before = open_fd_count();
    for (int i = 0; i < 20; i++) {
        upcall_loop *loop = new_loop();
        struct caller caller = {.count = 10};
        int listener = tcp_listener(&caller.address, i % 2 ? SOCK_NONBLOCK : 0, 64);
        upcall_op op = multishot(upcall_op_accept(listener, NULL, NULL, 0));
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
        start_all(loop);
        pthread_t thread = start(call_often, &caller);
        for (int k = 0; k < i; k++)
            CHECK(upcall_poll(loop, i % 3 ? 0 : MS(1)) >= 0);
        free_loop(loop);
        join(thread);
        close(listener);
    }
    CHECK_EQ(open_fd_count(), before);
}

/* ---- recv. ---- */

TEST(a_multishot_recv_yields_the_stream_and_then_its_end) { /* hazards rows 32, 34 */
    for (int which = UNIX; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        stream = (struct stream){0};
        int fds[2];
        uint8_t block[3000];
        size_t sent = 0;
        make_pair(which, fds);
        new_pool(loop, 8, 256);
        upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
        for (size_t n = 1; n < sizeof block; n += 97) {
            fill_pattern(block, n, sent);
            write_all(fds[1], block, n);
            sent += n;
            wait_count(loop, &stream.length, sent);
        }
        CHECK_EQ(stream.rec.finals, 0);
        CHECK(shutdown(fds[1], SHUT_WR) == 0);
        run_finals(loop, &stream.rec, 1);
        CHECK_EQ(stream.length, sent);
        CHECK(has_pattern(stream.bytes, sent, 0));
        struct record final = final_of(&stream.rec, id);
        CHECK_EQ(final.result, 0);
        CHECK_EQ(final.flags, 0);
        CHECK(final.buffer == NULL);
        for (size_t i = 0; i + 1 < stream.rec.count; i++) {
            CHECK(stream.rec.events[i].result > 0 && stream.rec.events[i].result <= 256);
            CHECK_EQ(stream.rec.events[i].transferred, stream.rec.events[i].result);
            CHECK_EQ(stream.rec.events[i].flags, UPCALL_MORE);
            CHECK(stream.rec.events[i].buffer != NULL);
        }
        CHECK_EQ(upcall_buffers_free(stream.pool), 0);
        close_pair(fds);
        free_loop(loop);
    }
}

struct burst_reader {
    struct burst *burst;
    int fds[2];
    uint64_t sent, seen;
    bool ended;
};

struct burst {
    upcall_buffers *pool;
    uint32_t size;
    void *held[64];
    size_t holding;
    uint64_t seed;
    struct burst_reader readers[4];
};

static void return_some(struct burst *burst, bool all) {
    while (burst->holding > 0 && (all || chance(&burst->seed) % 3)) { /* in any order */
        size_t k = chance(&burst->seed) % burst->holding;
        CHECK_EQ(upcall_buffers_return(burst->pool, burst->held[k]), 0);
        burst->held[k] = burst->held[--burst->holding];
    }
}

static void on_burst(upcall_loop *loop, const upcall_event *event) {
    struct burst_reader *reader = event->user;
    struct burst *burst = reader->burst;
    (void)loop;
    CHECK(event->result >= 0 && event->result <= burst->size);
    CHECK_EQ(event->transferred, event->result);
    if (!(event->flags & UPCALL_MORE)) {
        CHECK_EQ(event->result, 0);
        reader->ended = true;
        return;
    }
    CHECK(has_pattern(event->buffer, (size_t)event->result, reader->seen));
    reader->seen += (uint64_t)event->result;
    memset(event->buffer, 0xee, burst->size); /* it is ours */
    burst->held[burst->holding++] = event->buffer;
    return_some(burst, false);
}

static void bursts(uint32_t count, uint32_t size, uint32_t max_events, int which) {
    struct burst burst = {.size = size, .seed = count * 31 + size + max_events};
    upcall_config config = default_config();
    config.max_events = max_events;
    upcall_loop *loop = loop_with(&config);
    uint8_t block[5000];
    CHECK_EQ(upcall_buffers_new(loop, count, size, &burst.pool), 0);
    for (size_t i = 0; i < COUNT_OF(burst.readers); i++) {
        struct burst_reader *reader = &burst.readers[i];
        reader->burst = &burst;
        make_pair(which, reader->fds);
        set_nonblocking(reader->fds[1]);
        upcall_op op = multishot(upcall_op_recv(reader->fds[0], NULL, 0, 0));
        op.buffers = burst.pool;
        op.callback = on_burst;
        op.user = reader;
        CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    }
    for (int round = 0; round < 400; round++) {
        struct burst_reader *reader = &burst.readers[chance(&burst.seed) % COUNT_OF(burst.readers)];
        size_t length = chance(&burst.seed) % (size * 6 < sizeof block ? size * 6 : sizeof block);
        fill_pattern(block, length, reader->sent);
        ssize_t n = write(reader->fds[1], block, length);
        reader->sent += n > 0 ? (uint64_t)n : 0;
        CHECK(upcall_poll(loop, 0) >= 0);
        if (chance(&burst.seed) % 8 == 0)
            return_some(&burst, true);
    }
    bool ended = false;
    for (size_t i = 0; i < COUNT_OF(burst.readers); i++)
        close(burst.readers[i].fds[1]);
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; !ended && now_ns() < limit;) {
        return_some(&burst, true);
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        ended = true;
        for (size_t i = 0; i < COUNT_OF(burst.readers); i++)
            ended = ended && burst.readers[i].ended;
    }
    for (size_t i = 0; i < COUNT_OF(burst.readers); i++) {
        CHECK(burst.readers[i].ended);
        CHECK_EQ(burst.readers[i].seen, burst.readers[i].sent);
        close(burst.readers[i].fds[0]);
    }
    return_some(&burst, true);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(burst.pool), 0);
}

TEST(bursts_through_a_shared_pool_arrive_whole_and_in_order) {
    for (int which = UNIX; which <= TCP; which++) {
        bursts(16, 64, 1024, which);
        bursts(16, 64, 3, which);
        bursts(3, 100, 1024, which); /* no power of two: some places of the kernel's ring are never used at once */
        bursts(1, 64, 1024, which);
        bursts(64, 512, 2, which);
    }
}

TEST(a_multishot_recv_ends_with_an_error) { /* hazards row 34 */
    upcall_loop *loop = new_loop();
    struct linger reset = {1, 0};
    int fds[2];
    tcp_pair(fds);
    new_pool(loop, 4, 64);
    upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
    write_all(fds[1], "abc", 3);
    wait_count(loop, &stream.length, 3);
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0);
    close(fds[1]);
    run_finals(loop, &stream.rec, 1);
    CHECK_EQ(final_of(&stream.rec, id).result, -ECONNRESET);
    CHECK(final_of(&stream.rec, id).buffer == NULL);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

/* What comes after a receive that had more room than there was data, from another thread at any moment around it. */
enum follow { DATA, END, RESET, URGENT, FOLLOWS };

static struct {
    int fd;
    enum follow how;
    unsigned delay;
} next_part;

static void *send_next_part(void *arg) {
    for (volatile unsigned turns = 0; turns < next_part.delay; turns++) {}
    struct linger none = {1, 0};
    switch (next_part.how) {
    case DATA: write_all(next_part.fd, "de", 2); break;
    case END: CHECK(shutdown(next_part.fd, SHUT_WR) == 0); break;
    case URGENT: CHECK(send(next_part.fd, "!", 1, MSG_OOB) == 1); write_all(next_part.fd, "de", 2); break;
    default:
        CHECK(setsockopt(next_part.fd, SOL_SOCKET, SO_LINGER, &none, sizeof none) == 0);
        CHECK(close(next_part.fd) == 0);
    }
    return arg;
}

TEST(what_follows_a_short_receive_is_told) {
    upcall_loop *loop = new_loop();
    new_pool(loop, 8, 16);
    for (unsigned round = 0; round < 400; round++) {
        int fds[2];
        tcp_pair(fds);
        stream.length = 0;
        upcall_id id;
        upcall_op op = multishot(receiving(fds[0], &stream, 0));
        CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
        for (size_t part = 0; part < 3; part++) { /* the connection is known to epoll */
            write_all(fds[1], "abc", 3);
            run_until(loop, &stream.rec, part + 1);
        }
        write_all(fds[1], "abc", 3);
        next_part.fd = fds[1];
        next_part.how = round % FOLLOWS;
        next_part.delay = round * 64;
        pthread_t other = start(send_next_part, NULL);
        size_t length = next_part.how == DATA || next_part.how == URGENT ? 14 : 12;
        bool ends = next_part.how == END || next_part.how == RESET;
        uint64_t until = now_ns() + (uint64_t)PATIENCE_NS;
        while (ends ? stream.rec.finals == 0 : stream.length < length) {
            CHECK(upcall_poll(loop, MS(1000)) >= 0);
            CHECK(now_ns() < until);
        }
        join(other);
        if (ends)
            CHECK_EQ(final_of(&stream.rec, id).result, next_part.how == END ? 0 : -ECONNRESET);
        else
            end_by_cancel(loop, &stream.rec, id);
        if (next_part.how != RESET) /* which takes away what was not received */
            CHECK_EQ(stream.length, length);
        CHECK(memcmp(stream.bytes, "abcabcabcabcde", stream.length) == 0);
        close(fds[0]);
        if (next_part.how != RESET)
            close(fds[1]);
        forget(&stream.rec);
    }
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(an_empty_datagram_is_a_datagram) {
    upcall_loop *loop = new_loop();
    int fds[2];
    dgram_pair(fds);
    new_pool(loop, 8, 64);
    upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
    CHECK(send(fds[1], "", 0, 0) == 0);
    CHECK(send(fds[1], "abc", 3, 0) == 3);
    CHECK(send(fds[1], "", 0, 0) == 0);
    run_until(loop, &stream.rec, 3);
    static const int64_t results[] = {0, 3, 0};
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(stream.rec.events[i].result, results[i]);
        CHECK_EQ(stream.rec.events[i].flags, UPCALL_MORE);
        CHECK(stream.rec.events[i].buffer != NULL);
    }
    end_by_cancel(loop, &stream.rec, id);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(a_single_recv_borrows_a_buffer_only_when_data_is_there) {
    upcall_loop *loop = new_loop();
    int fds[2][2];
    unix_pair(fds[0]);
    unix_pair(fds[1]);
    new_pool(loop, 1, 64); /* one buffer, two receivers waiting */
    upcall_id first = submit_one(loop, receiving(fds[0][0], &stream, 0), NULL);
    upcall_id second = submit_one(loop, receiving(fds[1][0], &stream, 0), NULL);
    start_all(loop);
    write_all(fds[1][1], "abc", 3);
    run_finals(loop, &stream.rec, 1);
    CHECK_EQ(final_of(&stream.rec, second).result, 3);
    CHECK_EQ(final_of(&stream.rec, second).flags, 0);
    CHECK(final_of(&stream.rec, second).buffer != NULL);
    close(fds[0][1]);
    run_finals(loop, &stream.rec, 2);
    CHECK_EQ(final_of(&stream.rec, first).result, 0); /* end of stream: no buffer */
    CHECK(final_of(&stream.rec, first).buffer == NULL);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(read_borrows_buffers_too) {
    upcall_loop *loop = new_loop();
    int fds[2];
    pipe_pair(fds);
    new_pool(loop, 3, 4);
    for (int i = 0; i < 10; i++) {
        upcall_op op = upcall_op_read(fds[0], NULL, 0);
        op.buffers = stream.pool;
        op.callback = take;
        op.user = &stream;
        upcall_id id = submit_one(loop, op, NULL);
        if (i % 2)
            start_all(loop);
        write_all(fds[1], "abc", 3);
        run_finals(loop, &stream.rec, (size_t)i + 1);
        CHECK_EQ(final_of(&stream.rec, id).result, 3);
        CHECK(final_of(&stream.rec, id).buffer != NULL);
    }
    CHECK_EQ(stream.length, 30);
    CHECK(memcmp(stream.bytes, "abcabcabc", 9) == 0);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

/* ---- recvmsg. ---- */

static struct recorder messages;
static _Alignas(16) char message_bytes[16][512];
static upcall_buffers *message_pool;
static void keep_message(upcall_loop *loop, const upcall_event *event) {
    if (event->buffer) {
        memcpy(message_bytes[messages.count], event->buffer, sizeof *message_bytes);
        CHECK_EQ(upcall_buffers_return(message_pool, event->buffer), 0);
    }
    (void)loop;
    add_record(&messages, event);
}
static upcall_id receive_messages(upcall_loop *loop, int fd, struct msghdr *room) {
    CHECK_EQ(upcall_buffers_new(loop, 4, sizeof *message_bytes, &message_pool), 0);
    upcall_op op = multishot(upcall_op_recvmsg(fd, room, 0));
    op.buffers = message_pool;
    op.callback = keep_message;
    return submit_one(loop, op, NULL);
}

TEST(a_multishot_recvmsg_yields_names_and_payloads) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in to, from;
    int receiver = udp_socket(&to), sender = udp_socket(&from);
    struct msghdr room = {.msg_namelen = sizeof from}; /* read as sizes only */
    upcall_id id = receive_messages(loop, receiver, &room);
    for (size_t i = 0; i < 10; i++) {
        char payload[100];
        fill_pattern(payload, i * 11, i);
        CHECK(sendto(sender, payload, i * 11, 0, (struct sockaddr *)&to, sizeof to) == (ssize_t)(i * 11));
        run_until(loop, &messages, i + 1);
        const upcall_msg *message = (const upcall_msg *)(void *)message_bytes[i];
        struct sockaddr_in name;
        CHECK_EQ(messages.events[i].result, i * 11);
        CHECK_EQ(messages.events[i].flags, UPCALL_MORE);
        CHECK(messages.events[i].buffer != NULL);
        CHECK_EQ(message->namelen, sizeof from);
        CHECK_EQ(message->controllen, 0);
        CHECK_EQ(message->payloadlen, i * 11);
        CHECK_EQ(message->flags & ~(uint32_t)MSG_CMSG_CLOEXEC, 0);
        CHECK_EQ((const char *)upcall_msg_name(message, &room) - message_bytes[i], sizeof *message);
        CHECK_EQ((const char *)upcall_msg_payload(message, &room) - message_bytes[i], sizeof *message + sizeof from);
        memcpy(&name, upcall_msg_name(message, &room), sizeof name);
        CHECK_EQ(name.sin_port, from.sin_port);
        CHECK_EQ(name.sin_addr.s_addr, from.sin_addr.s_addr);
        CHECK(has_pattern(upcall_msg_payload(message, &room), i * 11, i));
    }
    end_by_cancel(loop, &messages, id);
    CHECK_EQ(upcall_buffers_free(message_pool), 0);
    free_loop(loop);
}

TEST(a_multishot_recvmsg_tells_what_was_cut) {
    upcall_loop *loop = new_loop();
    struct sockaddr_in to, from;
    int receiver = udp_socket(&to), sender = udp_socket(&from);
    struct msghdr room = {.msg_namelen = 4};
    upcall_id id = receive_messages(loop, receiver, &room);
    char payload[1000];
    fill_pattern(payload, sizeof payload, 0);
    CHECK(sendto(sender, payload, sizeof payload, 0, (struct sockaddr *)&to, sizeof to) == sizeof payload);
    run_until(loop, &messages, 1);
    const upcall_msg *message = (const upcall_msg *)(void *)message_bytes[0];
    size_t space = sizeof *message_bytes - sizeof *message - 4;
    CHECK_EQ(messages.events[0].result, space);
    CHECK_EQ(message->namelen, sizeof from);
    CHECK_EQ(message->payloadlen, space);
    CHECK(message->flags & MSG_TRUNC);
    CHECK(has_pattern(upcall_msg_payload(message, &room), space, 0));
    CHECK(memcmp(upcall_msg_name(message, &room), &from, 4) == 0);
    end_by_cancel(loop, &messages, id);
    CHECK_EQ(upcall_buffers_free(message_pool), 0);
    free_loop(loop);
}

TEST(a_multishot_recvmsg_yields_control_data_and_descriptors_close_on_exec) {
    upcall_loop *loop = new_loop();
    int fds[2], passed = temp_file(5);
    dgram_pair(fds);
    struct msghdr room = {.msg_namelen = 8, .msg_controllen = CMSG_SPACE(sizeof(int))};
    upcall_id id = receive_messages(loop, fds[0], &room);
    for (size_t i = 0; i < 3; i++) {
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(sizeof(int))];
        } control;
        memset(&control, 0, sizeof control);
        control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
                                          .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &passed, sizeof passed);
        struct iovec part = {"payload", 7};
        struct msghdr out = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
        CHECK(sendmsg(fds[1], &out, 0) == 7);
        run_until(loop, &messages, i + 1);
        const upcall_msg *message = (const upcall_msg *)(void *)message_bytes[i];
        CHECK_EQ(messages.events[i].result, 7);
        CHECK(message->controllen >= CMSG_LEN(sizeof(int)));
        CHECK_EQ((const char *)upcall_msg_control(message, &room) - message_bytes[i], sizeof *message + 8);
        CHECK_EQ((const char *)upcall_msg_payload(message, &room) - message_bytes[i],
                 sizeof *message + 8 + room.msg_controllen);
        CHECK(memcmp(upcall_msg_payload(message, &room), "payload", 7) == 0);
        memcpy(&control, upcall_msg_control(message, &room), sizeof control);
        CHECK_EQ(control.header.cmsg_type, SCM_RIGHTS);
        int got;
        memcpy(&got, CMSG_DATA(&control.header), sizeof got);
        CHECK(fcntl(got, F_GETFD) & FD_CLOEXEC);
        struct stat a, b;
        CHECK(fstat(got, &a) == 0 && fstat(passed, &b) == 0);
        CHECK_EQ(a.st_ino, b.st_ino);
        close(got);
    }
    end_by_cancel(loop, &messages, id);
    CHECK_EQ(upcall_buffers_free(message_pool), 0);
    free_loop(loop);
}

TEST(a_multishot_recvmsg_of_a_stream_ends_with_it) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    struct msghdr room = {0};
    upcall_id id = receive_messages(loop, fds[0], &room);
    write_all(fds[1], "abc", 3);
    run_until(loop, &messages, 1);
    CHECK_EQ(messages.events[0].result, 3);
    CHECK_EQ(((const upcall_msg *)(void *)message_bytes[0])->payloadlen, 3);
    CHECK(memcmp(upcall_msg_payload((const upcall_msg *)(void *)message_bytes[0], &room), "abc", 3) == 0);
    close(fds[1]);
    run_finals(loop, &messages, 1);
    CHECK_EQ(final_of(&messages, id).result, 0);
    CHECK(final_of(&messages, id).buffer == NULL);
    CHECK_EQ(upcall_buffers_free(message_pool), 0);
    free_loop(loop);
}

/* ---- poll and sleep. ---- */

TEST(a_multishot_poll_yields_an_event_per_arrival) { /* hazards row 35 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        write_all(fds[1], "x", 1); /* the first event is by level */
        upcall_id id = submit_one(loop, multishot(upcall_op_poll(fds[0], POLLIN)), &rec);
        for (int i = 0; i < 20; i++) {
            run_until(loop, &rec, rec.count + 1);
            CHECK(rec.events[rec.count - 1].result & POLLIN);
            CHECK_EQ(rec.events[rec.count - 1].flags, UPCALL_MORE);
            CHECK(drain_fd(fds[0]) > 0 || rec.count > 1); /* spurious ones are allowed */
            for (int k = 0; k < 5; k++) /* let those that are on their way come */
                CHECK(upcall_poll(loop, MS(1)) >= 0);
            write_all(fds[1], "y", 1);
        }
        end_by_cancel(loop, &rec, id);
        close_pair(fds);
        free_loop(loop);
    }
}

TEST(a_multishot_sleep_ticks_never_early_and_merges_what_was_missed) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    const uint64_t period = 5 * UPCALL_MILLISECOND;
    uint64_t before = now_ns(), ticks = 0;
    upcall_id id = submit_one(loop, multishot(upcall_op_sleep(period)), &rec);
    uint64_t after = now_ns();
    size_t seen = 0;
    for (int round = 0; round < 60; round++) {
        size_t count = rec.count;
        if (round % 10 == 9)
            pause_ms(57); /* eleven periods */
        uint64_t turn = now_ns();
        CHECK(upcall_poll(loop, MS(1000)) >= 0);
        uint64_t now = now_ns();
        for (; seen < rec.count; seen++) {
            CHECK(rec.events[seen].result >= 1);
            CHECK_EQ(rec.events[seen].flags, UPCALL_MORE);
            ticks += (uint64_t)rec.events[seen].result;
            CHECK(before + ticks * period <= now); /* the k-th at start + k * period, never early */
        }
        if (rec.count > count)
            CHECK(ticks >= (turn - after) / period); /* none is missing */
        if (round % 10 == 9)
            CHECK_EQ(rec.count - count, 1); /* missed ones merge */
    }
    CHECK(ticks >= 60);
    end_by_cancel(loop, &rec, id);
    free_loop(loop);
}

/* ---- Pools. ---- */

TEST(a_dry_pool_pauses_its_readers_and_resumes_them) { /* hazards row 31 */
    for (int which = UNIX; which < PAIRS; which++)
        for (int from_thread = 0; from_thread < 2; from_thread++) {
            upcall_loop *loop = new_loop();
            stream = (struct stream){.keep = true};
            int fds[2];
            uint8_t block[200];
            make_pair(which, fds);
            new_pool(loop, 4, 16);
            fill_pattern(block, sizeof block, 0);
            write_all(fds[1], block, sizeof block);
            upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
            run_until(loop, &stream.rec, 4);
            quiet(loop, &stream.rec); /* add_record() refuses -ENOBUFS */
            CHECK_EQ(stream.length, 64);
            for (size_t returned = 0; stream.length < sizeof block; returned++) {
                size_t count = stream.rec.count;
                CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[returned].buffer), 0);
                run_until(loop, &stream.rec, count + 1);
                CHECK(stream.rec.count - (returned + 1) <= 4); /* at most four are lent */
            }
            CHECK(has_pattern(stream.bytes, sizeof block, 0));
            CHECK_EQ(stream.length, sizeof block);
            CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY);
            shutdown(fds[1], SHUT_WR);
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &stream.rec, 1);
            quiet(loop, &stream.rec);
            for (size_t i = stream.rec.count; i-- > 0;)
                upcall_buffers_return(stream.pool, stream.rec.events[i].buffer);
            CHECK_EQ(upcall_buffers_free(stream.pool), 0);
            close_pair(fds);
            free_loop(loop);
        }
}

TEST(readers_of_a_dry_pool_take_turns_and_none_is_forgotten) { /* hazards row 31 */
    enum { N = 12 };
    upcall_loop *loop = new_loop();
    struct stream *streams = calloc(N, sizeof *streams);
    int fds[N][2];
    upcall_buffers *pool;
    CHECK_EQ(upcall_buffers_new(loop, 2, 8, &pool), 0);
    for (int i = 0; i < N; i++) {
        unix_pair(fds[i]);
        streams[i].pool = pool;
        submit_one(loop, receiving(fds[i][0], &streams[i], i % 2 ? UPCALL_MULTISHOT : 0), NULL);
        write_all(fds[i][1], "12345678", 8);
    }
    for (int i = 0; i < N; i++)
        wait_count(loop, &streams[i].length, 8);
    for (int i = 1; i < N; i += 2) {
        write_all(fds[i][1], "abcdefgh", 8);
        wait_count(loop, &streams[i].length, 16);
        CHECK(memcmp(streams[i].bytes, "12345678abcdefgh", 16) == 0);
    }
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(pool), 0);
}

TEST(a_reader_paused_by_a_dry_pool_can_be_cancelled) {
    upcall_loop *loop = new_loop();
    int fds[2], left;
    unix_pair(fds);
    new_pool(loop, 1, 4);
    stream.keep = true;
    write_all(fds[1], "abcdefgh", 8);
    upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
    run_until(loop, &stream.rec, 1);
    quiet(loop, &stream.rec);
    upcall_id single = submit_one(loop, receiving(fds[0], &stream, 0), NULL);
    quiet(loop, &stream.rec);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    CHECK_EQ(upcall_cancel(loop, single), 0);
    run_finals(loop, &stream.rec, 2);
    CHECK_EQ(final_of(&stream.rec, id).result, -ECANCELED);
    CHECK_EQ(final_of(&stream.rec, single).result, -ECANCELED);
    CHECK(ioctl(fds[0], FIONREAD, &left) == 0);
    CHECK_EQ(left, 4); /* what no buffer was there for stays in the socket */
    CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[0].buffer), 0);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(lend_max_keeps_one_slow_consumer_from_taking_the_pool) {
    upcall_loop *loop = new_loop();
    static struct stream fast;
    int slow_pair[2], fast_pair[2];
    unix_pair(slow_pair);
    unix_pair(fast_pair);
    new_pool(loop, 8, 4);
    stream.keep = true;
    fast.pool = stream.pool;
    uint8_t block[64];
    fill_pattern(block, sizeof block, 0);
    write_all(slow_pair[1], block, sizeof block);
    upcall_op op = receiving(slow_pair[0], &stream, UPCALL_MULTISHOT);
    op.lend_max = 3;
    submit_one(loop, op, NULL);
    run_until(loop, &stream.rec, 3);
    quiet(loop, &stream.rec);
    CHECK_EQ(stream.rec.count, 3);
    write_all(fast_pair[1], block, sizeof block);
    submit_one(loop, receiving(fast_pair[0], &fast, UPCALL_MULTISHOT), NULL);
    wait_count(loop, &fast.length, sizeof block);
    CHECK_EQ(stream.rec.count, 3);
    for (size_t i = 0; stream.length < sizeof block; i++) {
        CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[i].buffer), 0);
        run_until(loop, &stream.rec, i + 4);
        CHECK_EQ(stream.rec.count, i + 4);
    }
    CHECK(has_pattern(stream.bytes, sizeof block, 0));
    free_loop(loop);
}

static void *return_in_thread(void *arg) {
    pause_ms(10);
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(upcall_buffers_return(stream.pool, ((void **)arg)[i]), 0);
    return NULL;
}

TEST(any_thread_may_return_a_buffer_and_wakes_its_readers) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    new_pool(loop, 3, 4);
    stream.keep = true;
    write_all(fds[1], "0123456789abcdefghijklmn", 24);
    submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
    run_until(loop, &stream.rec, 3);
    quiet(loop, &stream.rec);
    void *lent[3] = {stream.rec.events[0].buffer, stream.rec.events[1].buffer, stream.rec.events[2].buffer};
    pthread_t thread = start(return_in_thread, lent);
    while (stream.rec.count < 6) /* without limit: the return must wake it */
        CHECK(upcall_poll(loop, -1) >= 0);
    join(thread);
    CHECK_EQ(stream.length, 24);
    CHECK(memcmp(stream.bytes, "0123456789abcdefghijklmn", 24) == 0);
    free_loop(loop);
}

TEST(only_a_lent_buffer_of_the_pool_can_be_returned_and_only_once) {
    upcall_loop *loop = new_loop();
    upcall_buffers *other;
    int fds[2];
    char mine[64];
    unix_pair(fds);
    new_pool(loop, 4, 64);
    CHECK_EQ(upcall_buffers_new(loop, 4, 64, &other), 0);
    stream.keep = true;
    write_all(fds[1], "abc", 3);
    submit_one(loop, receiving(fds[0], &stream, 0), NULL);
    run_finals(loop, &stream.rec, 1);
    char *lent = stream.rec.events[0].buffer;
    CHECK_EQ(upcall_buffers_return(stream.pool, NULL), -EINVAL);
    CHECK_EQ(upcall_buffers_return(stream.pool, mine), -EINVAL);
    CHECK_EQ(upcall_buffers_return(stream.pool, lent + 1), -EINVAL);
    for (int i = -4; i <= 4; i++) /* neighbours, which are not lent */
        if (i != 0)
            CHECK_EQ(upcall_buffers_return(stream.pool, lent + 64 * i), -EINVAL);
    CHECK_EQ(upcall_buffers_return(stream.pool, (void *)UINTPTR_MAX), -EINVAL);
    CHECK_EQ(upcall_buffers_return(other, lent), -EINVAL);
    CHECK_EQ(upcall_buffers_return(stream.pool, lent), 0);
    CHECK_EQ(upcall_buffers_return(stream.pool, lent), -EINVAL);
    CHECK(*upcall_last_error());
    CHECK_EQ(upcall_buffers_free(other), 0);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(a_pool_in_use_is_not_freed) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    new_pool(loop, 2, 64);
    stream.keep = true;
    upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
    CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY); /* not handed over yet */
    start_all(loop);
    CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY); /* waiting */
    write_all(fds[1], "abc", 3);
    run_until(loop, &stream.rec, 1);
    end_by_cancel(loop, &stream.rec, id);
    CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY); /* lent */
    CHECK(*upcall_last_error());
    CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[0].buffer), 0);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(a_parked_operation_uses_its_pool) {
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    new_pool(loop, 2, 64);
    upcall_op ops[2] = {upcall_op_sleep(3600 * UPCALL_SECOND), receiving(fds[0], &stream, 0)};
    ops[0].flags = UPCALL_LINK;
    upcall_id ids[2];
    submit_many(loop, ops, 2, &rec, ids);
    start_all(loop);
    CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY);
    CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
    run_finals(loop, &stream.rec, 1);
    CHECK_EQ(final_of(&stream.rec, ids[1]).result, -ECANCELED);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    free_loop(loop);
}

TEST(a_pool_and_its_lent_buffers_outlive_the_loop) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    new_pool(loop, 2, 64);
    stream.keep = true;
    submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
    write_all(fds[1], "abc", 3);
    run_until(loop, &stream.rec, 1);
    free_loop(loop);
    CHECK_EQ(stream.rec.finals, 1);
    CHECK(memcmp(stream.rec.events[0].buffer, "abc", 3) == 0);
    CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY);
    CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[0].buffer), 0);
    CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[0].buffer), -EINVAL);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
}

TEST(buffers_of_unreaped_records_go_back_when_the_loop_is_freed) {
    upcall_loop *loop = new_loop();
    int fds[2];
    unix_pair(fds);
    new_pool(loop, 4, 8);
    upcall_op op = receiving(fds[0], &stream, UPCALL_MULTISHOT);
    op.callback = NULL;
    CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
    write_all(fds[1], "0123456789", 10);
    int ready = 0;
    while (ready < 2)
        ready += upcall_poll(loop, MS(100));
    CHECK_EQ(upcall_buffers_free(stream.pool), -EBUSY);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
}

TEST(pools_of_many_shapes_work) {
    upcall_loop *loop = new_loop();
    static const uint32_t counts[] = {1, 3, 7, 100, 32768}, sizes[] = {1, 17, 4096, 100000};
    int fds[2];
    unix_pair(fds);
    for (size_t c = 0; c < COUNT_OF(counts); c++)
        for (size_t s = 0; s < COUNT_OF(sizes); s++) {
            stream = (struct stream){.keep = true};
            new_pool(loop, counts[c], sizes[s]);
            size_t n = counts[c] < 20 ? counts[c] : 20;
            uint8_t block[20];
            fill_pattern(block, n, 0);
            upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
            for (size_t i = 0; i < n; i++) {
                write_all(fds[1], &block[i], 1);
                wait_count(loop, &stream.length, i + 1);
                memset(stream.rec.events[i].buffer, (int)i, sizes[s]); /* all of it is ours */
            }
            end_by_cancel(loop, &stream.rec, id);
            CHECK(has_pattern(stream.bytes, n, 0));
            for (size_t i = 0; i < n; i++) { /* no two of them overlap */
                const uint8_t *buffer = stream.rec.events[i].buffer;
                CHECK(buffer[0] == i && buffer[sizes[s] - 1] == i);
                CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[i].buffer), 0);
            }
            CHECK_EQ(upcall_buffers_free(stream.pool), 0);
        }
    free_loop(loop);
}

/* Measured on 6.1.192: a group of buffers began where another one of its name had ended. */
TEST(a_pool_made_after_another_lends_each_buffer_once) {
    upcall_loop *loop = new_loop();
    enum { COUNT = 8 };
    int fds[2];
    unix_pair(fds);
    for (int round = 0; round < 6; round++) {
        bool keep = round % 2;
        stream = (struct stream){.keep = keep};
        new_pool(loop, COUNT, 16);
        upcall_id id = submit_one(loop, receiving(fds[0], &stream, UPCALL_MULTISHOT), NULL);
        for (size_t i = 0; i < (keep ? COUNT : 11 + (size_t)round); i++) { /* not a multiple of what the kernel counts with */
            write_all(fds[1], &(uint8_t){(uint8_t)i}, 1);
            wait_count(loop, &stream.length, i + 1);
        }
        if (keep) {
            write_all(fds[1], "x", 1);
            quiet(loop, &stream.rec); /* all are lent: this one waits */
            for (size_t i = 0; i < COUNT; i++)
                CHECK_EQ(*(uint8_t *)stream.rec.events[i].buffer, i);
            CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[0].buffer), 0);
            wait_count(loop, &stream.length, COUNT + 1);
            CHECK(stream.rec.events[COUNT].buffer == stream.rec.events[0].buffer);
        }
        end_by_cancel(loop, &stream.rec, id);
        for (size_t i = 1; keep && i <= COUNT; i++)
            CHECK_EQ(upcall_buffers_return(stream.pool, stream.rec.events[i].buffer), 0);
        CHECK_EQ(upcall_buffers_free(stream.pool), 0);
    }
    close_pair(fds);
    free_loop(loop);
}

TEST(pools_out_of_range_are_refused) {
    upcall_loop *loop = new_loop();
    static const uint32_t bad[][2] = {{0, 64},   {32769, 64},     {UINT32_MAX, 64},        {4, 0},
                                      {4, UINT32_MAX}, {4, (1u << 30) + 1}, {0, 0}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        upcall_buffers *pool = (upcall_buffers *)&loop;
        CHECK_EQ(upcall_buffers_new(loop, bad[i][0], bad[i][1], &pool), -EINVAL);
        CHECK(pool == NULL);
        CHECK(*upcall_last_error());
    }
    free_loop(loop);
}

TEST(a_multishot_that_nobody_reaps_pauses_after_max_events) {
    enum { MAX = 8, SENT = 60 };
    upcall_config config = default_config();
    config.max_events = MAX;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    int fds[2];
    dgram_pair(fds);
    new_pool(loop, 128, 8);
    upcall_op op = receiving(fds[0], &stream, UPCALL_MULTISHOT);
    op.callback = NULL;
    upcall_id id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    start_all(loop);
    set_nonblocking(fds[1]);
    upcall_event events[SENT];
    uint32_t sent = 0;
    for (int i = 0; i < SENT; i++) { /* the queue of a datagram socket may be short: then it is full because we pause */
        sent += send(fds[1], &sent, sizeof sent, 0) == sizeof sent;
        CHECK(upcall_poll(loop, 0) >= 0);
    }
    for (int i = 0; i < 20; i++)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    CHECK(sent > MAX);
    int got = upcall_reap(loop, events, SENT);
    CHECK(got >= 1 && got <= 2 * MAX); /* some may have been on their way */
    uint32_t next = 0;
    for (;;) {
        for (int i = 0; i < got; i++) {
            add_record(&rec, &events[i]);
            CHECK_EQ(events[i].id, id);
            CHECK_EQ(events[i].flags, UPCALL_MORE);
            CHECK_EQ(events[i].result, sizeof next);
            CHECK_EQ(memcmp(events[i].buffer, &next, sizeof next), 0);
            next++;
            CHECK_EQ(upcall_buffers_return(stream.pool, events[i].buffer), 0);
        }
        if (next == sent)
            break;
        uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
        do { /* it goes on when they are reaped */
            CHECK(upcall_poll(loop, MS(100)) >= 0 && now_ns() < limit);
            got = upcall_reap(loop, events, SENT);
        } while (got == 0);
        CHECK(got <= 2 * MAX);
    }
    CHECK_EQ(upcall_cancel(loop, id), 0);
    reap_until(loop, &rec, sent + 1);
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    free_loop(loop);
    CHECK_EQ(upcall_buffers_free(stream.pool), 0);
}

TEST(an_accept_and_a_sleep_that_nobody_reaps_pause_and_go_on) {
    enum { MAX = 4, N = 14 };
    upcall_config config = default_config();
    config.max_events = MAX;
    upcall_loop *loop = loop_with(&config);
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        struct recorder rec = {0};
        struct sockaddr_in address;
        int listener = tcp_listener(&address, type, 32), clients[N];
        upcall_op op = multishot(upcall_op_accept(listener, NULL, NULL, 0));
        upcall_id id;
        CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
        for (int i = 0; i < N; i++) {
            clients[i] = tcp_connected_to(&address);
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        }
        upcall_event events[2 * N];
        int got = upcall_reap(loop, events, 2 * N);
        CHECK(got >= 1 && got <= 2 * MAX);
        for (int i = 0; i < got; i++)
            add_record(&rec, &events[i]);
        reap_until(loop, &rec, N);
        CHECK_EQ(rec.count, N);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        reap_until(loop, &rec, N + 1);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        for (int i = 0; i < N; i++) {
            CHECK(rec.events[i].result >= 0);
            close((int)rec.events[i].result);
            close(clients[i]);
        }
        close(listener);
        forget(&rec);
    }
    struct recorder rec = {0};
    const uint64_t period = UPCALL_MILLISECOND;
    upcall_op op = multishot(upcall_op_sleep(period));
    upcall_id id;
    uint64_t before = now_ns(), ticks = 0;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    uint64_t after = now_ns();
    for (int i = 0; i < 40; i++) {
        CHECK(upcall_poll(loop, 0) >= 0);
        pause_ms(1);
    }
    upcall_event events[64];
    int got = upcall_reap(loop, events, 64);
    CHECK(got >= 1 && got <= 2 * MAX);
    for (int i = 0; i < got; i++)
        add_record(&rec, &events[i]);
    uint64_t turn = now_ns();
    reap_until(loop, &rec, (size_t)got + 2); /* it goes on, and the periods in between have merged */
    for (size_t i = 0; i < rec.count; i++)
        ticks += (uint64_t)rec.events[i].result;
    CHECK(before + ticks * period <= now_ns());
    CHECK(ticks >= (turn - after) / period); /* none is missing */
    CHECK_EQ(upcall_cancel(loop, id), 0);
    while (rec.finals == 0)
        reap_until(loop, &rec, rec.count + 1);
    free_loop(loop);
}

TEST(a_paused_and_unreaped_multishot_can_be_cancelled) {
    upcall_config config = default_config();
    config.max_events = 2;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    int fds[2];
    unix_pair(fds);
    new_pool(loop, 64, 1);
    upcall_op op = receiving(fds[0], &stream, UPCALL_MULTISHOT);
    op.callback = NULL;
    upcall_id id;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    write_all(fds[1], "0123456789", 10);
    for (int i = 0; i < 20; i++)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;
    while (rec.finals == 0) {
        reap_until(loop, &rec, rec.count + 1);
        CHECK(now_ns() < limit);
    }
    CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
    for (size_t i = 0; i + 1 < rec.count; i++)
        CHECK_EQ(*(char *)rec.events[i].buffer, '0' + (char)i);
    int left;
    CHECK(ioctl(fds[0], FIONREAD, &left) == 0);
    CHECK_EQ((size_t)left + rec.count - 1, 10); /* conserved */
    free_loop(loop);
}

/* Also where the program is slow to poll after the event that took the last buffer, and while no data comes. On a slow
   machine the limit may strike before the first event is there: then another is tried. */
TEST(the_idle_limit_stands_still_from_the_moment_the_pool_is_dry) {
    for (int more_data = 0; more_data < 2; more_data++) {
        int fds[2];
        struct recorder rec = {0};
        upcall_buffers *pool = NULL;
        upcall_loop *loop = new_loop();
        upcall_id id;
        unix_pair(fds);
        CHECK_EQ(upcall_buffers_new(loop, 1, 16, &pool), 0);
        upcall_op op = upcall_op_recv(fds[0], NULL, 0, 0);
        op.flags = UPCALL_MULTISHOT;
        op.buffers = pool;
        op.timeout_ns = (uint64_t)MS(20);
        for (;;) {
            write_all(fds[1], "one", 3);
            id = submit_one(loop, op, &rec);
            run_until(loop, &rec, 1);
            start_all(loop);
            if (rec.finals == 0)
                break;
            CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
            if (rec.events[0].buffer != NULL)
                CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
            drain_fd(fds[0]);
            forget(&rec);
        }
        CHECK_EQ(rec.events[0].result, 3);
        if (more_data)
            write_all(fds[1], "two", 3);
        pause_ms(40);
        for (int i = 0; i < 10; i++)
            CHECK_EQ(upcall_poll(loop, MS(4)), 0);
        CHECK_EQ(rec.count, 1);
        CHECK_EQ(upcall_buffers_return(pool, rec.events[0].buffer), 0);
        for (size_t seen = 1; rec.finals == 0; seen++) { /* it moves again */
            run_until(loop, &rec, seen + 1);
            if (rec.events[seen].buffer != NULL)
                CHECK_EQ(upcall_buffers_return(pool, rec.events[seen].buffer), 0);
        }
        CHECK_EQ(final_of(&rec, id).result, -ETIMEDOUT);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        free_loop(loop);
        close_pair(fds);
        forget(&rec);
    }
}
