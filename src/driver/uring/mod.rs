//! The io_uring driver. The numbered order of one turn:
//!
//! 1. Cancels that did not fit, then operations that did not fit, are encoded.
//! 2. One io_uring_enter hands everything over, waits if nothing is ready, and lets completions be posted; again only while
//!    the kernel says that it holds more back (since 6.16 it posts at most 20 network completions per call).
//! 3. Completions are taken from the queue one by one, each delivered before the next is looked at.
//!
//! An operation is one entry in the queue, encoded when it is started, named by its id. One that this kernel's ring lacks is
//! attempted instead, waits by a one-shot poll entry of the same name, or goes to a thread.
//!
//! Words in the shared queues are not trusted for indexing: an id is looked up, and one that is not in flight is ignored.

mod groups;
mod setup;

use super::attempts::{Attempts, Step, drop_result};
use super::threads::Threads;
use super::{Cancel, Driver, Outcome, Until};
use crate::abi::{UPCALL_EMULATED, UPCALL_NATIVE, UPCALL_UNSUPPORTED};
use crate::engine::buffers::Pool;
use crate::engine::core::Core;
use crate::engine::descriptors::Class;
use crate::engine::shared::Shared;
use crate::engine::slot::{self, NONE_INDEX, bits, rung};
use crate::op::{self, Decision, KINDS};
use crate::sys;
use crate::sys::ring::{self as calls};
use groups::Groups;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};
use setup::Rung;
pub(crate) use setup::Denied;
use std::collections::VecDeque;
use std::sync::Arc;

/// The user data of the poll on the loop's own eventfd.
const WAKE: u64 = NONE_INDEX as u64;

/// See the module.
pub(crate) struct Uring {
    ring: IoUring,
    rung: Rung,
    entries: u32,
    workers: u32,
    /// What io_uring_enter is called with: the ring's descriptor or its registered index, and standing flags.
    enter_fd: i32,
    enter_flags: u32,
    absolute_time: bool,
    /// A second mapping of the submission entries, for taking back one that was not handed over.
    sqes: *mut Entry,
    sqes_len: usize,
    mask: u32,
    /// Entries queued and entries handed over, ever.
    queued: u32,
    handed: u32,
    /// Requests of operations that the kernel holds.
    in_kernel: usize,
    native: [bool; KINDS],
    /// Kinds whose multishot form this kernel turned out to lack.
    single: [bool; KINDS],
    cancels: VecDeque<u64>,
    backlog: VecDeque<u64>,
    attempts: Attempts,
    groups: Groups,
    shared: Arc<Shared>,
    wake_armed: bool,
    adopted: bool,
    /// Readable when completions were posted; made for embedding.
    event: i32,
    /// Native writes in flight that may raise SIGPIPE, on kernels without RWF_NOSIGNAL.
    may_raise: usize,
}

// SAFETY: the mapped entries are the owner thread's, like the whole driver; a driver moves to another thread only while
// nobody owns the loop.
unsafe impl Send for Uring {}

impl Uring {
    /// Makes a ring, or says why not.
    pub fn new(shared: &Arc<Shared>, entries: u32, workers: u32) -> Result<Uring, Denied> {
        let made = setup::make(entries, setup::LADDER[0])?;
        let threads = Threads::new(shared.clone(), workers);
        let mut driver = Uring {
            rung: made.rung,
            entries,
            workers,
            enter_fd: -1,
            enter_flags: 0,
            absolute_time: false,
            sqes: std::ptr::null_mut(),
            sqes_len: 0,
            mask: 0,
            queued: 0,
            handed: 0,
            in_kernel: 0,
            native: [false; KINDS],
            single: [false; KINDS],
            cancels: VecDeque::new(),
            backlog: VecDeque::new(),
            attempts: Attempts::new(threads),
            groups: Groups::default(),
            shared: shared.clone(),
            wake_armed: false,
            adopted: false,
            event: -1,
            may_raise: 0,
            ring: made.ring,
        };
        for def in op::all() {
            driver.native[def.kind as usize] = def.opcode.is_some_and(|code| made.probe.is_supported(code));
        }
        driver.settle_in().map_err(|error| Denied { error, reason: format!("io_uring: mmap: errno {error}") })?;
        Ok(driver)
    }

