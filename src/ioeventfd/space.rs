//! The address space above the table: regions that carry doorbells, and listeners that take them over.
//!
//! A device does not know where the guest will put its registers. It hangs its doorbells on a [`Region`], at offsets;
//! the guest's firmware maps the region, moves it, switches it off and on; and the [`AddressSpace`] works out which
//! doorbells stand at which guest addresses, and tells those who can take guest writes earlier than the VMM does: its
//! [`Listener`]s, KVM above all. QEMU's counterparts are `memory_region_add_eventfd`,
//! `memory_region_transaction_commit` and `MemoryListener` (`system/memory.c`).
//!
//! ```text
//!     Region (BAR 4 at 0xe000_0000)      in force, absolute, sorted         Listener (KVM)        the table
//!       +0x3000  ──▶ queue 0      ──▶   Mmio 0xe000_3000 ──▶ queue 0   ──▶   KVM_IOEVENTFD   and   serves what
//!       +0x3004  ──▶ queue 1            Mmio 0xe000_3004 ──▶ queue 1         what it takes         comes to userspace
//! ```
//!
//! # A commit
//!
//! All changes are made in transactions; a change outside of one is a transaction of its own. The outermost
//! [`commit`](Transaction::commit) compares what is in force with what should be, in one walk over two sorted lists,
//! and then, with the doorbells that are in both left alone:
//!
//! 1. the listeners let go of what has gone, the one with the highest priority first;
//! 2. the table is brought up to date;
//! 3. the listeners take what is new, the one with the lowest priority first;
//! 4. other threads may change the address space again, and the commit waits for guest writes that were looked up
//!    before.
//!
//! The table has every doorbell in force, whoever else has it. So a guest write is served by the listener or, where
//! that has not got the doorbell yet, has let go of it, or never took it, exits to the VMM and is served by the table:
//! one of the two, and never both. The table changes in one step: a doorbell that moves, or is exchanged for another at
//! its own address, is there at every moment, once. A listener that refuses a doorbell costs speed and nothing else,
//! and the [`CommitReport`] says so.
//!
//! # Regions that overlap
//!
//! Guests can map regions over each other, so that is no error. Each address belongs to the region with the highest
//! priority there, or among equals the one mapped last. A doorbell is in force if its first address belongs to its
//! region; an array of doorbells, if all its addresses do. This is QEMU's rule, except that QEMU has no arrays, and also
//! keeps a doorbell that has only its tail in sight, which no guest write could tell from the registers in front of it.
//! Doorbells of two regions thus never collide, and doorbells of one region are checked when they are added.
//!
//! # From DRIVER_OK to the kick, and back
//!
//! | what a virtio device does | in QEMU | here |
//! |---|---|---|
//! | the region is made, with its callbacks | `memory_region_init_io` | [`AddressSpace::region`]; the callbacks are the VMM's own |
//! | the guest programs the BAR | `memory_region_add_subregion`, `memory_region_set_enabled` | [`Region::map`], [`Region::set_enabled`] |
//! | DRIVER_OK is written: an event for each queue | `event_notifier_init` | [`Event::new`](crate::Event::new) |
//! | each is added to the notify region | `memory_region_add_eventfd` | [`Region::add_eventfd`] |
//! | all at once | `memory_region_transaction_begin`, `…_commit` | [`AddressSpace::begin`], [`Transaction::commit`] |
//! | the accelerator takes them | `kvm_mem_ioeventfd_add` | [`Listener::eventfd_add`]; `kvm::KvmListener` |
//! | a write the accelerator did not take | `memory_region_dispatch_write_eventfds` | [`AddressSpace::write`], then the device's callback |
//! | the I/O thread wakes | `event_notifier_test_and_clear` | [`Event::read`](crate::Event::read) |
//! | reset: the doorbells go | `memory_region_del_eventfd` | [`Region::del_eventfd`] |
//! | the notifier is read once more | `virtio_queue_host_notifier_read` | [`Event::try_read`](crate::Event::try_read) |
//!
//! ```
//! use doorbell::{Event, ioeventfd::Bus, ioeventfd::space::AddressSpace};
//! use std::sync::Arc;
//!
//! // The machine is built. With KVM, `space.add_listener(…)` belongs here.
//! let space = AddressSpace::new();
//! let bar = space.region(Bus::Mmio, 0x4000);
//!
//! // The guest programs the BAR and switches memory decoding on.
//! bar.map(0xe000_0000)?;
//!
//! // It writes DRIVER_OK. Both queues' doorbells come up together.
//! let queues = [0, 1].map(|_| Arc::new(Event::new(0)));
//! let transaction = space.begin();
//! for (offset, queue) in [0x3000, 0x3004].into_iter().zip(&queues) {
//!     // What it reports is empty, as the transaction around it is not over.
//!     bar.add_eventfd(offset, 0, None, queue)?;
//! }
//! let report = transaction.commit();
//! for refusal in &report.refusals {
//!     eprintln!("slower than it could be: {refusal}");
//! }
//!
//! // It kicks queue 1, and the write exits to the VMM.
//! assert!(space.write(Bus::Mmio, 0xe000_3004, &[1, 0]));
//! assert_eq!(queues[1].read(), 1);
//!
//! // It moves the BAR. The doorbells go with it.
//! bar.map(0xe800_0000)?;
//! assert!(!space.write(Bus::Mmio, 0xe000_3000, &[0, 0])); // for the device models
//! assert!(space.write(Bus::Mmio, 0xe800_3000, &[0, 0]));
//!
//! // It resets the device. A kick that came before the doorbell went is still there.
//! let transaction = space.begin();
//! for (offset, queue) in [0x3000, 0x3004].into_iter().zip(&queues) {
//!     bar.del_eventfd(offset, 0, None, queue)?;
//! }
//! transaction.commit();
//! assert_eq!(queues[0].try_read(), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc = include_str!("space/occupied.md")]

