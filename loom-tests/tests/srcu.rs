//! SRCU: snapshots and their readers.
//!
//! `../breakages/srcu.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.

use doorbell::sync::srcu::{self, Deferral, Reader, Section, Srcu, reclaim, with_section};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use loom_tests::check;

/// A snapshot whose drop loom sees: loom reports an access that nothing orders before the drop.
struct Page {
    number: u32,
    alive: UnsafeCell<bool>,
}

// SAFETY: loom checks each access to the cell.
unsafe impl Sync for Page {}
// SAFETY: it is a number and a flag.
unsafe impl Send for Page {}

impl Page {
    fn new(number: u32) -> Self {
        Page {
            number,
            alive: UnsafeCell::new(true),
        }
    }

    fn look(&self) -> u32 {
        // SAFETY: checked by loom.
        assert!(self.alive.with(|alive| unsafe { *alive }));
        self.number
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: checked by loom.
        self.alive.with_mut(|alive| unsafe { *alive = false });
    }
}

type Book = Srcu<Page>;

fn book() -> Arc<Book> {
    Arc::new(Srcu::new(Page::new(0)))
}

fn turn_to(book: &Book, number: u32) {
    book.write().publish(Page::new(number), ());
}

fn look(book: &Book, reader: &Reader) -> u32 {
    book.read(&reader.enter()).look()
}

fn with_page(book: &Book, section: &Section<'_>, f: impl FnOnce(&Page)) {
    f(&book.read(section));
}

/// A lookup races a change: it sees the whole old page or the whole new one, and the old page is dropped after the
/// lookup.
#[test]
fn lookup_and_change() {
    check("lookup_and_change", Some(4), || {
        let book = book();
        let reader = Reader::new();
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || turn_to(&book, 1))
        };
        assert!(look(&book, &reader) <= 1);
        assert!(look(&book, &reader) <= 1);
        writer.join().unwrap();
        assert_eq!(look(&book, &reader), 1);
    });
}

/// When a change has returned, nothing comes through the old snapshot any more.
#[test]
fn nothing_comes_after_a_change() {
    check("nothing_comes_after_a_change", Some(3), || {
        let book = book();
        let returned = Arc::new(AtomicBool::new(false));
        let vcpu = {
            let (book, returned) = (Arc::clone(&book), Arc::clone(&returned));
            thread::spawn(move || {
                let reader = Reader::new();
                with_page(&book, &reader.enter(), |page| {
                    let number = page.look();
                    // This stands for the signal: by then the change has not returned, unless the page is the new one.
                    assert!(number == 1 || !returned.load(Ordering::Relaxed));
                });
            })
        };
        turn_to(&book, 1);
        returned.store(true, Ordering::Relaxed);
        vcpu.join().unwrap();
    });
}

/// A writer that holds a lock when it publishes, and a reader that takes it inside its section: neither waits for the
/// other for ever. When the writer's deferral has ended, nothing comes through the old snapshot any more, and the old
/// snapshot has been dropped.
#[test]
fn change_under_a_lock() {
    check("change_under_a_lock", Some(3), || {
        let shared = Arc::new((Mutex::new(()), book()));
        let returned = Arc::new(AtomicBool::new(false));
        let vcpu = {
            let (shared, returned) = (Arc::clone(&shared), Arc::clone(&returned));
            thread::spawn(move || {
                let (lock, book) = &*shared;
                let reader = Reader::new();
                with_page(book, &reader.enter(), |page| {
                    drop(lock.lock().unwrap());
                    let number = page.look();
                    assert!(number == 1 || !returned.load(Ordering::Relaxed));
                });
            })
        };
        {
            let (lock, book) = &*shared;
            let deferral = Deferral::new();
            let locked = lock.lock().unwrap();
            turn_to(book, 1);
            drop(locked);
            drop(deferral);
        }
        returned.store(true, Ordering::Relaxed);
        vcpu.join().unwrap();
    });
}

/// Two writers, one reader: each drops once what it replaced, and neither waits for the other.
#[test]
fn two_writers() {
    check("two_writers", Some(1), || {
        let book = book();
        let writers = [1, 2].map(|number| {
            let book = Arc::clone(&book);
            thread::spawn(move || turn_to(&book, number))
        });
        let reader = Reader::new();
        assert!(look(&book, &reader) <= 2);
        for writer in writers {
            writer.join().unwrap();
        }
        assert_ne!(look(&book, &reader), 0);
    });
}

/// A reader comes into being, and leaves its slot to the next, while a writer walks the list.
#[test]
fn readers_come_and_go() {
    check("readers_come_and_go", Some(3), || {
        let book = book();
        let vcpu = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                for _ in 0..2 {
                    let reader = Reader::new();
                    assert!(look(&book, &reader) <= 1);
                }
            })
        };
        turn_to(&book, 1);
        vcpu.join().unwrap();
    });
}

