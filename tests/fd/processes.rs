//! Another process, to which a descriptor has been passed.

use crate::common::caller::{of_program, wait_until};
use crate::{Watch, child, is_readable};
use doorbell::Event;
use doorbell::fd::{EFD_NONBLOCK, EventFd, Forward, Mirror};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_setfd};
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write, stdin};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The child's answers begin with this, since libtest prints lines too.
const MARK: &str = "answer: ";

/// A process that makes the calls on the descriptor that it is told to make, and answers.
struct Peer {
    child: Child,
    ask: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn new(test: &str, fd: impl AsFd) -> Self {
        // This copy is not closed on exec.
        let copy = fd.as_fd().try_clone_to_owned().unwrap();
        fcntl_setfd(&copy, FdFlags::empty()).unwrap();
        let mut child = child::command(test, &copy.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Peer {
            ask: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.ask, "{command}").unwrap();
    }

    fn answer(&mut self) -> String {
        self.answers
            .find_map(|line| line.unwrap().strip_prefix(MARK).map(str::to_owned))
            .expect("the child answers")
    }

    fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Whether a level-triggered epoll and an edge-triggered one report something.
    fn polled(&mut self) -> (String, String) {
        (self.ask("level"), self.ask("edge"))
    }

    /// Waits until a thread of the child sleeps in a system call.
    fn wait_asleep(&self, calls: &[libc::c_long]) {
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until("the child to sleep", || {
            fs::read_dir(&tasks).unwrap().any(|task| {
                let file = task.unwrap().path().join("syscall");
                let text = fs::read_to_string(file).unwrap_or_default();
                let number = text.split(' ').next().map(str::parse);
                matches!(number, Some(Ok(number)) if calls.contains(&of_program(number)))
            })
        });
    }

    fn finish(mut self) {
        drop(self.ask);
        assert!(self.child.wait().unwrap().success());
    }
}

/// The child: obeys until there are no more commands.
fn obey(fd: &str) {
    // SAFETY: the descriptor was inherited for this.
    let fd = unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) };
    let (level, edges) = (Watch::level(&fd), Watch::edges(&fd));
    let event = EventFd::from(fd);
    let yes_or_no = |yes| if yes { "yes" } else { "no" }.to_owned();
    for line in stdin().lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("level", _) => yes_or_no(level.now()),
            ("edge", _) => yes_or_no(edges.now()),
            ("wait", _) => yes_or_no(edges.wait(Duration::from_secs(20))),
            ("read", _) => event.read().unwrap().to_string(),
            ("write", n) => {
                event.write(n.parse().unwrap()).unwrap();
                "done".to_owned()
            }
            _ => panic!("unknown: {line}"),
        };
        println!("\n{MARK}{answer}");
    }
}

const EPOLLS: [libc::c_long; 2] = [libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];

/// The other process sees what it would see of an eventfd; but of the edges, it sees only those at which the count
/// leaves 0.
#[test]
fn another_process_polls_a_mirror() {
    let duplicate = |mirror: &Mirror| mirror.as_fd().try_clone_to_owned().unwrap();
    polled("processes::another_process_polls_a_mirror", duplicate);
}

#[test]
fn another_process_can_only_poll() {
    let poll_only = |mirror: &Mirror| mirror.poll_only().unwrap();
    polled("processes::another_process_can_only_poll", poll_only);
}

fn polled(test: &str, export: impl FnOnce(&Mirror) -> OwnedFd) {
    if let Some(fd) = child::argument() {
        return obey(&fd);
    }
    let event = Arc::new(Event::new(0));
    let mirror = Mirror::new(Arc::clone(&event)).unwrap();
    let exported = export(&mirror);
    let mut peer = Peer::new(test, &exported);
    let seen = |level: &str, edge: &str| (level.to_owned(), edge.to_owned());
    let nothing = seen("no", "no");

    assert_eq!(peer.polled(), nothing);
    event.signal();
    assert_eq!(peer.polled(), seen("yes", "yes"));
    assert_eq!(peer.polled(), seen("yes", "no"));
    event.signal();
    assert_eq!(peer.polled(), seen("yes", "no"), "the count has not left 0");
    assert_eq!(event.read(), 2);
    assert_eq!(peer.polled(), nothing);
    event.signal();
    event.read();
    assert_eq!(peer.polled(), nothing);
    event.signal();
    event.read();
    event.signal();
    assert_eq!(peer.polled(), seen("yes", "yes"));
    event.read();

    for _ in 0..10 {
        peer.tell("wait");
        peer.wait_asleep(&EPOLLS);
        event.signal();
        assert_eq!(peer.answer(), "yes");
        event.read();
    }
    // The process keeps a duplicate of the eventfd, which is as it was.
    let is_eventfd = fcntl_getfl(&exported).unwrap().contains(OFlags::NONBLOCK);
    event.signal();
    drop(mirror);
    event.read();
    let after = if is_eventfd {
        seen("yes", "yes")
    } else {
        nothing
    };
    assert_eq!(peer.polled(), after);
    peer.finish();
}

