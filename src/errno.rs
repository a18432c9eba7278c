//! The error numbers that the kernel would have given.

use std::io;

/// What went wrong, in the terms of `errno(3)`.
#[derive(Clone, Copy)]
// Some belong to what only Linux has.
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(dead_code))]
pub(crate) enum Errno {
    AddressFamily,
    Again,
    BadDescriptor,
    Busy,
    Exists,
    Invalid,
    NoEntry,
    NoSystemCall,
    NotConnected,
    NotPermitted,
    NotSocket,
    TimedOut,
}

#[cfg(unix)]
impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        use rustix::io::Errno as Os;
        match errno {
            Errno::AddressFamily => Os::AFNOSUPPORT,
            Errno::Again => Os::AGAIN,
            Errno::BadDescriptor => Os::BADF,
            Errno::Busy => Os::BUSY,
            Errno::Exists => Os::EXIST,
            Errno::Invalid => Os::INVAL,
            Errno::NoEntry => Os::NOENT,
            Errno::NoSystemCall => Os::NOSYS,
            Errno::NotConnected => Os::NOTCONN,
            Errno::NotPermitted => Os::PERM,
            Errno::NotSocket => Os::NOTSOCK,
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
            Errno::AddressFamily => ErrorKind::Unsupported,
            Errno::Again => ErrorKind::WouldBlock,
            Errno::BadDescriptor => ErrorKind::InvalidInput,
            Errno::Busy => ErrorKind::ResourceBusy,
            Errno::Exists => ErrorKind::AlreadyExists,
            Errno::Invalid | Errno::NotSocket => ErrorKind::InvalidInput,
            Errno::NoEntry => ErrorKind::NotFound,
            Errno::NoSystemCall => ErrorKind::Unsupported,
            Errno::NotConnected => ErrorKind::NotConnected,
            Errno::NotPermitted => ErrorKind::PermissionDenied,
            Errno::TimedOut => ErrorKind::TimedOut,
        }
        .into()
    }
}
