//! From a descriptor to a started operation, and how one is asked to end.

use super::shared::Submission;
use super::slot::{Label, NONE, State, bits, rung};
use super::{Engine, Steps};
use crate::abi::*;
use crate::driver::{Cancel, Driver};
use crate::engine::check;
use crate::engine::descriptors::Descriptors;
use crate::op::side::Side;
use crate::op::{self, Args, OpDef, Refusal};
use crate::sys::{self, checkers};
use std::mem::MaybeUninit;
use std::sync::Arc;

/// An operation that was asked to end and is still there is asked again after so long: an interrupt can come just before a
/// thread's system call, and a cancel can miss a request that is between two states in the kernel.
const NAG_THREAD_NS: u64 = 5_000_000;
const NAG_KERNEL_NS: u64 = 500_000_000;

/// Copies what an operation's pointers to const name. Any thread.
pub(super) fn copy_metadata(def: &OpDef, operation: &upcall_op, args: &mut Args, side: &mut Side) {
    if let Some(copy) = def.copy {
        copy(args, side, !operation.buffers.is_null());
    }
}

/// Tells memory checkers what an operation may touch. Any thread.
pub(super) fn watch(def: &OpDef, operation: &upcall_op, side: &mut Side) {
    let inward = def.is(op::INWARD);
    if def.is(op::MOVES) && !def.is(op::TWO_FDS) && operation.buffers.is_null() {
        if def.is(op::VECTOR) {
            side.iov.iter().for_each(|part| side.watched.add_data(part.iov_base as u64, part.iov_len as u64, inward));
        } else {
            side.watched.add_data(operation.addr, operation.len, inward);
        }
    }
    op::results(operation).into_iter().for_each(|(at, len)| side.watched.add_result(at, len));
}

/// Enters the pool an operation names. Any thread.
pub(super) fn borrow_pool(operation: &upcall_op, side: &mut Side) -> Result<(), Refusal> {
    if operation.buffers.is_null() {
        return Ok(());
    }
    let pool = operation.buffers.cast::<crate::engine::buffers::Pool>();
    // SAFETY: the program passed a pool it has not freed; it came from Arc::into_raw.
    let pool = unsafe {
        Arc::increment_strong_count(pool);
        Arc::from_raw(pool)
    };
    if !pool.enter() {
        return Err(Refusal { error: libc::EINVAL, text: "buffers was freed".into() });
    }
    side.pool = Some(pool);
    side.lend_max = operation.lend_max;
    Ok(())
}

/// The labels that the operations of a kind start with, if nothing is special about them: most are started, and native.
static LABELS: [Label; op::KINDS] = {
    let mut table = [Label::new(0, State::Started, 0, 0, rung::NATIVE); op::KINDS];
    let mut kind = 0;
    while kind < op::KINDS {
        let def = op::of(kind as u8);
        let moves = if def.is(op::MOVES) { bits::MOVES } else { 0 };
        let special =
            def.is(op::TIMER | op::SIGNAL | op::CLOSES | op::CURSOR | op::AMENDS_ALL | op::TWO_FDS | op::SHUTS);
        let set = moves | if special { bits::SPECIAL } else { 0 };
        table[kind] = Label::new(kind as u8, State::Started, 0, set, rung::NATIVE);
        kind += 1;
    }
    table
};

/// What an operation's flags ask for.
#[inline(always)]
fn bits_of(flags: u32) -> u16 {
    let bit = |flag: u32, bit: u16| if flags & flag != 0 { bit } else { 0 };
    bit(UPCALL_FULL, bits::FULL)
        | bit(UPCALL_MULTISHOT, bits::MULTI)
        | bit(UPCALL_BACKGROUND, bits::BACKGROUND)
        | bit(UPCALL_ZEROCOPY, bits::SPECIAL)
}

/// Where the program wants the ids.
type Ids<'a> = Option<&'a mut [MaybeUninit<u64>]>;

