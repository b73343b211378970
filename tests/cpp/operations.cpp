/* Every operation of the catalogue as an awaitable: what goes in, what comes out. complete.sh looks that none is missing. */
#include "check.hpp"

#include <linux/openat2.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/xattr.h>

namespace {

iovec part(void *at, std::size_t size) { return {at, size}; }

template <class F> void run(F f) {
    upcall::loop loop;
    loop.run(f(loop));
}

} // namespace

TEST(streams) {
    run([](upcall::loop &loop) -> task<> {
        auto [in, out] = pipe_pair();
        std::array<char, 100> text{};
        CHECK(co_await loop.write(out, "hello"sv) == 5);
        CHECK(co_await loop.read(in, text) == 5);
        CHECK(std::string_view(text.data()) == "hello");

        std::string one = "one", two = "two";
        std::array<iovec, 2> parts{part(one.data(), 3), part(two.data(), 3)};
        CHECK(co_await loop.writev(out, parts) == 6);
        std::array<iovec, 2> room{part(text.data(), 2), part(text.data() + 10, 10)};
        CHECK(co_await loop.readv(in, room) == 6);
        CHECK(text[1] == 'n' && text[10] == 'e' && text[13] == 'o');

        auto [in2, out2] = pipe_pair();
        co_await loop.write(out, "tee"sv);
        CHECK(co_await loop.tee(in, out2, 100) == 3);
        CHECK(co_await loop.splice(in, -1, out2, -1, 100) == 3);
        CHECK(co_await loop.read(in2, std::span(text).first(6)).full() == 6);
        CHECK(std::string_view(text.data(), 6) == "teetee");

        out.reset();
        CHECK(co_await loop.read(in, text) == 0);
        CHECK((co_await loop.write(in2, "x"sv).result()).error() == std::errc::bad_file_descriptor);
    });
}

TEST(a_buffer_of_a_pool) {
    run([](upcall::loop &loop) -> task<> {
        upcall::buffers pool(loop, 2, 16);
        auto [in, out] = pipe_pair();
        co_await loop.write(out, "pooled"sv);
        upcall::lent_buffer read = co_await loop.read(in, pool);
        CHECK(read.text() == "pooled" && read.size() == 6 && std::ranges::distance(read) == 6);
        auto [a, b] = socket_pair();
        co_await loop.send(a, read);
        upcall::lent_buffer received = co_await loop.recv(b, pool);
        CHECK(received.text() == "pooled");
        read = std::move(received);
        CHECK(read.text() == "pooled" && !received);
        a.reset();
        upcall::lent_buffer end = co_await loop.recv(b, pool);
        CHECK(!end && end.empty());
    });
}

TEST(files) {
    run([](upcall::loop &loop) -> task<> {
        folder dir;
        auto fd = co_await loop.open(AT_FDCWD, dir / "file", O_RDWR | O_CREAT, 0600);
        std::string back(9, '.');
        CHECK(co_await loop.pwrite(fd, "0123456789"sv, 0) == 10);
        CHECK(co_await loop.pread(fd, back, 5).full() == 5);
        CHECK(back == "56789....");
        std::array<iovec, 2> parts{part(back.data(), 1), part(back.data() + 8, 1)};
        CHECK(co_await loop.preadv(fd, parts, 2) == 2);
        CHECK(back == "26789...3");
        CHECK(co_await loop.pwritev(fd, parts, 10) == 2);
        co_await loop.fsync(fd);
        co_await loop.fdatasync(fd);
        co_await loop.sync_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        co_await loop.fallocate(fd, 0, 0, 100);
        co_await loop.fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
        CHECK((co_await loop.statx(fd, "", AT_EMPTY_PATH)).stx_size == 100);
        co_await loop.ftruncate(fd, 12);
        CHECK((co_await loop.statx(AT_FDCWD, dir / "file")).stx_size == 12);

        auto copy = co_await loop.open(AT_FDCWD, (dir / "copy").c_str(), O_RDWR | O_CREAT, 0600);
        auto copied = co_await loop.copy_range(fd, 0, copy, 0, 12).result();
        CHECK(copied ? *copied == 12 : copied.error().value() == EXDEV || copied.error().value() == EOPNOTSUPP);
        auto [a, b] = socket_pair();
        CHECK(co_await loop.sendfile(a, fd, 0, 5).full() == 5);
        CHECK(co_await loop.recv(b, back) == 5);
        CHECK(back.substr(0, 5) == "01234");

        co_await loop.close(std::move(copy));
        CHECK(!copy);
        const int number = fd.release();
        co_await loop.close(number);
        CHECK((co_await loop.close(number).result()).error() == std::errc::bad_file_descriptor);

        void *memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED);
        co_await loop.madvise(memory, 4096, MADV_DONTNEED);
        munmap(memory, 4096);
    });
}

