//! `doorbell_event`: an `Arc<Event>`.

use crate::arguments::{give, limit, union};
use crate::failure::{Failed, attempt, made};
use crate::handles::{add_reference, give_up_reference, new_shared};
use doorbell_rs::event::EventHandle;
use doorbell_rs::{Event, Mode, Readiness, Spin};
use std::ffi::c_int;
use std::sync::Arc;

/// A read would not block (EPOLLIN, POLLIN).
pub const DOORBELL_READABLE: u32 = 0x1;
/// A write of 1 would not block (EPOLLOUT, POLLOUT).
pub const DOORBELL_WRITABLE: u32 = 0x4;
/// The count is UINT64_MAX, the overflow state; or a file descriptor has an error (EPOLLERR, POLLERR).
pub const DOORBELL_ERROR: u32 = 0x8;

/// A read takes 1 and leaves the rest (EFD_SEMAPHORE).
pub const DOORBELL_SEMAPHORE: u32 = 0x1;
/// Blocking calls sleep at once, instead of looking again for up to 20 us as long as that pays.
pub const DOORBELL_SPIN_NEVER: u32 = 0x2;
/// Blocking calls never sleep.
pub const DOORBELL_SPIN_ALWAYS: u32 = 0x4;

/// An eventfd in userspace: a 64-bit counter that threads signal and wait for. Reference-counted.
pub struct doorbell_event(pub(crate) Event);

/// Makes an event with `initial` in it. `flags`: DOORBELL_SEMAPHORE, DOORBELL_SPIN_NEVER or DOORBELL_SPIN_ALWAYS.
///
/// EINVAL: an unknown flag, or both of the SPIN flags.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_event_new(initial: u64, flags: u32) -> *mut doorbell_event {
    made(|| {
        let (mode, spin) = mode_and_spin(flags)?;
        let event = Event::with_mode(initial, mode).with_spin(spin);
        Ok(new_shared(doorbell_event(event)))
    })
}

/// Adds a reference, and returns the event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_ref(event: *mut doorbell_event) -> *mut doorbell_event {
    unsafe { add_reference(event) }
}

/// Gives up a reference. The event goes with the last one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_unref(event: *mut doorbell_event) {
    unsafe { give_up_reference(event) };
}

/// Adds 1. Never blocks, unless a callback of a sink does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_signal(event: *mut doorbell_event) {
    unsafe { &*event }.0.signal();
}

/// Adds n, stopping at UINT64_MAX, the overflow state, in which every write blocks until the event is read. Never
/// blocks, unless a callback of a sink does. (eventfd_signal() of the kernel)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_signal_n(event: *mut doorbell_event, n: u64) {
    unsafe { &*event }.0.signal_n(n);
}

/// Adds n. Blocks while the count would be more than UINT64_MAX - 1. (write(2) to an eventfd)
///
/// EINVAL: n is UINT64_MAX.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_write(event: *mut doorbell_event, n: u64) -> c_int {
    attempt(|| Ok(unsafe { &*event }.0.write(n)?))
}

/// As doorbell_event_write, without blocking. EAGAIN: there is no room for n.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_try_write(event: *mut doorbell_event, n: u64) -> c_int {
    attempt(|| Ok(unsafe { &*event }.0.try_write(n)?))
}

/// As doorbell_event_write, with a time limit. ETIMEDOUT: there was no room for n in time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_write_timeout(
    event: *mut doorbell_event,
    n: u64,
    timeout_ns: i64,
) -> c_int {
    attempt(|| Ok(unsafe { &*event }.0.write_timeout(n, limit(timeout_ns))?))
}

/// Takes the count, or 1 of a semaphore, and stores it in *value unless value is NULL. Blocks while the count is 0.
/// (read(2) of an eventfd)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_read(event: *mut doorbell_event, value: *mut u64) -> c_int {
    attempt(|| unsafe { give(value, Ok((*event).0.read())) })
}

/// As doorbell_event_read, without blocking. EAGAIN: the count is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_try_read(
    event: *mut doorbell_event,
    value: *mut u64,
) -> c_int {
    attempt(|| unsafe { give(value, (*event).0.try_read().ok_or(Failed::WOULD_BLOCK)) })
}

/// As doorbell_event_read, with a time limit. ETIMEDOUT: the count was 0 all the time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_read_timeout(
    event: *mut doorbell_event,
    value: *mut u64,
    timeout_ns: i64,
) -> c_int {
    attempt(|| {
        let read = unsafe { &*event }.0.read_timeout(limit(timeout_ns));
        unsafe { give(value, read.ok_or(Failed::TIMED_OUT)) }
    })
}

