//! Handles: what an `Arc` or a `Box` owns, as pointers. Functions that are exported call these.

use std::sync::Arc;

/// Makes a handle with _ref and _unref, and its first reference.
pub(crate) fn new_shared<T>(object: T) -> *mut T {
    Arc::into_raw(Arc::new(object)).cast_mut()
}

/// Adds a reference, and returns the handle.
///
/// # Safety
///
/// [`new_shared`] made the handle, and it has a reference.
pub(crate) unsafe fn add_reference<T>(handle: *mut T) -> *mut T {
    unsafe { Arc::increment_strong_count(handle) };
    handle
}

/// Gives up a reference.
///
/// # Safety
///
/// The handle is NULL, or [`new_shared`] made it and the caller has a reference.
pub(crate) unsafe fn give_up_reference<T>(handle: *mut T) {
    if !handle.is_null() {
        unsafe { Arc::decrement_strong_count(handle) };
    }
}

/// Makes a handle with one owner and _free.
pub(crate) fn new_owned<T>(object: T) -> *mut T {
    Box::into_raw(Box::new(object))
}

/// Frees a handle.
///
/// # Safety
///
/// The handle is NULL, or [`new_owned`] made it and the caller owns it.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        drop(unsafe { Box::from_raw(handle) });
    }
}
