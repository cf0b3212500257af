//! Making a tree of tar archives, which may be hostile.
//!
//! Nothing is unpacked under a name that an archive chose: names live in the tree, contents in files that are numbered.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use tar::EntryType;

use super::{Content, EMPTY, Kind, Node, Tree, clean};
use crate::{Error, run};

/// More than any guest's root needs, bytes: an archive can promise without end.
pub(crate) const MOST_BYTES: u64 = 64 << 30;

/// More names than any guest's root has.
const MOST_NAMES: u64 = 4_000_000;

/// More than an entry's header takes with its long names and attributes, bytes. They are read into memory, and compressed they are
/// next to nothing.
const MOST_HEADER: u64 = 1 << 20;

/// Small files are kept in memory.
const SMALL: u64 = 4096;

/// What begins the name of a file that removes another one (OCI image specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
/// The file that removes all that lower layers have in a directory.
const OPAQUE: &str = ".wh..wh..opq";

/// Takes archives into a tree.
#[derive(Debug)]
pub(crate) struct Unpacker<'a> {
    pub(crate) tree: Tree,
    /// Where contents go.
    directory: &'a Path,
    files: u64,
    bytes: u64,
    names: u64,
}

impl<'a> Unpacker<'a> {
    /// `directory` holds the contents for as long as the tree is used.
    pub(crate) fn new(directory: &'a Path) -> Unpacker<'a> {
        Unpacker { tree: Tree::default(), directory, files: 0, bytes: 0, names: 0 }
    }

    /// Removes from the tree what the archive says is removed. Such an entry is about the layers below only, wherever it stands in its
    /// own: so this is done before [`Unpacker::add`]. `path` is what an error names.
    pub(crate) fn remove(&mut self, path: &Path, archive: impl Read) -> Result<(), Error> {
        each(path, archive, |_, name| {
            let Some(name) = clean(name) else { return Ok(()) };
            let Some(file) = name.file_name().and_then(|file| file.to_str()) else { return Ok(()) };
            let Some(removed) = file.strip_prefix(WHITEOUT) else { return Ok(()) };
            let directory = self.tree.resolve(name.parent().unwrap_or(Path::new("")), true)?;
            if file == OPAQUE {
                self.tree.empty(&directory);
            } else if !removed.is_empty() && removed != "." && removed != ".." {
                self.tree.remove(&directory.join(removed));
            }
            Ok(())
        })
    }

    /// Adds an archive's entries.
    pub(crate) fn add(&mut self, path: &Path, archive: impl Read) -> Result<(), Error> {
        each(path, archive, |entry, name| self.entry(entry, name))
    }

    fn entry(&mut self, mut entry: tar::Entry<impl Read>, name: &Path) -> Result<(), String> {
        self.names += 1;
        if self.names > MOST_NAMES {
            return Err(format!("it holds more than {MOST_NAMES} names"));
        }
        let kind = entry.header().entry_type();
        // The root itself.
        let Some(name) = clean(name) else {
            if name.components().any(|part| part == std::path::Component::ParentDir) {
                return Err(format!("the name {} leads out of it", name.display()));
            }
            return Ok(());
        };
        if name.file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(WHITEOUT.as_bytes())) {
            return Ok(());
        }
        let (Some(parent), Some(file)) = (name.parent(), name.file_name()) else { return Ok(()) };
        // What is mounted over in a guest is left out, with the devices in it.
        if EMPTY.iter().any(|empty| parent.starts_with(empty)) {
            return Ok(());
        }
        let header = entry.header();
        let number = |number: io::Result<u64>| number.ok().and_then(|n| u32::try_from(n).ok());
        let damaged = || format!("the header of {} is damaged", name.display());
        let mode = header.mode().map_err(|_| damaged())? & 0o7777;
        let uid = number(header.uid()).ok_or_else(damaged)?;
        let gid = number(header.gid()).ok_or_else(damaged)?;
        let kind = match kind {
            EntryType::Directory => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File(self.content(&mut entry)?),
            EntryType::Symlink => Kind::Link(target(&entry).ok_or_else(damaged)?),
            EntryType::Link => {
                let existing = target(&entry).ok_or_else(damaged)?;
                return self.hard_link(&existing, &name);
            }
            EntryType::XGlobalHeader => return Ok(()),
            other => {
                return Err(format!(
                    "{} is of a kind ({other:?}) that an image does not hold outside /dev",
                    name.display()
                ));
            }
        };
        let directory = self.tree.make_directories(parent)?;
        self.tree.put(directory.join(file), Node { kind, mode, uid, gid });
        Ok(())
    }

