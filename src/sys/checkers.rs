//! The memory checkers a program may run under: AddressSanitizer, known by its functions in the process, and Valgrind's
//! memcheck, known by a client request. Neither sees what the kernel does later for an operation, so both are told.
//!
//! Under AddressSanitizer memory that is being read into is poisoned from the submit until the final event, as are the
//! buffers of a pool that are not lent: the program's own access to it is reported at the program's own line. Memory that an
//! operation is given and that is no longer (or never was) the program's is reported at the submit. Under memcheck what the
//! ring has written counts as initialized from the event on.
//!
//! Without a checker the price is a load per operation that moves data.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

const ASAN: u8 = 1;
const MEMCHECK: u8 = 2;

/// Which there are; 0 before the first loop.
static PRESENT: AtomicU8 = AtomicU8::new(0);

/// More than this of one buffer is not looked after: the marks of a wild length would fill the memory.
const MOST: usize = 64 << 20;

/// Looks for checkers, once: before the first loop.
pub(crate) fn detect() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let asan = if asan().is_some() { ASAN } else { 0 };
        if asan != 0 {
            // SAFETY: functions of the library, which is never unloaded.
            unsafe { libc::pthread_atfork(Some(lock), Some(unlock), Some(after_fork)) };
        }
        PRESENT.store(asan | if is_memcheck() { MEMCHECK } else { 0 }, Ordering::Relaxed);
    });
}

/// There is one.
#[inline(always)]
pub(crate) fn any() -> bool {
    PRESENT.load(Ordering::Relaxed) != 0
}

/// AddressSanitizer looks at the arguments of libc's functions, and would find memory taken that the library itself has taken.
#[inline(always)]
pub(crate) fn looks_at_calls() -> bool {
    PRESENT.load(Ordering::Relaxed) & ASAN != 0
}

/// Valgrind (3.19) lets no other thread run while one is in io_uring_enter.
#[inline(always)]
pub(crate) fn stops_at_waits() -> bool {
    PRESENT.load(Ordering::Relaxed) & MEMCHECK != 0
}

/// Memory that an operation may write to, or reads from.
#[derive(Clone, Copy)]
struct Part {
    at: usize,
    len: usize,
    poisoned: bool,
}

/// The memory of one operation, from its acceptance until its final event.
#[derive(Default)]
pub(crate) struct Watched {
    parts: Vec<Part>,
    /// What it writes besides data.
    results: Vec<(usize, usize)>,
}

impl Watched {
    /// Adds a part of the operation's data. `inward`: it is read into.
    pub fn add_data(&mut self, at: u64, len: u64, inward: bool) {
        let (at, len) = (at as usize, len as usize);
        let poisoned = asan().is_some_and(|asan| asan.take(at, len.min(MOST), inward));
        if inward {
            self.parts.push(Part { at, len, poisoned });
        }
    }

    /// Adds what the operation writes besides data.
    pub fn add_result(&mut self, at: u64, len: u64) {
        if at != 0 && PRESENT.load(Ordering::Relaxed) & MEMCHECK != 0 {
            self.results.push((at as usize, len as usize));
        }
    }

    /// The operation has ended: so many bytes of the data were written, and results if there are any.
    pub fn end(&mut self, moved: u64, has_results: bool) {
        let mut left = moved as usize;
        for part in self.parts.drain(..) {
            if part.poisoned
                && let Some(asan) = asan()
            {
                asan.let_go(part.at);
            }
            define(part.at, part.len.min(left));
            left -= part.len.min(left);
        }
        for (at, len) in self.results.drain(..) {
            define(at, if has_results { len } else { 0 });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.results.is_empty()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end(0, false);
    }
}

/// Memory of the library that the program must not touch now.
pub(crate) fn hide(at: *const u8, len: usize) {
    if let Some(asan) = asan() {
        asan.poison(at as usize, len);
    }
}

/// It may again; also for the library's own use, where the library itself is instrumented.
pub(crate) fn show(at: *const u8, len: usize) {
    if let Some(asan) = asan() {
        asan.unpoison(at as usize, len);
    }
}

// AddressSanitizer: its public interface (sanitizer/asan_interface.h), present in the process or not.

type Range = unsafe extern "C" fn(*const c_void, usize);

struct Asan {
    poison: Range,
    unpoison: Range,
    first_poisoned: unsafe extern "C" fn(*const c_void, usize) -> *const c_void,
    report_store: Range,
    report_load: Range,
}

fn asan() -> Option<&'static Asan> {
    static FOUND: OnceLock<Option<Asan>> = OnceLock::new();
    FOUND.get_or_init(find_asan).as_ref()
}

fn find_asan() -> Option<Asan> {
    let find = |name: &std::ffi::CStr| {
        // SAFETY: a NUL-terminated name.
        let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!at.is_null()).then_some(at)
    };
    // SAFETY: functions of these types by AddressSanitizer's public interface.
    unsafe {
        use std::mem::transmute;
        Some(Asan {
            poison: transmute::<*mut c_void, Range>(find(c"__asan_poison_memory_region")?),
            unpoison: transmute::<*mut c_void, Range>(find(c"__asan_unpoison_memory_region")?),
            first_poisoned: transmute::<*mut c_void, unsafe extern "C" fn(*const c_void, usize) -> *const c_void>(
                find(c"__asan_region_is_poisoned")?,
            ),
            report_store: transmute::<*mut c_void, Range>(find(c"__asan_report_store_n_noabort")?),
            report_load: transmute::<*mut c_void, Range>(find(c"__asan_report_load_n_noabort")?),
        })
    }
}

