//! Files: positional reads and writes, making them durable, and their room on the disk and in memory.
//!
//! Outside io_uring a read or write is tried with RWF_NOWAIT first, so that cached data never pays for a thread. A short
//! answer to that is not end of file (measured), so the rest goes to the pool.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use std::ffi::c_void;

/// Kind of upcall_op_pread(). Since 0.1.
pub const UPCALL_OP_PREAD: upcall_kind = 8;
/// Kind of upcall_op_pwrite(). Since 0.1.
pub const UPCALL_OP_PWRITE: upcall_kind = 9;
/// Kind of upcall_op_preadv(). Since 0.1.
pub const UPCALL_OP_PREADV: upcall_kind = 10;
/// Kind of upcall_op_pwritev(). Since 0.1.
pub const UPCALL_OP_PWRITEV: upcall_kind = 11;
/// Kind of upcall_op_fsync(). Since 0.1.
pub const UPCALL_OP_FSYNC: upcall_kind = 12;
/// Kind of upcall_op_fdatasync(). Since 0.1.
pub const UPCALL_OP_FDATASYNC: upcall_kind = 13;
/// Kind of upcall_op_sync_range(). Since 0.1.
pub const UPCALL_OP_SYNC_RANGE: upcall_kind = 14;
/// Kind of upcall_op_fallocate(). Since 0.1.
pub const UPCALL_OP_FALLOCATE: upcall_kind = 15;
/// Kind of upcall_op_ftruncate(). Since 0.1.
pub const UPCALL_OP_FTRUNCATE: upcall_kind = 16;
/// Kind of upcall_op_fadvise(). Since 0.1.
pub const UPCALL_OP_FADVISE: upcall_kind = 17;
/// Kind of upcall_op_madvise(). Since 0.1.
pub const UPCALL_OP_MADVISE: upcall_kind = 18;

/// @brief pread(2): up to `len` bytes from `offset` of a file into `buf`. The rule for files: no shared position.
///
/// `buf` is borrowed until the final event. Result: bytes read, 0 at end of file. A stream is -ESPIPE, a negative offset
/// -EINVAL. Once started on a disk it cannot be cancelled. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_pread(fd: i32, buf: *mut c_void, len: usize, offset: i64) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, offset: offset as u64, ..blank(UPCALL_OP_PREAD) }
}

/// @brief pwrite(2): up to `len` bytes from `buf` to `offset` of a file.
///
/// `buf` is borrowed until the final event. Result: bytes written. A stream is -ESPIPE, a negative offset -EINVAL; past
/// RLIMIT_FSIZE it is -EFBIG and no signal is raised. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_pwrite(fd: i32, buf: *const c_void, len: usize, offset: i64) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, offset: offset as u64, ..blank(UPCALL_OP_PWRITE) }
}

/// @brief preadv2(2): as upcall_op_pread() into `n` parts, at most 1024.
///
/// The array is copied; the memory its entries name is borrowed until the final event. `rwf_flags`: RWF_DSYNC, RWF_APPEND …
/// of <sys/uio.h>; what the kernel or the file system does not know is -EOPNOTSUPP. RWF_NOWAIT is -EINVAL: an operation
/// waits. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_preadv(
    fd: i32,
    iov: *const libc::iovec,
    n: usize,
    offset: i64,
    rwf_flags: i32,
) -> upcall_op {
    upcall_op {
        fd,
        addr: iov as u64,
        len: n as u64,
        offset: offset as u64,
        arg: rwf_flags as u32,
        ..blank(UPCALL_OP_PREADV)
    }
}

/// @brief pwritev2(2): as upcall_op_pwrite() from `n` parts, at most 1024; with RWF_APPEND to the end of the file, wherever
/// that is.
///
/// The array is copied; the memory its entries name is borrowed until the final event. `rwf_flags` as for
/// upcall_op_preadv(). Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_pwritev(
    fd: i32,
    iov: *const libc::iovec,
    n: usize,
    offset: i64,
    rwf_flags: i32,
) -> upcall_op {
    upcall_op { kind: UPCALL_OP_PWRITEV, ..upcall_op_preadv(fd, iov, n, offset, rwf_flags) }
}

/// @brief fsync(2). Result 0 when the file's data and metadata are on the device. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fsync(fd: i32) -> upcall_op {
    upcall_op { fd, ..blank(UPCALL_OP_FSYNC) }
}

/// @brief fdatasync(2): as upcall_op_fsync(), but for metadata that reading the data does not need. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fdatasync(fd: i32) -> upcall_op {
    upcall_op { fd, ..blank(UPCALL_OP_FDATASYNC) }
}

