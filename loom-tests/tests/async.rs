//! Futures on an event: no task in line is forgotten, whichever other tasks are woken, dropped or quicker.
//!
//! `../breakages/async.toml` lists the ways in which the code was broken on purpose, and which of these models noticed.

use doorbell::event::{Change, Interest, Observation};
use doorbell::poll::{Events, Poller, Watch};
use doorbell::sync::brief::BriefMutex;
use doorbell::{Event, Mode, Spin};
use loom::future::block_on;
use loom::sync::Arc;
use loom_tests::{Cargo, check, event, handle, spawn};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// The most that `write` can bring the count to.
const FULL: u64 = u64::MAX - 1;

/// A task that reads once.
fn reader(event: &Event) -> u64 {
    block_on(event.read_async())
}

type Boxed<F> = Pin<Box<F>>;

fn poll_once<F: Future>(future: &mut Boxed<F>) -> Poll<F::Output> {
    poll_with(future, Waker::noop())
}

fn poll_with<F: Future>(future: &mut Boxed<F>, waker: &Waker) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(waker))
}

/// A signal, which hands data over, races a task that joins the line.
#[test]
fn signal_and_task() {
    check("signal_and_task", None, || {
        let event = event(0, Mode::Counter);
        let cargo = Arc::new(Cargo::default());
        let task = {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                assert_eq!(reader(event), 1);
                assert_eq!(cargo.get(), 7);
            })
        };
        cargo.put(7);
        event.signal();
        task.join().unwrap();
    });
}

/// A task comes back again and again.
#[test]
fn a_task_comes_back() {
    check("a_task_comes_back", Some(4), || {
        let event = event(0, Mode::Counter);
        let task = spawn(&event, |event| {
            let mut sum = 0;
            while sum < 2 {
                sum += reader(event);
            }
            assert_eq!(sum, 2);
        });
        event.signal();
        event.signal();
        task.join().unwrap();
    });
}

/// Two tasks that are the first to wait attach one line.
#[test]
fn two_tasks_one_unit_each() {
    check("two_tasks_one_unit_each", Some(2), || {
        let event = event(0, Mode::Semaphore);
        let tasks = [(); 2].map(|()| spawn(&event, reader));
        event.signal_n(2);
        for task in tasks {
            assert_eq!(task.join().unwrap(), 1);
        }
        assert_eq!(event.count(), 0);
    });
}

/// The second signal may find no waiter armed; then the first task hands the wake-up on.
#[test]
fn two_tasks_two_signals() {
    check("two_tasks_two_signals", Some(2), || {
        let event = event(0, Mode::Counter);
        let tasks = [(); 2].map(|()| {
            spawn(&event, |event| {
                // A task that took both signals rings for the other task.
                if reader(event) == 2 {
                    event.signal();
                }
            })
        });
        event.signal();
        event.signal();
        for task in tasks {
            task.join().unwrap();
        }
    });
}

/// The mutex of the lines keeps threads apart, and hands on what it guards.
#[test]
fn a_brief_mutex() {
    check("a_brief_mutex", None, || {
        let sum = Arc::new(BriefMutex::<u64>::default());
        let add = |sum: &BriefMutex<u64>| sum.with(|sum| *sum += 1);
        let other = spawn(&sum, add);
        add(&sum);
        other.join().unwrap();
        assert_eq!(sum.with(|sum| *sum), 2);
    });
}

/// One of two tasks in line is dropped while it is woken: the other one gets the signal.
#[test]
fn dropped_while_woken() {
    check("dropped_while_woken", Some(4), || {
        let event = event(0, Mode::Counter);
        // It is first in line: it joins before there are threads.
        let mut dropped = Box::pin(event.read_async());
        assert_eq!(poll_once(&mut dropped), Poll::Pending);
        let task = spawn(&event, reader);
        let signaller = spawn(&event, Event::signal);
        drop(dropped);
        assert_eq!(task.join().unwrap(), 1);
        signaller.join().unwrap();
    });
}

