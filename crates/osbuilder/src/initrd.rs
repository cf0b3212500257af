//! The initrd: a tree as an archive that the kernel unpacks.

use std::{io::Write, path::Path};

use crate::{
    Architecture, Error,
    agent::{self, First},
    cpio, modules,
    output::Output,
    read,
    tree::{Content, Node, Tree},
};

/// What a guest needs of a kernel that has it as modules: the channel to the host (`virtio_console` over `virtio_pci`), the shared
/// file system, and the NICs of a pod. Every further module costs time at each start.
pub const DEFAULT_MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "virtio_net"];

/// Where the modules and their list are: the directory of `agent_api::MODULE_LIST`.
const MODULES: &str = "lib/modules";

/// What goes into a guest image.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The agent, a static program; becomes `/init`.
    pub agent: &'a Path,
    /// `lib/modules/VERSION` of the kernel, or `None` for one with everything built in.
    pub modules_directory: Option<&'a Path>,
    /// Names of the modules needed; those they depend on are found.
    pub modules: &'a [String],
}

/// How an initrd is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: reading a few megabytes from the host's page cache is quicker than having an emulated processor decompress them,
    /// and the kernel needs no support for it.
    #[default]
    None,
    /// As zstd, for large initrds: what is not compressed is held twice in the guest's memory while it is unpacked.
    Zstd,
}

/// Writes the guest image `output` that holds the agent and its modules, and nothing else.
///
/// # Errors
/// Any [`Error`]; then no output is left.
pub fn initrd(contents: &Contents, output: &Path) -> Result<(), Error> {
    let agent = read(contents.agent)?;
    let mut tree = Tree::default();
    let architecture = agent::install(&mut tree, Some((contents.agent, agent)), First::Init { alone: true })?;
    if let Some(directory) = contents.modules_directory {
        install_modules(&mut tree, directory, contents.modules, architecture)?;
    }
    let mut output = Output::create(output)?;
    pack(&tree, Compression::None, 0, &mut output)?;
    output.finish()
}

/// Puts modules and their list into `tree`.
pub(crate) fn install_modules(
    tree: &mut Tree,
    directory: &Path,
    wanted: &[String],
    architecture: Architecture,
) -> Result<(), Error> {
    let failed = |why| Error::unusable("the root file system", why);
    let mut order = String::new();
    for module in modules::collect(directory, wanted)? {
        let of = object::File::parse(&*module.contents)
            .ok()
            .and_then(|file| Architecture::of(object::Object::architecture(&file)));
        if of != Some(architecture) {
            return Err(Error::unusable(
                directory,
                format!("its module {} is not for {architecture}, the agent's processor", module.name),
            ));
        }
        let file = format!("{}.ko", module.name);
        let node = Node::file(0o644, Content::Bytes(module.contents));
        tree.install(&Path::new(MODULES).join(&file), node).map_err(failed)?;
        order.push_str(&file);
        order.push('\n');
    }
    let list = Path::new(MODULES).join("load-order");
    tree.install(&list, Node::file(0o644, Content::Bytes(order.into_bytes()))).map_err(failed)?;
    Ok(())
}

