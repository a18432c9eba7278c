//! `EventFd` beside the original, and its move into the kernel.

use crate::common::caller::{Caller, call, wait_until};
use crate::common::counter::{Counter, Place};
use crate::common::eventfd::{Descriptor, InProcess};
use crate::common::kernel::can_signal;
use crate::common::watchdog::{self, Watchdog};
use crate::steps::{FULL, Step, step};
use crate::{child, readiness};
use doorbell::Mode;
use doorbell::fd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

type Original = vmm_sys_util::eventfd::EventFd;

/// The API of the original.
trait Api: AsRawFd + FromRawFd + IntoRawFd + Sized + Send + 'static {
    /// The module in which `both` puts its tests.
    const MODULE: &str;
    fn new(flags: i32) -> io::Result<Self>;
    fn read(&self) -> io::Result<u64>;
    fn write(&self, n: u64) -> io::Result<()>;
    fn try_clone(&self) -> io::Result<Self>;
}

macro_rules! api {
    ($($type:ident: $module:literal),*) => {$(
        impl Api for $type {
            const MODULE: &str = $module;
            fn new(flags: i32) -> io::Result<Self> {
                $type::new(flags)
            }
            fn read(&self) -> io::Result<u64> {
                self.read()
            }
            fn write(&self, n: u64) -> io::Result<()> {
                self.write(n)
            }
            fn try_clone(&self) -> io::Result<Self> {
                self.try_clone()
            }
        }
    )*};
}
api!(EventFd: "ours", Original: "original");

