//! The mounts of a container's specification.
//!
//! Everything is made as a mount that is attached nowhere, gets its attributes, and is then attached to a descriptor of the
//! place: there is no moment at which it is there with other attributes, and no path that could be changed meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use agent_api::{Fault, GUEST_SHARED_DIR, GUEST_SHM_DIR, GUEST_STORAGE_DIR};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags, fstat, fstatfs, openat, statat, statx,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::copy_up;
use super::in_root::{Kind, Place, Root};
use super::mount_options::{MountOptions, parse};
use crate::fault::{internal, invalid, reason};
use crate::spec::Mount;
use crate::sys::{MountAttr, mount_setattr};

/// `PROC_SUPER_MAGIC` (linux/magic.h).
const PROC_MAGIC: u64 = 0x9fa0;

/// Files of /proc that may be mounted over: what makes a container see its own share of the machine.
const PROC_FILES: [&str; 12] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
    "filesystems",
];

/// What the mounts of one container have in common.
pub struct Mounter<'a> {
    /// The container's root.
    pub root: &'a Root,
    /// Directory of the container's cgroup.
    pub cgroup: &'a Path,
    /// It has a cgroup namespace of its own, which this process is in.
    pub cgroup_namespace: bool,
}

impl Mounter<'_> {
    /// Makes one mount.
    ///
    /// # Errors
    /// A fault that names source and destination as runc does.
    pub fn mount(&self, mount: &Mount) -> Result<(), Fault> {
        let source = mount.source.clone().unwrap_or_default();
        let destination = &mount.destination;
        self.try_mount(mount, &source).map_err(|error| {
            let text = match error {
                Failure::Fault(fault) => return fault,
                Failure::Text(text) => text,
                Failure::Io(error) => {
                    format!("mount {}:{}: {}", source.display(), destination.display(), reason(&error))
                }
            };
            internal(format!("error mounting {source:?} to rootfs at {destination:?}: {text}"))
        })
    }

    fn try_mount(&self, mount: &Mount, source: &Path) -> Result<(), Failure> {
        let options = parse(&mount.options)?;
        let kind = mount.kind.as_deref().unwrap_or("");
        let destination = &mount.destination;
        if options.bind.is_some() || kind == "bind" {
            return self.bind(source, destination, options.bind == Some(true), &options);
        }
        check_destination(destination, kind == "proc")?;
        if matches!(kind, "proc" | "sysfs") {
            self.expect_ordinary_directory(kind, destination)?;
        }
        match kind {
            "" | "none" => Err(invalid(format!("the mount at {destination:?} has no type")).into()),
            "cgroup" | "cgroup2" if !self.cgroup_namespace => self.bind(self.cgroup, destination, true, &options),
            "cgroup" | "cgroup2" => {
                self.new_mount("cgroup2", source, destination, &MountOptions { data: vec![], ..options })
            }
            "sysfs" => match self.new_mount(kind, source, destination, &options) {
                // A user namespace that does not own the network may not see it this way, but it may see the guest's.
                Err(Failure::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.bind(Path::new("/sys"), destination, true, &options)
                }
                other => other,
            },
            _ => self.new_mount(kind, source, destination, &options),
        }
    }

    /// An image that has a link where the kernel's files belong wants them somewhere else, so that what masks them is not over them.
    fn expect_ordinary_directory(&self, kind: &str, destination: &Path) -> Result<(), Failure> {
        let Ok((parent, name)) = self.root.parent_of(destination) else { return Ok(()) };
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                Err(Failure::Text(format!("filesystem {kind:?} must be mounted on ordinary directory")))
            }
            _ => Ok(()),
        }
    }

    /// Shows files that are there already at a second place.
    fn bind(&self, source: &Path, destination: &Path, recursive: bool, options: &MountOptions) -> Result<(), Failure> {
        let stat_failed = |error: io::Error| Failure::Text(format!("stat {}: {}", source.display(), reason(&error)));
        let source_fd = open_source(source).map_err(stat_failed)?;
        let is_dir = FileType::from_raw_mode(fstat(&source_fd)?.st_mode) == FileType::Directory;
        let of_proc = fstatfs(&source_fd).is_ok_and(|stat| stat.f_type as u64 == PROC_MAGIC);
        check_destination(destination, of_proc)?;
        let place = self.place(destination, if is_dir { Kind::Dir } else { Kind::File })?;
        if place.is_dir() != is_dir {
            return Err(Errno::NOTDIR.into());
        }
        let tree = clone_tree(source_fd.as_fd(), recursive)?;
        finish(&tree, place.fd.as_fd(), options)
    }

    /// Mounts a file system.
    fn new_mount(&self, kind: &str, source: &Path, destination: &Path, options: &MountOptions) -> Result<(), Failure> {
        let place = self.place(destination, Kind::Dir)?;
        if !place.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let mut data = options.data.clone();
        if kind == "tmpfs" && !place.made {
            // A tmpfs looks like what it hides, unless its options say otherwise.
            data.insert(0, format!("mode={:04o}", place.mode & 0o7777));
        }
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        let source = if source.as_os_str().is_empty() { Path::new(kind) } else { source };
        fsconfig_set_string(&context, "source", source)?;
        for option in &data {
            let set = match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value),
                None => fsconfig_set_flag(&context, option.as_str()),
            };
            set.map_err(|error| self.refused(source, destination, &options.data, error))?;
        }
        fsconfig_create(&context).map_err(|error| self.refused(source, destination, &options.data, error))?;
        let read_only = options.attr.set & libc::MOUNT_ATTR_RDONLY;
        // A tmpfs that gets a copy has to be writable until it has, and one for /dev until the devices are in it.
        let is_dev = kind == "tmpfs" && destination == Path::new("/dev");
        let at_once = if options.copy_up || is_dev { options.attr.set & !read_only } else { options.attr.set };
        let attr = MountAttrFlags::from_bits_retain(u32::try_from(at_once).map_err(io::Error::other)?);
        let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr)?;
        if options.copy_up {
            let from = self.root.open(destination, OFlags::RDONLY | OFlags::DIRECTORY)?;
            copy_up::copy(&from, &tree).map_err(|error| Failure::Text(format!("tmpcopyup: {}", reason(&error))))?;
        }
        let late = if is_dev { 0 } else { options.attr.set & !at_once };
        let attr = MountAttr { set: late, ..MountAttr::default() };
        finish(&tree, place.fd.as_fd(), &MountOptions { attr, data: vec![], ..options.clone() })
    }

    fn refused(&self, source: &Path, destination: &Path, data: &[String], error: Errno) -> Failure {
        let data = if data.is_empty() { String::new() } else { format!(", data: {}", data.join(",")) };
        let reason = reason(&error.into());
        Failure::Text(format!("mount {}:{}{data}: {reason}", source.display(), destination.display()))
    }

    fn place(&self, destination: &Path, kind: Kind) -> Result<Place, Failure> {
        self.root.place(destination, kind).map_err(|error| {
            let make = if kind == Kind::Dir { "mkdir" } else { "create" };
            Failure::Text(format!("{make} mountpoint {}: {}", destination.display(), reason(&error)))
        })
    }
}

