/*
 * Copies a file with many reads and writes in flight.
 *
 *   - Positional I/O, upcall_op_pread() and upcall_op_pwrite(): operations end in any order, so each says where its
 *     bytes belong. A fixed number of pieces goes round and round: read, write, next piece.
 *   - UPCALL_FULL: a piece is read and written whole; a read comes back short at the end of the file only.
 *   - Holes stay holes: SEEK_DATA and SEEK_HOLE tell where there is something to read, ftruncate(2) sets the length.
 *   - The source may grow or shrink meanwhile. Growth is followed, for a bounded number of passes, so the copy of a log
 *     that is being written is a true beginning of it; where the source ends earlier than expected the copy is cut.
 *   - upcall_run() ends when nothing is in flight: that is how a pass ends. The progress bar's ticks are marked
 *     UPCALL_BACKGROUND and do not count.
 *   - A disk operation that has started cannot be cancelled: after an error no new ones start, and those in flight are
 *     waited for, because they use the buffers.
 */

#define _GNU_SOURCE 1

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
#include <unistd.h>

#include <upcall.h>

#define PROGRESS_NS (100 * UPCALL_MILLISECOND)

enum {
    EXIT_NO_BACKEND = 77, /* what test runners take for "skipped: this machine cannot" */
    PASSES_MAX = 16,      /* a file that grows as fast as it is copied must not keep us for ever */
    BAR_WIDTH = 40,
};

struct options {
    const char *source;
    const char *target;
    size_t depth;
    size_t piece_size;
    bool verbose;
};

struct copy;

/* A piece of the file on its way: read, then written. */
struct piece {
    struct copy *copy;
    unsigned char *bytes;
    int64_t offset;
    size_t size;
};

struct copy {
    const struct options *options;
    upcall_loop *loop;
    int in, out;
    struct piece *pieces;
    bool failed;         /* told already; no new pieces start */
    bool bar_drawn;      /* the terminal's line is in use */
    int64_t position;    /* where the next piece begins */
    int64_t extent_end;  /* of the data that `position` is in */
    int64_t end;         /* of this pass; lowered when the source turns out to end earlier */
    int64_t hole_bytes;  /* skipped */
    int64_t written;
    uint64_t started_ns;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "cp: %s: %s\n", what, why);
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

static void run(upcall_loop *loop)
{
    int rc = upcall_run(loop);

    if (rc != 0)
        die("upcall_run", rc < 0 ? upcall_strerror(rc) : "stopped");
}

/* ---- one step at a time, for what comes before and after the copying ---- */

static void keep_result(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    *(int64_t *)event->user = event->result;
}

/* Runs one operation and waits for it. Not in a callback: a loop that waits inside itself would never wake. */
static int await(upcall_loop *loop, upcall_op op)
{
    int64_t result = -EIO;

    op.callback = keep_result;
    op.user = &result;
    submit(loop, op);
    run(loop);
    return (int)result;
}

static bool complain(const char *verb, const char *path, int error)
{
    fprintf(stderr, "cp: %s %s: %s\n", verb, path, upcall_strerror(error));
    return false;
}

/* ---- the pieces ---- */

static void start_piece(struct piece *piece);

/* The first error is told, those that follow from it are not. */
static void fail(struct copy *copy, const char *verb, const char *path, int64_t offset, int error)
{
    if (!copy->failed)
        fprintf(stderr, "%scp: %s %s at offset %lld: %s\n", copy->bar_drawn ? "\n" : "", verb, path, (long long)offset,
                upcall_strerror(error));
    copy->failed = true;
}

static void source_ends_at(struct copy *copy, int64_t offset)
{
    if (offset < copy->end)
        copy->end = offset;
}

/* What lseek(2) calls ENXIO: no data from `position` on. Either a hole up to the end, or the file has shrunk. */
static void no_more_data(struct copy *copy)
{
    struct stat status;

    if (fstat(copy->in, &status) < 0) {
        fail(copy, "stat", copy->options->source, copy->position, -errno);
        return;
    }
    source_ends_at(copy, status.st_size);
    if (copy->position < copy->end) {
        copy->hole_bytes += copy->end - copy->position;
        copy->position = copy->end;
    }
}

/* Moves `position` over a hole to the next data. These calls read metadata only, which is why they may be made here,
 * on the loop's thread; and a pread does not care where lseek(2) leaves the file's own position. */
