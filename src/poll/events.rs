use std::fmt;

/// A buffer of [`Report`]s, which a [`wait`](super::Poller::wait) fills with what it found. One thread uses it for one
/// poller, again and again.
///
/// What does not fit into the buffer comes first in the next wait. So a small buffer keeps the time short that a source
/// waits for its turn in the loop that handles the reports.
pub struct Events {
    list: Vec<Report>,
    capacity: usize,
    /// Two reports of the same key become one.
    merges: bool,
    told: Told,
}

/// Of which notifications of all a buffer has been told: the poller's [`Shared::notices`](super::shared::Shared).
#[derive(Clone, Copy, Default)]
pub(super) struct Told {
    /// The address of the poller's shared part, or 0 for a buffer that has not been used.
    poller: usize,
    pub(super) notices: u32,
}

impl Told {
    /// The buffer is used with this poller, for which there are so many notices. If it comes from another poller, it is
    /// told of those to come only: a buffer that is used with two in turn would be told again and again.
    pub(super) fn turn_to(&mut self, poller: usize, notices: u32) {
        if self.poller != poller {
            let is_new = self.poller == 0;
            self.poller = poller;
            self.notices = if is_new { 0 } else { notices };
        }
    }
}

/// That one event or file descriptor is ready, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Report {
    key: usize,
    flags: u8,
}

pub(super) const READABLE: u8 = 1;
pub(super) const WRITABLE: u8 = 2;
pub(super) const ERROR: u8 = 4;
pub(super) const HANG_UP: u8 = 8;

impl Events {
    /// A buffer for up to `capacity` reports at a time. With a capacity of 0, [`wait`](super::Poller::wait) fails.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Events {
            list: Vec::new(),
            capacity,
            merges: false,
            told: Told::default(),
        }
    }

    /// How many reports there can be.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many reports there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no report, as after a wait that timed out or was [notified](super::Poller::notify).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The reports. Sources that have been ready longest come first.
    pub fn iter(&self) -> impl Iterator<Item = Report> + '_ {
        self.list.iter().copied()
    }

    pub(super) fn told(&mut self) -> &mut Told {
        &mut self.told
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    pub(super) fn room(&self) -> usize {
        self.capacity - self.list.len()
    }

    pub(super) fn merge(&mut self, merges: bool) {
        self.merges = merges;
    }

    pub(super) fn push(&mut self, key: usize, flags: u8) {
        if self.merges {
            if let Some(report) = self.list.iter_mut().find(|report| report.key == key) {
                report.flags |= flags;
                return;
            }
        }
        self.list.push(Report { key, flags });
    }
}

impl<'a> IntoIterator for &'a Events {
    type Item = Report;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, Report>>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter().copied()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Report {
    /// The key it is registered under.
    #[must_use]
    pub fn key(&self) -> usize {
        self.key
    }

    /// A read would not block (`EPOLLIN`).
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.flags & READABLE != 0
    }

    /// A write, of an event one of 1, would not block (`EPOLLOUT`).
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.flags & WRITABLE != 0
    }

    /// The event has overflowed, or the file descriptor has an error to report (`EPOLLERR`).
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.flags & ERROR != 0
    }

    /// The other end of the file descriptor has been closed (`EPOLLHUP`). Never of an event.
    #[must_use]
    pub fn is_hang_up(&self) -> bool {
        self.flags & HANG_UP != 0
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("key", &self.key)
            .field("readable", &self.is_readable())
            .field("writable", &self.is_writable())
            .field("error", &self.is_error())
            .field("hang_up", &self.is_hang_up())
            .finish()
    }
}
