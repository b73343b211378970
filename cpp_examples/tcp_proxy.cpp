/*
 * A TCP proxy: every client is connected to a target, and bytes go both ways: c_examples/tcp_proxy.c in coroutines.
 *
 *   - The two directions are two tasks. When one side ends its stream, its task passes that on, shutdown(SHUT_WR) on the other
 *     side, and the opposite direction goes on until it ends as well.
 *   - Back-pressure needs no code: a direction has one buffer, in its frame, which is being filled or being emptied.
 *   - A connection that was reset is not a stream that ended: the other side is reset too, so that it does not take half a
 *     message for a whole one. An exception in one direction stops the other: that is what when_all() does.
 */
#include "server.hpp"

using namespace std::literals;

namespace {

struct proxy {
    upcall::loop &loop;
    const upcall::address_list &target;
    std::uint64_t served = 0, bytes_up = 0, bytes_down = 0;
};

/* Ends with the stream; throws when its sender is gone. */
upcall::task<> forward(upcall::loop &loop, int from, int to, std::uint64_t &bytes) {
    std::vector<std::byte> buffer(64 * 1024);
    for (;;) {
        const std::size_t size = co_await loop.recv(from, buffer);
        if (size == 0)
            break;
        auto sent = co_await loop.send(to, std::span(buffer).first(size)).full().result();
        bytes += sent.transferred();
        if (!sent)
            // The reader is gone, but what it sent before may still be on its way: the opposite direction goes on, and
            // ends soon, because there is nobody any more to send to it.
            co_return;
    }
    (void)co_await loop.shutdown(to, SHUT_WR).result(); // ENOTCONN: gone; the other direction finds out
}

/* The first address of the target that answers. */
upcall::task<upcall::descriptor> connect_target(proxy &p) {
    for (const addrinfo &to : p.target) {
        auto fd = co_await p.loop.socket(to.ai_family, SOCK_STREAM | SOCK_NONBLOCK);
        auto connected = co_await p.loop.connect(fd, to).timeout(5s).result();
        if (connected) {
            co_await p.loop.setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
            co_return fd;
        }
        std::fprintf(stderr, "tcp_proxy: connect: %s\n", connected.error().message().c_str());
        co_await p.loop.close(std::move(fd));
    }
    co_return upcall::descriptor();
}

/* Its descriptor's end is a reset, unless it was told that all is well. */
struct side {
    upcall::descriptor fd;
    bool is_whole = false;

    explicit side(upcall::descriptor d) : fd(std::move(d)) {}
    side(side &&) = default;
    ~side() {
        const linger reset = {1, 0};
        if (fd && !is_whole) // if this fails it gets an ordinary end, which is the best that is left
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
};

upcall::task<> connect_through(proxy &p, upcall::descriptor accepted) {
    side client(std::move(accepted));
    ++p.served;
    auto connected = co_await connect_target(p).result();
    if (!connected && !connected.cancelled())
        std::fprintf(stderr, "tcp_proxy: socket: %s\n", connected.error().message().c_str());
    if (!connected || !*connected)
        co_return;
    side target(std::move(*connected));
    auto both = co_await upcall::when_all(forward(p.loop, client.fd, target.fd, p.bytes_up),
                                          forward(p.loop, target.fd, client.fd, p.bytes_down)).result();
    client.is_whole = target.is_whole = both.has_value();
}

void usage(std::FILE *out) {
    std::fputs("usage: tcp_proxy [--address A] [--port P] [--help] TARGET_HOST TARGET_PORT\n"
               "Connects TCP clients to a target. Prints the address it listens on; ends on SIGINT or SIGTERM.\n"
               "  --address A  numeric address to listen on (127.0.0.1)\n"
               "  --port P     port to listen on (0: any free one)\n"
               "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
               "Exit status: 0 stopped by a signal, 1 failed, 2 usage, 77 the chosen backend is denied here.\n",
               out);
}

struct options {
    const char *address = "127.0.0.1", *port = "0", *target_host = nullptr, *target_port = nullptr;
};

options parse(int argc, char **argv) {
    static const option known[] = {
        {"address", required_argument, nullptr, 'a'},
        {"port", required_argument, nullptr, 'p'},
        {"help", no_argument, nullptr, 'h'},
        {nullptr, 0, nullptr, 0},
    };
    options chosen;
    for (int c; (c = getopt_long(argc, argv, "h", known, nullptr)) != -1;) {
        switch (c) {
        case 'a': chosen.address = optarg; break;
        case 'p': chosen.port = optarg; break;
        case 'h': usage(stdout); std::exit(EXIT_SUCCESS);
        default: usage(stderr); std::exit(2);
        }
    }
    if (argc - optind != 2) {
        usage(stderr);
        std::exit(2);
    }
    chosen.target_host = argv[optind];
    chosen.target_port = argv[optind + 1];
    return chosen;
}

void run(upcall::loop &loop, const options &chosen) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    const auto target = loop.run(loop.getaddrinfo(chosen.target_host, chosen.target_port, &hints));
    const auto listener = loop.run(listen_on(loop, chosen.address, chosen.port));
    proxy p{loop, target};
    announce(loop, listener);
    run_until_signal(loop, serve(loop, listener, "tcp_proxy", [&](upcall::descriptor client) {
        return connect_through(p, std::move(client));
    }));
    std::printf("%llu clients, %llu bytes to the target, %llu bytes back\n", static_cast<unsigned long long>(p.served),
                static_cast<unsigned long long>(p.bytes_up), static_cast<unsigned long long>(p.bytes_down));
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
        std::fprintf(stderr, "tcp_proxy: %s\n", error.what());
        const bool is_denied = !loop && (error.code().value() == EPERM || error.code().value() == ENOSYS);
        return is_denied ? exit_no_backend : EXIT_FAILURE;
    }
}
