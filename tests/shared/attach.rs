//! Making an event of memory, and finding one in it.

use crate::memory::Memory;
use doorbell::{AttachError, Mode, SharedEvent, Spin};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use std::error::Error;
use std::io;
use std::sync::atomic::Ordering;

const PAGE: usize = 4096;

/// Fails unless the pattern is the error.
macro_rules! assert_refused {
    ($result:expr, $error:pat, $errno:expr) => {
        match $result {
            Err(error @ $error) => {
                assert!(!error.to_string().is_empty());
                // The system's reason is reported.
                let reason = error.source().map(ToString::to_string);
                let of_system = matches!(error, AttachError::Os(_));
                let error = io::Error::from(error);
                assert_eq!(reason, of_system.then(|| error.to_string()));
                assert_eq!(Errno::from_io_error(&error), Some($errno));
            }
            other => panic!("{other:?}"),
        }
    };
}

#[test]
fn both_sides_of_a_memfd() {
    for mode in [Mode::Counter, Mode::Semaphore] {
        let (mine, memfd) = SharedEvent::create(3, mode).unwrap();
        let yours = SharedEvent::attach(memfd, 0).unwrap();
        assert_eq!((mine.mode(), yours.mode()), (mode, mode));
        assert_eq!(yours.count(), 3);
        yours.signal_n(4);
        drop(yours);
        assert_eq!(mine.count(), 7);
        // Peers do not see each other's policies.
        assert_eq!(mine.with_spin(Spin::Always).spin(), Spin::Always);
    }
}

/// The size of what `create` makes is fixed: no peer can cut it off while we use it. A peer cannot seal it against
/// peers that have yet to attach either.
#[test]
fn the_size_is_sealed() {
    let (event, memfd) = SharedEvent::create(1, Mode::Counter).unwrap();
    for size in [0, 128] {
        assert_eq!(rustix::fs::ftruncate(&memfd, size), Err(Errno::PERM));
    }
    let sealed = rustix::fs::fcntl_add_seals(&memfd, SealFlags::FUTURE_WRITE);
    assert_eq!(sealed, Err(Errno::PERM));
    assert_eq!(event.read(), 1);
}

/// Nothing of a dropped event stays mapped.
#[test]
fn what_was_mapped_is_unmapped() {
    let (event, memfd) = SharedEvent::create(0, Mode::Counter).unwrap();
    let inode = format!(" {} ", rustix::fs::fstat(&memfd).unwrap().st_ino);
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours = |line: &&str| line.contains(&inode) && line.contains("memfd:doorbell");
        maps.lines().filter(ours).count()
    };
    let attached = SharedEvent::attach(&memfd, 0).unwrap();
    assert_eq!(mapped(), 2);
    drop(attached);
    assert_eq!(mapped(), 1);
    drop(event);
    assert_eq!(mapped(), 0);
}

/// The events are at the edges of pages, and beyond the first page.
#[test]
fn many_in_one_file() {
    let memory = Memory::new(2 * PAGE, SealFlags::SHRINK);
    let offsets = [0, 64, PAGE - 64, PAGE, PAGE + 192, 2 * PAGE - 64];
    // SAFETY: the memory outlives the events.
    let made = offsets.map(|offset| unsafe {
        SharedEvent::create_at(memory.at(offset), offset as u64, Mode::Counter).unwrap()
    });
    for (offset, event) in offsets.into_iter().zip(made) {
        let attached = SharedEvent::attach(&memory, offset as u64).unwrap();
        assert_eq!(attached.count(), offset as u64);
        attached.signal();
        assert_eq!(event.read(), offset as u64 + 1);
    }
}

/// The table of `src/shared.rs`.
#[test]
fn the_layout_is_as_documented() {
    let (event, memfd) = SharedEvent::create(0x0123_4567_89ab_cdef, Mode::Semaphore).unwrap();
    let memory = Memory::of(memfd, 64);
    let word = |index: usize| memory.words(0)[index].load(Ordering::SeqCst);
    assert_eq!(word(0), u32::from_ne_bytes(*b"Dbel"));
    // SAFETY: the halves of a word.
    let halves: [u16; 2] = unsafe { std::mem::transmute(word(1)) };
    assert_eq!(halves, [1, 64]);
    assert_eq!(memory.count(0).load(Ordering::SeqCst), event.count());
    assert_eq!([4, 5, 6, 7].map(word), [0; 4]);
    assert_eq!(word(8), 1);
    assert!((9..16).all(|index| word(index) == 0));
}

