//! irqfds: what a signal costs that ends in an interrupt, beside a bare signal and beside KVM's irqfds.
//!
//! The sink in the process only counts. The virtual machine's vCPU is not running, so what is measured is the
//! signaller's part.

use super::{Case, Ratio, alone};
use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{InterruptSink, Irqfd, MsiMessage, Route, Router, Routes};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const IN_PROCESS: &str = "irqfd: signal to a sink in the process";
const BARE: &str = "bare signal";
const BARE_AND_READ: &str = "signal + read";
const OBSERVED: &str = "signal, observer that reads";
const MESSAGE: &str = "irqfd, message";
const PULSE: &str = "irqfd, pulse";
const LEVEL: &str = "irqfd, level, with its ack";

const MSI: u32 = 24;
const PIN: u32 = 5;
const LEVEL_PIN: u32 = 6;

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let cases = in_process();
    #[cfg(target_arch = "x86_64")]
    let cases = cases.into_iter().chain(kvm::all()).collect();
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for (over, under) in [
        (MESSAGE, BARE),
        (MESSAGE, BARE_AND_READ),
        (MESSAGE, OBSERVED),
        (PULSE, BARE),
    ] {
        ratios.push(Ratio::from((IN_PROCESS, over, under, "")));
    }
    #[cfg(target_arch = "x86_64")]
    ratios.extend(kvm::ratios());
    ratios
}

/// A sink that costs next to nothing, so that the way to the sink is measured. (For one thread at a time.)
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn add_one(&self) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl InterruptSink for Count {
    fn set_level(&self, _: u32, _: u32, _: bool) {
        self.add_one();
    }

    fn signal_msi(&self, _: u32, _: MsiMessage) {
        self.add_one();
    }
}

fn message() -> Route {
    Route::Msi(MsiMessage::new(0xfee0_0000, 0x41))
}

fn routes() -> Routes {
    let mut routes = Routes::identity(24);
    routes.set(MSI, Some(message())).expect("valid");
    routes
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

/// An irqfd of a router, and its event.
fn assigned(router: &Router, gsi: u32) -> (Arc<Event>, Irqfd) {
    let event = event();
    let irqfd = router.assign(&event, gsi).expect("the irqfd is ours");
    (event, irqfd)
}

fn in_process() -> Vec<Case> {
    let router = Router::new(Arc::new(Count::default()));
    router
        .set_routes(routes())
        .expect("the sink takes all routes");
    let mut cases = Vec::new();
    let mut case = |who, run| {
        cases.push(Case {
            group: IN_PROCESS.into(),
            who,
            run,
        });
    };

    let bare = event();
    case(BARE, alone(move || bare.signal()));
    let read = event();
    case(
        BARE_AND_READ,
        alone(move || {
            read.signal();
            read.try_read()
        }),
    );
    let observed = event();
    let observation = {
        let event = Arc::clone(&observed);
        let observer = move |_: Change| {
            event.try_read();
        };
        Observation::new(Arc::clone(&observed), Interest::Signals, Arc::new(observer))
    };
    case(
        OBSERVED,
        alone(move || {
            observation.event().signal();
        }),
    );
    for (who, gsi) in [(MESSAGE, MSI), (PULSE, PIN)] {
        let (event, irqfd) = assigned(&router, gsi);
        case(
            who,
            alone(move || {
                let _ = &irqfd;
                event.signal();
            }),
        );
    }
    let (interrupt, resample) = (event(), event());
    let irqfd = router
        .assign_with_resample(&interrupt, LEVEL_PIN, &resample)
        .expect("the irqfd is ours");
    case(
        LEVEL,
        alone(move || {
            let _ = &irqfd;
            interrupt.signal();
            router.ack(LEVEL_PIN);
            resample.try_read()
        }),
    );
    cases
}

#[cfg(target_arch = "x86_64")]
mod kvm {
    use super::super::{Case, Ratio, Run, alone};
    use super::{MSI, PIN};
    use kvm_ioctls::{Kvm, VcpuFd, VmFd};
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EventFd;

    const TO_KVM: [(&str, u32); 2] = [
        ("irqfd: signal to KVM, message", MSI),
        ("irqfd: signal to KVM, pulse", PIN),
    ];
    const WRITE: &str = "write to KVM's irqfd";
    const BY_IOCTL: &str = "KvmSink, Userspace";
    const BY_KERNEL: &str = "KvmSink, Kernel";

    /// A VM with interrupt controllers and a CPU that takes messages.
    struct Machine {
        vm: Arc<VmFd>,
        _vcpu: VcpuFd,
    }

    impl Machine {
        fn new() -> Result<Self, kvm_ioctls::Error> {
            let vm = Kvm::new()?.create_vm()?;
            vm.create_irq_chip()?;
            let vcpu = vm.create_vcpu(0)?;
            let mut lapic = vcpu.get_lapic()?;
            // The spurious interrupt vector register: enabled.
            lapic.regs[0xf1] |= 1;
            vcpu.set_lapic(&lapic)?;
            Ok(Machine {
                vm: Arc::new(vm),
                _vcpu: vcpu,
            })
        }
    }

    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for (group, gsi) in TO_KVM {
            let mut case = |who, run: Result<Run, kvm_ioctls::Error>| match run {
                Ok(run) => cases.push(Case {
                    group: group.into(),
                    who,
                    run,
                }),
                Err(error) => eprintln!("skipped: {group}, {who}: {error}"),
            };
            case(WRITE, write(gsi));
            let by = doorbell::kvm::Injection::Userspace;
            case(BY_IOCTL, sink(by, gsi));
            // The VMM moves pins, whichever side injects.
            if gsi == MSI {
                case(BY_KERNEL, sink(doorbell::kvm::Injection::Kernel, gsi));
            }
        }
        cases
    }

    pub fn ratios() -> Vec<Ratio> {
        let ratios = TO_KVM.iter().flat_map(|&(group, gsi)| {
            let over = match gsi {
                MSI => &[BY_IOCTL, BY_KERNEL][..],
                _ => &[BY_IOCTL],
            };
            over.iter()
                .map(move |over| Ratio::from((group, *over, WRITE, "")))
        });
        ratios.collect()
    }

    fn write(gsi: u32) -> Result<Run, kvm_ioctls::Error> {
        use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
        let machine = Machine::new()?;
        if gsi == MSI {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = 0xfee0_0000;
            entry.u.msi.data = 0x41;
            let routing = KvmIrqRouting::from_entries(&[entry]).expect("one");
            machine.vm.set_gsi_routing(&routing)?;
        }
        let fd = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        machine.vm.register_irqfd(&fd, gsi)?;
        Ok(alone(move || {
            let _ = &machine;
            fd.write(1)
        }))
    }

    fn sink(injection: doorbell::kvm::Injection, gsi: u32) -> Result<Run, kvm_ioctls::Error> {
        let machine = Machine::new()?;
        let sink =
            doorbell::kvm::KvmSink::new(super::super::kvm::vm::descriptor(&machine.vm), injection)
                .expect("there are interrupt controllers");
        let router = doorbell::irqfd::Router::new(Arc::new(sink));
        router.set_routes(super::routes()).expect("KVM takes them");
        let (event, irqfd) = super::assigned(&router, gsi);
        Ok(alone(move || {
            let _ = (&machine, &irqfd);
            event.signal();
        }))
    }
}
