//! Threads: who this is, signals kept away, and one thread interrupted.

use libc::c_void;
use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// The address of this thread's control block: unique among living threads, one instruction. A dead thread's may be reused,
/// so owners are also forgotten by a thread-exit hook.
#[cfg(not(any(loom, miri)))]
#[inline(always)]
pub(crate) fn pointer() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let pointer: usize;
        // SAFETY: on x86-64 Linux the word at fs:0 is the thread control block's own address.
        unsafe {
            std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
        }
        pointer
    }
    #[cfg(target_arch = "aarch64")]
    {
        let pointer: usize;
        // SAFETY: tpidr_el0 holds the thread pointer on aarch64 Linux.
        unsafe {
            std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, preserves_flags));
        }
        pointer
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    // SAFETY: no pointers.
    unsafe {
        libc::pthread_self() as usize
    }
}

/// Blocks every signal on this thread: the library's own threads never run the program's handlers, and a write that would
/// raise SIGPIPE or SIGXFSZ only fails.
pub(crate) fn block_signals(except: Option<i32>) {
    // SAFETY: a local signal set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        if let Some(signal) = except {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// What a write may raise on its thread.
const WRITE_SIGNALS: [i32; 2] = [libc::SIGPIPE, libc::SIGXFSZ];

/// Runs `call` with the signals of writes kept away: blocked, and taken out again if `call` raised them.
pub(crate) fn without_write_signals<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: local signal sets; sigpending and sigtimedwait only look at this thread's.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        let mut raised: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&mut pending);
        libc::sigemptyset(&mut blocked);
        libc::sigemptyset(&mut raised);
        for signal in WRITE_SIGNALS {
            libc::sigaddset(&mut blocked, signal);
            // One that waited before is the program's.
            if libc::sigismember(&pending, signal) != 1 {
                libc::sigaddset(&mut raised, signal);
            }
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, &mut before);
        let result = call();
        let errno = super::errno();
        let zero = super::timespec(0);
        loop {
            let taken = libc::sigtimedwait(&raised, std::ptr::null_mut(), &zero);
            if taken < 0 && super::errno() != libc::EINTR {
                break;
            }
        }
        *libc::__errno_location() = errno;
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}

static INTERRUPT: OnceLock<i32> = OnceLock::new();

/// Threads are interrupted with this signal; never true before the first one may have to be.
pub(crate) fn is_interrupt_signal(signo: i32) -> bool {
    INTERRUPT.get() == Some(&signo)
}

/// The signal that interrupts a system call on one of the library's own threads: the highest real-time signal that the
/// program has not given a meaning, with a handler that does nothing. Set when first needed; 0: none was free.
pub(crate) fn interrupt_signal() -> i32 {
    extern "C" fn nothing(_: i32) {}
    *INTERRUPT.get_or_init(|| {
        for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
            // SAFETY: local sigactions; the handler does nothing and is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, std::ptr::null(), &mut action) != 0 || action.sa_sigaction != libc::SIG_DFL {
                    continue;
                }
                action.sa_sigaction = nothing as *const () as usize;
                action.sa_flags = 0;
                if libc::sigaction(signal, &action, std::ptr::null_mut()) == 0 {
                    return signal;
                }
            }
        }
        0
    })
}

/// Miri knows no inline assembly.
#[cfg(miri)]
pub(crate) fn pointer() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| std::ptr::from_ref(here) as usize)
}

#[cfg(loom)]
pub(crate) use super::sync::modelled::kernel::{interrupt, thread as pointer};

/// This thread's kernel id.
#[cfg(loom)]
pub(crate) fn id() -> i32 {
    pointer() as i32
}

/// This thread's kernel id.
#[cfg(not(loom))]
pub(crate) fn id() -> i32 {
    thread_local!(static ID: std::cell::Cell<i32> = const { std::cell::Cell::new(0) });
    ID.with(|cell| {
        if cell.get() == 0 {
            // SAFETY: no pointers.
            cell.set(unsafe { libc::syscall(libc::SYS_gettid) } as i32);
        }
        cell.get()
    })
}

