//! The descriptors that a front-end sends for its queues, and what it can do to us with them.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use rustix::time::Timespec;
use std::fs::File;
use std::io::IoSliceMut;

/// Signals a call or error eventfd. It may be blocking, and its other owners rely on that; a full one, which only a
/// front-end that means no good has, is left alone.
pub fn ring(call: &File) {
    let mut fds = [PollFd::new(call, PollFlags::OUT)];
    let at_once = Timespec::default();
    if poll(&mut fds, Some(&at_once)) == Ok(1) && fds[0].revents().contains(PollFlags::OUT) {
        // What fails here is no eventfd, and who sent it is not interrupted.
        let _ = write(call, &1_u64.to_ne_bytes());
    }
}

/// The count of a kick eventfd that nobody else reads: the kicks since this was last called.
pub fn take_kicks(kick: &File) -> u64 {
    let mut count = [0; 8];
    loop {
        let mut buffer = [IoSliceMut::new(&mut count)];
        // It may be blocking, and is not to block here.
        match preadv2(kick, &mut buffer, u64::MAX, ReadWriteFlags::NOWAIT) {
            Ok(8) => return u64::from_ne_bytes(count),
            Err(Errno::INTR) => {}
            _ => return 0,
        }
    }
}
