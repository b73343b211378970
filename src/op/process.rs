//! Processes: signals, children, and futexes.

use super::*;
use crate::sys;
use crate::sys::signal::{self, Watch};
use io_uring::opcode;
use std::ffi::c_void;

/// Kind of upcall_op_signal(). Since 0.1.
pub const UPCALL_OP_SIGNAL: upcall_kind = 70;
/// Kind of upcall_op_waitid(). Since 0.1.
pub const UPCALL_OP_WAITID: upcall_kind = 71;
/// Kind of upcall_op_futex_wait(). Since 0.1.
pub const UPCALL_OP_FUTEX_WAIT: upcall_kind = 72;
/// Kind of upcall_op_futex_wake(). Since 0.1.
pub const UPCALL_OP_FUTEX_WAKE: upcall_kind = 73;

/// upcall_op_futex_wait(), upcall_op_futex_wake(): only threads of this process use the futex, which is cheaper. The value
/// is that of FUTEX2_PRIVATE. Since 0.1.
pub const UPCALL_FUTEX_PRIVATE: u32 = 128;

/// @brief Waits until the signal `signo` is delivered to this process: result `signo`.
///
/// From the return of upcall_submit(), on whichever thread, until the final event, the signal is caught (by sigaction(2)
/// with SA_RESTART; the signal mask is not touched, so some thread must have it unblocked) and no delivery is lost; those
/// between two turns are told as one event. Every loop and every operation that asked is told. With UPCALL_MULTISHOT there
/// are events until it is cancelled; without, the next delivery ends it. When the last operation of the process for this
/// signal has ended, the action from before is back; if the program has set another one meanwhile, that stays, and hides
/// the signal. In a forked child the action from before meets the signal. A cancel that comes after a delivery does not
/// undo it.
///
/// Refused with -EINVAL: SIGKILL, SIGSTOP, the signals of faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS), what is
/// no signal; with -EBUSY: the real-time signal (the highest that was free) that the library interrupts its own threads
/// with, once it does. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_signal(signo: i32) -> upcall_op {
    upcall_op { arg: signo as u32, ..blank(UPCALL_OP_SIGNAL) }
}

/// @brief waitid(2): waits until a child changes its state, result 0; -ECHILD when there is no such child.
///
/// `idtype` is P_PID, P_PGID, P_ALL or P_PIDFD, `id` as it says; `options` has at least one of WEXITED, WSTOPPED and
/// WCONTINUED, perhaps WNOWAIT. WNOHANG is -EINVAL: an operation waits. `info` is a siginfo_t, or NULL; it is borrowed until
/// the final event and written only with result 0. A cancelled one has not reaped the child. A descriptor of P_PIDFD may be
/// O_NONBLOCK, and must stay open until the final event. Where the kernel can neither do it nor tell when to look, it is
/// looked for at most every 20 ms. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_waitid(idtype: u32, id: u32, info: *mut c_void, options: i32) -> upcall_op {
    let fd = if idtype == libc::P_PIDFD { id as i32 } else { -1 };
    let (len, offset) = (u64::from(idtype), u64::from(id));
    upcall_op { fd, addr: info as u64, len, offset, arg: options as u32, ..blank(UPCALL_OP_WAITID) }
}

/// @brief futex(2), FUTEX_WAIT_BITSET: waits while `*addr` is `value` until a wake whose mask has a bit of `mask`. Result: 0
/// when it was woken, 1 when `*addr` was another value already.
///
/// `addr` is 32 bits, aligned, borrowed until the final event. It is read when the loop is polled, or a little later, not
/// by upcall_submit(): change the value, then wake, as always with a futex. `mask` is FUTEX_BITSET_MATCH_ANY, or other 32
/// bits that are not 0. `flags` is 0 or UPCALL_FUTEX_PRIVATE; FUTEX2_SIZE_U32 may be added and changes nothing. One that was
/// woken is not cancelled any more: no wake is lost on it. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_futex_wait(addr: *mut u32, value: u32, mask: u64, flags: u32) -> upcall_op {
    let (len, offset) = (u64::from(value), mask);
    upcall_op { addr: addr as u64, len, offset, arg: flags, ..blank(UPCALL_OP_FUTEX_WAIT) }
}

