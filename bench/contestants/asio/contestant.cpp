/* Standalone Asio, compiled twice: on epoll, and on io_uring (ASIO_HAS_IO_URING, ASIO_DISABLE_EPOLL), where it has files as well.
 * One thread, so ASIO_CONCURRENCY_HINT_UNSAFE spares it its locks, but for the messages between threads. Handlers are plain
 * lambdas; Asio recycles their memory by itself. A connection has a buffer of its own, because a read in progress owns it. */
#define ASIO_STANDALONE 1
#define ASIO_NO_DEPRECATED 1
#include "bench.h"

#include <asio.hpp>
#ifdef ASIO_HAS_FILE
#include <asio/random_access_file.hpp>
#endif

#include <deque>
#include <memory>
#include <netinet/in.h>
#include <optional>
#include <vector>

#define TEXT(x) #x
#define STRING(x) TEXT(x)

using asio::error_code;

static std::unique_ptr<asio::io_context> context;

static void open_loop(int hint) {
    try {
        context = std::make_unique<asio::io_context>(hint);
        asio::post(*context, [] {});
        context->poll();
        context->restart();
    } catch (const std::exception &e) {
        bench_skip(e.what());
    }
}

static void turn() {
    context->run_one(); /* waits for one handler … */
    context->poll();    /* … and runs what else is ready */
}

/* ---- Echo ---- */

static size_t size;

template <class Protocol> struct connection {
    typename Protocol::socket socket;
    std::unique_ptr<char[]> buffer{new char[size]};

    explicit connection(typename Protocol::socket s) : socket(std::move(s)) {}

    void end() {
        delete this;
        if (--bench_connections == 0)
            context->stop();
    }

    void read() {
        socket.async_read_some(asio::buffer(buffer.get(), size), [this](error_code error, size_t got) {
            if (error)
                return end();
            asio::async_write(socket, asio::buffer(buffer.get(), got), [this](error_code failed, size_t sent) {
                bench_echoed += sent;
                if (failed)
                    return end();
                read();
            });
        });
    }
};

template <class Protocol> static void accept(typename Protocol::acceptor &from) {
    from.async_accept([&from](error_code error, typename Protocol::socket socket) {
        if (error == asio::error::operation_aborted)
            return;
        BENCH_CHECK(!error);
        bench_connections++;
        (new connection<Protocol>(std::move(socket)))->read();
        accept<Protocol>(from);
    });
}

static std::optional<asio::ip::tcp::acceptor> tcp;
static std::optional<asio::local::stream_protocol::acceptor> local;

static int family_of(int fd) {
    sockaddr_storage name;
    socklen_t length = sizeof name;
    bench_call(getsockname(fd, reinterpret_cast<sockaddr *>(&name), &length), "getsockname");
    return name.ss_family;
}

static void start(int fd, size_t message) {
    open_loop(ASIO_CONCURRENCY_HINT_UNSAFE);
    size = bench_buffer_size(message);
    if (family_of(fd) == AF_INET) {
        tcp.emplace(*context, asio::ip::tcp::v4(), fd);
        accept<asio::ip::tcp>(*tcp);
    } else {
        local.emplace(*context, asio::local::stream_protocol(), fd);
        accept<asio::local::stream_protocol>(*local);
    }
}

static void server_turn() {
    context->restart(); /* the last connection stops it */
    turn();
}

static void run() {
    context->run();
}

static std::optional<asio::ip::udp::socket> datagrams;

static void stop() {
    tcp.reset();
    local.reset();
    datagrams.reset();
    context.reset();
}

static asio::ip::udp::endpoint from;
static std::vector<char> room;

/* The answer is tried at once, as a datagram's usually can be. */
static void receive() {
    datagrams->async_receive_from(asio::buffer(room), from, [](error_code error, size_t got) {
        if (error == asio::error::operation_aborted)
            return;
        BENCH_CHECK(!error);
        bench_echoed += datagrams->send_to(asio::buffer(room.data(), got), from);
        receive();
    });
}

static void datagram_start(int fd, size_t message) {
    open_loop(ASIO_CONCURRENCY_HINT_UNSAFE);
    room.resize(bench_buffer_size(message));
    datagrams.emplace(*context, asio::ip::udp::v4(), fd);
    receive();
}

static const bench_server stream = {start, server_turn, run, stop}, datagram = {datagram_start, server_turn, nullptr, stop};

/* ---- connect, accept, close ---- */

static sockaddr_in to;

static void start_connects() {
    while (bench_connect_more()) {
        auto *one = new asio::ip::tcp::socket(*context, asio::ip::tcp::v4(), bench_socket());
        one->async_connect(asio::ip::tcp::endpoint(asio::ip::address_v4::loopback(), ntohs(to.sin_port)), [one](error_code error) {
            BENCH_CHECK(!error);
            delete one; /* which closes it */
            bench_connects.connecting--;
            start_connects();
        });
    }
}

