//! Reading a GUID partition table (UEFI specification, chapter 5) of a file that nobody has vouched for.
//!
//! Only the first copy is read: an image is a file, and one with a damaged copy is a damaged image.

use std::{fs::File, io};

use flate2::Crc;

use super::{read_at_most, u32_at, u64_at};

/// What a virtio disk's sectors are, bytes, unless it says otherwise.
const SECTOR: u64 = 512;

/// Where the header is: behind the protective MBR.
const HEADER_AT: u64 = SECTOR;

/// Size of the header that is defined, bytes.
const HEADER_SIZE: usize = 92;

/// Most entries, and the largest. Tools write 128 of 128 bytes.
const ENTRIES_LIMIT: u32 = 128;
const ENTRY_SIZE: usize = 128;
const ENTRY_SIZE_LIMIT: usize = 4096;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its number, counted from 1: the guest calls it `/dev/vda` and this.
    pub(super) number: u32,
    /// What it is for, as GUIDs are written.
    pub(super) kind: String,
    /// Where it is in the file, bytes.
    pub(super) offset: u64,
    /// Its length, bytes.
    pub(super) length: u64,
}

/// The partitions of a file in the order of their numbers, or else what is wrong with it, as the end of a sentence.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(file: &File) -> io::Result<Result<Vec<Partition>, String>> {
    let size = file.metadata()?.len();
    let mut header = [0; HEADER_SIZE];
    if read_at_most(file, &mut header, HEADER_AT)? < HEADER_SIZE || header[..8] != *b"EFI PART" {
        return Ok(Err("is no disk image: a GUID partition table was expected".into()));
    }
    let damaged = |what: &str| Ok(Err(format!("has a damaged partition table: {what}")));
    if u32_at(&header, 12) as usize != HEADER_SIZE || checksum(&header, 16) != u32_at(&header, 16) {
        return damaged("the checksum of its header is wrong");
    }
    let (table, count, entry_size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84) as usize);
    if count > ENTRIES_LIMIT || !(ENTRY_SIZE..=ENTRY_SIZE_LIMIT).contains(&entry_size) {
        return damaged("it has too many entries, or entries of a wrong size");
    }
    let mut entries = vec![0; count as usize * entry_size];
    let Some(table) = table.checked_mul(SECTOR) else { return damaged("its entries are beyond the end") };
    if read_at_most(file, &mut entries, table)? < entries.len() {
        return damaged("its entries are beyond the end");
    }
    if crc(&entries) != u32_at(&header, 88) {
        return damaged("the checksum of its entries is wrong");
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(entry_size)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let place = || {
            let length = last.checked_sub(first)?.checked_add(1)?.checked_mul(SECTOR)?;
            let offset = first.checked_mul(SECTOR)?;
            (offset.checked_add(length)? <= size && offset > 0).then_some((offset, length))
        };
        let Some((offset, length)) = place() else {
            return damaged(&format!("partition {number} is not within the file, which may have been cut off"));
        };
        partitions.push(Partition { number, kind: guid(entry), offset, length });
    }
    Ok(Ok(partitions))
}

/// The first three groups of a GUID are stored with their least significant byte first.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (position, at) in ORDER.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[at]));
    }
    text
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The checksum of a header that holds its own, which counts as 0.
fn checksum(header: &[u8; HEADER_SIZE], own: usize) -> u32 {
    let mut copy = *header;
    copy[own..own + 4].fill(0);
    crc(&copy)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A disk image of `size` bytes with these partitions: type, first and last sector.
    pub(in super::super) fn image(size: usize, partitions: &[([u8; 16], u64, u64)]) -> Vec<u8> {
        let mut file = vec![0; size];
        let mut entries = vec![0; 128 * 128];
        for (entry, (kind, first, last)) in entries.chunks_exact_mut(128).zip(partitions) {
            entry[..16].copy_from_slice(kind);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        file[1024..1024 + entries.len()].copy_from_slice(&entries);
        let mut header = [0; HEADER_SIZE];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = HEADER_SIZE as u8;
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        header[88..92].copy_from_slice(&crc(&entries).to_le_bytes());
        sign(&mut header);
        file[512..512 + HEADER_SIZE].copy_from_slice(&header);
        file
    }

    fn sign(header: &mut [u8; HEADER_SIZE]) {
        let sum = checksum(header, 16);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
    }

    fn parse(content: &[u8]) -> Result<Vec<Partition>, String> {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, content).unwrap();
        read(&file).unwrap()
    }

    const KIND: [u8; 16] =
        [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

    #[test]
    fn partitions_are_read_with_their_numbers() {
        let found = parse(&image(64 * 1024, &[(KIND, 40, 47), ([0; 16], 0, 0), (KIND, 48, 127)])).unwrap();
        let kind = "0fc63daf-8483-4772-8e79-3d69d8477de4".to_owned();
        let expected = [
            Partition { number: 1, kind: kind.clone(), offset: 40 * 512, length: 8 * 512 },
            Partition { number: 3, kind, offset: 48 * 512, length: 80 * 512 },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn damage_is_told() {
        let good = image(64 * 1024, &[(KIND, 40, 47)]);
        let damage = |at: usize| {
            let mut file = good.clone();
            file[at] ^= 1;
            parse(&file).unwrap_err()
        };
        assert!(damage(512).contains("is no disk image"));
        for at in [512 + 12, 512 + 16, 512 + 40, 512 + 72, 512 + 80, 512 + 88] {
            assert!(damage(at).contains("checksum of its header"), "{at}");
        }
        assert!(damage(1024 + 33).contains("checksum of its entries"));
        assert!(parse(&[]).unwrap_err().contains("is no disk image"));
        assert!(parse(&good[..1024]).unwrap_err().contains("entries are beyond the end"));
        assert!(parse(&good[..20 * 1024]).unwrap_err().contains("partition 1 is not within the file"));
    }

    #[test]
    fn hostile_numbers_are_harmless() {
        for (first, last) in [(40, 39), (0, 10), (40, u64::MAX), (u64::MAX, u64::MAX), (1 << 60, 1 << 61)] {
            let error = parse(&image(64 * 1024, &[(KIND, first, last)])).unwrap_err();
            assert!(error.contains("partition 1 is not within the file"), "{error}");
        }
        for (range, part) in [(72..80, "beyond the end"), (80..84, "too many entries"), (84..88, "too many entries")] {
            let mut file = image(64 * 1024, &[(KIND, 40, 47)]);
            let mut header: [u8; HEADER_SIZE] = file[512..512 + HEADER_SIZE].try_into().unwrap();
            header[range].fill(0xff);
            sign(&mut header);
            file[512..512 + HEADER_SIZE].copy_from_slice(&header);
            let error = parse(&file).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
