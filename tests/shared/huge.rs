//! Events in files of huge pages.

use crate::memory::Memory;
use doorbell::{AttachError, Mode, SharedEvent};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs;
use std::io;

/// A page is 2 MiB or more on the machines that this runs on.
const PAGES: usize = 2;

const RESERVE: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages for this test, given back at the end.
struct Reserved;

impl Reserved {
    fn new() -> io::Result<Self> {
        let wanted = reserved()? + PAGES;
        let pages = Reserved;
        fs::write(RESERVE, wanted.to_string())?;
        match reserved()? {
            there if there >= wanted => Ok(pages),
            there => Err(io::Error::other(format!("{there} of {wanted} huge pages"))),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // Another process may have changed the number meanwhile, as this test does in another process.
        if let Ok(there) = reserved() {
            let _ = fs::write(RESERVE, there.saturating_sub(PAGES).to_string());
        }
    }
}

fn reserved() -> io::Result<usize> {
    let text = fs::read_to_string(RESERVE)?;
    text.trim().parse().map_err(io::Error::other)
}

/// A seal against shrinking does not keep a peer from taking a huge page away, after which an access may be a `SIGBUS`:
/// code that trusts the peer may say so. Then whole pages are mapped, at any offset, and unmapped again.
#[test]
fn huge_pages_are_only_for_who_trusts() {
    let _reserved = match Reserved::new() {
        Ok(reserved) => reserved,
        Err(error) => return eprintln!("no huge pages, not tested: {error}"),
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let fd = match memfd_create("huge", flags) {
        Ok(fd) => fd,
        Err(error) => return eprintln!("no huge pages, not tested: {error}"),
    };
    let stat = fstat(&fd).unwrap();
    let (page, inode) = (stat.st_blksize as usize, format!(" {} ", stat.st_ino));
    assert!(page > 64 * 1024, "{page}");
    ftruncate(&fd, (PAGES * page) as u64).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    let memory = Memory::of(fd, PAGES * page);
    let mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains(&inode)).count()
    };
    assert_eq!(mapped(), 1);
    for offset in [0, 64, 4096, page / 2 + 192, page - 64, page, 2 * page - 64] {
        // SAFETY: the memory outlives the event.
        let made = unsafe { SharedEvent::create_at(memory.at(offset), 5, Mode::Counter) }.unwrap();
        let offset = offset as u64;
        match SharedEvent::attach(&memory, offset) {
            Err(error @ AttachError::HugePages) => {
                assert!(!error.to_string().is_empty());
                let error = Errno::from_io_error(&io::Error::from(error));
                assert_eq!(error, Some(Errno::INVAL));
            }
            other => panic!("{other:?}"),
        }
        // SAFETY: no peer shortens the file, or makes holes in it.
        let attached = unsafe { SharedEvent::attach_unsealed(&memory, offset) }.unwrap();
        assert!(mapped() > 1);
        made.signal();
        assert_eq!(attached.read(), 6);
        drop(attached);
        assert_eq!(mapped(), 1);
    }
    let end = (PAGES * page) as u64;
    // SAFETY: as above.
    let beyond = unsafe { SharedEvent::attach_unsealed(&memory, end) };
    assert!(
        matches!(beyond, Err(AttachError::OutOfBounds { size }) if size == end),
        "{beyond:?}"
    );
}
