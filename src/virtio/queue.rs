//! The device's half of a queue.

use super::error::QueueError;
use super::guest::GuestRings;
use super::probe::QueueProbe;
use super::rings::{Completed, Rings};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryBackend;

/// A split virtqueue whose available ring a poller can poll.
///
/// It owns the [`Queue`][queue] of the crate virtio-queue, so that the probe always knows how far the device is. `M`
/// holds the guest memory, such as `Arc<GuestMemoryMmap>` or what `GuestMemoryAtomic::memory()` returns. When the
/// memory map or the queue changes, take the queue back by [`into_queue`](Self::into_queue) and make another.
///
/// [queue]: https://docs.rs/virtio-queue/0.18/virtio_queue/struct.Queue.html
///
/// ```
/// use doorbell::virtio::{PolledQueue, QueueError};
/// use std::sync::Arc;
/// use virtio_queue::{Queue, QueueT};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// # fn main() -> Result<(), QueueError> {
/// let mem = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
/// let mut queue = Queue::new(16)?;
/// queue.set_desc_table_address(Some(0x1000), None);
/// queue.set_avail_ring_address(Some(0x2000), None);
/// queue.set_used_ring_address(Some(0x3000), None);
/// queue.set_ready(true);
/// let mut queue = PolledQueue::new(queue, Arc::clone(&mem))?;
///
/// // The driver makes the chain that begins at descriptor 0 available.
/// mem.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
///
/// // The device, when a poller has reported the queue's kick or its probe:
/// let mut interrupts = 0;
/// let served = queue.serve(16, |_chain| Ok::<_, QueueError>(0), || interrupts += 1)?;
/// assert_eq!((served.requests, served.more, interrupts), (1, false, 1));
/// # Ok(())
/// # }
/// ```
pub struct PolledQueue<M: Deref<Target: GuestMemoryBackend>> {
    queue: Queue,
    rings: Arc<Rings<GuestRings<M>>>,
    completed: Completed,
}

/// What [`PolledQueue::serve`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "if there is more, the driver will not kick for it"]
#[non_exhaustive]
pub struct Served {
    /// How many chains were popped and completed.
    pub requests: u16,
    /// There is more, for which the driver will not kick: serve the queue again.
    pub more: bool,
}

