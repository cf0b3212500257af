//! Queries for names that the guest cannot answer: what follows the reply to [`Request::ServeNames`](crate::Request::ServeNames).
//!
//! The guest sends queries, the host answers, each as it likes. A [`Message`] is not looked into, and is bytes instead of JSON: a
//! little-endian `u16` that pairs an answer with its query, a byte for the transport, a little-endian `u16` length, and that
//! many bytes in the form of DNS. An answer of no bytes says that there is none.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest query, bytes. Those of resolvers are a few hundred.
pub const MAX_QUERY: usize = 4096;
/// Longest answer, bytes: as long as DNS can have it.
pub const MAX_ANSWER: usize = u16::MAX as usize;
/// How many queries may wait for their answers.
pub const MAX_WAITING: usize = 32;

/// How a query came, and is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// Over a connection.
    Tcp,
}

/// A query or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Pairs both.
    pub number: u16,
    /// How the query came.
    pub transport: Transport,
    /// The message in the form of DNS.
    pub bytes: Vec<u8>,
}

const HEADER: usize = 5;

/// Reads one message of at most `limit` bytes.
///
/// # Errors
/// Those of reading, and `InvalidData` for a message that is none; the stream should be dropped then.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Message> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let [a, b, transport, c, d] = header;
    let (number, length) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    if length > limit {
        return Err(invalid(format!("a query or answer of {length} bytes was announced, {limit} is the limit")));
    }
    let transport = match transport {
        0 => Transport::Udp,
        1 => Transport::Tcp,
        other => return Err(invalid(format!("the transport {other} does not exist"))),
    };
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Message { number, transport, bytes })
}

/// Writes one message.
///
/// # Errors
/// Those of writing, and `InvalidData` for one that is too long.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    let length = u16::try_from(message.bytes.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = Vec::with_capacity(HEADER + message.bytes.len());
    bytes.extend(message.number.to_le_bytes());
    bytes.push(u8::from(message.transport == Transport::Tcp));
    bytes.extend(length.to_le_bytes());
    bytes.extend(&message.bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_of(mut bytes: &[u8]) -> io::Result<Message> {
        read(&mut bytes, 4).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_comes_back_as_it_went() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let message = Message { number: 0x1234, transport, bytes: vec![1, 2, 3, 4] };
            let mut bytes = Vec::new();
            write(&mut bytes, &message).await.unwrap();
            assert_eq!(read_of(&bytes).await.unwrap(), message);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_too_long_or_no_message_is_refused_before_it_is_read() {
        let invalid = |result: io::Result<Message>| result.unwrap_err().kind();
        assert_eq!(invalid(read_of(&[0, 0, 0, 5, 0, 1, 2, 3, 4, 5]).await), io::ErrorKind::InvalidData);
        assert_eq!(invalid(read_of(&[0, 0, 2, 0, 0]).await), io::ErrorKind::InvalidData);
        assert_eq!(invalid(read_of(&[0, 0, 1, 2, 0, 9]).await), io::ErrorKind::UnexpectedEof);
        let long = Message { number: 0, transport: Transport::Udp, bytes: vec![0; 1 << 16] };
        write(&mut Vec::new(), &long).await.unwrap_err();
    }
}
