//! Where a process's output goes.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Write},
    path::Path,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::AsyncWrite,
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use crate::{Error, Result, log};

/// How far the outputs of one process are.
pub(super) struct Progress {
    open: Cell<usize>,
    changed: Notify,
}

impl Progress {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { open: Cell::new(0), changed: Notify::new() })
    }

    /// See [`super::Streams::drained`].
    pub(super) async fn drained(&self, patience: Duration, bound: Duration) -> bool {
        let moving = async {
            while self.open.get() > 0 {
                if timeout(patience, self.changed.notified()).await.is_err() {
                    return false;
                }
            }
            true
        };
        timeout_at(Instant::now() + bound, moving).await.unwrap_or(false)
    }
}

/// One output. It never fails: what cannot be written any more is swallowed, because a process must not die of its log.
pub(super) struct Output {
    name: String,
    to: Option<Pin<Box<dyn AsyncWrite>>>,
    progress: Rc<Progress>,
}

impl Output {
    pub(super) fn new(name: &str, to: Pin<Box<dyn AsyncWrite>>, progress: Rc<Progress>) -> Self {
        progress.open.set(progress.open.get() + 1);
        Self { name: name.into(), to: Some(to), progress }
    }

    /// What a failure becomes.
    fn swallow<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        result.or_else(|error| {
            log::warn(&format!("write a container's output to {}: {error}; what follows is lost", self.name));
            self.to = None;
            Ok(instead)
        })
    }
}

impl AsyncWrite for Output {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(to) = &mut self.to else { return Poll::Ready(Ok(bytes.len())) };
        let written = ready!(to.as_mut().poll_write(cx, bytes));
        self.progress.changed.notify_waiters();
        Poll::Ready(self.swallow(written, bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(to) = &mut self.to else { return Poll::Ready(Ok(())) };
        let flushed = ready!(to.as_mut().poll_flush(cx));
        Poll::Ready(self.swallow(flushed, ()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Closing is what a reader sees as the end.
        self.to = None;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.to = None;
        self.progress.open.set(self.progress.open.get() - 1);
        self.progress.changed.notify_waiters();
    }
}

/// A file that is appended to. Files do not block in the sense of poll(2), so it is written to at once.
pub(super) struct Appended(File);

impl Appended {
    /// An existing file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::with(path, false)
    }

    /// A file that may be new.
    pub(super) fn create(path: &Path) -> Result<Self> {
        Self::with(path, true)
    }

    fn with(path: &Path, create: bool) -> Result<Self> {
        let file = File::options().append(true).create(create).open(path);
        file.map(Self).map_err(|e| Error::io(format!("open {} for the output", path.display()), e))
    }
}

impl AsyncWrite for Appended {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
