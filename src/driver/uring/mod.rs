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
pub(crate) mod mask;
mod queues;
mod registered;
mod setup;

use super::attempts::{Attempts, Step, drop_result};
use super::threads::Threads;
use super::{Cancel, Driver, Outcome, Until};
use crate::abi::{UPCALL_EMULATED, UPCALL_NATIVE, UPCALL_UNSUPPORTED};
use crate::engine::buffers::Pool;
use crate::engine::core::Core;
use crate::engine::descriptors::{Class, Descriptors};
use crate::engine::shared::Shared;
use crate::engine::slot::{self, NONE_INDEX, Slot, bits, rung};
use crate::op::{self, Decision, KINDS, Lending, OpDef, RingForm};
use crate::sys;
use crate::sys::checkers;
use crate::sys::ring::{self as calls};
use groups::Groups;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};
use mask::{Feature, Mask};
use queues::{Completion, OVERFLOW, Queues};
use registered::Registered;
pub(crate) use setup::Denied;
use setup::Rung;
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
    queues: Queues,
    /// Requests of operations that the kernel holds.
    in_kernel: usize,
    native: [bool; KINDS],
    /// The forms of native kinds that need no second look, and of those that need none on what is known to be a file.
    forms: [Option<RingForm>; KINDS],
    file_forms: [Option<RingForm>; KINDS],
    /// Sends without copying work here.
    zerocopy: bool,
    /// A multishot recv may fill several buffers per completion.
    bundles: bool,
    /// The rest of such a completion: one outcome per buffer.
    bundle: VecDeque<Outcome>,
    /// Kinds whose multishot form this kernel turned out to lack.
    single: [bool; KINDS],
    mask: Mask,
    cancels: VecDeque<u64>,
    backlog: VecDeque<u64>,
    attempts: Attempts,
    groups: Groups,
    registered: Registered,
    shared: Arc<Shared>,
    wake_armed: bool,
    adopted: bool,
    /// Readable when completions were posted; made for embedding.
    event: i32,
    /// It is waited for.
    embedded: bool,
    /// The kernel may write it only once (see `setup::tells_every_time`).
    tells_once: bool,
    /// Native writes in flight that may raise SIGPIPE, on kernels without RWF_NOSIGNAL.
    may_raise: usize,
    /// Writes that may be issued by the next io_uring_enter and raise SIGXFSZ there.
    may_exceed: bool,
}

impl Uring {
    /// Makes a ring, or says why not.
    pub fn new(shared: &Arc<Shared>, entries: u32, workers: u32, mask: Mask) -> Result<Uring, Denied> {
        let made = setup::make(entries, setup::LADDER[0], &mask)?;
        let threads = Threads::new(shared.clone(), workers);
        let denied = |error: i32| Denied { error, reason: format!("io_uring: mmap: errno {error}") };
        let queues = Queues::new(&made.ring).map_err(denied)?;
        let groups = Groups::new(mask.has(Feature::BufferRings));
        let mut driver = Uring {
            rung: made.rung,
            entries,
            workers,
            enter_fd: -1,
            enter_flags: 0,
            absolute_time: false,
            queues,
            in_kernel: 0,
            native: [false; KINDS],
            forms: [None; KINDS],
            file_forms: [None; KINDS],
            bundles: made.ring.params().is_feature_recvsend_bundle() && !mask.has(Feature::Bundles),
            bundle: VecDeque::new(),
            zerocopy: made.probe.is_supported(opcode::SendZc::CODE)
                && made.probe.is_supported(opcode::SendMsgZc::CODE)
                && !mask.has(Feature::Zerocopy),
            single: [mask.has(Feature::Multishot); KINDS],
            mask,
            cancels: VecDeque::new(),
            backlog: VecDeque::new(),
            attempts: Attempts::new(threads),
            groups,
            registered: Registered::default(),
            shared: shared.clone(),
            wake_armed: false,
            adopted: false,
            event: -1,
            embedded: false,
            tells_once: false,
            may_raise: 0,
            may_exceed: false,
            ring: made.ring,
        };
        for def in op::all() {
            let native = def.opcode.is_some_and(|code| made.probe.is_supported(code)) && !driver.mask.hides(def.kind);
            driver.native[def.kind as usize] = native;
            if native && !def.is(op::PIPE_SIGNAL | op::NARROW) && !driver.mask.refuses(def.kind) {
                let forms = if def.is(op::POSITIONAL) { &mut driver.file_forms } else { &mut driver.forms };
                forms[def.kind as usize] = def.ring;
            }
        }
        driver.settle_in();
        if driver.rung == Rung::Plain {
            // Old kernels hang here while an operation is in flight (5.10.262), so it cannot wait until it is needed.
            driver
                .make_event()
                .map_err(|error| Denied { error, reason: format!("io_uring: eventfd: errno {error}") })?;
        }
        Ok(driver)
    }

