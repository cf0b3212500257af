//! One channel into the guest, many independent byte streams over it.
//!
//! Host and guest are joined by a single ordered byte channel (a virtio-serial port, a socket). This crate carries any
//! number of streams over it, each with its own flow control, in the yamux wire protocol
//! (<https://github.com/hashicorp/yamux/blob/master/spec.md>). Both ends use the same code: the agent in the guest, on
//! a single-threaded runtime, and the sandbox's daemon on the host.
//!
//! ```
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (here, there) = tokio::io::duplex(64 << 10);
//! let (opener, _, driver) = proxy::connect(here, proxy::Side::Host, proxy::Limits::host());
//! let host = tokio::spawn(driver);
//! let (_, mut acceptor, driver) = proxy::connect(there, proxy::Side::Guest, proxy::Limits::guest());
//! tokio::spawn(driver);
//!
//! let mut asked = opener.open()?;
//! asked.write_all(b"question").await?;
//! asked.shutdown().await?;
//!
//! let mut served = acceptor.accept().await.ok_or("the channel ended")?;
//! let mut question = String::new();
//! served.read_to_string(&mut question).await?;
//! assert_eq!(question, "question");
//! # opener.close();
//! # host.await??;
//! # Ok(()) }
//! ```
//!
//! # Parts
//!
//! [`connect`] makes three things that share one state behind a lock. The [`Opener`] and the [`Acceptor`] make
//! [`Stream`]s; the [`Driver`] is the only one that touches the transport. Streams never touch it: a read takes what
//! has arrived, a write puts bytes into the output buffer, and both wake the driver when it has something to do. The
//! driver always reads, whether or not it can write, so two ends can never wait for each other.
//!
//! # The peer is hostile
//!
//! A guest may send anything, and so may a host as seen from the guest. For every byte that arrives:
//!
//! * **No allocation by a peer's number.** A length is compared with the stream's window and [`Limits::max_frame`] when
//!   the header arrives, and is only ever counted down. Buffers grow with bytes that have really arrived.
//! * **Memory is bounded** by the number of streams times [`Limits::window`], plus at most 32 KiB per stream that holds
//!   anything and about 200 KiB per channel. Streams that the peer opens are bounded by [`Limits::accept_streams`] and
//!   [`Limits::accept_backlog`]; over the limit a stream is reset, and nothing is kept of it. A stream counts until its
//!   handle is dropped *and* the peer has been told, so opening and resetting in a loop gains nothing.
//! * **Answers are bounded.** Of several pings that wait for their answer the last one is answered. Credit, resets and
//!   ends of streams are flags of the stream, not a queue of frames. Refusals are a queue, of bounded length; a peer
//!   that overruns it loses the channel.
//! * **Closed streams.** When this side drops a stream, data may be in flight that the peer had every right to send: as
//!   much as the stream's window had left. That much is read and thrown away, in sum over all closed streams; more is a
//!   violation.
//! * **Violations** ([`Violation`]) end the channel: a go-away frame is sent if the transport takes it at once, every
//!   stream fails, and the driver's result says what the peer did.
//!
//! What is not defended against is a peer that sends valid frames forever, or reads nothing: the first costs time in
//! proportion to what it sends, the second makes writes wait. Liveness is for the users of the channel to judge, with
//! a deadline for each call.
//!
//! # Flow control and fairness
//!
//! A stream that nobody reads holds its window, 256 KiB, and then its writer waits; nobody else does. Credit is
//! granted back when half of the window has been read.
//!
//! Going out, all streams share one buffer of 32 KiB, besides the one that the transport is being given. A write goes
//! into the buffer at once if there is room and nobody waits; otherwise the stream queues, and each time the transport
//! has taken a buffer those at the head of the queue get a turn of at most 16 KiB in the next. Small writes of one
//! stream join into one frame. Two rules keep a flood from delaying the others:
//!
//! * Control frames (credit, resets, answers) go ahead of all data that is not in the buffer yet.
//! * A stream that was quiet may put up to 4 KiB into the buffer ahead of the queue, into room that
//!   is kept for this. A call among floods thus waits for two buffers at most, however many streams flood.
//!
//! # What of yamux is used
//!
//! Streams open with a window update that carries SYN. An acknowledgement is sent with the first frame that goes
//! back, never by itself. Pings are answered, and sent when the user asks for a sign of life. After a go-away of code 0 no stream can be
//! opened and the present ones go on; any other code ends the channel.

#![forbid(unsafe_code)]

mod channel;
mod chunks;
mod driver;
mod error;
mod handle;
mod inbound;
mod outbound;
mod seen;
mod slot;
#[cfg(test)]
mod tests;
mod wire;

pub use driver::Driver;
pub use error::{Error, Violation};
pub use handle::{Acceptor, Opener, Stream};

use channel::Channel;
use tokio::io::{AsyncRead, AsyncWrite};

/// Which end of the channel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host: yamux's client, its streams have odd ids.
    Host,
    /// The guest: yamux's server, its streams have even ids.
    Guest,
}

/// Bounds of one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many streams this side may have open at a time.
    pub open_streams: usize,
    /// How many streams the peer may have open at a time; further ones are reset. 0 refuses all.
    pub accept_streams: usize,
    /// How many of the peer's streams may wait for [`Acceptor::accept`]; further ones are reset.
    pub accept_backlog: usize,
    /// How much may have arrived on one stream without having been read, bytes; 256 KiB (less is taken as that: the
    /// protocol grants it to every stream) to 1 GiB.
    pub window: u32,
    /// Longest data frame the peer may send, bytes. Ours are at most 16 KiB; other implementations may fill a window.
    pub max_frame: u32,
}

impl Default for Limits {
    /// 4096 streams each way, of 256 KiB each: 1 GiB if every stream is opened and none is read.
    fn default() -> Self {
        Self {
            open_streams: 4096,
            accept_streams: 4096,
            accept_backlog: 1024,
            window: wire::INITIAL_WINDOW,
            max_frame: wire::INITIAL_WINDOW,
        }
    }
}

impl Limits {
    /// The defaults for the host, which opens every stream and accepts none.
    pub fn host() -> Self {
        Self { accept_streams: 0, ..Self::default() }
    }

    /// The defaults for the guest, which accepts streams and opens none.
    pub fn guest() -> Self {
        Self { open_streams: 0, ..Self::default() }
    }
}

/// Makes a channel of a transport that is connected already. Nothing moves until the [`Driver`] is polled.
pub fn connect<IO>(io: IO, side: Side, limits: Limits) -> (Opener, Acceptor, Driver)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let channel = Channel::new(side, limits);
    (Opener::new(channel.clone()), Acceptor::new(channel.clone()), Driver::new(channel, io))
}
