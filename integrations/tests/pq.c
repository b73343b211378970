/* upcall_pq.h with the real libpq, against PostgreSQL. */
#include "upcall_pq.h"

#include "server.h"

struct session {
    upcall_loop *loop;
    PGconn *conn;
    upcall_pq *pq;
    unsigned connects;
    int error;                                   /* the last that was told */
    void (*on_ready)(struct session *);          /* connected */
    void (*on_result)(struct session *, PGresult *); /* NULL: the query has ended */
    bool in_query;
    void *data;
    unsigned count;
};

static void end(struct session *s) {
    upcall_pq_free(s->pq);
    PQfinish(s->conn);
    s->pq = NULL;
    s->conn = NULL;
}

static void on_connect(void *user, PGconn *conn, int error) {
    struct session *s = user;
    CHECK(conn == s->conn);
    s->connects++;
    s->error = error;
    if (error < 0)
        return;
    CHECK_EQ(PQstatus(conn), CONNECTION_OK);
    if (s->on_ready != NULL)
        s->on_ready(s);
}

static void on_input(void *user, PGconn *conn, int error) {
    struct session *s = user;
    CHECK(conn == s->conn);
    s->error = error;
    if (error < 0)
        return;
    while (s->conn != NULL && s->in_query && !PQisBusy(conn)) {
        PGresult *result = PQgetResult(conn);
        s->in_query = result != NULL;
        s->on_result(s, result);
        PQclear(result);
    }
}

static void query(struct session *s, const char *text) {
    CHECK_EQ(PQsendQuery(s->conn, text), 1);
    CHECK_EQ(upcall_pq_flush(s->pq), 0);
    s->in_query = true;
}

static void connect_to(upcall_loop *loop, struct session *s, const char *host, const char *ports, const char *database) {
    char info[256];
    snprintf(info, sizeof info, "host=%s port=%s user=upcall dbname=%s sslmode=prefer gssencmode=disable", host, ports, database);
    s->loop = loop;
    s->conn = PQconnectStart(info);
    CHECK(s->conn != NULL);
    CHECK_EQ(upcall_pq_new(loop, s->conn, on_connect, on_input, s, &s->pq), 0);
    CHECK_EQ(upcall_pq_flush(s->pq), -ENOTCONN);
}

static void start_session(upcall_loop *loop, struct session *s) {
    connect_to(loop, s, "127.0.0.1", from_environment("UPCALL_TEST_PORT"), "postgres");
}

static void run_session(struct session *s) {
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    start_session(loop, s);
    RUN(loop);
    CHECK(s->pq == NULL);
    free_loop(loop);
    CHECK_EQ(s->connects, 1);
    CHECK_EQ(open_fd_count(), open_before);
}

/* ---- Queries, one after the other. ---- */

static void sum_result(struct session *s, PGresult *result) {
    char text[100];
    if (result != NULL) {
        CHECK_EQ(PQresultStatus(result), PGRES_TUPLES_OK);
        CHECK_EQ(atoi(PQgetvalue(result, 0, 0)), 2 * s->count);
        return;
    }
    if (++s->count == 200) {
        end(s);
        return;
    }
    snprintf(text, sizeof text, "SELECT %u + %u", s->count, s->count);
    query(s, text);
}

static void sum(struct session *s) {
    query(s, "SELECT 0");
}

TEST(two_hundred_queries_one_after_the_other) {
    struct session s = {.on_ready = sum, .on_result = sum_result};
    run_session(&s);
    CHECK_EQ(s.count, 200);
}

static void big_result(struct session *s, PGresult *result) {
    if (result == NULL) {
        end(s);
        return;
    }
    CHECK_EQ(PQresultStatus(result), PGRES_TUPLES_OK);
    CHECK_EQ(PQntuples(result), 200000);
    CHECK_STR_EQ(PQgetvalue(result, 199999, 0), "200000");
    s->count++;
}

static void big(struct session *s) {
    query(s, "SELECT n, repeat('x', 50) FROM generate_series(1, 200000) AS n");
}

TEST(a_result_of_ten_megabytes) {
    struct session s = {.on_ready = big, .on_result = big_result};
    run_session(&s);
    CHECK_EQ(s.count, 1);
}

enum { LONG = 20000000 };

static void long_result(struct session *s, PGresult *result) {
    if (result == NULL) {
        end(s);
        return;
    }
    CHECK_EQ(PQresultStatus(result), PGRES_TUPLES_OK);
    CHECK_EQ(atoi(PQgetvalue(result, 0, 0)), LONG);
    s->count++;
}

