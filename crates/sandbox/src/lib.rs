//! One pod, one sandbox, one virtual machine: its life cycle.
//!
//! # Processes
//!
//! ```text
//! caller (kata-runtime) --launch--> daemon (this crate, one per sandbox, detached)
//!                                     |-- virtio-fs server   (jailed; sees the shared directory only)
//!                                     |-- QEMU               (jailed; own uid)
//!                                     `== channel ==> guest: kernel + kata-agent
//! ```
//!
//! containerd's shim hosts the same [`pod::Sandbox`] in its own process instead of a daemon's. What follows is the command line's way.
//!
//! The **caller** checks everything that can be checked ([`bundle`]), opens what is to be shared as `open_tree(2)`
//! descriptors in its own mount namespace, makes the state directory ([`store`]) and starts the daemon ([`launch`]).
//! The **daemon** ([`daemon`]) owns the machine. It lives in a mount namespace of its own, so nothing of a sandbox ever
//! appears in the host's mount table, and QEMU and the virtio-fs server die with it: a sandbox cannot outlive the
//! process that answers for it. Everyone else speaks to it over a Unix socket ([`client`], [`api`]).
//!
//! # States of a container
//!
//! ```text
//!            launch              start               last process ends
//!  (none) ----------> created ----------> running ----------------------> stopped
//!                        |                  |  ^                             ^
//!                        |             pause|  |resume                       |
//!                        |                  v  |                             |
//!                        |                paused                             |
//!                        `---- kill, or the machine dies, at any time -------'
//! ```
//!
//! `delete` ends in (none): from stopped always, from any other state only by force. Whoever dies, the state file says
//! what was there, and `delete --force` removes it.

pub mod api;
pub mod bundle;
pub mod cgroup;
pub mod client;
pub mod daemon;
mod error;
mod files;
pub mod hooks;
mod identity;
pub mod joining;
pub mod journal;
pub mod launch;
pub mod leftovers;
mod machine;
mod overlay;
mod passing;
pub mod plan;
pub mod pod;
pub mod rootfs;
pub mod seccomp;
mod steps;
pub mod store;
mod sys;
pub mod systemd;
pub mod timeline;
mod translate;
pub mod trial;

pub use error::{Error, chain};
pub use identity::in_user_namespace;
pub use machine::{Ending, Observer, Outcome, ended};
pub use sys::own_directories;
pub use translate::{FirstDisks, Prepared, Rootfs, open_tree};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
