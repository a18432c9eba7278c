//! A notification of all threads ends the wait of each thread once.
//!
//! `../breakages/notify_all.toml` lists the ways in which the code was broken on purpose, and which of these models
//! noticed.

use doorbell::Spin;
use doorbell::poll::{Events, Poller, PollerFd};
use loom::thread::{self, JoinHandle};
use loom_tests::check;
use std::sync::Arc;

/// A thread that waits until it is notified.
fn waiter(poller: &Arc<Poller>) -> JoinHandle<Events> {
    let poller = Arc::clone(poller);
    thread::spawn(move || {
        let mut events = Events::with_capacity(1);
        assert_eq!(poller.wait(&mut events, None), Ok(0));
        events
    })
}

fn poller() -> Arc<Poller> {
    Arc::new(Poller::with_spin(Spin::Never))
}

/// All threads return, whether they are asleep, about to sleep or have yet to call.
#[test]
fn every_thread_returns() {
    for has_fds in [false, true] {
        check("every_thread_returns", Some(3), move || {
            let poller = poller();
            let fd = has_fds.then(|| PollerFd::new(Arc::clone(&poller)).unwrap());
            let waiters = [(); 2].map(|()| waiter(&poller));
            poller.notify_all();
            for waiter in waiters {
                waiter.join().unwrap();
            }
            drop(fd);
        });
    }
}

/// A thread that has heard the notification and comes back sleeps until the next notification, and takes no other
/// thread's wake-up.
#[test]
fn one_comes_back() {
    for has_fds in [false, true] {
        check("one_comes_back", Some(2), move || {
            let poller = poller();
            let fd = has_fds.then(|| PollerFd::new(Arc::clone(&poller)).unwrap());
            let late = waiter(&poller);
            let back = thread::spawn({
                let poller = Arc::clone(&poller);
                move || {
                    let mut events = Events::with_capacity(1);
                    assert_eq!(poller.wait(&mut events, None), Ok(0));
                    // This wait ends because the other thread has not heard yet, or for the notification below.
                    assert_eq!(poller.wait(&mut events, None), Ok(0));
                }
            });
            poller.notify_all();
            late.join().unwrap();
            poller.notify();
            back.join().unwrap();
            drop(fd);
        });
    }
}

/// An outer loop hears the notification, too.
#[test]
fn an_outer_loop_beside_a_thread() {
    check("an_outer_loop_beside_a_thread", Some(2), || {
        let poller = poller();
        let fd = PollerFd::new(Arc::clone(&poller)).unwrap();
        let waiter = waiter(&poller);
        let notifier = thread::spawn(move || poller.notify_all());
        let mut events = Events::with_capacity(1);
        while fd.arm(&mut events).unwrap() {
            fd.fd().wait_readable();
            fd.disarm();
        }
        waiter.join().unwrap();
        notifier.join().unwrap();
    });
}

/// A second notification comes while threads leave because of the first one.
#[test]
fn twice() {
    check("twice", Some(2), || {
        let poller = poller();
        let waiters = [(); 2].map(|()| waiter(&poller));
        poller.notify_all();
        poller.notify_all();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}
