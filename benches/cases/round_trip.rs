//! A guest's round trip: it kicks and halts, the device thread wakes and interrupts, the guest's handler ends the
//! interrupt, and the guest kicks again. With the set-ups of `examples/vmm`.
//!
//! ```text
//!     by hand, KVM takes kicks   KVM_IOEVENTFD ─▶ read(2) ─▶ write(2) to an irqfd of KVM's
//!     by hand, kicks exit        exit ─▶ write(2) ─▶ read(2) ─▶ KVM_IRQ_LINE (by irqfd, if it is level-triggered)
//!     listener                   KVM_IOEVENTFD ─▶ poll(2), drain ─▶ Event ─▶ Router ─▶ KVM_IRQ_LINE
//!     table                      exit ─▶ AddressSpace ─▶ Event ─▶ Router ─▶ KVM_IRQ_LINE
//! ```
//!
//! Each has a VM of its own; vCPU and device thread have a CPU each, if there are two. The device notes in guest memory
//! that an interrupt is due. If the interrupt is level-triggered, the device looks there when it is told of an
//! interrupt's end. Without /dev/kvm there are no cases, and a message says so.

use super::kvm::vm::{self, Exit, VECTORS, Vm};
use super::kvm::{ENTRY, KICK, MEMORY, assign};
use super::{Case, Ratio, Run, pin};
use doorbell::event::{Change, Interest, Observation};
use doorbell::ioeventfd::space::AddressSpace;
use doorbell::ioeventfd::{Bus, Key};
use doorbell::irqfd::{Router, Routes};
use doorbell::kvm::{Injection, KvmListener, KvmSink};
use doorbell::{Event, Spin};
use kvm_bindings::kvm_regs;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

const IN_KERNEL: &str = "by hand, KVM takes kicks";
const EXITS: &str = "by hand, kicks exit";
const LISTENER: &str = "listener";
const TABLE: &str = "table";
const TABLE_NEVER: &str = "table, Spin::Never";

const GROUPS: [Group; 3] = [
    Group {
        name: "round trip by port",
        key: Key::pio(0xc000, 2).with_datamatch(KICK),
        line: 4,
        level: false,
    },
    Group {
        name: "round trip by MMIO",
        key: Key::mmio(0xd_0000, 0),
        line: 4,
        level: false,
    },
    Group {
        name: "round trip by port, level with resample",
        key: Key::pio(0xc000, 2).with_datamatch(KICK),
        line: 6,
        level: true,
    },
];

struct Group {
    name: &'static str,
    key: Key,
    /// The line on the first PIC.
    line: u8,
    level: bool,
}

const SET_UP: u64 = 0x1100;
const HANDLER: u64 = 0x1200;
/// Cells in guest memory: what the device has for the guest, and what the guest has taken.
const DUE: u64 = 0x2000;
const SERVED: u64 = 0x2008;
const STACK: u64 = 0x3f00;
/// The guest has done its work.
const DONE: u64 = 0xf4;

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let cases = GROUPS.iter().map(|group| {
        let case = |who, run| Case {
            group: group.name.to_owned(),
            who,
            run,
        };
        Some([
            case(IN_KERNEL, group.in_kernel()?),
            case(EXITS, group.exits()?),
            case(LISTENER, group.listener()?),
            case(TABLE, group.table(Spin::DEFAULT)?),
            case(TABLE_NEVER, group.table(Spin::Never)?),
        ])
    });
    let cases: Option<Vec<_>> = cases.collect();
    cases.into_iter().flatten().flatten().collect()
}

/// What to compare.
pub fn ratios() -> Vec<Ratio> {
    let ratios = GROUPS.iter().flat_map(|group| {
        [
            (LISTENER, IN_KERNEL),
            (TABLE, IN_KERNEL),
            (TABLE_NEVER, IN_KERNEL),
            (TABLE, EXITS),
            (TABLE_NEVER, EXITS),
        ]
        .map(|(over, under)| Ratio::from((group.name, over, under, "")))
    });
    ratios.collect()
}

/// What is done for a kick: on the vCPU thread if the kick exits, and on the device thread.
struct Device<T, W, I> {
    /// Handles an exit. Returns whether it was a kick.
    exited: T,
    wait: W,
    interrupt: I,
}

