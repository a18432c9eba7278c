//! Probes that panic: the thread in `wait` passes the panic on, and nothing else is affected.

use crate::NOTHING;
use crate::calls::is_held_by_fewer_than;
use crate::common::caller::wait_until;
use crate::common::watchdog;
use crate::probes::{AT_ONCE, OfSource, SOON, SPINS, Source, keys};
use doorbell::poll::{Events, Poller, Probe, Watch};
use doorbell::{Event, Spin};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Ready,
    Begin,
    End,
    Drop,
}

/// A probe that panics in a number of calls of one kind.
struct Fragile {
    of: OfSource,
    at: Call,
    fuse: Arc<AtomicU32>,
}

impl Fragile {
    fn new(source: &Arc<Source>, at: Call) -> (Self, Arc<AtomicU32>) {
        let fuse = Arc::default();
        let probe = Fragile {
            of: source.probe(),
            at,
            fuse: Arc::clone(&fuse),
        };
        (probe, fuse)
    }

    fn call(&self, call: Call) {
        let one_less = |left: u32| left.checked_sub(1);
        if self.at == call
            && self
                .fuse
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok()
        {
            // This bypasses the hook, which would print the panic.
            panic::resume_unwind(Box::new("a fuse"));
        }
    }
}

impl Probe for Fragile {
    fn ready(&mut self) -> bool {
        // A source that has been asked 1,024 times in vain gets cold; the sleep keeps it from that until a test is
        // ready for the panic.
        thread::sleep(Duration::from_millis(1));
        self.call(Call::Ready);
        self.of.ready()
    }

    fn begin(&mut self) {
        self.of.begin();
        self.call(Call::Begin);
    }

    fn end(&mut self) -> bool {
        self.call(Call::End);
        self.of.end()
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.call(Call::Drop);
    }
}

const SOME: u32 = 1;
const EVER: u32 = u32::MAX;

fn set(fuse: &AtomicU32, panics: u32) {
    fuse.store(panics, Ordering::Relaxed);
}

/// What a wait reports or, if it panics, what it had found.
fn try_keys(poller: &Poller, timeout: Option<Duration>) -> Result<Vec<usize>, Vec<usize>> {
    let mut events = Events::with_capacity(8);
    let result = panic::catch_unwind(AssertUnwindSafe(|| poller.wait(&mut events, timeout)));
    let keys = events.iter().map(|ready| ready.key()).collect();
    match result {
        Ok(number) => {
            assert_eq!(number, Ok(events.len()));
            Ok(keys)
        }
        Err(payload) => {
            assert_eq!(payload.downcast_ref(), Some(&"a fuse"));
            Err(keys)
        }
    }
}

/// Three kicks with probes under keys 1 to 3, each kicked once. The second probe is fragile.
struct Three {
    poller: Poller,
    kicks: [Arc<Event>; 3],
    sources: [Arc<Source>; 3],
    fuse: Arc<AtomicU32>,
}

impl Three {
    fn new(spin: Spin, at: Call) -> Self {
        let poller = Poller::with_spin(spin);
        let kicks = [(); 3].map(|()| Arc::new(Event::new(1)));
        let sources = [(); 3].map(|()| Arc::new(Source::default()));
        for (key, kick) in (1..).zip(&kicks) {
            poller.add(kick, key, Watch::READABLE.edge()).unwrap();
        }
        let (fragile, fuse) = Fragile::new(&sources[1], at);
        poller.attach_probe(1, sources[0].probe()).unwrap();
        poller.attach_probe(2, fragile).unwrap();
        poller.attach_probe(3, sources[2].probe()).unwrap();
        Three {
            poller,
            kicks,
            sources,
            fuse,
        }
    }

    fn begun(&self) -> [bool; 3] {
        [0, 1, 2].map(|index: usize| self.sources[index].is_begun())
    }
}

