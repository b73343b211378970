/*
 * getaddrinfo with a resolver that takes its time: this program defines getaddrinfo and freeaddrinfo itself, and the
 * library, shared or static, calls these. A lookup waits inside until the test lets it go on, and what was found and what
 * was freed is counted.
 */
#include "op_support.h"

#include <netdb.h>
#include <stdatomic.h>

/* ---- The resolver. ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static int permits;               /* lookups that may go on; a huge number: all */
static atomic_int inside, most;   /* lookups in the resolver, and the most there ever were */
static atomic_int made, freed;    /* lists */
static int answer, answer_errno;  /* what a lookup answers instead of a list */
static char seen_node[64], seen_service[64];
static struct addrinfo seen_hints;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **list) {
    int now = atomic_fetch_add(&inside, 1) + 1;
    pthread_mutex_lock(&lock);
    most = now > most ? now : most;
    while (permits == 0)
        pthread_cond_wait(&bell, &lock);
    permits--;
    /* After the wait: what was passed must still be there. */
    snprintf(seen_node, sizeof seen_node, "%s", node ? node : "(NULL)");
    snprintf(seen_service, sizeof seen_service, "%s", service ? service : "(NULL)");
    memset(&seen_hints, 0, sizeof seen_hints);
    if (hints)
        seen_hints = *hints;
    int error = answer;
    pthread_mutex_unlock(&lock);
    if (error == 0) {
        *list = calloc(1, sizeof **list);
        CHECK(*list != NULL);
        (*list)->ai_family = AF_INET;
        atomic_fetch_add(&made, 1);
    }
    atomic_fetch_sub(&inside, 1);
    errno = answer_errno;
    return error;
}

void freeaddrinfo(struct addrinfo *list) {
    CHECK(list != NULL);
    atomic_fetch_add(&freed, 1);
    free(list);
}

static void let_go_on(int count) {
    pthread_mutex_lock(&lock);
    permits += count;
    pthread_cond_broadcast(&bell);
    pthread_mutex_unlock(&lock);
}

/* Waits, without the loop, until a counter has this value. */
static void wait_for(atomic_int *counter, int value) {
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; *counter != value;) {
        CHECK(now_ns() < limit);
        pause_ms(1);
    }
}

/* Polls until so many lookups are in the resolver. */
static void wait_inside(upcall_loop *loop, int count) {
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS; inside < count;) {
        CHECK(upcall_poll(loop, MS(1)) >= 0);
        CHECK(now_ns() < limit);
    }
}

static upcall_loop *loop_with_workers(uint32_t workers) {
    upcall_config config = default_config();
    config.workers = workers;
    return loop_with(&config);
}

/* What the program passes, in memory of its own that is made unreadable when the operation has ended. */
struct page {
    char node[32], service[32];
    struct addrinfo hints;
    struct addrinfo *found;
};

static struct page *new_page(void) {
    struct page *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    strcpy(page->node, "host.example");
    strcpy(page->service, "smtp");
    page->hints = (struct addrinfo){.ai_flags = AI_CANONNAME, .ai_family = AF_INET6, .ai_socktype = SOCK_DGRAM,
                                    .ai_protocol = IPPROTO_UDP};
    page->found = (struct addrinfo *)(void *)page;
    return page;
}

static upcall_op lookup_of(struct page *page) {
    return upcall_op_getaddrinfo(page->node, page->service, &page->hints, &page->found);
}

static void forbid(struct page *page) {
    CHECK(page->found == (struct addrinfo *)(void *)page); /* written on success only */
    CHECK(mprotect(page, 4096, PROT_NONE) == 0);
}

/* ---- The arguments are copied. ---- */

