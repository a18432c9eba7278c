/// What a binding needs of its item in the poller's queue.
pub(super) trait QueuedBinding {
    fn is_deleted(&self) -> bool;

    /// Puts the binding into the queue of bindings that have something to carry.
    fn enqueue(&self);
}
