//! Which process this is: `fork(2)` takes memory along, but of the threads only the one that forks.
//!
//! The kernel's counterpart are `mm_struct`s that `fork()` copies and `files_struct`s that it shares. What the crate
//! makes of it is said once, in `src/guide/fork.md`. A child is recognised without a system call:
//! `pthread_atfork` has a handler run in it before `fork` returns. What forks by other means (a raw `clone`) is not
//! recognised.

#[cfg(all(unix, not(loom)))]
pub(super) use handlers::at_fork;
#[cfg(all(unix, not(loom)))]
use handlers::forks;

/// The process in which something was made that the children of the process do not have: a thread.
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Self {
        Process(forks())
    }

    /// Whether this is a child of that process, or a child's.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.0 != forks()
    }
}

#[cfg(not(all(unix, not(loom))))]
fn forks() -> u32 {
    0
}

#[cfg(all(unix, not(loom)))]
mod handlers {
    use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::ffi::c_int;

    type Handler = Option<unsafe extern "C" fn()>;

    unsafe extern "C" {
        fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int;
    }

    /// Has the handlers run by whoever forks from now on: before, and after in the parent and in the child.
    ///
    /// # Safety
    ///
    /// They may be called on any thread at any time, one fork after the other, and the last in a process where other
    /// threads have vanished in the middle of whatever they did.
    pub(in crate::sync) unsafe fn at_fork(prepare: Handler, parent: Handler, child: Handler) {
        // SAFETY: functions that live as long as this code, which the C library forgets if the code is unloaded; for
        // the rest as promised. It fails if there is no memory, and then a child is not recognised.
        unsafe { pthread_atfork(prepare, parent, child) };
    }

    /// How many there have been between the first process and this one, since this was called first.
    ///
    /// Relaxed: it changes where there is one thread.
    #[inline]
    pub(super) fn forks() -> u32 {
        static FORKS: AtomicU32 = AtomicU32::new(0);
        static COUNTED: AtomicBool = AtomicBool::new(false);
        unsafe extern "C" fn count() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        if !COUNTED.load(Ordering::Relaxed) && !COUNTED.swap(true, Ordering::Relaxed) {
            // SAFETY: it counts.
            unsafe { at_fork(None, None, Some(count)) };
        }
        FORKS.load(Ordering::Relaxed)
    }
}