/* More than the socket takes: it goes when the server has taken what is there. */
static void long_query(struct session *s) {
    char *text = malloc(LONG + 1);
    const char *values[] = {text};
    CHECK(text != NULL);
    memset(text, 'y', LONG);
    text[LONG] = '\0';
    CHECK_EQ(PQsendQueryParams(s->conn, "SELECT length($1::text)", 1, NULL, values, NULL, NULL, 0), 1);
    CHECK_EQ(upcall_pq_flush(s->pq), 0);
    s->in_query = true;
    free(text);
}

TEST(a_query_of_twenty_megabytes) {
    struct session s = {.on_ready = long_query, .on_result = long_result};
    run_session(&s);
    CHECK_EQ(s.count, 1);
}

static void wrong_result(struct session *s, PGresult *result) {
    if (result == NULL) {
        end(s);
        return;
    }
    CHECK_EQ(PQresultStatus(result), PGRES_FATAL_ERROR);
    CHECK_STR_EQ(PQresultErrorField(result, PG_DIAG_SQLSTATE), "42601");
    s->count++;
}

static void wrong(struct session *s) {
    query(s, "SELEKT");
}

TEST(an_error_of_sql_is_a_result) {
    struct session s = {.on_ready = wrong, .on_result = wrong_result};
    run_session(&s);
    CHECK_EQ(s.count, 1);
    CHECK_EQ(s.error, 0);
}

/* ---- A pipeline: results follow each other, with a NULL after each. ---- */

#ifdef LIBPQ_HAS_PIPELINING
enum { PIPELINED = 5000 };

static void pipeline_input(void *user, PGconn *conn, int error) {
    struct session *s = user;
    CHECK_EQ(error, 0);
    while (!PQisBusy(conn)) {
        PGresult *result = PQgetResult(conn);
        ExecStatusType status = PQresultStatus(result);
        if (result == NULL) {
            if (!s->in_query)
                return; /* two in a row: nothing more yet */
            s->in_query = false;
            continue;
        }
        s->in_query = true;
        if (status == PGRES_PIPELINE_SYNC) {
            PQclear(result);
            end(s);
            return;
        }
        CHECK_EQ(status, PGRES_TUPLES_OK);
        CHECK_EQ(atoi(PQgetvalue(result, 0, 0)), s->count);
        s->count++;
        PQclear(result);
    }
}

static void pipeline(struct session *s) {
    CHECK_EQ(PQenterPipelineMode(s->conn), 1);
    for (int i = 0; i < PIPELINED; i++) {
        char number[16];
        const char *values[] = {number};
        snprintf(number, sizeof number, "%d", i);
        CHECK_EQ(PQsendQueryParams(s->conn, "SELECT $1::int, repeat('z', 1000)", 1, NULL, values, NULL, NULL, 0), 1);
    }
    CHECK_EQ(PQpipelineSync(s->conn), 1);
    CHECK_EQ(upcall_pq_flush(s->pq), 0);
}

TEST(five_thousand_queries_in_a_pipeline) {
    struct session s = {.on_ready = pipeline};
    char info[256];
    upcall_loop *loop = new_loop();
    snprintf(info, sizeof info, "host=127.0.0.1 port=%d user=upcall dbname=postgres", server_port());
    s.conn = PQconnectStart(info);
    CHECK_EQ(upcall_pq_new(loop, s.conn, on_connect, pipeline_input, &s, &s.pq), 0);
    RUN(loop);
    CHECK_EQ(s.count, PIPELINED);
    free_loop(loop);
}
#endif

/* ---- Notifications. ---- */

static void listener_input(void *user, PGconn *conn, int error) {
    struct session *s = user, *notifier = s->data;
    PGnotify *notify;
    CHECK_EQ(error, 0);
    while (s->in_query && !PQisBusy(conn)) {
        PGresult *result = PQgetResult(conn);
        s->in_query = result != NULL;
        if (result == NULL)
            query(notifier, "NOTIFY news, 'hello'");
        PQclear(result);
    }
    while ((notify = PQnotifies(conn)) != NULL) {
        CHECK_STR_EQ(notify->relname, "news");
        CHECK_STR_EQ(notify->extra, "hello");
        PQfreemem(notify);
        s->count++;
        end(s);
        return;
    }
}

static void notifier_result(struct session *s, PGresult *result) {
    if (result == NULL)
        end(s);
}

static void listen_now(struct session *notifier) {
    query(notifier->data, "LISTEN news");
}

static void begin_notifier(struct session *s) {
    start_session(s->loop, s->data);
}

