/* upcall_ares.h with the real c-ares, against dnsmasq. */
#define CARES_NO_DEPRECATED 1 /* what newer ones have another name for */
#include "upcall_ares.h"

#include "server.h"

#include <arpa/nameser.h>

struct answer {
    unsigned calls;
    int status;
    char address[INET6_ADDRSTRLEN];
    upcall_ares *ares;
    unsigned left;
};

/* A channel that asks 127.0.0.1 at `port` only. */
static upcall_ares *ares_at(upcall_loop *loop, int port, int flags, int timeout_ms, int tries) {
    struct ares_options options = {.flags = flags, .timeout = timeout_ms, .tries = tries};
    struct ares_addr_port_node server = {.family = AF_INET, .udp_port = port, .tcp_port = port};
    char lookups[] = "b"; /* DNS alone, not /etc/hosts */
    upcall_ares *ares;
    options.lookups = lookups;
    CHECK_EQ(upcall_ares_new(loop, &options, ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_LOOKUPS, &ares), 0);
    server.addr.addr4.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQ(ares_set_servers_ports(upcall_ares_channel(ares), &server), ARES_SUCCESS);
    return ares;
}

static upcall_ares *new_ares(upcall_loop *loop, int flags) {
    return ares_at(loop, server_port(), flags, 2000, 3);
}

static void end_all(upcall_loop *loop, upcall_ares *ares) {
    upcall_ares_free(ares);
    free_loop(loop);
}

static void on_address(void *user, int status, int timeouts, struct ares_addrinfo *result) {
    struct answer *answer = user;
    (void)timeouts;
    answer->calls++;
    answer->status = status;
    if (result != NULL && result->nodes != NULL) {
        struct sockaddr_in *in = (struct sockaddr_in *)result->nodes->ai_addr;
        CHECK_EQ(in->sin_family, AF_INET);
        CHECK(inet_ntop(AF_INET, &in->sin_addr, answer->address, sizeof answer->address) != NULL);
    }
    ares_freeaddrinfo(result);
}

static void ask(upcall_ares *ares, const char *name, ares_addrinfo_callback fn, struct answer *answer) {
    struct ares_addrinfo_hints hints = {.ai_family = AF_INET, .ai_flags = ARES_AI_NOSORT};
    ares_getaddrinfo(upcall_ares_channel(ares), name, NULL, &hints, fn, answer);
}

TEST(a_hundred_names_at_once) {
    static struct answer answers[100];
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    upcall_ares *ares = new_ares(loop, 0);
    for (size_t i = 0; i < COUNT_OF(answers); i++) {
        char name[32];
        snprintf(name, sizeof name, "n%zu.all.test", i);
        ask(ares, name, on_address, &answers[i]);
    }
    RUN(loop);
    for (size_t i = 0; i < COUNT_OF(answers); i++) {
        CHECK_EQ(answers[i].calls, 1);
        CHECK_EQ(answers[i].status, ARES_SUCCESS);
        CHECK_STR_EQ(answers[i].address, "127.1.2.3");
    }
    end_all(loop, ares);
    CHECK_EQ(open_fd_count(), open_before);
}

static void ask_again(void *user, int status, int timeouts, struct ares_addrinfo *result) {
    struct answer *answer = user;
    on_address(user, status, timeouts, result);
    CHECK_EQ(status, ARES_SUCCESS);
    CHECK_STR_EQ(answer->address, answer->left & 1 ? "127.0.0.11" : "127.0.0.12");
    if (--answer->left > 0)
        ask(answer->ares, answer->left & 1 ? "one.test" : "two.test", ask_again, answer);
}

/* c-ares closes its socket when the last query ends, and opens another one for the next. */
static void one_after_the_other(int flags) {
    upcall_loop *loop = new_loop();
    struct answer answer = {.ares = new_ares(loop, flags), .left = 201};
    ask(answer.ares, "one.test", ask_again, &answer);
    RUN(loop);
    CHECK_EQ(answer.calls, 201);
    end_all(loop, answer.ares);
}

TEST(two_hundred_names_one_after_the_other) {
    one_after_the_other(0);
}

TEST(two_hundred_names_over_tcp) {
    one_after_the_other(ARES_FLAG_USEVC);
}

TEST(a_name_that_is_not_there) {
    struct answer answer = {0};
    upcall_loop *loop = new_loop();
    upcall_ares *ares = new_ares(loop, 0);
    ask(ares, "nothing.test", on_address, &answer);
    RUN(loop);
    CHECK_EQ(answer.calls, 1);
    CHECK_EQ(answer.status, ARES_ENOTFOUND);
    end_all(loop, ares);
}

static void on_text(void *user, int status, int timeouts, unsigned char *data, int length) {
    struct answer *answer = user;
    struct ares_txt_reply *text;
    (void)timeouts;
    answer->calls++;
    answer->status = status;
    CHECK_EQ(status, ARES_SUCCESS);
    CHECK_EQ(ares_parse_txt_reply(data, length, &text), ARES_SUCCESS);
    CHECK_EQ(text->length, 200);
    ares_free_data(text);
}

