//! Guest kernels and images.

use std::{fs, path::PathBuf};

use hypervisor::{Accelerator, GuestImage, Hypervisor, Qemu, QemuConfig};

use crate::{bytes::Bytes, scratch::Scratch};

/// The first bytes of an ELF file for x86_64 with nothing in it, and of a cpio archive: what the other file is read beside.
const INITRD: &[u8] = b"070701";

pub(crate) fn guest(data: &[u8]) {
    let mut bytes = Bytes(data);
    let scratch = Scratch::new();
    let kind = bytes.u8();
    let (kernel, image) = match kind % 3 {
        0 => (bytes.0.to_vec(), None),
        // A disk: its beginning as given, with the checksums that it needs to be looked into.
        kind => (elf(), Some(if kind == 1 { bytes.0.to_vec() } else { disk(&mut bytes) })),
    };
    let kernel = scratch.file("kernel", &kernel);
    let image = match image {
        None => GuestImage::Initrd(scratch.file("initrd", INITRD)),
        Some(contents) => {
            let path = scratch.file("image", &contents);
            fs::File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 20)).expect("a longer file");
            let verity =
                (kind & 0x40 != 0).then(|| String::from_utf8_lossy(&contents[..contents.len().min(300)]).into_owned());
            GuestImage::Disk { path, verity }
        }
    };
    // It is not run.
    let path = PathBuf::from("/bin/true");
    let qemu = Qemu::new(QemuConfig { path, machine_type: None, accelerator: Accelerator::Tcg });
    if let Err(error) = qemu.check(&kernel, &image, None) {
        assert!(!error.to_string().is_empty());
    }
}

/// An ELF file for x86_64 with the note by which QEMU starts it.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend(0x10_0000_u64.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // One program header, PT_NOTE, and the note XEN_ELFNOTE_PHYS32_ENTRY.
    file.extend(4_u32.to_le_bytes());
    file.extend(4_u32.to_le_bytes());
    for number in [120_u64, 0, 0, 20, 20, 4] {
        file.extend(number.to_le_bytes());
    }
    for number in [4_u32, 4, 18] {
        file.extend(number.to_le_bytes());
    }
    file.extend(b"Xen\0\0\0\x10\0");
    file
}

/// A disk with a partition table whose checksums are right and whose entries, superblocks and parameters are anything.
fn disk(bytes: &mut Bytes<'_>) -> Vec<u8> {
    const KINDS: [&[u8; 16]; 3] = [
        b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4",
        b"\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09",
        b"\xed\x57\x73\x2c\xd2\xeb\xd9\x46\xae\xc1\x23\xd4\x37\xec\x2b\xf5",
    ];
    let mut file = vec![0; 256 << 10];
    let mut entries = [0; 128 * 4];
    for entry in entries.chunks_exact_mut(128) {
        entry[..16].copy_from_slice(KINDS[usize::from(bytes.u8()) % KINDS.len()]);
        entry[32..34].copy_from_slice(&bytes.u16().to_le_bytes());
        entry[40..42].copy_from_slice(&bytes.u16().to_le_bytes());
    }
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[72] = 2;
    header[80] = 4;
    header[84] = 128;
    header[88..].copy_from_slice(&crc(&entries).to_le_bytes());
    let sum = crc(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    file[512..512 + 92].copy_from_slice(&header);
    file[1024..1024 + entries.len()].copy_from_slice(&entries);
    // The rest goes to places of the disk: at each, so many bytes.
    while !bytes.is_empty() {
        let (at, length) = (usize::from(bytes.u16()) * 4, usize::from(bytes.u8()));
        let piece = bytes.take(length);
        if let Some(place) = file.get_mut(at.max(2048)..).and_then(|rest| rest.get_mut(..piece.len())) {
            place.copy_from_slice(piece);
        }
    }
    file
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
