//! `kata-osbuilder`: builds what a guest boots from. The work is in the library.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use osbuilder::{
    Architecture, Build, Check, Compression, Contents, DEFAULT_MODULES, Disk, FileSystem, Format, Options, Source,
};

/// Builds what a guest boots from.
#[derive(Debug, Parser)]
#[command(name = "kata-osbuilder", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take the kernel proper out of a distribution's bzImage, as an ELF file that boots by PVH; for 64-bit Arm, the Image.
    Kernel {
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

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct KernelSource {
    /// A directory a kernel package was unpacked into; its boot/vmlinuz-* is used.
    #[arg(long)]
    package_dir: Option<PathBuf>,
    /// The kernel image, a bzImage or an ELF file; for 64-bit Arm an Image, plain, compressed or as an EFI application.
    #[arg(long)]
    vmlinuz: Option<PathBuf>,
}

/// Without either the initrd has no modules, for a kernel with everything built in.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct ModulesSource {
    /// A directory a kernel package was unpacked into; its lib/modules/* is used.
    #[arg(long)]
    package_dir: Option<PathBuf>,
    /// The modules of one kernel, lib/modules/VERSION.
    #[arg(long)]
    modules_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Where the root file system comes from: agent-only, debian, fedora, centos:7, clearlinux, alpine, oci:LAYOUT or dir:PATH.
    #[arg(long, default_value = "agent-only")]
    source: String,
    /// What is made of it.
    #[arg(long, value_enum, default_value_t = FormatArg::Initrd)]
    format: FormatArg,
    /// The file system in a disk image.
    #[arg(long, value_enum, default_value_t = FileSystemArg::Erofs)]
    fs: FileSystemArg,
    /// Make a disk image that is verified while it is read (the default).
    #[arg(long, overrides_with = "no_verity")]
    verity: bool,
    /// Make a disk image without verity.
    #[arg(long)]
    no_verity: bool,
    /// How an initrd is compressed.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    compression: CompressionArg,
    /// The agent to put in.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The Cargo.lock that the agent was built from, for the bill of materials.
    #[arg(long)]
    agent_lock: Option<PathBuf>,
    /// The guest's processor: x86_64, aarch64, s390x or ppc64le; this machine's or the agent's if not given.
    #[arg(long)]
    arch: Option<Architecture>,
    /// A definition of your own, instead of --source; `kata-osbuilder definition NAME` prints one to begin with.
    #[arg(long, conflicts_with = "source")]
    definition: Option<PathBuf>,
    /// The distribution's release, instead of the definition's.
    #[arg(long)]
    release: Option<String>,
    /// A repository, instead of the definition's; may be repeated. For apt: URL, or "URL SUITE COMPONENT...".
    #[arg(long = "repository")]
    repositories: Vec<String>,
    /// A file with the key that signs packages, instead of the definition's; may be repeated.
    #[arg(long = "key")]
    keys: Vec<PathBuf>,
    /// A package besides the definition's; may be repeated.
    #[arg(long = "package")]
    packages: Vec<String>,
    /// Show what the tools say while they work.
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    modules_source: ModulesSource,
    /// A module the guest needs; may be repeated. Those it depends on are found.
    #[arg(long = "module", default_values_t = DEFAULT_MODULES.map(String::from))]
    modules: Vec<String>,
    /// The file to write.
    #[arg(long)]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// An archive that the kernel unpacks into memory.
    Initrd,
    /// A disk.
    Image,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FileSystemArg {
    Erofs,
    Ext4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompressionArg {
    None,
    Zstd,
}

impl ModulesSource {
    fn directory(self) -> Result<Option<PathBuf>, osbuilder::Error> {
        let from_package = self.package_dir.map(|package| osbuilder::modules_in_package(&package)).transpose()?;
        Ok(from_package.or(self.modules_dir))
    }
}

fn build(args: BuildArgs) -> Result<(), osbuilder::Error> {
    let compression = match args.compression {
        CompressionArg::None => Compression::None,
        CompressionArg::Zstd => Compression::Zstd,
    };
    let file_system = match args.fs {
        FileSystemArg::Erofs => FileSystem::Erofs,
        FileSystemArg::Ext4 => FileSystem::Ext4,
    };
    let format = match args.format {
        FormatArg::Initrd => Format::Initrd(compression),
        FormatArg::Image if args.compression != CompressionArg::None => {
            return Err(osbuilder::Error::Usage(
                "--compression is for an initrd; a disk image is not compressed".into(),
            ));
        }
        FormatArg::Image => Format::Image(Disk { file_system, verity: !args.no_verity }),
    };
    let build = Build {
        source: match args.definition {
            Some(path) => Source::Definition(path),
            None => args.source.parse()?,
        },
        format,
        agent: args.agent,
        agent_lock: args.agent_lock,
        options: Options {
            architecture: args.arch,
            release: args.release,
            repositories: args.repositories,
            keys: args.keys,
            packages: args.packages,
        },
        modules_directory: args.modules_source.directory()?,
        modules: args.modules,
        output: args.output,
        shown: args.verbose,
    };
    let built = osbuilder::build(&build)?;
    let (output, length) = (build.output.display(), built.length);
    eprintln!("built {output} for {}: {length} bytes, {} packages", built.architecture, built.packages);
    if let Some(verity) = built.verity {
        println!("{verity}");
    }
    Ok(())
}

fn run(command: Command) -> Result<(), osbuilder::Error> {
    match command {
        Command::Kernel { source, output } => {
            let from_package = source.package_dir.map(|package| osbuilder::kernel_in_package(&package)).transpose()?;
            // One of the two is there: the group is required.
            let vmlinuz = from_package.or(source.vmlinuz).unwrap_or_default();
            osbuilder::kernel(&vmlinuz, &output)
        }
        Command::Build(args) => build(*args),
        Command::Check { image, runtime, kernel, program } => {
            let checked = osbuilder::check(&Check { image: image.clone(), runtime, kernel, program })?;
            let seconds = checked.took.as_secs_f64();
            println!(
                "{}, {}: a container ran in it and said {:?}; {seconds:.1} s",
                image.display(),
                checked.kind,
                checked.said
            );
            Ok(())
        }
        Command::Definition { name } => match osbuilder::definition(&name) {
            Some(text) => {
                print!("{text}");
                Ok(())
            }
            None => Err(osbuilder::Error::Usage(format!(
                "there is no definition {name}; there are {}",
                osbuilder::definition_names().join(", ")
            ))),
        },
        Command::Verify { image, parameters } => {
            let parameters = osbuilder::verify(&image, parameters.as_deref())?;
            println!("{}: all {} blocks match the root hash", image.display(), parameters.data_blocks);
            Ok(())
        }
        Command::Initrd { agent, source, modules, output } => {
            let directory = source.directory()?;
            let contents = Contents { agent: &agent, modules_directory: directory.as_deref(), modules: &modules };
            osbuilder::initrd(&contents, &output)
        }
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match osbuilder::catch_interrupts().and_then(|()| run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("kata-osbuilder: {message}");
            ExitCode::FAILURE
        }
    }
}
