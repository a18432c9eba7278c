//! The error numbers that the kernel would have given.

use std::io;

/// What went wrong, in the terms of `errno(3)`.
#[derive(Clone, Copy)]
pub(crate) enum Errno {
    Again,
    BadDescriptor,
    Busy,
    Exists,
    Invalid,
    NoEntry,
    NoSystemCall,
    NotPermitted,
    TimedOut,
}

#[cfg(unix)]
impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        use rustix::io::Errno as Os;
        match errno {
            Errno::Again => Os::AGAIN,
            Errno::BadDescriptor => Os::BADF,
            Errno::Busy => Os::BUSY,
            Errno::Exists => Os::EXIST,
            Errno::Invalid => Os::INVAL,
            Errno::NoEntry => Os::NOENT,
            Errno::NoSystemCall => Os::NOSYS,
            Errno::NotPermitted => Os::PERM,
            Errno::TimedOut => Os::TIMEDOUT,
        }
        .into()
    }
}

#[cfg(not(unix))]
impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        use io::ErrorKind;
        match errno {
            Errno::Again => ErrorKind::WouldBlock,
            Errno::BadDescriptor => ErrorKind::InvalidInput,
            Errno::Busy => ErrorKind::ResourceBusy,
            Errno::Exists => ErrorKind::AlreadyExists,
            Errno::Invalid => ErrorKind::InvalidInput,
            Errno::NoEntry => ErrorKind::NotFound,
            Errno::NoSystemCall => ErrorKind::Unsupported,
            Errno::NotPermitted => ErrorKind::PermissionDenied,
            Errno::TimedOut => ErrorKind::TimedOut,
        }
        .into()
    }
}
