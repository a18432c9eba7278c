//! `doorbell_poller`: an `Arc` around an `Arc<Poller>`, of which a `PollerFd` takes a copy.

use crate::arguments::{borrow, limit, only, union};
use crate::event::{
    DOORBELL_ERROR, DOORBELL_READABLE, DOORBELL_WRITABLE, doorbell_event, handle, spin,
};
use crate::failure::{Failed, attempt, counted, made};
use crate::handles::{add_reference, free, give_up_reference, new_owned, new_shared};
use doorbell_rs::poll::{Events, PollError, Poller, PollerFd, Probe, Report, Watch};
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// The other end of a file descriptor has been closed (EPOLLHUP). Never of an event.
pub const DOORBELL_HANG_UP: u32 = 0x10;
/// Reported once for each time that the source becomes ready, and not as long as it is ready (EPOLLET).
pub const DOORBELL_EDGE: u32 = 0x8000_0000;
/// Reported once, and then not until doorbell_poller_modify (EPOLLONESHOT).
pub const DOORBELL_ONE_SHOT: u32 = 0x4000_0000;

/// An epoll in userspace, for events and file descriptors. Reference-counted.
pub struct doorbell_poller(Arc<Poller>);

/// What a wait found. One owner. Each thread that waits has one of its own for each poller.
pub struct doorbell_events {
    events: Events,
    reports: Vec<doorbell_report>,
}

/// A source that is ready.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct doorbell_report {
    /// The key that the source is registered under.
    pub key: usize,
    /// DOORBELL_READABLE, _WRITABLE, _ERROR, _HANG_UP: all of what it is watched for that it is ready for.
    pub ready: u32,
}

/// Tells whether a source has something to do, by a look at memory such as the available ring of a virtqueue. The
/// poller turns the source's notifications off while it looks itself, and on before it sleeps. It calls these functions
/// one at a time, on any thread that waits, and holds a lock during a call: they are short, and do not call the poller.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct doorbell_probe {
    /// Whether there is something to do. Called in a loop. The load that says so acquires (atomic_load_explicit with
    /// memory_order_acquire).
    pub ready: Option<unsafe extern "C" fn(user: *mut c_void) -> bool>,
    /// Polling begins: the other side need not notify. May be NULL.
    pub begin: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// Polling ends: turns notifications on, then executes a full fence (atomic_thread_fence(memory_order_seq_cst)),
    /// then looks once more, and returns whether there is something to do.
    pub end: Option<unsafe extern "C" fn(user: *mut c_void) -> bool>,
    /// May be NULL. See CALLBACKS.
    pub destroy: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// What the functions are given.
    pub user: *mut c_void,
}

/// Makes a poller. `flags`: DOORBELL_SPIN_NEVER or DOORBELL_SPIN_ALWAYS, for how its waits wait.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_poller_new(flags: u32) -> *mut doorbell_poller {
    made(|| {
        let poller = Arc::new(Poller::with_spin(spin(flags)?));
        Ok(new_shared(doorbell_poller(poller)))
    })
}

/// Adds a reference, and returns the poller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_ref(poller: *mut doorbell_poller) -> *mut doorbell_poller {
    unsafe { add_reference(poller) }
}

/// Gives up a reference. With the last one all registrations end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_unref(poller: *mut doorbell_poller) {
    unsafe { give_up_reference(poller) };
}

/// Watches an event, under a key of the caller's choice. `watch`: DOORBELL_READABLE, DOORBELL_WRITABLE, both, or 0 for
/// errors alone, and DOORBELL_EDGE or DOORBELL_ONE_SHOT. An error is always reported. One event may be registered under
/// several keys.
///
/// EEXIST: the key is in use. EINVAL: an unknown flag.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_add(
    poller: *mut doorbell_poller,
    event: *mut doorbell_event,
    key: usize,
    watch: u32,
) -> c_int {
    attempt(|| {
        let (poller, event) = unsafe { (&*poller, handle(event)) };
        Ok(poller.0.add(event, key, watched(watch)?)?)
    })
}

/// Watches a file descriptor, as epoll_ctl with EPOLL_CTL_ADD does. The caller keeps the descriptor open until
/// doorbell_poller_delete.
///
/// EEXIST: the key is in use, or the descriptor is registered. EBADF. EPERM: it cannot be waited for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_add_fd(
    poller: *mut doorbell_poller,
    fd: c_int,
    key: usize,
    watch: u32,
) -> c_int {
    attempt(|| {
        let (poller, fd) = unsafe { (&*poller, borrow(fd)?) };
        Ok(poller.0.add_fd(fd, key, watched(watch)?)?)
    })
}

