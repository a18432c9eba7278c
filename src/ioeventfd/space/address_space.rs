use super::super::doorbell::AddressKey;
use super::super::{Bus, Doorbell, Registration, Table};
use super::flat::{Difference, RegionEntry, difference, flatten};
use super::listener::{CommitReport, Listener, Listeners};
use crate::panics::{Payload, catch, go_on_unless_panicking};
use crate::sync::srcu::Deferral;
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::thread;

/// The guest addresses of one virtual machine, with the doorbells that stand there. Clones are handles to the same.
///
/// The [module's page](super) shows it at work.
///
/// # Threads
///
/// [`write`](Self::write) is for vCPU threads, and waits for nobody who changes the address space. Everything else does
/// wait: while a thread has a transaction open, the others that want to change or look at the address space or its
/// regions stand back until the outermost commit, as under QEMU's big lock. A thread that takes locks of its own before
/// it begins a transaction must do so everywhere.
///
/// The address space may be changed from a callback that [`write`](Self::write) runs, also while another thread
/// commits: the commit waits for that `write` last of all, when others may change the address space again. The
/// callback's own change takes effect at once for writes that begin after it, and waits for nothing: writes of other
/// threads that are under way may ring the old doorbells until they end. In the same way, what a thread does to a
/// [`Table`] or to the observers of an event while it has a transaction open, or in a call of a listener, takes effect
/// at once, and what it has to wait for is left to the end of the outermost transaction.
#[derive(Clone, Default)]
pub struct AddressSpace {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Has all that is in force. No handle to it leaves this module, so nobody else's entries stand in the way of ours.
    table: Table,
    state: ReentrantMutex<State>,
}

/// Held by one thread at a time, which may enter it again: hence the cells. They are borrowed for a moment only, never
/// while a listener is called.
#[derive(Default)]
struct State {
    /// How many transactions the thread has open, one in the other.
    depth: Cell<u32>,
    /// Whether there is something to commit.
    changed: Cell<bool>,
    /// Whether that includes to ask the listeners again for what they have not got.
    retry: Cell<bool>,
    map: RefCell<Map>,
}

#[derive(Default)]
pub(super) struct Map {
    pub regions: BTreeMap<RegionId, RegionEntry>,
    listeners: Listeners,
    /// What the table has, in the order of places.
    in_force: Vec<Doorbell>,
    registrations: BTreeMap<(Bus, AddressKey), Registration>,
    /// The number of the next region.
    pub next_region: RegionId,
    /// How often a region has been mapped.
    pub mapped: u64,
}

pub(super) type RegionId = u64;

