//! What the engine knows of each descriptor: the operations in flight on it, in order of acceptance, and what was learnt
//! about it. What was learnt holds only while operations are in flight without a gap: in a gap the program may close the
//! descriptor and its number may come back as something else.

use super::slot::{NONE, Slots};
use crate::op::CURSOR;
use crate::{op, sys};

const PAGE: usize = 256;

/// One descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub head: u32,
    pub tail: u32,
    /// Operations started at the descriptor's own position, inward and outward, and those that wait behind them.
    pub cursor_in: u16,
    pub cursor_out: u16,
    pub cursor_waiting: u32,
    pub class: Class,
    /// A file opened with O_DIRECT, as far as anyone asked.
    direct: Option<bool>,
    /// A TCP connection without a layer of its own above it, as far as anyone asked.
    plain_tcp: Option<bool>,
    /// The operation that closes it; NONE: none does.
    pub closer: u32,
    /// The epoll driver's: see there.
    pub interest: u8,
}

/// What kind of object it is, as far as anyone asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Unknown,
    /// No position.
    Stream,
    /// A position that reads and writes share.
    File,
    /// A character device: a terminal, or something odd.
    Device,
}

/// Interest bits that outlive a gap: registered with epoll (perhaps as another file).
pub(crate) const KEPT: u8 = 1;

const EMPTY: Descriptor = Descriptor {
    head: NONE,
    tail: NONE,
    cursor_in: 0,
    cursor_out: 0,
    cursor_waiting: 0,
    class: Class::Unknown,
    direct: None,
    plain_tcp: None,
    closer: NONE,
    interest: 0,
};

/// All descriptors, in pages made when first needed.
pub(crate) struct Descriptors {
    pages: Vec<Option<Box<[Descriptor; PAGE]>>>,
}

impl Descriptors {
    pub fn new() -> Descriptors {
        Descriptors { pages: Vec::new() }
    }

    /// The entry of a descriptor that has one.
    #[inline(always)]
    pub fn get(&mut self, fd: i32) -> Option<&mut Descriptor> {
        match self.pages.get_mut(fd as usize / PAGE) {
            Some(Some(page)) => Some(&mut page[fd as usize % PAGE]),
            _ => None,
        }
    }

    /// The entry of an open descriptor; None for one that is not open, so that a wild number costs no memory.
    #[inline(always)]
    pub fn entry(&mut self, fd: i32) -> Option<&mut Descriptor> {
        if !matches!(self.pages.get(fd as usize / PAGE), Some(Some(_))) {
            self.add_page(fd)?;
        }
        self.get(fd)
    }

    #[cold]
    fn add_page(&mut self, fd: i32) -> Option<()> {
        if fd < 0 || !sys::is_open(fd) {
            return None;
        }
        let page = fd as usize / PAGE;
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        self.pages[page] = Some(Box::new([EMPTY; PAGE]));
        Some(())
    }

    /// Appends an operation to its descriptor's list. False: there is no such descriptor, or a close waits for the others:
    /// what comes while the descriptor closes is nothing for the close to wait for.
    #[inline(always)]
    pub fn link(&mut self, slots: &mut Slots, index: u32) -> bool {
        let Some(descriptor) = self.entry(slots[index].args.fd()) else { return false };
        let tail = descriptor.tail;
        if tail == NONE {
            let interest = descriptor.interest & KEPT;
            *descriptor = Descriptor { interest, head: index, ..EMPTY };
        } else if descriptor.closer != NONE {
            return false;
        }
        descriptor.tail = index;
        slots[index].fd_prev = tail;
        slots[index].fd_next = NONE;
        if tail != NONE {
            slots[tail].fd_next = index;
        }
        true
    }

