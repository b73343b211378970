//! Submits whose order matters: links, hard links and drains. A drain cuts the submit into segments; a segment starts when
//! everything before it has ended. Inside a segment chains run side by side, each operation starting its successor.

use crate::abi::{UPCALL_DRAIN, UPCALL_LINK, UPCALL_LINK_ALWAYS};

#[derive(Clone, Copy)]
struct Member {
    index: u32,
    flags: u32,
    ended: bool,
    severed: bool,
    /// Its predecessor in the chain allows it to start.
    allowed: bool,
}

/// One ordered submit. Recycled.
#[derive(Default)]
pub(crate) struct Group {
    members: Vec<Member>,
    /// Operations not ended, in all and in the segment that runs; that segment's end.
    left: usize,
    segment_left: usize,
    segment_end: usize,
}

/// What the end of an operation means for the others.
#[derive(Default)]
pub(crate) struct Steps {
    pub start: Vec<u32>,
    pub sever: Vec<u32>,
}

const LINKS: u32 = UPCALL_LINK | UPCALL_LINK_ALWAYS;

impl Group {
    /// Forgets the last submit.
    pub fn reset(&mut self) {
        self.members.clear();
        self.left = 0;
        self.segment_left = 0;
        self.segment_end = 0;
    }

    /// Adds the next operation of the submit; returns its place.
    pub fn add(&mut self, index: u32, flags: u32) -> u32 {
        let allowed = self.members.last().is_none_or(|before| before.flags & LINKS == 0);
        self.members.push(Member { index, flags, ended: false, severed: false, allowed });
        self.left += 1;
        self.members.len() as u32 - 1
    }

    /// All are added: what may start.
    pub fn begin(&mut self, steps: &mut Steps) {
        self.next_segments(steps);
    }

    /// Every operation has ended.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The operation at `place` has ended.
    pub fn ended(&mut self, place: u32, success: bool, steps: &mut Steps) {
        let place = place as usize;
        let Some(member) = self.members.get_mut(place).filter(|member| !member.ended) else { return };
        member.ended = true;
        let (severed, flags) = (member.severed, member.flags);
        // Cancelled before its turn: whether what follows starts is still for its predecessor to say.
        let early = !severed && !member.allowed && flags & UPCALL_LINK_ALWAYS != 0;
        self.left -= 1;
        if place < self.segment_end {
            self.segment_left -= 1;
        }
        if flags & LINKS != 0 && !early {
            let goes_on = !severed && (success || flags & UPCALL_LINK_ALWAYS != 0);
            self.successor(place + 1, goes_on, steps);
        }
        if self.segment_left == 0 {
            self.next_segments(steps);
        }
    }

    fn successor(&mut self, place: usize, goes_on: bool, steps: &mut Steps) {
        let running = place < self.segment_end;
        let Some(next) = self.members.get_mut(place) else { return };
        if next.ended {
            if !next.severed && next.flags & UPCALL_LINK_ALWAYS != 0 {
                self.successor(place + 1, goes_on, steps);
            }
        } else if !goes_on {
            next.severed = true;
            steps.sever.push(next.index);
        } else {
            next.allowed = true;
            if running {
                steps.start.push(next.index);
            }
        }
    }

