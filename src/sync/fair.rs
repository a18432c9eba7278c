//! A lock that comes round to everybody. std's may never come to a thread that waits, while others take it over and
//! over.

#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex as FairMutex, MutexGuard as FairMutexGuard};

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex as FairMutex, MutexGuard as FairMutexGuard};
