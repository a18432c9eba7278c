use crate::event::{EventHandle, Signallers};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crossbeam_queue::ArrayQueue;
use std::collections::VecDeque;
use std::fmt;
use std::iter;
use std::sync::PoisonError;

/// A doorbell that keeps the value last written to it, and signals an event.
///
/// For registers in which only the newest value counts, such as NVMe's queue tails: a device thread that is late skips
/// the values between. An ioeventfd of KVM's drops the value, which is why such devices need another exit to learn it.
///
/// ```
/// use doorbell::{Event, ioeventfd::{Bus, Key, Latest, Table}};
/// use std::sync::Arc;
///
/// let table = Table::new();
/// let kick = Arc::new(Event::new(0));
/// let tail = Arc::new(Latest::new(&kick, 0));
/// let registration = table.assign(Key::mmio(0xf000_1000, 4), &tail)?;
///
/// assert!(table.write(Bus::Mmio, 0xf000_1000, &7_u32.to_ne_bytes()));
/// assert!(table.write(Bus::Mmio, 0xf000_1000, &9_u32.to_ne_bytes()));
/// // The device thread, woken by the event:
/// assert_eq!(kick.read(), 2);
/// assert_eq!(tail.value(), 9);
/// # drop(registration);
/// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
/// ```
#[doc(alias = "payload")]
pub struct Latest {
    value: AtomicU64,
    event: EventHandle,
}

impl Latest {
    /// A doorbell that keeps values, with `value` to begin with. Any number of them may share an event, which is one
    /// that something keeps, such as an `Arc<Event>`, or a field by [`EventHandle::of_field`]`(&device, |d| &d.kick)`.
    #[must_use]
    pub fn new(event: impl Into<EventHandle>, value: u64) -> Self {
        Latest {
            value: AtomicU64::new(value),
            event: event.into(),
        }
    }

    /// The value last written, zero-extended.
    ///
    /// A thread that has read the event sees the values of all signals that the read took, or newer ones.
    #[must_use]
    pub fn value(&self) -> u64 {
        // Acquire pairs with the Release in `set`, for threads that look without reading the event.
        self.value.load(Ordering::Acquire)
    }

    /// Replaces the value without a signal: for a reset, or to restore a snapshot.
    pub fn set(&self, value: u64) {
        // Release pairs with the Acquire in `value`.
        self.value.store(value, Ordering::Release);
    }

    /// The event that is signalled after each write.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        &self.event
    }

    #[inline(always)]
    pub(super) fn ring(&self, value: u64, signallers: &Signallers) {
        self.set(value);
        signallers.signal(&self.event);
    }
}

impl fmt::Debug for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latest")
            .field("value", &self.value())
            .field("event", &self.event)
            .finish()
    }
}

/// One write that a [`ValueQueue`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Kick {
    /// The slot of a [`DoorbellArray`](super::DoorbellArray) that was written to; 0 for a single doorbell.
    pub slot: u32,
    /// What was written, zero-extended.
    pub value: u64,
}

impl Kick {
    /// A write of `value` to slot `slot`.
    #[must_use]
    pub const fn new(slot: u32, value: u64) -> Self {
        Kick { slot, value }
    }
}

/// A doorbell that queues the values written to it, and signals an event.
///
/// It never loses a value silently. A write that finds the queue full is not taken: the lookup returns false, as for an
/// address without a doorbell, and the VMM offers the write to the device model, which should first [`pop`](Self::pop)
/// the writes that came before. One queue may be the target of many doorbells, mostly of those of a
/// [`DoorbellArray`](super::DoorbellArray): the slot tells their writes apart.
///
/// ```
/// use doorbell::{Event, ioeventfd::{Bus, DoorbellArray, Kick, Table, ValueQueue}};
/// use std::sync::Arc;
///
/// let table = Table::new();
/// let kick = Arc::new(Event::new(0));
/// let queue = Arc::new(ValueQueue::new(&kick, 2));
/// let registration = table.assign_array(DoorbellArray::mmio(0xf000_1000, 4, 32), [&queue; 32])?;
///
/// assert!(table.write(Bus::Mmio, 0xf000_1008, &7_u32.to_ne_bytes()));
/// assert!(table.write(Bus::Mmio, 0xf000_1000, &1_u32.to_ne_bytes()));
/// assert!(!table.write(Bus::Mmio, 0xf000_1000, &2_u32.to_ne_bytes())); // full
///
/// assert_eq!(kick.read(), 2);
/// assert_eq!(queue.pop(), Some(Kick::new(2, 7)));
/// assert_eq!(queue.pop(), Some(Kick::new(0, 1)));
/// assert_eq!(queue.pop(), None);
/// # drop(registration);
/// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
/// ```
#[doc(alias = "Queue")]
#[doc(alias = "payload")]
pub struct ValueQueue {
    kicks: ArrayQueue<Kick>,
    /// Writes that are older than those in `kicks`, where `iter` has moved them from. Calls that take writes out hold
    /// the lock, so that `iter` finds all writes in their order.
    oldest: Mutex<VecDeque<Kick>>,
    /// The number of writes in `oldest`, for guest writes, which take no lock. It keeps the number of all writes within
    /// the capacity, or about twice that if guest writes come while `iter` moves writes.
    set_aside: AtomicU64,
    event: EventHandle,
}

impl ValueQueue {
    /// The greatest capacity.
    pub const MAX_CAPACITY: usize = 1 << 20;

