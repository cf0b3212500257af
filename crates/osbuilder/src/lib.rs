//! Builds what a guest boots from: the kernel as a plain ELF file, and guest images.
//!
//! # The kernel
//!
//! A distribution ships a bzImage: a small real-mode program that decompresses the kernel proper, relocates it and jumps to
//! it. In a virtual machine none of that is needed, and emulated it costs seconds. [`kernel`] takes the kernel proper out,
//! once, on the host. Every virtual machine monitor in question can load that ELF file and enter it by the PVH protocol,
//! which a kernel announces in a note; one without the note is refused here and not by a guest that stays silent. A kernel for
//! 64-bit Arm is unwrapped likewise, to the `Image` that is booted there.
//!
//! # Images
//!
//! [`build()`] goes one way, whatever is built: a [`Source`] gives a *tree*, a value that says what is in a root file system and where
//! contents are to be read from; the agent, its directories and kernel modules are put into the tree; the tree is written as an
//! archive or as a disk ([`Format`]). Nothing is ever unpacked on the host under a name that an archive chose, and a directory that is
//! a source is only read. The same input gives the same bytes: there is one time for everything, and identifiers are derived from
//! contents.
//!
//! A kernel that is not built for this purpose needs a few modules in its initrd: they are put there decompressed, in an order that can
//! be loaded from front to back, so that the agent needs no `modprobe` and the guest no dependency database.
//!
//! # What others do better
//!
//! Package managers and makers of file systems are run as they are. Those that mount and run things in the root they make are run in
//! namespaces of their own, so that nothing of them can remain. All are checked for before anything is begun.
//!
//! Nothing is written in place: an output appears whole under its name or not at all, and a signal ends a build as an error does
//! ([`catch_interrupts`]).

mod agent;
mod architecture;
mod arm64;
mod build;
mod bzimage;
mod check;
pub mod cli;
mod compression;
mod cpio;
mod definition;
pub mod foreign;
mod image;
mod initrd;
mod modules;
mod output;
mod run;
mod sbom;
mod sources;
mod sys;
mod tree;
mod vmlinux;

use std::{io, path::PathBuf};

pub use architecture::Architecture;
pub use build::{Build, Built, Format, build, materials_file};
pub use check::{Check, Checked, check};
pub use definition::{Options, built_in as definition, names as definition_names};
pub use image::{Disk, FileSystem, Parameters, parameters_file, verify};
pub use initrd::{Compression, Contents, DEFAULT_MODULES, initrd};
pub use modules::find_in_package as modules_in_package;
pub use run::catch_interrupts;
pub use sources::Source;
pub use vmlinux::{find_in_package as kernel_in_package, kernel};

/// Why nothing was built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is no good: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        why: String,
    },
    /// A package directory does not hold exactly one of something.
    #[error("expected one {what} in the unpacked kernel package {}, found {found}", package.display())]
    Package {
        /// What was looked for.
        what: &'static str,
        /// The directory.
        package: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// A module, or one that another depends on, does not exist.
    #[error("there is no module {name}{needed_by} in {}, nor is it built into that kernel", directory.display())]
    NoModule {
        /// Its name.
        name: String,
        /// Empty, or ", which X depends on,".
        needed_by: String,
        /// The modules' directory.
        directory: PathBuf,
    },
    /// A program that does part of the work is not installed.
    #[error("the program {tool} is needed; install it (Debian: apt-get install {package})")]
    NoTool {
        /// Its name.
        tool: &'static str,
        /// Debian's package with it.
        package: &'static str,
    },
    /// A tool did not do its work.
    #[error("{step}: {tool} {how}; it said last:{said}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// What was being done.
        step: String,
        /// How it ended.
        how: String,
        /// Its last lines, each on a line of its own.
        said: String,
    },
    /// The system refused something.
    #[error("{step}")]
    System {
        /// What was being done.
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// A definition has a mistake.
    #[error("{}{line}: {why}", path.display())]
    Definition {
        /// The file, or which of those that come along.
        path: PathBuf,
        /// A colon and the line, where that is known.
        line: String,
        /// What is wrong, and what was expected.
        why: String,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Usage(String),
    /// A signal ended the build.
    #[error("interrupted; nothing is left of the output")]
    Interrupted,
    /// Modules depend on each other.
    #[error("the modules {} depend on each other in a circle", names.join(", "))]
    Circle {
        /// Their names, each depending on the next.
        names: Vec<String>,
    },
}

impl Error {
    fn unusable(path: impl Into<PathBuf>, why: impl Into<String>) -> Error {
        Error::Unusable { path: path.into(), why: why.into() }
    }
}

/// Reads a whole file.
fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}
