//! Tests of [`super`].

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

fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
    file[0x236] = 1;
    file
}

fn arm64_image() -> Vec<u8> {
    let mut file = vec![0; 4096];
    file[0x38..0x3c].copy_from_slice(b"ARM\x64");
    file
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, content).unwrap();
    encoder.finish().unwrap()
}

/// The start of an ELF file: class, byte order, and the machine in that order.
fn elf_head(class: u8, order: u8, machine: u16) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
    file[18..20].copy_from_slice(&if order == 2 { machine.to_be_bytes() } else { machine.to_le_bytes() });
    file
}

#[test]
fn tells_what_a_kernel_is_for() {
    let scratch = Scratch::new("accepts");
    let mut s390 = vec![0; 0x10010];
    s390[0x10008..0x1000e].copy_from_slice(b"S390EP");
    for (content, arch) in [
        (elf(18), Arch::X86_64),
        (bzimage(), Arch::X86_64),
        (arm64_image(), Arch::Aarch64),
        (gzip(&arm64_image()), Arch::Aarch64),
        (elf_head(2, 1, 21), Arch::Ppc64le),
        (elf_head(2, 2, 22), Arch::S390x),
        (s390, Arch::S390x),
    ] {
        assert_eq!(Arch::of_kernel(&scratch.file(&content)).unwrap(), arch);
    }
}

#[test]
fn accepts_initial_ram_disks() {
    let scratch = Scratch::new("initrd");
    open_initrd(&scratch.file(b"070701rest")).unwrap();
    open_initrd(&scratch.file(&[0x28, 0xb5, 0x2f, 0xfd, 4])).unwrap();
}

#[test]
fn refuses_the_rest_in_words() {
    let scratch = Scratch::new("refuses");
    let mut old = bzimage();
    old[0x236] = 0;
    for (content, part) in [
        (elf(17), "without a PVH entry"),
        (elf(18)[..100].to_vec(), "without a PVH entry"),
        (elf_head(1, 1, 3), "an architecture that no guest has"),
        (elf_head(2, 1, 183), "an ELF file for aarch64, which QEMU does not boot"),
        (old, "32-bit x86"),
        (gzip(&elf(18)), "compressed by gzip and holds no arm64 Image"),
        (gzip(b"short"), "compressed by gzip and holds no arm64 Image"),
        (b"\x1f\x8b garbage".to_vec(), "compressed by gzip and holds no arm64 Image"),
        (b"MZ\0\0zimg\0\0".to_vec(), "a compressed EFI application"),
        (b"#!/bin/sh\n".to_vec(), "neither an ELF file nor a kernel image"),
        (Vec::new(), "neither an ELF file nor a kernel image"),
    ] {
        let path = scratch.file(&content);
        let error = open_kernel(&path).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
    }
    let error = open_initrd(&scratch.file(b"07")).unwrap_err().to_string();
    assert!(error.contains("cpio archive"), "{error}");
    let error = open_kernel(&scratch.0.join("absent")).unwrap_err().to_string();
    assert!(error.contains("does not exist; set kernel in the configuration"), "{error}");
    let mut disk = vec![0; 1024];
    disk[512..520].copy_from_slice(b"EFI PART");
    let error = open_initrd(&scratch.file(&disk)).unwrap_err().to_string();
    assert!(
        error.ends_with("is a disk image, not an initial RAM disk; set image instead of initrd in the configuration")
    );
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
    let (file, _) = open_kernel(&path).unwrap();
    let error = require_world_readable("guest kernel", &path, &file).unwrap_err().to_string();
    assert!(error.contains("has mode 0600") && error.ends_with(&format!("chmod o+r {}", path.display())), "{error}");
}
