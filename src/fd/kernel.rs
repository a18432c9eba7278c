//! The kernel's eventfd, and what the rest of the module is made of where there is one. Under loom it is a model, see
//! `model`.

mod count;
mod flag;
#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
mod os;
#[cfg(not(loom))]
mod owned;

pub(super) use count::{CLOEXEC, Count, NONBLOCK, SEMAPHORE};
pub(super) use flag::Flag;
#[cfg(loom)]
pub(super) use model::KernelEvent;
#[cfg(not(loom))]
pub(super) use os::KernelEvent;