    fn hard_link(&mut self, existing: &Path, name: &Path) -> Result<(), String> {
        let nowhere = || format!("{} is a link to {}, which is no file in it", name.display(), existing.display());
        let existing = self.tree.resolve(&clean(existing).ok_or_else(nowhere)?, false)?;
        let directory = self.tree.make_directories(name.parent().unwrap_or(Path::new("")))?;
        let name = directory.join(name.file_name().unwrap_or_default());
        if self.tree.hard_link(&existing, name) { Ok(()) } else { Err(nowhere()) }
    }

    fn content(&mut self, entry: &mut tar::Entry<impl Read>) -> Result<Content, String> {
        let length = entry.size();
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > MOST_BYTES {
            return Err(format!("it holds more than {} GiB", MOST_BYTES >> 30));
        }
        if length <= SMALL {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
            return Ok(Content::Bytes(bytes));
        }
        self.files += 1;
        let path = self.directory.join(self.files.to_string());
        let failed = |error: io::Error| format!("it cannot be unpacked to {}: {error}", path.display());
        let mut file = File::create_new(&path).map_err(failed)?;
        let length = io::copy(entry, &mut file).map_err(failed)?;
        Ok(Content::OnDisk { path, length })
    }
}

/// Calls `visit` for each entry with its name; what it says becomes an error that names the archive.
pub(crate) fn each<R: Read>(
    path: &Path,
    archive: R,
    mut visit: impl FnMut(tar::Entry<Measured<R>>, &Path) -> Result<(), String>,
) -> Result<(), Error> {
    let end = Cell::new(MOST_HEADER);
    let mut archive = tar::Archive::new(Measured { archive, position: 0, end: &end });
    let damaged = |error: io::Error| Error::unusable(path, format!("it cannot be read as a tar archive ({error})"));
    for entry in archive.entries().map_err(damaged)? {
        run::check()?;
        let entry = entry.map_err(damaged)?;
        let name = entry.path().map_err(damaged)?.into_owned();
        // What a sparse file has in the archive is less than its length.
        let sparse = entry.header().entry_type().is_gnu_sparse();
        let length = if sparse { entry.header().entry_size().map_err(damaged)? } else { entry.size() };
        end.set(u64::MAX);
        let next = entry.raw_file_position().saturating_add(length);
        visit(entry, &name).map_err(|why| Error::unusable(path, why))?;
        end.set(next.saturating_add(MOST_HEADER));
    }
    Ok(())
}

/// An archive that can be read up to a place.
pub(crate) struct Measured<'a, R> {
    archive: R,
    position: u64,
    end: &'a Cell<u64>,
}

impl<R: Read> Read for Measured<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.get().saturating_sub(self.position)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        if most == 0 && !buffer.is_empty() {
            let why = format!("a name or attributes take more than {MOST_HEADER} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let count = self.archive.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.position += count as u64;
        Ok(count)
    }
}