/// What can go wrong with a mount.
enum Failure {
    Fault(Fault),
    Text(String),
    Io(io::Error),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A container cannot be given a /proc of which it makes what it likes: the agent and others trust what they read there.
fn check_destination(destination: &Path, of_proc: bool) -> Result<(), Failure> {
    let clean: PathBuf = destination.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let Ok(below) = clean.strip_prefix("proc") else { return Ok(()) };
    if below.as_os_str().is_empty() {
        if of_proc {
            return Ok(());
        }
        return Err(Failure::Text(format!("{destination:?} cannot be mounted because it is not of type proc")));
    }
    if PROC_FILES.iter().any(|file| below == Path::new(file)) {
        return Ok(());
    }
    Err(Failure::Text(format!("{destination:?} cannot be mounted because it is inside /proc")))
}

/// Opens the source of a bind mount. On file systems that the host and containers write to, links stay inside: on the shared
/// one, on each storage, and on the pod's `/dev/shm`.
///
/// # Errors
/// Those of openat2(2).
pub fn open_source(source: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    for dir in [GUEST_SHARED_DIR, GUEST_SHM_DIR] {
        if let Ok(below) = source.strip_prefix(dir) {
            let shared = Root::new(rustix::fs::open(dir, flags | OFlags::DIRECTORY, Mode::empty())?);
            // A directory of another file system of the host is a mount of its own, made when a path that asks for a directory leads to it.
            // Taken without it, it would be made over the container's root as soon as a `..` leads there, on top of all that is mounted in it.
            return match shared.open(below, OFlags::PATH | OFlags::DIRECTORY) {
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => shared.open(below, OFlags::PATH),
                opened => opened,
            };
        }
    }
    match source.strip_prefix(GUEST_STORAGE_DIR) {
        Ok(below) => open_in_storage(Path::new(GUEST_STORAGE_DIR), below),
        Err(_) => Ok(rustix::fs::open(source, flags, Mode::empty())?),
    }
}

/// Opens what is on a storage: the directories that lead to its mount are the agent's own and have no links, and from there on links
/// stay on it.
fn open_in_storage(top: &Path, below: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(top, flags, Mode::empty())?;
    let mut names = below.components();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { return Err(Errno::INVAL.into()) };
        dir = openat(&dir, name, flags, Mode::empty())?;
        if statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        {
            return Root::new(dir).open(names.as_path(), OFlags::PATH);
        }
    }
    // Nothing is mounted there.
    Err(Errno::NODEV.into())
}