TEST(a_record_of_another_type) {
    struct answer answer = {0};
    upcall_loop *loop = new_loop();
    upcall_ares *ares = new_ares(loop, 0);
    ares_query(upcall_ares_channel(ares), "text.test", ns_c_in, ns_t_txt, on_text, &answer);
    RUN(loop);
    CHECK_EQ(answer.calls, 1);
    end_all(loop, ares);
}

/* ---- Time. ---- */

/* A server that takes the queries and says nothing: there is nothing but the timer. */
TEST(a_silent_server_times_out) {
    struct answer answers[2] = {0};
    struct sockaddr_in address;
    int silent = udp_socket(&address);
    upcall_loop *loop = new_loop();
    upcall_ares *ares = ares_at(loop, ntohs(address.sin_port), 0, 100, 2);
    ask(ares, "one.test", on_address, &answers[0]);
    ask(ares, "two.test", on_address, &answers[1]);
    RUN(loop);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(answers[i].calls, 1);
        CHECK_EQ(answers[i].status, ARES_ETIMEOUT);
    }
    end_all(loop, ares);
    close(silent);
}

/* A socket that stays open tells nothing when the next query uses it. */
TEST(a_socket_that_stays_open) {
    struct answer answers[2] = {0};
    struct sockaddr_in address;
    int server = udp_socket(&address);
    upcall_loop *loop = new_loop();
    upcall_ares *ares = ares_at(loop, ntohs(address.sin_port), ARES_FLAG_STAYOPEN, 100, 1);
    for (int i = 0; i < 2; i++) {
        ask(ares, "one.test", on_address, &answers[i]);
        upcall_ares_update(ares);
        while (answers[i].calls == 0)
            CHECK(upcall_poll(loop, -1) >= 0);
        CHECK_EQ(answers[i].status, ARES_ETIMEOUT);
    }
    end_all(loop, ares);
    close(server);
}

TEST(a_refused_query) {
    struct answer answer = {0};
    int socket_, port = refusing_port(SOCK_STREAM, &socket_);
    upcall_loop *loop = new_loop();
    upcall_ares *ares = ares_at(loop, port, ARES_FLAG_USEVC, 2000, 1);
    ask(ares, "one.test", on_address, &answer);
    RUN(loop);
    CHECK_EQ(answer.calls, 1);
    CHECK_EQ(answer.status, ARES_ECONNREFUSED);
    end_all(loop, ares);
}

/* ---- The end. ---- */

static void cancel_all(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    ares_cancel(upcall_ares_channel(event->user));
}

TEST(cancelled_in_the_middle) {
    struct answer answer = {0};
    struct sockaddr_in address;
    int silent = udp_socket(&address);
    upcall_loop *loop = new_loop();
    upcall_ares *ares = ares_at(loop, ntohs(address.sin_port), 0, 60000, 1);
    ask(ares, "one.test", on_address, &answer);
    after_ms(loop, 50, cancel_all, ares);
    RUN(loop);
    CHECK_EQ(answer.calls, 1);
    CHECK_EQ(answer.status, ARES_ECANCELLED);
    end_all(loop, ares);
    close(silent);
}

static void stop(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    upcall_stop(loop);
}

static void tear_down(bool ran, bool loop_first) {
    struct answer answers[2] = {0};
    int open_before = open_fd_count();
    struct sockaddr_in address;
    int silent = udp_socket(&address);
    upcall_loop *loop = new_loop();
    upcall_ares *ares = ares_at(loop, ntohs(address.sin_port), 0, 60000, 1);
    ask(ares, "one.test", on_address, &answers[0]);
    ask(ares, "two.test", on_address, &answers[1]);
    if (ran) {
        after_ms(loop, 20, stop, NULL);
        CHECK_EQ(upcall_run(loop), 1);
    }
    if (loop_first)
        free_loop(loop);
    upcall_ares_free(ares);
    if (!loop_first)
        free_loop(loop);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(answers[i].calls, 1);
        CHECK_EQ(answers[i].status, loop_first ? ARES_ECANCELLED : ARES_EDESTRUCTION);
    }
    close(silent);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(teardown_in_any_order) {
    upcall_ares_free(NULL);
    for (int i = 0; i < 4; i++)
        tear_down(i & 1, i & 2);
}

/* Nothing can be watched: c-ares looks when the time is over, and newer ones then find the answer. */
TEST(too_few_operations_are_no_hang) {
    struct answer answer = {0};
    upcall_config config = default_config();
    config.max_operations = 1; /* the timer's */
    upcall_loop *loop = loop_with(&config);
    upcall_ares *ares = ares_at(loop, server_port(), 0, 100, 2);
    ask(ares, "one.test", on_address, &answer);
    RUN(loop);
    CHECK_EQ(answer.calls, 1);
    CHECK(answer.status == ARES_ETIMEOUT || answer.status == ARES_SUCCESS);
    end_all(loop, ares);
}

TEST(a_closed_loop_is_refused) {
    upcall_loop *loop = new_loop();
    upcall_ares *ares;
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(upcall_ares_new(loop, NULL, 0, &ares), -ESHUTDOWN);
    CHECK(ares == NULL);
    free_loop(loop);
}
