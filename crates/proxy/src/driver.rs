//! The task that moves bytes between the channel's state and its transport.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Error;
use crate::channel::Channel;
use crate::inbound::Payload;
use crate::wire::HEADER;

/// Size of the input buffer, bytes: what one virtio buffer or one write of the peer's driver brings.
const INPUT: usize = 32 << 10;

/// How many buffers are moved each way before other tasks get their turn.
const ROUNDS: usize = 8;

/// Moves bytes between the streams and the transport until the channel ends; spawn it or poll it.
///
/// Its output says why the channel ended: `Ok` when either side closed it in an orderly way, otherwise what went wrong.
/// Dropping it ends the channel at once, with [`Error::Abandoned`] for everybody.
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver(Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>);

impl Driver {
    pub(crate) fn new<IO: AsyncRead + AsyncWrite + Send + 'static>(channel: Arc<Channel>, io: IO) -> Self {
        Self(Box::pin(Run {
            channel,
            io: Box::pin(io),
            input: vec![0; INPUT].into_boxed_slice(),
            filled: 0,
            payload: Payload::default(),
            output: Vec::new(),
            written: 0,
            unflushed: false,
        }))
    }
}

impl Future for Driver {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

struct Run<IO> {
    channel: Arc<Channel>,
    io: Pin<Box<IO>>,
    input: Box<[u8]>,
    /// Bytes at the start of `input` that are an incomplete header.
    filled: usize,
    payload: Payload,
    /// What the transport is being given.
    output: Vec<u8>,
    /// How much of `output` it has taken, bytes.
    written: usize,
    /// It has taken something since it was last flushed.
    unflushed: bool,
}

impl<IO: AsyncRead + AsyncWrite> Run<IO> {
    /// Writes one buffer. Ready when it is out or there was none: `true` if there may be another.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        if self.written == self.output.len() {
            self.written = 0;
            self.channel.with(|core| core.take_output(&mut self.output));
        }
        let some = !self.output.is_empty();
        while self.written < self.output.len() {
            match self.io.as_mut().poll_write(cx, &self.output[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Error::Write(Arc::new(io::ErrorKind::WriteZero.into())))),
                Poll::Ready(Ok(n)) => {
                    self.written += n;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Write(Arc::new(error)))),
                Poll::Pending => return Poll::Pending,
            }
        }
        if !some && self.unflushed {
            match self.io.as_mut().poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Write(Arc::new(error)))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(some))
    }

    /// Reads one buffer. Ready with `false` at the end of the input.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let mut buf = ReadBuf::new(&mut self.input[self.filled..]);
        match self.io.as_mut().poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Read(Arc::new(error)))),
            Poll::Pending => return Poll::Pending,
        }
        let n = buf.filled().len();
        if n == 0 {
            return Poll::Ready(Ok(false));
        }
        let end = self.filled + n;
        let data = &self.input[..end];
        let payload = &mut self.payload;
        let used = self.channel.with(|core| {
            // After the end of the channel what the peer says no longer matters, but it must be able to say it.
            if core.ended().is_some() { Ok(end) } else { core.receive(payload, data) }
        })?;
        debug_assert!(end - used < HEADER);
        self.input.copy_within(used..end, 0);
        self.filled = end - used;
        Poll::Ready(Ok(true))
    }

    /// The end of the input, as a result.
    fn on_eof(&self) -> Result<(), Error> {
        let in_frame = self.filled > 0 || self.payload.is_partial();
        let leaving = self.channel.with(|core| core.leaving || core.ended().is_some());
        if leaving && !in_frame { Ok(()) } else { Err(Error::Eof { in_frame }) }
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // Before anything is looked at, so that nothing which happens meanwhile is missed.
        let closing = self.channel.with(|core| {
            core.set_driver(cx);
            core.ended().is_some()
        });
        for _ in 0..ROUNDS {
            let output = match self.poll_output(cx) {
                Poll::Ready(Err(error)) => {
                    self.read_last_words(cx)?;
                    return Poll::Ready(Err(error));
                }
                output => output?,
            };
            if closing && output == Poll::Ready(false) {
                return self.io.as_mut().poll_shutdown(cx).map(|_| Ok(()));
            }
            let input = self.poll_input(cx)?;
            if input == Poll::Ready(false) {
                return Poll::Ready(if closing { Ok(()) } else { self.on_eof() });
            }
            if self.channel.with(|core| core.leaving && core.streams.is_empty()) {
                return Poll::Ready(Ok(()));
            }
            if input.is_pending() && output != Poll::Ready(true) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in what the peer sent before it stopped taking anything: data of streams, perhaps its leave.
    fn read_last_words(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            match self.poll_input(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Err(error @ Error::Protocol(_))) => return Err(error),
                _ => break,
            }
        }
        Ok(())
    }

    /// Tells the peer what it did, as far as the transport takes it without waiting.
    fn say_goodbye(&mut self, cx: &mut Context<'_>) {
        self.channel.with(|core| core.out.go_away(1));
        while let Poll::Ready(Ok(true)) = self.poll_output(cx) {}
        // Nothing depends on the peer's hearing it.
        let _ = self.io.as_mut().poll_shutdown(cx);
    }
}

impl<IO: AsyncRead + AsyncWrite> Future for Run<IO> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut result = std::task::ready!(self.poll_run(cx));
        if matches!(result, Err(Error::Read(_) | Error::Write(_))) && self.channel.with(|core| core.leaving) {
            // The peer took its leave and then closed the transport, as it should.
            result = Ok(());
        }
        let reason = result.as_ref().err().cloned().unwrap_or(Error::GoAway { code: 0 });
        self.channel.with(|core| core.finish(reason));
        if let Err(Error::Protocol(_)) = result {
            self.say_goodbye(cx);
        }
        Poll::Ready(result)
    }
}

impl<IO> Drop for Run<IO> {
    fn drop(&mut self) {
        // No effect if the channel has ended already.
        self.channel.with(|core| core.finish(Error::Abandoned));
    }
}
