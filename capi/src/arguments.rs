//! Arguments, as callers pass them and as the Rust API takes them.

use crate::failure::Failed;
use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::slice;
use std::time::Duration;

/// `EINVAL` if a flag is set that is not known.
pub(crate) fn only(flags: u32, known: u32) -> Result<(), Failed> {
    match flags & !known {
        0 => Ok(()),
        _ => Err(Failed::INVALID),
    }
}

/// The flags that are set.
pub(crate) fn union<const N: usize>(flags: [(bool, u32); N]) -> u32 {
    let set = flags.into_iter().filter(|&(is_set, _)| is_set);
    set.fold(0, |union, (_, flag)| union | flag)
}

/// A time limit of the caller's. A negative one is no limit, which timed calls know as `Duration::MAX`.
pub(crate) fn limit(timeout_ns: i64) -> Duration {
    u64::try_from(timeout_ns).map_or(Duration::MAX, Duration::from_nanos)
}

/// An array of the caller's. If it is empty, the pointer may be anything.
///
/// # Safety
///
/// There are so many elements, and they stay so long.
#[inline(always)]
pub(crate) unsafe fn list<'a, T>(start: *const T, count: usize) -> &'a [T] {
    match count {
        0 => &[],
        _ => unsafe { slice::from_raw_parts(start, count) },
    }
}

/// A descriptor for the time of a call. Whether it is open shows when it is used.
///
/// # Safety
///
/// It stays open so long.
pub(crate) unsafe fn borrow<'a>(fd: c_int) -> Result<BorrowedFd<'a>, Failed> {
    if fd < 0 {
        return Err(Failed(libc::EBADF));
    }
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Stores what was read, unless the pointer is NULL.
///
/// # Safety
///
/// The pointer is NULL or may be written to.
#[inline(always)]
pub(crate) unsafe fn give(value: *mut u64, read: Result<u64, Failed>) -> Result<(), Failed> {
    let read = read?;
    if !value.is_null() {
        unsafe { value.write(read) };
    }
    Ok(())
}
