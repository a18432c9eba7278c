use crate::errno::Errno;
use std::{error, fmt, io};

/// Why memory was not taken for a shared event.
///
/// Converts into an [`io::Error`]: `EINVAL` for what is wrong with the memory, `EPERM` for a missing seal, and what
/// the system said otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The address or offset is not a multiple of 64.
    Misaligned,
    /// The file ends before the 64 bytes do.
    OutOfBounds {
        /// How long the file is, in bytes.
        size: u64,
    },
    /// The file may be shortened (it lacks `F_SEAL_SHRINK`), and then an access would kill this process with `SIGBUS`.
    NotSealed,
    /// The file is of huge pages (`hugetlbfs`). A process that has it open can take pages out of it in spite of the
    /// seal, and then an access may kill this process with `SIGBUS`.
    HugePages,
    /// The magic number is not there: no process has made an event of this memory yet.
    NotAnEvent,
    /// An event, in a version of the layout that this version of the crate does not know.
    UnknownVersion(u16),
    /// Another size than this version of the layout has.
    WrongSize(u16),
    /// A mode that is neither of a counter nor of a semaphore.
    UnknownMode(u32),
    /// The system would not look at the file or map it.
    Os(io::Error),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::Misaligned => f.write_str("a shared event must be aligned to 64 bytes"),
            AttachError::OutOfBounds { size } => {
                write!(f, "the file ends at {size}, before the shared event does")
            }
            AttachError::NotSealed => {
                f.write_str("the file of a shared event must be sealed against shrinking")
            }
            AttachError::HugePages => {
                f.write_str("the file of a shared event must not be of huge pages")
            }
            AttachError::NotAnEvent => f.write_str("there is no shared event in this memory"),
            AttachError::UnknownVersion(version) => {
                write!(f, "a shared event of the unknown version {version}")
            }
            AttachError::WrongSize(size) => {
                write!(
                    f,
                    "a shared event with a size of {size} bytes instead of 64"
                )
            }
            AttachError::UnknownMode(mode) => {
                write!(f, "a shared event in the unknown mode {mode}")
            }
            AttachError::Os(_) => f.write_str("the memory of a shared event cannot be mapped"),
        }
    }
}

impl error::Error for AttachError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            AttachError::Os(error) => Some(error),
            _ => None,
        }
    }
}

impl From<AttachError> for io::Error {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Os(error) => error,
            AttachError::NotSealed => Errno::NotPermitted.into(),
            _ => Errno::Invalid.into(),
        }
    }
}

/// Why a descriptor cannot be used to wake a peer.
///
/// Converts into an [`io::Error`] with the kernel's number, given in brackets.
#[derive(Debug)]
#[non_exhaustive]
pub enum WakerError {
    /// It is not a socket (`ENOTSOCK`).
    NotSocket,
    /// It is a socket of this address family instead of `AF_UNIX` (`EAFNOSUPPORT`). A process that has the other end,
    /// or the same socket, could hold up a send that is not to block.
    NotUnix(u16),
    /// It is a socket for datagrams, or one that is not connected (`ENOTCONN`). A process that has the same socket
    /// could connect it to another one later.
    NotConnected,
    /// The system would not look at the descriptor.
    Os(io::Error),
}

impl fmt::Display for WakerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WakerError::NotSocket => f.write_str("a waker must be a socket"),
            WakerError::NotUnix(family) => {
                write!(
                    f,
                    "a waker must be a Unix socket, and not of the family {family}"
                )
            }
            WakerError::NotConnected => {
                f.write_str("a waker must be one end of a connection, which stays what it is")
            }
            WakerError::Os(_) => f.write_str("the socket of a waker cannot be looked at"),
        }
    }
}

impl error::Error for WakerError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            WakerError::Os(error) => Some(error),
            _ => None,
        }
    }
}

impl From<WakerError> for io::Error {
    fn from(error: WakerError) -> Self {
        match error {
            WakerError::NotSocket => Errno::NotSocket.into(),
            WakerError::NotUnix(_) => Errno::AddressFamily.into(),
            WakerError::NotConnected => Errno::NotConnected.into(),
            WakerError::Os(error) => error,
        }
    }
}
