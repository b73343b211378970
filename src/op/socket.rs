//! Sockets. The non-blocking forms use MSG_DONTWAIT, so O_NONBLOCK does not matter and is not touched; accept and connect
//! have no such flag, so on a blocking socket a thread does them once the socket is ready.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use libc::{msghdr, sockaddr, socklen_t};
use std::ffi::c_void;

/// Kind of upcall_op_socket(). Since 0.1.
pub const UPCALL_OP_SOCKET: upcall_kind = 40;
/// Kind of upcall_op_bind(). Since 0.1.
pub const UPCALL_OP_BIND: upcall_kind = 41;
/// Kind of upcall_op_listen(). Since 0.1.
pub const UPCALL_OP_LISTEN: upcall_kind = 42;
/// Kind of upcall_op_accept(). Since 0.1.
pub const UPCALL_OP_ACCEPT: upcall_kind = 43;
/// Kind of upcall_op_connect(). Since 0.1.
pub const UPCALL_OP_CONNECT: upcall_kind = 44;
/// Kind of upcall_op_recv(). Since 0.1.
pub const UPCALL_OP_RECV: upcall_kind = 45;
/// Kind of upcall_op_send(). Since 0.1.
pub const UPCALL_OP_SEND: upcall_kind = 46;
/// Kind of upcall_op_recvfrom(). Since 0.1.
pub const UPCALL_OP_RECVFROM: upcall_kind = 47;
/// Kind of upcall_op_sendto(). Since 0.1.
pub const UPCALL_OP_SENDTO: upcall_kind = 48;
/// Kind of upcall_op_recvmsg(). Since 0.1.
pub const UPCALL_OP_RECVMSG: upcall_kind = 49;
/// Kind of upcall_op_sendmsg(). Since 0.1.
pub const UPCALL_OP_SENDMSG: upcall_kind = 50;
/// Kind of upcall_op_shutdown(). Since 0.1.
pub const UPCALL_OP_SHUTDOWN: upcall_kind = 51;
/// Kind of upcall_op_getsockopt(). Since 0.1.
pub const UPCALL_OP_GETSOCKOPT: upcall_kind = 52;
/// Kind of upcall_op_setsockopt(). Since 0.1.
pub const UPCALL_OP_SETSOCKOPT: upcall_kind = 53;
/// Kind of upcall_op_pipe(). Since 0.1.
pub const UPCALL_OP_PIPE: upcall_kind = 54;

/// @brief socket(2). Result: a descriptor, close-on-exec; SOCK_NONBLOCK in `type` makes it non-blocking. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_socket(domain: i32, r#type: i32, protocol: i32) -> upcall_op {
    upcall_op { len: u64::from(domain as u32), arg: r#type as u32, arg2: protocol as u32, ..blank(UPCALL_OP_SOCKET) }
}

/// @brief bind(2). Result 0. `addr`, `len` bytes, is copied. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_bind(fd: i32, addr: *const sockaddr, len: socklen_t) -> upcall_op {
    upcall_op { fd, addr: addr as u64, len: u64::from(len), ..blank(UPCALL_OP_BIND) }
}

/// @brief listen(2): at most `backlog` connections wait to be accepted. Result 0. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_listen(fd: i32, backlog: i32) -> upcall_op {
    upcall_op { fd, arg: backlog as u32, ..blank(UPCALL_OP_LISTEN) }
}

/// @brief accept4(2). Result: a descriptor, close-on-exec; `flags`: SOCK_NONBLOCK or 0.
///
/// `addr` and `addrlen` may be NULL; they are borrowed until the final event: `*addrlen` is the room at `addr`, then
/// the address's length. With UPCALL_MULTISHOT each connection is an event, `addr` and `addrlen` must be NULL, and a
/// shortage (EMFILE, ENFILE, ENOBUFS, ENOMEM) is reported once with UPCALL_MORE, after which accepting goes on with
/// back-off. On epoll a listener opened with SOCK_NONBLOCK is faster: a blocking one costs a thread switch per
/// connection. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_accept(fd: i32, addr: *mut sockaddr, addrlen: *mut socklen_t, flags: i32) -> upcall_op {
    upcall_op { fd, addr: addr as u64, addr2: addrlen as u64, arg: flags as u32, ..blank(UPCALL_OP_ACCEPT) }
}

/// @brief connect(2), as a careful program does it: start, wait for writability, read SO_ERROR. Result: 0 or that error.
///
/// `addr`, `len` bytes, is copied. After a cancelled or timed-out connect the socket's state is undefined: close it.
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_connect(fd: i32, addr: *const sockaddr, len: socklen_t) -> upcall_op {
    upcall_op { fd, addr: addr as u64, len: u64::from(len), ..blank(UPCALL_OP_CONNECT) }
}

