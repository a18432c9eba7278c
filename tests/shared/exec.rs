//! A child that runs another program: the memfd is closed on exec, and reaches the program in the two ways that the
//! docs describe.

use doorbell::{Mode, SharedEvent};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use std::env;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

const NAME: &str = "exec::a_child_that_was_executed";
/// Set in the child: the number of the second descriptor.
const INHERITED: &str = "DOORBELL_TEST_INHERITED";
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_child_that_was_executed() {
    if let Ok(number) = env::var(INHERITED) {
        let to_child = SharedEvent::attach(io::stdin(), 0).unwrap();
        // SAFETY: the parent has left the descriptor open for us, and no other code uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) };
        let to_parent = SharedEvent::attach(&fd, 0).unwrap();
        drop(fd);
        assert_eq!(to_child.read_timeout(PATIENCE), Some(5));
        to_parent.signal_n(7);
        assert_eq!(to_child.read_timeout(PATIENCE), Some(1));
        return;
    }
    let (to_child, stdin) = SharedEvent::create(0, Mode::Counter).unwrap();
    let (to_parent, inherited) = SharedEvent::create(0, Mode::Counter).unwrap();
    for fd in [&stdin, &inherited] {
        assert!(fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
    }
    fcntl_setfd(&inherited, FdFlags::empty()).unwrap();
    to_child.signal_n(5);
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(INHERITED, inherited.as_raw_fd().to_string())
        .stdin(stdin)
        .spawn()
        .unwrap();
    assert_eq!(to_parent.read_timeout(PATIENCE), Some(7));
    to_child.signal();
    assert!(child.wait().unwrap().success());
    assert_eq!((to_child.count(), to_parent.count()), (0, 0));
}
