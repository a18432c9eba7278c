//! Doorbells in the kernel: the same address space, backed by a real `/dev/kvm`. (Feature `kvm`.)
//!
//! A guest write that KVM handles costs less than one that exits to the VMM. So a VMM on KVM adds a [`KvmListener`] to
//! its [`AddressSpace`](crate::ioeventfd::space::AddressSpace).
//!
//! KVM delivers interrupts: the sink of the VMM's [`Router`](crate::irqfd::Router) is a `KvmSink` (x86-64 and arm64).
//!
//! # Snapshots
//!
//! Kicks that KVM has taken, and that no thread has moved to their event yet, are in eventfds of the listener, where
//! [`Event::count`](crate::Event::count) does not see them.
//! [`AddressSpace::drain`](crate::ioeventfd::space::AddressSpace::drain) moves all of them. Interrupts are in the
//! router and in KVM's interrupt controllers. The page [`guide::snapshot`](crate::guide::snapshot) says in which order
//! all of these are saved and restored.
#![doc = include_str!("ioeventfd/space/occupied.md")]

mod ioctl;
mod ioeventfd;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64", test))]
mod irqfd;
mod occupied;

pub use ioeventfd::{KernelCount, KvmListener};
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64", test))]
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

    /// The errno, as of [`io::Error::raw_os_error`]. `None` if the [source](error::Error::source) says more than an
    /// errno, as that of a `RouteTableError` does.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.raw_os_error()
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
        f.write_str("KVM's ioeventfds do not keep the value that was written")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_or_more() {
        let error = |source| Error {
            call: "KVM_SET_GSI_ROUTING",
            source,
        };
        let by_kernel = error(Errno::BUSY.into());
        assert_eq!(by_kernel.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
        let by_sink = error(RouteTableError::Pin(u32::MAX).into());
        assert_eq!(by_sink.raw_os_error(), None);
    }
}
