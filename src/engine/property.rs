//! The engine against a kernel that does all a kernel may do: random programs on a driver that answers out of order, hands
//! out twenty completions a turn, ends multishots when its queue is full, says -ECANCELED, EINTR and EAGAIN unasked, moves
//! less than was asked for, comes too late for cancels and lets go of zero-copy data long after the result. Beside it a
//! ledger with one entry per operation, which knows the guarantees and not how they are kept.
//!
//! A program that fails is made smaller, printed, and written to `proptest-regressions/engine/property.txt`, from where it is
//! run again each time. PROPTEST_CASES says how many are tried,
//! PROPTEST_MAX_SHRINK_ITERS how long a smaller one is looked for.

use super::core::Core;
use super::settle::Delivery;
use super::shared::Shared;
use super::slot::{bits, index_of, rung};
use super::turn::Next;
use super::{Engine, config, outside};
use crate::abi::*;
use crate::driver::{Cancel, Driver, Outcome, Until};
use crate::engine::buffers::Pool;
use crate::op;
use crate::sys;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
const CANCELED: i64 = -(libc::ECANCELED as i64);
const EINTR: i64 = -(libc::EINTR as i64);
const EAGAIN: i64 = -(libc::EAGAIN as i64);
const ENOBUFS: i64 = -(libc::ENOBUFS as i64);
const EBADF: i64 = -(libc::EBADF as i64);
const EMFILE: i64 = -(libc::EMFILE as i64);
/// Refusals that may be a lack of support.
const UNSUPPORTED: [i64; 2] = [-(libc::EINVAL as i64), -(libc::EOPNOTSUPP as i64)];

/// Slots of the loop, its `max_events`, and the buffers of its pool.
const CAPACITY: u32 = 48;
const MAX_EVENTS: usize = 6;
const BUFFERS: u32 = 3;
const BUFFER_SIZE: u32 = 64;
/// On kernels since 6.16 one enter yields so many completions.
const PER_ENTER: usize = 20;

// ---- Programs.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nop,
    Recv,
    RecvLent,
    RecvMany,
    Send,
    SendZero,
    Poll,
    PollMany,
    Accept,
    AcceptMany,
    Sleep,
    Ticks,
    Read,
    Write,
    Close,
    /// Refused, and with it the whole submit.
    Invalid,
}
use Kind::*;

impl Kind {
    fn number(self) -> u32 {
        match self {
            Nop => 1,
            Read => 2,
            Write => 3,
            Close => 22,
            Accept | AcceptMany => 43,
            Recv | RecvLent | RecvMany => 45,
            Send | SendZero => 46,
            Poll | PollMany => 60,
            Sleep | Ticks => 64,
            Invalid => 0,
        }
    }

    fn is_multi(self) -> bool {
        matches!(self, RecvMany | PollMany | AcceptMany | Ticks)
    }

    fn lends(self) -> bool {
        matches!(self, RecvLent | RecvMany)
    }

    fn moves(self) -> bool {
        matches!(self, Recv | RecvLent | RecvMany | Send | SendZero | Read | Write)
    }

    fn is_inward(self) -> bool {
        matches!(self, Recv | RecvLent | RecvMany | Read)
    }

    fn is_timer(self) -> bool {
        matches!(self, Sleep | Ticks)
    }
}

#[derive(Clone)]
struct Spec {
    kind: Kind,
    /// Which of the descriptors; files have their own.
    place: usize,
    len: u64,
    full: bool,
    /// 0: none.
    timeout_s: u64,
    callback: bool,
    background: bool,
    order: u32,
    lend_max: u32,
}

/// On one line: a failing program is long enough.
impl std::fmt::Debug for Spec {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spec { kind, place, len, full, timeout_s, callback, background, order, lend_max } = self;
        write!(out, "{kind:?} place {place} len {len} timeout {timeout_s} order {order} lend_max {lend_max}")?;
        let set = [("full", full), ("callback", callback), ("background", background)];
        set.iter().filter(|(_, set)| **set).try_for_each(|(name, _)| write!(out, " {name}"))
    }
}

/// What a request to the kernel ends with, as far as that is possible for it.
#[derive(Clone, Copy, Debug)]
enum What {
    All,
    Part(u64),
    End,
    Reset,
    Interrupted,
    Again,
    Cancelled,
    Invalid,
    Unsupported,
    Shortage,
    Later,
}

#[derive(Clone, Debug)]
enum Step {
    Submit {
        specs: Vec<Spec>,
        outside: bool,
    },
    /// The kernel answers one of its requests, and goes on with it if it is a multishot's.
    Answer {
        which: usize,
        what: What,
        more: bool,
    },
    /// The kernel lets go of the data of one request.
    Release {
        which: usize,
    },
    Turn,
    /// A signal ends the next turn's wait.
    Signal,
    Cancel {
        which: usize,
        outside: bool,
    },
    CancelDescriptor {
        place: usize,
        outside: bool,
    },
    CancelAll {
        outside: bool,
    },
    Pass {
        ms: u64,
    },
    Return {
        which: usize,
    },
    Reap {
        most: usize,
    },
    Post {
        outside: bool,
    },
    /// The step is done inside the next callback.
    Inside(Box<Step>),
}

