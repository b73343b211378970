//! Extended attributes, by path and by descriptor.

use super::*;
use crate::sys;
use io_uring::{opcode, types};
use std::ffi::{c_char, c_void};

/// Kind of upcall_op_getxattr(). Since 0.1.
pub const UPCALL_OP_GETXATTR: upcall_kind = 29;
/// Kind of upcall_op_setxattr(). Since 0.1.
pub const UPCALL_OP_SETXATTR: upcall_kind = 30;
/// Kind of upcall_op_fgetxattr(). Since 0.1.
pub const UPCALL_OP_FGETXATTR: upcall_kind = 31;
/// Kind of upcall_op_fsetxattr(). Since 0.1.
pub const UPCALL_OP_FSETXATTR: upcall_kind = 32;

/// @brief getxattr(2). Result: the length of the value of the extended attribute `name` of the file `path`, put into
/// `value`. With a `size` of 0 the length alone.
///
/// `path` and `name` are copied; `value` is borrowed until the final event. No such attribute is -ENODATA; a value longer
/// than `size` is -ERANGE; a file system without attributes is -EOPNOTSUPP. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_getxattr(
    path: *const c_char,
    name: *const c_char,
    value: *mut c_void,
    size: usize,
) -> upcall_op {
    upcall_op {
        addr: path as u64,
        addr2: name as u64,
        offset: value as u64,
        len: size as u64,
        ..blank(UPCALL_OP_GETXATTR)
    }
}

/// @brief setxattr(2). Result 0 when the extended attribute `name` of the file `path` has the `size` bytes of `value`.
/// `flags`: 0, XATTR_CREATE (-EEXIST where it is there), XATTR_REPLACE (-ENODATA where it is not).
///
/// `path`, `name` and `value` are copied. More than XATTR_SIZE_MAX (65536) bytes are -E2BIG, a name of more than
/// XATTR_NAME_MAX (255) is -ERANGE. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_setxattr(
    path: *const c_char,
    name: *const c_char,
    value: *const c_void,
    size: usize,
    flags: i32,
) -> upcall_op {
    upcall_op { kind: UPCALL_OP_SETXATTR, arg: flags as u32, ..upcall_op_getxattr(path, name, value.cast_mut(), size) }
}

/// @brief fgetxattr(2): as upcall_op_getxattr(), of the open file `fd`. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fgetxattr(fd: i32, name: *const c_char, value: *mut c_void, size: usize) -> upcall_op {
    upcall_op { fd, addr2: name as u64, offset: value as u64, len: size as u64, ..blank(UPCALL_OP_FGETXATTR) }
}

/// @brief fsetxattr(2): as upcall_op_setxattr(), of the open file `fd`. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_fsetxattr(
    fd: i32,
    name: *const c_char,
    value: *const c_void,
    size: usize,
    flags: i32,
) -> upcall_op {
    upcall_op { kind: UPCALL_OP_FSETXATTR, arg: flags as u32, ..upcall_op_fgetxattr(fd, name, value.cast_mut(), size) }
}

/// The longest value there is.
const SIZE_MAX: u64 = 65536;
/// The longest name.
const NAME_MAX: usize = 255;

fn check_get(op: &upcall_op) -> Checked {
    if op.addr2 == 0 {
        return invalid("name is NULL");
    }
    if side::string_len(op.addr2) > NAME_MAX {
        return refuse(libc::ERANGE, "name is longer than XATTR_NAME_MAX (255)");
    }
    if op.offset == 0 && op.len > 0 {
        return invalid(format!("value is NULL but size is {}", op.len));
    }
    Ok(())
}

fn check_set(op: &upcall_op) -> Checked {
    check_get(op)?;
    if op.len > SIZE_MAX {
        return refuse(libc::E2BIG, format!("size is {}, more than XATTR_SIZE_MAX (65536)", op.len));
    }
    Ok(())
}

fn keep_name(args: &mut Args, side: &mut side::Side, _: bool) {
    args.addr2 = side.keep_path2(args.addr2);
}

fn value<T>(args: &Args) -> *mut T {
    args.offset as usize as *mut T
}

/// More room than any value needs is no more than that.
fn size(args: &Args) -> u32 {
    args.len.min(SIZE_MAX) as u32
}

/// The ring looks at the name before the path and the descriptor, the system calls of 6.12 and earlier after them. They
/// tell what is wrong where more than the name is.
fn amend_name(args: &mut Args, result: i64) -> Option<Decision> {
    let usual = (1..=NAME_MAX).contains(&side::string_len(args.addr2));
    (result == -i64::from(libc::ERANGE) && !usual).then_some(Decision::Pool)
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_GETXATTR,
        name: "getxattr",
        check: Some(|op| {
            check_path(op.addr, "path")?;
            check_get(op)
        }),
        copy: Some(keep_paths),
        opcode: Some(opcode::GetXattr::CODE),
        ring: form!(|args| opcode::GetXattr::new(args.ptr2(), value(args), args.ptr(), size(args)).build()),
        amend: Some(amend_name),
        block: Some(|args| sys::getxattr(args.ptr(), args.ptr2(), value(args), size(args) as usize)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_SETXATTR,
        name: "setxattr",
        check: Some(|op| {
            check_path(op.addr, "path")?;
            check_set(op)
        }),
        copy: Some(|args, side, buffers| {
            keep_paths(args, side, buffers);
            args.offset = side.keep_bytes(args.offset, args.len);
        }),
        opcode: Some(opcode::SetXattr::CODE),
        ring: form!(|args| {
            opcode::SetXattr::new(args.ptr2(), value(args), args.ptr(), size(args)).flags(args.arg as i32).build()
        }),
        amend: Some(amend_name),
        block: Some(|args| sys::setxattr(args.ptr(), args.ptr2(), value(args), size(args) as usize, args.arg as i32)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FGETXATTR,
        name: "fgetxattr",
        facts: FD,
        check: Some(check_get),
        copy: Some(keep_name),
        opcode: Some(opcode::FGetXattr::CODE),
        ring: form!(|args| {
            opcode::FGetXattr::new(types::Fd(args.fd()), args.ptr2(), value(args), size(args)).build()
        }),
        amend: Some(amend_name),
        block: Some(|args| sys::fgetxattr(args.fd(), args.ptr2(), value(args), size(args) as usize)),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_FSETXATTR,
        name: "fsetxattr",
        facts: FD,
        check: Some(check_set),
        copy: Some(|args, side, buffers| {
            keep_name(args, side, buffers);
            args.offset = side.keep_bytes(args.offset, args.len);
        }),
        opcode: Some(opcode::FSetXattr::CODE),
        ring: form!(|args| {
            opcode::FSetXattr::new(types::Fd(args.fd()), args.ptr2(), value(args), size(args))
                .flags(args.arg as i32)
                .build()
        }),
        amend: Some(amend_name),
        block: Some(|args| sys::fsetxattr(args.fd(), args.ptr2(), value(args), size(args) as usize, args.arg as i32)),
        ..OpDef::BASE
    },
];
