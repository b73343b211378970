//! The protocols between threads, in every interleaving: the engine's and the threads' own code on loom's words and locks
//! (`sys::sync`), each model with what it promises. At most three preemptions an execution, or LOOM_MAX_PREEMPTIONS:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --profile models --target-dir target/loom --lib models::
//! ```
//!
//! `tests/models/mutants.sh` breaks the code in the ways listed in `tests/models/mutants.txt`, and each time a model fails.

use super::core::Core;
use super::embed::Embed;
use super::fabricated::{Script, poll};
use super::shared::{Message, Owner, Shared};
use super::{Engine, buffers::Pool, config, outside, seconds::Seconds};
use crate::abi::*;
use crate::driver::Until;
use crate::driver::threads::{Call, JobCell, Lane, Threads};
use crate::op::{self, Args, Lookup};
use crate::sys::sync::modelled::{IMPATIENT, kernel, yield_now};
use crate::sys::sync::{Racing, Thread};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

fn explore(model: impl Fn() + Sync + Send + 'static) {
    explore_with(3, model);
}

/// Tries every execution of a model with so many preemptions, and says how many executions there were.
pub(crate) fn explore_with(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let name = std::thread::current().name().unwrap_or("model").to_owned();
    println!("{name}: {} executions", count.load(Ordering::Relaxed));
}

pub(crate) fn spawn(run: impl FnOnce() + Send + 'static) -> Thread {
    crate::sys::sync::spawn(c"model", run).expect("a thread")
}

fn join(threads: impl IntoIterator<Item = Thread>) {
    threads.into_iter().for_each(|thread| thread.join());
}

fn shared(max_operations: u32) -> Arc<Shared> {
    Arc::new(Shared::new(max_operations).expect("address space"))
}

/// As a driver's turn does: until the eventfd is written, if nothing came meanwhile.
pub(crate) fn sleep(shared: &Shared, has_more: impl FnOnce() -> bool) {
    if shared.prepare_sleep() && !has_more() {
        kernel::read(shared.wake);
    }
    shared.awake();
}

/// What one thread at a time may touch: loom says when two do, or when the second does not see what the first did.
struct Alone(Racing<u32>);

// SAFETY: loom lets one model thread run at a time, and fails where real ones would race.
unsafe impl Sync for Alone {}

impl Alone {
    fn new() -> Alone {
        Alone(Racing::new(0))
    }

    fn touch(&self) -> u32 {
        self.0.with_mut(|count| {
            // SAFETY: loom has checked that nobody else is at it.
            let count = unsafe { &mut *count };
            *count += 1;
            *count
        })
    }
}

unsafe extern "C-unwind" fn nothing(_: *mut upcall_loop, _: *mut c_void) {}

/// Sleep and wake: a message is found however it meets a sleep. A lost one would leave the owner asleep for good.
#[test]
fn a_message_is_never_slept_over() {
    explore(|| {
        let shared = shared(1);
        let senders = [(); 2].map(|()| {
            let shared = shared.clone();
            spawn(move || assert!(outside::post(&shared, nothing, std::ptr::null_mut())))
        });
        let mut left = 2;
        while left > 0 {
            match shared.next_message() {
                Some(_) => left -= 1,
                None => sleep(&shared, || false),
            }
        }
        assert!(shared.next_message().is_none());
        join(senders);
    });
}

/// As above, for a loop inside another one, which waits for the level of the eventfd.
#[test]
fn a_message_makes_the_descriptor_readable() {
    explore(|| {
        let shared = shared(1);
        let senders = [(); 2].map(|()| {
            let shared = shared.clone();
            spawn(move || assert!(outside::post(&shared, nothing, std::ptr::null_mut())))
        });
        let mut embed = Embed::of_nothing();
        let mut left = 2;
        embed.rest(&shared, false, None);
        while left > 0 {
            kernel::wait_readable(shared.wake);
            embed.drain(&shared);
            if shared.next_message().is_some() {
                left -= 1;
            }
            embed.rest(&shared, shared.has_messages(), None);
        }
        join(senders);
    });
}

/// What ends the wait of a poll is latched, and ends one.
#[test]
fn a_nudge_ends_a_wait() {
    explore(|| {
        let shared = shared(1);
        let told = shared.clone();
        let other = spawn(move || told.nudge());
        while !shared.was_nudged() {
            sleep(&shared, || false);
        }
        other.join();
        assert!(!shared.was_nudged());
    });
}

