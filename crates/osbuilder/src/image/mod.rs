//! A disk image: a partition table, a root file system, and the tree that verifies it.
//!
//! ```text
//! 1 MiB                                        next MiB           last 33 sectors
//! GPT │ partition 1: root, erofs or ext4 │ partition 2: dm-verity tree │ GPT
//! ```
//!
//! The root file system is only ever read. With verity its digest decides everything else: the salt is the digest of its contents, the
//! partitions' identifiers are taken from the root hash, so that the same contents give the same image, and another image never has
//! the same identifiers. The parameters that the kernel needs stand in one line in a file beside the image, `IMAGE.verity`; whoever
//! trusts an image by its root hash keeps that line elsewhere.

mod ext4;
mod fs;
pub(crate) mod gpt;
pub(crate) mod verity;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use verity::Parameters;

use self::{
    gpt::{Guid, Partition},
    verity::{BLOCK, HashTree},
};
use crate::{Architecture, Error, output::Output, read, run, tree::Tree};

/// The identifier of every root file system: nothing looks for it, but without one the tools take it from chance.
const FILE_SYSTEM: Guid = 0x6b617461_6775_4573_8000_726f6f746673_u128.to_be_bytes();

/// The partitions' names.
const ROOT: &str = "root";
const ROOT_VERITY: &str = "root-verity";

/// The file system in a disk image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileSystem {
    /// Made for reading only: small, quick, simple to parse.
    #[default]
    Erofs,
    /// For kernels without erofs.
    Ext4,
}

/// What a disk image is like.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// The file system of its root.
    pub file_system: FileSystem,
    /// Whether it can be verified while it is read.
    pub verity: bool,
}

/// Finds the tools that a disk image is made with.
pub(crate) fn preconditions(disk: &Disk) -> Result<(), Error> {
    match disk.file_system {
        FileSystem::Erofs => fs::MKFS_EROFS.find().map(drop),
        FileSystem::Ext4 => fs::EXT4_TOOLS.iter().try_for_each(|tool| tool.find().map(drop)),
    }
}

/// Writes a disk image into `output`, without giving it its name yet.
pub(crate) fn write(
    tree: &Tree,
    architecture: Architecture,
    disk: &Disk,
    epoch: u32,
    output: &mut Output,
) -> Result<Option<Parameters>, Error> {
    let work = run::work_directory()?;
    let made = work.path().join("image");
    let room = work.path().join("room");
    std::fs::create_dir(&room).map_err(|source| Error::Write { path: room.clone(), source })?;
    match disk.file_system {
        FileSystem::Erofs => fs::erofs(tree, epoch, FILE_SYSTEM, &room, &made)?,
        FileSystem::Ext4 => fs::ext4(tree, epoch, FILE_SYSTEM, &room, &made)?,
    }
    let length = whole_blocks(&made)?;
    let failed = output.failed();
    let reading = |source| Error::Read { path: made.clone(), source };

    let (starts, _) = gpt::layout(&[length]);
    let start = starts.first().copied().unwrap_or_default();
    let contents = copy_sparsely(&made, output.file(), start, &failed)?;
    let verity = if disk.verity {
        let blocks = length / BLOCK as u64;
        let hashes =
            HashTree::of(io::BufReader::with_capacity(1 << 20, run::open(&made)?), blocks, &contents, reading)?;
        Some((Parameters { root_hash: hashes.root, salt: contents.to_vec(), data_blocks: blocks }, hashes))
    } else {
        None
    };

    let identity = verity.as_ref().map_or(contents, |(parameters, _)| parameters.root_hash);
    let (first, second) = identity.split_at(16);
    let ids = [first, second].map(|half| half.try_into().unwrap_or_default());
    let (root_type, verity_type) = gpt::types(architecture);
    let mut wanted = vec![(ROOT, root_type, ids[0], length)];
    if let Some((_, hashes)) = &verity {
        // A partition has at least one block.
        wanted.push((ROOT_VERITY, verity_type, ids[1], hashes.blocks.len().max(BLOCK) as u64));
    }
    let lengths: Vec<u64> = wanted.iter().map(|(.., length)| *length).collect();
    let (starts, total) = gpt::layout(&lengths);
    let partitions: Vec<Partition> = wanted
        .into_iter()
        .zip(&starts)
        .map(|((name, kind, id, length), start)| Partition { kind, id, name: name.into(), start: *start, length })
        .collect();
    let (front, back) = gpt::tables(disk_id(&identity), &partitions, total);
    let mut pieces = vec![(0, &front), (total - back.len() as u64, &back)];
    if let (Some((_, hashes)), Some(start)) = (&verity, starts.get(1)) {
        pieces.push((*start, &hashes.blocks));
    }
    let file = output.file();
    file.set_len(total).map_err(&failed)?;
    for (at, bytes) in pieces {
        file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).map_err(&failed)?;
    }
    Ok(verity.map(|(parameters, _)| parameters))
}

