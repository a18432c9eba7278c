//! The back-ends under test, as processes: the example, and `qemu-storage-daemon`, which shows that the tests are
//! right.

use crate::watchdog::Watchdog;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::tempdir::TempDir;

/// This is generous, because other tests load the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The path of the example. Cargo builds it, so that it is never stale; it is run without cargo, so that it can be
/// killed.
pub fn example() -> &'static Path {
    match try_example() {
        Ok(path) => path,
        Err(why) => panic!("{why}"),
    }
}

/// The same, or the reason why it cannot be built.
pub fn try_example() -> Result<&'static Path, &'static str> {
    static EXAMPLE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", "vhost-user-blk"]);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        // A bench uses the profile of `--release`, too.
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        match cargo.status() {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("cargo build ends with {status}")),
            Err(e) => return Err(format!("cargo does not run: {e}")),
        }
        let this = std::env::current_exe().map_err(|e| e.to_string())?;
        let profile = this.parent().and_then(Path::parent);
        let profile = profile.ok_or("this is not in target/PROFILE")?;
        Ok(profile.join("examples/vhost-user-blk"))
    };
    let built = EXAMPLE.get_or_init(build).as_deref();
    built.map_err(String::as_str)
}

/// A directory for the sockets and the disks of a test.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Place(TempDir::new().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// A disk of zeroes.
    pub fn disk(&self, bytes: u64) -> PathBuf {
        let path = self.path("disk");
        let file = File::create(&path).expect("a file");
        file.set_len(bytes).expect("room");
        path
    }
}

/// A back-end that runs, and is killed when this is dropped.
pub struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts the example with `options` in addition to its socket, and returns when it listens.
    pub fn ours(place: &Place, options: &[&str]) -> Self {
        let mut command = Command::new(example());
        command.arg("--socket").arg(place.socket()).args(options);
        Self::start(command, place.socket())
    }

    /// `None`, with a message, if there is none.
    pub fn qemu(place: &Place, disk: &Path, queues: u16) -> Option<Self> {
        let disk = format!("driver=file,filename={}", disk.display());
        Self::qemu_with(place, &disk, queues, &[])
    }

    /// The same, with a disk of zeroes without a file, and a thread of its own that polls for at most `poll_max_ns`.
    #[allow(dead_code, reason = "for the bench")]
    pub fn qemu_polls(place: &Place, bytes: u64, poll_max_ns: u32) -> Option<Self> {
        let disk = format!("driver=null-co,read-zeroes=on,size={bytes}");
        let thread = format!("iothread,id=thread,poll-max-ns={poll_max_ns}");
        Self::qemu_with(place, &disk, 1, &["--object", &thread])
    }

    fn qemu_with(place: &Place, disk: &str, queues: u16, objects: &[&str]) -> Option<Self> {
        let version = Command::new("qemu-storage-daemon")
            .arg("--version")
            .output();
        if let Err(e) = version {
            eprintln!("skipped: no qemu-storage-daemon ({e})");
            return None;
        }
        let mut command = Command::new("qemu-storage-daemon");
        let socket = place.socket();
        command.args(objects);
        command.args(["--blockdev", &format!("{disk},node-name=disk")]);
        let thread = if objects.is_empty() {
            ""
        } else {
            ",iothread=thread"
        };
        command.arg("--export");
        command.arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},\
             addr.type=unix,addr.path={}{thread}",
            socket.display()
        ));
        Some(Self::start(command, socket))
    }

    fn start(mut command: Command, socket: PathBuf) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("the back-end starts");
        let mut daemon = Daemon { child, socket };
        let start = Instant::now();
        // This does not connect: a back-end with --once would serve only that connection.
        while !is_listening(&daemon.socket) {
            if let Some(status) = daemon.child.try_wait().expect("a child") {
                panic!("{status}: {}", daemon.output().1);
            }
            assert!(start.elapsed() < PATIENCE, "no socket appears");
            thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    #[allow(dead_code, reason = "for the bench")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it by SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Ends it by SIGTERM, and returns what it printed.
    pub fn end(mut self) -> Ended {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child");
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Ended {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the back-end does not end");
            thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = self.output();
        assert!(status.success(), "{status}: {stderr}");
        Ended {
            stats: Stats::parse(&stdout),
            stderr,
        }
    }

    fn output(&mut self) -> (String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let out = self.child.stdout.take().expect("piped");
        let err = self.child.stderr.take().expect("piped");
        { out }.read_to_string(&mut stdout).expect("UTF-8");
        { err }.read_to_string(&mut stderr).expect("UTF-8");
        (stdout, stderr)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The back-end may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_listening(socket: &Path) -> bool {
    let sockets = fs::read_to_string("/proc/net/unix").expect("Linux");
    let path = socket.to_str().expect("UTF-8");
    // Flags 00010000: it accepts connections.
    let mut lines = sockets.lines();
    lines.any(|line| line.ends_with(path) && line.contains(" 00010000 "))
}

pub struct Ended {
    pub stats: Stats,
    pub stderr: String,
}

/// The statistics that the example prints at its end.
#[derive(Debug)]
pub struct Stats {
    pub clients: u64,
    pub dropped: u64,
    /// The queues, and the sum.
    pub queues: Vec<QueueStats>,
    pub all: QueueStats,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    pub requests: u64,
    pub kicks: u64,
    pub interrupts: u64,
    pub looks: u64,
    pub windows: u64,
    pub sleeps: u64,
}

impl Stats {
    fn parse(text: &str) -> Self {
        let numbers = |line: &str| -> Vec<u64> {
            let words = line.split(|c: char| !c.is_ascii_digit());
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let mut lines = text.lines();
        let clients = numbers(lines.next().expect("a line of clients"));
        assert!(lines.next().expect("a heading").starts_with("queue"));
        let mut rows: Vec<_> = lines
            .map(|line| {
                let numbers = numbers(line);
                let [requests, kicks, interrupts, looks, windows, sleeps] = numbers
                    [numbers.len() - 6..]
                    .try_into()
                    .expect("six columns");
                QueueStats {
                    requests,
                    kicks,
                    interrupts,
                    looks,
                    windows,
                    sleeps,
                }
            })
            .collect();
        let all = rows.pop().expect("a sum");
        Stats {
            clients: clients[0],
            dropped: clients[1],
            queues: rows,
            all,
        }
    }
}

/// Runs the example, which is to end by itself.
pub fn run(options: &[&str]) -> Output {
    let told = format!("{options:?} do not end it");
    let _watchdog = Watchdog::new(PATIENCE, || told);
    Command::new(example())
        .args(options)
        .output()
        .expect("it runs")
}
