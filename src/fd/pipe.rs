//! What the rest of the module is made of where the system has no eventfds.

mod count;
mod flag;

pub(super) use count::{CLOEXEC, Count, NONBLOCK, SEMAPHORE};
pub(super) use flag::Flag;
