//! epoll, as in back-ends that do not poll.

use super::{CountedProbe, Loop};
use anyhow::Context;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::collections::HashMap;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub struct Epoll {
    epoll: OwnedFd,
    /// Duplicates of the descriptors, by which they are deregistered.
    fds: HashMap<usize, OwnedFd>,
}

impl Epoll {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Epoll {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            fds: HashMap::new(),
        })
    }

    /// Reports the queue after each kick. The eventfd is not read.
    pub fn watch_kick(&mut self, kick: &File, key: usize) -> anyhow::Result<()> {
        self.add(kick.as_fd(), key, EventFlags::IN | EventFlags::ET)
    }

    fn add(&mut self, fd: BorrowedFd<'_>, key: usize, flags: EventFlags) -> anyhow::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        epoll::add(&self.epoll, &fd, EventData::new_u64(key as u64), flags)?;
        self.fds.insert(key, fd);
        Ok(())
    }
}

impl Loop for Epoll {
    fn watch(&mut self, fd: BorrowedFd<'_>, key: usize) -> anyhow::Result<()> {
        self.add(fd, key, EventFlags::IN)
    }

    fn watch_queue(&mut self, kick: &File, key: usize, _: CountedProbe) -> anyhow::Result<()> {
        self.watch_kick(kick, key)
    }

    fn forget(&mut self, key: usize) -> anyhow::Result<()> {
        let fd = self
            .fds
            .remove(&key)
            .context("nothing is watched under this key")?;
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    fn wait(&mut self, at_once: bool, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        let mut events = [MaybeUninit::uninit(); 64];
        let zero = Timespec::default();
        let (events, _) = match epoll::wait(&self.epoll, &mut events, at_once.then_some(&zero)) {
            Err(Errno::INTR) => return Ok(()),
            result => result?,
        };
        ready.extend(events.iter().map(|event| event.data.u64() as usize));
        Ok(())
    }
}
