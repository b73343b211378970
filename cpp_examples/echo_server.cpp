/*
 * A TCP server that sends back what it receives: c_examples/echo_server.c in coroutines.
 *
 *   - One coroutine per connection reads as the program is meant: receive, send back, until the end of the stream.
 *   - The generators accept and recv are submitted once and give many values. What is received comes in a buffer that is lent
 *     when data is there, and goes back when `piece` goes; a hundred thousand idle connections hold none.
 *   - lend_max() bounds how many pieces wait while one is being sent: a client that does not read stops being read from.
 *   - Stopping is the end of a scope: it cancels what its tasks wait for, and destroys them.
 */
#include "server.hpp"

using namespace std::literals;

namespace {

struct options {
    const char *address = "127.0.0.1", *port = "0";
    std::uint32_t buffer_count = 1024, buffer_size = 4096;
};

struct totals {
    std::uint64_t connections = 0, bytes = 0;
};

upcall::task<> echo(upcall::loop &loop, upcall::buffers &pool, totals &total, upcall::descriptor client) {
    ++total.connections;
    try {
        auto pieces = loop.recv(client, pool).lend_max(8).multishot();
        while (auto piece = co_await pieces.next())
            total.bytes += co_await loop.send(client, *piece).full().timeout(30s);
    } catch (const std::system_error &) {
        // Reset, or too slow: it is closed. Stopped: so are all.
    }
    (void)co_await loop.close(std::move(client)).result(); // an error is nobody's to mend
}

void usage(std::FILE *out) {
    std::fputs("usage: echo_server [--address A] [--port P] [--buffers N] [--buffer-size BYTES] [--help]\n"
               "Sends back what TCP clients send. Prints the address it listens on; ends on SIGINT or SIGTERM.\n"
               "  --address A          numeric address (127.0.0.1)\n"
               "  --port P             port (0: any free one)\n"
               "  --buffers N          receive buffers shared by all connections (1024)\n"
               "  --buffer-size BYTES  size of each (4096)\n"
               "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
               "Exit status: 0 stopped by a signal, 1 failed, 2 usage, 77 the chosen backend is denied here.\n",
               out);
}

std::uint32_t parse_count(const char *text, unsigned long max) {
    char *end;
    errno = 0;
    const unsigned long value = std::strtoul(text, &end, 10);
    if (errno == 0 && end != text && *end == '\0' && value >= 1 && value <= max)
        return static_cast<std::uint32_t>(value);
    std::fprintf(stderr, "echo_server: '%s' is not a number from 1 to %lu\n", text, max);
    std::exit(2);
}

options parse(int argc, char **argv) {
    static const option known[] = {
        {"address", required_argument, nullptr, 'a'}, {"port", required_argument, nullptr, 'p'},
        {"buffers", required_argument, nullptr, 'n'}, {"buffer-size", required_argument, nullptr, 's'},
        {"help", no_argument, nullptr, 'h'},          {nullptr, 0, nullptr, 0},
    };
    options chosen;
    for (int c; (c = getopt_long(argc, argv, "h", known, nullptr)) != -1;) {
        switch (c) {
        case 'a': chosen.address = optarg; break;
        case 'p': chosen.port = optarg; break;
        case 'n': chosen.buffer_count = parse_count(optarg, 32768); break;
        case 's': chosen.buffer_size = parse_count(optarg, 16 * 1024 * 1024); break;
        case 'h': usage(stdout); std::exit(EXIT_SUCCESS);
        default: usage(stderr); std::exit(2);
        }
    }
    if (optind != argc) {
        usage(stderr);
        std::exit(2);
    }
    return chosen;
}

void run(upcall::loop &loop, const options &chosen) {
    upcall::buffers pool(loop, chosen.buffer_count, chosen.buffer_size);
    totals total;
    const auto listener = loop.run(listen_on(loop, chosen.address, chosen.port));
    announce(loop, listener);
    run_until_signal(loop, serve(loop, listener, "echo_server", [&](upcall::descriptor client) {
        return echo(loop, pool, total, std::move(client));
    }));
    const upcall_stats stats = loop.stats();
    std::printf("%llu connections, %llu bytes sent back; %llu operations, %llu events, %llu system calls\n",
                static_cast<unsigned long long>(total.connections), static_cast<unsigned long long>(total.bytes),
                static_cast<unsigned long long>(stats.submitted), static_cast<unsigned long long>(stats.callbacks),
                static_cast<unsigned long long>(stats.system_calls));
}

} // namespace

int main(int argc, char **argv) {
    const options chosen = parse(argc, argv);
    std::optional<upcall::loop> loop;
    try {
        loop.emplace();
        run(*loop, chosen);
        return EXIT_SUCCESS;
    } catch (const std::system_error &error) {
        std::fprintf(stderr, "echo_server: %s\n", error.what());
        const bool is_denied = !loop && (error.code().value() == EPERM || error.code().value() == ENOSYS);
        return is_denied ? exit_no_backend : EXIT_FAILURE;
    }
}
