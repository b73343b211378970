/*
 * What Upcall does on this machine.
 *
 * A loop decides twice. When it is made, it takes a backend: io_uring if the kernel and the sandbox allow it, otherwise
 * epoll, and upcall_backend_reason() tells why. Then each operation is done in the best way that backend has for it, and
 * upcall_supports() tells which:
 *
 *   native       one io_uring operation, done by the kernel
 *   emulated     the loop waits for readiness and makes a non-blocking call, or a thread makes a blocking one
 *   unsupported  it ends in -EOPNOTSUPP
 *
 * Results are the same whatever is printed here; what they cost is not. This program makes the loop that any program
 * would get, and then one on each backend to print side by side what they do.
 *
 * Try it with UPCALL_BACKEND=epoll, in a container, or with parts of the ring turned off: UPCALL_MASK=multishot,!statx.
 */

#define _GNU_SOURCE 1

#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include <upcall.h>

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    KINDS_MAX = 128,      /* more than there are; the numbers in between are "unknown" */
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "info: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static void free_loop(upcall_loop *loop)
{
    int rc = upcall_loop_free(loop); /* NULL is fine */

    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
}

/* ---- the loop that a program gets ---- */

static void print_machine(void)
{
    struct utsname system;

    if (uname(&system) < 0)
        die("uname", strerror(errno));
    printf("upcall    %s (compiled with the header of %d.%d.%d)\n", upcall_version(), UPCALL_VERSION_MAJOR,
           UPCALL_VERSION_MINOR, UPCALL_VERSION_PATCH);
    printf("kernel    %s %s on %s\n", system.sysname, system.release, system.machine);
}

/* Names a variable that has a say, for whoever wonders about the rest of the output. */
static void print_variable(const char *name)
{
    const char *value = getenv(name);

    if (value != NULL && *value != '\0')
        printf("          %s=%s in the environment\n", name, value);
}

static void print_choice(const upcall_loop *loop)
{
    printf("backend   %s\n", upcall_backend_name(upcall_loop_backend(loop)));
    printf("reason    %s\n", upcall_backend_reason(loop));
    print_variable("UPCALL_BACKEND");
    print_variable("UPCALL_MASK");
}

/* ---- both backends ---- */

/* A loop on a backend that the program insists on: instead of falling back it fails, and upcall_last_error() says why. */
static upcall_loop *try_backend(upcall_backend backend)
{
    upcall_config config;
    upcall_loop *loop = NULL;
    int rc;

    upcall_config_init(&config);
    config.backend = backend;
    rc = upcall_loop_new(&config, &loop);
    if (rc < 0) {
        printf("  %-9s not used here: %s\n", upcall_backend_name(backend), upcall_last_error());
        return NULL;
    }
    printf("  %-9s %s\n", upcall_backend_name(backend), upcall_backend_reason(loop));
    return loop;
}

static const char *way(const upcall_loop *loop, upcall_kind kind)
{
    if (loop == NULL)
        return "-";
    switch (upcall_supports(loop, kind)) {
    case UPCALL_NATIVE: return "native";
    case UPCALL_EMULATED: return "emulated";
    default: return "unsupported";
    }
}

static void print_operations(const upcall_loop *ring, const upcall_loop *epoll)
{
    int kinds = 0, native = 0;

    printf("\n%4s  %-14s %-12s %s\n", "kind", "operation", "io_uring", "epoll");
    for (upcall_kind kind = 1; kind < KINDS_MAX; kind++) {
        const char *name = upcall_op_name(kind);

        if (strcmp(name, "unknown") == 0)
            continue;
        printf("%4u  %-14s %-12s %s\n", (unsigned)kind, name, way(ring, kind), way(epoll, kind));
        kinds++;
        native += ring != NULL && upcall_supports(ring, kind) == UPCALL_NATIVE;
    }
    printf("\n%d operations, %d of them native on io_uring\n", kinds, native);
}

/* ---- the program ---- */

static void usage(FILE *out)
{
    fprintf(out, "usage: info [--help]\n"
                 "Prints which backend Upcall takes here, why, and how each backend does each operation.\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend; UPCALL_MASK turns parts of the\n"
                 "ring off.\n"
                 "Exit status: 0, 1 an error, 2 usage, 77 the chosen backend is denied here.\n");
}

int main(int argc, char **argv)
{
    static const struct option known[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    upcall_loop *loop = NULL, *ring, *epoll;
    int option, rc;

    while ((option = getopt_long(argc, argv, "h", known, NULL)) != -1) {
        usage(option == 'h' ? stdout : stderr);
        return option == 'h' ? EXIT_SUCCESS : 2;
    }
    if (optind != argc) {
        usage(stderr);
        return 2;
    }

    print_machine();
    rc = upcall_loop_new(NULL, &loop);
    if (rc < 0) { /* it was insisted on io_uring; or UPCALL_MASK has a word that means nothing */
        fprintf(stderr, "info: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    print_choice(loop);
    free_loop(loop);

    printf("\nboth backends\n");
    ring = try_backend(UPCALL_BACKEND_IO_URING);
    epoll = try_backend(UPCALL_BACKEND_EPOLL);
    print_operations(ring, epoll);
    free_loop(ring);
    free_loop(epoll);
    if (ferror(stdout) || fflush(stdout) != 0)
        die("stdout", strerror(errno));
    return EXIT_SUCCESS;
}
