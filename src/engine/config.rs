//! The configuration: defaults, limits, and which backend was asked for.

use crate::abi::*;
use crate::driver::uring::mask::Mask;
use crate::op::Refusal;
use crate::sys;

/// What upcall_config_init() fills in.
pub(crate) fn defaults() -> upcall_config {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    upcall_config {
        size: size_of::<upcall_config>() as u32,
        backend: UPCALL_BACKEND_AUTO,
        entries: 256,
        max_events: 1024,
        workers: processors.clamp(4, 16),
        max_operations: 1 << 20,
        slow_callback_ns: 0,
        spin_ns: 0,
        flags: 0,
        reserved: [0; 8],
    }
}

/// Refuses what is out of range, naming the field.
pub(crate) fn check(config: &upcall_config) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal { error: libc::EINVAL, text: text.into() });
    let within = |name: &str, value: u32, least: u32, most: u32| match (least..=most).contains(&value) {
        true => Ok(()),
        false => refuse(format!("config.{name} is {value}, not {least} to {most}")),
    };
    within("backend", config.backend, UPCALL_BACKEND_AUTO, UPCALL_BACKEND_EPOLL)?;
    within("entries", config.entries, 1, 32768)?;
    within("max_events", config.max_events, 1, u32::MAX)?;
    within("workers", config.workers, 2, 1024)?;
    within("max_operations", config.max_operations, 1, super::slot::MAX_SLOTS + 1)?;
    if config.flags != 0 {
        return refuse(format!("config.flags is {:#x}, no flags are defined", config.flags));
    }
    if config.reserved != [0; 8] {
        return refuse("config.reserved is not zero".to_owned());
    }
    Ok(())
}

/// The backend to make: the environment overrides AUTO only, and never in a set-user-ID program.
pub(crate) fn backend(config: &upcall_config) -> Result<upcall_backend, Refusal> {
    if config.backend != UPCALL_BACKEND_AUTO || sys::runs_with_raised_privilege() {
        return Ok(config.backend);
    }
    match sys::environment(c"UPCALL_BACKEND").as_deref() {
        None | Some(b"" | b"auto") => Ok(UPCALL_BACKEND_AUTO),
        Some(b"io_uring") => Ok(UPCALL_BACKEND_IO_URING),
        Some(b"epoll") => Ok(UPCALL_BACKEND_EPOLL),
        Some(other) => {
            let text = format!(
                "the environment variable UPCALL_BACKEND is \"{}\", not auto, io_uring or epoll",
                String::from_utf8_lossy(other)
            );
            Err(Refusal { error: libc::EINVAL, text: text.into() })
        }
    }
}

/// What the ring is not to use. A set-user-ID program has no mask.
pub(crate) fn mask() -> Result<Mask, Refusal> {
    match sys::environment(c"UPCALL_MASK") {
        Some(text) if !sys::runs_with_raised_privilege() => Mask::parse(&String::from_utf8_lossy(&text)),
        _ => Ok(Mask::none()),
    }
}
