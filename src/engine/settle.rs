//! From an outcome to an event, or to the next step of an operation that goes on.

use super::slot::{NONE, Slot, State, bits, rung};
use super::{Claim, Engine, Steps};
use crate::abi::*;
use crate::driver::{Driver, Outcome};
use crate::engine::descriptors::Descriptors;
use crate::op::side::Sent;
use crate::op::{self, OpDef};
use crate::sys;

/// An event and who is told.
pub(crate) struct Delivery {
    pub callback: upcall_callback,
    pub event: upcall_event,
}

impl Delivery {
    /// Nothing yet: the fields that no event changes are zero.
    pub(crate) const BLANK: Delivery = Delivery {
        callback: None,
        event: upcall_event {
            id: 0,
            user: std::ptr::null_mut(),
            result: 0,
            transferred: 0,
            buffer: std::ptr::null_mut(),
            flags: 0,
            kind: 0,
            reserved: [0; 2],
        },
    };

    /// The only event of an operation that succeeded, field by field: moving it around costs more than making it.
    #[inline(always)]
    pub(super) fn set_plain(&mut self, slot: &Slot, result: i64) {
        self.callback = slot.callback;
        self.event.id = slot.id();
        self.event.user = slot.user;
        self.event.result = result;
        self.event.transferred = if slot.has(bits::MOVES) { result as u64 } else { 0 };
        self.event.buffer = std::ptr::null_mut();
        self.event.flags = 0;
        self.event.kind = u32::from(slot.kind);
    }
}

/// The first pause of an operation that must try again, and the longest.
const BACKOFF_NS: u64 = 1_000_000;
const BACKOFF_MAX_NS: u64 = 50_000_000;
const IMPATIENT_MAX_NS: u64 = 20_000_000;

impl<D: Driver> Engine<D> {
    /// What an outcome means: an event in `out` (true), or nothing yet.
    #[inline(always)]
    pub(super) fn settle(&mut self, outcome: Outcome, out: &mut Delivery) -> bool {
        let index = outcome.index;
        let slot = &self.core.slots[index];
        if slot.bits & bits::SLOW == 0 && outcome.result >= 0 && outcome.is_plain() {
            out.set_plain(slot, outcome.result);
            if slot.concerns_few() {
                self.leave_quickly(index);
            } else {
                self.core.counters().completed.add(1);
                self.leave(index);
            }
            return true;
        }
        self.settle_into(outcome, out)
    }

    #[inline(never)]
    fn settle_into(&mut self, outcome: Outcome, out: &mut Delivery) -> bool {
        match self.settle_slowly(outcome) {
            Some(delivery) => {
                *out = delivery;
                true
            }
            None => false,
        }
    }

    pub(super) fn event(&self, index: u32, result: i64, transferred: u64, flags: u32) -> Delivery {
        let slot = &self.core.slots[index];
        Delivery {
            callback: slot.callback,
            event: upcall_event {
                id: slot.id(),
                user: slot.user,
                result,
                transferred,
                buffer: std::ptr::null_mut(),
                flags,
                kind: u32::from(slot.kind),
                reserved: [0; 2],
            },
        }
    }

    fn settle_slowly(&mut self, outcome: Outcome) -> Option<Delivery> {
        let index = outcome.index;
        let stopping = self.core.slots[index].has(bits::ASKED | bits::EXPIRED);
        let mut result = outcome.result;
        if outcome.is_released() {
            return self.on_released(index);
        }
        if outcome.later() {
            if stopping {
                return Some(self.conclude(index, -i64::from(libc::ECANCELED), None));
            }
            self.pause_by_clock(index);
            return None;
        }
        if self.core.slots[index].has(bits::WITHDRAWN) {
            result = -i64::from(libc::ECANCELED);
        }
        if result < 0 && !self.core.def(index).is(op::COMPUTE) {
            match self.reconsider(index, result, stopping) {
                Some(error) => result = error,
                None => {
                    self.recycle(index, outcome.buffer());
                    return None;
                }
            }
        } else if self.core.slots[index].has(bits::RETRIED) {
            self.driver.lower(&self.core, index);
            self.core.slots[index].bits &= !bits::RETRIED;
        }
        if self.core.slots[index].has(bits::MULTI) {
            return self.settle_multishot(outcome, result, stopping);
        }
        if self.core.slots[index].has(bits::FULL) {
            return self.settle_full(index, result, stopping);
        }
        Some(self.conclude(index, result, outcome.buffer()))
    }

