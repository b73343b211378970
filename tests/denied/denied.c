/*
 * Runs test programs in environments that deny something, and says what was skipped there and why.
 *
 *     denied [--jobs N] [--machine] ENVIRONMENT PROGRAM...
 *     denied --list
 *
 * The environment is made in a child process per program, just before it is executed. Exit status: 0; 1 when a test failed;
 * 77 when the environment cannot be made here, with the reason. needs.txt, beside this file, names the tests that need what
 * an environment denies.
 *
 * The sysctl environments change the machine. The old value is put back by a process of its own, which waits until the pipe
 * to this one is closed: by its end, however it comes. It also holds the lock that keeps a second run away. As long as they
 * last no other program can make a ring, so they are short unless --machine says that the machine is ours, and they are
 * skipped where another program has one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))

/* Nobody's: limits per user count the processes and the locked memory of all that a user runs. */
enum { USER = 61234, OWNER = 61235 };

static bool is_machine_ours;
static char directory[4096]; /* for temporary files of the programs */

/* ---- Making an environment. In the child; what cannot be made ends it with status 77 and the reason. ---- */

__attribute__((noreturn, format(printf, 1, 2))) static void cannot(const char *format, ...) {
    va_list list;
    va_start(list, format);
    printf("cannot: ");
    vprintf(format, list);
    putchar('\n');
    fflush(stdout);
    _exit(77);
}

static void need(bool done, const char *what) {
    if (!done)
        cannot("%s: %s", what, strerror(errno));
}

/* The system calls of the numbers answer an errno, or kill. */
static void filter(const int *numbers, size_t count, uint32_t action) {
    struct sock_filter code[32] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    size_t n = 1;
    for (size_t i = 0; i < count; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)numbers[i], 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)n, code};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) { /* without privilege: */
        need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
        need(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
    }
}

static const int ring_calls[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register};

static void deny_call(int number, int error) {
    filter(&number, 1, SECCOMP_RET_ERRNO | (uint32_t)error);
}

static void deny_setup(int error) {
    deny_call(SYS_io_uring_setup, error);
}

static void deny_enter(int error) {
    deny_call(SYS_io_uring_enter, error);
}

static void deny_register(int error) {
    deny_call(SYS_io_uring_register, error);
}

static void deny_ring(int error) {
    filter(ring_calls, COUNT_OF(ring_calls), SECCOMP_RET_ERRNO | (uint32_t)error);
}

/* Docker's default profile: no io_uring; clone3 is refused so that libc takes clone. Older ones know less. */
static void docker(int error) {
    static const int unknown[] = {SYS_epoll_pwait2, SYS_pidfd_open};
    deny_ring(error);
    deny_call(SYS_clone3, ENOSYS);
    filter(unknown, COUNT_OF(unknown), SECCOMP_RET_ERRNO | EPERM);
}

static void kill_on_ring(int unused) {
    (void)unused;
    setenv("UPCALL_BACKEND", "epoll", 1);
    filter(ring_calls, COUNT_OF(ring_calls), SECCOMP_RET_KILL_PROCESS);
}

static void become(unsigned user) {
    if (geteuid() != 0)
        cannot("only root can become another user");
    need(setgroups(0, NULL) == 0, "setgroups");
    need(setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0, "setresuid");
}

static void ordinary_user(int unused) {
    (void)unused;
    become(USER);
}

static void limit(int what, rlim_t value) {
    struct rlimit both = {value, value};
    need(setrlimit(what, &both) == 0, "setrlimit");
}

static void lock_little(int bytes) {
    limit(RLIMIT_MEMLOCK, (rlim_t)bytes);
    become(USER);
}

static void few_descriptors(int count) {
    limit(RLIMIT_NOFILE, (rlim_t)count);
}

/* Root without privilege, as in most containers. */
static void without_capabilities(int unused) {
    (void)unused;
    if (geteuid() != 0)
        cannot("only root has capabilities to give up");
    for (unsigned long capability = 0; capability <= 63; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 && errno != EINVAL)
            cannot("PR_CAPBSET_DROP: %s", strerror(errno));
}

static void own_mounts(void) {
    need(unshare(CLONE_NEWNS) == 0, "unshare");
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "mount");
}

static void without_proc(int unused) {
    (void)unused;
    own_mounts();
    need(mount("none", "/proc", "tmpfs", MS_RDONLY, "size=4k") == 0, "mount over /proc");
}

static void proc_read_only(int unused) {
    (void)unused;
    own_mounts();
    need(mount("/proc", "/proc", NULL, MS_BIND | MS_REC, NULL) == 0, "mount /proc on itself");
    need(mount(NULL, "/proc", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) == 0, "mount /proc read-only");
}

