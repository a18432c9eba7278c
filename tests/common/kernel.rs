//! A real eventfd as a [`Counter`]: the kernel's own, or one into which a [`doorbell::fd::EventFd`] has moved its
//! count.

use super::counter::{Counter, Place, Readable};
use doorbell::Mode;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use vmm_sys_util::aio::{IOCB_CMD_PREAD, IOCB_FLAG_RESFD, IoContext, IoControlBlock, IoEvent};

/// A blocking eventfd, and how it is made, read and written.
pub trait Handle: AsFd + Debug + Sized + Send + 'static {
    const INTERRUPTIBLE: bool;

    fn new(initial: u32, mode: Mode) -> Self;
    fn try_clone(&self) -> io::Result<Self>;
    fn read(&self) -> Result<u64, Errno>;
    fn write(&self, n: u64) -> Result<(), Errno>;
}

/// The oracle.
impl Handle for OwnedFd {
    const INTERRUPTIBLE: bool = true;

    fn new(initial: u32, mode: Mode) -> Self {
        let mut flags = EventfdFlags::CLOEXEC;
        flags.set(EventfdFlags::SEMAPHORE, mode == Mode::Semaphore);
        eventfd(initial, flags).unwrap()
    }

    fn try_clone(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn read(&self) -> Result<u64, Errno> {
        let mut value = [0; 8];
        assert_eq!(rustix::io::read(self, &mut value)?, 8);
        Ok(u64::from_ne_bytes(value))
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        assert_eq!(rustix::io::write(self, &n.to_ne_bytes())?, 8);
        Ok(())
    }
}

/// An eventfd that is non-blocking during a call that is not to block. The kernel looks at the flag only when a call
/// begins, so blocked threads stay blocked (case E45).
#[derive(Debug)]
pub struct Kernel<F = OwnedFd> {
    fd: F,
    /// Held while the descriptor is non-blocking. All handles share that flag.
    nonblocking: Arc<Mutex<()>>,
    fdinfo: File,
}

impl<F: Handle> Kernel<F> {
    fn from_fd(fd: F, nonblocking: Arc<Mutex<()>>) -> Self {
        let fdinfo = File::open(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).unwrap();
        Kernel {
            fd,
            nonblocking,
            fdinfo,
        }
    }

    fn at_once<T>(&self, call: impl Fn(&Self) -> Result<T, Errno>) -> Result<T, Errno> {
        let _held = self.nonblocking.lock().unwrap();
        fcntl_setfl(&self.fd, OFlags::RDWR | OFlags::NONBLOCK)?;
        let result = call(self);
        fcntl_setfl(&self.fd, OFlags::RDWR)?;
        result
    }

