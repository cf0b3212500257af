//! Reading a bundle and refusing, before anything is started, what is wrong with it or what a virtual machine cannot
//! honour. (OCI runtime specification, `bundle.md` and `config.md`.)

mod read;

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use config::Internetworking;
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Mount, Process, Spec,
};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use self::read::{Read, complete_process, read_spec};
use crate::{
    Error, Result,
    hooks::Point,
    joining::{self, Joining},
    store::Store,
};

/// A checked bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// The file of its configuration, absolute.
    pub file: PathBuf,
    /// Its configuration.
    pub spec: Spec,
    /// Its root file system, absolute.
    pub rootfs: PathBuf,
    /// Whose it is.
    pub role: Role,
    /// Capabilities it asks for that do not exist. They are not in the configuration.
    pub unknown_capabilities: Vec<String>,
}

/// What a mount of a bundle is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountSource {
    /// A file system the guest mounts itself.
    Guest,
    /// A file or directory of the host.
    Host(PathBuf),
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

/// What of a container's mounts can be seen on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visible {
    /// What is mounted, if it is the host's.
    pub source: Option<PathBuf>,
    /// Where, in the container.
    pub destination: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// Whose bundle it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A container that has a sandbox for itself.
    Alone,
    /// A pod's sandbox container.
    Pod,
    /// One of a pod's containers: it may share the pod's namespaces.
    Member,
    /// A container that goes into another one's sandbox ([`crate::joining`]): it shares that one's namespaces.
    Beside,
}

/// The network namespace that a bundle asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// A new one.
    New,
    /// One that exists.
    Path(PathBuf),
    /// The host's: none is listed.
    Host,
}

/// Character devices that every kernel has, and whose meaning is the kernel's own: (major, minor, path). (Linux `admin-guide/devices.txt`.)
const UNIVERSAL_DEVICES: [(u64, u64, &str); 9] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (1, 11, "/dev/kmsg"),
    (5, 0, "/dev/tty"),
    (10, 200, "/dev/net/tun"),
    (10, 229, "/dev/fuse"),
];

/// `f_type` of file systems that show the host's kernel and so mean nothing in a guest (statfs(2)).
const KERNEL_FILE_SYSTEMS: [(i64, &str); 5] =
    [(0x9fa0, "proc"), (0x6265_6572, "sysfs"), (0x2_7e0eb, "cgroup"), (0x6367_7270, "cgroup2"), (0x1cd1, "devpts")];

/// Whether a mount binds something that exists already.
pub(crate) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// A refusal that names the file and the field.
struct Refusals<'a> {
    file: &'a Path,
}

impl Refusals<'_> {
    fn because(&self, field: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Bundle { file: self.file.into(), field: field.into(), problem: problem.into() }
    }
}

impl Bundle {
    /// Reads `DIR/config.json` and checks all that can be checked without side effects.
    ///
    /// # Errors
    /// [`Error::Bundle`] with the file, the field and what was expected; [`Error::Io`].
    pub fn load(dir: &Path, role: Role) -> Result<Self> {
        Self::check(read_spec(dir, None)?, role)
    }

    /// The same for a container that has a sandbox for itself, or goes into that of one whose namespaces it joins; with another file than
    /// `config.json`, if one is given, from the bundle's directory.
    ///
    /// # Errors
    /// As [`Bundle::load`]; [`Error::Bundle`] for namespaces that cannot be joined.
    pub fn load_joining(dir: &Path, file: Option<&Path>, store: &Store) -> Result<(Self, Option<Joining>)> {
        let mut read = read_spec(dir, file)?;
        let joining = joining::resolve(store, &read.file, &mut read.spec)?;
        let role = if joining.is_some() { Role::Beside } else { Role::Alone };
        Ok((Self::check(read, role)?, joining))
    }