static void nothing(int unused) {
    (void)unused;
}

/* ---- The environments. ---- */

static const char eperm[] = "io_uring_setup: EPERM (seccomp or kernel.io_uring_disabled)";
static const char asked[] = "epoll: asked for by the environment variable UPCALL_BACKEND";

static const struct environment {
    const char *name;
    void (*make)(int);
    int arg;
    const char *backend; /* that AUTO must choose; NULL: the one it chooses without any of this */
    const char *reason; /* that the loop must tell where it is epoll */
    const char *denied; /* what a test may be skipped for lack of: see check.h */
    int sysctl; /* kernel.io_uring_disabled */
    bool set_user_id;
} environments[] = {
    {.name = "setup-eperm", .make = deny_setup, .arg = EPERM, .backend = "epoll", .reason = eperm},
    {.name = "setup-enosys", .make = deny_setup, .arg = ENOSYS, .backend = "epoll",
     .reason = "io_uring_setup: ENOSYS (not in this kernel, or seccomp)"},
    {.name = "setup-eopnotsupp", .make = deny_setup, .arg = EOPNOTSUPP, .backend = "epoll",
     .reason = "io_uring_setup: EOPNOTSUPP (a sandbox)"},
    {.name = "setup-eacces", .make = deny_setup, .arg = EACCES, .backend = "epoll",
     .reason = "io_uring_setup: EACCES (a security module)"},
    {.name = "enter-eperm", .make = deny_enter, .arg = EPERM, .backend = "epoll",
     .reason = "io_uring_enter: EPERM (seccomp or kernel.io_uring_disabled)"},
    {.name = "enter-enosys", .make = deny_enter, .arg = ENOSYS, .backend = "epoll",
     .reason = "io_uring_enter: ENOSYS (not in this kernel, or seccomp)"},
    {.name = "enter-eopnotsupp", .make = deny_enter, .arg = EOPNOTSUPP, .backend = "epoll",
     .reason = "io_uring_enter: EOPNOTSUPP (a sandbox)"},
    {.name = "enter-eacces", .make = deny_enter, .arg = EACCES, .backend = "epoll",
     .reason = "io_uring_enter: EACCES (a security module)"},
    {.name = "register-eperm", .make = deny_register, .arg = EPERM, .backend = "epoll",
     .reason = "io_uring_register: EPERM (seccomp or kernel.io_uring_disabled)"},
    {.name = "register-enosys", .make = deny_register, .arg = ENOSYS, .backend = "epoll",
     .reason = "io_uring_register: ENOSYS (not in this kernel, or seccomp)"},
    {.name = "register-eopnotsupp", .make = deny_register, .arg = EOPNOTSUPP, .backend = "epoll",
     .reason = "io_uring_register: EOPNOTSUPP (a sandbox)"},
    {.name = "register-eacces", .make = deny_register, .arg = EACCES, .backend = "epoll",
     .reason = "io_uring_register: EACCES (a security module)"},
    {.name = "docker", .make = docker, .arg = EPERM, .backend = "epoll", .reason = eperm, .denied = "pidfd"},
    {.name = "kill", .make = kill_on_ring, .backend = "epoll", .reason = asked, .denied = "io_uring"},
    {.name = "sysctl-1", .make = ordinary_user, .backend = "epoll", .reason = eperm, .sysctl = 1},
    {.name = "sysctl-2", .make = nothing, .backend = "epoll", .reason = eperm, .sysctl = 2},
    /* Most kernels charge nothing for a ring: it may be made. */
    {.name = "memlock-0", .make = lock_little, .arg = 0, .backend = "any", .reason = "io_uring_setup: ENOMEM (RLIMIT_MEMLOCK)"},
    {.name = "memlock-64k", .make = lock_little, .arg = 65536, .backend = "any",
     .reason = "io_uring_setup: ENOMEM (RLIMIT_MEMLOCK)"},
    {.name = "nproc-1", .make = ordinary_user, .denied = "threads"},
    {.name = "nofile-16", .make = few_descriptors, .arg = 16, .denied = "descriptors"},
    {.name = "user", .make = ordinary_user},
    {.name = "no-capabilities", .make = without_capabilities},
    {.name = "rights-dropped", .make = nothing, .denied = "rights"},
    {.name = "set-user-id", .make = ordinary_user, .denied = "proc", .set_user_id = true},
    {.name = "no-proc", .make = without_proc, .denied = "proc"},
    {.name = "proc-read-only", .make = proc_read_only},
};

