//! Drop-ins for the pair in `vmm_sys_util::event`: one end that notifies, one that consumes.

use super::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use std::io;

bitflags::bitflags! {
    /// For [`new_event_consumer_and_notifier`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct EventFlag: u8 {
        /// Calls that would block fail instead.
        const NONBLOCK = 1 << 0;
        /// Descriptors are closed on exec.
        const CLOEXEC = 1 << 1;
    }
}

/// Makes both ends of an [`EventFd`].
///
/// # Errors
///
/// As for [`EventFd::new`] and [`EventFd::try_clone`]: there are too many descriptors.
///
/// ```
/// use doorbell::fd::{EventFlag, new_event_consumer_and_notifier};
///
/// # fn main() -> std::io::Result<()> {
/// let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK)?;
/// notifier.notify()?;
/// notifier.notify()?;
/// consumer.consume()?; // both
/// assert!(consumer.consume().is_err());
/// # Ok(())
/// # }
/// ```
pub fn new_event_consumer_and_notifier(
    flags: EventFlag,
) -> io::Result<(EventConsumer, EventNotifier)> {
    let mut flag = 0;
    if flags.contains(EventFlag::NONBLOCK) {
        flag |= EFD_NONBLOCK;
    }
    if flags.contains(EventFlag::CLOEXEC) {
        flag |= EFD_CLOEXEC;
    }
    let consumer = EventFd::new(flag)?;
    let notifier = consumer.try_clone()?;
    Ok((EventConsumer(consumer), EventNotifier(notifier)))
}

/// The end that notifies: a drop-in for `vmm_sys_util::event::EventNotifier`.
///
/// Like an [`EventFd`] it has a file descriptor, and a count that is in the process until code asks for the descriptor.
/// It may be made from any other descriptor that takes 8 bytes at a time, such as a pipe's.
#[derive(Debug)]
pub struct EventNotifier(EventFd);

impl EventNotifier {
    /// Adds 1 to the count.
    ///
    /// # Errors
    ///
    /// As [`EventFd::write`].
    pub fn notify(&self) -> io::Result<()> {
        self.0.write(1)
    }

    /// Another handle of this end.
    ///
    /// # Errors
    ///
    /// As [`EventFd::try_clone`].
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

/// The end that consumes: a drop-in for `vmm_sys_util::event::EventConsumer`.
///
/// Like an [`EventFd`] it has a file descriptor, and a count that is in the process until code asks for the descriptor.
/// It may be made from any other descriptor that gives 8 bytes at a time, such as a pipe's.
#[derive(Debug)]
pub struct EventConsumer(EventFd);

impl EventConsumer {
    /// Takes all notifications at once. Blocks while there are none, unless it is non-blocking.
    ///
    /// # Errors
    ///
    /// As [`EventFd::read`].
    pub fn consume(&self) -> io::Result<()> {
        self.0.read().map(drop)
    }

    /// Another handle of this end.
    ///
    /// # Errors
    ///
    /// As [`EventFd::try_clone`].
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

#[cfg(not(loom))]
mod descriptor {
    use super::{EventConsumer, EventFd, EventNotifier};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

    /// As of the [`EventFd`] that it is.
    macro_rules! as_eventfd {
        ($end:ident) => {
            impl AsFd for $end {
                /// As [`EventFd`]'s.
                fn as_fd(&self) -> BorrowedFd<'_> {
                    self.0.as_fd()
                }
            }

            impl AsRawFd for $end {
                /// As [`EventFd`]'s.
                fn as_raw_fd(&self) -> RawFd {
                    self.0.as_raw_fd()
                }
            }

            impl From<$end> for EventFd {
                fn from(end: $end) -> Self {
                    end.0
                }
            }

            impl From<EventFd> for $end {
                fn from(event: EventFd) -> Self {
                    Self(event)
                }
            }
        };
    }

    as_eventfd!(EventConsumer);
    as_eventfd!(EventNotifier);
}
