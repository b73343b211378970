/*
 * A loop inside another loop.
 *
 * A program that has its own poll(2) loop (a GUI, a server that grew up without Upcall) adds one descriptor to it:
 * upcall_fd() is readable whenever upcall_poll(loop, 0) would do anything, be it a completion, a timer that is due, a
 * post from another thread, or an operation submitted since the last turn. The outer loop keeps handling its own
 * descriptors beside it, and goes to sleep when neither has anything to do.
 *
 * Here a thread posts to the inner loop and writes lines to a pipe that the outer loop reads itself. For every line the
 * outer loop submits an operation; nobody calls upcall_poll() for that: the descriptor says when it is time. Besides, a
 * timer ticks. The program ends when everything has arrived, and fails if the outer loop was woken for nothing.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <upcall.h>

#define TICK_NS (20 * UPCALL_MILLISECOND)

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    TICKS = 10,
    POSTS = 10,
    LINES = 5,
    PATIENCE_MS = 10000,
    WAKEUPS_MAX = 1000, /* a descriptor that is readable for nothing makes millions */
};

struct program {
    upcall_loop *loop;
    int pipe_in, pipe_out; /* the outer loop's own descriptor, and the end the thread writes to */
    upcall_id ticker;
    uint64_t ticks, posts, lines, answers;
    bool ticker_ended;
    uint64_t wakeups;
    uint64_t started_ns;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "embed: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
        die("clock_gettime", strerror(errno));
    return (uint64_t)now.tv_sec * UPCALL_SECOND + (uint64_t)now.tv_nsec;
}

/* Only a mistake in the program, or memory running out, makes a submit fail: no reason to go on. */
static upcall_id submit(upcall_loop *loop, upcall_op op)
{
    upcall_id id;

    if (upcall_submit(loop, &op, 1, &id) < 0)
        die("upcall_submit", upcall_last_error());
    return id;
}

static void say(const struct program *program, const char *who, const char *what, uint64_t number)
{
    printf("%7.1f ms  %-10s  %s %llu\n", (double)(now_ns() - program->started_ns) / UPCALL_MILLISECOND, who, what,
           (unsigned long long)number);
}

/* ---- the inner loop ---- */

static void on_tick(upcall_loop *loop, const upcall_event *event)
{
    struct program *program = event->user;
    int rc;

    if ((event->flags & UPCALL_MORE) == 0) {
        program->ticker_ended = true;
        if (event->result < 0 && event->result != -ECANCELED)
            die("tick", upcall_strerror((int)event->result));
        return;
    }
    if (program->ticks >= TICKS)
        return; /* collected before the cancel took effect */
    program->ticks += (uint64_t)event->result; /* periods: more than one when we were late */
    say(program, "inner loop", "tick", program->ticks);
    if (program->ticks >= TICKS) {
        rc = upcall_cancel(loop, program->ticker);
        if (rc < 0)
            die("upcall_cancel", upcall_strerror(rc));
    }
}

static void on_post(upcall_loop *loop, void *arg)
{
    struct program *program = arg;

    (void)loop;
    say(program, "inner loop", "post", ++program->posts);
}

static void on_answer(upcall_loop *loop, const upcall_event *event)
{
    struct program *program = event->user;

    (void)loop;
    if (event->result < 0)
        die("answer", upcall_strerror((int)event->result));
    say(program, "inner loop", "answer", ++program->answers);
}

/* ---- the thread ---- */

static void *work(void *arg)
{
    struct program *program = arg;
    const struct timespec pause = {.tv_nsec = 15 * 1000 * 1000};

    for (int i = 0; i < POSTS; i++) {
        int rc = upcall_post(program->loop, on_post, program);

        if (rc < 0)
            die("upcall_post", upcall_strerror(rc));
        if (i % (POSTS / LINES) == 0 && write(program->pipe_out, "line\n", 5) != 5)
            die("write to the pipe", strerror(errno));
        (void)nanosleep(&pause, NULL); /* cut short by a signal: then the next one comes sooner */
    }
    return NULL;
}

