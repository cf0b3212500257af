//! Messages to the caller, in the formats of logrus, which conmon, containerd and Docker parse.
//!
//! Without `--log` they go to standard error. With it they go to the file, and an error that ends the command is also
//! printed, bare, on standard error.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{Error, Result, go, sys};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `time="…" level=error msg="…"`, or a short coloured line on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Error::refused(format!("invalid log-format: {other}"))),
        }
    }
}

/// How serious a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Warning,
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Debug => "debug",
        }
    }

    /// Four letters and a colour (ECMA-48 SGR) for terminals.
    fn short(self) -> (&'static str, u8) {
        match self {
            Self::Error => ("ERRO", 31),
            Self::Warning => ("WARN", 33),
            Self::Debug => ("DEBU", 37),
        }
    }
}

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Log {
    /// `None`: standard error.
    file: Option<File>,
    format: Format,
    debug: bool,
    begun: Instant,
}

impl Log {
    /// A log in text on standard error, for as long as nothing else is known.
    pub(crate) fn plain() -> Self {
        Self { file: None, format: Format::Text, debug: false, begun: Instant::now() }
    }

    /// A log as the command line asks for it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: Option<&Path>, format: Format, debug: bool) -> Result<Self> {
        let file = match path {
            None => None,
            Some(path) => Some(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o644)
                    .open(path)
                    .map_err(|e| Error::io(format!("open the log file {}", path.display()), e))?,
            ),
        };
        Ok(Self { file, format, debug, begun: Instant::now() })
    }

    /// An error that ends the command.
    pub(crate) fn fatal(&self, message: &str) {
        self.write(Level::Error, message);
        if self.file.is_some() {
            let _nobody_left_to_tell = writeln!(io::stderr(), "{message}");
        }
    }

    /// An error after which the command goes on.
    pub(crate) fn error(&self, message: &str) {
        self.write(Level::Error, message);
    }

    /// Whether there is somebody whose words it is among: with neither a file nor a terminal, what is said may be taken for the container's.
    pub(crate) fn is_heard(&self) -> bool {
        self.file.is_some() || io::stderr().is_terminal()
    }

    /// Something the user should know.
    pub(crate) fn warning(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// Something for whoever looks for a fault; `message` is only made if wanted.
    pub(crate) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.write(Level::Debug, &message());
        }
    }

    fn write(&self, level: Level, message: &str) {
        let line = match (self.format, &self.file) {
            (Format::Text, None) if io::stderr().is_terminal() => {
                let (name, colour) = level.short();
                let seconds = self.begun.elapsed().as_secs();
                format!("\x1b[{colour}m{name}\x1b[0m[{seconds:04}] {message:<44} \n")
            }
            (format, _) => line(format, level, message, &now()),
        };
        // One write, so that lines of several processes do not mix. A log that cannot be written cannot be reported.
        let _lost = match &self.file {
            Some(file) => (&mut { file }).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    level: Level,
    msg: &'a str,
    time: &'a str,
}

fn line(format: Format, level: Level, message: &str, time: &str) -> String {
    match format {
        Format::Json => {
            // A structure of three strings always has a representation.
            let mut line = go::json(&JsonLine { level, msg: message, time }).unwrap_or_default();
            line.push('\n');
            line
        }
        Format::Text => {
            let plain = message.chars().all(|c| c.is_ascii_alphanumeric() || "-._/@^+".contains(c));
            let message = if plain { message.to_owned() } else { go::quote(message) };
            format!("time={} level={} msg={message}\n", go::quote(time), level.name())
        }
    }
}

/// The time of day with the local offset, RFC 3339 in seconds.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    sys::local_time(seconds as i64).rfc3339()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-02T03:04:05Z";

    #[test]
    fn text_is_quoted_where_logrus_quotes_it() {
        let text = |message| line(Format::Text, Level::Error, message, TIME);
        assert_eq!(
            text("exec: \"nope\": not found"),
            "time=\"2026-01-02T03:04:05Z\" level=error msg=\"exec: \\\"nope\\\": not found\"\n"
        );
        assert_eq!(text("a/b-c"), "time=\"2026-01-02T03:04:05Z\" level=error msg=a/b-c\n");
        assert!(text("two\nlines").ends_with("msg=\"two\\nlines\"\n"));
    }

    #[test]
    fn json_has_the_keys_in_logrus_order() {
        assert_eq!(
            line(Format::Json, Level::Warning, "a \"b\" <c>", TIME),
            "{\"level\":\"warning\",\"msg\":\"a \\\"b\\\" \\u003cc\\u003e\",\"time\":\"2026-01-02T03:04:05Z\"}\n"
        );
    }

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for message in ["one", "two"] {
            Log::open(Some(&path), Format::Json, false).unwrap().warning(message);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("\"msg\":\"two\""));
        assert!(Log::open(Some(&dir.path().join("no/log")), Format::Text, false).is_err());
    }

    #[test]
    fn debug_messages_need_debug() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for debug in [false, true] {
            Log::open(Some(&path), Format::Text, debug).unwrap().debug(|| format!("debug={debug}"));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn only_two_formats_exist() {
        assert!("json".parse::<Format>().is_ok());
        assert_eq!("xml".parse::<Format>().unwrap_err().to_string(), "invalid log-format: xml");
    }
}
