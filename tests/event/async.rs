//! Futures on an event: which tasks are woken and how often, what a dropped future leaves behind, and runtimes.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;

use common::caller::call;
use common::counter::Counter;
use common::ours::NeverSpin;
use common::watchdog::{self, Watchdog};
use doorbell::event::{
    Batch, Change, Interest, Observation, ReadFuture, Readings, WaitReadableFuture, WriteFuture,
};
use doorbell::{Event, Mode, WriteError};
use fastrand::Rng;
use futures_core::Stream;
use pollster::block_on;
use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

const FULL: u64 = u64::MAX - 1;

/// A waker that counts its calls.
#[derive(Default)]
struct Bell(AtomicU32);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A future, and how often it has been woken.
struct Task<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
}

impl<F: Future> Task<F> {
    fn new(future: F) -> Self {
        Task {
            future: Box::pin(future),
            bell: Arc::default(),
        }
    }

    /// A future that has to wait.
    fn pending(future: F) -> Self {
        let mut task = Task::new(future);
        assert!(task.poll().is_pending());
        task
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.bell));
        self.poll_with(&waker)
    }

    fn poll_with(&mut self, waker: &Waker) -> Poll<F::Output> {
        self.future.as_mut().poll(&mut Context::from_waker(waker))
    }

    fn woken(&self) -> u32 {
        self.bell.0.load(Ordering::Relaxed)
    }
}

fn woken<F: Future>(tasks: &[Task<F>]) -> Vec<u32> {
    tasks.iter().map(Task::woken).collect()
}

/// A read that keeps its event alive.
type OwnedRead = Pin<Box<dyn Future<Output = u64> + Send>>;

fn owned_read(event: &Arc<Event>) -> OwnedRead {
    let event = Arc::clone(event);
    Box::pin(async move { event.read_async().await })
}

fn reads(event: &Event, number: usize) -> Vec<Task<ReadFuture<'_>>> {
    (0..number)
        .map(|_| Task::pending(event.read_async()))
        .collect()
}

// Results

#[test]
fn what_is_there_is_ready_at_once() {
    let event = Event::new(5);
    assert_eq!(Task::new(event.read_async()).poll(), Poll::Ready(5));
    let mut write = Task::new(event.write_async(FULL));
    assert_eq!(write.poll(), Poll::Ready(Ok(())));
    assert_eq!(event.count(), FULL);
    let semaphore = Event::semaphore(5);
    assert_eq!(Task::new(semaphore.read_async()).poll(), Poll::Ready(1));
    assert_eq!(semaphore.count(), 4);
}

#[test]
fn max_is_never_written() {
    for count in [0, FULL, u64::MAX] {
        let event = Event::new(count);
        let mut write = Task::new(event.write_async(u64::MAX));
        assert_eq!(write.poll(), Poll::Ready(Err(WriteError::Invalid)));
        assert_eq!(event.count(), count);
    }
}

#[test]
fn a_write_of_nothing_waits_only_in_the_overflow_state() {
    let event = Event::new(FULL);
    assert_eq!(Task::new(event.write_async(0)).poll(), Poll::Ready(Ok(())));
    event.signal();
    let mut write = Task::pending(event.write_async(0));
    assert_eq!(event.try_read(), Some(u64::MAX));
    assert_eq!(write.woken(), 1);
    assert_eq!(write.poll(), Poll::Ready(Ok(())));
}

#[test]
fn a_future_may_be_used_again() {
    let event = Event::new(1);
    let mut read = Task::new(event.read_async());
    assert_eq!(read.poll(), Poll::Ready(1));
    assert!(read.poll().is_pending());
    event.signal_n(2);
    assert_eq!(read.poll(), Poll::Ready(2));
}

#[test]
fn readings_go_on_and_on() {
    let event = Event::new(3);
    let mut readings = event.readings();
    let mut next = || {
        block_on(poll_fn(|context| {
            Pin::new(&mut readings).poll_next(context)
        }))
    };
    assert_eq!(next(), Some(3));
    event.signal();
    assert_eq!(next(), Some(1));
    assert_eq!(event.readings().size_hint(), (usize::MAX, None));
}

#[test]
fn futures_may_be_sent_and_streams_moved() {
    fn check<T: Send + Sync>() {}
    check::<ReadFuture>();
    check::<WriteFuture>();
    check::<WaitReadableFuture>();
    check::<Readings>();
    fn may_be_moved<T: Unpin>() {}
    may_be_moved::<Readings>();
}

/// A stream that is moved while it waits is woken all the same.
#[test]
fn a_stream_that_is_moved_while_it_waits() {
    let event = Event::new(0);
    let mut readings = Box::new(event.readings());
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut context = Context::from_waker(&waker);
    assert!(
        Pin::new(&mut *readings)
            .poll_next(&mut context)
            .is_pending()
    );
    let mut moved = *readings;
    event.signal();
    assert_eq!(bell.0.load(Ordering::Relaxed), 1);
    let next = Pin::new(&mut moved).poll_next(&mut context);
    assert_eq!(next, Poll::Ready(Some(1)));
}

