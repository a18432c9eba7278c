//! Threads in a blocking call, watched from outside through `/proc`.

use super::counter::{Counter, Place};
use super::watchdog;
use std::cell::Cell;
use std::fs;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// A thread that makes one call.
pub struct Caller<T> {
    thread: JoinHandle<()>,
    tid: i32,
    place: Place,
    result: Receiver<T>,
    /// What [`switches`](Self::switches) was when the thread was last seen asleep.
    seen: Cell<u64>,
}

/// Makes a call in a thread of its own, on a handle of its own.
pub fn call<C: Counter, T: Send + 'static>(
    counter: &C,
    body: impl FnOnce(&C) -> T + Send + 'static,
) -> Caller<T> {
    let counter = counter.clone();
    call_at(counter.place(), move || body(&counter))
}

/// Makes a call, which blocks at the given place, in a thread of its own.
pub fn call_at<T: Send + 'static>(
    place: Place,
    body: impl FnOnce() -> T + Send + 'static,
) -> Caller<T> {
    let (tell_tid, tid) = mpsc::channel();
    let (give, result) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell_tid.send(rustix::thread::gettid()).unwrap();
        // The result is not taken if the test has failed by then.
        let _ = give.send(body());
    });
    Caller {
        thread,
        tid: tid.recv().unwrap().as_raw_nonzero().get(),
        place,
        result,
        seen: Cell::new(0),
    }
}

impl<T> Caller<T> {
    /// Waits until the thread sleeps in its call. If the call has returned, or returns instead of sleeping, the test
    /// fails.
    #[track_caller]
    pub fn wait_asleep(&self) {
        wait_until("a blocked caller to sleep", || {
            assert!(!self.has_returned(), "the call returned");
            self.is_asleep()
        });
        self.seen.set(self.switches());
    }

    /// Waits until the thread has been woken since it was last seen asleep, and sleeps again.
    #[track_caller]
    pub fn wait_asleep_again(&self) {
        wait_until("a wake-up", || {
            assert!(!self.has_returned(), "the call returned");
            self.switches() > self.seen.get()
        });
        self.wait_asleep();
    }

    /// Fails unless the thread has slept on since it was last seen asleep, or has only looked up by itself.
    #[track_caller]
    pub fn assert_undisturbed(&self) {
        if matches!(self.place, Place::SharedMemory) {
            return self.wait_asleep();
        }
        assert!(self.is_asleep(), "the caller does not sleep");
        assert_eq!(self.switches(), self.seen.get(), "woken without need");
    }

    pub fn has_returned(&self) -> bool {
        self.thread.is_finished()
    }

    pub fn is_asleep(&self) -> bool {
        // Number and arguments of the system call that the thread sleeps in; "running" if it does not sleep.
        let text = self.proc("syscall");
        let mut words = text.split_whitespace();
        let Some(Ok(number)) = words.next().map(str::parse::<libc::c_long>) else {
            return false;
        };
        let number = of_program(number);
        // On 32-bit processors, calls that take a 64-bit time have second numbers, which are the same on all of them.
        #[cfg(target_pointer_width = "32")]
        let number = match number {
            414 => libc::SYS_ppoll,
            422 => libc::SYS_futex,
            number => number,
        };
        let mut next = || usize::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let (argument, second) = (next(), next());
        match (&self.place, number) {
            // A private futex is not the event's.
            (Place::SharedMemory, libc::SYS_futex) => second == Some(libc::FUTEX_WAIT as usize),
            (Place::Memory(range), libc::SYS_futex) => {
                argument.is_some_and(|argument| range.contains(&argument))
            }
            (Place::Futex, libc::SYS_futex) => true,
            (Place::Descriptor(fd), libc::SYS_read | libc::SYS_write) => {
                argument == Some(*fd as usize)
            }
            (Place::Several, libc::SYS_ppoll | libc::SYS_futex_waitv | libc::SYS_futex) => true,
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            (Place::Several | Place::Descriptor(_), libc::SYS_poll) => true,
            // The forms with a time limit, and those that wait without taking.
            (
                Place::Descriptor(_),
                libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 | libc::SYS_ppoll,
            ) => true,
            _ => false,
        }
    }

    /// How often the thread has gone to sleep.
    fn switches(&self) -> u64 {
        self.status("voluntary_ctxt_switches").parse().unwrap_or(0)
    }

    /// Sends the thread a signal, and waits until its handler has been called.
    pub fn interrupt(&self, signal: libc::c_int) {
        // SAFETY: the thread has not been joined, so its handle is valid.
        let error =
            unsafe { libc::pthread_kill(self.thread.as_pthread_t() as libc::pthread_t, signal) };
        assert_eq!(error, 0);
        wait_until("a signal to be taken", || {
            // If there is no such line, the thread has ended.
            self.has_returned()
                || u64::from_str_radix(&self.status("SigPnd"), 16).is_ok_and(|set| set == 0)
        });
    }

    /// Returns what the call returned. Fails the test if it does not return.
    pub fn finish(self) -> T {
        let result = match self.result.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Timeout) => {
                panic!("the call hangs in system call {}", self.proc("syscall"))
            }
            result => result,
        };
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        result.expect("a thread that did not panic has sent its result")
    }

    fn status(&self, key: &str) -> String {
        self.proc("status")
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    fn proc(&self, file: &str) -> String {
        // This is empty for a thread that has ended.
        fs::read_to_string(format!("/proc/self/task/{}/{file}", self.tid)).unwrap_or_default()
    }
}

/// The number of a system call as programs of this processor have it. For an emulated program `/proc` has the numbers
/// of qemu-user's own processor, which is taken to be an x86-64.
pub fn of_program(number: libc::c_long) -> libc::c_long {
    if !watchdog::emulated() {
        return number;
    }
    match number {
        0 => libc::SYS_read,
        1 => libc::SYS_write,
        202 => libc::SYS_futex,
        271 => libc::SYS_ppoll,
        281 => libc::SYS_epoll_pwait,
        _ => -1,
    }
}

/// Waits until a condition holds that no call can wait for, and fails the test if it does not come to hold.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(50));
    }
}