/// E57: one count, in two processes.
#[test]
fn another_process_reads_and_writes_an_eventfd() {
    if let Some(fd) = child::argument() {
        return obey(&fd);
    }
    let event = EventFd::new(0).unwrap();
    event.write(3).unwrap();
    let mut peer = Peer::new(
        "processes::another_process_reads_and_writes_an_eventfd",
        &event,
    );
    assert_eq!(peer.ask("read"), "3");
    peer.ask("write 3735928559");
    assert_eq!(event.read().unwrap(), 0xdead_beef);
    peer.tell("read");
    peer.wait_asleep(&[libc::SYS_read]);
    event.write(7).unwrap();
    assert_eq!(peer.answer(), "7");
    peer.finish();
}

// Children made by fork

/// Runs `body` in a child, which has this thread only, and waits for its end.
fn forked(body: impl FnOnce()) {
    // SAFETY: the child runs `body`, which uses atomics, system calls and memory; glibc and musl allow these in a
    // child. It ends without destructors.
    unsafe {
        match libc::fork() {
            0 => {
                // A panic that unwound further would run the rest of the test twice.
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                libc::_exit(if done.is_ok() { 0 } else { 1 });
            }
            child => {
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                assert_eq!(status, 0, "the child failed");
            }
        }
    }
}

/// A count that is still in the process is copied; one that is in the kernel is shared, as the original's is.
#[test]
fn a_forked_child_and_an_eventfd() {
    child::alone("processes::a_forked_child_and_an_eventfd", || {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        forked(|| {
            event.write(2).unwrap();
            assert_eq!(event.read().unwrap(), 3);
        });
        assert_eq!(event.read().unwrap(), 1);

        event.write(1).unwrap();
        assert!(event.as_raw_fd() >= 0);
        forked(|| event.write(2).unwrap());
        assert_eq!(event.read().unwrap(), 3);

        // The child's descriptor is the same eventfd, even if the child asks for it first: the parent's count is added
        // later.
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(1).unwrap();
        forked(|| assert!(event.as_raw_fd() >= 0));
        assert!(event.as_raw_fd() >= 0);
        assert_eq!(
            event.read().unwrap(),
            2,
            "what was there at the fork, twice"
        );
    });
}

/// There is one descriptor, and there are two events.
#[test]
fn a_forked_child_and_a_mirror() {
    child::alone("processes::a_forked_child_and_a_mirror", || {
        let event = Arc::new(Event::new(0));
        let mirror = Mirror::new(Arc::clone(&event)).unwrap();
        forked(|| ());
        event.signal();
        assert!(is_readable(&mirror));
        event.read();
        forked(|| event.signal());
        assert!(is_readable(&mirror));
        assert_eq!(event.count(), 0);
    });
}

#[test]
fn a_forked_child_and_a_forward() {
    child::alone("processes::a_forked_child_and_a_forward", || {
        let event = Arc::new(Event::new(0));
        let forward = Forward::new(Arc::clone(&event)).unwrap();
        let peer = EventFd::from(forward.as_fd().try_clone_to_owned().unwrap());
        forked(|| event.signal_n(3));
        event.signal();
        assert_eq!(peer.read().unwrap(), 4);
        peer.write(u64::MAX - 1).unwrap();
        event.signal_n(5);
        forked(|| ());
        peer.read().unwrap();
        forked(|| forward.flush().unwrap());
        forward.flush().unwrap();
        assert_eq!(peer.read().unwrap(), 10, "what waited at the fork, twice");
    });
}
