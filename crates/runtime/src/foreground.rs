//! Standing for a process in the foreground: our stdio is its stdio, our signals are its signals.

use std::{sync::Arc, time::Duration};

use agent_api::{ExitStatus, WindowSize};
use sandbox::{
    client::{Client, Running, StdioEnds},
    store::{Status, Store},
};

use crate::{
    Result,
    signals::{Signals, Target},
    stdio::{self, OurEnds},
    terminal::Terminal,
};

/// How long after the end of a container's first process its output may be silent before it is given up. Nothing in the
/// container outlives that process, so the end of the output is certain to come and this is never reached.
pub(crate) const CONTAINER_GRACE: Duration = Duration::from_secs(10);
/// The same for an exec'd process, whose children may live on and hold its output open.
pub(crate) const EXEC_GRACE: Duration = Duration::from_millis(300);

/// Everything that is needed before the process exists.
pub(crate) struct Foreground {
    ends: OurEnds,
    terminal: Option<Arc<Terminal>>,
    size: Option<WindowSize>,
}

impl Foreground {
    /// Makes the ends of the process's stdio.
    ///
    /// # Errors
    /// A terminal is wanted and there is none.
    pub(crate) fn prepare(terminal: bool) -> Result<(Self, StdioEnds)> {
        let terminal = if terminal { Some(Arc::new(Terminal::of_caller()?)) } else { None };
        let (ends, theirs) = stdio::pairs(terminal.is_some())?;
        let size = terminal.as_ref().and_then(|terminal| terminal.size());
        Ok((Self { ends, terminal, size }, theirs))
    }

    /// The size of the caller's terminal, for the process to begin with.
    pub(crate) fn size(&self) -> Option<WindowSize> {
        self.size
    }

    /// Carries stdio and signals until the process ends.
    ///
    /// # Errors
    /// The sandbox died first.
    pub(crate) fn attend(
        self,
        signals: &Signals,
        (store, id): (&Store, &str),
        client: &Client,
        exec: Option<&str>,
        running: Running,
    ) -> Result<ExitStatus> {
        let grace = if exec.is_some() { EXEC_GRACE } else { CONTAINER_GRACE };
        let raw = self.terminal.as_ref().map(Terminal::raw).transpose()?;
        // It may have been resized while the process was being started.
        if let Some(size) = self.terminal.as_ref().and_then(|terminal| terminal.size())
            && self.size != Some(size)
        {
            client.resize(exec, size)?;
        }
        let pumps = self.ends.pump(self.terminal.is_some(), None, false)?;
        signals.forward_to(Target { client: client.clone(), exec: exec.map(Into::into), terminal: self.terminal });
        let ended = running.wait();
        pumps.drain(if ended.is_ok() { grace } else { EXEC_GRACE });
        signals.hold_again();
        drop(raw);
        Ok(ended.or_else(|error| how_it_ended(store, id, exec, error))?)
    }
}

/// How a process ended for which nobody answers any more: killed, if somebody deleted the container.
///
/// # Errors
/// `error` itself, if the sandbox died by itself.
pub(crate) fn how_it_ended(
    store: &Store,
    id: &str,
    exec: Option<&str>,
    error: sandbox::Error,
) -> sandbox::Result<ExitStatus> {
    const KILLED: ExitStatus = ExitStatus::Signal(9);
    match store.state(id) {
        Err(sandbox::Error::NotFound { .. }) => Ok(KILLED),
        Ok(state) if state.status == Status::Stopped && state.failure.is_none() => {
            Ok(state.exit.filter(|_| exec.is_none()).unwrap_or(KILLED))
        }
        _ => Err(error),
    }
}
