//! Builds what a guest boots from: the kernel as a plain ELF file and an initrd with the agent and its modules.
//!
//! # The kernel
//!
//! A distribution ships a bzImage: a small real-mode program that decompresses the kernel proper, relocates it and jumps to
//! it. In a virtual machine none of that is needed, and emulated it costs seconds. [`kernel`] takes the kernel proper out,
//! once, on the host. Every virtual machine monitor in question can load that ELF file and enter it by the PVH protocol,
//! which a kernel announces in a note; one without the note is refused here and not by a guest that stays silent. A kernel for
//! 64-bit Arm is unwrapped likewise, to the `Image` that is booted there.
//!
//! # The initrd
//!
//! [`initrd`] writes an archive that holds one program, the agent, as `/init`, the directories it mounts on, and, for a kernel
//! that is not built for this purpose, the few modules the guest needs: decompressed, in an order that can be loaded from
//! front to back, so that the agent needs no `modprobe` and the guest no dependency database. The same input gives the
//! same bytes: times are zero, owners are root, inode numbers count up.
//!
//! Nothing is written in place: an output appears whole under its name or not at all.

mod arm64;
mod bzimage;
mod compression;
mod cpio;
mod initrd;
mod modules;
mod output;
mod vmlinux;

use std::{io, path::PathBuf};

pub use initrd::{Contents, DEFAULT_MODULES, initrd};
pub use modules::find_in_package as modules_in_package;
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
