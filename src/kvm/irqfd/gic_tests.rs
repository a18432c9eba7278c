//! The sink as it is on arm64, at a stand-in for the ioctls, on every processor.
//!
//! The stand-in is a GIC as far as KVM's part of it reaches: routes, irqfds, levels and ends of interrupt, after
//! `virt/kvm/eventfd.c` and `arch/arm64/kvm`. None of this has met KVM on arm64.

use super::gic as controller;
use super::{Error, Vm, eventfd};
use crate::Event;
use crate::irqfd::{MsiMessage, Route, Router, Routes, RoutingError};
use crate::kvm::ioctl::stand_in::{self, Call, Machine};
use kvm_bindings::{kvm_irq_routing_entry, kvm_irqfd};
use rustix::io::{Errno, read, write};
use sink::{Injection, KvmSink};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};
use table::RouteTableError;

// These are loaded again on purpose: here the controller is the GIC.
#[allow(clippy::duplicate_mod)]
#[path = "pump.rs"]
mod pump;
/// The rest of what users call is called in the tests of the module that they have.
#[allow(clippy::duplicate_mod, dead_code)]
#[path = "sink.rs"]
mod sink;
#[allow(clippy::duplicate_mod)]
#[path = "table.rs"]
mod table;
#[allow(clippy::duplicate_mod)]
#[path = "wire.rs"]
mod wire;

const BOTH: [Injection; 2] = [Injection::Userspace, Injection::Kernel];
const WATCHDOG: Duration = Duration::from_secs(60);

/// Flags of `linux/kvm.h`.
const DEASSIGN: u32 = 1 << 0;
const RESAMPLE: u32 = 1 << 1;

#[derive(Default)]
struct Gic(Mutex<State>);

#[derive(Default)]
struct State {
    /// What `KVM_IRQ_LINE` answers.
    refusal: Option<Errno>,
    refuses_tables: bool,
    refuses_irqfds: bool,
    tables: usize,
    /// (`irq`, `level`) of each `KVM_IRQ_LINE`.
    lines: Vec<(u32, u32)>,
    routes: BTreeMap<u32, Target>,
    irqfds: Vec<Irqfd>,
    /// The SPIs that are up, by the number of the interrupt.
    up: BTreeSet<u32>,
    messages: Vec<Msi>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Spi(u32),
    Msi(Msi),
}

/// A message as KVM gets it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Msi {
    address: (u32, u32),
    data: u32,
    flags: u32,
    devid: u32,
}

struct Irqfd {
    gsi: u32,
    /// The number in the process, and the eventfd itself.
    number: u32,
    fd: OwnedFd,
    resample: Option<OwnedFd>,
}

/// The eventfd behind a number that a call has brought.
fn eventfd_of(number: u32) -> OwnedFd {
    // SAFETY: it is open during the call that it is an argument of.
    let fd = unsafe { BorrowedFd::borrow_raw(number as i32) };
    fd.try_clone_to_owned().expect("a descriptor")
}

fn take(fd: impl AsFd) -> bool {
    read(fd, &mut [0_u8; 8]).is_ok()
}

impl State {
    fn resamplers(&self, gsi: u32) -> usize {
        let of_gsi = self.irqfds.iter().filter(|irqfd| irqfd.gsi == gsi);
        of_gsi.filter(|irqfd| irqfd.resample.is_some()).count()
    }

    /// What the irqfds do for the writes to their eventfds.
    fn run(&mut self) {
        for irqfd in &self.irqfds {
            while take(&irqfd.fd) {
                match self.routes.get(&irqfd.gsi) {
                    Some(&Target::Spi(spi)) => {
                        assert!(irqfd.resample.is_some(), "an irqfd pulses SPI {spi}");
                        self.up.insert(spi);
                    }
                    Some(&Target::Msi(message)) => self.messages.push(message),
                    None => {}
                }
            }
        }
    }

    fn set_table(&mut self, entries: &[kvm_irq_routing_entry]) -> Result<(), Errno> {
        self.tables += 1;
        if self.refuses_tables {
            return Err(Errno::INVAL);
        }
        self.routes.clear();
        for entry in entries {
            // SAFETY: the type says which member there is. The device's id has been written or is 0.
            let target = unsafe {
                match entry.type_ {
                    1 => {
                        let of = entry.u.irqchip;
                        assert!(of.irqchip == 0 && of.pin < 988, "{of:?}");
                        assert_eq!(entry.flags, 0);
                        Target::Spi(of.pin + 32)
                    }
                    2 => Target::Msi(Msi {
                        address: (entry.u.msi.address_hi, entry.u.msi.address_lo),
                        data: entry.u.msi.data,
                        flags: entry.flags,
                        devid: entry.u.msi.__bindgen_anon_1.devid,
                    }),
                    other => panic!("an entry of type {other}"),
                }
            };
            assert_eq!(self.routes.insert(entry.gsi, target), None);
        }
        Ok(())
    }

