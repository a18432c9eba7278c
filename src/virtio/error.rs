use std::{error, fmt};

/// What is wrong with a queue.
#[derive(Debug)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue is not ready, or its rings are not in guest memory (`QueueT::is_valid`).
    Invalid,
    /// The available ring is not in one piece of this process's memory.
    Scattered,
    /// The available ring is at an odd address in this process's memory.
    Misaligned,
    /// The queue was refused, or the driver has broken the rules.
    Queue(virtio_queue::Error),
}

impl From<virtio_queue::Error> for QueueError {
    fn from(error: virtio_queue::Error) -> Self {
        QueueError::Queue(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueueError::Invalid => {
                f.write_str("the queue is not ready, or its rings are not in guest memory")
            }
            QueueError::Scattered => {
                f.write_str("the available ring is not in one piece of memory")
            }
            QueueError::Misaligned => f.write_str("the available ring is at an odd address"),
            QueueError::Queue(error) => error.fmt(f),
        }
    }
}

impl error::Error for QueueError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            QueueError::Queue(error) => Some(error),
            _ => None,
        }
    }
}
