//! The architectures a guest can have, and what the kernel's makefiles and Debian call them.

use std::{fmt, str::FromStr};

/// An architecture of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Intel and AMD, 64 bit.
    X86_64,
    /// Arm, 64 bit.
    Aarch64,
    /// IBM Z.
    S390x,
    /// IBM Power, little endian.
    Ppc64le,
}

/// How a built file becomes a file of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    /// As it is.
    Copy,
    /// Only what a loader puts in memory, after a check that it boots by PVH.
    Trim,
    /// Without its symbols.
    Strip,
}

/// A file of the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// Its name in the output.
    pub name: &'static str,
    /// Where make leaves it.
    pub built: &'static str,
    /// What is done to it.
    pub make: Make,
}

/// What a virtual machine boots, on every architecture.
const KERNEL: &str = "vmlinux.container";
/// The same, compressed.
const COMPRESSED: &str = "vmlinuz.container";

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 4] = [Arch::X86_64, Arch::Aarch64, Arch::S390x, Arch::Ppc64le];

    /// The one this program runs on, if a guest can have it.
    pub fn of_this_machine() -> Option<Arch> {
        match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => Some(Arch::Ppc64le),
            name => name.parse().ok(),
        }
    }

    /// Its name, as `uname -m` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
            Arch::S390x => "s390x",
            Arch::Ppc64le => "ppc64le",
        }
    }

    /// `ARCH` of the kernel's makefiles.
    pub(crate) fn of_make(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "arm64",
            Arch::S390x => "s390",
            Arch::Ppc64le => "powerpc",
        }
    }

    /// Its folder below `arch/` in the kernel's source.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86",
            other => other.of_make(),
        }
    }

    /// What the names of the compiler and its tools begin with; empty where they are the machine's own.
    pub(crate) fn tool_prefix(self) -> &'static str {
        if Arch::of_this_machine() == Some(self) {
            return "";
        }
        match self {
            Arch::X86_64 => "x86_64-linux-gnu-",
            Arch::Aarch64 => "aarch64-linux-gnu-",
            Arch::S390x => "s390x-linux-gnu-",
            Arch::Ppc64le => "powerpc64le-linux-gnu-",
        }
    }

    /// Debian's package with the compiler.
    pub(crate) fn compiler_package(self) -> &'static str {
        if Arch::of_this_machine() == Some(self) {
            return "gcc";
        }
        match self {
            Arch::X86_64 => "gcc-x86-64-linux-gnu",
            Arch::Aarch64 => "gcc-aarch64-linux-gnu",
            Arch::S390x => "gcc-s390x-linux-gnu",
            Arch::Ppc64le => "gcc-powerpc64le-linux-gnu",
        }
    }

    /// What make is asked for.
    pub(crate) fn targets(self) -> &'static [&'static str] {
        match self {
            Arch::X86_64 => &["vmlinux", "bzImage"],
            Arch::Aarch64 => &["Image", "Image.gz"],
            Arch::S390x => &["bzImage"],
            Arch::Ppc64le => &["vmlinux", "zImage"],
        }
    }

    /// What becomes of what make leaves. QEMU takes a plain ELF file on x86_64 and ppc64le, an `Image` on aarch64, and on s390x
    /// only the bzImage.
    pub(crate) fn products(self) -> &'static [Product] {
        const fn product(name: &'static str, built: &'static str, make: Make) -> Product {
            Product { name, built, make }
        }
        const X86_64: [Product; 2] =
            [product(KERNEL, "vmlinux", Make::Trim), product(COMPRESSED, "arch/x86/boot/bzImage", Make::Copy)];
        const AARCH64: [Product; 2] = [
            product(KERNEL, "arch/arm64/boot/Image", Make::Copy),
            product(COMPRESSED, "arch/arm64/boot/Image.gz", Make::Copy),
        ];
        const S390X: [Product; 1] = [product(KERNEL, "arch/s390/boot/bzImage", Make::Copy)];
        const PPC64LE: [Product; 2] =
            [product(KERNEL, "vmlinux", Make::Strip), product(COMPRESSED, "arch/powerpc/boot/zImage", Make::Copy)];
        match self {
            Arch::X86_64 => &X86_64,
            Arch::Aarch64 => &AARCH64,
            Arch::S390x => &S390X,
            Arch::Ppc64le => &PPC64LE,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Arch::ALL.into_iter().find(|arch| arch.name() == name).ok_or_else(|| {
            format!("{name} is not an architecture of a guest; expected {}", Arch::ALL.map(Arch::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for arch in Arch::ALL {
            assert_eq!(arch.name().parse(), Ok(arch));
        }
        let error = "riscv64".parse::<Arch>().unwrap_err();
        assert_eq!(error, "riscv64 is not an architecture of a guest; expected x86_64, aarch64, s390x, ppc64le");
    }

    #[test]
    fn only_a_foreign_architecture_needs_a_cross_compiler() {
        for arch in Arch::ALL {
            let own = Arch::of_this_machine() == Some(arch);
            assert_eq!(arch.tool_prefix().is_empty(), own);
            assert_eq!(arch.compiler_package() == "gcc", own);
        }
    }
}
