//! `EventFd` as it is where the system has no eventfds, beside a real eventfd: the methods do the same, and the
//! descriptor is readable when the eventfd is.

use crate::common::eventfd::errno;
use crate::common::kernel::Handle;
use crate::common::watchdog;
use crate::steps::{FULL, Step, step};
use crate::{Watch, child, is_readable, readiness};
use doorbell::fd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};
use doorbell::fd::{EventFlag, new_event_consumer_and_notifier};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, FdFlags, fcntl_getfd, read, write};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::ErrorKind;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    /// Every call has the result that it has on an eventfd. After it the descriptor is readable if the eventfd is, and
    /// there was an edge if the count has left 0.
    #[test]
    fn it_does_what_an_eventfd_does(
        semaphore in any::<bool>(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let (flag, flags) = match semaphore {
            true => (EFD_SEMAPHORE, EventfdFlags::SEMAPHORE),
            false => (0, EventfdFlags::empty()),
        };
        let mut handles = vec![EventFd::new(flag | EFD_NONBLOCK).unwrap()];
        let original = eventfd(0, flags | EventfdFlags::NONBLOCK).unwrap();
        let mut edges: Option<Watch> = None;
        let mut count = 0_u64;
        for (index, step) in &steps {
            let index = index % handles.len();
            let handle = &handles[index];
            let before = count;
            match *step {
                Step::Write(_) | Step::Fill(_) => {
                    let n = match *step {
                        Step::Write(n) => n,
                        Step::Fill(less) => (FULL - count).saturating_sub(less),
                        _ => unreachable!(),
                    };
                    let seen = handle.write(n).map_err(errno);
                    prop_assert_eq!(seen, Handle::write(&original, n), "{:?} of {:?}", step, steps);
                    count += seen.map_or(0, |()| n);
                }
                Step::Read => {
                    let seen = handle.read().map_err(errno);
                    prop_assert_eq!(seen, Handle::read(&original), "{:?} of {:?}", step, steps);
                    count -= seen.unwrap_or(0);
                }
                Step::Clone => {
                    let clone = handle.try_clone().unwrap();
                    handles.push(clone);
                }
                Step::Drop if handles.len() > 1 => drop(handles.swap_remove(index)),
                Step::Drop => {}
                Step::Ask if edges.is_none() => {
                    edges = Some(Watch::edges(handle));
                    prop_assert_eq!(edges.as_ref().unwrap().now(), count != 0);
                    continue;
                }
                Step::Ask | Step::GiveAway | Step::Poll => {}
            }
            let Some(edges) = &edges else { continue };
            for handle in &handles {
                let input = PollFlags::IN;
                prop_assert_eq!(readiness(handle) & input, readiness(&original) & input, "{:?}", steps);
            }
            if before == 0 {
                prop_assert_eq!(edges.now(), count != 0, "{:?} of {:?}", step, steps);
            } else {
                edges.now();
            }
        }
    }
}

/// Flags that an eventfd has not are refused as an eventfd refuses them.
#[test]
fn flags() {
    for bit in 0..32 {
        let flag = 1_i32 << bit;
        if flag & (EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE) == 0 {
            let error = EventFd::new(flag | EFD_CLOEXEC).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }
    for flag in [0, EFD_NONBLOCK, EFD_SEMAPHORE] {
        for (cloexec, expected) in [(0, false), (EFD_CLOEXEC, true)] {
            let event = EventFd::new(flag | cloexec).unwrap();
            let clone = event.try_clone().unwrap();
            let is_closed =
                |event: &EventFd| fcntl_getfd(event).unwrap().contains(FdFlags::CLOEXEC);
            assert_eq!(is_closed(&event), expected);
            // As the original's.
            assert!(is_closed(&clone));
            // Whoever reads a pipe that may be dark must not block a thread that makes it so.
            assert!(fcntl_getfl(&event).unwrap().contains(OFlags::NONBLOCK));
        }
    }
}

/// The descriptor says nothing, and costs nothing, until code has asked for it; then it says what was there before.
#[test]
fn it_is_dark_until_it_is_asked_for() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let text = format!("{event:?}");
    let (_, rest) = text.split_once("fd: ").unwrap();
    let digits: String = rest
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    // SAFETY: the event keeps it open.
    let fd = unsafe { BorrowedFd::borrow_raw(digits.parse().unwrap()) };
    event.write(3).unwrap();
    assert!(!is_readable(fd));
    assert_eq!(event.as_raw_fd(), fd.as_raw_fd());
    assert!(is_readable(fd));
    assert_eq!(event.read().unwrap(), 3);
    assert!(!is_readable(fd));
}