fn spec() -> impl Strategy<Value = Spec> {
    let kinds = [
        Nop, Recv, Recv, RecvLent, RecvMany, Send, SendZero, SendZero, Poll, PollMany, Accept, AcceptMany, Sleep,
        Ticks, Read, Write, Close,
    ];
    let kind = prop_oneof![60 => proptest::sample::select(kinds.to_vec()), 1 => Just(Invalid)];
    let order = prop_oneof![
        6 => Just(0), 2 => Just(UPCALL_LINK), 2 => Just(UPCALL_LINK_ALWAYS), 1 => Just(UPCALL_DRAIN),
        1 => Just(UPCALL_DRAIN | UPCALL_LINK)
    ];
    let flags = (any::<bool>(), prop_oneof![3 => Just(0), 1 => 1u64..4], any::<bool>(), any::<bool>());
    (kind, 0..2usize, 1..100u64, flags, order, 0..3u32).prop_map(
        |(kind, place, len, (full, timeout_s, callback, background), order, lend_max)| Spec {
            kind,
            place,
            len,
            full,
            timeout_s,
            callback,
            background,
            order,
            lend_max,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        6 => Just(What::All),
        6 => (1..40u64).prop_map(What::Part),
        1 => Just(What::End),
        1 => Just(What::Reset),
        2 => Just(What::Interrupted),
        2 => Just(What::Again),
        3 => Just(What::Cancelled),
        1 => Just(What::Invalid),
        1 => Just(What::Unsupported),
        1 => Just(What::Shortage),
        1 => Just(What::Later),
    ];
    let which = 0..64usize;
    let plain = prop_oneof![
        8 => (vec(spec(), 1..5), any::<bool>()).prop_map(|(specs, outside)| Step::Submit { specs, outside }),
        24 => (which.clone(), what, any::<bool>()).prop_map(|(which, what, more)| Step::Answer { which, what, more }),
        3 => which.clone().prop_map(|which| Step::Release { which }),
        12 => Just(Step::Turn),
        1 => Just(Step::Signal),
        4 => (which.clone(), any::<bool>()).prop_map(|(which, outside)| Step::Cancel { which, outside }),
        1 => (0..3usize, any::<bool>()).prop_map(|(place, outside)| Step::CancelDescriptor { place, outside }),
        1 => any::<bool>().prop_map(|outside| Step::CancelAll { outside }),
        3 => (1..3000u64).prop_map(|ms| Step::Pass { ms }),
        4 => which.prop_map(|which| Step::Return { which }),
        3 => (1..10usize).prop_map(|most| Step::Reap { most }),
        1 => any::<bool>().prop_map(|outside| Step::Post { outside }),
    ];
    plain.prop_flat_map(|step| prop_oneof![9 => Just(step.clone()), 1 => Just(Step::Inside(Box::new(step)))])
}

// ---- The kernel.

struct Request {
    id: u64,
    index: u32,
    /// An attempt, not the ring's.
    attempt: bool,
    handed: bool,
    asked: bool,
    withdrawn: bool,
}

/// What the ledger must hear.
enum Told {
    Started(u64),
    Answered { id: u64, result: i64, attempt: bool },
}

/// A completion on its way.
struct Completion {
    id: u64,
    index: u32,
    attempt: bool,
    result: i64,
    more: bool,
    later: bool,
    withdrawn: bool,
    released: bool,
}

#[derive(Default)]
struct Kernel {
    requests: Vec<Request>,
    /// Zero-copy data in use: one entry per request.
    holds: Vec<(u64, u32)>,
    posted: VecDeque<Completion>,
    visible: VecDeque<Completion>,
    told: Vec<Told>,
    interrupted: bool,
}

impl Kernel {
    fn request(&mut self, core: &mut Core, index: u32, attempt: bool) {
        let id = core.slots[index].id();
        assert!(!self.is_busy_with(id) || core.slots[index].is_zerocopy(), "{id:#x} was started twice");
        core.slots[index].rung = if attempt { rung::QUEUED } else { rung::NATIVE };
        if core.slots[index].is_zerocopy() && !attempt {
            core.side(index).begun += 1;
        }
        self.requests.push(Request { id, index, attempt, handed: false, asked: false, withdrawn: false });
        self.told.push(Told::Started(id));
    }

    /// Whether the kernel may still touch the operation's memory.
    fn is_busy_with(&self, id: u64) -> bool {
        self.requests.iter().any(|request| request.id == id)
            || self.holds.iter().any(|hold| hold.0 == id)
            || self.posted.iter().chain(&self.visible).any(|completion| completion.id == id)
    }

    fn has_posted(&self, id: u64) -> bool {
        self.posted.iter().chain(&self.visible).any(|completion| completion.id == id && !completion.released)
    }
}

impl Driver for Kernel {
    fn adopt(&mut self, _: &mut Core) -> Result<(), i32> {
        Ok(())
    }
    fn release(&mut self, _: &mut Core) -> Result<(), i32> {
        Ok(())
    }
    fn start(&mut self, core: &mut Core, index: u32) {
        self.request(core, index, false);
    }
    fn start_by_attempt(&mut self, core: &mut Core, index: u32) {
        self.request(core, index, true);
    }
    fn cancel(&mut self, core: &mut Core, index: u32) -> Cancel {
        let id = core.slots[index].id();
        if self.has_posted(id) {
            return Cancel::Asked;
        }
        let at = self.requests.iter().position(|request| request.id == id).expect("asked of what was not started");
        let slot = &mut core.slots[index];
        let request = &mut self.requests[at];
        if request.attempt {
            // What may be ready is attempted although its time is over.
            if slot.has(bits::EXPIRED) && !slot.has(bits::ASKED) {
                return Cancel::Asked;
            }
            slot.rung = rung::IDLE;
            self.requests.remove(at);
            return Cancel::Gone;
        }
        if !request.handed && !request.withdrawn {
            request.withdrawn = true;
            slot.bits |= bits::WITHDRAWN;
            if slot.is_zerocopy() {
                core.side(index).begun -= 1;
            }
        } else if !core.def(index).is(op::CLOSES) {
            request.asked = true;
        }
        Cancel::Asked
    }
    fn lower(&mut self, _: &Core, _: u32) {}
    fn has_work(&self) -> bool {
        !self.visible.is_empty()
    }
    fn has_leftovers(&mut self) -> bool {
        self.has_work() || !self.posted.is_empty()
    }
    fn turn(&mut self, _: &mut Core, _: Until) -> Result<(), i32> {
        self.requests.iter_mut().for_each(|request| request.handed = true);
        let count = PER_ENTER.min(self.posted.len());
        self.visible.extend(self.posted.drain(..count));
        if std::mem::take(&mut self.interrupted) { Err(libc::EINTR) } else { Ok(()) }
    }
    fn next(&mut self, core: &mut Core) -> Outcome {
        let Some(completion) = self.visible.pop_front() else { return Outcome::NONE };
        let Completion { id, index, attempt, mut result, mut more, .. } = completion;
        assert_eq!(core.slots[index].id(), id, "an operation was gone before its completion");
        if completion.released {
            return Outcome::released(index);
        }
        if completion.later {
            return Outcome::postponed(index);
        }
        if completion.withdrawn {
            return Outcome::done(index, 0);
        }
        let mut buffer = None;
        if let Some(pool) = core.side_of(index).and_then(|side| side.pool.clone())
            && result > 0
        {
            buffer = if pool.lent() < pool.count { pool.inner().free.pop() } else { None };
            if buffer.is_none() {
                (result, more) = (ENOBUFS, false);
                self.requests.retain(|request| request.id != id);
                // The kernel takes its buffers in order: nothing came after.
                self.posted.retain(|completion| completion.id != id);
                self.visible.retain(|completion| completion.id != id);
            }
        }
        self.told.push(Told::Answered { id, result, attempt });
        Outcome::done(index, result).with_more(more).with_buffer(buffer)
    }
    fn prepare_embedded_sleep(&mut self, _: &mut Core) {}
    fn embed(&mut self, _: &mut Core) -> Result<i32, i32> {
        Err(libc::ENOSYS)
    }
    fn look_again(&mut self, _: &mut Core, _: u32) {}
    fn supports(&self, _: u32) -> i32 {
        UPCALL_NATIVE
    }
    fn quiesce(&mut self, _: &mut Core) {}
    fn quiesce_threads(&mut self, _: &mut Core) {}
    fn abandon(&mut self) {}
}

// ---- The ledger.

struct Entry {
    spec: Spec,
    fd: i32,
    accepted_at: u64,
    /// The op before it in its submit, and all of them, if their order matters.
    group: Option<(usize, usize)>,
    started: bool,
    moved: u64,
    /// The kernel's answers, and whether to an attempt.
    answers: Vec<(i64, bool)>,
    asked: bool,
    /// A close of its descriptor was in flight at the same time.
    near_close: bool,
    /// Accepted while its descriptor was being closed: no close knows it before it starts.
    unknown: bool,
    told: Option<(i64, u64, u32)>,
    result: Option<i64>,
    lent: u32,
    periods: u64,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.result.is_some()
    }

    /// The result that others in its submit go by.
    fn outcome(&self) -> Option<i64> {
        self.result.or(self.told.map(|told| told.0))
    }

    fn succeeded(&self) -> bool {
        let whole = !self.spec.kind.moves() || self.spec.kind.lends() || self.moved == self.spec.len;
        self.outcome().is_some_and(|result| result >= 0) && whole
    }
}

