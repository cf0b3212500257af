//! An OCI image (image specification 1.1): a layout in a directory, or an archive of one.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{Root, path_of};
use crate::{
    Architecture, Error,
    compression::Compression,
    image::verity::hex,
    run,
    tree::{
        archive::{MOST_BYTES, Unpacker, each},
        clean,
    },
};

/// More than any index, manifest or configuration, bytes.
const MOST_JSON: u64 = 4 << 20;

/// How deep indexes may refer to indexes.
const DEEPEST: u32 = 4;

/// More images than any index refers to, over all indexes.
const MOST_IMAGES: u32 = 1000;

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

pub(crate) fn root(path: &Path, architecture: Option<Architecture>) -> Result<Root, Error> {
    let work = run::work_directory()?;
    let layout = Layout::open(path, &work)?;
    let bad = |why: String| Error::unusable(path, why);
    let wanted = architecture.map(Architecture::oci).ok_or_else(|| bad("name a processor with --arch".into()))?;
    let manifest = layout.manifest(wanted)?;
    let contents = path_of(&work, "contents");
    fs::create_dir(&contents).map_err(|source| Error::Write { path: contents.clone(), source })?;
    let mut unpacker = Unpacker::new(&contents);
    for layer in &manifest.layers {
        let (blob, mut file) = layout.blob(layer)?;
        unpacker.remove(&blob, plain(&blob, &mut file)?)?;
        unpacker.add(&blob, plain(&blob, &mut file)?)?;
    }
    let tree = unpacker.tree;
    Ok(Root { tree, description: "an OCI image".into(), _keep: vec![work], ..Root::default() })
}

/// A layer from its beginning, decompressed. What it is compressed with is told by its contents: media types are many.
fn plain<'a>(path: &Path, file: &'a mut File) -> Result<Box<dyn Read + 'a>, Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Read::take(&mut *file, 8).read_to_end(&mut start).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let reader = io::BufReader::with_capacity(1 << 18, file);
    Ok(match Compression::of(&start) {
        None => Box::new(reader),
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Some(Compression::Zstd) => Box::new(zstd::Decoder::with_buffer(reader).map_err(failed)?),
        // Image specification 1.1 has no layers of it, and whoever packs it chooses what unpacking takes, up to 4 GiB of memory.
        Some(Compression::Xz) => {
            let remedy = "`unxz` an archive, or have `skopeo copy --dest-compress --dest-compress-format gzip` pack its layers anew";
            return Err(Error::unusable(
                path,
                format!("it is compressed with xz, where gzip and zstd can be read; {remedy}"),
            ));
        }
    })
}

struct Layout {
    named: PathBuf,
    directory: PathBuf,
}

impl Layout {
    fn open(path: &Path, work: &TempDir) -> Result<Layout, Error> {
        let directory = if path.is_dir() { path.to_path_buf() } else { unpack(path, work)? };
        let layout = Layout { named: path.to_path_buf(), directory };
        if !layout.directory.join("oci-layout").is_file() {
            let remedy = "`skopeo copy docker-archive:FILE oci:DIRECTORY` makes one of an image in another form";
            return Err(layout.bad(format!("it is no OCI image layout: it holds no oci-layout; {remedy}")));
        }
        Ok(layout)
    }

    fn bad(&self, why: impl Into<String>) -> Error {
        Error::unusable(&self.named, why)
    }

