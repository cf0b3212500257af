//! The file system in an image, made by the tools of those who keep it: mkfs.erofs, or mke2fs and debugfs.
//!
//! Both are told everything that they would otherwise take from the clock, from chance or from the host, so that the same tree gives
//! the same bytes.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::{ext4, gpt};
use crate::{
    Error,
    run::{self, Program, Tool},
    tree::{Content, Id, Kind, Node, Tree},
};

pub(super) const MKFS_EROFS: Program = Program { name: "mkfs.erofs", package: "erofs-utils" };
pub(super) const EXT4_TOOLS: [Program; 3] = [
    Program { name: "mke2fs", package: "e2fsprogs" },
    Program { name: "debugfs", package: "e2fsprogs" },
    Program { name: "e2fsck", package: "e2fsprogs" },
];

const BLOCK: u64 = 4096;

/// Makes `file` an erofs image of `tree`. It is not compressed: what a guest reads comes from the host's page cache, and
/// decompressing it would cost every guest again. `work` is an empty directory.
pub(super) fn erofs(tree: &Tree, epoch: u32, id: gpt::Guid, work: &Path, file: &Path) -> Result<(), Error> {
    let root = work.join("root");
    let mut tool = Tool::new(&MKFS_EROFS, "making the erofs file system")?
        .args(["--quiet", "-x-1"])
        .arg(format!("-T{epoch}"))
        .arg(format!("-U{}", gpt::written(id)));
    // Owners can be given to files on the host by root only; but if all are root's, the tool can set that.
    let owners = if run::is_root() {
        true
    } else if let Some((path, _, node)) = tree.iter().find(|(_, _, node)| (node.uid, node.gid) != (0, 0)) {
        let why = format!(
            "it belongs to {}:{}, and erofs with such files can be made by root only; use sudo, ext4 or an initrd",
            node.uid, node.gid
        );
        return Err(Error::unusable(path, why));
    } else {
        tool = tool.arg("--all-root");
        false
    };
    materialise(tree, &root, owners)?;
    tool.arg(file).arg(&root).run()?;
    Ok(())
}

/// Makes the directory `root` hold `tree`.
pub(super) fn materialise(tree: &Tree, root: &Path, owners: bool) -> Result<(), Error> {
    fs::create_dir(root).map_err(|source| Error::Write { path: root.to_path_buf(), source })?;
    let mut first: HashMap<Id, PathBuf> = HashMap::new();
    for (name, id, node) in tree.iter() {
        run::check()?;
        let path = root.join(name);
        let failed = |source| Error::Write { path: path.clone(), source };
        // Its directory was made just so by an earlier turn: nothing on the way is a link.
        if let Some(first) = first.get(&id) {
            fs::hard_link(first, &path).map_err(failed)?;
            continue;
        }
        match &node.kind {
            Kind::Directory => fs::create_dir(&path).map_err(failed)?,
            Kind::File(content) => {
                let mut file = File::create_new(&path).map_err(failed)?;
                content.pieces(|piece| file.write_all(piece).map_err(failed))?;
            }
            Kind::Link(target) => symlink(target, &path).map_err(failed)?,
        }
        if owners {
            std::os::unix::fs::lchown(&path, Some(node.uid), Some(node.gid)).map_err(failed)?;
        }
        // After the owner, which takes set-id bits away. Directories' come last.
        if matches!(node.kind, Kind::File(_)) {
            fs::set_permissions(&path, Permissions::from_mode(node.mode)).map_err(failed)?;
        }
        first.insert(id, path);
    }
    // From below: whoever is not root cannot work in a directory without write permission.
    let directories: Vec<_> = tree.iter().filter(|(_, _, node)| node.is_directory()).collect();
    for (name, _, node) in directories.into_iter().rev() {
        let path = root.join(name);
        fs::set_permissions(&path, Permissions::from_mode(node.mode))
            .map_err(|source| Error::Write { path: path.clone(), source })?;
    }
    fs::set_permissions(root, Permissions::from_mode(0o755))
        .map_err(|source| Error::Write { path: root.to_path_buf(), source })
}

/// Makes `file` an ext4 image of `tree`, filled by debugfs in the tree's order. (mke2fs can copy a directory, but takes it in the order
/// in which the host's file system lists it, and takes over times that nobody can set.) Needs no root. `work` is an empty directory.
pub(super) fn ext4(tree: &Tree, epoch: u32, id: gpt::Guid, work: &Path, file: &Path) -> Result<(), Error> {
    let size = Size::of(tree);
    let id = gpt::written(id);
    let [mke2fs, debugfs, e2fsck] = EXT4_TOOLS;
    // No journal and no reserve: it is only ever read. No checksums of metadata: dm-verity covers all of it.
    Tool::new(&mke2fs, "making the ext4 file system")?
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0"])
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum,^orphan_file,64bit,extent"])
        .args(["-N", &size.inodes.to_string(), "-U", &id])
        .arg("-E")
        .arg(format!("hash_seed={id},root_owner=0:0,lazy_itable_init=0,nodiscard"))
        .arg(file)
        .arg(size.blocks.to_string())
        // A time of zero means none to it.
        .env("E2FSPROGS_FAKE_TIME", epoch.max(1).to_string())
        .env("MKE2FS_CONFIG", "/dev/null")
        .run()?;
    let commands = work.join("commands");
    let script = Script { tree, work, text: "rmdir \"lost+found\"\n".into(), directory: PathBuf::new() }.write()?;
    fs::write(&commands, script).map_err(|source| Error::Write { path: commands.clone(), source })?;
    let filling = "filling the ext4 file system";
    let output = Tool::new(&debugfs, filling)?
        .args(["-w", "-f"])
        .arg(&commands)
        .arg(file)
        .env("E2FSPROGS_FAKE_TIME", epoch.max(1).to_string())
        .run()?;
    // It ends well even if a command failed. Its first line is its version.
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = said.lines().filter(|line| !line.starts_with("debugfs 1.")).take(5).collect();
    if !complaints.is_empty() {
        let said = complaints.iter().map(|line| format!("\n  {line}")).collect();
        return Err(Error::Tool { tool: debugfs.name, step: filling.into(), how: "had errors".into(), said });
    }
    ext4::set_times(file, epoch)?;
    Tool::new(&e2fsck, "checking the ext4 file system")?.args(["-f", "-n"]).arg(file).run()?;
    Ok(())
}

