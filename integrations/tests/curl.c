/* upcall_curl.h with the real libcurl, against nginx. Its files are random bytes, compared with those on disk. */
#include "upcall_curl.h"

#include "server.h"

enum { FILES = 10, AT_ONCE = 200 };

struct transfer {
    char *url, *path; /* path: the file it must bring, or NULL */
    char *got;
    size_t size;
    unsigned ends;
    CURLcode result;
    bool paused;
};

static size_t on_data(char *data, size_t size, size_t n, void *user) {
    struct transfer *t = user;
    (void)size;
    if (t->paused)
        return CURL_WRITEFUNC_PAUSE;
    CHECK((t->got = realloc(t->got, t->size + n)) != NULL);
    memcpy(t->got + t->size, data, n);
    t->size += n;
    return n;
}

static CURL *new_transfer(struct transfer *t, const char *host, int port, const char *file) {
    CURL *easy = curl_easy_init();
    *t = (struct transfer){0};
    CHECK(easy != NULL && asprintf(&t->url, "http://%s:%d/%s", host, port, file) > 0 &&
          asprintf(&t->path, "%s/www/%s", from_environment("UPCALL_TEST_DIR"), file) > 0);
    curl_easy_setopt(easy, CURLOPT_URL, t->url);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(easy, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    return easy;
}

static void free_transfer(struct transfer *t) {
    free(t->url);
    free(t->path);
    free(t->got);
}

static void check_transfer(struct transfer *t) {
    int fd = open(t->path, O_RDONLY | O_CLOEXEC);
    char *wanted = malloc(t->size + 1);
    CHECK(fd >= 0 && wanted != NULL);
    CHECK_EQ(t->ends, 1);
    CHECK_EQ(t->result, CURLE_OK);
    CHECK_EQ(read(fd, wanted, t->size + 1), t->size);
    CHECK(t->size == 0 || memcmp(wanted, t->got, t->size) == 0);
    free(wanted);
    close(fd);
}

static struct transfer *transfer_of(CURL *easy) {
    struct transfer *t = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &t);
    return t;
}

static unsigned ended;

static void on_done(void *user, CURL *easy, CURLcode result) {
    struct transfer *t = transfer_of(easy);
    (void)user;
    t->ends++;
    t->result = result;
    ended++;
    curl_easy_cleanup(easy);
}

static upcall_curl *new_curl(upcall_loop *loop, upcall_curl_fn done, void *user) {
    upcall_curl *curl;
    CHECK_EQ(upcall_curl_new(loop, done, user, &curl), 0);
    return curl;
}

static void add(upcall_curl *curl, CURL *easy) {
    CHECK_EQ(curl_multi_add_handle(upcall_curl_multi(curl), easy), CURLM_OK);
}

static void end_all(upcall_loop *loop, upcall_curl *curl) {
    upcall_curl_free(curl);
    free_loop(loop);
}

static CURLcode one(const char *host, int port, const char *file, struct transfer *t) {
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    add(curl, new_transfer(t, host, port, file));
    RUN(loop);
    CHECK_EQ(t->ends, 1);
    end_all(loop, curl);
    return t->result;
}

TEST(two_hundred_downloads_at_once) {
    static struct transfer all[AT_ONCE];
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    raise_descriptor_limit(3 * AT_ONCE);
    for (int i = 0; i < AT_ONCE; i++) {
        char file[8];
        snprintf(file, sizeof file, "%d", i % FILES);
        add(curl, new_transfer(&all[i], "127.0.0.1", server_port(), file));
    }
    RUN(loop);
    CHECK_EQ(ended, AT_ONCE);
    end_all(loop, curl);
    for (int i = 0; i < AT_ONCE; i++) {
        check_transfer(&all[i]);
        free_transfer(&all[i]);
    }
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(a_name_is_looked_up_by_curls_own_thread) {
    struct transfer t;
    CHECK_EQ(one("localhost", server_port(), "9", &t), CURLE_OK);
    check_transfer(&t);
    free_transfer(&t);
}

struct series {
    upcall_curl *curl;
    unsigned left;
    long connections;
};

static void on_done_again(void *user, CURL *easy, CURLcode result) {
    struct series *series = user;
    struct transfer *t = transfer_of(easy);
    long connections = 0;
    CHECK_EQ(curl_easy_getinfo(easy, CURLINFO_NUM_CONNECTS, &connections), CURLE_OK);
    series->connections += connections;
    t->result = result;
    t->ends = 1;
    check_transfer(t);
    if (series->left > 0) {
        series->left--;
        t->size = 0;
        add(series->curl, easy);
        return;
    }
    curl_easy_cleanup(easy);
    free_transfer(t);
    ended++;
}

static void run_series(bool reuse) {
    upcall_loop *loop = new_loop();
    struct series series[4];
    struct transfer t[4];
    upcall_curl *curl = new_curl(loop, on_done_again, &series[0]);
    series[0] = (struct series){.curl = curl, .left = 99};
    for (int i = 0; i < 4; i++) {
        CURL *easy = new_transfer(&t[i], "127.0.0.1", server_port(), "3");
        curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, reuse ? 0L : 1L);
        add(curl, easy);
    }
    RUN(loop);
    CHECK_EQ(ended, 4);
    if (reuse)
        CHECK(series[0].connections <= 8); /* four, if nginx and curl agree on keep-alive; never one for each */
    else
        CHECK_EQ(series[0].connections, 103);
    end_all(loop, curl);
}