/// Carries what arrives in an eventfd over into an event, inside the waits of this poller, and watches the event: for a
/// kick that may come from KVM or a vhost peer by the eventfd, and from this process by the event. The library keeps a
/// duplicate of the descriptor until doorbell_poller_delete.
///
/// EINVAL: the descriptor is not an eventfd. EEXIST, EBADF.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_add_bound(
    poller: *mut doorbell_poller,
    eventfd: c_int,
    event: *mut doorbell_event,
    key: usize,
    watch: u32,
) -> c_int {
    attempt(|| {
        let (poller, fd, event) = unsafe { (&*poller, borrow(eventfd)?, handle(event)) };
        Ok(poller.0.add_bound(fd, event, key, watched(watch)?)?)
    })
}

/// Registers a source that has nothing but a probe. After the probe's `end`, a thread that gives the source something
/// to do calls doorbell_poller_notify.
///
/// EEXIST: the key is in use. EINVAL: `ready` or `end` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_add_probe(
    poller: *mut doorbell_poller,
    key: usize,
    probe: *const doorbell_probe,
) -> c_int {
    attempt(|| {
        let (poller, probe) = unsafe { (&*poller, ForeignProbe(*probe)) };
        Ok(poller.0.add_probe(key, probe.complete()?)?)
    })
}

/// Gives a probe to what is registered under a key. A source has one probe at most; a second one replaces it.
///
/// ENOENT: nothing is registered there. EINVAL: `ready` or `end` is NULL, or the source is watched as one-shot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_attach_probe(
    poller: *mut doorbell_poller,
    key: usize,
    probe: *const doorbell_probe,
) -> c_int {
    attempt(|| {
        let (poller, probe) = unsafe { (&*poller, ForeignProbe(*probe)) };
        Ok(poller.0.attach_probe(key, probe.complete()?)?)
    })
}

/// Changes what a source is watched for, and re-arms it if it is one-shot. ENOENT: nothing is registered there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_modify(
    poller: *mut doorbell_poller,
    key: usize,
    watch: u32,
) -> c_int {
    attempt(|| Ok(unsafe { &*poller }.0.modify(key, watched(watch)?)?))
}

/// Ends a registration. A wait that begins afterwards does not report it. ENOENT: nothing is registered there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_delete(poller: *mut doorbell_poller, key: usize) -> c_int {
    attempt(|| Ok(unsafe { &*poller }.0.delete(key)?))
}

/// Makes one thread return from doorbell_poller_wait: one that waits now, or else the next one that would sleep.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_notify(poller: *mut doorbell_poller) {
    unsafe { &*poller }.0.notify();
}

/// Makes each thread (each doorbell_events) return from doorbell_poller_wait once, now or the next time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_notify_all(poller: *mut doorbell_poller) {
    unsafe { &*poller }.0.notify_all();
}

/// Makes a buffer for up to `capacity` reports of a wait. EINVAL: 0, or more than INT_MAX.
#[unsafe(no_mangle)]
pub extern "C" fn doorbell_events_new(capacity: usize) -> *mut doorbell_events {
    made(|| {
        if capacity == 0 || c_int::try_from(capacity).is_err() {
            return Err(Failed::INVALID);
        }
        Ok(new_owned(doorbell_events {
            events: Events::with_capacity(capacity),
            reports: Vec::new(),
        }))
    })
}

/// Frees a buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_events_free(events: *mut doorbell_events) {
    unsafe { free(events) };
}

/// The reports of the last wait, as many as it returned. Valid until the buffer's next wait. Sources that have been
/// ready longest come first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_events_reports(
    events: *const doorbell_events,
) -> *const doorbell_report {
    unsafe { &*events }.reports.as_ptr()
}

/// Waits until something is ready, a thread calls doorbell_poller_notify, or the time is up. Returns how many reports
/// there are in `events`: 0 after the time is up, and possibly after a notification. (epoll_wait)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_wait(
    poller: *mut doorbell_poller,
    events: *mut doorbell_events,
    timeout_ns: i64,
) -> c_int {
    counted(|| {
        let (poller, events) = unsafe { (&*poller, &mut *events) };
        events.fill(|events| poller.0.wait(events, Some(limit(timeout_ns))))
    })
}

/// Looks once, without sleeping: for a device that has other work to do. It looks at file descriptors in one call of
/// 32. Returns how many reports there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_look(
    poller: *mut doorbell_poller,
    events: *mut doorbell_events,
) -> c_int {
    counted(|| {
        let (poller, events) = unsafe { (&*poller, &mut *events) };
        events.fill(|events| poller.0.look(events))
    })
}