/// @brief recv(2): up to `len` bytes, or one datagram, into `buf`.
///
/// `buf` is borrowed until the final event; NULL with upcall_op.buffers. `flags`: MSG_PEEK, MSG_TRUNC, MSG_OOB …, not
/// MSG_DONTWAIT (an operation waits) nor MSG_WAITALL (use UPCALL_FULL). Result: bytes received, 0 at end of stream. With
/// UPCALL_MULTISHOT and buffers: an event per piece until the end of the stream. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_recv(fd: i32, buf: *mut c_void, len: usize, flags: i32) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, arg: flags as u32, ..blank(UPCALL_OP_RECV) }
}

/// @brief send(2): up to `len` bytes from `buf`. Never raises SIGPIPE.
///
/// `buf` is borrowed until the final event. `flags`: MSG_MORE, MSG_OOB …, not MSG_DONTWAIT. Result: bytes sent;
/// UPCALL_FULL sends all of them. With UPCALL_ZEROCOPY they are not copied, and two events tell. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_send(fd: i32, buf: *const c_void, len: usize, flags: i32) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, arg: flags as u32, ..blank(UPCALL_OP_SEND) }
}

/// @brief recvfrom(2): as upcall_op_recv(), with the sender's address.
///
/// `buf`, `addr` and `addrlen` are borrowed until the final event. `addr` may be NULL, then `addrlen` does not matter.
/// `*addrlen` is the room at `addr`, read by upcall_submit(), and then the address's real length, which may be more than
/// there was room for; 0 where there is none (a connected TCP socket). `flags`, result and UPCALL_FULL as for
/// upcall_op_recv(); the address is that of the first part. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_recvfrom(
    fd: i32,
    buf: *mut c_void,
    len: usize,
    flags: i32,
    addr: *mut sockaddr,
    addrlen: *mut socklen_t,
) -> upcall_op {
    upcall_op {
        fd,
        addr: buf as u64,
        addr2: addr as u64,
        len: len as u64,
        offset: addrlen as u64,
        arg: flags as u32,
        ..blank(UPCALL_OP_RECVFROM)
    }
}

/// @brief sendto(2): as upcall_op_send(), to an address.
///
/// `addr` is copied; NULL, with an `addrlen` of 0, on a connected socket. `buf` is borrowed until the final event. Result:
/// bytes sent; UPCALL_FULL sends all of them. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_sendto(
    fd: i32,
    buf: *const c_void,
    len: usize,
    flags: i32,
    addr: *const sockaddr,
    addrlen: socklen_t,
) -> upcall_op {
    upcall_op {
        fd,
        addr: buf as u64,
        addr2: addr as u64,
        len: len as u64,
        offset: u64::from(addrlen),
        arg: flags as u32,
        ..blank(UPCALL_OP_SENDTO)
    }
}

/// @brief recvmsg(2): a message with its sender's address and control data.
///
/// `msg` and all it names are borrowed until the final event, which sets msg_namelen, msg_controllen and msg_flags.
/// Result: bytes received. With upcall_op.buffers only msg_namelen and msg_controllen are read, as the room to keep in each
/// buffer, which then begins with an upcall_msg; the result is the payload's length. Descriptors received in control data
/// are close-on-exec. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_recvmsg(fd: i32, msg: *mut msghdr, flags: i32) -> upcall_op {
    upcall_op { fd, addr: msg as u64, arg: flags as u32, ..blank(UPCALL_OP_RECVMSG) }
}

/// @brief sendmsg(2): a message from parts, with an address and control data.
///
/// `msg`, its address, vector and control data are copied; the data its vector names is borrowed until the final event.
/// `flags`, result, UPCALL_FULL and UPCALL_ZEROCOPY as for upcall_op_send(). Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_sendmsg(fd: i32, msg: *const msghdr, flags: i32) -> upcall_op {
    upcall_op { fd, addr: msg as u64, arg: flags as u32, ..blank(UPCALL_OP_SENDMSG) }
}

/// @brief shutdown(2). Result 0. `how`: SHUT_RD, SHUT_WR, SHUT_RDWR. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_shutdown(fd: i32, how: i32) -> upcall_op {
    upcall_op { fd, arg: how as u32, ..blank(UPCALL_OP_SHUTDOWN) }
}

/// @brief getsockopt(2). Result 0. `val` and `len` are borrowed until the final event; `*len` is the room at `val`,
/// then the value's length. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_getsockopt(
    fd: i32,
    level: i32,
    name: i32,
    val: *mut c_void,
    len: *mut socklen_t,
) -> upcall_op {
    upcall_op {
        fd,
        addr: val as u64,
        addr2: len as u64,
        arg: level as u32,
        arg2: name as u32,
        ..blank(UPCALL_OP_GETSOCKOPT)
    }
}

