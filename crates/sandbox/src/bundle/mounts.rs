//! What a bundle's mounts are made from, and which of them a virtual machine cannot have.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::Mount;

use super::{Refusals, Role, UNIVERSAL_DEVICES};
use crate::Result;

/// What a mount of a bundle is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountSource {
    /// A file system the guest mounts itself.
    Guest,
    /// A file or directory of the host.
    Host(PathBuf),
    /// An overlay of directories of the host.
    Overlay,
    /// What the guest has under this path: a device node that every Linux has, or what a pod's containers share.
    GuestPath(&'static str),
    /// Files that the kubelet changes while the pod runs ([`crate::files`]).
    Files(PathBuf),
    /// A directory in memory: the guest's memory, not the host's.
    Memory {
        /// On the host.
        path: PathBuf,
        /// Its size, bytes.
        size: u64,
    },
    /// A directory of huge pages, the guest's too.
    HugePages {
        /// On the host.
        path: PathBuf,
        /// Size of a page, bytes.
        page_size: u64,
        /// Size in all, bytes.
        size: u64,
    },
}

/// `f_type` of file systems that show the host's kernel and so mean nothing in a guest (statfs(2)).
const KERNEL_FILE_SYSTEMS: [(i64, &str); 5] =
    [(0x9fa0, "proc"), (0x6265_6572, "sysfs"), (0x2_7e0eb, "cgroup"), (0x6367_7270, "cgroup2"), (0x1cd1, "devpts")];

/// `f_type` of a file system in memory and of one of huge pages (statfs(2)).
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;

/// Whether a mount binds something that exists already.
fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// Refuses a mount, or says what it is made from. `dir` is the bundle, which relative sources begin in.
pub(super) fn check_mount(
    refuse: &Refusals<'_>,
    dir: &Path,
    index: usize,
    mount: &Mount,
    role: Role,
) -> Result<MountSource> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let destination = mount.destination();
    if destination.as_os_str().is_empty() {
        return Err(refuse.because(field("destination"), "is empty; a path in the container is expected"));
    }
    if destination.components().any(|part| part == Component::ParentDir) {
        return Err(
            refuse.because(field("destination"), format!("{destination:?} contains \"..\"; a plain path is expected"))
        );
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(refuse.because(field("uidMappings"), "mounts with id mappings are not supported by this version"));
    }
    if !is_bind(mount) {
        return if mount.typ().as_deref() == Some("overlay") {
            check_overlay(refuse, index, mount)
        } else {
            Ok(MountSource::Guest)
        };
    }
    if let Some(shared) = mount.options().iter().flatten().find(|option| *option == "rshared" || *option == "shared") {
        let problem = format!(
            "{shared:?} asks that mounts made in the container appear on the host, which those of a virtual machine cannot; use rslave or rprivate"
        );
        return Err(refuse.because(field("options"), problem));
    }
    let source =
        mount.source().as_ref().ok_or_else(|| refuse.because(field("source"), "is missing; a bind mount needs one"))?;
    let path = dir.join(source);
    // The engine's own is the pod's; a volume that somebody wants there is not.
    if role == Role::Member && destination == Path::new("/dev/shm") && !is_empty_dir(&path) {
        return Ok(MountSource::GuestPath(agent_api::GUEST_SHM_DIR));
    }
    let unusable = |why: String| refuse.because(field("source"), format!("{}: {why}", path.display()));
    let metadata = fs::metadata(&path).map_err(|e| unusable(format!("cannot be used: {e}")))?;
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Err(unusable("is a socket; a process in a virtual machine cannot reach the host's sockets".into()));
    }
    if kind.is_char_device() {
        let (major, minor) = (libc::major(metadata.rdev()).into(), libc::minor(metadata.rdev()).into());
        return match UNIVERSAL_DEVICES.iter().find(|known| (known.0, known.1) == (major, minor)) {
            Some((_, _, guest)) => Ok(MountSource::GuestPath(guest)),
            None => Err(unusable("is a device of the host's kernel and cannot be given to a virtual machine".into())),
        };
    }
    if kind.is_block_device() {
        return Err(unusable("is a block device; this version cannot attach one".into()));
    }
    let statistics = rustix::fs::statfs(&path).map_err(|e| unusable(format!("cannot be used: {e}")))?;
    if let Some((_, name)) = KERNEL_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == statistics.f_type as i64) {
        return Err(unusable(format!(
            "belongs to the host's {name} file system, which shows another kernel than the container's; mount type {name} instead"
        )));
    }
    let path = fs::canonicalize(&path).map_err(|e| unusable(format!("cannot be used: {e}")))?;
    if role != Role::Member {
        let (block, blocks) = (statistics.f_bsize as u64, statistics.f_blocks);
        return Ok(if destination == Path::new("/dev/shm") && is_shm_of_engine(&path, statistics.f_type as i64) {
            MountSource::Memory { path, size: block.saturating_mul(blocks) }
        } else {
            MountSource::Host(path)
        });
    }
    if crate::files::is_volume(&path) {
        return Ok(MountSource::Files(path));
    }
    let is_empty_dir = is_empty_dir(&path);
    let (block, blocks) = (statistics.f_bsize as u64, statistics.f_blocks);
    Ok(match statistics.f_type as i64 {
        TMPFS if is_empty_dir => MountSource::Memory { path, size: block.saturating_mul(blocks) },
        HUGETLBFS if is_empty_dir => MountSource::HugePages {
            // Without a size of its own it has that of the container's limit.
            size: if blocks >> 40 == 0 && blocks > 0 { block.saturating_mul(blocks) } else { 0 },
            path,
            page_size: block,
        },
        _ => MountSource::Host(path),
    })
}

/// Refuses an overlay whose directories are not there.
fn check_overlay(refuse: &Refusals<'_>, index: usize, mount: &Mount) -> Result<MountSource> {
    let options = mount.options().as_deref().unwrap_or_default();
    if options.iter().any(|option| option.starts_with("lowerdir=")) {
        return Ok(MountSource::Overlay);
    }
    Err(refuse.because(
        format!("mounts[{index}].options"),
        "an overlay has no lowerdir; the directories of the host that it is made of are expected",
    ))
}

/// Whether a directory is the empty file system in memory that an engine has made for a container's `/dev/shm`. The guest's memory is meant then:
/// there it can be mapped by several processes, and costs the host nothing.
fn is_shm_of_engine(path: &Path, kind: i64) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    kind == TMPFS
        && path.file_name().is_some_and(|name| name == "shm")
        && device(path) != path.parent().and_then(device)
        && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a path is a kubelet's emptyDir, by its place: `.../volumes/PLUGIN/NAME`.
fn is_empty_dir(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|plugin| plugin == "kubernetes.io~empty-dir")
}
