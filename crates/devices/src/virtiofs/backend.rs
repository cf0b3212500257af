//! What the server answers its VMM. A guest may have taken that over, so it is offered, and has, only what serving needs.
//!
//! `virtiofsd` can also move its state to another host, note which pages it has written, and send requests of its own. No machine of
//! ours is moved. Moving means to read a stream of the VMM's to its end into memory, and to believe the counts in it. A VMM may ask for
//! what it was not offered; here it is refused. Only the notes are not: the library has mapped the file for them before it asks us. It is a
//! file of the VMM's, with nothing of ours in it.

use std::io;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, bitmap::BitmapMmapRegion};
use virtiofsd::vhost_user::{VhostUserFsBackend, VhostUserFsBackendBuilder};
use vm_memory::{Address, GuestAddressSpace, GuestMemory, GuestMemoryRegion};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventNotifier},
};

use super::{Memory, filesystem::ThriftyFs};
use crate::Error;

/// `virtiofsd`'s back end, with less to it. What is not here is refused, or does nothing.
pub(super) struct Backend(VhostUserFsBackend<ThriftyFs>);

impl Backend {
    pub(super) fn new(filesystem: ThriftyFs, threads: u8) -> Result<Self, Error> {
        let built = VhostUserFsBackendBuilder::default().set_thread_pool_size(threads.into()).build(filesystem);
        built.map(Self).map_err(|error| Error::Serve { reason: error.to_string() })
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = BitmapMmapRegion;
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        self.0.num_queues()
    }

    fn max_queue_size(&self) -> usize {
        self.0.max_queue_size()
    }

    fn features(&self) -> u64 {
        self.0.features() & !VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.0.protocol_features()
            & (VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn reset_device(&self) {
        self.0.reset_device();
    }

    fn set_event_idx(&self, enabled: bool) {
        self.0.set_event_idx(enabled);
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        memory.memory().iter().try_for_each(is_backed)?;
        self.0.update_memory(memory)
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.0.exit_event(thread)
    }

    fn handle_event(&self, event: u16, set: EventSet, vrings: &[Self::Vring], thread: usize) -> io::Result<()> {
        self.0.handle_event(event, set, vrings, thread)
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
