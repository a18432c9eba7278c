/// What a binding is to its poller.
pub(super) trait QueuedBinding {
    fn is_deleted(&self) -> bool;

    /// Puts the binding into the queue of those that have something to carry.
    fn enqueue(&self);
}
