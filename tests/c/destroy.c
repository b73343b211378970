/* When upcall_loop_free() returns, nothing touches the program's memory any more. */
#include "check.h"
#include <stdatomic.h>

enum { BLOCK = 1 << 20, BLOCKS = 16 };

static uint8_t *aligned(size_t size) {
    void *memory = NULL;
    CHECK(posix_memalign(&memory, 4096, size) == 0);
    memset(memory, 0, size);
    return memory;
}

static void check_canary(const uint8_t *memory, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (memory[i] != 0xee)
            fail(HERE, "byte %zu was written after upcall_loop_free() returned", i);
}

/* Frees the loop while reads of the file are in flight, `turns` turns after they were submitted. */
static void free_under_reads(int file, int turns, uint32_t workers) {
    static uint8_t *memory;
    if (memory == NULL)
        memory = aligned(BLOCK * BLOCKS);
    upcall_config config = default_config();
    config.workers = workers;
    upcall_loop *loop = loop_with(&config);
    struct recorder rec = {0};
    upcall_op ops[BLOCKS];
    upcall_id ids[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        ops[i] = upcall_op_pread(file, memory + (size_t)i * BLOCK, BLOCK, (int64_t)i * BLOCK);
    submit_many(loop, ops, BLOCKS, &rec, ids);
    for (int i = 0; i < turns; i++)
        CHECK(upcall_poll(loop, 0) >= 0);
    free_loop(loop);
    memset(memory, 0xee, BLOCK * BLOCKS); /* ours again */
    check_finals(&rec, ids, BLOCKS);
    for (int i = 0; i < BLOCKS; i++)
        CHECK(rec.events[i].result == BLOCK || rec.events[i].result == -ECANCELED);
    pause_ms(5);
    check_canary(memory, BLOCK * BLOCKS);
    forget(&rec);
}

TEST_FOR(no_direct_read_reaches_memory_after_free, 120) { /* hazards row 1 */
    int file = temp_file(BLOCK * BLOCKS);
    CHECK(fsync(file) == 0);
    if (fcntl(file, F_SETFL, O_DIRECT) != 0)
        SKIP("the file system has no O_DIRECT");
    uint8_t *probe = aligned(4096);
    if (pread(file, probe, 4096, 0) != 4096)
        SKIP("O_DIRECT does not work here");
    for (int round = 0; round < 40; round++)
        free_under_reads(file, round % 4, 2 + (uint32_t)round % 7);
}

TEST_FOR(no_read_of_a_cold_file_reaches_memory_after_free, 120) { /* hazards row 1 */
    int file = temp_file(BLOCK * BLOCKS);
    CHECK(fsync(file) == 0);
    for (int round = 0; round < 20; round++) {
        CHECK_EQ(posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED), 0);
        free_under_reads(file, round % 4, 2 + (uint32_t)round % 3);
    }
}

TEST(no_receive_reaches_memory_after_free) { /* hazards row 1 */
    for (int which = 0; which < PAIRS; which++)
        for (int way = 0; way < 6; way++) {
            upcall_loop *loop = new_loop();
            struct recorder rec = {0};
            uint8_t memory[128];
            int fds[2];
            make_pair(which, fds);
            struct iovec parts[2] = {{memory, 50}, {memory + 50, 50}};
            upcall_op op = way % 2 ? upcall_op_read(fds[0], memory, 100) : upcall_op_readv(fds[0], parts, 2);
            op.flags = way / 2 == 1 ? UPCALL_FULL : 0;
            op.timeout_ns = way / 2 == 2 ? 3600 * UPCALL_SECOND : 0;
            submit_one(loop, op, &rec);
            if (way % 3)
                start_all(loop);
            free_loop(loop);
            CHECK_EQ(rec.finals, 1);
            CHECK_EQ(rec.events[0].result, -ECANCELED);
            memset(memory, 0xee, sizeof memory);
            memset(parts, 0xff, sizeof parts);
            write_all(fds[1], "0123456789", 10);
            pause_ms(2);
            check_canary(memory, sizeof memory);
            uint8_t back[10];
            read_all(fds[0], back, 10); /* and nothing was taken */
            close_pair(fds);
        }
}

TEST(no_accept_writes_an_address_after_free) { /* hazards rows 1, 30 */
    for (int type = 0; type <= SOCK_NONBLOCK; type += SOCK_NONBLOCK) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        struct sockaddr_in address;
        struct {
            struct sockaddr_storage name;
            socklen_t length;
        } peer = {.length = sizeof peer.name};
        int listener = tcp_listener(&address, type, 4);
        submit_one(loop, upcall_op_accept(listener, (struct sockaddr *)&peer.name, &peer.length, 0), &rec);
        start_all(loop);
        pause_ms(2);
        free_loop(loop);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        memset(&peer, 0xee, sizeof peer);
        int client = tcp_connected_to(&address);
        pause_ms(5);
        check_canary((uint8_t *)&peer, sizeof peer);
        CHECK(is_readable(listener, 5000)); /* the connection is still there */
        close(client);
        close(listener);
    }
}

struct scribbler {
    atomic_int started;
    uint8_t memory[4096];
};
static int64_t scribble(void *arg) {
    struct scribbler *scribbler = arg;
    atomic_store(&scribbler->started, 1);
    for (int i = 0; i < 30; i++) {
        memset(scribbler->memory, i, sizeof scribbler->memory);
        pause_ms(1);
    }
    return 30;
}

