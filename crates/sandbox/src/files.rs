//! Volumes of files that change while a pod runs: a ConfigMap, a Secret, a projected or downward volume.
//!
//! The kubelet keeps them up to date by exchanging a symbolic link (`..data`). A watcher in a container sees a change only if the
//! guest's own kernel made it, so these volumes are not shared but copied, at first and whenever they change.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use agent_api::storage::{Entry, EntryKind};

use crate::{Error, Result};

/// Names of the kubelet's volume plugins whose volumes are such files.
const PLUGINS: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];

/// Contents of a volume at most, bytes. Kubernetes allows 1 MiB.
const MOST_BYTES: u64 = 2 << 20;
/// Files of a volume at most.
const MOST_ENTRIES: usize = 4096;
/// Directories within each other at most.
const MOST_DEPTH: usize = 16;

/// Whether a directory is such a volume, by its place: `.../volumes/PLUGIN/NAME`.
pub(crate) fn is_volume(path: &Path) -> bool {
    let plugin = path.parent().and_then(Path::file_name);
    plugin.is_some_and(|name| PLUGINS.iter().any(|plugin| name == *plugin)) && path.is_dir()
}

/// All that is in a volume.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::State`] when there is more in it than Kubernetes makes.
pub(crate) fn read(volume: &Path) -> Result<Vec<Entry>> {
    let mut reader = Reader { volume, entries: Vec::new(), bytes: 0 };
    reader.directory(Path::new(""), 0)?;
    Ok(reader.entries)
}

struct Reader<'a> {
    volume: &'a Path,
    entries: Vec<Entry>,
    bytes: u64,
}

impl Reader<'_> {
    fn directory(&mut self, below: &Path, depth: usize) -> Result<()> {
        let path = self.volume.join(below);
        let failed = |e: io::Error| Error::io(format!("read the volume {}", path.display()), e);
        let mut names: Vec<_> = fs::read_dir(&path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>())
            .map_err(failed)?;
        names.sort();
        for name in names {
            let (below, path) = (below.join(&name), path.join(&name));
            let failed = |e: io::Error| Error::io(format!("read {}", path.display()), e);
            let metadata = fs::symlink_metadata(&path).map_err(failed)?;
            let kind = if metadata.is_dir() {
                EntryKind::Directory
            } else if metadata.is_symlink() {
                EntryKind::Link(fs::read_link(&path).map_err(failed)?.to_string_lossy().into_owned())
            } else if metadata.is_file() {
                self.bytes += metadata.len();
                self.check(depth)?;
                let bytes = fs::read(&path).map_err(failed)?;
                String::from_utf8(bytes).map_or_else(|error| EntryKind::Bytes(error.into_bytes()), EntryKind::Text)
            } else {
                continue;
            };
            let is_directory = kind == EntryKind::Directory;
            let Some(text) = below.to_str() else {
                return Err(Error::State(format!(
                    "the name of {} is not UTF-8, as a volume's must be",
                    path.display()
                )));
            };
            self.entries.push(Entry {
                path: text.into(),
                kind,
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
            self.check(depth)?;
            if is_directory {
                self.directory(&below, depth + 1)?;
            }
        }
        Ok(())
    }

    fn check(&self, depth: usize) -> Result<()> {
        if self.bytes > MOST_BYTES || self.entries.len() > MOST_ENTRIES || depth > MOST_DEPTH {
            return Err(Error::State(format!(
                "the volume {} is larger than a ConfigMap or Secret can be: at most {MOST_BYTES} bytes in {MOST_ENTRIES} files",
                self.volume.display()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_of_the_kubelet_is_read_with_its_links() {
        let top = tempfile::tempdir().unwrap();
        let volume = top.path().join("volumes/kubernetes.io~configmap/settings");
        fs::create_dir_all(volume.join("..2026")).unwrap();
        fs::write(volume.join("..2026/key"), "value").unwrap();
        fs::write(volume.join("..2026/raw"), b"\xff").unwrap();
        std::os::unix::fs::symlink("..2026", volume.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/key", volume.join("key")).unwrap();
        assert!(is_volume(&volume) && !is_volume(top.path()));
        let entries = read(&volume).unwrap();
        let found: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.kind.clone())).collect();
        assert_eq!(
            found,
            [
                ("..2026", EntryKind::Directory),
                ("..2026/key", EntryKind::Text("value".into())),
                ("..2026/raw", EntryKind::Bytes(vec![0xff])),
                ("..data", EntryKind::Link("..2026".into())),
                ("key", EntryKind::Link("..data/key".into())),
            ]
        );
    }

    #[test]
    fn a_volume_that_is_too_large_is_refused() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("big"), vec![b'x'; MOST_BYTES as usize + 1]).unwrap();
        assert!(read(top.path()).unwrap_err().to_string().contains("larger than a ConfigMap"));
    }
}
