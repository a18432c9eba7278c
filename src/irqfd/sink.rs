use super::{MsiMessage, RouteChange, Routes};
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

/// Where interrupts end: an interrupt controller that the VMM emulates, or that of the hypervisor.
///
/// The methods are called on the threads that signal, inside the call of an [`Observer`](crate::event::Observer), so
/// they should be short and must not block. A sink that may block has its router [hand the calls
/// over](super::Router::with_worker) to a thread. Methods are also called on the threads that call the router's
/// methods, and at the end of a call inside which an irqfd was deassigned.
///
/// Calls for a pin are made by the thread that signals, or by another thread that signals the same line at the time.
/// One thread makes calls for others for sixteen turns, for instance of one pulse each. Then the next thread that makes
/// a request takes over, provided that the sink takes no longer than some microseconds. For that, a signal may spin for
/// up to 20 µs. (With a slower sink, a thread may have to go on for as long as others signal. Such a sink is better
/// served by a router with a worker, which gives the lines one turn each in order.)
///
/// The router holds no lock during a call. Calls for one line come one at a time and in order, except `signal_msi`,
/// which any number of threads may be in at once. So a sink may call the router, also for the same line: the driver of
/// the line carries out such a request later. A sink that takes a lock must not hold it while it calls
/// [`Router::ack`](super::Router::ack), which may begin with a call to the sink, nor while it makes one of the calls
/// that [wait for callbacks](crate::guide::locks).
///
/// If a call panics, the signal or the method that made the call panics, too, after it has carried out the requests of
/// other threads. The line can still be used; its pin may be at the wrong level until the next change.
///
/// # A sink around another sink
///
/// A sink that counts or filters interrupts on their way to another sink says by [`inner`](Self::inner) which sink that
/// is. The methods that have a default then hand their calls on to the inner sink, so the wrapper has the two required
/// methods only. Without `inner`, these calls end in the wrapper: a `kvm::KvmSink` inside would never get the routes,
/// and would lose every interrupt of a pin.
///
/// ```
/// use doorbell::irqfd::{InterruptSink, MsiMessage, Router, Routes};
/// use std::sync::Mutex;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// /// Counts the interrupts that go to the sink inside.
/// struct Counting<S> {
///     sink: S,
///     edges: AtomicU64,
///     messages: AtomicU64,
/// }
///
/// impl<S: InterruptSink> InterruptSink for Counting<S> {
///     fn set_level(&self, gsi: u32, pin: u32, level: bool) {
///         self.edges.fetch_add(level.into(), Ordering::Relaxed);
///         self.sink.set_level(gsi, pin, level);
///     }
///
///     fn signal_msi(&self, gsi: u32, message: MsiMessage) {
///         self.messages.fetch_add(1, Ordering::Relaxed);
///         self.sink.signal_msi(gsi, message);
///     }
///
///     fn inner(&self) -> Option<&dyn InterruptSink> {
///         Some(&self.sink)
///     }
/// }
/// #
/// # #[derive(Default)]
/// # struct Chips(Mutex<(usize, Vec<bool>)>);
/// # impl InterruptSink for Chips {
/// #     fn set_level(&self, _: u32, _: u32, level: bool) { self.0.lock().unwrap().1.push(level); }
/// #     fn signal_msi(&self, _: u32, _: MsiMessage) {}
/// #     fn set_routes(&self, routes: &Routes, _: &[doorbell::irqfd::RouteChange]) -> std::io::Result<()> {
/// #         self.0.lock().unwrap().0 = routes.iter().count();
/// #         Ok(())
/// #     }
/// # }
///
/// # let chips = std::sync::Arc::new(Chips::default());
/// let sink = std::sync::Arc::new(Counting {
///     sink: chips.clone(),
///     edges: AtomicU64::new(0),
///     messages: AtomicU64::new(0),
/// });
/// let router = Router::new(sink.clone());
/// router.set_routes(Routes::identity(24))?; // reaches `chips`
/// router.set_pending(4); // so does an edge, as a level that rises and falls
/// assert_eq!(sink.edges.load(Ordering::Relaxed), 1);
/// # assert_eq!(*chips.0.lock().unwrap(), (24, vec![true, false]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait InterruptSink: Send + Sync {
    /// The level of a pin. `gsi` is the line that the pin belongs to (or belonged to, if it is lowered because there is
    /// another route).
    fn set_level(&self, gsi: u32, pin: u32, level: bool);

    /// A message-signalled interrupt. The message is what the guest has put into its vector, and may be anything: no
    /// message is invalid.
    fn signal_msi(&self, gsi: u32, message: MsiMessage);

    /// The sink inside this one, if this one is [a wrapper](Self#a-sink-around-another-sink). The methods below hand
    /// their calls on to it, where the wrapper does not have them itself.
    fn inner(&self) -> Option<&dyn InterruptSink> {
        None
    }

    /// An edge on a pin that is low: the pin goes up and down again.
    ///
    /// The default makes two calls of this sink's own [`set_level`](Self::set_level), also if there is an
    /// [inner](Self::inner) sink, so that a wrapper sees every change of a pin. A wrapper that has no interest in edges
    /// may hand `pulse` on to its inner sink instead, which may be able to do it at once.
    fn pulse(&self, gsi: u32, pin: u32) {
        self.set_level(gsi, pin, true);
        self.set_level(gsi, pin, false);
    }

    /// The router is about to replace all routes by `routes`, which differ from those before by `changes`. There is at
    /// least one change, and they are ordered by GSI. A sink that keeps a copy of the routes takes the new ones now:
    /// injections go on all the time, by the old routes until this returns, and by the new ones soon after.
    ///
    /// Changes of routes wait for this call, so it must not change routes. It may read [`Router::routes`], which are
    /// still the old ones.
    ///
    /// [`Router::routes`]: super::Router::routes
    ///
    /// # Errors
    ///
    /// The sink cannot route like this. Then everything stays as it was.
    fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        match self.inner() {
            Some(inner) => inner.set_routes(routes, changes),
            None => Ok(()),
        }
    }

    /// A line is about to get an irqfd; `resample` says whether it has a resample event. A line may get several. A sink
    /// that learns of the guest's ends of interrupt by itself keeps the [`Eoi`], to tell the line of them.
    ///
    /// # Errors
    ///
    /// The sink cannot serve this line. Then the irqfd is not assigned.
    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        match self.inner() {
            Some(inner) => inner.connect(line, resample),
            None => Ok(()),
        }
    }

    /// An irqfd that [`connect`](Self::connect) has announced is gone, and its interrupts have ended. This is called
    /// once for each irqfd with the same arguments, so a sink can count the irqfds of a line. A sink that hands
    /// `connect` on to another sink must hand this on, too.
    fn disconnect(&self, gsi: u32, resample: bool) {
        if let Some(inner) = self.inner() {
            inner.disconnect(gsi, resample);
        }
    }

    /// Waits until the guest's interrupt controllers have everything that the sink was told before, for a sink that
    /// hands it on to another thread or process, which carries it out later. [`Router::save`] and [`Router::restore`]
    /// call this.
    ///
    /// [`Router::save`]: super::Router::save
    /// [`Router::restore`]: super::Router::restore
    fn flush(&self) {
        if let Some(inner) = self.inner() {
            inner.flush();
        }
    }
}

