//! The loop as the C functions see it: which thread may do what, and where a call goes.

use super::core::Core;
use super::shared::{Message, Owner, Shared, Submission};
use super::slot::{NONE, State, bits, index_of};
use super::{Engine, config, outside, owner, turn};
use crate::abi::*;
use crate::driver::Driver;
use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
use crate::ffi::fail;
use crate::op::Refusal;
use crate::sys::{self, checkers, heap};
use std::cell::UnsafeCell;
use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An engine with either driver. One per loop, so that its size does not matter.
#[allow(clippy::large_enum_variant, reason = "a loop has one, in place")]
enum Either {
    Uring(Engine<Uring>),
    Epoll(Engine<Epoll>),
}

/// See the module.
pub(crate) struct Loop {
    shared: Arc<Shared>,
    reason: CString,
    backend: upcall_backend,
    engine: UnsafeCell<Either>,
}

/// Runs `$body` with `$engine` bound to a reference to the engine. Owner thread only; the body calls nothing of the program's.
macro_rules! with {
    ($this:expr, $engine:ident => $body:expr) => {
        // SAFETY: the owner thread alone comes here (checked by the gate), and the reference does not live across a
        // callback.
        match unsafe { &mut *$this.engine.get() } {
            Either::Uring($engine) => $body,
            Either::Epoll($engine) => $body,
        }
    };
}

impl Loop {
    /// Makes a loop on the backend asked for, or the best there is.
    pub fn create(wanted: &upcall_config) -> Result<Box<Loop>, Refusal> {
        heap::ready().map_err(Refusal::no_memory)?;
        config::check(wanted)?;
        checkers::detect();
        let asked = config::backend(wanted)?;
        let mask = config::mask()?;
        let error_of = |error: i32, text: &str| Refusal { error, text: text.to_owned().into() };
        let shared =
            Arc::new(Shared::new(wanted.max_operations).map_err(|error| error_of(error, "no memory or descriptors"))?);
        let mut reason = String::new();
        let mut ring = None;
        if asked != UPCALL_BACKEND_EPOLL {
            match Uring::new(&shared, wanted.entries.next_power_of_two(), wanted.workers, mask) {
                Ok(driver) => {
                    reason = driver.setup_name();
                    ring = Some(driver);
                }
                Err(denied) if asked == UPCALL_BACKEND_IO_URING => return Err(error_of(denied.error, &denied.reason)),
                // No descriptors: epoll would fail as well, and hiding it helps nobody.
                Err(denied) if matches!(denied.error, libc::EMFILE | libc::ENFILE) => {
                    return Err(error_of(denied.error, &denied.reason));
                }
                Err(denied) => reason = denied.reason,
            }
        } else {
            reason.push_str(match wanted.backend {
                UPCALL_BACKEND_EPOLL => "epoll: asked for by config.backend",
                _ => "epoll: asked for by the environment variable UPCALL_BACKEND",
            });
        }
        let core = Core::new(shared.clone());
        let (backend, engine) = match ring {
            Some(driver) => (UPCALL_BACKEND_IO_URING, Either::Uring(Engine::new(core, driver, wanted))),
            None => {
                let driver = Epoll::new(&shared, wanted.workers).map_err(|error| error_of(error, "epoll_create1"))?;
                (UPCALL_BACKEND_EPOLL, Either::Epoll(Engine::new(core, driver, wanted)))
            }
        };
        Ok(Box::new(Loop {
            shared,
            reason: CString::new(reason).unwrap_or_default(),
            backend,
            engine: UnsafeCell::new(engine),
        }))
    }

