//! `doorbell::fd::EventFd` as a [`Counter`]: by its methods before and after it has moved into the kernel, and by
//! system calls on its descriptor. Where the count does not move, by its methods before and after code has asked for a
//! descriptor.

use super::counter::{Counter, EDGES, Place, rules};
use doorbell::Mode;
use doorbell::fd::{EFD_CLOEXEC, EFD_SEMAPHORE, EventFd};
// Not every test target uses both.
#[allow(unused_imports)]
#[cfg(not(doorbell_no_eventfd))]
pub use kernel::{Descriptor, Moved};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsRawFd;
use rustix::io::Errno;
use std::io;
use std::time::{Duration, Instant};

fn eventfd(mode: Mode) -> EventFd {
    let mode = match mode {
        Mode::Counter => 0,
        Mode::Semaphore => EFD_SEMAPHORE,
    };
    EventFd::new(EFD_CLOEXEC | mode).unwrap()
}

pub fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("no errno in {error:?}"))
}

#[cfg(not(doorbell_no_eventfd))]
mod kernel {
    use super::super::kernel::{Handle, Kernel};
    use super::{errno, eventfd};
    use doorbell::Mode;
    use doorbell::fd::EventFd;
    use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
    use rustix::io::Errno;
    use std::io;

    /// The methods of an `EventFd` after the move. What they lack is done by system calls on the descriptor.
    pub type Moved = Kernel<EventFd>;
    /// System calls on the descriptor of an `EventFd`.
    pub type Descriptor = Kernel<Taken>;

    impl Handle for EventFd {
        /// The original's methods are not interruptible either.
        const INTERRUPTIBLE: bool = false;

        fn new(initial: u32, mode: Mode) -> Self {
            let event = eventfd(mode);
            event.write(initial.into()).unwrap();
            event
        }

        fn try_clone(&self) -> io::Result<Self> {
            self.try_clone()
        }

        fn read(&self) -> Result<u64, Errno> {
            self.read().map_err(errno)
        }

        fn write(&self, n: u64) -> Result<(), Errno> {
            self.write(n).map_err(errno)
        }
    }

    /// The descriptor that an `EventFd` has made and given away.
    #[derive(Debug)]
    pub struct Taken(OwnedFd);

    impl Handle for Taken {
        const INTERRUPTIBLE: bool = true;

        fn new(initial: u32, mode: Mode) -> Self {
            Taken(<EventFd as Handle>::new(initial, mode).into())
        }

        fn try_clone(&self) -> io::Result<Self> {
            self.0.try_clone().map(Taken)
        }

        fn read(&self) -> Result<u64, Errno> {
            Handle::read(&self.0)
        }

        fn write(&self, n: u64) -> Result<(), Errno> {
            Handle::write(&self.0, n)
        }
    }

    impl AsFd for Taken {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

/// The methods of an `EventFd` before the move.
pub type Methods = InProcess<false>;
/// The methods of an `EventFd` that does not move, after code has asked for its descriptor.
pub type Shown = InProcess<true>;

/// An `EventFd` has no call that gives up and none that looks. Here such calls look at what `Debug` shows, which is
/// enough because one thread makes all calls that do not block.
#[derive(Debug)]
pub struct InProcess<const SHOWN: bool>(pub EventFd);

impl<const SHOWN: bool> Clone for InProcess<SHOWN> {
    fn clone(&self) -> Self {
        InProcess(self.0.try_clone().unwrap())
    }
}

impl<const SHOWN: bool> InProcess<SHOWN> {
    fn deadline<T>(
        deadline: Instant,
        at_once: impl FnOnce() -> Result<T, Errno>,
        blocking: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if deadline > Instant::now() {
            return blocking();
        }
        at_once().map_err(|error| match error {
            Errno::AGAIN => Errno::TIMEDOUT,
            error => error,
        })
    }
}

impl<const SHOWN: bool> Counter for InProcess<SHOWN> {
    const INTERRUPTIBLE: bool = false;
    const WAKES_ALL: bool = false;

    fn edges() -> &'static [u64] {
        &EDGES[..EDGES.len() - 1]
    }

    fn new(initial: u64, mode: Mode) -> Self {
        let event = eventfd(mode);
        event.write(initial).unwrap();
        if SHOWN {
            assert!(event.as_raw_fd() >= 0);
        }
        InProcess(event)
    }

    fn read(&self) -> Result<u64, Errno> {
        self.0.read().map_err(errno)
    }

    fn try_read(&self) -> Result<u64, Errno> {
        match self.count() {
            0 => Err(Errno::AGAIN),
            _ => self.read(),
        }
    }

    /// Only time limits are used that are never reached.
    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno> {
        match timeout {
            Duration::ZERO => self.read_deadline(Instant::now()),
            _ => self.read(),
        }
    }

    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno> {
        Self::deadline(deadline, || self.try_read(), || self.read())
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        self.0.write(n).map_err(errno)
    }

    fn try_write(&self, n: u64) -> Result<(), Errno> {
        match rules::written(self.count(), n) {
            Err(Errno::AGAIN) => Err(Errno::AGAIN),
            _ => self.write(n),
        }
    }

    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno> {
        match timeout {
            Duration::ZERO => self.write_deadline(n, Instant::now()),
            _ => self.write(n),
        }
    }

    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno> {
        Self::deadline(deadline, || self.try_write(n), || self.write(n))
    }

    fn signal(&self) {
        self.write(1).unwrap();
    }

    fn signal_n(&self, n: u64) {
        self.write(n).unwrap();
    }

    fn count(&self) -> u64 {
        let text = format!("{:?}", self.0);
        let (_, rest) = text
            .split_once("count: ")
            .unwrap_or_else(|| panic!("no count in {text}"));
        let (digits, _) = rest.split_once(',').unwrap();
        digits.parse().unwrap()
    }

    fn poll(&self) -> PollFlags {
        let expected = rules::polled(self.count());
        if SHOWN {
            let mut fds = [PollFd::new(&self.0, PollFlags::all())];
            poll(&mut fds, Some(&Timespec::default())).unwrap();
            let readable = fds[0].revents().contains(PollFlags::IN);
            assert_eq!(readable, expected.contains(PollFlags::IN));
        }
        expected
    }

    fn place(&self) -> Place {
        Place::Futex
    }
}
