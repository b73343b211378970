//! The C surface, and nothing else: each function checks its pointers and its thread, converts, and calls the engine.
//! Every pointer a program passes is looked at in [`pointer`] only. The constructors stand with their operations in
//! [`crate::op`].

mod pointer;
mod reader;
mod text;

use crate::abi::*;
use crate::engine::{self, Loop, buffers::Pool};
use crate::op;
use pointer::{Thread, gate};
use std::ffi::{c_char, c_void};
pub(crate) use text::{fail, fail_with};

/// @brief Fills the first `size` bytes of `*config` with the defaults: use upcall_config_init().
///
/// `config` may be NULL (nothing is done). Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_config_init_sized(config: *mut upcall_config, size: usize) {
    let sized = upcall_config { size: size.min(u32::MAX as usize) as u32, ..engine::config::defaults() };
    // SAFETY: the program passed `size` writable bytes, or NULL.
    unsafe { pointer::write_config(config, size, &sized) };
}

/// @brief Makes a loop. `config` NULL: the defaults. It belongs to the first thread that polls it; until then operations
/// may be submitted from any thread.
///
/// `config` is read during the call; `*loop` receives the loop, to be ended by upcall_loop_free(), or NULL. Any thread.
///
/// @return 0; -EINVAL (a NULL or a value out of range, named by upcall_last_error()); -E2BIG (a config with fields this
/// library does not know); with UPCALL_BACKEND_IO_URING the errno of the refusal (-EPERM, -ENOSYS, -ENOMEM …); -EMFILE,
/// -ENFILE, -ENOMEM. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_loop_new(config: *const upcall_config, r#loop: *mut *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a writable pointer, or NULL.
    let Some(out) = (unsafe { pointer::out(r#loop) }) else {
        return fail(libc::EINVAL, "upcall_loop_new: loop is NULL");
    };
    *out = std::ptr::null_mut();
    let mut wanted = engine::config::defaults();
    // SAFETY: the program passed a config whose first word is its size, or NULL.
    if let Err(error) = unsafe { pointer::read_config(config, &mut wanted, "upcall_loop_new") } {
        return error;
    }
    match Loop::create(&wanted) {
        Ok(made) => {
            *out = pointer::give(made);
            0
        }
        Err(refusal) => fail(refusal.error, format_args!("upcall_loop_new: {}", refusal.text)),
    }
}

/// @brief Ends everything: refuses new work with -ESHUTDOWN, runs accepted posts, cancels all operations, and delivers their
/// final events, for at most `timeout_ns` nanoseconds (negative: no limit).
///
/// Owner thread; callbacks run inside.
///
/// @return 0 when nothing is left in flight (records may still be reaped; the loop refuses new work for good); -ETIMEDOUT
/// when something was left, and the loop stays usable; -EDEADLK inside a callback of this loop; -EPERM on another thread.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_loop_close(r#loop: *mut upcall_loop, timeout_ns: i64) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_loop_close", Thread::Turns) } {
        Ok(this) => this.close(timeout_ns),
        Err(error) => error,
    }
}

