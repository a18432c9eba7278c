use crate::errno::Errno;
use std::{error, fmt, io};

/// Why a call of a [`Poller`](super::Poller) failed. The registrations are as they were, and nothing that is ready was
/// lost.
///
/// Converts into the [`io::Error`] that epoll gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PollError {
    /// The key is in use (`EEXIST`).
    KeyExists,
    /// Nothing is registered under the key, or the file descriptor that is registered has been closed (`ENOENT`).
    NoEntry,
    /// The buffer has no room for even one event (`EINVAL`).
    NoCapacity,
    /// The key stands for a binding that reports nothing, or for a source that has nothing but a probe (`EINVAL`).
    Bound,
    /// A source that is watched as one-shot cannot have a probe (`EINVAL`).
    OneShot,
    /// The file descriptor to be bound is not an eventfd (`EINVAL`).
    NotEventfd,
    /// The file descriptor is registered with this poller already (`EEXIST`).
    FdExists,
    /// The file descriptor is not open (`EBADF`).
    BadFd,
    /// The file descriptor cannot be waited for: it is a regular file or a directory (`EPERM`).
    NotPollable,
    /// The system has no more descriptors, memory or watches to give, or refused for another reason: this `errno`.
    Os(i32),
}

#[cfg(target_os = "linux")]
impl PollError {
    /// What the kernel says of a file descriptor.
    pub(super) fn of(errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno as Os;
        match errno {
            Os::EXIST => PollError::FdExists,
            Os::NOENT => PollError::NoEntry,
            Os::BADF => PollError::BadFd,
            Os::PERM => PollError::NotPollable,
            errno => PollError::Os(errno.raw_os_error()),
        }
    }
}

impl fmt::Display for PollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PollError::KeyExists => "the key is registered with this poller already",
            PollError::NoEntry => "nothing is registered under this key",
            PollError::NoCapacity => "the buffer for events has a capacity of 0",
            PollError::Bound => "what is registered under this key cannot be watched",
            PollError::OneShot => "what is reported once cannot have a probe",
            PollError::NotEventfd => "the file descriptor is not an eventfd",
            PollError::FdExists => "the file descriptor is registered with this poller already",
            PollError::BadFd => "the file descriptor is not open",
            PollError::NotPollable => "the file descriptor cannot be waited for",
            PollError::Os(errno) => return io::Error::from_raw_os_error(*errno).fmt(f),
        })
    }
}

impl error::Error for PollError {}

impl From<PollError> for io::Error {
    fn from(error: PollError) -> Self {
        match error {
            PollError::KeyExists | PollError::FdExists => Errno::Exists,
            PollError::NoEntry => Errno::NoEntry,
            PollError::NoCapacity
            | PollError::Bound
            | PollError::OneShot
            | PollError::NotEventfd => Errno::Invalid,
            PollError::BadFd => Errno::BadDescriptor,
            PollError::NotPollable => Errno::NotPermitted,
            PollError::Os(errno) => return io::Error::from_raw_os_error(errno),
        }
        .into()
    }
}
