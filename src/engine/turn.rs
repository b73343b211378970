//! One turn of the loop. The order: take in what other threads sent, hand over and wait, let timers come due, then deliver
//! what was ready at that moment, at most `max_events`: first posts, then operations that ended without the driver, then the
//! driver's outcomes. Callbacks run between two steps of the engine, never inside one.

use super::embed::Embed;
use super::settle::Delivery;
use super::shared::Message;
use super::slot::{NONE, bits};
use super::{Claim, Engine, Loop};
use crate::abi::*;
use crate::driver::{Driver, Until};
use crate::op;
use crate::sys;
use std::ffi::c_void;

/// See [`Engine::next`].
const FAIR: u32 = 64;

/// What may still be delivered in this turn.
#[derive(Default)]
pub(crate) struct Budget {
    all: usize,
    posts: usize,
    ended: usize,
}

/// The next thing to run outside the engine.
pub(crate) enum Next {
    /// The event is where the caller wanted it.
    Event,
    Post(unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void), *mut c_void),
}

impl<D: Driver> Engine<D> {
    /// As [`Engine::take_in`], where every operation counts and not only a turn's share.
    pub(super) fn take_in_all(&mut self) {
        for _ in 0..1024 {
            if !self.core.shared.has_messages() {
                break;
            }
            self.take_in();
        }
    }

    /// Takes in everything that other threads sent. Starts operations and cancels; runs nothing.
    pub(super) fn take_in(&mut self) {
        self.taking_in = true;
        // Bounded, so that senders who never stop do not hold the turn up.
        for _ in 0..4096 {
            let Some(message) = self.core.shared.next_message() else { break };
            match message {
                Message::Submit(submission) => self.admit_foreign(*submission),
                Message::Cancel(id) => {
                    self.cancel_accepted(id);
                }
                Message::Post(function, arg) => self.posts.push_back((function, arg)),
                // The pools are looked at each turn.
                Message::Returned => self.pools.iter().for_each(|pool| pool.hear()),
            }
        }
        self.taking_in = false;
    }

    /// Takes in what other threads sent and gave back.
    #[inline(always)]
    pub(super) fn look_outside(&mut self) {
        if self.core.shared.has_messages() {
            self.take_in();
        }
        if !self.pools.is_empty() {
            self.serve_pools();
        }
    }

    /// The table's last slots may all lie in this thread's list: other threads get some.
    #[inline(always)]
    pub(super) fn share_slots(&mut self) {
        if self.core.slots.table().left() == 0 && !self.core.shared.has_foreign() {
            for _ in 0..16 {
                let Some(index) = self.core.slots.donate() else { break };
                self.core.shared.put_back_foreign(index);
            }
        }
    }

    /// Whether something can be delivered or done without waiting.
    #[inline(always)]
    fn has_work(&self) -> bool {
        self.ended_count > 0
            || !self.ticks.is_empty()
            || !self.posts.is_empty()
            || !self.closers.is_empty()
            || self.signals.is_due()
            || (!self.pools.is_empty() && self.pools_have_work())
            || self.core.shared.has_messages()
            || self.driver.has_work()
    }

    /// Does what must be done before the driver's turn.
    fn prepare(&mut self) {
        if let Some(embed) = &mut self.embed {
            embed.drain(&self.core.shared);
        }
        if self.core.shared.has_messages() {
            self.take_in();
        }
        if !self.closers.is_empty() {
            self.start_closers();
        }
        if !self.pools.is_empty() {
            self.serve_pools();
        }
    }

