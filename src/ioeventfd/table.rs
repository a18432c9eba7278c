use super::doorbell::{Doorbell, Target};
use super::hints::{Hint, Hints};
use super::lookup::{Access, LookupArrays, Registered};
use super::{BatchError, Bus, DeassignError, DoorbellArray, DoorbellError, Key};
use crate::event::Signallers;
use crate::sync::srcu::{self, Light, Section, Srcu, Writer};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The doorbells of one virtual machine. Clones are handles to the same table.
///
/// Lookups take no lock, write to no memory that another thread writes to, and never wait. Any number of threads may
/// look up at once. A thread that often does, such as a vCPU's, makes itself a [`reader`](Self::reader). (The signal of
/// a doorbell that was found is as any [`signal`](crate::Event::signal_n): it calls observers.)
///
/// Changes copy the table, so one costs time in proportion to the doorbells there are, and
/// [`assign_all`](Self::assign_all), [`deassign_all`](Self::deassign_all) and [`replace`](Self::replace) do many at the
/// price of one. A change holds for all lookups that begin after it. A change that only adds doorbells waits for no
/// other thread. A change that removes doorbells returns when no signal comes through the old ones any more: it waits
/// for the lookups and observers' calls that are under way, of all tables and events. So the caller must not hold a
/// lock that a callback may take.
///
/// A change made inside a callback, in a lookup or an observer's call of the same thread, does not wait; neither does
/// the outermost call when it ends. Lookups that other threads have begun before may still ring the old doorbells until
/// they end, and the targets are dropped after that: see [`reclaim`](crate::reclaim). While the thread has a
/// transaction of an [`AddressSpace`](super::space::AddressSpace) open, changes wait at the end of the transaction.
///
/// ```
/// use doorbell::{Event, ioeventfd::{Bus, Key, Table}};
/// use std::sync::Arc;
///
/// let table = Table::new();
/// let kick = Arc::new(Event::new(0));
/// let registration = table.assign(Key::pio(0xc050, 2), &kick)?;
///
/// // In the vCPU thread, on an exit for `out dx, ax`:
/// assert!(table.write(Bus::Pio, 0xc050, &[1, 0]));
/// assert_eq!(kick.try_read(), Some(1));
/// // A write of another length matches no doorbell, and goes to the device model.
/// assert!(!table.write(Bus::Pio, 0xc050, &[1]));
///
/// drop(registration);
/// assert!(!table.write(Bus::Pio, 0xc050, &[1, 0]));
/// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
/// ```
#[derive(Clone, Default)]
#[doc(alias = "bus")]
#[doc(alias = "ioeventfd")]
pub struct Table {
    inner: Arc<Inner>,
}

struct Inner {
    /// The arrays of the snapshot own the doorbells: each pointer in the current snapshot stands for one count of an
    /// [`Arc`]. A change hands the counts of the doorbells that stay from one snapshot to the next, and turns the
    /// others back into `Arc`s, which are dropped together with the old snapshot.
    buses: Srcu<Buses, Light>,
}

/// In the order of [`Bus`].
type Buses = [LookupArrays; 2];

