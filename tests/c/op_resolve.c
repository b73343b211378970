/*
 * getaddrinfo with the machine's own resolver. op_resolve_slow.c has one that takes its time.
 */
#include "op_support.h"

#include <netdb.h>

/* What getaddrinfo(3) answers itself, as the operation reports it. */
static int64_t direct(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
    int error = getaddrinfo(node, service, hints, list);
    return error == 0 ? 0 : error == EAI_SYSTEM ? -errno : error - 3000;
}

static bool same_lists(const struct addrinfo *a, const struct addrinfo *b) {
    for (; a && b; a = a->ai_next, b = b->ai_next)
        if (a->ai_family != b->ai_family || a->ai_socktype != b->ai_socktype || a->ai_protocol != b->ai_protocol ||
            a->ai_addrlen != b->ai_addrlen || memcmp(a->ai_addr, b->ai_addr, a->ai_addrlen) != 0 ||
            (a->ai_canonname == NULL) != (b->ai_canonname == NULL) ||
            (a->ai_canonname && strcmp(a->ai_canonname, b->ai_canonname) != 0))
            return false;
    return a == NULL && b == NULL;
}

/* ---- Subject. The list is put into scene->msg.msg_name, which begins as it is. ---- */

static void set_nothing(struct scene *scene) {
    (void)scene;
}

static upcall_op make_lookup(struct scene *scene) {
    char node[] = "127.0.0.1", service[] = "8080";
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    memcpy(scene->data, node, sizeof node);
    memcpy(scene->data + 64, service, sizeof service);
    memcpy(scene->control, &hints, sizeof hints);
    return upcall_op_getaddrinfo((char *)scene->data, (char *)scene->data + 64,
                                 (struct addrinfo *)(void *)scene->control,
                                 (struct addrinfo **)(void *)&scene->msg.msg_name);
}

static void has_found(struct scene *scene, struct record final) {
    struct addrinfo *found = scene->msg.msg_name;
    struct sockaddr_in address;
    CHECK_EQ(final.result, 0);
    CHECK_EQ(final.transferred, 0);
    CHECK(found != NULL && found->ai_next == NULL);
    CHECK_EQ(found->ai_family, AF_INET);
    CHECK_EQ(found->ai_socktype, SOCK_STREAM);
    CHECK_EQ(found->ai_addrlen, sizeof address);
    memcpy(&address, found->ai_addr, sizeof address);
    CHECK_EQ(address.sin_port, htons(8080));
    CHECK_EQ(address.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
    freeaddrinfo(found);
}

static void has_not_looked(struct scene *scene) {
    CHECK(scene->msg.msg_name == NULL);
}

static const struct subject look_up = {.kind = UPCALL_OP_GETADDRINFO, .set_up = set_nothing, .make = make_lookup,
    .done = has_found, .intact = has_not_looked};
PROMISES_IN_MODE(look_up, any, false)

/* ---- Names, arguments. ---- */

TEST(getaddrinfo_is_known) {
    is_known(UPCALL_OP_GETADDRINFO, "getaddrinfo");
}

TEST(getaddrinfo_refuses_strange_fields) {
    struct addrinfo *found;
    refuses_strange_fields(upcall_op_getaddrinfo("127.0.0.1", NULL, NULL, &found), 0);
}

TEST(getaddrinfo_refuses_bad_arguments) {
    static char large[4097];
    struct addrinfo *found = NULL;
    upcall_loop *loop = new_loop();
    memset(large, 'a', sizeof large - 1);
    refused(loop, upcall_op_getaddrinfo("127.0.0.1", "80", NULL, NULL), EINVAL, "out is NULL");
    refused(loop, upcall_op_getaddrinfo(NULL, NULL, NULL, NULL), EINVAL, "out is NULL");
    refused(loop, upcall_op_getaddrinfo(large, "80", NULL, &found), ENAMETOOLONG, "node");
    refused(loop, upcall_op_getaddrinfo("127.0.0.1", large, NULL, &found), ENAMETOOLONG, "service");
    large[4095] = '\0'; /* too long for a name, but that is the resolver's to say */
    CHECK(complete(loop, upcall_op_getaddrinfo(large, "80", NULL, &found)).result <= UPCALL_EAI_BADFLAGS);
    CHECK(found == NULL);
    free_loop(loop);
}

TEST(the_constants_have_a_value_and_a_text) {
    static const struct {
        int ours, theirs;
    } pairs[] = {{UPCALL_EAI_BADFLAGS, EAI_BADFLAGS}, {UPCALL_EAI_NONAME, EAI_NONAME}, {UPCALL_EAI_AGAIN, EAI_AGAIN},
        {UPCALL_EAI_FAIL, EAI_FAIL}, {UPCALL_EAI_FAMILY, EAI_FAMILY}, {UPCALL_EAI_SOCKTYPE, EAI_SOCKTYPE},
        {UPCALL_EAI_SERVICE, EAI_SERVICE}, {UPCALL_EAI_MEMORY, EAI_MEMORY}, {UPCALL_EAI_SYSTEM, EAI_SYSTEM},
        {UPCALL_EAI_OVERFLOW, EAI_OVERFLOW},
#ifdef EAI_NODATA
        {UPCALL_EAI_NODATA, EAI_NODATA},
#endif
#ifdef EAI_ADDRFAMILY
        {UPCALL_EAI_ADDRFAMILY, EAI_ADDRFAMILY},
#endif
    };
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        CHECK_EQ(pairs[i].ours, pairs[i].theirs - 3000);
        CHECK_STR_EQ(upcall_strerror(pairs[i].ours), gai_strerror(pairs[i].theirs));
    }
    CHECK_STR_EQ(upcall_strerror(-EPERM), strerror(EPERM));
    CHECK(strlen(upcall_strerror(-3199)) > 0 && strlen(upcall_strerror(-3000)) > 0);
}

