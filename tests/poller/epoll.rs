//! The kernel's epoll with keys as a poller has them.

use crate::common::counter::{Counter, Place};
use crate::common::kernel::Kernel;
use doorbell::poll::Watch;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;

pub struct Epoll {
    epoll: OwnedFd,
    /// A duplicate for each registration.
    duplicates: BTreeMap<usize, OwnedFd>,
}

impl Epoll {
    pub fn new() -> Self {
        Epoll {
            epoll: epoll::create(CreateFlags::CLOEXEC).unwrap(),
            duplicates: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, eventfd: &Kernel, key: usize, watch: Watch) -> Result<(), Errno> {
        let Place::Descriptor(number) = eventfd.place() else {
            unreachable!("the kernel's is a descriptor");
        };
        if self.duplicates.contains_key(&key) {
            // As epoll says of a descriptor; it knows no keys.
            return Err(Errno::EXIST);
        }
        // SAFETY: `eventfd` has it open.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        epoll::add(
            &self.epoll,
            &fd,
            EventData::new_u64(key as u64),
            flags(watch),
        )?;
        self.duplicates.insert(key, fd);
        Ok(())
    }

    pub fn modify(&self, key: usize, watch: Watch) -> Result<(), Errno> {
        let fd = self.duplicates.get(&key).ok_or(Errno::NOENT)?;
        epoll::modify(
            &self.epoll,
            fd,
            EventData::new_u64(key as u64),
            flags(watch),
        )
    }

    pub fn delete(&mut self, key: usize) -> Result<(), Errno> {
        let fd = self.duplicates.remove(&key).ok_or(Errno::NOENT)?;
        epoll::delete(&self.epoll, fd)
    }

    /// What is ready now: key, readable, writable, error.
    pub fn wait(&self, room: usize) -> Vec<(usize, bool, bool, bool)> {
        let nothing = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = vec![nothing; room];
        let found = epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())).unwrap();
        let ready = events[..found].iter().map(|event| {
            let (flags, key) = (event.flags, event.data.u64() as usize);
            let has = |flag| flags.contains(flag);
            (
                key,
                has(EventFlags::IN),
                has(EventFlags::OUT),
                has(EventFlags::ERR),
            )
        });
        ready.collect()
    }
}

/// The flags that a [`Watch`] stands for, found by comparing: it does not tell what is in it.
fn flags(watch: Watch) -> EventFlags {
    let what = [
        (Watch::READABLE, EventFlags::IN),
        (Watch::WRITABLE, EventFlags::OUT),
        (Watch::BOTH, EventFlags::IN | EventFlags::OUT),
        (Watch::ERRORS, EventFlags::empty()),
    ];
    for (base, flags) in what {
        for (with, more) in [
            (base, EventFlags::empty()),
            (base.edge(), EventFlags::ET),
            (base.one_shot(), EventFlags::ONESHOT),
            (base.edge().one_shot(), EventFlags::ET | EventFlags::ONESHOT),
        ] {
            if with == watch {
                return flags | more;
            }
        }
    }
    unreachable!("{watch:?} is none of them")
}
