//! Slots: one per operation in flight, at an address that never moves, and the ids that name them.
//!
//! An id is `generation << 24 | index`. A generation is odd while its operation is in flight and even while the slot is
//! free, so an id is never 0, never matches a free slot, and a stale one never names the slot's next operation. A slot whose
//! generation reaches the end is retired instead of reused (2^39 operations later). The bits that are no id (even
//! generations, index [`NONE_INDEX`]) name the engine's own requests to the kernel.

use crate::abi::upcall_callback;
use crate::op::Args;
use crate::sys::memory::{self, Reservation};
use crate::sys::sync::{AtomicI32, AtomicU32, AtomicU64, Mutex};
use std::ffi::c_void;
use std::sync::atomic::Ordering;

/// "No slot", "no side block", "end of list".
pub(crate) const NONE: u32 = u32::MAX;
/// An index no slot has.
pub(crate) const NONE_INDEX: u32 = INDEX_MASK as u32;
const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
/// One generation up.
const GENERATION: u64 = 1 << INDEX_BITS;
/// The next generation is an operation in flight.
#[inline(always)]
fn open(word: &AtomicU64) -> u64 {
    let id = word.load(Ordering::Relaxed).wrapping_add(GENERATION);
    word.store(id, Ordering::Release);
    id
}

/// The next generation is a free slot. False: there is none.
#[inline(always)]
fn shut(word: &AtomicU64) -> bool {
    open(word) >= GENERATION
}

/// Slots a table can have.
pub(crate) const MAX_SLOTS: u32 = NONE_INDEX;

/// The index an id names.
#[inline(always)]
pub(crate) fn index_of(id: u64) -> u32 {
    (id & INDEX_MASK) as u32
}

/// Whether these bits can be an operation's id.
#[inline(always)]
pub(crate) fn is_live_id(id: u64) -> bool {
    id & GENERATION != 0
}

/// The bits that name a request to cancel `id`.
#[inline(always)]
pub(crate) fn cancel_tag(id: u64) -> u64 {
    id ^ GENERATION
}

/// Where an operation is. Every change of it is the engine's.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Nobody's.
    Free = 0,
    /// Accepted on another thread; the owner has not seen it.
    Inbox,
    /// Behind a link or a drain.
    Parked,
    /// Behind another read or write at the same descriptor's position.
    Cursor,
    /// A close that waits for the descriptor's other operations.
    Closing,
    /// The driver has it.
    Started,
    /// A multishot that waits for a buffer, for records to be reaped, or for a back-off to pass.
    Paused,
    /// A timer.
    Sleeping,
    /// A zero-copy send whose result was told; its data is still in use.
    Sent,
    /// Ended; its final event waits to be delivered. `args.len` holds the result.
    Ended,
}

/// How the driver is doing it.
pub(crate) mod rung {
    /// Not at all.
    pub(crate) const IDLE: u8 = 0;
    /// One request in the ring.
    pub(crate) const NATIVE: u8 = 1;
    /// In the queue of attempts.
    pub(crate) const QUEUED: u8 = 2;
    /// Waiting for readiness.
    pub(crate) const WAITING: u8 = 3;
    /// On a thread of the pool.
    pub(crate) const POOL: u8 = 4;
    /// On a thread of its own.
    pub(crate) const OWN: u8 = 5;
    /// The ring was full: waits to be encoded.
    pub(crate) const BACKLOG: u8 = 6;
    /// Attempted, and took all there was: to go on it waits.
    pub(crate) const EMPTIED: u8 = 7;
}

