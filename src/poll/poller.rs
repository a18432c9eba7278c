use super::epoll::Fds;
use super::events::Events;
use super::item::{Examined, Item, Kind};
use super::probe::Probe;
use super::probes::{Asker, Probes};
use super::queued_binding::QueuedBinding;
use super::registered::{Entry, Registered, Registration, Watched};
use super::shared::Shared;
use super::sleepers::Seat;
use super::{PollError, Watch};
use crate::Spin;
use crate::event::{EventHandle, Interest, Observation};
use crate::panics::{Payload, catch, go_on, go_on_unless_panicking};
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::limit::{Limit, has_passed};
use crate::sync::spin::{Beat, Pace, Spinner};
use crate::sync::waiters::{Outcome, Release};
use crate::sync::{Mutex, MutexGuard, wake_queue};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// An epoll in userspace: reports which of many events are ready.
///
/// It watches [`Event`](crate::Event)s, without a file descriptor and without a system call while it is busy, and real
/// file descriptors in the same wait. Each is registered under a key of the caller's choice, with a [`Watch`] that says
/// what to report and how often. What is ready is found in a time that depends on how much is ready and not on how much
/// is registered.
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
#[doc(alias = "epoll")]
#[doc(alias = "kqueue")]
#[doc(alias = "EventLoop")]
pub struct Poller {
    shared: Arc<Shared<Item>>,
    registered: Mutex<Registered>,
    probes: Probes,
    /// How long the queue under the lock is, for who spins.
    backlog: AtomicUsize,
    /// Waits since descriptors were last looked at.
    busy_waits: AtomicU32,
    spinner: Spinner,
    counters: Counters,
}

/// What came of looking for a while.
enum Looked {
    /// `wait` is to return.
    Found,
    InVain(Pace),
    /// The window is closed, or another thread looks.
    Not,
}

/// What a poller counts, apart from waits that find something at once: those count nothing, so as to cost nothing.
#[derive(Default)]
struct Counters {
    windows: AtomicU64,
    looks: AtomicU64,
    hits: AtomicU64,
    sleeps: AtomicU64,
}

/// How often a [`Poller`] has waited awake and asleep, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollStats {
    /// How often a wait that found nothing at first went on looking for a while, awake.
    pub windows: u64,
    /// How often it looked in all of these.
    pub looks: u64,
    /// How many of the windows ended with something found.
    pub hits: u64,
    /// How often a thread went to sleep.
    pub sleeps: u64,
}

/// While there is always something in the process, descriptors are looked at in one wait of so many.
const BUSY_WAITS: u32 = 32;

impl Poller {
    /// A poller with nothing registered. It owns no file descriptor until one is [added](Self::add_fd).
    #[must_use]
    pub fn new() -> Self {
        Self::with_spin(Spin::DEFAULT)
    }