    /// The rung of the setup ladder and what is masked, for the reason text.
    pub fn setup_name(&self) -> String {
        let rung = match self.rung {
            Rung::DeferredNoArray | Rung::Deferred => "io_uring: DEFER_TASKRUN",
            Rung::Cooperative => "io_uring: COOP_TASKRUN",
            Rung::Plain => "io_uring: no task-run flags",
        };
        format!("{rung}{}", self.mask.reason())
    }

    /// Reads the new ring's parameters.
    fn settle_in(&mut self) {
        use std::os::fd::AsRawFd;
        let params = self.ring.params();
        self.absolute_time = params.is_feature_min_timeout() && !self.mask.has(Feature::AbsoluteTimeout);
        self.enter_flags =
            if params.is_feature_no_iowait() && !self.mask.has(Feature::NoIowait) { calls::ENTER_NO_IOWAIT } else { 0 };
        self.enter_fd = self.ring.as_raw_fd();
        self.wake_armed = false;
    }

    /// Makes and registers what is readable when completions were posted.
    fn make_event(&mut self) -> Result<(), i32> {
        let event = sys::eventfd();
        if event < 0 {
            return Err(-event as i32);
        }
        if let Err(error) = register_event(&self.ring, event as i32) {
            sys::close(event as i32);
            return Err(error);
        }
        self.event = event as i32;
        self.queues.use_event(self.embedded);
        Ok(())
    }

    /// Makes room for an entry; false when the queue stays full.
    #[inline(always)]
    fn has_room(&mut self, core: &Core) -> bool {
        self.queues.has_room() || self.make_room(core)
    }

    #[cold]
    fn make_room(&mut self, core: &Core) -> bool {
        // Before the first poll the ring is not enabled and nothing can be handed over.
        if self.adopted {
            self.enter(core, 0, 0, None);
        }
        self.queues.has_room()
    }

    /// Queues an entry; None when the queue stays full.
    fn push(&mut self, core: &Core, entry: Entry, user_data: u64) -> Option<u32> {
        if !self.has_room(core) {
            return None;
        }
        self.queues.blank().write(entry);
        Some(self.queues.queue(user_data))
    }

    #[inline]
    fn enter(&mut self, core: &Core, complete: u32, flags: u32, until: Option<u64>) -> i64 {
        if complete > 0 && checkers::stops_at_waits() {
            return self.look_until(core, flags, until);
        }
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
        self.queues.publish();
        let submit = self.queues.unhanded();
        let call = || calls::enter(self.enter_fd, submit, complete, flags, time.as_ref());
        let limited = self.may_exceed && sys::limits_file_size();
        let result = if self.may_raise > 0 || limited { enter_without_signals(call) } else { call() };
        self.queues.note_handed();
        // What the kernel did not take is issued by the next call.
        self.may_exceed &= self.queues.unhanded() > 0;
        result
    }

    /// Instead of a wait inside io_uring_enter: looks, sleeps where others may run, looks again.
    #[cold]
    fn look_until(&mut self, core: &Core, flags: u32, until: Option<u64>) -> i64 {
        let mut handed = 0;
        loop {
            let result = self.enter(core, 0, flags, None);
            if result < 0 || self.queues.has_completions() {
                return if handed > 0 { handed } else { result };
            }
            handed += result;
            if until.is_some_and(|at| sys::now() >= at) {
                return if handed > 0 { handed } else { -i64::from(libc::ETIME) };
            }
            if sys::wait_readable(-1, 200_000) < 0 {
                return if handed > 0 { handed } else { -i64::from(libc::EINTR) };
            }
        }
    }

    /// Writes the native form of an operation, if it has one here. False: it goes another way.
    #[inline(always)]
    fn encode(&mut self, core: &mut Core, index: u32) -> bool {
        let slot = &core.slots[index];
        if slot.bits & (bits::MULTI | bits::SIDE) == 0
            && let Some(form) = self.forms[usize::from(slot.kind) % KINDS]
        {
            form(&slot.args, self.queues.blank());
            return true;
        }
        self.encode_special(core, index)
    }