impl Default for Inner {
    fn default() -> Self {
        Inner {
            buses: Srcu::new(Buses::default()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // No lookup can be under way: this was the last handle.
        for &doorbell in self
            .buses
            .write()
            .read()
            .iter()
            .flat_map(LookupArrays::doorbells)
        {
            // SAFETY: this is the count that the pointer stands for. The snapshot is freed next, and does not use it.
            drop(unsafe { Arc::from_raw(doorbell) });
        }
    }
}

impl Inner {
    #[inline(always)]
    fn ring(
        &self,
        section: &Section<'_, Light>,
        hint: Option<&Hint>,
        signallers: &Signallers,
        bus: Bus,
        address: u64,
        data: &[u8],
    ) -> bool {
        let Some(access) = Access::of(data) else {
            return false;
        };
        let arrays = &self.buses.read(section)[bus as usize];
        match hint {
            // SAFETY: the doorbells live as long as the snapshot.
            Some(hint) => unsafe { arrays.ring(address, access, hint, signallers) },
            // SAFETY: as above.
            None => unsafe { arrays.ring_without_hint(address, access, signallers) },
        }
    }
}

impl Table {
    /// A table without doorbells.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has guest writes that match `key` signal an event, until the registration is dropped or the key deassigned.
    ///
    /// `target` is an [`Event`](crate::Event), by whatever becomes an [`EventHandle`](crate::event::EventHandle): an
    /// `Arc`, a reference to one, a static, or a field of something in an `Arc`, by
    /// [`EventHandle::of_field`](crate::event::EventHandle::of_field)`(&device, |d| &d.kick)`. Or it is an `Arc` of a
    /// [`Latest`](super::Latest) or a [`ValueQueue`](super::ValueQueue), which keep what was written. One target may
    /// stand under any number of keys. When this returns, every write that is looked up from then on finds it.
    /// (`KVM_IOEVENTFD`)
    ///
    /// # Errors
    ///
    /// The key is invalid, or it collides with that of a registered doorbell, also if both have the same target. The
    /// checks come in KVM's order. Nothing was registered.
    #[doc(alias = "KVM_IOEVENTFD")]
    #[doc(alias = "register_ioevent")]
    #[doc(alias = "register")]
    pub fn assign(
        &self,
        key: Key,
        target: impl Into<Target>,
    ) -> Result<Registration, DoorbellError> {
        self.assign_one(Doorbell::new(key, target))
    }

    /// Registers an array of doorbells, with a target for each slot.
    ///
    /// # Errors
    ///
    /// The array is invalid, has another number of targets than of slots, or collides with a registered doorbell.
    pub fn assign_array(
        &self,
        array: DoorbellArray,
        targets: impl IntoIterator<Item = impl Into<Target>>,
    ) -> Result<Registration, DoorbellError> {
        self.assign_one(Doorbell::array(array, targets))
    }

    fn assign_one(&self, doorbell: Doorbell) -> Result<Registration, DoorbellError> {
        let mut registrations = self.assign_all([doorbell]).map_err(|batch| batch.error)?;
        match registrations.pop() {
            Some(registration) => Ok(registration),
            None => unreachable!("one doorbell makes one registration"),
        }
    }

    /// Registers many doorbells at the price of one, or none of them. A lookup finds all or none.
    ///
    /// Returns the registrations in the order of the doorbells.
    ///
    /// # Errors
    ///
    /// One of the doorbells is invalid, or collides with a registered one or with another of the batch.
    pub fn assign_all(
        &self,
        doorbells: impl IntoIterator<Item = Doorbell>,
    ) -> Result<Vec<Registration>, BatchError<DoorbellError>> {
        let mut registrations = Vec::new();
        self.replace(&mut registrations, doorbells)?;
        Ok(registrations)
    }

    /// Puts `doorbells` in the index of `registrations`, in one step: a lookup finds all of the old and none of the
    /// new, or the other way round. So a device's doorbells can move, and no write at an address that both have is lost
    /// or signalled twice.
    ///
    /// Registrations whose doorbells were deassigned already count for nothing. If a doorbell goes, this waits for
    /// callbacks: there are [locks](crate::guide::locks) that the caller must not hold.
    ///
    /// # Errors
    ///
    /// One of the doorbells is invalid, or collides with one that would stay or with another of the batch. Then nothing
    /// was changed, in the table or in `registrations`.
    pub fn replace(
        &self,
        registrations: &mut Vec<Registration>,
        doorbells: impl IntoIterator<Item = Doorbell>,
    ) -> Result<(), BatchError<DoorbellError>> {
        let doorbells = doorbells.into_iter();
        let mut additions = Vec::with_capacity(doorbells.size_hint().0);
        for (index, doorbell) in doorbells.enumerate() {
            doorbell
                .validate()
                .map_err(|error| BatchError { index, error })?;
            additions.push(Arc::new(Registered::new(doorbell)));
        }
        let writer = self.inner.buses.write();
        let removals = {
            let buses = writer.read();
            registrations
                .iter()
                .filter_map(|old| old.find(&buses))
                .collect()
        };
        change(writer, removals, &additions)?;
        // The old registrations have nothing left to deassign: their drops do nothing.
        let new = additions.into_iter().map(|registered| Registration {
            table: Some(self.clone()),
            registered,
        });
        drop(std::mem::replace(registrations, new.collect()));
        Ok(())
    }

    /// Ends what [`assign`](Self::assign) of the same key and target began.
    ///
    /// When this returns, no signal comes through the entry any more (but see [`Table`] about calls from inside a
    /// lookup); what it has signalled stays in the event. (`KVM_IOEVENTFD_FLAG_DEASSIGN`)
    ///
    /// Waits for callbacks, so there are [locks](crate::guide::locks) that the caller must not hold.
    ///
    /// # Errors
    ///
    /// No doorbell has this key with this target.
    #[doc(alias = "unregister")]
    pub fn deassign(&self, key: Key, target: impl Into<Target>) -> Result<(), DeassignError> {
        self.deassign_all([Doorbell::new(key, target)])
            .map_err(|batch| batch.error)
    }

    /// Deassigns many doorbells at the price of one, or none of them, and waits as [`deassign`](Self::deassign) does.
    ///
    /// # Errors
    ///
    /// One of them is not registered with these targets, or stands in the batch twice.
    pub fn deassign_all(
        &self,
        doorbells: impl IntoIterator<Item = Doorbell>,
    ) -> Result<(), BatchError<DeassignError>> {
        // Collected before the lock is taken, since the iterator may run any code of the caller's.
        let doorbells: Vec<Doorbell> = doorbells.into_iter().collect();
        let writer = self.inner.buses.write();
        let mut removals = Removals::new();
        for (index, doorbell) in doorbells.iter().enumerate() {
            // SAFETY: the doorbells of the current snapshot live.
            let registered_at = find(&writer.read(), doorbell, |registered| unsafe {
                (*registered).doorbell.is(doorbell)
            });
            match registered_at {
                Some(found) if removals.insert(found) => {}
                _ => {
                    return Err(BatchError {
                        index,
                        error: DeassignError,
                    });
                }
            }
        }
        match change(writer, removals, &[]) {
            Ok(()) => Ok(()),
            Err(_) => unreachable!("what is removed collides with nothing"),
        }
    }

    /// Offers the table a guest's write of `data`, in the byte order of the host, at `address`.
    ///
    /// Rings the doorbell that the write matches, and returns whether there was one (and, if it is a
    /// [`ValueQueue`](super::ValueQueue), whether the queue had room). If not, the write is for the caller's device
    /// models. Writes of other than 1, 2, 4 or 8 bytes match wildcard lengths only. A write of no bytes, which no guest
    /// can make, matches nothing.
    #[must_use = "a write that no doorbell took is for the device models"]
    #[inline]
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        srcu::with_light_section(|section| {
            let signallers = Signallers::none();
            self.inner
                .ring(section, None, &signallers, bus, address, data)
        })
    }

    /// Makes a handle that looks up faster, for one thread at a time.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader {
            table: self.clone(),
            sections: srcu::Reader::new(),
            hints: Hints::default(),
            signallers: Signallers::none(),
        }
    }

    /// What is registered now, in the order of bus and address.
    ///
    /// [`save`](Self::save) has the same as plain data. A monitor can show what is pending:
    ///
    /// ```
    /// # use doorbell::{Event, ioeventfd::{Key, Table}};
    /// # use std::sync::Arc;
    /// # let table = Table::new();
    /// # table.assign(Key::mmio(0xd000_0050, 4), Arc::new(Event::new(3)))?.keep();
    /// for doorbell in table.doorbells() {
    ///     let pending: Vec<u64> = doorbell.targets().iter().map(|t| t.event().count()).collect();
    ///     println!("{:?} {:#x}: {pending:?}", doorbell.bus(), doorbell.address());
    /// }
    /// # assert_eq!(table.doorbells()[0].targets()[0].event().count(), 3);
    /// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
    /// ```
    #[must_use]
    pub fn doorbells(&self) -> Vec<Doorbell> {
        let writer = self.inner.buses.write();
        let buses = writer.read();
        let registered = buses.iter().flat_map(LookupArrays::doorbells);
        registered
            // SAFETY: the doorbells of the current snapshot live.
            .map(|&registered| unsafe { (*registered).doorbell.clone() })
            .collect()
    }
}

