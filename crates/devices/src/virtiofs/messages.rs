//! The server's messages: its standard error is a pipe, of which the parent keeps the last lines.
//!
//! The pipe does not block the server: whoever writes into it may be made to by the guest, and the parent need not be
//! reading. A message that finds it full is lost.

use std::{
    collections::VecDeque,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use log::{LevelFilter, Log, Metadata, Record};
use rustix::io::Errno;

use super::LogLevel;

/// Lines that the parent keeps.
const LINES: usize = 64;
/// Bytes of a line that are kept.
const LINE: usize = 512;

/// The parent's end.
#[derive(Debug)]
pub(super) struct Tail {
    pipe: OwnedFd,
    lines: VecDeque<String>,
    /// What has come of the line that has not ended yet, at most [`LINE`] bytes.
    partial: Vec<u8>,
}

impl Tail {
    /// Reads from `pipe`, which must not block.
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self { pipe, lines: VecDeque::new(), partial: Vec::new() }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes what has been written since; false when nothing will come any more.
    pub(super) fn drain(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // As much as a pipe holds: a server that never stops writing does not keep the parent here.
        for _ in 0..16 {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => {
                    self.end_line();
                    return false;
                }
                Ok(length) => self.take(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(error) => return error == Errno::AGAIN,
            }
        }
        true
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = LINE - self.partial.len();
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.partial.is_empty() {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(printable(&String::from_utf8_lossy(&self.partial)));
        self.partial.clear();
    }
}

/// Without control characters: a message may quote what the guest chose, and will be shown on a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The server's end: log records become lines on standard error.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(&format!("{}: {}", record.level().as_str().to_ascii_lowercase(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Writes one line, if there is room for it.
pub(super) fn say(text: &str) {
    let mut line = printable(text).into_bytes();
    line.truncate(LINE);
    line.push(b'\n');
    // A line of this length is written whole or not at all (pipe(7)); when not, there is nobody to tell.
    let _ = std::io::stderr().write_all(&line);
}

/// Makes the process's log records lines on its standard error.
pub(super) fn log_to_stderr(level: LogLevel) {
    log::set_max_level(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
    });
    // It fails only when a logger is set already, which then does the work.
    let _ = log::set_logger(&Logger);
}

#[cfg(test)]
mod tests {
    use rustix::pipe::PipeFlags;

    use super::*;

    fn pipe() -> (Tail, std::fs::File) {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (Tail::new(read), write.into())
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let (mut tail, mut writer) = pipe();
        for n in 0..LINES + 10 {
            writeln!(writer, "line {n}").unwrap();
        }
        write!(writer, "no end").unwrap();
        assert!(tail.drain());
        assert_eq!(tail.lines().len(), LINES);
        assert_eq!(tail.lines()[0], "line 10");
        drop(writer);
        assert!(!tail.drain());
        assert_eq!(tail.lines().last().unwrap(), "no end");
    }

    #[test]
    fn a_line_without_end_takes_no_memory_and_control_characters_do_not_come_through() {
        let (mut tail, mut writer) = pipe();
        writer.write_all(&vec![b'x'; 20_000]).unwrap();
        tail.drain();
        writeln!(writer, "tail").unwrap();
        writeln!(writer, "a\x1b[2Jb").unwrap();
        tail.drain();
        assert_eq!(tail.lines(), ["x".repeat(LINE), "a\u{fffd}[2Jb".to_owned()]);
    }

    #[test]
    fn a_full_pipe_loses_messages_and_blocks_nobody() {
        let (mut tail, mut writer) = pipe();
        let line = "y".repeat(LINE - 1) + "\n";
        while writer.write_all(line.as_bytes()).is_ok() {}
        assert!(tail.drain());
        writeln!(writer, "room again").unwrap();
        tail.drain();
        assert_eq!(tail.lines().last().unwrap(), "room again");
    }
}
