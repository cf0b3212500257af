//! Containers that join namespaces of others: pods of Podman, `--network container:NAME` and its like.
//!
//! An engine names a namespace by a process of the host. If that is the one that stands for a container of ours, the new container goes into that
//! one's virtual machine, whose kernel has the namespace. Nobody else's can be joined: they are another kernel's.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use agent_api::CONTAINER_NAMESPACE;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::{
    Error, Result,
    store::{ContainerState, Status, Store},
};

/// The sandbox that a container is to go into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// A container in it.
    pub container: String,
    /// That container's state directory, where the sandbox's daemon answers.
    pub(crate) door: PathBuf,
    /// The sandbox's.
    pub(crate) sandbox: PathBuf,
}

/// Finds out whose namespaces a configuration joins, and has them name containers instead of processes. `file` is where it was read from.
///
/// # Errors
/// [`Error::Bundle`] where that is not one virtual machine's, or nobody's of ours.
pub(crate) fn resolve(store: &Store, file: &Path, spec: &mut Spec) -> Result<Option<Joining>> {
    use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
    let refuse = |index: usize, problem: String| Error::Bundle {
        file: file.into(),
        field: format!("linux.namespaces[{index}]"),
        problem,
    };
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    let Some(namespaces) = namespaces else { return Ok(None) };
    let has_path = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    if !namespaces.iter().any(|namespace| has_path(namespace.path())) {
        return Ok(None);
    }
    let containers = live(store)?;
    let mut joining: Option<(Joining, usize)> = None;
    let mut network = None;
    for (index, namespace) in namespaces.iter_mut().enumerate() {
        let kind = namespace.typ();
        let Some(path) = namespace.path().clone().filter(|_| matches!(kind, Network | Ipc | Pid | Uts)) else {
            continue;
        };
        let Some(owner) = owner(&containers, kind, &path) else {
            let is_host = || network::Namespace::open(&path).and_then(|namespace| namespace.is_host()).unwrap_or(false);
            if kind == Network && (process_of(&path).is_none() || is_host()) {
                // One that an engine has made, or the host's, of which others have to say something.
                continue;
            }
            return Err(refuse(
                index,
                format!(
                    "{} is the {kind} namespace of something that is no container of this runtime here; only those of its own containers can be joined: a virtual machine has a kernel of its own",
                    path.display()
                ),
            ));
        };
        let joined = Joining {
            container: owner.id.clone(),
            door: store.root().join(&owner.id),
            sandbox: sandbox_of(store, owner),
        };
        if kind == Network {
            network = Some(joined.sandbox.clone());
        } else {
            namespace.set_path(Some(format!("{CONTAINER_NAMESPACE}{}", owner.id).into()));
        }
        match &joining {
            Some((other, _)) if other.sandbox != joined.sandbox => {
                return Err(refuse(
                    index,
                    format!(
                        "joins the {kind} namespace of container {:?}, which is in another virtual machine than {:?}, of which it joins another one; a container can be in one of them",
                        joined.container, other.container
                    ),
                ));
            }
            Some(_) => {}
            None => joining = Some((joined, index)),
        }
    }
    match joining {
        Some((joined, index)) if network.is_none() => Err(refuse(
            index,
            format!(
                "joins a namespace of container {0:?} and so goes into its virtual machine, but asks for another network; the containers of a virtual machine share its network: join that of {0:?} too (--network container:{0})",
                joined.container
            ),
        )),
        joining => Ok(joining.map(|(joined, _)| joined)),
    }
}

/// The containers that have not ended.
fn live(store: &Store) -> Result<Vec<ContainerState>> {
    let all = store.list()?.into_iter().filter_map(|(_, state)| state.ok());
    Ok(all.filter(|state| state.status != Status::Stopped && state.pid != 0).collect())
}

/// The directory of the sandbox that a container is in.
fn sandbox_of(store: &Store, state: &ContainerState) -> PathBuf {
    state.sandbox.clone().unwrap_or_else(|| store.root().join(&state.id))
}