/// @brief setsockopt(2). Result 0. `val`, `len` bytes, is copied; more than 64 KiB are -EINVAL. What a value itself
/// points to (a socket filter's instructions) is borrowed until the final event. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_setsockopt(
    fd: i32,
    level: i32,
    name: i32,
    val: *const c_void,
    len: socklen_t,
) -> upcall_op {
    upcall_op {
        fd,
        addr: val as u64,
        len: u64::from(len),
        arg: level as u32,
        arg2: name as u32,
        ..blank(UPCALL_OP_SETSOCKOPT)
    }
}

/// @brief pipe2(2). Result 0, and `fds[0]` is what `fds[1]` writes to, both close-on-exec.
///
/// `fds` has room for two, is borrowed until the final event, and written on success only. `flags`: O_NONBLOCK, O_DIRECT,
/// O_NOTIFICATION_PIPE or 0. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_pipe(fds: *mut i32, flags: i32) -> upcall_op {
    upcall_op { addr: fds as u64, arg: flags as u32, ..blank(UPCALL_OP_PIPE) }
}

/// @brief The sender's address in a buffer lent by recvmsg: `msg` is upcall_event.buffer, `room` the header the operation
/// was submitted with. It is upcall_msg.namelen bytes, at most room->msg_namelen. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_msg_name(msg: *const upcall_msg, room: *const msghdr) -> *const c_void {
    let _ = room;
    msg.wrapping_add(1).cast()
}

/// @brief The control data in a buffer lent by recvmsg, upcall_msg.controllen bytes; arguments as for upcall_msg_name().
/// NULL for a NULL `room`. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_msg_control(msg: *const upcall_msg, room: *const msghdr) -> *const c_void {
    if room.is_null() {
        return std::ptr::null();
    }
    upcall_msg_name(msg, room).wrapping_byte_add(side::message(room as u64).msg_namelen as usize)
}

/// @brief The message in a buffer lent by recvmsg; the event's result is its length in the buffer. Arguments as for
/// upcall_msg_name(). NULL for a NULL `room`. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_msg_payload(msg: *const upcall_msg, room: *const msghdr) -> *const c_void {
    if room.is_null() {
        return std::ptr::null();
    }
    upcall_msg_control(msg, room).wrapping_byte_add(side::message(room as u64).msg_controllen as usize)
}

const NOSIGNAL: u32 = libc::MSG_NOSIGNAL as u32;
/// What a native send adds. A unix datagram whose receiver's queue is full is copied before the kernel finds that out, and a
/// send of the ring that waits and tries again then sends an empty one: result 0, the data lost (6.18). So it does not wait.
const OUTWARD: u32 = NOSIGNAL | libc::MSG_DONTWAIT as u32;
const CLOEXEC: u32 = libc::MSG_CMSG_CLOEXEC as u32;

fn check_accept(op: &upcall_op) -> Checked {
    if op.arg & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u32 != 0 {
        return invalid(format!("flags is {:#x}, only SOCK_NONBLOCK and SOCK_CLOEXEC are known", op.arg));
    }
    if op.addr != 0 && op.addr2 == 0 {
        return invalid("addrlen is NULL but addr is not");
    }
    if op.flags & UPCALL_MULTISHOT != 0 && (op.addr != 0 || op.addr2 != 0) {
        return invalid("addr and addrlen must be NULL with UPCALL_MULTISHOT: every connection would write to them");
    }
    Ok(())
}

fn check_transfer(op: &upcall_op) -> Checked {
    check_message_flags(op)?;
    check_data(op)
}

fn check_recvfrom(op: &upcall_op) -> Checked {
    check_transfer(op)?;
    if op.addr2 == 0 {
        return Ok(());
    }
    if op.offset == 0 {
        return invalid("addrlen is NULL but addr is not");
    }
    check_length(op.offset, "*addrlen")
}

fn check_sendto(op: &upcall_op) -> Checked {
    check_transfer(op)?;
    if op.offset > size_of::<libc::sockaddr_storage>() as u64 {
        return invalid(format!("addrlen is {}, more than sizeof(struct sockaddr_storage)", op.offset));
    }
    // sendmsg(2) takes an address of no bytes for none, sendto(2) mostly for a bad one.
    match (op.addr2, op.offset) {
        (0, 1..) => invalid(format!("addr is NULL but addrlen is {}", op.offset)),
        (1.., 0) => invalid("addrlen is 0 but addr is not NULL"),
        _ => Ok(()),
    }
}

/// A length that goes in and comes out is an int in the kernel.
fn check_length(address: u64, what: &'static str) -> Checked {
    match side::length(address) {
        len if len > i32::MAX as u32 => invalid(format!("{what} is {len}, more than INT_MAX")),
        _ => Ok(()),
    }
}

fn check_getsockopt(op: &upcall_op) -> Checked {
    if op.addr2 == 0 {
        return invalid("len is NULL");
    }
    check_length(op.addr2, "*len")?;
    match side::length(op.addr2) {
        len if len > 0 && op.addr == 0 => invalid(format!("val is NULL but *len is {len}")),
        _ => Ok(()),
    }
}

