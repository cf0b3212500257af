//! A GUID partition table with one or two partitions (UEFI specification 2.10, chapter 5).
//!
//! The types are those of the Discoverable Partitions Specification, so that a tool that looks at the image sees what it is: a root
//! file system for a processor, and the tree that verifies it. As that specification says, the root hash is split over the two
//! partitions' own identifiers.

use crate::{Architecture, image::verity::BLOCK};

/// Size of a sector.
const SECTOR: u64 = 512;

/// Partitions begin at multiples of this, bytes: what every partitioning tool does.
const ALIGNMENT: u64 = 1 << 20;

/// Number and size of the table's entries: the least that the specification allows.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;

/// Sectors of each copy of the entries.
const ENTRY_SECTORS: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;

/// Size of the header proper.
const HEADER: usize = 92;

/// A GUID as it is written down, most significant byte first.
pub(crate) type Guid = [u8; 16];

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) kind: Guid,
    pub(crate) id: Guid,
    pub(crate) name: String,
    /// Where it begins and how long it is, bytes.
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// Where partitions of these lengths are put, bytes, and the length of the disk.
pub(crate) fn layout(lengths: &[u64]) -> (Vec<u64>, u64) {
    let mut end = ALIGNMENT;
    let mut starts = Vec::new();
    for length in lengths {
        let start = end.next_multiple_of(ALIGNMENT);
        starts.push(start);
        end = start + length;
    }
    // The second copy of the table is at the end.
    (starts, (end + (1 + ENTRY_SECTORS) * SECTOR).next_multiple_of(ALIGNMENT))
}

/// The type of a root file system for `architecture`, and of the tree that verifies it.
pub(crate) fn types(architecture: Architecture) -> (Guid, Guid) {
    let (root, verity) = match architecture {
        Architecture::X86_64 => {
            (0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709_u128, 0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5_u128)
        }
        Architecture::Aarch64 => (0xb921b045_1df0_41c3_af44_4c6f280d3fae, 0xdf3300ce_d69f_4c92_978c_9bfb0f38d820),
        Architecture::S390x => (0x5eead9a9_fe09_4a1e_a1d7_520d00531306, 0xb325bfbe_c7be_4ab8_8357_139e652d2f6b),
        Architecture::Ppc64le => (0xc31c45e6_3f39_412e_80fb_4809c4980599, 0x906bd944_4589_4aae_a4e4_dd983917446a),
    };
    (root.to_be_bytes(), verity.to_be_bytes())
}

/// What stands at the beginning and at the end of a disk of `length` bytes with these partitions.
pub(crate) fn tables(disk: Guid, partitions: &[Partition], length: u64) -> (Vec<u8>, Vec<u8>) {
    let last = length / SECTOR - 1;
    let mut entries = Vec::with_capacity(ENTRIES * ENTRY);
    for partition in partitions {
        entries.extend(on_disk(partition.kind));
        entries.extend(on_disk(partition.id));
        entries.extend((partition.start / SECTOR).to_le_bytes());
        entries.extend(((partition.start + partition.length).div_ceil(SECTOR) - 1).to_le_bytes());
        entries.extend(0_u64.to_le_bytes());
        let mut name: Vec<u8> = partition.name.encode_utf16().take(36).flat_map(u16::to_le_bytes).collect();
        name.resize(72, 0);
        entries.extend(name);
    }
    entries.resize(ENTRIES * ENTRY, 0);
    let header = |own: u64, other: u64, entries_at: u64| {
        let mut header = b"EFI PART\0\0\x01\0".to_vec();
        header.extend((HEADER as u32).to_le_bytes());
        header.extend([0; 8]); // Its checksum, filled in below, and nothing.
        for sector in [own, other, 2 + ENTRY_SECTORS, last - 1 - ENTRY_SECTORS] {
            header.extend(sector.to_le_bytes());
        }
        header.extend(on_disk(disk));
        header.extend(entries_at.to_le_bytes());
        header.extend((ENTRIES as u32).to_le_bytes());
        header.extend((ENTRY as u32).to_le_bytes());
        header.extend(crc32(&entries).to_le_bytes());
        let checksum = crc32(&header).to_le_bytes();
        header.splice(16..20, checksum);
        header.resize(SECTOR as usize, 0);
        header
    };
    let front = [protective(last), header(1, last, 2), entries.clone()].concat();
    let back = [&entries[..], &header(last, 1, last - ENTRY_SECTORS)].concat();
    (front, back)
}