/// A section inside a section does not end the outer one.
#[test]
fn sections_nest() {
    check("sections_nest", Some(3), || {
        let book = book();
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || turn_to(&book, 1))
        };
        let reader = Reader::new();
        let outer = reader.enter();
        with_page(&book, &outer, |page| {
            look(&book, &reader);
            page.look();
        });
        drop(outer);
        writer.join().unwrap();
    });
}

/// A writer inside a section of its own returns, and the page it replaced can be looked at until the section ends.
#[test]
fn change_inside_a_section() {
    check("change_inside_a_section", Some(3), || {
        let book = book();
        let other = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                let reader = Reader::new();
                assert!(look(&book, &reader) <= 1);
            })
        };
        with_section(|section| {
            with_page(&book, section, |page| {
                turn_to(&book, 1);
                assert_eq!(page.look(), 0);
            });
            assert_eq!(book.read(section).look(), 1);
        });
        other.join().unwrap();
    });
}

/// Two threads, each inside a section of one snapshot, change the other: neither thread waits for the other.
#[test]
fn changes_across_sections() {
    check("changes_across_sections", Some(3), || {
        let books = [book(), book()];
        let other = {
            let books = books.clone();
            thread::spawn(move || {
                let reader = Reader::new();
                with_page(&books[0], &reader.enter(), |page| {
                    turn_to(&books[1], 1);
                    page.look();
                });
            })
        };
        let reader = Reader::new();
        with_page(&books[1], &reader.enter(), |page| {
            turn_to(&books[0], 1);
            page.look();
        });
        other.join().unwrap();
    });
}

/// A page that records which thread drops it.
struct Leaf {
    _page: Page,
    ends_on: loom::thread::ThreadId,
}

impl Leaf {
    /// A page that this thread is to retire.
    fn new() -> Self {
        Leaf {
            _page: Page::new(0),
            ends_on: thread::current().id(),
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        assert_eq!(thread::current().id(), self.ends_on);
    }
}

/// What a thread retires inside a section is dropped by that thread or in `reclaim`. Neither a writer that waits at the
/// same time nor a reader drops it.
#[test]
fn who_retires_drops() {
    check("who_retires_drops", Some(3), || {
        let book = book();
        let other = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                let reader = Reader::new();
                for _ in 0..2 {
                    let section = reader.enter();
                    with_page(&book, &section, |page| _ = page.look());
                    srcu::retire(Leaf::new());
                }
                // Outside of sections, no thread waits.
                book.write().publish(Page::new(1), Leaf::new());
            })
        };
        turn_to(&book, 2);
        other.join().unwrap();
    });
}

/// A thread that retires in several sections, without ever waiting, frees nothing that a reader may hold; `reclaim`
/// frees what is left, at the latest.
#[test]
fn retired_in_several_sections() {
    check("retired_in_several_sections", Some(4), || {
        let book = book();
        let reader = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                let reader = Reader::new();
                for _ in 0..2 {
                    with_page(&book, &reader.enter(), |page| _ = page.look());
                }
            })
        };
        let own = Reader::new();
        for number in 1..=2 {
            let section = own.enter();
            turn_to(&book, number);
            assert_eq!(book.read(&section).look(), number);
        }
        reader.join().unwrap();
        assert!(reclaim());
    });
}

/// Writers that do not wait, and a reader: one of the writers frees what they replace, after the reader has left.
#[test]
fn published_without_waiting() {
    check("published_without_waiting", Some(3), || {
        let book = book();
        let writer = {
            let book = Arc::clone(&book);
            thread::spawn(move || book.write().publish_without_waiting(Page::new(1)))
        };
        let reader = Reader::new();
        with_page(&book, &reader.enter(), |page| _ = page.look());
        book.write().publish_without_waiting(Page::new(2));
        with_page(&book, &reader.enter(), |page| assert_ne!(page.look(), 0));
        writer.join().unwrap();
        assert!(reclaim());
    });
}

/// `reclaim` beside a thread that is inside a section, and retires what it looks at.
#[test]
fn reclaim_and_a_section() {
    check("reclaim_and_a_section", Some(3), || {
        let book = book();
        let other = {
            let book = Arc::clone(&book);
            thread::spawn(move || {
                let reader = Reader::new();
                with_page(&book, &reader.enter(), |page| {
                    turn_to(&book, 1);
                    page.look();
                });
            })
        };
        assert!(reclaim());
        other.join().unwrap();
        assert!(reclaim());
    });
}

/// A reader that has retired something in its section may hold a lock when the section ends. Another reader may wait
/// for that lock inside its own section, so the first does not wait for the other.
#[test]
fn a_section_ends_under_a_lock() {
    check("a_section_ends_under_a_lock", Some(3), || {
        let shared = Arc::new((Mutex::new(()), book()));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (lock, book) = &*shared;
                let reader = Reader::new();
                with_page(book, &reader.enter(), |page| {
                    drop(lock.lock().unwrap());
                    page.look();
                });
            })
        };
        let (lock, book) = &*shared;
        let locked = lock.lock().unwrap();
        with_section(|_| turn_to(book, 1));
        drop(locked);
        other.join().unwrap();
        assert!(reclaim());
    });
}
