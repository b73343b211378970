//! Files: positional reads and writes, and making them durable.
//!
//! Outside io_uring a read or write is tried with RWF_NOWAIT first, so that cached data never pays for a thread. A short
//! answer to that is not end of file (measured), so the rest goes to the pool.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use std::ffi::c_void;

/// Kind of upcall_op_pread().
pub const UPCALL_OP_PREAD: upcall_kind = 8;
/// Kind of upcall_op_pwrite().
pub const UPCALL_OP_PWRITE: upcall_kind = 9;
/// Kind of upcall_op_fsync().
pub const UPCALL_OP_FSYNC: upcall_kind = 12;
/// Kind of upcall_op_fdatasync().
pub const UPCALL_OP_FDATASYNC: upcall_kind = 13;

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

/// @brief fsync(2): result 0 when the file's data and metadata are on the device. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fsync(fd: i32) -> upcall_op {
    upcall_op { fd, ..blank(UPCALL_OP_FSYNC) }
}

/// @brief fdatasync(2): as upcall_op_fsync(), but for metadata that reading the data does not need. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fdatasync(fd: i32) -> upcall_op {
    upcall_op { fd, ..blank(UPCALL_OP_FDATASYNC) }
}

fn check_positional(op: &upcall_op) -> Checked {
    if (op.offset as i64) < 0 {
        return invalid(format!("offset is {}, less than 0", op.offset as i64));
    }
    check_data(op)
}

fn part_of(args: &Args) -> libc::iovec {
    libc::iovec { iov_base: args.ptr(), iov_len: args.call_len() as usize }
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
        attempt: Some(|args| {
            // For O_DIRECT the flag keeps nothing away but locks: the call waits for the disk (6.18: 1.1 ms per MiB).
            if sys::is_direct(args.fd()) {
                return Decision::Pool;
            }
            let result = sys::preadv2(args.fd(), &part_of(args), 1, args.offset as i64, sys::RWF_NOWAIT);
            unless_short(result, u64::from(args.call_len()))
        }),
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
];
