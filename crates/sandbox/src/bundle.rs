//! Reading a bundle and refusing, before anything is started, what is wrong with it or what a virtual machine cannot
//! honour. (OCI runtime specification, `bundle.md` and `config.md`.)

mod mounts;
mod read;
#[cfg(test)]
mod tests;

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use config::Internetworking;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Process, Spec};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub(crate) use self::mounts::MountSource;
use self::mounts::check_mount;
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
