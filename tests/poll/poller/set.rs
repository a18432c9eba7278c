//! A poller and the kernel's epoll behind one interface.

// The fuzz target uses only a part of this.
#![allow(dead_code)]

use crate::common::counter::{Counter, Place};
use crate::common::kernel::Kernel;
use crate::common::ours::DefaultSpin;
use doorbell::poll::{Events, PollError, Poller, Watch};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A key, and whether it is readable, writable and in error.
pub type Ready = (usize, bool, bool, bool);

/// A set that watches counters under keys. A clone is another handle of the same set.
pub trait Set: Clone + Send + 'static {
    type Counter: Counter;

    fn new() -> Self;
    fn add(&self, counter: &Self::Counter, key: usize, watch: Watch) -> Result<(), Errno>;
    fn modify(&self, key: usize, watch: Watch) -> Result<(), Errno>;
    fn delete(&self, key: usize) -> Result<(), Errno>;
    fn wait(&self, room: usize, timeout: Option<Duration>) -> Result<Vec<Ready>, Errno>;

    /// Where a thread sleeps in `wait`.
    fn place(&self) -> Place;
}

/// The poller.
#[derive(Clone)]
pub struct Ours(Arc<Poller>);

impl Deref for Ours {
    type Target = Poller;

    fn deref(&self) -> &Poller {
        &self.0
    }
}

/// The errno that a caller sees that turns the error into an `io::Error`.
pub fn errno(error: PollError) -> Errno {
    let error = io::Error::from(error);
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("no errno in {error:?}"))
}

pub fn ready(events: &Events) -> Vec<Ready> {
    events
        .iter()
        .map(|ready| {
            let (key, error) = (ready.key(), ready.is_error());
            (key, ready.is_readable(), ready.is_writable(), error)
        })
        .collect()
}

impl Set for Ours {
    type Counter = DefaultSpin;

    fn new() -> Self {
        Ours(Arc::new(Poller::new()))
    }

    fn add(&self, counter: &DefaultSpin, key: usize, watch: Watch) -> Result<(), Errno> {
        self.0.add(&**counter, key, watch).map_err(errno)
    }

    fn modify(&self, key: usize, watch: Watch) -> Result<(), Errno> {
        self.0.modify(key, watch).map_err(errno)
    }

    fn delete(&self, key: usize) -> Result<(), Errno> {
        self.0.delete(key).map_err(errno)
    }

    fn wait(&self, room: usize, timeout: Option<Duration>) -> Result<Vec<Ready>, Errno> {
        let mut events = Events::with_capacity(room);
        let number = self.0.wait(&mut events, timeout).map_err(errno)?;
        assert_eq!(number, events.len());
        Ok(ready(&events))
    }

    fn place(&self) -> Place {
        Place::Futex
    }
}

/// The kernel's epoll.
#[derive(Clone)]
pub struct Epoll(Arc<EpollParts>);

struct EpollParts {
    epoll: OwnedFd,
    /// A duplicate of the eventfd for each registration, because epoll registers a descriptor once.
    duplicates: Mutex<BTreeMap<usize, OwnedFd>>,
}

impl Set for Epoll {
    type Counter = Kernel;

    fn new() -> Self {
        Epoll(Arc::new(EpollParts {
            epoll: epoll::create(CreateFlags::CLOEXEC).unwrap(),
            duplicates: Mutex::default(),
        }))
    }

    fn add(&self, eventfd: &Kernel, key: usize, watch: Watch) -> Result<(), Errno> {
        let Place::Descriptor(number) = eventfd.place() else {
            unreachable!("the kernel's counter is a descriptor");
        };
        let mut duplicates = self.0.duplicates.lock().unwrap();
        let data = EventData::new_u64(key as u64);
        if let Some(fd) = duplicates.get(&key) {
            return epoll::add(&self.0.epoll, fd, data, flags(watch));
        }
        // SAFETY: `eventfd` keeps the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        epoll::add(&self.0.epoll, &fd, data, flags(watch))?;
        duplicates.insert(key, fd);
        Ok(())
    }

    fn modify(&self, key: usize, watch: Watch) -> Result<(), Errno> {
        let duplicates = self.0.duplicates.lock().unwrap();
        let fd = duplicates.get(&key).ok_or(Errno::NOENT)?;
        let data = EventData::new_u64(key as u64);
        epoll::modify(&self.0.epoll, fd, data, flags(watch))
    }

    fn delete(&self, key: usize) -> Result<(), Errno> {
        let mut duplicates = self.0.duplicates.lock().unwrap();
        let fd = duplicates.remove(&key).ok_or(Errno::NOENT)?;
        epoll::delete(&self.0.epoll, fd)
    }

    fn wait(&self, room: usize, timeout: Option<Duration>) -> Result<Vec<Ready>, Errno> {
        let nothing = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = vec![nothing; room];
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let found = epoll::wait(&self.0.epoll, &mut events, timeout.as_ref())?;
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
        Ok(ready.collect())
    }

    fn place(&self) -> Place {
        Place::Descriptor(self.0.epoll.as_raw_fd())
    }
}

/// The flags that a [`Watch`] stands for, found by comparison, because a `Watch` does not reveal its flags.
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
    unreachable!("{watch:?} is none of the known ones")
}
