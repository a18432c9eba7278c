//! `doorbell::SharedEvent` as a [`Counter`]: in one process, and in two.

use super::counter::{Counter, Place, Readable};
use super::ours::{errno, poll_flags};
use doorbell::{Mode, SharedEvent};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// A `SharedEvent` with a mapping for each handle.
#[derive(Debug)]
pub struct Shared {
    event: SharedEvent,
    memfd: Arc<OwnedFd>,
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Shared {
            event: SharedEvent::attach(&*self.memfd, 0).unwrap(),
            memfd: Arc::clone(&self.memfd),
        }
    }
}

impl Counter for Shared {
    const INTERRUPTIBLE: bool = false;
    const WAKES_ALL: bool = false;

    fn new(initial: u64, mode: Mode) -> Self {
        let (event, memfd) = SharedEvent::create(initial, mode).unwrap();
        Shared {
            event,
            memfd: memfd.into(),
        }
    }

    fn read(&self) -> Result<u64, Errno> {
        Ok(self.event.read())
    }

    fn try_read(&self) -> Result<u64, Errno> {
        self.event.try_read().ok_or(Errno::AGAIN)
    }

    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno> {
        self.event.read_timeout(timeout).ok_or(Errno::TIMEDOUT)
    }

    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno> {
        self.event.read_deadline(deadline).ok_or(Errno::TIMEDOUT)
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        self.event.write(n).map_err(errno)
    }

    fn try_write(&self, n: u64) -> Result<(), Errno> {
        self.event.try_write(n).map_err(errno)
    }

    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno> {
        self.event.write_timeout(n, timeout).map_err(errno)
    }

    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno> {
        self.event.write_deadline(n, deadline).map_err(errno)
    }

    fn signal(&self) {
        self.event.signal();
    }

    fn signal_n(&self, n: u64) {
        self.event.signal_n(n);
    }

    fn count(&self) -> u64 {
        self.event.count()
    }

    fn poll(&self) -> PollFlags {
        poll_flags(self.event.readiness())
    }

    fn place(&self) -> Place {
        Place::SharedMemory
    }
}

impl Readable for Shared {
    fn wait_readable(&self) {
        self.event.wait_readable();
    }

    fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        self.event.wait_readable_timeout(timeout)
    }

    fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        self.event.wait_readable_deadline(deadline)
    }
}

/// An event on which another process makes every call that need not wait. Calls that have to wait do so in this
/// process, so the other process wakes them.
#[derive(Clone, Debug)]
pub struct TwoProcesses {
    here: Shared,
    there: Arc<Remote>,
}

impl Counter for TwoProcesses {
    const INTERRUPTIBLE: bool = false;
    const WAKES_ALL: bool = false;
    const MANY: u64 = 2_000;

    fn new(initial: u64, mode: Mode) -> Self {
        let here = Shared::new(initial, mode);
        let there = Arc::new(Remote::attach(here.memfd.as_fd()));
        TwoProcesses { here, there }
    }

    fn read(&self) -> Result<u64, Errno> {
        self.try_read().or_else(|_| self.here.read())
    }

    fn try_read(&self) -> Result<u64, Errno> {
        self.there.call(Call::TryRead, 0)
    }

    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno> {
        let deadline = Instant::now().checked_add(timeout);
        self.try_read().or_else(|_| match deadline {
            Some(deadline) => self.here.read_deadline(deadline),
            None => self.here.read_timeout(timeout),
        })
    }

    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno> {
        self.try_read()
            .or_else(|_| self.here.read_deadline(deadline))
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        match self.try_write(n) {
            Err(Errno::AGAIN) => self.here.write(n),
            done => done,
        }
    }

    fn try_write(&self, n: u64) -> Result<(), Errno> {
        self.there.call(Call::TryWrite, n).map(drop)
    }

    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno> {
        let deadline = Instant::now().checked_add(timeout);
        match (self.try_write(n), deadline) {
            (Err(Errno::AGAIN), Some(deadline)) => self.here.write_deadline(n, deadline),
            (Err(Errno::AGAIN), None) => self.here.write_timeout(n, timeout),
            (done, _) => done,
        }
    }

    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno> {
        match self.try_write(n) {
            Err(Errno::AGAIN) => self.here.write_deadline(n, deadline),
            done => done,
        }
    }

