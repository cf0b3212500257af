//! What the server answers its VMM. A guest may have taken that over, so it is offered, and has, only what serving needs.
//!
//! vhost-user can also move a server's state to another host, note which pages it has written, and let it send requests of its own. No machine
//! of ours is moved. A VMM may ask for what it was not offered; what is not here is refused, or does nothing. Only the notes are not: the
//! library has mapped the file for them before it asks us. It is a file of the VMM's, with nothing of ours in it.

use std::io;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, bitmap::BitmapMmapRegion};
use vm_memory::{Address, GuestAddressSpace, GuestMemory, GuestMemoryRegion};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

use super::{Memory, requests::Requests};

/// One for urgent requests and one for the others (virtio 1.3, 5.11.2).
const QUEUES: usize = 2;
/// Entries of a queue, at most (virtio 1.3, 2.7).
const QUEUE_SIZE: usize = 32768;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_F_INDIRECT_DESC` and `VIRTIO_F_EVENT_IDX` (virtio 1.3, 6).
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29;

/// The back end of the vhost-user protocol.
pub(super) struct Backend(Requests);

impl Backend {
    pub(super) fn new(requests: Requests) -> Self {
        Self(requests)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.0.reset();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.0.set_event_index(enabled);
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        memory.memory().iter().try_for_each(is_backed)
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without one the thread could not be ended, and whoever waits for its end would do so for ever.
        let made = new_event_consumer_and_notifier(EventFlag::NONBLOCK);
        Some(made.unwrap_or_else(|error| super::end(&format!("cannot make the event that ends a thread: {error}"))))
    }

    fn handle_event(&self, queue: u16, set: EventSet, vrings: &[Self::Vring], _thread: usize) -> io::Result<()> {
        let served = match vrings.get(usize::from(queue)) {
            Some(vring) if set == EventSet::IN => self.0.serve(vring),
            _ => Err(io::Error::other(format!("an event of queue {queue} is no kick: {set:?}"))),
        };
        // Returned, it would end this thread, and the guest would wait for ever.
        served.or_else(|error| super::end(&error.to_string()))
    }
}

/// Refuses memory that lies beyond the end of its file, where the first access to it would kill the server without a word.
fn is_backed(region: &impl GuestMemoryRegion) -> io::Result<()> {
    let refused = |why: String| {
        let at = region.start_addr().raw_value();
        io::Error::other(format!("the memory of {} bytes at {at:#x} {why}", region.len()))
    };
    let placed = region.file_offset().ok_or_else(|| refused("has no file".into()))?;
    let file = placed.file().metadata()?;
    if !file.is_file() {
        return Err(refused("is of no regular file".into()));
    }
    if placed.start().checked_add(region.len()).is_none_or(|end| end > file.len()) {
        return Err(refused(format!("begins at {} of a file of {} bytes", placed.start(), file.len())));
    }
    Ok(())
}
