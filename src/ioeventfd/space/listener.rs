use super::super::doorbell::AddressKey;
use super::super::{Bus, Doorbell};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Takes guest writes to doorbells before they reach the VMM: an accelerator such as KVM, or a vhost-user back-end.
/// (QEMU's `MemoryListener`)
///
/// It is called at the commit of a transaction, by the thread that commits, for one doorbell after the other; never for
/// two at once. At no time does it hold two that collide. It may change the address space in a call; that takes effect
/// before the commit returns.
///
/// If a call panics, the listener counts as not having the doorbell. The commit goes on, and then panics with the first
/// payload.
#[doc(alias = "MemoryListener")]
pub trait Listener: Send + Sync {
    /// The name of the listener in a [`Refusal`].
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
    /// was written. It will not be asked to delete it. While the doorbell stays in place, it will be asked again only
    /// by [`AddressSpace::retry_refused`](super::AddressSpace::retry_refused). The table serves the doorbell, unless
    /// the error [says](Self::is_unreachable) that it cannot.
    fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError>;

    /// The doorbell, which it took, will soon be in force no more.
    ///
    /// When this returns, the listener must have let go of it: no write reaches the targets through the listener any
    /// more, and their events have all that did.
    ///
    /// # Errors
    ///
    /// The error is for the report. The listener counts as not having the doorbell.
    fn eventfd_del(&self, doorbell: &Doorbell) -> Result<(), RefusalError>;

    /// Whether an error of [`eventfd_add`](Self::eventfd_add) says that something else takes the guest's writes, so
    /// that they do not reach the VMM. Asked after each such error, for [`Refusal::is_unreachable`].
    fn is_unreachable(&self, error: &RefusalError) -> bool {
        let _ = error;
        false
    }

    /// Moves to the events all that the listener has taken for them and still keeps elsewhere, and returns how many
    /// kicks that was. When this returns, the events have what came before.
    ///
    /// Called by [`AddressSpace::drain`](super::AddressSpace::drain), at any time and on any thread. A listener that
    /// keeps nothing has nothing to do.
    fn drain(&self) -> u64 {
        0
    }

    /// The outermost transaction in which the listener was asked to let go of doorbells is over. Targets that nothing
    /// but the address space kept have been dropped, unless a guest write that has found one of them is still under
    /// way.
    ///
    /// It is called by the thread that has committed, without the lock of the address space, and so perhaps while
    /// another thread makes other calls.
    fn committed(&self) {}
}

/// Why a listener refused.
pub type RefusalError = Box<dyn Error + Send + Sync>;

/// What the listeners did not do in a commit. The doorbells are in force in any case.
///
/// A doorbell that a listener refuses to add is served by the table, at an exit to the VMM, and so it is slower. The
/// exception is a doorbell that is [unreachable](Refusal::is_unreachable): nothing rings it. A VMM that puts doorbells
/// where it has nothing else, such as a device of KVM's or RAM, may ignore the report.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct CommitReport {
    /// The refusals, in the order in which the listeners were asked.
    pub refusals: Vec<Refusal>,
}

impl CommitReport {
    /// Whether the listeners did all that they were asked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.refusals.is_empty()
    }

    /// The refusals that cost more than speed: nothing rings these doorbells. See [`Refusal::is_unreachable`].
    pub fn unreachable(&self) -> impl Iterator<Item = &Refusal> {
        let refusals = self.refusals.iter();
        refusals.filter(|refusal| refusal.is_unreachable())
    }
}

/// A listener did not do what it was asked.
///
/// If it was to add a doorbell, then the guest's writes to the doorbell exit to the VMM, and
/// [`AddressSpace::write`](super::AddressSpace::write) serves them, unless the doorbell is
/// [unreachable](Self::is_unreachable).
#[derive(Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// The listener's [name](Listener::name).
    pub listener: &'static str,
    /// The call.
    pub call: ListenerCall,
    /// The doorbell that the call was for.
    pub doorbell: Doorbell,
    /// Why it refused. Of a `KvmListener` this is a `kvm::Unsupported`, a `kvm::Occupied` or a `kvm::Error`, which
    /// `downcast_ref` tells apart.
    pub error: RefusalError,
    unreachable: bool,
}

impl Refusal {
    /// Whether nothing rings the doorbell, though it is in force: something else takes the guest's writes, and they
    /// reach neither the listener nor the VMM. It is so where a device of KVM's is (`kvm::Occupied`).
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.unreachable
    }
}

/// A call of a [`Listener`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerCall {
    /// [`eventfd_add`](Listener::eventfd_add)
    Add,
    /// [`eventfd_del`](Listener::eventfd_del)
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

/// Keeps a listener alive: what [`add_listener`](super::AddressSpace::add_listener) takes. An `Arc` of a listener, of a
/// `dyn Listener` too, or a reference to one becomes a handle.
#[derive(Clone)]
pub struct ListenerHandle(pub(super) Arc<dyn Listener>);

impl<L: Listener + 'static> From<Arc<L>> for ListenerHandle {
    fn from(listener: Arc<L>) -> Self {
        ListenerHandle(listener)
    }
}

impl<L: Listener + 'static> From<&Arc<L>> for ListenerHandle {
    fn from(listener: &Arc<L>) -> Self {
        Arc::clone(listener).into()
    }
}

impl From<Arc<dyn Listener>> for ListenerHandle {
    fn from(listener: Arc<dyn Listener>) -> Self {
        ListenerHandle(listener)
    }
}

impl From<&Arc<dyn Listener>> for ListenerHandle {
    fn from(listener: &Arc<dyn Listener>) -> Self {
        Arc::clone(listener).into()
    }
}

impl fmt::Debug for ListenerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListenerHandle")
            .field(&self.0.name())
            .finish()
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
    /// The doorbells that it has taken.
    held: BTreeMap<(Bus, AddressKey), Doorbell>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// Has to be told of all doorbells.
    New,
    /// Has to be told of changes.
    Active,
    /// Has to let go of all doorbells that it has.
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
        let index = self.slots.partition_point(|slot| slot.priority <= priority);
        let slot = Slot {
            id: self.made,
            listener,
            priority,
            phase: Phase::New,
            held: BTreeMap::new(),
        };
        self.slots.insert(index, slot);
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

    /// The calls by which the listeners let go of `removed`, and leaving listeners of all their doorbells. The calls
    /// count as made. Also the listeners that have left, which must be dropped while nothing is borrowed.
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

    /// The calls by which the listeners take `added`, and new listeners `all`. With `retry`, each listener is asked for
    /// all that it does not have.
    pub fn taking(&mut self, added: &[Doorbell], all: &[Doorbell], retry: bool) -> Vec<Call> {
        let mut calls = Vec::new();
        for slot in &mut self.slots {
            let doorbells = match slot.phase {
                Phase::New => all,
                Phase::Active if retry => all,
                Phase::Active => added,
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
                slot.phase = Phase::Active;
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
            unreachable: call == ListenerCall::Add && self.listener.is_unreachable(&error),
            listener: self.listener.name(),
            call,
            doorbell: self.doorbell.clone(),
            error,
        }
    }
}
