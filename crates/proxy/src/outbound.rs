//! What goes out: one buffer that streams write into by turns.
//!
//! There is no buffer per stream. A write goes straight into the channel's one buffer, header and payload, or waits for
//! its turn. When the transport has taken one buffer, the driver takes the next as a whole, so what is queued in front
//! of the transport is bounded by two buffers, whatever the number of streams.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use crate::channel::Core;
use crate::slot::Half;
use crate::wire::{HEADER, Header, Kind, flag};
use crate::{Error, Violation};

/// Size of the buffer, bytes, header included. A virtio console puts at most 32 KiB of one write(2) into one virtio
/// buffer, so this is one trip to the other side.
pub(crate) const BUFFER: usize = 32 << 10;

/// What one stream may write in one turn, bytes, header included: half a buffer, so that a buffer always has room for
/// two.
pub(crate) const TURN: usize = 16 << 10;

/// A writer with more than this many bytes waits rather than cut off a piece smaller than this.
const PIECE: usize = 2 << 10;

/// What a stream that was quiet may write without waiting for its turn, bytes: a request or a reply among floods.
const SPRINT: usize = 4 << 10;

/// Room beyond [`BUFFER`] for such writes, bytes.
pub(crate) const RESERVE: usize = 16 << 10;

/// Refusals kept for a peer that does not read them. More means that it opens streams only to be refused.
const REFUSALS: usize = 1024;

/// Where a stream stands in the queue of writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Not in it.
    None,
    /// In it.
    Waiting,
    /// It has been woken to write into the buffer of this number.
    Granted(u32),
}

/// The buffer, and who waits to write into it.
#[derive(Debug)]
pub(crate) struct Outbound {
    buffer: Vec<u8>,
    /// Number of the buffer.
    epoch: u32,
    /// The last frame of the buffer, if it is one that more data of its stream can be added to: stream and offset.
    last: Option<(u32, usize)>,
    /// Streams that wait for their turn, first come first served.
    pub(crate) waiting: VecDeque<u32>,
    /// Turns granted for this buffer and not used yet.
    granted: usize,
    /// Streams that have a control frame to send.
    pub(crate) control: VecDeque<u32>,
    /// Streams of the peer that were refused.
    refused: VecDeque<u32>,
    /// The ping that is to be sent.
    ping: Option<u32>,
    /// The newest ping that was not answered. Older ones are not: a peer learns nothing from them that this does not
    /// say.
    pong: Option<u32>,
    /// The session ends with this code.
    go_away: Option<u32>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            // Far enough from a new stream's 0 for it to count as quiet.
            epoch: 2,
            last: None,
            waiting: VecDeque::new(),
            granted: 0,
            control: VecDeque::new(),
            refused: VecDeque::new(),
            ping: None,
            pong: None,
            go_away: None,
        }
    }
}

impl Outbound {
    pub(crate) fn header(&mut self, header: Header) {
        self.last = None;
        self.buffer.extend_from_slice(&header.encode());
    }

    /// Adds data of a stream, to the last frame if that is the stream's own and has not reached a turn's length.
    fn data(&mut self, id: u32, flags: u16, data: &[u8]) {
        let offset = match self.last {
            Some((last, offset)) if last == id && flags == 0 && self.buffer.len() - offset + data.len() <= TURN => {
                self.buffer.extend_from_slice(data);
                offset
            }
            _ => {
                let offset = self.buffer.len();
                self.header(Header { kind: Kind::Data, flags, id, value: 0 });
                self.buffer.extend_from_slice(data);
                offset
            }
        };
        // Cannot be cut short: a frame is at most a turn long.
        let length = (self.buffer.len() - offset - HEADER) as u32;
        self.buffer[offset + 8..offset + HEADER].copy_from_slice(&length.to_be_bytes());
        self.last = Some((id, offset));
    }

    /// Bytes of payload that the stream can write now.
    fn room(&self, id: u32) -> usize {
        let (used, header) = match self.last {
            Some((last, offset)) if last == id && self.buffer.len() - offset < TURN => (self.buffer.len() - offset, 0),
            _ => (HEADER, HEADER),
        };
        (TURN - used).min(BUFFER.saturating_sub(self.buffer.len() + header))
    }

    pub(crate) fn ping(&mut self, cookie: u32) {
        self.ping = Some(cookie);
    }

    pub(crate) fn pong(&mut self, cookie: u32) {
        self.pong = Some(cookie);
    }

    pub(crate) fn refuse(&mut self, id: u32) -> Result<(), Violation> {
        if self.refused.len() >= REFUSALS {
            return Err(Violation::OpenFlood);
        }
        self.refused.push_back(id);
        Ok(())
    }

    /// Makes a go-away frame the last of what is sent.
    pub(crate) fn go_away(&mut self, code: u32) {
        self.go_away = Some(code);
    }
}

