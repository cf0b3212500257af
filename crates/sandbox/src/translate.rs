//! From the caller's configuration to the guest's: what is shared, under which name, and what the agent is told.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use agent_api::{
    CONTAINER_NAMESPACE, GUEST_SHARED_DIR, GUEST_STORAGE_DIR, POD_NAMESPACE, SeccompFilter,
    storage::{DiskDevice, Storage, StorageSource},
};
use hypervisor::Arch;
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, Mount, Spec};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    bundle::{Bundle, MountSource, is_universal},
    files,
    hooks::{Point, Told},
    overlay,
    pod::HostCpus,
};

/// A file or directory of the host that the guest shall see. Its descriptor travels beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Where, below the shared directory.
    pub(crate) name: String,
    /// Whether the guest is kept from writing, on the host's side.
    pub(crate) read_only: bool,
    /// Whether what the host mounts later beneath it arrives.
    #[serde(default)]
    pub(crate) follow: bool,
}

/// A disk that the guest shall have. Its descriptor travels beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskFile {
    /// By which the guest finds it.
    pub(crate) serial: String,
    /// Whether the guest is kept from writing.
    pub(crate) read_only: bool,
}

/// A volume of files and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileVolume {
    /// Name of the guest's storage.
    pub(crate) storage: String,
    /// Directory of the host.
    pub(crate) source: PathBuf,
}

/// What the agent is told, and what must have been attached by then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Parts {
    pub(crate) spec: Spec,
    pub(crate) seccomp: Option<SeccompFilter>,
    pub(crate) shares: Vec<Share>,
    pub(crate) disks: Vec<DiskFile>,
    pub(crate) storages: Vec<Storage>,
    pub(crate) devices: Vec<DiskDevice>,
    pub(crate) volumes: Vec<FileVolume>,
    /// Whether the guest's own devices shall be shown.
    #[serde(default)]
    pub(crate) all_devices: bool,
    /// What hooks in the container are told.
    #[serde(default)]
    pub(crate) told: Option<String>,
    /// Where on the host it may run.
    #[serde(default)]
    pub(crate) cpus: Option<HostCpus>,
}

impl Parts {
    /// Reads the volumes of files anew.
    pub(crate) fn read_volumes(&mut self) -> Result<()> {
        for volume in &self.volumes {
            let storage = self.storages.iter_mut().find(|storage| storage.name == volume.storage);
            if let Some(StorageSource::Files { entries }) = storage.map(|storage| &mut storage.source) {
                *entries = files::read(&volume.source)?;
            }
        }
        Ok(())
    }
}

/// A container that was checked and can be created ([`Sandbox::create`](crate::pod::Sandbox::create)).
#[derive(Debug)]
pub struct Prepared {
    pub(crate) parts: Parts,
    /// Descriptors of `parts.shares`.
    pub(crate) trees: Vec<OwnedFd>,
    /// Descriptors of `parts.disks`.
    pub(crate) disks: Vec<OwnedFd>,
}

/// What a container's root file system is made from.
#[derive(Debug)]
pub enum Rootfs {
    /// A tree of the host, from `open_tree(2)`.
    Tree {
        /// The tree.
        tree: OwnedFd,
        /// Whether the guest is kept from writing.
        read_only: bool,
    },
    /// A disk, or a file with its contents.
    Disk {
        /// Opened for reading, and for writing unless it is read-only.
        file: OwnedFd,
        /// Whether the guest is kept from writing.
        read_only: bool,
        /// Type of its file system.
        fs_type: String,
        /// Options for mounting it, as in mount(8).
        options: Vec<String>,
    },
}

/// Disks of the first container of a sandbox.
#[derive(Debug, Default)]
pub struct FirstDisks(Vec<hypervisor::Disk>);

impl From<FirstDisks> for Vec<hypervisor::Disk> {
    fn from(disks: FirstDisks) -> Self {
        disks.0
    }
}

