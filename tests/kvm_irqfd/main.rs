//! irqfds against KVM's: the same assignments, routes and signals, and a guest that counts interrupts.
//!
//! [`sides::Kernel`] is a virtual machine whose irqfds are the kernel's. [`sides::Ours`] has ours, and a model of the
//! interrupt controllers and of the guest; [`sides::OursInKvm`] has ours in a virtual machine, through a `KvmSink`.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod guest;
mod script;
mod sides;

use doorbell::kvm::Injection;
use guest::{LEVEL, MESSAGE_VECTORS, VECTORS};
use proptest::prelude::*;
use rustix::thread::{CpuSet, sched_setaffinity};
use script::{
    EVENTS, Op, Outcome, RESAMPLE, SEMAPHORE, assign, deassign, look, play, resampling, route,
    write,
};
use sides::{Kernel, Ours, OursInKvm};

const EDGE: u32 = 6;
const OTHER_EDGE: u32 = 4;
const LEVEL_GSI: u32 = LEVEL as u32;
const MSI: u32 = 24;
const UNROUTED: u32 = 30;

/// The fence of [`sides::Fence`] stands behind what was signalled on the same CPU.
fn stay() {
    let mut cpus = CpuSet::new();
    cpus.set(rustix::thread::sched_getcpu());
    sched_setaffinity(None, &cpus).expect("this CPU");
}

/// What all sides make of it.
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

fn op() -> impl Strategy<Value = Op> {
    let event = 0..RESAMPLE[0];
    let gsi = || prop::sample::select(vec![EDGE, OTHER_EDGE, MSI, MSI + 1, UNROUTED, u32::MAX]);
    let resample = || prop::sample::select(RESAMPLE.to_vec());
    let vector = prop::option::of(prop::sample::select(MESSAGE_VECTORS.to_vec()));
    prop_oneof![
        2 => (event.clone(), gsi()).prop_map(|(event, gsi)| assign(event, gsi)),
        // On the level-triggered line resampling ones only: KVM's pulses there end the VMM's own level.
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
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn random_scripts(script in script()) {
        outcomes(&script);
    }
}