    /// Looks at an error again: some are the kernel's affair and not the program's. None: the operation goes on.
    fn reconsider(&mut self, index: u32, result: i64, stopping: bool) -> Option<i64> {
        let cancelled = -i64::from(libc::ECANCELED);
        let native = self.core.slots[index].rung == rung::NATIVE;
        let lends = self.core.side_of(index).is_some_and(|side| side.pool.is_some());
        match -result as i32 {
            // close(2): the descriptor is gone, whatever interrupted the call.
            libc::EINTR if self.core.def(index).is(op::CLOSES) => return Some(0),
            libc::EINTR | libc::EAGAIN if stopping => return Some(cancelled),
            libc::ENOBUFS if lends => {
                if stopping {
                    return Some(cancelled);
                }
                self.on_shortage(index, native);
            }
            // Pinning the data failed; a plain send copies it.
            libc::ENOMEM | libc::ENOBUFS if native && !stopping && self.core.slots[index].is_zerocopy() => {
                self.driver.start_by_attempt(&mut self.core, index);
            }
            libc::EAGAIN if native => self.driver.start_by_attempt(&mut self.core, index),
            libc::EAGAIN => self.pause_by_clock(index),
            libc::EINTR => self.start_again(index),
            // Nobody asked: the kernel could not make a worker (RLIMIT_NPROC), and nothing was done.
            libc::ECANCELED if !stopping => self.driver.start_by_attempt(&mut self.core, index),
            // A refusal may be a lack of support in this kernel: the other way tells, also of one that was asked to end.
            libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS if native && !self.core.slots[index].has(bits::RETRIED) => {
                self.core.slots[index].bits |= bits::RETRIED;
                self.driver.start_by_attempt(&mut self.core, index);
            }
            error => {
                if self.core.slots[index].has(bits::RETRIED) && !native {
                    if !matches!(error, libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS | libc::ECANCELED) {
                        self.driver.lower(&self.core, index);
                    }
                    self.core.slots[index].bits &= !bits::RETRIED;
                }
                return Some(result);
            }
        }
        None
    }

    fn settle_full(&mut self, index: u32, result: i64, stopping: bool) -> Option<Delivery> {
        if result > 0 {
            self.core.advance(index, result as u64);
            let moved = self.core.slots[index].transferred as i64;
            if self.core.left(index) == 0 || sys::is_message_socket(self.core.slots[index].args.fd()) {
                return Some(self.conclude(index, moved, None));
            }
            if stopping {
                return Some(self.conclude(index, -i64::from(libc::ECANCELED), None));
            }
            self.core.counters().rearms.add(1);
            if let Some(side) = self.core.side_of(index) {
                side.backoff_ns = 0;
            }
            self.driver.start(&mut self.core, index);
            return None;
        }
        let slot = &self.core.slots[index];
        let moved = slot.transferred as i64;
        // End of file is the short count. O_DIRECT answers EINVAL to the unaligned rest that is not there.
        let at_end = result == -i64::from(libc::EINVAL)
            && moved > 0
            && self.core.def(index).is(op::POSITIONAL)
            && self.core.def(index).is(op::INWARD)
            && sys::is_at_end(slot.args.fd(), slot.args.offset);
        let result = if result == 0 || at_end { moved } else { result };
        Some(self.conclude(index, result, None))
    }

