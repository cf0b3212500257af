//! Copying between a caller's socket and a stream of the channel.

use std::os::fd::OwnedFd;

use agent_api::{Request, Stdio, StreamToken, frame};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_buf},
    net::UnixStream,
};

use crate::{Error, Result, client::StdioEnds};

/// Bytes moved at once: as much as one turn of the channel takes several times over, so that it never waits for us.
const BUFFER: usize = 64 << 10;

/// Connects a process's stdio: opens its streams and starts one copying task each. Returns what the agent is told.
pub(super) fn connect(
    opener: &proxy::Opener,
    ends: StdioEnds,
    mut token: impl FnMut() -> StreamToken,
) -> Result<Stdio> {
    let mut open = |end: Option<OwnedFd>, incoming: bool| -> Result<Option<StreamToken>> {
        let Some(end) = end else { return Ok(None) };
        let socket = std::os::unix::net::UnixStream::from(end);
        let socket = socket
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(socket))
            .map_err(|e| Error::io("use a caller's stdio socket", e))?;
        let stream =
            opener.open().map_err(|e| Error::io("open a stdio stream into the guest", std::io::Error::other(e)))?;
        let token = token();
        tokio::task::spawn_local(carry(socket, stream, token, incoming));
        Ok(Some(token))
    };
    Ok(Stdio { stdin: open(ends.stdin, true)?, stdout: open(ends.stdout, false)?, stderr: open(ends.stderr, false)? })
}

/// One stream's life. Its end, for whatever reason, closes both sides, which is all the other ends need to know.
async fn carry(socket: UnixStream, mut stream: proxy::Stream, token: StreamToken, into_guest: bool) {
    if frame::write(&mut stream, &Request::Attach { token }).await.is_err() {
        return;
    }
    let (from_caller, to_caller) = socket.into_split();
    let (from_guest, to_guest) = tokio::io::split(stream);
    if into_guest {
        copy(from_caller, to_guest).await;
        // Dropping the reading half at once would reset the stream and lose what the process has not read yet.
        drain(from_guest).await;
    } else {
        copy(from_guest, to_caller).await;
    }
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
