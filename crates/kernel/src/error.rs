//! Why there is no kernel.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use crate::{Lost, Missing, pin::Pin};

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something cannot be done to a file or directory.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done.
        action: String,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// Its name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{shown} failed ({status}):\n{output}")]
    Program {
        /// The command.
        shown: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it printed.
        output: String,
    },
    /// A program printed nothing for too long, and was ended.
    #[error("{program} was ended: it had printed nothing for {} s", silence.as_secs())]
    Silent {
        /// Its name.
        program: String,
        /// How long it was silent.
        silence: Duration,
    },
    /// Programs or headers are missing.
    #[error("a build needs what is not installed: {}; run `apt-get install {}`", list(missing), packages(missing))]
    Tools {
        /// All of them.
        missing: Vec<Missing>,
    },
    /// A directory of fragments has none.
    #[error("{} has no *.conf; name the directory of the kernel's configuration fragments with --fragments", directory.display())]
    NoFragments {
        /// The directory.
        directory: PathBuf,
    },
    /// Lines of fragments are wrong.
    #[error("the configuration fragments are wrong:\n{}", problems.join("\n"))]
    Fragments {
        /// For each the file, the line, and what was expected.
        problems: Vec<String>,
    },
    /// The kernel's configuration did not take everything.
    #[error(
        "Linux {version} did not take {} of the options that are wanted:\n{}",
        lost.len(),
        lost.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    )]
    Lost {
        /// The kernel's version.
        version: String,
        /// What it did not take.
        lost: Vec<Lost>,
    },
    /// The file with the versions of sources is wrong.
    #[error("{} is wrong: {why}", path.display())]
    Sources {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The source cannot be downloaded.
    #[error("cannot download {package}: {why}")]
    Fetch {
        /// Debian's package.
        package: String,
        /// What went wrong, and what to do.
        why: String,
    },
    /// A file has other contents than it should have.
    #[error("{} has the SHA-256 {found}; expected {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A source is not a kernel's.
    #[error("{} cannot be built: {why}", path.display())]
    NotAKernel {
        /// Where it is.
        path: PathBuf,
        /// What was expected.
        why: String,
    },
    /// An environment variable cannot be used.
    #[error("the variable {name} is wrong: {why}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What was expected.
        why: String,
    },
    /// The disk is too full.
    #[error("{} has {} MB free; {} MB are needed for {what}", path.display(), free >> 20, needed >> 20)]
    Space {
        /// A directory on that disk.
        path: PathBuf,
        /// What needs the space.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// The output cannot be put where it should be.
    #[error("the output {} cannot be used: {why}; name another with --output", path.display())]
    Output {
        /// Where.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Another program holds a lock for too long.
    #[error("{} was held by another kata-kernel for {} s; end that one first", path.display(), deadline.as_secs())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// make failed.
    #[error("{what} failed ({status}):{lines}\nall of make's output is in {}", log.display())]
    Make {
        /// What it was doing.
        what: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The lines that tell why.
        lines: String,
        /// The file with all of its output.
        log: PathBuf,
    },
    /// make printed nothing for too long, and was ended.
    #[error("{what} was ended: make had printed nothing for {} s; all of its output is in {}", silence.as_secs(), log.display())]
    MakeSilent {
        /// What it was doing.
        what: &'static str,
        /// How long it was silent.
        silence: Duration,
        /// The file with all of its output.
        log: PathBuf,
    },
    /// The linked kernel cannot be booted.
    #[error("the linked kernel is no good")]
    Trim(#[source] osbuilder::Error),
    /// This program was asked to end.
    #[error("interrupted; the output is as it was before")]
    Interrupted {
        /// By which signal.
        signal: i32,
    },
}

impl Error {
    pub(crate) fn io(action: impl Into<String>, path: &Path, source: io::Error) -> Error {
        Error::Io { action: action.into(), path: path.to_path_buf(), source }
    }

    pub(crate) fn fetch(pin: &Pin, why: impl Into<String>) -> Error {
        let why = format!("{}\nif the package lists are old, run `apt-get update`", why.into());
        Error::Fetch { package: format!("{} {}", pin.package, pin.version), why }
    }
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(|one| format!("{} ({})", one.name, one.why)).collect::<Vec<_>>().join(", ")
}

fn packages(missing: &[Missing]) -> String {
    let mut names: Vec<&str> = missing.iter().map(|one| one.package.as_str()).collect();
    names.dedup();
    names.join(" ")
}
