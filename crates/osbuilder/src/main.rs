//! `kata-osbuilder`: builds what a guest boots from. The work is in the library.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use osbuilder::{Contents, DEFAULT_MODULES};

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
    /// Write an initrd with the agent and the kernel modules it needs.
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

fn run(command: Command) -> Result<(), osbuilder::Error> {
    match command {
        Command::Kernel { source, output } => {
            let from_package = source.package_dir.map(|package| osbuilder::kernel_in_package(&package)).transpose()?;
            // One of the two is there: the group is required.
            let vmlinuz = from_package.or(source.vmlinuz).unwrap_or_default();
            osbuilder::kernel(&vmlinuz, &output)
        }
        Command::Initrd { agent, source, modules, output } => {
            let from_package = source.package_dir.map(|package| osbuilder::modules_in_package(&package)).transpose()?;
            let directory = from_package.or(source.modules_dir);
            let contents = Contents { agent: &agent, modules_directory: directory.as_deref(), modules: &modules };
            osbuilder::initrd(&contents, &output)
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
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
