//! `kata-shim`: the process on the host that stands for one process of a container.
//!
//! `create`, `run --detach` and `exec --detach` return and leave this behind, so that callers who wait on a pid, signal it or
//! look at its exit status find what they would find with a container on the host. It carries the process's stdio,
//! forwards signals, and ends as the process did. If it is killed, the daemon kills the process.
//!
//! It is started through `/proc/self/exe` with the descriptors it needs and becomes a child of whoever reaps its parent's
//! orphans. It exists before the process does, so that hooks have a process id to look at, in the place on the host that is the
//! container's ([`crate::place`]). One of the descriptors is a socket: it writes [`READY`] there once it is in that place, waits for
//! the same byte, and writes it again once it stands for the process; or else it writes why it cannot. If whoever started it goes
//! away before, so does it.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use agent_api::{ExitStatus, WindowSize};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, FdFlags},
    process::{PidfdFlags, pidfd_open},
    time::Timespec,
};
use sandbox::{
    client::{Client, Running},
    hooks::{self, Point, Told},
    store::Store,
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, console,
    foreground::{CONTAINER_GRACE, EXEC_GRACE, how_it_ended},
    place::{Place, Standing},
    pump::Pumps,
    signals::{Signals, Target},
    stdio::OurEnds,
    sys,
    terminal::{self, Terminal},
    view::View,
};

/// `argv[0]` under which the executable is this.
pub(crate) const ROLE: &str = "kata-shim";
/// Says that it is where it should be, that the process exists, and that it stands for the process.
const READY: u8 = b'\n';
/// How long it may take to say so.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Exit code when the sandbox died before the process ended.
const LOST: u8 = 255;

/// What a shim is told, as JSON in its only argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    id: String,
    exec: Option<String>,
    root: std::path::PathBuf,
    place: Place,
    view: Option<View>,
    /// Who called the command that started it.
    caller: i32,
    /// Descriptors: the ends of stdio, the connection to the console socket, and the socket to who started it.
    stdin: Option<RawFd>,
    stdout: Option<RawFd>,
    stderr: Option<RawFd>,
    console: Option<RawFd>,
    ready: RawFd,
    /// The terminal's first size, rows and columns.
    size: Option<(u16, u16)>,
}

/// What a shim is to stand for.
pub(crate) struct Job<'a> {
    /// Where containers are.
    pub store: &'a Store,
    /// The container.
    pub id: &'a str,
    /// The exec'd process, or the container's first one.
    pub exec: Option<&'a str>,
    /// Our ends of its stdio.
    pub ends: OurEnds,
    /// Where the master of its terminal is sent, if it has one.
    pub console: Option<OwnedFd>,
    /// That terminal's first size.
    pub size: Option<WindowSize>,
    /// Where on the host it is to be.
    pub place: Place,
    /// The files that are to be seen through it, if not the caller's.
    pub view: Option<View>,
}

/// A shim that waits for the process to exist. It ends when this is dropped.
pub(crate) struct Waiting {
    child: Child,
    socket: UnixStream,
    stays: bool,
}

/// Starts a shim and waits until it is where it should be.
///
/// # Errors
/// It cannot be started, or says why it cannot get there; it has ended then.
pub(crate) fn start(job: Job<'_>) -> Result<Waiting> {
    let (socket, ready) = UnixStream::pair().map_err(|e| Error::io("make a socket pair for kata-shim", e))?;
    let root = std::path::absolute(job.store.root()).map_err(|e| Error::io("find the current directory", e))?;
    let pass = |descriptor: &dyn AsRawFd, fd: rustix::fd::BorrowedFd<'_>| -> Result<RawFd> {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(|e| Error::io("pass a descriptor to kata-shim", e))?;
        Ok(descriptor.as_raw_fd())
    };
    let pass_end = |end: &Option<UnixStream>| end.as_ref().map(|end| pass(end, end.as_fd())).transpose();
    let plan = Plan {
        id: job.id.into(),
        exec: job.exec.map(Into::into),
        root,
        place: job.place.clone(),
        view: job.view.clone(),
        caller: parent(),
        stdin: pass_end(&job.ends.stdin)?,
        stdout: pass_end(&job.ends.stdout)?,
        stderr: pass_end(&job.ends.stderr)?,
        console: job.console.as_ref().map(|socket| pass(socket, socket.as_fd())).transpose()?,
        ready: pass(&ready, ready.as_fd())?,
        size: job.size.map(|size| (size.rows, size.cols)),
    };
    let plan = serde_json::to_string(&plan).map_err(|e| Error::io("write kata-shim's orders", e))?;
    let mut command = Command::new("/proc/self/exe");
    if job.console.is_some() {
        // The process has its terminal. A caller may wait for the end of what it gave this command for output: containerd's shim does.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    let child = command.arg0(ROLE).arg(plan).env_clear().spawn();
    let child = child.map_err(|e| Error::io("start kata-shim", e))?;
    drop((ready, job));
    let mut waiting = Waiting { child, socket, stays: false };
    waiting.expect_ready()?;
    Ok(waiting)
}

