//! What can be said about a kernel and a RAM disk without booting them.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use crate::{Error, Result};

/// How much of a note segment is searched, bytes. Linux's notes take less than 1 KiB.
const NOTES_LIMIT: u64 = 64 * 1024;

/// Most program headers looked at. A kernel has fewer than ten.
const HEADERS_LIMIT: u16 = 64;

/// Opens and checks the guest kernel.
///
/// # Errors
/// [`Error::File`] with what was expected.
pub(crate) fn open_kernel(path: &Path) -> Result<File> {
    const WHAT: &str = "guest kernel";
    let remedy = "set kernel in the configuration to a Linux kernel for this architecture, or build one";
    let file = open(WHAT, path, remedy)?;
    match kernel_problem(&file) {
        Ok(None) => Ok(file),
        Ok(Some(problem)) => Err(Error::File { what: WHAT, path: path.into(), problem, remedy: remedy.into() }),
        Err(error) => Err(unreadable(WHAT, path, remedy, &error)),
    }
}

/// Opens and checks the initial RAM disk.
///
/// # Errors
/// [`Error::File`] with what was expected.
pub(crate) fn open_initrd(path: &Path) -> Result<File> {
    const WHAT: &str = "guest image";
    let remedy = "set initrd in the configuration to a guest image, or build it anew";
    let file = open(WHAT, path, remedy)?;
    let mut head = [0; 8];
    let length = read_head(&file, &mut head).map_err(|error| unreadable(WHAT, path, remedy, &error))?;
    if is_initrd(&head[..length]) {
        return Ok(file);
    }
    let problem = "is no initial RAM disk: a cpio archive in the newc format was expected, plain or compressed".into();
    Err(Error::File { what: WHAT, path: path.into(), problem, remedy: remedy.into() })
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

/// Reads from the start of the file; returns how many bytes there were.
fn read_head(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64)? {
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

/// Why QEMU would not boot this kernel; `None` if it will try.
#[cfg(target_arch = "x86_64")]
fn kernel_problem(file: &File) -> io::Result<Option<String>> {
    // Linux's Documentation/arch/x86/boot.rst: 0xaa55 at 0x1fe, "HdrS" at 0x202.
    const BZIMAGE_HEAD: usize = 0x206;
    const EM_X86_64: u16 = 62;
    let mut head = [0; BZIMAGE_HEAD];
    let length = read_head(file, &mut head)?;
    if length == BZIMAGE_HEAD && head[0x1fe..0x200] == [0x55, 0xaa] && head[0x202..] == *b"HdrS" {
        return Ok(None);
    }
    let expected = "an uncompressed vmlinux with a PVH entry (CONFIG_PVH), or a bzImage, was expected";
    if length < 64 || head[..4] != *b"\x7fELF" {
        return Ok(Some(format!("is neither an ELF file nor a bzImage: {expected}")));
    }
    // Class 64 bits, little-endian, machine x86-64.
    if head[4] != 2 || head[5] != 1 || u16_at(&head, 18) != EM_X86_64 {
        return Ok(Some(format!("is an ELF file for another architecture: {expected}")));
    }
    if has_pvh_note(file, &head)? {
        return Ok(None);
    }
    Ok(Some(format!("is an ELF file without a PVH entry: {expected}")))
}

/// The architectures QEMU boots by their own image: only its being there is checked.
#[cfg(not(target_arch = "x86_64"))]
fn kernel_problem(file: &File) -> io::Result<Option<String>> {
    let mut head = [0; 64];
    let length = read_head(file, &mut head)?;
    Ok((length < head.len()).then(|| "is too short to be a kernel".to_owned()))
}

/// Looks for the note XEN_ELFNOTE_PHYS32_ENTRY, which names the PVH entry (xen/include/public/elfnote.h).
#[cfg(target_arch = "x86_64")]
fn has_pvh_note(file: &File, head: &[u8]) -> io::Result<bool> {
    const PT_NOTE: u32 = 4;
    const HEADER_SIZE: u16 = 56;
    let (table, size, count) = (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56));
    if size < HEADER_SIZE {
        return Ok(false);
    }
    for index in 0..count.min(HEADERS_LIMIT) {
        let mut header = [0; HEADER_SIZE as usize];
        let Some(at) = table.checked_add(u64::from(index) * u64::from(size)) else { return Ok(false) };
        if file.read_exact_at(&mut header, at).is_err() {
            return Ok(false);
        }
        if u32_at(&header, 0) != PT_NOTE {
            continue;
        }
        let (offset, length) = (u64_at(&header, 8), u64_at(&header, 32).min(NOTES_LIMIT));
        let mut notes = vec![0; length as usize];
        if file.read_exact_at(&mut notes, offset).is_ok() && notes_have_pvh(&notes) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(target_arch = "x86_64")]
fn notes_have_pvh(mut notes: &[u8]) -> bool {
    const PHYS32_ENTRY: u32 = 18;
    while notes.len() >= 12 {
        let (name_size, value_size, kind) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize, u32_at(notes, 8));
        let value = 12 + name_size.next_multiple_of(4);
        if kind == PHYS32_ENTRY && notes.get(12..12 + name_size) == Some(b"Xen\0") {
            return true;
        }
        match notes.get(value + value_size.next_multiple_of(4)..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

#[cfg(target_arch = "x86_64")]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(target_arch = "x86_64")]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

#[cfg(target_arch = "x86_64")]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hypervisor-image-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn file(&self, content: &[u8]) -> PathBuf {
            let path = self.0.join("file");
            fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A vmlinux that is nothing but headers and one note of type `note`.
    fn elf(note: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 4;
        file[64 + 8] = 120;
        file[64 + 32] = 12 + 4 + 8 + 12 + 4 + 8;
        for kind in [1, note] {
            for word in [4, 8, kind] {
                file.extend(u32::to_le_bytes(word));
            }
            file.extend(b"Xen\0\x00\x00\x00\x01\0\0\0\0");
        }
        file
    }

    #[test]
    fn accepts_what_qemu_boots() {
        let scratch = Scratch::new("accepts");
        open_kernel(&scratch.file(&elf(18))).unwrap();
        let mut bzimage = vec![0; 0x400];
        bzimage[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
        open_kernel(&scratch.file(&bzimage)).unwrap();
        open_initrd(&scratch.file(b"070701rest")).unwrap();
        open_initrd(&scratch.file(&[0x28, 0xb5, 0x2f, 0xfd, 4])).unwrap();
    }

    #[test]
    fn refuses_the_rest_in_words() {
        let scratch = Scratch::new("refuses");
        for (content, part) in [
            (elf(17), "without a PVH entry"),
            (elf(18)[..100].to_vec(), "without a PVH entry"),
            (b"\x7fELF\x01\x01".repeat(20), "another architecture"),
            (b"#!/bin/sh\n".to_vec(), "neither an ELF file nor a bzImage"),
            (Vec::new(), "neither an ELF file nor a bzImage"),
        ] {
            let path = scratch.file(&content);
            let error = open_kernel(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
        }
        let error = open_initrd(&scratch.file(b"07")).unwrap_err().to_string();
        assert!(error.contains("cpio archive"), "{error}");
        let error = open_kernel(&scratch.0.join("absent")).unwrap_err().to_string();
        assert!(error.contains("does not exist; set kernel in the configuration"), "{error}");
        let error = open_initrd(&scratch.0).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }

    #[test]
    fn hostile_headers_are_harmless() {
        let scratch = Scratch::new("hostile");
        for range in [32..40, 54..58, 72..80, 96..104, 120..132] {
            let mut file = elf(18);
            file[range].fill(0xff);
            let _ = open_kernel(&scratch.file(&file));
        }
    }

    #[test]
    fn a_private_kernel_is_refused_with_the_remedy() {
        let scratch = Scratch::new("private");
        let path = scratch.file(&elf(18));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = open_kernel(&path).unwrap();
        let error = require_world_readable("guest kernel", &path, &file).unwrap_err().to_string();
        assert!(
            error.contains("has mode 0600") && error.ends_with(&format!("chmod o+r {}", path.display())),
            "{error}"
        );
    }
}
