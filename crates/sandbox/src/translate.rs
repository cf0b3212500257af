//! From the caller's configuration to the guest's: what is shared, under which name, and what the agent is told.

use std::{os::fd::OwnedFd, path::Path};

use agent_api::{GUEST_SHARED_DIR, SeccompFilter};
use hypervisor::Arch;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    bundle::{Bundle, MountSource},
};

/// A file or directory of the host that the guest shall see. Its descriptor travels beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
    /// Where, below the shared directory.
    pub(crate) name: String,
    /// Whether the guest is kept from writing, on the host's side.
    pub(crate) read_only: bool,
}

/// What a container needs.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(crate) spec: Spec,
    pub(crate) seccomp: Option<SeccompFilter>,
    pub(crate) shares: Vec<Share>,
    pub(crate) trees: Vec<OwnedFd>,
}

/// What the machine needs beyond its configuration, from the container's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Demand {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
}

/// Memory the guest's kernel and agent take beside the container, MiB.
const GUEST_OVERHEAD_MIB: u64 = 128;

/// Opens what is shared, in the caller's mount namespace, and rewrites every host path.
pub(crate) fn translate(id: &str, bundle: &Bundle, arch: Arch) -> Result<Translated> {
    let mut spec = bundle.spec.clone();
    let mut shares = vec![Share { name: format!("{id}/rootfs"), read_only: false }];
    let mut trees = vec![open_tree(&bundle.rootfs, true)?];

    if let Some(root) = spec.root_mut() {
        root.set_path(guest_path(&shares[0].name).into());
    }
    let sources = bundle.mount_sources()?;
    for (index, (mount, source)) in spec.mounts_mut().iter_mut().flatten().zip(sources).enumerate() {
        match source {
            MountSource::Guest => {}
            MountSource::GuestDevice(path) => {
                mount.set_source(Some(path.into()));
            }
            MountSource::Host(path) => {
                let options = mount.options().as_deref().unwrap_or_default();
                let asks = |name: &str| options.iter().any(|option| option == name);
                // Later options win, as in mount(8).
                let read_only =
                    options.iter().rev().find(|o| ["ro", "rw", "rro"].contains(&o.as_str())).is_some_and(|o| o != "rw");
                let recursive = !asks("bind") || asks("rbind");
                let share = Share { name: format!("{id}/mounts/{index}"), read_only };
                trees.push(open_tree(&path, recursive)?);
                mount.set_source(Some(guest_path(&share.name).into()));
                shares.push(share);
            }
        }
    }
    if trees.len() + 3 > crate::passing::MAX_DESCRIPTORS {
        return Err(Error::State(format!(
            "the container has {} bind mounts; {} are the most that can be shared",
            trees.len() - 1,
            crate::passing::MAX_DESCRIPTORS - 4
        )));
    }

    let mut seccomp = None;
    if let Some(linux) = spec.linux_mut() {
        if let Some(profile) = linux.seccomp() {
            seccomp = Some(crate::seccomp::compile(profile, arch).map_err(|problem| Error::Bundle {
                file: bundle.dir.join("config.json"),
                field: "linux.seccomp".into(),
                problem,
            })?);
        }
        linux.set_seccomp(None);
        // The host's cgroup path says nothing in the guest, where the agent names its own.
        linux.set_cgroups_path(None);
        if let Some(namespaces) = linux.namespaces_mut() {
            // One machine is one pod: its containers share the guest's own network.
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        }
    }
    Ok(Translated { spec, seccomp, shares, trees })
}

fn guest_path(name: &str) -> String {
    format!("{GUEST_SHARED_DIR}/{name}")
}

fn open_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    Ok(devices::share::open_tree(path, recursive)?)
}

/// How large the machine must be: at least as configured, and large enough for the container's own limits.
pub(crate) fn demand(spec: &Spec, config: &config::Qemu) -> Demand {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory_limit = resources
        .and_then(|r| r.memory().as_ref())
        .and_then(|memory| memory.limit())
        .and_then(|limit| u64::try_from(limit).ok())
        .map_or(0, |bytes| bytes.div_ceil(1 << 20) + GUEST_OVERHEAD_MIB);
    let host_memory = rustix::system::sysinfo().totalram as u64 / (1 << 20);
    // A limit above the host's memory is "no limit" in other words.
    let memory_limit = if memory_limit > host_memory { 0 } else { memory_limit };
    let cpus = resources
        .and_then(|r| r.cpu().as_ref())
        .and_then(|cpu| Some((u64::try_from(cpu.quota()?).ok()?, cpu.period().filter(|p| *p > 0)?)))
        .map_or(0, |(quota, period)| quota.div_ceil(period));
    let host_cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    Demand {
        vcpus: config.default_vcpus.max(cpus.min(host_cpus) as u32),
        memory_mib: config.default_memory.max(memory_limit as u32),
    }
}
