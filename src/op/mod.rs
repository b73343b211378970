//! The catalogue: one entry per operation, by family. An entry says everything about an operation that is not the same
//! for all: its constructor, what its arguments must be, what is copied at submit, and its up to three meanings in system
//! calls: as an io_uring entry, as a non-blocking attempt, and as a blocking call for a thread. Adding an operation
//! touches its family's file and a test; the header, the symbol list and the catalogue follow from it.
//!
//! Entries are data that the engine and the drivers read. They know slots, callbacks and queues by no name.

mod compute;
mod directory;
mod file;
mod path;
mod process;
mod readiness;
mod socket;
mod stream;
mod time;
mod transfer;
mod xattr;

pub(crate) mod side;

pub(crate) use compute::Lookup;
pub(crate) use file::upcall_op_pread;

use crate::abi::*;
use crate::sys::sync::AtomicI32;
use io_uring::squeue::Entry;
use side::Side;
use std::borrow::Cow;
use std::sync::atomic::Ordering;

/// What the forms of an operation work on: its arguments, with copied metadata at stable addresses. Transfer progress is
/// applied in place, so a form always sees what is left to do.
#[repr(C)]
pub(crate) struct Args {
    pub addr: u64,
    pub addr2: u64,
    pub len: u64,
    pub offset: u64,
    pub offset2: u64,
    /// Atomic because other threads look for the operations on a descriptor.
    pub fd_word: AtomicI32,
    pub arg: u32,
    pub arg2: u32,
    /// What a non-blocking form remembers between attempts; 0 at each start.
    pub stage: u32,
}

impl Args {
    /// Arguments to be filled in.
    pub fn blank() -> Args {
        Args {
            addr: 0,
            addr2: 0,
            len: 0,
            offset: 0,
            offset2: 0,
            fd_word: AtomicI32::new(-1),
            arg: 0,
            arg2: 0,
            stage: 0,
        }
    }

    #[inline(always)]
    pub fn fd(&self) -> i32 {
        self.fd_word.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub fn fill(&mut self, op: &upcall_op, def: &OpDef) {
        self.addr = op.addr;
        self.addr2 = op.addr2;
        self.len = op.len;
        self.offset = op.offset;
        self.offset2 = op.offset2;
        // Others look for it: only what is a descriptor is one.
        self.fd_word.store(if def.is(FD | DIRFD) { op.fd } else { -1 }, Ordering::Relaxed);
        self.arg = op.arg;
        self.arg2 = op.arg2;
        self.stage = 0;
    }

    /// A free slot names no descriptor.
    #[inline(always)]
    pub fn forget_fd(&self) {
        self.fd_word.store(-1, Ordering::Relaxed);
    }

    /// Becomes equal to `other`, which has the same descriptor: others may be looking at that word.
    pub fn take(&mut self, other: &Args) {
        let Args { addr, addr2, len, offset, offset2, fd_word: _, arg, arg2, stage } = *other;
        debug_assert_eq!(self.fd(), other.fd());
        self.addr = addr;
        self.addr2 = addr2;
        self.len = len;
        self.offset = offset;
        self.offset2 = offset2;
        self.arg = arg;
        self.arg2 = arg2;
        self.stage = stage;
    }

    pub fn copy(&self) -> Args {
        Args { fd_word: AtomicI32::new(self.fd()), ..*self }
    }

    /// The second descriptor, of an operation that has two.
    #[inline(always)]
    pub fn fd2(&self) -> i32 {
        self.arg2 as i32
    }

    /// The length one call may ask for (read(2): at most 0x7ffff000 bytes are transferred).
    #[inline(always)]
    pub fn call_len(&self) -> u32 {
        self.len.min(MAX_RW_COUNT) as u32
    }

    #[inline(always)]
    pub fn ptr<T>(&self) -> *mut T {
        self.addr as usize as *mut T
    }

    #[inline(always)]
    pub fn ptr2<T>(&self) -> *mut T {
        self.addr2 as usize as *mut T
    }
}

/// read(2): the most that one call transfers on Linux.
pub(crate) const MAX_RW_COUNT: u64 = 0x7fff_f000;

/// In [`Decision::Wait`]: the events are those of the second descriptor.
pub(crate) const SECOND: u32 = 1 << 30;

/// What a non-blocking attempt answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// Over: a value or a negative errno.
    Done(i64),
    /// Nothing happened yet: attempt again when the descriptor shows one of these poll(2) events.
    Wait(u32),
    /// A thread of the pool has to do it: it ends in bounded time.
    Pool,
    /// A thread of its own has to do it: it may wait without limit.
    Own,
    /// Nothing happened and nothing will tell: attempt again a little later.
    Later,
    /// From `amend` only: the next native request.
    Native,
}