TEST(what_a_lookup_works_on_is_copied) {
    struct recorder rec = {0};
    struct page *page = new_page();
    upcall_loop *loop = new_loop();
    submit_one(loop, lookup_of(page), &rec);
    memset(page->node, 'x', sizeof page->node - 1);
    memset(page->service, 'x', sizeof page->service - 1);
    memset(&page->hints, 0x55, sizeof page->hints);
    wait_inside(loop, 1);
    let_go_on(1);
    run_finals(loop, &rec, 1);
    CHECK_EQ(rec.events[0].result, 0);
    CHECK_STR_EQ(seen_node, "host.example");
    CHECK_STR_EQ(seen_service, "smtp");
    CHECK_EQ(seen_hints.ai_flags, AI_CANONNAME);
    CHECK_EQ(seen_hints.ai_family, AF_INET6);
    CHECK_EQ(seen_hints.ai_socktype, SOCK_DGRAM);
    CHECK_EQ(seen_hints.ai_protocol, IPPROTO_UDP);
    CHECK(seen_hints.ai_addr == NULL && seen_hints.ai_canonname == NULL && seen_hints.ai_next == NULL);
    CHECK_EQ(freed, 0); /* the list is the program's */
    freeaddrinfo(page->found);
    free_loop(loop);
    CHECK_EQ(freed, 1);
    forget(&rec);
}

/* ---- Results that need a look. ---- */

/* EAI_SYSTEM is the errno it left, but never one that guarantee 5 rules out, and never success. */
TEST(errors_of_the_system) {
    static const struct {
        int answer, errno_;
        int64_t result;
    } all[] = {{EAI_SYSTEM, EMFILE, -EMFILE}, {EAI_SYSTEM, ENOMEM, -ENOMEM}, {EAI_SYSTEM, EACCES, -EACCES},
        {EAI_SYSTEM, EAGAIN, UPCALL_EAI_AGAIN}, {EAI_SYSTEM, EINPROGRESS, UPCALL_EAI_AGAIN},
        {EAI_SYSTEM, 0, UPCALL_EAI_SYSTEM}, {EAI_NONAME, EMFILE, UPCALL_EAI_NONAME},
        {EAI_AGAIN, EAGAIN, UPCALL_EAI_AGAIN}, {EAI_MEMORY, 0, UPCALL_EAI_MEMORY}, {-105, 0, -3105}};
    struct addrinfo *found = NULL;
    upcall_loop *loop = new_loop();
    let_go_on(1000);
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        answer = all[i].answer;
        answer_errno = all[i].errno_;
        ends_with(loop, upcall_op_getaddrinfo("a", NULL, NULL, &found), all[i].result);
    }
    CHECK(found == NULL);
    free_loop(loop);
}

/* ---- Given up: it ends at once, although its thread is still in the resolver. ---- */

enum { CANCEL, DEADLINE, CANCEL_ALL, CLOSE, WAYS };

TEST(a_lookup_that_is_given_up_ends_at_once) {
    for (int way = CANCEL; way < WAYS; way++) {
        struct recorder rec = {0};
        struct page *page = new_page();
        upcall_loop *loop = new_loop();
        made = freed = 0;
        upcall_op op = lookup_of(page);
        op.timeout_ns = way == DEADLINE ? 200 * UPCALL_MILLISECOND : 0;
        uint64_t begun = now_ns();
        upcall_id id = submit_one(loop, op, &rec);
        if (way != DEADLINE)
            wait_inside(loop, 1);
        if (way == CANCEL)
            CHECK_EQ(upcall_cancel(loop, id), 0);
        if (way == CANCEL_ALL)
            CHECK_EQ(upcall_cancel_all(loop), 1);
        if (way == CLOSE)
            CHECK_EQ(upcall_loop_close(loop, -1), 0);
        run_finals(loop, &rec, 1);
        CHECK_EQ(rec.events[0].result, way == DEADLINE ? -ETIMEDOUT : -ECANCELED);
        CHECK_EQ(rec.events[0].flags, way == DEADLINE ? UPCALL_EXPIRED : 0);
        if (way == DEADLINE)
            CHECK(now_ns() - begun >= 200 * UPCALL_MILLISECOND);
        wait_for(&inside, 1); /* the thread is still there */
        CHECK_EQ(upcall_cancel(loop, id), -ENOENT);
        forbid(page);
        let_go_on(1);
        wait_for(&freed, 1); /* what it found was the library's to free */
        CHECK_EQ(made, 1);
        CHECK_STR_EQ(seen_node, "host.example");
        if (way != CLOSE)
            no_more(loop, &rec);
        free_loop(loop);
        forget(&rec);
    }
}

