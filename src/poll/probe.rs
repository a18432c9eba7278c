/// Tells whether a source has something to do, without a system call: by a look at memory that the other side writes,
/// such as the available ring of a virtqueue.
///
/// If a source has a probe, a poller turns the source's notifications off while it looks itself, and on while it
/// sleeps. The three calls, in terms of a split virtqueue (virtio 1.2, 2.7.7 and 2.7.10):
///
/// | | when | what a device does |
/// |---|---|---|
/// | [`ready`](Self::ready) | again and again, while the poller is awake | compares the index of the available ring with its own |
/// | [`begin`](Self::begin) | polling begins | sets `VRING_USED_F_NO_NOTIFY`; with `EVENT_IDX` leaves `avail_event` as it is |
/// | [`end`](Self::end) | a thread is about to sleep | clears the flag, or sets `avail_event`; then a full fence; then looks once more |
///
/// The fence in `end` is half of a handshake. The driver has the other half: it publishes a request, executes a full
/// fence, and then looks whether to notify. At least one of the two looks sees what the other side has written. So the
/// device finds the request, or the driver notifies. Without the fence, the device may go to sleep with a request in
/// the ring and no notification on the way.
///
/// ```text
///     driver                                  poller
///     1  publish the request                  1  turn notifications on        ┐
///     2  fence                                2  fence                        ├ end
///     3  are notifications on?  notify        3  is there a request?  yes: go on, awake  ┘
///                                             4  sleep
/// ```
///
/// The poller makes the calls one at a time, on any thread that waits. It holds a lock during a call, so the calls
/// should be short. A call that blocks holds up the other threads that wait, and threads that add or delete probes. A
/// probe must not call the poller.
///
/// If a call panics, the [`wait`](super::Poller::wait) that made it panics. The calls of the other probes are made
/// nevertheless. The poller does not know then whether notifications are on, so it makes its calls again, and no thread
/// sleeps before a call of `end` has returned. A probe that always panics in `end` makes each `wait` panic until it is
/// [deleted](super::Poller::delete).
///
/// ```
/// use doorbell::poll::Probe;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
///
/// /// What driver and device share.
/// #[derive(Default)]
/// struct Ring {
///     available: AtomicU16,
///     no_notify: AtomicBool,
/// }
///
/// /// What only the device knows, beside the ring.
/// struct Device {
///     ring: Arc<Ring>,
///     taken: Arc<AtomicU16>,
/// }
///
/// impl Probe for Device {
///     fn ready(&mut self) -> bool {
///         // Acquire: a thread that is told to look at the request sees the request.
///         self.ring.available.load(Ordering::Acquire) != self.taken.load(Ordering::Relaxed)
///     }
///
///     fn begin(&mut self) {
///         self.ring.no_notify.store(true, Ordering::Relaxed);
///     }
///
///     fn end(&mut self) -> bool {
///         self.ring.no_notify.store(false, Ordering::Relaxed);
///         fence(Ordering::SeqCst);
///         self.ready()
///     }
/// }
/// # let ring = Arc::new(Ring::default());
/// # let mut device = Device { ring: Arc::clone(&ring), taken: Arc::default() };
/// # device.begin();
/// # ring.available.store(1, Ordering::Release);
/// # assert!(device.end());
/// ```
pub trait Probe: Send {
    /// Whether there is something to do. The poller calls this in a loop, so it should cost little more than a load.
    /// When it is true, the device looks at its source, so the load must acquire what the device finds there.
    fn ready(&mut self) -> bool;

    /// Polling begins: the other side need not notify any more. It may go on notifying.
    fn begin(&mut self) {}

    /// Polling ends: from now on, the other side has to notify. Afterwards this looks once more, and returns whether
    /// there is something to do. If there is, the thread does not sleep.
    ///
    /// Notifications must be on when the probe is added.
    fn end(&mut self) -> bool;
}
