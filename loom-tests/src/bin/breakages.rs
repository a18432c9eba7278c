//! Breaks the code on purpose and sees the models fail.
//!
//! Each entry of `breakages/*.toml` replaces a piece of the crate's source, found by its exact text, in a copy, and
//! names the models that must notice. A model that passes on broken code has lost its power, and a piece that is not
//! found means that the list no longer fits the code; both fail the run.
//!
//! `cargo run --bin breakages [WORD]` in `loom-tests/`; WORD picks the entries whose names contain it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use toml::{Table, Value};

/// A model that finds nothing in this time has not noticed: those that do need a second or two.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = here.join("target/breakages");
    // The manifest names targets in all of these.
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "src",
        "benches",
        "tests",
    ] {
        copy_into(&here.join("..").join(part), &copy.join(part));
    }
    for part in ["Cargo.toml", "Cargo.lock", ".cargo", "src", "tests"] {
        copy_into(&here.join(part), &copy.join("loom-tests").join(part));
    }

    let mut unnoticed = 0;
    for list in sorted(&here.join("breakages")) {
        let text = fs::read_to_string(&list).expect("a list of breakages can be read");
        let list: Table = text.parse().expect("a list of breakages is TOML");
        for breakage in list["breakage"].as_array().expect("[[breakage]] entries") {
            if field(breakage, "name").contains(&word) {
                unnoticed += try_breakage(breakage, &copy);
            }
        }
    }
    println!("{unnoticed} not noticed");
    ExitCode::from(u8::from(unnoticed != 0))
}

/// Applies one breakage, runs its models, and undoes it. Returns how many models passed.
fn try_breakage(breakage: &Value, copy: &Path) -> usize {
    let name = field(breakage, "name");
    let file = copy.join(field(breakage, "file"));
    let whole = fs::read_to_string(&file).expect("the file of a breakage exists");
    let find = field(breakage, "find").trim_matches('\n');
    assert_eq!(
        whole.matches(find).count(),
        1,
        "`{name}`: its text must stand in the code once"
    );
    let broken = whole.replace(find, field(breakage, "replace").trim_matches('\n'));
    fs::write(&file, broken).expect("the copy can be changed");

    let models = breakage["models"].as_array().expect("`models` is a list");
    let test = field(breakage, "test");
    let built = cargo(copy, test)
        .arg("--no-run")
        .status()
        .expect("cargo runs");
    assert!(built.success(), "`{name}` does not compile");
    let mut passed = 0;
    for model in models.iter().filter_map(Value::as_str) {
        let start = Instant::now();
        let noticed = fails(cargo(copy, test).args(["--", "--exact", model]));
        passed += usize::from(!noticed);
        let verdict = if noticed {
            "noticed by"
        } else {
            "NOT NOTICED by"
        };
        println!("{name}: {verdict} {model} ({:.1?})", start.elapsed());
    }
    fs::write(&file, whole).expect("the copy can be changed back");
    passed
}

/// `cargo test` of one file of models in the copy.
fn cargo(copy: &Path, test: &str) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(copy.join("loom-tests"))
        .env("CARGO_TARGET_DIR", copy.join("target"))
        // Most of the time goes into compiling: what is wrong is found soon.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_TEST_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_TEST_DEBUG", "0")
        .args(["test", "--quiet", "--test", test])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Whether the command ends in failure before the patience does.
fn fails(command: &mut Command) -> bool {
    let mut child = command.spawn().expect("cargo runs");
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return !status.success();
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn field<'a>(breakage: &'a Value, name: &str) -> &'a str {
    breakage[name].as_str().expect("a string")
}

/// Copies a file or a directory, leaving alone what is the same already, so that cargo rebuilds only what changed.
fn copy_into(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a directory can be made");
        for entry in sorted(from) {
            copy_into(
                &entry,
                &to.join(entry.file_name().expect("an entry has a name")),
            );
        }
    } else {
        let bytes = fs::read(from).expect("a source can be read");
        if fs::read(to).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(to.parent().expect("a file is in a directory"))
                .expect("a directory can be made");
            fs::write(to, bytes).expect("a copy can be written");
        }
    }
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory can be read");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
}
