//! Which thread this is.

/// A number that no other living thread has, and not 0.
///
/// The address of a thread-local would do. But in a shared library, such as libdoorbell, that takes a call of
/// `__tls_get_addr`: 22 of the 130 instructions of a lookup that hits.
#[cfg(all(
    target_os = "linux",
    target_arch = "x86_64",
    target_pointer_width = "64",
    not(any(loom, miri))
))]
#[inline(always)]
pub(crate) fn this_thread() -> usize {
    let pointer: usize;
    // SAFETY: the thread pointer of x86-64 (thread-local storage, variant II) points to a word that holds the same
    // pointer. The word is the thread's own, and does not change.
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(pure, readonly, nostack, preserves_flags));
    }
    pointer
}

/// A number that no other living thread has, and not 0.
#[cfg(not(any(
    loom,
    all(
        target_os = "linux",
        target_arch = "x86_64",
        target_pointer_width = "64",
        not(miri)
    )
)))]
#[inline(always)]
pub(crate) fn this_thread() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

#[cfg(loom)]
pub(crate) fn this_thread() -> usize {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(loom::thread::current().id()) as usize
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn each_living_thread_has_a_number_of_its_own() {
        const THREADS: usize = 8;
        let all_live = Barrier::new(THREADS);
        let numbered = || {
            let number = this_thread();
            all_live.wait();
            assert_eq!(this_thread(), number);
            number
        };
        let numbers: HashSet<usize> = thread::scope(|scope| {
            let threads = [(); THREADS].map(|()| scope.spawn(numbered));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert_eq!(numbers.len(), THREADS);
        assert!(!numbers.contains(&0));
    }
}
