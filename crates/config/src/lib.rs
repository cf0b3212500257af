//! `configuration.toml`: where it is found, what it may say, and what holds when it says nothing.
//!
//! No key is required and neither is a file: [`Config::load`] on a machine without one returns [`Config::default`].
//!
//! # Where it is looked for
//!
//! The first of these that is given decides alone, and must then exist: the path the caller passes, the environment
//! variable `KATA_CONF_FILE`. Otherwise the first existing file of [`SEARCHED`] is read. After it come the drop-ins:
//! `config.d/*.toml` in the directory of that file, in the order of their names; without a file, those of the first
//! directory of [`SEARCHED`] that has any. A later file's key replaces an earlier one's.
//!
//! # What it may say
//!
//! The names are those that users of Kata know ([`Config`] lists them by their table), and only those that have an effect. Any
//! other is refused with its file and line, because a key that is silently ignored is a setting somebody relies on. A key
//! of upstream Kata that is not carried out here is refused as just that, so that whoever moves a node over knows that it
//! is not misspelt.
//!
//! # Files named by the configuration
//!
//! QEMU, the guest kernel and the guest image are not looked for while loading, so that `delete` or `state` work on a machine
//! where they are missing; [`Qemu::locate_guest`] and [`Qemu::locate_program`] do it, and their errors name every place.

mod annotations;
mod endpoint;
mod explain;
mod file;
mod keys;
mod locate;
mod upstream;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use annotations::PREFIX as ANNOTATION_PREFIX;
pub use endpoint::OtlpEndpoint;
pub use explain::{Annotation, Explained, Origin, chosen_by};
pub use keys::{KEYS, Key, plain};
pub use locate::{GuestFiles, GuestImage};
pub use upstream::has as is_upstreams;

/// Where the configuration is looked for, in this order.
pub const SEARCHED: [&str; 3] = [
    "/etc/kata-containers/configuration.toml",
    "/usr/share/defaults/kata-containers/configuration.toml",
    "/opt/kata/share/defaults/kata-containers/configuration.toml",
];

/// Environment variable that names the configuration file.
pub const FILE_VARIABLE: &str = "KATA_CONF_FILE";

/// Everything the configuration decides, defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Table `[hypervisor.qemu]`.
    pub qemu: Qemu,
    /// Table `[agent.kata]`.
    pub agent: Agent,
    /// Table `[runtime]`.
    pub runtime: Runtime,
    /// The files that were read, in the order they were applied. Empty when there was none.
    pub sources: Vec<PathBuf>,
}

/// Table `[hypervisor.qemu]`: the virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// `path`: the QEMU program, absolute. `None`: found by [`Qemu::locate_program`].
    pub path: Option<PathBuf>,
    /// `kernel`: the guest kernel, absolute. `None`: found by [`Qemu::locate_guest`].
    pub kernel: Option<PathBuf>,
    /// `initrd`: the guest image as an initial RAM disk, absolute. Not with `image`. `None` for both: found by
    /// [`Qemu::locate_guest`].
    pub initrd: Option<PathBuf>,
    /// `image`: the guest image as a disk, absolute.
    pub image: Option<PathBuf>,
    /// `kernel_verity_params`: by what the guest checks `image`. `None`: what the file of the same name with `.verity` appended
    /// says, if it exists.
    pub kernel_verity_params: Option<String>,
    /// `kernel_params`: appended to the guest's kernel command line. One line of printable ASCII, at most
    /// [`MAX_KERNEL_PARAMS`] bytes. Default: empty.
    pub kernel_params: String,
    /// `machine_type`: QEMU's name of the machine, without options. `None`: the driver's choice for the architecture.
    pub machine_type: Option<String>,
    /// `accelerator`, a key of our own: what executes the guest's code. Default: [`Accelerator::Auto`].
    pub accelerator: Accelerator,
    /// `default_vcpus`: virtual CPUs, 1 to [`MAX_VCPUS`]. In the file a negative number means as many as the host has, and 0
    /// the default. Default: 1.
    pub default_vcpus: u32,
    /// `default_memory`: the guest's memory in MiB, from [`MIN_MEMORY_MIB`] to the host's memory. Default: 2048, which is
    /// a limit and not a reservation: the host provides a page when the guest first touches it.
    pub default_memory: u32,
    /// `default_maxvcpus`: virtual CPUs that the guest may grow to by its containers' limits, from `default_vcpus` to [`MAX_VCPUS`]. In the file
    /// 0 means as many as the host has, which is the default.
    pub default_maxvcpus: u32,
    /// `default_maxmemory`: memory that the guest may grow to by its containers' limits, MiB. In the file 0 means the host's memory, which is
    /// the default.
    pub default_maxmemory: u32,
    /// `pcie_root_port`: devices that can be plugged into a running pod: network interfaces that come after its start, and disks. 0 to 16.
    /// Default: 8. Where they would be of no use, for a container that has its sandbox for itself, there are as few as can be.
    pub pcie_root_port: u32,
    /// `enable_annotations`: keys of this configuration that a pod's annotations may set, as names in which `.*` stands for any text.
    /// Default: none.
    pub enable_annotations: Vec<String>,
    /// `virtio_fs_cache`: what the guest may remember about shared files. Default: [`VirtioFsCache::Auto`].
    pub virtio_fs_cache: VirtioFsCache,
    /// `enable_debug`: let the guest's kernel log everything to its console. Default: false.
    pub enable_debug: bool,
}

