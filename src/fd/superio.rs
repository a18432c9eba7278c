//! Events as the interrupt lines of vm-superio's devices.

use super::EventFd;
use crate::Event;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use vm_superio::Trigger;

impl Trigger for Event {
    type E = Infallible;

    /// Signals it.
    fn trigger(&self) -> Result<(), Infallible> {
        self.signal();
        Ok(())
    }
}

impl Trigger for &Event {
    type E = Infallible;

    /// Signals it.
    fn trigger(&self) -> Result<(), Infallible> {
        self.signal();
        Ok(())
    }
}

impl Trigger for EventFd {
    type E = io::Error;

    /// Writes 1.
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}

/// An event that a device shares with whoever waits for its interrupts. (Rust lets no crate but vm-superio implement
/// its trait for an `Arc`.)
///
/// ```
/// use doorbell::Event;
/// use doorbell::fd::SharedTrigger;
/// use std::sync::Arc;
/// use vm_superio::Serial;
///
/// let interrupt = Arc::new(Event::new(0));
/// let mut serial = Serial::new(SharedTrigger(Arc::clone(&interrupt)), Vec::new());
/// serial.write(1, 0b0001).unwrap(); // interrupts for received data
/// serial.enqueue_raw_bytes(b"x").unwrap();
/// assert_eq!(interrupt.try_read(), Some(1));
/// ```
#[derive(Clone, Debug)]
pub struct SharedTrigger(pub Arc<Event>);

impl Trigger for SharedTrigger {
    type E = Infallible;

    /// Signals it.
    fn trigger(&self) -> Result<(), Infallible> {
        self.0.signal();
        Ok(())
    }
}
