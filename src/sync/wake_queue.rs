//! Wake-ups held back, so that a thread with several reasons to be woken is woken once.
//!
//! The kernel's counterpart is its `wake_q`: `wake_q_add()` collects tasks while a lock is held, each once, and
//! `wake_up_q()` wakes them afterwards. Here a thread collects sleepers while it signals several events, which may
//! belong to the same sleeper:
//!
//! ```text
//!     hold        make a condition true; wake(sleepers)   ┐ any number of times,
//!                 make a condition true; wake(sleepers)   ┘ for any number of sleepers
//!     release     each is woken, once, in the order in which they came to be woken
//! ```
//!
//! Nothing is claimed before the end. So other threads may wake the same sleepers meanwhile, and then they are not
//! woken again unless they have announced themselves again. The handshake of `src/sync/waiters.rs` allows that: any
//! time may pass between making the condition true and loading the announcement.
//!
//! A thread that blocks while it holds wake-ups back might wait for one of those sleepers. So each blocking call of
//! this crate [lets go](let_go) first.

use super::const_thread_local;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;

/// Something that threads sleep in.
pub(crate) trait Sleeper: Send + Sync + 'static {
    /// Wakes the threads, if they sleep. Runs no foreign code.
    fn wake_now(&self);
}

const_thread_local! {
    /// Whether this thread holds wake-ups back.
    static HOLDING: Cell<bool> = { Cell::new(false) };
    /// The sleepers held back, each once. The memory is kept for the next time.
    static QUEUE: RefCell<VecDeque<Arc<dyn Sleeper>>> = { RefCell::new(VecDeque::new()) };
}

/// Wakes now or, if this thread holds wake-ups back, at the end of that.
pub(crate) fn wake<S: Sleeper>(whom: &Arc<S>) {
    if !HOLDING.with(Cell::get) || !hold_back(whom) {
        whom.wake_now();
    }
}

/// Returns false if the thread is ending, and its queue is gone.
fn hold_back<S: Sleeper>(whom: &Arc<S>) -> bool {
    let put_in = |queue: &RefCell<VecDeque<Arc<dyn Sleeper>>>| {
        let mut queue = queue.borrow_mut();
        let same = |other: &Arc<dyn Sleeper>| ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(whom));
        // From the back: most likely it was put in last.
        if !queue.iter().rev().any(same) {
            queue.push_back(Arc::<S>::clone(whom));
        }
    };
    QUEUE.try_with(put_in).is_ok()
}

/// Wakes all sleepers that this thread holds back, because it is about to wait.
pub(crate) fn let_go() {
    if !HOLDING.with(Cell::get) {
        return;
    }
    let next = || {
        let next = QUEUE.try_with(|queue| queue.borrow_mut().pop_front());
        next.ok().flatten()
    };
    while let Some(whom) = next() {
        whom.wake_now();
    }
}

/// From now on, this thread holds wake-ups back.
pub(crate) fn hold() {
    HOLDING.with(|holding| holding.set(true));
}

/// Wakes all sleepers that this thread holds back, and from now on wakes at once.
pub(crate) fn release() {
    let_go();
    HOLDING.with(|holding| holding.set(false));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Writes down when it is woken.
    struct Named(char, Arc<Mutex<String>>);

    impl Sleeper for Named {
        fn wake_now(&self) {
            self.1.lock().expect("nobody panics").push(self.0);
        }
    }

    #[test]
    fn each_is_woken_once_and_in_order() {
        let woken = Arc::new(Mutex::new(String::new()));
        let [a, b] = ['a', 'b'].map(|name| Arc::new(Named(name, Arc::clone(&woken))));
        let so_far = || std::mem::take(&mut *woken.lock().expect("nobody panics"));
        wake(&a);
        assert_eq!(so_far(), "a");
        hold();
        for whom in [&b, &a, &b, &b, &a] {
            wake(whom);
        }
        hold();
        assert_eq!(so_far(), "");
        let_go();
        assert_eq!(so_far(), "ba");
        wake(&a);
        assert_eq!(so_far(), "");
        release();
        assert_eq!(so_far(), "a");
        wake(&b);
        assert_eq!(so_far(), "b");
        assert_eq!(Arc::strong_count(&a), 1);
    }

    /// What a thread signals when it ends, and its queue has ended already, is not held back.
    #[test]
    fn a_thread_that_ends() {
        struct Last(Arc<Named>);
        impl Drop for Last {
            fn drop(&mut self) {
                hold();
                wake(&self.0);
                release();
            }
        }
        thread_local! {
            static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
        }
        let woken = Arc::new(Mutex::new(String::new()));
        for queue_first in [true, false] {
            let named = Arc::new(Named('x', Arc::clone(&woken)));
            let live = move || {
                let make_queue = || QUEUE.with(|_| ());
                let make_last = || LAST.set(Some(Last(named)));
                if queue_first {
                    make_queue();
                    make_last();
                } else {
                    make_last();
                    make_queue();
                }
            };
            std::thread::spawn(live).join().expect("it ends");
        }
        assert_eq!(*woken.lock().expect("nobody panics"), "xx");
    }
}
