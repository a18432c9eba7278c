use super::events::Events;
use super::fds::{FdRegistration, FdTable, Fds};
use super::item::{Found, Item, What};
use super::shared::Shared;
use super::{PollError, Watch};
use crate::event::{Interest, Observation};
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::limit::{Limit, has_passed};
use crate::sync::spin::Spinner;
use crate::sync::waiters::{Outcome, Release};
use crate::sync::{Mutex, MutexGuard};
use crate::{Event, Spin};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// An epoll in userspace: reports which of many events are ready.
///
/// It watches [`Event`]s, without a file descriptor and without a system call while it is busy, and real file
/// descriptors in the same wait. Each is registered under a key of the caller's choice, with a [`Watch`] that says what
/// to report and how often. What is ready is found in a time that depends on how much is ready and not on how much is
/// registered.
///
/// Several threads may wait. Edge-triggered and one-shot events are given to one of them; a level-triggered one to
/// each, as long as it is ready. What is ready is reported in the order in which it became so; a level-triggered event
/// that was reported goes to the end. So a noisy event cannot hide a quiet one, however small the buffer.
///
/// ```
/// use doorbell::Event;
/// use doorbell::poll::{Events, Poller, Watch};
/// use std::sync::Arc;
/// use std::thread;
///
/// let poller = Arc::new(Poller::new());
/// let queues = [(); 4].map(|()| Arc::new(Event::new(0)));
/// for (index, queue) in queues.iter().enumerate() {
///     poller.add(queue, index, Watch::READABLE.edge())?;
/// }
///
/// let device = thread::spawn({
///     let (poller, queues) = (Arc::clone(&poller), queues.clone());
///     move || {
///         let mut events = Events::with_capacity(16);
///         let mut kicks = 0;
///         while kicks < 3 {
///             poller.wait(&mut events, None).unwrap();
///             for ready in &events {
///                 kicks += queues[ready.key()].try_read().unwrap_or(0);
///             }
///         }
///     }
/// });
/// queues[2].signal();
/// queues[0].signal_n(2);
/// device.join().unwrap();
/// # Ok::<(), doorbell::poll::PollError>(())
/// ```
pub struct Poller {
    shared: Arc<Shared>,
    registered: Mutex<Registered>,
    /// How long the queue under the lock is, for who spins.
    backlog: AtomicUsize,
    /// Waits since descriptors were last looked at.
    busy_waits: AtomicU32,
    spin: Spinner,
}

/// What is under the lock.
#[derive(Default)]
pub(super) struct Registered {
    pub(super) registrations: BTreeMap<usize, Registration>,
    /// The queue, oldest first; what is in `incoming` comes after it. (epoll's `rdllist`.)
    ready: VecDeque<Arc<Item>>,
    /// The bindings in it have a line of their own.
    pub(super) bindings: VecDeque<Arc<Item>>,
    /// Deleted items that may be in one of them.
    deleted: usize,
    pub(super) fds: FdTable,
}

pub(super) enum Registration {
    Watched {
        item: Arc<Item>,
        _observation: Observation,
    },
    Fd(FdRegistration),
    Bound {
        item: Arc<Item>,
        _observation: Observation,
        registration: FdRegistration,
    },
}

/// While there is always something in the process, descriptors are looked at in one wait of so many.
const BUSY_WAITS: u32 = 32;

/// While a thread spins, they are looked at in one look of so many.
const BUSY_LOOKS: u32 = 1024;

impl Poller {
    /// A poller with nothing registered. It owns no file descriptor until one is [added](Self::add_fd).
    pub fn new() -> Self {
        Self::with_spin(Spin::DEFAULT)
    }

    /// The same, with another policy for what [`wait`](Self::wait) does before it sleeps.
    pub fn with_spin(spin: Spin) -> Self {
        Poller {
            shared: Arc::new(Shared::new()),
            registered: Mutex::default(),
            backlog: AtomicUsize::new(0),
            busy_waits: AtomicU32::new(0),
            spin: Spinner::new(spin),
        }
    }