    fn check(read: Read, role: Role) -> Result<Self> {
        let Read { dir, file, spec, unknown_capabilities } = read;
        let refuse = Refusals { file: &file };
        if !spec.version().starts_with("1.") {
            return Err(refuse.because(
                "ociVersion",
                format!("{:?} is not a version this runtime knows; 1.x is expected", spec.version()),
            ));
        }
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| refuse.because("root", "is missing; the path of the root file system is expected"))?;
        if root.path().as_os_str().is_empty() {
            return Err(refuse.because("root.path", "is empty; the path of the root file system is expected"));
        }
        let rootfs = fs::canonicalize(dir.join(root.path())).map_err(|e| {
            refuse.because("root.path", format!("{} cannot be used: {e}", dir.join(root.path()).display()))
        })?;
        if !rootfs.is_dir() {
            return Err(refuse.because("root.path", format!("{} is not a directory", rootfs.display())));
        }
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| refuse.because("process", "is missing; a container without a process cannot be started"))?;
        check_process(&file, "process", process)?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| refuse.because("linux", "is missing; this runtime runs Linux containers"))?;
        check_linux(&refuse, &spec, linux, role)?;
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            check_mount(&refuse, &dir, index, mount, role)?;
        }
        Ok(Self { dir, file, spec, rootfs, role, unknown_capabilities })
    }

    /// Refuses the hooks of some points, on behalf of a caller that does not run those.
    ///
    /// # Errors
    /// [`Error::Bundle`] with the first of the points that has any.
    pub fn refuse_hooks(&self, points: &[Point]) -> Result<()> {
        let Some(hooks) = self.spec.hooks() else { return Ok(()) };
        let Some(point) = points.iter().find(|point| !point.of(hooks).is_empty()) else { return Ok(()) };
        let name = point.name();
        Err(Refusals { file: &self.file }.because(
            format!("hooks.{name}"),
            format!("{name} hooks run inside the container's namespaces, where this shim does not run programs of the host; remove them"),
        ))
    }

    /// What of the container's mounts can be seen on the host, in order.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn visible(&self) -> Result<Vec<Visible>> {
        let sources = self.mount_sources()?;
        let mounts = self.spec.mounts().iter().flatten().zip(sources);
        let seen = mounts.map(|(mount, source)| Visible {
            source: if let MountSource::Host(path) = source { Some(path) } else { None },
            destination: mount.destination().clone(),
            read_only: mount.options().iter().flatten().any(|option| option == "ro" || option == "rro"),
        });
        Ok(seen.collect())
    }

    /// What each mount is made from, in order.
    pub(crate) fn mount_sources(&self) -> Result<Vec<MountSource>> {
        let refuse = Refusals { file: &self.file };
        self.spec
            .mounts()
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, m)| check_mount(&refuse, &self.dir, i, m, self.role))
            .collect()
    }

    /// Whether it is to have all devices of the machine.
    pub(crate) fn wants_all_devices(&self) -> bool {
        self.spec.linux().as_ref().is_some_and(wants_all_devices)
    }

    /// Whether the container may only read a device, by the rules of its devices' cgroup.
    pub(crate) fn is_read_only_device(&self, device: &LinuxDevice) -> bool {
        let resources = self.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let rules = resources.and_then(|resources| resources.devices().as_ref());
        let own = |rule: &&LinuxDeviceCgroup| {
            rule.allow() && rule.major() == Some(device.major()) && rule.minor() == Some(device.minor())
        };
        let access = rules.and_then(|rules| rules.iter().rev().find(own)).and_then(|rule| rule.access().clone());
        access.is_some_and(|access| !access.contains('w'))
    }

    /// Opens a block device of the host, by its number: the path is the container's.
    pub(crate) fn open_block_device(&self, index: usize, device: &LinuxDevice, read_only: bool) -> Result<OwnedFd> {
        let refuse = Refusals { file: &self.file };
        let (major, minor) = (device.major(), device.minor());
        let path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
            .ok()
            .and_then(|link| Some(Path::new("/dev").join(link.file_name()?)));
        let flags = if read_only { OFlags::RDONLY } else { OFlags::RDWR } | OFlags::CLOEXEC;
        let opened = path.as_deref().map(|path| rustix::fs::open(path, flags, Mode::empty()));
        let failed = |problem: String| refuse.because(format!("linux.devices[{index}]"), problem);
        match (opened, path) {
            (Some(Ok(opened)), Some(path)) => {
                let found = rustix::fs::fstat(&opened).map_err(|e| failed(e.to_string()))?;
                let same =
                    (i64::from(libc::major(found.st_rdev)), i64::from(libc::minor(found.st_rdev))) == (major, minor);
                if same { Ok(opened) } else { Err(failed(format!("{} is not {major}:{minor}", path.display()))) }
            }
            (Some(Err(error)), Some(path)) => {
                Err(failed(format!("{} ({major}:{minor}) cannot be opened: {error}", path.display())))
            }
            _ => Err(failed(format!("there is no block device {major}:{minor} on this host"))),
        }
    }

    /// Refuses the host's network, unless the configuration has a way to it.
    ///
    /// # Errors
    /// [`Error::Bundle`].
    pub fn check_host_network(&self, model: Internetworking) -> Result<()> {
        if self.network_namespace() != NetworkNamespace::Host || model == Internetworking::Passt {
            return Ok(());
        }
        Err(Refusals { file: &self.file }.because(
            "linux.namespaces",
            "lists no network namespace, which asks for the host's network (hostNetwork in Kubernetes); a virtual machine cannot share it: add \
             {\"type\": \"network\"}, or set internetworking_model = \"passt\" for one that reaches what the host reaches",
        ))
    }

    /// The network namespace that is asked for.
    pub fn network_namespace(&self) -> NetworkNamespace {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let network = namespaces.into_iter().flatten().find(|n| n.typ() == LinuxNamespaceType::Network);
        match network.map(|network| network.path().clone()) {
            Some(Some(path)) => NetworkNamespace::Path(path),
            Some(None) => NetworkNamespace::New,
            None => NetworkNamespace::Host,
        }
    }
}

