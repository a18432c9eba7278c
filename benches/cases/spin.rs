//! What spinning earns and costs.

use super::event::Eventfd;
use super::interleave::median;
use super::latency::{BURST, Sample, sample};
use super::{cpu_time, pin_to};
use doorbell::{Event, Spin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// How to wait.
enum Waiting {
    Eventfd,
    /// Looks for a fixed time before each sleep, and learns nothing.
    Fixed(Duration),
    Spin(Spin),
}

impl Waiting {
    fn bell(&self) -> Bell {
        match *self {
            Waiting::Eventfd => Bell::Eventfd(Eventfd::new()),
            Waiting::Fixed(window) => Bell::Fixed(Event::new(0).with_spin(Spin::Never), window),
            Waiting::Spin(spin) => Bell::Event(Event::new(0).with_spin(spin)),
        }
    }
}

/// All policies, with or without the fixed ones.
fn policies(with_fixed: bool) -> Vec<(String, Waiting)> {
    let fixed = |us| {
        let window = Duration::from_micros(us);
        (format!("fix {us} µs"), Waiting::Fixed(window))
    };
    let up_to = |us| {
        let max = Duration::from_micros(us);
        (format!("{us} µs"), Waiting::Spin(Spin::Adaptive { max }))
    };
    let mut all = vec![
        ("eventfd".to_owned(), Waiting::Eventfd),
        ("never".to_owned(), Waiting::Spin(Spin::Never)),
    ];
    if with_fixed {
        all.extend([5, 20, 50].map(fixed));
        all.extend([20, 50, 100].map(up_to));
    } else {
        all.extend([5, 10, 20, 50, 100].map(up_to));
    }
    all.push(("always".to_owned(), Waiting::Spin(Spin::Always)));
    all
}

enum Bell {
    Event(Event),
    Fixed(Event, Duration),
    Eventfd(Eventfd),
}

impl Bell {
    fn ring(&self) {
        match self {
            Bell::Event(event) | Bell::Fixed(event, _) => event.signal(),
            Bell::Eventfd(fd) => fd.write(1),
        }
    }

    fn wait(&self) {
        match self {
            Bell::Event(event) => _ = event.read(),
            Bell::Fixed(event, window) => {
                let start = Instant::now();
                while start.elapsed() < *window {
                    if event.count() != 0 && event.try_read().is_some() {
                        return;
                    }
                    std::hint::spin_loop();
                }
                _ = event.read();
            }
            Bell::Eventfd(fd) => _ = fd.read(),
        }
    }
}

/// Microseconds per wait, as medians of turns.
struct Costs {
    late: Vec<f64>,
    waiter: Vec<f64>,
    call: Vec<f64>,
}

/// Two threads, each on its CPU: one waits; the other knows since when, and rings when the time is over, once or many
/// times.
pub fn due(turns: usize, waits: usize, word: &str) {
    let policies = policies(false);
    let mut rows = Vec::new();
    let single = [
        500, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000,
    ];
    let single = single.map(|ns| (1, Duration::from_nanos(ns)));
    let bursts = [10, 1_000].map(|us| (BURST, Duration::from_micros(us)));
    for (rings, after) in single.into_iter().chain(bursts) {
        let name = match rings {
            1 => format!("due in {after:?}"),
            _ => format!("{rings} signals at once after {after:?}"),
        };
        if !name.contains(word) {
            continue;
        }
        // Waits of a millisecond are among those that matter little.
        let waits = if after < Duration::from_millis(1) {
            waits
        } else {
            waits.div_ceil(8)
        };
        let bells: Vec<_> = policies.iter().map(|(_, how)| how.bell()).collect();
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
                one_turn(bell, rings, after, waits, costs);
            }
        }
        rows.push((name, costs));
    }
    if rows.is_empty() {
        return;
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
    table(&policies, "the calls of the signaller, µs", &rows, |c| {
        &c.call
    });
}