    /// The rung of the setup ladder, for the reason text.
    pub fn setup_name(&self) -> &'static str {
        match self.rung {
            Rung::DeferredNoArray | Rung::Deferred => "io_uring: DEFER_TASKRUN",
            Rung::Cooperative => "io_uring: COOP_TASKRUN",
            Rung::Plain => "io_uring: no task-run flags",
        }
    }

    /// Reads the new ring's parameters and maps its entries.
    fn settle_in(&mut self) -> Result<(), i32> {
        use std::os::fd::AsRawFd;
        let params = self.ring.params();
        self.absolute_time = params.is_feature_min_timeout();
        self.enter_flags = if params.is_feature_no_iowait() { calls::ENTER_NO_IOWAIT } else { 0 };
        self.enter_fd = self.ring.as_raw_fd();
        self.mask = params.sq_entries() - 1;
        self.sqes_len = params.sq_entries() as usize * size_of::<Entry>();
        // SAFETY: a shared mapping of this ring's submission entries, unmapped with the driver.
        let sqes = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                self.sqes_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                self.enter_fd,
                calls::OFFSET_SQES,
            )
        };
        if sqes == libc::MAP_FAILED {
            return Err(sys::errno());
        }
        // SAFETY: the mapping made above. A forked child must not see it (MADV_DONTFORK, as for the ring itself).
        unsafe { libc::madvise(sqes, self.sqes_len, libc::MADV_DONTFORK) };
        self.sqes = sqes.cast();
        (self.queued, self.handed) = (0, 0);
        self.wake_armed = false;
        Ok(())
    }

    fn unmap(&mut self) {
        if !self.sqes.is_null() {
            // SAFETY: the mapping made by `settle_in`, not used any more.
            unsafe { libc::munmap(self.sqes.cast(), self.sqes_len) };
            self.sqes = std::ptr::null_mut();
        }
    }

    /// Queues an entry; false when the queue stays full.
    #[inline(always)]
    fn push(&mut self, core: &Core, entry: &Entry) -> bool {
        // SAFETY: the owner thread alone uses the ring; what the entry points to is the operation's own, which lives until
        // its terminal completion (the one safety argument of the crate).
        if unsafe { self.ring.submission_shared().push(entry) }.is_ok() {
            self.queued = self.queued.wrapping_add(1);
            return true;
        }
        self.push_slowly(core, entry)
    }

    #[cold]
    fn push_slowly(&mut self, core: &Core, entry: &Entry) -> bool {
        // Before the first poll the ring is not enabled and nothing can be handed over.
        if !self.adopted || self.enter(core, 0, 0, None) <= 0 {
            return false;
        }
        // SAFETY: as in `push`.
        let pushed = unsafe { self.ring.submission_shared().push(entry) }.is_ok();
        self.queued = self.queued.wrapping_add(u32::from(pushed));
        pushed
    }

    /// Entries not handed over yet.
    fn unhanded(&self) -> u32 {
        self.queued.wrapping_sub(self.handed)
    }

    fn enter(&mut self, core: &Core, complete: u32, flags: u32, until: Option<u64>) -> i64 {
        let submit = self.unhanded();
        let mut flags = flags | self.enter_flags;
        let time = until.map(|at| {
            if self.absolute_time {
                flags |= calls::ENTER_ABS_TIMER;
                sys::timespec(at)
            } else {
                sys::timespec(at.saturating_sub(sys::now()))
            }
        });
        core.counters().system_calls.add(1);
        let call = || calls::enter(self.enter_fd, submit, complete, flags, time.as_ref());
        let result = match self.may_raise {
            0 => call(),
            _ => sys::thread::without_sigpipe(call),
        };
        if result > 0 {
            self.handed = self.handed.wrapping_add(result as u32);
        }
        result
    }

    /// Whether the kernel holds completions back until it is entered.
    fn holds_back(&mut self) -> (bool, bool) {
        // SAFETY: the owner thread alone uses the ring.
        let queue = unsafe { self.ring.submission_shared() };
        (queue.taskrun(), queue.cq_overflow())
    }

    fn has_completions(&mut self) -> bool {
        // SAFETY: the owner thread alone uses the ring.
        !unsafe { self.ring.completion_shared() }.is_empty()
    }

    /// The native form of an operation, if it has one here.
    #[inline(always)]
    fn encode(&mut self, core: &mut Core, index: u32) -> Option<Entry> {
        let slot = &core.slots[index];
        let kind = usize::from(slot.kind);
        if !self.native[kind] {
            return None;
        }
        let def = op::of(slot.kind);
        if slot.bits & (bits::MULTI | bits::SIDE) == 0 && !def.is(op::POSITIONAL | op::PIPE_SIGNAL) {
            return def.ring.map(|form| form(&slot.args));
        }
        self.encode_special(core, index)
    }

    fn encode_special(&mut self, core: &mut Core, index: u32) -> Option<Entry> {
        let def = core.def(index);
        let kind = def.kind as usize;
        if def.is(op::POSITIONAL) {
            // The ring ignores the offset on a stream; the attempt answers -ESPIPE.
            let fd = core.slots[index].args.fd();
            if core.descriptors.class(fd) != Class::File && sys::is_stream(fd) {
                return None;
            }
        }
        if def.is(op::PIPE_SIGNAL) && core.descriptors.class(core.slots[index].args.fd()) == Class::Device {
            // A large write to a blocking terminal would wait inside io_uring_enter (6.18).
            return None;
        }
        let (slot, side) = core.both(index);
        let wants_multi = slot.has(bits::MULTI) && !self.single[kind];
        if let Some(side) = side
            && let Some(pool) = &side.pool
        {
            let group = pool.inner().group?;
            // The kernel keeps no count of what is lent, nor of records that wait: those are armed one by one.
            let multi = wants_multi && side.lend_max == 0 && slot.callback.is_some();
            // An empty datagram gets no buffer from the kernel (6.18); for messages the attempt lends one.
            if def.is(op::CAN_MULTI) && !def.is(op::MESSAGE) && sys::is_message_socket(slot.args.fd()) {
                return None;
            }
            return def.ring_lent.and_then(|form| form(&slot.args, group, multi));
        }
        if wants_multi && slot.callback.is_some() && let Some(form) = def.ring_multi {
            return Some(form(&slot.args));
        }
        if slot.has(bits::MULTI) && def.is(op::EDGE) && slot.args.stage != 0 {
            // One-shot arming of a level would spin: the attempt's way waits for the edge.
            return None;
        }
        def.ring.map(|form| form(&slot.args))
    }

    /// A native entry went into the queue.
    #[inline(always)]
    fn note_native(&mut self, core: &mut Core, index: u32) {
        let slot = &mut core.slots[index];
        slot.rung = rung::NATIVE;
        slot.next = self.queued.wrapping_sub(1);
        self.in_kernel += 1;
        let def = op::of(slot.kind);
        if def.is(op::PIPE_SIGNAL) && sys::rwf_nosignal() == 0 {
            self.may_raise += 1;
        }
    }

    /// Bounded kernel workers: as many as pool threads.
    fn limit_workers(&self) {
        let mut limits = [self.workers, 0];
        let _ = self.ring.submitter().register_iowq_max_workers(&mut limits);
    }

    fn note_end(&mut self, core: &Core, index: u32) {
        self.in_kernel -= 1;
        let def = core.def(index);
        if def.is(op::PIPE_SIGNAL) {
            self.may_raise = self.may_raise.saturating_sub(1);
        }
    }

    /// Waits until the operation's descriptor shows one of `events`.
    fn wait(&mut self, core: &mut Core, index: u32, events: u32) {
        let slot = &core.slots[index];
        let mut entry = opcode::PollAdd::new(types::Fd(slot.args.fd()), events).build().user_data(slot.id());
        if core.def(index).is(op::EDGE) && slot.args.stage != 0 {
            entry = opcode::PollAdd::new(types::Fd(slot.args.fd()), events | libc::EPOLLET as u32)
                .build()
                .user_data(slot.id());
        }
        let pushed = self.push(core, &entry);
        let position = self.queued.wrapping_sub(1);
        let slot = &mut core.slots[index];
        if pushed {
            slot.rung = rung::WAITING;
            slot.next = position;
            self.in_kernel += 1;
        } else {
            // Attempted once more next turn, when there is room again.
            self.attempts.push(core, index);
        }
    }

    /// Arms what wakes a sleeping loop.
    fn arm_wake(&mut self, core: &Core) {
        let entry = opcode::PollAdd::new(types::Fd(core.shared.wake), libc::POLLIN as u32).build().user_data(WAKE);
        self.wake_armed = self.push(core, &entry);
    }

    fn push_cancel(&mut self, core: &Core, id: u64) -> bool {
        let entry = opcode::AsyncCancel::new(id).build().user_data(slot::cancel_tag(id));
        self.push(core, &entry)
    }

    /// Encodes what had to wait for room.
    fn catch_up(&mut self, core: &mut Core) {
        while let Some(&id) = self.cancels.front() {
            if !self.push_cancel(core, id) {
                return;
            }
            self.cancels.pop_front();
        }
        for _ in 0..self.backlog.len() {
            let Some(id) = self.backlog.pop_front() else { break };
            let Some(index) = core.slots.find(id).filter(|&index| core.slots[index].rung == rung::BACKLOG) else {
                continue;
            };
            self.start(core, index);
            if core.slots[index].rung == rung::BACKLOG {
                break;
            }
        }
    }

    /// Takes one completion.
    #[inline(always)]
    fn pop(&mut self) -> Option<cqueue::Entry> {
        // SAFETY: the owner thread alone uses the ring.
        unsafe { self.ring.completion_shared() }.next()
    }

    /// What a completion means; None: nothing for the engine.
    #[inline(always)]
    fn translate(&mut self, core: &mut Core, entry: &cqueue::Entry) -> Option<Outcome> {
        let id = entry.user_data();
        let Some(index) = core.slots.find(id) else {
            self.translate_own(entry);
            return None;
        };
        let flags = entry.flags();
        let more = cqueue::more(flags);
        if !more {
            self.note_end(core, index);
        }
        let slot = &mut core.slots[index];
        let result = i64::from(entry.result());
        let outcome = Outcome { index, result, more, later: false, buffer: cqueue::buffer_select(flags).map(u32::from) };
        let plain = result >= 0 && !op::of(slot.kind).is(op::AMENDS_ALL);
        if slot.rung == rung::NATIVE && (plain || slot.has(bits::WITHDRAWN)) && !slot.has(bits::MULTI) {
            return Some(outcome);
        }
        self.translate_special(core, outcome)
    }

    fn translate_special(&mut self, core: &mut Core, outcome: Outcome) -> Option<Outcome> {
        let index = outcome.index;
        let slot = &mut core.slots[index];
        if slot.has(bits::WITHDRAWN) {
            return Some(outcome);
        }
        if slot.rung == rung::WAITING {
            // Ready, or the poll itself failed: the attempt says what.
            if outcome.result == -i64::from(libc::ECANCELED) && slot.has(bits::ASKED | bits::EXPIRED) {
                return Some(outcome);
            }
            self.attempts.push(core, index);
            return None;
        }
        let def = core.def(index);
        let slot = &mut core.slots[index];
        if !slot.has(bits::ASKED | bits::EXPIRED)
            && let Some(amend) = def.amend
            && let Some(decision) = amend(&mut slot.args, outcome.result)
        {
            if outcome.more && !matches!(decision, Decision::Done(_)) {
                // The kernel's multishot goes on by itself.
                return None;
            }
            return match self.attempts.decide(core, index, decision, None) {
                Step::Out(amended) => Some(Outcome { more: outcome.more, ..amended }),
                Step::Wait(events) => {
                    self.wait(core, index, events);
                    None
                }
                Step::Native => {
                    self.start(core, index);
                    None
                }
                Step::Handed => None,
            };
        }
        if def.is(op::MESSAGE) && def.is(op::CAN_LEND) && core.slots[index].has(bits::MULTI) {
            return Some(self.unwrap_message(core, outcome));
        }
        Some(outcome)
    }

    /// A multishot recvmsg counts its header and the room it keeps; the program is told the payload's length.
    fn unwrap_message(&mut self, core: &mut Core, outcome: Outcome) -> Outcome {
        let (Some(number), true) = (outcome.buffer, outcome.result > 0) else { return outcome };
        let Some(pool) = core.side_of(outcome.index).and_then(|side| side.pool.as_ref()) else { return outcome };
        if number >= pool.count {
            return outcome;
        }
        let header = pool.address(number).cast::<crate::abi::upcall_msg>();
        // SAFETY: a buffer of the pool, at least as long as the header the kernel has just written into it.
        let header = unsafe { header.read_unaligned() };
        let room = core.side_of(outcome.index).map_or(0, |side| {
            size_of::<crate::abi::upcall_msg>() + side.msg.msg_namelen as usize + side.msg.msg_controllen as usize
        });
        let present = outcome.result - room as i64;
        Outcome { result: i64::from(header.payloadlen).min(present.max(0)), ..outcome }
    }

    #[cold]
    fn translate_own(&mut self, entry: &cqueue::Entry) {
        if entry.user_data() == WAKE {
            sys::eventfd_drain(self.shared.wake);
            self.wake_armed = false;
        }
        // The rest are answers to cancels, which say nothing: only the target's own completion decides.
    }
}

