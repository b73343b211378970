//! Thin wrappers over libc that answer a value or a negative errno, so that the rest of the library reads without `unsafe`
//! and without `errno`. One function, one system call, no policy, except for the few questions about descriptors below.

pub(crate) mod checkers;
pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod memory;
pub(crate) mod ring;
pub(crate) mod signal;
pub(crate) mod sync;
pub(crate) mod thread;

use libc::{c_char, c_void, iovec, msghdr, sockaddr, socklen_t};
use std::ffi::CStr;
use std::sync::atomic::{AtomicI32, Ordering};

/// preadv2(2): do not wait for data that is not there.
pub(crate) const RWF_NOWAIT: i32 = 8;
/// pwritev2(2), since Linux 6.18: no SIGPIPE.
const RWF_NOSIGNAL: i32 = 0x100;

/// The call's value or -errno.
#[inline(always)]
fn answer(value: i64) -> i64 {
    if value >= 0 { value } else { -i64::from(errno()) }
}

/// errno of this thread.
#[inline]
pub(crate) fn errno() -> i32 {
    // SAFETY: __errno_location returns a valid pointer to this thread's errno.
    unsafe { *libc::__errno_location() }
}

/// posix_fadvise(3) returns its errno instead of setting it.
fn returned(error: i32) -> i32 {
    if error == 0 {
        return 0;
    }
    // SAFETY: __errno_location returns a valid pointer to this thread's errno.
    unsafe { *libc::__errno_location() = error };
    -1
}

/// A system call whose pointers, if any, are the operation's: the program or its side block keeps them valid until the
/// final event (the one safety argument of the crate).
macro_rules! call {
    ($($name:ident($($arg:ident: $type:ty),*) = $body:expr;)*) => {
        $(#[inline]
        pub(crate) fn $name($($arg: $type),*) -> i64 {
            // SAFETY: pointers are the operation's own (see the macro); the kernel answers EFAULT for bad ones.
            answer(i64::from(unsafe { $body }))
        })*
    };
}

