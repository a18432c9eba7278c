//! What was retired, and may be in use.

use super::slots::Readers;
use crate::panics::{Payload, catch, go_on_unless_panicking};
use crate::sync::{const_thread_local, dekker_load, membarrier};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem;

pub(super) type Outdated = Box<dyn Any + Send>;

pub(super) type Piles = BTreeMap<Owner, Pile>;

/// Which pile it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub(super) thread: u64,
    /// Whether its contents were read in light sections.
    pub(super) light: bool,
}

impl Owner {
    /// Whether a thread that has waited for readers, including those in light sections if `light`, has waited for the
    /// readers of this pile. If not `is_light`, light sections are fenced, and it has.
    pub(super) fn is_waited_for(&self, light: bool, is_light: bool) -> bool {
        light || !self.light || !is_light
    }
}

/// The common pile, in the place of a thread's number.
pub(super) const EVERYBODY: u64 = 0;

/// What was retired, and may be in use.
#[derive(Default)]
pub(super) struct Pile {
    /// Freed when all of the readers have left.
    waiting: Vec<Outdated>,
    /// The readers that were inside when `waiting` was complete, and have not left.
    readers: Readers,
    /// What was retired since.
    next: Vec<Outdated>,
    /// [`membarrier::begun`] when the last of `next` was retired.
    pub(super) barriers: u64,
}

impl Pile {
    /// Takes out what is due.
    pub(super) fn take_due(
        &mut self,
        light: bool,
        inside: impl FnOnce() -> Readers,
    ) -> Vec<Outdated> {
        let mut due = self.take_waiting();
        self.begin_to_wait(light, inside);
        due.append(&mut self.take_waiting());
        due
    }

    /// Takes `waiting`, if all of its readers have left.
    fn take_waiting(&mut self) -> Vec<Outdated> {
        self.readers
            .retain(|(slot, seq)| dekker_load(&slot.seq) == *seq);
        if self.readers.is_empty() {
            mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }

    /// If nothing is waiting, moves `next` there, to wait for the readers that are inside now.
    pub(super) fn begin_to_wait(&mut self, light: bool, inside: impl FnOnce() -> Readers) {
        let are_seen =
            || !light || !membarrier::is_light() || membarrier::ended_since(self.barriers);
        if self.waiting.is_empty() && !self.next.is_empty() && are_seen() {
            self.readers = inside();
            self.waiting = mem::take(&mut self.next);
        }
    }

    pub(super) fn push(&mut self, outdated: Outdated) {
        self.next.push(outdated);
    }

    pub(super) fn take_all(&mut self) -> Vec<Outdated> {
        self.readers.clear();
        let mut all = mem::take(&mut self.waiting);
        all.append(&mut self.next);
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.next.is_empty()
    }
}

pub(super) fn owners(own: bool) -> impl Iterator<Item = Owner> {
    let threads = [Some(EVERYBODY), own.then(this_threads_number)];
    let of = |thread| [false, true].map(|light| Owner { thread, light });
    threads.into_iter().flatten().flat_map(of)
}

/// Drops all of it, even if destructors panic. Keeps the first panic.
pub(super) fn free_each(due: Vec<Outdated>, panicked: &mut Option<Payload>) {
    for outdated in due {
        catch(panicked, || drop(outdated));
    }
}

pub(super) fn free(due: Vec<Outdated>) {
    let mut panicked = None;
    free_each(due, &mut panicked);
    go_on_unless_panicking(panicked);
}

/// A number that no other thread ever has, and not [`EVERYBODY`].
pub(super) fn this_threads_number() -> u64 {
    // From 1, for 0 is everybody. It orders nothing: std's under loom too.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    const_thread_local! {
        static OWN: Cell<u64> = { Cell::new(EVERYBODY) };
    }
    OWN.with(|own| {
        if own.get() == EVERYBODY {
            own.set(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        own.get()
    })
}
