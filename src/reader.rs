//! The read-ahead reader: a file as a stream of blocks behind a descriptor that polls readable. A disk is never "ready"; a
//! block that has been read is, so the reader keeps positional reads in flight and signals when the next block in order is
//! in memory.
//!
//! It drives itself, so the program polls nothing but the descriptor: on up to two lanes, each a thread that turns a loop of
//! its own. What is cached is copied by the thread that asks for it, on a ring too, and one lane alone would be slower
//! than a plain read(2) by what it costs to wake the program; the second makes that good. A lane goes round:
//!
//! 1. while fewer than `depth` blocks are ahead and one is free, start the read of the next block;
//! 2. turn its loop: without waiting after a start, because what was cached is there at once; else until a read ends, or
//!    the program took or gave back a block and so made room;
//! 3. settle what ended: a short read is the end of the file, an error is the end, too, behind the bytes before it.
//!
//! Everything the two sides share is behind one lock, and the descriptor is written and emptied under it: it is readable
//! exactly while [`Reader::next`] would answer something else than -EAGAIN.
//!
//! A block belongs to the kernel from its start to its settling, then to the reader until it is taken, then to the program
//! until it is released. The memory outlasts the loop, and the loop has nothing in flight when it goes.

use crate::abi::*;
use crate::engine::{self, Loop, shared::Shared};
use crate::op::{self, Refusal};
use crate::sys::sync::{Condvar, Mutex, MutexGuard, Thread, spawn};
use crate::sys::{self, heap, memory::Reservation};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Blocks are aligned to this, and their size is a multiple of it: what O_DIRECT asks for at most on usual disks.
const ALIGN: u64 = 4096;
const MAX_BLOCK_SIZE: u32 = 1 << 30;
const MAX_DEPTH: u32 = 1024;
const LANES: usize = 2;

/// What upcall_reader_config_init() fills in. Measured on 6.18, of a cached file and with O_DIRECT: each hand-over wakes the
/// program, so blocks of half the size took a tenth more processor time; blocks of twice the size, or twice the depth, took
/// more memory and gained little.
pub(crate) fn defaults() -> upcall_reader_config {
    upcall_reader_config {
        size: size_of::<upcall_reader_config>() as u32,
        backend: UPCALL_BACKEND_AUTO,
        block_size: 1 << 20,
        depth: 4,
        offset: 0,
        length: 0,
        reserved: [0; 4],
    }
}

fn check(config: &upcall_reader_config) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal { error: libc::EINVAL, text: text.into() });
    let size = config.block_size;
    if size == 0 || size > MAX_BLOCK_SIZE || !u64::from(size).is_multiple_of(ALIGN) {
        return refuse(format!("config.block_size is {size}, not a multiple of {ALIGN} up to {MAX_BLOCK_SIZE}"));
    }
    if !(1..=MAX_DEPTH).contains(&config.depth) {
        return refuse(format!("config.depth is {}, not 1 to {MAX_DEPTH}", config.depth));
    }
    if config.offset > i64::MAX as u64 {
        return refuse(format!("config.offset is {}, more than any file has", config.offset));
    }
    if config.reserved != [0; 4] {
        return refuse("config.reserved is not zero".to_owned());
    }
    Ok(())
}

/// A descriptor, closed when dropped.
struct Descriptor(i32);