TEST(a_notification_wakes_an_idle_connection) {
    struct session notifier = {.on_ready = listen_now, .on_result = notifier_result}, listener = {.on_ready = begin_notifier};
    char info[256];
    notifier.data = &listener;
    listener.data = &notifier;
    listener.loop = new_loop();
    snprintf(info, sizeof info, "host=127.0.0.1 port=%d user=upcall dbname=postgres", server_port());
    listener.conn = PQconnectStart(info);
    CHECK_EQ(upcall_pq_new(listener.loop, listener.conn, on_connect, listener_input, &listener, &listener.pq), 0);
    RUN(listener.loop);
    CHECK_EQ(listener.count, 1);
    free_loop(listener.loop);
}

/* ---- What goes wrong. ---- */

TEST(a_refused_connection) {
    struct session s = {0};
    int socket_;
    char port[16];
    upcall_loop *loop = new_loop();
    snprintf(port, sizeof port, "%d", refusing_port(SOCK_STREAM, &socket_));
    connect_to(loop, &s, "127.0.0.1", port, "postgres");
    RUN(loop);
    CHECK_EQ(s.connects, 1);
    CHECK_EQ(s.error, -ECONNRESET);
    CHECK_STR_CONTAINS(PQerrorMessage(s.conn), "refused");
    CHECK_EQ(upcall_pq_flush(s.pq), -ENOTCONN);
    end(&s);
    free_loop(loop);
}

/* libpq closes the first socket, and the second has its number. */
TEST(the_second_of_two_servers) {
    struct session s = {.on_ready = sum, .on_result = sum_result};
    int socket_;
    char ports[32];
    upcall_stats stats;
    upcall_loop *loop = new_loop();
    snprintf(ports, sizeof ports, "%d,%d", refusing_port(SOCK_STREAM, &socket_), server_port());
    connect_to(loop, &s, "127.0.0.1,127.0.0.1", ports, "postgres");
    RUN(loop);
    CHECK_EQ(s.count, 200);
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK(stats.submitted < 200 + 200); /* a poll for each answer, and some to connect; the first socket is forgotten */
    free_loop(loop);
}

TEST(a_database_that_is_not_there) {
    struct session s = {0};
    upcall_loop *loop = new_loop();
    connect_to(loop, &s, "127.0.0.1", from_environment("UPCALL_TEST_PORT"), "nothing");
    RUN(loop);
    CHECK_EQ(s.error, -ECONNRESET);
    CHECK_STR_CONTAINS(PQerrorMessage(s.conn), "nothing");
    end(&s);
    free_loop(loop);
}

TEST(what_has_failed_already_is_refused) {
    upcall_loop *loop = new_loop();
    upcall_pq *pq;
    PGconn *conn = PQconnectStart("port=none");
    CHECK_EQ(upcall_pq_new(loop, conn, on_connect, on_input, NULL, &pq), -EINVAL);
    CHECK_EQ(upcall_pq_new(loop, NULL, on_connect, on_input, NULL, &pq), -EINVAL);
    CHECK(pq == NULL);
    PQfinish(conn);
    free_loop(loop);
}

static void fatal_result(struct session *s, PGresult *result) {
    (void)s;
    (void)result;
}

static void suicide(struct session *s) {
    query(s, "SELECT pg_terminate_backend(pg_backend_pid())");
}

TEST(the_server_ends_the_connection) {
    struct session s = {.on_ready = suicide, .on_result = fatal_result};
    upcall_loop *loop = new_loop();
    start_session(loop, &s);
    RUN(loop);
    CHECK_EQ(s.error, -ECONNRESET);
    CHECK_EQ(PQstatus(s.conn), CONNECTION_BAD);
    end(&s);
    free_loop(loop);
}

TEST(freed_as_soon_as_connected) {
    struct session s = {.on_ready = end};
    run_session(&s);
}

/* While it connects, and while a query is under way. */
static void nap(struct session *s) {
    query(s, "SELECT pg_sleep(60)");
    upcall_stop(s->loop);
}

static void tear_down(bool connected, bool loop_first) {
    struct session s = {.on_ready = nap, .on_result = fatal_result};
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    start_session(loop, &s);
    if (connected)
        CHECK_EQ(upcall_run(loop), 1);
    if (loop_first) {
        free_loop(loop);
        CHECK_EQ(s.error, -ESHUTDOWN);
        CHECK_EQ(s.connects, 1);
        end(&s);
    } else {
        end(&s);
        free_loop(loop);
        CHECK_EQ(s.error, 0);
        CHECK_EQ(s.connects, connected);
    }
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(teardown_in_any_order) {
    upcall_pq_free(NULL);
    for (int i = 0; i < 4; i++)
        tear_down(i & 1, i & 2);
}