mod error;
mod flat;
mod listener;

pub use error::{AddError, MapError};
pub use listener::{CommitReport, Listener, ListenerCall, Refusal, RefusalError};

use super::doorbell::Spot;
use super::{Bus, DeassignError, Doorbell, Key, Registration, Table, Target};
use crate::panics::{Payload, catch, go_on_unless_panicking};
use crate::sync::srcu::Deferral;
use flat::{Difference, Placed, difference, flatten};
use listener::Listeners;
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::thread;

/// The guest addresses of one virtual machine, with the doorbells that stand there. Clones are handles to the same.
///
/// The [module's page](self) shows it at work.
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
struct Map {
    regions: BTreeMap<RegionId, Placed>,
    listeners: Listeners,
    /// What the table has, in the order of places.
    in_force: Vec<Doorbell>,
    registrations: BTreeMap<(Bus, Spot), Registration>,
    /// How many regions there have been.
    made: u64,
    /// How often a region has been mapped.
    mapped: u64,
}

type RegionId = u64;

impl AddressSpace {
    /// Without regions and listeners.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a region of `size` addresses: enabled, not mapped yet, with priority 0.
    pub fn region(&self, bus: Bus, size: u64) -> Region {
        self.region_with_priority(bus, size, 0)
    }

    /// Makes a region that hides those of lower priority where they overlap, whichever was mapped last.
    pub fn region_with_priority(&self, bus: Bus, size: u64, priority: i32) -> Region {
        let state = self.shared.state.lock();
        let mut map = state.map.borrow_mut();
        let id = map.made;
        map.made += 1;
        map.regions.insert(id, Placed::new(bus, size, priority));
        Region {
            space: self.clone(),
            id,
        }
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
        let listeners = self.shared.state.lock().map.borrow().listeners.all();
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
    pub fn doorbells(&self) -> Vec<Doorbell> {
        self.shared.state.lock().map.borrow().in_force.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Map)) -> CommitReport {
        let Ok(report) = self.try_change(|map| {
            change(map);
            Ok::<_, Infallible>(())
        });
        report
    }