/// A task that takes nothing stands in line before a task that reads: both go on.
#[test]
fn a_wait_before_a_read() {
    check("a_wait_before_a_read", Some(3), || {
        let event = event(0, Mode::Counter);
        // It is first in line: it joins before there are threads.
        let mut wait = Box::pin(event.wait_readable_async());
        assert_eq!(poll_once(&mut wait), Poll::Pending);
        let task = spawn(&event, reader);
        let signaller = spawn(&event, Event::signal);
        if poll_once(&mut wait).is_pending() {
            drop(wait);
        }
        assert_eq!(task.join().unwrap(), 1);
        signaller.join().unwrap();
    });
}

/// One signal ends the waits of all tasks if none of them reads.
#[test]
fn one_signal_ends_every_wait() {
    check("async::one_signal_ends_every_wait", Some(3), || {
        let event = event(0, Mode::Counter);
        let cargo = Arc::new(Cargo::default());
        let tasks = [(); 2].map(|()| {
            let cargo = Arc::clone(&cargo);
            spawn(&event, move |event| {
                block_on(event.wait_readable_async());
                assert_eq!(cargo.get(), 7);
            })
        });
        cargo.put(7);
        event.signal();
        for task in tasks {
            task.join().unwrap();
        }
        assert_eq!(event.try_read(), Some(1));
    });
}

/// A signal comes while a task that took the earlier count hands on its wake-up: the other task in line gets the
/// signal.
#[test]
fn signal_while_handing_on() {
    check("signal_while_handing_on", Some(2), || {
        let event = event(0, Mode::Counter);
        let mut first = Box::pin(event.read_async());
        assert_eq!(poll_once(&mut first), Poll::Pending);
        let task = spawn(&event, reader);
        let signaller = spawn(&event, Event::signal);
        event.signal();
        match poll_once(&mut first) {
            Poll::Ready(1) => {}
            // This read took both signals, or the task did.
            Poll::Ready(_) => event.signal(),
            Poll::Pending => drop(first),
        }
        task.join().unwrap();
        signaller.join().unwrap();
    });
}

/// A task in line that was woken finds that another one has overtaken it, and goes on waiting.
#[test]
fn overtaken() {
    check("overtaken", Some(4), || {
        let event = event(0, Mode::Semaphore);
        let task = spawn(&event, reader);
        let thief = spawn(&event, |event| event.try_read());
        event.signal();
        if thief.join().unwrap().is_some() {
            event.signal();
        }
        assert_eq!(task.join().unwrap(), 1);
    });
}

/// A write of 0 uses up what a task has armed, and the signal after it still wakes the task.
#[test]
fn write_of_nothing() {
    check("write_of_nothing", Some(4), || {
        let event = event(0, Mode::Counter);
        let task = spawn(&event, reader);
        event.write(0).unwrap();
        event.signal();
        assert_eq!(task.join().unwrap(), 1);
    });
}

/// A future that moves to another task is woken there.
#[test]
fn another_waker() {
    check("another_waker", None, || {
        let event = event(0, Mode::Counter);
        let mut future = Box::pin(event.read_async());
        assert_eq!(poll_once(&mut future), Poll::Pending);
        let signaller = spawn(&event, Event::signal);
        assert_eq!(block_on(future), 1);
        signaller.join().unwrap();
    });
}

