//! QEMU as the hypervisor.
//!
//! # How it is started
//!
//! Everything QEMU shares with us is an inherited descriptor: QMP, the guest's console, the channel and the vhost-user
//! connection are socket pairs, so that nothing lies in the file system that somebody else could connect to. The kernel
//! and the guest image are opened by us and named to QEMU as `/proc/self/fd/N`, so that it needs no way through the directories above
//! them. The process (see [`jail::QEMU`]) has a user id of its own, no capabilities, no way to new privileges, its own network, IPC
//! and host name namespaces, no core dumps, no foreign descriptors, and dies with its parent; QEMU's own seccomp filter (`-sandbox`) takes away
//! fork, exec and changing ids.
//!
//! # What the machine has
//!
//! A q35, microvm or (for Arm) virt without everything that can be left out, and a few devices: a serial port for the console,
//! virtio-serial for the channel, virtio-fs if there is something to share, a read-only disk if that is the guest image. `args/` gives the reason for each argument.
//!
//! # What comes and goes
//!
//! Disks and interfaces have places: the slots of one PCI bridge, or ports of PCI Express where there is no ACPI (`inventory.rs` has the
//! list). A machine without `hotplug_slots` has no such thing, and pays nothing for it. Files reach a running QEMU as
//! descriptors over QMP (`hotplug.rs`). Processors are plugged by ACPI, and memory is that of a virtio-mem device, which is empty at the start.
//!
//! # KVM and the user id
//!
//! With KVM, QEMU opens `/dev/kvm` itself. If the device's group may read and write it, QEMU gets that group as its
//! supplementary one. If it is root's alone, QEMU keeps root's user id, without any capability; [`crate::Vm::stderr_tail`] says so
//! in its first line. Making the device accessible to a group (`chgrp kvm /dev/kvm; chmod 660 /dev/kvm`) is the remedy.

mod args;
mod devices;
mod hotplug;
mod inventory;
mod machine;
mod process;
mod qmp;
mod version;

use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream as StdStream,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use jail::{Confinement, number, spawn};
use tokio::net::UnixStream;

pub use self::{qmp::converse, version::version};

use self::{
    args::{Descriptors, Model, Places},
    inventory::Inventory,
};
use crate::{
    Accelerator, Arch, BoxFuture, Capabilities, Error, GuestImage, Hypervisor, Result, Vm, VmConfig,
    image::{self, Image},
    sys::monotonic_ns,
};

/// Most virtual CPUs: what a q35 without an interrupt-remapping IOMMU addresses.
pub const MAX_VCPUS: u32 = 255;

/// Most memory, MiB: what Linux maps with four levels of page tables, by far more than any host has.
const MAX_MEMORY_MIB: u64 = 16 << 20;

/// What only QEMU understands.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The program, absolute.
    pub path: PathBuf,
    /// QEMU's name of the machine. For x86_64 guests `q35` or one of its versions, `pc-q35-…`, or `microvm`; for aarch64 guests
    /// `virt` or one of its versions, `virt-…`. `None`: the first of these.
    pub machine_type: Option<String>,
    /// What executes the guest's code. [`Accelerator::Auto`] lets QEMU itself try KVM and then TCG; callers should decide by
    /// [`crate::choose_accelerator`], which knows more.
    pub accelerator: Accelerator,
}

/// The driver. Holds nothing but its configuration; every machine is independent of it.
#[derive(Debug, Clone)]
pub struct Qemu {
    config: QemuConfig,
}

impl Qemu {
    /// A driver with this configuration. Checks nothing.
    pub fn new(config: QemuConfig) -> Self {
        Self { config }
    }

    /// Everything that is told from the kernel: itself, opened, and the machine that runs it.
    fn check_kernel(&self, kernel: &Path) -> Result<(File, &'static Model)> {
        let (file, arch) = image::open_kernel(kernel)?;
        self.check_program(arch)?;
        Ok((file, Model::find(arch, self.config.machine_type.as_deref())?))
    }

