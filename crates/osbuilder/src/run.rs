//! Running the tools that others keep well: package managers and makers of file systems.
//!
//! # Interrupts
//!
//! [`catch_interrupts`] blocks SIGINT, SIGTERM and SIGHUP and leaves them pending: a descriptor stays readable from then on. Whoever
//! waits for a tool waits for that too, and whoever works for long looks at it by [`check`]; both then end by the ordinary way
//! of an error, on which everything temporary removes itself. A tool runs in a process group of its own, so that Ctrl-C reaches it
//! through us only, in order.
//!
//! # Mounts
//!
//! A package manager mounts and runs things inside the root it makes. [`Tool::contained`] runs it in mount and process namespaces of
//! its own: when it ends, however it ends, the kernel ends what it started and undoes what it mounted.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open},
};

use crate::{Error, sys};

/// How many of a tool's last lines an error shows.
const TAIL: usize = 15;

/// How long a tool that was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

static INTERRUPTED: OnceLock<OwnedFd> = OnceLock::new();

/// Makes the signals that end a program end a build in order. To be called before any thread is started.
///
/// # Errors
/// [`Error::System`].
pub fn catch_interrupts() -> Result<(), Error> {
    let fd = sys::block_ending_signals().map_err(|source| Error::System { step: "blocking signals".into(), source })?;
    // A second call changes nothing.
    let _ = INTERRUPTED.set(fd);
    Ok(())
}

/// Fails when the build was interrupted. Work that takes long calls it every now and then.
pub(crate) fn check() -> Result<(), Error> {
    let Some(fd) = INTERRUPTED.get() else { return Ok(()) };
    match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(1) => Err(Error::Interrupted),
        _ => Ok(()),
    }
}

/// A program that others keep, and the Debian package it is in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

impl Program {
    /// Finds it in `PATH` or where an administrator's programs are, which is not in every user's `PATH`.
    ///
    /// # Errors
    /// [`Error::NoTool`].
    pub(crate) fn find(&self) -> Result<PathBuf, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            .map(|directory| directory.join(self.name))
            .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file())
            .ok_or(Error::NoTool { tool: self.name, package: self.package })
    }
}

/// A tool about to be run.
#[derive(Debug)]
pub(crate) struct Tool {
    name: &'static str,
    command: Command,
    /// What is being done, for errors: "installing packages from …".
    step: String,
    contained: bool,
    /// The tool's output as it comes goes to our standard error.
    shown: bool,
    interruptible: bool,
    within: Duration,
}

/// What a tool that ended well has written.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Tool {
    /// `step` says what is being done, beginning with a verb in -ing.
    pub(crate) fn new(program: &Program, step: impl Into<String>) -> Result<Tool, Error> {
        Ok(Tool::at(program.name, &program.find()?, step))
    }

    /// A tool that is not looked for.
    pub(crate) fn at(name: &'static str, path: &Path, step: impl Into<String>) -> Tool {
        let mut command = Command::new(path);
        // Messages are read by people, but some are looked at here too.
        command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE");
        Tool {
            name,
            command,
            step: step.into(),
            contained: false,
            shown: false,
            interruptible: true,
            within: Duration::from_secs(600),
        }
    }

    /// Runs it although the build was interrupted: it cleans up.
    pub(crate) fn even_interrupted(mut self) -> Tool {
        self.interruptible = false;
        self
    }

    /// Names it in errors as what it runs.
    pub(crate) fn called(mut self, name: &'static str) -> Tool {
        self.name = name;
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Tool {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Tool {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.command.env(name, value);
        self
    }

    /// Limits the time it may take; without this, ten minutes.
    pub(crate) fn within(mut self, limit: Duration) -> Tool {
        self.within = limit;
        self
    }

    /// Shows what it says while it runs.
    pub(crate) fn shown(mut self, shown: bool) -> Tool {
        self.shown = shown;
        self
    }

    /// Runs it in mount and process namespaces of its own. Needs root.
    pub(crate) fn contained(mut self) -> Result<Tool, Error> {
        let unshare = Program { name: "unshare", package: "util-linux" }.find()?;
        let mut command = Command::new(unshare);
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.arg(self.command.get_program()).args(self.command.get_args());
        let environment: Vec<(OsString, Option<OsString>)> =
            self.command.get_envs().map(|(name, value)| (name.into(), value.map(Into::into))).collect();
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        self.contained = true;
        Ok(self)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`Error::Tool`] with its last lines, [`Error::Interrupted`], [`Error::System`].
    pub(crate) fn run(mut self) -> Result<Output, Error> {
        self.interrupted()?;
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        sys::die_with_us(&mut self.command);
        let child =
            self.command.spawn().map_err(|source| Error::System { step: format!("starting {}", self.name), source })?;
        let mut running = Running { child, contained: self.contained, ended: false };
        let (status, output) = self.follow(&mut running)?;
        if status.success() {
            return Ok(output);
        }
        Err(self.failure(how(status), &output))
    }

    fn interrupted(&self) -> Result<(), Error> {
        if self.interruptible { check() } else { Ok(()) }
    }

    fn failure(&self, how: String, output: &Output) -> Error {
        // Some tools complain on one, some on the other.
        let said = if output.stderr.iter().all(u8::is_ascii_whitespace) { &output.stdout } else { &output.stderr };
        Error::Tool { tool: self.name, step: self.step.clone(), how, said: tail(said) }
    }

    fn follow(&self, running: &mut Running) -> Result<(ExitStatus, Output), Error> {
        let system = |source: std::io::Error| Error::System { step: format!("waiting for {}", self.name), source };
        let deadline = Instant::now() + self.within;
        let mut output = Output::default();
        let mut stdout = running.child.stdout.take();
        let mut stderr = running.child.stderr.take();
        for fd in
            [stdout.as_ref().map(|pipe| pipe.as_fd()), stderr.as_ref().map(|pipe| pipe.as_fd())].into_iter().flatten()
        {
            rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).map_err(|error| system(error.into()))?;
        }
        let ended = pidfd_open(running.pid(), PidfdFlags::empty()).map_err(|error| system(error.into()))?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                running.kill();
                return Err(self.failure(format!("was not done after {} s", self.within.as_secs()), &output));
            }
            let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
            if let Some(interrupted) = INTERRUPTED.get().filter(|_| self.interruptible) {
                fds.push(PollFd::new(interrupted, PollFlags::IN));
            }
            if let Some(pipe) = &stdout {
                fds.push(PollFd::new(pipe, PollFlags::IN));
            }
            if let Some(pipe) = &stderr {
                fds.push(PollFd::new(pipe, PollFlags::IN));
            }
            let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(system(error.into())),
            }
            let over = !fds.first().is_none_or(|fd| fd.revents().is_empty());
            drop(fds);
            self.interrupted()?;
            drain(&mut stdout, &mut output.stdout, self.shown);
            drain(&mut stderr, &mut output.stderr, self.shown);
            // What it left in the background may hold the pipes open: its own end counts.
            if over {
                running.ended = true;
                return Ok((running.child.wait().map_err(system)?, output));
            }
        }
    }
}

