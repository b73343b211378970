/*
 * A small harness for tests of upcall.hpp: TEST(name) { ... } with CHECK(condition). Each test runs in a forked child with a time
 * limit, so that a crash or a hang is one failed test. Arguments: parts of the names of the tests to run. Exit status: 0, 1 (a
 * test failed), 77 (the backend that UPCALL_BACKEND asks for is denied here).
 */
#ifndef CHECK_HPP
#define CHECK_HPP

#include <upcall.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <netinet/in.h>
#include <string>
#include <sys/resource.h>
#include <sys/socket.h>
#include <thread>

using namespace std::literals;
using upcall::task;

struct test {
    const char *name;
    void (*run)();
};
inline std::vector<test> &tests() {
    static std::vector<test> all;
    return all;
}

#define TEST(name)                                                                                                     \
    static void test_##name();                                                                                         \
    static const bool is_added_##name = (tests().push_back({#name, test_##name}), true);                               \
    static void test_##name()

#define CHECK(...)                                                                                                     \
    ((__VA_ARGS__) ? (void)0                                                                                           \
                   : (std::printf("%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #__VA_ARGS__), std::fflush(stdout), _exit(1)))

/* The statement throws a std::system_error with this errno. */
#define CHECK_THROWS(number, ...)                                                                                      \
    do {                                                                                                               \
        int caught_ = 0;                                                                                               \
        try {                                                                                                          \
            (void)(__VA_ARGS__);                                                                                       \
        } catch (const std::system_error &error_) {                                                                    \
            caught_ = error_.code().value();                                                                           \
        }                                                                                                              \
        CHECK(caught_ == (number));                                                                                    \
    } while (false)


/* A pair of connected descriptors. */
struct ends {
    upcall::descriptor a, b;
};
inline ends socket_pair(int type = SOCK_STREAM) {
    int fds[2];
    CHECK(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) == 0);
    return {upcall::descriptor(fds[0]), upcall::descriptor(fds[1])};
}
inline ends pipe_pair() {
    int fds[2];
    CHECK(pipe2(fds, O_CLOEXEC) == 0);
    return {upcall::descriptor(fds[0]), upcall::descriptor(fds[1])};
}

/* A listening TCP socket on loopback, and where it is. */
struct listener {
    upcall::descriptor fd;
    sockaddr_in at{};
};
inline listener listen_somewhere() {
    listener l;
    l.fd.reset(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    l.at.sin_family = AF_INET;
    l.at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof l.at;
    CHECK(::bind(l.fd, reinterpret_cast<sockaddr *>(&l.at), size) == 0);
    CHECK(::listen(l.fd, 100) == 0);
    CHECK(::getsockname(l.fd, reinterpret_cast<sockaddr *>(&l.at), &size) == 0);
    return l;
}
inline upcall::descriptor connect_to(const listener &l) {
    upcall::descriptor fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK(::connect(fd, reinterpret_cast<const sockaddr *>(&l.at), sizeof l.at) == 0);
    return fd;
}

/* A folder of its own, removed with what is in it. */
class folder {
public:
    folder() { CHECK(mkdtemp(path_.data())); }
    ~folder() {
        const int status = std::system(("rm -rf '" + path_ + "'").c_str());
        CHECK(status == 0);
    }
    std::string operator/(const char *name) const { return path_ + "/" + name; }
    const std::string &path() const { return path_; }

private:
    std::string path_ = "/tmp/upcall-cpp.XXXXXX";
};

inline std::size_t open_descriptors() {
    std::size_t count = 0;
    for (int fd = 0; fd < 1024; ++fd)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/*
 * Forks when no other thread has run for a moment: AddressSanitizer's allocator takes the locks that are held at a fork into the
 * child, where nobody gives them back (no handler for forks until LLVM 17 and GCC 14).
 */
inline std::vector<std::string> other_threads() {
    std::vector<std::string> all;
    for (const auto &task : std::filesystem::directory_iterator("/proc/self/task")) {
        if (task.path().filename() == std::to_string(gettid()))
            continue;
        std::ifstream status(task.path() / "status");
        for (std::string line; std::getline(status, line);)
            if (line.starts_with("State") || line.find("ctxt") != line.npos)
                all.push_back(line);
    }
    return all;
}
inline bool is_at_rest(const std::vector<std::string> &lines) {
    return std::none_of(lines.begin(), lines.end(), [](const std::string &line) {
        return line.starts_with("State") && line.find("(sleeping)") == line.npos;
    });
}
inline pid_t fork_at_rest() {
    auto before = other_threads();
    for (;;) {
        std::this_thread::sleep_for(10ms);
        auto now = other_threads();
        if (is_at_rest(now) && now == before)
            return fork();
        before = std::move(now);
    }
}

inline std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char *>(bytes.data()), bytes.size()};
}

inline bool run_one(const test &t) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60); // its action ends the process
        t.run();
        std::exit(0); // not _exit(): leaks are looked for
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (status == 0)
        return true;
    if (WIFSIGNALED(status))
        std::printf("FAILED %s: signal %d\n", t.name, WTERMSIG(status));
    else
        std::printf("FAILED %s: status %d\n", t.name, WEXITSTATUS(status));
    return false;
}

int main(int argc, char **argv) {
    upcall_loop *probe = nullptr;
    const char *backend = std::getenv("UPCALL_BACKEND");
    if (upcall_loop_new(nullptr, &probe) < 0) {
        std::printf("%s: %s\n", backend ? backend : "auto", upcall_last_error());
        return 77;
    }
    upcall_loop_free(probe);
    std::size_t run = 0, failed = 0;
    for (const test &t : tests()) {
        bool is_wanted = argc < 2;
        for (int i = 1; i < argc; ++i)
            is_wanted = is_wanted || std::strstr(t.name, argv[i]);
        if (is_wanted) {
            ++run;
            failed += !run_one(t);
        }
    }
    std::printf("%zu of %zu tests passed\n", run - failed, run);
    return failed == 0 && run > 0 ? 0 : 1;
}

#endif