/* ---- kernel.io_uring_disabled. ---- */

static const char sysctl_file[] = "/proc/sys/kernel/io_uring_disabled";

static int read_sysctl(void) {
    char text[16] = {0};
    int fd = open(sysctl_file, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    return n > 0 ? atoi(text) : -1;
}

static bool write_sysctl(int value) {
    char text[16];
    int length = snprintf(text, sizeof text, "%d\n", value);
    int fd = open(sysctl_file, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, (size_t)length) == length;
    if (fd >= 0)
        close(fd);
    return done;
}

/* A process that has a ring, or 0. */
static long ring_holder(void) {
    DIR *processes = opendir("/proc");
    long found = 0;
    for (struct dirent *process; processes && !found && (process = readdir(processes)) != NULL;) {
        long pid = strtol(process->d_name, NULL, 10);
        char path[600], target[64];
        snprintf(path, sizeof path, "/proc/%ld/fd", pid);
        DIR *fds = pid > 0 && pid != getpid() ? opendir(path) : NULL;
        for (struct dirent *fd; fds && !found && (fd = readdir(fds)) != NULL;) {
            snprintf(path, sizeof path, "/proc/%ld/fd/%s", pid, fd->d_name);
            ssize_t n = readlink(path, target, sizeof target - 1);
            target[n > 0 ? n : 0] = 0;
            if (strstr(target, "[io_uring]") != NULL)
                found = pid;
        }
        if (fds)
            closedir(fds);
    }
    if (processes)
        closedir(processes);
    return found;
}

static int sysctl_pipe = -1; /* its end puts the old value back */

static void set_sysctl(int value) {
    int lock = open("/run/lock/upcall-test-sysctl", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (lock < 0)
        lock = open("/tmp/upcall-test-sysctl", O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    need(lock >= 0, "the lock");
    need(flock(lock, LOCK_EX) == 0, "flock");
    int old = read_sysctl();
    if (old < 0)
        cannot("this kernel has no kernel.io_uring_disabled");
    if (old >= value)
        return; /* as it is */
    long holder = is_machine_ours ? 0 : ring_holder();
    if (holder)
        cannot("process %ld uses io_uring: it would be denied for the whole machine", holder);
    int fds[2], ready[2];
    need(pipe2(fds, O_CLOEXEC) == 0 && pipe2(ready, O_CLOEXEC) == 0, "pipe");
    pid_t child = fork();
    need(child >= 0, "fork");
    if (child == 0) {
        if (setsid() < 0 || fork() != 0) /* not ended with this one's group */
            _exit(0);
        for (int signal_number = 1; signal_number < 32; signal_number++)
            signal(signal_number, SIG_IGN);
        /* Not to hold up who waits for the end of the output. */
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0), dup2(null, 1), dup2(null, 2);
        close(fds[1]);
        bool done = write_sysctl(value);
        if (write(ready[1], done ? "y" : "n", 1) != 1)
            done = true;
        char byte;
        while (read(fds[0], &byte, 1) < 0 && errno == EINTR) {}
        if (done)
            write_sysctl(old);
        _exit(0); /* and with it the lock */
    }
    waitpid(child, NULL, 0);
    close(fds[0]);
    close(ready[1]);
    close(lock); /* the other process has it */
    char done = 'n';
    if (read(ready[0], &done, 1) != 1 || done != 'y')
        cannot("kernel.io_uring_disabled cannot be set here");
    sysctl_pipe = fds[1];
}

/* Returns when the old value is back. */
static void restore_sysctl(void) {
    if (sysctl_pipe < 0)
        return;
    close(sysctl_pipe);
    sysctl_pipe = -1;
    int lock = open("/run/lock/upcall-test-sysctl", O_RDWR | O_CLOEXEC);
    if (lock < 0)
        lock = open("/tmp/upcall-test-sysctl", O_RDWR | O_CLOEXEC);
    if (lock >= 0) {
        flock(lock, LOCK_EX);
        close(lock);
    }
}

/* ---- Running. ---- */

struct job {
    const char *path;
    char short_name[128]; /* c.op_file.static: op_file */
    FILE *output;
    pid_t child;
};

static const char *needs_file = DENIED_DIRECTORY "/needs.txt";

/* The tests of this program that need what this environment denies: "name=why" separated by newlines. */
static char *skips_of(const struct environment *environment, const char *program) {
    FILE *file = fopen(needs_file, "re");
    if (file == NULL) {
        perror(needs_file);
        exit(1);
    }
    char *all = calloc(1, 1), line[1024];
    while (fgets(line, sizeof line, file)) {
        char where[128], of[128], test[128];
        int at = 0;
        line[strcspn(line, "\n")] = 0;
        if (line[0] == '#' || sscanf(line, "%127s %127s %127s %n", where, of, test, &at) < 3 || at == 0)
            continue;
        bool here = false;
        for (char *rest, *word = strtok_r(where, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
            size_t length = strlen(word);
            here = here || (word[length - 1] == '*' ? strncmp(word, environment->name, length - 1) == 0
                                                    : strcmp(word, environment->name) == 0);
        }
        if (!here || strcmp(of, program) != 0)
            continue;
        all = realloc(all, strlen(all) + strlen(line) + 2);
        sprintf(all + strlen(all), "%s=%s\n", test, line + at);
    }
    fclose(file);
    return all;
}

/* A copy of the program that runs as another user than who starts it. */
static int set_user_id_copy(int program) {
    char path[4200], buffer[65536];
    snprintf(path, sizeof path, "%s/program-XXXXXX", directory);
    int copy = mkostemp(path, O_CLOEXEC);
    need(copy >= 0, "mkstemp");
    for (ssize_t n; (n = read(program, buffer, sizeof buffer)) > 0;)
        need(write(copy, buffer, (size_t)n) == n, "write");
    need(fchown(copy, OWNER, OWNER) == 0 && fchmod(copy, 04755) == 0, "fchmod");
    close(copy);
    copy = open(path, O_RDONLY | O_CLOEXEC);
    need(copy >= 0, "open");
    unlink(path);
    return copy;
}

static void run_child(const struct environment *environment, const struct job *job) {
    dup2(fileno(job->output), STDOUT_FILENO);
    dup2(fileno(job->output), STDERR_FILENO);
    setvbuf(stdout, NULL, _IONBF, 0);
    signal(SIGPIPE, SIG_DFL);
    /* By descriptor: the user the program runs as may not be allowed to go where it is. */
    int program = open(job->path, O_RDONLY | O_CLOEXEC);
    need(program >= 0, job->path);
    char *skips = skips_of(environment, job->short_name);
    setenv("UPCALL_TEST_SKIP", skips, 1);
    setenv("TMPDIR", directory, 1);
    unsetenv("UPCALL_BACKEND");
    if (environment->denied)
        setenv("UPCALL_TEST_DENIED", environment->denied, 1);
    if (environment->backend)
        setenv("UPCALL_TEST_BACKEND", environment->backend, 1);
    if (environment->reason)
        setenv("UPCALL_TEST_REASON", environment->reason, 1);
    need(chdir(directory) == 0, "chdir");
    if (environment->set_user_id)
        program = set_user_id_copy(program);
    environment->make(environment->arg);
    char *const argv[] = {(char *)(uintptr_t)job->path, NULL};
    extern char **environ;
    syscall(SYS_execveat, program, "", argv, environ, AT_EMPTY_PATH);
    printf("execveat: %s\n", strerror(errno));
    _exit(126);
}

static void start_job(const struct environment *environment, struct job *job) {
    job->output = tmpfile();
    if (job->output == NULL) {
        perror("tmpfile");
        exit(1);
    }
    fcntl(fileno(job->output), F_SETFD, FD_CLOEXEC);
    fflush(stdout);
    job->child = fork();
    if (job->child < 0) {
        perror("fork");
        exit(1);
    }
    if (job->child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_child(environment, job);
    }
}

struct counts {
    unsigned run, skipped, failed;
};

/* Prints what a program said of tests that did not pass. The reason of a skip is the line before it. */
static bool report_job(const struct job *job, int status, struct counts *counts, const char **cannot_text) {
    static char kept[1024];
    char line[8192], before[8192] = "";
    unsigned failed = 0, skipped = 0;
    bool summed = false;
    rewind(job->output);
    while (fgets(line, sizeof line, job->output)) {
        char name[256];
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "ok ", 3) == 0) {
            counts->run++;
        } else if (sscanf(line, "skipped %255s", name) == 1 && strcmp(name, ":") != 0 && line[7] == ' ') {
            const char *why = before + strspn(before, " ");
            printf("  skipped %s.%s: %s\n", job->short_name, name, *why ? why : "(no reason given)");
            skipped++;
        } else if (strncmp(line, "skipped: ", 9) == 0 || strncmp(line, "cannot: ", 8) == 0) {
            snprintf(kept, sizeof kept, "%s", strchr(line, ' ') + 1);
            *cannot_text = kept;
        } else if (strncmp(line, "FAILED", 6) == 0) {
            if (*before)
                printf("  %s\n", before);
            printf("  %s: %s\n", job->short_name, line);
            counts->run++;
            failed++;
        } else if (strstr(line, " run, ") != NULL) {
            summed = true;
        }
        bool verdict = strncmp(line, "ok ", 3) == 0 || strncmp(line, "skipped", 7) == 0 || strncmp(line, "FAILED", 6) == 0;
        snprintf(before, sizeof before, "%s", verdict ? "" : line);
    }
    fclose(job->output);
    bool is_cannot = WIFEXITED(status) && WEXITSTATUS(status) == 77 && !summed;
    bool is_fine = WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77) && summed;
    if (!is_cannot && !is_fine && failed == 0) {
        printf("  %s: FAILED, status %#x\n", job->short_name, (unsigned)status);
        failed++;
    }
    counts->failed += failed;
    counts->skipped += skipped;
    return !is_cannot;
}