fn table(
    policies: &[(String, Waiting)],
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

fn one_turn(bell: &Bell, rings: u32, after: Duration, waits: usize, costs: &mut Costs) {
    let (samples, waiter) = sample(|| bell.ring(), || bell.wait(), rings, after, waits);
    let median_of = |time: fn(&Sample) -> Duration| {
        median(&samples.iter().map(|s| micros(time(s))).collect::<Vec<_>>())
    };
    costs.late.push(median_of(|sample| sample.woken));
    costs.call.push(median_of(|sample| sample.call));
    costs.waiter.push(micros(waiter) / waits as f64);
}

/// Two threads that wait for each other by turns, over and over: what such a pair does, and what runs beside it.
#[derive(Clone, Copy)]
struct Play {
    title: &'static str,
    pairs: usize,
    /// Where the two sides of each pair may run.
    cpus: [&'static [usize]; 2],
    /// How long the second side computes before it answers.
    thinks: Duration,
    /// After how many rounds the second side sleeps, and for how long.
    pause: Option<(u32, Duration)>,
    /// A vCPU runs on the CPU of the first side.
    beside_vcpu: bool,
}

const PING_PONG: Play = Play {
    title: "two CPUs, a side on each",
    pairs: 1,
    cpus: [&[0], &[1]],
    thinks: Duration::ZERO,
    pause: None,
    beside_vcpu: false,
};

fn plays() -> Vec<Play> {
    vec![
        PING_PONG,
        Play {
            title: "bursts of 64 rounds, then 1 ms",
            pause: Some((64, Duration::from_millis(1))),
            ..PING_PONG
        },
        Play {
            title: "bursts of 4 rounds, then 1 ms",
            pause: Some((4, Duration::from_millis(1))),
            ..PING_PONG
        },
        Play {
            title: "one CPU",
            cpus: [&[0], &[0]],
            ..PING_PONG
        },
        Play {
            title: "two pairs on one CPU",
            pairs: 2,
            cpus: [&[0], &[0]],
            ..PING_PONG
        },
        Play {
            title: "two pairs on two CPUs, a side on each",
            pairs: 2,
            ..PING_PONG
        },
        Play {
            title: "two pairs on two CPUs, anywhere",
            pairs: 2,
            cpus: [&[0, 1], &[0, 1]],
            ..PING_PONG
        },
        Play {
            title: "four pairs on two CPUs, anywhere",
            pairs: 4,
            cpus: [&[0, 1], &[0, 1]],
            ..PING_PONG
        },
        Play {
            title: "beside a vCPU",
            beside_vcpu: true,
            ..PING_PONG
        },
        Play {
            title: "beside a vCPU, after 10 µs of work",
            thinks: Duration::from_micros(10),
            beside_vcpu: true,
            ..PING_PONG
        },
    ]
}

/// Pairs of threads in which spinning wins, or holds back the very thread that is waited for, or takes the CPU from
/// others.
pub fn pairs(turns: usize, each: Duration, word: &str) {
    let policies = policies(true);
    for play in plays() {
        if !play.title.contains(word) {
            continue;
        }
        // What the events have learnt stays from turn to turn.
        let bells = |spin: &Waiting| {
            (0..play.pairs)
                .map(|_| [spin.bell(), spin.bell()])
                .collect()
        };
        let bells: Vec<Vec<_>> = policies.iter().map(|(_, spin)| bells(spin)).collect();
        let mut costs: Vec<_> = policies.iter().map(|_| [const { Vec::new() }; 3]).collect();
        let vcpu = play.beside_vcpu.then(|| Vcpu::start(play.cpus[0]));
        let mut order: Vec<usize> = (0..policies.len()).collect();
        for _ in 0..turns {
            fastrand::shuffle(&mut order);
            for &i in &order {
                let sample = one_play(play, &bells[i], each, vcpu.as_ref());
                costs[i]
                    .iter_mut()
                    .zip(sample)
                    .for_each(|(all, one)| all.push(one));
            }
        }
        head(&format!("ping-pong: {}", play.title), &policies);
        let line = |name, what: usize| row(name, costs.iter().map(|costs| median(&costs[what])));
        line("a round, µs", 0);
        line("CPU time, µs a round", 1);
        if let Some(vcpu) = vcpu {
            vcpu.stop();
            line("the vCPU's part of its CPU, %", 2);
        }
        println!();
    }
}

/// Microseconds per round, without the pauses, of time and of CPU time; and the vCPU's share of its CPU in per cent.
fn one_play(play: Play, bells: &[[Bell; 2]], each: Duration, vcpu: Option<&Vcpu>) -> [f64; 3] {
    let start = Barrier::new(2 * play.pairs);
    let (begun, vcpu_had) = (Instant::now(), vcpu.map(Vcpu::had));
    let first_side = |[mine, other]: &[Bell; 2], stop: &AtomicBool| {
        pin_to(play.cpus[0]);
        start.wait();
        let cpu = cpu_time();
        while !stop.load(Ordering::Relaxed) {
            mine.wait();
            other.ring();
        }
        cpu_time() - cpu
    };
    // Returns microseconds per round, the number of rounds, and the side's CPU time.
    let second_side = |[other, mine]: &[Bell; 2], stop: &AtomicBool| {
        pin_to(play.cpus[1]);
        start.wait();
        let (begun, cpu, mut paused) = (Instant::now(), cpu_time(), Duration::ZERO);
        let mut rounds = 0;
        loop {
            other.ring();
            mine.wait();
            rounds += 1;
            let since = Instant::now();
            if since - begun >= each {
                break;
            }
            match play.pause {
                Some((every, pause)) if rounds % every == 0 => {
                    thread::sleep(pause);
                    paused += since.elapsed();
                }
                _ => while since.elapsed() < play.thinks {},
            }
        }
        let wall = micros(begun.elapsed() - paused) / f64::from(rounds);
        // The last ring is not answered.
        stop.store(true, Ordering::Relaxed);
        other.ring();
        (wall, rounds, cpu_time() - cpu)
    };
    let (first_side, second_side) = (&first_side, &second_side);
    let of_pairs: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = bells
            .iter()
            .map(|pair| {
                let stop = Arc::new(AtomicBool::new(false));
                let its_stop = Arc::clone(&stop);
                (
                    scope.spawn(move || first_side(pair, &its_stop)),
                    scope.spawn(move || second_side(pair, &stop)),
                )
            })
            .collect();
        let join = threads.into_iter().map(|(first, second)| {
            let cpu = first.join().expect("nobody panics");
            let (wall, rounds, second_cpu) = second.join().expect("nobody panics");
            (wall, micros(cpu + second_cpu) / f64::from(rounds))
        });
        join.collect()
    });
    let its_part = vcpu.zip(vcpu_had).map(|(vcpu, had)| {
        100.0 * (vcpu.had() - had).as_secs_f64() / begun.elapsed().as_secs_f64()
    });
    // This takes what the last rings have left, which may be nothing.
    for bell in bells.iter().flatten() {
        bell.ring();
        bell.wait();
    }
    let pairs = play.pairs as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| of_pairs.iter().map(of).sum::<f64>() / pairs;
    // Pairs that run at once share the time.
    [
        mean(|one| one.0) / pairs,
        mean(|one| one.1),
        its_part.unwrap_or_default(),
    ]
}

