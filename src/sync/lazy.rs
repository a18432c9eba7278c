//! A value that most owners never need: made when it is first asked for.
//!
//! Like `std::sync::OnceLock`, but one word in size, visible to loom, and non-blocking: if several threads make the
//! value at once, one wins and the others drop theirs.

use super::atomic::{AtomicPtr, Ordering};
use std::marker::PhantomData;
use std::ptr;

pub(crate) struct Lazy<T> {
    value: AtomicPtr<T>,
    /// It owns a `T`.
    _owned: PhantomData<Box<T>>,
}

// SAFETY: through ownership or `&mut` it is an `Option<Box<T>>`, and through `&` it hands out `&T`. A thread that only
// has `&Lazy` may drop a `T` that it has made, and may leave one for another thread to drop.
unsafe impl<T: Send + Sync> Sync for Lazy<T> {}

impl<T> Lazy<T> {
    maybe_const! {
        pub(crate) fn new() -> Self {
            Lazy {
                value: AtomicPtr::new(ptr::null_mut()),
                _owned: PhantomData,
            }
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        // Acquire pairs with the Release in `get_or_make`.
        let value = self.value.load(Ordering::Acquire);
        // SAFETY: null, or a box that was leaked by `get_or_make` and is freed when `self`, which is borrowed, is
        // dropped.
        unsafe { value.as_ref() }
    }

    #[inline]
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> T) -> &T {
        match self.get() {
            Some(value) => value,
            None => self.make(make()),
        }
    }

    #[cold]
    #[inline(never)]
    fn make(&self, value: T) -> &T {
        let made = Box::into_raw(Box::new(value));
        // Release hands the value over; Acquire takes over the winner's.
        let value = match self.value.compare_exchange(
            ptr::null_mut(),
            made,
            Ordering::Release,
            Ordering::Acquire,
        ) {
            Ok(_) => made,
            Err(winner) => {
                // SAFETY: it was leaked above and shown to nobody.
                drop(unsafe { Box::from_raw(made) });
                winner
            }
        };
        // SAFETY: as in `get`.
        unsafe { &*value }
    }
}

impl<T> Drop for Lazy<T> {
    fn drop(&mut self) {
        let value = self.value.load(Ordering::Relaxed);
        if !value.is_null() {
            // SAFETY: it was leaked by `get_or_make`, and all borrows of it have ended: they borrowed `self`.
            drop(unsafe { Box::from_raw(value) });
        }
    }
}
