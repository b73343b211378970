/* What other threads may do: request a stop, post, stop the loop, give buffers back; and a loop per thread. */
#include "check.hpp"

namespace {

/* Requests a stop from another thread after a while that differs from round to round. */
class late_stop {
public:
    explicit late_stop(int round) {
        thread_ = std::thread([this, round] {
            for (std::atomic<int> i = 0; i < round * 30; ++i) {
            }
            source_.request_stop();
        });
    }
    ~late_stop() { thread_.join(); }
    std::stop_token token() const { return source_.get_token(); }

private:
    std::stop_source source_;
    std::thread thread_;
};

} // namespace

TEST(a_stop_from_another_thread_meets_every_moment) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    std::size_t stopped = 0, done = 0, kept = 0;
    for (int round = 0; round < 300; ++round) {
        late_stop stop(round);
        std::array<char, 8> text;
        CHECK(::write(out, "x", 1) == 1);
        ++kept;
        auto read = loop.run(upcall::with_stop_token(stop.token(), [](upcall::loop &l, int fd, std::array<char, 8> &to)
                                                                       -> task<std::size_t> {
            co_await l.nop();
            co_return co_await l.read(fd, std::span(to).first(1));
        }(loop, in, text)).result());
        if (read) {
            CHECK(*read == 1);
            --kept;
            ++done;
        } else {
            CHECK(read.cancelled());
            ++stopped;
        }
    }
    CHECK(stopped + done == 300);
    // Completed or cancelled, never both: what was not read is still there.
    std::string rest(kept + 1, '.');
    out.reset();
    CHECK(loop.run(loop.read(in, rest).full()) == kept);
}

TEST(groups_generators_and_scopes_are_stopped_from_another_thread) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 16);
    auto [a, b] = socket_pair(SOCK_DGRAM);
    auto pieces = loop.recv(a, pool).multishot();
    std::size_t sent = 0, received = 0;
    for (int round = 0; round < 200; ++round) {
        late_stop stop(round);
        if (round % 3 == 0) {
            CHECK(::send(b, "d", 1, 0) == 1);
            ++sent;
        }
        auto got = loop.run(upcall::with_stop_token(stop.token(), pieces.next()).result());
        received += got && *got;
        CHECK(got || got.cancelled());
        auto both = loop.run(upcall::with_stop_token(stop.token(), upcall::when_all(loop.sleep(1h), pieces.next())).result());
        CHECK(both.cancelled());
        auto in_scope = loop.run(upcall::with_stop_token(stop.token(), [](upcall::loop &l) -> task<> {
            upcall::scope scope(l);
            for (int i = 0; i < 3; ++i)
                scope.spawn(l.sleep(1h));
            co_await scope.join();
        }(loop)).result());
        CHECK(in_scope);
        // The loop goes while a stop is under way.
        if (round % 10 == 0) {
            upcall::loop other;
            late_stop second(round);
            CHECK(other.run(upcall::with_stop_token(second.token(), other.sleep(1h)).result()).cancelled());
        }
    }
    while (received < sent)
        received += loop.run(pieces.next()).has_value();
    CHECK(received == sent);
}

TEST(posts_from_many_threads_run_once_and_in_order) {
    upcall::loop loop;
    constexpr int threads = 4, each = 500;
    std::array<int, threads> next{};
    auto keep = std::make_unique<upcall::hold>(loop.hold());
    std::vector<std::thread> senders;
    int ended = 0;
    for (int t = 0; t < threads; ++t)
        senders.emplace_back([&, t] {
            for (int i = 0; i < each; ++i)
                loop.post([&next, t, i, text = std::string(50, 'x')] {
                    CHECK(next[static_cast<std::size_t>(t)]++ == i && text.size() == 50);
                });
            loop.post([&] {
                if (++ended == threads)
                    keep.reset();
            });
        });
    CHECK(!loop.run());
    for (std::thread &t : senders)
        t.join();
    for (int count : next)
        CHECK(count == each);
}

TEST(stop_from_another_thread) {
    upcall::loop loop;
    for (int round = 0; round < 100; ++round) {
        auto keep = loop.hold();
        // Busy or idle.
        auto ticks = loop.sleep(round % 2 == 0 ? 1us : 1h).multishot();
        std::thread stopper([&] { loop.stop(); });
        CHECK(loop.run());
        stopper.join();
    }
}

TEST(buffers_come_back_from_another_thread) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 16);
    auto [a, b] = socket_pair(SOCK_DGRAM);
    std::vector<std::thread> workers;
    auto pieces = loop.recv(a, pool).multishot();
    for (int i = 0; i < 100; ++i) {
        CHECK(::send(b, &i, sizeof i, 0) == sizeof i);
        auto buffer = loop.run(pieces.next());
        CHECK(buffer && buffer->size() == sizeof i);
        std::thread([held = std::move(*buffer), i] { CHECK(std::memcmp(held.data(), &i, sizeof i) == 0); }).join();
    }
}

TEST(work_on_the_pool_sees_and_is_seen) {
    upcall::loop loop;
    loop.run([](upcall::loop &l) -> task<> {
        std::vector<int> shared;
        for (int i = 0; i < 100; ++i) {
            shared.push_back(i);
            co_await l.work([&shared] { shared.back() *= 2; });
            CHECK(shared.back() == 2 * i);
        }
        std::vector<decltype(l.work(std::function<int()>()))> many;
        for (int i = 0; i < 50; ++i)
            many.push_back(l.work(std::function<int()>([i] { return i; })));
        auto values = co_await upcall::when_all(std::move(many));
        CHECK(values[49] == 49);
    }(loop));
}

TEST(a_loop_per_thread) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([] {
            upcall::loop loop;
            auto [a, b] = socket_pair();
            int echoed = 0;
            loop.spawn([](upcall::loop &l, int fd) -> task<> {
                std::array<char, 16> text;
                while (std::size_t size = co_await l.recv(fd, text))
                    co_await l.send(fd, std::span(text).first(size)).full();
            }(loop, a));
            loop.run([](upcall::loop &l, upcall::descriptor &fd, int &count) -> task<> {
                std::array<char, 16> text;
                for (int i = 0; i < 200; ++i) {
                    co_await l.send(fd, "ping"sv);
                    count += co_await l.recv(fd, std::span(text).first(4)).full() == 4;
                }
                co_await l.close(std::move(fd));
            }(loop, b, echoed));
            CHECK(echoed == 200);
            CHECK(!loop.run());
        });
    for (std::thread &t : threads)
        t.join();
}