    fn blocking<T>(&self, call: impl Fn(&Self) -> Result<T, Errno>) -> Result<T, Errno> {
        loop {
            match call(self) {
                // The call began just when another thread had made the descriptor non-blocking.
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
    }

    /// The form with a time limit, which the kernel lacks. The edges of epoll end the wait at each read and write; its
    /// level does not say whether a large write fits.
    fn until<T>(
        &self,
        deadline: Option<Instant>,
        call: impl Fn(&Self) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.at_once(&call) {
            Err(Errno::AGAIN) => {}
            done => return done,
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&epoll, &self.fd, epoll::EventData::new_u64(0), edges)?;
        loop {
            match self.at_once(&call) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Errno::TIMEDOUT);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut events = [epoll::Event {
                flags: epoll::EventFlags::empty(),
                data: epoll::EventData::new_u64(0),
            }];
            match epoll::wait(&epoll, &mut events, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl<F: Handle> AsFd for Kernel<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<F: Handle> Clone for Kernel<F> {
    fn clone(&self) -> Self {
        Kernel::from_fd(self.fd.try_clone().unwrap(), Arc::clone(&self.nonblocking))
    }
}

impl<F: Handle> Counter for Kernel<F> {
    const INTERRUPTIBLE: bool = F::INTERRUPTIBLE;
    const WAKES_ALL: bool = true;

    fn new(initial: u64, mode: Mode) -> Self {
        // The part of the count that the creation can give; the rest is written.
        let given = u32::try_from(initial).unwrap_or(0);
        let kernel = Kernel::from_fd(F::new(given, mode), Arc::default());
        kernel.signal_n(initial - u64::from(given));
        kernel
    }

    fn read(&self) -> Result<u64, Errno> {
        self.blocking(|kernel| kernel.fd.read())
    }

    fn try_read(&self) -> Result<u64, Errno> {
        self.at_once(|kernel| kernel.fd.read())
    }

    fn read_timeout(&self, timeout: Duration) -> Result<u64, Errno> {
        self.until(Instant::now().checked_add(timeout), |kernel| {
            kernel.fd.read()
        })
    }

    fn read_deadline(&self, deadline: Instant) -> Result<u64, Errno> {
        self.until(Some(deadline), |kernel| kernel.fd.read())
    }

    fn write(&self, n: u64) -> Result<(), Errno> {
        self.blocking(|kernel| kernel.fd.write(n))
    }

    fn try_write(&self, n: u64) -> Result<(), Errno> {
        self.at_once(|kernel| kernel.fd.write(n))
    }

    fn write_timeout(&self, n: u64, timeout: Duration) -> Result<(), Errno> {
        self.until(Instant::now().checked_add(timeout), |kernel| {
            kernel.fd.write(n)
        })
    }

    fn write_deadline(&self, n: u64, deadline: Instant) -> Result<(), Errno> {
        self.until(Some(deadline), |kernel| kernel.fd.write(n))
    }

    fn signal(&self) {
        signal_from_kernel(self.fd.as_fd());
    }

    /// Makes the last signal as a real one, and those before it as a write. This is not atomic: no other thread may
    /// write to the counter.
    fn signal_n(&self, n: u64) {
        if let Some(rest) = n.checked_sub(1) {
            let room = (u64::MAX - 1).saturating_sub(self.count());
            if rest.min(room) > 0 {
                self.try_write(rest.min(room)).unwrap();
            }
            self.signal();
        }
    }

    fn count(&self) -> u64 {
        let mut text = [0; 256];
        let length = self.fdinfo.read_at(&mut text, 0).unwrap();
        let text = std::str::from_utf8(&text[..length]).unwrap();
        let (_, rest) = text
            .split_once("eventfd-count:")
            .unwrap_or_else(|| panic!("no count in {text}"));
        let digits = rest.lines().next().unwrap().trim();
        u64::from_str_radix(digits, 16).unwrap()
    }

    fn poll(&self) -> PollFlags {
        let mut fds = [PollFd::new(&self.fd, PollFlags::all())];
        poll(&mut fds, Some(&Timespec::default())).unwrap();
        fds[0].revents()
    }

    fn place(&self) -> Place {
        Place::Descriptor(self.fd.as_fd().as_raw_fd())
    }
}

/// `poll(2)` for `POLLIN`.
impl<F: Handle> Readable for Kernel<F> {
    fn wait_readable(&self) {
        assert!(wait_readable_until(self.as_fd(), None));
    }

    fn wait_readable_timeout(&self, timeout: Duration) -> bool {
        wait_readable_until(self.as_fd(), Instant::now().checked_add(timeout))
    }

    fn wait_readable_deadline(&self, deadline: Instant) -> bool {
        wait_readable_until(self.as_fd(), Some(deadline))
    }
}

fn wait_readable_until(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> bool {
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => return fds[0].revents().contains(PollFlags::IN),
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

static AIO: LazyLock<io::Result<Mutex<(IoContext, File)>>> =
    LazyLock::new(|| Ok(Mutex::new((IoContext::new(1)?, File::open("/dev/zero")?))));

/// Whether the kernel can signal here, and so be the oracle. Prints a message if not.
pub fn can_signal() -> bool {
    let error = AIO.as_ref().err();
    if let Some(error) = error {
        eprintln!("skipped: the kernel as oracle needs io_setup(2): {error}");
    }
    error.is_none()
}

/// Makes the kernel call its `eventfd_signal()`: the completion of an asynchronous read, here of `/dev/zero`. That is
/// the only way for a program without a VM to raise an eventfd above `u64::MAX - 1`.
fn signal_from_kernel(eventfd: BorrowedFd<'_>) {
    let aio = AIO.as_ref().expect("can_signal() was asked before");
    let aio = aio.lock().unwrap();
    let (context, zero) = &*aio;
    let mut buffer = [0_u8; 1];
    let mut block = IoControlBlock {
        aio_lio_opcode: IOCB_CMD_PREAD as u16,
        aio_fildes: zero.as_raw_fd() as u32,
        aio_buf: buffer.as_mut_ptr() as u64,
        aio_nbytes: buffer.len() as u64,
        aio_flags: IOCB_FLAG_RESFD,
        aio_resfd: eventfd.as_raw_fd() as u32,
        ..Default::default()
    };
    assert_eq!(context.submit(&[&mut block]).unwrap(), 1);
    let mut done = [IoEvent::default()];
    assert_eq!(context.get_events(1, &mut done, None).unwrap(), 1);
}