impl<D: Driver> Engine<D> {
    /// Accepts all of a submit of the owner thread, or none.
    #[inline(always)]
    pub fn submit(&mut self, ops: &[upcall_op], ids: Ids) -> Result<(), Refusal> {
        let needs = check::submission(ops, &self.core.shared)?;
        let enough = ops.len() <= u32::MAX as usize && self.ensure_slots(ops.len() as u32);
        if !enough {
            return Err(Refusal { error: libc::EAGAIN, text: "config.max_operations are in flight".into() });
        }
        let at = if needs.clock { sys::now() } else { 0 };
        self.in_flight += ops.len();
        self.tally.submitted += ops.len() as u64;
        // A pool may be freed between the check and now, so with buffers nothing starts before all are admitted.
        if needs.order || needs.whole {
            return self.admit_ordered(ops, at, needs.order, ids);
        }
        // Two passes through one source, so that programs without options do not pay for them.
        if needs.options { self.admit_all::<true>(ops, at, ids) } else { self.admit_all::<false>(ops, at, ids) }
    }

    #[inline(always)]
    fn admit_all<const OPTIONS: bool>(&mut self, ops: &[upcall_op], at: u64, mut ids: Ids) -> Result<(), Refusal> {
        for (number, operation) in ops.iter().enumerate() {
            let index = self.core.slots.take();
            // As most go on: started, and native.
            let (def, id) = self.fill::<OPTIONS>(index, operation, State::Started);
            if let Some(ids) = &mut ids {
                ids[number].write(id);
            }
            let slot = &mut self.core.slots[index];
            if slot.bits & bits::SLOW != 0 || def.is(op::COPIES) || (OPTIONS && operation.timeout_ns != 0) {
                slot.rung = rung::IDLE;
                self.fill_more(index, operation, def, at, false)?;
                self.start(index);
            } else if !self.driver.start_plain(&mut self.core.descriptors, slot, def, id) {
                self.driver.start(&mut self.core, index);
            }
        }
        Ok(())
    }

    #[cold]
    fn admit_ordered(&mut self, ops: &[upcall_op], at: u64, ordered: bool, mut ids: Ids) -> Result<(), Refusal> {
        if ops.iter().any(|operation| op::of(operation.kind as u8).is(op::CLOSES)) {
            self.take_in_before_close();
        }
        let mut indexes = Vec::with_capacity(ops.len());
        for (number, operation) in ops.iter().enumerate() {
            let index = self.core.slots.take();
            let (def, id) = self.fill::<true>(index, operation, State::Free);
            if let Some(ids) = &mut ids {
                ids[number].write(id);
            }
            let admitted = self.fill_more(index, operation, def, at, ordered);
            indexes.push(index);
            if let Err(refusal) = admitted {
                // Those that were not reached do not count either.
                self.in_flight -= ops.len() - indexes.len();
                self.tally.submitted = self.tally.submitted.wrapping_sub(ops.len() as u64);
                for index in indexes {
                    self.leave(index);
                }
                return Err(refusal);
            }
        }
        self.begin(&indexes, ordered);
        Ok(())
    }

    /// Starts admitted operations, in order if it matters.
    fn begin(&mut self, indexes: &[u32], ordered: bool) {
        if !ordered {
            for &index in indexes {
                // All are in their descriptors' lists already: a close before this one waits for it, and could not ask it.
                let (fd, listed) = (self.core.slots[index].args.fd(), self.core.slots[index].has(bits::LISTED));
                match listed && self.core.descriptors.is_closing(fd) {
                    true => self.finish(index, -i64::from(libc::EBADF)),
                    false => self.start(index),
                }
            }
            return;
        }
        let number = self.take_group();
        let mut group = std::mem::take(&mut self.groups[number as usize]);
        group.reset();
        for &index in indexes {
            let place = group.add(index, u32::from(self.core.slots[index].flags));
            let side = self.core.side(index);
            side.group = Some(number);
            side.place = place;
            let slot = &mut self.core.slots[index];
            slot.state = State::Parked;
            slot.bits |= bits::GROUPED;
        }
        let mut steps = Steps::default();
        group.begin(&mut steps);
        self.groups[number as usize] = group;
        self.follow(steps);
    }

    fn ensure_slots(&mut self, count: u32) -> bool {
        if self.core.slots.ensure(count) {
            return true;
        }
        while let Some(index) = self.core.shared.reclaim_foreign() {
            self.core.slots.put_back(index);
            if self.core.slots.ensure(count) {
                return true;
            }
        }
        false
    }