    fn encode_special(&mut self, core: &mut Core, index: u32) -> bool {
        let def = core.def(index);
        let kind = def.kind as usize;
        if !self.native[kind] {
            return false;
        }
        // One that is withdrawn takes it back.
        let zerocopy = core.slots[index].is_zerocopy();
        if zerocopy {
            core.side(index).begun += 1;
        }
        if self.mask.refuses(def.kind) {
            self.queues.blank().write(mask::refused_entry());
            return true;
        }
        if def.is(op::NARROW) && core.slots[index].args.len > u64::from(u32::MAX) {
            return false;
        }
        let fd = core.slots[index].args.fd();
        // The ring ignores the offset on a stream; the attempt answers -ESPIPE.
        if def.is(op::POSITIONAL) && core.descriptors.class(fd) != Class::File && sys::is_stream(fd) {
            return false;
        }
        // A write to a file is checked against RLIMIT_FSIZE where it is issued: inside io_uring_enter for O_DIRECT, and for
        // all on some file systems (6.18).
        self.may_exceed |=
            def.is(op::POSITIONAL | op::CURSOR) && !def.is(op::INWARD) && core.descriptors.class(fd) == Class::File;
        if def.is(op::POSITIONAL)
            && let Some(entry) = self.registered.entry(core, def, index)
        {
            self.queues.blank().write(entry);
            return true;
        }
        // A direct read or write that goes on after the request was taken does not move the file's position (6.18).
        if def.is(op::CURSOR) && core.descriptors.class(fd) == Class::File && core.descriptors.is_direct_file(fd) {
            return false;
        }
        // A pipe that was spliced is polled before it is written to, also for nothing (6.18).
        if def.is(op::PIPE_SIGNAL) {
            let args = &core.slots[index].args;
            if args.len == 0 || (def.is(op::VECTOR) && sys::is_empty(args.ptr(), args.len as usize)) {
                return false;
            }
        }
        // A large write to a blocking terminal would wait inside io_uring_enter (6.18).
        if def.is(op::PIPE_SIGNAL) && core.descriptors.class(fd) == Class::Device {
            return false;
        }
        // Without DEFER_TASKRUN a write that waited goes on in whatever system call the thread makes next, where nothing keeps
        // SIGPIPE away (5.10.262).
        if def.is(op::PIPE_SIGNAL)
            && !self.rung.is_deferred()
            && sys::rwf_nosignal() == 0
            && core.descriptors.class(fd) != Class::File
        {
            return false;
        }
        // Unix sockets refuse it, and their plain sends are as good.
        if zerocopy
            && self.zerocopy
            && sys::is_internet_socket(fd)
            && let Some(form) = def.ring_zerocopy
        {
            form(&core.slots[index].args, self.queues.blank());
            return true;
        }
        let (slot, side) = core.both(index);
        let wants_multi = slot.has(bits::MULTI) && !self.single[kind];
        let entry = if let Some(pool) = side.as_ref().and_then(|side| side.pool.as_ref()) {
            // The kernel keeps no count of what is lent, nor of records that wait: those are armed one by one.
            let lend_max = side.as_ref().map_or(0, |side| side.lend_max);
            let multi = wants_multi && lend_max == 0 && slot.callback.is_some();
            // The kernel's answer does not tell an empty datagram from the end (6.18); the attempt lends a buffer for the one only.
            // And a multishot of messages does not see an end that has come.
            let messages = sys::is_message_socket(fd);
            if messages && (!def.is(op::MESSAGE) || sys::is_shut_message_socket(fd)) {
                return false;
            }
            let (Some(form), Some(group)) = (def.ring_lent, Groups::name_of(pool)) else { return false };
            if let Some(side) = side {
                side.may_lose_end = multi && sys::is_unix_socket(fd);
            }
            form(&slot.args, Lending { group, multishot: multi, bundle: self.bundles })
        } else if slot.has(bits::MULTI) && def.is(op::EDGE) && slot.args.stage != 0 {
            // Arming of a level that was reported would spin, and on a file that is always ready a multishot is no more than
            // that: the attempt's way waits for the edge.
            None
        } else if let (true, Some(form)) = (wants_multi && slot.callback.is_some(), def.ring_multi) {
            Some(form(&slot.args))
        } else {
            let Some(form) = def.ring else { return false };
            form(&slot.args, self.queues.blank());
            return true;
        };
        match entry {
            Some(entry) => {
                self.queues.blank().write(entry);
                true
            }
            None => false,
        }
    }

    /// Bounded kernel workers: as many as pool threads.
    fn limit_workers(&self) {
        let mut limits = [self.workers, 0];
        let _ = self.ring.submitter().register_iowq_max_workers(&mut limits);
    }

