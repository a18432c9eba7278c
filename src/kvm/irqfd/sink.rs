use super::pump::{Assertion, Pump};
use super::table::RouteTableError;
use super::wire::Wire;
use super::{Error, Vm, controller, table};
use crate::irqfd::{Eoi, InterruptSink, MsiMessage, Route, RouteChange, Routes};
use crate::sync::Tally;
use crate::sync::srcu::{Srcu, with_section};
use kvm_bindings::{KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_msi};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a signal becomes a message-signalled interrupt of the guest's. Pins do not depend on it: the VMM moves a pin
/// (`KVM_IRQ_LINE`), unless the pin has resampling irqfds. KVM raises and lowers such a pin by irqfds of its own, by
/// way of eventfds that the sink has for it.
///
/// KVM's own irqfds can pulse pins, too, by a worker some time after the signal. That costs the signaller as much as
/// two `KVM_IRQ_LINE`s (1.0 to 1.2 µs, on Linux 6.18). But the pulse then goes by the routes of that time, so it may be
/// lost or come after a mask, and its falling edge takes down a level that `KVM_IRQ_LINE` has raised meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Injection {
    /// The VMM calls `KVM_SIGNAL_MSI`. A message needs no eventfds, and a message was measured to cost the signaller
    /// no more than a write to an irqfd of KVM's. So it is the default.
    #[default]
    Userspace,
    /// The kernel injects, by irqfds of KVM's (`KVM_IRQFD`), when the VMM writes to an eventfd. Each GSI with irqfds
    /// has one eventfd, which is made with its first irqfd and closed with its last.
    ///
    /// If KVM cannot look up the destination of a message at once, a worker of KVM's sends the message. This is so for
    /// a logical destination while the guest's APICs are in several logical modes, for an address that all APICs share,
    /// and on arm64 while the message is not in the ITS's cache of translations. The worker may send the message after
    /// the signal has returned, by the route of that time. [`synchronize`] does not wait for it; [`save`] and the
    /// deassign of the GSI's last irqfd do.
    ///
    /// [`synchronize`]: crate::irqfd::Router::synchronize
    /// [`save`]: crate::irqfd::Router::save
    Kernel,
}

