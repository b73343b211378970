//! The types and constants that cross the C boundary. They become `include/upcall.h`; nothing here has behaviour.
//!
//! Values that come *in* are plain integers with named constants: an unknown value of a Rust `enum` would be undefined
//! behaviour before any check could see it.

#![allow(non_camel_case_types, reason = "these are the C names")]

use std::ffi::c_void;

/// Major part of the version this header belongs to. Since 0.1.
pub const UPCALL_VERSION_MAJOR: u32 = 0;
/// Minor part of the version this header belongs to. Since 0.1.
pub const UPCALL_VERSION_MINOR: u32 = 1;
/// Patch part of the version this header belongs to. Since 0.1.
pub const UPCALL_VERSION_PATCH: u32 = 0;
/// Major * 1000000 + minor * 1000 + patch of this header. upcall_version() is the library's. Since 0.1.
pub const UPCALL_VERSION_NUMBER: u32 = 1000;

/// Which kernel interface a loop runs on: an UPCALL_BACKEND_ constant. Since 0.1.
pub type upcall_backend = u32;
/// io_uring where it is usable, else epoll; upcall_backend_reason() tells why. The environment variable
/// `UPCALL_BACKEND` (auto, io_uring, epoll) overrides this value only, and is ignored in set-user-ID programs.
/// Since 0.1.
pub const UPCALL_BACKEND_AUTO: upcall_backend = 0;
/// io_uring or nothing: upcall_loop_new() fails with the kernel's errno where the ring is denied. Since 0.1.
pub const UPCALL_BACKEND_IO_URING: upcall_backend = 1;
/// epoll and a small thread pool. No io_uring system call is made, not even to probe. Since 0.1.
pub const UPCALL_BACKEND_EPOLL: upcall_backend = 2;

/// What an operation does: an UPCALL_OP_ constant, set by its constructor. 0 is invalid, so a zeroed op is refused.
/// Since 0.1.
pub type upcall_kind = u32;

/// One completion when *all* bytes are moved, not one per packet. Shorter only at end of file or after an error, and
/// then upcall_event.transferred says how much. For read, write, recv and send with all their forms (readv, pread,
/// preadv, recvfrom, recvmsg …), splice, sendfile and copy_range; on a message socket it is one message. Not with
/// buffers or UPCALL_MULTISHOT. Since 0.1.
pub const UPCALL_FULL: u32 = 1;
/// One submit, many events: each but the final one carries UPCALL_MORE. For accept, recv, recvmsg, readdir, poll, sleep,
/// signal. It ends when cancelled, at end of stream (result 0), or at an error. recv, recvmsg and readdir need
/// upcall_op.buffers. Since 0.1.
pub const UPCALL_MULTISHOT: u32 = 2;
/// The next op of this submit starts only when this one succeeded in full (all bytes asked for, or result >= 0 for what
/// moves none; for readdir and with buffers any success); otherwise the rest of the chain ends in -ECANCELED. Not on the
/// last op, nor on a multishot. Since 0.1.
pub const UPCALL_LINK: u32 = 4;
/// The next op of this submit starts when this one has ended, whatever its result (`send`, then `close`). Not on the last
/// op, nor on a multishot, nor with UPCALL_LINK. Since 0.1.
pub const UPCALL_LINK_ALWAYS: u32 = 8;
/// Starts when everything earlier *in the same submit* has ended, and later ones of that submit wait for it: n writes,
/// then fsync. Since 0.1.
pub const UPCALL_DRAIN: u32 = 16;
/// send and sendmsg: the kernel sends the program's own memory without copying it, where it can (io_uring, IP sockets;
/// elsewhere it is copied, with the same events). Two events: the result, with UPCALL_MORE, and when the data is no
/// longer needed the final one, with UPCALL_RELEASED, which repeats result and transferred; until then the data must
/// not change. An operation that never started has one, final event. A chain goes on, and a close of the descriptor no
/// longer waits, at the result; the end of the loop waits for both events. Since 0.1.
pub const UPCALL_ZEROCOPY: u32 = 32;
/// This op does not keep upcall_run() alive (a watcher, a statistics tick). Since 0.1.
pub const UPCALL_BACKGROUND: u32 = 64;

