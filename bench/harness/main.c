/* Arguments, clock and report.
 *
 *     <contestant> list                          what it can do, one name a line
 *     <contestant> smoke dir=D                   all of it with tiny numbers, results verified
 *     <contestant> WORKLOAD [name=value ...]     one turn; prints one line of JSON
 *
 * seconds=S and count=N bound a run (whichever ends first), cpu=N is the core of the measured thread, others=N that of the
 * load or of posting threads. */
#include "harness.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int arguments;
static char **argument;

const char *bench_text(const char *name, const char *otherwise) {
    size_t length = strlen(name);
    for (int i = arguments - 1; i >= 0; i--)
        if (strncmp(argument[i], name, length) == 0 && argument[i][length] == '=')
            return argument[i] + length + 1;
    return otherwise;
}

long bench_number(const char *name, long otherwise) {
    const char *text = bench_text(name, NULL);
    return text ? strtol(text, NULL, 0) : otherwise;
}

void bench_die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s: %s\n", bench_contestant.name, what, why);
    exit(1);
}

void bench_die_errno(const char *what) {
    bench_die(what, strerror(errno));
}

void bench_skip(const char *why) {
    fprintf(stderr, "%s: skipped: %s\n", bench_contestant.name, why);
    exit(77);
}

long bench_must(long rc, const char *what) {
    if (rc < 0)
        bench_die(what, strerror((int)-rc));
    return rc;
}

long bench_call(long rc, const char *what) {
    if (rc < 0)
        bench_die_errno(what);
    return rc;
}

/* ---- Budget ---- */

struct bench_budget bench_budget;

void budget_set(double seconds, uint64_t count, uint64_t stride) {
    bench_budget = (struct bench_budget){.limit = count, .stride = stride ? stride : 256,
                                         .until = bench_now() + (uint64_t)(seconds * 1e9)};
}

bool bench_look(void) {
    if (bench_budget.taken >= bench_budget.limit || bench_now() >= bench_budget.until) {
        bench_budget.look_at = 0;
        bench_budget.limit = 0; /* over is over */
        return false;
    }
    bench_budget.look_at = bench_budget.taken + bench_budget.stride;
    if (bench_budget.look_at > bench_budget.limit)
        bench_budget.look_at = bench_budget.limit;
    return true;
}

/* ---- Report ---- */

static char report[8192];
static size_t reported;

void bench_report(const char *name, double value) {
    reported += (size_t)snprintf(report + reported, sizeof report - reported, "%s\"%s\": %.6g", reported ? ", " : "", name, value);
    if (reported >= sizeof report)
        bench_die("report", "too long");
}

uint64_t cpu_now(clockid_t clock) {
    struct timespec t;
    bench_call(clock_gettime(clock, &t), "clock_gettime");
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void pin(const char *which, int otherwise) {
    long cpu = bench_number(which, otherwise);
    cpu_set_t set;
    if (cpu < 0)
        return; /* wherever the scheduler likes, among those the process was given */
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    bench_call(sched_setaffinity(0, sizeof set, &set), which);
}

long resident(void) {
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = -1;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "Rss: %ld kB", &kib) == 1)
            break;
    if (file)
        fclose(file);
    if (kib < 0)
        bench_skip("no /proc/self/smaps_rollup");
    return kib * 1024;
}

/* ---- Runs ---- */

static void run_one(const struct bench_run *run) {
    double seconds = atof(bench_text("seconds", "0.3"));
    uint64_t count = (uint64_t)bench_number("count", INT64_MAX);
    run->open();
    budget_set(seconds / 5, count / 5 + 1, run->stride);
    run->run(); /* warm-up */
    budget_set(seconds, count, run->stride);
    uint64_t begun = bench_now(), cpu = cpu_now(CLOCK_PROCESS_CPUTIME_ID);
    run->run();
    uint64_t ended = bench_now();
    double done = (double)bench_budget.taken;
    cpu = cpu_now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    run->close();
    BENCH_CHECK(done > 0);
    bench_report("ops", done);
    bench_report("ns", (double)(ended - begun) / done);
    bench_report("cpu_ns", (double)cpu / done); /* of all threads, also those of the kernel's that work for this process */
}

/* ---- What there is ---- */

