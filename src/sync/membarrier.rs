//! Which barriers the light readers of [`srcu`](super::srcu) and their writers use: a fence on both sides, or
//! `membarrier(2)` on the writer's side and only a compiler fence on the reader's. And whether signallers use a lane,
//! for which sleepers call `membarrier(2)`, or signal the usual way.
//!
//! Both are one choice for the whole process, made once: by [`use_membarrier`], or for fences by the first reader or
//! writer of `srcu`. If a reader used the light barrier and a writer assumed a fence, there would be a use after free.
//! So no thread ever sees the choice change: a thread that needs it fixes it first. A signaller checks the choice when
//! it is made, and keeps what it has found.

use std::{error, fmt, io};

use crate::errno::Errno;

/// Why [`use_membarrier`] changed nothing. Everything works with fences then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MembarrierError {
    /// The system has no `membarrier` with private expedited barriers (`ENOSYS`).
    Unsupported,
    /// The system refused: a seccomp filter, most likely (`EPERM`).
    Refused,
    /// A table was already looked up or changed in this process, with fences (`EBUSY`).
    TooLate,
}

impl fmt::Display for MembarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MembarrierError::Unsupported => "the system has no private expedited membarrier",
            MembarrierError::Refused => "the system refused to register for membarrier",
            MembarrierError::TooLate => "a table is in use already, with fences",
        })
    }
}

impl error::Error for MembarrierError {}

impl From<MembarrierError> for io::Error {
    fn from(error: MembarrierError) -> Self {
        match error {
            MembarrierError::Unsupported => Errno::NoSystemCall,
            MembarrierError::Refused => Errno::NotPermitted,
            MembarrierError::TooLate => Errno::Busy,
        }
        .into()
    }
}

/// Makes lookups cheaper and changes of a table dearer, for the whole process and for good. Lets
/// [signallers](crate::event::Signaller) do without a locked instruction.
///
/// A lookup in a [`Table`](crate::ioeventfd::Table) tells writers that it is under way, and that must be visible before
/// it reads the table. By default, it is a store with a full fence. The cost depends on how much of the lookup the
/// processor can do meanwhile: on an Intel Xeon (Sapphire Rapids) a repeated miss through a
/// [`Reader`](crate::ioeventfd::Reader) took 14.4 ns with the fence and 4.6 ns without, and a repeated hit, signal
/// included, 17.6 and 10.9 ns; on an AMD EPYC (Zen 4) 5.1 and 4.9 ns, and 6.0 and 5.6 ns. The example `report` measures
/// both on the machine that it runs on. After this call, it is a plain store, and each *change* of a table calls
/// `membarrier(2)` instead, which costs microseconds and interrupts all running threads of the process, vCPUs in guest
/// mode included. That pays off if tables are set up once and then only looked up. Use
/// [`Table::assign_all`](crate::ioeventfd::Table::assign_all) to change many entries at the price of one. Apart from
/// changes of tables and [`reclaim`](crate::reclaim), `membarrier` is called for events that have a
/// [signaller](crate::event::Signaller) with a lane, and for no others: by threads that fall asleep at such an event,
/// by tasks that begin to wait for it, and when an observer is attached to it or armed, a poller's and an irqfd's
/// included. Changes of routes and masks never call it.
///
/// A change of a table inside a callback does not call it either, and waits for nothing. What it replaces is kept until
/// a thread changes a table outside of callbacks, or calls [`reclaim`](crate::reclaim). A program that changes tables
/// only in callbacks should call `reclaim` now and then.
///
/// Call it first thing in `main`:
///
/// * before the first lookup and the first change of any table, which choose fences, and before the first signaller is
///   made, which would signal the usual way;
/// * before starting threads: registering takes 1 µs in a process with one thread, and 10 ms and more with two;
/// * before installing a seccomp filter. The filter must go on allowing `membarrier`: those of Firecracker, Cloud
///   Hypervisor and libkrun do not, and kill the process. A VMM that cannot allow it should not call this.
///
/// Calling it again after a success does nothing.
///
/// # Errors
///
/// It was not possible, and everything works with fences, as if this had not been called.
///
/// # Panics
///
/// This call does not panic. But if `membarrier` starts failing later, changes of a table panic, because they cannot
/// know whether the old entry is still in use; the entry is leaked. Waiting for an event that has signallers panics
/// too, because the thread cannot know whether it has seen all signals.
///
/// ```
/// if let Err(reason) = doorbell::use_membarrier() {
///     eprintln!("doorbell uses fences: {reason}");
/// }
/// ```
pub fn use_membarrier() -> Result<(), MembarrierError> {
    choice::register()
}

