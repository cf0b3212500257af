//! The mounts that callers see who look through `/proc/PID/root` or join the mount namespace of the process that stands for a container:
//! the container's files, as far as they are the host's. `podman cp` does so with a container that runs.
//!
//! What is the guest's own (its memory, its kernel's file systems) shows as an empty directory that nothing can be written to, so that nobody
//! takes for the container's what is not.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstatvfs, openat2},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
        mount_remount, move_mount, open_tree, unmount,
    },
    process::{chdir, pivot_root},
};
use sandbox::bundle::Visible;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, place::own_mounts};

/// What is to be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct View {
    /// The root file system.
    pub root: PathBuf,
    /// What is mounted in it, in order.
    pub mounts: Vec<Visible>,
}

impl View {
    /// Takes the calling thread there, for good. The places of the mounts exist, for the guest has made them.
    ///
    /// # Errors
    /// [`Error::Io`] with what could not be shown.
    pub(crate) fn enter(&self) -> Result<()> {
        let failed = |step: &str, path: &Path| {
            let step = format!("{step} {}", path.display());
            move |errno: Errno| Error::io(step, errno)
        };
        own_mounts()?;
        let root = tree(&self.root).map_err(failed("clone", &self.root))?;
        move_mount(&root, "", CWD, &self.root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed("show", &self.root))?;
        mount_change(&self.root, MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
            .map_err(failed("keep to itself", &self.root))?;
        for visible in &self.mounts {
            show(&root, visible).map_err(failed("show what is mounted at", &visible.destination))?;
        }
        chdir(&self.root).and_then(|()| pivot_root(".", ".")).map_err(failed("make the root of", &self.root))?;
        unmount(".", UnmountFlags::DETACH)
            .and_then(|()| chdir("/"))
            .map_err(failed("leave the host's root for", &self.root))
    }
}

fn tree(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

fn show(root: &OwnedFd, visible: &Visible) -> std::result::Result<(), Errno> {
    let destination = visible.destination.strip_prefix("/").unwrap_or(&visible.destination);
    // The image may have links in the way, and so may the guest put there: none leads out.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = match openat2(root, destination, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(place) => place,
        // It lies in what the guest alone has.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error),
    };
    let at = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
    match &visible.source {
        Some(source) => attach(source, &place, visible.read_only),
        None if visible.destination == Path::new("/proc") => {
            // Programs that look at themselves do so there.
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            match mount("proc", at.as_str(), "proc", flags, None) {
                // A user's namespace has no processes of its own, and so no such file system.
                Err(Errno::PERM) => attach(Path::new("/proc"), &place, true),
                result => result,
            }
        }
        None => {
            let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("none", at.as_str(), "tmpfs", quiet | MountFlags::RDONLY, Some(c"size=4k,nr_inodes=2,mode=755"))
        }
    }
}

fn attach(source: &Path, place: &OwnedFd, read_only: bool) -> std::result::Result<(), Errno> {
    let tree = tree(source)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", place, "", flags)?;
    if read_only { make_read_only(&tree) } else { Ok(()) }
}

/// What the mount was given otherwise stays: in a user namespace it must.
fn make_read_only(tree: &OwnedFd) -> std::result::Result<(), Errno> {
    let given = fstatvfs(tree)?.f_flag;
    let kept = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ];
    let kept = kept.into_iter().filter(|(flag, _)| given.contains(*flag)).map(|(_, flag)| flag);
    let at = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(tree));
    mount_remount(at.as_str(), kept.fold(MountFlags::BIND | MountFlags::RDONLY, |all, flag| all | flag), "")
}
