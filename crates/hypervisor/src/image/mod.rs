//! What can be said about a kernel and a guest image without booting them.

mod disk;
mod gpt;
mod kernel;
mod verity;

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

pub(crate) use self::disk::Disk;
use crate::{Arch, Error, GuestImage, Result};

/// What a guest image is called in errors, and what to do about one that cannot be used.
const IMAGE: &str = "guest image";
const IMAGE_REMEDY: &str = "set image or initrd in the configuration to a guest image, or build it anew";

/// A guest image that was opened and checked.
#[derive(Debug)]
pub(crate) enum Image {
    /// An initial RAM disk.
    Initrd(File),
    /// A disk.
    Disk(Disk),
}

impl Image {
    /// The file.
    pub(crate) fn file(&self) -> &File {
        match self {
            Image::Initrd(file) => file,
            Image::Disk(disk) => &disk.file,
        }
    }

    /// The disk, if it is one.
    pub(crate) fn disk(&self) -> Option<&Disk> {
        match self {
            Image::Initrd(_) => None,
            Image::Disk(disk) => Some(disk),
        }
    }
}

/// Opens and checks the guest kernel, and tells what it was built for.
///
/// # Errors
/// [`Error::File`] with what was expected.
pub(crate) fn open_kernel(path: &Path) -> Result<(File, Arch)> {
    const WHAT: &str = "guest kernel";
    let remedy = "set kernel in the configuration to a Linux kernel, or build one";
    let file = open(WHAT, path, remedy)?;
    match kernel::identify(&file) {
        Ok(Ok(arch)) => Ok((file, arch)),
        Ok(Err(problem)) => Err(Error::File { what: WHAT, path: path.into(), problem, remedy: remedy.into() }),
        Err(error) => Err(unreadable(WHAT, path, remedy, &error)),
    }
}

/// Opens and checks the guest image of a kernel for `arch`.
///
/// # Errors
/// [`Error::File`] with what was expected, or [`Error::Setting`] for malformed verity parameters.
pub(crate) fn open_image(image: &GuestImage, arch: Arch) -> Result<Image> {
    match image {
        GuestImage::Initrd(path) => open_initrd(path).map(Image::Initrd),
        GuestImage::Disk { path, verity } => Disk::open(path, verity.as_deref(), arch).map(Image::Disk),
    }
}

fn open_initrd(path: &Path) -> Result<File> {
    let file = open(IMAGE, path, IMAGE_REMEDY)?;
    let mut head = [0; 520];
    let length = read_at_most(&file, &mut head, 0).map_err(|error| unreadable(IMAGE, path, IMAGE_REMEDY, &error))?;
    if is_initrd(&head[..length]) {
        return Ok(file);
    }
    let refuse = |problem: &str, remedy: &str| {
        Err(Error::File { what: IMAGE, path: path.into(), problem: problem.into(), remedy: remedy.into() })
    };
    if head[512..] == *b"EFI PART" {
        return refuse("is a disk image, not an initial RAM disk", "set image instead of initrd in the configuration");
    }
    refuse("is no initial RAM disk: a cpio archive in the newc format was expected, plain or compressed", IMAGE_REMEDY)
}

/// Opens a regular file for reading, one that waits for nobody: a FIFO in its place must not hang the caller.
fn open(what: &'static str, path: &Path, remedy: &str) -> Result<File> {
    let fail = |error: io::Error| unreadable(what, path, remedy, &error);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| fail(error.into()))?);
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(Error::File {
            what,
            path: path.into(),
            problem: "is not a regular file".into(),
            remedy: remedy.into(),
        });
    }
    Ok(file)
}

/// Sees to it that another user can open the file once it has its descriptor: `/proc/self/fd` asks for the file's permission anew,
/// though not for that of the directories above it.
///
/// # Errors
/// [`Error::File`] with the `chmod` to type.
pub(crate) fn require_world_readable(what: &'static str, path: &Path, file: &File) -> Result<()> {
    let mode = file.metadata().map_err(Error::io("look at the mode of a guest file"))?.mode();
    if mode & 0o004 != 0 {
        return Ok(());
    }
    Err(Error::File {
        what,
        path: path.into(),
        problem: format!("has mode {:04o}, so QEMU, which runs as a user of its own, cannot read it", mode & 0o7777),
        remedy: format!("chmod o+r {}", path.display()),
    })
}

fn unreadable(what: &'static str, path: &Path, remedy: &str, error: &io::Error) -> Error {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => "does not exist".into(),
        _ => format!("cannot be read ({error})"),
    };
    Error::File { what, path: PathBuf::from(path), problem, remedy: remedy.into() }
}

/// Reads from an offset, which may be any number a file claims; returns how many bytes there were.
fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        let Some(at) = offset.checked_add(length as u64).filter(|at| i64::try_from(*at).is_ok()) else { break };
        match file.read_at(&mut buffer[length..], at)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// The magic numbers of cpio and of every compression Linux unpacks (`lib/decompress.c`).
fn is_initrd(head: &[u8]) -> bool {
    const MAGIC: [&[u8]; 9] = [
        b"070701",
        b"070702",
        &[0x1f, 0x8b],
        b"BZh",
        &[0xfd, b'7', b'z', b'X', b'Z'],
        &[0x5d, 0, 0],
        &[0x89, b'L', b'Z', b'O'],
        &[0x02, 0x21, 0x4c, 0x18],
        &[0x28, 0xb5, 0x2f, 0xfd],
    ];
    MAGIC.iter().any(|magic| head.starts_with(magic))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