#[cfg(all(any(target_os = "linux", target_os = "android"), not(loom)))]
mod choice {
    use super::MembarrierError;
    use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering, compiler_fence};
    use rustix::io::Errno;
    use rustix::thread::{MembarrierCommand, membarrier};

    const OPEN: u8 = 0;
    const FENCES: u8 = 1;
    const MEMBARRIER: u8 = 2;

    /// Leaves `OPEN` once. Relaxed throughout: only the order of changes to this byte counts. A thread that has seen
    /// the choice made, or learns of a reader from such a thread, sees the same from then on.
    static CHOICE: AtomicU8 = AtomicU8::new(OPEN);

    pub(super) fn register() -> Result<(), MembarrierError> {
        match CHOICE.load(Ordering::Relaxed) {
            MEMBARRIER => return Ok(()),
            FENCES => return Err(MembarrierError::TooLate),
            _ => {}
        }
        // Before the choice is made: a thread that sees the choice may call `membarrier`.
        match membarrier(MembarrierCommand::RegisterPrivateExpedited) {
            Ok(()) if choose(MEMBARRIER) == MEMBARRIER => Ok(()),
            Ok(()) => Err(MembarrierError::TooLate),
            Err(Errno::NOSYS | Errno::INVAL) => Err(MembarrierError::Unsupported),
            Err(_) => Err(MembarrierError::Refused),
        }
    }

    fn choose(choice: u8) -> u8 {
        match CHOICE.compare_exchange(OPEN, choice, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => choice,
            Err(chosen) => chosen,
        }
    }

    pub(crate) fn fix_choice() {
        choose(FENCES);
    }

    #[inline(always)]
    pub(crate) fn is_light() -> bool {
        CHOICE.load(Ordering::Relaxed) == MEMBARRIER
    }

    #[inline(always)]
    pub(crate) fn light() {
        // For the compiler alone: the processor's half is the heavy barrier of the other side.
        compiler_fence(Ordering::SeqCst);
    }

    /// How many heavy barriers have begun, in the order of their numbers.
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    /// The number of the latest of those that have ended.
    static ENDED: AtomicU64 = AtomicU64::new(0);

    pub(crate) fn heavy() {
        if is_light() {
            // Sequentially consistent, as `begun` is: the barrier comes after the change of a thread that loaded less.
            let number = BEGUN.fetch_add(1, Ordering::SeqCst) + 1;
            membarrier(MembarrierCommand::PrivateExpedited)
                .expect("membarrier works once it has been registered");
            // Release pairs with the Acquire in `ended_since`.
            ENDED.fetch_max(number, Ordering::Release);
        }
    }

    pub(crate) fn begun() -> u64 {
        BEGUN.load(Ordering::SeqCst)
    }

    pub(crate) fn ended_since(begun: u64) -> bool {
        // Acquire pairs with the Release in `heavy`: what the barrier has made visible is seen after this.
        ENDED.load(Ordering::Acquire) > begun
    }
}

#[cfg(not(all(any(target_os = "linux", target_os = "android"), not(loom))))]
mod choice {
    use super::MembarrierError;

    pub(super) fn register() -> Result<(), MembarrierError> {
        Err(MembarrierError::Unsupported)
    }

    pub(crate) fn fix_choice() {}

    #[inline(always)]
    pub(crate) fn is_light() -> bool {
        false
    }

    #[inline(always)]
    pub(crate) fn light() {}

    pub(crate) fn heavy() {}

    pub(crate) fn begun() -> u64 {
        0
    }

    pub(crate) fn ended_since(_: u64) -> bool {
        true
    }
}

/// Whether a thread that announces itself can make all other threads execute a full barrier, so that they need none of
/// their own. Once this returns true, it stays so. (A model has fences instead: the looks for announcements are
/// read-modify-writes.)
pub(crate) fn is_to_be_had() -> bool {
    cfg!(loom) || is_light()
}

/// A full barrier of this thread.
pub(crate) fn full() {
    super::atomic::fence(super::atomic::Ordering::SeqCst);
}

/// * [`fix_choice`]: from here on the choice is fixed. Readers and writers call it before they rely on one another.
/// * [`is_light`]: whether readers do without a fence; to be called after `fix_choice`.
/// * [`light`]: the barrier of a reader that does without a fence, for the compiler only.
/// * [`heavy`]: the barrier of a writer whose readers do without a fence. Every thread of the process executes a full
///   barrier.
/// * [`begun`], [`ended_since`]: for a writer that leaves the heavy barrier to other threads. The writer asks after its
///   change how many barriers have begun. When one that began later has ended, all threads have executed a full barrier
///   since the change.
pub(crate) use choice::{begun, ended_since, fix_choice, heavy, is_light, light};
