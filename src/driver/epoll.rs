//! The epoll driver. The numbered order of one turn:
//!
//! 1. If the loop would block: registrations that are not trusted are verified.
//! 2. epoll_wait, without blocking while anything is queued; then not in every turn, where the program would have waited.
//! 3. Operations whose descriptor became ready join those that were started; each is attempted when its outcome is asked
//!    for, so that a callback runs right after the call it belongs to.
//!
//! A descriptor is registered once, edge-triggered, for everything. An event is only a hint: results come from system calls.
//! A registration is *trusted* while operations are in flight on the descriptor without a gap. After a gap the number may
//! be another file, so an operation that waits makes it suspect, and before the loop blocks it is verified: MOD, which also
//! reports readiness that was missed, and on ENOENT ADD. Without this a closed and reused number loses operations
//! (reproduced); MOD for every message would cost 10 to 15 %.

use super::attempts::{Attempts, Step, drop_result};
use super::threads::Threads;
use super::{Cancel, Driver, Outcome, Until};
use crate::abi::{UPCALL_EMULATED, UPCALL_UNSUPPORTED};
use crate::engine::core::Core;
use crate::engine::descriptors::KEPT;
use crate::engine::shared::Shared;
use crate::engine::slot::{NONE, bits, rung};
use crate::{op, sys};
use std::sync::Arc;

/// `Descriptor::interest`: in the epoll set, perhaps as another file.
const REGISTERED: u8 = KEPT;
/// The registration is this file's.
const TRUSTED: u8 = 2;
/// In the list of suspects.
const SUSPECT: u8 = 4;
/// epoll refuses to watch it: a file that is always ready, or no memory.
const UNWATCHED: u8 = 8;
/// It showed its end, and what waits for data there may have missed that.
const ENDED: u8 = 16;
/// When it was last reported it showed no end, no error and no urgent data.
const CALM: u8 = 32;

const ALL_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET) as u32
    | (libc::EPOLLRDNORM | libc::EPOLLRDBAND | libc::EPOLLWRNORM | libc::EPOLLWRBAND | libc::EPOLLMSG) as u32;
const UNREST: u32 = ALWAYS | (libc::EPOLLRDHUP | libc::EPOLLPRI) as u32;
/// poll(2) and epoll agree on these bits; they answer every wait.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// The epoll datum of the loop's own eventfd.
const WAKE: u64 = u64::MAX;
/// A suspect is verified after so many turns even while the loop never blocks.
const PATIENCE: u32 = 64;
const BATCH: usize = 256;

/// See the module.
pub(crate) struct Epoll {
    epoll: i32,
    attempts: Attempts,
    suspects: Vec<i32>,
    turns_since_verified: u32,
    /// The turn before asked epoll what is ready.
    looked: bool,
    events: Box<[libc::epoll_event; BATCH]>,
}

impl Epoll {
    pub fn new(shared: &Arc<Shared>, workers: u32) -> Result<Epoll, i32> {
        let epoll = sys::epoll_create();
        if epoll < 0 {
            return Err(-epoll as i32);
        }
        let driver = Epoll {
            epoll: epoll as i32,
            attempts: Attempts::new(Threads::new(shared.clone(), workers)),
            suspects: Vec::new(),
            turns_since_verified: 0,
            looked: false,
            events: Box::new([libc::epoll_event { events: 0, u64: 0 }; BATCH]),
        };
        // Edge-triggered: each write wakes again, so it need not be read.
        let wake = (libc::EPOLLIN | libc::EPOLLET) as u32;
        match sys::epoll_ctl(driver.epoll, libc::EPOLL_CTL_ADD, shared.wake, wake, WAKE) {
            0 => Ok(driver),
            error => Err(-error as i32),
        }
    }

