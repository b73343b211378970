//! The two queues that a ring shares with the kernel, seen through a mapping of our own. The `io-uring` crate makes the
//! ring; it keeps its pointers to itself, and on the hottest path an entry is better written in place than copied (a copy of
//! a half-built entry stalls on store forwarding: 20 ns each way), and one not handed over can be taken back.

use crate::sys;
use io_uring::{IoUring, Parameters, cqueue, squeue};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// struct io_uring_params, of which the crate's Parameters is a transparent wrapper.
#[repr(C)]
struct Layout {
    sq_entries: u32,
    cq_entries: u32,
    words: [u32; 8],
    sq: [u32; 10],
    cq: [u32; 10],
}
const _: () = assert!(size_of::<Layout>() == 120 && size_of::<Parameters>() == 120);
const _: () = assert!(size_of::<squeue::Entry>() == 64 && size_of::<cqueue::Entry>() == 16);

/// Places in `sq`: head, tail, ring_mask, ring_entries, flags.
const SQ_HEAD: usize = 0;
const SQ_TAIL: usize = 1;
const SQ_FLAGS: usize = 4;
/// Places in `cq`: head, tail, ring_mask, ring_entries, overflow, cqes, flags.
const CQ_HEAD: usize = 0;
const CQ_TAIL: usize = 1;
const CQ_CQES: usize = 5;
const CQ_FLAGS: usize = 6;

/// IORING_CQ_EVENTFD_DISABLED.
const EVENTFD_DISABLED: u32 = 1;
/// IORING_SQ_CQ_OVERFLOW and IORING_SQ_TASKRUN.
pub(super) const OVERFLOW: u32 = 1 << 1;
pub(super) const TASKRUN: u32 = 1 << 2;

struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(ring: i32, len: usize, offset: i64) -> Result<Mapping, i32> {
        // SAFETY: a new shared mapping of the ring's memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                ring,
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(sys::errno());
        }
        // SAFETY: the mapping just made. A forked child must not see it.
        unsafe { libc::madvise(at, len, libc::MADV_DONTFORK) };
        Ok(Mapping { at: at.cast(), len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping, which nobody uses any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// See the module. Owner thread only.
pub(super) struct Queues {
    _ring: Mapping,
    _entries: Mapping,
    sq_head: *const AtomicU32,
    sq_tail: *const AtomicU32,
    sq_flags: *const AtomicU32,
    cq_head: *const AtomicU32,
    cq_tail: *const AtomicU32,
    cq_flags: *const AtomicU32,
    sqes: *mut squeue::Entry,
    cqes: *const cqueue::Entry,
    sq_entries: u32,
    cq_entries: u32,
    /// Entries queued and entries handed over, ever.
    pub queued: u32,
    pub handed: u32,
    /// Completions taken, ever, and what the kernel had posted when last looked.
    taken: u32,
    posted: u32,
}

// SAFETY: pointers into this value's own mappings; it moves to another thread only with its driver, while nobody uses it.
unsafe impl Send for Queues {}

impl Queues {
    pub fn new(ring: &IoUring) -> Result<Queues, i32> {
        let fd = ring.as_raw_fd();
        // SAFETY: Parameters is a transparent wrapper of struct io_uring_params, whose layout is kernel ABI.
        let layout = unsafe { &*std::ptr::from_ref(ring.params()).cast::<Layout>() };
        let array = layout.sq[6] as usize + layout.sq_entries as usize * size_of::<u32>();
        let cqes = layout.cq[CQ_CQES] as usize + layout.cq_entries as usize * size_of::<cqueue::Entry>();
        let shared = Mapping::new(fd, array.max(cqes), 0)?;
        let entries =
            Mapping::new(fd, layout.sq_entries as usize * size_of::<squeue::Entry>(), sys::ring::OFFSET_SQES)?;
        let at = |offset: u32| shared.at.wrapping_add(offset as usize);
        Ok(Queues {
            sq_head: at(layout.sq[SQ_HEAD]).cast(),
            sq_tail: at(layout.sq[SQ_TAIL]).cast(),
            sq_flags: at(layout.sq[SQ_FLAGS]).cast(),
            cq_head: at(layout.cq[CQ_HEAD]).cast(),
            cq_tail: at(layout.cq[CQ_TAIL]).cast(),
            cq_flags: at(layout.cq[CQ_FLAGS]).cast(),
            cqes: at(layout.cq[CQ_CQES]).cast(),
            sqes: entries.at.cast(),
            sq_entries: layout.sq_entries,
            cq_entries: layout.cq_entries,
            _ring: shared,
            _entries: entries,
            queued: 0,
            handed: 0,
            taken: 0,
            posted: 0,
        })
    }

    #[inline(always)]
    fn word(&self, word: *const AtomicU32) -> &AtomicU32 {
        // SAFETY: inside this value's mapping.
        unsafe { &*word }
    }

    /// Whether completions write the registered eventfd (Linux 5.8).
    pub fn use_event(&self, wanted: bool) {
        self.word(self.cq_flags).store(if wanted { 0 } else { EVENTFD_DISABLED }, Ordering::Release);
    }

    /// Entries not handed over yet.
    #[inline(always)]
    pub fn unhanded(&self) -> u32 {
        self.queued.wrapping_sub(self.handed)
    }

    /// There is room for another entry.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        // The kernel takes entries only while it is entered, so what was handed over is free again.
        self.unhanded() < self.sq_entries
    }

    /// The next entry to fill; it is queued by [`Queues::queue`]. Only with room.
    #[inline(always)]
    pub fn blank(&mut self) -> &mut MaybeUninit<squeue::Entry> {
        // SAFETY: masked into the mapping; the kernel does not look at it before the tail has moved past it.
        unsafe { &mut *self.sqes.add((self.queued & (self.sq_entries - 1)) as usize).cast() }
    }

    /// Names the entry just filled and queues it; returns its position.
    #[inline(always)]
    pub fn queue(&mut self, user_data: u64) -> u32 {
        let position = self.queued;
        // SAFETY: the entry is filled; user_data is at byte 32 of struct io_uring_sqe.
        unsafe {
            self.sqes.add((position & (self.sq_entries - 1)) as usize).cast::<u64>().add(4).write(user_data);
        }
        self.queued = position.wrapping_add(1);
        position
    }

    /// Replaces an entry that was not handed over.
    pub fn replace(&mut self, position: u32, entry: squeue::Entry) {
        debug_assert!(position.wrapping_sub(self.handed) < self.unhanded());
        // SAFETY: masked into the mapping; the kernel reads entries only while it is entered, by this thread.
        unsafe { self.sqes.add((position & (self.sq_entries - 1)) as usize).write(entry) };
    }

    /// Shows the kernel what is queued and what was taken, before it is entered.
    #[inline(always)]
    pub fn publish(&mut self) {
        self.word(self.sq_tail).store(self.queued, Ordering::Release);
        self.word(self.cq_head).store(self.taken, Ordering::Release);
    }

    /// The kernel was entered: what it took of the queue.
    #[inline(always)]
    pub fn note_handed(&mut self) {
        self.handed = self.word(self.sq_head).load(Ordering::Acquire);
    }

    /// OVERFLOW, TASKRUN: the kernel holds completions back.
    #[inline(always)]
    pub fn held_back(&self) -> u32 {
        self.word(self.sq_flags).load(Ordering::Relaxed) & (OVERFLOW | TASKRUN)
    }

    /// Looks at what the kernel has posted, not too much at a time, so that what the ring does not do has its turn. False:
    /// nothing to take.
    #[inline(always)]
    pub fn look(&mut self) -> bool {
        let waiting = self.word(self.cq_tail).load(Ordering::Acquire).wrapping_sub(self.taken);
        self.posted = self.taken.wrapping_add(waiting.min(64));
        waiting != 0
    }

    /// What was seen is to be looked at again, after something else.
    pub fn hide(&mut self) {
        self.posted = self.taken;
    }

    /// The next completion that was seen; it stays.
    #[inline(always)]
    pub fn peek(&mut self) -> Option<Completion> {
        if self.taken == self.posted {
            return None;
        }
        // SAFETY: masked into the mapping, and posted by the kernel; struct io_uring_cqe is a u64, an i32 and a u32.
        Some(unsafe { self.cqes.add((self.taken & (self.cq_entries - 1)) as usize).cast::<Completion>().read() })
    }

    /// All that was seen is taken.
    #[inline(always)]
    pub fn is_seen(&self) -> bool {
        self.taken == self.posted
    }

    /// Takes the one just looked at.
    #[inline(always)]
    pub fn skip(&mut self) {
        self.taken = self.taken.wrapping_add(1);
    }

    /// The next completion that was seen.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<Completion> {
        let completion = self.peek()?;
        self.skip();
        Some(completion)
    }

    /// Completions wait to be taken.
    #[inline(always)]
    pub fn has_completions(&self) -> bool {
        self.taken != self.posted || self.word(self.cq_tail).load(Ordering::Acquire) != self.taken
    }

    /// The kernel can post no more before some are taken.
    pub fn is_full(&self) -> bool {
        self.word(self.cq_tail).load(Ordering::Acquire).wrapping_sub(self.taken) >= self.cq_entries
    }
}

/// struct io_uring_cqe.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}
