//! Buffer groups: rings of buffers that the kernel picks from (Linux 5.19). The ring's memory is ours, not the kernel's
//! (mapping the kernel's was CVE-2024-0582).

use crate::engine::buffers::Pool;
use crate::sys::memory::{self, Reservation};
use io_uring::{IoUring, types::BufRingEntry};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Weak};

struct Group {
    memory: Reservation,
    mask: u16,
    tail: u16,
    /// The buffers as they stand in the ring, and where each was put last.
    order: Box<[u16]>,
    place: Box<[u16]>,
    pool: Weak<Pool>,
}

/// The kernel's name of the first group. It keeps what it knows of a smaller name when the group is unregistered, also how
/// far it had read, so that the next group of that name would begin in the middle: ENOBUFS with all buffers there, or a
/// buffer that is lent filled again (6.1.192). Larger ones are made anew each time.
const FIRST: u16 = 64;

/// The groups of one ring.
pub(crate) struct Groups {
    groups: Vec<Option<Group>>,
    /// The kernel has no buffer rings.
    refused: bool,
}

impl Groups {
    /// `refused`: as if the kernel had none.
    pub fn new(refused: bool) -> Groups {
        Groups { groups: Vec::new(), refused }
    }

    /// The kernel's name of the pool's group.
    pub fn name_of(pool: &Pool) -> Option<u16> {
        pool.inner().group.map(|number| FIRST + number)
    }

    /// The number of a new group.
    fn vacant(&self) -> usize {
        self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len())
    }

    /// Gives a pool's buffers to the kernel, if it takes them.
    pub fn offer(&mut self, ring: &IoUring, pool: &Arc<Pool>) {
        if self.refused || pool.inner().group.is_some() || pool.inner().refused {
            return;
        }
        let number = self.vacant();
        if self.register(ring, pool, number).is_ok() {
            pool.split(number as u16);
            for buffer in 0..pool.count {
                self.refill(pool, buffer);
            }
        } else {
            pool.inner().refused = true;
        }
    }

    fn register(&mut self, ring: &IoUring, pool: &Arc<Pool>, number: usize) -> Result<(), i32> {
        let name = u16::try_from(number + usize::from(FIRST)).map_err(|_| libc::ENOSPC)?;
        let entries = pool.count.next_power_of_two();
        let len = (entries as usize * size_of::<BufRingEntry>()).next_multiple_of(memory::page_size());
        let memory = Reservation::new(len)?;
        memory.commit(0, len)?;
        // SAFETY: `memory` is page-aligned, zeroed and lives until the group is unregistered or the ring is closed.
        let registered =
            unsafe { ring.submitter().register_buf_ring_with_flags(memory.base() as u64, entries as u16, name, 0) };
        if let Err(error) = registered {
            self.refused = error.raw_os_error() == Some(libc::EINVAL);
            return Err(error.raw_os_error().unwrap_or(libc::EINVAL));
        }
        let group = Group {
            memory,
            mask: (entries - 1) as u16,
            tail: 0,
            order: vec![0; entries as usize].into(),
            place: vec![0; pool.count as usize].into(),
            pool: Arc::downgrade(pool),
        };
        if self.groups.len() <= number {
            self.groups.resize_with(number + 1, || None);
        }
        self.groups[number] = Some(group);
        Ok(())
    }

    /// Gives the kernel one buffer of its set.
    pub fn refill(&mut self, pool: &Pool, buffer: u32) {
        let number = pool.inner().group.map(usize::from);
        let Some(Some(group)) = number.and_then(|number| self.groups.get_mut(number)) else { return };
        let base = group.memory.base().cast::<BufRingEntry>();
        // SAFETY: the entry is inside the group's memory; the kernel reads it only after the tail has moved past it.
        unsafe {
            let entry = &mut *base.add(usize::from(group.tail & group.mask));
            entry.set_addr(pool.address(buffer) as u64);
            entry.set_len(pool.size);
            entry.set_bid(buffer as u16);
            group.order[usize::from(group.tail & group.mask)] = buffer as u16;
            group.place[buffer as usize] = group.tail;
            group.tail = group.tail.wrapping_add(1);
            (*BufRingEntry::tail(base).cast::<AtomicU16>()).store(group.tail, Ordering::Release);
        }
    }

    /// The buffer that the kernel filled so many after `first`: it takes them in the order they were given to it, and their
    /// places are not used again before all of them have come back.
    pub fn following(&self, pool: &Pool, first: u32, step: u16) -> Option<u32> {
        let group = self.groups.get(usize::from(pool.inner().group?))?.as_ref()?;
        let at = group.place.get(first as usize)?.wrapping_add(step) & group.mask;
        Some(u32::from(group.order[usize::from(at)]))
    }

    /// Forgets a pool's group.
    pub fn forget(&mut self, ring: &IoUring, pool: &Pool) {
        if let Some(number) = pool.inner().group.take() {
            let _ = ring.submitter().unregister_buf_ring(FIRST + number);
            self.groups[usize::from(number)] = None;
        }
    }

    /// The pools that have a group: when the ring is replaced they are offered to the new one.
    pub fn take_pools(&mut self) -> Vec<Arc<Pool>> {
        let groups = std::mem::take(&mut self.groups);
        groups.into_iter().flatten().filter_map(|group| group.pool.upgrade()).collect()
    }

    /// After the ring was replaced: a pool's group again, with the buffers that are at home.
    pub fn offer_again(&mut self, ring: &IoUring, pool: &Arc<Pool>) {
        pool.inner().group = None;
        let number = self.vacant();
        if self.register(ring, pool, number).is_ok() {
            pool.inner().group = Some(number as u16);
            for buffer in (0..pool.count).filter(|&buffer| pool.is_home(buffer)) {
                self.refill(pool, buffer);
            }
        } else {
            // The kernel's set is lost to it; attempts still have the other.
            pool.inner().refused = true;
        }
    }
}
