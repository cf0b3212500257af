//! Files: reading, checksums, free space, locks. Every error names the file and what was to be done with it.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{Error, Interrupts};

/// The text of a file.
pub(crate) fn text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::io("read", path, source))
}

/// What a directory holds, in the order of names.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::io("read the directory", directory, source);
    let entries = directory.read_dir().map_err(failed)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Makes a directory and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::io("make the directory", path, source))
}

/// Writes a file that nobody else reads yet.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::io("write", path, source))
}

/// Renames, over what is there.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::io(format!("rename {} to", from.display()), to, source))
}

/// Removes a file or a whole directory; what is not there needs no removing.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path, interrupts: &Interrupts) -> Result<String, Error> {
    let failed = |source| Error::io("read", path, source);
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        interrupts.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hexadecimal(&hash.finalize())),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// The SHA-256 of some texts, in hexadecimal. Where one ends and the next begins matters.
pub(crate) fn sha256_of(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hexadecimal(&hash.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text has the form of a SHA-256.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The nearest directory that exists, at or above `path`.
pub(crate) fn nearest(path: &Path) -> PathBuf {
    let above = path.ancestors().find(|above| above.is_dir());
    above.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf()
}

/// Refuses when the file system of `path` has less than `needed` bytes free.
pub(crate) fn need_space(path: &Path, needed: u64, what: &'static str) -> Result<(), Error> {
    let at = nearest(path);
    let free = rustix::fs::statvfs(&at).map_err(|error| Error::io("ask for the free space of", &at, error.into()))?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    if free < needed { Err(Error::Space { path: at, what, needed, free }) } else { Ok(()) }
}

/// Refuses when no file can be made in the nearest directory that exists, at or above `path`.
pub(crate) fn need_writable(path: &Path) -> Result<(), Error> {
    let at = nearest(path);
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(&at, access).map_err(|error| Error::io("write into the directory", &at, error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_everybody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path, &Interrupts::none()).unwrap(), abc);
        assert!(is_sha256(abc));
        assert!(!is_sha256(&abc.to_uppercase()));
        assert_ne!(sha256_of(&["a", "bc"]), sha256_of(&["ab", "c"]));
        let error = sha256(&directory.path().join("none"), &Interrupts::none()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read "), "{error}");
    }

    #[test]
    fn a_full_disk_is_foreseen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not/there/yet");
        assert_eq!(nearest(&path), directory.path());
        need_space(&path, 1, "a test").unwrap();
        let error = need_space(&path, u64::MAX, "a test").unwrap_err().to_string();
        assert!(error.contains("for a test"), "{error}");
    }

    #[test]
    fn removing_takes_anything() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        remove(&path).unwrap();
        fs::write(&path, "").unwrap();
        remove(&path).unwrap();
        fs::create_dir_all(path.join("y/z")).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
