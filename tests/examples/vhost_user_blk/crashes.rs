//! One side is killed with requests under way.

use crate::backend::{Daemon, PATIENCE, Place};
use crate::driver::{BLOCK, Client, MOST, Op, Waits, content};
use crate::raw::{
    DATA, FEATURES, GET_INFLIGHT_FD, GUEST, QUEUE_SIZE, Raw, SET_INFLIGHT_FD, USED, is_rung,
};
use crate::watchdog;
use rustix::fd::OwnedFd;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const BLOCKS: u64 = 512;

/// The variable that tells the child of the next test where its back-end is.
const SOCKET: &str = "DOORBELL_TEST_VHOST_USER_SOCKET";

/// Not a test: a front-end that is to be killed.
#[test]
fn child_that_writes_for_ever() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut client = Client::connect(socket.as_ref(), 1).expect("a back-end");
    // The parent waits for a line.
    println!("\nconnected");
    loop {
        client.lanes[0].run(Op::Write, 0..BLOCKS, 1, MOST, Waits::Blocking);
    }
}

#[test]
fn a_front_end_is_killed_in_mid_flight() {
    watchdog::limit("front-end", || {
        let place = Place::new();
        let daemon = Daemon::ours(&place, &["--ram", "2M", "--poll-max-us", "50"]);
        let test = std::env::current_exe().expect("this test");
        for turn in 0..5_u64 {
            let mut child = Command::new(&test)
                .args([
                    "--exact",
                    "crashes::child_that_writes_for_ever",
                    "--nocapture",
                ])
                .env(SOCKET, daemon.socket())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this test again");
            let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            assert!(lines.any(|line| line.expect("UTF-8") == "connected"));
            thread::sleep(Duration::from_millis(10 * turn));
            child.kill().expect("a child");
            child.wait().expect("a child");
            // The next front-end is served, and finds what an undisturbed back-end would give it.
            let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
            let lane = &mut client.lanes[0];
            for op in [Op::Write, Op::Read] {
                assert_eq!(lane.run(op, 0..BLOCKS, 2 + turn, 8, Waits::Blocking), 0);
            }
        }
        let ended = daemon.end();
        assert_eq!((ended.stats.clients, ended.stats.dropped), (10, 0));
        assert!(ended.stats.all.requests > 10 * BLOCKS, "{:?}", ended.stats);
    });
}

#[test]
fn the_back_end_is_killed_in_mid_flight() {
    watchdog::limit("back-end", || {
        for poll in ["0", "50"] {
            let place = Place::new();
            let disk = place.disk(BLOCKS * BLOCK as u64);
            let options = [
                "--file",
                disk.to_str().expect("UTF-8"),
                "--poll-max-us",
                poll,
            ];
            let daemon = Daemon::ours(&place, &options);
            let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
            assert_eq!(
                client.lanes[0].run(Op::Write, 0..BLOCKS, 1, 8, Waits::Blocking),
                0
            );
            let done = thread::scope(|scope| {
                let lane = &mut client.lanes[0];
                let writer = scope.spawn(move || {
                    let mut rounds = 0_u64;
                    // The driver notices in the end that it gets no answer: it has no other way.
                    let write = || loop {
                        let failed = lane.run_within(
                            Op::Write,
                            0..BLOCKS,
                            2 + rounds,
                            MOST,
                            Waits::Polling,
                            SHORT,
                        );
                        assert_eq!(failed, 0);
                        rounds += 1;
                    };
                    assert!(catch_unwind(AssertUnwindSafe(write)).is_err());
                    rounds
                });
                thread::sleep(Duration::from_millis(100));
                daemon.kill();
                writer.join().expect("a thread")
            });
            drop(client);
            // Each block has what one of the last two rounds has written: no block is torn or lost.
            let file = File::open(&disk).expect("the disk");
            for block in 0..BLOCKS {
                let mut bytes = vec![0; BLOCK];
                file.read_exact_at(&mut bytes, block * BLOCK as u64)
                    .expect("a block");
                let last = [1 + done, 2 + done].map(|seed| content(block, seed));
                assert!(last.contains(&bytes), "block {block} after round {done}");
            }
            // The next back-end takes over the socket.
            assert!(place.socket().exists());
            let daemon = Daemon::ours(&place, &options);
            let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
            for op in [Op::Write, Op::Read] {
                assert_eq!(client.lanes[0].run(op, 0..BLOCKS, 9, 8, Waits::Blocking), 0);
            }
        }
    });
}