/// Interrupts a system call of one of the library's own threads.
#[cfg(not(loom))]
pub(crate) fn interrupt(thread: i32) {
    let signal = interrupt_signal();
    if signal != 0 && thread != 0 {
        // SAFETY: no pointers; a thread that is gone answers ESRCH.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
    }
}

/// Runs `call` on one of the library's own threads, interrupted when it takes longer than `ns`, and again after as long: a
/// first interruption may come before it waits. -EAGAIN where there is no timer for that.
pub(crate) fn interrupted_after(ns: u64, call: impl FnOnce() -> i64) -> i64 {
    // SAFETY: local structures; the signal's handler does nothing, and the timer is gone before this function returns.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = interrupt_signal();
        event.sigev_notify_thread_id = id();
        if event.sigev_signo == 0 {
            return call();
        }
        let mut timer: libc::timer_t = null_mut();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
            return -i64::from(libc::EAGAIN);
        }
        let period = super::timespec(ns);
        let spec = libc::itimerspec { it_interval: period, it_value: period };
        let result = match libc::timer_settime(timer, 0, &spec, null_mut()) {
            0 => call(),
            _ => -i64::from(libc::EAGAIN),
        };
        libc::timer_delete(timer);
        result
    }
}

/// Lets time pass; a signal handler may end it early.
pub(crate) fn pause(ns: u64) {
    let time = super::timespec(ns);
    // SAFETY: `time` lives across the call.
    unsafe { libc::nanosleep(&time, null_mut()) };
}

/// A thread of the library's own; without [`Thread::join`] it is let go. Rust's own end the process where one of the calls
/// that make them fails.
pub(crate) struct Thread(Option<libc::pthread_t>);

// SAFETY: the name of a thread, which any thread may join or let go.
unsafe impl Send for Thread {}
// SAFETY: as above; both need the value itself, or an exclusive reference.
unsafe impl Sync for Thread {}

/// What Rust gives its threads.
const STACK: usize = 2 << 20;

impl Thread {
    /// Starts a thread with every signal blocked from its first instruction on; -errno.
    pub fn spawn<F: FnOnce() + Send + 'static>(name: &'static CStr, run: F) -> Result<Thread, i32> {
        extern "C" fn begin<F: FnOnce()>(arg: *mut c_void) -> *mut c_void {
            // SAFETY: the box that `spawn` left to this thread.
            let (name, run) = *unsafe { Box::from_raw(arg.cast::<(&'static CStr, F)>()) };
            // SAFETY: a NUL-terminated string.
            unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
            run();
            null_mut()
        }
        let arg = Box::into_raw(Box::new((name, run)));
        // SAFETY: `attributes` is written by pthread_attr_init before it is used; the box is the new thread's, if there is one.
        unsafe {
            let mut attributes = std::mem::MaybeUninit::uninit();
            let mut thread = std::mem::MaybeUninit::uninit();
            let mut error = libc::pthread_attr_init(attributes.as_mut_ptr());
            if error == 0 {
                libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
                let call = || libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), begin::<F>, arg.cast());
                error = with_signals_blocked(call);
                libc::pthread_attr_destroy(attributes.as_mut_ptr());
            }
            if error != 0 {
                drop(Box::from_raw(arg));
                return Err(error);
            }
            Ok(Thread(Some(thread.assume_init())))
        }
    }

    /// Waits for the thread's end.
    pub fn join(mut self) {
        if let Some(thread) = self.0.take() {
            // SAFETY: a thread that was neither joined nor let go.
            unsafe { libc::pthread_join(thread, null_mut()) };
        }
    }

    /// Whether it has ended; then it is joined.
    pub fn has_ended(&mut self) -> bool {
        // SAFETY: as above.
        self.0.take_if(|thread| unsafe { libc::pthread_tryjoin_np(*thread, null_mut()) } == 0).is_some()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // SAFETY: a thread that was neither joined nor let go.
            unsafe { libc::pthread_detach(thread) };
        }
    }
}

/// Runs `call` with every signal blocked, so that a thread it starts is born that way.
fn with_signals_blocked<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: local signal sets.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = call();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}