impl Descriptor {
    fn new(opened: i64, what: &'static str) -> Result<Descriptor, Refusal> {
        match opened {
            error @ ..0 => Err(Refusal { error: -error as i32, text: what.into() }),
            fd => Ok(Descriptor(fd as i32)),
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

/// A read in the order of the file: in flight, or ready to be taken.
struct Ahead {
    block: usize,
    /// Bytes of the block that belong to the stream.
    wanted: u64,
    /// Bytes read; None: in flight.
    got: Option<u64>,
}

/// What comes behind the last block.
#[derive(Clone, Copy)]
struct End {
    /// The number of the first block that is not there.
    at: u64,
    /// The block whose read met it: `at`, or the last one before, which is short.
    met_by: u64,
    /// 0 or a negative errno.
    answer: i64,
}

/// What a lane has to do next.
#[derive(PartialEq, Eq, Debug)]
enum Step {
    Read { number: u64, block: usize, offset: u64, len: u64 },
    Wait,
    Leave,
}

/// What the program and the lanes share, under the lock.
struct State {
    /// Blocks are numbered in the order of the file; this is the number of the first in `ahead`, the next to be taken.
    first: u64,
    ahead: VecDeque<Ahead>,
    free: Vec<usize>,
    lent: Vec<bool>,
    end: Option<End>,
    depth: usize,
    block_size: u64,
    /// Where the next read begins, and how many bytes of the window are left.
    offset: u64,
    left: u64,
    /// Readable by poll(2) while `readable`.
    ready: Descriptor,
    readable: bool,
    /// Lanes that wait for something to do, and were not woken yet.
    idle: [bool; LANES],
    leaving: bool,
    /// Whether the lanes' loops are their threads' own.
    owned: [Option<Result<(), i32>>; LANES],
}

impl State {
    fn new(config: &upcall_reader_config, ready: Descriptor) -> State {
        let blocks = config.depth as usize + 1;
        let most = i64::MAX as u64 - config.offset;
        State {
            first: 0,
            ahead: VecDeque::with_capacity(config.depth as usize),
            // The last one released is the first to be used again: it is warm in the cache.
            free: (0..blocks).rev().collect(),
            lent: vec![false; blocks],
            end: None,
            depth: config.depth as usize,
            block_size: u64::from(config.block_size),
            offset: config.offset,
            left: if config.length == 0 { most } else { config.length.min(most) },
            ready,
            readable: false,
            idle: [false; LANES],
            leaving: false,
            owned: [None; LANES],
        }
    }

    fn may_read(&self) -> bool {
        self.end.is_none() && self.ahead.len() < self.depth && !self.free.is_empty()
    }

    /// Decides what a lane does next; a read is counted as started.
    fn step(&mut self, lane: usize) -> Step {
        self.idle[lane] = false;
        if self.leaving {
            return Step::Leave;
        }
        let block = if self.may_read() { self.free.pop() } else { None };
        let Some(block) = block else {
            self.idle[lane] = true;
            return Step::Wait;
        };
        let number = self.first + self.ahead.len() as u64;
        let (offset, wanted) = (self.offset, self.left.min(self.block_size));
        self.ahead.push_back(Ahead { block, wanted, got: None });
        self.offset += wanted;
        self.left -= wanted;
        if self.left == 0 {
            self.end_with(End { at: number + 1, met_by: number + 1, answer: 0 });
        }
        // A window may end anywhere, but O_DIRECT reads whole sectors. What is read beyond is not shown.
        let len = wanted.next_multiple_of(ALIGN).min(i64::MAX as u64 - offset);
        Step::Read { number, block, offset, len }
    }

    /// The lane to wake because there may be room: one that is not idle looks for itself before it waits.
    fn lane_to_wake(&mut self) -> Option<usize> {
        let lane = if self.may_read() { self.idle.iter().position(|&idle| idle) } else { None };
        lane.inspect(|&lane| self.idle[lane] = false)
    }

    /// A read has ended with so many bytes, and with 0 or an error if they are fewer than wanted.
    fn settle(&mut self, number: u64, got: u64, answer: i64) {
        let Some(ahead) = self.ahead.get_mut((number - self.first) as usize) else { return };
        let got = got.min(ahead.wanted);
        ahead.got = Some(got);
        if got < ahead.wanted {
            // The bytes before the end are the last block. None: the end is here.
            self.end_with(End { at: number + u64::from(got > 0), met_by: number, answer });
        }
        self.signal();
    }

    /// Reads end in any order: the end is what the first block in the order of the file met.
    fn end_with(&mut self, end: End) {
        if self.end.is_none_or(|other| end.met_by < other.met_by) {
            self.end = Some(end);
        }
    }

    /// The answer to the program, if there is one.
    fn peek(&self) -> Option<i64> {
        match self.end {
            Some(end) if end.at <= self.first => Some(end.answer),
            _ => self.ahead.front()?.got.map(|got| got as i64),
        }
    }

    /// The next block, or the end. Blocks behind the end stay where they are: no read starts any more.
    fn take(&mut self) -> (i64, Option<usize>) {
        let Some(answer) = self.peek() else { return (-i64::from(libc::EAGAIN), None) };
        if answer <= 0 {
            return (answer, None);
        }
        let block = self.ahead.pop_front().map(|ahead| ahead.block);
        if let Some(block) = block {
            self.first += 1;
            self.lent[block] = true;
        }
        self.signal();
        (answer, block)
    }

    /// Takes a block back. False: it is not lent.
    fn give_back(&mut self, block: usize) -> bool {
        let lent = self.lent.get_mut(block).is_some_and(std::mem::take);
        if lent {
            self.free.push(block);
        }
        lent
    }

    /// Makes the descriptor say what `peek` says.
    fn signal(&mut self) {
        let readable = self.peek().is_some();
        if readable != self.readable {
            self.readable = readable;
            match readable {
                true => sys::eventfd_write(self.ready.0),
                false => sys::eventfd_drain(self.ready.0),
            }
        }
    }
}

/// The blocks in line, and how lanes that wait are woken: by what others may touch of their loops.
struct Line {
    state: Mutex<State>,
    /// A lane's thread has begun.
    begun: Condvar,
    lanes: Vec<Arc<Shared>>,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// See [`State::take`].
    fn next(&self) -> (i64, Option<usize>) {
        let mut state = self.lock();
        let (answer, block) = state.take();
        let lane = if block.is_some() { state.lane_to_wake() } else { None };
        drop(state);
        self.wake(lane);
        (answer, block)
    }

    /// See [`State::give_back`].
    fn give_back(&self, block: usize) -> bool {
        let mut state = self.lock();
        let given = state.give_back(block);
        let lane = if given { state.lane_to_wake() } else { None };
        drop(state);
        self.wake(lane);
        given
    }

    fn wake(&self, lane: Option<usize>) {
        if let Some(lane) = lane {
            self.lanes[lane].nudge();
        }
    }

    /// The lanes are to leave.
    fn close(&self) {
        self.lock().leaving = true;
        self.lanes.iter().for_each(|lane| lane.nudge());
    }
}

/// What the reader and its lanes have in common. The order of the fields is the order of their end.
struct Common {
    #[allow(clippy::vec_box, reason = "a loop's address is known to its owner thread and must not change")]
    lanes: Vec<Box<Loop>>,
    file: Descriptor,
    line: Line,
    ready: i32,
    block_size: usize,
    memory: Reservation,
}

// SAFETY: a lane's loop is touched by the lane's thread alone, which is the first to poll it and so its owner, and after that
// thread's end by whoever drops it; all else is behind the lock, immutable, or made for any thread (Shared).
unsafe impl Send for Common {}
// SAFETY: as above.
unsafe impl Sync for Common {}

/// See the module.
pub(crate) struct Reader {
    common: Arc<Common>,
    threads: Vec<Thread>,
}

impl Reader {
    pub fn create(fd: i32, config: &upcall_reader_config) -> Result<Box<Reader>, Refusal> {
        check(config)?;
        heap::ready().map_err(Refusal::no_memory)?;
        match sys::read_at_refusal(fd) {
            0 => {}
            error => {
                let why = match -error as i32 {
                    libc::ESPIPE => "is a stream, which has no positions to read from",
                    libc::EISDIR => "is a directory",
                    libc::EBADF => "is not open for reading",
                    _ => "cannot be read",
                };
                return Err(Refusal { error: -error as i32, text: format!("fd {fd} {why}").into() });
            }
        }
        let block_size = config.block_size as usize;
        let memory = block_size
            .checked_mul(config.depth as usize + 1)
            .ok_or(libc::ENOMEM)
            .and_then(Reservation::for_transfers)
            .map_err(|error| Refusal { error, text: "no memory for (depth + 1) * block_size bytes".into() })?;
        let file = Descriptor::new(sys::duplicate(fd), "fd cannot be duplicated")?;
        let ready = Descriptor::new(sys::eventfd(), "no descriptor")?;
        let wanted = upcall_config {
            backend: config.backend,
            entries: config.depth,
            // Without a ring, each read that waits for the disk holds a thread.
            workers: config.depth.max(2),
            max_operations: config.depth + 16,
            ..engine::config::defaults()
        };
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        let mut lanes = Vec::new();
        for _ in 0..LANES.min(processors).min(config.depth as usize) {
            lanes.push(Loop::create(&wanted)?);
        }
        let shared = lanes.iter().map(|engine| engine.shared().clone()).collect();
        let common = Arc::new(Common {
            lanes,
            file,
            ready: ready.0,
            line: Line { state: Mutex::new(State::new(config, ready)), begun: Condvar::new(), lanes: shared },
            block_size,
            memory,
        });
        // From here on dropping it ends the lanes that were started.
        let mut reader = Box::new(Reader { common: common.clone(), threads: Vec::new() });
        for lane in 0..common.lanes.len() {
            reader.threads.push(start(common.clone(), lane)?);
        }
        Ok(reader)
    }

    pub fn is_forked(&self) -> bool {
        self.common.lanes[0].is_forked()
    }

    pub fn fd(&self) -> i32 {
        self.common.ready
    }

    /// The next block and its bytes, the end, or -EAGAIN.
    pub fn next(&self) -> (i64, *const c_void) {
        let (answer, block) = self.common.line.next();
        (answer, block.map_or(std::ptr::null(), |block| self.common.address(block)))
    }

    /// The same, but waits: at most so long (negative: no limit), or until a signal handler ran.
    pub fn wait(&self, timeout_ns: i64) -> (i64, *const c_void) {
        let limit = sys::now().saturating_add(timeout_ns.max(0) as u64);
        loop {
            let (answer, block) = self.next();
            if answer != -i64::from(libc::EAGAIN) {
                return (answer, block);
            }
            let left = match timeout_ns {
                ..0 => -1,
                _ => limit.saturating_sub(sys::now()).min(i64::MAX as u64) as i64,
            };
            if left == 0 || sys::wait_readable(self.common.ready, left) < 0 {
                return (answer, std::ptr::null());
            }
        }
    }

    /// Gives a block back. False: it is not a lent block of this reader.
    pub fn release(&self, address: usize) -> bool {
        let Some(distance) = address.checked_sub(self.common.memory.base() as usize) else { return false };
        distance.is_multiple_of(self.common.block_size) && self.common.line.give_back(distance / self.common.block_size)
    }

    /// In a forked child: closes this process's copies of the descriptors. The rest stays as it is, never to be dropped,
    /// since the parent's threads may have been in the middle of it.
    pub fn abandon(&self) {
        let common = &self.common;
        common.lanes.iter().for_each(|engine| engine.abandon());
        sys::close(common.file.0);
        sys::close(common.ready);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.common.line.close();
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

/// Starts a lane's thread, and waits until the loop is its own.
fn start(common: Arc<Common>, lane: usize) -> Result<Thread, Refusal> {
    let ours = common.clone();
    let run = move || {
        sys::thread::block_signals(None);
        let owned = common.lanes[lane].own();
        common.line.lock().owned[lane] = Some(owned);
        common.line.begun.notify_one();
        if owned.is_ok() {
            common.run(lane);
        }
    };
    let thread = spawn(c"upcall-read", run).map_err(|error| Refusal { error, text: "no thread".into() })?;
    let mut state = ours.line.lock();
    loop {
        match state.owned[lane] {
            None => state = ours.line.begun.wait(state).unwrap_or_else(|poison| poison.into_inner()),
            Some(Ok(())) => return Ok(thread),
            Some(Err(error)) => {
                drop(state);
                thread.join();
                return Err(Refusal { error, text: "the ring cannot be enabled".into() });
            }
        }
    }
}

impl Common {
    fn address(&self, block: usize) -> *const c_void {
        self.memory.base().wrapping_add(block * self.block_size).cast()
    }

    /// A lane's thread: see the module.
    fn run(&self, lane: usize) {
        let engine = &self.lanes[lane];
        loop {
            let step = self.line.lock().step(lane);
            let turned = match step {
                Step::Leave => break,
                Step::Wait => engine.poll(-1),
                Step::Read { number, block, offset, len } => {
                    let into = self.address(block).cast_mut();
                    let mut read = op::upcall_op_pread(self.file.0, into, len as usize, offset as i64);
                    read.flags = UPCALL_FULL;
                    read.user = number as usize as *mut c_void;
                    match engine.submit(&[read], None) {
                        0 => engine.poll(0),
                        error => {
                            self.line.lock().settle(number, 0, i64::from(error));
                            0
                        }
                    }
                }
            };
            self.reap(engine);
            if turned < 0 {
                // The loop itself is broken: what is not ready yet will not come.
                let mut state = self.line.lock();
                let at = state.first + state.ahead.iter().take_while(|ahead| ahead.got.is_some()).count() as u64;
                state.end_with(End { at, met_by: at, answer: i64::from(turned) });
                state.signal();
                break;
            }
        }
        engine.finish();
    }

    /// Settles the reads of a lane that have ended.
    fn reap(&self, engine: &Loop) {
        const ROOM: usize = 32;
        let mut room = [const { MaybeUninit::<upcall_event>::uninit() }; ROOM];
        loop {
            let count = engine.reap(&mut room).max(0) as usize;
            for event in &room[..count] {
                // SAFETY: reap has written the first `count`.
                let event = unsafe { event.assume_init_ref() };
                self.line.lock().settle(event.user as usize as u64, event.transferred, event.result.min(0));
            }
            if count < ROOM {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    fn state(depth: u32, offset: u64, length: u64) -> State {
        let config = upcall_reader_config { block_size: BLOCK as u32, depth, offset, length, ..defaults() };
        State::new(&config, Descriptor::new(sys::eventfd(), "no descriptor").expect("a descriptor"))
    }

    /// What poll(2) says, which must be what the next take would answer.
    fn polls(state: &State) -> bool {
        // Miri has eventfds, and no poll.
        let readable = if cfg!(miri) { state.readable } else { sys::poll_now(state.ready.0, libc::POLLIN) != 0 };
        assert_eq!(readable, state.peek().is_some());
        readable
    }

    fn start_all(state: &mut State) -> Vec<(u64, usize, u64, u64)> {
        let mut started = Vec::new();
        while let Step::Read { number, block, offset, len } = state.step(0) {
            started.push((number, block, offset, len));
        }
        started
    }

    const AGAIN: i64 = -(libc::EAGAIN as i64);
    const EIO: i64 = -(libc::EIO as i64);

    #[test]
    fn the_descriptor_follows_the_head_of_the_line() {
        let mut state = state(8, 0, 0);
        assert_eq!(start_all(&mut state).len(), 8);
        for number in [7, 3, 1, 2] {
            state.settle(number, BLOCK, 0);
            assert!(!polls(&state), "block {number} is not the next");
        }
        assert_eq!(state.take(), (AGAIN, None));
        state.settle(0, BLOCK, 0);
        for number in 0..4 {
            assert!(polls(&state), "block {number} is ready");
            assert_eq!(state.take().0, BLOCK as i64);
        }
        assert!(!polls(&state), "block 4 is in flight");
        assert_eq!(state.take(), (AGAIN, None));
    }

    #[test]
    fn the_end_stays_and_hides_what_was_read_behind_it() {
        let mut state = state(4, 0, 0);
        start_all(&mut state);
        state.settle(3, BLOCK, 0);
        state.settle(2, 0, 0);
        assert!(!polls(&state));
        state.settle(1, 10, 0);
        state.settle(0, BLOCK, 0);
        assert_eq!(state.take().0, BLOCK as i64);
        assert!(polls(&state));
        assert_eq!(state.take().0, 10);
        for _ in 0..3 {
            assert!(polls(&state));
            assert_eq!(state.take(), (0, None));
        }
        assert_eq!(state.step(0), Step::Wait);
    }

    #[test]
    fn an_error_comes_behind_the_bytes_before_it_and_an_earlier_one_wins() {
        for behind_first in [true, false] {
            let mut state = state(4, 0, 0);
            start_all(&mut state);
            let order = if behind_first { [3, 2] } else { [2, 3] };
            for number in order {
                match number {
                    3 => state.settle(3, 0, -i64::from(libc::EINVAL)),
                    _ => state.settle(2, 5, EIO),
                }
            }
            state.settle(0, BLOCK, 0);
            state.settle(1, BLOCK, 0);
            assert_eq!([(); 4].map(|()| state.take().0), [BLOCK as i64, BLOCK as i64, 5, EIO]);
            assert!(polls(&state));
        }
    }

    #[test]
    fn a_window_ends_where_it_was_said_and_reads_whole_pages() {
        let mut state = state(8, 512, BLOCK + 10);
        let started = start_all(&mut state);
        assert_eq!(
            started.iter().map(|read| (read.2, read.3)).collect::<Vec<_>>(),
            [(512, BLOCK), (512 + BLOCK, BLOCK)]
        );
        state.settle(0, BLOCK, 0);
        // More than wanted was there; an error behind the window is not the window's.
        state.settle(1, 11, EIO);
        assert_eq!([(); 3].map(|()| state.take().0), [BLOCK as i64, 10, 0]);
    }

    #[test]
    fn no_read_goes_beyond_what_an_offset_can_say() {
        let most = i64::MAX as u64;
        let mut state = state(8, most - 10, u64::MAX);
        assert_eq!(start_all(&mut state).iter().map(|read| (read.2, read.3)).collect::<Vec<_>>(), [(most - 10, 10)]);
    }

    #[test]
    fn an_idle_lane_is_woken_once_per_room() {
        let mut state = state(1, 0, 0);
        assert_eq!(state.lane_to_wake(), None);
        assert!(matches!(state.step(0), Step::Read { .. }));
        assert_eq!((state.step(0), state.step(1)), (Step::Wait, Step::Wait));
        assert_eq!(state.lane_to_wake(), None);
        state.settle(0, BLOCK, 0);
        state.take();
        assert_eq!([(); 3].map(|()| state.lane_to_wake()), [Some(0), Some(1), None]);
    }

    /// Reads end, blocks are taken and come back in any order: a block is in one place, the order is the file's, never more
    /// than `depth` are ahead, and the descriptor is right after every step.
    #[test]
    fn any_order_of_events_keeps_the_promises() {
        let mut seed = 1u64;
        let mut chance = |most: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % most
        };
        for round in 0..if cfg!(miri) { 3 } else { 300 } {
            let depth = 1 + chance(8) as u32;
            let length = chance(40) as u64 * BLOCK / 2;
            let mut state = state(depth, 0, 0);
            let (mut flying, mut lent, mut bytes) = (Vec::new(), Vec::new(), 0);
            for step in 0..10_000 {
                match chance(4) {
                    0 => {
                        if let Step::Read { number, block, offset, .. } = state.step(chance(LANES)) {
                            assert!(!lent.contains(&block) && flying.iter().all(|&(_, other, _)| other != block));
                            flying.push((number, block, offset));
                        }
                    }
                    1 if !flying.is_empty() => {
                        let (number, _, offset) = flying.swap_remove(chance(flying.len()));
                        state.settle(number, length.saturating_sub(offset).min(BLOCK), 0);
                    }
                    2 => match state.take() {
                        (got, Some(block)) => {
                            assert!(got as u64 == BLOCK || bytes + got as u64 == length);
                            bytes += got as u64;
                            lent.push(block);
                        }
                        (0, None) => break,
                        (answer, _) => assert_eq!(answer, AGAIN),
                    },
                    3 if !lent.is_empty() => {
                        let block = lent.swap_remove(chance(lent.len()));
                        assert!(state.give_back(block) && !state.give_back(block));
                    }
                    _ => {}
                }
                polls(&state);
                assert!(flying.len() <= depth as usize && state.ahead.len() <= depth as usize);
                assert!(step < 9_999, "round {round} did not end");
            }
            assert_eq!(bytes, length, "round {round}");
        }
    }
}

/// In every interleaving; see `engine::models`.
#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::engine::models::{explore_with, sleep, spawn};
    use crate::sys::sync::modelled::kernel;

    const BLOCK: u64 = ALIGN;

    /// What a lane's thread does, with a disk that is done at once and a loop that only sleeps and is nudged.
    fn lane(line: &Line, number: usize) {
        loop {
            let step = line.lock().step(number);
            match step {
                Step::Leave => break,
                Step::Wait => {
                    while !line.lanes[number].was_nudged() {
                        sleep(&line.lanes[number], || false);
                    }
                }
                Step::Read { number, len, .. } => line.lock().settle(number, len, 0),
            }
        }
    }

    fn read_all(preemptions: usize, lanes: usize, depth: u32, blocks: u64) {
        explore_with(preemptions, move || {
            let config = upcall_reader_config { block_size: BLOCK as u32, depth, length: blocks * BLOCK, ..defaults() };
            let ready = Descriptor::new(sys::eventfd(), "no descriptor").expect("a descriptor");
            let fd = ready.0;
            let shared = (0..lanes).map(|_| Arc::new(Shared::new(1).expect("address space"))).collect();
            let line =
                Arc::new(Line { state: Mutex::new(State::new(&config, ready)), begun: Condvar::new(), lanes: shared });
            let threads: Vec<_> = (0..lanes)
                .map(|number| {
                    let line = line.clone();
                    spawn(move || lane(&line, number))
                })
                .collect();
            let mut taken = 0;
            loop {
                // Readable exactly while the next call would answer: a lane that was not woken leaves this one waiting.
                kernel::wait_readable(fd);
                match line.next() {
                    (0, None) => break,
                    (got, Some(block)) => {
                        assert_eq!(got, BLOCK as i64);
                        taken += 1;
                        assert!(line.give_back(block) && !line.give_back(block));
                    }
                    (answer, None) => panic!("{answer} of a descriptor that is readable"),
                }
            }
            assert_eq!(taken, blocks);
            line.close();
            threads.into_iter().for_each(|thread| thread.join());
            assert!(kernel::is_readable(fd), "the end stays");
        });
    }

    #[test]
    fn one_lane_reads_all() {
        read_all(3, 1, 1, 3);
    }

    #[test]
    fn two_lanes_read_all() {
        read_all(2, 2, 1, 2);
    }

    #[test]
    #[ignore = "takes long: make test-models"]
    fn two_lanes_read_all_in_every_order() {
        read_all(3, 2, 1, 2);
    }
}
