//! What each process that reads a guest's bytes may do.
//!
//! [`QEMU`], [`FILE_SERVER`] and [`PASST`] are the declarations: what they name is left to the process, and whatever confines one reads it
//! from here. [`spawn()`] confines a program before it is executed. The file server is our own program and confines itself, because it has
//! to mount things first; it takes its namespaces, capabilities, limits and filter from here. passt(1) is confined as far as it lets itself be, and
//! does the rest itself.
//!
//! | means | what it takes | needs |
//! | --- | --- | --- |
//! | user, group, capabilities | the host's files, processes, devices | root |
//! | namespaces | the host's network with its abstract sockets, IPC, host name | root |
//! | Landlock ([`landlock`]) | every file that is not declared, every program, TCP, other processes' signals and memory | Linux 5.13; signals 6.12 |
//! | filter of system calls ([`filter`]) | those that only an attacker of the kernel has a use for | |
//! | limits, descriptors | core dumps, what the parent has open | |
//!
//! The first two are tried from inside, by programs that stand in their places and attempt what they may not: `tests/jail` of `hypervisor`, and
//! `tests/virtiofs` of `devices`, which looks at the file server from outside, too. passt is looked at from outside, beneath a guest, in the end-to-end
//! tests of the network.

mod declared;
pub mod filter;
pub mod landlock;
mod spawn;

pub use declared::{Declaration, FILE_SERVER, Files, PASST, QEMU, User, empty_bounding_set};
pub use filter::Verdict;
pub use spawn::{Confinement, number, spawn};
