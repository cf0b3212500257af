//! The protocol between the sandbox on the host and the agent in the guest.
//!
//! # Shape
//!
//! The channel into the guest carries many streams (crate `proxy`), and **every call is a stream of its own**: the host
//! opens a stream, writes one [`Request`] frame, and reads one or more [`Reply`] frames. Cancelling a call is
//! closing its stream; a slow call delays no other. Only the host opens streams: the guest can never start a
//! conversation.
//!
//! A stream whose request is [`Request::Attach`] carries no reply: after that frame it is the raw standard input, output
//! or error of one process, so that stdio never travels inside messages and is flow-controlled by itself. The host
//! chooses a [`StreamToken`] per stream and names it in the call that starts the process; both may be in flight together,
//! so starting a container costs one round trip.
//!
//! # Encoding
//!
//! A frame is a little-endian `u32` byte count and that many bytes of JSON ([`frame`]). JSON, because the guest has to
//! parse an OCI process or container configuration in any case, so a second encoding would only be a second parser to
//! trust. Unknown fields are ignored and new ones are defaulted, so host and guest of neighbouring versions understand
//! each other; [`PROTOCOL_VERSION`] changes when that is no longer true.

pub mod frame;
mod messages;
pub mod names;
pub mod network;
pub mod statistics;
pub mod storage;

pub use messages::*;

/// Version of the protocol. Host and guest must agree on it exactly.
pub const PROTOCOL_VERSION: u32 = 3;

/// Name of the virtio-serial port the channel runs over, as seen in `/sys/class/virtio-ports/*/name`.
pub const CHANNEL_PORT: &str = "io.katacontainers.channel";

/// Tag of the virtio-fs device that carries root file systems and bind mounts.
pub const SHARED_FS_TAG: &str = "kataShared";

/// Where the agent mounts the shared file system, and so the prefix of every path in a specification that names a file of
/// the host.
pub const GUEST_SHARED_DIR: &str = "/run/kata-containers/shared/containers";

/// Where the agent mounts file systems that are not shared with the host ([`storage::Storage`]).
pub const GUEST_STORAGE_DIR: &str = "/run/kata-containers/storage";

/// A pod's `/dev/shm`, once [`Request::ConfigurePod`] was answered.
pub const GUEST_SHM_DIR: &str = "/run/kata-containers/shm";

/// Path, inside the guest image, of the list of kernel modules: one file name per line, relative to the list's own
/// directory, dependencies first. Absent when the kernel has everything built in.
pub const MODULE_LIST: &str = "/lib/modules/load-order";