/// @brief futex(2), FUTEX_WAKE_BITSET: wakes at most `count` waiters at `addr`, operations or threads, whose mask has a bit
/// of `mask`. Result: how many.
///
/// `count` is 1 to INT_MAX. `addr`, `mask` and `flags` are as for upcall_op_futex_wait(). Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_futex_wake(addr: *mut u32, count: u32, mask: u64, flags: u32) -> upcall_op {
    let (len, offset) = (u64::from(count), mask);
    upcall_op { addr: addr as u64, len, offset, arg: flags, ..blank(UPCALL_OP_FUTEX_WAKE) }
}

fn check_signal(op: &upcall_op) -> Checked {
    let signo = op.arg as i32;
    match signo {
        libc::SIGKILL | libc::SIGSTOP => invalid(format!("signo is {signo}, which cannot be caught")),
        libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP | libc::SIGSYS => {
            invalid(format!("signo is {signo}, the signal of a fault: only its own thread can handle it"))
        }
        _ if !signal::exists(signo) => invalid(format!("signo is {signo}, not a signal that can be caught")),
        _ if sys::thread::is_interrupt_signal(signo) => {
            refuse(libc::EBUSY, format!("signo is {signo}, which interrupts the library's own threads"))
        }
        _ => Ok(()),
    }
}

/// `offset` counts deliveries. The count comes first: nothing is caught that is not told.
fn watch(args: &mut Args, side: &mut Side, _: bool) {
    let signo = args.arg as i32;
    args.offset = signal::deliveries(signo);
    side.watch = Some(Watch::new(signo));
}

const CHANGES: i32 = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
const OPTIONS: i32 = CHANGES | libc::WNOWAIT | libc::__WNOTHREAD | libc::__WALL | libc::__WCLONE;

/// `stage` of a waitid: `fd` is a pidfd of its own.
const OPENED: u32 = 1;

fn check_waitid(op: &upcall_op) -> Checked {
    let (idtype, id, options) = (op.len as u32, op.offset as u32, op.arg as i32);
    if !matches!(idtype, libc::P_ALL | libc::P_PID | libc::P_PGID | libc::P_PIDFD) {
        return invalid(format!("idtype is {idtype}, not P_PID, P_PGID, P_ALL or P_PIDFD"));
    }
    if idtype != libc::P_ALL && (id > i32::MAX as u32 || (id == 0 && idtype == libc::P_PID)) {
        return invalid(format!("id is {}, which names no process", id as i32));
    }
    let named = if idtype == libc::P_PIDFD { id as i32 } else { -1 };
    if op.fd != named {
        return invalid(format!("fd is {}, which upcall_op_waitid() has set to {named}", op.fd));
    }
    if options & libc::WNOHANG != 0 {
        return invalid("options has WNOHANG: an operation waits; use a deadline or cancel");
    }
    if options & !OPTIONS != 0 {
        return invalid(format!("options has unknown bits {:#x}", options & !OPTIONS));
    }
    if options & CHANGES == 0 {
        return invalid("options has none of WEXITED, WSTOPPED and WCONTINUED");
    }
    Ok(())
}

/// The kernel writes siginfo_t also where it fails or is cancelled: it gets one of the operation's own.
fn own_siginfo(args: &mut Args, side: &mut Side, _: bool) {
    args.addr2 = args.addr;
    args.addr = side.blank_siginfo();
}

/// waitid(2) answers 0 also when there is nothing yet, for WNOHANG and for an O_NONBLOCK pidfd.
fn has_child(args: &Args) -> bool {
    // SAFETY: `addr` is the side block's siginfo_t (see `own_siginfo`); si_pid is there in what waitid writes, else zero.
    unsafe { (*args.ptr::<libc::siginfo_t>()).si_pid() != 0 }
}

fn attempt_waitid(args: &mut Args) -> Decision {
    let options = args.arg as i32;
    loop {
        let result = sys::waitid(args.len as u32, args.offset as u32, args.ptr(), options | libc::WNOHANG);
        if result != 0 || has_child(args) {
            return Decision::Done(result);
        }
        // A pidfd tells when its process exits, and nothing else.
        if options & CHANGES != libc::WEXITED {
            return Decision::Later;
        }
        match args.len as u32 {
            // It has exited and cannot be had: its tracer comes first.
            libc::P_PIDFD if sys::poll_now(args.fd(), libc::POLLIN) != 0 => return Decision::Later,
            libc::P_PIDFD => return Decision::Wait(libc::POLLIN as u32),
            libc::P_PID => {
                let fd = sys::pidfd_open(args.offset as i32);
                if fd < 0 {
                    return Decision::Later;
                }
                // From here on it waits for what the descriptor names, and asks once more: another thread may have reaped
                // the child just now, and its number may name another process.
                args.fd_word.store(fd as i32, Ordering::Relaxed);
                args.stage = OPENED;
                args.len = u64::from(libc::P_PIDFD);
                args.offset = fd as u64;
            }
            _ => return Decision::Later,
        }
    }
}

