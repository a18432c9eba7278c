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
use super::notifier::{EventConsumer, EventNotifier};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
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
                let fd = EventFd::from(ours).try_into_fd()?;
                // SAFETY: it is owned, and handed over.
                Ok(unsafe { Self::from_raw_fd(fd.into_raw_fd()) })
            }
        }

        impl TryFrom<&$ours> for $original {
            type Error = io::Error;

            fn try_from(ours: &$ours) -> io::Result<Self> {
                let fd = ours.try_as_fd()?.try_clone_to_owned()?;
                // SAFETY: it is owned, and handed over.
                Ok(unsafe { Self::from_raw_fd(fd.into_raw_fd()) })
            }
        }
    };
}

conversions!(EventFd, eventfd::EventFd);
conversions!(EventConsumer, event::EventConsumer);
conversions!(EventNotifier, event::EventNotifier);