static void find_data(struct copy *copy)
{
    off_t data = lseek(copy->in, copy->position, SEEK_DATA);
    off_t hole;

    if (data < 0 && errno == EINVAL) {
        copy->extent_end = copy->end; /* a file system that knows no holes: everything is data */
        return;
    }
    hole = data < 0 ? -1 : lseek(copy->in, data, SEEK_HOLE);
    if (hole < 0 && errno == ENXIO) {
        no_more_data(copy);
        return;
    }
    if (hole < 0) {
        fail(copy, "seek in", copy->options->source, copy->position, -errno);
        return;
    }
    if (data > copy->end)
        data = copy->end;
    copy->hole_bytes += data - copy->position;
    copy->position = data;
    copy->extent_end = hole < copy->end ? hole : copy->end;
}

/* Cuts the next piece off the data that is left; false: nothing is. */
static bool next_piece(struct copy *copy, struct piece *piece)
{
    int64_t left;

    while (!copy->failed && copy->position < copy->end && copy->position >= copy->extent_end)
        find_data(copy);
    if (copy->failed || copy->position >= copy->end)
        return false;
    left = copy->extent_end - copy->position;
    piece->offset = copy->position;
    piece->size = left < (int64_t)copy->options->piece_size ? (size_t)left : copy->options->piece_size;
    copy->position += (int64_t)piece->size;
    return true;
}

static void on_written(upcall_loop *loop, const upcall_event *event)
{
    struct piece *piece = event->user;
    struct copy *copy = piece->copy;

    (void)loop;
    copy->written += (int64_t)event->transferred;
    if (event->result < 0) {
        fail(copy, "write", copy->options->target, piece->offset + (int64_t)event->transferred, (int)event->result);
        return;
    }
    start_piece(piece);
}

static void on_read(upcall_loop *loop, const upcall_event *event)
{
    struct piece *piece = event->user;
    struct copy *copy = piece->copy;
    size_t got = (size_t)event->transferred;
    upcall_op op;

    if (event->result < 0) {
        fail(copy, "read", copy->options->source, piece->offset + (int64_t)got, (int)event->result);
        return;
    }
    if (got < piece->size) /* UPCALL_FULL: short means that the file ends here now */
        source_ends_at(copy, piece->offset + (int64_t)got);
    if (got == 0 || copy->failed) {
        start_piece(piece);
        return;
    }
    op = upcall_op_pwrite(copy->out, piece->bytes, got, piece->offset);
    op.flags = UPCALL_FULL;
    op.callback = on_written;
    op.user = piece;
    submit(loop, op);
}

/* Sends a piece round again, unless there is nothing left to do. */
static void start_piece(struct piece *piece)
{
    struct copy *copy = piece->copy;
    upcall_op op;

    if (!next_piece(copy, piece))
        return;
    op = upcall_op_pread(copy->in, piece->bytes, piece->size, piece->offset);
    op.flags = UPCALL_FULL;
    op.callback = on_read;
    op.user = piece;
    submit(copy->loop, op);
}

/* ---- the copy ---- */

/* Copies what is between the two offsets, nothing when the source has become shorter than what is copied already.
 * Returns where the source turned out to end, at most `end`. */
static int64_t copy_range(struct copy *copy, int64_t begin, int64_t end)
{
    copy->position = begin;
    copy->extent_end = begin;
    copy->end = end;
    for (size_t i = 0; i < copy->options->depth && !copy->failed; i++)
        start_piece(&copy->pieces[i]);
    run(copy->loop);
    return copy->end;
}

/* Copies until the end of the source, wherever that is by then, and gives the target that length. */
static bool copy_contents(struct copy *copy)
{
    int64_t copied = 0;

    for (int pass = 0; pass < PASSES_MAX; pass++) {
        struct stat status;

        if (fstat(copy->in, &status) < 0)
            return complain("stat", copy->options->source, -errno);
        if (status.st_size == copied)
            break;
        copied = copy_range(copy, copied, status.st_size);
        if (copy->failed)
            return false;
        /* Sets the length over a hole at the end, and cuts off what was written past an end that came to light later,
         * so that no pass finds old bytes where the source has a hole. */
        if (ftruncate(copy->out, copied) < 0)
            return complain("set the length of", copy->options->target, -errno);
    }
    return true;
}

