//! irqfds against KVM's: the same assignments, routes and signals, and a guest that counts interrupts.
//!
//! [`sides::Kernel`] is a virtual machine whose irqfds are the kernel's. [`sides::Ours`] has ours, and a model of the
//! interrupt controllers and of the guest; [`sides::OursInKvm`] has ours in a virtual machine, through a `KvmSink`.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../../fd/child.rs"]
mod child;
#[path = "../../common/mod.rs"]
mod common;
mod exact;
mod guest;
mod locks;
mod refusals;
mod resources;
mod script;
mod sides;
mod snapshot;
mod split;
#[path = "../../common/vm.rs"]
mod vm;

use doorbell::Event;
use doorbell::event::{Change, Interest, Observation};
use doorbell::irqfd::{MsiMessage, Route, Router, Routes, RoutingError};
use doorbell::kvm::{Injection, KvmSink};
use guest::{LEVEL, MESSAGE_VECTORS};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::Kvm;
use proptest::prelude::*;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use script::{
    Act, EVENTS, Op, Outcome, RESAMPLE, SEMAPHORE, Side, assign, deassign, look, play, resampling,
    route, run, write,
};
use sides::{Kernel, Ours, OursInKvm, Signal};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vm::VECTORS;

const EDGE: u32 = 6;
const OTHER_EDGE: u32 = 4;
const LEVEL_GSI: u32 = LEVEL as u32;
const MSI: u32 = 24;
const UNROUTED: u32 = 30;

/// Keeps the thread on one CPU: the fence of [`sides::Fence`] comes after what was signalled on the same CPU.
///
/// The thread stays on the first CPU, on which the kernel ends the grace periods (of a small SRCU) that KVM_IRQFD waits
/// for. If that CPU is busy, each such wait on another CPU lasts until its next tick.
fn stay() {
    let may = sched_getaffinity(None).expect("those it may run on");
    let first = (0..CpuSet::MAX_CPU).find(|&cpu| may.is_set(cpu));
    let mut cpus = CpuSet::new();
    cpus.set(first.expect("it runs"));
    sched_setaffinity(None, &cpus).expect("one that it may run on");
}

/// The outcomes of a script, which must be the same for all sides.
fn outcomes(script: &[Op]) -> Option<Vec<Outcome>> {
    stay();
    let kernel = play(&mut Kernel::new()?, script);
    let ours = play(&mut Ours::new(), script);
    assert_eq!(ours, kernel, "{script:#?}");
    for injection in [Injection::Userspace, Injection::Kernel] {
        let ours = play(&mut OursInKvm::new(injection)?, script);
        assert_eq!(ours, kernel, "{injection:?}: {script:#?}");
    }
    Some(kernel)
}

fn interrupts(gsis: &[u32]) -> Outcome {
    let vectors = gsis.iter().map(|&gsi| match gsi {
        MSI => MESSAGE_VECTORS[0],
        line => VECTORS + line as u8,
    });
    Outcome::Interrupts(vectors.map(|vector| (vector, Vec::new())).collect())
}