/// Further events of this operation follow; its memory and its id stay in use. Since 0.1.
pub const UPCALL_MORE: u32 = 1;
/// UPCALL_ZEROCOPY: the data is the program's again. Comes with the final event. Since 0.1.
pub const UPCALL_RELEASED: u32 = 2;
/// This -ETIMEDOUT comes from upcall_op.timeout_ns, not from the network. Since 0.1.
pub const UPCALL_EXPIRED: u32 = 4;

/// upcall_supports(): the operation ends in -EOPNOTSUPP on this loop. Since 0.1.
pub const UPCALL_UNSUPPORTED: i32 = 0;
/// upcall_supports(): done by a non-blocking call after waiting for readiness, by the thread pool, or by the loop itself.
/// Since 0.1.
pub const UPCALL_EMULATED: i32 = 1;
/// upcall_supports(): done by the kernel as one io_uring operation. Since 0.1.
pub const UPCALL_NATIVE: i32 = 2;

/// What getaddrinfo(3) answered, as upcall_op_getaddrinfo() reports it: EAI - 3000. Values that are not named here, which a C
/// library may have, come the same way. upcall_strerror() knows them as gai_strerror(3) does. Since 0.1.
pub const UPCALL_EAI_BASE: i32 = -3000;
/// Bad ai_flags. Since 0.1.
pub const UPCALL_EAI_BADFLAGS: i32 = -3001;
/// The name or service is not known, or neither was given. Since 0.1.
pub const UPCALL_EAI_NONAME: i32 = -3002;
/// The name server answered a temporary failure: try again later. Since 0.1.
pub const UPCALL_EAI_AGAIN: i32 = -3003;
/// The name server answered a permanent failure. Since 0.1.
pub const UPCALL_EAI_FAIL: i32 = -3004;
/// The name is known and has no addresses. Since 0.1.
pub const UPCALL_EAI_NODATA: i32 = -3005;
/// ai_family is not supported. Since 0.1.
pub const UPCALL_EAI_FAMILY: i32 = -3006;
/// ai_socktype is not supported. Since 0.1.
pub const UPCALL_EAI_SOCKTYPE: i32 = -3007;
/// The service is not known for the socket type. Since 0.1.
pub const UPCALL_EAI_SERVICE: i32 = -3008;
/// The name has no addresses of ai_family. Since 0.1.
pub const UPCALL_EAI_ADDRFAMILY: i32 = -3009;
/// Out of memory. Since 0.1.
pub const UPCALL_EAI_MEMORY: i32 = -3010;
/// A system error that left no errno; with one, it is that -errno. Since 0.1.
pub const UPCALL_EAI_SYSTEM: i32 = -3011;
/// The name or service is too long. Since 0.1.
pub const UPCALL_EAI_OVERFLOW: i32 = -3012;

/// A loop: made by upcall_loop_new(), ended by upcall_loop_free(). It belongs to the first thread that polls it.
/// Since 0.1.
pub struct upcall_loop {
    _private: [u8; 0],
}

/// A pool of equal buffers that operations borrow from when data is there: upcall_buffers_new(), upcall_buffers_return(),
/// upcall_buffers_free(). Since 0.1.
pub struct upcall_buffers {
    _private: [u8; 0],
}

/// A file as a stream of blocks that are read ahead, behind a descriptor that polls readable when a block is in memory:
/// upcall_reader_new(), upcall_reader_fd(), upcall_reader_next(), upcall_reader_wait(), upcall_reader_release(),
/// upcall_reader_free(). Since 0.1.
pub struct upcall_reader {
    _private: [u8; 0],
}

