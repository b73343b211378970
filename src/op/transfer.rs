//! Moving data from one descriptor to another without it passing through the program's memory.
//!
//! None has a native form. The ring gives every splice and tee to a kernel worker, which then waits inside the call: a worker
//! for each idle one, and two thread switches for each that is ready. Asking both ends and calling at once is quicker and is
//! the same on both backends.

use super::*;
use crate::sys;

/// Kind of upcall_op_splice(). Since 0.1.
pub const UPCALL_OP_SPLICE: upcall_kind = 6;
/// Kind of upcall_op_tee(). Since 0.1.
pub const UPCALL_OP_TEE: upcall_kind = 7;
/// Kind of upcall_op_copy_range(). Since 0.1.
pub const UPCALL_OP_COPY_RANGE: upcall_kind = 19;
/// Kind of upcall_op_sendfile(). Since 0.1.
pub const UPCALL_OP_SENDFILE: upcall_kind = 34;

/// @brief splice(2): moves up to `len` bytes from `in` to `out`, one of which must be a pipe.
///
/// `off_in`, `off_out`: where to read and write, with -1 at the descriptor's own position, which is the only way for pipes and
/// sockets (-ESPIPE otherwise). `flags`: SPLICE_F_MOVE, SPLICE_F_MORE; not SPLICE_F_NONBLOCK, an operation waits. Result:
/// bytes moved, 0 at the end of `in`. UPCALL_FULL moves all of `len`. Closing or cancelling either descriptor by the loop ends
/// the operation. Operations from the same `in` run one at a time, in submission order. Never raises SIGPIPE. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_splice(
    r#in: i32,
    off_in: i64,
    out: i32,
    off_out: i64,
    len: usize,
    flags: u32,
) -> upcall_op {
    upcall_op {
        fd: r#in,
        offset: off_in as u64,
        offset2: off_out as u64,
        len: len as u64,
        arg: flags,
        arg2: out as u32,
        ..blank(UPCALL_OP_SPLICE)
    }
}

/// @brief tee(2): copies up to `len` bytes from one pipe to another without consuming them.
///
/// `flags` as for upcall_op_splice(). Result: bytes copied, 0 when `in` has no writers and no data. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_tee(r#in: i32, out: i32, len: usize, flags: u32) -> upcall_op {
    upcall_op {
        fd: r#in,
        offset: CURRENT,
        offset2: CURRENT,
        len: len as u64,
        arg: flags,
        arg2: out as u32,
        ..blank(UPCALL_OP_TEE)
    }
}

/// @brief sendfile(2): moves up to `len` bytes from `offset` of the file `in` to `out`, usually a socket.
///
/// `offset`: -1 for the file's own position. Result: bytes moved, 0 at the end of the file. UPCALL_FULL moves all of `len`.
/// A socket opened with SOCK_NONBLOCK is cheaper: a blocking one costs a thread while its peer does not read. Otherwise as
/// upcall_op_splice(). Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_sendfile(out: i32, r#in: i32, offset: i64, len: usize) -> upcall_op {
    upcall_op {
        fd: r#in,
        offset: offset as u64,
        offset2: CURRENT,
        len: len as u64,
        arg2: out as u32,
        ..blank(UPCALL_OP_SENDFILE)
    }
}

