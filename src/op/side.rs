//! The side block: what an operation needs beyond its slot, at a stable address until its final event. Blocks are recycled,
//! so that a path or a vector costs no allocation in the steady state.
//!
//! Reading what a pointer to const names happens here and nowhere else.

use super::{Args, Lookup};
use crate::driver::threads::JobCell;
use crate::engine::buffers::Pool;
use crate::sys::checkers::Watched;
use crate::sys::signal::Watch;
use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;

/// See the module.
pub(crate) struct Side {
    pub path: Vec<u8>,
    pub path2: Vec<u8>,
    pub control: Vec<u8>,
    pub iov: Vec<libc::iovec>,
    /// Parts of `iov` already moved.
    pub iov_done: usize,
    pub msg: libc::msghdr,
    /// What the first part of a message in parts resulted in: msg_namelen, msg_controllen, msg_flags.
    pub kept: Option<(libc::socklen_t, usize, i32)>,
    pub name: libc::sockaddr_storage,
    pub statx: libc::statx,
    /// What the operation made, for [`super::discard`]: a pipe's two descriptors, a list of addresses; 0: nothing.
    pub made: u64,
    /// What a lookup works on; a thread may have it longer than the operation.
    pub lookup: Option<Arc<Lookup>>,
    pub siginfo: libc::siginfo_t,
    /// The signal is counted while the operation lives.
    pub watch: Option<Watch>,
    /// The pool the operation borrows from, with how many of its buffers are out, and the most that may be.
    pub pool: Option<Arc<Pool>>,
    pub lent: u32,
    pub lend_max: u32,
    /// The op's timeout: for a parked operation, and for the idle limit of a multishot.
    pub timeout_ns: u64,
    /// The operation's deadline, where the timer may be armed for something else; 0: see the slot.
    pub deadline_at: u64,
    /// When a pause by the clock ends; 0: none.
    pub wake_at: u64,
    /// The next pause of that kind, growing.
    pub backoff_ns: u64,
    /// Counts as started at its descriptor's own position.
    pub holds_cursor: bool,
    /// In its pool's queue for a buffer.
    pub starved: bool,
    /// A zero-copy send: how often it was given to the kernel; how many notifications that owes; what the program was told.
    pub begun: u32,
    pub owed: i32,
    pub sent: Option<Sent>,
    /// A native multishot on a unix socket, whose end the kernel may not tell (see the ring's driver).
    pub may_lose_end: bool,
    /// Records of this multishot that wait for reap.
    pub unreaped: u32,
    /// The submit this operation was part of, when its order matters, and its place there.
    pub group: Option<u32>,
    pub place: u32,
    /// What memory checkers were told of; nothing without one.
    pub watched: Watched,
    /// The thread job that runs it, if one ever did; kept for the next operation.
    pub job: Option<JobCell>,
}

/// The result of a zero-copy send, for its final event.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    pub result: i64,
    pub transferred: u64,
    pub flags: u32,
}

impl Side {
    pub fn new() -> Side {
        Side {
            path: Vec::new(),
            path2: Vec::new(),
            control: Vec::new(),
            iov: Vec::new(),
            iov_done: 0,
            // SAFETY: msghdr and sockaddr_storage are plain C structures for which all-zero bytes are valid values.
            msg: unsafe { std::mem::zeroed() },
            kept: None,
            // SAFETY: as above.
            name: unsafe { std::mem::zeroed() },
            // SAFETY: as above, for statx.
            statx: unsafe { std::mem::zeroed() },
            made: 0,
            lookup: None,
            // SAFETY: as above, for siginfo_t.
            siginfo: unsafe { std::mem::zeroed() },
            watch: None,
            pool: None,
            lent: 0,
            lend_max: 0,
            timeout_ns: 0,
            deadline_at: 0,
            wake_at: 0,
            backoff_ns: 0,
            holds_cursor: false,
            starved: false,
            may_lose_end: false,
            begun: 0,
            owed: 0,
            sent: None,
            unreaped: 0,
            group: None,
            place: 0,
            watched: Watched::default(),
            job: None,
        }
    }

