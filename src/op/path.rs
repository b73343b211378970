//! Paths: opening, closing and asking about files by name.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use std::ffi::c_char;

/// Kind of upcall_op_open().
pub const UPCALL_OP_OPEN: upcall_kind = 20;
/// Kind of upcall_op_close().
pub const UPCALL_OP_CLOSE: upcall_kind = 22;
/// Kind of upcall_op_statx().
pub const UPCALL_OP_STATX: upcall_kind = 23;

/// @brief openat(2): result: a descriptor, close-on-exec. `dirfd` may be AT_FDCWD; `mode` counts with O_CREAT and
/// O_TMPFILE only.
///
/// `path` is copied. Opening a FIFO may wait for the other side without limit; it can be cancelled. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_open(dirfd: i32, path: *const c_char, flags: i32, mode: u32) -> upcall_op {
    upcall_op { fd: dirfd, addr: path as u64, arg: flags as u32, arg2: mode, ..blank(UPCALL_OP_OPEN) }
}

/// @brief close(2), safely: first asks every operation of this loop in flight on `fd` to end, waits for their final events
/// (-ECANCELED, or the result when it was too late) and delivers them, then closes. Result: 0 or a negative errno.
///
/// A started close cannot be cancelled; one that never started leaves the descriptor open. Operations submitted on `fd`
/// while it closes end in -EBADF. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_close(fd: i32) -> upcall_op {
    upcall_op { fd, ..blank(UPCALL_OP_CLOSE) }
}

/// @brief statx(2): result 0, with what `mask` asks for (STATX_BASIC_STATS …) in `*statxbuf`.
///
/// `path` is copied (an empty one with AT_EMPTY_PATH asks about `dirfd` itself); `statxbuf` is borrowed until the final
/// event. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_statx(
    dirfd: i32,
    path: *const c_char,
    flags: i32,
    mask: u32,
    statxbuf: *mut libc::statx,
) -> upcall_op {
    upcall_op {
        fd: dirfd,
        addr: path as u64,
        addr2: statxbuf as u64,
        arg: flags as u32,
        arg2: mask,
        ..blank(UPCALL_OP_STATX)
    }
}

/// An interrupted close has closed (close(2)); trying again would close somebody else's.
fn close(args: &Args) -> i64 {
    match sys::close(args.fd()) {
        error if error == -i64::from(libc::EINTR) => 0,
        result => result,
    }
}

/// Opening a FIFO or a device may wait without limit, so such a name gets a thread of its own; a first look tells.
fn attempt_open(args: &mut Args) -> Decision {
    if may_wait(args) && sys::names_fifo_or_device(args.fd(), args.ptr(), args.arg as i32 & libc::O_NOFOLLOW != 0) {
        return Decision::Own;
    }
    Decision::Pool
}

fn may_wait(args: &Args) -> bool {
    args.arg as i32 & (libc::O_NONBLOCK | libc::O_PATH | libc::O_DIRECTORY) == 0
}

/// `stage` of a native open: the name was looked at.
const LOOKED: u32 = 1;

/// io_uring opens a FIFO as if with O_NONBLOCK and then forgets that (6.18): it neither waits for the other side nor says
/// that there is none. So a name that may wait is looked at first, by the ring as well.
fn ring_open(args: &Args) -> Entry {
    let flags = args.arg as i32;
    if args.stage != LOOKED && may_wait(args) {
        let follow = if flags & libc::O_NOFOLLOW != 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
        return opcode::Statx::new(types::Fd(args.fd()), args.ptr(), args.ptr2())
            .flags(follow | libc::AT_STATX_DONT_SYNC)
            .mask(libc::STATX_TYPE)
            .build();
    }
    opcode::OpenAt::new(types::Fd(args.fd()), args.ptr()).flags(flags | libc::O_CLOEXEC).mode(args.arg2).build()
}

fn amend_open(args: &mut Args, result: i64) -> Option<Decision> {
    if args.stage == LOOKED || !may_wait(args) {
        return None;
    }
    args.stage = LOOKED;
    // SAFETY: `addr2` names the side block's statx, which the kernel filled in.
    let mode = unsafe { (*args.ptr2::<libc::statx>()).stx_mode };
    let waits = matches!(libc::mode_t::from(mode) & libc::S_IFMT, libc::S_IFIFO | libc::S_IFCHR);
    // A name that cannot be looked at may yet be made (O_CREAT), and opening it says what is wrong.
    Some(if result == 0 && waits { Decision::Own } else { Decision::Native })
}

fn block_open(args: &Args) -> i64 {
    sys::openat(args.fd(), args.ptr(), args.arg as i32 | libc::O_CLOEXEC, args.arg2)
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_OPEN,
        name: "open",
        facts: DIRFD | NEW_FD | AMENDS_ALL,
        check: Some(|op| check_path(op.addr, "path")),
        copy: Some(|args, side, _| {
            args.addr = side.keep_path(args.addr);
            args.addr2 = side.blank_statx();
        }),
        opcode: Some(opcode::OpenAt::CODE),
        ring: form!(|args| ring_open(args)),
        amend: Some(amend_open),
        attempt: Some(attempt_open),
        block: Some(block_open),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_CLOSE,
        name: "close",
        facts: FD | CLOSES,
        opcode: Some(opcode::Close::CODE),
        ring: form!(|args| opcode::Close::new(types::Fd(args.fd())).build()),
        // A file's close may wait for its server, a lingering socket's for its peer; anything else ends at once.
        attempt: Some(|args| match sys::close_may_wait(args.fd()) {
            true => Decision::Pool,
            false => Decision::Done(close(args)),
        }),
        block: Some(close),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_STATX,
        name: "statx",
        facts: DIRFD,
        check: Some(|op| match op.addr2 {
            0 => invalid("statxbuf is NULL"),
            _ => check_path(op.addr, "path"),
        }),
        copy: Some(|args, side, _| args.addr = side.keep_path(args.addr)),
        opcode: Some(opcode::Statx::CODE),
        ring: form!(|args| {
            opcode::Statx::new(types::Fd(args.fd()), args.ptr(), args.ptr2())
                .flags(args.arg as i32)
                .mask(args.arg2)
                .build()
        }),
        block: Some(|args| sys::statx(args.fd(), args.ptr(), args.arg as i32, args.arg2, args.ptr2())),
        ..OpDef::BASE
    },
];
