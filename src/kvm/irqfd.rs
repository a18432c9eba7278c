use super::Error;
use super::ioctl::Vm;
use crate::irqfd::{Eoi, InterruptSink, MsiMessage, Route, RouteChange, Routes};
use crate::sync::Tally;
use crate::sync::srcu::{Srcu, with_section};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_msi};
use pump::{Assertion, Pump};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::Wire;

mod eventfd;
mod pump;
mod table;
mod wire;

pub use table::RouteTableError;

/// Who turns a signal into the guest's message-signalled interrupt. A pin is the VMM's to move (`KVM_IRQ_LINE`).
///
/// KVM's own irqfds pulse pins, too, by a worker, some time after the signal. That costs the signaller as much as two
/// `KVM_IRQ_LINE`s (1.0 to 1.2 µs, on Linux 6.18), but the pulse then goes by the routes of that time, so that it may
/// be lost or come after a mask, and its falling edge takes down a level that `KVM_IRQ_LINE` has raised meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Injection {
    /// The VMM, by `KVM_SIGNAL_MSI`. No file descriptors. Measured, a message costs the signaller no more than a write
    /// to an irqfd of KVM's: the default.
    #[default]
    Userspace,
    /// The kernel, by `KVM_IRQFD`: a write to an eventfd that each GSI has that has an irqfd. It is made when the GSI
    /// gets its first, and closed with its last.
    ///
    /// A message whose destination KVM cannot look up at once is sent by a worker of KVM's: a logical destination while
    /// the guest's APICs are in several logical modes, or an address that all APICs share. The worker may send it after
    /// the signal has returned, by the route of that time, and no [`synchronize`] waits for it. The deassign of the
    /// GSI's last irqfd does.
    ///
    /// [`synchronize`]: crate::irqfd::Router::synchronize
    Kernel,
}

/// Interrupts by KVM: the sink of a [`Router`](crate::irqfd::Router) for a VM with KVM's interrupt controllers.
///
/// The router's routes become the VM's (`KVM_SET_GSI_ROUTING`), so the sink is for one router. Pin n is the IOAPIC's
/// pin n and, below 16, that of the PICs. The VM has no routes to begin with. With [`Injection::Userspace`] its table
/// has the pins only, so a change of messages makes no system call. With [`Injection::Kernel`] it has all routes, and
/// each change is a call that costs time in proportion to their number, so many changes are made at once, with
/// [`Router::change_routes`](crate::irqfd::Router::change_routes) or
/// [`Router::unmask_with_routes`](crate::irqfd::Router::unmask_with_routes). A VMM that gives KVM irqfds of its own on
/// GSIs of the router's (vhost in the kernel, VFIO) takes `Injection::Kernel`. KVM's table has 4,096 entries, and what
/// it cannot have is a [`RouteTableError`].
///
/// With `KVM_CAP_X2APIC_API`, KVM refuses messages with a bit of 32 to 39 set in the address, and every table with one.
/// A guest may write one into a device's vector, so the table does without, and the message is
/// [refused](Self::refused) when it is sent.
///
/// KVM knows of the guest's ends of interrupt, so a line with resampling irqfds is the kernel's, whoever injects
/// otherwise: KVM lowers it, and tells a thread of the sink, which signals the resample events. Taking such a line down
/// without an end of interrupt (a mask, another route, the end of the last resampling irqfd) is costly. The thread
/// starts with the first resampling irqfd and ends with the sink; a line has two eventfds as long as it has a
/// resampling irqfd.
///
/// An edge, or a change of a level, is there when the call that it comes from returns, except the rise of a line with
/// resampling irqfds, which a worker of KVM's carries out soon.
///
/// # Split interrupt controllers
///
/// KVM has the local APICs only then: pins are refused here, and the VMM's IOAPIC is a sink of its own, which sends its
/// messages by this one's [`signal_msi`](InterruptSink::signal_msi). If a message is level-triggered, `KVM_RUN` returns
/// with `KVM_EXIT_IOAPIC_EOI` at its end of interrupt, and the IOAPIC calls [`Router::ack`](crate::irqfd::Router::ack)
/// for each pin that has the vector. But KVM watches for such vectors alone that its table has, so the IOAPIC tells the
/// message of each pin by [`set_ioapic_message`](Self::set_ioapic_message) before it sends it.
///
/// # System calls
///
/// For a seccomp filter, beside those of the router: each on the thread that makes the call in the first column, or
/// that drives the line for it at the time.
///
/// | when | calls |
/// |---|---|
/// | [`new`](Self::new) | `fcntl` (`F_DUPFD_CLOEXEC`), `ioctl` (`KVM_GET_IRQCHIP`, `KVM_SET_GSI_ROUTING`) |
/// | a message is sent | `ioctl` (`KVM_SIGNAL_MSI`); `write`, and rarely `read`, if the kernel injects |
/// | a pin is pulsed, or its level changes | `ioctl` (`KVM_IRQ_LINE`); `write`, and `ioctl` (`KVM_IRQFD`), if it has resampling irqfds |
/// | an irqfd is assigned | `eventfd2` and `ioctl` (`KVM_IRQFD`), if it is the GSI's first and the kernel injects |
/// | a resampling one is | also `eventfd2`, `ioctl` (`KVM_IRQFD`) and `epoll_ctl`, if it is the GSI's first; `epoll_create1`, `eventfd2`, `epoll_ctl` and those of a thread's start, if it is the sink's first |
/// | an irqfd is deassigned | `ioctl` (`KVM_IRQFD`) and `close`, if it is the last of one kind or the other; if it is the last resampling one, also `read`, `epoll_ctl` and those of a change of the level |
/// | the routes change | `ioctl` (`KVM_SET_GSI_ROUTING`, and `KVM_IRQFD` for a GSI that changes between a message and a pin); those of a change of the level for a pin that is up; `close`, if an irqfd is deassigned at the time |
/// | the router is saved or restored | for each line that is up and has resampling irqfds: `eventfd2`, `ioctl` (`KVM_IRQFD`), `close`; for each GSI with an irqfd, if the kernel injects: `ioctl` (`KVM_IRQFD`); `read`, and those of an end of interrupt that the router has not been told of |
/// | the guest ends an interrupt of a line with resampling irqfds | on the sink's thread: `epoll_pwait`, `read`, `close`; those of a change of a level; those of a signal of the resample events |
///
/// All but `new` and a message take locks (`futex`: `FUTEX_WAIT_BITSET`, `FUTEX_WAKE`, private), and so does a message where
/// the thread makes a change of a level for another one. Deassigning, and changes of routes, call `sched_yield` and
/// `clock_nanosleep` while other threads are in callbacks. The sink's thread has the filter of the thread that assigned
/// the first resampling irqfd. Where the standard library is built with debug assertions, it calls `fcntl(F_GETFD)`
/// before `close`.
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
    /// Held while a level changes, and while the routes do: a line is lowered where it was raised.
    ///
    /// Nobody who holds it waits for a grace period: those who are waited for may want it.
    state: Mutex<State>,
    /// Those of the lines, for who signals. Whoever changes them has the right to write this first, then the state.
    wires: Srcu<Wires>,
    refused: Tally,
}