/// Checks a process, the container's or one to be executed in it.
///
/// # Errors
/// [`Error::Bundle`].
pub fn check_process(file: &Path, field: &str, process: &Process) -> Result<()> {
    let refuse = Refusals { file };
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(refuse.because(format!("{field}.args"), "is empty; the program to run is expected"));
    }
    if !process.cwd().is_absolute() {
        let problem = format!("{:?} is not an absolute path", process.cwd());
        return Err(refuse.because(format!("{field}.cwd"), problem));
    }
    let strings = args.iter().map(|arg| ("args", arg)).chain(process.env().iter().flatten().map(|e| ("env", e)));
    for (name, value) in strings {
        if value.contains('\0') {
            return Err(refuse.because(format!("{field}.{name}"), format!("{value:?} contains a NUL byte")));
        }
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|earlier| earlier.typ() == limit.typ()) {
            return Err(refuse.because(format!("{field}.rlimits[{index}]"), format!("{} is listed twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            let problem =
                format!("the soft limit {} of {} is above the hard limit {}", limit.soft(), limit.typ(), limit.hard());
            return Err(refuse.because(format!("{field}.rlimits[{index}]"), problem));
        }
    }
    Ok(())
}

fn check_linux(refuse: &Refusals<'_>, spec: &Spec, linux: &Linux, role: Role) -> Result<()> {
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in namespaces.iter().enumerate() {
        let field = || format!("linux.namespaces[{index}]");
        if namespaces[..index].iter().any(|earlier| earlier.typ() == namespace.typ()) {
            return Err(refuse.because(field(), format!("the {} namespace is listed twice", namespace.typ())));
        }
        if namespace.typ() == LinuxNamespaceType::Network {
            // The guest shows the same network; it is looked at when the machine is made.
            continue;
        }
        if let Some(path) = namespace.path().as_ref().filter(|_| !is_shared(namespace.typ(), role)) {
            let problem = format!(
                "joining the {} namespace {} is not supported: the container has a kernel of its own; leave `path` out for a new one",
                namespace.typ(),
                path.display()
            );
            return Err(refuse.because(field(), problem));
        }
    }
    let has = |kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    for (kind, what) in [
        (LinuxNamespaceType::Mount, "the host's mounts"),
        (LinuxNamespaceType::Pid, "the host's processes (hostPID in Kubernetes)"),
        (LinuxNamespaceType::Ipc, "the host's IPC objects (hostIPC in Kubernetes)"),
    ] {
        if !has(kind) {
            let problem = format!(
                "lists no {kind} namespace, which asks for {what}; a virtual machine cannot share them: add {{\"type\": \"{kind}\"}}"
            );
            return Err(refuse.because("linux.namespaces", problem));
        }
    }
    if spec.hostname().is_some() && !has(LinuxNamespaceType::Uts) {
        return Err(
            refuse.because("hostname", "needs a uts namespace of its own: add {\"type\": \"uts\"} to linux.namespaces")
        );
    }
    if has(LinuxNamespaceType::User) && linux.uid_mappings().iter().flatten().next().is_none() {
        return Err(refuse.because("linux.uidMappings", "is empty; a user namespace needs at least one mapping"));
    }
    if !wants_all_devices(linux) {
        for (index, device) in linux.devices().iter().flatten().enumerate() {
            check_device(refuse, index, device)?;
        }
    }
    let sysctl = |name: &str| linux.sysctl().as_ref().is_some_and(|sysctl| sysctl.contains_key(name));
    if sysctl("kernel.hostname") {
        return Err(refuse.because("linux.sysctl", "has kernel.hostname, which is the field `hostname` of the bundle"));
    }
    if sysctl("kernel.domainname") && !has(LinuxNamespaceType::Uts) {
        let problem = "has kernel.domainname, which needs a uts namespace of its own: add {\"type\": \"uts\"} to linux.namespaces";
        return Err(refuse.because("linux.sysctl", problem));
    }
    if linux.intel_rdt().is_some() {
        return Err(refuse.because("linux.intelRdt", "a guest does not see the host's caches; leave it out"));
    }
    for path in linux.masked_paths().iter().flatten().chain(linux.readonly_paths().iter().flatten()) {
        if !Path::new(path).is_absolute() {
            return Err(
                refuse.because("linux.maskedPaths or linux.readonlyPaths", format!("{path:?} is not an absolute path"))
            );
        }
    }
    // The seccomp profile is checked by compiling it, for which the guest's architecture must be known.
    Ok(())
}

/// Whether a path names a namespace of the pod, which the guest has.
fn is_shared(kind: LinuxNamespaceType, role: Role) -> bool {
    use LinuxNamespaceType::{Ipc, Pid, Uts};
    matches!(role, Role::Member | Role::Beside) && matches!(kind, Ipc | Pid | Uts)
}

/// Whether a device means the same in every kernel.
pub(crate) fn is_universal(device: &LinuxDevice) -> bool {
    let known =
        |(major, minor, _): &(u64, u64, &str)| (*major as i64, *minor as i64) == (device.major(), device.minor());
    matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U) && UNIVERSAL_DEVICES.iter().any(known)
}

