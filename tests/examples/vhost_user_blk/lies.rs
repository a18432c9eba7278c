//! Front-ends and drivers that break the rules: nothing outside of their memory is touched, and the next one is served.

use crate::backend::{Daemon, Place};
use crate::driver::{Client, Op, Waits};
use crate::raw::{
    ADD_MEM_REG, AVAILABLE, DATA, DESCRIPTORS, Descriptor, EVENT_IDX, FEATURES, GET_CONFIG,
    GET_INFLIGHT_FD, GUEST, HEADERS, INDIRECT, INDIRECT_FLAG, NEXT, QUEUE_SIZE, REM_MEM_REG, Raw,
    Region, SET_CONFIG, SET_FEATURES, SET_INFLIGHT_FD, SET_MEM_TABLE, SET_PROTOCOL_FEATURES,
    SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_ERR,
    SET_VRING_KICK, SET_VRING_NUM, SIZE, STATUSES, USED, WRITE, is_rung, state, table,
    wait_for_bell,
};
use crate::watchdog;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::ftruncate;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

const IN: u32 = 0;
const OUT: u32 = 1;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A disk of 1 MiB.
fn daemon(place: &Place) -> Daemon {
    Daemon::ours(
        place,
        &[
            "--ram",
            "1M",
            "--poll-max-us",
            "10",
            "--serial",
            "liars' own",
        ],
    )
}

/// Fails unless the back-end lives and serves a new front-end.
#[track_caller]
fn assert_serves(daemon: &Daemon) {
    let mut client = Client::connect(daemon.socket(), 1).expect("a back-end");
    let lane = &mut client.lanes[0];
    for op in [Op::Write, Op::Read] {
        assert_eq!(lane.run(op, 0..16, 3, 4, Waits::Blocking), 0);
    }
}

