//! What threads that do not own a loop ask of it. Metadata is copied and ids are given out here; the rest is the owner's, who
//! finds it in the inbox.

use super::shared::{Accepted, Message, Owner, Shared, Submission};
use super::slot::index_of;
use super::{admit, check};
use crate::abi::*;
use crate::op::side::Side;
use crate::op::{self, Args, Refusal};
use crate::sys::{self, checkers};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn refuse(error: i32, text: &'static str) -> Refusal {
    Refusal { error, text: text.into() }
}

/// Accepts all of a submit, or none.
#[cold]
pub(super) fn submit(
    shared: &Arc<Shared>,
    ops: &[upcall_op],
    mut ids: Option<&mut [MaybeUninit<u64>]>,
) -> Result<(), Refusal> {
    if shared.owner() == Owner::Dead {
        return Err(refuse(libc::EOWNERDEAD, "upcall_submit: the loop's owner thread has exited"));
    }
    let Some(_entered) = shared.enter() else {
        return Err(refuse(libc::ESHUTDOWN, "upcall_submit: the loop is closing or closed"));
    };
    let needs = check::submission(ops, shared)?;
    let at = if needs.clock { sys::now() } else { 0 };
    let mut accepted = Vec::with_capacity(ops.len());
    for operation in ops {
        match accept(shared, operation) {
            Ok(one) => accepted.push(one),
            Err(refusal) => {
                for one in accepted {
                    take_back(shared, one);
                }
                return Err(refusal);
            }
        }
    }
    // From here on nothing can fail: what is noted stays noted until the owner has seen it.
    for (number, one) in accepted.iter().enumerate() {
        if op::of(one.op.kind as u8).is(op::TWO_FDS) {
            shared.seconds.insert(one.args.fd2(), one.id);
        }
        if let Some(ids) = ids.as_deref_mut() {
            ids[number].write(one.id);
        }
    }
    if !accepted.is_empty() {
        shared.submitted_outside.fetch_add(accepted.len() as u64, Ordering::Relaxed);
        shared.tell(Message::Submit(Box::new(Submission { accepted, at })));
    }
    Ok(())
}

/// One operation: a slot, and its metadata copied.
fn accept(shared: &Arc<Shared>, operation: &upcall_op) -> Result<Accepted, Refusal> {
    let def = op::of(operation.kind as u8);
    let mut one = Accepted { op: *operation, id: 0, args: Args::blank(), side: None };
    one.args.fill(operation, def);
    if def.copy.is_some() || !operation.buffers.is_null() || checkers::any() {
        let mut side = Box::new(Side::new());
        admit::copy_metadata(def, operation, &mut one.args, &mut side);
        if checkers::any() {
            admit::watch(def, operation, &mut side);
        }
        admit::borrow_pool(operation, &mut side)?;
        one.side = Some(side);
    }
    let Some(index) = shared.take_foreign() else {
        leave_pool(&mut one);
        return Err(refuse(libc::EAGAIN, "config.max_operations are in flight"));
    };
    one.id = shared.table.open_foreign(index, one.args.fd());
    Ok(one)
}

fn leave_pool(one: &mut Accepted) {
    if let Some(pool) = one.side.as_mut().and_then(|side| side.pool.take()) {
        pool.leave();
    }
}

fn take_back(shared: &Shared, mut one: Accepted) {
    leave_pool(&mut one);
    let index = index_of(one.id);
    if shared.table.shut_foreign(index) {
        shared.put_back_foreign(index);
    }
}

/// False: no such operation in flight.
pub(super) fn cancel(shared: &Shared, id: u64) -> bool {
    let found = shared.table.is_in_flight(id);
    if found {
        shared.tell(Message::Cancel(id));
    }
    found
}

/// Cancels everything (on a descriptor); returns how many were asked.
pub(super) fn cancel_each(shared: &Shared, fd: Option<i32>) -> i32 {
    let mut ids = shared.table.ids_in_flight(fd);
    if let Some(fd) = fd {
        let seconds = shared.seconds.on(fd);
        ids.extend(seconds.into_iter().filter(|id| shared.table.is_in_flight(*id)));
        ids.sort_unstable();
        ids.dedup();
    }
    for &id in &ids {
        shared.tell(Message::Cancel(id));
    }
    ids.len() as i32
}

/// False: the loop is closing or closed.
pub(super) fn post(
    shared: &Shared,
    function: unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void),
    arg: *mut c_void,
) -> bool {
    let Some(_entered) = shared.enter() else { return false };
    shared.tell(Message::Post(function, arg));
    true
}
