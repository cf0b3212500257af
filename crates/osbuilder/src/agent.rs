//! The agent in a guest's root: whether it can run there, and where it is.

use std::path::{Path, PathBuf};

use object::{
    Endianness, Object, ObjectKind, elf,
    read::elf::{ElfFile64, ProgramHeader},
};

use crate::{
    Architecture, Error,
    tree::{Content, EMPTY, Kind, Node, Tree},
};

/// Where the agent is in the root of a distribution, and in every disk image.
pub(crate) const AGENT: &str = "usr/bin/kata-agent";

/// The directories that an image has, with their permissions: what the agent mounts on, or writes to before it mounts anything. A disk
/// image's root is read-only, so the guest could not make them.
const DIRECTORIES: [(&str, u32); 6] =
    [("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777)];

/// What an agent's file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) architecture: Architecture,
    /// The dynamic loader it needs.
    pub(crate) loader: Option<PathBuf>,
}

impl Program {
    /// Reads its headers; the error is the reason why it cannot be the agent.
    pub(crate) fn parse(program: &[u8]) -> Result<Program, String> {
        let file = ElfFile64::<Endianness>::parse(program)
            .map_err(|_| "it is not a 64-bit ELF program; the agent must be one")?;
        if !matches!(file.kind(), ObjectKind::Executable | ObjectKind::Dynamic) || file.entry() == 0 {
            return Err("it cannot be executed: it is an object file or a library".into());
        }
        let architecture = Architecture::of(file.architecture()).ok_or_else(|| {
            format!("it is for a processor that guests are not built for ({:?})", file.architecture())
        })?;
        let loader = file.elf_program_headers().iter().find(|header| header.p_type(file.endian()) == elf::PT_INTERP);
        let loader = match loader {
            Some(header) => {
                let name =
                    header.data(file.endian(), program).map_err(|()| "the name of its loader lies beyond its end")?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                Some(PathBuf::from(String::from_utf8_lossy(name).into_owned()))
            }
            None => None,
        };
        Ok(Program { architecture, loader })
    }

    /// Checks that it can run in `tree`.
    pub(crate) fn runs_in(&self, tree: &Tree) -> Result<(), String> {
        let Some(loader) = &self.loader else { return Ok(()) };
        if matches!(tree.lookup(loader), Some(Node { kind: Kind::File(_), .. })) {
            return Ok(());
        }
        let remedy = "build the agent with `-C target-feature=+crt-static`";
        Err(format!("it is dynamically linked, and the guest has no {}; {remedy}", loader.display()))
    }
}

/// What the first program of a guest is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// `/init`, in an initrd; the agent itself if there is nothing else.
    Init { alone: bool },
    /// `/sbin/init`, on a disk.
    SbinInit,
}