/// The longest options are tables of some kilobytes.
const MAX_OPTION: u64 = 64 << 10;

fn check_setsockopt(op: &upcall_op) -> Checked {
    if op.len > MAX_OPTION {
        return invalid(format!("len is {}, more than 64 KiB", op.len));
    }
    if op.addr == 0 && op.len > 0 {
        return invalid(format!("val is NULL but len is {}", op.len));
    }
    Ok(())
}

/// O_NOTIFICATION_PIPE has O_EXCL's bit (pipe2(2)).
const PIPE_FLAGS: i32 = libc::O_NONBLOCK | libc::O_DIRECT | libc::O_EXCL | libc::O_CLOEXEC;

fn check_pipe(op: &upcall_op) -> Checked {
    if op.addr == 0 {
        return invalid("fds is NULL");
    }
    if op.arg & !PIPE_FLAGS as u32 != 0 {
        return invalid(format!(
            "flags is {:#x}, only O_NONBLOCK, O_DIRECT, O_NOTIFICATION_PIPE and O_CLOEXEC are known",
            op.arg
        ));
    }
    Ok(())
}

fn pipe_flags(args: &Args) -> i32 {
    args.arg as i32 | libc::O_CLOEXEC
}

/// The side block's word is where the kernel puts the two descriptors.
fn finish_pipe(args: &Args, side: &mut Side, result: i64) {
    if result == 0 {
        // SAFETY: the program's array is borrowed until the final event, which has not been delivered (checked: not NULL).
        unsafe { args.ptr2::<u64>().write_unaligned(side.made) };
    }
}

/// Closes a pipe that nobody will be told of.
pub(super) fn close_pipe(made: u64) {
    let [a, b, c, d, e, f, g, h] = made.to_ne_bytes();
    sys::close(i32::from_ne_bytes([a, b, c, d]));
    sys::close(i32::from_ne_bytes([e, f, g, h]));
}

/// The kernel was not asked: it writes no such msg_flags.
const UNASKED: i32 = -1;

fn finish_recvfrom(args: &Args, side: &mut Side, result: i64) {
    // An error after a part: the address that came with that part is the program's all the same.
    if (result < 0 && side.kept.is_none()) || args.addr2 == 0 {
        return;
    }
    let now = if side.msg.msg_flags == UNASKED { 0 } else { side.msg.msg_namelen };
    let length = side.kept.map_or(now, |(name, _, _)| name);
    // SAFETY: the program's length is borrowed until the final event, which has not been delivered (checked: not NULL).
    unsafe { (args.offset as usize as *mut socklen_t).write_unaligned(length) };
}

fn check_message(op: &upcall_op) -> Checked {
    check_message_flags(op)?;
    if op.addr == 0 {
        return invalid("msg is NULL");
    }
    let msg = side::message(op.addr);
    if msg.msg_name.is_null() && msg.msg_namelen > 0 && op.buffers.is_null() {
        return invalid(format!("msg_name is NULL but msg_namelen is {}", msg.msg_namelen));
    }
    if msg.msg_namelen as usize > size_of::<libc::sockaddr_storage>() {
        return invalid(format!("msg_namelen is {}, more than sizeof(struct sockaddr_storage)", msg.msg_namelen));
    }
    if msg.msg_control.is_null() && msg.msg_controllen as u64 > 0 && op.buffers.is_null() {
        return invalid(format!("msg_control is NULL but msg_controllen is {}", msg.msg_controllen));
    }
    if msg.msg_controllen as u64 > MAX_CONTROL {
        return invalid(format!("msg_controllen is {}, more than 1 MiB", msg.msg_controllen));
    }
    if op.buffers.is_null() {
        return check_vector(msg.msg_iov as u64, msg.msg_iovlen as u64);
    }
    Ok(())
}

/// No kernel takes more control data (net.core.optmem_max is 128 KiB by default).
const MAX_CONTROL: u64 = 1 << 20;

fn accept_flags(args: &Args) -> i32 {
    args.arg as i32 | libc::SOCK_CLOEXEC
}

fn call_accept(args: &Args) -> i64 {
    sys::accept4(args.fd(), args.ptr(), args.ptr2(), accept_flags(args))
}

/// Ends of accept that concern one connection which is gone again: accept(2) says to try again.
fn is_lost_connection(result: i64) -> bool {
    matches!(-result as i32, libc::ECONNABORTED | libc::EPROTO)
}

fn attempt_accept(args: &mut Args) -> Decision {
    if !sys::is_nonblocking(args.fd()) {
        // Only a listening socket may wait; anything else answers its error at once.
        if !sys::is_listening(args.fd()) {
            return Decision::Done(call_accept(args));
        }
        return match sys::poll_now(args.fd(), libc::POLLIN) {
            0 => Decision::Wait(libc::POLLIN as u32),
            _ => Decision::Own,
        };
    }
    loop {
        let result = call_accept(args);
        if is_idle_shortage(args, result) {
            return Decision::Wait(libc::POLLIN as u32);
        }
        if !is_lost_connection(result) {
            return unless_again(result, libc::POLLIN);
        }
    }
}