/// Names an accepted operation: generation-tagged, never 0. A stale, forged or foreign id is detected, not misdirected.
/// Since 0.1.
pub type upcall_id = u64;

/// Called on the owner thread, inside a turn of the loop, once per event. `event` is valid only inside the callback.
/// Since 0.1.
pub type upcall_callback = Option<unsafe extern "C-unwind" fn(r#loop: *mut upcall_loop, event: *const upcall_event)>;
/// Called on the owner thread, inside a turn of the loop, exactly once per upcall_post(). Since 0.1.
pub type upcall_post_fn = Option<unsafe extern "C-unwind" fn(r#loop: *mut upcall_loop, arg: *mut c_void)>;
/// A computation run on a thread of the loop's pool, once; what it returns is the event's result. Since 0.1.
pub type upcall_work_fn = Option<unsafe extern "C-unwind" fn(arg: *mut c_void) -> i64>;

/// What an operation tells the program. 64 bytes, frozen. Since 0.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct upcall_event {
    /// The operation's id, as upcall_submit() gave it.
    pub id: upcall_id,
    /// The op's user pointer.
    pub user: *mut c_void,
    /// >= 0 the operation's value, < 0 a negative errno.
    pub result: i64,
    /// Bytes really moved, also when result < 0 (cancelled or timed out half-way).
    pub transferred: u64,
    /// The lent buffer: non-NULL exactly when at least one byte or one datagram was put in it. Give it back with
    /// upcall_buffers_return().
    pub buffer: *mut c_void,
    /// 0, or any of UPCALL_MORE, UPCALL_RELEASED, UPCALL_EXPIRED.
    pub flags: u32,
    /// The operation's kind; upcall_op_name() names it.
    pub kind: upcall_kind,
    /// Zero.
    pub reserved: [u64; 2],
}

/// One operation to submit. 128 bytes, frozen. Made by an upcall_op_ constructor, then given a callback, a user pointer
/// and options; upcall_submit() copies it. Since 0.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct upcall_op {
    /// Set by the constructor.
    pub kind: upcall_kind,
    /// 0, or any of UPCALL_FULL, UPCALL_MULTISHOT, UPCALL_LINK, UPCALL_LINK_ALWAYS, UPCALL_DRAIN, UPCALL_ZEROCOPY,
    /// UPCALL_BACKGROUND. Bits that are not known, and those the operation cannot have, are -EINVAL.
    pub flags: u32,
    /// Who is told. NULL: the events wait for upcall_reap().
    pub callback: upcall_callback,
    /// Comes back in each event; the library does not look at it.
    pub user: *mut c_void,
    /// Nanoseconds until the clock cancels it (-ETIMEDOUT with UPCALL_EXPIRED); 0: never. Counted from acceptance, or from
    /// when a link or drain lets it start. With UPCALL_MULTISHOT an idle limit, restarted by each event.
    pub timeout_ns: u64,
    /// recv, recvmsg, read, readdir: pick the buffer from this pool of this loop when data is there; the constructor's
    /// `buf` is then NULL, its `len` the most to take. NULL: use the op's own.
    pub buffers: *mut upcall_buffers,
    /// With buffers: pause while so many of them are lent to this op's events; 0: no limit.
    pub lend_max: u32,
    /// Set by the constructor: the descriptor, or the directory a path is relative to.
    pub fd: i32,
    /// Set by the constructor.
    pub addr: u64,
    /// Set by the constructor.
    pub addr2: u64,
    /// Set by the constructor.
    pub len: u64,
    /// Set by the constructor.
    pub offset: u64,
    /// Set by the constructor.
    pub offset2: u64,
    /// Set by the constructor.
    pub arg: u32,
    /// Set by the constructor.
    pub arg2: u32,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// How a loop is made. Fill it with upcall_config_init(), change what you need, pass it to upcall_loop_new().
/// Since 0.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct upcall_config {
    /// sizeof(upcall_config), set by upcall_config_init().
    pub size: u32,
    /// An UPCALL_BACKEND_ constant.
    pub backend: upcall_backend,
    /// Operations that one system call can hand over: 1 to 32768, rounded up to a power of two. Default 256.
    pub entries: u32,
    /// At most so many events and posts per turn, at least 1; a multishot without a callback pauses after as many
    /// unreaped records. Default 1024.
    pub max_events: u32,
    /// At most so many pool threads, started when work waits: 2 to 1024. Default: the processors, at least 4, at most 16.
    pub workers: u32,
    /// Operations in flight at most; one more is refused with -EAGAIN. Address space (128 bytes each) is reserved, memory
    /// only used as needed. Default 1048576, at most 16777216.
    pub max_operations: u32,
    /// Count callbacks that run longer than so many nanoseconds; 0, the default: callbacks are not timed.
    pub slow_callback_ns: u64,
    /// Look again for so many nanoseconds before sleeping, while recent sleeps were shorter. Burns processor time.
    /// Default 0.
    pub spin_ns: u64,
    /// Must be 0: none are defined.
    pub flags: u64,
    /// Must be zero.
    pub reserved: [u64; 8],
}

