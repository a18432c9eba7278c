//! KVM's irqfds, and ours with a model of the interrupt controllers.

use super::guest::{FENCE, LEVEL, LINES, Machine, is_requested};
use super::script::{Act, EVENTS, Op, Outcome, SEMAPHORE, Side};
use crate::vm::{VECTORS, descriptor};
use doorbell::irqfd::{InterruptSink, Irqfd, MsiMessage, Route, Router, Routes};
use doorbell::kvm::{Injection, KvmSink};
use doorbell::{Event, Mode};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_PIC_MASTER, KvmIrqRouting,
    kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use std::array;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use vmm_sys_util::eventfd::EventFd;

const MSI_ADDRESS: u64 = 0xfee0_0000;

/// Sets KVM's routes: lines to the PIC only, and these messages.
pub fn set_kernel_routes(vm: &VmFd, messages: &BTreeMap<u32, u8>) {
    let mut entries = Vec::new();
    for line in LINES.map(u32::from).into_iter().chain([FENCE]) {
        let mut entry = kvm_irq_routing_entry {
            gsi: line,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = KVM_IRQCHIP_PIC_MASTER;
        entry.u.irqchip.pin = line;
        entries.push(entry);
    }
    for (&gsi, &vector) in messages {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi.address_lo = MSI_ADDRESS as u32;
        entry.u.msi.data = vector.into();
        entries.push(entry);
    }
    let routing = KvmIrqRouting::from_entries(&entries).expect("not too many");
    vm.set_gsi_routing(&routing).expect("KVM_SET_GSI_ROUTING");
}

/// KVM's irqfds.
pub struct Kernel {
    machine: Machine,
    hands: Hands,
}

/// The part of a side that does not need the vCPU.
struct Hands {
    vm: Arc<VmFd>,
    events: [EventFd; EVENTS],
    fence: Fence,
    messages: BTreeMap<u32, u8>,
}

/// Shows when KVM's workers, which work in order, have seen earlier signals: a resampling irqfd on a line of its own,
/// which can be looked at and taken back without affecting anything else.
pub struct Fence([EventFd; 2]);

impl Fence {
    pub fn new() -> Self {
        Fence([0; 2].map(|flags| EventFd::new(flags).expect("eventfd")))
    }

    pub fn pass(&self, vm: &VmFd) {
        let [fd, resample] = &self.0;
        vm.register_irqfd_with_resample(fd, resample, FENCE)
            .expect("KVM_IRQFD");
        fd.write(1).expect("room");
        while !is_requested(vm, FENCE) {
            thread::yield_now();
        }
        vm.unregister_irqfd(fd, FENCE).expect("KVM_IRQFD");
        assert!(!is_requested(vm, FENCE));
    }
}

impl Kernel {
    pub fn new() -> Option<Self> {
        let machine = Machine::new()?;
        let vm = Arc::clone(machine.vm());
        let messages = BTreeMap::new();
        set_kernel_routes(&vm, &messages);
        let hands = Hands {
            fence: Fence::new(),
            vm,
            events: array::from_fn(|event| {
                let semaphore = if event == SEMAPHORE {
                    libc::EFD_SEMAPHORE
                } else {
                    0
                };
                EventFd::new(libc::EFD_NONBLOCK | semaphore).expect("eventfd")
            }),
            messages,
        };
        Some(Kernel { machine, hands })
    }
}

fn outcome(result: Result<(), kvm_ioctls::Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Errno(error.errno()),
    }
}

impl Act for Hands {
    fn act(&mut self, op: &Op) -> Outcome {
        let outcome = match *op {
            Op::Assign {
                event,
                gsi,
                resample,
            } => {
                let fd = &self.events[event];
                outcome(match resample {
                    None => self.vm.register_irqfd(fd, gsi),
                    Some(rs) => self
                        .vm
                        .register_irqfd_with_resample(fd, &self.events[rs], gsi),
                })
            }
            Op::Deassign { event, gsi } => {
                outcome(self.vm.unregister_irqfd(&self.events[event], gsi))
            }
            Op::Write { event, n } => {
                self.events[event].write(n).expect("room");
                Outcome::Done
            }
            Op::Read(event) => Outcome::Read(self.events[event].read().ok()),
            Op::Level(level) => outcome(self.vm.set_irq_line(LEVEL.into(), level)),
            Op::Route { gsi, vector } => {
                match vector {
                    Some(vector) => self.messages.insert(gsi, vector),
                    None => self.messages.remove(&gsi),
                };
                set_kernel_routes(&self.vm, &self.messages);
                Outcome::Done
            }
            Op::Run(_) => unreachable!("the player does that"),
        };
        // KVM waits for everything else that it leaves to its workers.
        if matches!(op, Op::Write { .. } | Op::Assign { .. }) {
            self.fence.pass(&self.vm);
        }
        outcome
    }
}

impl Act for Kernel {
    fn act(&mut self, op: &Op) -> Outcome {
        self.hands.act(op)
    }
}

