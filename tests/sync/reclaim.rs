//! Which thread frees what callbacks detach, and when. Signals and changes wait for no other thread without need.
//!
//! Each test has a process of its own, because calls on any thread of the process count.

#[path = "../common/watchdog.rs"]
mod watchdog;

use doorbell::event::{Change, Interest, Observation, Observer};
use doorbell::ioeventfd::{Bus, Key, Table};
use doorbell::{Event, reclaim};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

fn alone<T>(name: &'static str, test: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    watchdog::limit(name, test)
}

fn event() -> Arc<Event> {
    Arc::new(Event::new(0))
}

fn observe(event: &Arc<Event>, call: impl Fn() + Send + Sync + 'static) -> Observation {
    let observer = Arc::new(move |_: Change| call());
    Observation::new(Arc::clone(event), Interest::Signals, observer)
}

/// The threads on which observers were dropped, in order.
#[derive(Clone, Default)]
struct Drops(Arc<Mutex<Vec<ThreadId>>>);

impl Drops {
    fn take(&self) -> Vec<ThreadId> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ThreadId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An observer of `event` whose drop is recorded and then calls `end`.
    fn observe(&self, event: &Arc<Event>, end: impl Fn() + Send + Sync + 'static) -> Observation {
        let tells = Tells(self.clone(), end);
        Observation::new(Arc::clone(event), Interest::Signals, Arc::new(tells))
    }
}

struct Tells<F: Fn()>(Drops, F);

impl<F: Fn() + Send + Sync> Observer for Tells<F> {
    fn notified(&self, _: Change) {}
}

impl<F: Fn()> Drop for Tells<F> {
    fn drop(&mut self) {
        self.0.lock().push(thread::current().id());
        (self.1)();
    }
}

/// An event whose signal drops what is put into it, inside the call.
struct Detacher {
    event: Arc<Event>,
    what: Arc<Mutex<Vec<Observation>>>,
    _own: Observation,
}

impl Detacher {
    fn new() -> Self {
        let event = event();
        let what = Arc::new(Mutex::new(Vec::new()));
        let own = observe(&event, {
            let what = Arc::clone(&what);
            move || {
                let what = std::mem::take(&mut *what.lock().unwrap());
                drop::<Vec<Observation>>(what);
            }
        });
        Detacher {
            event,
            what,
            _own: own,
        }
    }

    fn detach(&self, what: impl IntoIterator<Item = Observation>) {
        self.what.lock().unwrap().extend(what);
        self.event.signal();
    }
}

/// A thread inside an observer's call, until it is told to leave.
struct Inside {
    leave: Sender<()>,
    thread: JoinHandle<()>,
}

impl Inside {
    fn new() -> Self {
        let event = event();
        let (entered, inside) = channel();
        let (leave, left) = channel::<()>();
        let left = Mutex::new(left);
        let thread = thread::spawn(move || {
            let observation = observe(&event, move || {
                entered.send(()).unwrap();
                left.lock().unwrap().recv().unwrap();
            });
            event.signal();
            // Forgotten, because a detach would wait for other threads inside calls.
            std::mem::forget(observation);
        });
        inside.recv().unwrap();
        Inside { leave, thread }
    }

    fn end(self) {
        self.leave.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `f` on a thread, which must end while this one waits.
fn ends<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, finished) = channel();
    let thread = thread::spawn(move || {
        let result = f();
        let _ = done.send(());
        result
    });
    finished.recv_timeout(PATIENCE).expect("it waits for us");
    thread.join().unwrap()
}

/// Y detaches an observer inside a call. X changes a table while it holds a lock that the observer's destructor takes.
#[test]
fn a_writer_frees_nothing_of_others() {
    alone("a_writer_frees_nothing_of_others", || {
        let lock = Arc::new(Mutex::new(()));
        let drops = Drops::default();
        let (detached, is_detached) = channel();
        let (leave, left): (Sender<()>, Receiver<()>) = channel();
        let left = Mutex::new(left);
        let slot = Mutex::new(Some(drops.observe(&event(), {
            let lock = Arc::clone(&lock);
            move || drop(lock.lock().unwrap())
        })));
        let trigger = event();
        let _observation = observe(&trigger, move || {
            drop(slot.lock().unwrap().take());
            detached.send(()).unwrap();
            left.lock().unwrap().recv().unwrap();
        });
        let y = thread::spawn({
            let trigger = Arc::clone(&trigger);
            move || trigger.signal()
        });
        is_detached.recv().unwrap();
        {
            let _held = lock.lock().unwrap();
            ends(|| {
                let table = Table::new();
                table.assign(Key::mmio(0, 4), event()).unwrap().keep();
            });
            // This change waits for Y.
            let changes = thread::spawn(|| {
                let table = Table::new();
                drop(table.assign(Key::mmio(0, 4), event()).unwrap());
            });
            leave.send(()).unwrap();
            changes.join().unwrap();
        }
        let there = y.thread().id();
        y.join().unwrap();
        assert_eq!(drops.take(), [there]);
    });
}