call! {
    preadv2(fd: i32, iov: *const iovec, count: usize, offset: i64, flags: i32) = libc::preadv2(fd, iov, count as i32, offset, flags) as i64;
    pwritev2(fd: i32, iov: *const iovec, count: usize, offset: i64, flags: i32) = libc::pwritev2(fd, iov, count as i32, offset, flags) as i64;
    fsync(fd: i32) = libc::fsync(fd);
    sync_file_range(fd: i32, offset: i64, len: i64, flags: u32) = libc::sync_file_range(fd, offset, len, flags);
    fallocate(fd: i32, mode: i32, offset: i64, len: i64) = libc::fallocate(fd, mode, offset, len);
    ftruncate(fd: i32, len: i64) = libc::ftruncate(fd, len);
    fadvise(fd: i32, offset: i64, len: i64, advice: i32) = returned(libc::posix_fadvise(fd, offset, len, advice));
    madvise(addr: *mut c_void, len: usize, advice: i32) = libc::madvise(addr, len, advice);
    fdatasync(fd: i32) = libc::fdatasync(fd);
    openat(dirfd: i32, path: *const c_char, flags: i32, mode: u32) = libc::openat(dirfd, path, flags, mode);
    openat2(dirfd: i32, path: *const c_char, how: *const c_void, size: usize) = libc::syscall(libc::SYS_openat2, dirfd, path, how, size);
    close(fd: i32) = libc::close(fd);
    renameat2(olddirfd: i32, old: *const c_char, newdirfd: i32, new: *const c_char, flags: u32) = libc::syscall(libc::SYS_renameat2, olddirfd, old, newdirfd, new, flags);
    unlinkat(dirfd: i32, path: *const c_char, flags: i32) = libc::unlinkat(dirfd, path, flags);
    mkdirat(dirfd: i32, path: *const c_char, mode: u32) = libc::mkdirat(dirfd, path, mode);
    symlinkat(target: *const c_char, dirfd: i32, path: *const c_char) = libc::symlinkat(target, dirfd, path);
    linkat(olddirfd: i32, old: *const c_char, newdirfd: i32, new: *const c_char, flags: i32) = libc::linkat(olddirfd, old, newdirfd, new, flags);
    getdents64(fd: i32, buf: *mut c_void, len: u32) = libc::syscall(libc::SYS_getdents64, fd, buf, len);
    getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) = libc::getxattr(path, name, value, size) as i64;
    setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: i32) = libc::setxattr(path, name, value, size, flags);
    fgetxattr(fd: i32, name: *const c_char, value: *mut c_void, size: usize) = libc::fgetxattr(fd, name, value, size) as i64;
    fsetxattr(fd: i32, name: *const c_char, value: *const c_void, size: usize, flags: i32) = libc::fsetxattr(fd, name, value, size, flags);
    statx(dirfd: i32, path: *const c_char, flags: i32, mask: u32, out: *mut libc::statx) = libc::statx(dirfd, path, flags, mask, out);
    socket(domain: i32, kind: i32, protocol: i32) = libc::socket(domain, kind, protocol);
    bind(fd: i32, addr: *const sockaddr, len: socklen_t) = libc::bind(fd, addr, len);
    listen(fd: i32, backlog: i32) = libc::listen(fd, backlog);
    accept4(fd: i32, addr: *mut sockaddr, len: *mut socklen_t, flags: i32) = libc::accept4(fd, addr, len, flags);
    connect(fd: i32, addr: *const sockaddr, len: socklen_t) = libc::connect(fd, addr, len);
    shutdown(fd: i32, how: i32) = libc::shutdown(fd, how);
    tee(from: i32, to: i32, len: usize, flags: u32) = libc::tee(from, to, len, flags) as i64;
    getsockopt(fd: i32, level: i32, name: i32, value: *mut c_void, len: *mut socklen_t) = libc::getsockopt(fd, level, name, value, len);
    setsockopt(fd: i32, level: i32, name: i32, value: *const c_void, len: socklen_t) = libc::setsockopt(fd, level, name, value, len);
    pipe2(fds: *mut i32, flags: i32) = libc::pipe2(fds, flags);
    waitid(idtype: u32, id: u32, info: *mut libc::siginfo_t, options: i32) = libc::waitid(idtype, id, info, options);
    pidfd_open(pid: i32) = libc::syscall(libc::SYS_pidfd_open, pid, 0);
    epoll_create() = libc::epoll_create1(libc::EPOLL_CLOEXEC);
    timerfd_create() = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
}

/// [`call!`] for libc's functions that look at data where there is AddressSanitizer: then the system call is made without them.
/// (What is intercepted stays so for others: the thread sanitizer learns from it what happened before what.)
macro_rules! data_call {
    ($($name:ident($($arg:ident: $type:ty),*) = $plain:expr, $bare:expr;)*) => {
        call! { $($name($($arg: $type),*) = if checkers::looks_at_calls() { $bare } else { $plain as i64 };)* }
    };
}

data_call! {
    readv(fd: i32, iov: *const iovec, count: usize) = libc::readv(fd, iov, count as i32), libc::syscall(libc::SYS_readv, fd, iov, count);
    writev_raw(fd: i32, iov: *const iovec, count: usize) = libc::writev(fd, iov, count as i32), libc::syscall(libc::SYS_writev, fd, iov, count);
    pread(fd: i32, buf: *mut c_void, len: usize, offset: i64) = libc::pread(fd, buf, len, offset), libc::syscall(libc::SYS_pread64, fd, buf, len, offset);
    pwrite(fd: i32, buf: *const c_void, len: usize, offset: i64) = libc::pwrite(fd, buf, len, offset), libc::syscall(libc::SYS_pwrite64, fd, buf, len, offset);
    recv(fd: i32, buf: *mut c_void, len: usize, flags: i32) = libc::recv(fd, buf, len, flags), libc::syscall(libc::SYS_recvfrom, fd, buf, len, flags, 0usize, 0usize);
    send(fd: i32, buf: *const c_void, len: usize, flags: i32) = libc::send(fd, buf, len, flags), libc::syscall(libc::SYS_sendto, fd, buf, len, flags, 0usize, 0usize);
    recvmsg(fd: i32, msg: *mut msghdr, flags: i32) = libc::recvmsg(fd, msg, flags), libc::syscall(libc::SYS_recvmsg, fd, msg, flags);
    sendmsg(fd: i32, msg: *const msghdr, flags: i32) = libc::sendmsg(fd, msg, flags), libc::syscall(libc::SYS_sendmsg, fd, msg, flags);
}