#[test]
fn a_wait_takes_nothing() {
    for event in [Event::new(0), Event::semaphore(0)] {
        let mut wait = Task::pending(event.wait_readable_async());
        event.write(0).unwrap();
        assert!(wait.poll().is_pending());
        for _ in 0..2 {
            event.signal();
            assert_eq!(wait.poll(), Poll::Ready(()));
        }
        assert_eq!(event.count(), 2);
        let mut full = Task::new(event.wait_readable_async());
        event.signal_n(u64::MAX);
        assert_eq!(full.poll(), Poll::Ready(()));
        assert_eq!(event.try_read_all(), Some(u64::MAX));
        assert!(wait.poll().is_pending());
    }
}

// Which tasks are woken

/// A future that takes nothing passes the wake-up on: to a reader, to another future that takes nothing, and when it is
/// dropped.
#[test]
fn one_signal_ends_every_wait() {
    for event in [Event::new(0), Event::semaphore(0)] {
        let mut waits: Vec<_> = (0..3)
            .map(|_| Task::pending(event.wait_readable_async()))
            .collect();
        let mut readers = reads(&event, 1);
        event.signal();
        assert_eq!(woken(&waits), [1, 0, 0]);
        assert_eq!(waits[0].poll(), Poll::Ready(()));
        assert_eq!(woken(&waits), [1, 1, 0]);
        waits.remove(1);
        assert_eq!(woken(&waits), [1, 1]);
        assert_eq!(woken(&readers), [0]);
        assert_eq!(waits[1].poll(), Poll::Ready(()));
        assert_eq!(woken(&readers), [1]);
        assert_eq!(readers[0].poll(), Poll::Ready(1));
        assert!(waits[0].poll().is_pending());
    }
}

/// Units are for readers, however many tasks wait beside them without taking anything.
#[test]
fn waits_beside_readers_of_a_semaphore() {
    let event = Event::semaphore(0);
    let mut wait = Task::pending(event.wait_readable_async());
    let mut readers = reads(&event, 2);
    event.signal_n(2);
    assert_eq!((wait.woken(), woken(&readers)), (1, vec![1, 0]));
    assert_eq!(wait.poll(), Poll::Ready(()));
    assert_eq!(woken(&readers), [1, 1]);
    for reader in &mut readers {
        assert_eq!(reader.poll(), Poll::Ready(1));
    }
    assert_eq!(event.count(), 0);
}

#[test]
fn a_signal_wakes_the_one_that_waits_longest() {
    let event = Event::new(0);
    let mut tasks = reads(&event, 3);
    event.signal();
    assert_eq!(woken(&tasks), [1, 0, 0]);
    // The task has been woken already.
    (0..10_000).for_each(|_| event.signal());
    assert_eq!(woken(&tasks), [1, 0, 0]);
    assert_eq!(tasks[0].poll(), Poll::Ready(10_001));
    assert_eq!(woken(&tasks), [1, 0, 0]);
    event.signal();
    assert_eq!(woken(&tasks), [1, 1, 0]);
    // Another reader takes the count; the woken task keeps its place.
    assert_eq!(event.try_read(), Some(1));
    assert!(tasks[1].poll().is_pending());
    event.signal();
    assert_eq!(woken(&tasks), [1, 2, 0]);
}

#[test]
fn as_many_are_woken_as_there_are_units() {
    let event = Event::semaphore(0);
    let mut tasks = reads(&event, 6);
    event.signal_n(4);
    assert_eq!(woken(&tasks), [1, 1, 1, 1, 0, 0]);
    for task in &mut tasks[..4] {
        assert_eq!(task.poll(), Poll::Ready(1));
    }
    assert_eq!(woken(&tasks), [1, 1, 1, 1, 0, 0]);
    event.signal();
    assert_eq!(woken(&tasks), [1, 1, 1, 1, 1, 0]);
}

/// Each unit wakes a task of its own, however the unit comes. All are woken before any of them is polled, and none
/// twice.
#[test]
fn each_unit_wakes_a_task_of_its_own() {
    fn committed(event: &Arc<Event>) {
        let mut batch = Batch::new();
        let index = batch.add(event);
        batch.signal(index);
        batch.commit().unwrap();
    }
    let add: [fn(&Arc<Event>); 3] = [
        |event| event.signal(),
        |event| event.write(1).unwrap(),
        committed,
    ];
    for add in add {
        let event = Arc::new(Event::semaphore(0));
        let mut tasks = reads(&event, 3);
        add(&event);
        assert_eq!(woken(&tasks), [1, 0, 0]);
        add(&event);
        assert_eq!(woken(&tasks), [1, 1, 0]);
        event.write(0).unwrap();
        assert_eq!(woken(&tasks), [1, 1, 0]);
        (0..10_000).for_each(|_| add(&event));
        assert_eq!(woken(&tasks), [1, 1, 1]);
        for task in &mut tasks {
            assert_eq!(task.poll(), Poll::Ready(1));
        }
        assert_eq!(woken(&tasks), [1, 1, 1]);
        assert_eq!(event.count(), 9_999);
    }
}

