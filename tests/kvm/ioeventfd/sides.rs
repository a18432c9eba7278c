//! KVM's ioeventfds and our table, each behind a virtual machine, both given the same operations.

use crate::guest::{Instruction, Machine};
use crate::search::KvmBus;
use crate::vm::{self, Exit};
use doorbell::Event;
use doorbell::ioeventfd::{Bus, Key, Registration, Table};
use kvm_ioctls::VmFd;
use std::fmt;
use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

pub const BUSES: [Bus; 2] = [Bus::Mmio, Bus::Pio];

/// The number of events. They are named by their index.
pub const EVENTS: usize = 5;

/// Another handle to event 0.
pub const ALIAS: usize = EVENTS;

/// The errno of a refusal.
pub type Answer = Result<(), i32>;

/// Addresses that ring events.
pub trait Doorbells: Sync {
    fn assign(&self, key: Key, event: usize) -> Answer;
    fn deassign(&self, key: Key, event: usize) -> Answer;
    /// Does what a VMM does on the exit of a write. Returns whether it was a doorbell.
    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool;
    /// Takes the count of an event, which is 0 then.
    fn take(&self, event: usize) -> u64;
    fn add(&self, event: usize, n: u64);
    /// Drops all handles of an event other than event 0, and makes a new one instead.
    fn replace(&mut self, event: usize);
}

/// The ioeventfds of KVM, by KVM_IOEVENTFD.
pub struct InKernel {
    vm: Arc<VmFd>,
    fds: Vec<EventFd>,
}

impl InKernel {
    pub fn new(vm: Arc<VmFd>) -> Self {
        let mut fds: Vec<_> = (0..EVENTS).map(|_| eventfd()).collect();
        fds.push(fds[0].try_clone().expect("dup"));
        InKernel { vm, fds }
    }
}

fn eventfd() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).expect("eventfd")
}

fn errno(error: io::Error) -> i32 {
    error.raw_os_error().expect("an error of the kernel's")
}

impl Doorbells for InKernel {
    fn assign(&self, key: Key, event: usize) -> Answer {
        vm::assign(&self.vm, &key, &self.fds[event])
    }

    fn deassign(&self, key: Key, event: usize) -> Answer {
        vm::deassign(&self.vm, &key, &self.fds[event])
    }

    fn write(&self, _: Bus, _: u64, _: &[u8]) -> bool {
        // KVM has looked already, before the vCPU's exit.
        false
    }

    fn take(&self, event: usize) -> u64 {
        self.fds[event].read().unwrap_or(0)
    }

    fn add(&self, event: usize, n: u64) {
        self.fds[event].write(n).expect("the eventfd has room");
    }

    fn replace(&mut self, event: usize) {
        self.fds[event] = eventfd();
    }
}

/// Our table, asked on exits.
pub struct InTable {
    pub table: Table,
    pub events: Vec<Arc<Event>>,
}

impl InTable {
    pub fn new() -> Self {
        let mut events: Vec<_> = (0..EVENTS).map(|_| Arc::new(Event::new(0))).collect();
        events.push(Arc::clone(&events[0]));
        InTable {
            table: Table::new(),
            events,
        }
    }
}

impl Doorbells for InTable {
    fn assign(&self, key: Key, event: usize) -> Answer {
        self.table
            .assign(key, &self.events[event])
            .map(Registration::keep)
            .map_err(|error| errno(error.into()))
    }

    fn deassign(&self, key: Key, event: usize) -> Answer {
        self.table
            .deassign(key, &self.events[event])
            .map_err(|error| errno(error.into()))
    }

    fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.table.write(bus, address, data)
    }

    fn take(&self, event: usize) -> u64 {
        self.events[event].try_read().unwrap_or(0)
    }

    fn add(&self, event: usize, n: u64) {
        self.events[event].try_write(n).expect("the event has room");
    }

    fn replace(&mut self, event: usize) {
        self.events[event] = Arc::new(Event::new(0));
    }
}

