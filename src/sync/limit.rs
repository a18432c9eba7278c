//! How long a call may wait. The clock is read only by a call that has to wait, and for a limit's sake only by one that
//! has a limit: reading the clock may be a system call.

use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    /// For as long as it takes.
    Forever,
    For(Duration),
    Until(Instant),
}

/// The call may not wait at all.
pub(crate) struct NoTime;

impl Limit {
    /// A timeout as public calls take it: `None` is no limit.
    pub(crate) fn of(timeout: Option<Duration>) -> Self {
        timeout.map_or(Limit::Forever, Limit::For)
    }

    /// When the wait that begins now is to end; `None` is never. A timeout too long for the clock is none.
    pub(crate) fn deadline(self) -> Result<Option<Instant>, NoTime> {
        match self {
            Limit::Forever | Limit::For(Duration::MAX) => Ok(None),
            Limit::For(Duration::ZERO) => Err(NoTime),
            Limit::For(timeout) => Ok(Instant::now().checked_add(timeout)),
            Limit::Until(deadline) if deadline <= Instant::now() => Err(NoTime),
            Limit::Until(deadline) => Ok(Some(deadline)),
        }
    }
}

/// Whether there is a deadline, and it is over.
pub(crate) fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}
