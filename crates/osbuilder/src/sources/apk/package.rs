//! Checking what a repository sent.
//!
//! An index and a package are gzip streams, one behind the other: a signature of the next, then what is signed. A package's second
//! stream says what it is, and the digest of the third, which holds its files.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use flate2::bufread::GzDecoder;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::index::Entry;
use crate::{
    Error,
    definition::Definition,
    image::verity::hex,
    run::{Program, Tool},
    sources::path_of,
};

pub(super) const OPENSSL: Program = Program { name: "openssl", package: "openssl" };

/// More than any index or description, bytes.
const MOST: u64 = 256 << 20;

/// The keys that may have signed.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    files: Vec<PathBuf>,
    work: &'a TempDir,
}

impl<'a> Keys<'a> {
    pub(super) fn of(definition: &Definition, work: &'a TempDir) -> Result<Keys<'a>, Error> {
        let directory = path_of(work, "keys");
        fs::create_dir(&directory).map_err(|source| Error::Write { path: directory.clone(), source })?;
        let files = definition.keys.iter().map(|key| key.file(&directory)).collect::<Result<_, _>>()?;
        Ok(Keys { files, work })
    }

    /// Checks that `signed` was signed by one of the keys, the one that the signature names.
    fn verify(&self, url: &str, signature: &[u8], signed: &[u8]) -> Result<(), Error> {
        let bad = |why: String| Error::unusable(url, why);
        let mut archive = tar::Archive::new(signature);
        let unsigned = || bad("it is not signed".into());
        let mut entry = archive.entries().ok().and_then(|mut entries| entries.next()?.ok()).ok_or_else(unsigned)?;
        let name = entry.path().ok().and_then(|path| path.to_str().map(str::to_owned)).ok_or_else(unsigned)?;
        let (algorithm, key) = match (name.strip_prefix(".SIGN.RSA256."), name.strip_prefix(".SIGN.RSA.")) {
            (Some(key), _) => ("-sha256", key),
            (None, Some(key)) => ("-sha1", key),
            (None, None) => return Err(unsigned()),
        };
        let file =
            self.files.iter().find(|file| file.file_name().is_some_and(|name| name == key)).ok_or_else(|| {
                bad(format!(
                    "it is signed by the key {key}, which is not among those given; --key names a file of that name"
                ))
            })?;
        let mut bytes = Vec::new();
        entry.by_ref().take(MOST).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
        let [signature_file, signed_file] = ["signature", "signed"].map(|name| path_of(self.work, name));
        for (path, bytes) in [(&signature_file, &bytes[..]), (&signed_file, signed)] {
            fs::write(path, bytes).map_err(|source| Error::Write { path: path.clone(), source })?;
        }
        let verified = Tool::new(&OPENSSL, format!("verifying the signature of {url}"))?
            .args(["dgst", algorithm, "-verify"])
            .arg(file)
            .arg("-signature")
            .arg(&signature_file)
            .arg(&signed_file)
            .run();
        match verified {
            Ok(_) => Ok(()),
            // It says so on standard output, and why, in terms of arithmetic, on standard error. A key that is none it cannot read.
            Err(Error::Tool { said, .. }) if !said.contains("Could not") => Err(bad(format!(
                "its signature does not match the key {}; it was changed, or the key is wrong",
                file.display()
            ))),
            Err(error) => Err(error),
        }
    }
}

/// The first gzip stream in `bytes`, unpacked, and what follows it.
fn stream<'a>(url: &str, bytes: &'a [u8]) -> Result<(Vec<u8>, &'a [u8]), Error> {
    let mut decoder = GzDecoder::new(bytes);
    let mut unpacked = Vec::new();
    let read = decoder.by_ref().take(MOST + 1).read_to_end(&mut unpacked);
    if read.is_err() || unpacked.len() as u64 > MOST {
        return Err(Error::unusable(
            url,
            "it is not made of gzip streams as Alpine's repositories are; it may be damaged",
        ));
    }
    Ok((unpacked, decoder.into_inner()))
}

/// A file in an archive that may lack its end.
fn member(archive: &[u8], wanted: &str) -> Option<String> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        if entry.path().ok()? == Path::new(wanted) {
            let mut text = String::new();
            entry.read_to_string(&mut text).ok()?;
            return Some(text);
        }
    }
    None
}

/// The text of a signed index.
pub(super) fn index(keys: &Keys, url: &str, bytes: &[u8]) -> Result<String, Error> {
    let (signature, signed) = stream(url, bytes)?;
    keys.verify(url, &signature, signed)?;
    let (archive, _) = stream(url, signed)?;
    member(&archive, "APKINDEX").ok_or_else(|| Error::unusable(url, "it holds no file APKINDEX"))
}

/// The part of a package with its files, if the package is the signed one that the index names.
pub(super) fn data<'a>(keys: &Keys, url: &str, bytes: &'a [u8], entry: &Entry) -> Result<&'a [u8], Error> {
    let bad = |why: &str| Error::unusable(url, why);
    let (signature, signed) = stream(url, bytes)?;
    let (control, data) = stream(url, signed)?;
    let control_bytes = signed.get(..signed.len() - data.len()).unwrap_or_default();
    keys.verify(url, &signature, control_bytes)?;
    let info = member(&control, ".PKGINFO").ok_or_else(|| bad("it holds no file .PKGINFO"))?;
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('=').map(str::trim))
    };
    // Or an old version with a known hole could be passed off as a new one.
    if (field("pkgname"), field("pkgver")) != (Some(&entry.name), Some(&entry.version)) {
        return Err(bad("it is another package or version than its name says"));
    }
    if field("datahash") != Some(&hex(&Sha256::digest(data))) {
        return Err(bad("its files do not match their digest; it is damaged or was changed"));
    }
    Ok(data)
}
