use super::super::doorbell::AddressKey;
use super::super::{Bus, Doorbell, Registration, Table};
use super::flat::{Difference, RegionEntry, difference, flatten};
use super::listener::{CommitReport, Listener, ListenerHandle, Listeners};
use crate::panics::{Payload, catch, go_on_unless_panicking};
use crate::sync::srcu::Deferral;
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::thread;

/// The guest addresses of one virtual machine, with the doorbells that are there. Clones are handles to the same
/// address space.
///
/// The [module's page](super) has an example.
///
/// # Threads
///
/// [`write`](Self::write) is for vCPU threads, and does not wait for threads that change the address space. All other
/// calls do: while a thread has a transaction open, other threads that change or read the address space or its regions
/// wait until the outermost commit, as with QEMU's big lock. A thread that holds a lock of its own when it begins a
/// transaction must take the two in the same order everywhere.
///
/// A callback that [`write`](Self::write) runs may change the address space, even while another thread commits: the
/// commit waits for that `write` only after it has released the lock of the address space. The callback's change takes
/// effect at once for writes that begin after it, and does not wait: writes of other threads that are under way may
/// ring the old doorbells until they end. Likewise, a thread that changes a [`Table`] or the observers of an event
/// while it has a transaction open, or in a call of a listener, does not wait in that call. It waits at the end of the
/// outermost transaction.
#[derive(Clone, Default)]
pub struct AddressSpace {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Has all doorbells in force. No handle to the table leaves this module, so there are no other entries to collide
    /// with.
    table: Table,
    state: ReentrantMutex<State>,
}

/// One thread at a time has the lock, and may lock it again, which is why there are cells. They are borrowed for
/// moments, and never while code outside of this module is called.
#[derive(Default)]
struct State {
    /// How many transactions the thread has open, one inside the other.
    depth: Cell<u32>,
    /// Whether there is something to commit.
    changed: Cell<bool>,
    /// Whether the commit is to offer the listeners again the doorbells that they do not have.
    retry: Cell<bool>,
    map: RefCell<Map>,
}

#[derive(Default)]
pub(super) struct Map {
    pub regions: BTreeMap<RegionId, RegionEntry>,
    listeners: Listeners,
    /// The doorbells in the table, by sort key.
    in_force: Vec<Doorbell>,
    registrations: BTreeMap<(Bus, AddressKey), Registration>,
    /// The number of the next region.
    pub next_region: RegionId,
    /// How often a region has been mapped.
    pub mapped: u64,
}

pub(super) type RegionId = u64;

