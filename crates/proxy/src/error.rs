//! Why a stream or the whole channel ended.

use std::io;
use std::sync::Arc;

/// Why something on the channel failed, or why the channel ended.
///
/// Cheap to clone: the end of the channel is told to every stream of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The channel ended; every stream of it fails with this once what had arrived has been read.
    #[error("the channel is closed")]
    Closed {
        /// What ended it.
        #[source]
        reason: Arc<Error>,
    },
    /// This side closed the channel with [`crate::Opener::close`].
    #[error("this side closed the channel")]
    ClosedHere,
    /// The task that drives the channel was dropped before the channel ended.
    #[error("the task that drives the channel was stopped")]
    Abandoned,
    /// The peer ended the session. The codes are yamux's: 0 is an orderly end, 1 means that this side broke the
    /// protocol, 2 an internal error of the peer.
    #[error("the peer ended the session with code {code}")]
    GoAway {
        /// The code it gave.
        code: u32,
    },
    /// The peer closed the transport without ending the session first: it has most likely died.
    #[error("the peer closed the transport {}", if *.in_frame { "in the middle of a frame" } else { "without ending the session" })]
    Eof {
        /// Whether part of a frame is missing.
        in_frame: bool,
    },
    /// The transport could not be read.
    #[error("cannot read from the transport of the channel")]
    Read(#[source] Arc<io::Error>),
    /// The transport could not be written.
    #[error("cannot write to the transport of the channel")]
    Write(#[source] Arc<io::Error>),
    /// The peer did what the protocol forbids; the channel was closed for it.
    #[error("the peer broke the protocol of the channel")]
    Protocol(#[from] Violation),
    /// As many streams as [`crate::Limits::open_streams`] allows are open already.
    #[error("cannot open a stream: {limit} are open, which is the limit; close one first")]
    TooManyStreams {
        /// The limit.
        limit: usize,
    },
    /// All 2^31 stream ids of this side have been used.
    #[error("cannot open a stream: the channel has used all its stream ids and must be made anew")]
    NoMoreIds,
    /// The peer reset the stream.
    #[error("the peer reset stream {id}")]
    Reset {
        /// The stream.
        id: u32,
    },
    /// This side had closed its half of the stream already.
    #[error("cannot write to stream {id}: this side has shut it down")]
    ShutDown {
        /// The stream.
        id: u32,
    },
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Reset { .. } => io::ErrorKind::ConnectionReset,
            Error::ShutDown { .. } => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::ConnectionAborted,
        };
        io::Error::new(kind, error)
    }
}

/// What a peer did that the protocol forbids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A version other than 0.
    #[error("a frame has version {0}, only 0 is known")]
    Version(u8),
    /// A frame type over 3.
    #[error("a frame has the unknown type {0}")]
    Type(u8),
    /// Flags that do not exist.
    #[error("a frame has the unknown flags {0:#06x}")]
    Flags(u16),
    /// A stream id where none belongs, or none where one does.
    #[error("a frame has stream id {0}, which its type does not allow")]
    Id(u32),
    /// It opened a stream under an id that is this side's to give.
    #[error("it opened stream {0}, an id that belongs to this side")]
    ForeignId(u32),
    /// It opened a stream under an id it had used before.
    #[error("it opened stream {0} a second time")]
    ReusedId(u32),
    /// It spoke of a stream that nobody opened.
    #[error("it sent a frame for stream {0}, which was never opened")]
    NeverOpened(u32),
    /// A data frame longer than [`crate::Limits::max_frame`].
    #[error("it announced a frame of {announced} bytes on stream {id}, {limit} is the limit")]
    FrameTooLong {
        /// The stream.
        id: u32,
        /// Announced length, bytes.
        announced: u32,
        /// The limit, bytes.
        limit: u32,
    },
    /// More data than it had credit for.
    #[error("it announced {announced} bytes on stream {id}, whose window had {window} left")]
    WindowOverrun {
        /// The stream.
        id: u32,
        /// Announced length, bytes.
        announced: u32,
        /// Credit it had left, bytes.
        window: u32,
    },
    /// More data on closed streams than their windows had left when they closed.
    #[error("it keeps sending to closed streams, the last of them {0}")]
    ClosedOverrun(u32),
    /// Data after it had closed its half of the stream.
    #[error("it sent data on stream {0} after it had closed its half")]
    DataAfterFin(u32),
    /// Credits that add up to more than 2^32 - 1 bytes.
    #[error("it granted stream {0} more credit than a window can hold")]
    CreditOverflow(u32),
    /// Refused streams faster than it reads the refusals.
    #[error("it opens streams faster than it reads their refusals")]
    OpenFlood,
}
