//! Making a tree of a directory on the host.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{Content, EMPTY, Kind, Node, Tree};
use crate::{Error, run};

impl Tree {
    /// Reads a directory. Nothing is changed in it, and the contents of files are read later, where they are needed.
    ///
    /// What [`EMPTY`] names is taken without its contents, and sockets are left out: neither means anything after a boot.
    ///
    /// # Errors
    /// [`Error::Read`]; [`Error::Unusable`] for devices and named pipes.
    pub(crate) fn read(directory: &Path) -> Result<Tree, Error> {
        let mut reader = Reader { tree: Tree::default(), seen: HashMap::new() };
        reader.directory(directory, Path::new(""))?;
        Ok(reader.tree)
    }
}

struct Reader {
    tree: Tree,
    /// The first name of each file that has several, by device and inode.
    seen: HashMap<(u64, u64), std::path::PathBuf>,
}

impl Reader {
    fn directory(&mut self, directory: &Path, name: &Path) -> Result<(), Error> {
        run::check()?;
        let failed = |source| Error::Read { path: directory.to_path_buf(), source };
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            self.entry(&entry.path(), &name.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path) -> Result<(), Error> {
        let failed = |source| Error::Read { path: path.to_path_buf(), source };
        let found = path.symlink_metadata().map_err(failed)?;
        let kind = found.file_type();
        let node = |kind| Node { kind, mode: found.mode() & 0o7777, uid: found.uid(), gid: found.gid() };
        if kind.is_dir() {
            self.tree.put(name.to_path_buf(), node(Kind::Directory));
            if !EMPTY.iter().any(|empty| name == Path::new(empty)) {
                self.directory(path, name)?;
            }
        } else if kind.is_file() {
            if found.nlink() > 1 {
                let first = self.seen.entry((found.dev(), found.ino())).or_insert_with(|| name.to_path_buf());
                if self.tree.hard_link(first, name.to_path_buf()) {
                    return Ok(());
                }
            }
            let content = Content::OnDisk { path: path.to_path_buf(), length: found.len() };
            self.tree.put(name.to_path_buf(), node(Kind::File(content)));
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            self.tree.put(name.to_path_buf(), node(Kind::Link(target)));
        } else if !kind.is_socket() {
            return Err(Error::unusable(
                path,
                "it is a device or a named pipe, which an image does not hold outside /dev",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_is_read_and_nothing_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("etc")).unwrap();
        fs::create_dir_all(at("run/lock")).unwrap();
        fs::write(at("etc/a"), "text").unwrap();
        fs::set_permissions(at("etc/a"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(at("etc/a"), at("etc/b")).unwrap();
        symlink("/etc/passwd", at("etc/link")).unwrap();
        std::os::unix::net::UnixListener::bind(at("etc/socket")).unwrap();
        let tree = Tree::read(directory.path()).unwrap();
        let names: Vec<_> = tree.iter().map(|(path, _, _)| path.to_str().unwrap()).collect();
        assert_eq!(names, ["etc", "etc/a", "etc/b", "etc/link", "run"]);
        assert_eq!(tree.get("etc/a"), tree.get("etc/b"));
        assert_eq!(tree.get("etc/a").unwrap().mode, 0o4711);
        assert_eq!(tree.get("etc/link").unwrap().kind, Kind::Link("/etc/passwd".into()));
        assert!(matches!(&tree.get("etc/a").unwrap().kind, Kind::File(content) if content.read().unwrap() == b"text"));
    }

    #[test]
    fn a_device_or_pipe_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = Tree::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("pipe is no good: it is a device or a named pipe"), "{error}");
    }
}
