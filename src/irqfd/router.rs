use super::backlog::Backlog;
use super::board::Board;
use super::injector::{Core, Counters, Injector, SavedIrqfd};
use super::line::{Pending, Request};
use super::worker::Worker;
use super::{
    AssignError, Eoi, InterruptSink, IrqfdCounters, LevelSource, LineCounters, Route, RouteError,
    Routes, RoutingError,
};
use crate::Event;
use crate::event::{EventHandle, Interest, Observation};
use crate::sync::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::ptr;
use std::sync::{Arc, PoisonError, Weak};

/// The interrupt lines of one virtual machine: which events interrupt, and where to. Clones are handles to the same
/// one.
///
/// A signal to an assigned event takes no lock on its way to the sink. Deassigning and changes of routes wait for
/// signals that are under way, so that nothing happens after them that belongs before; not so inside an observer's or a
/// sink's call, where they take effect for what comes after and wait for nothing: what other threads are in the middle
/// of may still happen after the outermost call has ended. All else waits for nobody. Which locks a caller may hold is
/// said [in one place](super#locks-that-a-caller-may-hold).
///
/// ```
/// use doorbell::Event;
/// use doorbell::irqfd::{InterruptSink, MsiMessage, Route, Router};
/// use std::sync::{Arc, Mutex};
///
/// /// Where a VMM would have the local APICs.
/// #[derive(Default)]
/// struct Cpus(Mutex<Vec<u32>>);
///
/// impl InterruptSink for Cpus {
///     fn set_level(&self, _gsi: u32, _pin: u32, _level: bool) {}
///     fn signal_msi(&self, _gsi: u32, message: MsiMessage) {
///         self.0.lock().unwrap().push(message.data);
///     }
/// }
///
/// let cpus = Arc::new(Cpus::default());
/// let router = Router::new(cpus.clone());
/// let message = MsiMessage::new(0xfee0_0000, 0x41);
/// router.set_route(24, Some(Route::Msi(message)))?;
///
/// let queue_done = Arc::new(Event::new(0));
/// let irqfd = router.assign(&queue_done, 24)?;
/// queue_done.signal(); // a device, done with a request
/// assert_eq!(*cpus.0.lock().unwrap(), [0x41]);
/// assert_eq!(queue_done.count(), 0); // the irqfd has taken it
///
/// router.mask(24); // the guest masks the MSI-X vector
/// queue_done.signal();
/// queue_done.signal();
/// assert!(router.is_pending(24)); // in the pending bit array
/// router.unmask(24);
/// assert_eq!(*cpus.0.lock().unwrap(), [0x41, 0x41]);
/// assert_eq!(irqfd.counters().coalesced, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    /// By the address of the event, which has one irqfd at most.
    irqfds: Mutex<HashMap<usize, Assigned>>,
    core: Arc<Core>,
}

struct Assigned {
    gsi: u32,
    counters: Arc<Counters>,
    /// What the observation has.
    injector: Weak<Injector>,
    /// Its drop is the deassigning, and waits, so it comes when the lock has been released.
    _observation: Observation,
}

impl Router {
    /// Calls `sink` on the threads that signal. An [`Arc`] of a sink is one, also of a `dyn InterruptSink`.
    pub fn new(sink: impl InterruptSink + 'static) -> Self {
        Self::of(Core {
            _worker: None,
            board: Arc::new(Board::new(Arc::new(sink), None)),
        })
    }