    /// Fills a slot of this thread: the operation's definition and id. Without `OPTIONS` its flags are zero.
    #[inline(always)]
    fn fill<const OPTIONS: bool>(&mut self, index: u32, operation: &upcall_op, state: State) -> (&'static OpDef, u64) {
        let kind = operation.kind as usize % op::KINDS;
        let def = op::of(kind as u8);
        let slot = &mut self.core.slots[index];
        // Without arguments there is nothing to replay, and a free slot names no descriptor.
        if !def.is(op::NO_ARGS) {
            slot.args.fill(operation, def);
        }
        // Not before: who finds the id in a slot looks at the descriptor next to it.
        let id = slot.open();
        slot.callback = operation.callback;
        slot.user = operation.user;
        if OPTIONS {
            let set = LABELS[kind].bits() | bits_of(operation.flags);
            let rung = if state == State::Started { rung::NATIVE } else { rung::IDLE };
            slot.set_label(Label::new(kind as u8, state, operation.flags as u16, set, rung));
            self.background += usize::from(set & bits::BACKGROUND != 0);
        } else {
            slot.set_label(LABELS[kind]);
        }
        if def.is(op::FD | op::DIRFD | op::EMPTY_IS_DONE) {
            self.enter(index, operation, def);
        }
        (def, id)
    }

    /// What fewer operations have: copied metadata, buffers, a deadline.
    #[inline(never)]
    fn fill_more(
        &mut self,
        index: u32,
        operation: &upcall_op,
        def: &OpDef,
        at: u64,
        parked: bool,
    ) -> Result<(), Refusal> {
        if def.is(op::COPIES) || !operation.buffers.is_null() {
            self.core.side(index);
            let (slot, side) = self.core.both(index);
            if let Some(side) = side {
                copy_metadata(def, operation, &mut slot.args, side);
                borrow_pool(operation, side)?;
                self.watch_pool(index);
            }
        }
        if checkers::any() {
            watch(def, operation, self.core.side(index));
        }
        if def.is(op::TIMER) {
            self.core.slots[index].args.offset = at;
        }
        if operation.timeout_ns != 0 {
            self.set_timeout(index, operation, at, parked);
        }
        Ok(())
    }

    /// Enters an accepted operation into its descriptor's list.
    #[inline(always)]
    fn enter(&mut self, index: u32, operation: &upcall_op, def: &OpDef) {
        let mut set = 0;
        if def.is(op::EMPTY_IS_DONE) && ((operation.len == 0 && operation.arg == 0) || !operation.buffers.is_null()) {
            set |= bits::SPECIAL;
        }
        if def.is(op::FD | op::DIRFD) {
            let listed = operation.fd >= 0 && self.core.descriptors.link(&mut self.core.slots, index);
            set |= if listed { bits::LISTED } else { bits::SPECIAL };
            if def.is(op::TWO_FDS) {
                self.enter_second(operation.arg2 as i32, self.core.slots[index].id());
            }
        }
        self.core.slots[index].bits |= set;
    }

    fn enter_second(&mut self, fd: i32, id: u64) {
        if !self.core.descriptors.is_closing(fd) {
            self.core.shared.seconds.insert(fd, id);
        } else if self.core.shared.seconds.remove(fd, id) && self.core.only_a_close_is_left(fd) {
            self.note_closer(fd);
        }
    }

    /// The operation's deadline, counted from acceptance or, when it has to wait its turn, from its start.
    fn set_timeout(&mut self, index: u32, operation: &upcall_op, at: u64, parked: bool) {
        let multi = operation.flags & UPCALL_MULTISHOT != 0;
        let timer = self.core.def(index).is(op::TIMER);
        if parked || multi || timer {
            self.core.side(index).timeout_ns = operation.timeout_ns;
        }
        if timer {
            if !parked {
                self.core.side(index).deadline_at = at.saturating_add(operation.timeout_ns);
            }
        } else if !parked {
            self.arm(index, at.saturating_add(operation.timeout_ns), operation.timeout_ns);
        }
    }

    /// Arms the operation's timer; u64::MAX is never.
    pub(super) fn arm(&mut self, index: u32, at: u64, duration: u64) {
        self.timers.disarm(&mut self.core.slots, index);
        if at != u64::MAX {
            self.timers.arm(&mut self.core.slots, index, at, duration);
        }
    }

    /// The engine looks at the operation's pool from now on.
    fn watch_pool(&mut self, index: u32) {
        let Some(pool) = self.core.side_of(index).and_then(|side| side.pool.clone()) else { return };
        self.driver.offer_pool(&mut self.core, &pool);
        if !pool.inner().watched {
            pool.inner().watched = true;
            self.pools.push(pool);
        }
    }

