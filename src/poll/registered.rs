//! The state under a poller's lock: the registrations, and the queue of items that have become ready.

use super::PollError;
use super::epoll::FdReport;
use super::events::Events;
use super::fd_table::{FdRegistration, FdTable};
use super::item::{Item, Kind};
use super::queued_binding::QueuedBinding;
use super::shared::Shared;
use super::sleepers::Sleepers;
use crate::event::Observation;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Registered {
    pub(super) registrations: BTreeMap<usize, Entry>,
    /// The queue of watched events, oldest first. The items in `incoming` come after it. (epoll's `rdllist`.)
    pub(super) ready: VecDeque<Arc<Item>>,
    /// The queue of bindings.
    pub(super) bindings: VecDeque<Arc<Item>>,
    /// How many deleted items are in the two queues.
    pub(super) deleted: usize,
    pub(super) fds: FdTable,
    pub(super) sleepers: Sleepers,
}

/// The registration of a key.
pub(super) struct Entry {
    pub(super) registration: Registration,
    /// It has a probe. The probe itself is under another lock, so that a slow one does not hold up this one.
    pub(super) probed: bool,
}

pub(super) enum Registration {
    Watched(Watched),
    Fd(FdRegistration),
    Bound {
        binding: Watched,
        registration: FdRegistration,
        /// The watch of the binding's event under the same key, if any.
        watched: Option<Watched>,
    },
    /// Nothing but a probe.
    Probe,
}

/// An item, and the observation by which its event calls it.
pub(super) struct Watched {
    pub(super) item: Arc<Item>,
    pub(super) _observation: Observation,
}

impl Registered {
    pub(super) fn check_vacant(&self, key: usize) -> Result<(), PollError> {
        match self.registrations.contains_key(&key) {
            true => Err(PollError::KeyExists),
            false => Ok(()),
        }
    }

    /// Registers something under a key, which is vacant.
    pub(super) fn register(&mut self, key: usize, registration: Registration) {
        for item in registration.items() {
            // SAFETY: it is registered from here on, and this is under the lock.
            unsafe { Arc::clone(item).leave_queue() };
        }
        let entry = Entry {
            probed: matches!(registration, Registration::Probe),
            registration,
        };
        self.registrations.insert(key, entry);
    }

    pub(super) fn is_probed(&self, key: usize) -> bool {
        self.registrations
            .get(&key)
            .is_some_and(|entry| entry.probed)
    }

    /// Takes over the kernel's reports, except those of the bell and of what has been deleted in the meantime.
    pub(super) fn take_over(&mut self, events: &mut Events, found: &[FdReport]) {
        for (key, flags) in found.iter().filter_map(|found| self.fds.resolve(found)) {
            match self.registrations.get(&key).map(|it| &it.registration) {
                Some(Registration::Fd(_)) => events.push(key, flags),
                Some(Registration::Bound { binding, .. }) => {
                    self.bindings.extend(binding.item.enter_queue());
                }
                Some(Registration::Watched(_) | Registration::Probe) | None => {}
            }
        }
    }

    pub(super) fn take_in(&mut self, shared: &Shared<Item>) {
        shared.incoming.take_all(|item| match item.kind {
            Kind::Watched(_) => self.ready.push_back(item),
            Kind::Bound(_) => self.bindings.push_back(item),
        });
    }

    /// How long the queue is.
    pub(super) fn queued(&self) -> usize {
        self.ready.len() + self.bindings.len()
    }

    pub(super) fn forget(&mut self, item: &Item) {
        self.deleted += usize::from(item.delete());
    }

    /// Removes deleted items from the queues if they are more than half, so that a delete costs little and nothing
    /// piles up.
    pub(super) fn sweep(&mut self) -> Vec<Arc<Item>> {
        let mut swept = Vec::new();
        if self.deleted > self.queued() / 2 {
            for queue in [&mut self.ready, &mut self.bindings] {
                let deleted = queue.iter().filter(|item| item.is_deleted());
                swept.extend(deleted.map(Arc::clone));
                queue.retain(|item| !item.is_deleted());
            }
            self.deleted -= swept.len();
        }
        swept
    }
}

impl Registration {
    pub(super) fn items(&self) -> impl Iterator<Item = &Arc<Item>> {
        let (first, second) = match self {
            Registration::Watched(watched) => (Some(watched), None),
            Registration::Bound {
                binding, watched, ..
            } => (Some(binding), watched.as_ref()),
            Registration::Fd(_) | Registration::Probe => (None, None),
        };
        first.into_iter().chain(second).map(|watched| &watched.item)
    }

    pub(super) fn fd(&self) -> Option<&FdRegistration> {
        match self {
            Registration::Fd(registration) | Registration::Bound { registration, .. } => {
                Some(registration)
            }
            Registration::Watched(_) | Registration::Probe => None,
        }
    }

    /// The item whose watch can be changed.
    pub(super) fn watched(&self) -> Option<&Arc<Item>> {
        match self {
            Registration::Watched(watched) => Some(&watched.item),
            Registration::Bound { watched, .. } => watched.as_ref().map(|watched| &watched.item),
            Registration::Fd(_) | Registration::Probe => None,
        }
    }

    /// Delivers what a binding that has been deleted had read and not carried over. Called outside the lock.
    pub(super) fn deliver_rest(&self) {
        if let Registration::Bound { binding, .. } = self {
            binding.item.carry();
        }
    }
}
