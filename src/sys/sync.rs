//! The threads, locks and words of what threads do together: the standard library's, or, under `--cfg loom`, those of the
//! models (`crate::models`), where every interleaving is tried. What is no protocol (counters, statics) does not come here.

#[cfg(loom)]
pub(crate) use modelled::*;
#[cfg(not(loom))]
pub(crate) use real::*;

#[cfg(loom)]
pub(crate) mod modelled;

#[cfg(not(loom))]
mod real {
    pub(crate) use crate::sys::thread::Thread;
    pub(crate) use crossbeam_queue::SegQueue;
    use std::sync::PoisonError;
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
    };
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::yield_now;

    /// Starts a thread with every signal blocked from its first instruction on; its errno.
    pub(crate) fn spawn(name: &'static std::ffi::CStr, run: impl FnOnce() + Send + 'static) -> Result<Thread, i32> {
        Thread::spawn(name, run)
    }

    /// Waits to be told, or as long. True: so long.
    pub(crate) fn wait_timeout<'a, T>(
        bell: &Condvar,
        _: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        limit: std::time::Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        let (guard, timeout) = bell.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner);
        (guard, timeout.timed_out())
    }

    /// Memory that one thread writes and another reads: the models see who and when.
    pub(crate) struct Racing<T>(std::cell::UnsafeCell<T>);

    impl<T> Racing<T> {
        pub fn new(value: T) -> Racing<T> {
            Racing(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub fn with<R>(&self, look: impl FnOnce(*const T) -> R) -> R {
            look(self.0.get())
        }

        #[inline(always)]
        pub fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
            change(self.0.get())
        }
    }
}
