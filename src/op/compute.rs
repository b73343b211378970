//! Computation on the pool, so that a long calculation does not hold up the loop.

use super::*;
use std::ffi::c_void;

/// Kind of upcall_op_work().
pub const UPCALL_OP_WORK: upcall_kind = 80;

/// @brief Runs `fn(arg)` on a thread of the loop's pool; result: what it returns.
///
/// `arg` is borrowed until the final event. Once running it cannot be cancelled. `fn` must return normally, and must not
/// poll the loop; it may submit, cancel and post. Works of a loop never take its last pool thread, so that files always
/// find one. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_work(r#fn: upcall_work_fn, arg: *mut c_void) -> upcall_op {
    let address = match r#fn {
        Some(function) => function as usize as u64,
        None => 0,
    };
    upcall_op { addr: address, addr2: arg as u64, ..blank(UPCALL_OP_WORK) }
}

fn run(args: &Args) -> i64 {
    // SAFETY: `addr` is a upcall_work_fn (checked: not NULL), put there by the constructor; Option of a function pointer
    // has the pointer's representation.
    let function: upcall_work_fn = unsafe { std::mem::transmute(args.addr as usize) };
    match function {
        // SAFETY: the program promised a function that may be called with `arg` on another thread.
        Some(function) => unsafe { function(args.ptr2()) },
        None => -i64::from(libc::EINVAL),
    }
}

pub(super) const OPS: &[OpDef] = &[OpDef {
    kind: UPCALL_OP_WORK,
    name: "work",
    facts: COMPUTE,
    check: Some(|op| match op.addr {
        0 => invalid("fn is NULL"),
        _ => Ok(()),
    }),
    block: Some(run),
    ..OpDef::BASE
}];