/// Interrupts by KVM: the sink of a [`Router`](crate::irqfd::Router) for a VM with KVM's interrupt controllers.
///
/// The router's routes become the VM's (`KVM_SET_GSI_ROUTING`), so a VM has one sink, for one router. On x86, pin n is
/// pin n of the IOAPIC and, below 16, of the PICs; on arm64 it is an SPI of the [GIC](#the-gic). The VM has no routes
/// at first.
///
/// With [`Injection::Userspace`] KVM's table has the pins only, so a change of messages makes no system call. With
/// [`Injection::Kernel`] it has all routes, and each change is a call that costs time in proportion to the number of
/// routes. Many changes are therefore best made at once, by
/// [`Router::change_routes`](crate::irqfd::Router::change_routes) or
/// [`Router::unmask_with_routes`](crate::irqfd::Router::unmask_with_routes). A VMM that gives KVM irqfds of its own on
/// GSIs of the router (vhost in the kernel, VFIO) needs `Injection::Kernel`. KVM's table has 4,096 entries. Routes that
/// it cannot have are a [`RouteTableError`].
///
/// With `KVM_CAP_X2APIC_API`, KVM refuses messages with any of the bits 32 to 39 set in the address, and every table
/// that has such a message. A guest may write one into a device's vector. So the sink leaves it out of the table, and
/// the message is [refused](Self::refused) when it is sent.
///
/// KVM knows of the guest's ends of interrupt. So a line with resampling irqfds belongs to the kernel, with either
/// injection: KVM lowers the line and tells a thread of the sink, which signals the resample events. Lowering such a
/// line without an end of interrupt (for a mask, another route, or the end of the last resampling irqfd) is costly. The
/// thread starts with the first resampling irqfd and ends with the sink. A line has two eventfds as long as it has a
/// resampling irqfd.
///
/// When a call returns, KVM has the edges and the changes of levels that the call has made. The exception is the rise
/// of a line with resampling irqfds, which a worker of KVM's carries out soon. A [save](crate::irqfd::Router::save)
/// waits for it.
///
/// # The GIC
///
/// On arm64, pin n is the SPI n, as in device trees and in KVM's own table: the GIC's interrupt n + 32. Interrupts that
/// are private to a CPU (PPIs) are not among the pins. Messages go to an ITS, which takes only those that
/// [name their device](MsiMessage::with_devid). The sink is made after the GIC was initialized
/// (`KVM_DEV_ARM_VGIC_CTRL_INIT`), because KVM then replaces the VM's routes by its default ones.
///
/// The sink has never run on KVM on arm64. It was written after the sources of Linux, and the calls that it makes there
/// are tested against a stand-in for the ioctls.
///
/// # Split interrupt controllers
///
/// On x86, an interrupt controller may be split. Then KVM has the local APICs only. Pins are refused here, and the
/// VMM's IOAPIC is a sink of its own, which sends its messages by this one's [`signal_msi`](InterruptSink::signal_msi).
/// At the end of interrupt of a level-triggered message, `KVM_RUN` returns with `KVM_EXIT_IOAPIC_EOI`, and the IOAPIC
/// calls [`Router::ack`](crate::irqfd::Router::ack) for each pin that has the vector. But KVM watches for those vectors
/// only that are in its table. So the IOAPIC announces the message of each pin by `set_ioapic_message` before it sends
/// the message.
///
/// # System calls
///
/// For a seccomp filter, in addition to those of the router. Each is made on the thread that makes the call in the
/// first column, or on the thread that drives the line at the time.
///
/// | when | calls |
/// |---|---|
/// | [`new`](Self::new) | `fcntl` (`F_DUPFD_CLOEXEC`), `ioctl` (`KVM_GET_IRQCHIP`, on arm64 `KVM_IRQ_LINE`; `KVM_SET_GSI_ROUTING`) |
/// | a message is sent | `ioctl` (`KVM_SIGNAL_MSI`); `write`, and rarely `read`, if the kernel injects |
/// | a pin is pulsed, or its level changes | `ioctl` (`KVM_IRQ_LINE`); `write`, and `ioctl` (`KVM_IRQFD`), if it has resampling irqfds |
/// | an irqfd is assigned | `eventfd2` and `ioctl` (`KVM_IRQFD`), if it is the GSI's first and the kernel injects |
/// | a resampling one is | also `eventfd2`, `ioctl` (`KVM_IRQFD`) and `epoll_ctl`, if it is the GSI's first; `epoll_create1`, `eventfd2`, `epoll_ctl` and those of a thread's start, if it is the sink's first |
/// | an irqfd is deassigned | `ioctl` (`KVM_IRQFD`) and `close`, if it is the last of one kind or the other; if it is the last resampling one, also `read`, `epoll_ctl` and those of a change of the level |
/// | the routes change | `ioctl` (`KVM_SET_GSI_ROUTING`, and `KVM_IRQFD` for a GSI that changes between a message and a pin); those of a change of the level for a pin that is up; `close`, if an irqfd is deassigned at the time |
/// | the router is saved or restored | for each line that is up and has resampling irqfds: `eventfd2`, `ioctl` (`KVM_IRQFD`), `close`; for each GSI with an irqfd, if the kernel injects: `ioctl` (`KVM_IRQFD`); `read`, and those of an end of interrupt that the router has not been told of |
/// | the guest ends an interrupt of a line with resampling irqfds | on the sink's thread: `epoll_pwait`, `read`, `close`; those of a change of a level; those of a signal of the resample events |
///
/// All but `new` and a message take locks (`futex`: `FUTEX_WAIT_BITSET`, `FUTEX_WAKE`, private). So does a message if
/// its thread makes a change of a level for another thread. Deassigning, changes of routes and saves call `sched_yield`
/// and `clock_nanosleep` while other threads are in callbacks. The sink's thread has the filter of the thread that
/// assigned the first resampling irqfd. Where the standard library is built with debug assertions, it calls
/// `fcntl(F_GETFD)` before `close`.
///
/// ```no_run
/// use doorbell::Event;
/// use doorbell::irqfd::{MsiMessage, Route, Router, Routes};
/// use doorbell::kvm::{Injection, KvmSink};
/// use std::os::fd::{AsRawFd, BorrowedFd};
/// use std::sync::Arc;
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// vm.create_irq_chip()?;
/// // SAFETY: `vm` keeps its descriptor open. (`VmFd` is not `AsFd` as of kvm-ioctls 0.25.)
/// let vm_fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
/// let router = Router::new(KvmSink::new(vm_fd, Injection::default())?);
/// let mut routes = Routes::identity(24);
/// routes.set(24, Some(Route::Msi(MsiMessage::new(0xfee0_0000, 0x41))))?;
/// router.set_routes(routes)?;
///
/// let queue_done = Arc::new(Event::new(0));
/// let _irqfd = router.assign(&queue_done, 24)?; // until it is dropped
/// queue_done.signal(); // interrupts CPU 0
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KvmSink {
    vm: Arc<Vm>,
    injection: Injection,
    has_pins: bool,
    /// Held while a level changes and while the routes change, so that a line is lowered where it was raised: that is
    /// where its route in the state leads, and not the pin that the router names, which may be another GSI's by now.
    ///
    /// No thread waits for a grace period while it holds this: a thread that is waited for may take it.
    state: Mutex<State>,
    /// The wires of the lines, for the threads that signal. A thread that changes them takes the right to write this
    /// before it locks the state.
    wires: Srcu<Wires>,
    refused: Tally,
}

