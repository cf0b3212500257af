//! D-Bus messages as bytes (the D-Bus specification, "Message Protocol"): as much of them as asking systemd for a scope takes.

use serde::{Deserialize, Serialize};

/// Longest message that is read. systemd's are a few hundred bytes.
const LONGEST: usize = 1 << 20;
/// Bytes of a header before its fields.
pub(super) const FIXED: usize = 16;
/// The byte order, as a message begins. Both ends are processes of one host.
const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
const VERSION: u8 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// A message: the fields of its header that are used here, and its body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) serial: u32,
    pub(super) reply_to: u32,
    pub(super) path: String,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) destination: String,
    pub(super) error: String,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// `b`.
    Truth(bool),
    /// `s`.
    Text(String),
    /// `i`.
    Int32(i32),
    /// `u`.
    Uint32(u32),
    /// `x`.
    Int64(i64),
    /// `t`.
    Uint64(u64),
    /// `as`.
    Texts(Vec<String>),
    /// `au`.
    Numbers(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Truth(_) => "b",
            Self::Text(_) => "s",
            Self::Int32(_) => "i",
            Self::Uint32(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Texts(_) => "as",
            Self::Numbers(_) => "au",
        }
    }
}

/// Puts values together. Each is aligned to its size, counted from the beginning.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Self {
        self.align(4);
        self.bytes.extend(number.to_ne_bytes());
        self
    }

    fn u64(&mut self, number: u64) {
        self.align(8);
        self.bytes.extend(number.to_ne_bytes());
    }

    /// A text or the path of an object.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
        self
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// An array of what `fill` writes, whose elements are aligned to `to`.
    pub(super) fn array(&mut self, to: usize, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(to);
        let begin = self.bytes.len();
        fill(self);
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// A value with its type.
    pub(super) fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Truth(truth) => {
                self.u32((*truth).into());
            }
            Value::Text(text) => {
                self.text(text);
            }
            Value::Int32(number) => {
                self.u32(number.cast_unsigned());
            }
            Value::Uint32(number) => {
                self.u32(*number);
            }
            Value::Int64(number) => self.u64(number.cast_unsigned()),
            Value::Uint64(number) => self.u64(*number),
            Value::Texts(texts) => {
                self.array(4, |array| {
                    for text in texts {
                        array.text(text);
                    }
                });
            }
            Value::Numbers(numbers) => {
                self.array(4, |array| {
                    for number in numbers {
                        array.u32(*number);
                    }
                });
            }
        }
    }

    /// Properties by their names: `a(sv)`.
    pub(super) fn properties(&mut self, properties: &[(String, Value)]) -> &mut Self {
        self.array(8, |array| {
            for (name, value) in properties {
                array.align(8);
                array.text(name).variant(value);
            }
        })
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Fields of a header, by their codes.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

impl Message {
    /// The message as bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut all = Writer { bytes: vec![ORDER, self.kind as u8, 0, VERSION] };
        all.u32(self.body.len() as u32).u32(self.serial);
        all.array(8, |fields| {
            let texts = [
                (PATH, "o", &self.path),
                (INTERFACE, "s", &self.interface),
                (MEMBER, "s", &self.member),
                (ERROR_NAME, "s", &self.error),
                (DESTINATION, "s", &self.destination),
            ];
            for (code, signature, text) in texts.into_iter().filter(|(_, _, text)| !text.is_empty()) {
                fields.align(8);
                fields.bytes.push(code);
                fields.signature(signature);
                fields.text(text);
            }
            if self.reply_to != 0 {
                fields.align(8);
                fields.bytes.push(REPLY_SERIAL);
                fields.signature("u");
                fields.u32(self.reply_to);
            }
            if !self.signature.is_empty() {
                fields.align(8);
                fields.bytes.push(SIGNATURE);
                fields.signature("g");
                fields.signature(&self.signature);
            }
        });
        all.align(8);
        all.bytes.extend(&self.body);
        all.bytes
    }

    /// Of a message's first [`FIXED`] bytes: how many follow.
    pub(super) fn rest(fixed: &[u8; FIXED]) -> Result<usize, &'static str> {
        let number = |at: usize| u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
        if fixed[0] != ORDER || fixed[3] != VERSION {
            return Err("a message of another byte order or version of the protocol");
        }
        let (body, fields) = (number(4), number(12));
        let rest = fields.checked_next_multiple_of(8).and_then(|fields| fields.checked_add(body));
        rest.filter(|rest| *rest <= LONGEST).ok_or("a message that is too long")
    }

    /// A message from its bytes; none if it is of a kind that is not known, which is to be passed over.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut all = Reader { bytes, at: 1 };
        let kind = match all.byte()? {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return None,
        };
        all.at = 4;
        let body = all.u32()? as usize;
        let mut message = Self { kind, serial: all.u32()?, ..Self::default() };
        let end = FIXED.checked_add(all.u32()? as usize)?;
        while all.at < end {
            all.align(8);
            let code = all.byte()?;
            match (code, all.signature()?) {
                (PATH, "o") => message.path = all.text()?.into(),
                (INTERFACE, "s") => message.interface = all.text()?.into(),
                (MEMBER, "s") => message.member = all.text()?.into(),
                (ERROR_NAME, "s") => message.error = all.text()?.into(),
                (DESTINATION, "s") => message.destination = all.text()?.into(),
                (REPLY_SERIAL, "u") => message.reply_to = all.u32()?,
                (SIGNATURE, "g") => message.signature = all.signature()?.into(),
                (_, "s" | "o") => {
                    all.text()?;
                }
                (_, "u") => {
                    all.u32()?;
                }
                (_, "g") => {
                    all.signature()?;
                }
                _ => return None,
            }
        }
        all.align(8);
        message.body = bytes.get(all.at..all.at.checked_add(body)?)?.to_vec();
        Some(message)
    }

    /// What is in the body.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// Takes values apart. Nothing is where a message ends too early.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    /// A text or the path of an object.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        self.ended(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?.into();
        self.ended(length)
    }

    /// So many bytes of text, and the zero after them.
    fn ended(&mut self, length: usize) -> Option<&'a str> {
        let text = self.take(length)?;
        (self.byte()? == 0).then(|| std::str::from_utf8(text).ok())?
    }

    /// A text within a variant.
    pub(super) fn variant_text(&mut self) -> Option<&'a str> {
        (self.signature()? == "s").then(|| self.text())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        let mut body = Writer::default();
        body.text("x.scope").u32(7).properties(&[
            ("Delegate".into(), Value::Truth(true)),
            ("PIDs".into(), Value::Numbers(vec![1, 2])),
            ("TimeoutStopUSec".into(), Value::Uint64(9)),
        ]);
        Message {
            serial: 5,
            path: "/org/a".into(),
            interface: "org.a.B".into(),
            member: "Do".into(),
            destination: "org.a".into(),
            signature: "sua(sv)".into(),
            body: body.into_bytes(),
            ..Message::default()
        }
    }

    #[test]
    fn a_message_is_the_bytes_of_the_specification() {
        let mut body = Writer::default();
        body.text("hi");
        let signal = Message {
            kind: Kind::Signal,
            serial: 1,
            path: "/".into(),
            signature: "s".into(),
            body: body.into_bytes(),
            ..Message::default()
        };
        if cfg!(target_endian = "little") {
            assert_eq!(
                signal.encode(),
                *b"l\x04\0\x01\x07\0\0\0\x01\0\0\0\x17\0\0\0\
                   \x01\x01o\0\x01\0\0\0/\0\0\0\0\0\0\0\
                   \x08\x01g\0\x01s\0\0\
                   \x02\0\0\0hi\0"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = sample().encode();
        let fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(Message::rest(&fixed), Ok(bytes.len() - FIXED));
        let read = Message::decode(&bytes).unwrap();
        assert_eq!(read, sample());
        let mut body = read.reader();
        assert_eq!((body.text(), body.u32()), (Some("x.scope"), Some(7)));
        assert_eq!(body.u32(), Some(88), "the length of the array");
    }

    #[test]
    fn what_is_cut_short_or_damaged_is_no_message_and_no_harm() {
        let bytes = sample().encode();
        for end in FIXED..bytes.len() {
            assert_eq!(Message::decode(&bytes[..end]), None, "{end}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Some(message) = Message::decode(&damaged) {
                    let _whatever = (message.reader().text(), message.reader().variant_text());
                }
            }
        }
        let mut fixed: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        fixed[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(Message::rest(&fixed).unwrap_err().contains("too long"));
        fixed[0] = 0;
        assert!(Message::rest(&fixed).unwrap_err().contains("byte order"));
    }
}
