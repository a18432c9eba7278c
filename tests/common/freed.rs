//! Memory that another thread may free.

use std::sync::Arc;
use std::thread;

/// Waits until nothing else holds `held`, under a watchdog of the caller's.
///
/// What a callback has detached is freed at the end of the outermost call, unless a thread of another test is inside a
/// call of its own at that moment: then it stays for a while.
pub fn wait_until_alone<T>(held: &Arc<T>) {
    while Arc::strong_count(held) > 1 {
        doorbell::reclaim();
        thread::yield_now();
    }
}
