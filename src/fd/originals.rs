//! Conversions from and to vmm-sys-util's types, which kvm-ioctls, vhost, vhost-user-backend and others have in their
//! signatures. The page of the module above lists them.

use super::{EventConsumer, EventFd, EventNotifier, Forward, Mirror};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use vmm_sys_util::{event, eventfd};

/// One of ours, lent as the original `T`: for calls that take `&vmm_sys_util::eventfd::EventFd`, such as
/// `VmFd::register_irqfd` and `register_ioevent` of kvm-ioctls or `set_vring_call` of vhost.
///
/// It has the descriptor of the handle that it was made of, and does not close it.
pub struct AsOriginal<'a, T> {
    original: ManuallyDrop<T>,
    handle: PhantomData<BorrowedFd<'a>>,
}

impl<'a, T: FromRawFd> AsOriginal<'a, T> {
    fn new(fd: BorrowedFd<'a>) -> Self {
        // SAFETY: the descriptor is open for `'a`, as an owner's must be, and is not closed by this owner, which no
        // code can take out: it is lent by `Deref` alone.
        let original = unsafe { T::from_raw_fd(fd.as_raw_fd()) };
        AsOriginal {
            original: ManuallyDrop::new(original),
            handle: PhantomData,
        }
    }
}

impl<T> Deref for AsOriginal<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.original
    }
}

impl<T: fmt::Debug> fmt::Debug for AsOriginal<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.original.fmt(f)
    }
}

macro_rules! conversions {
    ($ours:ty, $original:ty) => {
        impl $ours {
            /// This handle as the original, for calls that borrow one. Its count moves into the kernel.
            pub fn as_original(&self) -> AsOriginal<'_, $original> {
                AsOriginal::new(self.as_fd())
            }
        }

        impl From<$original> for $ours {
            fn from(original: $original) -> Self {
                // SAFETY: the original owned it, and has let go of it.
                unsafe { Self::from_raw_fd(original.into_raw_fd()) }
            }
        }

        impl From<$ours> for $original {
            /// The same descriptor. The count moves into the kernel.
            fn from(ours: $ours) -> Self {
                original(ours.into())
            }
        }

        impl TryFrom<&$ours> for $original {
            type Error = io::Error;

            /// Another descriptor. The count moves into the kernel.
            fn try_from(ours: &$ours) -> io::Result<Self> {
                Ok(original(ours.as_fd().try_clone_to_owned()?))
            }
        }
    };
}

conversions!(EventFd, eventfd::EventFd);
conversions!(EventConsumer, event::EventConsumer);
conversions!(EventNotifier, event::EventNotifier);

impl Forward {
    /// What the signals are passed on to as an original, for calls that borrow one, such as `VmFd::register_irqfd`.
    /// (Feature `vmm-sys-util`.)
    pub fn as_original(&self) -> AsOriginal<'_, eventfd::EventFd> {
        AsOriginal::new(self.as_fd())
    }
}

impl TryFrom<&Forward> for eventfd::EventFd {
    type Error = io::Error;

    /// Another descriptor of what the signals are passed on to.
    fn try_from(forward: &Forward) -> io::Result<Self> {
        Ok(original(forward.as_fd().try_clone_to_owned()?))
    }
}

impl Mirror {
    /// The descriptor as an original, for calls that borrow one and poll it only. (Feature `vmm-sys-util`.)
    ///
    /// A read or write by the original is one by a peer: see [above](Self#peers-that-are-not-trusted).
    pub fn as_original(&self) -> AsOriginal<'_, eventfd::EventFd> {
        AsOriginal::new(self.as_fd())
    }
}

impl TryFrom<&Mirror> for eventfd::EventFd {
    type Error = io::Error;

    /// Another descriptor that is readable when the event is, for code that hands its `EventFd` to an epoll, such as
    /// `event-manager`'s or vhost-user-backend's.
    ///
    /// It is to be polled only; the event itself is what is read. `read` of the original takes the descriptor's
    /// readiness and no kick, and `write` makes it readable and signals nothing: see [`Mirror`].
    fn try_from(mirror: &Mirror) -> io::Result<Self> {
        Ok(original(mirror.as_fd().try_clone_to_owned()?))
    }
}

fn original<T: FromRawFd>(fd: OwnedFd) -> T {
    // SAFETY: it is owned, and handed over.
    unsafe { T::from_raw_fd(fd.into_raw_fd()) }
}