    /// Calls `sink` on a thread of the router's own, for a sink that may sleep. (KVM does so for pins.)
    ///
    /// A signal then is a request to that thread, which signals that come before it gets there are coalesced with. What
    /// has been requested is done before a deassign, a change of routes or a [`synchronize`](Self::synchronize)
    /// returns. The last handle to go, of the router, its irqfds and level sources, waits until the thread has ended,
    /// and nothing is left undone; inside a callback, it goes at once, and the thread ends when it has done what is
    /// left. Inside the sink's call on that thread nothing waits, as in any callback: it comes after the call.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub fn with_worker(sink: impl InterruptSink + 'static) -> io::Result<Self> {
        let board = Arc::new(Board::new(Arc::new(sink), Some(Backlog::new())));
        Ok(Self::of(Core {
            _worker: Some(Worker::start(&board)?),
            board,
        }))
    }

    fn of(core: Core) -> Self {
        Router {
            inner: Arc::new(Inner {
                irqfds: Mutex::new(HashMap::new()),
                core: Arc::new(core),
            }),
        }
    }

    /// Has each signal of `event` interrupt through `gsi`, as an edge or a message, until the [`Irqfd`] is dropped or
    /// the event deassigned. (`KVM_IRQFD`)
    ///
    /// The irqfd owns the event: it takes the count away (one unit of a [semaphore](Event::semaphore)) inside the
    /// signaller's call, before threads, pollers and tasks that wait for the event are woken. Others rarely find
    /// anything to read. (If the signal is made inside an observer's call, the irqfd takes it when that call has
    /// returned, and the others are woken before: they may read what then interrupts nevertheless.) What triggers is
    /// the signal, not the count: a write of 0 interrupts. If there is a count already, that interrupts once, now, and
    /// stays until the next signal; a signal made at the same time may interrupt twice, here and by itself.
    ///
    /// Several events may interrupt through one GSI. The GSI is not checked: if it has no route, or cannot have one,
    /// signals are taken and lost. This waits for nobody.
    ///
    /// # Errors
    ///
    /// The event has an irqfd already, or the sink refuses. Nothing was assigned then.
    pub fn assign(&self, event: impl Into<EventHandle>, gsi: u32) -> Result<Irqfd, AssignError> {
        self.assign_irqfd(event.into(), gsi, None, Injector::begin)
    }

    /// As [`assign`](Self::assign), for a level-triggered interrupt: a signal raises the line, which stays up until the
    /// guest's end of interrupt is [`ack`](Self::ack)ed. Then the line is lowered, and `resample` signalled, as are the
    /// resample events of all irqfds of the GSI. A device that still has something to say signals `event` again, be it
    /// inside an observer of `resample`. (`KVM_IRQFD_FLAG_RESAMPLE`)
    ///
    /// A signal while the line is up is coalesced, so one that comes before the ack is not heard again after it: that
    /// is what the resample event is for. On a GSI that is routed to a message, which has no level, each signal sends
    /// one.
    ///
    /// When the last resampling irqfd of a GSI is deassigned, the line goes down, unless somebody else holds it up.
    ///
    /// # Errors
    ///
    /// As for `assign`; or the two events are the same.
    ///
    /// ```
    /// # use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
    /// # use doorbell::{Event, event::{Change, Interest, Observation}};
    /// # use std::sync::{Arc, Mutex, atomic::{AtomicU32, Ordering}};
    /// # #[derive(Default)]
    /// # struct Ioapic(Mutex<Vec<bool>>);
    /// # impl InterruptSink for Ioapic {
    /// #     fn set_level(&self, _: u32, _: u32, level: bool) { self.0.lock().unwrap().push(level); }
    /// #     fn signal_msi(&self, _: u32, _: MsiMessage) {}
    /// # }
    /// # let ioapic = Arc::new(Ioapic::default());
    /// let router = Router::new(ioapic.clone());
    /// router.set_routes(Routes::identity(24))?;
    ///
    /// let (interrupt, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
    /// let irqfd = router.assign_with_resample(&interrupt, 10, &resample)?;
    /// // The device: raise the line again as long as there is something for the guest to do.
    /// let requests = Arc::new(AtomicU32::new(2));
    /// let device = Observation::new(Arc::clone(&resample), Interest::Signals, {
    ///     let (interrupt, requests) = (Arc::clone(&interrupt), Arc::clone(&requests));
    ///     Arc::new(move |_: Change| {
    ///         resample.try_read();
    ///         if requests.load(Ordering::Relaxed) != 0 {
    ///             interrupt.signal();
    ///         }
    ///     })
    /// });
    /// interrupt.signal();
    /// // The guest serves one request after the other.
    /// for _ in 0..2 {
    ///     requests.fetch_sub(1, Ordering::Relaxed);
    ///     router.ack(10);
    /// }
    /// assert_eq!(*ioapic.0.lock().unwrap(), [true, false, true, false]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn assign_with_resample(
        &self,
        event: impl Into<EventHandle>,
        gsi: u32,
        resample: impl Into<EventHandle>,
    ) -> Result<Irqfd, AssignError> {
        let (event, resample) = (event.into(), resample.into());
        if event.ptr_eq(&resample) {
            return Err(AssignError::SameEvent);
        }
        self.assign_irqfd(event, gsi, Some(resample), Injector::begin)
    }

    /// `begin` is called when the event's signals interrupt, before this returns.
    pub(super) fn assign_irqfd(
        &self,
        event: EventHandle,
        gsi: u32,
        resample: Option<EventHandle>,
        begin: impl FnOnce(&Injector),
    ) -> Result<Irqfd, AssignError> {
        let claim = Claim::on(&event).ok_or(AssignError::Busy)?;
        let core = &self.inner.core;
        let line = Arc::clone(core.board.lines().get(gsi));
        let way_back = Eoi::new(gsi, &core.board);
        let connected = core.board.sink().connect(way_back, resample.is_some());
        connected.map_err(AssignError::Refused)?;
        let counters = Arc::new(Counters::default());
        let injector = Arc::new(Injector::new(
            core,
            line,
            event.clone(),
            resample,
            &counters,
        ));
        mem::forget(claim);
        let observation = Observation::new(
            event.clone(),
            Interest::Signals,
            Arc::clone(&injector) as Arc<_>,
        );
        begin(&injector);
        let in_observation = Arc::downgrade(&injector);
        // The observation has the last handle when somebody can drop it.
        drop(injector);
        self.lock().insert(
            key(&event),
            Assigned {
                gsi,
                counters: Arc::clone(&counters),
                injector: in_observation,
                _observation: observation,
            },
        );
        Ok(Irqfd {
            router: Some(self.clone()),
            event,
            gsi,
            counters,
        })
    }

    /// Ends what [`assign`](Self::assign) or [`assign_with_resample`](Self::assign_with_resample) of the same event and
    /// GSI began; if there was no such thing, does nothing. (`KVM_IRQFD_FLAG_DEASSIGN`)
    ///
    /// This waits for callbacks that are under way, so there are [locks](super#locks-that-a-caller-may-hold) that the
    /// caller must not hold.
    ///
    /// When this returns, nothing is injected for the event any more: it is an event like others, and may be assigned
    /// again.
    ///
    /// No signal is lost. Each has interrupted, or is in the count, where the next assignment finds it. What the event
    /// held when it was assigned has interrupted and is taken away now, if no signal has taken it before; so is one
    /// unit of a semaphore that holds something. (A signal that is made at the same time stays. If others read from the
    /// event, one as large as what they read may be mistaken for that.) What a mask keeps [pending](Self::is_pending)
    /// is given back to the count, as one signal. The last irqfd of a GSI takes the pending bit along, so that the next
    /// one does not interrupt for it.
    ///
    /// A resampling irqfd has a level, which ends with it and is not given back, as in KVM, also if a mask kept it from
    /// the guest: whoever deassigns asks the device, as an [`unmask`](Self::unmask) would have done.
    ///
    /// If another thread deassigns the same at the same time, that one's call returns so. Inside an observer's or a
    /// sink's call this waits for nothing: the event may be assigned again when the outermost call has ended, if no
    /// other thread is inside one then; else later, see [`reclaim`](crate::reclaim). Signals stay in the count from the
    /// start. The pending bit goes at the end, so an irqfd that is assigned to the GSI before that may interrupt for
    /// it.
    pub fn deassign(&self, event: &Event, gsi: u32) {
        self.remove(event, |assigned| assigned.gsi == gsi);
    }

    fn remove(&self, event: &Event, is: impl FnOnce(&Assigned) -> bool) {
        let mut irqfds = self.lock();
        let removed = match irqfds.get(&key(event)) {
            Some(assigned) if is(assigned) => irqfds.remove(&key(event)),
            _ => None,
        };
        drop(irqfds);
        drop(removed);
    }

    /// Replaces all routes in one step. When this returns, nothing is injected by the old ones any more.
    /// (`KVM_SET_GSI_ROUTING`)
    ///
    /// This waits for callbacks that are under way, so there are [locks](super#locks-that-a-caller-may-hold) that the
    /// caller must not hold.
    ///
    /// A signal finds the old routes or the new ones. Lines that are up move: they are lowered at the old pin and
    /// raised at the new one. What was lost without a route stays lost. If the routes are the same as before, nothing
    /// happens.
    ///
    /// # Errors
    ///
    /// The sink refuses them. Then the routes are as they were.
    pub fn set_routes(&self, routes: Routes) -> Result<(), RoutingError> {
        self.reroute_and_wait(|all| {
            *all = routes;
            Ok(())
        })
    }

    /// Gives one GSI another route, or none, as [`set_routes`](Self::set_routes).
    ///
    /// # Errors
    ///
    /// The route is invalid, or the sink refuses it.
    pub fn set_route(&self, gsi: u32, route: Option<Route>) -> Result<(), RoutingError> {
        self.reroute_and_wait(|all| all.set(gsi, route))
    }

    /// Gives several GSIs other routes, or none, in one step and at the price of one, as
    /// [`set_routes`](Self::set_routes). The others stay. (See [`Routes::set_all`].)
    ///
    /// # Errors
    ///
    /// The routes are invalid, or the sink refuses them. Then all are as they were.
    pub fn change_routes(
        &self,
        changes: impl IntoIterator<Item = (u32, Option<Route>)>,
    ) -> Result<(), RoutingError> {
        // Before the routes are locked: what the iterator does is the caller's affair.
        let changes: Vec<_> = changes.into_iter().collect();
        self.reroute_and_wait(|all| all.set_all(changes))
    }

    fn reroute_and_wait(
        &self,
        make: impl FnOnce(&mut Routes) -> Result<(), RouteError>,
    ) -> Result<(), RoutingError> {
        if self.board().reroute(make)? {
            self.board().wait_in_flight();
        }
        Ok(())
    }

    /// The routes now. (Inside a sink's [`set_routes`](InterruptSink::set_routes): the old ones.)
    pub fn routes(&self) -> Routes {
        self.board().routes()
    }

    /// Keeps interrupts of `gsi` back, as a guest has an MSI-X vector or a pin do. A state, not a count.
    ///
    /// Signals set the pending bit, or the level of the line, which the sink sees go down. A signal that is made after
    /// this has returned interrupts nobody. This waits for nobody: what other threads have begun before, injections or
    /// the lowering of the line, may be under way when it returns. [`synchronize`](Self::synchronize) waits for that.
    pub fn mask(&self, gsi: u32) {
        let board = self.board();
        board.ask(board.lines().get(gsi), Request::Mask);
    }

    /// Ends a [`mask`](Self::mask), and injects what is pending, by the route there is now.
    ///
    /// A line that resampling irqfds assert is not raised. Their devices may have changed their minds, so their
    /// resample events are signalled, as after an [`ack`](Self::ack), and who still wants to interrupt signals again.
    pub fn unmask(&self, gsi: u32) {
        let board = self.board();
        board.ask(board.lines().get(gsi), Request::Unmask);
    }

    /// Gives a vector another route, then unmasks it: what is pending goes the new way, as does what is signalled in
    /// between. So a guest moves a vector, with the masking, writing and unmasking of its MSI-X table entry.
    ///
    /// If the route is the same as before, this is an [`unmask`](Self::unmask) and no more. In no case does it wait for
    /// other threads: an injection by the old route that one has begun before may be under way when this returns.
    ///
    /// # Errors
    ///
    /// As for [`set_route`](Self::set_route). Then the GSI is still masked.
    pub fn unmask_with_route(&self, gsi: u32, route: Route) -> Result<(), RoutingError> {
        self.board().reroute(|all| all.set(gsi, Some(route)))?;
        self.unmask(gsi);
        Ok(())
    }

    /// As [`unmask_with_route`](Self::unmask_with_route) for many, at the price of one change of routes: for a guest
    /// that enables all vectors of a device.
    ///
    /// # Errors
    ///
    /// The routes are invalid, or the sink refuses them. Then all are as they were, and masked.
    pub fn unmask_with_routes(
        &self,
        routes: impl IntoIterator<Item = (u32, Route)>,
    ) -> Result<(), RoutingError> {
        // Before the routes are locked: what the iterator does is the caller's affair.
        let changes: Vec<_> = routes
            .into_iter()
            .map(|(gsi, route)| (gsi, Some(route)))
            .collect();
        self.board()
            .reroute(|all| all.set_all(changes.iter().copied()))?;
        for (gsi, _) in changes {
            self.unmask(gsi);
        }
        Ok(())
    }

    /// Whether `gsi` is [masked](Self::mask). A glance.
    #[must_use]
    #[doc(alias = "msix_is_masked")]
    pub fn is_masked(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_masked())
    }

    /// Waits until every injection that has begun before has ended, on all threads. (`synchronize_irq`)
    ///
    /// With a [worker](Self::with_worker), what was asked of it before is done. Inside an observer's or a sink's call
    /// this does not wait; elsewhere there are [locks](super#locks-that-a-caller-may-hold) that the caller must not
    /// hold.
    pub fn synchronize(&self) {
        self.board().wait_in_flight();
    }

    /// The pending bit of a masked GSI, as a guest may read it in the pending bit array. A glance.
    ///
    /// The bit ends when it is injected or [taken](Self::take_pending), and with the last irqfd of the GSI, as that of
    /// a vector that is no longer in use ends in QEMU. A change of routes leaves it, and irqfds leave the mask.
    #[must_use]
    #[doc(alias = "msix_is_pending")]
    pub fn is_pending(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_pending())
    }

    /// Sets the pending bit, as a signal of an irqfd does: a masked GSI keeps it, and one that is not masked interrupts
    /// at once, by a message or an edge of its pin. (A line that is up has no edge, and drops it.)
    ///
    /// For a VMM that restores a pending bit array which it has saved itself, before the unmask, or that interrupts
    /// without an event. [`restore`](Self::restore) sets the bits itself.
    #[doc(alias = "inject")]
    #[doc(alias = "trigger")]
    #[doc(alias = "notify")]
    #[doc(alias = "msix_set_pending")]
    pub fn set_pending(&self, gsi: u32) {
        let board = self.board();
        board.ask(board.lines().get(gsi), Request::Edge);
    }

    /// Takes the pending bit out, for a VMM that keeps the pending bit array itself: it is the VMM's to inject on
    /// unmask.
    #[doc(alias = "clear_pending")]
    #[doc(alias = "msix_clr_pending")]
    pub fn take_pending(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.take_pending())
    }

    /// Holds a line up, or no more, in the name of the VMM. (`KVM_IRQ_LINE`, which has one holder in the VMM as well.)
    ///
    /// The line is up as long as this, a [level source](Self::level_source) or a resampling irqfd holds it up. All
    /// callers of this are one holder, and the last of them decides: devices that share a pin have a level source each.
    pub fn set_level(&self, gsi: u32, level: bool) {
        let board = self.board();
        board.hold(board.lines().get(gsi), |holders| holders.vmm = level);
    }

    /// A device's hold on a line, for a level-triggered interrupt without an irqfd. It does not hold the line up to
    /// begin with.
    ///
    /// Devices that share a pin, as PCI functions share INTx, have one each: [`set_level`](Self::set_level) is one
    /// holder for all of its callers, so one device's `false` would lower what another one still holds up.
    #[doc(alias = "intx")]
    pub fn level_source(&self, gsi: u32) -> LevelSource {
        let core = &self.inner.core;
        LevelSource::new(Arc::clone(core), Arc::clone(core.board.lines().get(gsi)))
    }

    /// The guest's end of interrupt on `gsi`: the line is lowered, then the resample events of its irqfds are
    /// signalled, whoever had raised it. If it is held up otherwise, it is raised again. To be called by the interrupt
    /// controller's model, without a [lock](super#locks-that-a-caller-may-hold) that the sink's calls take. A GSI
    /// without resampling irqfds needs no acks and ignores them.
    ///
    /// If another thread is driving the line at the moment, that one does it, soon; this does not wait.
    pub fn ack(&self, gsi: u32) {
        let line = self.board().lines().find(gsi);
        if let Some(line) = line.filter(|line| line.has_resamplers()) {
            self.board().ask(line, Request::Ack);
        }
    }

    /// Whether the line of `gsi` is up at its pin, as the sink has been told last. A glance.
    ///
    /// It is not, whoever [holds it up](Self::is_asserted), while it is masked or has no route to a pin.
    #[must_use]
    pub fn level(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_up())
    }

    /// Whether anything holds the line of `gsi` up, masked or not: [`set_level`](Self::set_level), a
    /// [level source](Self::level_source), or a resampling irqfd whose signal the guest has not acked. It is what the
    /// interrupt status bit of a PCI function says. A glance.
    #[must_use]
    #[doc(alias = "interrupt_status")]
    pub fn is_asserted(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_asserted())
    }

    /// What has happened on the line of `gsi`.
    #[must_use]
    pub fn line_counters(&self, gsi: u32) -> LineCounters {
        let line = self.board().lines().find(gsi);
        line.map(|line| line.counters()).unwrap_or_default()
    }

    pub(super) fn board(&self) -> &Board {
        &self.inner.core.board
    }

    /// All irqfds as they are now, in no order. `pending` finds the pending bit of a line.
    pub(super) fn save_irqfds(&self, pending: impl Fn(u32) -> Option<Pending>) -> Vec<SavedIrqfd> {
        let irqfds = self.lock();
        let injectors = irqfds.values().filter_map(|irqfd| irqfd.injector.upgrade());
        // Not the last handles: the observations are in the map.
        injectors
            .map(|injector| injector.save(pending(injector.line().gsi)))
            .collect()
    }

    pub(super) fn has_irqfds(&self) -> bool {
        !self.lock().is_empty()
    }

    pub(super) fn restored_source(&self, gsi: u32) -> LevelSource {
        let core = &self.inner.core;
        LevelSource::restored(Arc::clone(core), Arc::clone(core.board.lines().get(gsi)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Assigned>> {
        // The map is whole at every point where a holder of the lock can panic.
        let irqfds = self.inner.irqfds.lock();
        irqfds.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ownership of an event, until an injector has it.
struct Claim<'a>(&'a Event);

impl<'a> Claim<'a> {
    fn on(event: &'a Event) -> Option<Self> {
        event.claim().then(|| Claim(event))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.disclaim();
    }
}

/// Of events that live, as assigned ones do.
fn key(event: &Event) -> usize {
    ptr::from_ref(event).addr()
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gsis: Vec<u32> = self.lock().values().map(|irqfd| irqfd.gsi).collect();
        gsis.sort_unstable();
        f.debug_struct("Router")
            .field("irqfds", &gsis)
            .field("routes", &self.routes())
            .finish()
    }
}

/// An event that interrupts until this is dropped. It keeps the router. The drop waits as [`Router::deassign`] does.
///
/// The event may be [deassigned](Router::deassign) before; this then does nothing, even if the event has been assigned
/// again since.
#[must_use = "the event is deassigned when its irqfd is dropped"]
pub struct Irqfd {
    /// `None` once nothing shall be done.
    router: Option<Router>,
    event: EventHandle,
    gsi: u32,
    counters: Arc<Counters>,
}

impl Irqfd {
    /// The event.
    pub fn event(&self) -> &EventHandle {
        &self.event
    }

    /// Its GSI.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// How often it was signalled, and what came of it.
    pub fn counters(&self) -> IrqfdCounters {
        self.counters.get()
    }

    /// Leaves the event assigned without a guard, to be [deassigned](Router::deassign) by name, or with the router.
    pub fn keep(mut self) {
        self.router = None;
    }
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        if let Some(router) = self.router.take() {
            router.remove(&self.event, |assigned| {
                Arc::ptr_eq(&assigned.counters, &self.counters)
            });
        }
    }
}

impl fmt::Debug for Irqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Irqfd")
            .field("event", &*self.event)
            .field("gsi", &self.gsi)
            .field("counters", &self.counters())
            .finish()
    }
}
