//! Registered buffers: memory that the kernel has pinned once, so that reads and writes of files need not do so each time.
//! An operation whose buffer lies in one uses it; the program does nothing for that, and results are the same.

use crate::engine::core::Core;
use crate::op::{self, Args, OpDef};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use libc::iovec;

struct Range {
    from: u64,
    to: u64,
    index: u16,
}

/// What is registered with the ring.
#[derive(Default)]
pub(super) struct Registered {
    /// As the program gave it, for the next ring.
    parts: Vec<iovec>,
    /// By address; empty where the kernel refused (RLIMIT_MEMLOCK): ordinary reads and writes do the same.
    ranges: Vec<Range>,
}

// SAFETY: the addresses are the program's, which promised that any thread may have I/O done on them.
unsafe impl Send for Registered {}

impl Registered {
    /// Registers the parts, for as long as the program promised that they live.
    pub fn set(&mut self, ring: &IoUring, parts: &[iovec]) {
        self.parts = parts.to_vec();
        // SAFETY: the memory is the program's until it unregisters it (see upcall_register_buffers()).
        let accepted = unsafe { ring.submitter().register_buffers(parts) }.is_ok();
        self.ranges = match accepted {
            true => ranges(parts),
            false => Vec::new(),
        };
    }

    /// Registers the same with a new ring.
    pub fn set_again(&mut self, ring: &IoUring) {
        let parts = std::mem::take(&mut self.parts);
        if !parts.is_empty() {
            self.set(ring, &parts);
        }
    }

    /// Forgets them. Requests that the kernel has keep what they use.
    pub fn clear(&mut self, ring: &IoUring) {
        if !self.ranges.is_empty() {
            let _ = ring.submitter().unregister_buffers();
        }
        *self = Registered::default();
    }

    /// Nothing is registered.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The request of a positional read or write whose buffer is registered.
    pub fn entry(&self, core: &Core, def: &OpDef, index: u32) -> Option<Entry> {
        if self.ranges.is_empty() || def.is(op::VECTOR) {
            return None;
        }
        let args: &Args = &core.slots[index].args;
        let (from, to) = (args.addr, args.addr.checked_add(u64::from(args.call_len()))?);
        let after = self.ranges.partition_point(|range| range.from <= from);
        let range = self.ranges.get(after.checked_sub(1)?).filter(|range| to <= range.to)?;
        let fd = types::Fd(args.fd());
        Some(match def.is(op::INWARD) {
            true => opcode::ReadFixed::new(fd, args.ptr(), args.call_len(), range.index).offset(args.offset).build(),
            false => opcode::WriteFixed::new(fd, args.ptr(), args.call_len(), range.index).offset(args.offset).build(),
        })
    }
}

fn ranges(parts: &[iovec]) -> Vec<Range> {
    let range = |(index, part): (usize, &iovec)| {
        let from = part.iov_base as u64;
        Range { from, to: from.saturating_add(part.iov_len as u64), index: index as u16 }
    };
    let mut ranges: Vec<Range> = parts.iter().enumerate().map(range).collect();
    ranges.sort_by_key(|range| range.from);
    ranges
}