impl AddressSpace {
    /// An address space without regions and listeners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a transaction: changes are collected, and take effect when it is committed.
    /// (`memory_region_transaction_begin`)
    ///
    /// Transactions nest, also across devices: only the commit of the outermost one has an effect. A transaction
    /// belongs to its thread; other threads wait until it is committed.
    pub fn begin(&self) -> Transaction<'_> {
        let deferral = Deferral::new();
        let state = self.shared.state.lock();
        state.depth.set(state.depth.get() + 1);
        Transaction {
            committed: false,
            open: Open {
                shared: &self.shared,
                state,
                _deferral: deferral,
            },
            to_call: CommittedCalls(Vec::new()),
        }
    }

    /// Offers the doorbells a guest's write of `data`, in the byte order of the host, that has reached the VMM.
    ///
    /// Rings the doorbell that the write matches, and returns whether there was one. If not, the write is for the
    /// device models. The changes of an open transaction do not count yet. A write of no bytes, which no guest can
    /// make, matches nothing.
    #[must_use = "a write that no doorbell took is for the device models"]
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.shared.table.write(bus, address, data)
    }

    /// Tells `listener` of all doorbells in force, and of changes from then on. (`memory_listener_register`)
    ///
    /// The listener is an `Arc`, or a reference to one, which is cloned: `space.add_listener(&kvm)`.
    ///
    /// Among listeners of the same priority, this one comes last. Like every change, it takes effect at the outermost
    /// commit.
    pub fn add_listener(&self, listener: impl Into<ListenerHandle>) -> CommitReport {
        let ListenerHandle(listener) = listener.into();
        // Before anything is borrowed, since the listener's code is called.
        let priority = listener.priority();
        self.change(|map| map.listeners.add(listener, priority))
    }

    /// Takes all doorbells from `listener`, and tells it of no more changes. Has no effect if it is not a listener of
    /// this address space. (`memory_listener_unregister`)
    ///
    /// It takes a reference to the listener itself, not to the `Arc`: `space.remove_listener(&*kvm)`.
    ///
    /// Like every change, it takes effect at the outermost commit.
    pub fn remove_listener(&self, listener: &dyn Listener) -> CommitReport {
        self.change(|map| map.listeners.remove(listener))
    }

    /// Asks each listener again for the doorbells in force that it has refused, and reports what it still refuses.
    ///
    /// It is meant for refusals that may have passed: another ioeventfd was at the address and is gone (`EEXIST`),
    /// descriptors had run out (`EMFILE`), a device of KVM's was there. What a listener has no means for is refused
    /// again. A doorbell that a listener takes now is served by it from then on; no write is lost or signalled twice.
    ///
    /// Like every change, it takes effect at the outermost commit, whose report has the refusals.
    ///
    /// ```
    /// use doorbell::ioeventfd::space::{AddressSpace, Listener, RefusalError};
    /// use doorbell::ioeventfd::{Bus, Doorbell};
    /// use doorbell::Event;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// /// An accelerator with no room, for now.
    /// struct Accelerator(AtomicBool);
    ///
    /// impl Listener for Accelerator {
    ///     fn name(&self) -> &'static str {
    ///         "accelerator"
    ///     }
    ///     fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
    ///         if self.0.load(Ordering::Relaxed) { Ok(()) } else { Err("no room".into()) }
    ///     }
    ///     fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let accelerator = Arc::new(Accelerator(AtomicBool::new(false)));
    /// let space = AddressSpace::new();
    /// space.add_listener(&accelerator);
    /// let bar = space.region(Bus::Mmio, 0x1000);
    /// bar.map(0xd000_0000)?;
    /// let report = bar.add_eventfd(0x50, 2, None, Arc::new(Event::new(0)))?;
    /// assert_eq!(report.refusals.len(), 1);
    ///
    /// accelerator.0.store(true, Ordering::Relaxed);
    /// assert!(space.retry_refused().is_clean());
    /// assert!(space.remove_listener(&*accelerator).is_clean());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retry_refused(&self) -> CommitReport {
        let transaction = self.begin();
        let state = &transaction.open.state;
        state.retry.set(true);
        state.changed.set(true);
        transaction.commit()
    }

    /// Has all listeners move to the events what they have taken for them and still keep elsewhere, as KVM keeps kicks
    /// in eventfds. Returns how many kicks that was. When this returns, the events have all that came before.
    ///
    /// Without it, the count of an event may be 0 though a guest has kicked: so a snapshot of a virtual machine calls
    /// it before it [saves](Self::save) the address space and the counts of the events.
    ///
    /// Observers of the events are called, without the lock of the address space.
    ///
    /// ```no_run
    /// # #[cfg(target_os = "linux")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # #[cfg(feature = "kvm")] {
    /// use doorbell::ioeventfd::space::AddressSpace;
    /// use doorbell::kvm::KvmListener;
    /// use std::os::fd::{AsRawFd, BorrowedFd};
    /// use std::sync::Arc;
    ///
    /// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
    /// // SAFETY: `vm` keeps its descriptor open. (`VmFd` has no `AsFd` as of kvm-ioctls 0.25.)
    /// let vm_fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    /// let space = AddressSpace::new();
    /// space.add_listener(Arc::new(KvmListener::new(vm_fd)?));
    /// // … the vCPUs and the devices have been paused.
    /// space.drain();
    /// for doorbell in space.doorbells() {
    ///     let pending: Vec<u64> = doorbell.targets().iter().map(|t| t.event().count()).collect();
    ///     println!("{:?} {:#x}: {pending:?}", doorbell.bus(), doorbell.address());
    /// }
    /// # }
    /// # Ok(())
    /// # }
    /// # #[cfg(not(target_os = "linux"))]
    /// # fn main() {}
    /// ```
    pub fn drain(&self) -> u64 {
        let listeners = self.with_map(|map| map.listeners.all());
        let mut panicked = None;
        let drained = listeners
            .iter()
            .filter_map(|listener| catch(&mut panicked, || listener.drain()))
            .fold(0, u64::saturating_add);
        go_on_unless_panicking(panicked);
        drained
    }

    /// The doorbells in force, in the order of bus and address, for a monitor. Each event's
    /// [count](crate::Event::count) is its pending kicks, without those that a listener keeps: call
    /// [`drain`](Self::drain) first. For a snapshot, there is [`save`](Self::save).
    ///
    /// ```
    /// # use doorbell::{Event, ioeventfd::{Bus, Doorbell, Key}, ioeventfd::space::AddressSpace};
    /// # use std::sync::Arc;
    /// let space = AddressSpace::new();
    /// let bar = space.region(Bus::Mmio, 0x1000);
    /// let kick = Arc::new(Event::new(0));
    /// bar.add_eventfd(0x10, 4, Some(7), &kick)?;
    /// assert!(space.doorbells().is_empty()); // not mapped
    ///
    /// bar.map(0xd000_0000)?;
    /// assert!(space.write(Bus::Mmio, 0xd000_0010, &7_u32.to_ne_bytes()));
    /// let key = Key::mmio(0xd000_0010, 4).with_datamatch(7);
    /// assert_eq!(space.doorbells(), [Doorbell::new(key, &kick)]);
    /// assert_eq!(space.doorbells()[0].targets()[0].event().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn doorbells(&self) -> Vec<Doorbell> {
        self.with_map(|map| map.in_force.clone())
    }

    /// Gives access to the map, in which the changes of an open transaction of this thread are made already.
    pub(super) fn with_map<R>(&self, action: impl FnOnce(&mut Map) -> R) -> R {
        action(&mut self.shared.state.lock().map.borrow_mut())
    }

    /// A transaction of one change, which cannot fail.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Map) -> R) -> CommitReport {
        let Ok(report) = self.try_change(|map| Ok::<R, Infallible>(change(map)));
        report
    }

    /// A transaction of one change, which is made as a whole or fails as a whole.
    ///
    /// `change` returns what it has removed. That is dropped when the map is not borrowed any more: an event may be in
    /// something that changes the address space when it is dropped.
    pub(super) fn try_change<R, E>(
        &self,
        change: impl FnOnce(&mut Map) -> Result<R, E>,
    ) -> Result<CommitReport, E> {
        let transaction = self.begin();
        let state = &transaction.open.state;
        let removed = change(&mut state.map.borrow_mut())?;
        state.changed.set(true);
        drop(removed);
        Ok(transaction.commit())
    }
}

