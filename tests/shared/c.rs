//! A peer written in C, from the description in `src/shared.rs` alone.

use crate::common::watchdog;
use crate::memory::Memory;
use doorbell::{Mode, SharedEvent, Spin};
use rustix::fs::SealFlags;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

const ROUNDS: u64 = 2_000;

#[test]
fn a_peer_in_c() {
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peer");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shared/peer.c");
    let compiled = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-o"])
        .arg(&binary)
        .arg(source)
        .status();
    match compiled {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("no C compiler here: nothing is tested");
            return;
        }
        compiled => assert!(compiled.unwrap().success()),
    }

    let memory = Memory::new(128, SealFlags::SHRINK);
    let [to_c, from_c] = [(0, Mode::Counter), (64, Mode::Semaphore)].map(|(offset, mode)| {
        // SAFETY: the memory outlives the events.
        let event = unsafe { SharedEvent::create_at(memory.at(offset), 0, mode) };
        event.unwrap().with_spin(Spin::Never)
    });
    watchdog::limit("a peer in C", || {
        let mut peer = Command::new(&binary)
            .arg(ROUNDS.to_string())
            .stdin(memory.as_fd().try_clone_to_owned().unwrap())
            .spawn()
            .unwrap();
        // Each side sleeps until the other answers.
        for _ in 0..ROUNDS {
            to_c.signal_n(3);
            assert_eq!([from_c.read(), from_c.read(), from_c.read()], [1; 3]);
        }
        // A write that has to wait until the peer makes room; the peer has read everything when it ends.
        for _ in 0..ROUNDS {
            to_c.write(u64::MAX - 1).unwrap();
        }
        assert!(peer.wait().unwrap().success());
        assert_eq!((to_c.count(), from_c.count()), (0, 0));
    });
    // The peer has withdrawn all its announcements.
    for event in [to_c, from_c] {
        assert!(format!("{event:?}").contains("waiting_readers: 0, waiting_writers: 0"));
    }
}
