/*
 * differential [--seed N] [--count N | --seconds N] [--jobs N] [--show SEED] [--config NAME] [--keep-going]
 *
 * Seeds are taken from --seed (default: the clock) upwards. Programs are run in blocks of consecutive seeds that share
 * their loops; the configuration of a block (mask, sizes) follows from its number. Exit status: 0 all agree, 1 something
 * differs, 2 the tester itself failed, 77 no io_uring here.
 */
#include "differential.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { BLOCK = 32, MAX_JOBS = 64, HANGS_SECONDS = 40 };

typedef struct shared {
    uint64_t programs, operations, differences, once;
    uint64_t next_block;
} shared;

static shared *all;
static volatile sig_atomic_t signals_raised;
static uint64_t running;

static struct {
    uint64_t seed, count, seconds, show;
    unsigned jobs, enabled;
    bool shows, keeps_going;
} options = {.jobs = 1, .enabled = (1u << CONFIGURATIONS) - 1};

static void on_signal(int number) {
    if (!acts_outside)
        signals_raised = number;
}

void on_user_signal(int number) {
    (void)number;
}

/* A call of the library does not return. */
static void on_alarm(int number) {
    (void)number;
    static const char text[] = "\n==== a call does not return; seed ";
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%" PRIu64 "\n", running);
    if (write(STDOUT_FILENO, text, sizeof text - 1) < 0 || write(STDOUT_FILENO, digits, (size_t)length) < 0)
        _exit(3);
    abort();
}

enum { RUNS_AGAIN = 3 };

/* Runs a block up to the seed that differed: whether that, or one before it, differs again. */
static bool differs_again(uint64_t block, uint64_t first, uint64_t seed) {
    static program p;
    bool again = false;
    for (int round = 0; round < RUNS_AGAIN && !again; round++) {
        setting s;
        unsigned which;
        char what[600];
        choose_setting(&s, block, options.enabled);
        for (uint64_t each = first; each <= seed && !again; each++) {
            generate(&p, each);
            p.by_free = each % BLOCK == BLOCK - 1;
            running = each;
            alarm(HANGS_SECONDS);
            again = !agrees(&p, &s, &which, what, sizeof what);
            alarm(0);
        }
        free_loops(&s);
    }
    return again;
}

/* Runs one block of programs; false when something differs. */
static bool run_block(uint64_t block, uint64_t first, uint64_t end) {
    static setting s;
    program p;
    unsigned which;
    char what[600];
    const unsigned descriptors = open_descriptors();
    bool good = true;
    choose_setting(&s, block, options.enabled);
    for (uint64_t seed = first; seed < end; seed++) {
        generate(&p, seed);
        p.by_free = seed % BLOCK == BLOCK - 1;
        running = seed;
        alarm(HANGS_SECONDS);
        const bool agreed = agrees(&p, &s, &which, what, sizeof what);
        __atomic_add_fetch(&all->programs, 1, __ATOMIC_RELAXED);
        if (signals_raised != 0) {
            printf("\n==== seed %" PRIu64 ": signal %d was raised\n", seed, (int)signals_raised);
            signals_raised = 0;
            good = false;
        }
        alarm(0);
        if (agreed)
            continue;
        free_loops(&s);
        if (!differs_again(block, first, seed)) {
            /* A loaded machine had not settled, or two threads met as they seldom do: told, and not proof of anything. */
            printf("seed %" PRIu64 ": %s; not again in %d runs of its block\n", seed, what, RUNS_AGAIN);
            __atomic_add_fetch(&all->once, 1, __ATOMIC_RELAXED);
            continue;
        }
        good = false;
        __atomic_add_fetch(&all->differences, 1, __ATOMIC_RELAXED);
        report(&p, block, options.enabled, what);
        if (!options.keeps_going)
            break;
    }
    free_loops(&s);
    __atomic_add_fetch(&all->operations, operations_run, __ATOMIC_RELAXED);
    operations_run = 0;
    if (good && open_descriptors() != descriptors) {
        printf("\n==== block of seed %" PRIu64 ": %u descriptors are open, %u before\n", first, open_descriptors(), descriptors);
        return false;
    }
    return good;
}

static void progress(uint64_t from) {
    const double seconds = (double)(now_ns() - from) / 1e9;
    printf("%8.1f s: %" PRIu64 " programs, %" PRIu64 " operations, %" PRIu64 " differences, %" PRIu64 " seen once\n",
           seconds, all->programs, all->operations, all->differences, all->once);
    fflush(stdout);
}