/// What the engine must remember of an operation. Anything in SLOW keeps it off the shortest way.
pub(crate) mod bits {
    /// In its descriptor's list.
    pub(crate) const LISTED: u16 = 1;
    /// The result counts bytes.
    pub(crate) const MOVES: u16 = 1 << 1;
    /// Does not keep run alive.
    pub(crate) const BACKGROUND: u16 = 1 << 2;
    /// The slot belongs to other threads' submissions.
    pub(crate) const FOREIGN: u16 = 1 << 3;
    /// Asked to end.
    pub(crate) const ASKED: u16 = 1 << 4;
    /// Asked to end by its own deadline.
    pub(crate) const EXPIRED: u16 = 1 << 5;
    /// Cancelled in the submission queue: it became a NOP.
    pub(crate) const WITHDRAWN: u16 = 1 << 6;
    /// UPCALL_FULL.
    pub(crate) const FULL: u16 = 1 << 7;
    /// UPCALL_MULTISHOT.
    pub(crate) const MULTI: u16 = 1 << 8;
    /// Has a side block.
    pub(crate) const SIDE: u16 = 1 << 9;
    /// Part of an ordered submit.
    pub(crate) const GROUPED: u16 = 1 << 10;
    /// Starting or ending it takes more than handing it to the driver and back.
    pub(crate) const SPECIAL: u16 = 1 << 11;
    /// A shortage was reported.
    pub(crate) const REPORTED: u16 = 1 << 12;
    /// A native refusal is being tried another way.
    pub(crate) const RETRIED: u16 = 1 << 13;
    /// Has an entry in the timers.
    pub(crate) const TIMED: u16 = 1 << 14;
    /// The owner died: its result is not to be believed.
    pub(crate) const ORPHAN: u16 = 1 << 15;
    pub(crate) const SLOW: u16 = !(LISTED | MOVES | BACKGROUND | FOREIGN | TIMED);
}

/// See the module. 128 bytes: what every operation touches, then what its forms work on.
#[repr(C, align(64))]
pub(crate) struct Slot {
    pub id: AtomicU64,
    pub callback: upcall_callback,
    pub user: *mut c_void,
    /// Bytes moved by the parts of a full transfer that are done; 0 in a free slot, as `side` is NONE.
    pub transferred: u64,
    pub side: u32,
    pub fd_prev: u32,
    pub fd_next: u32,
    /// The free list; the list of ended ones; while started, the driver's word (queue position or events waited for).
    pub next: u32,
    pub timer_prev: u32,
    pub timer_next: u32,
    pub kind: u8,
    pub state: State,
    pub flags: u16,
    pub bits: u16,
    pub rung: u8,
    pub timer_list: u8,
    /// CLOCK_MONOTONIC; u64::MAX: none.
    pub deadline: u64,
    pub args: Args,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 128);
const _: () = {
    use std::mem::offset_of;
    let first = offset_of!(Slot, kind);
    assert!(first % 8 == 0 && offset_of!(Slot, state) == first + 1 && offset_of!(Slot, flags) == first + 2);
    assert!(offset_of!(Slot, bits) == first + 4 && offset_of!(Slot, rung) == first + 6);
    assert!(offset_of!(Slot, timer_list) == first + 7);
};

impl Slot {
    #[inline(always)]
    pub fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Makes a free slot's operation begin: its id.
    #[inline(always)]
    pub fn open(&mut self) -> u64 {
        open(&self.id)
    }

    /// Ends an operation's id. False: the slot must not be used again.
    #[inline(always)]
    pub fn shut(&mut self) -> bool {
        shut(&self.id)
    }

    /// Sets the small fields with one store: one by one they cost more than all the rest of the slot.
    #[inline(always)]
    pub fn set_label(&mut self, label: Label) {
        // SAFETY: the eight bytes from `kind` to `timer_list` are this slot's, in the order of a label and aligned (asserted
        // above); a label's `state` is a State.
        unsafe { std::ptr::from_mut(self).byte_add(std::mem::offset_of!(Slot, kind)).cast::<u64>().write(label.0) };
    }

    /// Its end concerns nobody but itself and its descriptor's list: no timer, no side block, nothing to remember.
    #[inline(always)]
    pub fn concerns_few(&self) -> bool {
        self.bits & !(bits::MOVES | bits::LISTED) == 0
    }

    /// In flight as a native request, and [concerns few](Slot::concerns_few): three questions, one load.
    #[inline(always)]
    pub fn is_quick(&self) -> bool {
        const MASK: u64 = Label::of(0, u8::MAX, 0, !(bits::MOVES | bits::LISTED), u8::MAX).0;
        const QUICK: u64 = Label::new(0, State::Started, 0, 0, rung::NATIVE).0;
        // SAFETY: as above.
        let label = unsafe { std::ptr::from_ref(self).byte_add(std::mem::offset_of!(Slot, kind)).cast::<u64>().read() };
        label & MASK == QUICK
    }