struct World {
    engine: Box<Engine<Kernel>>,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    fds: [i32; 3],
    entries: Vec<Entry>,
    ids: BTreeMap<u64, usize>,
    /// Buffers with the program: address to entry.
    lent: BTreeMap<usize, usize>,
    records: VecDeque<(u64, i64)>,
    /// Posts that were made and not run, per thread.
    posts: [VecDeque<usize>; 2],
    posted: usize,
    inside: VecDeque<Step>,
    now: u64,
    finals: [u64; 3],
    _open: (UnixStream, UnixStream, std::fs::File),
}

unsafe extern "C-unwind" fn callback(_: *mut upcall_loop, _: *const upcall_event) {}
unsafe extern "C-unwind" fn post(_: *mut upcall_loop, _: *mut c_void) {}

impl World {
    fn new() -> World {
        let now = 1000 * SECOND;
        sys::stop_clock(now);
        let shared = Arc::new(Shared::new(CAPACITY).expect("address space"));
        let config = upcall_config { max_events: MAX_EVENTS as u32, ..config::defaults() };
        let engine = Box::new(Engine::new(Core::new(shared.clone()), Kernel::default(), &config));
        let pool = Pool::new(&shared, BUFFERS, BUFFER_SIZE).expect("memory");
        let (one, other) = UnixStream::pair().expect("sockets");
        let file = std::fs::File::open("/proc/self/exe").expect("a file");
        World {
            engine,
            pool,
            shared,
            fds: [one.as_raw_fd(), other.as_raw_fd(), file.as_raw_fd()],
            entries: Vec::new(),
            ids: BTreeMap::new(),
            lent: BTreeMap::new(),
            records: VecDeque::new(),
            posts: Default::default(),
            posted: 0,
            inside: VecDeque::new(),
            now,
            finals: [0; 3],
            _open: (one, other, file),
        }
    }