impl Driver for Uring {
    fn adopt(&mut self, core: &mut Core) -> Result<(), i32> {
        if self.rung.is_deferred() {
            let enabled = self.ring.submitter().register_enable_rings();
            if let Err(error) = enabled {
                return Err(error.raw_os_error().unwrap_or(libc::EIO));
            }
        }
        let registered = calls::register_ring(self.enter_fd);
        if registered >= 0 {
            self.enter_fd = registered as i32;
            self.enter_flags |= calls::ENTER_REGISTERED_RING;
        }
        core.counters().system_calls.add(2);
        self.adopted = true;
        self.limit_workers();
        Ok(())
    }

    fn release(&mut self, core: &mut Core) -> Result<(), i32> {
        // A ring belongs to the thread that enabled it; the next owner gets a new one.
        let made = setup::make(self.entries, self.rung).map_err(|denied| denied.error)?;
        let pools = self.groups.take_pools();
        self.unmap();
        self.ring = made.ring;
        self.rung = made.rung;
        self.adopted = false;
        self.settle_in()?;
        self.groups = Groups::default();
        for pool in pools {
            self.groups.offer_again(&self.ring, &pool);
        }
        if self.event >= 0 && self.ring.submitter().register_eventfd(self.event).is_err() {
            return Err(libc::EIO);
        }
        let _ = core;
        Ok(())
    }