/// A thread that computes all the time on a CPU: in a guest, if there is KVM.
struct Vcpu {
    stop: Arc<AtomicBool>,
    /// Nanoseconds of CPU time, up to the last exit from the guest.
    had: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Vcpu {
    fn start(cpus: &'static [usize]) -> Self {
        let (stop, had) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (its_stop, it_has) = (Arc::clone(&stop), Arc::clone(&had));
        let thread = thread::spawn(move || {
            pin_to(cpus);
            let mut compute = computing();
            while !its_stop.load(Ordering::Relaxed) {
                compute();
                it_has.store(cpu_time().as_nanos() as u64, Ordering::Relaxed);
            }
        });
        while had.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        Vcpu { stop, had, thread }
    }

    fn had(&self) -> Duration {
        Duration::from_nanos(self.had.load(Ordering::Relaxed))
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the vCPU thread does not panic");
    }
}

/// What a vCPU does between two exits, some 0.1 ms apart: a guest that counts down.
#[cfg(target_arch = "x86_64")]
fn computing() -> Box<dyn FnMut()> {
    use super::kvm::vm::{Exit, Vm, assemble};
    use super::kvm::{ENTRY, MEMORY};
    use iced_x86::code_asm::*;
    let Some(mut vm) = Vm::new(MEMORY) else {
        return Box::new(count_down);
    };
    let program = assemble(ENTRY, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)
    });
    vm.memory().load(ENTRY, &program);
    Box::new(move || {
        let regs = kvm_bindings::kvm_regs {
            rip: ENTRY,
            rcx: COUNT,
            ..kvm_bindings::kvm_regs::default()
        };
        vm.set(regs, 0);
        assert_eq!(vm.run(), Exit::Halt);
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn computing() -> Box<dyn FnMut()> {
    println!("no KVM here: a thread that counts in its place");
    Box::new(count_down)
}

const COUNT: u64 = 2_000;

fn count_down() {
    (0..COUNT).for_each(|n| _ = std::hint::black_box(n));
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

fn head(title: &str, policies: &[(String, Waiting)]) {
    print!("{title:<46}");
    policies.iter().for_each(|(name, _)| print!("{name:>9}"));
    println!();
}

fn row(name: &str, values: impl Iterator<Item = f64>) {
    print!("    {name:<42}");
    values.for_each(|value| print!("{value:>9.2}"));
    println!();
}
