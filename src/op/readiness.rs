//! Readiness: waiting until a descriptor can do something, for programs and libraries that make the calls themselves.

use super::*;
use crate::sys;
use io_uring::{opcode, types};

/// Kind of upcall_op_nop(). Since 0.1.
pub const UPCALL_OP_NOP: upcall_kind = 1;
/// Kind of upcall_op_poll(). Since 0.1.
pub const UPCALL_OP_POLL: upcall_kind = 60;

/// @brief Does nothing. Result 0. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_nop() -> upcall_op {
    blank(UPCALL_OP_NOP)
}

/// @brief poll(2): waits until `fd` shows one of `events` (POLLIN, POLLOUT, POLLPRI, POLLRDHUP …). Result: the events
/// seen, which may include POLLERR and POLLHUP.
///
/// A regular file is always ready. With UPCALL_MULTISHOT: the first event by level, then at least one per arrival after the
/// program drained the descriptor; spurious ones are possible. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_poll(fd: i32, events: u32) -> upcall_op {
    upcall_op { fd, arg: events, ..blank(UPCALL_OP_POLL) }
}

/// What poll(2) can be asked for; anything else has another meaning to epoll or io_uring (EPOLLET, EPOLLEXCLUSIVE …).
const EVENTS: u32 = 0x3fff;

/// `stage` of a poll: its level was reported.
const REPORTED: u32 = 1;

fn check_poll(op: &upcall_op) -> Checked {
    if op.arg & !EVENTS != 0 {
        return invalid(format!("events is {:#x}, poll(2) events are below 0x4000", op.arg));
    }
    Ok(())
}

fn attempt_poll(args: &mut Args) -> Decision {
    match sys::poll_now(args.fd(), args.arg as i16) {
        0 => Decision::Wait(args.arg),
        seen if seen & libc::POLLNVAL != 0 => Decision::Done(-i64::from(libc::EBADF)),
        seen => {
            args.stage = REPORTED;
            Decision::Done(i64::from(seen))
        }
    }
}

/// io_uring also wakes for POLLRDHUP, asked or not (6.18). What poll(2) would not have told is not told; the wait goes on
/// for the next change.
fn amend_poll(args: &mut Args, result: i64) -> Option<Decision> {
    let trouble = i64::from(libc::POLLERR | libc::POLLHUP);
    let told = args.arg as i64 | trouble;
    if result < 0 {
        return None;
    }
    // What wakes a socket's readers names these too, and an old kernel takes its word for it (5.10.262).
    let rare = i64::from(libc::POLLPRI | libc::POLLRDBAND | libc::POLLWRBAND);
    if result & rare != 0 && result & trouble == 0 {
        return Some(attempt_poll(args));
    }
    args.stage = REPORTED;
    // It may tell what woke it instead of what poll(2) would see (6.18: POLLERR alone for a listener that was shut down).
    if result & trouble != 0 {
        let seen = i64::from(sys::poll_now(args.fd(), args.arg as i16));
        if seen != 0 && seen != result && seen & i64::from(libc::POLLNVAL) == 0 {
            return Some(Decision::Done(seen));
        }
    }
    if result & !told == 0 {
        return None;
    }
    Some(if result & told != 0 { Decision::Done(result & told) } else { Decision::Wait(args.arg) })
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_NOP,
        name: "nop",
        facts: NO_ARGS,
        opcode: Some(opcode::Nop::CODE),
        ring: form!(|_| opcode::Nop::new().build()),
        attempt: Some(|_| Decision::Done(0)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_POLL,
        name: "poll",
        facts: FD | CAN_MULTI | EDGE | AMENDS_ALL,
        check: Some(check_poll),
        opcode: Some(opcode::PollAdd::CODE),
        ring: form!(|args| opcode::PollAdd::new(types::Fd(args.fd()), args.arg).build()),
        ring_multi: Some(|args| opcode::PollAdd::new(types::Fd(args.fd()), args.arg).multi(true).build()),
        amend: Some(amend_poll),
        attempt: Some(attempt_poll),
        ..OpDef::BASE
    },
];