#[derive(Default)]
struct State {
    /// The routes of the router that KVM's table was made from.
    routes: Routes,
    /// The messages of the pins of a VMM's IOAPIC.
    #[cfg(target_arch = "x86_64")]
    ioapic: BTreeMap<u32, MsiMessage>,
    /// KVM takes messages in x2APIC format only, as a refusal has shown.
    x2apic: bool,
    /// The GSIs that have irqfds.
    lines: BTreeMap<u32, GsiIrqfds>,
    /// The GSIs that `KVM_IRQ_LINE` has raised, by their present routes.
    raised: BTreeSet<u32>,
    /// Started for the first assertion.
    pump: Option<Pump>,
}

type Wires = BTreeMap<u32, Arc<Wire>>;

/// The irqfds of a GSI.
#[derive(Default)]
struct GsiIrqfds {
    irqfds: usize,
    /// So many of them.
    resampling: usize,
    /// If the kernel injects.
    wire: Option<Arc<Wire>>,
    /// If there are resampling ones.
    assertion: Option<Arc<Assertion>>,
}

impl State {
    /// Whether the kernel, where it injects, sends the messages of a GSI with this route. It does not where a message
    /// is left out of KVM's table, so that the refusal is counted.
    fn is_by_wire(&self, route: Option<Route>) -> bool {
        match route {
            Some(Route::Pin(_)) => false,
            Some(route) => !self.leaves_out(route),
            None => true,
        }
    }

    /// Whether KVM's table does without the route, which KVM would refuse together with all others.
    fn leaves_out(&self, route: Route) -> bool {
        self.x2apic && controller::is_no_x2apic_message(route)
    }

    /// What KVM's table has beside the routes of the router.
    fn announced(&self) -> impl Iterator<Item = (u32, Route)> {
        #[cfg(target_arch = "x86_64")]
        let messages = self.ioapic.iter();
        #[cfg(target_arch = "x86_64")]
        return messages.map(|(&pin, &message)| (pin, Route::Msi(message)));
        #[cfg(not(target_arch = "x86_64"))]
        return std::iter::empty();
    }