/// A signal whose callback detaches an observer does not wait for a thread inside a call, since that thread may want
/// the caller's lock.
#[test]
fn a_signal_waits_for_nobody() {
    alone("a_signal_waits_for_nobody", || {
        let detacher = Detacher::new();
        let drops = Drops::default();
        let inside = Inside::new();
        detacher
            .what
            .lock()
            .unwrap()
            .push(drops.observe(&event(), || ()));
        let detacher = ends(move || {
            detacher.event.signal();
            detacher
        });
        assert_eq!(drops.take(), []);
        inside.end();
        drop(detacher);
        assert!(reclaim());
        assert_eq!(drops.take(), [thread::current().id()]);
    });
}

/// What a callback has detached is dropped when the outermost call ends, if no other thread is inside one; else at the
/// end of the thread's next call that leaves something, or in the thread's next change that waits. Neither other
/// signals nor other threads drop it.
#[test]
fn dropped_by_who_has_detached() {
    alone("dropped_by_who_has_detached", || {
        let here = thread::current().id();
        let detacher = Detacher::new();
        let (drops, bystander) = (Drops::default(), event());
        let _called = observe(&bystander, || ());
        let new = || drops.observe(&bystander, || ());

        detacher.detach([new(), new()]);
        assert_eq!(drops.take(), [here; 2]);

        let inside = Inside::new();
        detacher.detach([new()]);
        assert_eq!(drops.take(), []);
        inside.end();
        bystander.signal();
        ends(|| {
            let event = event();
            drop(observe(&event, || ()));
        });
        let attached = new();
        assert_eq!(drops.take(), []);
        detacher.detach([attached]);
        assert_eq!(drops.take(), [here; 2]);

        let inside = Inside::new();
        detacher.detach([new()]);
        inside.end();
        drop(observe(&bystander, || ()));
        assert_eq!(drops.take(), [here]);
    });
}

/// A thread that comes and goes does not delay the drop: only threads that were inside at the detach count.
#[test]
fn readers_that_came_later_do_not_count() {
    alone("readers_that_came_later_do_not_count", || {
        let detacher = Detacher::new();
        let (drops, bystander) = (Drops::default(), event());
        let new = || drops.observe(&bystander, || ());
        let first = Inside::new();
        detacher.detach([new()]);
        let second = Inside::new();
        first.end();
        // The pile of the first grace period is due, and the new one is not.
        detacher.detach([new()]);
        assert_eq!(drops.take().len(), 1);
        second.end();
        detacher.detach([]);
        assert_eq!(drops.take().len(), 0);
        assert!(reclaim());
        assert_eq!(drops.take().len(), 1);
    });
}

/// `reclaim` drops what a thread that has ended has left behind.
#[test]
fn what_a_thread_has_left() {
    alone("what_a_thread_has_left", || {
        let drops = Drops::default();
        let inside = Inside::new();
        ends({
            let drops = drops.clone();
            move || Detacher::new().detach_and_forget([drops.observe(&event(), || ())])
        });
        let here = thread::current().id();
        assert_eq!(drops.take(), []);
        inside.end();
        assert!(reclaim());
        assert_eq!(drops.take(), [here]);
    });
}

impl Detacher {
    /// Detaches without the change at the end, which waits.
    fn detach_and_forget(self, what: impl IntoIterator<Item = Observation>) {
        self.detach(what);
        std::mem::forget(self._own);
    }
}