fn amend_waitid(args: &mut Args, result: i64) -> Option<Decision> {
    (result == 0 && !has_child(args)).then(|| attempt_waitid(args))
}

fn finish_waitid(args: &Args, side: &mut Side, result: i64) {
    if args.stage == OPENED {
        sys::close(args.fd());
    }
    if result == 0 && args.addr2 != 0 {
        // SAFETY: the program's siginfo_t, lent until the final event, which this comes before.
        unsafe { args.ptr2::<libc::siginfo_t>().write_unaligned(side.siginfo) };
    }
}

const FUTEX2_SIZE_U32: u32 = 2;

fn check_futex(op: &upcall_op) -> Checked {
    if op.addr == 0 {
        return invalid("addr is NULL");
    }
    if !op.addr.is_multiple_of(4) {
        return invalid("addr is not a multiple of 4");
    }
    if op.offset == 0 || op.offset > u64::from(u32::MAX) {
        return invalid(format!("mask is {:#x}, not 32 bits with one of them set", op.offset));
    }
    if op.arg & !(UPCALL_FUTEX_PRIVATE | FUTEX2_SIZE_U32) != 0 {
        return invalid(format!("flags is {:#x}, not 0 or UPCALL_FUTEX_PRIVATE", op.arg));
    }
    Ok(())
}

fn check_futex_wake(op: &upcall_op) -> Checked {
    if op.len == 0 || op.len > i32::MAX as u64 {
        return invalid(format!("count is {}, not 1 to INT_MAX", op.len));
    }
    check_futex(op)
}

fn ring_flags(args: &Args) -> u32 {
    args.arg | FUTEX2_SIZE_U32
}

fn futex_wait(args: &Args, at_most: Option<&libc::timespec>) -> i64 {
    let private = args.arg & UPCALL_FUTEX_PRIVATE;
    match sys::futex_wait(args.ptr(), args.len as u32, args.offset as u32, private, at_most) {
        error if error == -i64::from(libc::EAGAIN) => 1,
        result => result,
    }
}

/// A time that has passed: the kernel compares, and does not wait.
fn attempt_futex_wait(args: &mut Args) -> Decision {
    let result = futex_wait(args, Some(&sys::timespec(0)));
    match -result as i32 {
        libc::ETIMEDOUT | libc::EINTR => Decision::Own,
        _ => Decision::Done(result),
    }
}

fn attempt_futex_wake(args: &mut Args) -> Decision {
    let private = args.arg & UPCALL_FUTEX_PRIVATE;
    Decision::Done(sys::futex_wake(args.ptr(), args.len as u32, args.offset as u32, private))
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_SIGNAL,
        name: "signal",
        facts: SIGNAL | CAN_MULTI,
        check: Some(check_signal),
        copy: Some(watch),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_WAITID,
        name: "waitid",
        // The descriptor of P_PIDFD; of others there is none.
        facts: DIRFD | AMENDS_ALL | IMPATIENT,
        check: Some(check_waitid),
        copy: Some(own_siginfo),
        opcode: Some(opcode::WaitId::CODE),
        ring: form!(|args| opcode::WaitId::new(args.len as u32, args.offset as u32, args.arg as i32)
            .infop(args.ptr())
            .build()),
        amend: Some(amend_waitid),
        attempt: Some(attempt_waitid),
        finish: Some(finish_waitid),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FUTEX_WAIT,
        name: "futex_wait",
        check: Some(check_futex),
        opcode: Some(opcode::FutexWait::CODE),
        ring: form!(|args| opcode::FutexWait::new(args.ptr(), args.len, args.offset, ring_flags(args)).build()),
        amend: Some(|_, result| (result == -i64::from(libc::EAGAIN)).then_some(Decision::Done(1))),
        attempt: Some(attempt_futex_wait),
        block: Some(|args| futex_wait(args, None)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FUTEX_WAKE,
        name: "futex_wake",
        check: Some(check_futex_wake),
        opcode: Some(opcode::FutexWake::CODE),
        ring: form!(|args| opcode::FutexWake::new(args.ptr(), args.len, args.offset, ring_flags(args)).build()),
        attempt: Some(attempt_futex_wake),
        ..OpDef::BASE
    },
];