impl Side for Kernel {
    fn run(&mut self, in_service: &mut dyn FnMut(&mut dyn Act, u8)) {
        let Kernel { machine, hands } = self;
        // KVM carries out the effects of an end of interrupt immediately.
        machine.run(&mut |vector| {
            if let Some(vector) = vector {
                in_service(hands, vector);
            }
        });
    }
}

/// Signals an event, from any thread.
pub type Signal = Box<dyn Fn() + Send + Sync>;

impl Kernel {
    pub fn signal(&self, event: usize) -> Signal {
        let fd = self.hands.events[event].try_clone().expect("dup");
        Box::new(move || fd.write(1).expect("room"))
    }
}

/// Our irqfds, and interrupt controllers as simple as they can be: a PIC with one level-triggered line, and the vectors
/// that have been sent to a local APIC.
pub struct Ours {
    router: Router,
    chips: Arc<Chips>,
    events: [Arc<Event>; EVENTS],
}

#[derive(Default)]
struct Chips(Mutex<State>);

#[derive(Default)]
struct State {
    up: BTreeSet<u32>,
    /// Edges that the guest has not taken yet.
    edges: BTreeSet<u32>,
    messages: BTreeSet<u8>,
}

impl InterruptSink for Chips {
    fn set_level(&self, _: u32, pin: u32, level: bool) {
        let mut state = self.0.lock().expect("nobody panics");
        if !level {
            state.up.remove(&pin);
        } else if state.up.insert(pin) {
            state.edges.insert(pin);
        }
    }

    fn signal_msi(&self, _: u32, message: MsiMessage) {
        let mut state = self.0.lock().expect("nobody panics");
        state.messages.insert(message.data as u8);
    }
}

impl Chips {
    /// The line whose interrupt the guest takes next.
    fn take_line(&self) -> Option<u8> {
        let mut state = self.0.lock().expect("nobody panics");
        let requests = |line: &u8| match *line {
            LEVEL => state.up.contains(&LEVEL.into()),
            line => state.edges.contains(&line.into()),
        };
        let line = LINES.into_iter().find(requests)?;
        state.edges.remove(&line.into());
        Some(line)
    }

    fn take_message(&self) -> Option<u8> {
        self.0.lock().expect("nobody panics").messages.pop_last()
    }
}

impl Ours {
    pub fn new() -> Self {
        let chips = Arc::new(Chips::default());
        let router = Router::new(Arc::clone(&chips));
        let pins = LINES.map(u32::from).map(|line| (line, Route::Pin(line)));
        let routes = Routes::from_entries(pins).expect("valid");
        router
            .set_routes(routes)
            .expect("the sink takes all routes");
        Ours {
            router,
            chips,
            events: events(),
        }
    }
}

pub fn events() -> [Arc<Event>; EVENTS] {
    array::from_fn(|event| {
        Arc::new(Event::with_mode(
            0,
            if event == SEMAPHORE {
                Mode::Semaphore
            } else {
                Mode::Counter
            },
        ))
    })
}

/// Carries out an operation with our router.
pub fn act(router: &Router, events: &[Arc<Event>; EVENTS], op: &Op) -> Outcome {
    let outcome = |result: Result<(), io::Error>| match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Errno(error.raw_os_error().expect("an errno")),
    };
    match *op {
        Op::Assign {
            event,
            gsi,
            resample,
        } => {
            let event = &events[event];
            let irqfd = match resample {
                None => router.assign(event, gsi),
                Some(resample) => router.assign_with_resample(event, gsi, &events[resample]),
            };
            outcome(irqfd.map(Irqfd::keep).map_err(io::Error::from))
        }
        Op::Deassign { event, gsi } => {
            router.deassign(&events[event], gsi);
            Outcome::Done
        }
        Op::Write { event, n } => {
            events[event].try_write(n).expect("room");
            Outcome::Done
        }
        Op::Read(event) => Outcome::Read(events[event].try_read()),
        Op::Level(level) => {
            router.set_level(LEVEL.into(), level);
            Outcome::Done
        }
        Op::Route { gsi, vector } => {
            let message = |vector: u8| Route::Msi(MsiMessage::new(MSI_ADDRESS, vector.into()));
            let result = router.set_route(gsi, vector.map(message));
            outcome(result.map_err(io::Error::from))
        }
        Op::Run(_) => unreachable!("the player does that"),
    }
}

impl Act for Ours {
    fn act(&mut self, op: &Op) -> Outcome {
        act(&self.router, &self.events, op)
    }
}

impl Side for Ours {
    fn run(&mut self, in_service: &mut dyn FnMut(&mut dyn Act, u8)) {
        loop {
            if let Some(line) = self.chips.take_line() {
                in_service(self, VECTORS + line);
                self.router.ack(line.into());
            } else if let Some(vector) = self.chips.take_message() {
                in_service(self, vector);
            } else {
                return;
            }
        }
    }
}