    #[inline(always)]
    fn start(&mut self, core: &mut Core, index: u32) {
        let Some(entry) = self.encode(core, index) else {
            return self.start_by_attempt(core, index);
        };
        let entry = entry.user_data(core.slots[index].id());
        if self.push(core, &entry) {
            self.note_native(core, index);
        } else {
            core.slots[index].rung = rung::BACKLOG;
            self.backlog.push_back(core.slots[index].id());
        }
    }

    fn start_by_attempt(&mut self, core: &mut Core, index: u32) {
        if core.slots[index].args.stage != 0 && core.def(index).is(op::EDGE) {
            let events = core.slots[index].args.arg;
            return self.wait(core, index, events);
        }
        self.attempts.push(core, index);
    }

    fn cancel(&mut self, core: &mut Core, index: u32) -> Cancel {
        match core.slots[index].rung {
            rung::NATIVE | rung::WAITING => {
                let position = core.slots[index].next;
                let id = core.slots[index].id();
                if position.wrapping_sub(self.handed) < self.unhanded() {
                    // Not handed over: the entry becomes a NOP of the same name, and the kernel never sees the operation.
                    let entry = opcode::Nop::new().build().user_data(id);
                    // SAFETY: inside the mapping; the kernel reads entries only while it is entered, by this thread.
                    unsafe { *self.sqes.add((position & self.mask) as usize) = entry };
                    core.slots[index].bits |= bits::WITHDRAWN;
                } else if core.def(index).is(op::CLOSES) {
                    // A started close cannot be cancelled.
                } else if !self.push_cancel(core, id) {
                    self.cancels.push_back(id);
                }
                Cancel::Asked
            }
            _ => self.attempts.cancel(core, index),
        }
    }