    /// UPCALL_ZEROCOPY.
    #[inline(always)]
    pub fn is_zerocopy(&self) -> bool {
        self.flags & crate::abi::UPCALL_ZEROCOPY as u16 != 0
    }

    #[inline(always)]
    pub fn has(&self, bits: u16) -> bool {
        self.bits & bits != 0
    }
}

/// A slot's small fields, from `kind` to `timer_list`.
#[derive(Clone, Copy)]
pub(crate) struct Label(u64);

impl Label {
    pub const fn new(kind: u8, state: State, flags: u16, bits: u16, rung: u8) -> Label {
        Label::of(kind, state as u8, flags, bits, rung)
    }

    const fn of(kind: u8, state: u8, flags: u16, bits: u16, rung: u8) -> Label {
        let ([f0, f1], [b0, b1]) = (flags.to_ne_bytes(), bits.to_ne_bytes());
        Label(u64::from_ne_bytes([kind, state, f0, f1, b0, b1, rung, 0]))
    }

    #[inline(always)]
    pub fn bits(self) -> u16 {
        let bytes = self.0.to_ne_bytes();
        u16::from_ne_bytes([bytes[4], bytes[5]])
    }
}

/// The memory of all slots, shared by the owner and by threads that submit from outside.
pub(crate) struct SlotTable {
    memory: Reservation,
    capacity: u32,
    committed: AtomicU32,
    growing: Mutex<()>,
    first_generation: u64,
}

impl SlotTable {
    /// Room for `capacity` operations; address space only.
    pub fn new(capacity: u32) -> Result<SlotTable, i32> {
        let capacity = capacity.clamp(1, MAX_SLOTS);
        let page = memory::page_size();
        let len = (capacity as usize * size_of::<Slot>()).next_multiple_of(page);
        Ok(SlotTable {
            memory: Reservation::new(len)?,
            capacity,
            committed: AtomicU32::new(0),
            growing: Mutex::new(()),
            first_generation: random() % (1 << 36) * 2 * GENERATION,
        })
    }

    /// Takes up to `count` slots that nobody had yet: a range, empty when there are no more.
    pub fn grow(&self, count: u32) -> std::ops::Range<u32> {
        let _guard = self.growing.lock().unwrap_or_else(|poison| poison.into_inner());
        let from = self.committed.load(Ordering::Relaxed);
        let to = from.saturating_add(count).min(self.capacity);
        let bytes = |slots: u32| (slots as usize * size_of::<Slot>()).next_multiple_of(memory::page_size());
        if from < to && self.memory.commit(bytes(from), bytes(to)).is_ok() {
            for index in from..to {
                // SAFETY: committed zeroed memory of this table, not yet known to anyone; a zeroed Slot is a free one.
                unsafe {
                    let slot = self.at(index);
                    (*slot).side = NONE;
                    (&raw mut (*slot).id).write(AtomicU64::new(self.first_generation | u64::from(index)));
                    (&raw mut (*slot).args.fd_word).write(AtomicI32::new(-1));
                }
            }
            self.committed.store(to, Ordering::Release);
            return from..to;
        }
        from..from
    }

    /// Slots that were ever taken.
    #[inline(always)]
    pub fn committed(&self) -> u32 {
        self.committed.load(Ordering::Acquire)
    }

    /// Slots never taken.
    pub fn left(&self) -> u32 {
        self.capacity - self.committed.load(Ordering::Relaxed)
    }

    /// The address of a committed slot.
    #[inline(always)]
    pub fn at(&self, index: u32) -> *mut Slot {
        // SAFETY: inside the reservation (callers pass committed indexes).
        unsafe { self.memory.base().cast::<Slot>().add(index as usize) }
    }

