//! Copying between a caller's ends of a process's stdio and streams of the channel.

use std::{os::fd::OwnedFd, pin::Pin};

use agent_api::{Request, Stdio, StreamToken, frame};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_buf},
    net::UnixStream,
    task::JoinHandle,
};

use crate::{Error, Result, client::StdioEnds};

/// What a process reads from.
pub type Source = Pin<Box<dyn AsyncRead>>;
/// What a process writes to.
pub type Sink = Pin<Box<dyn AsyncWrite>>;

/// The host's ends of a process's stdio; what is absent is `/dev/null` for the process.
#[derive(Default)]
pub struct Io {
    /// Standard input, or the terminal's. Its end is the end of the process's input.
    pub stdin: Option<Source>,
    /// Standard output, or the terminal's.
    pub stdout: Option<Sink>,
    /// Standard error; never with a terminal.
    pub stderr: Option<Sink>,
}

impl Io {
    /// Those of a caller's sockets.
    pub(crate) fn of_sockets(ends: StdioEnds) -> Result<Self> {
        let socket = |end: OwnedFd| {
            let socket = std::os::unix::net::UnixStream::from(end);
            let socket = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
            socket.map_err(|e| Error::io("use a caller's stdio socket", e))
        };
        let sink = |end: Option<OwnedFd>| -> Result<Option<Sink>> {
            end.map(|end| socket(end).map(|socket| Box::pin(socket) as Sink)).transpose()
        };
        let stdin = ends.stdin.map(|end| socket(end).map(|socket| Box::pin(socket) as Source)).transpose()?;
        Ok(Self { stdin, stdout: sink(ends.stdout)?, stderr: sink(ends.stderr)? })
    }
}

/// The streams of one process.
pub(crate) struct Connected {
    /// What the agent is told.
    pub(crate) stdio: Stdio,
    /// What copies the input; to be stopped when the process has ended, because the caller may keep its end open.
    pub(crate) input: Option<JoinHandle<()>>,
}

/// Bytes moved at once: as much as one turn of the channel takes several times over, so that it never waits for us.
const BUFFER: usize = 64 << 10;

/// Connects a process's stdio: opens its streams and starts one copying task each.
pub(crate) fn connect(opener: &proxy::Opener, io: Io, mut token: impl FnMut() -> StreamToken) -> Result<Connected> {
    let mut input = None;
    let mut open = || -> Result<_> {
        let stream = opener.open();
        Ok((stream.map_err(|e| Error::io("open a stdio stream into the guest", std::io::Error::other(e)))?, token()))
    };
    let mut stdio = Stdio::default();
    if let Some(source) = io.stdin {
        let (stream, token) = open()?;
        input = Some(tokio::task::spawn_local(carry_in(source, stream, token)));
        stdio.stdin = Some(token);
    }
    for (sink, place) in [(io.stdout, &mut stdio.stdout), (io.stderr, &mut stdio.stderr)] {
        let Some(sink) = sink else { continue };
        let (stream, token) = open()?;
        tokio::task::spawn_local(carry_out(sink, stream, token));
        *place = Some(token);
    }
    Ok(Connected { stdio, input })
}

/// A process's input. The end of either side, for whatever reason, closes both, which is all the other end needs to know.
async fn carry_in(from: Source, mut stream: proxy::Stream, token: StreamToken) {
    if frame::write(&mut stream, &Request::Attach { token }).await.is_err() {
        return;
    }
    let (from_guest, to_guest) = tokio::io::split(stream);
    copy(from, to_guest).await;
    // Dropping the reading half at once would reset the stream and lose what the process has not read yet.
    drain(from_guest).await;
}

/// One of a process's outputs, likewise.
async fn carry_out(to: Sink, mut stream: proxy::Stream, token: StreamToken) {
    if frame::write(&mut stream, &Request::Attach { token }).await.is_err() {
        return;
    }
    copy(stream, to).await;
}

async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let copied = copy_buf(&mut BufReader::with_capacity(BUFFER, from), &mut to).await;
    if copied.is_ok() {
        let _ = to.shutdown().await;
    }
}

async fn drain(from: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut { from }, &mut tokio::io::sink()).await;
}
