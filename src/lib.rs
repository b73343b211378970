//! Upcall: asynchronous I/O for C and C++ on Linux, on io_uring or on epoll, with the same results on both.
//!
//! The rooms, each of which knows only those below it:
//!
//! - [`ffi`]: the C surface: checks, converts, calls the engine.
//! - [`reader`]: a file read ahead behind a pollable descriptor: a client of the engine.
//! - [`engine`]: what every backend shares: slots and ids, the turn of the loop, links, deadlines, multishot, buffers.
//! - [`driver`]: how an operation meets the kernel: `uring`, `epoll`, and threads for what would block.
//! - [`op`]: the catalogue: one entry per operation, with its meanings in system calls. Data that all may read.
//! - [`sys`]: wrappers that answer a value or a negative errno.
//!
//! One argument carries the unsafe code: *the slot, with its side block, owns everything the kernel or a thread may touch for
//! an operation, at addresses that do not move, until the operation's terminal completion; and what the program lent, it
//! lent until the final event, which comes after that.*

#![allow(clippy::unnecessary_cast, reason = "the C library's types differ between C libraries")]

mod abi;
mod driver;
mod engine;
mod ffi;
mod op;
mod reader;
mod sys;
