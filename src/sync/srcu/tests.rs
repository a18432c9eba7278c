use super::grace::{Domain, domain};
use super::kind::Fenced;
use super::owed::{FREE, FREE_OWN};
use super::piles::{EVERYBODY, Outdated, Owner, free, this_threads_number};
use super::slots::INSIDE;
use super::*;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

type Book = Srcu<Arc<u32>>;

/// All writers of a process wait for all its readers. The tests take turns, so that each knows who frees what.
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

/// The end of a deferral waits for all that was put off, be it twice or of both kinds.
#[test]
fn several_changes_in_a_deferral() {
    let _alone = alone();
    for both in [false, true] {
        let pages = [0, 1, 2].map(Arc::new);
        let [first, second, third] = &pages;
        let book = Srcu::new(Arc::clone(first));
        let light = Srcu::<_, Light>::new(Arc::clone(third));
        let deferral = Deferral::new();
        book.write().publish(Arc::clone(second), ());
        publish(&book, 3);
        if both {
            light.write().publish(Arc::new(4), ());
        }
        assert_eq!(pages.each_ref().map(Arc::strong_count), [2; 3]);
        drop(deferral);
        let left = if both { 1 } else { 2 };
        assert_eq!(pages.each_ref().map(Arc::strong_count), [1, 1, left]);
    }
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

/// A thread whose own reader is gone already, in the destructor of another thread-local value, can still read,
/// write, and nest both.
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

/// Once its sections have ended, a thread waits, and frees at once.
#[test]
fn change_after_a_section() {
    let _alone = alone();
    let first = Arc::new(0);
    let book = Srcu::new(Arc::clone(&first));
    with_section(|section| assert_eq!(**book.read(section), 0));
    publish(&book, 1);
    assert_eq!(Arc::strong_count(&first), 1);
    let second = Arc::new(2);
    book.write().publish(Arc::clone(&second), ());
    drop(book);
    assert_eq!(Arc::strong_count(&second), 1);
}

fn pile(thread: u64, light: bool) -> Owner {
    Owner { thread, light }
}

/// Who has waited for readers takes what is its own: what others have retired meanwhile may be in use.
#[test]
fn who_has_waited_takes_its_own() {
    let domain = Domain::new();
    let reader = domain.claim();
    reader.seq.store(INSIDE, Ordering::Relaxed);
    let own = this_threads_number();
    for thread in [own, EVERYBODY] {
        domain.leave::<Fenced>(thread, Box::new(thread));
    }
    assert!(domain.take_due(true, |_| false).is_empty());
    let due = domain.take_due(true, |_| true);
    let due: Vec<_> = due.iter().map(|thread| thread.downcast_ref()).collect();
    assert_eq!(due, [Some(&own)]);
    // Nor does anybody keep an empty pile.
    let piles = || domain.lock().keys().copied().collect::<Vec<_>>();
    assert_eq!(piles(), [pile(EVERYBODY, false)]);
    reader.seq.store(2 * INSIDE, Ordering::Relaxed);
    assert_eq!(domain.take_due(false, |_| false).len(), 1);
    assert_eq!(piles(), []);
}

#[test]
fn whose_readers_are_waited_for() {
    for (of, light, is_light, expected) in [
        // Those in light sections, which all wait for where fences are the readers'.
        (true, true, true, true),
        (true, false, true, false),
        (true, false, false, true),
        (true, true, false, true),
        // All others, always.
        (false, true, true, true),
        (false, false, true, true),
        (false, false, false, true),
        (false, true, false, true),
    ] {
        let waited_for = pile(1, of).is_waited_for(light, is_light);
        assert_eq!(waited_for, expected, "{of} {light} {is_light}");
    }
}

/// Retires another one of its kind when it is dropped.
struct Chain(u64, u32, Arc<AtomicU32>);

static CHAINED: Domain = Domain::new();

impl Drop for Chain {
    fn drop(&mut self) {
        self.2.fetch_add(1, Ordering::Relaxed);
        if let Some(length) = self.1.checked_sub(1) {
            let next = Chain(self.0, length, Arc::clone(&self.2));
            CHAINED.leave::<Fenced>(self.0, Box::new(next));
        }
    }
}

/// Who frees its own frees what that leads to; who does somebody else's work is done after the first.
#[test]
fn what_destructors_retire() {
    let dropped = Arc::new(AtomicU32::new(0));
    let so_far = || dropped.swap(0, Ordering::Relaxed);
    for (thread, owed, expected) in [(this_threads_number(), FREE_OWN, 4), (EVERYBODY, FREE, 1)] {
        let chain = Chain(thread, 3, Arc::clone(&dropped));
        CHAINED.leave::<Fenced>(thread, Box::new(chain));
        CHAINED.free_due(owed);
        assert_eq!(so_far(), expected);
    }
}

/// All is dropped, whatever panics, and the first panic goes on.
#[test]
fn destructors_that_panic() {
    struct Panics(&'static str);
    impl Drop for Panics {
        fn drop(&mut self) {
            std::panic::panic_any(self.0);
        }
    }
    let last = Arc::new(());
    let due: Vec<Outdated> = vec![
        Box::new(Panics("first")),
        Box::new(Panics("second")),
        Box::new(Arc::clone(&last)),
    ];
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| free(due)));
    let payload = result.expect_err("it panics");
    assert_eq!(payload.downcast_ref(), Some(&"first"));
    assert_eq!(Arc::strong_count(&last), 1);
}

/// Slots are as many as there were readers at one time, not as there were readers.
#[test]
fn slots_are_used_again() {
    let _alone = alone();
    let count = || domain().slots.iter().count();
    let at_once = 8;
    let before = count();
    for _ in 0..250 {
        let threads: Vec<_> = (0..at_once)
            .map(|_| {
                thread::spawn(|| with_section(|_| Reader::new().slot.seq.load(Ordering::Relaxed)))
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

/// In a forked child there is nobody to end a section that another thread was in: a writer does not wait for it. It
/// does for one of the forking thread's.
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
        publish(&book, 1);
        let freed = Arc::strong_count(&first) == 1;
        // SAFETY: as above.
        unsafe { libc::_exit(if freed { 0 } else { 1 }) };
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
    use crate::sync::membarrier::{MembarrierError, use_membarrier};
    let _reader = Reader::new();
    let error = use_membarrier().expect_err("fences are in use");
    assert!(matches!(
        error,
        MembarrierError::TooLate | MembarrierError::Unsupported
    ));
}