impl Core {
    /// Puts data of a stream into the buffer, or the stream into the queue.
    pub(crate) fn poll_write(&mut self, id: u32, cx: &Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        if let Some(error) = self.ended() {
            return Poll::Ready(Err(error));
        }
        let Some(slot) = self.streams.get(&id) else { return Poll::Ready(Err(Error::Reset { id })) };
        if slot.write != Half::Open {
            return Poll::Ready(Err(Error::ShutDown { id }));
        }
        if slot.reset {
            return Poll::Ready(Err(Error::Reset { id }));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if slot.send_window == 0 {
            self.set_writer(id, cx);
            return Poll::Pending;
        }
        // Control frames go ahead of all data that is not in the buffer yet. Among them is this stream's own opening,
        // so where they have no room data has none either.
        if self.out.buffer.len() < BUFFER + RESERVE {
            self.send_controls();
        }
        match self.claim(id, data.len()) {
            Some(n) => Poll::Ready(Ok(self.put(id, &data[..n]))),
            None => {
                self.set_writer(id, cx);
                // If the buffer is empty nobody else will see to it that turns are granted.
                self.wake_driver();
                Poll::Pending
            }
        }
    }

    /// How much of `wanted` bytes the stream may put into the buffer now. Without any it is in the queue.
    fn claim(&mut self, id: u32, wanted: usize) -> Option<usize> {
        let slot = self.streams.get_mut(&id)?;
        let out = &mut self.out;
        if slot.turn == Turn::Waiting {
            return None;
        }
        if out.epoch.wrapping_sub(slot.last_epoch) >= 2 {
            slot.burst = 0;
        }
        let granted = matches!(slot.turn, Turn::Granted(_));
        if slot.turn == Turn::Granted(out.epoch) {
            out.granted -= 1;
        }
        slot.turn = Turn::None;
        let wanted = wanted.min(slot.send_window as usize);
        let room = out.room(id);
        if (granted || (out.waiting.is_empty() && out.granted == 0)) && room >= wanted.min(PIECE) {
            return Some(wanted.min(room));
        }
        let sprints = slot.burst as usize + wanted <= SPRINT && out.buffer.len() + HEADER + wanted <= BUFFER + RESERVE;
        if sprints {
            return Some(wanted);
        }
        slot.turn = Turn::Waiting;
        slot.wanted = wanted.min(TURN - HEADER);
        if granted {
            // It came too late for the turn it had: it is next.
            out.waiting.push_front(id);
        } else {
            out.waiting.push_back(id);
        }
        None
    }

    fn put(&mut self, id: u32, data: &[u8]) -> usize {
        let Some(slot) = self.streams.get_mut(&id) else { return 0 };
        let flags = if std::mem::take(&mut slot.ack) { flag::ACK } else { 0 };
        // A claim is within the window, which is a u32.
        let n = data.len() as u32;
        slot.send_window -= n;
        slot.burst = slot.burst.saturating_add(n);
        slot.last_epoch = self.out.epoch;
        self.out.data(id, flags, data);
        self.wake_driver();
        data.len()
    }

    /// Moves every control frame that is due into the buffer.
    ///
    /// At most one frame per stream and per refusal, and each is due to something that happened since the last, so the
    /// buffer grows by 12 bytes per stream at most before the driver takes it.
    fn send_controls(&mut self) {
        if let Some(cookie) = self.out.ping.take() {
            self.out.header(Header { kind: Kind::Ping, flags: flag::SYN, id: 0, value: cookie });
        }
        if let Some(cookie) = self.out.pong.take() {
            self.out.header(Header { kind: Kind::Ping, flags: flag::ACK, id: 0, value: cookie });
        }
        while let Some(id) = self.out.refused.pop_front() {
            self.out.header(Header::window(flag::RST, id, 0));
        }
        while let Some(id) = self.out.control.pop_front() {
            self.send_control(id);
        }
        if let Some(code) = self.out.go_away.take() {
            self.out.header(Header { kind: Kind::GoAway, flags: 0, id: 0, value: code });
        }
    }

    /// Gives the driver everything there is to send, in place of `taken`, which has been sent, and lets those who
    /// wait fill the next buffer.
    pub(crate) fn take_output(&mut self, taken: &mut Vec<u8>) {
        self.send_controls();
        taken.clear();
        std::mem::swap(taken, &mut self.out.buffer);
        self.out.last = None;
        if taken.is_empty() && self.out.waiting.is_empty() {
            return;
        }
        self.out.epoch = self.out.epoch.wrapping_add(1);
        // Turns of the previous round that were not used no longer hold up others; their owners may still write when
        // they come.
        self.out.granted = 0;
        let mut left = BUFFER;
        while let Some(id) = self.out.waiting.front() {
            if let Some(slot) = self.streams.get_mut(id) {
                // All of what is granted fits, or those at the end of each round would get the crumbs.
                let Some(rest) = left.checked_sub(slot.wanted + HEADER) else { break };
                left = rest;
                slot.turn = Turn::Granted(self.out.epoch);
                self.out.granted += 1;
                self.wakes.extend(slot.writer.take());
            }
            self.out.waiting.pop_front();
        }
        if taken.is_empty() && !self.out.waiting.is_empty() {
            // If none of these writes, nothing else would bring the driver back to those who still wait.
            self.wake_driver();
        }
    }
}
