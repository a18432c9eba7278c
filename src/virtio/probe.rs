//! The poller's half of a queue.

use super::guest::GuestRings;
use super::rings::Rings;
use crate::poll::Probe;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use vm_memory::GuestMemoryBackend;

/// Asks the available ring of a [`PolledQueue`](super::PolledQueue) whether there are requests; for
/// [`Poller::attach_probe`](crate::poll::Poller::attach_probe). Made by
/// [`PolledQueue::probe`](super::PolledQueue::probe).
///
/// [`ready`](Probe::ready) is a load of guest memory and a comparison. While a poller polls, the driver is told not to
/// kick; before it sleeps, the driver is asked for kicks, and the ring looked at once more. If the probe is dropped
/// while a poller polls, the driver is asked for kicks, too; the device serves the queue once more then, for what came
/// in the meantime.
///
/// The probe keeps the guest memory of the queue mapped.
#[must_use = "a probe does nothing unless it is attached to a poller"]
pub struct QueueProbe<M: Deref<Target: GuestMemoryBackend>> {
    pub(super) rings: Arc<Rings<GuestRings<M>>>,
}

impl<M> Probe for QueueProbe<M>
where
    M: Deref<Target: GuestMemoryBackend> + Send + Sync,
{
    #[inline]
    fn ready(&mut self) -> bool {
        self.rings.has_more()
    }

    fn begin(&mut self) {
        self.rings.begin();
    }

    fn end(&mut self) -> bool {
        self.rings.end()
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> Drop for QueueProbe<M> {
    fn drop(&mut self) {
        if self.rings.is_polled() {
            self.rings.end();
        }
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> fmt::Debug for QueueProbe<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueProbe")
            .field("has_more", &self.rings.has_more())
            .field("polled", &self.rings.is_polled())
            .finish()
    }
}
