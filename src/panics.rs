//! Code from elsewhere that panics while there is more to be done: the rest is done nevertheless, and then the first
//! panic goes on.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

pub(crate) type Payload = Box<dyn Any + Send>;

/// Makes a call, and keeps its panic unless there was one before. `None` if it panicked.
pub(crate) fn catch<R>(panicked: &mut Option<Payload>, call: impl FnOnce() -> R) -> Option<R> {
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Some(result),
        Err(payload) => {
            panicked.get_or_insert(payload);
            None
        }
    }
}

/// Has the first panic go on, if there was one.
pub(crate) fn go_on(panicked: Option<Payload>) {
    if let Some(payload) = panicked {
        panic::resume_unwind(payload);
    }
}

/// The same in what may be called while the thread panics already: a second panic would end the process.
pub(crate) fn go_on_unless_panicking(panicked: Option<Payload>) {
    if !thread::panicking() {
        go_on(panicked);
    }
}
