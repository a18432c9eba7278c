//! Doorbells in the kernel: the same address space, backed by a real `/dev/kvm`.
//!
//! A guest write that KVM handles costs less than one that exits to the VMM, so a VMM on KVM adds a [`KvmListener`] to
//! its [`AddressSpace`](crate::ioeventfd::space::AddressSpace).
//!
//! Interrupts are KVM's to deliver: a `KvmSink` (x86) is what the VMM's [`Router`](crate::irqfd::Router) ends in.
//!
//! # Snapshots
//!
//! Kicks that KVM took and no thread has moved are in the kernel, in eventfds of the listener's, and the events do not
//! show them. So: pause the vCPUs, pause the devices, then
//! [`AddressSpace::drain`](crate::ioeventfd::space::AddressSpace::drain), which moves all of them, and then take down
//! the counts of the events. The method's page has the steps in code.
//!
//! Interrupts are in the router and in KVM's interrupt controllers. [In which order](crate::irqfd#snapshots) to save
//! and restore the two is said with the router.
#![doc = include_str!("ioeventfd/space/occupied.md")]

mod ioctl;
mod ioeventfd;
#[cfg(target_arch = "x86_64")]
mod irqfd;
mod occupied;

pub use ioeventfd::{KernelCount, KvmListener};
#[cfg(target_arch = "x86_64")]
pub use irqfd::{Injection, KvmSink, RouteTableError};
pub use occupied::{InKernel, Occupied};

use rustix::io::Errno;
use std::{error, fmt, io};

/// A system call that the kernel refused.
#[derive(Debug)]
pub struct Error {
    call: &'static str,
    source: io::Error,
}

impl Error {
    /// Its name: that of the ioctl, if it was one.
    #[must_use]
    pub fn call(&self) -> &'static str {
        self.call
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.source)
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

/// KVM has no means for this doorbell, which keeps what was written (`EOPNOTSUPP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unsupported;

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an ioeventfd of KVM's does not keep what was written")
    }
}

impl error::Error for Unsupported {}

impl From<Unsupported> for io::Error {
    fn from(_: Unsupported) -> Self {
        Errno::OPNOTSUPP.into()
    }
}

impl From<Error> for io::Error {
    /// The kernel's errno.
    fn from(error: Error) -> Self {
        error.source
    }
}