/// @brief Closes without limit, then frees. When it returns nothing touches any operation's memory any more. Unreaped
/// records are dropped: their descriptors, also those that came with a message, are closed and their buffers returned.
///
/// The owner thread, or any thread when the loop has no owner or its owner has exited; what a dead owner had in flight is
/// delivered as -EOWNERDEAD, on this thread. In a forked child it returns 0 and runs nothing. NULL is fine.
///
/// @return 0; -EDEADLK inside a callback of this loop; -EPERM on another thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_loop_free(r#loop: *mut upcall_loop) -> i32 {
    if r#loop.is_null() {
        return 0;
    }
    // SAFETY: the program passed a loop it has not freed.
    match unsafe { gate(r#loop, "upcall_loop_free", Thread::Ends) } {
        Ok(this) => match this.finish() {
            // SAFETY: the loop came from pointer::give, and the program gives it up with this call.
            0 => unsafe { pointer::take(r#loop) },
            error => error,
        },
        Err(error) if error == -libc::ECHILD => {
            // SAFETY: as above; in a forked child only this process's copies of the descriptors are closed.
            unsafe { pointer::abandon(r#loop) }
        }
        Err(error) => error,
    }
}

/// @brief Gives the loop up, so that the next thread to poll owns it.
///
/// Owner thread. @return 0; -EBUSY while anything is in flight; -EDEADLK inside a callback; -EPERM on another thread.
/// Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_loop_detach(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_loop_detach", Thread::Turns) } {
        Ok(this) => this.detach(),
        Err(error) => error,
    }
}

/// @brief Accepts all `count` operations, or none.
///
/// `ops` is copied; see the top of this header for what the operations' own pointers mean. `ids` (NULL: not wanted)
/// receives `count` ids before any of the operations can start. Any thread; no callback runs inside. The kernel is entered
/// only when the queue is full, or by the next upcall_poll().
///
/// @return 0, or a negative errno with nothing accepted: -EINVAL and others (upcall_last_error() names the op and the
/// field: "op 3 of 4: recv: buf is NULL but len is 4096"); -EAGAIN at upcall_config.max_operations;
/// -ESHUTDOWN while or after the loop closes; -EOWNERDEAD when its owner thread has exited; -ENOMEM. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_submit(
    r#loop: *mut upcall_loop,
    ops: *const upcall_op,
    count: usize,
    ids: *mut upcall_id,
) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    let this = match unsafe { gate(r#loop, "upcall_submit", Thread::Any) } {
        Ok(this) => this,
        Err(error) => return error,
    };
    // SAFETY: the program passed `count` readable ops, and `count` writable ids or NULL.
    match unsafe { (pointer::ops(ops, count), pointer::ids(ids, count)) } {
        (Ok(ops), ids) => this.submit(ops, ids),
        (Err(error), _) => error,
    }
}

/// @brief One turn: hands the queued operations over, waits up to `timeout_ns` nanoseconds (0: don't wait; negative: no
/// limit) for something to be ready, and runs the callbacks of what is.
///
/// It does not wait while records are unreaped. A signal handler that ran ends the wait. At most upcall_config.max_events
/// events and posts per turn; the rest comes in the next. Owner thread; the first caller becomes the owner.
///
/// @return how many events and posts were delivered or made reapable; -EDEADLK inside a callback of this loop; -EPERM on
/// another thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_poll(r#loop: *mut upcall_loop, timeout_ns: i64) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_poll", Thread::Turns) } {
        Ok(this) => this.poll(timeout_ns),
        Err(error) => error,
    }
}

/// @brief Polls until nothing is in flight, or until upcall_stop().
///
/// In flight are operations without UPCALL_BACKGROUND, posts, submissions of other threads, and holds. It waits even while
/// records are unreaped (reap them in a callback, or use upcall_poll()). Owner thread.
///
/// @return 0 when nothing is in flight; 1 when stopped; a negative errno as upcall_poll(). Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_run(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_run", Thread::Turns) } {
        Ok(this) => this.run(),
        Err(error) => error,
    }
}

/// @brief Ends the current or the next upcall_run() after its turn, and wakes a waiting upcall_poll(). Latched.
///
/// Any thread, and any signal handler. @return 0, or -EINVAL for NULL. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_stop(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_stop", Thread::Any) } {
        Ok(this) => this.stop(),
        Err(error) => error,
    }
}

/// @brief Keeps upcall_run() alive without an operation, until as many upcall_unhold(). Counted. Any thread.
///
/// @return 0, or -EINVAL for NULL. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_hold(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_hold", Thread::Any) } {
        Ok(this) => this.hold(),
        Err(error) => error,
    }
}

/// @brief Takes back one upcall_hold(), and wakes the loop when it was the last. Any thread.
///
/// @return 0, or -EINVAL for NULL or where nothing is held. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_unhold(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_unhold", Thread::Any) } {
        Ok(this) => this.unhold(),
        Err(error) => error,
    }
}