/* One that waits for a thread never runs. */
TEST(a_lookup_that_has_not_begun_never_does) {
    struct recorder rec = {0};
    struct page *first = new_page(), *second = new_page();
    upcall_loop *loop = loop_with_workers(2);
    upcall_id running = submit_one(loop, lookup_of(first), &rec);
    wait_inside(loop, 1);
    upcall_id waiting = submit_one(loop, lookup_of(second), &rec);
    start_all(loop);
    CHECK_EQ(upcall_cancel(loop, waiting), 0);
    run_finals(loop, &rec, 1);
    CHECK_EQ(final_of(&rec, waiting).result, -ECANCELED);
    forbid(second);
    let_go_on(2);
    run_finals(loop, &rec, 2);
    CHECK_EQ(final_of(&rec, running).result, 0);
    freeaddrinfo(first->found);
    free_loop(loop);
    CHECK_EQ(made, 1);
    CHECK_EQ(freed, 1);
    CHECK_EQ(permits, 1);
    forget(&rec);
}

/* A failure that comes too late is nobody's, either. */
TEST(a_late_failure_is_dropped) {
    struct recorder rec = {0};
    upcall_loop *loop = new_loop();
    struct page *page = new_page();
    upcall_id id = submit_one(loop, lookup_of(page), &rec);
    wait_inside(loop, 1);
    CHECK_EQ(upcall_cancel(loop, id), 0);
    run_finals(loop, &rec, 1);
    forbid(page);
    answer = EAI_NONAME;
    let_go_on(1);
    wait_for(&inside, 0);
    no_more(loop, &rec);
    free_loop(loop);
    CHECK_EQ(made, 0);
    CHECK_EQ(freed, 0);
    forget(&rec);
}

/* The slot and its thread serve others, before and after the given-up one returns. */
TEST(the_loop_goes_on_after_a_lookup_was_given_up) {
    struct recorder rec = {0};
    upcall_loop *loop = loop_with_workers(3);
    struct page *page = new_page();
    for (int round = 1; round <= 20; round++) {
        struct addrinfo *found = NULL;
        upcall_id id = submit_one(loop, lookup_of(page), &rec);
        wait_inside(loop, 1);
        CHECK_EQ(upcall_cancel(loop, id), 0);
        run_finals(loop, &rec, (size_t)round);
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        struct recorder next = {0}; /* the other computing thread has this one */
        submit_one(loop, upcall_op_getaddrinfo("b", NULL, NULL, &found), &next);
        wait_inside(loop, 2);
        let_go_on(2);
        run_finals(loop, &next, 1);
        CHECK_EQ(next.events[0].result, 0);
        freeaddrinfo(found);
        wait_for(&inside, 0);
        forget(&next);
    }
    wait_for(&freed, 40);
    CHECK_EQ(made, 40);
    free_loop(loop);
    forget(&rec);
}

/* ---- The end of the loop does not wait for the resolver. ---- */

TEST(the_end_of_the_loop_does_not_wait_for_a_lookup) {
    SKIP_UNDER_THREAD_SANITIZER();
    warm_up();
    int before = open_fd_count();
    for (int given_up = 0; given_up < 2; given_up++) {
        struct recorder rec = {0};
        struct page *page = new_page();
        upcall_loop *loop = loop_with_workers(2);
        made = freed = 0;
        upcall_id id = submit_one(loop, lookup_of(page), &rec);
        wait_inside(loop, 1);
        if (given_up) {
            CHECK_EQ(upcall_cancel(loop, id), 0);
            run_finals(loop, &rec, 1);
        }
        free_loop(loop); /* a free that waited would never come back: nobody lets the lookup go on */
        CHECK_EQ(final_of(&rec, id).result, -ECANCELED);
        CHECK_EQ(inside, 1);
        CHECK_EQ(open_fd_count(), before); /* the thread keeps nothing of the loop open */
        forbid(page);
        let_go_on(1);
        wait_for(&freed, 1);
        CHECK_EQ(made, 1);
        forget(&rec);
    }
    /* Such a thread ends when its lookup has. */
    for (uint64_t limit = now_ns() + (uint64_t)PATIENCE_NS;;) {
        DIR *tasks = opendir("/proc/self/task");
        int count = 0;
        CHECK(tasks != NULL);
        for (struct dirent *entry; (entry = readdir(tasks)) != NULL;)
            count += entry->d_name[0] != '.';
        closedir(tasks);
        if (count == 1)
            break;
        CHECK(now_ns() < limit);
        pause_ms(5);
    }
}