    /// The next outcome of the operations that the ring does not do.
    #[inline(never)]
    fn next_attempted(&mut self, core: &mut Core) -> Outcome {
        loop {
            if let Some(outcome) = self.attempts.collect(core) {
                return outcome;
            }
            let Some(index) = self.attempts.pop(core) else { return Outcome::NONE };
            // A one-shot poll sees levels only, and this one was reported: look again a little later.
            if core.def(index).is(op::EDGE) && core.slots[index].args.stage != 0 {
                return Outcome::postponed(index);
            }
            match self.attempts.attempt(core, index) {
                Step::Out(outcome) => return outcome,
                Step::Wait(events) => self.wait(core, index, events),
                Step::Handed | Step::Native => {}
            }
        }
    }

    #[inline(always)]
    fn note_end(&mut self, core: &Core, index: u32) {
        self.in_kernel -= 1;
        let def = core.def(index);
        if def.is(op::PIPE_SIGNAL) && core.slots[index].rung == rung::NATIVE {
            self.may_raise = self.may_raise.saturating_sub(1);
        }
    }

    /// Waits until the operation's descriptor shows one of `events`.
    fn wait(&mut self, core: &mut Core, index: u32, events: u32) {
        let slot = &core.slots[index];
        let fd = if events & op::SECOND == 0 { slot.args.fd() } else { slot.args.fd2() };
        let entry = opcode::PollAdd::new(types::Fd(fd), events & !op::SECOND).build();
        match self.push(core, entry, slot.id()) {
            Some(position) => {
                let slot = &mut core.slots[index];
                slot.rung = rung::WAITING;
                slot.next = position;
                self.in_kernel += 1;
            }
            // Attempted once more next turn, when there is room again.
            None => self.attempts.push(core, index),
        }
    }

    /// Arms what wakes a sleeping loop.
    fn arm_wake(&mut self, core: &Core) {
        let entry = opcode::PollAdd::new(types::Fd(core.shared.wake), libc::POLLIN as u32).build();
        self.wake_armed = self.push(core, entry, WAKE).is_some();
    }

    fn push_cancel(&mut self, core: &Core, id: u64) -> bool {
        self.push(core, opcode::AsyncCancel::new(id).build(), slot::cancel_tag(id)).is_some()
    }

