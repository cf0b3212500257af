//! Virtual machines: one small trait, and a module for each hypervisor that implements it.
//!
//! # Shape
//!
//! [`Hypervisor`] makes machines, [`Vm`] is one that was made. What a hypervisor can do is data ([`Capabilities`]), so that
//! a caller decides before it starts anything instead of meeting "not supported" half way. [`VmConfig`] names no hypervisor;
//! what only one understands is in that driver's own configuration ([`QemuConfig`]). Both traits are object safe: their
//! asynchronous methods return boxed futures, which costs one allocation for operations that happen a few times in a machine's life.
//!
//! # States of a machine
//!
//! ```text
//!            start()                     pause()
//!   (none) ----------> [running] <---------------------> [paused]
//!                          |             resume()            |
//!                          |                                 |
//!                          `---- the guest powers off, ------'
//!                                panics or reboots; QEMU dies;
//!                                kill(); the Vm is dropped
//!                                          |
//!                                          v
//!                                       [ended]
//! ```
//!
//! [`Hypervisor::start`] returns as soon as the hypervisor's process exists. The guest runs at once: nothing waits for the
//! control connection, which is set up meanwhile. A hypervisor that refuses its configuration therefore shows as a
//! machine that ended ([`Vm::wait`] says why), not as an error of `start`.
//!
//! | method | running | paused | ended |
//! |---|---|---|---|
//! | `take_channel` | the stream, once | the same | the same; it reads as closed |
//! | `pid`, `console_tail`, `stderr_tail`, `stages`, `vcpus`, `memory_mib` | yes | yes | yes, what was last known |
//! | `pause` | → paused | stays paused | [`Error::Ended`] |
//! | `resume` | stays running | → running | [`Error::Ended`] |
//! | `add_…`, `remove_…`, `set_…` | yes | yes, but what needs the guest's answer waits in vain | [`Error::Ended`] |
//! | `wait` | pends | pends | the reason, as often as asked |
//! | `kill` | → ended | → ended | nothing happens |
//!
//! Dropping a [`Vm`] ends the machine, whatever its state.
//!
//! # Concurrency
//!
//! A driver spawns its background work on the tokio runtime that calls `start`; a current-thread runtime is
//! enough. For QEMU ([`qemu`]) that is one task that reads the guest's console and QEMU's standard error into bounded buffers and reaps
//! the process, and one that speaks QMP. Both end with the machine.
//!
//! # Trust
//!
//! The guest controls every byte of the console and the channel, and a guest that broke out of its machine controls the
//! hypervisor's process and so QMP and standard error too. None of these can make this crate allocate without bound or
//! wait for ever, and what is shown of them is stripped of control characters.

mod accelerator;
mod arch;
mod devices;
mod error;
mod exit;
mod image;
mod kvm;
pub mod qemu;
mod sys;
mod tail;

use std::{
    future::Future,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
};

use tokio::net::UnixStream;

pub use accelerator::{Accelerator, Choice, choose_accelerator, kvm_remedy};
pub use arch::Arch;
pub use devices::{Disk, Link, Nic};
pub use error::Error;
pub use exit::{ExitCause, ExitReason};
pub use qemu::{Qemu, QemuConfig};
pub use tail::printable;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The future an object-safe asynchronous method returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A virtual machine to be made, in terms every hypervisor understands.
#[derive(Debug)]
pub struct VmConfig {
    /// The guest kernel, which also decides the guest's architecture ([`Arch::of_kernel`]): for x86_64 an ELF `vmlinux` with a PVH entry,
    /// which boots fastest, or a `bzImage`; for aarch64 an `Image` or `Image.gz`.
    pub kernel: PathBuf,
    /// What the guest has as its first root file system.
    pub image: GuestImage,
    /// Appended to the driver's own kernel command line, so that it wins where both set the same parameter.
    pub kernel_params: String,
    /// Number of virtual CPUs at the start, 1 to [`Capabilities::max_vcpus`].
    pub vcpus: u32,
    /// How many [`Vm::set_vcpus`] may make of them: `vcpus`, if they never become more.
    pub max_vcpus: u32,
    /// Memory of the guest at the start, MiB.
    pub memory_mib: u64,
    /// How much [`Vm::set_memory`] may make of it, MiB: `memory_mib`, if it never becomes more.
    pub max_memory_mib: u64,
    /// Disks besides the guest image.
    pub disks: Vec<Disk>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// How many disks and interfaces may be added while the machine runs, besides those of `disks` and `nics`; 0 unless
    /// [`Capabilities::hotplug`]. Only if it is not 0 can any of them be removed.
    pub hotplug_slots: u32,
    /// A directory shared with the guest.
    pub shared_fs: Option<SharedFs>,
    /// Let the guest's kernel log everything to its console, and keep the console in [`CONSOLE_LOG`] of `run_dir`.
    pub debug: bool,
    /// A directory of this machine alone, mode 0700, for what needs a path. The caller removes it.
    pub run_dir: PathBuf,
    /// User and group id the hypervisor runs as; needs no entry in the password database. Should be one that nothing else on
    /// the host uses. `None`: the caller's own, but without capabilities.
    pub uid: Option<u32>,
}

