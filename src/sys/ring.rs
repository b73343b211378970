//! The io_uring system calls that the `io-uring` crate does not make for us: entering through a registered ring, with an
//! absolute timeout and without being accounted as waiting for a disk.

use libc::{c_void, timespec};

pub(crate) const ENTER_GETEVENTS: u32 = 1;
pub(crate) const ENTER_EXT_ARG: u32 = 1 << 3;
pub(crate) const ENTER_REGISTERED_RING: u32 = 1 << 4;
pub(crate) const ENTER_ABS_TIMER: u32 = 1 << 5;
pub(crate) const ENTER_NO_IOWAIT: u32 = 1 << 7;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
/// Where the submission entries are in the ring's memory (IORING_OFF_SQES).
pub(crate) const OFFSET_SQES: i64 = 0x1000_0000;

#[repr(C)]
struct Argument {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timeout: u64,
}

/// io_uring_enter(2): the number submitted, or -errno.
#[inline]
pub(crate) fn enter(ring: i32, submit: u32, complete: u32, flags: u32, timeout: Option<&timespec>) -> i64 {
    let result = match timeout {
        None => {
            // SAFETY: no pointers; the descriptor and the mapped ring are the caller's.
            unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    ring,
                    submit,
                    complete,
                    flags,
                    std::ptr::null::<c_void>(),
                    0usize,
                )
            }
        }
        Some(time) => {
            let argument =
                Argument { sigmask: 0, sigmask_size: 8, min_wait_usec: 0, timeout: std::ptr::from_ref(time) as u64 };
            // SAFETY: `argument` and `time` live across the call.
            unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    ring,
                    submit,
                    complete,
                    flags | ENTER_EXT_ARG,
                    &raw const argument,
                    size_of::<Argument>(),
                )
            }
        }
    };
    super::answer(result)
}

/// struct io_uring_rsrc_update.
#[repr(C)]
struct Update {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Registers the ring's own descriptor, so that entering needs no lookup (Linux 5.18): its index, or -errno.
pub(crate) fn register_ring(ring: i32) -> i64 {
    let mut update = Update { offset: u32::MAX, reserved: 0, data: ring as u64 };
    // SAFETY: one writable update.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_RING_FDS, &raw mut update, 1u32) };
    match super::answer(result) {
        1 => i64::from(update.offset),
        0 => -i64::from(libc::EINVAL),
        error => error,
    }
}

/// Takes back what [`register_ring`] did on this thread: until then, or the thread's end, the ring stays, closed or not.
pub(crate) fn unregister_ring(ring: i32, index: i32) {
    let mut update = Update { offset: index as u32, reserved: 0, data: 0 };
    // SAFETY: one readable update.
    unsafe { libc::syscall(libc::SYS_io_uring_register, ring, UNREGISTER_RING_FDS, &raw mut update, 1u32) };
}
