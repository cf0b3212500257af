//! Kernels for 64-bit Arm. An `Image` is booted as it is; distributions compress it, or wrap it in an EFI application that only
//! firmware runs.
//!
//! The fields are those of the kernel's `Documentation/arch/arm64/booting.rst` and `drivers/firmware/efi/libstub/zboot-header.S`.

use std::borrow::Cow;

use crate::compression::Compression;

/// Offset of the constant "ARM\x64" of an `Image`.
const MAGIC: usize = 0x38;
/// Offset of the constant "zimg" of an EFI application that holds a kernel.
const ZBOOT_MAGIC: usize = 4;
/// Offset of where the compressed kernel begins.
const PAYLOAD_OFFSET: usize = 8;
/// Offset of its length.
const PAYLOAD_LENGTH: usize = 12;

/// More than any kernel, bytes: a limit for damaged data.
const MOST: usize = 1 << 30;

/// The `Image` in `file`; `None` if it is not for 64-bit Arm at all. The error is the reason why it cannot be had.
pub(crate) fn unpack(file: &[u8]) -> Option<Result<Cow<'_, [u8]>, String>> {
    if is_image(file) {
        return Some(Ok(Cow::Borrowed(file)));
    }
    if file.starts_with(b"MZ") && file.get(ZBOOT_MAGIC..)?.starts_with(b"zimg") {
        return Some(unwrap(file).map(Cow::Owned));
    }
    let whole = Compression::of(file)?.decompress(file, MOST).ok()?;
    is_image(&whole).then_some(Ok(Cow::Owned(whole)))
}

fn is_image(file: &[u8]) -> bool {
    file.get(MAGIC..).is_some_and(|rest| rest.starts_with(b"ARM\x64"))
}

fn unwrap(file: &[u8]) -> Result<Vec<u8>, String> {
    let number = |offset: usize| {
        let bytes = file.get(offset..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let payload = number(PAYLOAD_OFFSET)
        .zip(number(PAYLOAD_LENGTH))
        .and_then(|(start, length)| file.get(start..start.checked_add(length)?))
        .ok_or("its header names a payload beyond the end of the file; it may be cut off")?;
    let compression = Compression::of(payload).ok_or("its payload is compressed by none of gzip, xz and zstd")?;
    let kernel = compression
        .decompress(payload, MOST)
        .map_err(|error| format!("its payload cannot be decompressed ({error}); it may be damaged"))?;
    if is_image(&kernel) { Ok(kernel) } else { Err("its payload is no kernel for 64-bit Arm".into()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compression::tests::gzip;

    /// What every `Image` has.
    pub(crate) fn image() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[MAGIC..][..4].copy_from_slice(b"ARM\x64");
        image
    }

    fn wrapped(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 512];
        file[..2].copy_from_slice(b"MZ");
        file[ZBOOT_MAGIC..][..4].copy_from_slice(b"zimg");
        file[PAYLOAD_OFFSET..][..4].copy_from_slice(&512_u32.to_le_bytes());
        file[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend(payload);
        file
    }

    #[test]
    fn an_image_is_found_in_whatever_it_comes_in() {
        let zstd = zstd::encode_all(&image()[..], 3).unwrap();
        for file in [image(), gzip(&image()), zstd.clone(), wrapped(&gzip(&image())), wrapped(&zstd)] {
            assert_eq!(unpack(&file).unwrap().unwrap(), image());
        }
    }

    #[test]
    fn what_is_for_another_processor_is_left_alone() {
        for file in [&b""[..], b"\x7fELF", b"MZ", &[0; 4096], &gzip(b"text"), b"\x1f\x8bdamaged"] {
            assert!(unpack(file).is_none());
        }
    }

    #[test]
    fn a_wrapper_that_cannot_be_undone_is_refused_in_words() {
        let refusal = |file: &[u8]| unpack(file).unwrap().unwrap_err();
        let good = wrapped(&gzip(&image()));
        assert!(refusal(&good[..good.len() - 1]).contains("cut off"));
        assert!(refusal(&good[..14]).contains("cut off"));
        assert!(refusal(&wrapped(b"lzma?")).contains("none of gzip, xz and zstd"));
        assert!(refusal(&wrapped(&gzip(b"text"))).contains("no kernel for 64-bit Arm"));
        let mut damaged = good;
        let middle = 512 + 12;
        damaged[middle..middle + 8].fill(0xff);
        assert!(refusal(&damaged).contains("damaged"));
    }
}