#[test]
fn the_others_are_told_and_it_is_told_again() {
    watchdog::limit("the_others_are_told_and_it_is_told_again", || {
        for spin in SPINS {
            for at in [Call::Ready, Call::Begin, Call::End] {
                let three = Three::new(spin, at);
                let poller = &three.poller;
                if at == Call::Begin {
                    set(&three.fuse, SOME);
                    // What had been found is there.
                    assert_eq!(try_keys(poller, None), Err(vec![1, 2, 3]));
                } else {
                    assert_eq!(try_keys(poller, None), Ok(vec![1, 2, 3]));
                    assert_eq!(three.begun(), [true; 3]);
                    set(&three.fuse, SOME);
                    assert_eq!(try_keys(poller, SOON), Err(vec![]));
                }
                if at == Call::End {
                    assert_eq!(three.begun(), [false, true, false]);
                }
                // Everything works as if there had been no panic.
                assert_eq!(try_keys(poller, SOON), Ok(vec![]), "{at:?}");
                assert_eq!(three.begun(), [false; 3]);
                for (key, (kick, source)) in (1..).zip(three.kicks.iter().zip(&three.sources)) {
                    kick.signal();
                    assert_eq!(keys(poller, 8, None), [key]);
                    assert!(source.is_begun());
                    source.set_ready(true);
                    assert_eq!(keys(poller, 8, None), [key]);
                    source.set_ready(false);
                }
            }
        }
    });
}

/// A thread that looks goes on asking after an earlier wait has panicked.
#[test]
fn the_next_wait_asks() {
    watchdog::limit("the_next_wait_asks", || {
        for at in [Call::Ready, Call::Begin, Call::End] {
            let poller = Poller::with_spin(Spin::Always);
            let source = Arc::new(Source::default());
            let (fragile, fuse) = Fragile::new(&source, at);
            poller.add_probe(7, fragile).unwrap();
            set(&fuse, SOME);
            assert_eq!(try_keys(&poller, SOON), Err(vec![]));
            thread::scope(|scope| {
                let waiter = scope.spawn(|| keys(&poller, 4, None));
                let asked = source.asked();
                wait_until("questions", || source.asked() > asked + 100);
                source.set_ready(true);
                assert_eq!(waiter.join().unwrap(), [7]);
            });
        }
    });
}

/// Whatever call a thread panics in, a sleeping thread that relied on it learns of the next event.
#[test]
fn one_that_sleeps_is_told() {
    watchdog::limit("one_that_sleeps_is_told", || {
        for (at, panics) in [(Call::Ready, SOME), (Call::End, SOME), (Call::End, EVER)] {
            let poller = Poller::with_spin(Spin::Always);
            let (kick, source) = (Arc::new(Event::new(1)), Arc::new(Source::default()));
            let (fragile, fuse) = Fragile::new(&source, at);
            poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
            poller.attach_probe(1, fragile).unwrap();
            assert_eq!(keys(&poller, 4, None), [1]);
            thread::scope(|scope| {
                let wait = || try_keys(&poller, None);
                let asked = source.asked();
                let asking = scope.spawn(wait);
                wait_until("questions", || source.asked() > asked + 10);
                let asleep = scope.spawn(wait);
                wait_until("the other to sleep", || poller.stats().sleeps == 1);
                wait_until("its announcement", || {
                    format!("{poller:?}").contains("waiting: 1")
                });
                set(&fuse, panics);
                match (at, panics) {
                    (Call::Ready, _) => {
                        assert_eq!(asking.join().unwrap(), Err(vec![]));
                        wait_until("the end", || !source.is_begun());
                        kick.signal();
                        assert_eq!(asleep.join().unwrap(), Ok(vec![1]));
                    }
                    (_, SOME) => {
                        // The end of polling comes before the report. If the other thread was about to sleep only, it
                        // may end it instead, and has the panic.
                        source.set_ready(true);
                        let results = [asking, asleep].map(|thread| thread.join().unwrap());
                        let panics = results.iter().filter(|result| result.is_err());
                        assert_eq!(panics.count(), 1, "{results:?}");
                        let (Ok(keys) | Err(keys)) = &results[0];
                        assert_eq!(*keys, [1], "{results:?}");
                    }
                    _ => {
                        // Polling of the source cannot be ended, so no thread sleeps. If the other thread was about to
                        // sleep only, the one that asks need not end it.
                        source.set_ready(true);
                        let results = [asking, asleep].map(|thread| thread.join().unwrap());
                        assert!(results[1].is_err(), "{results:?}");
                        let (Ok(keys) | Err(keys)) = &results[0];
                        assert_eq!(*keys, [1], "{results:?}");
                    }
                }
            });
            set(&fuse, 0);
            source.set_ready(false);
            assert_eq!(keys(&poller, 4, SOON), NOTHING);
            assert!(!source.is_begun());
        }
    });
}