static void accept_and_close() {
    tcp->async_accept([](error_code error, asio::ip::tcp::socket socket) {
        if (error == asio::error::operation_aborted)
            return;
        BENCH_CHECK(!error);
        bench_connects.accepted++;
        socket.close(error);
        start_connects();
        accept_and_close();
    });
}

static void connect_open() {
    open_loop(ASIO_CONCURRENCY_HINT_UNSAFE);
    tcp.emplace(*context, asio::ip::tcp::v4(), bench_listener(&to));
    accept_and_close();
}

static void connect_run() {
    start_connects();
    while (bench_connects_left())
        turn();
}

/* ---- read: with the ring only ---- */

#ifdef ASIO_HAS_FILE
static bench_file file;
static std::optional<asio::random_access_file> disk;
struct slot {
    char *data;
    uint64_t block;
};
static std::vector<slot> slots;
static unsigned depth, left;

static void start_read(slot &one) {
    one.block = bench_next_block(file.blocks);
    disk->async_read_some_at(one.block * BENCH_BLOCK, asio::buffer(one.data, BENCH_BLOCK), [&one](error_code error, size_t got) {
        BENCH_CHECK(!error);
        bench_check_block(one.data, static_cast<int64_t>(got), one.block);
        if (bench_more(1))
            start_read(one);
        else
            left--;
    });
}

static void read_open() {
    depth = static_cast<unsigned>(bench_number("depth", 64));
    file = bench_open_blocks();
    slots.resize(depth);
    char *data = static_cast<char *>(bench_memory(depth * BENCH_BLOCK));
    for (unsigned i = 0; i < depth; i++)
        slots[i].data = data + i * BENCH_BLOCK;
    open_loop(ASIO_CONCURRENCY_HINT_UNSAFE);
    disk.emplace(*context, file.fd);
}

static void read_run() {
    for (left = 0; left < depth && bench_more(1); left++)
        start_read(slots[left]);
    while (left > 0)
        turn();
    context->restart(); /* it stops when it has nothing to do */
}

static void read_close() {
    disk.reset();
    stop();
}
#endif

static const bench_run runs[] = {{"connect", connect_open, connect_run, stop, 64},
#ifdef ASIO_HAS_FILE
                                 {"read", read_open, read_run, read_close, 128},
#endif
                                 {nullptr, nullptr, nullptr, nullptr, 0}};

/* ---- Timers ---- */

static std::vector<asio::steady_timer> timers;
static uint64_t ended;

static void timers_open(size_t n) {
    open_loop(ASIO_CONCURRENCY_HINT_UNSAFE);
    timers.reserve(n);
    for (size_t i = 0; i < n; i++)
        timers.emplace_back(*context);
}

static void arm(size_t n, const uint32_t *delays) {
    for (size_t i = 0; i < n; i++) {
        timers[i].expires_after(std::chrono::milliseconds(delays[i]));
        timers[i].async_wait([](error_code) { ended++; });
    }
}

static void wait_for(uint64_t goal) {
    context->restart();
    while (ended < goal)
        turn();
}

static void cancel(size_t n) {
    uint64_t goal = ended + n;
    for (size_t i = 0; i < n; i++)
        timers[i].cancel();
    wait_for(goal);
}

static void fire(size_t n) {
    wait_for(ended + n);
}

static void timers_close() {
    timers.clear();
    stop();
}

static const bench_timers timer_table = {timers_open, arm, cancel, fire, timers_close};

/* ---- Posts ---- */

static std::optional<asio::executor_work_guard<asio::io_context::executor_type>> guard;

static void posts_open() {
    open_loop(1); /* one thread runs it, others post */
    guard.emplace(context->get_executor());
}

static void post(unsigned) {
    asio::post(*context, [] { bench_posted++; });
}

static void drain(uint64_t count) {
    while (bench_posted < count)
        turn();
}

static void posts_close() {
    guard.reset();
    stop();
}

static const bench_posts posts = {posts_open, nullptr, post, drain, posts_close};

static void *new_loop() {
    auto *one = new asio::io_context(ASIO_CONCURRENCY_HINT_UNSAFE);
    asio::steady_timer timer(*one, std::chrono::nanoseconds(1)); /* the reactor is made when it is first needed */
    timer.async_wait([](error_code) {});
    one->run();
    return one;
}

const struct bench_contestant bench_contestant = {
#ifdef ASIO_HAS_IO_URING
    "asio-io_uring",
#else
    "asio-epoll",
#endif
    STRING(ASIO_VERSION), runs, &stream, &datagram, &timer_table, &posts, new_loop};