    fn set_irqfd(&mut self, argument: kvm_irqfd) -> Result<(), Errno> {
        let (number, gsi) = (argument.fd, argument.gsi);
        if argument.flags & DEASSIGN == 0 {
            assert_eq!(argument.flags & !RESAMPLE, 0);
            if self.refuses_irqfds {
                return Err(Errno::AGAIN);
            }
            let resamples = argument.flags & RESAMPLE != 0;
            self.irqfds.push(Irqfd {
                gsi,
                number,
                fd: eventfd_of(number),
                resample: resamples.then(|| eventfd_of(argument.resamplefd)),
            });
            return Ok(());
        }
        self.run();
        let is_it = |irqfd: &Irqfd| (irqfd.gsi, irqfd.number) == (gsi, number);
        let at = self.irqfds.iter().position(is_it).ok_or(Errno::INVAL)?;
        let resampled = self.irqfds.swap_remove(at).resample.is_some();
        if resampled && self.resamplers(gsi) == 0 {
            self.lower(gsi);
        }
        Ok(())
    }

    /// The SPI has one level, whatever has set it.
    fn lower(&mut self, gsi: u32) {
        if let Some(Target::Spi(spi)) = self.routes.get(&gsi) {
            self.up.remove(spi);
        }
    }
}

impl Machine for Gic {
    fn call(&self, call: Call) -> Result<(), Errno> {
        let mut state = self.0.lock().unwrap();
        match call {
            Call::IrqLine { irq, level } => {
                let (kind, cpu, number) = (irq >> 24, irq >> 16 & 0xff, irq & 0xffff);
                assert_eq!((kind, cpu), (1, 0), "{irq:#x} is no SPI");
                match state.refusal {
                    Some(errno) => return Err(errno),
                    None if number < 32 => return Err(Errno::INVAL),
                    None => state.lines.push((irq, level)),
                }
                match level {
                    0 => state.up.remove(&number),
                    _ => state.up.insert(number),
                };
                Ok(())
            }
            Call::SetGsiRouting(entries) => state.set_table(&entries),
            Call::Irqfd(argument) => state.set_irqfd(argument),
            Call::SignalMsi(message) => {
                state.messages.push(Msi {
                    address: (message.address_hi, message.address_lo),
                    data: message.data,
                    flags: message.flags,
                    devid: message.devid,
                });
                Ok(())
            }
        }
    }
}

impl Gic {
    /// What has become of it, with all that was written to irqfds.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap();
        state.run();
        state
    }

    fn up(&self) -> Vec<u32> {
        self.state().up.iter().copied().collect()
    }

    /// The guest ends an interrupt.
    fn end(&self, spi: u32) {
        let mut state = self.state();
        let leads_there = |gsi: &u32| state.routes.get(gsi) == Some(&Target::Spi(spi));
        let watched = |irqfd: &&Irqfd| leads_there(&irqfd.gsi) && irqfd.resample.is_some();
        let Some(gsi) = state.irqfds.iter().find(watched).map(|irqfd| irqfd.gsi) else {
            return;
        };
        state.lower(gsi);
        let of_gsi = state.irqfds.iter().filter(|irqfd| irqfd.gsi == gsi);
        for fd in of_gsi.filter_map(|irqfd| irqfd.resample.as_ref()) {
            write(fd, &1_u64.to_ne_bytes()).unwrap();
        }
    }
}

fn machine(injection: Injection) -> (Arc<Gic>, Arc<KvmSink>, Router) {
    let gic = Arc::new(Gic::default());
    let sink = KvmSink::new(stand_in::descriptor(&gic), injection).expect("a sink");
    let sink = Arc::new(sink);
    let router = Router::new(Arc::clone(&sink));
    (gic, sink, router)
}

#[test]
fn messages_name_their_devices() {
    for injection in BOTH {
        let (gic, sink, router) = machine(injection);
        let message = MsiMessage::new(0x12_0808_0040, 7);
        let of_device = message.with_devid(0x0108);
        let routes = [(40, message.into()), (41, of_device.into())];
        router
            .set_routes(Routes::from_entries(routes).unwrap())
            .unwrap();
        let expected = |flags, devid| Msi {
            address: (0x12, 0x0808_0040),
            data: 7,
            flags,
            devid,
        };
        let expected = [expected(0, 0), expected(1, 0x0108)];
        let table = [
            (40, Target::Msi(expected[0])),
            (41, Target::Msi(expected[1])),
        ];
        // Where the VMM injects, the table has pins only.
        let table = table.into_iter().filter(|_| injection == Injection::Kernel);
        assert_eq!(gic.state().routes, table.collect());

        for (gsi, expected) in [(40, expected[0]), (41, expected[1])] {
            let event = Arc::new(Event::new(0));
            let _irqfd = router.assign(&event, gsi).unwrap();
            event.signal();
            assert_eq!(std::mem::take(&mut gic.state().messages), [expected]);
        }
        assert!(gic.state().irqfds.is_empty());
        assert_eq!(sink.refused(), 0);
    }
}

