//! What spinning earns and costs.

use super::event::Eventfd;
use super::latency::{Sample, sample};
use super::turns::median;
use super::{cpu_time, pin_to};
use doorbell::{Event, Spin};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Who waits, with `None` for an eventfd.
fn policies() -> Vec<(String, Option<Spin>)> {
    let up_to = |us| {
        let max = Duration::from_micros(us);
        (format!("{us} µs"), Some(Spin::Adaptive { max }))
    };
    let mut all = vec![
        ("eventfd".to_owned(), None),
        ("never".to_owned(), Some(Spin::Never)),
    ];
    all.extend([5, 10, 20, 50, 100].map(up_to));
    all.push(("always".to_owned(), Some(Spin::Always)));
    all
}

enum Bell {
    Event(Event),
    Eventfd(Eventfd),
}

impl Bell {
    fn new(spin: Option<Spin>) -> Self {
        match spin {
            Some(spin) => Bell::Event(Event::new(0).with_spin(spin)),
            None => Bell::Eventfd(Eventfd::new()),
        }
    }

    fn ring(&self) {
        match self {
            Bell::Event(event) => event.signal(),
            Bell::Eventfd(fd) => fd.write(1),
        }
    }

    fn wait(&self) {
        match self {
            Bell::Event(event) => _ = event.read(),
            Bell::Eventfd(fd) => _ = fd.read(),
        }
    }
}

/// Microseconds a wait, medians of turns.
struct Costs {
    late: Vec<f64>,
    waiter: Vec<f64>,
    call: Vec<f64>,
}

/// Two threads, each on its CPU: one waits, the other knows since when, and rings when it is due.
pub fn due(turns: usize, waits: usize) {
    let policies = policies();
    let mut rows = Vec::new();
    for ns in [
        500, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000,
    ] {
        let after = Duration::from_nanos(ns);
        let bells: Vec<_> = policies.iter().map(|(_, spin)| Bell::new(*spin)).collect();
        let mut costs: Vec<_> = bells
            .iter()
            .map(|_| Costs {
                late: Vec::new(),
                waiter: Vec::new(),
                call: Vec::new(),
            })
            .collect();
        for _ in 0..turns {
            for (bell, costs) in bells.iter().zip(&mut costs) {
                one_turn(bell, after, waits, costs);
            }
        }
        rows.push((format!("due in {after:?}"), costs));
    }
    table(
        &policies,
        "from the signal until the waiter runs, µs",
        &rows,
        |c| &c.late,
    );
    table(
        &policies,
        "CPU time of the waiter, µs a wait",
        &rows,
        |c| &c.waiter,
    );
    table(&policies, "the call of the signaller, µs", &rows, |c| {
        &c.call
    });
}

fn table(
    policies: &[(String, Option<Spin>)],
    title: &str,
    rows: &[(String, Vec<Costs>)],
    of: impl Fn(&Costs) -> &Vec<f64>,
) {
    head(title, policies);
    for (name, costs) in rows {
        row(name, costs.iter().map(|costs| median(of(costs))));
    }
    println!();
}

fn one_turn(bell: &Bell, after: Duration, waits: usize, costs: &mut Costs) {
    let (samples, waiter) = sample(|| bell.ring(), || bell.wait(), 1, after, waits);
    let median_of = |time: fn(&Sample) -> Duration| {
        median(&samples.iter().map(|s| micros(time(s))).collect::<Vec<_>>())
    };
    costs.late.push(median_of(|sample| sample.woken));
    costs.call.push(median_of(|sample| sample.call));
    costs.waiter.push(micros(waiter) / waits as f64);
}

/// Threads that wait for each other by turns where spinning holds back the very thread that is waited for, or another.
pub fn in_vain(turns: usize, rounds: usize) {
    let policies = policies();
    for (title, pairs, cpus) in [
        ("ping-pong on one CPU", 1, &[0][..]),
        ("ping-pong of four pairs on two CPUs", 4, &[0, 1]),
    ] {
        let mut costs: Vec<_> = policies.iter().map(|_| (Vec::new(), Vec::new())).collect();
        for _ in 0..turns {
            for ((_, spin), (round, cpu)) in policies.iter().zip(&mut costs) {
                let (wall, busy) = ping_pong(*spin, pairs, cpus, rounds);
                round.push(wall);
                cpu.push(busy);
            }
        }
        head(title, &policies);
        row("a round, µs", costs.iter().map(|(round, _)| median(round)));
        row(
            "CPU time, µs a round",
            costs.iter().map(|(_, cpu)| median(cpu)),
        );
        println!();
    }
}

/// Microseconds a round: those that pass, and those of CPU time.
fn ping_pong(spin: Option<Spin>, pairs: usize, cpus: &[usize], rounds: usize) -> (f64, f64) {
    let bells: Vec<_> = (0..pairs)
        .map(|_| [Bell::new(spin), Bell::new(spin)])
        .collect();
    let start = Barrier::new(2 * pairs);
    let play = |pair: &[Bell; 2], me: usize| {
        pin_to(cpus);
        start.wait();
        let (begun, cpu) = (Instant::now(), cpu_time());
        for _ in 0..rounds {
            pair[me].wait();
            pair[1 - me].ring();
        }
        (begun.elapsed(), cpu_time() - cpu)
    };
    let play = &play;
    let times: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = bells
            .iter()
            .flat_map(|pair| {
                pair[0].ring();
                [0, 1].map(|me| scope.spawn(move || play(pair, me)))
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("nobody panics");
        threads.into_iter().map(join).collect()
    });
    let all = (pairs * rounds) as f64;
    let wall = times
        .iter()
        .map(|(wall, _)| micros(*wall))
        .fold(0.0, f64::max);
    let busy: f64 = times.iter().map(|(_, busy)| micros(*busy)).sum();
    (wall / all, busy / all)
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

fn head(title: &str, policies: &[(String, Option<Spin>)]) {
    print!("{title:<46}");
    policies.iter().for_each(|(name, _)| print!("{name:>9}"));
    println!();
}

fn row(name: &str, values: impl Iterator<Item = f64>) {
    print!("    {name:<42}");
    values.for_each(|value| print!("{value:>9.2}"));
    println!();
}
