/**
 * @file upcall.h
 * @brief Upcall: asynchronous I/O for C and C++ on Linux.
 *
 * A program *submits* operations, *polls* the loop, is *called back* when each is done, may *cancel* what it no longer
 * wants, and may *reap* results as plain records instead of callbacks. It runs on io_uring where the kernel and the
 * sandbox allow it, on epoll plus a small thread pool where they don't, with the same results on both.
 *
 * **Errors.** Every function that returns an integer answers >= 0 for success and a negative errno for failure;
 * upcall_last_error() has the text. A NULL where one is not allowed is -EINVAL. What only the kernel can know (a bad
 * descriptor, a refused connection) comes in the operation's event, never from upcall_submit().
 *
 * **Operations** are made by the upcall_op_ constructors, which fill in a struct and do nothing else: any thread may call
 * them and none fails. upcall_submit() refuses arguments that can be known to be wrong (-EINVAL; -ENAMETOOLONG for a path
 * of PATH_MAX bytes or more), with a text that names the op and the field. Sizes are bytes, times nanoseconds.
 *
 * **Ownership.** upcall_submit() copies the ops. What a pointer to const names is copied too (paths, addresses, iovec
 * arrays, option values, a sendmsg header) *except transfer data*; what a pointer to non-const names, and data to be
 * written or sent, is borrowed until the operation's final event: the one without UPCALL_MORE. After it nothing touches
 * that memory.
 *
 * **Threads.** A loop belongs to the first thread that polls it. Its owner's alone are upcall_poll(), upcall_run(),
 * upcall_reap(), upcall_loop_close() and upcall_loop_detach() (each makes the first caller the owner); its owner's, or
 * anyone's while it has none, are upcall_loop_free(), upcall_fd(), upcall_register_buffers() and
 * upcall_unregister_buffers(). On another thread these answer -EPERM. Everything else may be called by any thread; of it
 * only upcall_stop() by a signal handler. When the owner thread has exited the loop can only be freed: other calls that
 * need an owner, and upcall_submit(), answer -EOWNERDEAD. A reader is nobody's: any thread may use it. In a forked child
 * every call on an inherited loop, pool or reader answers -ECHILD, but for upcall_loop_free() and upcall_reader_free().
 *
 * **Callbacks** run on the owner thread, inside upcall_poll(), upcall_run(), upcall_loop_close() and upcall_loop_free()
 * and nowhere else. They must return normally: no exception, no longjmp. They may submit, cancel, reap, post and stop.
 */


#ifndef UPCALL_H
#define UPCALL_H

/* Generated from the Rust sources by cbindgen; a test compares it. Change the sources, not this file. */

#include <stddef.h>
#include <stdint.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

struct addrinfo;
struct statx;
struct timespec;
struct open_how;

/** @brief One nanosecond: the unit of every time in this library. Since 0.1. */
#define UPCALL_NANOSECOND UINT64_C(1)
/** @brief One microsecond in nanoseconds. Since 0.1. */
#define UPCALL_MICROSECOND UINT64_C(1000)
/** @brief One millisecond in nanoseconds. Since 0.1. */
#define UPCALL_MILLISECOND UINT64_C(1000000)
/** @brief One second in nanoseconds. Since 0.1. */
#define UPCALL_SECOND UINT64_C(1000000000)

/** @brief Fills an upcall_config with the defaults, for the header this program was compiled with. Since 0.1. */
#define upcall_config_init(config) upcall_config_init_sized((config), sizeof *(config))
/** @brief Fills an upcall_reader_config with the defaults, for the header this program was compiled with. Since 0.1. */
#define upcall_reader_config_init(config) upcall_reader_config_init_sized((config), sizeof *(config))
/** @brief Reads the loop's counters into an upcall_stats of the size this program was compiled with. Since 0.1. */
#define upcall_stats_get(loop, stats) upcall_stats_get_sized((loop), (stats), sizeof *(stats))


/**
 * Major part of the version this header belongs to. Since 0.1.
 */
#define UPCALL_VERSION_MAJOR 0

/**
 * Minor part of the version this header belongs to. Since 0.1.
 */
#define UPCALL_VERSION_MINOR 1

/**
 * Patch part of the version this header belongs to. Since 0.1.
 */
#define UPCALL_VERSION_PATCH 0

/**
 * Major * 1000000 + minor * 1000 + patch of this header. upcall_version() is the library's. Since 0.1.
 */
#define UPCALL_VERSION_NUMBER 1000

/**
 * One completion when *all* bytes are moved, not one per packet. Shorter only at end of file or after an error, and
 * then upcall_event.transferred says how much. For read, write, recv and send with all their forms (readv, pread,
 * preadv, recvfrom, recvmsg …), splice, sendfile and copy_range; on a message socket it is one message. Not with
 * buffers or UPCALL_MULTISHOT. Since 0.1.
 */
#define UPCALL_FULL 1

/**
 * One submit, many events: each but the final one carries UPCALL_MORE. For accept, recv, recvmsg, readdir, poll, sleep,
 * signal. It ends when cancelled, at end of stream (result 0), or at an error. recv, recvmsg and readdir need
 * upcall_op.buffers. Since 0.1.
 */
#define UPCALL_MULTISHOT 2

/**
 * The next op of this submit starts only when this one succeeded in full (all bytes asked for, or result >= 0 for what
 * moves none; for readdir and with buffers any success); otherwise the rest of the chain ends in -ECANCELED. Not on the
 * last op, nor on a multishot. Since 0.1.
 */
#define UPCALL_LINK 4

/**
 * The next op of this submit starts when this one has ended, whatever its result (`send`, then `close`). Not on the last
 * op, nor on a multishot, nor with UPCALL_LINK. Since 0.1.
 */
#define UPCALL_LINK_ALWAYS 8

/**
 * Starts when everything earlier *in the same submit* has ended, and later ones of that submit wait for it: n writes,
 * then fsync. Since 0.1.
 */
#define UPCALL_DRAIN 16

/**
 * send and sendmsg: the kernel sends the program's own memory without copying it, where it can (io_uring, IP sockets;
 * elsewhere it is copied, with the same events). Two events: the result, with UPCALL_MORE, and when the data is no
 * longer needed the final one, with UPCALL_RELEASED, which repeats result and transferred; until then the data must
 * not change. An operation that never started has one, final event. A chain goes on, and a close of the descriptor no
 * longer waits, at the result; the end of the loop waits for both events. Since 0.1.
 */
#define UPCALL_ZEROCOPY 32

/**
 * This op does not keep upcall_run() alive (a watcher, a statistics tick). Since 0.1.
 */
#define UPCALL_BACKGROUND 64

/**
 * Further events of this operation follow; its memory and its id stay in use. Since 0.1.
 */
#define UPCALL_MORE 1

/**
 * UPCALL_ZEROCOPY: the data is the program's again. Comes with the final event. Since 0.1.
 */
#define UPCALL_RELEASED 2

/**
 * This -ETIMEDOUT comes from upcall_op.timeout_ns, not from the network. Since 0.1.
 */
#define UPCALL_EXPIRED 4

/**
 * upcall_supports(): the operation ends in -EOPNOTSUPP on this loop. Since 0.1.
 */
#define UPCALL_UNSUPPORTED 0

/**
 * upcall_supports(): done by a non-blocking call after waiting for readiness, by the thread pool, or by the loop itself.
 * Since 0.1.
 */
#define UPCALL_EMULATED 1

/**
 * upcall_supports(): done by the kernel as one io_uring operation. Since 0.1.
 */
#define UPCALL_NATIVE 2

/**
 * What getaddrinfo(3) answered, as upcall_op_getaddrinfo() reports it: EAI - 3000. Values that are not named here, which a C
 * library may have, come the same way. upcall_strerror() knows them as gai_strerror(3) does. Since 0.1.
 */
#define UPCALL_EAI_BASE -3000

/**
 * Bad ai_flags. Since 0.1.
 */
#define UPCALL_EAI_BADFLAGS -3001

/**
 * The name or service is not known, or neither was given. Since 0.1.
 */
#define UPCALL_EAI_NONAME -3002

/**
 * The name server answered a temporary failure: try again later. Since 0.1.
 */
#define UPCALL_EAI_AGAIN -3003

/**
 * The name server answered a permanent failure. Since 0.1.
 */
#define UPCALL_EAI_FAIL -3004

/**
 * The name is known and has no addresses. Since 0.1.
 */
#define UPCALL_EAI_NODATA -3005

/**
 * ai_family is not supported. Since 0.1.
 */
#define UPCALL_EAI_FAMILY -3006

/**
 * ai_socktype is not supported. Since 0.1.
 */
#define UPCALL_EAI_SOCKTYPE -3007

/**
 * The service is not known for the socket type. Since 0.1.
 */
#define UPCALL_EAI_SERVICE -3008

/**
 * The name has no addresses of ai_family. Since 0.1.
 */
#define UPCALL_EAI_ADDRFAMILY -3009

/**
 * Out of memory. Since 0.1.
 */
#define UPCALL_EAI_MEMORY -3010

/**
 * A system error that left no errno; with one, it is that -errno. Since 0.1.
 */
#define UPCALL_EAI_SYSTEM -3011

/**
 * The name or service is too long. Since 0.1.
 */
#define UPCALL_EAI_OVERFLOW -3012

