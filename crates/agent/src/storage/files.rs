//! Volumes of files that the host keeps up to date: configuration, secrets and tokens of Kubernetes.
//!
//! The kubelet replaces such a volume in one step: the files are in a directory named by the time, the link `..data` leads to it, and
//! what containers open are links through `..data`. A new version is a new directory, and then `..data` is replaced by
//! rename(2). The host sends the volume as it stands after that, and it is brought about here in the same order: new directories
//! and files, then links, of which `..data` is the first, then what is gone is removed. So a reader sees the old or the new files, and a
//! watcher the event that it waits for. A file that is not in such a directory is replaced by rename, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use agent_api::Fault;
use agent_api::storage::{Entry, EntryKind};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Uid, chownat, fchmod, fchown, mkdirat, openat, openat2,
    readlinkat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::fault::{Context, invalid};

/// Most bytes in the files of one volume. Kubernetes allows one MiB for each source of a projected volume.
pub const MAX_BYTES: usize = 16 << 20;
/// Most entries of a volume.
pub const MAX_ENTRIES: usize = 8192;
/// The link through which a version of all files is seen.
const CURRENT: &str = "..data";
/// What something is called before it is renamed to its place.
const TEMPORARY: &str = "..data_tmp";

/// Refuses entries that are no tree, or too many.
pub fn check(entries: &[Entry]) -> Result<(), Fault> {
    if entries.len() > MAX_ENTRIES {
        return Err(invalid(format!("the volume has {} entries, expected at most {MAX_ENTRIES}", entries.len())));
    }
    let bytes: usize = entries.iter().map(|entry| contents(entry).map_or(0, <[u8]>::len)).sum();
    if bytes > MAX_BYTES {
        return Err(invalid(format!("the volume has {bytes} bytes, expected at most {MAX_BYTES}")));
    }
    let mut known = BTreeMap::new();
    for entry in entries {
        let path = entry.path.as_str();
        let wrong = |why: &str| Err(invalid(format!("the volume has the entry {path:?}, {why}")));
        if path.contains('\0') || path.split('/').any(|name| matches!(name, "" | "." | ".." | TEMPORARY)) {
            return wrong("expected a relative path of plain components");
        }
        if path.rsplit_once('/').is_some_and(|(above, _)| known.get(above) != Some(&true)) {
            return wrong("expected the directory that it is in before it");
        }
        if known.insert(path, entry.kind == EntryKind::Directory).is_some() {
            return wrong("which is there twice");
        }
    }
    Ok(())
}

fn contents(entry: &Entry) -> Option<&[u8]> {
    match &entry.kind {
        EntryKind::Text(text) => Some(text.as_bytes()),
        EntryKind::Bytes(bytes) => Some(bytes),
        EntryKind::Directory | EntryKind::Link(_) => None,
    }
}

/// Replaces what is in the volume that is mounted at a path.
///
/// # Errors
/// As [`fill`].
pub fn replace(path: &Path, entries: &[Entry]) -> Result<(), Fault> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).context(|| format!("open {}", path.display()))?;
    fill(&root, entries)
}

/// Makes what is in a directory what is given.
///
/// # Errors
/// The first failure. What comes later in the order is not done then: links still lead to the old files.
pub fn fill(root: &OwnedFd, entries: &[Entry]) -> Result<(), Fault> {
    let failed = |entry: &Entry| format!("writing the volume's entry {:?}", entry.path);
    let (links, others): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| matches!(entry.kind, EntryKind::Link(_)));
    for entry in others {
        put(root, entry).context(|| failed(entry))?;
    }
    // Links inside of new directories have to be there before one leads to them.
    let (nested, top): (Vec<&Entry>, Vec<&Entry>) = links.into_iter().partition(|entry| entry.path.contains('/'));
    let (current, others): (Vec<&Entry>, Vec<&Entry>) = top.into_iter().partition(|entry| entry.path == CURRENT);
    for entry in nested.into_iter().chain(current).chain(others) {
        put(root, entry).context(|| failed(entry))?;
    }
    let mut kept = BTreeSet::new();
    kept.extend(entries.iter().map(|entry| entry.path.as_str()));
    remove_others(root, "", &kept).context(|| "removing what the volume has no more".into())
}

