//! The poller's registered descriptors, by the tokens in the kernel's reports and by their numbers.

use super::epoll::{FdReport, Fds, Token};
use super::events;
use super::{PollError, Watch};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsRawFd, BorrowedFd, RawFd};
use std::collections::BTreeMap;

/// The registered descriptors of a poller. Under its lock.
#[derive(Default)]
pub(super) struct FdTable {
    next_token: Token,
    known: BTreeMap<Token, Known>,
    /// The registration that was last added for a number. The kernel reuses the number of a descriptor that was closed
    /// without being deleted.
    numbers: BTreeMap<RawFd, Token>,
}

struct Known {
    key: usize,
    one_shot: bool,
}

impl FdTable {
    /// Registers with the kernel and notes what its token stands for.
    pub(super) fn add(
        &mut self,
        fds: &Fds,
        fd: BorrowedFd<'_>,
        key: usize,
        watch: Watch,
    ) -> Result<FdRegistration, PollError> {
        let token = self.next_token;
        fds.add(fd, token, flags(watch))?;
        self.next_token += 1;
        let one_shot = watch.one_shot;
        self.known.insert(token, Known { key, one_shot });
        let number = fd.as_raw_fd();
        self.numbers.insert(number, token);
        Ok(FdRegistration { token, number })
    }

    pub(super) fn modify(
        &mut self,
        fds: &Fds,
        registration: &FdRegistration,
        watch: Watch,
    ) -> Result<(), PollError> {
        let fd = self.fd(registration).ok_or(PollError::NoEntry)?;
        fds.modify(fd, registration.token, flags(watch))?;
        if let Some(known) = self.known.get_mut(&registration.token) {
            known.one_shot = watch.one_shot;
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, fds: &Fds, registration: &FdRegistration) {
        self.known.remove(&registration.token);
        if let Some(fd) = self.fd(registration) {
            fds.delete(fd);
            self.numbers.remove(&registration.number);
        }
    }

    /// The key and the flags of a report. `None` for the bell, and for what has been deleted in the meantime.
    pub(super) fn resolve(&self, found: &FdReport) -> Option<(usize, u8)> {
        let known = self.known.get(&found.data.u64())?;
        Some((known.key, reported(found.flags)))
    }

    pub(super) fn is_one_shot(&self, registration: &FdRegistration) -> bool {
        let known = self.known.get(&registration.token);
        known.is_some_and(|known| known.one_shot)
    }

    /// The descriptor, unless its number is known to belong to a later registration.
    fn fd(&self, registration: &FdRegistration) -> Option<BorrowedFd<'_>> {
        let ours = self.numbers.get(&registration.number) == Some(&registration.token);
        // SAFETY: the number may have been closed, and reused for another file. The kernel only looks it up among the
        // descriptors of the poller's own epoll instance, where the other file is not found.
        ours.then(|| unsafe { BorrowedFd::borrow_raw(registration.number) })
    }
}

/// A descriptor in a [`FdTable`].
pub(super) struct FdRegistration {
    token: Token,
    number: RawFd,
}

fn flags(watch: Watch) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN, watch.readable);
    flags.set(EventFlags::OUT, watch.writable);
    flags.set(EventFlags::ET, watch.edge);
    flags.set(EventFlags::ONESHOT, watch.one_shot);
    flags
}

fn reported(flags: EventFlags) -> u8 {
    [
        (EventFlags::IN, events::READABLE),
        (EventFlags::OUT, events::WRITABLE),
        (EventFlags::ERR, events::ERROR),
        (EventFlags::HUP, events::HANG_UP),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(0, |bits, (_, bit)| bits | bit)
}