    fn settle_multishot(&mut self, outcome: Outcome, result: i64, stopping: bool) -> Option<Delivery> {
        let index = outcome.index;
        let def = self.core.def(index);
        if result < 0 {
            let shortage = matches!(-result as i32, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM);
            if !shortage || !def.is(op::SHORTAGE) || stopping {
                return Some(self.conclude(index, result, outcome.buffer()));
            }
            let first = !self.core.slots[index].has(bits::REPORTED);
            self.core.slots[index].bits |= bits::REPORTED;
            let delivery = first.then(|| self.event(index, result, 0, UPCALL_MORE));
            self.pause_by_clock(index);
            return delivery;
        }
        if result == 0 && def.is(op::MOVES) {
            let empty_message = outcome.buffer().is_some() && sys::has_empty_messages(self.core.slots[index].args.fd());
            if !empty_message && !outcome.more() {
                return Some(self.conclude(index, 0, outcome.buffer()));
            }
        }
        let transferred = if def.is(op::MOVES) { result as u64 } else { 0 };
        let mut delivery = self.event(index, result, transferred, UPCALL_MORE);
        delivery.event.buffer = self.lend(index, outcome.buffer());
        self.claim_passed(index, &delivery);
        let slot = &mut self.core.slots[index];
        slot.bits &= !bits::REPORTED;
        let counted = slot.callback.is_none();
        if let Some(side) = self.core.side_of(index) {
            side.backoff_ns = 0;
        }
        if counted {
            self.core.side(index).unreaped += 1;
        }
        if stopping {
            if !outcome.more() {
                self.finish(index, -i64::from(libc::ECANCELED));
            }
            return Some(delivery);
        }
        let dry =
            self.core.side_of(index).is_some_and(|side| side.pool.as_ref().is_some_and(|pool| pool.available() == 0));
        match (dry, outcome.more()) {
            (false, true) => self.restart_idle_limit(index),
            (false, false) => {
                self.restart_idle_limit(index);
                self.core.counters().rearms.add(1);
                self.go_on(index);
            }
            // The kernel's multishot goes on, and stops when there is data; its idle limit stands still from now on.
            (true, true) => {
                self.timers.disarm(&mut self.core.slots, index);
                self.queue_for_buffer(index);
            }
            (true, false) => self.pause_for_buffer(index),
        }
        Some(delivery)
    }

    /// The idle limit of a multishot begins anew.
    fn restart_idle_limit(&mut self, index: u32) {
        if let Some(timeout) = self.core.side_of(index).map(|side| side.timeout_ns).filter(|&ns| ns != 0) {
            let at = sys::now().saturating_add(timeout);
            if self.core.def(index).is(op::TIMER) {
                self.core.side(index).deadline_at = at;
            } else {
                self.arm(index, at, timeout);
            }
        }
    }

    /// Starts the next round of a multishot, or pauses it at one of its limits.
    pub(super) fn go_on(&mut self, index: u32) {
        let max_events = self.max_events;
        let limited = self.core.side_of(index).is_some_and(|side| {
            (side.lend_max != 0 && side.lent >= side.lend_max) || side.unreaped as usize >= max_events
        });
        if limited {
            return self.pause(index);
        }
        self.core.slots[index].state = State::Started;
        self.start_again(index);
    }

    /// Starts an operation once more, the way that is being tried.
    fn start_again(&mut self, index: u32) {
        if self.core.slots[index].has(bits::RETRIED) {
            self.driver.start_by_attempt(&mut self.core, index);
        } else {
            self.driver.start(&mut self.core, index);
        }
    }

    /// Stops an operation until something of the program's own allows it to go on; its idle limit stands still.
    fn pause(&mut self, index: u32) {
        self.timers.disarm(&mut self.core.slots, index);
        let slot = &mut self.core.slots[index];
        slot.state = State::Paused;
        slot.rung = rung::IDLE;
    }

