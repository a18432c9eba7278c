//! Snapshots that are read often and replaced seldom: a small sleepable RCU.
//!
//! The kernel's counterpart is `srcu_struct`, under which KVM keeps its I/O buses and interrupt routes. An [`Srcu`]
//! holds the current snapshot. Readers read it inside a [`Section`]. A writer publishes another one, and the old one is
//! freed when no reader holds it any more. All `Srcu`s of the process share one set of readers:
//!
//! ```text
//!     slot        one per reader, on cache lines of its own; kept for the next reader when its own is gone
//!       seq       odd: inside a section             only the reader changes it
//!       owner     the thread that is inside
//!       owes      what the end of the section has to do
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
//!   barrier between its own two accesses. If the reader's store comes before that barrier in its program, the writer
//!   sees the store. If not, the reader's load comes after the barrier too, and sees the new pointer. A
//!   [`Fenced`](kind::Fenced) section inside a light one publishes the sequence once more, with a fence, so writers of
//!   what is read in fenced sections need no such barrier.
//! * Reader 3 releases, and the writer's load acquires: the free comes after the last use.
//! * The sequence distinguishes a reader that has left and come back from one that has stayed, so readers in a tight
//!   loop do not hold up writers.
//!
//! Sections may be nested, of the same `Srcu` or of different ones. A writer inside a section cannot wait for its own
//! section, and must not wait for other ones, which might be waiting for this one. Because all `Srcu`s share their
//! readers, the rule is simple: inside a section, nothing waits. The price is that a writer waits for readers of
//! unrelated snapshots too, so sections must be short.
//!
//! # Which thread frees
//!
//! What is freed may be an observer, whose destructor is foreign code and may take any lock. So a thread frees only
//! what it has retired itself, at a point where its caller expects that:
//!
//! ```text
//!     a writer outside sections           waits for the readers, then frees what it retired, and its thread's piles
//!     a writer inside a section           leaves it in a pile of its thread
//!     the end of the outermost section,   checks which readers are inside, without waiting; frees the pile if there
//!     if something was left in it         are none, else records them, and the pile waits for the next such end
//!     publish_without_waiting             leaves the old snapshot, which has no foreign destructor, in a common pile
//!     reclaim                             waits for the readers, then frees all piles
//! ```
//!
//! ```text
//!     pile     waiting   freed when the recorded readers have left their sections
//!              next      came later; becomes `waiting` when that has been freed
//! ```
//!
//! A thread checks its pile each time the pile grows. A check costs time in proportion to the readers, however large
//! the pile is. So a thread that keeps retiring inside sections holds what it has retired during one or two sections of
//! another thread. After [`use_membarrier`](super::membarrier), what was read in light sections stays in a pile until a
//! thread has called `membarrier` since; the end of a section does not call it.
//!
//! Destructors that are due at the end of a section run after it has ended, outside of all locks. Changes that they
//! make wait for nothing. A destructor that panics does not keep the others from running.
//!
//! Writers wait after they have unlocked, so a reader may become a writer inside its section. A caller that publishes
//! while it holds a lock that readers may take begins a [`Deferral`] before it locks; then the waiting comes at the end
//! of the deferral. Waiting writers spin, yield, then sleep for up to a millisecond at a time. Readers never make a
//! system call for them.
//!
//! A forked process has the slots, but not the threads: see `forked` in `grace.rs`.
//!
//! | file | concept |
//! |---|---|
//! | `slots.rs` | what a reader shows to writers |
//! | `reader.rs` | readers, and the sections that they enter |
//! | `snapshot.rs` | the snapshot, and its replacement |
//! | `grace.rs` | waiting for sections to end, and freeing afterwards |
//! | `piles.rs` | what was retired and may be in use |
//! | `deferral.rs`, `owed.rs` | waiting put off, and what is owed for it |
//! | `kind.rs` | sections with and without a fence |

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
