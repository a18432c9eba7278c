//! Snapshots that are read often and replaced seldom: a small sleepable RCU.
//!
//! The kernel's counterpart is `srcu_struct`, under which KVM keeps its I/O buses and interrupt routes. An [`Srcu`] holds
//! the current snapshot. Readers look at it inside a [`Section`]; a writer publishes another one and returns when no
//! reader holds the old one any more. All `Srcu`s of the process share one set of readers:
//!
//! ```text
//!     slot        one per reader, on cache lines of its own; kept for the next reader when its own has gone
//!       seq       odd: inside a section             the reader alone changes it
//!       owner     the thread that is inside
//!       owes      a writer inside the section has left a grace period to its end
//!
//!     reader                                        writer
//!     1  seq: even -> odd                           1  lock; build the new snapshot; swap the pointer; unlock
//!     2  load the pointer, use the snapshot         2  each slot: seq odd?  wait until it is another
//!     3  seq: odd -> even                           3  free the old snapshot
//! ```
//!
//! Why a writer frees nothing that is in use:
//!
//! * Reader 1 and 2 against writer 1 and 2 is a [`DEKKER`] handshake: the reader loads the new pointer, or the writer
//!   finds the slot odd. If [`use_membarrier`](super::membarrier) is in force, the reader's accesses are plain ones in
//!   program order, and the writer makes every thread execute a full barrier between its own two. If a reader's store
//!   comes before that barrier in its program, the writer sees the store; if not, its load comes after too, and sees the
//!   new pointer.
//! * Reader 3 releases and the writer's load acquires: the free comes after the last use.
//! * The sequence tells a reader that has left and come back from one that has stayed, so readers in a tight loop do
//!   not hold up writers.
//!
//! A section may stand inside another one of the same thread, of this `Srcu` or any other. A writer that is inside a
//! section itself cannot wait for it, and must not wait for the others, who might be writers waiting for this one. It
//! publishes and returns; the last section of the thread to end waits in its place. That all share their readers is
//! what makes this enough: with readers of their own, two `Srcu`s could wait for each other. The price is that a writer
//! waits for readers of snapshots that it has nothing to do with, so what runs inside a section must be short.
//!
//! Writers wait after they have unlocked, so a reader may become a writer inside its section. A caller that publishes while
//! it holds a lock of its own, which readers may want, takes a [`Deferral`] before the lock: then it does not wait before
//! the deferral's end. They spin, yield, then sleep
//! for up to a millisecond at a time; readers never make a system call for them.
//!
//! A process that forks takes the slots along but not the threads: where one was inside a section, a writer in the child
//! waits for nobody. It panics after a second rather than for ever. Not for use in signal handlers.

use super::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use super::{
    ConstPtr, DEKKER, Mutex, MutexGuard, UnsafeCell, dekker_load, membarrier, release_store,
};
use crossbeam_utils::{Backoff, CachePadded};
use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::process;
use std::ptr;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

/// What a reader shows to writers. Never freed, so that writers can walk the list without a lock.
struct Slot {
    /// Odd while the reader is inside a section.
    seq: AtomicU32,
    /// [`this_thread`] as of the last section.
    owner: AtomicUsize,
    /// A grace period is due when the section ends. Of the owner only.
    owes: AtomicBool,
    /// Belongs to a [`Reader`].
    claimed: AtomicBool,
    /// The process that claimed it.
    process: AtomicU32,
    /// Set before the slot can be found.
    next: AtomicPtr<CachePadded<Slot>>,
}

/// The bit of `seq` that says so.
const INSIDE: u32 = 1;

/// What the writers of all `Srcu`s share.
struct Domain {
    /// The slots, newest first. None is ever taken out.
    head: AtomicPtr<CachePadded<Slot>>,
    /// Out of date, and to be freed after the next grace period, by whoever waits for it.
    outdated: Mutex<Vec<Outdated>>,
}

type Outdated = Box<dyn Any + Send>;