    /// An operation found no buffer. Where the pool counts one that is not lent, waiting for a return would not wait. Most often
    /// it has come back meanwhile, so the same way is tried again: at once, then with longer and longer pauses. What the
    /// kernel's set still lacks then (6.1 miscounted), the other may have; asked sooner, the two would lend more than there are.
    fn on_shortage(&mut self, index: u32, native: bool) {
        let pool = self.core.side_of(index).and_then(|side| side.pool.as_ref());
        if !pool.is_some_and(|pool| pool.available() > 0 && !pool.has_returned()) {
            return self.pause_for_buffer(index);
        }
        match self.core.side(index).backoff_ns {
            0 if native => {
                self.core.side(index).backoff_ns = 1;
                self.start_again(index);
            }
            BACKOFF_MAX_NS if native => self.driver.start_by_attempt(&mut self.core, index),
            _ => self.pause_by_clock(index),
        }
    }

    /// Stops an operation until a buffer comes back.
    fn pause_for_buffer(&mut self, index: u32) {
        let multi = self.core.slots[index].has(bits::MULTI);
        let deadline = self.deadline_of(index);
        self.pause(index);
        self.queue_for_buffer(index);
        if !multi && deadline != u64::MAX {
            // A deadline goes on, an idle limit does not.
            self.core.side(index).deadline_at = deadline;
            self.arm(index, deadline, u64::MAX);
        }
    }

    /// The operation is told when its pool has buffers again.
    fn queue_for_buffer(&mut self, index: u32) {
        let id = self.core.slots[index].id();
        let side = self.core.side(index);
        if !side.starved {
            side.starved = true;
            if let Some(pool) = &side.pool {
                pool.inner().waiting.push_back(id);
            }
        }
    }

    /// When the operation's own deadline is; u64::MAX: never.
    fn deadline_of(&mut self, index: u32) -> u64 {
        match self.core.side_of(index).map_or(0, |side| side.deadline_at) {
            0 if self.core.slots[index].has(bits::TIMED) => self.core.slots[index].deadline,
            0 => u64::MAX,
            at => at,
        }
    }

    /// Stops an operation for a while that grows each time.
    pub(super) fn pause_by_clock(&mut self, index: u32) {
        let now = sys::now();
        let deadline = self.deadline_of(index);
        self.pause(index);
        let most = if self.core.def(index).is(op::IMPATIENT) { IMPATIENT_MAX_NS } else { BACKOFF_MAX_NS };
        let side = self.core.side(index);
        side.backoff_ns = (side.backoff_ns * 2).clamp(BACKOFF_NS, most);
        side.wake_at = now + side.backoff_ns;
        side.deadline_at = if deadline == u64::MAX { 0 } else { deadline };
        let at = side.wake_at.min(deadline);
        self.arm(index, at, u64::MAX);
    }

    /// Lets a paused operation go on.
    pub(super) fn resume(&mut self, index: u32) {
        if self.core.slots[index].state != State::Paused {
            // The kernel's multishot never stopped; only its idle limit did.
            let slot = &self.core.slots[index];
            if slot.state == State::Started && !slot.has(bits::ASKED | bits::EXPIRED) && self.core.side(index).starved {
                self.core.side(index).starved = false;
                self.restart_idle_limit(index);
            }
            return;
        }
        let deadline = self.deadline_of(index);
        self.timers.disarm(&mut self.core.slots, index);
        let multi = self.core.slots[index].has(bits::MULTI);
        let starved = self.core.side_of(index).is_some_and(|side| side.starved);
        if let Some(side) = self.core.side_of(index) {
            side.wake_at = 0;
            side.deadline_at = 0;
            side.starved = false;
        }
        // Changes during the pause were seen by nobody: look at the level again.
        if self.core.def(index).is(op::EDGE) {
            self.core.slots[index].args.stage = 0;
        }
        // A pause at a limit (lent buffers, unreaped records) took the idle limit away; one by the clock kept it.
        if multi && (starved || deadline == u64::MAX) {
            self.restart_idle_limit(index);
        } else if deadline != u64::MAX {
            self.arm(index, deadline, u64::MAX);
        }
        self.core.counters().rearms.add(1);
        self.go_on(index);
    }

