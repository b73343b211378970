//! The read-ahead reader's part of the C surface.

use super::pointer;
use super::text::{fail, fail_with};
use crate::abi::*;
use crate::reader::{self, Reader};
use std::ffi::c_void;

/// The reader behind a handle, if this process may use it.
///
/// # Safety
/// `handle` is NULL or a reader that was not freed.
unsafe fn gate<'a>(handle: *mut upcall_reader, what: &'static str) -> Result<&'a Reader, i32> {
    // SAFETY: the caller's promise.
    match unsafe { pointer::reader(handle) } {
        None => Err(fail_with(libc::EINVAL, format_args!("{what}: reader is NULL"))),
        Some(this) if this.is_forked() => {
            Err(fail_with(libc::ECHILD, format_args!("{what}: the reader belongs to the parent process")))
        }
        Some(this) => Ok(this),
    }
}

/// @brief Fills the first `size` bytes of `*config` with the defaults: use upcall_reader_config_init().
///
/// `config` may be NULL (nothing is done). Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_config_init_sized(config: *mut upcall_reader_config, size: usize) {
    let sized = upcall_reader_config { size: size.min(u32::MAX as usize) as u32, ..reader::defaults() };
    // SAFETY: the program passed `size` writable bytes, or NULL.
    unsafe { pointer::write_config(config, size, &sized) };
}

/// @brief Begins to read file `fd` ahead, block after block. `config` NULL: the defaults.
///
/// A disk is never "ready", so a file cannot be waited for. A reader can: it keeps up to `config.depth` blocks in flight or
/// ready, on a thread of its own, and upcall_reader_fd() polls readable exactly when upcall_reader_next() has an answer. So
/// a file joins any select(2), poll(2) or epoll(7) loop; no upcall_loop is needed.
///
/// `fd` stays the program's: the reader has a duplicate of it, reads by position only, and neither uses nor moves the
/// file's own position. `fd` may be closed at once. (The duplicate is closed by upcall_reader_free(), and closing any
/// descriptor of a file drops the process's fcntl(2) record locks on it.) O_DIRECT works: blocks are aligned to a page.
/// `config` is read during the call; `*reader` receives the reader, to be ended by upcall_reader_free(), or NULL. The
/// reader's memory is (depth + 1) * block_size bytes. Besides it has at most two threads, six descriptors, and, without
/// io_uring, pool threads for the reads that wait for the disk. All of them block every signal. Any thread.
///
/// @return 0; -EBADF (not open, or not for reading), -ESPIPE (a pipe, socket or terminal), -EISDIR; -EINVAL (a NULL or a
/// value out of range, named by upcall_last_error()); -E2BIG (a config with fields this library does not know); -ENOMEM,
/// -EMFILE, -ENFILE; -EAGAIN (no thread); with UPCALL_BACKEND_IO_URING the errno of the refusal. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_new(
    fd: i32,
    config: *const upcall_reader_config,
    reader: *mut *mut upcall_reader,
) -> i32 {
    // SAFETY: the program passed a writable pointer, or NULL.
    let Some(out) = (unsafe { pointer::out(reader) }) else {
        return fail(libc::EINVAL, "upcall_reader_new: reader is NULL");
    };
    *out = std::ptr::null_mut();
    let mut wanted = reader::defaults();
    // SAFETY: the program passed a config whose first word is its size, or NULL.
    if let Err(error) = unsafe { pointer::read_config(config, &mut wanted, "upcall_reader_new") } {
        return error;
    }
    match Reader::create(fd, &wanted) {
        Ok(made) => {
            *out = pointer::give_reader(made);
            0
        }
        Err(refusal) => fail(refusal.error, format_args!("upcall_reader_new: {}", refusal.text)),
    }
}

/// @brief The descriptor to wait for: readable, by level, exactly while upcall_reader_next() would not answer -EAGAIN. From
/// the end of the file, or an error, on it stays readable.
///
/// The reader owns it: never read or close it, only wait for POLLIN. Any thread.
///
/// @return the descriptor; -EINVAL for NULL; -ECHILD in a forked child. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_fd(reader: *mut upcall_reader) -> i32 {
    // SAFETY: the program passed a reader it has not freed, or NULL.
    match unsafe { gate(reader, "upcall_reader_fd") } {
        Ok(this) => this.fd(),
        Err(error) => error,
    }
}

