//! Paths inside a container's root file system, resolved as the container would, whatever links it has made.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

/// How many links are followed, as the kernel does.
const MAX_LINKS: usize = 40;

/// The kernel resolves with the root as if it was ours, and no link leads out of it.
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A container's root.
pub struct Root(OwnedFd);

/// Something inside a root, as a place to mount on.
pub struct Place {
    /// An `O_PATH` descriptor.
    pub fd: OwnedFd,
    /// Its mode, as stat(2) has it.
    pub mode: u32,
    /// It has just been made.
    pub made: bool,
}

impl Place {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }
}

/// What to make when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// An empty file.
    File,
}

impl Root {
    /// The root that a descriptor stands for.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Opens what is there.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        loop {
            // EAGAIN: something was renamed meanwhile, and the kernel cannot be sure.
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), RESOLVE) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Finds a place to mount on, or makes it with the directories that lead there (mode 0755).
    ///
    /// # Errors
    /// When it cannot be made, for instance because the file system is read-only.
    pub fn place(&self, path: &Path, kind: Kind) -> io::Result<Place> {
        match self.open(path, OFlags::PATH) {
            Ok(fd) => Ok(Place { mode: fstat(&fd)?.st_mode, fd, made: false }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fd = self.make(&self.follow(path)?, kind)?;
                Ok(Place { mode: fstat(&fd)?.st_mode, fd, made: true })
            }
            Err(error) => Err(error),
        }
    }

    /// Where a path leads if every link is followed, those included that lead to nothing yet. Without a leading slash.
    fn follow(&self, path: &Path) -> io::Result<PathBuf> {
        let names = |path: &Path| -> Vec<OsString> {
            let names = path.components().filter_map(|component| match component {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some("..".into()),
                _ => None,
            });
            names.rev().collect()
        };
        let mut rest = names(path);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&name);
            let link =
                self.open(&next, OFlags::PATH | OFlags::NOFOLLOW).and_then(|fd| Ok(readlinkat(&fd, "", Vec::new())?));
            // It is not there, or not a link.
            let Ok(target) = link else {
                done = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.has_root() {
                done = PathBuf::new();
            }
            rest.extend(names(&target));
        }
        Ok(done)
    }

    /// Makes a path that has no links and that is not there.
    fn make(&self, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().ok_or(Errno::EXIST)?;
        let parent = match self.open(parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(parent, Kind::Dir)?,
            other => other?,
        };
        let mode = Mode::from_raw_mode(0o755);
        match kind {
            Kind::Dir => mkdirat(&parent, name, mode).or_else(ignore_exists)?,
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, name, flags, mode).map(drop).or_else(ignore_exists)?;
            }
        }
        Ok(openat2(
            &parent,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH,
        )?)
    }

    /// Opens the directory that `path` is in, making it if needed, and gives the last name.
    ///
    /// # Errors
    /// As [`Root::place`].
    pub fn parent_of(&self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        Ok((self.place(path.parent().unwrap_or(Path::new("/")), Kind::Dir)?.fd, name))
    }
}

fn ignore_exists(error: Errno) -> Result<(), Errno> {
    if error == Errno::EXIST { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kata-agent-root-{name}-{}", std::process::id()));
            std::fs::create_dir_all(path.join("root")).unwrap();
            Self(path)
        }

        fn root(&self) -> Root {
            Root::new(std::fs::File::open(self.0.join("root")).unwrap().into())
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.join("root").join(path)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_is_missing_is_made() {
        let tree = Tree::new("made");
        let dir = tree.root().place(Path::new("/a/b/c"), Kind::Dir).unwrap();
        assert!(dir.made && dir.is_dir() && tree.at("a/b/c").is_dir());
        let file = tree.root().place(Path::new("/a/d/file"), Kind::File).unwrap();
        assert!(file.made && !file.is_dir() && tree.at("a/d/file").is_file());
        assert!(!tree.root().place(Path::new("a/b"), Kind::Dir).unwrap().made);
    }

    #[test]
    fn links_stay_inside_also_those_that_lead_to_nothing() {
        let tree = Tree::new("links");
        symlink("/../../outside", tree.at("dangling")).unwrap();
        symlink("dangling", tree.at("second")).unwrap();
        symlink("/", tree.at("top")).unwrap();
        tree.root().place(Path::new("/second/x"), Kind::Dir).unwrap();
        assert!(tree.at("outside/x").is_dir());
        assert!(!tree.0.join("outside").exists());
        tree.root().place(Path::new("top/../../../y"), Kind::Dir).unwrap();
        assert!(tree.at("y").is_dir());
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let tree = Tree::new("loop");
        symlink("b", tree.at("a")).unwrap();
        symlink("a", tree.at("b")).unwrap();
        let error = tree.root().place(Path::new("a"), Kind::Dir).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let tree = Tree::new("file");
        std::fs::write(tree.at("f"), "").unwrap();
        let error = tree.root().place(Path::new("f/x"), Kind::Dir).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    }
}