    fn live(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.ids.iter().filter(|(_, number)| !self.entries[**number].is_over()).map(|(&id, &number)| (id, number))
    }

    /// The id of one of the operations in flight.
    fn pick(&self, which: usize) -> Option<(u64, usize)> {
        let count = self.live().count();
        if count == 0 { None } else { self.live().nth(which % count) }
    }

    fn fd_of(&self, spec: &Spec) -> i32 {
        match spec.kind {
            Nop | Sleep | Ticks | Invalid => -1,
            Read | Write => self.fds[2],
            _ => self.fds[spec.place],
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Submit { specs, outside } => self.submit(specs, *outside),
            Step::Answer { which, what, more } => self.answer(*which, *what, *more),
            Step::Release { which } => self.release(*which),
            Step::Turn => self.turn(),
            Step::Signal => self.engine.driver.interrupted = true,
            Step::Cancel { which, outside } => {
                if let Some((id, number)) = self.pick(*which) {
                    self.entries[number].asked = true;
                    assert!(self.cancel(id, *outside), "{id:#x} is in flight");
                }
                let stale = self.ids.iter().find(|(_, number)| self.entries[**number].is_over()).map(|(&id, _)| id);
                if let Some(id) = stale {
                    assert!(!self.cancel(id, *outside), "{id:#x} is stale");
                }
            }
            Step::CancelDescriptor { place, outside } => {
                let fd = self.fds[*place];
                self.entries.iter_mut().filter(|entry| entry.fd == fd).for_each(|entry| entry.asked = true);
                match outside {
                    true => outside::cancel_each(&self.shared, Some(fd)),
                    false => self.engine.cancel_fd(fd),
                };
            }
            Step::CancelAll { outside } => self.cancel_all(*outside),
            Step::Pass { ms } => self.pass(ms * 1_000_000),
            Step::Return { which } => self.give_back(*which),
            Step::Reap { most } => self.reap(*most),
            Step::Post { outside } => {
                let number = self.posted;
                self.posted += 1;
                self.posts[usize::from(*outside)].push_back(number);
                assert!(outside::post(&self.shared, post, number as *mut c_void));
            }
            Step::Inside(step) => self.inside.push_back((**step).clone()),
        }
        self.hear(None);
    }

    fn cancel(&mut self, id: u64, outside: bool) -> bool {
        match outside {
            true => outside::cancel(&self.shared, id),
            false => self.engine.cancel(id),
        }
    }

    fn cancel_all(&mut self, outside: bool) {
        self.entries.iter_mut().for_each(|entry| entry.asked = true);
        match outside {
            true => outside::cancel_each(&self.shared, None),
            false => self.engine.cancel_all(),
        };
    }

    fn pass(&mut self, ns: u64) {
        self.now += ns;
        sys::stop_clock(self.now);
    }