    /// A timer came due.
    pub(super) fn on_timer(&mut self, index: u32, now: u64) {
        let armed_for = self.core.slots[index].deadline;
        let slot = &self.core.slots[index];
        if slot.state == State::Started && slot.has(bits::ASKED | bits::EXPIRED) {
            return self.ask_driver(index);
        }
        let side = self.core.side_of(index);
        let (deadline, wake) = side.map_or((0, 0), |side| (side.deadline_at, side.wake_at));
        if self.core.def(index).is(op::TIMER) {
            if self.core.slots[index].args.offset <= now {
                return self.tick(index, now);
            }
            if deadline != 0 && deadline <= now {
                return self.cancel_operation(index, bits::EXPIRED);
            }
            return self.arm_sleep(index);
        }
        let deadline = if deadline == 0 && wake == 0 { armed_for } else { deadline };
        if deadline != 0 && deadline <= now {
            return self.cancel_operation(index, bits::EXPIRED);
        }
        if wake != 0 && wake <= now {
            return self.resume(index);
        }
        let next = [deadline, wake].into_iter().filter(|&at| at != 0).min().unwrap_or(u64::MAX);
        self.arm(index, next, u64::MAX);
    }

    /// A sleep is over, or a repeating one ticks: missed periods merge.
    fn tick(&mut self, index: u32, now: u64) {
        if !self.core.slots[index].has(bits::MULTI) {
            return self.finish(index, 0);
        }
        let args = &mut self.core.slots[index].args;
        let periods = (now - args.offset) / args.len + 1;
        args.offset = args.offset.saturating_add(periods.saturating_mul(args.len));
        self.queue_tick(index, periods.min(i64::MAX as u64) as i64);
        if self.core.slots[index].state == State::Sleeping {
            self.arm_sleep(index);
        }
    }

    /// Queues an event of a multishot that the engine does itself.
    pub(super) fn queue_tick(&mut self, index: u32, result: i64) {
        let id = self.core.slots[index].id();
        self.ticks.push_back((id, result));
        if self.core.slots[index].callback.is_none() {
            let most = self.max_events;
            let side = self.core.side(index);
            side.unreaped += 1;
            if side.unreaped as usize >= most {
                // It goes on when records are reaped; what comes in between merges.
                return self.pause(index);
            }
        }
        self.restart_idle_limit(index);
    }

    /// The event of a tick; None: its operation has ended meanwhile.
    pub(super) fn tick_event(&mut self, id: u64, result: i64) -> Option<Delivery> {
        let index = self.core.slots.find(id)?;
        Some(self.event(index, result, 0, UPCALL_MORE))
    }

    /// A record of a multishot was reaped.
    pub(super) fn on_reaped(&mut self, id: u64) {
        let Some(index) = self.core.slots.find(id) else { return };
        let Some(side) = self.core.side_of(index) else { return };
        side.unreaped = side.unreaped.saturating_sub(1);
        let waits = side.starved || side.wake_at != 0;
        if self.core.slots[index].state == State::Paused && !waits {
            if self.core.def(index).is(op::TIMER) {
                self.core.slots[index].state = State::Sleeping;
                self.restart_idle_limit(index);
                return self.arm_sleep(index);
            }
            if self.core.def(index).is(op::SIGNAL) {
                self.restart_idle_limit(index);
                return self.resume_signal(index);
            }
            self.resume(index);
        }
    }

    /// Lends a buffer to the event about to be delivered.
    fn lend(&mut self, index: u32, buffer: Option<u32>) -> *mut std::ffi::c_void {
        let id = self.core.slots[index].id();
        let (Some(number), Some(side)) = (buffer, self.core.side_of(index)) else { return std::ptr::null_mut() };
        let Some(pool) = &side.pool else { return std::ptr::null_mut() };
        side.lent += 1;
        pool.lend(number, id).cast()
    }

