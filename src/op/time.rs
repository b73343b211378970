//! Time. Timers are the engine's own, the same on every backend: never early, in nanoseconds, on CLOCK_MONOTONIC.

use super::*;

/// Kind of upcall_op_sleep(). Since 0.1.
pub const UPCALL_OP_SLEEP: upcall_kind = 64;
/// Kind of upcall_op_sleep_until(). Since 0.1.
pub const UPCALL_OP_SLEEP_UNTIL: upcall_kind = 65;

/// @brief Ends after `ns` nanoseconds, never early. Result 0.
///
/// With UPCALL_MULTISHOT it repeats: the k-th tick at start + k * ns; result: the periods elapsed since the last event
/// (missed ones merge); 0 nanoseconds is then -EINVAL. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_sleep(ns: u64) -> upcall_op {
    upcall_op { len: ns, ..blank(UPCALL_OP_SLEEP) }
}

/// @brief Ends when CLOCK_MONOTONIC reaches `monotonic_ns` (see upcall_now()), never early. Result 0.
/// Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_sleep_until(monotonic_ns: u64) -> upcall_op {
    upcall_op { len: monotonic_ns, ..blank(UPCALL_OP_SLEEP_UNTIL) }
}

pub(super) const OPS: &[OpDef] = &[
    OpDef {
        kind: UPCALL_OP_SLEEP,
        name: "sleep",
        facts: TIMER | CAN_MULTI,
        check: Some(|op| match op.flags & UPCALL_MULTISHOT != 0 && op.len == 0 {
            true => invalid("ns is 0: a repeating sleep needs a period"),
            false => Ok(()),
        }),
        ..OpDef::BASE
    },
    OpDef { kind: UPCALL_OP_SLEEP_UNTIL, name: "sleep_until", facts: TIMER, ..OpDef::BASE },
];
