//! The probes of a poller, and the hot set among them: the probes that a thread asks while it is awake.
//!
//! ```text
//!              a kick is reported: begin
//!      cold  ────────────────────────────▶  hot ── ready? ──▶ reported
//!       ▲                                    │
//!       └── end: before a sleep, or idle for long
//! ```
//!
//! A source that was hot before a sleep is *warm* afterwards: it gets hot again with the first report of any source
//! that has a probe. The reason is that the queues of a device are often used in turn, and asking only the queue that
//! woke the thread would not pay. A source that was not ready in [`MOST_RESTS`] of these times waits for a report of
//! its own.
//!
//! A cold source costs nothing: its notifications are on. The notifications of a hot source may be off, so a thread has
//! to ask its probe. A thread that is outside of `wait` does not ask, nor does a thread that sleeps. So a source may be
//! hot while no thread asks only as long as no thread sleeps:
//!
//! ```text
//!     thread about to sleep                   thread that stops asking, or reports
//!     1  enter the waiters                    1  lock: asking = false
//!     2  lock: asking?  yes: sleep            2  any thread among the waiters?  end all, and
//!              no: end all; found?  stay            wake one of them for what is left over
//! ```
//!
//! The lock orders the two. If the first thread takes it first, the second finds the first among the waiters. Otherwise
//! the first finds that no thread asks.
//!
//! A source is cold when it is attached, unless it is ready: its notifications are on, so the first kick tells of it.
//!
//! A probe may panic. Whether its notifications are on is then unknown, so the source stays hot, and the call is made
//! again later. The calls of the other probes are made nevertheless. The thread passes the panic on to the caller of
//! `wait` instead of sleeping, and wakes a thread that sleeps, which ends the hot sources itself, in step 2.

use super::events::{self, Events};
use super::probe::Probe;
use crate::panics::{Payload, catch};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{DEKKER, Mutex, MutexGuard, const_thread_local};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::PoisonError;

pub(super) struct Probes {
    /// How many probes there are.
    number: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sources: Vec<Option<Source>>,
    /// Slots in `sources`.
    by_key: BTreeMap<usize, usize>,
    vacant: Vec<usize>,
    hot: Vec<usize>,
    /// Sources that have got cold, and get hot with the first report after a sleep.
    warm: Vec<usize>,
    /// A thread has fallen asleep since the warm sources last got hot.
    slept: bool,
    /// The index in `hot` to begin with, so that each source has its turn in a small buffer.
    first: usize,
    /// How often all hot sources have been asked.
    rounds: u32,
    /// A thread in its window asks all the time.
    asking: bool,
}

struct Source {
    key: usize,
    probe: Box<dyn Probe>,
    /// It has nothing but its probe, so it is always hot.
    alone: bool,
    hot: bool,
    /// Polling has begun, or may have.
    begun: bool,
    /// How many rounds in a row it has not been ready.
    idle: u32,
    /// How often it has got cold since it was last ready.
    rests: u32,
    /// It is in `warm`, even if it has become hot since.
    warm: bool,
}

/// After each so many rounds, the sources that were not ready in any of them get cold. So a source gets cold after up
/// to twice as many looks, which take some 100 µs if the thread does nothing else.
const MOST_IDLE: u32 = 1024;

/// A source that has got cold this often without being ready in between is no longer warm.
const MOST_RESTS: u32 = 16;

const_thread_local! {
    /// The `Probes` that this thread has locked.
    static LOCKED: Cell<*const Probes> = { Cell::new(ptr::null()) };
}

/// The lock, recorded in [`LOCKED`].
pub(super) struct Locked<'a> {
    probes: &'a Probes,
    table: MutexGuard<'a, Table>,
    before: *const Probes,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        LOCKED.with(|locked| locked.set(self.before));
    }
}

/// Which thread asks the hot probes during a window.
pub(super) enum Asker<'a> {
    /// No thread: there is no hot probe.
    NoThread,
    /// The caller, until this is dropped.
    ThisThread(Asking<'a>),
    Another,
}

pub(super) struct Asking<'a>(&'a Probes);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().table.asking = false;
    }
}

/// A probe that has been removed, to be dropped outside the locks.
pub(super) struct Deleted {
    probe: Box<dyn Probe>,
    /// The panic of its last call, if any.
    pub(super) panicked: Option<Payload>,
}

