//! A root file system as a value: what is in it, who owns it, and where contents are to be read from.
//!
//! Every source of a guest image ends in a [`Tree`], and every form of one is written from it. Names in it are never looked up on the
//! host: links are followed within the tree, so an archive with hostile links or names can reach nothing, and a directory that the user
//! names is only read. Neither extended attributes nor times are kept: an image holds none of the first, and one time for all.

pub(crate) mod archive;
mod read;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use crate::{Error, run};

/// As many links as the kernel follows in one path (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;

/// Directories in which an image holds nothing, because the agent mounts something on them, or, the last, because what is there does not
/// outlive a boot.
pub(crate) const EMPTY: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    OnDisk { path: PathBuf, length: u64 },
}

impl Content {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::OnDisk { length, .. } => *length,
        }
    }

    /// Gives `write` all of it, piece by piece.
    pub(crate) fn pieces(&self, mut write: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let (path, length) = match self {
            Content::Bytes(bytes) => return write(bytes),
            Content::OnDisk { path, length } => (path, *length),
        };
        let failed = |source| Error::Read { path: path.clone(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut buffer = vec![0; 1 << 16];
        let mut left = length;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            left = match left.checked_sub(count as u64) {
                Some(0) if count == 0 => return Ok(()),
                Some(left) if count > 0 => left,
                _ => return Err(failed(io::Error::other("it changed while it was being read"))),
            };
            write(buffer.get(..count).unwrap_or_default())?;
        }
    }

    /// All of it, for a file that is known to be small.
    pub(crate) fn read(&self) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        self.pieces(|piece| {
            all.extend(piece);
            Ok(())
        })?;
        Ok(all)
    }
}

/// What something in a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Content),
    Link(PathBuf),
}

/// Something in a tree, under one name or, a file, several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Permissions with the set-id and sticky bits, without the type.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Node {
    pub(crate) fn directory(mode: u32) -> Node {
        Node { kind: Kind::Directory, mode, uid: 0, gid: 0 }
    }

    pub(crate) fn file(mode: u32, content: Content) -> Node {
        Node { kind: Kind::File(content), mode, uid: 0, gid: 0 }
    }

    pub(crate) fn link(target: impl Into<PathBuf>) -> Node {
        Node { kind: Kind::Link(target.into()), mode: 0o777, uid: 0, gid: 0 }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// Identifies a node; names with the same one are hard links.
pub(crate) type Id = usize;

/// A root file system.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// By path from the root, which itself is not in it. A directory comes before what is in it.
    names: BTreeMap<PathBuf, Id>,
    nodes: Vec<Node>,
}