/// Clones the mount that a descriptor is on, with that file as its root.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_tree(of: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(of, "", flags)?)
}

/// Attaches a mount to a place.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(tree: &OwnedFd, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", place, "", flags)?)
}

fn finish(tree: &OwnedFd, place: BorrowedFd<'_>, options: &MountOptions) -> Result<(), Failure> {
    for (attr, recursive) in [(options.attr, false), (options.recursive_attr, true)] {
        if !attr.is_empty() {
            mount_setattr(tree.as_fd(), recursive, attr)?;
        }
    }
    attach(tree, place)?;
    for &(propagation, recursive) in &options.propagation {
        mount_setattr(tree.as_fd(), recursive, MountAttr { propagation, ..MountAttr::default() })?;
    }
    Ok(())
}

/// Clones what is at a path of the guest.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_path(path: &str) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// Runs a test in a mount namespace of its own, with an empty root file system and a directory beside it.
    fn in_own_namespace(name: &str, test: impl FnOnce(&Path, &Mounter<'_>) + Send + 'static) {
        crate::storage::tests_in::own_namespace(&format!("mount-{name}"), move |dir| {
            std::fs::create_dir(dir.join("root")).unwrap();
            let root = Root::new(std::fs::File::open(dir.join("root")).unwrap().into());
            test(dir, &Mounter { root: &root, cgroup: Path::new("/"), cgroup_namespace: true });
        });
    }

    fn spec(json: &str) -> Mount {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_read_only_bind_mount_of_a_file_cannot_be_written() {
        in_own_namespace("bind", |top, mounter| {
            std::fs::write(top.join("file"), "text").unwrap();
            let source = top.join("file");
            for (name, options) in [("ro", r#"["bind","ro"]"#), ("rw", r#"["bind"]"#)] {
                let json = format!(r#"{{"destination":"/a/{name}","source":{source:?},"options":{options}}}"#);
                mounter.mount(&spec(&json)).unwrap();
            }
            assert_eq!(std::fs::read_to_string(top.join("root/a/ro")).unwrap(), "text");
            let error = std::fs::write(top.join("root/a/ro"), "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            std::fs::write(top.join("root/a/rw"), "changed").unwrap();
            assert_eq!(std::fs::read_to_string(source).unwrap(), "changed");
        });
    }

    #[test]
    fn a_tmpfs_looks_like_what_it_hides_and_can_have_a_copy_of_it() {
        in_own_namespace("tmpfs", |top, mounter| {
            let etc = top.join("root/etc");
            std::fs::create_dir(&etc).unwrap();
            std::fs::set_permissions(&etc, std::fs::Permissions::from_mode(0o711)).unwrap();
            std::fs::write(etc.join("passwd"), "root").unwrap();
            let json = r#"{"destination":"/etc","type":"tmpfs","options":["tmpcopyup","ro","nosuid"]}"#;
            mounter.mount(&spec(json)).unwrap();
            let mounted = std::fs::metadata(&etc).unwrap();
            assert_ne!(mounted.dev(), std::fs::metadata(top).unwrap().dev());
            assert_eq!(mounted.mode() & 0o7777, 0o711);
            assert_eq!(std::fs::read_to_string(etc.join("passwd")).unwrap(), "root");
            assert!(std::fs::write(etc.join("new"), "").is_err(), "it was asked to be read-only");
        });
    }

    #[test]
    fn a_link_of_the_image_does_not_lead_a_mount_out() {
        in_own_namespace("link", |top, mounter| {
            std::fs::create_dir(top.join("outside")).unwrap();
            std::fs::write(top.join("outside/kept"), "").unwrap();
            symlink("../../../../../../../..", top.join("root/up")).unwrap();
            let destination = Path::new("/up").join(top.join("outside").strip_prefix("/").unwrap());
            let json = format!(r#"{{"destination":{destination:?},"type":"tmpfs","source":"tmpfs"}}"#);
            mounter.mount(&spec(&json)).unwrap();
            assert!(top.join("outside/kept").exists());
            assert!(top.join("root").join(top.strip_prefix("/").unwrap()).join("outside").is_dir());
        });
    }

    #[test]
    fn a_refused_option_is_named_with_source_and_destination() {
        in_own_namespace("refused", |_, mounter| {
            let json = r#"{"destination":"/x","type":"tmpfs","source":"foo","options":["blah"]}"#;
            let message = mounter.mount(&spec(json)).unwrap_err().message;
            assert_eq!(
                message,
                r#"error mounting "foo" to rootfs at "/x": mount foo:/x, data: blah: invalid argument"#
            );
        });
    }

    #[test]
    fn a_link_on_a_storage_does_not_lead_off_it() {
        in_own_namespace("storage", |top, _| {
            let storages = top.join("storages");
            for name in ["c1/data", "c2/data"] {
                let target = storages.join(name);
                std::fs::create_dir_all(&target).unwrap();
                rustix::mount::mount("tmpfs", &target, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
                std::fs::write(target.join("name"), name).unwrap();
            }
            symlink("../../c2/data/name", storages.join("c1/data/out")).unwrap();
            symlink("/name", storages.join("c1/data/in")).unwrap();
            std::fs::create_dir(storages.join("c1/data/dir")).unwrap();
            let read = |path: &str| {
                let opened = open_in_storage(&storages, Path::new(path))?;
                std::fs::read_to_string(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened)))
            };
            assert_eq!(read("c1/data/name").unwrap(), "c1/data");
            assert_eq!(read("c1/data/in").unwrap(), "c1/data", "a link has the storage as its root");
            assert_eq!(read("c1/data/out").unwrap_err().raw_os_error(), Some(libc::ENOENT));
            assert!(open_in_storage(&storages, Path::new("c1/data/dir")).is_ok());
            assert!(open_in_storage(&storages, Path::new("c1/data")).is_ok());
            assert_eq!(open_in_storage(&storages, Path::new("c1")).unwrap_err().raw_os_error(), Some(libc::ENODEV));
            assert!(open_in_storage(&storages, Path::new("c1/../c2/data")).is_err());
        });
    }

    fn refusal(path: &str, of_proc: bool) -> Option<String> {
        match check_destination(Path::new(path), of_proc) {
            Err(Failure::Text(text)) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn proc_is_not_mounted_over() {
        assert_eq!(refusal("/proc", true), None);
        assert_eq!(refusal("/proc/meminfo", false), None);
        assert_eq!(refusal("/process", false), None);
        assert!(refusal("/proc", false).unwrap().contains("not of type proc"));
        assert!(refusal("/proc/./sys", true).unwrap().contains("inside /proc"));
    }
}