    /// The operation waits until its descriptor shows one of `events`; where that cannot be watched, for a while.
    fn wait(&mut self, core: &mut Core, index: u32, events: u32) -> Outcome {
        if events & op::SECOND != 0 {
            return self.wait_second(core, index, events);
        }
        // A descriptor that the attempt has opened to wait on.
        if !core.slots[index].has(bits::LISTED) {
            if !core.descriptors.link(&mut core.slots, index) {
                // Nobody would find it when its descriptor is ready.
                return Outcome::postponed(index);
            }
            core.slots[index].bits |= bits::LISTED;
        }
        if self.is_unwatched(core, index) {
            return Outcome::postponed(index);
        }
        let fd = core.slots[index].args.fd();
        if core.descriptors.get(fd).is_some_and(|descriptor| descriptor.interest & ENDED != 0)
            && let Some(end) = Attempts::end_instead(core, index, events)
        {
            return end;
        }
        core.slots[index].rung = rung::WAITING;
        core.slots[index].next = events;
        if let Some(descriptor) = core.descriptors.get(fd)
            && descriptor.interest & (TRUSTED | SUSPECT) == 0
        {
            descriptor.interest |= SUSPECT;
            self.suspects.push(fd);
        }
        Outcome::NONE
    }

    /// As [`Epoll::wait`], on the second descriptor. Trust is built on the lists of first descriptors, so each such wait
    /// makes the registration true itself; that also reports readiness that was missed.
    fn wait_second(&mut self, core: &mut Core, index: u32, events: u32) -> Outcome {
        let fd = core.slots[index].args.fd2();
        if !self.register(core, fd) {
            return Outcome::postponed(index);
        }
        core.slots[index].rung = rung::WAITING;
        core.slots[index].next = events;
        Outcome::NONE
    }

    /// Makes a descriptor's registration true.
    fn register(&mut self, core: &mut Core, fd: i32) -> bool {
        let known = core.descriptors.entry(fd).is_some_and(|descriptor| descriptor.interest & REGISTERED != 0);
        let (first, second) = match known {
            true => (libc::EPOLL_CTL_MOD, libc::EPOLL_CTL_ADD),
            false => (libc::EPOLL_CTL_ADD, libc::EPOLL_CTL_MOD),
        };
        core.counters().system_calls.add(1);
        let mut answer = sys::epoll_ctl(self.epoll, first, fd, ALL_EVENTS, fd as u64);
        if matches!(-answer as i32, libc::ENOENT | libc::EEXIST) {
            core.counters().system_calls.add(1);
            answer = sys::epoll_ctl(self.epoll, second, fd, ALL_EVENTS, fd as u64);
        }
        if let (0, Some(descriptor)) = (answer, core.descriptors.get(fd)) {
            descriptor.interest |= REGISTERED;
        }
        answer == 0
    }

    fn is_unwatched(&self, core: &mut Core, index: u32) -> bool {
        let fd = core.slots[index].args.fd();
        core.descriptors.get(fd).is_some_and(|descriptor| descriptor.interest & UNWATCHED != 0)
    }

    /// Makes every suspect's registration true.
    fn verify(&mut self, core: &mut Core) {
        self.turns_since_verified = 0;
        for position in 0..self.suspects.len() {
            let fd = self.suspects[position];
            let Some(descriptor) = core.descriptors.get(fd) else { continue };
            // The gap may have come after: then nobody waits.
            if descriptor.interest & SUSPECT == 0 || descriptor.head == NONE {
                continue;
            }
            let registered = self.register(core, fd);
            if let Some(descriptor) = core.descriptors.get(fd) {
                descriptor.interest = if registered { REGISTERED | TRUSTED } else { UNWATCHED };
            }
            if !registered {
                // It cannot be waited for. The next attempts say what there is to say, with pauses between them.
                self.ready(core, fd, u32::MAX);
            }
        }
        self.suspects.clear();
    }