    /// Takes in what another thread submitted.
    pub(super) fn admit_foreign(&mut self, submission: Submission) {
        let mut indexes = Vec::with_capacity(submission.accepted.len());
        self.in_flight += submission.accepted.len();
        let ordered =
            submission.accepted.iter().any(|one| one.op.flags & (UPCALL_LINK | UPCALL_LINK_ALWAYS | UPCALL_DRAIN) != 0);
        for one in submission.accepted {
            let index = super::slot::index_of(one.id);
            let def = op::of(one.op.kind as u8);
            let slot = &mut self.core.slots[index];
            slot.args.take(&one.args);
            slot.side = NONE;
            if let Some(side) = one.side {
                slot.side = self.core.sides.add(side);
            }
            let has_side = self.core.slots[index].side != NONE;
            let slot = &mut self.core.slots[index];
            slot.callback = one.op.callback;
            slot.user = one.op.user;
            let set = LABELS[one.op.kind as usize % op::KINDS].bits() | bits_of(one.op.flags) | bits::FOREIGN;
            slot.set_label(Label::new(one.op.kind as u8, State::Free, one.op.flags as u16, set, rung::IDLE));
            self.background += usize::from(set & bits::BACKGROUND != 0);
            self.enter(index, &one.op, def);
            if has_side {
                self.core.slots[index].bits |= bits::SIDE;
                self.watch_pool(index);
            }
            if def.is(op::TIMER) {
                self.core.slots[index].args.offset = submission.at;
            }
            if one.op.timeout_ns != 0 {
                self.set_timeout(index, &one.op, submission.at, ordered);
            }
            indexes.push(index);
        }
        self.begin(&indexes, ordered);
        if !self.early_cancels.is_empty() {
            self.cancel_early(&indexes);
        }
    }

    /// Starts an operation whose turn has come.
    #[inline(always)]
    pub(super) fn start(&mut self, index: u32) {
        let slot = &mut self.core.slots[index];
        let parked = slot.state == State::Parked;
        slot.state = State::Started;
        if slot.bits & (bits::SPECIAL | bits::GROUPED) == 0 {
            return self.driver.start(&mut self.core, index);
        }
        self.start_special(index, parked);
    }

    fn start_special(&mut self, index: u32, parked: bool) {
        let def = self.core.def(index);
        if parked && let Some(timeout) = self.core.side_of(index).map(|side| side.timeout_ns).filter(|&ns| ns != 0) {
            let at = sys::now().saturating_add(timeout);
            if def.is(op::TIMER) {
                self.core.side(index).deadline_at = at;
            } else {
                self.arm(index, at, timeout);
            }
        }
        if def.is(op::TIMER) {
            return self.start_timer(index, parked);
        }
        if def.is(op::SIGNAL) {
            return self.start_signal(index);
        }
        let fd = self.core.slots[index].args.fd();
        let bad = def.is(op::FD) && fd < 0;
        if bad || (def.is(op::FD | op::DIRFD) && fd >= 0 && self.core.descriptors.is_closing(fd)) {
            return self.finish(index, -i64::from(libc::EBADF));
        }
        if def.is(op::FD | op::DIRFD) && fd >= 0 && !self.core.slots[index].has(bits::LISTED) {
            // The descriptor was not open when the submit was accepted; an earlier operation of it may have made it.
            if self.core.descriptors.link(&mut self.core.slots, index) {
                self.core.slots[index].bits |= bits::LISTED;
            }
        }
        if self.core.slots[index].is_zerocopy() {
            self.core.side(index);
        }
        if def.is(op::TWO_FDS) {
            let second = self.core.slots[index].args.fd2();
            if !def.is(op::DIRFD) && (second < 0 || self.core.descriptors.is_closing(second)) {
                return self.finish(index, -i64::from(libc::EBADF));
            }
            self.core.shared.seconds.insert(second, self.core.slots[index].id());
        }
        if def.is(op::CLOSES) {
            return self.start_close(index);
        }
        if self.is_done_when_empty(index, def) {
            return self.finish(index, 0);
        }
        if let Some(inward) = Descriptors::cursor_of(def.kind as u8)
            && self.core.slots[index].has(bits::LISTED)
        {
            if !self.core.descriptors.cursor_enter(fd, inward) {
                self.core.slots[index].state = State::Cursor;
                if let Some(descriptor) = self.core.descriptors.get(fd) {
                    descriptor.cursor_waiting += 1;
                }
                return;
            }
            self.core.side(index).holds_cursor = true;
        }
        self.driver.start(&mut self.core, index);
    }

