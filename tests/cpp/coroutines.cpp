/* Tasks, results, deadlines, cancellation, groups, chains, generators, scopes and callables. */
#include "check.hpp"

#include <csignal>

namespace {

task<std::string> read_some(upcall::loop &loop, int fd) {
    std::array<char, 64> text;
    const std::size_t size = co_await loop.read(fd, text);
    co_return std::string(text.data(), size);
}

task<int> add(upcall::loop &loop, int a, int b) {
    co_await loop.nop();
    co_return a + b;
}

task<> fail_after(upcall::loop &loop, std::chrono::nanoseconds time, const char *why) {
    co_await loop.sleep(time);
    throw std::runtime_error(why);
}

/* Sets `error` to the errno with which a read that gets nothing ends. */
task<> read_nothing(upcall::loop &loop, int fd, int &error) {
    try {
        (void)co_await read_some(loop, fd);
        error = 0;
    } catch (const std::system_error &e) {
        error = e.code().value();
    }
}

struct counted { // how many there are
    static inline int alive = 0;
    counted() { ++alive; }
    ~counted() { --alive; }
};

} // namespace

// ---- tasks and results ----

TEST(tasks_give_values_and_throw) {
    upcall::loop loop;
    CHECK(loop.run(add(loop, 2, 3)) == 5);
    CHECK(loop.run([](upcall::loop &l) -> task<std::unique_ptr<int>> {
        auto sum = co_await add(l, co_await add(l, 1, 2), 3);
        co_return std::make_unique<int>(sum);
    }(loop)).operator*() == 6);
    bool is_thrown = false;
    try {
        loop.run(fail_after(loop, 0ns, "out of it"));
    } catch (const std::runtime_error &error) {
        is_thrown = error.what() == "out of it"s;
    }
    CHECK(is_thrown);
    loop.run(loop.nop()); // goes on, and runs an operation as well
    CHECK(loop.run(loop.nop().result()).has_value());
}

TEST(a_task_that_is_never_started_does_nothing) {
    upcall::loop loop;
    {
        auto unused = add(loop, 1, 1);
        auto operation = loop.sleep(1h);
        auto moved = std::move(operation);
        auto group = upcall::when_all(add(loop, 1, 1), loop.nop());
        auto moved_group = std::move(group);
    }
    CHECK(loop.stats().submitted == 0);
    CHECK(!loop.run());
}

TEST(results_tell_value_error_bytes_and_whose_deadline) {
    upcall::loop loop;
    loop.run([](upcall::loop &l) -> task<> {
        auto [in, out] = pipe_pair();
        co_await l.write(out, "abc"sv);
        std::array<char, 10> text;
        auto part = co_await l.read(in, text).full().timeout(5ms).result();
        CHECK(!part && part.timed_out() && !part.cancelled() && part.transferred() == 3);
        CHECK(part.error() == std::errc::timed_out);
        CHECK_THROWS(ETIMEDOUT, part.value());
        CHECK(std::move(part).value_or(99u) == 99);
        co_await l.write(out, "abc"sv);
        auto whole = co_await l.read(in, text).result();
        CHECK(whole && *whole == 3 && whole.value() == 3 && whole.transferred() == 3 && !whole.error());
        auto none = co_await l.nop().result();
        none.value();
        auto of_task = co_await upcall::as_result(read_some(l, -1));
        CHECK(!of_task && of_task.error() == std::errc::bad_file_descriptor);
        auto other = co_await fail_after(l, 0ns, "no error code").result();
        bool is_same = false;
        try {
            other.value();
        } catch (const std::runtime_error &error) {
            is_same = error.what() == "no error code"s;
        }
        CHECK(is_same);
        auto fd = co_await l.open(AT_FDCWD, "/dev/null", O_RDONLY).result();
        CHECK(fd->get() >= 0);
        upcall::descriptor taken = std::move(fd).value();
        CHECK(taken.get() >= 0 && fd->get() == -1);
    }(loop));
}

