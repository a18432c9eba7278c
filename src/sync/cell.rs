//! The cell for values that the code itself keeps apart.

#[cfg(loom)]
pub(crate) use loom::cell::{ConstPtr, UnsafeCell};

/// std's cell behind the face of loom's, which notices accesses that nothing keeps apart.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

/// A pointer into an [`UnsafeCell`]: while it is there, nobody may write.
#[cfg(not(loom))]
pub(crate) struct ConstPtr<T>(*const T);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

#[cfg(not(loom))]
impl<T> ConstPtr<T> {
    /// # Safety
    ///
    /// The cell is there, and nobody writes to it as long as the reference is used.
    #[inline(always)]
    pub(crate) unsafe fn deref(&self) -> &T {
        // SAFETY: as promised.
        unsafe { &*self.0 }
    }
}
