//! The way of an operation that the ring does not do: its non-blocking form is attempted, and the answer is done, wait for
//! readiness, or a thread. Both drivers use it; they differ in how readiness is waited for.

use super::threads::{Call, JobCell, Lane, Threads};
use super::{Cancel, Outcome};
use crate::engine::core::Core;
use crate::engine::slot::{Slot, bits, rung};
use crate::op::side::Side;
use crate::op::{self, Decision};
use crate::sys;
use std::collections::VecDeque;
use std::sync::Arc;

/// See the module.
pub(crate) struct Attempts {
    queue: VecDeque<u64>,
    /// Attempts that were queued when the turn ended; later ones belong to the next turn.
    budget: usize,
    pub threads: Threads,
}

/// What an attempt led to.
pub(crate) enum Step {
    Out(Outcome),
    /// Wait for one of these poll(2) events, then attempt again.
    Wait(u32),
    /// A thread has it.
    Handed,
    /// The ring is to go on with it.
    Native,
}

impl Attempts {
    pub fn new(threads: Threads) -> Attempts {
        Attempts { queue: VecDeque::new(), budget: 0, threads }
    }

    /// Queues an operation for its next attempt.
    pub fn push(&mut self, core: &mut Core, index: u32) {
        let slot = &mut core.slots[index];
        slot.rung = rung::QUEUED;
        self.queue.push_back(slot.id());
    }

    pub fn has_work(&self) -> bool {
        !self.queue.is_empty() || self.threads.has_finished()
    }

    /// The turn has ended: what is queued now may be attempted.
    pub fn open_turn(&mut self) {
        self.budget = self.queue.len();
    }

    /// One more may be attempted in this turn: it was ready when the turn ended.
    pub fn extend_turn(&mut self) {
        self.budget += 1;
    }

    /// The next operation to attempt in this turn.
    pub fn pop(&mut self, core: &mut Core) -> Option<u32> {
        while self.budget > 0 {
            self.budget -= 1;
            let id = self.queue.pop_front()?;
            // One that was cancelled meanwhile has left a stale entry.
            if let Some(index) = core.slots.find(id)
                && core.slots[index].rung == rung::QUEUED
            {
                return Some(index);
            }
        }
        None
    }

    /// Attempts an operation.
    pub fn attempt(&mut self, core: &mut Core, index: u32) -> Step {
        let def = core.def(index);
        if core.slots[index].is_zerocopy() {
            core.side(index).begun += 1;
        }
        let pool = core.side_of(index).and_then(|side| side.pool.as_ref().map(Arc::as_ptr));
        let mut buffer = None;
        let decision = match pool {
            // RWF_NOWAIT waits for the device there (6.18).
            None if def.is(op::POSITIONAL)
                && def.is(op::INWARD)
                && core.descriptors.is_direct_file(core.slots[index].args.fd()) =>
            {
                Decision::Pool
            }
            None => match def.attempt {
                Some(attempt) => attempt(&mut core.slots[index].args),
                None => Decision::Pool,
            },
            Some(pool) => {
                // SAFETY: the side block holds the pool until the operation has ended.
                let pool = unsafe { &*pool };
                let free = if pool.lent() < pool.count { pool.inner().free.pop() } else { None };
                let Some(number) = free else {
                    // What is wrong anyway does not wait for a buffer.
                    let fd = core.slots[index].args.fd();
                    let error = sys::wrong_descriptor(fd, def.is(op::MULTI_LENDS) && !def.is(op::CURSOR));
                    return Step::Out(Outcome::done(index, -i64::from(error.unwrap_or(libc::ENOBUFS))));
                };
                buffer = Some(number);
                let decision = match def.lent {
                    Some(lent) => lent(&core.slots[index].args, pool.address(number), pool.size),
                    None => Decision::Done(-i64::from(libc::EOPNOTSUPP)),
                };
                if matches!(decision, Decision::Wait(_) | Decision::Later) {
                    pool.inner().free.push(number);
                    buffer = None;
                }
                decision
            }
        };
        self.decide(core, index, decision, buffer)
    }

    /// Acts on a decision.
    pub fn decide(&mut self, core: &mut Core, index: u32, decision: Decision, buffer: Option<u32>) -> Step {
        // One that was asked to end does not begin to wait, nor goes to a thread.
        if !matches!(decision, Decision::Done(_)) && core.slots[index].has(bits::ASKED | bits::EXPIRED) {
            return Step::Out(Outcome::done(index, -i64::from(libc::ECANCELED)).with_buffer(buffer));
        }
        match decision {
            Decision::Done(result) => Step::Out(Outcome::done(index, result).with_buffer(buffer)),
            Decision::Wait(events) => Step::Wait(events),
            Decision::Later => Step::Out(Outcome::postponed(index)),
            Decision::Native => Step::Native,
            Decision::Pool | Decision::Own => self.hand_over(core, index, decision == Decision::Own, buffer),
        }
    }

    /// What becomes of an operation that would wait for data at a descriptor that shows its end: on a socket of messages
    /// nothing will tell it, so it ends here. The queue of errors has no end.
    pub fn end_instead(core: &mut Core, index: u32, events: u32) -> Option<Outcome> {
        let def = core.def(index);
        let args = &core.slots[index].args;
        let ends = def.is(op::INWARD)
            && def.is(op::MOVES)
            && events & libc::POLLIN as u32 != 0
            && args.arg & libc::MSG_ERRQUEUE as u32 == 0
            && sys::is_shut_message_socket(args.fd());
        if ends
            && def.is(op::MESSAGE)
            && let Some(side) = core.side_of(index)
        {
            // What the kernel writes with that answer: neither address nor control data.
            side.msg.msg_namelen = 0;
            side.msg.msg_controllen = 0;
            side.msg.msg_flags = 0;
        }
        ends.then(|| Outcome::done(index, 0))
    }

