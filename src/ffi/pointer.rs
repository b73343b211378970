//! Every pointer the program passes is looked at here: the rest of the surface reads as ordinary Rust.

use super::text::{fail, fail_with};
use crate::abi::*;
use crate::engine::Loop;
use crate::engine::buffers::Pool;
use crate::reader::Reader;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Which thread a function is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    Any,
    /// The owner; the first becomes it.
    Owner,
    /// The owner, outside its callbacks; the first becomes it.
    Turns,
    /// The owner outside its callbacks, or anyone when there is no living owner.
    Ends,
    /// The owner, or anyone while there is none.
    OwnerOrNone,
}

/// The loop behind a handle, if the calling thread may do this now.
///
/// # Safety
/// `handle` is NULL or a loop that was not freed.
#[inline(always)]
pub(super) unsafe fn gate<'a>(handle: *mut upcall_loop, what: &'static str, thread: Thread) -> Result<&'a Loop, i32> {
    if handle.is_null() {
        return Err(fail_with(libc::EINVAL, format_args!("{what}: loop is NULL")));
    }
    // SAFETY: a handle is a Loop made by `give`.
    let this = unsafe { &*handle.cast::<Loop>() };
    if this.is_forked() {
        return Err(fail_with(libc::ECHILD, format_args!("{what}: the loop belongs to the parent process")));
    }
    if thread != Thread::Any && (!this.shared().is_mine() || this.is_in_turn()) {
        check_thread(this, what, thread)?;
    }
    Ok(this)
}

#[cold]
fn check_thread(this: &Loop, what: &'static str, thread: Thread) -> Result<(), i32> {
    use crate::engine::shared::Owner;
    if matches!(thread, Thread::Turns | Thread::Ends) && this.is_in_turn() {
        return Err(fail_with(libc::EDEADLK, format_args!("{what}: called inside a callback of this loop")));
    }
    let allowed = match (thread, this.shared().owner()) {
        (Thread::Ends, Owner::Nobody | Owner::Dead) | (Thread::OwnerOrNone, Owner::Nobody) => Ok(()),
        _ => this.own(),
    };
    allowed.map_err(|error| {
        let why = match error {
            libc::EPERM => "another thread owns the loop",
            libc::EOWNERDEAD => "the loop's owner thread has exited: it can only be freed",
            _ => "the ring cannot be enabled",
        };
        fail_with(error, format_args!("{what}: {why}"))
    })
}

/// The program's place for a result.
///
/// # Safety
/// `place` is NULL or writable.
pub(super) unsafe fn out<'a, T>(place: *mut T) -> Option<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { place.as_mut() }
}

/// The program's ops.
///
/// # Safety
/// `ops` is NULL or `count` readable ops.
#[inline(always)]
pub(super) unsafe fn ops<'a>(ops: *const upcall_op, count: usize) -> Result<&'a [upcall_op], i32> {
    if count == 0 {
        return Ok(&[]);
    }
    if ops.is_null() {
        return Err(fail_with(libc::EINVAL, format_args!("upcall_submit: ops is NULL but count is {count}")));
    }
    if count > crate::engine::slot::MAX_SLOTS as usize {
        return Err(fail_with(
            libc::EAGAIN,
            format_args!("upcall_submit: count is {count}, more than any loop can have in flight"),
        ));
    }
    // SAFETY: the caller's promise, and a bounded count.
    Ok(unsafe { std::slice::from_raw_parts(ops, count) })
}

/// The program's room for ids.
///
/// # Safety
/// `ids` is NULL or `count` writable ids.
#[inline(always)]
pub(super) unsafe fn ids<'a>(ids: *mut upcall_id, count: usize) -> Option<&'a mut [MaybeUninit<u64>]> {
    if ids.is_null() || count > crate::engine::slot::MAX_SLOTS as usize {
        return None;
    }
    // SAFETY: the caller's promise, and a bounded count.
    Some(unsafe { std::slice::from_raw_parts_mut(ids.cast(), count) })
}

/// The program's room for events, at most what an int can count.
///
/// # Safety
/// `events` is NULL or room for `max` events.
pub(super) unsafe fn events<'a>(
    events: *mut upcall_event,
    max: usize,
) -> Result<&'a mut [MaybeUninit<upcall_event>], i32> {
    if max == 0 {
        return Ok(&mut []);
    }
    if events.is_null() {
        return Err(fail(libc::EINVAL, "upcall_reap: events is NULL"));
    }
    // SAFETY: the caller's promise; no more than `max`.
    Ok(unsafe { std::slice::from_raw_parts_mut(events.cast(), max.min(i32::MAX as usize / 64)) })
}