/// The same for units that come in an observer's call: each task is woken once, when the call returns.
#[test]
fn each_unit_of_an_observer_wakes_a_task_of_its_own() {
    let event = Arc::new(Event::semaphore(0));
    let outer = Arc::new(Event::new(0));
    let mut tasks = reads(&event, 3);
    let _observation = Observation::new(&outer, Interest::Signals, {
        let event = Arc::clone(&event);
        Arc::new(move |_: Change| {
            event.signal();
            event.signal();
        })
    });
    outer.signal();
    assert_eq!(woken(&tasks), [1, 1, 0]);
    outer.signal();
    assert_eq!(woken(&tasks), [1, 1, 1]);
    outer.signal();
    for task in &mut tasks {
        assert_eq!(task.poll(), Poll::Ready(1));
    }
    assert_eq!((woken(&tasks), event.count()), (vec![1, 1, 1], 3));
}

/// A unit that another reader takes wakes no further task, and the tasks stay armed for the next unit.
#[test]
fn a_unit_that_was_stolen() {
    let event = Event::semaphore(0);
    let mut tasks = reads(&event, 3);
    event.signal();
    assert_eq!(event.try_read(), Some(1));
    event.signal();
    // The first task has been woken, and is to find the unit.
    assert_eq!(woken(&tasks), [1, 0, 0]);
    event.signal();
    assert_eq!(woken(&tasks), [1, 1, 0]);
    assert_eq!(tasks[0].poll(), Poll::Ready(1));
    assert_eq!(tasks[1].poll(), Poll::Ready(1));
    assert_eq!(woken(&tasks), [1, 1, 0]);
    event.signal();
    assert_eq!(woken(&tasks), [1, 1, 1]);
}

/// A task that finds its unit taken, and waits again, no longer counts as woken.
#[test]
fn a_unit_that_was_stolen_from_a_task_that_waits_again() {
    let event = Event::semaphore(0);
    let mut tasks = reads(&event, 3);
    event.signal();
    assert_eq!(event.try_read(), Some(1));
    assert!(tasks[0].poll().is_pending());
    event.signal();
    assert_eq!(woken(&tasks), [2, 0, 0]);
    event.signal();
    assert_eq!(woken(&tasks), [2, 1, 0]);
}

/// A task that was woken and is dropped gives its unit to the next task that has none.
#[test]
fn a_dropped_task_hands_its_unit_on() {
    let event = Event::semaphore(0);
    let mut tasks = reads(&event, 4);
    event.signal();
    event.signal();
    drop(tasks.remove(0));
    assert_eq!(woken(&tasks), [1, 1, 0]);
    assert_eq!(tasks[0].poll(), Poll::Ready(1));
    assert_eq!(tasks[1].poll(), Poll::Ready(1));
    assert_eq!(woken(&tasks), [1, 1, 0]);
}

/// Streams get one unit for each item, too.
#[test]
fn two_streams_of_a_semaphore() {
    let event = Event::semaphore(0);
    let mut streams = [(); 2].map(|()| Task::new(next_of(event.readings())));
    for stream in &mut streams {
        assert!(stream.poll().is_pending());
    }
    event.signal();
    event.signal();
    for stream in &mut streams {
        assert_eq!(stream.woken(), 1);
        assert_eq!(stream.poll(), Poll::Ready(Some(1)));
    }
}

/// Between two items a stream is not in the list: what comes then wakes the tasks that are. It makes no difference
/// whether the stream was woken for its item, or found it where another task was woken.
#[test]
fn a_stream_between_two_items_is_not_in_the_list() {
    for was_woken in [true, false] {
        let event = Event::new(0);
        let mut stream = Task::new(next_of(event.readings()));
        let mut other = Task::new(event.read_async());
        if was_woken {
            assert!(stream.poll().is_pending());
            assert!(other.poll().is_pending());
        } else {
            assert!(other.poll().is_pending());
            assert!(stream.poll().is_pending());
        }
        let wake_ups = |stream: &Task<_>, other: &Task<_>| (stream.woken(), other.woken());
        let (of_stream, of_other) = (u32::from(was_woken), u32::from(!was_woken));
        event.signal();
        assert_eq!(wake_ups(&stream, &other), (of_stream, of_other));
        assert_eq!(stream.poll(), Poll::Ready(Some(1)));
        if !was_woken {
            // It was woken for what the stream has taken.
            assert!(other.poll().is_pending());
        }
        event.signal();
        assert_eq!(wake_ups(&stream, &other), (of_stream, of_other + 1));
        assert_eq!(other.poll(), Poll::Ready(1));
        let mut late = Task::pending(event.read_async());
        event.signal();
        assert_eq!((stream.woken(), late.woken()), (of_stream, 1));
        assert_eq!(late.poll(), Poll::Ready(1));
    }
}

fn next_of(mut readings: Readings<'_>) -> impl Future<Output = Option<u64>> + Unpin {
    poll_fn(move |context| Pin::new(&mut readings).poll_next(context))
}

/// A reader takes the whole of a counter, so a burst wakes one task; a write of 0 wakes none.
#[test]
fn a_write_of_nothing_wakes_no_task() {
    let event = Event::new(0);
    let mut tasks = reads(&event, 2);
    event.write(0).unwrap();
    event.signal_n(0);
    assert_eq!(woken(&tasks), [0, 0]);
    event.signal();
    event.signal();
    assert_eq!(woken(&tasks), [1, 0]);
    assert_eq!(tasks[0].poll(), Poll::Ready(2));
}

