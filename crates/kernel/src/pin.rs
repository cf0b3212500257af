//! `sources.toml`: which source is taken when the user names none.

use std::path::Path;

use serde::Deserialize;

use crate::{Error, files};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    linux: Pin,
}

/// A tarball inside a Debian package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pin {
    pub package: String,
    pub version: String,
    /// The tarball's path in the package.
    pub file: String,
    /// Of the tarball.
    pub sha256: String,
}

impl Pin {
    /// Reads the file, and refuses values that could not work.
    pub(crate) fn read(path: &Path) -> Result<Pin, Error> {
        let wrong = |why: String| Error::Sources { path: path.to_path_buf(), why };
        let File { linux: pin } = toml::from_str(&files::text(path)?).map_err(|error| wrong(error.to_string()))?;
        let plain = |text: &str| {
            let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
            first && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.~:".contains(&byte))
        };
        if !plain(&pin.package) || !plain(&pin.version) {
            return Err(wrong("package and version must be those of a Debian package".into()));
        }
        if pin.file.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong(format!(
                "file must be a path within the package, such as usr/src/x.tar.xz, not {:?}",
                pin.file
            )));
        }
        if !files::is_sha256(&pin.sha256) {
            return Err(wrong(format!("sha256 must be 64 lower-case hexadecimal digits, not {:?}", pin.sha256)));
        }
        Ok(pin)
    }

    /// The tarball's name.
    pub(crate) fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_projects_own_file_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernel/sources.toml");
        let pin = Pin::read(&path).unwrap();
        assert!(pin.file_name().ends_with(".tar.xz"));
    }

    #[test]
    fn wrong_values_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sources.toml");
        let sum = "a".repeat(64);
        let good = format!("[linux]\npackage = \"p\"\nversion = \"1\"\nfile = \"usr/x.tar\"\nsha256 = \"{sum}\"\n");
        let error = |from: &str, to: &str| {
            fs::write(&path, good.replace(from, to)).unwrap();
            Pin::read(&path).unwrap_err().to_string()
        };
        assert!(error(&sum, "AB").contains("64 lower-case hexadecimal digits, not \"AB\""));
        assert!(error("usr/x", "../x").contains("a path within the package"));
        assert!(error("\"p\"", "\"--help\"").contains("a Debian package"));
        assert!(error("version", "versoin").contains("versoin"));
        fs::write(&path, &good).unwrap();
        assert_eq!(Pin::read(&path).unwrap().file_name(), "x.tar");
    }
}