    /// Watches an event. If it is ready, it is reported, whatever the trigger.
    ///
    /// It may be registered under several keys, and with several pollers. The poller keeps it alive until
    /// [`delete`](Self::delete).
    ///
    /// Waits as [`Observation::new`] does, unless called from an observer's call.
    ///
    /// # Errors
    ///
    /// [`KeyExists`](PollError::KeyExists).
    pub fn add(&self, event: &Arc<Event>, key: usize, watch: Watch) -> Result<(), PollError> {
        let what = What::Watched(Arc::clone(event));
        let item = Item::new(key, what, Arc::clone(&self.shared));
        // Outside the lock, which an observer's call may want, and so in vain if the key is in use.
        let observation = Observation::prompt_on_demand(
            Arc::clone(event),
            Interest::Both,
            Arc::clone(&item) as _,
        );
        {
            let mut registered = self.registered();
            registered.check_vacant(key)?;
            item.watch(watch);
            registered.register(
                key,
                &item,
                Registration::Watched {
                    item: Arc::clone(&item),
                    _observation: observation,
                },
            );
        }
        item.sample();
        Ok(())
    }

    /// Changes what an event or file descriptor is watched for. If it is ready, it is reported, whatever the trigger:
    /// so a one-shot that has been reported begins anew.
    ///
    /// Never waits.
    ///
    /// # Errors
    ///
    /// [`NoEntry`](PollError::NoEntry), and [`Bound`](PollError::Bound) for a binding.
    pub fn modify(&self, key: usize, watch: Watch) -> Result<(), PollError> {
        let item = {
            let registered = self.registered();
            match registered.registrations.get(&key) {
                None => return Err(PollError::NoEntry),
                Some(Registration::Bound { .. }) => return Err(PollError::Bound),
                Some(Registration::Fd(fd)) => {
                    return registered.fds.modify(self.fds_there(), fd, watch);
                }
                Some(Registration::Watched { item, .. }) => {
                    item.watch(watch);
                    Arc::clone(item)
                }
            }
        };
        item.sample();
        Ok(())
    }

    /// Ends a registration. A wait that begins after this has returned does not report it, though it may have been in
    /// the queue already.
    ///
    /// Waits as dropping an [`Observation`] does, unless called from an observer's call.
    ///
    /// # Errors
    ///
    /// [`NoEntry`](PollError::NoEntry).
    pub fn delete(&self, key: usize) -> Result<(), PollError> {
        let (registration, _swept) = {
            let mut registered = self.registered();
            let registration = registered.registrations.remove(&key);
            let registration = registration.ok_or(PollError::NoEntry)?;
            let swept = self.end(&mut registered, &registration);
            (registration, swept)
        };
        // Outside the lock, which an observer's call may want, or its drop.
        registration.settle();
        Ok(())
    }

    /// Under the lock. Returns what has left the queue for good, to be dropped outside.
    fn end(&self, registered: &mut Registered, registration: &Registration) -> Vec<Arc<Item>> {
        match registration {
            Registration::Watched { item, .. } => registered.forget(item),
            Registration::Fd(fd) => registered.fds.delete(self.fds_there(), fd),
            Registration::Bound {
                item, registration, ..
            } => {
                registered.forget(item);
                registered.fds.delete(self.fds_there(), registration);
            }
        }
        registered.take_in(&self.shared);
        let swept = registered.sweep();
        self.note_backlog(registered);
        swept
    }

    /// Makes one [`wait`](Self::wait) return, now or the next time, with or without events. Notifications that come
    /// before it returns count as one.
    ///
    /// Takes no lock and never waits, so it may be called in a handler of a signal too.
    pub fn notify(&self) {
        self.shared.notify();
    }

