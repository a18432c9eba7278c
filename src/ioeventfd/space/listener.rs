use super::super::doorbell::AddressKey;
use super::super::{Bus, Doorbell};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Somebody who can take guest writes to doorbells before they reach the VMM: an accelerator, a vhost-user backend.
/// (QEMU's `MemoryListener`)
///
/// It is called at the commit of a transaction, by the thread that commits, for one doorbell after the other; never for
/// two at once. At no time does it hold two that collide. It may change the address space in a call; that takes effect
/// before the commit returns.
///
/// If a call panics, the listener counts as one who has not got the doorbell, the commit goes on, and then panics with
/// the first payload.
#[doc(alias = "MemoryListener")]
pub trait Listener: Send + Sync {
    /// What it is called in a [`Refusal`].
    fn name(&self) -> &'static str;

    /// Where it stands among the listeners: those with lower priority are told of a new doorbell first and of a deleted
    /// one last. Asked once, when it is added to the address space.
    fn priority(&self) -> i32 {
        0
    }

    /// The doorbell is in force: from now on, the listener may have the writes do what the doorbell does.
    ///
    /// # Errors
    ///
    /// It does not take this one, which may be of a kind that it has no means for: an array, a target that keeps what
    /// was written. It will not be asked to delete it. While the doorbell stays in place, it will be asked again only by
    /// [`AddressSpace::retry_refused`](super::AddressSpace::retry_refused).
    fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError>;

    /// The doorbell, which it took, will soon be in force no more.
    ///
    /// When this returns, the listener must have let go of it: no write reaches the targets through the listener any
    /// more, and their events have all that did.
    ///
    /// # Errors
    ///
    /// For the report. The listener no longer counts as one who has the doorbell.
    fn eventfd_del(&self, doorbell: &Doorbell) -> Result<(), RefusalError>;

    /// Moves to the events all that the listener has taken for them and still keeps elsewhere, and returns how many
    /// kicks that was. When this returns, the events have what came before.
    ///
    /// Called by [`AddressSpace::drain`](super::AddressSpace::drain), at any time and on any thread. A listener that
    /// keeps nothing has nothing to do.
    fn drain(&self) -> u64 {
        0
    }

    /// The outermost transaction is over in which the listener was asked to let go of doorbells. Targets that the
    /// address space had alone have been dropped, unless a guest write is still under way that has found one of them.
    ///
    /// Called by the thread that has committed, without the lock of the address space: at the same time as other calls,
    /// it may be.
    fn committed(&self) {}
}

/// Why a listener refused.
pub type RefusalError = Box<dyn Error + Send + Sync>;

/// What became of a commit. The doorbells are in force in any case.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct CommitReport {
    /// What the listeners did not do, in the order in which they were asked.
    pub refusals: Vec<Refusal>,
}

impl CommitReport {
    /// Whether the listeners did all that they were asked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.refusals.is_empty()
    }
}

/// A listener did not do what it was asked.
///
/// If it was to add a doorbell, then the guest's writes to it exit to the VMM, and
/// [`AddressSpace::write`](super::AddressSpace::write) serves them; unless the error says that somebody else takes
/// them, as `kvm::Occupied` does.
#[derive(Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// The listener's [name](Listener::name).
    pub listener: &'static str,
    /// What it was asked.
    pub call: ListenerCall,
    /// With which doorbell.
    pub doorbell: Doorbell,
    /// Why it refused.
    pub error: RefusalError,
}

/// What happens to a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerCall {
    /// It comes.
    Add,
    /// It goes.
    Delete,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = match self.call {
            ListenerCall::Add => "add",
            ListenerCall::Delete => "delete",
        };
        write!(
            f,
            "{} did not {call} the doorbell at {:?} {:#x}: {}",
            self.listener,
            self.doorbell.bus(),
            self.doorbell.address(),
            self.error
        )
    }
}

impl Error for Refusal {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.error)
    }
}

/// The listeners of an address space, by ascending priority, and among equals in the order in which they came.
#[derive(Default)]
pub(super) struct Listeners {
    slots: Vec<Slot>,
    made: u64,
}

