//! What every operation is checked for before any of a submit is accepted.

use super::buffers::Pool;
use super::shared::Shared;
use crate::abi::*;
use crate::ffi;
use crate::op::{self, OpDef, Refusal};
use crate::sys::checkers;
use std::sync::Arc;

const LINKS: u32 = UPCALL_LINK | UPCALL_LINK_ALWAYS;
const ORDER: u32 = LINKS | UPCALL_DRAIN;
const KNOWN: u32 = UPCALL_FULL | UPCALL_MULTISHOT | ORDER | UPCALL_ZEROCOPY | UPCALL_BACKGROUND;

/// What a submit needs.
#[derive(Default)]
pub(crate) struct Needs {
    /// Links or drains.
    pub order: bool,
    /// The clock.
    pub clock: bool,
    /// All to be admitted before any starts: pools, closes, memory checkers that are told of buffers.
    pub whole: bool,
    /// Any of the optional fields.
    pub options: bool,
}

/// What there is to check of an operation without options.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Plain {
    /// No such kind, or one that needs more (the clock, all of its submit): the long way.
    Never,
    /// Its arguments cannot be wrong.
    Always,
    /// What its `check` says.
    IfChecked,
}

static PLAIN: [Plain; op::KINDS] = {
    let mut table = [Plain::Never; op::KINDS];
    let mut kind = 1;
    while kind < op::KINDS {
        let def = op::of(kind as u8);
        if def.kind != 0 && !def.is(op::TIMER | op::CLOSES) {
            table[kind] = if def.check.is_some() { Plain::IfChecked } else { Plain::Always };
        }
        kind += 1;
    }
    table
};

/// Checks all of a submit.
#[inline(always)]
pub(crate) fn submission(ops: &[upcall_op], shared: &Arc<Shared>) -> Result<Needs, Refusal> {
    let mut needs = Needs { whole: checkers::any(), ..Needs::default() };
    for (number, operation) in ops.iter().enumerate() {
        let plain = match PLAIN.get(operation.kind as usize) {
            Some(&plain) if !has_options(operation) => plain,
            _ => Plain::Never,
        };
        let checked = match plain {
            Plain::Always => continue,
            Plain::IfChecked => op::of(operation.kind as u8).check.map_or(Ok(()), |check| check(operation)),
            Plain::Never => {
                needs.order |= operation.flags & ORDER != 0;
                let def = op::of(operation.kind as u8);
                needs.whole |= !operation.buffers.is_null() || def.is(op::CLOSES);
                needs.clock |= operation.timeout_ns != 0 || def.is(op::TIMER);
                needs.options = true;
                one(operation, number + 1 == ops.len(), shared)
            }
        };
        if let Err(refusal) = checked {
            return Err(place(refusal, operation.kind, number, ops.len()));
        }
    }
    Ok(needs)
}

/// Anything but its kind and arguments.
#[inline(always)]
fn has_options(operation: &upcall_op) -> bool {
    let reserved = operation.reserved[0] | operation.reserved[1] | operation.reserved[2] | operation.reserved[3];
    let others = operation.timeout_ns | operation.buffers as u64 | u64::from(operation.flags | operation.lend_max);
    reserved | others != 0
}

/// "op 3 of 4: recv: buf is NULL but len is 4096".
#[cold]
fn place(refusal: Refusal, kind: upcall_kind, number: usize, count: usize) -> Refusal {
    let text = format!("op {} of {count}: {}: {}", number + 1, ffi::kind_name(kind), refusal.text);
    Refusal { error: refusal.error, text: text.into() }
}

#[inline(never)]
fn one(operation: &upcall_op, last: bool, shared: &Arc<Shared>) -> Result<(), Refusal> {
    let Some(def) = op::find(operation.kind) else {
        return Err(refusal(format!("kind {} is not an operation", operation.kind)));
    };
    options(operation, def, last, shared)?;
    def.check.map_or(Ok(()), |check| check(operation))
}

#[cold]
fn refusal(text: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal { error: libc::EINVAL, text: text.into() }
}

fn options(operation: &upcall_op, def: &OpDef, last: bool, shared: &Arc<Shared>) -> Result<(), Refusal> {
    let has = |flags: u32| operation.flags & flags != 0;
    let refuse = |text: &'static str| Err(refusal(text));
    if has(!KNOWN) {
        return Err(refusal(format!("flags has unknown bits {:#x}", operation.flags & !KNOWN)));
    }
    if operation.reserved != [0; 4] {
        return refuse("reserved is not zero");
    }
    if has(UPCALL_FULL) && !def.is(op::CAN_FULL) {
        return refuse(
            "flags has UPCALL_FULL, which is for reads, writes, receives, sends, splice, sendfile and copy_range",
        );
    }
    if has(UPCALL_MULTISHOT) && !def.is(op::CAN_MULTI) {
        return refuse(
            "flags has UPCALL_MULTISHOT, which is for accept, recv, recvmsg, readdir, poll, sleep and signal",
        );
    }
    if has(UPCALL_ZEROCOPY) && !def.is(op::CAN_ZEROCOPY) {
        return refuse("flags has UPCALL_ZEROCOPY, which is for send and sendmsg");
    }
    if has(UPCALL_FULL) && (has(UPCALL_MULTISHOT) || !operation.buffers.is_null()) {
        return refuse("flags: UPCALL_FULL goes neither with UPCALL_MULTISHOT nor with buffers");
    }
    if has(LINKS) && has(UPCALL_MULTISHOT) {
        return refuse("flags: a multishot cannot be linked");
    }
    if has(UPCALL_LINK) && has(UPCALL_LINK_ALWAYS) {
        return refuse("flags: UPCALL_LINK and UPCALL_LINK_ALWAYS exclude each other");
    }
    if has(LINKS) && last {
        return refuse("flags: a link on the last op leads to nothing");
    }
    if operation.buffers.is_null() {
        if operation.lend_max != 0 {
            return refuse("lend_max is set but buffers is NULL");
        }
        if has(UPCALL_MULTISHOT) && def.is(op::MULTI_LENDS) {
            return refuse("flags: UPCALL_MULTISHOT needs buffers: each event lends one");
        }
        return Ok(());
    }
    if !def.is(op::CAN_LEND) {
        return refuse("buffers are for recv, recvmsg, read and readdir");
    }
    if operation.addr != 0 && !def.is(op::MESSAGE) {
        return refuse("buf must be NULL when buffers is set");
    }
    // SAFETY: the program passed a pool it has not freed.
    let pool = unsafe { &*operation.buffers.cast::<Pool>() };
    if !pool.belongs_to(shared) {
        return refuse("buffers belongs to another loop");
    }
    if def.is(op::MESSAGE) && operation.addr != 0 {
        let msg = op::side::message(operation.addr);
        let before =
            (size_of::<upcall_msg>() as u64 + u64::from(msg.msg_namelen)).saturating_add(msg.msg_controllen as u64);
        if before > u64::from(pool.size) {
            return refuse("a buffer has no room for upcall_msg, msg_namelen and msg_controllen");
        }
    }
    Ok(())
}
