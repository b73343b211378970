/*
 * Runs every scenario on both backends and on rings that do less, once for every call of the library and every way that call can fail.
 *
 *     torture [--every N] [--sites] [--seconds S] [--jobs J] [--scenario NAME] [--backend NAME] [--k K] [--error NAME] [--list]
 *
 * Each run is a forked child with a time limit. --every N: only each N-th of all (scenario, backend, call, error). --sites:
 * each error only at the first call from each place in the library. A run that fails is printed with the arguments that
 * repeat it. Errors: the names of errnos, SHORT (less is moved than was asked for), and ENOMEM* (every allocation from the
 * k-th on fails, to the end).
 */
#include "torture.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct control *control;

static const struct error {
    const char *name;
    int value;
} errors[] = {{"ENOMEM", ENOMEM}, {"EAGAIN", EAGAIN}, {"EINTR", EINTR}, {"EBUSY", EBUSY}, {"EMFILE", EMFILE},
              {"ENFILE", ENFILE}, {"EPERM", EPERM},   {"ENOSYS", ENOSYS}, {"EINVAL", EINVAL}, {"SHORT", SHORT_COUNT},
              {"ENOMEM*", ENOMEM | LASTING}};
enum { ERRORS = sizeof errors / sizeof *errors };
/* What io_uring does not do, or refuses, is attempted: the ring then only waits. */
static const struct backend {
    const char *name, *backend, *mask;
} backends[] = {{"io_uring", "io_uring", ""}, {"epoll", "epoll", ""}, {"bare", "io_uring", "*,multishot,buffer_rings"},
                {"refused", "io_uring", "!*,bundles,zerocopy,defer_taskrun"}};
enum { BACKENDS = sizeof backends / sizeof *backends };
enum { MOST_JOBS = 64, LIMIT_SECONDS = 20 };

static struct {
    unsigned every, jobs, k;
    double seconds;
    bool sites, list;
    const char *scenario, *backend, *error;
} wanted = {.every = 1, .jobs = 2};

static struct {
    unsigned long runs, injected, failed;
} total;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

__attribute__((noreturn)) static void die(const char *what) {
    perror(what);
    exit(2);
}

/* ---- In the child. ---- */

void broken(const char *file, int line, const char *format, ...) {
    char text[sizeof control->text];
    const char *name = strrchr(file, '/');
    int used = snprintf(text, sizeof text, "%s:%d: ", name ? name + 1 : file, line);
    va_list list;
    va_start(list, format);
    vsnprintf(text + used, sizeof text - (size_t)used, format, list);
    va_end(list);
    memcpy(control->text, text, sizeof text);
    _exit(1);
}

static int entries_of(const char *directory) {
    DIR *dir = opendir(directory);
    int count = 0;
    if (dir == NULL)
        die(directory);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* The process's own: the kernel lists its workers for a ring here, too, and keeps them for seconds. */
static int threads_alive(void) {
    DIR *dir = opendir("/proc/self/task");
    int count = 0;
    if (dir == NULL)
        die("/proc/self/task");
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[PATH_MAX], name[32] = {0};
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = entry->d_name[0] != '.' ? fopen(path, "r") : NULL;
        if (file != NULL) {
            count += fgets(name, sizeof name, file) != NULL && strncmp(name, "iou-", 4) != 0;
            fclose(file);
        }
    }
    closedir(dir);
    return count;
}

__attribute__((noreturn)) static void run_child(const struct scenario *scenario, const struct backend *backend) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setenv("UPCALL_BACKEND", backend->backend, 1);
    setenv("UPCALL_MASK", backend->mask, 1);
    int descriptors = entries_of("/proc/self/fd");
    scenario->run();
    /* A thread that was joined may still be listed for a moment, and a lookup that was given up ends when it ends. */
    int threads = 0;
    for (int tries = 0; tries < 1000 && (threads = threads_alive()) != 1; tries++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    if (threads != 1)
        broken(__FILE__, __LINE__, "%d threads are left", threads - 1);
    int left = entries_of("/proc/self/fd");
    if (left != descriptors)
        broken(__FILE__, __LINE__, "%d descriptors more than before", left - descriptors);
    control->blocks = live_blocks();
    control->mappings = live_mappings();
    _exit(0);
}

/* ---- Where. ---- */

static uintptr_t base;

static int note_base(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    base = info->dlpi_addr; /* the program comes first */
    return 1;
}

static void print_place(uintptr_t site) {
    char command[PATH_MAX + 128], self[PATH_MAX] = {0};
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        return;
    snprintf(command, sizeof command, "addr2line -e '%s' -fiCp %#" PRIxPTR " 2>/dev/null | head -8 | sed 's/^/        /'",
             self, site - base - 1);
    fflush(stdout);
    if (system(command) != 0)
        printf("        %#" PRIxPTR "\n", site - base);
}