impl AddressSpace {
    /// Without regions and listeners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a transaction: until it is committed, changes are collected and do not show.
    ///
    /// Transactions nest, across whatever devices take part: only the commit of the outermost does something. They
    /// belong to the thread; other threads wait with their changes until it is done.
    /// (`memory_region_transaction_begin`)
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
            told: Told(Vec::new()),
        }
    }

    /// Offers the doorbells a guest's write of `data`, in the byte order of the host, that has reached the VMM.
    ///
    /// Signals the event whose doorbell it is, and returns whether there was one. If not, the write is for the device
    /// models. What is in force is looked up, not what an open transaction has collected. A write of no bytes, which no
    /// guest makes, is no doorbell's.
    #[must_use = "a write that no doorbell took is for the device models"]
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        self.shared.table.write(bus, address, data)
    }

    /// Has `listener` told of all doorbells in force, and of what changes from then on. (`memory_listener_register`)
    ///
    /// Among listeners of the same priority, this one comes last. Like every change, it waits for the outermost commit.
    pub fn add_listener(&self, listener: Arc<dyn Listener>) -> CommitReport {
        // Before anything is borrowed: what the listener does is its own affair.
        let priority = listener.priority();
        self.change(|map| map.listeners.add(listener, priority))
    }

    /// Takes all doorbells from `listener`, and tells it of no more. Without effect if it is none of this address
    /// space. (`memory_listener_unregister`)
    ///
    /// Like every change, this waits for the outermost commit.
    pub fn remove_listener(&self, listener: &dyn Listener) -> CommitReport {
        self.change(|map| map.listeners.remove(listener))
    }

    /// Asks each listener again for the doorbells in force that it has refused, and reports what it still refuses.
    ///
    /// It is meant for refusals that may have passed: another ioeventfd was at the address and is gone (`EEXIST`),
    /// descriptors had run out (`EMFILE`), a device of KVM's was there. What a listener has no means for is refused
    /// again. A doorbell that a listener takes now is served by it from then on; no write is lost or signalled twice.
    ///
    /// Like every change, it waits for the outermost commit, whose report has the refusals.
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
    /// space.add_listener(accelerator.clone());
    /// let bar = space.region(Bus::Mmio, 0x1000);
    /// bar.map(0xd000_0000)?;
    /// let report = bar.add_eventfd(0x50, 2, None, Arc::new(Event::new(0)))?;
    /// assert_eq!(report.refusals.len(), 1);
    ///
    /// accelerator.0.store(true, Ordering::Relaxed);
    /// assert!(space.retry_refused().is_clean());
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
    /// Without it, [`doorbells`](Self::doorbells) may show a count of 0 where a guest has kicked. A snapshot of a
    /// virtual machine is taken in this order:
    ///
    /// 1. every vCPU is paused: out of `KVM_RUN`, and with a write that has exited offered to [`write`](Self::write);
    /// 2. the devices are paused: no thread reads the events any more;
    /// 3. `drain`, then [`doorbells`](Self::doorbells) with the count of each event.
    ///
    /// On the other side, the events are made with these counts ([`Event::new`](crate::Event::new)). A device that was
    /// not paused before is not wrong, but the count then says what it had not read at some moment.
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

    /// What is in force now, in the order of bus and address, for a snapshot or a monitor. With each event goes its
    /// [count](crate::Event::count) of pending kicks, less what a listener keeps of them: for a snapshot, call
    /// [`drain`](Self::drain) first.
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

    /// What is there, with an open transaction's changes, if the thread has one open.
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
    /// Puts in force what has changed, as often as listeners make further changes when they are told. If a listener
    /// panics, all is put in force nevertheless.
    fn apply(&self, state: &State, told: &mut Told) -> CommitReport {
        let mut report = CommitReport::default();
        let mut panicked = None;
        while state.changed.replace(false) {
            let retry = state.retry.replace(false);
            self.apply_once(&state.map, retry, &mut report, told, &mut panicked);
        }
        go_on_unless_panicking(panicked);
        report
    }

    fn apply_once(
        &self,
        map: &RefCell<Map>,
        retry: bool,
        report: &mut CommitReport,
        told: &mut Told,
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
            if !told
                .0
                .last()
                .is_some_and(|last| Arc::ptr_eq(last, listener))
            {
                told.0.push(Arc::clone(listener));
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

    /// Brings the table up to date, in one step: no write finds a doorbell at two addresses, or one that moves at none.
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
        let places = added.iter().map(Doorbell::sort_key);
        map.borrow_mut()
            .registrations
            .extend(places.zip(registrations));
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
/// Dropped instead of committed, it commits all the same, and what the listeners refused goes unheard: each change in
/// it is whole, and QEMU has no way back either.
#[must_use = "a transaction is committed when it is dropped"]
pub struct Transaction<'a> {
    committed: bool,
    open: Open<'a>,
    /// After `open`, which holds the lock and, by its deferral, targets that are to be dropped.
    told: Told,
}

/// Listeners that are to hear when the transaction is over.
struct Told(Vec<Arc<dyn Listener>>);

impl Drop for Told {
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
    /// Given up before the deferral ends: guest writes that the table waits for may run callbacks that want the lock.
    state: ReentrantMutexGuard<'a, State>,
    _deferral: Deferral,
}

impl Transaction<'_> {
    /// Ends the transaction and, if it is the outermost, puts its changes in force.
    /// (`memory_region_transaction_commit`)
    ///
    /// When this returns, guest writes find the doorbells where they should be and nowhere else, and what a listener
    /// has let go of is signalled. The report of an inner transaction is empty.
    pub fn commit(mut self) -> CommitReport {
        self.committed = true;
        self.open.end(&mut self.told)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.committed {
            let _ = self.open.end(&mut self.told);
        }
    }
}

impl Open<'_> {
    fn end(&self, told: &mut Told) -> CommitReport {
        match self.state.depth.get() {
            // Still counted as open, so that changes made by listeners nest.
            1 => self.shared.apply(&self.state, told),
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