    /// The slot of a committed index, for looking at its atomic words from any thread.
    fn word(&self, index: u32) -> (&AtomicU64, &AtomicI32) {
        // SAFETY: committed memory that is never unmapped while the table lives; only atomics are referenced.
        unsafe { (&(*self.at(index)).id, &(*self.at(index)).args.fd_word) }
    }

    /// Whether an operation with this id is in flight. Any thread.
    pub fn is_in_flight(&self, id: u64) -> bool {
        is_live_id(id) && index_of(id) < self.committed() && self.word(index_of(id)).0.load(Ordering::Acquire) == id
    }

    /// The ids of the operations in flight (on a descriptor). Any thread; a snapshot.
    pub fn ids_in_flight(&self, fd: Option<i32>) -> Vec<u64> {
        (0..self.committed())
            .filter_map(|index| {
                let (id, on) = self.word(index);
                let before = id.load(Ordering::Acquire);
                let wanted = is_live_id(before) && fd.is_none_or(|fd| on.load(Ordering::Acquire) == fd);
                (wanted && id.load(Ordering::Acquire) == before).then_some(before)
            })
            .collect()
    }

    /// Makes a free slot the caller's: its id, in flight from now on.
    pub fn open(&self, index: u32) -> u64 {
        open(self.word(index).0)
    }

    /// [`SlotTable::open`] for another thread's submission on `fd`, which waits in the inbox.
    pub fn open_foreign(&self, index: u32, fd: i32) -> u64 {
        // SAFETY: the slot is free and this thread's alone until the submission is pushed; the inbox orders what follows.
        unsafe { (*self.at(index)).state = State::Inbox };
        self.word(index).1.store(fd, Ordering::Release);
        self.open(index)
    }

    /// Takes back what [`SlotTable::open_foreign`] opened.
    pub fn shut_foreign(&self, index: u32) -> bool {
        // SAFETY: as above: nothing was pushed.
        unsafe { (*self.at(index)).state = State::Free };
        self.word(index).1.store(-1, Ordering::Release);
        self.shut(index)
    }

    /// Ends an id. False: its generations are used up, and the slot must not be used again.
    #[inline(always)]
    pub fn shut(&self, index: u32) -> bool {
        shut(self.word(index).0)
    }
}

fn random() -> u64 {
    let mut value = 0u64;
    // SAFETY: eight writable bytes. A failure leaves 0, which is as good a start as any.
    unsafe { libc::getrandom((&raw mut value).cast(), 8, libc::GRND_NONBLOCK) };
    value
}

/// The owner's view: slots by index, and those that are free.
pub(crate) struct Slots {
    table: std::sync::Arc<SlotTable>,
    base: *mut Slot,
    /// Committed slots, as last seen.
    known: u32,
    free: u32,
    free_count: u32,
    fresh: std::ops::Range<u32>,
}

impl Slots {
    pub fn new(table: std::sync::Arc<SlotTable>) -> Slots {
        let base = table.at(0);
        Slots { table, base, known: 0, free: NONE, free_count: 0, fresh: 0..0 }
    }

    /// Makes sure that `count` slots can be taken.
    #[inline(always)]
    pub fn ensure(&mut self, count: u32) -> bool {
        self.free_count + (self.fresh.end - self.fresh.start) >= count || self.ensure_slowly(count)
    }

    #[cold]
    fn ensure_slowly(&mut self, count: u32) -> bool {
        while self.fresh.start < self.fresh.end {
            let index = self.fresh.start;
            self.fresh.start += 1;
            self.put_back(index);
        }
        while self.free_count < count {
            let more = self.table.grow((count - self.free_count).max(64));
            if more.is_empty() {
                return false;
            }
            self.fresh = more;
            if self.free_count + (self.fresh.end - self.fresh.start) >= count {
                return true;
            }
            for index in self.fresh.clone() {
                self.put_back(index);
            }
            self.fresh = 0..0;
        }
        true
    }

    /// A free slot. Only after [`Slots::ensure`].
    #[inline(always)]
    pub fn take(&mut self) -> u32 {
        if self.free != NONE {
            let index = self.free;
            self.free = self[index].next;
            self.free_count -= 1;
            return index;
        }
        let index = self.fresh.start;
        self.fresh.start += 1;
        index
    }

