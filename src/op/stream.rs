//! Streams: read, write and their vector forms, at the descriptor's own position.
//!
//! The non-blocking form is preadv2(RWF_NOWAIT) with offset -1, which leaves O_NONBLOCK alone. Measured on 6.18: it works on
//! sockets, anonymous pipes, eventfd and timerfd; ttys, FIFOs, inotify and /proc answer EOPNOTSUPP, on 6.1.192 and 5.10.262
//! sockets and anonymous pipes, too. Sockets are then asked with MSG_DONTWAIT. The others wait for readiness and then, unless
//! they are O_NONBLOCK already, are read on a thread that can be interrupted.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use std::ffi::c_void;

/// Kind of upcall_op_read(). Since 0.1.
pub const UPCALL_OP_READ: upcall_kind = 2;
/// Kind of upcall_op_write(). Since 0.1.
pub const UPCALL_OP_WRITE: upcall_kind = 3;
/// Kind of upcall_op_readv(). Since 0.1.
pub const UPCALL_OP_READV: upcall_kind = 4;
/// Kind of upcall_op_writev(). Since 0.1.
pub const UPCALL_OP_WRITEV: upcall_kind = 5;

/// @brief read(2): up to `len` bytes from a stream into `buf`. On a regular file it uses and moves the file's own
/// position, and the loop runs such operations on one descriptor one at a time in submission order.
///
/// `buf` is borrowed until the final event; NULL with upcall_op.buffers. Result: bytes read, 0 at end of file. A length of
/// 0 completes with 0. UPCALL_FULL waits for all of `len`. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_read(fd: i32, buf: *mut c_void, len: usize) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, ..blank(UPCALL_OP_READ) }
}

/// @brief write(2): up to `len` bytes from `buf` to a stream. Never raises SIGPIPE: a reader that is gone is -EPIPE. On a
/// regular file as for upcall_op_read().
///
/// `buf` is borrowed until the final event. Result: bytes written. UPCALL_FULL writes all of `len`. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_write(fd: i32, buf: *const c_void, len: usize) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, ..blank(UPCALL_OP_WRITE) }
}

/// @brief readv(2): as upcall_op_read() into `n` parts, at most 1024.
///
/// The array is copied; the memory its entries name is borrowed until the final event. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_readv(fd: i32, iov: *const libc::iovec, n: usize) -> upcall_op {
    upcall_op { fd, addr: iov as u64, len: n as u64, ..blank(UPCALL_OP_READV) }
}

/// @brief writev(2): as upcall_op_write() from `n` parts, at most 1024.
///
/// The array is copied; the memory its entries name is borrowed until the final event. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_writev(fd: i32, iov: *const libc::iovec, n: usize) -> upcall_op {
    upcall_op { fd, addr: iov as u64, len: n as u64, ..blank(UPCALL_OP_WRITEV) }
}

/// `stage` of an operation whose descriptor does not take RWF_NOWAIT: it may be a socket; it is none.
const BY_MESSAGE: u32 = 1;
const BY_READINESS: u32 = 2;