    fn hand_over(&mut self, core: &mut Core, index: u32, own: bool, buffer: Option<u32>) -> Step {
        let def = core.def(index);
        let Some(block) = def.block else {
            return Step::Out(Outcome::done(index, -i64::from(libc::EOPNOTSUPP)).with_buffer(buffer));
        };
        let mut args = core.slots[index].args.copy();
        let id = core.slots[index].id();
        let side = core.side(index);
        if let (Some(number), Some(pool)) = (buffer, &side.pool) {
            args.addr = pool.address(number) as u64;
            args.len = if args.len == 0 { u64::from(pool.size) } else { args.len.min(u64::from(pool.size)) };
        }
        let lane = match own {
            true => Lane::Own,
            false if def.is(op::COMPUTE) => Lane::Compute,
            false => Lane::Pool,
        };
        let verbatim = lane == Lane::Compute;
        let call = Call { id, block, args: Some(args.copy()), verbatim, buffer, lookup: side.lookup.clone() };
        if self.threads.start(side.job.get_or_insert_with(JobCell::new), lane, call) {
            core.slots[index].rung = if own { rung::OWN } else { rung::POOL };
            return Step::Handed;
        }
        // No thread can be had (RLIMIT_NPROC, a pids cgroup). What ends by itself is done here: slow, but nothing is lost.
        // What may wait without limit is tried again later.
        if own {
            // Begun anew: what an earlier step found out may not be so any more, and the ring would go on without the thread.
            core.slots[index].args.stage = 0;
            if let (Some(number), Some(pool)) = (buffer, &core.side(index).pool) {
                pool.inner().free.push(number);
            }
            return Step::Out(Outcome::postponed(index));
        }
        core.slots[index].rung = rung::POOL;
        // A write may raise a signal, which the pool's threads block.
        let result = sys::thread::without_write_signals(|| block(&args));
        Step::Out(Outcome::done(index, result).with_buffer(buffer))
    }

    /// The next operation that a thread has finished.
    #[inline(always)]
    pub fn collect(&mut self, core: &mut Core) -> Option<Outcome> {
        if self.threads.has_finished() { self.collect_one(core) } else { None }
    }

    #[inline(never)]
    fn collect_one(&mut self, core: &mut Core) -> Option<Outcome> {
        while self.threads.has_finished() {
            let finished = self.threads.collect()?;
            if let Some(index) = core.slots.find(finished.id) {
                return Some(Outcome::done(index, finished.result).with_buffer(finished.buffer));
            }
        }
        None
    }

    /// Asks an operation in the queue or on a thread to end.
    pub fn cancel(&mut self, core: &mut Core, index: u32) -> Cancel {
        // What may be ready is attempted although its time is over: it was there in time (as on the ring).
        if core.slots[index].rung == rung::QUEUED
            && !core.slots[index].has(bits::ASKED)
            && core.slots[index].has(bits::EXPIRED)
        {
            return Cancel::Asked;
        }
        let given_up = core.def(index).is(op::GIVEN_UP);
        if matches!(core.slots[index].rung, rung::POOL | rung::OWN)
            && let Some(side) = core.side_of(index)
        {
            if given_up {
                if !self.threads.abandon(&mut side.job) {
                    return Cancel::Asked;
                }
            } else if let Some(job) = side.job.as_ref().map(JobCell::get) {
                let Some(buffer) = self.threads.cancel(job) else { return Cancel::Asked };
                if let (Some(number), Some(pool)) = (buffer, &side.pool) {
                    pool.inner().free.push(number);
                }
            }
        }
        core.slots[index].rung = rung::IDLE;
        Cancel::Gone
    }

    /// Cancels and waits for everything on threads; what they result in is dropped, descriptors closed.
    pub fn quiesce(&mut self, core: &mut Core) {
        for index in 0..core.slots.table().committed() {
            if matches!(core.slots[index].rung, rung::POOL | rung::OWN) {
                let _ = self.cancel(core, index);
            }
        }
        while self.threads.active > 0 {
            let Some(outcome) = self.collect(core) else {
                sys::thread::pause(1_000_000);
                for index in 0..core.slots.table().committed() {
                    if core.slots[index].rung == rung::OWN {
                        let _ = self.cancel(core, index);
                    }
                }
                continue;
            };
            drop_result(core, &outcome);
        }
        self.threads.end();
    }
}

/// An outcome nobody will be told of: its descriptors, also those that came with a message, are closed, its operation marked.
pub(crate) fn drop_result(core: &mut Core, outcome: &Outcome) {
    let (slot, side) = core.both(outcome.index);
    // One that was withdrawn ended as a NOP, whose 0 is no descriptor.
    if !slot.has(bits::WITHDRAWN) {
        let made = side.map_or(0, |side| {
            if outcome.result >= 0 {
                close_passed(slot, side, outcome);
            }
            std::mem::take(&mut side.made)
        });
        op::discard(slot.kind, outcome.result, made);
    }
    if !outcome.more() {
        slot.rung = rung::IDLE;
        slot.bits |= bits::ORPHAN;
    }
}

fn close_passed(slot: &Slot, side: &mut Side, outcome: &Outcome) {
    let def = op::of(slot.kind);
    let Some(passed) = def.passed else { return };
    let buffer = match (outcome.buffer(), &side.pool) {
        (Some(number), Some(pool)) => pool.show(number).cast_const(),
        _ => std::ptr::null(),
    };
    if let Some(finish) = def.finish
        && buffer.is_null()
    {
        finish(&slot.args, side, outcome.result);
    }
    passed(&slot.args, side, buffer, &mut |fd| {
        sys::close(fd);
    });
}