/// Takes the whole count, also of a semaphore, without blocking. EAGAIN: it is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_try_read_all(
    event: *mut doorbell_event,
    value: *mut u64,
) -> c_int {
    attempt(|| unsafe { give(value, (*event).0.try_read_all().ok_or(Failed::WOULD_BLOCK)) })
}

/// Waits until the count is not 0, and takes nothing. ETIMEDOUT: it was 0 all the time. (poll(2) for POLLIN)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_wait_readable(
    event: *mut doorbell_event,
    timeout_ns: i64,
) -> c_int {
    attempt(|| {
        let readable = unsafe { &*event }
            .0
            .wait_readable_timeout(limit(timeout_ns));
        readable.then_some(()).ok_or(Failed::TIMED_OUT)
    })
}

/// The count now. Other threads may change it before the caller looks at the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_count(event: *const doorbell_event) -> u64 {
    unsafe { &*event }.0.count()
}

/// What poll(2) would report of an eventfd with this count: DOORBELL_READABLE, DOORBELL_WRITABLE, DOORBELL_ERROR.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_event_readiness(event: *const doorbell_event) -> u32 {
    flags_of(unsafe { &*event }.0.readiness())
}

/// A reference of its own to the event.
///
/// # Safety
///
/// The pointer is a handle.
pub(crate) unsafe fn handle(event: *mut doorbell_event) -> EventHandle {
    let arc = unsafe { Arc::from_raw(add_reference(event)) };
    EventHandle::of_field(&arc, |event| &event.0)
}

/// How a new event counts, and how its blocking calls wait.
pub(crate) fn mode_and_spin(flags: u32) -> Result<(Mode, Spin), Failed> {
    let mode = match flags & DOORBELL_SEMAPHORE {
        0 => Mode::Counter,
        _ => Mode::Semaphore,
    };
    Ok((mode, spin(flags & !DOORBELL_SEMAPHORE)?))
}

/// How blocking calls wait. No other flag may be set.
pub(crate) fn spin(flags: u32) -> Result<Spin, Failed> {
    match flags {
        0 => Ok(Spin::DEFAULT),
        DOORBELL_SPIN_NEVER => Ok(Spin::Never),
        DOORBELL_SPIN_ALWAYS => Ok(Spin::Always),
        _ => Err(Failed::INVALID),
    }
}

pub(crate) fn flags_of(readiness: Readiness) -> u32 {
    union([
        (readiness.is_readable(), DOORBELL_READABLE),
        (readiness.is_writable(), DOORBELL_WRITABLE),
        (readiness.is_error(), DOORBELL_ERROR),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use doorbell_rs::event::{Change, Interest, Observation};
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::{env, ptr};

    const IN_A_CHILD: &str = "DOORBELL_TEST_PANIC_WITHOUT_A_RESULT";

    /// An event whose signals panic, as a fault of the library would.
    fn faulty() -> (*mut doorbell_event, Observation) {
        let event = doorbell_event_new(0, 0);
        let panics = Arc::new(|_: Change| panic!("a fault of the library"));
        let observation = Observation::new(unsafe { handle(event) }, Interest::Both, panics);
        (event, observation)
    }

    #[test]
    fn a_panic_becomes_an_errno() {
        let (event, observation) = faulty();
        unsafe {
            assert_eq!(doorbell_event_try_write(event, 3), -libc::ENOTRECOVERABLE);
            assert_eq!(doorbell_event_count(event), 3);
            let read = doorbell_event_try_read(event, ptr::null_mut());
            assert_eq!(read, -libc::ENOTRECOVERABLE);
            drop(observation);
            assert_eq!(doorbell_event_try_write(event, 3), 0);
            doorbell_event_unref(event);
        }
    }

    /// Where there is no result to say so, the process ends.
    #[test]
    fn a_panic_without_a_result_aborts() {
        if env::var_os(IN_A_CHILD).is_some() {
            let (event, _observation) = faulty();
            unsafe { doorbell_event_signal(event) };
            return;
        }
        let test = "event::tests::a_panic_without_a_result_aborts";
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(IN_A_CHILD, "")
            .output()
            .unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGABRT));
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(said.contains("a fault of the library"), "{said}");
    }
}
