//! What happens to mapped memory when the front-end cuts off its file.
//!
//! An access then raises SIGBUS, which would end the process. Here a page of zeroes replaces the missing one, and
//! [`has_cut_off`] reports it, so that the front-end can be dropped. This does not work for mappings of huge pages,
//! where a single page does not fit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

struct Range {
    start: AtomicUsize,
    size: AtomicUsize,
}

/// Regions of memory, of the old map and the new one while it changes, and an inflight buffer.
static RANGES: [Range; 160] = [const {
    Range {
        start: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
    }
}; 160];

static CUT_OFF: AtomicBool = AtomicBool::new(false);

/// A mapping that is guarded as long as this exists. This must not outlive the mapping.
pub struct Guarded(&'static Range);

impl Guarded {
    /// `None` if too many mappings are guarded.
    pub fn new(start: *mut u8, size: usize) -> Option<Self> {
        let free = RANGES
            .iter()
            .find(|r| r.size.load(Ordering::Relaxed) == 0)?;
        free.start.store(start.addr(), Ordering::Relaxed);
        // Release: the handler, which may run in any thread, sees the start.
        free.size.store(size, Ordering::Release);
        Some(Guarded(free))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.size.store(0, Ordering::Release);
    }
}

/// Whether a guarded mapping has lost a part of its file since this was last called.
pub fn has_cut_off() -> bool {
    CUT_OFF.load(Ordering::Relaxed) && CUT_OFF.swap(false, Ordering::Relaxed)
}

pub fn install() -> std::io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction, and the handler is one with SA_SIGINFO.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO;
        action.sa_sigaction = on_sigbus as *const () as usize;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives the handler its information.
    let address = unsafe { (*info).si_addr() }.addr();
    let guarded = RANGES.iter().any(|range| {
        let size = range.size.load(Ordering::Acquire);
        address.wrapping_sub(range.start.load(Ordering::Relaxed)) < size
    });
    // SAFETY: sysconf may be called in a handler on Linux. The page is in a mapping of another file, into which no
    // reference points; the new page is unmapped with that mapping.
    let replaced = guarded
        && unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let at = std::ptr::without_provenance_mut(address & !(page - 1));
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(at, page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
                != libc::MAP_FAILED
        };
    CUT_OFF.store(true, Ordering::Relaxed);
    if !replaced {
        // SAFETY: the signal comes again when this returns, and ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
