//! The event: counter, sleeping, waking, timeouts.
//!
//! `../breakages/event.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.

use doorbell::Mode;
use loom::sync::Arc;
use loom::thread;
use loom_tests::{Cargo, SOME_TIME, check, event, futex, spawn};

/// The most that `write` can bring the count to.
const FULL: u64 = u64::MAX - 1;

/// A signal, which hands data over, races a reader that goes to sleep.
#[test]
fn signal_and_reader() {
    check("signal_and_reader", None, || {
        let event = event(0, Mode::Counter);
        let cargo = Arc::new(Cargo::default());
        let device = {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                assert_eq!(event.read(), 1);
                assert_eq!(cargo.get(), 7);
            })
        };
        cargo.put(7);
        event.signal();
        device.join().unwrap();
    });
}

/// A reader acquires from all the writers whose units it takes at once, and not only from the last one.
#[test]
fn two_writers_and_a_reader() {
    check("two_writers_and_a_reader", Some(3), || {
        let event = event(0, Mode::Counter);
        let cargo = Arc::new([Cargo::default(), Cargo::default()]);
        let writer = {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                cargo[0].put(1);
                event.write(1).unwrap();
            })
        };
        let signaller = {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                cargo[1].put(2);
                event.signal_n(2);
            })
        };
        let mut sum = 0;
        while sum < 3 {
            let value = event.read();
            for bit in 0..2 {
                if value & (1 << bit) != 0 {
                    assert_eq!(cargo[bit].get(), 1 << bit);
                }
            }
            sum += value;
        }
        assert_eq!(event.try_read(), None);
        writer.join().unwrap();
        signaller.join().unwrap();
    });
}

/// A reader that has slept costs later signals nothing, and a burst costs one wake-up for each sleep.
#[test]
fn a_wake_is_paid_once() {
    check("a_wake_is_paid_once", None, || {
        let event = event(0, Mode::Counter);
        let device = spawn(&event, |event| event.read());
        event.signal();
        event.signal();
        let first = device.join().unwrap();
        assert!(futex::wakes() <= 1);
        let before = futex::wakes();
        event.signal();
        assert_eq!(futex::wakes(), before, "a wake-up without a sleeper");
        assert_eq!(first + event.read(), 3);
    });
}

/// A reader that sleeps again and again, as a device thread does.
#[test]
fn a_reader_comes_back() {
    check("a_reader_comes_back", Some(4), || {
        let event = event(0, Mode::Counter);
        let device = spawn(&event, |event| {
            let mut sum = 0;
            while sum < 2 {
                sum += event.read();
            }
            assert_eq!(sum, 2);
        });
        event.signal();
        event.signal();
        device.join().unwrap();
    });
}

/// Two units at once are for two readers.
#[test]
fn semaphore_two_readers_one_write() {
    check("semaphore_two_readers_one_write", Some(3), || {
        let event = event(0, Mode::Semaphore);
        let readers = [(); 2].map(|()| spawn(&event, |event| event.read()));
        event.write(2).unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
        assert_eq!(event.count(), 0);
    });
}

/// Two units one after the other: the second signal may find no reader announced, so the first reader hands the wake-up
/// on.
#[test]
fn semaphore_two_readers_two_signals() {
    check("semaphore_two_readers_two_signals", Some(3), || {
        let event = event(0, Mode::Semaphore);
        let readers = [(); 2].map(|()| spawn(&event, |event| event.read()));
        event.signal();
        event.signal();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
        assert_eq!(event.count(), 0);
    });
}

/// Two units, one after the other, wake two sleeping readers, though the first reader has not run in between.
#[test]
fn semaphore_a_wake_up_for_each_unit() {
    check("semaphore_a_wake_up_for_each_unit", Some(3), || {
        let event = event(0, Mode::Semaphore);
        let readers = [(); 2].map(|()| spawn(&event, |event| event.read()));
        // Here the readers may run, and fall asleep.
        thread::yield_now();
        let asleep = futex::asleep();
        event.signal();
        event.signal();
        assert!(asleep < 2 || futex::woken() == 2, "one reader sleeps on");
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
    });
}