    fn make(&self, number: usize, spec: &Spec, last: bool) -> upcall_op {
        let kind = spec.kind;
        let mut flags = 0;
        let full = spec.full && matches!(kind, Recv | Send | SendZero | Read | Write);
        for (set, flag) in [
            (full, UPCALL_FULL),
            (kind.is_multi(), UPCALL_MULTISHOT),
            (kind == SendZero, UPCALL_ZEROCOPY),
            (spec.background, UPCALL_BACKGROUND),
        ] {
            flags |= if set { flag } else { 0 };
        }
        flags |= spec.order & !if last || kind.is_multi() { UPCALL_LINK | UPCALL_LINK_ALWAYS } else { 0 };
        upcall_op {
            fd: self.fd_of(spec),
            flags,
            callback: spec.callback.then_some(callback as _),
            user: number as *mut c_void,
            timeout_ns: if kind.is_multi() { 0 } else { spec.timeout_s * SECOND },
            buffers: if kind.lends() { Arc::as_ptr(&self.pool).cast_mut().cast() } else { std::ptr::null_mut() },
            lend_max: if kind.lends() { spec.lend_max } else { 0 },
            // Nobody touches what lies there.
            addr: if kind.moves() && !kind.lends() { 4096 } else { 0 },
            len: match kind {
                Sleep | Ticks => spec.len * SECOND / 40,
                RecvLent | RecvMany => 0,
                _ if kind.moves() => spec.len,
                _ => 0,
            },
            offset: if matches!(kind, Read | Write) { op::CURRENT } else { 0 },
            arg: if matches!(kind, Poll | PollMany) { libc::POLLIN as u32 } else { 0 },
            ..op::blank(kind.number())
        }
    }

    fn submit(&mut self, specs: &[Spec], outside: bool) {
        let first = self.entries.len();
        let ops: Vec<upcall_op> = specs
            .iter()
            .enumerate()
            .map(|(place, spec)| self.make(first + place, spec, place + 1 == specs.len()))
            .collect();
        let mut ids = vec![MaybeUninit::new(0u64); ops.len()];
        // Inside a turn the counters wait for its end.
        self.engine.count();
        let before = self.in_flight();
        let accepted = match outside {
            true => outside::submit(&self.shared, &ops, Some(&mut ids)),
            false => self.engine.submit(&ops, Some(&mut ids)),
        };
        self.engine.count();
        if let Err(refusal) = accepted {
            assert_eq!(self.in_flight(), before, "all or none");
            let room = CAPACITY as usize - self.live().count();
            let invalid = specs.iter().any(|spec| spec.kind == Invalid);
            match refusal.error {
                libc::EINVAL => assert!(invalid, "{}", refusal.text),
                // Of the last free slots some may be kept for the other side.
                libc::EAGAIN => assert!(!invalid && (outside || specs.len() > room), "{}", refusal.text),
                error => panic!("refused with {error}: {}", refusal.text),
            }
            return;
        }
        assert!(specs.iter().all(|spec| spec.kind != Invalid));
        assert_eq!(self.in_flight(), before + ops.len() as u64, "all or none");
        let ordered = ops.iter().any(|op| op.flags & (UPCALL_LINK | UPCALL_LINK_ALWAYS | UPCALL_DRAIN) != 0);
        for (place, spec) in specs.iter().enumerate() {
            // SAFETY: initialised above, whatever submit wrote.
            let id = unsafe { ids[place].assume_init() };
            assert!(id != 0 && self.shared.table.is_in_flight(id));
            let spec = Spec { order: ops[place].flags, ..spec.clone() };
            let fd = ops[place].fd;
            let mut near_close = false;
            for entry in self.entries.iter_mut().filter(|entry| entry.fd == fd && fd >= 0 && !entry.is_over()) {
                near_close |= entry.spec.kind == Close;
                entry.near_close |= spec.kind == Close;
            }
            assert!(self.ids.insert(id, self.entries.len()).is_none(), "{id:#x} was given out twice");
            self.entries.push(Entry {
                spec,
                fd,
                accepted_at: self.now,
                group: ordered.then_some((first, first + place)),
                started: false,
                moved: 0,
                answers: Vec::new(),
                asked: false,
                near_close,
                unknown: near_close,
                told: None,
                result: None,
                lent: 0,
                periods: 0,
            });
        }
    }

    fn in_flight(&self) -> u64 {
        self.shared.stats().in_flight
    }