/// Puts the agent into `tree`, or, without one, checks that it holds one; then everything else that every image has. Returns
/// for which processor it is.
pub(crate) fn install(tree: &mut Tree, agent: Option<(&Path, Vec<u8>)>, first: First) -> Result<Architecture, Error> {
    for (name, mode) in DIRECTORIES {
        let made = tree.make_directories(Path::new(name)).map_err(|why| Error::unusable(name, why))?;
        if EMPTY.contains(&name) {
            tree.empty(&made);
            tree.put(made, Node::directory(mode));
        }
    }
    let within = |why: String| Error::unusable("the root file system", why);
    let program = match agent {
        Some((path, bytes)) => {
            let program = Program::parse(&bytes).map_err(|why| Error::unusable(path, why))?;
            program.runs_in(tree).map_err(|why| Error::unusable(path, why))?;
            let place = if first == (First::Init { alone: true }) { "init" } else { AGENT };
            tree.install(Path::new(place), Node::file(0o755, Content::Bytes(bytes))).map_err(within)?;
            program
        }
        None => {
            let none = || {
                within(format!("it is a root without an agent: it has no executable /{AGENT}; name one with --agent"))
            };
            let Some(Node { kind: Kind::File(content), mode, .. }) = tree.lookup(AGENT) else { return Err(none()) };
            if mode & 0o111 == 0 {
                return Err(none());
            }
            let program =
                Program::parse(&content.read()?).map_err(|why| within(format!("its /{AGENT} is no good: {why}")))?;
            program.runs_in(tree).map_err(|why| within(format!("its /{AGENT} is no good: {why}")))?;
            program
        }
    };
    let link = match first {
        First::Init { alone: true } => None,
        First::Init { alone: false } => Some("init"),
        First::SbinInit => Some("sbin/init"),
    };
    if let Some(link) = link {
        tree.install(Path::new(link), Node::link(Path::new("/").join(AGENT))).map_err(within)?;
    }
    Ok(program.architecture)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF program for x86-64 with one program header of type `header`, whose data is the name of a loader.
    pub(crate) fn program(kind: u8, entry: u8, header: u32) -> Vec<u8> {
        let mut out = vec![0; 64 + 56];
        out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (out[16], out[18], out[20], out[24]) = (kind, 62, 1, entry);
        (out[32], out[52], out[54], out[56]) = (64, 64, 56, 1);
        out[64..68].copy_from_slice(&header.to_le_bytes());
        (out[72], out[96]) = (120, 11);
        out.extend(b"/lib/ld.so\0");
        out
    }

    #[test]
    fn an_agent_that_cannot_run_in_the_guest_is_refused() {
        for (agent, expected) in [
            (program(3, 1, elf::PT_INTERP), "dynamically linked, and the guest has no /lib/ld.so;"),
            (program(3, 0, elf::PT_LOAD), "object file or a library"),
            (program(1, 1, elf::PT_LOAD), "object file or a library"),
            (b"#!/bin/sh\n".to_vec(), "not a 64-bit ELF program"),
        ] {
            let agent = Some((Path::new("agent"), agent));
            let error = install(&mut Tree::default(), agent, First::Init { alone: true }).unwrap_err().to_string();
            assert!(error.contains("agent is no good") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_dynamic_agent_runs_where_its_loader_is() {
        let mut tree = Tree::default();
        tree.install(Path::new("usr/lib/ld.so"), Node::file(0o755, Content::Bytes(vec![]))).unwrap();
        tree.put("lib".into(), Node::link("usr/lib"));
        let agent = Some((Path::new("agent"), program(3, 1, elf::PT_INTERP)));
        assert_eq!(install(&mut tree, agent, First::SbinInit).unwrap(), Architecture::X86_64);
        assert_eq!(tree.lookup("sbin/init").unwrap().mode, 0o755);
        assert_eq!(tree.get("proc").unwrap().mode, 0o555);
        // Now it holds one of its own.
        assert!(install(&mut tree, None, First::Init { alone: false }).is_ok());
        assert_eq!(tree.lookup("init"), tree.get(AGENT));
    }

    #[test]
    fn a_root_without_an_agent_is_refused() {
        let mut tree = Tree::default();
        let refused = |tree: &mut Tree| install(tree, None, First::SbinInit).unwrap_err().to_string();
        assert!(refused(&mut tree).contains("root without an agent"));
        tree.install(Path::new(AGENT), Node::file(0o644, Content::Bytes(program(2, 1, elf::PT_LOAD)))).unwrap();
        assert!(refused(&mut tree).contains("no executable /usr/bin/kata-agent"));
        tree.install(Path::new(AGENT), Node::file(0o755, Content::Bytes(b"text".to_vec()))).unwrap();
        assert!(refused(&mut tree).contains("not a 64-bit ELF program"));
    }

    #[test]
    fn what_is_mounted_over_is_emptied() {
        let mut tree = Tree::default();
        tree.install(Path::new("dev/null"), Node::file(0o644, Content::Bytes(vec![]))).unwrap();
        tree.put("run".into(), Node::link("var/run"));
        let agent = Some((Path::new("agent"), program(2, 1, elf::PT_LOAD)));
        install(&mut tree, agent, First::SbinInit).unwrap();
        assert_eq!(tree.get("dev/null"), None);
        assert!(tree.lookup("run").unwrap().is_directory());
    }
}