/// accept4 takes a descriptor number before it looks for a connection, so it says EMFILE with nothing to accept.
fn is_idle_shortage(args: &Args, result: i64) -> bool {
    matches!(-result as i32, libc::EMFILE | libc::ENFILE)
        && sys::is_listening(args.fd())
        && sys::poll_now(args.fd(), libc::POLLIN) == 0
}

fn amend_accept(args: &mut Args, result: i64) -> Option<Decision> {
    if is_idle_shortage(args, result) {
        return Some(Decision::Wait(libc::POLLIN as u32));
    }
    is_lost_connection(result).then_some(Decision::Later)
}

/// `stage` of a connect: it was started, and the socket will tell.
const CONNECTING: u32 = 1;

fn attempt_connect(args: &mut Args) -> Decision {
    let fd = args.fd();
    if args.stage == CONNECTING {
        if sys::poll_now(fd, libc::POLLOUT) == 0 {
            return Decision::Wait(libc::POLLOUT as u32);
        }
        // Asking connect(2) again tells the outcome as SO_ERROR would, and also ends the socket's connecting state, so that
        // a later connect answers EISCONN, or may try again.
        return match sys::connect(fd, args.ptr(), args.len as socklen_t) {
            again if matches!(-again as i32, libc::EALREADY | libc::EINPROGRESS) => {
                Decision::Wait(libc::POLLOUT as u32)
            }
            known if known == -i64::from(libc::EISCONN) => Decision::Done(0),
            result => Decision::Done(result),
        };
    }
    if !sys::is_nonblocking(fd) && sys::connect_may_wait(fd) {
        return Decision::Own;
    }
    after_connect(args, sys::connect(fd, args.ptr(), args.len as socklen_t))
}

fn after_connect(args: &mut Args, result: i64) -> Decision {
    match -result as i32 {
        libc::EINPROGRESS => {
            args.stage = CONNECTING;
            Decision::Wait(libc::POLLOUT as u32)
        }
        // A unix listener's backlog is full: the socket is not connecting, and nothing tells when there is room.
        libc::EAGAIN => Decision::Later,
        _ => Decision::Done(result),
    }
}

fn amend_connect(args: &mut Args, result: i64) -> Option<Decision> {
    match -result as i32 {
        libc::EINPROGRESS | libc::EAGAIN => Some(after_connect(args, result)),
        // The ring leaves the socket in its connecting state (6.18), in which listen(2) is EINVAL.
        libc::ECONNREFUSED | libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH => {
            sys::end_failed_connect(args.fd());
            None
        }
        _ => None,
    }
}

fn block_connect(args: &Args) -> i64 {
    sys::connect(args.fd(), args.ptr(), args.len as socklen_t)
}

fn attempt_recv(args: &mut Args) -> Decision {
    let flags = args.arg as i32 | libc::MSG_DONTWAIT;
    unless_again(sys::recv(args.fd(), args.ptr(), args.call_len() as usize, flags), libc::POLLIN)
}

fn lent_recv(args: &Args, buffer: *mut u8, size: u32) -> Decision {
    let size = if args.len == 0 { size } else { size.min(args.call_len()) };
    let flags = args.arg as i32 | libc::MSG_DONTWAIT;
    unless_again(sys::recv(args.fd(), buffer.cast(), size as usize, flags), libc::POLLIN)
}

fn attempt_send(args: &mut Args) -> Decision {
    let flags = args.arg as i32 | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    unless_again(sys::send(args.fd(), args.ptr(), args.call_len() as usize, flags), libc::POLLOUT)
}

fn amend_send(_: &mut Args, result: i64) -> Option<Decision> {
    (result == -i64::from(libc::EAGAIN)).then_some(Decision::Wait(libc::POLLOUT as u32))
}

fn attempt_recvmsg(args: &mut Args) -> Decision {
    let flags = (args.arg | CLOEXEC) as i32 | libc::MSG_DONTWAIT;
    unless_again(sys::recvmsg(args.fd(), args.ptr(), flags), libc::POLLIN)
}

fn attempt_sendmsg(args: &mut Args) -> Decision {
    let flags = (args.arg | NOSIGNAL) as i32 | libc::MSG_DONTWAIT;
    let result = sys::sendmsg(args.fd(), args.ptr(), flags);
    // A unix receiver named by address has a full queue: the sender's own socket is writable all the time, and nothing
    // tells when there is room.
    if result == -i64::from(libc::EAGAIN)
        && !side::message(args.addr).msg_name.is_null()
        && sys::poll_now(args.fd(), libc::POLLOUT) != 0
    {
        return Decision::Later;
    }
    unless_again(result, libc::POLLOUT)
}