TEST(deep_and_long_chains_of_tasks) {
    upcall::loop loop;
    struct recursion {
        static task<int> down(upcall::loop &l, int n) {
            if (n == 0) {
                co_await l.nop();
                co_return 0;
            }
            co_return 1 + co_await down(l, n - 1);
        }
    };
    CHECK(loop.run(recursion::down(loop, 500)) == 500);
    // Those that end at once must not pile up on the stack.
    const int sum = loop.run([]() -> task<int> {
        int total = 0;
        for (int i = 0; i < 200000; ++i)
            total += co_await []() -> task<int> { co_return 1; }();
        co_return total;
    }());
    CHECK(sum == 200000);
}

// ---- cancellation ----

TEST(a_stop_token_ends_the_operation_in_flight) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    std::stop_source source;
    int error = -1;
    loop.spawn(upcall::with_stop_token(source.get_token(), read_nothing(loop, in, error)));
    loop.poll(0ns);
    CHECK(error == -1 && loop.stats().in_flight == 1);
    source.request_stop();
    CHECK(error == -1); // it goes on after the final event, not inside the request
    CHECK(!loop.run());
    CHECK(error == ECANCELED && loop.stats().in_flight == 0);
    // Nothing was consumed.
    CHECK(::write(out, "x", 1) == 1);
    CHECK(loop.run(read_some(loop, in)) == "x");
}

TEST(a_stop_request_from_before_starts_nothing) {
    upcall::loop loop;
    std::stop_source source;
    source.request_stop();
    auto [in, out] = pipe_pair();
    CHECK(::write(out, "x", 1) == 1);
    CHECK_THROWS(ECANCELED, loop.run(upcall::with_stop_token(source.get_token(), read_some(loop, in))));
    CHECK(loop.stats().submitted == 0);
    loop.run(upcall::with_stop_token(source.get_token(), [](upcall::loop &l, int fd) -> task<> {
        CHECK((co_await upcall::current_stop_token()).stop_requested());
        std::array<char, 2> text;
        CHECK((co_await l.read(fd, text).result()).cancelled());
        CHECK(co_await l.read(fd, text).unstoppable() == 1); // what has to be done is done
        auto file = co_await l.open(AT_FDCWD, "/dev/null", O_RDONLY).unstoppable();
        const int number = file.get();
        co_await l.close(std::move(file)); // always
        CHECK(fcntl(number, F_GETFD) < 0);
    }(loop, in)));
}

TEST(the_stop_of_a_run) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    int error = -1;
    std::signal(SIGALRM, [](int) {});
    static upcall::loop *volatile to_stop = &loop;
    std::signal(SIGUSR1, [](int) { to_stop->stop(); });
    loop.spawn(loop.sleep(1ms));
    loop.spawn([](upcall::loop &l) -> task<> {
        co_await l.sleep(2ms);
        kill(getpid(), SIGUSR1);
    }(loop));
    loop.run(read_nothing(loop, in, error));
    CHECK(error == ECANCELED);
    // The stop is used up; what else runs, runs.
    CHECK(!loop.run());
    loop.stop();
    loop.spawn(read_nothing(loop, in, error = -1));
    CHECK(loop.run());
    CHECK(error == -1);
    loop.spawn([](upcall::loop &l) -> task<> {
        co_await l.sleep(1ms);
        upcall_stop(l.native());
    }(loop));
    CHECK(loop.run()); // the C function stops it as well
    loop.tasks().request_stop();
    CHECK(!loop.run());
    CHECK(error == ECANCELED);
}

// ---- groups ----

