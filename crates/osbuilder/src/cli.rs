//! `kata-osbuilder`'s command line, as data: the program parses it, and its manual page is made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{Architecture, DEFAULT_MODULES};

/// Builds what a guest boots from.
#[derive(Debug, Parser)]
#[command(name = "kata-osbuilder", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take the kernel proper out of a distribution's bzImage, as an ELF file that boots by PVH; for 64-bit Arm, the Image.
    Kernel {
        /// Where it comes from.
        #[command(flatten)]
        source: KernelSource,
        /// The file to write.
        #[arg(long)]
        output: PathBuf,
    },
    /// Build a guest image.
    Build(Box<BuildArgs>),
    /// Boot an image through the installed runtime and run one container in it.
    Check {
        /// The image: an initrd or a disk.
        image: PathBuf,
        /// The runtime; the one beside this program or in PATH if not given.
        #[arg(long)]
        runtime: Option<PathBuf>,
        /// The guest kernel; the runtime's own if not given.
        #[arg(long)]
        kernel: Option<PathBuf>,
        /// A static program that answers --version, to run in the container; this one if not given.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// Print a definition that comes along, to copy and change.
    Definition {
        /// Its name: debian, fedora, centos:7, clearlinux or alpine.
        name: String,
    },
    /// Check every block of a disk image against its verity parameters.
    Verify {
        /// The disk image.
        image: PathBuf,
        /// The parameters, as in IMAGE.verity, which is read otherwise.
        #[arg(long)]
        parameters: Option<String>,
    },
    /// Write an initrd with the agent and the kernel modules it needs: short for `build --source agent-only --format initrd`.
    Initrd {
        /// The agent: a static program.
        #[arg(long)]
        agent: PathBuf,
        /// Where it comes from.
        #[command(flatten)]
        source: ModulesSource,
        /// A module the guest needs; may be repeated. Those it depends on are found.
        #[arg(long = "module", default_values_t = DEFAULT_MODULES.map(String::from))]
        modules: Vec<String>,
        /// The file to write.
        #[arg(long)]
        output: PathBuf,
    },
}

/// Where a kernel comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct KernelSource {
    /// A directory a kernel package was unpacked into; its boot/vmlinuz-* is used.
    #[arg(long)]
    pub package_dir: Option<PathBuf>,
    /// The kernel image, a bzImage or an ELF file; for 64-bit Arm an Image, plain, compressed or as an EFI application.
    #[arg(long)]
    pub vmlinuz: Option<PathBuf>,
}

/// Without either the initrd has no modules, for a kernel with everything built in.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct ModulesSource {
    /// A directory a kernel package was unpacked into; its lib/modules/* is used.
    #[arg(long)]
    pub package_dir: Option<PathBuf>,
    /// The modules of one kernel, lib/modules/VERSION.
    #[arg(long)]
    pub modules_dir: Option<PathBuf>,
}

/// Options of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Where the root file system comes from: agent-only, debian, fedora, centos:7, clearlinux, alpine, oci:LAYOUT or dir:PATH.
    #[arg(long, default_value = "agent-only")]
    pub source: String,
    /// What is made of it.
    #[arg(long, value_enum, default_value_t = FormatArg::Initrd)]
    pub format: FormatArg,
    /// The file system in a disk image.
    #[arg(long, value_enum, default_value_t = FileSystemArg::Erofs)]
    pub fs: FileSystemArg,
    /// Make a disk image that is verified while it is read (the default).
    #[arg(long, overrides_with = "no_verity")]
    pub verity: bool,
    /// Make a disk image without verity.
    #[arg(long)]
    pub no_verity: bool,
    /// How an initrd is compressed.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub compression: CompressionArg,
    /// The agent to put in.
    #[arg(long)]
    pub agent: Option<PathBuf>,
    /// The Cargo.lock that the agent was built from, for the bill of materials.
    #[arg(long)]
    pub agent_lock: Option<PathBuf>,
    /// The guest's processor: x86_64, aarch64, s390x or ppc64le; this machine's or the agent's if not given.
    #[arg(long)]
    pub arch: Option<Architecture>,
    /// A definition of your own, instead of --source; `kata-osbuilder definition NAME` prints one to begin with.
    #[arg(long, conflicts_with = "source")]
    pub definition: Option<PathBuf>,
    /// The distribution's release, instead of the definition's.
    #[arg(long)]
    pub release: Option<String>,
    /// A repository, instead of the definition's; may be repeated. For apt: URL, or "URL SUITE COMPONENT...".
    #[arg(long = "repository")]
    pub repositories: Vec<String>,
    /// A file with the key that signs packages, instead of the definition's; may be repeated.
    #[arg(long = "key")]
    pub keys: Vec<PathBuf>,
    /// A package besides the definition's; may be repeated.
    #[arg(long = "package")]
    pub packages: Vec<String>,
    /// Show what the tools say while they work.
    #[arg(long, short)]
    pub verbose: bool,
    /// Where modules come from.
    #[command(flatten)]
    pub modules_source: ModulesSource,
    /// A module the guest needs; may be repeated. Those it depends on are found.
    #[arg(long = "module", default_values_t = DEFAULT_MODULES.map(String::from))]
    pub modules: Vec<String>,
    /// The file to write.
    #[arg(long)]
    pub output: PathBuf,
}

/// Kinds of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// An archive that the kernel unpacks into memory.
    Initrd,
    /// A disk.
    Image,
}

/// File systems of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileSystemArg {
    /// Read-only, small.
    Erofs,
    /// The common one.
    Ext4,
}

/// Compressions of an initrd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompressionArg {
    /// Not at all.
    None,
    /// By Zstandard.
    Zstd,
}
