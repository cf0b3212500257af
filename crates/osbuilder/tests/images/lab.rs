//! What the tests share: a directory of their own, the program, and a look into an initrd.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// A directory with an agent, an empty `out` and a `tmp` that the program takes for its temporary files.
pub struct Lab {
    directory: tempfile::TempDir,
}

/// What a build said.
pub struct Said {
    pub success: bool,
    pub stderr: String,
}

impl Lab {
    pub fn new() -> Lab {
        let lab = Lab { directory: tempfile::tempdir().unwrap() };
        for name in ["out", "tmp"] {
            fs::create_dir(lab.at(name)).unwrap();
        }
        fs::write(lab.at("agent"), agent()).unwrap();
        lab
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `kata-osbuilder build` with the agent, into `out/image`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-osbuilder"));
        command.arg("build").arg("--agent").arg(self.at("agent")).arg("--output").arg(self.at("out/image"));
        command.args(arguments).env("TMPDIR", self.at("tmp")).env_remove("SOURCE_DATE_EPOCH");
        command.stdin(Stdio::null());
        command
    }

    pub fn build(&self, arguments: &[&str]) -> Said {
        Said::of(&self.command(arguments).output().unwrap())
    }

    /// Builds, and expects it to go well.
    pub fn built(&self, arguments: &[&str]) -> BTreeMap<String, Entry> {
        let said = self.build(arguments);
        assert!(said.success, "{}", said.stderr);
        assert_eq!(names(&self.at("tmp")), [""; 0], "temporary files are left");
        read(&fs::read(self.at("out/image")).unwrap())
    }

    /// Builds, and expects it to be refused with these words and to leave nothing.
    pub fn refused(&self, arguments: &[&str], words: &[&str]) {
        let said = self.build(arguments);
        assert!(!said.success, "{arguments:?} went well");
        for words in words {
            assert!(said.stderr.contains(words), "{words:?} is not in: {}", said.stderr);
        }
        self.is_clean();
    }

    pub fn is_clean(&self) {
        assert_eq!(names(&self.at("out")), [""; 0], "output is left");
        assert_eq!(names(&self.at("tmp")), [""; 0], "temporary files are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.at("tmp").to_str().unwrap()), "a mount is left");
    }
}

impl Said {
    pub fn of(output: &Output) -> Said {
        Said { success: output.status.success(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}

pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether every program is there; if not, says which, so that a skipped test tells why.
pub fn have(programs: &[(&str, &str)]) -> bool {
    for (program, package) in programs {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
        if !found {
            eprintln!("skipped: needs {program} (Debian: {package})");
            return false;
        }
    }
    true
}

pub fn have_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs a tool that makes what a test needs.
pub fn tool(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>, home: &Path) {
    let mut command = Command::new(program);
    command.args(arguments).env("HOME", home).env("GNUPGHOME", home).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What an initrd has under a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub owner: (u32, u32),
    pub contents: String,
}

fn read(archive: &[u8]) -> BTreeMap<String, Entry> {
    let mut rest = std::io::Cursor::new(archive.to_vec());
    let mut entries = BTreeMap::new();
    loop {
        let mut reader = cpio::NewcReader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            return entries;
        }
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).unwrap();
        let entry = reader.entry();
        let (mode, owner) = (entry.mode(), (entry.uid(), entry.gid()));
        let contents = String::from_utf8_lossy(&contents).into_owned();
        entries.insert(entry.name().to_owned(), Entry { mode, owner, contents });
        rest = reader.finish().unwrap();
    }
}

/// A static ELF program for this machine, as far as its headers say.
fn agent() -> Vec<u8> {
    let machine = match std::env::consts::ARCH {
        "aarch64" => 183,
        "s390x" => 22,
        "powerpc64" => 21,
        _ => 62,
    };
    let mut out = vec![0; 64 + 56];
    out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (out[16], out[18], out[20], out[24]) = (2, machine, 1, 1);
    (out[32], out[52], out[54], out[56]) = (64, 64, 56, 1);
    out[64] = 1;
    out
}
