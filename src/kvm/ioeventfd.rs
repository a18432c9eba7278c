use super::ioctl::Vm;
use super::occupied::{Occupied, check_vacant};
use super::{Error, Unsupported};
use crate::event::{EventHandle, WeakEventHandle, transfer};
use crate::ioeventfd::space::{Listener, RefusalError};
use crate::ioeventfd::{Bus, Doorbell, Key, Target};
use crate::panics::{catch, go_on_unless_panicking};
use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lets KVM take guest writes to doorbells, so that they do not exit to the VMM.
///
/// The kernel can add to eventfds only. So each [`Event`](crate::Event) gets an eventfd, its [`KernelCount`]. Kicks
/// that KVM takes are in the eventfd, and kicks that the table takes are in the event. Nothing is lost between the two:
/// when a doorbell leaves KVM, the count of its eventfd moves to the event.
///
/// An [array](crate::ioeventfd::DoorbellArray) of events becomes an ioeventfd for each slot. A target that keeps what
/// was written is refused with [`Unsupported`], since KVM has no means for it, and so is an array with such a target,
/// as a whole. The table serves it. A doorbell inside a device that KVM emulates is refused with [`Occupied`], and
/// nothing serves it ([`Refusal::is_unreachable`](crate::ioeventfd::space::Refusal::is_unreachable)). The [module's
/// page](super#where-something-else-takes-the-writes) has a table of what else may take the guest's writes. What the
/// kernel refuses is an [`Error`], and the table serves the doorbell. Each of the three can be found in
/// [`Refusal::error`](crate::ioeventfd::space::Refusal::error) by `downcast_ref`.
///
/// When the listener is dropped, it takes all its doorbells out of KVM. Until then it keeps the VM alive. The eventfd
/// of an event stays the same as long as the event lives. After that it is closed when a transaction ends that took
/// doorbells from KVM, when another event gets its eventfd, or when descriptors run out.
///
/// # System calls
///
/// For a seccomp filter, beside those of the address space, each on the thread that makes the call in the first column:
///
/// | what | calls |
/// |---|---|
/// | [`new`](Self::new) | `fcntl(F_DUPFD_CLOEXEC)`; `getrandom`, if it is the thread's first hash map |
/// | the first [`count_of`](Self::count_of), or the first doorbell, of an event | `eventfd2`; `close` of those of events that have gone |
/// | a doorbell comes into force | `ioctl` (`KVM_IOEVENTFD`; `KVM_GET_IRQCHIP` or `KVM_GET_PIT2` where a device of KVM's may be) |
/// | a doorbell is taken out of force | `ioctl` (`KVM_IOEVENTFD`), `read` |
/// | a transaction ends | `close` of those of events that have gone |
/// | [`AddressSpace::drain`](crate::ioeventfd::space::AddressSpace::drain), [`KernelCount::drain`] | `read` |
///
/// All but `new` take locks (`futex`: `FUTEX_WAIT`, `FUTEX_WAIT_BITSET`, `FUTEX_WAKE`, private; `sched_yield`), and
/// those that `read` wake the threads that sleep for the event.
/// Where the standard library is built with debug assertions, it calls `fcntl(F_GETFD)` before `close`.
///
/// # Waiting
///
/// A device thread waits for both parts of a count: the event, and its [`KernelCount`]. A
/// [`Poller`](crate::poll::Poller) watches both, as in the example below, or has the kernel's part bound to the event
/// under one key ([`Poller::add_bound`](crate::poll::Poller::add_bound)). A thread that waits for the eventfd alone
/// misses the kicks that the table takes: in the moment in which a doorbell moves, where KVM refused the doorbell,
/// where KVM's search overlooks it because doorbells of several lengths overlap, or if the guest makes stores of 16
/// bytes and the doorbell is in the second half, which KVM does not look at.
///
/// ```no_run
/// use doorbell::ioeventfd::{Bus, space::AddressSpace};
/// use doorbell::poll::{Events, Poller, Watch};
/// use doorbell::{Event, kvm::KvmListener};
/// use std::os::fd::{AsRawFd, BorrowedFd};
/// use std::sync::Arc;
///
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// // SAFETY: `vm` keeps its descriptor open. (`VmFd` has no `AsFd` as of kvm-ioctls 0.25.)
/// let vm_fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
/// let kvm = Arc::new(KvmListener::new(vm_fd)?);
/// let space = AddressSpace::new();
/// space.add_listener(&kvm);
///
/// let bar = space.region(Bus::Mmio, 0x1000);
/// bar.map(0xe000_0000)?;
/// let queue = Arc::new(Event::new(0));
/// let report = bar.add_eventfd(0x40, 2, None, &queue)?;
/// for refusal in &report.refusals {
///     eprintln!("its kicks will exit to the VMM: {refusal}");
/// }
/// assert_eq!(report.unreachable().count(), 0, "no device of KVM's is there");
///
/// // The device thread.
/// const QUEUE: usize = 0;
/// const IN_KERNEL: usize = 1;
/// let in_kernel = kvm.count_of(&queue)?;
/// let poller = Poller::new();
/// poller.add(&queue, QUEUE, Watch::READABLE)?;
/// poller.add_fd(&in_kernel, IN_KERNEL, Watch::READABLE)?;
/// let mut events = Events::with_capacity(8);
/// loop {
///     poller.wait(&mut events, None)?;
///     in_kernel.drain();
///     if let Some(kicks) = queue.try_read() {
///         println!("kicked {kicks} times");
///     }
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "KVM_IOEVENTFD")]
pub struct KvmListener {
    vm: Vm,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The eventfds, by the address of the event. An eventfd stays as long as its event, so that a thread that waits
    /// for it is not concerned when the doorbell moves. [`sweep`](Self::sweep) closes those of events that have gone.
    counts: HashMap<usize, (WeakEventHandle, Arc<OwnedFd>)>,
    /// The ioeventfds that KVM has.
    registered: BTreeMap<Key, KernelCount>,
}

