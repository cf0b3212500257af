//! The device nodes and links of a container's /dev.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_api::Fault;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::in_root::{Kind, Root};
use super::mount::{attach, clone_path};
use crate::fault::{Context, invalid};
use crate::spec::Device;

/// A node to be made.
struct Node {
    path: PathBuf,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What every container has: name, major and minor number.
const DEFAULTS: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("random", 1, 8), ("full", 1, 7), ("tty", 5, 0), ("zero", 1, 5), ("urandom", 1, 9)];

/// Links that every container has.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Makes the nodes that every container has and those of the specification, if asked those of all devices that the guest has, and the links.
///
/// # Errors
/// When one can neither be made nor be bound.
pub fn populate(root: &Root, spec: &[Device], all: bool) -> Result<(), Fault> {
    let dev = root.place(Path::new("/dev"), Kind::Dir).context(|| "error creating device nodes: mkdir /dev".into())?.fd;
    for (name, major, minor) in DEFAULTS {
        let path = Path::new("/dev").join(name);
        // One of the specification's own counts.
        if !spec.iter().any(|device| device.path == path) {
            let node = Node { path, kind: FileType::CharacterDevice, major, minor, mode: 0o666, uid: 0, gid: 0 };
            make(root, &node).context(|| format!("error creating device nodes: mknod {}", node.path.display()))?;
        }
    }
    for device in spec {
        let node = node(device)?;
        make(root, &node).context(|| format!("error creating device nodes: mknod {}", node.path.display()))?;
    }
    if all {
        for node in own() {
            // A device may go while this is done.
            let _ = make(root, &node);
        }
    }
    link(&dev).context(|| "error creating the links of /dev".into())
}

/// What containers have otherwise, and what belongs to the agent.
const NOT_SHOWN: [&str; 4] = ["console", "ptmx", "pts/", "vport"];

/// The devices that the guest's kernel knows.
fn own() -> Vec<Node> {
    let mut nodes = Vec::new();
    for (sort, kind) in [("char", FileType::CharacterDevice), ("block", FileType::BlockDevice)] {
        for entry in std::fs::read_dir(format!("/sys/dev/{sort}")).into_iter().flatten().flatten() {
            let numbers = entry.file_name();
            let numbers = numbers.to_str().and_then(|text| text.split_once(':'));
            let Some((Ok(major), Ok(minor))) = numbers.map(|(major, minor)| (major.parse(), minor.parse())) else {
                continue;
            };
            let uevent = std::fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
            let field = |name: &str| uevent.lines().find_map(|line| line.strip_prefix(name));
            let Some(name) = field("DEVNAME=").filter(|name| !NOT_SHOWN.iter().any(|not| name.starts_with(not))) else {
                continue;
            };
            let mode = field("DEVMODE=").and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o600);
            nodes.push(Node { path: Path::new("/dev").join(name), kind, major, minor, mode, uid: 0, gid: 0 });
        }
    }
    nodes
}

fn node(device: &Device) -> Result<Node, Fault> {
    let path = device.path.clone();
    let number = |number: i64| {
        u32::try_from(number).map_err(|_| invalid(format!("linux.devices: {} has the number {number}", path.display())))
    };
    let kind = match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "c" | "u" => FileType::CharacterDevice,
        "p" => FileType::Fifo,
        kind => {
            return Err(invalid(format!(
                "linux.devices: {} has the type {kind:?}, expected b, c, u or p",
                path.display()
            )));
        }
    };
    Ok(Node {
        kind,
        major: number(device.major)?,
        minor: number(device.minor)?,
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
        path,
    })
}

fn make(root: &Root, node: &Node) -> io::Result<()> {
    let (dir, name) = root.parent_of(&node.path)?;
    // The umask is 0 here: the mode is meant as it is written.
    match mknodat(&dir, &name, node.kind, Mode::from_raw_mode(node.mode), makedev(node.major, node.minor)) {
        Ok(()) if (node.uid, node.gid) == (0, 0) => Ok(()),
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
            Ok(chownat(&dir, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        Err(Errno::EXIST) => Ok(()),
        // In a user namespace, or on a file system of the host, nodes cannot be made; the guest's own can be shown.
        Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::ROFS)) => {
            bind(root, node).map_err(|_| error.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn bind(root: &Root, node: &Node) -> io::Result<()> {
    // In the guest's /dev, nodes have the name that the kernel gave them.
    let sort = if node.kind == FileType::BlockDevice { "block" } else { "char" };
    let uevent = std::fs::read_to_string(format!("/sys/dev/{sort}/{}:{}/uevent", node.major, node.minor))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).ok_or(Errno::NODEV)?;
    let tree = clone_path(&format!("/dev/{name}"))?;
    attach(&tree, root.place(&node.path, Kind::File)?.fd.as_fd())
}

fn link(dev: &OwnedFd) -> io::Result<()> {
    for (target, name) in LINKS {
        symlinkat(target, dev, name).or_else(ignore_exists)?;
    }
    if Path::new("/proc/kcore").exists() {
        symlinkat("/proc/kcore", dev, "core").or_else(ignore_exists)?;
    }
    match unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        // A read-only image brings what it brings.
        Err(Errno::ROFS) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    symlinkat("pts/ptmx", dev, "ptmx").or_else(ignore_exists)?;
    Ok(())
}

fn ignore_exists(error: Errno) -> Result<(), Errno> {
    if matches!(error, Errno::EXIST | Errno::ROFS) { Ok(()) } else { Err(error) }
}
