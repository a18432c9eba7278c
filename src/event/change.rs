/// What happened to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// It was signalled, or written to, with 0 too.
    Signalled,
    /// Something was read from it.
    Read,
}

/// Which changes of an event are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interest {
    /// Signals and writes: afterwards there may be something to read.
    Signals,
    /// Reads: afterwards there may be room to write.
    Reads,
    /// All of them.
    Both,
}

impl Interest {
    pub(crate) fn includes(self, change: Change) -> bool {
        match self {
            Interest::Signals => change == Change::Signalled,
            Interest::Reads => change == Change::Read,
            Interest::Both => true,
        }
    }
}
