/*
 * Keeps copies of a program running, and ends them when it is told to end.
 *
 *   - upcall_op_waitid() tells when a child has ended. WNOWAIT leaves it a zombie until it is reaped right here, in the
 *     callback: as long as we may still send it a signal, its process id cannot name somebody else.
 *   - A child that failed is started again after a pause: upcall_op_sleep().
 *   - upcall_op_signal() with UPCALL_MULTISHOT brings SIGTERM, SIGINT and SIGHUP as events, in a callback that may do
 *     anything. UPCALL_BACKGROUND: they do not keep upcall_run() alive. There is no signal mask that the children would
 *     inherit, and exec(2) gives them the default actions.
 *   - When told to end, children get SIGTERM, and after a while SIGKILL: an upcall_op_sleep() in the background. A second
 *     signal shortens the while. SIGHUP is passed on.
 *
 * Everything runs on one thread; when no child is left, upcall_run() returns.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <upcall.h>

enum { EXIT_NO_BACKEND = 77 /* what test runners take for "skipped: this machine cannot" */ };

struct options {
    size_t copies;
    unsigned long restarts; /* of each copy */
    uint64_t pause_ns;      /* before a restart */
    uint64_t grace_ns;      /* between SIGTERM and SIGKILL */
};

struct child {
    struct supervisor *supervisor;
    size_t number;
    pid_t pid;        /* 0: does not run */
    upcall_id pause;  /* the sleep before its restart; 0: none */
    unsigned long restarts;
    siginfo_t info;   /* borrowed by upcall_op_waitid() until its final event */
};

struct supervisor {
    const struct options *options;
    upcall_loop *loop;
    char **command;
    struct child *children;
    size_t failures; /* children that were given up */
    bool ending;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "supervisor: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static upcall_id submit(struct supervisor *supervisor, upcall_op op, upcall_callback callback, void *user)
{
    upcall_id id;

    op.callback = callback;
    op.user = user;
    if (upcall_submit(supervisor->loop, &op, 1, &id) < 0)
        die("upcall_submit", upcall_last_error());
    return id;
}

/* ---- children ---- */

static void on_end(upcall_loop *loop, const upcall_event *event);

static void start_child(struct child *child)
{
    struct supervisor *supervisor = child->supervisor;
    int error = posix_spawnp(&child->pid, supervisor->command[0], NULL, NULL, supervisor->command, environ);

    if (error != 0) {
        fprintf(stderr, "supervisor: %s: %s\n", supervisor->command[0], strerror(error));
        child->pid = 0;
        supervisor->failures++;
        return;
    }
    printf("%zu: started as %ld\n", child->number, (long)child->pid);
    submit(supervisor, upcall_op_waitid(P_PID, (uint32_t)child->pid, &child->info, WEXITED | WNOWAIT), on_end, child);
}

static void on_pause_over(upcall_loop *loop, const upcall_event *event)
{
    struct child *child = event->user;

    (void)loop;
    child->pause = 0;
    if (event->result == 0 && !child->supervisor->ending)
        start_child(child);
}

static void on_end(upcall_loop *loop, const upcall_event *event)
{
    struct child *child = event->user;
    struct supervisor *supervisor = child->supervisor;
    const siginfo_t *info = &child->info;
    bool exited = info->si_code == CLD_EXITED;

    (void)loop;
    if (event->result < 0)
        die("waitid", upcall_strerror((int)event->result));
    printf("%zu: %s %d\n", child->number, exited ? "exited with" : "killed by signal", info->si_status);
    if (waitpid(child->pid, NULL, 0) < 0) /* it has ended: this does not wait */
        die("waitpid", strerror(errno));
    child->pid = 0;
    if (supervisor->ending || (exited && info->si_status == 0))
        return;
    if (child->restarts == supervisor->options->restarts) {
        printf("%zu: given up\n", child->number);
        supervisor->failures++;
        return;
    }
    child->restarts++;
    child->pause = submit(supervisor, upcall_op_sleep(supervisor->options->pause_ns), on_pause_over, child);
}

static void signal_children(struct supervisor *supervisor, int signo)
{
    for (size_t i = 0; i < supervisor->options->copies; i++)
        if (supervisor->children[i].pid > 0 && kill(supervisor->children[i].pid, signo) < 0)
            die("kill", strerror(errno));
}

/* ---- signals ---- */

static void on_grace_over(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result == 0) /* else the loop ends before: nobody is left */
        signal_children(event->user, SIGKILL);
}