/// @brief copy_file_range(2): copies up to `len` bytes from one file to another, sharing blocks where the filesystem can.
///
/// `off_in`, `off_out`: where to read and write, -1 for the file's own position; `flags` must be 0. Result: bytes copied, 0 at
/// the end of `in`. UPCALL_FULL copies all of `len`. Once started it cannot be cancelled. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_copy_range(
    r#in: i32,
    off_in: i64,
    out: i32,
    off_out: i64,
    len: usize,
    flags: u32,
) -> upcall_op {
    upcall_op { kind: UPCALL_OP_COPY_RANGE, ..upcall_op_splice(r#in, off_in, out, off_out, len, flags) }
}

fn check_offsets(op: &upcall_op) -> Checked {
    let first = if op.kind == UPCALL_OP_SENDFILE { "offset" } else { "off_in" };
    for (name, offset) in [(first, op.offset), ("off_out", op.offset2)] {
        if (offset as i64) < -1 {
            return invalid(format!("{name} is {}, less than -1", offset as i64));
        }
    }
    match op.len > isize::MAX as u64 {
        true => invalid(format!("len is {}, more than SSIZE_MAX", op.len)),
        false => Ok(()),
    }
}

fn check_splice(op: &upcall_op) -> Checked {
    if op.arg & libc::SPLICE_F_NONBLOCK != 0 {
        return invalid("flags has SPLICE_F_NONBLOCK: an operation waits; use a deadline or cancel");
    }
    check_offsets(op)
}

/// Waits for both ends. Then a pool thread does what may touch a disk, a thread of its own what may wait for long, and the
/// rest is `call`ed at once.
fn when_ready(args: &Args, call: fn(&Args) -> i64, pipes_wait: bool) -> Decision {
    let (input, output) = (args.fd(), args.fd2());
    // Some of the calls wait for room before they see that they need none.
    if args.len == 0 {
        let open = sys::is_open(input) && sys::is_open(output);
        return Decision::Done(if open { 0 } else { -i64::from(libc::EBADF) });
    }
    let may_wait = |fd: i32| !sys::is_file(fd) && (pipes_wait || !sys::is_pipe(fd)) && !sys::is_nonblocking(fd);
    // The wrong end of a pipe would be waited for without end, and what is wrong does not wait for the other. The kernel says
    // what it is, and moves nothing.
    if args.len > 0 && (sys::is_at_most(input, libc::O_WRONLY) || sys::is_at_most(output, libc::O_RDONLY)) {
        return Decision::Done(call(args));
    }
    if sys::poll_now(input, libc::POLLIN) == 0 {
        return Decision::Wait(libc::POLLIN as u32);
    }
    if sys::poll_now(output, libc::POLLOUT) == 0 {
        return Decision::Wait(libc::POLLOUT as u32 | SECOND);
    }
    if sys::is_file(input) || sys::is_file(output) {
        return if may_wait(output) || may_wait(input) { Decision::Own } else { Decision::Pool };
    }
    if may_wait(input) || may_wait(output) {
        return Decision::Own;
    }
    match sys::thread::without_write_signals(|| call(args)) {
        // Both ends said yes: a pipe in use by another, or room for less than a page.
        again if again == -i64::from(libc::EAGAIN) => Decision::Later,
        result => Decision::Done(result),
    }
}

fn splice(args: &Args) -> i64 {
    splice_some(args, args.call_len())
}

fn splice_some(args: &Args, len: u32) -> i64 {
    let offset = |value: u64| (value != CURRENT).then_some(value as i64);
    let flags = args.arg | libc::SPLICE_F_NONBLOCK;
    sys::splice(args.fd(), offset(args.offset), args.fd2(), offset(args.offset2), len as usize, flags)
}

/// What a blocking socket that shows POLLOUT takes without waiting.
const PAGE: u32 = 4096;
const MOST_LOCKED_NS: u64 = 5_000_000;

/// On a thread of its own. The kernel keeps the pipe locked while splice waits for a blocking socket, and whoever touches the
/// pipe then waits, too, out of reach of any signal (6.18): a loop would stand still. So it is asked for no more than the
/// other end does without waiting, which only another reader or writer of it could make untrue, and then not for long.
fn block_splice(args: &Args) -> i64 {
    let (input, output) = (args.fd(), args.fd2());
    if sys::is_file(input) || sys::is_file(output) {
        return splice(args);
    }
    let whole = sys::is_message_socket(input) || sys::is_message_socket(output);
    let mut moved = 0;
    while moved < i64::from(args.call_len()) {
        let left = args.call_len() - moved as u32;
        let seen = sys::poll_now(input, libc::POLLIN);
        if seen == libc::POLLERR {
            // An error to tell, or an error queue that is not empty, which means nothing.
            match sys::recv(input, std::ptr::null_mut(), 0, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
                again if again == -i64::from(libc::EAGAIN) => break,
                error if error < 0 && error != -i64::from(libc::ENOTSOCK) && moved == 0 => return error,
                _ => {}
            }
        }
        if seen == 0 || sys::poll_now(output, libc::POLLOUT) == 0 {
            break;
        }
        let len = if whole { left } else { left.min(PAGE) };
        match sys::thread::interrupted_after(MOST_LOCKED_NS, || splice_some(args, len)) {
            again if matches!(-again as i32, libc::EINTR | libc::EAGAIN) => break,
            end if end <= 0 => return if moved > 0 { moved } else { end },
            count => moved += count,
        }
        if whole {
            break;
        }
    }
    if moved > 0 { moved } else { -i64::from(libc::EAGAIN) }
}

fn tee(args: &Args) -> i64 {
    sys::tee(args.fd(), args.fd2(), args.call_len() as usize, args.arg | libc::SPLICE_F_NONBLOCK)
}

fn sendfile(args: &Args) -> i64 {
    let offset = (args.offset != CURRENT).then_some(args.offset as i64);
    sys::sendfile(args.fd2(), args.fd(), offset, args.call_len() as usize)
}

fn copy_range(args: &Args) -> i64 {
    let offset = |value: u64| (value != CURRENT).then_some(value as i64);
    let (from, to) = (offset(args.offset), offset(args.offset2));
    sys::copy_file_range(args.fd(), from, args.fd2(), to, args.call_len() as usize, args.arg)
}

const TRANSFER: Facts = FD | TWO_FDS | MOVES | CURSOR | INWARD;

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_SPLICE,
        name: "splice",
        facts: TRANSFER | CAN_FULL,
        check: Some(check_splice),
        attempt: Some(|args| match sys::is_pipe(args.fd()) || sys::is_pipe(args.fd2()) {
            true => when_ready(args, splice, false),
            // Nothing to wait for: the kernel refuses it.
            false => Decision::Done(splice(args)),
        }),
        block: Some(block_splice),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_TEE,
        name: "tee",
        facts: TRANSFER,
        check: Some(check_splice),
        attempt: Some(|args| match sys::is_pipe(args.fd()) && sys::is_pipe(args.fd2()) {
            true => when_ready(args, tee, false),
            false => Decision::Done(tee(args)),
        }),
        block: Some(tee),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SENDFILE,
        name: "sendfile",
        facts: TRANSFER | CAN_FULL,
        check: Some(check_offsets),
        // Unlike the others it cannot be asked not to wait for a pipe.
        attempt: Some(|args| when_ready(args, sendfile, true)),
        block: Some(sendfile),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_COPY_RANGE,
        name: "copy_range",
        facts: TRANSFER | CAN_FULL,
        check: Some(check_offsets),
        block: Some(copy_range),
        ..OpDef::BASE
    },
];