    fn wires_for_signallers(&self) -> Wires {
        let lines = self.lines.iter();
        let wires = lines.filter_map(|(&gsi, line)| Some((gsi, Arc::clone(line.wire.as_ref()?))));
        wires.collect()
    }

    fn wire(&self, gsi: u32) -> Option<&Wire> {
        self.lines.get(&gsi)?.wire.as_deref()
    }

    fn assertion(&self, gsi: u32) -> Option<&Assertion> {
        self.lines.get(&gsi)?.assertion.as_deref()
    }
}

impl KvmSink {
    /// For a VM with an interrupt controller: full or split on x86, a GIC that was initialized on arm64. Takes the VM's
    /// routes away.
    ///
    /// The VM can be of any crate's type that is [`AsFd`], or a [`BorrowedFd`](std::os::fd::BorrowedFd).
    /// `kvm_ioctls::VmFd` is not `AsFd` as of version 0.25; the [example](Self) shows how to borrow its descriptor. It
    /// is duplicated, so the sink keeps the VM alive.
    ///
    /// # Errors
    ///
    /// There is no interrupt controller in the kernel (`EINVAL`; on arm64 `ENXIO`), the GIC was not initialized
    /// (`EBUSY`, from kernels that say so), the descriptor is not a VM's (`ENOTTY`), or there is no descriptor left
    /// (`EMFILE`, `ENFILE`).
    pub fn new(vm: impl AsFd, injection: Injection) -> Result<Self, Error> {
        let vm = Arc::new(Vm::new(vm)?);
        let sink = KvmSink {
            has_pins: controller::has_pins(&vm)?,
            vm,
            injection,
            state: Mutex::default(),
            wires: Srcu::new(Wires::new()),
            refused: Tally::default(),
        };
        let emptied = sink.write_table(&mut sink.state(), &Routes::new());
        emptied.map_err(|source| Error {
            call: SET_GSI_ROUTING,
            source,
        })?;
        Ok(sink)
    }

    /// How messages are injected.
    pub fn injection(&self) -> Injection {
        self.injection
    }

    /// How many interrupts, and changes of a level, KVM has refused with an error. This counter is the only place where
    /// they show: the router's counters have them as injected.
    ///
    /// KVM refuses a message that no vCPU takes (`EPERM`), for instance while there is no vCPU. With
    /// `KVM_CAP_X2APIC_API` it refuses a message whose address is not in x2APIC format (`EINVAL`). A message that the
    /// guest's APIC takes and drops is not counted. Nor is a message that KVM drops after it has got it by
    /// [`Injection::Kernel`].
    ///
    /// On arm64, KVM refuses a message if there is no ITS (`ENODEV`), and one that names no device or is for an address
    /// that is no ITS's (`EINVAL`). It refuses the level of an SPI that the GIC was made without (`EINVAL`).
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// The message of a pin of the VMM's IOAPIC, beside a split interrupt controller; `None` takes it away.
    ///
    /// `KVM_RUN` returns with `KVM_EXIT_IOAPIC_EOI` for those vectors only that are in KVM's table, in a
    /// level-triggered message (bit 15 of the data) on a GSI below the number of pins that `KVM_CAP_SPLIT_IRQCHIP` was
    /// given. It does not matter which message is sent. So the VMM's IOAPIC calls this when the guest has written a
    /// redirection entry, before it sends the message. The message then is in the table at the GSI `pin`. If the kernel
    /// injects, the router can have no message on that GSI then.
    ///
    /// If the message is the same as before, this makes no system call.
    ///
    /// # Errors
    ///
    /// The interrupt controller is not split (`EINVAL`), KVM's table has a message of the router's on that GSI
    /// (`EINVAL`), or it is full (a [`RouteTableError`]). The message is as it was then.
    #[cfg(target_arch = "x86_64")]
    pub fn set_ioapic_message(&self, pin: u32, message: Option<MsiMessage>) -> Result<(), Error> {
        let refused = |source| Error {
            call: SET_GSI_ROUTING,
            source,
        };
        if self.has_pins {
            return Err(refused(rustix::io::Errno::INVAL.into()));
        }
        let state = &mut *self.state();
        let before = put(&mut state.ioapic, pin, message);
        if before == message {
            return Ok(());
        }
        let routes = state.routes.clone();
        self.write_table(state, &routes).map_err(|source| {
            put(&mut state.ioapic, pin, before);
            refused(source)
        })
    }

