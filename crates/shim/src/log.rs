//! Messages to containerd's log: lines of logrus through the FIFO `log` in the bundle, which containerd copies to its own.
//!
//! The FIFO is opened for both directions and never waited for: while containerd is away nobody reads, and a shim must neither die of it nor
//! stand still. What does not fit is lost. Standard error leads there too, so that what libraries say and a panic's message arrive; it is a pipe
//! in between, because the standard library panics when standard error cannot be written to.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::OnceLock,
    time::SystemTime,
};

use rustix::fs::OFlags;

use crate::{Error, Result};

struct Log {
    file: File,
    debug: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log of a bundle. Without one, or before this, messages go to standard error.
///
/// # Errors
/// [`Error::Io`] when standard error cannot be led there.
pub(crate) fn open(bundle: &Path, debug: bool) -> Result<()> {
    let path = bundle.join("log");
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path) else { return Ok(()) };
    let _already_open = LOG.set(Log { file, debug });
    let failed = |e| Error::io("lead standard error to the log", e);
    let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    rustix::stdio::dup2_stderr(&to).map_err(failed)?;
    std::thread::Builder::new()
        .name("log".into())
        .stack_size(64 << 10)
        .spawn(move || copy_lines(from))
        .map_err(|e| Error::io("start the thread of the log", e))?;
    Ok(())
}

fn copy_lines(from: OwnedFd) {
    let mut lines = BufReader::new(File::from(from));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        warn(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
}

/// What an administrator should know.
pub(crate) fn warn(message: &str) {
    write("warning", message);
}

/// What went wrong.
pub(crate) fn error(message: &str) {
    write("error", message);
}

/// What may interest.
pub(crate) fn info(message: &str) {
    write("info", message);
}

/// What only a developer asks for.
pub(crate) fn debug(message: &str) {
    if LOG.get().is_some_and(|log| log.debug) {
        write("debug", message);
    }
}

fn write(level: &str, message: &str) {
    let line = line(level, message, SystemTime::now());
    match LOG.get() {
        // One write, so that lines of several shims cannot be torn; what nobody reads is lost.
        Some(log) => drop((&log.file).write(line.as_bytes())),
        None => drop(std::io::stderr().write_all(line.as_bytes())),
    }
}

fn line(level: &str, message: &str, now: SystemTime) -> String {
    let time = humantime::format_rfc3339_nanos(now);
    format!("time=\"{time}\" level={level} msg={message:?} runtime=io.containerd.kata.v2\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_logrus_and_one_line() {
        let line = line("error", "a \"b\"\nc", SystemTime::UNIX_EPOCH);
        assert_eq!(
            line,
            "time=\"1970-01-01T00:00:00.000000000Z\" level=error msg=\"a \\\"b\\\"\\nc\" runtime=io.containerd.kata.v2\n"
        );
    }
}
