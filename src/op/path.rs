//! Paths: opening, closing, and asking about files by name; making, naming and removing them.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use std::ffi::c_char;

/// Kind of upcall_op_open(). Since 0.1.
pub const UPCALL_OP_OPEN: upcall_kind = 20;
/// Kind of upcall_op_openat2(). Since 0.1.
pub const UPCALL_OP_OPENAT2: upcall_kind = 21;
/// Kind of upcall_op_close(). Since 0.1.
pub const UPCALL_OP_CLOSE: upcall_kind = 22;
/// Kind of upcall_op_statx(). Since 0.1.
pub const UPCALL_OP_STATX: upcall_kind = 23;
/// Kind of upcall_op_rename(). Since 0.1.
pub const UPCALL_OP_RENAME: upcall_kind = 24;
/// Kind of upcall_op_unlink(). Since 0.1.
pub const UPCALL_OP_UNLINK: upcall_kind = 25;
/// Kind of upcall_op_mkdir(). Since 0.1.
pub const UPCALL_OP_MKDIR: upcall_kind = 26;
/// Kind of upcall_op_symlink(). Since 0.1.
pub const UPCALL_OP_SYMLINK: upcall_kind = 27;
/// Kind of upcall_op_hardlink(). Since 0.1.
pub const UPCALL_OP_HARDLINK: upcall_kind = 28;

/// @brief openat(2). Result: a descriptor, close-on-exec. `dirfd` may be AT_FDCWD; `mode` counts with O_CREAT and
/// O_TMPFILE only.
///
/// `path` is copied. Opening a FIFO may wait for the other side without limit; it can be cancelled. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_open(dirfd: i32, path: *const c_char, flags: i32, mode: u32) -> upcall_op {
    upcall_op { fd: dirfd, addr: path as u64, arg: flags as u32, arg2: mode, ..blank(UPCALL_OP_OPEN) }
}

/// @brief openat2(2): as upcall_op_open(), with `how->resolve` (RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS …). Result: a
/// descriptor, close-on-exec whatever `how->flags` says.
///
/// `path` and `how` are copied. `size` is sizeof *how: less than the first version's 24 is -EINVAL, fields after these that
/// are not zero are -E2BIG. RESOLVE_CACHED is -EINVAL: an operation waits. A kernel without the call (before 5.6) is
/// -EOPNOTSUPP. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_openat2(
    dirfd: i32,
    path: *const c_char,
    how: *const libc::open_how,
    size: usize,
) -> upcall_op {
    upcall_op { fd: dirfd, addr: path as u64, offset: how as u64, len: size as u64, ..blank(UPCALL_OP_OPENAT2) }
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

/// @brief statx(2). Result 0, with what `mask` asks for (STATX_BASIC_STATS …) in `*statxbuf`.
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

/// @brief renameat2(2). Result 0 when `old` has the name `new`. `flags`: 0, RENAME_NOREPLACE, RENAME_EXCHANGE …
///
/// Both paths are copied; each directory may be AT_FDCWD. A flag the file system does not know is -EINVAL. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_rename(
    olddirfd: i32,
    old: *const c_char,
    newdirfd: i32,
    new: *const c_char,
    flags: u32,
) -> upcall_op {
    upcall_op {
        fd: olddirfd,
        addr: old as u64,
        addr2: new as u64,
        arg: flags,
        arg2: newdirfd as u32,
        ..blank(UPCALL_OP_RENAME)
    }
}

/// @brief unlinkat(2). Result 0 when the name is gone; with AT_REMOVEDIR in `flags` that of an empty directory, as
/// rmdir(2).
///
/// `path` is copied; `dirfd` may be AT_FDCWD. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_unlink(dirfd: i32, path: *const c_char, flags: i32) -> upcall_op {
    upcall_op { fd: dirfd, addr: path as u64, arg: flags as u32, ..blank(UPCALL_OP_UNLINK) }
}

/// @brief mkdirat(2). Result 0 when the directory is made, with the permissions of `mode` that the umask leaves.
///
/// `path` is copied; `dirfd` may be AT_FDCWD. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_mkdir(dirfd: i32, path: *const c_char, mode: u32) -> upcall_op {
    upcall_op { fd: dirfd, addr: path as u64, arg: mode, ..blank(UPCALL_OP_MKDIR) }
}

/// @brief symlinkat(2). Result 0 when `path` is a symbolic link to `target`, which need not exist.
///
/// `target` and `path` are copied; `dirfd`, which `path` is relative to, may be AT_FDCWD. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_symlink(target: *const c_char, dirfd: i32, path: *const c_char) -> upcall_op {
    upcall_op { fd: dirfd, addr: target as u64, addr2: path as u64, ..blank(UPCALL_OP_SYMLINK) }
}

