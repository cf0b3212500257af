//! The state that the driver and all handles of one channel share, and the life of a stream in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;

use crate::chunks::Chunks;
use crate::outbound::{Outbound, Turn};
use crate::seen::Seen;
use crate::slot::{Half, Slot};
use crate::wire::{Header, INITIAL_WINDOW, flag};
use crate::{Error, Limits, Side};

/// A [`Core`] behind its lock.
///
/// The lock is held for copies and bookkeeping only, never across input or output, and no foreign code runs under it:
/// wakers are woken and dropped after it is released.
#[derive(Debug)]
pub(crate) struct Channel(Mutex<Core>);

impl Channel {
    pub(crate) fn new(side: Side, limits: Limits) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Core::new(side, limits))))
    }

    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut core);
        let wakes = std::mem::take(&mut core.wakes);
        let stale = std::mem::take(&mut core.stale);
        drop(core);
        drop(stale);
        wakes.into_iter().for_each(Waker::wake);
        result
    }
}

/// Everything about one channel but its transport.
#[derive(Debug)]
pub(crate) struct Core {
    side: Side,
    pub(crate) limits: Limits,
    pub(crate) streams: BTreeMap<u32, Slot>,
    /// How many of `streams` this side opened.
    opened: usize,
    /// The next id of this side; `None` when all have been used.
    next_id: Option<u32>,
    /// Ids the peer has used.
    pub(crate) seen: Seen,
    /// What the peer may still send on streams that have no slot any more, bytes.
    pub(crate) tolerated: u64,
    pub(crate) out: Outbound,
    /// The ping that the peer has answered last.
    pub(crate) answered: Option<u32>,
    /// Streams that wait to be accepted.
    backlog: VecDeque<u32>,
    acceptor: Option<Waker>,
    accepting: bool,
    driver: Option<Waker>,
    /// To be woken when the lock is released.
    pub(crate) wakes: Vec<Waker>,
    /// To be dropped when the lock is released.
    stale: Vec<Waker>,
    /// The peer has said that it wants no new streams.
    pub(crate) leaving: bool,
    /// Why the channel ended.
    end: Option<Arc<Error>>,
}

impl Core {
    fn new(side: Side, mut limits: Limits) -> Self {
        // Below the initial window the protocol cannot go; above, two windows must add up within a u32.
        limits.window = limits.window.clamp(INITIAL_WINDOW, 1 << 30);
        let accepting = limits.accept_streams > 0;
        Self {
            side,
            limits,
            streams: BTreeMap::new(),
            opened: 0,
            next_id: Some(match side {
                Side::Host => 1,
                Side::Guest => 2,
            }),
            seen: Seen::default(),
            tolerated: 0,
            out: Outbound::default(),
            answered: None,
            backlog: VecDeque::new(),
            acceptor: None,
            accepting,
            driver: None,
            wakes: Vec::new(),
            stale: Vec::new(),
            leaving: false,
            end: None,
        }
    }