/// A facts word says what the engine must know of a kind.
pub(crate) type Facts = u32;
/// `fd` is a descriptor the operation works on.
pub(crate) const FD: Facts = 1;
/// `fd` is the directory of a path, AT_FDCWD allowed.
pub(crate) const DIRFD: Facts = 1 << 1;
/// The result counts bytes moved.
pub(crate) const MOVES: Facts = 1 << 2;
/// UPCALL_FULL is allowed.
pub(crate) const CAN_FULL: Facts = 1 << 3;
/// UPCALL_MULTISHOT is allowed.
pub(crate) const CAN_MULTI: Facts = 1 << 4;
/// `op.buffers` is allowed.
pub(crate) const CAN_LEND: Facts = 1 << 5;
/// The result is a descriptor: delivered or closed, never dropped.
pub(crate) const NEW_FD: Facts = 1 << 6;
/// Works at the descriptor's own position: one at a time on a regular file.
pub(crate) const CURSOR: Facts = 1 << 7;
/// Takes an offset: -ESPIPE on a stream; `offset` advances with progress.
pub(crate) const POSITIONAL: Facts = 1 << 8;
/// The data is named by `Side::iov` (through `Side::msg` with MESSAGE).
pub(crate) const VECTOR: Facts = 1 << 9;
/// The data is named by `Side::msg`.
pub(crate) const MESSAGE: Facts = 1 << 10;
/// Moves towards memory; without it, out of memory.
pub(crate) const INWARD: Facts = 1 << 11;
/// Length 0 completes with 0 on a stream without touching the descriptor.
pub(crate) const EMPTY_IS_DONE: Facts = 1 << 12;
/// Ends when the clock says so: the engine does it all.
pub(crate) const TIMER: Facts = 1 << 13;
/// Ends the descriptor's other operations first.
pub(crate) const CLOSES: Facts = 1 << 14;
/// A computation: never takes the pool's last worker.
pub(crate) const COMPUTE: Facts = 1 << 15;
/// A multishot that meets a shortage (EMFILE …) reports it once and goes on.
pub(crate) const SHORTAGE: Facts = 1 << 16;
/// A multishot of it needs `op.buffers`.
pub(crate) const MULTI_LENDS: Facts = 1 << 17;
/// A multishot of it that goes on waits for the next arrival; its level was reported.
pub(crate) const EDGE: Facts = 1 << 19;
/// `amend` looks at results, too, not only at errors.
pub(crate) const AMENDS_ALL: Facts = 1 << 20;
/// On a thread it works on nothing of the program's: asked to end it ends at once, and its thread goes on alone.
pub(crate) const GIVEN_UP: Facts = 1 << 27;
/// Has no arguments.
pub(crate) const NO_ARGS: Facts = 1 << 21;
/// `arg2` is a second descriptor as `fd` is; `offset` and `offset2`, unless they are [`CURRENT`], advance with progress.
pub(crate) const TWO_FDS: Facts = 1 << 22;
/// What waits on the descriptor may end by it, untold.
pub(crate) const SHUTS: Facts = 1 << 30;
/// UPCALL_ZEROCOPY is allowed.
pub(crate) const CAN_ZEROCOPY: Facts = 1 << 23;
/// A write whose reader may be gone: the ring would raise SIGPIPE.
pub(crate) const PIPE_SIGNAL: Facts = 1 << 18;
/// What it moves is records, as many as fit: a link goes on after any number of them.
pub(crate) const RECORDS: Facts = 1 << 28;
/// Its native form has 32 bits for the length: a longer one goes another way.
pub(crate) const NARROW: Facts = 1 << 29;

/// It has a `copy`: the catalogue sees to this one.
pub(crate) const COPIES: Facts = 1 << 26;
/// Ends when a signal is delivered: the engine does it all.
pub(crate) const SIGNAL: Facts = 1 << 24;
/// Where nothing tells it is attempted at least every 20 ms.
pub(crate) const IMPATIENT: Facts = 1 << 25;

/// Writes an entry where the kernel will read it: made elsewhere and copied it costs 20 ns more.
pub(crate) type RingForm = fn(&Args, &mut std::mem::MaybeUninit<Entry>);