/// A reader that blocks and a task wait for one event.
#[test]
fn a_task_beside_a_thread() {
    check("a_task_beside_a_thread", Some(3), || {
        let event = event(0, Mode::Counter);
        let waiters = [reader, Event::read].map(|read| {
            spawn(&event, move |event| {
                if read(event) == 2 {
                    event.signal();
                }
            })
        });
        event.signal();
        event.signal();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// A read makes room for two tasks that wait to write.
#[test]
fn two_writers() {
    check("two_writers", Some(2), || {
        let event = event(FULL, Mode::Counter);
        let tasks = [1, 2].map(|n| spawn(&event, move |event| block_on(event.write_async(n))));
        assert_eq!(event.read(), FULL);
        for task in tasks {
            task.join().unwrap().unwrap();
        }
        assert_eq!(event.count(), 3);
    });
}

/// Two writers of different size: a writer that is woken too early stays in line, and does not keep the other one
/// there.
#[test]
fn two_writers_of_a_semaphore() {
    check("two_writers_of_a_semaphore", Some(2), || {
        let event = event(FULL, Mode::Semaphore);
        let tasks = [2, 1].map(|n| spawn(&event, move |event| block_on(event.write_async(n))));
        for _ in 0..3 {
            event.read();
        }
        for task in tasks {
            task.join().unwrap().unwrap();
        }
        assert_eq!(event.count(), FULL);
    });
}

/// A waker that counts its calls.
#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn bells<const N: usize>() -> [(std::sync::Arc<Bell>, Waker); N] {
    [(); N].map(|()| {
        let bell = std::sync::Arc::<Bell>::default();
        (bell.clone(), bell.into())
    })
}

fn rings<const N: usize>(bells: &[(std::sync::Arc<Bell>, Waker); N]) -> [u32; N] {
    bells
        .each_ref()
        .map(|(bell, _)| bell.0.load(Ordering::Relaxed))
}

/// A task that was woken, was overtaken and has joined again no longer counts as woken: the next unit wakes a task.
#[test]
fn overtaken_and_in_line_again() {
    check("overtaken_and_in_line_again", None, || {
        let event = event(0, Mode::Semaphore);
        let bells = bells::<1>();
        let mut tasks = [(); 2].map(|()| Box::pin(event.read_async()));
        let mut wait = |index: usize| {
            assert_eq!(poll_with(&mut tasks[index], &bells[0].1), Poll::Pending);
        };
        wait(0);
        wait(1);
        event.signal();
        assert_eq!(rings(&bells), [1]);
        assert_eq!(event.try_read(), Some(1));
        wait(0);
        event.signal();
        assert_eq!(rings(&bells), [2]);
    });
}

/// Two units, one after the other or at once, wake two tasks, though neither has been polled.
#[test]
fn a_wake_up_for_each_unit() {
    check("a_wake_up_for_each_unit", Some(3), || {
        let event = event(0, Mode::Semaphore);
        let bells = bells::<2>();
        let mut tasks = [(); 2].map(|()| Box::pin(event.read_async()));
        for (task, (_, waker)) in tasks.iter_mut().zip(&bells) {
            assert_eq!(poll_with(task, waker), Poll::Pending);
        }
        let signaller = spawn(&event, Event::signal);
        event.signal();
        signaller.join().unwrap();
        assert_eq!(rings(&bells), [1, 1]);
        drop(tasks);
    });
}

/// The first in line is dropped while a signal takes it out of the line. The second is woken, whether the drop or the
/// signal is quicker.
#[test]
fn removed_while_taken_out() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        check("removed_while_taken_out", None, move || {
            let event = event(0, mode);
            let bells = bells::<2>();
            let mut tasks = [(); 2].map(|()| Box::pin(event.read_async()));
            for (task, (_, waker)) in tasks.iter_mut().zip(&bells) {
                assert_eq!(poll_with(task, waker), Poll::Pending);
            }
            let signaller = spawn(&event, Event::signal);
            let [first, second] = tasks;
            drop(first);
            signaller.join().unwrap();
            assert_eq!(rings(&bells)[1], 1);
            drop(second);
        });
    }
}

/// The second in line is dropped while a signal takes the first out; no task is woken for nothing.
#[test]
fn a_neighbour_is_removed() {
    check("a_neighbour_is_removed", None, || {
        let event = event(0, Mode::Counter);
        let bells = bells::<3>();
        let mut tasks = [(); 3].map(|()| Box::pin(event.read_async()));
        for (task, (_, waker)) in tasks.iter_mut().zip(&bells) {
            assert_eq!(poll_with(task, waker), Poll::Pending);
        }
        let signaller = spawn(&event, Event::signal);
        let [first, second, third] = tasks;
        drop(second);
        signaller.join().unwrap();
        let [a, b, c] = rings(&bells);
        assert_eq!(a, 1);
        // The second task hands on what it was not woken for, if it sees it: the task behind it is not woken.
        assert_eq!((b, c), (0, 0));
        drop(first);
        assert_eq!(rings(&bells), [1, 0, 1]);
        drop(third);
    });
}