/// @brief Runs `fn(loop, arg)` on the loop's owner thread, exactly once, in a turn. First in, first out per calling thread;
/// never coalesced. `arg` is the program's. Any thread (not a signal handler: it allocates).
///
/// @return 0; -EINVAL for a NULL loop or fn; -ESHUTDOWN while or after the loop closes. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_post(r#loop: *mut upcall_loop, r#fn: upcall_post_fn, arg: *mut c_void) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match (unsafe { gate(r#loop, "upcall_post", Thread::Any) }, r#fn) {
        (Ok(this), Some(function)) => this.post(function, arg),
        (Ok(_), None) => fail(libc::EINVAL, "upcall_post: fn is NULL"),
        (Err(error), _) => error,
    }
}

/// @brief Asks an operation to end; its own final event answers (-ECANCELED, or its result when it was too late). The event
/// never arrives inside this call, and the operation's memory stays borrowed until it does. Any thread.
///
/// @return 0: the request is made; -ENOENT: no such operation in flight (finished, stale, forged). Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_cancel(r#loop: *mut upcall_loop, id: upcall_id) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_cancel", Thread::Any) } {
        Ok(this) => this.cancel(id),
        Err(error) => error,
    }
}

/// @brief Asks every operation in flight on descriptor `fd` to end, also those that have it as their second, as
/// upcall_cancel() does one. Any thread.
///
/// @return how many were asked; 0 for a negative `fd`. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_cancel_fd(r#loop: *mut upcall_loop, fd: i32) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_cancel_fd", Thread::Any) } {
        Ok(this) => this.cancel_fd(fd),
        Err(error) => error,
    }
}

/// @brief Asks every operation in flight to end, as upcall_cancel() does one. Any thread.
///
/// @return how many were asked. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_cancel_all(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_cancel_all", Thread::Any) } {
        Ok(this) => this.cancel_all(),
        Err(error) => error,
    }
}

/// @brief Copies out at most `max` events of operations submitted without a callback, oldest first. Never waits and never
/// calls back. Owner thread; allowed in a callback.
///
/// @return the number copied; -EINVAL for a NULL; -EPERM on another thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_reap(r#loop: *mut upcall_loop, events: *mut upcall_event, max: usize) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    let this = match unsafe { gate(r#loop, "upcall_reap", Thread::Owner) } {
        Ok(this) => this,
        Err(error) => return error,
    };
    // SAFETY: the program passed room for `max` events.
    match unsafe { pointer::events(events, max) } {
        Ok(room) => this.reap(room),
        Err(error) => error,
    }
}

/// @brief A descriptor for another event loop: level-triggered readable whenever upcall_poll(loop, 0) would do anything.
///
/// The loop owns it: never read or close it, only wait for POLLIN. Owner thread, or any while the loop has no owner.
///
/// @return the descriptor; -EMFILE, -ENFILE, -ENOMEM; -EPERM on another thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_fd(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_fd", Thread::OwnerOrNone) } {
        Ok(this) => this.fd(),
        Err(error) => error,
    }
}

/// @brief CLOCK_MONOTONIC in nanoseconds: on the owner thread as read once per turn, on others as it is now. Any thread.
/// 0 for NULL, or in a forked child. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_now(r#loop: *const upcall_loop) -> u64 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop.cast_mut(), "upcall_now", Thread::Any) } {
        Ok(this) => this.now(),
        Err(_) => 0,
    }
}

/// @brief The backend in use: UPCALL_BACKEND_IO_URING or UPCALL_BACKEND_EPOLL; UPCALL_BACKEND_AUTO for NULL, or
/// in a forked child. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_loop_backend(r#loop: *const upcall_loop) -> upcall_backend {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop.cast_mut(), "upcall_loop_backend", Thread::Any) } {
        Ok(this) => this.backend(),
        Err(_) => UPCALL_BACKEND_AUTO,
    }
}

/// @brief "auto", "io_uring", "epoll", or "unknown". A static string. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_backend_name(backend: upcall_backend) -> *const c_char {
    let name = match backend {
        UPCALL_BACKEND_AUTO => c"auto",
        UPCALL_BACKEND_IO_URING => c"io_uring",
        UPCALL_BACKEND_EPOLL => c"epoll",
        _ => c"unknown",
    };
    name.as_ptr()
}