TEST(free_waits_for_running_work) { /* hazards rows 1, 36 */
    for (int round = 0; round < 5; round++) {
        static struct scribbler scribblers[8];
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        for (size_t i = 0; i < COUNT_OF(scribblers); i++) {
            atomic_store(&scribblers[i].started, 0);
            submit_one(loop, upcall_op_work(scribble, &scribblers[i]), &rec);
        }
        while (!atomic_load(&scribblers[0].started))
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        free_loop(loop);
        CHECK_EQ(rec.finals, COUNT_OF(scribblers));
        size_t ran = 0;
        for (size_t i = 0; i < COUNT_OF(scribblers); i++) {
            CHECK(rec.events[i].result == 30 || rec.events[i].result == -ECANCELED);
            ran += rec.events[i].result == 30;
            memset(scribblers[i].memory, 0xee, sizeof scribblers[i].memory);
        }
        CHECK(ran >= 1);
        pause_ms(5);
        for (size_t i = 0; i < COUNT_OF(scribblers); i++)
            check_canary(scribblers[i].memory, sizeof scribblers[i].memory);
        forget(&rec);
    }
}

TEST(no_write_reads_memory_after_free) { /* hazards row 1 */
    for (int which = 0; which < PAIRS; which++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        int fds[2];
        make_pair(which, fds);
        size_t size = 8 << 20, total = 0;
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED);
        memset(memory, 'a', size);
        upcall_op op = upcall_op_write(fds[1], memory, size);
        op.flags = UPCALL_FULL;
        submit_one(loop, op, &rec);
        start_all(loop);
        free_loop(loop);
        CHECK_EQ(rec.events[0].result, -ECANCELED);
        memset(memory, 'b', size);
        close(fds[1]);
        static char back[65536];
        for (ssize_t n; (n = read(fds[0], back, sizeof back)) > 0; total += (size_t)n)
            CHECK(memchr(back, 'b', (size_t)n) == NULL);
        CHECK_EQ(total, rec.events[0].transferred);
        munmap(memory, size);
        close(fds[0]);
    }
}

TEST_FOR(free_is_quick_with_20000_pending, 60) { /* hazards row 9 */
    enum { N = 20000 };
    static upcall_op ops[N];
    static upcall_id ids[N];
    raise_descriptor_limit(1200);
    for (int started = 0; started < 2; started++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        char byte;
        int fds[500][2];
        for (size_t i = 0; i < COUNT_OF(fds); i++)
            unix_pair(fds[i]);
        for (size_t i = 0; i < N; i++)
            ops[i] = i % 2 ? upcall_op_recv(fds[i % COUNT_OF(fds)][0], &byte, 1, 0)
                           : upcall_op_poll(fds[i % COUNT_OF(fds)][0], POLLIN);
        submit_many(loop, ops, N, &rec, ids);
        if (started)
            start_all(loop);
        uint64_t before = processor_ns();
        free_loop(loop);
        CHECK(processor_ns() - before < 4 * UPCALL_SECOND);
        check_finals(&rec, ids, N);
        for (size_t i = 0; i < N; i++)
            CHECK_EQ(rec.events[i].result, -ECANCELED);
        for (size_t i = 0; i < COUNT_OF(fds); i++)
            close_pair(fds[i]);
        forget(&rec);
    }
}

TEST_FOR(a_freed_loop_leaves_no_descriptor_no_thread_and_no_memory_behind, 60) { /* hazards rows 1, 38 */
    int file = temp_file(100), fds[2], descriptors = open_fd_count(), threads = thread_count();
    pipe_pair(fds);
    long pages = 0;
    for (int round = 0; round < 60; round++) {
        upcall_loop *loop = new_loop();
        struct recorder rec = {0};
        upcall_buffers *pool;
        struct sockaddr_in address;
        int listener = tcp_listener(&address, 0, 4);
        char byte;
        CHECK_EQ(upcall_buffers_new(loop, 64, 4096, &pool), 0);
        CHECK(upcall_fd(loop) >= 0);
        CHECK_EQ(complete(loop, upcall_op_fsync(file)).result, 0);
        CHECK_EQ(complete(loop, upcall_op_nop()).result, 0);
        submit_one(loop, upcall_op_read(fds[0], &byte, 1), &rec);
        submit_one(loop, upcall_op_sleep(3600 * UPCALL_SECOND), &rec);
        submit_one(loop, upcall_op_accept(listener, NULL, NULL, 0), &rec); /* on epoll a thread of its own */
        if (round % 2)
            start_all(loop);
        free_loop(loop);
        CHECK_EQ(rec.finals, 3);
        forget(&rec);
        CHECK_EQ(upcall_buffers_free(pool), 0);
        close(listener);
        for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; thread_count() != threads; pause_ms(1))
            CHECK(now_ns() < limit); /* one that was joined may be listed for a moment */
        FILE *statm = fopen("/proc/self/statm", "re");
        long now;
        CHECK(statm != NULL && fscanf(statm, "%ld", &now) == 1);
        fclose(statm);
        if (round == 10)
            pages = now;
        if (round > 10)
            CHECK(now - pages < 4096); /* 16 MiB: one loop forgotten per round would be more */
    }
    close_pair(fds);
    CHECK_EQ(open_fd_count(), descriptors);
}
