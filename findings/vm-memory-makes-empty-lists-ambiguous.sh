#!/bin/sh
# vm-memory: a dependency on it takes away the type of `[]` in comparisons with a list of integers, in code that does
# not mention vm-memory at all.
#
# Why: its integers of fixed byte order (BeSize, LeSize, Be16 and the like) compare with the native ones in both
# directions, so `usize: PartialEq<_>` has more than one answer as soon as the crate is in the program, and `[_]` in
# `assert_eq!(list, [])` is no longer inferred. Traits count in the whole program, wherever they were brought in. So a
# VMM, or a crate like doorbell, whose new feature brings in vm-memory finds that tests in other modules do not compile
# any more, with errors that name vm_memory. A type helps: `[0_usize; 0]`, or `list.is_empty()`.
#
# Seen with vm-memory 0.18.0, Rust 1.95:
#
#   without vm-memory: compiles
#   error[E0282]: type annotations needed      with vm-memory
#   error[E0283]: type annotations needed
#
# The script fails if this changes. It needs cargo and crates.io.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "scratch"
version = "0.0.0"
edition = "2021"

[features]
memory = ["dep:vm-memory"]

[dependencies]
vm-memory = { version = "=0.18.0", optional = true }
TOML
cat > "$folder/src/main.rs" <<'RUST'
#[cfg(feature = "memory")]
use vm_memory as _;

fn main() {
    let list: Vec<usize> = Vec::new();
    assert_eq!(list, []);
}
RUST
cd "$folder"
cargo check --quiet 2>&1 && echo "without vm-memory: compiles"
if cargo check --quiet --features memory 2> errors; then
    echo "with vm-memory: compiles too, which is new"
    exit 1
fi
grep -q "vm_memory" errors && grep -E "^error\[E028[23]\]" errors | sort -u