    /// Whether KVM needs to know the route. Where the VMM injects, `KVM_SIGNAL_MSI` brings its message along.
    fn is_in_table(&self, route: Route) -> bool {
        match route {
            Route::Pin(_) => true,
            Route::Msi(_) => self.injection == Injection::Kernel,
        }
    }

    /// What KVM's table is to have, if KVM takes it.
    fn table(&self, state: &State, routes: &Routes) -> Vec<(u32, Route)> {
        let routes = routes.iter().filter(|&(_, route)| self.is_in_table(route));
        routes.chain(state.announced()).collect()
    }

    fn write_table(&self, state: &mut State, routes: &Routes) -> io::Result<()> {
        let table = self.table(state, routes);
        let refused = match self.try_table(state, &table) {
            Err(error) if !state.x2apic && error.raw_os_error() == Some(EINVAL) => error,
            result => return result,
        };
        // KVM does not say which format it takes. If it takes the table without the messages in the other format, it is
        // x2APIC's.
        if !table
            .iter()
            .any(|&(_, route)| controller::is_no_x2apic_message(route))
        {
            return Err(refused);
        }
        state.x2apic = true;
        for &gsi in state.lines.keys() {
            self.detach_wire(state, gsi, routes.get(gsi));
        }
        let result = self.try_table(state, &table);
        state.x2apic = result.is_ok();
        result.map_err(|_| refused)
    }

