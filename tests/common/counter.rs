//! The interface by which the tests use all counters.

use doorbell::Mode;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::fmt::Debug;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Numbers at which a counter of 64 bits, or half of one, may go wrong.
pub const EDGES: [u64; 7] = [
    0,
    1,
    (1 << 32) - 1,
    1 << 32,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// An eventfd of any implementation. A clone is another handle of the same counter.
pub trait Counter: Clone + Debug + Send + 'static {
    /// Whether a signal handler ends a blocking call with `EINTR`. If not, the call goes on.
    const INTERRUPTIBLE: bool;
    /// Whether each success wakes every blocked caller, however little there is for it.
    const WAKES_ALL: bool;
    /// The number of calls in tests that make many.
    const MANY: u64 = 100_000;

    /// The [`EDGES`] that such a counter can be made with.
    fn edges() -> &'static [u64] {
        &EDGES
    }

    /// A counter with any count, including `u64::MAX` if that is among the [`edges`](Self::edges).
    fn new(initial: u64, mode: Mode) -> Self;

    fn read(&self) -> Result<u64, Errno>;
    fn try_read(&self) -> Result<u64, Errno>;
    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno>;
    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno>;

    fn write(&self, n: u64) -> Result<(), Errno>;
    fn try_write(&self, n: u64) -> Result<(), Errno>;
    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno>;
    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno>;

    fn signal(&self);
    fn signal_n(&self, n: u64);

    fn count(&self) -> u64;
    /// All that poll reports.
    fn poll(&self) -> PollFlags;

    /// Where a thread sleeps that is blocked in a call on this handle.
    fn place(&self) -> Place;
}

/// A counter that threads can wait for without taking anything.
pub trait Readable: Counter {
    fn wait_readable(&self);
    fn wait_readable_timeout(&self, timeout: Duration) -> bool;
    fn wait_readable_deadline(&self, deadline: Instant) -> bool;
}

/// The object that a blocked thread's system call names.
pub enum Place {
    /// A file descriptor that the thread reads or writes.
    Descriptor(i32),
    /// Memory that contains the futex.
    Memory(Range<usize>),
    /// Memory that processes share, which contains the futex. A thread that sleeps there looks up now and then by
    /// itself.
    SharedMemory,
    /// A futex in memory that the test does not know.
    Futex,
    /// Several counters at once.
    Several,
}

impl Place {
    pub fn of<T>(object: &T) -> Self {
        let start = std::ptr::from_ref(object) as usize;
        Place::Memory(start..start + size_of::<T>())
    }
}

/// The rules of eventfd for a count, computed in wider numbers, so that nothing can wrap.
pub mod rules {
    use doorbell::Mode;
    use rustix::event::PollFlags;
    use rustix::io::Errno;

    const MAX: u128 = u64::MAX as u128;

    /// The count after a write of `n`.
    pub fn written(count: u64, n: u64) -> Result<u64, Errno> {
        let sum = u128::from(count) + u128::from(n);
        if u128::from(n) == MAX {
            Err(Errno::INVAL)
        } else if sum >= MAX {
            Err(Errno::AGAIN)
        } else {
            Ok(sum as u64)
        }
    }

    /// The count after `n` signals.
    pub fn signalled(count: u64, n: u64) -> u64 {
        (u128::from(count) + u128::from(n)).min(MAX) as u64
    }

    /// What a read returns, and the count after it.
    pub fn taken(count: u64, mode: Mode) -> Result<(u64, u64), Errno> {
        match (count, mode) {
            (0, _) => Err(Errno::AGAIN),
            (count, Mode::Counter) => Ok((count, 0)),
            (count, Mode::Semaphore) => Ok((1, count - 1)),
        }
    }

    pub fn polled(count: u64) -> PollFlags {
        let (readable, writable, error) = match u128::from(count) {
            0 => (false, true, false),
            MAX => (true, false, true),
            count => (true, count + 1 < MAX, false),
        };
        let flag = |set, flag| if set { flag } else { PollFlags::empty() };
        flag(readable, PollFlags::IN) | flag(writable, PollFlags::OUT) | flag(error, PollFlags::ERR)
    }
}
