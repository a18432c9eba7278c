//! The example `vmm`, run as a user runs it: its table must add up, with KVM and without, and it must report bad
//! options.

#[path = "../common/example.rs"]
mod example;

use std::process::Output;

/// Runs the example.
fn vmm(arguments: &[&str]) -> Output {
    let output = example::run("vmm", arguments);
    let (_, stderr) = texts(&output);
    assert!(
        !stderr.contains(['\r', '\x1b']),
        "control characters in a pipe: {stderr:?}"
    );
    output
}

fn texts(output: &Output) -> (String, String) {
    let (stdout, stderr) = example::texts(output);
    // On a busy machine there are more lines of progress, or fewer.
    let told = stderr
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("vmm: run "));
    (stdout, told.collect())
}

/// A line of the table.
struct Row {
    setup: String,
    batch: u64,
    sent: u64,
    /// Kicks for which the guest wrote to a doorbell.
    rung: u64,
    /// Kicks that reached the VMM.
    exited: u64,
    seen: u64,
    /// Numbers of signals, injected and coalesced ones, and ends, from doorbell's irqfds if the interrupts go through
    /// them.
    irqfd: Option<[u64; 4]>,
    /// Batches that the driver knows to be completed.
    completed: u64,
    interrupts: u64,
    spurious: u64,
    /// Median, 99th percentile, maximum. Not known everywhere, like the next field.
    latency: Option<[f64; 3]>,
    /// Median, 99th percentile.
    round_trip: [f64; 2],
    syscalls: Option<f64>,
}

/// Two rounds of 10 kicks by each doorbell, in batches of 1 and of 4, and the resulting table.
fn small_run(more: &[&str]) -> (Vec<Row>, String) {
    let small = ["--kicks", "10", "--rounds", "2", "--batch", "1,4"];
    let output = vmm(&[&small, more].concat());
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let table = stdout.lines().skip(2).take_while(|line| !line.is_empty());
    (table.map(parse).collect(), stderr)
}

fn parse(line: &str) -> Row {
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells.len(), 19, "{line}");
    let whole = |i: usize| cells[i].parse().unwrap_or_else(|e| panic!("{line}: {e}"));
    let measured = |i: usize| match cells[i] {
        "n/a" => None,
        number => Some(number.parse().unwrap_or_else(|e| panic!("{line}: {e}"))),
    };
    Row {
        setup: cells[0].to_string(),
        batch: whole(1),
        sent: whole(2),
        rung: whole(3),
        exited: whole(4),
        seen: whole(5),
        irqfd: (cells[6] != "-").then(|| [6, 7, 8, 9].map(whole)),
        completed: whole(10),
        interrupts: whole(11),
        spurious: whole(12),
        latency: measured(13).map(|median| [median, measured(14).unwrap(), measured(15).unwrap()]),
        round_trip: [16, 17].map(|i| measured(i).unwrap()),
        syscalls: measured(18),
    }
}

/// Worked out by hand: four doorbells, each rung 10 times (12 in batches of 4) and once more before the reset; twice.
/// In the set-up `polled`, as many kicks and fewer rings, as many batches and fewer interrupts.
#[track_caller]
fn assert_adds_up(rows: &[Row], setups: &[&str], in_kernel: &[&str]) {
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row.setup.as_str(), row.batch))
        .collect();
    let each = |batch| setups.iter().map(move |setup| (*setup, batch));
    assert_eq!(found, each(1).chain(each(4)).collect::<Vec<_>>());
    for row in rows {
        let (kicks, batches) = match row.batch {
            1 => (2 * (4 * 10 + 4), 2 * 4 * 10),
            _ => (2 * (4 * 12 + 4), 2 * 4 * 3),
        };
        let setup = row.setup.as_str();
        let (rung, interrupts) = match setup {
            "polled" => (row.rung.min(kicks), row.interrupts.min(batches)),
            _ => (kicks, batches),
        };
        let exited = match in_kernel.contains(&setup) {
            true => 0,
            false => rung,
        };
        assert_eq!(
            (row.sent, row.rung, row.exited, row.seen),
            (kicks, rung, exited, kicks),
            "{setup}"
        );
        assert_eq!(
            (row.completed, row.interrupts),
            (batches, interrupts),
            "{setup}"
        );
        assert_interrupts_add_up(row, batches);
        if let Some([median, p99, max]) = row.latency {
            assert!(
                0.0 < median && median <= p99 && p99 <= max,
                "{median} {p99} {max}"
            );
        }
        let [median, p99] = row.round_trip;
        assert!(0.0 < median && median <= p99, "{median} {p99}");
    }
}