/// @brief Takes the next block, in the order of the file, if it is ready. Never waits.
///
/// `*block` receives the block, aligned to a page, or NULL. It is lent until upcall_reader_release() or
/// upcall_reader_free(), and does not exist in a forked child. Blocks that are not released hold back reading ahead; with
/// depth + 1 of them lent nothing more is read until one comes back. Every block is exactly `block_size` bytes, but for
/// the last. A file that is changed meanwhile is read as it is when its blocks are read; the first read that meets its end
/// is the end. Any thread; for each block it is one caller that gets it.
///
/// @return > 0: the bytes of the block; 0: the end of the file, or of `config.length`; -EAGAIN: nothing is ready yet (no
/// text in upcall_last_error()); another negative errno: reading failed, behind the bytes before it (-EIO; -EINVAL for what
/// O_DIRECT does not allow). The end and an error stay. -EINVAL for a NULL; -ECHILD in a forked child. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_next(reader: *mut upcall_reader, block: *mut *const c_void) -> i64 {
    // SAFETY: the program passed a writable pointer, or NULL, and a reader it has not freed, or NULL.
    unsafe { deliver(reader, block, "upcall_reader_next", |this| this.next()) }
}

/// @brief As upcall_reader_next(), but waits for a block, for at most `timeout_ns` (0: don't wait; negative: no limit).
///
/// A signal handler that ran ends the wait. With all blocks lent it waits for another thread to release one. Any thread.
///
/// @return as upcall_reader_next(); -EAGAIN when the time is over or a signal handler ran. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_wait(
    reader: *mut upcall_reader,
    block: *mut *const c_void,
    timeout_ns: i64,
) -> i64 {
    // SAFETY: the program passed a writable pointer, or NULL, and a reader it has not freed, or NULL.
    unsafe { deliver(reader, block, "upcall_reader_wait", |this| this.wait(timeout_ns)) }
}

/// Answers with a block.
///
/// # Safety
/// `handle` is NULL or a reader that was not freed; `block` is NULL or writable.
unsafe fn deliver(
    handle: *mut upcall_reader,
    block: *mut *const c_void,
    what: &'static str,
    take: impl FnOnce(&Reader) -> (i64, *const c_void),
) -> i64 {
    // SAFETY: the caller's promise.
    let Some(out) = (unsafe { pointer::out(block) }) else {
        return i64::from(fail_with(libc::EINVAL, format_args!("{what}: block is NULL")));
    };
    *out = std::ptr::null();
    // SAFETY: the caller's promise.
    let this = match unsafe { gate(handle, what) } {
        Ok(this) => this,
        Err(error) => return i64::from(error),
    };
    let (answer, address) = take(this);
    *out = address;
    if answer < 0 && answer != -i64::from(libc::EAGAIN) {
        fail_with(-answer as i32, format_args!("{what}: reading the file failed"));
    }
    answer
}

/// @brief Gives a block back, in any order. `block`: what upcall_reader_next() stored. Any thread.
///
/// @return 0; -EINVAL for a NULL, or a pointer that is not a lent block of this reader (a foreign one, one released twice);
/// -ECHILD in a forked child. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_release(reader: *mut upcall_reader, block: *const c_void) -> i32 {
    // SAFETY: the program passed a reader it has not freed, or NULL.
    match unsafe { gate(reader, "upcall_reader_release") } {
        Ok(this) if this.release(block as usize) => 0,
        Ok(_) => fail_with(
            libc::EINVAL,
            format_args!(
                "upcall_reader_release: {block:p} is not a lent block of this reader (foreign, or released twice)"
            ),
        ),
        Err(error) => error,
    }
}

/// @brief Ends the reader: nothing more is read, what is in flight is waited for, and its memory, lent blocks included, its
/// threads and its descriptors are gone when it returns. NULL is fine.
///
/// Any thread, while no other thread is in a call with this reader. Take upcall_reader_fd() out of an epoll set before. In
/// a forked child only that process's copies of the descriptors are closed.
///
/// @return 0. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reader_free(reader: *mut upcall_reader) -> i32 {
    if reader.is_null() {
        return 0;
    }
    // SAFETY: the program passed a reader it has not freed.
    match unsafe { pointer::reader(reader) } {
        Some(this) if this.is_forked() => this.abandon(),
        // SAFETY: the reader came from pointer::give_reader, and the program gives it up with this call.
        _ => unsafe { pointer::take_reader(reader) },
    }
    0
}