impl Group {
    fn in_kernel(&self) -> Option<Run> {
        let vm = self.guest()?;
        let kick = EventFd::new(0).expect("a descriptor");
        vm::assign(vm.fd(), &self.key, &kick).expect("an ioeventfd");
        let interrupt = self.irqfd(&vm);
        let device = Device {
            exited: |_, _, _: &[u8]| false,
            wait: move || assert_ne!(kick.read().expect("it blocks"), 0),
            interrupt,
        };
        Some(self.trips(vm, device))
    }

    fn exits(&self) -> Option<Run> {
        let vm = self.guest()?;
        let kick = EventFd::new(0).expect("a descriptor");
        let rung = kick.try_clone().expect("a descriptor");
        let line = self.line.into();
        let interrupt: Box<dyn Fn() + Send + Sync> = if self.level {
            Box::new(self.irqfd(&vm))
        } else {
            let vm = Arc::clone(vm.fd());
            // The PIC remembers the rise.
            Box::new(move || {
                for level in [true, false] {
                    vm.set_irq_line(line, level).expect("KVM_IRQ_LINE");
                }
            })
        };
        let key = self.key;
        let device = Device {
            exited: move |bus, address, _: &[u8]| {
                rung.write(1).expect("room");
                (bus, address) == (key.bus, key.address)
            },
            wait: move || assert_ne!(kick.read().expect("it blocks"), 0),
            interrupt,
        };
        Some(self.trips(vm, device))
    }

    fn listener(&self) -> Option<Run> {
        let vm = self.guest()?;
        let space = AddressSpace::new();
        let kvm = Arc::new(KvmListener::new(vm::descriptor(vm.fd())).expect("a descriptor"));
        assert!(space.add_listener(kvm.clone()).is_clean());
        let event = Arc::new(Event::new(0));
        let region = assign(&space, &self.key, &event);
        let count = kvm.count_of(&event).expect("a descriptor");
        let interrupt = self.routed(&vm);
        let device = Device {
            exited: move |_, _, _: &[u8]| {
                // The region exists as long as the guest may kick.
                let _region = &region;
                false
            },
            wait: move || {
                while event.try_read().is_none() {
                    poll(&mut [PollFd::new(&count, PollFlags::IN)], None).expect("poll(2)");
                    count.drain();
                }
            },
            interrupt,
        };
        Some(self.trips(vm, device))
    }

    fn table(&self, spin: Spin) -> Option<Run> {
        let vm = self.guest()?;
        let space = AddressSpace::new();
        let event = Arc::new(Event::new(0).with_spin(spin));
        let region = assign(&space, &self.key, &event);
        let interrupt = self.routed(&vm);
        let device = Device {
            exited: move |bus, address, data: &[u8]| {
                let _region = &region;
                space.write(bus, address, data)
            },
            wait: move || assert_ne!(event.read(), 0),
            interrupt,
        };
        Some(self.trips(vm, device))
    }

    /// KVM's irqfd.
    fn irqfd(&self, vm: &Vm) -> impl Fn() + Send + Sync + use<> {
        let [fd, resample] =
            [(); 2].map(|()| EventFd::new(libc::EFD_NONBLOCK).expect("a descriptor"));
        let line = self.line.into();
        match self.level {
            true => vm.fd().register_irqfd_with_resample(&fd, &resample, line),
            false => vm.fd().register_irqfd(&fd, line),
        }
        .expect("KVM_IRQFD");
        let level = self.level;
        move || {
            if level {
                // This takes the signal of the interrupt before.
                let _ = resample.read();
            }
            fd.write(1).expect("room");
        }
    }

    /// Our irqfd.
    fn routed(&self, vm: &Vm) -> impl Fn() + Send + Sync + use<> {
        let sink = KvmSink::new(vm::descriptor(vm.fd()), Injection::default())
            .expect("interrupt controllers");
        let router = Router::new(Arc::new(sink));
        router.set_routes(Routes::identity(16)).expect("KVM's pins");
        let [interrupt, resample] = [(); 2].map(|()| Arc::new(Event::new(0)));
        let irqfd = match self.level {
            true => router.assign_with_resample(&interrupt, self.line.into(), &resample),
            false => router.assign(&interrupt, self.line.into()),
        }
        .expect("the irqfd is ours");
        let observer = {
            let (interrupt, resample) = (Arc::clone(&interrupt), Arc::clone(&resample));
            let memory = vm.memory().clone();
            // A signal that came before we were told of the end of the interrupt before it was coalesced with that
            // interrupt's signal.
            move |_: Change| {
                resample.try_read();
                if memory.cell(DUE).load(Ordering::Acquire) != 0 {
                    interrupt.signal();
                }
            }
        };
        let observation = Observation::new(resample, Interest::Signals, Arc::new(observer));
        move || {
            let _ = &observation;
            irqfd.event().signal();
        }
    }

