//! Linux in a virtual machine: its virtio_blk driver, by QEMU's vhost-user-blk-pci, from a disk in a file.
//!
//! What it needs: `qemu-system-x86_64`, a static `busybox`, and a kernel with its modules, in `/` or unpacked in
//! `target/guest`, as `.ci/run` unpacks them. The test prints what is missing.
//!
//! A guest whose disk has never appeared could pass checks on a file in its memory. This one cannot: the host has
//! filled the disk with what the guest must read, and reads in the file what the guest says it has written; and the
//! back-end counts the requests.

use crate::backend::{Daemon, Place};
use crate::watchdog::Watchdog;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const BYTES: u64 = 4 << 20;
const QUEUES: u16 = 2;

/// A virtual machine without KVM boots in seconds, or somewhat more on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// What the guest does. Each line that begins with `guest:` is an answer.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in MODULES; do
    insmod /$module
done
tries=0
while [ ! -b /dev/vda ] && [ $tries != 100 ]; do
    usleep 100000
    tries=$((tries + 1))
done
fresh() { sync; echo 3 > /proc/sys/vm/drop_caches; }
hash() { fresh; sha256sum < /dev/vda | cut -d ' ' -f 1; }
echo "guest: size $(cat /sys/block/vda/size)"
echo "guest: serial $(cat /sys/block/vda/serial)"
echo "guest: queues $(ls /sys/block/vda/mq | wc -l)"
echo "guest: features $(cat /sys/block/vda/device/features)"
echo "guest: before $(hash)"
echo "guest: writing"
round=0
while [ $round != ROUNDS ]; do
    dd if=/dev/urandom of=/dev/vda bs=65536 count=32 conv=fsync 2> /dev/null || echo "guest: failed"
    dd if=/dev/vda of=/dev/null bs=4096 skip=512 2> /dev/null || echo "guest: failed"
    fresh
    round=$((round + 1))
done
echo "guest: after $(hash)"
poweroff -f
"#;

/// The parts that a guest is made of.
struct Parts {
    kernel: PathBuf,
    initramfs: Vec<u8>,
}

impl Parts {
    /// `None`, with a message, if something is missing.
    fn find(rounds: u32) -> Option<Self> {
        match Self::look(rounds) {
            Ok(parts) => Some(parts),
            Err(missing) => {
                eprintln!("skipped: no guest, for want of {missing}");
                None
            }
        }
    }

    fn look(rounds: u32) -> Result<Self, String> {
        if Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .is_err()
        {
            return Err("qemu-system-x86_64".into());
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find_map(|path| fs::read(path).ok())
            .filter(|program| is_static(program))
            .ok_or("a static busybox")?;
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
        let (kernel, modules) = [unpacked.as_path(), Path::new("/")]
            .iter()
            .find_map(|root| kernel_in(root))
            .ok_or("a kernel with its modules")?;
        let names = modules
            .iter()
            .filter_map(|module| module.file_name()?.to_str());
        let names: Vec<_> = names.collect();
        let init = INIT
            .replace("ROUNDS", &rounds.to_string())
            .replace("MODULES", &names.join(" "));
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "proc", "sys"] {
            archive.add(directory, 0o40755, &[]);
        }
        archive.add("init", 0o100_755, init.as_bytes());
        archive.add("bin/busybox", 0o100_755, &busybox);
        for module in modules {
            let name = module.file_name().and_then(|name| name.to_str());
            let content = fs::read(&module).map_err(|e| format!("{}: {e}", module.display()))?;
            archive.add(name.expect("UTF-8"), 0o100_644, &content);
        }
        Ok(Parts {
            kernel,
            initramfs: archive.end(),
        })
    }
}