static int run(const struct environment *environment, char **paths, size_t count, size_t jobs) {
    struct job *all = calloc(count, sizeof *all);
    struct counts counts = {0};
    const char *cannot_text = "";
    size_t started = 0, running = 0;
    bool possible = true;
    for (size_t i = 0; i < count; i++) {
        const char *base = strrchr(paths[i], '/');
        base = base ? base + 1 : paths[i];
        base += strncmp(base, "c.", 2) == 0 ? 2 : strncmp(base, "denied.", 7) == 0 ? 7 : 0;
        snprintf(all[i].short_name, sizeof all[i].short_name, "%.*s", (int)strcspn(base, "."), base);
        all[i].path = paths[i];
    }
    while (possible && (started < count || running > 0)) {
        if (started < count && running < jobs) {
            start_job(environment, &all[started++]);
            running++;
            continue;
        }
        int status;
        pid_t child = wait(&status);
        for (size_t i = 0; i < started; i++)
            if (all[i].child == child && child > 0) {
                running--;
                possible = report_job(&all[i], status, &counts, &cannot_text) && possible;
            }
    }
    for (size_t i = 0; running > 0 && i < started; i++) /* the rest cannot run, either */
        if (waitpid(all[i].child, NULL, 0) > 0)
            running--;
    free(all);
    if (!possible) {
        printf("%s: not possible here: %s\n", environment->name, cannot_text);
        return 77;
    }
    printf("%s: %zu programs, %u tests run, %u skipped, %u failed\n", environment->name, count, counts.run,
           counts.skipped, counts.failed);
    return counts.failed ? 1 : counts.run ? 0 : 77;
}

