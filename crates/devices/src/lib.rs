//! Device backends that read what a guest writes, each in a process and a jail of its own.
//!
//! So far there is one: the file server behind virtio-fs, by which a guest sees the directories that are shared with it.
//!
//! # The shared directory
//!
//! A guest has one virtio-fs device, and a pod's containers come and go while it runs; so the device serves one small
//! directory, and what a container needs is mounted beneath it when the container is created and unmounted when it is
//! deleted. [`share`] does that, in a mount namespace that belongs to the sandbox's daemon alone: the host's own mount
//! table never shows any of it, and when the daemon dies the kernel takes everything down. The source of a mount comes as a descriptor
//! made by `open_tree(2)`, because its path may mean something only to the process that asked for it.
//!
//! ```text
//! caller's namespace       daemon's namespace               the server's namespace
//! bundle/rootfs ──fd──┐    / (slave of the host)            / = the shared directory, read-only
//! /srv/data     ──fd──┼──▶ <shared directory, tmpfs> ─────▶ ├── c1/rootfs
//!                     └──▶ ├── c1/rootfs, c1/mount-0   slave └── c1/mount-0
//! ```
//!
//! The directory is a shared mount and the server's copy of it a slave: a later mount travels to the server by itself,
//! an unmount too, and nothing travels back.
//!
//! # The server
//!
//! [`virtiofs::spawn`] starts the server: the running executable once more, under the name [`virtiofs::ROLE`], whose
//! `main` must then call [`virtiofs::role_main`]. It is born in namespaces of its own (so the jail costs no second
//! process), makes the shared directory its root, gives up what it does not need, and only then reads the first byte
//! from the VMM. The guest reaches it through shared memory, so it is taken to be in the guest's hands: a guest that
//! makes it crash has lost its file system and nothing else.
//!
//! What such a guest would hold: files beneath the shared directory, as any user, through mounts that are `nodev`, `nosuid`
//! and `noexec` on the host (a guest neither executes nor opens devices *on the host*, and what a set-user-ID bit means is
//! decided by the guest's own mount, so it notices none of the three). No other file, process, network or IPC object has
//! a name there; `/proc` is absent but for the one directory of the server's own descriptors, which cannot be left upwards.
//!
//! The parent makes the listening socket and connects to it before the server runs. The VMM's first
//! messages wait in the socket, so nobody waits for the server to be ready.

mod error;
pub mod share;
mod sys;
pub mod virtiofs;

pub use error::Error;
