//! What the end of a section or of a deferral has to do.

use super::kind::Kind;
use crate::sync::const_thread_local;
use std::cell::Cell;

/// Free what is due of the common piles.
pub(super) const FREE: u32 = 1;
/// Free what is due of the thread's own piles too.
pub(super) const FREE_OWN: u32 = FREE | 2;
/// Before that, wait for readers in fenced sections.
pub(super) const WAIT: u32 = FREE_OWN | 4;
/// Before that, wait for readers in light sections too.
pub(super) const WAIT_LIGHT: u32 = WAIT | 8;

pub(super) fn wait_for<K: Kind>() -> u32 {
    if K::LIGHT { WAIT_LIGHT } else { WAIT }
}

const_thread_local! {
    static DEFERRALS: Cell<usize> = { Cell::new(0) };
    /// What the end of the last one has to do.
    static DEFERRED: Cell<u32> = { Cell::new(0) };
    /// This thread frees at the end of a section.
    static FREEING: Cell<bool> = { Cell::new(false) };
}

/// Whether this thread has a deferral. If it has, its end does what is `owed`.
pub(super) fn leave_to_deferral(owed: u32) -> bool {
    let deferred = DEFERRALS.with(Cell::get) != 0;
    if deferred {
        DEFERRED.with(|all| all.set(all.get() | owed));
    }
    deferred
}

/// Begins a deferral of this thread.
pub(super) fn begin_deferral() {
    DEFERRALS.with(|deferrals| deferrals.set(deferrals.get() + 1));
}

/// Ends a deferral of this thread. Returns what is owed now, which is 0 if the thread has another deferral.
pub(super) fn end_deferral() -> u32 {
    let left = DEFERRALS.with(|deferrals| {
        deferrals.set(deferrals.get() - 1);
        deferrals.get()
    });
    if left == 0 {
        DEFERRED.with(|owed| owed.replace(0))
    } else {
        0
    }
}

/// Whether this thread frees at the end of a section.
pub(super) fn is_freeing() -> bool {
    FREEING.with(Cell::get)
}

pub(super) fn set_freeing(freeing: bool) {
    FREEING.with(|it| it.set(freeing));
}