    /// The kernel's side.
    fn answer(&mut self, which: usize, what: What, more: bool) {
        let kernel = &mut self.engine.driver;
        if kernel.requests.is_empty() {
            return;
        }
        let at = which % kernel.requests.len();
        let Request { id, index, attempt, asked, withdrawn, .. } = kernel.requests[at];
        let entry = &self.entries[self.ids[&id]];
        let kind = entry.spec.kind;
        let left = if kind.lends() { u64::from(BUFFER_SIZE) } else { self.engine.core.slots[index].args.len };
        let all = match kind {
            Poll | PollMany => i64::from(libc::POLLIN),
            Accept | AcceptMany => 1 << 24,
            Nop | Close => 0,
            _ => left as i64,
        };
        let mut later = false;
        let result = match what {
            What::All => all,
            What::Part(count) if kind.moves() => count.min(left) as i64,
            What::End if kind.is_inward() => 0,
            What::Reset if kind != Nop => -i64::from(libc::ECONNRESET),
            What::Interrupted => EINTR,
            What::Again if kind != Close => EAGAIN,
            // An attempt says so when it was asked, and then it is gone; the ring also when it was not.
            What::Cancelled if !attempt && (kind != Close || !asked) => CANCELED,
            What::Invalid => UNSUPPORTED[0],
            What::Unsupported => UNSUPPORTED[1],
            What::Shortage if matches!(kind, Accept | AcceptMany) => EMFILE,
            What::Later if attempt => {
                later = true;
                0
            }
            _ => all,
        };
        let slot = &self.engine.core.slots[index];
        // As the ring's driver arms them: with a callback, and without a limit of lent buffers.
        let armed = kind.is_multi() && slot.callback.is_some() && (!kind.lends() || entry.spec.lend_max == 0);
        let more = more && armed && !attempt && !withdrawn && result > 0 && !asked;
        if !more {
            kernel.requests.remove(at);
        }
        if kind == SendZero && !withdrawn && !later {
            if attempt {
                self.engine.core.side(index).begun += 1;
            } else if result > 0 {
                self.engine.core.side(index).owed += 1;
                self.engine.driver.holds.push((id, index));
            }
        }
        self.engine.driver.posted.push_back(Completion {
            id,
            index,
            attempt,
            result,
            more,
            later,
            withdrawn,
            released: false,
        });
    }

    fn release(&mut self, which: usize) {
        let kernel = &mut self.engine.driver;
        if !kernel.holds.is_empty() {
            let at = which % kernel.holds.len();
            let (id, index) = kernel.holds.remove(at);
            let (attempt, result, more, later, withdrawn) = (false, 0, false, false, false);
            kernel.posted.push_back(Completion { id, index, attempt, result, more, later, withdrawn, released: true });
        }
    }

    fn give_back(&mut self, which: usize) {
        if self.lent.is_empty() {
            return;
        }
        let (&address, &number) = self.lent.iter().nth(which % self.lent.len()).expect("not empty");
        self.lent.remove(&address);
        self.entries[number].lent -= 1;
        assert!(!self.pool.give_back(address + 1) && self.pool.give_back(address) && !self.pool.give_back(address));
    }

    fn reap(&mut self, most: usize) {
        let mut room = vec![MaybeUninit::<upcall_event>::uninit(); most];
        let count = self.engine.reap(&mut room);
        assert_eq!(count, most.min(self.records.len()));
        for place in &room[..count] {
            // SAFETY: reap has written the first `count`.
            let event = unsafe { place.assume_init_ref() };
            assert_eq!(self.records.pop_front(), Some((event.id, event.result)));
        }
    }

    fn turn(&mut self) {
        // A signal is poll's affair; what was ready is delivered all the same.
        let _ = self.engine.gather(Until::Now);
        self.hear(None);
        let mut delivery = Delivery::BLANK;
        let mut count = 0;
        while let Some(next) = self.engine.next(&mut delivery) {
            count += 1;
            match next {
                Next::Event => {
                    let event = delivery.event;
                    self.hear(Some(&event));
                    if delivery.callback.is_none() {
                        self.records.push_back((event.id, event.result));
                        self.engine.keep(event);
                    } else if let Some(step) = self.inside.pop_front()
                        && !matches!(step, Step::Turn)
                    {
                        self.step(&step);
                    }
                }
                Next::Post(_, arg) => {
                    let number = arg as usize;
                    let queue = self.posts.iter_mut().find(|queue| queue.front() == Some(&number));
                    assert_eq!(queue.expect("a post ran twice, or out of its order").pop_front(), Some(number));
                    self.hear(None);
                }
            }
        }
        assert!(count <= MAX_EVENTS, "a turn is bounded");
        self.hear(None);
        self.engine.share_slots();
        self.engine.count();
        self.check_between_turns();
    }

    fn check_between_turns(&self) {
        let stats = self.shared.stats();
        assert_eq!(stats.submitted, self.entries.len() as u64);
        assert_eq!([stats.completed, stats.cancelled, stats.timed_out], self.finals);
        assert_eq!(stats.in_flight, self.live().count() as u64);
        assert_eq!(self.pool.lent() as usize, self.lent.len());
    }

    /// Takes in what the kernel was asked and has answered, and the event that came of it.
    fn hear(&mut self, event: Option<&upcall_event>) {
        let told = std::mem::take(&mut self.engine.driver.told);
        for told in &told {
            if let Told::Answered { id, result, attempt } = *told {
                let entry = &mut self.entries[self.ids[&id]];
                entry.answers.push((result, attempt));
                if entry.spec.kind.moves() && result > 0 {
                    entry.moved += result as u64;
                }
            }
        }
        if let Some(event) = event {
            self.hear_event(event);
        }
        for told in told {
            if let Told::Started(id) = told {
                self.hear_start(id);
            }
        }
    }

