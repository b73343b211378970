//! The engine against a driver that answers whatever a test says, in whatever order: what the kernel does rarely, here it
//! does at once.

use super::core::Core;
use super::settle::Delivery;
use super::shared::{Accepted, Message, Shared, Submission};
use super::slot::{bits, rung};
use super::turn::Next;
use super::{Engine, config};
use crate::abi::*;
use crate::driver::{Cancel, Driver, Outcome, Until};
use crate::engine::buffers::Pool;
use crate::op::{self, Args};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Remembers what it was asked, answers what it was told.
#[derive(Default)]
pub(super) struct Script {
    started: Vec<u32>,
    attempted: Vec<u32>,
    pub asked: Vec<u32>,
    lowered: usize,
    outcomes: VecDeque<Outcome>,
    /// What is asked to end ends.
    pub obedient: bool,
}

impl Script {
    pub fn answer(&mut self, index: u32, result: i64) {
        self.outcomes.push_back(Outcome::done(index, result));
    }
}

impl Driver for Script {
    fn adopt(&mut self, _: &mut Core) -> Result<(), i32> {
        Ok(())
    }
    fn release(&mut self, _: &mut Core) -> Result<(), i32> {
        Ok(())
    }
    fn start(&mut self, core: &mut Core, index: u32) {
        core.slots[index].rung = rung::NATIVE;
        self.started.push(index);
    }
    fn start_by_attempt(&mut self, core: &mut Core, index: u32) {
        core.slots[index].rung = rung::QUEUED;
        self.attempted.push(index);
    }
    fn cancel(&mut self, _: &mut Core, index: u32) -> Cancel {
        self.asked.push(index);
        if self.obedient {
            self.answer(index, CANCELED);
        }
        Cancel::Asked
    }
    fn lower(&mut self, _: &Core, _: u32) {
        self.lowered += 1;
    }
    fn has_work(&self) -> bool {
        !self.outcomes.is_empty()
    }
    fn has_leftovers(&mut self) -> bool {
        self.has_work()
    }
    /// Sleeps as the drivers do, where it is a model that sleeps.
    fn turn(&mut self, core: &mut Core, until: Until) -> Result<(), i32> {
        if until.may_wait() && core.shared.prepare_sleep() {
            #[cfg(loom)]
            crate::sys::sync::modelled::kernel::read(core.shared.wake);
        }
        core.shared.awake();
        Ok(())
    }
    fn next(&mut self, _: &mut Core) -> Outcome {
        self.outcomes.pop_front().unwrap_or(Outcome::NONE)
    }
    fn prepare_embedded_sleep(&mut self, _: &mut Core) {}
    fn embed(&mut self, _: &mut Core) -> Result<i32, i32> {
        Err(libc::ENOSYS)
    }
    fn look_again(&mut self, _: &mut Core, _: u32) {}
    fn supports(&self, _: u32) -> i32 {
        UPCALL_EMULATED
    }
    fn quiesce(&mut self, _: &mut Core) {}
    fn quiesce_threads(&mut self, _: &mut Core) {}
    fn abandon(&mut self) {}
}

/// One turn.
pub(super) fn poll(engine: &mut Engine<Script>, until: Until) -> Vec<upcall_event> {
    engine.gather(until).expect("a turn");
    let mut events = Vec::new();
    let mut delivery = Delivery::BLANK;
    while let Some(next) = engine.next(&mut delivery) {
        assert!(matches!(next, Next::Event));
        events.push(delivery.event);
    }
    events
}

struct Bench {
    engine: Engine<Script>,
    /// An open descriptor for operations that are never really done.
    fd: i32,
}

const RECV: u32 = 45;
const POLL: u32 = 60;
const NOP: u32 = 1;

impl Bench {
    fn new() -> Bench {
        let shared = Arc::new(Shared::new(1000).expect("address space"));
        Bench { engine: Engine::new(Core::new(shared), Script::default(), &config::defaults()), fd: 0 }
    }

    fn op(&self, kind: u32, flags: u32) -> upcall_op {
        // 100 bytes "at" an address nobody touches.
        upcall_op { fd: self.fd, flags, addr: 4096, len: 100, ..op::blank(kind) }
    }

    fn submit(&mut self, ops: &[upcall_op]) -> Vec<u64> {
        let mut ids = vec![MaybeUninit::new(0u64); ops.len()];
        self.engine.submit(ops, Some(&mut ids)).expect("accepted");
        // SAFETY: initialised above, whatever submit wrote.
        ids.into_iter().map(|id| unsafe { id.assume_init() }).collect()
    }