static bool has(const char *name, const struct bench_run **run) {
    const struct bench_contestant *c = &bench_contestant;
    *run = NULL;
    for (const struct bench_run *at = c->runs; at && at->name; at++)
        if (strcmp(at->name, name) == 0) {
            *run = at;
            return true;
        }
    for (const struct workload *at = workloads; at->name; at++)
        if (strcmp(at->name, name) == 0)
            return at->available();
    return false;
}

static void perform(const char *name) {
    const struct bench_run *run;
    if (!has(name, &run))
        bench_die(name, "no such workload here");
    if (run) {
        pin("cpu", -1);
        run_one(run);
    } else
        for (const struct workload *at = workloads; at->name; at++)
            if (strcmp(at->name, name) == 0)
                at->perform();
    printf("{\"workload\": \"%s\", \"contestant\": \"%s\", \"version\": \"%s\", %s}\n", name, bench_contestant.name,
           bench_contestant.version, report);
}

static void list(void) {
    const struct bench_run *run;
    for (const struct bench_run *at = bench_contestant.runs; at && at->name; at++)
        puts(at->name);
    for (const struct workload *at = workloads; at->name; at++)
        if (has(at->name, &run))
            puts(at->name);
}

/* Everything with tiny numbers, each in a process of its own, ended by an alarm if it hangs. */
static int smoke(void) {
    static char *const tiny[] = {"count=200", "seconds=0.05", "connections=5", "depth=4", "batch=16", "timers=2000", "blocks=256",
                                 "files=50", "megabytes=2", "loops=3", "threads=2", "message=1000", "rounds=20", "posts=2000"};
    static char *const variants[][2] = {{"form=array", "x=0"},   {"form=reap", "x=0"},       {"form=fresh", "x=0"},
                                        {"form=again", "x=0"},   {"family=unix", "x=0"},     {"direct=1", "x=0"},
                                        {"deadline=1", "x=0"},   {"message=16384", "x=0"},   {"connections=100", "message=16384"},
                                        {"spin=20000", "x=0"},   {"syscalls=1", "rounds=3"}, {"connections=1", "message=64"}};
    enum { TINY = sizeof tiny / sizeof *tiny, VARIANTS = sizeof variants / sizeof *variants };
    int failed = 0, passed = 0, skipped = 0;
    char *all[64], names[64][32];
    int count = 0;
    const struct bench_run *run;
    for (const struct bench_run *at = bench_contestant.runs; at && at->name; at++)
        snprintf(names[count++], sizeof *names, "%s", at->name);
    for (const struct workload *at = workloads; at->name; at++)
        if (has(at->name, &run))
            snprintf(names[count++], sizeof *names, "%s", at->name);
    for (int i = 0; i < count; i++)
        for (int v = 0; v < VARIANTS; v++) {
            if (!worth(names[i], variants[v][0]))
                continue;
            int used = 0;
            for (int a = 0; a < arguments; a++)
                all[used++] = argument[a];
            for (int t = 0; t < TINY; t++)
                all[used++] = tiny[t];
            all[used++] = variants[v][0];
            all[used++] = variants[v][1];
            fflush(NULL);
            pid_t child = fork();
            if (child == 0) {
                arguments = used;
                argument = all;
                alarm(20);
                perform(names[i]);
                fflush(stdout);
                _exit(0);
            }
            int status = 0;
            bench_call(waitpid(child, &status, 0), "waitpid");
            if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
                skipped++;
            else if (status != 0) {
                printf("FAILED: %s %s: %s %d\n", names[i], variants[v][0], WIFEXITED(status) ? "exit status" : "signal",
                       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
                failed++;
            } else
                passed++;
        }
    printf("%s: %d passed, %d skipped, %d failed\n", bench_contestant.name, passed, skipped, failed);
    return failed ? 1 : passed == 0 ? 77 : 0;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s list | smoke dir=D | WORKLOAD [name=value ...]\n", argv[0]);
        return 2;
    }
    arguments = argc - 2;
    argument = argv + 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (strcmp(argv[1], "list") == 0)
        list();
    else if (strcmp(argv[1], "smoke") == 0)
        return smoke();
    else
        perform(argv[1]);
    return 0;
}