/**
 * upcall_op_futex_wait(), upcall_op_futex_wake(): only threads of this process use the futex, which is cheaper. The value
 * is that of FUTEX2_PRIVATE. Since 0.1.
 */
#define UPCALL_FUTEX_PRIVATE 128

/**
 * A pool of equal buffers that operations borrow from when data is there: upcall_buffers_new(), upcall_buffers_return(),
 * upcall_buffers_free(). Since 0.1.
 */
typedef struct upcall_buffers upcall_buffers;

/**
 * A loop: made by upcall_loop_new(), ended by upcall_loop_free(). It belongs to the first thread that polls it.
 * Since 0.1.
 */
typedef struct upcall_loop upcall_loop;

/**
 * A file as a stream of blocks that are read ahead, behind a descriptor that polls readable when a block is in memory:
 * upcall_reader_new(), upcall_reader_fd(), upcall_reader_next(), upcall_reader_wait(), upcall_reader_release(),
 * upcall_reader_free(). Since 0.1.
 */
typedef struct upcall_reader upcall_reader;

/**
 * Which kernel interface a loop runs on: an UPCALL_BACKEND_ constant. Since 0.1.
 */
typedef uint32_t upcall_backend;

/**
 * How a loop is made. Fill it with upcall_config_init(), change what you need, pass it to upcall_loop_new().
 * Since 0.1.
 */
typedef struct upcall_config {
    /**
     * sizeof(upcall_config), set by upcall_config_init().
     */
    uint32_t size;
    /**
     * An UPCALL_BACKEND_ constant.
     */
    upcall_backend backend;
    /**
     * Operations that one system call can hand over: 1 to 32768, rounded up to a power of two. Default 256.
     */
    uint32_t entries;
    /**
     * At most so many events and posts per turn, at least 1; a multishot without a callback pauses after as many
     * unreaped records. Default 1024.
     */
    uint32_t max_events;
    /**
     * At most so many pool threads, started when work waits: 2 to 1024. Default: the processors, at least 4, at most 16.
     */
    uint32_t workers;
    /**
     * Operations in flight at most; one more is refused with -EAGAIN. Address space (128 bytes each) is reserved, memory
     * only used as needed. Default 1048576, at most 16777216.
     */
    uint32_t max_operations;
    /**
     * Count callbacks that run longer than so many nanoseconds; 0, the default: callbacks are not timed.
     */
    uint64_t slow_callback_ns;
    /**
     * Look again for so many nanoseconds before sleeping, while recent sleeps were shorter. Burns processor time.
     * Default 0.
     */
    uint64_t spin_ns;
    /**
     * Must be 0: none are defined.
     */
    uint64_t flags;
    /**
     * Must be zero.
     */
    uint64_t reserved[8];
} upcall_config;

/**
 * What an operation does: an UPCALL_OP_ constant, set by its constructor. 0 is invalid, so a zeroed op is refused.
 * Since 0.1.
 */
typedef uint32_t upcall_kind;

/**
 * Names an accepted operation: generation-tagged, never 0. A stale, forged or foreign id is detected, not misdirected.
 * Since 0.1.
 */
typedef uint64_t upcall_id;

/**
 * What an operation tells the program. 64 bytes, frozen. Since 0.1.
 */
typedef struct upcall_event {
    /**
     * The operation's id, as upcall_submit() gave it.
     */
    upcall_id id;
    /**
     * The op's user pointer.
     */
    void *user;
    /**
     * >= 0 the operation's value, < 0 a negative errno.
     */
    int64_t result;
    /**
     * Bytes really moved, also when result < 0 (cancelled or timed out half-way).
     */
    uint64_t transferred;
    /**
     * The lent buffer: non-NULL exactly when at least one byte or one datagram was put in it. Give it back with
     * upcall_buffers_return().
     */
    void *buffer;
    /**
     * 0, or any of UPCALL_MORE, UPCALL_RELEASED, UPCALL_EXPIRED.
     */
    uint32_t flags;
    /**
     * The operation's kind; upcall_op_name() names it.
     */
    upcall_kind kind;
    /**
     * Zero.
     */
    uint64_t reserved[2];
} upcall_event;

/**
 * Called on the owner thread, inside a turn of the loop, once per event. `event` is valid only inside the callback.
 * Since 0.1.
 */
typedef void (*upcall_callback)(struct upcall_loop *loop, const struct upcall_event *event);

/**
 * One operation to submit. 128 bytes, frozen. Made by an upcall_op_ constructor, then given a callback, a user pointer
 * and options; upcall_submit() copies it. Since 0.1.
 */
typedef struct upcall_op {
    /**
     * Set by the constructor.
     */
    upcall_kind kind;
    /**
     * 0, or any of UPCALL_FULL, UPCALL_MULTISHOT, UPCALL_LINK, UPCALL_LINK_ALWAYS, UPCALL_DRAIN, UPCALL_ZEROCOPY,
     * UPCALL_BACKGROUND. Bits that are not known, and those the operation cannot have, are -EINVAL.
     */
    uint32_t flags;
    /**
     * Who is told. NULL: the events wait for upcall_reap().
     */
    upcall_callback callback;
    /**
     * Comes back in each event; the library does not look at it.
     */
    void *user;
    /**
     * Nanoseconds until the clock cancels it (-ETIMEDOUT with UPCALL_EXPIRED); 0: never. Counted from acceptance, or from
     * when a link or drain lets it start. With UPCALL_MULTISHOT an idle limit, restarted by each event.
     */
    uint64_t timeout_ns;
    /**
     * recv, recvmsg, read, readdir: pick the buffer from this pool of this loop when data is there; the constructor's
     * `buf` is then NULL, its `len` the most to take. NULL: use the op's own.
     */
    struct upcall_buffers *buffers;
    /**
     * With buffers: pause while so many of them are lent to this op's events; 0: no limit.
     */
    uint32_t lend_max;
    /**
     * Set by the constructor: the descriptor, or the directory a path is relative to.
     */
    int32_t fd;
    /**
     * Set by the constructor.
     */
    uint64_t addr;
    /**
     * Set by the constructor.
     */
    uint64_t addr2;
    /**
     * Set by the constructor.
     */
    uint64_t len;
    /**
     * Set by the constructor.
     */
    uint64_t offset;
    /**
     * Set by the constructor.
     */
    uint64_t offset2;
    /**
     * Set by the constructor.
     */
    uint32_t arg;
    /**
     * Set by the constructor.
     */
    uint32_t arg2;
    /**
     * Must be zero.
     */
    uint64_t reserved[4];
} upcall_op;

/**
 * Called on the owner thread, inside a turn of the loop, exactly once per upcall_post(). Since 0.1.
 */
typedef void (*upcall_post_fn)(struct upcall_loop *loop, void *arg);

/**
 * The loop's counters: upcall_stats_get(). Plain words that only grow (but for in_flight), not a snapshot. Since 0.1.
 */
typedef struct upcall_stats {
    /**
     * Bytes filled in.
     */
    uint32_t size;
    /**
     * The UPCALL_BACKEND_ in use.
     */
    upcall_backend backend;
    /**
     * Operations accepted.
     */
    uint64_t submitted;
    /**
     * Ended by themselves, with whatever result.
     */
    uint64_t completed;
    /**
     * Ended in -ECANCELED.
     */
    uint64_t cancelled;
    /**
     * Ended by upcall_op.timeout_ns.
     */
    uint64_t timed_out;
    /**
     * Accepted and not ended: between turns, submitted = completed + cancelled + timed_out + in_flight.
     */
    uint64_t in_flight;
    /**
     * Made by the engine on the owner thread (not by pool threads, not by callbacks).
     */
    uint64_t system_calls;
    /**
     * Times another thread had to wake the sleeping loop.
     */
    uint64_t wakeups;
    /**
     * Operations done by the kernel as one io_uring operation.
     */
    uint64_t native_operations;
    /**
     * Operations done by non-blocking calls or by the loop itself.
     */
    uint64_t emulated_operations;
    /**
     * Operations, or parts of one, done on a thread.
     */
    uint64_t pool_operations;
    /**
     * Times the completion queue had overflowed; nothing is lost, the kernel kept them.
     */
    uint64_t overflows;
    /**
     * Times a multishot or a full transfer was started again.
     */
    uint64_t rearms;
    /**
     * Callbacks run.
     */
    uint64_t callbacks;
    /**
     * Callbacks that took longer than upcall_config.slow_callback_ns.
     */
    uint64_t slow_callbacks;
    /**
     * The longest callback in nanoseconds; 0 while callbacks are not timed.
     */
    uint64_t longest_callback_ns;
} upcall_stats;

/**
 * How a reader is made. Fill it with upcall_reader_config_init(), change what you need, pass it to upcall_reader_new().
 * Since 0.1.
 */
typedef struct upcall_reader_config {
    /**
     * sizeof(upcall_reader_config), set by upcall_reader_config_init().
     */
    uint32_t size;
    /**
     * An UPCALL_BACKEND_ constant.
     */
    upcall_backend backend;
    /**
     * Bytes of a block: a multiple of 4096, at most 1 GiB. Default 1048576.
     */
    uint32_t block_size;
    /**
     * Blocks read ahead at most, in flight or ready: 1 to 1024. Default 4. The reader's memory is
     * (depth + 1) * block_size: one block more, for the program to work on meanwhile.
     */
    uint32_t depth;
    /**
     * Where in the file to begin, in bytes. Default 0. With O_DIRECT it must be aligned as the file system demands.
     */
    uint64_t offset;
    /**
     * Bytes to read at most; 0, the default: to the end of the file. It need not be aligned.
     */
    uint64_t length;
    /**
     * Must be zero.
     */
    uint64_t reserved[4];
} upcall_reader_config;