/// A loop that closes has every post that was accepted in its inbox, and accepts none after.
#[test]
fn what_was_let_in_before_a_close_is_in_the_inbox() {
    explore(|| {
        let shared = shared(1);
        let accepted = Arc::new(AtomicU32::new(0));
        let senders = [(); 2].map(|()| {
            let (shared, accepted) = (shared.clone(), accepted.clone());
            spawn(move || {
                if outside::post(&shared, nothing, std::ptr::null_mut()) {
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        shared.refuse_new_work();
        let mut found = 0;
        while shared.next_message().is_some() {
            found += 1;
        }
        join(senders);
        assert_eq!(found, accepted.load(Ordering::Relaxed));
        assert!(shared.next_message().is_none());
        assert!(!outside::post(&shared, nothing, std::ptr::null_mut()));
    });
}

/// A loop has one owner at a time, and the next one sees all that the last one did.
#[test]
fn an_owner_is_alone() {
    explore(|| {
        let shared = shared(1);
        let engine = Arc::new(Alone::new());
        let adopters = [(); 2].map(|()| {
            let (shared, engine) = (shared.clone(), engine.clone());
            spawn(move || {
                if shared.adopt() {
                    assert!(shared.owner() == Owner::Me && shared.is_mine() && !shared.adopt());
                    engine.touch();
                    shared.release(false);
                }
            })
        });
        join(adopters);
        assert_eq!(shared.owner(), Owner::Nobody);
        assert!(engine.touch() > 1);
    });
}

/// The stock of slots for other threads: a slot is one thread's until it is put back.
#[test]
fn a_foreign_slot_has_one_holder() {
    explore(|| {
        let shared = shared(2);
        let slots = Arc::new([Alone::new(), Alone::new()]);
        let holders = [(); 2].map(|()| {
            let (shared, slots) = (shared.clone(), slots.clone());
            spawn(move || {
                if let Some(index) = shared.take_foreign() {
                    slots[index as usize].touch();
                    shared.put_back_foreign(index);
                }
            })
        });
        let mut stolen = None;
        if let Some(index) = shared.reclaim_foreign() {
            slots[index as usize].touch();
            stolen = Some(index);
        }
        join(holders);
        let left: Vec<u32> = std::iter::from_fn(|| shared.reclaim_foreign()).chain(stolen).collect();
        assert!(left.len() == 2 && left[0] != left[1], "a slot was lost or doubled");
    });
}

const RECV: u32 = 45;

fn recv(fd: i32) -> upcall_op {
    upcall_op { fd, addr: 4096, len: 100, ..op::blank(RECV) }
}

fn engine(shared: &Arc<Shared>) -> Box<Engine<Script>> {
    Box::new(Engine::new(Core::new(shared.clone()), Script::default(), &config::defaults()))
}

/// A cancel by descriptor from another thread: an operation on another descriptor in a slot that was used before is not
/// asked to end. Ids and descriptors are words that anyone may look at any time.
#[test]
fn cancelling_a_descriptor_cancels_nothing_else() {
    explore(|| {
        let shared = shared(1);
        let canceller = {
            let shared = shared.clone();
            spawn(move || {
                outside::cancel_each(&shared, Some(1));
            })
        };
        let owner = spawn(move || {
            let mut engine = engine(&shared);
            engine.submit(&[recv(1)], None).expect("accepted");
            engine.driver.answer(0, 100);
            assert_eq!(poll(&mut engine, Until::Now).len(), 1);
            engine.driver.asked.clear();
            engine.submit(&[recv(2)], None).expect("accepted");
            canceller.join();
            poll(&mut engine, Until::Now);
            assert_eq!(engine.driver.asked, []);
            engine.driver.answer(0, 100);
            assert_eq!(poll(&mut engine, Until::Now)[0].result, 100);
        });
        owner.join();
    });
}

/// One thread submits and cancels, another cancels all, the owner turns: one final event, no loss, no slot lost.
#[test]
fn a_foreign_operation_ends_once() {
    explore(|| {
        let shared = shared(1);
        let (submitter, canceller) = (shared.clone(), shared.clone());
        let submitter = spawn(move || {
            let mut ids = [MaybeUninit::new(0u64)];
            outside::submit(&submitter, &[recv(1)], Some(&mut ids)).expect("accepted");
            // SAFETY: initialised above, whatever submit wrote.
            outside::cancel(&submitter, unsafe { ids[0].assume_init() });
        });
        let canceller = spawn(move || {
            outside::cancel_each(&canceller, None);
        });
        let owner = spawn(move || {
            let mut engine = engine(&shared);
            engine.driver.obedient = true;
            let mut finals = Vec::new();
            while finals.is_empty() {
                finals.extend(poll(&mut engine, Until::Forever));
            }
            submitter.join();
            canceller.join();
            finals.extend(poll(&mut engine, Until::Now));
            assert!(finals.len() == 1 && finals[0].result == -i64::from(libc::ECANCELED));
            assert!(!shared.table.is_in_flight(finals[0].id) && engine.in_flight() == 0);
            assert_eq!(shared.take_foreign(), Some(0));
        });
        owner.join();
    });
}

/// Buffers that come back from two threads, one of them twice: each is taken in once, and the sleeping owner hears of it.
#[test]
fn a_buffer_comes_back_once() {
    explore(|| {
        let shared = shared(1);
        let pool = Pool::new(&shared, 2, 64).expect("memory");
        assert!(pool.enter());
        let addresses = [0, 1].map(|number| pool.lend(number, (u64::from(number) + 1) << 24) as usize);
        let returned = Arc::new(AtomicU32::new(0));
        let returners = addresses.map(|address| {
            let (pool, returned) = (pool.clone(), returned.clone());
            spawn(move || {
                for address in [address, addresses[0]] {
                    returned.fetch_add(u32::from(pool.give_back(address)), Ordering::Relaxed);
                }
            })
        });
        let mut home = Vec::new();
        while home.len() < 2 {
            while let Some(message) = shared.next_message() {
                assert!(matches!(message, Message::Returned));
                pool.hear();
            }
            let before = home.len();
            while let Some((number, holder)) = pool.take_returned() {
                assert!(pool.is_home(number) && holder == (u64::from(number) + 1) << 24);
                home.push(number);
            }
            if home.len() == before {
                sleep(&shared, || pool.has_returned());
            }
        }
        join(returners);
        assert!(home[0] != home[1] && returned.load(Ordering::Relaxed) == 2 && pool.take_returned().is_none());
        assert!(pool.lent() == 0 && !pool.retire());
        pool.leave();
        assert!(pool.retire());
    });
}

/// A pool that is freed while somebody would use it: one of them gets it.
#[test]
fn a_pool_is_freed_or_used() {
    explore(|| {
        let shared = shared(1);
        let pool = Pool::new(&shared, 1, 64).expect("memory");
        let entered = Arc::new(AtomicU32::new(0));
        let user = {
            let (pool, entered) = (pool.clone(), entered.clone());
            spawn(move || entered.store(u32::from(pool.enter()), Ordering::Relaxed))
        };
        let freed = pool.retire();
        user.join();
        assert_eq!(freed, entered.load(Ordering::Relaxed) == 0);
        assert_eq!(pool.is_retired(), freed);
    });
}

/// The set of second descriptors: who was told of an operation finds it, until it is removed.
#[test]
fn a_second_descriptor_is_found_until_it_is_removed() {
    explore(|| {
        let seconds = Arc::new(Seconds::default());
        let users = [1, 2].map(|id| {
            let seconds = seconds.clone();
            spawn(move || {
                seconds.insert(5, id);
                assert!(seconds.on(5).contains(&id));
                if id == 1 {
                    assert!(seconds.remove(5, id) && !seconds.remove(5, id));
                }
            })
        });
        join(users);
        assert_eq!(seconds.on(5), [2]);
    });
}

/// What a job works on: written by the one that runs it, read by the one that collects it.
struct Task {
    result: Alone,
    runs: AtomicU32,
}

impl Task {
    fn new() -> Arc<Task> {
        Arc::new(Task { result: Alone::new(), runs: AtomicU32::new(0) })
    }

    fn call(self: &Arc<Task>, id: u64) -> Call {
        let args = Args { addr: Arc::as_ptr(self) as u64, ..Args::blank() };
        Call { id, block: Task::run, args: Some(args), verbatim: false, buffer: Some(id as u32), lookup: None }
    }

    fn run(args: &Args) -> i64 {
        // SAFETY: the model holds the task while its job may run.
        let task = unsafe { &*args.ptr::<Task>() };
        task.runs.fetch_add(1, Ordering::Relaxed);
        task.result.touch();
        7
    }
}

/// Waits for one job to end, asleep.
fn collect(threads: &mut Threads, shared: &Shared) -> (u64, i64) {
    while !threads.has_finished() {
        sleep(shared, || threads.has_finished());
    }
    let finished = threads.collect().expect("finished");
    (finished.id, finished.result)
}

fn on_threads(workers: u32, model: impl Fn(&mut Threads, &Shared) + Clone + Send + Sync + 'static) {
    explore(move || {
        let shared = shared(1);
        let model = model.clone();
        let owner = spawn(move || {
            let mut threads = Threads::new(shared.clone(), workers);
            model(&mut threads, &shared);
            assert_eq!(threads.active, 0);
            threads.end();
        });
        owner.join();
    });
}

/// The pool hand-off: a job that is cancelled is dropped and never runs, or runs once and is collected; its cell is used again.
#[test]
fn a_job_runs_or_is_dropped() {
    on_threads(2, |threads, shared| {
        let (cell, first, second) = (JobCell::new(), Task::new(), Task::new());
        assert!(threads.start(&cell, Lane::Pool, first.call(1)));
        let dropped = threads.cancel(cell.get());
        match dropped {
            Some(buffer) => assert_eq!(buffer, Some(1)),
            None => {
                let (id, result) = collect(threads, shared);
                // One that was won and not begun when the cancel came has done nothing.
                assert_eq!(id, 1);
                match first.runs.load(Ordering::Relaxed) {
                    0 => assert_eq!(result, -i64::from(libc::ECANCELED)),
                    runs => assert!(runs == 1 && result == 7 && first.result.touch() == 2),
                }
            }
        }
        let before = first.runs.load(Ordering::Relaxed);
        assert!(threads.start(&cell, Lane::Pool, second.call(2)));
        assert_eq!(collect(threads, shared), (2, 7));
        assert_eq!(second.result.touch(), 2);
        threads.end();
        assert_eq!((first.runs.load(Ordering::Relaxed), second.runs.load(Ordering::Relaxed)), (before, 1));
        assert!(dropped.is_none() || before == 0);
    });
}

/// Two workers publish at once: both jobs are collected, and the owner wakes for each.
#[test]
fn two_jobs_are_collected() {
    on_threads(2, |threads, shared| {
        let (cells, tasks) = ([JobCell::new(), JobCell::new()], [Task::new(), Task::new()]);
        for (number, task) in tasks.iter().enumerate() {
            assert!(threads.start(&cells[number], Lane::Pool, task.call(number as u64)));
        }
        let ids = [(); 2].map(|()| collect(threads, shared).0);
        assert!(ids == [0, 1] || ids == [1, 0]);
        assert!(tasks.iter().all(|task| task.result.touch() == 2));
        threads.end();
    });
}

/// Threads that give up waiting just when work comes: it is done all the same.
#[test]
fn a_thread_that_leaves_leaves_no_work_behind() {
    on_threads(2, |threads, shared| {
        IMPATIENT.set(true);
        let (cell, other) = (JobCell::new(), JobCell::new());
        let tasks = [Task::new(), Task::new()];
        assert!(threads.start(&cell, Lane::Pool, tasks[0].call(0)));
        assert_eq!(collect(threads, shared), (0, 7));
        assert!(threads.start(&other, Lane::Pool, tasks[1].call(1)));
        assert_eq!(collect(threads, shared), (1, 7));
        threads.end();
        IMPATIENT.set(false);
    });
}

/// A call that may wait without limit is interrupted, if not by the first signal, which may come just before it.
#[test]
fn a_call_that_waits_is_interrupted() {
    fn wait(args: &Args) -> i64 {
        kernel::read(args.fd())
    }
    on_threads(2, |threads, _| {
        let cell = JobCell::new();
        let never = kernel::eventfd() as i32;
        let args = Args { fd_word: crate::sys::sync::AtomicI32::new(never), ..Args::blank() };
        let call = Call { id: 1, block: wait, args: Some(args), verbatim: false, buffer: None, lookup: None };
        assert!(threads.start(&cell, Lane::Own, call));
        loop {
            if threads.cancel(cell.get()).is_some() {
                break;
            }
            if let Some(finished) = threads.collect() {
                assert_eq!(finished.result, -i64::from(libc::ECANCELED));
                break;
            }
            yield_now();
        }
        threads.end();
    });
}

/// A lookup that is given up is its worker's to free, one that is not is the owner's, and what it works on lives as long as
/// either needs it.
#[test]
fn an_abandoned_job_is_freed_once() {
    static LAST: Mutex<Weak<Lookup>> = Mutex::new(Weak::new());
    fn look_up(args: &Args) -> i64 {
        // SAFETY: the call that runs this holds it.
        unsafe { &*args.ptr::<Lookup>() }.touch()
    }
    let is_gone = || LAST.lock().expect("not poisoned").strong_count() == 0;
    on_threads(2, move |threads, shared| {
        // Nobody waits for an abandoned job, so the end of an execution is seen from the next.
        assert!(is_gone(), "the last execution's job was leaked");
        let lookup = Arc::new(Lookup::of_nothing());
        *LAST.lock().expect("not poisoned") = Arc::downgrade(&lookup);
        let args = Args { addr: Arc::as_ptr(&lookup) as u64, ..Args::blank() };
        let call = Call { id: 1, block: look_up, args: Some(args), verbatim: true, buffer: None, lookup: Some(lookup) };
        let mut cell = Some(JobCell::new());
        assert!(threads.start(cell.as_ref().expect("made"), Lane::Compute, call));
        if !threads.abandon(&mut cell) {
            assert_eq!(collect(threads, shared), (1, 0));
            assert!(cell.is_some());
        }
        threads.end();
    });
    assert!(is_gone(), "the last execution's job was leaked");
}
