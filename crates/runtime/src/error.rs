//! Why a command failed.

use std::io;

/// Why a command failed. The chain of sources is printed once, joined by `: `.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The sandbox said no, or broke.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// What is left of shims, or where their sandboxes are, cannot be told.
    #[error(transparent)]
    Shim(#[from] ::shim::Error),
    /// A system call failed.
    #[error("{step}")]
    Io {
        /// What was being done, to which object.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The request cannot be carried out. The text is complete.
    #[error("{0}")]
    Refused(String),
}

/// Result of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { step: step.into(), source: source.into() }
    }

    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self::Refused(text.into())
    }

    /// What a log has beside it.
    pub(crate) fn details(&self) -> Vec<String> {
        match self {
            Self::Sandbox(error) => error.details(),
            _ => Vec::new(),
        }
    }

    /// The whole chain as one line.
    pub(crate) fn chain(&self) -> String {
        sandbox::chain(self)
    }
}