/// The room a lent buffer keeps before the payload: header, name, control data.
fn room(args: &Args) -> (usize, usize) {
    let msg = side::message(args.addr);
    (msg.msg_namelen as usize, msg.msg_controllen as usize)
}

/// Writes what io_uring's multishot recvmsg writes (struct io_uring_recvmsg_out).
fn lent_recvmsg(args: &Args, buffer: *mut u8, size: u32) -> Decision {
    let (name, control) = room(args);
    let before = size_of::<upcall_msg>() + name + control;
    if before > size as usize {
        return Decision::Done(-i64::from(libc::EFAULT));
    }
    let at = |offset: usize| buffer.wrapping_add(offset).cast::<c_void>();
    let mut part = libc::iovec { iov_base: at(before), iov_len: size as usize - before };
    // SAFETY: msghdr is a plain C structure for which all-zero bytes are a valid value.
    let mut msg: msghdr = unsafe { std::mem::zeroed() };
    // Without room for a name the kernel is not asked for one: it would tell the length of one that was cut.
    msg.msg_name = if name == 0 { std::ptr::null_mut() } else { at(size_of::<upcall_msg>()) };
    msg.msg_namelen = name as socklen_t;
    msg.msg_control = at(size_of::<upcall_msg>() + name);
    msg.msg_controllen = control as _;
    msg.msg_iov = &mut part;
    msg.msg_iovlen = 1;
    let flags = (args.arg | CLOEXEC) as i32 | libc::MSG_DONTWAIT;
    // With MSG_TRUNC in the flags the answer is the message's length, also of what was cut.
    let result = sys::recvmsg(args.fd(), &mut msg, flags);
    if result >= 0 {
        let out = upcall_msg {
            namelen: msg.msg_namelen,
            controllen: msg.msg_controllen as u32,
            payloadlen: result as u32,
            flags: msg.msg_flags as u32 & !CLOEXEC,
        };
        sys::checkers::show(buffer, size_of::<upcall_msg>());
        // SAFETY: the buffer is the pool's and has room for the header (checked above); it may be unaligned.
        unsafe { buffer.cast::<upcall_msg>().write_unaligned(out) };
    }
    unless_again(result.min(part.iov_len as i64), libc::POLLIN)
}

/// Gives the program its header's results. Only the first part of a full transfer has a name and control data.
fn finish_recvmsg(args: &Args, side: &mut Side, result: i64) {
    // An error after a part: what came with that part is the program's all the same.
    if (result < 0 && side.kept.is_none()) || args.addr2 == 0 {
        return;
    }
    let theirs = args.addr2 as usize as *mut msghdr;
    // SAFETY: the program's header is borrowed until the final event, which has not been delivered.
    unsafe {
        let now = (side.msg.msg_namelen, side.msg.msg_controllen, side.msg.msg_flags);
        let (name, control, flags) = side.kept.unwrap_or(now);
        (*theirs).msg_namelen = name;
        (*theirs).msg_controllen = control;
        (*theirs).msg_flags = flags & !libc::MSG_CMSG_CLOEXEC;
    }
}

fn passed_recvmsg(args: &Args, side: &Side, buffer: *const u8, tell: &mut dyn FnMut(i32)) {
    if buffer.is_null() {
        if side.pool.is_none() {
            // As `finish_recvmsg` has left it.
            let theirs = side::message(args.addr2);
            descriptors_in(side::bytes(theirs.msg_control as u64, theirs.msg_controllen as u64), tell);
        }
        return;
    }
    // SAFETY: a lent buffer begins with the header, which may be unaligned.
    let header = unsafe { buffer.cast::<upcall_msg>().read_unaligned() };
    let control = buffer.wrapping_add(size_of::<upcall_msg>() + side.msg.msg_namelen as usize);
    let len = u64::from(header.controllen).min(side.msg.msg_controllen as u64);
    descriptors_in(side::bytes(control as u64, len), tell);
}

