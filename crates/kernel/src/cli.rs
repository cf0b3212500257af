//! `kata-kernel`'s command line, as data: the program parses it, and its manual page is made from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::Arch;

/// Builds the guest's kernel from source and configuration fragments.
#[derive(Debug, Parser)]
#[command(name = "kata-kernel", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the kernel. Does nothing if the output was made from the same inputs already.
    Build {
        /// What to build.
        #[command(flatten)]
        source: SourceArgs,
        /// How to configure it.
        #[command(flatten)]
        fragments: FragmentArgs,
        /// The directory to write; its contents are replaced as a whole [default: guest-kernel/ARCH in the cache].
        #[arg(long)]
        output: Option<PathBuf>,
        /// Compilers at a time [default: one for each processor].
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        jobs: Option<u16>,
    },
    /// Configure only: check that everything that is wanted is there, and print the kernel's whole configuration.
    Config {
        /// What to build.
        #[command(flatten)]
        source: SourceArgs,
        /// How to configure it.
        #[command(flatten)]
        fragments: FragmentArgs,
        /// Write it to this file instead.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Get the source only: download, verify and unpack it into the cache. Prints where it is.
    Fetch {
        /// What to build.
        #[command(flatten)]
        source: SourceArgs,
    },
}

/// Which source.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The guest's architecture: x86_64, aarch64, s390x or ppc64le [default: this machine's].
    #[arg(long)]
    pub arch: Option<Arch>,
    /// A tarball of the Linux source, or a directory with it, instead of the one that sources.toml names.
    #[arg(long, value_name = "TARBALL|DIR")]
    pub source: Option<PathBuf>,
    /// The SHA-256 that the tarball must have.
    #[arg(long, requires = "source", value_name = "HEX")]
    pub sha256: Option<String>,
    /// The file that names the version to take and its checksum.
    #[arg(long, default_value = "kernel/sources.toml", value_name = "FILE")]
    pub sources: PathBuf,
    /// Take the very version that sources.toml names, or none.
    #[arg(long, conflicts_with = "source")]
    pub locked: bool,
    /// Where sources and objects are kept [default: KATA_CACHE, or kata in the user's cache directory].
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Which fragments.
#[derive(Debug, Args)]
pub struct FragmentArgs {
    /// The directory of the configuration fragments.
    #[arg(long, default_value = "kernel/fragments", value_name = "DIR")]
    pub fragments: PathBuf,
    /// A fragment of your own, which wins over those of the directory; may be repeated.
    #[arg(long = "fragment", value_name = "FILE")]
    pub own: Vec<PathBuf>,
}
