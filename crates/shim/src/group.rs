//! Which pod a container belongs to, by the annotations that CRI implementations write.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{Error, Result};

/// Annotations that name the role of a container, and those that name its sandbox.
const ROLES: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id"),
];

/// What a container is to its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A container with a machine of its own: `ctr run`, Docker, nerdctl.
    Single,
    /// The sandbox container of a pod, the one that others come to.
    Sandbox,
    /// A container in the pod of this name.
    Member(String),
    /// A container that has joined that of this name ([`join`](crate::join)).
    Joined(String),
}

impl Role {
    /// What the annotations say.
    pub fn of(annotations: &HashMap<String, String>) -> Self {
        for (role, sandbox) in ROLES {
            match annotations.get(role).map(String::as_str) {
                Some("sandbox" | "podsandbox") => return Self::Sandbox,
                Some("container") => {
                    if let Some(sandbox) = annotations.get(sandbox).filter(|id| !id.is_empty()) {
                        return Self::Member(sandbox.clone());
                    }
                }
                _ => {}
            }
        }
        Self::Single
    }

    /// The name of the sandbox of a container with this role and name.
    pub fn sandbox<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Self::Single | Self::Sandbox => id,
            Self::Member(sandbox) | Self::Joined(sandbox) => sandbox,
        }
    }
}

/// The part of a bundle's configuration that the shim itself looks at.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Brief {
    /// Annotations.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    #[serde(default)]
    linux: BriefLinux,
    #[serde(default)]
    process: BriefProcess,
    /// What [`Brief::join`] has written down.
    #[serde(skip)]
    joined: Option<String>,
}

/// Where it is written down which container another one has joined: the namespaces that say so go with that container.
const JOINED: &str = "kata-sandbox";

#[derive(Debug, Clone, Default, Deserialize)]
struct BriefProcess {
    #[serde(default)]
    terminal: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct BriefLinux {
    #[serde(default)]
    namespaces: Vec<BriefNamespace>,
}

#[derive(Debug, Clone, Deserialize)]
struct BriefNamespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<PathBuf>,
}

/// The network that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The host's: no network namespace is asked for.
    Host,
    /// A new namespace.
    New,
    /// The namespace that is at this path.
    At(PathBuf),
}

impl Brief {
    /// Reads `config.json` of a bundle; `None` if there is none, as for a sandbox that was made by the sandbox API.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::Io`].
    pub fn read(bundle: &Path) -> Result<Option<Self>> {
        let file = bundle.join("config.json");
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", file.display()), error)),
        };
        let brief = serde_json::from_slice(&bytes);
        let mut brief: Self = brief.map_err(|error| Error::Bundle { file, problem: error.to_string() })?;
        brief.joined = std::fs::read_to_string(bundle.join(JOINED)).ok();
        Ok(Some(brief))
    }

    /// Writes down in the bundle that its container has joined another one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn join(&mut self, bundle: &Path, sandbox: String) -> Result<()> {
        let file = bundle.join(JOINED);
        std::fs::write(&file, &sandbox).map_err(|e| Error::io(format!("write {}", file.display()), e))?;
        self.joined = Some(sandbox);
        Ok(())
    }

    /// The namespaces but that of the network that are others', with their kinds.
    pub fn joined_namespaces(&self) -> impl Iterator<Item = (&str, &Path)> {
        let others = self.linux.namespaces.iter().filter(|namespace| namespace.kind != "network");
        others.filter_map(|namespace| {
            let path = namespace.path.as_deref().filter(|path| !path.as_os_str().is_empty())?;
            Some((namespace.kind.as_str(), path))
        })
    }

    /// The network that it asks for.
    pub fn network(&self) -> Network {
        match self.linux.namespaces.iter().find(|namespace| namespace.kind == "network") {
            None => Network::Host,
            Some(BriefNamespace { path: Some(path), .. }) if !path.as_os_str().is_empty() => Network::At(path.clone()),
            Some(_) => Network::New,
        }
    }

    /// Whether its first process has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.process.terminal
    }

    /// What the container is to its pod.
    pub fn role(&self) -> Role {
        match (Role::of(&self.annotations), &self.joined) {
            (Role::Single, Some(sandbox)) => Role::Joined(sandbox.clone()),
            (role, _) => role,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(pairs: &[(&str, &str)]) -> Role {
        Role::of(&pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn containerd_and_crio_group_alike() {
        for (kind, id) in ROLES {
            assert_eq!(role(&[(kind, "sandbox"), (id, "s")]), Role::Sandbox);
            assert_eq!(role(&[(kind, "container"), (id, "s")]), Role::Member("s".into()));
        }
        assert_eq!(role(&[]), Role::Single);
        assert_eq!(role(&[("io.kubernetes.cri.container-type", "container")]), Role::Single);
    }

    #[test]
    fn a_member_names_its_sandbox_and_others_themselves() {
        assert_eq!(Role::Member("pod".into()).sandbox("c"), "pod");
        assert_eq!(Role::Sandbox.sandbox("pod"), "pod");
        assert_eq!(Role::Single.sandbox("c"), "c");
    }

    #[test]
    fn networks_are_told_apart() {
        let network = |json: &str| serde_json::from_str::<Brief>(json).unwrap().network();
        assert_eq!(network("{}"), Network::Host);
        assert_eq!(network(r#"{"linux":{"namespaces":[{"type":"network"}]}}"#), Network::New);
        assert_eq!(
            network(r#"{"linux":{"namespaces":[{"type":"network","path":"/run/netns/a"}]}}"#),
            Network::At("/run/netns/a".into())
        );
    }
}