/// `KVM_IRQ_LINE` names SPIs by their interrupt's number, and not by the GSI. In the table they are pins.
#[test]
fn spis_go_by_their_numbers() {
    for injection in BOTH {
        let (gic, sink, router) = machine(injection);
        let pins = [(0, 0), (5, 100), (100, 5), (4095, 987)];
        let routes = pins.map(|(gsi, pin)| (gsi, Route::Pin(pin)));
        router
            .set_routes(Routes::from_entries(routes).unwrap())
            .unwrap();
        let table = pins.map(|(gsi, pin)| (gsi, Target::Spi(pin + 32)));
        assert_eq!(gic.state().routes, BTreeMap::from(table));
        for (gsi, irq) in [
            (0, 0x0100_0020),
            (5, 0x0100_0084),
            (100, 0x0100_0025),
            (4095, 0x0100_03fb),
        ] {
            router.set_level(gsi, true);
            assert_eq!(gic.up(), [irq & 0xffff]);
            router.set_level(gsi, false);
            let event = Arc::new(Event::new(0));
            let _irqfd = router.assign(&event, gsi).unwrap();
            event.signal(); // an edge
            let lines = std::mem::take(&mut gic.state().lines);
            assert_eq!(lines, [(irq, 1), (irq, 0), (irq, 1), (irq, 0)]);
        }
        assert_eq!(sink.refused(), 0);
    }
}

#[test]
fn pins_that_no_gic_has() {
    let (gic, _, router) = machine(Injection::Userspace);
    let tables = gic.state().tables;
    let Err(RoutingError::Refused(error)) = router.set_route(3, Some(Route::Pin(988))) else {
        panic!("taken");
    };
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
    let expected = RouteTableError::Pin(988);
    assert_eq!(reason, Some(&expected));
    assert_eq!(
        expected.to_string(),
        "KVM's GIC has 988 pins, of which none is 988"
    );
    assert_eq!(gic.state().tables, tables);
}

/// An irqfd that KVM refuses leaves the line as it is, and nothing of it stays behind.
#[test]
fn irqfds_that_are_refused() {
    for injection in BOTH {
        let (gic, sink, router) = machine(injection);
        router.set_route(5, Some(Route::Pin(100))).unwrap();
        router.set_level(5, true);
        let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        gic.state().refuses_irqfds = true;
        assert!(router.assign_with_resample(&event, 5, &resample).is_err());
        assert_eq!(gic.up(), [132]);
        gic.state().refuses_irqfds = false;
        let _irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        gic.end(132);
        assert!(
            resample.wait_readable_timeout(WATCHDOG),
            "no resample event"
        );
        router.set_level(5, false);
        drop(router.save(|_| 0));
        assert!(gic.up().is_empty());
        assert_eq!(sink.refused(), 0);
    }
}

/// What is no message in x2APIC format is a message here, and a refusal has other reasons.
#[test]
fn a_table_is_refused_once() {
    let (gic, _, router) = machine(Injection::Kernel);
    let message = MsiMessage::new(0x12_0808_0040, 7).with_devid(1);
    router.set_route(40, Some(message.into())).unwrap();
    let tables = gic.state().tables;
    gic.state().refuses_tables = true;
    assert!(router.set_route(41, Some(Route::Pin(1))).is_err());
    assert_eq!(gic.state().tables, tables + 1);
    gic.state().refuses_tables = false;
    router.set_route(41, Some(Route::Pin(1))).unwrap();
    assert_eq!(gic.state().routes.len(), 2);
}

#[test]
fn machines_without_a_gic() {
    for (refusal, taken) in [
        (Errno::NXIO, false),
        (Errno::BUSY, false),
        (Errno::INVAL, true),
    ] {
        let gic = Arc::new(Gic::default());
        gic.state().refusal = Some(refusal);
        match KvmSink::new(stand_in::descriptor(&gic), Injection::Userspace) {
            Ok(_) => assert!(taken),
            Err(error) => {
                assert!(!taken && error.call() == "KVM_IRQ_LINE");
                let errno = io::Error::from(error).raw_os_error();
                assert_eq!(errno, Some(refusal.raw_os_error()));
            }
        }
    }
}

