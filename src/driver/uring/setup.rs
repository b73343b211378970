//! Making a ring: the ladder of setup flags, the probe, and a test with real operations. A ring that fails any of it is
//! refused with a reason that can be read; sandboxes deny some of the calls and not others.

use super::mask::{Feature, Mask};
use crate::sys;
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
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            Err(error) => return Err(denied("io_uring_setup", &error)),
        }
    };
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

/// A NOP, a read from a pipe and a cancel, on a ring of their own: entering may be denied where setting up is not.
fn try_out(rung: Rung) -> Result<(), Denied> {
    let mut ring = rung.build(4, false).map_err(|error| denied("io_uring_setup", &error))?;
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(denied("pipe2", &std::io::Error::last_os_error()));
    }
    let byte = 7u8;
    let mut into = [0u8; 2];
    // SAFETY: one readable byte.
    unsafe { libc::write(fds[1], (&raw const byte).cast(), 1) };
    let mut step = |entry: io_uring::squeue::Entry, wanted: &[i32], completions: usize| -> Result<(), Denied> {
        // SAFETY: the entry's buffers live in this function, which waits for its completions below.
        let pushed = unsafe { ring.submission().push(&entry) };
        if pushed.is_err() {
            return Err(Denied { error: libc::EBUSY, reason: "io_uring: the queue stays full".to_owned() });
        }
        ring.submit_and_wait(completions).map_err(|error| denied("io_uring_enter", &error))?;
        for _ in 0..completions {
            let result = ring.completion().next().map_or(-libc::EIO, |entry| entry.result());
            if !wanted.contains(&result) {
                let reason = format!("io_uring: a test operation answered {result}");
                return Err(Denied { error: libc::EOPNOTSUPP, reason });
            }
        }
        Ok(())
    };
    let read = |at: usize, into: &mut [u8; 2]| {
        opcode::Read::new(types::Fd(fds[0]), into[at..].as_mut_ptr(), 1).offset(u64::MAX).build().user_data(7)
    };
    let outcome = step(opcode::Nop::new().build(), &[0], 1)
        .and_then(|()| step(read(0, &mut into), &[1], 1))
        .and_then(|()| step(read(1, &mut into), &[], 0))
        .and_then(|()| {
            step(opcode::AsyncCancel::new(7).build(), &[0, -libc::ECANCELED, -libc::EALREADY, -libc::EINTR], 2)
        });
    if outcome.is_err() {
        // The pending read ends with its writer, so that nothing is written to `into` after this function.
        sys::close(fds[1]);
        fds[1] = -1;
        let _ = ring.submit_and_wait(1);
    }
    for fd in fds.into_iter().filter(|&fd| fd >= 0) {
        sys::close(fd);
    }
    if outcome.is_ok() && into[0] != byte {
        let reason = "io_uring: a test read moved no data".to_owned();
        return Err(Denied { error: libc::EOPNOTSUPP, reason });
    }
    outcome
}