impl Map {
    /// Makes room for a region.
    pub fn make_region(&mut self, region: RegionEntry) -> RegionId {
        let id = self.next_region;
        self.next_region += 1;
        self.regions.insert(id, region);
        id
    }

    pub fn region(&mut self, id: RegionId) -> &mut RegionEntry {
        self.regions
            .get_mut(&id)
            .expect("a region's handle removes it when it is dropped")
    }
}

impl Shared {
    /// Puts changes in force, and again those that listeners make when they are called. If a listener panics, all
    /// changes are put in force before the panic goes on.
    fn apply(&self, state: &State, to_call: &mut CommittedCalls) -> CommitReport {
        let mut report = CommitReport::default();
        let mut panicked = None;
        while state.changed.replace(false) {
            let retry = state.retry.replace(false);
            self.apply_once(&state.map, retry, &mut report, to_call, &mut panicked);
        }
        go_on_unless_panicking(panicked);
        report
    }

    fn apply_once(
        &self,
        map: &RefCell<Map>,
        retry: bool,
        report: &mut CommitReport,
        to_call: &mut CommittedCalls,
        panicked: &mut Option<Payload>,
    ) {
        let (wanted, difference) = {
            let map = map.borrow();
            let wanted = flatten(map.regions.values());
            let difference = difference(&map.in_force, &wanted);
            (wanted, difference)
        };
        let (calls, left) = map.borrow_mut().listeners.letting_go(&difference.removed);
        for call in calls {
            if let Some(Err(refusal)) = catch(panicked, || call.delete()) {
                report.refusals.push(refusal);
            }
            let listener = call.listener();
            if !to_call
                .0
                .last()
                .is_some_and(|last| Arc::ptr_eq(last, listener))
            {
                to_call.0.push(Arc::clone(listener));
            }
        }
        drop(left);

        self.switch(map, &difference);
        map.borrow_mut().in_force.clone_from(&wanted);

        let calls = map
            .borrow_mut()
            .listeners
            .taking(&difference.added, &wanted, retry);
        for call in calls {
            match catch(panicked, || call.add()) {
                Some(Ok(())) => map.borrow_mut().listeners.took(call),
                Some(Err(refusal)) => report.refusals.push(refusal),
                None => {}
            }
        }
    }

    /// Updates the table in one step: a doorbell that moves is found at one of its two addresses at every moment.
    fn switch(&self, map: &RefCell<Map>, Difference { removed, added }: &Difference) {
        let mut registrations: Vec<_> = {
            let mut map = map.borrow_mut();
            let removed = removed.iter();
            removed
                .filter_map(|doorbell| map.registrations.remove(&doorbell.sort_key()))
                .collect()
        };
        self.table
            .replace(&mut registrations, added.iter().cloned())
            .expect("no two doorbells in force collide");
        let keys = added.iter().map(Doorbell::sort_key);
        map.borrow_mut()
            .registrations
            .extend(keys.zip(registrations));
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AddressSpace")
            .field(&self.shared.table)
            .finish()
    }
}