    /// What must have ended before an operation starts.
    fn hear_start(&mut self, id: u64) {
        let number = self.ids[&id];
        assert!(!self.entries[number].is_over(), "{id:#x} goes on after its final event");
        if std::mem::replace(&mut self.entries[number].started, true) {
            return;
        }
        let entry = &self.entries[number];
        assert!(!self.is_severed(number), "{id:#x} was severed and starts");
        if let Some((first, _)) = entry.group {
            for before in first..number {
                let other = &self.entries[before];
                let linked = before + 1 == number && other.spec.order & (UPCALL_LINK | UPCALL_LINK_ALWAYS) != 0;
                let drained = self.entries[before..=number].iter().any(|one| one.spec.order & UPCALL_DRAIN != 0);
                assert!(!(linked || drained) || other.outcome().is_some(), "{id:#x} starts before its turn");
            }
        }
        for (other, one) in self.entries.iter().enumerate() {
            if other == number || one.fd != entry.fd || one.fd < 0 || one.is_over() {
                continue;
            }
            let behind = other > number && one.accepted_at >= entry.accepted_at;
            if entry.spec.kind == Close {
                // Behind a close of its own submit it meets the descriptor as it will be then.
                let later = !one.started
                    && one.group.is_some_and(|(first, _)| {
                        self.entries[first..other].iter().any(|early| early.spec.kind == Close && early.fd == one.fd)
                    });
                let sent = one.told.is_some();
                let unknown = one.unknown && !one.started;
                assert!(
                    behind || later || sent || unknown || one.spec.kind == Close,
                    "closed before the other operations ended"
                );
            }
            // Positions of a file: one at a time.
            if matches!(entry.spec.kind, Read | Write) && matches!(one.spec.kind, Read | Write) && one.started {
                panic!("{id:#x} starts beside another operation at the file's position");
            }
        }
    }

    /// A multishot in flight, or what waits for one.
    fn is_endless(&self, number: usize) -> bool {
        let first = self.entries[number].group.map_or(number, |(first, _)| first);
        self.entries[first..=number].iter().any(|one| one.spec.kind.is_multi() && !one.is_over())
    }

    /// The chain before it ended without success.
    fn is_severed(&self, number: usize) -> bool {
        let Some((first, _)) = self.entries[number].group else { return false };
        if number == first {
            return false;
        }
        let before = &self.entries[number - 1];
        let failed = before.outcome().is_some() && !before.succeeded();
        let linked = before.spec.order & (UPCALL_LINK | UPCALL_LINK_ALWAYS) != 0;
        linked && (self.is_severed(number - 1) || (before.spec.order & UPCALL_LINK != 0 && failed))
    }

    fn hear_event(&mut self, event: &upcall_event) {
        let id = event.id;
        let number = *self.ids.get(&id).expect("an event of no operation");
        let severed = self.is_severed(number);
        let busy = self.engine.driver.is_busy_with(id);
        let in_flight = self.shared.table.is_in_flight(id);
        let entry = &mut self.entries[number];
        let kind = entry.spec.kind;
        assert!(!entry.is_over(), "an event after the final one");
        assert_eq!((event.user as usize, event.kind, event.reserved), (number, kind.number(), [0; 2]));
        assert_eq!(event.flags & !(UPCALL_MORE | UPCALL_RELEASED | UPCALL_EXPIRED), 0);
        assert!(![EINTR, EAGAIN, ENOBUFS].contains(&event.result), "result {}", event.result);
        let last = entry.answers.last().copied();
        if !event.buffer.is_null() {
            assert!(kind.lends() && event.transferred > 0);
            let address = event.buffer as usize;
            entry.lent += 1;
            assert!(entry.spec.lend_max == 0 || entry.lent <= entry.spec.lend_max, "more lent than lend_max");
            assert!(self.lent.insert(address, number).is_none(), "a buffer was lent twice");
        } else {
            assert!(!kind.lends() || event.transferred == 0, "bytes without a buffer");
        }
        if event.flags & UPCALL_MORE != 0 {
            assert!(in_flight && event.flags & UPCALL_RELEASED == 0);
            match kind {
                SendZero => {
                    assert!(entry.told.is_none(), "two results");
                    entry.told = Some((event.result, event.transferred, event.flags & UPCALL_EXPIRED));
                    self.check_result(number, event, severed);
                }
                Ticks => {
                    entry.periods += event.result as u64;
                    let span = entry.spec.len * SECOND / 40;
                    assert!(event.result > 0 && entry.accepted_at + entry.periods * span <= self.now, "early");
                }
                _ => {
                    assert!(kind.is_multi());
                    assert_eq!(last.map(|answer| answer.0), Some(event.result), "not what the kernel said");
                    assert!(event.result > 0 || event.result == EMFILE);
                    assert_eq!(event.transferred, if kind.moves() { event.result as u64 } else { 0 });
                }
            }
            return;
        }
        assert!(!busy, "the final event, and the kernel has the operation's memory");
        assert!(!in_flight && !self.shared.table.is_in_flight(id), "the id is stale from the final event on");
        entry.result = Some(event.result);
        assert_eq!(event.flags & UPCALL_RELEASED != 0, entry.told.is_some());
        match entry.told {
            Some(told) => assert_eq!(told, (event.result, event.transferred, event.flags & UPCALL_EXPIRED)),
            None => self.check_result(number, event, severed),
        }
        let class = match event.result {
            _ if event.flags & UPCALL_EXPIRED != 0 => 2,
            CANCELED => 1,
            _ => 0,
        };
        self.finals[class] += 1;
    }

