//! The small examples: each runs, and prints what its page promises. (The large ones have tests of their own.)

#![cfg(target_os = "linux")]

#[path = "../common/example.rs"]
mod example;

use std::fs;

/// Runs an example of at most 60 lines, and returns what it prints.
fn said_by(name: &str) -> String {
    let places = [
        format!("examples/{name}.rs"),
        format!("examples/{name}/main.rs"),
    ];
    let source = places.iter().find_map(|it| fs::read_to_string(it).ok());
    let lines = source.expect("the example is there").lines().count();
    assert!(lines < 60, "{name} has {lines} lines");
    let output = example::run(name, &[]);
    let (stdout, stderr) = example::texts(&output);
    assert!(output.status.success(), "{name}: {stderr}");
    stdout
}

#[test]
fn device_thread() {
    let said = said_by("device_thread");
    assert_eq!(said, "kicks: [0, 0, 1, 0], timer: 1, bytes: 5\n");
}

#[test]
fn tokio_device() {
    let said = said_by("tokio_device");
    assert!(said.ends_with("served 3 kicks\n"), "{said}");
}

#[test]
fn kvm_wiring() {
    let said = said_by("kvm_wiring");
    if said.starts_with("skipped") {
        println!("{said}");
    } else {
        assert_eq!(said, "kicks: 1\nthe guest was interrupted\n");
    }
}

#[test]
fn intx_resample() {
    let said = said_by("intx_resample");
    let levels = "[true, false, true, false, true, false]";
    assert_eq!(said, format!("the line went {levels}\n"));
}

#[test]
fn msix_masks() {
    assert_eq!(said_by("msix_masks"), "3 signals, 2 interrupts\n");
}

#[test]
fn snapshot_restore() {
    let said = said_by("snapshot_restore");
    assert_eq!(said, "2 kicks and 1 interrupt came through\n");
}
