//! The architectures of guests, as data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Result, image};

/// An architecture of processors. The guest's is the one its kernel was built for; it need not be the host's, but then
/// its processor is emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm, little-endian.
    Aarch64,
    /// 64-bit POWER, little-endian.
    Ppc64le,
    /// 64-bit z/Architecture.
    S390x,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 4] = [Arch::X86_64, Arch::Aarch64, Arch::Ppc64le, Arch::S390x];

    /// What this program was built for; `None` if no guest can be of it.
    pub const HOST: Option<Arch> = if cfg!(target_arch = "x86_64") {
        Some(Arch::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Arch::Aarch64)
    } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
        Some(Arch::Ppc64le)
    } else if cfg!(target_arch = "s390x") {
        Some(Arch::S390x)
    } else {
        None
    };

    /// What a guest kernel was built for, told from the file itself.
    ///
    /// # Errors
    /// [`crate::Error::File`] if it is missing, unreadable, or no kernel that a hypervisor boots.
    pub fn of_kernel(path: &Path) -> Result<Arch> {
        image::open_kernel(path).map(|(_file, arch)| arch)
    }

    /// Whether the host's processor can execute it.
    pub fn is_host(self) -> bool {
        Self::HOST == Some(self)
    }

    /// Its name, as `uname -m` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
            Arch::Ppc64le => "ppc64le",
            Arch::S390x => "s390x",
        }
    }

    /// The QEMU program that runs its guests.
    pub fn qemu_program(self) -> &'static str {
        match self {
            Arch::X86_64 => "qemu-system-x86_64",
            Arch::Aarch64 => "qemu-system-aarch64",
            Arch::Ppc64le => "qemu-system-ppc64",
            Arch::S390x => "qemu-system-s390x",
        }
    }

    /// The package of Debian that holds [`Arch::qemu_program`].
    pub fn qemu_package(self) -> &'static str {
        match self {
            Arch::X86_64 => "qemu-system-x86",
            Arch::Aarch64 => "qemu-system-arm",
            Arch::Ppc64le => "qemu-system-ppc",
            Arch::S390x => "qemu-system-misc",
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_is_the_one_it_was_built_for() {
        let name = if cfg!(target_arch = "powerpc64") { "ppc64le" } else { std::env::consts::ARCH };
        assert_eq!(Arch::HOST.unwrap().name(), name);
        let hosts = Arch::ALL.into_iter().filter(|arch| arch.is_host());
        assert_eq!(hosts.count(), 1);
    }
}
