//! The directory with the built kernel. It appears whole or not at all, and says what it was made from.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{Arch, Error, Interrupts, arch::Make, child, files};

/// The file that says what the others were made from, and marks the directory as one that may be replaced.
const PROVENANCE: &str = "kernel.toml";
const STRIPPING: Duration = Duration::from_secs(600);

/// Where a kernel comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// Covers all that the kernel was made from.
    pub key: String,
    pub version: String,
    pub architecture: String,
    /// The source's SHA-256, or the directory it lay in.
    pub source: String,
    pub compiler: String,
    pub builder: String,
    /// How many options are on.
    pub options: usize,
    /// The SHA-256 of the files.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// The directory of the output.
#[derive(Debug)]
pub(crate) struct Output {
    directory: PathBuf,
}

impl Output {
    /// Refuses a place that cannot be written, or that holds what this program did not make.
    pub(crate) fn at(directory: &Path) -> Result<Output, Error> {
        let directory = std::path::absolute(directory).map_err(|source| Error::io("find", directory, source))?;
        let taken = |why: &str| Error::Output { path: directory.clone(), why: why.into() };
        if directory.file_name().is_none() {
            return Err(taken("it cannot be replaced as a whole"));
        }
        match fs::symlink_metadata(&directory) {
            Ok(found) if !found.is_dir() => return Err(taken("it exists and is not a directory")),
            Ok(_) if !directory.join(PROVENANCE).is_file() && !files::list(&directory)?.is_empty() => {
                return Err(taken(
                    "it holds files that were not made by this program, which replaces the whole directory",
                ));
            }
            _ => {}
        }
        files::need_writable(directory.parent().unwrap_or(&directory))?;
        Ok(Output { directory })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether it was made from just this, and is as it was made.
    pub(crate) fn is_current(&self, key: &str, interrupts: &Interrupts) -> Result<bool, Error> {
        let text = fs::read_to_string(self.directory.join(PROVENANCE)).unwrap_or_default();
        let Ok(provenance) = toml::from_str::<Provenance>(&text) else { return Ok(false) };
        if provenance.key != key || provenance.files.is_empty() {
            return Ok(false);
        }
        for (name, sha256) in &provenance.files {
            let path = self.directory.join(name);
            if !path.is_file() || files::sha256(&path, interrupts)? != *sha256 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the files out of what make left in `objects`, and puts them in place.
    pub(crate) fn make(
        &self,
        objects: &Path,
        arch: Arch,
        mut provenance: Provenance,
        interrupts: &Interrupts,
    ) -> Result<(), Error> {
        let new = self.beside()?;
        for product in arch.products() {
            interrupts.check()?;
            let (from, to) = (objects.join(product.built), new.path().join(product.name));
            match product.make {
                Make::Copy => copy(&from, &to)?,
                Make::Trim => osbuilder::kernel(&from, &to).map_err(Error::Trim)?,
                Make::Strip => {
                    let mut command = Command::new(format!("{}strip", arch.tool_prefix()));
                    command.arg("--strip-all").arg("-o").arg(&to).arg(&from);
                    child::output(command, interrupts, STRIPPING)?;
                }
            }
        }
        copy(&objects.join(".config"), &new.path().join("config"))?;
        copy(&objects.join("System.map"), &new.path().join("System.map"))?;
        for path in files::list(new.path())? {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                .map_err(|source| Error::io("set the mode of", &path, source))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            provenance.files.insert(name, files::sha256(&path, interrupts)?);
        }
        let path = new.path().join(PROVENANCE);
        let text = toml::to_string(&provenance)
            .map_err(|error| Error::Output { path: path.clone(), why: error.to_string() })?;
        files::write(&path, &format!("# What the files beside this one were made from.\n{text}"))?;
        interrupts.check()?;
        self.put(new)
    }

    /// An empty directory beside the output, on the same file system.
    fn beside(&self) -> Result<TempDir, Error> {
        let parent = self.directory.parent().unwrap_or(&self.directory);
        files::make_directory(parent)?;
        let prefix = format!(".{}.new-", self.directory.file_name().unwrap_or_default().display());
        let made =
            tempfile::Builder::new().prefix(&prefix).permissions(fs::Permissions::from_mode(0o755)).tempdir_in(parent);
        made.map_err(|source| Error::io("make a directory in", parent, source))
    }

    /// Swaps the new directory for the old one.
    fn put(&self, new: TempDir) -> Result<(), Error> {
        if !self.directory.exists() {
            files::rename(new.path(), &self.directory)?;
            let _renamed = new.keep();
            return Ok(());
        }
        match renameat_with(CWD, new.path(), CWD, &self.directory, RenameFlags::EXCHANGE) {
            // Dropped, `new` removes what is the old output now.
            Ok(()) => Ok(()),
            // Some file systems cannot exchange: for a moment there is no output then.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                let old = self.beside()?;
                files::rename(&self.directory, old.path())?;
                files::rename(new.path(), &self.directory)?;
                let _renamed = new.keep();
                Ok(())
            }
            Err(error) => Err(Error::io("replace", &self.directory, error.into())),
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(drop).map_err(|source| Error::io(format!("copy {} to", from.display()), to, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(key: &str) -> Provenance {
        let text = || "x".to_string();
        Provenance {
            key: key.into(),
            version: text(),
            architecture: text(),
            source: text(),
            compiler: text(),
            builder: text(),
            options: 1,
            files: BTreeMap::new(),
        }
    }

    fn objects(directory: &Path, kernel: &str) -> PathBuf {
        let objects = directory.join("objects");
        fs::create_dir_all(objects.join("arch/arm64/boot")).unwrap();
        for name in ["arch/arm64/boot/Image", "arch/arm64/boot/Image.gz", ".config", "System.map"] {
            fs::write(objects.join(name), kernel).unwrap();
        }
        objects
    }

    #[test]
    fn an_output_is_replaced_as_a_whole_and_knows_what_it_was_made_from() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/aarch64");
        let none = Interrupts::none();
        for key in ["one", "two"] {
            let output = Output::at(&path).unwrap();
            assert!(!output.is_current(key, &none).unwrap());
            output.make(&objects(directory.path(), key), Arch::Aarch64, provenance(key), &none).unwrap();
            assert!(output.is_current(key, &none).unwrap());
            assert_eq!(fs::read_to_string(path.join("vmlinux.container")).unwrap(), key);
        }
        let names: Vec<_> =
            files::list(&path).unwrap().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["System.map", "config", "kernel.toml", "vmlinux.container", "vmlinuz.container"]);
        assert_eq!(files::list(path.parent().unwrap()).unwrap(), std::slice::from_ref(&path));
        assert_eq!(fs::metadata(path.join("config")).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(path.join("vmlinux.container"), "damaged").unwrap();
        assert!(!Output::at(&path).unwrap().is_current("two", &none).unwrap());
    }

    #[test]
    fn a_failure_leaves_the_old_output_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let output = Output::at(&path).unwrap();
        let objects = objects(directory.path(), "one");
        output.make(&objects, Arch::Aarch64, provenance("one"), &Interrupts::none()).unwrap();
        fs::remove_file(objects.join("System.map")).unwrap();
        assert!(output.make(&objects, Arch::Aarch64, provenance("two"), &Interrupts::none()).is_err());
        assert!(output.is_current("one", &Interrupts::none()).unwrap());
        assert_eq!(files::list(directory.path()).unwrap(), [objects, path]);
    }

    #[test]
    fn what_others_made_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        Output::at(directory.path()).unwrap();
        fs::write(directory.path().join("precious"), "").unwrap();
        let error = Output::at(directory.path()).unwrap_err().to_string();
        assert!(error.contains("not made by this program"), "{error}");
        let error = Output::at(&directory.path().join("precious")).unwrap_err().to_string();
        assert!(error.contains("not a directory"), "{error}");
        assert!(Output::at(Path::new("/")).is_err());
    }
}