    fn lower(&mut self, core: &Core, index: u32) {
        let kind = usize::from(core.slots[index].kind);
        if core.slots[index].has(bits::MULTI) && !self.single[kind] {
            self.single[kind] = true;
        } else {
            self.native[kind] = false;
        }
    }

    #[inline(always)]
    fn has_work(&self) -> bool {
        self.attempts.has_work() || !self.backlog.is_empty() || !self.cancels.is_empty()
    }

    fn has_leftovers(&mut self) -> bool {
        self.has_work() || self.has_completions() || self.holds_back() != (false, false)
    }

    fn turn(&mut self, core: &mut Core, until: Until) -> Result<(), i32> {
        if self.event >= 0 {
            sys::eventfd_drain(self.event);
        }
        if !self.cancels.is_empty() || !self.backlog.is_empty() {
            self.catch_up(core);
        }
        let mut wait = until != Until::Now && !self.has_work() && !self.has_completions();
        if wait {
            if !self.wake_armed {
                self.arm_wake(core);
            }
            wait = self.wake_armed && core.shared.prepare_sleep() && !self.attempts.threads.has_finished();
        }
        let (taskrun, overflow) = self.holds_back();
        if self.unhanded() == 0 && !wait && !taskrun && !overflow {
            core.shared.awake();
            self.attempts.open_turn();
            return Ok(());
        }
        let result = match (wait, until) {
            (true, Until::Time(at)) => self.enter(core, 1, calls::ENTER_GETEVENTS, Some(at)),
            (true, _) => self.enter(core, 1, calls::ENTER_GETEVENTS, None),
            (false, _) => self.enter(core, 0, calls::ENTER_GETEVENTS, None),
        };
        core.shared.awake();
        let mut interrupted = false;
        match -result as i32 {
            _ if result >= 0 => {}
            libc::ETIME | libc::EAGAIN | libc::EBUSY => {}
            libc::EINTR => interrupted = wait,
            error => return Err(error),
        }
        // Without SUBMIT_ALL the kernel stops at a bad entry; and what it holds back must be asked for.
        for _ in 0..self.ring.params().cq_entries() {
            let (taskrun, overflow) = self.holds_back();
            if overflow {
                core.counters().overflows.add(1);
            }
            // SAFETY: the owner thread alone uses the ring.
            let full = unsafe { self.ring.completion_shared() }.is_full();
            if full || !(taskrun || overflow || (self.unhanded() > 0 && result > 0)) {
                break;
            }
            if self.enter(core, 0, calls::ENTER_GETEVENTS, None) < 0 {
                break;
            }
        }
        self.attempts.open_turn();
        if interrupted { Err(libc::EINTR) } else { Ok(()) }
    }

