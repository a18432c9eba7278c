//! What has a file descriptor as a source of mio's events.

#[cfg(not(doorbell_no_eventfd))]
use super::Forward;
use super::{EventConsumer, EventFd, Mirror};
use crate::poll::PollerFd;

/// Implements `mio::event::Source` for a type that is `AsRawFd`.
macro_rules! source {
    ($type:ty) => {
        impl ::mio::event::Source for $type {
            fn register(
                &mut self,
                registry: &::mio::Registry,
                token: ::mio::Token,
                interests: ::mio::Interest,
            ) -> std::io::Result<()> {
                let fd = std::os::fd::AsRawFd::as_raw_fd(self);
                ::mio::unix::SourceFd(&fd).register(registry, token, interests)
            }

            fn reregister(
                &mut self,
                registry: &::mio::Registry,
                token: ::mio::Token,
                interests: ::mio::Interest,
            ) -> std::io::Result<()> {
                let fd = std::os::fd::AsRawFd::as_raw_fd(self);
                ::mio::unix::SourceFd(&fd).reregister(registry, token, interests)
            }

            fn deregister(&mut self, registry: &::mio::Registry) -> std::io::Result<()> {
                let fd = std::os::fd::AsRawFd::as_raw_fd(self);
                ::mio::unix::SourceFd(&fd).deregister(registry)
            }
        }
    };
}

// `KernelCount` uses it, where there is KVM.
#[allow(unused_imports)]
pub(crate) use source;

source!(EventFd);
source!(EventConsumer);
source!(Mirror);
#[cfg(not(doorbell_no_eventfd))]
source!(Forward);
source!(PollerFd);