    /// The same, with another policy for what [`wait`](Self::wait) does before it sleeps. QEMU's name for this knob is
    /// `poll-max-ns`.
    ///
    /// With [`Spin::Adaptive`], a wait looks on for `max` as long as that saves sleeps often enough, as
    /// [the module](crate::poll#looking-before-sleeping) describes; on a machine with one CPU, it sleeps at once.
    #[must_use]
    #[doc(alias = "poll_max_ns")]
    pub fn with_spin(spin: Spin) -> Self {
        Poller {
            shared: Arc::new(Shared::new()),
            registered: Mutex::default(),
            probes: Probes::new(),
            backlog: AtomicUsize::new(0),
            busy_waits: AtomicU32::new(0),
            spinner: Spinner::new(spin),
            counters: Counters::default(),
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
    #[doc(alias = "register")]
    #[doc(alias = "epoll_ctl")]
    pub fn add(
        &self,
        event: impl Into<EventHandle>,
        key: usize,
        watch: Watch,
    ) -> Result<(), PollError> {
        let watched = self.watched(event.into(), key);
        let item = Arc::clone(&watched.item);
        {
            let mut registered = self.registered();
            registered.check_vacant(key)?;
            item.watch(watch);
            registered.register(key, Registration::Watched(watched));
        }
        item.sample();
        Ok(())
    }

    /// An item for an event that is to be watched. To be called outside the lock, which an observer's call may want,
    /// and so in vain if the key is in use.
    pub(super) fn watched(&self, event: EventHandle, key: usize) -> Watched {
        let what = Kind::Watched(event.clone());
        let item = Item::new(key, what, Arc::clone(&self.shared));
        self.observed(item, event, Interest::Both)
    }

    pub(super) fn observed(
        &self,
        item: Arc<Item>,
        event: EventHandle,
        interest: Interest,
    ) -> Watched {
        let observer = Arc::clone(&item) as _;
        Watched {
            _observation: Observation::prompt_on_demand(event, interest, observer),
            item,
        }
    }

    /// Changes what an event or file descriptor is watched for. If it is ready, it is reported, whatever the trigger:
    /// so a one-shot that has been reported begins anew.
    ///
    /// Never waits.
    ///
    /// # Errors
    ///
    /// [`NoEntry`](PollError::NoEntry); [`Bound`](PollError::Bound) for a binding that reports nothing, and for what is
    /// nothing but a probe; [`OneShot`](PollError::OneShot) for what has a probe.
    #[doc(alias = "reregister")]
    pub fn modify(&self, key: usize, watch: Watch) -> Result<(), PollError> {
        let item = {
            let mut registered = self.registered();
            let Registered {
                registrations, fds, ..
            } = &mut *registered;
            let entry = registrations.get(&key).ok_or(PollError::NoEntry)?;
            if watch.one_shot && entry.probed {
                return Err(PollError::OneShot);
            }
            let registration = &entry.registration;
            if let Registration::Fd(fd) = registration {
                return fds.modify(self.fds_there(), fd, watch);
            }
            let item = registration.watched().ok_or(PollError::Bound)?;
            item.watch(watch);
            Arc::clone(item)
        };
        item.sample();
        Ok(())
    }

    /// Gives a source a probe, so that the poller finds what the source has to do without being notified: see
    /// [`Probe`]. What the probe finds is reported as readable, under the key, beside what else is reported of it.
    ///
    /// The source may be a descriptor or an event, bound or not. Watch it for [edges](Watch::edge) if the device looks
    /// at its queue and never reads the kick. A one-shot cannot have a probe. With several threads in `wait`, each of
    /// them may be told of the same source, as of any that is level-triggered, as long as it is ready.
    ///
    /// The source counts as notifying until the poller calls [`begin`](Probe::begin), which happens when it has been
    /// reported. The probe is asked at once, by this call; if it is not [`ready`](Probe::ready), it costs nothing until
    /// the source's first notification. It goes with the source, in [`delete`](Self::delete).
    ///
    /// # Errors
    ///
    /// [`NoEntry`](PollError::NoEntry); [`KeyExists`](PollError::KeyExists) if there is a probe;
    /// [`Bound`](PollError::Bound) for a binding that reports nothing; [`OneShot`](PollError::OneShot).
    ///
    /// # Panics
    ///
    /// If called by a probe of this poller, and if the probe does; it is not attached then.
    pub fn attach_probe(&self, key: usize, probe: impl Probe + 'static) -> Result<(), PollError> {
        let mut probe = Box::new(probe);
        // What comes after this notifies. Not under the other lock: a slow probe would hold it up.
        let (mut probes, ready) = self.probes.lock().ask(&mut *probe);
        {
            let mut registered = self.registered();
            let Registered {
                registrations, fds, ..
            } = &mut *registered;
            let entry = registrations.get_mut(&key).ok_or(PollError::NoEntry)?;
            if entry.probed {
                return Err(PollError::KeyExists);
            }
            let one_shot = match &entry.registration {
                Registration::Fd(fd) => fds.is_one_shot(fd),
                other => other.watched().ok_or(PollError::Bound)?.is_one_shot(),
            };
            if one_shot {
                return Err(PollError::OneShot);
            }
            entry.probed = true;
            probes.add(key, probe, ready, false);
        }
        drop(probes);
        if ready {
            self.shared.wake();
        }
        Ok(())
    }

    /// Registers a source that has nothing but a probe. It is asked whenever a thread is awake in `wait`; after
    /// [`end`](Probe::end), whoever gives it something to do has to [notify](Self::notify) the poller.
    ///
    /// # Errors
    ///
    /// [`KeyExists`](PollError::KeyExists).
    ///
    /// # Panics
    ///
    /// If called by a probe of this poller.
    pub fn add_probe(&self, key: usize, probe: impl Probe + 'static) -> Result<(), PollError> {
        let probe = Box::new(probe);
        let mut probes = self.probes.lock();
        {
            let mut registered = self.registered();
            registered.check_vacant(key)?;
            registered.register(key, Registration::Probe);
            probes.add(key, probe, false, true);
        }
        drop(probes);
        self.shared.wake();
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
    ///
    /// # Panics
    ///
    /// If the probe of the source does, in [`end`](Probe::end). The source is deleted then.
    #[doc(alias = "remove")]
    #[doc(alias = "deregister")]
    pub fn delete(&self, key: usize) -> Result<(), PollError> {
        let (registration, mut probe, _swept) = {
            let (mut probes, mut registered) = loop {
                let probes = self.probes.lock_if_any();
                let registered = self.registered();
                // The first of all may have come in between.
                if probes.is_some() || !registered.is_probed(key) {
                    break (probes, registered);
                }
            };
            let entry = registered.registrations.remove(&key);
            let Entry { registration, .. } = entry.ok_or(PollError::NoEntry)?;
            let swept = self.end(&mut registered, &registration);
            let probe = probes.as_mut().and_then(|probes| probes.delete(key));
            (registration, probe, swept)
        };
        // Outside the locks, which an observer's call may want, or its drop, or that of a probe.
        registration.deliver_rest();
        go_on(probe.as_mut().and_then(|probe| probe.panicked.take()));
        Ok(())
    }

    /// Under the lock. Returns what has left the queue for good, to be dropped outside.
    fn end(&self, registered: &mut Registered, registration: &Registration) -> Vec<Arc<Item>> {
        for item in registration.items() {
            registered.forget(item);
        }
        if let Some(fd) = registration.fd() {
            registered.fds.delete(self.fds_there(), fd);
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
    #[doc(alias = "wake")]
    pub fn notify(&self) {
        self.shared.notify();
    }

    /// Makes every thread return from [`wait`](Self::wait), now or the next time, with or without events: for threads
    /// that are to stop, or to look at something that has changed.
    ///
    /// A thread is known by its buffer: for each [`Events`], one wait returns for it. That goes for a buffer that is
    /// used for the first time, and for the buffer of a [`look`](Self::look) or a [`PollerFd`](super::PollerFd). So a
    /// thread cannot miss it between a look at a flag and its wait. Calls that come before the wait returns count as
    /// one. A buffer that is used with several pollers in turn is told only while it is in a wait.
    ///
    /// Each thread that was asleep wakes the next when it returns. Until all have, a thread that would fall asleep
    /// returns from `wait` instead.
    ///
    /// Takes a lock for a moment, so it is not for handlers of signals.
    #[doc(alias = "broadcast")]
    #[doc(alias = "wake_all")]
    pub fn notify_all(&self) {
        {
            let mut registered = self.registered();
            registered.sleepers.all_are_late();
            self.shared.notify_all();
        }
        self.shared.wake();
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
    /// has been read again in the meantime is not reported. As with [`Event::readiness`](crate::Event::readiness), what
    /// was done before a signal is visible to who reads the event.
    ///
    /// # Panics
    ///
    /// If a [probe](Probe) does, or an observer of the event of a [binding](Self::bind) that is carried over. What has
    /// been found by then is in `events`, and what else was ready is ready for the next wait. Other threads that wait
    /// are woken if need be, and miss nothing.
    ///
    /// # Errors
    ///
    /// [`NoCapacity`](PollError::NoCapacity), at once. [`Os`](PollError::Os) or [`BadFd`](PollError::BadFd) if somebody
    /// has closed a descriptor that is the poller's own.
    #[doc(alias = "epoll_wait")]
    #[doc(alias = "poll")]
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<usize, PollError> {
        self.wait_within(events, Limit::of(timeout))
    }

    /// As [`wait`](Self::wait), up to a point in time. With one in the past it never sleeps.
    ///
    /// # Errors
    ///
    /// Those of `wait`.
    pub fn wait_deadline(
        &self,
        events: &mut Events,
        deadline: Instant,
    ) -> Result<usize, PollError> {
        self.wait_within(events, Limit::Until(deadline))
    }

    fn wait_within(&self, events: &mut Events, limit: Limit) -> Result<usize, PollError> {
        self.fill(events, |events| {
            let result = self.find(events, limit);
            self.heat_reported(events);
            result
        })?;
        Ok(events.len())
    }

    /// Looks once, without sleeping, and leaves descriptors alone but for one look in 32. So it makes no system call in
    /// the other 31: for a device that has other work to do, and asks in between.
    ///
    /// It reports what a [`wait`](Self::wait) reports, in the same turn, and returns how many there are.
    ///
    /// # Errors
    ///
    /// Those of `wait`.
    pub fn look(&self, events: &mut Events) -> Result<usize, PollError> {
        self.fill(events, |events| {
            let result = self.look_once(events);
            self.heat_reported(events);
            result
        })?;
        Ok(events.len())
    }

    /// What an outer loop does before it sleeps: see [`PollerFd::arm`](super::PollerFd::arm). Returns the seat of a
    /// loop that may sleep; [`disarm`](Self::disarm) takes it back.
    #[cfg(target_os = "linux")]
    pub(super) fn arm(&self, events: &mut Events) -> Result<Option<Seat>, PollError> {
        self.fill(events, |events| {
            let result = self.try_arm(events);
            // A loop that sleeps reports nothing, and all is cold.
            if !matches!(result, Ok(Some(_))) {
                self.heat_reported(events);
            }
            result
        })
    }

    /// As [`sleep`](Self::sleep) up to the sleep itself, which is the outer loop's: in the same epoll instance.
    #[cfg(target_os = "linux")]
    fn try_arm(&self, events: &mut Events) -> Result<Option<Seat>, PollError> {
        if self.look_once(events)? {
            return Ok(None);
        }
        self.shared.turn_to_this(events.told());
        // What is to wake the outer loop may be among those.
        wake_queue::let_go();
        let waiters = &self.shared.waiters;
        let Some(seat) = self.take_seat() else {
            return Ok(None);
        };
        waiters.enter();
        // What the bell tells, the attempt below finds. So the bell is silent when the loop falls asleep, unless it
        // rings after the announcement. If it told another thread, this one stands among the waiters by now.
        self.busy_waits.store(0, Ordering::Relaxed);
        let looked = self.fds_there().look(events.room(), |found| {
            self.registered().take_over(events, found);
        });
        waiters.announce();
        let awake = match looked {
            Ok(()) => self.attempt(events),
            Err(error) => Some(Awake::Failed(error)),
        };
        let Some(awake) = awake else {
            return Ok(Some(seat));
        };
        self.disarm(seat);
        match awake {
            Awake::Ready => Ok(None),
            Awake::Binding(binding) => {
                binding.carry();
                self.harvest(events, None);
                Ok(None)
            }
            Awake::Failed(error) => Err(error),
            Awake::Panicked(payload) => panic::resume_unwind(payload),
        }
    }

    /// The outer loop does not sleep any more.
    #[cfg(target_os = "linux")]
    pub(super) fn disarm(&self, seat: Seat) {
        self.registered().sleepers.leave(seat);
        self.shared.waiters.leave(false, || self.wake_next());
    }

    /// Counts a thread or an outer loop that is about to sleep, unless it is to go on because others have yet to hear
    /// that all were notified.
    fn take_seat(&self) -> Option<Seat> {
        self.registered().sleepers.enter()
    }

    fn fill<T>(
        &self,
        events: &mut Events,
        find: impl FnOnce(&mut Events) -> Result<T, PollError>,
    ) -> Result<T, PollError> {
        events.clear();
        if events.capacity() == 0 {
            return Err(PollError::NoCapacity);
        }
        events.merge(self.probes.any());
        let filled = panic::catch_unwind(AssertUnwindSafe(|| find(events)));
        filled.unwrap_or_else(|payload| {
            // Those that sleep may rely on this one. One that is woken ends what is hot.
            if self.probes.any() {
                self.shared.wake();
            }
            panic::resume_unwind(payload)
        })
    }

    fn find(&self, events: &mut Events, limit: Limit) -> Result<(), PollError> {
        if self.look_once(events)? {
            return Ok(());
        }
        self.shared.turn_to_this(events.told());
        let Ok(deadline) = limit.deadline() else {
            self.look_at_fds(events)?;
            return Ok(());
        };
        // Who is to end the wait may be among those.
        wake_queue::let_go();
        match self.look_for_a_while(events, deadline)? {
            Looked::Found => {}
            Looked::InVain(pace) => {
                let got = self.sleep(events, deadline)?;
                self.spinner.lost(&pace, got);
            }
            Looked::Not => {
                let start = self.spinner.learns().then(Instant::now);
                let got = self.sleep(events, deadline)?;
                if let (Some(start), true) = (start, got) {
                    self.spinner.slept(start.elapsed());
                }
            }
        }
        Ok(())
    }

    /// Looks once at the process, and before that at the descriptors if it is their turn. Returns whether `wait` is to
    /// return.
    fn look_once(&self, events: &mut Events) -> Result<bool, PollError> {
        // Two threads that count at once count for one.
        let waits = self.busy_waits.load(Ordering::Relaxed) + 1;
        self.busy_waits.store(waits, Ordering::Relaxed);
        if waits >= BUSY_WAITS {
            self.take_fds(events)?;
        }
        // What is first may take all the room, so that changes.
        if !self.probes.any() {
            Ok(self.harvest(events, None))
        } else if waits % 2 == 0 {
            self.probes.ask(events);
            Ok(self.harvest(events, None))
        } else {
            let done = self.harvest(events, None);
            self.probes.ask(events);
            Ok(done || !events.is_empty())
        }
    }

    /// Looks at the descriptors, and then again at the process, for what was bound to events.
    fn look_at_fds(&self, events: &mut Events) -> Result<bool, PollError> {
        Ok(self.take_fds(events)? && self.harvest(events, None))
    }

    /// Takes over what descriptors are ready, without sleeping. Returns whether there are any.
    fn take_fds(&self, events: &mut Events) -> Result<bool, PollError> {
        self.busy_waits.store(0, Ordering::Relaxed);
        let Some(fds) = self.shared.fds.get() else {
            return Ok(false);
        };
        // It may hear the bell, and so use up the wake-up of a sleeper: among those it hands it on when it leaves.
        self.shared.waiters.enter();
        let result = fds.look(events.room(), |found| {
            self.registered().take_over(events, found);
        });
        self.shared.waiters.leave(false, || self.wake_next());
        result?;
        Ok(true)
    }

    /// Looks for as long as the window is open.
    fn look_for_a_while(
        &self,
        events: &mut Events,
        deadline: Option<Instant>,
    ) -> Result<Looked, PollError> {
        let Some(mut pace) = self.spinner.begin(deadline) else {
            return Ok(Looked::Not);
        };
        let asking = match self.probes.begin_asking() {
            Asker::ThisThread(asking) => Some(asking),
            Asker::Nobody => None,
            // One is enough.
            Asker::Another => return Ok(Looked::Not),
        };
        let mut looks = 0;
        let found = loop {
            let Some(beat) = pace.next() else {
                break false;
            };
            looks += 1;
            if asking.is_some() {
                self.probes.try_ask(events);
            }
            let done = !events.is_empty()
                || !self.seems_quiet(events) && self.harvest(events, deadline)
                || beat == Beat::LookEverywhere && self.look_at_fds(events)?;
            if done {
                break true;
            }
        };
        drop(asking);
        self.counters.windows.fetch_add(1, Ordering::Relaxed);
        self.counters.looks.fetch_add(looks, Ordering::Relaxed);
        if !found {
            return Ok(Looked::InVain(pace));
        }
        self.counters.hits.fetch_add(1, Ordering::Relaxed);
        self.spinner.found(&pace);
        Ok(Looked::Found)
    }

    /// Sleeps until there is something, and returns whether there is.
    fn sleep(&self, events: &mut Events, deadline: Option<Instant>) -> Result<bool, PollError> {
        self.counters.sleeps.fetch_add(1, Ordering::Relaxed);
        let Some(seat) = self.take_seat() else {
            return Ok(true);
        };
        // An observer of what is carried over may panic.
        let _seated = Seated { poller: self, seat };
        loop {
            let sleep = Sleep {
                poller: self,
                events: RefCell::new(&mut *events),
                deadline,
                epoll: Cell::new(self.shared.fds.get()),
                failed: Cell::new(None),
            };
            let awake = self.shared.waiters.wait_in(
                || sleep.attempt(),
                |key| sleep.sleep(key),
                || self.wake_next(),
            );
            match awake {
                None => return Ok(false),
                Some(Awake::Failed(error)) => return Err(error),
                Some(Awake::Panicked(payload)) => panic::resume_unwind(payload),
                Some(Awake::Ready) => return Ok(true),
                Some(Awake::Binding(binding)) => {
                    binding.carry();
                    if self.harvest(events, deadline) {
                        return Ok(true);
                    }
                    if has_passed(deadline) {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// What a thread does between announcement and sleep. `None` if it may sleep.
    fn attempt(&self, events: &mut Events) -> Option<Awake> {
        if self.probes.any() {
            if let Err(payload) = self.probes.rest(events) {
                return Some(Awake::Panicked(payload));
            }
        }
        // What else there is has its turn in the next wait.
        let bindings = if events.is_empty() {
            self.report(events)
        } else {
            0
        };
        if self.take_notice(events) || !events.is_empty() {
            return Some(Awake::Ready);
        }
        if bindings == 0 {
            return None;
        }
        self.take_binding().map(Awake::Binding)
    }

    /// Before a report: what is in it gets hot, unless another thread sleeps, which nobody would wake then.
    fn heat_reported(&self, events: &mut Events) {
        if !self.probes.any() {
            return;
        }
        let others_sleep = || self.shared.waiters.count() != 0;
        if self.probes.report(events, others_sleep) {
            self.shared.wake();
        }
    }

    /// Puts what is ready in the process into `events`, and carries over for bindings. Returns whether `wait` is to
    /// return. Not for a thread that stands among the waiters: observers are called, which may panic, or wake it.
    fn harvest(&self, events: &mut Events, deadline: Option<Instant>) -> bool {
        let bindings = self.report(events);
        if self.carry(bindings, deadline) && events.is_empty() {
            // What was carried may have gone to events that are watched here.
            self.report(events);
        }
        self.take_notice(events) || !events.is_empty()
    }

    /// Whether the thread with this buffer is to return from `wait` because of a notification. One for all comes before
    /// one for any.
    fn take_notice(&self, events: &mut Events) -> bool {
        self.shared.take_notice(events.told())
    }

    /// Looks at each watched item in the queue, once. Returns how many bindings are in it.
    fn report(&self, events: &mut Events) -> usize {
        // To be dropped outside the lock: an event may go with it, and what observes that.
        let mut gone = Vec::new();
        let mut registered = self.registered();
        registered.take_in(&self.shared);
        let Registered { ready, deleted, .. } = &mut *registered;
        // Who falls asleep stands among the waiters, and comes here: either it sees what is left hot here, and arms it,
        // or it is seen.
        let may_be_hot = self.shared.waiters.count() == 0;
        let mut armed = Vec::new();
        for _ in 0..ready.len() {
            // There may be armed ones, for each of which there is room.
            if events.room() <= armed.len() {
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
            match unsafe { item.examine(may_be_hot) } {
                Examined::Nothing => {}
                Examined::Ready(flags) => events.push(key, flags),
                Examined::StillReady(item, flags) => {
                    events.push(key, flags);
                    ready.push_back(item);
                }
                Examined::Hot(item) => ready.push_back(item),
                Examined::Armed(item) => {
                    armed.push(item);
                    // Each may be ready now, and there is room for it.
                    if armed.len() == events.room() {
                        examine_all_armed(&mut armed, events, ready);
                    }
                }
            }
        }
        examine_all_armed(&mut armed, events, ready);
        self.note_backlog(&registered);
        let bindings = registered.bindings.len();
        drop(registered);
        bindings
    }

    /// Carries over for up to so many bindings, and after the deadline for one. Returns whether it has. The others stay
    /// in the queue meanwhile, for other threads: an observer of what is carried may take its time, or panic. Nobody
    /// need be woken for them. Whoever put one into the queue has woken a thread, if any slept; and a thread that
    /// leaves the waiters wakes another if the queue is not empty.
    fn carry(&self, most: usize, deadline: Option<Instant>) -> bool {
        let mut carried = false;
        for _ in 0..most {
            let Some(binding) = self.take_binding() else {
                break;
            };
            binding.carry();
            carried = true;
            if has_passed(deadline) {
                break;
            }
        }
        carried
    }

    /// The binding that has waited longest.
    fn take_binding(&self) -> Option<Arc<Item>> {
        // To be dropped outside the lock.
        let mut gone = Vec::new();
        let mut registered = self.registered();
        let binding = loop {
            let Some(item) = registered.bindings.pop_front() else {
                break None;
            };
            if item.is_deleted() {
                registered.deleted -= 1;
                gone.push(item);
                continue;
            }
            let binding = Arc::clone(&item);
            // SAFETY: it has not been deleted, so it is registered, and this is under the lock.
            unsafe { item.leave_queue() };
            break Some(binding);
        };
        self.note_backlog(&registered);
        drop(registered);
        binding
    }

    /// Under the lock, when the queue has changed.
    fn note_backlog(&self, registered: &Registered) {
        self.backlog.store(registered.queued(), Ordering::Relaxed);
    }

    /// A thread leaves that was or may have been woken, and others stay.
    fn wake_next(&self) -> Release {
        let (queued, are_late) = {
            let registered = self.registered();
            (registered.queued() != 0, registered.sleepers.are_late())
        };
        let left =
            queued || are_late || !self.shared.incoming.is_empty() || self.shared.is_notified();
        if left {
            self.shared.wake();
        }
        // Nobody is woken the usual way.
        Release::NOBODY
    }

    /// A glance, for who spins.
    fn seems_quiet(&self, events: &mut Events) -> bool {
        self.shared.seems_quiet(*events.told()) && self.backlog.load(Ordering::Relaxed) == 0
    }

    /// How often threads have looked and slept so far. A snapshot.
    #[must_use]
    pub fn stats(&self) -> PollStats {
        let Counters {
            windows,
            looks,
            hits,
            sleeps,
        } = &self.counters;
        let [windows, looks, hits, sleeps] =
            [windows, looks, hits, sleeps].map(|count| count.load(Ordering::Relaxed));
        PollStats {
            windows,
            looks,
            hits,
            sleeps,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared<Item>> {
        &self.shared
    }

    pub(super) fn registered(&self) -> MutexGuard<'_, Registered> {
        self.registered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoll instance, made if it is not there. Under the lock.
    #[cfg(target_os = "linux")]
    pub(super) fn fds(&self) -> Result<&Fds, PollError> {
        let shared = &self.shared;
        if let Some(fds) = shared.fds.get() {
            return Ok(fds);
        }
        let made = Fds::new()?;
        let fds = shared.fds.get_or_make(|| made);
        // A thread that sleeps on the futex, or is about to, comes over.
        shared.waiters.wake_everybody();
        Ok(fds)
    }

    /// The epoll instance, if something that needs it has been made: the registration of a descriptor, a
    /// [`PollerFd`](super::PollerFd).
    pub(super) fn fds_there(&self) -> &Fds {
        match self.shared.fds.get() {
            Some(fds) => fds,
            None => unreachable!("it was made before what needs it"),
        }
    }
}

/// Looks at items that have been armed, when their signallers have been heard: once for all. There is room for them.
fn examine_all_armed(armed: &mut Vec<&Item>, events: &mut Events, ready: &mut VecDeque<Arc<Item>>) {
    // To hear the signallers of one event is to hear those of all.
    armed.iter().any(|item| item.hear_signallers());
    for item in armed.drain(..) {
        match item.examine_armed() {
            Examined::Ready(flags) => events.push(item.key, flags),
            Examined::StillReady(queued, flags) => {
                events.push(item.key, flags);
                ready.push_back(queued);
            }
            Examined::Nothing | Examined::Hot(_) | Examined::Armed(_) => {}
        }
    }
}

/// Gives a seat back.
struct Seated<'a> {
    poller: &'a Poller,
    seat: Seat,
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.poller.registered().sleepers.leave(self.seat);
    }
}

/// A thread that goes to sleep.
struct Sleep<'a> {
    poller: &'a Poller,
    events: RefCell<&'a mut Events>,
    deadline: Option<Instant>,
    /// Where to sleep: in epoll or, if there is none, on the futex. Chosen before each announcement, see
    /// [`Shared::wake`].
    epoll: Cell<Option<&'a Fds>>,
    failed: Cell<Option<PollError>>,
}

/// Why it does not sleep any more.
enum Awake {
    /// There is something to report.
    Ready,
    /// There is something to carry over, which it does when it does not count as asleep any more.
    Binding(Arc<Item>),
    Failed(PollError),
    /// A probe has, which must not keep the thread among the waiters.
    Panicked(Payload),
}

impl Sleep<'_> {
    /// Between announcement and sleep.
    fn attempt(&self) -> Option<Awake> {
        if let Some(error) = self.failed.get() {
            return Some(Awake::Failed(error));
        }
        self.poller.attempt(&mut self.events.borrow_mut())
    }

    fn sleep(&self, key: u32) -> Outcome {
        let shared = &self.poller.shared;
        let outcome = match self.epoll.get() {
            Some(fds) => {
                self.poller.busy_waits.store(0, Ordering::Relaxed);
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
        self.epoll.set(shared.fds.get());
        outcome
    }
}

impl Drop for Poller {
    /// An observer or a probe that panics keeps nothing else from its end.
    fn drop(&mut self) {
        let mut panicked = self.probes.clear().err();
        let registrations = std::mem::take(&mut self.registered().registrations);
        for Entry { registration, .. } in registrations.into_values() {
            let _swept = self.end(&mut self.registered(), &registration);
            catch(&mut panicked, || registration.deliver_rest());
        }
        self.shared.incoming.close();
        go_on_unless_panicking(panicked);
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
            .field("spin", &self.spinner.policy())
            .field("stats", &self.stats())
            .finish()
    }
}
