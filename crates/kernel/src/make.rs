//! The kernel's own build, in a directory of its own in the cache.
//!
//! Objects are kept between builds of one source for one architecture: make then compiles only what a change of the
//! configuration touches.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    Arch, Error, Interrupts, child, console,
    dotconfig::DotConfig,
    files,
    lock::Lock,
    merge::Config,
    progress::{self, Progress},
    source::{self, Source},
    version::Version,
};

/// The longest single step, linking the kernel, takes seconds; minutes on a machine that does many things.
const SILENCE: Duration = Duration::from_secs(1800);
/// Configuration says nothing while it works.
const CONFIGURING: Duration = Duration::from_secs(600);
/// What the objects of one architecture take at most.
const OBJECTS: u64 = 3 << 29;
/// Lines of make's output that a failure shows.
const SHOWN: usize = 20;
/// For a first estimate of make's steps: so many for each option that is on.
const STEPS_PER_OPTION: f64 = 2.2;
/// Steps that do not depend on the configuration.
const STEPS: usize = 400;

/// What is built from what, for what.
pub(crate) struct Job<'a> {
    pub arch: Arch,
    pub source: &'a Source,
    pub version: &'a Version,
    pub config: &'a Config,
}

/// The directory in which make works, held by a lock.
pub(crate) struct Workshop<'a> {
    job: &'a Job<'a>,
    /// Where make leaves everything.
    pub objects: PathBuf,
    interrupts: &'a Interrupts,
    _lock: Lock,
}