/// How the kernel is to lend.
#[derive(Clone, Copy)]
pub(crate) struct Lending {
    /// From this buffer group.
    pub group: u16,
    pub multishot: bool,
    /// One completion may fill several buffers.
    pub bundle: bool,
}

/// See [`OpDef::passed`].
pub(crate) type Passed = fn(&Args, &Side, *const u8, &mut dyn FnMut(i32));

/// Makes the entry that lets the kernel pick from a buffer group, where there is one.
pub(crate) type LentForm = fn(&Args, Lending) -> Option<Entry>;

/// An offset that says "at the descriptor's own position".
pub(crate) const CURRENT: u64 = u64::MAX;

/// A [`RingForm`] from an expression that makes the entry.
macro_rules! form {
    (|$args:tt| $entry:expr) => {
        Some(|args: &Args, out: &mut std::mem::MaybeUninit<io_uring::squeue::Entry>| {
            let $args = args;
            out.write($entry);
        })
    };
}
pub(crate) use form;

/// One entry of the catalogue; aligned so that finding it is a shift.
#[repr(align(128))]
pub(crate) struct OpDef {
    pub kind: upcall_kind,
    pub name: &'static str,
    pub facts: Facts,
    /// Refuses arguments that can be known to be wrong.
    pub check: Option<fn(&upcall_op) -> Checked>,
    /// Copies what pointers to const name into the side block and points the arguments at the copies.
    pub copy: Option<fn(&mut Args, &mut Side, bool)>,
    /// The io_uring opcode to look for in the probe; None: no native form.
    pub opcode: Option<u8>,
    /// The native form.
    pub ring: Option<RingForm>,
    /// The native form of a multishot without buffers.
    pub ring_multi: Option<fn(&Args) -> Entry>,
    /// The native form that does not copy the data.
    pub ring_zerocopy: Option<RingForm>,
    /// The native form with a buffer group.
    pub ring_lent: Option<LentForm>,
    /// Looks at a native result the kernel may have got wrong: `Some` says what to do instead of delivering it.
    pub amend: Option<fn(&mut Args, i64) -> Option<Decision>>,
    /// The non-blocking form. None: `block` is the only way.
    pub attempt: Option<fn(&mut Args) -> Decision>,
    /// The non-blocking form into a lent buffer of so many bytes.
    pub lent: Option<fn(&Args, *mut u8, u32) -> Decision>,
    /// The blocking form, run on a thread. -EINTR means interrupted before anything happened.
    pub block: Option<fn(&Args) -> i64>,
    /// Writes results back into the program's structures before its event.
    pub finish: Option<fn(&Args, &mut Side, i64)>,
    /// Tells the descriptors that came with what was received, into a lent buffer or (NULL) the program's own memory.
    pub passed: Option<Passed>,
}

impl OpDef {
    /// What an entry starts from: nothing.
    pub const BASE: OpDef = OpDef {
        kind: 0,
        name: "",
        facts: 0,
        check: None,
        copy: None,
        opcode: None,
        ring: None,
        ring_multi: None,
        ring_zerocopy: None,
        ring_lent: None,
        amend: None,
        attempt: None,
        lent: None,
        block: None,
        finish: None,
        passed: None,
    };

    #[inline(always)]
    pub const fn is(&self, facts: Facts) -> bool {
        self.facts & facts != 0
    }
}

/// Why an operation is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub error: i32,
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// What is asked for cannot be promised.
    #[cold]
    pub fn no_memory(error: i32) -> Refusal {
        Refusal { error, text: "no memory".into() }
    }
}

pub(crate) type Checked = Result<(), Refusal>;

/// -EINVAL with a text.
pub(crate) fn invalid(text: impl Into<Cow<'static, str>>) -> Checked {
    Err(Refusal { error: libc::EINVAL, text: text.into() })
}

/// A refusal with an errno of its own.
pub(crate) fn refuse(error: i32, text: impl Into<Cow<'static, str>>) -> Checked {
    Err(Refusal { error, text: text.into() })
}

/// The sleep whose argument is a point in time.
pub(crate) const SLEEP_UNTIL: u8 = time::UPCALL_OP_SLEEP_UNTIL as u8;

/// The receive of bytes.
pub(crate) const RECV: u8 = socket::UPCALL_OP_RECV as u8;