/// @brief sync_file_range(2). Result 0 when what `flags` (SYNC_FILE_RANGE_WRITE …) asks for is done with the `len`
/// bytes at `offset`; a `len` of 0 reaches to the end of the file. It makes nothing durable by itself: see its manual
/// page.
///
/// A stream is -ESPIPE; a negative offset or length is -EINVAL. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_sync_range(fd: i32, offset: i64, len: i64, flags: u32) -> upcall_op {
    upcall_op { fd, offset: offset as u64, len: len as u64, arg: flags, ..blank(UPCALL_OP_SYNC_RANGE) }
}

/// @brief fallocate(2). Result 0 when the `len` bytes at `offset` have room on the disk, or what else `mode`
/// (FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE …) asks for.
///
/// A mode the file system does not know is -EOPNOTSUPP; past RLIMIT_FSIZE it is -EFBIG and no signal is raised; no room is
/// -ENOSPC; a negative offset, or a length below 1, is -EINVAL. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fallocate(fd: i32, mode: i32, offset: i64, len: i64) -> upcall_op {
    upcall_op { fd, offset: offset as u64, len: len as u64, arg: mode as u32, ..blank(UPCALL_OP_FALLOCATE) }
}

/// @brief ftruncate(2). Result 0 when the file has `len` bytes. A negative length, or a descriptor not open for
/// writing, is -EINVAL; past RLIMIT_FSIZE it is -EFBIG and no signal is raised. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_ftruncate(fd: i32, len: i64) -> upcall_op {
    upcall_op { fd, len: len as u64, ..blank(UPCALL_OP_FTRUNCATE) }
}

/// @brief posix_fadvise(2): tells the kernel how the `len` bytes at `offset` will be used: POSIX_FADV_WILLNEED,
/// POSIX_FADV_DONTNEED …; a `len` of 0 reaches to the end of the file. Result 0, or a negative errno: -EINVAL for an
/// unknown advice, -ESPIPE for a pipe. A negative offset or length is -EINVAL. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fadvise(fd: i32, offset: i64, len: i64, advice: i32) -> upcall_op {
    upcall_op { fd, offset: offset as u64, len: len as u64, arg: advice as u32, ..blank(UPCALL_OP_FADVISE) }
}

/// @brief madvise(2): tells the kernel how the `len` bytes of memory at `addr`, the start of a page, will be used:
/// MADV_WILLNEED, MADV_DONTNEED, MADV_POPULATE_READ … Result 0.
///
/// The memory is borrowed until the final event: it must stay mapped. -ENOMEM where nothing is mapped; -EINVAL for an
/// unknown advice or an address inside a page. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_madvise(addr: *mut c_void, len: usize, advice: i32) -> upcall_op {
    upcall_op { addr: addr as u64, len: len as u64, arg: advice as u32, ..blank(UPCALL_OP_MADVISE) }
}

fn check_positional(op: &upcall_op) -> Checked {
    check_not_negative(op.offset, "offset")?;
    check_data(op)
}

fn check_positional_vector(op: &upcall_op) -> Checked {
    check_not_negative(op.offset, "offset")?;
    if op.arg as i32 & sys::RWF_NOWAIT != 0 {
        return invalid("rwf_flags has RWF_NOWAIT: an operation waits; use a deadline or cancel");
    }
    check_vector(op.addr, op.len)
}

fn check_range(op: &upcall_op) -> Checked {
    check_not_negative(op.offset, "offset")?;
    check_not_negative(op.len, "len")
}

/// A hint to poll for the device's answer, which a ring that does not poll refuses with EINVAL.
const RWF_HIPRI: i32 = 1;

/// The flags as the ring takes them.
fn ring_flags(args: &Args) -> i32 {
    args.arg as i32 & !RWF_HIPRI
}

fn part_of(args: &Args) -> libc::iovec {
    libc::iovec { iov_base: args.ptr(), iov_len: args.call_len() as usize }
}

/// Reads what is cached.
fn read_now(args: &Args, iov: *const libc::iovec, count: usize, flags: i32) -> Decision {
    let result = sys::preadv2(args.fd(), iov, count, args.offset as i64, sys::RWF_NOWAIT | flags);
    unless_short(result, sys::total_of(iov, count).min(MAX_RW_COUNT))
}

