//! What the tests share: one interface to the counter under test and to the kernel's, and threads that are known to be
//! asleep.

// Each test target, and the fuzz target, uses a part of it.
#![allow(dead_code)]

pub mod caller;
pub mod counter;
pub mod eventfd;
pub mod freed;
pub mod kernel;
pub mod ours;
pub mod script;
pub mod shared;
pub mod signalled;
pub mod watchdog;

/// Makes a test of each case, a function generic over the [`Counter`](counter::Counter), for each implementation that
/// can do all that a counter does.
#[allow(unused_macros)]
macro_rules! implementations {
    ($($case:ident,)*) => {
        mod kernel {
            use super::common::{kernel::{self, Kernel}, watchdog};
            $(#[test] fn $case() {
                if kernel::can_signal() {
                    watchdog::limit(stringify!($case), super::$case::<Kernel>)
                }
            })*
        }
        mod doorbell {
            use super::common::{ours::DefaultSpin, watchdog};
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<DefaultSpin>) })*
        }
        mod doorbell_never_spinning {
            use super::common::{ours::NeverSpin, watchdog};
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<NeverSpin>) })*
        }
        mod doorbell_signalled {
            use super::common::{signalled::Signalled, watchdog};
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<Signalled>) })*
        }
        #[cfg(not(doorbell_no_eventfd))]
        mod eventfd_moved {
            use super::common::{eventfd::Moved, kernel, watchdog};
            $(#[test] fn $case() {
                if kernel::can_signal() {
                    watchdog::limit(stringify!($case), super::$case::<Moved>)
                }
            })*
        }
        #[cfg(not(doorbell_no_eventfd))]
        mod eventfd_descriptor {
            use super::common::{eventfd::Descriptor, kernel, watchdog};
            $(#[test] fn $case() {
                if kernel::can_signal() {
                    watchdog::limit(stringify!($case), super::$case::<Descriptor>)
                }
            })*
        }
    };
}

/// The same, and a test of each case for events that processes share.
#[allow(unused_macros)]
macro_rules! all_implementations {
    ($($case:ident,)*) => {
        implementations! { $($case,)* }
        mod shared {
            use super::common::{shared::Shared, watchdog};
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<Shared>) })*
        }
        mod shared_by_two_processes {
            use super::common::{shared::{self, TwoProcesses}, watchdog};
            #[test] fn serve() { shared::serve(); }
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<TwoProcesses>) })*
        }
    };
}

/// Makes a test of each case for an `EventFd` whose count is in the process, which has no signals and no time limits.
#[allow(unused_macros)]
macro_rules! before_the_move {
    ($($case:ident,)*) => {
        mod eventfd {
            use super::common::{eventfd::Methods, watchdog};
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<Methods>) })*
        }
        #[cfg(doorbell_no_eventfd)]
        mod eventfd_shown {
            use super::common::{eventfd::Shown, watchdog};
            $(#[test] fn $case() { watchdog::limit(stringify!($case), super::$case::<Shown>) })*
        }
    };
}
