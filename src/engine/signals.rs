//! Operations that wait for signals: the engine's own, the same on every backend. A signal is counted from the moment its
//! operation is accepted, on whichever thread; the loop compares counts once per turn, with one look at all while there is
//! nothing new.

use super::Engine;
use super::slot::{State, bits};
use crate::driver::Driver;
use crate::sys::signal::{self, Bell};

/// See the module.
#[derive(Default)]
pub(crate) struct Signals {
    waiting: Vec<u32>,
    /// Wakes the loop; while anything waits.
    bell: Option<Bell>,
    /// All deliveries when the loop last compared; None: it has to.
    seen: Option<u64>,
}

impl Signals {
    /// Whether an operation may have something to tell.
    #[inline(always)]
    pub fn is_due(&self) -> bool {
        !self.waiting.is_empty() && self.seen != Some(signal::all_deliveries())
    }
}

impl<D: Driver> Engine<D> {
    /// An operation begins to wait. What was delivered since it was accepted is found by the next turn.
    pub(super) fn start_signal(&mut self, index: u32) {
        self.core.slots[index].state = State::Sleeping;
        self.signals.waiting.push(index);
        self.signals.seen = None;
        let wake = self.core.shared.wake;
        self.signals.bell.get_or_insert_with(|| Bell::new(wake));
    }

    /// An operation has ended.
    pub(super) fn forget_signal(&mut self, index: u32) {
        // Those that end together end in reverse order.
        if let Some(position) = self.signals.waiting.iter().rposition(|&other| other == index) {
            self.signals.waiting.swap_remove(position);
        }
        if self.signals.waiting.is_empty() {
            self.signals.bell = None;
        }
    }

    /// A paused operation goes on.
    pub(super) fn resume_signal(&mut self, index: u32) {
        self.core.slots[index].state = State::Sleeping;
        self.signals.seen = None;
    }

    /// Tells every operation what was delivered.
    pub(super) fn take_signals(&mut self) {
        // Before the counts are looked at: what comes in between is found again.
        self.signals.seen = Some(signal::all_deliveries());
        for position in 0..self.signals.waiting.len() {
            self.take_signal(self.signals.waiting[position]);
        }
    }

    /// Tells an operation what was delivered since it was last told. `args.arg` is the signal, `args.offset` the count.
    pub(super) fn take_signal(&mut self, index: u32) {
        let slot = &mut self.core.slots[index];
        let signo = slot.args.arg as i32;
        let count = signal::deliveries(signo);
        if slot.state != State::Sleeping || slot.args.offset == count {
            return;
        }
        slot.args.offset = count;
        match slot.has(bits::MULTI) {
            true => self.queue_tick(index, i64::from(signo)),
            false => self.finish(index, i64::from(signo)),
        }
    }

    /// An operation is about to end because that was asked for. Its signal if one was caught since it was last told: between
    /// the request and now nobody else could be. From here on the action is the program's again.
    pub(super) fn last_signal(&mut self, index: u32) -> Option<i64> {
        let slot = &self.core.slots[index];
        if !slot.has(bits::ASKED | bits::EXPIRED) {
            return None;
        }
        let (signo, told) = (slot.args.arg, slot.args.offset);
        let caught = self.core.side_of(index)?.watch.take()?.end();
        (caught != told).then_some(i64::from(signo))
    }
}