/**
 * A computation run on a thread of the loop's pool, once; what it returns is the event's result. Since 0.1.
 */
typedef int64_t (*upcall_work_fn)(void *arg);

/**
 * What upcall_op_readdir() puts into a buffer, one after the other: a struct linux_dirent64 of getdents64(2). The name comes
 * after it: upcall_dirent_next() walks, upcall_dirent_name() names. Since 0.1.
 */
typedef struct upcall_dirent {
    /**
     * Inode number.
     */
    uint64_t ino;
    /**
     * Where the directory's next entry is, for lseek(2); of no other use.
     */
    int64_t off;
    /**
     * Bytes of this record, the name and its padding included.
     */
    uint16_t reclen;
    /**
     * DT_REG, DT_DIR … of <dirent.h>; DT_UNKNOWN where the file system does not tell.
     */
    uint8_t type;
} upcall_dirent;

/**
 * What a buffer lent by recvmsg begins with. After it: upcall_msg_name(), upcall_msg_control(), upcall_msg_payload().
 * Since 0.1.
 */
typedef struct upcall_msg {
    /**
     * Bytes of the sender's address; more than there was room for means it was cut.
     */
    uint32_t namelen;
    /**
     * Bytes of control data.
     */
    uint32_t controllen;
    /**
     * Bytes of the message that are in the buffer; MSG_TRUNC in flags says that it was cut. With MSG_TRUNC in the
     * operation's flags it is the message's whole length.
     */
    uint32_t payloadlen;
    /**
     * As recvmsg(2) sets msg_flags.
     */
    uint32_t flags;
} upcall_msg;

/**
 * io_uring where it is usable, else epoll; upcall_backend_reason() tells why. The environment variable
 * `UPCALL_BACKEND` (auto, io_uring, epoll) overrides this value only, and is ignored in set-user-ID programs.
 * Since 0.1.
 */
#define UPCALL_BACKEND_AUTO 0

/**
 * io_uring or nothing: upcall_loop_new() fails with the kernel's errno where the ring is denied. Since 0.1.
 */
#define UPCALL_BACKEND_IO_URING 1

/**
 * epoll and a small thread pool. No io_uring system call is made, not even to probe. Since 0.1.
 */
#define UPCALL_BACKEND_EPOLL 2

/**
 * Kind of upcall_op_work(). Since 0.1.
 */
#define UPCALL_OP_WORK 80

/**
 * Kind of upcall_op_getaddrinfo(). Since 0.1.
 */
#define UPCALL_OP_GETADDRINFO 81

/**
 * Kind of upcall_op_readdir(). Since 0.1.
 */
#define UPCALL_OP_READDIR 33

/**
 * Kind of upcall_op_pread(). Since 0.1.
 */
#define UPCALL_OP_PREAD 8

/**
 * Kind of upcall_op_pwrite(). Since 0.1.
 */
#define UPCALL_OP_PWRITE 9

/**
 * Kind of upcall_op_preadv(). Since 0.1.
 */
#define UPCALL_OP_PREADV 10

/**
 * Kind of upcall_op_pwritev(). Since 0.1.
 */
#define UPCALL_OP_PWRITEV 11

/**
 * Kind of upcall_op_fsync(). Since 0.1.
 */
#define UPCALL_OP_FSYNC 12

/**
 * Kind of upcall_op_fdatasync(). Since 0.1.
 */
#define UPCALL_OP_FDATASYNC 13

/**
 * Kind of upcall_op_sync_range(). Since 0.1.
 */
#define UPCALL_OP_SYNC_RANGE 14

/**
 * Kind of upcall_op_fallocate(). Since 0.1.
 */
#define UPCALL_OP_FALLOCATE 15

/**
 * Kind of upcall_op_ftruncate(). Since 0.1.
 */
#define UPCALL_OP_FTRUNCATE 16

/**
 * Kind of upcall_op_fadvise(). Since 0.1.
 */
#define UPCALL_OP_FADVISE 17

/**
 * Kind of upcall_op_madvise(). Since 0.1.
 */
#define UPCALL_OP_MADVISE 18

/**
 * Kind of upcall_op_open(). Since 0.1.
 */
#define UPCALL_OP_OPEN 20

/**
 * Kind of upcall_op_openat2(). Since 0.1.
 */
#define UPCALL_OP_OPENAT2 21

/**
 * Kind of upcall_op_close(). Since 0.1.
 */
#define UPCALL_OP_CLOSE 22

/**
 * Kind of upcall_op_statx(). Since 0.1.
 */
#define UPCALL_OP_STATX 23

/**
 * Kind of upcall_op_rename(). Since 0.1.
 */
#define UPCALL_OP_RENAME 24

/**
 * Kind of upcall_op_unlink(). Since 0.1.
 */
#define UPCALL_OP_UNLINK 25

/**
 * Kind of upcall_op_mkdir(). Since 0.1.
 */
#define UPCALL_OP_MKDIR 26

/**
 * Kind of upcall_op_symlink(). Since 0.1.
 */
#define UPCALL_OP_SYMLINK 27

/**
 * Kind of upcall_op_hardlink(). Since 0.1.
 */
#define UPCALL_OP_HARDLINK 28

/**
 * Kind of upcall_op_signal(). Since 0.1.
 */
#define UPCALL_OP_SIGNAL 70

/**
 * Kind of upcall_op_waitid(). Since 0.1.
 */
#define UPCALL_OP_WAITID 71

/**
 * Kind of upcall_op_futex_wait(). Since 0.1.
 */
#define UPCALL_OP_FUTEX_WAIT 72

/**
 * Kind of upcall_op_futex_wake(). Since 0.1.
 */
#define UPCALL_OP_FUTEX_WAKE 73

/**
 * Kind of upcall_op_nop(). Since 0.1.
 */
#define UPCALL_OP_NOP 1

/**
 * Kind of upcall_op_poll(). Since 0.1.
 */
#define UPCALL_OP_POLL 60

/**
 * Kind of upcall_op_socket(). Since 0.1.
 */
#define UPCALL_OP_SOCKET 40

/**
 * Kind of upcall_op_bind(). Since 0.1.
 */
#define UPCALL_OP_BIND 41

/**
 * Kind of upcall_op_listen(). Since 0.1.
 */
#define UPCALL_OP_LISTEN 42

/**
 * Kind of upcall_op_accept(). Since 0.1.
 */
#define UPCALL_OP_ACCEPT 43

/**
 * Kind of upcall_op_connect(). Since 0.1.
 */
#define UPCALL_OP_CONNECT 44

/**
 * Kind of upcall_op_recv(). Since 0.1.
 */
#define UPCALL_OP_RECV 45

/**
 * Kind of upcall_op_send(). Since 0.1.
 */
#define UPCALL_OP_SEND 46

/**
 * Kind of upcall_op_recvfrom(). Since 0.1.
 */
#define UPCALL_OP_RECVFROM 47

/**
 * Kind of upcall_op_sendto(). Since 0.1.
 */
#define UPCALL_OP_SENDTO 48

/**
 * Kind of upcall_op_recvmsg(). Since 0.1.
 */
#define UPCALL_OP_RECVMSG 49

/**
 * Kind of upcall_op_sendmsg(). Since 0.1.
 */
#define UPCALL_OP_SENDMSG 50

/**
 * Kind of upcall_op_shutdown(). Since 0.1.
 */
#define UPCALL_OP_SHUTDOWN 51

/**
 * Kind of upcall_op_getsockopt(). Since 0.1.
 */
#define UPCALL_OP_GETSOCKOPT 52

/**
 * Kind of upcall_op_setsockopt(). Since 0.1.
 */
#define UPCALL_OP_SETSOCKOPT 53

/**
 * Kind of upcall_op_pipe(). Since 0.1.
 */
#define UPCALL_OP_PIPE 54

/**
 * Kind of upcall_op_read(). Since 0.1.
 */
#define UPCALL_OP_READ 2

/**
 * Kind of upcall_op_write(). Since 0.1.
 */
#define UPCALL_OP_WRITE 3

/**
 * Kind of upcall_op_readv(). Since 0.1.
 */
#define UPCALL_OP_READV 4

/**
 * Kind of upcall_op_writev(). Since 0.1.
 */
#define UPCALL_OP_WRITEV 5

/**
 * Kind of upcall_op_sleep(). Since 0.1.
 */
#define UPCALL_OP_SLEEP 64

/**
 * Kind of upcall_op_sleep_until(). Since 0.1.
 */
#define UPCALL_OP_SLEEP_UNTIL 65

/**
 * Kind of upcall_op_splice(). Since 0.1.
 */
#define UPCALL_OP_SPLICE 6

/**
 * Kind of upcall_op_tee(). Since 0.1.
 */
#define UPCALL_OP_TEE 7

/**
 * Kind of upcall_op_copy_range(). Since 0.1.
 */
#define UPCALL_OP_COPY_RANGE 19

/**
 * Kind of upcall_op_sendfile(). Since 0.1.
 */
#define UPCALL_OP_SENDFILE 34

/**
 * Kind of upcall_op_getxattr(). Since 0.1.
 */
#define UPCALL_OP_GETXATTR 29

