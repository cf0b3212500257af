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
    /// The machine cannot be changed in this way while it runs.
    #[error("a {machine} machine cannot be given {what} while it runs; {remedy}")]
    Fixed {
        /// QEMU's name of the machine.
        machine: &'static str,
        /// What was asked for.
        what: &'static str,
        /// What the user can do.
        remedy: &'static str,
    },
    /// All places for devices are taken.
    #[error(
        "there is no place left for {device}: all {places} for devices that come while the machine runs are taken; remove one, or start the machine with more (hotplug_slots)"
    )]
    Full {
        /// The kind of device and its name.
        device: String,
        /// How many places there are.
        places: usize,
    },
    /// A device has a name that is in use.
    #[error("the machine already has {device}")]
    Present {
        /// The kind of device and its name.
        device: String,
    },
    /// There is no such device.
    #[error("the machine has no {device}")]
    Unknown {
        /// The kind of device and its name.
        device: String,
    },
    /// A device cannot be removed, because it was there when the machine started and has no place of the right kind.
    #[error(
        "{device} cannot be removed: the machine was started without places for devices that come and go (hotplug_slots)"
    )]
    Builtin {
        /// The kind of device and its name.
        device: String,
    },
    /// The guest does not give up a device.
    #[error("the guest has not let go of {device} within {} s; stop what uses it in the guest and try again", deadline.as_secs())]
    Held {
        /// The kind of device and its name.
        device: String,
        /// How long it was given.
        deadline: Duration,
    },
    /// A device could not be added or removed.
    #[error("cannot {action} {device}: could not {step}")]
    Device {
        /// `add` or `remove`.
        action: &'static str,
        /// The kind of device and its name.
        device: String,
        /// The step that failed, as a verb.
        step: &'static str,
        /// Why.
        source: Box<Error>,
    },
}

impl Error {
    pub(crate) fn io(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Error::Io { step, source }
    }
}
