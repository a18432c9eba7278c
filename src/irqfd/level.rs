use super::injector::Core;
use super::line::IrqLine;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::fmt;
use std::sync::Arc;

/// One device's hold on a line, for a level-triggered interrupt without an irqfd. Made by
/// [`Router::level_source`](super::Router::level_source).
///
/// A line is up as long as one of its level sources, [`Router::set_level`](super::Router::set_level) or a resampling
/// irqfd holds it up. So devices that share a pin, such as PCI functions that share INTx, have a level source each. The
/// level stays across masks, changes of routes and the guest's ends of interrupt: a line that is held up is raised
/// again as soon as it can be. Dropping the level source lets go of the line.
///
/// A level source keeps the line and the sink alive, but not irqfds, which go with the router.
///
/// ```
/// # use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
/// # use std::sync::{Arc, Mutex};
/// # #[derive(Default)]
/// # struct Ioapic(Mutex<Vec<bool>>);
/// # impl InterruptSink for Ioapic {
/// #     fn set_level(&self, _: u32, _: u32, level: bool) { self.0.lock().unwrap().push(level); }
/// #     fn signal_msi(&self, _: u32, _: MsiMessage) {}
/// # }
/// # let ioapic = Arc::new(Ioapic::default());
/// let router = Router::new(ioapic.clone());
/// router.set_routes(Routes::identity(24))?;
///
/// let (disk, serial) = (router.level_source(10), router.level_source(10));
/// disk.set_level(true);
/// serial.set_level(true);
/// disk.set_level(false); // the line stays up
/// assert_eq!(*ioapic.0.lock().unwrap(), [true]);
/// drop(serial); // unplugged
/// assert_eq!(*ioapic.0.lock().unwrap(), [true, false]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the line is let go when its level source is dropped"]
pub struct LevelSource {
    core: Arc<Core>,
    line: Arc<IrqLine>,
    /// Changed under the lock of the line's holders.
    level: AtomicBool,
}

impl LevelSource {
    pub(super) fn new(core: Arc<Core>, line: Arc<IrqLine>) -> Self {
        LevelSource {
            core,
            line,
            level: AtomicBool::new(false),
        }
    }

    /// One that holds the line up already, for a line of which the number of such sources has been restored.
    pub(super) fn restored(core: Arc<Core>, line: Arc<IrqLine>) -> Self {
        LevelSource {
            core,
            line,
            level: AtomicBool::new(true),
        }
    }

    /// Holds the line up, or lets it go. Repeating a call changes nothing.
    ///
    /// If another thread is driving the line at the moment, that thread tells the sink soon; this does not wait for it.
    pub fn set_level(&self, level: bool) {
        self.core.board.hold(&self.line, |holders| {
            // Relaxed: the lock orders all changes.
            match (self.level.swap(level, Ordering::Relaxed), level) {
                (false, true) => holders.sources += 1,
                (true, false) => holders.sources -= 1,
                _ => {}
            }
        });
    }

    /// Whether this holds the line up. The value may be stale.
    #[must_use]
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }

    /// The line.
    #[must_use]
    pub fn gsi(&self) -> u32 {
        self.line.gsi
    }
}

impl Drop for LevelSource {
    fn drop(&mut self) {
        if self.level() {
            self.set_level(false);
        }
    }
}

impl fmt::Debug for LevelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelSource")
            .field("gsi", &self.gsi())
            .field("level", &self.level())
            .finish()
    }
}
