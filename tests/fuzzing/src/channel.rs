//! One end of the channel, whose other end says anything.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use proxy::{Limits, Side, Stream, connect};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bytes::Bytes;

/// Longest data frame that this side sends, bytes.
const MOST_DATA: u32 = 16 << 10;
/// Streams of the peer's that are kept open at a time.
const MOST_STREAMS: usize = 8;

/// A transport that gives what the peer has sent, in pieces, and takes what is sent to it, in pieces.
#[derive(Default)]
struct Wire {
    arriving: VecDeque<Vec<u8>>,
    sent: Vec<u8>,
    /// Bytes that are taken before the next pause.
    room: usize,
}

struct Io(Arc<Mutex<Wire>>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock().unwrap();
        let Some(piece) = wire.arriving.front_mut() else { return Poll::Pending };
        let rest = piece.split_off(piece.len().min(buffer.remaining()));
        buffer.put_slice(piece);
        *piece = rest;
        if piece.is_empty() {
            wire.arriving.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock().unwrap();
        let count = bytes.len().min(wire.room);
        wire.room -= count;
        wire.sent.extend_from_slice(&bytes[..count]);
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What is sent must be frames, whatever arrived.
fn check_sent(mut sent: &[u8], is_over: bool) {
    while let Some(header) = sent.get(..12) {
        assert_eq!(header[0], 0, "a version that there is not");
        assert!(header[1] < 4, "a type that there is not");
        assert!(u16::from_be_bytes([header[2], header[3]]) < 16, "flags that there are not");
        let id = u32::from_be_bytes(header[4..8].try_into().unwrap());
        assert_eq!(id == 0, header[1] >= 2, "a stream's frame without a stream");
        let value = u32::from_be_bytes(header[8..12].try_into().unwrap());
        let length = if header[1] == 0 { value } else { 0 };
        assert!(length <= MOST_DATA, "a frame of {length} bytes");
        let end = 12 + length as usize;
        assert!(is_over || sent.len() >= end, "a frame of which an end is missing");
        sent = sent.get(end..).unwrap_or_default();
    }
}

pub(crate) fn frames(data: &[u8]) {
    let mut bytes = Bytes(data);
    let side = if bytes.u8() & 1 == 0 { Side::Host } else { Side::Guest };
    let limits = Limits { accept_backlog: 4, accept_streams: 6, open_streams: 6, ..Limits::default() };
    let limits = if side == Side::Host { Limits { accept_streams: 0, ..limits } } else { limits };
    let wire = Arc::new(Mutex::new(Wire::default()));
    let (opener, mut acceptor, driver) = connect(Io(wire.clone()), side, limits);
    let mut driver = pin!(driver);
    let mut streams: Vec<Stream> = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut ended = false;
    while !bytes.is_empty() && !ended {
        match bytes.u8() % 16 {
            0 if streams.len() < MOST_STREAMS => streams.extend(opener.open()),
            1 if !streams.is_empty() => drop(streams.remove(usize::from(bytes.u8()) % streams.len())),
            action @ (2 | 3) if !streams.is_empty() => {
                let at = usize::from(bytes.u8()) % streams.len();
                let stream = Pin::new(&mut streams[at]);
                let count = usize::from(bytes.u16());
                if action == 2 {
                    let _ = stream.poll_write(&mut context, &vec![7; count]);
                } else {
                    let _ = stream.poll_read(&mut context, &mut ReadBuf::new(&mut vec![0; count]));
                }
            }
            4 if !streams.is_empty() => {
                let at = usize::from(bytes.u8()) % streams.len();
                let _ = Pin::new(&mut streams[at]).poll_shutdown(&mut context);
            }
            5 => opener.ping(bytes.u8().into()),
            6 => opener.close(),
            7 if streams.len() < MOST_STREAMS => {
                if let Poll::Ready(Some(stream)) = pin!(acceptor.accept()).poll(&mut context) {
                    streams.push(stream);
                }
            }
            // Large data, without large input.
            8 => {
                let (id, flags, length) = (bytes.u8(), bytes.u8(), u32::from(bytes.u16()) * 8);
                let mut frame = vec![0, 0, 0, flags & 15, 0, 0, 0, id];
                frame.extend(length.to_be_bytes());
                frame.resize(12 + length as usize, 0x55);
                wire.lock().unwrap().arriving.push_back(frame);
            }
            _ => {
                let count = usize::from(bytes.u8()) + 1;
                let piece = bytes.take(count);
                if !piece.is_empty() {
                    wire.lock().unwrap().arriving.push_back(piece.to_vec());
                }
            }
        }
        wire.lock().unwrap().room = 64 << 10;
        // Twice: whoever is polled without being woken must bear it.
        for _ in 0..2 {
            ended = ended || driver.as_mut().poll(&mut context).is_ready();
        }
        assert!(opener.streams() <= 12 + streams.len(), "{} streams", opener.streams());
    }
    let wire = wire.lock().unwrap();
    check_sent(&wire.sent, true);
}
