//! What guests are built from: what a mirror sends, of which some is read before its signature is looked at, and images.

use std::{
    fs,
    io::Write,
    path::{Component, Path},
};

use osbuilder::{
    Error,
    foreign::{self, NAME, Unpacked},
};
use sha2::{Digest, Sha256};

use crate::{bytes::Bytes, scratch::Scratch};

/// Longer than an initrd of any input: contents, which are no longer than what compresses to them, and headers.
const LONGEST: u64 = 64 << 20;

/// One way to read for each first byte.
const READERS: [fn(&mut Bytes<'_>); 7] =
    [index, packages, whole_package, package, layers, layout_directory, layout_archive];

pub(crate) fn read(data: &[u8]) {
    let mut bytes = Bytes(data);
    READERS[usize::from(bytes.u8()) % READERS.len()](&mut bytes);
}

/// As a mirror sends it.
fn index(bytes: &mut Bytes<'_>) {
    if let Some(text) = checked(foreign::alpine_index(bytes.0), NAME) {
        assert!(text.len() < 256 << 20);
    }
}

fn packages(bytes: &mut Bytes<'_>) {
    let wanted = bytes.text();
    let index = String::from_utf8_lossy(bytes.0);
    let urls = foreign::alpine_packages(&index, &wanted).unwrap_or_default();
    for url in urls {
        // Not of another place than the mirror's.
        let file = url.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('/')).expect("a file of the mirror's");
        assert!(!file.contains('/') && !file.starts_with('.'), "{url:?}");
    }
}

/// As a mirror sends it, and what the index says of it before it.
fn whole_package(bytes: &mut Bytes<'_>) {
    let entry = bytes.text();
    let scratch = Scratch::new();
    let contents = scratch.directory("contents");
    let unpacked = checked(foreign::alpine_package(&entry, bytes.0, &contents), NAME);
    check(&scratch, unpacked.flatten());
}

/// One whose digest is right.
fn package(bytes: &mut Bytes<'_>) {
    let (signature, files) = (file(".SIGN.RSA.key", b"x"), gzip(&archive(bytes)));
    let digest = hex(&files);
    let mut info = format!("pkgname = a\npkgver = 1\ndatahash = {digest}\n").into_bytes();
    info.extend(bytes.0);
    let package = [gzip(&signature), gzip(&file(".PKGINFO", &info)), files].concat();
    let scratch = Scratch::new();
    let contents = scratch.directory("contents");
    let unpacked = checked(foreign::alpine_package("P:a\nV:1\n", &package, &contents), NAME);
    check(&scratch, unpacked.flatten());
}

/// Up to four archives.
fn layers(bytes: &mut Bytes<'_>) {
    let mut archives = Vec::new();
    while !bytes.is_empty() && archives.len() < 4 {
        archives.push(archive(bytes));
    }
    let archives: Vec<&[u8]> = archives.iter().map(Vec::as_slice).collect();
    let scratch = Scratch::new();
    let contents = scratch.directory("contents");
    check(&scratch, checked(foreign::layers(&archives, &contents), NAME));
}

/// Blobs, of which the last is the index. `@` and a digit in one is the descriptor of an earlier one.
fn layout_directory(bytes: &mut Bytes<'_>) {
    let scratch = Scratch::new();
    let layout = scratch.directory("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    fs::write(layout.join("oci-layout"), "{}").expect("a file");
    let mut descriptors: Vec<Vec<u8>> = Vec::new();
    let mut last = Vec::new();
    while !bytes.is_empty() && descriptors.len() < 10 {
        let kind = bytes.u8();
        let blob = match kind % 3 {
            0 => filled(&after_length(bytes), &descriptors),
            1 => archive(bytes),
            _ => gzip(&archive(bytes)),
        };
        let digest = hex(&blob);
        fs::write(layout.join("blobs/sha256").join(&digest), &blob).expect("a file");
        descriptors.push(format!("\"digest\":\"sha256:{digest}\",\"size\":{}", blob.len()).into_bytes());
        last = blob;
    }
    fs::write(layout.join("index.json"), last).expect("a file");
    read_layout(&scratch, &layout);
}

fn layout_archive(bytes: &mut Bytes<'_>) {
    let scratch = Scratch::new();
    let archive = scratch.file("archive", bytes.0);
    read_layout(&scratch, &archive);
}

fn read_layout(scratch: &Scratch, layout: &Path) {
    check(scratch, checked(foreign::layout(layout), &layout.to_string_lossy()));
}

/// What was refused says what is at fault.
fn checked<T>(read: Result<T, Error>, named: &str) -> Option<T> {
    match read {
        Ok(read) => Some(read),
        // Of a root that was read it is a file in it.
        Err(Error::Unusable { path, why }) => {
            assert!((path.starts_with(named) || path.is_relative()) && !why.is_empty(), "{}: {why}", path.display());
            None
        }
        Err(error) => {
            assert!(error.to_string().contains(named), "{error} does not name {named}");
            None
        }
    }
}

/// What was accepted lies within the root, and nothing is where it should not be.
fn check(scratch: &Scratch, unpacked: Option<Unpacked>) {
    for name in unpacked.iter().flat_map(|unpacked| &unpacked.names) {
        assert!(name.components().all(|part| matches!(part, Component::Normal(_))), "{name:?}");
    }
    assert!(unpacked.is_none_or(|unpacked| unpacked.length < LONGEST));
    for made in fs::read_dir(scratch.path()).expect("a directory") {
        let made = made.expect("a file");
        let name = made.file_name();
        assert!(["contents", "layout", "archive"].iter().any(|known| name == *known), "{name:?} was made");
        if name == "contents" {
            let files = fs::read_dir(made.path()).expect("a directory").flatten();
            let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
            assert!(files.into_iter().all(|file| file.file_name().to_str().is_some_and(is_number)));
        }
    }
}

/// As many bytes as two bytes say.
fn after_length(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let length = bytes.u16().into();
    bytes.take(length).to_vec()
}

fn filled(blob: &[u8], descriptors: &[Vec<u8>]) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut rest = blob.iter();
    while let Some(&byte) = rest.next() {
        let digit = (byte == b'@').then(|| rest.as_slice().first()).flatten().map(|digit| digit.wrapping_sub(b'0'));
        match digit.and_then(|digit| descriptors.get(usize::from(digit))) {
            Some(descriptor) => {
                rest.next();
                filled.extend(descriptor);
            }
            None => filled.push(byte),
        }
    }
    filled
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An archive of any entries whose headers' sums are right, which a fuzzer does not find.
fn archive(bytes: &mut Bytes<'_>) -> Vec<u8> {
    const KINDS: &[u8; 16] = b"0012357LKLKxxgSV";
    let mut archive = Vec::new();
    for _ in 0..32 {
        let kind = bytes.u8();
        if kind == 0 {
            break;
        }
        let flag = KINDS[usize::from(kind) % KINDS.len()];
        let name = bytes.text();
        let link = if matches!(flag, b'1' | b'2') { bytes.text() } else { String::new() };
        let length = if kind & 0x10 == 0 { bytes.u8().into() } else { bytes.u16() };
        let contents = bytes.take(length.into());
        // It may say that there is more.
        let more = if kind & 0x80 == 0 { 0 } else { usize::from(bytes.u16()) << (kind >> 5) };
        archive.extend(entry(header(flag, name.as_bytes(), link.as_bytes(), contents.len() + more), contents));
    }
    archive
}

/// An archive of one file, without its end.
fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    entry(header(b'0', name.as_bytes(), b"", contents.len()), contents)
}

fn entry(header: Vec<u8>, contents: &[u8]) -> Vec<u8> {
    let mut entry = header;
    entry.extend(contents);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn header(flag: u8, name: &[u8], link: &[u8], length: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, most: usize, field: &[u8]| {
        let field = &field[..field.len().min(most)];
        header[at..at + field.len()].copy_from_slice(field);
    };
    put(0, 100, name);
    put(100, 24, b"0004755\x000000007\x000000010\0");
    put(124, 12, format!("{length:011o}\0").as_bytes());
    put(148, 9, &[b"        ", &[flag][..]].concat());
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