    #[inline(always)]
    fn next(&mut self, core: &mut Core) -> Option<Outcome> {
        loop {
            if let Some(entry) = self.pop() {
                if let Some(outcome) = self.translate(core, &entry) {
                    return Some(outcome);
                }
                continue;
            }
            if !self.attempts.has_work() {
                return None;
            }
            if let Some(outcome) = self.attempts.collect(core) {
                return Some(outcome);
            }
            let index = self.attempts.pop(core)?;
            match self.attempts.attempt(core, index) {
                Step::Out(outcome) => return Some(outcome),
                Step::Wait(events) => self.wait(core, index, events),
                Step::Handed | Step::Native => {}
            }
        }
    }

    fn prepare_embedded_sleep(&mut self, core: &mut Core) {
        if self.unhanded() > 0 {
            self.enter(core, 0, 0, None);
        }
    }

    fn embed(&mut self) -> Result<i32, i32> {
        if self.event < 0 {
            let event = sys::eventfd();
            if event < 0 {
                return Err(-event as i32);
            }
            if let Err(error) = self.ring.submitter().register_eventfd(event as i32) {
                sys::close(event as i32);
                return Err(error.raw_os_error().unwrap_or(libc::EIO));
            }
            self.event = event as i32;
        }
        Ok(self.event)
    }