TEST(when_all_gives_all_values) {
    upcall::loop loop;
    auto [a, nothing, b] = loop.run(upcall::when_all(add(loop, 1, 2), loop.nop(), add(loop, 3, 4)));
    CHECK(a == 3 && b == 7);
    static_assert(std::is_same_v<decltype(nothing), std::monostate>);
    std::vector<task<int>> many;
    for (int i = 0; i < 100; ++i)
        many.push_back(add(loop, i, 1));
    auto values = loop.run(upcall::when_all(std::move(many)));
    CHECK(values.size() == 100 && values[99] == 100);
    CHECK(loop.run(upcall::when_all(std::vector<task<>>())).empty());
    auto [first, nested] = loop.run(upcall::when_all(loop.nop(), upcall::when_all(add(loop, 1, 1), add(loop, 2, 2))));
    CHECK(std::get<1>(nested) == 4);
    (void)first;
}

TEST(when_all_stops_the_others_when_one_throws) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    int error = -1;
    bool is_thrown = false;
    try {
        loop.run(upcall::when_all(read_nothing(loop, in, error), fail_after(loop, 1ms, "first"), loop.sleep(1h)));
    } catch (const std::runtime_error &e) {
        is_thrown = e.what() == "first"s;
    }
    CHECK(is_thrown && error == ECANCELED && loop.stats().in_flight == 0);
    CHECK_THROWS(EBADF, loop.run(upcall::when_all(loop.nop(), loop.fsync(-1), loop.sleep(1h))));
    // With results nobody throws, and nobody is stopped.
    auto [bad, good] = loop.run(upcall::when_all(loop.fsync(-1).result(), loop.sleep(1ms).result()));
    CHECK(!bad && good);
    std::vector<upcall::operation<upcall::detail::number<void>>> ops;
    ops.push_back(loop.fsync(-1));
    ops.push_back(loop.sleep_until(std::chrono::steady_clock::now() + 1h));
    CHECK_THROWS(EBADF, loop.run(upcall::when_all(std::move(ops))));
}

TEST(when_any_stops_the_losers_and_loses_nothing) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    std::array<char, 10> text;
    auto slow = loop.run(upcall::when_any(loop.read(in, text), loop.sleep(1ms)));
    CHECK(slow.index == 1 && std::get<0>(slow.results).cancelled() && std::get<1>(slow.results));
    // Both are there: the value of the one that came second is told, too.
    CHECK(::write(out, "abc", 3) == 3);
    auto [in2, out2] = pipe_pair();
    CHECK(::write(out2, "de", 2) == 2);
    std::array<char, 10> other;
    auto both = loop.run(upcall::when_any(loop.read(in, text), loop.read(in2, other)));
    std::size_t sum = 0;
    sum += std::move(std::get<0>(both.results)).value_or(0u);
    sum += std::move(std::get<1>(both.results)).value_or(0u);
    int left = 0, left2 = 0;
    std::array<char, 10> rest;
    if (fcntl(in, F_SETFL, O_NONBLOCK) == 0 && fcntl(in2, F_SETFL, O_NONBLOCK) == 0) {
        left = static_cast<int>(std::max<ssize_t>(::read(in, rest.data(), rest.size()), 0));
        left2 = static_cast<int>(std::max<ssize_t>(::read(in2, rest.data(), rest.size()), 0));
    }
    CHECK(sum + static_cast<std::size_t>(left + left2) == 5);

    std::vector<task<int>> many;
    many.push_back([](upcall::loop &l) -> task<int> {
        co_await l.sleep(1h);
        co_return 1;
    }(loop));
    many.push_back(add(loop, 1, 1));
    auto any = loop.run(upcall::when_any(std::move(many)));
    CHECK(any.index == 1 && any.results[1].value() == 2 && any.results[0].cancelled());
    bool is_thrown = false;
    try {
        (void)upcall::when_any(std::vector<task<>>());
    } catch (const std::invalid_argument &) {
        is_thrown = true;
    }
    CHECK(is_thrown);
}