#[derive(Default)]
struct State {
    /// Those of the router's that KVM's table was made from.
    routes: Routes,
    /// The messages of the pins of a VMM's IOAPIC.
    ioapic: BTreeMap<u32, MsiMessage>,
    /// KVM takes messages in x2APIC format only, as it has turned out.
    x2apic: bool,
    /// The GSIs that have irqfds.
    lines: BTreeMap<u32, Line>,
    /// Those that `KVM_IRQ_LINE` has raised.
    raised: BTreeSet<u32>,
    /// Started for the first assertion.
    pump: Option<Pump>,
}

type Wires = BTreeMap<u32, Arc<Wire>>;

#[derive(Default)]
struct Line {
    irqfds: usize,
    /// So many of them.
    resampling: usize,
    /// If the kernel injects.
    wire: Option<Arc<Wire>>,
    /// If there are resampling ones.
    assertion: Option<Arc<Assertion>>,
}

impl State {
    /// Whether the kernel, where it injects, sends the messages of a GSI with this route. It does not see those in no
    /// other way, and what it refuses is to be counted.
    fn is_by_wire(&self, route: Option<Route>) -> bool {
        match route {
            Some(Route::Pin(_)) => false,
            Some(route) => !self.leaves_out(route),
            None => true,
        }
    }

