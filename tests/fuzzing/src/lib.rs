//! Every reader of foreign bytes as a function of bytes, with what must hold whatever they are.
//!
//! `make fuzz` has a fuzzer look for bytes with which one of them panics, allocates without bound, hangs, or breaks an assertion here
//! (docs/fuzzing.md). What it keeps in `fuzz/corpus` is run through the same functions by `tests/corpus.rs`, as an ordinary test.

// An unwrap that fails is what is looked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../crates/agent/src/spec.rs"]
#[allow(missing_docs, dead_code)]
mod agent_spec;
mod bundle;
mod bytes;
mod channel;
mod frames;
mod host;
mod images;
mod place;
mod scratch;
mod settings;
mod sources;
mod vhost_user;
mod virtiofs;

/// A reader of foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: that of the fuzz target and of its directory in `fuzz/corpus`.
    pub name: &'static str,
    /// Whose bytes it reads, and which.
    pub reads: &'static str,
    /// Reads some. Returns if all is well.
    pub run: fn(&[u8]),
}

/// All of them.
// A line each: scripts/fuzz.sh reads them, too.
#[rustfmt::skip]
pub const TARGETS: [Target; 18] = [
    Target { name: "proxy", reads: "the guest's: yamux frames of the channel, on both ends", run: channel::frames },
    Target { name: "agent_reply", reads: "the guest's: replies of the agent, as the host reads them", run: frames::reply },
    Target { name: "agent_request", reads: "the host's: requests, as the agent reads them", run: frames::request },
    Target { name: "agent_names", reads: "the guest's: queries for names, and their answers", run: frames::names },
    Target { name: "guest_text", reads: "the guest's: console, names, figures", run: host::guest_text },
    Target { name: "qmp", reads: "QEMU's, which a guest may have taken over: QMP", run: host::qmp },
    Target { name: "virtiofs_requests", reads: "the guest's: sequences of FUSE requests", run: virtiofs::requests },
    Target { name: "virtiofs_rings", reads: "the guest's: virtqueues of the file server, in its memory", run: virtiofs::rings },
    Target { name: "vhost_user", reads: "QEMU's: messages and descriptors of vhost-user to the file server", run: vhost_user::messages },
    Target { name: "bundle", reads: "the engine's: config.json, seccomp profiles", run: bundle::config },
    Target { name: "state", reads: "the disk's: state.json", run: bundle::state },
    Target { name: "daemon", reads: "a caller's: calls to the sandbox's daemon, and its replies", run: frames::daemon },
    Target { name: "configuration", reads: "the administrator's: configuration.toml", run: settings::configuration },
    Target { name: "annotations", reads: "who writes a pod: annotations", run: settings::annotations },
    Target { name: "shim_options", reads: "containerd's: options of the runtime", run: host::options },
    Target { name: "netlink", reads: "the kernel's: links and attributes of rtnetlink", run: host::netlink },
    Target { name: "guest_image", reads: "who makes a guest: kernels, partition tables, verity parameters", run: images::guest },
    Target { name: "guest_sources", reads: "a mirror's: Alpine's indexes and packages; who makes an image: OCI layouts and layers", run: sources::read },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