    /// A transaction of one change, which is made as a whole or fails as a whole.
    fn try_change<E>(
        &self,
        change: impl FnOnce(&mut Map) -> Result<(), E>,
    ) -> Result<CommitReport, E> {
        let transaction = self.begin();
        let state = &transaction.open.state;
        change(&mut state.map.borrow_mut())?;
        state.changed.set(true);
        Ok(transaction.commit())
    }
}

impl Map {
    fn region(&mut self, id: RegionId) -> &mut Placed {
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
                .filter_map(|doorbell| map.registrations.remove(&doorbell.place()))
                .collect()
        };
        self.table
            .replace(&mut registrations, added.iter().cloned())
            .expect("no two doorbells in force collide");
        let places = added.iter().map(Doorbell::place);
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

/// A range of guest addresses with doorbells at offsets: a BAR, a block of device registers, a set of ports.
///
/// It is removed from its [`AddressSpace`] when it is dropped. Each change is a transaction, or part of one that the
/// thread has open, and returns what that transaction's commit reported.
pub struct Region {
    space: AddressSpace,
    id: RegionId,
}

impl Region {
    /// Maps the region at `base`, wherever it was before: its doorbells go along. (`memory_region_set_address`)
    ///
    /// It becomes the last mapped of its priority, unless it is at `base` already.
    ///
    /// # Errors
    ///
    /// The region would reach the end of the 64-bit addresses or, if it is one of ports, go beyond port 0xffff, the
    /// last that there is; nothing was changed. A guest that finds out a BAR's size
    /// by writing all ones to it brings this about, and a BAR with such a value counts as not mapped.
    pub fn map(&self, base: u64) -> Result<CommitReport, MapError> {
        self.space.try_change(|map| {
            let now = map.mapped + 1;
            let region = map.region(self.id);
            region.end_at(base).ok_or(MapError)?;
            if region.base != Some(base) {
                region.base = Some(base);
                region.mapped = now;
                map.mapped = now;
            }
            Ok(())
        })
    }

    /// Takes the region out of the guest's sight. It keeps its doorbells. (`memory_region_del_subregion`)
    pub fn unmap(&self) -> CommitReport {
        self.change(|region| region.base = None)
    }

    /// Switches the region off or on, wherever it is mapped: a PCI command register's memory or I/O bit.
    /// (`memory_region_set_enabled`)
    pub fn set_enabled(&self, enabled: bool) -> CommitReport {
        self.change(|region| region.enabled = enabled)
    }

    /// Has guest writes at `offset`, of `length` bytes or any if that is 0, of the value `datamatch` or any if that is
    /// `None`, signal `event`. One event may stand at any number of places. (`memory_region_add_eventfd`)
    ///
    /// This is [`add`](Self::add) in QEMU's words. `event` may be a target that keeps what was written as well.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_eventfd(
        &self,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        event: impl Into<Target>,
    ) -> Result<CommitReport, AddError> {
        let target = event.into();
        self.space.try_change(|map| {
            let region = map.region(self.id);
            region.add(single(region.bus, offset, length, datamatch, target))
        })
    }

    /// Ends what [`add_eventfd`](Self::add_eventfd) with the same arguments began. (`memory_region_del_eventfd`)
    ///
    /// What has been signalled stays in the event: read it once more after the commit, and no kick is lost.
    ///
    /// # Errors
    ///
    /// The region has no such doorbell.
    pub fn del_eventfd(
        &self,
        offset: u64,
        length: u32,
        datamatch: Option<u64>,
        event: impl Into<Target>,
    ) -> Result<CommitReport, DeassignError> {
        let target = event.into();
        self.space.try_change(|map| {
            let region = map.region(self.id);
            region.del(&single(region.bus, offset, length, datamatch, target))
        })
    }

