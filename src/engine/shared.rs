//! What other threads may touch: who owns the loop, the inbox, and how a sleeping owner is woken.
//!
//! Sleep and wake are a handshake on one word. The owner swaps SLEEPING in, then looks at the inbox once more, then sleeps;
//! a sender pushes, then swaps the word, and writes the eventfd only if it said SLEEPING. Nothing but swaps ever changes the
//! word, so of owner and sender the later one sees all that the earlier did before: the owner finds the message, or the
//! sender a sleeper. A burst of messages costs one system call. A swap is a full barrier at half the price of a fence.

use super::slot::SlotTable;
use crate::abi::{upcall_loop, upcall_op, upcall_stats};
use crate::op::{Args, side::Side};
use crate::sys;
use crate::sys::sync::{AtomicBool, AtomicU32, AtomicUsize, SegQueue, yield_now};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What another thread has for the owner.
pub(crate) enum Message {
    /// Accepted operations with their ids and copied metadata.
    Submit(Box<Submission>),
    Cancel(u64),
    Post(unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void), *mut c_void),
    /// Buffers came back to a pool.
    Returned,
}

// SAFETY: the pointers inside are the program's; it promised that they may be used on the owner thread.
unsafe impl Send for Message {}

/// One submit of another thread.
pub(crate) struct Submission {
    pub accepted: Vec<Accepted>,
    /// When it was accepted, if any of it is timed.
    pub at: u64,
}

/// One operation of it: its arguments name copied metadata in its side block.
pub(crate) struct Accepted {
    pub op: upcall_op,
    pub id: u64,
    pub args: Args,
    pub side: Option<Box<Side>>,
}

/// Nobody polled the loop yet.
const NOBODY: usize = 0;
/// The owner thread has exited.
const DEAD: usize = 1;

/// Who a thread is to a loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Nobody,
    Dead,
    Me,
    Another,
}

const AWAKE: u32 = 0;
const SLEEPING: u32 = 1;

/// Counters: the owner writes, anyone reads.
#[derive(Default)]
pub(crate) struct Counters {
    pub submitted: Counter,
    pub completed: Counter,
    pub cancelled: Counter,
    pub timed_out: Counter,
    pub system_calls: Counter,
    pub native: Counter,
    pub emulated: Counter,
    pub pool: Counter,
    pub overflows: Counter,
    pub rearms: Counter,
    pub callbacks: Counter,
    pub slow_callbacks: Counter,
    pub longest_callback: Counter,
}

/// A word with one writer: a plain add, not an atomic one.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline(always)]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub fn raise_to(&self, value: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).max(value), Ordering::Relaxed);
    }

    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the module.
pub(crate) struct Shared {
    /// The process that made it; a forked child's page says otherwise.
    epoch: u64,
    page: &'static AtomicU64,
    owner: AtomicUsize,
    sleep: AtomicU32,
    /// Operations by their second descriptor.
    pub seconds: super::seconds::Seconds,
    /// Ends the current or next run.
    pub stopped: AtomicBool,
    /// Ends the wait of a poll.
    nudged: AtomicBool,
    pub closing: AtomicBool,
    pub holds: AtomicI64,
    /// Threads inside a call that will push to the inbox.
    entering: AtomicU32,
    pub table: Arc<SlotTable>,
    inbox: SegQueue<Message>,
    /// Free slots that belong to other threads' submissions.
    foreign: SegQueue<u32>,
    pub wake: i32,
    wakeups: AtomicU64,
    /// Operations accepted from outside.
    pub submitted_outside: AtomicU64,
    pub counters: Counters,
}

impl Shared {
    /// In a forked child of the process that made the loop.
    #[inline(always)]
    pub fn is_forked(&self) -> bool {
        self.page.load(Ordering::Relaxed) != self.epoch
    }

    pub fn new(max_operations: u32) -> Result<Shared, i32> {
        let table = Arc::new(SlotTable::new(max_operations)?);
        let wake = sys::eventfd();
        if wake < 0 {
            return Err(-wake as i32);
        }
        Ok(Shared {
            epoch: sys::fork::epoch(),
            page: sys::fork::page(),
            owner: AtomicUsize::new(NOBODY),
            sleep: AtomicU32::new(AWAKE),
            seconds: super::seconds::Seconds::default(),
            stopped: AtomicBool::new(false),
            nudged: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            holds: AtomicI64::new(0),
            entering: AtomicU32::new(0),
            table,
            inbox: SegQueue::new(),
            foreign: SegQueue::new(),
            wake: wake as i32,
            wakeups: AtomicU64::new(0),
            submitted_outside: AtomicU64::new(0),
            counters: Counters::default(),
        })
    }

    // Ownership.

