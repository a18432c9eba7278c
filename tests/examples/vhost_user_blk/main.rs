//! The example `vhost-user-blk`, driven by real drivers: the `virtio-driver` crate, and Linux in a virtual machine. The
//! tests of drivers run against `qemu-storage-daemon` too, which shows that they are right. There are front-ends and
//! drivers that lie, too.

#![cfg(target_os = "linux")]

#[path = "../../common/watchdog.rs"]
#[allow(dead_code)]
mod watchdog;

mod backend;
mod crashes;
mod driver;
mod guest;
mod lies;
mod options;
mod patterns;
mod raw;