    /// Waits until something is ready, somebody [notifies](Self::notify), or `timeout` has passed, and puts what is
    /// ready into `events`, in the place of what was there. Returns how many there are, which is 0 after a timeout, and
    /// maybe after a notification.
    ///
    /// `None` is no timeout, and so is one too long for the clock, such as `Duration::MAX`. With one of zero it never
    /// sleeps. The clock is read only if nothing is ready at first. However much arrives at [bindings](Self::bind), the
    /// wait ends after the timeout: what has not been carried over by then is carried over by the next wait.
    /// A signal handler that runs does not end the wait; one that calls `notify` does.
    ///
    /// Each is reported with all that it is ready for now of what it is watched for: an event that was signalled and
    /// has been read again in the meantime is not reported. As with [`Event::readiness`], what was done before a signal
    /// is visible to who reads the event.
    ///
    /// If it carries over for a [binding](Self::bind), and an observer of the event panics, so does this; what was
    /// ready is ready for the next wait then, unless it was an edge or one-shot that had been put into `events`.
    ///
    /// # Errors
    ///
    /// [`NoCapacity`](PollError::NoCapacity), at once. [`Os`](PollError::Os) or [`BadFd`](PollError::BadFd) if somebody
    /// has closed a descriptor that is the poller's own.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<usize, PollError> {
        events.clear();
        if events.capacity() == 0 {
            return Err(PollError::NoCapacity);
        }
        let at_once = timeout == Some(Duration::ZERO);
        // Who falls asleep in epoll looks at the descriptors by doing so.
        let sleeps = !at_once && self.spin.policy() == Spin::Never;
        if self.look(events, !sleeps, None)? {
            return Ok(events.len());
        }
        let Ok(deadline) = Limit::of(timeout).deadline() else {
            return Ok(events.len());
        };
        let wait = Wait {
            poller: self,
            events: RefCell::new(events),
            deadline,
            place: Cell::new(self.shared.fds.get()),
            looks: Cell::new(0),
            failed: Cell::new(None),
            panicked: Cell::new(None),
        };
        let result = self.spin.wait(
            deadline,
            || !self.seems_quiet() || wait.is_time_for_fds(),
            || wait.look(),
            || {
                self.shared.waiters.wait_in(
                    || wait.attempt(),
                    |key| wait.sleep(key),
                    || self.hand_on(),
                )
            },
        );
        if let Some(payload) = wait.panicked.take() {
            panic::resume_unwind(payload);
        }
        result.unwrap_or(Ok(()))?;
        Ok(events.len())
    }

    /// Looks once at the process, and at the descriptors if it is their turn, or `then_fds` and there is nothing else.
    /// Returns whether `wait` is to return.
    fn look(
        &self,
        events: &mut Events,
        then_fds: bool,
        deadline: Option<Instant>,
    ) -> Result<bool, PollError> {
        let Some(fds) = self.shared.fds.get() else {
            return Ok(self.harvest(events, deadline, 0));
        };
        if self.is_turn_of_fds() {
            self.look_at(fds, events)?;
            return Ok(self.harvest(events, deadline, 0));
        }
        let done = self.harvest(events, deadline, 0);
        if done || !then_fds {
            return Ok(done);
        }
        self.look_at(fds, events)?;
        Ok(self.harvest(events, deadline, 0))
    }

    fn is_turn_of_fds(&self) -> bool {
        // Two threads that count at once count for one.
        let waits = self.busy_waits.load(Ordering::Relaxed) + 1;
        self.busy_waits.store(waits, Ordering::Relaxed);
        waits >= BUSY_WAITS
    }

    /// Looks at the descriptors, without sleeping.
    fn look_at(&self, fds: &Fds, events: &mut Events) -> Result<(), PollError> {
        self.busy_waits.store(0, Ordering::Relaxed);
        // It may hear the bell, and so use up the wake-up of a sleeper: among those it hands it on when it leaves.
        self.shared.waiters.enter();
        let result = fds.look(events.room(), |found| {
            self.registered().take_over(events, found);
        });
        self.shared.waiters.leave(false, || self.hand_on());
        result
    }

    /// Puts what is ready in the process into `events`, and carries over for bindings. `own` is 1 if this thread stands
    /// among the waiters, and else 0. Returns whether `wait` is to return.
    fn harvest(&self, events: &mut Events, deadline: Option<Instant>, own: u32) -> bool {
        let bindings = self.report(events);
        if self.carry(bindings, deadline, own) && events.is_empty() {
            // What was carried may have gone to events that are watched here.
            self.report(events);
        }
        self.shared.take_notice() || !events.is_empty()
    }

    /// Looks at each watched item in the queue, once. Returns how many bindings are in it.
    fn report(&self, events: &mut Events) -> usize {
        // To be dropped outside the lock: an event may go with it, and what observes that.
        let mut gone = Vec::new();
        let mut registered = self.registered();
        registered.take_in(&self.shared);
        let Registered { ready, deleted, .. } = &mut *registered;
        for _ in 0..ready.len() {
            if events.room() == 0 {
                break;
            }
            let Some(item) = ready.pop_front() else {
                break;
            };
            if item.is_deleted() {
                *deleted -= 1;
                gone.push(item);
                continue;
            }
            let key = item.key;
            // SAFETY: it has not been deleted, so it is registered, and this is under the lock.
            match unsafe { item.look() } {
                Found::Nothing => {}
                Found::Ready(flags) => events.push(key, flags),
                Found::StillReady(item, flags) => {
                    events.push(key, flags);
                    ready.push_back(item);
                }
            }
        }
        self.note_backlog(&registered);
        let bindings = registered.bindings.len();
        drop(registered);
        bindings
    }

    /// Carries over for up to so many bindings, and after the deadline for one. Returns whether it has. The others stay
    /// in the queue meanwhile, for other threads: an observer of what is carried may take its time, or panic.
    fn carry(&self, most: usize, deadline: Option<Instant>, own: u32) -> bool {
        let mut carried = false;
        for _ in 0..most {
            let mut registered = self.registered();
            let Some(item) = registered.bindings.pop_front() else {
                break;
            };
            let others = !registered.bindings.is_empty();
            let deleted = item.is_deleted();
            let binding = Arc::clone(&item);
            if deleted {
                registered.deleted -= 1;
            } else {
                // SAFETY: it has not been deleted, so it is registered, and this is under the lock.
                unsafe { item.leave_queue() };
            }
            self.note_backlog(&registered);
            drop(registered);
            if deleted {
                continue;
            }
            if others && self.shared.waiters.count() > own {
                self.shared.wake();
            }
            binding.carry();
            carried = true;
            if has_passed(deadline) {
                break;
            }
        }
        carried
    }

    /// Under the lock, when the queue has changed.
    fn note_backlog(&self, registered: &Registered) {
        self.backlog.store(registered.queued(), Ordering::Relaxed);
    }

    /// A thread leaves that was or may have been woken, and others stay.
    fn hand_on(&self) -> Release {
        let left = self.registered().queued() != 0
            || !self.shared.incoming.is_empty()
            || self.shared.is_notified();
        if left {
            self.shared.wake();
        }
        // Nobody is woken the usual way.
        Release::NOBODY
    }

    /// A glance, for who spins.
    fn seems_quiet(&self) -> bool {
        self.shared.seems_quiet() && self.backlog.load(Ordering::Relaxed) == 0
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn registered(&self) -> MutexGuard<'_, Registered> {
        self.registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// For who has a descriptor's registration.
    fn fds_there(&self) -> &Fds {
        match self.shared.fds.get() {
            Some(fds) => fds,
            None => unreachable!("a descriptor is registered, but nowhere"),
        }
    }
}

