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

/// An end of a transfer, looked at once.
struct End {
    kind: sys::Kind,
    status: i32,
}

impl End {
    fn new(fd: i32) -> End {
        End { kind: sys::kind_of(fd), status: sys::status_of(fd) }
    }

    fn is_pipe(&self) -> bool {
        self.kind == sys::Kind::Pipe
    }

    fn is_file(&self) -> bool {
        self.kind == sys::Kind::File
    }

    /// It is not open, or for the other direction only (`mode`: O_WRONLY or O_RDONLY), or not for data.
    fn is_at_most(&self, mode: i32) -> bool {
        self.status < 0 || self.status & libc::O_PATH != 0 || self.status & libc::O_ACCMODE == mode
    }

    fn is_nonblocking(&self) -> bool {
        self.status >= 0 && self.status & libc::O_NONBLOCK != 0
    }
}

/// What a call needs of its ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// One of them is a pipe, and the call can be asked not to wait for it.
    APipe,
    /// Both are.
    Pipes,
    /// Nothing, and it waits for a pipe as for anything else.
    Nothing,
}

/// Waits for both ends. Then a pool thread does what may touch a disk, a thread of its own what may wait for long, and the
/// rest is `call`ed at once.
fn when_ready(args: &Args, call: fn(&Args) -> i64, needs: Needs) -> Decision {
    let (input, output) = (End::new(args.fd()), End::new(args.fd2()));
    let suits = match needs {
        Needs::APipe => input.is_pipe() || output.is_pipe(),
        Needs::Pipes => input.is_pipe() && output.is_pipe(),
        Needs::Nothing => true,
    };
    // Nothing to wait for: the kernel refuses it.
    if !suits {
        return Decision::Done(call(args));
    }
    // Some of the calls wait for room before they see that they need none.
    if args.len == 0 {
        let open = input.status >= 0 && output.status >= 0;
        return Decision::Done(if open { 0 } else { -i64::from(libc::EBADF) });
    }
    // The wrong end of a pipe would be waited for without end, and what is wrong does not wait for the other. The kernel says
    // what it is, and moves nothing.
    if input.is_at_most(libc::O_WRONLY) || output.is_at_most(libc::O_RDONLY) {
        return Decision::Done(call(args));
    }
    if sys::poll_now(args.fd(), libc::POLLIN) == 0 {
        return Decision::Wait(libc::POLLIN as u32);
    }
    if sys::poll_now(args.fd2(), libc::POLLOUT) == 0 {
        return Decision::Wait(libc::POLLOUT as u32 | SECOND);
    }
    let asked = |end: &End| end.is_nonblocking() || (needs != Needs::Nothing && end.is_pipe());
    let may_wait = [&input, &output].into_iter().any(|end| !end.is_file() && !asked(end));
    if may_wait {
        return Decision::Own;
    }
    if input.is_file() || output.is_file() {
        return Decision::Pool;
    }
    match sys::thread::without_write_signals(|| call(args)) {
        // Both ends said yes: a pipe in use by another, or room for less than a page.
        again if again == -i64::from(libc::EAGAIN) => Decision::Later,
        result => Decision::Done(result),
    }
}

/// Where to read or write; None: at the descriptor's own position.
fn place(offset: u64) -> Option<i64> {
    (offset != CURRENT).then_some(offset as i64)
}

fn splice(args: &Args) -> i64 {
    splice_some(args, args.call_len())
}

fn splice_some(args: &Args, len: u32) -> i64 {
    let flags = args.arg | libc::SPLICE_F_NONBLOCK;
    sys::splice(args.fd(), place(args.offset), args.fd2(), place(args.offset2), len as usize, flags)
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
    sys::sendfile(args.fd2(), args.fd(), place(args.offset), args.call_len() as usize)
}

fn copy_range(args: &Args) -> i64 {
    let (from, to) = (place(args.offset), place(args.offset2));
    sys::copy_file_range(args.fd(), from, args.fd2(), to, args.call_len() as usize, args.arg)
}

const TRANSFER: Facts = FD | TWO_FDS | MOVES | CURSOR | INWARD;

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_SPLICE,
        name: "splice",
        facts: TRANSFER | CAN_FULL,
        check: Some(check_splice),
        attempt: Some(|args| when_ready(args, splice, Needs::APipe)),
        block: Some(block_splice),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_TEE,
        name: "tee",
        facts: TRANSFER,
        check: Some(check_splice),
        attempt: Some(|args| when_ready(args, tee, Needs::Pipes)),
        block: Some(tee),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SENDFILE,
        name: "sendfile",
        facts: TRANSFER | CAN_FULL,
        check: Some(check_offsets),
        attempt: Some(|args| when_ready(args, sendfile, Needs::Nothing)),
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