/// How a reader is made. Fill it with upcall_reader_config_init(), change what you need, pass it to upcall_reader_new().
/// Since 0.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct upcall_reader_config {
    /// sizeof(upcall_reader_config), set by upcall_reader_config_init().
    pub size: u32,
    /// An UPCALL_BACKEND_ constant.
    pub backend: upcall_backend,
    /// Bytes of a block: a multiple of 4096, at most 1 GiB. Default 1048576.
    pub block_size: u32,
    /// Blocks read ahead at most, in flight or ready: 1 to 1024. Default 4. The reader's memory is
    /// (depth + 1) * block_size: one block more, for the program to work on meanwhile.
    pub depth: u32,
    /// Where in the file to begin, in bytes. Default 0. With O_DIRECT it must be aligned as the file system demands.
    pub offset: u64,
    /// Bytes to read at most; 0, the default: to the end of the file. It need not be aligned.
    pub length: u64,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// The loop's counters: upcall_stats_get(). Plain words that only grow (but for in_flight), not a snapshot. Since 0.1.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct upcall_stats {
    /// Bytes filled in.
    pub size: u32,
    /// The UPCALL_BACKEND_ in use.
    pub backend: upcall_backend,
    /// Operations accepted.
    pub submitted: u64,
    /// Ended by themselves, with whatever result.
    pub completed: u64,
    /// Ended in -ECANCELED.
    pub cancelled: u64,
    /// Ended by upcall_op.timeout_ns.
    pub timed_out: u64,
    /// Accepted and not ended: between turns, submitted = completed + cancelled + timed_out + in_flight.
    pub in_flight: u64,
    /// Made by the engine on the owner thread (not by pool threads, not by callbacks).
    pub system_calls: u64,
    /// Times another thread had to wake the sleeping loop.
    pub wakeups: u64,
    /// Operations done by the kernel as one io_uring operation.
    pub native_operations: u64,
    /// Operations done by non-blocking calls or by the loop itself.
    pub emulated_operations: u64,
    /// Operations, or parts of one, done on a thread.
    pub pool_operations: u64,
    /// Times the completion queue had overflowed; nothing is lost, the kernel kept them.
    pub overflows: u64,
    /// Times a multishot or a full transfer was started again.
    pub rearms: u64,
    /// Callbacks run.
    pub callbacks: u64,
    /// Callbacks that took longer than upcall_config.slow_callback_ns.
    pub slow_callbacks: u64,
    /// The longest callback in nanoseconds; 0 while callbacks are not timed.
    pub longest_callback_ns: u64,
}

