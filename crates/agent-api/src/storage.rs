//! File systems that a guest mounts for its containers, besides the shared one.

use serde::{Deserialize, Serialize};

/// A file system to be mounted at [`GUEST_STORAGE_DIR`](crate::GUEST_STORAGE_DIR)`/name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// One or more plain path components, e.g. `c1/rootfs`.
    pub name: String,
    /// What is mounted.
    pub source: StorageSource,
    /// Options as in mount(8): flags and the file system's own.
    #[serde(default)]
    pub options: Vec<String>,
    /// It belongs to the pod: if it is there already, it is used as it is, and it stays until the guest ends. Otherwise it belongs
    /// to the container whose creation names it, and goes with it.
    #[serde(default)]
    pub of_pod: bool,
}

/// What a [`Storage`] is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageSource {
    /// A disk with a file system.
    Disk {
        /// Serial number, by which the guest finds it: 1 to 20 bytes.
        serial: String,
        /// Type of the file system: ext4, xfs, btrfs, erofs, …
        fs_type: String,
    },
    /// A tmpfs.
    Memory {
        /// Its size, bytes; 0 is the kernel's default, half of the memory.
        size: u64,
    },
    /// Huge pages; the guest reserves as many as needed.
    HugePages {
        /// Size of a page, bytes: 2 MiB or 1 GiB.
        page_size: u64,
        /// Size in all, bytes.
        size: u64,
    },
    /// An overlay of other storages and shared directories.
    Overlay {
        /// Paths of the guest, topmost first.
        lower: Vec<String>,
        /// Name of a storage that holds `upper` and `work`; absent makes the overlay read-only.
        upper: Option<String>,
    },
    /// Files that the host keeps up to date by `UpdateFiles`: a tmpfs.
    Files {
        /// What is there at first.
        entries: Vec<Entry>,
    },
}

/// Something in a volume of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path, relative to the volume, of plain components. Directories come before what is in them.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kind and contents of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file that is text.
    Text(String),
    /// Any other file.
    Bytes(Vec<u8>),
    /// A symbolic link, with its target.
    Link(String),
}

/// A disk that a container has as a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDevice {
    /// Serial number, by which the guest finds it.
    pub serial: String,
    /// Path in the container. An entry of `linux.devices` with this path gives mode and owner.
    pub path: String,
    /// Only for reading.
    #[serde(default)]
    pub read_only: bool,
}
