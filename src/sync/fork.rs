//! Which process this is: `fork(2)` takes memory along, but of the threads only the one that forks.
//!
//! The kernel's counterparts are `mm_struct`s, which `fork()` copies, and `files_struct`s, which it shares. What the
//! crate promises for children is documented once, in `src/guide/fork.md`. A child is recognised without a system call:
//! `pthread_atfork` has a handler run in it before `fork` returns. What forks by other means (a raw `clone`) is not
//! recognised.

#[cfg(all(unix, not(loom)))]
pub(super) use handlers::at_fork;
#[cfg(all(unix, not(loom)))]
use handlers::forks;

/// The process in which a thread was started. The children of the process do not have the thread.
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Self {
        Process(forks())
    }

    /// Whether this process is a child of that process, or a descendant.
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

    /// Has the handlers run at each fork from now on: before it, and after it in the parent and in the child.
    ///
    /// # Safety
    ///
    /// They may be called on any thread at any time, one fork after the other, and the last of them in a process whose
    /// other threads have vanished in the middle of what they did.
    pub(in crate::sync) unsafe fn at_fork(prepare: Handler, parent: Handler, child: Handler) {
        // SAFETY: functions that live as long as this code, which the C library forgets if the code is unloaded; for
        // the rest as promised. It fails if there is no memory, and then a child is not recognised.
        unsafe { pthread_atfork(prepare, parent, child) };
    }

    /// How many forks there have been between the first process and this one, since the first call of this function.
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
