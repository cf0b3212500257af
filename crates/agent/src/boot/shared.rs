//! The file system that carries root file systems and bind mounts from the host.

use agent_api::{Fault, FaultKind, GUEST_SHARED_DIR, SHARED_FS_TAG};
use rustix::mount::{MountFlags, mount};

use super::mounts::make_dirs;
use crate::fault::reason;

/// Whether the shared file system is mounted.
#[derive(Debug)]
pub struct SharedFs(Result<(), String>);

impl SharedFs {
    /// Mounts it. Done at the guest's start: it is one message to the host, which is not waited for. A failure matters only
    /// to a container that has files there, so it is kept until one comes.
    pub fn mount() -> Self {
        let mounted = make_dirs(GUEST_SHARED_DIR).and_then(|()| {
            mount(SHARED_FS_TAG, GUEST_SHARED_DIR, "virtiofs", MountFlags::empty(), None).map_err(Into::into)
        });
        Self(mounted.map_err(|error| reason(&error)))
    }

    /// Whether it is there.
    pub fn is_mounted(&self) -> bool {
        self.0.is_ok()
    }

    /// Has the kernel ask the host for a name in its top directory, where it asks each time; it forgets one that is gone.
    pub fn look_again(&self, name: &str) {
        if self.is_mounted() && !name.contains('/') {
            let _ = std::path::Path::new(GUEST_SHARED_DIR).join(name).symlink_metadata();
        }
    }

    /// # Errors
    /// When `path` is on the shared file system and that is not mounted.
    pub fn check(&self, path: &std::path::Path) -> Result<(), Fault> {
        match &self.0 {
            Err(error) if path.starts_with(GUEST_SHARED_DIR) => Err(Fault {
                kind: FaultKind::Internal,
                message: format!(
                    "mounting the virtio-fs device {SHARED_FS_TAG:?} at {GUEST_SHARED_DIR} failed, which {} is on: {error}",
                    path.display()
                ),
            }),
            _ => Ok(()),
        }
    }
}
