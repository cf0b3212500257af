//! What has arrived on a stream and has not been read.

use std::collections::VecDeque;

use tokio::io::ReadBuf;

/// Size of a chunk once data comes in bulk, bytes: a frame of the size we send fits in one.
const CHUNK: usize = 16 << 10;
/// A piece of at least this many bytes counts as bulk.
const BULK: usize = 4 << 10;
/// Smallest chunk, bytes.
const SMALL: usize = 256;

/// A queue of bytes that is as large as what it holds.
///
/// Chunks rather than a ring: nothing is copied when it grows, nothing is kept when it is empty. Only the first chunk
/// (partly read) and the last (partly filled) have room to spare, so it takes at most two chunks more than it holds.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that have been read.
    read: usize,
}

impl Chunks {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn push(&mut self, mut data: &[u8]) {
        if let Some(last) = self.chunks.back_mut() {
            let n = data.len().min(last.capacity() - last.len());
            last.extend_from_slice(&data[..n]);
            data = &data[n..];
        }
        while !data.is_empty() {
            let size = if data.len() >= BULK { CHUNK } else { data.len().max(SMALL) };
            let n = data.len().min(size);
            let mut chunk = Vec::with_capacity(size);
            chunk.extend_from_slice(&data[..n]);
            self.chunks.push_back(chunk);
            data = &data[n..];
        }
    }

    /// Moves as much as fits into `into` and returns how much that was, bytes.
    pub(crate) fn pop(&mut self, into: &mut ReadBuf<'_>) -> usize {
        let before = into.remaining();
        while let Some(first) = self.chunks.front() {
            let rest = &first[self.read..];
            let n = rest.len().min(into.remaining());
            into.put_slice(&rest[..n]);
            if n < rest.len() {
                self.read += n;
                break;
            }
            self.chunks.pop_front();
            self.read = 0;
        }
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
        before - into.remaining()
    }

    #[cfg(test)]
    pub(crate) fn allocated(&self) -> usize {
        self.chunks.iter().map(Vec::capacity).sum()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum::<usize>() - self.read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pop(chunks: &mut Chunks, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        let mut buf = ReadBuf::new(&mut out);
        let got = chunks.pop(&mut buf);
        assert_eq!(got, buf.filled().len());
        out.truncate(got);
        out
    }

    #[test]
    fn keeps_order_through_odd_sizes_and_frees_what_it_no_longer_needs() {
        let mut chunks = Chunks::default();
        let (mut sent, mut received) = (0_u32, 0_u32);
        for round in 1..400_usize {
            let piece: Vec<u8> = (0..round * 37 % 9000).map(|_| (sent, sent += 1).0.to_le_bytes()[0] ^ 0x5a).collect();
            chunks.push(&piece);
            for byte in pop(&mut chunks, round * 91 % 7000) {
                assert_eq!(byte, received.to_le_bytes()[0] ^ 0x5a);
                received += 1;
            }
            assert!(chunks.allocated() <= chunks.len() + 2 * CHUNK);
        }
        received += pop(&mut chunks, usize::from(u16::MAX) * 64).len() as u32;
        assert_eq!(sent, received);
        assert!(chunks.is_empty() && chunks.allocated() == 0);
    }

    #[test]
    fn single_bytes_take_little_more_than_themselves() {
        let mut chunks = Chunks::default();
        for _ in 0..100_000 {
            chunks.push(b"x");
        }
        assert!(chunks.allocated() < 101_000, "{}", chunks.allocated());
    }
}
