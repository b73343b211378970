//! The second descriptors of operations that have two (splice, tee, sendfile, copy_range): the intrusive lists of
//! `descriptors` hold each operation once, under its first. Any thread may look; only such operations pay.

use crate::sys::sync::{AtomicUsize, Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// See the module: descriptors with the ids of the operations on them.
#[derive(Default)]
pub(crate) struct Seconds {
    set: Mutex<BTreeSet<(i32, u64)>>,
    count: AtomicUsize,
}

impl Seconds {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(i32, u64)>> {
        self.set.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Notes an operation; again is the same as once.
    pub fn insert(&self, fd: i32, id: u64) {
        let mut set = self.lock();
        if fd >= 0 && set.insert((fd, id)) {
            self.count.store(set.len(), Ordering::Release);
        }
    }

    /// Forgets it. True: it was there.
    pub fn remove(&self, fd: i32, id: u64) -> bool {
        let mut set = self.lock();
        let was_there = set.remove(&(fd, id));
        self.count.store(set.len(), Ordering::Release);
        was_there
    }

    /// The operations on a descriptor.
    pub fn on(&self, fd: i32) -> Vec<u64> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.lock().range((fd, 0)..=(fd, u64::MAX)).map(|&(_, id)| id).collect()
    }
}
