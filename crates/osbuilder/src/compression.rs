//! The compressions that Debian uses for kernels and modules.

use std::io::{self, Read};

/// How some bytes are compressed, told by how they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Xz,
    Zstd,
}

impl Compression {
    /// Looks at the first bytes; `None` for anything else.
    pub(crate) fn of(bytes: &[u8]) -> Option<Compression> {
        let known = [
            (&b"\x1f\x8b"[..], Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        known.into_iter().find_map(|(magic, compression)| bytes.starts_with(magic).then_some(compression))
    }

    /// Decompresses one stream; what follows it is not looked at. More than `limit` bytes are an error, so that a damaged file
    /// cannot fill the memory.
    pub(crate) fn decompress(self, bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Compression::Gzip => read_limited(flate2::bufread::GzDecoder::new(bytes), limit),
            Compression::Xz => read_limited(lzma_rust2::XzReader::new(bytes, false), limit),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(bytes)?.single_frame();
                // The kernel is compressed from a pipe at the highest level, which announces a window of 128 MiB.
                decoder.window_log_max(27)?;
                read_limited(decoder, limit)
            }
        }
    }
}

fn read_limited(reader: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut out)?;
    if out.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it decompresses to more than {limit} bytes")));
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// `xz --x86 --lzma2` of "kata\n": the filter chain kernels are compressed with.
    #[rustfmt::skip]
    pub(crate) const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01, 0x04, 0x00, 0x21, 0x01, 0x10, 0x00, 0x8b, 0x21, 0x6f, 0x49, 0x01, 0x00, 0x04, 0x6b, 0x61, 0x74, 0x61, 0x0a, 0x00, 0x00, 0x00, 0x00, 0x53, 0x52, 0x91, 0x64, 0x00, 0x01, 0x19, 0x05, 0xbc, 0xe8, 0xec, 0xcb, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn each_is_told_by_its_beginning_and_undone_with_bytes_behind_it() {
        let zstd = zstd::encode_all(&b"kata\n"[..], 1).unwrap();
        for (expected, mut bytes) in
            [(Compression::Gzip, gzip(b"kata\n")), (Compression::Xz, XZ.to_vec()), (Compression::Zstd, zstd)]
        {
            bytes.extend([5, 0, 0, 0]);
            let compression = Compression::of(&bytes).unwrap();
            assert_eq!(compression, expected);
            assert_eq!(compression.decompress(&bytes, 5).unwrap(), b"kata\n");
            assert!(compression.decompress(&bytes, 4).is_err(), "one byte over the limit");
            assert!(compression.decompress(&bytes[..bytes.len() / 2], 5).is_err(), "cut off");
        }
        assert_eq!(Compression::of(b"\x7fELF"), None);
    }
}