/// A kernel, and the modules for virtio's disks that are not built in.
fn kernel_in(root: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let mut kernels: Vec<_> = fs::read_dir(root.join("boot"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    kernels.sort();
    kernels.into_iter().rev().find_map(|kernel| {
        let version = kernel
            .file_name()?
            .to_str()?
            .strip_prefix("vmlinuz-")?
            .to_owned();
        let drivers = root
            .join("lib/modules")
            .join(version)
            .join("kernel/drivers");
        let names = [
            "virtio",
            "virtio_ring",
            "virtio_pci_legacy_dev",
            "virtio_pci_modern_dev",
            "virtio_pci",
        ];
        let modules = names.map(|name| drivers.join(format!("virtio/{name}.ko")));
        let disk = drivers.join("block/virtio_blk.ko");
        // Kernels other than Debian's have the modules built in or compressed; then the guest has no disk, and says so.
        let modules = modules.into_iter().chain([disk]);
        let there: Vec<_> = modules.filter(|module| module.exists()).collect();
        (!there.is_empty()).then(|| (kernel, in_loading_order(there)))
    })
}

/// The modules, each after those that it depends on. Which these are changes between updates of a kernel.
fn in_loading_order(mut modules: Vec<PathBuf>) -> Vec<PathBuf> {
    let name = |module: &PathBuf| Some(module.file_stem()?.to_str()?.to_owned());
    let mut ordered: Vec<PathBuf> = Vec::new();
    while !modules.is_empty() {
        let waits = |module: &PathBuf| {
            let needed = dependencies(&fs::read(module).unwrap_or_default());
            modules
                .iter()
                .any(|other| name(other).is_some_and(|other| needed.contains(&other)))
        };
        // A circle cannot be loaded in any order.
        let next = modules
            .iter()
            .position(|module| !waits(module))
            .unwrap_or(0);
        ordered.push(modules.remove(next));
    }
    ordered
}

/// The names in a module's `depends=`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let names = module[at + KEY.len()..].split(|&byte| byte == 0).next();
    let names = String::from_utf8_lossy(names.unwrap_or_default()).into_owned();
    names.split(',').map(str::to_owned).collect()
}

/// Whether an ELF program needs no interpreter.
fn is_static(program: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_usize, |n, &byte| n << 8 | usize::from(byte)),
        )
    };
    let headers = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|n| number(start + n * size, 4))
            .collect::<Option<Vec<_>>>()
    };
    headers().is_some_and(|types| !types.contains(&(INTERPRETER as usize)))
}

/// An archive in the format that the kernel unpacks: cpio, "newc".
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = content.len() as u32;
        let name_size = name.len() as u32 + 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("memory");
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// A guest that runs.
struct Guest {
    qemu: Child,
    lines: Box<dyn Iterator<Item = String>>,
    /// What the guest has printed, for the watchdog.
    printed: Arc<Mutex<String>>,
    _watchdog: Watchdog,
    _turn: MutexGuard<'static, ()>,
}

/// Guests run one at a time, because each wants a CPU for itself.
static TURN: Mutex<()> = Mutex::new(());