fn put(root: &OwnedFd, entry: &Entry) -> io::Result<()> {
    let (above, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
    let dir = open_dir(root, above)?;
    let there = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(error.into()),
    };
    let is_dir = entry.kind == EntryKind::Directory;
    // Only what is of the same sort can be replaced in one step.
    if there.is_some_and(|there| (there == FileType::Directory) != is_dir) {
        remove(&dir, name)?;
    }
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let mode = Mode::from_raw_mode(entry.mode & 0o7777);
    match &entry.kind {
        EntryKind::Directory => {
            mkdirat(&dir, name, Mode::RWXU).or_else(|error| if error == Errno::EXIST { Ok(()) } else { Err(error) })?;
            let made = open_dir(&dir, name)?;
            fchown(&made, Some(uid), Some(gid))?;
            fchmod(&made, mode)?;
        }
        EntryKind::Link(target) => {
            if there == Some(FileType::Symlink) && readlinkat(&dir, name, Vec::new())?.as_bytes() == target.as_bytes() {
                return Ok(());
            }
            forget(&dir, TEMPORARY)?;
            symlinkat(target.as_str(), &dir, TEMPORARY)?;
            chownat(&dir, TEMPORARY, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            renameat(&dir, TEMPORARY, &dir, name)?;
        }
        EntryKind::Text(_) | EntryKind::Bytes(_) => {
            let bytes = contents(entry).unwrap_or_default();
            if there == Some(FileType::RegularFile) && is_same(&dir, name, bytes)? {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&dir, name, flags, Mode::empty())?;
                fchown(&file, Some(uid), Some(gid))?;
                return Ok(fchmod(&file, mode)?);
            }
            forget(&dir, TEMPORARY)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = std::fs::File::from(openat(&dir, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)?);
            io::Write::write_all(&mut file, bytes)?;
            fchown(&file, Some(uid), Some(gid))?;
            fchmod(&file, mode)?;
            renameat(&dir, TEMPORARY, &dir, name)?;
        }
    }
    Ok(())
}