    fn answer(&mut self, index: u32, result: i64) {
        self.engine.driver.answer(index, result);
    }

    /// One turn: (id, result, transferred, flags) of each event.
    fn turn(&mut self) -> Vec<(u64, i64, u64, u32)> {
        let events = poll(&mut self.engine, Until::Now);
        events.into_iter().map(|event| (event.id, event.result, event.transferred, event.flags)).collect()
    }

    fn last_started(&self) -> u32 {
        *self.engine.driver.started.last().expect("something was started")
    }
}

const CANCELED: i64 = -(libc::ECANCELED as i64);

/// Hazard 4: the kernel could not make a worker; nobody asked for a cancel.
#[test]
fn a_cancel_nobody_asked_for_is_never_told() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    bench.answer(index, CANCELED);
    assert_eq!(bench.turn(), []);
    assert_eq!(bench.engine.driver.attempted, [index]);
    bench.answer(index, 7);
    assert_eq!(bench.turn(), [(id, 7, 7, 0)]);
}

/// Hazards 17 and 18.
#[test]
fn eintr_and_eagain_are_the_engines_affair() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    for error in [libc::EINTR, libc::EAGAIN, libc::EINTR] {
        bench.answer(index, -i64::from(error));
        assert_eq!(bench.turn(), []);
    }
    bench.answer(index, 3);
    assert_eq!(bench.turn(), [(id, 3, 3, 0)]);
}

/// Hazards 5 and 6: only the target's own completion decides.
#[test]
fn a_cancel_that_comes_too_late_changes_nothing() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    assert!(bench.engine.cancel(id) && bench.engine.cancel(id));
    assert_eq!(bench.engine.driver.asked, [index], "asked once");
    assert_eq!(bench.turn(), []);
    bench.answer(index, 100);
    assert_eq!(bench.turn(), [(id, 100, 100, 0)]);
    assert!(!bench.engine.cancel(id), "the id is stale");
}

/// Hazard 2 of the kernel table: 5.10 answers a cancelled worker with EINTR.
#[test]
fn eintr_of_a_cancelled_operation_is_the_cancel() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    assert!(bench.engine.cancel(id));
    bench.answer(index, -i64::from(libc::EINTR));
    assert_eq!(bench.turn(), [(id, CANCELED, 0, 0)]);
    bench.engine.count();
    assert_eq!(bench.engine.core.shared.stats().cancelled, 1);
}

/// Hazard 20.
#[test]
fn a_full_transfer_goes_on_until_all_is_moved() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, UPCALL_FULL)])[0];
    let index = bench.last_started();
    for (part, left) in [(10, 90), (1, 89), (80, 9)] {
        bench.answer(index, part);
        assert_eq!(bench.turn(), []);
        assert_eq!(bench.engine.core.slots[index].args.len, left);
        assert_eq!(bench.engine.core.slots[index].args.addr, 4096 + 100 - left);
    }
    bench.answer(index, 9);
    assert_eq!(bench.turn(), [(id, 100, 100, 0)]);
}

#[test]
fn a_full_transfer_cancelled_half_way_tells_what_it_moved() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, UPCALL_FULL)])[0];
    let index = bench.last_started();
    bench.answer(index, 40);
    assert_eq!(bench.turn(), []);
    assert!(bench.engine.cancel(id));
    bench.answer(index, 2);
    assert_eq!(bench.turn(), [(id, CANCELED, 42, 0)], "the late part counts, and it does not go on");
}

#[test]
fn end_of_file_and_errors_keep_the_count() {
    let mut bench = Bench::new();
    for (last, result) in [(0, 40), (-i64::from(libc::ECONNRESET), -i64::from(libc::ECONNRESET))] {
        let id = bench.submit(&[bench.op(RECV, UPCALL_FULL)])[0];
        let index = bench.last_started();
        bench.answer(index, 40);
        bench.answer(index, last);
        assert_eq!(bench.turn(), [(id, result, 40, 0)]);
    }
}

#[test]
fn a_deadline_is_a_cancel_by_the_clock() {
    let mut bench = Bench::new();
    let op = upcall_op { timeout_ns: 1, ..bench.op(RECV, 0) };
    let id = bench.submit(&[op])[0];
    let index = bench.last_started();
    std::thread::sleep(std::time::Duration::from_micros(10));
    assert_eq!(bench.turn(), []);
    assert_eq!(bench.engine.driver.asked, [index]);
    bench.answer(index, CANCELED);
    assert_eq!(bench.turn(), [(id, -i64::from(libc::ETIMEDOUT), 0, UPCALL_EXPIRED)]);
    let network = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    bench.answer(index, -i64::from(libc::ETIMEDOUT));
    assert_eq!(bench.turn(), [(network, -i64::from(libc::ETIMEDOUT), 0, 0)], "the network's own is told apart");
}