    /// A result is what the kernel said, or somebody asked for it.
    fn check_result(&self, number: usize, event: &upcall_event, severed: bool) {
        let entry = &self.entries[number];
        let kind = entry.spec.kind;
        let full = entry.spec.order & UPCALL_FULL != 0;
        let last = entry.answers.last().copied();
        if !kind.is_multi() {
            assert_eq!(event.transferred, entry.moved, "bytes moved");
        }
        // It was complete before anyone's cancel could take it back.
        let complete = match last {
            None => false,
            Some((answer, _)) if full => answer == 0 || entry.moved == entry.spec.len,
            Some((answer, _)) => answer >= 0 && !kind.is_multi(),
        };
        let expired = event.flags & UPCALL_EXPIRED != 0;
        assert_eq!(expired, event.result == -i64::from(libc::ETIMEDOUT));
        match event.result {
            _ if expired => {
                assert!(!complete && entry.spec.timeout_s > 0);
                assert!(self.now >= entry.accepted_at + entry.spec.timeout_s * SECOND, "before its time");
            }
            CANCELED => {
                assert!(entry.asked || severed || entry.near_close, "a cancel nobody asked for");
                assert!(!complete, "it completed");
            }
            _ if kind.is_timer() => {
                assert_eq!((event.result, kind), (0, Sleep));
                assert!(self.now >= entry.accepted_at + entry.spec.len * SECOND / 40, "early");
            }
            EBADF => assert!(entry.near_close && !entry.started),
            result if result >= 0 => {
                assert!(entry.started);
                // An interrupted close is closed.
                let interrupted = kind == Close && last.is_some_and(|answer| answer.0 == EINTR);
                if full {
                    assert!(complete && result as u64 == entry.moved, "not in full");
                } else {
                    assert!(interrupted || last.is_some_and(|answer| answer.0 == result), "not what the kernel said");
                }
            }
            result => {
                assert_eq!(last.map(|answer| answer.0), Some(result), "not what the kernel said");
                if UNSUPPORTED.contains(&result) {
                    let other = entry.answers.iter().any(|&(answer, attempt)| answer < 0 && !attempt);
                    assert!(last.is_some_and(|answer| answer.1) && other, "refused without another try");
                }
            }
        }
    }

    /// With a kernel that does its work, and no cancel, everything that ends by itself does.
    fn settle_down(&mut self) {
        self.inside.clear();
        for round in 0.. {
            let unfinished: BTreeSet<usize> =
                self.live().map(|(_, number)| number).filter(|&number| !self.is_endless(number)).collect();
            if unfinished.is_empty() && self.posts.iter().all(VecDeque::is_empty) {
                break;
            }
            assert!(round < 500, "never ends: {unfinished:?}");
            self.work(What::All);
        }
        for round in 0.. {
            if self.live().count() == 0 {
                break;
            }
            assert!(round < 500, "never cancelled: {:?}", self.live().collect::<Vec<_>>());
            self.cancel_all(round % 2 == 0);
            self.work(What::Cancelled);
        }
        self.reap(usize::from(u16::MAX));
        while !self.lent.is_empty() {
            self.give_back(0);
        }
        self.turn();
        assert_eq!(self.engine.in_flight(), 0);
        assert!(!self.engine.keeps_running() && self.engine.driver.told.is_empty());
        assert!(self.pool.retire(), "the pool is nobody's");
        assert_eq!(self.ids.keys().filter(|&&id| self.shared.table.is_in_flight(id)).count(), 0);
        // No slot was lost.
        let committed = self.shared.table.committed();
        let taken: BTreeSet<u32> = self.ids.keys().map(|&id| index_of(id)).collect();
        assert!(taken.len() as u32 <= committed && committed <= CAPACITY);
    }

    /// The kernel answers all it has, the program gives back and reaps, and time passes.
    fn work(&mut self, what: What) {
        while !self.engine.driver.requests.is_empty() {
            self.answer(0, what, false);
        }
        while !self.engine.driver.holds.is_empty() {
            self.release(0);
        }
        self.turn();
        while !self.lent.is_empty() {
            self.give_back(0);
        }
        self.reap(100);
        self.pass(SECOND / 10);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        sys::stop_clock(0);
        self.pool.orphan();
    }
}

proptest! {
    #[test]
    fn random_programs_keep_the_guarantees(steps in vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle_down();
    }
}
