//! The parameters of dm-verity, by which a guest's kernel checks each block of its image that it reads.

use std::fmt::Write;

/// Size of a sector in device-mapper's tables, bytes.
const SECTOR: u64 = 512;

/// Length of the superblock in front of a hash tree that is looked at, bytes.
pub(super) const SUPERBLOCK_SIZE: usize = 88 + SALT_LIMIT;

/// What a superblock starts with.
const MAGIC: &[u8] = b"verity\0\0";

/// Bytes of a SHA-256 hash, of which the tree is made.
const HASH_SIZE: usize = 32;

/// Most bytes of salt, by the format.
const SALT_LIMIT: usize = 256;

/// What parameters look like.
const EXPECTED: &str = "root_hash=<64 hex digits>,salt=<hex digits>,data_blocks=<number>,data_block_size=<bytes>,\
                        hash_block_size=<bytes> was expected";

/// The parameters of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verity {
    root_hash: String,
    salt: String,
    data_blocks: u64,
    data_block_size: u64,
    hash_block_size: u64,
}

impl Verity {
    /// Reads `root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…`, in any order. An empty salt may be
    /// left out or be `-`.
    ///
    /// # Errors
    /// What is wrong, and what was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut root_hash, mut salt) = (None, None);
        let (mut data_blocks, mut data_block_size, mut hash_block_size) = (None, None, None);
        for field in text.trim().split(',') {
            let Some((key, value)) = field.split_once('=') else {
                return Err(format!("{field:?} is no key with a value: {EXPECTED}"));
            };
            let target = match key {
                "root_hash" => &mut root_hash,
                "salt" => &mut salt,
                "data_blocks" => &mut data_blocks,
                "data_block_size" => &mut data_block_size,
                "hash_block_size" => &mut hash_block_size,
                _ => return Err(format!("{key:?} is no parameter: {EXPECTED}")),
            };
            if target.replace(value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(Self {
            root_hash: hex("root_hash", root_hash, HASH_SIZE..=HASH_SIZE)?,
            salt: hex("salt", salt.filter(|salt| *salt != "-").or(Some("")), 0..=SALT_LIMIT)?,
            data_blocks: number("data_blocks", data_blocks)?,
            data_block_size: block_size("data_block_size", data_block_size)?,
            hash_block_size: block_size("hash_block_size", hash_block_size)?,
        })
    }

    /// Bytes that are checked; `None` if there cannot be as many.
    pub(super) fn data_length(&self) -> Option<u64> {
        self.data_blocks.checked_mul(self.data_block_size).filter(|length| i64::try_from(*length).is_ok())
    }

    /// Bytes of the hash tree and the `start` hash blocks in front of it.
    pub(super) fn tree_length(&self, start: u64) -> Option<u64> {
        let per_block = self.hash_block_size / HASH_SIZE as u64;
        let (mut level, mut blocks) = (self.data_blocks, start);
        while level > 1 {
            level = level.div_ceil(per_block);
            blocks = blocks.checked_add(level)?;
        }
        blocks.checked_mul(self.hash_block_size)
    }

    /// The hash block at which the tree starts behind the superblock that a partition may start with; an error if that says
    /// otherwise than these parameters. Only they are to be trusted: the superblock is part of the image.
    ///
    /// # Errors
    /// What differs.
    pub(super) fn tree_start(&self, head: &[u8; SUPERBLOCK_SIZE]) -> Result<u64, String> {
        if !is_superblock(head) {
            return Ok(0);
        }
        let number = |at: usize| u64::from(super::u32_at(head, at));
        let salt_size = usize::from(super::u16_at(head, 80));
        let salt = head.get(88..88 + salt_size).map(to_hex);
        let algorithm = head[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
        let differs = if (number(8), number(12)) != (1, 1) {
            Some("its version")
        } else if algorithm != b"sha256" {
            Some("the hash algorithm")
        } else if number(64) != self.data_block_size {
            Some("data_block_size")
        } else if number(68) != self.hash_block_size {
            Some("hash_block_size")
        } else if super::u64_at(head, 72) != self.data_blocks {
            Some("data_blocks")
        } else if salt.as_deref() != Some(&self.salt) {
            Some("salt")
        } else {
            None
        };
        match differs {
            Some(what) => Err(format!("its verity superblock contradicts the parameters in {what}")),
            None => Ok(1),
        }
    }

    /// The line of a device-mapper table, for what is to become a block device in the guest.
    pub(crate) fn table(&self, data: &str, hashes: &str, tree_start: u64) -> String {
        let Self { root_hash, salt, data_blocks, data_block_size, hash_block_size } = self;
        let sectors = data_blocks * data_block_size / SECTOR;
        let salt = if salt.is_empty() { "-" } else { salt };
        // What is not as it was built must not be read as an error that a program may handle: the guest ends.
        format!(
            "0 {sectors} verity 1 {data} {hashes} {data_block_size} {hash_block_size} {data_blocks} {tree_start} sha256 \
             {root_hash} {salt} 1 panic_on_corruption"
        )
    }
}

/// Whether a partition starts with a verity superblock.
pub(super) fn is_superblock(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn hex(key: &str, value: Option<&str>, bytes: std::ops::RangeInclusive<usize>) -> Result<String, String> {
    let Some(value) = value else { return Err(format!("{key} is missing: {EXPECTED}")) };
    let digits = value.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits && value.len().is_multiple_of(2) && bytes.contains(&(value.len() / 2)) {
        return Ok(value.to_ascii_lowercase());
    }
    Err(format!("{key} is {value:?}: {EXPECTED}"))
}

fn number(key: &str, value: Option<&str>) -> Result<u64, String> {
    let Some(value) = value else { return Err(format!("{key} is missing: {EXPECTED}")) };
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{key} is {value:?}: {EXPECTED}")),
    }
}

/// A block size that every guest's kernel takes: not above the smallest page.
fn block_size(key: &str, value: Option<&str>) -> Result<u64, String> {
    match number(key, value)? {
        size if size.is_power_of_two() && (512..=4096).contains(&size) => Ok(size),
        size => Err(format!("{key} is {size}, but 512, 1024, 2048 or 4096 was expected")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Parameters in their usual form.
    pub(in super::super) fn text(data_blocks: u64) -> String {
        let hash = "ab".repeat(32);
        format!("root_hash={hash},salt=0011,data_blocks={data_blocks},data_block_size=4096,hash_block_size=4096")
    }

    /// The superblock that belongs to [`text`].
    pub(in super::super) fn superblock(data_blocks: u64) -> [u8; SUPERBLOCK_SIZE] {
        let mut head = [0; SUPERBLOCK_SIZE];
        head[..8].copy_from_slice(MAGIC);
        (head[8], head[12], head[80], head[89]) = (1, 1, 2, 0x11);
        head[32..38].copy_from_slice(b"sha256");
        head[64..68].copy_from_slice(&4096u32.to_le_bytes());
        head[68..72].copy_from_slice(&4096u32.to_le_bytes());
        head[72..80].copy_from_slice(&data_blocks.to_le_bytes());
        head
    }

    #[test]
    fn parameters_become_a_table() {
        let verity = Verity::parse(&format!("{}\n", text(1000))).unwrap();
        let hash = "ab".repeat(32);
        assert_eq!(
            verity.table("/dev/vda1", "/dev/vda2", 1),
            format!("0 8000 verity 1 /dev/vda1 /dev/vda2 4096 4096 1000 1 sha256 {hash} 0011 1 panic_on_corruption")
        );
        for without in [text(1000).replace("0011", "-"), text(1000).replace("salt=0011,", "")] {
            assert!(Verity::parse(&without).unwrap().table("a", "b", 0).contains(&format!("{hash} - 1 panic")));
        }
        assert_eq!(verity, Verity::parse(&text(1000).replace("ab", "AB")).unwrap());
    }

    #[test]
    fn malformed_parameters_are_refused_in_words() {
        for (from, to, part) in [
            ("root_hash=ab", "root_hash=", "root_hash is"),
            ("root_hash=ab", "root_hash=zz", "root_hash is"),
            ("root_hash=", "roothash=", "\"roothash\" is no parameter"),
            ("salt=0011", "salt=001", "salt is \"001\""),
            ("salt=0011", "salt=0011 quiet", "salt is"),
            ("data_blocks=1000", "data_blocks=0", "data_blocks is \"0\""),
            ("data_blocks=1000", "data_blocks=-1", "data_blocks is \"-1\""),
            ("data_blocks=1000,", "", "data_blocks is missing"),
            ("data_blocks=1000", "data_blocks=1,data_blocks=1", "data_blocks is given twice"),
            ("data_block_size=4096", "data_block_size=4095", "data_block_size is 4095"),
            ("hash_block_size=4096", "hash_block_size=65536", "hash_block_size is 65536"),
            ("salt=0011", "salt", "\"salt\" is no key"),
        ] {
            let text = text(1000).replacen(from, to, 1);
            let error = Verity::parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Verity::parse("").unwrap_err().contains("\"\" is no key"));
        assert!(Verity::parse(&text(1000).replace("0011", &"00".repeat(257))).is_err());
    }

    #[test]
    fn lengths_are_those_of_the_tree() {
        let lengths = |blocks| {
            let verity = Verity::parse(&text(blocks)).unwrap();
            (verity.data_length(), verity.tree_length(0))
        };
        assert_eq!(lengths(1), (Some(4096), Some(0)));
        assert_eq!(lengths(128), (Some(128 * 4096), Some(4096)));
        assert_eq!(lengths(129), (Some(129 * 4096), Some(3 * 4096)));
        assert_eq!(lengths(128 * 128 + 1), (Some((128 * 128 + 1) * 4096), Some((129 + 2 + 1) * 4096)));
        assert_eq!(lengths(u64::MAX).0, None);
        assert_eq!(Verity::parse(&text(128)).unwrap().tree_length(1), Some(2 * 4096));
    }

    #[test]
    fn a_superblock_must_agree() {
        let verity = Verity::parse(&text(1000)).unwrap();
        assert_eq!(verity.tree_start(&superblock(1000)), Ok(1));
        assert_eq!(verity.tree_start(&[0; SUPERBLOCK_SIZE]), Ok(0));
        for (at, what) in [
            (8, "version"),
            (12, "version"),
            (33, "algorithm"),
            (64, "data_block_size"),
            (68, "hash_block_size"),
            (72, "data_blocks"),
            (80, "salt"),
            (81, "salt"),
            (88, "salt"),
        ] {
            let mut head = superblock(1000);
            head[at] ^= 4;
            let error = verity.tree_start(&head).unwrap_err();
            assert!(error.contains(what), "{at}: {error}");
        }
    }
}
