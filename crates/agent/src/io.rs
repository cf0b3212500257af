//! Moving bytes between the processes' descriptors and the channel's streams.

use std::future::{Future, pending};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};

/// How much is moved at a time, bytes.
const CHUNK: usize = 64 << 10;
/// Size of a process's pipes, bytes. Larger than the usual 64 KiB, so that process and agent take turns less often.
const PIPE_SIZE: usize = 256 << 10;

/// A stream of bytes, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Any stream.
pub type BoxStream = Box<dyn Stream>;

/// The streams of one process's stdio.
#[derive(Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: Option<BoxStream>,
    /// Standard output.
    pub stdout: Option<BoxStream>,
    /// Standard error.
    pub stderr: Option<BoxStream>,
}

/// Moves bytes until an end is reached.
pub type Pump = Pin<Box<dyn Future<Output = ()>>>;

/// A descriptor that can be waited for.
pub struct Pollable(AsyncFd<OwnedFd>);

impl Pollable {
    /// Makes a descriptor non-blocking and registers it.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(crate::sys::register(fd, interest)?))
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Reads what is there, waiting for the first byte.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
    }

    /// Writes everything.
    ///
    /// # Errors
    /// Those of write(2).
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits until there may be something to read; something may also be an end or an error.
    async fn readable(&self) {
        if let Ok(mut guard) = self.0.readable().await {
            guard.retain_ready();
        }
    }

    /// Waits until an error is signalled: for the writing end of a pipe, that the last reader has gone.
    async fn broken(&self) {
        if self.0.ready(Interest::ERROR).await.is_err() {
            pending::<()>().await;
        }
    }
}

/// What a process that is about to be forked gets as its stdio, and what moves the bytes.
pub struct Wiring {
    /// The process's descriptors 0, 1 and 2.
    pub fds: [OwnedFd; 3],
    /// Which of them are the guest's `/dev/null`.
    pub is_null: [bool; 3],
    /// To be run once the process exists and the agent has closed its copies of `fds`.
    pub pumps: Vec<Pump>,
}

/// Makes pipes for the streams there are, and `/dev/null` for the others.
///
/// # Errors
/// Those of pipe(2) and open(2).
pub fn wire(streams: Streams) -> io::Result<Wiring> {
    let is_null = [streams.stdin.is_none(), streams.stdout.is_none(), streams.stderr.is_none()];
    let mut pumps: Vec<Pump> = Vec::new();
    let stdin = match streams.stdin {
        Some(stream) => {
            let (read, write) = pipe()?;
            pumps.push(Box::pin(feed(stream, Pollable::new(write, Interest::WRITABLE | Interest::ERROR)?)));
            read
        }
        None => null()?,
    };
    let mut output = |stream: Option<BoxStream>| -> io::Result<OwnedFd> {
        let Some(stream) = stream else { return null() };
        let (read, write) = pipe()?;
        pumps.push(Box::pin(drain(Pollable::new(read, Interest::READABLE)?, stream)));
        Ok(write)
    };
    let fds = [stdin, output(streams.stdout)?, output(streams.stderr)?];
    Ok(Wiring { fds, is_null, pumps })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = pipe_with(PipeFlags::CLOEXEC)?;
    // Refused once the pipes of all processes are over a limit; a smaller one works as well.
    let _ = fcntl_setpipe_size(&ends.0, PIPE_SIZE);
    Ok(ends)
}

/// Opens `/dev/null`, both ways.
///
/// # Errors
/// Those of open(2).
pub fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?)
}

/// Moves a stream into a process's input. The end of the stream closes the pipe; when the last reader has gone, the stream
/// is dropped, so that the host learns that nobody reads.
pub async fn feed(mut from: BoxStream, to: Pollable) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = to.broken() => return,
        };
        match read {
            Ok(0) => break,
            Ok(length) => {
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    drop(to);
    finish(from).await;
}

/// Moves a process's output into a stream. When the last writer has gone the stream is closed; when the host has dropped
/// the stream, the pipe is, so that the process gets SIGPIPE as from any reader that goes away.
pub async fn drain(from: Pollable, mut to: BoxStream) {
    copy(&from, &mut to).await;
    drop(from);
    finish(to).await;
}

async fn copy(from: &Pollable, to: &mut BoxStream) {
    let mut buffer = vec![0; CHUNK];
    let mut watching = true;
    loop {
        // The host says nothing on this stream, but it may close it.
        while watching {
            let mut ignored = [0; 64];
            tokio::select! {
                biased;
                () = from.readable() => break,
                said = to.read(&mut ignored) => match said {
                    Ok(0) => watching = false,
                    Ok(_) => {}
                    Err(_) => return,
                },
            }
        }
        match from.read(&mut buffer).await {
            // A terminal whose last user has gone gives EIO.
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Closes our half and waits for the host to close its own: a stream that is dropped before is reset, and the host could lose
/// what was sent last.
async fn finish(mut stream: BoxStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut ignored = [0; 512];
    while matches!(stream.read(&mut ignored).await, Ok(1..)) {}
}

/// Moves bytes both ways between a terminal and its streams until its last user has gone, or the host has dropped the
/// output stream, which hangs the terminal up.
pub async fn terminal(master: std::rc::Rc<Pollable>, stdin: Option<BoxStream>, stdout: Option<BoxStream>) {
    let input = async {
        if let Some(mut stream) = stdin {
            let mut buffer = vec![0; 4096];
            // The end of the stream is not the end of the terminal's input: there is no such thing.
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                if master.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
            // The stream is kept: dropping it would look to the host as if nobody read.
            pending::<()>().await;
        }
        pending::<()>().await;
    };
    let output = async {
        match stdout {
            Some(mut stream) => {
                copy(&master, &mut stream).await;
                Some(stream)
            }
            None => {
                let mut ignored = vec![0; 4096];
                while matches!(master.read(&mut ignored).await, Ok(1..)) {}
                None
            }
        }
    };
    let stream = tokio::select! {
        stream = output => stream,
        () = input => None,
    };
    drop(master);
    if let Some(stream) = stream {
        finish(stream).await;
    }
}

/// The port that the channel runs over.
pub struct Port(AsyncFd<OwnedFd>);

impl Port {
    /// Registers an open, non-blocking port.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(crate::sys::register(fd, Interest::READABLE | Interest::WRITABLE)?))
    }
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::read(fd, buffer.initialize_unfilled())?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = guard.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