/**
 * Kind of upcall_op_setxattr(). Since 0.1.
 */
#define UPCALL_OP_SETXATTR 30

/**
 * Kind of upcall_op_fgetxattr(). Since 0.1.
 */
#define UPCALL_OP_FGETXATTR 31

/**
 * Kind of upcall_op_fsetxattr(). Since 0.1.
 */
#define UPCALL_OP_FSETXATTR 32

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * @brief Fills the first `size` bytes of `*config` with the defaults: use upcall_config_init().
 *
 * `config` may be NULL (nothing is done). Any thread. Since 0.1.
 */
void upcall_config_init_sized(struct upcall_config *config, size_t size);

/**
 * @brief Makes a loop. `config` NULL: the defaults. It belongs to the first thread that polls it; until then operations
 * may be submitted from any thread.
 *
 * `config` is read during the call; `*loop` receives the loop, to be ended by upcall_loop_free(), or NULL. Any thread.
 *
 * @return 0; -EINVAL (a NULL or a value out of range, named by upcall_last_error()); -E2BIG (a config with fields this
 * library does not know); with UPCALL_BACKEND_IO_URING the errno of the refusal (-EPERM, -ENOSYS, -ENOMEM …); -EMFILE,
 * -ENFILE, -ENOMEM. Since 0.1.
 */
int32_t upcall_loop_new(const struct upcall_config *config,
                        struct upcall_loop **loop);

/**
 * @brief Ends everything: refuses new work with -ESHUTDOWN, runs accepted posts, cancels all operations, and delivers their
 * final events, for at most `timeout_ns` nanoseconds (negative: no limit).
 *
 * Owner thread; callbacks run inside.
 *
 * @return 0 when nothing is left in flight (records may still be reaped; the loop refuses new work for good); -ETIMEDOUT
 * when something was left, and the loop stays usable; -EDEADLK inside a callback of this loop; -EPERM on another thread.
 * Since 0.1.
 */
int32_t upcall_loop_close(struct upcall_loop *loop,
                          int64_t timeout_ns);

/**
 * @brief Closes without limit, then frees. When it returns nothing touches any operation's memory any more. Unreaped
 * records are dropped: their descriptors, also those that came with a message, are closed and their buffers returned.
 *
 * The owner thread, or any thread when the loop has no owner or its owner has exited; what a dead owner had in flight is
 * delivered as -EOWNERDEAD, on this thread. In a forked child it returns 0 and runs nothing. NULL is fine.
 *
 * @return 0; -EDEADLK inside a callback of this loop; -EPERM on another thread. Since 0.1.
 */
int32_t upcall_loop_free(struct upcall_loop *loop);

/**
 * @brief Gives the loop up, so that the next thread to poll owns it.
 *
 * Owner thread. @return 0; -EBUSY while anything is in flight; -EDEADLK inside a callback; -EPERM on another thread.
 * Since 0.1.
 */
int32_t upcall_loop_detach(struct upcall_loop *loop);

/**
 * @brief Accepts all `count` operations, or none.
 *
 * `ops` is copied; see the top of this header for what the operations' own pointers mean. `ids` (NULL: not wanted)
 * receives `count` ids before any of the operations can start. Any thread; no callback runs inside. The kernel is entered
 * only when the queue is full, or by the next upcall_poll().
 *
 * @return 0, or a negative errno with nothing accepted: -EINVAL and others (upcall_last_error() names the op and the
 * field: "op 3 of 4: recv: buf is NULL but len is 4096"); -EAGAIN at upcall_config.max_operations;
 * -ESHUTDOWN while or after the loop closes; -EOWNERDEAD when its owner thread has exited; -ENOMEM. Since 0.1.
 */
int32_t upcall_submit(struct upcall_loop *loop,
                      const struct upcall_op *ops,
                      size_t count,
                      upcall_id *ids);

/**
 * @brief One turn: hands the queued operations over, waits up to `timeout_ns` nanoseconds (0: don't wait; negative: no
 * limit) for something to be ready, and runs the callbacks of what is.
 *
 * It does not wait while records are unreaped. A signal handler that ran ends the wait. At most upcall_config.max_events
 * events and posts per turn; the rest comes in the next. Owner thread; the first caller becomes the owner.
 *
 * @return how many events and posts were delivered or made reapable; -EDEADLK inside a callback of this loop; -EPERM on
 * another thread. Since 0.1.
 */
int32_t upcall_poll(struct upcall_loop *loop,
                    int64_t timeout_ns);

/**
 * @brief Polls until nothing is in flight, or until upcall_stop().
 *
 * In flight are operations without UPCALL_BACKGROUND, posts, submissions of other threads, and holds. It waits even while
 * records are unreaped (reap them in a callback, or use upcall_poll()). Owner thread.
 *
 * @return 0 when nothing is in flight; 1 when stopped; a negative errno as upcall_poll(). Since 0.1.
 */
int32_t upcall_run(struct upcall_loop *loop);

/**
 * @brief Ends the current or the next upcall_run() after its turn, and wakes a waiting upcall_poll(). Latched.
 *
 * Any thread, and any signal handler. @return 0, or -EINVAL for NULL. Since 0.1.
 */
int32_t upcall_stop(struct upcall_loop *loop);

/**
 * @brief Keeps upcall_run() alive without an operation, until as many upcall_unhold(). Counted. Any thread.
 *
 * @return 0, or -EINVAL for NULL. Since 0.1.
 */
int32_t upcall_hold(struct upcall_loop *loop);

/**
 * @brief Takes back one upcall_hold(), and wakes the loop when it was the last. Any thread.
 *
 * @return 0, or -EINVAL for NULL or where nothing is held. Since 0.1.
 */
int32_t upcall_unhold(struct upcall_loop *loop);

/**
 * @brief Runs `fn(loop, arg)` on the loop's owner thread, exactly once, in a turn. First in, first out per calling thread;
 * never coalesced. `arg` is the program's. Any thread (not a signal handler: it allocates).
 *
 * @return 0; -EINVAL for a NULL loop or fn; -ESHUTDOWN while or after the loop closes. Since 0.1.
 */
int32_t upcall_post(struct upcall_loop *loop,
                    upcall_post_fn fn,
                    void *arg);

/**
 * @brief Asks an operation to end; its own final event answers (-ECANCELED, or its result when it was too late). The event
 * never arrives inside this call, and the operation's memory stays borrowed until it does. Any thread.
 *
 * @return 0: the request is made; -ENOENT: no such operation in flight (finished, stale, forged). Since 0.1.
 */
int32_t upcall_cancel(struct upcall_loop *loop,
                      upcall_id id);

/**
 * @brief Asks every operation in flight on descriptor `fd` to end, also those that have it as their second, as
 * upcall_cancel() does one. Any thread.
 *
 * @return how many were asked; 0 for a negative `fd`. Since 0.1.
 */
int32_t upcall_cancel_fd(struct upcall_loop *loop, int32_t fd);

/**
 * @brief Asks every operation in flight to end, as upcall_cancel() does one. Any thread.
 *
 * @return how many were asked. Since 0.1.
 */
int32_t upcall_cancel_all(struct upcall_loop *loop);

/**
 * @brief Copies out at most `max` events of operations submitted without a callback, oldest first. Never waits and never
 * calls back. Owner thread; allowed in a callback.
 *
 * @return the number copied; -EINVAL for a NULL; -EPERM on another thread. Since 0.1.
 */
int32_t upcall_reap(struct upcall_loop *loop,
                    struct upcall_event *events,
                    size_t max);

/**
 * @brief A descriptor for another event loop: level-triggered readable whenever upcall_poll(loop, 0) would do anything.
 *
 * The loop owns it: never read or close it, only wait for POLLIN. Owner thread, or any while the loop has no owner.
 *
 * @return the descriptor; -EMFILE, -ENFILE, -ENOMEM; -EPERM on another thread. Since 0.1.
 */
int32_t upcall_fd(struct upcall_loop *loop);

/**
 * @brief CLOCK_MONOTONIC in nanoseconds: on the owner thread as read once per turn, on others as it is now. Any thread.
 * 0 for NULL, or in a forked child. Since 0.1.
 */
uint64_t upcall_now(const struct upcall_loop *loop);

/**
 * @brief The backend in use: UPCALL_BACKEND_IO_URING or UPCALL_BACKEND_EPOLL; UPCALL_BACKEND_AUTO for NULL, or
 * in a forked child. Any thread. Since 0.1.
 */
upcall_backend upcall_loop_backend(const struct upcall_loop *loop);

/**
 * @brief "auto", "io_uring", "epoll", or "unknown". A static string. Any thread. Since 0.1.
 */
const char *upcall_backend_name(upcall_backend backend);

/**
 * @brief Why the loop runs on the backend it has: "io_uring_setup: EPERM (seccomp or kernel.io_uring_disabled)". Valid until
 * the loop is freed; NULL for NULL, or in a forked child. Any thread. Since 0.1.
 */
const char *upcall_backend_reason(const struct upcall_loop *loop);

/**
 * @brief How this loop does operations of a kind: UPCALL_NATIVE, UPCALL_EMULATED or UPCALL_UNSUPPORTED. Any thread.
 *
 * @return one of these; -EINVAL for NULL. An unknown kind is UPCALL_UNSUPPORTED. Since 0.1.
 */
int32_t upcall_supports(const struct upcall_loop *loop, upcall_kind kind);

