//! Computation on the pool, so that a long calculation, or the resolver, does not hold up the loop.

use super::*;
use crate::sys;
use libc::addrinfo;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;

/// Kind of upcall_op_work(). Since 0.1.
pub const UPCALL_OP_WORK: upcall_kind = 80;
/// Kind of upcall_op_getaddrinfo(). Since 0.1.
pub const UPCALL_OP_GETADDRINFO: upcall_kind = 81;

/// @brief Runs `fn(arg)` on a thread of the loop's pool. Result: what it returns.
///
/// `arg` is borrowed until the final event. Once running it cannot be cancelled. `fn` must return normally, and must not
/// poll the loop; it may submit, cancel and post. Works of a loop never take its last pool thread, so that files always
/// find one. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_work(r#fn: upcall_work_fn, arg: *mut c_void) -> upcall_op {
    let address = match r#fn {
        Some(function) => function as usize as u64,
        None => 0,
    };
    upcall_op { addr: address, addr2: arg as u64, ..blank(UPCALL_OP_WORK) }
}

/// @brief getaddrinfo(3) on a thread of the loop's pool: `*out` receives the list, to be freed with freeaddrinfo(3).
///
/// `node`, `service` and `hints` may be NULL as for getaddrinfo(3), and are copied; strings of 4096 bytes and more are
/// -ENAMETOOLONG. `out` is borrowed until the final event, and written on success only. Result: 0; an UPCALL_EAI_
/// constant, whose text upcall_strerror() has; or what errno was, negative. Never takes the last pool thread. Cancelled
/// or timed out it ends at once, and so do upcall_loop_close() and upcall_loop_free(), although its thread may still
/// wait for the resolver: what that finds is freed by the library. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    out: *mut *mut addrinfo,
) -> upcall_op {
    upcall_op {
        addr: node as u64,
        addr2: service as u64,
        offset: hints as u64,
        offset2: out as u64,
        ..blank(UPCALL_OP_GETADDRINFO)
    }
}

/// A call of getaddrinfo(3) and all it touches. Operation and thread each hold it, so that either may be the last.
pub(crate) struct Lookup {
    node: Option<CString>,
    service: Option<CString>,
    /// ai_flags, ai_family, ai_socktype, ai_protocol: the rest of hints has no meaning.
    hints: Option<[i32; 4]>,
    found: AtomicPtr<addrinfo>,
}

impl Lookup {
    /// For the models of who frees it.
    #[cfg(all(test, loom))]
    pub fn of_nothing() -> Lookup {
        Lookup { node: None, service: None, hints: None, found: AtomicPtr::new(null_mut()) }
    }

    #[cfg(all(test, loom))]
    pub fn touch(&self) -> i64 {
        self.found.load(Ordering::Acquire) as i64
    }

    fn run(&self) -> i64 {
        let text = |string: &Option<CString>| string.as_deref().map_or(null(), CStr::as_ptr);
        let hints = self.hints.map(|[ai_flags, ai_family, ai_socktype, ai_protocol]| addrinfo {
            ai_flags,
            ai_family,
            ai_socktype,
            ai_protocol,
            ai_addrlen: 0,
            ai_addr: null_mut(),
            ai_canonname: null_mut(),
            ai_next: null_mut(),
        });
        let hints = hints.as_ref().map_or(null(), std::ptr::from_ref);
        let mut found = null_mut();
        // SAFETY: strings and hints are this lookup's own or NULL, and live across the call; `found` is writable.
        let error = unsafe { libc::getaddrinfo(text(&self.node), text(&self.service), hints, &mut found) };
        match (error, sys::errno()) {
            (0, _) => {
                self.found.store(found, Ordering::Release);
                0
            }
            (libc::EAI_SYSTEM, libc::EINTR) => self.run(),
            // An operation does not fail with these.
            (libc::EAI_SYSTEM, libc::EAGAIN | libc::EINPROGRESS) => i64::from(UPCALL_EAI_AGAIN),
            // 0 would be a success.
            (libc::EAI_SYSTEM, errno) if errno > 0 => -i64::from(errno),
            (error, _) => i64::from(error) + i64::from(UPCALL_EAI_BASE),
        }
    }

    fn take(&self) -> *mut addrinfo {
        self.found.swap(null_mut(), Ordering::AcqRel)
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        free_addresses(self.take() as u64);
    }
}

/// Frees a list that nobody will be told of.
pub(super) fn free_addresses(list: u64) {
    if list != 0 {
        // SAFETY: a list that getaddrinfo returned to this library and that nobody else has been given.
        unsafe { libc::freeaddrinfo(list as usize as *mut addrinfo) };
    }
}

fn check_lookup(op: &upcall_op) -> Checked {
    for (address, what) in [(op.addr, "node"), (op.addr2, "service")] {
        if address != 0 {
            check_path(address, what)?;
        }
    }
    if op.offset2 == 0 {
        return invalid("out is NULL");
    }
    Ok(())
}

fn keep_lookup(args: &mut Args, side: &mut Side, _: bool) {
    let lookup = Arc::new(Lookup {
        node: side::string(args.addr),
        service: side::string(args.addr2),
        hints: side::hints(args.offset)
            .map(|hints| [hints.ai_flags, hints.ai_family, hints.ai_socktype, hints.ai_protocol]),
        found: AtomicPtr::new(null_mut()),
    });
    args.addr = Arc::as_ptr(&lookup) as u64;
    side.lookup = Some(lookup);
}

fn look_up(args: &Args) -> i64 {
    // SAFETY: the address of the operation's lookup; the call that runs this holds it (see Call::lookup), and it is only
    // ever shared.
    unsafe { &*args.ptr::<Lookup>() }.run()
}

fn finish_lookup(args: &Args, side: &mut Side, result: i64) {
    if let (0, Some(lookup)) = (result, &side.lookup) {
        let found = lookup.take();
        side.made = found as u64;
        // SAFETY: the program's pointer is borrowed until the final event, which has not been delivered (checked: not
        // NULL).
        unsafe { (args.offset2 as usize as *mut *mut addrinfo).write_unaligned(found) };
    }
}

fn run(args: &Args) -> i64 {
    // SAFETY: `addr` is an upcall_work_fn (checked: not NULL), put there by the constructor; Option of a function pointer
    // has the pointer's representation.
    let function: upcall_work_fn = unsafe { std::mem::transmute(args.addr as usize) };
    match function {
        // SAFETY: the program promised a function that may be called with `arg` on another thread.
        Some(function) => unsafe { function(args.ptr2()) },
        None => -i64::from(libc::EINVAL),
    }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_WORK,
        name: "work",
        facts: COMPUTE,
        check: Some(|op| match op.addr {
            0 => invalid("fn is NULL"),
            _ => Ok(()),
        }),
        block: Some(run),
        ..OpDef::BASE
    },
    OpDef {
        kind: UPCALL_OP_GETADDRINFO,
        name: "getaddrinfo",
        facts: COMPUTE | GIVEN_UP,
        check: Some(check_lookup),
        copy: Some(keep_lookup),
        block: Some(look_up),
        finish: Some(finish_lookup),
        ..OpDef::BASE
    },
];