    /// Whether ids like this one are this side's to give.
    pub(crate) fn is_own(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.side == Side::Host)
    }

    /// Whether a stream of this id exists or has existed.
    pub(crate) fn was_opened(&self, id: u32) -> bool {
        if self.is_own(id) { self.next_id.is_none_or(|next| id < next) } else { self.seen.contains(id) }
    }

    pub(crate) fn wake_driver(&mut self) {
        self.wakes.extend(self.driver.take());
    }

    pub(crate) fn set_driver(&mut self, cx: &Context<'_>) {
        park(&mut self.driver, cx, &mut self.stale);
    }

    pub(crate) fn set_reader(&mut self, id: u32, cx: &Context<'_>) {
        if let Some(slot) = self.streams.get_mut(&id) {
            park(&mut slot.reader, cx, &mut self.stale);
        }
    }

    pub(crate) fn set_writer(&mut self, id: u32, cx: &Context<'_>) {
        if let Some(slot) = self.streams.get_mut(&id) {
            park(&mut slot.writer, cx, &mut self.stale);
        }
    }

    /// The error of a channel that has ended.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.end.clone().map(|reason| Error::Closed { reason })
    }

    /// Ends the channel and tells everybody why. Only the first reason counts.
    pub(crate) fn finish(&mut self, reason: Error) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(Arc::new(reason));
        for slot in self.streams.values_mut() {
            self.wakes.extend(slot.reader.take());
            self.wakes.extend(slot.writer.take());
        }
        while let Some(id) = self.backlog.pop_front() {
            self.remove(id);
        }
        self.wakes.extend(self.acceptor.take());
        self.wake_driver();
    }

    pub(crate) fn open(&mut self) -> Result<u32, Error> {
        if let Some(error) = self.ended() {
            return Err(error);
        }
        if self.leaving {
            return Err(Error::Closed { reason: Arc::new(Error::GoAway { code: 0 }) });
        }
        if self.opened >= self.limits.open_streams {
            return Err(Error::TooManyStreams { limit: self.limits.open_streams });
        }
        let id = self.next_id.ok_or(Error::NoMoreIds)?;
        self.next_id = id.checked_add(2);
        let mut slot = Slot::new(self.limits.window);
        slot.syn = true;
        self.opened += 1;
        self.streams.insert(id, slot);
        self.queue_control(id);
        Ok(id)
    }

    /// Makes room for a stream that the peer opens. Returns false when there is none.
    pub(crate) fn admit(&mut self, id: u32) -> bool {
        let accepted = self.streams.len() - self.opened;
        if !self.accepting
            || self.end.is_some()
            || accepted >= self.limits.accept_streams
            || self.backlog.len() >= self.limits.accept_backlog
        {
            return false;
        }
        let mut slot = Slot::new(self.limits.window);
        slot.ack = true;
        let grants = slot.credit > 0;
        self.streams.insert(id, slot);
        self.backlog.push_back(id);
        self.wakes.extend(self.acceptor.take());
        if grants {
            self.queue_control(id);
        }
        true
    }

    pub(crate) fn poll_accept(&mut self, cx: &Context<'_>) -> Poll<Option<u32>> {
        if let Some(id) = self.backlog.pop_front() {
            return Poll::Ready(Some(id));
        }
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        park(&mut self.acceptor, cx, &mut self.stale);
        Poll::Pending
    }

    pub(crate) fn stop_accepting(&mut self) {
        self.accepting = false;
        self.stale.extend(self.acceptor.take());
        while let Some(id) = self.backlog.pop_front() {
            self.release(id);
        }
    }

    pub(crate) fn poll_read(&mut self, id: u32, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        let Some(slot) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(self.ended().unwrap_or(Error::Reset { id })));
        };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if slot.unread.is_empty() {
            if slot.read == Half::Ended {
                return Poll::Ready(Ok(()));
            }
            if slot.reset {
                return Poll::Ready(Err(Error::Reset { id }));
            }
            if let Some(error) = self.ended() {
                return Poll::Ready(Err(error));
            }
            self.set_reader(id, cx);
            return Poll::Pending;
        }
        // Cannot be over u32::MAX: what is unread is within the window.
        slot.credit += u32::try_from(slot.unread.pop(buf)).unwrap_or(u32::MAX);
        // Half a window at a time: the sender never runs dry while the reader keeps up, and grants stay rare.
        if slot.credit >= self.limits.window / 2 && slot.read == Half::Open && !slot.reset {
            self.queue_control(id);
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn shut_down(&mut self, id: u32) -> Result<(), Error> {
        let end = self.ended();
        let Some(slot) = self.streams.get_mut(&id) else {
            return Err(end.unwrap_or(Error::Reset { id }));
        };
        if slot.write != Half::Open {
            return Ok(());
        }
        if let Some(error) = end {
            return Err(error);
        }
        if slot.reset {
            return Err(Error::Reset { id });
        }
        slot.write = Half::Ending;
        self.queue_control(id);
        Ok(())
    }

    /// The handle of a stream is gone: frees what it held and resets it unless both halves are closed.
    pub(crate) fn release(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.held = false;
        slot.unread = Chunks::default();
        self.stale.extend(slot.reader.take());
        self.stale.extend(slot.writer.take());
        if slot.turn == Turn::Waiting {
            slot.turn = Turn::None;
            self.out.waiting.retain(|&other| other != id);
        }
        if slot.syn || slot.is_over() || self.end.is_some() {
            if slot.queued {
                self.out.control.retain(|&other| other != id);
            }
            self.remove(id);
        } else if slot.read != Half::Ended || slot.write == Half::Open {
            slot.rst = true;
            self.queue_control(id);
        }
    }

    /// Forgets a stream, but not what its peer may have in flight.
    fn remove(&mut self, id: u32) {
        let Some(mut slot) = self.streams.remove(&id) else { return };
        if slot.read == Half::Open && !slot.reset {
            self.tolerated += u64::from(slot.recv_window);
        }
        self.stale.extend(slot.reader.take());
        self.stale.extend(slot.writer.take());
        if self.is_own(id) {
            self.opened -= 1;
        }
        if self.leaving && self.streams.is_empty() {
            self.wake_driver();
        }
    }

    /// The peer has reset a stream.
    pub(crate) fn on_reset(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.reset = true;
        self.wakes.extend(slot.reader.take());
        self.wakes.extend(slot.writer.take());
        if !slot.held {
            self.remove(id);
        }
    }

    /// The peer has closed its half of a stream.
    pub(crate) fn on_fin(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.read = Half::Ended;
        self.wakes.extend(slot.reader.take());
    }

    /// Notes that a stream has a control frame to send.
    pub(crate) fn queue_control(&mut self, id: u32) {
        if let Some(slot) = self.streams.get_mut(&id) {
            if !slot.queued {
                slot.queued = true;
                self.out.control.push_back(id);
            }
            self.wake_driver();
        }
    }

    /// Writes the control frame of one stream, all that is to be said in one, and forgets the stream if that was the
    /// end.
    pub(crate) fn send_control(&mut self, id: u32) {
        let Some(slot) = self.streams.get_mut(&id) else { return };
        slot.queued = false;
        let mut flags = 0;
        let mut credit = 0;
        if !slot.reset {
            if slot.read == Half::Open && !slot.rst {
                credit = std::mem::take(&mut slot.credit);
                slot.recv_window += credit;
            }
            if std::mem::take(&mut slot.syn) {
                flags |= flag::SYN;
            }
            if slot.write == Half::Ending {
                flags |= flag::FIN;
                slot.write = Half::Ended;
            }
        }
        let finished = !slot.held && (slot.rst || slot.is_over());
        let mut ack = if slot.ack { flag::ACK } else { 0 };
        if flags != 0 || credit != 0 {
            self.out.header(Header::window(flags | std::mem::take(&mut ack), id, credit));
            slot.ack = false;
        }
        if slot.rst && !slot.reset {
            // Apart from an end of data that it follows: this one must not undo that one.
            self.out.header(Header::window(flag::RST | ack, id, 0));
        }
        if finished {
            self.remove(id);
        }
    }
}

/// Leaves the caller's waker where it will be found.
fn park(place: &mut Option<Waker>, cx: &Context<'_>, stale: &mut Vec<Waker>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        stale.extend(place.replace(cx.waker().clone()));
    }
}
