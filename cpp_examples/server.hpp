/* What the servers here share: listening, and telling where. */
#ifndef SERVER_HPP
#define SERVER_HPP

#include <upcall.hpp>

#include <cstdio>
#include <cstdlib>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string>
#include <sys/socket.h>

inline constexpr int exit_no_backend = 77; // what test runners take for "skipped: this machine cannot"

inline upcall::task<upcall::descriptor> listen_on(upcall::loop &loop, const char *address, const char *port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_PASSIVE;
    auto found = co_await loop.getaddrinfo(address, port, &hints);
    const addrinfo &at = *found.begin();
    // SOCK_NONBLOCK: on epoll a blocking listener would cost a thread switch per connection.
    auto fd = co_await loop.socket(at.ai_family, SOCK_STREAM | SOCK_NONBLOCK);
    co_await loop.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    co_await loop.bind(fd, at);
    co_await loop.listen(fd);
    co_return fd;
}

inline void announce(upcall::loop &loop, int listener) {
    sockaddr_storage bound;
    socklen_t size = sizeof bound;
    char host[64], port[8];
    if (getsockname(listener, reinterpret_cast<sockaddr *>(&bound), &size) < 0 ||
        getnameinfo(reinterpret_cast<sockaddr *>(&bound), size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        throw std::runtime_error("cannot tell the address");
    std::printf("listening on %s port %s (%s)\n", host, port, loop.backend_name().data());
    std::fflush(stdout); // whoever started us may be waiting for this line
}

/* Calls `handle(descriptor)` for each connection, and spawns what it makes; returns when it is stopped, or cannot go on. */
template <class Handle>
upcall::task<> serve(upcall::loop &loop, int listener, const char *name, Handle handle) {
    upcall::scope connections(loop); // its destructor ends them all
    auto accepted = loop.accept(listener).multishot();
    for (;;) {
        auto next = co_await accepted.next().result();
        if (next && *next) {
            const int on = 1;
            setsockopt((*next)->get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); // at worst it is slower
            connections.spawn(handle(std::move(**next)));
        } else if (!next && (next.error().value() == EMFILE || next.error().value() == ENFILE ||
                             next.error().value() == ENOBUFS || next.error().value() == ENOMEM)) {
            // Told once; the client stays queued, and is accepted when there are some.
            std::fprintf(stderr, "%s: accept: %s; going on\n", name, next.error().message().c_str());
        } else {
            next.value(); // throws
            co_return;
        }
    }
}

/* Runs `server` until SIGINT or SIGTERM; a second one hurries nobody. */
inline void run_until_signal(upcall::loop &loop, upcall::task<> server) {
    auto interrupt = loop.signal(SIGINT).multishot(), terminate = loop.signal(SIGTERM).multishot();
    loop.run(upcall::race(interrupt.next(), terminate.next(), std::move(server)));
}

#endif