    /// Opens one of its files, and says by which name an error tells of that: not that of where an archive was unpacked.
    fn open_file(&self, file: impl AsRef<Path>) -> Result<(PathBuf, File), Error> {
        let path = self.named.join(file.as_ref());
        match File::open(self.directory.join(file)) {
            Ok(opened) => Ok((path, opened)),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    fn json<T: DeserializeOwned>(&self, what: &str, mut file: impl Read) -> Result<T, Error> {
        let mut bytes = Vec::new();
        let read = Read::take(&mut file, MOST_JSON + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::Read { path: self.named.join(what), source })?;
        if bytes.len() as u64 > MOST_JSON {
            return Err(self.bad(format!("its {what} is longer than {MOST_JSON} bytes")));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.bad(format!("its {what} cannot be read: {error}")))
    }

    fn manifest(&self, wanted: &str) -> Result<Manifest, Error> {
        let index: Index = self.json("index.json", self.open_file("index.json")?.1)?;
        let mut found = Vec::new();
        self.matching(&index, wanted, 0, &mut 0, &mut found)?;
        match found.len() {
            0 => Err(self.bad(format!("it holds no image for linux/{wanted}; --arch names another processor"))),
            1 => found.pop().ok_or_else(|| self.bad("it holds no image")),
            count => {
                Err(self
                    .bad(format!("it holds {count} images for linux/{wanted}; make a layout of the one that is meant")))
            }
        }
    }

    fn matching(
        &self,
        index: &Index,
        wanted: &str,
        depth: u32,
        seen: &mut u32,
        found: &mut Vec<Manifest>,
    ) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(self.bad("its indexes refer to each other too deeply"));
        }
        for descriptor in &index.manifests {
            // Few indexes that name one another many times would never come to an end.
            *seen += 1;
            if *seen > MOST_IMAGES {
                return Err(self.bad(format!("its indexes refer to more than {MOST_IMAGES} images")));
            }
            let other =
                |platform: &Platform| (platform.os.as_str(), platform.architecture.as_str()) != ("linux", wanted);
            if descriptor.platform.as_ref().is_some_and(other) {
                continue;
            }
            let (_, blob) = self.blob(descriptor)?;
            if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
                self.matching(&self.json("index", blob)?, wanted, depth + 1, seen, found)?;
                continue;
            }
            let manifest: Manifest = self.json("manifest", blob)?;
            // Without a platform beside it the configuration tells.
            let platform: Platform = self.json("configuration", self.blob(&manifest.config)?.1)?;
            if !other(&platform) {
                found.push(manifest);
            }
        }
        Ok(())
    }

    /// Opens a blob whose contents are what its digest says.
    fn blob(&self, descriptor: &Descriptor) -> Result<(PathBuf, File), Error> {
        let digest = descriptor.digest.strip_prefix("sha256:").filter(|digest| is_digest(digest));
        let Some(digest) = digest else {
            return Err(self.bad(format!("{:?} is no SHA-256 digest; others are not known here", descriptor.digest)));
        };
        let (path, mut file) = self.open_file(Path::new("blobs/sha256").join(digest))?;
        let failed = |source| Error::Read { path: path.clone(), source };
        if file.metadata().map_err(failed)?.len() != descriptor.size {
            return Err(self.bad(format!("its blob {digest} is not as long as it should be; it may be cut off")));
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            run::check()?;
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => hash.update(buffer.get(..count).unwrap_or_default()),
            }
        }
        if hex(&hash.finalize()) != digest {
            return Err(self.bad(format!("its blob {digest} does not match its digest; it is damaged or was changed")));
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok((path, file))
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Takes a layout out of an archive, just the files that a layout has.
fn unpack(path: &Path, work: &TempDir) -> Result<PathBuf, Error> {
    let directory = path_of(work, "layout");
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|source| Error::Write { path: blobs.clone(), source })?;
    let mut file = run::open(path)?;
    let mut left = MOST_BYTES;
    each(path, plain(path, &mut file)?, |mut entry, name| {
        let Some(name) = clean(name).and_then(|name| Some(name.to_str()?.to_owned())) else { return Ok(()) };
        let to = match name.strip_prefix("blobs/sha256/") {
            Some(digest) if is_digest(digest) => blobs.join(digest),
            None if name == "oci-layout" || name == "index.json" => directory.join(name),
            _ => return Ok(()),
        };
        if !entry.header().entry_type().is_file() {
            return Ok(());
        }
        left = left.checked_sub(entry.size()).ok_or_else(|| format!("it holds more than {} GiB", MOST_BYTES >> 30))?;
        let failed = |error: io::Error| format!("it cannot be unpacked to {}: {error}", to.display());
        let mut out = File::create(&to).map_err(failed)?;
        io::copy(&mut entry, &mut out).map_err(failed)?;
        Ok(())
    })?;
    Ok(directory)
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