    /// Hangs any doorbell that a [`Table`] can hold on the region, an array or one that keeps what was written too. Its
    /// address is the offset in the region, and where the region goes, it goes.
    ///
    /// A listener that has no means for such a doorbell refuses it, which the report of the outermost commit says; the
    /// table serves it then. An array stands as a whole or not at all: it is in force while all its addresses belong to
    /// the region.
    ///
    /// ```
    /// use doorbell::ioeventfd::{Bus, Doorbell, Key, Latest, DoorbellArray, space::AddressSpace};
    /// use doorbell::Event;
    /// use std::sync::Arc;
    ///
    /// let space = AddressSpace::new();
    /// let bar = space.region(Bus::Mmio, 0x4000);
    /// bar.map(0xe000_0000)?;
    ///
    /// // virtio-pci: 64 queues, `notify_off_multiplier` = 4. Here one thread serves them all.
    /// let kick = Arc::new(Event::new(0));
    /// bar.add(Doorbell::array(DoorbellArray::mmio(0x3000, 4, 64), [&kick; 64]))?;
    /// // NVMe: the tail of submission queue 0.
    /// let tail = Arc::new(Latest::new(&kick, 0));
    /// bar.add(Doorbell::new(Key::mmio(0x1000, 4), &tail))?;
    ///
    /// bar.map(0xe800_0000)?;
    /// assert!(space.write(Bus::Mmio, 0xe800_30fc, &[63, 0]));
    /// assert!(space.write(Bus::Mmio, 0xe800_1000, &9_u32.to_ne_bytes()));
    /// assert_eq!((kick.read(), tail.value()), (2, 9));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing was added: the doorbell is not inside the region, not valid, or collides with another of this region by
    /// the table's rules.
    pub fn add(&self, doorbell: Doorbell) -> Result<CommitReport, AddError> {
        self.space
            .try_change(|map| map.region(self.id).add(doorbell))
    }

    /// Ends what [`add`](Self::add) of an equal doorbell began.
    ///
    /// # Errors
    ///
    /// The region has no such doorbell.
    pub fn del(&self, doorbell: &Doorbell) -> Result<CommitReport, DeassignError> {
        self.space
            .try_change(|map| map.region(self.id).del(doorbell))
    }

    /// Removes the region, as dropping it does, and says what the listeners had to say.
    pub fn remove(self) -> CommitReport {
        let space = self.space.clone();
        let transaction = space.begin();
        drop(self);
        transaction.commit()
    }

    /// Which kind of address it has.
    pub fn bus(&self) -> Bus {
        self.look(|region| region.bus)
    }

    /// How many addresses it covers.
    pub fn size(&self) -> u64 {
        self.look(|region| region.size)
    }

    /// Where regions overlap, the highest priority wins.
    pub fn priority(&self) -> i32 {
        self.look(|region| region.priority)
    }

    /// Where it is mapped, enabled or not. An open transaction's changes count.
    pub fn base(&self) -> Option<u64> {
        self.look(|region| region.base)
    }

    /// Whether it is enabled, mapped or not. An open transaction's changes count.
    pub fn is_enabled(&self) -> bool {
        self.look(|region| region.enabled)
    }

    /// Its doorbells, in force or not, sorted, with their offsets as addresses. An open transaction's changes count.
    pub fn doorbells(&self) -> Vec<Doorbell> {
        self.look(|region| region.doorbells.clone())
    }

    fn look<R>(&self, look: impl FnOnce(&Placed) -> R) -> R {
        let state = self.space.shared.state.lock();
        look(&state.map.borrow().regions[&self.id])
    }

    fn change(&self, change: impl FnOnce(&mut Placed)) -> CommitReport {
        self.space.change(|map| change(map.region(self.id)))
    }
}

fn single(bus: Bus, offset: u64, length: u32, datamatch: Option<u64>, target: Target) -> Doorbell {
    let mut key = Key::new(bus, offset, length);
    key.datamatch = datamatch;
    Doorbell::new(key, target)
}

impl Drop for Region {
    fn drop(&mut self) {
        let _ = self.space.change(|map| {
            map.regions.remove(&self.id);
        });
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.look(|region| fmt::Debug::fmt(region, f))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
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
