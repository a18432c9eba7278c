//! Waiting put off.

use super::grace::domain;
use super::kind::{Fenced, Light};
use super::owed::{WAIT, WAIT_LIGHT, begin_deferral, end_deferral};
use std::marker::PhantomData;

/// A time in which the writers of this thread do not wait for readers. The waiting comes at its end.
///
/// It is for the time in which a thread holds a lock that a reader may wait for inside its section, so it ends after
/// the lock. Forgetting it is safe; nobody but [`reclaim`](super::reclaim) frees what the thread retires then.
pub struct Deferral {
    /// Of the thread that began it.
    _thread: PhantomData<*const ()>,
}

impl Deferral {
    /// Begins one, perhaps inside another, whose end it then is that counts.
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