impl Probes {
    pub(super) fn new() -> Self {
        Probes {
            number: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    /// Whether there are probes. With a [`DEKKER`] load: a thread that adds one looks for sleepers afterwards.
    pub(super) fn any(&self) -> bool {
        self.number.load(DEKKER) != 0
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        let own = ptr::eq(LOCKED.with(Cell::get), self);
        assert!(!own, "a probe calls its own poller");
        self.note(self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note<'a>(&'a self, table: MutexGuard<'a, Table>) -> Locked<'a> {
        Locked {
            probes: self,
            table,
            before: LOCKED.with(|locked| locked.replace(self)),
        }
    }

    pub(super) fn lock_if_any(&self) -> Option<Locked<'_>> {
        self.any().then(|| self.lock())
    }

    /// Turns all notifications on and drops the probes. If one panics, the others are ended nevertheless.
    pub(super) fn clear(&self) -> Result<(), Payload> {
        let mut first = None;
        let Some(mut locked) = self.lock_if_any() else {
            return Ok(());
        };
        let keys: Vec<usize> = locked.table.by_key.keys().copied().collect();
        let deleted: Vec<_> = keys.into_iter().map(|key| locked.delete(key)).collect();
        drop(locked);
        for Deleted { probe, panicked } in deleted.into_iter().flatten() {
            first = first.or(panicked);
            catch(&mut first, || drop(probe));
        }
        first.map_or(Ok(()), Err)
    }

    /// Asks the hot probes once, and reports the sources that are ready, as far as there is room.
    pub(super) fn ask(&self, events: &mut Events) {
        self.lock().run(|table| table.ask(events));
    }

    /// As [`ask`](Self::ask), unless the lock is taken.
    pub(super) fn try_ask(&self, events: &mut Events) {
        if let Ok(table) = self.table.try_lock() {
            self.note(table).run(|table| table.ask(events));
        }
    }

    /// Called at the beginning of a window: this thread asks from now on, unless another does, or no probe is hot.
    pub(super) fn begin_asking(&self) -> Asker<'_> {
        let Some(locked) = self.lock_if_any() else {
            return Asker::NoThread;
        };
        locked.run(|table| {
            if table.asking {
                return Asker::Another;
            }
            if table.hot.is_empty() {
                return Asker::NoThread;
            }
            // If this panics, this thread does not ask.
            table.begin();
            table.asking = true;
            Asker::ThisThread(Asking(self))
        })
    }

    /// Called by a thread that is about to sleep and stands among the waiters: turns notifications on, and reports what
    /// has come until then. If a probe panics, the thread must not sleep.
    pub(super) fn rest(&self, events: &mut Events) -> Result<(), Payload> {
        let mut locked = self.lock();
        if locked.table.asking {
            return Ok(());
        }
        locked.table.end(events).map(drop)
    }

    /// Called by a thread that is about to report: the reported sources get hot. If `others_sleep`, which is called
    /// under the lock, all sources get cold instead. Returns whether a source is ready that has no room in the report.
    ///
    /// If a probe panics, so does this, and the caller wakes another thread.
    pub(super) fn report(&self, events: &mut Events, others_sleep: impl FnOnce() -> bool) -> bool {
        self.lock().run(|table| {
            for report in &*events {
                if let Some(&slot) = table.by_key.get(&report.key()) {
                    table.source(slot).rests = 0;
                    table.heat(slot);
                    table.heat_warm();
                }
            }
            if !others_sleep() {
                table.begin();
                return false;
            }
            // Those that were ready stay hot, and the next thread that waits asks them, or the one that is woken.
            !table.asking
                && table
                    .end(events)
                    .unwrap_or_else(|it| panic::resume_unwind(it))
        })
    }
}

impl Locked<'_> {
    /// Passes a panic of a probe on outside the lock, so that the lock is not poisoned.
    fn run<T>(mut self, f: impl FnOnce(&mut Table) -> T) -> T {
        let result = panic::catch_unwind(AssertUnwindSafe(|| f(&mut self.table)));
        drop(self);
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Asks a probe that is about to be added whether it is ready. If the probe panics, the lock is released first.
    pub(super) fn ask(self, probe: &mut impl Probe) -> (Self, bool) {
        let ready = panic::catch_unwind(AssertUnwindSafe(|| probe.ready()));
        match ready {
            Ok(ready) => (self, ready),
            Err(payload) => {
                drop(self);
                panic::resume_unwind(payload)
            }
        }
    }

    /// Adds a probe whose notifications are on, under a key that has none. It is hot if it is `ready`, or `alone`. The
    /// caller then wakes a thread for a hot one, because a thread that sleeps has not asked it yet.
    pub(super) fn add(&mut self, key: usize, probe: Box<dyn Probe>, ready: bool, alone: bool) {
        let table = &mut *self.table;
        let slot = table.vacant.pop().unwrap_or_else(|| {
            table.sources.push(None);
            table.sources.len() - 1
        });
        table.sources[slot] = Some(Source {
            key,
            probe,
            alone,
            hot: false,
            begun: false,
            idle: 0,
            rests: 0,
            warm: false,
        });
        table.by_key.insert(key, slot);
        if ready || alone {
            table.heat(slot);
        }
        // First half of the handshake with a thread that falls asleep.
        self.probes.number.fetch_add(1, DEKKER);
    }

    /// Removes a probe, and turns its notifications on.
    pub(super) fn delete(&mut self, key: usize) -> Option<Deleted> {
        let table = &mut *self.table;
        let slot = table.by_key.remove(&key)?;
        table.hot.retain(|hot| *hot != slot);
        table.warm.retain(|warm| *warm != slot);
        table.vacant.push(slot);
        let mut source = table.sources[slot].take()?;
        self.probes.number.fetch_sub(1, Ordering::Relaxed);
        let mut panicked = None;
        if source.begun {
            catch(&mut panicked, || source.probe.end());
        }
        Some(Deleted {
            probe: source.probe,
            panicked,
        })
    }
}

impl Table {
    fn source(&mut self, slot: usize) -> &mut Source {
        match &mut self.sources[slot] {
            Some(source) => source,
            None => unreachable!("a slot of a source that is gone"),
        }
    }

    fn heat(&mut self, slot: usize) {
        let source = self.source(slot);
        source.idle = 0;
        if !std::mem::replace(&mut source.hot, true) {
            self.hot.push(slot);
        }
    }

    /// Makes the warm sources hot, at the first report after a sleep.
    fn heat_warm(&mut self) {
        if std::mem::take(&mut self.slept) {
            for slot in std::mem::take(&mut self.warm) {
                self.source(slot).warm = false;
                self.heat(slot);
            }
        }
    }

    /// Calls `begin` of the hot probes that have not begun. If one panics, so does this; the rest go on notifying.
    fn begin(&mut self) {
        for index in 0..self.hot.len() {
            let source = self.source(self.hot[index]);
            if !std::mem::replace(&mut source.begun, true) {
                source.probe.begin();
            }
        }
    }

    fn ask(&mut self, events: &mut Events) {
        let number = self.hot.len();
        let first = self.first;
        for turn in 0..number {
            if events.room() == 0 {
                return;
            }
            let slot = (first + turn) % number;
            // A source that takes the last room, or panics, is the last one in the next round, and so hides no other.
            self.first = slot + 1;
            let source = self.source(self.hot[slot]);
            if source.probe.ready() {
                source.idle = 0;
                source.rests = 0;
                let key = source.key;
                events.push(key, events::READABLE);
            } else {
                source.idle += 1;
            }
        }
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds % MOST_IDLE == 0 {
            self.cool(events, |source| source.idle >= MOST_IDLE)
                .unwrap_or_else(|payload| panic::resume_unwind(payload));
        }
    }

    /// Called before a sleep. Returns whether a source is ready that has no room in the report.
    fn end(&mut self, events: &mut Events) -> Result<bool, Payload> {
        self.slept = true;
        self.cool(events, |_| true)
    }

    /// Turns notifications on for the hot sources that are `over`. They get cold or warm, unless they are ready then.
    /// If probes panic, the others get cold nevertheless, and the first panic is returned.
    fn cool(
        &mut self,
        events: &mut Events,
        over: impl Fn(&Source) -> bool,
    ) -> Result<bool, Payload> {
        let mut panicked = None;
        let mut hot = std::mem::take(&mut self.hot);
        let mut warm = std::mem::take(&mut self.warm);
        let mut left_over = false;
        hot.retain(|slot| {
            let source = self.source(*slot);
            if !over(source) {
                return true;
            }
            let ready = catch(&mut panicked, || {
                if source.begun {
                    source.probe.end()
                } else {
                    source.probe.ready()
                }
            });
            let Some(ready) = ready else {
                return true;
            };
            source.begun = false;
            source.hot = ready || source.alone;
            source.rests = if ready { 0 } else { source.rests + 1 };
            let stays_warm = !source.hot && source.rests < MOST_RESTS;
            if stays_warm && !std::mem::replace(&mut source.warm, true) {
                warm.push(*slot);
            }
            source.idle = 0;
            if ready && events.room() == 0 {
                left_over = true;
            } else if ready {
                events.push(source.key, events::READABLE);
            }
            source.hot
        });
        (self.hot, self.warm) = (hot, warm);
        panicked.map_or(Ok(left_over), Err)
    }
}
