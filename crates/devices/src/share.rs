//! Assembling what a guest sees: a small directory beneath which trees of the host are mounted, in a mount namespace that
//! nobody but this process sees. See the [crate] for the picture.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    },
};

use crate::{
    Error,
    sys::{self, Propagation},
};

/// The directory holds names only. A page or two is what the kernel itself needs of it.
const SIZE: &str = "64k";
/// Mount points and the directories above them: a few per container, and a thousand containers.
const INODES: &str = "8192";

/// Gives the calling thread, and the processes it starts from now on, a mount namespace of its own. Mounts that the
/// host makes later still arrive in it; nothing mounted in it is seen outside.
///
/// To be called before the process has a second thread: a mount namespace belongs to a thread.
///
/// # Errors
/// [`Error::Step`]; the usual cause is a missing `CAP_SYS_ADMIN`.
pub fn enter_private_namespace() -> Result<(), Error> {
    sys::unshare_mounts().map_err(Error::step("get a private mount namespace"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(Error::step("keep the mounts of the private mount namespace from the host's"))
}

/// Clones the mount at `path` (following symbolic links, as a bind mount does), with the mounts beneath it if
/// `recursive`, into a descriptor that any process may attach in its own namespace. Works as the calling process sees `path`.
///
/// # Errors
/// [`Error::Path`]: nothing there, or no `CAP_SYS_ADMIN` to clone mounts.
pub fn open_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags).map_err(Error::path("clone the mount at", path))
}

/// How a tree is attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Nobody can write through it.
    pub read_only: bool,
    /// What is mounted later beneath its origin arrives, if the origin is a shared mount. Such later mounts have the attributes that they
    /// were mounted with.
    pub follow: bool,
}

impl Access {
    /// For reading.
    pub const READ_ONLY: Self = Self { read_only: true, follow: false };
}

/// The directory that a guest sees. It goes with the mount namespace it was made in.
#[derive(Debug)]
pub struct SharedDir {
    root: OwnedFd,
    path: PathBuf,
}

