//! `spec`: a `config.json` to start from, of the kind `runc spec` writes.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write},
    path::Path,
    process::ExitCode,
};

use crate::{Error, Result};

/// For a user who is root.
const ROOT: &str = include_str!("spec/root.json");
/// With a user namespace that maps the guest's root.
const ROOTLESS: &str = include_str!("spec/rootless.json");

/// Writes the file; never over one that exists.
pub(crate) fn spec(bundle: Option<&Path>, rootless: bool) -> Result<ExitCode> {
    let directory = bundle.unwrap_or(Path::new("."));
    if !directory.is_dir() {
        return Err(Error::refused(format!("the bundle {} is not a directory", directory.display())));
    }
    let path = directory.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::refused("File config.json exists. Remove it first"));
        }
        other => other.map_err(|e| Error::io(format!("create {}", path.display()), e))?,
    };
    let text = if rootless { ROOTLESS } else { ROOT };
    file.write_all(text.as_bytes()).map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::bundle::Bundle;

    #[test]
    fn a_bundle_with_it_is_accepted_and_it_is_not_overwritten() {
        for rootless in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("rootfs")).unwrap();
            spec(Some(dir.path()), rootless).unwrap();
            let bundle = Bundle::load(dir.path(), sandbox::bundle::Role::Alone).unwrap();
            assert_eq!(bundle.spec.process().as_ref().unwrap().args().as_deref().unwrap(), ["sh"]);
            assert_eq!(bundle.spec.linux().as_ref().unwrap().uid_mappings().is_some(), rootless);
            let error = spec(Some(dir.path()), rootless).unwrap_err();
            assert_eq!(error.to_string(), "File config.json exists. Remove it first");
        }
        assert!(spec(Some(Path::new("/nonexistent")), false).is_err());
    }
}