TEST(paths) {
    run([](upcall::loop &loop) -> task<> {
        folder dir;
        auto at = co_await loop.open(AT_FDCWD, dir.path(), O_PATH | O_DIRECTORY);
        co_await loop.mkdir(at, "sub", 0700);
        co_await loop.symlink("sub", at, "link");
        open_how how{};
        how.flags = O_RDONLY | O_DIRECTORY;
        how.resolve = RESOLVE_NO_SYMLINKS;
        auto denied = co_await loop.openat2(at, "link", &how, sizeof how).result();
        CHECK(denied.error().value() == ELOOP || denied.error().value() == EOPNOTSUPP);
        (void)co_await loop.open(at, "sub/file", O_CREAT | O_WRONLY, 0600);
        co_await loop.rename(at, "sub/file", at, "file");
        co_await loop.hardlink(at, "file", at, "other");
        CHECK((co_await loop.statx(at, "file")).stx_nlink == 2);

        auto list = co_await loop.open(at, ".", O_RDONLY | O_DIRECTORY);
        std::array<std::uint64_t, 512> records; // aligned as the records are
        const std::size_t size = co_await loop.readdir(list, records);
        std::size_t names = 0;
        for (const upcall_dirent &entry : upcall::dirents(records.data(), size))
            names += upcall_dirent_name(&entry) == "file"sv || upcall_dirent_name(&entry) == "other"sv;
        CHECK(names == 2);
        upcall::buffers pool(loop, 1, 4096);
        list = co_await loop.open(at, ".", O_RDONLY | O_DIRECTORY);
        const upcall::lent_buffer lent = co_await loop.readdir(list, pool);
        CHECK(lent.size() == size);
        CHECK(std::ranges::distance(lent.entries().begin(), lent.entries().end()) == 6);

        co_await loop.unlink(at, "other");
        co_await loop.unlink(at, "sub", AT_REMOVEDIR);
        CHECK((co_await loop.unlink(at, "sub", AT_REMOVEDIR).result()).error().value() == ENOENT);

        // Not every file system has these; those that have must keep them.
        auto fd = co_await loop.open(at, "file", O_RDWR);
        std::array<char, 16> value{};
        if (auto set = co_await loop.setxattr(dir / "file", "user.a", "first"sv).result(); set) {
            CHECK(co_await loop.getxattr(dir / "file", "user.a", value) == 5);
            co_await loop.fsetxattr(fd, "user.a", "again!"sv);
            CHECK(co_await loop.fgetxattr(fd, "user.a", value) == 6);
            CHECK(std::string_view(value.data()) == "again!");
        } else {
            CHECK(set.error().value() == EOPNOTSUPP);
            CHECK((co_await loop.getxattr(dir / "file", "user.a", value).result()).error().value() == EOPNOTSUPP);
            CHECK((co_await loop.fsetxattr(fd, "user.a", "x"sv).result()).error().value() == EOPNOTSUPP);
            CHECK((co_await loop.fgetxattr(fd, "user.a", value).result()).error().value() == EOPNOTSUPP);
        }
    });
}

