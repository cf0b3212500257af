//! Making mounts, attaching them to their places, and taking them away. All of it may block: a child does it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use agent_api::Fault;
use agent_api::storage::{Storage, StorageSource};
use libc::MOUNT_ATTR_RDONLY;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount as old_mount, move_mount, unmount as umount,
};

use super::disk::Disk;
use super::files;
use crate::boot::make_dirs;
use crate::container::{MountOptions, open_source, parse_options};
use crate::fault::{Context, internal, invalid, reason};
use crate::sys::mount_setattr;

/// Size of a volume of files, which holds the old and the new ones for a moment.
const FILES_SIZE: usize = 2 * files::MAX_BYTES + (4 << 20);

/// Where a storage is mounted.
pub struct Place<'a> {
    /// The directory that stays.
    pub top: &'a str,
    /// The storage's path.
    pub target: &'a str,
}

/// Mounts a storage at its place.
///
/// # Errors
/// When something of it is refused; nothing of it stays.
pub fn mount(place: &Place<'_>, storage: &Storage, disk: Option<&Disk>) -> Result<(), Fault> {
    let mut options = parse_options(&storage.options)?;
    if options.bind.is_some() || options.copy_up {
        return Err(invalid(format!("its options are {:?}, expected none that is for bind mounts", storage.options)));
    }
    make_dirs(place.target).context(|| format!("mkdir {}", place.target))?;
    let made = match &storage.source {
        StorageSource::Disk { fs_type, .. } => {
            let node = disk.map(|disk| disk.node.as_path()).unwrap_or(Path::new(""));
            file_system(fs_type, node, &options).and_then(|tree| attach(&tree, place.target))
        }
        StorageSource::Memory { size } => {
            if *size != 0 {
                options.data.push(format!("size={size}"));
            }
            file_system("tmpfs", Path::new("tmpfs"), &options).and_then(|tree| attach(&tree, place.target))
        }
        StorageSource::HugePages { page_size, size } => {
            options.data.extend([format!("pagesize={page_size}"), format!("size={size}")]);
            file_system("hugetlbfs", Path::new("hugetlbfs"), &options).and_then(|tree| attach(&tree, place.target))
        }
        StorageSource::Overlay { lower, upper } => {
            overlay(place, lower, upper.as_deref().map(|upper| format!("{}/{upper}", place.top)).as_deref(), &options)
        }
        StorageSource::Files { entries } => {
            // Containers get it read-only by their own mounts; the agent writes to it.
            options.attr.set &= !MOUNT_ATTR_RDONLY;
            options.data.extend([format!("size={FILES_SIZE}"), format!("nr_inodes={}", 4 * files::MAX_ENTRIES)]);
            file_system("tmpfs", Path::new("tmpfs"), &options).and_then(|tree| {
                files::fill(&tree, entries)?;
                attach(&tree, place.target)
            })
        }
    };
    if made.is_err() {
        remove_dirs(place);
    }
    made
}

/// Mounts a tmpfs of the guest's own.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_tmpfs(target: &str, data: &[String]) -> Result<(), Fault> {
    make_dirs(target).context(|| format!("mkdir {target}"))?;
    let mut options = parse_options(&["nosuid", "nodev", "noexec"].map(str::to_owned))?;
    options.data = data.to_vec();
    attach(&file_system("tmpfs", Path::new("tmpfs"), &options)?, target)
}

/// Unmounts a storage, with its data written back, and removes its directory.
///
/// # Errors
/// When data could not be written back, or the storage is in use.
pub fn unmount(place: &Place<'_>, write_back: bool) -> Result<(), Fault> {
    let target = place.target;
    if write_back {
        // Unmounting would write it back as well, but would not say that it failed.
        let opened = rustix::fs::open(target, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let synced = opened.and_then(|dir| rustix::fs::syncfs(&dir));
        synced.context(|| format!("writing back what is on {target}"))?;
    }
    match umount(target, UnmountFlags::NOFOLLOW) {
        // It is not mounted, from an attempt before.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error).context(|| format!("umount {target}")),
    }
    remove_dirs(place);
    Ok(())
}

/// Removes the directory of a storage and those above it that are empty.
fn remove_dirs(place: &Place<'_>) {
    let mut dir = Path::new(place.target);
    while dir != Path::new(place.top) && rustix::fs::rmdir(dir).is_ok() {
        let Some(above) = dir.parent() else { return };
        dir = above;
    }
}

/// Makes a mount of a file system that is attached nowhere.
fn file_system(kind: &str, source: &Path, options: &MountOptions) -> Result<OwnedFd, Fault> {
    let context = match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => {
            return Err(invalid(format!("the guest's kernel has no file system of type {kind:?}")));
        }
        other => other.context(|| format!("fsopen {kind:?}"))?,
    };
    configure(&context, source, options).map_err(|error| {
        let data = if options.data.is_empty() { String::new() } else { format!(", data: {}", options.data.join(",")) };
        let (reason, said) = (reason(&error.into()), messages(&context));
        internal(format!("mounting {} as {kind}{data}: {reason}{said}", source.display()))
    })?;
    let set = options.attr.set | options.recursive_attr.set;
    let attr = u32::try_from(set).map(MountAttrFlags::from_bits_retain).unwrap_or(MountAttrFlags::empty());
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr).context(|| format!("fsmount of {kind:?}"))
}