/// A probe that panics whenever it is asked hides no other probe, and no edge that has been found.
#[test]
fn none_is_hidden() {
    let three = Three::new(Spin::Never, Call::Ready);
    assert_eq!(keys(&three.poller, 8, None), [1, 2, 3]);
    set(&three.fuse, EVER);
    three.sources[0].set_ready(true);
    three.sources[2].set_ready(true);
    let event = Arc::new(Event::new(1));
    three.poller.add(&event, 4, Watch::READABLE.edge()).unwrap();
    let mut found = [0; 5];
    for _ in 0..8 {
        let (Ok(keys) | Err(keys)) = try_keys(&three.poller, AT_ONCE);
        keys.into_iter().for_each(|key| found[key] += 1);
    }
    assert!(found[1] >= 2 && found[3] >= 2, "{found:?}");
    assert_eq!((found[2], found[4]), (0, 1));
}

/// A probe that is deleted, or dropped with its poller, is gone even if one panics, and polling ends for the others.
#[test]
fn deleted_and_dropped() {
    for at in [Call::End, Call::Drop] {
        for by_drop in [false, true] {
            let three = Three::new(Spin::Never, at);
            assert_eq!(keys(&three.poller, 8, None), [1, 2, 3]);
            assert_eq!(three.begun(), [true; 3]);
            set(&three.fuse, SOME);
            let Three {
                poller,
                kicks,
                sources,
                ..
            } = three;
            if by_drop {
                panic::catch_unwind(AssertUnwindSafe(|| drop(poller))).unwrap_err();
            } else {
                panic::catch_unwind(AssertUnwindSafe(|| poller.delete(2))).unwrap_err();
                is_held_by_fewer_than(2, &kicks[1]);
                assert_eq!(Arc::strong_count(&sources[1]), 1);
                // The key is vacant, and so is the probe's place.
                poller.add(&kicks[1], 2, Watch::READABLE.edge()).unwrap();
                let again = Arc::new(Source::default());
                poller.attach_probe(2, again.probe()).unwrap();
                assert_eq!(keys(&poller, 8, SOON), [2]);
                assert!(again.is_begun());
                drop(poller);
                assert!(!again.is_begun());
            }
            for (index, (kick, source)) in kicks.iter().zip(&sources).enumerate() {
                // Polling stays begun only for the source whose probe panics in its end.
                assert_eq!(source.is_begun(), at == Call::End && index == 1);
                assert_eq!(Arc::strong_count(source), 1);
                is_held_by_fewer_than(2, kick);
            }
        }
    }
}

#[test]
fn attached_in_vain() {
    let poller = Poller::with_spin(Spin::Never);
    let (kick, source) = (Arc::new(Event::new(0)), Arc::new(Source::default()));
    poller.add(&kick, 1, Watch::READABLE.edge()).unwrap();
    let (fragile, fuse) = Fragile::new(&source, Call::Ready);
    set(&fuse, SOME);
    panic::catch_unwind(AssertUnwindSafe(|| poller.attach_probe(1, fragile))).unwrap_err();
    assert_eq!(Arc::strong_count(&source), 1);
    source.set_ready(true);
    assert_eq!(keys(&poller, 4, SOON), NOTHING);
    assert_eq!(poller.attach_probe(1, source.probe()), Ok(()));
    assert_eq!(keys(&poller, 4, None), [1]);
}
