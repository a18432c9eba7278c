//! An atomic word of 128 bits, for two things that change in one step.
//!
//! There is no such type in std. portable-atomic has it where the processor does (`cmpxchg16b`, `casp`), and with a
//! lock elsewhere; loom has none, and there it is a value under loom's lock.

#[cfg(not(loom))]
pub(crate) struct Wide(portable_atomic::AtomicU128);

#[cfg(not(loom))]
impl Wide {
    pub(crate) const fn new(value: u128) -> Self {
        Wide(portable_atomic::AtomicU128::new(value))
    }

    /// Whether the processor has such words. With a lock instead, they could not be used in a signal handler, or after
    /// a fork.
    pub(crate) fn is_lock_free() -> bool {
        portable_atomic::AtomicU128::is_lock_free()
    }

    /// A [`DEKKER`](super::DEKKER) load.
    #[inline(always)]
    pub(crate) fn load(&self) -> u128 {
        self.0.load(super::DEKKER)
    }

    /// For a word that no other thread uses yet.
    pub(crate) fn set(&self, value: u128) {
        self.0.store(value, super::DEKKER);
    }

    /// Puts `new` in place of `old`, in a [`DEKKER`](super::DEKKER) step, if that is what is there.
    #[inline(always)]
    pub(crate) fn replace(&self, old: u128, new: u128) -> bool {
        self.0
            .compare_exchange(old, new, super::DEKKER, super::DEKKER)
            .is_ok()
    }
}

#[cfg(loom)]
pub(crate) struct Wide(loom::sync::Mutex<u128>);

#[cfg(loom)]
impl Wide {
    pub(crate) fn new(value: u128) -> Self {
        Wide(loom::sync::Mutex::new(value))
    }

    pub(crate) fn is_lock_free() -> bool {
        true
    }

    fn lock(&self) -> loom::sync::MutexGuard<'_, u128> {
        self.0.lock().expect("loom has no poison")
    }

    pub(crate) fn load(&self) -> u128 {
        *self.lock()
    }

    pub(crate) fn set(&self, value: u128) {
        *self.lock() = value;
    }

    pub(crate) fn replace(&self, old: u128, new: u128) -> bool {
        let mut value = self.lock();
        let same = *value == old;
        if same {
            *value = new;
        }
        same
    }
}
