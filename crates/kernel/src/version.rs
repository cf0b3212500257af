//! Versions of the kernel.

use std::{fmt, path::Path, str::FromStr};

use crate::{Arch, Error, files};

/// A version of the kernel as fragments speak of it: the first two numbers. `6.12.117` is 6.12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    major: u32,
    minor: u32,
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a kernel version such as 6.12, found {text:?}");
        let (major, minor) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Series { major: major.parse().map_err(|_| wrong())?, minor: minor.parse().map_err(|_| wrong())? })
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The whole version of a kernel source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub series: Series,
    /// As the kernel will call itself, without what a configuration adds.
    pub full: String,
}

impl Version {
    /// Reads the version of the kernel source in `tree`, after a check that it is one and has `arch`.
    pub(crate) fn of_tree(tree: &Path, arch: Arch) -> Result<Version, Error> {
        let unusable = |why: String| Error::NotAKernel { path: tree.to_path_buf(), why };
        for needed in ["Makefile", "Kconfig", "scripts", "arch"] {
            if !tree.join(needed).exists() {
                return Err(unusable(format!("it has no {needed}; expected the root of a Linux source tree")));
            }
        }
        let version = read(&files::text(&tree.join("Makefile"))?).map_err(unusable)?;
        if !tree.join("arch").join(arch.folder()).is_dir() {
            return Err(unusable(format!("it has no arch/{}, so it cannot be built for {arch}", arch.folder())));
        }
        Ok(version)
    }
}

/// The version at the beginning of the kernel's Makefile.
fn read(makefile: &str) -> Result<Version, String> {
    let value = |name: &str| {
        let mut lines = makefile.lines().take(20);
        lines.find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim_end() == name).then(|| value.trim().to_string())
        })
    };
    let number = |name: &str| -> Result<u32, String> {
        let text = value(name).ok_or_else(|| format!("its Makefile sets no {name}"))?;
        text.parse().map_err(|_| format!("its Makefile sets {name} to {text:?}; expected a number"))
    };
    let (major, minor, sub) = (number("VERSION")?, number("PATCHLEVEL")?, number("SUBLEVEL")?);
    let extra = value("EXTRAVERSION").unwrap_or_default();
    Ok(Version { series: Series { major, minor }, full: format!("{major}.{minor}.{sub}{extra}") })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_version_is_read_from_the_makefile() {
        let text = "# SPDX\nVERSION = 7\nPATCHLEVEL = 1\nSUBLEVEL = 0\nEXTRAVERSION = -rc3\nNAME = A Name\n";
        let version = read(text).unwrap();
        assert_eq!(version.full, "7.1.0-rc3");
        assert_eq!(version.series, "7.1".parse().unwrap());
        assert_eq!(
            read("VERSION = 6\nPATCHLEVEL = x\n").unwrap_err(),
            "its Makefile sets PATCHLEVEL to \"x\"; expected a number"
        );
        assert_eq!(read("all:\n").unwrap_err(), "its Makefile sets no VERSION");
    }

    #[test]
    fn series_are_ordered_by_number() {
        let series = |text: &str| text.parse::<Series>().unwrap();
        assert!(series("6.9") < series("6.12"));
        assert!(series("6.12") < series("7.0"));
        assert!("6".parse::<Series>().is_err());
        assert!("6.x".parse::<Series>().is_err());
    }

    #[test]
    fn what_is_no_kernel_source_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        let error = Version::of_tree(tree.path(), Arch::X86_64).unwrap_err().to_string();
        assert!(error.contains("it has no Makefile"), "{error}");
        fs::write(tree.path().join("Makefile"), "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 3\nEXTRAVERSION =\n")
            .unwrap();
        fs::write(tree.path().join("Kconfig"), "").unwrap();
        fs::create_dir(tree.path().join("scripts")).unwrap();
        fs::create_dir_all(tree.path().join("arch/x86")).unwrap();
        assert_eq!(Version::of_tree(tree.path(), Arch::X86_64).unwrap().full, "6.12.3");
        let error = Version::of_tree(tree.path(), Arch::S390x).unwrap_err().to_string();
        assert!(error.contains("it has no arch/s390, so it cannot be built for s390x"), "{error}");
    }
}
