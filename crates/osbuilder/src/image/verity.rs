//! The hash tree of dm-verity, and the line that names its root.
//!
//! The format is the kernel's (`Documentation/admin-guide/device-mapper/verity.rst`), version 1: SHA-256 over the salt and a block of
//! 4096 bytes; 128 digests fill a block of the level above; the highest level, one block, comes first. There is no superblock
//! in front of the tree: everything in it would have to be trusted from elsewhere anyway, and the kernel does not read it.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use sha2::{Digest, Sha256};

use crate::{Error, run};

/// Size of a block, of data and of digests.
pub(crate) const BLOCK: usize = 4096;

/// Size of a digest.
const DIGEST: usize = 32;

/// What the kernel needs to know to check a root file system. Displayed in the form that upstream's `kernel_verity_params` has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// The digest of the highest block.
    pub root_hash: [u8; DIGEST],
    /// Hashed in front of each block.
    pub salt: Vec<u8>,
    /// The length of the data, in blocks of 4096 bytes.
    pub data_blocks: u64,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (root, salt, blocks) = (hex(&self.root_hash), hex(&self.salt), self.data_blocks);
        write!(f, "root_hash={root},salt={salt},data_blocks={blocks},data_block_size={BLOCK},hash_block_size={BLOCK}")
    }
}

impl FromStr for Parameters {
    type Err = String;

    fn from_str(text: &str) -> Result<Parameters, String> {
        let (mut root_hash, mut salt, mut data_blocks) = (None, None, None);
        for field in text.trim().split(',') {
            let (name, value) = field.split_once('=').ok_or_else(|| format!("{field:?} is not NAME=VALUE"))?;
            match name {
                "root_hash" => root_hash = unhex(value).and_then(|hash| <[u8; DIGEST]>::try_from(hash).ok()),
                "salt" => salt = unhex(value),
                "data_blocks" => data_blocks = value.parse().ok(),
                "data_block_size" | "hash_block_size" if value == "4096" => {}
                "data_block_size" | "hash_block_size" => {
                    return Err(format!("{name} is {value}; only 4096 is written here"));
                }
                _ => return Err(format!("{name} is not known")),
            }
        }
        let missing = |name: &str| format!("{name} is missing or malformed");
        Ok(Parameters {
            root_hash: root_hash.ok_or_else(|| missing("root_hash"))?,
            salt: salt.ok_or_else(|| missing("salt"))?,
            data_blocks: data_blocks.ok_or_else(|| missing("data_blocks"))?,
        })
    }
}

/// A tree: all its blocks, highest first, and its root.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HashTree {
    pub(crate) blocks: Vec<u8>,
    pub(crate) root: [u8; DIGEST],
}

impl HashTree {
    /// Hashes `blocks` blocks of `data`. `failed` makes an error of a failure to read them.
    pub(crate) fn of(
        mut data: impl Read,
        blocks: u64,
        salt: &[u8],
        failed: impl Fn(io::Error) -> Error,
    ) -> Result<HashTree, Error> {
        let mut block = vec![0; BLOCK];
        let mut lowest = Vec::new();
        for number in 0..blocks {
            if number % 4096 == 0 {
                run::check()?;
            }
            data.read_exact(&mut block).map_err(&failed)?;
            lowest.extend(digest(salt, &block));
        }
        Ok(HashTree::above(lowest, salt))
    }

    fn above(mut digests: Vec<u8>, salt: &[u8]) -> HashTree {
        let mut levels = Vec::new();
        // A single block needs no tree: its digest is the root.
        while digests.len() > DIGEST {
            digests.resize(digests.len().next_multiple_of(BLOCK), 0);
            let above = digests.chunks(BLOCK).flat_map(|block| digest(salt, block)).collect();
            levels.push(std::mem::replace(&mut digests, above));
        }
        levels.reverse();
        HashTree { blocks: levels.concat(), root: digests.first_chunk().copied().unwrap_or([0; DIGEST]) }
    }