/// A future gets another waker while a signal takes out the first waker: one of the two is called, and it is the new
/// one if the future goes on waiting.
#[test]
fn another_waker_while_taken_out() {
    check("another_waker_while_taken_out", None, || {
        let event = event(0, Mode::Counter);
        let bells = bells::<2>();
        let mut task = Box::pin(event.read_async());
        assert_eq!(poll_with(&mut task, &bells[0].1), Poll::Pending);
        let signaller = spawn(&event, Event::signal);
        let polled = poll_with(&mut task, &bells[1].1);
        signaller.join().unwrap();
        match (polled, rings(&bells)) {
            (Poll::Pending, [0, 1]) | (Poll::Ready(1), [0, 0] | [1, 0] | [0, 1]) => {}
            other => panic!("{other:?}"),
        }
        drop(task);
    });
}

/// A future has found nothing, and waits again while a signal looks at the line.
#[test]
fn in_line_again_while_looked_at() {
    check("in_line_again_while_looked_at", None, || {
        let event = event(0, Mode::Counter);
        let bells = bells::<2>();
        let mut tasks = [(); 2].map(|()| Box::pin(event.read_async()));
        for (task, (_, waker)) in tasks.iter_mut().zip(&bells) {
            assert_eq!(poll_with(task, waker), Poll::Pending);
        }
        event.signal();
        assert_eq!(event.try_read(), Some(1));
        let signaller = spawn(&event, Event::signal);
        let polled = poll_with(&mut tasks[0], &bells[0].1);
        signaller.join().unwrap();
        if polled.is_pending() {
            assert_eq!(rings(&bells), [2, 0]);
        }
        drop(tasks);
    });
}

/// Two tasks leave without having taken anything, whichever of them was woken. What they were woken for reaches the
/// third.
#[test]
fn handed_on_twice() {
    check("handed_on_twice", Some(2), || {
        let event = event(0, Mode::Counter);
        let leave = |event: &Event| drop(in_line(event));
        let others = [(); 2].map(|()| spawn(&event, leave));
        let bells = bells::<1>();
        let mut task = Box::pin(event.read_async());
        assert_eq!(poll_with(&mut task, &bells[0].1), Poll::Pending);
        event.signal();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(rings(&bells), [1]);
        drop(task);
    });
}

/// A task and an observer, which is called once or each time, at one event: a signal reaches both.
#[test]
fn a_task_beside_an_observer() {
    for each_time in [true, false] {
        check("a_task_beside_an_observer", Some(2), move || {
            let event = event(0, Mode::Counter);
            let calls = std::sync::Arc::new(AtomicU32::new(0));
            let observer = {
                let calls = std::sync::Arc::clone(&calls);
                std::sync::Arc::new(move |_: Change| _ = calls.fetch_add(1, Ordering::Relaxed))
            };
            let observation = if each_time {
                Observation::new(handle(&event), Interest::Signals, observer)
            } else {
                Observation::on_demand(handle(&event), Interest::Signals, observer)
            };
            observation.arm(Interest::Signals);
            let task = spawn(&event, reader);
            event.signal();
            assert_eq!(task.join().unwrap(), 1);
            drop(observation);
            assert_eq!(calls.load(Ordering::Relaxed), 1);
        });
    }
}

/// A task at an event that a poller watches.
#[test]
fn a_task_beside_a_poller() {
    check("a_task_beside_a_poller", Some(3), || {
        let event = std::sync::Arc::new(Event::new(0).with_spin(Spin::Never));
        let poller = Poller::with_spin(Spin::Never);
        poller.add(&event, 1, Watch::READABLE).unwrap();
        let ready = || {
            let mut events = Events::with_capacity(1);
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            events.iter().count()
        };
        assert_eq!(ready(), 0);
        let bells = bells::<1>();
        let mut task = Box::pin(event.read_async());
        assert_eq!(poll_with(&mut task, &bells[0].1), Poll::Pending);
        let signaller = spawn(&event, Event::signal);
        signaller.join().unwrap();
        assert_eq!((rings(&bells), ready()), ([1], 1));
        drop(task);
    });
}

/// Joins the line, and does not look at the count.
fn in_line(event: &Event) -> Boxed<impl Future<Output = u64>> {
    let mut task = Box::pin(event.read_async());
    if poll_once(&mut task).is_ready() {
        // The signal is put back, as if this future had not been there.
        event.signal();
    }
    task
}