TEST(race_gives_the_winner) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    std::array<char, 10> text;
    auto timer = loop.run(upcall::race(loop.read(in, text), loop.sleep(1ms)));
    CHECK(timer.index() == 1);
    CHECK_THROWS(EBADF, loop.run(upcall::race(loop.sleep(1h), loop.fsync(-1))));
    // Descriptors of losers are closed.
    const std::size_t before = open_descriptors();
    for (int i = 0; i < 20; ++i)
        (void)loop.run(upcall::race(loop.open(AT_FDCWD, "/dev/null", O_RDONLY), loop.open(AT_FDCWD, "/dev/zero", O_RDONLY)));
    CHECK(open_descriptors() == before);
    // One that ends at once wins, and the rest is not started.
    auto ready = loop.run(upcall::race([]() -> task<int> { co_return 5; }(), loop.sleep(1h), add(loop, 1, 1)));
    CHECK(std::get<0>(ready) == 5);
}

TEST(a_stop_reaches_all_of_a_group) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    std::stop_source source;
    int first = -1, second = -1;
    loop.spawn([](upcall::loop &l, std::stop_source &s) -> task<> {
        co_await l.sleep(1ms);
        s.request_stop();
    }(loop, source));
    CHECK_THROWS(ECANCELED,
                 loop.run(upcall::with_stop_token(
                     source.get_token(), upcall::when_all(read_nothing(loop, in, first), loop.sleep(1h),
                                                          upcall::race(loop.sleep(1h), read_nothing(loop, in, second))))));
    CHECK(first == ECANCELED && second == ECANCELED && loop.stats().in_flight == 0);
}

// ---- chains ----

TEST(chains_run_in_order) {
    upcall::loop loop;
    folder dir;
    loop.run([](upcall::loop &l, folder &at) -> task<> {
        auto fd = co_await l.open(AT_FDCWD, at / "file", O_RDWR | O_CREAT, 0600);
        std::array<char, 5> text{};
        auto [written, _, read] =
            co_await upcall::chain(l.pwrite(fd, "hello"sv, 0), l.fdatasync(fd), l.pread(fd, text, 0));
        CHECK(written == 5 && read == 5 && text[4] == 'o');
        // The one that failed is told, not those behind it.
        auto failed = co_await upcall::chain(l.nop(), l.pread(-1, text, 0), l.nop()).result();
        CHECK(failed.error() == std::errc::bad_file_descriptor);
        auto [short_read, severed] =
            co_await upcall::batch(l.pread(fd, text, 2).link(), l.pwrite(fd, "x"sv, 0));
        CHECK(*short_read == 3 && severed.cancelled());
        auto [bad, always, drained] = co_await upcall::batch(l.fsync(-1).link_always(), l.nop(), l.nop().drain());
        CHECK(bad.error() == std::errc::bad_file_descriptor && always && drained);
        // A refused one: none is started.
        auto [x, y] = co_await upcall::batch(l.nop(), l.sleep(1ms).full());
        CHECK(x.error() == std::errc::invalid_argument && y.error() == std::errc::invalid_argument);
    }(loop, dir));
}

TEST(a_chain_is_stopped_as_a_whole) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    std::array<char, 5> text;
    auto timed = loop.run(upcall::when_any(upcall::chain(loop.read(in, text), loop.nop()), loop.sleep(1ms)));
    CHECK(timed.index == 1 && std::get<0>(timed.results).error() == std::errc::operation_canceled);
}

// ---- generators ----

TEST(accepted_connections_one_by_one) {
    upcall::loop loop;
    const listener l = listen_somewhere();
    const std::size_t before = open_descriptors();
    loop.run([](upcall::loop &lp, const listener &at) -> task<> {
        auto connections = lp.accept(at.fd).multishot();
        std::vector<upcall::descriptor> clients;
        for (int i = 0; i < 10; ++i)
            clients.push_back(connect_to(at));
        for (int i = 0; i < 7; ++i) {
            auto connection = co_await connections.next();
            CHECK(connection && connection->get() >= 0);
        }
        co_await connections.close();
        for (int i = 0; i < 3; ++i) // those that came before the end can still be taken
            if (!co_await connections.next())
                break;
        CHECK(!co_await connections.next());
        CHECK(!co_await connections.next());
    }(loop, l));
    // Some that nobody takes.
    loop.run([](upcall::loop &lp, const listener &at) -> task<> {
        auto connections = lp.accept(at.fd).multishot();
        std::vector<upcall::descriptor> clients;
        for (int i = 0; i < 5; ++i)
            clients.push_back(connect_to(at));
        (void)co_await connections.next();
        co_await lp.sleep(2ms);
    }(loop, l));
    CHECK(open_descriptors() == before);
}