/// Table `[agent.kata]`: the agent in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// `dial_timeout`, in seconds in the file, 1 to 3600: how long the guest may take from the start of the hypervisor to the
    /// agent's first answer. Default: 60 s.
    pub dial_timeout: Duration,
    /// `liveness_timeout`, in seconds in the file, 0 to 86400: how long the guest may show no sign of life, or one of the machine's processes be
    /// stopped, before the machine is ended. 0: for ever. Default: 120 s.
    pub liveness_timeout: Duration,
    /// `enable_debug`: let the agent log what it does to the guest's console. Default: false.
    pub enable_debug: bool,
    /// `debug_console_enabled`: let the agent run programs outside of containers. Default: false.
    pub debug_console_enabled: bool,
}

/// Table `[runtime]`: the host side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// `enable_debug`: log what is done on the host. Default: false.
    pub enable_debug: bool,
    /// `enable_tracing`: export the timeline of each start to [`Runtime::otlp_endpoint`]. Default: false.
    pub enable_tracing: bool,
    /// `otlp_endpoint`, a key of our own: where that is exported to. Default: `http://localhost:4318/v1/traces`.
    pub otlp_endpoint: OtlpEndpoint,
    /// `internetworking_model`: how the interfaces of a network namespace reach the guest. Default: [`Internetworking::TcFilter`].
    pub internetworking_model: Internetworking,
    /// `static_sandbox_resource_mgmt`: the machine has the size that is known when it is started, and never another. Default: false.
    pub static_sandbox_resource_mgmt: bool,
    /// `debug_steps`, a key of our own: a socket, absolute, to which each step of a sandbox is told before it goes on. No annotation can set
    /// it. Default: none.
    pub debug_steps: Option<PathBuf>,
}

/// How the interfaces of a network namespace reach the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Internetworking {
    /// Each has a tap beside it, and the kernel passes on what arrives at one to the other. Works with every kind of interface.
    #[default]
    TcFilter,
    /// Each has a macvtap on top of it.
    Macvtap,
    /// As `TcFilter`. A container that asks for the host's network, which is refused otherwise, is given it behind passt(1).
    Passt,
    /// None does: the guest has its loopback only.
    None,
}

/// What executes the guest's code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where a probe shows that it works, else QEMU's TCG with a warning.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// TCG: emulation, slow but everywhere.
    Tcg,
}

/// What the guest may remember about shared files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtioFsCache {
    /// Nothing: every access asks the host.
    Never,
    /// Names and attributes, no contents.
    Metadata,
    /// Everything, for about a second, and contents until the file is opened again.
    #[default]
    Auto,
    /// Everything, for good. Only for files that nobody on the host changes.
    Always,
}

/// Most virtual CPUs of a guest: QEMU's q35 without an interrupt-remapping IOMMU addresses 255.
pub const MAX_VCPUS: u32 = 255;

/// Most of [`Qemu::pcie_root_port`].
pub const MAX_ROOT_PORTS: u32 = 16;

/// Least memory of a guest, MiB: below it a distribution's kernel and the initrd do not fit.
pub const MIN_MEMORY_MIB: u32 = 64;

/// Longest `kernel_params`, bytes. x86 kernels read 2048 bytes of command line, and our own part needs some of it.
pub const MAX_KERNEL_PARAMS: usize = 1024;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that was named or found cannot be read.
    #[error("cannot read the configuration file {} ({given_by})", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why this one is read.
        given_by: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file says something it may not.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// The key, where one is to blame, and what was expected.
        message: String,
    },
    /// A pod's annotation says something it may not.
    #[error("annotation {name}: {message}")]
    Annotation {
        /// Its name.
        name: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A file the virtual machine needs does not exist.
    #[error("{what} was not found: looked at {}; {remedy}", looked_at.join(", "))]
    Missing {
        /// What it is for.
        what: &'static str,
        /// Every path that was tried.
        looked_at: Vec<String>,
        /// What the user can do.
        remedy: String,
    },
}

impl Default for Qemu {
    fn default() -> Self {
        Qemu {
            path: None,
            kernel: None,
            initrd: None,
            image: None,
            kernel_verity_params: None,
            kernel_params: String::new(),
            machine_type: None,
            accelerator: Accelerator::default(),
            default_vcpus: 1,
            default_memory: 2048,
            default_maxvcpus: file::host_cpus(),
            default_maxmemory: file::host_memory_mib(),
            pcie_root_port: 8,
            enable_annotations: Vec::new(),
            virtio_fs_cache: VirtioFsCache::default(),
            enable_debug: false,
        }
    }
}

impl Default for Agent {
    fn default() -> Self {
        Agent {
            dial_timeout: Duration::from_secs(60),
            liveness_timeout: Duration::from_secs(120),
            enable_debug: false,
            debug_console_enabled: false,
        }
    }
}

impl Config {
    /// Finds and reads the configuration; see the crate's description for where. `explicit` is the path a caller was
    /// given, by an option or by containerd.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Invalid`].
    pub fn load(explicit: Option<&Path>) -> Result<Config, Error> {
        let variable = env::var_os(FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let given = match (explicit, variable) {
            (Some(path), _) => Some((path.to_path_buf(), "named by the caller".to_owned())),
            (None, Some(path)) => Some((path, format!("named by the environment variable {FILE_VARIABLE}"))),
            (None, None) => None,
        };
        file::load(given, &SEARCHED.map(PathBuf::from))
    }
}
