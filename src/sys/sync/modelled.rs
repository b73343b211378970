//! What the models run on. Locks, words and threads are loom's; the queue and the few system calls that protocols rest on
//! are made of them.

use loom::sync::atomic::fence;
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use loom::thread::yield_now;
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool as Flag;
use std::time::Duration;

pub(crate) use loom::cell::UnsafeCell as Racing;

/// Words of a thread's stack: loom's own are small.
const STACK: usize = 1 << 15;

/// A thread that can tell whether it has ended.
pub(crate) struct Thread {
    inner: loom::thread::JoinHandle<()>,
    ended: std::sync::Arc<Flag>,
}

impl Thread {
    pub fn has_ended(&mut self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub fn join(self) {
        self.inner.join().expect("no panic");
    }
}

/// Starts a thread.
pub(crate) fn spawn(_: &'static std::ffi::CStr, run: impl FnOnce() + Send + 'static) -> Result<Thread, i32> {
    let ended = std::sync::Arc::new(Flag::new(false));
    let says = ended.clone();
    let run = move || {
        run();
        says.store(true, Ordering::Relaxed);
    };
    let inner = loom::thread::Builder::new().stack_size(STACK).spawn(run).map_err(|_| libc::EAGAIN)?;
    Ok(Thread { inner, ended })
}

/// crossbeam's queue as its documentation and its code have it, no stronger: a push is a release that ends in a sequentially
/// consistent addition to the tail, a look compares head and tail, a pop begins with such a look. (loom takes a sequentially
/// consistent access for an acquire or a release; what holds here does not need more.)
pub(crate) struct SegQueue<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    items: Mutex<VecDeque<T>>,
}

impl<T> SegQueue<T> {
    pub fn new() -> SegQueue<T> {
        SegQueue { head: AtomicUsize::new(0), tail: AtomicUsize::new(0), items: Mutex::new(VecDeque::new()) }
    }

    fn items(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.items.lock().expect("not poisoned")
    }

    pub fn push(&self, item: T) {
        let mut items = self.items();
        items.push_back(item);
        self.tail.fetch_add(1, Ordering::SeqCst);
    }

    pub fn pop(&self) -> Option<T> {
        let head = self.head.load(Ordering::Acquire);
        fence(Ordering::SeqCst);
        if head == self.tail.load(Ordering::Relaxed) {
            return None;
        }
        let mut items = self.items();
        let item = items.pop_front()?;
        self.head.fetch_add(1, Ordering::SeqCst);
        Some(item)
    }

    pub fn is_empty(&self) -> bool {
        self.head.load(Ordering::SeqCst) == self.tail.load(Ordering::SeqCst)
    }
}

thread_local! {
    /// Every limited wait runs into its limit, whatever comes meanwhile; else none does. (All threads of a model are one.)
    pub(crate) static IMPATIENT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Waits to be told, or as long. True: so long.
pub(crate) fn wait_timeout<'a, T>(
    bell: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    _: Duration,
) -> (MutexGuard<'a, T>, bool) {
    if IMPATIENT.get() {
        drop(guard);
        yield_now();
        return (mutex.lock().expect("not poisoned"), true);
    }
    (bell.wait(guard).expect("not poisoned"), false)
}

/// The kernel, as far as protocols rest on it: eventfds, system calls that wait, and the signal that interrupts them.
pub(crate) mod kernel {
    use super::Mutex;
    use loom::sync::Condvar;

    /// No real descriptor is that large.
    const FIRST: i32 = 1 << 24;

    #[derive(Default)]
    struct State {
        /// The eventfds' counts.
        counts: Vec<u64>,
        /// Threads inside [`read`], and whether a signal came meanwhile. One that comes before or after has no effect.
        reading: Vec<(i32, bool)>,
    }

    struct Kernel {
        state: Mutex<State>,
        changed: Condvar,
    }

    loom::lazy_static! {
        static ref KERNEL: Kernel = Kernel { state: Mutex::new(State::default()), changed: Condvar::new() };
    }

    loom::thread_local! {
        static HERE: u64 = 0;
    }

    /// Something's address that is this thread's alone.
    pub(crate) fn thread() -> usize {
        HERE.with(|here| std::ptr::from_ref(here) as usize)
    }

    fn change<R>(change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = KERNEL.state.lock().expect("not poisoned");
        let result = change(&mut state);
        KERNEL.changed.notify_all();
        result
    }

    pub(crate) fn eventfd() -> i64 {
        let mut state = KERNEL.state.lock().expect("not poisoned");
        state.counts.push(0);
        i64::from(FIRST) + state.counts.len() as i64 - 1
    }

    pub(crate) fn eventfd_write(fd: i32) {
        change(|state| state.counts[(fd - FIRST) as usize] += 1);
    }

    pub(crate) fn eventfd_drain(fd: i32) {
        KERNEL.state.lock().expect("not poisoned").counts[(fd - FIRST) as usize] = 0;
    }

    /// As poll(2) that does not wait.
    pub(crate) fn is_readable(fd: i32) -> bool {
        KERNEL.state.lock().expect("not poisoned").counts[(fd - FIRST) as usize] > 0
    }

    /// As poll(2) without a limit.
    pub(crate) fn wait_readable(fd: i32) {
        let mut state = KERNEL.state.lock().expect("not poisoned");
        while state.counts[(fd - FIRST) as usize] == 0 {
            state = KERNEL.changed.wait(state).expect("not poisoned");
        }
    }

    /// A system call that waits: takes what is in an eventfd. -EINTR: interrupted.
    pub(crate) fn read(fd: i32) -> i64 {
        let thread = thread() as i32;
        let mut state = KERNEL.state.lock().expect("not poisoned");
        state.reading.push((thread, false));
        loop {
            let count = std::mem::take(&mut state.counts[(fd - FIRST) as usize]);
            let at = state.reading.iter().position(|&(other, _)| other == thread).expect("pushed above");
            if count > 0 || state.reading[at].1 {
                state.reading.swap_remove(at);
                return if count > 0 { count as i64 } else { -i64::from(libc::EINTR) };
            }
            state = KERNEL.changed.wait(state).expect("not poisoned");
        }
    }

    /// Sends a thread the signal that interrupts.
    pub(crate) fn interrupt(thread: i32) {
        change(|state| {
            if let Some(reading) = state.reading.iter_mut().find(|(other, _)| *other == thread) {
                reading.1 = true;
            }
        });
    }
}
