//! The border: results become numbers, and panics end here.
//!
//! A failed call returns the errno's negative instead of setting `errno`: that would take longer than most calls do.

use errno::{Errno, set_errno};
use std::any::Any;
use std::ffi::c_int;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;

/// An errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed(pub c_int);

impl Failed {
    pub(crate) const INVALID: Failed = Failed(libc::EINVAL);
    pub(crate) const WOULD_BLOCK: Failed = Failed(libc::EAGAIN);
    pub(crate) const TIMED_OUT: Failed = Failed(libc::ETIMEDOUT);
}

/// The number that the kernel would have given.
impl<E: Into<io::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Failed(error.into().raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Makes a call that may fail. A panic ends here, as `ENOTRECOVERABLE`: the panic hook has written its message.
#[inline(always)]
pub(crate) fn attempt(call: impl FnOnce() -> Result<(), Failed>) -> c_int {
    counted(|| call().map(|()| 0))
}

/// The same for a call that returns a number that is not negative.
#[inline(always)]
pub(crate) fn counted(call: impl FnOnce() -> Result<c_int, Failed>) -> c_int {
    // The result becomes a number inside, so that the hot paths have no `Result` in memory.
    let number = || call().unwrap_or_else(|Failed(errno)| -errno);
    // What a panic leaves half done is what the Rust API says of it.
    panic::catch_unwind(AssertUnwindSafe(number)).unwrap_or_else(broken)
}

/// The same for a call that makes a handle: NULL and `errno` if it fails.
pub(crate) fn made<T>(call: impl FnOnce() -> Result<*mut T, Failed>) -> *mut T {
    let mut handle = ptr::null_mut();
    let result = attempt(|| {
        handle = call()?;
        Ok(())
    });
    if result < 0 {
        set_errno(Errno(-result));
    }
    handle
}

#[cold]
fn broken(payload: Box<dyn Any + Send>) -> c_int {
    // Its drop is code from anywhere, and may panic itself.
    mem::forget(payload);
    -libc::ENOTRECOVERABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_numbers() {
        assert_eq!(attempt(|| Ok(())), 0);
        assert_eq!(counted(|| Ok(7)), 7);
        assert_eq!(attempt(|| Err(Failed::TIMED_OUT)), -libc::ETIMEDOUT);
        assert!(made::<u8>(|| Err(Failed::INVALID)).is_null());
        assert_eq!(errno::errno(), Errno(libc::EINVAL));
    }

    /// A panic becomes an errno, even one whose payload panics when it is dropped.
    #[test]
    fn no_panic_crosses_the_border() {
        struct Worse;
        impl Drop for Worse {
            fn drop(&mut self) {
                panic!("once more");
            }
        }
        for call in [
            || panic!("a fault of the library"),
            || panic::panic_any(Worse),
        ] as [fn(); 2]
        {
            let result = attempt(|| {
                call();
                Ok(())
            });
            assert_eq!(result, -libc::ENOTRECOVERABLE);
            let handle = made::<u8>(|| {
                call();
                Err(Failed::INVALID)
            });
            assert!(handle.is_null());
            assert_eq!(errno::errno(), Errno(libc::ENOTRECOVERABLE));
        }
    }
}
