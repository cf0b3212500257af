//! The kernel proper: an ELF file with what a loader puts in memory and nothing else.

use std::path::{Path, PathBuf};

use object::{
    LittleEndian as LE, U16, U32, U64, elf,
    elf::{FileHeader64, ProgramHeader64},
    pod,
    read::elf::{FileHeader, ProgramHeader},
};

use crate::{Error, arm64, bzimage, output, read};

/// Type of the note "Xen" that holds the entry of the PVH protocol (`XEN_ELFNOTE_PHYS32_ENTRY`, xen/include/public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// Loaders may map the file: the place of a segment in it and in memory must agree modulo the page size.
const PAGE: usize = 4096;

/// Makes the plain ELF file `output` from the kernel image `vmlinuz`, a bzImage or already an ELF file; from one for 64-bit Arm,
/// its plain `Image`.
///
/// What is left out of it is never loaded: sections, the relocations appended for the decompressor, and zeros at a segment's
/// end, which a loader provides by itself (Debian 12: 66 MB become 35 MB, and as much less of the hypervisor's memory).
///
/// # Errors
/// [`Error::Read`], [`Error::Unusable`], [`Error::Write`]; then no output is left.
pub fn kernel(vmlinuz: &Path, output: &Path) -> Result<(), Error> {
    let image = read(vmlinuz)?;
    let unusable = |why| Error::unusable(vmlinuz, why);
    if let Some(arm64) = arm64::unpack(&image) {
        return output::write(output, &arm64.map_err(unusable)?);
    }
    let kernel = if image.starts_with(b"\x7fELF") { image } else { bzimage::unpack(&image).map_err(unusable)? };
    output::write(output, &trim(&kernel).map_err(unusable)?)
}

/// The one `boot/vmlinuz-*` of an unpacked kernel package.
///
/// # Errors
/// [`Error::Read`] and [`Error::Package`].
pub fn find_in_package(package: &Path) -> Result<PathBuf, Error> {
    let boot = package.join("boot");
    let failed = |source| Error::Read { path: boot.clone(), source };
    let mut found = Vec::new();
    for entry in boot.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_encoded_bytes().starts_with(b"vmlinuz-") {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => {
            Err(Error::Package { what: "boot/vmlinuz-*", package: package.to_path_buf(), found: found.len() })
        }
    }
}

/// A segment of the output.
struct Segment<'data> {
    header: ProgramHeader64<LE>,
    bytes: &'data [u8],
}

/// Checks `kernel` and writes it anew with its loaded segments only; the error is the reason why it cannot be booted.
fn trim(kernel: &[u8]) -> Result<Vec<u8>, String> {
    let damaged = |error: object::read::Error| format!("its ELF headers cannot be read ({error}); it may be damaged");
    let header = FileHeader64::<LE>::parse(kernel).map_err(damaged)?;
    let machine = header.e_machine(LE);
    if machine != elf::EM_X86_64 {
        return Err(format!("it is for the ELF machine number {machine}; only kernels for x86-64 (62) can be booted"));
    }
    let headers = header.program_headers(LE, kernel).map_err(damaged)?;
    let mut loaded = Vec::new();
    let mut note = None;
    for header in headers {
        match header.p_type(LE) {
            elf::PT_LOAD => {
                let bytes = header.data(LE, kernel).map_err(|()| "a segment lies beyond the end; it may be cut off")?;
                let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                loaded.push(Segment { header: *header, bytes: &bytes[..used] });
            }
            elf::PT_NOTE if has_pvh_entry(header, kernel).map_err(damaged)? => {
                let bytes = header.data(LE, kernel).map_err(|()| "its notes lie beyond the end; it may be cut off")?;
                note = Some(Segment { header: *header, bytes });
            }
            _ => {}
        }
    }
    let note = note.ok_or("it announces no PVH entry; it must be built with CONFIG_PVH")?;
    if loaded.is_empty() {
        return Err("it has no segment to load".into());
    }
    loaded.push(note);
    Ok(write(header, loaded))
}