struct Slot {
    id: u64,
    listener: Arc<dyn Listener>,
    priority: i32,
    phase: Phase,
    /// What it has taken.
    held: BTreeMap<(Bus, AddressKey), Doorbell>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// To be told of all there is.
    New,
    /// To be told of what changes.
    Told,
    /// To let go of all it holds.
    Leaving,
}

/// A listener to be called. Calls are made while nothing is borrowed.
pub(super) struct Call {
    slot: u64,
    listener: Arc<dyn Listener>,
    doorbell: Doorbell,
}

impl Listeners {
    pub fn add(&mut self, listener: Arc<dyn Listener>, priority: i32) {
        let place = self.slots.partition_point(|slot| slot.priority <= priority);
        let slot = Slot {
            id: self.made,
            listener,
            priority,
            phase: Phase::New,
            held: BTreeMap::new(),
        };
        self.slots.insert(place, slot);
        self.made += 1;
    }

    pub fn remove(&mut self, listener: &dyn Listener) {
        for slot in &mut self.slots {
            if std::ptr::addr_eq(Arc::as_ptr(&slot.listener), listener) {
                slot.phase = Phase::Leaving;
            }
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<dyn Listener>> {
        let listeners = self.slots.iter().map(|slot| Arc::clone(&slot.listener));
        listeners.collect()
    }

    /// The calls by which the listeners let go of `removed`, and those that leave of everything; they count as made.
    /// And the listeners that have left, to be dropped while nothing is borrowed.
    pub fn letting_go(&mut self, removed: &[Doorbell]) -> (Vec<Call>, Vec<Arc<dyn Listener>>) {
        let mut calls = Vec::new();
        for slot in self.slots.iter_mut().rev() {
            let call = |doorbell| Call {
                slot: slot.id,
                listener: Arc::clone(&slot.listener),
                doorbell,
            };
            if slot.phase == Phase::Leaving {
                let held = std::mem::take(&mut slot.held);
                calls.extend(held.into_values().map(call));
            } else {
                let held = removed
                    .iter()
                    .filter(|doorbell| slot.held.remove(&doorbell.sort_key()).is_some());
                calls.extend(held.cloned().map(call));
            }
        }
        let mut left = Vec::new();
        self.slots.retain(|slot| {
            let leaving = slot.phase == Phase::Leaving;
            left.extend(leaving.then(|| Arc::clone(&slot.listener)));
            !leaving
        });
        (calls, left)
    }

    /// The calls by which the listeners take `added`; the new ones `all`, and everyone what it has not got of `all` if
    /// `retry`.
    pub fn taking(&mut self, added: &[Doorbell], all: &[Doorbell], retry: bool) -> Vec<Call> {
        let mut calls = Vec::new();
        for slot in &mut self.slots {
            let doorbells = match slot.phase {
                Phase::New => all,
                Phase::Told if retry => all,
                Phase::Told => added,
                Phase::Leaving => &[],
            };
            let missing = doorbells
                .iter()
                .filter(|doorbell| !slot.held.contains_key(&doorbell.sort_key()));
            calls.extend(missing.cloned().map(|doorbell| Call {
                slot: slot.id,
                listener: Arc::clone(&slot.listener),
                doorbell,
            }));
            if slot.phase == Phase::New {
                slot.phase = Phase::Told;
            }
        }
        calls
    }

    /// After [`Call::add`] has succeeded.
    pub fn took(&mut self, call: Call) {
        let slot = self.slots.iter_mut().find(|slot| slot.id == call.slot);
        let held = &mut slot.expect("listeners go when they let go").held;
        held.insert(call.doorbell.sort_key(), call.doorbell);
    }
}

impl Call {
    pub fn listener(&self) -> &Arc<dyn Listener> {
        &self.listener
    }

    pub fn add(&self) -> Result<(), Refusal> {
        let done = self.listener.eventfd_add(&self.doorbell);
        done.map_err(|error| self.refusal(ListenerCall::Add, error))
    }

    pub fn delete(&self) -> Result<(), Refusal> {
        let done = self.listener.eventfd_del(&self.doorbell);
        done.map_err(|error| self.refusal(ListenerCall::Delete, error))
    }

    fn refusal(&self, call: ListenerCall, error: RefusalError) -> Refusal {
        Refusal {
            listener: self.listener.name(),
            call,
            doorbell: self.doorbell.clone(),
            error,
        }
    }
}