    /// A buffer that was picked and not filled goes back.
    fn recycle(&mut self, index: u32, buffer: Option<u32>) {
        let (Some(number), Some(side)) = (buffer, self.core.side_of(index)) else { return };
        if let Some(pool) = &side.pool {
            match pool.is_kernels(number) {
                true => self.driver.refill(pool, number),
                false => pool.inner().free.push(number),
            }
        }
    }

    /// Takes in the buffers that came back, and lets operations that waited for one go on.
    pub(super) fn serve_pools(&mut self) {
        for position in (0..self.pools.len()).rev() {
            let pool = self.pools[position].clone();
            while let Some((number, holder)) = pool.take_returned() {
                match pool.is_kernels(number) {
                    true => self.driver.refill(&pool, number),
                    false => pool.inner().free.push(number),
                }
                let Some(index) = self.core.slots.find(holder) else { continue };
                let Some(side) = self.core.side_of(index) else { continue };
                side.lent = side.lent.saturating_sub(1);
                let waits = side.starved || side.wake_at != 0;
                if self.core.slots[index].state == State::Paused && !waits {
                    self.resume(index);
                }
            }
            let ready = pool.inner().waiting.len().min(pool.available());
            for _ in 0..ready {
                let Some(id) = pool.inner().waiting.pop_front() else { break };
                if let Some(index) = self.core.slots.find(id) {
                    self.resume(index);
                }
            }
            if pool.is_retired() {
                self.driver.forget_pool(&pool);
                pool.inner().watched = false;
                self.pools.swap_remove(position);
            }
        }
    }

    /// Whether [`Engine::serve_pools`] would do anything.
    pub(super) fn pools_have_work(&self) -> bool {
        self.pools.iter().any(|pool| {
            pool.has_returned() || (!pool.inner().waiting.is_empty() && pool.available() > 0) || pool.is_retired()
        })
    }

    /// The final event of an operation.
    pub(super) fn conclude(&mut self, index: u32, result: i64, buffer: Option<u32>) -> Delivery {
        let def = self.core.def(index);
        let part = if def.is(op::MOVES) && !self.core.slots[index].has(bits::FULL) { result.max(0) as u64 } else { 0 };
        let transferred = self.core.slots[index].transferred + part;
        let expired = result == -i64::from(libc::ECANCELED) && self.core.slots[index].has(bits::EXPIRED);
        let (mut result, mut flags) = match expired {
            true => (-i64::from(libc::ETIMEDOUT), UPCALL_EXPIRED),
            false => (result, 0),
        };
        let mut transferred = transferred;
        if self.core.slots[index].is_zerocopy() {
            let (sent, begun) = (self.core.side(index).sent, self.core.side(index).begun);
            match sent {
                Some(sent) => {
                    (result, transferred, flags) = (sent.result, sent.transferred, sent.flags | UPCALL_RELEASED)
                }
                None if begun > 0 => {
                    return self.tell_sent(index, Sent { result, transferred, flags }, part);
                }
                None => {}
            }
        }
        let counters = self.core.counters();
        if flags & UPCALL_EXPIRED != 0 {
            counters.timed_out.add(1);
        } else if result == -i64::from(libc::ECANCELED) && self.core.slots[index].has(bits::ASKED) {
            counters.cancelled.add(1);
        } else {
            counters.completed.add(1);
        }
        let mut delivery = self.event(index, result, transferred, flags);
        if buffer.is_some() {
            let empty_message = result == 0 && sys::has_empty_messages(self.core.slots[index].args.fd());
            if result > 0 || empty_message {
                delivery.event.buffer = self.lend(index, buffer);
            } else {
                self.recycle(index, buffer);
            }
        }
        let (slot, mut side) = self.core.both(index);
        if let Some(side) = &mut side
            && !side.watched.is_empty()
        {
            side.watched.end(transferred, result >= 0);
        }
        if let (Some(finish), Some(side)) = (def.finish, side)
            && side.pool.is_none()
        {
            finish(&slot.args, side, result);
            if side.made != 0 && slot.callback.is_none() {
                self.claims.push_back((self.reaped + self.records.len() as u64, Claim::Made(slot.kind, side.made)));
            }
        }
        self.claim_passed(index, &delivery);
        if def.is(op::SHUTS) && result == 0 {
            // A send that waits for room at a unix socket is not told of it (6.18).
            for other in self.core.operations(self.core.slots[index].args.fd()) {
                self.driver.look_again(&mut self.core, other);
            }
        }
        let steps = self.leave_group(index, def, result, part);
        self.leave(index);
        if let Some(steps) = steps {
            self.follow(steps);
        }
        delivery
    }