    fn offer_pool(&mut self, _: &mut Core, pool: &Arc<Pool>) {
        self.groups.offer(&self.ring, pool);
    }

    fn refill(&mut self, pool: &Pool, number: u32) {
        self.groups.refill(pool, number);
    }

    fn forget_pool(&mut self, pool: &Pool) {
        self.groups.forget(&self.ring, pool);
    }

    fn supports(&self, kind: u32) -> i32 {
        match op::find(kind) {
            None => UPCALL_UNSUPPORTED,
            Some(_) if self.native[kind as usize] => UPCALL_NATIVE,
            Some(_) => UPCALL_EMULATED,
        }
    }

    fn quiesce(&mut self, core: &mut Core) {
        while self.in_kernel > 0 {
            for index in (0..core.slots.table().committed()).rev() {
                if matches!(core.slots[index].rung, rung::NATIVE | rung::WAITING)
                    && !core.slots[index].has(bits::WITHDRAWN)
                {
                    let _ = self.cancel(core, index);
                }
            }
            self.catch_up(core);
            let soon = sys::now() + 20_000_000;
            self.enter(core, 1, calls::ENTER_GETEVENTS, Some(soon));
            while let Some(entry) = self.pop() {
                let Some(index) = core.slots.find(entry.user_data()) else { continue };
                let more = cqueue::more(entry.flags());
                if !more {
                    self.note_end(core, index);
                }
                let waiting = core.slots[index].rung == rung::WAITING;
                let result = if waiting { -i64::from(libc::ECANCELED) } else { i64::from(entry.result()) };
                drop_result(core, &Outcome { more, ..Outcome::done(index, result) });
            }
        }
        self.quiesce_threads(core);
    }

    fn quiesce_threads(&mut self, core: &mut Core) {
        while let Some(outcome) = self.attempts.collect(core) {
            drop_result(core, &outcome);
        }
        self.attempts.quiesce(core);
    }

    fn abandon(&mut self) {
        use std::os::fd::AsRawFd;
        sys::close(self.ring.as_raw_fd());
        if self.event >= 0 {
            sys::close(self.event);
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.attempts.threads.end();
        self.unmap();
        if self.event >= 0 {
            sys::close(self.event);
        }
    }
}