/**
 * @brief The name of a kind ("recv"), or "unknown". A static string. Any thread. Since 0.1.
 */
const char *upcall_op_name(upcall_kind kind);

/**
 * @brief Reads the counters into the first `size` bytes of `*stats`: use upcall_stats_get(). Any thread.
 *
 * @return 0, or -EINVAL for a NULL or a size too small for the first member. Since 0.1.
 */
int32_t upcall_stats_get_sized(const struct upcall_loop *loop, struct upcall_stats *stats, size_t size);

/**
 * @brief The text of an error: accepts errno, -errno and UPCALL_EAI_ constants. Valid until this thread's next
 * upcall_strerror(). Any thread. Since 0.1.
 */
const char *upcall_strerror(int32_t error);

/**
 * @brief The text of this thread's last failing call, "" when there was none; valid until its next failing call. Any
 * thread. Since 0.1.
 */
const char *upcall_last_error(void);

/**
 * @brief The library's version, "0.1.0". A static string. UPCALL_VERSION_NUMBER is the header's. Any thread.
 * Since 0.1.
 */
const char *upcall_version(void);

/**
 * @brief Makes a pool of `count` buffers (1 to 32768) of `size` bytes (1 to 1 GiB) for operations of this loop.
 *
 * `*buffers` receives the pool, to be ended by upcall_buffers_free(), or NULL. Any thread.
 *
 * @return 0; -EINVAL for a NULL or a count or size out of range; -ENOMEM. Since 0.1.
 */
int32_t upcall_buffers_new(struct upcall_loop *loop, uint32_t count, uint32_t size, struct upcall_buffers **buffers);

/**
 * @brief Pins memory, so that upcall_op_pread() and upcall_op_pwrite() with a buffer inside it cost less (O_DIRECT most of
 * all). Nothing else changes: operations and results are the same, and where the kernel cannot (epoll, RLIMIT_MEMLOCK) it is
 * without effect.
 *
 * `iov`: `n` parts, 1 to 16384, each at most 1 GiB; the array is copied, the memory stays the program's and must stay mapped
 * until upcall_unregister_buffers() or upcall_loop_free(). One set at a time. Owner thread, or any while there is none.
 *
 * @return 0; -EINVAL for a NULL, an empty part or a number out of range; -EBUSY when buffers are registered already; -EPERM
 * on another thread. Since 0.1.
 */
int32_t upcall_register_buffers(struct upcall_loop *loop,
                                const struct iovec *iov,
                                uint32_t n);

/**
 * @brief Ends what upcall_register_buffers() began. Operations in flight end as they would have.
 *
 * Owner thread, or any while there is none.
 *
 * @return 0; -EINVAL when no buffers are registered; -EPERM on another thread. Since 0.1.
 */
int32_t upcall_unregister_buffers(struct upcall_loop *loop);

/**
 * @brief Gives a lent buffer back. `buffer`: what upcall_event.buffer was. Any thread; also after the loop was freed.
 *
 * @return 0; -EINVAL for a pointer that is not a lent buffer of this pool (a foreign one, one returned twice); -ECHILD
 * in a forked child. Since 0.1.
 */
int32_t upcall_buffers_return(struct upcall_buffers *buffers, void *buffer);

/**
 * @brief Frees a pool. NULL is fine. Any thread; valid after the loop is freed.
 *
 * @return 0; -EBUSY while any buffer is lent or any operation uses the pool; -ECHILD in a forked child. Since 0.1.
 */
int32_t upcall_buffers_free(struct upcall_buffers *buffers);

/**
 * @brief Fills the first `size` bytes of `*config` with the defaults: use upcall_reader_config_init().
 *
 * `config` may be NULL (nothing is done). Any thread. Since 0.1.
 */
void upcall_reader_config_init_sized(struct upcall_reader_config *config, size_t size);

/**
 * @brief Begins to read file `fd` ahead, block after block. `config` NULL: the defaults.
 *
 * A disk is never "ready", so a file cannot be waited for. A reader can: it keeps up to `config.depth` blocks in flight or
 * ready, on a thread of its own, and upcall_reader_fd() polls readable exactly when upcall_reader_next() has an answer. So
 * a file joins any select(2), poll(2) or epoll(7) loop; no upcall_loop is needed.
 *
 * `fd` stays the program's: the reader has a duplicate of it, reads by position only, and neither uses nor moves the
 * file's own position. `fd` may be closed at once. (The duplicate is closed by upcall_reader_free(), and closing any
 * descriptor of a file drops the process's fcntl(2) record locks on it.) O_DIRECT works: blocks are aligned to a page.
 * `config` is read during the call; `*reader` receives the reader, to be ended by upcall_reader_free(), or NULL. The
 * reader's memory is (depth + 1) * block_size bytes. Besides it has at most two threads, six descriptors, and, without
 * io_uring, pool threads for the reads that wait for the disk. All of them block every signal. Any thread.
 *
 * @return 0; -EBADF (not open, or not for reading), -ESPIPE (a pipe, socket or terminal), -EISDIR; -EINVAL (a NULL or a
 * value out of range, named by upcall_last_error()); -E2BIG (a config with fields this library does not know); -ENOMEM,
 * -EMFILE, -ENFILE; -EAGAIN (no thread); with UPCALL_BACKEND_IO_URING the errno of the refusal. Since 0.1.
 */
int32_t upcall_reader_new(int32_t fd,
                          const struct upcall_reader_config *config,
                          struct upcall_reader **reader);

/**
 * @brief The descriptor to wait for: readable, by level, exactly while upcall_reader_next() would not answer -EAGAIN. From
 * the end of the file, or an error, on it stays readable.
 *
 * The reader owns it: never read or close it, only wait for POLLIN. Any thread.
 *
 * @return the descriptor; -EINVAL for NULL; -ECHILD in a forked child. Since 0.1.
 */
int32_t upcall_reader_fd(struct upcall_reader *reader);

/**
 * @brief Takes the next block, in the order of the file, if it is ready. Never waits.
 *
 * `*block` receives the block, aligned to a page, or NULL. It is lent until upcall_reader_release() or
 * upcall_reader_free(), and does not exist in a forked child. Blocks that are not released hold back reading ahead; with
 * depth + 1 of them lent nothing more is read until one comes back. Every block is exactly `block_size` bytes, but for
 * the last. A file that is changed meanwhile is read as it is when its blocks are read; the first read that meets its end
 * is the end. Any thread; for each block it is one caller that gets it.
 *
 * @return > 0: the bytes of the block; 0: the end of the file, or of `config.length`; -EAGAIN: nothing is ready yet (no
 * text in upcall_last_error()); another negative errno: reading failed, behind the bytes before it (-EIO; -EINVAL for what
 * O_DIRECT does not allow). The end and an error stay. -EINVAL for a NULL; -ECHILD in a forked child. Since 0.1.
 */
int64_t upcall_reader_next(struct upcall_reader *reader,
                           const void **block);

/**
 * @brief As upcall_reader_next(), but waits for a block, for at most `timeout_ns` (0: don't wait; negative: no limit).
 *
 * A signal handler that ran ends the wait. With all blocks lent it waits for another thread to release one. Any thread.
 *
 * @return as upcall_reader_next(); -EAGAIN when the time is over or a signal handler ran. Since 0.1.
 */
int64_t upcall_reader_wait(struct upcall_reader *reader, const void **block, int64_t timeout_ns);

/**
 * @brief Gives a block back, in any order. `block`: what upcall_reader_next() stored. Any thread.
 *
 * @return 0; -EINVAL for a NULL, or a pointer that is not a lent block of this reader (a foreign one, one released twice);
 * -ECHILD in a forked child. Since 0.1.
 */
int32_t upcall_reader_release(struct upcall_reader *reader,
                              const void *block);

/**
 * @brief Ends the reader: nothing more is read, what is in flight is waited for, and its memory, lent blocks included, its
 * threads and its descriptors are gone when it returns. NULL is fine.
 *
 * Any thread, while no other thread is in a call with this reader. Take upcall_reader_fd() out of an epoll set before. In
 * a forked child only that process's copies of the descriptors are closed.
 *
 * @return 0. Since 0.1.
 */
int32_t upcall_reader_free(struct upcall_reader *reader);

/**
 * @brief Runs `fn(arg)` on a thread of the loop's pool. Result: what it returns.
 *
 * `arg` is borrowed until the final event. Once running it cannot be cancelled. `fn` must return normally, and must not
 * poll the loop; it may submit, cancel and post. Works of a loop never take its last pool thread, so that files always
 * find one. Since 0.1.
 */
struct upcall_op upcall_op_work(upcall_work_fn fn, void *arg);

/**
 * @brief getaddrinfo(3) on a thread of the loop's pool: `*out` receives the list, to be freed with freeaddrinfo(3).
 *
 * `node`, `service` and `hints` may be NULL as for getaddrinfo(3), and are copied; strings of 4096 bytes and more are
 * -ENAMETOOLONG. `out` is borrowed until the final event, and written on success only. Result: 0; an UPCALL_EAI_
 * constant, whose text upcall_strerror() has; or what errno was, negative. Never takes the last pool thread. Cancelled
 * or timed out it ends at once, and so do upcall_loop_close() and upcall_loop_free(), although its thread may still
 * wait for the resolver: what that finds is freed by the library. Since 0.1.
 */
