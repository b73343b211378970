/* upcall_hiredis.h with the real hiredis, against redis-server. */
#include "upcall_hiredis.h"

#include "server.h"

enum { COMMANDS = 10000 };

struct client {
    redisAsyncContext *redis;
    unsigned replies, nulls, connects, disconnects;
    int connect_status, disconnect_status;
};

static void on_connect(const redisAsyncContext *redis, int status) {
    struct client *client = redis->data;
    client->connects++;
    client->connect_status = status;
}

static void on_disconnect(const redisAsyncContext *redis, int status) {
    struct client *client = redis->data;
    client->disconnects++;
    client->disconnect_status = status;
}

static redisAsyncContext *attach(upcall_loop *loop, struct client *client, int port) {
    redisAsyncContext *redis = redisAsyncConnect("127.0.0.1", port);
    CHECK(redis != NULL);
    CHECK_EQ(redis->err, 0);
    *client = (struct client){.redis = redis};
    redis->data = client;
    CHECK_EQ(upcall_hiredis_attach(loop, redis), 0);
    CHECK_EQ(redisAsyncSetConnectCallback(redis, on_connect), REDIS_OK);
    CHECK_EQ(redisAsyncSetDisconnectCallback(redis, on_disconnect), REDIS_OK);
    return redis;
}

static void count(redisAsyncContext *redis, void *reply, void *user) {
    struct client *client = redis->data;
    (void)user;
    client->replies++;
    client->nulls += reply == NULL;
}

static void on_ok(redisAsyncContext *redis, void *reply, void *user) {
    redisReply *r = reply;
    CHECK(r != NULL && r->type == REDIS_REPLY_STATUS);
    CHECK_STR_EQ(r->str, "OK");
    count(redis, reply, user);
}

static void disconnect(redisAsyncContext *redis, void *reply, void *user) {
    count(redis, reply, user);
    redisAsyncDisconnect(redis);
}

static void on_number(redisAsyncContext *redis, void *reply, void *user) {
    redisReply *r = reply;
    char wanted[32];
    CHECK(r != NULL && r->type == REDIS_REPLY_STRING);
    snprintf(wanted, sizeof wanted, "value %d", (int)(intptr_t)user);
    CHECK_STR_EQ(r->str, wanted);
    count(redis, reply, user);
}

TEST(ten_thousand_commands_in_a_pipeline) {
    struct client client;
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = attach(loop, &client, server_port());
    for (int i = 0; i < COMMANDS; i++)
        CHECK_EQ(redisAsyncCommand(redis, on_ok, NULL, "SET key:%d %s", i, "none"), REDIS_OK);
    for (int i = 0; i < COMMANDS; i++) {
        char value[32];
        snprintf(value, sizeof value, "value %d", i);
        CHECK_EQ(redisAsyncCommand(redis, on_ok, NULL, "SET key:%d %s", i, value), REDIS_OK);
        CHECK_EQ(redisAsyncCommand(redis, on_number, (void *)(intptr_t)i, "GET key:%d", i), REDIS_OK);
    }
    redisAsyncDisconnect(redis); /* when all replies have come */
    RUN(loop);
    CHECK_EQ(client.replies, 3 * COMMANDS);
    CHECK_EQ(client.nulls, 0);
    CHECK_EQ(client.connects, 1);
    CHECK_EQ(client.connect_status, REDIS_OK);
    CHECK_EQ(client.disconnects, 1);
    CHECK_EQ(client.disconnect_status, REDIS_OK);
    free_loop(loop);
    CHECK_EQ(open_fd_count(), open_before);
}

static void ping_pong(redisAsyncContext *redis, void *reply, void *user) {
    unsigned *left = user;
    count(redis, reply, user);
    if (--*left > 0)
        CHECK_EQ(redisAsyncCommand(redis, ping_pong, left, "PING"), REDIS_OK);
    else
        redisAsyncDisconnect(redis);
}

