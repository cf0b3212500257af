//! The life of a process, a container's first one or one that was executed in it.
//!
//! ```text
//!            Create, Exec            Start                its end
//!   (none) ---------------> created -------> running -----------------> stopped ----> (none)
//!                             |               |   ^                      ^  ^  Delete
//!                             |          Pause|   |Resume                |  |
//!                             |               v   |         its end      |  |
//!                             |              paused ---------------------'  |
//!                             `---- it was killed, or could not be started -'
//! ```
//!
//! Pause and Resume are the container's: its first process carries the state, and every process of it shows it. A created process may be
//! deleted, too. What a state does not allow is refused in the words of containerd's own shim, by [`Error::Precondition`]; what is asked of a
//! process that has ended, where the caller wants it to end, by [`Error::NotFound`].

use std::time::SystemTime;

use crate::{Error, Result};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell shows it.
    pub(crate) status: u32,
    /// When.
    pub(crate) at: SystemTime,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits for Start.
    Created,
    /// It runs.
    Running,
    /// Its container is being frozen.
    Pausing,
    /// Its container is frozen.
    Paused,
    /// It has ended.
    Stopped(Exit),
}

impl State {
    /// As it is called in messages.
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        }
    }

    /// How it ended, if it did.
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether Start may be called.
    pub(crate) fn may_start(self) -> Result<()> {
        self.expect(matches!(self, Self::Created), "start", "process")
    }

    /// Whether Delete may be called.
    pub(crate) fn may_delete(self) -> Result<()> {
        self.expect(matches!(self, Self::Created | Self::Stopped(_)), "delete", "process")
    }

    /// Whether the container may be paused.
    pub(crate) fn may_pause(self) -> Result<()> {
        self.expect(matches!(self, Self::Running), "pause", "container")
    }

    /// Whether the container may be resumed.
    pub(crate) fn may_resume(self) -> Result<()> {
        self.expect(matches!(self, Self::Paused), "resume", "container")
    }

    /// Whether the container's limits may be changed.
    pub(crate) fn may_update(self) -> Result<()> {
        self.expect(!matches!(self, Self::Stopped(_)), "update", "container")
    }

    /// Whether further processes may be announced in the container.
    pub(crate) fn may_exec(self) -> Result<()> {
        let allowed = matches!(self, Self::Created | Self::Running);
        if allowed { Ok(()) } else { Err(Error::Precondition(format!("cannot exec in a {} state", self.name()))) }
    }

    /// Whether a container's first process may get a signal.
    pub(crate) fn may_signal(self) -> Result<()> {
        match self {
            Self::Stopped(_) => Err(Error::NotFound("process already finished".into())),
            _ => Ok(()),
        }
    }

    /// Whether an executed process may get a signal.
    pub(crate) fn may_signal_exec(self) -> Result<()> {
        match self {
            Self::Created => Err(Error::Precondition("process not created".into())),
            other => other.may_signal(),
        }
    }

    /// Whether the terminal may be resized.
    pub(crate) fn may_resize(self) -> Result<()> {
        self.expect(!matches!(self, Self::Stopped(_)), "resize", "container")
    }

    fn expect(self, allowed: bool, what: &str, whom: &str) -> Result<()> {
        if allowed { Ok(()) } else { Err(Error::Precondition(format!("cannot {what} a {} {whom}", self.name()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: State = State::Stopped(Exit { status: 0, at: SystemTime::UNIX_EPOCH });
    const ALL: [State; 5] = [State::Created, State::Running, State::Pausing, State::Paused, ENDED];

    fn allowed(question: fn(State) -> Result<()>) -> Vec<&'static str> {
        ALL.into_iter().filter(|state| question(*state).is_ok()).map(State::name).collect()
    }

    #[test]
    fn each_state_allows_what_the_picture_shows() {
        assert_eq!(allowed(State::may_start), ["created"]);
        assert_eq!(allowed(State::may_delete), ["created", "stopped"]);
        assert_eq!(allowed(State::may_pause), ["running"]);
        assert_eq!(allowed(State::may_resume), ["paused"]);
        assert_eq!(allowed(State::may_update), ["created", "running", "pausing", "paused"]);
        assert_eq!(allowed(State::may_exec), ["created", "running"]);
        assert_eq!(allowed(State::may_signal), ["created", "running", "pausing", "paused"]);
        assert_eq!(allowed(State::may_signal_exec), ["running", "pausing", "paused"]);
    }

    #[test]
    fn refusals_are_in_runc_s_words() {
        let text = |result: Result<()>| result.unwrap_err().to_string();
        assert_eq!(text(State::Running.may_start()), "cannot start a running process");
        assert_eq!(text(State::Running.may_delete()), "cannot delete a running process");
        assert_eq!(text(State::Paused.may_exec()), "cannot exec in a paused state");
        assert!(matches!(ENDED.may_signal(), Err(Error::NotFound(_))));
        assert!(matches!(State::Created.may_signal_exec(), Err(Error::Precondition(_))));
    }
}