/* Works are still waited for, also beside a lookup that is not. */
static atomic_int work_done;

static int64_t work_for_a_while(void *arg) {
    (void)arg;
    pause_ms(50);
    return atomic_fetch_add(&work_done, 1);
}

TEST(the_end_of_the_loop_waits_for_works_beside_a_lookup) {
    struct recorder rec = {0};
    struct page *page = new_page();
    upcall_loop *loop = loop_with_workers(3);
    submit_one(loop, lookup_of(page), &rec);
    wait_inside(loop, 1);
    upcall_id work = submit_one(loop, upcall_op_work(work_for_a_while, NULL), &rec);
    for (int i = 0; i < 5; i++)
        CHECK(upcall_poll(loop, MS(1)) >= 0);
    free_loop(loop);
    CHECK_EQ(final_of(&rec, work).result == -ECANCELED ? 0 : 1, work_done);
    CHECK_EQ(rec.finals, 2);
    forbid(page);
    let_go_on(1);
    wait_for(&freed, 1);
    forget(&rec);
}

/* An owner that exits does not wait, either; whoever frees the loop is told. */
static void *own_and_exit(void *arg) {
    upcall_loop *loop = arg;
    wait_inside(loop, 1);
    return NULL;
}

TEST(an_owner_that_exits_does_not_wait_for_a_lookup) {
    struct recorder rec = {0};
    struct page *page = new_page();
    upcall_loop *loop = new_loop();
    upcall_id id = submit_one(loop, lookup_of(page), &rec);
    join(start(own_and_exit, loop));
    CHECK_EQ(upcall_loop_free(loop), 0);
    CHECK_EQ(final_of(&rec, id).result, -EOWNERDEAD);
    forbid(page);
    let_go_on(1);
    wait_for(&freed, 1);
    CHECK_EQ(made, 1);
    forget(&rec);
}

/* A list in a record that nobody reaped goes with the loop; one that was reaped is the program's. */
TEST(a_list_that_nobody_reaped_is_freed_with_the_loop) {
    for (size_t reaped = 0; reaped < 3; reaped++) {
        struct addrinfo *found[2] = {NULL, NULL};
        upcall_event event;
        upcall_loop *loop = new_loop();
        made = freed = 0;
        for (int i = 0; i < 2; i++) {
            upcall_op op = upcall_op_getaddrinfo("a", NULL, NULL, &found[i]);
            CHECK_EQ(upcall_submit(loop, &op, 1, NULL), 0);
            let_go_on(1);
            while (in_flight(loop) > 0)
                CHECK(upcall_poll(loop, 0) >= 0);
        }
        for (size_t i = 0; i < reaped; i++) {
            CHECK_EQ(upcall_reap(loop, &event, 1), 1);
            CHECK_EQ(event.result, 0);
            CHECK(event.reserved[0] == 0 && event.reserved[1] == 0);
        }
        free_loop(loop);
        CHECK_EQ(made, 2);
        CHECK_EQ(freed, 2 - (int)reaped);
        for (size_t i = 0; i < reaped; i++)
            freeaddrinfo(found[i]);
    }
}

/* ---- Many. ---- */

