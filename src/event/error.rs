use crate::errno::Errno;
use std::{error, fmt, io};

/// Why a write added nothing. The count is as it was.
///
/// Converts into the [`io::Error`] that `write(2)` to an eventfd gives:
///
/// ```
/// use doorbell::Event;
/// use std::io;
///
/// fn ring(event: &Event) -> io::Result<()> {
///     event.try_write(u64::MAX - 1)?;
///     event.try_write(1)?;
///     Ok(())
/// }
/// let error = ring(&Event::new(0)).unwrap_err();
/// assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteError {
    /// The number was `u64::MAX`, which no count can take (`EINVAL`).
    Invalid,
    /// There is not enough room now, and the call does not block (`EAGAIN`).
    WouldBlock,
    /// There was not enough room before the deadline (`ETIMEDOUT`).
    TimedOut,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WriteError::Invalid => "u64::MAX cannot be written to an event",
            WriteError::WouldBlock => "the event's count has no room for this write now",
            WriteError::TimedOut => "the event's count had no room for this write in time",
        })
    }
}

impl error::Error for WriteError {}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Invalid => Errno::Invalid,
            WriteError::WouldBlock => Errno::Again,
            WriteError::TimedOut => Errno::TimedOut,
        }
        .into()
    }
}

/// A batch has writes for which there was no room. They are still in it; see
/// [`Batch::unwritten`](super::Batch::unwritten).
///
/// Converts into `EAGAIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unwritten {
    pub(super) events: usize,
}

impl Unwritten {
    /// How many events had no room for what was to be written.
    #[must_use]
    pub fn events(self) -> usize {
        self.events
    }
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unwritten { events } = self;
        write!(
            f,
            "{events} of the events had no room for what the batch writes"
        )
    }
}

impl error::Error for Unwritten {}

impl From<Unwritten> for io::Error {
    fn from(_: Unwritten) -> Self {
        Errno::Again.into()
    }
}