TEST(sockets) {
    run([](upcall::loop &loop) -> task<> {
        auto server = co_await loop.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        co_await loop.setsockopt(server, SOL_SOCKET, SO_REUSEADDR, 1);
        co_await loop.bind(server, at);
        co_await loop.listen(server);
        socklen_t size = sizeof at;
        CHECK(getsockname(server, reinterpret_cast<sockaddr *>(&at), &size) == 0);

        auto client = co_await loop.socket(AF_INET, SOCK_STREAM);
        sockaddr_in from{};
        size = sizeof from;
        auto [_, peer] = co_await upcall::when_all(loop.connect(client, at),
                                                   loop.accept(server, reinterpret_cast<sockaddr *>(&from), &size));
        CHECK(from.sin_family == AF_INET && size == sizeof from);
        const int no_delay = 1;
        co_await loop.setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof no_delay);
        CHECK(co_await loop.getsockopt<int>(client, IPPROTO_TCP, TCP_NODELAY) == 1);
        int error = -1;
        size = sizeof error;
        co_await loop.getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &size);
        CHECK(error == 0);

        std::array<char, 100> text{};
        CHECK(co_await loop.send(client, "hello"sv).zerocopy() == 5);
        CHECK(co_await loop.recv(peer, text, MSG_PEEK) == 5);
        CHECK(co_await loop.recv(peer, text) == 5);
        co_await loop.shutdown(client, SHUT_WR);
        CHECK(co_await loop.recv(peer, text) == 0);

        // A second connection, with the short form.
        auto again = co_await loop.socket(AF_INET, SOCK_STREAM);
        auto accepted = co_await upcall::when_all(loop.accept(server), loop.connect(again, at));
        CHECK(std::get<0>(accepted).get() >= 0);
        // Nobody listens any more.
        co_await loop.close(std::move(server));
        auto late = co_await loop.socket(AF_INET, SOCK_STREAM);
        CHECK((co_await loop.connect(late, at).result()).error() == std::errc::connection_refused);
    });
}

TEST(messages) {
    run([](upcall::loop &loop) -> task<> {
        auto bound = co_await loop.socket(AF_INET, SOCK_DGRAM);
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        co_await loop.bind(bound, at);
        socklen_t size = sizeof at;
        CHECK(getsockname(bound, reinterpret_cast<sockaddr *>(&at), &size) == 0);
        auto sender = co_await loop.socket(AF_INET, SOCK_DGRAM);

        CHECK(co_await loop.sendto(sender, "datagram"sv, at) == 8);
        std::array<char, 100> text{};
        sockaddr_in from{};
        size = sizeof from;
        CHECK(co_await loop.recvfrom(bound, text, reinterpret_cast<sockaddr *>(&from), &size) == 8);
        CHECK(from.sin_family == AF_INET && from.sin_port != 0);

        std::string payload = "message";
        iovec data = part(payload.data(), payload.size());
        msghdr header{};
        header.msg_name = &at;
        header.msg_namelen = sizeof at;
        header.msg_iov = &data;
        header.msg_iovlen = 1;
        CHECK(co_await loop.sendmsg(sender, &header) == 7);
        iovec room = part(text.data(), text.size());
        msghdr answer{};
        answer.msg_iov = &room;
        answer.msg_iovlen = 1;
        CHECK(co_await loop.recvmsg(bound, &answer) == 7);

        upcall::buffers pool(loop, 4, 256);
        co_await loop.sendmsg(sender, &header);
        upcall::lent_message message = co_await loop.recvmsg(bound, pool, sizeof(sockaddr_in));
        CHECK(message && message.text() == "message" && message.name().size() == sizeof(sockaddr_in));
        CHECK(message.control().empty());
        CHECK(reinterpret_cast<const sockaddr_in *>(message.name().data())->sin_port == from.sin_port);
    });
}

TEST(pipe_and_poll) {
    run([](upcall::loop &loop) -> task<> {
        upcall::pipe_ends ends = co_await loop.pipe();
        CHECK((co_await loop.poll(ends.write, POLLOUT) & POLLOUT) != 0);
        auto nothing = co_await loop.poll(ends.read, POLLIN).timeout(1ms).result();
        CHECK(nothing.timed_out() && nothing.error() == std::errc::timed_out);
        ends.write.reset();
        CHECK((co_await loop.poll(ends.read, POLLIN) & POLLHUP) != 0);
    });
}