#[test]
fn a_read_wakes_all_who_want_to_write() {
    let event = Event::new(FULL);
    let mut tasks = [1, FULL, 2].map(|n| Task::pending(event.write_async(n)));
    assert_eq!(event.try_read(), Some(FULL));
    assert_eq!(woken(&tasks), [1, 1, 1]);
    assert!(tasks[0].poll().is_ready());
    assert!(tasks[1].poll().is_pending());
    assert!(tasks[2].poll().is_ready());
    // A task that leaves makes no room for the others.
    assert_eq!(woken(&tasks), [1, 1, 1]);
    assert_eq!(block_on(event.read_async()), 3);
    assert_eq!(woken(&tasks), [1, 2, 1]);
    assert!(tasks[1].poll().is_ready());
}

#[test]
fn reads_and_writes_wake_each_other() {
    let event = Event::new(0);
    let mut read = Task::pending(event.read_async());
    assert!(Task::new(event.write_async(FULL)).poll().is_ready());
    let mut write = Task::pending(event.write_async(1));
    assert_eq!((read.woken(), write.woken()), (1, 0));
    assert_eq!(read.poll(), Poll::Ready(FULL));
    assert_eq!(write.woken(), 1);
    assert!(write.poll().is_ready());
}

#[test]
fn a_write_of_nothing_loses_nobody() {
    let event = Event::new(0);
    let mut tasks = reads(&event, 2);
    event.write(0).unwrap();
    tasks
        .iter_mut()
        .for_each(|task| assert!(task.poll().is_pending()));
    let before = woken(&tasks);
    event.signal();
    assert_eq!(woken(&tasks), [before[0] + 1, before[1]]);
}

#[test]
fn the_last_waker_is_the_one_that_is_called() {
    let event = Event::new(0);
    let mut task = Task::pending(event.read_async());
    let first = std::mem::take(&mut task.bell);
    assert!(task.poll().is_pending());
    assert_eq!(Arc::strong_count(&first), 1);
    event.signal();
    assert_eq!(first.0.load(Ordering::Relaxed), 0);
    assert_eq!(task.woken(), 1);
}

/// Tasks that wait again keep their places, in whatever order they come back, before all tasks that have not been
/// woken.
#[test]
fn those_who_wait_again_keep_their_places() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 3, 0, 1]] {
        for stays in [false, true] {
            let event = Event::semaphore(0);
            let mut tasks = reads(&event, 4 + usize::from(stays));
            event.signal_n(4);
            (0..4).for_each(|_| assert_eq!(event.try_read(), Some(1)));
            for index in order {
                assert!(tasks[index].poll().is_pending());
            }
            for last in 0..4 {
                event.signal();
                let again: Vec<_> = (0..4).map(|index| 1 + u32::from(index <= last)).collect();
                assert_eq!(woken(&tasks[..4]), again, "{order:?}");
            }
            event.signal();
            assert_eq!(woken(&tasks[4..]), [1, 1][..usize::from(stays)]);
        }
    }
}

/// A task that waits again is dropped, and another one comes back after that.
#[test]
fn one_of_those_who_wait_again_is_dropped() {
    for dropped in 0..3 {
        let event = Event::semaphore(0);
        let mut tasks = reads(&event, 5);
        event.signal_n(4);
        (0..4).for_each(|_| assert_eq!(event.try_read(), Some(1)));
        (0..3).for_each(|index| assert!(tasks[index].poll().is_pending()));
        tasks.remove(dropped);
        assert!(tasks[2].poll().is_pending());
        event.signal_n(2);
        assert_eq!(woken(&tasks), [2, 2, 1, 0]);
        event.signal_n(2);
        assert_eq!(woken(&tasks), [2, 2, 2, 1]);
    }
}

#[test]
fn a_blocked_thread_is_woken_besides() {
    watchdog::limit("a_blocked_thread_is_woken_besides", || {
        let event = NeverSpin::new(0, Mode::Semaphore);
        let mut task = Task::pending(event.read_async());
        let thread = call(&event, Counter::read);
        thread.wait_asleep();
        event.signal();
        assert_eq!(thread.finish(), Ok(1));
        // The task is woken too, unless the thread was quicker than the signal.
        assert!(task.woken() <= 1);
        assert!(task.poll().is_pending());
        let before = task.woken();
        event.signal();
        assert_eq!(task.woken(), before + 1);
        assert_eq!(task.poll(), Poll::Ready(1));
    });
}

// Wakers and futures that are dropped, panic or nest

#[test]
fn a_dropped_future_takes_nothing() {
    let event = Event::new(0);
    drop(event.read_async());
    let task = Task::pending(event.read_async());
    event.signal_n(7);
    assert_eq!(task.woken(), 1);
    drop(task);
    assert_eq!(event.count(), 7);
    let mut full = Event::new(FULL);
    let write = Task::pending(full.write_async(5));
    full.read();
    assert_eq!(write.woken(), 1);
    drop(write);
    assert_eq!(full.count(), 0);
    // The event can be moved, borrowed exclusively and waited for again.
    full = std::mem::take(&mut full);
    let mut read = Task::pending(full.read_async());
    full.signal();
    assert_eq!(read.poll(), Poll::Ready(1));
}

#[test]
fn one_that_was_woken_and_is_dropped_hands_on() {
    let event = Event::new(0);
    let mut tasks = reads(&event, 3);
    event.signal();
    drop(tasks.remove(0));
    assert_eq!(woken(&tasks), [1, 0]);
    drop(tasks.remove(0));
    assert_eq!(woken(&tasks), [1]);
    assert_eq!(tasks[0].poll(), Poll::Ready(1));
}

