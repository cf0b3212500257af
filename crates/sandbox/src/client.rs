//! Speaking to a running sandbox's daemon.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use agent_api::{ExitStatus, ProcessInfo, WindowSize, frame, statistics::Statistics};
use oci_spec::runtime::{LinuxResources, Process};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    io::Errno,
    time::Timespec,
};

use crate::{
    Error, Result,
    api::{Reply, Request, StdioSet},
    hooks::Point,
    passing,
    store::{self, ContainerState, StateDir, Store},
};

/// How long a call may take that only passes through the daemon and the agent.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long the daemon may take to end the machine and itself.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a change of limits may take: the guest's kernel may have to make room first.
const UPDATE_DEADLINE: Duration = Duration::from_secs(75);

/// How often a caller that waits looks whether somebody has stopped the daemon, and after how many times it gives up. One that waits for a
/// process's end, which may take months, is more patient, and its end would be that of the container.
const LOOK: (Duration, u32) = (Duration::from_secs(3), 3);
const LOOK_WHILE_IT_RUNS: (Duration, u32) = (Duration::from_secs(15), 2);

/// How long a daemon that hangs up may take to be gone, if it is dying.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// The daemon's ends of a process's stdio: one end each of a stream socket pair.
#[derive(Debug, Default)]
pub struct StdioEnds {
    /// Standard input, or the terminal's input.
    pub stdin: Option<OwnedFd>,
    /// Standard output, or the terminal's output.
    pub stdout: Option<OwnedFd>,
    /// Standard error; never with a terminal.
    pub stderr: Option<OwnedFd>,
}

impl StdioEnds {
    pub(crate) fn set(&self) -> StdioSet {
        StdioSet { stdin: self.stdin.is_some(), stdout: self.stdout.is_some(), stderr: self.stderr.is_some() }
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd).collect()
    }

    pub(crate) fn from_descriptors(set: StdioSet, descriptors: Vec<OwnedFd>) -> Option<Self> {
        if descriptors.len() != set.count() {
            return None;
        }
        let mut descriptors = descriptors.into_iter();
        let mut take = |wanted: bool| if wanted { descriptors.next() } else { None };
        Some(Self { stdin: take(set.stdin), stdout: take(set.stdout), stderr: take(set.stderr) })
    }
}

/// A way to one sandbox. Each call makes a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    dir: StateDir,
}

/// A call whose last answer, the end of a process, is still to come.
#[derive(Debug)]
pub struct Running {
    connection: Connection,
    /// Process id in the guest.
    pub guest_pid: u32,
}

impl Running {
    pub(crate) fn new(connection: Connection, guest_pid: u32) -> Self {
        Self { connection, guest_pid }
    }

    /// Waits, without a deadline, until the process ends.
    ///
    /// # Errors
    /// When the machine or the daemon dies first, saying which.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.connection.exited()
    }
}

impl Client {
    /// A way to the sandbox of container `id`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Id`].
    pub fn new(store: &Store, id: &str) -> Result<Self> {
        Ok(Self { dir: store.find(id)? })
    }