fn disk_id(identity: &[u8; 32]) -> Guid {
    let digest: [u8; 32] = Sha256::new().chain_update(b"disk").chain_update(identity).finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}

/// Makes a file's length a multiple of the block size, and returns it.
fn whole_blocks(path: &Path) -> Result<u64, Error> {
    let failed = |source| Error::Write { path: path.to_path_buf(), source };
    let file = File::options().write(true).open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len().next_multiple_of(BLOCK as u64);
    file.set_len(length).map_err(failed)?;
    Ok(length)
}

/// Copies a file to `start` in another, leaving holes where it is zero, and returns the digest of its contents.
fn copy_sparsely(
    from: &Path,
    to: &mut File,
    start: u64,
    failed: impl Fn(io::Error) -> Error,
) -> Result<[u8; 32], Error> {
    let mut file = io::BufReader::with_capacity(1 << 20, run::open(from)?);
    let mut digest = Sha256::new();
    let mut block = vec![0; 16 * BLOCK];
    let mut at = start;
    loop {
        run::check()?;
        let mut count = 0;
        while let Some(rest) = block.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).map_err(|source| Error::Read { path: from.to_path_buf(), source })? {
                0 => break,
                more => count += more,
            }
        }
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(digest.finalize().into());
        }
        digest.update(bytes);
        if bytes.iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(at)).and_then(|_| to.write_all(bytes)).map_err(&failed)?;
        }
        at += count as u64;
    }
}

/// The file beside `image` with its verity parameters.
#[must_use]
pub fn parameters_file(image: &Path) -> PathBuf {
    beside(image, ".verity")
}

pub(crate) fn beside(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Checks every block of a disk image's root file system, and every block of its tree, against the parameters in `line`, or, without
/// that, in the file beside the image.
///
/// # Errors
/// [`Error::Read`], or [`Error::Unusable`] that says what is damaged.
pub fn verify(image: &Path, line: Option<&str>) -> Result<Parameters, Error> {
    let bad = |why: String| Error::unusable(image, why);
    let (source, line) = match line {
        Some(line) => ("the verity parameters given".to_owned(), line.to_owned()),
        None => {
            let path = parameters_file(image);
            let line = read(&path)?;
            (path.display().to_string(), String::from_utf8_lossy(&line).into_owned())
        }
    };
    let parameters: Parameters = line.parse().map_err(|why| bad(format!("{source}: {why}")))?;
    let reading = |source| Error::Read { path: image.to_path_buf(), source };
    let mut file = run::open(image)?;
    let length = file.metadata().map_err(reading)?.len();
    let mut front = Vec::new();
    (&mut file).take(gpt::FRONT as u64).read_to_end(&mut front).map_err(reading)?;
    let partitions = gpt::parse(&front, length).map_err(bad)?;
    let [root, tree] = partitions.as_slice() else {
        return Err(bad(format!(
            "it has {} partitions; a verified image has two, {ROOT} and {ROOT_VERITY}",
            partitions.len()
        )));
    };
    if root.length != parameters.data_blocks.saturating_mul(BLOCK as u64) {
        return Err(bad(format!(
            "its root has {} blocks, {source} says {}",
            root.length / BLOCK as u64,
            parameters.data_blocks
        )));
    }
    file.seek(SeekFrom::Start(tree.start)).map_err(reading)?;
    let mut stored = Vec::new();
    (&mut file).take(tree.length).read_to_end(&mut stored).map_err(reading)?;
    file.seek(SeekFrom::Start(root.start)).map_err(reading)?;
    let data = io::BufReader::with_capacity(1 << 20, file);
    let computed = HashTree::of(data, parameters.data_blocks, &parameters.salt, reading)?;
    if let Some(block) = computed.first_difference(&stored, parameters.data_blocks) {
        let at = root.start + block * BLOCK as u64;
        return Err(bad(format!(
            "block {block} of its root file system (byte {at} of the image) does not match its digest; the image is damaged or was changed"
        )));
    }
    if !stored.starts_with(&computed.blocks) {
        return Err(bad("its verity tree is damaged above the lowest level".into()));
    }
    if computed.root != parameters.root_hash {
        let hex = verity::hex(&computed.root);
        return Err(bad(format!(
            "its root hash is {hex}, not what {source} says; the parameters belong to another image"
        )));
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests;
