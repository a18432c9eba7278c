//! Examples, run as a user runs them.

use std::process::{Command, Output};

/// Runs an example by cargo, so that it is never a stale build; cargo passes the exit code on.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--example", name]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo
        .arg("--")
        .args(arguments)
        .output()
        .expect("cargo runs")
}

/// What was written to standard output and to standard error.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&output.stdout), text(&output.stderr))
}
