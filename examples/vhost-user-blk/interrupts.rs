//! When the driver is asked whether it wants an interrupt: this is exchangeable, so that doorbell's rule can be
//! compared with others.

use crate::program::options::Interrupts;
use doorbell::virtio::{PolledQueue, QueueError, Served};
use std::sync::Arc;
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

/// Does what [`PolledQueue::serve`] does, but asks about interrupts at other times.
pub fn serve<E: From<QueueError>>(
    when: Interrupts,
    queue: &mut PolledQueue<Arc<GuestMemoryMmap>>,
    budget: u16,
    mut handle: impl FnMut(DescriptorChain<&GuestMemoryMmap>) -> Result<u32, E>,
    mut interrupt: impl FnMut(),
) -> Result<Served, E> {
    if when == Interrupts::ByDriver {
        return queue.serve(budget, handle, interrupt);
    }
    let mut served = Served::default();
    loop {
        while served.requests != budget {
            let Some(chain) = queue.pop()? else {
                break;
            };
            let head = chain.head_index();
            let written = handle(chain)?;
            served.requests += 1;
            queue.add_used(head, written)?;
            if when == Interrupts::AfterEach && queue.finish() {
                interrupt();
            }
        }
        if queue.finish() {
            interrupt();
        }
        served.more = queue.rearm();
        if !served.more || served.requests == budget {
            return Ok(served);
        }
    }
}