/// How large a file system must be.
struct Size {
    inodes: u64,
    blocks: u64,
}

impl Size {
    fn of(tree: &Tree) -> Size {
        let mut seen = std::collections::HashSet::new();
        // Eleven inodes are reserved.
        let (mut inodes, mut blocks) = (11_u64, 0);
        let mut in_directory: HashMap<&Path, u64> = HashMap::new();
        for (path, id, node) in tree.iter() {
            // A name takes 8 bytes and itself, rounded up to 4.
            let name = path.file_name().map_or(0, OsStr::len) as u64;
            *in_directory.entry(path.parent().unwrap_or(Path::new(""))).or_default() += (8 + name).next_multiple_of(4);
            if !seen.insert(id) {
                continue;
            }
            inodes += 1;
            blocks += match &node.kind {
                // Room for the tree of extents, should a file be scattered.
                Kind::File(content) => content.length().div_ceil(BLOCK) + u64::from(content.length() > 64 << 20),
                Kind::Directory => 1,
                // Short targets are in the inode.
                Kind::Link(target) => u64::from(target.as_os_str().len() >= 60),
            };
        }
        // Names do not span blocks: at worst a third of each stays empty.
        blocks += in_directory.values().map(|bytes| (bytes * 3 / 2).div_ceil(BLOCK)).sum::<u64>();
        let inodes = inodes.next_multiple_of(16);
        blocks += inodes * 256 / BLOCK + 1;
        // Two bitmaps for each group of 32768 blocks, super blocks with their group descriptors, and a little.
        blocks += (blocks / 32768 + 1) * 8 + blocks / 100 + 64;
        Size { inodes, blocks }
    }
}

/// Commands for debugfs.
struct Script<'a> {
    tree: &'a Tree,
    work: &'a Path,
    text: String,
    /// Where debugfs is: it makes files in its current directory only.
    directory: PathBuf,
}

impl Script<'_> {
    fn write(mut self) -> Result<String, Error> {
        let links = self.tree.links();
        let mut first: HashMap<Id, &Path> = HashMap::new();
        for (path, id, node) in self.tree.iter() {
            run::check()?;
            let name = quoted(path, &Path::new("/").join(path))?;
            let parent = path.parent().unwrap_or(Path::new(""));
            if parent != self.directory {
                self.directory = parent.to_path_buf();
                let directory = quoted(path, &Path::new("/").join(parent))?;
                self.command(&format!("cd {directory}"));
            }
            if let Some(first) = first.get(&id) {
                let first = quoted(path, &Path::new("/").join(first))?;
                self.command(&format!("ln {first} {name}"));
                continue;
            }
            first.insert(id, path);
            let kind = match &node.kind {
                Kind::Directory => {
                    self.command(&format!("mkdir {name}"));
                    0o040_000
                }
                Kind::File(content) => {
                    let from = self.source(id, content)?;
                    let (from, to) =
                        (quoted(path, &from)?, quoted(path, Path::new(path.file_name().unwrap_or_default()))?);
                    self.command(&format!("write {from} {to}"));
                    0o100_000
                }
                Kind::Link(target) => {
                    self.command(&format!("symlink {name} {}", quoted(path, target)?));
                    0o120_000
                }
            };
            self.attributes(&name, kind, node, links.get(id).copied().unwrap_or(1));
        }
        Ok(self.text)
    }

    fn attributes(&mut self, name: &str, kind: u32, node: &Node, links: u32) {
        self.command(&format!("sif {name} mode 0{:o}", kind | node.mode));
        for (field, id) in [("uid", node.uid), ("gid", node.gid)] {
            if id != 0 {
                self.command(&format!("sif {name} {field} {id}"));
            }
        }
        if links > 1 && !node.is_directory() {
            self.command(&format!("sif {name} links_count {links}"));
        }
    }

    /// The file that holds some content.
    fn source(&self, id: Id, content: &Content) -> Result<PathBuf, Error> {
        match content {
            Content::OnDisk { path, .. } => {
                std::path::absolute(path).map_err(|source| Error::Read { path: path.clone(), source })
            }
            Content::Bytes(bytes) => {
                let path = self.work.join(format!("content-{id}"));
                fs::write(&path, bytes).map_err(|source| Error::Write { path: path.clone(), source })?;
                Ok(path)
            }
        }
    }

    fn command(&mut self, command: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{command}");
    }
}

/// `text` as one word of a debugfs command; `path` is what an error names.
fn quoted(path: &Path, text: &Path) -> Result<String, Error> {
    let text = text.to_str().filter(|text| !text.contains(['"', '\n', '\r']));
    let text = text.ok_or_else(|| {
        Error::unusable(
            path,
            "debugfs cannot write names with quotes, line ends or bytes that are not UTF-8; use erofs",
        )
    })?;
    Ok(format!("\"{text}\""))
}