    /// Descriptors that came with a message whose event is about to become a record.
    #[inline]
    fn claim_passed(&mut self, index: u32, delivery: &Delivery) {
        let def = self.core.def(index);
        if delivery.callback.is_some() || delivery.event.result < 0 || def.passed.is_none() {
            return;
        }
        let number = self.reaped + self.records.len() as u64;
        let (slot, side) = self.core.both(index);
        if let (Some(passed), Some(side)) = (def.passed, side) {
            let claims = &mut self.claims;
            passed(&slot.args, side, delivery.event.buffer.cast(), &mut |fd| {
                claims.push_back((number, Claim::Passed(fd)));
            });
        }
    }

    /// The first of a zero-copy send's two events. What waits for the operation goes on; its id and its data stay in use.
    fn tell_sent(&mut self, index: u32, sent: Sent, part: u64) -> Delivery {
        let delivery = self.event(index, sent.result, sent.transferred, sent.flags | UPCALL_MORE);
        let steps = self.leave_group(index, self.core.def(index), sent.result, part);
        self.timers.disarm(&mut self.core.slots, index);
        let clear = self.core.unlist(index);
        let slot = &mut self.core.slots[index];
        slot.bits &= !bits::GROUPED;
        slot.state = State::Sent;
        let side = self.core.side(index);
        side.sent = Some(sent);
        if side.owed <= 0 {
            self.finish(index, sent.result);
        }
        if let Some(fd) = clear {
            self.note_closer(fd);
        }
        if let Some(steps) = steps {
            self.follow(steps);
        }
        delivery
    }

    /// The kernel has let go of one request's data.
    fn on_released(&mut self, index: u32) -> Option<Delivery> {
        let side = self.core.side(index);
        side.owed -= 1;
        let last = side.owed <= 0;
        let result = side.sent?.result;
        last.then(|| self.conclude(index, result, None))
    }

    /// Tells the operation's ordered submit how it ended: what follows once it has left.
    fn leave_group(&mut self, index: u32, def: &OpDef, result: i64, part: u64) -> Option<Steps> {
        if !self.core.slots[index].has(bits::GROUPED) {
            return None;
        }
        let (number, place) = self.core.side_of(index).map(|side| (side.group, side.place))?;
        let number = number?;
        let full = !def.is(op::MOVES)
            || def.is(op::RECORDS)
            || self.core.side_of(index).is_some_and(|side| side.pool.is_some())
            || {
                let ended_by_engine = self.core.slots[index].state == State::Ended;
                ended_by_engine || self.core.left(index) <= part
            };
        let mut steps = Steps::default();
        let group = &mut self.groups[number as usize];
        group.ended(place, result >= 0 && full, &mut steps);
        if group.is_over() {
            self.free_groups.push(number);
        }
        Some(steps)
    }

    /// [`Engine::leave`] for one that completed and [concerns few](super::slot::Slot::concerns_few).
    #[inline(always)]
    pub(super) fn leave_quickly(&mut self, index: u32) {
        if self.core.slots[index].rung == rung::NATIVE {
            self.tally.native += 1;
        } else {
            self.core.counters().completed.add(1);
            self.count_rung(index);
        }
        let slot = &mut self.core.slots[index];
        slot.state = State::Free;
        let listed = slot.has(bits::LISTED);
        let reusable = slot.shut();
        // One that is not listed names no descriptor.
        if listed {
            let clear = self.core.unlist(index);
            self.core.slots[index].args.forget_fd();
            if let Some(fd) = clear {
                self.note_closer(fd);
            }
        }
        if reusable {
            self.core.slots.put_back(index);
        }
        self.in_flight -= 1;
    }