impl Prepared {
    /// Opens what is shared, in the caller's mount namespace, and rewrites every host path.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::Devices`]: what cannot be given to a guest.
    pub fn new(id: &str, bundle: &Bundle, rootfs: Rootfs, arch: Arch) -> Result<Self> {
        let mut prepared = Self {
            parts: Parts {
                spec: bundle.spec.clone(),
                seccomp: None,
                shares: Vec::new(),
                disks: Vec::new(),
                storages: Vec::new(),
                devices: Vec::new(),
                volumes: Vec::new(),
                all_devices: false,
                told: None,
                cpus: None,
            },
            trees: Vec::new(),
            disks: Vec::new(),
        };
        let root = prepared.rootfs(id, rootfs);
        if let Some(spec_root) = prepared.parts.spec.root_mut() {
            spec_root.set_path(root.into());
        }
        let sources = bundle.mount_sources()?;
        let mut mounts = prepared.parts.spec.mounts().clone().unwrap_or_default();
        for (index, (mount, source)) in mounts.iter_mut().zip(sources).enumerate() {
            prepared.mount(id, index, mount, source)?;
        }
        prepared.parts.spec.set_mounts(Some(mounts));
        prepared.devices(id, bundle)?;
        prepared.linux(bundle, arch)?;
        prepared.hooks(id, bundle);
        let descriptors = prepared.trees.len() + prepared.disks.len();
        if descriptors + 3 > crate::passing::MAX_DESCRIPTORS {
            return Err(Error::State(format!(
                "the container has {} bind mounts and disks; {} are the most that can be shared",
                descriptors - 1,
                crate::passing::MAX_DESCRIPTORS - 4
            )));
        }
        Ok(prepared)
    }

    /// Its disks, to be in the machine from the start. They stay in it until its end.
    pub fn take_disks(&mut self) -> FirstDisks {
        let disks = std::mem::take(&mut self.parts.disks).into_iter().zip(std::mem::take(&mut self.disks));
        let disk = |(disk, file): (DiskFile, OwnedFd)| hypervisor::Disk {
            serial: disk.serial,
            file,
            read_only: disk.read_only,
        };
        FirstDisks(disks.map(disk).collect())
    }

    /// What the container may use.
    pub fn limits(&self) -> crate::pod::Limits {
        crate::pod::Limits::of(&self.parts.spec)
    }

    fn rootfs(&mut self, id: &str, rootfs: Rootfs) -> String {
        let name = format!("{id}/rootfs");
        match rootfs {
            Rootfs::Tree { tree, read_only } => self.share(Share { name, read_only, follow: false }, tree),
            Rootfs::Disk { file, read_only, fs_type, options } => {
                let serial = self.disk(&name, file, read_only);
                self.storage(Storage { name, source: StorageSource::Disk { serial, fs_type }, options, of_pod: false })
            }
        }
    }

    /// Gives the guest's path.
    fn share(&mut self, share: Share, tree: OwnedFd) -> String {
        let path = format!("{GUEST_SHARED_DIR}/{}", share.name);
        self.parts.shares.push(share);
        self.trees.push(tree);
        path
    }

    /// Gives the guest's path. A storage of the pod is named by as many containers, and as often, as use it.
    fn storage(&mut self, storage: Storage) -> String {
        let path = format!("{GUEST_STORAGE_DIR}/{}", storage.name);
        if !self.parts.storages.iter().any(|known| known.name == storage.name) {
            self.parts.storages.push(storage);
        }
        path
    }

    /// Gives the disk's serial number: 17 bytes, and 20 are possible.
    fn disk(&mut self, name: &str, file: OwnedFd, read_only: bool) -> String {
        let serial = format!("k{:016x}", hash(name));
        self.parts.disks.push(DiskFile { serial: serial.clone(), read_only });
        self.disks.push(file);
        serial
    }