/// The address of an offset, or NULL for the descriptor's own position.
fn offset_of(offset: &mut Option<i64>) -> *mut i64 {
    offset.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut)
}

/// splice(2); None: at the descriptor's own position.
pub(crate) fn splice(from: i32, at: Option<i64>, to: i32, at_out: Option<i64>, len: usize, flags: u32) -> i64 {
    let (mut at, mut at_out) = (at, at_out);
    // SAFETY: the offsets live across the call.
    answer(unsafe { libc::splice(from, offset_of(&mut at), to, offset_of(&mut at_out), len, flags) } as i64)
}

/// copy_file_range(2); None: at the descriptor's own position.
pub(crate) fn copy_file_range(from: i32, at: Option<i64>, to: i32, at_out: Option<i64>, len: usize, flags: u32) -> i64 {
    let (mut at, mut at_out) = (at, at_out);
    // SAFETY: the offsets live across the call.
    answer(unsafe { libc::copy_file_range(from, offset_of(&mut at), to, offset_of(&mut at_out), len, flags) } as i64)
}

/// sendfile(2); None: at the file's own position.
pub(crate) fn sendfile(to: i32, from: i32, at: Option<i64>, len: usize) -> i64 {
    let mut at = at;
    // SAFETY: the offset lives across the call.
    answer(unsafe { libc::sendfile(to, from, offset_of(&mut at), len) } as i64)
}