impl Waiting {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it stand for the process, which exists now.
    ///
    /// # Errors
    /// It says why it cannot; it has ended then.
    pub(crate) fn go(mut self) -> Result<u32> {
        // If it has died, its silence says so.
        let _ = self.socket.write_all(&[READY]);
        self.expect_ready()?;
        self.stays = true;
        Ok(self.pid())
    }

    fn expect_ready(&mut self) -> Result<()> {
        let said = listen(&mut self.socket)?;
        if said == [READY] {
            return Ok(());
        }
        let pid = self.pid();
        let status = self.end().map_err(|e| Error::io("wait for kata-shim", e))?;
        match said.as_slice() {
            [] => Err(Error::refused(format!("kata-shim (pid {pid}) died: {status}"))),
            reason => Err(Error::refused(String::from_utf8_lossy(reason))),
        }
    }

    /// It has ended or is of no use; either way it shall not stay.
    fn end(&mut self) -> io::Result<std::process::ExitStatus> {
        let _ended = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.stays {
            // Nobody is left to be told.
            let _ended = self.end();
        }
    }
}

/// What comes through the socket: [`READY`], or else everything until its end.
fn listen(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let end = std::time::Instant::now() + READY_DEADLINE;
    let failed = |e: io::Error| Error::io("wait for kata-shim", e);
    let mut said = Vec::new();
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&*socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                let seconds = READY_DEADLINE.as_secs();
                return Err(Error::refused(format!(
                    "kata-shim did not come to stand for the process within {seconds} s"
                )));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let mut piece = [0; 1024];
        match socket.read(&mut piece) {
            Ok(0) => return Ok(said),
            Ok(count) => said.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It died with something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(said),
            Err(error) => return Err(failed(error)),
        }
        if said == [READY] {
            return Ok(said);
        }
    }
}

/// The shim's main function.
pub(crate) fn role_main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let usage = "kata-shim is started by kata-runtime and has no use by itself";
    let plan = arguments.next().and_then(|text| serde_json::from_str::<Plan>(text.to_str()?).ok());
    let Some(plan) = plan else {
        eprintln!("{usage}");
        return ExitCode::FAILURE;
    };
    let numbers: Vec<RawFd> =
        [plan.stdin, plan.stdout, plan.stderr, plan.console, Some(plan.ready)].into_iter().flatten().collect();
    let taken = sys::Inherited::only(&numbers).ok().and_then(|mut inherited| {
        let ready = inherited.take(plan.ready)?;
        Some((inherited, UnixStream::from(ready)))
    });
    let Some((inherited, mut socket)) = taken else {
        eprintln!("{usage}");
        return ExitCode::FAILURE;
    };
    let signals = match begin() {
        Ok(signals) => signals,
        Err(error) => return give_up(&mut socket, &error),
    };
    plan.place.stand(|placed| match placed {
        Ok(standing) => work(&plan, standing, inherited, signals, socket),
        Err(error) => give_up(&mut socket, &error),
    })
}

/// Whoever started this tells the user.
fn give_up(socket: &mut UnixStream, error: &Error) -> ExitCode {
    let _gone = socket.write_all(error.chain().as_bytes());
    ExitCode::FAILURE
}

