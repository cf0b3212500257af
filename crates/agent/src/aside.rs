//! Work that may block, or that needs namespaces of its own, done by a short-lived child while the agent goes on.
//!
//! The child is a fork of the agent, has closed all of the agent's descriptors, and says how it went over the socket of
//! [`status`](crate::container::status). It stays until the agent has dropped its [`Aside`].

use std::os::fd::AsFd;
use std::time::Duration;

use agent_api::Fault;

use crate::agent::Agent;
use crate::container::status::{AgentEnd, ChildEnd, Message, pair};
use crate::fault::{Context, internal};
use crate::sys::{self, Cloned, clone3};
use crate::tokens::within;

/// Where the child's end of the socket is.
const STATUS: i32 = 3;

/// A child at work.
pub struct Aside {
    /// Its id.
    pub pid: u32,
    /// Tells its end.
    pub exit: crate::reaper::ExitWatch,
    end: AgentEnd,
}

impl Aside {
    /// Starts to work. `flags` are namespaces that the child gets for itself.
    ///
    /// # Errors
    /// When there can be no further process.
    pub fn begin(agent: &Agent, flags: u64, work: impl FnOnce(&ChildEnd) -> Result<(), Fault>) -> Result<Self, Fault> {
        let (end, child_end) = pair()?;
        match clone3(flags, None).context(|| "making a process for work that may block".into())? {
            Cloned::Child => child(&child_end, work),
            Cloned::Parent(pid) => Ok(Self { pid, exit: agent.reaper.watch(pid), end }),
        }
    }

    /// Waits until the work is done.
    ///
    /// # Errors
    /// The work's, or that it was not done in time. Then the child is killed.
    pub async fn done(&self, what: &str, limit: Duration) -> Result<(), Fault> {
        let done = match within(limit, what, self.end.next()).await {
            Ok(Message::Ready) => return Ok(()),
            Ok(Message::Failed(fault)) => Err(fault),
            Ok(_) => Err(internal(format!("{what}: the process that did it ended"))),
            Err(fault) => Err(fault),
        };
        // It may have ended.
        let _ = sys::kill(self.pid, libc::SIGKILL);
        done
    }
}

fn child(status: &ChildEnd, work: impl FnOnce(&ChildEnd) -> Result<(), Fault>) -> ! {
    sys::restore_signals();
    let placed = sys::place(status.fd().as_fd(), STATUS).and_then(|()| sys::take_placed(STATUS));
    // Without a way to report, the end of this process is the report.
    if let Ok(placed) = placed
        && sys::close_from(STATUS as u32 + 1).is_ok()
    {
        let status = ChildEnd::new(placed);
        match work(&status) {
            // Who does not listen any more does not want to know.
            Ok(()) => drop(status.ready()),
            Err(fault) => status.failed(fault),
        }
        let _ = status.wait();
    }
    sys::exit_now(0)
}

/// Does something that may block and waits for it.
///
/// # Errors
/// The work's, or that it was not done in time.
pub async fn aside(
    agent: &Agent,
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<(), Fault>,
) -> Result<(), Fault> {
    Aside::begin(agent, 0, |_| work())?.done(what, limit).await
}