/// epoll_ctl(2) with `data` as the event's 64 bits.
pub(crate) fn epoll_ctl(epoll: i32, op: i32, fd: i32, events: u32, data: u64) -> i64 {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` lives across the call.
    answer(i64::from(unsafe { libc::epoll_ctl(epoll, op, fd, &mut event) }))
}

/// epoll_pwait2(2) with a nanosecond timeout (negative: no limit); epoll_wait(2), rounded up, where the kernel has none
/// (before 5.11).
pub(crate) fn epoll_wait(epoll: i32, events: &mut [libc::epoll_event], timeout_ns: i64) -> i64 {
    static HAS_PWAIT2: AtomicI32 = AtomicI32::new(1);
    let (at, room) = (events.as_mut_ptr(), events.len() as i32);
    if timeout_ns > 0 && HAS_PWAIT2.load(Ordering::Relaxed) == 1 {
        let time = timespec(timeout_ns as u64);
        // SAFETY: `events` has room for `room` events; `time` lives across the call; no signal mask is passed.
        let result = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, epoll, at, room, &raw const time, std::ptr::null::<c_void>(), 0usize)
        };
        match answer(result) {
            error if matches!(-error as i32, libc::ENOSYS | libc::EPERM) => HAS_PWAIT2.store(0, Ordering::Relaxed),
            result => return result,
        }
    }
    let millis = match timeout_ns {
        ..0 => -1,
        0 => 0,
        _ => ((timeout_ns - 1) / 1_000_000 + 1).min(i64::from(i32::MAX)) as i32,
    };
    // SAFETY: `events` has room for `room` events.
    answer(i64::from(unsafe { libc::epoll_wait(epoll, at, room, millis) }))
}

/// A duration or point in time, saturating at what the kernel takes.
pub(crate) fn timespec(ns: u64) -> libc::timespec {
    let ns = ns.min(i64::MAX as u64) as i64;
    libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 }
}

/// futex(2), FUTEX_WAIT_BITSET until a point in time (CLOCK_MONOTONIC). `private` is FUTEX_PRIVATE_FLAG or 0.
pub(crate) fn futex_wait(addr: *const u32, value: u32, mask: u32, private: u32, until: Option<&libc::timespec>) -> i64 {
    let until = until.map_or(std::ptr::null(), std::ptr::from_ref);
    let op = libc::FUTEX_WAIT_BITSET as u32 | private;
    // SAFETY: the operation's own address, which the kernel reads (EFAULT for a bad one); `until` lives across the call.
    answer(unsafe { libc::syscall(libc::SYS_futex, addr, op, value, until, std::ptr::null::<u32>(), mask) })
}

/// futex(2), FUTEX_WAKE_BITSET: how many were woken.
pub(crate) fn futex_wake(addr: *const u32, count: u32, mask: u32, private: u32) -> i64 {
    let op = libc::FUTEX_WAKE_BITSET as u32 | private;
    let none = std::ptr::null::<u32>();
    // SAFETY: the operation's own address, which is a name here.
    answer(unsafe { libc::syscall(libc::SYS_futex, addr, op, count, none, none, mask) })
}

/// CLOCK_MONOTONIC in nanoseconds.
#[inline]
pub(crate) fn now() -> u64 {
    #[cfg(test)]
    if let at @ 1.. = STOPPED.get() {
        return at;
    }
    let mut time = timespec(0);
    // SAFETY: `time` is writable; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
thread_local!(static STOPPED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });

/// For tests: from now on this thread's clock shows this; 0: the time.
#[cfg(test)]
pub(crate) fn stop_clock(at: u64) {
    STOPPED.set(at);
}

/// Arms a timerfd for an absolute time, or disarms it with 0.
pub(crate) fn timerfd_set(fd: i32, at_ns: u64) -> i64 {
    let spec = libc::itimerspec { it_interval: timespec(0), it_value: timespec(at_ns) };
    // SAFETY: `spec` lives across the call.
    answer(i64::from(unsafe { libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &spec, std::ptr::null_mut()) }))
}

#[cfg(loom)]
pub(crate) use sync::modelled::kernel::{eventfd, eventfd_drain, eventfd_write};

/// A new eventfd.
#[cfg(not(loom))]
pub(crate) fn eventfd() -> i64 {
    // SAFETY: no pointers.
    answer(i64::from(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }))
}

/// Adds one to an eventfd. A wake-up must not be lost, and nothing but being full makes this fail for good, so it is tried
/// again. Async-signal-safe.
#[cfg(not(loom))]
#[inline]
pub(crate) fn eventfd_write(fd: i32) {
    let one: u64 = 1;
    for _ in 0..3 {
        // SAFETY: eight readable bytes.
        if unsafe { libc::write(fd, (&raw const one).cast(), 8) } == 8 {
            break;
        }
    }
}

/// Empties an eventfd.
#[cfg(not(loom))]
pub(crate) fn eventfd_drain(fd: i32) {
    let mut count: u64 = 0;
    for _ in 0..3 {
        // SAFETY: eight writable bytes.
        if unsafe { libc::read(fd, (&raw mut count).cast(), 8) } == 8 || errno() == libc::EAGAIN {
            break;
        }
    }
}

// Questions about descriptors.

/// poll(2) without waiting: the events seen, 0 for none. Who is told that there is none waits for an edge that may have been
/// before, so a call that failed is made again.
pub(crate) fn poll_now(fd: i32, events: i16) -> i16 {
    let mut one = libc::pollfd { fd, events, revents: 0 };
    for _ in 0..3 {
        // SAFETY: one writable pollfd.
        match unsafe { libc::poll(&mut one, 1, 0) } {
            1 => return one.revents,
            0 => break,
            _ => {}
        }
    }
    0
}

/// Waits until a descriptor is readable, at most so long (negative: no limit): 1, 0 or -errno.
pub(crate) fn wait_readable(fd: i32, timeout_ns: i64) -> i64 {
    let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let time = timespec(timeout_ns.max(0) as u64);
    let limit = if timeout_ns < 0 { std::ptr::null() } else { &raw const time };
    // SAFETY: one writable pollfd; `time` lives across the call; no signal mask is passed.
    answer(i64::from(unsafe { libc::ppoll(&mut one, 1, limit, std::ptr::null()) }))
}

/// A second, close-on-exec descriptor of the same open file.
pub(crate) fn duplicate(fd: i32) -> i64 {
    // SAFETY: no pointers.
    answer(i64::from(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }))
}

/// Why positional reads of a descriptor cannot work, if that can be known: -EBADF, -EISDIR, -ESPIPE; else 0.
pub(crate) fn read_at_refusal(fd: i32) -> i64 {
    match mode_of(fd) {
        Err(error) => -i64::from(error),
        Ok(libc::S_IFDIR) => -i64::from(libc::EISDIR),
        // A read of no parts asks for nothing but the permission.
        Ok(_) => preadv2(fd, std::ptr::null(), 0, 0, 0).min(0),
    }
}

fn mode_of(fd: i32) -> Result<libc::mode_t, i32> {
    // SAFETY: all-zero bytes are a valid stat; fstat fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        match libc::fstat(fd, &mut stat) {
            0 => Ok(stat.st_mode & libc::S_IFMT),
            _ => Err(errno()),
        }
    }
}

/// What a descriptor is, as far as reading and writing it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file, a directory or a disk: never "ready", has a position.
    File,
    Device,
    Pipe,
    /// Sockets, and what has no kind (eventfd, timerfd …); also what is not open.
    Other,
}

pub(crate) fn kind_of(fd: i32) -> Kind {
    match mode_of(fd) {
        Ok(libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR) => Kind::File,
        Ok(libc::S_IFCHR) => Kind::Device,
        Ok(libc::S_IFIFO) => Kind::Pipe,
        _ => Kind::Other,
    }
}

pub(crate) fn is_file(fd: i32) -> bool {
    kind_of(fd) == Kind::File
}

pub(crate) fn is_pipe(fd: i32) -> bool {
    kind_of(fd) == Kind::Pipe
}

/// Whether positional I/O makes sense: a stream answers ESPIPE.
pub(crate) fn is_stream(fd: i32) -> bool {
    // A read of no parts asks for nothing but the permission (lseek says yes to eventfd and timerfd, which have no position).
    preadv2(fd, std::ptr::null(), 0, 0, 0) == -i64::from(libc::ESPIPE)
}

/// Nothing of the file is at or after `offset`.
pub(crate) fn is_at_end(fd: i32, offset: u64) -> bool {
    // SAFETY: all-zero bytes are a valid stat; fstat fills it.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut stat) == 0 && offset >= stat.st_size as u64
    }
}

/// A TCP socket whose connect has failed is made unconnected, as connect(2) leaves it. Any other socket is left alone.
pub(crate) fn end_failed_connect(fd: i32) {
    const CLOSED: u8 = 7; // TCP_CLOSE, the first byte of struct tcp_info
    let (mut state, mut length) = (0u8, 1 as libc::socklen_t);
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: one writable byte and its length; a readable address.
    unsafe {
        let known = libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut state).cast(), &mut length);
        if known == 0 && state == CLOSED {
            libc::connect(fd, &nobody, size_of::<libc::sockaddr>() as libc::socklen_t);
        }
    }
}

/// A file or disk opened with O_DIRECT: its reader waits for the device, RWF_NOWAIT or not (6.18: 1.1 ms per MiB). On a pipe
/// the flag means something else.
pub(crate) fn is_direct_file(fd: i32) -> bool {
    has_status(fd, libc::O_DIRECT) && is_file(fd)
}

/// The status flags and access mode, or -1.
pub(crate) fn status_of(fd: i32) -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd, libc::F_GETFL) }
}

fn has_status(fd: i32, flag: i32) -> bool {
    let flags = status_of(fd);
    flags >= 0 && flags & flag != 0
}

/// O_NONBLOCK is set.
pub(crate) fn is_nonblocking(fd: i32) -> bool {
    has_status(fd, libc::O_NONBLOCK)
}

/// The descriptor is open, as far as can be told.
pub(crate) fn is_open(fd: i32) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 || errno() != libc::EBADF }
}

fn socket_option(fd: i32, name: i32) -> Result<i32, i32> {
    let mut value: i32 = 0;
    let mut len = size_of::<i32>() as socklen_t;
    // SAFETY: `value` and `len` are writable.
    match unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut len) } {
        0 => Ok(value),
        _ => Err(errno()),
    }
}

/// AF_INET or AF_INET6.
pub(crate) fn is_internet_socket(fd: i32) -> bool {
    socket_option(fd, libc::SO_DOMAIN).is_ok_and(|domain| matches!(domain, libc::AF_INET | libc::AF_INET6))
}

/// AF_UNIX.
pub(crate) fn is_unix_socket(fd: i32) -> bool {
    socket_option(fd, libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
}

/// A TCP connection, with no protocol between it and the program (TCP_ULP: TLS in the kernel has records).
pub(crate) fn is_plain_tcp(fd: i32) -> bool {
    let mut name = [0u8; 16];
    let mut len = name.len() as socklen_t;
    // SAFETY: `name` and `len` are writable.
    let known = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_ULP, name.as_mut_ptr().cast(), &mut len) };
    socket_option(fd, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP) && (known != 0 || len == 0)
}

/// SOCK_STREAM, SOCK_DGRAM …, or the errno (ENOTSOCK).
pub(crate) fn socket_type(fd: i32) -> Result<i32, i32> {
    socket_option(fd, libc::SO_TYPE)
}

/// Messages are delivered one by one: a short one is whole, and an empty one is a message.
pub(crate) fn is_message_socket(fd: i32) -> bool {
    socket_type(fd).is_ok_and(|kind| kind != libc::SOCK_STREAM)
}

/// A socket of messages that nothing more comes to: a receive that may wait answers 0, one that may not says EAGAIN for ever.
pub(crate) fn is_shut_message_socket(fd: i32) -> bool {
    is_message_socket(fd) && poll_now(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0
}

/// An empty message can be told from the end of the stream.
pub(crate) fn has_empty_messages(fd: i32) -> bool {
    socket_type(fd).is_ok_and(|kind| matches!(kind, libc::SOCK_DGRAM | libc::SOCK_RAW))
}

/// The errno of an operation on a descriptor that is not open, or is no socket where there must be one.
pub(crate) fn wrong_descriptor(fd: i32, socket: bool) -> Option<i32> {
    match socket {
        true => socket_type(fd).err(),
        false => (!is_open(fd)).then_some(libc::EBADF),
    }
}

/// Whether accept may wait: only at a socket that connections arrive at, so that what cannot be told may be one.
pub(crate) fn accept_may_wait(fd: i32) -> bool {
    !matches!(socket_option(fd, libc::SO_ACCEPTCONN), Ok(0) | Err(libc::ENOTSOCK | libc::EBADF))
}

/// A socket that connections arrive at.
pub(crate) fn is_listening(fd: i32) -> bool {
    socket_option(fd, libc::SO_ACCEPTCONN) == Ok(1)
}

/// Connecting a datagram socket only notes the address; what is no socket is refused.
pub(crate) fn connect_may_wait(fd: i32) -> bool {
    !matches!(socket_type(fd), Ok(libc::SOCK_DGRAM | libc::SOCK_RAW) | Err(libc::ENOTSOCK | libc::EBADF))
}

/// A file's close may flush it to a server, a lingering socket's waits for its peer.
pub(crate) fn close_may_wait(fd: i32) -> bool {
    match mode_of(fd) {
        Ok(libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK | libc::S_IFCHR) => true,
        Ok(libc::S_IFSOCK) => {
            let mut linger = libc::linger { l_onoff: 0, l_linger: 0 };
            let mut len = size_of::<libc::linger>() as socklen_t;
            // SAFETY: `linger` and `len` are writable.
            unsafe {
                libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw mut linger).cast(), &mut len);
            }
            linger.l_onoff != 0
        }
        _ => false,
    }
}

/// The family in a copied socket address.
pub(crate) fn address_family(addr: *const sockaddr, len: u64) -> i32 {
    if len < size_of::<libc::sa_family_t>() as u64 {
        return libc::AF_UNSPEC;
    }
    // SAFETY: the side block's copy has at least the two bytes of the family.
    i32::from(unsafe { (*addr).sa_family })
}

/// A look at what a path names before opening it. A name that changes in between is opened as what it was. Where there is no
/// telling, it may be a FIFO.
pub(crate) fn names_fifo_or_device(dirfd: i32, path: *const c_char, no_follow: bool) -> bool {
    let flags = if no_follow { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    // SAFETY: all-zero bytes are a valid stat; `path` is the side block's NUL-terminated copy.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        match libc::fstatat(dirfd, path, &mut stat, flags) {
            0 => matches!(stat.st_mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFCHR),
            _ => says_nothing_of_the_name(errno()),
        }
    }
}

/// It is not the name that was refused.
fn says_nothing_of_the_name(error: i32) -> bool {
    use libc::{EACCES, EBADF, EFAULT, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EOVERFLOW};
    !matches!(error, EACCES | EBADF | EFAULT | ELOOP | ENAMETOOLONG | ENOENT | ENOTDIR | EOVERFLOW)
}

// Writing without SIGPIPE.

/// 1: the kernel knows RWF_NOSIGNAL; 0: it does not; -1: not asked yet.
static NOSIGNAL: AtomicI32 = AtomicI32::new(-1);

/// RWF_NOSIGNAL where the kernel knows it (6.18), else 0 and the caller keeps SIGPIPE away by the signal mask.
pub(crate) fn rwf_nosignal() -> i32 {
    match NOSIGNAL.load(Ordering::Relaxed) {
        1 => RWF_NOSIGNAL,
        0 => 0,
        _ => {
            let known = knows_nosignal();
            NOSIGNAL.store(known.into(), Ordering::Relaxed);
            if known { RWF_NOSIGNAL } else { 0 }
        }
    }
}

fn knows_nosignal() -> bool {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return false;
    }
    let byte = 0u8;
    let part = iovec { iov_base: (&raw const byte).cast_mut().cast(), iov_len: 1 };
    let known = pwritev2(fds[1], &part, 1, -1, RWF_NOSIGNAL) == 1;
    close(fds[0]);
    close(fds[1]);
    known
}

/// pwritev2(RWF_NOWAIT) at the current position, without SIGPIPE. -EOPNOTSUPP for a file: its writer might get SIGXFSZ, so
/// a pool thread does it.
pub(crate) fn write_nowait(fd: i32, iov: *const iovec, count: usize) -> i64 {
    if is_file(fd) {
        return -i64::from(libc::EOPNOTSUPP);
    }
    match rwf_nosignal() {
        0 => thread::without_write_signals(|| pwritev2(fd, iov, count, -1, RWF_NOWAIT)),
        flag => pwritev2(fd, iov, count, -1, RWF_NOWAIT | flag),
    }
}

/// The bytes the parts name.
pub(crate) fn total_of(iov: *const iovec, count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    // SAFETY: the operation's own vector.
    unsafe { std::slice::from_raw_parts(iov, count) }.iter().map(|part| part.iov_len as u64).sum()
}

/// The parts have no bytes.
pub(crate) fn is_empty(iov: *const iovec, count: usize) -> bool {
    total_of(iov, count) == 0
}

/// A write of no bytes: an empty message on a socket, nothing elsewhere. The vector calls return before they reach a socket,
/// and before an eventfd, whose write(2) of no bytes is EINVAL where the ring says 0.
pub(crate) fn write_nothing(fd: i32) -> i64 {
    match send(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
        error if error == -i64::from(libc::ENOTSOCK) => {
            // SAFETY: no bytes are read.
            answer(unsafe { libc::writev(fd, std::ptr::null(), 0) } as i64)
        }
        result => result,
    }
}

/// writev(2) without SIGPIPE. Library threads block the signal anyway; the loop's thread calls it for O_NONBLOCK only.
pub(crate) fn writev(fd: i32, iov: *const iovec, count: usize) -> i64 {
    thread::without_write_signals(|| writev_raw(fd, iov, count))
}

/// A write to a file may raise SIGXFSZ.
pub(crate) fn limits_file_size() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) != 0 || limit.rlim_cur != libc::RLIM_INFINITY }
}

/// Environment and privilege.
pub(crate) fn runs_with_raised_privilege() -> bool {
    // SAFETY: no pointers.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The value of an environment variable, copied.
pub(crate) fn environment(name: &CStr) -> Option<Vec<u8>> {
    // SAFETY: `name` is NUL-terminated; the value is copied at once, as getenv(3) asks for.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes().to_vec())
    }
}
