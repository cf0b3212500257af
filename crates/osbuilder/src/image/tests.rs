//! Images compared with what other tools make of them.

use std::{os::unix::fs::FileExt, process::Command};

use super::*;
use crate::tree::{Content, Node};

const EPOCH: u32 = 1_000_000_000;

fn tree() -> Tree {
    let mut tree = Tree::default();
    let text = |mode, text: &str| Node::file(mode, Content::Bytes(text.into()));
    for name in ["dev", "proc", "sys", "usr"] {
        tree.put(name.into(), Node::directory(0o755));
    }
    tree.install(Path::new("usr/bin/hello world"), text(0o755, "#!/bin/sh\n")).unwrap();
    tree.install(Path::new("usr/lib/deep/er/file"), text(0o600, &"deep\n".repeat(10_000))).unwrap();
    tree.install(Path::new("etc/empty"), text(0o644, "")).unwrap();
    tree.install(Path::new("etc/zeros"), Node::file(0o644, Content::Bytes(vec![0; 300_000]))).unwrap();
    tree.hard_link(Path::new("etc/zeros"), "usr/zeros too".into());
    tree.install(Path::new("link"), Node::link("usr/bin/hello world")).unwrap();
    tree.install(Path::new("long"), Node::link("x/".repeat(100))).unwrap();
    for number in 0..300 {
        tree.install(Path::new(&format!("many/{number:03}-with-a-name-of-some-length")), text(0o644, "x")).unwrap();
    }
    tree
}

fn owned() -> Tree {
    let mut tree = tree();
    let node = Node { uid: 1000, gid: 70_000, ..Node::file(0o4750, Content::Bytes(b"mine".into())) };
    tree.install(Path::new("home/own"), node).unwrap();
    tree
}

struct Built {
    directory: tempfile::TempDir,
    parameters: Option<Parameters>,
}

impl Built {
    fn new(tree: &Tree, file_system: FileSystem, verity: bool) -> Option<Built> {
        let disk = Disk { file_system, verity };
        if let Err(error) = preconditions(&disk) {
            eprintln!("skipped: {error}");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        let mut output = Output::create(&image).unwrap();
        let parameters = write(tree, Architecture::X86_64, &disk, EPOCH, &mut output).unwrap();
        output.finish().unwrap();
        if let Some(parameters) = &parameters {
            std::fs::write(parameters_file(&image), parameters.to_string()).unwrap();
        }
        Some(Built { directory, parameters })
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.image()).unwrap()
    }

