//! The library's memory: malloc(3), and behind it a reserve for what is already promised.
//!
//! What happens to an operation after it was accepted must not fail for want of memory, and Rust's collections cannot: they
//! end the process. So where malloc(3) has none, this allocator takes from a reserve of address space that is made before
//! anything is promised and that no page is used of otherwise. The calls that promise something (submit, post, a new loop …)
//! ask [`ready`] first: the reserve is ample, or another block is made, or the call is refused with -ENOMEM.
//!
//! A block of the reserve only ever counts up; when the last piece of it has come back it is whole again. There are no locks:
//! a forked child finds nothing held. If the reserve is used up and there is still no memory, the thread waits for some.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The length of a block; the second where the first cannot be had (RLIMIT_AS). What all callbacks of a turn can make the
/// library allocate is less than a tenth of the first.
const LENGTHS: [usize; 2] = [16 << 20, 1 << 20];
/// Blocks there can be: each but one of them holds something that was taken while malloc(3) had nothing.
const BLOCKS: usize = 64;
/// In `Block::word`: one piece that is out. Below: bytes that were given out.
const PIECE: u64 = 1 << 40;

struct Block {
    /// NULL: none; CLAIMED: being made.
    base: AtomicPtr<u8>,
    len: AtomicUsize,
    word: AtomicU64,
}

const CLAIMED: *mut u8 = std::ptr::without_provenance_mut(1);

static RESERVE: [Block; BLOCKS] =
    [const { Block { base: AtomicPtr::new(null_mut()), len: AtomicUsize::new(0), word: AtomicU64::new(0) } }; BLOCKS];
/// At least half of some block is left.
static AMPLE: AtomicBool = AtomicBool::new(false);
/// Something was ever taken from the reserve.
static TOUCHED: AtomicBool = AtomicBool::new(false);

/// Whether what is about to be promised can be kept. -ENOMEM: no.
#[inline(always)]
pub(crate) fn ready() -> Result<(), i32> {
    if AMPLE.load(Ordering::Relaxed) { Ok(()) } else { refill() }
}

/// As [`ready`], for a call that is going to need a piece of `len` bytes at once.
pub(crate) fn ready_for(len: usize) -> Result<(), i32> {
    if len > 1 << 16 {
        // SAFETY: a piece of memory that nobody uses.
        unsafe {
            let piece = libc::malloc(len);
            if piece.is_null() {
                return Err(libc::ENOMEM);
            }
            libc::free(piece);
        }
    }
    ready()
}

#[cold]
fn refill() -> Result<(), i32> {
    if RESERVE.iter().any(Block::is_ample) || RESERVE.iter().any(Block::make) {
        AMPLE.store(true, Ordering::Relaxed);
        return Ok(());
    }
    Err(libc::ENOMEM)
}

impl Block {
    /// Makes a block where there is none yet.
    fn make(&self) -> bool {
        if self.base.compare_exchange(null_mut(), CLAIMED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        for len in LENGTHS {
            // SAFETY: a new private mapping.
            let base = unsafe { libc::mmap(null_mut(), len, protection, flags, -1, 0) };
            if base != libc::MAP_FAILED {
                self.len.store(len, Ordering::Relaxed);
                self.base.store(base.cast(), Ordering::Release);
                return true;
            }
        }
        self.base.store(null_mut(), Ordering::Relaxed);
        false
    }

    fn is_ample(&self) -> bool {
        let used = self.word.load(Ordering::Relaxed) % PIECE;
        self.base.load(Ordering::Acquire) > CLAIMED && used <= self.len.load(Ordering::Relaxed) as u64 / 2
    }

    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let base = self.base.load(Ordering::Acquire);
        if base <= CLAIMED {
            return None;
        }
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            // Mappings are aligned to pages, which is more than anybody asks for.
            let from = (word % PIECE).next_multiple_of(layout.align() as u64);
            let to =
                from.checked_add(layout.size() as u64).filter(|&to| to <= self.len.load(Ordering::Relaxed) as u64)?;
            let taken = word / PIECE * PIECE + PIECE + to;
            match self.word.compare_exchange_weak(word, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(base.wrapping_add(from as usize)),
                Err(now) => word = now,
            }
        }
    }

    fn has(&self, at: *mut u8) -> bool {
        let base = self.base.load(Ordering::Acquire);
        base > CLAIMED && (base..base.wrapping_add(self.len.load(Ordering::Relaxed))).contains(&at)
    }

    fn give_back(&self) {
        let one_less = |word: u64| Some(if word < 2 * PIECE { 0 } else { word - PIECE });
        let _ = self.word.fetch_update(Ordering::Release, Ordering::Relaxed, one_less);
    }
}

/// A piece for someone who cannot be refused.
#[cold]
fn take(layout: Layout) -> *mut u8 {
    TOUCHED.store(true, Ordering::Relaxed);
    AMPLE.store(false, Ordering::Relaxed);
    loop {
        if let Some(at) = RESERVE.iter().find_map(|block| block.take(layout)) {
            return at;
        }
        if refill().is_err() {
            super::thread::pause(1_000_000);
        }
        // SAFETY: `layout` is the caller's, not of size 0.
        let at = unsafe { System.alloc(layout) };
        if !at.is_null() {
            return at;
        }
    }
}

fn block_of(at: *mut u8) -> Option<&'static Block> {
    if TOUCHED.load(Ordering::Relaxed) { RESERVE.iter().find(|block| block.has(at)) } else { None }
}

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: what `System` gives out is `System`'s to take back. A piece of a block is given out once: `word` counts up until no
// piece is out. Which of the two a piece is from is told by its address.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        let at = unsafe { System.alloc(layout) };
        if at.is_null() { take(layout) } else { at }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        let at = unsafe { System.alloc_zeroed(layout) };
        if !at.is_null() {
            return at;
        }
        let at = take(layout);
        // SAFETY: a new piece of this size.
        unsafe { at.write_bytes(0, layout.size()) };
        at
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match block_of(at) {
            Some(block) => block.give_back(),
            // SAFETY: the caller's piece, of `System`.
            None => unsafe { System.dealloc(at, layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if block_of(at).is_none() {
            // SAFETY: the caller's piece, of `System`; the old one stays as it is when this fails.
            let moved = unsafe { System.realloc(at, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: `size` is the caller's, valid for this alignment; both pieces are at least as long as what is copied.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            moved.copy_from_nonoverlapping(at, size.min(layout.size()));
            self.dealloc(at, layout);
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_counts_up_and_is_whole_again_when_all_of_it_came_back() {
        let block = Block { base: AtomicPtr::new(null_mut()), len: AtomicUsize::new(0), word: AtomicU64::new(0) };
        let layout = |size, align| Layout::from_size_align(size, align).expect("a layout");
        assert!(block.take(layout(1, 1)).is_none());
        assert!(block.make() && !block.make());
        let first = block.take(layout(3, 1)).expect("room");
        let second = block.take(layout(64, 64)).expect("room");
        assert_eq!((second as usize) % 64, 0);
        assert!(second as usize >= first as usize + 3 && block.has(first) && block.has(second));
        assert!(block.take(layout(16 << 20, 1)).is_none());
        block.give_back();
        assert_ne!(block.word.load(Ordering::Relaxed), 0);
        block.give_back();
        assert_eq!(block.word.load(Ordering::Relaxed), 0);
        assert_eq!(block.take(layout(1, 1)), Some(first));
        // SAFETY: the block's own mapping, which nobody uses any more.
        unsafe { libc::munmap(block.base.load(Ordering::Relaxed).cast(), block.len.load(Ordering::Relaxed)) };
    }
}