/// What a guest has as its first root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestImage {
    /// An initial RAM disk: a cpio archive in the "newc" format, compressed in a way the kernel knows or not at all. The guest
    /// has a copy of it in its memory.
    Initrd(PathBuf),
    /// A disk that the guest reads and cannot write to, shared by all guests that have it. It has a GUID partition table with
    /// an erofs or ext4 file system in the first partition, whose init is the agent. The kernel must have what it takes built in.
    Disk {
        /// The file.
        path: PathBuf,
        /// Parameters of dm-verity, by which the guest's kernel checks every block it reads, with the hash tree in the second partition:
        /// `root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…`. `None`: what the file of the same name with `.verity`
        /// appended says, if it exists.
        verity: Option<String>,
    },
}

impl GuestImage {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            GuestImage::Initrd(path) | GuestImage::Disk { path, .. } => path,
        }
    }
}

/// A virtio-fs device whose server is reached over an open connection.
#[derive(Debug)]
pub struct SharedFs {
    /// Name the guest mounts it by: 1 to 35 bytes of letters, digits, `.`, `_` and `-`.
    pub tag: String,
    /// Connected Unix socket that speaks the front-end side of vhost-user.
    pub socket: OwnedFd,
}

/// Name, in [`VmConfig::run_dir`], of the file that keeps the guest's console when [`VmConfig::debug`] is set. It holds the first
/// [`CONSOLE_LOG_LIMIT`] bytes.
pub const CONSOLE_LOG: &str = "console.log";

/// Size of [`CONSOLE_LOG`] at most, bytes: the guest writes it and must not fill the host's memory or disk.
pub const CONSOLE_LOG_LIMIT: u64 = 4 * 1024 * 1024;

/// What a hypervisor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// [`VmConfig::shared_fs`] may be set.
    pub shared_fs: bool,
    /// [`Vm::pause`] and [`Vm::resume`] work.
    pub pause: bool,
    /// Most virtual CPUs of a machine.
    pub max_vcpus: u32,
    /// Disks, interfaces and memory may come and go while the machine runs.
    pub hotplug: bool,
    /// Virtual CPUs may be added while the machine runs: [`VmConfig::max_vcpus`] may be more than [`VmConfig::vcpus`].
    pub vcpu_hotplug: bool,
    /// Most disks of a machine, besides its image.
    pub max_disks: u32,
    /// Most network interfaces of a machine.
    pub max_nics: u32,
}

/// One finished step of a machine's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// What was finished: `spawned`, `qmp-ready`, `running`, or, by the guest, `channel-opened`.
    pub name: &'static str,
    /// The host's `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
}

/// A program that runs virtual machines.
pub trait Hypervisor: Send + Sync {
    /// What it can do. May be called at any time and never changes.
    fn capabilities(&self) -> Capabilities;

    /// Finds what would make [`Hypervisor::start`] with these of [`VmConfig`] fail, before anything has been started or created.
    /// May be called at any time; `start` does the same again. Of `uid` it matters only whether there is one.
    ///
    /// # Errors
    /// [`Error::File`] names the program, kernel or image that is missing, unreadable or of the wrong format, and the
    /// remedy; [`Error::Setting`] names a setting and what was expected.
    fn check(&self, kernel: &Path, image: &GuestImage, uid: Option<u32>) -> Result<()>;

    /// Starts a machine. Returns when its process exists; see the crate's description.
    ///
    /// Must be called within a tokio runtime, from a thread that lives as long as the machine shall: the kernel ends the
    /// machine when the thread that started it ends, so that no machine outlives the process that answers for it.
    ///
    /// # Errors
    /// Those of [`Hypervisor::check`]; [`Error::Setting`] if `config` asks for what the hypervisor cannot do;
    /// [`Error::Spawn`] and [`Error::Io`] when the process cannot be made.
    fn start(&self, config: VmConfig) -> BoxFuture<'_, Result<Box<dyn Vm>>>;
}