    fn check_program(&self, arch: Arch) -> Result<()> {
        let path = &self.config.path;
        let fail = |problem: String| Error::File {
            what: "QEMU program",
            path: path.clone(),
            problem,
            remedy: format!(
                "install {} or set path in the configuration to a {} program",
                arch.qemu_package(),
                arch.qemu_program()
            ),
        };
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => fail("does not exist".into()),
            _ => fail(format!("cannot be used ({error})")),
        })?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            return Err(fail("is not an executable file".into()));
        }
        // QEMU would say no more than that it does not know the machine.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let of = |arch: &Arch| name.starts_with(arch.qemu_program());
        match Arch::ALL.iter().find(|other| of(other)) {
            Some(other) if *other != arch => Err(Error::File {
                what: "QEMU program",
                path: path.clone(),
                problem: format!("runs {other} guests, but the guest kernel is for {arch}"),
                remedy: format!("set path in the configuration to a {} program, or remove it", arch.qemu_program()),
            }),
            _ => Ok(()),
        }
    }

    /// The files a machine boots from, opened and checked, and who QEMU is to be.
    fn open(&self, kernel: &Path, image: &GuestImage, uid: Option<u32>) -> Result<Opened> {
        let (kernel_file, model) = self.check_kernel(kernel)?;
        let image_file = image::open_image(image, model.arch())?;
        let privileged = rustix::process::geteuid().is_root();
        let identity = self.identity(uid.filter(|_| privileged));
        if identity.uid.is_some_and(|uid| uid != 0) {
            image::require_world_readable("guest kernel", kernel, &kernel_file)?;
            image::require_world_readable("guest image", image.path(), image_file.file())?;
        }
        Ok(Opened { kernel: kernel_file, image: image_file, model, identity, privileged })
    }

    fn check_demands(&self, config: &VmConfig) -> Result<()> {
        let refuse =
            |setting, value: String, expected: &str| Err(Error::Setting { setting, value, expected: expected.into() });
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return refuse("vcpus", config.vcpus.to_string(), "1 to 255 virtual CPUs are possible");
        }
        if config.max_vcpus < config.vcpus || config.max_vcpus > MAX_VCPUS {
            return refuse(
                "max_vcpus",
                config.max_vcpus.to_string(),
                "at least as many as vcpus and at most 255 are possible",
            );
        }
        if config.memory_mib == 0 {
            return refuse("memory_mib", "0".into(), "a guest needs memory");
        }
        if config.max_memory_mib < config.memory_mib || config.max_memory_mib > MAX_MEMORY_MIB {
            return refuse(
                "max_memory_mib",
                config.max_memory_mib.to_string(),
                "at least as much as memory_mib and at most 16 TiB are possible",
            );
        }
        for disk in &config.disks {
            disk.check()?;
        }
        for nic in &config.nics {
            nic.check()?;
        }
        if config.kernel_params.chars().any(|c| c.is_control()) {
            return refuse("kernel_params", config.kernel_params.clone(), "one line of text was expected");
        }
        if config.uid == Some(u32::MAX) {
            return refuse("uid", u32::MAX.to_string(), "that number means \"no user\" to the kernel");
        }
        let name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        // 36 bytes in the device's configuration space, and QEMU wants the last one to be 0.
        if let Some(fs) = &config.shared_fs
            && (fs.tag.is_empty() || fs.tag.len() > 35 || !fs.tag.chars().all(name))
        {
            return refuse("shared_fs tag", fs.tag.clone(), "1 to 35 letters, digits, '.', '_' and '-' were expected");
        }
        Ok(())
    }

    fn start_now(&self, mut config: VmConfig) -> Result<Box<dyn Vm>> {
        self.check_demands(&config)?;
        let Opened { kernel, image, model, identity, privileged } =
            self.open(&config.kernel, &config.image, config.uid)?;
        let Identity { uid, group, notice } = identity;
        let inventory = Inventory::new(model, self.config.accelerator, &config)?;

        let log = if config.debug { Some(open_console_log(&config.run_dir)?) } else { None };
        let (qmp, qmp_theirs) = socket_pair()?;
        let (console, console_theirs) = socket_pair()?;
        let (channel, channel_theirs) = socket_pair()?;
        let (stderr, stderr_theirs) = socket_pair()?;
        let kernel = OwnedFd::from(kernel);
        let image_file = image.file().try_clone().map_err(Error::io("duplicate a descriptor"))?.into();
        let descriptors = Descriptors {
            qmp: number(&qmp_theirs),
            console: number(&console_theirs),
            channel: number(&channel_theirs),
            kernel: number(&kernel),
            image: number(&image_file),
            shared_fs: config.shared_fs.as_ref().map(|fs| number(&fs.socket)),
            disks: config.disks.iter().map(|disk| number(&disk.file)).collect(),
            nics: config
                .nics
                .iter()
                .map(|nic| nic.link.descriptors().map(|fds| fds.iter().map(number).collect()))
                .collect(),
        };
        let arguments = args::arguments(&self.config, &inventory, &config, image.disk(), &descriptors)?;
        let mut inherit = vec![qmp_theirs, console_theirs, channel_theirs, kernel, image_file];
        inherit.extend(config.shared_fs.take().map(|fs| fs.socket));
        inherit.extend(config.disks.drain(..).map(|disk| disk.file));
        inherit.extend(config.nics.drain(..).flat_map(|nic| nic.link.into_descriptors().into_iter().flatten()));

        let mut command = Command::new(&self.config.path);
        let stdout = stderr_theirs.try_clone().map_err(Error::io("duplicate a descriptor"))?;
        command.args(arguments).current_dir("/").env_clear();
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr_theirs);
        let child = spawn(command, Confinement { declaration: &jail::QEMU, inherit, uid, group, privileged })
            .map_err(|(step, source)| Error::Spawn { path: self.config.path.clone(), step, source })?;
        let spawned_ns = monotonic_ns();
        let streams = machine::Streams { qmp, console, channel, stderr };
        let disk = image.disk();
        let image = machine::ImageFacts {
            path: config.image.path().to_path_buf(),
            is_disk: disk.is_some(),
            is_verified: disk.is_some_and(|disk| disk.verity.is_some()),
        };
        let facts = machine::Facts { spawned_ns, log, notice, image, inventory, vcpus: config.vcpus };
        Ok(Box::new(machine::Machine::new(child, streams, facts)?))
    }

    fn identity(&self, uid: Option<u32>) -> Identity {
        let nobody_else = Identity { uid, group: None, notice: None };
        if uid.is_none() || self.config.accelerator == Accelerator::Tcg {
            return nobody_else;
        }
        let Ok(device) = fs::metadata("/dev/kvm") else { return nobody_else };
        match device.mode() & 0o7777 {
            mode if mode & 0o006 == 0o006 => nobody_else,
            mode if mode & 0o060 == 0o060 => Identity { group: Some(device.gid()), ..nobody_else },
            mode => {
                let notice = format!(
                    "QEMU runs as root, without capabilities, because /dev/kvm has mode {mode:04o}: give it a group that may use it (chgrp kvm /dev/kvm; chmod 660 /dev/kvm)"
                );
                Identity { uid: Some(0), group: None, notice: Some(notice) }
            }
        }
    }
}

