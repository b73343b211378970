//! How an operation meets the kernel. A driver knows slots and outcomes; it knows no callbacks, users, chains or deadlines.
//!
//! One turn: [`Driver::turn`] hands over what was started and waits; [`Driver::next`] then yields outcomes one by one, so
//! that each is delivered before the next is made.

pub(crate) mod attempts;
pub(crate) mod epoll;
pub(crate) mod threads;
pub(crate) mod uring;

use crate::engine::buffers::Pool;
use crate::engine::core::Core;
use crate::engine::descriptors::Descriptors;
use crate::engine::slot::{NONE, Slot};
use crate::op::OpDef;
use std::sync::Arc;

/// What became of an operation, or of one event of it. Two registers: moving it through memory costs more than making it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub index: u32,
    /// MORE, LATER, RELEASED, LENT with the buffer's number above.
    word: u32,
    pub result: i64,
}

const MORE: u32 = 1;
const LATER: u32 = 2;
const LENT: u32 = 4;
const RELEASED: u32 = 8;
const BUFFER_SHIFT: u32 = 16;

impl Outcome {
    /// No outcome is there.
    pub(crate) const NONE: Outcome = Outcome { index: NONE, word: 0, result: 0 };

    #[inline(always)]
    pub fn done(index: u32, result: i64) -> Outcome {
        Outcome { index, word: 0, result }
    }

    /// Nothing was done; start it again after a pause.
    pub fn postponed(index: u32) -> Outcome {
        Outcome { word: LATER, ..Outcome::done(index, 0) }
    }

    /// The kernel no longer needs the data of one request of a zero-copy send.
    pub fn released(index: u32) -> Outcome {
        Outcome { word: RELEASED, ..Outcome::done(index, 0) }
    }

    pub fn is_released(self) -> bool {
        self.word == RELEASED
    }

    /// The driver keeps the operation going: more outcomes follow.
    #[inline(always)]
    pub fn with_more(self, more: bool) -> Outcome {
        Outcome { word: self.word & !MORE | if more { MORE } else { 0 }, ..self }
    }

    /// The pool's buffer that holds the data; pools have at most 2 × 32768.
    #[inline(always)]
    pub fn with_buffer(self, buffer: Option<u32>) -> Outcome {
        match buffer {
            None => self,
            Some(number) => Outcome { word: self.word & (MORE | LATER) | LENT | number << BUFFER_SHIFT, ..self },
        }
    }

    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.index == NONE
    }

    #[inline(always)]
    pub fn more(self) -> bool {
        self.word & MORE != 0
    }

    #[inline(always)]
    pub fn later(self) -> bool {
        self.word & LATER != 0
    }

    /// Neither more nor later nor a buffer.
    #[inline(always)]
    pub fn is_plain(self) -> bool {
        self.word == 0
    }

    pub fn buffer(self) -> Option<u32> {
        (self.word & LENT != 0).then_some(self.word >> BUFFER_SHIFT)
    }
}

/// How long a turn may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    /// Not at all.
    Now,
    /// Not at all, and what was started goes before what may have become ready: that is looked for one turn later.
    Soon,
    /// Until CLOCK_MONOTONIC shows this.
    Time(u64),
    /// Until something happens.
    Forever,
}

impl Until {
    pub fn may_wait(self) -> bool {
        !matches!(self, Until::Now | Until::Soon)
    }
}

/// What a cancel did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cancel {
    /// The driver has let go of the operation, which had not begun: no outcome follows.
    Gone,
    /// An outcome follows.
    Asked,
}

/// The contract of a backend.
pub(crate) trait Driver {
    /// The owner thread has been decided: it is the calling one.
    fn adopt(&mut self, core: &mut Core) -> Result<(), i32>;
    /// The owner gives the loop up; nothing is in flight.
    fn release(&mut self, core: &mut Core) -> Result<(), i32>;
    /// Begins an operation, or goes on with one whose outcome asked for it. No outcome is made inside.
    fn start(&mut self, core: &mut Core, index: u32);
    /// [`Driver::start`] for one just accepted that has nothing in `bits::SLOW`; its rung says NATIVE already. False: it was
    /// not started.
    #[inline(always)]
    fn start_plain(&mut self, _: &mut Descriptors, _: &mut Slot, _: &OpDef, _id: u64) -> bool {
        false
    }
    /// Begins an operation by attempts, not natively: after a native answer that is not to be believed.
    fn start_by_attempt(&mut self, core: &mut Core, index: u32);
    /// Asks a started operation to end.
    fn cancel(&mut self, core: &mut Core, index: u32) -> Cancel;
    /// A native refusal turned out to be a lack of support: this kind is done by attempts from now on.
    fn lower(&mut self, core: &Core, index: u32);
    /// What an operation waits for may have come about without being told.
    fn look_again(&mut self, core: &mut Core, index: u32);
    /// Whether anything can be done without waiting.
    fn has_work(&self) -> bool;
    /// Whether a turn that does not wait would find anything; what was started is handed over.
    fn has_leftovers(&mut self) -> bool;
    /// Hands over what was started and waits, if asked to: only while [`Driver::has_work`] is false. -EINTR when a signal
    /// ended the wait.
    fn turn(&mut self, core: &mut Core, until: Until) -> Result<(), i32>;
    /// The next outcome that was there when the turn ended, or [`Outcome::NONE`].
    fn next(&mut self, core: &mut Core) -> Outcome;
    /// Surely has no more outcomes in this turn.
    #[inline(always)]
    fn is_drained(&mut self) -> bool {
        false
    }
    /// The same as [`Driver::next`], if it is the success of a native operation whose end concerns few (see
    /// [`Slot::is_quick`]): slot, index and result. None: ask [`Driver::next`].
    #[inline(always)]
    fn next_quick<'a>(&mut self, _: &'a mut Core) -> Option<(&'a mut Slot, u32, i64)> {
        None
    }
    /// The loop will be waited for from outside: nothing may be left half-known.
    fn prepare_embedded_sleep(&mut self, core: &mut Core);
    /// A descriptor that becomes readable when outcomes may be had. Owner thread, or no owner yet.
    fn embed(&mut self, core: &mut Core) -> Result<i32, i32>;
    /// Lets the kernel pick from this pool, if it can.
    fn offer_pool(&mut self, _: &mut Core, _: &Arc<Pool>) {}
    /// A buffer of the kernel's set came back.
    fn refill(&mut self, _: &Pool, _: u32) {}
    /// Forgets a pool that nobody uses.
    fn forget_pool(&mut self, _: &Pool) {}
    /// Pins memory for reads and writes of files, if it can. On the owner thread, or while there is none.
    fn register_buffers(&mut self, _: &[libc::iovec]) {}
    /// Unpins it.
    fn unregister_buffers(&mut self, _: &mut Core) {}
    /// How a kind is done: an UPCALL_ constant.
    fn supports(&self, kind: u32) -> i32;
    /// Ends everything the kernel and the threads do for this loop, and waits for that. Afterwards nothing touches any
    /// operation's memory. On the owner thread.
    fn quiesce(&mut self, core: &mut Core);
    /// As [`Driver::quiesce`], for what does not need the owner thread: the threads.
    fn quiesce_threads(&mut self, core: &mut Core);
    /// The owner thread gives the loop up, detached, freed or exiting: nothing of it stays with the thread.
    fn leave_thread(&mut self) {}
    /// In a forked child: closes this process's copies of the descriptors and touches nothing else.
    fn abandon(&mut self);
}
