use rustix::io::{read, write};
use rustix::pipe;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A descriptor that is readable while it is set, closed on exec: the end of a pipe that has one byte in it then.
///
/// No call blocks.
#[derive(Debug)]
pub(in crate::fd) struct Flag {
    output: OwnedFd,
    input: OwnedFd,
}

impl Flag {
    pub(in crate::fd) fn new() -> io::Result<Self> {
        let (output, input) = nonblocking_pipe()?;
        Ok(Flag { output, input })
    }

    /// Makes it readable.
    pub(in crate::fd) fn set(&self) -> io::Result<()> {
        write(&self.input, &[0])?;
        Ok(())
    }

    /// Gives an edge to those that watch it, while it is set.
    pub(in crate::fd) fn set_again(&self) -> io::Result<()> {
        // In this order it is readable all the time.
        self.set()?;
        self.clear()
    }

    pub(in crate::fd) fn clear(&self) -> io::Result<()> {
        read(&self.output, &mut [0])?;
        Ok(())
    }
}

impl AsFd for Flag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

#[cfg(not(target_vendor = "apple"))]
fn nonblocking_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    pipe::pipe_with(pipe::PipeFlags::CLOEXEC | pipe::PipeFlags::NONBLOCK)
}

/// A child that another thread forks in between inherits the pipe.
#[cfg(target_vendor = "apple")]
fn nonblocking_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
    let (output, input) = pipe::pipe()?;
    for end in [&output, &input] {
        fcntl_setfd(end, FdFlags::CLOEXEC)?;
        ioctl_fionbio(end, true)?;
    }
    Ok((output, input))
}