/// The first sector: for a tool that does not know such tables, one partition of an unknown kind that fills the disk.
fn protective(last: u64) -> Vec<u8> {
    let mut sector = vec![0; 446];
    sector.extend([0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    sector.extend(1_u32.to_le_bytes());
    sector.extend(u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// Reads the table at the beginning of a disk of `length` bytes; the error is the reason why it cannot be used.
pub(crate) fn parse(front: &[u8], length: u64) -> Result<Vec<Partition>, String> {
    let header =
        front.get(SECTOR as usize..).and_then(|rest| rest.get(..HEADER)).ok_or("it is too short for a disk image")?;
    if !header.starts_with(b"EFI PART") {
        return Err("it has no GUID partition table".into());
    }
    let mut without_checksum = header.to_vec();
    without_checksum.splice(16..20, [0; 4]);
    if u32_at(header, 16) != crc32(&without_checksum) {
        return Err("the checksum of its partition table's header is wrong".into());
    }
    if (u64_at(header, 72), u32_at(header, 80), u32_at(header, 84)) != (2, ENTRIES as u32, ENTRY as u32) {
        return Err("its partition table is not of the form that is written here".into());
    }
    let at = 2 * SECTOR as usize;
    let entries = front.get(at..at + ENTRIES * ENTRY).ok_or("it ends within its partition table")?;
    if u32_at(header, 88) != crc32(entries) {
        return Err("the checksum of its partition table's entries is wrong".into());
    }
    let mut partitions = Vec::new();
    for entry in entries.chunks(ENTRY).take_while(|entry| entry.iter().any(|byte| *byte != 0)) {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        if first > last || last.checked_mul(SECTOR).is_none_or(|last| last >= length) {
            return Err("a partition lies beyond its end; it may be cut off".into());
        }
        let name: Vec<u16> =
            entry[56..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).take_while(|c| *c != 0).collect();
        partitions.push(Partition {
            kind: on_disk(guid_at(entry, 0)),
            id: on_disk(guid_at(entry, 16)),
            name: String::from_utf16_lossy(&name),
            start: first * SECTOR,
            length: (last - first + 1) * SECTOR,
        });
    }
    Ok(partitions)
}

/// How much of a disk's beginning [`parse`] needs.
pub(crate) const FRONT: usize = (2 + ENTRY_SECTORS as usize) * SECTOR as usize;

// Partitions are whole blocks of the hash tree.
const _: () = assert!(ALIGNMENT.is_multiple_of(BLOCK as u64));

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn guid_at(bytes: &[u8], at: usize) -> Guid {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// On disk, and back: the first three groups are little-endian.
fn on_disk(guid: Guid) -> Guid {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

/// A GUID in the usual writing.
pub(crate) fn written(guid: Guid) -> String {
    let hex = crate::image::verity::hex(&guid);
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default().to_owned()).join("-")
}

/// CRC-32 as in Ethernet and zip. The tables are small: no table of its own is worth it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    fn disk() -> (Vec<u8>, Vec<Partition>) {
        let lengths = [3 << 20, 40960];
        let (starts, length) = layout(&lengths);
        assert_eq!((&starts[..], length), (&[1 << 20, 4 << 20][..], 5 << 20));
        let (root, verity) = types(Architecture::X86_64);
        let partitions: Vec<Partition> = [("root", root, 1), ("root-verity", verity, 2)]
            .into_iter()
            .zip(starts.iter().zip(lengths))
            .map(|((name, kind, id), (start, length))| Partition {
                kind,
                id: [id; 16],
                name: name.into(),
                start: *start,
                length,
            })
            .collect();
        let (front, back) = tables([9; 16], &partitions, length);
        let mut disk = vec![0; length as usize];
        disk[..front.len()].copy_from_slice(&front);
        let at = disk.len() - back.len();
        disk[at..].copy_from_slice(&back);
        (disk, partitions)
    }

    #[test]
    fn crc32_of_the_usual_test_word() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn other_tools_read_the_table() {
        let (disk, _) = disk();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &disk).unwrap();
        let Ok(output) = Command::new("/usr/sbin/sfdisk").arg("--dump").arg(file.path()).output() else {
            eprintln!("skipped: needs sfdisk (Debian: fdisk)");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{text} {:?}", output.stderr);
        for expected in [
            "label: gpt",
            "label-id: 09090909-0909-0909-0909-090909090909",
            "start=        2048, size=        6144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=01010101-0101-0101-0101-010101010101, name=\"root\"",
            "start=        8192, size=          80, type=2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        if let Ok(output) = Command::new("/usr/sbin/sgdisk").arg("--verify").arg(file.path()).output() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("No problems found"), "{text}");
        }
    }

    /// util-linux knows the types by name.
    #[test]
    fn types_are_what_sfdisk_calls_them() {
        let Ok(output) = Command::new("/usr/sbin/sfdisk").args(["--label", "gpt", "--list-types"]).output() else {
            eprintln!("skipped: needs sfdisk (Debian: fdisk)");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        for (architecture, name) in [
            (Architecture::X86_64, "x86-64"),
            (Architecture::Aarch64, "ARM-64"),
            (Architecture::S390x, "S390X"),
            (Architecture::Ppc64le, "PPC64LE"),
        ] {
            let (root, verity) = types(architecture);
            for (guid, expected) in
                [(root, format!("Linux root ({name})")), (verity, format!("Linux root verity ({name})"))]
            {
                let guid = written(guid).to_uppercase();
                let line =
                    text.lines().find(|line| line.contains(&guid)).unwrap_or_else(|| panic!("{guid} is not known"));
                assert!(line.ends_with(&expected), "{line}");
            }
        }
    }

    #[test]
    fn a_table_is_read_back_and_a_damaged_one_refused() {
        let (disk, partitions) = disk();
        let length = disk.len() as u64;
        assert_eq!(parse(&disk[..FRONT], length), Ok(partitions));
        let refused = |change: fn(&mut Vec<u8>), expected: &str| {
            let mut disk = disk.clone();
            change(&mut disk);
            let error = parse(&disk, length).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        refused(|disk| disk[512] = 0, "no GUID partition table");
        refused(|disk| disk[512 + 40] ^= 1, "header is wrong");
        refused(|disk| disk[1024 + 40] ^= 1, "entries is wrong");
        refused(|disk| disk.truncate(550), "too short");
        refused(|disk| disk.truncate(1500), "ends within");
        assert!(parse(&disk, 3 << 20).unwrap_err().contains("cut off"));
    }
}
