use std::{io, path::PathBuf};

/// Why a sandbox could not do what was asked. The chain of sources is meant to be printed once, joined by `: `.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or system call failed.
    #[error("{step}")]
    Io {
        /// What was being done, to which object.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The bundle or its configuration cannot be accepted.
    #[error("{file}: {field}: {problem}", file = file.display())]
    Bundle {
        /// The file.
        file: PathBuf,
        /// The field, in JSON's dotted notation.
        field: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A container name that cannot be one.
    #[error("container id {id:?} is not valid: {expected}")]
    Id {
        /// The name.
        id: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The name is taken.
    #[error("container with id {id:?} already exists in {root}; delete it first or choose another id", root = root.display())]
    Exists {
        /// The name.
        id: String,
        /// The state directory.
        root: PathBuf,
    },
    /// No such container.
    #[error("container {id:?} does not exist in {root}", root = root.display())]
    NotFound {
        /// The name.
        id: String,
        /// The state directory.
        root: PathBuf,
    },
    /// The container's state does not allow the operation.
    #[error("{0}")]
    State(String),
    /// The daemon, the guest or the machine said no; or died. The text is complete.
    #[error("{message}")]
    Sandbox {
        /// What kind of failure, when the guest said so.
        kind: Option<agent_api::FaultKind>,
        /// Step, object and reason.
        message: String,
    },
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The virtual machine.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// The shared file system.
    #[error(transparent)]
    Devices(#[from] devices::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A conversation broke down.
    #[error("{step}")]
    Frame {
        /// What was being said to whom.
        step: String,
        /// Why it failed.
        source: agent_api::frame::FrameError,
    },
    /// A hook of the bundle failed. It begins with runc's words, which callers look for.
    #[error("error running hook #{index}: the {point} hook {path} failed ({status}): {said}", path = path.display())]
    Hook {
        /// The point at which it was run.
        point: &'static str,
        /// Which of those.
        index: usize,
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// systemd refused, or did not answer.
    #[error("{step}: {problem}")]
    Systemd {
        /// What it was asked for.
        step: String,
        /// What it said, and the remedy.
        problem: String,
    },
    /// A start took longer than it may. The text is complete.
    #[error("{message}")]
    Late {
        /// What was waited for, and what hangs.
        message: String,
        /// Where the time went so far.
        timeline: Box<crate::timeline::Timeline>,
    },
    /// A deadline passed.
    #[error("{what} did not happen within {seconds} s")]
    Deadline {
        /// What was waited for.
        what: String,
        /// The deadline, seconds.
        seconds: u64,
    },
}

impl Error {
    pub(crate) fn io(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { step: step.into(), source: source.into() }
    }

    /// The whole chain as one line.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// For a log: where the time went of a start that took too long, and what the guest said last. Empty for any other error.
    pub fn details(&self) -> Vec<String> {
        let Self::Late { timeline, .. } = self else { return Vec::new() };
        let mut lines = timeline.table();
        lines.extend(timeline.console.iter().map(|line| format!("console of the guest: {line}")));
        lines
    }
}

/// An error and its sources, joined by `: `.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
