//! Writing a tree as a cpio archive in the "newc" format, as the kernel's initramfs loader reads it
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::{
    collections::HashMap,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use crate::{
    Error, run,
    tree::{Id, Kind, Node, Tree},
};

/// `S_IFREG`, `S_IFDIR`, `S_IFLNK` and `S_IFCHR` of inode(7).
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// The kernel opens it for the first program before that can mount /dev.
const CONSOLE: (&str, u32, (u32, u32)) = ("dev/console", 0o600, (5, 1));

/// The longest name or target that the kernel takes, with its NUL (`PATH_MAX`).
const LONGEST: usize = 4096;

/// Writes `tree`, and /dev/console, to `to`. Everything is from the time `epoch`; inode numbers count up from 1.
///
/// # Errors
/// [`Error::Unusable`] for what the format cannot express; what reading a file gives; what `failed` makes of a failure to write.
pub(crate) fn write(tree: &Tree, epoch: u32, to: impl Write, failed: impl Fn(io::Error) -> Error) -> Result<(), Error> {
    let mut archive = Archive { to, length: 0, failed, epoch };
    let links = tree.links();
    // A file with several names stands in the archive with each; its contents with the last, as other writers do it.
    let mut seen: HashMap<Id, u32> = HashMap::new();
    let mut inode_of: HashMap<Id, u32> = HashMap::new();
    let mut inode = 0;
    for (path, id, node) in tree.iter() {
        run::check()?;
        let name = path.as_os_str().as_bytes();
        let names = links.get(id).copied().unwrap_or(1);
        let number = *inode_of.entry(id).or_insert_with(|| {
            inode += 1;
            inode
        });
        let so_far = seen.entry(id).or_default();
        *so_far += 1;
        archive.node(path, name, node, number, names, *so_far == names)?;
        if path == Path::new("dev") {
            inode += 1;
            let (name, mode, device) = CONSOLE;
            let header = Header { inode, mode: CHARACTER | mode, links: 1, device, ..Header::default() };
            archive.header(name.as_bytes(), &header)?;
        }
    }
    archive.header(b"TRAILER!!!", &Header { links: 1, ..Header::default() })
}

#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    owner: (u32, u32),
    links: u32,
    size: u32,
    device: (u32, u32),
}

struct Archive<W, F> {
    to: W,
    length: u64,
    failed: F,
    epoch: u32,
}

impl<W: Write, F: Fn(io::Error) -> Error> Archive<W, F> {
    fn node(&mut self, path: &Path, name: &[u8], node: &Node, inode: u32, names: u32, last: bool) -> Result<(), Error> {
        let (kind, links, length) = match &node.kind {
            Kind::Directory => (DIRECTORY, 2, 0),
            Kind::File(content) => (REGULAR, names, if last { content.length() } else { 0 }),
            Kind::Link(target) => (LINK, names, target.as_os_str().len() as u64),
        };
        let size = u32::try_from(length).map_err(|_| {
            Error::unusable(path, "it is too long for an initrd, which takes files below 4 GiB; build an image")
        })?;
        if name.len() >= LONGEST || (kind == LINK && length as usize >= LONGEST) {
            return Err(Error::unusable(path, "its name or target is longer than the kernel takes"));
        }
        let owner = (node.uid, node.gid);
        self.header(name, &Header { inode, mode: kind | node.mode, owner, links, size, device: (0, 0) })?;
        match &node.kind {
            Kind::File(content) if last => content.pieces(|piece| self.bytes(piece))?,
            Kind::Link(target) => self.bytes(target.as_os_str().as_bytes())?,
            _ => {}
        }
        self.pad()
    }

    fn header(&mut self, name: &[u8], header: &Header) -> Result<(), Error> {
        let Header { inode, mode, owner: (uid, gid), links, size, device } = *header;
        // Inode, mode, uid, gid, links, mtime, size, device of the archive (major, minor), of the node, length of the name
        // with its NUL, checksum.
        let name_size = name.len() as u32 + 1;
        let fields = [inode, mode, uid, gid, links, self.epoch, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            header.extend(format!("{field:08X}").bytes());
        }
        header.extend(name);
        header.push(0);
        self.bytes(&header)?;
        self.pad()
    }

    /// Header with name, and contents, each begin at a multiple of 4.
    fn pad(&mut self) -> Result<(), Error> {
        let missing = self.length.next_multiple_of(4) - self.length;
        self.bytes([0; 4].get(..missing as usize).unwrap_or_default())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.length += bytes.len() as u64;
        self.to.write_all(bytes).map_err(&self.failed)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;
    use crate::tree::Content;

    /// What an archive's reader says of an entry.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) name: String,
        pub(crate) inode: u32,
        pub(crate) mode: u32,
        pub(crate) owner: (u32, u32),
        pub(crate) links: u32,
        pub(crate) time: u32,
        pub(crate) device: (u32, u32),
        pub(crate) contents: Vec<u8>,
    }

    /// Reads an archive with another implementation.
    pub(crate) fn read_back(bytes: &[u8]) -> Vec<Entry> {
        let mut rest = std::io::Cursor::new(bytes.to_vec());
        let mut entries = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            let entry = reader.entry();
            entries.push(Entry {
                name: entry.name().to_owned(),
                inode: entry.ino(),
                mode: entry.mode(),
                owner: (entry.uid(), entry.gid()),
                links: entry.nlink(),
                time: entry.mtime(),
                device: (entry.rdev_major(), entry.rdev_minor()),
                contents,
            });
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn another_reader_reads_what_was_written() {
        let mut tree = Tree::default();
        tree.put("dev".into(), Node::directory(0o1777));
        let file = |text: &str| Node { uid: 7, gid: 8, ..Node::file(0o4755, Content::Bytes(text.into())) };
        tree.put("a".into(), file("12345"));
        tree.hard_link(Path::new("a"), "z".into());
        tree.put("empty".into(), Node::file(0o644, Content::Bytes(vec![])));
        tree.put("link".into(), Node::link("/dev/odd"));
        let mut bytes = Vec::new();
        write(&tree, 77, &mut bytes, |source| Error::Write { path: "x".into(), source }).unwrap();
        let entry = |name: &str, inode, mode, owner, links, device, contents: &str| Entry {
            name: name.into(),
            inode,
            mode,
            owner,
            links,
            time: 77,
            device,
            contents: contents.into(),
        };
        let expected = [
            entry("a", 1, 0o104_755, (7, 8), 2, (0, 0), ""),
            entry("dev", 2, 0o041_777, (0, 0), 2, (0, 0), ""),
            entry("dev/console", 3, 0o020_600, (0, 0), 1, (5, 1), ""),
            entry("empty", 4, 0o100_644, (0, 0), 1, (0, 0), ""),
            entry("link", 5, 0o120_777, (0, 0), 1, (0, 0), "/dev/odd"),
            entry("z", 1, 0o104_755, (7, 8), 2, (0, 0), "12345"),
        ];
        assert_eq!(read_back(&bytes), expected);
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let refused = |node| {
            let mut tree = Tree::default();
            tree.put("x".into(), node);
            write(&tree, 0, io::sink(), |source| Error::Write { path: "x".into(), source }).unwrap_err().to_string()
        };
        let huge = Content::OnDisk { path: "/dev/null".into(), length: 1 << 32 };
        assert!(refused(Node::file(0o644, huge)).contains("below 4 GiB"));
        assert!(refused(Node::link("x".repeat(5000))).contains("longer than the kernel takes"));
    }
}