impl Domain {
    maybe_const! {
        fn new() -> Self {
            Domain {
                head: AtomicPtr::new(ptr::null_mut()),
                outdated: Mutex::new(Vec::new()),
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = &'static Slot> {
        // Pairs with the push in `claim`: a reader that could load an old pointer is in the list. See there.
        let mut next = load_head(&self.head);
        std::iter::from_fn(move || {
            // SAFETY: null, or a slot that was leaked, after it had been initialised, by the push that was acquired.
            let slot = unsafe { next.as_ref() }?;
            next = slot.next.load(Ordering::Relaxed);
            Some(&**slot)
        })
    }

    /// A slot for a new reader: one that was left by another, or a new one.
    fn claim(&self) -> &'static Slot {
        membarrier::settle();
        let left = self.slots().find(|slot| {
            !slot.claimed.load(Ordering::Relaxed)
                && slot
                    .claimed
                    // Acquire pairs with the Release of the reader that left: its last stores come before ours.
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        });
        let slot = left.unwrap_or_else(|| {
            let slot: &'static CachePadded<Slot> = Box::leak(Box::new(CachePadded::new(Slot {
                seq: AtomicU32::new(0),
                owner: AtomicUsize::new(0),
                owes: AtomicBool::new(false),
                claimed: AtomicBool::new(true),
                process: AtomicU32::new(0),
                next: AtomicPtr::new(ptr::null_mut()),
            })));
            let mut head = self.head.load(Ordering::Relaxed);
            loop {
                slot.next.store(head, Ordering::Relaxed);
                // The store of a handshake, as that of `seq` is: before this reader loads its first pointer, and after a
                // writer has swapped it, the writer loads the head.
                match self.head.compare_exchange_weak(
                    head,
                    ptr::from_ref(slot).cast_mut(),
                    DEKKER,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return slot,
                    Err(now) => head = now,
                }
            }
        });
        slot.process.store(process::id(), Ordering::Relaxed);
        slot
    }

    /// Waits until every section that is under way has ended, and frees what was out of date before; or, inside a section
    /// of this thread's or while it has a [`Deferral`], leaves that to its end. Returns whether it has waited.
    fn synchronize(&self, outdated: Option<Outdated>) -> bool {
        if Deferral::owe() || self.leave_to_section() {
            self.lock().extend(outdated);
            return false;
        }
        // Leaked, rather than freed too early, if the waiting fails.
        let outdated = ManuallyDrop::new((outdated, std::mem::take(&mut *self.lock())));
        membarrier::settle();
        membarrier::heavy();
        for slot in self.slots() {
            slot.wait_for_end();
        }
        drop(ManuallyDrop::into_inner(outdated));
        true
    }

    /// Whether this thread is inside a section. If it is, it owes a grace period.
    fn leave_to_section(&self) -> bool {
        let mut inside = false;
        for slot in self.slots() {
            // Acquire pairs with the Release of the entry: the owner is the one who entered, or a later one.
            let seq = slot.seq.load(Ordering::Acquire);
            if seq & INSIDE != 0 && slot.owner.load(Ordering::Relaxed) == this_thread() {
                slot.owes.store(true, Ordering::Relaxed);
                inside = true;
            }
        }
        inside
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outdated>> {
        self.outdated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The load of the handshake with a new reader. Under loom a read-modify-write that changes nothing, for the reason given at
/// [`dekker_load`].
fn load_head<T>(head: &AtomicPtr<T>) -> *mut T {
    #[cfg(loom)]
    let _ = head.fetch_update(DEKKER, DEKKER, Some);
    head.load(DEKKER)
}

impl Slot {
    fn wait_for_end(&self) {
        // Second half of the handshake with `Reader::enter`. It and the loads below acquire what the reader's leaving
        // released.
        let seq = dekker_load(&self.seq);
        if seq & INSIDE == 0 {
            return;
        }
        let mut patience = Patience::default();
        while dekker_load(&self.seq) == seq {
            patience.pause();
            if patience.is_over() && self.process.load(Ordering::Relaxed) != process::id() {
                panic!(
                    "a table was changed in a forked process: a reader that existed before the fork may not have come along"
                );
            }
        }
    }
}

/// Waiting for something that takes nanoseconds, unless a thread has lost its CPU.
#[derive(Default)]
struct Patience {
    backoff: Backoff,
    slept: Duration,
}

impl Patience {
    fn pause(&mut self) {
        if cfg!(loom) {
            yield_now();
        } else if self.backoff.is_completed() {
            let nap = (self.slept / 2).clamp(Duration::from_micros(50), Duration::from_millis(1));
            thread::sleep(nap);
            self.slept += nap;
        } else {
            self.backoff.snooze();
        }
    }

    fn is_over(&self) -> bool {
        self.slept >= Duration::from_secs(1)
    }
}

#[cfg(not(loom))]
use std::{thread::yield_now, thread_local};

#[cfg(loom)]
use loom::{thread::yield_now, thread_local};

#[cfg(not(loom))]
fn domain() -> &'static Domain {
    static DOMAIN: Domain = Domain::new();
    &DOMAIN
}

#[cfg(loom)]
fn domain() -> &'static Domain {
    loom::lazy_static! {
        static ref DOMAIN: Domain = Domain::new();
    }
    &DOMAIN
}

