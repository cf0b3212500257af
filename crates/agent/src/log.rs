//! The agent's log: lines on standard error, which is the guest's console.
//!
//! The console is a serial port that moves about ten bytes per millisecond and stops the guest meanwhile, so only
//! warnings and errors go there unless `agent.log=` says otherwise.

use std::fmt;
use std::io::Write;

use rustix::time::{ClockId, clock_gettime};

/// How much is logged. A level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The agent, or a container, cannot go on.
    Error,
    /// Something is not as it should be, and who runs the pod should know.
    Warn,
    /// What happened, once per call.
    Info,
    /// What a developer of the agent wants to see.
    Debug,
}

impl Level {
    /// The level of a name as in `agent.log=debug`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" | "trace" => Self::Debug,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Where log lines are written.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// The most talkative level that is written.
    pub level: Level,
}

impl Log {
    /// Writes a line if its level is wanted: seconds since the guest's start, level and text.
    pub fn line(self, level: Level, text: fmt::Arguments<'_>) {
        if level > self.level {
            return;
        }
        let now = clock_gettime(ClockId::Boottime);
        let line = format!("[{}.{:06}] kata-agent: {}: {text}\n", now.tv_sec, now.tv_nsec / 1000, level.name());
        // There is nobody to tell that the console does not work.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Writes an error.
    pub fn error(self, text: impl fmt::Display) {
        self.line(Level::Error, format_args!("{text}"));
    }

    /// Writes a warning.
    pub fn warn(self, text: impl fmt::Display) {
        self.line(Level::Warn, format_args!("{text}"));
    }

    /// Writes what happened.
    pub fn info(self, text: impl fmt::Display) {
        self.line(Level::Info, format_args!("{text}"));
    }

    /// Writes a detail.
    pub fn debug(self, text: impl fmt::Display) {
        self.line(Level::Debug, format_args!("{text}"));
    }
}

/// An error and its causes, joined by `: `.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_levels_and_levels_are_ordered() {
        assert_eq!(Level::named("debug"), Some(Level::Debug));
        assert_eq!(Level::named("loud"), None);
        assert!(Level::Error < Level::Warn && Level::Info < Level::Debug);
    }

    #[test]
    fn a_chain_has_every_cause_once() {
        let inner = std::io::Error::other("inner");
        let error = crate::error::Error::Boot { step: "mounting", object: "/x".into(), source: inner };
        assert_eq!(chain(&error), "mounting \"/x\" failed: inner");
    }
}