    /// A queue of up to `capacity` writes, for which it allocates memory at once. The event is one that something
    /// keeps, such as an `Arc<Event>`, or a field by [`EventHandle::of_field`]`(&device, |d| &d.kick)`.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0, or greater than [`MAX_CAPACITY`](Self::MAX_CAPACITY).
    #[must_use]
    pub fn new(event: impl Into<EventHandle>, capacity: usize) -> Self {
        assert!(
            capacity <= Self::MAX_CAPACITY,
            "a queue of {capacity} writes is too large"
        );
        ValueQueue {
            kicks: ArrayQueue::new(capacity),
            oldest: Mutex::default(),
            set_aside: AtomicU64::new(0),
            event: event.into(),
        }
    }

    /// Takes the oldest write. After each read of the event, call it until it returns `None`: the event counts the
    /// writes, but may count some that were popped before.
    ///
    /// Threads that take writes out wait for each other, for a moment; guest writes wait for none of them.
    pub fn pop(&self) -> Option<Kick> {
        let mut oldest = self.oldest();
        let Some(kick) = oldest.pop_front() else {
            return self.kicks.pop();
        };
        self.set_aside.store(oldest.len() as u64, Ordering::Relaxed);
        Some(kick)
    }

    /// Takes the writes, the oldest first, until none is left. It is meant to be called after each read of the event.
    ///
    /// ```
    /// # use doorbell::{Event, ioeventfd::{Kick, ValueQueue}};
    /// let kick = std::sync::Arc::new(Event::new(1));
    /// let queue = ValueQueue::new(&kick, 8);
    /// assert!(queue.push(Kick::new(2, 7)));
    ///
    /// kick.read();
    /// for Kick { slot, value, .. } in queue.drain() {
    ///     println!("queue {slot}: {value}");
    /// }
    /// assert!(queue.is_empty());
    /// ```
    #[must_use = "writes are taken as the iterator goes on"]
    #[doc(alias = "try_iter")]
    pub fn drain(&self) -> impl Iterator<Item = Kick> + '_ {
        iter::from_fn(|| self.pop())
    }

    /// The writes that wait, the oldest first. They stay in the queue.
    ///
    /// It is meant for snapshots and monitors, and may be called at any time. A write that comes or is taken while it
    /// runs is among them or not.
    pub fn iter(&self) -> impl Iterator<Item = Kick> + use<> {
        let mut oldest = self.oldest();
        // No more than there are now: guest writes may go on filling the room that this makes.
        let new = self.kicks.len();
        oldest.extend(iter::from_fn(|| self.kicks.pop()).take(new));
        self.set_aside.store(oldest.len() as u64, Ordering::Relaxed);
        let kicks = oldest.clone();
        kicks.into_iter()
    }

    /// Puts writes before all that wait.
    pub(super) fn set_aside(&self, kicks: &[Kick]) {
        let mut oldest = self.oldest();
        oldest.extend(kicks);
        self.set_aside.store(oldest.len() as u64, Ordering::Relaxed);
    }

    /// Whether the writes in `oldest` take up the room that is left in `kicks`.
    #[inline(always)]
    fn is_full(&self) -> bool {
        // Relaxed: it only decides whether there is room.
        let set_aside = self.set_aside.load(Ordering::Relaxed);
        set_aside != 0 && set_aside + self.kicks.len() as u64 >= self.kicks.capacity() as u64
    }

    fn oldest(&self) -> MutexGuard<'_, VecDeque<Kick>> {
        // A panic cannot have left it wrong: each change is one call.
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a write without a signal, to restore a snapshot. Returns whether there was room.
    #[must_use = "a full queue has not taken it"]
    pub fn push(&self, kick: Kick) -> bool {
        !self.is_full() && self.kicks.push(kick).is_ok()
    }

    /// How many writes wait. Others may come or be taken before the caller looks at the result.
    #[must_use]
    pub fn len(&self) -> usize {
        self.oldest().len() + self.kicks.len()
    }

    /// Whether no write waits. One may come before the caller looks at the result.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many writes there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.kicks.capacity()
    }

    /// The event that is signalled after each write.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        &self.event
    }

    pub(super) fn ring(&self, kick: Kick, signallers: &Signallers) -> bool {
        let taken = self.push(kick);
        if taken {
            signallers.signal(&self.event);
        }
        taken
    }
}

impl fmt::Debug for ValueQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueQueue")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("event", &self.event)
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Event;
    use std::sync::{Arc, mpsc};
    use std::thread;
    use std::time::Duration;

    /// A guest write waits for no thread that takes writes out, or looks at them.
    #[test]
    fn a_write_takes_no_lock() {
        let event = Arc::new(Event::new(0));
        let queue = Arc::new(ValueQueue::new(&event, 2));
        queue.set_aside(&[Kick::new(0, 1)]);
        let taking = queue.oldest();
        let (done, written) = mpsc::channel();
        thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                let write = |value| queue.ring(Kick::new(0, value), &Signallers::none());
                done.send([2, 3].map(write))
            }
        });
        let patience = Duration::from_secs(20);
        assert_eq!(written.recv_timeout(patience), Ok([true, false]));
        drop(taking);
        assert_eq!(event.read(), 1);
        assert_eq!(queue.drain().map(|kick| kick.value).sum::<u64>(), 1 + 2);
    }
}
