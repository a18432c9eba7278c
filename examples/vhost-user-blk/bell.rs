//! The descriptors that a front-end sends for its queues, and what the front-end can do to us with them.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2, write};
use rustix::time::Timespec;
use std::fs::File;
use std::io::IoSliceMut;

/// Signals a call or error eventfd. The eventfd may be blocking, and its other owners rely on that. A full eventfd is
/// left alone: only a malicious front-end has one.
pub fn ring(call: &File) {
    let mut fds = [PollFd::new(call, PollFlags::OUT)];
    let at_once = Timespec::default();
    if poll(&mut fds, Some(&at_once)) == Ok(1) && fds[0].revents().contains(PollFlags::OUT) {
        // If the write fails, the descriptor is no eventfd. Then the front-end that sent it gets no interrupt.
        let _ = write(call, &1_u64.to_ne_bytes());
    }
}

/// The count of a kick eventfd that no other thread reads: the kicks since this was last called.
pub fn take_kicks(kick: &File) -> u64 {
    let mut count = [0; 8];
    loop {
        let mut buffer = [IoSliceMut::new(&mut count)];
        // The eventfd may be blocking, and must not block here.
        match preadv2(kick, &mut buffer, u64::MAX, ReadWriteFlags::NOWAIT) {
            Ok(8) => return u64::from_ne_bytes(count),
            Err(Errno::INTR) => {}
            _ => return 0,
        }
    }
}