/// A virtual machine. See the crate's description for what may be called when.
pub trait Vm: Send + Sync {
    /// Host end of the virtio-serial port [`agent_api::CHANNEL_PORT`]. The first call has it, later ones get `None`. Bytes
    /// written before the guest opens the port wait in it.
    fn take_channel(&mut self) -> Option<UnixStream>;

    /// The hypervisor's process. After the machine ended the number may belong to another process.
    fn pid(&self) -> u32;

    /// The last lines the guest wrote to its console, oldest first: at most [`TAIL_LINES`], without control characters,
    /// from a buffer of 64 KiB. After a panic of its kernel they start a little before that, so that the cause is not lost above a long
    /// trace.
    fn console_tail(&self) -> Vec<String>;

    /// The last lines the hypervisor wrote to its standard output and error, in the same form.
    fn stderr_tail(&self) -> Vec<String>;

    /// When the steps of the start were finished, in that order; those that are still ahead are missing.
    fn stages(&self) -> Vec<Stage>;

    /// Stops the virtual CPUs.
    ///
    /// # Errors
    /// [`Error::Ended`], or an error of the control connection.
    fn pause(&self) -> BoxFuture<'_, Result<()>>;

    /// Lets the virtual CPUs go on.
    ///
    /// # Errors
    /// As [`Vm::pause`].
    fn resume(&self) -> BoxFuture<'_, Result<()>>;

    /// Adds a disk. When this returns the guest has been told of it.
    ///
    /// An addition or removal that was begun is finished, whether this future is awaited or dropped, and one waits for the other.
    ///
    /// # Errors
    /// [`Error::Setting`] for a disk that makes no sense; [`Error::Fixed`] if the machine takes none while it runs; [`Error::Full`] if it
    /// has no place left; [`Error::Device`] names the disk and what was refused. Then nothing of the disk is left.
    fn add_disk(&self, disk: Disk) -> BoxFuture<'_, Result<()>>;

    /// Removes a disk: asks the guest to let go of it, waits until it has, and closes the disk's file.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none with this serial number; [`Error::Held`] if the guest has not let go of it within
    /// [`REMOVAL_DEADLINE`], after which this may be tried again; and as [`Vm::add_disk`].
    fn remove_disk(&self, serial: &str) -> BoxFuture<'_, Result<()>>;

    /// Adds a network interface. Otherwise like [`Vm::add_disk`].
    ///
    /// # Errors
    /// As [`Vm::add_disk`].
    fn add_nic(&self, nic: Nic) -> BoxFuture<'_, Result<()>>;

    /// Removes a network interface. Otherwise like [`Vm::remove_disk`].
    ///
    /// # Errors
    /// As [`Vm::remove_disk`].
    fn remove_nic(&self, id: &str) -> BoxFuture<'_, Result<()>>;

    /// Lets the guest have as many virtual CPUs. Takes none away: with as many or more nothing happens. It is the guest that
    /// takes them into service, and not more than it is told: some machines have those that may come from the start, idle. Gives how many
    /// there are.
    ///
    /// # Errors
    /// [`Error::Setting`] for more than [`VmConfig::max_vcpus`], and errors of the control connection.
    fn set_vcpus(&self, vcpus: u32) -> BoxFuture<'_, Result<u32>>;

    /// Gives the guest memory or takes some, in steps of 2 MiB, rounded up. Waits until the guest has done its part, or has
    /// done nothing for a few seconds: it cannot give back what it uses. Gives what it then has, MiB.
    ///
    /// # Errors
    /// [`Error::Setting`] for less than [`VmConfig::memory_mib`] or more than [`VmConfig::max_memory_mib`], and errors of the control
    /// connection.
    fn set_memory(&self, mib: u64) -> BoxFuture<'_, Result<u64>>;

    /// Virtual CPUs that it has, as far as this process knows.
    fn vcpus(&self) -> u32;

    /// Memory that it has, MiB, as far as this process knows.
    fn memory_mib(&self) -> u64;

    /// Waits until the machine has ended and its process is reaped. May be abandoned and called again.
    fn wait(&self) -> BoxFuture<'_, ExitReason>;

    /// Ends the machine at once, without a word to the guest, and waits, 10 s at most, until its process is reaped.
    fn kill(&self) -> BoxFuture<'_, ()>;
}

/// How long a guest may take to let go of a device: a busy one takes a second, and a port of PCI Express blinks for five before.
pub const REMOVAL_DEADLINE: std::time::Duration = std::time::Duration::from_secs(15);

/// Lines returned by [`Vm::console_tail`] and [`Vm::stderr_tail`] at most: what fits on a screen.
pub const TAIL_LINES: usize = 24;