    /// Takes an operation out. True: a close waits and is the only one left.
    #[inline(always)]
    pub fn unlink(&mut self, slots: &mut Slots, index: u32) -> bool {
        let (prev, next) = (slots[index].fd_prev, slots[index].fd_next);
        let fd = slots[index].args.fd();
        if prev != NONE {
            slots[prev].fd_next = next;
        }
        if next != NONE {
            slots[next].fd_prev = prev;
        }
        let Some(descriptor) = self.get(fd) else { return false };
        if prev == NONE {
            descriptor.head = next;
        }
        if next == NONE {
            descriptor.tail = prev;
        }
        descriptor.closer != NONE && descriptor.head == descriptor.tail && descriptor.head != NONE
    }

    /// A close waits for the descriptor's other operations: new ones are too late.
    #[inline(always)]
    pub fn is_closing(&mut self, fd: i32) -> bool {
        self.get(fd).is_some_and(|descriptor| descriptor.closer != NONE)
    }

    /// The operations on a descriptor, oldest first.
    pub fn operations(&mut self, slots: &Slots, fd: i32) -> Vec<u32> {
        let mut found = Vec::new();
        let mut index = self.get(fd).map_or(NONE, |descriptor| descriptor.head);
        while index != NONE {
            found.push(index);
            index = slots[index].fd_next;
        }
        found
    }

    /// What kind of object it is, asked once per stretch of use.
    pub fn class(&mut self, fd: i32) -> Class {
        let look = || match sys::kind_of(fd) {
            sys::Kind::File => Class::File,
            sys::Kind::Device => Class::Device,
            sys::Kind::Pipe | sys::Kind::Other => Class::Stream,
        };
        match self.get(fd) {
            None => look(),
            Some(descriptor) => {
                if descriptor.class == Class::Unknown {
                    descriptor.class = look();
                }
                descriptor.class
            }
        }
    }

    /// A file opened with O_DIRECT, asked once per stretch of use.
    #[inline(always)]
    pub fn is_direct_file(&mut self, fd: i32) -> bool {
        match self.get(fd) {
            None => sys::is_direct_file(fd),
            Some(descriptor) => *descriptor.direct.get_or_insert_with(|| sys::is_direct_file(fd)),
        }
    }

    /// A TCP connection whose bytes are the program's, asked once per stretch of use.
    #[inline]
    pub fn is_plain_tcp(&mut self, fd: i32) -> bool {
        self.get(fd).is_some_and(|descriptor| *descriptor.plain_tcp.get_or_insert_with(|| sys::is_plain_tcp(fd)))
    }

    /// It is known to be a file.
    #[inline(always)]
    pub fn is_known_file(&mut self, fd: i32) -> bool {
        self.get(fd).is_some_and(|descriptor| descriptor.class == Class::File)
    }

    /// Whether an operation at the descriptor's own position may start now; if so it counts as started. Two in the same
    /// direction never overlap, and on a file no two at all.
    pub fn cursor_enter(&mut self, fd: i32, inward: bool) -> bool {
        let Some(descriptor) = self.get(fd) else { return true };
        let (same, other) = match inward {
            true => (descriptor.cursor_in, descriptor.cursor_out),
            false => (descriptor.cursor_out, descriptor.cursor_in),
        };
        if same > 0 || (other > 0 && self.class(fd) == Class::File) {
            return false;
        }
        if let Some(descriptor) = self.get(fd) {
            *(if inward { &mut descriptor.cursor_in } else { &mut descriptor.cursor_out }) += 1;
        }
        true
    }

    /// An operation at the descriptor's own position has ended. True: others wait.
    pub fn cursor_leave(&mut self, fd: i32, inward: bool) -> bool {
        let Some(descriptor) = self.get(fd) else { return false };
        let count = if inward { &mut descriptor.cursor_in } else { &mut descriptor.cursor_out };
        *count = count.saturating_sub(1);
        descriptor.cursor_waiting > 0
    }

    /// Whether `kind` works at the descriptor's own position, and in which direction.
    pub fn cursor_of(kind: u8) -> Option<bool> {
        let def = op::of(kind);
        def.is(CURSOR).then(|| def.is(op::INWARD))
    }
}
