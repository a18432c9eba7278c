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
/// signals that are under way, so that no interrupt from before comes after them. Inside an observer's or a sink's call
/// they do not wait: they take effect for later signals, and what other threads are in the middle of may still happen
/// after the outermost call has ended. No other method waits for other threads, except
/// [`synchronize`](Self::synchronize), [`save`](Self::save) and [`restore`](Self::restore). The page
/// [`guide::locks`](crate::guide::locks) says which locks a caller may hold.
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
    /// By the address of the event. An event has one irqfd at most.
    irqfds: Mutex<HashMap<usize, Assigned>>,
    core: Arc<Core>,
}

struct Assigned {
    gsi: u32,
    counters: Arc<Counters>,
    /// Owned by the observation.
    injector: Weak<Injector>,
    /// Its drop deassigns the event, and waits, so it comes after the lock has been released.
    _observation: Observation,
}

impl Router {
    /// Calls `sink` on the threads that signal. An [`Arc`] or a `Box` of a sink is a sink, too, also of a
    /// `dyn InterruptSink`.
    #[must_use]
    pub fn new(sink: impl InterruptSink + 'static) -> Self {
        Self::of(Core {
            _worker: None,
            board: Arc::new(Board::new(Arc::new(sink), None)),
        })
    }

    /// Calls `sink` on a thread of the router's own, for a sink that may sleep. (KVM does so for pins.)
    ///
    /// A signal then is a request to that thread, and signals that arrive before the thread gets to it are coalesced
    /// with it. A deassign, a change of routes and a [`synchronize`](Self::synchronize) return when the thread has
    /// carried out all requests made before. When the last handle to the router, its irqfds and its level sources is
    /// dropped, the drop waits until the thread has done what is left and has ended. Inside a callback the drop does
    /// not wait, and the thread ends by itself. Inside the sink's call on that thread nothing waits, as in any
    /// callback: what has to be waited for comes after the call.
    ///
    /// # Errors
    ///
    /// The thread could not be spawned.
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
    /// The irqfd consumes the event: it takes the count away (one unit of a [semaphore](Event::semaphore)) inside the
    /// signaller's call, before threads, pollers and tasks that wait for the event are woken. So they rarely find
    /// anything to read. (If the signal is made inside an observer's call, the irqfd takes the count when that call has
    /// returned, and the waiters are woken before that. They may then read a count that interrupts nevertheless.) What
    /// interrupts is the signal, whatever it adds: a write of 0 interrupts, too.
    ///
    /// If the event has a count when it is assigned, `assign` interrupts once, before it returns, and leaves the count
    /// in the event. The next signal takes it away. A signal made at the same time as `assign` may interrupt twice,
    /// here and by itself.
    ///
    /// A device whose events are fields passes `EventHandle::of_field(&device, |d| &d.interrupt)`: see
    /// [`of_field`](EventHandle::of_field).
    ///
    /// Several events may interrupt through one GSI. The GSI is not checked: if it has no route, or is too high to have
    /// one, the signals' counts are taken, and the signals are lost. This does not wait for other threads.
    ///
    /// # Errors
    ///
    /// The event has an irqfd already, or the sink refuses. Nothing has been assigned then.
    #[doc(alias = "register_irqfd")]
    #[doc(alias = "KVM_IRQFD")]
    pub fn assign(&self, event: impl Into<EventHandle>, gsi: u32) -> Result<Irqfd, AssignError> {
        self.assign_irqfd(event.into(), gsi, None, Injector::begin)
    }

    /// As [`assign`](Self::assign), for a level-triggered interrupt: a signal raises the line, which stays up until the
    /// guest's end of interrupt is [`ack`](Self::ack)ed. Then the line is lowered, and `resample` is signalled together
    /// with the resample events of all other irqfds of the GSI. A device that still needs service signals `event`
    /// again. It learns of the resample event in an observer, as below, or on a thread that waits for the event.
    /// Between the end of interrupt and the moment at which such a thread looks, the line is down, so the thread's
    /// signal may come when the guest has been served meanwhile: a spurious interrupt. (`KVM_IRQFD_FLAG_RESAMPLE`)
    ///
    /// A signal while the line is up is coalesced, so a signal before the ack does not interrupt again after it. This
    /// is why the device must check at the resample event whether it still needs service. On a GSI that is routed to a
    /// message, which has no level, each signal sends a message.
    ///
    /// When the last resampling irqfd of a GSI is deassigned, the line goes down, unless it is held up otherwise.
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
    /// let _irqfd = router.assign_with_resample(&interrupt, 10, &resample)?;
    /// // The device: raise the line again as long as there is something for the guest to do.
    /// let requests = Arc::new(AtomicU32::new(2));
    /// let _device = Observation::new(Arc::clone(&resample), Interest::Signals, {
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
    #[doc(alias = "register_irqfd_with_resample")]
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
        // So that the observation has the last handle by the time at which another thread can drop it.
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

