//! `delete`: what a dead shim left.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use containerd_shim_protos::{api::DeleteResponse, protobuf::Message};
use rustix::mount::{UnmountFlags, unmount};

use super::socket::Address;
use crate::{Error, Flags, Result, backend, group::Brief, log, monitor, translate::timestamp};

/// How long a shim that was told to shut down may take to stop answering. containerd gives `delete` 5 s in all.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const PAUSE: Duration = Duration::from_millis(10);
/// What containerd reports of a container whose shim was killed: SIGKILL.
const KILLED: u32 = 128 + 9;
/// More mounts than that are not stacked on one root file system.
const MOST_MOUNTS: usize = 128;

/// Removes every trace of a container, and of the sandbox if nobody answers for it, and gives what containerd wants to know.
///
/// # Errors
/// When something does not go away; it can be tried again.
pub(crate) fn delete(flags: &Flags, bundle: &Path) -> Result<Vec<u8>> {
    // A bundle that cannot be read belongs to a container that was never created.
    let role = Brief::read(bundle).unwrap_or_else(|error| {
        log::warn(&error.chain());
        None
    });
    let role = role.unwrap_or_default().role();
    let sandbox = role.sandbox(&flags.id);
    let address = Address::of(&flags.address, &flags.namespace, sandbox);
    let mut response = DeleteResponse::new();
    let owner = sandbox == flags.id;
    // containerd calls this after an orderly end, too: then the shim may still be about to leave.
    if owner {
        let begun = Instant::now();
        while address.is_answered() && begun.elapsed() < SHUTDOWN_DEADLINE {
            std::thread::sleep(PAUSE);
        }
    }
    // Others may have joined it, and then its shim is theirs.
    if (owner && !backend::is_joined(&flags.namespace, sandbox)) || !address.is_answered() {
        response.pid = backend::purge(&flags.namespace, sandbox)?;
        if !address.is_answered() {
            monitor::remove_of(sandbox);
            address.remove();
        }
    }
    unmount_all(&bundle.join("rootfs"));
    response.exit_status = KILLED;
    response.exited_at = Some(timestamp(std::time::SystemTime::now())).into();
    response.write_to_bytes().map_err(|e| Error::io("encode the answer", std::io::Error::other(e)))
}

fn unmount_all(rootfs: &Path) {
    for _ in 0..MOST_MOUNTS {
        if unmount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_err() {
            return;
        }
    }
}