TEST(a_handle_is_added_again_in_the_callback_and_connections_are_kept) {
    run_series(true);
}

/* Each transfer closes its descriptor, whose number the next one gets, while the adapter still polls the old socket. */
TEST(descriptors_are_closed_and_their_numbers_reused) {
    run_series(false);
}

TEST(a_redirect_is_followed) {
    struct transfer t;
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    CURL *easy = new_transfer(&t, "127.0.0.1", server_port(), "again");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
    add(curl, easy);
    RUN(loop);
    CHECK_EQ(t.result, CURLE_OK);
    CHECK_EQ(t.size, 810009);
    end_all(loop, curl);
    free_transfer(&t);
}

static size_t on_read(char *data, size_t size, size_t n, void *user) {
    size_t *left = user, now = size * n < *left ? size * n : *left;
    memset(data, 'x', now);
    *left -= now;
    return now;
}

TEST(an_upload_waits_until_the_server_takes_it) {
    struct transfer t;
    size_t left = 20000000;
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    CURL *easy = new_transfer(&t, "127.0.0.1", server_port(), "sink");
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)left);
    curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_read);
    curl_easy_setopt(easy, CURLOPT_READDATA, &left);
    add(curl, easy);
    RUN(loop);
    CHECK_EQ(t.result, CURLE_OK);
    CHECK_EQ(left, 0);
    end_all(loop, curl);
    free_transfer(&t);
}

TEST(a_refused_connection_is_an_error) {
    struct transfer t;
    int socket_, port = refusing_port(SOCK_STREAM, &socket_);
    CHECK_EQ(one("127.0.0.1", port, "1", &t), CURLE_COULDNT_CONNECT);
    free_transfer(&t);
}

TEST(an_error_of_http_is_an_error) {
    struct transfer t;
    CHECK_EQ(one("127.0.0.1", server_port(), "nothing", &t), CURLE_HTTP_RETURNED_ERROR);
    free_transfer(&t);
}

TEST(curls_timer_ends_a_slow_transfer) {
    struct transfer t;
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    CURL *easy = new_transfer(&t, "127.0.0.1", server_port(), "slow");
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 300L);
    add(curl, easy);
    RUN(loop);
    CHECK_EQ(t.result, CURLE_OPERATION_TIMEDOUT);
    end_all(loop, curl);
    free_transfer(&t);
}

/* A server that accepts and says nothing: there is nothing but the timer. */
TEST(curls_timer_ends_a_silent_one) {
    struct transfer t;
    struct sockaddr_in address;
    int listener = tcp_listener(&address, 0, 5);
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    CURL *easy = new_transfer(&t, "127.0.0.1", ntohs(address.sin_port), "1");
    upcall_stats stats;
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, 200L);
    add(curl, easy);
    RUN(loop);
    CHECK_EQ(t.result, CURLE_OPERATION_TIMEDOUT);
    CHECK_EQ(upcall_stats_get(loop, &stats), 0);
    CHECK(stats.submitted < 1000); /* it slept meanwhile */
    end_all(loop, curl);
    free_transfer(&t);
    close(listener);
}

static void unpause(upcall_loop *loop, const upcall_event *event) {
    (void)loop;
    transfer_of(event->user)->paused = false;
    CHECK_EQ(curl_easy_pause(event->user, CURLPAUSE_CONT), CURLE_OK);
}

/* curl wants nothing of the socket meanwhile, and says so inside of what it was called for. */
TEST(a_paused_transfer_goes_on) {
    struct transfer t;
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    CURL *easy = new_transfer(&t, "127.0.0.1", server_port(), "9");
    t.paused = true;
    add(curl, easy);
    after_ms(loop, 200, unpause, easy);
    RUN(loop);
    check_transfer(&t);
    end_all(loop, curl);
    free_transfer(&t);
}

struct victim {
    upcall_curl *curl;
    CURL *easy;
};

static void remove_it(upcall_loop *loop, const upcall_event *event) {
    struct victim *victim = event->user;
    (void)loop;
    CHECK_EQ(curl_multi_remove_handle(upcall_curl_multi(victim->curl), victim->easy), CURLM_OK);
    curl_easy_cleanup(victim->easy);
}

TEST(a_transfer_is_removed_in_the_middle) {
    struct transfer t;
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    struct victim victim = {curl, new_transfer(&t, "127.0.0.1", server_port(), "slow")};
    add(curl, victim.easy);
    after_ms(loop, 100, remove_it, &victim);
    RUN(loop);
    CHECK_EQ(t.ends, 0);
    end_all(loop, curl);
    free_transfer(&t);
}

