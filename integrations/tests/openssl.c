/* upcall_openssl.h with the real OpenSSL: an echo with certificates that openssl(1) has made, and that are verified. */
#include "upcall_openssl.h"

#include "check.h"

static const char *folder; /* UPCALL_TEST_DIR: ca.pem, server.pem with its key, other.pem (another authority) */

static const char *file(const char *name) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static SSL_CTX *context(const char *authority) {
    SSL_CTX *made = SSL_CTX_new(TLS_method());
    folder = getenv("UPCALL_TEST_DIR");
    CHECK(made != NULL && folder != NULL);
    CHECK_EQ(SSL_CTX_use_certificate_chain_file(made, file("server.pem")), 1);
    CHECK_EQ(SSL_CTX_use_PrivateKey_file(made, file("server.pem"), SSL_FILETYPE_PEM), 1);
    CHECK_EQ(SSL_CTX_load_verify_locations(made, file(authority), NULL), 1);
    return made;
}

static SSL *server_of(SSL_CTX *context) {
    SSL *ssl = SSL_new(context);
    CHECK(ssl != NULL);
    SSL_set_accept_state(ssl);
    return ssl;
}

static SSL *client_of(SSL_CTX *context, const char *name) {
    SSL *ssl = SSL_new(context);
    CHECK(ssl != NULL);
    SSL_set_connect_state(ssl);
    SSL_set_verify(ssl, SSL_VERIFY_PEER, NULL);
    CHECK_EQ(SSL_set1_host(ssl, name), 1);
    return ssl;
}

/* ---- A server that sends back what comes, and ends as its peer does. ---- */

struct echo {
    upcall_tls *tls;
    char data[30000];
    size_t bytes;
    int64_t result; /* of what ended it; 1: not yet */
};

static void echo_ended(upcall_tls *tls, void *user, int64_t result) {
    struct echo *echo = user;
    if (echo->result == 1)
        echo->result = result;
    upcall_tls_free(tls);
}

static void echo_read(upcall_tls *tls, void *user, int64_t result);

static void echo_written(upcall_tls *tls, void *user, int64_t result) {
    struct echo *echo = user;
    if (result < 0)
        echo_ended(tls, user, result);
    else
        CHECK_EQ(upcall_tls_read(tls, echo->data, sizeof echo->data, echo_read, echo), 0);
}

static void echo_read(upcall_tls *tls, void *user, int64_t result) {
    struct echo *echo = user;
    if (result > 0) {
        echo->bytes += (size_t)result;
        CHECK_EQ(upcall_tls_write(tls, echo->data, (size_t)result, echo_written, echo), 0);
    } else if (result < 0 || upcall_tls_shutdown(tls, echo_ended, echo) < 0) {
        echo_ended(tls, user, result);
    }
}

static void start_echo(upcall_loop *loop, struct echo *echo, int fd, SSL_CTX *context, uint64_t timeout_ns) {
    *echo = (struct echo){.result = 1};
    CHECK_EQ(upcall_tls_new(loop, fd, server_of(context), timeout_ns, &echo->tls), 0);
    CHECK_EQ(upcall_tls_read(echo->tls, echo->data, sizeof echo->data, echo_read, echo), 0);
}

/* ---- A client that writes and reads at the same time. ---- */

struct client {
    upcall_tls *tls;
    char *out, *in;
    size_t size, got, piece;
    unsigned handshakes, writes, shutdowns;
    int64_t result; /* 1: not yet */
};

static void client_read(upcall_tls *tls, void *user, int64_t result) {
    struct client *client = user;
    if (result <= 0) {
        client->result = result;
        upcall_tls_free(tls);
        return;
    }
    client->got += (size_t)result;
    CHECK(client->got <= client->size);
    CHECK_EQ(upcall_tls_read(tls, client->in + client->got, client->piece, client_read, client), 0);
    CHECK_EQ(upcall_tls_read(tls, client->in, 1, client_read, client), -EBUSY);
}

static void client_shut(upcall_tls *tls, void *user, int64_t result) {
    (void)tls;
    ((struct client *)user)->shutdowns += result == 0;
}

static void client_written(upcall_tls *tls, void *user, int64_t result) {
    struct client *client = user;
    if (result < 0)
        return;
    CHECK_EQ(result, client->size);
    client->writes++;
    CHECK_EQ(upcall_tls_shutdown(tls, client_shut, client), 0);
}

static void client_ready(upcall_tls *tls, void *user, int64_t result) {
    struct client *client = user;
    if (result < 0) {
        client->result = result;
        upcall_tls_free(tls);
        return;
    }
    client->handshakes++;
    CHECK_EQ(upcall_tls_write(tls, client->out, client->size, client_written, client), 0);
    CHECK_EQ(upcall_tls_read(tls, client->in, client->piece, client_read, client), 0);
}

static void start_client(upcall_loop *loop, struct client *client, int fd, SSL *ssl, size_t size) {
    *client = (struct client){.size = size, .piece = 50000, .result = 1};
    client->out = malloc(size);
    client->in = malloc(size + client->piece);
    CHECK(client->out != NULL && client->in != NULL);
    fill_pattern(client->out, size, size);
    CHECK_EQ(upcall_tls_new(loop, fd, ssl, 0, &client->tls), 0);
    CHECK_EQ(upcall_tls_handshake(client->tls, client_ready, client), 0);
}

