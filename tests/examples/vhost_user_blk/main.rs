//! The example `vhost-user-blk`, driven by real drivers: the `virtio-driver` crate, and Linux in a virtual machine. The
//! tests of drivers run against `qemu-storage-daemon` too, which shows that they are right. There are front-ends and
//! drivers that lie, too.

#![cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]

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