fn begin() -> Result<Signals> {
    let _only_a_name = rustix::thread::set_name(c"kata-shim");
    rustix::process::setsid().map_err(|e| Error::io("start a session for kata-shim", e))?;
    rustix::process::chdir("/").map_err(|e| Error::io("change to /", e))?;
    Signals::hold()
}

fn work(
    plan: &Plan,
    standing: Standing,
    inherited: sys::Inherited,
    signals: Signals,
    mut socket: UnixStream,
) -> ExitCode {
    // Who has started this ends once it stands for the process.
    let starter = rustix::process::getppid().and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut exists = [0];
    if socket.write_all(&[READY]).and_then(|()| socket.read_exact(&mut exists)).is_err() {
        // The process will never exist.
        return ExitCode::FAILURE;
    }
    let shown = plan.view.clone().map_or(Ok(()), |view| standing.show(view));
    let attending = match shown.and_then(|()| attend(plan, inherited, signals)) {
        Ok(attending) => attending,
        Err(error) => return give_up(&mut socket, &error),
    };
    if socket.write_all(&[READY]).is_err() {
        // Nobody will ever know of this process.
        return ExitCode::FAILURE;
    }
    let monitor = Monitor::of(plan, &starter);
    drop(socket);
    attending.finish(plan, standing, &monitor)
}

/// The process number of the parent; 0 if that is in none of the process id namespaces that this process sees.
fn parent() -> i32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get())
}

/// Who called for the container and has become this process's parent, as conmon and containerd's shim do: it waits for this process, and is
/// the one that deletes the container.
struct Monitor {
    caller: i32,
    adopter: Arc<OnceLock<i32>>,
}

impl Monitor {
    fn of(plan: &Plan, starter: &Option<OwnedFd>) -> Self {
        let adopter = Arc::new(OnceLock::new());
        let (known, starter) = (adopter.clone(), starter.as_ref().and_then(|starter| starter.try_clone().ok()));
        // Until the command that has started this ends, that is the parent.
        let wait = move || {
            let Some(starter) = starter else { return };
            let timeout = Timespec { tv_sec: READY_DEADLINE.as_secs() as _, tv_nsec: 0 };
            if matches!(poll(&mut [PollFd::new(&starter, PollFlags::IN)], Some(&timeout)), Ok(1..)) {
                let _once = known.set(parent());
            }
        };
        // Without it nothing is known of a monitor, and the container waits to be deleted.
        let _unknown = std::thread::Builder::new().name("monitor".into()).spawn(wait);
        Self { caller: plan.caller, adopter }
    }

    /// Whether it has died, so that nobody deletes the container: Podman believes then that there is nothing to delete.
    fn has_died(&self) -> bool {
        self.adopter.get() == Some(&self.caller) && parent() != self.caller
    }
}

struct Attending {
    running: Running,
    pumps: Pumps,
    _signals: Signals,
}

fn attend(plan: &Plan, mut inherited: sys::Inherited, signals: Signals) -> Result<Attending> {
    let mut socket = |number: Option<RawFd>| number.and_then(|number| inherited.take(number)).map(UnixStream::from);
    let ends = OurEnds { stdin: socket(plan.stdin), stdout: socket(plan.stdout), stderr: socket(plan.stderr) };
    let console = plan.console.and_then(|number| inherited.take(number));
    let size = plan.size.map(|(rows, cols)| WindowSize { rows, cols });
    let terminal = console.map(|socket| stand_in_terminal(&socket, size)).transpose()?;

    let client = Client::new(&Store::new(&plan.root), &plan.id)?;
    let running = client.supervise(plan.exec.as_deref())?;
    let pumps = ends.pump(terminal.is_some(), terminal.as_deref(), true)?;
    signals.forward_to(Target { client, exec: plan.exec.clone(), terminal });
    Ok(Attending { running, pumps, _signals: signals })
}

/// Makes the terminal the caller sees. It becomes this process's controlling one, so that the kernel tells when the
/// caller sets its size or closes it.
fn stand_in_terminal(socket: &OwnedFd, size: Option<WindowSize>) -> Result<Arc<Terminal>> {
    let (master, slave) = terminal::open_pair(size)?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(|e| Error::io("control the pseudoterminal", e))?;
    console::send(socket, &master)?;
    Ok(Arc::new(Terminal::new(slave)))
}