    fn mount(&mut self, id: &str, index: usize, mount: &mut Mount, source: MountSource) -> Result<()> {
        // Old configurations leave the first slash out.
        mount.set_destination(Path::new("/").join(mount.destination()));
        let guest = match source {
            MountSource::Guest => return Ok(()),
            MountSource::GuestPath(path) => path.to_owned(),
            MountSource::Overlay => self.overlay(format!("{id}/mounts/{index}"), mount)?,
            MountSource::Host(path) => {
                let share = share_of(format!("{id}/mounts/{index}"), mount);
                let options = mount.options().as_deref().unwrap_or_default();
                let asks = |name: &str| options.iter().any(|option| option == name);
                let tree = open_tree(&path, !asks("bind") || asks("rbind"))?;
                self.share(share, tree)
            }
            MountSource::Files(path) => {
                let name = volume_name(&path);
                let entries = files::read(&path)?;
                self.parts.volumes.push(FileVolume { storage: name.clone(), source: path });
                let source = StorageSource::Files { entries };
                self.storage(Storage { name, source, options: Vec::new(), of_pod: true })
            }
            MountSource::Memory { path, size } => {
                let source = StorageSource::Memory { size };
                self.storage(Storage { name: volume_name(&path), source, options: owner(&path)?, of_pod: true })
            }
            MountSource::HugePages { path, page_size, size } => {
                let size = if size == 0 { self.huge_page_limit(page_size) } else { size };
                if size == 0 {
                    let problem = format!(
                        "{}: neither the volume nor the container has a limit for huge pages of {page_size} bytes; a guest sets them apart beforehand, so one is needed",
                        path.display()
                    );
                    return Err(Error::State(problem));
                }
                let source = StorageSource::HugePages { page_size, size };
                self.storage(Storage { name: volume_name(&path), source, options: owner(&path)?, of_pod: true })
            }
        };
        mount.set_source(Some(guest.into()));
        Ok(())
    }

    /// Shares an overlay, which is a bind mount for the guest. Gives the guest's path.
    fn overlay(&mut self, name: String, mount: &mut Mount) -> Result<String> {
        let share = share_of(name, mount);
        let mut options = mount.options().clone().unwrap_or_default();
        let tree = overlay::open(&options, share.read_only)
            .map_err(|e| Error::io(format!("make the overlay for {}", mount.destination().display()), e))?;
        options.retain(|option| !overlay::is_own(option));
        options.insert(0, "rbind".into());
        mount.set_typ(Some("bind".into()));
        mount.set_options(Some(options));
        Ok(self.share(share, tree))
    }

    /// How many bytes of huge pages of a size the container may have; 0 when it is not limited.
    fn huge_page_limit(&self, page_size: u64) -> u64 {
        let resources = self.parts.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let limits = resources.and_then(|resources| resources.hugepage_limits().as_ref()).into_iter().flatten();
        let of_size = limits.into_iter().find(|limit| parse_page_size(limit.page_size()) == Some(page_size));
        of_size.and_then(|limit| u64::try_from(limit.limit()).ok()).unwrap_or(0)
    }

    /// Block devices become disks.
    fn devices(&mut self, id: &str, bundle: &Bundle) -> Result<()> {
        let mut devices = bundle.spec.linux().as_ref().and_then(|linux| linux.devices().clone()).unwrap_or_default();
        if bundle.wants_all_devices() {
            // What the engine lists are the host's.
            devices.retain(is_universal);
            if let Some(linux) = self.parts.spec.linux_mut() {
                linux.set_devices(Some(devices.clone()));
            }
            self.parts.all_devices = true;
        }
        for (index, device) in devices.iter().enumerate().filter(|(_, device)| device.typ() == LinuxDeviceType::B) {
            let read_only = bundle.is_read_only_device(device);
            let file = bundle.open_block_device(index, device, read_only)?;
            let serial = self.disk(&format!("{id}/devices/{index}"), file, read_only);
            let path = device.path().to_string_lossy().into_owned();
            self.parts.devices.push(DiskDevice { serial, path, read_only });
        }
        Ok(())
    }

