//! Buffer pools: memory that operations borrow from when data is there.
//!
//! Each buffer has one atomic word that says who has it: the pool, or the operation it was lent to. Returning flips it with
//! one compare-and-swap, so a double or foreign return is an error and nothing else, from any thread. What was returned is
//! taken in by the owner at its next turn.
//!
//! Where the kernel can pick buffers itself it is given all of them; operations it cannot do that way then borrow from a
//! second, equal set of memory that stays untouched otherwise.

use super::shared::{Message, Shared};
use crate::op::Refusal;
use crate::sys::checkers;
use crate::sys::memory::Reservation;
use crate::sys::sync::{AtomicBool, AtomicU64, SegQueue};
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The pool has it.
const HOME: u64 = 0;
/// The program gave it back, and the owner has not taken it in. (No id is this: the index it would hold is out of range.)
const RETURNED: u64 = u64::MAX;
/// In `use_word`: one operation.
const USER: u64 = 1 << 32;
/// In `use_word`: freed.
const RETIRED: u64 = u64::MAX;

/// See the module.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    memory: Reservation,
    len: usize,
    pub size: u32,
    pub count: u32,
    stride: usize,
    /// Per buffer: HOME, RETURNED, or the id of the operation it is lent to.
    holders: Box<[AtomicU64]>,
    /// Operations that use it and buffers that are lent, 32 bits each; RETIRED: freed by the program.
    use_word: AtomicU64,
    returned: SegQueue<(u32, u64)>,
    /// A message to the owner is under way.
    announced: AtomicBool,
    inner: UnsafeCell<Inner>,
}

/// The owner thread's part.
#[derive(Default)]
pub(crate) struct Inner {
    /// Free for attempts, the one most recently used last.
    pub free: Vec<u32>,
    /// The kernel's group, once registered.
    pub group: Option<u16>,
    /// Asked before: the kernel cannot have this pool.
    pub refused: bool,
    /// Operations that wait for a buffer, oldest first.
    pub waiting: VecDeque<u64>,
    /// The engine looks at this pool each turn.
    pub watched: bool,
}

// SAFETY: `inner` is touched by the loop's owner thread only (and by the last holder when it is dropped); everything else
// is atomic or constant.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        checkers::show(self.memory.base(), self.len);
    }
}

impl Pool {
    /// Reserves the memory; pages are used as they are touched.
    pub fn new(shared: &Arc<Shared>, count: u32, size: u32) -> Result<Arc<Pool>, Refusal> {
        let refuse = |error, text: String| Err(Refusal { error, text: text.into() });
        if !(1..=32768).contains(&count) {
            return refuse(libc::EINVAL, format!("count is {count}, not 1 to 32768"));
        }
        if !(1..=1 << 30).contains(&size) {
            return refuse(libc::EINVAL, format!("size is {size}, not 1 to 1 GiB"));
        }
        let stride = (size as usize).next_multiple_of(64);
        let len = (stride * count as usize * 2).next_multiple_of(crate::sys::memory::page_size());
        let memory = Reservation::new(len).and_then(|memory| memory.commit(0, len).map(|()| memory));
        let memory = match memory {
            Ok(memory) => memory,
            Err(error) => return refuse(error, format!("no memory for {count} buffers of {size} bytes")),
        };
        checkers::hide(memory.base(), len);
        Ok(Arc::new(Pool {
            shared: shared.clone(),
            memory,
            len,
            size,
            count,
            stride,
            holders: (0..count * 2).map(|_| AtomicU64::new(HOME)).collect(),
            use_word: AtomicU64::new(0),
            returned: SegQueue::new(),
            announced: AtomicBool::new(false),
            inner: UnsafeCell::new(Inner { free: (0..count).rev().collect(), ..Inner::default() }),
        }))
    }

    /// The owner's part. Owner thread only, and no two at a time.
    #[allow(clippy::mut_from_ref, reason = "the owner thread's rule stands for the borrow")]
    pub fn inner(&self) -> &mut Inner {
        // SAFETY: only the engine, on the owner thread, calls this, and keeps no reference across calls.
        unsafe { &mut *self.inner.get() }
    }