    /// The first half of a turn. `until`: how long it may wait if there is nothing to do.
    #[inline(always)]
    pub(super) fn gather(&mut self, until: Until) -> Result<(), i32> {
        self.clock = 0;
        let mut until = until;
        if self.embed.is_some() || !self.pools.is_empty() || self.has_work() {
            self.prepare();
            if self.has_work() && until != Until::Now {
                until = if self.is_overdue() { Until::Now } else { Until::Soon };
            }
        }
        if until.may_wait()
            && !self.timers.is_empty()
            && let Some(next) = self.timers.next(&self.core.slots)
        {
            until = match until {
                Until::Time(at) => Until::Time(at.min(next)),
                _ => Until::Time(next),
            };
        }
        let result = if until.may_wait() && self.spin_ns > 0 {
            self.spin_then_turn(until)
        } else {
            self.driver.turn(&mut self.core, until)
        };
        if until.may_wait() {
            self.clock = 0;
        }
        self.look_outside();
        // Before the timers: a deadline does not take what was there in time.
        if self.signals.is_due() {
            self.take_signals();
        }
        if !self.timers.is_empty() {
            let now = self.now();
            while let Some(index) = self.timers.pop_due(&mut self.core.slots, now) {
                self.on_timer(index, now);
            }
        }
        self.budget = Budget { all: self.max_events, posts: self.posts.len(), ended: self.ended_count };
        result
    }

    /// A timer is due: what is ready by now must be seen before it strikes.
    #[inline]
    fn is_overdue(&mut self) -> bool {
        !self.timers.is_empty() && self.timers.next(&self.core.slots).is_some_and(|at| at <= self.now())
    }

    /// Looks again for a while before sleeping, as long as that was worth it the last time.
    #[inline(never)]
    fn spin_then_turn(&mut self, until: Until) -> Result<(), i32> {
        let begun = sys::now();
        if self.last_sleep_ns <= self.spin_ns {
            let mut limit = begun.saturating_add(self.spin_ns);
            if let Until::Time(at) = until {
                limit = limit.min(at);
            }
            loop {
                self.driver.turn(&mut self.core, Until::Now)?;
                let now = sys::now();
                if self.driver.has_leftovers() || self.core.shared.has_messages() || now >= limit {
                    break;
                }
            }
            if self.driver.has_leftovers() || self.core.shared.has_messages() {
                self.last_sleep_ns = 0;
                return Ok(());
            }
        }
        let result = self.driver.turn(&mut self.core, until);
        self.last_sleep_ns = sys::now() - begun;
        result
    }

    /// The shortest way: the next thing to deliver is the success of an operation whose end concerns few. False: ask
    /// [`Engine::next`].
    #[inline(always)]
    fn next_quick(&mut self, out: &mut Delivery) -> bool {
        if self.budget.all == 0 || (self.budget.posts | self.budget.ended | self.ticks.len()) != 0 {
            return false;
        }
        let Some((slot, index, result)) = self.driver.next_quick(&mut self.core) else { return false };
        out.set_plain(slot, result);
        self.leave_quickly(index);
        self.budget.all -= 1;
        true
    }

    /// There is nothing more to deliver in this turn.
    #[inline(always)]
    fn is_drained(&mut self) -> bool {
        (self.budget.posts | self.budget.ended | self.ticks.len()) == 0 && self.driver.is_drained()
    }

    /// The next thing to deliver in this turn.
    pub(super) fn next(&mut self, out: &mut Delivery) -> Option<Next> {
        if self.budget.all == 0 {
            return None;
        }
        if (self.budget.posts | self.budget.ended | self.ticks.len()) != 0 {
            // After so many of the engine's own in a row the driver has its turn: max_events may be 1.
            self.streak += 1;
            if !self.streak.is_multiple_of(FAIR)
                && let Some(next) = self.next_of_the_engine(out)
            {
                self.budget.all -= 1;
                return Some(next);
            }
        }
        loop {
            let outcome = self.driver.next(&mut self.core);
            if outcome.is_none() {
                return self.next_of_the_engine_after_all(out);
            }
            if self.settle(outcome, out) {
                self.budget.all -= 1;
                return Some(Next::Event);
            }
        }
    }