/// Makes a test of each case for either type.
macro_rules! both {
    ($($case:ident,)*) => {
        mod ours {
            $(#[test] fn $case() { super::$case::<super::EventFd>() })*
        }
        mod original {
            $(#[test] fn $case() { super::$case::<super::Original>() })*
        }
    };
}

both! {
    made_with_and_without_flags,
    e05_unknown_flags,
    what_is_written_is_read,
    what_would_block_fails,
    a_clone_shares_the_count,
    a_raw_descriptor_and_back,
    a_pipe_will_do,
    what_a_pipe_gives,
    how_many_descriptors,
    too_many_descriptors,
    closed_behind_its_back,
}

/// The name by which a child runs a test of `both`.
fn test_name<E: Api>(case: &str) -> String {
    format!("eventfd::{}::{case}", E::MODULE)
}

fn borrowed(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as its owner, which is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

fn all_flags() -> impl Iterator<Item = i32> {
    (0..8).map(|set| {
        let flag = |bit, flag| if set & 1 << bit != 0 { flag } else { 0 };
        flag(0, EFD_CLOEXEC) | flag(1, EFD_NONBLOCK) | flag(2, EFD_SEMAPHORE)
    })
}

fn made_with_and_without_flags<E: Api>() {
    for flags in all_flags() {
        E::new(flags).unwrap();
    }
}

fn e05_unknown_flags<E: Api>() {
    for flags in [
        2,
        4,
        libc::O_RDWR,
        libc::O_ASYNC,
        !0,
        EFD_NONBLOCK | 42,
        i32::MIN,
    ] {
        let error = E::new(flags).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{flags:#x}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

fn what_is_written_is_read<E: Api>() {
    let event = E::new(EFD_NONBLOCK).unwrap();
    event.write(55).unwrap();
    event.write(0).unwrap();
    assert_eq!(event.read().unwrap(), 55);
    let event = E::new(EFD_NONBLOCK | EFD_SEMAPHORE).unwrap();
    event.write(2).unwrap();
    assert_eq!((event.read().unwrap(), event.read().unwrap()), (1, 1));
}

fn what_would_block_fails<E: Api>() {
    #[track_caller]
    fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, kind: ErrorKind, errno: i32) {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (kind, Some(errno)));
    }
    for semaphore in [0, EFD_SEMAPHORE] {
        let event = E::new(EFD_NONBLOCK | semaphore).unwrap();
        assert_errno(event.read(), ErrorKind::WouldBlock, libc::EAGAIN);
        assert_errno(event.write(u64::MAX), ErrorKind::InvalidInput, libc::EINVAL);
        event.write(FULL).unwrap();
        assert_errno(event.write(1), ErrorKind::WouldBlock, libc::EAGAIN);
        assert_errno(event.write(u64::MAX), ErrorKind::InvalidInput, libc::EINVAL);
        event.write(0).unwrap();
    }
}

fn a_clone_shares_the_count<E: Api>() {
    let event = E::new(EFD_NONBLOCK).unwrap();
    let clone = event.try_clone().unwrap();
    event.write(923).unwrap();
    assert_eq!(clone.read().unwrap(), 923);
    clone.write(1).unwrap();
    assert_ne!(clone.as_raw_fd(), event.as_raw_fd());
    let after = clone.try_clone().unwrap();
    assert_ne!(after.as_raw_fd(), clone.as_raw_fd());
    drop(clone);
    after.write(2).unwrap();
    drop(after);
    assert_eq!(event.read().unwrap(), 3);
}

fn a_raw_descriptor_and_back<E: Api>() {
    let event = E::new(EFD_NONBLOCK).unwrap();
    event.write(3).unwrap();
    let raw = event.as_raw_fd();
    assert_eq!(event.as_raw_fd(), raw);
    assert_eq!(event.into_raw_fd(), raw);
    // SAFETY: the descriptor was given away just now.
    let event = unsafe { E::from_raw_fd(raw) };
    assert_eq!(event.as_raw_fd(), raw);
    let clone = event.try_clone().unwrap();
    clone.write(4).unwrap();
    assert_eq!(event.read().unwrap(), 7);
}

/// Any descriptor to which 8 bytes can be written works.
fn a_pipe_will_do<E: Api>() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // SAFETY: the descriptors are owned, and given away.
    let (reader, writer) = unsafe {
        (
            E::from_raw_fd(reader.into_raw_fd()),
            E::from_raw_fd(writer.into_raw_fd()),
        )
    };
    writer.write(1).unwrap();
    writer.write(2).unwrap();
    assert_eq!((reader.read().unwrap(), reader.read().unwrap()), (1, 2));
    drop(writer);
    assert_eq!(reader.read().unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

/// A pipe may give less than 8 bytes at a time, which are lost if no more come.
fn what_a_pipe_gives<E: Api>() {
    let ends = || {
        let flags = rustix::pipe::PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
        // SAFETY: the descriptor is owned, and given away.
        (unsafe { E::from_raw_fd(reader.into_raw_fd()) }, writer)
    };
    let (reader, writer) = ends();
    assert_eq!(
        reader.read().unwrap_err().raw_os_error(),
        Some(libc::EAGAIN)
    );
    rustix::io::write(&writer, &[1, 2, 3]).unwrap();
    assert_eq!(
        reader.read().unwrap_err().raw_os_error(),
        Some(libc::EAGAIN)
    );
    rustix::io::write(&writer, &[0; 7]).unwrap();
    rustix::io::write(&writer, &[1, 9]).unwrap();
    assert_eq!(
        reader.read().unwrap().to_ne_bytes(),
        [0, 0, 0, 0, 0, 0, 0, 1]
    );
    drop(writer);
    let error = reader.read().unwrap_err();
    assert_eq!(
        (error.kind(), error.raw_os_error()),
        (ErrorKind::UnexpectedEof, None)
    );
    let (reader, writer) = ends();
    drop(reader);
    // SAFETY: the descriptor is owned, and given away.
    let writer = unsafe { E::from_raw_fd(writer.into_raw_fd()) };
    assert_eq!(
        writer.write(1).unwrap_err().raw_os_error(),
        Some(libc::EPIPE)
    );
}

/// The flags of descriptors: of a handle, of a clone made before any descriptor was asked for, of a clone made after
/// that, and of an `EventFd` made from a raw descriptor.
#[test]
fn e01_flags() {
    fn seen<E: Api>(flags: i32) -> Vec<(OFlags, bool)> {
        let event = E::new(flags).unwrap();
        let before = event.try_clone().unwrap();
        let raw = event.as_raw_fd();
        let after = event.try_clone().unwrap();
        let mut handles = vec![event, before, after];
        handles.push(handles[1].try_clone().unwrap());
        assert_eq!(handles[0].as_raw_fd(), raw);
        let seen = handles.iter().map(|handle| {
            let fd = borrowed(handle);
            let flags = fcntl_getfd(fd).unwrap();
            (fcntl_getfl(fd).unwrap(), flags.contains(FdFlags::CLOEXEC))
        });
        seen.collect()
    }
    for flags in all_flags() {
        let ours = seen::<EventFd>(flags);
        assert_eq!(ours, seen::<Original>(flags), "{flags:#x}");
        assert_eq!(
            ours[0].0.contains(OFlags::NONBLOCK),
            flags & EFD_NONBLOCK != 0
        );
        assert_eq!(ours[0].1, flags & EFD_CLOEXEC != 0);
    }
}

/// The clone is asked for its descriptor first: each handle still has its own flags.
#[test]
fn flags_when_a_clone_asks_first() {
    let event = EventFd::new(EFD_SEMAPHORE).unwrap();
    let clone = event.try_clone().unwrap();
    let close_on_exec = |event: &EventFd| fcntl_getfd(event).unwrap().contains(FdFlags::CLOEXEC);
    assert!(close_on_exec(&clone));
    assert!(!close_on_exec(&event));
    event.write(2).unwrap();
    assert_eq!(clone.read().unwrap(), 1);
}

// Beside the original

/// Plays a step. Returns its result: a number, or an errno.
fn play<E: Api>(handles: &mut Vec<E>, index: usize, step: &Step, room: u64) -> Result<u64, i32> {
    let index = index % handles.len();
    let errno = |error: io::Error| error.raw_os_error().unwrap();
    let handle = &handles[index];
    match *step {
        Step::Write(n) => handle.write(n).map(|()| 0).map_err(errno),
        Step::Fill(less) => {
            let n = room.saturating_sub(less);
            handle.write(n).map(|()| 0).map_err(errno)
        }
        Step::Read => handle.read().map_err(errno),
        Step::Clone => {
            let clone = handle.try_clone().map_err(errno)?;
            handles.push(clone);
            Ok(0)
        }
        Step::Drop if handles.len() > 1 => {
            handles.swap_remove(index);
            Ok(0)
        }
        Step::Drop => Ok(0),
        Step::Ask => Ok(u64::from(handle.as_raw_fd() >= 0)),
        Step::GiveAway => {
            let raw = handles.swap_remove(index).into_raw_fd();
            // SAFETY: the descriptor was given away just now.
            handles.push(unsafe { E::from_raw_fd(raw) });
            Ok(0)
        }
        Step::Poll => Ok(u64::from(readiness(borrowed(handle)).bits())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    /// The same calls on handles of ours and of the original, with the move at some point, have the same results.
    #[test]
    fn it_does_what_the_original_does(
        semaphore in any::<bool>(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let flags = EFD_NONBLOCK | if semaphore { EFD_SEMAPHORE } else { 0 };
        let mut ours = vec![EventFd::new(flags).unwrap()];
        let mut originals = vec![Original::new(flags).unwrap()];
        let mut count = 0_u64;
        for (index, step) in &steps {
            let room = FULL - count;
            let seen = play(&mut ours, *index, step, room);
            prop_assert_eq!(seen, play(&mut originals, *index, step, room), "{:?} of {:?}", step, steps);
            match (step, seen) {
                (Step::Write(n), Ok(_)) => count += n,
                (Step::Fill(less), Ok(_)) => count += room.saturating_sub(*less),
                (Step::Read, Ok(n)) => count -= n,
                _ => {}
            }
        }
        prop_assert_eq!(play(&mut ours, 0, &Step::Poll, 0), play(&mut originals, 0, &Step::Poll, 0));
        prop_assert_eq!(play(&mut ours, 0, &Step::Read, 0), play(&mut originals, 0, &Step::Read, 0));
    }
}

// The move

fn eventfd_with(flags: i32, count: u64) -> EventFd {
    let event = EventFd::new(flags).unwrap();
    event.write(count).unwrap();
    event
}

/// A thread that makes one blocking call on a clone, before the move in a futex and afterwards in the kernel.
fn blocked(event: &EventFd, body: impl FnOnce(&EventFd) -> u64 + Send + 'static) -> Caller<u64> {
    // The thread sleeps in a futex at first; `call` wants a counter.
    let counter = InProcess::<false>(event.try_clone().unwrap());
    let caller = call(&counter, |counter| body(&counter.0));
    caller.wait_asleep();
    caller
}

#[test]
fn every_count_moves() {
    for semaphore in [0, EFD_SEMAPHORE] {
        for count in [0, 1, u32::MAX.into(), 1 << 32, FULL] {
            let event = eventfd_with(semaphore | EFD_NONBLOCK, count);
            let expected = match count {
                0 => PollFlags::OUT,
                FULL => PollFlags::IN,
                _ => PollFlags::IN | PollFlags::OUT,
            };
            assert_eq!(readiness(&event), expected);
            let taken = event.read().map_err(|error| error.kind());
            match (count, semaphore) {
                (0, _) => assert_eq!(taken, Err(ErrorKind::WouldBlock)),
                (count, 0) => assert_eq!(taken, Ok(count)),
                _ => assert_eq!(taken, Ok(1)),
            }
        }
    }
}

/// A thread that sleeps in the event goes on in the kernel, and any thread may wake it, by methods or through the
/// descriptor.
#[test]
fn sleepers_go_along() {
    watchdog::limit("sleepers", || {
        for semaphore in [0, EFD_SEMAPHORE] {
            let event = eventfd_with(semaphore, 0);
            let readers = [0; 4].map(|_| blocked(&event, |event| event.read().unwrap()));
            let fd = event.as_fd();
            for reader in &readers {
                assert!(!reader.has_returned());
            }
            for round in 0..4 {
                if round % 2 == 0 {
                    event.write(1).unwrap();
                } else {
                    rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
                }
                wait_until("a reader to return", || {
                    readers
                        .iter()
                        .filter(|reader| reader.has_returned())
                        .count()
                        > round
                });
            }
            for reader in readers {
                assert_eq!(reader.finish(), 1);
            }
        }
        let event = eventfd_with(0, FULL);
        let writers = [1, 2, 3].map(|n| {
            blocked(&event, move |event| {
                event.write(n).unwrap();
                n
            })
        });
        assert_eq!(readiness(&event), PollFlags::IN);
        assert_eq!(event.read().unwrap(), FULL);
        for writer in writers {
            writer.finish();
        }
        assert_eq!(event.read().unwrap(), 6);
    });
}

/// A thread that writes and reads finds its own count, before, during and after the move.
#[test]
fn a_thread_reads_what_it_wrote() {
    watchdog::limit("a move", || {
        for _ in 0..300 {
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            let other = event.try_clone().unwrap();
            let started = Arc::new(AtomicBool::new(false));
            let user = {
                let started = Arc::clone(&started);
                thread::spawn(move || {
                    let mut n = 0;
                    while event.descriptor_is_missing() || n < 10 {
                        started.store(true, Ordering::Relaxed);
                        n += 1;
                        event.write(n).unwrap();
                        event.write(1).unwrap();
                        assert_eq!(event.read().unwrap(), n + 1);
                        assert_eq!(event.read().unwrap_err().kind(), ErrorKind::WouldBlock);
                    }
                })
            };
            while !started.load(Ordering::Relaxed) {}
            assert!(other.as_raw_fd() >= 0);
            user.join().unwrap();
        }
    });
}

/// The count, as long as it is in the process, and the descriptor.
#[test]
fn debug_shows_where_the_count_is() {
    let event = EventFd::new(0).unwrap();
    event.write(7).unwrap();
    let before = format!("{event:?}");
    assert!(before.contains("count: 7"), "{before}");
    let fd = format!("fd: {}", event.as_raw_fd());
    let after = format!("{event:?}");
    assert!(!after.contains("count"), "{after}");
    for shown in [before, after] {
        assert!(shown.contains(&fd), "{shown}");
    }
}

/// Tells by what `Debug` shows whether the count is still in the process.
trait IsHere {
    fn descriptor_is_missing(&self) -> bool;
}

impl IsHere for EventFd {
    fn descriptor_is_missing(&self) -> bool {
        format!("{self:?}").contains("count")
    }
}

/// Threads write and read, blocking and not, while others ask for descriptors, clone and drop: the sums agree.
#[test]
fn everything_at_once() {
    for round in 0..150 {
        let flags = if round % 2 == 0 { 0 } else { EFD_SEMAPHORE };
        let event = EventFd::new(flags).unwrap();
        let watched = event.try_clone().unwrap();
        let _watchdog = Watchdog::new(Duration::from_secs(30), move || format!("{watched:?}"));
        let taken = AtomicU64::new(0);
        const WRITES: u64 = 300;
        let goal = 2 * WRITES;
        thread::scope(|scope| {
            for seed in 0..2 {
                let event = event.try_clone().unwrap();
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..WRITES {
                        event.write(0).unwrap();
                        event.write(1).unwrap();
                        if random.u32(0..50) == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
            for _ in 0..2 {
                let (event, taken) = (event.try_clone().unwrap(), &taken);
                scope.spawn(move || {
                    while taken.load(Ordering::Relaxed) < goal {
                        let n = event.read().unwrap();
                        // The thread that takes the last unit releases the others with more units.
                        if taken.fetch_add(n, Ordering::Relaxed) + n >= goal {
                            event.write(2).unwrap();
                        }
                    }
                });
            }
            for delay in [3, 5] {
                let event = event.try_clone().unwrap();
                scope.spawn(move || {
                    for _ in 0..delay * round {
                        std::hint::spin_loop();
                    }
                    let clone = event.try_clone().unwrap();
                    let raw = event.into_raw_fd();
                    assert_ne!(clone.as_raw_fd(), raw);
                    // SAFETY: the descriptor was given away just now.
                    drop(unsafe { OwnedFd::from_raw_fd(raw) });
                });
            }
        });
        fcntl_setfl(&event, OFlags::NONBLOCK).unwrap();
        let mut left = 0;
        while let Ok(n) = event.read() {
            left += n;
        }
        let released = taken.load(Ordering::Relaxed) + left - goal;
        assert!(
            released % 2 == 0 && released <= 4 && released > 0,
            "{released}"
        );
    }
}

/// There is one for each handle, as long as the handle exists.
fn how_many_descriptors<E: Api>() {
    child::alone(&test_name::<E>("how_many_descriptors"), || {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let none = open();
        let event = E::new(0).unwrap();
        assert_eq!(open(), none + 1);
        let handles = [0; 3].map(|_| event.try_clone().unwrap());
        drop(event.try_clone().unwrap());
        assert_eq!(open(), none + 4);
        event.write(1).unwrap();
        handles[0].read().unwrap();
        let raw = handles.each_ref().map(AsRawFd::as_raw_fd);
        assert!(raw.iter().all(|&fd| fd > libc::STDERR_FILENO));
        assert_eq!(open(), none + 4);
        let [first, second, third] = handles;
        drop(first);
        assert_eq!(open(), none + 3);
        // The other handles have kept theirs.
        assert_eq!([second.as_raw_fd(), third.as_raw_fd()], raw[1..]);
        drop(event);
        // SAFETY: the descriptor is given away just now.
        let fd = unsafe { OwnedFd::from_raw_fd(second.into_raw_fd()) };
        assert_eq!(open(), none + 2);
        drop((fd, third));
        assert_eq!(open(), none);
    });
}

/// No other handle can be made then, but the existing handles can be asked for their descriptors.
fn too_many_descriptors<E: Api>() {
    child::alone(&test_name::<E>("too_many_descriptors"), || {
        let event = E::new(EFD_NONBLOCK).unwrap();
        let clone = event.try_clone().unwrap();
        event.write(3).unwrap();
        let free = fs::File::open("/dev/null").unwrap().as_raw_fd();
        let limit = Rlimit {
            current: Some(free as u64),
            ..getrlimit(Resource::Nofile)
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        for _ in 0..2 {
            for error in [event.try_clone().err(), E::new(0).err()] {
                assert_eq!(error.unwrap().raw_os_error(), Some(libc::EMFILE));
            }
            event.write(1).unwrap();
            assert!(event.as_raw_fd() >= 0);
        }
        assert!(clone.as_raw_fd() >= 0);
        assert_eq!(clone.read().unwrap(), 5);
        // SAFETY: the descriptor is given away just now.
        let clone = unsafe { E::from_raw_fd(clone.into_raw_fd()) };
        clone.write(2).unwrap();
        assert_eq!(event.read().unwrap(), 2);
    });
}

/// The descriptors are closed by other code, as in children of daemons that close all that they have inherited.
fn closed_behind_its_back<E: Api>() {
    child::alone(&test_name::<E>("closed_behind_its_back"), || {
        let event = E::new(EFD_NONBLOCK).unwrap();
        let clone = event.try_clone().unwrap();
        event.write(1).unwrap();
        // SAFETY: no other thread opens descriptors in this process, and nothing uses these as if they were open.
        assert_eq!(
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) },
            0
        );
        assert!(clone.as_raw_fd() >= 0);
        for error in [event.read().err(), event.write(1).err()] {
            assert_eq!(error.unwrap().raw_os_error(), Some(libc::EBADF));
        }
        // The standard library aborts if it closes a descriptor that is not open.
        std::mem::forget((event, clone));
    });
}

/// A signal handler writes, as it may with the original, even while the thread that it interrupts moves the count.
#[test]
fn written_by_a_signal_handler() {
    static TARGET: AtomicPtr<EventFd> = AtomicPtr::new(std::ptr::null_mut());
    static WRITES: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: null, or an eventfd that the interrupted thread keeps as long as it is the target.
        if let Some(event) = unsafe { TARGET.load(Ordering::Relaxed).as_ref() } {
            event.write(1).unwrap();
            WRITES.fetch_add(1, Ordering::Relaxed);
        }
    }
    child::alone("eventfd::written_by_a_signal_handler", || {
        // SAFETY: the handler does what handlers may do; the action is complete.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        // SAFETY: the call has no requirements.
        let thread = unsafe { libc::pthread_self() } as usize;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: the target thread waits for this thread to end.
                    unsafe { libc::pthread_kill(thread as libc::pthread_t, libc::SIGUSR1) };
                    thread::sleep(Duration::from_micros(20));
                }
            });
            let mut interrupted = 0;
            while interrupted < 500 {
                let event = EventFd::new(EFD_NONBLOCK).unwrap();
                let clone = event.try_clone().unwrap();
                event.write(3).unwrap();
                let before = WRITES.load(Ordering::Relaxed);
                let place = std::ptr::from_ref(&event).cast_mut();
                TARGET.store(place, Ordering::SeqCst);
                assert!(event.as_raw_fd() >= 0);
                TARGET.store(std::ptr::null_mut(), Ordering::SeqCst);
                let writes = WRITES.load(Ordering::Relaxed) - before;
                assert_eq!(clone.read().unwrap(), 3 + writes);
                interrupted += writes;
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

// Cases that need a descriptor: that of an `EventFd`, which was written to before it was asked for the descriptor,
// beside a real eventfd.

/// Both descriptors, with a count, non-blocking.
fn pair(count: u64, semaphore: bool) -> [OwnedFd; 2] {
    let flag = if semaphore { EFD_SEMAPHORE } else { 0 };
    let mut flags = EventfdFlags::NONBLOCK;
    flags.set(EventfdFlags::SEMAPHORE, semaphore);
    let real = eventfd(0, flags).unwrap();
    rustix::io::write(&real, &count.to_ne_bytes()).unwrap();
    [eventfd_with(EFD_NONBLOCK | flag, count).into(), real]
}

/// A system call on each of two descriptors has the same result, and the same count is left.
#[track_caller]
fn same(fds: &[OwnedFd; 2], call: impl Fn(RawFd) -> isize) {
    let [ours, real] = fds.each_ref().map(|fd| {
        let result = call(fd.as_raw_fd());
        let error = io::Error::last_os_error();
        let result = match result {
            -1 => Err(error.raw_os_error().unwrap()),
            done => Ok(done),
        };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        let of_the_count = |line: &&str| {
            line.starts_with("eventfd-count") || line.starts_with("eventfd-semaphore")
        };
        let info: Vec<_> = info
            .lines()
            .filter(of_the_count)
            .map(str::to_owned)
            .collect();
        assert!(!info.is_empty());
        (result, info)
    });
    assert_eq!(ours, real);
}

#[test]
fn e11_sizes_addresses_and_segments() {
    const NOWHERE: *mut libc::c_void = std::ptr::null_mut();
    let vector = |base: *mut u64, lengths: [usize; 2]| {
        let mut at = base.cast::<u8>();
        lengths.map(|length| {
            let part = libc::iovec {
                iov_base: at.cast(),
                iov_len: length,
            };
            at = at.wrapping_add(length);
            part
        })
    };
    for semaphore in [false, true] {
        for count in [0, 5, FULL] {
            let fds = pair(count, semaphore);
            let mut buffer = [0_u64; 4];
            let at: *mut libc::c_void = buffer.as_mut_ptr().cast();
            // SAFETY: everywhere below, the buffer is as long as the kernel is told, or there is no buffer.
            unsafe {
                for size in [0, 4, 7] {
                    same(&fds, |fd| libc::read(fd, at, size));
                    same(&fds, |fd| libc::read(fd, NOWHERE, size));
                    same(&fds, |fd| libc::write(fd, at, size));
                }
                for size in [9, 16, 32] {
                    same(&fds, |fd| libc::write(fd, at, size));
                }
                same(&fds, |fd| libc::pread(fd, at, 8, 0));
                same(&fds, |fd| libc::pwrite(fd, at, 8, 0));
                same(&fds, |fd| libc::write(fd, NOWHERE, 8));
                same(&fds, |fd| libc::read(fd, at, 32));
                same(&fds, |fd| libc::read(fd, NOWHERE, 8));
            }
            let fds = pair(count, semaphore);
            for lengths in [[4, 3], [8, 8], [4, 4]] {
                let parts = vector(buffer.as_mut_ptr(), lengths);
                // SAFETY: as above.
                same(&fds, |fd| unsafe { libc::readv(fd, parts.as_ptr(), 2) });
            }
            for (first, second, lengths) in [
                (5, 7, [8, 8]),
                (5, u64::MAX, [8, 8]),
                (FULL, 7, [8, 8]),
                (5, 7, [4, 4]),
                (5, 7, [0, 8]),
            ] {
                let mut values = [first, second];
                let parts = vector(values.as_mut_ptr(), lengths);
                // SAFETY: as above.
                same(&fds, |fd| unsafe { libc::writev(fd, parts.as_ptr(), 2) });
            }
        }
    }
}

#[test]
fn e63_select_in_the_overflow_state() {
    if !can_signal() {
        return;
    }
    let counter = Descriptor::new(u64::MAX, Mode::Counter);
    assert_eq!(counter.count(), u64::MAX);
    let Place::Descriptor(fd) = counter.place() else {
        unreachable!("the set has a descriptor");
    };
    // SAFETY: the sets are initialised, and hold one descriptor, which is open and below their size.
    let selected = unsafe {
        let mut sets: [libc::fd_set; 3] = std::mem::zeroed();
        for set in &mut sets {
            libc::FD_SET(fd, set);
        }
        let [read, write, except] = &mut sets;
        let mut now: libc::timeval = std::mem::zeroed();
        assert_eq!(libc::select(fd + 1, read, write, except, &mut now), 2);
        sets.map(|set| libc::FD_ISSET(fd, &set))
    };
    assert_eq!(selected, [true, true, false]);
}
