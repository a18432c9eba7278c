//! What a snapshot holds of an event.

use super::{Event, Mode};
use crate::state::{self, UnknownVersion, VERSION};

/// An [`Event`] as plain data, see [`state`]. Made by [`Event::save`].
///
/// ```
/// use doorbell::Event;
///
/// let event = Event::semaphore(0);
/// event.signal_n(2); // not read yet
///
/// let state = event.save();
/// let restored = Event::restore(&state)?;
/// assert_eq!(restored.try_read(), Some(1));
/// assert_eq!(restored.count(), 1);
/// # Ok::<(), doorbell::state::UnknownVersion>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct EventState {
    /// The [version](VERSION) of this structure.
    pub version: u32,
    /// The count, with all that was signalled and not read. `u64::MAX` is the overflow state.
    pub count: u64,
    /// What a read takes.
    pub mode: Mode,
}

impl EventState {
    /// The state of an event with `count` in it.
    #[must_use]
    pub fn new(count: u64, mode: Mode) -> Self {
        EventState {
            version: VERSION,
            count,
            mode,
        }
    }
}

impl Default for EventState {
    /// The state of an empty event in [`Mode::Counter`].
    fn default() -> Self {
        EventState::new(0, Mode::Counter)
    }
}

impl Event {
    /// The state of the event now, to be [restored](Self::restore) later or elsewhere. The event stays as it is.
    ///
    /// Later signals are not in it, so stop the threads that signal before the snapshot is taken. Waiting threads and
    /// tasks, observers, signallers and the [`Spin`](super::Spin) policy are not part of the state.
    #[doc(alias = "snapshot")]
    #[must_use]
    pub fn save(&self) -> EventState {
        EventState::new(self.count(), self.mode())
    }

    /// A new event in the state given.
    ///
    /// # Errors
    ///
    /// [`UnknownVersion`], if the state is of another [version](VERSION).
    #[must_use = "the event is in the result"]
    pub fn restore(state: &EventState) -> Result<Self, UnknownVersion> {
        state::check(state.version)?;
        Ok(Event::with_mode(state.count, state.mode))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::event::Signaller;
    use crate::use_membarrier;
    use std::sync::Arc;

    const COUNTS: [u64; 5] = [0, 1, 1 << 63, u64::MAX - 1, u64::MAX];
    const MODES: [Mode; 2] = [Mode::Counter, Mode::Semaphore];

    #[test]
    fn what_is_saved_is_restored() {
        for mode in MODES {
            for count in COUNTS {
                let event = Event::with_mode(count, mode);
                let state = event.save();
                assert_eq!(state, EventState::new(count, mode));
                assert_eq!(event.count(), count);
                let restored = Event::restore(&state).expect("the version is known");
                assert_eq!((restored.count(), restored.mode()), (count, mode));
                assert_eq!(restored.readiness(), event.readiness());
                assert_eq!(restored.save(), state);
            }
        }
    }

    /// What signallers have added is in it.
    #[test]
    fn a_split_count_is_saved_whole() {
        let _ = use_membarrier();
        let event = Arc::new(Event::new(3));
        let signaller = Signaller::new(&event);
        signaller.signal();
        event.signal_n(2);
        assert_eq!(event.save(), EventState::new(6, Mode::Counter));
    }

    #[test]
    fn other_versions_are_refused() {
        let state = EventState {
            version: VERSION + 1,
            ..EventState::default()
        };
        let refused = Event::restore(&state).expect_err("it is not known");
        assert_eq!(refused, UnknownVersion(VERSION + 1));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn it_is_serialisable() {
        let state = EventState::new(u64::MAX, Mode::Semaphore);
        let text = serde_json::to_string(&state).expect("plain data");
        let count = u64::MAX;
        assert_eq!(
            text,
            format!(r#"{{"version":{VERSION},"count":{count},"mode":"Semaphore"}}"#)
        );
        let read: EventState = serde_json::from_str(&text).expect("its own text");
        assert_eq!(read, state);
    }
}