/// The descriptors in control data: SCM_RIGHTS of cmsg(3), each part behind a header and aligned as that.
fn descriptors_in(control: &[u8], tell: &mut dyn FnMut(i32)) {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut rest = control;
    while rest.len() >= HEADER {
        // SAFETY: as many bytes; a plain C structure, which may be unaligned here.
        let header = unsafe { rest.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        let len = header.cmsg_len as usize;
        let Some(data) = rest.get(HEADER..len) else { return };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            data.chunks_exact(4).for_each(|fd| tell(i32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]])));
        }
        rest = rest.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or(&[]);
    }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_SOCKET,
        name: "socket",
        facts: NEW_FD,
        opcode: Some(opcode::Socket::CODE),
        ring: form!(|args| {
            opcode::Socket::new(args.len as i32, args.arg as i32 | libc::SOCK_CLOEXEC, args.arg2 as i32).build()
        }),
        attempt: Some(|args| {
            Decision::Done(sys::socket(args.len as i32, args.arg as i32 | libc::SOCK_CLOEXEC, args.arg2 as i32))
        }),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_BIND,
        name: "bind",
        facts: FD,
        check: Some(|op| check_address(op.addr, op.len)),
        copy: Some(|args, side, _| args.addr = side.keep_name(args.addr, args.len)),
        opcode: Some(opcode::Bind::CODE),
        ring: form!(|args| opcode::Bind::new(types::Fd(args.fd()), args.ptr(), args.len as socklen_t).build()),
        // A unix socket's bind makes a file; others only take a number.
        attempt: Some(|args| match sys::address_family(args.ptr(), args.len) {
            libc::AF_UNIX => Decision::Pool,
            _ => Decision::Done(sys::bind(args.fd(), args.ptr(), args.len as socklen_t)),
        }),
        block: Some(|args| sys::bind(args.fd(), args.ptr(), args.len as socklen_t)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_LISTEN,
        name: "listen",
        facts: FD,
        opcode: Some(opcode::Listen::CODE),
        ring: form!(|args| opcode::Listen::new(types::Fd(args.fd()), args.arg as i32).build()),
        attempt: Some(|args| Decision::Done(sys::listen(args.fd(), args.arg as i32))),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_ACCEPT,
        name: "accept",
        facts: FD | NEW_FD | CAN_MULTI | SHORTAGE,
        check: Some(check_accept),
        opcode: Some(opcode::Accept::CODE),
        ring: form!(|args| {
            opcode::Accept::new(types::Fd(args.fd()), args.ptr(), args.ptr2()).flags(accept_flags(args)).build()
        }),
        ring_multi: Some(|args| opcode::AcceptMulti::new(types::Fd(args.fd())).flags(accept_flags(args)).build()),
        amend: Some(amend_accept),
        attempt: Some(attempt_accept),
        block: Some(|args| {
            loop {
                let result = call_accept(args);
                if !is_lost_connection(result) {
                    break result;
                }
            }
        }),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_CONNECT,
        name: "connect",
        facts: FD,
        check: Some(|op| check_address(op.addr, op.len)),
        copy: Some(|args, side, _| args.addr = side.keep_name(args.addr, args.len)),
        opcode: Some(opcode::Connect::CODE),
        ring: form!(|args| opcode::Connect::new(types::Fd(args.fd()), args.ptr(), args.len as socklen_t).build()),
        // Some 6.x kernels let EINPROGRESS through (liburing issue 841).
        amend: Some(amend_connect),
        attempt: Some(attempt_connect),
        block: Some(block_connect),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_RECV,
        name: "recv",
        facts: FD | MOVES | CAN_FULL | CAN_MULTI | CAN_LEND | MULTI_LENDS | INWARD | EMPTY_IS_DONE,
        check: Some(check_transfer),
        opcode: Some(opcode::Recv::CODE),
        ring: form!(|args| {
            opcode::Recv::new(types::Fd(args.fd()), args.ptr(), args.call_len()).flags(args.arg as i32).build()
        }),
        ring_lent: Some(|args, lending| {
            let Lending { group, multishot, bundle } = lending;
            if multishot {
                // A multishot takes whole buffers only (the kernel refuses a length).
                let (fd, flags) = (types::Fd(args.fd()), args.arg as i32);
                return (args.len == 0).then(|| match bundle {
                    true => opcode::RecvMultiBundle::new(fd, group).flags(flags).build(),
                    false => opcode::RecvMulti::new(fd, group).flags(flags).build(),
                });
            }
            let entry = opcode::Recv::new(types::Fd(args.fd()), std::ptr::null_mut(), args.call_len())
                .flags(args.arg as i32)
                .buf_group(group)
                .build();
            Some(entry.flags(io_uring::squeue::Flags::BUFFER_SELECT))
        }),
        attempt: Some(attempt_recv),
        lent: Some(lent_recv),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SEND,
        name: "send",
        facts: FD | MOVES | CAN_FULL | CAN_ZEROCOPY,
        check: Some(check_transfer),
        opcode: Some(opcode::Send::CODE),
        ring: form!(|args| {
            opcode::Send::new(types::Fd(args.fd()), args.ptr(), args.call_len())
                .flags((args.arg | OUTWARD) as i32)
                .build()
        }),
        ring_zerocopy: form!(|args| {
            opcode::SendZc::new(types::Fd(args.fd()), args.ptr(), args.call_len())
                .flags((args.arg | NOSIGNAL) as i32)
                .build()
        }),
        amend: Some(amend_send),
        attempt: Some(attempt_send),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_RECVFROM,
        name: "recvfrom",
        facts: FD | MOVES | CAN_FULL | INWARD | EMPTY_IS_DONE | VECTOR | MESSAGE,
        check: Some(check_recvfrom),
        copy: Some(|args, side, _| {
            let room = if args.addr2 == 0 { 0 } else { side::length(args.offset) };
            side.make_message(args, args.addr2, room.min(size_of::<libc::sockaddr_storage>() as u32));
            side.msg.msg_flags = UNASKED;
        }),
        opcode: Some(opcode::RecvMsg::CODE),
        ring: form!(|args| opcode::RecvMsg::new(types::Fd(args.fd()), args.ptr()).flags(args.arg).build()),
        attempt: Some(attempt_recvmsg),
        finish: Some(finish_recvfrom),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SENDTO,
        name: "sendto",
        facts: FD | MOVES | CAN_FULL | VECTOR | MESSAGE,
        check: Some(check_sendto),
        copy: Some(|args, side, _| {
            let name = if args.addr2 == 0 { 0 } else { side.keep_name(args.addr2, args.offset) };
            side.make_message(args, name, args.offset as u32);
        }),
        opcode: Some(opcode::SendMsg::CODE),
        ring: form!(|args| opcode::SendMsg::new(types::Fd(args.fd()), args.ptr()).flags(args.arg | OUTWARD).build()),
        amend: Some(amend_send),
        attempt: Some(attempt_sendmsg),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_RECVMSG,
        name: "recvmsg",
        facts: FD | MOVES | CAN_FULL | CAN_MULTI | CAN_LEND | MULTI_LENDS | INWARD | VECTOR | MESSAGE,
        check: Some(check_message),
        copy: Some(|args, side, lends| {
            if lends {
                // Only the room to keep is read; the kernel would read the vector, too.
                side.msg = side::message(args.addr);
                side.msg.msg_iov = std::ptr::null_mut();
                side.msg.msg_iovlen = 0;
                args.addr = &raw const side.msg as u64;
            } else {
                side.keep_message(args, false);
            }
        }),
        opcode: Some(opcode::RecvMsg::CODE),
        ring: form!(|args| opcode::RecvMsg::new(types::Fd(args.fd()), args.ptr()).flags(args.arg | CLOEXEC).build()),
        ring_lent: Some(|args, lending| {
            lending.multishot.then(|| {
                opcode::RecvMsgMulti::new(types::Fd(args.fd()), args.ptr(), lending.group)
                    .flags(args.arg | CLOEXEC)
                    .build()
            })
        }),
        attempt: Some(attempt_recvmsg),
        lent: Some(lent_recvmsg),
        finish: Some(finish_recvmsg),
        passed: Some(passed_recvmsg),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SENDMSG,
        name: "sendmsg",
        facts: FD | MOVES | CAN_FULL | CAN_ZEROCOPY | VECTOR | MESSAGE,
        check: Some(check_message),
        copy: Some(|args, side, _| side.keep_message(args, true)),
        opcode: Some(opcode::SendMsg::CODE),
        ring: form!(|args| opcode::SendMsg::new(types::Fd(args.fd()), args.ptr()).flags(args.arg | OUTWARD).build()),
        ring_zerocopy: form!(|args| {
            opcode::SendMsgZc::new(types::Fd(args.fd()), args.ptr()).flags(args.arg | NOSIGNAL).build()
        }),
        amend: Some(amend_send),
        attempt: Some(attempt_sendmsg),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SHUTDOWN,
        name: "shutdown",
        facts: FD | SHUTS,
        opcode: Some(opcode::Shutdown::CODE),
        ring: form!(|args| opcode::Shutdown::new(types::Fd(args.fd()), args.arg as i32).build()),
        attempt: Some(|args| Decision::Done(sys::shutdown(args.fd(), args.arg as i32))),
        ..OpDef::BASE
    },
    // Options are read and set at once. The ring's own form reads only SOL_SOCKET, and answers a length.
    OpDef {
        kind: UPCALL_OP_GETSOCKOPT,
        name: "getsockopt",
        facts: FD,
        check: Some(check_getsockopt),
        attempt: Some(|args| {
            Decision::Done(sys::getsockopt(args.fd(), args.arg as i32, args.arg2 as i32, args.ptr(), args.ptr2()))
        }),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SETSOCKOPT,
        name: "setsockopt",
        facts: FD,
        check: Some(check_setsockopt),
        copy: Some(|args, side, _| args.addr = side.keep_bytes(args.addr, args.len)),
        attempt: Some(|args| {
            let len = args.len as socklen_t;
            Decision::Done(sys::setsockopt(args.fd(), args.arg as i32, args.arg2 as i32, args.ptr(), len))
        }),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_PIPE,
        name: "pipe",
        check: Some(check_pipe),
        copy: Some(|args, side, _| {
            args.addr2 = args.addr;
            args.addr = &raw mut side.made as u64;
        }),
        opcode: Some(opcode::Pipe::CODE),
        ring: form!(|args| opcode::Pipe::new(args.ptr()).flags(pipe_flags(args) as u32).build()),
        attempt: Some(|args| Decision::Done(sys::pipe2(args.ptr(), pipe_flags(args)))),
        finish: Some(finish_pipe),
        ..OpDef::BASE
    },
];