impl SharedDir {
    /// Mounts an empty directory at `at`, an existing directory. Call it after [`enter_private_namespace`].
    ///
    /// # Errors
    /// [`Error::Path`].
    pub fn create(at: &Path) -> Result<Self, Error> {
        let tmpfs = empty_tmpfs(&[("size", SIZE), ("nr_inodes", INODES), ("mode", "755")])
            .map_err(Error::path("make the tmpfs for", at))?;
        sys::mount_setattr(tmpfs.as_fd(), 0, Propagation::Shared, false)
            .map_err(Error::path("make a shared mount for", at))?;
        rustix::mount::move_mount(&tmpfs, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(Error::path("mount the shared directory at", at))?;
        let root = rustix::fs::open(at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::path("open the shared directory", at))?;
        Ok(Self { root, path: at.to_owned() })
    }

    /// Where it is mounted, in the namespace it was made in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts `tree` (from [`open_tree`], of a directory or any other file) at `relative`, and makes the mount point and
    /// the directories above it. A server that already runs sees it at once.
    ///
    /// The tree becomes private: what its origin mounts later does not arrive, unless it is to follow. On the host, every mount of it
    /// is `nodev`, `nosuid` and `noexec`, and read-only if asked.
    ///
    /// # Errors
    /// [`Error::NotBeneath`], [`Error::InUse`], and [`Error::Path`] with `relative`; nothing is left behind then.
    pub fn attach(&self, relative: &Path, tree: OwnedFd, access: Access) -> Result<(), Error> {
        let (above, name) = split(relative)?;
        let kind = rustix::fs::fstat(&tree).map_err(Error::path("inspect the tree for", relative))?;
        let attributes = sys::INERT | if access.read_only { sys::READ_ONLY } else { 0 };
        let propagation = if access.follow { Propagation::Slave } else { Propagation::Private };
        sys::mount_setattr(tree.as_fd(), attributes, propagation, true)
            .map_err(Error::path("set the mount attributes of the tree for", relative))?;

        let is_directory = FileType::from_raw_mode(kind.st_mode) == FileType::Directory;
        let attached = self.make_directories(&above).and_then(|parent| {
            if is_directory {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
            } else {
                rustix::fs::mknodat(&parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
            }
            rustix::mount::move_mount(&tree, "", &parent, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).inspect_err(
                |_| {
                    // The error that matters is the one being returned.
                    let _ = remove(&parent, name);
                },
            )
        });
        attached.map_err(|error| {
            self.prune(&above);
            match error {
                // XDEV: the way leads through something attached. NOTDIR: it leads through a mount point that is a file.
                Errno::EXIST | Errno::XDEV | Errno::NOTDIR => Error::InUse { path: relative.to_owned() },
                error => Error::path("attach a tree to the shared directory at", relative)(error),
            }
        })
    }

    /// Unmounts what [`Self::attach`] mounted at `relative`, here and in the server, and removes the mount point and the
    /// directories above it that are empty then. Files that the guest still has open live on until it closes them.
    ///
    /// # Errors
    /// [`Error::NotBeneath`], [`Error::NotAttached`], [`Error::Path`].
    pub fn detach(&self, relative: &Path) -> Result<(), Error> {
        let (above, name) = split(relative)?;
        let missing = |error| match error {
            Errno::NOENT | Errno::INVAL | Errno::XDEV | Errno::NOTDIR => {
                Error::NotAttached { path: relative.to_owned() }
            }
            error => Error::path("detach from the shared directory", relative)(error),
        };
        let parent = self.open_beneath(&above).map_err(missing)?;
        // There is no umount that takes a directory's descriptor.
        let target = Path::new("/proc/self/fd").join(rustix::fd::AsRawFd::as_raw_fd(&parent).to_string()).join(name);
        rustix::mount::unmount(target.as_path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(missing)?;
        remove(&parent, name).map_err(Error::path("remove the mount point", relative))?;
        self.prune(&above);
        Ok(())
    }

    /// Unmounts the directory itself with all that is attached. It goes when the last who has something in it open has gone.
    ///
    /// # Errors
    /// [`Error::Path`]; that it is not mounted is none.
    pub fn unmount(&self) -> Result<(), Error> {
        match rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Err(Errno::INVAL | Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(Error::path("unmount the shared directory at", &self.path)(error)),
        }
    }

    /// Opens a directory of the tmpfs itself: never through a link, never into something attached, whose names are the
    /// guest's to choose.
    fn open_beneath(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        rustix::fs::openat2(
            &self.root,
            relative,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )
    }

    fn make_directories(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        let mut sofar = PathBuf::new();
        let mut directory = self.open_beneath(&sofar)?;
        for component in relative {
            match rustix::fs::mkdirat(&directory, component, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            sofar.push(component);
            directory = self.open_beneath(&sofar)?;
        }
        Ok(directory)
    }

    /// Removes `relative` and the directories above it as far as they are empty.
    fn prune(&self, relative: &Path) {
        for directory in relative.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            let (above, Some(name)) = (directory.parent().unwrap_or(Path::new("")), directory.file_name()) else {
                return;
            };
            let removed =
                self.open_beneath(above).and_then(|above| rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR));
            if removed.is_err_and(|error| error != Errno::NOENT) {
                return;
            }
        }
    }
}

/// A tmpfs that is mounted nowhere.
pub(crate) fn empty_tmpfs(options: &[(&str, &str)]) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTDIR) => rustix::fs::unlinkat(parent, name, AtFlags::empty()),
        result => result,
    }
}

/// The directories above the last name, and the last name.
fn split(relative: &Path) -> Result<(PathBuf, &OsStr), Error> {
    let bad = || Error::NotBeneath { path: relative.to_owned() };
    if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
        return Err(bad());
    }
    let name = relative.file_name().ok_or_else(bad)?;
    Ok((relative.parent().unwrap_or(Path::new("")).to_owned(), name))
}

#[cfg(test)]
mod tests;