static void stop(upcall_loop *loop, const upcall_event *event) {
    (void)event;
    upcall_stop(loop);
}

/* Some connecting, some receiving, some not yet begun: and then everything ends, in this order or in that. */
static void tear_down(int ms, bool loop_first) {
    struct transfer t[8];
    CURL *easy[8];
    int open_before = open_fd_count();
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    for (int i = 0; i < 8; i++) {
        easy[i] = new_transfer(&t[i], i & 1 ? "localhost" : "127.0.0.1", server_port(), "slow");
        add(curl, easy[i]);
    }
    after_ms(loop, ms, stop, NULL);
    CHECK_EQ(upcall_run(loop), 1);
    if (loop_first)
        free_loop(loop);
    for (int i = 0; i < 8; i++)
        CHECK_EQ(curl_multi_remove_handle(upcall_curl_multi(curl), easy[i]), CURLM_OK);
    upcall_curl_free(curl);
    if (!loop_first)
        free_loop(loop);
    for (int i = 0; i < 8; i++) {
        curl_easy_cleanup(easy[i]);
        CHECK_EQ(t[i].ends, 0);
        free_transfer(&t[i]);
    }
    for (int tries = 0; open_fd_count() != open_before && tries < 500; tries++)
        pause_ms(10); /* curl's threads that look names up, left alone, close what they have */
    CHECK_EQ(open_fd_count(), open_before);
}

TEST(teardown_in_any_order) {
    static const int moments[] = {0, 1, 50};
    for (size_t i = 0; i < COUNT_OF(moments); i++)
        for (int loop_first = 0; loop_first < 2; loop_first++)
            tear_down(moments[i], loop_first);
}

TEST(teardown_of_what_never_ran) {
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    upcall_curl_free(NULL);
    end_all(loop, curl);
    loop = new_loop();
    curl = new_curl(loop, on_done, NULL);
    free_loop(loop);
    upcall_curl_free(curl);
}

static void free_all(void *user, CURL *easy, CURLcode result) {
    struct victim *other = user;
    on_done(NULL, easy, result);
    CHECK_EQ(curl_multi_remove_handle(upcall_curl_multi(other->curl), other->easy), CURLM_OK);
    upcall_curl_free(other->curl);
}

TEST(freed_in_its_own_callback) {
    struct transfer quick, slow;
    upcall_loop *loop = new_loop();
    struct victim other = {0};
    CHECK_EQ(upcall_curl_new(loop, free_all, &other, &other.curl), 0);
    add(other.curl, new_transfer(&quick, "127.0.0.1", server_port(), "1"));
    other.easy = new_transfer(&slow, "127.0.0.1", server_port(), "slow");
    add(other.curl, other.easy);
    RUN(loop);
    check_transfer(&quick);
    CHECK_EQ(slow.ends, 0);
    curl_easy_cleanup(other.easy);
    free_loop(loop);
    free_transfer(&quick);
    free_transfer(&slow);
}

/* More sockets than operations are permitted: what cannot be watched is slower. */
TEST(too_few_operations_are_enough) {
    static struct transfer all[40];
    upcall_config config = default_config();
    config.max_operations = 8;
    upcall_loop *loop = loop_with(&config);
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    for (size_t i = 0; i < COUNT_OF(all); i++)
        add(curl, new_transfer(&all[i], "127.0.0.1", server_port(), i < 38 ? "9" : "slow"));
    RUN(loop);
    CHECK_EQ(ended, COUNT_OF(all));
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        check_transfer(&all[i]);
        free_transfer(&all[i]);
    }
    end_all(loop, curl);
}

TEST(too_few_descriptors_are_errors) {
    static struct transfer all[40];
    upcall_loop *loop = new_loop();
    upcall_curl *curl = new_curl(loop, on_done, NULL);
    unsigned failed = 0;
    for (size_t i = 0; i < COUNT_OF(all); i++)
        add(curl, new_transfer(&all[i], "127.0.0.1", server_port(), "9"));
    limit_descriptors(11);
    RUN(loop);
    unlimit_descriptors();
    CHECK_EQ(ended, COUNT_OF(all));
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        if (all[i].result == CURLE_OK)
            check_transfer(&all[i]);
        else
            failed++;
        free_transfer(&all[i]);
    }
    CHECK(failed > 0); /* those that have no socket */
    end_all(loop, curl);
}

TEST(a_closed_loop_takes_no_transfers) {
    upcall_loop *loop = new_loop();
    upcall_curl *curl = NULL;
    CHECK_EQ(upcall_loop_close(loop, -1), 0);
    CHECK_EQ(upcall_curl_new(loop, on_done, NULL, &curl), -ESHUTDOWN);
    CHECK(curl == NULL);
    free_loop(loop);
}