    /// Queues the operations on `fd` that wait for one of `seen`.
    fn ready(&mut self, core: &mut Core, fd: i32, seen: u32) {
        let mut index = NONE;
        if let Some(descriptor) = core.descriptors.get(fd) {
            index = descriptor.head;
            descriptor.interest &= !CALM;
            if seen & UNREST == 0 {
                descriptor.interest |= CALM;
            } else if seen & libc::EPOLLRDHUP as u32 != 0 {
                descriptor.interest |= ENDED;
            }
        }
        while index != NONE {
            let slot = &core.slots[index];
            let next = slot.fd_next;
            let on_first = slot.next & op::SECOND == 0;
            if slot.rung == rung::WAITING && on_first && (slot.next | ALWAYS) & seen != 0 {
                self.attempts.push(core, index);
            }
            index = next;
        }
        for id in core.shared.seconds.on(fd) {
            let Some(index) = core.slots.find(id) else { continue };
            let slot = &core.slots[index];
            let on_second = slot.next & op::SECOND != 0;
            if slot.rung == rung::WAITING && on_second && (slot.next | ALWAYS) & seen != 0 {
                self.attempts.push(core, index);
            }
        }
    }

    /// A receive that goes on and got less than it had room for has taken all there was, where nothing else stops one (epoll(7)):
    /// a connection of bytes, without an end, an error or urgent data when it was reported. What comes later is reported.
    fn note_emptied(&mut self, core: &mut Core, outcome: &Outcome) {
        let (slot, side) = core.both(outcome.index);
        let Some(pool) = side.and_then(|side| side.pool.as_ref()) else { return };
        let room = if slot.args.len == 0 { u64::from(pool.size) } else { slot.args.len.min(u64::from(pool.size)) };
        if !slot.has(bits::MULTI)
            || slot.kind != op::RECV
            || slot.args.arg != 0
            || !(1..room as i64).contains(&outcome.result)
        {
            return;
        }
        let fd = slot.args.fd();
        let calm = core.descriptors.get(fd).is_some_and(|known| known.interest & (CALM | TRUSTED) == CALM | TRUSTED);
        if calm && core.descriptors.is_plain_tcp(fd) {
            core.slots[outcome.index].rung = rung::EMPTIED;
        }
    }

    /// A descriptor about to be closed leaves the set, also where a duplicate keeps its file open.
    fn forget(&mut self, core: &mut Core, index: u32) {
        let fd = core.slots[index].args.fd();
        if let Some(descriptor) = core.descriptors.get(fd)
            && descriptor.interest & REGISTERED != 0
        {
            descriptor.interest = 0;
            core.counters().system_calls.add(1);
            sys::epoll_ctl(self.epoll, libc::EPOLL_CTL_DEL, fd, 0, 0);
        }
    }

    fn harvest(&mut self, core: &mut Core, timeout_ns: i64) -> i64 {
        core.counters().system_calls.add(1);
        self.looked = true;
        let count = sys::epoll_wait(self.epoll, &mut self.events[..], timeout_ns);
        for position in 0..count.max(0) as usize {
            let event = self.events[position];
            let (seen, data) = (event.events, event.u64);
            if data != WAKE {
                self.ready(core, data as i32, seen);
            }
        }
        count
    }
}

impl Driver for Epoll {
    fn adopt(&mut self, _: &mut Core) -> Result<(), i32> {
        Ok(())
    }

    fn release(&mut self, _: &mut Core) -> Result<(), i32> {
        Ok(())
    }

    #[inline]
    fn start(&mut self, core: &mut Core, index: u32) {
        if core.slots[index].args.stage != 0 && core.def(index).is(op::EDGE) {
            let events = core.slots[index].args.arg;
            if self.wait(core, index, events).is_none() {
                return;
            }
        }
        if core.slots[index].rung == rung::EMPTIED && self.wait(core, index, libc::POLLIN as u32).is_none() {
            return;
        }
        self.attempts.push(core, index);
    }

    fn start_by_attempt(&mut self, core: &mut Core, index: u32) {
        self.attempts.push(core, index);
    }

