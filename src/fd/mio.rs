//! What has a file descriptor as a source of mio's events.

use super::{EventConsumer, EventFd, Forward, Mirror};
use crate::Event;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The descriptor, or why there is none.
trait Descriptor {
    fn descriptor(&self) -> io::Result<BorrowedFd<'_>>;
}

macro_rules! source {
    ([$($generics:tt)*] $type:ty, $self:ident, $fd:expr) => {
        impl $($generics)* Descriptor for $type {
            fn descriptor(&$self) -> io::Result<BorrowedFd<'_>> {
                $fd
            }
        }

        impl $($generics)* Source for $type {
            fn register(
                &mut self,
                registry: &Registry,
                token: Token,
                interests: Interest,
            ) -> io::Result<()> {
                SourceFd(&self.descriptor()?.as_raw_fd()).register(registry, token, interests)
            }

            fn reregister(
                &mut self,
                registry: &Registry,
                token: Token,
                interests: Interest,
            ) -> io::Result<()> {
                SourceFd(&self.descriptor()?.as_raw_fd()).reregister(registry, token, interests)
            }

            fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
                SourceFd(&self.descriptor()?.as_raw_fd()).deregister(registry)
            }
        }
    };
}

source!([] EventFd, self, self.try_as_fd());
source!([] EventConsumer, self, self.try_as_fd());
source!([<E: Deref<Target = Event>>] Mirror<E>, self, Ok(self.as_fd()));
source!([<E: Deref<Target = Event>>] Forward<E>, self, Ok(self.as_fd()));
