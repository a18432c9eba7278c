//! The ioeventfd table: lookups against changes.
//!
//! `../breakages/table.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.
//! `srcu.rs` models snapshots, and when they may be freed.

use doorbell::Event;
use doorbell::ioeventfd::{Bus, Doorbell, Key, Kick, Table, ValueQueue};
use doorbell::sync::srcu::with_section;
use loom::thread;
use loom_tests::check;
use std::sync::Arc;

const KEY: Key = Key::mmio(0x1000, 4);
const OTHER: Key = Key::mmio(0x2000, 0);

/// A table made before there are threads, as its readers' slots are.
fn table() -> Table {
    let table = Table::new();
    assert!(!table.reader().write(Bus::Mmio, KEY.address, &[0; 4]));
    table
}

fn write(table: &Table, key: Key) -> bool {
    table.write(Bus::Mmio, key.address, &[0; 4])
}

/// Runs `f` on a thread of the model with a handle to `table`.
fn spawn<T: 'static>(
    table: &Table,
    f: impl FnOnce(&Table) -> T + 'static,
) -> thread::JoinHandle<T> {
    let table = table.clone();
    thread::spawn(move || f(&table))
}

/// A lookup races an assign: it may ring the doorbell or not; a lookup after the assign does.
#[test]
fn lookup_and_assign() {
    check("lookup_and_assign", None, || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let vcpu = spawn(&table, |table| {
            let reader = table.reader();
            u64::from(reader.write(Bus::Mmio, KEY.address, &[0; 4]))
        });
        table.assign(KEY, &event).unwrap().keep();
        assert!(write(&table, KEY));
        let taken = vcpu.join().unwrap();
        assert_eq!(event.count(), 1 + taken);
    });
}

/// Once a deassign has returned, no signal comes through the entry, and nothing holds the event.
#[test]
fn lookup_and_deassign() {
    check("lookup_and_deassign", None, || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let registration = table.assign(KEY, &event).unwrap();
        let vcpu = spawn(&table, |table| {
            let reader = table.reader();
            u64::from(reader.write(Bus::Mmio, KEY.address, &[0; 4]))
        });
        drop(registration);
        let event = Arc::try_unwrap(event).unwrap();
        let count = event.count();
        assert!(!write(&table, KEY));
        assert_eq!(vcpu.join().unwrap(), count);
        assert_eq!(event.count(), count);
    });
}

/// The same for a thread that has no `Reader`, and ends.
#[test]
fn lookup_by_a_thread_that_ends() {
    check("lookup_by_a_thread_that_ends", None, || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let registration = table.assign(KEY, &event).unwrap();
        let vcpu = spawn(&table, |table| u64::from(write(table, KEY)));
        drop(registration);
        let count = event.count();
        assert_eq!(vcpu.join().unwrap(), count);
        assert_eq!(event.count(), count);
    });
}

/// Neither of two writers undoes what the other did.
#[test]
fn two_writers() {
    check("two_writers", None, || {
        let table = table();
        let events = [KEY, OTHER].map(|_| Arc::new(Event::new(0)));
        let other = {
            let event = Arc::clone(&events[1]);
            spawn(&table, move |table| table.assign(OTHER, &event).unwrap())
        };
        let one = table.assign(KEY, &events[0]).unwrap();
        let other = other.join().unwrap();
        assert!(write(&table, KEY) && write(&table, OTHER));
        drop((one, other));
        assert!(!write(&table, KEY) && !write(&table, OTHER));
    });
}

/// Of two writers that want the same key, one gets it.
#[test]
fn two_writers_one_key() {
    check("two_writers_one_key", None, || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let other = {
            let event = Arc::clone(&event);
            spawn(&table, move |table| table.assign(KEY, &event).ok())
        };
        let one = table.assign(KEY, &event).ok();
        let other = other.join().unwrap();
        assert!(one.is_some() != other.is_some());
        assert_eq!(table.doorbells().len(), 1);
    });
}

/// A doorbell that moves is in the old place or in the new one at any time.
#[test]
fn lookups_and_a_move() {
    check("lookups_and_a_move", None, || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let mut registrations = vec![table.assign(KEY, &event).unwrap()];
        let vcpu = spawn(&table, |table| {
            let reader = table.reader();
            [KEY, OTHER].map(|key| reader.write(Bus::Mmio, key.address, &[0; 4]))
        });
        let there = Doorbell::new(OTHER, &event);
        table.replace(&mut registrations, [there]).unwrap();
        let taken = vcpu.join().unwrap();
        assert_ne!(taken, [false, false]);
        assert_eq!(event.count(), taken.map(u64::from).iter().sum::<u64>());
    });
}

/// Where a reader's last lookup ended, another doorbell stands after a change: that doorbell takes its own writes and
/// no others.
#[test]
fn last_hit_and_a_change() {
    check("last_hit_and_a_change", Some(3), || {
        let table = table();
        let events = [KEY, OTHER].map(|_| Arc::new(Event::new(0)));
        let mut registrations = vec![table.assign(KEY, &events[0]).unwrap()];
        let vcpu = spawn(&table, |table| {
            let reader = table.reader();
            let hit = |key: Key| u64::from(reader.write(Bus::Mmio, key.address, &[0; 4]));
            let first = hit(KEY);
            [first + hit(KEY), hit(OTHER)]
        });
        let there = Doorbell::new(OTHER, &events[1]);
        table.replace(&mut registrations, [there]).unwrap();
        let taken = vcpu.join().unwrap();
        assert_eq!(events.map(|event| event.count()), taken);
    });
}

/// A deassign inside a lookup of the same thread returns, holds for lookups that begin after it, and has let go of the
/// event when the outer lookup ends. Another thread's deassign changes none of this.
#[test]
fn deassign_inside_a_lookup() {
    check("deassign_inside_a_lookup", Some(3), || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let inner = table.assign(KEY, &event).unwrap();
        let other = table.assign(OTHER, &event).unwrap();
        let vcpu = thread::spawn(move || drop(other));
        // Stands for an observer's callback.
        with_section(|_| {
            drop(inner);
            assert!(!write(&table, KEY));
        });
        vcpu.join().unwrap();
        // No other thread was inside a section when this one ended.
        assert_eq!(Arc::strong_count(&event), 1);
    });
}

/// A queue is looked at while a guest writes, and then emptied: no write is lost or taken twice, and they come in their
/// order.
#[test]
fn a_queue_is_looked_at_during_a_write() {
    check("a_queue_is_looked_at_during_a_write", None, || {
        let table = table();
        let event = Arc::new(Event::new(0));
        let queue = Arc::new(ValueQueue::new(&event, 2));
        let registration = table.assign(KEY, &queue).unwrap();
        assert!(queue.push(Kick::new(0, 7)));
        let vcpu = spawn(&table, |table| write(table, KEY));
        let looker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.iter().map(|kick| kick.value).collect::<Vec<_>>())
        };
        let first = queue.pop();
        assert_eq!(first, Some(Kick::new(0, 7)));
        let seen = looker.join().unwrap();
        assert!([&[7, 0][..], &[7], &[0], &[]].contains(&&*seen), "{seen:?}");
        assert!(vcpu.join().unwrap());
        assert_eq!(event.count(), 1);
        assert!(queue.drain().eq([Kick::new(0, 0)]));
        drop(registration);
    });
}
