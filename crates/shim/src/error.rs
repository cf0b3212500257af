use std::{io, path::PathBuf};

use containerd_shim_protos::ttrpc::{self, Code};

/// Why a request could not be fulfilled. The chain of sources is meant to be printed once, joined by `: `.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, socket or system call failed.
    #[error("{step}")]
    Io {
        /// What was being done, to which object.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no such container or process, or it has ended already.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state of the container does not allow it.
    #[error("{0}")]
    Precondition(String),
    /// The request is wrong, or asks for what a virtual machine cannot do.
    #[error("{0}")]
    Invalid(String),
    /// What this runtime does not do.
    #[error("{0}")]
    Unimplemented(String),
    /// The command line.
    #[error("{0}; see containerd's documentation of runtime v2 for the flags of a shim")]
    Flags(String),
    /// A bundle's configuration.
    #[error("{file}: {problem}", file = file.display())]
    Bundle {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A deadline passed.
    #[error("{what} did not happen within {seconds} s")]
    Deadline {
        /// What was waited for.
        what: String,
        /// The deadline, seconds.
        seconds: u64,
    },
    /// A conversation with containerd broke down.
    #[error("{step}")]
    Rpc {
        /// What was being said to whom.
        step: String,
        /// Why it failed.
        source: ttrpc::Error,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The machinery of this process is coming to its end.
    #[error("the shim is shutting down")]
    ShuttingDown,
}

impl Error {
    pub(crate) fn io(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { step: step.into(), source: source.into() }
    }

    pub(crate) fn rpc(step: impl Into<String>, source: ttrpc::Error) -> Self {
        Self::Rpc { step: step.into(), source }
    }

    /// The whole chain as one line.
    pub fn chain(&self) -> String {
        sandbox::chain(self)
    }

    /// The code by which containerd's clients tell errors apart.
    fn code(&self) -> Code {
        use agent_api::FaultKind;
        use sandbox::Error as S;
        match self {
            Self::NotFound(_) | Self::Sandbox(S::NotFound { .. }) => Code::NOT_FOUND,
            Self::AlreadyExists(_) | Self::Sandbox(S::Exists { .. }) => Code::ALREADY_EXISTS,
            Self::Precondition(_) | Self::Sandbox(S::State(_)) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) | Self::Bundle { .. } | Self::Flags(_) => Code::INVALID_ARGUMENT,
            Self::Sandbox(S::Bundle { .. } | S::Id { .. } | S::Config(_)) => Code::INVALID_ARGUMENT,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Deadline { .. } | Self::Sandbox(S::Deadline { .. } | S::Late { .. }) => Code::DEADLINE_EXCEEDED,
            Self::ShuttingDown => Code::UNAVAILABLE,
            Self::Sandbox(S::Sandbox { kind: Some(kind), .. }) => match kind {
                FaultKind::NotFound => Code::NOT_FOUND,
                FaultKind::InvalidState => Code::FAILED_PRECONDITION,
                FaultKind::InvalidArgument => Code::INVALID_ARGUMENT,
                // Docker makes 127 and 126 of the text; a code would hide it.
                FaultKind::CommandNotFound
                | FaultKind::CommandNotExecutable
                | FaultKind::Protocol
                | FaultKind::Internal => Code::UNKNOWN,
            },
            Self::Io { .. } | Self::Rpc { .. } | Self::Sandbox(_) => Code::UNKNOWN,
        }
    }

    /// What containerd's clients are told. Docker and Podman look for runc's words to choose an exit code, so these are there.
    fn message(&self) -> String {
        use agent_api::FaultKind;
        let text = self.chain();
        let words = match self {
            Self::Sandbox(sandbox::Error::Sandbox { kind: Some(FaultKind::CommandNotFound), .. }) => {
                "executable file not found in $PATH"
            }
            Self::Sandbox(sandbox::Error::Sandbox { kind: Some(FaultKind::CommandNotExecutable), .. }) => {
                "permission denied"
            }
            _ => return text,
        };
        if text.contains(words) { text } else { format!("{text}: {words}") }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: agent_api::FaultKind) -> Error {
        Error::Sandbox(sandbox::Error::Sandbox { kind: Some(kind), message: "execute nosuch".into() })
    }

    #[test]
    fn a_missing_command_is_told_in_the_words_that_docker_looks_for() {
        let error = fault(agent_api::FaultKind::CommandNotFound);
        assert_eq!(error.message(), "execute nosuch: executable file not found in $PATH");
        let error = fault(agent_api::FaultKind::CommandNotExecutable);
        assert_eq!(error.message(), "execute nosuch: permission denied");
    }

    #[test]
    fn codes_tell_kinds_of_failure_apart() {
        assert_eq!(Error::NotFound("x".into()).code(), Code::NOT_FOUND);
        assert_eq!(fault(agent_api::FaultKind::NotFound).code(), Code::NOT_FOUND);
        assert_eq!(fault(agent_api::FaultKind::InvalidState).code(), Code::FAILED_PRECONDITION);
        assert_eq!(fault(agent_api::FaultKind::Internal).code(), Code::UNKNOWN);
    }
}