/// The cases of the table in `tests/irqfd/rules.rs` that need a guest: a script, and the outcomes of its last steps.
fn cases() -> Vec<(&'static str, Vec<Op>, Vec<Outcome>)> {
    use Outcome::{Done, Errno, Read};
    let [rs, rs2] = RESAMPLE;
    let read = Op::Read;
    let busy = || Errno(libc::EBUSY);
    let none = || interrupts(&[]);
    let level = || interrupts(&[LEVEL_GSI]);
    let edge = || interrupts(&[EDGE]);
    vec![
        (
            "R7",
            vec![
                assign(0, EDGE),
                assign(0, EDGE),
                assign(0, OTHER_EDGE),
                resampling(0, rs),
            ],
            vec![Done, busy(), busy(), busy()],
        ),
        (
            "R8",
            vec![
                assign(0, EDGE),
                assign(1, EDGE),
                write(1, 1),
                look(),
                write(0, 1),
                look(),
            ],
            vec![edge(), Done, edge()],
        ),
        (
            "R9",
            vec![
                assign(0, EDGE),
                deassign(0, 7),
                assign(0, OTHER_EDGE),
                write(0, 1),
                look(),
            ],
            vec![Done, busy(), Done, edge()],
        ),
        (
            "R10",
            vec![
                deassign(0, EDGE),
                assign(0, EDGE),
                deassign(0, EDGE),
                deassign(0, EDGE),
            ],
            vec![Done; 4],
        ),
        (
            "R14",
            vec![assign(0, EDGE), write(0, 5), look(), read(0)],
            vec![edge(), Read(None)],
        ),
        (
            "R15",
            vec![assign(0, EDGE), write(0, 0), look()],
            vec![edge()],
        ),
        (
            "R16",
            vec![
                assign(SEMAPHORE, EDGE),
                write(SEMAPHORE, 5),
                look(),
                deassign(SEMAPHORE, EDGE),
                read(SEMAPHORE),
                read(SEMAPHORE),
                read(SEMAPHORE),
                read(SEMAPHORE),
            ],
            vec![
                edge(),
                Done,
                Read(Some(1)),
                Read(Some(1)),
                Read(Some(1)),
                Read(None),
            ],
        ),
        (
            "R17",
            vec![write(0, 3), assign(0, EDGE), look(), read(0), look()],
            vec![edge(), Read(Some(3)), none()],
        ),
        (
            "R17, and the next write takes it",
            vec![
                write(0, 3),
                assign(0, EDGE),
                look(),
                write(0, 1),
                look(),
                read(0),
            ],
            vec![edge(), Done, edge(), Read(None)],
        ),
        (
            "R17 on a message",
            vec![
                route(MSI, MESSAGE_VECTORS[0]),
                write(0, 3),
                assign(0, MSI),
                look(),
                read(0),
            ],
            vec![interrupts(&[MSI]), Read(Some(3))],
        ),
        (
            "R19",
            vec![
                assign(0, EDGE),
                deassign(0, EDGE),
                write(0, 2),
                look(),
                read(0),
            ],
            vec![none(), Read(Some(2))],
        ),
        (
            "R21",
            [
                vec![assign(0, EDGE)],
                vec![write(0, 1); 50],
                vec![look(), look()],
            ]
            .concat(),
            vec![edge(), none()],
        ),
        (
            "R22",
            vec![assign(0, LEVEL_GSI), write(0, 1), look(), read(0)],
            vec![none(), Read(None)],
        ),
        (
            "R25",
            vec![
                assign(0, UNROUTED),
                write(0, 1),
                route(UNROUTED, MESSAGE_VECTORS[0]),
                look(),
                read(0),
                write(0, 1),
                look(),
            ],
            vec![none(), Read(None), Done, interrupts(&[MSI])],
        ),
        (
            "R26",
            vec![
                assign(0, MSI),
                route(MSI, MESSAGE_VECTORS[0]),
                route(MSI, MESSAGE_VECTORS[1]),
                write(0, 1),
                look(),
            ],
            vec![Outcome::Interrupts(vec![(MESSAGE_VECTORS[1], vec![])])],
        ),
        (
            "R27",
            vec![
                assign(0, MSI),
                route(MSI, MESSAGE_VECTORS[0]),
                route(MSI, None),
                write(0, 1),
                look(),
                read(0),
            ],
            vec![none(), Read(None)],
        ),
        (
            "R31",
            vec![
                resampling(0, rs),
                write(0, 1),
                Op::Run(vec![vec![read(rs), read(0)]]),
                read(rs),
                look(),
            ],
            vec![
                Outcome::Interrupts(vec![(VECTORS + LEVEL, vec![Read(None), Read(None)])]),
                Read(Some(1)),
                none(),
            ],
        ),
        (
            "R32",
            vec![
                resampling(0, rs),
                write(0, 1),
                Op::Run(vec![vec![write(0, 1)]]),
                read(rs),
                look(),
            ],
            vec![
                Outcome::Interrupts(vec![(VECTORS + LEVEL, vec![Done])]),
                Read(Some(1)),
                none(),
            ],
        ),
        (
            "R33",
            vec![
                resampling(0, rs),
                write(0, 1),
                look(),
                write(0, 1),
                look(),
                read(rs),
            ],
            vec![level(), Done, level(), Read(Some(2))],
        ),
        (
            "R34",
            vec![
                resampling(0, rs),
                resampling(1, rs2),
                write(0, 1),
                look(),
                read(rs),
                read(rs2),
            ],
            vec![level(), Read(Some(1)), Read(Some(1))],
        ),
        (
            "R35",
            vec![
                resampling(0, rs),
                resampling(1, rs2),
                Op::Level(true),
                Op::Run(vec![vec![], vec![], vec![Op::Level(false)]]),
                read(rs),
                read(rs2),
                look(),
            ],
            vec![
                Outcome::Interrupts(vec![
                    (VECTORS + LEVEL, vec![]),
                    (VECTORS + LEVEL, vec![]),
                    (VECTORS + LEVEL, vec![Done]),
                ]),
                Read(Some(3)),
                Read(Some(3)),
                none(),
            ],
        ),
        (
            "R37",
            vec![
                resampling(0, rs),
                assign(1, LEVEL_GSI),
                write(0, 1),
                write(1, 1),
                look(),
                read(rs),
            ],
            vec![level(), Read(Some(1))],
        ),
        (
            "R38",
            vec![
                resampling(0, rs),
                resampling(1, rs2),
                write(0, 1),
                deassign(0, LEVEL_GSI),
                look(),
                read(rs),
                read(rs2),
            ],
            vec![level(), Read(None), Read(Some(1))],
        ),
        (
            "R39",
            vec![
                resampling(0, rs),
                write(0, 1),
                deassign(0, LEVEL_GSI),
                look(),
                read(rs),
            ],
            vec![none(), Read(None)],
        ),
    ]
}

