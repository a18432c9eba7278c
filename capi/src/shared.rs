//! `doorbell_shared_event`: a `Box<SharedEvent>`.

use crate::arguments::{borrow, give, limit};
use crate::event::{DOORBELL_READABLE, DOORBELL_WRITABLE, flags_of, mode_and_spin, spin};
use crate::failure::{Failed, attempt, counted, made};
use crate::handles::{free, new_owned};
use doorbell_rs::SharedEvent;
use doorbell_rs::event::Interest;
use std::ffi::{c_int, c_void};
use std::os::fd::IntoRawFd;

/// An event in memory that processes share. Each process has a handle of its own. It has one owner, _free.
pub struct doorbell_shared_event(SharedEvent);

/// Makes an event in a memfd of its own, and stores the descriptor of the memfd in *fd. The caller passes the
/// descriptor to its peers, and closes it. `flags` as for doorbell_event_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_create(
    initial: u64,
    flags: u32,
    fd: *mut c_int,
) -> *mut doorbell_shared_event {
    made(|| {
        let (mode, spin) = mode_and_spin(flags)?;
        let (event, memfd) = SharedEvent::create(initial, mode)?;
        unsafe { fd.write(memfd.into_raw_fd()) };
        Ok(boxed(event.with_spin(spin)))
    })
}

/// Attaches to the event at `offset` in a memfd, which is sealed against shrinking. The caller keeps the descriptor,
/// and may close it. `flags`: DOORBELL_SPIN_NEVER or DOORBELL_SPIN_ALWAYS.
///
/// EINVAL: there is no event there. EPERM: the file may be shortened.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_attach(
    fd: c_int,
    offset: u64,
    flags: u32,
) -> *mut doorbell_shared_event {
    made(|| {
        let spin = spin(flags)?;
        let fd = unsafe { borrow(fd) }?;
        let event = SharedEvent::attach(fd, offset)?;
        Ok(boxed(event.with_spin(spin)))
    })
}

/// Makes an event in the 64 bytes at `memory`, which stay mapped until _free, and which this process touches through
/// shared events only. `flags` as for doorbell_event_new. EINVAL: the address is not a multiple of 64.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_create_at(
    memory: *mut c_void,
    initial: u64,
    flags: u32,
) -> *mut doorbell_shared_event {
    made(|| {
        let (mode, spin) = mode_and_spin(flags)?;
        let event = unsafe { SharedEvent::create_at(memory.cast(), initial, mode) }?;
        Ok(boxed(event.with_spin(spin)))
    })
}

/// Attaches to the event in the 64 bytes at `memory`, under the conditions of doorbell_shared_event_create_at. EINVAL:
/// there is no event there. `flags` as for doorbell_shared_event_attach.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_attach_at(
    memory: *mut c_void,
    flags: u32,
) -> *mut doorbell_shared_event {
    made(|| {
        let spin = spin(flags)?;
        let event = unsafe { SharedEvent::attach_at(memory.cast()) }?;
        Ok(boxed(event.with_spin(spin)))
    })
}

/// Gives up this process's handle. The event stays where it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_free(event: *mut doorbell_shared_event) {
    unsafe { free(event) };
}

/// Adds 1. Never blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_signal(event: *mut doorbell_shared_event) {
    unsafe { &*event }.0.signal();
}

/// Adds n, stopping at UINT64_MAX, the overflow state, in which every write blocks until the event is read. Never
/// blocks. (eventfd_signal() of the kernel)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_signal_n(event: *mut doorbell_shared_event, n: u64) {
    unsafe { &*event }.0.signal_n(n);
}

/// Adds n. Blocks while the count would be more than UINT64_MAX - 1. (write(2) to an eventfd)
///
/// EINVAL: n is UINT64_MAX.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_write(
    event: *mut doorbell_shared_event,
    n: u64,
) -> c_int {
    attempt(|| Ok(unsafe { &*event }.0.write(n)?))
}

/// As doorbell_shared_event_write, without blocking. EAGAIN: there is no room for n.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_try_write(
    event: *mut doorbell_shared_event,
    n: u64,
) -> c_int {
    attempt(|| Ok(unsafe { &*event }.0.try_write(n)?))
}