/// Changes to an [`AddressSpace`] that take effect together.
///
/// When it is dropped, it is committed too, without a report. There is no rollback, as in QEMU: each change in it is
/// complete by itself.
#[must_use = "a transaction is committed when it is dropped"]
pub struct Transaction<'a> {
    committed: bool,
    open: Open<'a>,
    /// Dropped after `open`, which holds the lock and, by its deferral, targets that are to be dropped.
    to_call: CommittedCalls,
}

/// Listeners whose [`committed`](Listener::committed) is to be called when the transaction is over.
struct CommittedCalls(Vec<Arc<dyn Listener>>);

impl Drop for CommittedCalls {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let mut panicked = None;
        for listener in &self.0 {
            catch(&mut panicked, || listener.committed());
        }
        go_on_unless_panicking(panicked);
    }
}

/// One level of nesting.
struct Open<'a> {
    shared: &'a Shared,
    /// Released before the deferral ends: guest writes that the table waits for may run callbacks that take the lock.
    state: ReentrantMutexGuard<'a, State>,
    _deferral: Deferral,
}

impl Transaction<'_> {
    /// Ends the transaction and, if it is the outermost, puts its changes in force.
    /// (`memory_region_transaction_commit`)
    ///
    /// When this returns, guest writes find the doorbells at their new addresses and nowhere else, and the events have
    /// all kicks that came through doorbells that a listener has let go of. The report of an inner transaction is
    /// empty.
    pub fn commit(mut self) -> CommitReport {
        self.committed = true;
        self.open.end(&mut self.to_call)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.committed {
            let _ = self.open.end(&mut self.to_call);
        }
    }
}

impl Open<'_> {
    fn end(&self, to_call: &mut CommittedCalls) -> CommitReport {
        match self.state.depth.get() {
            // Still counted as open, so that changes made by listeners nest.
            1 => self.shared.apply(&self.state, to_call),
            _ => CommitReport::default(),
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.state.depth.set(self.state.depth.get() - 1);
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("depth", &self.open.state.depth)
            .field("changed", &self.open.state.changed)
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::RefusalError;
    use super::*;
    use crate::Event;
    use crate::sync::srcu::with_section;
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};
    use std::thread;
    use std::time::Duration;

    /// Tells another thread that a commit is under way.
    struct Tells(Mutex<Sender<()>>);

    impl Listener for Tells {
        fn name(&self) -> &'static str {
            "tells"
        }

        fn eventfd_add(&self, _: &Doorbell) -> Result<(), RefusalError> {
            self.0.lock().expect("nobody panics").send(())?;
            Ok(())
        }

        fn eventfd_del(&self, _: &Doorbell) -> Result<(), RefusalError> {
            Ok(())
        }
    }

    /// A section stands for a write that runs a callback. The commit begins after it, and the callback's change after
    /// that.
    #[test]
    fn a_change_inside_a_write_while_another_thread_commits() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let space = AddressSpace::new();
        let region = space.region(Bus::Mmio, 0x1000);
        let event = Arc::new(Event::new(0));
        assert!(region.add_eventfd(0, 4, None, &event).is_ok());
        let (inside, is_inside) = channel();
        let (committing, commits) = channel();
        let listener = Arc::new(Tells(Mutex::new(committing)));
        assert!(space.add_listener(listener).is_clean());
        let (done, both) = channel();
        let in_write = {
            let (space, done) = (space.clone(), done.clone());
            thread::spawn(move || {
                let other = space.region(Bus::Mmio, 0x1000);
                with_section(|_| {
                    inside.send(()).expect("somebody waits");
                    commits.recv_timeout(PATIENCE).expect("it waits for us");
                    assert!(other.map(0x8000).is_ok());
                });
                done.send(()).expect("somebody waits");
            })
        };
        let commit = thread::spawn(move || {
            is_inside.recv().expect("the other thread lives");
            assert!(region.map(0x1000).is_ok());
            done.send(()).expect("somebody waits");
            region
        });
        for _ in 0..2 {
            both.recv_timeout(PATIENCE).expect("a deadlock");
        }
        in_write.join().expect("nobody panics");
        let region = commit.join().expect("nobody panics");
        assert_eq!(region.base(), Some(0x1000));
    }
}
