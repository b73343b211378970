//! Timers: when each operation with a deadline, a sleep or a pause is due. One structure for all backends, never early.
//!
//! Programs use few distinct timeouts, and of one timeout the deadlines come in order: each of the first eight gets a plain
//! list, where arming and disarming are a few stores. Everything else goes to a four-ary heap.

use super::slot::{NONE, Slots, bits};

const LISTS: usize = 8;
/// `timer_list` of a slot in the heap; 1 to LISTS: in that list.
const HEAP: u8 = u8::MAX;

#[derive(Clone, Copy)]
struct List {
    duration: u64,
    head: u32,
    tail: u32,
}

/// See the module.
pub(crate) struct Timers {
    lists: [List; LISTS],
    heap: Vec<(u64, u32)>,
    armed: usize,
}

impl Timers {
    pub fn new() -> Timers {
        Timers { lists: [List { duration: 0, head: NONE, tail: NONE }; LISTS], heap: Vec::new(), armed: 0 }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Arms `index` for `at`. `duration` is what it was reckoned from: equal ones share a list.
    pub fn arm(&mut self, slots: &mut Slots, index: u32, at: u64, duration: u64) {
        debug_assert!(!slots[index].has(bits::TIMED));
        slots[index].bits |= bits::TIMED;
        slots[index].deadline = at;
        self.armed += 1;
        let mut vacant = None;
        for (number, list) in self.lists.iter_mut().enumerate() {
            if list.head == NONE {
                vacant = vacant.or(Some(number));
            } else if list.duration == duration && slots[list.tail].deadline <= at {
                let tail = list.tail;
                list.tail = index;
                slots[tail].timer_next = index;
                Self::enlist(slots, index, number, tail);
                return;
            }
        }
        match vacant {
            Some(number) => {
                self.lists[number] = List { duration, head: index, tail: index };
                Self::enlist(slots, index, number, NONE);
            }
            None => {
                slots[index].timer_list = HEAP;
                self.heap.push((at, index));
                self.sift_up(slots, self.heap.len() - 1);
            }
        }
    }

    fn enlist(slots: &mut Slots, index: u32, number: usize, prev: u32) {
        let slot = &mut slots[index];
        slot.timer_list = number as u8 + 1;
        slot.timer_prev = prev;
        slot.timer_next = NONE;
    }

    /// Disarms `index`, if it is armed.
    pub fn disarm(&mut self, slots: &mut Slots, index: u32) {
        if !slots[index].has(bits::TIMED) {
            return;
        }
        slots[index].bits &= !bits::TIMED;
        self.armed -= 1;
        let (prev, next) = (slots[index].timer_prev, slots[index].timer_next);
        if slots[index].timer_list == HEAP {
            self.heap_remove(slots, prev as usize);
            return;
        }
        let list = &mut self.lists[usize::from(slots[index].timer_list) - 1];
        match prev {
            NONE => list.head = next,
            _ => slots[prev].timer_next = next,
        }
        match next {
            NONE => list.tail = prev,
            _ => slots[next].timer_prev = prev,
        }
    }

    /// When the first one is due.
    pub fn next(&self, slots: &Slots) -> Option<u64> {
        self.first(slots).map(|(at, _)| at)
    }

    fn first(&self, slots: &Slots) -> Option<(u64, u32)> {
        let lists =
            self.lists.iter().filter(|list| list.head != NONE).map(|list| (slots[list.head].deadline, list.head));
        lists.chain(self.heap.first().copied()).min_by_key(|&(at, _)| at)
    }

    /// Disarms and returns one that is due.
    pub fn pop_due(&mut self, slots: &mut Slots, now: u64) -> Option<u32> {
        let (at, index) = self.first(slots)?;
        if at > now {
            return None;
        }
        self.disarm(slots, index);
        Some(index)
    }

    fn heap_remove(&mut self, slots: &mut Slots, place: usize) {
        let last = self.heap.len() - 1;
        self.heap.swap(place, last);
        self.heap.pop();
        if place < last {
            slots[self.heap[place].1].timer_prev = place as u32;
            let place = self.sift_up(slots, place);
            self.sift_down(slots, place);
        }
    }

    /// In the heap a slot's `timer_prev` is its place.
    fn sift_up(&mut self, slots: &mut Slots, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 4;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.heap.swap(parent, place);
            slots[self.heap[place].1].timer_prev = place as u32;
            place = parent;
        }
        slots[self.heap[place].1].timer_prev = place as u32;
        place
    }

    fn sift_down(&mut self, slots: &mut Slots, mut place: usize) {
        loop {
            let children = (place * 4 + 1)..(place * 4 + 5).min(self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.heap[child].0) else { break };
            if self.heap[place].0 <= self.heap[least].0 {
                break;
            }
            self.heap.swap(place, least);
            slots[self.heap[place].1].timer_prev = place as u32;
            place = least;
        }
        slots[self.heap[place].1].timer_prev = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::SlotTable;
    use super::*;
    use std::sync::Arc;

    #[test]
    fn timers_come_due_in_order_and_never_early() {
        let count = if cfg!(miri) { 60 } else { 2000 };
        let mut slots = Slots::new(Arc::new(SlotTable::new(count).expect("address space")));
        assert!(slots.ensure(count));
        let mut timers = Timers::new();
        let mut seed = 42u64;
        let mut alive = Vec::new();
        for step in 0..count {
            let index = slots.take();
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // A few common timeouts, armed as time passes, and many odd ones.
            let duration = if step % 3 == 0 { (seed >> 33) % 100_000 } else { (seed >> 33) % 4 * 1000 };
            timers.arm(&mut slots, index, u64::from(step) + duration, duration);
            alive.push(index);
            if step % 5 == 0 {
                let gone = alive.swap_remove((seed >> 40) as usize % alive.len());
                timers.disarm(&mut slots, gone);
                timers.disarm(&mut slots, gone);
            }
        }
        let mut last = 0;
        let mut now = 0;
        while let Some(next) = timers.next(&slots) {
            assert!(timers.pop_due(&mut slots, next - 1).is_none(), "early");
            now = now.max(next);
            let index = timers.pop_due(&mut slots, now).expect("due");
            assert!(slots[index].deadline >= last && slots[index].deadline <= now);
            last = slots[index].deadline;
            let place = alive.iter().position(|&other| other == index).expect("armed and not disarmed");
            alive.swap_remove(place);
        }
        assert!(alive.is_empty() && timers.is_empty());
    }
}