/// The rest of a short answer may be on the disk still: only a thread can tell the end of the file from it.
fn unless_short(result: i64, wanted: u64) -> Decision {
    match -result as i32 {
        libc::EAGAIN | libc::EOPNOTSUPP => Decision::Pool,
        _ if result >= 0 && (result as u64) < wanted => Decision::Pool,
        _ => Decision::Done(result),
    }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_PREAD,
        name: "pread",
        facts: FD | MOVES | CAN_FULL | POSITIONAL | INWARD,
        check: Some(check_positional),
        opcode: Some(opcode::Read::CODE),
        ring: form!(|args| {
            opcode::Read::new(types::Fd(args.fd()), args.ptr(), args.call_len()).offset(args.offset).build()
        }),
        attempt: Some(|args| read_now(args, &part_of(args), 1, 0)),
        block: Some(|args| sys::pread(args.fd(), args.ptr(), args.call_len() as usize, args.offset as i64)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_PWRITE,
        name: "pwrite",
        facts: FD | MOVES | CAN_FULL | POSITIONAL,
        check: Some(check_positional),
        opcode: Some(opcode::Write::CODE),
        ring: form!(|args| {
            opcode::Write::new(types::Fd(args.fd()), args.ptr(), args.call_len()).offset(args.offset).build()
        }),
        // Not attempted on the loop's thread: a write past RLIMIT_FSIZE would raise SIGXFSZ there; pool threads block it.
        block: Some(|args| sys::pwrite(args.fd(), args.ptr(), args.call_len() as usize, args.offset as i64)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_PREADV,
        name: "preadv",
        facts: FD | MOVES | CAN_FULL | POSITIONAL | INWARD | VECTOR,
        check: Some(check_positional_vector),
        copy: Some(|args, side, _| side.keep_vector(args)),
        opcode: Some(opcode::Readv::CODE),
        ring: form!(|args| {
            opcode::Readv::new(types::Fd(args.fd()), args.ptr(), args.len as u32)
                .offset(args.offset)
                .rw_flags(ring_flags(args))
                .build()
        }),
        attempt: Some(|args| read_now(args, args.ptr(), args.len as usize, args.arg as i32)),
        block: Some(|args| sys::preadv2(args.fd(), args.ptr(), args.len as usize, args.offset as i64, args.arg as i32)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_PWRITEV,
        name: "pwritev",
        facts: FD | MOVES | CAN_FULL | POSITIONAL | VECTOR,
        check: Some(check_positional_vector),
        copy: Some(|args, side, _| side.keep_vector(args)),
        opcode: Some(opcode::Writev::CODE),
        ring: form!(|args| {
            opcode::Writev::new(types::Fd(args.fd()), args.ptr(), args.len as u32)
                .offset(args.offset)
                .rw_flags(ring_flags(args))
                .build()
        }),
        // Not attempted, as pwrite.
        block: Some(|args| {
            sys::pwritev2(args.fd(), args.ptr(), args.len as usize, args.offset as i64, args.arg as i32)
        }),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FSYNC,
        name: "fsync",
        facts: FD,
        opcode: Some(opcode::Fsync::CODE),
        ring: form!(|args| opcode::Fsync::new(types::Fd(args.fd())).build()),
        block: Some(|args| sys::fsync(args.fd())),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FDATASYNC,
        name: "fdatasync",
        facts: FD,
        opcode: Some(opcode::Fsync::CODE),
        ring: form!(|args| opcode::Fsync::new(types::Fd(args.fd())).flags(types::FsyncFlags::DATASYNC).build()),
        block: Some(|args| sys::fdatasync(args.fd())),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SYNC_RANGE,
        name: "sync_range",
        facts: FD | NARROW,
        check: Some(check_range),
        opcode: Some(opcode::SyncFileRange::CODE),
        ring: form!(|args| {
            opcode::SyncFileRange::new(types::Fd(args.fd()), args.len as u32)
                .offset(args.offset)
                .flags(args.arg)
                .build()
        }),
        block: Some(|args| sys::sync_file_range(args.fd(), args.offset as i64, args.len as i64, args.arg)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FALLOCATE,
        name: "fallocate",
        facts: FD,
        check: Some(|op| match op.len {
            0 => invalid("len is 0"),
            _ => check_range(op),
        }),
        opcode: Some(opcode::Fallocate::CODE),
        ring: form!(|args| {
            opcode::Fallocate::new(types::Fd(args.fd()), args.len).offset(args.offset).mode(args.arg as i32).build()
        }),
        block: Some(|args| sys::fallocate(args.fd(), args.arg as i32, args.offset as i64, args.len as i64)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FTRUNCATE,
        name: "ftruncate",
        facts: FD,
        check: Some(|op| check_not_negative(op.len, "len")),
        opcode: Some(opcode::Ftruncate::CODE),
        ring: form!(|args| opcode::Ftruncate::new(types::Fd(args.fd()), args.len).build()),
        block: Some(|args| sys::ftruncate(args.fd(), args.len as i64)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FADVISE,
        name: "fadvise",
        facts: FD | NARROW,
        check: Some(check_range),
        opcode: Some(opcode::Fadvise::CODE),
        ring: form!(|args| {
            opcode::Fadvise::new(types::Fd(args.fd()), args.len as i64, args.arg as i32).offset(args.offset).build()
        }),
        block: Some(|args| sys::fadvise(args.fd(), args.offset as i64, args.len as i64, args.arg as i32)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_MADVISE,
        name: "madvise",
        facts: NARROW,
        opcode: Some(opcode::Madvise::CODE),
        ring: form!(|args| opcode::Madvise::new(args.ptr(), args.len as i64, args.arg as i32).build()),
        block: Some(|args| sys::madvise(args.ptr(), args.len as usize, args.arg as i32)),
        ..OpDef::BASE
    },
];