    /// Whether the pool was made for this loop.
    pub fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// An operation will borrow from it. False: the pool was freed.
    pub fn enter(&self) -> bool {
        let add = |word: u64| (word != RETIRED).then(|| word + USER);
        self.use_word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).is_ok()
    }

    /// That operation has ended.
    pub fn leave(&self) {
        self.use_word.fetch_sub(USER, Ordering::SeqCst);
    }

    /// Nobody uses it, and from now on nobody can.
    pub fn retire(&self) -> bool {
        self.use_word.compare_exchange(0, RETIRED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The address of a buffer.
    pub fn address(&self, number: u32) -> *mut u8 {
        self.memory.base().wrapping_add(number as usize * self.stride)
    }

    /// Lends a buffer to an operation.
    pub fn lend(&self, number: u32, id: u64) -> *mut u8 {
        self.holders[number as usize].store(id, Ordering::Release);
        self.use_word.fetch_add(1, Ordering::SeqCst);
        self.show(number)
    }

    /// A buffer's memory, for use: memory checkers report that of others.
    pub fn show(&self, number: u32) -> *mut u8 {
        let at = self.address(number);
        if checkers::any() {
            checkers::show(at, self.size as usize);
        }
        at
    }

    /// Takes a lent buffer back from the program. False: it is not one. Any thread.
    pub fn give_back(self: &Arc<Self>, address: usize) -> bool {
        let offset = address.wrapping_sub(self.memory.base() as usize);
        let number = offset / self.stride;
        if !offset.is_multiple_of(self.stride) || number >= self.holders.len() {
            return false;
        }
        let holder = self.holders[number].load(Ordering::Relaxed);
        if matches!(holder, HOME | RETURNED)
            || self.holders[number].compare_exchange(holder, RETURNED, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        if checkers::any() {
            checkers::hide(self.address(number as u32), self.size as usize);
        }
        self.returned.push((number as u32, holder));
        self.use_word.fetch_sub(1, Ordering::SeqCst);
        // The owner looks at its pools each turn; a loop that sleeps is told once.
        if !self.announced.swap(true, Ordering::SeqCst) {
            self.shared.tell(Message::Returned);
        }
        true
    }

    /// The loop was freed: nobody is to be told any more.
    pub fn orphan(&self) {
        self.announced.store(true, Ordering::SeqCst);
    }

    /// The process is a forked child of the one that made it.
    pub fn is_forked(&self) -> bool {
        self.shared.is_forked()
    }

    /// The owner has seen the announcement.
    pub fn hear(&self) {
        // A swap, which sees what those who found it true have pushed.
        self.announced.swap(false, Ordering::SeqCst);
    }

    /// Buffers have come back that the owner has not taken in.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Freed by the program.
    pub fn is_retired(&self) -> bool {
        self.use_word.load(Ordering::SeqCst) == RETIRED
    }

    /// Buffers that an operation waiting for one could have.
    pub fn available(&self) -> usize {
        let inner = self.inner();
        let kernels = if inner.group.is_some() { self.count.saturating_sub(self.lent()) as usize } else { 0 };
        inner.free.len().min(self.count.saturating_sub(self.lent()) as usize).max(kernels)
    }

    /// The next returned buffer, and the operation that had it.
    pub fn take_returned(&self) -> Option<(u32, u64)> {
        let (number, holder) = self.returned.pop()?;
        self.holders[number as usize].store(HOME, Ordering::Release);
        Some((number, holder))
    }

    /// How many buffers the program holds.
    pub fn lent(&self) -> u32 {
        (self.use_word.load(Ordering::Relaxed) & (USER - 1)) as u32
    }

    /// The pool has this buffer. One whose return was not taken in yet is not home: it will be, once.
    pub fn is_home(&self, number: u32) -> bool {
        self.holders[number as usize].load(Ordering::Acquire) == HOME
    }

    /// The kernel's set of buffers goes to the kernel, the second set to attempts.
    pub fn split(&self, group: u16) {
        let inner = self.inner();
        inner.group = Some(group);
        inner.free = (self.count..self.count * 2).rev().collect();
    }

    /// Whether a buffer belongs to the kernel's set.
    pub fn is_kernels(&self, number: u32) -> bool {
        self.inner().group.is_some() && number < self.count
    }
}
