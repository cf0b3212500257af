//! The yamux frame header, and the numbers that the specification fixes.
//!
//! Source: <https://github.com/hashicorp/yamux/blob/master/spec.md>. A header is 12 bytes, big-endian: version (8
//! bits), type (8), flags (16), stream id (32), and a value (32) that is a byte count, a credit, a ping's cookie or an
//! error code.

use crate::Violation;

/// Length of a frame header, bytes.
pub(crate) const HEADER: usize = 12;

/// What each side may send on a new stream before it has been granted any credit, bytes (specification, "Flow
/// Control").
pub(crate) const INITIAL_WINDOW: u32 = 256 << 10;

const VERSION: u8 = 0;

/// Flags of a header.
pub(crate) mod flag {
    /// Starts a stream; on a ping, asks for the answer.
    pub(crate) const SYN: u16 = 1;
    /// Acknowledges the start of a stream; on a ping, is the answer.
    pub(crate) const ACK: u16 = 2;
    /// The sender will send no more data on this stream.
    pub(crate) const FIN: u16 = 4;
    /// The stream is gone, both ways, at once.
    pub(crate) const RST: u16 = 8;
    /// Every flag that exists.
    pub(crate) const ALL: u16 = SYN | ACK | FIN | RST;
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Carries `value` bytes of a stream.
    Data,
    /// Grants `value` bytes of credit, or carries flags alone.
    Window,
    /// Asks for, or is, a sign of life.
    Ping,
    /// Ends the session with the code `value`.
    GoAway,
}

/// A frame header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) flags: u16,
    pub(crate) id: u32,
    pub(crate) value: u32,
}

impl Header {
    /// A frame that carries only flags and credit.
    pub(crate) fn window(flags: u16, id: u32, value: u32) -> Self {
        Self { kind: Kind::Window, flags, id, value }
    }

    pub(crate) fn has(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }

    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = VERSION;
        bytes[1] = match self.kind {
            Kind::Data => 0,
            Kind::Window => 1,
            Kind::Ping => 2,
            Kind::GoAway => 3,
        };
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.id.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.value.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Result<Self, Violation> {
        let [version, kind, f0, f1, i0, i1, i2, i3, v0, v1, v2, v3] = *bytes;
        if version != VERSION {
            return Err(Violation::Version(version));
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::Window,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            other => return Err(Violation::Type(other)),
        };
        let flags = u16::from_be_bytes([f0, f1]);
        if flags & !flag::ALL != 0 {
            return Err(Violation::Flags(flags));
        }
        let id = u32::from_be_bytes([i0, i1, i2, i3]);
        let of_stream = matches!(kind, Kind::Data | Kind::Window);
        if of_stream != (id != 0) {
            return Err(Violation::Id(id));
        }
        Ok(Self { kind, flags, id, value: u32::from_be_bytes([v0, v1, v2, v3]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_layout_of_the_specification() {
        let header = Header { kind: Kind::Window, flags: flag::SYN | flag::FIN, id: 0x0102_0304, value: 0x0506_0708 };
        assert_eq!(header.encode(), [0, 1, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn refuses_what_the_specification_does_not_know() {
        let decode = |bytes: [u8; HEADER]| Header::decode(&bytes).unwrap_err();
        assert!(matches!(decode([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Violation::Version(1)));
        assert!(matches!(decode([0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Violation::Type(4)));
        assert!(matches!(decode([0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0]), Violation::Flags(16)));
        assert!(matches!(decode([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Violation::Id(0)));
        assert!(matches!(decode([0, 2, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0]), Violation::Id(7)));
    }
}