    fn call(&self, step: &str, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Connection> {
        let mut connection = Connection::open(&self.dir, step)?;
        connection.send(request, descriptors)?;
        Ok(connection)
    }

    fn done(&self, step: &str, request: &Request) -> Result<()> {
        self.call(step, request, &[])?.done()
    }

    /// Lets the created container run.
    ///
    /// # Errors
    /// What the guest says, e.g. that the program cannot be run.
    pub fn start(&self) -> Result<()> {
        let hooks = self.dir.load().ok().and_then(|state| state.hooks);
        let patience = hooks.map(|hooks| Point::StartContainer.patience(&hooks)).unwrap_or_default();
        let mut connection = self.call("start the container", &Request::Start, &[])?;
        match connection.reply(Some(CALL_DEADLINE + patience))? {
            Reply::Done => Ok(()),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Sends a signal to a process, or to all of the container's.
    ///
    /// # Errors
    /// [`Error::Sandbox`] when it is not running.
    pub fn signal(&self, exec: Option<&str>, signal: i32, all: bool) -> Result<()> {
        self.done("send a signal", &Request::Signal { exec: exec.map(Into::into), signal, all })
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn resize(&self, exec: Option<&str>, size: WindowSize) -> Result<()> {
        self.done("resize the terminal", &Request::Resize { exec: exec.map(Into::into), size })
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn pause(&self) -> Result<()> {
        self.done("pause the container", &Request::Pause)
    }

    /// Thaws the container.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn resume(&self) -> Result<()> {
        self.done("resume the container", &Request::Resume)
    }

    /// Waits, without a deadline, until somebody has resumed the container, or it has ended.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn wait_until_resumed(&self) -> Result<()> {
        let mut connection = self.call("wait until the container is resumed", &Request::Resumed, &[])?;
        match connection.reply(None)? {
            Reply::Done => Ok(()),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Lists the container's processes.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let mut connection = self.call("list the processes", &Request::Processes, &[])?;
        match connection.reply(Some(CALL_DEADLINE))? {
            Reply::Processes(processes) => Ok(processes),
            other => Err(connection.unexpected(other)),
        }
    }

    /// What the container uses.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn statistics(&self) -> Result<Statistics> {
        let mut connection = self.call("ask for the statistics", &Request::Statistics, &[])?;
        match connection.reply(Some(CALL_DEADLINE))? {
            Reply::Statistics(statistics) => Ok(*statistics),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Changes the container's limits; what is absent stays as it is.
    ///
    /// # Errors
    /// What the guest says; what could be changed back is as it was.
    pub fn update(&self, resources: LinuxResources) -> Result<()> {
        let request = Request::Update { resources: Box::new(resources) };
        let mut connection = self.call("change the container's limits", &request, &[])?;
        match connection.reply(Some(UPDATE_DEADLINE))? {
            Reply::Done => Ok(()),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Listens to what happens to the container.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn events(&self) -> Result<Events> {
        let mut connection = self.call("listen to the container", &Request::Events, &[])?;
        connection.done()?;
        Ok(Events { connection })
    }

    /// Starts a further process named `id` with these ends of its stdio.
    ///
    /// # Errors
    /// What the guest says, e.g. that the program is not there.
    pub fn exec(&self, id: &str, process: Process, stdio: StdioEnds) -> Result<Running> {
        let request = Request::Exec { id: id.into(), process: Box::new(process), stdio: stdio.set() };
        let mut connection = self.call("start the process", &request, &stdio.descriptors())?;
        match connection.reply(Some(CALL_DEADLINE))? {
            Reply::Created { pid } => Ok(Running::new(connection, pid)),
            other => Err(connection.unexpected(other)),
        }
    }

    /// Waits, without a deadline, until a process ends.
    ///
    /// # Errors
    /// When there is no such process, or the sandbox dies.
    pub fn wait(&self, exec: Option<&str>) -> Result<ExitStatus> {
        self.call("wait for the process", &Request::Wait { exec: exec.map(Into::into) }, &[])?.exited()
    }

    /// Makes the calling process the one that stands for a process of the container on the host. If it ends before the
    /// process does, the process is killed. Wait on what is returned; keep it until then.
    ///
    /// # Errors
    /// When there is no such process, or the sandbox dies.
    pub fn supervise(&self, exec: Option<&str>) -> Result<Running> {
        let request = Request::Supervise { pid: std::process::id(), exec: exec.map(Into::into) };
        let mut connection = self.call("stand for the process", &request, &[])?;
        connection.done()?;
        Ok(Running::new(connection, 0))
    }

    /// The state as the daemon knows it, or as the state directory tells if there is no daemon.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn state(&self) -> Result<ContainerState> {
        let asked = self.call("ask for the state", &Request::State, &[]).and_then(|mut c| c.reply(Some(CALL_DEADLINE)));
        match asked {
            Ok(Reply::State(state)) => Ok(*state),
            _ => self.dir.load(),
        }
    }

    /// Ends the container, and the sandbox with its last one, and removes every trace of it. Without `force` the container must have stopped.
    ///
    /// # Errors
    /// [`Error::Sandbox`] when it has not stopped; [`Error::Deadline`] or [`Error::Io`] when something cannot be removed.
    pub fn delete(&self, force: bool) -> Result<()> {
        let state = self.dir.load();
        let step = "delete the container";
        let stopped = state.as_ref().ok().and_then(|state| state.daemon).filter(|daemon| store::is_stopped(daemon.pid));
        let asked = match stopped {
            // It is killed without having been asked.
            Some(daemon) if force => Err(stopped_daemon(step, daemon.pid)),
            _ => self.call(step, &Request::Delete { force }, &[]),
        };
        match asked.and_then(|mut connection| connection.reply(Some(DELETE_DEADLINE))) {
            Ok(Reply::Failed { kind, message }) if !force => return Err(Error::Sandbox { kind, message }),
            // The daemon has given the directory another name, and somebody may have taken that of the container.
            Ok(Reply::Left) if state.as_ref().is_ok_and(|state| state.sandbox.is_none()) => return Ok(()),
            Ok(Reply::Left) => return self.dir.purge(),
            Err(error) if !force => {
                // Nobody answers: fine for a container that has stopped, because its daemon is gone.
                if let Ok(state) = &state
                    && state.status != crate::store::Status::Stopped
                {
                    return Err(error);
                }
            }
            _ => {}
        }
        if let Ok(state) = state
            && let Some(daemon) = state.daemon
            && let Some(handle) = crate::sys::open_process(daemon.pid)
            && daemon.is_alive()
        {
            // It kills the machine first; if it does not come to its end, `purge` kills it.
            let patience = match (stopped, force) {
                (Some(_), true) => Duration::ZERO,
                (None, true) => Duration::from_secs(5),
                (_, false) => DELETE_DEADLINE,
            };
            crate::sys::wait_gone(&handle, patience);
        }
        self.dir.purge()
    }
}

/// What happens to a container, as it happens.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// A process was killed for want of memory.
    OutOfMemory,
    /// Nothing in that time.
    Nothing,
    /// The container has stopped.
    Stopped,
}

impl Events {
    /// Waits for the next event, at most that long.
    ///
    /// # Errors
    /// The daemon says something else.
    pub fn next(&mut self, at_most: Duration) -> Result<Heard> {
        match poll(&mut [PollFd::new(&self.connection.stream, PollFlags::IN)], Some(&timespec(at_most))) {
            Ok(0) | Err(Errno::INTR) => return Ok(Heard::Nothing),
            Ok(_) => {}
            Err(error) => return Err(Error::io("listen to the container", error)),
        }
        match self.connection.reply(Some(CALL_DEADLINE)) {
            Ok(Reply::OutOfMemory) => Ok(Heard::OutOfMemory),
            Ok(other) => Err(self.connection.unexpected(other)),
            // The end of the connection is that of the container, or of all that belongs to it.
            Err(Error::Sandbox { .. }) => Ok(Heard::Stopped),
            Err(error) => Err(error),
        }
    }
}

/// One conversation with a daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    dir: StateDir,
    step: String,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, dir: StateDir, step: &str) -> Self {
        Self { stream, dir, step: step.into() }
    }

    pub(crate) fn open(dir: &StateDir, step: &str) -> Result<Self> {
        // Through the directory's descriptor: a socket's path may have 107 bytes only, a state directory's more.
        let failed = |source: rustix::io::Errno| Error::io(format!("{step}: open {}", dir.path().display()), source);
        let handle = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        let path = format!("/proc/self/fd/{}/sock", handle.as_raw_fd());
        match UnixStream::connect(Path::new(&path)) {
            Ok(stream) => Ok(Self::new(stream, dir.clone(), step)),
            Err(_) => Err(Error::Sandbox { kind: None, message: format!("{step}: {}", epitaph(dir)) }),
        }
    }

    pub(crate) fn send(&mut self, request: &impl serde::Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let limited = self.stream.set_write_timeout(Some(CALL_DEADLINE));
        limited.map_err(|e| Error::io(format!("{}: set a deadline", self.step), e))?;
        passing::send(&self.stream, request, descriptors).map_err(|e| self.broken(e))
    }

    fn broken(&self, source: frame::FrameError) -> Error {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        match source {
            frame::FrameError::Io(ref e) if matches!(e.kind(), WouldBlock | TimedOut) => Error::Deadline {
                what: format!("{}: an answer of the sandbox daemon", self.step),
                seconds: CALL_DEADLINE.as_secs(),
            },
            frame::FrameError::Io(ref e) if !matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                Error::Frame { step: format!("{}: speak to the sandbox daemon", self.step), source }
            }
            frame::FrameError::Closed | frame::FrameError::Io(_) => {
                Error::Sandbox { kind: None, message: format!("{}: {}", self.step, epitaph(&self.dir)) }
            }
            source => Error::Frame { step: format!("{}: understand the sandbox daemon", self.step), source },
        }
    }

    pub(crate) fn reply(&mut self, deadline: Option<Duration>) -> Result<Reply> {
        self.wait(deadline)?;
        // What has begun to arrive is short.
        let limited = self.stream.set_read_timeout(Some(CALL_DEADLINE));
        limited.map_err(|e| Error::io(format!("{}: set a deadline", self.step), e))?;
        frame::read_blocking(&mut self.stream, frame::MAX_REPLY).map_err(|e| self.broken(e))
    }

    /// Returns when something has arrived, or the daemon has hung up.
    fn wait(&self, deadline: Option<Duration>) -> Result<()> {
        let (look, most) = if deadline.is_some() { LOOK } else { LOOK_WHILE_IT_RUNS };
        let begun = Instant::now();
        let mut stopped = 0;
        loop {
            let left = deadline.map_or(look, |deadline| deadline.saturating_sub(begun.elapsed()).min(look));
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&timespec(left))) {
                Ok(0) => {}
                Err(Errno::INTR) => continue,
                Ok(_) => return Ok(()),
                Err(error) => return Err(Error::io(format!("{}: wait for the sandbox daemon", self.step), error)),
            }
            if let Some(deadline) = deadline.filter(|deadline| begun.elapsed() >= *deadline) {
                let what = format!("{}: an answer of the sandbox daemon", self.step);
                return Err(Error::Deadline { what, seconds: deadline.as_secs() });
            }
            let daemon = self.dir.load().ok().and_then(|state| state.daemon);
            match daemon.filter(|daemon| store::is_stopped(daemon.pid)) {
                Some(daemon) if stopped + 1 >= most => return Err(stopped_daemon(&self.step, daemon.pid)),
                Some(_) => stopped += 1,
                None => stopped = 0,
            }
        }
    }

