//! Address space: reserved first, made usable piece by piece, never moved.

/// A reserved range of addresses.
pub(crate) struct Reservation {
    base: *mut u8,
    len: usize,
}

// SAFETY: a range of addresses; who may touch what in it is its users' rule.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

/// Under Miri, which knows no protection of memory: zeroed memory of the allocator.
#[cfg(miri)]
impl Reservation {
    fn layout(len: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(len.max(1), page_size()).expect("a size")
    }

    pub fn new(len: usize) -> Result<Reservation, i32> {
        // SAFETY: not of size 0.
        Ok(Reservation { base: unsafe { std::alloc::alloc_zeroed(Self::layout(len)) }, len })
    }

    pub fn for_transfers(len: usize) -> Result<Reservation, i32> {
        Self::new(len)
    }

    pub fn commit(&self, from: usize, to: usize) -> Result<(), i32> {
        assert!(from <= to && to <= self.len);
        Ok(())
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }
}

#[cfg(not(miri))]
impl Reservation {
    /// Reserves `len` bytes without using memory.
    pub fn new(len: usize) -> Result<Reservation, i32> {
        // SAFETY: a new private mapping.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED { Err(super::errno()) } else { Ok(Reservation { base: base.cast(), len }) }
    }

    /// Zeroed memory for transfers that does not exist in a forked child: while the kernel writes to a page directly, a
    /// child's share in it could send the data to the wrong copy. Huge pages make it cheaper to fill, where there are any.
    pub fn for_transfers(len: usize) -> Result<Reservation, i32> {
        // SAFETY: a new private mapping, and advice about it.
        unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if base == libc::MAP_FAILED {
                return Err(super::errno());
            }
            libc::madvise(base, len, libc::MADV_DONTFORK);
            libc::madvise(base, len, libc::MADV_HUGEPAGE);
            Ok(Reservation { base: base.cast(), len })
        }
    }

    /// Makes `[from, to)` readable and writable, zeroed.
    pub fn commit(&self, from: usize, to: usize) -> Result<(), i32> {
        assert!(from <= to && to <= self.len);
        // SAFETY: inside this mapping.
        match unsafe { libc::mprotect(self.base.add(from).cast(), to - from, libc::PROT_READ | libc::PROT_WRITE) } {
            0 => Ok(()),
            _ => Err(super::errno()),
        }
    }

    #[inline(always)]
    pub fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        #[cfg(miri)]
        // SAFETY: allocated by `new` with this layout.
        unsafe {
            std::alloc::dealloc(self.base, Self::layout(self.len))
        };
        #[cfg(not(miri))]
        // SAFETY: this mapping, which nobody uses any more.
        unsafe {
            libc::munmap(self.base.cast(), self.len)
        };
    }
}

/// The page size.
pub(crate) fn page_size() -> usize {
    // SAFETY: no pointers.
    (unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).max(4096) as usize
}