fn target(entry: &tar::Entry<impl Read>) -> Option<PathBuf> {
    Some(entry.link_name().ok()??.into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An entry of an archive: its kind, name, mode, and contents or target.
    pub(crate) type Entry<'a> = (EntryType, &'a str, u32, &'a str);

    /// An archive, names taken as they are.
    pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, mode, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(7);
            header.set_gid(8);
            let linked = matches!(kind, EntryType::Link | EntryType::Symlink);
            if linked {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            let contents = if linked { "" } else { text };
            header.set_size(contents.len() as u64);
            header.set_cksum();
            builder.append(&header, contents.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(layers: &[&[Entry]]) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(directory.path());
        for layer in layers {
            let archive = archive(layer);
            let path = Path::new("layer");
            unpacker
                .remove(path, &archive[..])
                .and_then(|()| unpacker.add(path, &archive[..]))
                .map_err(|e| e.to_string())?;
        }
        let show = |(path, _, node): (&Path, _, &Node)| match &node.kind {
            Kind::Directory => format!("{}/", path.display()),
            Kind::File(content) => {
                let text = String::from_utf8(content.read().unwrap()).unwrap();
                format!("{}={}", path.display(), text.get(..10).unwrap_or(&text))
            }
            Kind::Link(target) => format!("{}->{}", path.display(), target.display()),
        };
        Ok(unpacker.tree.iter().map(show).collect())
    }

    use EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};

    #[test]
    fn layers_replace_and_remove_what_is_below_them() {
        let big = "0123456789".repeat(1000);
        let lower: &[Entry] = &[
            (Directory, "./", 0o755, ""),
            (Directory, "etc/", 0o755, ""),
            (Regular, "etc/a", 0o644, "a"),
            (Regular, "etc/gone", 0o644, "x"),
            (Regular, "opt/old/file", 0o644, &big),
            (Link, "opt/linked", 0o644, "opt/old/file"),
            (Symlink, "lib", 0o777, "usr/lib"),
            (Regular, "usr/lib/one", 0o644, "1"),
        ];
        // The opaque mark and the removal stand behind what they must not touch.
        let upper: &[Entry] = &[
            (Regular, "opt/old/new", 0o644, "new"),
            (Regular, "opt/old/.wh..wh..opq", 0o644, ""),
            (Regular, "etc/.wh.gone", 0o644, ""),
            (Regular, "lib/two", 0o644, "2"),
            (Regular, "etc/.wh...", 0o644, ""),
        ];
        let expected = [
            "etc/",
            "etc/a=a",
            "lib->usr/lib",
            "opt/",
            "opt/linked=0123456789",
            "opt/old/",
            "opt/old/new=new",
            "usr/",
            "usr/lib/",
            "usr/lib/one=1",
            "usr/lib/two=2",
        ];
        assert_eq!(unpacked(&[lower, upper]).unwrap(), expected);
    }

    #[test]
    fn a_hostile_archive_reaches_nothing() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        let name = format!("link/{}", "evil");
        let through_link: &[Entry] = &[(Symlink, "link", 0o777, target), (Regular, &name, 0o644, "x")];
        let inside = target.trim_start_matches('/');
        assert!(unpacked(&[through_link]).unwrap().contains(&format!("{inside}/evil=x")));
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        for (layer, expected) in [
            (&[(Regular, "../evil", 0o644, "x")][..], "leads out of it"),
            (&[(Link, "a", 0o644, "../../etc/passwd")], "no file in it"),
            (&[(Link, "a", 0o644, "none")], "no file in it"),
            (&[(Symlink, "a", 0o777, "a"), (Regular, "a/b", 0o644, "x")], "too many links"),
            (&[(Regular, "a", 0o644, "x"), (Regular, "a/b", 0o644, "x")], "no directory"),
            (&[(Fifo, "usr/pipe", 0o644, "")], "of a kind (Fifo)"),
            (&[(Char, "usr/null", 0o644, "")], "of a kind (Char)"),
        ] {
            let error = unpacked(&[layer]).unwrap_err();
            assert!(error.starts_with("layer is no good: ") && error.contains(expected), "{error}");
        }
        assert_eq!(unpacked(&[&[(Directory, "dev", 0o755, ""), (Char, "dev/null", 0o666, "")]]).unwrap(), ["dev/"]);
    }

    #[test]
    fn names_take_no_more_memory_than_names_do() {
        let long = |length: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::GNULongName);
            header.set_size(length);
            header.set_cksum();
            header
        };
        let unpack =
            |archive: &mut dyn Read| Unpacker::new(tempfile::tempdir().unwrap().path()).add(Path::new("a"), archive);
        // A file before it that is read, and one that is skipped.
        for before in [(Regular, "a", 0o644, "x"), (Regular, "dev/a", 0o644, "x")] {
            let contents = "x".repeat(3 << 20);
            let mut start = archive(&[(before.0, before.1, before.2, &contents)]);
            start.truncate(start.len() - 1024);
            let name = "n".repeat(3000);
            let short = [&long(3000).as_bytes()[..], name.as_bytes(), &[0; 72], &archive(&[before])].concat();
            let start = &start[..];
            unpack(&mut start.chain(&short[..])).unwrap();
            let refused =
                unpack(&mut start.chain(&long(u64::MAX >> 20).as_bytes()[..]).chain(io::repeat(b'n'))).unwrap_err();
            assert!(refused.to_string().contains("a name or attributes take more than 1048576 bytes"), "{refused}");
        }
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let whole = archive(&[(Regular, "a", 0o644, &"x".repeat(5000))]);
        for bytes in [&whole[..3000], &[1; 2000]] {
            assert!(Unpacker::new(directory.path()).add(Path::new("a"), bytes).is_err());
        }
    }
}