#[test]
fn one_that_finds_nothing_and_is_dropped_keeps_nobody_asleep() {
    let event = Event::new(0);
    let mut tasks = reads(&event, 2);
    event.signal();
    assert_eq!(event.try_read(), Some(1));
    drop(tasks.remove(0));
    assert_eq!(woken(&tasks), [0]);
    event.signal();
    assert_eq!(woken(&tasks), [1]);
}

#[test]
fn one_that_is_dropped_in_line_is_not_woken() {
    let event = Event::new(0);
    let mut tasks = reads(&event, 3);
    let dropped = tasks.remove(0);
    let bell = Arc::clone(&dropped.bell);
    drop(dropped);
    event.signal();
    assert_eq!(bell.0.load(Ordering::Relaxed), 0);
    assert_eq!(woken(&tasks), [1, 0]);
}

#[test]
fn nothing_is_left_behind() {
    let event = Event::new(0);
    let bells: Vec<_> = {
        let mut tasks = reads(&event, 4);
        // The tasks are done, woken, and waiting.
        event.signal();
        assert!(tasks[0].poll().is_ready());
        event.signal();
        tasks.iter().map(|task| Arc::clone(&task.bell)).collect()
    };
    for bell in bells {
        assert_eq!(Arc::strong_count(&bell), 1);
    }
}

/// A panicking waker keeps nothing from other waiters.
#[test]
fn a_panicking_waker_holds_up_nobody() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("the waker's own");
        }
    }
    let event = Event::new(FULL);
    let mut bomb = Task::new(event.write_async(1));
    assert!(bomb.poll_with(&Arc::new(Bomb).into()).is_pending());
    let mut write = Task::pending(event.write_async(2));
    let panic = panic::catch_unwind(AssertUnwindSafe(|| event.read())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the waker's own"));
    assert_eq!(event.count(), 0);
    assert_eq!(write.woken(), 1);
    assert!(write.poll().is_ready());
}

/// A chain of events whose wakers signal the next event: the calls do not nest deeper than one.
#[test]
fn wakers_that_signal() {
    struct Next(Arc<Event>);
    impl Wake for Next {
        fn wake(self: Arc<Self>) {
            self.0.signal();
        }
    }
    const LENGTH: usize = 20_000;
    let events: Vec<_> = (0..=LENGTH).map(|_| Arc::new(Event::new(0))).collect();
    let new = |event| Task::new(Event::read_async(event));
    let mut tasks: Vec<_> = events.iter().map(|event| new(event)).collect();
    for (task, next) in tasks.iter_mut().zip(&events[1..]) {
        let next = Arc::new(Next(Arc::clone(next)));
        assert!(task.poll_with(&next.into()).is_pending());
    }
    events[0].signal();
    assert_eq!(events[LENGTH].count(), 1);
}

/// A task that its own waker polls, as in an executor that runs tasks where they are woken.
struct OnTheSpot {
    /// `None` while the future is polled, and when it has ended.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    polls: AtomicU32,
}

impl OnTheSpot {
    fn start(future: impl Future<Output = ()> + Send + 'static) -> Arc<Self> {
        let task = Arc::new(OnTheSpot {
            future: Mutex::new(Some(Box::pin(future))),
            polls: AtomicU32::new(0),
        });
        Arc::clone(&task).wake();
        task
    }
}

impl Wake for OnTheSpot {
    fn wake(self: Arc<Self>) {
        let future = self.future.lock().unwrap().take();
        let Some(mut future) = future else { return };
        self.polls.fetch_add(1, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self));
        if future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            *self.future.lock().unwrap() = Some(future);
        }
    }
}

/// Tasks in line, each of which may be polled inside the waker of the task before it: the stack does not grow with
/// their number.
#[test]
fn wakers_that_poll() {
    const READERS: usize = 20_000;
    let signals: [fn(&Event); 3] = [
        |event| event.signal_n(READERS as u64),
        |event| event.write(READERS as u64).unwrap(),
        |event| (0..READERS).for_each(|_| event.signal()),
    ];
    for signal in signals {
        let event = Arc::new(Event::semaphore(0));
        let start = |_| {
            let event = Arc::clone(&event);
            OnTheSpot::start(async move { assert_eq!(event.read_async().await, 1) })
        };
        let tasks: Vec<_> = (0..READERS).map(start).collect();
        signal(&event);
        assert_eq!(event.count(), 0);
        for task in tasks {
            assert!(task.future.lock().unwrap().is_none());
            assert_eq!(task.polls.load(Ordering::Relaxed), 2);
        }
    }
}

/// Each task reads the counter and signals it again for the next task, inside the waker.
#[test]
fn wakers_that_poll_and_pass_it_on() {
    const READERS: usize = 20_000;
    let event = Arc::new(Event::new(0));
    let start = |_| {
        let event = Arc::clone(&event);
        OnTheSpot::start(async move {
            let taken = event.read_async().await;
            event.signal_n(taken);
        })
    };
    let tasks: Vec<_> = (0..READERS).map(start).collect();
    event.signal_n(5);
    assert_eq!(event.count(), 5);
    for task in tasks {
        assert!(task.future.lock().unwrap().is_none());
    }
}

