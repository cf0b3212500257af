//! What reads the bytes of mirrors and images, as functions of bytes: for tests that feed it. A build goes through the same code, after
//! it has fetched them.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    Architecture, Error, cpio,
    sources::{apk, oci, packages},
    tree::{Tree, archive::Unpacker},
};

/// What names an archive in errors.
pub const NAME: &str = "of-a-mirror";

/// A root file system that some bytes have become.
#[derive(Debug)]
pub struct Unpacked {
    /// All names in it, from the root.
    pub names: Vec<PathBuf>,
    /// How long its initrd is.
    pub length: u64,
}

impl Unpacked {
    fn of(tree: &Tree) -> Result<Unpacked, Error> {
        packages::in_tree(tree)?;
        let mut written = Length(0);
        cpio::write(tree, 0, &mut written, |source| Error::Write { path: NAME.into(), source })?;
        Ok(Unpacked { names: tree.iter().map(|(name, ..)| name.to_path_buf()).collect(), length: written.0 })
    }
}

struct Length(u64);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks tar archives one over the other, as layers of an image are. Contents go into `directory`.
///
/// # Errors
/// As of a build.
pub fn layers(archives: &[&[u8]], directory: &Path) -> Result<Unpacked, Error> {
    let mut unpacker = Unpacker::new(directory);
    for archive in archives {
        unpacker.remove(Path::new(NAME), *archive)?;
        unpacker.add(Path::new(NAME), *archive)?;
    }
    Unpacked::of(&unpacker.tree)
}

/// Reads an OCI image layout, in a directory or an archive, for x86-64.
///
/// # Errors
/// As of a build.
pub fn layout(path: &Path) -> Result<Unpacked, Error> {
    Unpacked::of(&oci::root(path, Some(Architecture::X86_64))?.tree)
}

/// The text of Alpine's index, as if somebody had vouched for it.
///
/// # Errors
/// As of a build.
pub fn alpine_index(bytes: &[u8]) -> Result<String, Error> {
    apk::package::index(NAME, bytes, |_, _| Ok(()))
}

/// What is fetched, in order, for the package `wanted` and what it needs, if this is an index's text.
///
/// # Errors
/// Which of them cannot be had.
pub fn alpine_packages(index: &str, wanted: &str) -> Result<Vec<String>, Error> {
    let mut known = apk::index::Index::default();
    known.add(index, NAME);
    let chosen = known.resolve(&[wanted.to_owned()]).map_err(Error::Usage)?;
    Ok(chosen.iter().map(apk::index::Entry::url).collect())
}

/// Unpacks a package of Alpine's, of which the index says `entry`, as if somebody had vouched for it. Nothing of an entry that makes no
/// sense is unpacked.
///
/// # Errors
/// As of a build.
pub fn alpine_package(entry: &str, bytes: &[u8], directory: &Path) -> Result<Option<Unpacked>, Error> {
    let Some(entry) = apk::index::Entry::parse(entry, NAME) else { return Ok(None) };
    let data = apk::package::data(NAME, bytes, &entry, |_, _| Ok(()))?;
    let mut unpacker = Unpacker::new(directory);
    unpacker.add(Path::new(NAME), flate2::bufread::MultiGzDecoder::new(data))?;
    Unpacked::of(&unpacker.tree).map(Some)
}
