//! Conversions from and to vmm-sys-util's types, which kvm-ioctls, vhost-user-backend and others have in their
//! signatures.
//!
//! An original becomes ours without a system call, and keeps its descriptor. The other way needs a descriptor, which
//! there may be too many of, so it is a `TryFrom`: of a handle, which is used up, or of a reference to one, for which
//! the original gets a descriptor of its own. After either the count is in the kernel, and shared by all handles, ours
//! and theirs.
//!
//! ```
//! use doorbell::fd::EventFd;
//!
//! # fn main() -> std::io::Result<()> {
//! let ours = EventFd::new(0)?;
//! ours.write(3)?;
//! let theirs = vmm_sys_util::eventfd::EventFd::try_from(&ours)?; // for VmFd::register_irqfd, say
//! theirs.write(4)?;
//! assert_eq!(ours.read()?, 7);
//! # Ok(())
//! # }
//! ```

use super::eventfd::EventFd;
use super::forward::Forward;
use super::notifier::{EventConsumer, EventNotifier};
use crate::Event;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use vmm_sys_util::{event, eventfd};

macro_rules! conversions {
    ($ours:ty, $original:ty) => {
        impl From<$original> for $ours {
            fn from(original: $original) -> Self {
                // SAFETY: the original owned it, and has let go of it.
                unsafe { Self::from_raw_fd(original.into_raw_fd()) }
            }
        }

        impl TryFrom<$ours> for $original {
            type Error = io::Error;

            fn try_from(ours: $ours) -> io::Result<Self> {
                Ok(original(EventFd::from(ours).try_into_fd()?))
            }
        }

        impl TryFrom<&$ours> for $original {
            type Error = io::Error;

            fn try_from(ours: &$ours) -> io::Result<Self> {
                Ok(original(ours.try_as_fd()?.try_clone_to_owned()?))
            }
        }
    };
}

conversions!(EventFd, eventfd::EventFd);
conversions!(EventConsumer, event::EventConsumer);
conversions!(EventNotifier, event::EventNotifier);

/// For `VmFd::register_irqfd` and the like: another descriptor of what the signals are passed on to.
impl<E: Deref<Target = Event>> TryFrom<&Forward<E>> for eventfd::EventFd {
    type Error = io::Error;

    fn try_from(forward: &Forward<E>) -> io::Result<Self> {
        Ok(original(forward.as_fd().try_clone_to_owned()?))
    }
}

fn original<T: FromRawFd>(fd: OwnedFd) -> T {
    // SAFETY: it is owned, and handed over.
    unsafe { T::from_raw_fd(fd.into_raw_fd()) }
}
