/* upcall_register_buffers: the same reads and writes, cheaper where the kernel can. */
#include "op_support.h"

enum { PART = 65536 };

static uint8_t *parts[2];

static void make_parts(struct iovec iov[2]) {
    for (int i = 0; i < 2; i++) {
        parts[i] = mmap(NULL, 2 * PART, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(parts[i] != MAP_FAILED);
        iov[1 - i] = (struct iovec){parts[i], PART}; /* in no particular order */
    }
}

static void clear_parts(void) {
    for (int i = 0; i < 2; i++)
        CHECK(munmap(parts[i], 2 * PART) == 0);
}

/* How many buffers some ring of this process has registered, as the kernel tells. */
static int pinned(void) {
    char path[300], line[256];
    int count = 0;
    DIR *dir = opendir("/proc/self/fdinfo");
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "/proc/self/fdinfo/%s", entry->d_name);
        FILE *file = fopen(path, "r");
        for (int n; file != NULL && fgets(line, sizeof line, file) != NULL;)
            if (sscanf(line, "UserBufs: %d", &n) == 1)
                count += n;
        if (file != NULL)
            fclose(file);
    }
    closedir(dir);
    return count;
}

static int pinnable(upcall_loop *loop) {
    const char *mask = getenv("UPCALL_MASK");
    return on_epoll(loop) || (mask != NULL && strstr(mask, "registered_buffers") != NULL) ? 0 : 2;
}

static void read_and_write(upcall_loop *loop, int flags) {
    char path[512];
    snprintf(path, sizeof path, "%s/upcall-registered-%ld", temp_directory(), (long)getpid());
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC | flags, 0600);
    CHECK(fd >= 0 || errno == EINVAL); /* a filesystem without O_DIRECT */
    if (fd < 0)
        return;
    CHECK(unlink(path) == 0);
    /* All of a part, its end, and across its end, where only ordinary I/O reaches. */
    static const struct {
        size_t from, length;
    } places[] = {{0, PART}, {PART - 4096, 4096}, {PART - 4096, 8192}, {PART, 4096}};
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        for (int full = 0; full < 2; full++) {
            size_t from = places[i].from, length = places[i].length;
            fill_pattern(parts[0], 2 * PART, i * 7 + (size_t)full);
            memset(parts[1], 0, 2 * PART);
            upcall_op op = upcall_op_pwrite(fd, parts[0] + from, length, 8192);
            op.flags = full ? UPCALL_FULL : 0;
            CHECK_EQ(complete(loop, op).result, length);
            op = upcall_op_pread(fd, parts[1] + from, length, 8192);
            op.flags = full ? UPCALL_FULL : 0;
            struct record final = complete(loop, op);
            CHECK_EQ(final.result, length);
            CHECK_EQ(final.transferred, length);
            CHECK(has_pattern(parts[1] + from, length, i * 7 + (size_t)full + from));
            for (size_t k = 0; k < from; k++)
                CHECK_EQ(parts[1][k], 0);
            for (size_t k = from + length; k < 2 * PART; k++)
                CHECK_EQ(parts[1][k], 0);
        }
    }
    ends_with(loop, upcall_op_pread(fd, parts[0], 4096, 1 << 20), 0); /* after the end */
    close(fd);
    ends_with(loop, upcall_op_pread(closed_fd(), parts[0], 4096, 0), -EBADF);
    int ends[2];
    pipe_pair(ends);
    ends_with(loop, upcall_op_pread(ends[0], parts[0], 4096, 0), -ESPIPE);
    close_pair(ends);
}

TEST(reads_and_writes_are_the_same_inside_outside_and_across) {
    struct iovec iov[2];
    make_parts(iov);
    upcall_loop *loop = new_loop();
    read_and_write(loop, 0);
    CHECK_EQ(upcall_register_buffers(loop, iov, 2), 0);
    memset(iov, 0xee, sizeof iov); /* copied */
    CHECK_EQ(pinned(), pinnable(loop));
    read_and_write(loop, 0);
    read_and_write(loop, O_DIRECT);
    CHECK_EQ(upcall_unregister_buffers(loop), 0);
    CHECK_EQ(pinned(), 0);
    read_and_write(loop, 0);
    free_loop(loop);
    clear_parts();
}

