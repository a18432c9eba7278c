//! Descriptors that become ours and stop being ours: the count goes along in the eventfd.

use super::{Count, KernelEvent};
use crate::fd::{EventConsumer, EventFd, EventNotifier};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

impl IntoRawFd for EventFd {
    /// The descriptor of this handle, which is used up. Other handles are left as they are, except that the count
    /// moves as with [`as_fd`](std::os::fd::AsFd::as_fd).
    fn into_raw_fd(self) -> RawFd {
        OwnedFd::from(self).into_raw_fd()
    }
}

impl From<EventFd> for OwnedFd {
    /// As [`into_raw_fd`](IntoRawFd::into_raw_fd).
    fn from(EventFd(count): EventFd) -> Self {
        count.show();
        KernelEvent::from(count).into()
    }
}

impl From<OwnedFd> for EventFd {
    /// An eventfd whose count is in the kernel from the start.
    fn from(fd: OwnedFd) -> Self {
        EventFd(Count::from(KernelEvent::from(fd)))
    }
}

impl FromRawFd for EventFd {
    unsafe fn from_raw_fd(fd: RawFd) -> Self {
        // SAFETY: the caller owns it, and hands it over.
        unsafe { OwnedFd::from_raw_fd(fd) }.into()
    }
}

/// As of the [`EventFd`] that it is.
macro_rules! as_eventfd {
    ($end:ident) => {
        impl IntoRawFd for $end {
            /// As [`EventFd`]'s.
            fn into_raw_fd(self) -> RawFd {
                EventFd::from(self).into_raw_fd()
            }
        }

        impl From<$end> for OwnedFd {
            /// As [`EventFd`]'s.
            fn from(end: $end) -> Self {
                EventFd::from(end).into()
            }
        }

        impl FromRawFd for $end {
            unsafe fn from_raw_fd(fd: RawFd) -> Self {
                // SAFETY: as the caller promises.
                unsafe { EventFd::from_raw_fd(fd) }.into()
            }
        }

        impl From<OwnedFd> for $end {
            fn from(fd: OwnedFd) -> Self {
                EventFd::from(fd).into()
            }
        }
    };
}

as_eventfd!(EventConsumer);
as_eventfd!(EventNotifier);