/// @brief linkat(2). Result 0 when `new` is one more name of the file `old`. `flags`: 0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH
/// (`old` is empty and `olddirfd` the file itself).
///
/// Both paths are copied; each directory may be AT_FDCWD. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_hardlink(
    olddirfd: i32,
    old: *const c_char,
    newdirfd: i32,
    new: *const c_char,
    flags: i32,
) -> upcall_op {
    upcall_op { kind: UPCALL_OP_HARDLINK, ..upcall_op_rename(olddirfd, old, newdirfd, new, flags as u32) }
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
/// that there is none. So a name that may wait is looked at first, by the ring as well: None when it needs no look.
fn ring_look(args: &Args) -> Option<Entry> {
    if args.stage == LOOKED || !may_wait(args) {
        return None;
    }
    let follow = if args.arg as i32 & libc::O_NOFOLLOW != 0 { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    let look = opcode::Statx::new(types::Fd(args.fd()), args.ptr(), args.ptr2())
        .flags(follow | libc::AT_STATX_DONT_SYNC)
        .mask(libc::STATX_TYPE);
    Some(look.build())
}

fn ring_open(args: &Args) -> Entry {
    ring_look(args).unwrap_or_else(|| {
        opcode::OpenAt::new(types::Fd(args.fd()), args.ptr())
            .flags(args.arg as i32 | libc::O_CLOEXEC)
            .mode(args.arg2)
            .build()
    })
}

/// One that has to begin anew after that begins with the look.
fn by_a_thread(args: &mut Args) -> Decision {
    args.stage = 0;
    Decision::Own
}

fn amend_open(args: &mut Args, result: i64) -> Option<Decision> {
    if args.stage == LOOKED || !may_wait(args) {
        return None;
    }
    if matches!(-result as i32, libc::ECANCELED | libc::EAGAIN | libc::EINTR) {
        // Nobody has looked: the kernel could not make a worker (RLIMIT_NPROC).
        return Some(attempt_open(args));
    }
    args.stage = LOOKED;
    // SAFETY: `addr2` names the side block's statx, which the kernel filled in.
    let mode = unsafe { (*args.ptr2::<libc::statx>()).stx_mode };
    let waits = matches!(libc::mode_t::from(mode) & libc::S_IFMT, libc::S_IFIFO | libc::S_IFCHR);
    // A name that cannot be looked at may yet be made (O_CREAT), and opening it says what is wrong.
    Some(if result == 0 && waits { by_a_thread(args) } else { Decision::Native })
}

fn block_open(args: &Args) -> i64 {
    sys::openat(args.fd(), args.ptr(), args.arg as i32 | libc::O_CLOEXEC, args.arg2)
}

/// The size of the first open_how, which is all that the copy has.
const HOW_SIZE: u64 = size_of::<side::How>() as u64;

fn check_openat2(op: &upcall_op) -> Checked {
    check_path(op.addr, "path")?;
    if op.offset == 0 {
        return invalid("how is NULL");
    }
    if op.len < HOW_SIZE {
        return invalid(format!("size is {}, less than {HOW_SIZE}", op.len));
    }
    // As openat2(2): a page at most, and nothing in what is not known here.
    if op.len > 4096 || side::bytes(op.offset + HOW_SIZE, op.len - HOW_SIZE).iter().any(|&byte| byte != 0) {
        return refuse(libc::E2BIG, format!("how has fields after its first {HOW_SIZE} bytes that are not known"));
    }
    if side::how(op.offset).resolve & libc::RESOLVE_CACHED != 0 {
        return invalid("how.resolve has RESOLVE_CACHED: an operation waits; use a deadline or cancel");
    }
    Ok(())
}

/// The other ways to resolve fail where they lead elsewhere than a plain look; with RESOLVE_IN_ROOT the same name may be
/// another file, so its look is not to be believed.
fn is_seen_otherwise(args: &Args) -> bool {
    may_wait(args) && args.arg2 != 0
}

fn attempt_openat2(args: &mut Args) -> Decision {
    if is_seen_otherwise(args) { Decision::Own } else { attempt_open(args) }
}

fn amend_openat2(args: &mut Args, result: i64) -> Option<Decision> {
    if is_empty_path(args.ptr(), result) {
        return Some(Decision::Pool);
    }
    let looked = args.stage != LOOKED && is_seen_otherwise(args);
    amend_open(args, result).map(|decision| if looked { by_a_thread(args) } else { decision })
}

fn block_openat2(args: &Args) -> i64 {
    match sys::openat2(args.fd(), args.ptr(), args.offset as usize as *const _, HOW_SIZE as usize) {
        none if none == -i64::from(libc::ENOSYS) => -i64::from(libc::EOPNOTSUPP),
        result => result,
    }
}

/// The ring looks at a path before it looks at flags, the system calls the other way round (6.18): where both are wrong,
/// what a thread is told is the answer.
fn is_empty_path(path: *const c_char, result: i64) -> bool {
    // SAFETY: the side block's NUL-terminated copy.
    result == -i64::from(libc::ENOENT) && unsafe { *path } == 0
}

fn amend_paths(args: &mut Args, result: i64) -> Option<Decision> {
    let empty = is_empty_path(args.ptr(), result) || is_empty_path(args.ptr2(), result);
    empty.then_some(Decision::Pool)
}

fn check_paths(op: &upcall_op) -> Checked {
    check_path(op.addr, "old")?;
    check_path(op.addr2, "new")
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
        kind: UPCALL_OP_OPENAT2,
        name: "openat2",
        facts: DIRFD | NEW_FD | AMENDS_ALL,
        check: Some(check_openat2),
        copy: Some(|args, side, _| {
            let how = side::how(args.offset);
            args.addr = side.keep_path(args.addr);
            args.addr2 = side.blank_statx();
            args.offset = side.keep_how(args.offset);
            args.arg = how.flags as u32;
            args.arg2 = (how.resolve & libc::RESOLVE_IN_ROOT) as u32;
        }),
        opcode: Some(opcode::OpenAt2::CODE),
        ring: form!(|args| {
            ring_look(args).unwrap_or_else(|| {
                opcode::OpenAt2::new(types::Fd(args.fd()), args.ptr(), args.offset as usize as *const _).build()
            })
        }),
        amend: Some(amend_openat2),
        attempt: Some(attempt_openat2),
        block: Some(block_openat2),
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
        amend: Some(|args, result| is_empty_path(args.ptr(), result).then_some(Decision::Pool)),
        block: Some(|args| sys::statx(args.fd(), args.ptr(), args.arg as i32, args.arg2, args.ptr2())),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_RENAME,
        name: "rename",
        facts: DIRFD | TWO_FDS,
        check: Some(check_paths),
        copy: Some(keep_paths),
        opcode: Some(opcode::RenameAt::CODE),
        ring: form!(|args| {
            opcode::RenameAt::new(types::Fd(args.fd()), args.ptr(), types::Fd(args.fd2()), args.ptr2())
                .flags(args.arg)
                .build()
        }),
        amend: Some(amend_paths),
        block: Some(|args| sys::renameat2(args.fd(), args.ptr(), args.fd2(), args.ptr2(), args.arg)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_UNLINK,
        name: "unlink",
        facts: DIRFD,
        check: Some(|op| check_path(op.addr, "path")),
        copy: Some(|args, side, _| args.addr = side.keep_path(args.addr)),
        opcode: Some(opcode::UnlinkAt::CODE),
        ring: form!(|args| opcode::UnlinkAt::new(types::Fd(args.fd()), args.ptr()).flags(args.arg as i32).build()),
        block: Some(|args| sys::unlinkat(args.fd(), args.ptr(), args.arg as i32)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_MKDIR,
        name: "mkdir",
        facts: DIRFD,
        check: Some(|op| check_path(op.addr, "path")),
        copy: Some(|args, side, _| args.addr = side.keep_path(args.addr)),
        opcode: Some(opcode::MkDirAt::CODE),
        ring: form!(|args| opcode::MkDirAt::new(types::Fd(args.fd()), args.ptr()).mode(args.arg).build()),
        block: Some(|args| sys::mkdirat(args.fd(), args.ptr(), args.arg)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SYMLINK,
        name: "symlink",
        facts: DIRFD,
        check: Some(|op| {
            check_path(op.addr, "target")?;
            check_path(op.addr2, "path")
        }),
        copy: Some(keep_paths),
        opcode: Some(opcode::SymlinkAt::CODE),
        ring: form!(|args| opcode::SymlinkAt::new(types::Fd(args.fd()), args.ptr(), args.ptr2()).build()),
        block: Some(|args| sys::symlinkat(args.ptr(), args.fd(), args.ptr2())),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_HARDLINK,
        name: "hardlink",
        facts: DIRFD | TWO_FDS,
        check: Some(check_paths),
        copy: Some(keep_paths),
        opcode: Some(opcode::LinkAt::CODE),
        ring: form!(|args| {
            opcode::LinkAt::new(types::Fd(args.fd()), args.ptr(), types::Fd(args.fd2()), args.ptr2())
                .flags(args.arg as i32)
                .build()
        }),
        amend: Some(amend_paths),
        block: Some(|args| sys::linkat(args.fd(), args.ptr(), args.fd2(), args.ptr2(), args.arg as i32)),
        ..OpDef::BASE
    },
];
