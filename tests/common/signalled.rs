//! `doorbell::Event` as a [`Counter`], signalled by signallers: its count is split from the beginning.

use super::counter::{Counter, Place, Readable};
use super::ours::NeverSpin;
use doorbell::event::Signaller;
use doorbell::{Event, Mode, use_membarrier};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whether the processor has atomic words of 128 bits, which lanes need.
pub const HAS_WIDE_WORDS: bool = cfg!(any(target_arch = "aarch64", target_arch = "x86_64"));

/// An event whose callers sleep at once. Each signal comes from a signaller that is made for it.
#[derive(Clone, Debug)]
pub struct Signalled(NeverSpin);

impl Signalled {
    fn signaller(&self) -> Signaller {
        Signaller::new(Arc::clone(&self.0))
    }
}

impl Deref for Signalled {
    type Target = NeverSpin;

    fn deref(&self) -> &NeverSpin {
        &self.0
    }
}

impl AsRef<Event> for Signalled {
    fn as_ref(&self) -> &Event {
        &self.0
    }
}

impl Counter for Signalled {
    const INTERRUPTIBLE: bool = NeverSpin::INTERRUPTIBLE;
    const WAKES_ALL: bool = NeverSpin::WAKES_ALL;

    fn new(initial: u64, mode: Mode) -> Self {
        let membarrier = use_membarrier();
        let event = Signalled(NeverSpin::new(initial, mode));
        let has_lane = event.signaller().has_lane();
        match membarrier {
            // An event in the overflow state has no lanes.
            Ok(()) => assert_eq!(has_lane, HAS_WIDE_WORDS && initial != u64::MAX),
            Err(error) => println!("signallers are tested without lanes: {error}"),
        }
        event
    }

    fn read(&self) -> Result<u64, Errno> {
        Counter::read(&self.0)
    }

    fn try_read(&self) -> Result<u64, Errno> {
        Counter::try_read(&self.0)
    }

    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno> {
        Counter::read_timeout(&self.0, timeout)
    }

    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno> {
        Counter::read_deadline(&self.0, deadline)
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        Counter::write(&self.0, n)
    }

    fn try_write(&self, n: u64) -> Result<(), Errno> {
        Counter::try_write(&self.0, n)
    }

    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno> {
        Counter::write_timeout(&self.0, n, timeout)
    }

    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno> {
        Counter::write_deadline(&self.0, n, deadline)
    }

    fn signal(&self) {
        self.signaller().signal();
    }

    fn signal_n(&self, n: u64) {
        self.signaller().signal_n(n);
    }

    fn count(&self) -> u64 {
        Counter::count(&self.0)
    }

    fn poll(&self) -> PollFlags {
        self.0.poll()
    }

    fn place(&self) -> Place {
        self.0.place()
    }
}

impl Readable for Signalled {
    fn wait_readable(&self) {
        Readable::wait_readable(&self.0);
    }

    fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        Readable::wait_readable_timeout(&self.0, timeout)
    }

    fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        Readable::wait_readable_deadline(&self.0, deadline)
    }
}