#[test]
fn numbered_cases() {
    for (name, script, expected) in cases() {
        eprintln!("{name}");
        let Some(outcomes) = outcomes(&script) else {
            return;
        };
        assert_eq!(
            outcomes[outcomes.len() - expected.len()..],
            expected,
            "{name}"
        );
    }
}

/// The numbered cases through a sink around the `KvmSink`: all calls reach it, edges as two changes of a level. In R37
/// a line has both, edges and resampling irqfds.
#[test]
fn a_sink_around_a_kvm_sink() {
    // A guest whose interrupts do not come would wait for ever.
    common::watchdog::limit("a_sink_around_a_kvm_sink", || {
        stay();
        for injection in [Injection::Userspace, Injection::Kernel] {
            for (name, script, expected) in cases() {
                let Some(mut side) = OursInKvm::wrapped(injection) else {
                    return;
                };
                let outcomes = play(&mut side, &script);
                let last = &outcomes[outcomes.len() - expected.len()..];
                assert_eq!(last, expected, "{name}, {injection:?}");
            }
        }
    });
}

fn op() -> impl Strategy<Value = Op> {
    let event = 0..RESAMPLE[0];
    let gsi = || prop::sample::select(vec![EDGE, OTHER_EDGE, MSI, MSI + 1, UNROUTED, u32::MAX]);
    let resample = || prop::sample::select(RESAMPLE.to_vec());
    let vector = prop::option::of(prop::sample::select(MESSAGE_VECTORS.to_vec()));
    prop_oneof![
        2 => (event.clone(), gsi()).prop_map(|(event, gsi)| assign(event, gsi)),
        // On the level-triggered line there are only resampling irqfds: KVM's pulses would end the VMM's own level
        // there.
        2 => (event.clone(), resample()).prop_map(|(event, rs)| resampling(event, rs)),
        1 => (event.clone(), gsi(), resample()).prop_map(|(event, gsi, resample)| Op::Assign {
            event,
            gsi,
            resample: Some(resample),
        }),
        1 => (event.clone(), gsi()).prop_map(|(event, gsi)| deassign(event, gsi)),
        1 => event.clone().prop_map(|event| deassign(event, LEVEL_GSI)),
        8 => (0..EVENTS, 0..4_u64).prop_map(|(event, n)| write(event, n)),
        2 => (0..EVENTS).prop_map(Op::Read),
        1 => any::<bool>().prop_map(Op::Level),
        1 => (prop::sample::select(vec![MSI, MSI + 1]), vector)
            .prop_map(|(gsi, vector)| route(gsi, vector)),
    ]
}