    /// Asks the kernel to end an operation's request, now or when there is room.
    fn ask_to_end(&mut self, core: &Core, index: u32) {
        let id = core.slots[index].id();
        if !self.push_cancel(core, id) {
            self.cancels.push_back(id);
        }
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
            let Some(index) = core.slots.find(id) else { continue };
            if core.slots[index].rung != rung::BACKLOG {
                continue;
            }
            self.start(core, index);
            if core.slots[index].rung == rung::BACKLOG {
                break;
            }
        }
    }

    /// What a completion means; NONE: nothing for the engine.
    #[inline(always)]
    fn translate(&mut self, core: &mut Core, entry: Completion) -> Outcome {
        let id = entry.user_data;
        let Some(index) = core.slots.find(id) else {
            self.translate_own(entry);
            return Outcome::NONE;
        };
        let flags = entry.flags;
        let slot = &core.slots[index];
        if slot.bits & bits::SLOW == 0 && flags == 0 && entry.result >= 0 && slot.rung == rung::NATIVE {
            self.in_kernel -= 1;
            return Outcome::done(index, i64::from(entry.result));
        }
        self.translate_slowly(core, index, entry)
    }

    #[inline(never)]
    fn translate_slowly(&mut self, core: &mut Core, index: u32, entry: Completion) -> Outcome {
        let flags = entry.flags;
        let mut more = cqueue::more(flags);
        if !more {
            self.note_end(core, index);
        }
        if cqueue::notif(flags) {
            return Outcome::released(index);
        }
        if more && core.slots[index].is_zerocopy() {
            core.side(index).owed += 1;
            more = false;
        }
        if more && !cqueue::sock_nonempty(flags) {
            self.look_for_end(core, index);
        }
        let slot = &mut core.slots[index];
        let result = i64::from(entry.result);
        let buffer = cqueue::buffer_select(flags).map(u32::from);
        let outcome = Outcome::done(index, result).with_more(more).with_buffer(buffer);
        let plain = result >= 0 && !op::of(slot.kind).is(op::AMENDS_ALL);
        if slot.rung == rung::NATIVE && (plain || slot.has(bits::WITHDRAWN)) && !slot.has(bits::MULTI) {
            return outcome;
        }
        self.translate_special(core, outcome)
    }

    fn translate_special(&mut self, core: &mut Core, outcome: Outcome) -> Outcome {
        let index = outcome.index;
        let slot = &mut core.slots[index];
        if slot.has(bits::WITHDRAWN) {
            return outcome;
        }
        if slot.rung == rung::WAITING {
            // Ready, or the poll itself failed: the attempt says what.
            if outcome.result == -i64::from(libc::ECANCELED) && slot.has(bits::ASKED | bits::EXPIRED) {
                return outcome;
            }
            // The ring also wakes for these, asked or not. They may stay (a half-closed peer, an error queue that is not
            // empty): then waiting again would not wait.
            let lasting = libc::POLLERR | libc::POLLHUP | libc::POLLRDHUP;
            if outcome.result >= 0 && outcome.result & i64::from(lasting) == 0 {
                self.attempts.push(core, index);
                self.attempts.extend_turn();
                return Outcome::NONE;
            }
            // Or it cannot be watched. If the attempt would wait again, it is made again after a while.
            return match self.attempts.attempt(core, index) {
                Step::Out(outcome) => outcome,
                Step::Wait(events) => match Attempts::end_instead(core, index, events) {
                    Some(end) => end,
                    // See `look_again`.
                    None if outcome.result == -i64::from(libc::ECANCELED) => {
                        self.wait(core, index, events);
                        Outcome::NONE
                    }
                    None => Outcome::postponed(index),
                },
                Step::Handed | Step::Native => Outcome::NONE,
            };
        }
        let def = core.def(index);
        let slot = &mut core.slots[index];
        // Asked also for one that is to end: what completed may be a step before the operation proper, whose value means
        // something else. Going on then is refused by `decide`.
        if let Some(amend) = def.amend
            && let Some(decision) = amend(&mut slot.args, outcome.result)
        {
            if outcome.more() && !matches!(decision, Decision::Done(_)) {
                // The kernel's multishot goes on by itself.
                return Outcome::NONE;
            }
            return match self.attempts.decide(core, index, decision, None) {
                Step::Out(amended) => amended.with_more(outcome.more()),
                Step::Wait(_) if def.is(op::EDGE) => Outcome::postponed(index),
                Step::Wait(events) => {
                    self.wait(core, index, events);
                    Outcome::NONE
                }
                Step::Native => {
                    self.start(core, index);
                    Outcome::NONE
                }
                Step::Handed => Outcome::NONE,
            };
        }
        if def.is(op::MESSAGE) && def.is(op::CAN_LEND) && core.slots[index].has(bits::MULTI) {
            return self.unwrap_message(core, outcome);
        }
        self.unbundle(core, outcome)
    }

    /// When data and the peer's close arrive together at a unix socket, a multishot receives the data and does not see the end
    /// (6.17 and later; TCP tells the kernel that there is more). The end is there by now if it can be lost at all: then the
    /// request is taken back, and the attempt that follows receives it.
    fn look_for_end(&mut self, core: &mut Core, index: u32) {
        if core.side_of(index).is_some_and(|side| side.may_lose_end)
            && sys::poll_now(core.slots[index].args.fd(), libc::POLLRDHUP) != 0
        {
            self.ask_to_end(core, index);
        }
    }

    /// A completion that filled several buffers: the outcome of the first; the others follow.
    fn unbundle(&mut self, core: &mut Core, outcome: Outcome) -> Outcome {
        let Some(pool) = core.side_of(outcome.index).and_then(|side| side.pool.as_ref()) else { return outcome };
        let size = i64::from(pool.size);
        let Some(first) = outcome.buffer().filter(|_| outcome.result > size) else { return outcome };
        let mut left = outcome.result;
        for step in 0..outcome.result.unsigned_abs().div_ceil(u64::from(pool.size)) {
            let number = self.groups.following(pool, first, step as u16);
            let part = Outcome::done(outcome.index, left.min(size)).with_buffer(number);
            left -= size;
            self.bundle.push_back(part.with_more(left > 0 || outcome.more()));
        }
        self.queues.hide();
        self.bundle.pop_front().unwrap_or(outcome)
    }

    /// A multishot recvmsg counts its header and the room it keeps; the program is told the payload's length.
    fn unwrap_message(&mut self, core: &mut Core, outcome: Outcome) -> Outcome {
        let (Some(number), true) = (outcome.buffer(), outcome.result > 0) else { return outcome };
        let Some(pool) = core.side_of(outcome.index).and_then(|side| side.pool.as_ref()) else { return outcome };
        if number >= pool.count {
            return outcome;
        }
        let header = pool.show(number).cast::<crate::abi::upcall_msg>();
        // SAFETY: a buffer of the pool, at least as long as the header the kernel has just written into it.
        let header = unsafe {
            let mut told = header.read_unaligned();
            // The library's, not the program's.
            told.flags &= !(libc::MSG_CMSG_CLOEXEC as u32);
            header.write_unaligned(told);
            told
        };
        let room = core.side_of(outcome.index).map_or(0, |side| {
            size_of::<crate::abi::upcall_msg>() + side.msg.msg_namelen as usize + side.msg.msg_controllen as usize
        });
        let present = outcome.result - room as i64;
        Outcome { result: i64::from(header.payloadlen).min(present.max(0)), ..outcome }
    }

    #[cold]
    fn translate_own(&mut self, entry: Completion) {
        if entry.user_data == WAKE {
            sys::eventfd_drain(self.shared.wake);
            self.wake_armed = false;
        }
        // The rest are answers to cancels, which say nothing: only the target's own completion decides.
    }
}