/// Doorbells that leave the table, each by its bus and its index there.
type Removals = BTreeSet<(usize, usize)>;

/// The bus and index of the registered doorbell with the same sort key, if `is` says that it is the one meant.
fn find(
    buses: &Buses,
    doorbell: &Doorbell,
    is: impl FnOnce(*const Registered) -> bool,
) -> Option<(usize, usize)> {
    let bus = doorbell.bus() as usize;
    let index = buses[bus].insertion_index(&doorbell.address_key());
    let registered = *buses[bus].doorbells().get(index)?;
    is(registered).then_some((bus, index))
}

/// Publishes a snapshot without `removals` and with `additions`. If there are removals, it waits until no lookup uses
/// the old snapshot.
fn change(
    writer: Writer<'_, Buses, Light>,
    removals: Removals,
    additions: &[Arc<Registered>],
) -> Result<(), BatchError<DoorbellError>> {
    if removals.is_empty() && additions.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<(usize, &Arc<Registered>)> = additions.iter().enumerate().collect();
    sorted.sort_by_key(|(_, new)| (new.doorbell.bus(), new.doorbell.address_key()));
    let (mmio, pio) =
        sorted.split_at(sorted.partition_point(|(_, new)| new.doorbell.bus() == Bus::Mmio));
    let (buses, leaving) = {
        let old = writer.read();
        let edited = |bus: Bus, additions: &[_]| {
            let indices = removals.range((bus as usize, 0)..=(bus as usize, usize::MAX));
            let indices: Vec<usize> = indices.map(|&(_, index)| index).collect();
            // SAFETY: the doorbells of the current snapshot live.
            unsafe { old[bus as usize].edited(&indices, additions) }.map_err(|index| BatchError {
                index,
                error: DoorbellError::Collision,
            })
        };
        let buses = [edited(Bus::Mmio, mmio)?, edited(Bus::Pio, pio)?];
        let leaving = removals.iter().map(|&(bus, index)| {
            // SAFETY: this takes over the count of a pointer that the new snapshot does not have. See `Inner`.
            unsafe { Arc::from_raw(old[bus].doorbells()[index]) }
        });
        (buses, leaving.collect::<Vec<_>>())
    };
    for new in additions {
        // The counts that the new snapshot's pointers to the new doorbells stand for.
        let _ = Arc::into_raw(Arc::clone(new));
    }
    if leaving.is_empty() {
        writer.publish_without_waiting(buses);
    } else {
        writer.publish(buses, leaving);
    }
    Ok(())
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.doorbells()).finish()
    }
}