/// Whether a container may use every device and is given those of the host: what engines make of `--privileged`. It is the guest's own then
/// that it gets.
fn wants_all_devices(linux: &Linux) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    let all = |rule: &LinuxDeviceCgroup| {
        let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
        rule.allow()
            && rule.typ().is_none_or(|kind| kind == LinuxDeviceType::A)
            && any(rule.major())
            && any(rule.minor())
            && rule.access().as_ref().is_none_or(|access| ["r", "w", "m"].iter().all(|right| access.contains(right)))
    };
    rules.is_some_and(|rules| rules.iter().any(all))
        && linux.devices().iter().flatten().any(|device| !is_universal(device))
}

fn check_device(refuse: &Refusals<'_>, index: usize, device: &LinuxDevice) -> Result<()> {
    let field = format!("linux.devices[{index}]");
    if !device.path().is_absolute() {
        return Err(refuse.because(field, format!("{:?} is not an absolute path", device.path())));
    }
    match device.typ() {
        // Its contents become a disk of the guest; that it is there is found out by opening it.
        LinuxDeviceType::P | LinuxDeviceType::B => Ok(()),
        // Every container has it, as a link to that of its own terminals.
        LinuxDeviceType::C if (device.major(), device.minor()) == (5, 2) && device.path() == Path::new("/dev/ptmx") => {
            Ok(())
        }
        _ if is_universal(device) => Ok(()),
        _ => Err(refuse.because(
            field,
            format!(
                "{} ({}:{}) is a device of the host's kernel and cannot be given to a virtual machine; remove it",
                device.path().display(),
                device.major(),
                device.minor()
            ),
        )),
    }
}

