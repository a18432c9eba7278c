//! `doorbell_router`: an `Arc` around a `Router`; and sinks that are callbacks.

use crate::arguments::{list, only};
use crate::event::{doorbell_event, handle};
use crate::failure::{Failed, attempt, made};
use crate::handles::{add_reference, free, give_up_reference, new_owned, new_shared};
use doorbell_rs::irqfd::{
    Eoi, InterruptSink, LevelSource, MsiMessage, Route, RouteChange, Router, Routes,
};
use std::ffi::{c_int, c_void};
use std::io;

/// The sink is called on a thread of the router's own: for sinks that may block.
pub const DOORBELL_WORKER: u32 = 0x1;

/// No route: interrupts of the GSI are lost.
pub const DOORBELL_ROUTE_NONE: u32 = 0;
/// To a pin of an interrupt controller.
pub const DOORBELL_ROUTE_PIN: u32 = 1;
/// To a CPU, by a message.
pub const DOORBELL_ROUTE_MSI: u32 = 2;

/// The message names the device that sends it (KVM_MSI_VALID_DEVID).
pub const DOORBELL_MSI_DEVID: u32 = 0x1;

/// Consumes events and interrupts the guest. Reference-counted.
pub struct doorbell_router(Router);

/// A device's hold on a level-triggered line. One owner, but any thread may set it. It keeps the router.
pub struct doorbell_level_source(LevelSource);

/// A message-signalled interrupt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct doorbell_msi {
    /// Where it is written to.
    pub address: u64,
    /// What is written.
    pub data: u32,
    /// With DOORBELL_MSI_DEVID: the device that sends it. Not UINT32_MAX.
    pub devid: u32,
    /// 0, or DOORBELL_MSI_DEVID.
    pub flags: u32,
}

/// Where the interrupts of a GSI go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct doorbell_route {
    /// DOORBELL_ROUTE_NONE, DOORBELL_ROUTE_PIN or DOORBELL_ROUTE_MSI.
    pub kind: u32,
    /// Of DOORBELL_ROUTE_PIN.
    pub pin: u32,
    /// Of DOORBELL_ROUTE_MSI.
    pub msi: doorbell_msi,
}

/// A new route of a GSI.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct doorbell_gsi_route {
    /// 0 to 4095.
    pub gsi: u32,
    /// Its route.
    pub route: doorbell_route,
}

/// A route that is about to change.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct doorbell_route_change {
    /// The GSI.
    pub gsi: u32,
    /// The route until now.
    pub before: doorbell_route,
    /// The route from now on.
    pub after: doorbell_route,
}

/// Where interrupts end: an interrupt controller that the VMM emulates, or that of the hypervisor. The functions are
/// called on the threads that signal (see doorbell_router_new) and that call the router. They should be short. Calls
/// for one line come one at a time, except those of `signal_msi`. The router holds no lock during a call, so the
/// functions may call the router; except `change_routes`, during which the routes are locked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct doorbell_sink {
    /// The level of a pin.
    pub set_level: Option<unsafe extern "C" fn(user: *mut c_void, gsi: u32, pin: u32, level: bool)>,
    /// A message. Several threads may be in it at once, also for one GSI. The message is valid during the call.
    pub signal_msi:
        Option<unsafe extern "C" fn(user: *mut c_void, gsi: u32, message: *const doorbell_msi)>,
    /// An edge: the pin goes up and down again. NULL: two calls of `set_level`.
    pub pulse: Option<unsafe extern "C" fn(user: *mut c_void, gsi: u32, pin: u32)>,
    /// Routes are about to change. Returns 0, or an errno if the sink cannot route like this, and then nothing changes.
    /// Must not change routes, which waits for this call. May be NULL.
    pub change_routes: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            changes: *const doorbell_route_change,
            count: usize,
        ) -> c_int,
    >,
    /// A line is about to get an irqfd. Returns 0, or an errno if the sink cannot serve the line. May be NULL.
    pub connect: Option<unsafe extern "C" fn(user: *mut c_void, gsi: u32, resample: bool) -> c_int>,
    /// Such an irqfd is gone. May be NULL.
    pub disconnect: Option<unsafe extern "C" fn(user: *mut c_void, gsi: u32, resample: bool)>,
    /// May be NULL. See CALLBACKS.
    pub destroy: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// What the functions are given.
    pub user: *mut c_void,
}

