//! Upcall: asynchronous I/O for C and C++ on Linux, on io_uring or on epoll, with the same results on both.
mod abi;
#[cfg(not(test))]
mod ffi;
mod op;