impl<M> PolledQueue<M>
where
    M: Deref<Target: GuestMemoryBackend + Sized>,
{
    /// Takes over a queue that is ready, whose rings are in `mem`.
    ///
    /// # Errors
    ///
    /// [`Invalid`](QueueError::Invalid), [`Scattered`](QueueError::Scattered) or
    /// [`Misaligned`](QueueError::Misaligned); the queue is dropped then.
    pub fn new(queue: Queue, mem: M) -> Result<Self, QueueError> {
        let rings = Rings::new(
            GuestRings::of(&queue, mem)?,
            queue.size(),
            queue.event_idx_enabled(),
            queue.next_avail(),
        );
        Ok(PolledQueue {
            queue,
            rings: Arc::new(rings),
            completed: Completed::default(),
        })
    }

    /// The poller's half. Attach it to one poller at a time.
    pub fn probe(&self) -> QueueProbe<M> {
        QueueProbe {
            rings: Arc::clone(&self.rings),
        }
    }

    /// The queue, to look at its state.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Takes the queue back. A probe that still exists goes on asking, and finds what the driver makes available from
    /// now on.
    ///
    /// What was completed should be [finished](Self::finish) before: `needs_notification` of the queue answers for what
    /// is completed from now on.
    #[must_use]
    pub fn into_queue(self) -> Queue {
        let mut queue = self.queue;
        // The queue has counted the completed requests itself, and this question sets the count to 0. Without EVENT_IDX
        // the queue does not use the count. If its memory cannot be accessed, the rings cannot be either.
        let _ = queue.needs_notification(&*self.rings.words.mem);
        queue
    }

    /// Pops, handles and completes what is available, up to `budget` chains. `handle` returns how many bytes it has
    /// written to the chain's buffers; `interrupt` is called each time the driver is to be interrupted.
    ///
    /// The budget keeps one busy queue from holding up the other queues of a thread. The queue's size is a good budget.
    /// When all chains have been popped, this asks the driver for kicks, unless a poller polls the queue's probe. So
    /// the device has nothing to do until the poller reports the queue again, unless the result says that there is
    /// [more](Served::more).
    ///
    /// # Errors
    ///
    /// Those of `handle`, and [`QueueError::Queue`], if the driver has made more available than the queue's size, or
    /// has published a chain that begins outside of the descriptor table. The chain in question is not completed, the
    /// device should stop using the queue, and interrupts for what has been completed before may be missing.
    pub fn serve<E: From<QueueError>>(
        &mut self,
        budget: u16,
        mut handle: impl FnMut(DescriptorChain<&M::Target>) -> Result<u32, E>,
        mut interrupt: impl FnMut(),
    ) -> Result<Served, E> {
        let mut requests = 0;
        let more = loop {
            while requests != budget {
                let Some(chain) = self.pop()? else {
                    break;
                };
                let head = chain.head_index();
                let written = handle(chain)?;
                requests += 1;
                if self.complete(head, written)? {
                    interrupt();
                }
            }
            if self.finish() {
                interrupt();
            }
            let more = self.rearm();
            if !more || requests == budget {
                break more;
            }
        };
        Ok(Served { requests, more })
    }

    /// The next chain, for devices that complete it later. Other devices use [`serve`](Self::serve).
    ///
    /// # Errors
    ///
    /// [`QueueError::Queue`], if the driver has made more available than the queue's size.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<DescriptorChain<&M::Target>>, QueueError> {
        self.completed.interrupted(&self.rings);
        let chain = self.queue.iter(&*self.rings.words.mem)?.next();
        self.rings.popped(self.queue.next_avail());
        Ok(chain)
    }

    /// Gives the chain that begins at `head` back to the driver, with `written` bytes in its buffers, and returns
    /// whether to interrupt the driver now; see the [module's page](super#when-to-interrupt). If so, interrupt it
    /// before the next [`pop`](Self::pop), which looks whether the driver has reacted. Call [`finish`](Self::finish)
    /// after the last chain of a batch.
    ///
    /// # Errors
    ///
    /// [`QueueError::Queue`], if there is no such descriptor.
    #[inline]
    #[must_use = "the driver may wait for an interrupt"]
    pub fn complete(&mut self, head: u16, written: u32) -> Result<bool, QueueError> {
        self.queue.add_used(&*self.rings.words.mem, head, written)?;
        Ok(self.completed.add_one(&self.rings, self.queue.next_used()))
    }

    /// [`complete`](Self::complete) without the look, for devices with a rule of their own for when to interrupt. Must
    /// be followed by a [`finish`](Self::finish) at some time.
    ///
    /// # Errors
    ///
    /// [`QueueError::Queue`], if there is no such descriptor.
    #[inline]
    pub fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue.add_used(&*self.rings.words.mem, head, written)?;
        self.completed.add_unasked();
        Ok(())
    }

    /// Ends a batch. Returns whether to interrupt the driver for the requests that were completed since the last
    /// interrupt. This is the reliable answer, behind a full barrier.
    #[must_use = "the driver may wait for an interrupt"]
    pub fn finish(&mut self) -> bool {
        self.completed.finish(&self.rings, self.queue.next_used())
    }

    /// For devices that [`pop`](Self::pop), when nothing is left: asks the driver for kicks, unless a poller polls the
    /// queue's probe. Returns whether there is more after all, for which the driver will not kick.
    #[inline]
    #[must_use = "the driver may not kick"]
    pub fn rearm(&self) -> bool {
        self.rings.rearm()
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> fmt::Debug for PolledQueue<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolledQueue")
            .field("queue", &self.queue)
            .field("has_more", &self.rings.has_more())
            .field("polled", &self.rings.is_polled())
            .field("completed", &self.completed)
            .finish()
    }
}