static bool open_source(struct copy *copy, struct statx *status)
{
    const char *path = copy->options->source;
    int rc = await(copy->loop, upcall_op_statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, status));

    if (rc < 0)
        return complain("stat", path, rc);
    if (!S_ISREG(status->stx_mode)) { /* opening a FIFO would wait for a writer */
        fprintf(stderr, "cp: %s: not a regular file\n", path);
        return false;
    }
    copy->in = await(copy->loop, upcall_op_open(AT_FDCWD, path, O_RDONLY, 0));
    if (copy->in < 0)
        return complain("open", path, copy->in);
    /* What was opened may not be what was looked at; this is the file that counts. */
    rc = await(copy->loop, upcall_op_statx(copy->in, "", AT_EMPTY_PATH, STATX_BASIC_STATS, status));
    return rc < 0 ? complain("stat", path, rc) : true;
}

/* Opens the target without emptying it first: it may be the source under another name. */
static bool open_target(struct copy *copy, const struct statx *source)
{
    const char *path = copy->options->target;
    struct statx status;
    int rc = await(copy->loop, upcall_op_statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &status));

    if (rc < 0 && rc != -ENOENT)
        return complain("stat", path, rc);
    if (rc == 0 && !S_ISREG(status.stx_mode)) {
        fprintf(stderr, "cp: %s: not a regular file\n", path);
        return false;
    }
    /* Until the contents are there nobody else needs to read them: the mode is set at the end. */
    copy->out = await(copy->loop, upcall_op_open(AT_FDCWD, path, O_WRONLY | O_CREAT, 0600));
    if (copy->out < 0)
        return complain("open", path, copy->out);
    rc = await(copy->loop, upcall_op_statx(copy->out, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &status));
    if (rc < 0)
        return complain("stat", path, rc);
    if (status.stx_ino == source->stx_ino && status.stx_dev_major == source->stx_dev_major &&
        status.stx_dev_minor == source->stx_dev_minor) {
        fprintf(stderr, "cp: %s and %s are the same file\n", copy->options->source, path);
        return false;
    }
    if (ftruncate(copy->out, 0) < 0)
        return complain("empty", path, -errno);
    return true;
}

/* The permission bits, then everything onto the device. */
static bool finish_target(struct copy *copy, const struct statx *source)
{
    const char *path = copy->options->target;
    int rc;

    if (fchmod(copy->out, source->stx_mode & 0777) < 0)
        return complain("set the mode of", path, -errno);
    rc = await(copy->loop, upcall_op_fsync(copy->out));
    return rc < 0 ? complain("fsync", path, rc) : true;
}

static bool close_file(struct copy *copy, int fd, const char *path)
{
    int rc = fd >= 0 ? await(copy->loop, upcall_op_close(fd)) : 0;

    return rc < 0 ? complain("close", path, rc) : true;
}

static bool copy_file(struct copy *copy)
{
    struct statx source;
    bool good = open_source(copy, &source) && open_target(copy, &source) && copy_contents(copy) &&
                finish_target(copy, &source);

    good &= close_file(copy, copy->in, copy->options->source);
    good &= close_file(copy, copy->out, copy->options->target); /* a disk may complain as late as here */
    return good;
}

/* ---- what the user sees ---- */

static void draw_bar(struct copy *copy)
{
    double done = copy->end > 0 ? (double)copy->position / (double)copy->end : 1;
    double seconds = (double)(now_ns() - copy->started_ns) / UPCALL_SECOND;
    int width = (int)(done * BAR_WIDTH);

    if (width > BAR_WIDTH)
        width = BAR_WIDTH; /* the source has just shrunk */
    fprintf(stderr, "\r[%.*s%*s] %3d %%  %.0f MB/s ", width, "########################################",
            BAR_WIDTH - width, "", width * 100 / BAR_WIDTH, (double)copy->written / 1e6 / seconds);
    copy->bar_drawn = true;
}

static void on_progress(upcall_loop *loop, const upcall_event *event)
{
    (void)loop;
    if (event->result >= 0)
        draw_bar(event->user);
}