/// What a buffer lent by recvmsg begins with. After it: upcall_msg_name(), upcall_msg_control(), upcall_msg_payload().
/// Since 0.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct upcall_msg {
    /// Bytes of the sender's address; more than there was room for means it was cut.
    pub namelen: u32,
    /// Bytes of control data.
    pub controllen: u32,
    /// Bytes of the message that are in the buffer; MSG_TRUNC in flags says that it was cut. With MSG_TRUNC in the
    /// operation's flags it is the message's whole length.
    pub payloadlen: u32,
    /// As recvmsg(2) sets msg_flags.
    pub flags: u32,
}

/// What upcall_op_readdir() puts into a buffer, one after the other: a struct linux_dirent64 of getdents64(2). The name comes
/// after it: upcall_dirent_next() walks, upcall_dirent_name() names. Since 0.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct upcall_dirent {
    /// Inode number.
    pub ino: u64,
    /// Where the directory's next entry is, for lseek(2); of no other use.
    pub off: i64,
    /// Bytes of this record, the name and its padding included.
    pub reclen: u16,
    /// DT_REG, DT_DIR … of <dirent.h>; DT_UNKNOWN where the file system does not tell.
    pub r#type: u8,
}

/// The version is written once, in Cargo.toml; the header's numbers must agree with it.
const fn number(text: &str) -> u32 {
    let (mut value, mut at) = (0, 0);
    while at < text.len() {
        value = value * 10 + (text.as_bytes()[at] - b'0') as u32;
        at += 1;
    }
    value
}
const _: () = assert!(
    UPCALL_VERSION_MAJOR == number(env!("CARGO_PKG_VERSION_MAJOR"))
        && UPCALL_VERSION_MINOR == number(env!("CARGO_PKG_VERSION_MINOR"))
        && UPCALL_VERSION_PATCH == number(env!("CARGO_PKG_VERSION_PATCH"))
        && UPCALL_VERSION_NUMBER == UPCALL_VERSION_MAJOR * 1000000 + UPCALL_VERSION_MINOR * 1000 + UPCALL_VERSION_PATCH
);

const _: () = assert!(
    UPCALL_EAI_BADFLAGS == UPCALL_EAI_BASE + libc::EAI_BADFLAGS
        && UPCALL_EAI_NONAME == UPCALL_EAI_BASE + libc::EAI_NONAME
        && UPCALL_EAI_AGAIN == UPCALL_EAI_BASE + libc::EAI_AGAIN
        && UPCALL_EAI_FAIL == UPCALL_EAI_BASE + libc::EAI_FAIL
        && UPCALL_EAI_NODATA == UPCALL_EAI_BASE + libc::EAI_NODATA
        && UPCALL_EAI_FAMILY == UPCALL_EAI_BASE + libc::EAI_FAMILY
        && UPCALL_EAI_SOCKTYPE == UPCALL_EAI_BASE + libc::EAI_SOCKTYPE
        && UPCALL_EAI_SERVICE == UPCALL_EAI_BASE + libc::EAI_SERVICE
        && UPCALL_EAI_ADDRFAMILY == UPCALL_EAI_BASE - 9
        && UPCALL_EAI_MEMORY == UPCALL_EAI_BASE + libc::EAI_MEMORY
        && UPCALL_EAI_SYSTEM == UPCALL_EAI_BASE + libc::EAI_SYSTEM
        && UPCALL_EAI_OVERFLOW == UPCALL_EAI_BASE + libc::EAI_OVERFLOW
);
const _: () = assert!(size_of::<upcall_op>() == 128 && align_of::<upcall_op>() == 8);
const _: () = assert!(size_of::<upcall_event>() == 64 && align_of::<upcall_event>() == 8);
const _: () = assert!(size_of::<upcall_msg>() == 16);
const _: () = assert!(size_of::<upcall_dirent>() == 24 && std::mem::offset_of!(upcall_dirent, r#type) == 18);
