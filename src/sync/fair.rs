//! A fair mutex. With std's, a waiting thread may never get the lock while others take it over and over.

#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex as FairMutex, MutexGuard as FairMutexGuard};

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex as FairMutex, MutexGuard as FairMutexGuard};