/// Copies the first `size` bytes of `value` to the program.
///
/// # Safety
/// `to` is NULL or `size` writable bytes.
pub(super) unsafe fn write_sized<T>(to: *mut T, size: usize, value: &T) {
    if !to.is_null() {
        // SAFETY: the caller's promise; not more than `value` has.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(value).cast::<u8>(),
                to.cast::<u8>(),
                size.min(size_of::<T>()),
            );
        }
    }
}

/// Fills the program's config: what it has room for, and zeros after what this library knows. `value` has its size.
///
/// # Safety
/// `to` is NULL or `size` writable bytes.
pub(super) unsafe fn write_config<T: Copy>(to: *mut T, size: usize, value: &T) {
    // SAFETY: the caller's promise.
    unsafe {
        write_sized(to, size, value);
        if !to.is_null() && size > size_of::<T>() {
            to.add(1).cast::<u8>().write_bytes(0, size - size_of::<T>());
        }
    }
}

/// Reads a config of the size it says (openat2(2)'s rule): a shorter one leaves defaults, a longer one must end in zeros.
/// `what` is who asks.
///
/// # Safety
/// `config` is NULL, or as many readable bytes as its first word says. `T` is plain words.
pub(super) unsafe fn read_config<T: Copy>(config: *const T, into: &mut T, what: &'static str) -> Result<(), i32> {
    if config.is_null() {
        return Ok(());
    }
    // SAFETY: the first word is readable.
    let size = unsafe { config.cast::<u32>().read_unaligned() } as usize;
    if size < size_of::<u32>() {
        return Err(fail_with(
            libc::EINVAL,
            format_args!("{what}: config.size is {size}: fill the config with its _init()"),
        ));
    }
    if size > 4096 {
        return Err(fail_with(libc::E2BIG, format_args!("{what}: config.size is {size}, more than a page")));
    }
    let known = size_of::<T>();
    // SAFETY: `size` readable bytes; the destination has `known`.
    let tail = unsafe {
        std::ptr::copy_nonoverlapping(config.cast::<u8>(), std::ptr::from_mut(into).cast::<u8>(), size.min(known));
        std::slice::from_raw_parts(config.cast::<u8>().add(size.min(known)), size.saturating_sub(known))
    };
    if tail.iter().any(|&byte| byte != 0) {
        return Err(fail_with(libc::E2BIG, format_args!("{what}: config has fields that this library does not know")));
    }
    Ok(())
}

/// Gives a loop to the program.
pub(super) fn give(made: Box<Loop>) -> *mut upcall_loop {
    Box::into_raw(made).cast()
}

/// Takes a finished loop's memory back.
///
/// # Safety
/// `handle` came from `give`, was finished, and is not used again.
pub(super) unsafe fn take(handle: *mut upcall_loop) -> i32 {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(handle.cast::<Loop>()) });
    0
}

/// In a forked child: closes descriptors; the memory stays, since the parent's threads may have been in the middle of it.
///
/// # Safety
/// `handle` came from `give` and is not used again in this process.
pub(super) unsafe fn abandon(handle: *mut upcall_loop) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { &*handle.cast::<Loop>() }.abandon();
    0
}

/// Gives a pool to the program.
pub(super) fn give_pool(pool: Arc<Pool>) -> *mut upcall_buffers {
    Arc::into_raw(pool).cast_mut().cast()
}

/// The pool behind a handle, held for as long as the answer is.
///
/// # Safety
/// `handle` is NULL or a pool that was not freed.
pub(super) unsafe fn pool(handle: *mut upcall_buffers) -> Option<Arc<Pool>> {
    if handle.is_null() {
        return None;
    }
    // SAFETY: a handle is an Arc made by `give_pool`; the program's own count stays.
    unsafe {
        Arc::increment_strong_count(handle.cast::<Pool>());
        Some(Arc::from_raw(handle.cast::<Pool>()))
    }
}

/// Takes the program's hold on a pool back.
///
/// # Safety
/// `handle` came from `give_pool` and is not used again.
pub(super) unsafe fn take_pool(handle: *mut upcall_buffers) -> i32 {
    // SAFETY: the caller's promise.
    drop(unsafe { Arc::from_raw(handle.cast::<Pool>()) });
    0
}

/// Gives a reader to the program.
pub(super) fn give_reader(made: Box<Reader>) -> *mut upcall_reader {
    Box::into_raw(made).cast()
}

/// The reader behind a handle.
///
/// # Safety
/// `handle` is NULL or a reader that was not freed.
pub(super) unsafe fn reader<'a>(handle: *mut upcall_reader) -> Option<&'a Reader> {
    // SAFETY: a handle is a Reader made by `give_reader`.
    unsafe { handle.cast::<Reader>().as_ref() }
}

/// Ends a reader and takes its memory back.
///
/// # Safety
/// `handle` came from `give_reader` and is not used again.
pub(super) unsafe fn take_reader(handle: *mut upcall_reader) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(handle.cast::<Reader>()) });
}