    /// Frees everything an operation had. Its id is stale from here on.
    pub(super) fn leave(&mut self, index: u32) {
        let slot = &self.core.slots[index];
        let set = slot.bits;
        if set & !(bits::MOVES | bits::LISTED | bits::FOREIGN) != 0 || slot.rung != rung::NATIVE {
            self.leave_slowly(index);
        } else {
            self.core.counters().native.add(1);
        }
        if let Some(fd) = self.core.unlist(index) {
            self.note_closer(fd);
        }
        if set & bits::SPECIAL != 0
            && let Some(fd) = self.core.unlist_second(index)
        {
            self.note_closer(fd);
        }
        self.in_flight -= 1;
        let slot = &mut self.core.slots[index];
        slot.state = State::Free;
        slot.args.forget_fd();
        let reusable = slot.shut();
        if set & bits::FOREIGN != 0 {
            if reusable {
                self.core.shared.put_back_foreign(index);
            }
        } else if reusable {
            self.core.slots.put_back(index);
        }
    }

    /// Counts how an operation was done.
    fn count_rung(&self, index: u32) {
        let counters = self.core.counters();
        match self.core.slots[index].rung {
            rung::NATIVE => counters.native.add(1),
            rung::POOL | rung::OWN => counters.pool.add(1),
            _ => counters.emulated.add(1),
        }
    }

    fn leave_slowly(&mut self, index: u32) {
        self.timers.disarm(&mut self.core.slots, index);
        self.count_rung(index);
        let slot = &self.core.slots[index];
        self.background -= usize::from(slot.has(bits::BACKGROUND));
        let (kind, fd) = (slot.kind, slot.args.fd());
        let number = slot.side;
        if self.core.def(index).is(op::SIGNAL) {
            self.forget_signal(index);
        }
        self.core.slots[index].transferred = 0;
        if number == NONE {
            return;
        }
        let held_cursor = self.core.sides.get(number).holds_cursor;
        if let Some(pool) = self.core.sides.get(number).pool.take() {
            pool.leave();
        }
        self.core.sides.put_back(number);
        self.core.slots[index].side = NONE;
        if held_cursor
            && let Some(inward) = Descriptors::cursor_of(kind)
            && self.core.descriptors.cursor_leave(fd, inward)
        {
            self.start_cursor_waiters(fd);
        }
    }

    /// Starts the operations that waited for the descriptor's position and may have it now, oldest first.
    fn start_cursor_waiters(&mut self, fd: i32) {
        for index in self.core.descriptors.operations(&self.core.slots, fd) {
            if self.core.slots[index].state != State::Cursor {
                continue;
            }
            let Some(inward) = Descriptors::cursor_of(self.core.slots[index].kind) else { continue };
            // One in the other direction may go.
            if !self.core.descriptors.cursor_enter(fd, inward) {
                continue;
            }
            if let Some(descriptor) = self.core.descriptors.get(fd) {
                descriptor.cursor_waiting = descriptor.cursor_waiting.saturating_sub(1);
            }
            self.core.side(index).holds_cursor = true;
            self.core.slots[index].state = State::Started;
            self.driver.start(&mut self.core, index);
        }
    }

    /// The last operation before a waiting close has its final event: the close begins after its delivery.
    #[cold]
    pub(super) fn note_closer(&mut self, fd: i32) {
        if let Some(descriptor) = self.core.descriptors.get(fd) {
            let id = self.core.slots[descriptor.closer].id();
            self.closers.push(id);
        }
    }

    /// Starts the closes whose descriptors are clear.
    pub(super) fn start_closers(&mut self) {
        for id in std::mem::take(&mut self.closers) {
            let Some(index) = self.core.slots.find(id) else { continue };
            if self.core.slots[index].state == State::Closing {
                self.hand_over_close(index);
            }
        }
    }
}