/// A resampling irqfd of KVM's raises the SPI until the guest's end of interrupt, and the device raises it again.
#[test]
fn resampling_spis() {
    for injection in BOTH {
        let (gic, sink, router) = machine(injection);
        router.set_route(5, Some(Route::Pin(100))).unwrap();
        let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        let irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        for _ in 0..3 {
            // The pump's thread may still be the line's driver, and then raises it after this call.
            event.signal();
            let deadline = Instant::now() + WATCHDOG;
            while gic.up() != [132] {
                assert!(Instant::now() < deadline, "not raised");
                thread::yield_now();
            }
            gic.end(132);
            assert!(
                resample.wait_readable_timeout(WATCHDOG),
                "no resample event"
            );
            assert_eq!(resample.try_read(), Some(1));
            assert!(gic.up().is_empty());
        }
        event.signal();
        drop(irqfd);
        assert!(gic.up().is_empty());
        assert!(gic.state().irqfds.is_empty());
        assert_eq!(sink.refused(), 0);
    }
}

/// KVM lowers the SPI with its last resampling irqfd, also if something else holds it up.
#[test]
fn a_level_outlives_resampling_irqfds() {
    for (injection, raised_first, signalled) in BOTH.into_iter().flat_map(|injection| {
        [(true, false), (true, true), (false, false), (false, true)]
            .map(|(first, signalled)| (injection, first, signalled))
    }) {
        let (gic, sink, router) = machine(injection);
        router.set_route(5, Some(Route::Pin(100))).unwrap();
        if raised_first {
            router.set_level(5, true);
        }
        let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        let irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        if signalled {
            event.signal();
        }
        router.set_level(5, true);
        assert_eq!(gic.up(), [132]);
        drop(irqfd);
        assert_eq!(gic.up(), [132], "{injection:?} {raised_first} {signalled}");
        router.set_level(5, false);
        assert!(gic.up().is_empty());
        assert_eq!(sink.refused(), 0);
    }
}

/// A line that is held up is up again after an end of interrupt, which lowers it whatever has raised it.
#[test]
fn a_level_outlives_an_end_of_interrupt() {
    for raised_first in [true, false] {
        let (gic, _, router) = machine(Injection::Userspace);
        router.set_route(5, Some(Route::Pin(100))).unwrap();
        let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        if raised_first {
            router.set_level(5, true);
        }
        let _irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        router.set_level(5, true);
        for _ in 0..3 {
            gic.end(132);
            assert!(
                resample.wait_readable_timeout(WATCHDOG),
                "no resample event"
            );
            assert_eq!(resample.try_read(), Some(1));
            // The pump's thread has raised it before or does so in this call, which waits for that thread.
            drop(router.save(|_| 0));
            assert_eq!(gic.up(), [132]);
        }
    }
}

/// A line that is up goes down where it was and up where its GSI leads now.
#[test]
fn levels_move_with_their_routes() {
    for with_irqfd in [false, true] {
        let (gic, sink, router) = machine(Injection::Userspace);
        router.set_route(5, Some(Route::Pin(100))).unwrap();
        let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        let irqfd = with_irqfd.then(|| router.assign_with_resample(&event, 5, &resample).unwrap());
        router.set_level(5, true);
        let pins = |pins: [u32; 2]| {
            [
                (5, Some(Route::Pin(pins[0]))),
                (6, Some(Route::Pin(pins[1]))),
            ]
        };
        router.change_routes(pins([101, 100])).unwrap();
        assert_eq!(gic.up(), [133]);
        router.set_level(6, true);
        router.change_routes(pins([100, 101])).unwrap();
        assert_eq!(gic.up(), [132, 133]);
        gic.state().refuses_tables = true;
        assert!(router.change_routes(pins([7, 8])).is_err());
        assert_eq!(gic.up(), [132, 133]);
        router.set_level(5, false);
        assert_eq!(gic.up(), [133]);
        drop(irqfd);
        assert_eq!(gic.up(), [133]);
        assert_eq!(sink.refused(), 0);
    }
}

/// A save waits for KVM's workers by taking irqfds away, which must not lower the lines.
#[test]
fn a_save_leaves_levels_up() {
    for injection in BOTH {
        let (gic, sink, router) = machine(injection);
        router.set_route(5, Some(Route::Pin(100))).unwrap();
        let (event, resample) = (Arc::new(Event::new(0)), Arc::new(Event::new(0)));
        let _irqfd = router.assign_with_resample(&event, 5, &resample).unwrap();
        event.signal();
        drop(router.save(|_| 0));
        assert_eq!(gic.up(), [132]);
        assert_eq!(gic.state().resamplers(5), 1);
        assert_eq!(sink.refused(), 0);
    }
}
