//! The few messages of the kernel's netlink (netlink(7)) that the host and the guest need.
//!
//! Both ends of a sandbox speak rtnetlink: the host reads a pod's network namespace, the guest makes its own network the
//! same. One small implementation serves both, because the agent has to stay small and because what one end reads has
//! to be what the other writes.
//!
//! * [`Message`] and [`attributes`] are the encoding, [`Socket`] the conversation.
//! * [`route`] reads and changes links, addresses, routes and neighbours. A socket keeps working on the namespace it
//!   was opened in, wherever its thread goes.
//! * [`nat`] redirects what is sent to the loopback.

mod message;
pub mod nat;
pub mod route;
mod socket;
mod sys;

pub use message::{Message, attributes, number};
pub use socket::{Answer, Socket};

use rustix::io::Errno;

/// Why a conversation with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("{}{}{explanation}", std::io::Error::from(*errno), if explanation.is_empty() { "" } else { ": " })]
    Refused {
        /// Its error number.
        errno: Errno,
        /// Its own words, where it has any.
        explanation: String,
    },
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] Errno),
    /// An answer was cut off or did not come.
    #[error("the kernel's answer is not what netlink(7) says")]
    Malformed,
    /// The tables changed each time while they were read.
    #[error("the tables kept changing while they were read")]
    Restless,
}

impl Error {
    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Socket(errno) => Some(*errno),
            Self::Malformed | Self::Restless => None,
        }
    }

    /// Whether the kernel refused with this error number.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno)
    }
}
