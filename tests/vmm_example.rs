//! The example `vmm`, run as a user runs it: its table must add up, with KVM and without, and bad options be told.

use std::process::{Command, Output};

/// Runs the example. By way of cargo, so that it is never a stale build; cargo passes the exit code on.
fn vmm(arguments: &[&str]) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--example", "vmm"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo
        .arg("--")
        .args(arguments)
        .output()
        .expect("cargo runs");
    let (_, stderr) = texts(&output);
    assert!(
        !stderr.contains(['\r', '\x1b']),
        "control characters in a pipe: {stderr:?}"
    );
    output
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    // A machine that is busy shows more lines of progress, or fewer.
    let stderr = text(&output.stderr);
    let told = stderr
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("vmm: run "));
    (text(&output.stdout), told.collect())
}

/// A line of the table.
struct Row {
    setup: String,
    batch: u64,
    sent: u64,
    /// Those that reached the VMM.
    exited: u64,
    seen: u64,
    /// Signals, injected, coalesced, ends: of doorbell's irqfds, where the interrupts go through them.
    irqfd: Option<[u64; 4]>,
    interrupts: u64,
    spurious: u64,
    /// Median, 99th percentile, maximum. Not known everywhere, as the next.
    latency: Option<[f64; 3]>,
    syscalls: Option<f64>,
}

/// Two rounds of 10 kicks by each doorbell, in batches of 1 and of 4, and the table that came of it.
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
    assert_eq!(cells.len(), 15, "{line}");
    let whole = |i: usize| cells[i].parse().unwrap_or_else(|e| panic!("{line}: {e}"));
    let measured = |i: usize| match cells[i] {
        "n/a" => None,
        number => Some(number.parse().unwrap_or_else(|e| panic!("{line}: {e}"))),
    };
    Row {
        setup: cells[0].to_string(),
        batch: whole(1),
        sent: whole(2),
        exited: whole(3),
        seen: whole(4),
        irqfd: (cells[5] != "-").then(|| [5, 6, 7, 8].map(whole)),
        interrupts: whole(9),
        spurious: whole(10),
        latency: measured(11).map(|median| [median, measured(12).unwrap(), measured(13).unwrap()]),
        syscalls: measured(14),
    }
}

/// Worked out by hand: four doorbells, each rung 10 times (12 in batches of 4) and once more before the reset; twice.
#[track_caller]
fn assert_adds_up(rows: &[Row], setups: &[&str]) {
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
        let exited = match row.setup.as_str() {
            "listener" | "kernel" => 0,
            _ => kicks,
        };
        assert_eq!(
            (row.sent, row.exited, row.seen, row.interrupts),
            (kicks, exited, kicks, batches),
            "{}",
            row.setup
        );
        assert_interrupts_add_up(row, batches);
        if let Some([median, p99, max]) = row.latency {
            assert!(
                0.0 < median && median <= p99 && p99 <= max,
                "{median} {p99} {max}"
            );
        }
    }
}

/// What doorbell's irqfds told, of one interrupt for each batch.
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
        ("eventfd" | "kernel", irqfd) => {
            assert_eq!((irqfd, row.spurious), (None, 0), "{setup}");
        }
        (_, irqfd) => panic!("{setup}: {irqfd:?}"),
    }
}

const SOFTWARE_SETUPS: &[&str] = if cfg!(target_os = "linux") {
    &["doorbell", "level", "eventfd"]
} else {
    &["doorbell", "level"]
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
        &["doorbell", "level", "eventfd", "listener", "kernel"],
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
    // One read and one write for each of them and no exit, and a little at the end of each of these short rounds.
    assert!((20.0 / 11.0 - 0.1..2.5).contains(&kernel), "{kernel}");
}

#[test]
fn a_software_vcpu_rings_and_all_adds_up() {
    let (rows, stderr) = small_run(&["--software"]);
    assert_eq!(stderr, "");
    assert_adds_up(&rows, SOFTWARE_SETUPS);

    // Where they can be counted: each kick is a write(2) to an eventfd.
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
    assert_adds_up(&rows, SOFTWARE_SETUPS);
}

#[test]
fn every_spin_policy_sees_every_kick() {
    for policy in ["none", "adaptive", "always"] {
        let (rows, _) = small_run(&["--software", "--setups", "doorbell", "--spin", policy]);
        assert_adds_up(&rows, &["doorbell"]);
    }
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
            "possible values: doorbell, level, eventfd, listener, kernel",
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
