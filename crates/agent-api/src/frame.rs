//! Reading and writing frames: a little-endian `u32` length, then that many bytes of JSON.
//!
//! The reader trusts no length: it refuses more than its limit before reading, and its buffer grows with the bytes that
//! arrive, never by the announced number.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest request, bytes. A configuration with a large seccomp profile and many mounts is about 200 KiB.
pub const MAX_REQUEST: usize = 4 << 20;
/// Largest reply, bytes. The longest is a list of processes.
pub const MAX_REPLY: usize = 1 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed the stream between two frames.
    #[error("the stream was closed")]
    Closed,
    /// The other side announced more than this side accepts.
    #[error("a frame of {announced} bytes was announced, {limit} is the limit")]
    TooLong {
        /// Announced length, bytes.
        announced: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// Reading or writing failed.
    #[error("input or output on the stream failed")]
    Io(#[from] io::Error),
    /// Not the JSON that was expected.
    #[error("the frame's contents are not what was expected")]
    Json(#[from] serde_json::Error),
}

/// Encodes one message as a frame.
///
/// # Errors
/// [`FrameError::Json`] when the message cannot be represented, [`FrameError::TooLong`] when it is over `u32::MAX` bytes.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let header =
        u32::try_from(length).map_err(|_| FrameError::TooLong { announced: length, limit: u32::MAX as usize })?;
    bytes[..4].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

fn check(header: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let announced = u32::from_le_bytes(header) as usize;
    if announced > limit { Err(FrameError::TooLong { announced, limit }) } else { Ok(announced) }
}

fn decode<T: DeserializeOwned>(body: &[u8], announced: usize) -> Result<T, FrameError> {
    if body.len() < announced {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(serde_json::from_slice(body)?)
}

/// Writes one message.
///
/// # Errors
/// As [`encode`], and [`FrameError::Io`].
pub async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one message of at most `limit` bytes.
///
/// # Errors
/// Any [`FrameError`]; after one the stream's position is undefined and it should be dropped.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(&mut header[first..]).await?;
    let announced = check(header, limit)?;
    let mut body = Vec::new();
    stream.take(announced as u64).read_to_end(&mut body).await?;
    decode(&body, announced)
}

/// [`write()`] for a blocking stream.
///
/// # Errors
/// As [`write()`].
pub fn write_blocking<T: Serialize>(stream: &mut impl io::Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    stream.flush()?;
    Ok(())
}

/// [`read()`] for a blocking stream.
///
/// # Errors
/// As [`read()`].
pub fn read_blocking<T: DeserializeOwned>(stream: &mut impl io::Read, limit: usize) -> Result<T, FrameError> {
    let mut header = [0; 4];
    let first = stream.read(&mut header)?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(&mut header[first..])?;
    let announced = check(header, limit)?;
    let mut body = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(stream, announced as u64), &mut body)?;
    decode(&body, announced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reply, Request};

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let bytes = encode(&Request::StartContainer { container: "c1".into() }).unwrap();
        let back: Request = read_blocking(&mut bytes.as_slice(), MAX_REQUEST).unwrap();
        assert!(matches!(back, Request::StartContainer { container } if container == "c1"));
    }

    #[test]
    fn an_announced_length_over_the_limit_is_refused_before_reading() {
        let bytes = u32::MAX.to_le_bytes();
        let error = read_blocking::<Reply>(&mut bytes.as_slice(), MAX_REPLY).unwrap_err();
        assert!(matches!(error, FrameError::TooLong { announced, .. } if announced == u32::MAX as usize));
    }

    #[test]
    fn a_truncated_frame_is_an_error_and_an_empty_stream_is_closed() {
        let bytes = encode(&Reply::Done).unwrap();
        let error = read_blocking::<Reply>(&mut &bytes[..bytes.len() - 1], MAX_REPLY).unwrap_err();
        assert!(matches!(error, FrameError::Io(_)));
        assert!(matches!(read_blocking::<Reply>(&mut &[][..], MAX_REPLY), Err(FrameError::Closed)));
    }

    #[test]
    fn an_unknown_kind_of_fault_from_a_newer_agent_is_understood() {
        let reply: Reply = serde_json::from_str(r#"{"fault":{"kind":"brand_new","message":"m"}}"#).unwrap();
        assert!(matches!(reply, Reply::Fault(f) if f.kind == crate::FaultKind::Internal));
    }
}
