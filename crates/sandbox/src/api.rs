//! What callers say to a sandbox's daemon over its Unix socket.
//!
//! Each container of a sandbox has a socket of its own in its state directory; what is asked there is about that container.
//!
//! One connection is one call: a [`Request`] frame (see `agent_api::frame`), with descriptors attached to its first byte
//! when it starts a process, then one or more [`Reply`] frames.

use agent_api::{ExitStatus, ProcessInfo, WindowSize, statistics::Statistics};
use oci_spec::runtime::{LinuxResources, Process};
use serde::{Deserialize, Serialize};

use crate::launch::Member;

/// Which of a process's stdio descriptors come with a request, in the order stdin, stdout, stderr.
///
/// Each is one end of a stream socket pair; the daemon reads what the process shall read and writes what it wrote. Closing
/// one's end, or shutting it down for writing, closes the process's stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioSet {
    /// Standard input, or the terminal's input.
    pub stdin: bool,
    /// Standard output, or the terminal's output.
    pub stdout: bool,
    /// Standard error; never with a terminal.
    pub stderr: bool,
}

impl StdioSet {
    /// Number of descriptors.
    pub fn count(self) -> usize {
        usize::from(self.stdin) + usize::from(self.stdout) + usize::from(self.stderr)
    }
}

/// What the name of a process begins with that runs in the guest, but in none of its containers. No other process's name has it.
pub const CONSOLE: &str = "console/";

/// A call. `exec` names an exec'd process, or the container's first one when absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Creates another container in the sandbox. Answered by `Created`, then `Exited` when its first process has ended. Comes with
    /// descriptors.
    Create(Box<Member>),
    /// Lets the created container run. Answered by `Done`.
    Start,
    /// Starts a further process. Answered by `Created`, then `Exited` when it has ended. Comes with descriptors.
    Exec {
        /// Name of the process, unique among live ones.
        id: String,
        /// What to run.
        process: Box<Process>,
        /// Which descriptors come along.
        stdio: StdioSet,
    },
    /// Waits. Answered by `Exited`.
    Wait {
        /// Process.
        exec: Option<String>,
    },
    /// As `Wait`, from the process on the host that stands for the container's first process: its pid is shown as the
    /// container's. Answered by `Done`, then `Exited`. If the connection ends before, the process is killed.
    Supervise {
        /// Process id of the caller, host.
        pid: u32,
        /// Process.
        exec: Option<String>,
    },
    /// Sends a signal. Answered by `Done`.
    Signal {
        /// Process.
        exec: Option<String>,
        /// Signal number.
        signal: i32,
        /// To every process of the container.
        all: bool,
    },
    /// Sets a terminal's size. Answered by `Done`.
    Resize {
        /// Process.
        exec: Option<String>,
        /// Size.
        size: WindowSize,
    },
    /// Freezes the container. Answered by `Done`.
    Pause,
    /// Thaws the container. Answered by `Done`.
    Resume,
    /// Answered by `Done` once the container is not paused.
    Resumed,
    /// Lists processes. Answered by `Processes`.
    Processes,
    /// Asks what the container uses. Answered by `Statistics`.
    Statistics,
    /// Changes the container's limits; what is absent stays as it is. Answered by `Done`.
    Update {
        /// The limits.
        resources: Box<LinuxResources>,
    },
    /// Answered by `Done`, then by `OutOfMemory` each time that the guest's kernel kills a process of the container for want of memory, until
    /// the container stops and the connection ends.
    Events,
    /// Asks for the state. Answered by `State`.
    State,
    /// Ends the container, and the sandbox with its last one. Answered by `Left` if others stay; else by `Done`, after which the daemon
    /// goes away; the connection's end says that it has.
    Delete {
        /// Even if the container has not stopped.
        force: bool,
    },
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The process exists in the guest.
    Created {
        /// Process id in the guest.
        pid: u32,
    },
    /// The process has ended.
    Exited(ExitStatus),
    /// The call was carried out.
    Done,
    /// The container is gone, and its sandbox stays for others.
    Left,
    /// Processes of the container.
    Processes(Vec<ProcessInfo>),
    /// What the container uses.
    Statistics(Box<Statistics>),
    /// A process was killed for want of memory.
    OutOfMemory,
    /// State of the container.
    State(Box<crate::store::ContainerState>),
    /// The call failed.
    Failed {
        /// What kind of failure, when the guest said so.
        kind: Option<agent_api::FaultKind>,
        /// Step, object and reason.
        message: String,
    },
}