    /// `KVM_SET_GSI_ROUTING`.
    fn try_table(&self, state: &State, table: &[(u32, Route)]) -> io::Result<()> {
        let table = table.iter().filter(|&&(_, route)| !state.leaves_out(route));
        let mut entries = Vec::new();
        table.for_each(|&(gsi, route)| table::add_entries(&mut entries, gsi, route));
        let full = RouteTableError::Full {
            entries: entries.len(),
        };
        if entries.len() > table::ENTRIES {
            return Err(full.into());
        }
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| full)?;
        self.vm.set_gsi_routing(&routing)
    }

    /// To be called before a GSI gets this route: a worker of KVM's must not find a pin, or no route, where it was to
    /// send a message.
    fn detach_wire(&self, state: &State, gsi: u32, route: Option<Route>) {
        let wire = state.wire(gsi).filter(|_| !state.is_by_wire(route));
        if let Some(wire) = wire {
            self.count_refusal(wire.detach());
        }
    }

    fn attach_wire(&self, state: &State, gsi: u32) {
        let wire = state.wire(gsi);
        if let Some(wire) = wire.filter(|_| state.is_by_wire(state.routes.get(gsi))) {
            // If KVM refuses, the messages go by KVM_SIGNAL_MSI.
            let _ = wire.attach();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it says is so at every point where a holder of the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_refusal<T, E>(&self, result: Result<T, E>) -> Option<T> {
        if result.is_err() {
            self.refused.add_one();
        }
        result.ok()
    }

    /// `KVM_IRQ_LINE`.
    fn set_line(&self, state: &State, gsi: u32, level: bool) {
        if let Some(irq) = controller::irq(gsi, state.routes.get(gsi)) {
            self.count_refusal(self.vm.set_irq_line(irq, level));
        }
    }

    fn raise(&self, state: &mut State, gsi: u32) {
        match state.assertion(gsi) {
            Some(assertion) => {
                self.count_refusal(assertion.raise());
            }
            None => {
                state.raised.insert(gsi);
                self.set_line(state, gsi, true);
            }
        }
    }

    /// Returns whether the line was up, as far as the sink knows.
    fn lower(&self, state: &mut State, gsi: u32) -> bool {
        let raised = state.raised.remove(&gsi);
        if raised {
            self.set_line(state, gsi, false);
        }
        // A line may have got its first resampling irqfd while it was up.
        let assertion = state.assertion(gsi);
        let asserted = assertion.and_then(|assertion| self.count_refusal(assertion.lower()));
        raised || asserted == Some(true)
    }

    fn wire(&self, gsi: u32) -> Option<Arc<Wire>> {
        with_section(|section| self.wires.read(section).get(&gsi).cloned())
    }

    fn assertion(&self, state: &mut State, line: Eoi) -> io::Result<Arc<Assertion>> {
        let pump = match &mut state.pump {
            Some(pump) => pump,
            none => none.insert(Pump::start()?),
        };
        let gsi = line.gsi();
        let assertion = Arc::new(Assertion::new(Arc::clone(&self.vm), gsi)?);
        pump.watch(&assertion, line)?;
        // KVM comes last: where KVM had the irqfd and had to let go of it, a GIC would lower the line.
        if let Err(error) = assertion.open() {
            self.count_refusal(pump.forget(gsi));
            return Err(error);
        }
        Ok(assertion)
    }

    /// To be called when the line has no resampling irqfds any more. Returns its [`Eoi`] if there is an end of
    /// interrupt that the line has not been told of.
    fn end_assertion(&self, state: &mut State, gsi: u32, assertion: &Assertion) -> Option<Eoi> {
        let ended = assertion.take_end();
        if assertion.is_raised() {
            // The line may be held up otherwise. If not, the router lowers it. (A GIC has one level for both, so this
            // does not keep the line up there. The router then raises a line that is held up.)
            state.raised.insert(gsi);
            self.set_line(state, gsi, true);
        }
        self.count_refusal(assertion.close());
        let forgotten = state.pump.as_ref()?.forget(gsi);
        self.count_refusal(forgotten)?.filter(|_| ended)
    }
}

/// The name of an ioctl.
const SET_GSI_ROUTING: &str = "KVM_SET_GSI_ROUTING";

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

/// Returns what was there.
#[cfg(target_arch = "x86_64")]
fn put(
    messages: &mut BTreeMap<u32, MsiMessage>,
    pin: u32,
    message: Option<MsiMessage>,
) -> Option<MsiMessage> {
    match message {
        Some(message) => messages.insert(pin, message),
        None => messages.remove(&pin),
    }
}

impl InterruptSink for KvmSink {
    fn set_level(&self, gsi: u32, _: u32, level: bool) {
        let mut state = self.state();
        match level {
            true => self.raise(&mut state, gsi),
            false => {
                self.lower(&mut state, gsi);
            }
        }
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        if self.wire(gsi).is_some_and(|wire| wire.signal()) {
            return;
        }
        let flags = message.devid().map_or(0, |_| KVM_MSI_VALID_DEVID);
        // A result of 0 says that the guest's APICs have dropped the message, which is no error.
        self.count_refusal(self.vm.signal_msi(kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            flags,
            devid: message.devid().unwrap_or(0),
            ..kvm_msi::default()
        }));
    }

    fn pulse(&self, gsi: u32, _: u32) {
        let state = &*self.state();
        self.set_line(state, gsi, true);
        self.set_line(state, gsi, false);
    }

    fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        for change in changes {
            if let Some(Route::Pin(pin)) = change.new {
                table::check_pin(pin, self.has_pins)?;
            }
        }
        let state = &mut *self.state();
        let in_table = |route: Option<Route>| route.filter(|&route| self.is_in_table(route));
        if changes
            .iter()
            .all(|change| in_table(change.old) == in_table(change.new))
        {
            return Ok(());
        }
        // A line that is up must be lowered by the old route. The router raises it by the new route, if there is one.
        let mut moving = Vec::new();
        for change in changes {
            if self.lower(state, change.gsi) {
                moving.push(change.gsi);
            }
            self.detach_wire(state, change.gsi, change.new);
        }
        let result = self.write_table(state, routes);
        match &result {
            Ok(()) => state.routes = routes.clone(),
            Err(_) => moving.iter().for_each(|&gsi| self.raise(state, gsi)),
        }
        for change in changes {
            self.attach_wire(state, change.gsi);
        }
        result
    }

    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        let gsi = line.gsi();
        let writer = (self.injection == Injection::Kernel).then(|| self.wires.write());
        let mut guard = self.state();
        let state = &mut *guard;
        let (first, first_resampling) = match state.lines.get(&gsi) {
            Some(line) => (false, resample && line.resampling == 0),
            None => (true, resample),
        };
        let wire = match first && writer.is_some() {
            true => {
                let wire = Wire::new(Arc::clone(&self.vm), gsi)?;
                if state.is_by_wire(state.routes.get(gsi)) {
                    wire.attach()?;
                }
                Some(Arc::new(wire))
            }
            false => None,
        };
        let assertion = match first_resampling {
            true => Some(self.assertion(state, line)?),
            false => None,
        };
        let line = state.lines.entry(gsi).or_default();
        line.irqfds += 1;
        line.resampling += usize::from(resample);
        line.wire = wire.or(line.wire.take());
        line.assertion = assertion.or(line.assertion.take());
        if let (true, Some(writer)) = (first, writer) {
            let wires = state.wires_for_signallers();
            drop(guard);
            writer.publish_without_waiting(wires);
        }
        Ok(())
    }

    /// Waits for the workers of KVM's that carry out rises of lines with resampling irqfds, and messages if the kernel
    /// injects, and for ends of interrupt that the router has not been told of.
    ///
    /// Each line that is up, and each GSI with an irqfd if the kernel injects, costs `KVM_IRQFD`s that wait for a grace
    /// period of KVM's.
    fn flush(&self) {
        let in_flight = self.state().pump.as_ref().and_then(Pump::in_flight);
        if let Some(in_flight) = in_flight {
            in_flight.wait();
        }
        let ended = self.state().pump.as_ref().map(Pump::take_ends);
        // No lock is held that a call to this may want. A device may raise its line again.
        ended.into_iter().flatten().for_each(|line| line.ack());
        let state = &*self.state();
        for (&gsi, line) in &state.lines {
            if let Some(assertion) = &line.assertion {
                self.count_refusal(assertion.flush());
            }
            if let Some(wire) = &line.wire {
                self.count_refusal(wire.detach());
                self.attach_wire(state, gsi);
            }
        }
    }

    fn disconnect(&self, gsi: u32, resample: bool) {
        let writer = (self.injection == Injection::Kernel).then(|| self.wires.write());
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(line) = state.lines.get_mut(&gsi) else {
            return;
        };
        line.irqfds -= 1;
        line.resampling -= usize::from(resample);
        let wire = match line.irqfds {
            0 => line.wire.take(),
            _ => None,
        };
        let assertion = match line.resampling {
            0 => line.assertion.take(),
            _ => None,
        };
        if line.irqfds == 0 {
            state.lines.remove(&gsi);
        }
        let ended = assertion.and_then(|assertion| self.end_assertion(state, gsi, &assertion));
        let wires = wire.map(|wire| {
            self.count_refusal(wire.detach());
            (state.wires_for_signallers(), wire)
        });
        drop(guard);
        match (wires, writer) {
            (Some((wires, wire)), Some(writer)) => writer.publish(wires, wire),
            (_, writer) => drop(writer),
        }
        // No lock is held that a call to this may want.
        if let Some(line) = ended {
            line.ack();
        }
    }
}

impl fmt::Debug for KvmSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmSink")
            .field("injection", &self.injection)
            .field("has_pins", &self.has_pins)
            .finish_non_exhaustive()
    }
}