TEST(before_the_first_poll_and_on_the_next_owner) {
    struct iovec iov[2];
    make_parts(iov);
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_register_buffers(loop, iov, 2), 0);
    read_and_write(loop, 0);
    CHECK_EQ(upcall_loop_detach(loop), 0);
    CHECK_EQ(pinned(), pinnable(loop)); /* the next ring has them too */
    read_and_write(loop, 0);
    free_loop(loop);
    CHECK_EQ(pinned(), 0);
    clear_parts();
}

TEST(unregistering_leaves_operations_in_flight_alone) {
    struct iovec iov[2];
    make_parts(iov);
    int fd = temp_file(PART);
    upcall_loop *loop = new_loop();
    struct recorder rec = {0};
    CHECK_EQ(upcall_poll(loop, 0), 0);
    for (int round = 0; round < 50; round++) {
        CHECK_EQ(upcall_register_buffers(loop, iov, 2), 0);
        for (size_t i = 0; i < 8; i++)
            submit_one(loop, upcall_op_pread(fd, parts[0] + i * 4096, 4096, (int64_t)i * 4096), &rec);
        if (round % 2)
            start_all(loop);
        CHECK_EQ(upcall_unregister_buffers(loop), 0);
        run_finals(loop, &rec, 8);
        for (size_t i = 0; i < 8; i++)
            CHECK_EQ(rec.events[i].result, 4096);
        CHECK(has_pattern(parts[0], 8 * 4096, 0));
        forget(&rec);
        rec = (struct recorder){0};
    }
    free_loop(loop);
    close(fd);
    clear_parts();
}

static void *from_another_thread(void *arg) {
    struct iovec iov[2];
    make_parts(iov);
    CHECK_EQ(upcall_register_buffers(arg, iov, 2), -EPERM);
    CHECK_EQ(upcall_unregister_buffers(arg), -EPERM);
    clear_parts();
    return NULL;
}

static void in_a_child(void *arg) {
    struct iovec iov = {arg, 1};
    CHECK_EQ(upcall_register_buffers(arg, &iov, 1), -ECHILD);
    CHECK_EQ(upcall_unregister_buffers(arg), -ECHILD);
}

TEST(bad_input_is_refused) {
    upcall_loop *loop = new_loop();
    uint8_t byte;
    struct iovec good = {&byte, 1}, bad[2] = {{&byte, 1}, {NULL, 1}};
    CHECK_EQ(upcall_register_buffers(NULL, &good, 1), -EINVAL);
    CHECK_EQ(upcall_register_buffers(loop, NULL, 1), -EINVAL);
    CHECK_EQ(upcall_register_buffers(loop, &good, 0), -EINVAL);
    CHECK_EQ(upcall_register_buffers(loop, &good, 16385), -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "n is 16385");
    CHECK_EQ(upcall_register_buffers(loop, bad, 2), -EINVAL);
    CHECK_STR_CONTAINS(upcall_last_error(), "iov[1]");
    bad[1] = (struct iovec){&byte, 0};
    CHECK_EQ(upcall_register_buffers(loop, bad, 2), -EINVAL);
    CHECK_EQ(upcall_unregister_buffers(NULL), -EINVAL);
    CHECK_EQ(upcall_unregister_buffers(loop), -EINVAL);
    CHECK_EQ(upcall_register_buffers(loop, &good, 1), 0);
    CHECK_EQ(upcall_register_buffers(loop, &good, 1), -EBUSY);
    CHECK_EQ(upcall_unregister_buffers(loop), 0);
    CHECK_EQ(upcall_poll(loop, 0), 0);
    join(start(from_another_thread, loop));
    CHECK_EQ(in_child(in_a_child, loop), 0);
    free_loop(loop);
}

TEST(what_the_kernel_cannot_pin_is_without_effect) {
    void *nothing = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct iovec iov = {nothing, 4096};
    uint8_t byte = 1;
    int fd = temp_file(10);
    upcall_loop *loop = new_loop();
    CHECK_EQ(upcall_register_buffers(loop, &iov, 1), 0);
    CHECK_EQ(pinned(), 0);
    ends_with(loop, upcall_op_pread(fd, nothing, 1, 0), -EFAULT);
    CHECK_EQ(complete(loop, upcall_op_pread(fd, &byte, 1, 0)).result, 1);
    free_loop(loop);
    close(fd);
    munmap(nothing, 4096);
}