/// Writers that find too little room inside their wakers wait again, and are woken once for each read.
#[test]
fn wakers_that_poll_and_wait_again() {
    let event = Arc::new(Event::new(FULL));
    let start = |_| {
        let event = Arc::clone(&event);
        OnTheSpot::start(async move { event.write_async(FULL).await.unwrap() })
    };
    let tasks: Vec<_> = (0..100).map(start).collect();
    let ended = || {
        tasks
            .iter()
            .filter(|it| it.future.lock().unwrap().is_none())
            .count()
    };
    for reads in 1..=100 {
        assert_eq!(event.try_read(), Some(FULL));
        assert_eq!(ended(), reads);
        let polls: u32 = tasks
            .iter()
            .map(|it| it.polls.load(Ordering::Relaxed))
            .sum();
        // Each task was polled once when it was started, and once at each read for which it still waited.
        let left = (0..reads).map(|ended| 100 - ended as u32).sum::<u32>();
        assert_eq!(polls, 100 + left);
    }
    assert_eq!(event.count(), FULL);
}

/// A waker that drops futures of the same line, before and behind its own future: woken ones hand their wake-up on.
#[test]
fn wakers_that_drop() {
    struct Drops(Mutex<Vec<Task<OwnedRead>>>);
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            let dropped = std::mem::take(&mut *self.0.lock().unwrap());
            drop(dropped);
        }
    }
    for units in 1..=6 {
        let event = Arc::new(Event::semaphore(0));
        let two = || [(); 2].map(|()| Task::pending(owned_read(&event)));
        let mut dropped = Vec::from(two());
        let mut own = Task::new(event.read_async());
        let waker = Arc::new(Drops(Mutex::default()));
        assert!(own.poll_with(&Arc::clone(&waker).into()).is_pending());
        dropped.extend(two());
        *waker.0.lock().unwrap() = dropped;
        let mut behind = reads(&event, 4);
        event.signal_n(units);
        let own_share = u64::from(units > 2);
        let woken = woken(&behind).iter().sum::<u32>();
        assert_eq!(
            u64::from(woken),
            if units > 2 {
                (units - own_share).min(4)
            } else {
                0
            }
        );
        for task in behind.iter_mut().take(woken as usize) {
            assert_eq!(task.poll(), Poll::Ready(1));
        }
    }
}

/// A waker that signals its own event: nothing is lost, and no task is woken twice for one signal.
#[test]
fn wakers_that_signal_the_same_event() {
    struct Signals(Arc<Event>, AtomicU32);
    impl Wake for Signals {
        fn wake(self: Arc<Self>) {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.signal();
        }
    }
    for mode in [Mode::Counter, Mode::Semaphore] {
        let event = Arc::new(Event::with_mode(0, mode));
        let mut first = Task::new(event.read_async());
        let waker = Arc::new(Signals(Arc::clone(&event), AtomicU32::new(0)));
        assert!(first.poll_with(&Arc::clone(&waker).into()).is_pending());
        let behind = reads(&event, 2);
        event.signal();
        assert_eq!(waker.1.load(Ordering::Relaxed), 1);
        assert_eq!(event.count(), 2);
        let second = u32::from(mode == Mode::Semaphore);
        assert_eq!(woken(&behind), [second, 0]);
    }
}

/// A waker that is replaced, or dropped with its future, and then runs code of its own.
#[test]
fn wakers_that_do_something_when_they_are_dropped() {
    struct Last(Arc<Event>);
    impl Wake for Last {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.signal();
        }
    }
    let event = || Arc::new(Event::semaphore(0));
    let waker = |event: &Arc<Event>| Waker::from(Arc::new(Last(Arc::clone(event))));
    let pending = |event: &Arc<Event>| Task::new(owned_read(event));

    let replaced = event();
    let behind = reads(&replaced, 1);
    let mut task = pending(&replaced);
    assert!(task.poll_with(&waker(&replaced)).is_pending());
    assert_eq!(task.poll(), Poll::Ready(1));
    assert_eq!(woken(&behind), [1]);

    let dropped = event();
    let behind = reads(&dropped, 1);
    let mut task = pending(&dropped);
    assert!(task.poll_with(&waker(&dropped)).is_pending());
    drop(task);
    assert_eq!((woken(&behind), dropped.count()), (vec![1], 1));

    let called = event();
    let mut task = pending(&called);
    assert!(task.poll_with(&waker(&called)).is_pending());
    let behind = reads(&called, 2);
    called.signal();
    assert_eq!((woken(&behind), called.count()), (vec![1, 0], 2));
}

