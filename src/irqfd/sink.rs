use super::{MsiMessage, RouteChange, Routes};
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

/// What interrupts end in: an interrupt controller that the VMM emulates, or the hypervisor's.
///
/// Calls come on the threads that signal, from inside an [`Observer`](crate::event::Observer)'s call, so they are short
/// and do not block; a sink that may has its router [hand them over](super::Router::with_worker) to a thread. They come
/// on the threads that call the router's methods, too, or end a call inside which an irqfd was deassigned.
///
/// Calls for a pin come on the thread that signals, or on another one that signals the same line at the time. One
/// thread makes calls for others for sixteen turns, each of one pulse, say; then it is relieved by the next thread that
/// asks for something, if the sink takes no longer than some microseconds. For that, a signal may wait, spinning, for
/// up to 20 µs. (With a slower sink, a thread may have to go on for as long as others signal: hand those over to a
/// thread of the router's, which gives each line one turn after the other.)
///
/// No lock of the router's is held. Calls for one line come one at a time, in order, except `signal_msi`, which any
/// number of threads may be in at once. So a sink may call the router, be it for the same line: what it asks for there
/// is done by whoever is driving the line, later. A sink that takes a lock must not hold it while it calls
/// [`Router::ack`](super::Router::ack), whose first deed may be a call to the sink, nor while it makes one of the calls
/// that [wait for callbacks](super#locks-that-a-caller-may-hold).
///
/// If a call panics, so does the signal or the method that it was made by, when what others have asked for is done. The
/// line can be used further; its pin may be at the wrong level until the next change.
pub trait InterruptSink: Send + Sync {
    /// The level of a pin. `gsi` is the line that the pin belongs to (or belonged to, if it is lowered because there is
    /// another route).
    fn set_level(&self, gsi: u32, pin: u32, level: bool);

    /// A message-signalled interrupt. What the guest has put into the message, the guest gets: there is no such thing
    /// as an invalid one.
    fn signal_msi(&self, gsi: u32, message: MsiMessage);

    /// An edge on a pin that is low: up and down again.
    fn pulse(&self, gsi: u32, pin: u32) {
        self.set_level(gsi, pin, true);
        self.set_level(gsi, pin, false);
    }

    /// The router is about to replace all routes by `routes`, which differ from those before by `changes`: at least
    /// one, by GSI. Whoever keeps a copy takes them now: injections are under way all the time, by the old routes until
    /// this returns, and by the new ones soon after.
    ///
    /// Changes of routes wait for this call, so it must not change routes; it may look at [`Router::routes`], which are
    /// the old ones.
    ///
    /// [`Router::routes`]: super::Router::routes
    ///
    /// # Errors
    ///
    /// The sink cannot route like this. Then everything stays as it was.
    fn set_routes(&self, routes: &Routes, changes: &[RouteChange]) -> io::Result<()> {
        let _ = (routes, changes);
        Ok(())
    }

    /// A line is about to get an irqfd, one with a resample event if `resample`. May come again for the same line. A
    /// sink that learns of the guest's ends of interrupt by itself keeps the [`Eoi`] to tell the line.
    ///
    /// # Errors
    ///
    /// The sink cannot serve this line. Then the irqfd is not assigned.
    fn connect(&self, line: Eoi, resample: bool) -> io::Result<()> {
        let _ = (line, resample);
        Ok(())
    }

    /// An irqfd that [`connect`](Self::connect) has announced is gone, and no interrupt of its own comes any more.
    /// Comes once for each, with the same arguments, so a sink that counts them knows when a line needs nothing any
    /// more. A sink that hands `connect` on to another hands this on, too.
    fn disconnect(&self, gsi: u32, resample: bool) {
        let _ = (gsi, resample);
    }

    /// Waits until the guest's interrupt controllers have everything that the sink was told before, for a sink that
    /// hands it on to somebody else who carries it out later. [`Router::save`] and [`Router::restore`] call this.
    ///
    /// [`Router::save`]: super::Router::save
    /// [`Router::restore`]: super::Router::restore
    fn flush(&self) {}
}

/// What points to a sink is that sink. Every method is handed on, those with a default too.
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

/// A sink's way back to a line: the guest's end of interrupt.
#[derive(Clone)]
pub struct Eoi {
    gsi: u32,
    /// The router goes when its user lets it go, not when its sink does.
    lines: Weak<dyn AckTarget>,
}

/// Where the guest's ends of interrupt go to.
pub(super) trait AckTarget: Send + Sync {
    fn ack(&self, gsi: u32);
}

impl Eoi {
    pub(super) fn new(gsi: u32, lines: &Arc<impl AckTarget + 'static>) -> Self {
        let lines = Arc::downgrade(lines);
        Eoi { gsi, lines }
    }

    /// The line.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// As [`Router::ack`](super::Router::ack), but also if the line has no resampling irqfds any more: the sink may
    /// have lowered it already, and is told to raise it again if somebody else holds it up. Does nothing when the
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