    fn signal(&self) {
        self.signal_n(1);
    }

    fn signal_n(&self, n: u64) {
        self.there.call(Call::Signal, n).unwrap();
    }

    fn count(&self) -> u64 {
        self.there.call(Call::Count, 0).unwrap()
    }

    fn poll(&self) -> PollFlags {
        self.here.poll()
    }

    fn place(&self) -> Place {
        Place::SharedMemory
    }
}

impl Readable for TwoProcesses {
    fn wait_readable(&self) {
        self.here.wait_readable();
    }

    fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        self.here.wait_readable_timeout(timeout)
    }

    fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        self.here.wait_readable_deadline(deadline)
    }
}

/// The call that the other process is asked to make.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u64)]
enum Call {
    Attach,
    Detach,
    TryRead,
    TryWrite,
    Signal,
    Count,
}

impl Call {
    const ALL: [Call; 6] = [
        Call::Attach,
        Call::Detach,
        Call::TryRead,
        Call::TryWrite,
        Call::Signal,
        Call::Count,
    ];
}

/// An event in the other process.
#[derive(Debug)]
struct Remote {
    id: u64,
}

impl Remote {
    fn attach(memfd: BorrowedFd<'_>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        request([Call::Attach as u64, id, 0], Some(memfd)).unwrap();
        Remote { id }
    }

    fn call(&self, call: Call, n: u64) -> Result<u64, Errno> {
        request([call as u64, self.id, n], None)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = request([Call::Detach as u64, self.id, 0], None);
    }
}

/// Set in the process that serves another.
const SERVES: &str = "DOORBELL_TEST_SERVES";

fn request(words: [u64; 3], fd: Option<BorrowedFd<'_>>) -> Result<u64, Errno> {
    static SERVER: LazyLock<Mutex<(OwnedFd, Child)>> = LazyLock::new(|| Mutex::new(start_server()));
    let (server, _) = &*SERVER.lock().unwrap();
    send(server, words, fd);
    let ([status, value, _], _) = receive(server).expect("the server answers");
    match status {
        0 => Ok(value),
        error => Err(Errno::from_raw_os_error(error as i32)),
    }
}

/// Starts this test binary again, for the one test that calls [`serve`]. That process ends when this one does.
fn start_server() -> (OwnedFd, Child) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shared_by_two_processes::serve", "--nocapture"])
        .env(SERVES, "")
        .stdin(theirs)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (ours, child)
}

/// Does what another process asks for, if this process was started for that.
pub fn serve() {
    if std::env::var_os(SERVES).is_none() {
        return;
    }
    let socket = std::io::stdin();
    let mut events = HashMap::new();
    while let Some(([call, id, n], fd)) = receive(&socket) {
        let result = match Call::ALL[call as usize] {
            Call::Attach => {
                let event = SharedEvent::attach(fd.expect("a memfd"), 0).unwrap();
                events.insert(id, event);
                Ok(0)
            }
            Call::Detach => {
                events.remove(&id);
                Ok(0)
            }
            Call::TryRead => events[&id].try_read().ok_or(Errno::AGAIN),
            Call::TryWrite => events[&id].try_write(n).map(|()| 0).map_err(errno),
            Call::Signal => {
                events[&id].signal_n(n);
                Ok(0)
            }
            Call::Count => Ok(events[&id].count()),
        };
        match result {
            Ok(value) => send(&socket, [0, value, 0], None),
            Err(error) => send(&socket, [error.raw_os_error() as u64, 0, 0], None),
        }
    }
}

/// Sends three numbers, and perhaps a descriptor.
pub fn send(socket: impl AsFd, words: [u64; 3], fd: Option<BorrowedFd<'_>>) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd))));
    }
    retry_on_intr(|| {
        sendmsg(
            &socket,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::empty(),
        )
    })
    .unwrap();
}

/// `None` if the other side has gone.
pub fn receive(socket: impl AsFd) -> Option<([u64; 3], Option<OwnedFd>)> {
    let mut bytes = [0; 24];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    });
    if received.map_or(0, |message| message.bytes) != bytes.len() {
        return None;
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let word = |index: usize| u64::from_ne_bytes(bytes[8 * index..][..8].try_into().unwrap());
    Some(([word(0), word(1), word(2)], fd))
}