/// How long a driver waits for an answer of a killed back-end.
const SHORT: Duration = Duration::from_secs(2);

// Offsets in an inflight buffer for one queue of 16.
const LAST_HEAD: u64 = 12;
const USED_INDEX: u64 = 14;
fn flag_of(head: u16) -> u64 {
    16 + 16 * u64::from(head)
}

/// A buffer that a back-end gives out.
fn get_inflight(raw: &mut Raw) -> (Vec<u8>, OwnedFd) {
    let mut told = [0; 24];
    told[16..20].copy_from_slice(&[1, 0, QUEUE_SIZE as u8, 0]);
    raw.send(GET_INFLIGHT_FD, &told, &[]);
    let mut reply = [0; 36];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &raw.stream,
        &mut [IoSliceMut::new(&mut reply)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    );
    assert_eq!(received.expect("a reply").bytes, reply.len());
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (reply[12..].to_vec(), fd.expect("a descriptor"))
}

fn store(buffer: &File, at: u64, value: u16) {
    buffer
        .write_all_at(&value.to_ne_bytes(), at)
        .expect("a memfd");
}

fn load(buffer: &File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    buffer.read_exact_at(&mut bytes, at).expect("a memfd");
    u16::from_ne_bytes(bytes)
}

/// A driver with four writes of a sector each available, whose back-end was killed after it had completed `used` of
/// them, and noted `noted` of those.
fn after_a_crash(daemon: &Daemon, used: u16, noted: u16) -> (Raw, File) {
    let mut raw = Raw::begin(daemon.socket(), FEATURES);
    raw.send_memory();
    let (told, fd) = get_inflight(&mut raw);
    let buffer = File::from(fd);
    for slot in 0..4_u16 {
        let data = DATA + 512 * usize::from(slot);
        raw.memory.write(data, [b'a' + slot as u8; 512]);
        raw.request(slot, 1, slot.into(), (GUEST + data as u64, 512));
        raw.submit(3 * slot);
    }
    raw.memory
        .word(USED + 2)
        .store(used, std::sync::atomic::Ordering::Release);
    store(&buffer, USED_INDEX, noted);
    if used != noted {
        store(&buffer, LAST_HEAD, 3 * (used - 1));
        store(&buffer, flag_of(3 * (used - 1)), 1);
    }
    raw.send(SET_INFLIGHT_FD, &told, &[buffer.as_fd()]);
    (raw, buffer)
}

#[test]
fn what_was_in_flight_is_done_again() {
    watchdog::limit("inflight", || {
        let place = Place::new();
        let disk = place.disk(4096);
        let file = disk.to_str().expect("UTF-8");
        let daemon = Daemon::ours(&place, &["--file", file]);
        for (used, noted, begun) in [
            (0, 0, None),
            (2, 2, None),
            (2, 1, None),
            (2, 2, Some(2)),
            (4, 4, None),
        ] {
            fs::write(&disk, [0; 4096]).expect("the disk");
            let (raw, buffer) = after_a_crash(&daemon, used, noted);
            if let Some(begun) = begun {
                store(&buffer, flag_of(3 * begun), 1);
            }
            // The index that the front-end sends does not matter here.
            raw.send_queue();
            raw.wait_used(4);
            // This interrupt is for requests that the other back-end completed without one.
            assert!(is_rung(&raw.call, PATIENCE));
            let written = fs::read(&disk).expect("the disk");
            for slot in 0..4 {
                let expected = if slot < usize::from(used) {
                    0
                } else {
                    b'a' + slot as u8
                };
                assert_eq!(
                    written[512 * slot],
                    expected,
                    "{used} {noted} {begun:?} {slot}"
                );
            }
            // Everything is noted when the next message is answered.
            let mut raw = raw;
            raw.settle();
            assert_eq!(load(&buffer, USED_INDEX), 4, "{used} {noted} {begun:?}");
            for head in 0..QUEUE_SIZE {
                assert_eq!(load(&buffer, flag_of(head)) & 0xff, 0);
            }
        }
        // A buffer of another back-end, which completed in another order.
        let (mut raw, buffer) = after_a_crash(&daemon, 1, 1);
        store(&buffer, flag_of(9), 1);
        raw.send_queue();
        assert!(raw.is_dropped());
        let ended = daemon.end();
        assert!(
            ended
                .stderr
                .contains("request 9 of queue 0 is in flight out of order"),
            "{}",
            ended.stderr
        );
    });
}
