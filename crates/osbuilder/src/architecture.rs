//! The processors that guests are built for.

use std::{fmt, str::FromStr};

/// A guest's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// IBM Z.
    S390x,
    /// 64-bit POWER, little-endian.
    Ppc64le,
}

use Architecture::{Aarch64, Ppc64le, S390x, X86_64};

impl Architecture {
    /// All of them.
    pub(crate) const ALL: [Architecture; 4] = [X86_64, Aarch64, S390x, Ppc64le];

    /// That of this machine, if guests can be built for it.
    #[must_use]
    pub fn host() -> Option<Architecture> {
        match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => Some(Ppc64le),
            name => name.parse().ok(),
        }
    }

    /// That of an ELF file.
    pub(crate) fn of(elf: object::Architecture) -> Option<Architecture> {
        match elf {
            object::Architecture::X86_64 => Some(X86_64),
            object::Architecture::Aarch64 => Some(Aarch64),
            object::Architecture::S390x => Some(S390x),
            object::Architecture::PowerPc64 => Some(Ppc64le),
            _ => None,
        }
    }

    /// The kernel's and rpm's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            X86_64 => "x86_64",
            Aarch64 => "aarch64",
            S390x => "s390x",
            Ppc64le => "ppc64le",
        }
    }

    /// Debian's name.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            X86_64 => "amd64",
            Aarch64 => "arm64",
            S390x => "s390x",
            Ppc64le => "ppc64el",
        }
    }

    /// Go's name, which OCI images use.
    pub(crate) fn oci(self) -> &'static str {
        match self {
            X86_64 => "amd64",
            Aarch64 => "arm64",
            S390x => "s390x",
            Ppc64le => "ppc64le",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Architecture, String> {
        Architecture::ALL.into_iter().find(|a| [a.name(), a.debian()].contains(&text)).ok_or_else(|| {
            let names = Architecture::ALL.map(Architecture::name).join(", ");
            format!("guests are built for {names} only")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_both_writings() {
        assert_eq!("aarch64".parse(), Ok(Aarch64));
        assert_eq!("ppc64el".parse(), Ok(Ppc64le));
        assert!("riscv64".parse::<Architecture>().unwrap_err().contains("x86_64, aarch64, s390x, ppc64le only"));
    }
}
