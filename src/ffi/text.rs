//! Texts for the program: the last error of each thread, and the names of errors and kinds. Nothing here allocates.

use crate::abi::*;
use crate::op;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char};
use std::fmt::{self, Write};

/// A NUL-terminated text of bounded length; what does not fit is cut.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Text<N> = Text { bytes: [0; N], len: 0 };

    fn set(&mut self, arguments: fmt::Arguments<'_>) -> *const c_char {
        self.len = 0;
        let _ = self.write_fmt(arguments);
        self.bytes[self.len] = 0;
        self.bytes.as_ptr().cast()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = N - 1 - self.len;
        let count = text.len().min(room);
        self.bytes[self.len..self.len + count].copy_from_slice(&text.as_bytes()[..count]);
        self.len += count;
        Ok(())
    }
}

thread_local! {
    static LAST_ERROR: UnsafeCell<Text<256>> = const { UnsafeCell::new(Text::EMPTY) };
    static ERROR_TEXT: UnsafeCell<Text<128>> = const { UnsafeCell::new(Text::EMPTY) };
}

/// Notes the text of a failure and returns its negative errno.
#[cold]
pub(crate) fn fail_with(error: i32, arguments: fmt::Arguments<'_>) -> i32 {
    // SAFETY: this thread's own text; no reference leaves the closure.
    let _ = LAST_ERROR.try_with(|text| unsafe { (*text.get()).set(arguments) });
    -error
}

/// [`fail_with`] for a plain text.
#[cold]
pub(crate) fn fail(error: i32, text: impl fmt::Display) -> i32 {
    fail_with(error, format_args!("{text}"))
}

pub(super) fn last_error() -> *const c_char {
    // SAFETY: this thread's own text, which stays where it is until the thread ends.
    LAST_ERROR.try_with(|text| unsafe { (*text.get()).bytes.as_ptr().cast() }).unwrap_or(c"".as_ptr())
}

pub(super) fn strerror(error: i32) -> *const c_char {
    let error = error.unsigned_abs();
    if error == 0 {
        return c"Success".as_ptr();
    }
    let mut words = [0u8; 96];
    let mut known = c"";
    if (1..4096).contains(&error) {
        // SAFETY: the buffer is writable; the XSI form writes a NUL-terminated text into it.
        let found = unsafe { libc::strerror_r(error as i32, words.as_mut_ptr().cast(), words.len()) };
        if found == 0 {
            known = CStr::from_bytes_until_nul(&words).unwrap_or(c"");
        }
    }
    if (3001..3200).contains(&error) {
        // SAFETY: gai_strerror takes any number and returns a static string.
        known = unsafe { CStr::from_ptr(libc::gai_strerror(3000 - error as i32)) };
    }
    let text = known.to_str().unwrap_or("");
    let set = |place: &UnsafeCell<Text<128>>| {
        // SAFETY: this thread's own text; no reference leaves the closure.
        unsafe {
            match text {
                "" => (*place.get()).set(format_args!("Unknown error {error}")),
                text => (*place.get()).set(format_args!("{text}")),
            }
        }
    };
    ERROR_TEXT.try_with(set).unwrap_or(c"".as_ptr())
}

/// The kinds' names as C strings, made once.
pub(super) fn op_name(kind: upcall_kind) -> *const c_char {
    static NAMES: std::sync::OnceLock<Vec<std::ffi::CString>> = std::sync::OnceLock::new();
    let names = NAMES.get_or_init(|| {
        (0..op::KINDS as u32)
            .map(|kind| {
                std::ffi::CString::new(op::find(kind).map_or("unknown", |found| found.name)).unwrap_or_default()
            })
            .collect()
    });
    names.get(kind as usize).map_or(c"unknown".as_ptr(), |name| name.as_ptr())
}
