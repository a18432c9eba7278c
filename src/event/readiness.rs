/// What an event is ready for, as `poll(2)` reports it of an eventfd.
///
/// | count | readable | writable | error |
/// |---|---|---|---|
/// | 0 | | ✓ | |
/// | 1 ..= `u64::MAX - 2` | ✓ | ✓ | |
/// | `u64::MAX - 1` | ✓ | | |
/// | `u64::MAX` | ✓ | | ✓ |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Readiness {
    readable: bool,
    writable: bool,
    error: bool,
}

impl Readiness {
    pub(crate) fn of(count: u64) -> Self {
        Readiness {
            readable: count > 0,
            writable: count < u64::MAX - 1,
            error: count == u64::MAX,
        }
    }

    /// A read would not block (`POLLIN`).
    #[must_use]
    pub fn is_readable(self) -> bool {
        self.readable
    }

    /// A write of 1 would not block (`POLLOUT`).
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.writable
    }

    /// The count has overflowed (`POLLERR`). Only [`Event::signal`](crate::Event::signal) gets it there; a read ends
    /// it.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.error
    }
}