fn has_pvh_entry(header: &ProgramHeader64<LE>, kernel: &[u8]) -> Result<bool, object::read::Error> {
    let Some(mut notes) = header.notes(LE, kernel)? else { return Ok(false) };
    while let Some(note) = notes.next()? {
        if note.name() == b"Xen" && note.n_type(LE) == PHYS32_ENTRY && matches!(note.desc().len(), 4 | 8) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write(header: &FileHeader64<LE>, mut segments: Vec<Segment>) -> Vec<u8> {
    let header_size = size_of::<FileHeader64<LE>>();
    let entry_size = size_of::<ProgramHeader64<LE>>();
    let mut offset = header_size + segments.len() * entry_size;
    for segment in &mut segments {
        offset = offset.next_multiple_of(PAGE) + segment.header.p_vaddr(LE) as usize % PAGE;
        segment.header.p_offset = U64::new(LE, offset as u64);
        segment.header.p_filesz = U64::new(LE, segment.bytes.len() as u64);
        // Of a note the alignment is part of its format.
        if segment.header.p_type(LE) == elf::PT_LOAD {
            segment.header.p_align = U64::new(LE, PAGE as u64);
        }
        offset += segment.bytes.len();
    }
    let mut header = *header;
    header.e_phoff = U64::new(LE, header_size as u64);
    header.e_phentsize = U16::new(LE, entry_size as u16);
    header.e_phnum = U16::new(LE, segments.len() as u16);
    header.e_shoff = U64::new(LE, 0);
    header.e_shentsize = U16::new(LE, 0);
    header.e_shnum = U16::new(LE, 0);
    header.e_shstrndx = U16::new(LE, 0);
    header.e_version = U32::new(LE, u32::from(elf::EV_CURRENT));
    let mut out = pod::bytes_of(&header).to_vec();
    for segment in &segments {
        out.extend(pod::bytes_of(&segment.header));
    }
    for segment in &segments {
        out.resize(segment.header.p_offset(LE) as usize, 0);
        out.extend(segment.bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bzimage::tests::image;
    use crate::compression::tests::gzip;

    const NOTE: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x00\x10\x00\x01";

    fn program_header(kind: u32, offset: usize, address: u64, size: usize, in_memory: u64) -> ProgramHeader64<LE> {
        let alignment = if kind == elf::PT_NOTE { 4 } else { 0x20_0000 };
        ProgramHeader64 {
            p_type: U32::new(LE, kind),
            p_flags: U32::new(LE, 7),
            p_offset: U64::new(LE, offset as u64),
            p_vaddr: U64::new(LE, address),
            p_paddr: U64::new(LE, address),
            p_filesz: U64::new(LE, size as u64),
            p_memsz: U64::new(LE, in_memory),
            p_align: U64::new(LE, alignment),
        }
    }

    /// An ELF file with one segment at 1 MiB + 0x10, `NOTE` inside it, zeros at its end, and rubbish behind it.
    fn vmlinux(note: &[u8]) -> Vec<u8> {
        let segment: Vec<u8> = [b"code", note, &[0; 5000]].concat();
        let offset = 64 + 2 * 56;
        let mut out = vec![0; 64];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        out[16] = 2;
        out[18] = 62;
        out[20] = 1;
        out[24..32].copy_from_slice(&0x10_0010_u64.to_le_bytes());
        out[32] = 64;
        out[52] = 64;
        out[54] = 56;
        out[56] = 2;
        out.extend(pod::bytes_of(&program_header(elf::PT_LOAD, offset, 0x10_0010, segment.len(), 9000)));
        out.extend(pod::bytes_of(&program_header(elf::PT_NOTE, offset + 4, 0x10_0014, note.len(), note.len() as u64)));
        out.extend(segment);
        out.extend(b"relocations");
        out
    }

    /// A place in memory and what is put there.
    type Loaded = (u64, Vec<u8>);

    /// What a loader makes of an ELF file: entry, loaded segments with their zeros, and notes.
    fn loaded(kernel: &[u8]) -> (u64, Vec<Loaded>, Vec<u8>) {
        let header = FileHeader64::<LE>::parse(kernel).unwrap();
        let mut segments = Vec::new();
        let mut notes = Vec::new();
        for program in header.program_headers(LE, kernel).unwrap() {
            let mut bytes = program.data(LE, kernel).unwrap().to_vec();
            assert_eq!(
                program.p_offset(LE) % 4096 % program.p_align(LE),
                program.p_vaddr(LE) % 4096 % program.p_align(LE)
            );
            if program.p_type(LE) == elf::PT_NOTE {
                notes = bytes;
            } else {
                bytes.resize(program.p_memsz(LE) as usize, 0);
                segments.push((program.p_paddr(LE), bytes));
            }
        }
        (header.e_entry(LE), segments, notes)
    }

    #[test]
    fn the_loaded_image_is_unchanged_and_the_rest_is_gone() {
        let before = vmlinux(NOTE);
        let after = trim(&before).unwrap();
        let (entry, segments, notes) = loaded(&after);
        assert_eq!(entry, 0x10_0010);
        assert_eq!(notes, NOTE);
        let mut memory = [b"code", NOTE].concat();
        memory.resize(9000, 0);
        assert_eq!(segments, [(0x10_0010, memory)]);
        assert!(!after.windows(4).any(|window| window == b"relo"));
        assert_eq!(trim(&after).unwrap(), after, "a second time changes nothing");
    }

    #[test]
    fn a_kernel_that_cannot_be_booted_is_refused() {
        let other_note = b"\x04\0\0\0\x04\0\0\0\x11\0\0\0Xen\0\x00\x10\x00\x01";
        assert!(trim(&vmlinux(other_note)).unwrap_err().contains("CONFIG_PVH"));
        let mut arm = vmlinux(NOTE);
        arm[18] = 183;
        assert!(trim(&arm).unwrap_err().contains("machine number 183"));
        let good = vmlinux(NOTE);
        assert!(trim(&good[..300]).unwrap_err().contains("cut off"));
        assert!(trim(&good[..70]).unwrap_err().contains("ELF headers"));
        assert!(trim(b"\x7fELF").unwrap_err().contains("ELF headers"));
    }

    #[test]
    fn a_bzimage_and_an_elf_file_give_the_same_and_a_refusal_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("elf"), vmlinux(NOTE)).unwrap();
        fs::write(at("bz"), image(&gzip(&vmlinux(NOTE)))).unwrap();
        kernel(&at("elf"), &at("one")).unwrap();
        kernel(&at("bz"), &at("two")).unwrap();
        assert_eq!(fs::read(at("one")).unwrap(), fs::read(at("two")).unwrap());
        fs::write(at("text"), "hello").unwrap();
        let error = kernel(&at("text"), &at("three")).unwrap_err().to_string();
        assert_eq!(error, format!("{} is no good: it is neither an x86 bzImage nor an ELF file", at("text").display()));
        assert!(!at("three").exists());
    }

    #[test]
    fn a_kernel_for_64_bit_arm_is_unwrapped() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let image = arm64::tests::image();
        fs::write(at("gz"), gzip(&image)).unwrap();
        kernel(&at("gz"), &at("out")).unwrap();
        assert_eq!(fs::read(at("out")).unwrap(), image);
    }

    #[test]
    fn a_package_holds_exactly_one_kernel() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(find_in_package(directory.path()), Err(Error::Read { .. })));
        let boot = directory.path().join("boot");
        fs::create_dir(&boot).unwrap();
        fs::write(boot.join("config-6.1"), "").unwrap();
        assert!(matches!(find_in_package(directory.path()), Err(Error::Package { found: 0, .. })));
        fs::write(boot.join("vmlinuz-6.1"), "").unwrap();
        assert_eq!(find_in_package(directory.path()).unwrap(), boot.join("vmlinuz-6.1"));
        fs::write(boot.join("vmlinuz-6.2"), "").unwrap();
        assert!(matches!(find_in_package(directory.path()), Err(Error::Package { found: 2, .. })));
    }
}
