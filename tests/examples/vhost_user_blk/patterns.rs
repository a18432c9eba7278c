//! What is written is read back, at several depths, with both ways to wait, several numbers of queues, and front-ends
//! one after the other.

use crate::backend::{Daemon, Place};
use crate::driver::{BLOCK, Client, Op, Waits, content};
use crate::watchdog;
use std::fs;
use std::thread;

const BLOCKS: u64 = 512;
const BYTES: u64 = BLOCKS * BLOCK as u64;

const DEPTHS: [usize; 5] = [1, 2, 8, 32, 64];
const WAITS: [Waits; 2] = [Waits::Blocking, Waits::Polling];

/// All depths, by sleeping and by polling. Returns the number of requests.
fn depths_and_waits(client: &mut Client) -> u64 {
    assert_eq!(client.blocks(), BLOCKS);
    let mut requests = 0;
    let mut seed = 0;
    for depth in DEPTHS {
        for waits in WAITS {
            seed += 1;
            for op in [Op::Write, Op::Read] {
                let failed = client.lanes[0].run(op, 0..BLOCKS, seed, depth, waits);
                assert_eq!(failed, 0, "{op:?} {depth} {waits:?}");
                requests += BLOCKS;
            }
        }
    }
    assert_eq!(client.lanes[0].flush(), 0);
    requests + 1
}

/// Uses all queues at once, each from its own thread and with its own part of the disk.
fn queues_at_once(client: &mut Client, seed: u64) -> u64 {
    let part = BLOCKS / client.lanes.len() as u64;
    thread::scope(|scope| {
        for (index, lane) in (0..).zip(&mut client.lanes) {
            scope.spawn(move || {
                let blocks = index * part..(index + 1) * part;
                let waits = WAITS[index as usize % 2];
                for round in 0..4 {
                    for op in [Op::Write, Op::Read] {
                        assert_eq!(lane.run(op, blocks.clone(), seed + round, 16, waits), 0);
                    }
                }
            });
        }
    });
    8 * part
}

/// Fails unless the file has what was written to the disk last.
#[track_caller]
fn assert_content(disk: &std::path::Path, seed: u64) {
    let bytes = fs::read(disk).expect("the disk");
    assert_eq!(bytes.len() as u64, BYTES);
    for (block, bytes) in (0..).zip(bytes.chunks(BLOCK)) {
        assert!(bytes == content(block, seed), "block {block}");
    }
}

#[test]
fn polled_what_is_written_is_read_back() {
    watchdog::limit("polled", || {
        let place = Place::new();
        let daemon = Daemon::ours(&place, &["--ram", "2M", "--poll-max-us", "50"]);
        let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
        let requests = depths_and_waits(&mut client);
        drop(client);
        let ended = daemon.end();
        assert_eq!(ended.stderr, "");
        assert_eq!((ended.stats.clients, ended.stats.dropped), (1, 0));
        assert_eq!(ended.stats.all.requests, requests, "{:?}", ended.stats);
        assert!(ended.stats.all.kicks <= requests, "{:?}", ended.stats);
    });
}

#[test]
fn without_polling_what_is_written_is_read_back() {
    watchdog::limit("without polling", || {
        for device_loop in ["doorbell", "epoll"] {
            let place = Place::new();
            let options = ["--ram", "2M", "--poll-max-us", "0", "--loop", device_loop];
            let daemon = Daemon::ours(&place, &options);
            let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
            let requests = depths_and_waits(&mut client);
            drop(client);
            let stats = daemon.end().stats;
            assert_eq!(stats.all.requests, requests);
            // Each request at depth 1 finds the device asleep, or about to be.
            assert!(stats.all.kicks >= BLOCKS, "{stats:?}");
            assert_eq!((stats.all.looks, stats.all.windows), (0, 0), "{stats:?}");
            // Each request at depth 1 for which the driver blocks must cause an interrupt.
            assert!(stats.all.interrupts >= 2 * BLOCKS, "{stats:?}");
        }
    });
}

/// The driver sleeps until it is interrupted, so it does not finish if one interrupt is lost.
#[test]
fn whenever_the_driver_is_asked_no_interrupt_is_lost() {
    watchdog::limit("interrupts", || {
        for when in ["by-driver", "after-all", "after-each"] {
            for device_loop in ["doorbell", "epoll", "qemu"] {
                let place = Place::new();
                let options = ["--ram", "2M", "--interrupts", when, "--loop", device_loop];
                let daemon = Daemon::ours(&place, &options);
                let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
                let lane = &mut client.lanes[0];
                assert_eq!(lane.run(Op::Write, 0..BLOCKS, 7, 64, Waits::Blocking), 0);
                for (round, depth) in (0..).zip([1, 2, 3, 8, 32, 64].repeat(2)) {
                    // The ways alternate, so that what the device has learnt of the driver is wrong now and then.
                    for waits in WAITS {
                        let failed = lane.run(Op::Read, 0..BLOCKS, 7, depth, waits);
                        assert_eq!(failed, 0, "{round}");
                    }
                }
            }
        }
    });
}