    fn cancel(&mut self, core: &mut Core, index: u32) -> Cancel {
        self.attempts.cancel(core, index)
    }

    fn lower(&mut self, _: &Core, _: u32) {}

    fn look_again(&mut self, core: &mut Core, index: u32) {
        if core.slots[index].rung == rung::WAITING {
            self.attempts.push(core, index);
        }
    }

    fn has_work(&self) -> bool {
        self.attempts.has_work()
    }

    fn has_leftovers(&mut self) -> bool {
        self.has_work()
    }

    fn turn(&mut self, core: &mut Core, until: Until) -> Result<(), i32> {
        self.turns_since_verified += 1;
        if until == Until::Soon && self.looked && self.attempts.has_work() && self.turns_since_verified < PATIENCE {
            self.looked = false;
            self.attempts.open_turn();
            return Ok(());
        }
        let mut wait = until.may_wait() && !self.attempts.has_work();
        // A turn with nothing else to do, whether it may wait or not, verifies: the program may never let one wait.
        let idle = !self.attempts.has_work();
        if !self.suspects.is_empty() && (idle || self.turns_since_verified >= PATIENCE) {
            // Under load something is ready, and verifying can wait a little.
            if idle && self.turns_since_verified < PATIENCE && self.harvest(core, 0) > 0 {
                wait = false;
            } else {
                self.verify(core);
            }
            wait &= !self.attempts.has_work();
        }
        if !wait {
            self.harvest(core, 0);
            self.attempts.open_turn();
            return Ok(());
        }
        let mut error = 0;
        if core.shared.prepare_sleep() && !self.attempts.threads.has_finished() {
            let timeout = match until {
                Until::Time(at) => at.saturating_sub(sys::now()).min(i64::MAX as u64) as i64,
                _ => -1,
            };
            error = self.harvest(core, timeout).min(0);
        }
        core.shared.awake();
        self.attempts.open_turn();
        match -error as i32 {
            0 | libc::EAGAIN => Ok(()),
            error => Err(error),
        }
    }

    fn next(&mut self, core: &mut Core) -> Outcome {
        loop {
            if let Some(outcome) = self.attempts.collect(core) {
                return outcome;
            }
            let Some(index) = self.attempts.pop(core) else { return Outcome::NONE };
            if core.def(index).is(op::CLOSES) {
                self.forget(core, index);
            }
            // Its level was reported, and nothing will tell of another: not again at once.
            if core.slots[index].args.stage != 0 && core.def(index).is(op::EDGE) && self.is_unwatched(core, index) {
                return Outcome::postponed(index);
            }
            match self.attempts.attempt(core, index) {
                Step::Out(outcome) => {
                    if outcome.buffer().is_some() {
                        self.note_emptied(core, &outcome);
                    }
                    return outcome;
                }
                Step::Wait(events) => {
                    let outcome = self.wait(core, index, events);
                    if !outcome.is_none() {
                        return outcome;
                    }
                }
                Step::Handed | Step::Native => {}
            }
        }
    }

    fn prepare_embedded_sleep(&mut self, core: &mut Core) {
        self.verify(core);
    }

    fn embed(&mut self, _: &mut Core) -> Result<i32, i32> {
        Ok(self.epoll)
    }

    fn supports(&self, kind: u32) -> i32 {
        if op::find(kind).is_some() { UPCALL_EMULATED } else { UPCALL_UNSUPPORTED }
    }

    fn quiesce(&mut self, core: &mut Core) {
        self.quiesce_threads(core);
    }

    fn quiesce_threads(&mut self, core: &mut Core) {
        while let Some(outcome) = self.attempts.collect(core) {
            drop_result(core, &outcome);
        }
        self.attempts.quiesce(core);
    }

    fn abandon(&mut self) {
        sys::close(self.epoll);
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        self.attempts.threads.end();
        sys::close(self.epoll);
    }
}
