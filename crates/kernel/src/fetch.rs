//! Getting the pinned tarball out of Debian's archive.
//!
//! apt verifies what it downloads against the archive's signature. The pin's checksum goes further: it says which
//! version this project was tested with. The archive drops old versions, so a newer one is taken with a warning, unless
//! only the pinned one will do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Interrupts, child, console, files, pin::Pin, source};

/// A package of 150 MB over a slow line. apt has deadlines of its own for a server that says nothing.
const DOWNLOADING: Duration = Duration::from_secs(3600);
/// Reading what is on this machine.
const LOCAL: Duration = Duration::from_secs(600);
/// The package, and its tarball beside it.
const SPACE: u64 = 512 << 20;

/// A tarball in the cache that is what the pin says, or a newer version that apt vouches for.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub tarball: PathBuf,
    pub sha256: String,
}

/// What is remembered of a version that was taken instead of the pinned one.
#[derive(Serialize, Deserialize)]
struct Instead {
    /// The pinned version it was taken for.
    pinned: String,
    version: String,
    file: String,
    sha256: String,
}

impl Fetched {
    /// Finds the tarball in the cache or downloads it. The caller holds the lock of `cache`.
    pub(crate) fn get(pin: &Pin, cache: &Path, locked: bool, interrupts: &Interrupts) -> Result<Fetched, Error> {
        source::remove_leftovers(cache)?;
        let tarball = cache.join(pin.file_name());
        if tarball.is_file() && files::sha256(&tarball, interrupts)? == pin.sha256 {
            return Ok(Fetched { tarball, sha256: pin.sha256.clone() });
        }
        let memory = cache.join("instead.toml");
        if !locked && let Some(fetched) = remembered(pin, cache, &memory, interrupts)? {
            return Ok(fetched);
        }
        files::need_space(cache, SPACE, "downloading the kernel's source")?;
        let work = tempfile::Builder::new().prefix(source::PREFIX).tempdir_in(cache);
        let work = work.map_err(|source| Error::io("make a directory in", cache, source))?;
        let version = download(pin, work.path(), locked, interrupts)?;
        let unpacked = extract(pin, work.path(), interrupts)?;
        let sha256 = files::sha256(&unpacked, interrupts)?;
        if version == pin.version {
            if sha256 != pin.sha256 {
                let path = PathBuf::from(format!("{} of {} {version}", pin.file, pin.package));
                return Err(Error::Checksum { path, expected: pin.sha256.clone(), found: sha256 });
            }
            files::rename(&unpacked, &tarball)?;
            return Ok(Fetched { tarball, sha256 });
        }
        stale(pin, &version);
        let file = format!("{version}-{}", pin.file_name());
        let tarball = cache.join(&file);
        files::rename(&unpacked, &tarball)?;
        let instead = Instead { pinned: pin.version.clone(), version, file, sha256: sha256.clone() };
        let text = toml::to_string(&instead)
            .map_err(|error| Error::Sources { path: memory.clone(), why: error.to_string() })?;
        let new = work.path().join("instead.toml");
        files::write(&new, &text)?;
        files::rename(&new, &memory)?;
        Ok(Fetched { tarball, sha256 })
    }
}

fn stale(pin: &Pin, version: &str) {
    console::warn(&format!(
        "the archive has {} {version} instead of the pinned {}; apt has authenticated it, but the fragments were tested with \
         the pinned one. Update kernel/sources.toml, or refuse this with --locked",
        pin.package, pin.version
    ));
}

/// The version taken for this pin before, if it is still there.
fn remembered(pin: &Pin, cache: &Path, memory: &Path, interrupts: &Interrupts) -> Result<Option<Fetched>, Error> {
    let Some(instead) = fs::read_to_string(memory).ok().and_then(|text| toml::from_str::<Instead>(&text).ok()) else {
        return Ok(None);
    };
    let tarball = cache.join(&instead.file);
    if instead.pinned != pin.version || !tarball.is_file() || files::sha256(&tarball, interrupts)? != instead.sha256 {
        return Ok(None);
    }
    stale(pin, &instead.version);
    Ok(Some(Fetched { tarball, sha256: instead.sha256 }))
}

/// Downloads the package into `work` and returns its version.
fn download(pin: &Pin, work: &Path, locked: bool, interrupts: &Interrupts) -> Result<String, Error> {
    let apt = |what: &str| {
        let mut command = Command::new("apt-get");
        command.args(["--quiet=2", "download", what]).current_dir(work).env("LC_ALL", "C");
        // Root would have apt drop its privileges, for which the directory would have to be open to others.
        command.args(["-o", "APT::Sandbox::User=root"]);
        child::output(command, interrupts, DOWNLOADING).map(drop)
    };
    console::say(&format!("kernel source: downloading {} {} (about 150 MB)", pin.package, pin.version));
    match apt(&format!("{}={}", pin.package, pin.version)) {
        Ok(()) => {}
        Err(Error::Program { output, .. }) if locked => return Err(Error::fetch(pin, output)),
        Err(Error::Program { .. }) => {
            console::say(&format!("kernel source: it is not there (any more); downloading {} as it is", pin.package));
            match apt(&pin.package) {
                Err(Error::Program { output, .. }) => return Err(Error::fetch(pin, output)),
                other => other?,
            }
        }
        Err(Error::Start { .. }) => {
            return Err(Error::fetch(
                pin,
                "there is no apt-get; on a system other than Debian name a tarball with --source",
            ));
        }
        Err(other) => return Err(other),
    }
    let mut command = Command::new("dpkg-deb");
    command.arg("--field").arg(package_in(work, pin)?).arg("Version");
    child::output(command, interrupts, LOCAL)
}

fn package_in(work: &Path, pin: &Pin) -> Result<PathBuf, Error> {
    let found = files::list(work)?.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
    found.ok_or_else(|| Error::fetch(pin, "apt-get said it had downloaded the package, but there is none"))
}

/// Takes the tarball out of the package in `work`.
fn extract(pin: &Pin, work: &Path, interrupts: &Interrupts) -> Result<PathBuf, Error> {
    let tree = work.join("tree");
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(package_in(work, pin)?).arg(&tree);
    child::output(command, interrupts, LOCAL)?;
    let tarball = tree.join(&pin.file);
    if tarball.is_file() { Ok(tarball) } else { Err(Error::fetch(pin, format!("the package has no {}", pin.file))) }
}