/// A number that no other living thread has.
#[cfg(not(loom))]
#[inline(always)]
fn this_thread() -> usize {
    thread_local! {
        static MARK: u8 = const { 0 };
    }
    MARK.with(|mark| ptr::from_ref(mark).addr())
}

#[cfg(loom)]
fn this_thread() -> usize {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(loom::thread::current().id()) as usize
}

/// The means to enter sections, for a thread that often does.
///
/// It may move to another thread between sections.
pub struct Reader {
    slot: &'static Slot,
    /// Sections of this reader's that are under way, one inside the other.
    depth: Cell<usize>,
}

impl Reader {
    /// A reader of all snapshots.
    pub fn new() -> Self {
        Reader {
            slot: domain().claim(),
            depth: Cell::new(0),
        }
    }

    /// Begins a section.
    #[inline(always)]
    pub fn enter(&self) -> Section<'_> {
        let depth = self.depth.get();
        if depth == 0 {
            let slot = self.slot;
            slot.owner.store(this_thread(), Ordering::Relaxed);
            let seq = slot.seq.load(Ordering::Relaxed).wrapping_add(INSIDE);
            // First half of the handshake with `Slot::wait_for_end`; the second is the load in `Srcu::read`. Releases the
            // owner to `leave_to_section`.
            if membarrier::is_light() {
                slot.seq.store(seq, Ordering::Release);
                membarrier::light();
            } else {
                slot.seq.swap(seq, DEKKER);
            }
        }
        self.depth.set(depth + 1);
        Section { reader: self }
    }

    #[inline(always)]
    fn leave(&self) {
        let depth = self.depth.get() - 1;
        self.depth.set(depth);
        if depth == 0 {
            let seq = self.slot.seq.load(Ordering::Relaxed).wrapping_add(INSIDE);
            // Pairs with the loads in `Slot::wait_for_end`.
            release_store(&self.slot.seq, seq);
            if self.slot.owes.load(Ordering::Relaxed) {
                self.pay();
            }
        }
    }

    /// Waits for the grace period that a writer inside the section could not wait for.
    #[cold]
    #[inline(never)]
    fn pay(&self) {
        self.slot.owes.store(false, Ordering::Relaxed);
        domain().synchronize(None);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A section that was forgotten ends here at the latest: it borrowed the reader.
        let seq = self.slot.seq.load(Ordering::Relaxed);
        if seq & INSIDE != 0 {
            // Pairs with the loads in `Slot::wait_for_end`.
            release_store(&self.slot.seq, seq.wrapping_add(INSIDE));
        }
        self.slot.owes.store(false, Ordering::Relaxed);
        // Pairs with the Acquire in `Domain::claim`.
        self.slot.claimed.store(false, Ordering::Release);
    }
}

/// A time in which no snapshot that this thread can find is freed.
///
/// It ends with the value. Forgetting it holds up all writers until its reader is dropped, but is safe.
pub struct Section<'a> {
    reader: &'a Reader,
}

impl Drop for Section<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.reader.leave();
    }
}

thread_local! {
    static DEFERRALS: Cell<usize> = Cell::default();
    static DEFERRED: Cell<bool> = Cell::default();
}

/// A time in which the writers of this thread do not wait for readers. The waiting comes at its end.
///
/// It is for the time in which a thread holds a lock that a reader may wait for inside its section, so it ends after the
/// lock. Forgetting it is safe; what is out of date is then freed by other threads.
pub struct Deferral {
    /// Of the thread that began it.
    _thread: PhantomData<*const ()>,
}

impl Deferral {
    /// Begins one, perhaps inside another, whose end it then is that counts.
    pub fn new() -> Self {
        DEFERRALS.with(|deferrals| deferrals.set(deferrals.get() + 1));
        Deferral {
            _thread: PhantomData,
        }
    }

    /// Whether this thread has one. If it has, it owes a grace period.
    fn owe() -> bool {
        let deferred = DEFERRALS.with(Cell::get) != 0;
        if deferred {
            DEFERRED.with(|owed| owed.set(true));
        }
        deferred
    }
}