TEST(a_shortage_of_descriptors_is_thrown_and_accepting_goes_on) {
    upcall::loop loop;
    const listener l = listen_somewhere();
    loop.run([](upcall::loop &lp, const listener &at) -> task<> {
        auto connections = lp.accept(at.fd).multishot();
        co_await lp.sleep(1ms);
        auto client = connect_to(at);
        rlimit old;
        CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
        auto first = co_await connections.next();
        CHECK(first.has_value());
        auto second = connect_to(at);
        // The number the next one would have is the limit.
        first.reset();
        rlimit few{static_cast<rlim_t>(open("/dev/null", O_RDONLY | O_CLOEXEC)), old.rlim_max};
        ::close(static_cast<int>(few.rlim_cur));
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        auto shortage = co_await connections.next().result();
        CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
        if (!shortage) { // unless it was accepted before the limit was set
            CHECK(shortage.error().value() == EMFILE);
            CHECK((co_await connections.next()).has_value());
        }
    }(loop, l));
}

TEST(received_pieces_in_lent_buffers) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 8);
    loop.run([](upcall::loop &l, upcall::buffers &from) -> task<> {
        auto [a, b] = socket_pair();
        auto pieces = l.recv(b, from).lend_max(2).multishot();
        std::string all;
        const std::string sent(100, 'x');
        co_await l.send(a, sent).full();
        a.reset();
        while (auto piece = co_await pieces.next()) {
            CHECK(piece->size() <= 8 && !piece->empty());
            all += piece->text();
        }
        CHECK(all == sent);
    }(loop, pool));
    // All buffers are back.
    upcall_buffers *native = pool.native();
    CHECK(native);
    loop.run([](upcall::loop &l, upcall::buffers &from) -> task<> {
        auto [a, b] = socket_pair();
        co_await l.send(a, std::string(32, 'y'));
        std::vector<upcall::lent_buffer> held;
        for (int i = 0; i < 4; ++i)
            held.push_back(co_await l.recv(b, from));
        CHECK(held[3].size() == 8);
    }(loop, pool));
}

TEST(received_messages) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 256);
    loop.run([](upcall::loop &l, upcall::buffers &from) -> task<> {
        auto [a, b] = socket_pair(SOCK_DGRAM);
        auto messages = l.recvmsg(b, from, sizeof(sockaddr_storage)).multishot();
        co_await l.send(a, "one"sv);
        co_await l.send(a, std::string_view());
        co_await l.send(a, "three"sv);
        CHECK((co_await messages.next())->text() == "one");
        auto empty = co_await messages.next(); // an empty message is one
        CHECK(empty && *empty && empty->payload().empty());
        CHECK((co_await messages.next())->text() == "three");
    }(loop, pool));
}

TEST(ticks_readiness_signals_and_directories) {
    upcall::loop loop;
    loop.run([](upcall::loop &l) -> task<> {
        auto ticks = l.sleep(1ms).multishot();
        std::uint64_t periods = 0;
        while (periods < 3)
            periods += (co_await ticks.next()).value();
        co_await l.sleep(5ms);
        CHECK((co_await ticks.next()).value() >= 2); // those that nobody awaited came together

        auto [in, out] = pipe_pair();
        auto ready = l.poll(in, POLLIN).multishot();
        co_await l.write(out, "x"sv);
        CHECK(((co_await ready.next()).value() & POLLIN) != 0);

        auto watcher = l.signal(SIGUSR1).background().multishot();
        kill(getpid(), SIGUSR1);
        CHECK(co_await watcher.next() == SIGUSR1);

        folder dir;
        for (int i = 0; i < 50; ++i) {
            const std::string name = "file" + std::to_string(i);
            (void)co_await l.open(AT_FDCWD, dir / name.c_str(), O_CREAT | O_WRONLY, 0600);
        }
        upcall::buffers pool(l, 4, 512);
        auto list = co_await l.open(AT_FDCWD, dir.path(), O_RDONLY | O_DIRECTORY);
        auto parts = l.readdir(list, pool).multishot();
        int files = 0;
        while (auto part = co_await parts.next())
            for (const upcall_dirent &entry : part->entries())
                files += std::strncmp(upcall_dirent_name(&entry), "file", 4) == 0;
        CHECK(files == 50);
    }(loop));
}

