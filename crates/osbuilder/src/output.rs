//! Writing a file whole or not at all.

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::Error;

/// A file being written, under a temporary name beside its own. Dropped unfinished it is removed.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    file: NamedTempFile,
}

impl Output {
    /// # Errors
    /// [`Error::Write`].
    pub(crate) fn create(path: &Path) -> Result<Output, Error> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if path.is_dir() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(Error::Write { path: path.to_path_buf(), source });
        }
        let file = tempfile::Builder::new()
            .prefix(".kata-osbuilder-")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(directory)
            .map_err(|source| Error::Write { path: path.to_path_buf(), source })?;
        Ok(Output { path: path.to_path_buf(), file })
    }

    /// A whole small file, not yet under its name.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(crate) fn with(path: &Path, bytes: &[u8]) -> Result<Output, Error> {
        let mut output = Output::create(path)?;
        let failed = output.failed();
        output.file().write_all(bytes).map_err(failed)?;
        Ok(output)
    }

    /// What is written to.
    pub(crate) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Makes an error of a failure to write.
    pub(crate) fn failed(&self) -> impl Fn(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Write { path: path.clone(), source }
    }

    /// Gives the file its name, in place of one that has it.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(crate) fn finish(self) -> Result<(), Error> {
        let failed = self.failed();
        // Without this a crash of the host could leave the new name with no contents.
        self.file.as_file().sync_all().map_err(&failed)?;
        self.file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Writes `bytes` to a temporary file beside `path` and renames it, so that whoever reads `path` sees the old contents or
/// the new, and nothing is left when it fails.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    Output::with(path, bytes)?.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_failure_leaves_nothing_and_names_the_output() {
        let directory = tempfile::tempdir().unwrap();
        let taken = directory.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let error = write(&taken, b"x").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", taken.display()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