static void start_progress(struct copy *copy)
{
    upcall_op op = upcall_op_sleep(PROGRESS_NS);

    op.flags = UPCALL_MULTISHOT | UPCALL_BACKGROUND; /* again and again, and no reason for upcall_run() to go on */
    op.callback = on_progress;
    op.user = copy;
    submit(copy->loop, op);
}

static void print_summary(const struct copy *copy)
{
    double seconds = (double)(now_ns() - copy->started_ns) / UPCALL_SECOND;

    printf("copied %.1f MB in %.3f s (%.0f MB/s, with fsync), kept %.1f MB of holes, on %s\n",
           (double)copy->written / 1e6, seconds, (double)copy->written / 1e6 / seconds,
           (double)copy->hole_bytes / 1e6, upcall_backend_name(upcall_loop_backend(copy->loop)));
}

static void usage(FILE *out)
{
    fprintf(out, "usage: cp [--depth N] [--piece BYTES] [--verbose] [--help] SOURCE TARGET\n"
                 "Copies a regular file: contents, holes and permission bits.\n"
                 "  --depth N      reads and writes in flight (16)\n"
                 "  --piece BYTES  size of each (262144)\n"
                 "  --verbose      tell what was copied, and how fast\n"
                 "On a terminal a progress bar is shown.\n"
                 "UPCALL_BACKEND=io_uring or =epoll in the environment chooses the backend.\n"
                 "Exit status: 0 copied, 1 not, 2 usage, 77 the chosen backend is denied here.\n");
}

static size_t parse_count(const char *text, unsigned long max)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > max) {
        fprintf(stderr, "cp: '%s' is not a number from 1 to %lu\n", text, max);
        exit(2);
    }
    return value;
}

static struct options parse(int argc, char **argv)
{
    static const struct option known[] = {
        {"depth", required_argument, NULL, 'd'}, {"piece", required_argument, NULL, 'p'},
        {"verbose", no_argument, NULL, 'v'},     {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    struct options options = {.depth = 16, .piece_size = 256 * 1024};
    int option;

    while ((option = getopt_long(argc, argv, "vh", known, NULL)) != -1) {
        switch (option) {
        case 'd': options.depth = parse_count(optarg, 4096); break;
        case 'p': options.piece_size = parse_count(optarg, 64UL * 1024 * 1024); break;
        case 'v': options.verbose = true; break;
        case 'h': usage(stdout); exit(EXIT_SUCCESS);
        default: usage(stderr); exit(2);
        }
    }
    if (argc - optind != 2) {
        usage(stderr);
        exit(2);
    }
    options.source = argv[optind];
    options.target = argv[optind + 1];
    return options;
}

static void make_pieces(struct copy *copy)
{
    size_t depth = copy->options->depth, size = copy->options->piece_size;

    copy->pieces = calloc(depth, sizeof *copy->pieces);
    if (copy->pieces == NULL)
        die("calloc", strerror(errno));
    for (size_t i = 0; i < depth; i++) {
        copy->pieces[i].copy = copy;
        copy->pieces[i].bytes = malloc(size);
        if (copy->pieces[i].bytes == NULL)
            die("malloc", strerror(errno));
    }
}

static void free_pieces(struct copy *copy)
{
    for (size_t i = 0; i < copy->options->depth; i++)
        free(copy->pieces[i].bytes);
    free(copy->pieces);
}

int main(int argc, char **argv)
{
    struct options options = parse(argc, argv);
    struct copy copy = {.options = &options, .in = -1, .out = -1};
    bool bar = isatty(STDERR_FILENO) == 1;
    bool good;
    int rc;

    rc = upcall_loop_new(NULL, &copy.loop);
    if (rc < 0) {
        fprintf(stderr, "cp: no loop: %s\n", upcall_last_error());
        return rc == -EPERM || rc == -ENOSYS ? EXIT_NO_BACKEND : EXIT_FAILURE;
    }
    make_pieces(&copy);
    copy.started_ns = now_ns();
    if (bar)
        start_progress(&copy);

    good = copy_file(&copy);
    if (bar && good) {
        draw_bar(&copy);
        fprintf(stderr, "\n");
    }
    if (options.verbose && good)
        print_summary(&copy);

    rc = upcall_loop_free(copy.loop); /* ends the progress ticks as well; after it the buffers are free */
    if (rc < 0)
        die("upcall_loop_free", upcall_strerror(rc));
    free_pieces(&copy);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
