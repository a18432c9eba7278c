//! Waiting in async code: an [`Event`] beside `tokio::sync::Notify` and `event-listener`.

use super::{Case, Ratio, Run, alone, two};
use doorbell::Event;
use event_listener::Event as Listeners;
use pollster::block_on;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;

const DOORBELL: &str = "doorbell";
const NOTIFY: &str = "tokio Notify";
const LISTENER: &str = "event-listener";

pub const READY: &str = "async, signal, then wait";
pub const WAKE: &str = "async, wait, signal, go on";
pub const WOKEN: &str = "async, signal, one is woken already";
pub const IDLE: &str = "async, signal, nobody waits any more";
pub const IN_LINE: &str = "async, wait in vain behind 16, be dropped";
pub const PING_PONG: &str = "async, ping-pong of two in block_on";

/// All cases, a group's one after the other.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |group: &str, who, run| {
        let group = group.to_owned();
        cases.push(Case { group, who, run });
    };

    let event = Event::new(0);
    case(
        READY,
        DOORBELL,
        alone(move || {
            event.signal();
            poll(event.read_async())
        }),
    );
    let notify = Notify::new();
    case(
        READY,
        NOTIFY,
        alone(move || {
            notify.notify_one();
            poll(notify.notified())
        }),
    );

    let event = Event::new(0);
    case(
        WAKE,
        DOORBELL,
        alone(move || wait_then(event.read_async(), || event.signal())),
    );
    let notify = Notify::new();
    case(
        WAKE,
        NOTIFY,
        alone(move || wait_then(notify.notified(), || notify.notify_one())),
    );
    let listeners = Listeners::new();
    case(
        WAKE,
        LISTENER,
        alone(move || wait_then(listeners.listen(), || _ = listeners.notify(1))),
    );

    let event = waited_for(1, |event: &Event| event.read_async());
    event.signal();
    case(WOKEN, DOORBELL, alone(|| event.signal()));
    let notify = waited_for(1, |notify: &Notify| notify.notified());
    notify.notify_one();
    case(WOKEN, NOTIFY, alone(|| notify.notify_one()));
    let listeners = waited_for(1, |listeners: &Listeners| listeners.listen());
    listeners.notify(1);
    case(WOKEN, LISTENER, alone(|| listeners.notify(1)));

    let event = Event::new(0);
    wait_then(event.read_async(), || event.signal());
    case(IDLE, DOORBELL, alone(move || event.signal()));
    let notify = Notify::new();
    wait_then(notify.notified(), || notify.notify_one());
    case(IDLE, NOTIFY, alone(move || notify.notify_one()));
    let listeners = Listeners::new();
    wait_then(listeners.listen(), || _ = listeners.notify(1));
    case(IDLE, LISTENER, alone(move || listeners.notify(1)));

    let event = waited_for(16, |event: &Event| event.read_async());
    case(IN_LINE, DOORBELL, alone(|| poll(event.read_async())));
    let notify = waited_for(16, |notify: &Notify| notify.notified());
    case(IN_LINE, NOTIFY, alone(|| poll(notify.notified())));
    let listeners = waited_for(16, |listeners: &Listeners| listeners.listen());
    case(IN_LINE, LISTENER, alone(|| poll(listeners.listen())));

    case(PING_PONG, DOORBELL, {
        let events = [Event::new(1), Event::new(0)];
        two(move |me| {
            let me = me as usize;
            block_on(events[me].read_async());
            events[1 - me].signal();
        })
    });
    case(PING_PONG, NOTIFY, {
        let notifies = [Notify::new(), Notify::new()];
        notifies[0].notify_one();
        two(move |me| {
            let me = me as usize;
            block_on(notifies[me].notified());
            notifies[1 - me].notify_one();
        })
    });
    case(PING_PONG, LISTENER, listener_ping_pong());
    cases
}

/// The ratios to report, with their targets.
pub fn ratios() -> Vec<Ratio> {
    [
        (READY, NOTIFY),
        (WAKE, NOTIFY),
        (WAKE, LISTENER),
        (WOKEN, NOTIFY),
        (WOKEN, LISTENER),
        (IDLE, NOTIFY),
        (IDLE, LISTENER),
        (IN_LINE, NOTIFY),
        (IN_LINE, LISTENER),
        (PING_PONG, NOTIFY),
        (PING_PONG, LISTENER),
    ]
    .map(|(group, over)| (group, over, DOORBELL, "").into())
    .into()
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A future that has to wait, until `signal`.
fn wait_then<F: Future>(future: F, signal: impl FnOnce()) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending());
    signal();
    match future.poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future was signalled"),
    }
}

/// Something that a number of futures wait for, for ever.
fn waited_for<T: Default + Sync, F: Future + 'static>(
    number: usize,
    wait: fn(&'static T) -> F,
) -> &'static T {
    let source: &'static T = Box::leak(Box::default());
    for _ in 0..number {
        let future = Box::leak(Box::new(Box::pin(wait(source))));
        assert!(poll(future.as_mut()).is_pending());
    }
    source
}

/// An event of event-listener has listeners and no state, so the state is an atomic beside it.
fn listener_ping_pong() -> Run {
    let turn = AtomicU64::new(0);
    let listeners = [Listeners::new(), Listeners::new()];
    two(move |me| {
        block_on(async {
            while turn.load(Ordering::Acquire) != me {
                let listener = listeners[me as usize].listen();
                if turn.load(Ordering::Acquire) != me {
                    listener.await;
                }
            }
        });
        turn.store(1 - me, Ordering::Release);
        listeners[1 - me as usize].notify(1);
    })
}