/* Lookups never take the last thread of the pool: a file read that needs one finds it. One that was given up is replaced. */
TEST(files_find_a_thread_while_lookups_take_long) {
    enum { LOOKUPS = 200 };
    static struct addrinfo *found[LOOKUPS];
    struct recorder rec = {0};
    upcall_id ids[LOOKUPS];
    char line[5];
    upcall_loop *loop = loop_with_workers(2);
    for (size_t i = 0; i < LOOKUPS; i++)
        ids[i] = submit_one(loop, upcall_op_getaddrinfo("a", NULL, NULL, &found[i]), &rec);
    wait_inside(loop, 1);
    CHECK_EQ(upcall_cancel(loop, ids[0]), 0);
    run_finals(loop, &rec, 1);
    int file = temp_file(100), status = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    for (int round = 0; round < 10; round++) {
        ends_with(loop, upcall_op_fsync(file), 0);
        ends_with(loop, upcall_op_pread(status, line, sizeof line, 0), 5);
        ends_with(loop, upcall_op_pwrite(file, "abc", 3, 10), 3);
    }
    CHECK_EQ(rec.count, 1);
    let_go_on(LOOKUPS);
    run_finals(loop, &rec, LOOKUPS);
    check_finals(&rec, ids, LOOKUPS);
    for (size_t i = 1; i < LOOKUPS; i++) {
        CHECK_EQ(final_of(&rec, ids[i]).result, 0);
        freeaddrinfo(found[i]);
    }
    CHECK_EQ(most, 2); /* of two threads, one may look up, and the one that was given up */
    free_loop(loop);
    wait_for(&freed, LOOKUPS);
    CHECK_EQ(made, LOOKUPS);
    close(file);
    close(status);
    forget(&rec);
}

/* Each lookup ends once, with its result or cancelled, and each list is freed once, by whom it belongs to. */
TEST(lookups_that_race_with_cancel) {
    enum { COUNT = 50, ROUNDS = 100 };
    static struct addrinfo *found[COUNT];
    upcall_loop *loop = loop_with_workers(4);
    let_go_on(1000000);
    for (int round = 0; round < ROUNDS; round++) {
        struct recorder rec = {0};
        upcall_op ops[COUNT];
        upcall_id ids[COUNT];
        for (size_t i = 0; i < COUNT; i++) {
            found[i] = NULL;
            ops[i] = upcall_op_getaddrinfo("a", "b", NULL, &found[i]);
        }
        submit_many(loop, ops, COUNT, &rec, ids);
        for (int turn = round % 4; turn > 0; turn--)
            CHECK(upcall_poll(loop, 0) >= 0);
        for (size_t i = 0; i < COUNT; i++) {
            int rc = upcall_cancel(loop, ids[i]);
            CHECK(rc == 0 || rc == -ENOENT);
        }
        run_finals(loop, &rec, COUNT);
        check_finals(&rec, ids, COUNT);
        for (size_t i = 0; i < COUNT; i++) {
            int64_t result = final_of(&rec, ids[i]).result;
            CHECK(result == 0 || result == -ECANCELED);
            CHECK_EQ(found[i] != NULL, result == 0);
            if (found[i])
                freeaddrinfo(found[i]);
        }
        forget(&rec);
    }
    free_loop(loop);
    wait_for(&inside, 0);
    wait_for(&freed, made);
}

/* Loops that end while lookups run, again and again. */
TEST(loops_that_end_while_lookups_run) {
    enum { COUNT = 6, ROUNDS = 50 };
    struct addrinfo *found[COUNT];
    int told = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct recorder rec = {0};
        upcall_loop *loop = loop_with_workers(4);
        for (size_t i = 0; i < COUNT; i++) {
            found[i] = NULL;
            submit_one(loop, upcall_op_getaddrinfo("a", "b", NULL, &found[i]), &rec);
        }
        start_all(loop);
        let_go_on(round % 4);
        for (int turn = round % 3; turn > 0; turn--)
            CHECK(upcall_poll(loop, MS(1)) >= 0);
        free_loop(loop);
        CHECK_EQ(rec.finals, COUNT);
        for (size_t i = 0; i < COUNT; i++)
            if (found[i]) {
                freeaddrinfo(found[i]);
                told++;
            }
        forget(&rec);
    }
    let_go_on(1000000);
    wait_for(&inside, 0);
    wait_for(&freed, made);
    CHECK(told <= made);
}
