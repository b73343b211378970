//! Making a ring: the ladder of setup flags, the probe, and a test with real operations. A ring that fails any of it is
//! refused with a reason that can be read; sandboxes deny some of the calls and not others.

use super::mask::{Feature, Mask};
use crate::sys;
use io_uring::squeue::Entry;
use io_uring::{IoUring, Probe, opcode, types};

/// Which flags the kernel took, best first. Every rung has the same results; upper ones cost less.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(crate) enum Rung {
    /// Completions are made on the owner thread, when it asks (Linux 6.1), without the index array (6.6).
    DeferredNoArray,
    /// The same with the index array.
    Deferred,
    /// No interrupts of the owner thread (5.19).
    Cooperative,
    /// What every supported kernel takes.
    Plain,
}

pub(crate) const LADDER: [Rung; 4] = [Rung::DeferredNoArray, Rung::Deferred, Rung::Cooperative, Rung::Plain];

/// Why there is no ring.
#[derive(Debug)]
pub(crate) struct Denied {
    pub error: i32,
    pub reason: String,
}

/// A ring that passed everything.
pub(crate) struct Made {
    pub ring: IoUring,
    pub rung: Rung,
    pub probe: Probe,
}

impl Rung {
    pub fn is_deferred(self) -> bool {
        matches!(self, Rung::DeferredNoArray | Rung::Deferred)
    }

    fn build(self, entries: u32, disabled: bool) -> std::io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize((entries * 4).clamp(1024, 65536));
        if self != Rung::Plain {
            builder.setup_submit_all().setup_taskrun_flag();
        }
        match self {
            Rung::DeferredNoArray | Rung::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun();
                if disabled {
                    // The thread that enables it becomes the one that submits, so a loop may be made on another.
                    builder.setup_r_disabled();
                }
                if self == Rung::DeferredNoArray {
                    builder.setup_no_sqarray();
                }
            }
            Rung::Cooperative => {
                builder.setup_coop_taskrun();
            }
            Rung::Plain => {}
        }
        builder.build(entries)
    }
}

/// Makes the loop's ring, on the best rung of the ladder that the kernel and the mask allow, at or below `from`.
pub(crate) fn make(entries: u32, from: Rung, mask: &Mask) -> Result<Made, Denied> {
    let mut refused = Denied { error: libc::EINVAL, reason: "io_uring_setup: EINVAL".to_owned() };
    for rung in mask.ladder().filter(|&rung| rung >= from) {
        match make_rung(entries, rung, mask) {
            Ok(made) => return Ok(made),
            Err(denied) if denied.error == libc::EINVAL => refused = denied,
            Err(denied) => return Err(denied),
        }
    }
    Err(refused)
}

fn make_rung(entries: u32, rung: Rung, mask: &Mask) -> Result<Made, Denied> {
    // The kernel may still be giving back the memory of a ring closed just before, and may charge it to the user's
    // RLIMIT_MEMLOCK (measured: up to 29 ms): try again, then smaller.
    let mut entries = entries;
    let mut tries = 0;
    let ring = loop {
        match rung.build(entries, true) {
            Ok(ring) => break ring,
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && (tries < 3 || entries > 8) => {
                tries += 1;
                if tries > 3 {
                    entries /= 2;
                } else {
                    sys::thread::pause(10_000_000);
                }
            }
            Err(error) => return Err(denied("io_uring_setup", &error)),
        }
    };
    let made = examine(ring, rung, mask);
    if made.is_err() {
        let_the_kernel_go();
    }
    made
}

/// The kernel ends a closed ring's ties to this thread a little later, by what ends epoll_wait as a signal would (6.18). It is
/// awaited here: the program's first wait on epoll would come back with nothing.
fn let_the_kernel_go() {
    let epoll = sys::epoll_create() as i32;
    let mut event = [libc::epoll_event { events: 0, u64: 0 }];
    // As many as rings: the loop's, and that of `try_out`.
    for _ in 0..2 {
        if epoll < 0 || sys::epoll_wait(epoll, &mut event, 50_000_000) == 0 {
            break;
        }
    }
    if epoll >= 0 {
        sys::close(epoll);
    }
}

fn examine(ring: IoUring, rung: Rung, mask: &Mask) -> Result<Made, Denied> {
    let params = ring.params();
    let lacks = [
        (params.is_feature_nodrop(), "NODROP"),
        (params.is_feature_submit_stable(), "SUBMIT_STABLE"),
        (params.is_feature_rw_cur_pos(), "RW_CUR_POS"),
        (params.is_feature_fast_poll(), "FAST_POLL"),
        (params.is_feature_ext_arg() && !mask.has(Feature::ExtArg), "EXT_ARG"),
    ];
    if let Some((_, name)) = lacks.iter().find(|(has, _)| !has) {
        return Err(Denied {
            error: libc::EOPNOTSUPP,
            reason: format!("io_uring: this kernel lacks {name}{}", mask.reason()),
        });
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| denied("io_uring_register", &error))?;
    try_out(rung)?;
    Ok(Made { ring, rung, probe })
}

fn denied(call: &str, error: &std::io::Error) -> Denied {
    let error = error.raw_os_error().unwrap_or(libc::EIO);
    let (name, hint) = match error {
        libc::EPERM => ("EPERM", " (seccomp or kernel.io_uring_disabled)"),
        libc::EACCES => ("EACCES", " (a security module)"),
        libc::ENOSYS => ("ENOSYS", " (not in this kernel, or seccomp)"),
        libc::EOPNOTSUPP => ("EOPNOTSUPP", " (a sandbox)"),
        libc::ENOMEM => ("ENOMEM", " (RLIMIT_MEMLOCK)"),
        libc::EMFILE => ("EMFILE", " (RLIMIT_NOFILE)"),
        libc::ENFILE => ("ENFILE", ""),
        libc::EINVAL => ("EINVAL", " (this kernel is too old)"),
        _ => ("", ""),
    };
    let reason = match name {
        "" => format!("{call}: errno {error}"),
        _ => format!("{call}: {name}{hint}"),
    };
    Denied { error, reason }
}

