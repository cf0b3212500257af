//! What dead shims have left behind, where containerd did not come to call `delete`; and where the sandboxes of living ones are.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
};

use sandbox::{
    leftovers::Leftover,
    store::{ContainerState, Store},
};

use crate::{
    Error, Result,
    backend::{self, STATE_ROOT},
    bootstrap::socket,
    group::{Brief, Network},
    monitor,
};

/// The sandbox of a shim that is gone.
#[derive(Debug)]
pub struct ShimLeftover {
    /// containerd's namespace.
    pub namespace: String,
    /// Its state directory, and what that names.
    pub sandbox: Leftover,
    /// Its sockets, on which nobody answers.
    pub sockets: Vec<PathBuf>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What can be removed.
    pub leftovers: Vec<ShimLeftover>,
    /// What nothing can be said about, and why: it stays.
    pub unclear: Vec<(PathBuf, String)>,
}

/// The state directories of shims, by containerd's namespaces.
///
/// # Errors
/// [`Error::Io`] when they cannot be read.
pub fn stores() -> Result<Vec<(String, Store)>> {
    let entries = match fs::read_dir(STATE_ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("read {STATE_ROOT}"), error)),
    };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names.into_iter().map(|name| (name.clone(), Store::new(backend::state_root(&name)))).collect())
}

/// What shims have left behind.
///
/// # Errors
/// When state directories cannot be read.
pub fn find() -> Result<Found> {
    let mut all = Found::default();
    for (namespace, store) in stores()? {
        let found = store.leftovers()?;
        all.unclear.extend(found.unclear);
        all.leftovers.extend(found.leftovers.into_iter().map(|sandbox| {
            let bundle = sandbox.state().map(|state| state.bundle.join("address"));
            let address = bundle.and_then(|file| fs::read_to_string(file).ok());
            let sockets =
                address.as_deref().and_then(socket::path_of).into_iter().chain([monitor::socket(sandbox.id())]);
            let sockets = sockets.filter(|path| is_dead(path)).collect();
            ShimLeftover { namespace: namespace.clone(), sandbox, sockets }
        }));
    }
    Ok(all)
}

/// Whether a path is a socket on which nobody answers.
fn is_dead(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl ShimLeftover {
    /// Removes it.
    ///
    /// # Errors
    /// As [`Leftover::remove`].
    pub fn remove(self) -> Result<()> {
        // Before what they are found by.
        for path in self.sockets.iter().filter(|path| is_dead(path)) {
            let _gone = fs::remove_file(path);
        }
        monitor::remove_directory_of(self.sandbox.id());
        self.sandbox.remove()?;
        Store::new(backend::state_root(&self.namespace)).remove_if_empty(1);
        Ok(())
    }
}

/// The network namespace that a container was to have, by its bundle.
pub fn network_of(state: &ContainerState) -> Option<PathBuf> {
    match Brief::read(&state.bundle).ok()??.network() {
        Network::At(path) => Some(path),
        Network::Host | Network::New => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_answers_on_is_dead() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert!(!is_dead(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(!is_dead(&path));
        drop(listener);
        assert!(is_dead(&path));
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(!is_dead(&file));
    }

    #[test]
    fn the_network_namespace_is_the_bundles() {
        let bundle = tempfile::tempdir().unwrap();
        let state = ContainerState::new("c", bundle.path());
        assert_eq!(network_of(&state), None);
        let config = r#"{"linux":{"namespaces":[{"type":"network","path":"/run/netns/a"}]}}"#;
        fs::write(bundle.path().join("config.json"), config).unwrap();
        assert_eq!(network_of(&state), Some("/run/netns/a".into()));
    }
}