    /// The driver had its turn and has nothing.
    #[inline(always)]
    fn next_of_the_engine_after_all(&mut self, out: &mut Delivery) -> Option<Next> {
        if (self.budget.posts | self.budget.ended | self.ticks.len()) == 0 {
            return None;
        }
        let next = self.next_of_the_engine(out)?;
        self.budget.all -= 1;
        Some(next)
    }

    #[inline(never)]
    fn next_of_the_engine(&mut self, out: &mut Delivery) -> Option<Next> {
        if self.budget.posts > 0 {
            self.budget.posts -= 1;
            if let Some((function, arg)) = self.posts.pop_front() {
                return Some(Next::Post(function, arg));
            }
        }
        while let Some((id, result)) = self.ticks.pop_front() {
            if let Some(delivery) = self.tick_event(id, result) {
                *out = delivery;
                return Some(Next::Event);
            }
        }
        if self.budget.ended == 0 {
            return None;
        }
        self.budget.ended -= 1;
        *out = self.next_ended()?;
        Some(Next::Event)
    }

    /// The final event of the first operation that ended without the driver.
    pub(super) fn next_ended(&mut self) -> Option<Delivery> {
        let index = self.ended_first;
        if index == NONE {
            return None;
        }
        self.ended_first = self.core.slots[index].next;
        if self.ended_first == NONE {
            self.ended_last = NONE;
        }
        self.ended_count -= 1;
        let result = self.core.slots[index].args.len as i64;
        if result == -i64::from(libc::ECANCELED)
            && self.core.def(index).is(op::SIGNAL)
            && let Some(signo) = self.last_signal(index)
        {
            if !self.core.slots[index].has(bits::MULTI) {
                return Some(self.conclude(index, signo, None));
            }
            let told = self.event(index, signo, 0, UPCALL_MORE);
            self.finish(index, result);
            return Some(told);
        }
        Some(self.conclude(index, result, None))
    }

    /// A record for reap.
    pub(super) fn keep(&mut self, event: upcall_event) {
        self.records.push_back(event);
    }

    /// Copies records out.
    pub fn reap(&mut self, room: &mut [std::mem::MaybeUninit<upcall_event>]) -> usize {
        let count = room.len().min(self.records.len());
        for (place, event) in room.iter_mut().zip(self.records.drain(..count)) {
            place.write(event);
        }
        for place in &room[..count] {
            // SAFETY: written just above.
            let event = unsafe { place.assume_init_ref() };
            if event.flags & UPCALL_MORE != 0 {
                self.on_reaped(event.id);
            }
        }
        self.reaped += count as u64;
        // The program has them now.
        while self.claims.front().is_some_and(|claim| claim.0 < self.reaped) {
            self.claims.pop_front();
        }
        count
    }

    pub fn unreaped(&self) -> usize {
        self.records.len()
    }

    /// Takes all records away, for a loop that ends, and gives back what their operations made.
    pub fn drop_records(&mut self) -> Vec<upcall_event> {
        for (_, claim) in self.claims.drain(..) {
            match claim {
                Claim::Made(kind, made) => op::discard(kind, -1, made),
                Claim::Passed(fd) => {
                    sys::close(fd);
                }
            }
        }
        let records: Vec<_> = self.records.drain(..).collect();
        for event in &records {
            op::discard(event.kind as u8, event.result, 0);
        }
        records
    }

    /// The end of a turn: a loop that is waited for from outside says whether it has more to do.
    #[inline(always)]
    fn settle_embedding(&mut self) {
        if self.embed.is_some() {
            self.settle_embed();
        }
    }

    #[inline(never)]
    fn settle_embed(&mut self) {
        self.driver.prepare_embedded_sleep(&mut self.core);
        let more = self.has_work() || self.driver.has_leftovers();
        let next = self.timers.next(&self.core.slots);
        if let Some(embed) = &mut self.embed {
            embed.rest(&self.core.shared, more, next);
        }
    }