/// A virtual machine and its doorbells.
pub struct Side<D> {
    pub machine: Machine,
    pub doorbells: D,
}

impl Side<InKernel> {
    pub fn kernel() -> Option<Self> {
        let machine = Machine::new()?;
        let doorbells = InKernel::new(machine.vm());
        Some(Side { machine, doorbells })
    }
}

impl Side<InTable> {
    pub fn ours() -> Option<Self> {
        Some(Side {
            machine: Machine::new()?,
            doorbells: InTable::new(),
        })
    }
}

impl<D: Doorbells> Side<D> {
    /// Runs the guest, and returns the exits that no doorbell took.
    pub fn run(&mut self, instruction: Instruction, address: u64, value: u64) -> Vec<Exit> {
        let mut left = Vec::new();
        self.machine.run(instruction, address, value, |exit| {
            let taken = match &exit {
                Exit::Write { bus, address, data } => self.doorbells.write(*bus, *address, data),
                _ => false,
            };
            if !taken {
                left.push(exit);
            }
        });
        left
    }

    fn write(&mut self, write: Write) -> Option<usize> {
        let left = self.run(
            Instruction::write(write.bus, write.size),
            write.address,
            write.value,
        );
        let mut rung = (0..EVENTS).flat_map(|event| {
            let count = self.doorbells.take(event);
            (0..count).map(move |_| event)
        });
        let event = rung.next();
        assert_eq!(rung.next(), None, "one write rings once");
        let expected = match event {
            Some(_) => vec![],
            None => vec![write.exit()],
        };
        assert_eq!(left, expected, "{write:?} rang {event:?}");
        event
    }
}

/// A plain write of the guest.
#[derive(Clone, Copy)]
pub struct Write {
    pub bus: Bus,
    pub address: u64,
    /// 1, 2 or 4, or 8 if the bus is MMIO.
    pub size: usize,
    /// The bytes that do not fit in `size` are cut off.
    pub value: u64,
}

impl Write {
    /// The value as the bus sees it.
    pub fn data(&self) -> u64 {
        self.value & (u64::MAX >> (64 - 8 * self.size))
    }

    fn exit(&self) -> Exit {
        Exit::Write {
            bus: self.bus,
            address: self.address,
            data: self.value.to_le_bytes()[..self.size].to_vec(),
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Write {
            bus, address, size, ..
        } = self;
        write!(f, "{bus:?} {address:#x} {size} <- {:#x}", self.data())
    }
}

pub fn key_at(bus: Bus, address: u64, length: u32) -> Key {
    Key::new(bus, address, length)
}

pub fn mmio(address: u64, size: usize, value: u64) -> Write {
    Write {
        bus: Bus::Mmio,
        address,
        size,
        value,
    }
}

pub fn pio(port: u64, size: usize, value: u64) -> Write {
    Write {
        bus: Bus::Pio,
        address: port,
        size,
        value,
    }
}

/// What a write rang on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    pub kernel: Option<usize>,
    pub ours: Option<usize>,
}

/// Both sides, in step.
pub struct Sides {
    pub kernel: Side<InKernel>,
    pub ours: Side<InTable>,
    /// The entries that both have registered, in KVM's order.
    mmio: KvmBus,
    pio: KvmBus,
    pub tally: Tally,
}

impl Sides {
    pub fn new() -> Option<Self> {
        Some(Sides {
            kernel: Side::kernel()?,
            ours: Side::ours()?,
            mmio: KvmBus::default(),
            pio: KvmBus::default(),
            tally: Tally::default(),
        })
    }

    fn bus(&mut self, bus: Bus) -> &mut KvmBus {
        match bus {
            Bus::Mmio => &mut self.mmio,
            Bus::Pio => &mut self.pio,
        }
    }

