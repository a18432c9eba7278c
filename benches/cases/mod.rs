//! What is measured: groups of cases that do the same work in different ways.

// Each bench uses only a part of this.
#![allow(dead_code)]

pub mod batch;
pub mod event;
pub mod futures;
pub mod interleave;
pub mod ioeventfd;
pub mod irqfd;
#[cfg(target_arch = "x86_64")]
pub mod kvm;
pub mod latency;
pub mod peers;
pub mod poll;
#[cfg(target_arch = "x86_64")]
pub mod round_trip;
pub mod signaller;
pub mod spin;
pub mod wait_any;
pub mod window;

use criterion::Criterion;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Does something this many times (on each thread, if there are two), and returns how long that took (the longer time).
pub type Run = Box<dyn FnMut(u64) -> Duration>;

/// One way of doing one thing.
pub struct Case {
    /// What is done. Cases of one group can be compared.
    pub group: String,
    /// The way in which it is done.
    pub who: &'static str,
    pub run: Run,
}

/// Two cases of a group to be compared.
pub struct Ratio {
    pub group: String,
    pub over: &'static str,
    pub under: &'static str,
    /// What the ratio ought to be, if anything.
    pub target: &'static str,
}

impl<G: Into<String>> From<(G, &'static str, &'static str, &'static str)> for Ratio {
    fn from((group, over, under, target): (G, &'static str, &'static str, &'static str)) -> Self {
        Ratio {
            group: group.into(),
            over,
            under,
            target,
        }
    }
}

/// The cases of all modules, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = event::all();
    cases.extend(batch::all());
    cases.extend(ioeventfd::all());
    cases.extend(wait_any::all());
    cases.extend(futures::all());
    cases.extend(poll::all());
    cases.extend(irqfd::all());
    cases.extend(signaller::all());
    #[cfg(target_arch = "x86_64")]
    {
        cases.extend(kvm::all());
        cases.extend(round_trip::all());
    }
    cases
}

/// The ratios of all modules.
pub fn ratios() -> Vec<Ratio> {
    let mut ratios = event::ratios();
    ratios.extend(batch::ratios());
    ratios.extend(ioeventfd::ratios());
    ratios.extend(wait_any::ratios());
    ratios.extend(futures::ratios());
    ratios.extend(poll::ratios());
    ratios.extend(irqfd::ratios());
    ratios.extend(signaller::ratios());
    #[cfg(target_arch = "x86_64")]
    {
        ratios.extend(kvm::ratios());
        ratios.extend(round_trip::ratios());
    }
    ratios
}

/// Criterion's account of the cases, a group's one after the other.
pub fn criterion(cases: Vec<Case>) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    let mut cases = cases.into_iter().peekable();
    while let Some(group) = cases.peek().map(|case| case.group.clone()) {
        let mut benches = criterion.benchmark_group(&group);
        while let Some(mut case) = cases.next_if(|case| case.group == group) {
            benches.bench_function(case.who, |bencher| bencher.iter_custom(|n| (case.run)(n)));
        }
        benches.finish();
    }
    criterion.final_summary();
}

/// One thread calls `once` over and over.
fn alone<T>(mut once: impl FnMut() -> T + 'static) -> Run {
    alone_with(|| (), move |()| once())
}

/// The same with a state, which is made anew each time.
fn alone_with<S, T>(
    mut state: impl FnMut() -> S + 'static,
    mut once: impl FnMut(&mut S) -> T + 'static,
) -> Run {
    Box::new(move |times| {
        let mut state = state();
        let start = cpu_time();
        for _ in 0..times {
            black_box(once(&mut state));
        }
        cpu_time() - start
    })
}

/// The time that this thread has had a CPU: on a shared machine that is not all the time.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("no time before 0")
}

/// Two threads, on two CPUs if there are, call `once` over and over, with the number of the thread, 0 or 1.
fn two<T>(once: impl Fn(u64) -> T + Sync + 'static) -> Run {
    two_with(|me| me, move |&mut me| once(me))
}

/// The same with a state for each thread.
fn two_with<S, T>(
    state: impl Fn(u64) -> S + Sync + 'static,
    once: impl Fn(&mut S) -> T + Sync + 'static,
) -> Run {
    Box::new(move |times| {
        let barrier = Barrier::new(2);
        // Each thread takes its own time: a third thread that did might not get a CPU before the others are done.
        let work = |me| {
            pin(me as usize);
            let mut state = state(me);
            barrier.wait();
            let start = Instant::now();
            for _ in 0..times {
                black_box(once(&mut state));
            }
            start.elapsed()
        };
        thread::scope(|scope| {
            let work = &work;
            let threads = [0, 1].map(|me| scope.spawn(move || work(me)));
            let times = threads.map(|thread| thread.join().expect("nobody panics"));
            times[0].max(times[1])
        })
    })
}

fn pin(cpu: usize) {
    pin_to(&[cpu]);
}

fn pin_to(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    // On a machine without these CPUs, the thread is not pinned.
    let _ = sched_setaffinity(None, &set);
}