    /// Length 0 of a stream completes without touching the descriptor; a datagram may be empty, so it is received.
    fn is_done_when_empty(&mut self, index: u32, def: &OpDef) -> bool {
        if !def.is(op::EMPTY_IS_DONE) || self.core.slots[index].args.arg != 0 || self.core.left(index) != 0 {
            return false;
        }
        if self.core.side_of(index).is_some_and(|side| side.pool.is_some()) {
            return false;
        }
        match sys::socket_type(self.core.slots[index].args.fd()) {
            Ok(libc::SOCK_STREAM) => true,
            Ok(_) => false,
            // What is no socket: a read of nothing; recv must answer -ENOTSOCK, and a bad descriptor -EBADF.
            Err(error) => error == libc::ENOTSOCK && def.is(op::CURSOR),
        }
    }

    /// A sleep counts like a deadline: from acceptance, or from when its turn came. `args.offset` holds that, then when it
    /// is due.
    fn start_timer(&mut self, index: u32, parked: bool) {
        let until = self.core.slots[index].kind == op::SLEEP_UNTIL;
        let span = self.core.slots[index].args.len;
        let begun = if parked { sys::now() } else { self.core.slots[index].args.offset };
        let due = if until { span } else { begun.saturating_add(span) };
        let slot = &mut self.core.slots[index];
        slot.args.offset = due;
        slot.state = State::Sleeping;
        self.arm_sleep(index);
    }

    /// Arms a sleep for its due time or its deadline, whichever is first.
    pub(super) fn arm_sleep(&mut self, index: u32) {
        let due = self.core.slots[index].args.offset;
        let span = self.core.slots[index].args.len;
        let deadline = self.core.side_of(index).map_or(0, |side| side.deadline_at);
        if deadline != 0 && deadline < due {
            return self.arm(index, deadline, u64::MAX);
        }
        self.arm(index, due, span);
    }

    /// What other threads have submitted on a descriptor is in flight there, and a close is to know.
    pub(super) fn take_in_before_close(&mut self) {
        // What comes out of the inbox itself knows all that went in before.
        if !self.taking_in {
            self.take_in_all();
        }
    }

    /// Asks the descriptor's other operations to end; closes when they have.
    fn start_close(&mut self, index: u32) {
        let fd = self.core.slots[index].args.fd();
        let others = self.core.operations(fd);
        if others.len() <= 1 {
            return self.hand_over_close(index);
        }
        if let Some(descriptor) = self.core.descriptors.get(fd) {
            descriptor.closer = index;
        }
        self.core.slots[index].state = State::Closing;
        for other in others.into_iter().filter(|&other| other != index) {
            if !self.comes_after(other, index) {
                self.cancel_operation(other, bits::ASKED);
            }
        }
        // What is left in the list has been asked; if nothing is, the close begins with the next turn.
        if self.core.operations(fd).len() == 1 {
            let id = self.core.slots[index].id();
            self.closers.push(id);
        }
    }

    /// Gives a close to the driver. The number may come back as another descriptor before its final event, so from here on
    /// the close is in no list and nothing is kept from the number.
    pub(super) fn hand_over_close(&mut self, index: u32) {
        let fd = self.core.slots[index].args.fd();
        if self.core.slots[index].has(bits::LISTED) {
            self.core.descriptors.unlink(&mut self.core.slots, index);
            self.core.slots[index].bits &= !bits::LISTED;
        }
        if let Some(descriptor) = self.core.descriptors.get(fd).filter(|descriptor| descriptor.closer == index) {
            descriptor.closer = NONE;
        }
        self.core.slots[index].state = State::Started;
        self.driver.start(&mut self.core, index);
    }

    /// An operation that waits behind this one in its own submit meets the descriptor as it will be then: it leaves the list
    /// until its turn comes.
    fn comes_after(&mut self, other: u32, index: u32) -> bool {
        let place = |side: &mut Side| side.group.map(|group| (group, side.place));
        let (Some(theirs), Some(mine)) =
            (self.core.side_of(other).and_then(place), self.core.side_of(index).and_then(place))
        else {
            return false;
        };
        let after = self.core.slots[other].state == State::Parked && theirs.0 == mine.0 && theirs.1 > mine.1;
        if after {
            let fd = self.core.slots[index].args.fd();
            let clear = [self.core.unlist(other), self.core.unlist_second(other)];
            clear.into_iter().flatten().filter(|&clear| clear != fd).for_each(|clear| self.note_closer(clear));
        }
        after
    }

