//! What can go wrong, in sentences.

use std::{io, path::PathBuf};

/// Why a device backend or its shared directory could not be set up. The message does not repeat the source: print the
/// chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step that concerns no file failed.
    #[error("cannot {step}")]
    Step {
        /// What was being done, as an infinitive with its object.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step that concerns a file failed.
    #[error("cannot {step} {}", path.display())]
    Path {
        /// What was being done, ending so that a path may follow.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A path beneath the shared directory was absolute, empty, or had a `.` or `..` in it.
    #[error(
        "{path:?} does not name a place beneath the shared directory: expected names joined by \"/\", without \".\" and \"..\""
    )]
    NotBeneath {
        /// What was given.
        path: PathBuf,
    },
    /// Something is already attached at, above or beneath this place.
    #[error("{} in the shared directory is in use: detach what is there first, or choose another name", path.display())]
    InUse {
        /// The place, relative to the shared directory.
        path: PathBuf,
    },
    /// Nothing is attached at this place.
    #[error("nothing is attached at {} in the shared directory", path.display())]
    NotAttached {
        /// The place, relative to the shared directory.
        path: PathBuf,
    },
    /// The executable was not started within the deadline.
    #[error("{} was not executed as the file server within {seconds} s", executable.display())]
    ExecuteDeadline {
        /// The executable.
        executable: PathBuf,
        /// The deadline, seconds.
        seconds: u64,
    },
    /// A value that goes on the server's command line holds a zero byte.
    #[error("{path:?} holds a zero byte, which no path can")]
    ZeroByte {
        /// The path.
        path: PathBuf,
    },
    /// The server was started by hand, or by another version of the executable.
    #[error(
        "the file server does not understand its argument {argument:?}: it is started by the sandbox, never by hand"
    )]
    Argument {
        /// The argument.
        argument: String,
    },
    /// The process that started the server is no longer there.
    #[error("the process that started the file server has died")]
    ParentDied,
    /// The hard limit on open files leaves too few for a guest.
    #[error(
        "the hard limit of open files is {limit}, and a file server needs {needed}: raise it (LimitNOFILE= of the service)"
    )]
    FewFiles {
        /// The limit in force.
        limit: u64,
        /// The least that is accepted.
        needed: u64,
    },
    /// The seccomp filter was refused.
    #[error("cannot install the file server's seccomp filter: {reason}")]
    Seccomp {
        /// What the library says.
        reason: String,
    },
    /// The vhost-user side of the server failed.
    #[error("cannot serve the file system over vhost-user: {reason}")]
    Serve {
        /// What the library says.
        reason: String,
    },
}

impl Error {
    /// For `map_err` on a step that concerns no file.
    pub(crate) fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Step { step, source: source.into() }
    }

    /// For `map_err` on a step that concerns a file.
    pub(crate) fn path<E: Into<io::Error>>(step: &'static str, path: &std::path::Path) -> impl FnOnce(E) -> Self {
        move |source| Self::Path { step, path: path.to_owned(), source: source.into() }
    }
}
