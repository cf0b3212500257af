//! Why the agent itself cannot go on. What goes wrong in a call is an [`agent_api::Fault`] instead: it is an answer.

use std::io;

/// Why the guest could not be started or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step of the guest's start failed.
    #[error("{step} {object:?} failed")]
    Boot {
        /// What was being done, as in "mounting".
        step: &'static str,
        /// What it was done to.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The channel's device did not appear.
    #[error(
        "no virtio-serial port named {name:?} appeared within {seconds} s; the hypervisor has to offer one, and the guest kernel needs virtio_console"
    )]
    NoPort {
        /// The port's name.
        name: &'static str,
        /// How long was waited.
        seconds: i64,
    },
    /// Nobody on the host opened the channel.
    #[error("the host did not open its end of the channel {path:?} within {seconds} s")]
    NoHost {
        /// The port's device.
        path: String,
        /// How long was waited.
        seconds: i64,
    },
    /// The channel broke.
    #[error("the channel to the host failed")]
    Channel(#[from] proxy::Error),
}

/// Adds the step and the object to an error of the guest's start.
pub trait Step<T> {
    /// As [`Error::Boot`].
    fn step(self, step: &'static str, object: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str, object: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error::Boot { step, object: object.into(), source: source.into() })
    }
}