    /// Ends an [`assign`](Self::assign) or [`assign_with_resample`](Self::assign_with_resample) of the same event and
    /// GSI. If there is none, this does nothing. (`KVM_IRQFD_FLAG_DEASSIGN`)
    ///
    /// This waits for callbacks that are under way, so there are [locks](crate::guide::locks) that the caller must not
    /// hold.
    ///
    /// When this returns, nothing is injected for the event any more. It is an event like others, and may be assigned
    /// again.
    ///
    /// No signal is lost. Each has interrupted, or is in the count, where the next assignment finds it. `assign` has
    /// interrupted once for the count that it found, and left it there. `deassign` removes that count, unless a signal
    /// has done so. Of a semaphore it removes one unit of what is left, also after signals, as KVM does. (A signal that
    /// is made at the same time stays. If other threads read from the event, a signal as large as what they read may be
    /// taken for that count.) A signal that a mask keeps [pending](Self::is_pending) is given back to the count, as one
    /// signal. The last irqfd of a GSI takes the pending bit out, so that the next one does not interrupt for it.
    ///
    /// The level of a resampling irqfd ends with it. It is not given back, as in KVM, even if a mask kept it from the
    /// guest. The caller then asks the device whether it needs service, as an [`unmask`](Self::unmask) would have done.
    ///
    /// If two threads deassign the same irqfd at the same time, one of the calls waits and the other may return before.
    /// Inside an observer's or a sink's call this does not wait: the event may be assigned again when the outermost
    /// call has ended, provided that no other thread is inside such a call then, and otherwise later, see
    /// [`reclaim`](crate::reclaim). Signals stay in the count from the start. The pending bit goes at the end, so an
    /// irqfd that is assigned to the GSI before that may interrupt for it.
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
    /// This waits for callbacks that are under way, so there are [locks](crate::guide::locks) that the caller must not
    /// hold.
    ///
    /// A signal finds either the old routes or the new ones. A line that is up is lowered at the old pin and raised at
    /// the new one. Signals that were lost for want of a route stay lost. If the routes are the same as before, nothing
    /// happens.
    ///
    /// # Errors
    ///
    /// The sink refuses the routes. They then are as they were.
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