/// Makes a router without routes. `flags`: DOORBELL_WORKER. The sink is copied. A signal calls the sink before the
/// signal returns. If another thread is calling the sink for the same pin, that thread makes the call. A signal inside
/// a callback calls the sink when the outermost callback has returned. With DOORBELL_WORKER a thread of the router's
/// makes all these calls, soon after the signal.
///
/// EINVAL: an unknown flag, or `set_level` or `signal_msi` is NULL. EAGAIN: no thread could be started.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_new(
    sink: *const doorbell_sink,
    flags: u32,
) -> *mut doorbell_router {
    made(|| {
        let sink = ForeignSink(unsafe { *sink });
        only(flags, DOORBELL_WORKER)?;
        if sink.0.set_level.is_none() || sink.0.signal_msi.is_none() {
            return Err(Failed::INVALID);
        }
        let router = match flags & DOORBELL_WORKER {
            0 => Router::new(sink),
            _ => Router::with_worker(sink)?,
        };
        Ok(new_shared(doorbell_router(router)))
    })
}

/// Adds a reference, and returns the router.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_ref(router: *mut doorbell_router) -> *mut doorbell_router {
    unsafe { add_reference(router) }
}

/// Gives up a reference. With the last one, all events are deassigned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_unref(router: *mut doorbell_router) {
    unsafe { give_up_reference(router) };
}

/// Makes an event interrupt: the router takes its count away at each signal. `resample` is NULL for an edge. Otherwise
/// a signal raises the line, and doorbell_router_ack lowers it and signals `resample`. (KVM_IRQFD)
///
/// EBUSY: the event is assigned already. EINVAL: the event is its own resample event. What `connect` returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_assign(
    router: *mut doorbell_router,
    event: *mut doorbell_event,
    gsi: u32,
    resample: *mut doorbell_event,
) -> c_int {
    attempt(|| {
        let (router, event) = unsafe { (&*router, handle(event)) };
        let irqfd = if resample.is_null() {
            router.0.assign(event, gsi)
        } else {
            let resample = unsafe { handle(resample) };
            router.0.assign_with_resample(event, gsi, resample)
        };
        irqfd?.keep();
        Ok(())
    })
}

/// Ends what doorbell_router_assign began; does nothing if the event is not assigned to this GSI. When this returns, no
/// interrupt comes of the event any more. (KVM_IRQFD_FLAG_DEASSIGN)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_deassign(
    router: *mut doorbell_router,
    event: *mut doorbell_event,
    gsi: u32,
) {
    let (router, event) = unsafe { (&*router, &*event) };
    router.0.deassign(&event.0, gsi);
}

/// Changes the route of one GSI. When this returns, no interrupt takes the old one. (KVM_SET_GSI_ROUTING)
///
/// EINVAL: the GSI is above 4095, another GSI has the pin, or an unknown kind or flag. What `change_routes` returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_set_route(
    router: *mut doorbell_router,
    gsi: u32,
    route: *const doorbell_route,
) -> c_int {
    attempt(|| {
        let (router, route) = unsafe { (&*router, &*route) };
        Ok(router.0.set_route(gsi, route.parsed()?)?)
    })
}

/// Changes several routes in one step, or none of them. Errors as doorbell_router_set_route.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_change_routes(
    router: *mut doorbell_router,
    routes: *const doorbell_gsi_route,
    count: usize,
) -> c_int {
    attempt(|| {
        let (router, routes) = unsafe { (&*router, list(routes, count)) };
        let changes = routes.iter().map(|it| Ok((it.gsi, it.route.parsed()?)));
        let changes = changes.collect::<Result<Vec<_>, Failed>>()?;
        Ok(router.0.change_routes(changes)?)
    })
}

/// Masks a line: what comes meanwhile is kept as one pending bit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_mask(router: *mut doorbell_router, gsi: u32) {
    unsafe { &*router }.0.mask(gsi);
}

/// Unmasks a line, and sends what is pending.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_unmask(router: *mut doorbell_router, gsi: u32) {
    unsafe { &*router }.0.unmask(gsi);
}

/// Sets the route of a masked line and unmasks it, in one step, as a guest does with a vector of MSI-X. Errors as
/// doorbell_router_set_route. EINVAL also for DOORBELL_ROUTE_NONE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_unmask_with_route(
    router: *mut doorbell_router,
    gsi: u32,
    route: *const doorbell_route,
) -> c_int {
    attempt(|| {
        let (router, route) = unsafe { (&*router, &*route) };
        let route = route.parsed()?.ok_or(Failed::INVALID)?;
        Ok(router.0.unmask_with_route(gsi, route)?)
    })
}

/// Whether a line is masked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_is_masked(
    router: *const doorbell_router,
    gsi: u32,
) -> bool {
    unsafe { &*router }.0.is_masked(gsi)
}

/// Whether a masked line has an interrupt pending (the pending bit of MSI-X).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_is_pending(
    router: *const doorbell_router,
    gsi: u32,
) -> bool {
    unsafe { &*router }.0.is_pending(gsi)
}

/// Sets the level of a line in the name of the VMM. (KVM_IRQ_LINE)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_set_level(
    router: *mut doorbell_router,
    gsi: u32,
    level: bool,
) {
    unsafe { &*router }.0.set_level(gsi, level);
}

/// Whether the line is up at its pin.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_level(router: *const doorbell_router, gsi: u32) -> bool {
    unsafe { &*router }.0.level(gsi)
}

