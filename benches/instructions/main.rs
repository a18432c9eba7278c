//! How many instructions each fast path takes, counted by valgrind and compared with `counts.txt`.
//!
//! `cargo bench --profile release --bench instructions [-- --record]`; see the README beside this file.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod counts;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod paths;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod valgrind;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        // This runs under valgrind.
        [valgrind::RUN, name, times] => {
            paths::run(name, times.parse().expect("a number"));
        }
        ["--record", "--bench"] => counts::record(),
        ["--bench"] => counts::check(),
        // `cargo test --benches` only checks that it runs.
        _ => paths::NAMES.iter().for_each(|name| paths::run(name, 1)),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: the instructions are counted on x86-64 Linux only");
}
