//! The guest image: the agent, its directories, its modules.

use std::path::Path;

use object::{
    Architecture, Endianness, Object, ObjectKind, elf,
    read::elf::{ElfFile64, ProgramHeader},
};

use crate::{
    Error,
    cpio::Archive,
    modules::{self, Module},
    output, read,
};

/// What a guest needs of a kernel that has it as modules: the channel to the host (`virtio_console` over `virtio_pci`) and the shared
/// file system. Every further module costs time at each start.
pub const DEFAULT_MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "virtiofs"];

/// The directories in the image, with their permissions: what the agent mounts on, or writes to before it mounts anything.
const DIRECTORIES: [(&str, u32); 6] =
    [("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777)];

/// Where the modules and their list are: the directory of `agent_api::MODULE_LIST`.
const MODULES: [&str; 2] = ["lib", "lib/modules"];
const LOAD_ORDER: &str = "lib/modules/load-order";

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

/// Writes the guest image `output`. It is not compressed: reading a few megabytes from the host's page cache is quicker than
/// having an emulated processor decompress them, and the kernel needs no support for a compression.
///
/// # Errors
/// Any [`Error`]; then no output is left.
pub fn initrd(contents: &Contents, output: &Path) -> Result<(), Error> {
    let agent = read(contents.agent)?;
    let architecture = check_static(&agent).map_err(|why| Error::unusable(contents.agent, why))?;
    let modules = match contents.modules_directory {
        Some(directory) => modules::collect(directory, contents.modules)?,
        None => Vec::new(),
    };
    for module in &modules {
        if architecture_of(&module.contents) != Some(architecture) {
            return Err(Error::unusable(
                contents.agent,
                format!("it is not for the same processor as the module {}", module.name),
            ));
        }
    }
    let archive = archive(&agent, &modules).map_err(|why| Error::unusable(contents.agent, why))?;
    output::write(output, &archive)
}

fn archive(agent: &[u8], modules: &[Module]) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    for (name, permissions) in DIRECTORIES {
        archive.directory(name, permissions);
    }
    // The kernel opens it for the first program before that can mount /dev.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, agent)?;
    if !modules.is_empty() {
        for name in MODULES {
            archive.directory(name, 0o755);
        }
        let mut order = String::new();
        for module in modules {
            let file = format!("{}.ko", module.name);
            archive.file(&format!("{}/{file}", MODULES[1]), 0o644, &module.contents)?;
            order.push_str(&file);
            order.push('\n');
        }
        archive.file(LOAD_ORDER, 0o644, order.as_bytes())?;
    }
    Ok(archive.finish())
}

/// Checks that `program` runs without a dynamic loader, of which there is none in the guest, and returns its processor.
fn check_static(program: &[u8]) -> Result<Architecture, String> {
    let file = ElfFile64::<Endianness>::parse(program)
        .map_err(|_| "it is not a 64-bit ELF program; the agent must be a static one")?;
    if !matches!(file.kind(), ObjectKind::Executable | ObjectKind::Dynamic) || file.entry() == 0 {
        return Err("it cannot be executed: it is an object file or a library".into());
    }
    if file.elf_program_headers().iter().any(|header| header.p_type(file.endian()) == elf::PT_INTERP) {
        let remedy = "build the agent with `-C target-feature=+crt-static`";
        return Err(format!("it is dynamically linked, and the guest has no libraries; {remedy}"));
    }
    Ok(file.architecture())
}

fn architecture_of(module: &[u8]) -> Option<Architecture> {
    object::File::parse(module).ok().map(|file| file.architecture())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{cpio::tests::read_back, modules::tests::module};

    /// An ELF program for x86-64 with one program header of type `header`.
    fn program(kind: u8, entry: u8, header: u32) -> Vec<u8> {
        let mut out = vec![0; 64 + 56];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (out[16], out[18], out[20], out[24]) = (kind, 62, 1, entry);
        (out[32], out[52], out[54], out[56]) = (64, 64, 56, 1);
        out[64..68].copy_from_slice(&header.to_le_bytes());
        out
    }

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

    #[test]
    fn the_image_holds_agent_directories_and_console_and_is_reproducible() {
        let agent = program(2, 1, elf::PT_LOAD);
        let image = Case::new(&agent).build(None).unwrap();
        let entries = read_back(&image);
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["dev", "etc", "proc", "run", "sys", "tmp", "dev/console", "init"]);
        assert!(entries.iter().all(|entry| entry.2 == (0, 0) && entry.3 == 0));
        assert_eq!((entries[6].1, entries[6].4), (0o020_600, (5, 1)));
        assert_eq!((entries[7].1, &entries[7].5), (0o100_755, &agent));
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
        let tail: Vec<_> = entries[8..].iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(tail, ["lib", "lib/modules", "lib/modules/base.ko", "lib/modules/top_one.ko", LOAD_ORDER]);
        assert_eq!(entries.last().unwrap().5, b"base.ko\ntop_one.ko\n");
        assert!(case.build(Some(&["absent"])).unwrap_err().starts_with("there is no module absent in "));
    }

    #[test]
    fn an_agent_that_cannot_run_in_the_guest_is_refused() {
        for (agent, expected) in [
            (program(3, 1, elf::PT_INTERP), "dynamically linked"),
            (program(3, 0, elf::PT_LOAD), "object file or a library"),
            (program(1, 1, elf::PT_LOAD), "object file or a library"),
            (b"#!/bin/sh\n".to_vec(), "not a 64-bit ELF program"),
        ] {
            let error = Case::new(&agent).build(None).unwrap_err();
            assert!(error.contains("agent is no good") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn modules_for_another_processor_are_refused() {
        let mut agent = program(2, 1, elf::PT_LOAD);
        agent[18] = 183;
        let case = Case::new(&agent);
        fs::create_dir(case.directory.path().join("modules")).unwrap();
        fs::write(case.directory.path().join("modules/a.ko"), module(b"depends=\0")).unwrap();
        assert!(case.build(Some(&["a"])).unwrap_err().contains("not for the same processor as the module a"));
    }
}
