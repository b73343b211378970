/* Whatever waits may be destroyed at any time: nothing is in flight afterwards, nothing is written to, nothing is leaked. */
#include "check.hpp"

#include <sys/mman.h>
#include <sys/un.h>

namespace {

/* Pages that the test watches: what an operation wrote, and what it must not write any more. */
class pages {
public:
    explicit pages(std::size_t size)
        : size_(size), at_(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
        CHECK(at_ != MAP_FAILED);
    }
    ~pages() { munmap(at_, size_); }
    upcall::bytes all() const { return {at_, size_}; }
    void fill(unsigned char with) { std::memset(at_, with, size_); }
    bool are(unsigned char with) const {
        const auto *at = static_cast<const unsigned char *>(at_);
        return at[0] == with && std::memcmp(at, at + 1, size_ - 1) == 0;
    }

private:
    std::size_t size_;
    void *at_;
};

/* What the tasks below wait for. Nothing of it comes by itself. */
struct stage {
    upcall::loop loop;
    upcall::buffers pool{loop, 8, 64};
    ends pipe = pipe_pair();
    ends sockets = socket_pair();
    listener listening = listen_somewhere();
    std::uint32_t word = 0;
    folder dir;

    stage() { CHECK(mkfifo((dir / "fifo").c_str(), 0600) == 0); }
};

using maker = task<> (*)(stage &);

task<> wait_in_group(stage &s) {
    std::array<char, 10> text;
    (void)co_await upcall::when_all(s.loop.read(s.pipe.a, text), s.loop.sleep(1h), s.loop.accept(s.listening.fd));
}

/* Every way to wait, each with its memory in the frame. */
const maker waiting[] = {
    [](stage &s) -> task<> {
        std::array<char, 100> text;
        co_await s.loop.read(s.pipe.a, text);
    },
    [](stage &s) -> task<> {
        std::vector<char> text(100000);
        co_await s.loop.recv(s.sockets.a, text).full().timeout(1h);
    },
    [](stage &s) -> task<> { (void)co_await s.loop.recv(s.sockets.a, s.pool); },
    [](stage &s) -> task<> { (void)co_await s.loop.accept(s.listening.fd); },
    [](stage &s) -> task<> {
        sockaddr_in from;
        socklen_t size = sizeof from;
        (void)co_await s.loop.accept(s.listening.fd, reinterpret_cast<sockaddr *>(&from), &size);
    },
    [](stage &s) -> task<> { co_await s.loop.poll(s.pipe.a, POLLIN); },
    [](stage &s) -> task<> { co_await s.loop.sleep(1h); },
    [](stage &s) -> task<> { co_await s.loop.signal(SIGUSR1); },
    [](stage &s) -> task<> { co_await s.loop.futex_wait(&s.word, 0); },
    [](stage &s) -> task<> { (void)co_await s.loop.open(AT_FDCWD, s.dir / "fifo", O_RDONLY); },
    [](stage &s) -> task<> { (void)co_await s.loop.getaddrinfo("localhost", nullptr); },
    [](stage &s) -> task<> {
        std::string local(100, 'x');
        CHECK(co_await s.loop.work([&local] {
            std::this_thread::sleep_for(5ms);
            return local.size();
        }) == 100);
    },
    [](stage &s) -> task<> {
        std::vector<char> much(4000000);
        co_await s.loop.send(s.sockets.a, much).full();
    },
    [](stage &s) -> task<> {
        std::vector<char> much(4000000);
        co_await s.loop.send(s.sockets.a, much).zerocopy().full();
    },
    [](stage &s) -> task<> {
        auto connections = s.loop.accept(s.listening.fd).multishot();
        (void)co_await connections.next();
    },
    [](stage &s) -> task<> {
        auto pieces = s.loop.recv(s.sockets.a, s.pool).multishot();
        (void)co_await pieces.next();
    },
    [](stage &s) -> task<> {
        auto ticks = s.loop.sleep(1us).multishot();
        for (;;)
            co_await ticks.next();
    },
    [](stage &s) -> task<> {
        auto pieces = s.loop.recv(s.sockets.a, s.pool).multishot();
        co_await s.loop.sleep(1h); // it is in flight, and nobody waits for it
    },
    wait_in_group,
    [](stage &s) -> task<> { co_await wait_in_group(s); },
    [](stage &s) -> task<> { (void)co_await upcall::when_any(wait_in_group(s), s.loop.sleep(1h)); },
    [](stage &s) -> task<> {
        auto pieces = s.loop.recv(s.sockets.a, s.pool).multishot();
        (void)co_await upcall::race(pieces.next(), s.loop.sleep(1h), s.loop.poll(s.pipe.a, POLLIN).result());
    },
    [](stage &s) -> task<> {
        std::array<char, 10> text;
        (void)co_await upcall::chain(s.loop.read(s.pipe.a, text), s.loop.nop(), s.loop.nop());
    },
    [](stage &s) -> task<> {
        upcall::scope scope(s.loop);
        scope.spawn(wait_in_group(s));
        scope.spawn(s.loop.sleep(1h));
        co_await scope.join();
    },
    [](stage &s) -> task<> {
        std::stop_source source;
        co_await upcall::with_stop_token(source.get_token(), wait_in_group(s));
    },
    [](stage &s) -> task<> {
        std::array<char, 10> text;
        upcall::completion on_read([&text](const upcall_event &) { text[0] = 0; });
        s.loop.submit(s.loop.read(s.pipe.a, text), on_read);
        co_await s.loop.sleep(1h);
    },
    [](stage &s) -> task<> { // no stop token ends it; its destructor does
        std::array<char, 10> text;
        co_await s.loop.read(s.pipe.a, text).unstoppable();
    },
};

} // namespace