TEST(time_passes) {
    run([](upcall::loop &loop) -> task<> {
        co_await loop.nop();
        const auto begin = std::chrono::steady_clock::now();
        co_await loop.sleep(2ms);
        CHECK(std::chrono::steady_clock::now() - begin >= 2ms);
        co_await loop.sleep_until(begin + 5ms);
        CHECK(std::chrono::steady_clock::now() - begin >= 5ms);
        CHECK(loop.now() >= begin + 5ms);
        co_await loop.sleep(-1s);
        CHECK((co_await loop.sleep(std::chrono::hours::max()).timeout(1us).result()).timed_out());
        CHECK((co_await loop.sleep(1h).deadline(begin).result()).timed_out());
    });
}

TEST(signals_and_children) {
    run([](upcall::loop &loop) -> task<> {
        auto watcher = loop.signal(SIGUSR1).multishot();
        kill(getpid(), SIGUSR1);
        CHECK(co_await watcher.next() == SIGUSR1);
        auto [number, _] = co_await upcall::when_all(loop.signal(SIGUSR2), [](upcall::loop &l) -> task<> {
            co_await l.sleep(1ms);
            kill(getpid(), SIGUSR2);
        }(loop));
        CHECK(number == SIGUSR2);

        const pid_t child = fork();
        if (child == 0)
            _exit(7);
        const siginfo_t info = co_await loop.waitid(P_PID, static_cast<id_t>(child), WEXITED);
        CHECK(info.si_pid == child && info.si_status == 7);
        CHECK((co_await loop.waitid(P_PID, static_cast<id_t>(child), WEXITED).result()).error().value() == ECHILD);
    });
}

TEST(futexes) {
    run([](upcall::loop &loop) -> task<> {
        std::uint32_t word = 1;
        CHECK(!co_await loop.futex_wait(&word, 2));
        auto [was_woken, _] = co_await upcall::when_all(
            loop.futex_wait(&word, 1), [](upcall::loop &l, std::uint32_t *at) -> task<> {
                while (co_await l.futex_wake(at) == 0) // the other one reads the word a little later
                    co_await l.sleep(1ms);
            }(loop, &word));
        CHECK(was_woken);
    });
}

TEST(computations) {
    run([](upcall::loop &loop) -> task<> {
        const std::thread::id here = std::this_thread::get_id();
        auto there = co_await loop.work([] { return std::this_thread::get_id(); });
        CHECK(there != here);
        auto give = [held = std::make_unique<int>(5)]() mutable { return std::move(held); };
        auto owned = co_await loop.work(std::move(give));
        CHECK(*owned == 5);
        int called = 0;
        co_await loop.work([&] { ++called; });
        CHECK(called == 1);
        bool is_thrown = false;
        try {
            co_await loop.work([]() -> int { throw std::out_of_range("thrown there"); });
        } catch (const std::out_of_range &) {
            is_thrown = true;
        }
        CHECK(is_thrown);
        auto result = co_await loop.work([]() -> int { throw std::out_of_range("again"); }).result();
        CHECK(!result && result.error() == std::error_code(1, upcall::category()));
    });
}

TEST(names) {
    run([](upcall::loop &loop) -> task<> {
        addrinfo hints{};
        hints.ai_flags = AI_NUMERICHOST;
        hints.ai_socktype = SOCK_STREAM;
        auto list = co_await loop.getaddrinfo("127.0.0.1", "80", &hints);
        CHECK(std::ranges::distance(list.begin(), list.end()) == 1);
        CHECK(list.begin()->ai_family == AF_INET);
        upcall::address at(*list.begin());
        CHECK(at.size == sizeof(sockaddr_in));
        auto none = co_await loop.getaddrinfo("not a number", nullptr, &hints).result();
        CHECK(none.error() == std::error_code(-UPCALL_EAI_NONAME, upcall::category()));
        CHECK(none.error().message() == gai_strerror(EAI_NONAME));
    });
}

TEST(what_submit_refuses_is_told_with_its_text) {
    run([](upcall::loop &loop) -> task<> {
        try {
            co_await loop.recv(-5, std::span<char>(), MSG_DONTWAIT);
            CHECK(false);
        } catch (const std::system_error &error) {
            CHECK(error.code().value() == EINVAL && std::strstr(error.what(), "MSG_DONTWAIT"));
        }
        CHECK((co_await loop.sleep(1ms).full().result()).error().value() == EINVAL);
    });
}
