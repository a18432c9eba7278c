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
/// Several threads may wait. An edge-triggered or one-shot event is reported to one of them, and a level-triggered
/// event to each, as long as it is ready. Events are reported in the order in which they became ready. A
/// level-triggered event that was reported goes to the end, so a noisy event cannot hide a quiet one, however small the
/// buffer is.
///
/// # Stopping its threads
///
/// An event that is watched for levels, is signalled once and is never read stays ready. So such an event makes each
/// wait of each thread return, those to come included. [`notify_all`](Self::notify_all) makes each thread return once.
///
/// # Examples
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
    /// The length of the queue under the lock, for the loop that spins.
    backlog: AtomicUsize,
    /// Waits since the poller last looked at descriptors.
    busy_waits: AtomicU32,
    spinner: Spinner,
    counters: Counters,
}

/// How the window ended.
enum Looked {
    /// `wait` is to return.
    Found,
    InVain(Pace),
    /// There was none: it is closed, or another thread looks.
    Not,
}

/// The statistics of a poller. Waits that find something at once are not counted, so that they pay nothing for it.
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

/// While events are always ready, descriptors are looked at in one of this many waits.
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
    /// The event is an `Arc<Event>`, a reference to one, a static, or a field of something in an `Arc`, by
    /// [`EventHandle::of_field`]`(&device, |d| &d.kick)`. It may be registered under several keys, and with several
    /// pollers. The poller keeps it alive until [`delete`](Self::delete).
    ///
    /// A [`SharedEvent`](crate::SharedEvent) is no `Event`. A poller watches it by the socket of its
    /// [`arm`](crate::SharedEvent::arm) and `add_waker`, as a [descriptor](Self::add_fd).
    ///
    /// Does not wait.
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

    /// An item for an event that is to be watched. Called outside the lock, which an observer's call may take; so it is
    /// made in vain if the key turns out to be in use.
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
    /// at its queue and never reads the kick. A one-shot cannot have a probe. With several threads in `wait`, the
    /// source may be reported to each of them as long as the probe finds it ready, as any level-triggered source is.
    ///
    /// The source has to notify until the poller calls [`begin`](Probe::begin), which happens after a report of the
    /// source. This call asks the probe once. If the probe is not [`ready`](Probe::ready), it costs nothing until the
    /// source's first notification. [`delete`](Self::delete) drops the probe with its source.
    ///
    /// # Errors
    ///
    /// [`NoEntry`](PollError::NoEntry); [`KeyExists`](PollError::KeyExists) if there is a probe;
    /// [`Bound`](PollError::Bound) for a binding that reports nothing; [`OneShot`](PollError::OneShot).
    ///
    /// # Panics
    ///
    /// If called by a probe of this poller, and if the probe panics. The probe is not attached then.
    pub fn attach_probe(&self, key: usize, probe: impl Probe + 'static) -> Result<(), PollError> {
        let mut probe = Box::new(probe);
        // Whatever comes after this notifies. Not under the other lock, which a slow probe would hold up.
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

    /// Registers a source that has nothing but a probe. A thread that is awake in `wait` asks the probe. After
    /// [`end`](Probe::end), a thread that gives the source something to do has to [notify](Self::notify) the poller.
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
                // The poller's first probe may have been added in between.
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
        // Outside the locks: an observer's call, its drop or the drop of a probe may take them.
        registration.deliver_rest();
        go_on(probe.as_mut().and_then(|probe| probe.panicked.take()));
        Ok(())
    }

    /// Ends a registration, under the lock. Returns deleted items, which the caller drops outside the lock.
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
    /// Takes no lock and never waits, so a handler of a POSIX signal may call it.
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
    /// A thread that was asleep wakes the next one when it returns. Until all of them have returned, and all outer
    /// loops that were armed have called [`disarm`](super::PollerFd::disarm), a thread that would fall asleep returns
    /// from `wait` instead.
    ///
    /// Takes a lock for a moment, so a handler of a POSIX signal must not call it.
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

    /// Waits until something is ready, a thread calls [`notify`](Self::notify), or `timeout` has passed. Replaces the
    /// content of `events` by what is ready, and returns how much that is: 0 after a timeout, and possibly after a
    /// notification.
    ///
    /// `None` is no timeout, and so is a timeout too long for the clock, such as `Duration::MAX`. With a timeout of
    /// zero it never sleeps. The clock is read only if nothing is ready at first. However much arrives at
    /// [bindings](Self::bind), the wait ends after the timeout. The next wait carries over what is left then. A signal
    /// handler that runs does not end the wait, unless it calls `notify`.
    ///
    /// A report says all that the source is ready for now, of what it is watched for. So an event that was signalled
    /// and has been read in the meantime is not reported. What a thread did before it signalled an event is visible to
    /// the thread that then reads the event, as with [`Event::readiness`](crate::Event::readiness).
    ///
    /// # Panics
    ///
    /// If a [probe](Probe) panics, or an observer of the event of a [binding](Self::bind) that is carried over. What
    /// has been found by then is in `events`. What else was ready is ready for the next wait. Other threads that wait
    /// are woken if need be, and miss nothing.
    ///
    /// # Errors
    ///
    /// [`NoCapacity`](PollError::NoCapacity), at once. [`Os`](PollError::Os) or [`BadFd`](PollError::BadFd) if other
    /// code has closed a descriptor that the poller owns.
    #[doc(alias = "epoll_wait")]
    #[doc(alias = "poll")]
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<usize, PollError> {
        self.wait_within(events, Limit::of(timeout))
    }

    /// As [`wait`](Self::wait), up to a point in time. With a deadline in the past it never sleeps.
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

    /// Looks once, without sleeping. It looks at descriptors in one call of 32, and makes no system call in the other
    /// 31. For a device that has other work to do, and looks in between.
    ///
    /// It reports what a [`wait`](Self::wait) reports, in the same order, and returns how much that is.
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

    /// Implements [`PollerFd::arm`](super::PollerFd::arm). `Some` if the outer loop may sleep; the seat goes back to
    /// [`disarm`](Self::disarm).
    #[cfg(target_os = "linux")]
    pub(super) fn arm(&self, events: &mut Events) -> Result<Option<Seat>, PollError> {
        self.fill(events, |events| {
            let result = self.try_arm(events);
            // If the loop may sleep, there is nothing to report, and all probes are cold.
            if !matches!(result, Ok(Some(_))) {
                self.heat_reported(events);
            }
            result
        })
    }

    /// As [`sleep`](Self::sleep), without the sleep itself: the outer loop sleeps, and watches the same epoll instance.
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
        // The look hears the bell, and the attempt below finds what the bell was rung for. So the loop falls asleep
        // with a silent bell, unless it rings after the announcement. The look may use up the wake-up of another
        // thread, so it comes after `enter`.
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

    /// Counts a thread or an outer loop that is about to sleep. `None` if it must not sleep, because others have not
    /// yet heard that all were notified.
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
            // Threads that sleep may rely on this one to ask the probes. A thread that is woken ends the hot ones.
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
        // The thread that is to end the wait may be among those held back.
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

    /// Looks once at events and probes, and before that at the descriptors if it is their turn. Returns whether `wait`
    /// is to return.
    fn look_once(&self, events: &mut Events) -> Result<bool, PollError> {
        // Two threads that count at once count as one.
        let waits = self.busy_waits.load(Ordering::Relaxed) + 1;
        self.busy_waits.store(waits, Ordering::Relaxed);
        if waits >= BUSY_WAITS {
            self.take_fds(events)?;
        }
        // Whichever comes first may take all the room, so the two take turns.
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

    /// Looks at the descriptors, and then at the events again, for what bindings have carried over.
    fn look_at_fds(&self, events: &mut Events) -> Result<bool, PollError> {
        Ok(self.take_fds(events)? && self.harvest(events, None))
    }

    /// Takes over the descriptors that are ready, without sleeping. Returns whether the poller has descriptors.
    fn take_fds(&self, events: &mut Events) -> Result<bool, PollError> {
        self.busy_waits.store(0, Ordering::Relaxed);
        let Some(fds) = self.shared.fds.get() else {
            return Ok(false);
        };
        // It may hear the bell, and so use up the wake-up of a sleeper. As one of the waiters it wakes the next one
        // when it leaves.
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
            Asker::NoThread => None,
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
        // A probe or an observer may panic. The lock is taken after that, and not while the thread unwinds.
        let sleep = || self.sleep_seated(events, deadline);
        let slept = panic::catch_unwind(AssertUnwindSafe(sleep));
        self.registered().sleepers.leave(seat);
        slept.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    fn sleep_seated(
        &self,
        events: &mut Events,
        deadline: Option<Instant>,
    ) -> Result<bool, PollError> {
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
        // If probes have found something, events have their turn in the next wait.
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

    /// Called before a report: the probes of what is in it get hot, unless another thread sleeps, which no notification
    /// would wake then.
    fn heat_reported(&self, events: &mut Events) {
        if !self.probes.any() {
            return;
        }
        let others_sleep = || self.shared.waiters.count() != 0;
        if self.probes.report(events, others_sleep) {
            self.shared.wake();
        }
    }

    /// Puts the events that are ready into `events`, and carries over for bindings. Returns whether `wait` is to
    /// return. Not called by a thread that stands among the waiters: it calls observers, which may panic, or wake the
    /// thread.
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
        // Dropped outside the lock, because that may drop an event and its observers.
        let mut gone = Vec::new();
        let mut registered = self.registered();
        registered.take_in(&self.shared);
        let Registered { ready, deleted, .. } = &mut *registered;
        // A thread that falls asleep stands among the waiters, and then comes here, under the same lock. Either it sees
        // what this thread leaves hot, and arms it, or this thread sees it among the waiters.
        let may_be_hot = self.shared.waiters.count() == 0;
        let mut armed = Vec::new();
        for _ in 0..ready.len() {
            // Each armed item may turn out to be ready, and has room reserved.
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

    /// Carries over for up to `most` bindings, and after the deadline for one. Returns whether it has carried over for
    /// any. The other bindings stay in the queue meanwhile, for other threads, because an observer may take its time or
    /// panic. No thread need be woken for them: the thread that queued one has woken a thread, if any slept, and a
    /// thread that leaves the waiters wakes another if the queue is not empty.
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
        // Dropped outside the lock.
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

    /// Called under the lock, when the queue has changed.
    fn note_backlog(&self, registered: &Registered) {
        self.backlog.store(registered.queued(), Ordering::Relaxed);
    }

    /// Called by a thread that leaves the waiters while others stay: wakes one of them, if something is left for it.
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
        // `leave` itself wakes no thread.
        Release::NOBODY
    }

    /// A relaxed check for the loop that spins; it may be out of date.
    fn seems_quiet(&self, events: &mut Events) -> bool {
        self.shared.seems_quiet(*events.told()) && self.backlog.load(Ordering::Relaxed) == 0
    }

    /// A snapshot of how often threads have looked and slept so far.
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

/// Executes one barrier for all armed items, then examines each. There is room for all of them.
fn examine_all_armed(armed: &mut Vec<&Item>, events: &mut Events, ready: &mut VecDeque<Arc<Item>>) {
    // The barrier for one event with signallers counts for all events.
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

/// The state of a thread that goes to sleep.
struct Sleep<'a> {
    poller: &'a Poller,
    events: RefCell<&'a mut Events>,
    deadline: Option<Instant>,
    /// The epoll instance to sleep in; if there is none, the thread sleeps on the futex. Chosen before each
    /// announcement, see [`Shared::wake`].
    epoll: Cell<Option<&'a Fds>>,
    failed: Cell<Option<PollError>>,
}

/// Why a thread does not fall asleep.
enum Awake {
    /// There is something to report.
    Ready,
    /// It has to carry over for this binding, after it has left the waiters.
    Binding(Arc<Item>),
    Failed(PollError),
    /// A probe has panicked. The thread leaves the waiters before it passes the panic on.
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
            // The instance was made since. If it is made after this look, `key` is out of date by then.
            None if shared.fds.get().is_some() => Outcome::Woken,
            None => shared.waiters.sleep(key, self.deadline),
        };
        self.epoll.set(shared.fds.get());
        outcome
    }
}

impl Drop for Poller {
    /// If an observer or a probe panics, the rest is ended nevertheless.
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
    /// A snapshot of the fields for diagnosing a poller that seems stuck.
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
