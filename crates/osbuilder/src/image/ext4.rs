//! Setting every time in an ext4 image.
//!
//! The tools that fill one take the time of a file's change and of its making from the clock, whatever they are told. Without checksums
//! of metadata these are plain numbers at known places (`Documentation/filesystems/ext4/inodes.rst`).

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::Error;

const SUPER_BLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// Feature bit: metadata has checksums.
const CHECKSUMS: u32 = 0x400;
/// Feature bit: group descriptors have 64-bit fields and say their own size.
const WIDE: u32 = 0x80;

/// Sets the times of all inodes and of the file system itself.
pub(super) fn set_times(file: &Path, epoch: u32) -> Result<(), Error> {
    let image = OpenOptions::new().read(true).write(true).open(file);
    image
        .and_then(|image| Image { file: image }.set(epoch))
        .map_err(|source| Error::Write { path: file.to_path_buf(), source })
}

struct Image {
    file: File,
}

impl Image {
    fn set(&self, epoch: u32) -> io::Result<()> {
        if self.u16(SUPER_BLOCK + 0x38)? != MAGIC {
            return Err(io::Error::other("it is not an ext4 file system"));
        }
        let features = self.u32(SUPER_BLOCK + 0x60)?;
        if self.u32(SUPER_BLOCK + 0x64)? & CHECKSUMS != 0 {
            return Err(io::Error::other("its metadata has checksums"));
        }
        let block_size = 1024_u64 << self.u32(SUPER_BLOCK + 0x18)?;
        let inodes = u64::from(self.u32(SUPER_BLOCK)?);
        let per_group = u64::from(self.u32(SUPER_BLOCK + 0x28)?);
        let inode_size = u64::from(self.u16(SUPER_BLOCK + 0x58)?);
        let descriptor_size = if features & WIDE == 0 { 32 } else { u64::from(self.u16(SUPER_BLOCK + 0xfe)?) };
        let descriptors = block_size.max(2048);
        for inode in 0..inodes {
            let descriptor = descriptors + inode / per_group * descriptor_size;
            let mut table = u64::from(self.u32(descriptor + 0x8)?);
            if descriptor_size > 32 {
                table |= u64::from(self.u32(descriptor + 0x28)?) << 32;
            }
            self.set_inode(table * block_size + inode % per_group * inode_size, inode_size, epoch)?;
        }
        // Mounted, written, checked, made; the last with the time of its copy in each later group.
        for field in [0x2c, 0x30, 0x40, 0x108] {
            self.file.write_all_at(&epoch.to_le_bytes(), SUPER_BLOCK + field)?;
        }
        Ok(())
    }

    fn set_inode(&self, at: u64, size: u64, epoch: u32) -> io::Result<()> {
        let mut inode = vec![0; size as usize];
        self.file.read_exact_at(&mut inode, at)?;
        // Unused ones stay all zero.
        if inode.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let mut put = |offset: usize, value: u32| {
            if let Some(field) = inode.get_mut(offset..offset + 4) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        };
        // Access, change of inode, of contents.
        for offset in [0x8, 0xc, 0x10] {
            put(offset, epoch);
        }
        if size > 128 {
            // Their fractions of seconds; the time of making and its fraction.
            for offset in [0x84, 0x88, 0x8c, 0x94] {
                put(offset, 0);
            }
            put(0x90, epoch);
        }
        // Of its removal: only lost+found was removed, and that has none in the other tools' eyes.
        self.file.write_all_at(&inode, at)
    }

    fn u16(&self, at: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn u32(&self, at: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u32::from_le_bytes(bytes))
    }
}
