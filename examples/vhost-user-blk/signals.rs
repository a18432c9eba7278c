//! SIGTERM and SIGINT as a file descriptor.

use std::io::{Error, Result};
use std::os::fd::{FromRawFd, OwnedFd};

/// Becomes readable when the process is asked to end. Call it before there are other threads.
pub fn requests_to_end() -> Result<OwnedFd> {
    // SAFETY: all zeroes is a valid set, and the descriptor is new and has no other owner.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
            0 => {}
            errno => return Err(Error::from_raw_os_error(errno)),
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC) {
            -1 => Err(Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}