/// Who QEMU is to be.
struct Identity {
    /// User and group id; `None` is the caller.
    uid: Option<u32>,
    /// Supplementary group.
    group: Option<u32>,
    /// What the user should be told about that.
    notice: Option<String>,
}

/// What a machine is made of, as far as it can be looked at before it is made.
struct Opened {
    kernel: File,
    image: Image,
    model: &'static Model,
    identity: Identity,
    privileged: bool,
}

impl Hypervisor for Qemu {
    fn capabilities(&self) -> Capabilities {
        let model = Model::meant(&self.config.path, self.config.machine_type.as_deref());
        Capabilities {
            shared_fs: true,
            pause: true,
            max_vcpus: MAX_VCPUS,
            hotplug: model.places != Places::None,
            vcpu_hotplug: true,
            max_disks: model.room.disks,
            max_nics: model.room.nics,
        }
    }

    fn check(&self, kernel: &Path, image: &GuestImage, uid: Option<u32>) -> Result<()> {
        self.open(kernel, image, uid).map(drop)
    }

    fn start(&self, config: VmConfig) -> BoxFuture<'_, Result<Box<dyn Vm>>> {
        Box::pin(async move { self.start_now(config) })
    }
}

/// A connected pair: our end for tokio, theirs blocking, as a descriptor.
fn socket_pair() -> Result<(UnixStream, OwnedFd)> {
    let failed = Error::io("make a pair of sockets for QEMU");
    let (ours, theirs) = StdStream::pair().map_err(&failed)?;
    ours.set_nonblocking(true).map_err(&failed)?;
    Ok((UnixStream::from_std(ours).map_err(&failed)?, theirs.into()))
}

/// Where the console is kept for debugging.
fn open_console_log(run_dir: &Path) -> Result<File> {
    File::create(run_dir.join(crate::CONSOLE_LOG))
        .map_err(Error::io("create the console log in the sandbox's directory"))
}