/// Looks up for one thread at a time, faster than the [`Table`] itself. It need not find out which thread calls, and it
/// remembers, for some hundred addresses, where in the table the search for each has ended. That takes 4 KiB.
///
/// It may move from thread to thread between lookups. It keeps the table alive.
///
/// ```
/// # use doorbell::{Event, ioeventfd::{Bus, Key, Table}};
/// # use std::{sync::Arc, thread};
/// # let table = Table::new();
/// # let kick = Arc::new(Event::new(0));
/// # let _registration = table.assign(Key::mmio(0xd000_0050, 4), &kick)?;
/// let doorbells = table.reader();
/// let vcpu = thread::spawn(move || {
///     // On a KVM_EXIT_MMIO:
///     doorbells.write(Bus::Mmio, 0xd000_0050, &[0, 0, 0, 0])
/// });
/// assert!(vcpu.join().unwrap());
/// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
/// ```
pub struct Reader {
    table: Table,
    sections: srcu::Reader,
    hints: Hints,
    signallers: Signallers,
}

impl Reader {
    /// As [`Table::write`].
    #[must_use = "a write that no doorbell took is for the device models"]
    #[inline]
    pub fn write(&self, bus: Bus, address: u64, data: &[u8]) -> bool {
        // Before the section begins: the section's fence delays the loads that come after it.
        let hint = self.hints.of(address);
        let section = self.sections.enter_light();
        self.table
            .inner
            .ring(&section, Some(hint), &self.signallers, bus, address, data)
    }

