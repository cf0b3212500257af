//! Containers that join another one, as `docker run --network container:NAME` has it: the configuration names namespaces of that
//! container's process, which is its shim. Where that is a shim of ours, they become further containers of its machine.

use std::path::Path;

use network::Namespace;
use sandbox::{
    joining::{identity, network_of, process_of},
    store::Store,
};

use crate::{
    Error, Result,
    backend::state_root,
    group::{Brief, Network},
};

/// Docker's namespace of containerd.
const DOCKER: &str = "moby";

/// The sandbox whose network namespace a container is to have, if it is one of ours.
///
/// # Errors
/// [`Error::Bundle`] for what a virtual machine cannot share: with the host, with a container that is not ours, or with one whose network it does
/// not share.
pub(crate) fn joined(namespace: &str, bundle: &Path, brief: &Brief) -> Result<Option<String>> {
    among(&Store::new(state_root(namespace)), namespace == DOCKER, brief)
        .map_err(|problem| Error::Bundle { file: bundle.join("config.json"), problem })
}

fn among(store: &Store, is_docker: bool, brief: &Brief) -> std::result::Result<Option<String>, String> {
    let found = match brief.network() {
        Network::At(path) => network(store, is_docker, &path)?,
        Network::Host | Network::New => None,
    };
    for (kind, path) in brief.joined_namespaces() {
        let owner = process_of(path).ok_or_else(|| {
            format!(
                "linux.namespaces: the {kind} namespace {} is not a container's: only that of a process of ours can be joined",
                path.display()
            )
        })?;
        let of_found = found.as_ref().is_some_and(|(_, pid)| owner == *pid);
        if !of_found {
            return Err(format!(
                "linux.namespaces: the {kind} namespace of process {owner} cannot be joined without its network: containers that share \
                 one are in one virtual machine, which has one network, and only containers of this runtime can be joined; with Docker, give \
                 --network container:NAME beside --{kind} container:NAME"
            ));
        }
    }
    Ok(found.map(|(sandbox, _)| sandbox))
}

/// The sandbox whose network namespace this is, with its process.
fn network(store: &Store, is_docker: bool, path: &Path) -> std::result::Result<Option<(String, u32)>, String> {
    let refused = |why: &str| format!("linux.namespaces: the network namespace {} {why}", path.display());
    let wanted = identity(path).map_err(|error| refused(&format!("is not there: {error}")))?;
    let namespace = Namespace::open(path).map_err(|error| refused(&error.to_string()))?;
    let is_host = namespace.is_host().map_err(|error| error.to_string())?;
    let states = store.list().map_err(|error| error.chain())?;
    let shims = states.into_iter().filter_map(|(name, state)| {
        let shim = state.ok()?.daemon.filter(sandbox::store::ProcessRef::is_alive)?;
        let theirs = network_of(shim.pid)?;
        // Many may be in the host's: then it is the process that counts.
        (theirs == wanted && (!is_host || process_of(path) == Some(shim.pid))).then_some((name, shim.pid))
    });
    if let Some(found) = shims.min() {
        return Ok(Some(found));
    }
    if is_host {
        return Err(refused(
            "is the host's, which a virtual machine cannot be in; leave it (hostNetwork, --network host) out",
        ));
    }
    // One that is bound to a file was made for whoever names it.
    if is_docker || process_of(path).is_some() {
        return Err(refused(
            "is that of a container of another runtime, from which a virtual machine would take it; run that container with this runtime, too, \
             or connect both to a network of their own",
        ));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sandbox::store::{ContainerState, ProcessRef};

    use super::*;

    /// A container of this process, whose network namespace is that of a child.
    struct World {
        store: Store,
        child: std::process::Child,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                eprintln!("skipped: making namespaces needs root");
                return None;
            }
            let directory = tempfile::tempdir().unwrap();
            let store = Store::new(directory.path());
            let child = std::process::Command::new("unshare").args(["--net", "sleep", "100"]).spawn().unwrap();
            let own = fs::read_link("/proc/self/ns/net").unwrap();
            let theirs = format!("/proc/{}/ns/net", child.id());
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while fs::read_link(&theirs).unwrap() == own {
                assert!(std::time::Instant::now() < end, "unshare does nothing");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Some(Self { store, child, _directory: directory })
        }

        fn ours(&self, id: &str) {
            let dir = self.store.reserve(id).unwrap();
            let mut state = ContainerState::new(id, "/bundle");
            state.daemon = ProcessRef::of(self.child.id());
            dir.save(&state).unwrap();
        }

        fn find(&self, is_docker: bool, namespaces: &[(&str, String)]) -> std::result::Result<Option<String>, String> {
            let namespaces: Vec<_> =
                namespaces.iter().map(|(kind, path)| serde_json::json!({"type": kind, "path": path})).collect();
            let brief = serde_json::from_value(serde_json::json!({"linux": {"namespaces": namespaces}})).unwrap();
            among(&self.store, is_docker, &brief)
        }

        fn path(&self, kind: &str) -> String {
            format!("/proc/{}/ns/{kind}", self.child.id())
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }

    #[test]
    fn a_container_joins_the_sandbox_whose_namespace_it_names() {
        let Some(world) = World::new() else { return };
        let (net, pid, ipc) = (world.path("net"), world.path("pid"), world.path("ipc"));
        let refused = world.find(true, &[("network", net.clone())]).unwrap_err();
        assert!(refused.contains("of another runtime"), "{refused}");
        world.ours("c1");
        assert_eq!(world.find(true, &[("network", net.clone())]), Ok(Some("c1".into())));
        let all = [("network", net.clone()), ("pid", pid.clone()), ("ipc", ipc)];
        assert_eq!(world.find(true, &all), Ok(Some("c1".into())));
        // By another name of the same namespace.
        let other = format!("/proc/{}/task/{}/ns/net", world.child.id(), world.child.id());
        assert_eq!(world.find(false, &[("network", other)]), Ok(Some("c1".into())));
        for namespaces in [vec![("pid", pid.clone())], vec![("network", String::new()), ("pid", pid)]] {
            let refused = world.find(true, &namespaces).unwrap_err();
            assert!(refused.contains("--network container:NAME"), "{refused}");
        }
        let refused = world.find(true, &[("network", net), ("ipc", "/proc/1/ns/ipc".into())]).unwrap_err();
        assert!(refused.contains("process 1 "), "{refused}");
    }

    #[test]
    fn the_host_s_network_and_what_is_not_there_are_refused() {
        let Some(world) = World::new() else { return };
        world.ours("c1");
        let own = format!("/proc/{}/ns/net", std::process::id());
        let refused = world.find(false, &[("network", own)]).unwrap_err();
        assert!(refused.contains("is the host's"), "{refused}");
        let refused = world.find(false, &[("network", "/run/netns/no-such".into())]).unwrap_err();
        assert!(refused.contains("is not there"), "{refused}");
        assert_eq!(world.find(true, &[("network", String::new()), ("pid", String::new())]), Ok(None));
    }
}