TEST(destroyed_with_its_scope_after_any_number_of_turns) {
    for (maker make : waiting) {
        for (int turns = 0; turns < 4; ++turns) {
            stage s;
            {
                upcall::scope scope(s.loop);
                scope.spawn(make(s));
                for (int i = 0; i < turns; ++i)
                    s.loop.poll(i < 2 ? 0ns : 1ms);
            }
            CHECK(s.loop.stats().in_flight == 0);
        }
    }
}

TEST(destroyed_with_the_loop_after_any_number_of_turns) {
    for (maker make : waiting) {
        for (int turns = 0; turns < 3; ++turns) {
            stage s;
            s.loop.spawn(make(s)); // and the pool goes before the loop
            for (int i = 0; i < turns; ++i)
                s.loop.poll(0ns);
        }
    }
}

TEST(stopped_instead_of_destroyed) {
    for (maker make : waiting) {
        stage s;
        s.loop.spawn(make(s));
        s.loop.poll(0ns);
        s.loop.poll(1ms);
        s.loop.tasks().request_stop();
        CHECK(::write(s.pipe.b, "x", 1) == 1); // for the one that cannot be stopped
        CHECK(!s.loop.run());
        CHECK(s.loop.stats().in_flight == 0);
    }
}

TEST(nothing_is_written_after_the_destructor) {
    constexpr std::size_t size = 32 << 20; // enough for a disk to be busy with for a while
    folder dir;
    pages memory(size);
    memory.fill('f');
    upcall::descriptor fd(::open((dir / "big").c_str(), O_RDWR | O_CREAT, 0600));
    CHECK(::write(fd, memory.all().data, size) == static_cast<ssize_t>(size));
    if (upcall::descriptor direct(::open((dir / "big").c_str(), O_RDONLY | O_DIRECT)); direct)
        fd = std::move(direct); // not from the page cache, where there is nothing to wait for
    upcall::loop loop;
    for (int round = 0; round < 6; ++round) {
        {
            upcall::scope scope(loop);
            if (round < 3)
                scope.spawn(loop.pread(fd, memory.all(), 0));
            else
                scope.spawn(loop.work([&memory] {
                    std::this_thread::sleep_for(10ms);
                    memory.fill('w');
                }));
            for (int i = 0; i <= round % 3; ++i)
                loop.poll(0ns);
        }
        CHECK(loop.stats().in_flight == 0);
        memory.fill('m');
        std::this_thread::sleep_for(20ms);
        CHECK(memory.are('m'));
    }
}

TEST(nothing_is_consumed_after_the_destructor) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    for (int i = 0; i < 50; ++i) {
        auto text = std::make_unique<std::array<char, 8>>();
        {
            upcall::scope scope(loop);
            scope.spawn(loop.read(in, *text));
            loop.poll(0ns);
        }
        text.reset();
        CHECK(::write(out, "kept", 4) == 4);
        std::array<char, 8> kept;
        CHECK(loop.run(loop.read(in, kept)) == 4);
    }
}