/* A set of numbers other than 0. */
static struct set {
    uint64_t *at;
    size_t room, count;
} sites, distinct;

static bool insert(struct set *set, uint64_t value) {
    if (set->count * 2 >= set->room) {
        struct set larger = {calloc(set->room ? set->room * 2 : 1024, sizeof *set->at), set->room ? set->room * 2 : 1024, 0};
        if (larger.at == NULL)
            die("calloc");
        for (size_t i = 0; i < set->room; i++)
            if (set->at[i])
                insert(&larger, set->at[i]);
        free(set->at);
        *set = larger;
    }
    size_t place = (value * 0x9e3779b97f4a7c15u >> 20) % set->room;
    while (set->at[place] != 0 && set->at[place] != value)
        place = (place + 1) % set->room;
    bool fresh = set->at[place] == 0;
    set->at[place] = value;
    set->count += fresh;
    return fresh;
}

/* ---- In the runner. ---- */

struct job {
    struct control *control;
    const struct scenario *scenario;
    const struct backend *backend;
    const struct error *error;
    long blocks, mappings; /* of a run without faults */
    pid_t child;           /* 0: none */
    double limit;
};
static struct job jobs[MOST_JOBS];
static double until;

static struct control *new_control(void) {
    struct control *made =
        mmap(NULL, sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED)
        die("mmap");
    return made;
}

static void begin(struct job *job) {
    job->limit = now() + LIMIT_SECONDS;
    fflush(stdout);
    job->child = fork();
    if (job->child < 0)
        die("fork");
    if (job->child == 0) {
        control = job->control;
        run_child(job->scenario, job->backend);
    }
    setpgid(job->child, job->child);
    total.runs++;
}

/* What is wrong with a run that ended, or NULL. */
static const char *verdict(struct job *job, int status, char *text, size_t size) {
    struct control *c = job->control;
    if (WIFSIGNALED(status)) {
        snprintf(text, size, "%s", strsignal(WTERMSIG(status)));
        return text;
    }
    if (WEXITSTATUS(status) != 0)
        return c->text;
    /* What is made once and kept may be missing, but nothing may come on top: but for the reserve of memory, of which another
     * block was made where allocations failed. */
    if (job->blocks >= 0 && c->blocks > job->blocks) {
        snprintf(text, size, "%ld blocks of memory leaked", c->blocks - job->blocks);
        return text;
    }
    long more = job->error != NULL && (job->error->value & ~LASTING) == ENOMEM;
    if (job->mappings >= 0 && c->mappings > job->mappings + more) {
        snprintf(text, size, "%ld mappings leaked", c->mappings - job->mappings);
        return text;
    }
    return NULL;
}

static void end(struct job *job, int status, bool hung) {
    char text[300];
    struct control *c = job->control;
    const char *wrong = hung ? "no end" : verdict(job, status, text, sizeof text);
    job->child = 0;
    if (c->injected) {
        total.injected++;
        insert(&sites, c->site - base);
        insert(&distinct, (c->site - base) ^ (uint64_t)c->k << 32 ^ (uint64_t)(job->error - errors) << 56);
    }
    if (wrong == NULL)
        return;
    total.failed++;
    printf("FAILED  --backend %s --scenario %s --k %u --error '%s': %s\n", job->backend->name, job->scenario->name, c->k,
           job->error ? job->error->name : "none", wrong);
    if (c->injected) {
        printf("    %s failed with %s, called from\n", c->call, job->error->name);
        print_place(c->site);
    }
    fflush(stdout);
}

/* Waits until a child ends. False: there is none. */
static bool reap(void) {
    double soonest = 0;
    for (unsigned i = 0; i < wanted.jobs; i++) {
        struct job *job = &jobs[i];
        if (job->child == 0)
            continue;
        int status;
        if (waitpid(job->child, &status, WNOHANG) == job->child) {
            kill(-job->child, SIGKILL);
            end(job, status, false);
            return true;
        }
        if (now() >= job->limit) {
            kill(-job->child, SIGKILL);
            kill(job->child, SIGKILL);
            waitpid(job->child, &status, 0);
            end(job, status, true);
            return true;
        }
        soonest = soonest == 0 || job->limit < soonest ? job->limit : soonest;
    }
    if (soonest == 0)
        return false;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigtimedwait(&child, NULL, &(struct timespec){1, 0}); /* blocked since the start: none is missed */
    return true;
}

static struct job *idle_job(void) {
    for (;;) {
        for (unsigned i = 0; i < wanted.jobs; i++)
            if (jobs[i].child == 0)
                return &jobs[i];
        reap();
    }
}

