//! Events as the interrupt lines of vm-superio's devices.

use super::EventFd;
use crate::Event;
use crate::event::EventHandle;
use std::convert::Infallible;
use std::io;
use vm_superio::Trigger;

impl Trigger for Event {
    type E = Infallible;

    /// Signals the event.
    fn trigger(&self) -> Result<(), Infallible> {
        self.signal();
        Ok(())
    }
}

impl Trigger for &Event {
    type E = Infallible;

    /// Signals the event.
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

/// A device has a handle of the event that it shares with the thread that waits for its interrupts. (Rust lets no crate
/// but vm-superio implement its trait for an `Arc`.)
///
/// ```
/// use doorbell::Event;
/// use doorbell::event::EventHandle;
/// use std::sync::Arc;
/// use vm_superio::Serial;
///
/// let interrupt = Arc::new(Event::new(0));
/// let mut serial = Serial::new(EventHandle::from(&interrupt), Vec::new());
/// serial.write(1, 0b0001).unwrap(); // interrupts for received data
/// serial.enqueue_raw_bytes(b"x").unwrap();
/// assert_eq!(interrupt.try_read(), Some(1));
/// ```
impl Trigger for EventHandle {
    type E = Infallible;

    /// Signals the event.
    fn trigger(&self) -> Result<(), Infallible> {
        self.signal();
        Ok(())
    }
}
