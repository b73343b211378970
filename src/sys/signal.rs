//! Signals for loops: one handler for all that are watched, which counts and writes the eventfds of the loops that watch.
//!
//! The handler touches atomics and calls write(2), nothing else, and keeps errno. A loop compares counts: what was counted
//! after it looked has also written its eventfd, so it does not sleep over it. The process's signal mask is never touched.
//!
//! The count of deliveries and the number of watches are one word, so that of a watch's end and a delivery one comes first: a
//! delivery is told by a watch, or belongs to the action that is put back.
//!
//! A forked child inherits the handler, and the eventfds, which it shares with its parent. There the handler does not
//! count: it puts back the action that was there before, and raises the signal again.

use super::fork;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Signals are below it.
const COUNT: usize = 65;

/// What is known of one signal.
struct Entry {
    /// Watches of the process in the low half, deliveries in the high one. Watches change under the lock.
    state: AtomicU64,
    /// Delivered when nobody watched any more; the handler was on its way.
    owed: AtomicU32,
    /// The process (see [`fork`]) that installed the handler.
    installed_by: AtomicU64,
    /// The action to put back. Written under the lock, read under it and by the handler in a forked child, where nobody
    /// has written it since.
    before: UnsafeCell<libc::sigaction>,
}

// SAFETY: `before` is guarded as its comment says; the rest are atomics.
unsafe impl Sync for Entry {}

static ENTRIES: [Entry; COUNT] = [const {
    Entry {
        state: AtomicU64::new(0),
        owed: AtomicU32::new(0),
        installed_by: AtomicU64::new(0),
        // SAFETY: all-zero bytes are a valid sigaction: the default action.
        before: UnsafeCell::new(unsafe { std::mem::zeroed() }),
    }
}; COUNT];

const WATCHES: u64 = u32::MAX as u64;
const DELIVERY: u64 = WATCHES + 1;

/// Deliveries of all signals: what a loop looks at to know whether to look closer.
static DELIVERED: AtomicU64 = AtomicU64::new(0);

/// The eventfd of a loop that watches; -1: nobody's. Never freed, because a handler may be walking the list.
struct Node {
    fd: AtomicI32,
    next: AtomicPtr<Node>,
}

static BELLS: AtomicPtr<Node> = AtomicPtr::new(std::ptr::null_mut());
/// The process whose bells these are. Under the lock.
static BELLS_OF: AtomicU64 = AtomicU64::new(0);
/// Threads that are walking the list of bells.
static RINGING: AtomicU32 = AtomicU32::new(0);

/// Who is changing entries and bells: a process's epoch, or 0. The epoch, so that a child of a process that was changing
/// them is not locked out for ever.
static LOCK: AtomicU64 = AtomicU64::new(0);

struct Locked;

fn lock(epoch: u64) -> Locked {
    loop {
        let holder = LOCK.load(Ordering::Relaxed);
        if holder != epoch && LOCK.compare_exchange(holder, epoch, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Locked;
        }
        std::thread::yield_now();
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        LOCK.store(0, Ordering::Release);
    }
}

extern "C" fn on_signal(signo: i32) {
    let errno = super::errno();
    let entry = &ENTRIES[signo as usize % COUNT];
    if entry.installed_by.load(Ordering::Relaxed) != fork::page().load(Ordering::Relaxed) {
        // SAFETY: a forked child's own copy of the entry, complete since before the handler was installed; both calls are
        // async-signal-safe. The signal is blocked until this handler returns; then the old action meets it.
        unsafe {
            libc::sigaction(signo, entry.before.get(), std::ptr::null_mut());
            libc::raise(signo);
        }
    } else {
        if entry.state.fetch_add(DELIVERY, Ordering::SeqCst) & WATCHES == 0 {
            entry.owed.fetch_add(1, Ordering::SeqCst);
            // Who puts the action back looks afterwards; if that is done already, it is this handler's to look.
            if !action_of(signo).is_some_and(|current| is_ours(&current)) {
                pass_on(signo);
            }
        }
        DELIVERED.fetch_add(1, Ordering::SeqCst);
        RINGING.fetch_add(1, Ordering::SeqCst);
        let mut at = BELLS.load(Ordering::SeqCst);
        // SAFETY: nodes are never freed.
        while let Some(node) = unsafe { at.as_ref() } {
            let fd = node.fd.load(Ordering::SeqCst);
            if fd >= 0 {
                super::eventfd_write(fd);
            }
            at = node.next.load(Ordering::SeqCst);
        }
        RINGING.fetch_sub(1, Ordering::SeqCst);
    }
    // SAFETY: __errno_location returns a valid pointer to this thread's errno.
    unsafe { *libc::__errno_location() = errno };
}

/// Raises again, for the program's own action, what was delivered when nobody watched any more.
fn pass_on(signo: i32) {
    if ENTRIES[signo as usize % COUNT].owed.swap(0, Ordering::SeqCst) > 0 {
        // SAFETY: async-signal-safe. To the process, as it came: this thread may block it.
        unsafe { libc::kill(libc::getpid(), signo) };
    }
}

fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == on_signal as *const () as usize
}

/// The signal's action now; None: there is no such signal, or the C library keeps it to itself.
fn action_of(signo: i32) -> Option<libc::sigaction> {
    // SAFETY: all-zero bytes are a valid sigaction; only the current one is asked for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signo, std::ptr::null(), &mut action) == 0).then_some(action)
    }
}

/// The signal exists, and the C library does not keep it to itself.
pub(crate) fn exists(signo: i32) -> bool {
    (1..COUNT as i32).contains(&signo) && action_of(signo).is_some()
}

/// A signal is counted while a watch of it lives; its action is what it was when the last one has gone.
pub(crate) struct Watch {
    signo: i32,
    epoch: u64,
}

impl Watch {
    /// Installs the handler unless it is there. Only for a signal that [`exists`]. Any thread.
    pub fn new(signo: i32) -> Watch {
        let epoch = fork::epoch();
        let entry = &ENTRIES[signo as usize % COUNT];
        let _locked = lock(epoch);
        if entry.installed_by.load(Ordering::Relaxed) != epoch {
            entry.state.fetch_and(!WATCHES, Ordering::SeqCst);
            entry.owed.store(0, Ordering::SeqCst);
        }
        if let Some(current) = action_of(signo)
            && !is_ours(&current)
        {
            // SAFETY: under the lock.
            unsafe { *entry.before.get() = current };
        }
        // Before the handler is: one of a forked child knows the action to put back already.
        entry.installed_by.store(epoch, Ordering::SeqCst);
        // SAFETY: a local sigaction; the handler is async-signal-safe. Every signal is held back while it runs, so that it
        // is not left by a handler of the program's that does not return.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigfillset(&mut action.sa_mask);
            libc::sigaction(signo, &action, std::ptr::null_mut());
        }
        entry.state.fetch_add(1, Ordering::SeqCst);
        Watch { signo, epoch }
    }

    /// Ends the watch; the deliveries until then.
    pub fn end(self) -> u64 {
        let deliveries = self.stop();
        std::mem::forget(self);
        deliveries
    }

    fn stop(&self) -> u64 {
        if fork::page().load(Ordering::Relaxed) != self.epoch {
            return deliveries(self.signo);
        }
        let entry = &ENTRIES[self.signo as usize % COUNT];
        let _locked = lock(self.epoch);
        let state = entry.state.fetch_sub(1, Ordering::SeqCst);
        if state & WATCHES == 1 {
            // An action that the program has set meanwhile is the program's.
            if action_of(self.signo).is_some_and(|current| is_ours(&current)) {
                // SAFETY: under the lock; the action was the kernel's answer.
                unsafe { libc::sigaction(self.signo, entry.before.get(), std::ptr::null_mut()) };
            }
            pass_on(self.signo);
        }
        state / DELIVERY
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Deliveries of one signal, counted while it was watched.
pub(crate) fn deliveries(signo: i32) -> u64 {
    ENTRIES[signo as usize % COUNT].state.load(Ordering::SeqCst) / DELIVERY
}

/// Deliveries of all signals.
#[inline]
pub(crate) fn all_deliveries() -> u64 {
    DELIVERED.load(Ordering::SeqCst)
}

/// While it lives, every watched signal writes an eventfd.
pub(crate) struct Bell {
    node: &'static Node,
    epoch: u64,
}

impl Bell {
    pub fn new(fd: i32) -> Bell {
        let epoch = fork::epoch();
        let _locked = lock(epoch);
        if BELLS_OF.load(Ordering::Relaxed) != epoch {
            // A forked child: its parent's bells are not its own, and who was ringing them did not come along.
            BELLS.store(std::ptr::null_mut(), Ordering::SeqCst);
            RINGING.store(0, Ordering::SeqCst);
            BELLS_OF.store(epoch, Ordering::Relaxed);
        }
        let first = BELLS.load(Ordering::SeqCst);
        let mut at = first;
        // SAFETY: nodes are never freed.
        while let Some(node) = unsafe { at.as_ref() } {
            if node.fd.load(Ordering::Relaxed) < 0 {
                node.fd.store(fd, Ordering::SeqCst);
                return Bell { node, epoch };
            }
            at = node.next.load(Ordering::Relaxed);
        }
        let node = Box::leak(Box::new(Node { fd: AtomicI32::new(fd), next: AtomicPtr::new(first) }));
        BELLS.store(node, Ordering::SeqCst);
        Bell { node, epoch }
    }
}

impl Drop for Bell {
    /// When it returns no handler writes the eventfd any more: it may be closed and its number used again.
    fn drop(&mut self) {
        if fork::page().load(Ordering::Relaxed) != self.epoch {
            return;
        }
        self.node.fd.store(-1, Ordering::SeqCst);
        while RINGING.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
    }
}