static void plan(struct control *c, unsigned k, int error, bool traces) {
    c->k = k, c->error = error, c->traces = traces, c->calls = 0, c->injected = false;
    c->blocks = c->mappings = 0, c->text[0] = 0, c->call[0] = 0;
}

static bool is_wanted(const char *filter, const char *name) {
    return filter == NULL || strcmp(filter, name) == 0;
}

static unsigned long position; /* among all runs there could be */

static void torture(const struct scenario *scenario, const struct backend *backend) {
    static struct control *counted;
    static struct set seen;
    if (counted == NULL)
        counted = new_control();
    /* Once without faults: what there is to fail. */
    struct job *job = idle_job();
    struct control *other = job->control;
    *job = (struct job){counted, scenario, backend, NULL, -1, -1, 0, 0};
    plan(counted, 0, 0, true);
    unsigned long failed = total.failed;
    begin(job);
    while (reap())
        ;
    job->control = other;
    if (total.failed != failed)
        return;
    unsigned calls = counted->calls < MOST_CALLS ? counted->calls : MOST_CALLS;
    if (wanted.list)
        printf("%-10s %-18s %u calls\n", backend->name, scenario->name, calls);
    for (unsigned k = 1; k <= calls && !wanted.list; k++) {
        const struct trace *call = &counted->trace[k - 1];
        /* A number for (backend, place). */
        bool first = wanted.sites && insert(&seen, (call->site - base) * BACKENDS + (size_t)(backend - backends));
        for (const struct error *error = errors; error < errors + ERRORS; error++) {
            if (!can_fail(call->how, error->value) || !is_wanted(wanted.error, error->name))
                continue;
            if ((wanted.k && k != wanted.k) || (position++ % wanted.every != 0 && !first))
                continue;
            if (until != 0 && now() > until)
                return;
            struct job *next = idle_job();
            struct control *c = next->control;
            *next = (struct job){c ? c : new_control(), scenario, backend, error, counted->blocks, counted->mappings, 0, 0};
            plan(next->control, k, error->value, false);
            begin(next);
        }
    }
    while (reap())
        ;
}

static void parse(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        bool takes = true;
        if (strcmp(option, "--every") == 0)
            wanted.every = (unsigned)atoi(value);
        else if (strcmp(option, "--jobs") == 0)
            wanted.jobs = (unsigned)atoi(value);
        else if (strcmp(option, "--seconds") == 0)
            wanted.seconds = atof(value);
        else if (strcmp(option, "--k") == 0)
            wanted.k = (unsigned)atoi(value);
        else if (strcmp(option, "--scenario") == 0)
            wanted.scenario = value;
        else if (strcmp(option, "--backend") == 0)
            wanted.backend = value;
        else if (strcmp(option, "--error") == 0)
            wanted.error = value;
        else if (takes = false, strcmp(option, "--sites") == 0)
            wanted.sites = true;
        else if (strcmp(option, "--list") == 0)
            wanted.list = true;
        else {
            fprintf(stderr, "torture: %s is not known; see the start of run.c\n", option);
            exit(2);
        }
        i += takes;
    }
    if (wanted.every == 0 || wanted.jobs == 0 || wanted.jobs > MOST_JOBS) {
        fprintf(stderr, "torture: --every is at least 1, --jobs 1 to %d\n", MOST_JOBS);
        exit(2);
    }
}

/* Whether the kernel lets this process have a ring. */
static bool has_ring(void) {
    uint32_t params[30] = {0}; /* struct io_uring_params */
    long ring = syscall(SYS_io_uring_setup, 4, params);
    if (ring >= 0)
        close((int)ring);
    return ring >= 0;
}

int main(int argc, char **argv) {
    parse(argc, argv);
    bool ring = has_ring();
    if (!ring)
        printf("io_uring is denied here: epoll only\n");
    dl_iterate_phdr(note_base, NULL);
    signal(SIGPIPE, SIG_DFL);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    double begun = now();
    until = wanted.seconds > 0 ? begun + wanted.seconds : 0;
    unsigned ran = 0;
    for (const struct scenario *scenario = scenarios; scenario->name != NULL; scenario++)
        for (const struct backend *backend = backends; backend < backends + BACKENDS; backend++)
            if (is_wanted(wanted.scenario, scenario->name) && is_wanted(wanted.backend, backend->name) &&
                (ring || strcmp(backend->backend, "epoll") == 0)) {
                ran++;
                torture(scenario, backend);
            }
    /* No run is like another: each has another backend, scenario, k or error. */
    printf("%lu runs, %lu faults injected; over all scenarios and backends %zu distinct (site, k, error) at %zu sites; %lu failed; "
           "%.0f s\n",
           total.runs, total.injected, distinct.count, sites.count, total.failed, now() - begun);
    return total.failed != 0 || ran == 0;
}
