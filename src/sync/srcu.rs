//! Snapshots that are read often and replaced seldom: a small sleepable RCU.
//!
//! The kernel's counterpart is `srcu_struct`, under which KVM keeps its I/O buses and interrupt routes. An [`Srcu`]
//! holds the current snapshot. Readers look at it inside a [`Section`]; a writer publishes another one, and the old one
//! is freed when no reader holds it any more. All `Srcu`s of the process share one set of readers:
//!
//! ```text
//!     slot        one per reader, on cache lines of its own; kept for the next reader when its own has gone
//!       seq       odd: inside a section             the reader alone changes it
//!       owner     the thread that is inside
//!       owes      what the end of the section has to see to
//!
//!     reader                                        writer
//!     1  seq: even -> odd                           1  lock; build the new snapshot; swap the pointer; unlock
//!     2  load the pointer, use the snapshot         2  each slot: seq odd?  wait until it is another
//!     3  seq: odd -> even                           3  free the old snapshot
//! ```
//!
//! Why a writer frees nothing that is in use:
//!
//! * Reader 1 and 2 against writer 1 and 2 is a [`DEKKER`](crate::sync::DEKKER) handshake: the reader loads the new
//!   pointer, or the writer finds the slot odd. For [`Light`] sections, if [`use_membarrier`](super::membarrier) is in
//!   force, the reader's accesses are plain ones in program order, and the writer makes every thread execute a full
//!   barrier between its own two. If a reader's store comes before that barrier in its program, the writer sees the
//!   store; if not, its load comes after too, and sees the new pointer. A [`Fenced`](kind::Fenced) section inside a
//!   light one publishes the sequence once more, with a fence, so writers of what is read in fenced sections need no
//!   such barrier.
//! * Reader 3 releases and the writer's load acquires: the free comes after the last use.
//! * The sequence tells a reader that has left and come back from one that has stayed, so readers in a tight loop do
//!   not hold up writers.
//!
//! A section may stand inside another one of the same thread, of this `Srcu` or any other. A writer that is inside a
//! section itself cannot wait for it, and must not wait for the others, who might be writers waiting for this one. That
//! all share their readers makes the rule simple: inside a section nobody waits. The price is that a writer waits for
//! readers of snapshots that it has nothing to do with, so what runs inside a section must be short.
//!
//! # Who frees
//!
//! What is freed may be an observer, whose destructor is foreign code and may take any lock. So a thread frees what it
//! has retired itself, at a point where its caller expects that, and nothing of others':
//!
//! ```text
//!     a writer outside sections            waits for the readers, then frees what it retired, and what its thread has
//!     left a writer inside a section            leaves it in a pile of its thread's the end of the outermost section,
//!     looks which readers are inside, without waiting; frees the pile if there are if something was left in it
//!     none, else writes them down, and the pile waits for the next such end publish_without_waiting
//!     leaves the old snapshot, which runs no foreign destructor, in everybody's pile reclaim
//!     waits for the readers, then frees all piles
//! ```
//!
//! ```text
//!     pile     waiting   freed when the readers written down have left, or have come back since
//!              next      came later; becomes `waiting` when that has been freed
//! ```
//!
//! A pile is looked at by its thread each time it grows, and a look costs no more than there are readers, however much
//! lies in it. So a thread that retires for ever inside sections holds what it has retired in the course of one section
//! of another thread's, or two. After [`use_membarrier`](super::membarrier), what was read in light sections stays in a
//! pile until some thread has called `membarrier` since: the end of a section does not.
//!
//! Destructors run at the end of a section run when it has ended, outside of all locks; changes that they make wait for
//! nothing. One that panics does not keep the others from being run.
//!
//! Writers wait after they have unlocked, so a reader may become a writer inside its section. A caller that publishes
//! while it holds a lock of its own, which readers may want, takes a [`Deferral`] before the lock: then it does not
//! wait before the deferral's end. They spin, yield, then sleep for up to a millisecond at a time; readers never make a
//! system call for them.
//!
//! A process that forks takes the slots along but not the threads: see `forked`.

mod deferral;
mod grace;
mod kind;
mod owed;
mod piles;
mod reader;
mod slots;
mod snapshot;
#[cfg(all(test, not(loom)))]
mod tests;

pub use deferral::Deferral;
#[cfg(loom)]
pub use grace::retire;
pub use grace::{may_wait, reclaim, synchronize};
pub use kind::Light;
pub use reader::{Reader, Section, own_section, with_light_section, with_section};
pub use snapshot::{Srcu, Writer};
