//! Where the kernel's source comes from, as an unpacked tree.
//!
//! A tarball is unpacked once into the cache, under its checksum: `src/linux-CHECKSUM`. A directory is used as it is and
//! never written to.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use crate::{Error, Interrupts, console, fetch::Fetched, files, lock::Lock, pin::Pin};

/// Unpacked, the source takes 1.6 GB.
const UNPACKED: u64 = 2 << 30;
/// `tar` prints nothing while it works.
const UNPACKING: Duration = Duration::from_secs(1800);

/// What the user asks to be built.
#[derive(Debug, Clone)]
pub enum SourceChoice {
    /// What `sources.toml` names, from Debian's archive.
    Pinned {
        /// The path of `sources.toml`.
        sources: PathBuf,
        /// Whether only the very version and checksum will do.
        locked: bool,
    },
    /// A tarball or a directory.
    Path {
        /// Where it is.
        path: PathBuf,
        /// Its SHA-256, if the user wants it checked.
        sha256: Option<String>,
    },
}

/// A source tree.
#[derive(Debug)]
pub(crate) struct Source {
    pub tree: PathBuf,
    /// Tells it from every other source: a checksum, or the path of a directory.
    pub id: String,
    /// Whether the identity covers the contents, so that an output made from it can be told to be up to date.
    pub fixed: bool,
    /// What the kernel calls the time it was built at, seconds since 1970.
    pub time: u64,
}

impl Source {
    /// Finds the tree, and fetches and unpacks what is missing.
    pub(crate) fn get(choice: &SourceChoice, cache: &Path, interrupts: &Interrupts) -> Result<Source, Error> {
        match choice {
            SourceChoice::Pinned { sources, locked } => {
                let pin = Pin::read(sources)?;
                let cache = cache.join("src");
                let pinned = tree_of(&cache, &pin.sha256);
                if pinned.is_dir() {
                    return Source::unpacked(pinned, &pin.sha256);
                }
                let _lock = Lock::take(&cache.join("lock"), "the kernel's source", interrupts)?;
                let fetched = Fetched::get(&pin, &cache, *locked, interrupts)?;
                unpack(&fetched.tarball, &fetched.sha256, &cache, interrupts)
            }
            SourceChoice::Path { path, sha256 } if path.is_dir() => {
                if sha256.is_some() {
                    return Err(Error::NotAKernel {
                        path: path.clone(),
                        why: "it is a directory, and --sha256 is the checksum of a tarball".into(),
                    });
                }
                Source::directory(path)
            }
            SourceChoice::Path { path, .. } if path.exists() && !path.is_file() => {
                let why = "it is neither a file nor a directory; expected a tarball of the Linux source".into();
                Err(Error::NotAKernel { path: path.clone(), why })
            }
            SourceChoice::Path { path, sha256 } => {
                let found = files::sha256(path, interrupts)?;
                match sha256 {
                    Some(expected) if !expected.eq_ignore_ascii_case(&found) => {
                        return Err(Error::Checksum { path: path.clone(), expected: expected.clone(), found });
                    }
                    _ => {}
                }
                let cache = cache.join("src");
                let _lock = Lock::take(&cache.join("lock"), "the kernel's source", interrupts)?;
                unpack(path, &found, &cache, interrupts)
            }
        }
    }

    fn unpacked(tree: PathBuf, sha256: &str) -> Result<Source, Error> {
        let time = match time_asked_for()? {
            Some(time) => time,
            None => modified(&tree.join("Makefile"))?,
        };
        Ok(Source { id: sha256.into(), fixed: true, time, tree })
    }

    fn directory(path: &Path) -> Result<Source, Error> {
        let tree = path.canonicalize().map_err(|source| Error::io("find", path, source))?;
        for trace in [".config", "include/config"] {
            if tree.join(trace).exists() {
                return Err(Error::NotAKernel {
                    path: tree,
                    why: format!(
                        "a kernel was configured in it (there is {trace}); run `make mrproper` there, or name a tarball"
                    ),
                });
            }
        }
        // The files of a working copy are as old as its last check-out, which says nothing.
        let time = time_asked_for()?.unwrap_or(0);
        Ok(Source { id: tree.to_string_lossy().into_owned(), fixed: false, time, tree })
    }
}

/// `SOURCE_DATE_EPOCH`, as <https://reproducible-builds.org/specs/source-date-epoch/> has it.
fn time_asked_for() -> Result<Option<u64>, Error> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Error::Variable {
        name: "SOURCE_DATE_EPOCH",
        why: format!("expected seconds since 1970, found {}", text.display()),
    })
}

