use super::Error;
use crate::irqfd::{Eoi, InterruptSink, MsiMessage, Route, RouteChange, Routes};
use crate::sync::srcu::{Srcu, with_section};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irqchip, kvm_msi,
};
use kvm_ioctls::VmFd;
use pump::{Assertion, Pump};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

mod pump;

/// Who turns a signal into the guest's interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Injection {
    /// The VMM, by `KVM_IRQ_LINE` and `KVM_SIGNAL_MSI`: a system call for a message, two for an edge on a pin. No file
    /// descriptors. Measured, a message costs the signaller no more than a write to an irqfd of KVM's, and an edge has
    /// happened when the signal returns: the default.
    #[default]
    Userspace,
    /// The kernel, by `KVM_IRQFD`: a write to an eventfd that each GSI with an irqfd has. KVM sends messages at once, and has
    /// pins pulsed by a worker of its own. So on a pin an edge that was signalled before a deassign, a mask or a change of
    /// routes may come a little later.
    Kernel,
}

/// Interrupts by KVM: the sink of a [`Router`](crate::irqfd::Router) for a VM with KVM's interrupt controllers.
///
/// The router's routes become the VM's (`KVM_SET_GSI_ROUTING`), so the sink is for one router. Pin n is the IOAPIC's pin n
/// and, below 16, that of the PICs. The VM has no routes to begin with. With [`Injection::Userspace`] its table has the
/// pins only, so a change of messages makes no system call. With [`Injection::Kernel`] it has all routes, and each change is
/// a call that costs time in proportion to their number, so many changes are made at once, with
/// [`Router::change_routes`](crate::irqfd::Router::change_routes) or
/// [`Router::unmask_with_routes`](crate::irqfd::Router::unmask_with_routes). A VMM that gives KVM irqfds of its own on GSIs
/// of the router's (vhost in the kernel, VFIO) takes `Injection::Kernel`.
///
/// KVM knows of the guest's ends of interrupt, so a line with resampling irqfds is the kernel's, whoever injects
/// otherwise: KVM lowers it, and tells a thread of the sink, which signals the resample events. Taking such a line down
/// without an end of interrupt (a mask, another route, the end of the last resampling irqfd) is costly.
///
/// With a split interrupt controller, KVM has the local APICs only: pins are refused here, and the VMM's IOAPIC is a sink of
/// its own, which sends its messages by this one's [`signal_msi`](InterruptSink::signal_msi) and calls
/// [`Router::ack`](crate::irqfd::Router::ack) on `KVM_EXIT_IOAPIC_EOI`.
///
/// ```no_run
/// use doorbell::Event;
/// use doorbell::irqfd::{MsiMessage, Route, Router, Routes};
/// use doorbell::kvm::{Injection, KvmSink};
/// use std::sync::Arc;
///
/// let vm = Arc::new(kvm_ioctls::Kvm::new()?.create_vm()?);
/// vm.create_irq_chip()?;
/// let router = Router::new(Arc::new(KvmSink::new(Arc::clone(&vm), Injection::default())?));
/// let mut routes = Routes::identity(24);
/// routes.set(24, Some(Route::Msi(MsiMessage { address: 0xfee0_0000, data: 0x41 })))?;
/// router.set_routes(routes)?;
///
/// let queue_done = Arc::new(Event::new(0));
/// let irqfd = router.assign(&queue_done, 24)?;
/// queue_done.signal(); // interrupts CPU 0
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KvmSink {
    vm: Arc<VmFd>,
    injection: Injection,
    has_pins: bool,
    /// Of the lines that have an irqfd, if the kernel injects.
    edges: Wires<EventFd>,
    /// Of the lines that have a resampling irqfd.
    assertions: Wires<Assertion>,
    /// Held while a level changes, and while the routes do: a line is lowered where it was raised.
    levels: Mutex<Levels>,
    pump: Mutex<Option<Pump>>,
}

#[derive(Default)]
struct Levels {
    /// The lines that `KVM_IRQ_LINE` has raised.
    raised: BTreeSet<u32>,
}

/// By GSI. A wire that has been made stays.
struct Wires<T>(Srcu<BTreeMap<u32, Arc<T>>>);

impl<T: Send + Sync + 'static> Wires<T> {
    fn new() -> Self {
        Wires(Srcu::new(BTreeMap::new()))
    }

    fn get(&self, gsi: u32) -> Option<Arc<T>> {
        with_section(|section| self.0.read(section).get(&gsi).cloned())
    }

    fn get_or_make(&self, gsi: u32, make: impl FnOnce() -> io::Result<T>) -> io::Result<Arc<T>> {
        if let Some(wire) = self.get(gsi) {
            return Ok(wire);
        }
        let writer = self.0.write();
        let mut wires = writer.read().clone();
        if let Some(wire) = wires.get(&gsi) {
            // Another thread was faster.
            return Ok(Arc::clone(wire));
        }
        let wire = Arc::new(make()?);
        wires.insert(gsi, Arc::clone(&wire));
        writer.publish_without_waiting(wires);
        Ok(wire)
    }
}