impl Tree {
    /// All names in their order, each with its node.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, Id, &Node)> {
        self.names.iter().filter_map(|(path, id)| Some((path.as_path(), *id, self.nodes.get(*id)?)))
    }

    /// How many names each node has.
    pub(crate) fn links(&self) -> Vec<u32> {
        let mut links = vec![0; self.nodes.len()];
        for id in self.names.values() {
            if let Some(count) = links.get_mut(*id) {
                *count += 1;
            }
        }
        links
    }

    /// What is at a path, links not followed.
    pub(crate) fn get(&self, path: impl AsRef<Path>) -> Option<&Node> {
        self.nodes.get(*self.names.get(path.as_ref())?)
    }

    /// Puts a node at a path, in place of what is there with all below it; the directory must exist, and links are not followed.
    pub(crate) fn put(&mut self, path: PathBuf, node: Node) -> Id {
        let keeps_children = node.is_directory() && self.get(&path).is_some_and(Node::is_directory);
        if !keeps_children {
            self.remove(&path);
        }
        self.nodes.push(node);
        self.names.insert(path, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Gives a node another name; `false` if there is nothing or no file at `existing`.
    pub(crate) fn hard_link(&mut self, existing: &Path, path: PathBuf) -> bool {
        let Some(id) = self.names.get(existing).copied() else { return false };
        if self.nodes.get(id).is_none_or(Node::is_directory) {
            return false;
        }
        if existing != path {
            self.remove(&path);
            self.names.insert(path, id);
        }
        true
    }

    /// Removes what is at a path, with all below it.
    pub(crate) fn remove(&mut self, path: &Path) {
        if self.names.remove(path).is_some() {
            self.empty(path);
        }
    }

    /// Removes all below a path.
    pub(crate) fn empty(&mut self, path: &Path) {
        let below: Vec<PathBuf> = self
            .names
            .range(path.to_path_buf()..)
            .map(|(name, _)| name)
            .skip_while(|name| *name == path)
            .take_while(|name| name.starts_with(path))
            .cloned()
            .collect();
        for name in below {
            self.names.remove(&name);
        }
    }

    /// Where a path leads when links are followed, within the tree. What does not exist is taken as it is written; the error is
    /// the reason why it leads nowhere. `last` says whether a link at the end is followed too.
    pub(crate) fn resolve(&self, path: &Path, last: bool) -> Result<PathBuf, String> {
        let mut at = PathBuf::new();
        let mut rest: Vec<PathBuf> = components(path);
        let mut followed = 0;
        while let Some(next) = rest.pop() {
            if next.as_os_str() == ".." {
                at.pop();
                continue;
            }
            at.push(&next);
            match self.get(&at).map(|node| &node.kind) {
                Some(Kind::Link(target)) if last || !rest.is_empty() => {
                    followed += 1;
                    if followed > MOST_LINKS {
                        return Err(format!("{} leads through too many links", path.display()));
                    }
                    at.pop();
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    rest.extend(components(target));
                }
                Some(Kind::File(_)) if !rest.is_empty() => {
                    return Err(format!("{} leads through {}, which is no directory", path.display(), at.display()));
                }
                _ => {}
            }
        }
        Ok(at)
    }

    /// What a path leads to, links followed.
    pub(crate) fn lookup(&self, path: impl AsRef<Path>) -> Option<&Node> {
        let found = self.resolve(path.as_ref(), true).ok()?;
        self.get(found)
    }

    /// Makes the directory `path` and those above it, those that are missing, following links; returns where it is.
    pub(crate) fn make_directories(&mut self, path: &Path) -> Result<PathBuf, String> {
        let path = self.resolve(path, true)?;
        let mut at = PathBuf::new();
        for component in path.components() {
            at.push(component);
            match self.get(&at) {
                Some(node) if node.is_directory() => {}
                Some(_) => return Err(format!("{} is no directory", at.display())),
                None => {
                    self.put(at.clone(), Node::directory(0o755));
                }
            }
        }
        Ok(path)
    }

    /// Puts a file or link at `path`, following links to its directory, which is made if it is missing.
    pub(crate) fn install(&mut self, path: &Path, node: Node) -> Result<Id, String> {
        let directory = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().ok_or_else(|| format!("{} names no file", path.display()))?;
        Ok(self.put(directory.join(name), node))
    }

    /// Removes what matches one of the patterns: paths in which `*` and `?` stand for any part of a name, and `**` for any
    /// directories. A pattern that ends in `/*` keeps the directory.
    pub(crate) fn remove_matching(&mut self, patterns: &[String]) -> Result<(), Error> {
        for pattern in patterns {
            run::check()?;
            let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
            let matching: Vec<PathBuf> = self.names.keys().filter(|path| matches(&parts, path)).cloned().collect();
            for path in matching {
                self.remove(&path);
            }
        }
        Ok(())
    }
}

fn components(path: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<PathBuf> = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| PathBuf::from(component.as_os_str()))
        .collect();
    parts.reverse();
    parts
}

/// A path from the root without `.` at any place, or `None` if it is the root or leaves it.
pub(crate) fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (clean.as_os_str() != "").then_some(clean)
}

fn matches(pattern: &[&str], path: &Path) -> bool {
    let names: Vec<String> = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    parts_match(pattern, &names)
}

fn parts_match(pattern: &[&str], names: &[&str]) -> bool {
    match (pattern, names) {
        ([], []) => true,
        (["**", rest @ ..], _) => {
            (0..=names.len()).any(|skip| parts_match(rest, names.get(skip..).unwrap_or_default()))
        }
        ([first, pattern @ ..], [name, names @ ..]) => {
            name_matches(first.as_bytes(), name.as_bytes()) && parts_match(pattern, names)
        }
        _ => false,
    }
}

fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            name_matches(rest, name) || matches!(name, [_, name @ ..] if name_matches(pattern, name))
        }
        ([b'?', pattern @ ..], [_, name @ ..]) => name_matches(pattern, name),
        ([a, pattern @ ..], [b, name @ ..]) if a == b => name_matches(pattern, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Node {
        Node::file(0o644, Content::Bytes(text.into()))
    }

    fn names(tree: &Tree) -> Vec<String> {
        tree.iter().map(|(path, _, _)| path.display().to_string()).collect()
    }

    #[test]
    fn links_are_followed_within_the_tree_only() {
        let mut tree = Tree::default();
        tree.install(Path::new("usr/bin/tool"), text("x")).unwrap();
        for (name, target) in [
            ("bin", "usr/bin"),
            ("up", "../../../usr"),
            ("abs", "/usr/bin/tool"),
            ("loop", "loop"),
            ("gone", "nowhere"),
        ] {
            tree.put(name.into(), Node::link(target));
        }
        let resolve = |path: &str| tree.resolve(Path::new(path), true);
        assert_eq!(resolve("bin/tool"), Ok("usr/bin/tool".into()));
        assert_eq!(resolve("/up/bin/../bin/tool"), Ok("usr/bin/tool".into()));
        assert_eq!(resolve("../../abs"), Ok("usr/bin/tool".into()));
        assert_eq!(resolve("gone"), Ok("nowhere".into()));
        assert!(resolve("loop").unwrap_err().contains("too many links"));
        assert!(resolve("abs/more").unwrap_err().contains("no directory"));
        assert_eq!(tree.resolve(Path::new("abs"), false), Ok("abs".into()));
        tree.install(Path::new("bin/other"), text("y")).unwrap();
        assert!(tree.get("usr/bin/other").is_some());
        assert!(tree.install(Path::new("abs/other"), text("y")).is_err());
    }

    #[test]
    fn replacing_and_removing_take_along_what_is_below() {
        let mut tree = Tree::default();
        for path in ["a/b/c", "a/d", "a-e", "a.f/g"] {
            tree.install(Path::new(path), text("")).unwrap();
        }
        tree.put("a".into(), Node::directory(0o700));
        assert_eq!(names(&tree), ["a", "a/b", "a/b/c", "a/d", "a-e", "a.f", "a.f/g"]);
        tree.put("a/b".into(), text("now a file"));
        assert_eq!(names(&tree), ["a", "a/b", "a/d", "a-e", "a.f", "a.f/g"]);
        tree.empty(Path::new("a"));
        tree.remove(Path::new("a.f"));
        assert_eq!(names(&tree), ["a", "a-e"]);
    }

    #[test]
    fn hard_links_are_one_node() {
        let mut tree = Tree::default();
        tree.put("a".into(), text("1"));
        assert!(tree.hard_link(Path::new("a"), "b".into()));
        assert!(tree.hard_link(Path::new("a"), "a".into()));
        assert!(!tree.hard_link(Path::new("none"), "c".into()));
        let ids: Vec<Id> = tree.iter().map(|(_, id, _)| id).collect();
        assert_eq!(ids[0], ids[1]);
        assert_eq!(tree.links()[ids[0]], 2);
    }

    #[test]
    fn patterns() {
        let mut tree = Tree::default();
        for path in
            ["usr/share/doc/x/copyright", "usr/share/docs", "var/log/a/b.log", "var/log/c", "lib/x.a", "usr/lib/y.a"]
        {
            tree.install(Path::new(path), text("")).unwrap();
        }
        tree.remove_matching(&["/usr/share/doc".into(), "var/log/*".into(), "**/?.a".into()]).unwrap();
        assert_eq!(names(&tree), ["lib", "usr", "usr/lib", "usr/share", "usr/share/docs", "var", "var/log"]);
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        let content = |length| Content::OnDisk { path: file.path().into(), length };
        assert_eq!(content(5).read().unwrap(), b"12345");
        for length in [4, 6] {
            assert!(content(length).read().is_err());
        }
    }

    #[test]
    fn names_from_archives_are_cleaned_or_refused() {
        assert_eq!(clean(Path::new("./a//b/.")), Some("a/b".into()));
        assert_eq!(clean(Path::new("/a")), Some("a".into()));
        for path in ["", ".", "/", "../a", "a/../b"] {
            assert_eq!(clean(Path::new(path)), None);
        }
    }
}