impl Asan {
    fn poison(&self, at: usize, len: usize) {
        // SAFETY: marks only; no memory of the range is touched.
        unsafe { (self.poison)(at as *const c_void, len) };
    }

    fn unpoison(&self, at: usize, len: usize) {
        // SAFETY: as above.
        unsafe { (self.unpoison)(at as *const c_void, len) };
    }

    /// An operation is given this memory. True: it is poisoned now, and was not before.
    fn take(&self, at: usize, len: usize, inward: bool) -> bool {
        // SAFETY: looks at marks only.
        let bad = unsafe { (self.first_poisoned)(at as *const c_void, len) } as usize;
        if bad == 0 {
            if inward {
                self.poison(at, len);
                with_taken(|taken| taken.insert(at, len));
            }
            return inward;
        }
        // Two operations may have the same memory; what is not mapped the kernel refuses.
        let holds = |(&from, &len): (&usize, &usize)| bad - from < len;
        let is_taken = with_taken(|taken| taken.range(..=bad).rev().any(holds));
        if !is_taken && is_mapped(at) && is_mapped(bad) {
            let report = if inward { self.report_store } else { self.report_load };
            // SAFETY: prints a report about the range, and ends the process unless it is told not to.
            unsafe { report(bad as *const c_void, at.wrapping_add(len).wrapping_sub(bad)) };
        }
        false
    }

    /// What [`Asan::take`] poisoned.
    fn let_go(&self, at: usize) {
        if let Some(len) = with_taken(|taken| taken.remove(&at)) {
            self.unpoison(at, len);
        }
    }
}

// What is poisoned for operations, so that a forked child can have it back: there nothing reads into it.

/// Held while TAKEN is used, and across fork(2): a child finds it whole.
static BUSY: AtomicBool = AtomicBool::new(false);
static TAKEN: Taken = Taken(UnsafeCell::new(BTreeMap::new()));

struct Taken(UnsafeCell<BTreeMap<usize, usize>>);

// SAFETY: used by `with_taken` and `after_fork` alone, while BUSY is held.
unsafe impl Sync for Taken {}

fn with_taken<T>(use_it: impl FnOnce(&mut BTreeMap<usize, usize>) -> T) -> T {
    lock();
    // SAFETY: BUSY is held.
    let result = use_it(unsafe { &mut *TAKEN.0.get() });
    unlock();
    result
}

extern "C" fn lock() {
    while BUSY.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
}

extern "C" fn unlock() {
    BUSY.store(false, Ordering::Release);
}

extern "C" fn after_fork() {
    // SAFETY: BUSY is held since before the fork, by this thread.
    let taken = unsafe { &mut *TAKEN.0.get() };
    if let Some(asan) = asan() {
        taken.iter().for_each(|(&at, &len)| asan.unpoison(at, len));
    }
    taken.clear();
    unlock();
}

fn is_mapped(at: usize) -> bool {
    let page = super::memory::page_size();
    let mut resident = 0u8;
    // SAFETY: one byte of room for one page.
    unsafe { libc::mincore((at & !(page - 1)) as *mut c_void, 1, &mut resident) == 0 }
}

// Valgrind: client requests are instructions that do nothing elsewhere (valgrind.h, memcheck.h).

/// RUNNING_ON_VALGRIND.
const RUNNING: usize = 0x1001;
/// VALGRIND_CHECK_MEM_IS_ADDRESSABLE and VALGRIND_MAKE_MEM_DEFINED, of the tool "MC".
const MAKE_DEFINED: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16 | 2;

fn is_memcheck() -> bool {
    // Other tools answer 0 to a request of memcheck's, and memcheck -1.
    request(RUNNING, 0, 0) > 0 && request(MAKE_DEFINED, 0, 0) != 0
}

/// The kernel has written this.
fn define(at: usize, len: usize) {
    if len > 0 && PRESENT.load(Ordering::Relaxed) & MEMCHECK != 0 {
        request(MAKE_DEFINED, at, len);
    }
}

#[inline(never)]
fn request(code: usize, first: usize, second: usize) -> usize {
    let block = [code, first, second, 0, 0, 0];
    #[allow(unused_mut, unused_assignments, reason = "other processors have no requests")]
    let mut result = 0usize;
    // SAFETY: rotations that add up to nothing, and an exchange of a register with itself.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") block.as_ptr(), inout("rdx") result, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("ror x12, x12, #3", "ror x12, x12, #13", "ror x12, x12, #51", "ror x12, x12, #61",
            "orr x10, x10, x10", in("x4") block.as_ptr(), inout("x3") result, options(nostack));
    }
    std::hint::black_box(&block);
    result
}