impl Drop for Deferral {
    fn drop(&mut self) {
        let left = DEFERRALS.with(|deferrals| {
            deferrals.set(deferrals.get() - 1);
            deferrals.get()
        });
        if left == 0 && DEFERRED.with(|owed| owed.replace(false)) {
            domain().synchronize(None);
        }
    }
}

/// Runs `f` in a section of the thread's own reader.
#[inline]
pub fn with_section<R>(f: impl FnOnce(&Section<'_>) -> R) -> R {
    thread_local! {
        static READER: Reader = Reader::new();
    }
    let mut f = Some(f);
    let mut run = |reader: &Reader| f.take().map(|f| f(&reader.enter()));
    let result = match READER.try_with(&mut run) {
        Ok(result) => result,
        // The thread is ending, and its reader is gone already.
        Err(_) => run(&Reader::new()),
    };
    match result {
        Some(result) => result,
        None => unreachable!("one of the two has run"),
    }
}

/// Waits until every section that is under way has ended, for who has made a change with a [`DEKKER`] store that sections
/// look at with a [`dekker_load`]. Returns whether it has waited: inside a section of this thread's it does not.
///
/// # Panics
///
/// As [`Writer::publish`].
pub fn synchronize() -> bool {
    domain().synchronize(None)
}

/// The current snapshot of what readers share with one another and with writers.
pub struct Srcu<T> {
    /// Never null. On lines of its own: writers contend for the lock, and readers shall not notice.
    current: CachePadded<AtomicPtr<UnsafeCell<T>>>,
    writer: Mutex<()>,
}

impl<T: Send + Sync + 'static> Srcu<T> {
    /// With `value` as the first snapshot.
    pub fn new(value: T) -> Self {
        Srcu {
            current: CachePadded::new(AtomicPtr::new(boxed(value))),
            writer: Mutex::new(()),
        }
    }

    /// The current snapshot, for as long as the section lasts.
    ///
    /// A later call inside the same section may see a newer one.
    #[inline(always)]
    pub fn read<'a>(&'a self, _section: &'a Section<'_>) -> Snapshot<'a, T> {
        // The load of the handshake with `Writer::publish`; acquires the value.
        let current = self.current.load(DEKKER);
        // SAFETY: it came from `boxed`, and was current after this section had begun. It is freed by `Writer::publish`
        // after a grace period, that is not before the section has ended (see the module), or by the drop of `self`; both
        // are borrowed.
        unsafe { Snapshot::new(current) }
    }

    /// Keeps other writers out.
    pub fn write(&self) -> Writer<'_, T> {
        Writer {
            current: &self.current,
            // There is nothing behind it that a panic could have left half done.
            _lock: self.writer.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// A snapshot that is not freed as long as this is there.
pub struct Snapshot<'a, T> {
    value: ConstPtr<T>,
    _borrow: PhantomData<&'a T>,
}

impl<T> Snapshot<'_, T> {
    /// # Safety
    ///
    /// It came from [`boxed`], and is not freed before the borrow ends.
    #[inline(always)]
    unsafe fn new(snapshot: *const UnsafeCell<T>) -> Self {
        Snapshot {
            // SAFETY: as promised.
            value: unsafe { (*snapshot).get() },
            _borrow: PhantomData,
        }
    }
}

impl<T> Deref for Snapshot<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: see `new`. There are only shared references to it until then.
        unsafe { self.value.deref() }
    }
}

impl<T> Drop for Srcu<T> {
    fn drop(&mut self) {
        // SAFETY: it came from `boxed`, and there are no readers: they borrow `self`.
        unsafe { free(self.current.load(Ordering::Relaxed)) };
    }
}

fn boxed<T>(value: T) -> *mut UnsafeCell<T> {
    Box::into_raw(Box::new(UnsafeCell::new(value)))
}

/// # Safety
///
/// `snapshot` came from [`boxed`], nobody else has access to it, and it is not freed again.
unsafe fn free<T>(snapshot: *mut UnsafeCell<T>) {
    // SAFETY: as promised.
    unsafe {
        // Nothing but a check of that promise, by loom.
        (*snapshot).with_mut(|_| ());
        drop(Box::from_raw(snapshot));
    }
}

/// The right to publish.
///
/// It must not be held while waiting for a reader: a reader may be waiting for it.
pub struct Writer<'a, T> {
    current: &'a AtomicPtr<UnsafeCell<T>>,
    _lock: MutexGuard<'a, ()>,
}

