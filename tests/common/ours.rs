//! `doorbell::Event` as a [`Counter`].

use super::counter::{Counter, Place, Readable};
use doorbell::{Event, Mode, Readiness, Spin, WriteError};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An event with the default policy.
pub type DefaultSpin = Ours<true>;
/// An event whose callers sleep at once.
pub type NeverSpin = Ours<false>;

#[derive(Clone, Debug)]
pub struct Ours<const SPINS: bool>(Arc<Event>);

impl<const SPINS: bool> Deref for Ours<SPINS> {
    type Target = Arc<Event>;

    fn deref(&self) -> &Arc<Event> {
        &self.0
    }
}

impl<const SPINS: bool> From<Arc<Event>> for Ours<SPINS> {
    fn from(event: Arc<Event>) -> Self {
        Ours(event)
    }
}

impl<const SPINS: bool> AsRef<Event> for Ours<SPINS> {
    fn as_ref(&self) -> &Event {
        &self.0
    }
}

impl<const SPINS: bool> Counter for Ours<SPINS> {
    const INTERRUPTIBLE: bool = false;
    const WAKES_ALL: bool = false;

    fn new(initial: u64, mode: Mode) -> Self {
        let spin = if SPINS { Spin::DEFAULT } else { Spin::Never };
        Ours(Arc::new(Event::with_mode(initial, mode).with_spin(spin)))
    }

    fn read(&self) -> Result<u64, Errno> {
        Ok(self.0.read())
    }

    fn try_read(&self) -> Result<u64, Errno> {
        self.0.try_read().ok_or(Errno::AGAIN)
    }

    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno> {
        self.0.read_timeout(timeout).ok_or(Errno::TIMEDOUT)
    }

    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno> {
        self.0.read_deadline(deadline).ok_or(Errno::TIMEDOUT)
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        self.0.write(n).map_err(errno)
    }

    fn try_write(&self, n: u64) -> Result<(), Errno> {
        self.0.try_write(n).map_err(errno)
    }

    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno> {
        self.0.write_timeout(n, timeout).map_err(errno)
    }

    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno> {
        self.0.write_deadline(n, deadline).map_err(errno)
    }

    fn signal(&self) {
        self.0.signal();
    }

    fn signal_n(&self, n: u64) {
        self.0.signal_n(n);
    }

    fn count(&self) -> u64 {
        self.0.count()
    }

    fn poll(&self) -> PollFlags {
        poll_flags(self.0.readiness())
    }

    fn place(&self) -> Place {
        Place::of::<Event>(&self.0)
    }
}

impl<const SPINS: bool> Readable for Ours<SPINS> {
    fn wait_readable(&self) {
        self.0.wait_readable();
    }

    fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        self.0.wait_readable_timeout(timeout)
    }

    fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        self.0.wait_readable_deadline(deadline)
    }
}

pub fn poll_flags(ready: Readiness) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, ready.is_readable());
    flags.set(PollFlags::OUT, ready.is_writable());
    flags.set(PollFlags::ERR, ready.is_error());
    flags
}

/// The errno that a caller sees that turns the error into an `io::Error`.
pub fn errno(error: WriteError) -> Errno {
    super::eventfd::errno(error.into())
}