TEST(an_idle_generator_times_out) {
    upcall::loop loop;
    upcall::buffers pool(loop, 2, 64);
    loop.run([](upcall::loop &l, upcall::buffers &from) -> task<> {
        auto [a, b] = socket_pair();
        auto pieces = l.recv(b, from).timeout(2ms).multishot();
        co_await l.send(a, "x"sv);
        CHECK((co_await pieces.next())->text() == "x");
        auto late = co_await pieces.next().result();
        CHECK(!late && late.timed_out() && late.error() == std::errc::timed_out);
        CHECK(!co_await pieces.next());
    }(loop, pool));
}

TEST(a_lost_race_takes_nothing_from_a_generator) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 64);
    loop.run([](upcall::loop &l, upcall::buffers &from) -> task<> {
        auto [a, b] = socket_pair(SOCK_DGRAM);
        auto pieces = l.recv(b, from).multishot();
        for (int i = 0; i < 3; ++i)
            CHECK((co_await upcall::race(pieces.next(), l.sleep(1ms))).index() == 1);
        int seen = 0, sent = 0;
        while (seen < 50) { // every datagram comes, whoever wins
            if (sent - seen < 4) {
                co_await l.send(a, std::to_string(sent));
                ++sent;
            }
            auto [index, results] = co_await upcall::when_any(l.nop(), pieces.next());
            if (auto &got = std::get<1>(results); got) {
                CHECK((*got)->text() == std::to_string(seen));
                ++seen;
            }
            (void)index;
        }
    }(loop, pool));
}

TEST(a_stop_ends_the_waiting_for_a_generator_not_the_generator) {
    upcall::loop loop;
    upcall::buffers pool(loop, 4, 64);
    loop.run([](upcall::loop &l, upcall::buffers &from) -> task<> {
        auto [a, b] = socket_pair();
        auto pieces = l.recv(b, from).multishot();
        std::stop_source source;
        auto stop_soon = [](upcall::loop &lp, std::stop_source &s) -> task<> {
            co_await lp.sleep(1ms);
            s.request_stop();
        }(l, source);
        l.spawn(std::move(stop_soon));
        auto stopped = co_await upcall::with_stop_token(source.get_token(), pieces.next()).result();
        CHECK(stopped.cancelled());
        CHECK((co_await upcall::with_stop_token(source.get_token(), pieces.next()).result()).cancelled());
        co_await l.send(a, "still there"sv);
        CHECK((co_await pieces.next())->text() == "still there");
    }(loop, pool));
}

TEST(a_generator_that_cannot_begin_throws) {
    upcall::loop loop;
    CHECK_THROWS(EINVAL, [&] { auto never = loop.sleep(0ns).multishot(); }());
    CHECK_THROWS(EINVAL, [&] { auto never = loop.signal(SIGKILL).multishot(); }());
}

// ---- scopes, run and poll ----