    /// Asks an operation to end, because the program asked (ASKED) or its deadline has passed (EXPIRED).
    pub(super) fn cancel_operation(&mut self, index: u32, why: u16) {
        let slot = &mut self.core.slots[index];
        match slot.state {
            State::Free | State::Inbox | State::Sent | State::Ended | State::Closing => {}
            State::Parked | State::Cursor | State::Paused | State::Sleeping => {
                if slot.state == State::Cursor {
                    let fd = slot.args.fd();
                    if let Some(descriptor) = self.core.descriptors.get(fd) {
                        descriptor.cursor_waiting = descriptor.cursor_waiting.saturating_sub(1);
                    }
                }
                // A signal that was delivered before is told: the cancel came too late for it.
                if self.core.def(index).is(op::SIGNAL) {
                    self.take_signal(index);
                    if self.core.slots[index].state == State::Ended {
                        return;
                    }
                }
                self.core.slots[index].bits |= why;
                self.finish(index, -i64::from(libc::ECANCELED));
            }
            State::Started => {
                if slot.has(bits::ASKED | bits::EXPIRED) {
                    return;
                }
                slot.bits |= why;
                self.ask_driver(index);
            }
        }
    }

    /// Asks the driver to end an operation, and again later if it is still there.
    pub(super) fn ask_driver(&mut self, index: u32) {
        match self.driver.cancel(&mut self.core, index) {
            Cancel::Gone => self.finish(index, -i64::from(libc::ECANCELED)),
            Cancel::Asked => {
                if !self.core.slots[index].has(bits::WITHDRAWN) {
                    let own = self.core.slots[index].rung == rung::OWN;
                    let span = if own { NAG_THREAD_NS } else { NAG_KERNEL_NS };
                    self.arm(index, sys::now() + span, span);
                }
            }
        }
    }

    /// Cancels by id. False: no such operation in flight.
    pub fn cancel(&mut self, id: u64) -> bool {
        self.cancel_accepted(id)
    }

    /// Cancels an operation that may not have come out of the inbox yet: its submit may even come after this cancel.
    pub(super) fn cancel_accepted(&mut self, id: u64) -> bool {
        let Some(index) = self.core.slots.find(id) else { return false };
        if self.core.slots[index].state == State::Inbox {
            self.early_cancels.insert(id);
        } else {
            self.cancel_operation(index, bits::ASKED);
        }
        true
    }

    /// Cancels those operations, just started or parked, that were to be cancelled before.
    fn cancel_early(&mut self, indexes: &[u32]) {
        for &index in indexes {
            let id = self.core.slots[index].id();
            if self.early_cancels.remove(&id) {
                self.cancel_operation(index, bits::ASKED);
            }
        }
    }

    /// Cancels everything on a descriptor; returns how many were asked.
    pub fn cancel_fd(&mut self, fd: i32) -> i32 {
        self.take_in_all();
        if fd < 0 {
            return 0;
        }
        let found = self.core.operations(fd);
        self.cancel_each(found)
    }

    /// Cancels everything; returns how many were asked.
    pub fn cancel_all(&mut self) -> i32 {
        self.take_in_all();
        let found = self.core.slots.table().ids_in_flight(None);
        // The newest first: the kernel finds it at the head of a chain that it searches (20,000: 4 s the other way).
        let found = found.into_iter().rev().map(super::slot::index_of).collect();
        self.cancel_each(found)
    }

    fn cancel_each(&mut self, found: Vec<u32>) -> i32 {
        let mut asked = 0;
        for index in found {
            if !matches!(self.core.slots[index].state, State::Free | State::Sent | State::Ended) {
                asked += 1;
                let id = self.core.slots[index].id();
                self.cancel_accepted(id);
            }
        }
        asked
    }

    /// Ends an operation without the driver: its final event goes out with the next delivery.
    pub(super) fn finish(&mut self, index: u32, result: i64) {
        self.timers.disarm(&mut self.core.slots, index);
        let slot = &mut self.core.slots[index];
        slot.state = State::Ended;
        slot.args.len = result as u64;
        slot.next = NONE;
        match self.ended_last {
            NONE => self.ended_first = index,
            last => self.core.slots[last].next = index,
        }
        self.ended_last = index;
        self.ended_count += 1;
    }
}
