//! What can go wrong, in sentences.

use std::io;
use std::path::PathBuf;

/// Why something about a pod's network failed. The message does not repeat the source: print the chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step with a network namespace failed.
    #[error("cannot {step} the network namespace {}", path.display())]
    Namespace {
        /// What was being done.
        step: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file is no network namespace.
    #[error("{} is not a network namespace: expected a file such as those in /run/netns", path.display())]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused something about its tables.
    #[error("cannot {step} {object}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// What it was done to.
        object: String,
        /// The kernel's answer.
        source: netlink::Error,
    },
    /// Something about a device failed.
    #[error("cannot {step} {object}")]
    Device {
        /// What was being done.
        step: &'static str,
        /// What it was done to.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface {name:?} in the pod's network namespace")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// An interface cannot be given to a virtual machine.
    #[error("the interface {name:?} cannot be given to a virtual machine: {reason}")]
    Unsuitable {
        /// Its name.
        name: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A route cannot be told to the guest.
    #[error(
        "the route to {destination} in the pod's network namespace has {what}, which cannot be told to the guest: replace it by plain routes"
    )]
    Route {
        /// Where to.
        destination: String,
        /// What it has that a plain route has not.
        what: &'static str,
    },
    /// The host's network leads nowhere.
    #[error(
        "the host has no default route by an interface with an address, so passt has no network for a guest; give the container a network of its own"
    )]
    NoDefaultRoute,
    /// passt did not start.
    #[error(
        "cannot start passt ({}): {step}; internetworking_model = \"passt\" needs it for the host's network; install it (apt install passt)",
        program.display()
    )]
    Passt {
        /// The program.
        program: PathBuf,
        /// What could not be done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A number of queues that no device has.
    #[error("{queues} queues were asked for an interface: expected 1 to {most}")]
    Queues {
        /// How many.
        queues: u16,
        /// How many there can be.
        most: u16,
    },
}

impl Error {
    /// For `map_err` on a request to the kernel.
    pub(crate) fn kernel(step: &'static str, object: impl Into<String>) -> impl FnOnce(netlink::Error) -> Self {
        move |source| Self::Kernel { step, object: object.into(), source }
    }

    /// For `map_err` on something about a device.
    pub(crate) fn device<E: Into<io::Error>>(step: &'static str, object: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Device { step, object: object.into(), source: source.into() }
    }
}