    /// Makes the block ready for the next operation; the vectors keep their capacity up to a page or so.
    pub fn reset(&mut self) {
        for bytes in [&mut self.path, &mut self.path2, &mut self.control] {
            bytes.clear();
            bytes.shrink_to(4096);
        }
        self.iov.clear();
        self.iov.shrink_to(64);
        self.iov_done = 0;
        self.kept = None;
        self.made = 0;
        self.lookup = None;
        self.watch = None;
        self.pool = None;
        self.lent = 0;
        self.lend_max = 0;
        self.timeout_ns = 0;
        self.deadline_at = 0;
        self.wake_at = 0;
        self.backoff_ns = 0;
        self.holds_cursor = false;
        self.starved = false;
        self.may_lose_end = false;
        self.begun = 0;
        self.owed = 0;
        self.sent = None;
        self.unreaped = 0;
        self.group = None;
        self.place = 0;
        if !self.watched.is_empty() {
            self.watched.end(0, false);
        }
    }

    /// Copies a path and returns where the copy is.
    pub fn keep_path(&mut self, address: u64) -> u64 {
        keep_string(&mut self.path, address)
    }

    /// A statx for the operation's own use, with an empty mode.
    pub fn blank_statx(&mut self) -> u64 {
        self.statx.stx_mode = 0;
        &raw mut self.statx as u64
    }

    /// A siginfo_t for the operation's own use, of zeros.
    pub fn blank_siginfo(&mut self) -> u64 {
        // SAFETY: siginfo_t is a plain C structure for which all-zero bytes are valid.
        self.siginfo = unsafe { std::mem::zeroed() };
        &raw mut self.siginfo as u64
    }

    /// Copies a second path, or a name, and returns where the copy is.
    pub fn keep_path2(&mut self, address: u64) -> u64 {
        keep_string(&mut self.path2, address)
    }

    /// Copies an open_how, close-on-exec added, and returns where the copy is.
    pub fn keep_how(&mut self, address: u64) -> u64 {
        let How { flags, mode, resolve } = how(address);
        self.control.clear();
        self.control.extend([flags | libc::O_CLOEXEC as u64, mode, resolve].into_iter().flat_map(u64::to_ne_bytes));
        self.control.as_ptr() as u64
    }

    /// Copies bytes and returns where the copy is.
    pub fn keep_bytes(&mut self, address: u64, len: u64) -> u64 {
        self.control.clear();
        self.control.extend_from_slice(bytes(address, len));
        self.control.as_ptr() as u64
    }

    /// Copies a socket address and returns where the copy is.
    pub fn keep_name(&mut self, address: u64, len: u64) -> u64 {
        let len = (len as usize).min(size_of::<libc::sockaddr_storage>());
        // SAFETY: the program passed `len` readable bytes at `address` (checked: not NULL, at most sockaddr_storage).
        unsafe {
            std::ptr::copy_nonoverlapping(address as usize as *const u8, (&raw mut self.name).cast::<u8>(), len);
        }
        &raw const self.name as u64
    }

    /// Copies a vector: `args.addr` and `args.len` name the copy.
    pub fn keep_vector(&mut self, args: &mut Args) {
        self.iov.clear();
        self.iov.extend_from_slice(vector(args.addr, args.len));
        self.iov_done = 0;
        args.addr = self.iov.as_ptr() as u64;
    }

    /// Copies a message header and its vector, and with `outward` also its name and control data.
    pub fn keep_message(&mut self, args: &mut Args, outward: bool) {
        let theirs = message(args.addr);
        self.msg = theirs;
        self.iov.clear();
        self.iov.extend_from_slice(vector(theirs.msg_iov as u64, theirs.msg_iovlen as u64));
        self.iov_done = 0;
        self.msg.msg_iov = self.iov.as_mut_ptr();
        if outward {
            if !theirs.msg_name.is_null() {
                self.msg.msg_name =
                    self.keep_name(theirs.msg_name as u64, u64::from(theirs.msg_namelen)) as usize as *mut _;
            }
            if !theirs.msg_control.is_null() {
                self.msg.msg_control =
                    self.keep_bytes(theirs.msg_control as u64, theirs.msg_controllen as u64) as usize as *mut _;
            }
        }
        args.addr2 = args.addr;
        args.addr = &raw const self.msg as u64;
    }

    /// Makes a message header of one part and perhaps a name: `args` name it and its `buf` and `len`.
    pub fn make_message(&mut self, args: &mut Args, name: u64, namelen: u32) {
        self.iov.clear();
        self.iov.push(libc::iovec { iov_base: args.ptr(), iov_len: args.len as usize });
        self.iov_done = 0;
        // SAFETY: msghdr is a plain C structure for which all-zero bytes are a valid value.
        self.msg = unsafe { std::mem::zeroed() };
        if name != 0 {
            self.msg.msg_name = name as usize as *mut _;
            self.msg.msg_namelen = namelen;
        }
        self.msg.msg_iov = self.iov.as_mut_ptr();
        self.msg.msg_iovlen = 1;
        args.addr = &raw const self.msg as u64;
    }