struct upcall_op upcall_op_getaddrinfo(const char *node,
                                       const char *service,
                                       const struct addrinfo *hints,
                                       struct addrinfo **out);

/**
 * @brief getdents64(2): fills `buf` with the next entries of the open directory `fd`, "." and ".." among them, in the
 * directory's own order. Result: the bytes of the records, to be walked by upcall_dirent_next(); 0 at the end.
 *
 * It uses and moves the descriptor's own position: the loop runs such operations on one descriptor one at a time, in
 * submission order. `buf`, aligned as a uint64_t, is borrowed until the final event; NULL with upcall_op.buffers. With
 * UPCALL_MULTISHOT, which needs them, each event lends a buffer of records until the final event has result 0.
 *
 * No room for the next entry is -EINVAL (280 bytes hold any of common file systems); what is no directory is -ENOTDIR; a
 * directory that was removed is -ENOENT. Since 0.1.
 */
struct upcall_op upcall_op_readdir(int32_t fd,
                                   void *buf,
                                   size_t len);

/**
 * @brief Walks the records that upcall_op_readdir() put in `buf`: `result` is the event's, `previous` the record before, NULL
 * for the first. NULL when there is none. What does not look like a record within `result` bytes ends the walk.
 *
 * `for (const upcall_dirent *d = NULL; (d = upcall_dirent_next(event->buffer, event->result, d));)`. Any
 * thread. Since 0.1.
 */
const struct upcall_dirent *upcall_dirent_next(const void *buf,
                                               int64_t result,
                                               const struct upcall_dirent *previous);

/**
 * @brief The name of an entry, in the buffer of its record: valid as long as that. Any thread. Since 0.1.
 */
const char *upcall_dirent_name(const struct upcall_dirent *entry);

/**
 * @brief pread(2): up to `len` bytes from `offset` of a file into `buf`. The rule for files: no shared position.
 *
 * `buf` is borrowed until the final event. Result: bytes read, 0 at end of file. A stream is -ESPIPE, a negative offset
 * -EINVAL. Once started on a disk it cannot be cancelled. Since 0.1.
 */
struct upcall_op upcall_op_pread(int32_t fd, void *buf, size_t len, int64_t offset);

/**
 * @brief pwrite(2): up to `len` bytes from `buf` to `offset` of a file.
 *
 * `buf` is borrowed until the final event. Result: bytes written. A stream is -ESPIPE, a negative offset -EINVAL; past
 * RLIMIT_FSIZE it is -EFBIG and no signal is raised. Since 0.1.
 */
struct upcall_op upcall_op_pwrite(int32_t fd, const void *buf, size_t len, int64_t offset);

/**
 * @brief preadv2(2): as upcall_op_pread() into `n` parts, at most 1024.
 *
 * The array is copied; the memory its entries name is borrowed until the final event. `rwf_flags`: RWF_DSYNC, RWF_APPEND …
 * of <sys/uio.h>; what the kernel or the file system does not know is -EOPNOTSUPP. RWF_NOWAIT is -EINVAL: an operation
 * waits. Since 0.1.
 */
struct upcall_op upcall_op_preadv(int32_t fd,
                                  const struct iovec *iov,
                                  size_t n,
                                  int64_t offset,
                                  int32_t rwf_flags);

/**
 * @brief pwritev2(2): as upcall_op_pwrite() from `n` parts, at most 1024; with RWF_APPEND to the end of the file, wherever
 * that is.
 *
 * The array is copied; the memory its entries name is borrowed until the final event. `rwf_flags` as for
 * upcall_op_preadv(). Since 0.1.
 */
struct upcall_op upcall_op_pwritev(int32_t fd,
                                   const struct iovec *iov,
                                   size_t n,
                                   int64_t offset,
                                   int32_t rwf_flags);

/**
 * @brief fsync(2). Result 0 when the file's data and metadata are on the device. Since 0.1.
 */
struct upcall_op upcall_op_fsync(int32_t fd);

/**
 * @brief fdatasync(2): as upcall_op_fsync(), but for metadata that reading the data does not need. Since 0.1.
 */
struct upcall_op upcall_op_fdatasync(int32_t fd);

/**
 * @brief sync_file_range(2). Result 0 when what `flags` (SYNC_FILE_RANGE_WRITE …) asks for is done with the `len`
 * bytes at `offset`; a `len` of 0 reaches to the end of the file. It makes nothing durable by itself: see its manual
 * page.
 *
 * A stream is -ESPIPE; a negative offset or length is -EINVAL. Since 0.1.
 */
struct upcall_op upcall_op_sync_range(int32_t fd, int64_t offset, int64_t len, uint32_t flags);

/**
 * @brief fallocate(2). Result 0 when the `len` bytes at `offset` have room on the disk, or what else `mode`
 * (FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE …) asks for.
 *
 * A mode the file system does not know is -EOPNOTSUPP; past RLIMIT_FSIZE it is -EFBIG and no signal is raised; no room is
 * -ENOSPC; a negative offset, or a length below 1, is -EINVAL. Since 0.1.
 */
struct upcall_op upcall_op_fallocate(int32_t fd,
                                     int32_t mode,
                                     int64_t offset,
                                     int64_t len);

/**
 * @brief ftruncate(2). Result 0 when the file has `len` bytes. A negative length, or a descriptor not open for
 * writing, is -EINVAL; past RLIMIT_FSIZE it is -EFBIG and no signal is raised. Since 0.1.
 */
struct upcall_op upcall_op_ftruncate(int32_t fd, int64_t len);

/**
 * @brief posix_fadvise(2): tells the kernel how the `len` bytes at `offset` will be used: POSIX_FADV_WILLNEED,
 * POSIX_FADV_DONTNEED …; a `len` of 0 reaches to the end of the file. Result 0, or a negative errno: -EINVAL for an
 * unknown advice, -ESPIPE for a pipe. A negative offset or length is -EINVAL. Since 0.1.
 */
struct upcall_op upcall_op_fadvise(int32_t fd, int64_t offset, int64_t len, int32_t advice);

/**
 * @brief madvise(2): tells the kernel how the `len` bytes of memory at `addr`, the start of a page, will be used:
 * MADV_WILLNEED, MADV_DONTNEED, MADV_POPULATE_READ … Result 0.
 *
 * The memory is borrowed until the final event: it must stay mapped. -ENOMEM where nothing is mapped; -EINVAL for an
 * unknown advice or an address inside a page. Since 0.1.
 */
struct upcall_op upcall_op_madvise(void *addr, size_t len, int32_t advice);

/**
 * @brief openat(2). Result: a descriptor, close-on-exec. `dirfd` may be AT_FDCWD; `mode` counts with O_CREAT and
 * O_TMPFILE only.
 *
 * `path` is copied. Opening a FIFO may wait for the other side without limit; it can be cancelled. Since 0.1.
 */
struct upcall_op upcall_op_open(int32_t dirfd, const char *path, int32_t flags, uint32_t mode);

/**
 * @brief openat2(2): as upcall_op_open(), with `how->resolve` (RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS …). Result: a
 * descriptor, close-on-exec whatever `how->flags` says.
 *
 * `path` and `how` are copied. `size` is sizeof *how: less than the first version's 24 is -EINVAL, fields after these that
 * are not zero are -E2BIG. RESOLVE_CACHED is -EINVAL: an operation waits. A kernel without the call (before 5.6) is
 * -EOPNOTSUPP. Since 0.1.
 */
struct upcall_op upcall_op_openat2(int32_t dirfd,
                                   const char *path,
                                   const struct open_how *how,
                                   size_t size);

/**
 * @brief close(2), safely: first asks every operation of this loop in flight on `fd` to end, waits for their final events
 * (-ECANCELED, or the result when it was too late) and delivers them, then closes. Result: 0 or a negative errno.
 *
 * A started close cannot be cancelled; one that never started leaves the descriptor open. Operations submitted on `fd`
 * while it closes end in -EBADF. Since 0.1.
 */
struct upcall_op upcall_op_close(int32_t fd);

/**
 * @brief statx(2). Result 0, with what `mask` asks for (STATX_BASIC_STATS …) in `*statxbuf`.
 *
 * `path` is copied (an empty one with AT_EMPTY_PATH asks about `dirfd` itself); `statxbuf` is borrowed until the final
 * event. Since 0.1.
 */
struct upcall_op upcall_op_statx(int32_t dirfd, const char *path, int32_t flags, uint32_t mask, struct statx *statxbuf);

/**
 * @brief renameat2(2). Result 0 when `old` has the name `new`. `flags`: 0, RENAME_NOREPLACE, RENAME_EXCHANGE …
 *
 * Both paths are copied; each directory may be AT_FDCWD. A flag the file system does not know is -EINVAL. Since 0.1.
 */
struct upcall_op upcall_op_rename(int32_t olddirfd,
                                  const char *old,
                                  int32_t newdirfd,
                                  const char *new_,
                                  uint32_t flags);

/**
 * @brief unlinkat(2). Result 0 when the name is gone; with AT_REMOVEDIR in `flags` that of an empty directory, as
 * rmdir(2).
 *
 * `path` is copied; `dirfd` may be AT_FDCWD. Since 0.1.
 */
struct upcall_op upcall_op_unlink(int32_t dirfd, const char *path, int32_t flags);

/**
 * @brief mkdirat(2). Result 0 when the directory is made, with the permissions of `mode` that the umask leaves.
 *
 * `path` is copied; `dirfd` may be AT_FDCWD. Since 0.1.
 */