impl<'a> Workshop<'a> {
    /// Takes the directory for this source and architecture; another one for `purpose`, if that is not empty.
    pub(crate) fn enter(
        job: &'a Job<'a>,
        cache: &Path,
        purpose: &str,
        interrupts: &'a Interrupts,
    ) -> Result<Workshop<'a>, Error> {
        let id = files::sha256_of(&[&job.source.id]);
        let objects = cache.join("kernel-build").join(format!("{}-{}{purpose}", job.arch, &id[..16]));
        let what = format!("the kernel for {}", job.arch);
        let lock = Lock::take(&objects.with_extension("lock"), &what, interrupts)?;
        let workshop = Workshop { job, objects, interrupts, _lock: lock };
        if workshop.beside("unfinished").exists() {
            // make removes what it was writing when it is asked to end. Killed, it leaves objects that are not whole.
            console::say("the last build was killed; its objects are removed");
            files::remove(&workshop.objects)?;
        }
        files::make_directory(&workshop.objects)?;
        Ok(workshop)
    }

    /// A file beside the directory.
    fn beside(&self, extension: &str) -> PathBuf {
        self.objects.with_extension(extension)
    }

    /// Where make's output is kept when it fails.
    fn log(&self) -> PathBuf {
        self.beside("log")
    }

    /// Configures the kernel and checks that everything that was wanted is there.
    pub(crate) fn configure(&self) -> Result<DotConfig, Error> {
        let wanted = self.beside("wanted");
        files::write(&wanted, &self.job.config.text())?;
        let mut command = self.command();
        command.env("KCONFIG_ALLCONFIG", &wanted).arg("allnoconfig");
        self.make(command, CONFIGURING, "configuring the kernel", |_| {})?;
        let config = DotConfig::read(&self.objects.join(".config"))?;
        config.check(self.job.config, self.job.version, &self.job.source.tree, self.job.arch.folder())?;
        Ok(config)
    }

    /// Compiles and links.
    pub(crate) fn build(&self, config: &DotConfig, jobs: usize) -> Result<(), Error> {
        let count = self.beside("steps");
        let fresh = !self.objects.join("System.map").exists();
        let counted = std::fs::read_to_string(&count).ok().and_then(|text| text.trim().parse().ok());
        let total = counted.unwrap_or(STEPS + (config.count() as f64 * STEPS_PER_OPTION) as usize);
        if fresh {
            files::need_space(&self.objects, OBJECTS, "the kernel's objects")?;
        }
        let name = format!("Linux {} for {}", self.job.version.full, self.job.arch);
        console::say(&format!("{name}: {} options, {jobs} jobs", config.count()));
        let mut progress = Progress::new(name, fresh.then_some(total));
        let mut command = self.command();
        command.arg(format!("--jobs={jobs}")).args(self.job.arch.targets());
        self.make(command, SILENCE, "building the kernel", |line| progress.line(line))?;
        let steps = progress.finish();
        if fresh { files::write(&count, &format!("{steps}\n")) } else { Ok(()) }
    }

    /// make with everything that must not depend on who builds where and when.
    fn command(&self) -> Command {
        let Job { arch, source, .. } = self.job;
        let mut command = Command::new("make");
        command.arg("--no-print-directory").arg("-C").arg(&source.tree);
        let mut output = std::ffi::OsString::from("O=");
        output.push(&self.objects);
        command
            .arg(output)
            .arg(format!("ARCH={}", arch.of_make()))
            .arg(format!("CROSS_COMPILE={}", arch.tool_prefix()));
        command.env_clear();
        for (name, value) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if matches!(&*name_text, "PATH" | "HOME" | "TMPDIR") || name_text.starts_with("CCACHE_") {
                command.env(name, value);
            }
        }
        command
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("KBUILD_BUILD_TIMESTAMP", source::shown(source.time))
            .env("KBUILD_BUILD_VERSION", "1")
            .env("KBUILD_BUILD_USER", "kata")
            .env("KBUILD_BUILD_HOST", "kata")
            // Otherwise a source in a git repository adds a plus to the version.
            .env("LOCALVERSION", "");
        command
    }

    /// Runs make, with its output in the log, which is kept only if it fails.
    fn make(
        &self,
        command: Command,
        silence: Duration,
        what: &'static str,
        mut on_line: impl FnMut(&str),
    ) -> Result<(), Error> {
        let path = self.log();
        let log = File::create(&path).map_err(|source| Error::io("write", &path, source))?;
        let mut log = BufWriter::new(log);
        let mut full = None;
        let mut failure = Failure::default();
        let mark = self.beside("unfinished");
        files::write(&mark, "")?;
        let result = child::run(command, self.interrupts, silence, |line| {
            // Reported at the end: make itself is better at saying what a full disk means.
            if let Err(error) = writeln!(log, "{line}") {
                full.get_or_insert(error);
            }
            failure.line(line);
            on_line(line);
        });
        // make has ended, and has removed what was not whole.
        files::remove(&mark)?;
        let flushed = log.flush();
        match result {
            Ok(status) if status.success() => files::remove(&path),
            Ok(status) => match full.or(flushed.err()) {
                Some(source) => Err(Error::io("write", &path, source)),
                None => Err(Error::Make { what, status, lines: failure.lines(), log: path }),
            },
            Err(interrupted @ Error::Interrupted { .. }) => {
                files::remove(&path)?;
                Err(interrupted)
            }
            Err(Error::Silent { silence, .. }) => Err(Error::MakeSilent { what, silence, log: path }),
            Err(other) => Err(other),
        }
    }
}

/// Keeps of make's output what tells why it failed.
#[derive(Default)]
struct Failure {
    errors: Vec<String>,
    last: VecDeque<String>,
}

impl Failure {
    fn line(&mut self, line: &str) {
        let telling = ["error: ", "Error ", "undefined reference", "***", "No such file", "not found", "No space left"];
        if self.errors.len() < SHOWN && telling.iter().any(|text| line.contains(text)) {
            self.errors.push(line.into());
        }
        if progress::step(line).is_none() {
            if self.last.len() == SHOWN {
                self.last.pop_front();
            }
            self.last.push_back(line.into());
        }
    }

    fn lines(self) -> String {
        let lines = if self.errors.is_empty() { self.last.into() } else { self.errors };
        lines.iter().map(|line| format!("\n    {line}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_errors_or_the_last_lines() {
        let mut failure = Failure::default();
        for line in ["  CC      a.o", "a.c:1:2: error: no", "note", "make: *** [a.o] Error 1"] {
            failure.line(line);
        }
        assert_eq!(failure.lines(), "\n    a.c:1:2: error: no\n    make: *** [a.o] Error 1");
        let mut failure = Failure::default();
        for number in 0..100 {
            failure.line(&format!("line {number}"));
            failure.line("  CC      a.o");
        }
        let lines = failure.lines();
        assert!(lines.starts_with("\n    line 80\n") && lines.ends_with("\n    line 99"), "{lines}");
    }
}