    /// The first data block whose digest differs from that in `stored`, the blocks of another tree over as much data.
    pub(crate) fn first_difference(&self, stored: &[u8], data_blocks: u64) -> Option<u64> {
        let lowest = (data_blocks as usize).div_ceil(BLOCK / DIGEST) * BLOCK;
        let start = self.blocks.len().checked_sub(lowest)?;
        let (own, other) = (self.blocks.get(start..)?, stored.get(start..)?);
        let position = own.chunks(DIGEST).zip(other.chunks(DIGEST)).position(|(own, other)| own != other)?;
        Some(position as u64)
    }
}

fn digest(salt: &[u8], block: &[u8]) -> [u8; DIGEST] {
    Sha256::new().chain_update(salt).chain_update(block).finalize().into()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits?;
    if digits.len() % 2 != 0 {
        return None;
    }
    Some(digits.chunks(2).filter_map(|pair| Some(pair.first()? << 4 | pair.last()?)).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|i| (i / 7 % 251) as u8).collect()
    }

    fn tree(data: &[u8]) -> HashTree {
        let blocks = (data.len() / BLOCK) as u64;
        HashTree::of(data, blocks, &[7; 32], |source| Error::Read { path: "data".into(), source }).unwrap()
    }

    /// One, two and three levels, a full level, and no tree at all.
    #[test]
    fn cryptsetup_agrees() {
        if Command::new("veritysetup").arg("--version").output().is_err() {
            eprintln!("skipped: needs veritysetup (Debian: cryptsetup-bin)");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (data_file, hash_file) = (directory.path().join("data"), directory.path().join("hash"));
        for blocks in [2, 127, 128, 129, 16384, 16385] {
            let data = data(blocks);
            let tree = tree(&data);
            fs::write(&data_file, &data).unwrap();
            fs::write(&hash_file, &tree.blocks).unwrap();
            let verify = |root: &[u8]| {
                let output = Command::new("veritysetup")
                    .args(["verify", "--no-superblock", "--hash=sha256", "--salt", &hex(&[7; 32])])
                    .arg(format!("--data-blocks={blocks}"))
                    .args([data_file.as_os_str(), hash_file.as_os_str(), hex(root).as_ref()])
                    .output()
                    .unwrap();
                (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
            };
            let (good, said) = verify(&tree.root);
            assert!(good, "{blocks} blocks: {said}");
            assert!(!verify(&[1; 32]).0);
        }
        assert_eq!(tree(&data(1)).root, digest(&[7; 32], &data(1)));
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut bytes = data(300);
        let good = tree(&bytes);
        bytes[BLOCK * 200 + 5] ^= 1;
        let bad = tree(&bytes);
        assert_ne!(good.root, bad.root);
        assert_eq!(bad.first_difference(&good.blocks, 300), Some(200));
        assert_eq!(good.first_difference(&good.blocks, 300), None);
    }

    #[test]
    fn the_line_is_read_back_and_a_wrong_one_refused() {
        let parameters = Parameters { root_hash: [0xab; 32], salt: vec![1, 2], data_blocks: 77 };
        let line = parameters.to_string();
        let hash = "ab".repeat(32);
        assert_eq!(
            line,
            format!("root_hash={hash},salt=0102,data_blocks=77,data_block_size=4096,hash_block_size=4096")
        );
        assert_eq!(format!("{line}\n").parse(), Ok(parameters));
        for (wrong, expected) in [
            ("", "is not NAME=VALUE"),
            ("root_hash=12,salt=,data_blocks=1", "root_hash is missing or malformed"),
            (&line.replace("salt=0102", "salt=012"), "salt is missing or malformed"),
            (&line.replace("=4096", "=512"), "data_block_size is 512"),
            (&format!("{line},x=1"), "x is not known"),
        ] {
            let error = Parameters::from_str(wrong).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