TEST(what_came_and_was_never_taken_is_given_back) {
    const std::size_t before = open_descriptors();
    {
        stage s;
        upcall::scope scope(s.loop);
        auto client = connect_to(s.listening);
        CHECK(::write(s.sockets.b, "abc", 3) == 3);
        scope.spawn(s.loop.accept(s.listening.fd));
        scope.spawn(s.loop.open(AT_FDCWD, "/dev/null", O_RDONLY));
        scope.spawn(s.loop.pipe());
        scope.spawn(s.loop.getaddrinfo("127.0.0.1", nullptr));
        scope.spawn(s.loop.recv(s.sockets.a, s.pool));
        scope.spawn(s.loop.work([] { return std::string(1000, 'x'); }));
        scope.spawn([](stage &st) -> task<> {
            auto connections = st.loop.accept(st.listening.fd).multishot();
            co_await st.loop.sleep(1h);
        }(s));
        s.loop.poll(0ns);
        // Turned by the C function: they have ended, and nobody is resumed.
        for (int i = 0; i < 20; ++i)
            upcall_poll(s.loop.native(), 1000000);
    }
    CHECK(open_descriptors() == before);
    // All buffers are there: a pool that is not whole would not be freed, which the sanitizer sees.
}

TEST(a_close_is_finished) {
    for (int turns = 0; turns < 3; ++turns) {
        const std::size_t before = open_descriptors();
        {
            upcall::loop loop;
            const std::size_t with_loop = open_descriptors();
            {
                auto [a, b] = socket_pair();
                upcall::scope scope(loop);
                scope.spawn(loop.close(std::move(a)));
                scope.spawn(loop.close(b.release()));
                for (int i = 0; i < turns; ++i)
                    loop.poll(0ns);
                if (turns > 0)
                    continue;
                // Not even started: the one that owns closes.
                loop.run(loop.nop());
            }
            CHECK(open_descriptors() <= with_loop);
            auto [c, d] = socket_pair();
            auto never = loop.close(std::move(c));
        }
        CHECK(open_descriptors() == before);
    }
}

TEST(tasks_and_generators_that_outlive_the_loop) {
    auto loop = std::make_unique<upcall::loop>();
    upcall::buffers pool(*loop, 2, 64);
    auto [a, b] = socket_pair();
    auto pieces = std::unique_ptr<upcall::multishot<upcall::detail::lent>>(
        new upcall::multishot<upcall::detail::lent>(loop->recv(a, pool).multishot()));
    auto [in, out] = pipe_pair();
    std::array<char, 8> text;
    bool is_told = false;
    auto tell = [](void *flag) noexcept -> std::coroutine_handle<> {
        *static_cast<bool *>(flag) = true;
        return std::noop_coroutine();
    };
    auto reading = [](upcall::loop &l, int fd, std::array<char, 8> &to) -> task<> { co_await l.read(fd, to); }(*loop, in, text);
    std::stop_source source;
    const std::stop_token token = source.get_token();
    CHECK(!reading.start({tell, &is_told}, token));
    upcall::completion callback([](const upcall_event &) {});
    loop->submit(loop->sleep(1h), callback);
    CHECK(::write(b, "x", 1) == 1);
    for (int i = 0; i < 5; ++i)
        loop->poll(1ms);
    upcall::lent_buffer lent = loop->run(upcall::as_result(pieces->next())).value().value();
    loop.reset();
    source.request_stop(); // reaches nobody
    CHECK(!is_told && lent.text() == "x" && !callback.is_busy());
    pieces.reset();
}

