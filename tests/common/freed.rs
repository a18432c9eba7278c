//! Memory that somebody else may free.

use std::sync::Arc;
use std::thread;

/// Waits until nobody else holds it, under a watchdog of the caller's.
///
/// What a callback has detached is freed at the end of the outermost call, unless a thread of another test is inside a
/// call of its own at that moment: then it stays behind.
pub fn wait_until_alone<T>(held: &Arc<T>) {
    while Arc::strong_count(held) > 1 {
        doorbell::reclaim();
        thread::yield_now();
    }
}