    /// Assigns on both sides. Returns the answer, which must be the same from both.
    pub fn assign(&mut self, key: Key, event: usize) -> Answer {
        let kernel = self.kernel.doorbells.assign(key, event);
        let ours = self.ours.doorbells.assign(key, event);
        assert_eq!(ours, kernel, "ours, KVM's answer to assign {key:x?}");
        if kernel.is_ok() {
            self.bus(key.bus).insert(key, event);
        }
        self.tally.assigns.count(kernel.is_ok());
        kernel
    }

    /// Deassigns on both sides. Returns the answer, which must be the same from both.
    pub fn deassign(&mut self, key: Key, event: usize) -> Answer {
        let kernel = self.kernel.doorbells.deassign(key, event);
        let ours = self.ours.doorbells.deassign(key, event);
        assert_eq!(ours, kernel, "ours, KVM's answer to deassign {key:x?}");
        if kernel.is_ok() {
            self.bus(key.bus).remove(key);
        }
        self.tally.deassigns.count(kernel.is_ok());
        kernel
    }

    /// What a write rings. KVM must ring what a model of its search finds, and our table what is registered for the
    /// write.
    pub fn write_each(&mut self, write: Write) -> Rung {
        let rung = Rung {
            kernel: self.kernel.write(write),
            ours: self.ours.write(write),
        };
        let bus = self.bus(write.bus);
        let registered = bus.registered(write);
        assert_eq!(rung.ours, registered, "ours, of {bus:x?} for {write:?}");
        assert!(
            bus.may_find(write).contains(&rung.kernel),
            "KVM rang {:?} of {bus:x?} for {write:?}",
            rung.kernel
        );
        self.tally.writes.count(registered.is_some());
        self.tally.missed += u64::from(rung.kernel != registered);
        rung
    }

    /// What a write rings, which must be the same for both.
    pub fn write(&mut self, write: Write) -> Option<usize> {
        let rung = self.write_each(write);
        assert_eq!(rung.ours, rung.kernel, "ours, KVM's for {write:?}");
        rung.ours
    }

    /// Runs both, and returns the exits that no doorbell took, which must be the same.
    pub fn run(&mut self, instruction: Instruction, address: u64, value: u64) -> Vec<Exit> {
        let kernel = self.kernel.run(instruction, address, value);
        let ours = self.ours.run(instruction, address, value);
        assert_eq!(ours, kernel, "ours, KVM's for {instruction:?}");
        ours
    }

    /// The count of an event, which must be the same for both.
    pub fn take(&mut self, event: usize) -> u64 {
        let kernel = self.kernel.doorbells.take(event);
        let ours = self.ours.doorbells.take(event);
        assert_eq!(ours, kernel, "ours, KVM's count of event {event}");
        ours
    }

    pub fn add(&mut self, event: usize, n: u64) {
        self.kernel.doorbells.add(event, n);
        self.ours.doorbells.add(event, n);
    }

    /// Everything that is registered.
    pub fn registered(&self) -> impl Iterator<Item = (Key, usize)> {
        self.mmio.entries().chain(self.pio.entries())
    }
}

/// Counts of what was compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub assigns: Share,
    pub deassigns: Share,
    /// Writes, and the share for which an event is registered.
    pub writes: Share,
    /// Writes for which KVM does not find the registered event.
    pub missed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    pub yes: u64,
    pub no: u64,
}

impl Share {
    fn count(&mut self, yes: bool) {
        match yes {
            true => self.yes += 1,
            false => self.no += 1,
        }
    }
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.yes += other.yes;
        self.no += other.no;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.assigns += other.assigns;
        self.deassigns += other.deassigns;
        self.writes += other.writes;
        self.missed += other.missed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            assigns,
            deassigns,
            writes,
            missed,
        } = self;
        write!(
            f,
            "{} assigns and {} refused, {} deassigns and {} refused, {} guest writes to doorbells and {} to others; \
             KVM missed {missed}",
            assigns.yes, assigns.no, deassigns.yes, deassigns.no, writes.yes, writes.no
        )
    }
}