fn configure(context: &OwnedFd, source: &Path, options: &MountOptions) -> Result<(), Errno> {
    fsconfig_set_string(context, "source", source)?;
    for option in &options.data {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, option.as_str())?,
        }
    }
    if options.attr.set & MOUNT_ATTR_RDONLY != 0 {
        // Of the file system, too: a disk that cannot be written to is refused otherwise.
        fsconfig_set_flag(context, "ro")?;
    }
    fsconfig_create(context)
}

/// What the kernel has to say about a file system that it did not make.
fn messages(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    // One message at a time: its kind, a blank and the text.
    while let Ok(length @ 3..) = rustix::io::read(context, &mut buffer) {
        text.push_str("; ");
        text.push_str(String::from_utf8_lossy(&buffer[2..length]).trim_end());
    }
    text
}

fn attach(tree: &OwnedFd, target: &str) -> Result<(), Fault> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(|| format!("mount {target}"))
}

/// Mounts an overlay. By the old system call, because the new one takes no option of more than 255 bytes from older kernels; the
/// directories are named by descriptors, so that no link leads out of them and many fit into a page.
fn overlay(place: &Place<'_>, lower: &[String], upper: Option<&str>, options: &MountOptions) -> Result<(), Fault> {
    let lower: Vec<OwnedFd> = lower.iter().map(|path| open_dir(path)).collect::<Result<_, _>>()?;
    let name = |dir: &OwnedFd| format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut data = format!("lowerdir={}", lower.iter().map(name).collect::<Vec<_>>().join(":"));
    let mut flags = MountFlags::RDONLY;
    let kept; // until it is mounted
    if let Some(path) = upper {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = dir.context(|| format!("open {path}"))?;
        let top = lower.first().ok_or_else(|| invalid("an overlay needs a lower directory"))?;
        let dirs = [upper_dir(&dir, "upper", Some(top)), upper_dir(&dir, "work", None)];
        let [upper, work] = dirs.map(|dir| dir.context(|| format!("making the upper directory on {path}")));
        kept = (upper?, work?);
        data.push_str(&format!(",upperdir={},workdir={}", name(&kept.0), name(&kept.1)));
        flags = MountFlags::empty();
    }
    for option in &options.data {
        data.push(',');
        data.push_str(option);
    }
    let c_data = std::ffi::CString::new(data.as_str()).map_err(|_| invalid("an option has a NUL"))?;
    if data.len() >= 4096 {
        return Err(invalid(format!(
            "the overlay has {} lower directories and {} bytes of options, which is too much",
            lower.len(),
            data.len()
        )));
    }
    old_mount("overlay", place.target, "overlay", flags, Some(c_data.as_c_str()))
        .context(|| format!("mounting an overlay, data: {data}"))?;
    let attr = options.attr;
    if !attr.is_empty() {
        let opened = rustix::fs::open(place.target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let set = opened.map_err(io::Error::from).and_then(|tree| mount_setattr(tree.as_fd(), false, attr));
        if let Err(error) = set {
            let _ = umount(place.target, UnmountFlags::DETACH);
            return Err(error).context(|| format!("setting the attributes of {}", place.target));
        }
    }
    Ok(())
}

fn open_dir(path: &str) -> Result<OwnedFd, Fault> {
    let opened = open_source(Path::new(path));
    opened.context(|| format!("open {path}"))
}

/// Opens a directory, or makes it look like another one.
fn upper_dir(dir: &OwnedFd, name: &str, like: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match mkdirat(dir, name, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(openat(dir, name, flags, Mode::empty())?),
        Err(error) => Err(error.into()),
        Ok(()) => {
            let made = openat(dir, name, flags, Mode::empty())?;
            if let Some(like) = like {
                let stat = fstat(like)?;
                fchown(&made, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
                fchmod(&made, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            }
            Ok(made)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests_in::own_namespace;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    fn storage(source: StorageSource, options: &[&str]) -> Storage {
        Storage { name: "s".into(), source, options: options.iter().map(ToString::to_string).collect(), of_pod: false }
    }

    fn paths(top: &Path) -> (String, String) {
        (top.to_str().unwrap().to_owned(), top.join("a/s").to_str().unwrap().to_owned())
    }

    #[test]
    fn memory_is_limited_and_leaves_nothing() {
        own_namespace("memory", |dir| {
            let (top, target) = paths(dir);
            let place = Place { top: &top, target: &target };
            mount(&place, &storage(StorageSource::Memory { size: 1 << 20 }, &["mode=0750", "noexec"]), None).unwrap();
            assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o750);
            assert!(std::fs::write(dir.join("a/s/big"), vec![0; 2 << 20]).is_err(), "it is larger than the storage");
            unmount(&place, false).unwrap();
            assert!(dir.exists() && !dir.join("a").exists());
            unmount(&place, false).unwrap();
        });
    }

    #[test]
    fn what_the_kernel_does_not_know_is_named_and_leaves_nothing() {
        own_namespace("refused", |dir| {
            let (top, target) = paths(dir);
            let place = Place { top: &top, target: &target };
            let disk = |fs_type: &str| StorageSource::Disk { serial: "x".into(), fs_type: fs_type.into() };
            let message = mount(&place, &storage(disk("nofs"), &[]), None).unwrap_err().message;
            assert_eq!(message, "the guest's kernel has no file system of type \"nofs\"");
            let memory = StorageSource::Memory { size: 0 };
            let message = mount(&place, &storage(memory.clone(), &["blah=1"]), None).unwrap_err().message;
            assert!(
                message.contains("data: blah=1: invalid argument") && message.contains("nknown parameter"),
                "{message}"
            );
            assert!(mount(&place, &storage(memory, &["rbind"]), None).is_err());
            assert!(!dir.join("a").exists());
        });
    }

    #[test]
    fn an_overlay_shows_the_topmost_and_keeps_what_is_written_above() {
        own_namespace("overlay", |dir| {
            let (top, target) = paths(dir);
            let place = Place { top: &top, target: &target };
            // A file system that an overlay can have its upper directory on, wherever this runs.
            let disk = dir.join("disk");
            let upper = Place { top: &top, target: disk.to_str().unwrap() };
            mount(&upper, &storage(StorageSource::Memory { size: 1 << 20 }, &[]), None).unwrap();
            let layer = |name: &str| -> PathBuf { dir.join(name) };
            for (name, text) in [("l1", "top"), ("l2", "below")] {
                std::fs::create_dir(layer(name)).unwrap();
                std::fs::write(layer(name).join("file"), text).unwrap();
            }
            std::fs::write(layer("l2").join("only"), "").unwrap();
            std::fs::set_permissions(layer("l1"), std::fs::Permissions::from_mode(0o711)).unwrap();
            let lower: Vec<String> = ["l1", "l2"].iter().map(|l| layer(l).to_str().unwrap().to_owned()).collect();
            let source = StorageSource::Overlay { lower: lower.clone(), upper: Some("disk".into()) };
            mount(&place, &storage(source, &["nodev"]), None).unwrap();
            let shown = dir.join("a/s");
            assert_eq!(std::fs::read_to_string(shown.join("file")).unwrap(), "top");
            assert_eq!(std::fs::metadata(&shown).unwrap().mode() & 0o7777, 0o711);
            std::fs::write(shown.join("only"), "written").unwrap();
            assert_eq!(std::fs::read_to_string(disk.join("upper/only")).unwrap(), "written");
            assert_eq!(std::fs::read_to_string(layer("l2").join("only")).unwrap(), "");
            unmount(&place, true).unwrap();
            let source = StorageSource::Overlay { lower, upper: None };
            mount(&place, &storage(source, &[]), None).unwrap();
            assert!(std::fs::write(shown.join("x"), "").is_err(), "nothing holds what is written");
            unmount(&place, true).unwrap();
            unmount(&upper, false).unwrap();
        });
    }
}