namespace {

/* A coroutine type of somebody else, which begins at once and knows no tokens. */
struct foreign {
    struct promise_type {
        foreign get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_never initial_suspend() { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { throw; }
    };
    std::coroutine_handle<promise_type> frame;
};

foreign read_foreign(upcall::loop &loop, int fd, int &size) {
    std::array<char, 10> text;
    size = static_cast<int>(co_await loop.read(fd, text));
}

} // namespace

TEST(other_coroutine_types_are_as_safe) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    int size = -1;
    foreign destroyed = read_foreign(loop, in, size);
    loop.poll(0ns);
    destroyed.frame.destroy();
    CHECK(size == -1 && loop.stats().in_flight == 0);
    foreign finished = read_foreign(loop, in, size);
    CHECK(::write(out, "abc", 3) == 3);
    loop.run();
    CHECK(size == 3 && finished.frame.done());
    finished.frame.destroy();
    // What they throw comes out of run().
    foreign throws = [](upcall::loop &l) -> foreign { co_await l.fsync(-1); }(loop);
    CHECK_THROWS(EBADF, loop.run());
    throws.frame.destroy();
}

TEST(an_exception_out_of_run_destroys_what_it_ran) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    loop.spawn([](upcall::loop &l) -> task<> {
        co_await l.sleep(1ms);
        throw std::runtime_error("spawned");
    }(loop));
    bool is_thrown = false;
    try {
        std::array<char, 8> text;
        loop.run([](upcall::loop &l, int fd, std::array<char, 8> &to) -> task<> { co_await l.read(fd, to); }(loop, in, text));
    } catch (const std::runtime_error &) {
        is_thrown = true;
    }
    CHECK(is_thrown && loop.stats().in_flight == 0);
    // A spawned task's generator is waited for while an exception passes.
    upcall::buffers pool(loop, 2, 64);
    auto [a, b] = socket_pair();
    loop.spawn([](upcall::loop &l, int fd, upcall::buffers &p) -> task<> {
        auto pieces = l.recv(fd, p).multishot();
        co_await l.sleep(1ms);
        throw std::runtime_error("with a generator");
    }(loop, a, pool));
    is_thrown = false;
    try {
        loop.run();
    } catch (const std::runtime_error &) {
        is_thrown = true;
    }
    CHECK(is_thrown && loop.stats().in_flight == 0);
}

TEST(while_a_destructor_waits_nobody_is_resumed) {
    upcall::loop loop;
    auto [in, out] = pipe_pair();
    bool is_resumed = false;
    loop.spawn([](upcall::loop &l, bool &flag) -> task<> {
        co_await l.nop();
        flag = true;
    }(loop, is_resumed));
    int called = 0;
    upcall::completion callback([&](const upcall_event &) { ++called; });
    auto scope = std::make_unique<upcall::scope>(loop);
    scope->spawn([](upcall::loop &l, int fd) -> task<> {
        std::array<char, 8> text;
        co_await l.read(fd, text);
    }(loop, in));
    loop.poll(0ns); // both are started
    is_resumed = false;
    loop.submit(loop.nop(), callback);
    scope.reset();
    CHECK(!is_resumed);
    loop.run();
    CHECK(called == 1);
}

TEST(where_it_cannot_wait_it_terminates) {
    for (int where = 0; where < 2; ++where) {
        std::fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            rlimit none{0, 0};
            setrlimit(RLIMIT_CORE, &none);
            const int quiet = ::open("/dev/null", O_WRONLY);
            dup2(quiet, STDERR_FILENO);
            auto *loop = new upcall::loop;
            auto *scope = new upcall::scope(*loop);
            scope->spawn(loop->sleep(1h));
            loop->poll(0ns);
            if (where == 0)
                loop->post([&] { delete scope; }); // in a callback
            else
                std::thread([&] { delete scope; }).join(); // on another thread
            loop->run();
            _exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }
}

TEST(in_a_forked_child_everything_can_be_destroyed) {
    auto s = std::make_unique<stage>();
    auto scope = std::make_unique<upcall::scope>(s->loop);
    for (maker make : waiting)
        scope->spawn(make(*s));
    s->loop.poll(0ns);
    s->loop.poll(0ns);
    std::fflush(stdout);
    const pid_t child = fork_at_rest();
    if (child == 0) {
        scope.reset();
        CHECK_THROWS(ECHILD, s->loop.poll(0ns));
        _exit(0); // what is left here is the parent's
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    scope.reset();
    CHECK(s->loop.stats().in_flight == 0);
}

TEST(the_loop_of_a_thread_that_is_gone) {
    auto s = std::make_unique<stage>();
    std::thread([&] {
        for (maker make : waiting)
            s->loop.spawn(make(*s));
        s->loop.poll(0ns);
        s->loop.poll(0ns);
    }).join();
    s.reset();
}
