//! Waiting put off until a lock has been released.

use super::grace::domain;
use super::kind::{Fenced, Light};
use super::owed::{WAIT, WAIT_LIGHT, begin_deferral, end_deferral};
use std::marker::PhantomData;

/// A time in which the writers of this thread do not wait for readers. The waiting comes when it ends.
///
/// For a thread that holds a lock which a reader may take inside its section; the deferral ends after the lock was
/// released. Forgetting it is safe; then only [`reclaim`](super::reclaim) frees what the thread retires.
pub struct Deferral {
    /// It stays on the thread that began it.
    _thread: PhantomData<*const ()>,
}

impl Deferral {
    /// Begins a deferral. Inside another one, the waiting comes when the outermost one ends.
    pub fn new() -> Self {
        begin_deferral();
        Deferral {
            _thread: PhantomData,
        }
    }
}

impl Drop for Deferral {
    fn drop(&mut self) {
        match end_deferral() {
            0 => {}
            owed if owed & WAIT_LIGHT == WAIT_LIGHT => _ = domain().synchronize::<Light>(None),
            owed if owed & WAIT == WAIT => _ = domain().synchronize::<Fenced>(None),
            owed => domain().free_due(owed),
        }
    }
}