/// More units than readers cost no more wake-ups than readers.
#[test]
fn semaphore_no_more_wake_ups_than_readers() {
    check("semaphore_no_more_wake_ups_than_readers", Some(2), || {
        let event = event(0, Mode::Semaphore);
        let readers = [(); 2].map(|()| spawn(&event, |event| event.read()));
        // Here the readers may run, and fall asleep.
        thread::yield_now();
        let asleep = futex::asleep();
        let before = futex::wakes();
        (0..4).for_each(|_| event.signal());
        assert!(
            asleep < 2 || futex::wakes() - before <= 2,
            "wake-ups without a sleeper"
        );
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 1);
        }
        assert_eq!(event.count(), 2);
    });
}

/// Wake-ups of a counter are handed on, too: the second signal may come while no reader is announced and one still
/// sleeps.
#[test]
fn counter_two_readers_two_signals() {
    check("counter_two_readers_two_signals", Some(3), || {
        let event = event(0, Mode::Counter);
        let readers = [(); 2].map(|()| {
            spawn(&event, |event| {
                // A reader that took both signals rings for the other reader.
                if event.read() == 2 {
                    event.signal();
                }
            })
        });
        event.signal();
        event.signal();
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// Of two concurrent writes, one loses the race for the count, and wakes the reader all the same.
#[test]
fn two_writes_and_a_reader() {
    check("two_writes_and_a_reader", Some(3), || {
        let event = event(0, Mode::Counter);
        let writers = [(); 2].map(|()| spawn(&event, |event| event.write(1).unwrap()));
        let mut read = 0;
        while read < 2 {
            read += event.read();
        }
        for writer in writers {
            writer.join().unwrap();
        }
    });
}

/// A thread that never sleeps takes what a sleeper was woken for.
#[test]
fn semaphore_thief() {
    check("semaphore_thief", Some(2), || {
        let event = event(0, Mode::Semaphore);
        let reader = spawn(&event, |event| event.read());
        let thief = spawn(&event, |event| event.try_read());
        event.signal();
        if thief.join().unwrap().is_some() {
            event.signal();
        }
        assert_eq!(reader.join().unwrap(), 1);
    });
}

/// A writer that found no room is released by the reader that makes room, and acquires from that reader.
#[test]
fn overflow_released_by_reader() {
    check("overflow_released_by_reader", None, || {
        let event = event(FULL, Mode::Counter);
        let cargo = Arc::new(Cargo::default());
        let writer = {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                event.write(2).unwrap();
                assert_eq!(cargo.get(), 7);
            })
        };
        cargo.put(7);
        assert_eq!(event.read(), FULL);
        writer.join().unwrap();
        assert_eq!(event.read(), 2);
    });
}

/// As many units must be read as the writer wants to add. Each read wakes the writer, and all but the last read wake it
/// too early.
#[test]
fn overflow_semaphore() {
    check("overflow_semaphore", None, || {
        let event = event(FULL, Mode::Semaphore);
        let writer = spawn(&event, |event| event.write(2).unwrap());
        event.read();
        event.read();
        writer.join().unwrap();
        assert_eq!(event.count(), FULL);
    });
}

/// The same with two concurrent readers, of which one loses the race for the count, and wakes the writer all the same.
#[test]
fn overflow_semaphore_two_readers() {
    check("overflow_semaphore_two_readers", Some(3), || {
        let event = event(FULL, Mode::Semaphore);
        let writer = spawn(&event, |event| event.write(2).unwrap());
        let reader = spawn(&event, |event| event.read());
        event.read();
        writer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(event.count(), FULL);
    });
}

/// Two writers of different size: waking the one that does not fit must not leave the other asleep.
#[test]
fn overflow_two_writers() {
    check("overflow_two_writers", Some(2), || {
        let event = event(FULL, Mode::Semaphore);
        let writers = [3, 1].map(|n| spawn(&event, move |event| event.write(n).unwrap()));
        for _ in 0..4 {
            event.read();
        }
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(event.count(), FULL);
    });
}

/// Both sides may have to sleep: a blocked writer feeds a blocked reader.
#[test]
fn overflow_ping_pong() {
    check("overflow_ping_pong", Some(3), || {
        let event = event(FULL, Mode::Counter);
        let writer = spawn(&event, |event| {
            event.write(1).unwrap();
            event.write(FULL).unwrap();
        });
        let mut reads = 0;
        while event.read() != FULL || reads == 0 {
            reads += 1;
        }
        writer.join().unwrap();
        assert_eq!(event.count(), 0);
    });
}

/// The value is returned, or it is still in the event.
#[test]
fn timeout_races_signal() {
    check("timeout_races_signal", None, || {
        let event = event(0, Mode::Counter);
        let reader = spawn(&event, |event| event.read_timeout(SOME_TIME));
        let clock = thread::spawn(futex::expire);
        event.signal();
        let taken = reader.join().unwrap();
        assert_eq!(taken.or_else(|| event.try_read()), Some(1));
        assert_eq!(event.try_read(), None);
        clock.join().unwrap();
    });
}

/// A reader that times out must not use up the wake-up of a reader that goes on waiting.
#[test]
fn timeout_passes_the_wake_on() {
    check("timeout_passes_the_wake_on", Some(2), || {
        let event = event(0, Mode::Counter);
        let patient = spawn(&event, |event| event.read());
        let hasty = spawn(&event, |event| event.read_timeout(SOME_TIME));
        let clock = thread::spawn(futex::expire);
        event.signal();
        if hasty.join().unwrap().is_some() {
            event.signal();
        }
        assert_eq!(patient.join().unwrap(), 1);
        clock.join().unwrap();
        let before = futex::wakes();
        event.signal();
        assert_eq!(futex::wakes(), before, "a wake-up without a sleeper");
    });
}

/// One of two readers times out before any signal: the other one stays announced.
#[test]
fn timeout_leaves_the_other_announced() {
    check("timeout_leaves_the_other_announced", Some(3), || {
        let event = event(0, Mode::Semaphore);
        let patient = spawn(&event, |event| event.read());
        let clock = thread::spawn(futex::expire);
        let hasty = event.read_timeout(SOME_TIME);
        assert_eq!(hasty, None);
        event.signal();
        assert_eq!(patient.join().unwrap(), 1);
        clock.join().unwrap();
    });
}

/// A write that times out has added nothing; a write that does not has added everything.
#[test]
fn write_timeout_races_read() {
    check("write_timeout_races_read", Some(3), || {
        let event = event(FULL, Mode::Counter);
        let writer = spawn(&event, |event| event.write_timeout(5, SOME_TIME));
        let clock = thread::spawn(futex::expire);
        assert_eq!(event.read(), FULL);
        let left = if writer.join().unwrap().is_ok() { 5 } else { 0 };
        assert_eq!(event.count(), left);
        clock.join().unwrap();
    });
}

/// A blocked writer that gives up does not use up the wake-up of a writer that goes on waiting.
#[test]
fn write_timeout_beside_a_writer() {
    check("write_timeout_beside_a_writer", Some(2), || {
        let event = event(FULL, Mode::Counter);
        let patient = spawn(&event, |event| event.write(1));
        let hasty = spawn(&event, |event| event.write_timeout(2, SOME_TIME));
        let clock = thread::spawn(futex::expire);
        assert_eq!(event.read(), FULL);
        patient.join().unwrap().unwrap();
        let left = if hasty.join().unwrap().is_ok() { 3 } else { 1 };
        assert_eq!(event.count(), left);
        clock.join().unwrap();
    });
}

/// A wait whose sleep ends spuriously goes on.
#[test]
fn spurious_wake_ups() {
    check("spurious_wake_ups", Some(3), || {
        let event = event(0, Mode::Counter);
        let reader = spawn(&event, |event| event.read());
        let handler = thread::spawn(futex::interrupt);
        event.signal();
        assert_eq!(reader.join().unwrap(), 1);
        handler.join().unwrap();
    });
}

/// Signals saturate, and one read takes the value that they saturate at.
#[test]
fn signals_saturate() {
    check("signals_saturate", None, || {
        let event = event(FULL, Mode::Counter);
        let signaller = spawn(&event, |event| event.signal());
        event.signal();
        signaller.join().unwrap();
        assert!(event.readiness().is_error());
        assert_eq!(event.read(), u64::MAX);
        assert_eq!(event.count(), 0);
    });
}

/// A signal wakes a thread that takes nothing in place of a reader, and hands data over to both.
#[test]
fn a_wait_beside_a_reader() {
    check("a_wait_beside_a_reader", Some(3), || {
        let event = event(0, Mode::Counter);
        let cargo = Arc::new(Cargo::default());
        let waiter = {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                event.wait_readable();
                assert_eq!(cargo.get(), 7);
            })
        };
        let reader = spawn(&event, |event| event.read());
        cargo.put(7);
        event.signal();
        assert_eq!(reader.join().unwrap(), 1);
        // The other thread may have slept through the signal.
        event.signal();
        waiter.join().unwrap();
        assert_eq!(event.try_read(), Some(1));
    });
}