/// The loops that doorbell's is compared with do the same work.
#[test]
fn other_loops_pass_the_same() {
    watchdog::limit("other loops", || {
        for device_loop in ["qemu", "vhost-user-backend"] {
            let place = Place::new();
            let options = ["--ram", "2M", "--loop", device_loop];
            let daemon = Daemon::ours(&place, &options);
            let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
            depths_and_waits(&mut client);
        }
    });
}

#[test]
fn qemus_back_end_passes_the_same() {
    watchdog::limit("qemu-storage-daemon", || {
        let place = Place::new();
        let disk = place.disk(BYTES);
        let Some(daemon) = Daemon::qemu(&place, &disk, 4) else {
            return;
        };
        let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
        depths_and_waits(&mut client);
        drop(client);
        let mut client = Client::connect(daemon.socket(), 4).expect("a back-end");
        queues_at_once(&mut client, 100);
        assert_content(&disk, 103);
    });
}

#[test]
fn queues_are_served_side_by_side() {
    watchdog::limit("queues", || {
        for (queues, poll) in [(2, "0"), (4, "50"), (16, "20")] {
            let place = Place::new();
            let disk = place.disk(BYTES);
            let file = disk.to_str().expect("UTF-8");
            let number = queues.to_string();
            let options = ["--file", file, "--queues", &number, "--poll-max-us", poll];
            let daemon = Daemon::ours(&place, &options);
            let mut client = Client::connect(daemon.socket(), queues).expect("a back-end");
            let requests = queues_at_once(&mut client, 7);
            drop(client);
            assert_content(&disk, 10);
            let stats = daemon.end().stats;
            assert_eq!(stats.queues.len(), queues);
            for queue in &stats.queues {
                assert_eq!(queue.requests, requests, "{stats:?}");
            }
        }
    });
}

#[test]
fn what_one_front_end_writes_the_next_one_reads() {
    watchdog::limit("reconnect", || {
        let place = Place::new();
        let daemon = Daemon::ours(&place, &["--ram", "2M", "--queues", "2"]);
        for turn in 0..5 {
            let mut client = Client::connect(daemon.socket(), 2).expect("a back-end");
            let [first, second] = &mut client.lanes[..] else {
                panic!("two queues");
            };
            if turn != 0 {
                assert_eq!(
                    first.run(Op::Read, 0..BLOCKS, turn - 1, 8, Waits::Polling),
                    0
                );
            }
            assert_eq!(
                second.run(Op::Write, 0..BLOCKS, turn, 8, Waits::Blocking),
                0
            );
        }
        let stats = daemon.end().stats;
        assert_eq!((stats.clients, stats.dropped), (5, 0));
        assert_eq!(stats.all.requests, 9 * BLOCKS);
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    watchdog::limit("read-only", || {
        let place = Place::new();
        let disk = place.disk(BYTES);
        let file = disk.to_str().expect("UTF-8");
        let daemon = Daemon::ours(&place, &["--file", file, "--read-only"]);
        let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
        let failed = client.lanes[0].run(Op::Write, 0..BLOCKS, 1, 8, Waits::Blocking);
        assert_eq!(failed, BLOCKS);
        drop(client);
        let bytes = fs::read(&disk).expect("the disk");
        assert!(bytes.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_front_end_goes_beyond_the_end_of_the_disk() {
    watchdog::limit("beyond the end", || {
        let place = Place::new();
        let daemon = Daemon::ours(&place, &["--ram", "2M"]);
        let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
        let lane = &mut client.lanes[0];
        for op in [Op::Write, Op::Read] {
            let failed = lane.run(op, BLOCKS - 4..BLOCKS + 4, 1, 8, Waits::Polling);
            assert_eq!(failed, 4, "{op:?}");
        }
    });
}

#[test]
fn with_once_the_end_comes_with_the_first_front_ends() {
    watchdog::limit("once", || {
        let place = Place::new();
        let mut daemon = Daemon::ours(&place, &["--ram", "2M", "--once"]);
        let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
        let failed = client.lanes[0].run(Op::Write, 0..BLOCKS, 1, 8, Waits::Polling);
        assert_eq!(failed, 0);
        drop(client);
        let ended = daemon.wait();
        assert_eq!(ended.stats.all.requests, BLOCKS);
        assert!(!place.socket().exists());
    });
}