/// A waker that panics when a future that hands on calls it: the panic comes out of the drop, and no task is forgotten.
#[test]
fn a_panicking_waker_in_a_semaphores_line() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("the waker's own");
        }
    }
    let event = Event::semaphore(0);
    let mut tasks = reads(&event, 1);
    let mut bomb = Task::new(event.read_async());
    assert!(bomb.poll_with(&Arc::new(Bomb).into()).is_pending());
    tasks.extend(reads(&event, 2));
    let caught = |f: &mut dyn FnMut()| {
        let panic = panic::catch_unwind(AssertUnwindSafe(f)).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the waker's own"));
    };
    event.signal();
    caught(&mut || drop(tasks.remove(0)));
    assert_eq!(woken(&tasks), [0, 0]);
    drop(bomb);
    assert_eq!(woken(&tasks), [1, 0]);
    event.signal();
    assert_eq!(woken(&tasks), [1, 1]);
    // The future is one of several.
    let event = Event::semaphore(0);
    let mut tasks = reads(&event, 1);
    let mut bomb = Task::new(event.read_async());
    assert!(bomb.poll_with(&Arc::new(Bomb).into()).is_pending());
    tasks.push(Task::pending(event.read_async()));
    caught(&mut || event.signal_n(3));
    assert_eq!(woken(&tasks), [1, 1]);
    assert_eq!(event.count(), 3);
}

/// A waker signals an event that is observed and waited for, and the observer signals the next event: each task is
/// woken once, and each observer is called once.
#[test]
fn a_waker_that_signals_an_observed_event() {
    struct Next(Arc<Event>);
    impl Wake for Next {
        fn wake(self: Arc<Self>) {
            self.0.signal();
        }
    }
    let [event, observed, last] = [(); 3].map(|()| Arc::new(Event::new(0)));
    let calls = Arc::new(AtomicU32::new(0));
    let _observation = Observation::new(Arc::clone(&observed), Interest::Signals, {
        let (calls, last) = (Arc::clone(&calls), Arc::clone(&last));
        Arc::new(move |_: Change| {
            calls.fetch_add(1, Ordering::Relaxed);
            last.signal();
        })
    });
    let end = Task::pending(last.read_async());
    let beside = Task::pending(observed.read_async());
    let mut task = Task::new(event.read_async());
    let waker = Arc::new(Next(Arc::clone(&observed)));
    assert!(task.poll_with(&waker.into()).is_pending());
    event.signal();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!((end.woken(), beside.woken()), (1, 1));
    assert_eq!(task.poll(), Poll::Ready(1));
}

// Runtimes

#[test]
fn a_plain_block_on() {
    watchdog::limit("a_plain_block_on", || {
        let events = Arc::new([(); 2].map(|()| Event::new(0)));
        const ROUNDS: u64 = 2_000;
        let echo = {
            let events = Arc::clone(&events);
            thread::spawn(move || {
                block_on(async {
                    for _ in 0..ROUNDS {
                        let n = events[0].read_async().await;
                        events[1].write_async(n).await.unwrap();
                    }
                })
            })
        };
        for round in 1..=ROUNDS {
            events[0].signal_n(round);
            assert_eq!(events[1].read(), round);
        }
        echo.join().unwrap();
    });
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(3)
        .enable_time()
        .build()
        .unwrap()
}

