//! A thread that sleeps until a [`Waker`](std::task::Waker) is called.
//!
//! Like `thread::park`, with a token of its own, so that an unrelated `unpark` does not end the sleep, and loom's
//! models can let its time pass.

use super::atomic::{AtomicU32, Ordering};
use super::futex::{self, Outcome};
use super::limit::has_passed;
use super::wake_queue::{self, Sleeper};
use std::sync::Arc;
use std::task::Wake;
use std::time::Instant;

pub(crate) struct Parker {
    /// 1 from a wake to the end of the sleep that it is for.
    woken: AtomicU32,
}

impl Parker {
    pub(crate) fn new() -> Self {
        Parker {
            woken: AtomicU32::new(0),
        }
    }

    /// Sleeps until there has been a wake since the last call, or until the deadline. After the deadline it does not
    /// check for a wake, because there may be one each time.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> Outcome {
        if has_passed(deadline) {
            return Outcome::TimedOut;
        }
        // Acquire pairs with the Release in `wake_by_ref`: a woken thread sees what it was woken for.
        while self.woken.swap(0, Ordering::Acquire) == 0 {
            if futex::wait(&self.woken, 0, deadline) == Outcome::TimedOut {
                return Outcome::TimedOut;
            }
        }
        Outcome::Woken
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release pairs with the Acquire of the parked thread, which sees what was done before the wake-up.
        if self.woken.swap(1, Ordering::Release) == 0 {
            wake_queue::wake(self);
        }
    }
}

impl Sleeper for Parker {
    fn wake_now(&self) {
        futex::wake(&self.woken, 1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_wake_counts_until_the_deadline() {
        let parker = Arc::new(Parker::new());
        let later = Instant::now() + Duration::from_secs(3600);
        for deadline in [None, Some(later)] {
            parker.wake_by_ref();
            assert_eq!(parker.park(deadline), Outcome::Woken);
        }
        parker.wake_by_ref();
        assert_eq!(parker.park(Some(Instant::now())), Outcome::TimedOut);
        assert_eq!(parker.park(Some(later)), Outcome::Woken);
    }
}
