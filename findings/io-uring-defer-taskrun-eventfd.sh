#!/bin/sh
# io_uring: the eventfd registered with a ring of IORING_SETUP_DEFER_TASKRUN is signalled when there is nothing in the
# completion queue yet, and once more for the same completion when it gets there.
#
# Seen on Linux 6.18.44 with io-uring 0.7.16: after a read of a pipe has got its byte, the eventfd has a count of 1 and
# the completion queue is empty; it stays so after other system calls and after io_uring_enter(2) that submits nothing.
# After io_uring_enter(2) with IORING_ENTER_GETEVENTS the completion is there, and the eventfd has been signalled again.
# A ring without the flag has the completion in the queue when the eventfd is signalled, and signals once.
#
# The flag leaves the work that posts completions to the submitting thread's next call with GETEVENTS. What the eventfd
# tells first is that there is such work. So a device loop that sleeps in epoll on that eventfd, reads it, and looks
# into the queue, finds nothing and sleeps on, with a request completed: it must call io_uring_enter with GETEVENTS
# (liburing's io_uring_get_events) after each wake-up, before it looks. And it wakes up once more for nothing, as each
# completion counts twice, so the count is no number of completions.
#
# Needs: cargo, the crates below, io_uring. Ends with 0 if it is still so, with 1 if not, with 77 without io_uring.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat > "$dir/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
io-uring = "=0.7.16"
libc = "=0.2.191"
TOML
cat > "$dir/src/main.rs" <<'RUST'
use io_uring::{cqueue, opcode, squeue, types, Builder, IoUring};
use std::{process, thread, time::Duration};

/// What the eventfd has counted since, and how many completions are in the queue.
fn look(ring: &mut IoUring, eventfd: i32) -> (u64, usize) {
    let mut count = 0_u64;
    let read = unsafe { libc::read(eventfd, (&raw mut count).cast(), 8) };
    (if read == 8 { count } else { 0 }, ring.completion().len())
}

/// What is seen when a read has got its byte, after io_uring_enter without GETEVENTS, and with it.
fn completion(deferred: bool) -> [(u64, usize); 3] {
    let mut builder: Builder<squeue::Entry, cqueue::Entry> = IoUring::builder();
    if deferred {
        builder.setup_single_issuer().setup_defer_taskrun();
    }
    let mut ring = builder.build(8).unwrap_or_else(|error| {
        println!("skipped: {error}");
        process::exit(77);
    });
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
    ring.submitter().register_eventfd(eventfd).unwrap();
    let mut pipe = [0; 2];
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let mut byte = [0];
    let read = opcode::Read::new(types::Fd(pipe[0]), byte.as_mut_ptr(), 1).build();
    unsafe { ring.submission().push(&read).unwrap() };
    ring.submit().unwrap();
    assert_eq!(look(&mut ring, eventfd), (0, 0));

    let write = move || assert_eq!(unsafe { libc::write(pipe[1], [7_u8].as_ptr().cast(), 1) }, 1);
    thread::spawn(write).join().unwrap();
    thread::sleep(Duration::from_millis(100));
    let completed = look(&mut ring, eventfd);
    assert_eq!(ring.submit().unwrap(), 0);
    let entered = look(&mut ring, eventfd);
    ring.submitter().submit_and_wait(1).unwrap();
    let got = look(&mut ring, eventfd);
    assert_eq!(byte, [7]);
    [completed, entered, got]
}

fn main() {
    for (deferred, expected) in [(false, [(1, 1), (0, 1), (0, 1)]), (true, [(1, 0), (0, 0), (1, 1)])] {
        let seen = completion(deferred);
        println!("IORING_SETUP_DEFER_TASKRUN {deferred}: (eventfd, completions) {seen:?}, {expected:?} expected");
        if seen != expected {
            process::exit(1);
        }
    }
    println!("as found");
}
RUST
cd "$dir"
cargo run --quiet
