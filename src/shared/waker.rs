//! The socket through which a peer in `epoll` is woken. It comes from the peer.

use super::error::WakerError;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new(socket: OwnedFd) -> Result<Self, WakerError> {
        check(socket.as_fd())?;
        Ok(Waker(socket))
    }

    /// Sends a byte. Never blocks.
    pub(super) fn ring(&self) {
        // Full: who does not read has been woken. Closed: there is nobody to wake.
        let _ = rustix::net::send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Whether a send that is not to block does not, whatever the peer does to the socket, and goes to nobody but the one
/// whom the socket is connected to now.
fn check(socket: BorrowedFd<'_>) -> Result<(), WakerError> {
    // What is not a socket is not looked at any further: a peer may be its file system.
    match sockopt::socket_domain(socket).map_err(refused)? {
        AddressFamily::UNIX => {}
        other => return Err(WakerError::NotUnix(other.as_raw())),
    }
    // A connection is made once.
    match sockopt::socket_type(socket).map_err(refused)? {
        SocketType::STREAM | SocketType::SEQPACKET => {}
        _ => return Err(WakerError::NotConnected),
    }
    rustix::net::getpeername(socket).map_err(refused)?;
    Ok(())
}

fn refused(errno: Errno) -> WakerError {
    match errno {
        Errno::NOTSOCK => WakerError::NotSocket,
        Errno::NOTCONN => WakerError::NotConnected,
        errno => WakerError::Os(errno.into()),
    }
}