/// Writes `tree` into `output`, without giving it its name yet.
pub(crate) fn pack(tree: &Tree, compression: Compression, epoch: u32, output: &mut Output) -> Result<(), Error> {
    let failed = output.failed();
    let mut to = std::io::BufWriter::with_capacity(1 << 18, output.file());
    match compression {
        Compression::None => cpio::write(tree, epoch, &mut to, &failed)?,
        Compression::Zstd => {
            // Level 19 needs a window of 8 MiB, well below what the kernel accepts.
            let mut encoder = zstd::Encoder::new(&mut to, 19).map_err(&failed)?;
            cpio::write(tree, epoch, &mut encoder, &failed)?;
            encoder.finish().map_err(&failed)?;
        }
    }
    to.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use object::elf;

    use super::*;
    use crate::{
        agent::tests::program,
        cpio::tests::{Entry, read_back},
        modules::tests::module,
    };

    const LOAD_ORDER: &str = "lib/modules/load-order";

    struct Case {
        directory: tempfile::TempDir,
    }

    impl Case {
        fn new(agent: &[u8]) -> Case {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("agent"), agent).unwrap();
            Case { directory }
        }

        fn build(&self, modules: Option<&[&str]>) -> Result<Vec<u8>, String> {
            let modules_directory = modules.is_some().then(|| self.directory.path().join("modules"));
            let modules: Vec<String> = modules.unwrap_or_default().iter().map(|name| (*name).to_owned()).collect();
            let agent = self.directory.path().join("agent");
            let output = self.directory.path().join("out");
            let contents =
                Contents { agent: &agent, modules_directory: modules_directory.as_deref(), modules: &modules };
            match initrd(&contents, &output) {
                Ok(()) => {
                    let image = fs::read(&output).unwrap();
                    fs::remove_file(&output).unwrap();
                    Ok(image)
                }
                Err(error) => {
                    assert!(!output.exists(), "a refusal leaves nothing");
                    Err(error.to_string())
                }
            }
        }
    }

    fn names(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn the_image_holds_agent_directories_and_console_and_is_reproducible() {
        let agent = program(2, 1, elf::PT_LOAD);
        let image = Case::new(&agent).build(None).unwrap();
        let entries = read_back(&image);
        assert_eq!(names(&entries), ["dev", "dev/console", "etc", "init", "proc", "run", "sys", "tmp"]);
        assert!(entries.iter().all(|entry| entry.owner == (0, 0) && entry.time == 0));
        assert_eq!((entries[1].mode, entries[1].device), (0o020_600, (5, 1)));
        assert_eq!((entries[3].mode, &entries[3].contents), (0o100_755, &agent));
        assert_eq!(image, Case::new(&agent).build(None).unwrap());
    }

    #[test]
    fn modules_lie_beside_their_list_in_the_order_of_loading() {
        let case = Case::new(&program(3, 1, elf::PT_LOAD));
        let modules = case.directory.path().join("modules/kernel");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("top-one.ko"), module(b"depends=base\0")).unwrap();
        fs::write(modules.join("base.ko"), module(b"depends=\0")).unwrap();
        let image = case.build(Some(&["top_one"])).unwrap();
        let entries = read_back(&image);
        let expected = ["lib", "lib/modules", "lib/modules/base.ko", LOAD_ORDER, "lib/modules/top_one.ko"];
        assert_eq!(names(&entries)[4..9], expected);
        assert_eq!(entries[7].contents, b"base.ko\ntop_one.ko\n");
        assert!(case.build(Some(&["absent"])).unwrap_err().starts_with("there is no module absent in "));
    }

    #[test]
    fn modules_for_another_processor_are_refused() {
        let mut agent = program(2, 1, elf::PT_LOAD);
        agent[18] = 183;
        let case = Case::new(&agent);
        fs::create_dir(case.directory.path().join("modules")).unwrap();
        fs::write(case.directory.path().join("modules/a.ko"), module(b"depends=\0")).unwrap();
        assert!(case.build(Some(&["a"])).unwrap_err().contains("its module a is not for aarch64"));
    }

    #[test]
    fn a_compressed_initrd_is_the_same_archive() {
        let mut tree = Tree::default();
        tree.put("a".into(), Node::file(0o644, Content::Bytes(vec![1; 100_000])));
        let directory = tempfile::tempdir().unwrap();
        let written = |compression| {
            let path = directory.path().join("out");
            let mut output = Output::create(&path).unwrap();
            pack(&tree, compression, 5, &mut output).unwrap();
            output.finish().unwrap();
            fs::read(path).unwrap()
        };
        let (plain, zstd) = (written(Compression::None), written(Compression::Zstd));
        assert!(zstd.len() < 1000);
        assert_eq!(zstd::decode_all(&zstd[..]).unwrap(), plain);
    }
}
