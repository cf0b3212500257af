//! The guest's requests: how they are taken from its queues, and how the answers get there.
//!
//! What `virtiofsd` does with a request is its own; the queues are ours. A queue that makes no sense ends the server with the reason,
//! as a device that is broken would stop: a guest that writes such queues is served no more, and nobody waits for it.

use std::{
    io,
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering},
};

use vhost::vhost_user;
use vhost_user_backend::{VringMutex, VringState, VringT, bitmap::BitmapMmapRegion};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use virtiofsd::{
    descriptor_utils::{Reader, Writer},
    fuse::{InHeader, Opcode, OutHeader},
    server::Server,
};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::{Memory, ThriftyFs};

type Mapped = GuestMemoryMmap<BitmapMmapRegion>;
type Vring = VringMutex<Memory>;

/// What never is answered (`linux/fuse.h`).
const WITHOUT_ANSWER: [Opcode; 4] = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt, Opcode::Destroy];

/// What requests are served with. The thread that takes them does the work: that is quickest and smallest, but a slow file system delays
/// the files of faster ones.
pub(super) struct Requests {
    memory: Memory,
    server: Server<ThriftyFs>,
    /// Whether the guest and the server tell each other at which request they want to be woken (`VIRTIO_F_EVENT_IDX`).
    event_index: AtomicBool,
}

impl Requests {
    pub(super) fn new(filesystem: ThriftyFs, memory: Memory) -> Self {
        Self { memory, server: Server::new(filesystem), event_index: AtomicBool::new(false) }
    }

    pub(super) fn set_event_index(&self, enabled: bool) {
        self.event_index.store(enabled, Ordering::Relaxed);
    }

    /// Forgets all that the guest has open.
    pub(super) fn reset(&self) {
        self.server.destroy();
    }

    /// Serves what is in a queue.
    ///
    /// # Errors
    /// The queue, or something in it, makes no sense. Nothing of it is served any more.
    pub(super) fn serve(&self, vring: &Vring) -> io::Result<()> {
        let event_index = self.event_index.load(Ordering::Relaxed);
        let mut queue = vring.get_mut();
        // A kick may come behind the word that stops the queue.
        if !queue.get_queue().ready() {
            return Ok(());
        }
        loop {
            if event_index {
                queue.disable_notification().map_err(senseless)?;
            }
            loop {
                let memory = self.memory.memory();
                let next = queue.get_queue_mut().iter(&*memory).map_err(senseless)?.next();
                let Some(chain) = next else { break };
                let head = chain.head_index();
                let written = u32::try_from(answer(&self.server, &memory, chain)?).map_err(io::Error::other)?;
                queue.add_used(head, written).map_err(senseless)?;
                if !event_index || queue.needs_notification().map_err(senseless)? {
                    wake(&queue)?;
                }
            }
            // Whatever came before the guest was told to wake the server is not announced.
            if !event_index || !queue.enable_notification().map_err(senseless)? {
                return Ok(());
            }
        }
    }
}

/// Tells the guest that requests are served.
fn wake(queue: &VringState<Memory>) -> io::Result<()> {
    match queue.signal_used_queue() {
        // It was told so often already that the count is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        told => told,
    }
}

/// Has a request served whose pieces, and room for an answer, a chain of descriptors in `memory` names. Returns the answer's length, bytes;
/// 0 for what is not answered.
///
/// # Errors
/// The chain leads out of the memory, or what it has is no request, or its answer has no room.
pub fn answer<M: Clone + Deref<Target = Mapped>>(
    server: &Server<ThriftyFs>,
    memory: &Mapped,
    chain: DescriptorChain<M>,
) -> io::Result<usize> {
    let refused = |reason: String| io::Error::other(format!("a request of the guest makes no sense: {reason}"));
    let chain_error = |error: virtiofsd::descriptor_utils::Error| refused(error.to_string());
    let writer = Writer::new(memory, chain.clone()).map_err(chain_error)?;
    let room = writer.available_bytes();
    if room < size_of::<OutHeader>() {
        // The library takes it for granted where it has an answer's data written before its header.
        let header: InHeader = Reader::new(memory, chain.clone()).map_err(chain_error)?.read_obj()?;
        if !WITHOUT_ANSWER.iter().any(|opcode| *opcode as u32 == header.opcode) {
            return Err(refused(format!("request {} has room for {room} bytes of answer", header.opcode)));
        }
    }
    let reader = Reader::new(memory, chain).map_err(chain_error)?;
    server.handle_message(reader, writer, None::<&mut vhost_user::Backend>).map_err(|error| refused(error.to_string()))
}

fn senseless(error: virtio_queue::Error) -> io::Error {
    io::Error::other(format!("a queue of the guest makes no sense: {error}"))
}