    /// Gives several GSIs other routes, or none, in one step, as [`set_routes`](Self::set_routes). It costs as much as
    /// one change. The routes of other GSIs stay. (See [`Routes::set_all`].)
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
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.board().routes()
    }

    /// Keeps interrupts of `gsi` back, as the mask bit of an MSI-X vector or of an IOAPIC's pin does. Masks do not
    /// nest: one [`unmask`](Self::unmask) ends any number of calls. A GSI begins unmasked, so a device whose vectors
    /// are masked after a reset, as those of MSI-X are, masks theirs.
    ///
    /// A line that is up goes down at the sink. Signals set the pending bit, or the level of the line. A signal that is
    /// made after this has returned does not interrupt. This does not wait for other threads: injections that they have
    /// begun before, or the lowering of the line, may be under way when it returns. [`synchronize`](Self::synchronize)
    /// waits for them.
    pub fn mask(&self, gsi: u32) {
        let board = self.board();
        board.ask(board.lines().get(gsi), Request::Mask);
    }

    /// Ends a [`mask`](Self::mask), and injects what is pending, by the route there is now.
    ///
    /// A line that resampling irqfds assert is not raised, because their devices may need no service any more. Instead
    /// their resample events are signalled, as after an [`ack`](Self::ack), and a device that needs service signals
    /// again.
    pub fn unmask(&self, gsi: u32) {
        let board = self.board();
        board.ask(board.lines().get(gsi), Request::Unmask);
    }

    /// Gives a masked vector another route, then unmasks it. What is pending, and what is signalled meanwhile, goes by
    /// the new route. This is how a guest moves a vector: it masks, writes and unmasks the entry of the MSI-X table.
    ///
    /// If the route is the same as before, this is just an [`unmask`](Self::unmask). It waits for no injection: one by
    /// the old route that another thread has begun before may be under way when this returns. It waits for changes of
    /// routes that other threads are making, and so for the sink's [`set_routes`](InterruptSink::set_routes) of those.
    ///
    /// # Errors
    ///
    /// As for [`set_route`](Self::set_route). The GSI then is still masked.
    pub fn unmask_with_route(&self, gsi: u32, route: Route) -> Result<(), RoutingError> {
        self.board().reroute(|all| all.set(gsi, Some(route)))?;
        self.unmask(gsi);
        Ok(())
    }

    /// As [`unmask_with_route`](Self::unmask_with_route) for many GSIs, with one change of routes. For a guest that
    /// enables all vectors of a device.
    ///
    /// # Errors
    ///
    /// The routes are invalid, or the sink refuses them. All routes then are as they were, and the GSIs are still
    /// masked.
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

    /// Whether `gsi` is [masked](Self::mask). The value may be stale.
    #[must_use]
    #[doc(alias = "msix_is_masked")]
    pub fn is_masked(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_masked())
    }

    /// Waits until every injection that has begun before has ended, on all threads. (`synchronize_irq`)
    ///
    /// With a [worker](Self::with_worker), this waits until the worker has carried out all requests made before. Inside
    /// an observer's or a sink's call it does not wait; elsewhere there are [locks](crate::guide::locks) that the
    /// caller must not hold.
    pub fn synchronize(&self) {
        self.board().wait_in_flight();
    }

    /// The pending bit of a masked GSI, as a guest may read it in the pending bit array (PBA). The value may be stale.
    ///
    /// The bit is cleared when the interrupt is injected, when the bit is [taken](Self::take_pending), and when the
    /// last irqfd of the GSI is deassigned (QEMU clears the bit of a vector that is no longer in use, too). A change of
    /// routes does not clear it. The mask stays when the irqfds go.
    #[must_use]
    #[doc(alias = "msix_is_pending")]
    #[doc(alias = "pba")]
    pub fn is_pending(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_pending())
    }

    /// Sets the pending bit, as a signal of an irqfd does: a masked GSI keeps it, and one that is not masked interrupts
    /// at once, by a message or an edge of its pin. (A line that is up has no edge, and drops it.) The bit of a masked
    /// GSI that never had an irqfd stays until it is injected or taken.
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

    /// Holds a line up, or lets it go, without an event: the counterpart of `KVM_IRQ_LINE`.
    ///
    /// The line is up as long as this, a [level source](Self::level_source) or a resampling irqfd holds it up. All
    /// callers of this are one holder, and the last call decides. **Devices that share a pin use a level source each.**
    pub fn set_level(&self, gsi: u32, level: bool) {
        let board = self.board();
        board.hold(board.lines().get(gsi), |holders| holders.vmm = level);
    }

    /// A device's hold on a line, for a level-triggered interrupt without an irqfd. It does not hold the line up at
    /// first.
    ///
    /// Devices that share a pin, as PCI functions share INTx, have one each: [`set_level`](Self::set_level) is one
    /// holder for all of its callers, so one device's `false` would lower what another one still holds up.
    #[doc(alias = "intx")]
    pub fn level_source(&self, gsi: u32) -> LevelSource {
        let core = &self.inner.core;
        LevelSource::new(Arc::clone(core), Arc::clone(core.board.lines().get(gsi)))
    }

    /// The guest's end of interrupt on `gsi`. The line is lowered, then the resample events of its irqfds are
    /// signalled, whatever has raised the line. If the line is still held up, it is raised again. To be called by the
    /// interrupt controller's model, without a [lock](crate::guide::locks) that the sink's calls take. A GSI without
    /// resampling irqfds needs no acks and ignores them.
    ///
    /// If another thread is driving the line at the moment, that thread does all this soon; this does not wait for it.
    ///
    /// # In the model of an IOAPIC
    ///
    /// At an end of interrupt, the model clears its own in-service state (the remote IRR), calls `ack` without its
    /// lock, and then interrupts if the pin is up and not in service. In this order:
    ///
    /// * A rise that the sink is told inside `ack` is the next interrupt. A model that still counted as in service
    ///   would lose it.
    /// * With resampling irqfds, the line was lowered. A pin that is up has risen inside `ack`, has interrupted and is
    ///   in service, so the last step does nothing.
    /// * Without, `ack` does nothing. A pin that a [level source](Self::level_source) holds up stays up, the sink is
    ///   told of nothing, and the last step interrupts again, as an IOAPIC does.
    ///
    /// ```
    /// # use doorbell::Event;
    /// # use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
    /// # use std::sync::{Arc, Mutex};
    /// const PIN: u32 = 10;
    ///
    /// #[derive(Default)]
    /// struct Pin {
    ///     up: bool,
    ///     in_service: bool,
    ///     interrupts: u32,
    /// }
    ///
    /// impl Pin {
    ///     fn deliver(&mut self) {
    ///         if self.up && !self.in_service {
    ///             self.in_service = true;
    ///             self.interrupts += 1; // a message to a local APIC
    ///         }
    ///     }
    /// }
    ///
    /// #[derive(Default)]
    /// struct Ioapic(Mutex<Pin>);
    ///
    /// impl InterruptSink for Ioapic {
    ///     fn set_level(&self, _gsi: u32, _pin: u32, level: bool) {
    ///         let mut pin = self.0.lock().unwrap();
    ///         pin.up = level;
    ///         pin.deliver();
    ///     }
    ///     fn signal_msi(&self, _gsi: u32, _message: MsiMessage) {}
    /// }
    ///
    /// impl Ioapic {
    ///     fn end_of_interrupt(&self, router: &Router) {
    ///         self.0.lock().unwrap().in_service = false;
    ///         router.ack(PIN); // without the lock: this calls `set_level`
    ///         self.0.lock().unwrap().deliver();
    ///     }
    /// }
    ///
    /// let ioapic = Arc::new(Ioapic::default());
    /// let router = Router::new(ioapic.clone());
    /// router.set_routes(Routes::identity(24))?;
    /// let interrupts = || ioapic.0.lock().unwrap().interrupts;
    ///
    /// // A level source alone: the interrupt comes back until the device lets go.
    /// let device = router.level_source(PIN);
    /// device.set_level(true);
    /// ioapic.end_of_interrupt(&router);
    /// assert_eq!(interrupts(), 2);
    /// device.set_level(false);
    /// ioapic.end_of_interrupt(&router);
    /// assert_eq!(interrupts(), 2);
    ///
    /// // With a resampling irqfd as well, each end lowers the line, and what holds it up raises it.
    /// let (interrupt, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
    /// let _irqfd = router.assign_with_resample(&interrupt, PIN, &resample)?;
    /// interrupt.signal();
    /// device.set_level(true);
    /// assert_eq!(interrupts(), 3);
    /// ioapic.end_of_interrupt(&router);
    /// assert_eq!((interrupts(), router.level(PIN)), (4, true));
    /// device.set_level(false);
    /// ioapic.end_of_interrupt(&router);
    /// assert_eq!((interrupts(), router.level(PIN)), (4, false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// If another thread is driving the line, its fall may come after this has returned. Such a model then interrupts
    /// once too often, and the guest finds nothing to do.
    #[doc(alias = "eoi")]
    #[doc(alias = "resample")]
    #[doc(alias = "end of interrupt")]
    pub fn ack(&self, gsi: u32) {
        let line = self.board().lines().find(gsi);
        if let Some(line) = line.filter(|line| line.has_resamplers()) {
            self.board().ask(line, Request::Ack);
        }
    }

    /// Whether the line of `gsi` is up at its pin, as the sink has been told last. The value may be stale. It is no
    /// reason for the model of an IOAPIC to interrupt again: see [`ack`](Self::ack).
    ///
    /// It is not up while it is masked or has no route to a pin, even if something [holds it up](Self::is_asserted).
    #[must_use]
    pub fn level(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_up())
    }

    /// Whether anything holds the line of `gsi` up, masked or not: [`set_level`](Self::set_level), a
    /// [level source](Self::level_source), or a resampling irqfd whose signal the guest has not acked. It is what the
    /// interrupt status bit of a PCI function says. The value may be stale.
    #[must_use]
    #[doc(alias = "interrupt_status")]
    pub fn is_asserted(&self, gsi: u32) -> bool {
        let line = self.board().lines().find(gsi);
        line.is_some_and(|line| line.is_asserted())
    }

    /// How often each thing has happened on the line of `gsi`.
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

/// The key of an event in the map. An assigned event lives, so no other event has its address.
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
/// (Keep it under a name such as `_irqfd`: what is assigned to `_` is dropped at once.)
///
/// The event may be [deassigned](Router::deassign) before; this then does nothing, even if the event has been assigned
/// again since.
#[must_use = "the event is deassigned when its irqfd is dropped"]
pub struct Irqfd {
    /// `None` if the drop is to do nothing.
    router: Option<Router>,
    event: EventHandle,
    gsi: u32,
    counters: Arc<Counters>,
}

impl Irqfd {
    /// The event.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        &self.event
    }

    /// Its GSI.
    #[must_use]
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// How often it was signalled, and what came of it.
    #[must_use]
    pub fn counters(&self) -> IrqfdCounters {
        self.counters.get()
    }

    /// Leaves the event assigned without a guard. It is then [deassigned](Router::deassign) explicitly, or with the
    /// router.
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
