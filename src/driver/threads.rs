//! Threads for what would block: a bounded pool for work that ends by itself, and threads of their own for calls that may
//! wait without limit. Both report back through one lock-free list and wake the loop.
//!
//! A job is a cell at a stable address with one deciding word: QUEUED → RUNNING is the worker's compare-and-swap, QUEUED →
//! DROPPED the owner's; the loser stands down. The worker writes the result, then publishes the job, then never touches it
//! again.
//!
//! A running job that works on nothing of the program's can be given up: RUNNING → ABANDONED is the owner's compare-and-swap,
//! RUNNING → DONE the worker's. If the owner wins, the job is the worker's, which frees it with all it has made when the call
//! returns. Nobody waits for that: a thread still in such a call when the crew ends is let go, and owns all it touches.

use crate::abi::upcall_loop;
use crate::engine::shared::{Message, Shared};
use crate::op::{Args, Lookup};
use crate::sys;
use crate::sys::sync::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU64};
use crate::sys::sync::{Condvar, Mutex, MutexGuard, Racing, Thread, spawn, wait_timeout, yield_now};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const DONE: u8 = 3;
const DROPPED: u8 = 4;
const ABANDONED: u8 = 5;

/// One call to make on a thread. It belongs to an operation's side block and is used again and again.
pub(crate) struct Job {
    state: AtomicU8,
    /// Asked to end early: threads of their own look at it when they are interrupted.
    cancelled: AtomicBool,
    thread: AtomicI32,
    /// The number of the worker that runs it.
    worker: AtomicU64,
    /// A worker has taken it from the queue and not yet decided whose it is.
    popped: AtomicBool,
    result: AtomicI64,
    next: AtomicPtr<Job>,
    call: Racing<Call>,
}

/// What to call, and for whom.
pub(crate) struct Call {
    pub id: u64,
    pub block: fn(&Args) -> i64,
    pub args: Option<Args>,
    /// -EINTR is the call's answer, not an interruption.
    pub verbatim: bool,
    /// The lent buffer the call fills, if any.
    pub buffer: Option<u32>,
    /// What the call works on, where it may outlive its operation.
    pub lookup: Option<Arc<Lookup>>,
}

// SAFETY: `call` is written by the owner before the job is queued, read by the one worker that won it, and read by the owner
// after the worker published it; the queues' locks and the done list order these.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    pub fn new() -> Job {
        let call = Call { id: 0, block: |_| 0, args: None, verbatim: false, buffer: None, lookup: None };
        Job {
            state: AtomicU8::new(IDLE),
            cancelled: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            worker: AtomicU64::new(0),
            popped: AtomicBool::new(false),
            result: AtomicI64::new(0),
            next: AtomicPtr::new(std::ptr::null_mut()),
            call: Racing::new(call),
        }
    }
}

/// A job's address, which does not change until it is freed: with its side block, or by the worker it was left to.
pub(crate) struct JobCell(NonNull<Job>);

impl JobCell {
    pub fn new() -> JobCell {
        JobCell(NonNull::from(Box::leak(Box::new(Job::new()))))
    }

    /// The job, with a life of its own: side blocks outlast the threads.
    pub fn get<'a>(&self) -> &'a Job {
        // SAFETY: allocated by `new`, freed by `drop`; the driver ends the threads before the side blocks go.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for JobCell {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; no thread has it any more (see `get`).
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A finished job, as the owner sees it.
pub(crate) struct Finished {
    pub id: u64,
    pub result: i64,
    pub buffer: Option<u32>,
}

/// Which queue a job goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Ends in bounded time.
    Pool,
    /// A computation: never takes the last pool thread.
    Compute,
    /// May wait without limit.
    Own,
}

#[derive(Default)]
struct Queues {
    pool: VecDeque<JobRef>,
    compute: VecDeque<JobRef>,
    own: VecDeque<JobRef>,
    pool_threads: usize,
    pool_idle: usize,
    own_idle: usize,
    computing: usize,
    /// Lookups whose call has not returned, those abandoned among them.
    lookups: usize,
    ending: bool,
    workers: Vec<Worker>,
    /// The number of the next worker.
    next_worker: u64,
}

/// A thread of the crew. One that is not in the list was let go, and ends when its call has returned.
struct Worker {
    number: u64,
    handle: Thread,
    /// In a call that was abandoned: another thread may have its place, and when the crew ends it is let go.
    astray: bool,
}

/// Jobs live in side blocks that outlast the threads.
#[derive(Clone, Copy)]
struct JobRef {
    at: NonNull<Job>,
    /// It may be abandoned.
    looks_up: bool,
}
// SAFETY: see Job.
unsafe impl Send for JobRef {}

impl JobRef {
    /// Under the queues' lock: from now on the worker has an address that the owner must wait for.
    fn mark_popped(self) {
        // SAFETY: a job in a queue lives: it leaves the queue before it is dropped.
        unsafe { self.at.as_ref() }.popped.store(true, Ordering::Release);
    }
}

struct Crew {
    queues: Mutex<Queues>,
    pool_bell: Condvar,
    own_bell: Condvar,
    done: AtomicPtr<Job>,
    workers: usize,
    /// Weak, so that a thread that was let go does not keep the loop's descriptors.
    shared: Weak<Shared>,
}

/// See the module.
pub(crate) struct Threads {
    crew: Arc<Crew>,
    /// The done list, in the order of completion.
    finished: Vec<JobRef>,
    /// Jobs queued or running.
    pub active: usize,
}

/// The number of no worker.
const NOBODY: u64 = u64::MAX;

/// A pool thread with nothing to do ends after so long.
const IDLE_EXIT: Duration = Duration::from_secs(10);

impl Threads {
    pub fn new(shared: Arc<Shared>, workers: u32) -> Threads {
        let crew = Crew {
            queues: Mutex::new(Queues::default()),
            pool_bell: Condvar::new(),
            own_bell: Condvar::new(),
            done: AtomicPtr::new(std::ptr::null_mut()),
            workers: workers.max(2) as usize,
            shared: Arc::downgrade(&shared),
        };
        Threads { crew: Arc::new(crew), finished: Vec::new(), active: 0 }
    }