fn script() -> impl Strategy<Value = Vec<Op>> {
    let run = prop::collection::vec(prop::collection::vec(op(), 0..3), 0..3).prop_map(Op::Run);
    let step = prop_oneof![4 => op(), 1 => run];
    prop::collection::vec(step, 0..40).prop_map(|mut script| {
        // After the last interrupt was served, every event that can interrupt does.
        script.extend([Op::Level(false), look()]);
        script.extend((0..EVENTS).flat_map(|event| [write(event, 1), look()]));
        script.extend((0..EVENTS).map(Op::Read));
        script
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn random_scripts(script in script()) {
        outcomes(&script);
    }
}

/// How many interrupts with this vector the guest takes.
fn take(side: &mut dyn Side, vector: u8) -> u64 {
    let mut count = 0;
    side.run(&mut |_, taken| count += u64::from(taken == vector));
    count
}

/// A thread signals while the guest runs: no more interrupts than signals; and each signal after that interrupts.
fn guest_and_signaller(name: &str, side: &mut dyn Side, signal: &Signal, gsi: u32, vector: u8) {
    const SIGNALS: u64 = 2_000;
    side.act(&assign(0, gsi));
    let done = AtomicU64::new(0);
    let mut taken = 0;
    thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            for n in 0..SIGNALS {
                signal();
                if n % 8 == 0 {
                    // This lets the guest run in between.
                    thread::sleep(Duration::from_micros(50));
                }
            }
            done.store(SIGNALS, Ordering::Release);
        });
        while done.load(Ordering::Acquire) == 0 {
            taken += take(side, vector);
        }
    });
    taken += take(side, vector);
    if taken == 0 {
        taken = await_one(name, side, vector);
    }
    eprintln!("{name}, GSI {gsi}: {SIGNALS} signals, {taken} interrupts");
    assert!(taken <= SIGNALS);
    for _ in 0..10 {
        side.act(&write(0, 1));
        await_one(name, side, vector);
    }
}

/// Runs until the guest takes an interrupt: KVM's workers may still be at work on another CPU.
fn await_one(name: &str, side: &mut dyn Side, vector: u8) -> u64 {
    let start = Instant::now();
    loop {
        match take(side, vector) {
            0 => assert!(start.elapsed() < Duration::from_secs(60), "{name}: lost"),
            taken => return taken,
        }
    }
}

#[test]
fn a_guest_under_fire() {
    let lines = [(EDGE, VECTORS + EDGE as u8), (MSI, MESSAGE_VECTORS[0])];
    for (gsi, vector) in lines {
        let Some(mut kernel) = Kernel::new() else {
            return;
        };
        kernel.act(&route(MSI, MESSAGE_VECTORS[0]));
        let signal = kernel.signal(0);
        guest_and_signaller("KVM", &mut kernel, &signal, gsi, vector);
        for injection in [Injection::Userspace, Injection::Kernel] {
            let mut ours = OursInKvm::new(injection).expect("KVM was there before");
            ours.act(&route(MSI, MESSAGE_VECTORS[0]));
            let signal = ours.signal(0);
            guest_and_signaller(&format!("{injection:?}"), &mut ours, &signal, gsi, vector);
        }
    }
}

