//! What keeps hold of an event, whatever owns it.

use super::Event;
use std::fmt;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

/// Keeps an event alive. Pollers, tables, routers, batches and all else that keeps events hold handles of them.
///
/// Calls that register an event take `impl Into<EventHandle>`, so they can be given
///
/// * an `Arc<Event>`, or a reference to one, which is cloned;
/// * a `&'static Event`;
/// * [a field](Self::of_field) of something in an `Arc`, such as a queue that has its events inside;
/// * an `EventHandle`, or a reference to one.
///
/// Calls that only look at an event, or find it among those registered, take `&Event`.
///
/// ```
/// use doorbell::Event;
/// use doorbell::event::EventHandle;
/// use doorbell::poll::{Poller, Watch};
/// use std::sync::Arc;
///
/// static STOP: Event = Event::new(0);
///
/// struct Queue {
///     kick: Event,
/// }
///
/// let timer = Arc::new(Event::new(0));
/// let queue = Arc::new(Queue { kick: Event::new(0) });
///
/// let poller = Poller::new();
/// poller.add(&STOP, 0, Watch::READABLE)?;
/// poller.add(&timer, 1, Watch::READABLE)?;
/// poller.add(EventHandle::of_field(&queue, |queue| &queue.kick), 2, Watch::READABLE)?;
/// # Ok::<(), doorbell::poll::PollError>(())
/// ```
///
/// It dereferences to the event.
#[derive(Clone)]
pub struct EventHandle {
    /// Where the event is, so that to reach it takes one step.
    event: NonNull<Event>,
    /// What the event is in, unless it is borrowed.
    owner: Option<Arc<dyn Send + Sync>>,
}

// SAFETY: it gives out shared references to an event alone, which is `Sync`, and what it drops is `Send`.
unsafe impl Send for EventHandle {}

// SAFETY: as above.
unsafe impl Sync for EventHandle {}

impl EventHandle {
    /// The event that `field` finds in what is in the `Arc`.
    pub fn of_field<T>(owner: &Arc<T>, field: impl FnOnce(&T) -> &Event) -> Self
    where
        T: Send + Sync + 'static,
    {
        EventHandle {
            event: NonNull::from(field(owner)),
            owner: Some(Arc::clone(owner) as Arc<dyn Send + Sync>),
        }
    }
}

impl EventHandle {
    /// Whether this is the handle of that very event.
    #[must_use]
    pub fn ptr_eq(&self, event: &Event) -> bool {
        ptr::eq(self.event.as_ptr(), event)
    }

    /// A handle that finds the event as long as something else keeps it alive, as `std::sync::Weak` does.
    #[must_use]
    pub fn downgrade(&self) -> WeakEventHandle {
        WeakEventHandle {
            event: self.event,
            owner: self.owner.as_ref().map(Arc::downgrade),
        }
    }
}

impl Deref for EventHandle {
    type Target = Event;

    #[inline(always)]
    fn deref(&self) -> &Event {
        // SAFETY: it was made of a reference to an event that is a static, or that is in the `Arc` that is held here.
        // There it stays for as long: nobody has a mutable reference to what is in an `Arc` that another one shares.
        unsafe { self.event.as_ref() }
    }
}

impl AsRef<Event> for EventHandle {
    fn as_ref(&self) -> &Event {
        self
    }
}

impl From<Arc<Event>> for EventHandle {
    fn from(event: Arc<Event>) -> Self {
        EventHandle {
            event: NonNull::from(&*event),
            owner: Some(event),
        }
    }
}

impl From<&Arc<Event>> for EventHandle {
    fn from(event: &Arc<Event>) -> Self {
        Arc::clone(event).into()
    }
}

impl From<&'static Event> for EventHandle {
    fn from(event: &'static Event) -> Self {
        EventHandle {
            event: NonNull::from(event),
            owner: None,
        }
    }
}

impl From<&EventHandle> for EventHandle {
    fn from(handle: &EventHandle) -> Self {
        handle.clone()
    }
}

/// Finds an event for as long as something else keeps it alive. Made by [`EventHandle::downgrade`].
///
/// The memory that the event was in is not used for another one before this is dropped.
#[derive(Clone)]
pub struct WeakEventHandle {
    event: NonNull<Event>,
    owner: Option<Weak<dyn Send + Sync>>,
}

// SAFETY: as those of the handle that it may become.
unsafe impl Send for WeakEventHandle {}

// SAFETY: likewise.
unsafe impl Sync for WeakEventHandle {}

impl WeakEventHandle {
    /// A handle of the event, or `None` if it is gone.
    #[must_use]
    pub fn upgrade(&self) -> Option<EventHandle> {
        let owner = self.owner.as_ref().map(Weak::upgrade);
        // Borrowed for good, unless there is an owner, which may have gone.
        let owner = owner.map_or(Some(None), |owner| owner.map(Some))?;
        Some(EventHandle {
            event: self.event,
            owner,
        })
    }

    /// Whether nothing keeps the event alive any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let owner = self.owner.as_ref();
        owner.is_some_and(|owner| owner.strong_count() == 0)
    }

    /// Whether this was made of a handle of that very event.
    #[must_use]
    pub fn ptr_eq(&self, event: &Event) -> bool {
        ptr::eq(self.event.as_ptr(), event)
    }
}

impl fmt::Debug for EventHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Debug for WeakEventHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakEventHandle")
            .field("event", &self.upgrade())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Device {
        kick: Event,
    }

    /// Each kind of handle keeps what it is to keep, and nothing longer than that.
    #[test]
    fn what_is_kept_and_for_how_long() {
        static STATIC: Event = Event::new(1);
        let event = Arc::new(Event::new(2));
        let device = Arc::new(Device {
            kick: Event::new(3),
        });
        let handles = [
            EventHandle::from(&STATIC),
            EventHandle::from(&event),
            EventHandle::from(Arc::clone(&event)),
            EventHandle::of_field(&device, |device| &device.kick),
        ];
        assert_eq!(handles.each_ref().map(|it| it.count()), [1, 2, 2, 3]);
        assert_eq!(
            (Arc::strong_count(&event), Arc::strong_count(&device)),
            (3, 2)
        );
        assert!(handles[1].ptr_eq(&event) && handles[3].ptr_eq(&device.kick));
        assert!(!handles[1].ptr_eq(&device.kick));
        let copies = handles.each_ref().map(EventHandle::from);
        let weak = copies.each_ref().map(EventHandle::downgrade);
        drop((handles, copies));
        assert_eq!(
            (Arc::strong_count(&event), Arc::strong_count(&device)),
            (1, 1)
        );
        let counts = || weak.each_ref().map(|it| it.upgrade().map(|it| it.count()));
        assert_eq!(counts(), [Some(1), Some(2), Some(2), Some(3)]);
        assert!(weak[3].ptr_eq(&device.kick));
        drop((event, device));
        assert_eq!(counts(), [Some(1), None, None, None]);
        assert_eq!(weak.map(|it| it.is_gone()), [false, true, true, true]);
    }
}