/// Checks the figures of doorbell's irqfds, for one interrupt for each batch.
#[track_caller]
fn assert_interrupts_add_up(row: &Row, batches: u64) {
    let setup = row.setup.as_str();
    match (setup, row.irqfd) {
        // Two rounds with two lines, each of which may be up at the end.
        ("level", Some([signals, injected, coalesced, ends])) => {
            assert_eq!(signals, injected + coalesced);
            assert!(signals >= batches, "{signals}");
            assert_eq!(ends, batches + row.spurious);
            assert!((ends..=ends + 4).contains(&injected), "{injected} {ends}");
        }
        ("doorbell" | "listener", irqfd) => {
            assert_eq!(irqfd, Some([batches, batches, 0, 0]), "{setup}");
            assert_eq!(row.spurious, 0, "{setup}");
        }
        // One bit of the interrupt controller may stand for two interrupts that were requested one after the other.
        ("polled", Some([signals, injected, coalesced, ends])) => {
            assert_eq!((signals, ends, row.spurious), (injected + coalesced, 0, 0));
            assert!((row.interrupts..=batches).contains(&injected), "{injected}");
        }
        ("eventfd" | "kernel", irqfd) => {
            assert_eq!((irqfd, row.spurious), (None, 0), "{setup}");
        }
        (_, irqfd) => panic!("{setup}: {irqfd:?}"),
    }
}

const SOFTWARE_SETUPS: &[&str] = if cfg!(target_os = "linux") {
    &["doorbell", "level", "eventfd", "polled"]
} else {
    &["doorbell", "level", "polled"]
};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_kvm_guest_rings_and_all_adds_up() {
    let kvm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()?.create_irq_chip());
    if let Err(e) = kvm {
        eprintln!("skipped: a_kvm_guest_rings_and_all_adds_up: no usable /dev/kvm ({e})");
        return;
    }
    let (rows, stderr) = small_run(&[]);
    assert_eq!(stderr, "");
    assert_adds_up(
        &rows,
        &[
            "doorbell", "level", "eventfd", "listener", "polled", "kernel",
        ],
        &["listener", "polled", "kernel"],
    );

    let calls = |setup| {
        rows.iter()
            .find(|row| row.setup == setup)
            .and_then(|row| row.syscalls)
    };
    let (Some(doorbell), Some(kernel)) = (calls("doorbell"), calls("kernel")) else {
        eprintln!("skipped: system calls cannot be counted here");
        return;
    };
    // In batches of 1, ten kicks in eleven are answered, each for one KVM_RUN and two KVM_IRQ_LINE at least.
    assert!(doorbell >= 30.0 / 11.0, "{doorbell}");
    // There is one read and one write for each kick and no exit, and a little more at the end of each of these short
    // rounds.
    assert!((20.0 / 11.0 - 0.1..2.5).contains(&kernel), "{kernel}");
}

#[test]
fn a_software_vcpu_rings_and_all_adds_up() {
    let (rows, stderr) = small_run(&["--software"]);
    assert_eq!(stderr, "");
    assert_adds_up(&rows, SOFTWARE_SETUPS, &[]);

    // If system calls can be counted: each kick is a write(2) to an eventfd.
    let of_eventfds = rows.iter().filter(|row| row.setup == "eventfd");
    for calls in of_eventfds.filter_map(|row| row.syscalls) {
        assert!(calls >= 1.0, "{calls}");
    }
}

#[test]
fn without_kvm_one_line_says_so() {
    let (rows, stderr) = small_run(&["--kvm", "/nonexistent"]);
    assert!(stderr.starts_with("vmm: no KVM ("), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_adds_up(&rows, SOFTWARE_SETUPS, &[]);
}

#[test]
fn every_spin_policy_sees_every_kick() {
    for policy in ["none", "adaptive", "always"] {
        let setups = ["doorbell", "polled"];
        let chosen = setups.join(",");
        let (rows, _) = small_run(&["--software", "--setups", &chosen, "--spin", policy]);
        assert_adds_up(&rows, &setups, &[]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn pinned_threads_see_every_kick() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    if cpus == 1 {
        eprintln!("skipped: pinned_threads_see_every_kick: one CPU");
        return;
    }
    let (rows, _) = small_run(&["--software", "--pin"]);
    assert_adds_up(&rows, SOFTWARE_SETUPS, &[]);
}

/// At least some of 2,000 kicks come while the device looks, which then does not sleep for them.
#[test]
fn a_device_that_looks_is_not_rung_for() {
    let often = ["--kicks", "500", "--rounds", "1", "--batch", "20"];
    let polled = ["--software", "--setups", "polled", "--spin", "always"];
    let output = vmm(&[&often[..], &polled[..]].concat());
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    let row = parse(stdout.lines().nth(2).expect("a row"));
    assert!(row.rung < row.sent, "{stdout}");
}

#[test]
fn a_setup_that_needs_kvm_fails_without() {
    let output = vmm(&["--software", "--setups", "kernel"]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("set-up kernel left out"), "{stderr}");
}

#[test]
fn bad_options_are_told_and_exit_with_2() {
    for (arguments, told) in [
        (["--kicks", "0"], "'--kicks <N>': 0 is not in 1..=10000000"),
        (
            ["--batch", "1,257"],
            "'--batch <N,N,..>': 257 is not in 1..=256",
        ),
        (
            ["--setups", "vhost"],
            "possible values: doorbell, level, eventfd, listener, polled, kernel",
        ),
        (
            ["--spin", "forever"],
            "possible values: none, adaptive, always",
        ),
        (["--software", "--fast"], "unexpected argument '--fast'"),
    ] {
        let output = vmm(&arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {stdout}{stderr}"
        );
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "");
    }
}

#[test]
fn help_is_no_error() {
    let output = vmm(&["--help"]);
    let (stdout, _) = texts(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout.contains("Usage: vmm [OPTIONS]"), "{stdout}");
}
