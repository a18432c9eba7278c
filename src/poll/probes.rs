//! The probes of a poller, and the hot ones among them: those that are asked while a thread is awake.
//!
//! ```text
//!              a kick is reported: begin
//!      cold  ────────────────────────────▶  hot ── ready? ──▶ reported
//!       ▲                                    │
//!       └── end: before a sleep, or idle for long
//! ```
//!
//! What was hot before a sleep gets hot again with the first report of any probe's source: the queues of a device are
//! often used in turn, and a poller that asks only the one that woke it would not find that asking pays. A source that
//! has found nothing in [`MOST_RESTS`] such times waits for a report of its own.
//!
//! A cold source costs nothing: its notifications are on. The notifications of a hot one may be off, so somebody has to
//! ask it. A thread that is out of `wait` and works does not ask; a thread that sleeps does not ask either. So a source
//! may be hot without anybody who asks only as long as no thread sleeps:
//!
//! ```text
//!     thread about to sleep                   thread that stops asking, or reports
//!     1  enter the waiters                    1  lock: asking = false
//!     2  lock: asking?  yes: sleep            2  anybody among the waiters?  end all, and
//!              no: end all; found?  stay            wake one of them for what is left over
//! ```
//!
//! The lock orders the two: if the first thread has it first, the second finds the first among the waiters; else the
//! first finds that nobody asks.
//!
//! A source is cold when it is attached, unless it is ready: its notifications are on, so the first kick tells of it.
//!
//! A probe may panic. The source then stays hot, and is told again, since nobody knows whether its notifications are
//! on; the others are told nevertheless. The thread passes the panic on to the caller of `wait` instead of sleeping,
//! and wakes another that sleeps: that one ends what is hot itself, in step 2.

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
    /// How many there are.
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
    /// Those that have got cold, to get hot with the first report after a sleep.
    warm: Vec<usize>,
    /// A thread has fallen asleep since those were last made hot.
    slept: bool,
    /// Where to begin among the hot ones, so that each has its turn in a small buffer.
    first: usize,
    /// How often all have been asked.
    rounds: u32,
    /// A thread asks all the time.
    asking: bool,
}

struct Source {
    key: usize,
    probe: Box<dyn Probe>,
    /// Nothing else tells of it, so it is always hot.
    alone: bool,
    hot: bool,
    /// Polling has begun, or may have.
    begun: bool,
    /// For how many rounds it has not been ready.
    idle: u32,
    /// How often it has got cold since it was ready.
    rests: u32,
    /// It stands among the warm ones, be it hot by now.
    warm: bool,
}

/// Each time that all have been asked so often, those that have been asked as often in vain get cold: after up to twice
/// as many looks, therefore. That takes some 100 µs of nothing but asking.
const MOST_IDLE: u32 = 1024;

/// A source that has got cold so often, with nothing found in between, is not warm any more.
const MOST_RESTS: u32 = 16;

const_thread_local! {
    /// The probes that this thread has locked.
    static LOCKED: Cell<*const Probes> = { Cell::new(ptr::null()) };
}

/// The lock, and the note that this thread has it.
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

/// Who asks all the time while a thread looks.
pub(super) enum Asker<'a> {
    /// Nobody: there is nothing to be asked.
    Nobody,
    /// The thread that wanted to know, until this goes.
    ThisThread(Asking<'a>),
    Another,
}

pub(super) struct Asking<'a>(&'a Probes);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().table.asking = false;
    }
}

/// A probe that is no longer among them, to be dropped outside the locks.
pub(super) struct Deleted {
    probe: Box<dyn Probe>,
    /// What its last call has panicked with.
    pub(super) panicked: Option<Payload>,
}

impl Probes {
    pub(super) fn new() -> Self {
        Probes {
            number: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    /// Whether there are any. With a [`DEKKER`] load: whoever adds one looks for sleepers afterwards.
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

    /// Turns all notifications on and drops the probes. One that panics keeps no other from its end.
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

    /// Asks the hot ones once, and reports those that are ready, as far as there is room.
    pub(super) fn ask(&self, events: &mut Events) {
        self.lock().run(|table| table.ask(events));
    }

    /// The same, unless the lock is taken.
    pub(super) fn try_ask(&self, events: &mut Events) {
        if let Ok(table) = self.table.try_lock() {
            self.note(table).run(|table| table.ask(events));
        }
    }

    /// Begins to ask all the time, unless another thread does, or there are none to be asked.
    pub(super) fn begin_asking(&self) -> Asker<'_> {
        let Some(locked) = self.lock_if_any() else {
            return Asker::Nobody;
        };
        locked.run(|table| {
            if table.asking {
                return Asker::Another;
            }
            if table.hot.is_empty() {
                return Asker::Nobody;
            }
            // Which may panic. Then this thread does not ask.
            table.begin();
            table.asking = true;
            Asker::ThisThread(Asking(self))
        })
    }

    /// For a thread that is about to sleep and stands among the waiters: has the other side notify from now on, and
    /// reports what has come until then. If a probe panics, the thread must not sleep.
    pub(super) fn rest(&self, events: &mut Events) -> Result<(), Payload> {
        let mut locked = self.lock();
        if locked.table.asking {
            return Ok(());
        }
        locked.table.end(events).map(drop)
    }

    /// For a thread that is about to report: what is reported gets hot, unless `others_sleep` (asked under the lock).
    /// Then all get cold. Returns whether something was found that has no room in the report.
    ///
    /// If a probe panics, so does this, and another thread is to be woken.
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
            // Those that were ready are to be asked again by whoever waits next, and so by who sleeps.
            !table.asking
                && table
                    .end(events)
                    .unwrap_or_else(|it| panic::resume_unwind(it))
        })
    }
}

impl Locked<'_> {
    /// A probe that panics does so outside the lock, which is not poisoned.
    fn run<T>(mut self, f: impl FnOnce(&mut Table) -> T) -> T {
        let result = panic::catch_unwind(AssertUnwindSafe(|| f(&mut self.table)));
        drop(self);
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Whether a probe is ready that is about to be added. If it panics, the lock is given back.
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

    /// Adds one, its notifications turned on, under a key that has none; hot if it is `ready`, or nothing else tells of
    /// it. The caller then wakes a thread for a hot one: one that sleeps has not asked it yet.
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

    /// Removes one, its notifications turned on.
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

    /// With the first report after a sleep, what was hot before it gets hot.
    fn heat_warm(&mut self) {
        if std::mem::take(&mut self.slept) {
            for slot in std::mem::take(&mut self.warm) {
                self.source(slot).warm = false;
                self.heat(slot);
            }
        }
    }

    /// Polling begins for all that are hot. If a probe panics, so does this: what has not begun by then notifies.
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
            // Whoever takes the last room is last the next time, and so is whoever panics: neither hides another.
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

    /// Before a sleep. Returns whether something was found that has no room.
    fn end(&mut self, events: &mut Events) -> Result<bool, Payload> {
        self.slept = true;
        self.cool(events, |_| true)
    }

    /// Turns notifications on for those that are `over`. They get cold, or warm, unless they are ready then. If probes
    /// panic, the others get cold, and the first panic is returned.
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
