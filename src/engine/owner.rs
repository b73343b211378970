//! Knowing that an owner thread has exited: each thread keeps a list of the loops it owns, and a destructor of that list
//! ends what they have in flight while the thread still exists. A thread id would not do: ids are reused.

use super::Loop;
use std::cell::RefCell;

struct Owned(Vec<*const Loop>);

impl Drop for Owned {
    fn drop(&mut self) {
        for &owned in &self.0 {
            // SAFETY: a loop is in the list of its owner thread only, and leaves it when it is detached or freed; while its
            // owner lives nobody else can free it.
            unsafe { &*owned }.owner_exits();
        }
    }
}

thread_local!(static OWNED: RefCell<Owned> = const { RefCell::new(Owned(Vec::new())) });

/// The calling thread owns this loop from now on.
pub(crate) fn remember(owned: *const Loop) {
    let _ = OWNED.try_with(|list| list.borrow_mut().0.push(owned));
}

/// The calling thread does not own this loop any more.
pub(crate) fn forget(owned: *const Loop) {
    let _ = OWNED.try_with(|list| {
        let mut list = list.borrow_mut();
        list.0.retain(|&other| other != owned);
        list.0.shrink_to_fit();
    });
}