    /// Starts the next segment that has anything left to do.
    fn next_segments(&mut self, steps: &mut Steps) {
        while self.segment_left == 0 && self.segment_end < self.members.len() {
            let from = self.segment_end;
            // A drain is a segment of its own: later operations wait for it.
            let is_drain = |member: &Member| member.flags & UPCALL_DRAIN != 0;
            self.segment_end = match is_drain(&self.members[from]) {
                true => from + 1,
                false => self.members[from..].iter().position(is_drain).map_or(self.members.len(), |at| from + at),
            };
            for member in &self.members[from..self.segment_end] {
                if !member.ended {
                    self.segment_left += 1;
                    if member.allowed && !member.severed {
                        steps.start.push(member.index);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(flags: &[u32]) -> (Group, Steps) {
        let mut group = Group::default();
        for (index, &flags) in flags.iter().enumerate() {
            group.add(index as u32, flags);
        }
        let mut steps = Steps::default();
        group.begin(&mut steps);
        (group, steps)
    }

    fn end(group: &mut Group, place: u32, success: bool) -> (Vec<u32>, Vec<u32>) {
        let mut steps = Steps::default();
        group.ended(place, success, &mut steps);
        (steps.start, steps.sever)
    }

    #[test]
    fn a_link_starts_its_successor_only_after_success() {
        let (mut chain, steps) = group(&[UPCALL_LINK, UPCALL_LINK, 0, 0]);
        assert_eq!(steps.start, [0, 3]);
        assert_eq!(end(&mut chain, 0, true), (vec![1], vec![]));
        assert_eq!(end(&mut chain, 1, false), (vec![], vec![2]));
        assert_eq!(end(&mut chain, 2, false), (vec![], vec![]));
        assert_eq!(end(&mut chain, 3, true), (vec![], vec![]));
        assert!(chain.is_over());
    }

    #[test]
    fn a_severed_chain_ends_to_its_last_operation() {
        let (mut chain, _) = group(&[UPCALL_LINK, UPCALL_LINK_ALWAYS, 0]);
        assert_eq!(end(&mut chain, 0, false).1, [1]);
        assert_eq!(end(&mut chain, 1, false).1, [2], "a severed operation does not start the rest, whatever its link");
    }

    #[test]
    fn link_always_starts_its_successor_whatever_happens() {
        let (mut chain, _) = group(&[UPCALL_LINK_ALWAYS, 0]);
        assert_eq!(end(&mut chain, 0, false).0, [1]);
    }

    #[test]
    fn one_cancelled_before_its_turn_starts_nothing_before_it() {
        let flags = [UPCALL_LINK, UPCALL_LINK_ALWAYS, 0];
        let (mut chain, _) = group(&flags);
        assert_eq!(end(&mut chain, 1, false), (vec![], vec![]), "the first has not ended");
        assert_eq!(end(&mut chain, 0, true), (vec![2], vec![]));
        let (mut chain, _) = group(&flags);
        end(&mut chain, 1, false);
        assert_eq!(end(&mut chain, 0, false), (vec![], vec![2]), "as if the second had ended after the first");
        let (mut chain, _) = group(&[UPCALL_LINK, UPCALL_LINK, 0]);
        assert_eq!(end(&mut chain, 1, false), (vec![], vec![2]), "nothing can save what follows a plain link");
    }

    #[test]
    fn a_drain_waits_for_all_before_it_and_all_after_wait_for_it() {
        let (mut writes, steps) = group(&[0, 0, UPCALL_DRAIN, 0, 0]);
        assert_eq!(steps.start, [0, 1]);
        assert_eq!(end(&mut writes, 1, true).0, Vec::<u32>::new());
        assert_eq!(end(&mut writes, 0, false).0, [2], "a drain starts whatever the results");
        assert_eq!(end(&mut writes, 2, true).0, [3, 4]);
    }

    #[test]
    fn an_operation_that_ends_while_it_waits_holds_nothing_up() {
        let (mut group, _) = group(&[0, UPCALL_DRAIN, UPCALL_DRAIN, 0]);
        assert_eq!(end(&mut group, 1, false).0, Vec::<u32>::new());
        assert_eq!(end(&mut group, 0, true).0, [2]);
        assert_eq!(end(&mut group, 2, true).0, [3]);
    }

    #[test]
    fn a_link_into_a_drain_needs_both() {
        let (mut group, steps) = group(&[0, UPCALL_LINK, UPCALL_DRAIN]);
        assert_eq!(steps.start, [0, 1]);
        assert_eq!(end(&mut group, 1, true).0, Vec::<u32>::new());
        assert_eq!(end(&mut group, 0, true).0, [2]);
    }
}