static void free_client(struct client *client) {
    free(client->out);
    free(client->in);
}

static void run(upcall_loop *loop) {
    CHECK_EQ(upcall_run(loop), 0);
}

static void echo_of(size_t size, int version, int buffers) {
    int fds[2], open_before = open_fd_count();
    struct client client;
    struct echo echo;
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    tcp_pair_with(buffers, fds);
    SSL_CTX_set_max_proto_version(ctx, version);
    start_echo(loop, &echo, fds[0], ctx, 0);
    start_client(loop, &client, fds[1], client_of(ctx, "server.test"), size);
    run(loop);
    CHECK_EQ(client.handshakes, 1);
    CHECK_EQ(client.writes, 1);
    CHECK_EQ(client.shutdowns, 1);
    CHECK_EQ(client.result, 0);
    CHECK_EQ(client.got, size);
    CHECK(has_pattern(client.in, size, size));
    CHECK_EQ(echo.bytes, size);
    CHECK_EQ(echo.result, 0);
    free_client(&client);
    SSL_CTX_free(ctx);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(an_echo_with_verified_certificates) {
    static const size_t sizes[] = {1, 100, 16384, 16385, 100000};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        echo_of(sizes[i], TLS1_3_VERSION, 0);
        echo_of(sizes[i], TLS1_2_VERSION, 0);
    }
}

/* Both sockets are full most of the time. */
TEST(eight_megabytes_both_ways_through_small_buffers) {
    echo_of(8000000, TLS1_3_VERSION, 4096);
}

TEST(a_hundred_connections_at_once) {
    static struct client clients[100];
    static struct echo echoes[100];
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    for (int i = 0; i < 100; i++) {
        int fds[2];
        tcp_pair(fds);
        start_echo(loop, &echoes[i], fds[0], ctx, 0);
        start_client(loop, &clients[i], fds[1], client_of(ctx, "server.test"), 20000);
    }
    run(loop);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(clients[i].result, 0);
        CHECK(has_pattern(clients[i].in, 20000, 20000));
        free_client(&clients[i]);
    }
    SSL_CTX_free(ctx);
    free_loop(loop);
}

/* ---- What goes wrong. ---- */

