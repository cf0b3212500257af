//! The sub-commands by which containerd starts and cleans up after a shim.
//!
//! # `start`
//!
//! containerd runs it in the bundle of each new container and connects to the address that it prints. The containers of a pod share one shim,
//! so the socket's name is a digest of containerd's address, the namespace and the pod; whoever finds it answered prints it and is done. Otherwise
//! the socket is opened here, before anything else, and the new process inherits it as its standard input: a connection is never refused.
//!
//! The address is printed as it is, which every containerd takes for a shim of version 2. The JSON form is understood from 1.7 on only, and
//! nothing in `start`'s environment says which containerd is asking (all of them set `MAX_SHIM_VERSION=2`, or nothing). Version 3 would add streams
//! of stdio over RPC, which this shim does not offer; containerd 2 calls the sandbox API of a shim of version 2 all the same, and for such a shim it keeps
//! calling `delete` for each container when the shim has died.
//!
//! # `delete`
//!
//! containerd runs it after the connection to a shim has ended, in order or not, once for each container. What is left is found by the
//! sandbox's state directory.

mod delete;
pub(crate) mod info;
pub(crate) mod socket;
mod start;

pub(crate) use delete::delete;
pub(crate) use start::start;