    /// Gives a free slot back to this list: the one most recently used is used next.
    #[inline(always)]
    pub fn put_back(&mut self, index: u32) {
        let free = self.free;
        self[index].next = free;
        self.free = index;
        self.free_count += 1;
    }

    /// Takes a free slot for another thread's use.
    pub fn donate(&mut self) -> Option<u32> {
        (self.free != NONE || self.fresh.start < self.fresh.end).then(|| self.take())
    }

    /// The slot of an operation in flight.
    #[inline(always)]
    pub fn find(&mut self, id: u64) -> Option<u32> {
        let index = index_of(id);
        if index >= self.known {
            self.known = self.table.committed();
            if index >= self.known {
                return None;
            }
        }
        (is_live_id(id) && self[index].id() == id).then_some(index)
    }

    /// The slot that has these bits as its id, also a free one, among those that were known when last looked for.
    #[inline(always)]
    pub fn named(&mut self, id: u64) -> Option<(&mut Slot, u32)> {
        let index = index_of(id);
        if index >= self.known {
            return None;
        }
        let slot = &mut self[index];
        (slot.id() == id).then_some((slot, index))
    }

    pub fn table(&self) -> &SlotTable {
        &self.table
    }
}

// SAFETY: `base` points into the table that `table` keeps.
unsafe impl Send for Slots {}

impl std::ops::Index<u32> for Slots {
    type Output = Slot;

    #[inline(always)]
    fn index(&self, index: u32) -> &Slot {
        debug_assert!(index < self.table.committed());
        // SAFETY: indexes come from this table's lists or were checked by `find`; only the owner thread has a Slots, and
        // other threads touch nothing but the atomic words of a slot that is not theirs.
        unsafe { &*self.base.add(index as usize) }
    }
}

impl std::ops::IndexMut<u32> for Slots {
    #[inline(always)]
    fn index_mut(&mut self, index: u32) -> &mut Slot {
        debug_assert!(index < self.table.committed());
        // SAFETY: as above; the borrow of self keeps a second reference away.
        unsafe { &mut *self.base.add(index as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn slots(capacity: u32) -> Slots {
        Slots::new(Arc::new(SlotTable::new(capacity).expect("address space")))
    }

    #[test]
    fn a_stale_id_never_names_the_next_operation() {
        let mut slots = slots(4);
        assert!(slots.ensure(1));
        let index = slots.take();
        let first = slots.table().open(index);
        assert_ne!(first, 0);
        assert_eq!(slots.find(first), Some(index));
        assert!(slots.table().shut(index));
        assert_eq!(slots.find(first), None);
        slots.put_back(index);
        assert_eq!(slots.take(), index, "the slot most recently used is used next");
        let second = slots.table().open(index);
        assert_ne!(first, second);
        assert_eq!((slots.find(first), slots.find(second)), (None, Some(index)));
        assert_eq!(slots.find(cancel_tag(second)), None, "a cancel tag is no id");
    }

    #[test]
    fn forged_ids_name_nothing() {
        let mut slots = slots(4);
        for id in [0, 1, u64::MAX, GENERATION, GENERATION | 3, u64::from(NONE_INDEX) | GENERATION] {
            assert_eq!(slots.find(id), None);
        }
    }

    #[test]
    fn the_capacity_is_the_limit() {
        let mut slots = slots(100);
        assert!(slots.ensure(100) && !slots.ensure(101));
        let taken: std::collections::BTreeSet<u32> = (0..100).map(|_| slots.take()).collect();
        assert_eq!(taken.len(), 100);
        assert!(!slots.ensure(1));
        slots.put_back(7);
        assert!(slots.ensure(1) && slots.take() == 7);
    }

    #[test]
    fn a_slot_with_no_generation_left_is_retired() {
        let slots = slots(1);
        assert_eq!(slots.table().grow(1), 0..1);
        slots.table().word(0).0.store(u64::MAX << INDEX_BITS & !GENERATION, Ordering::Relaxed);
        let last = slots.table().open(0);
        assert!(is_live_id(last));
        assert!(!slots.table().shut(0));
    }
}