/// Makes a pointer to a sink that sink. Every method is handed on, including those with a default.
macro_rules! pointer_to_sink {
    ($pointer:ty) => {
        /// The same sink.
        #[deny(clippy::missing_trait_methods)]
        impl<S: InterruptSink + ?Sized> InterruptSink for $pointer {
            #[inline]
            fn set_level(&self, gsi: u32, pin: u32, level: bool) {
                (**self).set_level(gsi, pin, level);
            }

            #[inline]
            fn signal_msi(&self, gsi: u32, message: MsiMessage) {
                (**self).signal_msi(gsi, message);
            }

            fn inner(&self) -> Option<&dyn InterruptSink> {
                (**self).inner()
            }

            #[inline]
            fn pulse(&self, gsi: u32, pin: u32) {
                (**self).pulse(gsi, pin);
            }

            fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
                (**self).set_routes(routes, changes)
            }

            fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
                (**self).connect(line, resample)
            }

            fn disconnect(&self, gsi: u32, resample: bool) {
                (**self).disconnect(gsi, resample);
            }

            fn flush(&self) {
                (**self).flush();
            }
        }
    };
}

pointer_to_sink!(&S);
pointer_to_sink!(Arc<S>);
pointer_to_sink!(Box<S>);

/// A sink's way back to a line: the guest's end of interrupt (EOI).
#[derive(Clone)]
pub struct Eoi {
    gsi: u32,
    /// Weak, so that a sink does not keep its router alive.
    lines: Weak<dyn AckTarget>,
}

/// What is told of the guest's ends of interrupt.
pub(super) trait AckTarget: Send + Sync {
    fn ack(&self, gsi: u32);
}

impl Eoi {
    pub(super) fn new(gsi: u32, lines: &Arc<impl AckTarget + 'static>) -> Self {
        let lines = Arc::downgrade(lines);
        Eoi { gsi, lines }
    }

    /// The line.
    #[must_use]
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// As [`Router::ack`](super::Router::ack), but also if the line has no resampling irqfds any more: the sink may
    /// have lowered the line already, and is told to raise it again if it is held up otherwise. Does nothing when the
    /// router has gone.
    pub fn ack(&self) {
        if let Some(lines) = self.lines.upgrade() {
            lines.ack(self.gsi);
        }
    }
}

impl fmt::Debug for Eoi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eoi").field("gsi", &self.gsi()).finish()
    }
}
