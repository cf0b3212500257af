//! The socket of a pod's shim.

use std::{
    io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Where containerd's shims have their sockets.
const DIRECTORY: &str = "/run/containerd/s";
/// How containerd knows that it is a socket in the file system.
const SCHEME: &str = "unix://";

/// The path of the socket that an address names, if it is where shims have them.
pub(crate) fn path_of(address: &str) -> Option<PathBuf> {
    let path = Path::new(address.trim().strip_prefix(SCHEME)?);
    (path.parent() == Some(Path::new(DIRECTORY))).then(|| path.into())
}

/// Where a pod's shim listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    path: PathBuf,
}

/// What there is at an address.
pub(crate) enum Claim {
    /// A shim that answers.
    Answered,
    /// Nobody; now this socket.
    Ours(UnixListener),
}

impl Address {
    /// That of a pod's shim.
    pub(crate) fn of(containerd: &str, namespace: &str, sandbox: &str) -> Self {
        Self::below(Path::new(DIRECTORY), containerd, namespace, sandbox)
    }

    fn below(directory: &Path, containerd: &str, namespace: &str, sandbox: &str) -> Self {
        let name = Path::new(containerd).join(namespace).join(sandbox);
        let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path: directory.join(digest) }
    }

    /// As containerd is told.
    pub(crate) fn url(&self) -> String {
        format!("{SCHEME}{}", self.path.display())
    }

    /// Whether somebody answers there.
    pub(crate) fn is_answered(&self) -> bool {
        UnixStream::connect(&self.path).is_ok()
    }

    /// Finds the shim that answers there, or takes the place.
    pub(crate) fn claim(&self) -> Result<Claim> {
        let failed = |error| Error::io(format!("listen on {}", self.path.display()), error);
        if let Some(directory) = self.path.parent() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
            made.map_err(|e| Error::io(format!("create {}", directory.display()), e))?;
        }
        let listener = match UnixListener::bind(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if self.is_answered() {
                    return Ok(Claim::Answered);
                }
                // Its shim was killed.
                self.remove();
                UnixListener::bind(&self.path)
            }
            other => other,
        };
        let listener = listener.map_err(failed)?;
        if let Err(error) = std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600)) {
            self.remove();
            return Err(failed(error));
        }
        Ok(Claim::Ours(listener))
    }

    /// Removes the socket.
    pub(crate) fn remove(&self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_one_that_containerd_s_own_shim_would_take() {
        let address = Address::of("/run/containerd/containerd.sock", "default", "abc");
        // printf %s /run/containerd/containerd.sock/default/abc | sha256sum
        let digest = "8cb244a719603fe00870d5ce1d8e1f1db43a654cb993d107df1f1ae23ddffa59";
        assert_eq!(address.url(), format!("unix:///run/containerd/s/{digest}"));
    }

    #[test]
    fn the_second_finds_the_first_and_a_dead_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::below(directory.path(), "/c.sock", "n", "pod");
        let Claim::Ours(first) = address.claim().unwrap() else { panic!("nobody can answer yet") };
        assert!(matches!(address.claim().unwrap(), Claim::Answered));
        drop(first);
        assert!(!address.is_answered());
        let Claim::Ours(_second) = address.claim().unwrap() else { panic!("a dead socket was taken for a live one") };
        assert!(address.is_answered());
        let mode = std::fs::metadata(&address.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
