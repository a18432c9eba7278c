//! Waiting for several events, and waiting in async code.
//!
//! * [`wait_any`] is `poll(2)`: which of these events can be read?
//! * [`Event::read_async`](crate::Event::read_async), [`Event::write_async`](crate::Event::write_async) and
//!   [`Event::readings`](crate::Event::readings) are for async code, on any runtime.
//!
//! # System calls
//!
//! For a seccomp filter, beside those that every `Event` makes (see the front page):
//!
//! | | only to sleep | only to wake sleepers |
//! |---|---|---|
//! | `wait_any` | `futex_waitv`, with a timeout `clock_gettime` (of the vDSO, if there is one); `futex` (`FUTEX_WAIT`) for one event, for more than 128, or where `futex_waitv` fails with `ENOSYS` or `EPERM` | `futex` (`FUTEX_WAKE`) |
//! | futures | none, but those of their runtime | none, but those of the runtime's wakers |
//!
//! `futex_waitv` came with Linux 5.16; other systems are treated as if it had failed. A filter that *kills* at
//! `futex_waitv` must be taught it; one that refuses it costs one failed call.
//!
//! Who waits in line (futures, and `wait_any` without `futex_waitv`) and who wakes them take a mutex for a moment:
//! `futex`, if two meet there. The first future that waits for an event, and the first `wait_any` on it that cannot
//! use `futex_waitv`, attaches an [`Observer`](crate::event::Observer) to it, which waits for callbacks and lookups
//! under way in other threads and may call `sched_yield`, `nanosleep` and (after `use_membarrier`) `membarrier`, as a
//! change of a table does. A thread calls `getpid` before it runs a waker for the first time.

mod future;
mod wait_any;

pub use future::{ReadFuture, Readings, WriteFuture};
pub use wait_any::{Ready, wait_any, wait_any_deadline};
