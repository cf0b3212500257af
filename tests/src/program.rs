//! Programs that the tests bring into a guest.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Builds a package of this workspace as a wholly static program.
///
/// # Errors
/// When cargo does not; it has said why on standard error.
pub fn static_program(package: &str) -> Result<PathBuf, String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&top).args(["build-static", "--quiet", "--release", "--package", package]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().map_err(|e| format!("start cargo: {e}"))?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = messages
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).ok()?["executable"].as_str().map(PathBuf::from)
        })
        .next_back();
    program.ok_or_else(|| format!("cargo does not build {package} ({}); its reason is above", output.status))
}
