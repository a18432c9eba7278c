//! Memory that somebody else may free.

use std::sync::Arc;
use std::thread;

/// Waits until nobody else holds it, under a watchdog of the caller's.
///
/// What a change of observers or doorbells leaves to the end of a call or a transaction is freed by whoever comes first: a
/// thread of another test that makes such a change at the same time, perhaps.
pub fn wait_until_alone<T>(held: &Arc<T>) {
    while Arc::strong_count(held) > 1 {
        thread::yield_now();
    }
}