impl Attending {
    fn finish(self, plan: &Plan, mut standing: Standing, monitor: &Monitor) -> ExitCode {
        let ended = self.running.wait();
        let lost = ended.is_err();
        self.pumps.drain(if plan.exec.is_some() || lost { EXEC_GRACE } else { CONTAINER_GRACE });
        let store = Store::new(&plan.root);
        let ended = ended.or_else(|error| how_it_ended(&store, &plan.id, plan.exec.as_deref(), error));
        if plan.exec.is_none() && monitor.has_died() {
            standing.leave_cgroup();
            remove(&store, &plan.id);
        }
        match ended {
            Ok(ExitStatus::Code(code)) => ExitCode::from(code),
            Ok(ExitStatus::Signal(signal)) => {
                // Nobody wants to debug this program for a fault of that one.
                let _dumps_then =
                    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
                sys::die_by(signal.into())
            }
            Err(error) => {
                let _nobody_reads = writeln!(io::stderr(), "kata-shim: container {}: {}", plan.id, error.chain());
                ExitCode::from(LOST)
            }
        }
    }
}

/// Removes a container that nobody else will.
fn remove(store: &Store, id: &str) {
    let state = store.state(id);
    let removed = Client::new(store, id).and_then(|client| client.delete(true));
    if let Err(error) = removed {
        let _nobody_reads = writeln!(io::stderr(), "kata-shim: container {id}: {}", error.chain());
    }
    if let Ok(state) = state
        && let Some(hooks) = &state.hooks
    {
        hooks::run_all(Point::Poststop, hooks, &Told::of_state(&state), |error| {
            let _nobody_reads = writeln!(io::stderr(), "kata-shim: container {id}: {}", error.chain());
        });
    }
}

/// Writes a pid where the caller will look for it, so that it finds all of it or nothing.
///
/// # Errors
/// The directory cannot be written to.
pub(crate) fn write_pid_file(path: &Path, pid: u32) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let mut hidden = OsString::from(".");
    hidden.push(name);
    let temporary = path.with_file_name(hidden);
    let written = std::fs::write(&temporary, pid.to_string()).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|e| {
        let _may_never_have_been = std::fs::remove_file(&temporary);
        Error::io(format!("write the pid file {}", path.display()), e)
    })
}

/// Refuses a pid file that could not be written later.
///
/// # Errors
/// Its directory is not there, or it is a directory itself.
pub(crate) fn check_pid_file(path: &Path) -> Result<()> {
    let refused = |problem: &str| Err(Error::refused(format!("--pid-file {}: {problem}", path.display())));
    if path.file_name().is_none() || path.is_dir() {
        return refused("is a directory; the path of a file is expected");
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        return refused(&format!("the directory {} does not exist", directory.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Network;

    #[test]
    fn orders_come_back_as_they_went() {
        let plan = Plan {
            id: "c".into(),
            exec: Some("e".into()),
            root: "/run/x".into(),
            place: Place { network: Some(Network::New), cgroup: Some("/a/b".into()), scope: None, mounts: true },
            caller: 7,
            view: Some(View { root: "/r".into(), mounts: Vec::new() }),
            stdin: Some(5),
            stdout: None,
            stderr: Some(6),
            console: None,
            ready: 9,
            size: Some((24, 80)),
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn a_pid_file_appears_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        check_pid_file(&path).unwrap();
        write_pid_file(&path, 42).unwrap();
        write_pid_file(&path, 43).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "43");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(check_pid_file(dir.path()).is_err());
        assert!(check_pid_file(&dir.path().join("no/pid")).unwrap_err().to_string().contains("does not exist"));
        check_pid_file(Path::new("pid")).unwrap();
    }

    #[test]
    fn what_the_socket_says_is_heard_to_its_end() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"\n").unwrap();
        assert_eq!(listen(&mut ours).unwrap(), b"\n");
        theirs.write_all(b"no such container").unwrap();
        drop(theirs);
        assert_eq!(listen(&mut ours).unwrap(), b"no such container");
    }
}
