//! Compiling the counting plugin for the QEMU at hand.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Compiles the plugin into `dir`.
///
/// # Errors
/// No version of QEMU can be told, it has no plugins, or there is no compiler.
pub fn build(qemu: &Path, dir: &Path) -> Result<PathBuf, String> {
    let api = api(&version(qemu)?);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("icount/icount.c");
    let plugin = dir.join("icount.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"]);
    gcc.arg(format!("-DPLUGIN_API={api}")).arg("-o").arg(&plugin).arg(&source);
    let output = gcc.output().map_err(|e| format!("run gcc, which compiles the counting plugin: {e}"))?;
    if output.status.success() {
        Ok(plugin)
    } else {
        Err(format!("gcc does not compile {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)))
    }
}

fn version(qemu: &Path) -> Result<String, String> {
    let output = Command::new(qemu).arg("--version").output().map_err(|e| format!("run {}: {e}", qemu.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version of the plugin interface to state: QEMU 9 dropped the first ones, older QEMUs do not know the second.
fn api(version: &str) -> u32 {
    let number = version.split_ascii_whitespace().skip_while(|word| *word != "version").nth(1).unwrap_or_default();
    let major: u32 = number.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default();
    if major >= 9 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_follows_from_qemus_version() {
        for (version, expected) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright", 1),
            ("QEMU emulator version 8.2.0", 1),
            ("QEMU emulator version 9.0.0", 2),
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", 2),
        ] {
            assert_eq!(api(version), expected, "{version}");
        }
    }
}