/// The same with a semaphore, each unit of which is for one reader.
#[test]
fn semaphore_a_wait_beside_a_reader() {
    check("semaphore_a_wait_beside_a_reader", Some(3), || {
        let event = event(0, Mode::Semaphore);
        let waiter = spawn(&event, |event| event.wait_readable());
        let reader = spawn(&event, |event| event.read());
        event.signal();
        assert_eq!(reader.join().unwrap(), 1);
        event.signal();
        waiter.join().unwrap();
        assert_eq!(event.count(), 1);
    });
}

/// One signal ends all waits if no thread reads.
#[test]
fn one_signal_ends_every_wait() {
    check("one_signal_ends_every_wait", Some(2), || {
        let event = event(0, Mode::Counter);
        let waiters = [(); 3].map(|()| spawn(&event, |event| event.wait_readable()));
        event.signal();
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(event.count(), 1);
    });
}

/// A thread that takes nothing times out when it was woken in place of a reader.
#[test]
fn a_wait_times_out_beside_a_reader() {
    check("a_wait_times_out_beside_a_reader", Some(2), || {
        let event = event(0, Mode::Counter);
        let hasty = spawn(&event, |event| event.wait_readable_timeout(SOME_TIME));
        let reader = spawn(&event, |event| event.read());
        let clock = thread::spawn(futex::expire);
        event.signal();
        assert_eq!(reader.join().unwrap(), 1);
        hasty.join().unwrap();
        clock.join().unwrap();
        assert_eq!(event.try_read(), None);
    });
}

/// All units are taken at once while another reader takes units one by one, and a writer gets room.
#[test]
fn semaphore_read_as_a_whole() {
    check("semaphore_read_as_a_whole", Some(3), || {
        let event = event(FULL, Mode::Semaphore);
        let writer = spawn(&event, |event| event.write(3).unwrap());
        let reader = spawn(&event, |event| event.read());
        let all = event.try_read_all().unwrap();
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), 1);
        let left = event.try_read_all().unwrap_or(0);
        assert_eq!(all - (FULL - 3) + left, 5);
        assert_eq!(event.count(), 0);
    });
}

/// Two signallers see one announcement: one of them makes the system call.
#[test]
fn two_signals_one_wake() {
    check("two_signals_one_wake", Some(3), || {
        let event = event(0, Mode::Counter);
        let reader = spawn(&event, |event| event.read());
        let signaller = spawn(&event, |event| event.signal());
        event.signal();
        signaller.join().unwrap();
        let first = reader.join().unwrap();
        assert!(futex::wakes() <= 1);
        assert_eq!(first + event.try_read().unwrap_or(0), 2);
    });
}
