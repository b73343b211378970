//! Another Rust library in the same program, with its own copy of Rust's runtime: it allocates, starts a thread, catches
//! a panic.

#[unsafe(no_mangle)]
pub extern "C" fn other_sum(n: u32) -> u64 {
    let caught = std::panic::catch_unwind(|| if n == u32::MAX { panic!("too many") });
    let numbers: Vec<u64> = (1..=u64::from(n)).collect();
    let sum = std::thread::spawn(move || numbers.iter().sum()).join();
    if caught.is_ok() { sum.unwrap_or(0) } else { 0 }
}