/* ---- the outer loop ---- */

static void read_lines(struct program *program)
{
    char bytes[256];
    ssize_t got = read(program->pipe_in, bytes, sizeof bytes);

    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return;
        die("read from the pipe", strerror(errno));
    }
    for (ssize_t i = 0; i < got; i++) {
        upcall_op op;

        if (bytes[i] != '\n')
            continue;
        say(program, "outer loop", "line", ++program->lines);
        /* Submitting only queues. That there is something to hand over makes upcall_fd() readable. */
        op = upcall_op_sleep(5 * UPCALL_MILLISECOND);
        op.callback = on_answer;
        op.user = program;
        submit(program->loop, op);
    }
}

static bool finished(const struct program *program)
{
    return program->ticker_ended && program->posts == POSTS && program->answers == LINES;
}

static void run_outer_loop(struct program *program)
{
    struct pollfd waits[2] = {{.events = POLLIN}, {.events = POLLIN}};

    waits[0].fd = upcall_fd(program->loop);
    if (waits[0].fd < 0)
        die("upcall_fd", upcall_strerror(waits[0].fd));
    waits[1].fd = program->pipe_in;
    while (!finished(program)) {
        int ready = poll(waits, 2, PATIENCE_MS);

        if (ready < 0 && errno != EINTR)
            die("poll", strerror(errno));
        if (ready == 0)
            die("poll", "nothing came for ten seconds");
        if (ready < 0)
            continue;
        program->wakeups++;
        if (waits[0].revents != 0) {
            int rc = upcall_poll(program->loop, 0); /* never waits: the outer loop does that */

            if (rc < 0)
                die("upcall_poll", upcall_strerror(rc));
        }
        if (waits[1].revents != 0)
            read_lines(program);
    }
}

static void start_ticker(struct program *program)
{
    upcall_op op = upcall_op_sleep(TICK_NS);

    op.flags = UPCALL_MULTISHOT;
    op.callback = on_tick;
    op.user = program;
    program->ticker = submit(program->loop, op);
}

int main(int argc, char **argv)
{
    struct program program = {.started_ns = now_ns()};
    pthread_t thread;
    int ends[2];
    int rc;

    if (argc != 1) {
        bool help = argc == 2 && strcmp(argv[1], "--help") == 0;

        fprintf(help ? stdout : stderr,
                "usage: embed [--help]\n"
                "Runs a loop inside a poll(2) loop by way of upcall_fd(), and prints what each of them handles.\n"
                "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                "Exit status: 0 all arrived, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
        return help ? EXIT_SUCCESS : 2;
    }

    rc = upcall_loop_new(NULL, &program.loop);
    if (rc < 0) {
        fprintf(stderr, "embed: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    printf("backend: %s\n", upcall_backend_name(upcall_loop_backend(program.loop)));
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("pipe2", strerror(errno));
    program.pipe_in = ends[0];
    program.pipe_out = ends[1];

    start_ticker(&program);
    rc = pthread_create(&thread, NULL, work, &program);
    if (rc != 0)
        die("pthread_create", strerror(rc));
    run_outer_loop(&program);
    rc = pthread_join(thread, NULL);
    if (rc != 0)
        die("pthread_join", strerror(rc));

    printf("%llu ticks, %llu posts, %llu lines, %llu answers; the outer loop woke %llu times\n",
           (unsigned long long)program.ticks, (unsigned long long)program.posts, (unsigned long long)program.lines,
           (unsigned long long)program.answers, (unsigned long long)program.wakeups);
    rc = upcall_loop_free(program.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    if (close(ends[0]) < 0 || close(ends[1]) < 0)
        die("close", strerror(errno));
    if (program.wakeups > WAKEUPS_MAX) {
        fprintf(stderr, "embed: upcall_fd() was readable for nothing\n");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