/// Hazard 15: the kernel ends a multishot with a positive result when its queue overflows.
#[test]
fn a_multishot_the_kernel_stopped_is_armed_again() {
    let mut bench = Bench::new();
    let op = upcall_op { arg: 1, callback: Some(nothing), ..bench.op(POLL, UPCALL_MULTISHOT) };
    let id = bench.submit(&[op])[0];
    let index = bench.last_started();
    bench.engine.driver.outcomes.push_back(Outcome::done(index, 1).with_more(true));
    bench.answer(index, 1);
    assert_eq!(bench.turn(), [(id, 1, 0, UPCALL_MORE), (id, 1, 0, UPCALL_MORE)]);
    assert_eq!(bench.engine.driver.started.len(), 2);
}

#[test]
fn a_multishots_last_result_after_a_cancel_is_told_before_the_final_event() {
    let mut bench = Bench::new();
    let op = upcall_op { arg: 1, callback: Some(nothing), ..bench.op(POLL, UPCALL_MULTISHOT) };
    let id = bench.submit(&[op])[0];
    let index = bench.last_started();
    assert!(bench.engine.cancel(id));
    bench.answer(index, 1);
    assert_eq!(bench.turn(), [(id, 1, 0, UPCALL_MORE)]);
    assert_eq!(bench.turn(), [(id, CANCELED, 0, 0)]);
    assert_eq!(bench.engine.driver.started.len(), 1);
}

unsafe extern "C-unwind" fn nothing(_: *mut upcall_loop, _: *const upcall_event) {}

/// A native refusal is tried the other way; when that works the kind is lowered, when it says the same it is told.
#[test]
fn a_lack_of_support_is_unseen_and_a_real_refusal_is_told() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    bench.answer(index, -i64::from(libc::EINVAL));
    assert_eq!(bench.turn(), []);
    bench.answer(index, 5);
    assert_eq!(bench.turn(), [(id, 5, 5, 0)]);
    assert_eq!(bench.engine.driver.lowered, 1);
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    bench.answer(index, -i64::from(libc::EINVAL));
    assert_eq!(bench.turn(), []);
    bench.answer(index, -i64::from(libc::EINVAL));
    assert_eq!(bench.turn(), [(id, -i64::from(libc::EINVAL), 0, 0)]);
    assert_eq!(bench.engine.driver.lowered, 1);
}