/// Tasks that read and give up at random, threads that read, and both kinds that write: everything is read once.
fn everything_is_read_once(mode: Mode, initial: u64) {
    const READERS: u64 = 24;
    const WRITERS: u64 = 6;
    const WRITES: u64 = 1_500;
    let event = Arc::new(Event::with_mode(initial, mode));
    let _watchdog = {
        let event = Arc::clone(&event);
        Watchdog::new(Duration::from_secs(60), move || format!("{event:?}"))
    };
    let runtime = runtime();
    // The sum is wider than a count: a full count is read many times.
    let taken = Arc::new(Mutex::new(0_u128));
    let given = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..READERS)
        .map(|seed| {
            let (event, taken) = (Arc::clone(&event), Arc::clone(&taken));
            runtime.spawn(async move {
                let mut random = Rng::with_seed(seed);
                loop {
                    let value = if random.bool() {
                        event.read_async().await
                    } else {
                        let limit = Duration::from_micros(random.u64(0..3_000));
                        match timeout(limit, event.read_async()).await {
                            Ok(value) => value,
                            Err(_) => continue,
                        }
                    };
                    *taken.lock().unwrap() += u128::from(value);
                }
            })
        })
        .collect();
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (event, taken) = (Arc::clone(&event), Arc::clone(&taken));
            let end = Arc::clone(&given);
            thread::spawn(move || {
                while end.load(Ordering::Relaxed) < WRITERS * WRITES {
                    if let Some(value) = event.read_timeout(Duration::from_millis(1)) {
                        *taken.lock().unwrap() += u128::from(value);
                    }
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|seed| {
            let (event, given) = (Arc::clone(&event), Arc::clone(&given));
            runtime.spawn(async move {
                let mut random = Rng::with_seed(seed);
                for _ in 0..WRITES {
                    if random.u32(0..4) == 0 {
                        let _ = timeout(Duration::ZERO, event.write_async(0)).await;
                    }
                    event.write_async(1).await.unwrap();
                    given.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for writer in writers {
        runtime.block_on(writer).unwrap();
    }
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    // The readers still run: they take what is left, unless a wake-up was lost.
    let total = u128::from(initial) + u128::from(WRITERS * WRITES);
    while *taken.lock().unwrap() < total {
        thread::sleep(Duration::from_millis(1));
    }
    readers.iter().for_each(|reader| reader.abort());
    for reader in readers {
        assert!(runtime.block_on(reader).unwrap_err().is_cancelled());
    }
    assert_eq!(*taken.lock().unwrap(), total);
    assert_eq!(event.count(), 0);
}

#[test]
fn everything_is_read_once_from_a_counter() {
    everything_is_read_once(Mode::Counter, 0);
}

#[test]
fn everything_is_read_once_from_a_semaphore() {
    everything_is_read_once(Mode::Semaphore, 0);
}

#[test]
fn everything_is_read_once_from_a_full_counter() {
    everything_is_read_once(Mode::Counter, FULL);
}

/// Each task gets one unit and is done, while others are dropped in line: a wake-up lost with them is a hang.
#[test]
fn a_unit_for_each_task_while_others_are_dropped() {
    watchdog::limit("a_unit_for_each_task_while_others_are_dropped", || {
        let runtime = runtime();
        for round in 0..300 {
            let event = Arc::new(Event::semaphore(0));
            let spawn = |_| {
                let event = Arc::clone(&event);
                runtime.spawn(async move { event.read_async().await })
            };
            let stay: Vec<_> = (0..8).map(spawn).collect();
            let mut random = Rng::with_seed(round);
            let go: Vec<_> = (0..8).map(spawn).collect();
            let mut units = 0;
            for task in &go {
                if random.bool() {
                    event.signal_n(2);
                    units += 2;
                }
                task.abort();
            }
            let mut taken = 0;
            for task in go {
                taken += runtime.block_on(task).unwrap_or(0);
            }
            let wanted = 8 + taken;
            event.signal_n(wanted.saturating_sub(units));
            for task in stay {
                assert_eq!(runtime.block_on(task).unwrap(), 1);
            }
            assert_eq!(event.count(), units.saturating_sub(wanted));
        }
    });
}

/// Wakes the thread that polls.
struct Unpark(thread::Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::Release);
        self.0.unpark();
    }
}

/// Threads that wait, wait again with another waker, wait twice at once, move on from one line to another, and drop
/// what they wait with at any moment, while others signal and read: everything that is given is taken once, no waiting
/// thread is forgotten, and no part of a line is touched after it is freed (which shows under a sanitizer).
fn lines_under_stress(mode: Mode) {
    const TAKERS: u64 = 4;
    const GIVERS: u64 = 2;
    const ROUNDS: u64 = 20_000;
    let event = Arc::new(Event::with_mode(0, mode));
    let _watchdog = {
        let event = Arc::clone(&event);
        Watchdog::new(Duration::from_secs(120), move || format!("{event:?}"))
    };
    let (given, taken) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);

    let take = |seed| {
        let mut random = Rng::with_seed(seed);
        let waker = || {
            let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
            (Arc::clone(&unpark), Waker::from(unpark))
        };
        while !stop.load(Ordering::Relaxed) {
            let mut first = Box::pin(event.read_async());
            let mut second = Box::pin(event.read_async());
            let both = random.bool();
            let mut got = 0;
            // Polls until there is a count, or gives up.
            while got == 0 {
                let (woken, waker) = waker();
                let mut context = Context::from_waker(&waker);
                if let Poll::Ready(n) = first.as_mut().poll(&mut context) {
                    got += n;
                }
                if both {
                    if let Poll::Ready(n) = second.as_mut().poll(&mut context) {
                        got += n;
                    }
                }
                match random.u32(0..4) {
                    _ if got != 0 => {}
                    0 => break,
                    1 => {
                        // The future is polled again with another waker, woken or not.
                        thread::yield_now();
                    }
                    2 => {
                        // Another future takes its place in line, maybe after the first was woken.
                        first = Box::pin(event.read_async());
                    }
                    _ => {
                        while !woken.1.load(Ordering::Acquire) {
                            thread::park();
                        }
                    }
                }
            }
            taken.fetch_add(got, Ordering::Relaxed);
        }
    };
    let give = |seed| {
        let mut random = Rng::with_seed(seed);
        for _ in 0..ROUNDS {
            let n = random.u64(1..4);
            given.fetch_add(n, Ordering::Relaxed);
            match random.u32(0..8) {
                0 => block_on(event.write_async(n)).unwrap(),
                1 => event.write(n).unwrap(),
                _ => event.signal_n(n),
            }
            if random.u32(0..8) == 0 {
                let stolen = event.try_read().unwrap_or(0);
                taken.fetch_add(stolen, Ordering::Relaxed);
            }
            if random.bool() {
                thread::yield_now();
            }
        }
    };
    let (given, taken) = (&given, &taken);
    thread::scope(|scope| {
        let takers: Vec<_> = (0..TAKERS)
            .map(|seed| scope.spawn(move || take(seed)))
            .collect();
        let givers: Vec<_> = (0..GIVERS)
            .map(|seed| scope.spawn(move || give(100 + seed)))
            .collect();
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        // A thread that parks while there is still something to take has been forgotten.
        let sum = || taken.load(Ordering::Relaxed);
        while sum() != given.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        while takers.iter().any(|taker| !taker.is_finished()) {
            given.fetch_add(1, Ordering::Relaxed);
            event.signal();
            thread::sleep(Duration::from_millis(1));
        }
    });
    let left = event.count();
    assert_eq!(
        taken.load(Ordering::Relaxed) + left,
        given.load(Ordering::Relaxed)
    );
}

#[test]
fn the_line_of_a_counter_under_stress() {
    lines_under_stress(Mode::Counter);
}

#[test]
fn the_line_of_a_semaphore_under_stress() {
    lines_under_stress(Mode::Semaphore);
}