static void on_end_signal(upcall_loop *loop, const upcall_event *event)
{
    struct supervisor *supervisor = event->user;
    upcall_op grace = upcall_op_sleep(supervisor->options->grace_ns);

    if (!(event->flags & UPCALL_MORE))
        return; /* the loop ends */
    if (supervisor->ending) {
        signal_children(supervisor, SIGKILL);
        return;
    }
    printf("ending: %s\n", strsignal((int)event->result));
    supervisor->ending = true;
    signal_children(supervisor, SIGTERM);
    for (size_t i = 0; i < supervisor->options->copies; i++)
        if (supervisor->children[i].pause != 0)
            upcall_cancel(loop, supervisor->children[i].pause);
    grace.flags = UPCALL_BACKGROUND;
    submit(supervisor, grace, on_grace_over, supervisor);
}

static void on_hangup(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->flags & UPCALL_MORE)
        signal_children(event->user, SIGHUP);
}

static void watch(struct supervisor *supervisor, int signo, upcall_callback callback)
{
    upcall_op op = upcall_op_signal(signo);

    op.flags = UPCALL_MULTISHOT | UPCALL_BACKGROUND;
    submit(supervisor, op, callback, supervisor);
}

/* ---- the program ---- */

static void usage(FILE *out)
{
    fprintf(out, "usage: supervisor [--copies N] [--restarts N] [--pause MS] [--grace MS] [--help] COMMAND [ARGUMENT...]\n"
                 "Runs a program, again when it fails, until it succeeds or SIGTERM or SIGINT comes.\n"
                 "  --copies N    that many at once (1)\n"
                 "  --restarts N  of each one, at most (5)\n"
                 "  --pause MS    before a restart (1000)\n"
                 "  --grace MS    between SIGTERM and SIGKILL when it ends (5000)\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 all succeeded or it was told to end, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
}

static unsigned long parse_count(const char *text, unsigned long min, unsigned long max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < min || value > max) {
        fprintf(stderr, "supervisor: '%s' is not a number from %lu to %lu\n", text, min, max);
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"copies", required_argument, NULL, 'c'}, {"restarts", required_argument, NULL, 'r'},
        {"pause", required_argument, NULL, 'p'},  {"grace", required_argument, NULL, 'g'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    struct options options = {1, 5, UPCALL_SECOND, 5 * UPCALL_SECOND};
    int option;

    while ((option = getopt_long(argc, argv, "+h", known, NULL)) != -1) {
        switch (option) {
        case 'c': options.copies = parse_count(optarg, 1, 1000); break;
        case 'r': options.restarts = parse_count(optarg, 0, 1000000); break;
        case 'p': options.pause_ns = parse_count(optarg, 0, 3600000) * UPCALL_MILLISECOND; break;
        case 'g': options.grace_ns = parse_count(optarg, 0, 3600000) * UPCALL_MILLISECOND; break;
        case 'h': usage(stdout); exit(EXIT_SUCCESS);
        default: usage(stderr); exit(2);
        }
    }
    if (optind == argc) {
        usage(stderr);
        exit(2);
    }
    return options;
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct supervisor supervisor = {.options = &options, .command = argv + optind};
    int rc;

    setvbuf(stdout, NULL, _IOLBF, 0);
    rc = upcall_loop_new(NULL, &supervisor.loop);
    if (rc < 0) {
        fprintf(stderr, "supervisor: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    supervisor.children = calloc(options.copies, sizeof *supervisor.children);
    if (supervisor.children == NULL)
        die("calloc", strerror(errno));

    /* Before the first child: from here on no signal is lost. */
    watch(&supervisor, SIGTERM, on_end_signal);
    watch(&supervisor, SIGINT, on_end_signal);
    watch(&supervisor, SIGHUP, on_hangup);
    for (size_t i = 0; i < options.copies; i++) {
        supervisor.children[i].supervisor = &supervisor;
        supervisor.children[i].number = i + 1;
        start_child(&supervisor.children[i]);
    }
    rc = upcall_run(supervisor.loop);
    if (rc < 0)
        die("upcall_run", upcall_strerror(rc));
    rc = upcall_loop_free(supervisor.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    free(supervisor.children);
    return supervisor.failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
