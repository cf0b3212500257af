//! What is kept of one stream.

use std::task::Waker;

use crate::chunks::Chunks;
use crate::outbound::Turn;
use crate::wire::INITIAL_WINDOW;

/// One direction of a stream, as far as its end is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// Data may still come.
    Open,
    /// It has ended, the peer has not been told.
    Ending,
    /// It has ended, and the frame that says so is out or in.
    Ended,
}

/// One stream.
///
/// A slot stays until its handle is gone **and** the peer has been told; only then does the stream stop counting
/// against the limits.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Arrived and not read.
    pub(crate) unread: Chunks,
    /// What the peer may still send, bytes.
    pub(crate) recv_window: u32,
    /// What was read since credit was last granted, bytes.
    pub(crate) credit: u32,
    /// What this side may still send, bytes.
    pub(crate) send_window: u32,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
    pub(crate) turn: Turn,
    /// What it asked for when it went into the queue of writers, bytes, at most a turn.
    pub(crate) wanted: usize,
    /// Number of the output buffer it last wrote into.
    pub(crate) last_epoch: u32,
    /// What it has written since it was last quiet, bytes.
    pub(crate) burst: u32,
    /// The peer does not know of it yet.
    pub(crate) syn: bool,
    /// The peer opened it and has had no frame on it yet. The acknowledgement travels with the first one.
    pub(crate) ack: bool,
    /// A reset is due.
    pub(crate) rst: bool,
    /// It is in the queue of streams with control frames to send.
    pub(crate) queued: bool,
    pub(crate) write: Half,
    pub(crate) read: Half,
    /// The peer has reset it.
    pub(crate) reset: bool,
    /// A handle to it exists, or it waits to be accepted.
    pub(crate) held: bool,
}

impl Slot {
    /// A new stream; `window` is what may arrive before it is read, bytes, at least [`INITIAL_WINDOW`].
    pub(crate) fn new(window: u32) -> Self {
        Self {
            unread: Chunks::default(),
            recv_window: INITIAL_WINDOW,
            credit: window - INITIAL_WINDOW,
            send_window: INITIAL_WINDOW,
            reader: None,
            writer: None,
            turn: Turn::None,
            wanted: 0,
            last_epoch: 0,
            burst: 0,
            syn: false,
            ack: false,
            rst: false,
            queued: false,
            write: Half::Open,
            read: Half::Open,
            reset: false,
            held: true,
        }
    }

    /// Whether nothing more will be said about the stream by this side.
    pub(crate) fn is_over(&self) -> bool {
        self.reset || (self.read == Half::Ended && self.write == Half::Ended)
    }
}