TEST(each_reply_asks_for_the_next) {
    struct client clients[10];
    unsigned left[10];
    upcall_loop *loop = new_loop();
    for (int i = 0; i < 10; i++) {
        left[i] = 200;
        CHECK_EQ(redisAsyncCommand(attach(loop, &clients[i], server_port()), ping_pong, &left[i], "PING"), REDIS_OK);
    }
    RUN(loop);
    for (int i = 0; i < 10; i++)
        CHECK_EQ(clients[i].replies, 200);
    free_loop(loop);
}

static char big[20000000];

static void on_big(redisAsyncContext *redis, void *reply, void *user) {
    redisReply *r = reply;
    CHECK(r != NULL && r->type == REDIS_REPLY_STRING && (size_t)r->len == sizeof big && has_pattern(r->str, sizeof big, 7));
    disconnect(redis, reply, user);
}

/* More than the sockets take: hiredis wants to write again and again. */
TEST(a_value_of_twenty_megabytes) {
    struct client client;
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = attach(loop, &client, server_port());
    fill_pattern(big, sizeof big, 7);
    CHECK_EQ(redisAsyncCommand(redis, on_ok, NULL, "SET big %b", big, sizeof big), REDIS_OK);
    CHECK_EQ(redisAsyncCommand(redis, on_big, NULL, "GET big"), REDIS_OK);
    RUN(loop);
    CHECK_EQ(client.replies, 2);
    free_loop(loop);
}

TEST(commands_before_it_is_attached) {
    struct client client = {0};
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = redisAsyncConnect("127.0.0.1", server_port());
    CHECK(redis != NULL);
    redis->data = &client;
    CHECK_EQ(redisAsyncCommand(redis, disconnect, NULL, "PING"), REDIS_OK);
    CHECK_EQ(upcall_hiredis_attach(loop, redis), 0);
    CHECK_EQ(upcall_hiredis_attach(loop, redis), -EBUSY);
    RUN(loop);
    CHECK_EQ(client.replies, 1);
    CHECK_EQ(client.nulls, 0);
    free_loop(loop);
}

static void free_it(redisAsyncContext *redis, void *reply, void *user) {
    count(redis, reply, user);
    if (reply != NULL)
        redisAsyncFree(redis);
}

TEST(freed_in_a_reply) {
    struct client client;
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = attach(loop, &client, server_port());
    for (int i = 0; i < 10; i++)
        CHECK_EQ(redisAsyncCommand(redis, free_it, NULL, "PING"), REDIS_OK);
    RUN(loop);
    CHECK_EQ(client.replies, 10);
    CHECK_EQ(client.nulls, 9);
    CHECK_EQ(client.disconnects, 1);
    free_loop(loop);
}

TEST(a_refused_connection) {
    struct client client;
    int socket_, port = refusing_port(SOCK_STREAM, &socket_);
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = attach(loop, &client, port);
    CHECK_EQ(redisAsyncCommand(redis, count, NULL, "PING"), REDIS_OK);
    RUN(loop);
    CHECK_EQ(client.connects, 1);
    CHECK_EQ(client.connect_status, REDIS_ERR);
    CHECK_EQ(client.nulls, 1);
    free_loop(loop);
}

TEST(the_server_ends_the_connection) {
    struct client client;
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = attach(loop, &client, server_port());
    CHECK_EQ(redisAsyncCommand(redis, count, NULL, "QUIT"), REDIS_OK);
    RUN(loop);
    CHECK_EQ(client.replies, 1);
    CHECK_EQ(client.disconnects, 1);
    CHECK_EQ(client.disconnect_status, REDIS_ERR);
    free_loop(loop);
}

