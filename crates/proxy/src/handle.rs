//! What users of the channel hold: the [`Opener`], the [`Acceptor`] and the [`Stream`]s.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Error;
use crate::channel::Channel;

/// Opens streams to the peer, and closes the channel.
///
/// Dropping it does neither: streams live on, and the channel with them.
#[derive(Clone)]
pub struct Opener {
    channel: Arc<Channel>,
}

impl Opener {
    pub(crate) fn new(channel: Arc<Channel>) -> Self {
        Self { channel }
    }

    /// Opens a stream. Does not wait for the peer: 256 KiB can be written before it has answered, and if it refuses,
    /// reads and writes fail with [`Error::Reset`].
    ///
    /// # Errors
    /// [`Error::Closed`] when the channel has ended or the peer wants no new streams, [`Error::TooManyStreams`] and
    /// [`Error::NoMoreIds`] when there is no room for another.
    pub fn open(&self) -> Result<Stream, Error> {
        let id = self.channel.with(|core| core.open())?;
        Ok(Stream { channel: self.channel.clone(), id })
    }

    /// Ends the channel. Every stream fails from now on, the driver sends what was written before and a go-away frame,
    /// closes the transport and ends. The peer decides how long that takes: give the driver a deadline.
    pub fn close(&self) {
        self.channel.with(|core| {
            if core.ended().is_none() {
                core.out.go_away(0);
                core.finish(Error::ClosedHere);
            }
        });
    }

    /// Asks for a sign of life, which [`Opener::answered`] tells of. One that is not sent yet is replaced.
    pub fn ping(&self, cookie: u32) {
        self.channel.with(|core| {
            core.out.ping(cookie);
            core.wake_driver();
        });
    }

    /// The cookie that the peer has answered a ping with last; it may be any, if the peer is hostile.
    pub fn answered(&self) -> Option<u32> {
        self.channel.with(|core| core.answered)
    }

    /// How many streams there are, of both sides, those included that are closed but whose end the peer has not been
    /// told.
    pub fn streams(&self) -> usize {
        self.channel.with(|core| core.streams.len())
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

/// Receives the streams that the peer opens.
///
/// When it is dropped, streams that wait in it are reset and later ones refused.
pub struct Acceptor {
    channel: Arc<Channel>,
}

impl Acceptor {
    pub(crate) fn new(channel: Arc<Channel>) -> Self {
        Self { channel }
    }

    /// Waits for the next stream; `None` when the channel has ended. Nothing is lost if the future is dropped.
    ///
    /// A stream may have been reset or closed by the peer while it waited; what had arrived on it can still be read.
    pub async fn accept(&mut self) -> Option<Stream> {
        let id = poll_fn(|cx| self.channel.with(|core| core.poll_accept(cx))).await?;
        Some(Stream { channel: self.channel.clone(), id })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.channel.with(|core| core.stop_accepting());
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// One byte stream, both ways.
///
/// * Reading gives what arrived, in order; then the end of the file if the peer closed its half, or an [`io::Error`]
///   that holds the [`Error`] which ended the stream.
/// * Writing is done when the bytes are in the channel's buffer; there is nothing to flush. They arrive before whatever
///   is done to the stream afterwards, unless the channel dies.
/// * `poll_shutdown` closes this side's half. Reading goes on.
/// * Dropping it before both halves are closed resets it: the peer's writes fail from then on, and its reads once it
///   has read what had arrived.
pub struct Stream {
    channel: Arc<Channel>,
    id: u32,
}

impl Stream {
    /// The stream's id: odd if the host opened it, even if the guest did. Never used twice on one channel.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.channel.with(|core| core.poll_read(self.id, cx, buf)).map_err(io::Error::from)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.channel.with(|core| core.poll_write(self.id, cx, data)).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.channel.with(|core| core.shut_down(self.id)).map_err(io::Error::from))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.channel.with(|core| core.release(self.id));
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}