/// The guest's end of interrupt: lowers the line, then signals the resample events. The line is raised again if
/// something still holds it up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_ack(router: *mut doorbell_router, gsi: u32) {
    unsafe { &*router }.0.ack(gsi);
}

/// Waits until every signal made before has reached the sink.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_router_synchronize(router: *mut doorbell_router) {
    unsafe { &*router }.0.synchronize();
}

/// Makes a hold on a line, for devices that share it. It does not hold the line up at first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_level_source_new(
    router: *mut doorbell_router,
    gsi: u32,
) -> *mut doorbell_level_source {
    made(|| {
        let source = unsafe { &*router }.0.level_source(gsi);
        Ok(new_owned(doorbell_level_source(source)))
    })
}

/// Lets the line go, and frees the hold.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_level_source_free(source: *mut doorbell_level_source) {
    unsafe { free(source) };
}

/// Holds the line up, or lets it go.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_level_source_set(
    source: *mut doorbell_level_source,
    level: bool,
) {
    unsafe { &*source }.0.set_level(level);
}

impl doorbell_route {
    fn parsed(&self) -> Result<Option<Route>, Failed> {
        match self.kind {
            DOORBELL_ROUTE_NONE => Ok(None),
            DOORBELL_ROUTE_PIN => Ok(Some(Route::Pin(self.pin))),
            DOORBELL_ROUTE_MSI => Ok(Some(Route::Msi(self.msi.parsed()?))),
            _ => Err(Failed::INVALID),
        }
    }
}

impl From<Option<Route>> for doorbell_route {
    fn from(route: Option<Route>) -> Self {
        let mut this = doorbell_route::default();
        match route {
            None => this.kind = DOORBELL_ROUTE_NONE,
            Some(Route::Pin(pin)) => {
                this.kind = DOORBELL_ROUTE_PIN;
                this.pin = pin;
            }
            Some(Route::Msi(message)) => {
                this.kind = DOORBELL_ROUTE_MSI;
                this.msi = message.into();
            }
            Some(other) => unreachable!("no function of the library makes {other:?}"),
        }
        this
    }
}

impl doorbell_msi {
    fn parsed(&self) -> Result<MsiMessage, Failed> {
        only(self.flags, DOORBELL_MSI_DEVID)?;
        let message = MsiMessage::new(self.address, self.data);
        match (self.flags, self.devid) {
            (0, _) => Ok(message),
            (_, u32::MAX) => Err(Failed::INVALID),
            (_, devid) => Ok(message.with_devid(devid)),
        }
    }
}

impl From<MsiMessage> for doorbell_msi {
    fn from(message: MsiMessage) -> Self {
        doorbell_msi {
            address: message.address,
            data: message.data,
            devid: message.devid().unwrap_or(0),
            flags: message.devid().map_or(0, |_| DOORBELL_MSI_DEVID),
        }
    }
}

/// A sink of the caller's, until it is dropped.
struct ForeignSink(doorbell_sink);

// SAFETY: the header says that the functions are called on any thread.
unsafe impl Send for ForeignSink {}

// SAFETY: and that several threads may be in them.
unsafe impl Sync for ForeignSink {}

fn answer(errno: c_int) -> io::Result<()> {
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl InterruptSink for ForeignSink {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        if let Some(set_level) = self.0.set_level {
            unsafe { set_level(self.0.user, gsi, pin, level) };
        }
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        if let Some(signal_msi) = self.0.signal_msi {
            unsafe { signal_msi(self.0.user, gsi, &message.into()) };
        }
    }

    fn pulse(&self, gsi: u32, pin: u32) {
        match self.0.pulse {
            Some(pulse) => unsafe { pulse(self.0.user, gsi, pin) },
            None => {
                self.set_level(gsi, pin, true);
                self.set_level(gsi, pin, false);
            }
        }
    }

    fn set_routes(&self, _: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        let Some(change_routes) = self.0.change_routes else {
            return Ok(());
        };
        let changes = changes.iter().map(|change| doorbell_route_change {
            gsi: change.gsi,
            before: change.old.into(),
            after: change.new.into(),
        });
        let changes = changes.collect::<Vec<_>>();
        answer(unsafe { change_routes(self.0.user, changes.as_ptr(), changes.len()) })
    }

    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        match self.0.connect {
            None => Ok(()),
            Some(connect) => answer(unsafe { connect(self.0.user, line.gsi(), resample) }),
        }
    }

    fn disconnect(&self, gsi: u32, resample: bool) {
        if let Some(disconnect) = self.0.disconnect {
            unsafe { disconnect(self.0.user, gsi, resample) };
        }
    }
}

impl Drop for ForeignSink {
    fn drop(&mut self) {
        if let Some(destroy) = self.0.destroy {
            unsafe { destroy(self.0.user) };
        }
    }
}
