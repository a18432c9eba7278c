//! The cache line that processes share, and what each of them has to know to use it.
//!
//! 64 bytes, aligned to 64, in the byte order of the machine. All fields are accessed as whole words, atomically. This is
//! version 1; a later version may give the reserved bytes a meaning.
//!
//! | offset | bytes | field | |
//! |---|---|---|---|
//! | 0 | 4 | `magic` | `0x6c656244`, "Dbel" on a little-endian machine. Written last by who makes the event |
//! | 4 | 2 | `version` | 1 |
//! | 6 | 2 | `size` | 64 |
//! | 8 | 8 | `count` | the counter, `u64::MAX` is the overflow state |
//! | 16 | 4 | `readers.state` | who waits for `count > 0` |
//! | 20 | 4 | `readers.generation` | what they sleep on, a futex without the private flag |
//! | 24 | 4 | `writers.state` | who waits for room |
//! | 28 | 4 | `writers.generation` | what they sleep on |
//! | 32 | 4 | `mode` | 0: a read takes the whole count, 1: one unit |
//! | 36 | 28 | reserved | 0 |
//!
//! The first five fields of a state: bit 0 `ANNOUNCED`, bit 1 `ARMED`, bit 2 unused here, bits 3 to 31 the number of
//! sleeping threads. All that follows is sequentially consistent (`__atomic_…(…, __ATOMIC_SEQ_CST)` in C, the default).
//!
//! **To signal** `n`: compare-exchange `count` to `count + n`, or `u64::MAX` if that is less; back off for a moment after a lost
//! race. (To write: only if `count + n < u64::MAX`.) Then *notify the readers*, 1 of them, or `n` if the mode is 1.
//!
//! **To read**: exchange `count` for 0, or compare-exchange it to `count - 1` if the mode is 1. If there was something, *notify
//! the writers*, all of them.
//!
//! **To notify** some: load their `state`. If `ANNOUNCED` is set, clear it by compare-exchange; who succeeds adds 1 to their
//! `generation` and calls `FUTEX_WAKE` on it for as many. If `ARMED` is set and this process knows wakers, clear it in the same
//! step, and send each a byte without blocking.
//!
//! **To sleep** until one can read (or write):
//!
//! 1. add 8 to `state`, load `generation`;
//! 2. set `ANNOUNCED`, by an `or` even if it is set;
//! 3. try the read (write) again; if it succeeds, go to 5;
//! 4. `FUTEX_WAIT` on `generation` for the value loaded, for 250 ms at most. Load `generation`, try again, and go back to 2 if that
//!    fails and the caller has time left;
//! 5. subtract 8 from `state` and, in the same compare-exchange, set `ANNOUNCED` if the number is not 0 then, else clear it.
//!    If it is not 0 and the event can be read now, notify the readers as if the whole count had been signalled. (Writers
//!    need not: who makes room wakes all.)
//!
//! **To sleep in `epoll`**: set `ARMED` in `readers.state` (`writers.state` to wait for room) by an `or` even if it is set, look
//! at `count`, and sleep if that is not what one waits for. A byte in the socket is the wake-up.
//!
//! Why this loses no wake-up is argued in `src/sync/waiters.rs`. A process may be killed between any two of these steps. What it
//! leaves behind: a `state` whose number is too high or in which `ANNOUNCED` or `ARMED` stands for nobody costs wake-ups of nobody;
//! an announcement that it claimed without waking anybody delays a sleeper until the end of its 250 ms, and one in `epoll` until
//! the socket reports that it was closed. The count is changed in one step or not at all.

use crate::event::Mode;
use crate::event::counter::Counter;
use crate::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use crate::sync::scope::Shared;
#[cfg(not(loom))]
use std::mem::offset_of;

const MAGIC: u32 = 0x6c65_6244;
const VERSION: u16 = 1;
/// The size of a line in bytes, and its alignment.
pub(super) const SIZE: usize = 64;

const COUNTER: u32 = 0;
const SEMAPHORE: u32 = 1;

/// Any 64 bytes are one, so a reference to one may be made before they have been looked at.
#[repr(C, align(64))]
pub(super) struct Line {
    magic: AtomicU32,
    version: AtomicU16,
    size: AtomicU16,
    pub(super) counter: Counter<Shared>,
    mode: AtomicU32,
    reserved: [AtomicU32; 7],
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Line>() == SIZE && align_of::<Line>() == SIZE);
    assert!(offset_of!(Line, version) == 4 && offset_of!(Line, size) == 6);
    assert!(offset_of!(Line, counter) == 8 && size_of::<Counter<Shared>>() == 24);
    assert!(offset_of!(Line, mode) == 32 && offset_of!(Line, reserved) == 36);
};

/// What is wrong with 64 bytes.
pub(super) enum Unfit {
    Magic,
    Version(u16),
    Size(u16),
    Mode(u32),
}

impl Line {
    #[cfg(loom)]
    pub(super) fn new(initial: u64) -> Self {
        Line {
            magic: AtomicU32::new(MAGIC),
            version: AtomicU16::new(VERSION),
            size: AtomicU16::new(SIZE as u16),
            counter: Counter::new(initial),
            mode: AtomicU32::new(COUNTER),
            reserved: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Makes an event of whatever is there.
    pub(super) fn init(&self, initial: u64, mode: Mode) {
        // Nobody attaches to a half-made one. Release pairs with nothing: it keeps the order that a debugger wants to see.
        self.magic.store(0, Ordering::Release);
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

    /// Whether this is an event, and of which mode. The peer may change it afterwards: what matters is kept by the caller.
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
