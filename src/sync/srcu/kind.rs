//! How sections are entered.

/// How sections are entered. See the module.
pub trait Kind: 'static {
    /// Whether a reader may leave the fence to the writers.
    const LIGHT: bool;
}

/// With a fence, always.
pub struct Fenced;

/// Without a fence, if [`use_membarrier`](crate::sync::membarrier) is in force. For what is looked up so often, and
/// changed so seldom, that it pays.
pub struct Light;

impl Kind for Fenced {
    const LIGHT: bool = false;
}

impl Kind for Light {
    const LIGHT: bool = true;
}
