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
        // If the socket is full, the peer has been woken. If it is closed, there is no peer to wake.
        let _ = rustix::net::send(&self.0, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }
}

/// Checks that a non-blocking send never blocks, whatever the peer does to the socket, and that it always goes to the
/// peer that the socket is connected to now.
fn check(socket: BorrowedFd<'_>) -> Result<(), WakerError> {
    // Nothing else is asked of a descriptor that is not a socket: a peer may implement its file system.
    match sockopt::socket_domain(socket).map_err(refused)? {
        AddressFamily::UNIX => {}
        other => return Err(WakerError::NotUnix(other.as_raw())),
    }
    // The connection of these types cannot change.
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
