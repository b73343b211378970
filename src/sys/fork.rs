//! Knowing a forked child: one page of the process that the kernel wipes in a child (MADV_WIPEONFORK, Linux 4.14), so that
//! the check is one load. getpid(2) per call would cost 100 ns.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names this process to its loops: never 0, and never the same in a child.
pub(crate) fn epoch() -> u64 {
    let page = page();
    match page.load(Ordering::Relaxed) {
        0 => {
            // The counter is ordinary memory that a child inherits, so a child's number is new.
            static LAST: AtomicU64 = AtomicU64::new(0);
            let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            match page.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => fresh,
                Err(theirs) => theirs,
            }
        }
        epoch => epoch,
    }
}

/// Where there is no such page, a handler wipes this instead; it is not called in a child that was made without fork(3).
static FALLBACK: AtomicU64 = AtomicU64::new(0);

extern "C" fn wipe() {
    FALLBACK.store(0, Ordering::Relaxed);
}

/// The word that holds [`epoch`], or 0 in a forked child.
pub(crate) fn page() -> &'static AtomicU64 {
    static PAGE: OnceLock<usize> = OnceLock::new();
    let at = *PAGE.get_or_init(|| {
        // SAFETY: an anonymous private page, never unmapped once it is used.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if at != libc::MAP_FAILED {
                // Miri knows neither the advice nor a fork.
                if cfg!(miri) || libc::madvise(at, 4096, libc::MADV_WIPEONFORK) == 0 {
                    return at as usize;
                }
                libc::munmap(at, 4096);
            }
            libc::pthread_atfork(None, None, Some(wipe));
            &raw const FALLBACK as usize
        }
    });
    // SAFETY: the page or the static lives for the whole process and holds a u64 at its start.
    unsafe { &*(at as *const AtomicU64) }
}
