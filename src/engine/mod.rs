//! What every backend shares. The life of an operation: [`check`] refuses or accepts it, [`admit`] gives it a slot and starts
//! it or parks it, the driver does it, [`settle`] turns outcomes into events, and [`turn`] delivers them. [`surface`] is the
//! loop as the C functions see it, from whichever thread.
//!
//! Deadlines, links, full transfers, multishot re-arming and buffer lending are here, once, so that both backends have them
//! and mean the same.

pub(crate) mod admit;
pub(crate) mod buffers;
pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod core;
pub(crate) mod descriptors;
pub(crate) mod embed;
#[cfg(test)]
mod fabricated;
pub(crate) mod group;
#[cfg(all(test, loom))]
pub(crate) mod models;
mod outside;
pub(crate) mod owner;
#[cfg(all(test, not(loom), not(miri)))]
mod property;
pub(crate) mod seconds;
pub(crate) mod settle;
pub(crate) mod shared;
pub(crate) mod signals;
pub(crate) mod slot;
pub(crate) mod surface;
pub(crate) mod timers;
pub(crate) mod turn;

pub(crate) use surface::Loop;

use crate::abi::*;
use crate::driver::Driver;
use buffers::Pool;
use core::Core;
use embed::Embed;
use group::{Group, Steps};
use signals::Signals;
use slot::NONE;
use std::collections::{BTreeSet, VecDeque};
use std::ffi::c_void;
use std::sync::Arc;
use timers::Timers;

/// The owner thread's part of a loop.
pub(crate) struct Engine<D: Driver> {
    pub core: Core,
    pub driver: D,
    timers: Timers,
    groups: Vec<Group>,
    free_groups: Vec<u32>,
    /// Operations that ended without the driver, oldest first.
    ended_first: u32,
    ended_last: u32,
    ended_count: usize,
    /// Events of repeating sleeps and of signals: id and result.
    ticks: VecDeque<(u64, i64)>,
    signals: Signals,
    /// Closes whose descriptors have nothing else in flight.
    closers: Vec<u64>,
    posts: VecDeque<(unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void), *mut c_void)>,
    records: VecDeque<upcall_event>,
    /// Records that were reaped: the number of the first that was not.
    reaped: u64,
    /// What the operations of records made beyond their result, with the numbers of the records.
    claims: VecDeque<(u64, Claim)>,
    pools: Vec<Arc<Pool>>,
    /// Buffers are registered.
    registered: bool,
    /// Operations in flight, and those of them that do not keep run alive.
    in_flight: usize,
    background: usize,
    /// What happened since the counters were last brought up to date.
    tally: Tally,
    /// Deliveries of the engine's own.
    streak: u32,
    /// Operations to cancel whose submission is still on its way through the inbox.
    /// No hash set: where there are no random numbers to be had, Rust's ends the process.
    early_cancels: BTreeSet<u64>,
    /// The clock of this turn; 0: not read yet.
    clock: u64,
    pub in_turn: bool,
    /// Messages of other threads are being taken in.
    taking_in: bool,
    max_events: usize,
    slow_callback_ns: u64,
    spin_ns: u64,
    /// How long the last sleep was, for deciding whether looking again pays.
    last_sleep_ns: u64,
    embed: Option<Embed>,
    /// What may still be delivered in this turn.
    budget: turn::Budget,
}

/// What comes with a record and goes if that is dropped.
enum Claim {
    /// What an operation of this kind made: [`Side::made`](crate::op::side::Side::made).
    Made(u8, u64),
    /// A descriptor that came with a message.
    Passed(i32),
}

/// Counted in plain words on the shortest way; added to the counters that others read at the end of each call.
#[derive(Default)]
struct Tally {
    submitted: u64,
    /// Native operations that completed the short way.
    native: u64,
    callbacks: u64,
}

impl<D: Driver> Engine<D> {
    /// Brings the counters up to date.
    #[inline]
    pub fn count(&mut self) {
        self.count_submitted();
        let counters = &self.core.shared.counters;
        counters.completed.add(self.tally.native);
        counters.native.add(self.tally.native);
        counters.callbacks.add(self.tally.callbacks);
        (self.tally.native, self.tally.callbacks) = (0, 0);
    }

    #[inline]
    fn count_submitted(&mut self) {
        self.core.shared.counters.submitted.add(std::mem::take(&mut self.tally.submitted));
    }

    pub fn new(core: Core, driver: D, config: &upcall_config) -> Engine<D> {
        Engine {
            core,
            driver,
            timers: Timers::new(),
            groups: Vec::new(),
            free_groups: Vec::new(),
            ended_first: NONE,
            ended_last: NONE,
            ended_count: 0,
            ticks: VecDeque::new(),
            signals: Signals::default(),
            closers: Vec::new(),
            posts: VecDeque::new(),
            records: VecDeque::new(),
            reaped: 0,
            claims: VecDeque::new(),
            pools: Vec::new(),
            registered: false,
            in_flight: 0,
            background: 0,
            tally: Tally::default(),
            streak: 0,
            early_cancels: BTreeSet::new(),
            clock: 0,
            in_turn: false,
            taking_in: false,
            max_events: config.max_events as usize,
            slow_callback_ns: config.slow_callback_ns,
            spin_ns: config.spin_ns,
            last_sleep_ns: u64::MAX,
            embed: None,
            budget: turn::Budget::default(),
        }
    }

    /// CLOCK_MONOTONIC, read once per turn.
    #[inline]
    pub fn now(&mut self) -> u64 {
        if self.clock == 0 {
            self.clock = crate::sys::now();
        }
        self.clock
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Operations that keep run alive, and posts.
    pub fn keeps_running(&self) -> bool {
        self.in_flight > self.background || !self.posts.is_empty()
    }

    /// One more operation in flight, which keeps run alive.
    fn count_in(&mut self) {
        self.in_flight += 1;
    }

    fn keep_post(&mut self, function: unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void), arg: *mut c_void) {
        self.posts.push_back((function, arg));
    }

    fn next_post(&mut self) -> Option<(unsafe extern "C-unwind" fn(*mut upcall_loop, *mut c_void), *mut c_void)> {
        self.posts.pop_front()
    }

    /// The loop ends: its pools tell nobody any more.
    fn orphan_pools(&mut self) {
        for pool in self.pools.drain(..) {
            pool.orphan();
        }
    }

    fn watched_pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// In a forked child: closes this process's copies of the embedding descriptors.
    fn abandon_embed(&mut self) {
        if let Some(embed) = &self.embed {
            embed.close();
        }
    }

    /// Registers buffers. -EBUSY: some are.
    pub fn register_buffers(&mut self, parts: &[libc::iovec]) -> i32 {
        if self.registered {
            return -libc::EBUSY;
        }
        self.driver.register_buffers(parts);
        self.registered = true;
        0
    }

    /// Forgets registered buffers. -EINVAL: none are.
    pub fn unregister_buffers(&mut self) -> i32 {
        if !self.registered {
            return -libc::EINVAL;
        }
        self.driver.unregister_buffers(&mut self.core);
        self.registered = false;
        0
    }

    fn take_group(&mut self) -> u32 {
        self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(Group::default());
            self.groups.len() as u32 - 1
        })
    }

    /// Follows what the end (or beginning) of a grouped operation allows.
    fn follow(&mut self, steps: Steps) {
        for index in steps.start {
            if self.core.def(index).is(crate::op::CLOSES) {
                self.take_in_before_close();
            }
            if self.core.slots[index].state == slot::State::Parked {
                self.start(index);
            }
        }
        for index in steps.sever {
            self.cancel_operation(index, slot::bits::ASKED);
        }
    }
}