#[test]
fn messages_that_lie_end_the_connection() {
    type Lie = (&'static str, fn(&mut Raw));
    let lies: &[Lie] = &[
        ("a feature that was not offered", |raw| {
            raw.send(SET_FEATURES, &(FEATURES | 1 << 34).to_ne_bytes(), &[]);
        }),
        ("a protocol feature that was not offered", |raw| {
            raw.send(SET_PROTOCOL_FEATURES, &(1_u64 << 8).to_ne_bytes(), &[]);
        }),
        ("a queue of no size", |raw| {
            raw.send(SET_VRING_NUM, &state(0, 0), &[])
        }),
        ("a queue of 24", |raw| {
            raw.send(SET_VRING_NUM, &state(0, 24), &[])
        }),
        ("a queue of 65536", |raw| {
            raw.send(SET_VRING_NUM, &state(0, 65536), &[])
        }),
        ("an index that is none", |raw| {
            raw.send(SET_VRING_BASE, &state(0, 65536), &[])
        }),
        ("queue 1 of 1", |raw| {
            raw.send(SET_VRING_NUM, &state(1, 16), &[])
        }),
        ("queue 2^32 - 1", |raw| {
            raw.send(SET_VRING_ENABLE, &state(u32::MAX, 1), &[])
        }),
        ("rings before the memory", |raw| {
            raw.send_rings(0_u64.wrapping_sub(4096), 0, 0)
        }),
        ("rings after the memory", |raw| {
            raw.send_rings(0, SIZE as u64, 0)
        }),
        ("rings at an odd address", |raw| raw.send_rings(0, 0, 1)),
        ("a ring that leaves the memory", |raw| {
            raw.send_queue();
            raw.send_rings(SIZE as u64 - 16, USED as u64, AVAILABLE as u64);
        }),
        ("a used ring that leaves the memory", |raw| {
            raw.send_queue();
            raw.send_rings(DESCRIPTORS as u64, SIZE as u64 - 4, AVAILABLE as u64);
        }),
        ("an available ring that leaves the memory", |raw| {
            raw.send_queue();
            raw.send_rings(DESCRIPTORS as u64, USED as u64, SIZE as u64 - 4);
        }),
        ("rings in memory that is taken away", |raw| {
            raw.send_queue();
            let region = [&0_u64.to_ne_bytes()[..], &raw.memory.region().bytes()].concat();
            raw.send(REM_MEM_REG, &region, &[]);
        }),
        ("memory that is not there to be taken away", |raw| {
            let region = Region {
                size: 4096,
                ..raw.memory.region()
            };
            let bytes = [&0_u64.to_ne_bytes()[..], &region.bytes()].concat();
            raw.send(REM_MEM_REG, &bytes, &[]);
        }),
        ("memory beyond the end of its file", |raw| {
            let region = Region {
                size: 1 << 30,
                ..raw.memory.region()
            };
            raw.send(SET_MEM_TABLE, &table(&[region]), &[raw.memory.fd.as_fd()]);
        }),
        ("memory that overlaps", |raw| {
            let other = Region {
                guest: GUEST + 4096,
                ..raw.memory.region()
            };
            let fd = raw.memory.fd.as_fd();
            raw.send(
                SET_MEM_TABLE,
                &table(&[raw.memory.region(), other]),
                &[fd, fd],
            );
        }),
        ("added memory that overlaps", |raw| {
            let region = [&0_u64.to_ne_bytes()[..], &raw.memory.region().bytes()].concat();
            raw.send(ADD_MEM_REG, &region, &[raw.memory.fd.as_fd()]);
        }),
        ("memory that wraps", |raw| {
            let region = Region {
                guest: u64::MAX - 4095,
                ..raw.memory.region()
            };
            raw.send(SET_MEM_TABLE, &table(&[region]), &[raw.memory.fd.as_fd()]);
        }),
        ("memory of no size", |raw| {
            let region = Region {
                size: 0,
                ..raw.memory.region()
            };
            raw.send(SET_MEM_TABLE, &table(&[region]), &[raw.memory.fd.as_fd()]);
        }),
        ("memory at an odd place of its file", |raw| {
            let region = Region {
                size: 4096,
                offset: 100,
                ..raw.memory.region()
            };
            raw.send(SET_MEM_TABLE, &table(&[region]), &[raw.memory.fd.as_fd()]);
        }),
        ("memory without a file", |raw| {
            raw.send(SET_MEM_TABLE, &table(&[raw.memory.region()]), &[]);
        }),
        ("more regions than are sent", |raw| {
            let mut bytes = table(&[raw.memory.region()]);
            bytes[0] = 7;
            raw.send(SET_MEM_TABLE, &bytes, &[raw.memory.fd.as_fd()]);
        }),
        ("2^32 - 1 regions", |raw| {
            let mut bytes = table(&[raw.memory.region()]);
            bytes[..4].fill(0xff);
            raw.send(SET_MEM_TABLE, &bytes, &[raw.memory.fd.as_fd()]);
        }),
        ("a kick that is a file on a disk", |raw| {
            raw.send_queue();
            let file = File::open("/proc/self/exe").expect("a file");
            raw.send(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[file.as_fd()]);
        }),
        ("a kick without its descriptor", |raw| {
            raw.send(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[]);
        }),
        ("a call of a queue that is not there", |raw| {
            raw.send(SET_VRING_CALL, &255_u64.to_ne_bytes(), &[raw.call.as_fd()]);
        }),
        ("descriptors with a message that has none", |raw| {
            raw.send(SET_VRING_NUM, &state(0, 16), &[raw.call.as_fd(); 3]);
        }),
        ("an inflight buffer for more queues than there are", |raw| {
            let told = [
                0_u64.to_ne_bytes(),
                0_u64.to_ne_bytes(),
                [99, 0, 16, 0, 0, 0, 0, 0],
            ];
            raw.send(GET_INFLIGHT_FD, &told.concat(), &[]);
        }),
        ("an inflight buffer that is too small", |raw| {
            let told = [
                64_u64.to_ne_bytes(),
                0_u64.to_ne_bytes(),
                [1, 0, 16, 0, 0, 0, 0, 0],
            ];
            raw.send(SET_INFLIGHT_FD, &told.concat(), &[raw.memory.fd.as_fd()]);
        }),
        ("an inflight buffer beyond its file", |raw| {
            let (size, offset) = (4096_u64, 1_u64 << 40);
            let told = [
                size.to_ne_bytes(),
                offset.to_ne_bytes(),
                [1, 0, 16, 0, 0, 0, 0, 0],
            ];
            raw.send(SET_INFLIGHT_FD, &told.concat(), &[raw.memory.fd.as_fd()]);
        }),
        ("a configuration to be written", |raw| {
            let mut config = [0_u32, 1, 1].map(u32::to_ne_bytes).concat();
            config.push(1);
            raw.send(SET_CONFIG, &config, &[]);
        }),
        ("an unknown message", |raw| raw.send(77, &[], &[])),
        ("a message that is too large", |raw| {
            raw.send(SET_MEM_TABLE, &[0; 0x2000], &[])
        }),
        ("a message with a wrong size", |raw| {
            raw.send(SET_VRING_ADDR, &[0; 12], &[])
        }),
        ("another version of the protocol", |raw| {
            let header = [SET_VRING_NUM, 2, 8].map(u32::to_ne_bytes).concat();
            raw.send_bytes(&[header, state(0, 16)].concat(), &[]);
        }),
        ("noise", |raw| raw.send_bytes(&[0xa5; 100], &[])),
        // The back-end waits in vain for the rest of these.
        ("half a header", |raw| {
            raw.send_bytes(&SET_VRING_NUM.to_ne_bytes(), &[])
        }),
        ("a header without its message", |raw| {
            let header = [SET_VRING_NUM, 1, 8].map(u32::to_ne_bytes).concat();
            raw.send_bytes(&header, &[]);
        }),
        ("half a message", |raw| {
            let header = [SET_VRING_NUM, 1, 8].map(u32::to_ne_bytes).concat();
            raw.send_bytes(&[&header[..], &[0; 4]].concat(), &[]);
        }),
    ];
    watchdog::limit("messages", || {
        let place = Place::new();
        let daemon = daemon(&place);
        for (name, lie) in lies {
            let mut raw = Raw::begin(daemon.socket(), FEATURES);
            raw.send_memory();
            raw.settle();
            lie(&mut raw);
            assert!(raw.is_dropped(), "{name}");
            raw.memory.assert_nothing_beside_was_touched();
        }
        assert_serves(&daemon);
        let ended = daemon.end();
        assert_eq!(ended.stats.dropped, lies.len() as u64, "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), lies.len());
    });
}

#[test]
fn a_configuration_beyond_its_end_is_not_read() {
    watchdog::limit("configuration", || {
        let place = Place::new();
        let daemon = daemon(&place);
        let mut raw = Raw::begin(daemon.socket(), FEATURES);
        let mut config = [250_u32, 64, 0].map(u32::to_ne_bytes).concat();
        config.extend([0; 64]);
        // A reply without the requested data stands for an error.
        assert_eq!(
            raw.ask(GET_CONFIG, &config),
            [250_u32, 0, 0].map(u32::to_ne_bytes).concat()
        );
        raw.settle();
        drop(raw);
        assert_serves(&daemon);
    });
}

/// A driver's lie: what it puts into the rings, beside a correct request in slot 0.
type RingLie = (&'static str, fn(&mut Raw));

fn at(offset: usize) -> u64 {
    GUEST + offset as u64
}

fn describe(raw: &Raw, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    raw.describe(
        index,
        Descriptor {
            address,
            len,
            flags,
            next,
        },
    );
}

const RING_LIES: &[RingLie] = &[
    ("the index jumps", |raw| raw.publish(QUEUE_SIZE + 2)),
    ("the index goes back", |raw| raw.publish(0)),
    ("a head beyond the table", |raw| raw.submit(QUEUE_SIZE)),
    ("head 65535", |raw| raw.submit(u16::MAX)),
    ("descriptors in a circle", |raw| {
        describe(raw, 3, at(HEADERS), 16, NEXT, 4);
        describe(raw, 4, at(DATA), 512, NEXT, 3);
        raw.submit(3);
    }),
    ("a descriptor that follows itself", |raw| {
        describe(raw, 3, at(DATA), 512, NEXT | WRITE, 3);
        raw.submit(3);
    }),
    ("a next descriptor beyond the table", |raw| {
        describe(raw, 3, at(HEADERS), 16, NEXT, QUEUE_SIZE);
        raw.submit(3);
    }),
    ("a header before the memory", |raw| {
        describe(raw, 3, GUEST - 16, 16, NEXT, 4);
        raw.submit(3);
    }),
    ("a header that leaves the memory", |raw| {
        describe(raw, 3, at(SIZE - 8), 16, NEXT, 4);
        raw.submit(3);
    }),
    ("a header at the end of everything", |raw| {
        describe(raw, 3, u64::MAX - 7, 16, NEXT, 4);
        raw.submit(3);
    }),
    ("a status before the memory", |raw| {
        describe(raw, 5, GUEST - 1, 1, WRITE, 0);
        raw.submit(3);
    }),
    ("a status after the memory", |raw| {
        describe(raw, 5, at(SIZE), 1, WRITE, 0);
        raw.submit(3);
    }),
    ("a status at the end of a buffer that wraps", |raw| {
        describe(raw, 5, u64::MAX - 1, 4, WRITE, 0);
        raw.submit(3);
    }),
    ("no status", |raw| {
        describe(raw, 4, at(DATA), 512, 0, 0);
        raw.submit(3);
    }),
    ("no header", |raw| {
        describe(raw, 3, at(STATUSES), 1, WRITE, 0);
        raw.submit(3);
    }),
    ("half a header", |raw| {
        describe(raw, 3, at(HEADERS), 8, NEXT, 5);
        raw.submit(3);
    }),
    ("empty buffers", |raw| {
        describe(raw, 3, at(HEADERS), 0, NEXT, 4);
        describe(raw, 4, at(DATA), 0, NEXT, 5);
        raw.submit(3);
    }),
    ("a readable buffer after a writable one", |raw| {
        describe(raw, 3, at(STATUSES), 1, WRITE | NEXT, 4);
        describe(raw, 4, at(HEADERS), 16, 0, 0);
        raw.submit(3);
    }),
    ("more than 2^32 bytes", |raw| {
        describe(raw, 3, at(HEADERS), 16, NEXT, 4);
        describe(raw, 4, at(DATA), u32::MAX, NEXT | WRITE, 5);
        raw.submit(3);
    }),
    ("an indirect table outside of the memory", |raw| {
        describe(raw, 3, at(SIZE), 48, INDIRECT_FLAG, 0);
        raw.submit(3);
    }),
    ("an indirect table that leaves the memory", |raw| {
        let table = SIZE - 16;
        let descriptor = Descriptor {
            address: at(HEADERS),
            len: 16,
            flags: NEXT,
            next: 1,
        };
        raw.describe_at(table, 0, descriptor);
        describe(raw, 3, at(table), 48, INDIRECT_FLAG, 0);
        raw.submit(3);
    }),
    ("an indirect table of an odd size", |raw| {
        describe(raw, 3, at(INDIRECT), 40, INDIRECT_FLAG, 0);
        raw.submit(3);
    }),
    ("an indirect table of no size", |raw| {
        describe(raw, 3, at(INDIRECT), 0, INDIRECT_FLAG, 0);
        raw.submit(3);
    }),
    ("an indirect table in an indirect table", |raw| {
        let descriptor = Descriptor {
            address: at(INDIRECT),
            len: 16,
            flags: INDIRECT_FLAG,
            next: 0,
        };
        raw.describe_at(INDIRECT, 0, descriptor);
        describe(raw, 3, at(INDIRECT), 16, INDIRECT_FLAG, 0);
        raw.submit(3);
    }),
];

#[test]
fn rings_that_lie_stop_their_queue() {
    watchdog::limit("rings", || {
        let place = Place::new();
        let daemon = daemon(&place);
        for features in [FEATURES, FEATURES | EVENT_IDX] {
            for (name, lie) in RING_LIES {
                let mut raw = Raw::set_up(daemon.socket(), features);
                // A correct request comes before the lie.
                raw.request(0, OUT, 0, (at(DATA), 512));
                raw.submit(0);
                raw.wait_used(1);
                assert_eq!(raw.status(0), OK, "{name}");
                raw.request(1, OUT, 0, (at(DATA), 512));
                lie(&mut raw);
                assert!(
                    is_rung(&raw.err, crate::backend::PATIENCE),
                    "{name}: no error"
                );
                // The connection stays, and the queue is no longer used.
                raw.settle();
                assert_eq!(raw.used(), 1, "{name}");
                raw.memory.assert_nothing_beside_was_touched();
            }
        }
        assert_serves(&daemon);
        let ended = daemon.end();
        assert_eq!(ended.stats.dropped, 0, "{}", ended.stderr);
        let stopped = "vhost-user-blk: queue 0 is stopped: ";
        assert_eq!(ended.stderr.matches(stopped).count(), 2 * RING_LIES.len());
    });
}

#[test]
fn requests_that_cannot_be_done_are_answered() {
    /// A name, a kind, a sector, the data, and the status.
    type Request = (&'static str, u32, u64, (u64, u32), u8);
    let beside: &[Request] = &[
        ("data before the memory", IN, 0, (GUEST - 512, 512), IOERR),
        ("data after the memory", IN, 0, (at(SIZE), 512), IOERR),
        (
            "data that leaves the memory",
            IN,
            0,
            (at(SIZE - 512), 1024),
            IOERR,
        ),
        (
            "data that begins before the memory",
            IN,
            0,
            (GUEST - 512, 1024),
            IOERR,
        ),
        ("data that wraps", IN, 0, (u64::MAX - 511, 1024), IOERR),
        (
            "data to be written from outside",
            OUT,
            0,
            (GUEST - 512, 1024),
            IOERR,
        ),
        ("a sector beyond the end", IN, 2048, (at(DATA), 512), IOERR),
        (
            "the last sector and one more",
            OUT,
            2047,
            (at(DATA), 1024),
            IOERR,
        ),
        ("sector 2^55", IN, 1 << 55, (at(DATA), 512), IOERR),
        ("sector 2^64 - 1", OUT, u64::MAX, (at(DATA), 512), IOERR),
        ("half a sector", IN, 0, (at(DATA), 256), IOERR),
        (
            "a name with no room for it",
            GET_ID,
            0,
            (at(DATA), 19),
            IOERR,
        ),
        (
            "a name outside of the memory",
            GET_ID,
            0,
            (at(SIZE), 20),
            IOERR,
        ),
        ("an unknown request", 99, 0, (at(DATA), 512), UNSUPP),
        ("a name", GET_ID, 0, (at(DATA), 20), OK),
    ];
    watchdog::limit("requests", || {
        let place = Place::new();
        let daemon = daemon(&place);
        let mut raw = Raw::set_up(daemon.socket(), FEATURES);
        for (done, &(name, kind, sector, data, status)) in (1..).zip(beside) {
            raw.request(0, kind, sector, data);
            raw.submit(0);
            raw.wait_used(done);
            assert_eq!(raw.status(0), status, "{name}");
            raw.memory.assert_nothing_beside_was_touched();
        }
        let id: [u8; 20] = raw.memory.read(DATA);
        assert_eq!(&id, b"liars' own\0\0\0\0\0\0\0\0\0\0");
        drop(raw);
        assert_serves(&daemon);
        assert_eq!(daemon.end().stats.dropped, 0);
    });
}

#[test]
fn a_memory_file_that_is_cut_off_costs_its_owner_the_connection() {
    watchdog::limit("cut off", || {
        let place = Place::new();
        let daemon = daemon(&place);
        for cut_off in [0, 1 << 16, (1 << 16) + DATA as u64] {
            let mut raw = Raw::set_up(daemon.socket(), FEATURES);
            raw.request(0, OUT, 0, (at(DATA), 4096));
            raw.settle();
            // From here on, a process that has the memory mapped too must not access it.
            ftruncate(&raw.memory.fd, cut_off).expect("a memfd");
            rustix::io::write(&raw.kick, &1_u64.to_ne_bytes()).expect("an eventfd");
            if cut_off > 1 << 16 {
                raw.submit(0);
            }
            assert!(raw.is_dropped(), "{cut_off}");
        }
        assert_serves(&daemon);
        let ended = daemon.end();
        assert_eq!(ended.stats.dropped, 3, "{}", ended.stderr);
    });
}

#[test]
fn a_call_that_would_block_does_not() {
    watchdog::limit("a full call", || {
        let place = Place::new();
        let daemon = daemon(&place);
        let mut raw = Raw::set_up(daemon.socket(), FEATURES);
        rustix::io::write(&raw.call, &(u64::MAX - 1).to_ne_bytes()).expect("an eventfd");
        let full = eventfd(u32::MAX, EventfdFlags::CLOEXEC).expect("an eventfd");
        rustix::io::write(&full, &(u64::MAX - 1 - u64::from(u32::MAX)).to_ne_bytes())
            .expect("an eventfd");
        raw.send(SET_VRING_ERR, &0_u64.to_ne_bytes(), &[full.as_fd()]);
        for done in 1..10 {
            raw.request(0, IN, 0, (at(DATA), 512));
            raw.submit(0);
            raw.wait_used(done);
        }
        raw.submit(u16::MAX);
        raw.settle();
        drop(raw);
        assert_serves(&daemon);
    });
}

#[test]
fn a_front_end_that_does_not_kick_is_polled() {
    watchdog::limit("no kick", || {
        for poll in ["0", "20"] {
            let place = Place::new();
            let daemon = Daemon::ours(&place, &["--ram", "1M", "--poll-max-us", poll]);
            let mut raw = Raw::set_up(daemon.socket(), FEATURES);
            // Bit 8 says that there is no descriptor.
            raw.send(SET_VRING_KICK, &0x100_u64.to_ne_bytes(), &[]);
            raw.settle();
            for done in 1..100 {
                raw.request(0, OUT, 0, (at(DATA), 512));
                // The back-end no longer uses the eventfd.
                raw.submit(0);
                wait_for_bell(&raw.call);
                raw.wait_used(done);
            }
            drop(raw);
            let stats = daemon.end().stats;
            assert_eq!((stats.all.requests, stats.all.kicks), (99, 0));
        }
    });
}

#[test]
fn kicks_and_calls_are_replaced_while_the_queue_runs() {
    watchdog::limit("replaced", || {
        for poll in ["0", "20"] {
            let place = Place::new();
            let daemon = Daemon::ours(&place, &["--ram", "1M", "--poll-max-us", poll]);
            let mut raw = Raw::set_up(daemon.socket(), FEATURES);
            for round in 0..10 {
                raw.request(0, OUT, 0, (at(DATA), 512));
                raw.submit(0);
                wait_for_bell(&raw.call);
                raw.wait_used(round + 1);
                let bell = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
                let old_call = std::mem::replace(&mut raw.call, bell());
                raw.kick = bell();
                raw.send(SET_VRING_CALL, &0_u64.to_ne_bytes(), &[raw.call.as_fd()]);
                raw.send(SET_VRING_KICK, &0_u64.to_ne_bytes(), &[raw.kick.as_fd()]);
                raw.settle();
                // This rings for an interrupt that went to the old eventfd.
                wait_for_bell(&raw.call);
                assert!(!is_rung(&old_call, Duration::ZERO));
            }
            drop(raw);
            let stats = daemon.end().stats;
            assert_eq!(stats.all.requests, 10);
            // Both the old and the new descriptor count.
            assert_eq!(stats.all.kicks, 10);
        }
    });
}