fn check_mount(refuse: &Refusals<'_>, dir: &Path, index: usize, mount: &Mount, role: Role) -> Result<MountSource> {
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
        return Ok(MountSource::Guest);
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

/// `f_type` of a file system in memory and of one of huge pages (statfs(2)).
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(edit: impl FnOnce(&mut serde_json::Value)) -> (tempfile::TempDir, Result<Bundle>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        let mut config = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]},
        });
        edit(&mut config);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let loaded = Bundle::load(dir.path(), Role::Alone);
        (dir, loaded)
    }

    #[track_caller]
    fn refused(edit: impl FnOnce(&mut serde_json::Value), field: &str, words: &str) {
        let text = bundle(edit).1.unwrap_err().chain();
        assert!(text.contains("config.json") && text.contains(field) && text.contains(words), "{text}");
    }

    #[test]
    fn a_plain_bundle_is_accepted() {
        let (dir, loaded) = bundle(|_| ());
        assert_eq!(loaded.unwrap().rootfs, fs::canonicalize(dir.path().join("rootfs")).unwrap());
    }

    #[test]
    fn what_is_wrong_is_refused_with_file_field_and_expectation() {
        refused(|c| c["process"]["args"] = serde_json::json!([]), "process.args", "the program to run is expected");
        refused(|c| c["process"]["user"] = serde_json::json!({"uid": "root"}), "process.user.uid", "string");
        let limit = serde_json::json!({"type": "RLIMIT_CORE", "soft": 1, "hard": 1});
        refused(|c| c["process"]["rlimits"] = serde_json::json!([limit, limit]), "process.rlimits[1]", "listed twice");
        refused(|c| c["process"]["cwd"] = "here".into(), "process.cwd", "not an absolute path");
        refused(|c| c["root"]["path"] = "nowhere".into(), "root.path", "No such file");
        refused(|c| c["root"]["path"] = "config.json".into(), "root.path", "not a directory");
        refused(|c| c["process"]["args"] = 7.into(), "process.args", "expected a sequence");
        refused(|c| c["ociVersion"] = "7".into(), "ociVersion", "1.x is expected");
        refused(|c| c["mounts"][0]["destination"] = "".into(), "mounts[0].destination", "is empty");
        refused(|c| c["mounts"][0]["destination"] = "/a/../b".into(), "mounts[0].destination", "a plain path");
        refused(|c| c["linux"]["sysctl"] = serde_json::json!({"kernel.hostname": "h"}), "linux.sysctl", "`hostname`");
        refused(|c| c["linux"]["intelRdt"] = serde_json::json!({"closID": "c"}), "linux.intelRdt", "caches");
        refused(
            |c| c["mounts"][0] = serde_json::json!({"destination": "/x", "type": "bind", "source": "/no/such"}),
            "mounts[0].source",
            "/no/such",
        );
    }

    #[test]
    fn capabilities_that_do_not_exist_are_left_out_and_told() {
        let names = serde_json::json!(["CAP_KILL", "CAP_TEST", "CAP_OTHER", "CAP_TEST"]);
        let loaded = bundle(|c| c["process"]["capabilities"] = serde_json::json!({"bounding": names})).1.unwrap();
        assert_eq!(loaded.unknown_capabilities, ["CAP_TEST", "CAP_OTHER"]);
        let sets = loaded.spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        refused(
            |c| c["process"]["capabilities"] = serde_json::json!({"bounding": [7]}),
            "process.capabilities",
            "string",
        );
    }

    #[test]
    fn devices_of_the_guests_own_kernel_are_accepted() {
        let device = |path: &str, major: i64, minor: i64| {
            let device = serde_json::json!([{"path": path, "type": "c", "major": major, "minor": minor}]);
            bundle(|c| c["linux"]["devices"] = device).1
        };
        device("/dev/kmsg", 1, 11).unwrap();
        device("/dev/ptmx", 5, 2).unwrap();
        for (path, major, minor) in [("/dev/mem", 1, 1), ("/dev/other", 5, 2)] {
            let text = device(path, major, minor).unwrap_err().chain();
            assert!(text.contains("linux.devices[0]") && text.contains("host's kernel"), "{text}");
        }
    }

    #[test]
    fn what_a_machine_cannot_share_is_refused() {
        let without = |kind: &'static str| {
            move |c: &mut serde_json::Value| {
                c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
            }
        };
        refused(without("pid"), "linux.namespaces", "the host's processes");
        refused(
            |c| c["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into(),
            "linux.namespaces[0]",
            "kernel of its own",
        );
        refused(
            |c| c["mounts"][0] = serde_json::json!({"destination": "/x", "options": ["bind"], "source": "/proc"}),
            "mounts[0].source",
            "the host's proc file system",
        );
    }

    #[test]
    fn the_hosts_network_is_for_those_who_have_a_way_to_it() {
        let (_dir, loaded) = bundle(|c| drop(c["linux"]["namespaces"].as_array_mut().unwrap().remove(2)));
        let loaded = loaded.unwrap();
        assert_eq!(loaded.network_namespace(), NetworkNamespace::Host);
        loaded.check_host_network(Internetworking::Passt).unwrap();
        let text = loaded.check_host_network(Internetworking::TcFilter).unwrap_err().chain();
        assert!(text.contains("linux.namespaces") && text.contains("the host's network"), "{text}");
        let own = bundle(|_| {}).1.unwrap();
        own.check_host_network(Internetworking::None).unwrap();
    }

    #[test]
    fn devices_of_the_host_are_refused_but_those_of_a_privileged_container_are_the_guests() {
        let kvm = serde_json::json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
        refused(|c| c["linux"]["devices"] = kvm.clone(), "linux.devices[0]", "the host's kernel");
        let (_dir, loaded) = bundle(|c| {
            c["linux"]["devices"] = kvm.clone();
            c["linux"]["resources"] = serde_json::json!({"devices": [{"allow": true, "access": "rwm"}]});
        });
        assert!(loaded.unwrap().wants_all_devices());
        let (_dir, loaded) = bundle(|c| {
            c["linux"]["resources"] = serde_json::json!({"devices": [{"allow": true, "access": "rwm"}]});
        });
        assert!(!loaded.unwrap().wants_all_devices());
    }

    #[test]
    fn what_can_be_seen_on_the_host_is_what_is_the_hosts() {
        let (_dir, loaded) = bundle(|c| {
            c["mounts"] = serde_json::json!([
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
            ]);
        });
        let seen = loaded.unwrap().visible().unwrap();
        let visible = |source: Option<&str>, destination: &str, read_only| Visible {
            source: source.map(Into::into),
            destination: destination.into(),
            read_only,
        };
        assert_eq!(seen, [visible(None, "/proc", false), visible(Some("/usr"), "/data", true)]);
    }

    #[test]
    fn who_runs_no_hooks_of_a_point_can_refuse_them() {
        let (_dir, loaded) = bundle(|c| c["hooks"] = serde_json::json!({"createContainer": [{"path": "/bin/true"}]}));
        let loaded = loaded.unwrap();
        loaded.refuse_hooks(&[Point::Poststop]).unwrap();
        let error = loaded.refuse_hooks(&[Point::Poststop, Point::CreateContainer]).unwrap_err().chain();
        assert!(error.contains("hooks.createContainer") && error.contains("inside the container"), "{error}");
    }

    #[test]
    fn a_missing_or_malformed_configuration_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Bundle::load(dir.path(), Role::Alone).unwrap_err().chain().contains("config.json"));
        fs::write(dir.path().join("config.json"), "{\"ociVersion\": ").unwrap();
        let text = Bundle::load(dir.path(), Role::Alone).unwrap_err().chain();
        assert!(text.contains("line 1"), "{text}");
        assert!(Bundle::load(&dir.path().join("no"), Role::Alone).unwrap_err().chain().contains("open the bundle"));
    }

    #[test]
    fn a_bind_of_a_universal_device_becomes_the_guests_own() {
        let (_dir, loaded) = bundle(|c| {
            c["mounts"][0] = serde_json::json!({"destination": "/dev/null", "type": "bind", "source": "/dev/null"})
        });
        assert_eq!(loaded.unwrap().mount_sources().unwrap(), [MountSource::GuestPath("/dev/null")]);
    }
}