/// How many kinds the table has room for; kinds are below it.
pub(crate) const KINDS: usize = 128;
const _: () = assert!(size_of::<OpDef>() == 128);

static CATALOGUE: [OpDef; KINDS] = {
    let families: [&[OpDef]; 11] = [
        stream::OPS,
        file::OPS,
        path::OPS,
        directory::OPS,
        xattr::OPS,
        socket::OPS,
        readiness::OPS,
        time::OPS,
        compute::OPS,
        transfer::OPS,
        process::OPS,
    ];
    let mut table = [OpDef::BASE; KINDS];
    let mut family = 0;
    while family < families.len() {
        let mut entry = 0;
        while entry < families[family].len() {
            let op = &families[family][entry];
            assert!(op.kind > 0 && table[op.kind as usize].kind == 0, "a kind is used twice");
            // A bitwise copy: every field is Copy, but OpDef must not be, so that nobody copies 120 bytes by accident.
            table[op.kind as usize] = OpDef { ..copy_of(op) };
            entry += 1;
        }
        family += 1;
    }
    table
};

const fn copy_of(op: &OpDef) -> OpDef {
    OpDef {
        kind: op.kind,
        name: op.name,
        facts: op.facts | if op.copy.is_some() { COPIES } else { 0 },
        check: op.check,
        copy: op.copy,
        opcode: op.opcode,
        ring: op.ring,
        ring_multi: op.ring_multi,
        ring_zerocopy: op.ring_zerocopy,
        ring_lent: op.ring_lent,
        amend: op.amend,
        attempt: op.attempt,
        lent: op.lent,
        block: op.block,
        finish: op.finish,
        passed: op.passed,
    }
}

/// The entry of a kind, or None where there is none.
#[inline(always)]
pub(crate) fn find(kind: upcall_kind) -> Option<&'static OpDef> {
    CATALOGUE.get(kind as usize).filter(|op| op.kind != 0)
}

/// The entry of a kind that was accepted.
#[inline(always)]
pub(crate) const fn of(kind: u8) -> &'static OpDef {
    &CATALOGUE[kind as usize % KINDS]
}

/// Every entry.
pub(crate) fn all() -> impl Iterator<Item = &'static OpDef> {
    CATALOGUE.iter().filter(|op| op.kind != 0)
}

/// A zeroed op of a kind; constructors name the fields they set.
pub(crate) const fn blank(kind: upcall_kind) -> upcall_op {
    upcall_op {
        kind,
        flags: 0,
        callback: None,
        user: std::ptr::null_mut(),
        timeout_ns: 0,
        buffers: std::ptr::null_mut(),
        lend_max: 0,
        fd: -1,
        addr: 0,
        addr2: 0,
        len: 0,
        offset: 0,
        offset2: 0,
        arg: 0,
        arg2: 0,
        reserved: [0; 4],
    }
}

/// "buf is NULL but len is 4096", unless a pool provides the buffer.
pub(crate) fn check_data(op: &upcall_op) -> Checked {
    if op.addr == 0 && op.len > 0 && op.buffers.is_null() {
        return invalid(format!("buf is NULL but len is {}", op.len));
    }
    if op.len > isize::MAX as u64 {
        return invalid(format!("len is {}, more than SSIZE_MAX", op.len));
    }
    Ok(())
}

/// An iovec array: at most IOV_MAX entries, none NULL with a length, no overflow of the sum.
pub(crate) fn check_vector(address: u64, count: u64) -> Checked {
    if count > libc::UIO_MAXIOV as u64 {
        return invalid(format!("iov: n is {count}, more than IOV_MAX (1024)"));
    }
    if address == 0 && count > 0 {
        return invalid(format!("iov is NULL but n is {count}"));
    }
    let mut total: u64 = 0;
    for (index, part) in side::vector(address, count).iter().enumerate() {
        if part.iov_base.is_null() && part.iov_len > 0 {
            return invalid(format!("iov[{index}].iov_base is NULL but iov_len is {}", part.iov_len));
        }
        total = total.saturating_add(part.iov_len as u64);
    }
    if total > isize::MAX as u64 {
        return invalid("the lengths of iov add up to more than SSIZE_MAX");
    }
    Ok(())
}

/// A path: not NULL, shorter than PATH_MAX.
pub(crate) fn check_path(address: u64, what: &'static str) -> Checked {
    if address == 0 {
        return invalid(format!("{what} is NULL"));
    }
    if side::string_len(address) >= libc::PATH_MAX as usize {
        return refuse(libc::ENAMETOOLONG, format!("{what} is longer than PATH_MAX (4096)"));
    }
    Ok(())
}