/* ---- Results: those of getaddrinfo(3), whichever the backend. ---- */

TEST(results_are_those_of_getaddrinfo) {
    struct addrinfo stream = {.ai_socktype = SOCK_STREAM};
    struct addrinfo numeric = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
    struct addrinfo passive = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo canon = {.ai_flags = AI_CANONNAME | AI_NUMERICHOST};
    struct addrinfo v4 = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM};
    struct addrinfo v6 = {.ai_family = AF_INET6, .ai_flags = AI_NUMERICHOST};
    struct addrinfo flags = {.ai_flags = 0x40000000}, family = {.ai_family = 77};
    struct addrinfo type = {.ai_socktype = 77}, tcp = {.ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_UDP};
    const struct {
        const char *node, *service;
        const struct addrinfo *hints;
    } all[] = {
        {"127.0.0.1", "80", NULL}, {"127.0.0.1", NULL, NULL}, {NULL, "80", NULL}, {NULL, "80", &stream},
        {NULL, "80", &passive}, {"::1", "443", &numeric}, {"::1", "443", &v6}, {"127.0.0.1", "443", &v6},
        {"127.0.0.1", NULL, &canon}, {"localhost", "80", &stream}, {"localhost", NULL, &v4}, {"localhost", "80", &numeric},
        {"127.0.0.1", "http", &passive}, {"127.0.0.1", "no-such-service", &stream}, {"127.0.0.1", "99999", &stream},
        {"", "80", NULL}, {"127.0.0.1", "", &stream}, {"127.0.0.1", "80", &flags}, {"127.0.0.1", "80", &family},
        {"127.0.0.1", "80", &type}, {"127.0.0.1", "80", &tcp}, {NULL, NULL, NULL}, {NULL, NULL, &passive},
        {"not a name", "80", &numeric},
    };
    upcall_loop *loop = new_loop();
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct addrinfo *ours = (struct addrinfo *)(void *)&ours, *theirs = NULL;
        int64_t expected = direct(all[i].node, all[i].service, all[i].hints, &theirs);
        ends_with(loop, upcall_op_getaddrinfo(all[i].node, all[i].service, all[i].hints, &ours), expected);
        if (expected == 0) {
            CHECK(same_lists(ours, theirs));
            freeaddrinfo(ours);
            freeaddrinfo(theirs);
        } else {
            CHECK(ours == (struct addrinfo *)(void *)&ours); /* written on success only */
        }
    }
    free_loop(loop);
}

/* Which of these a machine answers is its resolver's affair; each is a name that cannot be had. */
TEST(an_unknown_name) {
    struct addrinfo *found = NULL;
    upcall_loop *loop = new_loop();
    ends_with(loop, upcall_op_getaddrinfo(NULL, NULL, NULL, &found), UPCALL_EAI_NONAME);
    int64_t result = complete(loop, upcall_op_getaddrinfo("no-such-host.invalid", "80", NULL, &found)).result;
    CHECK(result == UPCALL_EAI_NONAME || result == UPCALL_EAI_AGAIN || result == UPCALL_EAI_FAIL ||
          result == UPCALL_EAI_NODATA);
    CHECK(found == NULL);
    free_loop(loop);
}

TEST(a_thousand_lookups) {
    enum { COUNT = 1000 };
    static struct addrinfo *found[COUNT];
    static upcall_id ids[COUNT];
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    for (unsigned i = 0; i < COUNT; i++) {
        char node[32], service[32];
        snprintf(node, sizeof node, "10.0.%u.%u", i >> 8, i & 255);
        snprintf(service, sizeof service, "%u", i + 1);
        ids[i] = submit_one(loop, upcall_op_getaddrinfo(node, service, &hints, &found[i]), &rec);
    }
    run_finals(loop, &rec, COUNT);
    check_finals(&rec, ids, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        struct sockaddr_in address;
        CHECK_EQ(final_of(&rec, ids[i]).result, 0);
        memcpy(&address, found[i]->ai_addr, sizeof address);
        CHECK_EQ(ntohl(address.sin_addr.s_addr), 0x0a000000 + i);
        CHECK_EQ(ntohs(address.sin_port), i + 1);
        freeaddrinfo(found[i]);
    }
    free_loop(loop);
    forget(&rec);
}

/* ---- Order. ---- */

TEST(a_lookup_in_a_chain) {
    struct addrinfo *found = NULL;
    for (int good = 0; good < 2; good++) {
        struct recorder rec = {0};
        upcall_id ids[2];
        upcall_loop *loop = new_loop();
        upcall_op ops[2] = {upcall_op_getaddrinfo(good ? "127.0.0.1" : NULL, NULL, NULL, &found), upcall_op_nop()};
        ops[0].flags = UPCALL_LINK;
        submit_many(loop, ops, 2, &rec, ids);
        run_finals(loop, &rec, 2);
        CHECK_EQ(final_of(&rec, ids[0]).result, good ? 0 : UPCALL_EAI_NONAME);
        CHECK_EQ(final_of(&rec, ids[1]).result, good ? 0 : -ECANCELED);
        free_loop(loop);
        forget(&rec);
    }
    freeaddrinfo(found);
}
