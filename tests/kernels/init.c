/*
 * The first and only other program of a virtual machine that runs the C tests: it prepares what they need (file systems,
 * the loopback interface), runs what /todo says, and powers off. What it prints on the console is read by run.sh: lines that
 * begin with "@@". A line of /todo is a backend, a program of /tests, and a stamp that is printed with it. The kernel passes
 * what it does not know of its command line, NAME=VALUE, as the environment: TESTS (the programs' arguments), and what the
 * tests themselves look at.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void complain(const char *what, const char *about) {
    printf("@@ problem %s %s: %s\n", what, about, strerror(errno));
}

static void mount_at(const char *source, const char *type, const char *at) {
    mkdir(at, 0755);
    if (mount(source, at, type, 0, NULL) != 0)
        complain("mount", at);
}

/* Loads what is in /modules, files that are numbered so that each comes after what it needs. */
static void load_modules(void) {
    struct dirent **names;
    int count = scandir("/modules", &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        if (names[i]->d_name[0] == '.')
            continue;
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST))
            complain("module", path);
        close(fd);
    }
}

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request) != 0)
        complain("interface", "lo");
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
        complain("interface", "lo");
    close(fd);
}

static void prepare(void) {
    mount_at("proc", "proc", "/proc");
    mount_at("sysfs", "sysfs", "/sys");
    mount_at("devtmpfs", "devtmpfs", "/dev");
    mount_at("devpts", "devpts", "/dev/pts");
    mount_at("tmpfs", "tmpfs", "/dev/shm");
    int console = open("/dev/console", O_RDWR | O_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(console, STDOUT_FILENO);
    dup2(console, STDERR_FILENO);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (symlink("/proc/self/fd", "/dev/fd") != 0)
        complain("symlink", "/dev/fd");
    load_modules();
    mount_at("/dev/vda", "ext4", "/tmp");
    chmod("/tmp", 01777);
    loopback_up();
    if (sethostname("kernel", 6) != 0)
        complain("sethostname", "kernel");
    struct rlimit files = {1024, 524288};
    setrlimit(RLIMIT_NOFILE, &files);
}

/* Runs one program on one backend to its end. */
static void run(const char *backend, const char *program, const char *stamp) {
    char path[300];
    struct timespec before, after;
    snprintf(path, sizeof path, "/tests/%s", program);
    printf("@@ begin %s %s %s\n", program, backend, stamp);
    clock_gettime(CLOCK_MONOTONIC, &before);
    pid_t child = fork();
    if (child == 0) {
        setsid();
        setenv("UPCALL_BACKEND", backend, 1);
        char *arguments[20] = {path}, *names = getenv("TESTS");
        for (int i = 1; names != NULL && i < 19 && (arguments[i] = strtok(i == 1 ? names : NULL, ",")) != NULL; i++) {}
        if (chdir("/tmp") == 0)
            execv(path, arguments);
        complain("run", path);
        _exit(1);
    }
    int status = 0;
    for (pid_t ended; (ended = wait(&status)) != child;) /* the others: processes that lost their parent */
        if (ended < 0 && errno != EINTR)
            break;
    clock_gettime(CLOCK_MONOTONIC, &after);
    printf("@@ end %s %s %d %ld s\n", program, backend, WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status),
           (long)(after.tv_sec - before.tv_sec));
}

int main(int argc, char **argv) {
    if (getpid() != 1) /* also /bin/true */
        return argc > 1 ? fprintf(stderr, "%s is for a virtual machine\n", argv[0]), 1 : 0;
    prepare();
    struct utsname name;
    uname(&name);
    /* "#1 SMP Debian 6.1.192-1 (2026-01-02)": the release has only the ABI's number. */
    const char *debian = strstr(name.version, "Debian ");
    printf("@@ kernel %s\n", debian ? debian + strlen("Debian ") : name.release);
    char backend[20], program[100], stamp[100];
    FILE *todo = fopen("/todo", "re");
    if (todo == NULL)
        complain("open", "/todo");
    while (todo != NULL && fscanf(todo, "%19s %99s %99s", backend, program, stamp) == 3)
        run(backend, program, stamp);
    printf("@@ done\n");
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
