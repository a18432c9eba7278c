//! The cache line that processes share, as `src/shared.rs` describes it.

use crate::event::Mode;
use crate::event::counter::Counter;
use crate::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use crate::sync::scope::Shared;
#[cfg(not(loom))]
use std::mem::offset_of;

const MAGIC: u32 = 0x6c65_6244;
const VERSION: u16 = 1;
/// The size of the layout in bytes, and its alignment.
pub(super) const SIZE: usize = 64;

const COUNTER: u32 = 0;
const SEMAPHORE: u32 = 1;

/// The 64 bytes of an event. Any bytes are valid, so a reference may be made before they have been checked.
#[repr(C, align(64))]
pub(super) struct SharedLayout {
    magic: AtomicU32,
    version: AtomicU16,
    size: AtomicU16,
    pub(super) counter: Counter<Shared>,
    mode: AtomicU32,
    reserved: [AtomicU32; 7],
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<SharedLayout>() == SIZE && align_of::<SharedLayout>() == SIZE);
    assert!(offset_of!(SharedLayout, version) == 4 && offset_of!(SharedLayout, size) == 6);
    assert!(offset_of!(SharedLayout, counter) == 8 && size_of::<Counter<Shared>>() == 24);
    assert!(offset_of!(SharedLayout, mode) == 32 && offset_of!(SharedLayout, reserved) == 36);
};

/// What is wrong with 64 bytes.
pub(super) enum Unfit {
    Magic,
    Version(u16),
    Size(u16),
    Mode(u32),
}

impl SharedLayout {
    #[cfg(loom)]
    pub(super) fn new(initial: u64) -> Self {
        SharedLayout {
            magic: AtomicU32::new(MAGIC),
            version: AtomicU16::new(VERSION),
            size: AtomicU16::new(SIZE as u16),
            counter: Counter::shared(initial),
            mode: AtomicU32::new(COUNTER),
            reserved: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Makes an event, whatever the bytes are.
    pub(super) fn init(&self, initial: u64, mode: Mode) {
        // A process that attaches meanwhile finds no event, rather than a half-made one.
        self.magic.store(0, Ordering::Relaxed);
        self.counter.reset(initial);
        self.version.store(VERSION, Ordering::Relaxed);
        self.size.store(SIZE as u16, Ordering::Relaxed);
        let mode = match mode {
            Mode::Counter => COUNTER,
            Mode::Semaphore => SEMAPHORE,
        };
        self.mode.store(mode, Ordering::Relaxed);
        for word in &self.reserved {
            word.store(0, Ordering::Relaxed);
        }
        // Release pairs with the Acquire in `check`.
        self.magic.store(MAGIC, Ordering::Release);
    }

    /// Checks that this is an event, and returns its mode. The peer may change the bytes afterwards, so the caller
    /// keeps the mode.
    pub(super) fn check(&self) -> Result<Mode, Unfit> {
        // Acquire pairs with the Release in `init`.
        if self.magic.load(Ordering::Acquire) != MAGIC {
            return Err(Unfit::Magic);
        }
        let version = self.version.load(Ordering::Relaxed);
        if version != VERSION {
            return Err(Unfit::Version(version));
        }
        let size = self.size.load(Ordering::Relaxed);
        if usize::from(size) != SIZE {
            return Err(Unfit::Size(size));
        }
        match self.mode.load(Ordering::Relaxed) {
            COUNTER => Ok(Mode::Counter),
            SEMAPHORE => Ok(Mode::Semaphore),
            other => Err(Unfit::Mode(other)),
        }
    }
}