    /// The guest runs those that belong into the container.
    fn hooks(&mut self, id: &str, bundle: &Bundle) {
        let mut hooks = oci_spec::runtime::Hooks::default();
        let inside = bundle.spec.hooks().as_ref().map(|all| Point::StartContainer.of(all)).unwrap_or_default();
        if inside.is_empty() {
            self.parts.spec.set_hooks(None);
            return;
        }
        hooks.set_start_container(Some(inside.to_vec()));
        self.parts.spec.set_hooks(Some(hooks));
        self.parts.told = Some(Told::of_bundle(id, bundle, 0).at(Point::StartContainer));
    }

    fn linux(&mut self, bundle: &Bundle, arch: Arch) -> Result<()> {
        let Some(linux) = self.parts.spec.linux_mut() else { return Ok(()) };
        if let Some(profile) = linux.seccomp() {
            self.parts.seccomp = Some(crate::seccomp::compile(profile, arch).map_err(|problem| Error::Bundle {
                file: bundle.file.clone(),
                field: "linux.seccomp".into(),
                problem,
            })?);
        }
        linux.set_seccomp(None);
        if let Some(resources) = linux.resources_mut() {
            self.parts.cpus = HostCpus::take(resources).map_err(|problem| Error::Bundle {
                file: bundle.file.clone(),
                field: "linux.resources.cpu.cpus".into(),
                problem,
            })?;
        }
        // The host's cgroup path says nothing in the guest, where the agent names its own.
        linux.set_cgroups_path(None);
        if let Some(namespaces) = linux.namespaces_mut() {
            // One machine is one pod: its containers share the guest's own network.
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
            for namespace in namespaces {
                let joins = |path: &PathBuf| !path.to_string_lossy().starts_with(CONTAINER_NAMESPACE);
                if namespace.path().as_ref().is_some_and(joins) {
                    namespace.set_path(Some(POD_NAMESPACE.into()));
                }
            }
        }
        Ok(())
    }
}

/// How a directory is shared, by the options of its mount.
fn share_of(name: String, mount: &Mount) -> Share {
    let options = mount.options().as_deref().unwrap_or_default();
    // Later options win, as in mount(8).
    let read_only = options.iter().rev().find(|o| ["ro", "rw", "rro"].contains(&o.as_str())).is_some_and(|o| o != "rw");
    let follow = options.iter().any(|option| option == "rslave" || option == "slave");
    Share { name, read_only, follow }
}

/// A size of huge pages as the OCI specification writes it: `2MB` is 2 MiB.
fn parse_page_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "B" | "" => 0,
        "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn hash(text: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The same for all containers of a pod that use a volume.
fn volume_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("volumes/{:016x}-{name}", hash(path))
}

/// A volume looks as the kubelet made it on the host.
fn owner(path: &Path) -> Result<Vec<String>> {
    let metadata = fs::metadata(path).map_err(|e| Error::io(format!("look at the volume {}", path.display()), e))?;
    Ok(vec![
        format!("mode={:o}", metadata.mode() & 0o7777),
        format!("uid={}", metadata.uid()),
        format!("gid={}", metadata.gid()),
    ])
}

/// Clones a tree of the caller's mount namespace.
///
/// # Errors
/// [`Error::Devices`].
pub fn open_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    Ok(devices::share::open_tree(path, recursive)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_huge_pages_are_read() {
        assert_eq!(parse_page_size("2MB"), Some(2 << 20));
        assert_eq!(parse_page_size("1GB"), Some(1 << 30));
        assert_eq!(parse_page_size("64KB"), Some(64 << 10));
        assert_eq!(parse_page_size("2MiB"), None);
        assert_eq!(parse_page_size("much"), None);
    }
}