/// Our irqfds, and KVM's interrupt controllers and guest.
pub struct OursInKvm {
    machine: Machine,
    hands: RouterHands,
}

struct Wrapper(KvmSink);

impl InterruptSink for Wrapper {
    fn set_level(&self, gsi: u32, pin: u32, level: bool) {
        self.0.set_level(gsi, pin, level);
    }

    fn signal_msi(&self, gsi: u32, message: MsiMessage) {
        self.0.signal_msi(gsi, message);
    }

    fn inner(&self) -> Option<&dyn InterruptSink> {
        Some(&self.0)
    }
}

struct RouterHands {
    router: Router,
    events: [Arc<Event>; EVENTS],
    vm: Arc<VmFd>,
    fence: Fence,
    /// The events that have a resampling irqfd, and the irqfd's line, whose ends of interrupts the sink is told of.
    resampling: BTreeMap<usize, u32>,
    /// The line that is in service, and how often its resample events had been signalled before its end.
    ending: Option<(u32, u64)>,
}

impl OursInKvm {
    pub fn new(injection: Injection) -> Option<Self> {
        Self::of(injection, Router::new)
    }

    /// With a sink around the `KvmSink` that has no methods but those that it must have.
    pub fn wrapped(injection: Injection) -> Option<Self> {
        Self::of(injection, |sink| Router::new(Wrapper(sink)))
    }

    fn of(injection: Injection, router: impl FnOnce(KvmSink) -> Router) -> Option<Self> {
        let machine = Machine::new()?;
        let vm = Arc::clone(machine.vm());
        let sink = KvmSink::new(descriptor(&vm), injection).expect("a full interrupt controller");
        let router = router(sink);
        let pins = LINES.map(u32::from).into_iter().chain([FENCE]);
        let routes = Routes::from_entries(pins.map(|line| (line, Route::Pin(line))));
        router
            .set_routes(routes.expect("valid"))
            .expect("KVM takes it");
        let hands = RouterHands {
            router,
            events: events(),
            fence: Fence::new(),
            vm,
            resampling: BTreeMap::new(),
            ending: None,
        };
        Some(OursInKvm { machine, hands })
    }
}

impl OursInKvm {
    pub fn router(&self) -> &Router {
        &self.hands.router
    }

    pub fn event(&self, event: usize) -> &Arc<Event> {
        &self.hands.events[event]
    }

    pub fn vm(&self) -> &VmFd {
        &self.hands.vm
    }

    /// Lets the guest take interrupts, without a look at the effects of their ends. There must be an interrupt, or
    /// KVM's PIC must be about to request one.
    pub fn take_some(&mut self) -> u32 {
        let mut taken = 0;
        self.machine
            .run(&mut |vector| taken += u32::from(vector.is_some()));
        taken
    }

    /// Waits for the effects of calls that were made without [`Side::act`].
    pub fn pass_fence(&self) {
        self.hands.fence.pass(&self.hands.vm);
    }

    pub fn signal(&self, event: usize) -> Signal {
        let event = Arc::clone(self.event(event));
        Box::new(move || event.signal())
    }
}

impl RouterHands {
    /// Waits for the effects of the end of an interrupt.
    fn settle(&mut self) {
        let Some((line, before)) = self.ending.take() else {
            return;
        };
        while self.router.line_counters(line).resamples == before {
            thread::yield_now();
        }
        // This returns when the thread that has counted the end has also raised lines that are still held up.
        self.router.synchronize();
        self.fence.pass(&self.vm);
    }

    /// The guest ends this interrupt next.
    fn expect_end(&mut self, vector: u8) {
        let line = u32::from(vector.wrapping_sub(VECTORS));
        if self.resampling.values().any(|&other| other == line) {
            self.ending = Some((line, self.router.line_counters(line).resamples));
        }
    }
}

impl Act for RouterHands {
    fn act(&mut self, op: &Op) -> Outcome {
        let outcome = act(&self.router, &self.events, op);
        match *op {
            Op::Assign {
                event,
                gsi,
                resample: Some(_),
            } if outcome == Outcome::Done => {
                self.resampling.insert(event, gsi);
            }
            Op::Deassign { event, gsi } if self.resampling.get(&event) == Some(&gsi) => {
                self.resampling.remove(&event);
            }
            _ => {}
        }
        if !matches!(op, Op::Read(_)) {
            self.fence.pass(&self.vm);
        }
        outcome
    }
}

impl Act for OursInKvm {
    fn act(&mut self, op: &Op) -> Outcome {
        self.hands.act(op)
    }
}

impl Side for OursInKvm {
    fn run(&mut self, in_service: &mut dyn FnMut(&mut dyn Act, u8)) {
        let OursInKvm { machine, hands } = self;
        machine.run(&mut |vector| {
            hands.settle();
            if let Some(vector) = vector {
                in_service(hands, vector);
                hands.expect_end(vector);
            }
        });
    }
}