/// Apart, so that its signal sets are not on the stack of every turn.
#[cold]
fn enter_without_signals(call: impl FnOnce() -> i64) -> i64 {
    sys::thread::without_write_signals(call)
}

fn register_event(ring: &IoUring, event: i32) -> Result<(), i32> {
    ring.submitter().register_eventfd(event).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
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

    fn release(&mut self, _: &mut Core) -> Result<(), i32> {
        // A ring belongs to the thread that enabled it; the next owner gets a new one. All that may fail comes before the old
        // one is given up.
        let made = setup::make(self.entries, self.rung, &self.mask).map_err(|denied| denied.error)?;
        let queues = Queues::new(&made.ring)?;
        if self.event >= 0 {
            queues.use_event(self.embedded);
            register_event(&made.ring, self.event)?;
        }
        self.leave_thread();
        let pools = self.groups.take_pools();
        self.queues = queues;
        self.ring = made.ring;
        self.rung = made.rung;
        self.adopted = false;
        self.settle_in();
        self.groups = Groups::new(self.mask.has(Feature::BufferRings));
        for pool in pools {
            self.groups.offer_again(&self.ring, &pool);
        }
        self.registered.set_again(&self.ring);
        Ok(())
    }

    fn leave_thread(&mut self) {
        use std::os::fd::AsRawFd;
        if self.enter_flags & calls::ENTER_REGISTERED_RING != 0 {
            let ring = self.ring.as_raw_fd();
            calls::unregister_ring(ring, self.enter_fd);
            self.enter_flags &= !calls::ENTER_REGISTERED_RING;
            self.enter_fd = ring;
        }
    }

    fn start(&mut self, core: &mut Core, index: u32) {
        if !self.has_room(core) {
            core.slots[index].rung = rung::BACKLOG;
            self.backlog.push_back(core.slots[index].id());
        } else if self.encode(core, index) {
            let slot = &mut core.slots[index];
            slot.rung = rung::NATIVE;
            slot.next = self.queues.queue(slot.id());
            self.in_kernel += 1;
            if slot.bits & bits::SPECIAL != 0 && op::of(slot.kind).is(op::PIPE_SIGNAL) && sys::rwf_nosignal() == 0 {
                self.may_raise += 1;
            }
        } else {
            self.start_by_attempt(core, index);
        }
    }

    #[inline(always)]
    fn start_plain(&mut self, descriptors: &mut Descriptors, slot: &mut Slot, def: &OpDef, id: u64) -> bool {
        let kind = def.kind as usize % KINDS;
        let form = match self.forms[kind] {
            Some(form) => form,
            None => match self.file_forms[kind] {
                Some(form) if descriptors.is_known_file(slot.args.fd()) && self.registered.is_empty() => {
                    self.may_exceed |= !def.is(op::INWARD);
                    form
                }
                _ => return false,
            },
        };
        if !self.queues.has_room() {
            return false;
        }
        form(&slot.args, self.queues.blank());
        slot.next = self.queues.queue(id);
        self.in_kernel += 1;
        true
    }

    fn start_by_attempt(&mut self, core: &mut Core, index: u32) {
        self.attempts.push(core, index);
    }

    fn cancel(&mut self, core: &mut Core, index: u32) -> Cancel {
        match core.slots[index].rung {
            rung::NATIVE | rung::WAITING => {
                let position = core.slots[index].next;
                if position.wrapping_sub(self.queues.handed) < self.queues.unhanded() {
                    // Not handed over: the entry becomes a NOP of the same name, and the kernel never sees the operation.
                    let entry = opcode::Nop::new().build().user_data(core.slots[index].id());
                    self.queues.replace(position, entry);
                    core.slots[index].bits |= bits::WITHDRAWN;
                    if core.slots[index].is_zerocopy() && core.slots[index].rung == rung::NATIVE {
                        core.side(index).begun -= 1;
                    }
                } else if !core.def(index).is(op::CLOSES) {
                    // A started close cannot be cancelled.
                    self.ask_to_end(core, index);
                }
                Cancel::Asked
            }
            _ => self.attempts.cancel(core, index),
        }
    }

    fn lower(&mut self, core: &Core, index: u32) {
        let kind = usize::from(core.slots[index].kind);
        if core.slots[index].is_zerocopy() && self.zerocopy {
            self.zerocopy = false;
        } else if core.slots[index].has(bits::MULTI) && !self.single[kind] {
            self.single[kind] = true;
        } else {
            self.native[kind] = false;
            self.forms[kind] = None;
            self.file_forms[kind] = None;
        }
    }

    fn look_again(&mut self, core: &mut Core, index: u32) {
        // The request ends with an -ECANCELED that nobody asked for, and the operation is attempted. A multishot of messages
        // would not see the end.
        let multishot = core.slots[index].rung == rung::NATIVE && core.slots[index].has(bits::MULTI);
        if core.slots[index].rung == rung::WAITING || multishot {
            self.ask_to_end(core, index);
        }
    }

    #[inline(always)]
    fn has_work(&self) -> bool {
        self.attempts.has_work() || !self.backlog.is_empty() || !self.cancels.is_empty() || !self.bundle.is_empty()
    }

    fn has_leftovers(&mut self) -> bool {
        self.has_work() || self.queues.has_completions() || self.queues.held_back() != 0 || self.queues.unhanded() > 0
    }

    #[inline(always)]
    fn turn(&mut self, core: &mut Core, until: Until) -> Result<(), i32> {
        if !self.cancels.is_empty() || !self.backlog.is_empty() {
            self.catch_up(core);
        }
        let mut wait = until.may_wait() && !self.queues.has_completions();
        if wait {
            if !self.wake_armed {
                self.arm_wake(core);
            }
            wait = self.wake_armed && core.shared.prepare_sleep() && !self.attempts.threads.has_finished();
        }
        if self.queues.unhanded() == 0 && !wait && self.queues.held_back() == 0 {
            core.shared.awake();
            self.attempts.open_turn();
            return Ok(());
        }
        let limit = match until {
            Until::Time(at) if wait => Some(at),
            _ => None,
        };
        let result = self.enter(core, u32::from(wait), calls::ENTER_GETEVENTS, limit);
        core.shared.awake();
        let mut interrupted = false;
        match -result as i32 {
            // A signal during the wait is hidden behind the count of what was handed over.
            _ if result >= 0 => {
                interrupted = wait
                    && result > 0
                    && !self.queues.has_completions()
                    && self.queues.held_back() == 0
                    && (until == Until::Forever || matches!(until, Until::Time(at) if sys::now() < at));
            }
            libc::ETIME | libc::EAGAIN | libc::EBUSY => {}
            libc::EINTR => interrupted = wait,
            error => return Err(error),
        }
        // Without SUBMIT_ALL the kernel stops at a bad entry; and what it holds back must be asked for.
        for _ in 0..self.ring.params().cq_entries() {
            let held_back = self.queues.held_back();
            if held_back == 0 && (self.queues.unhanded() == 0 || result <= 0) {
                break;
            }
            core.counters().overflows.add(u64::from(held_back & OVERFLOW != 0));
            // A turn that waited has something to deliver; what came since belongs to the next one.
            if self.queues.is_full() || (wait && self.queues.has_completions()) {
                break;
            }
            if self.enter(core, 0, calls::ENTER_GETEVENTS, None) < 0 {
                break;
            }
        }
        self.attempts.open_turn();
        // What is hidden comes after the rest of a bundle.
        if self.bundle.is_empty() {
            self.queues.look();
        }
        if interrupted { Err(libc::EINTR) } else { Ok(()) }
    }

    #[inline(always)]
    fn is_drained(&mut self) -> bool {
        self.queues.is_seen() && self.bundle.is_empty() && !self.attempts.has_work() && !self.queues.look()
    }

    #[inline(always)]
    fn next_quick<'a>(&mut self, core: &'a mut Core) -> Option<(&'a mut Slot, u32, i64)> {
        let entry = self.queues.peek()?;
        let (slot, index) = core.slots.named(entry.user_data)?;
        if entry.flags != 0 || entry.result < 0 || !slot.is_quick() {
            return None;
        }
        self.queues.skip();
        self.in_kernel -= 1;
        Some((slot, index, i64::from(entry.result)))
    }

    #[inline(always)]
    fn next(&mut self, core: &mut Core) -> Outcome {
        loop {
            while let Some(entry) = self.queues.pop() {
                let outcome = self.translate(core, entry);
                if !outcome.is_none() {
                    return outcome;
                }
            }
            // The rest of a completion that filled several buffers comes before the next one, which was hidden for that.
            if let Some(outcome) = self.bundle.pop_front() {
                return outcome;
            }
            if self.attempts.has_work() {
                let outcome = self.next_attempted(core);
                if !outcome.is_none() {
                    return outcome;
                }
            }
            if !self.queues.look() {
                return Outcome::NONE;
            }
        }
    }

    fn prepare_embedded_sleep(&mut self, core: &mut Core) {
        if self.queues.unhanded() > 0 {
            self.enter(core, 0, 0, None);
        }
        // Each completion taken in this turn has written it. What comes after this is seen by `has_leftovers`, or writes it
        // again.
        sys::eventfd_drain(self.event);
        if self.tells_once {
            let _ = self.ring.submitter().unregister_eventfd();
            let _ = register_event(&self.ring, self.event);
        }
    }

    fn embed(&mut self, core: &mut Core) -> Result<i32, i32> {
        // From an eventfd's wake-up the kernel tells another eventfd milliseconds later (6.18): the poll on the loop's own
        // would wake the host once more, for nothing. It ends here, before there is anything to tell.
        if self.wake_armed && !self.embedded {
            sys::eventfd_write(self.shared.wake);
            self.enter(core, 0, calls::ENTER_GETEVENTS, None);
        }
        if self.event < 0 {
            self.make_event()?;
        }
        self.tells_once = !setup::tells_every_time(self.rung);
        self.embedded = true;
        self.queues.use_event(true);
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

    fn register_buffers(&mut self, parts: &[libc::iovec]) {
        if !self.mask.has(Feature::RegisteredBuffers) {
            self.registered.set(&self.ring, parts);
        }
    }

    fn unregister_buffers(&mut self, core: &mut Core) {
        // Requests that were not handed over name buffers by their index.
        while self.queues.unhanded() > 0 && self.enter(core, 0, 0, None) > 0 {}
        self.registered.clear(&self.ring);
    }

    fn supports(&self, kind: u32) -> i32 {
        match op::find(kind) {
            None => UPCALL_UNSUPPORTED,
            Some(_) if self.native[kind as usize] => UPCALL_NATIVE,
            Some(_) => UPCALL_EMULATED,
        }
    }

    fn quiesce(&mut self, core: &mut Core) {
        self.bundle.clear();
        while self.in_kernel > 0 {
            for index in (0..core.slots.table().committed()).rev() {
                if slot::is_live_id(core.slots[index].id())
                    && matches!(core.slots[index].rung, rung::NATIVE | rung::WAITING)
                    && !core.slots[index].has(bits::WITHDRAWN)
                {
                    let _ = self.cancel(core, index);
                }
            }
            self.catch_up(core);
            let soon = sys::now() + 20_000_000;
            self.enter(core, 1, calls::ENTER_GETEVENTS, Some(soon));
            self.queues.look();
            while let Some(entry) = self.queues.pop() {
                let Some(index) = core.slots.find(entry.user_data) else { continue };
                let more = cqueue::more(entry.flags);
                if !more {
                    self.note_end(core, index);
                }
                let result = i64::from(entry.result);
                let slot = &mut core.slots[index];
                // Not the operation's own result: readiness, the NOP it became, or a step before the operation proper.
                let other = slot.rung == rung::WAITING
                    || slot.has(bits::WITHDRAWN)
                    || op::of(slot.kind)
                        .amend
                        .and_then(|amend| amend(&mut slot.args, result))
                        .is_some_and(|decision| !matches!(decision, Decision::Done(_)));
                let result = if other { -i64::from(libc::ECANCELED) } else { result };
                let buffer = cqueue::buffer_select(entry.flags).map(u32::from);
                drop_result(core, &Outcome::done(index, result).with_more(more).with_buffer(buffer));
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
        if self.event >= 0 {
            sys::close(self.event);
        }
    }
}
