//! The programs and headers that a build needs: asked for before anything is done, with the package that has them.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use crate::{Arch, Error, Interrupts, child, dotconfig::DotConfig};

/// For a compiler that is asked for its version or preprocesses one line.
const MOMENT: Duration = Duration::from_secs(120);

/// Something that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// A program or a header.
    pub name: String,
    /// Debian's package with it.
    pub package: String,
    /// What needs it.
    pub why: &'static str,
}

/// Checks for what every build needs.
pub(crate) fn check(arch: Arch) -> Result<(), Error> {
    let prefix = arch.tool_prefix();
    let own = |name: &str, package: &str, why| Missing { name: name.into(), package: package.into(), why };
    let cross =
        |name: &str, why| Missing { name: format!("{prefix}{name}"), package: arch.compiler_package().into(), why };
    let needed = [
        own("make", "make", "runs the kernel's makefiles"),
        own("gcc", "gcc", "compiles the kernel's own build tools"),
        cross("gcc", "compiles the kernel"),
        cross("ld", "links the kernel"),
        own("flex", "flex", "generates the configuration's scanner"),
        own("bison", "bison", "generates the configuration's parser"),
        own("bc", "bc", "computes the kernel's time constants"),
        own("perl", "perl", "runs some of the kernel's scripts"),
        own("tar", "tar", "unpacks the source"),
        own("xz", "xz-utils", "unpacks the source"),
    ];
    refuse(needed.into_iter().filter(|tool| !in_path(&tool.name)).collect())
}

/// Checks for what this configuration needs besides.
pub(crate) fn check_for(config: &DotConfig, interrupts: &Interrupts) -> Result<(), Error> {
    let programs = [
        ("KERNEL_GZIP", "gzip", "gzip"),
        ("KERNEL_BZIP2", "bzip2", "bzip2"),
        ("KERNEL_XZ", "xz", "xz-utils"),
        ("KERNEL_LZO", "lzop", "lzop"),
        ("KERNEL_LZ4", "lz4", "lz4"),
        ("KERNEL_ZSTD", "zstd", "zstd"),
        ("DEBUG_INFO_BTF", "pahole", "dwarves"),
    ];
    let headers = [("OBJTOOL", "gelf.h", "libelf-dev"), ("SYSTEM_TRUSTED_KEYRING", "openssl/opensslv.h", "libssl-dev")];
    let mut missing = Vec::new();
    for (option, name, package) in programs {
        if config.is_on(option) && !in_path(name) {
            missing.push(Missing {
                name: name.into(),
                package: package.into(),
                why: "compresses or describes the kernel",
            });
        }
    }
    for (option, name, package) in headers {
        if config.is_on(option) && !has_header(name, interrupts)? {
            missing.push(Missing {
                name: name.into(),
                package: package.into(),
                why: "a build tool of the kernel includes it",
            });
        }
    }
    refuse(missing)
}

fn refuse(missing: Vec<Missing>) -> Result<(), Error> {
    if missing.is_empty() { Ok(()) } else { Err(Error::Tools { missing }) }
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| is_program(&directory.join(name)))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn has_header(name: &str, interrupts: &Interrupts) -> Result<bool, Error> {
    let mut command = Command::new("gcc");
    command.args(["-E", "-x", "c", "-include", name, "/dev/null"]);
    child::run(command, interrupts, MOMENT, |_| {}).map(|status| status.success())
}

/// What compiles and links for the architecture, in words that change with every version of it.
pub(crate) fn compiler(arch: Arch, interrupts: &Interrupts) -> Result<String, Error> {
    let mut lines = Vec::new();
    for tool in ["gcc", "ld"] {
        let mut command = Command::new(format!("{}{tool}", arch.tool_prefix()));
        command.arg("--version").env("LC_ALL", "C");
        let text = child::output(command, interrupts, MOMENT)?;
        lines.push(text.lines().next().unwrap_or_default().to_string());
    }
    Ok(lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_headers_are_found_or_not() {
        assert!(in_path("sh"));
        assert!(!in_path("no-such-program"));
        assert!(has_header("stdio.h", &Interrupts::none()).unwrap());
        assert!(!has_header("no/such/header.h", &Interrupts::none()).unwrap());
        check_for(&DotConfig::parse(""), &Interrupts::none()).unwrap();
    }

    #[test]
    fn all_that_is_missing_is_said_at_once() {
        let missing =
            |name: &str| Missing { name: name.into(), package: format!("{name}-package"), why: "does things" };
        let error = refuse(vec![missing("a"), missing("b")]).unwrap_err().to_string();
        assert!(error.contains("a (does things)") && error.contains("apt-get install a-package b-package"), "{error}");
    }

    #[test]
    fn a_compiler_says_what_it_is() {
        let Some(arch) = Arch::of_this_machine() else { return };
        let text = compiler(arch, &Interrupts::none()).unwrap();
        assert!(text.contains("; GNU ld"), "{text}");
    }
}
