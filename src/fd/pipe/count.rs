//! A handle of an [`EventFd`](crate::fd::EventFd) where the system has no eventfds: the count stays in the process. The
//! descriptor says whether it is above 0, as that of a [`Mirror`](crate::fd::Mirror) does, from the first time on that
//! code asks for one of the descriptors.

use super::Flag;
use crate::errno::Errno;
use crate::event::{Event, EventHandle, Mode, Observation};
use crate::fd::mirror::Lamp;
use rustix::io::{FdFlags, fcntl_setfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

// No system gives these a meaning here. They are Linux's on most processors.
pub(in crate::fd) const CLOEXEC: i32 = 0x8_0000;
pub(in crate::fd) const NONBLOCK: i32 = 0x800;
pub(in crate::fd) const SEMAPHORE: i32 = 1;

/// A handle.
pub(in crate::fd) struct Count {
    here: Arc<Here>,
    /// Of a clone. The first handle has the lamp's own.
    fd: Option<OwnedFd>,
}

/// What the handles share.
struct Here {
    // Dropped first: the lamp goes out of use before its descriptor is closed.
    /// Keeps the lamp in step with the count, once code has asked for a descriptor.
    observation: OnceLock<Observation>,
    lamp: Arc<Lamp>,
    nonblocking: bool,
}

impl Count {
    pub(in crate::fd) fn new(flag: i32) -> io::Result<Self> {
        if flag & !(CLOEXEC | NONBLOCK | SEMAPHORE) != 0 {
            return Err(Errno::Invalid.into());
        }
        let mode = match flag & SEMAPHORE {
            0 => Mode::Counter,
            _ => Mode::Semaphore,
        };
        let event = EventHandle::from(Arc::new(Event::with_mode(0, mode)));
        let fd = Flag::new()?;
        if flag & CLOEXEC == 0 {
            fcntl_setfd(&fd, FdFlags::empty())?;
        }
        let here = Here {
            observation: OnceLock::new(),
            lamp: Arc::new(Lamp::new(event, fd)),
            nonblocking: flag & NONBLOCK != 0,
        };
        Ok(Count {
            here: Arc::new(here),
            fd: None,
        })
    }

    #[inline]
    pub(in crate::fd) fn write(&self, v: u64) -> io::Result<()> {
        let event = self.here.lamp.event();
        let written = match self.here.nonblocking {
            true => event.try_write(v),
            false => event.write(v),
        };
        Ok(written?)
    }

    #[inline]
    pub(in crate::fd) fn read(&self) -> io::Result<u64> {
        let event = self.here.lamp.event();
        match self.here.nonblocking {
            true => event.try_read().ok_or(Errno::Again.into()),
            false => Ok(event.read()),
        }
    }

    pub(in crate::fd) fn try_clone(&self) -> io::Result<Self> {
        Ok(Count {
            here: Arc::clone(&self.here),
            fd: Some(self.fd().try_clone_to_owned()?),
        })
    }

    /// To be called before other code gets the descriptor: it says from now on what the count is.
    pub(in crate::fd) fn show(&self) {
        let here = &self.here;
        here.observation.get_or_init(|| Lamp::follow(&here.lamp));
    }

    /// This handle's descriptor.
    pub(in crate::fd) fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => self.here.lamp.flag().as_fd(),
        }
    }

    pub(in crate::fd) fn event(&self) -> Option<&Event> {
        Some(self.here.lamp.event())
    }
}

impl AsFd for Count {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