fn owner<'a>(containers: &'a [ContainerState], kind: LinuxNamespaceType, path: &Path) -> Option<&'a ContainerState> {
    if let Some(pid) = process_of(path) {
        return containers.iter().find(|state| state.pid == pid);
    }
    if kind != LinuxNamespaceType::Network {
        return None;
    }
    // By what it is, since it may have any name.
    let wanted = identity(path).ok()?;
    containers.iter().find(|state| network_of(state.pid).is_some_and(|network| network == wanted))
}

/// What a namespace is, whatever names it.
///
/// # Errors
/// Those of stat(2).
pub fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    path.metadata().map(|found| (found.dev(), found.ino()))
}

/// The network namespace that a process is in, while there is one.
pub fn network_of(pid: u32) -> Option<(u64, u64)> {
    identity(Path::new(&format!("/proc/{pid}/ns/net"))).ok()
}

/// The process by which a path names a namespace: `/proc/PID/ns/KIND`.
pub fn process_of(path: &Path) -> Option<u32> {
    let mut parts = path.strip_prefix("/proc").ok()?.iter();
    let pid = parts.next()?.to_str()?.parse().ok()?;
    (parts.next()? == "ns").then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ProcessRef;

    fn spec(namespaces: serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "linux": {"namespaces": namespaces}})).unwrap()
    }

    /// A store with a container for which this process stands, and one in its sandbox.
    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for id in ["owner", "member"] {
            let at = store.reserve(id).unwrap();
            let mut state = ContainerState::new(id, "/b");
            state.status = Status::Running;
            state.daemon = ProcessRef::of(std::process::id());
            state.pid = if id == "owner" { std::process::id() } else { 4_000_000 };
            state.sandbox = (id == "member").then(|| dir.path().join("owner"));
            at.save(&state).unwrap();
        }
        (dir, store)
    }

    fn resolved(namespaces: serde_json::Value) -> (Result<Option<Joining>>, Spec) {
        let (_dir, store) = store();
        let mut spec = spec(namespaces);
        let joining = resolve(&store, Path::new("config.json"), &mut spec);
        (joining, spec)
    }

    #[test]
    fn namespaces_of_our_containers_are_joined_by_their_names() {
        let me = std::process::id();
        let (joining, spec) = resolved(serde_json::json!([
            {"type": "network", "path": format!("/proc/{me}/ns/net")},
            {"type": "ipc", "path": "/proc/4000000/ns/ipc"},
            {"type": "mount"},
        ]));
        let joining = joining.unwrap().unwrap();
        assert_eq!((joining.container.as_str(), joining.sandbox.file_name().unwrap()), ("owner", "owner".as_ref()));
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        assert_eq!(namespaces[1].path().as_deref(), Some(Path::new("container:member")));
    }

    #[test]
    fn what_is_nobodys_of_ours_or_has_another_network_is_refused_in_words() {
        let me = std::process::id();
        let words = |namespaces| resolved(namespaces).0.unwrap_err().chain();
        let text = words(serde_json::json!([{"type": "network", "path": "/proc/4000001/ns/net"}]));
        assert!(text.contains("linux.namespaces[0]") && text.contains("no container of this runtime"), "{text}");
        let text = words(serde_json::json!([{"type": "uts", "path": "/run/utsns/x"}]));
        assert!(text.contains("no container of this runtime"), "{text}");
        let text =
            words(serde_json::json!([{"type": "network"}, {"type": "pid", "path": format!("/proc/{me}/ns/pid")}]));
        assert!(text.contains("linux.namespaces[1]") && text.contains("--network container:owner"), "{text}");
    }

    #[test]
    fn a_network_that_an_engine_made_is_no_container() {
        assert_eq!(resolved(serde_json::json!([{"type": "network", "path": "/run/netns/x"}])).0.unwrap(), None);
        assert_eq!(resolved(serde_json::json!([{"type": "network"}, {"type": "pid"}])).0.unwrap(), None);
    }
}
