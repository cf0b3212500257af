//! Showing how far make has come.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// In a log, a line this often at most.
const IN_A_LOG: Duration = Duration::from_secs(30);
/// On a terminal, a change this often at most.
const ON_A_TERMINAL: Duration = Duration::from_millis(100);

/// Counts the steps of make and shows them: as one line that changes on a terminal, as a line now and then in a log.
#[derive(Debug)]
pub(crate) struct Progress<W: Write> {
    out: W,
    terminal: bool,
    what: String,
    /// Steps to expect, if that is known.
    total: Option<usize>,
    done: usize,
    shown: Instant,
    /// Columns the changing line may have.
    width: usize,
    dirty: bool,
}

impl Progress<io::Stderr> {
    /// Shows it on standard error.
    pub(crate) fn new(what: String, total: Option<usize>) -> Self {
        let terminal = io::stderr().is_terminal();
        // Some terminals do not know their size, and say 0.
        let width = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let width = if width == 0 { 80 } else { width };
        Progress::to(io::stderr(), terminal, width, what, total)
    }
}

impl<W: Write> Progress<W> {
    fn to(out: W, terminal: bool, width: usize, what: String, total: Option<usize>) -> Self {
        Progress { out, terminal, what, total, done: 0, shown: Instant::now(), width, dirty: false }
    }

    /// Takes a line of make's output.
    pub(crate) fn line(&mut self, line: &str) {
        let Some(object) = step(line) else { return };
        self.done += 1;
        let interval = if self.terminal { ON_A_TERMINAL } else { IN_A_LOG };
        if self.shown.elapsed() >= interval {
            self.show(object);
        }
    }

    fn show(&mut self, object: &str) {
        self.shown = Instant::now();
        let count = match self.total {
            Some(total) if self.done <= total => {
                format!("{} of about {total} steps ({} %)", self.done, self.done * 100 / total.max(1))
            }
            _ => format!("{} steps", self.done),
        };
        let mut text = format!("{}: {count}, now {object}", self.what);
        // A terminal that is gone is no reason to stop a build.
        let _gone = if self.terminal {
            // A longer line would wrap and could not be overwritten.
            let end = text.char_indices().nth(self.width.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
            text.truncate(end);
            self.dirty = true;
            write!(self.out, "\r\x1b[K{text}").and_then(|()| self.out.flush())
        } else {
            writeln!(self.out, "    {text}")
        };
    }

    /// Removes the changing line; returns the number of steps.
    pub(crate) fn finish(&mut self) -> usize {
        if self.dirty {
            let _gone = write!(self.out, "\r\x1b[K").and_then(|()| self.out.flush());
            self.dirty = false;
        }
        self.done
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What a line such as `  CC      init/main.o` is about.
pub(crate) fn step(line: &str) -> Option<&str> {
    let (kind, object) = line.strip_prefix("  ")?.split_once(' ')?;
    let object = object.trim_start();
    let is_kind =
        kind.len() >= 2 && kind.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_' || byte.is_ascii_digit());
    (is_kind && !object.is_empty()).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_other_output() {
        assert_eq!(step("  CC      init/main.o"), Some("init/main.o"));
        assert_eq!(step("  HOSTCC  scripts/kconfig/conf.o"), Some("scripts/kconfig/conf.o"));
        assert_eq!(step("  LD [M]  x.ko"), Some("[M]  x.ko"));
        for other in ["make[1]: Entering directory '/x'", "  note: something", "", "  CC", "drivers/x.c:3: error: y"] {
            assert_eq!(step(other), None, "{other}");
        }
    }

    fn shown(terminal: bool, width: usize, total: Option<usize>) -> String {
        let mut out = Vec::new();
        let mut progress = Progress::to(&mut out, terminal, width, "kernel".into(), total);
        for number in 0..3 {
            progress.shown = Instant::now() - IN_A_LOG;
            progress.line(&format!("  CC      file{number}.o"));
        }
        assert_eq!(progress.finish(), 3);
        drop(progress);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_log_gets_lines_and_a_terminal_one_line_that_changes() {
        let log = shown(false, 80, Some(2));
        let expected = "    kernel: 1 of about 2 steps (50 %), now file0.o\n    kernel: 2 of about 2 steps (100 %), now file1.o\n    \
                        kernel: 3 steps, now file2.o\n";
        assert_eq!(log, expected);
        let terminal = shown(true, 20, None);
        let clear = "\r\x1b[K";
        let line = |number| format!("{clear}kernel: {number} steps, no");
        assert_eq!(terminal, format!("{}{}{}{clear}", line(1), line(2), line(3)));
    }

    #[test]
    fn not_every_step_is_shown() {
        let mut out = Vec::new();
        let mut progress = Progress::to(&mut out, false, 80, "kernel".into(), None);
        progress.line("  CC      a.o");
        progress.finish();
        drop(progress);
        assert!(out.is_empty());
    }
}
