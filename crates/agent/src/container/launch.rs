//! What making first and further processes has in common, on the agent's side.

use std::rc::{Rc, Weak};
use std::time::Duration;

use agent_api::{ExitStatus, Fault};
use tokio::io::Interest;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::status::{AgentEnd, ChildEnd, Message, pair};
use super::{KILL_DEADLINE, Process};
use crate::agent::Agent;
use crate::fault::{Context, NOT_STARTED, internal};
use crate::io::{Pollable, Pump, Streams, Wiring, null, terminal, wire};
use crate::reaper::ExitWatch;
use crate::tokens::within;

/// How long a process may take to prepare itself. Mounts that wait for the host take longest.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);
/// How long execve(2) may take once all is prepared.
const EXECUTE_DEADLINE: Duration = Duration::from_secs(60);

/// A process's stdio before it is forked: with a terminal, its streams are kept until it has made one.
pub fn prepare_stdio(streams: Streams, has_terminal: bool) -> Result<(Wiring, Option<Streams>), Fault> {
    let made = if has_terminal {
        let nulls = || Ok([null()?, null()?, null()?]);
        nulls().map(|fds| (Wiring { fds, is_null: [false; 3], pumps: Vec::new() }, Some(streams)))
    } else {
        wire(streams).map(|wiring| (wiring, None))
    };
    made.context(|| format!("{NOT_STARTED}making its standard streams"))
}

/// Starts to move the bytes of a process that exists.
pub fn start_pumps(pumps: Vec<Pump>) {
    for pump in pumps {
        spawn_local(pump);
    }
}

/// Starts a further process, beside a container's first one, and waits until it has become its program. `fork` makes it, with what connects it.
///
/// # Errors
/// What `fork` says, and as [`Forked::prepared`] and [`Forked::executed`].
pub async fn launch(
    agent: &Agent,
    streams: Streams,
    has_terminal: bool,
    fork: impl FnOnce(&Wiring, &ChildEnd) -> Result<u32, Fault>,
) -> Result<Rc<Process>, Fault> {
    let (wiring, streams) = prepare_stdio(streams, has_terminal)?;
    let (end, child_end) = pair()?;
    let forked = fork(&wiring, &child_end);
    drop(child_end);
    let Wiring { fds, pumps, .. } = wiring;
    drop(fds);
    let pid = forked?;
    start_pumps(pumps);
    let mut forked = Forked { pid, exit: agent.reaper.watch(pid), end, streams };
    let started = forked.prepared().await?;
    Forked::executed(&forked.end, Duration::ZERO).await?;
    Ok(started)
}

/// A process that was forked and has not become the user's program yet.
pub struct Forked {
    /// Its id.
    pub pid: u32,
    /// Tells its end.
    pub exit: ExitWatch,
    /// To talk to it.
    pub end: AgentEnd,
    /// The streams that its terminal will be connected to.
    pub streams: Option<Streams>,
}

impl Forked {
    /// Waits until it has prepared itself, and makes its terminal work.
    ///
    /// # Errors
    /// What it reports, or that it ended or did not get ready in time. It has been killed then.
    pub async fn prepared(&mut self) -> Result<Rc<Process>, Fault> {
        let mut prepared = self.until_ready().await;
        if let Err(fault) = &mut prepared {
            // It may have ended by itself.
            let _ = crate::sys::kill(self.pid, libc::SIGKILL);
            let ended = within(KILL_DEADLINE, "the end of a process that could not be started", self.exit.ended());
            if let Err(late) = ended.await {
                // Why it could not be started is what the caller can do something about.
                fault.message = format!("{}; {}", fault.message, late.message);
            }
        }
        let terminal = prepared?;
        Ok(Rc::new(Process { pid: self.pid, exit: self.exit.clone(), terminal: terminal.into() }))
    }

    async fn until_ready(&mut self) -> Result<Weak<Pollable>, Fault> {
        let deadline = Instant::now() + PREPARE_DEADLINE;
        let mut master = Weak::new();
        loop {
            let late = || {
                let seconds = PREPARE_DEADLINE.as_secs();
                internal(format!("{NOT_STARTED}process {} did not prepare itself within {seconds} s", self.pid))
            };
            match timeout_at(deadline, self.end.next()).await.map_err(|_| late())? {
                Message::Ready => return Ok(master),
                Message::Failed(fault) => return Err(fault),
                Message::Terminal(fd) => {
                    let made = Pollable::new(fd, Interest::READABLE | Interest::WRITABLE);
                    let made = Rc::new(made.context(|| format!("{NOT_STARTED}connecting its terminal"))?);
                    master = Rc::downgrade(&made);
                    let streams = self.streams.take().unwrap_or_default();
                    spawn_local(terminal(made, streams.stdin, streams.stdout));
                }
                Message::End => {
                    let how = match within(KILL_DEADLINE, "the end of the process", self.exit.ended()).await? {
                        ExitStatus::Code(code) => format!("exit code {code}"),
                        ExitStatus::Signal(signal) => format!("signal {signal}"),
                    };
                    return Err(internal(format!("{NOT_STARTED}the process ended while it prepared itself: {how}")));
                }
            }
        }
    }

    /// Waits until it has become the user's program, or has failed to, which then is its own end. `patience` is how long its hooks may take.
    ///
    /// # Errors
    /// When neither happens in time, or it reports a failure.
    pub async fn executed(end: &AgentEnd, patience: Duration) -> Result<(), Fault> {
        match within(EXECUTE_DEADLINE + patience, "the execution of the program", end.next()).await? {
            Message::Failed(fault) => Err(fault),
            _ => Ok(()),
        }
    }
}
