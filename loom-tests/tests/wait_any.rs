//! Waiting for one of several events: woken by any of them, and no reader's wake-up swallowed.
//!
//! Each model runs on a kernel that can wait for several words and on one that cannot. `../breakages/wait_any.toml`
//! lists the ways in which the code was broken on purpose, and which of these models noticed.

use doorbell::poll::wait_any;
use doorbell::{Event, Mode, Spin};
use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use loom_tests::{SOME_TIME, check, futex, spawn};

type Events = Arc<[Event; 2]>;

fn events(mode: Mode) -> Events {
    Arc::new([(); 2].map(|()| Event::with_mode(0, mode).with_spin(Spin::Never)))
}

fn with_vectors(name: &str, preemptions: usize, model: fn()) {
    check(name, Some(preemptions), model);
}

fn without(name: &str, preemptions: usize, model: fn()) {
    check(name, Some(preemptions), move || {
        futex::refuse_wait_any();
        model();
    });
}

macro_rules! models {
    ($($(#[$attribute:meta])* $model:ident($with:literal, $without:literal) $body:block)*) => {
        mod vector {
            $($(#[$attribute])* #[test] fn $model() {
                super::with_vectors(concat!(stringify!($model), ", vector"), $with, super::$model);
            })*
        }
        mod line {
            $($(#[$attribute])* #[test] fn $model() {
                super::without(concat!(stringify!($model), ", line"), $without, super::$model);
            })*
        }
        $($(#[$attribute])* fn $model() $body)*
    };
}

models! {
    /// Each of two signals ends a wait.
    signal_on_either(3, 2) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |events| {
            let mut sum = 0;
            while sum < 2 {
                let ready = wait_any(events, None).expect("no timeout");
                sum += ready.map(|index| events[index].try_read().unwrap()).sum::<u64>();
            }
        });
        let signaller = spawn(&events, |events| events[0].signal());
        events[1].signal();
        waiter.join().unwrap();
        signaller.join().unwrap();
    }

    /// A reader sleeps at an event beside a waiter that takes nothing.
    beside_a_reader(3, 2) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |events| wait_any(events, None).is_some());
        let reader = spawn(&events, |events| events[0].read());
        events[0].signal();
        assert_eq!(reader.join().unwrap(), 1);
        // The other waiter may have slept through the signal.
        events[1].signal();
        assert!(waiter.join().unwrap());
    }

    /// A task waits for an event beside a waiter that takes nothing; if both are in line, the waiter stands before the
    /// task.
    beside_a_task(2, 2) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |events| wait_any(events, None).is_some());
        let task = spawn(&events, |events| block_on(events[0].read_async()));
        events[0].signal();
        assert_eq!(task.join().unwrap(), 1);
        events[1].signal();
        assert!(waiter.join().unwrap());
    }

    /// A waiter is woken by two events at once, and a reader sleeps at the second.
    woken_twice(3, 2) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |events| wait_any(events, None).is_some());
        let reader = spawn(&events, |events| events[1].read());
        events[0].signal();
        events[1].signal();
        assert_eq!(reader.join().unwrap(), 1);
        assert!(waiter.join().unwrap());
    }

    /// The signal has been taken when the waiter looks, and another one comes.
    comes_and_goes(4, 3) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |events| wait_any(events, None).is_some());
        events[0].signal();
        assert_eq!(events[0].try_read(), Some(1));
        events[0].signal();
        assert!(waiter.join().unwrap());
    }

    /// Two waiters that take nothing and one reader, at one event: all go on.
    two_beside_a_reader(1, 1) {
        let events = events(Mode::Counter);
        let waiters = [(); 2].map(|()| spawn(&events, |events| wait_any(&events[..1], None).is_some()));
        let reader = spawn(&events, |events| events[0].read());
        events[0].signal();
        assert_eq!(reader.join().unwrap(), 1);
        events[0].signal();
        for waiter in waiters {
            assert!(waiter.join().unwrap());
        }
    }

    /// All waiters for an event that stays ready return.
    two_told_by_one_signal(2, 2) {
        let events = events(Mode::Semaphore);
        let waiters = [(); 2].map(|()| spawn(&events, |events| wait_any(events, None).is_some()));
        events[1].signal();
        for waiter in waiters {
            assert!(waiter.join().unwrap());
        }
    }

    /// A waiter that gives up does not use up the reader's wake-up.
    timeout_beside_a_reader(2, 2) {
        let events = events(Mode::Counter);
        let hasty = spawn(&events, |events| wait_any(events, Some(SOME_TIME)).is_some());
        let reader = spawn(&events, |events| events[0].read());
        let clock = thread::spawn(futex::expire);
        events[0].signal();
        assert_eq!(reader.join().unwrap(), 1);
        clock.join().unwrap();
        hasty.join().unwrap();
    }

    /// A signal before the timeout is found.
    timeout_races_signal(3, 2) {
        let events = events(Mode::Counter);
        let clock = thread::spawn(futex::expire);
        let signaller = spawn(&events, |events| events[1].signal());
        let found = wait_any(&*events, Some(SOME_TIME)).map(|mut ready| ready.next());
        assert!(matches!(found, None | Some(Some(1))));
        signaller.join().unwrap();
        clock.join().unwrap();
        assert_eq!(events[1].try_read(), Some(1));
    }

    /// An event may be in the list twice.
    twice_the_same(3, 2) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |[event, _]| {
            wait_any(&[event, event], None).expect("no timeout").last()
        });
        events[0].signal();
        // Or the first entry was looked at before the signal.
        assert_eq!(waiter.join().unwrap(), Some(1));
    }

    /// A wait whose sleep ends spuriously goes on.
    interrupted(2, 2) {
        let events = events(Mode::Counter);
        let waiter = spawn(&events, |events| wait_any(events, None).is_some());
        let handler = thread::spawn(futex::interrupt);
        events[1].signal();
        assert!(waiter.join().unwrap());
        handler.join().unwrap();
    }
}