impl Registered {
    pub(super) fn check_vacant(&self, key: usize) -> Result<(), PollError> {
        match self.registrations.contains_key(&key) {
            true => Err(PollError::KeyExists),
            false => Ok(()),
        }
    }

    /// Registers what has an item, for which the key is vacant.
    pub(super) fn register(&mut self, key: usize, item: &Arc<Item>, registration: Registration) {
        self.registrations.insert(key, registration);
        // SAFETY: it is registered, and this is under the lock.
        unsafe { Arc::clone(item).leave_queue() };
    }

    fn take_in(&mut self, shared: &Shared) {
        shared.incoming.take_all(|item| match item.what {
            What::Watched(_) => self.ready.push_back(item),
            What::Bound(_) => self.bindings.push_back(item),
        });
    }

    /// How long the queue is.
    fn queued(&self) -> usize {
        self.ready.len() + self.bindings.len()
    }

    fn forget(&mut self, item: &Item) {
        self.deleted += usize::from(item.delete());
    }

    /// Removes deleted items from the queue if they are many, so that a delete costs little and nothing piles up.
    fn sweep(&mut self) -> Vec<Arc<Item>> {
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
    /// After the end, and outside the lock.
    fn settle(&self) {
        if let Registration::Bound { item, .. } = self {
            item.carry();
        }
    }
}

/// A call of `wait` that has not found anything at once.
struct Wait<'a> {
    poller: &'a Poller,
    events: RefCell<&'a mut Events>,
    deadline: Option<Instant>,
    /// Where to sleep: in epoll or, if there is none, on the futex. Chosen before each announcement, see
    /// [`Shared::wake`].
    place: Cell<Option<&'a Fds>>,
    /// Looks while spinning.
    looks: Cell<u32>,
    failed: Cell<Option<PollError>>,
    panicked: Cell<Option<Box<dyn Any + Send>>>,
}