/// A tool that is killed, with all it started, when this is dropped before its end.
#[derive(Debug)]
struct Running {
    child: Child,
    contained: bool,
    ended: bool,
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let pid = self.pid();
        // Of a contained one, the first process of its namespace: its parent ends when everything inside is gone.
        let inner = self.contained.then(|| first_child(pid)).flatten();
        if let Some(inner) = inner {
            let _ = kill_process(inner, Signal::KILL);
            let ended = pidfd_open(pid, PidfdFlags::empty());
            let within = Timespec { tv_sec: GONE_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
            if let Ok(ended) = ended {
                let _ = poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&within));
            }
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn first_child(pid: Pid) -> Option<Pid> {
    let pid = pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>, shown: bool) {
    let Some(reader) = pipe else { return };
    let mut buffer = [0; 16384];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let new = buffer.get(..count).unwrap_or_default();
                into.extend(new);
                if shown {
                    // If nobody can read it, the work goes on.
                    let _ = std::io::Write::write_all(&mut std::io::stderr(), new);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    *pipe = None;
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".into(),
    }
}

/// The last lines of what a tool said, cleaned of what a terminal would act on.
fn tail(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let mut last = VecDeque::new();
    // A progress bar rewrites its line.
    for line in text.split(['\n', '\r']) {
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        if !line.trim().is_empty() {
            last.push_back(format!("\n  {}", line.trim_end()));
            if last.len() > TAIL {
                last.pop_front();
            }
        }
    }
    last.into_iter().collect()
}

/// A directory for what is made on the way, removed with all it holds when dropped.
pub(crate) fn work_directory() -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new()
        .prefix("kata-osbuilder-")
        .tempdir()
        .map_err(|source| Error::Write { path: std::env::temp_dir(), source })
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> Result<fs::File, Error> {
    fs::File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SH: Program = Program { name: "sh", package: "dash" };

    fn sh(script: &str) -> Tool {
        Tool::new(&SH, "testing").unwrap().args(["-c", script])
    }

    #[test]
    fn output_and_failure_are_told() {
        let output = sh("echo out; echo err >&2").run().unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        let error =
            sh("for i in $(seq 30); do echo line $i >&2; done; printf '\\033[1m' >&2; exit 3").run().unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("testing: sh failed with status 3; it said last:\n  line 17\n"), "{text}");
        assert!(text.ends_with("line 30\n  [1m"), "{text}");
        assert!(sh("echo on stdout; exit 1").run().unwrap_err().to_string().contains("on stdout"));
        assert!(sh("kill -9 $$").run().unwrap_err().to_string().contains("was killed by signal 9"));
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = Program { name: "no-such-tool", package: "some-package" }.find().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the program no-such-tool is needed; install it (Debian: apt-get install some-package)"
        );
    }

    #[test]
    fn a_tool_that_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let error = sh(&script).within(Duration::from_secs(1)).run().unwrap_err().to_string();
        assert!(error.contains("was not done after 1 s"), "{error}");
        let pid = fs::read_to_string(file).unwrap();
        // An orphan is reaped by somebody else: a zombie counts as gone.
        let gone = || {
            let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            state.is_empty() || state.contains(") Z ") || state.contains(") X ")
        };
        let begun = Instant::now();
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(10), "the child is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_contained_tool_leaves_no_process_and_no_mount() {
        if !is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let script = format!("mount -t tmpfs none {0} && touch {0}/x; sleep 1000 & wait", directory.path().display());
        let error = sh(&script).contained().unwrap().within(Duration::from_secs(2)).run().unwrap_err().to_string();
        assert!(error.contains("was not done after 2 s"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
