//! The kernel's eventfd, as the rest of the module uses it. Under loom it is a model, see `model`.

#[cfg(loom)]
pub mod model;
#[cfg(not(loom))]
mod os;

#[cfg(loom)]
pub(super) use model::KernelEvent;
#[cfg(not(loom))]
pub(super) use os::KernelEvent;
