//! The last lines of a stream that nobody may trust, in bounded memory.

use std::collections::VecDeque;

use crate::TAIL_LINES;

/// Bytes kept of a stream: a kernel's whole boot log, or many traces of a panic.
const CAPACITY: usize = 64 * 1024;

/// Characters kept of one line.
const LINE_LIMIT: usize = 400;

/// Lines shown before the one that was looked for: what led to it.
const BEFORE: usize = 4;

/// The end of a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    /// Appends what was read, and forgets the oldest bytes beyond [`CAPACITY`].
    pub(crate) fn push(&mut self, data: &[u8]) {
        let data = &data[data.len().saturating_sub(CAPACITY)..];
        let excess = (self.bytes.len() + data.len()).saturating_sub(CAPACITY);
        self.bytes.drain(..excess);
        self.bytes.extend(data);
    }

    /// The last [`TAIL_LINES`] lines that are not empty, fit to be shown.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = self.clean();
        lines.drain(..lines.len().saturating_sub(TAIL_LINES));
        lines
    }

    /// As [`Tail::lines`], but starting not later than [`BEFORE`] lines before the last one that contains `text`.
    pub(crate) fn lines_from(&self, text: &str) -> Vec<String> {
        let mut lines = self.clean();
        let end = lines.len().saturating_sub(TAIL_LINES);
        let found = lines.iter().rposition(|line| line.contains(text));
        lines.drain(..found.map_or(end, |at| end.min(at.saturating_sub(BEFORE))));
        lines.truncate(TAIL_LINES);
        lines
    }

    /// The last line that contains `text`, from there on.
    pub(crate) fn find_last(&self, text: &str) -> Option<String> {
        self.clean().iter().rev().find_map(|line| line.find(text).map(|at| line[at..].to_owned()))
    }

    fn clean(&self) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        // A carriage return starts a line anew on a terminal: what follows must not be glued to what it would overwrite.
        bytes
            .split(|byte| matches!(byte, b'\n' | b'\r'))
            .map(|line| clean_line(line, LINE_LIMIT))
            .filter(|line| !line.is_empty())
            .collect()
    }
}

/// Text that a guest may have chosen, fit to be shown: at most [`TAIL_LINES`] lines without escape sequences, control characters and trailing
/// blanks, none longer than `limit` bytes and a character.
pub fn printable(text: &str, limit: usize) -> String {
    let lines: Vec<String> =
        text.split(['\n', '\r']).take(TAIL_LINES).map(|line| clean_line(line.as_bytes(), limit)).collect();
    lines.join("\n").trim_end().to_owned()
}

/// Text without escape sequences, control characters and trailing blanks, cut to `limit`.
fn clean_line(line: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            // CSI sequences end at a byte from @ to ~; of any other sequence one character is taken.
            if characters.next() == Some('[') {
                while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
            }
        } else if character == '\t' {
            out.push(' ');
        } else if !character.is_control() && !is_invisible(character) {
            out.push(character);
        }
        if out.len() >= limit {
            out.push('…');
            break;
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Characters that rearrange or hide text when it is shown: marks of direction and zero-width ones.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(data: &[u8]) -> Tail {
        let mut tail = Tail::default();
        tail.push(data);
        tail
    }

    #[test]
    fn keeps_the_end_in_bounded_memory() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        assert!(tail.bytes.len() <= CAPACITY && tail.bytes.capacity() <= 2 * CAPACITY);
        let lines = tail.lines();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines.last().unwrap(), "line 99999");
        tail.push(&vec![b'x'; 10 * CAPACITY]);
        assert_eq!(tail.bytes.len(), CAPACITY);
        assert_eq!(tail.lines().len(), 1, "one endless line");
        assert!(tail.lines()[0].chars().count() <= LINE_LIMIT + 1);
    }

    #[test]
    fn removes_what_a_terminal_would_obey() {
        let shown =
            tail(b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n\x07be\x00ep\x1b]0;title\x07\n\xff\xe2\x80\xae!\n\n").lines();
        assert_eq!(shown, ["SeaBIOS", "beep0;title", "\u{fffd}!"]);
    }

    #[test]
    fn text_of_a_guest_is_made_fit_to_be_shown() {
        assert_eq!(printable("exec: \"x\": no\x1b[2J such\tfile\nmore\r\n", 100), "exec: \"x\": no such file\nmore");
        assert_eq!(printable(&"abc ".repeat(1000), 10), "abc abc ab…");
        assert_eq!(printable(&"x\n".repeat(1000), 10).lines().count(), TAIL_LINES);
        assert_eq!(printable("", 10), "");
    }

    #[test]
    fn finds_the_last_panic() {
        let tail = tail(b"[ 1.0] Kernel panic - not syncing: first\n[ 2.0] Kernel panic - not syncing: second\nmore\n");
        assert_eq!(tail.find_last("Kernel panic").unwrap(), "Kernel panic - not syncing: second");
        assert_eq!(tail.find_last("nothing"), None);
    }

    #[test]
    fn a_long_trace_does_not_push_out_its_cause() {
        let mut tail = Tail::default();
        let mut write =
            |text: &str, count: usize| (0..count).for_each(|n| tail.push(format!("{text} {n}\n").as_bytes()));
        write("before", 10);
        write("panic", 1);
        write("trace", 100);
        let lines = tail.lines_from("panic");
        assert_eq!((lines.len(), lines[0].as_str(), lines[BEFORE].as_str()), (TAIL_LINES, "before 6", "panic 0"));
        assert_eq!(tail.lines_from("absent"), tail.lines());
        let short = super::Tail { bytes: b"a\npanic\nb\n".iter().copied().collect() };
        assert_eq!(short.lines_from("panic"), ["a", "panic", "b"]);
    }
}
