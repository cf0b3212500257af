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

/// More than any index, bytes.
const MOST: u64 = 256 << 20;

/// More than any signature, and than any description with its scripts, bytes: they are unpacked before anybody has vouched for them.
const MOST_SIGNATURE: u64 = 64 << 10;
const MOST_DESCRIPTION: u64 = 16 << 20;

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
    pub(super) fn verify(&self, url: &str, signature: &Signature, signed: &[u8]) -> Result<(), Error> {
        let bad = |why: String| Error::unusable(url, why);
        let Signature { algorithm, key, bytes } = signature;
        let file =
            self.files.iter().find(|file| file.file_name().is_some_and(|name| name == &**key)).ok_or_else(|| {
                bad(format!(
                    "it is signed by the key {key}, which is not among those given; --key names a file of that name"
                ))
            })?;
        let [signature_file, signed_file] = ["signature", "signed"].map(|name| path_of(self.work, name));
        for (path, bytes) in [(&signature_file, &**bytes), (&signed_file, signed)] {
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

/// A signature, and by which key it says to be.
#[derive(Debug)]
pub(crate) struct Signature {
    /// As openssl's option.
    algorithm: &'static str,
    key: String,
    bytes: Vec<u8>,
}

impl Signature {
    /// The archive with it, which may lack its end.
    fn of(url: &str, archive: &[u8]) -> Result<Signature, Error> {
        let unsigned = || Error::unusable(url, "it is not signed");
        let mut archive = tar::Archive::new(archive);
        let mut entry = archive.entries().ok().and_then(|mut entries| entries.next()?.ok()).ok_or_else(unsigned)?;
        let name = entry.path().ok().and_then(|path| path.to_str().map(str::to_owned)).ok_or_else(unsigned)?;
        let (algorithm, key) = match (name.strip_prefix(".SIGN.RSA256."), name.strip_prefix(".SIGN.RSA.")) {
            (Some(key), _) => ("-sha256", key),
            (None, Some(key)) => ("-sha1", key),
            (None, None) => return Err(unsigned()),
        };
        let mut bytes = Vec::new();
        entry
            .by_ref()
            .take(MOST_SIGNATURE)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::unusable(url, error.to_string()))?;
        Ok(Signature { algorithm, key: key.to_owned(), bytes })
    }
}

/// The first gzip stream in `bytes`, unpacked to `most` bytes at most, and what follows it.
fn stream<'a>(url: &str, bytes: &'a [u8], most: u64) -> Result<(Vec<u8>, &'a [u8]), Error> {
    let mut decoder = GzDecoder::new(bytes);
    let mut unpacked = Vec::new();
    let read = decoder.by_ref().take(most + 1).read_to_end(&mut unpacked);
    if read.is_err() || unpacked.len() as u64 > most {
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

/// The text of an index that `verify` takes: given its signature, and what that signs.
pub(crate) fn index(
    url: &str,
    bytes: &[u8],
    verify: impl FnOnce(&Signature, &[u8]) -> Result<(), Error>,
) -> Result<String, Error> {
    let (signature, signed) = stream(url, bytes, MOST_SIGNATURE)?;
    verify(&Signature::of(url, &signature)?, signed)?;
    let (archive, _) = stream(url, signed, MOST)?;
    member(&archive, "APKINDEX").ok_or_else(|| Error::unusable(url, "it holds no file APKINDEX"))
}

/// The part of a package with its files, if `verify` takes the package and it is the one that the index names.
pub(crate) fn data<'a>(
    url: &str,
    bytes: &'a [u8],
    entry: &Entry,
    verify: impl FnOnce(&Signature, &[u8]) -> Result<(), Error>,
) -> Result<&'a [u8], Error> {
    let bad = |why: &str| Error::unusable(url, why);
    let (signature, signed) = stream(url, bytes, MOST_SIGNATURE)?;
    let (control, data) = stream(url, signed, MOST_DESCRIPTION)?;
    let control_bytes = signed.get(..signed.len() - data.len()).unwrap_or_default();
    verify(&Signature::of(url, &signature)?, control_bytes)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::tests::gzip;

    #[test]
    fn what_nobody_vouches_for_takes_little_memory() {
        let unasked = |_: &Signature, _: &[u8]| panic!("what is this large is no signature");
        let large = vec![0; MOST_SIGNATURE as usize + 1];
        let refused = index("url", &gzip(&large), unasked).unwrap_err().to_string();
        assert!(refused.starts_with("url is no good: it is not made of gzip streams"), "{refused}");
        let entry = Entry::parse("P:a\nV:1", "").unwrap();
        let large = vec![0; MOST_DESCRIPTION as usize + 1];
        let package = [gzip(b"signature"), gzip(&large)].concat();
        assert!(data("url", &package, &entry, unasked).unwrap_err().to_string().contains("gzip streams"));
    }
}