static void on_message(redisAsyncContext *redis, void *reply, void *user) {
    redisReply *r = reply;
    redisAsyncContext *publisher = user;
    if (r == NULL)
        return; /* the context ends */
    CHECK(r->type == REDIS_REPLY_ARRAY && r->elements == 3);
    if (strcmp(r->element[0]->str, "subscribe") == 0) {
        CHECK_EQ(redisAsyncCommand(publisher, disconnect, NULL, "PUBLISH news %s", "hello"), REDIS_OK);
    } else {
        CHECK_STR_EQ(r->element[2]->str, "hello");
        count(redis, reply, NULL);
        redisAsyncFree(redis);
    }
}

TEST(a_message_to_a_subscriber) {
    struct client reader, writer;
    upcall_loop *loop = new_loop();
    redisAsyncContext *publisher = attach(loop, &writer, server_port());
    redisAsyncContext *subscriber = attach(loop, &reader, server_port());
    CHECK_EQ(redisAsyncCommand(subscriber, on_message, publisher, "SUBSCRIBE news"), REDIS_OK);
    RUN(loop);
    CHECK_EQ(reader.replies, 1);
    CHECK_EQ(writer.replies, 1);
    free_loop(loop);
}

static void stop(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    upcall_stop(loop);
}

/* One that connects, one that waits for a reply, one that is idle. */
static void tear_down(int ms, bool loop_first) {
    struct client connecting, waiting, idle;
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    attach(loop, &waiting, server_port());
    attach(loop, &idle, server_port());
    CHECK_EQ(redisAsyncCommand(waiting.redis, count, NULL, "BLPOP nothing 0"), REDIS_OK);
    after_ms(loop, ms, stop, NULL);
    CHECK_EQ(upcall_run(loop), 1);
    attach(loop, &connecting, server_port());
    CHECK_EQ(redisAsyncCommand(connecting.redis, count, NULL, "PING"), REDIS_OK);
    if (!loop_first) {
        redisAsyncFree(connecting.redis);
        redisAsyncFree(waiting.redis);
        redisAsyncFree(idle.redis);
    }
    free_loop(loop); /* which frees the contexts */
    CHECK_EQ(connecting.nulls, 1);
    CHECK_EQ(waiting.nulls, 1);
    CHECK_EQ(idle.disconnects, idle.connects);
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(teardown_in_any_order) {
    for (int ms = 0; ms < 100; ms += 50) {
        tear_down(ms, false);
        tear_down(ms, true);
    }
}

static void ignore(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    (void)event;
}

/* With room for reading, but not for writing as well. */
TEST(too_few_operations_are_errors) {
    struct client client;
    upcall_config config = default_config();
    config.max_operations = 2;
    upcall_loop *loop = loop_with(&config);
    redisAsyncContext *redis = attach(loop, &client, server_port());
    upcall_op sleep = upcall_op_sleep(3600 * UPCALL_SECOND);
    CHECK_EQ(redisAsyncCommand(redis, count, NULL, "PING"), REDIS_OK);
    while (client.replies == 0)
        CHECK(upcall_poll(loop, -1) >= 0);
    sleep.callback = ignore;
    CHECK_EQ(upcall_submit(loop, &sleep, 1, NULL), 0);
    CHECK_EQ(redisAsyncCommand(redis, count, NULL, "PING"), REDIS_OK); /* whose write cannot be waited for */
    while (client.disconnects == 0)
        CHECK(upcall_poll(loop, -1) >= 0);
    CHECK_EQ(client.replies, 2);
    CHECK_EQ(client.nulls, 1);
    free_loop(loop);
}

#if HIREDIS_MAJOR >= 1
TEST(a_command_that_takes_too_long) {
    struct client client;
    upcall_loop *loop = new_loop();
    redisAsyncContext *redis = attach(loop, &client, server_port());
    CHECK_EQ(redisAsyncSetTimeout(redis, (struct timeval){.tv_usec = 200000}), REDIS_OK);
    CHECK_EQ(redisAsyncCommand(redis, count, NULL, "BLPOP nothing 0"), REDIS_OK);
    RUN(loop);
    CHECK_EQ(client.nulls, 1);
    CHECK_EQ(client.disconnect_status, REDIS_ERR);
    free_loop(loop);
}
#endif