impl KvmListener {
    /// For a VM, whose file descriptor is duplicated: of any crate's type that is [`AsFd`], or a [`BorrowedFd`].
    ///
    /// `kvm_ioctls::VmFd` is not `AsFd` as of version 0.25; the [example](Self#waiting) shows how to borrow its
    /// descriptor.
    ///
    /// # Errors
    ///
    /// There is no descriptor left (`EMFILE`, `ENFILE`). Whether the descriptor is a VM's shows with the first
    /// doorbell, which is refused with `ENOTTY` if it is not.
    pub fn new(vm: impl AsFd) -> Result<Self, Error> {
        Ok(KvmListener {
            vm: Vm::new(vm)?,
            state: Mutex::default(),
        })
    }

    /// The part of `event`'s count that is in the kernel. It is the same as long as the event lives, whether KVM has a
    /// doorbell of the event at the moment or not.
    ///
    /// # Errors
    ///
    /// It is the first time, and there is no descriptor left (`EMFILE`, `ENFILE`), not even after those of events that
    /// have gone were closed.
    pub fn count_of(&self, event: impl Into<EventHandle>) -> Result<KernelCount, Error> {
        self.lock().count_of(&event.into())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at every point where a holder of the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(&self, key: &Key, count: &KernelCount) -> Result<(), Error> {
        self.ioctl(key, count, 0)
    }

    /// When this returns, no vCPU adds to the eventfd any more. A drain that follows gets all kicks that no other drain
    /// has moved to the event.
    fn deassign(&self, key: &Key, count: &KernelCount) -> Result<(), Error> {
        self.ioctl(key, count, 1 << kvm_ioeventfd_flag_nr_deassign)
    }

    fn register(&self, key: Key, event: &EventHandle) -> Result<(), Error> {
        let mut state = self.lock();
        let count = state.count_of(event)?;
        self.assign(&key, &count)?;
        state.registered.insert(key, count);
        Ok(())
    }

    /// Deassigns what is registered under the keys, and then drains. Draining calls observers, so the lock is not held.
    fn release<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Result<(), Error> {
        let mut released = Ok(());
        let mut counts = Vec::new();
        for key in keys {
            let registered = self.lock().registered.remove(key);
            if let Some(count) = registered {
                released = released.and(self.deassign(key, &count));
                counts.push(count);
            }
        }
        drain_all(&counts);
        released
    }

    fn ioctl(&self, key: &Key, count: &KernelCount, mut flags: u32) -> Result<(), Error> {
        if key.bus == Bus::Pio {
            flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        if key.datamatch.is_some() {
            flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
        }
        let argument = kvm_ioeventfd {
            datamatch: key.datamatch.unwrap_or(0),
            addr: key.address,
            len: key.length,
            fd: count.fd.as_raw_fd(),
            flags,
            ..Default::default()
        };
        self.vm.ioeventfd(argument).map_err(|source| Error {
            call: "KVM_IOEVENTFD",
            source,
        })
    }
}

impl State {
    /// The eventfds of the events that there are.
    fn living(&self) -> impl Iterator<Item = KernelCount> {
        self.counts.values().filter_map(|(event, fd)| {
            Some(KernelCount {
                event: event.upgrade()?,
                fd: Arc::clone(fd),
            })
        })
    }

    /// Closes the eventfds of events that have gone. Returns whether there were any.
    fn sweep(&mut self) -> bool {
        let before = self.counts.len();
        self.counts.retain(|_, (event, _)| !event.is_gone());
        self.counts.len() != before
    }

    fn count_of(&mut self, event: &EventHandle) -> Result<KernelCount, Error> {
        let address = ptr::from_ref(&**event).addr();
        let fd = match self.counts.get(&address) {
            // It cannot be of an older event at this address: the weak handle keeps the memory from being reused.
            Some((_, fd)) => Arc::clone(fd),
            None => {
                if self.counts.len() == self.counts.capacity() {
                    self.sweep();
                }
                let make = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
                let fd = match make() {
                    Err(Errno::MFILE | Errno::NFILE) if self.sweep() => make(),
                    made => made,
                };
                let fd = Arc::new(fd.map_err(|errno| Error {
                    call: "eventfd2",
                    source: errno.into(),
                })?);
                let entry = (event.downgrade(), Arc::clone(&fd));
                self.counts.insert(address, entry);
                fd
            }
        };
        Ok(KernelCount {
            event: event.clone(),
            fd,
        })
    }
}

impl Listener for KvmListener {
    fn name(&self) -> &'static str {
        "KVM"
    }

    fn eventfd_add(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
        let entries = entries(doorbell)?;
        for (key, _) in &entries {
            check_vacant(&self.vm, key)?;
        }
        for (place, (key, event)) in entries.iter().enumerate() {
            if let Err(error) = self.register(*key, event) {
                // All or nothing. The first error is the one that is reported.
                let _ = self.release(entries[..place].iter().map(|(key, _)| key));
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn eventfd_del(&self, doorbell: &Doorbell) -> Result<(), RefusalError> {
        let entries = entries(doorbell)?;
        Ok(self.release(entries.iter().map(|(key, _)| key))?)
    }

    fn is_unreachable(&self, error: &RefusalError) -> bool {
        error.is::<Occupied>()
    }

    fn drain(&self) -> u64 {
        let counts: Vec<KernelCount> = self.lock().living().collect();
        // Without the lock, since observers are called.
        drain_all(&counts)
    }

    /// Closes the eventfds of events that have gone.
    fn committed(&self) {
        self.lock().sweep();
    }
}

/// Drains all, even if an observer panics. The first panic goes on afterwards.
fn drain_all(counts: &[KernelCount]) -> u64 {
    let mut drained = 0_u64;
    let mut panicked = None;
    for count in counts {
        let count = catch(&mut panicked, || count.drain()).unwrap_or(0);
        drained = drained.saturating_add(count);
    }
    go_on_unless_panicking(panicked);
    drained
}

/// The ioeventfds that a doorbell becomes, one for each slot.
fn entries(doorbell: &Doorbell) -> Result<Vec<(Key, &EventHandle)>, Unsupported> {
    fn entry(key: Key, target: &Target) -> Result<(Key, &EventHandle), Unsupported> {
        match target {
            Target::Event(event) => Ok((key, event)),
            Target::Latest(_) | Target::ValueQueue(_) => Err(Unsupported),
        }
    }
    match doorbell {
        Doorbell::Single { key, target } => Ok(vec![entry(*key, target)?]),
        Doorbell::Array { array, targets } => {
            // A valid array has all its slots.
            let keys = (0..array.slots).map_while(|slot| array.slot(slot));
            keys.zip(&**targets)
                .map(|(key, target)| entry(key, target))
                .collect()
        }
    }
}

impl Drop for KvmListener {
    fn drop(&mut self) {
        let keys: Vec<Key> = self.lock().registered.keys().copied().collect();
        // A drop cannot report an error.
        let _ = self.release(keys.iter());
    }
}

impl fmt::Debug for KvmListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmListener")
            .field("vm", &self.vm)
            .field("registered", &self.lock().registered)
            .finish()
    }
}

/// The kicks of an [`Event`](crate::Event) that KVM took: an eventfd that KVM adds to.
///
/// The descriptor does not block, is closed on exec, and becomes readable when KVM takes a kick. It can be
///
/// * watched, by a [`Poller`](crate::poll::Poller), epoll, `event-manager`, tokio's `AsyncFd` or mio (feature `mio`),
///   with a [`drain`](Self::drain) when it is readable;
/// * [bound](crate::poll::Poller::bind) to its [`event`](Self::event) by a poller, which moves the kicks itself. What
///   has no room in the event is left with such a poller until there is room;
/// * given to a peer that reads the kicks, such as vhost in the kernel or a vhost-user process. A
///   [`Forward`](crate::fd::Forward) of the event to the same eventfd passes on what the table takes, so that the peer
///   gets all kicks from one descriptor, and keeps them when the doorbell moves:
///
/// ```no_run
/// # #[allow(dead_code)]
/// # fn kick_fd(kvm: &doorbell::kvm::KvmListener) -> Result<(), Box<dyn std::error::Error>> {
/// use doorbell::{Event, fd::Forward};
/// use std::os::fd::AsFd;
/// use std::sync::Arc;
///
/// let queue = Arc::new(Event::new(0));
/// let count = kvm.count_of(&queue)?;
/// let _to_vhost = Forward::with_fd(&queue, count.as_fd().try_clone_to_owned()?);
/// // … and the descriptor goes to VHOST_SET_VRING_KICK.
/// # Ok(())
/// # }
/// ```
///
/// [`AddressSpace::drain`](crate::ioeventfd::space::AddressSpace::drain) then leaves the kicks where the peer reads
/// them.
#[derive(Clone, Debug)]
pub struct KernelCount {
    event: EventHandle,
    fd: Arc<OwnedFd>,
}

impl KernelCount {
    /// Moves the kicks from the kernel to the event, and returns how many.
    ///
    /// Any number of threads may do so at a time: each kick is moved by one of them. When this returns, the event has
    /// had all kicks that KVM took before the call, whichever thread has moved them. It may wait for another thread
    /// that moves kicks for as long as a `read(2)` takes that does not block. System calls: see
    /// [`KvmListener`](KvmListener#system-calls).
    pub fn drain(&self) -> u64 {
        transfer::drain(&self.event, || self.take())
    }

    fn take(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(Errno::AGAIN) => 0,
            Err(errno) => unreachable!("reading an eventfd: {errno}"),
        }
    }

    /// The event that it is drained to.
    #[must_use]
    pub fn event(&self) -> &EventHandle {
        &self.event
    }
}

impl AsFd for KernelCount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for KernelCount {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(feature = "mio")]
crate::fd::mio::source!(KernelCount);