    #[inline(always)]
    pub fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == sys::thread::pointer()
    }

    pub fn owner(&self) -> Owner {
        match self.owner.load(Ordering::Acquire) {
            NOBODY => Owner::Nobody,
            DEAD => Owner::Dead,
            thread if thread == sys::thread::pointer() => Owner::Me,
            _ => Owner::Another,
        }
    }

    /// Becomes the owner of a loop that has none. False: somebody was faster.
    pub fn adopt(&self) -> bool {
        self.owner.compare_exchange(NOBODY, sys::thread::pointer(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes over from a dead owner, to free the loop.
    pub fn inherit(&self) -> bool {
        self.owner.compare_exchange(DEAD, sys::thread::pointer(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The owner gives the loop up, or exits.
    pub fn release(&self, dead: bool) {
        self.owner.store(if dead { DEAD } else { NOBODY }, Ordering::Release);
    }

    // The inbox.

    /// Enters a call that may push; None while or after the loop closes.
    pub fn enter(&self) -> Option<Entered<'_>> {
        self.entering.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(self);
        (!self.closing.load(Ordering::SeqCst)).then_some(entered)
    }

    /// Refuses new work from now on; when it returns, everything that was let in is in the inbox.
    pub fn refuse_new_work(&self) {
        self.closing.store(true, Ordering::SeqCst);
        // Additions to one word come one after the other: who enters has added before this, and is waited for, or adds after
        // it, and sees `closing`.
        while self.entering.fetch_add(0, Ordering::SeqCst) != 0 {
            yield_now();
        }
    }

    /// Pushes a message and wakes the owner if it sleeps.
    pub fn tell(&self, message: Message) {
        self.inbox.push(message);
        self.wake();
    }

    pub fn next_message(&self) -> Option<Message> {
        self.inbox.pop()
    }

    #[inline(always)]
    pub fn has_messages(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// A slot for another thread's submission.
    pub fn take_foreign(&self) -> Option<u32> {
        if let Some(index) = self.foreign.pop() {
            return Some(index);
        }
        let mut fresh = self.table.grow(16);
        let first = fresh.next()?;
        fresh.for_each(|index| self.foreign.push(index));
        Some(first)
    }

    pub fn put_back_foreign(&self, index: u32) {
        self.foreign.push(index);
    }

    /// Whether other threads have free slots in stock.
    pub fn has_foreign(&self) -> bool {
        !self.foreign.is_empty()
    }

    /// The owner borrows from the other threads' stock when its own is used up.
    pub fn reclaim_foreign(&self) -> Option<u32> {
        self.foreign.pop()
    }

    // Sleep and wake.

    /// The owner is about to sleep. False: something came in; it must look again.
    #[inline(always)]
    pub fn prepare_sleep(&self) -> bool {
        self.sleep.swap(SLEEPING, Ordering::SeqCst);
        let quiet = self.inbox.is_empty() && !self.nudged.load(Ordering::SeqCst);
        if !quiet {
            self.awake();
        }
        quiet
    }

    /// The owner is awake.
    #[inline(always)]
    pub fn awake(&self) {
        // A plain store would hide the swap of a sender that found nobody asleep, and what it has pushed.
        if self.sleep.load(Ordering::Relaxed) == SLEEPING {
            self.sleep.swap(AWAKE, Ordering::SeqCst);
        }
    }

    /// Ends the current or next wait of a poll. Async-signal-safe.
    pub fn nudge(&self) {
        self.nudged.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether a wait was to end; asked once.
    pub fn was_nudged(&self) -> bool {
        self.nudged.load(Ordering::Relaxed) && self.nudged.swap(false, Ordering::SeqCst)
    }

    /// Wakes the owner if it sleeps. Async-signal-safe.
    pub fn wake(&self) {
        if self.sleep.swap(AWAKE, Ordering::SeqCst) == SLEEPING {
            self.wakeups.fetch_add(1, Ordering::Relaxed);
            sys::eventfd_write(self.wake);
        }
    }

    /// The counters as the program sees them.
    pub fn stats(&self) -> upcall_stats {
        let count = &self.counters;
        let submitted = count.submitted.get() + self.submitted_outside.load(Ordering::Relaxed);
        let completed = count.completed.get();
        let (cancelled, timed_out) = (count.cancelled.get(), count.timed_out.get());
        upcall_stats {
            submitted,
            completed,
            cancelled,
            timed_out,
            in_flight: submitted.saturating_sub(completed + cancelled + timed_out),
            system_calls: count.system_calls.get(),
            wakeups: self.wakeups.load(Ordering::Relaxed),
            native_operations: count.native.get(),
            emulated_operations: count.emulated.get(),
            pool_operations: count.pool.get(),
            overflows: count.overflows.get(),
            rearms: count.rearms.get(),
            callbacks: count.callbacks.get(),
            slow_callbacks: count.slow_callbacks.get(),
            longest_callback_ns: count.longest_callback.get(),
            ..upcall_stats::default()
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        sys::close(self.wake);
    }
}

/// A call that may push is under way.
pub(crate) struct Entered<'a>(&'a Shared);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.entering.fetch_sub(1, Ordering::SeqCst);
    }
}