/// Whether a file has these contents already: replacing it would only wake its watchers.
fn is_same(dir: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<bool> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if u64::try_from(stat.st_size) != Ok(bytes.len() as u64) {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut there = Vec::with_capacity(bytes.len());
    let file = std::fs::File::from(openat(dir, name, flags, Mode::empty())?);
    io::Read::read_to_end(&mut io::Read::take(file, bytes.len() as u64 + 1), &mut there)?;
    Ok(there == bytes)
}

/// Opens a directory of the volume. No links are followed: a container may be allowed to write here.
fn open_dir(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.is_empty() { "." } else { path };
    loop {
        match openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
            Err(Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
}

/// Removes everything from a directory that is not to be kept; links first, because they lead to the rest.
fn remove_others(root: &OwnedFd, path: &str, kept: &BTreeSet<&str>) -> io::Result<()> {
    let dir = open_dir(root, path)?;
    let (dirs, others): (Vec<_>, Vec<_>) = names(&dir)?.into_iter().partition(|(_, kind)| *kind == FileType::Directory);
    for (name, kind) in others.into_iter().chain(dirs) {
        let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        if !kept.contains(below.as_str()) {
            remove(&dir, &name)?;
        } else if kind == FileType::Directory {
            remove_others(root, &below, kept)?;
        }
    }
    Ok(())
}

/// The names in a directory and what they are. Names that are no text are none that the host has given; they are left alone.
fn names(dir: &OwnedFd) -> io::Result<Vec<(String, FileType)>> {
    let mut buffer = Vec::with_capacity(8192);
    let mut names = Vec::new();
    // A descriptor of its own, because the position in the directory is the descriptor's.
    let again = open_dir(dir, "")?;
    let mut entries = RawDir::new(&again, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push((name.to_owned(), entry.file_type())),
        }
    }
    Ok(names)
}

/// Removes something with everything in it.
fn remove(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {
            let below = open_dir(dir, name)?;
            for (inner, _) in names(&below)? {
                remove(&below, &inner)?;
            }
            Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
        }
        other => Ok(other?),
    }
}

fn forget(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match remove(dir, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests_in::own_namespace;
    use rustix::fs::inotify;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn entry(path: &str, kind: EntryKind) -> Entry {
        let mode = if kind == EntryKind::Directory { 0o755 } else { 0o640 };
        Entry { path: path.into(), kind, mode, uid: 3, gid: 7 }
    }

    fn text(path: &str, text: &str) -> Entry {
        entry(path, EntryKind::Text(text.into()))
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(path, EntryKind::Link(target.into()))
    }

    /// A volume as the kubelet makes it.
    fn version(time: &str, files: &[(&str, &str)]) -> Vec<Entry> {
        let mut entries = vec![entry(time, EntryKind::Directory)];
        entries.extend(files.iter().map(|(name, contents)| text(&format!("{time}/{name}"), contents)));
        entries.extend(files.iter().map(|(name, _)| link(name, &format!("..data/{name}"))));
        entries.push(link("..data", time));
        entries
    }

    #[test]
    fn a_version_replaces_another_one_as_the_kubelet_does_it() {
        own_namespace("files", |dir| {
            let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
            replace(dir, &version("..2026_11_26_01", &[("a", "1"), ("gone", "x")])).unwrap();
            assert_eq!((read("a").as_deref(), read("gone").as_deref()), (Some("1"), Some("x")));
            let stat = std::fs::metadata(dir.join("a")).unwrap();
            assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o640, 3, 7));
            let old = std::fs::File::open(dir.join("a")).unwrap();

            let watcher = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
            inotify::add_watch(&watcher, dir, inotify::WatchFlags::MOVED_TO).unwrap();
            replace(dir, &version("..2026_11_26_02", &[("a", "2"), ("new", "y")])).unwrap();
            assert_eq!((read("a").as_deref(), read("new").as_deref(), read("gone")), (Some("2"), Some("y"), None));
            assert!(!dir.join("..2026_11_26_01").exists());
            assert!(std::fs::symlink_metadata(dir.join("gone")).is_err());
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&watcher, &mut buffer);
            let event = events.next().unwrap();
            assert_eq!(event.file_name().unwrap().to_str().unwrap(), "..data", "the first thing that is seen");
            // Whoever has the old file open still has the old contents.
            assert_eq!(std::io::read_to_string(old).unwrap(), "1");
            replace(dir, &[]).unwrap();
            assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
        });
    }

    #[test]
    fn what_is_the_same_is_left_alone_and_sorts_may_change() {
        own_namespace("sorts", |dir| {
            let bytes = entry("bytes", EntryKind::Bytes(vec![0, 255]));
            replace(dir, &[text("same", "s"), bytes, text("x", "file"), link("y", "same")]).unwrap();
            let inode = |name: &str| std::fs::symlink_metadata(dir.join(name)).unwrap().ino();
            let before = (inode("same"), inode("y"));
            let x = [entry("x", EntryKind::Directory), text("x/inner", "i")];
            replace(dir, &[&[text("same", "s"), link("y", "same")], &x[..]].concat()).unwrap();
            assert_eq!((inode("same"), inode("y")), before);
            assert_eq!(std::fs::read_to_string(dir.join("x/inner")).unwrap(), "i");
            replace(dir, &[link("x", "nowhere")]).unwrap();
            assert!(std::fs::symlink_metadata(dir.join("x")).unwrap().is_symlink());
        });
    }

    #[test]
    fn links_that_a_container_made_are_not_followed() {
        own_namespace("evil", |dir| {
            std::fs::create_dir_all(dir.join("outside")).unwrap();
            std::fs::create_dir(dir.join("volume")).unwrap();
            std::fs::write(dir.join("outside/kept"), "").unwrap();
            symlink(dir.join("outside"), dir.join("volume/d")).unwrap();
            symlink(dir.join("outside"), dir.join("volume/stray")).unwrap();
            let entries = [entry("d", EntryKind::Directory), text("d/f", "inside")];
            replace(&dir.join("volume"), &entries).unwrap();
            assert!(dir.join("outside/kept").exists() && !dir.join("outside/f").exists());
            assert!(dir.join("volume/d/f").is_file() && !dir.join("volume/stray").exists());
        });
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let refused = |entries: &[Entry]| check(entries).unwrap_err().message;
        for path in ["/etc/passwd", "a/../b", "", "a//b", "./a", "..data_tmp"] {
            assert!(refused(&[text(path, "")]).contains("plain components"), "{path}");
        }
        assert!(refused(&[text("d/f", ""), entry("d", EntryKind::Directory)]).contains("before it"));
        assert!(refused(&[text("d", ""), text("d/f", "")]).contains("before it"));
        assert!(refused(&[text("f", ""), text("f", "")]).contains("twice"));
        assert!(refused(&[text("f", &"x".repeat(MAX_BYTES + 1))]).contains("at most"));
        check(&version("..now", &[("a", "b")])).unwrap();
    }
}
