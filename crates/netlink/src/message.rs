//! Messages and their attributes.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// A message to the kernel, being put together.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// An empty message of a type (`nlmsg_type`) with flags (`nlmsg_flags`, `NLM_F_REQUEST` among them by itself).
    #[must_use]
    pub fn new(kind: u16, flags: i32) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// Appends a fixed part, such as `struct ifinfomsg`.
    pub fn fixed(&mut self, part: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(part);
        self.pad()
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad()
    }

    /// Appends an attribute that is a number of the machine's byte order.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute that is a text ended by a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let kind = (kind | NESTED).to_ne_bytes();
        self.structure(&[0, 0, kind[0], kind[1]], fill)
    }

    /// Appends a fixed part whose first two bytes are to be its length, that of the attributes which follow included.
    pub fn structure(&mut self, part: &[u8], fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.fixed(part);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Sets flags besides those it has.
    pub(crate) fn flag(&mut self, flags: i32) {
        let set = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | u16::try_from(flags).unwrap_or_default();
        self.bytes[6..8].copy_from_slice(&set.to_ne_bytes());
    }

    /// The finished message.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// The attributes that follow a fixed part, as pairs of type and value. What is cut off is left out.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        Some((kind & 0x3fff, value))
    })
}

/// A number of the machine's byte order; absent if there are too few bytes.
#[must_use]
pub fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Message::new(16, libc::NLM_F_ACK);
        message.fixed(&[7; 3]).number(1, 5).nest(2, |inner| {
            inner.text(3, "eth0");
        });
        let bytes = message.finish(9);
        assert_eq!(number(&bytes), Some(u32::try_from(bytes.len()).unwrap()));
        let read: Vec<_> = attributes(&bytes[HEADER + 4..]).collect();
        assert_eq!(read[0], (1, 5u32.to_ne_bytes().as_slice()));
        assert_eq!(attributes(read[1].1).collect::<Vec<_>>(), [(3, b"eth0\0".as_slice())]);
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        for bytes in [&[][..], &[4], &[0; 8], &[3, 0, 1, 0], &[200, 0, 1, 0, 5, 5]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert_eq!(number(&[1, 2, 3]), None);
    }
}
