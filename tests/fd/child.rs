//! Tests that need a process of their own: this binary again, for one test.

use crate::common::watchdog::Watchdog;
use std::env;
use std::process::Command;
use std::time::Duration;

/// Set in the child.
const CHILD: &str = "DOORBELL_TEST_CHILD";

/// A command that runs the test `name` in a child process, to which it passes `argument`.
pub fn command(name: &str, argument: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, argument);
    command
}

/// The argument that the parent has passed to this process, if it is a child. A child has a time limit.
pub fn argument() -> Option<String> {
    let argument = env::var(CHILD).ok()?;
    let limit = Duration::from_secs(30);
    std::mem::forget(Watchdog::new(limit, || "a child process".to_owned()));
    Some(argument)
}

/// Runs the body of the test `name` in a process in which nothing else happens.
pub fn alone(name: &str, body: impl FnOnce()) {
    if argument().is_some() {
        body();
        println!("\n{DONE}");
        return;
    }
    let output = command(name, "").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.lines().any(|line| line == DONE),
        "{output:?}"
    );
}

/// What a child prints when it has come to its end. A child that runs no test, for a wrong name, does not print it.
const DONE: &str = "the child is done";