/// The same call of a socket, which need not show readiness first: a full unix socket that was shut down shows no room, and
/// yet a write would end.
fn message_without_waiting(fd: i32, inward: bool, iov: *const libc::iovec, count: usize) -> i64 {
    // SAFETY: msghdr is a plain C structure for which all-zero bytes are a valid value.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = iov.cast_mut();
    msg.msg_iovlen = count as _;
    match inward {
        true => sys::recvmsg(fd, &mut msg, libc::MSG_DONTWAIT),
        false => sys::sendmsg(fd, &msg, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
    }
}

/// Asks the kernel not to wait, and where it cannot be asked, how to go on.
pub(super) fn without_waiting(args: &mut Args, inward: bool, iov: *const libc::iovec, count: usize) -> Decision {
    let fd = args.fd();
    if !inward && sys::is_empty(iov, count) {
        return unless_again(sys::write_nothing(fd), libc::POLLOUT);
    }
    let events = if inward { libc::POLLIN } else { libc::POLLOUT };
    if args.stage == 0 {
        let result =
            if inward { sys::preadv2(fd, iov, count, -1, sys::RWF_NOWAIT) } else { sys::write_nowait(fd, iov, count) };
        match -result as i32 {
            libc::EAGAIN if sys::is_file(fd) => return Decision::Pool,
            libc::EAGAIN => return Decision::Wait(events as u32),
            libc::EOPNOTSUPP => args.stage = BY_MESSAGE,
            _ => return Decision::Done(result),
        }
    }
    if args.stage == BY_MESSAGE {
        match message_without_waiting(fd, inward, iov, count) {
            error if error == -i64::from(libc::ENOTSOCK) => args.stage = BY_READINESS,
            result => return unless_again(result, events),
        }
    }
    if sys::is_file(fd) {
        return Decision::Pool;
    }
    if sys::is_nonblocking(fd) {
        let result = if inward { sys::readv(fd, iov, count) } else { sys::writev(fd, iov, count) };
        return unless_again(result, events);
    }
    if sys::poll_now(fd, events) == 0 {
        return Decision::Wait(events as u32);
    }
    Decision::Own
}

fn part_of(args: &Args) -> libc::iovec {
    libc::iovec { iov_base: args.ptr(), iov_len: args.call_len() as usize }
}

fn attempt_read(args: &mut Args) -> Decision {
    let part = part_of(args);
    without_waiting(args, true, &part, 1)
}

fn attempt_write(args: &mut Args) -> Decision {
    let part = part_of(args);
    without_waiting(args, false, &part, 1)
}

fn lent_read(args: &Args, buffer: *mut u8, size: u32) -> Decision {
    let size = if args.len == 0 { size } else { size.min(args.call_len()) };
    let part = libc::iovec { iov_base: buffer.cast(), iov_len: size as usize };
    let mut again = args.copy();
    without_waiting(&mut again, true, &part, 1)
}

/// A pipe is filled, as the ring fills it, and not waited for until all of a long write has found room: one that shows POLLOUT
/// has room for PIPE_BUF. (A FIFO does not take RWF_NOWAIT, nor does a pipe once it was spliced.)
fn block_write(fd: i32, iov: *const libc::iovec, count: usize) -> i64 {
    if !sys::is_pipe(fd) {
        return sys::writev(fd, iov, count);
    }
    let mut parts = side::vector(iov as u64, count as u64).to_vec();
    let total = sys::total_of(iov, count) as i64;
    let (mut done, mut moved) = (0, 0);
    let mut piece = Vec::new();
    while moved < total {
        piece.clear();
        let mut room = libc::PIPE_BUF;
        for part in &parts[done..] {
            let len = part.iov_len.min(room);
            piece.push(libc::iovec { iov_base: part.iov_base, iov_len: len });
            room -= len;
            if room == 0 {
                break;
            }
        }
        match sys::writev(fd, piece.as_ptr(), piece.len()) {
            error if error < 0 => return if moved > 0 { moved } else { error },
            count => {
                moved += count;
                side::advance(&mut parts, &mut done, count as u64);
            }
        }
        if sys::poll_now(fd, libc::POLLOUT) & libc::POLLOUT == 0 {
            break;
        }
    }
    moved
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_READ,
        name: "read",
        facts: FD | MOVES | CAN_FULL | CAN_LEND | CURSOR | INWARD | EMPTY_IS_DONE,
        check: Some(check_data),
        opcode: Some(opcode::Read::CODE),
        ring: form!(|args| opcode::Read::new(types::Fd(args.fd()), args.ptr(), args.call_len())
            .offset(CURRENT)
            .build()),
        ring_lent: Some(|args, lending| {
            let entry = opcode::Read::new(types::Fd(args.fd()), std::ptr::null_mut(), args.call_len())
                .offset(CURRENT)
                .buf_group(lending.group)
                .build();
            Some(entry.flags(io_uring::squeue::Flags::BUFFER_SELECT))
        }),
        attempt: Some(attempt_read),
        lent: Some(lent_read),
        block: Some(|args| sys::readv(args.fd(), &part_of(args), 1)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_WRITE,
        name: "write",
        facts: FD | MOVES | CAN_FULL | CURSOR | PIPE_SIGNAL,
        check: Some(check_data),
        opcode: Some(opcode::Write::CODE),
        ring: form!(|args| {
            opcode::Write::new(types::Fd(args.fd()), args.ptr(), args.call_len())
                .offset(CURRENT)
                .rw_flags(sys::rwf_nosignal())
                .build()
        }),
        attempt: Some(attempt_write),
        block: Some(|args| block_write(args.fd(), &part_of(args), 1)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_READV,
        name: "readv",
        facts: FD | MOVES | CAN_FULL | CURSOR | INWARD | VECTOR | EMPTY_IS_DONE,
        check: Some(|op| check_vector(op.addr, op.len)),
        copy: Some(|args, side, _| side.keep_vector(args)),
        opcode: Some(opcode::Readv::CODE),
        ring: form!(|args| {
            opcode::Readv::new(types::Fd(args.fd()), args.ptr(), args.len as u32).offset(CURRENT).build()
        }),
        attempt: Some(|args| without_waiting(args, true, args.ptr(), args.len as usize)),
        block: Some(|args| sys::readv(args.fd(), args.ptr(), args.len as usize)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_WRITEV,
        name: "writev",
        facts: FD | MOVES | CAN_FULL | CURSOR | VECTOR | PIPE_SIGNAL,
        check: Some(|op| check_vector(op.addr, op.len)),
        copy: Some(|args, side, _| side.keep_vector(args)),
        opcode: Some(opcode::Writev::CODE),
        ring: form!(|args| {
            opcode::Writev::new(types::Fd(args.fd()), args.ptr(), args.len as u32)
                .offset(CURRENT)
                .rw_flags(sys::rwf_nosignal())
                .build()
        }),
        attempt: Some(|args| without_waiting(args, false, args.ptr(), args.len as usize)),
        block: Some(|args| block_write(args.fd(), args.ptr(), args.len as usize)),
        ..OpDef::BASE
    },
];
