//! Carrying bytes between real descriptors and the sandbox's daemon, by one blocking thread per stream.
//!
//! Descriptors that were inherited are shared with the caller, so they are used as they are: nobody sets `O_NONBLOCK` on
//! them, and where the caller has, a thread waits until they are ready.

use std::{
    fs::File,
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use crate::{Error, Result};

/// Bytes carried at once.
const BUFFER: usize = 64 * 1024;
/// Stack of a pumping thread, bytes: it calls nothing but read, write and poll.
const STACK: usize = 64 * 1024;

/// A real descriptor.
#[derive(Debug)]
pub(crate) enum Real {
    /// Standard error, which this process goes on using.
    Stderr,
    /// Standard error, in whose place `/dev/null` is left when the thread ends: a process that has closed its own keeps nobody waiting.
    StderrUntilItsEnd,
    /// One that the thread closes when it ends, so that whoever is at its other end sees that.
    Own(Arc<OwnedFd>),
}

impl Real {
    /// Standard input, in whose place `/dev/null` is left.
    ///
    /// # Errors
    /// No more descriptors.
    pub(crate) fn stdin() -> Result<Self> {
        Self::taken(rustix::stdio::stdin(), |null| rustix::stdio::dup2_stdin(null))
    }

    /// Standard output, in whose place `/dev/null` is left.
    ///
    /// # Errors
    /// No more descriptors.
    pub(crate) fn stdout() -> Result<Self> {
        Self::taken(rustix::stdio::stdout(), |null| rustix::stdio::dup2_stdout(null))
    }

    fn taken(standard: BorrowedFd<'_>, replace: impl Fn(&OwnedFd) -> rustix::io::Result<()>) -> Result<Self> {
        let taken = rustix::io::fcntl_dupfd_cloexec(standard, 3).map_err(|e| Error::io("take over stdio", e))?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|e| Error::io("open /dev/null", e))?;
        replace(&null.into()).map_err(|e| Error::io("put /dev/null in place of stdio", e))?;
        Ok(Self::Own(Arc::new(taken)))
    }
}

impl AsFd for Real {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stderr | Self::StderrUntilItsEnd => rustix::stdio::stderr(),
            Self::Own(descriptor) => descriptor.as_fd(),
        }
    }
}

/// What the threads tell whoever waits for the last output.
#[derive(Debug, Default)]
struct Progress {
    /// Output streams that have not ended.
    open: usize,
    /// Those of them that are handing bytes to their reader.
    writing: usize,
    /// Grows with every piece.
    pieces: u64,
}

/// The threads of one process's stdio.
#[derive(Debug, Default)]
pub(crate) struct Pumps {
    shared: Arc<(Mutex<Progress>, Condvar)>,
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pumps {
    /// Carries what `from` yields to the process. Its end closes the process's input, unless that is a terminal, which has
    /// no half that could be closed.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn input(&self, from: Real, socket: UnixStream, terminal: bool) -> Result<()> {
        let buffer = vec![0; BUFFER];
        spawn("stdin", move || {
            let end = copy(&from, &socket, buffer, |_| ());
            match end {
                // Kept open, and with it the terminal in the guest, until this process ends.
                End::Read if terminal => std::mem::forget(socket),
                End::Read => drop(socket.shutdown(Shutdown::Write)),
                End::Write => {}
            }
        })
    }

    /// Carries what the process writes to `to`. If nobody reads there any more, the process is told by its own stream.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn output(&self, socket: UnixStream, to: Real) -> Result<()> {
        lock(&self.shared.0).open += 1;
        let shared = self.shared.clone();
        let buffer = vec![0; BUFFER];
        let spawned = spawn("output", move || {
            let note = |writing: bool| {
                let mut progress = lock(&shared.0);
                if writing {
                    progress.writing += 1;
                    progress.pieces += 1;
                } else {
                    progress.writing -= 1;
                    shared.1.notify_all();
                }
            };
            copy(&socket, &to, buffer, note);
            if matches!(to, Real::StderrUntilItsEnd)
                && let Ok(null) = File::options().write(true).open("/dev/null")
            {
                // It can fail for no reason but that standard error is closed already.
                let _closed = rustix::stdio::dup2_stderr(&null);
            }
            drop((socket, to));
            lock(&shared.0).open -= 1;
            shared.1.notify_all();
        });
        if spawned.is_err() {
            lock(&self.shared.0).open -= 1;
        }
        spawned
    }

    /// Waits, after the process's end, until all of its output has been handed on: to the end of the streams, or, where
    /// something it left behind holds them open, until nothing has come for `grace`. A reader that is slow to take what
    /// is there is waited for without end, as the process itself would have waited.
    pub(crate) fn drain(&self, grace: Duration) {
        let (progress, changed) = &*self.shared;
        let mut now = lock(progress);
        let mut pieces = now.pieces;
        let mut quiet_since = Instant::now();
        while now.open > 0 {
            if now.writing > 0 || now.pieces != pieces {
                pieces = now.pieces;
                quiet_since = Instant::now();
            }
            let Some(left) = grace.checked_sub(quiet_since.elapsed()).filter(|left| !left.is_zero()) else { return };
            now = changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK).spawn(work);
    thread.map(drop).map_err(|e| Error::io(format!("start a thread for {name}"), e))
}

