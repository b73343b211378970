/* Starting an operation allocates nothing: malloc and operator new are counted over many rounds. */
#include "check.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#error "sanitizers have a malloc of their own"
#endif

namespace {

std::atomic<bool> counting{false};
std::atomic<std::size_t> all{0};       // also the library's
std::atomic<std::size_t> by_header{0}; // operator new

void *counted(void *at, std::atomic<std::size_t> *by = nullptr) {
    if (counting.load(std::memory_order_relaxed)) {
        ++all;
        if (by)
            ++*by;
    }
    return at;
}

} // namespace

extern "C" {
void *__libc_malloc(std::size_t);
void *__libc_calloc(std::size_t, std::size_t);
void *__libc_realloc(void *, std::size_t);
void *malloc(std::size_t size) { return counted(__libc_malloc(size)); }
void *calloc(std::size_t n, std::size_t size) { return counted(__libc_calloc(n, size)); }
void *realloc(void *at, std::size_t size) { return counted(__libc_realloc(at, size)); }
}
void *operator new(std::size_t size) {
    if (void *at = counted(__libc_malloc(size), &by_header))
        return at;
    throw std::bad_alloc();
}
void operator delete(void *at) noexcept { std::free(at); }
void operator delete(void *at, std::size_t) noexcept { std::free(at); }

namespace {

struct allocations {
    std::size_t all, by_header;
};

constexpr std::size_t many = 300;

template <class Round> task<allocations> rounds(Round round) {
    for (std::size_t i = 0; i < many; ++i) // until tables and queues have their size
        (void)co_await round();
    all = by_header = 0;
    counting = true;
    for (std::size_t i = 0; i < many; ++i)
        (void)co_await round();
    counting = false;
    co_return allocations{all.load(), by_header.load()};
}

} // namespace

TEST(the_counter_counts) {
    counting = true;
    const auto one = std::make_unique<int>(1);
    std::free(std::malloc(1));
    counting = false;
    CHECK(all == 2 && by_header == 1 && *one == 1);
}

TEST(operations_allocate_nothing) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    auto [a, b] = socket_pair();
    std::array<char, 16> text;
    std::stop_source source;
    auto count = [&](auto round) {
        auto with_token = loop.run(upcall::with_stop_token(source.get_token(), rounds(round)));
        auto without = loop.run(rounds(round));
        return allocations{with_token.all + without.all, with_token.by_header + without.by_header};
    };
    CHECK(count([&] { return loop.nop().result(); }).all == 0);
    CHECK(count([&] { return loop.nop().timeout(1h).result(); }).all == 0);
    CHECK(count([&] { return loop.sleep(1us).result(); }).all == 0);
    CHECK(count([&] { return loop.read(in, text).timeout(1us).result(); }).all == 0);
    CHECK(count([&] { return upcall::when_all(loop.write(out, "x"sv), loop.read(in, text)); }).all == 0);
    CHECK(count([&] {
        return upcall::when_all(loop.send(a, "x"sv), loop.recv(b, std::span(text).first(1)).full());
    }).all == 0);
    CHECK(count([&] { return upcall::race(loop.recv(b, text), loop.sleep(1us)); }).all == 0);
    CHECK(count([&] { return upcall::when_any(loop.sleep(1h), loop.nop()); }).all == 0);
    CHECK(count([&] { return loop.poll(in, POLLIN).timeout(1us).result(); }).all == 0);
    // The library keeps a chain's order in a record of its own.
    CHECK(count([&] { return upcall::chain(loop.write(out, "x"sv), loop.read(in, text)); }).by_header == 0);
}

TEST(generators_and_callables_allocate_nothing_per_value) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 64);
    auto [a, b] = socket_pair();
    auto pieces = loop.recv(b, pool).multishot();
    auto received = loop.run(rounds([&] { return upcall::when_all(loop.send(a, "x"sv), pieces.next()); }));
    CHECK(received.by_header == 0);
    CHECK(received.all < many / 10); // the library's list of buffers that came back grows by blocks
    auto ticks = loop.sleep(1us).multishot();
    CHECK(loop.run(rounds([&] { return ticks.next().result(); })).all == 0);

    // A callable that submits itself again.
    static upcall::loop *again_loop;
    static int left;
    struct again {
        upcall::completion<again> **self;
        void operator()(const upcall_event &) const {
            if (--left == 500)
                counting = true;
            if (left > 0)
                again_loop->submit(again_loop->nop(), **self);
        }
    };
    upcall::completion<again> *self = nullptr;
    upcall::completion<again> repeat(again{&self});
    self = &repeat;
    again_loop = &loop;
    left = 1000;
    all = 0;
    loop.submit(loop.nop(), repeat);
    while (left > 0)
        loop.poll();
    counting = false;
    CHECK(all == 0);
}

TEST(a_task_is_one_allocation) {
    upcall::loop loop;
    auto one = [&]() -> task<int> {
        co_await loop.nop();
        co_return 1;
    };
    CHECK(loop.run(rounds(one)).all == many);
}
