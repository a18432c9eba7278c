//! Pages for those who adopt the crate: what no single item's documentation has room for.
//!
//! | page | answers |
//! |---|---|
//! | [`costs`] | what each operation costs beside eventfd, epoll and other crates, and how that was measured |
//! | [`system_calls`] | which thread makes which system call, and how to write a seccomp filter |
//! | [`threat_model`] | what a guest, another process and a callback can do, and what they cannot |
//! | [`platforms`] | where the crate runs, and how far that was tested |
//! | [`kvm`] | the ways in which KVM and an event meet, and which one to take |
//! | [`snapshot`] | in which order a VM is saved and restored |
//! | [`locks`] | what waits for callbacks, what runs them, and which locks a caller may hold then |
//! | [`fork`] | what a child of `fork(2)` may call |

#[doc = include_str!("guide/costs.md")]
pub mod costs {}

#[doc = include_str!("guide/system_calls.md")]
pub mod system_calls {}

#[doc = include_str!("guide/threat_model.md")]
pub mod threat_model {}

#[doc = include_str!("guide/platforms.md")]
pub mod platforms {}

#[doc = include_str!("guide/kvm.md")]
pub mod kvm {}

#[doc = include_str!("guide/snapshot.md")]
pub mod snapshot {}

#[doc = include_str!("guide/locks.md")]
pub mod locks {}

#[doc = include_str!("guide/fork.md")]
pub mod fork {}
