//! Directories: reading their entries. No kernel has a native form (7.3), so a thread of the pool does it.

use super::*;
use crate::sys;
use std::ffi::{c_char, c_void};

/// Kind of upcall_op_readdir(). Since 0.1.
pub const UPCALL_OP_READDIR: upcall_kind = 33;

/// @brief getdents64(2): fills `buf` with the next entries of the open directory `fd`, "." and ".." among them, in the
/// directory's own order. Result: the bytes of the records, to be walked by upcall_dirent_next(); 0 at the end.
///
/// It uses and moves the descriptor's own position: the loop runs such operations on one descriptor one at a time, in
/// submission order. `buf`, aligned as a uint64_t, is borrowed until the final event; NULL with upcall_op.buffers. With
/// UPCALL_MULTISHOT, which needs them, each event lends a buffer of records until the final event has result 0.
///
/// No room for the next entry is -EINVAL (280 bytes hold any of common file systems); what is no directory is -ENOTDIR; a
/// directory that was removed is -ENOENT. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_op_readdir(fd: i32, buf: *mut c_void, len: usize) -> upcall_op {
    upcall_op { fd, addr: buf as u64, len: len as u64, ..blank(UPCALL_OP_READDIR) }
}

/// @brief Walks the records that upcall_op_readdir() put in `buf`: `result` is the event's, `previous` the record before, NULL
/// for the first. NULL when there is none. What does not look like a record within `result` bytes ends the walk.
///
/// `for (const upcall_dirent *d = NULL; (d = upcall_dirent_next(event->buffer, event->result, d));)`. Any
/// thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_dirent_next(
    buf: *const c_void,
    result: i64,
    previous: *const upcall_dirent,
) -> *const upcall_dirent {
    let records = side::bytes(buf as u64, result.max(0) as u64);
    let from = match previous.is_null() {
        true => 0,
        false => match record_at(records, (previous as usize).wrapping_sub(buf as usize)) {
            Some((at, len)) => at + len,
            None => return std::ptr::null(),
        },
    };
    match record_at(records, from) {
        Some((at, _)) => records[at..].as_ptr().cast(),
        None => std::ptr::null(),
    }
}

/// @brief The name of an entry, in the buffer of its record: valid as long as that. Any thread. Since 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn upcall_dirent_name(entry: *const upcall_dirent) -> *const c_char {
    if entry.is_null() {
        return std::ptr::null();
    }
    entry.wrapping_byte_add(NAME_AT).cast()
}

/// Where a record's name begins: right after its type.
const NAME_AT: usize = std::mem::offset_of!(upcall_dirent, r#type) + 1;

/// The record at `at`, with its length, if a whole one with a whole name is there.
fn record_at(records: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = records.get(at..)?;
    let reclen = std::mem::offset_of!(upcall_dirent, reclen);
    let len = usize::from(u16::from_ne_bytes(rest.get(reclen..reclen + 2)?.try_into().ok()?));
    // The kernel aligns them; a program reads them as the structures they are.
    let is_whole = len.is_multiple_of(8) && len >= size_of::<upcall_dirent>() && rest.get(NAME_AT..len)?.contains(&0);
    is_whole.then_some((at, len))
}

pub(super) const OPS: &[OpDef] = &[OpDef {
    kind: UPCALL_OP_READDIR,
    name: "readdir",
    facts: FD | MOVES | RECORDS | CURSOR | INWARD | CAN_MULTI | CAN_LEND | MULTI_LENDS,
    check: Some(check_data),
    lent: Some(|_, _, _| Decision::Pool),
    block: Some(|args| sys::getdents64(args.fd(), args.ptr(), args.call_len())),
    ..OpDef::BASE
}];

#[cfg(test)]
mod tests {
    use super::*;

    fn records(names: &[&str]) -> Vec<u64> {
        let mut words = Vec::new();
        for name in names {
            let len = (NAME_AT + name.len() + 1).next_multiple_of(8);
            let mut bytes = vec![0; len];
            bytes[16..18].copy_from_slice(&(len as u16).to_ne_bytes());
            bytes[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
            words.extend(bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())));
        }
        words
    }

    fn walked(words: &[u64], result: i64) -> Vec<String> {
        let (mut found, mut entry) = (Vec::new(), std::ptr::null());
        loop {
            entry = upcall_dirent_next(words.as_ptr().cast(), result, entry);
            if entry.is_null() {
                return found;
            }
            // SAFETY: the walk checked that a name with its NUL is there.
            let name = unsafe { std::ffi::CStr::from_ptr(upcall_dirent_name(entry)) };
            found.push(name.to_str().unwrap().to_owned());
        }
    }

    #[test]
    fn a_walk_finds_each_record_and_stops_at_what_is_none() {
        let words = records(&[".", "..", "a-name-that-is-longer-than-the-header", "x"]);
        let len = words.len() as i64 * 8;
        assert_eq!(walked(&words, len), [".", "..", "a-name-that-is-longer-than-the-header", "x"]);
        assert_eq!(walked(&words, len - 1), [".", "..", "a-name-that-is-longer-than-the-header"]);
        assert_eq!(walked(&words, 47), ["."]);
        for none in [0, 1, 17, 18, 23, -1, -20, i64::MIN] {
            assert!(walked(&words, none).is_empty(), "{none}");
        }
        assert!(upcall_dirent_next(std::ptr::null(), len, std::ptr::null()).is_null());
        // A record of another buffer, and one that is not at its place.
        let (buf, other) = (words.as_ptr(), records(&["other"]));
        assert!(upcall_dirent_next(buf.cast(), len, other.as_ptr().cast()).is_null());
        assert!(upcall_dirent_next(buf.cast(), len, buf.wrapping_sub(3).cast()).is_null());
        assert!(upcall_dirent_next(buf.cast(), len, buf.wrapping_byte_add(len as usize).cast()).is_null());
        assert!(upcall_dirent_name(std::ptr::null()).is_null());
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        for lie in [0u16, 1, 18, 19, 23, 25, u16::MAX] {
            let mut words = records(&["one", "two"]);
            words[5] = words[5] & !0xffff | u64::from(lie).to_le();
            assert_eq!(walked(&words, 48), ["one"], "{lie}");
        }
        let mut unended = records(&["a"]);
        unended[2] |= !0xff_ffff;
        assert!(walked(&unended, 24).is_empty());
    }
}