impl Guest {
    fn start(parts: &Parts, place: &Place, disk: &Daemon) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let initramfs = place.path("initramfs");
        fs::write(&initramfs, &parts.initramfs).expect("room");
        let socket = disk.socket().display();
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-accel", "tcg", "-smp", "2", "-m", "256"])
            .args([
                "-object",
                "memory-backend-memfd,id=memory,size=256M,share=on",
            ])
            .args(["-machine", "q35,memory-backend=memory"])
            .args([
                "-chardev",
                &format!("socket,id=disk,path={socket},reconnect=1"),
            ])
            .args([
                "-device",
                &format!("vhost-user-blk-pci,chardev=disk,num-queues={QUEUES}"),
            ])
            .arg("-kernel")
            .arg(&parts.kernel)
            .arg("-initrd")
            .arg(&initramfs)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 no_timer_check",
                "-serial",
                "stdio",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU starts");
        let printed = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&printed);
        let report = Arc::clone(&printed);
        let pid = rustix::process::Pid::from_child(&qemu);
        let output = BufReader::new(qemu.stdout.take().expect("piped"));
        let lines = output.split(b'\n').map(move |line| {
            let line = line.expect("a pipe");
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let mut seen = seen.lock().expect("no panics");
            seen.push_str(&line);
            seen.push('\n');
            line
        });
        Guest {
            qemu,
            lines: Box::new(lines),
            printed,
            _watchdog: Watchdog::new(LIMIT, move || {
                // QEMU would go on without this process.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                report.lock().expect("no panics").clone()
            }),
            _turn: turn,
        }
    }

    /// The answer to a question; questions are answered in order.
    #[track_caller]
    fn answer(&mut self, question: &str) -> String {
        let answer = self.lines.find_map(|line| {
            let at = line.find("guest: ")?;
            Some(line[at + "guest: ".len()..].to_owned())
        });
        let answer = answer.unwrap_or_else(|| panic!("no {question}: {}", self.printed()));
        let (word, rest) = answer.split_once(' ').unwrap_or((&answer, ""));
        assert_eq!(word, question, "{}", self.printed());
        rest.to_owned()
    }

    fn printed(&self) -> String {
        self.printed.lock().expect("no panics").clone()
    }

    fn end(mut self) {
        assert_eq!(self.lines.find(|line| line.contains("guest: ")), None);
        assert!(self.qemu.wait().expect("a child").success());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // QEMU may have ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A disk of random bytes.
fn random_disk(place: &Place) -> PathBuf {
    let path = place.disk(BYTES);
    let mut random = fastrand::Rng::new();
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(BYTES as usize)
        .collect();
    fs::write(&path, bytes).expect("room");
    path
}

fn hash(path: &Path) -> String {
    let file = File::open(path).expect("the disk");
    let output = Command::new("sha256sum")
        .stdin(file)
        .output()
        .expect("sha256sum");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text[..64].to_owned()
}

/// Checks a guest's first answers, which show that its disk is the device.
fn assert_disk(guest: &mut Guest, serial: Option<&str>, disk: &Path) {
    let size = guest.answer("size");
    assert_eq!(size, (BYTES / 512).to_string(), "{}", guest.printed());
    let told = guest.answer("serial");
    if let Some(serial) = serial {
        assert_eq!(told, serial);
    }
    assert_eq!(guest.answer("queues"), QUEUES.to_string());
    let features = guest.answer("features");
    for (bit, name) in [(28, "INDIRECT_DESC"), (29, "EVENT_IDX"), (32, "VERSION_1")] {
        assert_eq!(features.as_bytes()[bit], b'1', "{name}: {features}");
    }
    assert_eq!(guest.answer("before"), hash(disk));
    guest.answer("writing");
}

#[test]
fn a_linux_guest_finds_its_disk_and_writes_it() {
    let Some(parts) = Parts::find(2) else {
        return;
    };
    for poll in ["0", "50"] {
        let place = Place::new();
        let disk = random_disk(&place);
        let serial = format!("doorbell-{}", fastrand::u32(..));
        let file = disk.to_str().expect("UTF-8");
        let queues = QUEUES.to_string();
        let daemon = Daemon::ours(
            &place,
            &[
                "--file",
                file,
                "--serial",
                &serial,
                "--queues",
                &queues,
                "--poll-max-us",
                poll,
            ],
        );
        let before = hash(&disk);
        let mut guest = Guest::start(&parts, &place, &daemon);
        assert_disk(&mut guest, Some(&serial), &disk);
        let after = guest.answer("after");
        assert_ne!(after, before);
        assert_eq!(after, hash(&disk));
        guest.end();
        let ended = daemon.end();
        assert_eq!(
            (ended.stats.clients, ended.stats.dropped),
            (1, 0),
            "{}",
            ended.stderr
        );
        // The disk was read at least three times and written once, by requests of at most 1 MiB.
        assert!(ended.stats.all.requests > 16, "{:?}", ended.stats);
        assert_eq!(ended.stats.all.looks == 0, poll == "0", "{:?}", ended.stats);
    }
}

#[test]
fn a_linux_guest_does_not_notice_that_its_back_end_is_killed() {
    let Some(parts) = Parts::find(12) else {
        return;
    };
    let place = Place::new();
    let disk = random_disk(&place);
    let queues = QUEUES.to_string();
    let options = [
        "--file",
        disk.to_str().expect("UTF-8"),
        "--queues",
        &queues,
        "--poll-max-us",
        "50",
    ];
    let mut daemon = Daemon::ours(&place, &options);
    let mut guest = Guest::start(&parts, &place, &daemon);
    assert_disk(&mut guest, None, &disk);
    let mut kills = 0;
    while kills != 3 {
        std::thread::sleep(Duration::from_millis(300));
        daemon.kill();
        daemon = Daemon::ours(&place, &options);
        kills += 1;
    }
    assert_eq!(guest.answer("after"), hash(&disk));
    guest.end();
    let ended = daemon.end();
    assert_eq!(
        (ended.stats.clients, ended.stats.dropped),
        (1, 0),
        "{}",
        ended.stderr
    );
    assert!(ended.stats.all.requests > 16, "{:?}", ended.stats);
}

#[test]
fn the_same_guest_is_content_with_qemus_back_end() {
    let Some(parts) = Parts::find(2) else {
        return;
    };
    let place = Place::new();
    let disk = random_disk(&place);
    let Some(daemon) = Daemon::qemu(&place, &disk, QUEUES) else {
        return;
    };
    let mut guest = Guest::start(&parts, &place, &daemon);
    assert_disk(&mut guest, None, &disk);
    assert_eq!(guest.answer("after"), hash(&disk));
    guest.end();
}