/// A thread holds a buffer without having been lent it: the pool seems to have one, and the operation must not try again at
/// once, for ever.
#[test]
fn a_shortage_in_a_pool_that_has_buffers_is_no_spin() {
    let mut bench = Bench::new();
    let pool = Pool::new(&bench.engine.core.shared, 1, 64).expect("memory");
    pool.split(0);
    let buffers = Arc::as_ptr(&pool).cast_mut().cast();
    let id = bench.submit(&[upcall_op { addr: 0, len: 0, buffers, ..bench.op(RECV, 0) }])[0];
    let index = bench.last_started();
    let mut answered = 0;
    while bench.engine.driver.attempted.is_empty() {
        if bench.engine.driver.started.len() > answered {
            answered = bench.engine.driver.started.len();
            bench.answer(index, -i64::from(libc::ENOBUFS));
        }
        assert_eq!(bench.turn(), []);
        assert!(!bench.engine.pools_have_work(), "it waits for time to pass, not for the pool");
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert!(
        (3..20).contains(&answered),
        "at once, then with pauses, then the other set, which may have one: {answered}"
    );
    bench.answer(index, -i64::from(libc::ENOBUFS));
    assert_eq!(bench.turn(), []);
    while bench.engine.driver.started.len() == answered {
        std::thread::sleep(std::time::Duration::from_micros(100));
        assert_eq!(bench.turn(), []);
    }
    bench.engine.driver.outcomes.push_back(Outcome::done(index, 5).with_buffer(Some(0)));
    assert_eq!(bench.turn(), [(id, 5, 5, 0)]);
    assert_eq!(pool.lent(), 1);
}

/// One whose buffers are all lent waits for a return.
#[test]
fn a_dry_pool_is_waited_for() {
    let mut bench = Bench::new();
    let pool = Pool::new(&bench.engine.core.shared, 1, 64).expect("memory");
    pool.split(0);
    let buffers = Arc::as_ptr(&pool).cast_mut().cast();
    let op = upcall_op { addr: 0, len: 0, buffers, ..bench.op(RECV, 0) };
    let ids = bench.submit(&[op, op]);
    let started = bench.engine.driver.started.clone();
    bench.engine.driver.outcomes.push_back(Outcome::done(started[0], 5).with_buffer(Some(0)));
    bench.answer(started[1], -i64::from(libc::ENOBUFS));
    assert_eq!(bench.turn(), [(ids[0], 5, 5, 0)]);
    assert_eq!(bench.turn(), []);
    assert_eq!((bench.engine.driver.started.len(), bench.engine.driver.attempted.len()), (2, 0));
    assert!(pool.give_back(pool.address(0) as usize));
    assert_eq!(bench.turn(), []);
    assert_eq!(bench.engine.driver.started.len(), 3);
}

/// The other way is interrupted: it has not told yet.
#[test]
fn a_lack_of_support_is_not_told_by_an_interruption() {
    let mut bench = Bench::new();
    let id = bench.submit(&[bench.op(RECV, 0)])[0];
    let index = bench.last_started();
    bench.answer(index, -i64::from(libc::EINVAL));
    bench.answer(index, -i64::from(libc::EINTR));
    assert_eq!(bench.turn(), []);
    assert_eq!((bench.engine.driver.started.len(), &bench.engine.driver.attempted), (1, &vec![index, index]));
    bench.answer(index, 5);
    assert_eq!(bench.turn(), [(id, 5, 5, 0)]);
    assert_eq!(bench.engine.driver.lowered, 1);
}

#[test]
fn a_short_transfer_severs_its_chain() {
    let mut bench = Bench::new();
    let ops = [bench.op(RECV, UPCALL_LINK), bench.op(RECV, UPCALL_LINK_ALWAYS), bench.op(RECV, 0)];
    let ids = bench.submit(&ops);
    assert_eq!(bench.engine.driver.started.len(), 1);
    let index = bench.last_started();
    bench.answer(index, 99);
    let mut events = bench.turn();
    events.extend(bench.turn());
    events.extend(bench.turn());
    assert_eq!(events, [(ids[0], 99, 99, 0), (ids[1], CANCELED, 0, 0), (ids[2], CANCELED, 0, 0)]);
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn outcomes_in_any_order_reach_their_own_operations() {
    let mut bench = Bench::new();
    let ops: Vec<upcall_op> = (0..50).map(|number| upcall_op { user: number as *mut _, ..bench.op(NOP, 0) }).collect();
    let ids = bench.submit(&ops);
    let started = bench.engine.driver.started.clone();
    for place in (0..50).map(|step| step * 7 % 50) {
        bench.answer(started[place], place as i64);
    }
    let events = bench.turn();
    assert_eq!(events.len(), 50);
    for (step, event) in events.into_iter().enumerate() {
        assert_eq!((event.0, event.1), (ids[step * 7 % 50], (step * 7 % 50) as i64));
    }
    bench.engine.count();
    let stats = bench.engine.core.shared.stats();
    assert_eq!((stats.submitted, stats.completed, stats.in_flight), (50, 50, 0));
}

/// The inbox: another thread's operations are taken in by the owner's turn, in order, with the ids they were given.
#[test]
fn a_submission_from_outside_starts_with_its_id_and_can_be_cancelled_before() {
    // A slow machine would have time to ask again.
    crate::sys::stop_clock(1);
    let mut bench = Bench::new();
    let shared = bench.engine.core.shared.clone();
    let outside = |op: upcall_op| {
        let index = shared.take_foreign().expect("a slot");
        let id = shared.table.open_foreign(index, op.fd);
        let mut args = Args::blank();
        args.fill(&op, op::of(op.kind as u8));
        let accepted = vec![Accepted { op, id, args, side: None }];
        shared.tell(Message::Submit(Box::new(Submission { accepted, at: 0 })));
        id
    };
    let first = outside(bench.op(RECV, 0));
    let second = outside(bench.op(RECV, 0));
    assert!(shared.table.is_in_flight(first) && shared.table.is_in_flight(second));
    assert!(bench.engine.cancel(first), "the owner takes the inbox in to find it");
    assert_eq!(bench.turn(), []);
    let started = bench.engine.driver.started.clone();
    assert_eq!(bench.engine.driver.asked, started[..1]);
    bench.answer(started[1], 4);
    bench.answer(started[0], CANCELED);
    assert_eq!(bench.turn(), [(second, 4, 4, 0), (first, CANCELED, 0, 0)]);
    assert!(!shared.table.is_in_flight(first) && !shared.table.is_in_flight(second));
    assert!(!bench.engine.core.slots[started[0]].has(bits::LISTED) || bench.engine.in_flight() == 0);
}