/// A device that wants its requests served, and a guest that serves one at each interrupt. Whatever KVM's end of
/// interrupt swallows, the resample event brings back: all requests are served, and then the line is quiet.
#[test]
fn a_level_triggered_device() {
    const REQUESTS: u64 = 300;
    for injection in [Injection::Userspace, Injection::Kernel] {
        let Some(mut ours) = OursInKvm::new(injection) else {
            return;
        };
        ours.act(&resampling(0, RESAMPLE[0]));
        let outstanding = Arc::new(AtomicU64::new(0));
        let interrupt = ours.signal(0);
        let _device = {
            let (interrupt, outstanding) = (ours.signal(0), Arc::clone(&outstanding));
            let observer = move |_: Change| {
                if outstanding.load(Ordering::SeqCst) != 0 {
                    interrupt();
                }
            };
            let resample = Arc::clone(ours.event(RESAMPLE[0]));
            Observation::new(resample, Interest::Signals, Arc::new(observer))
        };
        let mut interrupts = 0;
        let mut served = 0;
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..REQUESTS {
                    outstanding.fetch_add(1, Ordering::SeqCst);
                    interrupt();
                }
            });
            while served < REQUESTS {
                ours.run(&mut |_, _| {
                    interrupts += 1;
                    if outstanding.load(Ordering::SeqCst) != 0 {
                        outstanding.fetch_sub(1, Ordering::SeqCst);
                        served += 1;
                    }
                });
                assert!(start.elapsed() < Duration::from_secs(60), "{served} served");
            }
        });
        while take(&mut ours, VECTORS + LEVEL) != 0 {}
        let line = ours.router().line_counters(LEVEL_GSI);
        eprintln!("{injection:?}: {REQUESTS} requests, {interrupts} interrupts; {line:?}");
        assert!(interrupts >= REQUESTS);
        assert!(line.raises >= REQUESTS && line.resamples >= line.raises);
    }
}

/// Two things that KVM alone cannot do, and the sink does: a mask takes a line down that is up, and the line moves with
/// its route.
#[test]
fn levels_that_are_masked_and_moved() {
    for injection in [Injection::Userspace, Injection::Kernel] {
        let Some(mut ours) = OursInKvm::new(injection) else {
            return;
        };
        let router = ours.router().clone();
        let interrupted = |ours: &mut OursInKvm| {
            ours.pass_fence();
            // Until the VMM lowers its own level, the line interrupts again and again.
            !run(ours, &[]).is_empty()
        };
        let raise: [&dyn Fn(&mut OursInKvm); 2] =
            [&|ours| drop(ours.act(&Op::Level(true))), &|ours| {
                ours.act(&resampling(0, RESAMPLE[0]));
                ours.act(&write(0, 1));
            }];
        for raise in raise {
            raise(&mut ours);
            router.mask(LEVEL_GSI);
            assert!(!interrupted(&mut ours));
            router.unmask(LEVEL_GSI);
            // The device has to renew its assertion.
            if ours.act(&Op::Read(RESAMPLE[0])) == Outcome::Read(Some(1)) {
                assert!(!interrupted(&mut ours));
                ours.act(&write(0, 1));
            }
            router.set_route(LEVEL_GSI, None).unwrap();
            assert!(!interrupted(&mut ours));
            router
                .set_route(LEVEL_GSI, Some(Route::Pin(LEVEL_GSI)))
                .unwrap();
            assert!(interrupted(&mut ours));
            assert!(!interrupted(&mut ours));
        }
    }
}

/// A VM without interrupt controllers has no sink; a VM with a split interrupt controller has messages only. (R1, R5,
/// R29)
#[test]
fn other_machines() {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("skipped: no KVM");
        return;
    };
    let vm = kvm.create_vm().unwrap();
    let error = KvmSink::new(vm::descriptor(&vm), Injection::Userspace).unwrap_err();
    assert_eq!(error.call(), "KVM_SET_GSI_ROUTING");
    assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EINVAL));

    for injection in [Injection::Userspace, Injection::Kernel] {
        let vm = kvm.create_vm().unwrap();
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [24, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&split).unwrap();
        let sink = Arc::new(KvmSink::new(vm::descriptor(&vm), injection).unwrap());
        assert_eq!(sink.injection(), injection);
        let shown = format!("KvmSink {{ injection: {injection:?}, has_pins: false, .. }}");
        assert_eq!(format!("{sink:?}"), shown);
        let router = Router::new(sink);
        let refused = router.set_routes(Routes::identity(24)).unwrap_err();
        assert!(matches!(refused, RoutingError::Refused(_)));
        let message = MsiMessage::new(0xfee0_0000, 0x41);
        router.set_route(3, Some(Route::Msi(message))).unwrap();
        let events = [(); 2].map(|()| Arc::new(Event::new(0)));
        let error = router
            .assign_with_resample(&events[0], 3, &events[1])
            .unwrap_err();
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EINVAL));
        let irqfd = router.assign(&events[0], 3).unwrap();
        events[0].signal();
        assert_eq!((events[0].count(), irqfd.counters().injections), (0, 1));
    }
}