    /// Queues a call. False: no thread could be had, and nothing was done. A computation is then left to the loop, which makes it
    /// between two steps of the engine: it may use the loop.
    pub fn start(&mut self, cell: &JobCell, lane: Lane, call: Call) -> bool {
        let job = cell.get();
        let looks_up = call.lookup.is_some();
        // SAFETY: the job is idle: no worker has it (its last run was collected or dropped).
        job.call.with_mut(|at| unsafe { *at = call });
        job.cancelled.store(false, Ordering::Relaxed);
        job.thread.store(0, Ordering::Relaxed);
        job.state.store(QUEUED, Ordering::Release);
        let crew = &self.crew;
        let mut queues = crew.lock();
        let entry = JobRef { at: cell.0, looks_up };
        let ready = match lane {
            Lane::Own => {
                queues.own.push_back(entry);
                queues.own.len() <= queues.own_idle || crew.spawn(&mut queues, true)
            }
            _ => {
                if lane == Lane::Pool {
                    queues.pool.push_back(entry)
                } else {
                    queues.compute.push_back(entry)
                }
                let waiting = queues.pool.len() + queues.compute.len();
                let enough = waiting <= queues.pool_idle || queues.pool_threads >= crew.workers;
                enough
                    || crew.spawn(&mut queues, false)
                    || queues.pool_threads > 0
                    || (lane == Lane::Compute && crew.leave_to_the_loop())
            }
        };
        if ready {
            self.active += 1;
            drop(queues);
            if lane == Lane::Own {
                crew.own_bell.notify_one()
            } else {
                crew.pool_bell.notify_one()
            }
            return true;
        }
        match lane {
            Lane::Own => queues.own.pop_back(),
            Lane::Pool => queues.pool.pop_back(),
            Lane::Compute => queues.compute.pop_back(),
        };
        job.state.store(IDLE, Ordering::Relaxed);
        false
    }

    /// Asks a job to end. `Some`: it had not begun and never will; inside, the lent buffer it was to fill. `None`: it runs,
    /// and was interrupted if it may be; that may have been just before its system call, so this is repeated until it ends.
    pub fn cancel(&mut self, job: &Job) -> Option<Option<u32>> {
        let dropped = self.drop_queued(job);
        if dropped.is_none() {
            job.cancelled.store(true, Ordering::SeqCst);
            if job.state.load(Ordering::Acquire) == RUNNING {
                sys::thread::interrupt(job.thread.load(Ordering::SeqCst));
            }
        }
        dropped
    }