/// A number that the program gave as a signed one.
pub(crate) fn check_not_negative(number: u64, what: &'static str) -> Checked {
    match number as i64 {
        negative @ ..0 => invalid(format!("{what} is {negative}, less than 0")),
        _ => Ok(()),
    }
}

/// What an operation writes besides its data, for memory checkers: addresses and room.
pub(crate) fn results(op: &upcall_op) -> [(u64, u64); 2] {
    let none = (0, 0);
    let named = |at: u64, length: u64| if at == 0 { none } else { (at, side::length(length).into()) };
    match op.kind {
        path::UPCALL_OP_STATX => [(op.addr2, size_of::<libc::statx>() as u64), none],
        socket::UPCALL_OP_ACCEPT | socket::UPCALL_OP_GETSOCKOPT => {
            [named(op.addr, op.addr2), (op.addr2, size_of::<libc::socklen_t>() as u64)]
        }
        socket::UPCALL_OP_RECVFROM => [named(op.addr2, op.offset), none],
        socket::UPCALL_OP_RECVMSG if op.buffers.is_null() => {
            let msg = side::message(op.addr);
            [(msg.msg_name as u64, msg.msg_namelen.into()), (msg.msg_control as u64, msg.msg_controllen as u64)]
        }
        xattr::UPCALL_OP_GETXATTR | xattr::UPCALL_OP_FGETXATTR => [(op.offset, op.len), none],
        _ => [none; 2],
    }
}

/// Copies two paths, or a path and a name.
pub(crate) fn keep_paths(args: &mut Args, side: &mut Side, _: bool) {
    args.addr = side.keep_path(args.addr);
    args.addr2 = side.keep_path2(args.addr2);
}

/// A socket address that is copied.
pub(crate) fn check_address(address: u64, len: u64) -> Checked {
    if address == 0 {
        return invalid("addr is NULL");
    }
    if len > size_of::<libc::sockaddr_storage>() as u64 {
        return invalid(format!("len is {len}, more than sizeof(struct sockaddr_storage)"));
    }
    Ok(())
}

/// A socket call's flags: the library decides about waiting.
pub(crate) fn check_message_flags(op: &upcall_op) -> Checked {
    if op.arg & libc::MSG_DONTWAIT as u32 != 0 {
        return invalid("flags has MSG_DONTWAIT: an operation waits; use a deadline or cancel");
    }
    if op.arg & libc::MSG_WAITALL as u32 != 0 {
        return invalid("flags has MSG_WAITALL: use UPCALL_FULL, which loses no bytes when cancelled");
    }
    Ok(())
}

/// The answer of a non-blocking system call: done, or wait for readiness.
#[inline(always)]
pub(crate) fn unless_again(result: i64, events: i16) -> Decision {
    match -result as i32 {
        libc::EAGAIN => Decision::Wait(events as u32),
        _ => Decision::Done(result),
    }
}

/// Gives back what an operation made and nobody will be told of: the descriptor that is its result, and what its side
/// block says was made.
pub(crate) fn discard(kind: u8, result: i64, made: u64) {
    if of(kind).is(NEW_FD) && result >= 0 {
        crate::sys::close(result as i32);
    }
    match u32::from(kind) {
        _ if made == 0 => {}
        socket::UPCALL_OP_PIPE => socket::close_pipe(made),
        compute::UPCALL_OP_GETADDRINFO => compute::free_addresses(made),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_can_run_without_a_ring() {
        for op in all() {
            let engine_does_it = op.is(TIMER | SIGNAL);
            assert!(
                engine_does_it || op.attempt.is_some() || op.block.is_some(),
                "{} has no form outside io_uring",
                op.name
            );
            assert_eq!(op.opcode.is_some(), op.ring.is_some(), "{}: opcode and ring form go together", op.name);
            assert!(!op.is(CAN_LEND) || op.lent.is_some(), "{} takes buffers but has no lent form", op.name);
        }
    }

    #[test]
    fn kinds_are_found_by_their_number() {
        assert!(find(0).is_none() && find(KINDS as u32).is_none() && find(u32::MAX).is_none());
        for op in all() {
            assert_eq!(find(op.kind).map(|found| found.name), Some(op.name));
        }
    }
}