struct upcall_op upcall_op_mkdir(int32_t dirfd, const char *path, uint32_t mode);

/**
 * @brief symlinkat(2). Result 0 when `path` is a symbolic link to `target`, which need not exist.
 *
 * `target` and `path` are copied; `dirfd`, which `path` is relative to, may be AT_FDCWD. Since 0.1.
 */
struct upcall_op upcall_op_symlink(const char *target, int32_t dirfd, const char *path);

/**
 * @brief linkat(2). Result 0 when `new` is one more name of the file `old`. `flags`: 0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH
 * (`old` is empty and `olddirfd` the file itself).
 *
 * Both paths are copied; each directory may be AT_FDCWD. Since 0.1.
 */
struct upcall_op upcall_op_hardlink(int32_t olddirfd,
                                    const char *old,
                                    int32_t newdirfd,
                                    const char *new_,
                                    int32_t flags);

/**
 * @brief Waits until the signal `signo` is delivered to this process: result `signo`.
 *
 * From the return of upcall_submit(), on whichever thread, until the final event, the signal is caught (by sigaction(2)
 * with SA_RESTART; the signal mask is not touched, so some thread must have it unblocked) and no delivery is lost; those
 * between two turns are told as one event. Every loop and every operation that asked is told. With UPCALL_MULTISHOT there
 * are events until it is cancelled; without, the next delivery ends it. When the last operation of the process for this
 * signal has ended, the action from before is back; if the program has set another one meanwhile, that stays, and hides
 * the signal. In a forked child the action from before meets the signal. A cancel that comes after a delivery does not
 * undo it.
 *
 * Refused with -EINVAL: SIGKILL, SIGSTOP, the signals of faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS), what is
 * no signal; with -EBUSY: the real-time signal (the highest that was free) that the library interrupts its own threads
 * with, once it does. Since 0.1.
 */
struct upcall_op upcall_op_signal(int32_t signo);

/**
 * @brief waitid(2): waits until a child changes its state, result 0; -ECHILD when there is no such child.
 *
 * `idtype` is P_PID, P_PGID, P_ALL or P_PIDFD, `id` as it says; `options` has at least one of WEXITED, WSTOPPED and
 * WCONTINUED, perhaps WNOWAIT. WNOHANG is -EINVAL: an operation waits. `info` is a siginfo_t, or NULL; it is borrowed until
 * the final event and written only with result 0. A cancelled one has not reaped the child. A descriptor of P_PIDFD may be
 * O_NONBLOCK, and must stay open until the final event. Where the kernel can neither do it nor tell when to look, it is
 * looked for at most every 20 ms. Since 0.1.
 */
struct upcall_op upcall_op_waitid(uint32_t idtype,
                                  uint32_t id,
                                  void *info,
                                  int32_t options);

/**
 * @brief futex(2), FUTEX_WAIT_BITSET: waits while `*addr` is `value` until a wake whose mask has a bit of `mask`. Result: 0
 * when it was woken, 1 when `*addr` was another value already.
 *
 * `addr` is 32 bits, aligned, borrowed until the final event. It is read when the loop is polled, or a little later, not
 * by upcall_submit(): change the value, then wake, as always with a futex. `mask` is FUTEX_BITSET_MATCH_ANY, or other 32
 * bits that are not 0. `flags` is 0 or UPCALL_FUTEX_PRIVATE; FUTEX2_SIZE_U32 may be added and changes nothing. One that was
 * woken is not cancelled any more: no wake is lost on it. Since 0.1.
 */
struct upcall_op upcall_op_futex_wait(uint32_t *addr,
                                      uint32_t value,
                                      uint64_t mask,
                                      uint32_t flags);

/**
 * @brief futex(2), FUTEX_WAKE_BITSET: wakes at most `count` waiters at `addr`, operations or threads, whose mask has a bit
 * of `mask`. Result: how many.
 *
 * `count` is 1 to INT_MAX. `addr`, `mask` and `flags` are as for upcall_op_futex_wait(). Since 0.1.
 */
struct upcall_op upcall_op_futex_wake(uint32_t *addr,
                                      uint32_t count,
                                      uint64_t mask,
                                      uint32_t flags);

/**
 * @brief Does nothing. Result 0. Since 0.1.
 */
struct upcall_op upcall_op_nop(void);

/**
 * @brief poll(2): waits until `fd` shows one of `events` (POLLIN, POLLOUT, POLLPRI, POLLRDHUP …). Result: the events
 * seen, which may include POLLERR and POLLHUP.
 *
 * A regular file is always ready. With UPCALL_MULTISHOT: the first event by level, then at least one per arrival after the
 * program drained the descriptor; spurious ones are possible. Since 0.1.
 */
struct upcall_op upcall_op_poll(int32_t fd,
                                uint32_t events);

/**
 * @brief socket(2). Result: a descriptor, close-on-exec; SOCK_NONBLOCK in `type` makes it non-blocking. Since 0.1.
 */
struct upcall_op upcall_op_socket(int32_t domain, int32_t type, int32_t protocol);

/**
 * @brief bind(2). Result 0. `addr`, `len` bytes, is copied. Since 0.1.
 */
struct upcall_op upcall_op_bind(int32_t fd, const struct sockaddr *addr, socklen_t len);

/**
 * @brief listen(2): at most `backlog` connections wait to be accepted. Result 0. Since 0.1.
 */
struct upcall_op upcall_op_listen(int32_t fd, int32_t backlog);

/**
 * @brief accept4(2). Result: a descriptor, close-on-exec; `flags`: SOCK_NONBLOCK or 0.
 *
 * `addr` and `addrlen` may be NULL; they are borrowed until the final event: `*addrlen` is the room at `addr`, then
 * the address's length. With UPCALL_MULTISHOT each connection is an event, `addr` and `addrlen` must be NULL, and a
 * shortage (EMFILE, ENFILE, ENOBUFS, ENOMEM) is reported once with UPCALL_MORE, after which accepting goes on with
 * back-off. On epoll a listener opened with SOCK_NONBLOCK is faster: a blocking one costs a thread switch per
 * connection. Since 0.1.
 */
struct upcall_op upcall_op_accept(int32_t fd, struct sockaddr *addr, socklen_t *addrlen, int32_t flags);

/**
 * @brief connect(2), as a careful program does it: start, wait for writability, read SO_ERROR. Result: 0 or that error.
 *
 * `addr`, `len` bytes, is copied. After a cancelled or timed-out connect the socket's state is undefined: close it.
 * Since 0.1.
 */
struct upcall_op upcall_op_connect(int32_t fd, const struct sockaddr *addr, socklen_t len);

/**
 * @brief recv(2): up to `len` bytes, or one datagram, into `buf`.
 *
 * `buf` is borrowed until the final event; NULL with upcall_op.buffers. `flags`: MSG_PEEK, MSG_TRUNC, MSG_OOB …, not
 * MSG_DONTWAIT (an operation waits) nor MSG_WAITALL (use UPCALL_FULL). Result: bytes received, 0 at end of stream. With
 * UPCALL_MULTISHOT and buffers: an event per piece until the end of the stream. Since 0.1.
 */
struct upcall_op upcall_op_recv(int32_t fd, void *buf, size_t len, int32_t flags);

/**
 * @brief send(2): up to `len` bytes from `buf`. Never raises SIGPIPE.
 *
 * `buf` is borrowed until the final event. `flags`: MSG_MORE, MSG_OOB …, not MSG_DONTWAIT. Result: bytes sent;
 * UPCALL_FULL sends all of them. With UPCALL_ZEROCOPY they are not copied, and two events tell. Since 0.1.
 */
struct upcall_op upcall_op_send(int32_t fd, const void *buf, size_t len, int32_t flags);

/**
 * @brief recvfrom(2): as upcall_op_recv(), with the sender's address.
 *
 * `buf`, `addr` and `addrlen` are borrowed until the final event. `addr` may be NULL, then `addrlen` does not matter.
 * `*addrlen` is the room at `addr`, read by upcall_submit(), and then the address's real length, which may be more than
 * there was room for; 0 where there is none (a connected TCP socket). `flags`, result and UPCALL_FULL as for
 * upcall_op_recv(); the address is that of the first part. Since 0.1.
 */
struct upcall_op upcall_op_recvfrom(int32_t fd,
                                    void *buf,
                                    size_t len,
                                    int32_t flags,
                                    struct sockaddr *addr,
                                    socklen_t *addrlen);

/**
 * @brief sendto(2): as upcall_op_send(), to an address.
 *
 * `addr` is copied; NULL, with an `addrlen` of 0, on a connected socket. `buf` is borrowed until the final event. Result:
 * bytes sent; UPCALL_FULL sends all of them. Since 0.1.
 */
struct upcall_op upcall_op_sendto(int32_t fd,
                                  const void *buf,
                                  size_t len,
                                  int32_t flags,
                                  const struct sockaddr *addr,
                                  socklen_t addrlen);

/**
 * @brief recvmsg(2): a message with its sender's address and control data.
 *
 * `msg` and all it names are borrowed until the final event, which sets msg_namelen, msg_controllen and msg_flags.
 * Result: bytes received. With upcall_op.buffers only msg_namelen and msg_controllen are read, as the room to keep in each
 * buffer, which then begins with an upcall_msg; the result is the payload's length. Descriptors received in control data
 * are close-on-exec. Since 0.1.
 */