TEST(a_scope_is_joined_and_stopped) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    int error = -1;
    loop.run([](upcall::loop &l, int fd, int &e) -> task<> {
        upcall::scope scope(l);
        co_await scope.join(); // empty
        int done = 0;
        for (int i = 0; i < 10; ++i)
            scope.spawn([](upcall::loop &lp, int &count) -> task<> {
                co_await lp.sleep(1ms);
                ++count;
            }(l, done));
        CHECK(scope.size() == 10 && done == 0);
        co_await scope.join();
        CHECK(done == 10 && scope.size() == 0);
        scope.spawn(read_nothing(l, fd, e));
        scope.spawn(l.sleep(1h));
        co_await l.sleep(1ms);
        scope.request_stop();
        co_await scope.join();
        CHECK(e == ECANCELED);
    }(loop, in, error));
    // Its destructor ends what is left; nobody is resumed for that.
    error = -1;
    {
        upcall::scope scope(loop);
        scope.spawn(read_nothing(loop, in, error));
        scope.spawn(loop.sleep(1h));
        scope.spawn([]() -> task<> { co_return; }());
        loop.poll(0ns);
        CHECK(scope.size() == 2);
    }
    CHECK(error == -1 && loop.stats().in_flight == 0);
}

TEST(a_stop_is_passed_on_by_join) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    int error = -1;
    auto any = loop.run(upcall::when_any([](upcall::loop &l, int fd, int &e) -> task<> {
        upcall::scope scope(l);
        scope.spawn(read_nothing(l, fd, e));
        co_await scope.join();
    }(loop, in, error), loop.sleep(2ms)));
    CHECK(any.index == 1 && error == ECANCELED);
}

TEST(exceptions_of_spawned_tasks_come_out_of_run_one_by_one) {
    upcall::loop loop;
    loop.spawn(fail_after(loop, 0ns, "a"));
    loop.spawn(fail_after(loop, 0ns, "b"));
    int done = 0;
    loop.spawn([](upcall::loop &l, int &d) -> task<> {
        co_await l.sleep(1ms);
        d = 1;
    }(loop, done));
    std::string caught;
    for (int i = 0; i < 3; ++i) {
        try {
            loop.run();
            break;
        } catch (const std::runtime_error &error) {
            caught += error.what();
        }
    }
    CHECK((caught == "ab" || caught == "ba") && done == 1);
    loop.spawn(fail_after(loop, 0ns, "c"));
    caught.clear();
    for (int i = 0; i < 1000 && caught.empty(); ++i) {
        try {
            loop.poll(1ms);
        } catch (const std::runtime_error &error) {
            caught = error.what();
        }
    }
    CHECK(caught == "c");
}

TEST(run_and_poll_are_not_nested) {
    upcall::loop loop;
    loop.run([](upcall::loop &l) -> task<> {
        co_await l.nop();
        CHECK_THROWS(EDEADLK, l.run());
        CHECK_THROWS(EDEADLK, l.poll(0ns));
        CHECK_THROWS(EDEADLK, l.run(l.nop()));
    }(loop));
}

TEST(background_operations_do_not_keep_run) {
    upcall::loop loop;
    loop.spawn(loop.sleep(1h).background());
    CHECK(!loop.run());
    auto keep = std::make_unique<upcall::hold>(loop.hold());
    loop.spawn([](upcall::loop &l, std::unique_ptr<upcall::hold> &k) -> task<> {
        co_await l.sleep(1ms).background();
        k.reset();
    }(loop, keep));
    CHECK(!loop.run());
    CHECK(!keep);
}

TEST(another_event_loop_sees_what_there_is_to_do) {
    upcall::loop loop;
    pollfd outside{loop.fd(), POLLIN, 0};
    int done = 0;
    auto turn_until = [&](int wanted) {
        while (done < wanted) {
            CHECK(::poll(&outside, 1, 10000) == 1);
            loop.poll(0ns);
        }
    };
    loop.spawn([](upcall::loop &l, int &d) -> task<> { // begins although nothing was submitted
        d = 1;
        co_await l.sleep(1ms);
        d = 2;
        auto ticks = l.sleep(1ms).multishot();
        co_await ticks.next();
        d = 3;
    }(loop, done));
    turn_until(3);
    while (loop.stats().in_flight > 0)
        loop.poll(0ns);
    CHECK(::poll(&outside, 1, 0) == 0);
    // An exception leaves work behind; the descriptor says so.
    loop.spawn([]() -> task<> {
        throw std::runtime_error("x");
        co_return;
    }());
    loop.spawn([](int &d) -> task<> {
        d = 4;
        co_return;
    }(done));
    bool is_thrown = false;
    try {
        loop.poll(0ns);
    } catch (const std::runtime_error &) {
        is_thrown = true;
    }
    CHECK(is_thrown);
    turn_until(4);
}

