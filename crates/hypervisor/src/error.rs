//! Why a machine cannot be had or does not obey.

use std::{io, path::PathBuf, time::Duration};

use crate::ExitReason;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that a machine is made of is missing, unreadable or of the wrong kind.
    #[error("the {what} {} {problem}; {remedy}", path.display())]
    File {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
    /// A setting asks for what cannot be done.
    #[error("{setting} is {value:?}, but {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// KVM was asked for and does not work.
    #[error(
        "KVM cannot be used: {reason}; set accelerator to \"auto\" or \"tcg\" to emulate the guest's processor instead"
    )]
    NoKvm {
        /// What the probe found.
        reason: String,
    },
    /// The hypervisor's process could not be made.
    #[error("cannot start {}: could not {step}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// The step that failed, as a verb.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The machine has ended.
    #[error("the virtual machine has ended: {0}")]
    Ended(ExitReason),
    /// The control connection is unusable.
    #[error("cannot control QEMU: {0}")]
    Control(String),
    /// QEMU refused a command.
    #[error("QEMU refused the command {command}: {message}")]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// QEMU's words.
        message: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer the command {command} within {} s", deadline.as_secs())]
    Silent {
        /// The QMP command.
        command: &'static str,
        /// How long it was given.
        deadline: Duration,
    },
}

impl Error {
    pub(crate) fn io(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Error::Io { step, source }
    }
}