/// @brief Why the loop runs on the backend it has: "io_uring_setup: EPERM (seccomp or kernel.io_uring_disabled)". Valid until
/// the loop is freed; NULL for NULL, or in a forked child. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_backend_reason(r#loop: *const upcall_loop) -> *const c_char {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop.cast_mut(), "upcall_backend_reason", Thread::Any) } {
        Ok(this) => this.reason().as_ptr(),
        Err(_) => std::ptr::null(),
    }
}

/// @brief How this loop does operations of a kind: UPCALL_NATIVE, UPCALL_EMULATED or UPCALL_UNSUPPORTED. Any thread.
///
/// @return one of these; -EINVAL for NULL. An unknown kind is UPCALL_UNSUPPORTED. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_supports(r#loop: *const upcall_loop, kind: upcall_kind) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop.cast_mut(), "upcall_supports", Thread::Any) } {
        Ok(this) => this.supports(kind),
        Err(error) => error,
    }
}

/// @brief The name of a kind ("recv"), or "unknown". A static string. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_name(kind: upcall_kind) -> *const c_char {
    text::op_name(kind)
}

/// @brief Reads the counters into the first `size` bytes of `*stats`: use upcall_stats_get(). Any thread.
///
/// @return 0, or -EINVAL for a NULL or a size too small for the first member. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_stats_get_sized(
    r#loop: *const upcall_loop,
    stats: *mut upcall_stats,
    size: usize,
) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    let this = match unsafe { gate(r#loop.cast_mut(), "upcall_stats_get", Thread::Any) } {
        Ok(this) => this,
        Err(error) => return error,
    };
    if stats.is_null() || size < size_of::<u32>() {
        return fail(libc::EINVAL, "upcall_stats_get: stats is NULL or its size too small");
    }
    let mut counted = this.stats();
    counted.size = size.min(size_of::<upcall_stats>()) as u32;
    // SAFETY: the program passed `size` writable bytes.
    unsafe { pointer::write_sized(stats, size, &counted) };
    0
}

/// @brief The text of an error: accepts errno, -errno and UPCALL_EAI_ constants. Valid until this thread's next
/// upcall_strerror(). Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_strerror(error: i32) -> *const c_char {
    text::strerror(error)
}

/// @brief The text of this thread's last failing call, "" when there was none; valid until its next failing call. Any
/// thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_last_error() -> *const c_char {
    text::last_error()
}

/// @brief The library's version, "0.1.0". A static string. UPCALL_VERSION_NUMBER is the header's. Any thread.
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// @brief Makes a pool of `count` buffers (1 to 32768) of `size` bytes (1 to 1 GiB) for operations of this loop.
///
/// `*buffers` receives the pool, to be ended by upcall_buffers_free(), or NULL. Any thread.
///
/// @return 0; -EINVAL for a NULL or a count or size out of range; -ENOMEM. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_buffers_new(
    r#loop: *mut upcall_loop,
    count: u32,
    size: u32,
    buffers: *mut *mut upcall_buffers,
) -> i32 {
    // SAFETY: the program passed a writable pointer, or NULL.
    let Some(out) = (unsafe { pointer::out(buffers) }) else {
        return fail(libc::EINVAL, "upcall_buffers_new: buffers is NULL");
    };
    *out = std::ptr::null_mut();
    // SAFETY: the program passed a loop it has not freed, or NULL.
    let this = match unsafe { gate(r#loop, "upcall_buffers_new", Thread::Any) } {
        Ok(this) => this,
        Err(error) => return error,
    };
    match Pool::new(this.shared(), count, size) {
        Ok(pool) => {
            *out = pointer::give_pool(pool);
            0
        }
        Err(refusal) => fail(refusal.error, format_args!("upcall_buffers_new: {}", refusal.text)),
    }
}

/// @brief Pins memory, so that upcall_op_pread() and upcall_op_pwrite() with a buffer inside it cost less (O_DIRECT most of
/// all). Nothing else changes: operations and results are the same, and where the kernel cannot (epoll, RLIMIT_MEMLOCK) it is
/// without effect.
///
/// `iov`: `n` parts, 1 to 16384, each at most 1 GiB; the array is copied, the memory stays the program's and must stay mapped
/// until upcall_unregister_buffers() or upcall_loop_free(). One set at a time. Owner thread, or any while there is none.
///
/// @return 0; -EINVAL for a NULL, an empty part or a number out of range; -EBUSY when buffers are registered already; -EPERM
/// on another thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_register_buffers(r#loop: *mut upcall_loop, iov: *const libc::iovec, n: u32) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    let this = match unsafe { gate(r#loop, "upcall_register_buffers", Thread::OwnerOrNone) } {
        Ok(this) => this,
        Err(error) => return error,
    };
    let refuse = |text: String| fail(libc::EINVAL, format_args!("upcall_register_buffers: {text}"));
    if iov.is_null() {
        return refuse("iov is NULL".to_owned());
    }
    if !(1..=16384).contains(&n) {
        return refuse(format!("n is {n}, not 1 to 16384"));
    }
    let parts = crate::op::side::vector(iov as u64, u64::from(n));
    for (number, part) in parts.iter().enumerate() {
        if part.iov_base.is_null() || part.iov_len == 0 || part.iov_len > 1 << 30 {
            return refuse(format!("iov[{number}] is NULL, empty or larger than 1 GiB"));
        }
    }
    this.register_buffers(parts)
}

