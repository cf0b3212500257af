//! The guest's own file systems.

use std::io;

use rustix::fs::{CWD, Mode, mkdir};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::error::{Error, Step};

/// Where the version 2 cgroup hierarchy is.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

const NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static str>,
}

const ESSENTIAL: [FileSystem; 3] = [
    FileSystem { kind: "proc", target: "/proc", flags: NODEV, data: None },
    FileSystem { kind: "sysfs", target: "/sys", flags: NODEV, data: None },
    FileSystem { kind: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, data: Some("mode=0755") },
];

const REMAINING: [FileSystem; 4] = [
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some("mode=0620,ptmxmode=0666"),
    },
    FileSystem { kind: "tmpfs", target: "/dev/shm", flags: NODEV, data: Some("mode=1777") },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some("mode=0755"),
    },
    FileSystem { kind: "cgroup2", target: CGROUP_ROOT, flags: NODEV, data: None },
];

/// Makes the root such that containers can leave it, and mounts what everything else needs.
///
/// # Errors
/// [`Error::Boot`], which nothing can be done about.
pub fn essential() -> Result<(), Error> {
    pivotable_root()?;
    ESSENTIAL.iter().try_for_each(FileSystem::mount)
}

/// Mounts the rest.
///
/// # Errors
/// As [`essential`].
pub fn remaining() -> Result<(), Error> {
    REMAINING.iter().try_for_each(FileSystem::mount)
}

/// Puts a second mount of the initial root file system over the first one and makes it the root.
///
/// pivot_root(2) refuses to move the initial root because that is mounted on nothing. A bind mount of it is mounted on
/// it, and costs nothing: unlike the usual move to a tmpfs, no file is copied. A disk is mounted on the initial root, and would
/// do without; but the kernel may have mounted a devtmpfs on its `/dev`, which stays behind under the bind mount.
fn pivotable_root() -> Result<(), Error> {
    let root = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .step("cloning the mount of", "/")?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("mounting a clone of", "/")?;
    rustix::process::fchdir(&root).step("entering the clone of", "/")?;
    rustix::process::chroot(".").step("changing the root to the clone of", "/")
}

impl FileSystem {
    fn mount(&self) -> Result<(), Error> {
        match mount(self.kind, self.target, self.kind, self.flags, self.c_data().as_deref()) {
            Err(rustix::io::Errno::NOENT) => {}
            other => return other.step("mounting", self.target),
        }
        make_dirs(self.target).step("making the directory", self.target)?;
        mount(self.kind, self.target, self.kind, self.flags, self.c_data().as_deref()).step("mounting", self.target)
    }

    fn c_data(&self) -> Option<std::ffi::CString> {
        self.data.and_then(|data| std::ffi::CString::new(data).ok())
    }
}

/// Makes a directory of the guest and those above it.
///
/// # Errors
/// The first failure but that a directory is there.
pub fn make_dirs(path: &str) -> io::Result<()> {
    let ends = path.match_indices('/').map(|(at, _)| at).filter(|&at| at > 0).chain([path.len()]);
    for end in ends {
        match mkdir(&path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_from_the_top() {
        let top = std::env::temp_dir().join(format!("kata-agent-dirs-{}", std::process::id()));
        let path = top.join("a/b");
        make_dirs(path.to_str().unwrap()).unwrap();
        make_dirs(path.to_str().unwrap()).unwrap();
        assert!(path.is_dir());
        std::fs::remove_dir_all(top).unwrap();
    }
}