#[test]
fn what_is_no_event_is_refused() {
    let memory = Memory::new(PAGE, SealFlags::SHRINK);
    let attach = |offset| SharedEvent::attach(&memory, offset);
    assert_refused!(attach(0), AttachError::NotAnEvent, Errno::INVAL);
    for offset in [1, 8, 63] {
        assert_refused!(attach(offset), AttachError::Misaligned, Errno::INVAL);
    }
    // The last one is the largest multiple of 64, whose end would overflow.
    for offset in [PAGE as u64, 1 << 40, u64::MAX - 63] {
        assert_refused!(
            attach(offset),
            AttachError::OutOfBounds { size: 4096 },
            Errno::INVAL
        );
    }

    // SAFETY: the memory outlives the event.
    let event = unsafe { SharedEvent::create_at(memory.at(0), 0, Mode::Counter) }.unwrap();
    attach(0).unwrap();
    let words = memory.words(0);
    let spoil = |index: usize, value: u32| {
        let good = words[index].swap(value, Ordering::SeqCst);
        let result = attach(0);
        words[index].store(good, Ordering::SeqCst);
        result
    };
    let halves = |version: u16, size: u16| {
        // SAFETY: the halves of a word.
        unsafe { std::mem::transmute::<[u16; 2], u32>([version, size]) }
    };
    assert_refused!(spoil(0, 0), AttachError::NotAnEvent, Errno::INVAL);
    assert_refused!(spoil(0, !0), AttachError::NotAnEvent, Errno::INVAL);
    assert_refused!(
        spoil(1, halves(2, 64)),
        AttachError::UnknownVersion(2),
        Errno::INVAL
    );
    assert_refused!(
        spoil(1, halves(1, 128)),
        AttachError::WrongSize(128),
        Errno::INVAL
    );
    assert_refused!(spoil(8, 2), AttachError::UnknownMode(2), Errno::INVAL);
    // Reserved fields may get a meaning later that this version can ignore.
    spoil(15, 1).unwrap();
    drop(event);
}

#[test]
fn files_that_can_shrink_are_refused() {
    for seals in [SealFlags::empty(), SealFlags::GROW] {
        let memory = Memory::new(PAGE, seals);
        // SAFETY: the memory outlives the events, and no peer shortens it.
        let (made, trusting) = unsafe {
            let made = SharedEvent::create_at(memory.at(64), 5, Mode::Counter).unwrap();
            (made, SharedEvent::attach_unsealed(&memory, 64).unwrap())
        };
        assert_refused!(
            SharedEvent::attach(&memory, 64),
            AttachError::NotSealed,
            Errno::PERM
        );
        assert_eq!(trusting.read(), 5);
        drop(made);
    }
    // A file that cannot be sealed at all.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_refused!(
        SharedEvent::attach(&file, 0),
        AttachError::NotSealed,
        Errno::PERM
    );
}

#[test]
fn files_that_cannot_be_mapped_are_refused() {
    let (_event, memfd) = SharedEvent::create(0, Mode::Counter).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memfd));
    let read_only = std::fs::File::open(path).unwrap();
    assert_refused!(
        SharedEvent::attach(&read_only, 0),
        AttachError::Os(_),
        Errno::ACCESS
    );
}

#[test]
fn pointers_are_checked() {
    let memory = Memory::new(PAGE, SealFlags::SHRINK);
    // SAFETY: the memory outlives the events: none is made.
    unsafe {
        for offset in [1, 32] {
            let result = SharedEvent::create_at(memory.at(offset), 0, Mode::Counter);
            assert_refused!(result, AttachError::Misaligned, Errno::INVAL);
        }
        let result = SharedEvent::attach_at(std::ptr::null_mut());
        assert_refused!(result, AttachError::Misaligned, Errno::INVAL);
        assert_refused!(
            SharedEvent::attach_at(memory.at(0)),
            AttachError::NotAnEvent,
            Errno::INVAL
        );
    }
}

/// Whatever the memory contained, an event that is made there is as new.
#[test]
fn garbage_makes_an_event_too() {
    let memory = Memory::new(64, SealFlags::SHRINK);
    for word in memory.words(0) {
        word.store(!0, Ordering::SeqCst);
    }
    // SAFETY: the memory outlives the event.
    let event = unsafe { SharedEvent::create_at(memory.at(0), 7, Mode::Counter) }.unwrap();
    let text = format!("{event:?}");
    assert!(
        text.contains("count: 7, mode: Counter, waiting_readers: 0, waiting_writers: 0"),
        "{text}"
    );
    assert_eq!(SharedEvent::attach(&memory, 0).unwrap().read(), 7);
}