    /// Outside a turn something was submitted or cancelled: the outside wait must end.
    #[inline(always)]
    pub fn touched(&mut self) {
        if self.embed.is_some() && !self.in_turn {
            let next = self.timers.next(&self.core.slots);
            if let Some(embed) = &mut self.embed {
                embed.touched(&self.core.shared, next);
            }
        }
    }

    /// Makes the descriptor for another event loop.
    pub fn embed(&mut self) -> Result<i32, i32> {
        if self.embed.is_none() {
            let source = self.driver.embed(&mut self.core)?;
            self.embed = Some(Embed::new(&self.core.shared, source)?);
            self.settle_embedding();
        }
        Ok(self.embed.as_ref().map_or(-libc::ENOMEM, Embed::fd))
    }
}

/// Runs turns until something was delivered, the time is over, or the wait was ended. `engine` is the loop's.
///
/// SAFETY contract of the body: the pointer is the loop's engine, on its owner thread; a reference to it is made for each
/// step and never lives across a callback, which may come back into the engine.
pub(super) fn poll<D: Driver>(this: &Loop, engine: *mut Engine<D>, timeout_ns: i64, mind_records: bool) -> i32 {
    // SAFETY: see above.
    let e = || unsafe { &mut *engine };
    let until = match timeout_ns {
        0 => Until::Now,
        ..0 => Until::Forever,
        _ => Until::Time(sys::now().saturating_add(timeout_ns as u64)),
    };
    e().in_turn = true;
    let mut delivered = 0;
    let result = loop {
        let wait = if mind_records && e().unreaped() > 0 { Until::Now } else { until };
        let gathered = e().gather(wait);
        delivered += deliver(this, engine);
        let over = match wait {
            Until::Now | Until::Soon => true,
            Until::Time(at) => delivered == 0 && sys::now() >= at,
            Until::Forever => false,
        };
        match gathered {
            Err(libc::EINTR) => break 0,
            Err(error) if delivered == 0 => break -error,
            _ if delivered > 0 || over || this.shared().was_nudged() => break 0,
            _ => {}
        }
    };
    e().settle_embedding();
    e().share_slots();
    e().count();
    e().in_turn = false;
    if result < 0 { result } else { delivered }
}

/// Delivers what the turn has gathered.
#[inline(always)]
pub(super) fn deliver<D: Driver>(this: &Loop, engine: *mut Engine<D>) -> i32 {
    // SAFETY: as for `poll`.
    let e = || unsafe { &mut *engine };
    let before = e().budget.all;
    let mut delivery = Delivery::BLANK;
    loop {
        while e().next_quick(&mut delivery) {
            hand_out(this, engine, &delivery);
        }
        if e().is_drained() {
            break;
        }
        match e().next(&mut delivery) {
            Some(Next::Event) => hand_out(this, engine, &delivery),
            // SAFETY: the program's function with the program's argument, as promised to upcall_post.
            Some(Next::Post(function, arg)) => unsafe { function(this.handle(), arg) },
            None => break,
        }
    }
    (before - e().budget.all) as i32
}

/// Calls back, or keeps the record.
#[inline(always)]
pub(super) fn hand_out<D: Driver>(this: &Loop, engine: *mut Engine<D>, delivery: &Delivery) {
    // SAFETY: as for `poll`.
    let e = || unsafe { &mut *engine };
    let Some(callback) = delivery.callback else { return e().keep(delivery.event) };
    e().tally.callbacks += 1;
    let slow = e().slow_callback_ns;
    if slow == 0 {
        // SAFETY: the program's callback, as promised in the header.
        unsafe { callback(this.handle(), &delivery.event) };
        return;
    }
    let begun = sys::now();
    // SAFETY: as above.
    unsafe { callback(this.handle(), &delivery.event) };
    let took = sys::now() - begun;
    let counters = &this.shared().counters;
    counters.longest_callback.raise_to(took);
    counters.slow_callbacks.add(u64::from(took > slow));
}
