use super::{Counter, Doorbells};
use crate::map::QUEUES;
use anyhow::Context;
use doorbell::ioeventfd::{Bus, Key};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::RwLock;
use vmm_sys_util::eventfd::EventFd;

impl Counter for EventFd {
    fn signal(&self) {
        self.write(1).expect("write(2) to an eventfd");
    }

    fn wait(&self) -> u64 {
        loop {
            match self.read() {
                Ok(count) => return count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("read(2) from an eventfd: {e}"),
            }
        }
    }

    fn take(&self) -> u64 {
        // SAFETY: the descriptor is open as long as `self` is there.
        let fd = unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) };
        let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).expect("poll(2) of an eventfd");
        if polled[0].revents().contains(PollFlags::IN) {
            self.wait()
        } else {
            0
        }
    }
}

/// One for each queue.
pub fn eventfds() -> anyhow::Result<[EventFd; QUEUES]> {
    let new = || EventFd::new(0).context("eventfd(2)");
    Ok([new()?, new()?])
}

/// The set-up `eventfd`: the address is looked up in userspace, the counter is the kernel's.
#[derive(Debug)]
pub struct InList {
    list: RwLock<Vec<(Key, usize)>>,
    fds: [EventFd; QUEUES],
}

impl InList {
    pub fn new() -> anyhow::Result<Self> {
        Ok(InList {
            list: RwLock::default(),
            fds: eventfds()?,
        })
    }
}

impl Doorbells for InList {
    fn counter(&self, queue: usize) -> &dyn Counter {
        &self.fds[queue]
    }

    fn assign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        self.list.write().unwrap().extend(doorbells);
        Ok(())
    }

    fn deassign(&self, doorbells: &[(Key, usize)]) -> anyhow::Result<()> {
        let mut list = self.list.write().unwrap();
        list.retain(|entry| !doorbells.contains(entry));
        Ok(())
    }

    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        let list = self.list.read().unwrap();
        let hit = list
            .iter()
            .find(|(key, _)| matches(key, bus, address, data));
        if let Some((_, queue)) = hit {
            self.fds[*queue].signal();
        }
        hit.is_some()
    }
}

fn matches(key: &Key, bus: Bus, address: u64, data: &[u8]) -> bool {
    let same_length = key.length == 0 || key.length as usize == data.len();
    // All datamatches of this device are of 16 bits.
    let same_data = key
        .datamatch
        .is_none_or(|value| data == (value as u16).to_ne_bytes());
    (key.bus, key.address) == (bus, address) && same_length && same_data
}
