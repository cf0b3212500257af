//! Writing a cpio archive in the "newc" format, as the kernel's initramfs loader reads it
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// `S_IFREG`, `S_IFDIR` and `S_IFCHR` of inode(7).
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written. Everything belongs to root and is from the epoch; inode numbers count up from 1.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; its parent must have been added. `permissions` without the type.
    pub(crate) fn directory(&mut self, name: &str, permissions: u32) {
        self.entry(name, DIRECTORY | permissions, 2, (0, 0), &[]);
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// When it has 4 GiB or more, which the format cannot express.
    pub(crate) fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> Result<(), String> {
        if u32::try_from(contents.len()).is_err() {
            return Err("it is too long for the archive, which takes files below 4 GiB".into());
        }
        self.entry(name, REGULAR | permissions, 1, (0, 0), contents);
        Ok(())
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.entry(name, CHARACTER | permissions, 1, (major, minor), &[]);
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        // Inode, mode, uid, gid, links, mtime, size, device of the archive (major, minor), of the node, length of the name
        // with its NUL, checksum.
        let size = contents.len() as u32;
        let name_size = name.len() as u32 + 1;
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    /// Header with name, and contents, each begin at a multiple of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;

    /// Name, mode, owner and group, time, device of the node, contents.
    pub(crate) type Entry = (String, u32, (u32, u32), u32, (u32, u32), Vec<u8>);

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
            assert_eq!(entry.ino() as usize, entries.len() + 1);
            entries.push((
                entry.name().to_owned(),
                entry.mode(),
                (entry.uid(), entry.gid()),
                entry.mtime(),
                (entry.rdev_major(), entry.rdev_minor()),
                contents,
            ));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn another_reader_reads_what_was_written() {
        let mut archive = Archive::default();
        archive.directory("d", 0o1777);
        archive.character_device("d/console", 0o600, 5, 1);
        archive.file("d/odd", 0o755, b"12345").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        let entries = read_back(&archive.finish());
        let expected: [Entry; 4] = [
            ("d".into(), 0o041_777, (0, 0), 0, (0, 0), vec![]),
            ("d/console".into(), 0o020_600, (0, 0), 0, (5, 1), vec![]),
            ("d/odd".into(), 0o100_755, (0, 0), 0, (0, 0), b"12345".to_vec()),
            ("empty".into(), 0o100_644, (0, 0), 0, (0, 0), vec![]),
        ];
        assert_eq!(entries, expected);
    }
}