    pub(crate) fn unexpected(&self, reply: Reply) -> Error {
        match reply {
            Reply::Failed { kind, message } => Error::Sandbox { kind, message },
            other => Error::State(format!("{}: the sandbox daemon answered out of turn: {other:?}", self.step)),
        }
    }

    fn done(&mut self) -> Result<()> {
        match self.reply(Some(CALL_DEADLINE))? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    fn exited(&mut self) -> Result<ExitStatus> {
        match self.reply(None)? {
            Reply::Exited(status) => Ok(status),
            other => Err(self.unexpected(other)),
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

fn stopped_daemon(step: &str, pid: u32) -> Error {
    let message = format!(
        "{step}: the sandbox daemon (pid {pid}) was stopped by a signal; continue it (kill -CONT {pid}) or delete the container by force"
    );
    Error::Sandbox { kind: None, message }
}

/// What can be said of a daemon that does not answer.
fn epitaph(dir: &StateDir) -> String {
    let state = dir.load().ok();
    let daemon = state.as_ref().and_then(|s| s.daemon);
    // Its connections are closed a moment before it is gone.
    if let Some(handle) =
        daemon.filter(|daemon| daemon.is_alive()).and_then(|daemon| crate::sys::open_process(daemon.pid))
    {
        crate::sys::wait_gone(&handle, LAST_MOMENT);
    }
    let mut text = match (&state, daemon) {
        (None, _) => format!("container {:?} is gone", dir.id()),
        (Some(_), None) => "the sandbox daemon has not answered yet".into(),
        (Some(_), Some(daemon)) if daemon.is_alive() => {
            format!("the sandbox daemon (pid {}) closed the connection", daemon.pid)
        }
        (Some(_), Some(daemon)) => format!("the sandbox daemon (pid {}) died; delete the container", daemon.pid),
    };
    let tail = log_tail(&dir.file("daemon.log"));
    if !tail.is_empty() {
        text.push_str("; its last words: ");
        text.push_str(&tail);
    }
    text
}

/// The last kilobyte of a log, as one line.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(1024)))?;
        let mut bytes = Vec::new();
        file.take(1024).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().replace('\n', " | ")
}
