//! Waiting on many events at once.

mod error;
mod events;
mod incoming;
mod item;
mod poller;
mod shared;
mod watch;

#[cfg(all(target_os = "linux", not(loom)))]
mod bound;
#[cfg(all(target_os = "linux", not(loom)))]
mod fds;

#[cfg(not(all(target_os = "linux", not(loom))))]
mod no_fds;
#[cfg(not(all(target_os = "linux", not(loom))))]
use no_fds as bound;
#[cfg(not(all(target_os = "linux", not(loom))))]
use no_fds as fds;

pub use error::PollError;
pub use events::{Events, Ready};
pub use poller::Poller;
pub use watch::Watch;