static void refused(const char *authority, const char *name) {
    int fds[2], open_before = open_fd_count();
    struct client client;
    struct echo echo;
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context(authority);
    tcp_pair(fds);
    start_echo(loop, &echo, fds[0], ctx, 0);
    start_client(loop, &client, fds[1], client_of(ctx, name), 10);
    run(loop);
    CHECK_EQ(client.result, -EPROTO);
    CHECK_EQ(client.handshakes, 0);
    CHECK_EQ(echo.result, -EPROTO); /* the client's alert has come */
    free_client(&client);
    SSL_CTX_free(ctx);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(a_certificate_of_an_unknown_authority) {
    refused("other.pem", "server.test");
}

TEST(a_certificate_for_another_name) {
    refused("ca.pem", "elsewhere.test");
}

struct outcome {
    unsigned calls;
    int64_t result;
    unsigned long reason;
};

static void note(upcall_tls *tls, void *user, int64_t result) {
    struct outcome *outcome = user;
    outcome->calls++;
    outcome->result = result;
    outcome->reason = upcall_tls_error(tls);
}

/* One side of TLS, the other side the test itself. */
static upcall_tls *new_tls(upcall_loop *loop, SSL_CTX *ctx, uint64_t timeout_ns, int *peer) {
    upcall_tls *tls;
    int fds[2];
    tcp_pair(fds);
    *peer = fds[1];
    CHECK_EQ(upcall_tls_new(loop, fds[0], server_of(ctx), timeout_ns, &tls), 0);
    return tls;
}

TEST(a_peer_that_does_not_speak_tls) {
    struct outcome read = {0}, again = {0};
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    int peer;
    char byte;
    upcall_tls *tls = new_tls(loop, ctx, 0, &peer);
    CHECK_EQ(upcall_tls_read(tls, &byte, 1, note, &read), 0);
    write_all(peer, "GET / HTTP/1.0\r\n\r\n", 18);
    run(loop);
    CHECK_EQ(read.calls, 1);
    CHECK_EQ(read.result, -EPROTO);
    CHECK_EQ(ERR_GET_LIB(read.reason), ERR_LIB_SSL);
    CHECK_EQ(upcall_tls_read(tls, &byte, 1, note, &again), 0);
    CHECK_EQ(again.calls, 0); /* never inside the call */
    run(loop);
    CHECK_EQ(again.calls, 1);
    CHECK_EQ(again.result, -EPROTO);
    upcall_tls_free(tls);
    SSL_CTX_free(ctx);
    free_loop(loop);
}

TEST(a_peer_that_ends_without_ending_tls) {
    struct outcome read = {0};
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    int peer;
    char byte;
    upcall_tls *tls = new_tls(loop, ctx, 0, &peer);
    CHECK_EQ(upcall_tls_read(tls, &byte, 1, note, &read), 0);
    CHECK_EQ(shutdown(peer, SHUT_WR), 0);
    run(loop);
    CHECK_EQ(read.result, -ECONNRESET);
    upcall_tls_free(tls);
    SSL_CTX_free(ctx);
    free_loop(loop);
}

TEST(a_peer_that_says_nothing) {
    struct outcome read = {0};
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    int peer;
    char byte;
    upcall_tls *tls = new_tls(loop, ctx, 100 * UPCALL_MILLISECOND, &peer);
    CHECK_EQ(upcall_tls_handshake(tls, note, &read), 0);
    CHECK_EQ(upcall_tls_read(tls, &byte, 1, note, &read), -EBUSY);
    run(loop);
    CHECK_EQ(read.calls, 1);
    CHECK_EQ(read.result, -ETIMEDOUT);
    upcall_tls_free(tls);
    SSL_CTX_free(ctx);
    free_loop(loop);
}

TEST(arguments_that_are_refused) {
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    int peer;
    char byte;
    upcall_tls *tls = new_tls(loop, ctx, 0, &peer), *none;
    CHECK_EQ(upcall_tls_new(loop, peer, NULL, 0, &none), -EINVAL);
    CHECK_EQ(upcall_tls_read(tls, NULL, 1, note, NULL), -EINVAL);
    CHECK_EQ(upcall_tls_read(tls, &byte, 0, note, NULL), -EINVAL);
    CHECK_EQ(upcall_tls_write(tls, &byte, 1, NULL, NULL), -EINVAL);
    upcall_tls_free(NULL);
    upcall_tls_free(tls);
    SSL_CTX_free(ctx);
    free_loop(loop);
}

/* In the handshake, and with reading and writing stuck. */
static void tear_down(bool connected, bool loop_first) {
    struct outcome read = {0}, write = {0};
    int open_before = open_fd_count();
    static char data[20000000];
    char byte;
    int fds[2];
    upcall_tls *tls, *other;
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    tcp_pair(fds);
    CHECK_EQ(upcall_tls_new(loop, fds[0], server_of(ctx), 0, &tls), 0);
    CHECK_EQ(upcall_tls_new(loop, fds[1], client_of(ctx, "server.test"), 0, &other), 0);
    if (connected) {
        CHECK_EQ(upcall_tls_handshake(tls, note, &read), 0);
        CHECK_EQ(upcall_tls_handshake(other, note, &write), 0);
        run(loop);
        CHECK_EQ(read.result, 0);
        CHECK_EQ(write.result, 0);
    }
    read = write = (struct outcome){0};
    CHECK_EQ(upcall_tls_read(tls, &byte, 1, note, &read), 0);
    CHECK_EQ(upcall_tls_write(tls, data, sizeof data, note, &write), 0);
    for (int idle = 0; idle < 200;) { /* until the sockets are full */
        int n = upcall_poll(loop, 0);
        CHECK(n >= 0);
        idle = n > 0 ? 0 : idle + 1;
    }
    CHECK_EQ(read.calls + write.calls, 0);
    if (loop_first)
        free_loop(loop);
    upcall_tls_free(tls);
    if (!loop_first) {
        run(loop); /* nothing is left in flight */
        free_loop(loop);
    }
    upcall_tls_free(other);
    CHECK_EQ(read.calls, 1);
    CHECK_EQ(write.calls, 1);
    CHECK_EQ(read.result, -ECANCELED);
    CHECK_EQ(write.result, -ECANCELED);
    SSL_CTX_free(ctx);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(teardown_in_any_order) {
    for (int i = 0; i < 4; i++)
        tear_down(i & 1, i & 2);
}

/* ---- OpenSSL's own client. ---- */

TEST(the_client_of_openssl) {
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 5), to[2], from[2], fd;
    char port[16], got[6] = "";
    struct echo echo;
    upcall_loop *loop = new_loop();
    SSL_CTX *ctx = context("ca.pem");
    snprintf(port, sizeof port, "127.0.0.1:%d", ntohs(address.sin_port));
    CHECK(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        dup2(open("/dev/null", O_WRONLY), 2); /* it tells what it verifies */
        execlp("openssl", "openssl", "s_client", "-quiet", "-verify_return_error", "-CAfile", file("ca.pem"), "-verify_hostname",
               "server.test", "-connect", port, (char *)NULL);
        _exit(127);
    }
    fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fd >= 0);
    start_echo(loop, &echo, fd, ctx, 0);
    write_all(to[1], "hello\n", 6);
    for (size_t n = 0; n < 6;) {
        CHECK(upcall_poll(loop, 10 * UPCALL_MILLISECOND) >= 0);
        while (n < 6 && is_readable(from[0], 0)) {
            ssize_t now = read(from[0], got + n, 6 - n);
            CHECK(now > 0);
            n += (size_t)now;
        }
    }
    CHECK(memcmp(got, "hello\n", 6) == 0);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    run(loop);
    CHECK(echo.result == -ECONNRESET);
    SSL_CTX_free(ctx);
    free_loop(loop);
}
