//! What differs between the set-ups, seen from the device: how a guest's write becomes a kick, how a device thread waits
//! for it, and how it interrupts the guest.

use crate::map::QUEUES;
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::{Event, Spin};
use std::fmt;
use std::sync::Arc;

/// A counter to sleep on: an [`Event`] or an eventfd.
pub trait Counter: fmt::Debug + Send + Sync {
    /// Adds 1.
    fn signal(&self);
    /// Takes the count, sleeping while it is 0.
    fn wait(&self) -> u64;
    /// Takes the count, which may be 0.
    fn take(&self) -> u64;
}

impl Counter for Event {
    fn signal(&self) {
        Event::signal(self);
    }

    fn wait(&self) -> u64 {
        self.read()
    }

    fn take(&self) -> u64 {
        self.try_read().unwrap_or(0)
    }
}

/// The doorbells of one machine.
pub trait Doorbells: fmt::Debug + Send + Sync {
    /// What a queue's doorbells add to.
    fn counter(&self, queue: usize) -> &dyn Counter;

    /// From now on, guest writes that match `key` kick `queue`.
    fn assign(&self, key: Key, queue: usize) -> anyhow::Result<()>;

    /// From now on they do not.
    fn deassign(&self, key: Key, queue: usize) -> anyhow::Result<()>;

    /// A guest's write that has reached the vCPU thread. Whether it was a kick.
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool;
}

/// A queue's interrupt line.
pub trait Interrupt: fmt::Debug + Send + Sync {
    fn raise(&self) -> anyhow::Result<()>;
}

/// An eventfd that is an irqfd, or the line to a software vCPU, which waits for the counter.
impl Interrupt for Arc<dyn Counter> {
    fn raise(&self) -> anyhow::Result<()> {
        self.signal();
        Ok(())
    }
}

/// The set-up `doorbell`: all in userspace.
#[derive(Debug)]
pub struct InTable {
    table: Table,
    events: [Arc<Event>; QUEUES],
}

impl InTable {
    pub fn new(spin: Spin) -> Self {
        InTable {
            table: Table::new(),
            events: std::array::from_fn(|_| Arc::new(Event::new(0).with_spin(spin))),
        }
    }
}

impl Doorbells for InTable {
    fn counter(&self, queue: usize) -> &dyn Counter {
        &*self.events[queue]
    }

    fn assign(&self, key: Key, queue: usize) -> anyhow::Result<()> {
        self.table.assign(key, &self.events[queue])?.keep();
        Ok(())
    }

    fn deassign(&self, key: Key, queue: usize) -> anyhow::Result<()> {
        Ok(self.table.deassign(key, &self.events[queue])?)
    }

    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.table.write(bus, address, data)
    }
}

#[cfg(target_os = "linux")]
pub use eventfd::{InList, eventfds};

#[cfg(target_os = "linux")]
mod eventfd {
    use super::{Bus, Counter, Doorbells, Key, QUEUES};
    use anyhow::Context;
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

        fn assign(&self, key: Key, queue: usize) -> anyhow::Result<()> {
            self.list.write().unwrap().push((key, queue));
            Ok(())
        }

        fn deassign(&self, key: Key, queue: usize) -> anyhow::Result<()> {
            let mut list = self.list.write().unwrap();
            list.retain(|entry| *entry != (key, queue));
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
}