struct upcall_op upcall_op_recvmsg(int32_t fd,
                                   struct msghdr *msg,
                                   int32_t flags);

/**
 * @brief sendmsg(2): a message from parts, with an address and control data.
 *
 * `msg`, its address, vector and control data are copied; the data its vector names is borrowed until the final event.
 * `flags`, result, UPCALL_FULL and UPCALL_ZEROCOPY as for upcall_op_send(). Since 0.1.
 */
struct upcall_op upcall_op_sendmsg(int32_t fd, const struct msghdr *msg, int32_t flags);

/**
 * @brief shutdown(2). Result 0. `how`: SHUT_RD, SHUT_WR, SHUT_RDWR. Since 0.1.
 */
struct upcall_op upcall_op_shutdown(int32_t fd, int32_t how);

/**
 * @brief getsockopt(2). Result 0. `val` and `len` are borrowed until the final event; `*len` is the room at `val`,
 * then the value's length. Since 0.1.
 */
struct upcall_op upcall_op_getsockopt(int32_t fd, int32_t level, int32_t name, void *val, socklen_t *len);

/**
 * @brief setsockopt(2). Result 0. `val`, `len` bytes, is copied; more than 64 KiB are -EINVAL. What a value itself
 * points to (a socket filter's instructions) is borrowed until the final event. Since 0.1.
 */
struct upcall_op upcall_op_setsockopt(int32_t fd, int32_t level, int32_t name, const void *val, socklen_t len);

/**
 * @brief pipe2(2). Result 0, and `fds[0]` is what `fds[1]` writes to, both close-on-exec.
 *
 * `fds` has room for two, is borrowed until the final event, and written on success only. `flags`: O_NONBLOCK, O_DIRECT,
 * O_NOTIFICATION_PIPE or 0. Since 0.1.
 */
struct upcall_op upcall_op_pipe(int32_t *fds,
                                int32_t flags);

/**
 * @brief The sender's address in a buffer lent by recvmsg: `msg` is upcall_event.buffer, `room` the header the operation
 * was submitted with. It is upcall_msg.namelen bytes, at most room->msg_namelen. Any thread. Since 0.1.
 */
const void *upcall_msg_name(const struct upcall_msg *msg,
                            const struct msghdr *room);

/**
 * @brief The control data in a buffer lent by recvmsg, upcall_msg.controllen bytes; arguments as for upcall_msg_name().
 * NULL for a NULL `room`. Any thread. Since 0.1.
 */
const void *upcall_msg_control(const struct upcall_msg *msg, const struct msghdr *room);

/**
 * @brief The message in a buffer lent by recvmsg; the event's result is its length in the buffer. Arguments as for
 * upcall_msg_name(). NULL for a NULL `room`. Any thread. Since 0.1.
 */
const void *upcall_msg_payload(const struct upcall_msg *msg, const struct msghdr *room);

/**
 * @brief read(2): up to `len` bytes from a stream into `buf`. On a regular file it uses and moves the file's own
 * position, and the loop runs such operations on one descriptor one at a time in submission order.
 *
 * `buf` is borrowed until the final event; NULL with upcall_op.buffers. Result: bytes read, 0 at end of file. A length of
 * 0 completes with 0. UPCALL_FULL waits for all of `len`. Since 0.1.
 */
struct upcall_op upcall_op_read(int32_t fd,
                                void *buf,
                                size_t len);

/**
 * @brief write(2): up to `len` bytes from `buf` to a stream. Never raises SIGPIPE: a reader that is gone is -EPIPE. On a
 * regular file as for upcall_op_read().
 *
 * `buf` is borrowed until the final event. Result: bytes written. UPCALL_FULL writes all of `len`. Since 0.1.
 */
struct upcall_op upcall_op_write(int32_t fd,
                                 const void *buf,
                                 size_t len);

/**
 * @brief readv(2): as upcall_op_read() into `n` parts, at most 1024.
 *
 * The array is copied; the memory its entries name is borrowed until the final event. Since 0.1.
 */
struct upcall_op upcall_op_readv(int32_t fd, const struct iovec *iov, size_t n);

/**
 * @brief writev(2): as upcall_op_write() from `n` parts, at most 1024.
 *
 * The array is copied; the memory its entries name is borrowed until the final event. Since 0.1.
 */
struct upcall_op upcall_op_writev(int32_t fd, const struct iovec *iov, size_t n);

/**
 * @brief Ends after `ns` nanoseconds, never early. Result 0.
 *
 * With UPCALL_MULTISHOT it repeats: the k-th tick at start + k * ns; result: the periods elapsed since the last event
 * (missed ones merge); 0 nanoseconds is then -EINVAL. Since 0.1.
 */
struct upcall_op upcall_op_sleep(uint64_t ns);

/**
 * @brief Ends when CLOCK_MONOTONIC reaches `monotonic_ns` (see upcall_now()), never early. Result 0.
 * Since 0.1.
 */
struct upcall_op upcall_op_sleep_until(uint64_t monotonic_ns);

/**
 * @brief splice(2): moves up to `len` bytes from `in` to `out`, one of which must be a pipe.
 *
 * `off_in`, `off_out`: where to read and write, with -1 at the descriptor's own position, which is the only way for pipes and
 * sockets (-ESPIPE otherwise). `flags`: SPLICE_F_MOVE, SPLICE_F_MORE; not SPLICE_F_NONBLOCK, an operation waits. Result:
 * bytes moved, 0 at the end of `in`. UPCALL_FULL moves all of `len`. Closing or cancelling either descriptor by the loop ends
 * the operation. Operations from the same `in` run one at a time, in submission order. Never raises SIGPIPE. Since 0.1.
 */
struct upcall_op upcall_op_splice(int32_t in,
                                  int64_t off_in,
                                  int32_t out,
                                  int64_t off_out,
                                  size_t len,
                                  uint32_t flags);

/**
 * @brief tee(2): copies up to `len` bytes from one pipe to another without consuming them.
 *
 * `flags` as for upcall_op_splice(). Result: bytes copied, 0 when `in` has no writers and no data. Since 0.1.
 */
struct upcall_op upcall_op_tee(int32_t in, int32_t out, size_t len, uint32_t flags);

/**
 * @brief sendfile(2): moves up to `len` bytes from `offset` of the file `in` to `out`, usually a socket.
 *
 * `offset`: -1 for the file's own position. Result: bytes moved, 0 at the end of the file. UPCALL_FULL moves all of `len`.
 * A socket opened with SOCK_NONBLOCK is cheaper: a blocking one costs a thread while its peer does not read. Otherwise as
 * upcall_op_splice(). Since 0.1.
 */
struct upcall_op upcall_op_sendfile(int32_t out,
                                    int32_t in,
                                    int64_t offset,
                                    size_t len);

/**
 * @brief copy_file_range(2): copies up to `len` bytes from one file to another, sharing blocks where the filesystem can.
 *
 * `off_in`, `off_out`: where to read and write, -1 for the file's own position; `flags` must be 0. Result: bytes copied, 0 at
 * the end of `in`. UPCALL_FULL copies all of `len`. Once started it cannot be cancelled. Since 0.1.
 */
struct upcall_op upcall_op_copy_range(int32_t in,
                                      int64_t off_in,
                                      int32_t out,
                                      int64_t off_out,
                                      size_t len,
                                      uint32_t flags);

/**
 * @brief getxattr(2). Result: the length of the value of the extended attribute `name` of the file `path`, put into
 * `value`. With a `size` of 0 the length alone.
 *
 * `path` and `name` are copied; `value` is borrowed until the final event. No such attribute is -ENODATA; a value longer
 * than `size` is -ERANGE; a file system without attributes is -EOPNOTSUPP. Since 0.1.
 */
struct upcall_op upcall_op_getxattr(const char *path,
                                    const char *name,
                                    void *value,
                                    size_t size);

/**
 * @brief setxattr(2). Result 0 when the extended attribute `name` of the file `path` has the `size` bytes of `value`.
 * `flags`: 0, XATTR_CREATE (-EEXIST where it is there), XATTR_REPLACE (-ENODATA where it is not).
 *
 * `path`, `name` and `value` are copied. More than XATTR_SIZE_MAX (65536) bytes are -E2BIG, a name of more than
 * XATTR_NAME_MAX (255) is -ERANGE. Since 0.1.
 */
struct upcall_op upcall_op_setxattr(const char *path, const char *name, const void *value, size_t size, int32_t flags);

/**
 * @brief fgetxattr(2): as upcall_op_getxattr(), of the open file `fd`. Since 0.1.
 */
struct upcall_op upcall_op_fgetxattr(int32_t fd, const char *name, void *value, size_t size);

/**
 * @brief fsetxattr(2): as upcall_op_setxattr(), of the open file `fd`. Since 0.1.
 */
struct upcall_op upcall_op_fsetxattr(int32_t fd, const char *name, const void *value, size_t size, int32_t flags);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* UPCALL_H */

#if defined(__cplusplus) && __cplusplus >= 201103L
static_assert(sizeof(upcall_op) == 128, "upcall_op is frozen at 128 bytes");
static_assert(sizeof(upcall_event) == 64, "upcall_event is frozen at 64 bytes");
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(upcall_op) == 128, "upcall_op is frozen at 128 bytes");
_Static_assert(sizeof(upcall_event) == 64, "upcall_event is frozen at 64 bytes");
#endif