    /// Whether KVM's table does without the route, which KVM would refuse together with all others.
    fn leaves_out(&self, route: Route) -> bool {
        self.x2apic && table::is_no_x2apic_message(route)
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
    /// For a VM with an interrupt controller, full or split. Takes the VM's routes away.
    ///
    /// The VM can be of any crate's type that is [`AsFd`], or a [`BorrowedFd`](std::os::fd::BorrowedFd).
    /// `kvm_ioctls::VmFd` is not `AsFd` as of version 0.25; the [example](Self) shows how to borrow its descriptor. It is
    /// duplicated, so the sink keeps the VM alive.
    ///
    /// # Errors
    ///
    /// There is no interrupt controller in the kernel (`EINVAL`), the descriptor is not a VM's (`ENOTTY`), or there is no
    /// descriptor left (`EMFILE`, `ENFILE`).
    pub fn new(vm: impl AsFd, injection: Injection) -> Result<Self, Error> {
        let vm = Arc::new(Vm::new(vm)?);
        let sink = KvmSink {
            has_pins: vm.has_irqchip(KVM_IRQCHIP_IOAPIC),
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

    /// Who injects, where either can.
    pub fn injection(&self) -> Injection {
        self.injection
    }

    /// How many interrupts, or changes of a level, KVM has refused with an error. Nobody else is told of them: the
    /// router's counters have them as injected.
    ///
    /// KVM refuses a message that no vCPU takes (`EPERM`), as long as there is none for instance, and, with
    /// `KVM_CAP_X2APIC_API`, one whose address is not in x2APIC format (`EINVAL`). A message that the guest's APIC
    /// takes and drops is not counted, nor is what KVM drops that has got it by [`Injection::Kernel`].
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// The message of a pin of the VMM's IOAPIC, beside a split interrupt controller; `None` takes it away.
    ///
    /// `KVM_RUN` returns with `KVM_EXIT_IOAPIC_EOI` for those vectors only that KVM's table has in a level-triggered
    /// message (bit 15 of the data) on a GSI below the number of pins that `KVM_CAP_SPLIT_IRQCHIP` was given. What
    /// message is sent does not matter. So the VMM's IOAPIC calls this when the guest has written a redirection entry,
    /// before it sends the message, and the message stands in the table at the GSI `pin`. If the kernel injects, the
    /// router can have none on that GSI then.
    ///
    /// Nothing is asked of KVM if the message is the same as before.
    ///
    /// # Errors
    ///
    /// The interrupt controller is not split (`EINVAL`), KVM's table has a message of the router's on that GSI
    /// (`EINVAL`), or it is full (a [`RouteTableError`]). The message is as it was then.
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
        let ioapic = state.ioapic.iter();
        let ioapic = ioapic.map(|(&pin, &message)| (pin, Route::Msi(message)));
        let routes = routes.iter().filter(|&(_, route)| self.is_in_table(route));
        routes.chain(ioapic).collect()
    }

    fn write_table(&self, state: &mut State, routes: &Routes) -> io::Result<()> {
        let table = self.table(state, routes);
        let refused = match self.try_table(state, &table) {
            Err(error) if !state.x2apic && error.raw_os_error() == Some(EINVAL) => error,
            result => return result,
        };
        // KVM does not say which format it wants. What it takes only without the messages that are in another one,
        // tells.
        if !table
            .iter()
            .any(|&(_, route)| table::is_no_x2apic_message(route))
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
        let entries: Vec<_> = table
            .flat_map(|&(gsi, route)| table::entries(gsi, route))
            .collect();
        let full = RouteTableError::Full {
            entries: entries.len(),
        };
        if entries.len() > table::ENTRIES {
            return Err(full.into());
        }
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| full)?;
        self.vm.set_gsi_routing(&routing)
    }

    /// For a GSI that gets this route: KVM's worker must not find a pin, or nothing, where it was to send a message.
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
    fn set_line(&self, gsi: u32, level: bool) {
        self.count_refusal(self.vm.set_irq_line(gsi, level));
    }

    fn raise(&self, state: &mut State, gsi: u32) {
        match state.assertion(gsi) {
            Some(assertion) => {
                self.count_refusal(assertion.raise());
            }
            None => {
                state.raised.insert(gsi);
                self.set_line(gsi, true);
            }
        }
    }

    /// Returns whether it was up, as far as is known here.
    fn lower(&self, state: &mut State, gsi: u32) -> bool {
        let raised = state.raised.remove(&gsi);
        if raised {
            self.set_line(gsi, false);
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
        let assertion = Arc::new(Assertion::new(Arc::clone(&self.vm), line.gsi())?);
        pump.watch(&assertion, line)?;
        Ok(assertion)
    }

    /// The line has no resampling irqfds any more. Returns its way back if there is an end of interrupt that it has not
    /// been told of.
    fn end_assertion(&self, state: &mut State, gsi: u32, assertion: &Assertion) -> Option<Eoi> {
        let ended = assertion.take_end();
        if assertion.is_raised() {
            // Somebody else may hold it up. If not, the router lowers it.
            state.raised.insert(gsi);
            self.set_line(gsi, true);
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
        // Whether a CPU of the guest's takes it is between it and them.
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
        let _state = self.state();
        self.set_line(gsi, true);
        self.set_line(gsi, false);
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
        // What is up must be lowered by the old route. The router raises it by the new one, as soon as there is one.
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