    #[inline(always)]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The pointer the program knows the loop by.
    #[inline(always)]
    pub fn handle(&self) -> *mut upcall_loop {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    // Who calls.

    #[inline(always)]
    pub fn is_forked(&self) -> bool {
        self.shared.is_forked()
    }

    /// The calling thread is the owner, or becomes it.
    pub fn own(&self) -> Result<(), i32> {
        loop {
            match self.shared.owner() {
                Owner::Me => return Ok(()),
                Owner::Another => return Err(libc::EPERM),
                Owner::Dead => return Err(libc::EOWNERDEAD),
                Owner::Nobody => {
                    if self.shared.adopt() {
                        let adopted = with!(self, engine => engine.driver.adopt(&mut engine.core));
                        match adopted {
                            Ok(()) => owner::remember(self),
                            Err(error) => {
                                self.shared.release(false);
                                return Err(error);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Whether a turn of this loop is under way on this thread.
    pub fn is_in_turn(&self) -> bool {
        self.shared.is_mine() && with!(self, engine => engine.in_turn)
    }

    /// The owner thread is exiting: ends what is in flight while the thread exists.
    pub fn owner_exits(&self) {
        if self.is_forked() || self.shared.owner() != Owner::Me {
            return;
        }
        with!(self, engine => {
            let Engine { driver, core, .. } = engine;
            driver.quiesce(core);
            driver.leave_thread();
        });
        self.shared.release(true);
    }

    // Submit, cancel, post: any thread.

    #[inline(always)]
    pub fn submit(&self, ops: &[upcall_op], ids: Option<&mut [MaybeUninit<u64>]>) -> i32 {
        if !self.shared.is_mine() {
            return match outside::submit(&self.shared, ops, ids) {
                Ok(()) => 0,
                Err(refusal) => refused(refusal.error, &refusal.text),
            };
        }
        if self.shared.closing.load(Ordering::Relaxed) {
            return refused(libc::ESHUTDOWN, "upcall_submit: the loop is closing or closed");
        }
        let result = with!(self, engine => {
            let result = engine.submit(ops, ids);
            if !engine.in_turn {
                engine.after_outside_call();
            }
            result
        });
        match result {
            Ok(()) => 0,
            Err(refusal) => refused(refusal.error, &refusal.text),
        }
    }

    pub fn cancel(&self, id: upcall_id) -> i32 {
        if self.shared.is_mine() {
            let found = with!(self, engine => {
                let found = engine.cancel(id);
                engine.touched();
                found
            });
            return if found { 0 } else { not_in_flight(id) };
        }
        if outside::cancel(&self.shared, id) { 0 } else { not_in_flight(id) }
    }

    pub fn cancel_fd(&self, fd: i32) -> i32 {
        if self.shared.is_mine() {
            return with!(self, engine => {
                let count = engine.cancel_fd(fd);
                engine.touched();
                count
            });
        }
        if fd < 0 { 0 } else { outside::cancel_each(&self.shared, Some(fd)) }
    }

    pub fn cancel_all(&self) -> i32 {
        if self.shared.is_mine() {
            return with!(self, engine => {
                let count = engine.cancel_all();
                engine.touched();
                count
            });
        }
        outside::cancel_each(&self.shared, None)
    }

    pub fn post(&self, function: unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void), arg: *mut c_void) -> i32 {
        if let Err(error) = heap::ready() {
            return refused(error, "upcall_post: no memory");
        }
        if !outside::post(&self.shared, function, arg) {
            return refused(libc::ESHUTDOWN, "upcall_post: the loop is closing or closed");
        }
        if self.shared.is_mine() {
            with!(self, engine => engine.touched());
        }
        0
    }

    pub fn stop(&self) -> i32 {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.nudge();
        0
    }

    pub fn hold(&self) -> i32 {
        self.shared.holds.fetch_add(1, Ordering::SeqCst);
        0
    }

    pub fn unhold(&self) -> i32 {
        let taken =
            self.shared.holds.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |holds| (holds > 0).then(|| holds - 1));
        match taken {
            Err(_) => refused(libc::EINVAL, "upcall_unhold: nothing is held"),
            Ok(holds) => {
                if holds == 1 {
                    self.shared.nudge();
                }
                0
            }
        }
    }

    // Turns: the owner thread.

    /// One poll. The gate has made the calling thread the owner.
    pub fn poll(&self, timeout_ns: i64) -> i32 {
        self.turn(timeout_ns, true)
    }

    #[inline(always)]
    fn turn(&self, timeout_ns: i64, mind_records: bool) -> i32 {
        // SAFETY: the owner thread, outside a turn (checked by the gate); only raw pointers are kept.
        match unsafe { &mut *self.engine.get() } {
            Either::Uring(engine) => turn::poll(self, std::ptr::from_mut(engine), timeout_ns, mind_records),
            Either::Epoll(engine) => turn::poll(self, std::ptr::from_mut(engine), timeout_ns, mind_records),
        }
    }

    pub fn run(&self) -> i32 {
        loop {
            let stopped = self.shared.stopped.load(Ordering::SeqCst);
            let busy = with!(self, engine => {
                engine.look_outside();
                engine.keeps_running()
            });
            if !stopped && !busy && !self.shared.has_messages() && self.shared.holds.load(Ordering::SeqCst) <= 0 {
                return 0;
            }
            // A message that is left may be one that delivers nothing.
            let waits = !stopped && (busy || self.shared.holds.load(Ordering::SeqCst) > 0);
            let result = self.turn(if waits { -1 } else { 0 }, false);
            if result < 0 {
                return result;
            }
            if self.shared.stopped.swap(false, Ordering::SeqCst) {
                return 1;
            }
        }
    }

    pub fn reap(&self, room: &mut [MaybeUninit<upcall_event>]) -> i32 {
        with!(self, engine => {
            let count = engine.reap(room) as i32;
            engine.touched();
            count
        })
    }

    pub fn close(&self, timeout_ns: i64) -> i32 {
        self.shared.refuse_new_work();
        let limit = match timeout_ns {
            ..0 => None,
            _ => Some(sys::now().saturating_add(timeout_ns as u64)),
        };
        let mut all_asked = false;
        loop {
            // Posts and submissions that were accepted are taken in. Once all of them are, everything has been asked to end.
            if !all_asked {
                with!(self, engine => engine.cancel_all());
                all_asked = !self.shared.has_messages();
            }
            let busy = with!(self, engine => engine.in_flight() > 0 || engine.keeps_running());
            if !busy && !self.shared.has_messages() {
                return 0;
            }
            let wait = match limit {
                _ if !busy => 0,
                None => -1,
                Some(at) => at.saturating_sub(sys::now()).min(i64::MAX as u64) as i64,
            };
            let result = self.turn(wait, false);
            let over = limit.is_some_and(|at| sys::now() >= at);
            let left = with!(self, engine => engine.in_flight() > 0 || engine.keeps_running());
            if result < 0 || (over && (left || self.shared.has_messages())) {
                // What could not be ended in time goes on, and so does the loop.
                self.shared.closing.store(false, Ordering::SeqCst);
                return if result < 0 { result } else { -libc::ETIMEDOUT };
            }
        }
    }

    /// Everything before the memory is given back: no operation is in flight afterwards, and no record is left.
    pub fn finish(&self) -> i32 {
        match self.shared.owner() {
            Owner::Dead => {
                if self.shared.inherit() {
                    self.bury();
                }
            }
            _ => {
                if let Err(error) = self.own() {
                    return -error;
                }
                // A turn that failed (no memory in the kernel …) may succeed the next time; what is in flight has to end.
                let mut tries = 0;
                while let closed @ ..0 = self.close(-1) {
                    tries += 1;
                    if tries == 1000 {
                        return closed;
                    }
                    sys::thread::pause(1_000_000);
                }
            }
        }
        let records = with!(self, engine => engine.drop_records());
        for event in records {
            with!(self, engine => engine.return_record(&event));
        }
        // No thread may look at a job any more when the side blocks go, and no pool may write to a loop that is gone.
        with!(self, engine => {
            let Engine { driver, core, .. } = engine;
            driver.quiesce_threads(core);
            driver.leave_thread();
            engine.orphan_pools();
        });
        owner::forget(self);
        0
    }

    /// What a dead owner had in flight ends in -EOWNERDEAD; its driver is quiet already.
    fn bury(&self) {
        self.shared.refuse_new_work();
        with!(self, engine => {
            engine.in_turn = true;
            engine.orphan_all();
        });
        loop {
            // SAFETY: this thread has inherited the loop, and no turn is under way.
            let next = match unsafe { &mut *self.engine.get() } {
                Either::Uring(engine) => bury_one(self, engine),
                Either::Epoll(engine) => bury_one(self, engine),
            };
            if !next {
                with!(self, engine => engine.in_turn = false);
                return;
            }
        }
    }

    pub fn detach(&self) -> i32 {
        let busy = with!(self, engine => {
            engine.look_outside();
            engine.in_flight() > 0 || engine.keeps_running()
        });
        if busy || self.shared.has_messages() {
            return refused(libc::EBUSY, "upcall_loop_detach: operations or posts are in flight");
        }
        let released = heap::ready().and_then(|()| with!(self, engine => engine.driver.release(&mut engine.core)));
        if let Err(error) = released {
            return refused(error, "upcall_loop_detach: no new ring");
        }
        owner::forget(self);
        self.shared.release(false);
        0
    }

    pub fn fd(&self) -> i32 {
        match heap::ready().and_then(|()| with!(self, engine => engine.embed())) {
            Ok(fd) => fd,
            Err(error) => refused(error, "upcall_fd: no descriptor"),
        }
    }

    pub fn register_buffers(&self, parts: &[libc::iovec]) -> i32 {
        if let Err(error) = heap::ready() {
            return refused(error, "upcall_register_buffers: no memory");
        }
        match with!(self, engine => engine.register_buffers(parts)) {
            0 => 0,
            error => refused(-error, "upcall_register_buffers: buffers are registered already"),
        }
    }

    pub fn unregister_buffers(&self) -> i32 {
        match with!(self, engine => engine.unregister_buffers()) {
            0 => 0,
            error => refused(-error, "upcall_unregister_buffers: no buffers are registered"),
        }
    }

    // Questions.

    pub fn now(&self) -> u64 {
        if self.shared.is_mine() { with!(self, engine => engine.now()) } else { sys::now() }
    }

    pub fn backend(&self) -> upcall_backend {
        self.backend
    }

    pub fn reason(&self) -> &CString {
        &self.reason
    }

    pub fn supports(&self, kind: upcall_kind) -> i32 {
        // SAFETY: the table of native kinds only ever changes from true to false, on the owner thread; a read that misses
        // the change is as good as one made before it.
        match unsafe { &*self.engine.get() } {
            Either::Uring(engine) => engine.driver.supports(kind),
            Either::Epoll(engine) => engine.driver.supports(kind),
        }
    }

    pub fn stats(&self) -> upcall_stats {
        if self.shared.is_mine() {
            with!(self, engine => engine.count());
        }
        upcall_stats { backend: self.backend, ..self.shared.stats() }
    }

    /// In a forked child: closes the descriptors this process inherited.
    pub fn abandon(&self) {
        // SAFETY: the child has one thread, and the parent's engine state is a private copy here.
        match unsafe { &mut *self.engine.get() } {
            Either::Uring(engine) => engine.abandon(),
            Either::Epoll(engine) => engine.abandon(),
        }
        sys::close(self.shared.wake);
    }
}

#[cold]
fn not_in_flight(id: upcall_id) -> i32 {
    fail(libc::ENOENT, format_args!("upcall_cancel: no operation {id:#x} is in flight"))
}

fn refused(error: i32, text: &str) -> i32 {
    fail(error, text)
}

/// Delivers one thing of a loop whose owner has died. False: nothing is left.
fn bury_one<D: Driver>(this: &Loop, engine: *mut Engine<D>) -> bool {
    let mut delivery = super::settle::Delivery::BLANK;
    // SAFETY: the loop's engine; this thread has inherited it, and no reference lives across the callback.
    let next = unsafe { &mut *engine }.next_of_the_dead(&mut delivery);
    match next {
        None => false,
        Some(turn::Next::Event) => {
            turn::hand_out(this, engine, &delivery);
            true
        }
        Some(turn::Next::Post(function, arg)) => {
            // SAFETY: the program's function with the program's argument, as promised to upcall_post.
            unsafe { function(this.handle(), arg) };
            true
        }
    }
}

impl<D: Driver> Engine<D> {
    /// A submit outside a turn: others see the counter, and an outside wait ends.
    #[inline(always)]
    fn after_outside_call(&mut self) {
        self.count_submitted();
        self.touched();
    }

    /// The buffer of a record that is dropped goes back to its pool.
    fn return_record(&mut self, event: &upcall_event) {
        if event.buffer.is_null() {
            return;
        }
        for pool in self.watched_pools() {
            if pool.give_back(event.buffer as usize) {
                break;
            }
        }
    }

    /// Every operation ends in -EOWNERDEAD, also those that wait in the inbox.
    fn orphan_all(&mut self) {
        while let Some(message) = self.core.shared.next_message() {
            match message {
                Message::Submit(submission) => self.bury_submission(*submission),
                Message::Post(function, arg) => self.keep_post(function, arg),
                Message::Cancel(_) | Message::Returned => {}
            }
        }
        for index in 0..self.core.slots.table().committed() {
            let slot = &self.core.slots[index];
            if super::slot::is_live_id(slot.id()) && !matches!(slot.state, State::Free | State::Inbox | State::Ended) {
                self.core.slots[index].bits |= bits::ORPHAN;
                // The driver is quiet: the kernel has let go of everything.
                if let Some(side) = self.core.side_of(index) {
                    side.owed = 0;
                }
                self.finish(index, -i64::from(libc::EOWNERDEAD));
            }
        }
    }

    fn bury_submission(&mut self, submission: Submission) {
        for mut one in submission.accepted {
            let index = index_of(one.id);
            let slot = &mut self.core.slots[index];
            slot.callback = one.op.callback;
            slot.user = one.op.user;
            slot.transferred = 0;
            slot.kind = one.op.kind as u8;
            slot.bits = bits::FOREIGN | bits::ORPHAN;
            slot.side = NONE;
            slot.rung = super::slot::rung::IDLE;
            if let Some(pool) = one.side.as_mut().and_then(|side| side.pool.take()) {
                pool.leave();
            }
            self.count_in();
            self.finish(index, -i64::from(libc::EOWNERDEAD));
        }
    }

    fn next_of_the_dead(&mut self, out: &mut super::settle::Delivery) -> Option<turn::Next> {
        if let Some((function, arg)) = self.next_post() {
            return Some(turn::Next::Post(function, arg));
        }
        *out = self.next_ended()?;
        Some(turn::Next::Event)
    }

    /// Closes what a forked child inherited.
    fn abandon(&mut self) {
        self.driver.abandon();
        self.abandon_embed();
    }
}