impl<T: Send + Sync + 'static> Writer<'_, T> {
    /// The current snapshot.
    pub fn read(&self) -> Snapshot<'_, T> {
        // The lock orders it after the last swap.
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: it came from `boxed`, and stays current until the writer, which is borrowed, publishes or goes.
        unsafe { Snapshot::new(current) }
    }

    /// Makes `value` the snapshot, lets other writers in, and waits until nobody holds the one before. Then drops that
    /// and `outdated`, which it may have pointed to.
    ///
    /// Inside a section of this thread's it does not wait; the waiting and the dropping come when its outermost section
    /// ends, if no other writer has taken on the latter before; it may not have finished then.
    ///
    /// # Panics
    ///
    /// If it cannot find out who is still reading (see [`membarrier`]), or waits in vain in a forked process. `value` is
    /// published then, and what was before is leaked.
    pub fn publish(self, value: T, outdated: impl Send + 'static) {
        // First half of the handshake with `Reader::enter`. Releases the new value to the readers, and acquires the old
        // one from whoever published it, for the sake of its drop.
        let old = self.current.swap(boxed(value), DEKKER);
        drop(self);
        domain().synchronize(Some(Box::new(Replaced { old, outdated })));
    }
}

/// A snapshot that is current no more. Readers may hold it, so it is no `Box` until the grace period has passed.
struct Replaced<T, G> {
    old: *mut UnsafeCell<T>,
    #[expect(
        dead_code,
        reason = "dropped together with the snapshot that may point to it"
    )]
    outdated: G,
}

// SAFETY: it owns a `T` and a `G`, both of which may be dropped by another thread.
unsafe impl<T: Send, G: Send> Send for Replaced<T, G> {}