    /// Bytes the vector still names.
    pub fn vector_left(&self) -> u64 {
        self.iov[self.iov_done..].iter().map(|part| part.iov_len as u64).sum()
    }

    /// Drops the first `count` bytes of the vector.
    pub fn advance_vector(&mut self, count: u64) {
        advance(&mut self.iov, &mut self.iov_done, count);
    }
}

/// Drops the first `count` bytes of the parts from `done` on.
pub(crate) fn advance(parts: &mut [libc::iovec], done: &mut usize, mut count: u64) {
    while count > 0 && *done < parts.len() {
        let part = &mut parts[*done];
        if count < part.iov_len as u64 {
            part.iov_base = part.iov_base.wrapping_byte_add(count as usize);
            part.iov_len -= count as usize;
            return;
        }
        count -= part.iov_len as u64;
        *done += 1;
    }
}

fn keep_string(into: &mut Vec<u8>, address: u64) -> u64 {
    into.clear();
    // SAFETY: the program passed a NUL-terminated string (checked: not NULL, shorter than PATH_MAX).
    into.extend_from_slice(unsafe { CStr::from_ptr(address as usize as *const c_char) }.to_bytes_with_nul());
    into.as_ptr() as u64
}

/// The length of the program's string, at most PATH_MAX.
pub(crate) fn string_len(address: u64) -> usize {
    // SAFETY: the program passed a NUL-terminated string (checked: not NULL); strnlen stops at PATH_MAX.
    unsafe { libc::strnlen(address as usize as *const c_char, libc::PATH_MAX as usize) }
}

/// Bytes of the program's.
pub(crate) fn bytes<'a>(address: u64, len: u64) -> &'a [u8] {
    if address == 0 || len == 0 {
        return &[];
    }
    // SAFETY: the program passed `len` readable bytes at `address` (checked: not NULL, a bounded length); they are only read
    // while the call that passed them runs.
    unsafe { std::slice::from_raw_parts(address as usize as *const u8, len as usize) }
}

/// What of struct open_how this library knows: all there was when it was new.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub flags: u64,
    pub mode: u64,
    pub resolve: u64,
}

/// The program's open_how.
pub(crate) fn how(address: u64) -> How {
    // SAFETY: the program passed a readable open_how (checked: not NULL, at least this long); reading it is a plain copy.
    unsafe { std::ptr::read_unaligned(address as usize as *const How) }
}

/// The program's iovec array.
pub(crate) fn vector<'a>(address: u64, count: u64) -> &'a [libc::iovec] {
    if address == 0 || count == 0 {
        return &[];
    }
    // SAFETY: the program passed `count` readable iovecs at `address` (checked: not NULL, at most IOV_MAX); they are only
    // read while the call that passed them runs.
    unsafe { std::slice::from_raw_parts(address as usize as *const libc::iovec, count as usize) }
}

/// The program's string, copied; None for NULL.
pub(crate) fn string(address: u64) -> Option<CString> {
    // SAFETY: the program passed a NUL-terminated string (checked: of a bounded length).
    (address != 0).then(|| unsafe { CStr::from_ptr(address as usize as *const c_char) }.to_owned())
}

/// What a length that goes in and comes out is now; 0 for NULL.
pub(crate) fn length(address: u64) -> libc::socklen_t {
    match address {
        0 => 0,
        // SAFETY: the program passed a readable socklen_t.
        _ => unsafe { std::ptr::read_unaligned(address as usize as *const libc::socklen_t) },
    }
}

/// The hints of a lookup, copied; None for NULL.
pub(crate) fn hints(address: u64) -> Option<libc::addrinfo> {
    // SAFETY: the program passed a readable addrinfo; reading it is a plain copy.
    (address != 0).then(|| unsafe { std::ptr::read_unaligned(address as usize as *const libc::addrinfo) })
}

/// The program's message header, copied.
pub(crate) fn message(address: u64) -> libc::msghdr {
    // SAFETY: the program passed a readable msghdr (checked: not NULL); reading it is a plain copy.
    unsafe { std::ptr::read_unaligned(address as usize as *const libc::msghdr) }
}