/// Two for the first handle and one for each clone. A handle keeps its descriptor, also when others go.
#[test]
fn how_many_descriptors() {
    child::alone("no_eventfd::how_many_descriptors", || {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let none = open();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        assert_eq!(open(), none + 2);
        let handles = [0; 2].map(|_| event.try_clone().unwrap());
        drop(event.try_clone().unwrap());
        assert_eq!(open(), none + 4);
        let raw = handles.each_ref().map(AsRawFd::as_raw_fd);
        assert!(raw[0] != raw[1] && !raw.contains(&event.as_raw_fd()));
        drop(event);
        let [first, second] = handles;
        drop(first);
        assert_eq!(second.as_raw_fd(), raw[1]);
        second.write(2).unwrap();
        assert!(is_readable(&second));
        assert_eq!(second.read().unwrap(), 2);
        assert!(!is_readable(&second));
        drop(second);
        assert_eq!(open(), none);
    });
}

#[test]
fn too_many_descriptors() {
    child::alone("no_eventfd::too_many_descriptors", || {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        event.write(3).unwrap();
        let open = || fs::read_dir("/proc/self/fd").map(Iterator::count);
        let before = open().unwrap();
        let free = fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
        let limit = |current| Rlimit {
            current: Some(current),
            ..getrlimit(Resource::Nofile)
        };
        for room in [0, 1] {
            setrlimit(Resource::Nofile, limit(free + room)).unwrap();
            let error = EventFd::new(0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        setrlimit(Resource::Nofile, limit(free)).unwrap();
        let error = event.try_clone().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert!(is_readable(&event));
        assert_eq!(event.read().unwrap(), 3);
        setrlimit(Resource::Nofile, limit(free + 8)).unwrap();
        assert_eq!(open().unwrap(), before);
    });
}

/// A peer that reads the descriptor takes what makes it readable, and nothing of the count. It cannot write.
#[test]
fn peers_that_do_more_than_poll() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let peer = event.as_fd().try_clone_to_owned().unwrap();
    event.write(5).unwrap();
    assert_eq!(read(&peer, &mut [0; 8]), Ok(1));
    assert_eq!(read(&peer, &mut [0; 8]), Err(Errno::AGAIN));
    assert_eq!(write(&peer, &1_u64.to_ne_bytes()), Err(Errno::BADF));
    event.write(1).unwrap();
    assert!(!is_readable(&event));
    assert_eq!(event.read().unwrap(), 6);
    event.write(1).unwrap();
    assert!(is_readable(&event));
}

/// A program that has inherited the descriptor waits for the count to leave 0, and takes nothing.
#[test]
fn another_process_waits() {
    if let Some(fd) = child::argument() {
        // SAFETY: the parent has left it open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.parse().unwrap()) };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, None), Ok(1));
        println!("\n{SEEN}");
        return;
    }
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let fd = event.as_raw_fd().to_string();
    let mut command = child::command("no_eventfd::another_process_waits", &fd);
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    event.write(7).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.lines().any(|line| line == SEEN),
        "{output:?}"
    );
    assert_eq!(event.read().unwrap(), 7);
}

/// What the child prints when it has seen the count leave 0.
const SEEN: &str = "it is readable";

/// The ends for one side each are made of the same.
#[test]
fn a_consumer_and_its_notifier() {
    let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
    assert_eq!(
        consumer.consume().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    for _ in 0..2 {
        notifier.notify().unwrap();
        assert!(is_readable(&consumer) && is_readable(&notifier));
    }
    consumer.consume().unwrap();
    assert!(!is_readable(&consumer) && !is_readable(&notifier));
    let event = EventFd::from(notifier.try_clone().unwrap());
    event.write(1).unwrap();
    consumer.consume().unwrap();
}

/// Threads write and read, blocking and not, while others ask for descriptors, clone and drop: the sums agree, and so
/// does the descriptor in the end.
#[test]
fn everything_at_once() {
    watchdog::limit("everything at once", || {
        for (round, flag) in
            (0..60).flat_map(|round| [(round, EFD_NONBLOCK), (round, EFD_SEMAPHORE)])
        {
            let event = EventFd::new(flag).unwrap();
            let (written, taken) = (AtomicU64::new(0), AtomicU64::new(0));
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        for n in 1..=20 {
                            event.write(n % 3).unwrap();
                            written.fetch_add(n % 3, Ordering::Relaxed);
                        }
                    });
                    scope.spawn(|| {
                        for _ in 0..20 {
                            let clone = event.try_clone().unwrap();
                            assert!(clone.as_raw_fd() >= 0);
                            clone.write(1).unwrap();
                            written.fetch_add(1, Ordering::Relaxed);
                            // Another thread may have taken it. There are as many units as reads, which wait.
                            match clone.read() {
                                Ok(n) => drop(taken.fetch_add(n, Ordering::Relaxed)),
                                Err(error) => {
                                    assert_eq!((errno(error), flag), (Errno::AGAIN, EFD_NONBLOCK))
                                }
                            }
                        }
                    });
                }
            });
            let left = written.into_inner() - taken.into_inner();
            assert_eq!(is_readable(&event), left != 0, "round {round}");
            if left != 0 {
                let first = event.read().unwrap();
                let rest =
                    (flag == EFD_SEMAPHORE).then(|| (1..left).map(|_| event.read().unwrap()));
                assert_eq!(first + rest.into_iter().flatten().sum::<u64>(), left);
            }
            assert!(!is_readable(&event));
        }
    });
}