impl<T, G> Drop for Replaced<T, G> {
    fn drop(&mut self) {
        // SAFETY: it came from `boxed`, `publish` made it unreachable, and `synchronize` drops this after a grace period.
        unsafe { free(self.old) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    type Book = Srcu<Arc<u32>>;

    /// All writers of a process wait for all its readers, and free what others have left. The tests take turns, so that each
    /// knows who frees what.
    fn alone() -> impl Drop {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(book: &Book, page: u32) {
        book.write().publish(Arc::new(page), ());
    }

    /// Inside a section nothing is freed under it; its end frees, not the end of a section inside it.
    #[test]
    fn change_inside_nested_sections() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        let reader = Reader::new();
        let outer = reader.enter();
        let page = book.read(&outer);
        with_section(|_| {
            let inner = reader.enter();
            publish(&book, 1);
            assert_eq!(**book.read(&inner), 1);
        });
        assert_eq!(**page, 0);
        assert_eq!(Arc::strong_count(&first), 2);
        drop(outer);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// A writer that holds a lock waits after it has given it up, so a reader may take it inside its section.
    #[test]
    fn deferral_around_a_lock() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        let lock = Mutex::new(());
        let (inside, entered) = mpsc::channel();
        let (published, go) = mpsc::channel();
        let (book, lock) = (&book, &lock);
        thread::scope(|scope| {
            scope.spawn(move || {
                with_section(|section| {
                    let page = book.read(section);
                    inside.send(()).expect("the writer lives");
                    let patience = Duration::from_secs(20);
                    go.recv_timeout(patience).expect("the writer waits for us");
                    drop(lock.lock().expect("nobody panics"));
                    assert_eq!(**page, 0);
                });
            });
            entered.recv().expect("the reader lives");
            let outer = Deferral::new();
            let inner = Deferral::new();
            let locked = lock.lock().expect("nobody panics");
            publish(book, 1);
            published.send(()).expect("the reader lives");
            drop(inner);
            drop(locked);
            drop(outer);
            assert_eq!(Arc::strong_count(&first), 1);
        });
    }

    /// A section that ends in a panic ends.
    #[test]
    fn panic_inside_a_section() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Srcu::new(Arc::clone(&first));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            with_section(|section| {
                let _page = book.read(section);
                publish(&book, 1);
                panic!("in a callback");
            })
        }));
        assert!(result.is_err());
        assert_eq!(Arc::strong_count(&first), 1);
        publish(&book, 2);
    }

    /// A section that was forgotten holds up others until its reader goes, and frees nothing early.
    #[test]
    fn forgotten_section() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        let reader = Reader::new();
        std::mem::forget(reader.enter());
        let (sender, done) = mpsc::channel();
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                publish(&book, 1);
                sender.send(()).expect("somebody listens");
            })
        };
        assert!(done.recv_timeout(Duration::from_millis(20)).is_err());
        assert_eq!(Arc::strong_count(&first), 2);
        drop(reader);
        writer.join().expect("it ends");
        assert_eq!(Arc::strong_count(&first), 1);
        drop(book);
    }

    /// A writer waits for a reader that stays, however often others come and go.
    #[test]
    fn writer_waits_for_the_one_that_stays() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        let (entered, inside) = mpsc::channel();
        let (leave, asked) = mpsc::channel::<()>();
        let reader = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                with_section(|section| {
                    let page = book.read(section);
                    entered.send(()).expect("somebody listens");
                    asked.recv().expect("to be asked");
                    **page
                })
            })
        };
        inside.recv().expect("it enters");
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || publish(&book, 1))
        };
        for _ in 0..1000 {
            with_section(|section| assert!(**book.read(section) <= 1));
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished());
        leave.send(()).expect("somebody listens");
        assert_eq!(reader.join().expect("it ends"), 0);
        writer.join().expect("it ends");
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// A thread whose own reader is gone already, in the destructor of another thread-local value, can still read, write,
    /// and nest both.
    #[test]
    fn after_the_thread_local_reader_is_gone() {
        let _alone = alone();
        struct Last(Arc<Book>, mpsc::Sender<u32>);
        impl Drop for Last {
            fn drop(&mut self) {
                let page = with_section(|section| {
                    publish(&self.0, 7);
                    **self.0.read(section)
                });
                self.1.send(page).expect("somebody listens");
            }
        }
        std::thread_local! {
            static LAST: std::cell::OnceCell<Last> = const { std::cell::OnceCell::new() };
        }
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        for reader_goes_first in [true, false] {
            let (sender, page) = mpsc::channel();
            let last = Last(Arc::clone(&book), sender);
            thread::spawn(move || {
                // Destructors run in the order of first use, or the reverse: one of the two comes after the reader's.
                let use_reader = || with_section(|_| ());
                if reader_goes_first {
                    use_reader();
                }
                LAST.with(|cell| assert!(cell.set(last).is_ok()));
                use_reader();
            })
            .join()
            .expect("it ends");
            assert_eq!(page.recv(), Ok(7));
        }
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// Slots are as many as there were readers at one time, not as there were readers.
    #[test]
    fn slots_are_used_again() {
        let _alone = alone();
        let count = || domain().slots().count();
        let at_once = 8;
        let before = count();
        for _ in 0..250 {
            let threads: Vec<_> = (0..at_once)
                .map(|_| {
                    thread::spawn(|| {
                        with_section(|_| Reader::new().slot.seq.load(Ordering::Relaxed))
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("it ends");
            }
        }
        // The other tests of this process have a few of their own.
        assert!(
            count() <= before + 2 * at_once + 64,
            "{before} -> {}",
            count()
        );
    }

    /// In a forked child there is nobody to end a section that another thread was in: a writer panics and frees nothing.
    #[cfg(unix)]
    #[test]
    fn fork_while_another_thread_is_inside() {
        let _alone = alone();
        let first = Arc::new(0);
        let book = Arc::new(Srcu::new(Arc::clone(&first)));
        let (entered, inside) = mpsc::channel();
        let (leave, asked) = mpsc::channel::<()>();
        let reader = thread::spawn(move || {
            with_section(|_| {
                entered.send(()).expect("somebody listens");
                asked.recv().expect("to be asked");
            })
        });
        inside.recv().expect("it enters");
        // SAFETY: the child looks at memory of its own, and ends without leaving this block.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: plain system calls.
            unsafe { libc::alarm(30) };
            let write = std::panic::AssertUnwindSafe(|| publish(&book, 1));
            let panicked = std::panic::catch_unwind(write).is_err();
            let leaked = Arc::strong_count(&first) == 2;
            // SAFETY: as above.
            unsafe { libc::_exit(if panicked && leaked { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the status is there during the call.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        leave.send(()).expect("somebody listens");
        reader.join().expect("it ends");
        publish(&book, 2);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    /// The choice of barriers is made by the first reader.
    #[test]
    fn too_late_for_membarrier() {
        let _alone = alone();
        use super::super::membarrier::{MembarrierError, use_membarrier};
        let _reader = Reader::new();
        let error = use_membarrier().expect_err("fences are in use");
        assert!(matches!(
            error,
            MembarrierError::TooLate | MembarrierError::Unsupported
        ));
    }
}
