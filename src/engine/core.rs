//! What engine and drivers share: slots, side blocks, descriptors.

use super::descriptors::Descriptors;
use super::shared::{Counters, Shared};
use super::slot::{NONE, Slot, Slots, State, bits};
use crate::op::side::Side;
use crate::op::{self, OpDef};
use std::sync::Arc;

/// See the module.
pub(crate) struct Core {
    pub slots: Slots,
    pub sides: Sides,
    pub descriptors: Descriptors,
    pub shared: Arc<Shared>,
}

impl Core {
    pub fn new(shared: Arc<Shared>) -> Core {
        let slots = Slots::new(shared.table.clone());
        Core { slots, sides: Sides::default(), descriptors: Descriptors::new(), shared }
    }

    #[inline(always)]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The catalogue's entry of an operation.
    #[inline(always)]
    pub fn def(&self, index: u32) -> &'static OpDef {
        op::of(self.slots[index].kind)
    }

    /// The operation's side block, made if it has none.
    pub fn side(&mut self, index: u32) -> &mut Side {
        if self.slots[index].side == NONE {
            self.slots[index].side = self.sides.take();
            self.slots[index].bits |= bits::SIDE;
        }
        self.sides.get(self.slots[index].side)
    }

    /// The operation's side block, if it has one.
    #[inline(always)]
    pub fn side_of(&mut self, index: u32) -> Option<&mut Side> {
        match self.slots[index].side {
            NONE => None,
            side => Some(self.sides.get(side)),
        }
    }

    /// A slot together with its side block.
    pub fn both(&mut self, index: u32) -> (&mut Slot, Option<&mut Side>) {
        let side = self.slots[index].side;
        (&mut self.slots[index], (side != NONE).then(|| self.sides.get(side)))
    }

    /// The operations on a descriptor that the engine knows of, those that have it as their second one last.
    pub fn operations(&mut self, fd: i32) -> Vec<u32> {
        let mut found = self.descriptors.operations(&self.slots, fd);
        for id in self.shared.seconds.on(fd) {
            if let Some(index) = self.slots.find(id)
                && self.slots[index].state != State::Inbox
                && self.slots[index].args.fd() != fd
            {
                found.push(index);
            }
        }
        found
    }

    /// Takes an operation out of its descriptor's list. The descriptor, if only a waiting close is left on it.
    #[inline(always)]
    pub fn unlist(&mut self, index: u32) -> Option<i32> {
        if !self.slots[index].has(bits::LISTED) {
            return None;
        }
        self.slots[index].bits &= !bits::LISTED;
        let fd = self.slots[index].args.fd();
        (self.descriptors.unlink(&mut self.slots, index) && self.only_a_close_is_left(fd)).then_some(fd)
    }

    /// As [`Core::unlist`], for the second descriptor of one that has two.
    pub fn unlist_second(&mut self, index: u32) -> Option<i32> {
        let second = self.slots[index].args.fd2();
        (self.def(index).is(op::TWO_FDS)
            && self.shared.seconds.remove(second, self.slots[index].id())
            && self.only_a_close_is_left(second))
        .then_some(second)
    }

    /// A close waits for the descriptor's other operations, and there are none.
    pub fn only_a_close_is_left(&mut self, fd: i32) -> bool {
        self.descriptors.is_closing(fd) && self.operations(fd).len() == 1
    }

    /// Bytes the operation still has to move.
    pub fn left(&mut self, index: u32) -> u64 {
        if self.def(index).is(op::VECTOR) {
            return self.side_of(index).map_or(0, |side| side.vector_left());
        }
        self.slots[index].args.len
    }

    /// `count` more bytes are moved: the arguments name the rest.
    pub fn advance(&mut self, index: u32, count: u64) {
        let def = self.def(index);
        let (slot, side) = self.both(index);
        slot.transferred += count;
        if let (true, Some(side)) = (def.is(op::VECTOR), side) {
            side.advance_vector(count);
            let rest = &side.iov[side.iov_done..];
            if def.is(op::MESSAGE) {
                // Name, control data and flags come, or go, with the first part.
                side.kept.get_or_insert((side.msg.msg_namelen, side.msg.msg_controllen, side.msg.msg_flags));
                side.msg.msg_iov = rest.as_ptr().cast_mut();
                side.msg.msg_iovlen = rest.len() as _;
                // The room for the name went with it, too: msg_namelen is now the name's real length, which may be more.
                side.msg.msg_name = std::ptr::null_mut();
                side.msg.msg_namelen = 0;
                side.msg.msg_control = std::ptr::null_mut();
                side.msg.msg_controllen = 0;
            } else {
                slot.args.addr = rest.as_ptr() as u64;
                slot.args.len = rest.len() as u64;
            }
        } else {
            slot.args.addr += count;
            slot.args.len = slot.args.len.saturating_sub(count);
        }
        if def.is(op::POSITIONAL) {
            slot.args.offset = slot.args.offset.wrapping_add(count);
        }
        if def.is(op::TWO_FDS) {
            for offset in [&mut slot.args.offset, &mut slot.args.offset2] {
                if *offset != op::CURRENT {
                    *offset += count;
                }
            }
        }
    }
}

/// Side blocks at stable addresses, recycled.
#[derive(Default)]
pub(crate) struct Sides {
    #[allow(clippy::vec_box, reason = "a block's address must not change: arguments point into it")]
    blocks: Vec<Box<Side>>,
    free: Vec<u32>,
}

impl Sides {
    /// A blank block.
    pub fn take(&mut self) -> u32 {
        match self.free.pop() {
            Some(number) => number,
            None => self.add(Box::new(Side::new())),
        }
    }

    /// Takes in a block that another thread filled.
    pub fn add(&mut self, side: Box<Side>) -> u32 {
        if let Some(number) = self.free.pop() {
            self.blocks[number as usize] = side;
            return number;
        }
        self.blocks.push(side);
        self.blocks.len() as u32 - 1
    }

    #[inline(always)]
    pub fn get(&mut self, number: u32) -> &mut Side {
        &mut self.blocks[number as usize]
    }

    /// The operation has ended: nothing points into its block.
    pub fn put_back(&mut self, number: u32) {
        self.get(number).reset();
        self.free.push(number);
    }
}