fn modified(path: &Path) -> Result<u64, Error> {
    let failed = |source| Error::io("read the time of", path, source);
    let time = path.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
    Ok(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// A time as `uname -v` is to show it and date(1) understands it.
pub(crate) fn shown(time: u64) -> String {
    let (days, seconds) = (time / 86400, time % 86400);
    // The Gregorian calendar repeats every 400 years, of 146097 days. Counted from a first of March, the leap day is the last
    // of its year; 719468 days lie between that of year 0 and 1970.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn tree_of(cache: &Path, sha256: &str) -> PathBuf {
    cache.join(format!("linux-{}", &sha256[..16]))
}

/// Unpacks a tarball with one directory at its top; whole or not at all.
fn unpack(tarball: &Path, sha256: &str, cache: &Path, interrupts: &Interrupts) -> Result<Source, Error> {
    let tree = tree_of(cache, sha256);
    if tree.is_dir() {
        return Source::unpacked(tree, sha256);
    }
    files::need_space(cache, UNPACKED, "unpacking the kernel's source")?;
    remove_leftovers(cache)?;
    let new = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache);
    let new = new.map_err(|source| Error::io("make a directory in", cache, source))?;
    console::say(&format!("kernel source: unpacking {}", tarball.display()));
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--file"]).arg(tarball);
    tar.arg("--directory").arg(new.path());
    crate::child::output(tar, interrupts, UNPACKING)?;
    if !new.path().join("Makefile").is_file() || !new.path().join("Kconfig").is_file() {
        let why = "it has no DIRECTORY/Makefile and DIRECTORY/Kconfig; expected a tarball of the Linux source".into();
        return Err(Error::NotAKernel { path: tarball.to_path_buf(), why });
    }
    // mkdtemp gave it to its owner alone; a tree in a shared cache is readable.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(new.path(), mode).map_err(|source| Error::io("set the mode of", new.path(), source))?;
    files::rename(new.path(), &tree)?;
    let _renamed = new.keep();
    Source::unpacked(tree, sha256)
}

/// What directories that are being filled are called.
pub(crate) const PREFIX: &str = ".new-";

/// Removes what a killed program left. Whoever holds the lock may.
pub(crate) fn remove_leftovers(cache: &Path) -> Result<(), Error> {
    for path in files::list(cache)? {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
            files::remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tarball(directory: &Path, name: &str, compression: &str) -> PathBuf {
        let tree = directory.join("linux-1");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("Makefile"), "VERSION = 1\n").unwrap();
        fs::write(tree.join("Kconfig"), "").unwrap();
        let path = directory.join(name);
        let mut tar = Command::new("tar");
        tar.args(["--create", "--mtime=@1000", compression, "--file"]).arg(&path);
        assert!(tar.arg("-C").arg(directory).arg("linux-1").status().unwrap().success());
        path
    }

    fn get(path: &Path, sha256: Option<&str>, cache: &Path) -> Result<Source, Error> {
        let choice = SourceChoice::Path { path: path.into(), sha256: sha256.map(String::from) };
        Source::get(&choice, cache, &Interrupts::none())
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(shown(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(shown(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(shown(951_868_800), "2000-03-01 00:00:00 UTC");
        assert_eq!(shown(1_735_689_599), "2024-12-31 23:59:59 UTC");
        assert_eq!(shown(4_107_542_400), "2100-03-01 00:00:00 UTC");
        assert_eq!(shown(1_794_161_105), "2026-11-08 18:05:05 UTC");
    }

    #[test]
    fn a_tarball_is_unpacked_once_whatever_its_compression() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        for (name, compression) in [("a.tar.xz", "--xz"), ("a.tar.gz", "--gzip")] {
            let path = tarball(directory.path(), name, compression);
            fs::create_dir_all(cache.join("src/.new-left-by-a-kill")).unwrap();
            let source = get(&path, None, &cache).unwrap();
            assert!(source.fixed && source.tree.join("Makefile").is_file());
            assert!(!cache.join("src/.new-left-by-a-kill").exists());
            fs::write(source.tree.join("mark"), "").unwrap();
            let again = get(&path, Some(&source.id), &cache).unwrap();
            assert!(again.tree.join("mark").exists(), "it was unpacked again");
            assert_eq!((again.id, again.time), (source.id, source.time));
        }
    }

    #[test]
    fn what_is_wrong_with_a_tarball_is_said_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let good = tarball(directory.path(), "a.tar.xz", "--xz");
        let error = get(&good, Some(&"0".repeat(64)), &cache).unwrap_err().to_string();
        assert!(error.contains(&"0".repeat(64)), "{error}");
        let text = directory.path().join("text");
        fs::write(&text, "no tarball").unwrap();
        assert!(matches!(get(&text, None, &cache), Err(Error::Program { .. })));
        let bytes = fs::read(&good).unwrap();
        let cut = directory.path().join("cut.tar.xz");
        fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(get(&cut, None, &cache), Err(Error::Program { .. })));
        fs::remove_file(directory.path().join("linux-1/Kconfig")).unwrap();
        let other = directory.path().join("other.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&other).arg("-C").arg(directory.path()).arg("linux-1");
        assert!(tar.status().unwrap().success());
        let error = get(&other, None, &cache).unwrap_err().to_string();
        assert!(error.contains("expected a tarball of the Linux source"), "{error}");
        assert!(get(&directory.path().join("none"), None, &cache).is_err());
        let error = get(Path::new("/dev/null"), None, &cache).unwrap_err().to_string();
        assert!(error.contains("neither a file nor a directory"), "{error}");
        let left: Vec<_> = files::list(&cache.join("src")).unwrap();
        assert_eq!(left, [cache.join("src/lock")]);
    }

    #[test]
    fn a_directory_is_used_in_place_unless_something_was_built_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("cache");
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let source = get(&tree, None, &cache).unwrap();
        assert!(!source.fixed && !cache.exists());
        assert!(get(&tree, Some("0"), &cache).unwrap_err().to_string().contains("--sha256"));
        fs::write(tree.join(".config"), "").unwrap();
        assert!(get(&tree, None, &cache).unwrap_err().to_string().contains("make mrproper"));
    }
}
