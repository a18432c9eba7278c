//! The peer of `tests/shared.c`, in Rust: the two processes share one event, and each sleeps in a poller of its own.

use doorbell_rs::SharedEvent;
use doorbell_rs::event::Interest;
use doorbell_rs::poll::{Events, Poller, Watch};
use std::error::Error;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

const SIGNALS: u64 = 2_000;
const SOCKET: usize = 1;

fn main() -> Result<(), Box<dyn Error>> {
    // SAFETY: what tests/shared.c hands down, and nothing else uses.
    let [memfd, watched, waker, control] =
        [10, 11, 12, 13].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let mut event = SharedEvent::attach(memfd, 0)?;
    event.add_waker(waker)?;
    let (mut watched, mut control) = (UnixStream::from(watched), UnixStream::from(control));
    watched.set_nonblocking(true)?;

    let poller = Poller::new();
    poller.add_fd(&watched, SOCKET, Watch::READABLE)?;
    let mut events = Events::with_capacity(1);
    let mut sum = 0;
    while sum < SIGNALS {
        if !event.arm(Interest::Signals).is_readable() {
            assert_eq!(poller.wait(&mut events, None)?, 1);
            assert!(watched.read(&mut [0; 64])? > 0);
        }
        sum += event.try_read().unwrap_or(0);
    }
    control.write_all(&sum.to_ne_bytes())?;

    for count in 0..SIGNALS {
        event.signal();
        if count % 4 == 0 {
            thread::sleep(Duration::from_nanos(count * 7_919 % 100_000));
        }
    }
    let mut received = [0; 8];
    control.read_exact(&mut received)?;
    assert_eq!(u64::from_ne_bytes(received), SIGNALS);
    Ok(())
}