/// A poller as a file descriptor in another event loop (epoll, GMainLoop, QEMU's AioContext). One owner.
pub struct doorbell_poller_fd(PollerFd);

/// Makes a file descriptor for a poller. The handle keeps the poller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_fd_new(
    poller: *mut doorbell_poller,
) -> *mut doorbell_poller_fd {
    made(|| {
        let poller = Arc::clone(&unsafe { &*poller }.0);
        let fd = PollerFd::new(poller)?;
        Ok(new_owned(doorbell_poller_fd(fd)))
    })
}

/// Frees the handle. The outer loop must have stopped watching the descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_fd_free(fd: *mut doorbell_poller_fd) {
    unsafe { free(fd) };
}

/// The descriptor to watch for reading. It belongs to the poller: do not close it, and do not read it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_fd_get(fd: *const doorbell_poller_fd) -> c_int {
    unsafe { &*fd }.0.as_fd().as_raw_fd()
}

/// Before the outer loop sleeps. Returns 0 if it may sleep: the descriptor becomes readable when something is ready.
/// Otherwise returns how many reports there are in `events`, or -EAGAIN if there are none and the loop is to call
/// this again before it sleeps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_fd_arm(
    fd: *mut doorbell_poller_fd,
    events: *mut doorbell_events,
) -> c_int {
    counted(|| {
        let (fd, events) = unsafe { (&*fd, &mut *events) };
        let mut armed = false;
        let reports = events.fill(|events| {
            armed = fd.0.arm(events)?;
            Ok(events.len())
        })?;
        match (armed, reports) {
            (false, 0) => Err(Failed::WOULD_BLOCK),
            (_, reports) => Ok(reports),
        }
    })
}

/// After the outer loop has woken, for whatever reason.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn doorbell_poller_fd_disarm(fd: *mut doorbell_poller_fd) {
    unsafe { &*fd }.0.disarm();
}

impl doorbell_events {
    fn fill(
        &mut self,
        find: impl FnOnce(&mut Events) -> Result<usize, PollError>,
    ) -> Result<c_int, Failed> {
        self.reports.clear();
        find(&mut self.events)?;
        self.reports
            .extend(self.events.iter().map(doorbell_report::from));
        Ok(self.reports.len() as c_int)
    }
}

impl From<Report> for doorbell_report {
    fn from(report: Report) -> Self {
        let ready = union([
            (report.is_readable(), DOORBELL_READABLE),
            (report.is_writable(), DOORBELL_WRITABLE),
            (report.is_error(), DOORBELL_ERROR),
            (report.is_hang_up(), DOORBELL_HANG_UP),
        ]);
        let key = report.key();
        doorbell_report { key, ready }
    }
}

fn watched(flags: u32) -> Result<Watch, Failed> {
    const SIDES: u32 = DOORBELL_READABLE | DOORBELL_WRITABLE;
    only(flags, SIDES | DOORBELL_EDGE | DOORBELL_ONE_SHOT)?;
    let mut watch = match flags & SIDES {
        0 => Watch::ERRORS,
        DOORBELL_READABLE => Watch::READABLE,
        DOORBELL_WRITABLE => Watch::WRITABLE,
        _ => Watch::BOTH,
    };
    if flags & DOORBELL_EDGE != 0 {
        watch = watch.edge();
    }
    if flags & DOORBELL_ONE_SHOT != 0 {
        watch = watch.one_shot();
    }
    Ok(watch)
}

/// A probe of the caller's, until it is dropped.
struct ForeignProbe(doorbell_probe);

// SAFETY: the header says that any thread that waits makes the calls, one at a time.
unsafe impl Send for ForeignProbe {}

impl ForeignProbe {
    fn complete(self) -> Result<Self, Failed> {
        match (self.0.ready, self.0.end) {
            (Some(_), Some(_)) => Ok(self),
            _ => Err(Failed::INVALID),
        }
    }
}

impl Probe for ForeignProbe {
    #[inline]
    fn ready(&mut self) -> bool {
        self.0
            .ready
            .is_some_and(|ready| unsafe { ready(self.0.user) })
    }

    fn begin(&mut self) {
        if let Some(begin) = self.0.begin {
            unsafe { begin(self.0.user) };
        }
    }

    fn end(&mut self) -> bool {
        self.0.end.is_some_and(|end| unsafe { end(self.0.user) })
    }
}

impl Drop for ForeignProbe {
    fn drop(&mut self) {
        if let Some(destroy) = self.0.destroy {
            unsafe { destroy(self.0.user) };
        }
    }
}