/// Which side ended a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Read,
    Write,
}

/// Copies until one side ends. `note` is told before and after each piece is written.
fn copy(from: &impl AsFd, to: &impl AsFd, mut buffer: Vec<u8>, note: impl Fn(bool)) -> End {
    loop {
        let count = match rustix::io::read(from, &mut buffer) {
            Ok(0) => return End::Read,
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) if ready(from, PollFlags::IN) => continue,
            // A terminal whose other end is gone answers EIO; for whoever reads, all of these are the end.
            Err(_) => return End::Read,
        };
        note(true);
        let written = write_all(to, &buffer[..count]);
        note(false);
        if written.is_err() {
            return End::Write;
        }
    }
}

fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if ready(to, PollFlags::OUT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits, without a deadline, as a blocking read or write would; false if that is impossible.
fn ready(descriptor: &impl AsFd, what: PollFlags) -> bool {
    loop {
        match poll(&mut [PollFd::new(descriptor, what)], None) {
            Ok(_) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write, pipe};

    const LONG: Duration = Duration::from_secs(20);

    fn own(descriptor: impl Into<OwnedFd>) -> Real {
        Real::Own(Arc::new(descriptor.into()))
    }

    #[test]
    fn output_arrives_whole_and_drain_waits_for_its_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let pumps = Pumps::default();
        pumps.output(ours, own(writer)).unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        thread::spawn(move || theirs.write_all(&sent).unwrap());
        let received = thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        pumps.drain(LONG);
        drop(pumps);
        assert!(received.join().unwrap() == expected);
    }

    #[test]
    fn drain_gives_up_on_a_stream_that_somebody_holds_open() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let pumps = Pumps::default();
        pumps.output(ours, own(writer)).unwrap();
        theirs.write_all(b"last words").unwrap();
        let begun = Instant::now();
        pumps.drain(Duration::from_millis(50));
        assert!(begun.elapsed() >= Duration::from_millis(50) && begun.elapsed() < LONG);
        let mut bytes = [0; 10];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"last words");
    }

    #[test]
    fn drain_waits_for_a_slow_reader() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let pumps = Pumps::default();
        pumps.output(ours, own(writer)).unwrap();
        // More than a pipe holds, so that the pump blocks in its write.
        thread::spawn(move || theirs.write_all(&vec![7; 300_000]).unwrap());
        let slow = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes.len()
        });
        // Until the pump is really writing, quiet means nothing has been sent yet.
        while lock(&pumps.shared.0).writing == 0 {
            thread::yield_now();
        }
        pumps.drain(Duration::from_millis(20));
        assert_eq!(lock(&pumps.shared.0).open, 0, "drain returned while the reader was still reading");
        assert_eq!(slow.join().unwrap(), 300_000);
    }

    #[test]
    fn a_reader_that_goes_away_is_told_to_the_process() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let pumps = Pumps::default();
        pumps.output(ours, own(writer)).unwrap();
        let error = loop {
            if let Err(error) = theirs.write_all(&[0; 1000]) {
                break error;
            }
        };
        // A reset where something had been sent that nobody read.
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
        pumps.drain(LONG);
    }

    #[test]
    fn the_end_of_input_closes_the_process_input_but_not_a_terminal() {
        for terminal in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (reader, mut writer) = pipe().unwrap();
            let pumps = Pumps::default();
            pumps.input(own(reader), ours, terminal).unwrap();
            writer.write_all(b"typed").unwrap();
            drop(writer);
            let mut bytes = [0; 5];
            theirs.read_exact(&mut bytes).unwrap();
            theirs.set_read_timeout(Some(Duration::from_millis(if terminal { 100 } else { 20_000 }))).unwrap();
            match theirs.read(&mut bytes) {
                Ok(count) => assert!(count == 0 && !terminal),
                Err(error) => assert!(terminal, "{error}"),
            }
        }
    }

    #[test]
    fn a_descriptor_that_the_caller_made_nonblocking_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let pumps = Pumps::default();
        pumps.input(own(reader), ours, false).unwrap();
        thread::sleep(Duration::from_millis(20));
        writer.write_all(b"late").unwrap();
        let mut bytes = [0; 4];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"late");
    }
}
