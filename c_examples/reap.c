/*
 * Reads many files without a single callback.
 *
 * An operation without a callback leaves its event to be fetched by upcall_reap(): plain records, many at a time. This
 * suits batch programs, like this one, and language bindings. Each file goes through open, pread until its end, close;
 * a fixed number of files is under way, and each turn is the same three steps:
 *
 *   1. submit, in one call, the next operation of every file that is ready for one;
 *   2. poll: hand them over and wait until some records are there;
 *   3. reap: take the records in batches, and note what each file does next.
 *
 * Prints lines and bytes of each file and in total, as `wc -lc` does.
 */

#define _GNU_SOURCE 1

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <upcall.h>

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    RECORDS = 64,         /* taken per upcall_reap() */
};

struct options {
    size_t depth;
    size_t piece_size;
    bool quiet;
};

/* The files to read. */
struct paths {
    char **items;
    size_t count;
    size_t room;
};

enum step { OPENING, READING, CLOSING };

/* A place that one file after another takes. It has at most one operation in flight. */
struct place {
    enum step step; /* what the operation in flight does */
    const char *path;
    char *bytes;
    int fd;
    int64_t offset;
    uint64_t lines;
    bool failed;
};

struct reader {
    const struct options *options;
    upcall_loop *loop;
    const struct paths *paths;
    size_t next; /* path to begin with */
    struct place *places;
    size_t busy;
    upcall_op *ops; /* the operations to submit with the next turn: at most one for each place */
    size_t op_count;
    uint64_t files, lines, bytes, failures;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "reap: %s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_MONOTONIC, &now) < 0)
        die("clock_gettime", strerror(errno));
    return (uint64_t)now.tv_sec * UPCALL_SECOND + (uint64_t)now.tv_nsec;
}

/* ---- what to read ---- */

/* Takes `path` over. */
static void add_path(struct paths *paths, char *path)
{
    if (paths->count == paths->room) {
        paths->room = paths->room > 0 ? paths->room * 2 : 64;
        paths->items = realloc(paths->items, paths->room * sizeof *paths->items);
        if (paths->items == NULL)
            die("realloc", strerror(errno));
    }
    paths->items[paths->count++] = path;
}

/* The regular files of a directory, and of those in it; symbolic links are not followed. */
static bool add_directory(struct paths *paths, const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    bool good = true;

    if (directory == NULL) {
        fprintf(stderr, "reap: %s: %s\n", path, strerror(errno));
        return false;
    }
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        struct stat status;
        char *inside;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (asprintf(&inside, "%s/%s", path, entry->d_name) < 0)
            die("asprintf", "out of memory");
        if (lstat(inside, &status) < 0) {
            fprintf(stderr, "reap: %s: %s\n", inside, strerror(errno));
            good = false;
        } else if (S_ISREG(status.st_mode)) {
            add_path(paths, inside);
            continue; /* the list owns it now */
        } else if (S_ISDIR(status.st_mode)) {
            good &= add_directory(paths, inside);
        }
        free(inside);
    }
    if (errno != 0) {
        fprintf(stderr, "reap: %s: %s\n", path, strerror(errno));
        good = false;
    }
    if (closedir(directory) < 0)
        die("closedir", strerror(errno));
    return good;
}

static bool add_argument(struct paths *paths, const char *path)
{
    struct stat status;
    char *copy;

    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
        return add_directory(paths, path);
    copy = strdup(path); /* whatever else is wrong with it, the open or the read will tell */
    if (copy == NULL)
        die("strdup", strerror(errno));
    add_path(paths, copy);
    return true;
}

static void free_paths(struct paths *paths)
{
    for (size_t i = 0; i < paths->count; i++)
        free(paths->items[i]);
    free(paths->items);
}

/* ---- what a file does next ---- */

static void add_op(struct reader *reader, struct place *place, enum step step, upcall_op op)
{
    place->step = step;
    op.user = place; /* comes back in the record; there is no callback */
    reader->ops[reader->op_count++] = op;
}

static void open_next(struct reader *reader, struct place *place)
{
    if (reader->next == reader->paths->count)
        return;
    *place = (struct place){.path = reader->paths->items[reader->next++], .bytes = place->bytes, .fd = -1};
    reader->busy++;
    /* O_NONBLOCK: opening a FIFO must not wait for a writer. A regular file does not mind. */
    add_op(reader, place, OPENING, upcall_op_open(AT_FDCWD, place->path, O_RDONLY | O_NONBLOCK, 0));
}

static void read_on(struct reader *reader, struct place *place)
{
    upcall_op op = upcall_op_pread(place->fd, place->bytes, reader->options->piece_size, place->offset);

    op.flags = UPCALL_FULL; /* so a short one means the end of the file */
    add_op(reader, place, READING, op);
}

static void leave(struct reader *reader, struct place *place)
{
    if (place->failed) {
        reader->failures++;
    } else {
        reader->files++;
        reader->lines += place->lines;
        reader->bytes += (uint64_t)place->offset;
        if (!reader->options->quiet)
            printf("%10llu %12lld %s\n", (unsigned long long)place->lines, (long long)place->offset, place->path);
    }
    reader->busy--;
    open_next(reader, place);
}