    /// Ends a job that works on nothing of the program's: one that has not begun never will, one that runs is left to its
    /// worker, cell and all. False: it is done, and will be collected.
    pub fn abandon(&mut self, cell: &mut Option<JobCell>) -> bool {
        let Some(job) = cell.as_ref().map(JobCell::get) else { return false };
        if self.drop_queued(job).is_some() {
            return true;
        }
        let mut queues = self.crew.lock();
        if job.state.load(Ordering::Acquire) != RUNNING {
            return false;
        }
        // Written before RUNNING; and once the swap succeeds, the job may be gone.
        let number = job.worker.load(Ordering::Relaxed);
        if job.state.compare_exchange(RUNNING, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        std::mem::forget(cell.take());
        self.active -= 1;
        // The worker takes the lock after its call, so it finds this.
        if let Some(worker) = queues.workers.iter_mut().find(|worker| worker.number == number) {
            worker.astray = true;
            queues.computing -= 1;
            queues.pool_threads -= 1;
        }
        if !queues.compute.is_empty() && queues.pool_idle == 0 && queues.pool_threads < self.crew.workers {
            self.crew.spawn(&mut queues, false);
        }
        drop(queues);
        self.crew.pool_bell.notify_one();
        true
    }

    /// Takes a job back that no worker has won.
    fn drop_queued(&mut self, job: &Job) -> Option<Option<u32>> {
        if job.state.compare_exchange(QUEUED, DROPPED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.active -= 1;
            // The queue may not keep the address: the job is used again, in another lane, or freed.
            let at = NonNull::from(job);
            let mut queues = self.crew.lock();
            let Queues { pool, compute, own, .. } = &mut *queues;
            for queue in [pool, compute, own] {
                if let Some(position) = queue.iter().rposition(|entry| entry.at == at) {
                    queue.remove(position);
                    break;
                }
            }
            drop(queues);
            // A worker that had popped it before the lock was taken has lost the job and will say so.
            while job.popped.load(Ordering::Acquire) {
                yield_now();
            }
            return Some(job.call.with_mut(|call| {
                // SAFETY: dropped before a worker won it, so the owner alone has it.
                let call = unsafe { &mut *call };
                call.lookup = None;
                call.buffer
            }));
        }
        None
    }

    /// Whether any job has finished.
    #[inline(always)]
    pub fn has_finished(&self) -> bool {
        !self.finished.is_empty() || !self.crew.done.load(Ordering::SeqCst).is_null()
    }

    /// The next finished job.
    pub fn collect(&mut self) -> Option<Finished> {
        if self.finished.is_empty() {
            let mut at = self.crew.done.swap(std::ptr::null_mut(), Ordering::AcqRel);
            // The list is last in, first out; popping from the end of the vector turns it around.
            while let Some(job) = NonNull::new(at) {
                self.finished.push(JobRef { at: job, looks_up: false });
                // SAFETY: a published job; its worker does not touch it any more.
                at = unsafe { job.as_ref() }.next.load(Ordering::Relaxed);
            }
        }
        let job = self.finished.pop()?;
        self.active -= 1;
        // SAFETY: as above; the owner alone has it now.
        let job = unsafe { job.at.as_ref() };
        let finished = job.call.with_mut(|call| {
            // SAFETY: as above.
            let call = unsafe { &mut *call };
            call.args = None;
            call.lookup = None;
            Finished { id: call.id, result: job.result.load(Ordering::Relaxed), buffer: call.buffer }
        });
        job.state.store(IDLE, Ordering::Relaxed);
        Some(finished)
    }

    /// Ends all threads. Jobs must have been collected, cancelled or abandoned; running ones are waited for, except those
    /// abandoned, whose threads are let go.
    pub fn end(&mut self) {
        let mut queues = self.crew.lock();
        queues.ending = true;
        let workers = std::mem::take(&mut queues.workers);
        queues.lookups -= workers.iter().filter(|worker| worker.astray).count();
        drop(queues);
        self.crew.pool_bell.notify_all();
        self.crew.own_bell.notify_all();
        for worker in workers.into_iter().filter(|worker| !worker.astray) {
            worker.handle.join();
        }
        self.crew.lock().ending = false;
    }
}

/// A post of the library's own: the loop's thread computes what no other could.
unsafe extern "C-unwind" fn compute_one(_: *mut upcall_loop, crew: *mut c_void) {
    // SAFETY: made by `leave_to_the_loop`; a post runs once.
    let crew = unsafe { Arc::from_raw(crew.cast_const().cast::<Crew>()) };
    let mut queues = crew.lock();
    // A thread may have it by now, or it was cancelled.
    let job = crew.next_computation(&mut queues);
    if let Some(job) = job {
        job.mark_popped();
    }
    drop(queues);
    if let Some(job) = job {
        crew.run(job, NOBODY);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

impl Crew {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Starts a thread with every signal blocked from its first instruction on.
    fn spawn(self: &Arc<Self>, queues: &mut Queues, own: bool) -> bool {
        for position in (0..queues.workers.len()).rev() {
            if queues.workers[position].handle.has_ended() {
                queues.workers.swap_remove(position);
            }
        }
        let crew = self.clone();
        let number = queues.next_worker;
        let interruptible = own.then(sys::thread::interrupt_signal).filter(|&signal| signal != 0);
        let run = move || {
            sys::thread::block_signals(interruptible);
            if own { crew.serve_own(number) } else { crew.serve_pool(number) }
        };
        match spawn(if own { c"upcall-wait" } else { c"upcall-pool" }, run) {
            Ok(handle) => {
                queues.workers.push(Worker { number, handle, astray: false });
                queues.next_worker += 1;
                if !own {
                    queues.pool_threads += 1;
                }
                true
            }
            Err(_) => false,
        }
    }

    /// No thread can be had: the loop runs one computation as it runs a post.
    fn leave_to_the_loop(self: &Arc<Self>) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        shared.tell(Message::Post(compute_one, Arc::into_raw(self.clone()).cast_mut().cast()));
        true
    }

    fn serve_pool(&self, number: u64) {
        let mut queues = self.lock();
        loop {
            // Files first; computations never take the last thread.
            let may_compute = queues.computing + 1 < self.workers;
            let compute = queues.pool.is_empty() && may_compute;
            let job = if compute { self.next_computation(&mut queues) } else { queues.pool.pop_front() };
            if let Some(job) = job {
                job.mark_popped();
                queues.computing += usize::from(compute);
                queues.lookups += usize::from(job.looks_up);
                drop(queues);
                let mine = self.run(job, number);
                queues = self.lock();
                if !mine {
                    // Let go: the crew has ended meanwhile.
                    let Some(worker) = queues.workers.iter_mut().find(|worker| worker.number == number) else { return };
                    worker.astray = false;
                    queues.lookups -= 1;
                    if queues.pool_threads >= self.workers {
                        drop(queues);
                        self.pool_bell.notify_one();
                        return;
                    }
                    queues.pool_threads += 1;
                    continue;
                }
                queues.lookups -= usize::from(job.looks_up);
                if compute {
                    queues.computing -= 1;
                    if !queues.compute.is_empty() {
                        self.pool_bell.notify_one();
                    }
                }
                continue;
            }
            if queues.ending {
                break;
            }
            queues.pool_idle += 1;
            let (woken, timed_out) = wait_timeout(&self.pool_bell, &self.queues, queues, IDLE_EXIT);
            queues = woken;
            queues.pool_idle -= 1;
            if timed_out && queues.pool.is_empty() && (queues.compute.is_empty() || queues.pool_threads > 1) {
                break;
            }
        }
        queues.pool_threads -= 1;
    }

    fn serve_own(&self, number: u64) {
        let mut queues = self.lock();
        loop {
            if let Some(job) = queues.own.pop_front() {
                job.mark_popped();
                drop(queues);
                self.run(job, number);
                queues = self.lock();
                continue;
            }
            if queues.ending {
                break;
            }
            queues.own_idle += 1;
            let (woken, timed_out) = wait_timeout(&self.own_bell, &self.queues, queues, IDLE_EXIT);
            queues = woken;
            queues.own_idle -= 1;
            if timed_out && queues.own.is_empty() {
                break;
            }
        }
    }

    /// The next computation that may begin. Nobody knows when an abandoned lookup returns, so there are no more lookups at a
    /// time than pool threads, given up or not; works pass them by.
    fn next_computation(&self, queues: &mut Queues) -> Option<JobRef> {
        let full = queues.lookups >= self.workers;
        let position = queues.compute.iter().position(|job| !(full && job.looks_up))?;
        queues.compute.remove(position)
    }

    /// Runs a job. False: it was abandoned meanwhile.
    fn run(&self, job: JobRef, number: u64) -> bool {
        let at = job.at.as_ptr();
        // SAFETY: a job lives until its worker has published it, or is the worker's to free.
        let job = unsafe { &*at };
        job.worker.store(number, Ordering::Relaxed);
        let won = job.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        job.popped.store(false, Ordering::Release);
        if !won {
            return true;
        }
        job.thread.store(sys::thread::id(), Ordering::SeqCst);
        let result = job.call.with(|call| {
            // SAFETY: this worker won the job; the owner wrote the call before it queued it.
            let call = unsafe { &*call };
            let Some(args) = &call.args else { return -i64::from(libc::ECANCELED) };
            loop {
                if job.cancelled.load(Ordering::SeqCst) {
                    return -i64::from(libc::ECANCELED);
                }
                match (call.block)(args) {
                    again if again == -i64::from(libc::EINTR) && !call.verbatim => {}
                    result => return result,
                }
            }
        });
        job.result.store(result, Ordering::Relaxed);
        if job.state.compare_exchange(RUNNING, DONE, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: abandoned: the owner has forgotten the cell and left its allocation, with the call, to this worker.
            drop(unsafe { Box::from_raw(at) });
            return false;
        }
        // Published: nothing of the job is touched after this.
        let mut head = self.done.load(Ordering::Relaxed);
        loop {
            job.next.store(head, Ordering::Relaxed);
            match self.done.compare_exchange_weak(head, at, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.wake();
        }
        true
    }
}