    /// The root partition, as a file of its own.
    fn root(&self) -> PathBuf {
        let bytes = self.bytes();
        let partitions = gpt::parse(&bytes, bytes.len() as u64).unwrap();
        let path = self.directory.path().join("root");
        std::fs::write(&path, &bytes[partitions[0].start as usize..][..partitions[0].length as usize]).unwrap();
        path
    }
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn ext4_holds_what_the_tree_holds() {
    let Some(built) = Built::new(&owned(), FileSystem::Ext4, false) else { return };
    let root = built.root();
    let ask = |request: &str| said(Command::new("/usr/sbin/debugfs").args(["-R", request]).arg(&root)).unwrap();
    assert_eq!(ask("cat \"/usr/bin/hello world\""), "#!/bin/sh\n");
    assert_eq!(ask("cat /usr/lib/deep/er/file"), "deep\n".repeat(10_000));
    let own = ask("stat /home/own");
    assert!(own.contains("Mode:  04750") && own.contains("User:  1000") && own.contains("Group: 70000"), "{own}");
    for time in ["ctime", "atime", "mtime", "crtime"] {
        assert!(own.contains(&format!("{time}: 0x3b9aca00:00000000")), "{own}");
    }
    let zeros = ask("stat /etc/zeros");
    assert!(zeros.contains("Links: 2") && zeros.contains("Size: 300000"), "{zeros}");
    assert!(ask("stat /link").contains("Fast link dest: \"usr/bin/hello world\""));
    assert_eq!(ask("ls -p /many").lines().filter(|line| line.contains("name-of-some-length")).count(), 300);
    assert!(!ask("ls -p /").contains("lost+found"));
}

#[test]
fn erofs_holds_what_the_tree_holds() {
    let tree = if run::is_root() { owned() } else { tree() };
    let Some(built) = Built::new(&tree, FileSystem::Erofs, false) else { return };
    let root = built.root();
    let out = built.directory.path().join("out");
    said(Command::new("fsck.erofs").arg("--preserve").arg(format!("--extract={}", out.display())).arg(&root)).unwrap();
    let back = Tree::read(&out).unwrap();
    let digest = |bytes: &[u8]| (bytes.len(), verity::hex(&Sha256::digest(bytes)));
    // Extracting loses the set-id bits, as changing the owner does.
    let describe = |tree: &Tree| -> Vec<String> {
        let describe = |(path, _, node): (&Path, _, &Node)| match &node.kind {
            crate::tree::Kind::File(content) => {
                format!(
                    "{} {:o} {}:{} {:?}",
                    path.display(),
                    node.mode & 0o777,
                    node.uid,
                    node.gid,
                    digest(&content.read().unwrap())
                )
            }
            other => format!("{} {:o} {other:?}", path.display(), node.mode),
        };
        tree.iter().map(describe).collect()
    };
    assert_eq!(describe(&back), describe(&tree));
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    for file_system in [FileSystem::Erofs, FileSystem::Ext4] {
        let Some(one) = Built::new(&tree(), file_system, true) else { continue };
        // The clock shows another second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let two = Built::new(&tree(), file_system, true).unwrap();
        assert!(one.bytes() == two.bytes(), "{file_system:?}");
        assert_eq!(one.parameters, two.parameters);
    }
}

#[test]
fn cryptsetup_verifies_and_a_flipped_bit_is_found_by_both() {
    let Some(built) = Built::new(&tree(), FileSystem::Ext4, true) else { return };
    let image = built.image();
    let bytes = built.bytes();
    let parameters = built.parameters.clone().unwrap();
    let partitions = gpt::parse(&bytes, bytes.len() as u64).unwrap();
    assert_eq!([&partitions[0].id[..], &partitions[1].id].concat(), parameters.root_hash);
    assert_eq!(verify(&image, None).unwrap(), parameters);
    let hash = built.directory.path().join("hash");
    let hashes = &bytes[partitions[1].start as usize..][..partitions[1].length as usize];
    std::fs::write(&hash, hashes).unwrap();
    let cryptsetup = || {
        let mut command = Command::new("veritysetup");
        command.args(["verify", "--no-superblock", "--salt", &verity::hex(&parameters.salt)]);
        command.arg(format!("--data-blocks={}", parameters.data_blocks));
        command.arg(built.root()).arg(&hash).arg(verity::hex(&parameters.root_hash));
        command.output().map(|output| output.status.success())
    };
    match cryptsetup() {
        Ok(good) => assert!(good),
        Err(_) => eprintln!("skipped in part: needs veritysetup (Debian: cryptsetup-bin)"),
    }
    let at = partitions[0].start + 20 * BLOCK as u64 + 7;
    let flip = |at: u64| {
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    };
    flip(at);
    let error = verify(&image, None).unwrap_err().to_string();
    assert!(error.contains("block 20 of its root file system (byte 1130496 of the image) does not match"), "{error}");
    assert!(cryptsetup().map_or(true, |good| !good));
    flip(at);
    flip(partitions[1].start);
    assert!(verify(&image, None).unwrap_err().to_string().contains("verity tree is damaged"));
    flip(partitions[1].start);
    let other = Parameters { root_hash: [1; 32], ..parameters.clone() }.to_string();
    assert!(verify(&image, Some(&other)).unwrap_err().to_string().contains("belong to another image"));
    let shorter = Parameters { data_blocks: 1, ..parameters }.to_string();
    assert!(
        verify(&image, Some(&shorter)).unwrap_err().to_string().contains("blocks, the verity parameters given says 1")
    );
}

#[test]
fn the_image_is_sparse_and_another_tool_reads_its_table() {
    use std::os::unix::fs::MetadataExt;
    let Some(built) = Built::new(&tree(), FileSystem::Ext4, true) else { return };
    let found = built.image().metadata().unwrap();
    assert!(found.blocks() * 512 < found.len(), "{} of {}", found.blocks() * 512, found.len());
    match Command::new("/usr/sbin/sgdisk").arg("--verify").arg(built.image()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("No problems found"), "{text}");
        }
        Err(_) => eprintln!("skipped in part: needs sgdisk (Debian: gdisk)"),
    }
}

#[test]
fn a_name_that_debugfs_cannot_write_is_refused() {
    let mut tree = tree();
    tree.install(Path::new("etc/two\nlines"), Node::file(0o644, Content::Bytes(vec![]))).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut output = Output::create(&directory.path().join("image")).unwrap();
    let disk = Disk { file_system: FileSystem::Ext4, verity: false };
    if preconditions(&disk).is_err() {
        eprintln!("skipped: needs e2fsprogs");
        return;
    }
    let error = write(&tree, Architecture::X86_64, &disk, EPOCH, &mut output).unwrap_err().to_string();
    assert!(error.contains("use erofs"), "{error}");
    drop(output);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