static void remove_directory(void) {
    DIR *dir = opendir(directory);
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    if (dir)
        closedir(dir);
    rmdir(directory);
}

int main(int argc, char **argv) {
    size_t jobs = 1;
    int at = 1;
    for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
        if (strcmp(argv[at], "--jobs") == 0 && at + 1 < argc) {
            jobs = strtoul(argv[++at], NULL, 10);
        } else if (strcmp(argv[at], "--machine") == 0) {
            is_machine_ours = true;
        } else if (strcmp(argv[at], "--list") == 0) {
            for (size_t i = 0; i < COUNT_OF(environments); i++)
                puts(environments[i].name);
            return 0;
        }
    }
    const struct environment *environment = NULL;
    for (size_t i = 0; at < argc && i < COUNT_OF(environments); i++)
        if (strcmp(environments[i].name, argv[at]) == 0)
            environment = &environments[i];
    if (environment == NULL || at + 1 >= argc || jobs == 0) {
        fprintf(stderr, "usage: denied [--jobs N] [--machine] ENVIRONMENT PROGRAM... | denied --list\n");
        return 2;
    }
    const char *where = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/upcall-denied-XXXXXX", where && *where ? where : "/tmp");
    if (mkdtemp(directory) == NULL || chmod(directory, 0777) != 0) {
        perror(directory);
        return 1;
    }
    atexit(remove_directory);
    if (environment->sysctl) {
        pid_t child = fork(); /* of its own, so that `cannot` leaves the directory to be removed */
        if (child < 0) {
            perror("fork");
            return 1;
        }
        if (child == 0) {
            set_sysctl(environment->sysctl);
            int result = run(environment, argv + at + 1, (size_t)(argc - at - 1), jobs);
            fflush(stdout);
            restore_sysctl();
            _exit(result);
        }
        int status;
        waitpid(child, &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    }
    return run(environment, argv + at + 1, (size_t)(argc - at - 1), jobs);
}