/// Whether the kernel writes a registered eventfd at each completion, and at once. 6.12.117 does it once per registration,
/// milliseconds later (a mark "will be written" that is never taken back): then it has to be registered anew each time.
pub(crate) fn tells_every_time(rung: Rung) -> bool {
    let Ok(mut ring) = rung.build(4, false) else { return false };
    let event = sys::eventfd() as i32;
    let mut fds = [-1; 2];
    // SAFETY: room for two descriptors.
    let made = event >= 0 && unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } == 0;
    // Not an eventfd's readiness, of which every kernel tells later.
    let mut tells = made && ring.submitter().register_eventfd(event).is_ok();
    for _ in 0..2 {
        let poll = opcode::PollAdd::new(types::Fd(fds[0]), libc::POLLIN as u32).build();
        // SAFETY: the entry names no memory.
        tells = tells && unsafe { ring.submission().push(&poll) }.is_ok() && ring.submit().is_ok();
        // SAFETY: one readable byte, then room for it.
        tells = tells && unsafe { libc::write(fds[1], (&raw const event).cast(), 1) } == 1;
        tells = tells && sys::poll_now(event, libc::POLLIN) != 0 && ring.submit_and_wait(1).is_ok();
        sys::eventfd_drain(event);
        let mut byte = 0u8;
        // SAFETY: as above.
        tells = tells && unsafe { libc::read(fds[0], (&raw mut byte).cast(), 1) } == 1;
        tells = tells && ring.completion().count() == 1;
    }
    for fd in [event, fds[0], fds[1]].into_iter().filter(|&fd| fd >= 0) {
        sys::close(fd);
    }
    tells
}

/// A NOP, two reads and a cancel of the second, on a ring of their own: entering may be denied where setting up is not.
///
/// The reads are from an eventfd, which every kernel polls. A pipe's would be given to a worker thread (6.1.192), and end in
/// -ECANCELED where no thread can be made; a ring is of use there all the same.
fn try_out(rung: Rung) -> Result<(), Denied> {
    const VALUE: u64 = 7;
    const READ: u64 = 7;
    let mut ring = rung.build(4, false).map_err(|error| denied("io_uring_setup", &error))?;
    // SAFETY: no pointers.
    let event = unsafe { libc::eventfd(VALUE as u32, libc::EFD_CLOEXEC) };
    if event < 0 {
        return Err(denied("eventfd", &std::io::Error::last_os_error()));
    }
    let into = Box::into_raw(Box::new([0u64; 2]));
    let read = |into: &mut u64| {
        let entry = opcode::Read::new(types::Fd(event), std::ptr::from_mut(into).cast(), 8);
        entry.offset(u64::MAX).build().user_data(READ)
    };
    // SAFETY: a box that only the kernel and this function have.
    let [first, second] = unsafe { &mut *into };
    let steps: [(_, &[i32]); 4] = [
        (opcode::Nop::new().build(), &[0]),
        (read(first), &[8]),
        (read(second), &[]), // there is nothing more: it waits
        (opcode::AsyncCancel::new(READ).build(), &[0, -libc::ECANCELED, -libc::EALREADY, -libc::EINTR]),
    ];
    let mut left = 0;
    let mut outcome = steps.iter().try_for_each(|(entry, wanted)| step(&mut ring, entry, wanted, &mut left));
    for _ in 0..100 {
        if left == 0 {
            break;
        }
        // The waiting read ends with this, so that nothing is written to `into` after this function.
        sys::eventfd_write(event);
        match ring.submit_and_wait(1) {
            // An entry of a step that failed is handed over only now.
            Ok(handed) => left = left + handed - ring.completion().count(),
            Err(_) => sys::thread::pause(1_000_000),
        }
    }
    sys::close(event);
    let mut moved = 0;
    // What cannot be waited for is left to the kernel, which may still write to it.
    if left == 0 {
        // SAFETY: the box made above.
        moved = unsafe { Box::from_raw(into) }[0];
    }
    if outcome.is_ok() && moved != VALUE {
        let reason = "io_uring: a test read moved no data".to_owned();
        outcome = Err(Denied { error: libc::EOPNOTSUPP, reason });
    }
    outcome
}

/// Hands the entry over, and waits until nothing is left in the ring, unless no result is wanted. `left` counts what is.
fn step(ring: &mut IoUring, entry: &Entry, wanted: &[i32], left: &mut usize) -> Result<(), Denied> {
    // SAFETY: the entry's buffer lives in `try_out`, which waits until nothing is left.
    if unsafe { ring.submission().push(entry) }.is_err() {
        return Err(Denied { error: libc::EBUSY, reason: "io_uring: the queue stays full".to_owned() });
    }
    loop {
        match ring.submit_and_wait(usize::from(!wanted.is_empty())) {
            Ok(handed) => *left += handed,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) => return Err(denied("io_uring_enter", &error)),
        }
        let results: Vec<i32> = ring.completion().map(|entry| entry.result()).collect();
        *left -= results.len();
        if let Some(result) = results.iter().find(|result| !wanted.contains(result)) {
            let reason = format!("io_uring: a test operation answered {result}");
            return Err(Denied { error: libc::EOPNOTSUPP, reason });
        }
        if wanted.is_empty() || *left == 0 {
            return Ok(());
        }
    }
}
