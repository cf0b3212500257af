//! A container's root file system: from the guest's mount namespace, of which the process has its own copy, to a root of
//! its own with nothing of the guest left in sight.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agent_api::Fault;
use libc::MOUNT_ATTR_RDONLY;
use rustix::fs::{FileType, Mode, OFlags, fstat, makedev};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root, umask};

use super::devices;
use super::in_root::Root;
use super::mount::{Mounter, attach, clone_path, clone_tree, open_source};
use super::mount_options::{parse, parse_propagation};
use crate::fault::{Context, invalid};
use crate::spec::{Mount, Spec};
use crate::sys::{MountAttr, mount_setattr};

/// Mounts everything, makes the devices and enters the root. Afterwards every path is the container's.
///
/// # Errors
/// The first failure, in runc's words.
pub fn enter(spec: &Spec, cgroup: &Path, cgroup_namespace: bool) -> Result<(), Fault> {
    let path = &spec.root.path;
    // Modes in the specification are meant as they are written.
    umask(Mode::empty());
    let opened = open_source(path).and_then(|place| Ok((clone_tree(place.as_fd(), true)?, place)));
    let (tree, place) = opened.context(|| format!("error preparing rootfs: open {}", path.display()))?;
    attach(&tree, place.as_fd()).context(|| format!("error preparing rootfs: mount {}", path.display()))?;
    let root = Root::new(tree);

    let mounter = Mounter { root: &root, cgroup, cgroup_namespace };
    for mount in &spec.mounts {
        mounter.mount(mount)?;
    }
    if !has_foreign_dev(&spec.mounts) {
        devices::populate(&root, &spec.linux.devices, spec.linux.all_devices)?;
    }
    pivot(root.fd()).context(|| "error jailing process inside rootfs: pivot_root".into())?;
    if let Some(name) = spec.linux.rootfs_propagation.as_deref().filter(|name| !name.is_empty()) {
        propagate(&root, name)?;
    }
    Ok(())
}

/// Whether the specification shows an existing directory as /dev, which then is left as it is.
fn has_foreign_dev(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        let is_bind =
            mount.kind.as_deref() == Some("bind") || mount.options.iter().any(|o| o == "bind" || o == "rbind");
        is_bind && mount.destination.components().eq(Path::new("/dev").components())
    })
}

/// Makes a mount that is attached somewhere the root, with nothing of the old one left.
///
/// # Errors
/// Those of pivot_root(2).
pub fn pivot(root: &OwnedFd) -> std::io::Result<()> {
    fchdir(root)?;
    // The old root ends up on top of the new one, from where it is taken away; no directory is needed for it.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn propagate(root: &Root, name: &str) -> Result<(), Fault> {
    let (propagation, recursive) = parse_propagation(name).ok_or_else(|| {
        invalid(format!(
            "linux.rootfsPropagation is {name:?}, expected shared, slave, private or unbindable, or one with an r"
        ))
    })?;
    mount_setattr(root.fd().as_fd(), recursive, MountAttr { propagation, ..MountAttr::default() })
        .context(|| format!("setting the propagation of the root file system to {name:?}"))
}

/// What is done when everything has been mounted: what is to be read-only becomes so.
///
/// # Errors
/// The first failure.
pub fn seal(spec: &Spec) -> Result<(), Fault> {
    let read_only = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    for mount in &spec.mounts {
        // A tmpfs for /dev was kept writable until the devices were in it.
        if is_read_only_dev(mount)? {
            remount("/dev", read_only)?;
        }
    }
    if spec.root.readonly {
        remount("/", read_only)?;
    }
    for path in &spec.linux.readonly_paths {
        make_read_only(path)?;
    }
    mask(&spec.linux.masked_paths)?;
    Ok(())
}

fn is_read_only_dev(mount: &Mount) -> Result<bool, Fault> {
    Ok(mount.destination == Path::new("/dev")
        && mount.kind.as_deref() == Some("tmpfs")
        && parse(&mount.options)?.attr.set & MOUNT_ATTR_RDONLY != 0)
}

fn remount(path: &str, attr: MountAttr) -> Result<(), Fault> {
    let fd =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| format!("open {path}"))?;
    mount_setattr(fd.as_fd(), false, attr).context(|| format!("error making {path:?} read-only"))
}

fn make_read_only(path: &str) -> Result<(), Fault> {
    let what = || format!("readonly path {path}");
    let place = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.context(what)?,
    };
    let tree = clone_tree(place.as_fd(), true).context(what)?;
    mount_setattr(tree.as_fd(), false, MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() }).context(what)?;
    attach(&tree, place.as_fd()).context(what)
}

/// Hides files behind /dev/null and directories behind an empty tmpfs, of which one serves them all.
fn mask(paths: &[String]) -> Result<(), Fault> {
    let mut shown: Option<OwnedFd> = None;
    for path in paths {
        let what = || format!("mask path {path:?}");
        let place = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
            other => other.context(what)?,
        };
        let is_dir = FileType::from_raw_mode(fstat(&place).context(what)?.st_mode) == FileType::Directory;
        let tree = match &shown {
            _ if !is_dir => null_device(),
            Some(first) => clone_tree(first.as_fd(), false),
            None => empty_tmpfs(),
        };
        let tree = tree.context(what)?;
        attach(&tree, place.as_fd()).context(what)?;
        if is_dir && shown.is_none() {
            shown = Some(tree);
        }
    }
    Ok(())
}

/// A mount of the container's /dev/null, which an image without a /dev of its own could have made something else.
fn null_device() -> std::io::Result<OwnedFd> {
    let tree = clone_path("/dev/null")?;
    let stat = fstat(&tree)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if is_null { Ok(tree) } else { Err(rustix::io::Errno::NODEV.into()) }
}

/// A mount of an empty, read-only tmpfs that is attached nowhere.
///
/// # Errors
/// Those of fsopen(2) and its like.
pub fn empty_tmpfs() -> std::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}