impl KvmSink {
    /// For a VM with an interrupt controller, full or split. Takes the VM's routes away.
    ///
    /// # Errors
    ///
    /// There is no interrupt controller in the kernel (`EINVAL`).
    pub fn new(vm: Arc<VmFd>, injection: Injection) -> Result<Self, Error> {
        let mut ioapic = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..kvm_irqchip::default()
        };
        let sink = KvmSink {
            has_pins: vm.get_irqchip(&mut ioapic).is_ok(),
            vm,
            injection,
            edges: Wires::new(),
            assertions: Wires::new(),
            levels: Mutex::default(),
            pump: Mutex::default(),
        };
        sink.route(&Routes::new()).map_err(|source| Error {
            call: "KVM_SET_GSI_ROUTING",
            source,
        })?;
        Ok(sink)
    }

    /// Who injects, where either can.
    pub fn injection(&self) -> Injection {
        self.injection
    }

    /// Whether KVM needs to know the route. Where the VMM injects, `KVM_SIGNAL_MSI` brings its message along.
    fn is_in_table(&self, route: Route) -> bool {
        match route {
            Route::Pin(_) => true,
            Route::Msi(_) => self.injection == Injection::Kernel,
        }
    }

    fn route(&self, routes: &Routes) -> io::Result<()> {
        let routes = routes.iter().filter(|&(_, route)| self.is_in_table(route));
        let entries: Vec<_> = routes.flat_map(entries).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }

    fn levels(&self) -> MutexGuard<'_, Levels> {
        // What it says is so at every point where a holder of the lock can panic.
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `KVM_IRQ_LINE`. It fails only where there are no pins.
    fn set_line(&self, gsi: u32, level: bool) {
        let _ = self.vm.set_irq_line(gsi, level);
    }

    fn raise(&self, levels: &mut Levels, gsi: u32) {
        match self.assertions.get(gsi) {
            Some(assertion) => assertion.raise(),
            None => {
                levels.raised.insert(gsi);
                self.set_line(gsi, true);
            }
        }
    }

    /// Returns whether it was up, as far as is known here.
    fn lower(&self, levels: &mut Levels, gsi: u32) -> bool {
        let raised = levels.raised.remove(&gsi);
        if raised {
            self.set_line(gsi, false);
        }
        // A line may have got its first resampling irqfd while it was up.
        let assertion = self.assertions.get(gsi);
        let asserted = assertion.filter(|assertion| assertion.take());
        if let Some(assertion) = &asserted {
            assertion.lower(&self.vm, gsi);
        }
        raised || asserted.is_some()
    }

    fn assertion(&self, line: Eoi) -> io::Result<Assertion> {
        let mut pump = self.pump.lock().unwrap_or_else(PoisonError::into_inner);
        let pump = match &mut *pump {
            Some(pump) => pump,
            none => none.insert(Pump::start()?),
        };
        let assertion = Assertion::new(&self.vm, line.gsi())?;
        pump.watch(&assertion, line)?;
        Ok(assertion)
    }
}

fn eventfd() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// Adds 1 to an eventfd that an irqfd of the kernel's empties at once.
fn signal(fd: &EventFd) {
    // Not full: nothing has been left in it.
    let _ = fd.write(1);
}

/// What `KVM_SET_GSI_ROUTING` takes for a route.
fn entries((gsi, route): (u32, Route)) -> Vec<kvm_irq_routing_entry> {
    let entry = |type_| kvm_irq_routing_entry {
        gsi,
        type_,
        ..kvm_irq_routing_entry::default()
    };
    let at = |chip, pin| {
        let mut entry = entry(KVM_IRQ_ROUTING_IRQCHIP);
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entry
    };
    match route {
        Route::Pin(pin @ 0..8) => {
            vec![at(KVM_IRQCHIP_PIC_MASTER, pin), at(KVM_IRQCHIP_IOAPIC, pin)]
        }
        Route::Pin(pin @ 8..16) => {
            vec![
                at(KVM_IRQCHIP_PIC_SLAVE, pin - 8),
                at(KVM_IRQCHIP_IOAPIC, pin),
            ]
        }
        Route::Pin(pin) => vec![at(KVM_IRQCHIP_IOAPIC, pin)],
        Route::Msi(message) => {
            let mut entry = entry(KVM_IRQ_ROUTING_MSI);
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
            vec![entry]
        }
    }
}

impl InterruptSink for KvmSink {
    fn set_level(&self, gsi: u32, _: u32, level: bool) {
        let mut levels = self.levels();
        match level {
            true => self.raise(&mut levels, gsi),
            false => {
                self.lower(&mut levels, gsi);
            }
        }
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        if let Some(fd) = self.edges.get(gsi) {
            return signal(&fd);
        }
        // What the guest's CPUs make of the message is between it and them.
        let _ = self.vm.signal_msi(kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..kvm_msi::default()
        });
    }

    fn pulse(&self, gsi: u32, _: u32) {
        if let Some(fd) = self.edges.get(gsi) {
            return signal(&fd);
        }
        let _levels = self.levels();
        self.set_line(gsi, true);
        self.set_line(gsi, false);
    }

    fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        let is_pin = |route: Option<Route>| matches!(route, Some(Route::Pin(_)));
        if !self.has_pins && changes.iter().any(|change| is_pin(change.new)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut levels = self.levels();
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
            if self.lower(&mut levels, change.gsi) {
                moving.push(change.gsi);
            }
        }
        let result = self.route(routes);
        if result.is_err() {
            moving.iter().for_each(|&gsi| self.raise(&mut levels, gsi));
        }
        result
    }

    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        let gsi = line.gsi();
        if self.injection == Injection::Kernel {
            self.edges.get_or_make(gsi, || {
                let fd = eventfd()?;
                self.vm.register_irqfd(&fd, gsi)?;
                Ok(fd)
            })?;
        }
        if resample {
            self.assertions.get_or_make(gsi, || self.assertion(line))?;
        }
        Ok(())
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