static void complain(struct place *place, const char *verb, int64_t error)
{
    fprintf(stderr, "reap: %s %s: %s\n", verb, place->path, upcall_strerror((int)error));
    place->failed = true;
}

static void take_bytes(struct place *place, size_t count)
{
    const char *at = place->bytes, *end = place->bytes + count;

    place->offset += (int64_t)count;
    while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
        place->lines++;
        at++;
    }
}

static void take_record(struct reader *reader, const upcall_event *record)
{
    struct place *place = record->user;

    switch (place->step) {
    case OPENING:
        if (record->result < 0) {
            complain(place, "open", record->result);
            leave(reader, place);
            return;
        }
        place->fd = (int)record->result;
        read_on(reader, place);
        return;
    case READING:
        if (record->result < 0)
            complain(place, "read", record->result);
        else
            take_bytes(place, (size_t)record->result);
        if (record->result == (int64_t)reader->options->piece_size)
            read_on(reader, place);
        else
            add_op(reader, place, CLOSING, upcall_op_close(place->fd));
        return;
    case CLOSING:
        if (record->result < 0)
            complain(place, "close", record->result);
        leave(reader, place);
        return;
    }
}

/* ---- the turns ---- */

static void take_records(struct reader *reader)
{
    upcall_event records[RECORDS];
    int count;

    while ((count = upcall_reap(reader->loop, records, RECORDS)) > 0)
        for (int i = 0; i < count; i++)
            take_record(reader, &records[i]);
    if (count < 0)
        die("upcall_reap", upcall_strerror(count));
}

static void read_all(struct reader *reader)
{
    for (size_t i = 0; i < reader->options->depth; i++)
        open_next(reader, &reader->places[i]);
    while (reader->busy > 0) {
        int rc;

        if (reader->op_count > 0 && upcall_submit(reader->loop, reader->ops, reader->op_count, NULL) < 0)
            die("upcall_submit", upcall_last_error());
        reader->op_count = 0; /* the descriptors were copied */
        rc = upcall_poll(reader->loop, -1);
        if (rc < 0)
            die("upcall_poll", upcall_strerror(rc));
        take_records(reader);
    }
}

static void make_places(struct reader *reader)
{
    size_t depth = reader->options->depth;

    reader->places = calloc(depth, sizeof *reader->places);
    reader->ops = calloc(depth, sizeof *reader->ops);
    if (reader->places == NULL || reader->ops == NULL)
        die("calloc", strerror(errno));
    for (size_t i = 0; i < depth; i++) {
        reader->places[i].bytes = malloc(reader->options->piece_size);
        if (reader->places[i].bytes == NULL)
            die("malloc", strerror(errno));
    }
}

static void free_places(struct reader *reader)
{
    for (size_t i = 0; i < reader->options->depth; i++)
        free(reader->places[i].bytes);
    free(reader->places);
    free(reader->ops);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: reap [--depth N] [--piece BYTES] [--quiet] [--help] PATH...\n"
                 "Counts lines and bytes of files, and of the files in directories.\n"
                 "  --depth N      files under way at a time (64)\n"
                 "  --piece BYTES  read at a time (65536)\n"
                 "  --quiet        only the total\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 all were read, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
}

static size_t parse_count(const char *text, unsigned long max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > max) {
        fprintf(stderr, "reap: '%s' is not a number from 1 to %lu\n", text, max);
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"depth", required_argument, NULL, 'd'}, {"piece", required_argument, NULL, 'p'},
        {"quiet", no_argument, NULL, 'q'},       {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.depth = 64, .piece_size = 64 * 1024};
    int option;

    while ((option = getopt_long(argc, argv, "qh", known, NULL)) != -1) {
        switch (option) {
        case 'd': options.depth = parse_count(optarg, 4096); break;
        case 'p': options.piece_size = parse_count(optarg, 64UL * 1024 * 1024); break;
        case 'q': options.quiet = true; break;
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
    struct paths paths = {.count = 0};
    struct reader reader = {.options = &options, .paths = &paths};
    uint64_t started_ns;
    bool good = true;
    int rc;

    rc = upcall_loop_new(NULL, &reader.loop);
    if (rc < 0) {
        fprintf(stderr, "reap: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    for (int i = optind; i < argc; i++)
        good &= add_argument(&paths, argv[i]);
    make_places(&reader);
    started_ns = now_ns();
    read_all(&reader);
    printf("%10llu %12llu total of %llu files\n", (unsigned long long)reader.lines, (unsigned long long)reader.bytes,
           (unsigned long long)reader.files);
    fprintf(stderr, "reap: %.3f s on %s\n", (double)(now_ns() - started_ns) / UPCALL_SECOND,
            upcall_backend_name(upcall_loop_backend(reader.loop)));

    rc = upcall_loop_free(reader.loop);
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    free_places(&reader);
    free_paths(&paths);
    return good && reader.failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
