//! Telling kernels apart: whether QEMU boots a file, and which architecture it is for.

use std::{
    fs::File,
    io::{self, Read},
};

use flate2::read::GzDecoder;

use super::{read_at_most, u16_at, u32_at, u64_at};
use crate::Arch;

/// How much of a note segment is searched, bytes. Linux's notes take less than 1 KiB.
const NOTES_LIMIT: u64 = 64 * 1024;

/// Most program headers looked at. A kernel has fewer than ten.
const HEADERS_LIMIT: u16 = 64;

/// Up to here everything is found that kernels are told by.
const HEAD: usize = 0x238;

/// Where an s390x image has the text that follows (Linux's arch/s390/kernel/head64.S).
const S390_AT: u64 = 0x10008;
const S390_MAGIC: &[u8] = b"S390EP";

/// What is accepted, for whoever gave something else.
const EXPECTED: &str = "for x86_64 an uncompressed vmlinux with a PVH entry (CONFIG_PVH) or a bzImage was expected, for \
                        aarch64 an Image or Image.gz";

/// Which architecture a kernel is for, or else what is wrong with it, as the end of a sentence.
///
/// # Errors
/// When it cannot be read.
pub(super) fn identify(file: &File) -> io::Result<Result<Arch, String>> {
    let mut head = [0; HEAD];
    let length = read_at_most(file, &mut head, 0)?;
    let head = &head[..length];
    if head.starts_with(b"\x7fELF") && length >= 64 {
        return identify_elf(file, head);
    }
    if is_arm64_image(head) {
        return Ok(Ok(Arch::Aarch64));
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        // Only arm64 kernels are booted compressed as a whole: QEMU unpacks them.
        let arm64 = unpack_head(file)?.is_some_and(|head| is_arm64_image(&head));
        return Ok(if arm64 {
            Ok(Arch::Aarch64)
        } else {
            Err(format!("is compressed by gzip and holds no arm64 Image: {EXPECTED}"))
        });
    }
    if head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg") {
        return Ok(Err(format!("is a compressed EFI application, which only firmware boots: {EXPECTED}")));
    }
    // Linux's Documentation/arch/x86/boot.rst: 0xaa55 at 0x1fe, "HdrS" at 0x202, bit 0 of 0x236: has a 64-bit entry.
    if head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS") {
        let long_mode = head.get(0x236).is_some_and(|flags| flags & 1 != 0);
        return Ok(if long_mode { Ok(Arch::X86_64) } else { Err(format!("is a bzImage for 32-bit x86: {EXPECTED}")) });
    }
    let mut s390 = [0; S390_MAGIC.len()];
    if read_at_most(file, &mut s390, S390_AT)? == s390.len() && s390 == *S390_MAGIC {
        return Ok(Ok(Arch::S390x));
    }
    Ok(Err(format!("is neither an ELF file nor a kernel image: {EXPECTED}")))
}

fn identify_elf(file: &File, head: &[u8]) -> io::Result<Result<Arch, String>> {
    // Class, byte order and machine of <elf.h>: 64 bits is 2, little-endian 1, big-endian 2.
    const EM_PPC64: u16 = 21;
    const EM_S390: u16 = 22;
    const EM_X86_64: u16 = 62;
    const EM_AARCH64: u16 = 183;
    let machine = match head[5] {
        2 => u16_at(head, 18).swap_bytes(),
        _ => u16_at(head, 18),
    };
    Ok(match (head[4], head[5], machine) {
        (2, 1, EM_X86_64) if has_pvh_note(file, head)? => Ok(Arch::X86_64),
        (2, 1, EM_X86_64) => Err(format!("is an ELF file without a PVH entry: {EXPECTED}")),
        (2, 1, EM_AARCH64) => Err(format!("is an ELF file for aarch64, which QEMU does not boot: {EXPECTED}")),
        (2, 1, EM_PPC64) => Ok(Arch::Ppc64le),
        (2, 2, EM_S390) => Ok(Arch::S390x),
        _ => Err(format!("is an ELF file for an architecture that no guest has: {EXPECTED}")),
    })
}

/// Linux's Documentation/arch/arm64/booting.rst: the magic number at 0x38.
fn is_arm64_image(head: &[u8]) -> bool {
    head.get(0x38..0x3c) == Some(b"ARM\x64")
}

/// The first bytes of what a gzip file holds; `None` if it is not one after all.
fn unpack_head(file: &File) -> io::Result<Option<[u8; 64]>> {
    let mut packed = vec![0; 16 * 1024];
    let length = read_at_most(file, &mut packed, 0)?;
    let mut head = [0; 64];
    Ok(GzDecoder::new(&packed[..length]).read_exact(&mut head).is_ok().then_some(head))
}

/// Looks for the note XEN_ELFNOTE_PHYS32_ENTRY, which names the PVH entry (xen/include/public/elfnote.h).
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
        if read_at_most(file, &mut header, at)? < header.len() {
            return Ok(false);
        }
        if u32_at(&header, 0) != PT_NOTE {
            continue;
        }
        let (offset, length) = (u64_at(&header, 8), u64_at(&header, 32).min(NOTES_LIMIT));
        let mut notes = vec![0; length as usize];
        if read_at_most(file, &mut notes, offset)? == notes.len() && notes_have_pvh(&notes) {
            return Ok(true);
        }
    }
    Ok(false)
}

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