    /// A guest that goes round as many times as ECX says.
    fn guest(&self) -> Option<Vm> {
        use iced_x86::code_asm::*;
        let mut vm = Vm::with_interrupts(MEMORY)?;
        let load = |vm: &Vm, address, program: Vec<u8>| vm.memory().load(address, &program);
        let done = |a: &mut CodeAssembler| {
            a.mov(dx, DONE as u32)?;
            a.out(dx, al)
        };
        let set_up = vm::assemble(SET_UP, |a| {
            let level: &[u8] = if self.level { &[self.line] } else { &[] };
            vm::set_up_pic(a, &[self.line], level)?;
            done(a)
        });
        load(&vm, SET_UP, set_up);
        let handler = vm::assemble(HANDLER, |a| {
            a.push(ax)?;
            a.xor(ax, ax)?;
            a.xchg(word_ptr(DUE).cs(), ax)?;
            a.or(word_ptr(SERVED).cs(), ax)?;
            vm::end_of_interrupt(a)?;
            a.pop(ax)?;
            a.iret()
        });
        load(&vm, HANDLER, handler);
        vm.memory().set_vector(VECTORS + self.line, HANDLER);
        let program = vm::assemble(ENTRY, |a| {
            let (mut again, mut look, mut served) =
                (a.create_label(), a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            match self.key.bus {
                Bus::Pio => a.out(dx, ax)?,
                Bus::Mmio => a.mov(word_ptr(bx), ax)?,
            }
            // STI takes effect after the next instruction, so the interrupt does not slip in before the halt.
            a.set_label(&mut look)?;
            a.cmp(word_ptr(SERVED).cs(), 0)?;
            a.jne(served)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.jmp(look)?;
            a.set_label(&mut served)?;
            a.mov(word_ptr(SERVED).cs(), 0)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            done(a)
        });
        load(&vm, ENTRY, program);
        let regs = kvm_regs {
            rip: SET_UP,
            ..kvm_regs::default()
        };
        vm.set(regs, 0);
        run(&mut vm, &mut |_, _, _| false);
        Some(vm)
    }

    fn trips(
        &self,
        mut vm: Vm,
        mut device: Device<
            impl FnMut(Bus, u64, &[u8]) -> bool + 'static,
            impl Fn() + Send + Sync + 'static,
            impl Fn() + Send + Sync + 'static,
        >,
    ) -> Run {
        let address = self.key.address;
        Box::new(move |times| {
            let regs = kvm_regs {
                rip: ENTRY,
                rsp: STACK,
                rax: KICK,
                rcx: times,
                rdx: address,
                ..kvm_regs::default()
            };
            vm.set(regs, address);
            let before = sched_getaffinity(None).expect("those it may run on");
            let ready = Barrier::new(2);
            let (wait, interrupt) = (&device.wait, &device.interrupt);
            let memory = vm.memory().clone();
            let took = thread::scope(|scope| {
                scope.spawn(|| {
                    let due = memory.cell(DUE);
                    pin(1);
                    ready.wait();
                    for _ in 0..times {
                        wait();
                        // Release pairs with the guest and the observer of resampling.
                        due.store(1, Ordering::Release);
                        interrupt();
                    }
                });
                pin(0);
                ready.wait();
                let start = Instant::now();
                run(&mut vm, &mut device.exited);
                start.elapsed()
            });
            sched_setaffinity(None, &before).expect("as it was");
            took
        })
    }
}

/// Runs the guest until it has done its work.
fn run(vm: &mut Vm, exited: &mut dyn FnMut(Bus, u64, &[u8]) -> bool) {
    loop {
        match vm.run() {
            Exit::Write { address, .. } if address == DONE => return,
            Exit::Write { bus, address, data } if exited(bus, address, &data) => {}
            exit => panic!("{exit:?}"),
        }
    }
}