/// A destructor that panics does not keep the others from being run, whether at the end of a call or in `reclaim`.
#[test]
fn a_destructor_panics() {
    alone("a_destructor_panics", || {
        let detacher = Detacher::new();
        let (drops, bystander) = (Drops::default(), event());
        let three = || {
            let end = |panics: bool| move || assert!(!panics, "in a destructor");
            [false, true, false].map(|panics| drops.observe(&bystander, end(panics)))
        };
        let panics = |f: &dyn Fn()| panic::catch_unwind(AssertUnwindSafe(f)).is_err();
        assert!(panics(&|| detacher.detach(three())));
        assert_eq!(drops.take().len(), 3);
        assert_eq!(detacher.event.count(), 1);

        let inside = Inside::new();
        detacher.detach(three());
        inside.end();
        assert!(panics(&|| _ = reclaim()));
        assert_eq!(drops.take().len(), 3);

        // The drop happens in a change of the thread's own.
        let inside = Inside::new();
        detacher.detach(three());
        inside.end();
        assert!(panics(&|| drop(drops.observe(&bystander, || ()))));
        assert_eq!(drops.take().len(), 4);
    });
}

/// A callback panics, and so does the destructor of what it has detached.
#[test]
fn a_callback_and_a_destructor_panic() {
    alone("a_callback_and_a_destructor_panic", || {
        let drops = Drops::default();
        let what = Mutex::new(vec![
            drops.observe(&event(), || panic!("in a destructor")),
            drops.observe(&event(), || ()),
        ]);
        let trigger = event();
        let _observation = observe(&trigger, move || {
            drop(std::mem::take(&mut *what.lock().unwrap()));
            panic!("in a callback");
        });
        let payload = panic::catch_unwind(AssertUnwindSafe(|| trigger.signal())).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"in a callback"));
        assert_eq!(drops.take().len(), 2);
    });
}

/// A destructor at the end of a signal that detaches another observer does not wait for a thread inside a call.
#[test]
fn a_destructor_that_detaches() {
    alone("a_destructor_that_detaches", || {
        let detacher = Detacher::new();
        let (drops, watched) = (Drops::default(), event());
        let calls = Arc::new(AtomicUsize::new(0));
        let inner = Mutex::new(Some(drops.observe(&watched, || ())));
        let inside = Arc::new(Mutex::new(None));
        let outer = drops.observe(&event(), {
            let (inside, calls) = (Arc::clone(&inside), Arc::clone(&calls));
            move || {
                *inside.lock().unwrap() = Some(Inside::new());
                drop(inner.lock().unwrap().take());
                assert!(!reclaim());
                calls.fetch_add(1, SeqCst);
            }
        });
        detacher.what.lock().unwrap().push(outer);
        let detacher = ends(move || {
            detacher.event.signal();
            detacher
        });
        assert_eq!(calls.load(SeqCst), 1);
        assert_eq!(drops.take().len(), 1);
        let inside = inside.lock().unwrap().take().unwrap();
        inside.end();
        drop(detacher);
        assert!(reclaim());
        assert_eq!(drops.take().len(), 1);
    });
}

/// A change that only adds something does not wait.
#[test]
fn additions_do_not_wait() {
    alone("additions_do_not_wait", || {
        let inside = Inside::new();
        ends(|| {
            let (table, watched) = (Table::new(), event());
            let registration = table.assign(Key::mmio(0, 4), &watched).unwrap();
            assert!(table.write(Bus::Mmio, 0, &[0; 4]));
            let each = observe(&watched, || ());
            let armed = Arc::new(|_: Change| ());
            let armed = Observation::on_demand(Arc::clone(&watched), Interest::Both, armed);
            let mut reads = Box::pin(watched.read_async());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(reads.as_mut().poll(&mut context).is_ready());
            assert!(
                Box::pin(watched.read_async())
                    .as_mut()
                    .poll(&mut context)
                    .is_pending()
            );
            std::mem::forget((registration, each, armed));
        });
        inside.end();
    });
}

/// `reclaim` does not wait in a call, or in the destructors that a signal runs.
#[test]
fn reclaim_inside_a_call() {
    alone("reclaim_inside_a_call", || {
        let event = event();
        let results = Arc::new(Mutex::new(Vec::new()));
        let _observation = observe(&event, {
            let results = Arc::clone(&results);
            move || results.lock().unwrap().push(reclaim())
        });
        event.signal();
        assert_eq!(*results.lock().unwrap(), [false]);
        assert!(reclaim());
    });
}
