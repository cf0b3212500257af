//! Taking the compressed kernel out of an x86 bzImage.
//!
//! The fields are those of the kernel's `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header".

use crate::compression::Compression;

/// Offset of the number of 512-byte sectors of real-mode code, beyond the first (`setup_sects`, one byte).
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the constant 0xAA55 (`boot_flag`).
const BOOT_FLAG: usize = 0x1fe;
/// Offset of the constant "HdrS" (`header`).
const HEADER: usize = 0x202;
/// Offset of the protocol's version (`version`).
const VERSION: usize = 0x206;
/// Offset of where the payload begins, from the end of the real-mode code (`payload_offset`).
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of the payload's length (`payload_length`).
const PAYLOAD_LENGTH: usize = 0x24c;
/// First version of the protocol with a payload, 2.08.
const FIRST_WITH_PAYLOAD: u16 = 0x0208;

/// More than any kernel, bytes: a limit for a damaged length.
const MOST: usize = 1 << 30;

/// The payload of `image`, decompressed; the error is the reason why there is none.
pub(crate) fn unpack(image: &[u8]) -> Result<Vec<u8>, String> {
    if bytes(image, BOOT_FLAG) != Some([0x55, 0xaa]) || bytes(image, HEADER) != Some(*b"HdrS") {
        return Err("it is neither an x86 bzImage nor an ELF file".into());
    }
    let version = bytes(image, VERSION).map_or(0, u16::from_le_bytes);
    if version < FIRST_WITH_PAYLOAD {
        return Err(format!("its boot protocol {}.{:02} is older than 2.08", version >> 8, version & 0xff));
    }
    let payload = payload(image).ok_or("its header names a payload beyond the end of the file; it may be cut off")?;
    if payload.starts_with(b"\x7fELF") {
        return Ok(payload.to_vec());
    }
    let compression = Compression::of(payload)
        .ok_or_else(|| format!("its payload is {}; xz, zstd, gzip and none can be read", name_of(payload)))?;
    // The build appends the decompressed length (to gzip the format itself does), little-endian.
    let length = payload.last_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    if length > MOST {
        return Err(format!("its payload announces {length} bytes, which no kernel has"));
    }
    let kernel = compression
        .decompress(payload, length)
        .map_err(|error| format!("its payload cannot be decompressed ({error}); it may be damaged"))?;
    if kernel.len() != length {
        return Err(format!("its payload decompresses to {} bytes, {length} were announced", kernel.len()));
    }
    Ok(kernel)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let setup = match *image.get(SETUP_SECTS)? {
        0 => 4, // As the specification says, for very old kernels.
        sectors => usize::from(sectors),
    };
    let offset = u32::from_le_bytes(bytes(image, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(bytes(image, PAYLOAD_LENGTH)?) as usize;
    let start = (setup + 1) * 512 + offset;
    image.get(start..start.checked_add(length)?)
}

fn bytes<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..)?.first_chunk().copied()
}

/// Names of the kernel's other compressions, for the error.
fn name_of(payload: &[u8]) -> &'static str {
    match payload {
        [b'B', b'Z', b'h', ..] => "compressed with bzip2",
        [0x5d, 0, 0, ..] => "compressed with lzma",
        [0x89, b'L', b'Z', b'O', ..] => "compressed with lzo",
        [0x02, 0x21, 0x4c, 0x18, ..] => "compressed with lz4",
        _ => "of no known kind",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compression::tests::gzip;

    /// A bzImage of two sectors of set-up, 16 bytes of code and `payload`.
    pub(crate) fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512 + 16];
        image[SETUP_SECTS] = 1;
        image[BOOT_FLAG..][..2].copy_from_slice(&[0x55, 0xaa]);
        image[HEADER..][..4].copy_from_slice(b"HdrS");
        image[VERSION..][..2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&16_u32.to_le_bytes());
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    fn with_length(mut payload: Vec<u8>, length: u32) -> Vec<u8> {
        payload.extend(length.to_le_bytes());
        payload
    }

    #[test]
    fn the_payload_is_found_and_decompressed() {
        assert_eq!(unpack(&image(&gzip(b"kernel"))).unwrap(), b"kernel");
        let zstd = zstd::encode_all(&b"kernel"[..], 3).unwrap();
        assert_eq!(unpack(&image(&with_length(zstd, 6))).unwrap(), b"kernel");
        assert_eq!(unpack(&image(b"\x7fELF...")).unwrap(), b"\x7fELF...");
    }

    #[test]
    fn what_is_not_a_bzimage_is_refused() {
        for bytes in [&b""[..], &[0; 100], &[0; 4096], b"\x7fELF"] {
            assert_eq!(unpack(bytes).unwrap_err(), "it is neither an x86 bzImage nor an ELF file");
        }
    }

    #[test]
    fn a_wrong_header_or_payload_is_refused_in_words() {
        let good = image(&gzip(b"kernel"));
        let mut old = good.clone();
        old[VERSION] = 7;
        assert_eq!(unpack(&old).unwrap_err(), "its boot protocol 2.07 is older than 2.08");
        assert!(unpack(&good[..good.len() - 1]).unwrap_err().contains("cut off"));
        let mut far = good.clone();
        far[PAYLOAD_LENGTH..][..4].fill(0xff);
        assert!(unpack(&far).unwrap_err().contains("beyond the end"));
        let zstd = zstd::encode_all(&b"kernel"[..], 3).unwrap();
        assert!(unpack(&image(&with_length(zstd.clone(), 7))).unwrap_err().contains("6 bytes, 7 were announced"));
        assert!(unpack(&image(&with_length(zstd.clone(), 5))).unwrap_err().contains("more than 5 bytes"));
        assert!(unpack(&image(&with_length(zstd, u32::MAX))).unwrap_err().contains("which no kernel has"));
        assert!(unpack(&image(b"\x02\x21\x4c\x18....")).unwrap_err().contains("lz4"));
        assert!(unpack(&image(b"")).unwrap_err().contains("no known kind"));
    }
}
