//! Breaks the code on purpose and sees the models fail.
//!
//! Each entry of `breakages/*.toml` replaces a piece of the crate's source, found by its exact text, in a copy, and
//! names the models that must fail. If a model passes on broken code, it has lost its power; if a piece is not found,
//! the list no longer fits the code. Both fail the run.
//!
//! `cargo run --bin breakages [--all] [WORD]` in `loom-tests/`; WORD picks the entries whose names contain it,
//! or a file of models. The first model of an entry must fail; with `--all`, each of them.
//!
//! Compiling takes nearly all of the time, and one thread does most of it. So there is a worker for each CPU, with a
//! copy of the source and a target directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use toml::{Table, Value};

/// A model that finds nothing in this time counts as passed: models that notice a breakage need a second or two.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let (mut all, mut word) = (false, String::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--all" => all = true,
            _ => word = argument,
        }
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let breakages: Vec<Value> = sorted(&here.join("breakages"))
        .iter()
        .flat_map(|list| entries(list))
        .filter(|breakage| {
            field(breakage, "name").contains(&word) || field(breakage, "test") == word
        })
        .collect();

    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let workers: Vec<Worker> = (0..cpus.min(breakages.len()))
        .map(|number| Worker::new(here, number))
        .collect();
    if let Some((first, others)) = workers.split_first() {
        // The dependencies, which no breakage changes, are compiled once.
        if !first.target().exists() {
            first.build("event").unwrap_or_else(|said| panic!("{said}"));
        }
        others.iter().for_each(|worker| worker.adopt(first));
    }
    let (next, unnoticed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for worker in &workers {
            scope.spawn(|| {
                while let Some(breakage) = breakages.get(next.fetch_add(1, Ordering::Relaxed)) {
                    unnoticed.fetch_add(worker.try_breakage(breakage, all), Ordering::Relaxed);
                }
            });
        }
    });
    let unnoticed = unnoticed.into_inner();
    println!("{unnoticed} not noticed");
    ExitCode::from(u8::from(unnoticed != 0))
}

/// A copy of the source, to be broken.
struct Worker {
    copy: PathBuf,
}

impl Worker {
    fn new(here: &Path, number: usize) -> Self {
        let copy = here.join(format!("target/breakages/{number}"));
        // The manifest names targets in all of these directories.
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
        Worker { copy }
    }

    fn target(&self) -> PathBuf {
        self.copy.join("target")
    }

    /// Copies what another worker has compiled, unless this worker has compiled something itself.
    fn adopt(&self, other: &Worker) {
        if !self.target().exists() {
            // The times are kept, since cargo tells by them what is out of date.
            let copied = Command::new("cp")
                .arg("-a")
                .args([other.target(), self.target()])
                .status();
            assert!(copied.is_ok_and(|status| status.success()), "cp fails");
        }
    }

    /// Compiles one file of models, and returns the program, or what cargo says.
    fn build(&self, test: &str) -> Result<PathBuf, String> {
        let output = Command::new(env!("CARGO"))
            .current_dir(self.copy.join("loom-tests"))
            .env("CARGO_TARGET_DIR", self.target())
            // The models find a fault soon, even if the code is slow.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_TEST_DEBUG", "0")
            .env("CARGO_TERM_COLOR", "never")
            .args(["test", "--no-run", "--test", test])
            .output()
            .expect("cargo runs");
        // "  Executable tests/event.rs (/…/debug/deps/event-0123456789abcdef)"
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find(|line| line.contains("Executable"));
        let program = line
            .filter(|_| output.status.success())
            .and_then(|line| line.split_once('(')?.1.strip_suffix(')'));
        program
            .map(|program| self.copy.join("loom-tests").join(program))
            .ok_or_else(|| text.to_string())
    }

    /// Applies one breakage, runs its models, and undoes it. Returns how many models passed.
    fn try_breakage(&self, breakage: &Value, all: bool) -> usize {
        let name = field(breakage, "name");
        let file = self.copy.join(field(breakage, "file"));
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
        let program = self.build(field(breakage, "test"));
        let program = program.unwrap_or_else(|said| panic!("`{name}` does not compile: {said}"));
        let mut passed = 0;
        let models = models.iter().filter_map(Value::as_str);
        for model in models.take(if all { usize::MAX } else { 1 }) {
            let start = Instant::now();
            let noticed = fails(Command::new(&program).args(["--exact", model]));
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
}

/// Whether the command fails within [`PATIENCE`].
fn fails(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("a model runs");
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
        thread::sleep(Duration::from_millis(20));
    }
}

fn entries(list: &Path) -> Vec<Value> {
    let text = fs::read_to_string(list).expect("a list of breakages can be read");
    let list: Table = text.parse().expect("a list of breakages is TOML");
    let entries = list["breakage"].as_array();
    entries.expect("[[breakage]] entries").clone()
}

fn field<'a>(breakage: &'a Value, name: &str) -> &'a str {
    breakage[name].as_str().expect("a string")
}

/// Copies a file or a directory. Files that are the same already are left alone, so that cargo rebuilds only what
/// changed.
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