/// @brief Ends what upcall_register_buffers() began. Operations in flight end as they would have.
///
/// Owner thread, or any while there is none.
///
/// @return 0; -EINVAL when no buffers are registered; -EPERM on another thread. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_unregister_buffers(r#loop: *mut upcall_loop) -> i32 {
    // SAFETY: the program passed a loop it has not freed, or NULL.
    match unsafe { gate(r#loop, "upcall_unregister_buffers", Thread::OwnerOrNone) } {
        Ok(this) => this.unregister_buffers(),
        Err(error) => error,
    }
}

/// @brief Gives a lent buffer back. `buffer`: what upcall_event.buffer was. Any thread; also after the loop was freed.
///
/// @return 0; -EINVAL for a pointer that is not a lent buffer of this pool (a foreign one, one returned twice); -ECHILD
/// in a forked child. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_buffers_return(buffers: *mut upcall_buffers, buffer: *mut c_void) -> i32 {
    // SAFETY: the program passed a pool it has not freed, or NULL.
    match unsafe { pointer::pool(buffers) } {
        Some(pool) if pool.is_forked() => {
            fail(libc::ECHILD, "upcall_buffers_return: the pool belongs to the parent process")
        }
        Some(pool) if pool.give_back(buffer as usize) => 0,
        Some(_) => fail_with(
            libc::EINVAL,
            format_args!(
                "upcall_buffers_return: {buffer:p} is not a lent buffer of this pool (foreign, or returned twice)"
            ),
        ),
        None => fail(libc::EINVAL, "upcall_buffers_return: buffers is NULL"),
    }
}

/// @brief Frees a pool. NULL is fine. Any thread; valid after the loop is freed.
///
/// @return 0; -EBUSY while any buffer is lent or any operation uses the pool; -ECHILD in a forked child. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn upcall_buffers_free(buffers: *mut upcall_buffers) -> i32 {
    // SAFETY: the program passed a pool it has not freed, or NULL.
    match unsafe { pointer::pool(buffers) } {
        None => 0,
        Some(pool) if pool.is_forked() => {
            fail(libc::ECHILD, "upcall_buffers_free: the pool belongs to the parent process")
        }
        Some(pool) => match pool.retire() {
            // SAFETY: the pool came from pointer::give_pool, and the program gives it up with this call.
            true => unsafe { pointer::take_pool(buffers) },
            false => fail(libc::EBUSY, "upcall_buffers_free: a buffer is lent, or an operation uses the pool"),
        },
    }
}

/// Whether a kind exists, for the text of a refusal.
pub(crate) fn kind_name(kind: upcall_kind) -> &'static str {
    op::find(kind).map_or("unknown kind", |found| found.name)
}