    /// The same reader, which rings doorbells by [`Signaller`](crate::event::Signaller)s of its own, and so without a
    /// locked instruction. It makes a signaller for the event of each of the first `doorbells` doorbells that it rings.
    /// Other doorbells are rung the usual way. So are all if signallers cannot have lanes, most often because
    /// [`use_membarrier`](crate::use_membarrier) was not called.
    ///
    /// It suits doorbells whose devices poll or are busy, on a processor whose locked instructions are slow. A device
    /// that sleeps after each kick loses more than the vCPU saves, and interrupts the vCPUs when it falls asleep: see
    /// `Signaller`. Finding the signaller takes time too: on an AMD EPYC (Zen 4), where a locked instruction takes 2
    /// ns, a hit among 64 doorbells takes 1.2 to 1.5 times as long as without signallers, if no other CPU reads the
    /// counts. The report (`cargo run --release --example report`) shows what it is on a machine.
    ///
    /// This call allocates up to 96 bytes for each of `doorbells`, of which at most 65,536 count. The first ring of an
    /// event allocates 256 bytes for a lane, which the event keeps for later signallers, and up to 1 KB in all if it is
    /// the event's first signaller. Events of doorbells that have left the table are not kept alive.
    ///
    /// A lookup waits for no other thread, as without signallers. While another thread makes the first signaller of an
    /// event, the event is rung the usual way.
    ///
    /// ```
    /// use doorbell::{Event, ioeventfd::{Bus, Key, Table}};
    /// use std::sync::Arc;
    ///
    /// let _ = doorbell::use_membarrier(); // first thing in main
    ///
    /// let table = Table::new();
    /// let kick = Arc::new(Event::new(0));
    /// let _registration = table.assign(Key::mmio(0xd000_0050, 4), &kick)?;
    /// let doorbells = table.reader().with_signallers(64);
    /// assert!(doorbells.write(Bus::Mmio, 0xd000_0050, &[0, 0, 0, 0]));
    /// assert_eq!(kick.try_read(), Some(1));
    /// # Ok::<(), doorbell::ioeventfd::DoorbellError>(())
    /// ```
    #[must_use = "the reader that it was is gone"]
    pub fn with_signallers(mut self, doorbells: usize) -> Self {
        self.signallers = Signallers::new(doorbells);
        self
    }

    /// The table that it looks up in.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reader").field(&self.table).finish()
    }
}

/// A doorbell that is in a [`Table`] until this is dropped. The drop waits as [`Table::deassign`] does. (Keep it under
/// a name such as `_doorbell`: what is assigned to `_` is dropped at once.)
///
/// The doorbell may be deassigned by key before that. The drop then does nothing, even if the key has been assigned
/// again.
#[must_use = "the doorbell is deassigned when its registration is dropped"]
pub struct Registration {
    /// `None` if the drop is to do nothing.
    table: Option<Table>,
    registered: Arc<Registered>,
}

impl Registration {
    /// The doorbell that was registered.
    #[must_use]
    pub fn doorbell(&self) -> &Doorbell {
        &self.registered.doorbell
    }

    /// Leaves the doorbell in the table without a guard, to be removed by [`Table::deassign`].
    pub fn keep(mut self) {
        self.table = None;
    }

    fn find(&self, buses: &Buses) -> Option<(usize, usize)> {
        find(buses, self.doorbell(), |registered| {
            std::ptr::eq(registered, &*self.registered)
        })
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registration")
            .field(self.doorbell())
            .finish()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(table) = self.table.take() else {
            return;
        };
        let writer = table.inner.buses.write();
        let removals = self.find(&writer.read()).into_iter().collect();
        match change(writer, removals, &[]) {
            Ok(()) => {}
            Err(_) => unreachable!("what is removed collides with nothing"),
        }
    }
}