/* Takes blocks until the count or the time is used up. */
static int work(bool first_job, uint64_t from) {
    uint64_t last_line = now_ns();
    bool good = true;
    prepare_process();
    while (good || options.keeps_going) {
        const uint64_t number = __atomic_fetch_add(&all->next_block, 1, __ATOMIC_RELAXED);
        const uint64_t first = (options.seed / BLOCK + number) * BLOCK;
        uint64_t begin = first < options.seed ? options.seed : first, end = first + BLOCK;
        if (options.seconds == 0 && end > options.seed + options.count)
            end = options.seed + options.count;
        if (options.seconds != 0 ? now_ns() - from > options.seconds * UPCALL_SECOND : begin >= end)
            break;
        if (__atomic_load_n(&all->differences, __ATOMIC_RELAXED) != 0 && !options.keeps_going)
            break;
        good = run_block(first / BLOCK, begin, end) && good;
        if (first_job && now_ns() - last_line > 10 * UPCALL_SECOND) {
            last_line = now_ns();
            progress(from);
        }
    }
    forget_process();
    fflush(stdout);
    return good ? 0 : 1;
}

static int show(uint64_t seed) {
    program p;
    setting s;
    unsigned which;
    char what[600];
    prepare_process();
    generate(&p, seed);
    p.by_free = seed % BLOCK == BLOCK - 1;
    list_program(stdout, &p);
    choose_setting(&s, seed / BLOCK, options.enabled);
    const bool good = agrees(&p, &s, &which, what, sizeof what);
    for (int i = 0; i < CONFIGURATIONS; i++)
        if (options.enabled >> i & 1) {
            printf("  %s:\n", s.configuration[i].name);
            print_transcript(stdout, &transcripts[i], NULL);
            if (!good && (unsigned)i == which)
                break;
        }
    free_loops(&s);
    printf("%s\n", good ? "all agree" : what);
    if (!good)
        report(&p, seed / BLOCK, options.enabled, what);
    forget_process();
    return good ? 0 : 1;
}

static bool has_ring(void) {
    setting s;
    choose_setting(&s, 0, 1);
    const bool made = make_loops(&s);
    free_loops(&s);
    return made;
}

static int usage(void) {
    fprintf(stderr, "usage: differential [--seed N] [--count N | --seconds N] [--jobs N] [--show SEED] [--config NAME]"
                    " [--keep-going]\n");
    return 2;
}

static bool choose_configuration(const char *name) {
    setting s;
    choose_setting(&s, 0, options.enabled);
    for (unsigned i = 0; i < CONFIGURATIONS; i++)
        if (strcmp(s.configuration[i].name, name) == 0) {
            options.enabled = 1u << i;
            return true;
        }
    return false;
}

static bool read_options(int argc, char **argv) {
    options.seed = (uint64_t)time(NULL) * 100000;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        const uint64_t number = strtoull(value, NULL, 0);
        if (strcmp(argv[i], "--keep-going") == 0) {
            options.keeps_going = true;
            continue;
        }
        if (strcmp(argv[i], "--seed") == 0)
            options.seed = number;
        else if (strcmp(argv[i], "--count") == 0)
            options.count = number;
        else if (strcmp(argv[i], "--seconds") == 0)
            options.seconds = number;
        else if (strcmp(argv[i], "--jobs") == 0)
            options.jobs = (unsigned)number;
        else if (strcmp(argv[i], "--show") == 0)
            options.shows = true, options.show = number;
        else if (strcmp(argv[i], "--config") != 0 || !choose_configuration(value))
            return false;
        if (*value == '\0')
            return false;
        i++;
    }
    if (options.count == 0 && options.seconds == 0)
        options.count = 1000;
    return options.jobs >= 1 && options.jobs <= MAX_JOBS;
}

int main(int argc, char **argv) {
    if (!read_options(argc, argv))
        return usage();
    if (!has_ring()) {
        printf("no io_uring here\n");
        return 77;
    }
    signal(SIGPIPE, on_signal);
    signal(SIGXFSZ, on_signal);
    signal(SIGALRM, on_alarm);
    for (unsigned i = 0; i < MAX_OBJECTS; i++)
        signal(user_signals[i], on_user_signal);
    const struct rlimit most = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
    setrlimit(RLIMIT_FSIZE, &most);
    if (options.shows)
        return show(options.show);
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return 2;
    printf("seeds from %" PRIu64 "\n", options.seed);
    fflush(stdout);
    const uint64_t from = now_ns();
    pid_t job[MAX_JOBS];
    for (unsigned i = 0; i < options.jobs; i++) {
        job[i] = fork();
        if (job[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            exit(work(i == 0, from));
        }
    }
    int worst = 0;
    for (unsigned i = 0; i < options.jobs; i++) {
        int status = 0;
        if (job[i] < 0 || waitpid(job[i], &status, 0) < 0)
            return 2;
        if (WIFSIGNALED(status))
            printf("job %u was killed by signal %d\n", i, WTERMSIG(status));
        const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        worst = code > worst ? code : worst;
    }
    progress(from);
    return worst;
}