// ---- callables ----

TEST(a_completion_is_called_with_every_event) {
    upcall::loop loop;
    int ticks = 0;
    std::int64_t last = 1;
    upcall::completion on_tick([&](const upcall_event &event) {
        ticks += event.result > 0;
        last = event.result;
    });
    loop.submit(loop.sleep(1ms).flags(UPCALL_MULTISHOT), on_tick);
    CHECK(on_tick.is_busy());
    CHECK_THROWS(EBUSY, loop.submit(loop.nop(), on_tick));
    while (ticks < 3)
        loop.poll();
    on_tick.cancel();
    CHECK(!loop.run());
    CHECK(last == -ECANCELED && !on_tick.is_busy());

    int left = 100;
    std::function<void(const upcall_event &)> forward;
    upcall::completion erased([&](const upcall_event &event) { forward(event); });
    forward = [&](const upcall_event &) {
        if (--left > 0)
            loop.submit(loop.nop(), erased);
    };
    loop.submit(loop.nop(), erased);
    loop.run();
    CHECK(left == 0);
    // A raw op of upcall.h; the callable destroys itself in its final event.
    auto own = std::make_unique<upcall::completion<std::function<void(const upcall_event &)>>>(
        [&](const upcall_event &) { left = -1; });
    auto deleting = std::make_unique<upcall::completion<std::function<void(const upcall_event &)>>>(
        [&](const upcall_event &) { own.reset(); });
    loop.submit(upcall_op_nop(), *deleting);
    loop.run();
    CHECK(!own);
    CHECK_THROWS(EINVAL, loop.submit(upcall_op(), *deleting));
    CHECK(!deleting->is_busy());
}

TEST(exceptions_of_callables_come_out_of_run) {
    upcall::loop loop;
    upcall::completion throws([](const upcall_event &) { throw std::runtime_error("callable"); });
    loop.submit(loop.nop(), throws);
    loop.post([] { throw std::runtime_error("post"); });
    std::string caught;
    for (int i = 0; i < 3; ++i) {
        try {
            loop.run();
            break;
        } catch (const std::runtime_error &error) {
            caught += error.what();
        }
    }
    CHECK(caught == "postcallable" || caught == "callablepost");
    // Nobody is left out of a turn because of it.
    upcall::completion other([&](const upcall_event &) { caught = "called"; });
    loop.submit(loop.nop(), throws);
    loop.submit(loop.nop(), other);
    bool is_thrown = false;
    try {
        loop.poll();
    } catch (const std::runtime_error &) {
        is_thrown = true;
    }
    CHECK(is_thrown && caught == "called");
}

TEST(records_can_be_reaped_beside) {
    upcall::loop loop;
    const upcall_op op = upcall_op_nop();
    CHECK(upcall_submit(loop.native(), &op, 1, nullptr) == 0);
    loop.spawn(loop.sleep(1ms));
    std::array<upcall_event, 4> room;
    std::span<upcall_event> events;
    while (events.empty()) {
        loop.poll(1ms);
        events = loop.reap(room);
    }
    CHECK(events.size() == 1 && events[0].kind == UPCALL_OP_NOP);
    loop.run();
}

TEST(frames_are_gone_when_the_work_is_done) {
    upcall::loop loop;
    for (int i = 0; i < 10; ++i)
        loop.spawn([](upcall::loop &l) -> task<> {
            counted c;
            co_await l.sleep(1ms);
        }(loop));
    loop.poll(0ns);
    CHECK(counted::alive == 10);
    loop.run();
    CHECK(counted::alive == 0);
}
