/* What the tests beside a server share: with_server.sh has started it. */
#ifndef SERVER_H
#define SERVER_H

#include "check.h"

HELPER const char *from_environment(const char *name) {
    const char *value = getenv(name);
    if (value == NULL)
        fail(HERE, "%s is not set: run by with_server.sh", name);
    return value;
}

HELPER int server_port(void) {
    return atoi(from_environment("UPCALL_TEST_PORT"));
}

/* A port of 127.0.0.1 where nobody listens: the socket is bound, so that nobody else will. */
HELPER int refusing_port(int type, int *socket_) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    *socket_ = new_socket(AF_INET, type);
    CHECK_EQ(bind(*socket_, (struct sockaddr *)&address, sizeof address), 0);
    CHECK_EQ(getsockname(*socket_, (struct sockaddr *)&address, &length), 0);
    return ntohs(address.sin_port);
}

/* Until nothing but background operations is in flight. */
HELPER void run_at(struct place at, upcall_loop *loop) {
    check_eq(at, "upcall_run", upcall_run(loop), 0);
}
#define RUN(loop) run_at(HERE, (loop))

HELPER upcall_id after_ms(upcall_loop *loop, int ms, upcall_callback callback, void *user) {
    upcall_op op = upcall_op_sleep((uint64_t)ms * UPCALL_MILLISECOND);
    upcall_id id;
    op.callback = callback;
    op.user = user;
    CHECK_EQ(upcall_submit(loop, &op, 1, &id), 0);
    return id;
}

#endif
