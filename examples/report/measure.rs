//! Takes all the samples.

use crate::backend;
use crate::cases::interleave::{Samples, Turns, take_turns};
use crate::cases::latency::{self, Sampler};
use crate::cases::{self, Case};
use crate::device;
use crate::machine::{self, Machine};
use crate::membarrier;
use crate::progress::Progress;
use crate::results::{Comparison, Device, Distribution, Report, Section};
use crate::sections::{self, Plan};
use std::mem;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How many samples are taken, and for how long.
struct Effort {
    turns: Turns,
    /// Number of single calls in a turn.
    calls: usize,
    device: device::Effort,
}

const FULL: Effort = Effort {
    turns: Turns {
        most: 31,
        each: Duration::from_millis(4),
        within: Duration::from_secs(3),
    },
    calls: 64,
    device: device::Effort {
        turns: 5,
        each: Duration::from_millis(100),
    },
};
const QUICK: Effort = Effort {
    turns: Turns {
        most: 3,
        each: Duration::from_millis(1),
        within: Duration::ZERO,
    },
    calls: 16,
    device: device::Effort {
        turns: 1,
        each: Duration::from_millis(2),
    },
};

pub fn run(quick: bool) -> Report {
    let effort = if quick { QUICK } else { FULL };
    let load_before = machine::load();
    // This comes before the first sample, because the example may have to be compiled.
    let device = backend::try_example();
    let start = Instant::now();

    let mut cases = cases();
    let plans = sections::all();
    let compared = |plan: &Plan, case: &Case| plan.groups.contains(&case.group);
    let samples = plans
        .iter()
        .map(|plan| {
            let of_cases = cases.iter().filter(|case| compared(plan, case)).count();
            of_cases + if plan.latencies { latency_cases() } else { 0 }
        })
        .sum::<usize>()
        * effort.turns.most
        + device_samples(&effort);
    let progress = Progress::new(samples);

    let sections = plans.into_iter().map(|plan| {
        let mut comparisons = Vec::new();
        for name in &plan.groups {
            progress.begin(name);
            let mut group = take(&mut cases, name);
            let samples = take_turns(&mut group, &effort.turns, || progress.step());
            comparisons.push(Comparison::new(name.clone(), &samples));
        }
        let distributions = match plan.latencies {
            true => distributions(&effort, &progress),
            false => Vec::new(),
        };
        let (devices, skipped) = match (plan.device, device) {
            (false, _) => Default::default(),
            (true, Ok(_)) => devices(&effort, &progress),
            (true, Err(why)) => (Vec::new(), vec![format!("all of it ({why})")]),
        };
        for what in &skipped {
            eprintln!("report: skipped: {what}");
        }
        Section {
            title: plan.title,
            text: plan.text,
            comparisons,
            distributions,
            devices,
            skipped,
        }
    });
    let sections = sections.collect();
    progress.clear();
    Report {
        doorbell: env!("CARGO_PKG_VERSION"),
        time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        seconds: start.elapsed().as_secs_f64(),
        quick,
        machine: Machine::this(),
        load_before,
        sections,
    }
}

/// Takes the cases of a group out.
fn take(cases: &mut Vec<Case>, group: &str) -> Vec<Case> {
    let (taken, left) = mem::take(cases)
        .into_iter()
        .partition(|case| case.group == group);
    *cases = left;
    taken
}

/// The cases of the benches.
fn cases() -> Vec<Case> {
    let mut look_ups = cases::ioeventfd::all();
    look_ups.retain(|case| cases::ioeventfd::of_64().contains(&case.group));
    let mut signallers = cases::signaller::all();
    signallers.retain(|case| case.who != cases::signaller::SIGNALLER);
    [
        cases::event::all(),
        cases::batch::all(),
        cases::wait_any::all(),
        cases::poll::all(),
        cases::futures::all(),
        look_ups,
        signallers,
        membarrier::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn latency_cases() -> usize {
    latency::wake_ups().len() + latency::bursts().len()
}

fn distributions(effort: &Effort, progress: &Progress) -> Vec<Distribution> {
    progress.begin(sections::WAKE_UP);
    let [wake_calls, wake_ups] = latencies(latency::wake_ups(), effort, progress);
    progress.begin(sections::BURST);
    let [burst_calls, bursts] = latencies(latency::bursts(), effort, progress);
    vec![
        Distribution::new(sections::WAKE_UP, &wake_ups),
        Distribution::new(sections::WAKE_CALL, &wake_calls),
        Distribution::new(sections::BURST, &bursts),
        Distribution::new(sections::BURST_CALL, &burst_calls),
    ]
}

/// Numbers of requests under way.
const DEPTHS: [usize; 2] = [1, 32];

fn device_samples(effort: &Effort) -> usize {
    device::loads(&DEPTHS).len() * device::MOST_BACKENDS * effort.device.turns
}

/// The device under each load, and which back-ends are missing.
fn devices(effort: &Effort, progress: &Progress) -> (Vec<Device>, Vec<String>) {
    let measure = || {
        let (mut backends, missing) = device::backends(true);
        device::pin_driver();
        let devices = device::loads(&DEPTHS).into_iter().map(|load| {
            let name = load.name();
            progress.begin(&name);
            let samples =
                device::take_turns(&mut backends, load, &effort.device, || progress.step());
            let names = backends.iter().map(|backend| backend.name);
            Device::new(name, &names.zip(samples).collect::<Vec<_>>())
        });
        let missing = missing
            .iter()
            .map(|name| format!("{name} (it is not there)"));
        (devices.collect(), missing.collect())
    };
    // A pinned thread stays pinned, so this needs a thread of its own.
    thread::scope(|scope| scope.spawn(measure).join().expect("it measures"))
}

/// The distributions of the calls, and of the wake-ups.
fn latencies(
    mut samplers: Vec<(&'static str, Sampler)>,
    effort: &Effort,
    progress: &Progress,
) -> [Samples; 2] {
    let nothing: Samples = samplers.iter().map(|(who, _)| (*who, Vec::new())).collect();
    let (mut calls, mut woken) = (nothing.clone(), nothing);
    let mut order: Vec<usize> = (0..samplers.len()).collect();
    let (start, mut taken) = (Instant::now(), 0);
    while !effort.turns.over(taken, start) {
        fastrand::shuffle(&mut order);
        for &i in &order {
            for sample in (samplers[i].1)(effort.calls) {
                calls[i].1.push(sample.call.as_nanos() as f64);
                woken[i].1.push(sample.woken.as_nanos() as f64);
            }
            progress.step();
        }
        taken += 1;
    }
    [calls, woken]
}
