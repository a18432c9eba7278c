//! The socket, the front-ends that come to it one after the other, and the thread's loop.

use crate::program::device::{Device, FIRST_QUEUE};
use crate::program::guard;
use anyhow::{Context, bail};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, recv};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use vhost::vhost_user::{BackendReqHandler, Error};

const SIGNALS: usize = 0;
const LISTENER: usize = 1;
const CLIENT: usize = 2;

/// A message begins with this many bytes, which every well-behaved front-end sends in one piece.
const HEADER_BYTES: usize = 12;
/// How long the rest of a message may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket, which is removed at the end.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let listener = match UnixListener::bind(path) {
            // Only a socket is removed: another kind of file would refuse the connection, too.
            Err(e) if e.kind() == ErrorKind::AddrInUse && is_socket(path) => {
                match UnixStream::connect(path) {
                    Ok(_) => bail!("the socket {} is in use", path.display()),
                    // The process that made the socket has gone.
                    Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                        fs::remove_file(path).and_then(|()| UnixListener::bind(path))
                    }
                    Err(e) => Err(e),
                }
            }
            result => result,
        };
        let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Socket {
            listener,
            path: path.into(),
        })
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another process may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}

struct Client {
    handler: BackendReqHandler<Mutex<Device>>,
    stream: UnixStream,
}

pub struct Server {
    socket: Socket,
    _signals: OwnedFd,
    device: Arc<Mutex<Device>>,
    client: Option<Client>,
    once: bool,
}

impl Server {
    pub fn new(
        socket: Socket,
        signals: OwnedFd,
        mut device: Device,
        once: bool,
    ) -> anyhow::Result<Self> {
        device.device_loop.watch(signals.as_fd(), SIGNALS)?;
        device
            .device_loop
            .watch(socket.listener.as_fd(), LISTENER)?;
        // The handler wants a shared device. There is only one thread, so the lock never waits.
        let device = Arc::new(Mutex::new(device));
        Ok(Server {
            socket,
            _signals: signals,
            device,
            client: None,
            once,
        })
    }

    /// Serves until a signal asks it to end, or until the first client has gone if that is enough.
    pub fn run(&mut self) -> anyhow::Result<()> {
        let mut ready = Vec::new();
        loop {
            let mut device = lock(&self.device);
            let at_once = !device.pending.is_empty();
            device.device_loop.wait(at_once, &mut ready)?;
            let mut queues = std::mem::take(&mut device.pending);
            let ready_queues = ready.iter().filter(|&&key| key >= FIRST_QUEUE);
            queues.extend(ready_queues.map(|key| key - FIRST_QUEUE));
            for &index in &queues {
                device.serve(index)?;
            }
            drop(device);
            if guard::has_cut_off() {
                self.drop_client("its memory's file was cut off")?;
            }
            let messages = ready.contains(&CLIENT);
            if ready.contains(&SIGNALS) {
                self.end_client()?;
                return Ok(());
            }
            if ready.contains(&LISTENER) {
                self.accept()?;
            } else if messages && self.client.is_some() {
                self.hear()?;
                if self.once && self.client.is_none() {
                    return Ok(());
                }
            }
            ready.clear();
        }
    }

    pub fn print_stats(&self) {
        println!("{}", lock(&self.device).stats);
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        let stream = match self.socket.listener.accept() {
            Ok((stream, _)) => stream,
            // The front-end went away.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionAborted
                ) =>
            {
                return Ok(());
            }
            Err(e) => return Err(e).context("cannot accept a front-end"),
        };
        stream.set_nonblocking(false)?;
        sockopt::set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
        sockopt::set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
        let mut device = lock(&self.device);
        device.stats.clients += 1;
        // Other front-ends wait in the socket's queue.
        device.device_loop.forget(LISTENER)?;
        device.device_loop.watch(stream.as_fd(), CLIENT)?;
        drop(device);
        let ours = stream.try_clone()?;
        let handler = BackendReqHandler::from_stream(ours, Arc::clone(&self.device));
        self.client = Some(Client { handler, stream });
        Ok(())
    }

    /// Handles one message, or the end of the connection.
    fn hear(&mut self) -> anyhow::Result<()> {
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        // The `vhost` crate would wait for the rest of a header for ever.
        let mut header = [0; HEADER_BYTES];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&client.stream, &mut header, flags) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return self.end_client(),
            Ok((_, HEADER_BYTES)) => {}
            Ok(_) => return self.drop_client("a message without a whole header"),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return self.drop_client(&e.to_string()),
        }
        match client.handler.handle_request() {
            Ok(()) => Ok(()),
            Err(Error::Disconnected) => self.end_client(),
            Err(e) => self.drop_client(&e.to_string()),
        }
    }

    fn drop_client(&mut self, why: &str) -> anyhow::Result<()> {
        if self.client.is_none() {
            return Ok(());
        }
        let mut device = lock(&self.device);
        device.stats.dropped += 1;
        eprintln!(
            "vhost-user-blk: front-end {} is dropped: {why}",
            device.stats.clients
        );
        drop(device);
        self.end_client()
    }

    fn end_client(&mut self) -> anyhow::Result<()> {
        let Some(client) = self.client.take() else {
            return Ok(());
        };
        let mut device = lock(&self.device);
        device.reset()?;
        device.device_loop.forget(CLIENT)?;
        drop(client);
        device
            .device_loop
            .watch(self.socket.listener.as_fd(), LISTENER)
    }
}

fn lock(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    device.lock().expect("one thread")
}