/// As doorbell_shared_event_write, with a time limit. ETIMEDOUT: there was no room for n in time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_write_timeout(
    event: *mut doorbell_shared_event,
    n: u64,
    timeout_ns: i64,
) -> c_int {
    attempt(|| Ok(unsafe { &*event }.0.write_timeout(n, limit(timeout_ns))?))
}

/// Takes the count, or 1 of a semaphore, and stores it in *value unless value is NULL. Blocks while the count is 0.
/// (read(2) of an eventfd)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_read(
    event: *mut doorbell_shared_event,
    value: *mut u64,
) -> c_int {
    attempt(|| unsafe { give(value, Ok((*event).0.read())) })
}

/// As doorbell_shared_event_read, without blocking. EAGAIN: the count is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_try_read(
    event: *mut doorbell_shared_event,
    value: *mut u64,
) -> c_int {
    attempt(|| unsafe { give(value, (*event).0.try_read().ok_or(Failed::WOULD_BLOCK)) })
}

/// As doorbell_shared_event_read, with a time limit. ETIMEDOUT: the count was 0 all the time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_read_timeout(
    event: *mut doorbell_shared_event,
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
pub unsafe extern "C" fn doorbell_shared_event_try_read_all(
    event: *mut doorbell_shared_event,
    value: *mut u64,
) -> c_int {
    attempt(|| unsafe { give(value, (*event).0.try_read_all().ok_or(Failed::WOULD_BLOCK)) })
}

/// Waits until the count is not 0, and takes nothing. ETIMEDOUT: it was 0 all the time. (poll(2) for POLLIN)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_wait_readable(
    event: *mut doorbell_shared_event,
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
pub unsafe extern "C" fn doorbell_shared_event_count(event: *const doorbell_shared_event) -> u64 {
    unsafe { &*event }.0.count()
}

/// What poll(2) would report of an eventfd with this count: DOORBELL_READABLE, DOORBELL_WRITABLE, DOORBELL_ERROR.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_readiness(
    event: *const doorbell_shared_event,
) -> u32 {
    flags_of(unsafe { &*event }.0.readiness())
}

/// Gives this process the means to wake a peer that sleeps in epoll or in a poller: one end of a pair of connected
/// Unix sockets (stream or seqpacket), of which the peer watches the other end. It is sent one byte now, and one byte
/// each time that a change made through this handle finds the event armed. The library duplicates the descriptor; the
/// caller closes its own. No other thread may use the handle during this call.
///
/// ENOTSOCK, EAFNOSUPPORT, ENOTCONN: it is not such a socket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_add_waker(
    event: *mut doorbell_shared_event,
    socket: c_int,
) -> c_int {
    attempt(|| {
        let socket = unsafe { borrow(socket) }?;
        let socket = socket.try_clone_to_owned()?;
        let event = unsafe { &mut *event };
        Ok(event.0.add_waker(socket)?)
    })
}

/// Asks for one byte in the socket after the next change of `interest`: DOORBELL_READABLE (signals and writes),
/// DOORBELL_WRITABLE (reads), or both. Returns what the event is ready for now, as doorbell_shared_event_readiness.
/// If that is not what the caller waits for, the caller may sleep until the socket has a byte. EINVAL: no interest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_shared_event_arm(
    event: *mut doorbell_shared_event,
    interest: u32,
) -> c_int {
    const BOTH: u32 = DOORBELL_READABLE | DOORBELL_WRITABLE;
    counted(|| {
        let interest = match interest {
            DOORBELL_READABLE => Interest::Signals,
            DOORBELL_WRITABLE => Interest::Reads,
            BOTH => Interest::Both,
            _ => return Err(Failed::INVALID),
        };
        let readiness = unsafe { &*event }.0.arm(interest);
        Ok(flags_of(readiness) as c_int)
    })
}

fn boxed(event: SharedEvent) -> *mut doorbell_shared_event {
    new_owned(doorbell_shared_event(event))
}
