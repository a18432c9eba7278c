//! The calls that register the kernel's objects with a poller: descriptors, and eventfds that are bound to events.

use super::bound::Bound;
use super::item::{Item, Kind};
use super::poller::Poller;
use super::registered::Registration;
use super::{PollError, Watch};
use crate::event::{EventHandle, Interest};
use rustix::fd::AsFd;
use std::sync::Arc;

impl Poller {
    /// Watches a file descriptor that epoll accepts, such as a socket, a timer or an eventfd that the kernel signals.
    ///
    /// The reported flags are epoll's own. From the first descriptor on, threads in [`wait`](Self::wait) sleep in
    /// epoll. Threads that sleep elsewhere at the time move there. A timeout may then pass up to a millisecond late.
    /// While events or probes are ready, the poller looks at descriptors in every 32nd wait. A wait that looks for a
    /// while before it sleeps looks at them every 50 µs.
    ///
    /// An eventfd that only wakes the thread, such as a virtqueue's kick, need not be read: watch it for
    /// [edges](Watch::edge), which costs one system call for each kick.
    ///
    /// The poller keeps no duplicate of the descriptor, and does not keep it open. If the poller lives on, call
    /// [`delete`](Self::delete) before closing the descriptor. Closing it ends the registration only if no duplicate is
    /// left anywhere, and leaves the key in use. A peer that sent the descriptor over a socket has such a duplicate. As
    /// with epoll, what the peer does to a descriptor that was closed here without `delete` goes on waking threads, and
    /// cannot be deleted any more. The drop of the poller ends all registrations, in any order with the descriptors.
    ///
    /// `TimerFd` and `EventFd` of vmm-sys-util and `VmFd` of kvm-ioctls are not `AsFd`: the page
    /// [`fd`](crate::fd#the-types-of-vmm-sys-util) shows how to borrow the descriptor of such a type.
    ///
    /// # Errors
    ///
    /// [`KeyExists`](PollError::KeyExists); [`FdExists`](PollError::FdExists), though a duplicate is another
    /// descriptor; [`BadFd`](PollError::BadFd); [`NotPollable`](PollError::NotPollable); [`Os`](PollError::Os).
    ///
    /// ```
    /// # use doorbell::poll::{Events, Poller, Watch};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut guest, host) = UnixStream::pair()?;
    /// let poller = Poller::new();
    /// poller.add_fd(&host, 7, Watch::READABLE)?;
    /// guest.write_all(b"kick")?;
    ///
    /// let mut events = Events::with_capacity(16);
    /// poller.wait(&mut events, None)?;
    /// assert_eq!(events.iter().next().map(|ready| ready.key()), Some(7));
    /// poller.delete(7)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn add_fd(&self, fd: impl AsFd, key: usize, watch: Watch) -> Result<(), PollError> {
        let mut registered = self.registered();
        registered.check_vacant(key)?;
        let fds = self.fds()?;
        let registration = registered.fds.add(fds, fd.as_fd(), key, watch)?;
        registered.register(key, Registration::Fd(registration));
        Ok(())
    }

    /// Binds a kernel eventfd to an event: what KVM, vhost or another process adds to the eventfd, a thread in
    /// [`wait`](Self::wait) carries over to the event, where it is signalled as by a [`write`](crate::Event::write).
    ///
    /// Nothing is lost and nothing doubled. If the event has no room, the rest stays behind until the event is read, as
    /// far as possible in the eventfd, whose writers then block. A semaphore eventfd is emptied too, one unit at a
    /// time. Several threads in `wait` carry over for several bindings at once, so a slow observer holds up only the
    /// binding of its own event. Nothing is carried over while no thread is in `wait`. The binding itself reports
    /// nothing: [`add`](Self::add) the event, or wait for it elsewhere.
    ///
    /// The poller keeps a duplicate of the descriptor, and the event, until [`delete`](Self::delete). What is in the
    /// eventfd at that time stays there. What has been read, by another thread at the same moment too, is in the event
    /// when `delete` returns. If the event has no room for it, it is signalled, so that the event may overflow. If an
    /// eventfd is bound twice, each count goes to one of the two events.
    ///
    /// vmm-sys-util's `EventFd` is not `AsFd`: the page [`fd`](crate::fd#the-types-of-vmm-sys-util) shows how to borrow
    /// its descriptor.
    ///
    /// # Errors
    ///
    /// [`KeyExists`](PollError::KeyExists), [`NotEventfd`](PollError::NotEventfd), [`BadFd`](PollError::BadFd) or
    /// [`Os`](PollError::Os). The kind of the descriptor is read from `/proc`. Without `/proc`, the descriptor is taken
    /// for an eventfd.
    ///
    /// ```
    /// use doorbell::Event;
    /// use doorbell::poll::{Events, Poller, Watch};
    /// use rustix::event::{EventfdFlags, eventfd};
    /// use std::sync::Arc;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vhost = eventfd(0, EventfdFlags::NONBLOCK)?;
    /// let call = Arc::new(Event::new(0));
    /// let poller = Poller::new();
    /// poller.bind(&vhost, &call, 1)?;
    /// poller.add(&call, 2, Watch::READABLE)?;
    ///
    /// rustix::io::write(&vhost, &3_u64.to_ne_bytes())?; // vhost writes to its eventfd …
    /// poller.wait(&mut Events::with_capacity(8), None)?;
    /// assert_eq!(call.try_read(), Some(3)); // … and the event has it
    /// # Ok(())
    /// # }
    /// ```
    pub fn bind(
        &self,
        fd: impl AsFd,
        event: impl Into<EventHandle>,
        key: usize,
    ) -> Result<(), PollError> {
        self.add_binding(fd, event.into(), key, None)
    }

    /// Binds as [`bind`](Self::bind) does, and watches the event as [`add`](Self::add) does, under one key.
    ///
    /// For a device that reads kicks of the kernel or of another process from an event: it has one registration for
    /// each queue. [`modify`](Self::modify) changes the watch.
    ///
    /// # Errors
    ///
    /// Those of `bind`.
    pub fn add_bound(
        &self,
        fd: impl AsFd,
        event: impl Into<EventHandle>,
        key: usize,
        watch: Watch,
    ) -> Result<(), PollError> {
        self.add_binding(fd, event.into(), key, Some(watch))
    }

    fn add_binding(
        &self,
        fd: impl AsFd,
        event: EventHandle,
        key: usize,
        watch: Option<Watch>,
    ) -> Result<(), PollError> {
        let bound = Bound::new(fd, event.clone())?;
        let item = Item::new(key, Kind::Bound(bound), Arc::clone(self.shared()));
        item.watch(Watch::WRITABLE);
        // Outside the lock, which an observer's call may take.
        let binding = self.observed(item, event.clone(), Interest::Reads);
        let watched = watch.map(|_| self.watched(event, key));
        let sampled = watched.as_ref().map(|watched| Arc::clone(&watched.item));
        {
            let mut registered = self.registered();
            registered.check_vacant(key)?;
            let Kind::Bound(bound) = &binding.item.kind else {
                unreachable!("made above");
            };
            let fds = self.fds()?;
            fds.check_reads()?;
            let edges = Watch::READABLE.edge();
            let registration = registered.fds.add(fds, bound.fd(), key, edges)?;
            if let (Some(item), Some(watch)) = (&sampled, watch) {
                item.watch(watch);
            }
            registered.register(
                key,
                Registration::Bound {
                    binding,
                    registration,
                    watched,
                },
            );
        }
        if let Some(item) = sampled {
            item.sample();
        }
        Ok(())
    }
}
