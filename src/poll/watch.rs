use std::ops::{BitOr, BitOrAssign};

/// What a [`Poller`](super::Poller) is to report of an event or file descriptor, and how often.
///
/// Errors are always reported (and of a file descriptor hang-ups), whatever is asked for, as epoll does.
///
/// | | reported | epoll's flag |
/// |---|---|---|
/// | level-triggered, the default | by every wait, as long as it is ready | |
/// | [`edge`](Self::edge) | once after every operation of the right kind that leaves it ready | `EPOLLET` |
/// | [`one_shot`](Self::one_shot) | once, then not before a [`modify`](super::Poller::modify) | `EPOLLONESHOT` |
///
/// The operation of the right kind for `READABLE` is any signal or successful write, including a write of 0 and a write
/// to an event that was readable already. For `WRITABLE` it is any successful read. So a thread that watches for edges
/// and has taken part of the count, such as one unit of a semaphore, gets no report of the rest before the next write.
/// It should read until nothing is left.
///
/// # Events with signallers
///
/// What a [`Signaller`](crate::event::Signaller) saves, a poller pays by a call of `membarrier(2)`, which interrupts
/// the other threads of the process. How often depends on what the event is watched for:
///
/// | | calls |
/// |---|---|
/// | readable, level-triggered | one before each sleep, for all such events |
/// | readable, edge-triggered | one in each wait that finds any, for all that it finds |
/// | readable, one-shot | the same, and one in each [`modify`](super::Poller::modify) |
/// | writable or errors alone | one in each signal while the poller has nothing to report, by the thread that signals |
///
/// So events with signallers are best watched for levels.
///
/// ```
/// use doorbell::poll::Watch;
///
/// let queue = Watch::READABLE.edge();
/// let shared_by_workers = Watch::READABLE.one_shot();
/// assert_ne!(queue, shared_by_workers);
/// assert_eq!(Watch::READABLE | Watch::WRITABLE, Watch::BOTH);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watch {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) edge: bool,
    pub(super) one_shot: bool,
}

impl Watch {
    /// Nothing but errors, which for an event is the overflow.
    #[doc(alias = "EPOLLERR")]
    pub const ERRORS: Watch = Watch {
        readable: false,
        writable: false,
        edge: false,
        one_shot: false,
    };

    /// Whether a read would not block (`EPOLLIN`).
    #[doc(alias = "EPOLLIN")]
    pub const READABLE: Watch = Watch {
        readable: true,
        ..Self::ERRORS
    };

    /// Whether a write would not block: of an event, one of 1 (`EPOLLOUT`).
    #[doc(alias = "EPOLLOUT")]
    pub const WRITABLE: Watch = Watch {
        writable: true,
        ..Self::ERRORS
    };

    /// Both, as `Watch::READABLE | Watch::WRITABLE` is. (`EPOLLIN | EPOLLOUT`)
    pub const BOTH: Watch = Watch {
        readable: true,
        ..Self::WRITABLE
    };

    /// The same, but edge-triggered.
    #[must_use]
    #[doc(alias = "EPOLLET")]
    pub const fn edge(self) -> Self {
        Watch { edge: true, ..self }
    }

    /// The same, but reported once, to one of the threads in [`wait`](super::Poller::wait).
    #[must_use]
    #[doc(alias = "EPOLLONESHOT")]
    pub const fn one_shot(self) -> Self {
        Watch {
            one_shot: true,
            ..self
        }
    }
}

/// What either is to report, edge-triggered or one-shot if either is.
impl BitOr for Watch {
    type Output = Watch;

    fn bitor(self, other: Watch) -> Watch {
        Watch {
            readable: self.readable || other.readable,
            writable: self.writable || other.writable,
            edge: self.edge || other.edge,
            one_shot: self.one_shot || other.one_shot,
        }
    }
}

impl BitOrAssign for Watch {
    fn bitor_assign(&mut self, other: Watch) {
        *self = *self | other;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_union_has_what_either_has() {
        let single = [
            Watch::READABLE,
            Watch::WRITABLE,
            Watch::ERRORS.edge(),
            Watch::ERRORS.one_shot(),
        ];
        let bits = |watch: Watch| [watch.readable, watch.writable, watch.edge, watch.one_shot];
        for a in 0..16 {
            for b in 0..16 {
                let of = |set: usize| {
                    let chosen = (0..4).filter(|bit| set >> bit & 1 == 1);
                    chosen.fold(Watch::ERRORS, |watch, bit| watch | single[bit])
                };
                let mut union = of(a);
                assert_eq!(bits(union), [0, 1, 2, 3].map(|bit| a >> bit & 1 == 1));
                union |= of(b);
                assert_eq!(union, of(a | b));
            }
        }
        assert_eq!(Watch::READABLE | Watch::WRITABLE, Watch::BOTH);
    }
}