impl Wait<'_> {
    /// Awake.
    fn look(&self) -> Option<Result<(), PollError>> {
        let mut events = self.events.borrow_mut();
        match self.poller.look(&mut events, true, self.deadline) {
            Ok(done) => done.then_some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    }

    fn is_time_for_fds(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        self.looks.get() % BUSY_LOOKS == 0 && self.poller.shared.fds.get().is_some()
    }

    /// Between announcement and sleep.
    fn attempt(&self) -> Option<Result<(), PollError>> {
        if let Some(error) = self.failed.get() {
            return Some(Err(error));
        }
        // An observer of an event that is carried to may panic. This thread is among the waiters, and must leave first.
        let harvest = || {
            let mut events = self.events.borrow_mut();
            self.poller.harvest(&mut events, self.deadline, 1)
        };
        match panic::catch_unwind(AssertUnwindSafe(harvest)) {
            Ok(done) => done.then_some(Ok(())),
            Err(payload) => {
                self.panicked.set(Some(payload));
                Some(Ok(()))
            }
        }
    }

    fn sleep(&self, key: u32) -> Outcome {
        let shared = &self.poller.shared;
        let outcome = match self.place.get() {
            Some(fds) => {
                let mut events = self.events.borrow_mut();
                let slept = fds.sleep(events.room(), self.deadline, |found| {
                    self.poller.registered().take_over(&mut events, found);
                });
                slept.unwrap_or_else(|error| {
                    self.failed.set(Some(error));
                    Outcome::Woken
                })
            }
            // It has come since. If it comes after this look, `key` is out of date by then.
            None if shared.fds.get().is_some() => Outcome::Woken,
            None => shared.waiters.sleep(key, self.deadline),
        };
        self.place.set(shared.fds.get());
        outcome
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        let registrations = std::mem::take(&mut self.registered().registrations);
        for registration in registrations.into_values() {
            let _swept = self.end(&mut self.registered(), &registration);
            registration.settle();
        }
        self.shared.incoming.close();
    }
}

impl Default for Poller {
    fn default() -> Self {
        Poller::new()
    }
}

impl fmt::Debug for Poller {
    /// A snapshot: what a debugger wants to know of a poller that seems stuck.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registered = self.registered();
        f.debug_struct("Poller")
            .field("registered", &registered.registrations.len())
            .field("queued", &registered.queued())
            .field("incoming", &!self.shared.incoming.is_empty())
            .field("notified", &self.shared.is_notified())
            .field("waiting", &self.shared.waiters.count())
            .field("spin", &self.spin.policy())
            .finish()
    }
}
