//! Options, exit codes and error messages.

use crate::backend::{Daemon, Place, run};

#[track_caller]
fn assert_ends(options: &[&str], code: i32, told: &str) {
    let output = run(options);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{options:?}: {stderr}");
    assert!(stderr.contains(told), "{options:?}: {stderr}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn bad_options_are_told_and_exit_with_2() {
    let socket = ["--socket", "/nonexistent/socket"];
    for (options, told) in [
        (&["--ram", "1M"][..], "--socket <PATH>"),
        (&socket, "<--ram <SIZE>|--file <PATH>>"),
        (
            &[&socket[..], &["--ram", "1000"]].concat(),
            "not a multiple of 512",
        ),
        (
            &[&socket[..], &["--ram", "0"]].concat(),
            "not a multiple of 512",
        ),
        (
            &[&socket[..], &["--ram", "99999999G"]].concat(),
            "not a multiple of 512",
        ),
        (&[&socket[..], &["--ram", "much"]].concat(), "invalid digit"),
        (
            &[&socket[..], &["--ram", "1M", "--file", "x"]].concat(),
            "cannot be used with",
        ),
        (
            &[&socket[..], &["--ram", "1M", "--queues", "0"]].concat(),
            "0 is not in 1..=64",
        ),
        (
            &[&socket[..], &["--ram", "1M", "--poll-max-us", "1000001"]].concat(),
            "1000001 is not in 0..=1000000",
        ),
        (
            &[
                &socket[..],
                &["--ram", "1M", "--serial", "a serial number that is long"],
            ]
            .concat(),
            "longer than 20 bytes",
        ),
    ] {
        assert_ends(options, 2, told);
    }
}

#[test]
fn a_socket_that_cannot_be_had_exits_with_3() {
    let place = Place::new();
    let socket = place.socket();
    let path = socket.to_str().expect("UTF-8");
    let daemon = Daemon::ours(&place, &["--ram", "1M"]);
    assert_ends(&["--socket", path, "--ram", "1M"], 3, "is in use");
    // The back-end that has the socket keeps it.
    assert!(daemon.end().stats.clients >= 1);
    assert_ends(
        &["--socket", "/nonexistent/socket", "--ram", "1M"],
        3,
        "cannot listen at",
    );
    // A file that is no socket is left alone.
    let file = place.disk(512);
    let path = file.to_str().expect("UTF-8");
    assert_ends(&["--socket", path, "--ram", "1M"], 3, "cannot listen at");
    assert!(file.exists());
}

#[test]
fn a_disk_that_cannot_be_had_exits_with_4() {
    let place = Place::new();
    let socket = place.socket();
    let socket = socket.to_str().expect("UTF-8");
    assert_ends(
        &["--socket", socket, "--file", "/nonexistent"],
        4,
        "cannot open the disk",
    );
    let odd = place.disk(1000);
    let path = odd.to_str().expect("UTF-8");
    assert_ends(
        &["--socket", socket, "--file", path],
        4,
        "no multiple of 512",
    );
    let empty = place.disk(0);
    let path = empty.to_str().expect("UTF-8");
    assert_ends(
        &["--socket", socket, "--file", path],
        4,
        "no multiple of 512",
    );
}

#[test]
fn help_is_no_error() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        stdout.contains("Usage: vhost-user-blk [OPTIONS]"),
        "{stdout}"
    );
    // Options for comparisons only are not shown to users.
    assert!(!stdout.contains("--loop"), "{stdout}");
}
